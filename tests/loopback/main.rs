//! The layer over hyper-util's client and real sockets, as seen by the caller and by the server.

#[path = "../support/scripted_server.rs"]
mod scripted_server;
#[path = "../support/timeout.rs"]
mod timeout;

mod connections;
mod http2;
mod responses;
mod uploads;

use std::{convert::Infallible, error::Error as _, io, iter, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::sync::Notify;
use tower::{BoxError, Layer, ServiceExt, util::MapResponse};
use tower_http_retry::{OutcomeHandle, ReplayBody, Retry, RetryLayer, RetryPolicy, backoff_fn};

use scripted_server::{Reply, response_with};
use timeout::with_timeout;

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

type HyperClient<B> = Client<HttpConnector, ReplayBody<B>>;

fn client<B>(version: Version) -> HyperClient<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build(connector)
}

/// The default policy without delays.
fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::ZERO)))
}

fn retrying_client<B>(version: Version) -> Retry<HyperClient<B>>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
{
    RetryLayer::new(policy()).layer(client(version))
}

/// Creates a client that notifies when it has received the head of a response.
fn notifying_client<B>(
    version: Version,
    head_received: Arc<Notify>,
) -> MapResponse<HyperClient<B>, impl FnOnce(Response<Incoming>) -> Response<Incoming> + Clone>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    client(version).map_response(move |response| {
        head_received.notify_one();
        response
    })
}

/// Adds a handle for the outcome of the request.
fn watch<B>(request: &mut Request<B>) -> OutcomeHandle {
    let handle = OutcomeHandle::new();
    request.extensions_mut().insert(handle.clone());
    handle
}

async fn read_body<B>(response: Response<B>) -> Bytes
where
    B: Body<Error: std::fmt::Debug>,
{
    let body = with_timeout(response.into_body().collect()).await;
    body.unwrap().to_bytes()
}

/// Creates a response whose body never arrives.
fn stalled(status: u16) -> Reply {
    let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    response_with(status, body)
}

fn hyper_error(error: &legacy::Error) -> &hyper::Error {
    error.source().unwrap().downcast_ref().unwrap()
}

fn io_error(error: &legacy::Error) -> Option<&io::Error> {
    hyper_error(error).source()?.downcast_ref()
}
