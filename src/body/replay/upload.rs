//! The state that all bodies of one request share.
//!
//! The mutex is held for short sections of this module only. The caller's body is taken out of the state
//! while it is polled, and the caller's values (bodies, chunks, wakers) are dropped after the lock has
//! been released: any of these may drop the future that owns the source, which locks the state.

use std::{
    mem,
    pin::Pin,
    sync::PoisonError,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

use crate::{
    body::{chunk_buffer::ChunkBuffer, superseded::Superseded},
    sync::{Mutex, MutexGuard},
};

pub(super) const FIRST_GENERATION: u32 = 1;

/// The data that all attempts of one request share.
pub(super) struct Shared<B> {
    /// The size hint of the caller's body before the first poll.
    pub(super) initial_hint: SizeHint,
    state: Mutex<UploadState<B>>,
}

impl<B: Body> Shared<B> {
    pub(super) fn new(body: B, limit: usize) -> Self {
        let initial_hint = body.size_hint();
        let state = UploadState {
            // A body that is known to exceed the limit is not buffered at all.
            limit: match usize::try_from(initial_hint.lower()) {
                Ok(lower) if lower <= limit => limit,
                _ => 0,
            },
            source: Source::Idle(Box::pin(body)),
            unread: initial_hint,
            failed: false,
            buffer: ChunkBuffer::default(),
            trailers: None,
            bytes_read: 0,
            capped: false,
            generation: FIRST_GENERATION,
            next_chunk: 0,
            bytes_sent: 0,
            trailers_sent: false,
            paused: false,
            waker: None,
        };
        Self {
            initial_hint,
            state: Mutex::new(state),
        }
    }
}

impl<B> Shared<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    /// Polls the body of the attempt of this generation. Sets `ended` if that body has ended.
    //
    // PERF: `ended` is not returned, since a frame is slow to move.
    #[inline]
    pub(super) fn poll_frame(
        &self,
        generation: u32,
        cx: &mut Context<'_>,
        ended: &mut bool,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Declared before the guard, therefore dropped after it.
        let mut discarded = Discarded::Nothing;
        let mut state = self.lock();
        let (polled, rest) = match state.next(generation) {
            Next::Send(read) => {
                *ended = read.is_end() || state.is_exhausted(generation);
                return Poll::Ready(read.into_frame());
            }
            Next::Wait => return state.register(cx, &mut discarded),
            Next::Accept(received) => (Poll::Ready(received.read), received.rest),
            Next::PollSource(body) => {
                drop(state);
                let unwind_guard = FailOnUnwind(self);
                let polled = poll_source(body, cx);
                mem::forget(unwind_guard);
                state = self.lock();
                polled
            }
        };
        let current = state.generation == generation;
        match polled {
            Poll::Ready(read) if current && !state.paused => {
                state.accept(&read, rest, &mut discarded);
                *ended = read.is_end() || state.is_exhausted(generation);
                return Poll::Ready(read.into_frame());
            }
            Poll::Ready(read) => state.source = Source::Held(Box::new(Received { read, rest })),
            Poll::Pending => state.put_back(rest),
        }
        if current {
            return state.register(cx, &mut discarded);
        }
        // The current attempt may have found the caller's body in use.
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        *ended = true;
        Poll::Ready(Some(Err(Superseded.into())))
    }
}

impl<B> Shared<B> {
    /// Returns the size hint of the attempt of this generation.
    pub(super) fn size_hint(&self, generation: u32) -> SizeHint {
        let state = self.lock();
        if state.generation != generation || state.failed {
            return SizeHint::default();
        }
        let buffered = state.bytes_read.saturating_sub(state.bytes_sent);
        let mut hint = SizeHint::new();
        match &state.source {
            Source::Ended if state.trailers.is_some() && self.initial_hint.exact().is_none() => {
                hint.set_lower(buffered)
            }
            Source::Ended => hint.set_exact(buffered),
            _ => {
                let unread = &state.unread;
                hint.set_lower(buffered.saturating_add(unread.lower()));
                if let Some(upper) = unread.upper().and_then(|upper| buffered.checked_add(upper)) {
                    hint.set_upper(upper);
                }
            }
        }
        hint
    }

    /// Returns the generation of the current attempt; `None` if it has nothing to send.
    pub(super) fn current_generation(&self) -> Option<u32> {
        let state = self.lock();
        Some(state.generation).filter(|generation| !state.is_exhausted(*generation))
    }

    /// Pauses the current attempt. Returns whether the whole body can be replayed.
    pub(super) fn pause(&self) -> bool {
        let mut state = self.lock();
        state.paused = true;
        !state.capped && !state.failed
    }

