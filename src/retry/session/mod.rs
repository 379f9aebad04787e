//! The state that all attempts of one request share, and the step after each event.
//!
//! The session knows neither the inner service nor its future: [`ResponseFuture`] reports each event to
//! it and carries out the [`Step`] that it returns.
//!
//! [`ResponseFuture`]: super::ResponseFuture

mod decide;
mod finish;
mod permit;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Request, Response, StatusCode, request, response};
use http_body::Body;
use tokio::time::Instant;
use tower::BoxError;
use tower_http::classify::{ClassifiedResponse, ClassifyResponse, MakeClassifier};
use tracing::span::Entered;

pub(super) use self::permit::new_permit;
use super::saved_head::SavedHead;
use crate::{
    backoff::Delays,
    body::{ReplayBody, ReplaySource},
    budget::Withdrawal,
    classify::{FailureKind, Retryability, RetryableFailure, invalid_token, transport},
    events::Cause,
    outcome::{GiveUpReason, RetryOutcome},
    policy::{
        RetryConfig, RetryPolicy,
        decision::{Decision, FailedAttempt, is_scheduled_by_server},
    },
    rate_gate::Permit,
    retry_after::retry_after,
    telemetry::Telemetry,
};

/// One request across its attempts.
pub(super) struct Session<C: MakeClassifier, B> {
    pub(super) policy: Arc<RetryPolicy<C>>,
    pub(super) telemetry: Telemetry,
    pub(super) head: SavedHead,
    pub(super) body: ReplaySource<B>,
    /// The classifier of the attempt in flight.
    pub(super) classifier: Option<C::Classifier>,
    /// `None` without a rate gate.
    pub(super) permit: Option<Box<Permit>>,
    pub(super) started: Instant,
    pub(super) attempts: u32,
    /// The outcome has been recorded.
    pub(super) finished: bool,
    pub(super) retry: Option<Box<RetryState>>,
}

/// The state needed only after the first attempt failed or was queued; boxed to keep the future small.
#[derive(Default)]
pub(super) struct RetryState {
    /// The head of a first attempt that is queued.
    deferred_head: Option<Box<request::Parts>>,
    delays: Option<Delays>,
    /// The budget withdrawn for a retry that is not sent yet.
    withdrawal: Option<Withdrawal>,
    /// The attempt in flight is a retry that was charged to the budget.
    charged: bool,
    total_delay: Duration,
}

/// The step after a response.
pub(super) enum ResponseStep {
    /// Return the response to the caller.
    Return,
    /// Discard the failed response, then call [`Session::on_discarded`], or [`Session::give_up`] if it
    /// reports an invalid token.
    Discard(AttemptFailure),
    /// Inspect the failed response, which is returned either way, then call [`Session::give_up`].
    Inspect(AttemptFailure),
}

/// A step towards the next attempt.
pub(super) enum Step {
    /// Sleep until the retry, then call [`Session::on_backoff_elapsed`].
    BackOff(AttemptFailure),
    /// Wait for a permit of the rate gate.
    AcquirePermit,
    /// Poll the inner service until it is ready, then send [`Session::next_request`].
    PollReady,
}

/// The failure of an attempt, as far as later steps need it.
#[derive(Clone, Copy)]
pub(super) struct AttemptFailure {
    cause: Cause,
    retry_after: Option<Duration>,
    /// The delay before the retry, measured from `failed_at`; zero without a retry.
    pub(super) delay: Duration,
    /// When the head of the failed response, or the error, arrived.
    pub(super) failed_at: Instant,
}

/// Records the start of an attempt, and creates its classifier.
#[inline]
pub(super) fn begin_attempt<C: MakeClassifier, T>(
    policy: &RetryPolicy<C>,
    telemetry: &mut Telemetry,
    request: &Request<T>,
    resend_count: u32,
) -> C::Classifier {
    telemetry.begin_attempt(&policy.config, request, resend_count);
    policy.classifier.make_classifier(request)
}

