//! The future of the service.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Response, response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::BoxError;

use super::{ApiError, Error, Limits, RateGatedError, TransportError};
use crate::{
    body::PeekedBody,
    classify::FailureKind,
    outcome::{GiveUpReason, OutcomeHandle, RetryOutcome},
    retry_after::retry_after,
};

pin_project! {
    /// The future of [`ErrorForStatus`](crate::ErrorForStatus).
    ///
    /// # Panics
    ///
    /// Panics if polled after completion, or if a failed response's body is not ready at once and
    /// there is no tokio runtime with its timer enabled.
    #[must_use = "futures do nothing unless polled"]
    pub struct ErrorForStatusFuture<F, R>
    where
        R: Body,
    {
        #[pin]
        state: State<F, R>,
        handle: Option<OutcomeHandle>,
        limits: Limits,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R>
    where
        R: Body,
    {
        // => Collecting or Done
        Calling { #[pin] call: F },
        // => Done
        Collecting {
            response: Option<Box<CollectingResponse<R>>>,
            #[pin]
            timeout: Option<Sleep>,
        },
        Done,
    }
}

impl<F, R: Body> ErrorForStatusFuture<F, R> {
    pub(super) fn new(call: F, handle: Option<OutcomeHandle>, limits: Limits) -> Self {
        let state = State::Calling { call };
        Self {
            state,
            handle,
            limits,
        }
    }
}

impl<F, R, E> Future for ErrorForStatusFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
    R: Body,
{
    type Output = Result<Response<R>, Error>;

    #[expect(clippy::panic, reason = "futures may panic if polled after completion")]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Calling { call } => match ready!(call.poll(cx)) {
                    Ok(response) if FailureKind::from_status(response.status()).is_none() => {
                        Ok(response)
                    }
                    Ok(response) => match rate_gated(&response) {
                        Some(error) => Err(error.into()),
                        None => {
                            this.state.set(State::Collecting {
                                response: Some(Box::new(CollectingResponse::new(response))),
                                timeout: None,
                            });
                            continue;
                        }
                    },
                    Err(error) => {
                        // An inner call cancelled by a timeout records its outcome on drop.
                        this.state.set(State::Done);
                        let outcome = this.handle.as_ref().and_then(OutcomeHandle::get);
                        Err(TransportError::new(error.into(), outcome).into())
                    }
                },
                StateProj::Collecting {
                    response,
                    mut timeout,
                } => {
                    if let Some(response) = response {
                        if response.poll_body(cx, this.limits.bytes).is_pending() {
                            // Created lazily: a body that is ready needs no runtime.
                            if timeout.is_none() {
                                timeout.set(Some(tokio::time::sleep(this.limits.time)));
                            }
                            if let Some(timeout) = timeout.as_pin_mut() {
                                ready!(timeout.poll(cx));
                            }
                        }
                    }
                    match response.take() {
                        Some(response) => Err(response.into_error().into()),
                        None => continue,
                    }
                }
                StateProj::Done => panic!("ErrorForStatusFuture polled after completion"),
            };
            this.state.set(State::Done);
            return Poll::Ready(result);
        }
    }
}

impl<F, R: Body> fmt::Debug for ErrorForStatusFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorForStatusFuture")
            .finish_non_exhaustive()
    }
}

/// Returns the error for a response that the local rate gate created, or `None` for a server's.
fn rate_gated<R>(response: &Response<R>) -> Option<RateGatedError> {
    let outcome = RetryOutcome::from_response(response);
    let rejected_locally = outcome.give_up_reason() == Some(GiveUpReason::RateGated);
    rejected_locally.then(|| RateGatedError::new(outcome))
}

/// A failed response while its body is collected.
struct CollectingResponse<R: Body> {
    parts: response::Parts,
    outcome: RetryOutcome,
    retry_after: Option<Duration>,
    body: PeekedBody<R>,
}

impl<R: Body> CollectingResponse<R> {
    fn new(response: Response<R>) -> Self {
        let outcome = RetryOutcome::from_response(&response);
        let (parts, body) = response.into_parts();
        Self {
            outcome,
            // The value is relative to the arrival of the response.
            retry_after: retry_after(&parts.headers, SystemTime::now()),
            parts,
            body: PeekedBody::new(body),
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<()> {
        ready!(self.body.poll_buffer(cx, limit));
        self.body.poll_completeness(cx)
    }

    fn into_error(self) -> ApiError {
        let is_body_truncated = !self.body.is_complete();
        let body = Bytes::from(self.body.into_buffered());
        let response::Parts {
            status, headers, ..
        } = self.parts;
        ApiError::new(
            status,
            headers,
            body,
            is_body_truncated,
            self.retry_after,
            self.outcome,
        )
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::error_for_status;

    const RATE_GATED: RetryOutcome = RetryOutcome {
        attempts: 0,
        reason: Some(GiveUpReason::RateGated),
        retry_after: Some(Duration::from_millis(1500)),
        ..RetryOutcome::FIRST_ATTEMPT
    };

    async fn error_of(status: StatusCode, outcome: RetryOutcome) -> Error {
        let mut response = Response::new(http_body_util::Empty::<Bytes>::new());
        *response.status_mut() = status;
        response.extensions_mut().insert(outcome);
        error_for_status(response).await.unwrap_err()
    }

    #[tokio::test]
    async fn local_429_becomes_rate_gated_error() {
        let error = error_of(StatusCode::TOO_MANY_REQUESTS, RATE_GATED).await;
        assert_eq!(error.kind(), FailureKind::TooManyRequests);
        assert_eq!(error.status(), None);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
        assert_eq!(error.outcome(), RATE_GATED);
        assert!(matches!(error, Error::RateGated(_)));
    }

    #[tokio::test]
    async fn rate_gated_error_display_shows_attempts() {
        for (attempts, expected) in [(0, "never sent"), (1, "1 attempt"), (2, "2 attempts")] {
            let outcome = RetryOutcome {
                attempts,
                ..RATE_GATED
            };
            let error = error_of(StatusCode::TOO_MANY_REQUESTS, outcome).await;
            assert_eq!(
                error.to_string(),
                format!(
                    "429 Too Many Requests: over the rate limit, back off ({expected}, held back by the rate gate)"
                )
            );
        }
    }

    #[tokio::test]
    async fn server_429_after_retries_becomes_api_error() {
        let outcome = RetryOutcome {
            attempts: 4,
            reason: Some(GiveUpReason::RetriesExhausted),
            ..RATE_GATED
        };
        let error = error_of(StatusCode::TOO_MANY_REQUESTS, outcome).await;
        assert_eq!(error.status(), Some(StatusCode::TOO_MANY_REQUESTS));
        assert!(matches!(error, Error::Api(_)));
    }
}
