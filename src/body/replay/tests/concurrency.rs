//! Calls on the source while the caller's body is polled, from that poll or from another thread.

use std::{
    sync::{Mutex, mpsc},
    thread,
};

use http::{Request, Response};
use tokio_test::task;
use tower::{Layer, Service, service_fn};

use super::*;
use crate::RetryLayer;

type Handle = Arc<Mutex<Option<ReplaySource<FnBody>>>>;
type PollResult = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// A body whose polls call a closure with their number, from 1.
struct FnBody {
    polls: usize,
    poll: Box<dyn FnMut(usize) -> PollResult + Send>,
}

impl Body for FnBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> PollResult {
        self.polls += 1;
        let polls = self.polls;
        (self.poll)(polls)
    }
}

fn upload(
    limit: usize,
    poll: impl FnMut(usize) -> PollResult + Send + 'static,
) -> (ReplaySource<FnBody>, ReplayBody<FnBody>) {
    let poll = Box::new(poll);
    ReplaySource::new(FnBody { polls: 0, poll }, limit)
}

/// Creates an upload whose first poll calls `action` with the source, and returns `result`. The next
/// poll returns the data `b`, then the body ends.
fn reentrant(
    limit: usize,
    action: impl Fn(&mut Option<ReplaySource<FnBody>>) + Send + 'static,
    result: impl Fn() -> PollResult + Send + 'static,
) -> (Handle, ReplayBody<FnBody>) {
    let handle = Handle::default();
    let in_poll = handle.clone();
    let (source, body) = upload(limit, move |polls| match polls {
        1 => {
            action(&mut in_poll.lock().unwrap());
            result()
        }
        2 => frame("b"),
        _ => Poll::Ready(None),
    });
    *handle.lock().unwrap() = Some(source);
    (handle, body)
}

fn frame(text: &'static str) -> PollResult {
    Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))))
}

fn results() -> [fn() -> PollResult; 5] {
    [
        || frame("a"),
        || Poll::Ready(Some(Ok(Frame::trailers(trailers())))),
        || Poll::Ready(Some(Err("the body fails".into()))),
        || Poll::Ready(None),
        || Poll::Pending,
    ]
}

fn sent_data(data: &str) -> Sent {
    Sent {
        data: data.into(),
        ended: true,
        ..Sent::default()
    }
}

fn sent_error(error: impl ToString) -> Sent {
    Sent {
        error: Some(error.to_string()),
        ..Sent::default()
    }
}

#[test]
fn body_that_drops_source_in_poll_is_superseded() {
    for result in results() {
        let (handle, mut body) = reentrant(9, |source| drop(source.take()), result);
        assert_eq!(send_all(&mut body), sent_error(Superseded));
        assert!(handle.lock().unwrap().is_none());
        assert!(body.is_end_stream());
    }
}

#[test]
fn body_that_drops_its_call_in_poll_is_superseded() {
    type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

    let call: Arc<Mutex<Option<Call>>> = Arc::default();
    let in_poll = call.clone();
    let (sender, receiver) = mpsc::channel();
    let mut client = RetryLayer::default().layer(service_fn(move |request: Request<_>| {
        sender.send(request.into_body()).unwrap();
        std::future::pending::<Result<Response<Empty<Bytes>>, io::Error>>()
    }));
    let response = client.call(Request::new(FnBody {
        polls: 0,
        poll: Box::new(move |_| {
            assert!(in_poll.lock().unwrap().take().is_some());
            frame("a")
        }),
    }));
    *call.lock().unwrap() = Some(Box::pin(async move { drop(response.await) }));
    let mut body: ReplayBody<_> = receiver.recv().unwrap();
    assert_eq!(send_all(&mut body), sent_error(Superseded));
    assert!(call.lock().unwrap().is_none());
}

#[test]
fn body_that_drops_source_when_dropped_does_not_deadlock() {
    struct DropsSource(Arc<Mutex<Option<ReplaySource<FnBody>>>>);

    impl Drop for DropsSource {
        fn drop(&mut self) {
            drop(self.0.lock().unwrap().take());
        }
    }

    let results: [fn() -> PollResult; 3] = [
        || Poll::Ready(Some(Ok(Frame::trailers(trailers())))),
        || Poll::Ready(None),
        || panic!("the caller's body panics"),
    ];
    for (index, result) in results.into_iter().enumerate() {
        let handle = Handle::default();
        let dropped = DropsSource(handle.clone());
        let (source, mut body) = upload(9, move |_| {
            let _owned = &dropped;
            result()
        });
        *handle.lock().unwrap() = Some(source);
        let sent = catch_unwind(AssertUnwindSafe(|| send_all(&mut body)));
        match index {
            2 => assert!(sent.is_err()),
            _ => assert_eq!(sent.unwrap(), sent_error(Superseded)),
        }
        assert!(handle.lock().unwrap().is_none());
    }
}

