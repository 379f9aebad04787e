//! What to do: the settings, their defaults, and the decision after each failure.

pub(crate) mod idempotency;
mod options;
#[cfg(feature = "serde")]
mod settings;

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, StatusCode};
use tower_http::classify::MakeClassifier;

use crate::{
    backoff::{Backoff, Delays, ExponentialBackoff},
    budget::RetryBudget,
    classify::{ApiErrorsAsFailures, Retryability, RetryableFailure},
    invalid_config::InvalidConfig,
    outcome::GiveUpReason,
    rate_gate::RateGate,
    telemetry::{
        events::{Callbacks, GiveUpEvent, Reason, RetryEvent},
        metrics::Meter,
    },
};

#[cfg(feature = "serde")]
pub use self::settings::RetrySettings;
pub use self::{idempotency::IdempotencyKey, options::RequestOptions};

/// Every setting of the layer.
///
/// | setting | default | where it comes from |
/// | --- | --- | --- |
/// | [`max_retries`](Self::max_retries) | 3 (4 attempts) | AWS, .NET and gRPC settle between 2 and 4 |
/// | [`backoff`](Self::backoff) | [`ExponentialBackoff::default`]: full jitter below 100 ms · 2ⁿ, at most 10 s | AWS, "Exponential Backoff And Jitter" |
/// | [`max_elapsed`](Self::max_elapsed) | 60 s | what takes longer belongs in a job queue |
/// | [`replay_limit`](Self::replay_limit) | 64 KiB | linkerd2-proxy |
/// | [`inspect_limit`](Self::inspect_limit) | 16 KiB | an error object is small |
/// | [`drain_limit`](Self::drain_limit) | 256 KiB | a response read to its end leaves a connection that can be used again |
/// | [`discard_timeout`](Self::discard_timeout) | 1 s | a stalled body must not hold a retry up |
/// | [`retry_non_idempotent`](Self::retry_non_idempotent) | false | RFC 9110 §9.2.2 |
/// | [`budget`](Self::budget) | one of its own for each layer: capacity 50, a retry costs 10 | two storms, simulated: see the example `storm` |
/// | [`rate_gate`](Self::rate_gate) | none | one gate stands for one quota, and only the user knows who shares it |
/// | [`idempotency_key`](Self::idempotency_key) | none is added | only the server can tell that it knows the header |
/// | [`attempt_header`](Self::attempt_header) | none | |
/// | [`retry_filter`](Self::retry_filter), [`on_retry`](Self::on_retry), [`on_give_up`](Self::on_give_up) | none | |
/// | [`name`](Self::name) | `default` | |
/// | [`classify_status`](Self::classify_status) | 429 always; 500 and 504 if idempotent | the documented contract |
/// | [`classifier`](Self::classifier) | [`ApiErrorsAsFailures`] | the documented contract |
///
/// ```
/// use http::{HeaderName, StatusCode};
/// use std::time::Duration;
/// use tower_http_retry::{ExponentialBackoff, Retryability, RetryLayer, RetryPolicy};
///
/// # fn main() -> Result<(), tower_http_retry::InvalidConfig> {
/// let policy = RetryPolicy::new()
///     .max_retries(5)
///     .max_elapsed(Duration::from_secs(20))
///     .backoff(ExponentialBackoff::new(Duration::from_millis(50), Duration::from_secs(2)))
///     .classify_status(StatusCode::BAD_GATEWAY, Retryability::IfIdempotent)?
///     .classify_status(StatusCode::SERVICE_UNAVAILABLE, Retryability::IfIdempotent)?;
/// let layer = RetryLayer::new(policy);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RetryPolicy<C = ApiErrorsAsFailures> {
    pub(crate) classifier: C,
    backoff: Arc<dyn Backoff>,
    max_retries: u32,
    max_elapsed: Duration,
    pub(crate) replay_limit: usize,
    pub(crate) inspect_limit: usize,
    pub(crate) drain_limit: usize,
    pub(crate) discard_timeout: Duration,
    retry_non_idempotent: bool,
    budget: Spending,
    pub(crate) gate: Option<RateGate>,
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    pub(crate) attempt_header: Option<HeaderName>,
    pub(crate) callbacks: Callbacks,
    pub(crate) meter: Meter,
}

/// What retries may cost.
#[derive(Clone, Debug)]
enum Spending {
    /// Each layer has a budget of its own.
    Default,
    Shared(RetryBudget),
    Unlimited,
}

