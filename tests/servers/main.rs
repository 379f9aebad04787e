//! The layer against nginx and HAProxy, as seen by the caller and in the log of the server.

#[path = "../support/mod.rs"]
mod support;

mod haproxy;
mod nginx;

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower::{Layer, ServiceExt};
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, ReplayBody, Retry, RetryLayer, RetryOutcome, RetryPolicy,
    backoff_fn,
};

use support::timeout::with_timeout;

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

type HttpClient = Client<HttpConnector, ReplayBody<Full<Bytes>>>;

fn client(version: Version) -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build(connector)
}

/// The default policy with short delays.
fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::from_millis(20))))
}

fn retrying_client(version: Version) -> Retry<HttpClient> {
    RetryLayer::new(policy()).layer(client(version))
}

/// Creates a client that retries until a server is back. Returns it with a counter of the requests whose
/// first attempt failed.
fn persistent_client(version: Version) -> (Retry<HttpClient>, Arc<AtomicUsize>) {
    let failed = Arc::new(AtomicUsize::new(0));
    let count = failed.clone();
    let policy = RetryPolicy::new()
        .max_retries(1000)
        .no_budget()
        // The first failure of a request creates its backoff.
        .backoff(backoff_fn(move || {
            count.fetch_add(1, Ordering::SeqCst);
            iter::repeat(Duration::from_millis(20))
        }));
    (RetryLayer::new(policy).layer(client(version)), failed)
}

/// The result of a request.
#[derive(Debug)]
struct CallResult {
    result: Result<(StatusCode, Bytes), legacy::Error>,
    outcome: RetryOutcome,
}

async fn send(
    client: &Retry<HttpClient>,
    method: Method,
    uri: &str,
    body: impl Into<Bytes>,
) -> CallResult {
    let handle = OutcomeHandle::new();
    let request = Request::builder().method(method).uri(uri);
    let mut request = request.body(Full::new(body.into())).unwrap();
    request.extensions_mut().insert(handle.clone());
    let result = match with_timeout(client.clone().oneshot(request)).await {
        Ok(response) => {
            let status = response.status();
            let body = with_timeout(response.into_body().collect()).await.unwrap();
            Ok((status, body.to_bytes()))
        }
        Err(error) => Err(error),
    };
    let outcome = handle.get().unwrap();
    CallResult { result, outcome }
}

async fn get(client: &Retry<HttpClient>, uri: &str) -> CallResult {
    send(client, Method::GET, uri, "").await
}

async fn post(client: &Retry<HttpClient>, uri: &str, body: &str) -> CallResult {
    send(client, Method::POST, uri, body.to_owned()).await
}

impl CallResult {
    /// Returns the status and the body of the response. Panics if there is none.
    fn response(&self) -> (u16, &[u8]) {
        let (status, body) = self.result.as_ref().unwrap();
        (status.as_u16(), body)
    }

    fn status(&self) -> u16 {
        self.response().0
    }

    /// Returns the number of attempts, and the reason to give up.
    fn attempts_and_reason(&self) -> (u32, Option<GiveUpReason>) {
        (self.outcome.attempts(), self.outcome.give_up_reason())
    }
}
