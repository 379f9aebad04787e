mod concurrency;
mod memory;

use std::{
    collections::VecDeque,
    io,
    marker::PhantomPinned,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
    task::Context,
};

use futures_util::task::noop_waker_ref;
use http::{HeaderMap, HeaderValue};
use http_body_util::{Empty, Full, StreamBody};
use proptest::prelude::*;

use super::*;
use crate::body::Superseded;

pin_project_lite::pin_project! {
    /// A body that follows a script; neither `Unpin` nor `Clone`.
    struct ScriptedBody {
        steps: VecDeque<Step>,
        hint: SizeHint,
        #[pin]
        pinned: PhantomPinned,
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Data(Vec<u8>),
    Trailers,
    Fail,
    Pend,
    Panic,
}

impl ScriptedBody {
    fn new(steps: &[Step]) -> Self {
        Self {
            steps: steps.iter().cloned().collect(),
            hint: SizeHint::default(),
            pinned: PhantomPinned,
        }
    }

    fn with_hint(steps: &[Step], hint: SizeHint) -> Self {
        let body = Self::new(steps);
        Self { hint, ..body }
    }
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.project().steps.pop_front() {
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data.into())))),
            Some(Step::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers())))),
            Some(Step::Fail) => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            Some(Step::Pend) => Poll::Pending,
            Some(Step::Panic) => panic!("the caller's body panics"),
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

fn trailers() -> HeaderMap {
    let digest = HeaderValue::from_static("sha-256=abc");
    HeaderMap::from_iter([(http::HeaderName::from_static("digest"), digest)])
}

fn data(text: &str) -> Step {
    Step::Data(text.as_bytes().to_vec())
}

/// The frames that one attempt has sent.
#[derive(Debug, Default, PartialEq)]
struct Sent {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    error: Option<String>,
    /// The body ended without an error.
    ended: bool,
}

/// Sends up to `frames` frames; polls again if the body is pending.
fn send<B>(body: &mut ReplayBody<B>, frames: usize, sent: &mut Sent)
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let cx = &mut Context::from_waker(noop_waker_ref());
    let (mut remaining, mut pendings) = (frames, 0);
    while remaining > 0 && pendings < 100 {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => pendings += 1,
            Poll::Ready(None) => {
                sent.ended = true;
                return;
            }
            Poll::Ready(Some(Err(error))) => {
                sent.error = Some(error.to_string());
                return;
            }
            Poll::Ready(Some(Ok(frame))) => {
                remaining -= 1;
                match frame.into_data() {
                    Ok(data) => sent.data.extend(data),
                    Err(frame) => sent.trailers = frame.into_trailers().ok(),
                }
            }
        }
    }
}

fn send_all<B>(body: &mut ReplayBody<B>) -> Sent
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let mut sent = Sent::default();
    send(body, usize::MAX, &mut sent);
    sent
}

fn next_attempt<B: Body>(upload: &ReplaySource<B>) -> Option<ReplayBody<B>> {
    let replayable = upload.pause();
    replayable.then(|| {
        upload.supersede();
        upload.replay_body()
    })
}

#[test]
fn empty_body_is_not_shared() {
    let (upload, first) = ReplaySource::new(Empty::<Bytes>::new(), 0);
    assert!(upload.shared.is_none() && first.is_end_stream());
    assert_eq!(first.size_hint().exact(), Some(0));
    let again = next_attempt(&upload).unwrap();
    assert!(again.is_end_stream());
}

#[test]
fn ended_body_stays_ended_when_superseded() {
    // Empty, but not known to be before the first poll.
    let (upload, mut first) = ReplaySource::new(ScriptedBody::new(&[]), 9);
    assert!(!first.is_end_stream());
    assert!(send_all(&mut first).ended);
    let mut second = next_attempt(&upload).unwrap();
    assert!(second.is_end_stream());
    next_attempt(&upload).unwrap();
    assert!(send_all(&mut first).ended && send_all(&mut second).ended);
}

#[test]
fn buffers_bytes_without_copy() {
    let bytes = Bytes::from(vec![7; 1024]);
    let (upload, mut first) = ReplaySource::new(Full::new(bytes.clone()), 1024);
    assert_eq!(first.size_hint().exact(), Some(1024));
    let cx = &mut Context::from_waker(noop_waker_ref());
    let mut pointer = |body: &mut ReplayBody<_>| match Pin::new(body).poll_frame(cx) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap().as_ptr(),
        other => panic!("{other:?}"),
    };
    assert_eq!(pointer(&mut first), bytes.as_ptr());
    assert!(first.is_end_stream());
    let mut again = next_attempt(&upload).unwrap();
    assert_eq!(again.size_hint().exact(), Some(1024));
    assert_eq!(pointer(&mut again), bytes.as_ptr());
    assert!(again.is_end_stream());
}