impl RetryPolicy {
    /// The documented contract, with the defaults of the table above.
    pub fn new() -> Self {
        Self {
            classifier: ApiErrorsAsFailures::new(),
            backoff: Arc::new(ExponentialBackoff::default()),
            max_retries: 3,
            max_elapsed: Duration::from_secs(60),
            replay_limit: 64 * 1024,
            inspect_limit: 16 * 1024,
            drain_limit: 256 * 1024,
            discard_timeout: Duration::from_secs(1),
            retry_non_idempotent: false,
            budget: Spending::Default,
            gate: None,
            idempotency_key: None,
            attempt_header: None,
            callbacks: Callbacks::default(),
            meter: Meter::new("default".into()),
        }
    }

    /// Says for one status whether it is retried, in place of the contract's own word; the same as
    /// [`ApiErrorsAsFailures::classify_status`] on the classifier.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] where `status` is not a 4xx or 5xx: no other status is a failure.
    pub fn classify_status(
        mut self,
        status: StatusCode,
        retryability: Retryability,
    ) -> Result<Self, InvalidConfig> {
        self.classifier = self.classifier.classify_status(status, retryability)?;
        Ok(self)
    }
}

impl<C> RetryPolicy<C> {
    /// Decides with `classifier` what is a failure and which failures may be retried.
    ///
    /// Statuses named by [`classify_status`](RetryPolicy::classify_status) belong to the classifier that
    /// is replaced. A class that needs the end of the stream
    /// ([`RequiresEos`](tower_http::classify::ClassifiedResponse::RequiresEos)) is no failure at the
    /// head, and the response is returned. `invalid_token` stops retries with every classifier.
    #[must_use]
    pub fn classifier<M>(self, classifier: M) -> RetryPolicy<M>
    where
        M: MakeClassifier,
        M::FailureClass: RetryableFailure,
    {
        RetryPolicy {
            classifier,
            backoff: self.backoff,
            max_retries: self.max_retries,
            max_elapsed: self.max_elapsed,
            replay_limit: self.replay_limit,
            inspect_limit: self.inspect_limit,
            drain_limit: self.drain_limit,
            discard_timeout: self.discard_timeout,
            retry_non_idempotent: self.retry_non_idempotent,
            budget: self.budget,
            gate: self.gate,
            idempotency_key: self.idempotency_key,
            attempt_header: self.attempt_header,
            callbacks: self.callbacks,
            meter: self.meter,
        }
    }

    /// How often a request is sent again at the most; by default 3, which makes 4 attempts.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// How long to wait before each retry, on top of what the server asks for; by default
    /// [`ExponentialBackoff::default`]. Where the schedule ends, so do the retries.
    #[must_use]
    pub fn backoff(mut self, backoff: impl Backoff + 'static) -> Self {
        self.backoff = Arc::new(backoff);
        self
    }

    /// The latest planned start of an attempt, counted from the call; by default 60 s.
    ///
    /// A retry that would start later is not waited for: the failure is returned at once. How long
    /// the inner service then takes to get ready or to answer is bounded by the timeouts that stand
    /// in the stack.
    #[must_use]
    pub fn max_elapsed(mut self, limit: Duration) -> Self {
        self.max_elapsed = limit;
        self
    }

