//! Detection of `invalid_token` in failed responses.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower_http_retry::GiveUpReason;

use crate::common::{INVALID_TOKEN, body_bytes, give_up_reason};

use super::*;

#[tokio::test(start_paused = true)]
async fn invalid_token_in_header_gives_up_for_any_status() {
    for status in [401, 403, 429, 500, 503, 504] {
        let reply =
            response(status).with_header("www-authenticate", r#"Bearer error="invalid_token""#);
        let outcome = gives_up(policy(), request("GET"), reply).await;
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::InvalidToken),
            "{status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_token_in_body_gives_up_and_returns_whole_body() {
    for status in [429, 500, 504] {
        for chunk_len in [1, 7, 1000] {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-trailer", HeaderValue::from_static("1"));
            let chunks = INVALID_TOKEN.as_bytes().chunks(chunk_len);
            let frames = chunks.map(|chunk| Frame::data(Bytes::from_static(chunk)));
            let frames = frames.chain([Frame::trailers(trailers.clone())]);
            let frames: Vec<_> = frames.map(Ok::<_, std::io::Error>).collect();
            let reply = response(status).with_body(StreamBody::new(stream::iter(frames)));
            let response = run_script(policy(), request("GET"), [reply]).await.unwrap();
            let outcome = RetryOutcome::from_response(&response);
            assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::InvalidToken));
            assert_eq!(
                (response.status().as_u16(), outcome.attempts()),
                (status, 1)
            );
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers(), Some(&trailers));
            assert_eq!(body.to_bytes(), INVALID_TOKEN);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn compressed_body_is_not_inspected() {
    let compressed = response(500)
        .with_text(INVALID_TOKEN)
        .with_header("content-encoding", "gzip");
    let script = [compressed, response(200)];
    let response = run_script(policy(), request("GET"), script).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn invalid_token_is_detected_before_body_stalls() {
    let first = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from(
        INVALID_TOKEN,
    )))]);
    let body = StreamBody::new(first.chain(stream::pending()));
    let script = [response(500).with_body(body)];
    let response = run_script(policy(), request("GET"), script).await.unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::InvalidToken));
    let first = response.into_body().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), INVALID_TOKEN);
}

#[tokio::test(start_paused = true)]
async fn invalid_token_is_detected_in_object_longer_than_inspect_limit() {
    let trace = "at ".repeat(10_000);
    let long = format!(r#"{{"error":"invalid_token","trace":"{trace}"}}"#);
    let script = [response(500).with_text(&long)];
    let response = run_script(policy(), request("GET"), script).await.unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::InvalidToken));
    assert_eq!(body_bytes(response).await, long);
}

#[tokio::test(start_paused = true)]
async fn token_errors_are_inspected_only_if_requested() {
    for (status, inspect, expected) in [
        (400, true, GiveUpReason::InvalidToken),
        (401, true, GiveUpReason::InvalidToken),
        (403, true, GiveUpReason::InvalidToken),
        (404, true, GiveUpReason::NotRetryable),
        (401, false, GiveUpReason::NotRetryable),
    ] {
        let policy = policy().inspect_token_errors(inspect);
        let reply = response(status).with_text(INVALID_TOKEN);
        let response = run_script(policy, request("GET"), [reply]).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(give_up_reason(&response), Some(expected), "{status}");
        assert_eq!(body_bytes(response).await, INVALID_TOKEN);
    }
}

#[tokio::test(start_paused = true)]
async fn inspected_token_error_is_returned_whole() {
    let large = "x".repeat(100 * 1024);
    let policy = policy().inspect_token_errors(true).inspect_limit(1024);
    let reply = response(401).with_text(&large);
    let response = run_script(policy, request("POST"), [reply]).await.unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::NotRetryable));
    assert_eq!(body_bytes(response).await, large);
}

#[tokio::test(start_paused = true)]
async fn stalled_token_error_is_returned_after_the_timeout() {
    let start = tokio::time::Instant::now();
    let stalled = StreamBody::new(stream::pending::<std::io::Result<Frame<Bytes>>>());
    let reply = response(401).with_body(stalled);
    let policy = policy().inspect_token_errors(true);
    let response = run_script(policy, request("GET"), [reply]).await.unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::NotRetryable));
    assert_eq!(start.elapsed(), SECOND);
}
