//! An axum router: in memory, as the server under test, and as the gateway in front of a server.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use ::axum::{Router, body::Body, routing};
use bytes::Bytes;
use clients::{Server, policy, respond, status, within};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http_retry::{GiveUpReason, RetryLayer, RetryOutcome};

/// A router that answers by the script, and what it was sent.
fn router<const N: usize>(script: [u16; N]) -> (Router, Arc<Mutex<Vec<Bytes>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let bodies = seen.clone();
    let handler = async move |body: Bytes| {
        let mut bodies = bodies.lock().unwrap();
        bodies.push(body);
        let status = StatusCode::from_u16(script[bodies.len() - 1]).unwrap();
        (status, format!("answer {}", bodies.len()))
    };
    (
        Router::new().route("/payments", routing::any(handler)),
        seen,
    )
}

fn put(body: &'static str) -> Request<Full<Bytes>> {
    Request::put("/payments").body(body.into()).unwrap()
}

/// There is no transport here, and no error: a router's error is `Infallible`.
#[tokio::test]
async fn failed_responses_of_a_router_in_memory_are_sent_again() {
    let (router, seen) = router([504, 429, 200]);
    let client = RetryLayer::new(policy()).layer(router);
    let response = client.oneshot(put("money")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 3);
    assert_eq!(*seen.lock().unwrap(), ["money"; 3]);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "answer 3");
}

#[tokio::test]
async fn what_is_not_retried_comes_whole() {
    let (router, seen) = router([403]);
    let client = RetryLayer::new(policy()).layer(router);
    let response = client.oneshot(put("money")).await.unwrap();
    let stop = RetryOutcome::from_response(&response).give_up_reason();
    assert_eq!(stop, Some(GiveUpReason::NotRetryable));
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "answer 1");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

/// A route as a gateway: the layer stands between the route and the client that it calls.
#[tokio::test]
async fn a_gateway_sends_an_upload_again() {
    let upstream = Server::start([
        status(504),
        status(429),
        respond(Response::builder(), "paid"),
    ]);
    let (down, refused_once) = Server::down([respond(Response::builder(), "paid")]);
    for (server, policy, attempts) in [(upstream, policy(), 3), (down, refused_once, 2)] {
        let authority = server.uri();
        let client = ServiceBuilder::new()
            .layer(RetryLayer::new(policy))
            .service(Client::builder(TokioExecutor::new()).build_http());
        let gateway = Router::new().fallback(async move |mut request: Request<Body>| {
            *request.uri_mut() = format!("{authority}{}", request.uri()).parse().unwrap();
            let response = client.oneshot(request).await;
            response.map_err(|_| StatusCode::BAD_GATEWAY)
        });
        let response = within(gateway.oneshot(put("money"))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(RetryOutcome::from_response(&response).attempts(), attempts);
        assert!(server.bodies().iter().all(|body| body == "money"));
        let body = within(response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), "paid");
    }
}

/// `Router::layer` takes it, too: then the handlers are what is retried.
#[tokio::test]
async fn the_layer_of_a_router_calls_its_handlers_again() {
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