    /// Resumes the current attempt as the last one, and stops buffering.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        state.paused = false;
        state.capped = true;
        state.buffer.clear_tail();
        let sent = mem::take(&mut state.next_chunk);
        let sent = state.buffer.take_front(sent);
        let waker = state.waker.take();
        drop(state);
        drop(sent);
        wake(waker);
    }

    /// Ends the body of the current attempt with an error, and rewinds for the next attempt.
    pub(super) fn supersede(&self) {
        let mut state = self.lock();
        state.generation = state.generation.wrapping_add(1);
        state.next_chunk = 0;
        state.bytes_sent = 0;
        state.trailers_sent = false;
        state.paused = false;
        state.buffer.flush_tail();
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Returns whether the caller's body failed.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// Returns the number of buffered chunks, without the tail.
    #[cfg(all(test, not(retry_loom)))]
    pub(super) fn buffered_chunks(&self) -> usize {
        self.lock().buffer.len()
    }

    /// Returns the number of buffered bytes, without the tail.
    #[cfg(all(test, not(retry_loom)))]
    pub(super) fn buffered_bytes(&self) -> usize {
        let state = self.lock();
        let chunks = (0..state.buffer.len()).filter_map(|index| state.buffer.get(index));
        chunks.map(Bytes::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, UploadState<B>> {
        // Only the clone of a waker can panic under the lock, after which the state is still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct UploadState<B> {
    source: Source<B>,
    /// The size hint of the data that is not read yet.
    unread: SizeHint,
    /// The caller's body returned an error or panicked.
    failed: bool,
    /// The data read so far; if `capped`, only the part that is not sent yet.
    buffer: ChunkBuffer,
    /// Boxed: rarely present.
    trailers: Option<Box<HeaderMap>>,
    bytes_read: u64,
    limit: usize,
    /// The buffer does not hold, or will not hold, all data read.
    capped: bool,
    /// The generation of the current attempt. The fields below belong to that attempt.
    generation: u32,
    /// Number of buffered chunks sent.
    next_chunk: usize,
    bytes_sent: u64,
    trailers_sent: bool,
    paused: bool,
    /// The waker of a body that is pending.
    waker: Option<Waker>,
}

/// The caller's body.
enum Source<B> {
    Idle(Pin<Box<B>>),
    /// Taken out while an attempt polls it.
    Polling,
    /// Polled, but the attempt was paused or superseded in the meantime. The next poll of the current
    /// attempt gets the result; until then the state is that before the poll.
    Held(Box<Received<B>>),
    /// Ended or failed.
    Ended,
}

/// The result of a poll of the caller's body.
struct Received<B> {
    read: Read,
    rest: Rest<B>,
}

/// The caller's body after a poll and its size hint; `None` if it has ended.
type Rest<B> = Option<(Pin<Box<B>>, SizeHint)>;

/// A frame, or the end of a body.
//
// PERF: smaller than a `Frame`, which contains a `HeaderMap`.
enum Read {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
    Error(BoxError),
    End,
}

impl Read {
    /// Returns whether this is an error or the end.
    #[inline]
    fn is_end(&self) -> bool {
        matches!(self, Self::Error(_) | Self::End)
    }

    #[inline]
    fn into_frame(self) -> Option<Result<Frame<Bytes>, BoxError>> {
        match self {
            Self::Data(data) => Some(Ok(Frame::data(data))),
            Self::Trailers(trailers) => Some(Ok(Frame::trailers(*trailers))),
            Self::Error(error) => Some(Err(error)),
            Self::End => None,
        }
    }
}

/// The next step of an attempt.
enum Next<B> {
    Send(Read),
    Accept(Box<Received<B>>),
    PollSource(Pin<Box<B>>),
    Wait,
}

/// A value whose destructor may run code of the caller.
enum Discarded {
    Nothing,
    Buffer { _buffer: ChunkBuffer },
    Waker { _waker: Option<Waker> },
}

impl<B> UploadState<B> {
    #[inline]
    fn next(&mut self, generation: u32) -> Next<B> {
        if self.generation != generation {
            return Next::Send(Read::Error(Superseded.into()));
        }
        if self.failed {
            return Next::Send(Read::Error("the request body has failed".into()));
        }
        if let Some(data) = self.next_buffered() {
            return Next::Send(Read::Data(data));
        }
        if self.trailers_sent {
            return Next::Send(Read::End);
        }
        if let Some(trailers) = self.trailers.clone() {
            self.trailers_sent = true;
            return Next::Send(Read::Trailers(trailers));
        }
        match mem::replace(&mut self.source, Source::Polling) {
            Source::Ended => {
                self.source = Source::Ended;
                Next::Send(Read::End)
            }
            Source::Polling => Next::Wait,
            source if self.paused => {
                self.source = source;
                Next::Wait
            }
            Source::Held(received) => Next::Accept(received),
            Source::Idle(body) => Next::PollSource(body),
        }
    }

    /// Returns the next buffered chunk of the current attempt.
    #[inline]
    fn next_buffered(&mut self) -> Option<Bytes> {
        let data = if self.capped {
            // There is no replay: drop what is sent.
            self.buffer.pop_front()?
        } else {
            let data = self.buffer.get(self.next_chunk)?.clone();
            self.next_chunk += 1;
            data
        };
        self.bytes_sent += data.len() as u64;
        Some(data)
    }

    /// Records what the current attempt has read from the caller's body.
    #[inline]
    fn accept(&mut self, read: &Read, rest: Rest<B>, discarded: &mut Discarded) {
        self.put_back(rest);
        match read {
            Read::Data(data) => {
                self.bytes_read = self.bytes_read.saturating_add(data.len() as u64);
                self.push(data, discarded);
                self.next_chunk = self.buffer.len();
                self.bytes_sent = self.bytes_read;
            }
            Read::Trailers(trailers) => {
                self.trailers = Some(trailers.clone());
                self.trailers_sent = true;
            }
            Read::Error(_) => {
                self.failed = true;
                let _buffer = mem::take(&mut self.buffer);
                *discarded = Discarded::Buffer { _buffer };
            }
            Read::End => {}
        }
    }

    #[inline]
    fn put_back(&mut self, rest: Rest<B>) {
        self.source = match rest {
            Some((body, unread)) => {
                self.unread = unread;
                Source::Idle(body)
            }
            None => Source::Ended,
        };
    }

    /// Buffers data if all data up to now fits the limit.
    #[inline]
    fn push(&mut self, data: &Bytes, discarded: &mut Discarded) {
        let fits = u64::try_from(self.limit).is_ok_and(|limit| self.bytes_read <= limit);
        if self.capped || !fits {
            self.capped = true;
            let _buffer = mem::take(&mut self.buffer);
            *discarded = Discarded::Buffer { _buffer };
        } else if self.bytes_read == data.len() as u64 && self.all_data_read() {
            self.buffer.set_shared(data);
        } else {
            self.buffer.push_copy(data, self.limit);
        }
    }

    fn all_data_read(&self) -> bool {
        matches!(self.source, Source::Ended) || self.unread.upper() == Some(0)
    }

    /// Returns whether the attempt of this generation is current and has sent the whole body.
    fn is_exhausted(&self, generation: u32) -> bool {
        self.generation == generation
            && !self.failed
            && self.bytes_sent == self.bytes_read
            && (self.trailers_sent || self.trailers.is_none())
            && matches!(self.source, Source::Ended)
    }

    fn register<T>(&mut self, cx: &Context<'_>, discarded: &mut Discarded) -> Poll<T> {
        let registered = self.waker.as_ref();
        if !registered.is_some_and(|waker| waker.will_wake(cx.waker())) {
            let _waker = self.waker.replace(cx.waker().clone());
            *discarded = Discarded::Waker { _waker };
        }
        Poll::Pending
    }
}

/// Polls the caller's body.
#[inline]
fn poll_source<B>(mut body: Pin<Box<B>>, cx: &mut Context<'_>) -> (Poll<Read>, Rest<B>)
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let polled = loop {
        let frame = match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => break Poll::Ready(Read::Error(error.into())),
            Poll::Ready(None) => break Poll::Ready(Read::End),
            Poll::Pending => break Poll::Pending,
        };
        match frame.into_data().map_err(Frame::into_trailers) {
            Ok(mut data) => {
                break Poll::Ready(Read::Data(data.copy_to_bytes(data.remaining())));
            }
            Err(Ok(trailers)) => break Poll::Ready(Read::Trailers(Box::new(trailers))),
            Err(Err(_unknown)) => {}
        }
    };
    let ended = match &polled {
        Poll::Ready(Read::Data(_)) => body.is_end_stream(),
        Poll::Ready(_) => true,
        Poll::Pending => false,
    };
    let rest = (!ended).then(|| {
        let unread = body.size_hint();
        (body, unread)
    });
    (polled, rest)
}

/// Marks the upload as failed when it is dropped, since the caller's body was lost in a panic.
struct FailOnUnwind<'a, B>(&'a Shared<B>);

impl<B> Drop for FailOnUnwind<'_, B> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.source = Source::Ended;
        state.failed = true;
        let buffer = mem::take(&mut state.buffer);
        let waker = state.waker.take();
        drop(state);
        drop(buffer);
        wake(waker);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
