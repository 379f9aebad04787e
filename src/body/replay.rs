//! A replayable request body.
//!
//! All bodies created for one request share the caller's body, the source. At any time only the body
//! of the latest attempt may read from it. The others are superseded and end with an error.

mod upload;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

use self::upload::{FIRST_GENERATION, Shared};
use crate::sync::Arc;

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
/// If an attempt is still sending when the next one starts, its body yields the error
/// [`Superseded`](crate::Superseded), once. It never ends cleanly before, which a server would take for a
/// complete upload. The body is paused while the layer reads a failed response.
///
/// `B` is polled without a lock: it may drop the future of its own request.
///
/// # Memory
///
/// The buffer of a request allocates at most `replay_limit` bytes, plus less than 4 KiB of bookkeeping.
/// It holds copies, since a chunk of [`Bytes`] can be a small slice of a large allocation. It allocates at
/// most twice the bytes that it holds (at least 1 KiB). Trailers are kept in addition.
///
/// A chunk that is the whole body is not copied, but shared with the caller, along with the allocation
/// that it is a slice of. This applies if `B` reports after the chunk, with `is_end_stream` or
/// `size_hint`, that no data follows, as `Full` does. A chunk that arrives while the body is paused is
/// also kept as it is, until it is sent.
///
/// An empty body takes no allocation.
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
        let mut ended = false;
        let polled = shared.poll_frame(self.generation, cx, &mut ended);
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
        shared.size_hint(self.generation)
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
        let shared = Arc::new(Shared::new(body, limit));
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
        match shared.current_generation() {
            Some(generation) => ReplayBody {
                shared: Some(shared.clone()),
                generation,
            },
            // The body turned out to be empty.
            None => ReplayBody::default(),
        }
    }
}

impl<B> ReplaySource<B> {
    /// Pauses the current attempt. Returns whether the whole body can be replayed.
    ///
    /// The pause keeps the body within the limit between the decision to retry and the retry.
    pub(crate) fn pause(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.pause())
    }

    /// Resumes the current attempt as the last one, and stops buffering.
    #[inline]
    pub(crate) fn release(&mut self) {
        match self.shared.take() {
            // The last reference: no attempt has the body any more.
            Some(shared) if Arc::strong_count(&shared) == 1 => {}
            Some(shared) => shared.release(),
            None => {}
        }
    }

    /// Ends the body of the current attempt with an error, and rewinds for the next attempt.
    pub(crate) fn supersede(&self) {
        if let Some(shared) = &self.shared {
            shared.supersede();
        }
    }

    /// Returns whether the caller's body failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.shared
            .as_ref()
            .is_some_and(|shared| shared.has_failed())
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

#[cfg(all(test, not(retry_loom)))]
mod tests;

#[cfg(all(test, retry_loom))]
mod model;
