//! The layer over hyper-util's client and servers that break the connection or the protocol.
//!
//! All servers listen on loopback. Random choices come from fixed seeds; the interleaving of client and
//! server does not. Assertions on time only detect calls that hang. The environment variable
//! `CHAOS_FACTOR` (default 1) multiplies the number of rounds.

#[path = "../support/timeout.rs"]
mod timeout;

mod raw_server;

mod load;

mod cut_responses;

mod keep_alive;

mod http2;

mod hostile;

use std::{env, iter, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, ReplayBody, ResponseBody, Retry, RetryLayer, RetryPolicy,
    backoff_fn,
};

use timeout::with_timeout;

type HyperClient = legacy::Client<HttpConnector, ReplayBody<Full<Bytes>>>;
type RetryingClient = Retry<HyperClient>;

fn client(version: Version) -> HyperClient {
    client_builder(version).build(connector())
}

fn client_builder(version: Version) -> legacy::Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.http2_only(version == Version::HTTP_2);
    builder
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

/// The default policy without delays and without a budget.
fn policy() -> RetryPolicy {
    let no_delay = backoff_fn(|| iter::repeat(Duration::ZERO));
    RetryPolicy::new().backoff(no_delay).no_budget()
}

fn retrying_client(version: Version) -> RetryingClient {
    RetryLayer::new(policy()).layer(client(version))
}

/// Returns the factor for the number of rounds.
fn factor() -> usize {
    env::var("CHAOS_FACTOR").map_or(1, |factor| factor.parse().unwrap())
}

/// Creates a request. A POST has the path as its body, other requests have none.
fn request(method: &Method, uri: &str) -> Request<Full<Bytes>> {
    let body = match *method {
        Method::POST => Full::from(uri.to_owned()),
        _ => Full::default(),
    };
    let request = Request::builder().method(method).uri(uri);
    request.body(body).unwrap()
}

/// The end of a call, with the body read.
#[derive(Debug)]
struct CallResult {
    end: CallEnd,
    attempts: u32,
    give_up_reason: Option<GiveUpReason>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "failed assertions print the errors")]
enum CallEnd {
    /// A response whose body ended without an error.
    Response(StatusCode, Bytes),
    /// A response whose body ended with an error.
    BodyError(StatusCode, BoxError),
    /// An error instead of a response.
    Error(BoxError),
}

/// A retry layer over hyper-util's client, or over a layer around that.
trait Client:
    Service<
        Request<Full<Bytes>>,
        Response = Response<ResponseBody<Incoming>>,
        Error: Into<BoxError> + Send,
    >
{
}

impl<S> Client for S where
    S: Service<
            Request<Full<Bytes>>,
            Response = Response<ResponseBody<Incoming>>,
            Error: Into<BoxError> + Send,
        >
{
}

/// Sends `request` and reads the response. Panics if that hangs.
async fn call(client: impl Client, request: Request<Full<Bytes>>) -> CallResult {
    with_timeout(call_without_timeout(client, request)).await
}

async fn call_without_timeout(
    client: impl Client,
    mut request: Request<Full<Bytes>>,
) -> CallResult {
    let handle = OutcomeHandle::new();
    request.extensions_mut().insert(handle.clone());
    let end = match client.oneshot(request).await {
        Ok(response) => {
            let status = response.status();
            match response.into_body().collect().await {
                Ok(body) => CallEnd::Response(status, body.to_bytes()),
                Err(error) => CallEnd::BodyError(status, error.into()),
            }
        }
        Err(error) => CallEnd::Error(error.into()),
    };
    let outcome = handle.get().expect("the call has ended");
    CallResult {
        end,
        attempts: outcome.attempts(),
        give_up_reason: outcome.give_up_reason(),
    }
}
