//! The events passed to callbacks.

use std::{error::Error, fmt, sync::OnceLock, time::Duration};

use http::{HeaderMap, Method, Response, StatusCode, Uri};

use crate::{
    classify::{FailureKind, transport},
    outcome::{GiveUpReason, RetryOutcome},
};

/// A failed attempt, and the retry that is planned for it.
///
/// Passed to [`RetryPolicy::on_retry`](crate::RetryPolicy::on_retry) and
/// [`RetryPolicy::retry_filter`](crate::RetryPolicy::retry_filter). `Debug` shows neither the path and
/// query of the URI, nor headers, nor the error.
///
/// # Examples
///
/// ```
/// use http::{Method, Response, StatusCode, Uri};
/// use std::time::Duration;
/// use tower_http_retry::RetryEvent;
///
/// fn describe(event: &RetryEvent<'_>) -> String {
///     format!("{} {}: {}", event.method(), event.uri().path(), event.kind())
/// }
///
/// // In the user's own tests:
/// let uri = Uri::from_static("https://api.example/accounts?token=abc");
/// let mut response = Response::new(());
/// *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
/// let delay = Duration::from_millis(80);
/// let event = RetryEvent::from_response(&Method::GET, &uri, &response, 1, delay);
/// assert_eq!(describe(&event), "GET /accounts: gateway_timeout");
/// ```
pub struct RetryEvent<'a> {
    pub(crate) failure: Failure<'a>,
    pub(crate) attempt: u32,
    pub(crate) delay: Duration,
}

/// A failure that is returned to the caller.
///
/// Passed to [`RetryPolicy::on_give_up`](crate::RetryPolicy::on_give_up). `Debug` shows neither the
/// path and query of the URI, nor headers, nor the error.
///
/// # Examples
///
/// ```
/// use http::{Method, Uri};
/// use std::io;
/// use tower_http_retry::{FailureKind, GiveUpEvent, GiveUpReason};
///
/// let uri = Uri::from_static("https://api.example/payments");
/// let error = io::Error::from(io::ErrorKind::TimedOut);
/// let reason = GiveUpReason::NotIdempotent;
/// let event = GiveUpEvent::from_error(&Method::POST, &uri, &error, reason, 1);
/// assert_eq!((event.kind(), event.status()), (FailureKind::Timeout, None));
/// assert_eq!(event.reason(), GiveUpReason::NotIdempotent);
/// ```
pub struct GiveUpEvent<'a> {
    pub(crate) failure: Failure<'a>,
    pub(crate) reason: GiveUpReason,
    pub(crate) outcome: RetryOutcome,
}

impl<'a> RetryEvent<'a> {
    /// Creates the event of a failed response, for tests of callbacks.
    pub fn from_response<T>(
        method: &'a Method,
        uri: &'a Uri,
        response: &'a Response<T>,
        attempt: u32,
        delay: Duration,
    ) -> Self {
        Self {
            failure: Failure::from_response(method, uri, response),
            attempt,
            delay,
        }
    }

    /// Creates the event of an inner error, for tests of callbacks.
    pub fn from_error(
        method: &'a Method,
        uri: &'a Uri,
        error: &'a (dyn Error + 'static),
        attempt: u32,
        delay: Duration,
    ) -> Self {
        Self {
            failure: Failure::from_error(method, uri, error),
            attempt,
            delay,
        }
    }

    /// Returns the number of the attempt that failed, starting at 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the planned delay from the failure to the next attempt: the server's `Retry-After`
    /// plus the backoff delay. A rate gate, and a service that is not ready, add to it.
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

impl<'a> GiveUpEvent<'a> {
    /// Creates the event of a failed response, for tests of callbacks.
    pub fn from_response<T>(
        method: &'a Method,
        uri: &'a Uri,
        response: &'a Response<T>,
        reason: GiveUpReason,
        attempts: u32,
    ) -> Self {
        Self::new(
            Failure::from_response(method, uri, response),
            reason,
            RetryOutcome {
                attempts,
                reason: Some(reason),
                ..RetryOutcome::FIRST_ATTEMPT
            },
        )
    }

    /// Creates the event of an inner error, for tests of callbacks.
    pub fn from_error(
        method: &'a Method,
        uri: &'a Uri,
        error: &'a (dyn Error + 'static),
        reason: GiveUpReason,
        attempts: u32,
    ) -> Self {
        Self::new(
            Failure::from_error(method, uri, error),
            reason,
            RetryOutcome {
                attempts,
                reason: Some(reason),
                ..RetryOutcome::FIRST_ATTEMPT
            },
        )
    }

    /// For `InvalidToken`, the kind of the failure is that of the reason.
    pub(crate) fn new(
        mut failure: Failure<'a>,
        reason: GiveUpReason,
        outcome: RetryOutcome,
    ) -> Self {
        if reason == GiveUpReason::InvalidToken {
            failure.cause.kind = FailureKind::InvalidToken;
        }
        Self {
            failure,
            reason,
            outcome,
        }
    }

    /// Returns why the layer gave up.
    pub fn reason(&self) -> GiveUpReason {
        self.reason
    }

    /// Returns the outcome of the request: attempts, total delay, the server's `Retry-After`.
    pub fn outcome(&self) -> &RetryOutcome {
        &self.outcome
    }
}

