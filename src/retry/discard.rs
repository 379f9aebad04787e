//! Inspects and drains a failed response before a retry.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Response, response::Parts};
use http_body::Body;
use tokio::time::Sleep;

use super::session::AttemptFailure;
use crate::{
    body::{PeekedBody, ResponseBody},
    classify::invalid_token,
    policy::RetryConfig,
};

/// A failed response that is being inspected and drained.
pub(super) struct DiscardingResponse<R: Body> {
    pub(super) parts: Parts,
    pub(super) failure: AttemptFailure,
    pub(super) purpose: Purpose,
    body: PeekedBody<R>,
    inspected: bool,
    /// The whole body was buffered when it was inspected.
    complete: bool,
    drain_remaining: usize,
}

/// The use of the response after the inspection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is drained and dropped, and the request is retried.
    Retry,
    /// It is returned to the caller.
    Return,
}

pub(super) enum Inspection {
    /// The body contains `"error": "invalid_token"`.
    InvalidToken,
    /// The body does not contain it, as far as it was inspected, and was drained or a limit was hit if
    /// the request is retried.
    Passed,
}

impl<R: Body> DiscardingResponse<R> {
    pub(super) fn new(
        response: Response<R>,
        failure: AttemptFailure,
        purpose: Purpose,
        config: &RetryConfig,
    ) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            parts,
            failure,
            purpose,
            body: PeekedBody::new(body),
            inspected: false,
            complete: false,
            drain_remaining: config.drain_limit,
        }
    }

    pub(super) fn poll_discard(
        &mut self,
        cx: &mut Context<'_>,
        timeout: Pin<&mut Sleep>,
        config: &RetryConfig,
    ) -> Poll<Inspection> {
        if !self.inspected {
            if self.body.poll_buffer(cx, config.inspect_limit).is_pending() {
                ready!(timeout.poll(cx));
                return Poll::Ready(self.inspect());
            }
            self.inspected = true;
            self.complete = self.body.is_complete();
            if let Inspection::InvalidToken = self.inspect() {
                return Poll::Ready(Inspection::InvalidToken);
            }
        }
        if self.purpose == Purpose::Retry
            && self
                .body
                .poll_discard(cx, &mut self.drain_remaining)
                .is_pending()
        {
            ready!(timeout.poll(cx));
        }
        Poll::Ready(Inspection::Passed)
    }

    fn inspect(&self) -> Inspection {
        match invalid_token::in_body(&self.parts.headers, self.body.buffered()) {
            true => Inspection::InvalidToken,
            false => Inspection::Passed,
        }
    }

    /// Returns the response with its body whole again.
    pub(super) fn into_response(self) -> Response<ResponseBody<R>> {
        Response::from_parts(self.parts, self.body.into())
    }

    /// Returns whether the response can be kept during the delay: its body is buffered whole, and holds no
    /// connection.
    pub(super) fn is_self_contained(&self) -> bool {
        self.complete && self.body.is_released()
    }
}
