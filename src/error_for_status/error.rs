//! The error of a failed call, and its text.

use std::{error, fmt, time::Duration};

use http::StatusCode;
use tower::BoxError;

use super::ApiError;
use crate::{
    classify::{FailureKind, transport},
    outcome::{GiveUpReason, RetryOutcome},
};

/// The error of a failed call.
///
/// Returned by [`ErrorForStatus`](crate::ErrorForStatus) and
/// [`error_for_status`](crate::error_for_status). Each variant is boxed internally, which keeps a
/// `Result` small.
///
/// # Examples
///
/// ```
/// use tower_http_retry::{Error, FailureKind, GiveUpReason};
///
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::Api(api) if api.is_invalid_token() => "refresh the token",
///         Error::Api(api) if api.status().is_client_error() && !api.is_retryable() => "fix the request",
///         Error::RateGated(_) => "send it when the gate has a permit",
///         _ => match error.outcome().give_up_reason() {
///             Some(GiveUpReason::NotIdempotent) => "check whether it took effect",
///             _ => "send it later",
///         },
///     }
/// }
/// ```
#[non_exhaustive]
pub enum Error {
    /// The server answered with a 4xx or 5xx status.
    Api(ApiError),
    /// The local rate gate rejected the request or its retry. This is not a response of the server.
    RateGated(RateGatedError),
    /// The inner service returned an error instead of a response.
    Transport(TransportError),
}

impl Error {
    /// Returns the kind of failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Api(error) => error.kind(),
            Self::RateGated(error) => error.kind(),
            Self::Transport(error) => error.kind(),
        }
    }

    /// Returns the status of the server's response.
    ///
    /// This is `None` for [`Error::RateGated`] and [`Error::Transport`], as neither is a response of
    /// the server.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Api(error) => Some(error.status()),
            Self::RateGated(_) | Self::Transport(_) => None,
        }
    }

    /// Returns the time to wait before the request is sent again, if known.
    ///
    /// This is the response's `Retry-After` for [`Error::Api`], the time until the gate's next permit
    /// for [`Error::RateGated`], and `None` for [`Error::Transport`].
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(error) => error.retry_after(),
            Self::RateGated(error) => error.retry_after(),
            Self::Transport(_) => None,
        }
    }

    /// Returns the outcome that the retry layer reported.
    ///
    /// Without a retry layer this is one attempt and no give-up reason.
    pub fn outcome(&self) -> RetryOutcome {
        match self {
            Self::Api(error) => error.outcome(),
            Self::RateGated(error) => error.outcome(),
            Self::Transport(error) => error.outcome(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => error.fmt(f),
            Self::RateGated(error) => error.fmt(f),
            Self::Transport(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => error.fmt(f),
            Self::RateGated(error) => error.fmt(f),
            Self::Transport(error) => error.fmt(f),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Api(error) => error.source(),
            Self::RateGated(error) => error.source(),
            Self::Transport(error) => error.source(),
        }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<RateGatedError> for Error {
    fn from(error: RateGatedError) -> Self {
        Self::RateGated(error)
    }
}

impl From<TransportError> for Error {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// The error of a request that the local [`RateGate`](crate::RateGate) rejected.
///
/// The gate's next permit would have come after the request's deadline
/// ([`GiveUpReason::RateGated`]). The retry layer reports that as a 429 response that it creates, and
/// `Display` shows this status. If the [`outcome`](Self::outcome) counts no attempts, the request was
/// never sent. Otherwise an earlier attempt failed, and the gate rejected the retry.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response, StatusCode, header::RETRY_AFTER};
/// use http_body_util::Empty;
/// use std::time::Duration;
/// use tower::{ServiceBuilder, ServiceExt};
/// use tower_http_retry::{
///     Error, ErrorForStatusLayer, RateGate, ReplayBody, RetryLayer, RetryPolicy,
/// };
///
/// # #[tokio::main] async fn main() {
/// type Body = Empty<Bytes>;
/// let policy = RetryPolicy::new()
///     .rate_gate(RateGate::new())
///     .max_elapsed(Duration::from_secs(5));
/// let client = ServiceBuilder::new()
///     .layer(ErrorForStatusLayer::new())
///     .layer(RetryLayer::new(policy))
///     .service_fn(async |_: Request<ReplayBody<Body>>| {
///         let mut response = Response::new(Body::new());
///         *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
///         response.headers_mut().insert(RETRY_AFTER, 30.into());
///         Ok::<_, std::io::Error>(response)
///     });
///
/// // The server's 429 closes the gate for 30 s, which exceeds the deadline of 5 s.
/// let result = client.clone().oneshot(Request::new(Body::new())).await;
/// assert!(matches!(result, Err(Error::Api(_))));
///
/// let Err(Error::RateGated(error)) = client.oneshot(Request::new(Body::new())).await else {
///     panic!("expected a rejection by the gate")
/// };
/// assert_eq!(error.outcome().attempts(), 0);
/// assert!(error.retry_after() > Some(Duration::from_secs(5)));
/// # }
/// ```
#[derive(Debug)]
pub struct RateGatedError {
    outcome: Box<RetryOutcome>,
}

impl RateGatedError {
    pub(super) fn new(outcome: RetryOutcome) -> Self {
        Self {
            outcome: Box::new(outcome),
        }
    }

    /// Returns the kind of failure, which is [`FailureKind::TooManyRequests`].
    pub fn kind(&self) -> FailureKind {
        FailureKind::TooManyRequests
    }

    /// Returns the time until the gate's next permit, relative to the rejection.
    pub fn retry_after(&self) -> Option<Duration> {
        self.outcome.retry_after()
    }

    /// Returns the outcome that the retry layer reported.
    pub fn outcome(&self) -> RetryOutcome {
        *self.outcome
    }
}

impl fmt::Display for RateGatedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_status(f, StatusCode::TOO_MANY_REQUESTS)?;
        write!(f, ": {}", describe(self.kind()))?;
        write_attempts(f, *self.outcome)
    }
}

impl error::Error for RateGatedError {}

/// An error of the inner service, which returned no response.
///
/// The inner error is the [`source`](error::Error::source). `Display` and `Debug` leave it out, since
/// it may contain secrets.
///
/// # Examples
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use std::io;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_http_retry::{Error, ErrorForStatusLayer, FailureKind};
///
/// # #[tokio::main] async fn main() {
/// let client = ErrorForStatusLayer::new().layer(service_fn(async |_: Request<()>| {
///     Err::<Response<Empty<bytes::Bytes>>, _>(io::Error::from(io::ErrorKind::TimedOut))
/// }));
/// let Err(Error::Transport(error)) = client.oneshot(Request::new(())).await else {
///     panic!("expected a transport error")
/// };
/// assert_eq!(error.kind(), FailureKind::Timeout);
/// assert!(error.inner().downcast_ref::<io::Error>().is_some());
/// assert_eq!(error.to_string(), "no answer in time");
/// # }
/// ```
pub struct TransportError {
    inner: Box<TransportErrorInner>,
}

struct TransportErrorInner {
    kind: FailureKind,
    source: BoxError,
    /// The outcome, if a retry layer reported one.
    outcome: Option<RetryOutcome>,
}

impl TransportError {
    pub(super) fn new(source: BoxError, outcome: Option<RetryOutcome>) -> Self {
        let kind = transport::classify_error(&source);
        Self {
            inner: Box::new(TransportErrorInner {
                kind,
                source,
                outcome,
            }),
        }
    }

    /// Returns the kind of failure: [`NotProcessed`](FailureKind::NotProcessed),
    /// [`Timeout`](FailureKind::Timeout), [`Disconnected`](FailureKind::Disconnected),
    /// [`InvalidEndpoint`](FailureKind::InvalidEndpoint) or [`Other`](FailureKind::Other).
    pub fn kind(&self) -> FailureKind {
        self.inner.kind
    }

    /// Returns the outcome that the retry layer reported.
    ///
    /// If no retry layer saw the request, this is one attempt and no give-up reason.
    pub fn outcome(&self) -> RetryOutcome {
        self.inner.outcome.unwrap_or(RetryOutcome::FIRST_ATTEMPT)
    }

    /// Returns a reference to the inner error. Use `downcast_ref` for the concrete type.
    pub fn inner(&self) -> &(dyn error::Error + Send + Sync + 'static) {
        &*self.inner.source
    }

    /// Consumes `self` and returns the inner error.
    pub fn into_inner(self) -> BoxError {
        self.inner.source
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(describe(self.inner.kind))?;
        match self.inner.outcome {
            Some(outcome) => write_attempts(f, outcome),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportError")
            .field("kind", &self.inner.kind)
            .field("outcome", &self.outcome())
            .finish_non_exhaustive()
    }
}

impl error::Error for TransportError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&*self.inner.source)
    }
}

