//! tower-http's layers above and below.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clients::{Answer, Server, policy, respond, status, within};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::{
    decompression::DecompressionLayer,
    follow_redirect::{
        FollowRedirectLayer,
        policy::{Limited, PolicyExt, clone_body_fn},
    },
    map_response_body::MapResponseBodyLayer,
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    timeout::TimeoutLayer,
    trace::{OnFailure, OnRequest, TraceLayer},
};
use tower_http_retry::{
    ApiErrorsAsFailures, ApiFailureClass, GiveUpReason, ReplayBody, RequestOptions, RetryLayer,
    RetryOutcome,
};
use tracing::Span;

use crate::contract;

/// All of them at once, below the layer.
#[tokio::test]
async fn below() {
    contract::holds(|policy| {
        ServiceBuilder::new()
            .layer(RetryLayer::new(policy))
            .layer(SetRequestIdLayer::x_request_id(Counter::default()))
            .layer(PropagateRequestIdLayer::x_request_id())
            .layer(FollowRedirectLayer::new())
            .layer(TraceLayer::new_for_http())
            .layer(DecompressionLayer::new())
            .layer(timeout(Duration::from_secs(10)))
            .layer(MapResponseBodyLayer::new(Incoming::boxed))
            .service(client())
    })
    .await;
}

/// All of them at once, above the layer.
#[tokio::test]
async fn above() {
    contract::holds(|policy| {
        ServiceBuilder::new()
            .layer(SetRequestIdLayer::x_request_id(Counter::default()))
            .layer(PropagateRequestIdLayer::x_request_id())
            .layer(FollowRedirectLayer::new())
            .layer(TraceLayer::new_for_http())
            .layer(timeout(Duration::from_secs(10)))
            .layer(MapResponseBodyLayer::new(BodyExt::boxed))
            .layer(DecompressionLayer::new())
            .layer(RetryLayer::new(policy))
            .service(client())
    })
    .await;
}