    /// How many bytes of a request body are kept so that it can be sent again; by default 64 KiB.
    ///
    /// A larger body goes through once, and is not retried.
    #[must_use]
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.replay_limit = bytes;
        self
    }

    /// How many bytes of a failed response's body are read to look for `invalid_token` before it is
    /// retried; by default 16 KiB. In an object that is longer it has to stand before that; a compressed
    /// one is not looked into. With 0, only the header is looked at.
    #[must_use]
    pub fn inspect_limit(mut self, bytes: usize) -> Self {
        self.inspect_limit = bytes;
        self
    }

    /// How many further bytes of a failed response's body are read and dropped before a retry, so
    /// that its connection can be used again; by default 256 KiB.
    #[must_use]
    pub fn drain_limit(mut self, bytes: usize) -> Self {
        self.drain_limit = bytes;
        self
    }

    /// How long reading a failed response's body may take in all; by default 1 s. It counts towards
    /// the wait.
    #[must_use]
    pub fn discard_timeout(mut self, limit: Duration) -> Self {
        self.discard_timeout = limit;
        self
    }

    /// Whether a request is sent again even where the server may have acted on it and acting twice
    /// may do harm; by default not.
    #[must_use]
    pub fn retry_non_idempotent(mut self, retry: bool) -> Self {
        self.retry_non_idempotent = retry;
        self
    }

    /// What retries are paid from; by default each layer has a [`RetryBudget::default`] of its own.
    ///
    /// A budget that is given here is shared by all layers made from this policy or a clone of it, and
    /// by whoever else has a clone of the budget.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Spending::Shared(budget);
        self
    }

    /// Lets every request retry, whatever others do. Then retries multiply an outage by the number of
    /// attempts.
    #[must_use]
    pub fn no_budget(mut self) -> Self {
        self.budget = Spending::Unlimited;
        self
    }

    /// Sends no attempt that the server's rate limit would refuse, as far as that can be known; by
    /// default there is no gate.
    ///
    /// One gate stands for one quota: give clones of it to all policies whose requests share it.
    #[must_use]
    pub fn rate_gate(mut self, gate: RateGate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Gives an `Idempotency-Key` to each request with a non-idempotent method (but CONNECT) that has
    /// none; by default none is added.
    ///
    /// All attempts of a request carry the same key, and another request has another. A request with a
    /// key may be repeated, unless its [`RequestOptions`] say otherwise.
    #[must_use]
    pub fn idempotency_key(mut self, key: IdempotencyKey) -> Self {
        self.idempotency_key = Some(key);
        self
    }

    /// Tells the server in the header `name` which attempt it sees; by default it is not told.
    ///
    /// A first attempt does not carry the header; the first retry carries `2`, the next one `3`.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_http_retry::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new().attempt_header(HeaderName::from_static("x-attempt"));
    /// ```
    #[must_use]
    pub fn attempt_header(mut self, name: HeaderName) -> Self {
        self.attempt_header = Some(name);
        self
    }

    /// Calls `callback` before each retry, when its wait begins; a later call replaces an earlier one.
    ///
    /// It runs within the future, in the span in which the service was called where attempts are recorded
    /// and otherwise in that of whoever polls, and should not block.
    ///
    /// ```
    /// use tower_http_retry::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new()
    ///     .on_retry(|event| {
    ///         let (attempt, kind, wait) = (event.attempt(), event.kind(), event.delay());
    ///         eprintln!("attempt {attempt} failed ({kind}); the next one is planned in {wait:?}");
    ///     })
    ///     .on_give_up(|event| eprintln!("{}: {}", event.kind(), event.give_up_reason()));
    /// ```
    #[must_use]
    pub fn on_retry(mut self, callback: impl Fn(&RetryEvent) + Send + Sync + 'static) -> Self {
        self.callbacks.on_retry = Some(Arc::new(callback));
        self
    }

    /// Calls `callback` whenever a failure is handed to the caller; a later call replaces an earlier
    /// one. As [`on_retry`](Self::on_retry), it should not block.
    #[must_use]
    pub fn on_give_up(mut self, callback: impl Fn(&GiveUpEvent) + Send + Sync + 'static) -> Self {
        self.callbacks.on_give_up = Some(Arc::new(callback));
        self
    }

    /// Asks `permit` before each retry that all allows up to the deadline, and gives up with
    /// [`GiveUpReason::Vetoed`] where it says no.
    ///
    /// It can only forbid. The budget, and an `invalid_token` in the failed response's body, come after it.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    /// use tower_http_retry::RetryPolicy;
    ///
    /// let draining = Arc::new(AtomicBool::new(false));
    /// let policy = RetryPolicy::new().retry_filter({
    ///     let draining = draining.clone();
    ///     move |_| !draining.load(Ordering::Relaxed)
    /// });
    /// ```
    #[must_use]
    pub fn retry_filter(
        mut self,
        permit: impl Fn(&RetryEvent) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.callbacks.retry_filter = Some(Arc::new(permit));
        self
    }

    /// The value of the label `client` on all metrics of this policy; by default `default`.
    ///
    /// Without the feature `metrics` nobody sees it.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.meter = Meter::new(name.into());
        self
    }

    /// The same policy with the budget of one layer.
    pub(crate) fn with_own_budget(self) -> Self {
        match self.budget {
            Spending::Default => self.budget(RetryBudget::default()),
            Spending::Shared(_) | Spending::Unlimited => self,
        }
    }

    /// What retries are paid from, if they have to be.
    pub(crate) fn spending(&self) -> Option<&RetryBudget> {
        match &self.budget {
            Spending::Shared(budget) => Some(budget),
            Spending::Default | Spending::Unlimited => None,
        }
    }

    /// How long after the call the last attempt of a request may start.
    pub(crate) fn deadline(&self, options: RequestOptions) -> Duration {
        options.max_elapsed.unwrap_or(self.max_elapsed)
    }

    /// How much of a request body is kept: nothing where it is not sent again.
    pub(crate) fn bytes_kept(&self, options: RequestOptions) -> usize {
        match options.max_retries.unwrap_or(self.max_retries) {
            0 => 0,
            _ => self.replay_limit,
        }
    }

    /// The delays of one request.
    pub(crate) fn delays(&self) -> Delays {
        self.backoff.delays()
    }

    /// What to do after a failure. `next_delay` and `pay`, which takes what a retry costs, are asked at
    /// most once, where it matters.
    pub(crate) fn decide(
        &self,
        failure: Failure,
        next_delay: impl FnOnce() -> Option<Duration>,
        pay: impl FnOnce() -> bool,
    ) -> Decision {
        if failure.invalid_token {
            return Decision::Stop(GiveUpReason::InvalidToken);
        }
        if failure.retryability == Retryability::Never {
            return Decision::Stop(GiveUpReason::NotRetryable);
        }
        let max_retries = failure.options.max_retries;
        if failure.retries >= max_retries.unwrap_or(self.max_retries) {
            return Decision::Stop(GiveUpReason::RetriesExhausted);
        }
        let Some(delay) = next_delay() else {
            return Decision::Stop(GiveUpReason::RetriesExhausted);
        };
        let repeatable = failure.may_be_repeated || self.retry_non_idempotent;
        if failure.retryability == Retryability::IfIdempotent && !repeatable {
            return Decision::Stop(GiveUpReason::NotIdempotent);
        }
        if !failure.is_replayable {
            return Decision::Stop(GiveUpReason::BodyNotReplayable);
        }
        let wait = failure.hint.unwrap_or_default().checked_add(delay);
        let start = wait.and_then(|wait| failure.elapsed.checked_add(wait));
        let wait = match (wait, start) {
            (Some(wait), Some(start)) if start <= self.deadline(failure.options) => wait,
            _ => return Decision::Stop(GiveUpReason::DeadlineExceeded),
        };
        let event = RetryEvent {
            failure: failure.reason,
            attempt: failure.retries.saturating_add(1),
            delay: wait,
        };
        let permit = self.callbacks.retry_filter.as_ref();
        if permit.is_some_and(|permit| !permit(&event)) {
            return Decision::Stop(GiveUpReason::Vetoed);
        }
        // Where the server set the time of the retry, or only renewed its connection, the retry is the
        // server's to bear.
        let rate_limited = failure.reason.status() == Some(StatusCode::TOO_MANY_REQUESTS);
        let free = failure.was_handed_back
            || rate_limited && failure.hint.is_some_and(|hint| !hint.is_zero());
        if !free && !pay() {
            return Decision::Stop(GiveUpReason::BudgetExhausted);
        }
        Decision::RetryAfter(wait)
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: fmt::Debug> fmt::Debug for RetryPolicy<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("classifier", &self.classifier)
            .field("max_retries", &self.max_retries)
            .field("max_elapsed", &self.max_elapsed)
            .field("replay_limit", &self.replay_limit)
            .field("inspect_limit", &self.inspect_limit)
            .field("drain_limit", &self.drain_limit)
            .field("discard_timeout", &self.discard_timeout)
            .field("retry_non_idempotent", &self.retry_non_idempotent)
            .field("budget", &self.budget)
            .field("gate", &self.gate)
            .field("idempotency_key", &self.idempotency_key)
            .field("attempt_header", &self.attempt_header)
            .field("callbacks", &self.callbacks)
            .finish_non_exhaustive()
    }
}

/// What the decision is made from: one failed attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// What the caller said of the request.
    pub(crate) options: RequestOptions,
    pub(crate) retryability: Retryability,
    /// A `WWW-Authenticate` header says so.
    pub(crate) invalid_token: bool,
    /// Retries made so far.
    pub(crate) retries: u32,
    pub(crate) may_be_repeated: bool,
    /// All of the request can be sent again.
    pub(crate) is_replayable: bool,
    /// The server renewed its connection, and has not looked at the request.
    pub(crate) was_handed_back: bool,
    /// The server's `Retry-After`.
    pub(crate) hint: Option<Duration>,
    /// From the call to the failure.
    pub(crate) elapsed: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Stop(GiveUpReason),
    /// Send it again that long after the failure.
    RetryAfter(Duration),
}

#[cfg(test)]
mod tests;
