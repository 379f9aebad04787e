//! Reads the start of a failed response's body so that nothing of it is lost.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, SizeHint};

/// A response body of which the start has been read.
///
/// First [`poll_buffer`](Self::poll_buffer), then either [`poll_discard`](Self::poll_discard) or
/// [`ResponseBody::from`](super::ResponseBody), which puts what was read in front of the rest.
pub(crate) struct PeekedBody<R: Body> {
    pub(super) kept: Vec<u8>,
    /// How many more frames without data are read, which no other limit bounds.
    patience: usize,
    /// The part beyond the limit of the frame that reached it.
    pub(super) beyond: Bytes,
    pub(super) rest: Rest<R>,
}

/// What follows the bytes that have been read.
pub(super) enum Rest<R: Body> {
    Unread(Pin<Box<R>>),
    Trailers(HeaderMap),
    Failed(R::Error, SizeHint),
    Ended,
}

impl<R: Body> PeekedBody<R> {
    pub(crate) fn new(body: R) -> Self {
        let mut peek = Self::empty();
        if !body.is_end_stream() {
            peek.rest = Rest::Unread(Box::pin(body));
        }
        peek
    }

    pub(crate) fn empty() -> Self {
        Self {
            kept: Vec::new(),
            patience: 1024,
            beyond: Bytes::new(),
            rest: Rest::Ended,
        }
    }

    /// What has been kept.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.kept
    }

    /// All that has been kept.
    pub(crate) fn into_buffered(self) -> Vec<u8> {
        self.kept
    }

    /// Whether the body ended where what is kept ends.
    pub(crate) fn is_complete(&self) -> bool {
        self.beyond.is_empty()
            && match &self.rest {
                Rest::Unread(body) => body.is_end_stream(),
                Rest::Failed(..) => false,
                Rest::Trailers(_) | Rest::Ended => true,
            }
    }

    /// Reads until `limit` bytes are kept or the body has ended.
    pub(crate) fn poll_buffer(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<()> {
        let mut frames = 0;
        while self.kept.len() < limit && self.patience > 0 {
            ready!(give_way(cx, &mut frames));
            let Some(mut data) = ready!(self.poll_data(cx)) else {
                break;
            };
            let room = limit.saturating_sub(self.kept.len());
            let fits = data.split_to(room.min(data.len()));
            if fits.is_empty() {
                self.patience -= 1;
            }
            self.kept.extend_from_slice(&fits);
            self.beyond = data;
        }
        Poll::Ready(())
    }

    /// Reads and drops until the body has ended or the `budget`, in bytes, is used up.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> Poll<()> {
        *budget = budget.saturating_sub(self.beyond.len());
        self.beyond = Bytes::new();
        let mut frames = 0;
        while *budget > 0 {
            ready!(give_way(cx, &mut frames));
            let Some(data) = ready!(self.poll_data(cx)) else {
                break;
            };
            // A frame without data costs too, or a stream of them would never end.
            *budget = budget.saturating_sub(data.len().max(1));
        }
        Poll::Ready(())
    }

    /// The next data; `None` where there is no more, for whatever reason.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Rest::Unread(body) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let frame = match ready!(body.as_mut().poll_frame(cx)) {
            None => {
                self.rest = Rest::Ended;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                let hint = body.size_hint();
                self.rest = Rest::Failed(error, hint);
                return Poll::Ready(None);
            }
            Some(Ok(frame)) => frame,
        };
        Poll::Ready(match frame.into_data() {
            Ok(mut data) => Some(data.copy_to_bytes(data.remaining())),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    self.rest = Rest::Trailers(trailers);
                    None
                }
                Err(_unknown) => Some(Bytes::new()),
            },
        })
    }
}

/// Gives the thread back from time to time: a body that is always ready must not keep the task from
/// looking at its timer.
fn give_way(cx: &Context<'_>, frames: &mut u32) -> Poll<()> {
    const AT_ONCE: u32 = 64;

    *frames += 1;
    if *frames <= AT_ONCE {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
