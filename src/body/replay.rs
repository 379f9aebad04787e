//! The request body: streamed by the first attempt while it is kept, sent again from what was kept.
//!
//! All bodies made for one request share its source. At each moment one of them, that of the latest
//! attempt, may read on; the others have been superseded and end with an error.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

use super::chunk_buffer::Frames;

/// The request body that the inner service sees.
///
/// It yields what the caller's body `B` yields, with `Data = Bytes` (no copy where `B`'s data is
/// [`Bytes`] already) and `Error = BoxError` (the caller's error is inside). The first attempt
/// streams from the source; what passes is kept, up to
/// [`replay_limit`](crate::RetryPolicy::replay_limit) bytes, and a later attempt gets what was kept
/// and then the rest of the source: the same bytes and trailers. Its `size_hint` is exact as soon as
/// the source has ended. There is one exception: a body that has trailers and whose length was not
/// known at first stays of unknown length, since HTTP/1.1 carries trailers only behind a chunked
/// body.
///
/// An attempt that still sends while the next one starts ends with the error [`Superseded`], never
/// with a clean end, which a server would take for a complete upload. While a failed response is
/// being read it is paused. An empty body costs nothing.
///
/// `B` has to be neither `Clone` nor `Unpin`. [`Default`] is the empty body.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tower_http_retry::ReplayBody;
///
/// # #[tokio::main] async fn main() {
/// // Where a type has to be written out, this is the body that the client under the layer sends.
/// let client: Client<_, ReplayBody<Full<Bytes>>> =
///     Client::builder(TokioExecutor::new()).build_http();
/// # }
/// ```
pub struct ReplayBody<B> {
    /// `None` where nothing is left to be sent.
    source: Option<Arc<Source<B>>>,
    /// [`UNREAD`] in the first attempt, until somebody reads from it. (A flag for that would share a word
    /// with the turn, and a word that was stored in parts is slow to move.)
    turn: u32,
}

/// The body is still as the caller made it: its source need not be asked.
const UNREAD: u32 = 0;
const FIRST_TURN: u32 = 1;

/// The error that a request body ends with when another attempt has taken its place.
///
/// Only the client under the layer meets it, in the [`ReplayBody`] of an attempt that is over.
///
/// ```
/// use tower::BoxError;
/// use tower_http_retry::Superseded;
///
/// fn is_the_layers_own(error: &BoxError) -> bool {
///     error.is::<Superseded>()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Superseded;

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was given up, or is being sent by another attempt")
    }
}

impl std::error::Error for Superseded {}

impl<B> Default for ReplayBody<B> {
    fn default() -> Self {
        Self {
            source: None,
            turn: FIRST_TURN,
        }
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            .field("ended", &self.source.is_none())
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
        if self.turn == UNREAD {
            self.turn = FIRST_TURN;
        }
        let Some(source) = &self.source else {
            return Poll::Ready(None);
        };
        let mut shared = lock(source);
        let polled = shared.poll_frame(self.turn, cx);
        // While it waits it keeps its place, from which it is woken.
        let ended = polled.is_ready() && shared.has_sent_all(self.turn);
        drop(shared);
        if ended {
            self.source = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        // Only what it has seen itself: what has ended stays so, whoever supersedes it.
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let Some(source) = &self.source else {
            return SizeHint::with_exact(0);
        };
        if self.turn == UNREAD {
            return source.hint;
        }
        let shared = lock(source);
        if shared.turn != self.turn || shared.failed {
            return SizeHint::default();
        }
        let kept = shared.pulled.saturating_sub(shared.sent);
        let mut hint = SizeHint::new();
        match &shared.body {
            Some(body) => {
                let rest = body.size_hint();
                hint.set_lower(kept.saturating_add(rest.lower()));
                if let Some(upper) = rest.upper().and_then(|upper| kept.checked_add(upper)) {
                    hint.set_upper(upper);
                }
            }
            None if shared.trailers.is_some() && source.hint.exact().is_none() => {
                hint.set_lower(kept)
            }
            None => hint.set_exact(kept),
        }
        hint
    }
}

/// The layer's end of a request body, from which the body of each attempt is made.
///
/// Dropped before it was released, it ends an upload that is still under way.
pub(crate) struct ReplaySource<B> {
    source: Option<Arc<Source<B>>>,
}

impl<B: Body> ReplaySource<B> {
    /// That of an empty body.
    pub(crate) fn empty() -> Self {
        Self { source: None }
    }

    /// Shares `body`, of which up to `limit` bytes are kept, with the first attempt.
    pub(crate) fn new(body: B, limit: usize) -> (Self, ReplayBody<B>) {
        if body.is_end_stream() {
            return (Self::empty(), ReplayBody::default());
        }
        let hint = body.size_hint();
        let shared = Mutex::new(Shared {
            // What is known to be too large is not kept at all.
            limit: match usize::try_from(hint.lower()) {
                Ok(lower) if lower <= limit => limit,
                _ => 0,
            },
            body: Some(Box::pin(body)),
            failed: false,
            kept: Frames::default(),
            trailers: None,
            pulled: 0,
            incomplete: false,
            turn: FIRST_TURN,
            next: 0,
            sent: 0,
            trailers_sent: false,
            paused: false,
            waker: None,
        });
        let source = Arc::new(Source { hint, shared });
        let upload = Self {
            source: Some(source.clone()),
        };
        let first = ReplayBody {
            source: Some(source),
            turn: UNREAD,
        };
        (upload, first)
    }

