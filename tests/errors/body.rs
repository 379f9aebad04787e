//! Bodies of failed responses: malformed, truncated, interrupted and stalled ones.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_http_retry::{ErrorForStatusLayer, FailureKind as Kind, error_for_status};

use super::{
    api_error,
    common::{INVALID_TOKEN, MS, ResponseExt, SECOND, ScriptedServer, response},
    into_api_error,
};

#[test]
fn ready_body_needs_no_runtime() {
    let mut response = Response::new(Full::<Bytes>::from(INVALID_TOKEN));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let call = error_for_status(response);
    let error = call.now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidToken);
}

#[tokio::test]
async fn malformed_body_keeps_kind_of_status() {
    let deep = "[".repeat(60_000);
    let deep_object = format!("{}1{}", r#"{"error":"#.repeat(500), "}".repeat(500));
    let malformed = [
        "",
        "no JSON at all",
        "{",
        r#"{"error":"invalid_tok"#,
        r#"{"error":{"error":"invalid_token"}}"#,
        r#"{"error":7}"#,
        r#"{"error":null}"#,
        r#""{\"error\":\"invalid_token\"}""#,
        r#"["invalid_token"]"#,
        "null",
        &deep,
        &deep_object,
    ];
    for body in malformed {
        let error = api_error(response(401).with_text(body)).await;
        assert_eq!(error.kind(), Kind::Unauthorized, "{body:.60}");
        assert_eq!(
            (error.error_code(), error.message()),
            (None, None),
            "{body:.60}"
        );
        assert_eq!(error.body(), body);
    }
    let not_utf8 = Full::from(Bytes::from_static(b"{\"error\":\"invalid_token\xff\"}"));
    let error = api_error(response(401).with_body(not_utf8)).await;
    assert_eq!(
        (error.kind(), error.error_code()),
        (Kind::Unauthorized, None)
    );
    assert_eq!(error.body().len(), 26);
}

#[tokio::test]
async fn compressed_body_is_kept_but_not_parsed() {
    let compressed = response(401)
        .with_text(INVALID_TOKEN)
        .with_header("content-encoding", "gzip");
    let error = api_error(compressed).await;
    assert_eq!(
        (error.kind(), error.json_value()),
        (Kind::Unauthorized, None)
    );
    assert_eq!(error.body(), INVALID_TOKEN);
}

#[tokio::test]
async fn interrupted_body_is_kept_and_marked_truncated() {
    let frames = [
        Ok(Frame::data(Bytes::from("{\"message\":"))),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ];
    let body = StreamBody::new(stream::iter(frames));
    let error = api_error(response(500).with_body(body)).await;
    assert_eq!(error.kind(), Kind::InternalServerError);
    assert_eq!(error.body(), "{\"message\":");
    assert!(error.is_body_truncated());
}

#[tokio::test]
async fn huge_body_is_read_only_up_to_limit() {
    const CHUNK: u64 = 8 * 1024;
    let read = Arc::new(AtomicU64::new(0));
    let counter = read.clone();
    let frames = stream::iter(0..(1 << 30) / CHUNK).map(move |_| {
        counter.fetch_add(CHUNK, Ordering::Relaxed);
        let chunk = Bytes::from_static(&[b' '; CHUNK as usize]);
        Ok::<_, io::Error>(Frame::data(chunk))
    });
    let gibibyte = response(500).with_body(StreamBody::new(frames));
    let error = api_error(gibibyte).await;
    assert_eq!(error.body().len(), 64 * 1024);
    // One more frame is read to see that the body goes on.
    assert_eq!(read.load(Ordering::Relaxed), 64 * 1024 + CHUNK);
    assert!(error.is_body_truncated());
}

#[tokio::test(start_paused = true)]
async fn body_timeout_bounds_stalled_body() {
    for (layer, expected) in [
        (ErrorForStatusLayer::new(), 5 * SECOND),
        (ErrorForStatusLayer::new().body_timeout(20 * MS), 20 * MS),
    ] {
        let first = stream::iter([Ok(Frame::data(Bytes::from(INVALID_TOKEN)))]);
        let frames = first.chain(stream::pending::<io::Result<_>>());
        let stalled = response(503).with_body(StreamBody::new(frames));
        let service = layer.layer(ScriptedServer::new([stalled]));
        let start = Instant::now();
        let error = service.oneshot(Request::new(())).await.unwrap_err();
        assert_eq!(start.elapsed(), expected);
        // The part before the stall is inspected.
        assert_eq!(error.kind(), Kind::InvalidToken);
    }
}

#[tokio::test]
async fn body_limit_truncates_only_longer_bodies() {
    for (limit, is_truncated) in [(3, true), (4, false), (5, false), (0, true)] {
        let layer = ErrorForStatusLayer::new().body_limit(limit);
        let service = layer.layer(ScriptedServer::new([response(400).with_text("four")]));
        let error = into_api_error(service.oneshot(Request::new(())).await);
        assert_eq!(
            (error.body().len(), error.is_body_truncated()),
            (limit.min(4), is_truncated)
        );
    }
}

#[tokio::test]
async fn body_of_unknown_length_that_fits_is_not_truncated() {
    let frame =
        |text: &'static str| Ok::<_, io::Error>(Frame::data(Bytes::from_static(text.as_bytes())));
    let trailers = || Ok(Frame::trailers(HeaderMap::new()));
    let reset = || Err(io::Error::from(io::ErrorKind::ConnectionReset));
    for (frames, limit, is_truncated) in [
        (vec![], 0, false),
        (vec![frame("four")], 4, false),
        (vec![frame("fo"), frame("ur"), frame("")], 4, false),
        (vec![frame("four"), frame(""), trailers()], 4, false),
        (vec![frame("four"), frame("!")], 4, true),
        (vec![frame("four"), reset()], 4, true),
        (vec![frame("four!")], 4, true),
        (vec![frame("four")], 0, true),
    ] {
        let body = StreamBody::new(stream::iter(frames));
        let layer = ErrorForStatusLayer::new().body_limit(limit);
        let service = layer.layer(ScriptedServer::new([response(400).with_body(body)]));
        let error = into_api_error(service.oneshot(Request::new(())).await);
        assert_eq!(error.body(), &"four"[..limit], "limit {limit}");
        assert_eq!(error.is_body_truncated(), is_truncated, "limit {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn body_timeout_bounds_wait_for_end_of_body() {
    for (delay, expected, is_truncated) in [(MS, MS, false), (9 * SECOND, 5 * SECOND, true)] {
        let first = stream::iter([Ok::<_, io::Error>(Frame::data(Bytes::from("four")))]);
        let end = stream::once(tokio::time::sleep(delay)).map(|()| Ok(Frame::data(Bytes::new())));
        let body = StreamBody::new(first.chain(end));
        let layer = ErrorForStatusLayer::new().body_limit(4);
        let service = layer.layer(ScriptedServer::new([response(400).with_body(body)]));
        let start = Instant::now();
        let error = into_api_error(service.oneshot(Request::new(())).await);
        assert_eq!(start.elapsed(), expected);
        assert_eq!(error.is_body_truncated(), is_truncated);
    }
}