/// Returns the meaning of a failure in the documented contract.
pub(super) fn describe(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::BadRequest => "arguments are missing or malformed",
        FailureKind::Unauthorized => "not authenticated",
        FailureKind::Forbidden => "authenticated, but not permitted",
        FailureKind::NotFound => "no such endpoint",
        FailureKind::MethodNotAllowed => "wrong verb for this endpoint",
        FailureKind::NotAcceptable => "no content format that the request accepts",
        FailureKind::TooManyRequests => "over the rate limit, back off",
        FailureKind::InternalServerError | FailureKind::ServerError => "fault on the server",
        FailureKind::GatewayTimeout => "timed out on the server",
        FailureKind::InvalidToken => "the access token is invalid or has expired",
        FailureKind::ClientError => "failed given the information provided",
        FailureKind::NotProcessed => "the server did not process the request",
        FailureKind::Timeout => "no answer in time",
        FailureKind::Disconnected => "the connection broke before the answer was complete",
        FailureKind::InvalidEndpoint => "the URI or the certificate of the server is not valid",
        FailureKind::Other | FailureKind::Custom(_) => "the call failed",
    }
}

/// Writes the status with its reason phrase, if it has one.
pub(super) fn write_status(f: &mut fmt::Formatter<'_>, status: StatusCode) -> fmt::Result {
    f.write_str(status.as_str())?;
    match status.canonical_reason() {
        Some(reason) => write!(f, " {reason}"),
        None => Ok(()),
    }
}

/// Writes the number of attempts in parentheses, and whether the rate gate rejected the request.
pub(super) fn write_attempts(f: &mut fmt::Formatter<'_>, outcome: RetryOutcome) -> fmt::Result {
    match outcome.attempts() {
        0 => f.write_str(" (never sent"),
        1 => f.write_str(" (1 attempt"),
        attempts => write!(f, " ({attempts} attempts"),
    }?;
    match outcome.give_up_reason() {
        Some(GiveUpReason::RateGated) => f.write_str(", held back by the rate gate)"),
        _ => f.write_str(")"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_stays_small() {
        assert!(size_of::<Error>() <= 2 * size_of::<usize>());
    }
}