#[test]
fn superseded_body_is_woken_and_fails_while_next_attempt_sends_all() {
    let (upload, first) =
        ReplaySource::new(ScriptedBody::new(&[data("ab"), Step::Pend, data("cd")]), 9);
    let mut first = tokio_test::task::spawn(first);
    assert!(first.enter(|cx, body| body.poll_frame(cx)).is_ready());
    assert!(first.enter(|cx, body| body.poll_frame(cx)).is_pending());
    let mut again = next_attempt(&upload).unwrap();
    assert!(first.is_woken());
    assert!(!first.is_end_stream());
    assert_eq!(send_all(&mut first).error, Some(Superseded.to_string()));
    // A consumer that skips errors must not spin.
    for _ in 0..3 {
        assert!(first.is_end_stream());
        assert!(send_all(&mut first).ended);
    }
    let sent = send_all(&mut again);
    assert_eq!((sent.data.as_slice(), sent.ended), (&b"abcd"[..], true));
}

#[test]
fn paused_body_resumes_after_release() {
    let (mut upload, body) = ReplaySource::new(ScriptedBody::new(&[data("ab"), data("cd")]), 9);
    let mut body = tokio_test::task::spawn(body);
    assert!(body.enter(|cx, body| body.poll_frame(cx)).is_ready());
    assert!(upload.pause());
    assert!(body.enter(|cx, body| body.poll_frame(cx)).is_pending());
    upload.release();
    assert!(body.is_woken());
    let sent = send_all(&mut body);
    assert_eq!((sent.data.as_slice(), sent.ended), (&b"cd"[..], true));
}

