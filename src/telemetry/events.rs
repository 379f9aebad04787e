//! What a user's own functions are told, and asked.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;

use crate::{
    classify::FailureKind,
    outcome::{GiveUpReason, RetryOutcome},
};

/// A failed attempt that is to be followed by another one.
///
/// Given to [`RetryPolicy::on_retry`](crate::RetryPolicy::on_retry) and
/// [`RetryPolicy::retry_filter`](crate::RetryPolicy::retry_filter).
#[derive(Clone, Copy, Debug)]
pub struct RetryEvent {
    pub(crate) failure: Reason,
    pub(crate) attempt: u32,
    pub(crate) delay: Duration,
}

impl RetryEvent {
    /// What failed.
    pub fn kind(&self) -> FailureKind {
        self.failure.kind()
    }

    /// The status of the failed response; `None` where there was an inner error instead.
    pub fn status(&self) -> Option<StatusCode> {
        self.failure.status()
    }

    /// The number of the attempt that failed; the first is 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The planned time from the failure to the next attempt: the server's `Retry-After` and the delay of
    /// the schedule together. A rate gate, and a service that is not ready, add to it.
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

/// A failure that is handed to the caller.
///
/// Given to [`RetryPolicy::on_give_up`](crate::RetryPolicy::on_give_up).
#[derive(Clone, Copy, Debug)]
pub struct GiveUpEvent {
    pub(crate) failure: Reason,
    pub(crate) stop: GiveUpReason,
    pub(crate) outcome: RetryOutcome,
}

impl GiveUpEvent {
    /// What failed.
    pub fn kind(&self) -> FailureKind {
        match self.stop {
            GiveUpReason::InvalidToken => FailureKind::InvalidToken,
            _ => self.failure.kind(),
        }
    }

    /// The status of the response; `None` where there is an inner error instead.
    pub fn status(&self) -> Option<StatusCode> {
        self.failure.status()
    }

    /// Why the request is not sent again.
    pub fn give_up_reason(&self) -> GiveUpReason {
        self.stop
    }

    /// What was done for the request: attempts, time waited, the server's `Retry-After`.
    pub fn outcome(&self) -> &RetryOutcome {
        &self.outcome
    }
}

/// What made an attempt fail.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reason {
    Status(StatusCode),
    Error(FailureKind),
}

impl Reason {
    fn kind(self) -> FailureKind {
        match self {
            Self::Status(status) => FailureKind::from_status(status).unwrap_or(FailureKind::Other),
            Self::Error(kind) => kind,
        }
    }

    pub(crate) fn status(self) -> Option<StatusCode> {
        match self {
            Self::Status(status) => Some(status),
            Self::Error(_) => None,
        }
    }

    /// As `error.type` names it.
    pub(crate) fn with_str<T>(self, tell: impl FnOnce(&str) -> T) -> T {
        match self {
            Self::Status(status) => tell(status.as_str()),
            Self::Error(kind) => tell(kind.as_str()),
        }
    }
}

type Callback<E, T = ()> = Option<Arc<dyn Fn(&E) -> T + Send + Sync>>;

/// The user's own functions.
#[derive(Clone, Default)]
pub(crate) struct Callbacks {
    pub(crate) on_retry: Callback<RetryEvent>,
    pub(crate) on_give_up: Callback<GiveUpEvent>,
    pub(crate) retry_filter: Callback<RetryEvent, bool>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks")
            .field("on_retry", &self.on_retry.is_some())
            .field("on_give_up", &self.on_give_up.is_some())
            .field("retry_filter", &self.retry_filter.is_some())
            .finish()
    }
}
