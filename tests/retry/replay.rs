//! Replay of requests.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use tower::{Layer, ServiceExt, service_fn};
use tower_http_retry::{GiveUpReason, OutcomeHandle, ReplayBody, RetryLayer};

use crate::common::give_up_reason;

use super::*;

#[tokio::test(start_paused = true)]
async fn retry_sends_identical_request() {
    #[derive(Clone, Debug, PartialEq)]
    struct Extension(u32);
    let calls = Arc::new(AtomicU32::new(0));
    let inner = service_fn(async |mut request: InnerRequest| {
        assert_eq!(request.extensions().get::<Extension>(), Some(&Extension(1)));
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.uri(), "/v1?x=%20");
        let values: Vec<_> = request.headers().get_all("x-repeated").iter().collect();
        assert_eq!(values, ["b", "a"]);
        assert!(request.headers()["authorization"].is_sensitive());
        // Changes to the request of one attempt must not reach the next.
        request.extensions_mut().insert(Extension(2));
        request.headers_mut().clear();
        let body = request.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "sent");
        let status = match calls.fetch_add(1, Ordering::Relaxed) {
            0..3 => 504,
            _ => 200,
        };
        Ok::<_, io::Error>(response(status))
    });
    let mut secret = HeaderValue::from_static("Bearer x");
    secret.set_sensitive(true);
    let request = Request::put("/v1?x=%20")
        .version(Version::HTTP_2)
        .header("x-repeated", "b")
        .header("authorization", secret)
        .header("x-repeated", "a")
        .extension(Extension(1))
        .body(RequestBody::from("sent"))
        .unwrap();
    let client = RetryLayer::new(policy()).layer(inner);
    assert_eq!(client.oneshot(request).await.unwrap().status(), 200);
    assert_eq!(calls.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn body_above_replay_limit_is_sent_once() {
    let inner = service_fn(async |request: InnerRequest| {
        let body = request.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "sent");
        Ok::<_, io::Error>(response(504))
    });
    for (limit, reason) in [
        (3, GiveUpReason::BodyNotReplayable),
        (4, GiveUpReason::RetriesExhausted),
    ] {
        let client = RetryLayer::new(policy().replay_limit(limit)).layer(inner);
        let response = client.oneshot(request("PUT")).await.unwrap();
        assert_eq!(give_up_reason(&response), Some(reason));
    }
}

#[tokio::test(start_paused = true)]
async fn request_body_error_gives_up_as_not_replayable() {
    let inner = service_fn(
        async |request: Request<ReplayBody<UnsyncBoxBody<Bytes, io::Error>>>| {
            request.into_body().collect().await.unwrap_err();
            // Not retryable by itself.
            Err::<InnerResponse, _>(io::Error::other("upload failed"))
        },
    );
    let outcome = OutcomeHandle::new();
    let body = StreamBody::new(stream::iter([Err::<Frame<Bytes>, _>(io::Error::other(
        "broken",
    ))]));
    let request = Request::put("/").body(body.boxed_unsync()).unwrap();
    let request = request.with_extension(outcome.clone());
    let client = RetryLayer::new(policy()).layer(inner);
    client.oneshot(request).await.unwrap_err();
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.attempts(), 1);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::BodyNotReplayable)
    );
}
