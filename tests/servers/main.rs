//! The layer against servers that are in use everywhere: what the caller notices, and what the server's
//! own log says of it.

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

use support::within;

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

type HttpClient = Client<HttpConnector, ReplayBody<Full<Bytes>>>;

fn client(version: Version) -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build(connector)
}

/// The contract, with short waits.
fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::from_millis(20))))
}

fn retrying(version: Version) -> Retry<HttpClient> {
    RetryLayer::new(policy()).layer(client(version))
}

/// A client that waits for a server to come back, and how many of its requests have failed at first.
fn patient(version: Version) -> (Retry<HttpClient>, Arc<AtomicUsize>) {
    let failed = Arc::new(AtomicUsize::new(0));
    let count = failed.clone();
    let policy = RetryPolicy::new()
        .max_retries(1000)
        .no_budget()
        // A schedule is asked for by the first failure.
        .backoff(backoff_fn(move || {
            count.fetch_add(1, Ordering::SeqCst);
            iter::repeat(Duration::from_millis(20))
        }));
    (RetryLayer::new(policy).layer(client(version)), failed)
}

/// What became of a request.
#[derive(Debug)]
struct Sent {
    result: Result<(StatusCode, Bytes), legacy::Error>,
    outcome: RetryOutcome,
}

async fn send(
    client: &Retry<HttpClient>,
    method: Method,
    uri: &str,
    body: impl Into<Bytes>,
) -> Sent {
    let handle = OutcomeHandle::new();
    let request = Request::builder().method(method).uri(uri);
    let mut request = request.body(Full::new(body.into())).unwrap();
    request.extensions_mut().insert(handle.clone());
    let result = match within(client.clone().oneshot(request)).await {
        Ok(response) => {
            let status = response.status();
            let body = within(response.into_body().collect()).await.unwrap();
            Ok((status, body.to_bytes()))
        }
        Err(error) => Err(error),
    };
    let outcome = handle.get().unwrap();
    Sent { result, outcome }
}

async fn get(client: &Retry<HttpClient>, uri: &str) -> Sent {
    send(client, Method::GET, uri, "").await
}

async fn post(client: &Retry<HttpClient>, uri: &str, body: &str) -> Sent {
    send(client, Method::POST, uri, body.to_owned()).await
}

impl Sent {
    /// The status and body of the response that there has to be.
    fn response(&self) -> (u16, &[u8]) {
        let (status, body) = self.result.as_ref().unwrap();
        (status.as_u16(), body)
    }

    fn status(&self) -> u16 {
        self.response().0
    }

    /// How many attempts were made, and why there were no more.
    fn ended(&self) -> (u32, Option<GiveUpReason>) {
        (self.outcome.attempts(), self.outcome.give_up_reason())
    }
}
