//! Model checking of an attempt that is superseded while another thread polls its body.

use std::{convert::Infallible, pin::pin};

use loom::{
    future::block_on,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::*;
use crate::body::Superseded;

/// A body of `chunks` chunks whose polls are pending once before each chunk, and which checks that its
/// polls do not overlap.
struct PendingBody {
    chunks: u8,
    pending: bool,
    polling: AtomicUsize,
}

impl PendingBody {
    fn new(chunks: u8) -> Self {
        Self {
            chunks,
            pending: false,
            polling: AtomicUsize::new(0),
        }
    }
}

impl Body for PendingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        assert_eq!(self.polling.fetch_add(1, Ordering::Relaxed), 0);
        thread::yield_now();
        assert_eq!(self.polling.fetch_sub(1, Ordering::Relaxed), 1);
        self.pending = !self.pending;
        if self.pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(rest) = self.chunks.checked_sub(1) else {
            return Poll::Ready(None);
        };
        self.chunks = rest;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![rest])))))
    }
}

/// Sends a body to its end. Returns the data, and whether the body was superseded.
fn send(body: ReplayBody<PendingBody>) -> (Vec<u8>, bool) {
    let mut body = pin!(body);
    let mut sent = Vec::new();
    loop {
        let frame = block_on(std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)));
        match frame {
            Some(Ok(frame)) => sent.extend(frame.into_data().unwrap()),
            Some(Err(error)) => {
                assert!(error.is::<Superseded>());
                return (sent, true);
            }
            None => return (sent, false),
        }
    }
}

#[test]
fn next_attempt_sends_whole_body_when_superseding_on_another_thread() {
    // A limit of 0 bytes is exceeded unless the poll that reads the chunk returns after the pause.
    for limit in [0, 9] {
        loom::model(move || {
            let (mut source, first) = ReplaySource::new(PendingBody::new(1), limit);
            let sender = thread::spawn(move || send(first));
            let replayable = source.pause();
            assert!(replayable || limit == 0);
            let second = replayable.then(|| {
                source.supersede();
                source.replay_body()
            });
            source.release();
            if let Some(second) = second {
                assert_eq!(send(second), (vec![0], false));
            }
            let (sent, superseded) = sender.join().unwrap();
            assert!(superseded || sent == [0]);
            assert!(replayable || !superseded);
        });
    }
}

#[test]
fn released_attempt_sends_whole_body_when_paused_on_another_thread() {
    loom::model(|| {
        // The limit may be exceeded by the poll that is paused.
        let (mut source, first) = ReplaySource::new(PendingBody::new(1), 0);
        let sender = thread::spawn(move || send(first));
        source.pause();
        source.release();
        assert_eq!(sender.join().unwrap(), (vec![0], false));
    });
}

#[test]
fn dropped_source_ends_attempt_on_another_thread() {
    loom::model(|| {
        let (source, first) = ReplaySource::new(PendingBody::new(1), 9);
        let sender = thread::spawn(move || send(first));
        drop(source);
        let (sent, superseded) = sender.join().unwrap();
        assert!(superseded || sent == [0]);
    });
}