impl<C, B> Session<C, B>
where
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
    B: Body,
    B::Error: Into<BoxError>,
{
    /// Creates the session of a request whose first attempt is queued at the rate gate.
    pub(super) fn new_queued(
        policy: Arc<RetryPolicy<C>>,
        permit: Option<Box<Permit>>,
        request: Request<B>,
        started: Instant,
    ) -> Self {
        let head = SavedHead::from_request(&request);
        let (parts, body) = request.into_parts();
        let (body, _) = ReplaySource::new(body, policy.config.replay_limit_for(head.options()));
        let retry = RetryState {
            deferred_head: Some(Box::new(parts)),
            ..RetryState::default()
        };
        Self {
            telemetry: Telemetry::new_queued(&policy.config),
            classifier: None,
            policy,
            head,
            body,
            permit,
            started,
            attempts: 0,
            finished: false,
            retry: Some(Box::new(retry)),
        }
    }

    /// Enters the span of the attempt in flight.
    #[inline]
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.telemetry.enter()
    }

    pub(super) fn config(&self) -> &RetryConfig {
        &self.policy.config
    }

    /// The attempt ended with a response.
    #[inline]
    pub(super) fn on_response<T>(&mut self, response: &mut Response<T>) -> ResponseStep {
        match self.classify(response) {
            None => {
                self.on_success(response);
                ResponseStep::Return
            }
            Some(class) => self.on_failed_response(response, class),
        }
    }

    /// The attempt ended with an inner error; `None` to return it to the caller.
    #[cold]
    pub(super) fn on_error<E: fmt::Display + 'static>(&mut self, error: &E) -> Option<Step> {
        let failed_at = Instant::now();
        let class = self
            .classifier
            .take()
            .map(|classifier| classifier.classify_error(error));
        let kind = class.as_ref().and_then(|class| class.failure_kind());
        let kind = kind.unwrap_or_else(|| transport::classify_error(error));
        let cause = Cause::from_error(kind);
        self.telemetry.on_error(cause);
        if let Some(permit) = &mut self.permit {
            permit.on_error();
        }
        if self.body.has_failed() {
            // The caller's body failed, regardless of the error that the inner service returned.
            let error = transport::as_error(error);
            self.give_up_with_error(error, GiveUpReason::BodyNotReplayable, cause);
            return None;
        }
        let retryability = class.map_or(Retryability::Never, |class| class.retryability());
        let failed = FailedAttempt {
            exempt_from_budget: transport::is_graceful_goaway(error),
            ..self.prepare_decision(retryability, failed_at)
        };
        let error = transport::as_error(error);
        match self.decide_retry(failed, cause, None, error) {
            Decision::GiveUp(reason) => {
                self.give_up_with_error(error, reason, cause);
                None
            }
            Decision::Retry { delay } => {
                let failure = AttemptFailure {
                    cause,
                    retry_after: None,
                    delay,
                    failed_at,
                };
                Some(self.begin_backoff(failure, None, error))
            }
        }
    }

    /// The failed response was discarded; `head` is what is left of it.
    pub(super) fn on_discarded(&mut self, failure: AttemptFailure, head: &response::Parts) -> Step {
        self.begin_backoff(failure, Some(&head.headers), None)
    }

    /// Gives up with a failed response that was inspected.
    pub(super) fn give_up<T>(
        &mut self,
        reason: GiveUpReason,
        failure: AttemptFailure,
        response: &mut Response<T>,
    ) {
        self.give_up_with_response(response, reason, failure.cause, failure.retry_after);
    }

    /// The retry was rejected by a load shedder of the inner service.
    pub(super) fn on_shed<E: fmt::Display + 'static>(&mut self, error: &E) {
        let cause = Cause::from_error(transport::classify_error(error));
        self.telemetry.on_error(cause);
        if let Some(permit) = &mut self.permit {
            permit.on_error();
        }
    }

    /// The delay before the retry has elapsed.
    pub(super) fn on_backoff_elapsed(&mut self, failed_at: Instant) -> Step {
        self.retry.get_or_insert_default().total_delay += failed_at.elapsed();
        self.acquire_or_poll_ready()
    }

    /// The inner service failed in `poll_ready`; by the contract of `Service`, its error is final.
    pub(super) fn on_ready_error<E: fmt::Display + 'static>(&mut self, error: &E) {
        let cause = Cause::from_error(transport::classify_error(error));
        let error = transport::as_error(error);
        self.give_up_with_error(error, GiveUpReason::ReadinessFailed, cause);
    }

    /// Begins the next attempt, a retry or a first attempt that was queued.
    pub(super) fn next_request(&mut self) -> Request<ReplayBody<B>> {
        let retry = self.retry.get_or_insert_default();
        let deferred_head = retry.deferred_head.take().map(|head| *head);
        let withdrawal = retry.withdrawal.take();
        retry.charged = withdrawal.is_some();
        if let Some(withdrawal) = withdrawal {
            withdrawal.spend();
        }
        #[expect(clippy::expect_used, reason = "checked when the retry was decided")]
        let head = deferred_head
            .or_else(|| self.head.rebuild())
            .expect("the head can be rebuilt");
        let mut request = Request::from_parts(head, self.body.replay_body());
        if let (Some(name), 1..) = (&self.policy.config.attempt_header, self.attempts) {
            let attempt = self.attempts.saturating_add(1);
            // Best effort: `HeaderMap` may be full.
            let _ = request.headers_mut().try_insert(name, attempt.into());
        }
        if let Some(permit) = &mut self.permit {
            permit.depart();
        }
        self.classifier = Some(begin_attempt(
            &self.policy,
            &mut self.telemetry,
            &request,
            self.attempts,
        ));
        self.attempts = self.attempts.saturating_add(1);
        request
    }

    /// Returns the remaining time for discarding a response, capped by the deadline.
    pub(super) fn discard_timeout(&self, failed_at: Instant) -> Duration {
        let config = self.config();
        let elapsed = failed_at.saturating_duration_since(self.started);
        let max_elapsed = config.max_elapsed_for(self.head.options());
        let remaining = max_elapsed.saturating_sub(elapsed);
        config.discard_timeout.min(remaining)
    }
}

