//! tower's layers above and below the retries.

use std::{
    iter,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clients::{policy, request_to, silence, start_server, status, with_timeout};
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

/// Combines all layers below the retries. They see each attempt.
#[tokio::test]
async fn layers_below_meet_contract() {
    contract::check(|policy| {
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

/// Combines all layers above the retries. They see each request once.
#[tokio::test]
async fn layers_above_meet_contract() {
    contract::check(|policy| {
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

/// Boxes the services below and above the retries, as for a field of a struct.
#[tokio::test]
async fn boxed_services_meet_contract() {
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
    contract::check(|policy| {
        let inner = Inner::new(client());
        let stack = ServiceBuilder::new().layer(RetryLayer::new(policy));
        Outer::new(stack.service(inner))
    })
    .await;
}

#[tokio::test]
async fn rate_limit_counts_attempts() {
    let period = Duration::from_millis(50);
    let server = start_server([status(429), status(429), status(200)]);
    // A rate limit cannot be cloned, and the buffer shares it.
    let limited = RateLimit::new(client(), Rate::new(1, period));
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .service(Buffer::new(limited, 16));
    let started = Instant::now();
    let response = stack.oneshot(request_to(&server, Method::PUT, "money"));
    assert_eq!(with_timeout(response).await.unwrap().status(), 200);
    assert!(started.elapsed() >= 2 * period);
    assert_eq!(server.bodies(), ["money"; 3]);
}

#[tokio::test]
async fn delayed_retry_holds_no_concurrency_permit() {
    let server = start_server([status(429), status(200)]);
    let day = Duration::from_secs(24 * 60 * 60);
    let policy = RetryPolicy::new()
        .backoff(backoff_fn(move || iter::repeat(day)))
        .max_elapsed(2 * day);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .concurrency_limit(1)
        .service(client());
    let mut delayed = tokio::spawn(stack.clone().oneshot(request_to(
        &server,
        Method::PUT,
        "first",
    )));
    server.body(0).await.unwrap();
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "second"))).await;
    assert_eq!(response.unwrap().status(), 200);
    assert_eq!(server.bodies(), ["first", "second"]);
    let delayed = tokio::time::timeout(Duration::ZERO, &mut delayed).await;
    assert!(delayed.is_err(), "the delay is a day");
}

/// A retry would defeat load shedding.
#[tokio::test]
async fn shed_load_is_not_retried() {
    let server = start_server([silence()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .load_shed()
        .concurrency_limit(1)
        .service(client());
    let busy = tokio::spawn(
        stack
            .clone()
            .oneshot(request_to(&server, Method::PUT, "first")),
    );
    server.body(0).await.unwrap();
    let outcome = OutcomeHandle::new();
    let mut request = request_to(&server, Method::PUT, "second");
    request.extensions_mut().insert(outcome.clone());
    let error = with_timeout(stack.oneshot(request)).await.unwrap_err();
    assert!(error.is::<Overloaded>());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));
    busy.abort();
}

#[tokio::test]
async fn timed_out_attempt_is_retried() {
    let server = start_server([silence(), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .timeout(Duration::from_millis(500))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.bodies(), ["money"; 2]);
}

#[tokio::test]
async fn timeout_above_cancels_retries() {
    let server = start_server([status(429), silence()]);
    let stack = ServiceBuilder::new()
        .timeout(Duration::from_millis(500))
        .layer(RetryLayer::new(policy()))
        .map_err(BoxError::from)
        .service(client());
    let error = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert!(error.err().unwrap().is::<Elapsed>());
    assert_eq!(server.bodies(), ["money"; 2]);
}

/// `option_layer` cannot disable the layer, because the layer changes the types of the bodies.
#[tokio::test]
async fn zero_max_retries_disables_retries() {
    let server = start_server([status(429)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy().max_retries(0)))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().status(), 429);
    assert_eq!(server.bodies(), ["money"]);
}

fn client() -> Client<HttpConnector, ReplayBody<Full<Bytes>>> {
    Client::builder(TokioExecutor::new()).build_http()
}

const _: () = {
    const fn assert_fits_task<S: Service<R, Future: Send> + Clone + Send + Sync, R>() {}
    assert_fits_task::<
        tower_http_retry::Retry<Client<HttpConnector, ReplayBody<Full<Bytes>>>>,
        Request<Full<Bytes>>,
    >()
};