/// The layer needs a body that it can make itself; hyper's is none.
#[tokio::test]
async fn an_attempt_that_times_out_is_made_again() {
    let server = Server::start([Answer::Silence, status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(timeout(Duration::from_millis(500)))
        .layer(MapResponseBodyLayer::new(Incoming::boxed))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.bodies(), ["money"; 2]);
}

#[tokio::test]
async fn a_last_timeout_is_a_504() {
    let server = Server::start([Answer::Silence]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(timeout(Duration::from_millis(100)))
        .layer(MapResponseBodyLayer::new(Incoming::boxed))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::POST, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 504);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
}

#[tokio::test]
async fn a_trace_sees_each_attempt_below_and_the_call_above() {
    let [calls, attempts, failures] = [(); 3].map(|()| Counter::default());
    let server = Server::start([status(504), status(429), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http().on_request(calls.clone()))
        .layer(RetryLayer::new(policy()))
        .layer(
            TraceLayer::new(ApiErrorsAsFailures::new())
                .on_request(attempts.clone())
                .on_failure(failures.clone()),
        )
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        3
    );
    assert_eq!(calls.get(), 1);
    assert_eq!(attempts.get(), 3);
    assert_eq!(failures.get(), 2);
}

#[tokio::test]
async fn a_request_id_above_is_that_of_the_call_and_below_that_of_each_attempt() {
    let ids = |server: &Server| server.each(|seen| seen.head.headers["x-request-id"].clone());

    let server = Server::start([status(504), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(Counter::default()))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(RetryLayer::new(policy()))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().headers()["x-request-id"], "0");
    assert_eq!(ids(&server), ["0", "0"]);

    let server = Server::start([status(504), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(SetRequestIdLayer::x_request_id(Counter::default()))
        .layer(PropagateRequestIdLayer::x_request_id())
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().headers()["x-request-id"], "1");
    assert_eq!(ids(&server), ["0", "1"]);
}

#[tokio::test]
async fn redirects_outside_repeat_nothing_and_inside_all() {
    let redirect = || {
        let head = Response::builder().status(302);
        respond(head.header("location", "/there"), "")
    };
    let paths = |server: &Server| server.each(|seen| seen.head.uri.path().to_owned());

    let server = Server::start([redirect(), status(429), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .layer(RetryLayer::new(policy()))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::GET, ""))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(paths(&server), ["/", "/there", "/there"]);

    let server = Server::start([redirect(), status(429), redirect(), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(FollowRedirectLayer::new())
        .service(client());
    let response = within(stack.oneshot(server.request(Method::GET, ""))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(paths(&server), ["/", "/there", "/", "/there"]);
}

/// Inside, all that follows counts as the call, which was a POST; outside, what follows is a GET.
#[tokio::test]
async fn a_failure_behind_a_redirect_is_judged_by_the_method_that_the_layer_saw() {
    let script = || {
        let head = Response::builder().status(303);
        let see_other = respond(head.header("location", "/receipt"), "");
        [see_other, status(504), status(200)]
    };
    let asked = |server: &Server| server.each(|seen| seen.head.method.clone());

    let server = Server::start(script());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(FollowRedirectLayer::new())
        .service(client());
    let response = within(stack.oneshot(server.request(Method::POST, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 504);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(asked(&server), [Method::POST, Method::GET]);

    let server = Server::start(script());
    let stack = ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .layer(RetryLayer::new(policy()))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::POST, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(asked(&server), [Method::POST, Method::GET, Method::GET]);
}

/// A redirect that keeps the method needs the body again. Outside of the layer a policy can clone it;
/// inside nobody can, and the redirect is the answer.
#[tokio::test]
async fn a_body_is_redirected_outside_only() {
    let redirect = || {
        let head = Response::builder().status(307);
        respond(head.header("location", "/there"), "")
    };

    let server = Server::start([redirect(), status(504), status(200)]);
    let clone_body = clone_body_fn(|body: &Full<Bytes>| Some(body.clone()));
    let redirects = Limited::default().and::<_, _, ()>(clone_body);
    let stack = ServiceBuilder::new()
        .layer(FollowRedirectLayer::with_policy(redirects))
        .layer(RetryLayer::new(policy()))
        .service(client());
    let mut request = server.request(Method::POST, "money");
    let repeatable = RequestOptions::new().idempotent(true);
    request.extensions_mut().insert(repeatable);
    let response = within(stack.oneshot(request)).await;
    // What was said of the request holds behind the redirect, too.
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.bodies(), ["money"; 3]);

    let server = Server::start([redirect()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(FollowRedirectLayer::new())
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().status(), 307);
    assert_eq!(server.bodies(), ["money"]);
}

/// The layer looks for `invalid_token` in what it gets: decompression belongs below.
#[tokio::test]
async fn an_invalid_token_is_found_in_what_was_decompressed() {
    let failure = || {
        let head = Response::builder().status(500);
        respond(head.header("content-encoding", "gzip"), INVALID_TOKEN_GZIP)
    };

    let server = Server::start([failure()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(DecompressionLayer::new())
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    let response = response.unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::InvalidToken));
    assert_eq!(read(response).await, INVALID_TOKEN);

    // Above, it finds no JSON, and retries.
    let server = Server::start([failure(), failure()]);
    let stack = ServiceBuilder::new()
        .layer(DecompressionLayer::new())
        .layer(RetryLayer::new(policy().max_retries(1)))
        .service(client());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    let response = response.unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
    assert_eq!(read(response).await, INVALID_TOKEN);
    assert_eq!(server.bodies(), ["money"; 2]);
}

const INVALID_TOKEN: &str = r#"{"error":"invalid_token"}"#;
const INVALID_TOKEN_GZIP: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xabVJ-*\xca/R\xb2R\xca\xcc+K\
    \xcc\xc9L\x89/\xc9\xcfN\xcdS\xaa\x05\0\x82\x96\x14e\x19\0\0\0";

fn client() -> Client<HttpConnector, ReplayBody<Full<Bytes>>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Its old `new` answers 408, which is surfaced.
fn timeout(limit: Duration) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, limit)
}

async fn read<B>(response: Response<B>) -> Bytes
where
    B: Body<Error: std::fmt::Debug>,
{
    let body = within(response.into_body().collect()).await;
    body.unwrap().to_bytes()
}

#[derive(Clone, Default)]
struct Counter(Arc<AtomicUsize>);

impl Counter {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn count(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

impl<B> OnRequest<B> for Counter {
    fn on_request(&mut self, _: &Request<B>, _: &Span) {
        self.count();
    }
}

impl OnFailure<ApiFailureClass> for Counter {
    fn on_failure(&mut self, _: ApiFailureClass, _: Duration, _: &Span) {
        self.count();
    }
}

impl MakeRequestId for Counter {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        Some(RequestId::new(HeaderValue::from(self.count())))
    }
}