/// The accessors that both events share.
macro_rules! failure_accessors {
    ($event:ident) => {
        impl $event<'_> {
            /// Returns the method of the request.
            pub fn method(&self) -> &Method {
                self.failure.method
            }

            /// Returns the URI of the request. It may contain secrets.
            pub fn uri(&self) -> &Uri {
                self.failure.uri.get()
            }

            /// Returns the kind of failure.
            pub fn kind(&self) -> FailureKind {
                self.failure.cause.kind
            }

            /// Returns the status of the failed response; `None` for an inner error.
            pub fn status(&self) -> Option<StatusCode> {
                self.failure.cause.status
            }

            /// Returns the headers of the failed response; `None` for an inner error.
            pub fn headers(&self) -> Option<&HeaderMap> {
                self.failure.headers
            }

            /// Returns the inner error; `None` for a response, or if the type of the error is not
            /// [recognized](FailureKind#inner-errors).
            pub fn error(&self) -> Option<&(dyn Error + 'static)> {
                self.failure.error
            }
        }
    };
}

failure_accessors!(RetryEvent);
failure_accessors!(GiveUpEvent);

impl fmt::Debug for RetryEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryEvent")
            .field("failure", &self.failure)
            .field("attempt", &self.attempt)
            .field("delay", &self.delay)
            .finish()
    }
}

impl fmt::Debug for GiveUpEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GiveUpEvent")
            .field("failure", &self.failure)
            .field("reason", &self.reason)
            .field("outcome", &self.outcome)
            .finish()
    }
}

/// The request of an event, and what failed.
pub(crate) struct Failure<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: LazyUri<'a>,
    pub(crate) cause: Cause,
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) error: Option<&'a (dyn Error + 'static)>,
}

impl<'a> Failure<'a> {
    fn from_response<T>(method: &'a Method, uri: &'a Uri, response: &'a Response<T>) -> Self {
        Self {
            method,
            uri: LazyUri::Ready(uri),
            cause: Cause::from_status(response.status(), None),
            headers: Some(response.headers()),
            error: None,
        }
    }

    fn from_error(method: &'a Method, uri: &'a Uri, error: &'a (dyn Error + 'static)) -> Self {
        Self {
            method,
            uri: LazyUri::Ready(uri),
            cause: Cause::from_error(transport::classify_chain(error)),
            headers: None,
            error: Some(error),
        }
    }
}

impl fmt::Debug for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("method", &self.method)
            .field("host", &self.uri.get().host())
            .field("kind", &self.cause.kind)
            .field("status", &self.cause.status)
            .finish_non_exhaustive()
    }
}

/// A URI that is rebuilt only if a callback requests it.
pub(crate) enum LazyUri<'a> {
    Ready(&'a Uri),
    Deferred(&'a dyn RebuildUri, OnceLock<Uri>),
}

pub(crate) trait RebuildUri: Sync {
    fn rebuild_uri(&self) -> Uri;
}

impl<'a> LazyUri<'a> {
    pub(crate) fn deferred(source: &'a dyn RebuildUri) -> Self {
        Self::Deferred(source, OnceLock::new())
    }

    fn get(&self) -> &Uri {
        match self {
            Self::Ready(uri) => uri,
            Self::Deferred(source, uri) => uri.get_or_init(|| source.rebuild_uri()),
        }
    }
}

/// The cause of a failed attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause {
    pub(crate) kind: FailureKind,
    /// `None` for an inner error.
    pub(crate) status: Option<StatusCode>,
}

impl Cause {
    /// `kind` is the kind that the failure class reports, if it does.
    pub(crate) fn from_status(status: StatusCode, kind: Option<FailureKind>) -> Self {
        let kind = kind
            .or_else(|| FailureKind::from_status(status))
            .unwrap_or(FailureKind::Other);
        let status = Some(status);
        Self { kind, status }
    }

    pub(crate) fn from_error(kind: FailureKind) -> Self {
        let status = None;
        Self { kind, status }
    }

    /// Returns the value of the attribute `error.type`: the status of a 4xx or 5xx, otherwise, and for
    /// a user's own failure class, the kind.
    pub(crate) fn error_type(&self) -> &str {
        match (&self.status, &self.kind) {
            (_, FailureKind::Custom(kind)) => kind,
            (Some(status), _) if FailureKind::from_status(*status).is_some() => status.as_str(),
            (_, kind) => kind.as_str(),
        }
    }
}
