//! tower-http's layers above and below the retries.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clients::{
    ScriptedServer, policy, request_to, response, silence, start_server, status, with_timeout,
};
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

/// Combines all layers below the retries.
#[tokio::test]
async fn layers_below_meet_contract() {
    contract::check(|policy| {
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

/// Combines all layers above the retries.
#[tokio::test]
async fn layers_above_meet_contract() {
    contract::check(|policy| {
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

/// `TimeoutLayer` creates a response, which needs a body with a default; hyper's has none.
#[tokio::test]
async fn timed_out_attempt_is_retried() {
    let server = start_server([silence(), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(timeout(Duration::from_millis(500)))
        .layer(MapResponseBodyLayer::new(Incoming::boxed))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.bodies(), ["money"; 2]);
}

#[tokio::test]
async fn timeout_without_retry_returns_504() {
    let server = start_server([silence()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(timeout(Duration::from_millis(100)))
        .layer(MapResponseBodyLayer::new(Incoming::boxed))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::POST, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 504);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
}

#[tokio::test]
async fn trace_sees_attempts_below_and_call_above() {
    let [calls, attempts, failures] = [(); 3].map(|()| Counter::default());
    let server = start_server([status(504), status(429), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http().on_request(calls.clone()))
        .layer(RetryLayer::new(policy()))
        .layer(
            TraceLayer::new(ApiErrorsAsFailures::new())
                .on_request(attempts.clone())
                .on_failure(failures.clone()),
        )
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        3
    );
    assert_eq!(calls.get(), 1);
    assert_eq!(attempts.get(), 3);
    assert_eq!(failures.get(), 2);
}

#[tokio::test]
async fn request_id_is_per_call_above_and_per_attempt_below() {
    let ids = |server: &ScriptedServer| {
        let heads = server.heads().into_iter();
        let ids = heads.map(|head| head.headers["x-request-id"].clone());
        ids.collect::<Vec<_>>()
    };

    let server = start_server([status(504), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(Counter::default()))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(RetryLayer::new(policy()))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().headers()["x-request-id"], "0");
    assert_eq!(ids(&server), ["0", "0"]);

    let server = start_server([status(504), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(SetRequestIdLayer::x_request_id(Counter::default()))
        .layer(PropagateRequestIdLayer::x_request_id())
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().headers()["x-request-id"], "1");
    assert_eq!(ids(&server), ["0", "1"]);
}

#[tokio::test]
async fn retry_repeats_redirects_only_below() {
    let redirect = || status(302).header("location", "/there");

    let server = start_server([redirect(), status(429), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .layer(RetryLayer::new(policy()))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::GET, ""))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.paths(), ["/", "/there", "/there"]);

    let server = start_server([redirect(), status(429), redirect(), status(200)]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(FollowRedirectLayer::new())
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::GET, ""))).await;
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.paths(), ["/", "/there", "/", "/there"]);
}

/// Above the redirects, the layer sees the original POST. Below, it sees the GET that follows.
#[tokio::test]
async fn failure_after_redirect_uses_method_seen_by_layer() {
    let script = || {
        let see_other = status(303).header("location", "/receipt");
        [see_other, status(504), status(200)]
    };
    let methods = |server: &ScriptedServer| {
        let heads = server.heads().into_iter();
        heads.map(|head| head.method).collect::<Vec<_>>()
    };

    let server = start_server(script());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(FollowRedirectLayer::new())
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::POST, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 504);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(methods(&server), [Method::POST, Method::GET]);

    let server = start_server(script());
    let stack = ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .layer(RetryLayer::new(policy()))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::POST, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(methods(&server), [Method::POST, Method::GET, Method::GET]);
}

/// A redirect that keeps the method needs the body again. Above the retries, a policy can clone it. Below,
/// the body cannot be cloned, and the caller gets the redirect.
#[tokio::test]
async fn redirect_with_body_is_followed_only_above() {
    let redirect = || status(307).header("location", "/there");

    let server = start_server([redirect(), status(504), status(200)]);
    let clone_body = clone_body_fn(|body: &Full<Bytes>| Some(body.clone()));
    let redirects = Limited::default().and::<_, _, ()>(clone_body);
    let stack = ServiceBuilder::new()
        .layer(FollowRedirectLayer::with_policy(redirects))
        .layer(RetryLayer::new(policy()))
        .service(client());
    let mut request = request_to(&server, Method::POST, "money");
    let idempotent = RequestOptions::new().idempotent(true);
    request.extensions_mut().insert(idempotent);
    let response = with_timeout(stack.oneshot(request)).await;
    // The options also apply to the redirected request.
    assert_eq!(
        RetryOutcome::from_response(&response.unwrap()).attempts(),
        2
    );
    assert_eq!(server.bodies(), ["money"; 3]);

    let server = start_server([redirect()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(FollowRedirectLayer::new())
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    assert_eq!(response.unwrap().status(), 307);
    assert_eq!(server.bodies(), ["money"]);
}

/// The layer searches the body that it receives for `invalid_token`: decompression belongs below it.
#[tokio::test]
async fn invalid_token_is_found_only_after_decompression() {
    let failure = || response(500, INVALID_TOKEN_GZIP).header("content-encoding", "gzip");

    let server = start_server([failure()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(DecompressionLayer::new())
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    let response = response.unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::InvalidToken));
    assert_eq!(read(response).await, INVALID_TOKEN);

    // With decompression above, the body is no JSON, and the layer retries.
    let server = start_server([failure(), failure()]);
    let stack = ServiceBuilder::new()
        .layer(DecompressionLayer::new())
        .layer(RetryLayer::new(policy().max_retries(1)))
        .service(client());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
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

/// Uses 504, because the 408 of the deprecated `TimeoutLayer::new` is not retried.
fn timeout(limit: Duration) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, limit)
}

async fn read<B>(response: Response<B>) -> Bytes
where
    B: Body<Error: std::fmt::Debug>,
{
    let body = with_timeout(response.into_body().collect()).await;
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
