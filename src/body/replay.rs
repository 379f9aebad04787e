//! A replayable request body.
//!
//! All bodies created for one request share the caller's body, the source. At any time only the body
//! of the latest attempt may read from it. The others are superseded and end with an error.

use std::{
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

use super::{chunk_buffer::ChunkBuffer, superseded::Superseded};

/// The request body that the inner service receives.
///
/// It yields the frames of the caller's body `B`, with `Data = Bytes` (without a copy if the data of
/// `B` is [`Bytes`] already) and `Error = BoxError` (which holds the caller's error). The first attempt
/// streams from `B`, and up to [`replay_limit`](crate::RetryPolicy::replay_limit) bytes are buffered.
/// A retry replays the buffer and then reads on from `B`, which gives the same bytes and trailers.
///
/// The `size_hint` is exact once `B` has ended. The exception is a body that has trailers and whose
/// length was unknown at first: its length stays unknown, since HTTP/1.1 sends trailers only after a
/// chunked body.
///
/// If an attempt is still sending when the next one starts, its body ends with the error
/// [`Superseded`]. It never ends cleanly, which a server would take for a complete upload. The body is
/// paused while the layer reads a failed response. An empty body takes no allocation.
///
/// `B` need not be `Clone` or `Unpin`. [`Default`] creates an empty body.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tower_http_retry::ReplayBody;
///
/// # #[tokio::main]
/// # async fn main() {
/// // A client under the layer sends `ReplayBody<B>` for the requests with the body `B`.
/// let client: Client<_, ReplayBody<Full<Bytes>>> =
///     Client::builder(TokioExecutor::new()).build_http();
/// # }
/// ```
pub struct ReplayBody<B> {
    /// `None` if nothing is left to send.
    shared: Option<Arc<Shared<B>>>,
    /// The generation of the attempt, or [`UNPOLLED`].
    //
    // PERF: a sentinel instead of a `bool` next to the generation. The two would share a word, and a
    // word that is stored in parts is slow to move.
    generation: u32,
}

/// The generation of the first body until it is polled: its size hint is that of the source, which need
/// not be locked.
const UNPOLLED: u32 = 0;
const FIRST_GENERATION: u32 = 1;

impl<B> Default for ReplayBody<B> {
    fn default() -> Self {
        Self {
            shared: None,
            generation: FIRST_GENERATION,
        }
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            .field("ended", &self.shared.is_none())
            .finish_non_exhaustive()
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.generation == UNPOLLED {
            self.generation = FIRST_GENERATION;
        }
        let Some(shared) = &self.shared else {
            return Poll::Ready(None);
        };
        let mut state = lock(shared);
        let polled = state.poll_frame(self.generation, cx);
        // A pending body stays attached, since its waker is registered in the state.
        let ended = polled.is_ready() && state.is_exhausted(self.generation);
        drop(state);
        if ended {
            self.shared = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        // Depends on this body only: it must not change from `true` to `false` when superseded.
        self.shared.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = &self.shared else {
            return SizeHint::with_exact(0);
        };
        if self.generation == UNPOLLED {
            return shared.initial_hint;
        }
        let state = lock(shared);
        if state.generation != self.generation || state.failed {
            return SizeHint::default();
        }
        let buffered = state.bytes_read.saturating_sub(state.bytes_sent);
        let mut hint = SizeHint::new();
        match &state.body {
            Some(body) => {
                let unread = body.size_hint();
                hint.set_lower(buffered.saturating_add(unread.lower()));
                if let Some(upper) = unread.upper().and_then(|upper| buffered.checked_add(upper)) {
                    hint.set_upper(upper);
                }
            }
            None if state.trailers.is_some() && shared.initial_hint.exact().is_none() => {
                hint.set_lower(buffered)
            }
            None => hint.set_exact(buffered),
        }
        hint
    }
}

/// The handle from which the body of each attempt is created.
///
/// Dropping it before [`release`](Self::release) aborts an upload in flight.
pub(crate) struct ReplaySource<B> {
    shared: Option<Arc<Shared<B>>>,
}

impl<B: Body> ReplaySource<B> {
    /// Creates the handle of an empty body.
    pub(crate) fn empty() -> Self {
        Self { shared: None }
    }

    /// Creates the handle of `body`, of which up to `limit` bytes are buffered, and the body of the
    /// first attempt.
    pub(crate) fn new(body: B, limit: usize) -> (Self, ReplayBody<B>) {
        if body.is_end_stream() {
            return (Self::empty(), ReplayBody::default());
        }
        let initial_hint = body.size_hint();
        let state = Mutex::new(UploadState {
            // A body that is known to exceed the limit is not buffered at all.
            limit: match usize::try_from(initial_hint.lower()) {
                Ok(lower) if lower <= limit => limit,
                _ => 0,
            },
            body: Some(Box::pin(body)),
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
        });
        let shared = Arc::new(Shared {
            initial_hint,
            state,
        });
        let source = Self {
            shared: Some(shared.clone()),
        };
        let first = ReplayBody {
            shared: Some(shared),
            generation: UNPOLLED,
        };
        (source, first)
    }

    /// Creates the body of the next attempt, after [`supersede`](Self::supersede).
    pub(crate) fn replay_body(&self) -> ReplayBody<B> {
        let Some(shared) = &self.shared else {
            return ReplayBody::default();
        };
        let state = lock(shared);
        match state.generation {
            // The body turned out to be empty.
            generation if state.is_exhausted(generation) => ReplayBody::default(),
            generation => ReplayBody {
                shared: Some(shared.clone()),
                generation,
            },
        }
    }
}

impl<B> ReplaySource<B> {
    /// Pauses the current attempt. Returns whether the whole body can be replayed.
    ///
    /// The pause keeps the body within the limit between the decision to retry and the retry.
    pub(crate) fn pause(&self) -> bool {
        let Some(shared) = &self.shared else {
            return true;
        };
        let mut state = lock(shared);
        state.paused = true;
        !state.capped && !state.failed
    }

    /// Resumes the current attempt as the last one, and stops buffering.
    #[inline]
    pub(crate) fn release(&mut self) {
        match self.shared.take() {
            // The last reference: no attempt has the body any more.
            Some(shared) if Arc::strong_count(&shared) == 1 => {}
            Some(shared) => Self::release_shared(&shared),
            None => {}
        }
    }

    fn release_shared(shared: &Shared<B>) {
        let mut state = lock(shared);
        state.paused = false;
        state.capped = true;
        state.buffer.clear_tail();
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Ends the body of the current attempt with an error, and rewinds for the next attempt.
    pub(crate) fn supersede(&self) {
        let Some(shared) = &self.shared else { return };
        let mut state = lock(shared);
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
    pub(crate) fn has_failed(&self) -> bool {
        self.shared
            .as_ref()
            .is_some_and(|shared| lock(shared).failed)
    }
}

impl<B> Drop for ReplaySource<B> {
    #[inline]
    fn drop(&mut self) {
        if self.shared.is_some() {
            self.supersede();
        }
    }
}

/// The data that all attempts of one request share.
struct Shared<B> {
    /// The size hint of the caller's body before the first poll.
    initial_hint: SizeHint,
    state: Mutex<UploadState<B>>,
}

struct UploadState<B> {
    /// The caller's body; `None` after it has ended or failed.
    body: Option<Pin<Box<B>>>,
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

impl<B> UploadState<B> {
    /// Returns the next buffered chunk of the current attempt.
    fn next_buffered(&mut self) -> Option<Bytes> {
        let data = if self.capped {
            // There is no replay: drop what has been sent.
            for _ in 0..mem::take(&mut self.next_chunk) {
                self.buffer.pop_front();
            }
            self.buffer.pop_front()?
        } else {
            let data = self.buffer.get(self.next_chunk)?.clone();
            self.next_chunk += 1;
            data
        };
        self.bytes_sent += data.len() as u64;
        Some(data)
    }

    /// Buffers data if all data up to now fits the limit.
    fn push(&mut self, data: &Bytes) {
        let fits = u64::try_from(self.limit).is_ok_and(|limit| self.bytes_read <= limit);
        if !self.capped && fits {
            self.buffer.push(data);
        } else {
            self.capped = true;
            self.buffer = ChunkBuffer::default();
        }
    }

    fn register(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }
}

impl<B: Body> UploadState<B> {
    /// Returns whether the attempt of this generation is current and has sent the whole body.
    fn is_exhausted(&self, generation: u32) -> bool {
        self.generation == generation
            && !self.failed
            && self.bytes_sent == self.bytes_read
            && (self.trailers_sent || self.trailers.is_none())
            && body_ended(&self.body)
    }
}

impl<B> UploadState<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_frame(
        &mut self,
        generation: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.generation != generation {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if self.failed {
            return Poll::Ready(Some(Err("the request body has failed".into())));
        }
        if let Some(data) = self.next_buffered() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.trailers_sent {
            return Poll::Ready(None);
        }
        if let Some(trailers) = self.trailers.clone() {
            self.trailers_sent = true;
            return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
        }
        self.poll_source(cx)
    }

    /// Polls the caller's body, and buffers its data up to the limit.
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let Some(body) = &mut self.body else {
                return Poll::Ready(None);
            };
            if self.paused {
                self.register(cx);
                return Poll::Pending;
            }
            let frame = match body.as_mut().poll_frame(cx) {
                Poll::Pending => {
                    self.register(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => {
                    self.failed = true;
                    self.body = None;
                    self.buffer = ChunkBuffer::default();
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => {
                    self.body = None;
                    return Poll::Ready(None);
                }
            };
            let frame = match frame.into_data() {
                Ok(mut data) => {
                    let data = data.copy_to_bytes(data.remaining());
                    self.bytes_read = self.bytes_read.saturating_add(data.len() as u64);
                    self.push(&data);
                    self.next_chunk = self.buffer.len();
                    self.bytes_sent = self.bytes_read;
                    if body_ended(&self.body) {
                        self.body = None;
                    }
                    Frame::data(data)
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        self.trailers = Some(Box::new(trailers.clone()));
                        self.trailers_sent = true;
                        self.body = None;
                        Frame::trailers(trailers)
                    }
                    Err(_unknown) => continue,
                },
            };
            return Poll::Ready(Some(Ok(frame)));
        }
    }
}

fn body_ended<B: Body>(body: &Option<Pin<Box<B>>>) -> bool {
    body.as_ref().is_none_or(|body| body.is_end_stream())
}

fn lock<B>(shared: &Shared<B>) -> MutexGuard<'_, UploadState<B>> {
    shared.state.lock().unwrap_or_else(|poisoned| {
        // The caller's body panicked: its state is unknown.
        let mut state = poisoned.into_inner();
        state.failed = true;
        state.body = None;
        state
    })
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
