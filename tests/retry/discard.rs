//! Reading and dropping of a failed response before a retry.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{poll, stream};
use http_body::{Body, Frame, SizeHint};
use http_body_util::StreamBody;
use tokio::time::Instant;
use tower::ServiceExt;

use crate::common::policy_with_delay;

use super::*;

/// Creates a failed response whose body never yields a frame.
fn stalled() -> InnerResponse {
    response(500).with_body(StreamBody::new(stream::pending::<io::Result<_>>()))
}

#[tokio::test(start_paused = true)]
async fn discard_timeout_counts_towards_delay() {
    for (delay, expected) in [(SECOND / 10, SECOND), (3 * SECOND, 3 * SECOND)] {
        let start = Instant::now();
        let script = [stalled(), response(200)];
        run_script(policy_with_delay(delay), request("GET"), script)
            .await
            .unwrap();
        assert_eq!(start.elapsed(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn deadline_bounds_discarding() {
    let policy = policy().max_elapsed(SECOND / 5);
    let start = Instant::now();
    let script = [stalled(), response(200)];
    run_script(policy, request("GET"), script).await.unwrap();
    assert_eq!(start.elapsed(), SECOND / 5);
}

#[tokio::test(start_paused = true)]
async fn body_error_does_not_prevent_retry() {
    let error = io::Error::from(io::ErrorKind::ConnectionReset);
    let body = StreamBody::new(stream::iter([Err(error)]));
    let script = [response(500).with_body(body), response(200)];
    let response = run_script(policy(), request("GET"), script).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// A body of 1 KiB frames without end that counts the bytes read and records its drop.
#[derive(Clone, Default)]
struct EndlessBody {
    read: Arc<AtomicU32>,
    is_dropped: Arc<AtomicBool>,
}

impl Body for EndlessBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.read.fetch_add(1024, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'['; 1024])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for EndlessBody {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn discarding_is_bounded_and_drops_body_before_delay() {
    let body = EndlessBody::default();
    let (read, is_dropped) = (body.read.clone(), body.is_dropped.clone());
    let policy = policy().inspect_limit(2048).drain_limit(10 * 1024);
    let (client, mut server) = mock_client(policy);
    let mut call = pin!(client.oneshot(request("GET")));
    assert!(poll!(call.as_mut()).is_pending());
    respond(&mut server, response(500).with_body(body)).await;
    assert!(poll!(call.as_mut()).is_pending());
    assert!(is_dropped.load(Ordering::Relaxed));
    assert_eq!(read.load(Ordering::Relaxed), 12 * 1024);
}

#[tokio::test(start_paused = true)]
async fn discard_timeout_applies_to_body_that_is_always_ready() {
    let (client, mut server) = mock_client(policy().drain_limit(usize::MAX));
    let mut call = pin!(client.oneshot(request("GET")));
    assert!(poll!(call.as_mut()).is_pending());
    let endless = response(500).with_body(EndlessBody::default());
    respond(&mut server, endless).await;
    // Yields to the runtime, which drives the timer.
    assert!(poll!(call.as_mut()).is_pending());
    tokio::time::advance(SECOND).await;
    assert!(poll!(call.as_mut()).is_pending());
    respond(&mut server, response(200)).await;
    assert_eq!(call.await.unwrap().status(), 200);
}