impl<C, B> Session<C, B>
where
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
{
    /// Classifies a response; `None` on success.
    #[inline]
    fn classify<T>(&mut self, response: &Response<T>) -> Option<C::FailureClass> {
        match self.classifier.take()?.classify_response(response) {
            ClassifiedResponse::Ready(Err(class)) => Some(class),
            ClassifiedResponse::Ready(Ok(())) | ClassifiedResponse::RequiresEos(_) => None,
        }
    }

    #[inline]
    fn on_success<T>(&mut self, response: &mut Response<T>) {
        self.telemetry.on_response(response.status(), None);
        self.deposit();
        if self.permit.is_some() || self.retry.is_some() {
            return self.on_success_slow_path(response);
        }
        self.body.release();
        self.record_outcome(response.extensions_mut(), RetryOutcome::FIRST_ATTEMPT);
    }

    /// A success after a retry, or with a rate gate.
    #[cold]
    fn on_success_slow_path<T>(&mut self, response: &mut Response<T>) {
        // A custom classifier may take a 429 for a success; the gate closes all the same.
        self.update_rate_gate(response, |config, headers| {
            nonzero(retry_after(headers, SystemTime::now())).unwrap_or_else(|| first_delay(config))
        });
        let outcome = self.finish(None, None);
        self.record_outcome(response.extensions_mut(), outcome);
    }

    #[cold]
    fn on_failed_response<T>(
        &mut self,
        response: &mut Response<T>,
        class: C::FailureClass,
    ) -> ResponseStep {
        let failed_at = Instant::now();
        let (status, headers) = (response.status(), response.headers());
        let cause = Cause::from_status(status, class.failure_kind());
        let retryability = class.retryability();
        self.telemetry.on_response(status, Some(cause));
        if retryability == Retryability::Never {
            self.deposit();
        }
        let retry_after = retry_after(headers, SystemTime::now());
        // A class of a user's classifier need not have checked the header.
        let invalid_token =
            cause.kind == FailureKind::InvalidToken || invalid_token::in_headers(headers);
        let failed = FailedAttempt {
            invalid_token,
            retry_after,
            exempt_from_budget: is_scheduled_by_server(status, retry_after),
            ..self.prepare_decision(retryability, failed_at)
        };
        let decision = self.decide_retry(failed, cause, Some(headers), None);
        self.update_rate_gate(response, |config, _| {
            nonzero(retry_after).unwrap_or_else(|| match decision {
                Decision::Retry { delay } => delay,
                Decision::GiveUp(_) => first_delay(config),
            })
        });
        let failure = |delay| AttemptFailure {
            cause,
            retry_after,
            delay,
            failed_at,
        };
        match decision {
            Decision::Retry { delay } => ResponseStep::Discard(failure(delay)),
            Decision::GiveUp(GiveUpReason::NotRetryable)
                if self.policy.config.inspect_token_errors && may_be_token_error(status) =>
            {
                ResponseStep::Inspect(failure(Duration::ZERO))
            }
            Decision::GiveUp(reason) => {
                self.give_up_with_response(response, reason, cause, retry_after);
                ResponseStep::Return
            }
        }
    }

    /// Credits a response that is not retryable to the budget.
    #[inline]
    fn deposit(&self) {
        if let Some(budget) = self.policy.config.budget() {
            budget.deposit(self.retry.as_ref().is_some_and(|retry| retry.charged));
            self.telemetry.on_budget_change(&self.policy.config);
        }
    }
}

/// Returns whether APIs report an invalid token with `status`.
fn may_be_token_error(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    )
}

fn nonzero(duration: Option<Duration>) -> Option<Duration> {
    duration.filter(|duration| !duration.is_zero())
}

/// Returns the delay before a first retry.
fn first_delay(config: &RetryConfig) -> Duration {
    config.backoff.delays().next().unwrap_or_default()
}
