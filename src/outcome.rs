//! What became of a request: attempts made, time waited, why it stopped.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Extensions, Response};

/// What the layer did for one request.
///
/// It stands in the extensions of every response that is a failure or that was retried; a success
/// at the first attempt is passed through untouched and carries none, and [`from_response`](Self::from_response) answers
/// for it. Where the last attempt ended in an inner error there is no response to carry it: put an
/// [`OutcomeHandle`] into the request.
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
    /// The outcome that `response` carries, or that of a success at the first attempt.
    pub fn from_response<B>(response: &Response<B>) -> Self {
        Self::from_extensions(response.extensions())
    }

    /// As [`from_response`](Self::from_response), for responses of other types that keep the extensions, such as tonic's and
    /// reqwest's.
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

    /// The inner service did not even get ready.
    pub(crate) const NOT_SENT: Self = Self {
        attempts: 0,
        ..Self::FIRST_ATTEMPT
    };

    pub(crate) const FIRST_ATTEMPT: Self = Self {
        attempts: 1,
        total_delay: Duration::ZERO,
        reason: None,
        retry_after: None,
    };

    /// How often the request was handed to the inner service: 1 or more, and 0 only where the rate gate
    /// never let it out, or in an [`Error`](crate::Error) of a service that did not even get ready.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The time between attempts, from the arrival of a failed response's head (or of an error) to
    /// the end of the wait, summed up; without time at the rate gate, or until the service is ready.
    pub fn total_delay(&self) -> Duration {
        self.total_delay
    }

    /// Why the layer stopped; `None` where the last response is no failure, or where the call was dropped
    /// before it ended.
    pub fn give_up_reason(&self) -> Option<GiveUpReason> {
        self.reason
    }

    /// The `Retry-After` of the last response, where it is a failure that has a valid one; counted
    /// from the response's arrival.
    ///
    /// A number of seconds that fits no `u64` is [`Duration::MAX`].
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

/// Why the layer handed a failure to the caller instead of sending the request again.
///
/// Its text, in [`Display`](fmt::Display) as in events and metrics, is snake_case.
///
/// ```
/// use tower_http_retry::GiveUpReason;
///
/// assert_eq!(GiveUpReason::RetriesExhausted.to_string(), "retries_exhausted");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GiveUpReason {
    /// The classifier marks the failure as never retryable.
    NotRetryable,
    /// The inner service failed in `poll_ready` for a retry; its error is final.
    ServiceNotReady,
    /// The access token is invalid or has expired; sending it again changes nothing.
    InvalidToken,
    /// The number of retries is used up, or the schedule has ended.
    RetriesExhausted,
    /// The server may have acted on the request, and repeating it could act twice
    /// ([RFC 9110 §9.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2)).
    NotIdempotent,
    /// The request body was larger than the replay limit, or its source failed.
    BodyNotReplayable,
    /// The next attempt would start only after the deadline.
    DeadlineExceeded,
    /// What the layer may spend on retries is spent.
    BudgetExhausted,
    /// The rate gate would let the request out only after the deadline. The response is the layer's own,
    /// not the server's: a 429 without a body, whose `Retry-After` is the time at which to come back.
    RateGated,
    /// The user's own function said no: [`RetryPolicy::retry_filter`](crate::RetryPolicy::retry_filter).
    Vetoed,
}

impl GiveUpReason {
    /// The reason as text, as events and metrics carry it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotRetryable => "not_retryable",
            Self::ServiceNotReady => "service_not_ready",
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

/// A handle by which the caller learns the [`RetryOutcome`] also where there is no response.
///
/// Put a clone of it into the request's extensions. It is emptied when the call starts, and filled when
/// it ends, whatever the result; a call that is dropped before, by a timeout around it say, leaves the
/// attempts made so far and no stop reason. One handle is for one request at a time: of two that share
/// it, the later to end is seen.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use std::io;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_http_retry::{OutcomeHandle, ReplayBody, RetryLayer, GiveUpReason};
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
    /// A handle that is not filled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The outcome of the call, or `None` while it has not ended.
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
