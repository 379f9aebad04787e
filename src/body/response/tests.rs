use std::{
    collections::VecDeque,
    io,
    task::{Context, Waker},
};

use http::HeaderMap;
use http_body_util::{Full, StreamBody};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Data(Vec<u8>),
    Trailers,
    Fail,
}

fn frame(step: Step) -> Result<Frame<Bytes>, io::Error> {
    match step {
        Step::Data(data) => Ok(Frame::data(data.into())),
        Step::Trailers => Ok(Frame::trailers(HeaderMap::new())),
        Step::Fail => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

fn source(steps: Vec<Step>) -> impl Body<Data = Bytes, Error = io::Error> {
    StreamBody::new(futures_util::stream::iter(steps.into_iter().map(frame)))
}

/// Reads a body to its end. Returns its data, and the trailers and errors after it.
fn read<B: Body<Data = Bytes, Error = io::Error>>(body: B) -> (Vec<u8>, VecDeque<&'static str>) {
    let mut body = std::pin::pin!(body);
    let cx = &mut Context::from_waker(Waker::noop());
    let (mut data, mut after_data) = (Vec::new(), VecDeque::new());
    loop {
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) => data.extend(bytes),
                Err(_) => after_data.push_back("trailers"),
            },
            Poll::Ready(Some(Err(_))) => {
                after_data.push_back("error");
                return (data, after_data);
            }
            Poll::Ready(None) => return (data, after_data),
            Poll::Pending => panic!("the sources of these tests are never pending"),
        }
    }
}

fn peeked<B: Body>(body: B, limit: usize) -> PeekedBody<B> {
    let mut peek = PeekedBody::new(body);
    let cx = &mut Context::from_waker(Waker::noop());
    while peek.poll_buffer(cx, limit).is_pending() {}
    peek
}

#[test]
fn hints_account_for_buffered_and_unread_parts() {
    let body = || Full::new(Bytes::from_static(b"hello"));
    for limit in 0..10 {
        let body = ResponseBody::from(peeked(body(), limit));
        assert_eq!(body.size_hint().exact(), Some(5), "limit {limit}");
        assert!(!body.is_end_stream());
    }
    let empty = ResponseBody::from(peeked(Full::<Bytes>::default(), 9));
    assert!(empty.is_end_stream());
    assert_eq!(empty.size_hint().exact(), Some(0));
}

/// A body that counts its polls.
struct CountedPolls<B> {
    inner: B,
    polls: usize,
}

impl<B: Body + Unpin> Body for CountedPolls<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.polls += 1;
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn polls<B: Body + Unpin>(peek: &PeekedBody<CountedPolls<B>>) -> usize {
    match &peek.tail {
        Tail::Unread(body) => body.polls,
        _ => panic!("the body was read to its end"),
    }
}

#[test]
fn completeness_check_reads_at_most_one_frame() {
    let cx = &mut Context::from_waker(Waker::noop());
    let steps = [b"four", b"more", b"rest"].map(|data| Step::Data(data.to_vec()));
    let inner = StreamBody::new(futures_util::stream::iter(steps.map(frame)));
    let mut peek = peeked(CountedPolls { inner, polls: 0 }, 4);
    // Buffering alone stops at the limit: the retry layer must not wait for more.
    assert_eq!((peek.buffered(), polls(&peek)), (&b"four"[..], 1));
    for _ in 0..3 {
        assert!(peek.poll_completeness(cx).is_ready());
        assert!(!peek.is_complete());
        assert_eq!(polls(&peek), 2);
    }
    assert_eq!(read(ResponseBody::from(peek)).0, b"fourmorerest");
}

#[test]
fn completeness_of_known_length_needs_no_poll() {
    let cx = &mut Context::from_waker(Waker::noop());
    let inner = Full::new(Bytes::from_static(b"hello"));
    let mut peek = peeked(CountedPolls { inner, polls: 0 }, 0);
    assert!(peek.poll_completeness(cx).is_ready());
    assert!(!peek.is_complete());
    assert_eq!(polls(&peek), 0);
}

#[test]
fn endless_empty_frames_are_bounded() {
    let endless = futures_util::stream::repeat_with(|| frame(Step::Data(Vec::new())));
    let mut peek = PeekedBody::new(StreamBody::new(endless));
    let cx = &mut Context::from_waker(Waker::noop());
    // Yields in between, and comes to an end.
    assert!(peek.poll_buffer(cx, 9).is_pending());
    while peek.poll_buffer(cx, 9).is_pending() {}
    let mut remaining = 100;
    assert!(peek.poll_discard(cx, &mut remaining).is_pending());
    while peek.poll_discard(cx, &mut remaining).is_pending() {}
}

proptest! {
    #[test]
    fn completeness_is_exact_and_loses_no_frame(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..10),
        end in prop_oneof![Just(None), Just(Some(Step::Trailers)), Just(Some(Step::Fail))],
        limit in 0usize..200,
        exact in any::<bool>(),
    ) {
        let limit = if exact { chunks.iter().map(Vec::len).sum() } else { limit };
        let failed = matches!(end, Some(Step::Fail));
        let steps: Vec<_> = chunks.into_iter().map(Step::Data).chain(end).collect();
        let expected = read(source(steps.clone()));
        let mut peek = peeked(source(steps), limit);
        let cx = &mut Context::from_waker(Waker::noop());
        while peek.poll_completeness(cx).is_pending() {}
        prop_assert_eq!(peek.is_complete(), expected.0.len() <= limit && !failed);
        prop_assert_eq!(read(ResponseBody::from(peek)), expected);
    }

    #[test]
    fn buffered_start_is_yielded_before_the_rest(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..10),
        end in prop_oneof![Just(None), Just(Some(Step::Trailers)), Just(Some(Step::Fail))],
        limit in 0usize..200,
    ) {
        let steps: Vec<_> = chunks.into_iter().map(Step::Data).chain(end).collect();
        let expected = read(source(steps.clone()));
        let peek = peeked(source(steps), limit);
        prop_assert_eq!(peek.buffered(), &expected.0[..limit.min(expected.0.len())]);
        let body = ResponseBody::from(peek);
        prop_assert!(body.size_hint().lower() <= expected.0.len() as u64);
        prop_assert!(!body.is_end_stream() || expected.0.is_empty() && expected.1.is_empty());
        prop_assert_eq!(read(body), expected);
    }
}
