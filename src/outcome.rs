//! The outcome of a request: its attempts, its delays, and why the layer gave up.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Extensions, Response};

/// The outcome of one request.
///
/// It is stored in the extensions of every response that is a failure or that was retried. A success
/// at the first attempt passes through unchanged and carries no outcome:
/// [`from_response`](Self::from_response) returns one attempt without delays for it. If the last
/// attempt ends in an inner error there is no response to carry the outcome: add an [`OutcomeHandle`]
/// to the request.
///
/// # Examples
///
/// ```
/// use tower_http_retry::RetryOutcome;
///
/// let response = http::Response::new(());
/// let outcome = RetryOutcome::from_response(&response);
/// assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOutcome {
    pub(crate) attempts: u32,
    pub(crate) total_delay: Duration,
    pub(crate) reason: Option<GiveUpReason>,
    pub(crate) retry_after: Option<Duration>,
}

impl RetryOutcome {
    /// Returns the outcome that `response` carries.
    ///
    /// Without one, this is the outcome of a success at the first attempt.
    pub fn from_response<B>(response: &Response<B>) -> Self {
        Self::from_extensions(response.extensions())
    }

    /// Returns the outcome that the extensions of a response carry.
    ///
    /// Use this for other response types that keep the extensions, such as those of tonic and reqwest.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_http_retry::RetryOutcome;
    ///
    /// let outcome = RetryOutcome::from_extensions(&http::Extensions::new());
    /// assert_eq!(outcome.attempts(), 1);
    /// ```
    pub fn from_extensions(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or(Self::FIRST_ATTEMPT)
    }

    /// The request was never sent.
    pub(crate) const NOT_SENT: Self = Self {
        attempts: 0,
        ..Self::FIRST_ATTEMPT
    };

    /// The request succeeded at the first attempt, or no outcome was reported.
    pub(crate) const FIRST_ATTEMPT: Self = Self {
        attempts: 1,
        total_delay: Duration::ZERO,
        reason: None,
        retry_after: None,
    };

    /// Returns the number of attempts, which is how often the request was sent to the inner service.
    ///
    /// It is 0 if the rate gate rejected the first attempt, in an [`Error`](crate::Error) of an inner
    /// service that failed in `poll_ready`, or if the call was dropped before the first attempt.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the sum of the delays before retries.
    ///
    /// Each one is measured from the failure, which is the arrival of a response's head or of an
    /// error, to the end of the delay. Time spent queued at the rate gate, or until the inner service
    /// is ready, does not count.
    pub fn total_delay(&self) -> Duration {
        self.total_delay
    }

    /// Returns the reason why the layer gave up.
    ///
    /// It is `None` if the last response is not a failure, or if the call was dropped before it ended.
    pub fn give_up_reason(&self) -> Option<GiveUpReason> {
        self.reason
    }

    /// Returns the `Retry-After` of the last response, relative to its arrival.
    ///
    /// It is `None` if that response is not a failure or has no valid `Retry-After`. Seconds that
    /// overflow `u64` are [`Duration::MAX`].
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

/// The reason why the layer returned a failure to the caller instead of retrying.
///
/// [`Display`](fmt::Display), events and metrics show it in snake_case.
///
/// # Examples
///
/// ```
/// use tower_http_retry::GiveUpReason;
///
/// assert_eq!(GiveUpReason::RetriesExhausted.to_string(), "retries_exhausted");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GiveUpReason {
    /// The failure is not retryable.
    NotRetryable,
    /// The access token is invalid or has expired. A retry would fail in the same way.
    InvalidToken,
    /// The number of retries is used up, or the backoff has ended.
    RetriesExhausted,
    /// The server may have processed the request, and the request is not idempotent
    /// ([RFC 9110 §9.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2)).
    NotIdempotent,
    /// The request cannot be sent again as it was: its body exceeded the replay limit or returned an
    /// error, or its head contains a header value that `http` does not allow.
    BodyNotReplayable,
    /// The next attempt would start after the deadline.
    DeadlineExceeded,
    /// The retry budget is exhausted.
    BudgetExhausted,
    /// The rate gate's next permit would come after the deadline. The response is created by the layer
    /// and not by the server. It is a 429 without a body, and its `Retry-After` is the time until the
    /// permit, rounded up to seconds. [`ErrorForStatus`](crate::ErrorForStatus) returns it as
    /// [`Error::RateGated`](crate::Error::RateGated).
    RateGated,
    /// The retry filter returned `false`
    /// ([`RetryPolicy::retry_filter`](crate::RetryPolicy::retry_filter)).
    Vetoed,
    /// The inner service could not take the attempt: it returned an error from `poll_ready` before a retry
    /// or an attempt that was queued at the rate gate, or tower's load shedder rejected a retry. The
    /// failed response before it is returned if its body fit into
    /// [`inspect_limit`](crate::RetryPolicy::inspect_limit), otherwise the error.
    ReadinessFailed,
}

impl GiveUpReason {
    /// Returns the reason in snake_case, as in events and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotRetryable => "not_retryable",
            Self::ReadinessFailed => "readiness_failed",
            Self::InvalidToken => "invalid_token",
            Self::RetriesExhausted => "retries_exhausted",
            Self::NotIdempotent => "not_idempotent",
            Self::BodyNotReplayable => "body_not_replayable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::BudgetExhausted => "budget_exhausted",
            Self::RateGated => "rate_gated",
            Self::Vetoed => "vetoed",
        }
    }
}

impl fmt::Display for GiveUpReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A handle for reading the [`RetryOutcome`] of a call that may end in an error.
///
/// Insert a clone into the request's extensions. The layer clears the handle when the call starts and
/// sets it when the call ends. If the call is dropped before, by an outer timeout for example, the
/// outcome holds the attempts made until then and no give-up reason.
///
/// Use one handle per request. If two concurrent requests share a handle, it holds the outcome of the
/// one that ends last.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use std::io;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_http_retry::{GiveUpReason, OutcomeHandle, ReplayBody, RetryLayer};
///
/// # #[tokio::main] async fn main() {
/// type Body = Empty<Bytes>;
/// let client = RetryLayer::default().layer(service_fn(async |_: Request<ReplayBody<Body>>| {
///     Err::<Response<Body>, _>(io::Error::from(io::ErrorKind::PermissionDenied))
/// }));
/// let handle = OutcomeHandle::new();
/// let mut request = Request::new(Body::new());
/// request.extensions_mut().insert(handle.clone());
/// assert!(client.oneshot(request).await.is_err());
/// let give_up_reason = handle.get().and_then(|outcome| outcome.give_up_reason());
/// assert_eq!(give_up_reason, Some(GiveUpReason::NotRetryable));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct OutcomeHandle {
    outcome: Arc<Mutex<Option<RetryOutcome>>>,
}

impl OutcomeHandle {
    /// Creates an empty handle.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the outcome of the call, or `None` if the call has not ended yet.
    pub fn get(&self) -> Option<RetryOutcome> {
        *self.lock()
    }

    pub(crate) fn set(&self, outcome: RetryOutcome) {
        *self.lock() = Some(outcome);
    }

    pub(crate) fn get_or_insert_with(&self, outcome: impl FnOnce() -> RetryOutcome) {
        self.lock().get_or_insert_with(outcome);
    }

    pub(crate) fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<RetryOutcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
