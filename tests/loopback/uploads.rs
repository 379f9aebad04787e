//! Request bodies: their replay, and the end of an upload that an early response or an error interrupts.

use std::{convert::Infallible, io, iter, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use http_body::{Body, Frame};
use http_body_util::{
    StreamBody,
    channel::{Channel, Sender},
};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};
use tower_http_retry::{GiveUpReason, RetryLayer, RetryOutcome, RetryPolicy, backoff_fn};

use crate::{
    VERSIONS, client, io_error, notifying_client, policy, read_body, retrying_client,
    scripted_server::{ScriptedServer, response, status},
    stalled,
    timeout::with_timeout,
    watch,
};

#[tokio::test]
async fn replays_streamed_upload() {
    for version in VERSIONS {
        let server = ScriptedServer::start([status(504), status(200)]);
        let (body, sent) = streamed(None);
        let request = server.request(Method::PUT, body);
        let response = with_timeout(retrying_client(version).oneshot(request))
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert_eq!(
            RetryOutcome::from_response(&response).attempts(),
            2,
            "{version:?}"
        );
        for n in 0..2 {
            let upload = server.body(n).await.unwrap();
            assert!(upload.data == sent, "{version:?}");
            assert_eq!(upload.trailers, None, "{version:?}");
        }
    }
}

#[tokio::test]
async fn replays_trailers() {
    for version in VERSIONS {
        let server = ScriptedServer::start([status(504), status(200)]);
        let checksum = HeaderName::from_static("x-checksum");
        let trailers =
            HeaderMap::from_iter([(checksum.clone(), HeaderValue::from_static("5eb63bbb"))]);
        let (body, sent) = streamed(Some(trailers.clone()));
        let mut request = server.request(Method::PUT, body);
        // HTTP/1.1 sends only the trailers that were announced.
        request.headers_mut().insert("trailer", checksum.into());
        let response = with_timeout(retrying_client(version).oneshot(request))
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        for n in 0..2 {
            let upload = server.body(n).await.unwrap();
            assert!(upload.data == sent, "{version:?}");
            assert_eq!(upload.trailers.as_ref(), Some(&trailers), "{version:?}");
        }
    }
}

#[tokio::test]
async fn early_failure_moves_rest_of_upload_to_next_attempt() {
    for version in VERSIONS {
        let server = ScriptedServer::start([status(504).early(), status(504).early(), status(200)]);
        let (mut source, body) = source();
        let request = server.request(Method::PUT, body);
        let call = tokio::spawn(retrying_client(version).oneshot(request));
        push(&mut source, "one, ").await;
        server.head(0).await;
        push(&mut source, "two, ").await;
        server.head(1).await;
        push(&mut source, "three").await;
        server.head(2).await;
        drop(source);
        let response = with_timeout(call).await.unwrap().unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert_eq!(
            RetryOutcome::from_response(&response).attempts(),
            3,
            "{version:?}"
        );
        assert_eq!(server.body(2).await.unwrap().data, b"one, two, three");
        // A clean end would make the truncated upload look complete.
        assert!(server.body(0).await.is_err(), "{version:?}");
        assert!(server.body(1).await.is_err(), "{version:?}");
        let connections = if version == Version::HTTP_2 { 1 } else { 3 };
        assert_eq!(server.connections(), connections, "{version:?}");
    }
}

#[tokio::test]
async fn superseded_upload_is_aborted_while_source_is_idle() {
    for version in VERSIONS {
        let server = ScriptedServer::start([status(504).early(), status(200).early()]);
        let (mut source, body) = source();
        push(&mut source, "the whole upload").await;
        let request = server.request(Method::PUT, body);
        let response = with_timeout(retrying_client(version).oneshot(request))
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert!(server.body(0).await.is_err(), "{version:?}");
        drop(source);
        assert_eq!(server.body(1).await.unwrap().data, b"the whole upload");
    }
}

