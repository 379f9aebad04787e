//! The decision after a failed attempt: a pure function of its arguments.

use std::time::Duration;

use http::StatusCode;

use crate::{classify::Retryability, outcome::GiveUpReason};

/// The inputs of the decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailedAttempt {
    /// The `WWW-Authenticate` header of the response contains `error="invalid_token"`.
    pub(crate) invalid_token: bool,
    pub(crate) retryability: Retryability,
    /// The number of retries made so far.
    pub(crate) retries: u32,
    pub(crate) max_retries: u32,
    /// The request is idempotent, or the policy retries non-idempotent requests.
    pub(crate) idempotent: bool,
    /// Head and body of the request can be sent again whole.
    pub(crate) replayable: bool,
    pub(crate) retry_after: Option<Duration>,
    /// The time from the call to the failure.
    pub(crate) elapsed: Duration,
    pub(crate) max_elapsed: Duration,
    /// The retry is free: the server scheduled it with `Retry-After`, or renewed its connection.
    pub(crate) exempt_from_budget: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    GiveUp(GiveUpReason),
    /// Retry after this delay, measured from the failure.
    Retry {
        delay: Duration,
    },
}

/// Decides whether to retry. Each closure is called at most once, and only if all checks before it
/// have passed: `next_delay` returns the backoff delay, `filter` is the user's filter, and `withdraw`
/// takes the cost of a retry from the budget.
pub(crate) fn decide(
    failed: FailedAttempt,
    next_delay: impl FnOnce() -> Option<Duration>,
    filter: impl FnOnce(Duration) -> bool,
    withdraw: impl FnOnce() -> bool,
) -> Decision {
    if failed.invalid_token {
        return Decision::GiveUp(GiveUpReason::InvalidToken);
    }
    if failed.retryability == Retryability::Never {
        return Decision::GiveUp(GiveUpReason::NotRetryable);
    }
    if failed.retries >= failed.max_retries {
        return Decision::GiveUp(GiveUpReason::RetriesExhausted);
    }
    let Some(delay) = next_delay() else {
        return Decision::GiveUp(GiveUpReason::RetriesExhausted);
    };
    if failed.retryability == Retryability::IfIdempotent && !failed.idempotent {
        return Decision::GiveUp(GiveUpReason::NotIdempotent);
    }
    if !failed.replayable {
        return Decision::GiveUp(GiveUpReason::BodyNotReplayable);
    }
    let delay = failed.retry_after.unwrap_or_default().checked_add(delay);
    let start = delay.and_then(|delay| failed.elapsed.checked_add(delay));
    let delay = match (delay, start) {
        (Some(delay), Some(start)) if start <= failed.max_elapsed => delay,
        _ => return Decision::GiveUp(GiveUpReason::DeadlineExceeded),
    };
    if !filter(delay) {
        return Decision::GiveUp(GiveUpReason::Vetoed);
    }
    if !failed.exempt_from_budget && !withdraw() {
        return Decision::GiveUp(GiveUpReason::BudgetExhausted);
    }
    Decision::Retry { delay }
}

/// Returns whether the server has scheduled the retry: a 429 with a `Retry-After` above zero.
pub(crate) fn is_scheduled_by_server(status: StatusCode, retry_after: Option<Duration>) -> bool {
    let delay = retry_after.unwrap_or_default();
    status == StatusCode::TOO_MANY_REQUESTS && !delay.is_zero()
}

#[cfg(test)]
mod tests;
