//! Buffering of the start of a response body.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, SizeHint};

/// A response body whose start may be buffered.
///
/// [`poll_buffer`](Self::poll_buffer) comes first, then [`poll_completeness`](Self::poll_completeness),
/// [`poll_discard`](Self::poll_discard) or [`ResponseBody::from`](super::ResponseBody), which yields the buffered bytes before the rest.
pub(crate) struct PeekedBody<R: Body> {
    pub(super) buffered: Vec<u8>,
    /// Number of empty frames to accept. The limit in bytes does not bound them.
    empty_frames_left: usize,
    /// The part of the last frame that exceeds the limit.
    pub(super) overflow: Bytes,
    pub(super) tail: Tail<R>,
}

/// The part of a body after the data that has been read.
pub(super) enum Tail<R: Body> {
    Unread(Pin<Box<R>>),
    Trailers(HeaderMap),
    Failed(R::Error, SizeHint),
    Ended,
}

impl<R: Body> PeekedBody<R> {
    pub(crate) fn new(body: R) -> Self {
        let mut peek = Self::empty();
        if !body.is_end_stream() {
            peek.tail = Tail::Unread(Box::pin(body));
        }
        peek
    }

    pub(crate) fn empty() -> Self {
        Self {
            buffered: Vec::new(),
            empty_frames_left: 1024,
            overflow: Bytes::new(),
            tail: Tail::Ended,
        }
    }

    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffered
    }

    pub(crate) fn into_buffered(self) -> Vec<u8> {
        self.buffered
    }

    /// Returns whether the data of the whole body is buffered.
    pub(crate) fn is_complete(&self) -> bool {
        self.overflow.is_empty()
            && match &self.tail {
                Tail::Unread(body) => body.is_end_stream(),
                Tail::Failed(..) => false,
                Tail::Trailers(_) | Tail::Ended => true,
            }
    }

    /// Returns whether the inner body has been dropped, which frees its connection.
    pub(crate) fn is_released(&self) -> bool {
        !matches!(self.tail, Tail::Unread(_))
    }

    /// Reads until `limit` bytes are buffered or the body has ended.
    pub(crate) fn poll_buffer(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<()> {
        let mut frames = 0;
        while self.buffered.len() < limit && self.empty_frames_left > 0 {
            ready!(poll_coop(cx, &mut frames));
            let Some(mut data) = ready!(self.poll_data(cx)) else {
                break;
            };
            let room = limit.saturating_sub(self.buffered.len());
            let fits = data.split_to(room.min(data.len()));
            if fits.is_empty() {
                self.empty_frames_left -= 1;
            }
            self.buffered.extend_from_slice(&fits);
            self.overflow = data;
        }
        Poll::Ready(())
    }

    /// Reads until it is known whether the buffered data is that of the whole body.
    ///
    /// Call it after [`poll_buffer`](Self::poll_buffer). It reads nothing if the length of the body is
    /// known, and otherwise at most one frame with data, which is kept as overflow.
    pub(crate) fn poll_completeness(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut frames = 0;
        while self.may_be_complete() && self.empty_frames_left > 0 {
            ready!(poll_coop(cx, &mut frames));
            let Some(data) = ready!(self.poll_data(cx)) else {
                break;
            };
            if data.is_empty() {
                self.empty_frames_left -= 1;
            }
            self.overflow = data;
        }
        Poll::Ready(())
    }

    /// Returns whether the unread part may be empty. If so, a poll decides.
    fn may_be_complete(&self) -> bool {
        self.overflow.is_empty()
            && match &self.tail {
                Tail::Unread(body) => !body.is_end_stream() && body.size_hint().lower() == 0,
                _ => false,
            }
    }

    /// Reads and drops data until the body has ended or `remaining`, in bytes, is used up.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>, remaining: &mut usize) -> Poll<()> {
        *remaining = remaining.saturating_sub(self.overflow.len());
        self.overflow = Bytes::new();
        let mut frames = 0;
        while *remaining > 0 {
            ready!(poll_coop(cx, &mut frames));
            let Some(data) = ready!(self.poll_data(cx)) else {
                break;
            };
            // An empty frame counts as one byte, or an endless stream of them would never end.
            *remaining = remaining.saturating_sub(data.len().max(1));
        }
        Poll::Ready(())
    }

    /// Polls the next data; `None` after the last, whether the body has ended or failed.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Tail::Unread(body) = &mut self.tail else {
            return Poll::Ready(None);
        };
        let frame = match ready!(body.as_mut().poll_frame(cx)) {
            None => {
                self.tail = Tail::Ended;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                let hint = body.size_hint();
                self.tail = Tail::Failed(error, hint);
                return Poll::Ready(None);
            }
            Some(Ok(frame)) => frame,
        };
        Poll::Ready(match frame.into_data() {
            Ok(mut data) => Some(data.copy_to_bytes(data.remaining())),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    self.tail = Tail::Trailers(trailers);
                    None
                }
                Err(_unknown) => Some(Bytes::new()),
            },
        })
    }
}

/// Yields to the runtime every 64 frames: otherwise a body that is always ready would keep the task
/// from polling its timer.
fn poll_coop(cx: &Context<'_>, frames: &mut u32) -> Poll<()> {
    const FRAMES_PER_POLL: u32 = 64;

    *frames += 1;
    if *frames <= FRAMES_PER_POLL {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