    /// The body of the next attempt, after [`supersede`](Self::supersede).
    pub(crate) fn replay_body(&self) -> ReplayBody<B> {
        let Some(source) = &self.source else {
            return ReplayBody::default();
        };
        let shared = lock(source);
        match shared.turn {
            // What turned out to be empty is.
            turn if shared.has_sent_all(turn) => ReplayBody::default(),
            turn => ReplayBody {
                source: Some(source.clone()),
                turn,
            },
        }
    }
}

impl<B> ReplaySource<B> {
    /// Pauses the attempt under way; true where all of the body can be sent again.
    ///
    /// Paused, it cannot outgrow the limit between the decision to retry and the retry.
    pub(crate) fn pause(&self) -> bool {
        let Some(source) = &self.source else {
            return true;
        };
        let mut shared = lock(source);
        shared.paused = true;
        !shared.incomplete && !shared.failed
    }

    /// Lets the attempt under way go on, as the last one: nothing is kept from now on.
    #[inline]
    pub(crate) fn release(&mut self) {
        match self.source.take() {
            // No attempt has it any longer.
            Some(source) if Arc::strong_count(&source) == 1 => {}
            Some(source) => Self::release_source(&source),
            None => {}
        }
    }

    fn release_source(source: &Source<B>) {
        let mut shared = lock(source);
        shared.paused = false;
        shared.incomplete = true;
        shared.kept.forget_crumbs();
        let waker = shared.waker.take();
        drop(shared);
        wake(waker);
    }

    /// Ends the attempt under way with an error, wherever it is.
    pub(crate) fn supersede(&self) {
        let Some(source) = &self.source else { return };
        let mut shared = lock(source);
        shared.turn = shared.turn.wrapping_add(1);
        shared.next = 0;
        shared.sent = 0;
        shared.trailers_sent = false;
        shared.paused = false;
        shared.kept.sweep();
        let waker = shared.waker.take();
        drop(shared);
        wake(waker);
    }

    /// Whether the caller's own body raised an error.
    pub(crate) fn has_failed(&self) -> bool {
        self.source.as_ref().is_some_and(|it| lock(it).failed)
    }
}

impl<B> Drop for ReplaySource<B> {
    #[inline]
    fn drop(&mut self) {
        if self.source.is_some() {
            self.supersede();
        }
    }
}

/// What the attempts of one request share.
struct Source<B> {
    /// Of the caller's body, before anybody read from it.
    hint: SizeHint,
    shared: Mutex<Shared<B>>,
}

struct Shared<B> {
    /// The caller's body; `None` once it has ended or failed.
    body: Option<Pin<Box<B>>>,
    /// The caller's body raised an error (or panicked).
    failed: bool,
    /// Data in order; where `incomplete`, what is still to be sent of it.
    kept: Frames,
    /// In a box, since few have any.
    trailers: Option<Box<HeaderMap>>,
    /// How many bytes have come from the source.
    pulled: u64,
    limit: usize,
    /// Something that came from the source is not kept, or no longer.
    incomplete: bool,
    /// The attempt that may read.
    turn: u32,
    /// How many of the kept frames it has sent.
    next: usize,
    /// How many bytes it has sent.
    sent: u64,
    trailers_sent: bool,
    paused: bool,
    /// The task of the attempt that found nothing to send.
    waker: Option<Waker>,
}

impl<B> Shared<B> {
    /// The kept frame that is to be sent next.
    fn replay(&mut self) -> Option<Bytes> {
        let data = if self.incomplete {
            // Nobody needs what has been sent.
            for _ in 0..std::mem::take(&mut self.next) {
                self.kept.pop_front();
            }
            self.kept.pop_front()?
        } else {
            let data = self.kept.get(self.next)?.clone();
            self.next += 1;
            data
        };
        self.sent += data.len() as u64;
        Some(data)
    }

    fn keep(&mut self, data: &Bytes) {
        let fits = u64::try_from(self.limit).is_ok_and(|limit| self.pulled <= limit);
        if !self.incomplete && fits {
            self.kept.push(data);
        } else {
            self.incomplete = true;
            self.kept = Frames::default();
        }
    }

    fn park(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }
}

impl<B: Body> Shared<B> {
    /// Whether the attempt of that turn has sent all that there is.
    fn has_sent_all(&self, turn: u32) -> bool {
        self.turn == turn
            && !self.failed
            && self.sent == self.pulled
            && (self.trailers_sent || self.trailers.is_none())
            && body_ended(&self.body)
    }
}

impl<B> Shared<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_frame(
        &mut self,
        turn: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.turn != turn {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if self.failed {
            return Poll::Ready(Some(Err("the request body has failed".into())));
        }
        if let Some(data) = self.replay() {
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

    /// Reads on; what comes is kept as far as it may be.
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let Some(body) = &mut self.body else {
                return Poll::Ready(None);
            };
            if self.paused {
                self.park(cx);
                return Poll::Pending;
            }
            let frame = match body.as_mut().poll_frame(cx) {
                Poll::Pending => {
                    self.park(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => {
                    self.failed = true;
                    self.body = None;
                    self.kept = Frames::default();
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
                    self.pulled = self.pulled.saturating_add(data.len() as u64);
                    self.keep(&data);
                    self.next = self.kept.len();
                    self.sent = self.pulled;
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

fn lock<B>(source: &Source<B>) -> MutexGuard<'_, Shared<B>> {
    source.shared.lock().unwrap_or_else(|poisoned| {
        // The caller's body panicked: what it would yield now is anybody's guess.
        let mut shared = poisoned.into_inner();
        shared.failed = true;
        shared.body = None;
        shared
    })
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
