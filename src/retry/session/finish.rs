//! Finishes a request, and reports its outcome.

use std::{error::Error, time::Duration};

use http::{Extensions, HeaderMap, Response};
use tower_http::classify::MakeClassifier;

use super::Session;
use crate::{
    events::{Cause, GiveUpEvent},
    outcome::{GiveUpReason, RetryOutcome},
};

impl<C: MakeClassifier, B> Session<C, B> {
    pub(super) fn give_up_with_response<T>(
        &mut self,
        response: &mut Response<T>,
        reason: GiveUpReason,
        cause: Cause,
        retry_after: Option<Duration>,
    ) {
        let outcome = self.finish(Some(reason), retry_after);
        self.report_give_up(reason, cause, Some(response.headers()), None, outcome);
        self.record_outcome(response.extensions_mut(), outcome);
    }

    pub(super) fn give_up_with_error(
        &mut self,
        error: Option<&(dyn Error + 'static)>,
        reason: GiveUpReason,
        cause: Cause,
    ) {
        let outcome = self.finish(Some(reason), None);
        self.report_give_up(reason, cause, None, error, outcome);
        self.record_outcome(&mut Extensions::new(), outcome);
    }

    fn report_give_up(
        &self,
        reason: GiveUpReason,
        cause: Cause,
        headers: Option<&HeaderMap>,
        error: Option<&(dyn Error + 'static)>,
        outcome: RetryOutcome,
    ) {
        let failure = self.head.failure(cause, headers, error);
        let event = GiveUpEvent::new(failure, reason, outcome);
        self.telemetry.on_give_up(&self.policy.config, &event);
    }

    /// Ends the request: releases its upload and its place at the gate. Dropping the withdrawal of a retry
    /// that is not sent refunds the budget.
    #[cold]
    pub(super) fn finish(
        &mut self,
        reason: Option<GiveUpReason>,
        retry_after: Option<Duration>,
    ) -> RetryOutcome {
        self.body.release();
        // The future may be kept after it has completed.
        self.permit = None;
        let retry = self.retry.take();
        let total_delay = retry
            .as_ref()
            .map_or(Duration::ZERO, |retry| retry.total_delay);
        if retry.is_some() {
            drop(retry);
            self.telemetry.on_budget_change(&self.policy.config);
        }
        RetryOutcome {
            attempts: self.attempts,
            total_delay,
            reason,
            retry_after,
        }
    }

    /// Stores the outcome in the response extensions and in the `OutcomeHandle`, if any.
    #[inline]
    pub(super) fn record_outcome(&mut self, extensions: &mut Extensions, outcome: RetryOutcome) {
        if outcome != RetryOutcome::FIRST_ATTEMPT {
            extensions.insert(outcome);
        } else if !extensions.is_empty() {
            // Remove an outcome left by an inner retry layer or a cached response.
            extensions.remove::<RetryOutcome>();
        }
        self.finished = true;
        if let Some(handle) = self.head.outcome_handle() {
            handle.set(outcome);
        }
    }
}

/// On cancellation, records the attempts made so far.
impl<C: MakeClassifier, B> Drop for Session<C, B> {
    #[inline]
    fn drop(&mut self) {
        // The handle may serve the next request by now.
        if self.finished {
            return;
        }
        if let Some(handle) = self.head.outcome_handle() {
            let retry = self.retry.as_ref();
            handle.get_or_insert_with(|| RetryOutcome {
                attempts: self.attempts,
                total_delay: retry.map_or(Duration::ZERO, |retry| retry.total_delay),
                reason: None,
                retry_after: None,
            });
        }
    }
}