#[tokio::test]
async fn early_success_continues_upload() {
    for version in VERSIONS {
        let server = ScriptedServer::start([response(200, "go on").early()]);
        let (mut source, body) = source();
        push(&mut source, "before, ").await;
        let request = server.request(Method::POST, body);
        let response = with_timeout(retrying_client(version).oneshot(request))
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        for _ in 0..100 {
            push(&mut source, &"after".repeat(1000)).await;
        }
        drop(source);
        let upload = server.body(0).await.unwrap();
        let sent = format!("before, {}", "after".repeat(100_000));
        assert!(upload.data == sent.as_bytes(), "{version:?}");
        assert_eq!(read_body(response).await, "go on", "{version:?}");
        assert_eq!(server.request_count(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn early_failure_without_retry_continues_upload() {
    for version in VERSIONS {
        let server = ScriptedServer::start([status(504).early()]);
        let (mut source, body) = source();
        push(&mut source, "before, ").await;
        let request = server.request(Method::POST, body);
        let response = with_timeout(retrying_client(version).oneshot(request))
            .await
            .unwrap();
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
        push(&mut source, "after").await;
        drop(source);
        let upload = server.body(0).await.unwrap();
        assert_eq!(upload.data, b"before, after", "{version:?}");
    }
}

#[tokio::test]
async fn early_success_of_retry_sends_complete_replay() {
    let server = ScriptedServer::start([status(504), status(200).early()]);
    // Because of flow control, most of it is not sent before the response.
    let sent = vec![b'x'; 4 * 1024 * 1024];
    let chunks = sent.chunks(64 * 1024).map(Bytes::copy_from_slice);
    let chunks = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    let body = StreamBody::new(stream::iter(chunks.collect::<Vec<_>>()));
    let policy = policy().replay_limit(sent.len());
    let client = RetryLayer::new(policy).layer(client(Version::HTTP_2));
    let request = server.request(Method::PUT, body);
    let response = with_timeout(client.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(server.body(1).await.unwrap().data == sent);
}

#[tokio::test]
async fn request_body_error_is_not_retried() {
    for version in VERSIONS {
        let server = ScriptedServer::start([status(200)]);
        let (mut source, body) = source();
        let mut request = server.request(Method::PUT, body);
        let outcome = watch(&mut request);
        let call = tokio::spawn(retrying_client(version).oneshot(request));
        push(&mut source, "read before the error").await;
        server.head(0).await;
        source.abort(io::Error::new(io::ErrorKind::ConnectionReset, "disk gone"));
        let error = with_timeout(call).await.unwrap().unwrap_err();
        // Over HTTP/2, hyper's error has the reset of the stream as its source.
        if version == Version::HTTP_11 {
            assert!(io_error(&error).is_some_and(|io| io.to_string() == "disk gone"));
        }
        assert!(server.body(0).await.is_err(), "{version:?}");
        assert_eq!(
            outcome.get().map(|outcome| outcome.attempts()),
            Some(1),
            "{version:?}"
        );
        assert_eq!(server.request_count(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn dropping_call_between_attempts_aborts_upload() {
    let never = Duration::from_secs(30);
    for (version, reply) in VERSIONS
        .into_iter()
        .flat_map(|version| [(version, status(504)), (version, stalled(504))])
    {
        let server = ScriptedServer::start([reply.early()]);
        let (mut source, body) = source();
        push(&mut source, "unfinished").await;
        let head_received = Arc::new(Notify::new());
        let policy = RetryPolicy::new()
            .backoff(backoff_fn(move || iter::repeat(never)))
            .discard_timeout(never);
        let client =
            RetryLayer::new(policy).layer(notifying_client(version, head_received.clone()));
        let request = server.request(Method::PUT, body);
        let call = tokio::spawn(client.oneshot(request));
        with_timeout(head_received.notified()).await;
        call.abort();
        assert!(server.body(0).await.is_err(), "{version:?}");
        assert_eq!(server.request_count(), 1, "{version:?}");
        drop(source);
    }
}

/// Creates a body of several frames that are not all ready at once. Returns it with its bytes.
fn streamed(
    trailers: Option<HeaderMap>,
) -> (
    impl Body<Data = Bytes, Error = Infallible> + Send + 'static,
    Vec<u8>,
) {
    let chunks = [(b'a', 1), (b'b', 20_000), (b'c', 30_000)];
    let chunks = chunks.map(|(byte, len)| vec![byte; len]);
    let sent = chunks.concat();
    let data = chunks.map(|chunk| Frame::data(Bytes::from(chunk)));
    let frames = data.into_iter().chain(trailers.map(Frame::trailers));
    let frames = stream::iter(frames).then(async |frame| {
        tokio::task::yield_now().await;
        Ok(frame)
    });
    (StreamBody::new(frames), sent)
}

/// Creates a body with a sender for its frames.
fn source() -> (Sender<Bytes, io::Error>, Channel<Bytes, io::Error>) {
    Channel::new(1)
}

async fn push(source: &mut Sender<Bytes, io::Error>, data: &str) {
    let data = Bytes::copy_from_slice(data.as_bytes());
    with_timeout(source.send_data(data)).await.unwrap();
}
