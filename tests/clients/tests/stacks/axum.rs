//! An axum router: as the inner service, as a gateway, and with the layer around its routes.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use ::axum::{Router, body::Body, routing};
use bytes::Bytes;
use clients::{ok, policy, refusing_server, start_server, status, with_timeout};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http_retry::{GiveUpReason, RetryLayer, RetryOutcome};

/// Creates a router that responds with the statuses of `script`. Returns it with the bodies that it receives.
fn router<const N: usize>(script: [u16; N]) -> (Router, Arc<Mutex<Vec<Bytes>>>) {
    let received = Arc::new(Mutex::new(Vec::new()));
    let bodies = received.clone();
    let handler = async move |body: Bytes| {
        let mut bodies = bodies.lock().unwrap();
        bodies.push(body);
        let status = StatusCode::from_u16(script[bodies.len() - 1]).unwrap();
        (status, format!("response {}", bodies.len()))
    };
    (
        Router::new().route("/payments", routing::any(handler)),
        received,
    )
}

fn put(body: &'static str) -> Request<Full<Bytes>> {
    Request::put("/payments").body(body.into()).unwrap()
}

/// There is no transport, and a router's error is `Infallible`.
#[tokio::test]
async fn failed_responses_of_router_are_retried() {
    let (router, received) = router([504, 429, 200]);
    let client = RetryLayer::new(policy()).layer(router);
    let response = client.oneshot(put("money")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 3);
    assert_eq!(*received.lock().unwrap(), ["money"; 3]);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "response 3");
}

#[tokio::test]
async fn response_without_retry_is_complete() {
    let (router, received) = router([403]);
    let client = RetryLayer::new(policy()).layer(router);
    let response = client.oneshot(put("money")).await.unwrap();
    let reason = RetryOutcome::from_response(&response).give_up_reason();
    assert_eq!(reason, Some(GiveUpReason::NotRetryable));
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "response 1");
    assert_eq!(received.lock().unwrap().len(), 1);
}

/// The layer is between the route and the HTTP client that the route calls.
#[tokio::test]
async fn gateway_route_replays_request_body() {
    let upstream = start_server([status(504), status(429), ok("paid")]);
    let (refusing, refused_once) = refusing_server([ok("paid")]);
    for (server, policy, attempts) in [(upstream, policy(), 3), (refusing, refused_once, 2)] {
        let authority = server.uri();
        let client = ServiceBuilder::new()
            .layer(RetryLayer::new(policy))
            .service(Client::builder(TokioExecutor::new()).build_http());
        let gateway = Router::new().fallback(async move |mut request: Request<Body>| {
            *request.uri_mut() = format!("{authority}{}", request.uri()).parse().unwrap();
            let response = client.oneshot(request).await;
            response.map_err(|_| StatusCode::BAD_GATEWAY)
        });
        let response = with_timeout(gateway.oneshot(put("money"))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(RetryOutcome::from_response(&response).attempts(), attempts);
        assert!(server.bodies().iter().all(|body| body == "money"));
        let body = with_timeout(response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), "paid");
    }
}

/// With `Router::layer`, the layer retries the handlers.
#[tokio::test]
async fn router_layer_retries_handlers() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let handler = async move |body: String| match counter.fetch_add(1, Ordering::SeqCst) {
        0 => Err(StatusCode::GATEWAY_TIMEOUT),
        _ => Ok(body),
    };
    let router = Router::new()
        .route("/payments", routing::put(handler))
        .layer(RetryLayer::new(policy()));
    let response = router.oneshot(put("money")).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "money");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}
