//! The decision after a failed attempt, and the start of the backoff.

use std::error::Error;

use http::HeaderMap;
use tokio::time::Instant;
use tower_http::classify::MakeClassifier;

use super::{AttemptFailure, RetryState, Session, Step};
use crate::{
    classify::Retryability,
    events::{Cause, RetryEvent},
    policy::decision::{Decision, FailedAttempt, decide},
};

impl<C: MakeClassifier, B> Session<C, B> {
    /// Collects the inputs of the decision that do not depend on the failure's form. Pauses the
    /// upload if the failure is retryable.
    pub(super) fn prepare_decision(
        &mut self,
        retryability: Retryability,
        failed_at: Instant,
    ) -> FailedAttempt {
        let replayable = retryability != Retryability::Never && self.pause_for_replay();
        let options = self.head.options();
        let config = &self.policy.config;
        FailedAttempt {
            invalid_token: false,
            retryability,
            retries: self.attempts.saturating_sub(1),
            max_retries: config.max_retries_for(options),
            idempotent: config.retry_non_idempotent || self.head.is_idempotent(),
            replayable,
            retry_after: None,
            elapsed: failed_at.saturating_duration_since(self.started),
            max_elapsed: config.max_elapsed_for(options),
            exempt_from_budget: false,
        }
    }

    /// Pauses the upload, and returns whether the request can be sent again whole.
    fn pause_for_replay(&mut self) -> bool {
        self.head.shrink_to_fit();
        self.body.pause() && self.head.can_be_rebuilt()
    }

    pub(super) fn decide_retry(
        &mut self,
        failed: FailedAttempt,
        cause: Cause,
        headers: Option<&HeaderMap>,
        error: Option<&(dyn Error + 'static)>,
    ) -> Decision {
        let config = &self.policy.config;
        let RetryState {
            delays, withdrawal, ..
        } = &mut **self.retry.get_or_insert_default();
        decide(
            failed,
            || {
                let delays = delays.get_or_insert_with(|| config.backoff.delays());
                delays.next()
            },
            |delay| {
                config.retry_filter.as_ref().is_none_or(|filter| {
                    filter(&RetryEvent {
                        failure: self.head.failure(cause, headers, error),
                        attempt: self.attempts,
                        delay,
                    })
                })
            },
            || match config.budget() {
                Some(budget) => {
                    *withdrawal = budget.try_withdraw();
                    self.telemetry.on_budget_change(config);
                    withdrawal.is_some()
                }
                None => true,
            },
        )
    }

    /// Ends the failed attempt and its upload, and reports the retry.
    pub(super) fn begin_backoff(
        &mut self,
        failure: AttemptFailure,
        headers: Option<&HeaderMap>,
        error: Option<&(dyn Error + 'static)>,
    ) -> Step {
        self.body.supersede();
        let event = RetryEvent {
            failure: self.head.failure(failure.cause, headers, error),
            attempt: self.attempts,
            delay: failure.delay,
        };
        self.telemetry.on_retry(&self.policy.config, &event);
        Step::BackOff(failure)
    }
}