#[test]
fn waker_that_drops_source_when_dropped_does_not_deadlock() {
    struct DropsSource(Handle);

    impl std::task::Wake for DropsSource {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for DropsSource {
        fn drop(&mut self) {
            drop(self.0.lock().unwrap().take());
        }
    }

    let (source, mut body) = upload(9, |_| Poll::Pending);
    let handle = Handle::default();
    let waker = Arc::new(DropsSource(handle.clone())).into();
    *handle.lock().unwrap() = Some(source);
    let cx = &mut Context::from_waker(&waker);
    assert!(Pin::new(&mut body).poll_frame(cx).is_pending());
    drop(waker);
    // Replaces the registered waker.
    let cx = &mut Context::from_waker(noop_waker_ref());
    assert!(Pin::new(&mut body).poll_frame(cx).is_pending());
    assert!(handle.lock().unwrap().is_none());
    assert_eq!(send_all(&mut body), sent_error(Superseded));
}

#[test]
fn frame_of_poll_that_is_superseded_is_sent_by_next_attempt() {
    // The frame exceeds the limit, but the next attempt need not replay it.
    for limit in [0, 1, 9] {
        for (index, result) in results().into_iter().enumerate() {
            let supersede = |source: &mut Option<ReplaySource<FnBody>>| {
                let source = source.as_ref().unwrap();
                assert!(source.pause());
                source.supersede();
            };
            let (handle, mut first) = reentrant(limit, supersede, result);
            assert_eq!(send_all(&mut first), sent_error(Superseded));
            let source = handle.lock().unwrap();
            let source = source.as_ref().unwrap();
            let mut second = source.replay_body();
            assert!(!second.is_end_stream() && !source.has_failed());
            assert_eq!(second.size_hint().exact(), None);
            let expected = [
                sent_data("ab"),
                Sent {
                    trailers: Some(trailers()),
                    ..sent_data("")
                },
                sent_error("the body fails"),
                sent_data(""),
                sent_data("b"),
            ];
            let sent = send_all(&mut second);
            assert_eq!(sent, expected[index]);
            assert_eq!(source.has_failed(), index == 2);
            let replayable = index != 2 && limit >= expected[index].data.len();
            assert_eq!(source.pause(), replayable);
        }
    }
}

#[test]
fn frame_of_poll_that_is_paused_is_sent_after_release() {
    for limit in [0, 9] {
        let pause = |source: &mut Option<ReplaySource<FnBody>>| {
            assert!(source.as_ref().unwrap().pause());
        };
        let (handle, first) = reentrant(limit, pause, || frame("a"));
        let mut first = task::spawn(first);
        assert!(first.enter(|cx, body| body.poll_frame(cx)).is_pending());
        assert!(first.enter(|cx, body| body.poll_frame(cx)).is_pending());
        let mut source = handle.lock().unwrap().take().unwrap();
        assert!(source.pause());
        source.release();
        assert!(first.is_woken());
        assert_eq!(send_all(&mut first), sent_data("ab"));
    }
}

#[test]
fn body_that_releases_source_in_poll_is_sent_whole() {
    let release = |source: &mut Option<ReplaySource<FnBody>>| source.as_mut().unwrap().release();
    for (result, expected) in [
        ((|| frame("a")) as fn() -> _, sent_data("ab")),
        (|| Poll::Pending, sent_data("b")),
    ] {
        let (handle, mut body) = reentrant(9, release, result);
        assert_eq!(send_all(&mut body), expected);
        drop(handle);
    }
}

#[test]
fn next_attempt_is_woken_when_another_thread_returns_body() {
    let results: [fn() -> PollResult; 3] = [
        || frame("a"),
        || Poll::Pending,
        || panic!("the caller's body panics"),
    ];
    for (index, result) in results.into_iter().enumerate() {
        let (polled, is_polled) = mpsc::channel();
        let (resume, is_resumed) = mpsc::channel();
        let (source, mut first) = upload(9, move |polls| match polls {
            1 => {
                polled.send(()).unwrap();
                is_resumed.recv().unwrap();
                result()
            }
            2 => frame("b"),
            _ => Poll::Ready(None),
        });
        let sender = thread::spawn(move || send_all(&mut first));
        is_polled.recv().unwrap();

        // None of these blocks while the other thread polls the body.
        assert!(!source.has_failed());
        let mut second = task::spawn(next_attempt(&source).unwrap());
        assert_eq!(second.size_hint().exact(), None);
        for _ in 0..2 {
            assert!(second.enter(|cx, body| body.poll_frame(cx)).is_pending());
        }
        assert!(!second.is_woken());
        resume.send(()).unwrap();
        let sent = sender.join();
        assert!(second.is_woken());
        let expected = [
            sent_data("ab"),
            sent_data("b"),
            sent_error("the request body has failed"),
        ];
        match index {
            2 => assert!(sent.is_err() && source.has_failed()),
            _ => assert_eq!(sent.unwrap(), sent_error(Superseded)),
        }
        assert_eq!(send_all(&mut second), expected[index]);
    }
}

#[test]
fn drop_of_source_on_another_thread_does_not_wait_for_poll() {
    let (polled, is_polled) = mpsc::channel();
    let (resume, is_resumed) = mpsc::channel();
    let (source, mut first) = upload(9, move |_| {
        polled.send(()).unwrap();
        is_resumed.recv().unwrap();
        frame("a")
    });
    let sender = thread::spawn(move || send_all(&mut first));
    is_polled.recv().unwrap();
    drop(source);
    resume.send(()).unwrap();
    assert_eq!(sender.join().unwrap(), sent_error(Superseded));
}
