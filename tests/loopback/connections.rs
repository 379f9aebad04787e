//! Connections: their reuse after failures, refused ones, and ones that close without a response.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Method, Version};
use http_body::Frame;
use http_body_util::{Empty, Full, StreamBody};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};
use tower_http_retry::{GiveUpReason, RetryLayer, RetryOutcome};

use crate::{
    client, hyper_error, notifying_client, policy, retrying_client,
    scripted_server::{Reply, ScriptedServer, close, response_with, status},
    timeout::with_timeout,
    watch,
};

#[tokio::test]
async fn consecutive_failures_reuse_connection() {
    for size in [20, 8 * 1024, 64 * 1024, 256 * 1024] {
        let head_received = Arc::new(Notify::new());
        let failures = (0..5).map(|_| late_body(500, size, &head_received));
        let server = ScriptedServer::start(failures.chain([status(200)]));
        let client = notifying_client(Version::HTTP_11, head_received.clone());
        let client = RetryLayer::new(policy().max_retries(5)).layer(client);
        let request = server.request(Method::GET, Empty::<Bytes>::new());
        let response = with_timeout(client.oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200, "{size}");
        assert_eq!(server.request_count(), 6, "{size}");
        assert_eq!(server.connections(), 1, "{size}");
    }
}

#[tokio::test]
async fn refused_connection_is_retried_for_any_method() {
    let (server, port) = ScriptedServer::bind([status(200)]);
    let port = Arc::new(Mutex::new(Some(port)));
    let attempts = Arc::new(AtomicUsize::new(0));
    let client = client(Version::HTTP_11);
    let inner = {
        let attempts = attempts.clone();
        tower::service_fn(move |request| {
            if attempts.fetch_add(1, Ordering::SeqCst) == 2 {
                port.lock().unwrap().take().unwrap().listen();
            }
            client.request(request)
        })
    };
    let request = server.request(Method::POST, Full::<Bytes>::from("money"));
    let client = RetryLayer::new(policy()).layer(inner);
    let response = with_timeout(client.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
    assert_eq!(server.body(0).await.unwrap().data, b"money");
    assert_eq!(server.request_count(), 1);
}

#[tokio::test]
async fn get_is_retried_after_closed_connection() {
    let server = ScriptedServer::start([close(), status(200)]);
    let request = server.request(Method::GET, Empty::<Bytes>::new());
    let response = with_timeout(retrying_client(Version::HTTP_11).oneshot(request)).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.request_count(), 2);
}

#[tokio::test]
async fn post_is_not_retried_after_closed_connection() {
    let server = ScriptedServer::start([close(), status(200)]);
    let mut request = server.request(Method::POST, Full::<Bytes>::from("money"));
    let outcome = watch(&mut request);
    let result = with_timeout(retrying_client(Version::HTTP_11).oneshot(request)).await;
    assert!(hyper_error(&result.unwrap_err()).is_incomplete_message());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.attempts(), 1);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(server.request_count(), 1);
}

#[tokio::test]
async fn post_with_idempotency_key_is_retried_after_closed_connection() {
    let server = ScriptedServer::start([close(), status(200)]);
    let mut request = server.request(Method::POST, Full::<Bytes>::from("money"));
    let key = HeaderValue::from_static("\"8e03978e\"");
    request.headers_mut().insert("idempotency-key", key.clone());
    let response = with_timeout(retrying_client(Version::HTTP_11).oneshot(request)).await;
    assert_eq!(response.unwrap().status(), 200);
    assert_eq!(server.head(1).await.headers["idempotency-key"], key);
    assert_eq!(server.body(1).await.unwrap().data, b"money");
    assert_eq!(server.request_count(), 2);
}

/// Creates a response whose body is sent after the client has received the head.
fn late_body(status: u16, size: usize, head_received: &Arc<Notify>) -> Reply {
    let head_received = head_received.clone();
    let body = stream::once(async move {
        head_received.notified().await;
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; size])))
    });
    response_with(status, StreamBody::new(body))
}
