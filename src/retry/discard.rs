//! A failed response on its way out: looked into, then read to its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::response;
use http_body::Body;
use tokio::time::{Instant, Sleep};

use crate::{
    body::PeekedBody, classify::invalid_token, policy::RetryPolicy, telemetry::events::Reason,
};

/// A response that is to be retried, while its body is looked into and read to its end.
pub(super) struct FailedResponse<R: Body> {
    pub(super) parts: response::Parts,
    pub(super) peek: PeekedBody<R>,
    pub(super) inspected: bool,
    /// How many bytes may still be discarded.
    pub(super) drain: usize,
    pub(super) failure: Reason,
    pub(super) hint: Option<Duration>,
    pub(super) wait: Duration,
    /// When its head arrived.
    pub(super) since: Instant,
}

pub(super) enum Read {
    /// The body says so.
    InvalidToken,
    /// There is nothing more to learn or to gain from it.
    Dropped,
}

impl<R: Body> FailedResponse<R> {
    pub(super) fn poll_read<C>(
        &mut self,
        cx: &mut Context<'_>,
        timeout: Pin<&mut Sleep>,
        policy: &RetryPolicy<C>,
    ) -> Poll<Read> {
        if !self.inspected {
            if self.peek.poll_buffer(cx, policy.inspect_limit).is_pending() {
                ready!(timeout.poll(cx));
                return Poll::Ready(self.inspect());
            }
            self.inspected = true;
            if let Read::InvalidToken = self.inspect() {
                return Poll::Ready(Read::InvalidToken);
            }
        }
        if self.peek.poll_discard(cx, &mut self.drain).is_pending() {
            ready!(timeout.poll(cx));
        }
        Poll::Ready(Read::Dropped)
    }

    fn inspect(&self) -> Read {
        match invalid_token::in_body(&self.parts.headers, self.peek.buffered()) {
            true => Read::InvalidToken,
            false => Read::Dropped,
        }
    }
}
