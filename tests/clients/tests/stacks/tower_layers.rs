//! tower's layers above and below.

use std::{
    iter,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clients::{Answer, Server, policy, status, within};
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt,
    buffer::Buffer,
    limit::{RateLimit, rate::Rate},
    load_shed::error::Overloaded,
    timeout::error::Elapsed,
    util::BoxCloneSyncService,
};
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, ReplayBody, ResponseBody, RetryLayer, RetryOutcome, RetryPolicy,
    backoff_fn,
};

use crate::contract;

/// All of them at once, below the layer: each attempt passes through.
#[tokio::test]
async fn below() {
    contract::holds(|policy| {
        ServiceBuilder::new()
            .layer(RetryLayer::new(policy))
            .buffer(16)
            .load_shed()
            .concurrency_limit(4)
            .rate_limit(1000, Duration::from_secs(1))
            .timeout(Duration::from_secs(10))
            .service(client())
    })
    .await;
}

/// All of them at once, above the layer: a request passes through once.
#[tokio::test]
async fn above() {
    contract::holds(|policy| {
        ServiceBuilder::new()
            .buffer(16)
            .load_shed()
            .concurrency_limit(4)
            .rate_limit(1000, Duration::from_secs(1))
            .timeout(Duration::from_secs(10))
            .layer(RetryLayer::new(policy))
            .service(client())
    })
    .await;
}

/// Types erased below and above, as a field of a struct wants them.
#[tokio::test]
async fn boxed() {
    type Inner = BoxCloneSyncService<
        Request<ReplayBody<Full<Bytes>>>,
        Response<Incoming>,
        hyper_util::client::legacy::Error,
    >;
    type Outer = BoxCloneSyncService<
        Request<Full<Bytes>>,
        Response<ResponseBody<Incoming>>,
        hyper_util::client::legacy::Error,
    >;
    contract::holds(|policy| {
        let inner = Inner::new(client());
        let stack = ServiceBuilder::new().layer(RetryLayer::new(policy));
        Outer::new(stack.service(inner))
    })
    .await;
}

#[tokio::test]
async fn each_attempt_counts_towards_a_rate_limit() {
    let period = Duration::from_millis(50);
    let server = Server::start([status(429), status(429), status(200)]);
    // A rate limit cannot be cloned: the buffer shares it.
    let limited = RateLimit::new(client(), Rate::new(1, period));
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .service(Buffer::new(limited, 16));
    let started = Instant::now();
    let response = stack.oneshot(server.request(Method::PUT, "money"));
    assert_eq!(within(response).await.unwrap().status(), 200);
    assert!(started.elapsed() >= 2 * period);
    assert_eq!(server.bodies(), ["money"; 3]);
}

#[tokio::test]
async fn a_request_that_waits_for_its_retry_holds_no_permit() {
    let server = Server::start([status(429), status(200)]);
    let day = Duration::from_secs(24 * 60 * 60);
    let policy = RetryPolicy::new()
        .backoff(backoff_fn(move || iter::repeat(day)))
        .max_elapsed(2 * day);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .concurrency_limit(1)
        .service(client());
    let mut waiting = tokio::spawn(stack.clone().oneshot(server.request(Method::PUT, "first")));
    server.arrived(1).await;
    let response = within(stack.oneshot(server.request(Method::PUT, "second"))).await;
    assert_eq!(response.unwrap().status(), 200);
    assert_eq!(server.bodies(), ["first", "second"]);
    let waiting = tokio::time::timeout(Duration::ZERO, &mut waiting).await;
    assert!(waiting.is_err(), "a day is not over");
}

/// What sheds load says so at once; a retry would be the opposite.
#[tokio::test]
async fn shed_load_is_not_retried() {
    let server = Server::start([Answer::Silence]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .load_shed()
        .concurrency_limit(1)
        .service(client());
    let busy = tokio::spawn(stack.clone().oneshot(server.request(Method::PUT, "first")));
    server.arrived(1).await;
    let outcome = OutcomeHandle::new();
    let mut request = server.request(Method::PUT, "second");
    request.extensions_mut().insert(outcome.clone());
    let error = within(stack.oneshot(request)).await.unwrap_err();
    assert!(error.is::<Overloaded>());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));
    busy.abort();
}

#[tokio::test]
async fn an_attempt_that_times_out_is_made_again() {
    let server = Server::start([Answer::Silence, status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .timeout(Duration::from_millis(500))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.bodies(), ["money"; 2]);
}

#[tokio::test]
async fn a_timeout_above_ends_all_attempts() {
    let server = Server::start([status(429), Answer::Silence]);
    let stack = ServiceBuilder::new()
        .timeout(Duration::from_millis(500))
        .layer(RetryLayer::new(policy()))
        .map_err(BoxError::from)
        .service(client());
    let error = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert!(error.err().unwrap().is::<Elapsed>());
    assert_eq!(server.bodies(), ["money"; 2]);
}

/// `option_layer` does not fit, since the layer changes the types of the bodies: no retries are a
/// policy.
#[tokio::test]
async fn a_layer_that_is_switched_off() {
    let server = Server::start([status(429)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy().max_retries(0)))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().status(), 429);
    assert_eq!(server.bodies(), ["money"]);
}

fn client() -> Client<HttpConnector, ReplayBody<Full<Bytes>>> {
    Client::builder(TokioExecutor::new()).build_http()
}

const _: () = {
    const fn fits_into_a_task<S: Service<R, Future: Send> + Clone + Send + Sync, R>() {}
    fits_into_a_task::<
        tower_http_retry::Retry<Client<HttpConnector, ReplayBody<Full<Bytes>>>>,
        Request<Full<Bytes>>,
    >()
};