#[test]
fn paused_body_is_woken_by_release_after_source_has_ended() {
    /// Ends when the flag is set.
    struct Endable(Arc<AtomicBool>);

    impl Body for Endable {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
            match self.is_end_stream() {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        }

        fn is_end_stream(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    let ended = Arc::new(AtomicBool::new(false));
    let (mut upload, body) = ReplaySource::new(Endable(ended.clone()), 9);
    let mut body = tokio_test::task::spawn(body);
    assert!(upload.pause());
    ended.store(true, Ordering::Relaxed);
    assert!(body.enter(|cx, body| body.poll_frame(cx)).is_pending());
    upload.release();
    assert!(body.is_woken());
    assert!(send_all(&mut body).ended);
}

#[test]
fn drop_aborts_upload_unless_released() {
    for (released, error) in [(false, Some(Superseded.to_string())), (true, None)] {
        let (mut upload, body) =
            ReplaySource::new(ScriptedBody::new(&[data("ab"), Step::Pend, data("cd")]), 9);
        let mut body = tokio_test::task::spawn(body);
        assert!(body.enter(|cx, body| body.poll_frame(cx)).is_ready());
        assert!(body.enter(|cx, body| body.poll_frame(cx)).is_pending());
        if released {
            upload.release();
        }
        drop(upload);
        assert!(body.is_woken());
        assert_eq!(send_all(&mut body).error, error);
    }
}

#[test]
fn small_chunks_are_coalesced() {
    let byte = |_| Ok::<_, io::Error>(Frame::data(Bytes::from(vec![b'x'; 16 * 1024]).slice(..1)));
    let source = StreamBody::new(futures_util::stream::iter((0..1000).map(byte)));
    let (upload, mut first) = ReplaySource::new(source, 64 * 1024);
    assert_eq!(send_all(&mut first).data.len(), 1000);
    let mut again = next_attempt(&upload).unwrap();
    assert!(upload.shared.as_ref().unwrap().buffered_chunks() < 20);
    assert_eq!(again.size_hint().exact(), Some(1000));
    assert_eq!(send_all(&mut again).data, vec![b'x'; 1000]);
}

#[test]
fn size_hint_is_exact_after_source_has_ended_unless_trailers_follow() {
    let (upload, mut first) = ReplaySource::new(ScriptedBody::new(&[data("abc")]), 9);
    assert_eq!(first.size_hint().exact(), None);
    send_all(&mut first);
    assert_eq!(next_attempt(&upload).unwrap().size_hint().exact(), Some(3));

    // HTTP/1.1 sends trailers only after a chunked body, which an exact length would rule out.
    let (upload, mut first) =
        ReplaySource::new(ScriptedBody::new(&[data("abc"), Step::Trailers]), 9);
    send_all(&mut first);
    let mut again = next_attempt(&upload).unwrap();
    let hint = again.size_hint();
    assert_eq!((hint.lower(), hint.upper()), (3, None));
    assert_eq!(send_all(&mut again).trailers, Some(trailers()));

    // If the length was known from the start, the first attempt was not chunked either.
    let steps = [data("abc"), Step::Trailers];
    let source = ScriptedBody::with_hint(&steps, SizeHint::with_exact(3));
    let (upload, mut first) = ReplaySource::new(source, 9);
    send_all(&mut first);
    assert_eq!(next_attempt(&upload).unwrap().size_hint().exact(), Some(3));
}

#[test]
fn body_known_to_exceed_limit_is_not_buffered_but_replayable_until_polled() {
    let large = || ScriptedBody::with_hint(&[data("a"), data("b")], SizeHint::with_exact(2));
    let (upload, first) = ReplaySource::new(large(), 1);
    drop(first);
    let mut again = next_attempt(&upload).unwrap();
    assert_eq!(send_all(&mut again).data, b"ab");

    let (upload, mut first) = ReplaySource::new(large(), 1);
    send(&mut first, 1, &mut Sent::default());
    assert_eq!(upload.shared.as_ref().unwrap().buffered_chunks(), 0);
    assert!(!upload.pause());
}

#[test]
fn empty_frames_are_passed_through_and_not_buffered() {
    let empty = vec![data(""); 100];
    let (upload, mut first) = ReplaySource::new(ScriptedBody::new(&empty), 0);
    let mut sent = Sent::default();
    send(&mut first, 100, &mut sent);
    assert_eq!(upload.shared.as_ref().unwrap().buffered_chunks(), 0);
    assert!(upload.pause());
}

#[test]
fn panicked_body_has_failed() {
    let (upload, mut first) = ReplaySource::new(ScriptedBody::new(&[data("ab"), Step::Panic]), 9);
    send(&mut first, 1, &mut Sent::default());
    let panicked = catch_unwind(AssertUnwindSafe(|| send_all(&mut first)));
    assert!(panicked.is_err());
    assert!(upload.has_failed() && !upload.pause());
    assert!(send_all(&mut first).error.is_some());
    assert!(first.is_end_stream());
    assert!(send_all(&mut first).ended);
}

#[test]
fn failed_body_returns_error_once() {
    let (upload, mut first) = ReplaySource::new(ScriptedBody::new(&[Step::Fail, data("ab")]), 9);
    assert!(!first.is_end_stream());
    let sent = send_all(&mut first);
    assert!(sent.error.is_some() && sent.data.is_empty());
    assert!(upload.has_failed() && !upload.pause());
    assert!(first.is_end_stream());
    assert!(send_all(&mut first).ended);
}

#[test]
fn replay_body_is_send_sync_and_unpin() {
    fn check<T: Send + Sync + Unpin>(_: &T) {}
    let (upload, body) = ReplaySource::new(ScriptedBody::new(&[]), 1);
    check(&body);
    drop(upload);
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let chunk = proptest::collection::vec(any::<u8>(), 0..40).prop_map(Step::Data);
    let chunks = proptest::collection::vec(prop_oneof![4 => chunk, 1 => Just(Step::Pend)], 0..40);
    let end = prop_oneof![
        Just(None),
        Just(Some(Step::Trailers)),
        Just(Some(Step::Fail))
    ];
    (chunks, end).prop_map(|(mut steps, end)| {
        steps.extend(end);
        steps
    })
}

fn whole(steps: &[Step]) -> Vec<u8> {
    let data = steps.iter().filter_map(|step| match step {
        Step::Data(data) => Some(data.as_slice()),
        _ => None,
    });
    data.collect::<Vec<_>>().concat()
}

proptest! {
    #[test]
    fn attempts_send_same_body_or_error(
        steps in steps(),
        limit in 0usize..900,
        cuts in proptest::collection::vec(0usize..42, 0..4),
    ) {
        let whole = whole(&steps);
        let fails = steps.contains(&Step::Fail);
        let (mut upload, mut body) = ReplaySource::new(ScriptedBody::new(&steps), limit);
        let mut sent = Sent::default();
        for cut in cuts {
            send(&mut body, cut, &mut sent);
            prop_assert!(whole.starts_with(&sent.data));
            let ended = body.is_end_stream();
            let Some(next) = next_attempt(&upload) else {
                prop_assert!(sent.data.len() > limit || sent.error.is_some());
                upload.release();
                break;
            };
            let superseded = send_all(&mut body);
            prop_assert!(superseded.data.is_empty());
            // A body that had ended before cannot fail.
            prop_assert_eq!(superseded.error, (!ended).then(|| Superseded.to_string()));
            prop_assert!(upload.shared.as_ref().unwrap().buffered_bytes() <= limit);
            body = next;
            sent = Sent::default();
        }
        if sent.error.is_none() {
            let hint = body.size_hint();
            let unsent = (whole.len() - sent.data.len()) as u64;
            prop_assert!(hint.lower() <= unsent);
            prop_assert!(hint.upper().is_none_or(|upper| upper >= unsent));
            send(&mut body, usize::MAX, &mut sent);
        }
        prop_assert_eq!(sent.error.is_some(), fails);
        prop_assert_eq!(sent.ended, !fails);
        // A released source has dropped the body.
        prop_assert!(upload.shared.is_none() || upload.has_failed() == fails);
        prop_assert_eq!(&sent.data, &whole);
        prop_assert_eq!(sent.trailers.is_some(), steps.contains(&Step::Trailers));
    }
}
