use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use http::HeaderName;

use super::idempotency::{MakeIdempotencyKey, RequestOptions};
use crate::{
    backoff::{Backoff, ExponentialBackoff},
    budget::RetryBudget,
    events::{GiveUpEvent, RetryEvent},
    rate_gate::RateGate,
};

/// The settings of a [`RetryPolicy`](crate::RetryPolicy), returned by
/// [`RetryPolicy::config`](crate::RetryPolicy::config).
///
/// Each field is set by the method of `RetryPolicy` with the same name, which describes it. The
/// classifier is not among them.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_http_retry::RetryPolicy;
///
/// let policy = RetryPolicy::new().max_retries(5);
/// assert_eq!(policy.config().max_retries, 5);
/// assert_eq!(policy.config().max_elapsed, Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RetryConfig {
    /// Maximum number of retries per request. Default: 3 (4 attempts); AWS SDKs, .NET and gRPC use
    /// between 2 and 4.
    pub max_retries: u32,
    /// Backoff strategy. Default: full jitter, 0 to 100 ms · 2ⁿ, at most 10 s; AWS, "Exponential
    /// Backoff And Jitter" (2015).
    pub backoff: Arc<dyn Backoff>,
    /// Deadline for starting the last attempt, measured from `call`. Default: 60 s; longer waits belong
    /// in a job queue.
    pub max_elapsed: Duration,
    /// Maximum number of bytes of a request body that are buffered for replay. Default: 64 KiB, as in
    /// linkerd2-proxy.
    pub replay_limit: usize,
    /// Maximum number of bytes of a failed response that are inspected. Default: 16 KiB; an error
    /// object is small.
    pub inspect_limit: usize,
    /// Whether a 400, 401 or 403 is inspected for `invalid_token` too. Default: false; the status alone
    /// prevents a retry.
    pub inspect_token_errors: bool,
    /// Maximum number of further bytes of a failed response that are drained. Default: 256 KiB; a
    /// drained response leaves its connection reusable.
    pub drain_limit: usize,
    /// Time limit for inspecting and draining a failed response. Default: 1 s; a stalled body must not
    /// delay a retry.
    pub discard_timeout: Duration,
    /// Whether non-idempotent requests are retried. Default: false, RFC 9110 §9.2.2.
    pub retry_non_idempotent: bool,
    /// Retry budget. Default: one per layer with a capacity of 50 and a cost of 10, chosen with the
    /// example `storm`.
    pub budget: BudgetConfig,
    /// Rate gate. Default: none; the layer cannot know which clients share a quota.
    pub rate_gate: Option<RateGate>,
    /// Generator of `Idempotency-Key` values. Default: none; only the user knows whether the server
    /// supports the header.
    pub idempotency_key: Option<Shared<dyn MakeIdempotencyKey>>,
    /// Request header that carries the attempt number on retries. Default: none.
    pub attempt_header: Option<HeaderName>,
    /// Callback before each retry. Default: none.
    pub on_retry: Option<Shared<OnRetry>>,
    /// Callback for each failure that is returned to the caller. Default: none.
    pub on_give_up: Option<Shared<OnGiveUp>>,
    /// Filter that can veto a retry. Default: none.
    pub retry_filter: Option<Shared<RetryFilter>>,
    /// Value of the label `client` of all metrics. Default: `default`.
    pub client_name: Arc<str>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_retries: 3,
            backoff: Arc::new(ExponentialBackoff::default()),
            max_elapsed: Duration::from_secs(60),
            replay_limit: 64 * 1024,
            inspect_limit: 16 * 1024,
            inspect_token_errors: false,
            drain_limit: 256 * 1024,
            discard_timeout: Duration::from_secs(1),
            retry_non_idempotent: false,
            budget: BudgetConfig::PerLayer,
            rate_gate: None,
            idempotency_key: None,
            attempt_header: None,
            on_retry: None,
            on_give_up: None,
            retry_filter: None,
            client_name: "default".into(),
        }
    }
}

impl RetryConfig {
    /// Creates the budget of a layer if the configuration requests one per layer.
    pub(crate) fn resolve_budget(&mut self) {
        if let BudgetConfig::PerLayer = self.budget {
            self.budget = BudgetConfig::Shared(RetryBudget::default());
        }
    }

    /// Returns the budget; `None` if it is disabled or not created yet.
    #[inline]
    pub(crate) fn budget(&self) -> Option<&RetryBudget> {
        match &self.budget {
            BudgetConfig::Shared(budget) => Some(budget),
            BudgetConfig::PerLayer | BudgetConfig::Disabled => None,
        }
    }

    pub(crate) fn max_retries_for(&self, options: RequestOptions) -> u32 {
        options.max_retries.unwrap_or(self.max_retries)
    }

    pub(crate) fn max_elapsed_for(&self, options: RequestOptions) -> Duration {
        options.max_elapsed.unwrap_or(self.max_elapsed)
    }

    /// Returns the effective replay limit: 0 if the request is never retried.
    pub(crate) fn replay_limit_for(&self, options: RequestOptions) -> usize {
        match self.max_retries_for(options) {
            0 => 0,
            _ => self.replay_limit,
        }
    }
}

/// The source of the retry budget.
///
/// # Examples
///
/// ```
/// use tower_http_retry::{BudgetConfig, RetryPolicy};
///
/// let policy = RetryPolicy::new();
/// assert!(matches!(policy.config().budget, BudgetConfig::PerLayer));
/// let policy = policy.no_budget();
/// assert!(matches!(policy.config().budget, BudgetConfig::Disabled));
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum BudgetConfig {
    /// Each layer has its own [`RetryBudget::default`].
    #[default]
    PerLayer,
    /// All layers made from the policy share this budget.
    Shared(RetryBudget),
    /// Retries are not limited by a budget.
    Disabled,
}

/// A callback set by [`RetryPolicy::on_retry`](crate::RetryPolicy::on_retry).
pub type OnRetry = dyn Fn(&RetryEvent<'_>) + Send + Sync;

/// A callback set by [`RetryPolicy::on_give_up`](crate::RetryPolicy::on_give_up).
pub type OnGiveUp = dyn Fn(&GiveUpEvent<'_>) + Send + Sync;

/// A filter set by [`RetryPolicy::retry_filter`](crate::RetryPolicy::retry_filter).
pub type RetryFilter = dyn Fn(&RetryEvent<'_>) -> bool + Send + Sync;

/// A callback or a generator that the clones of a policy share. `Debug` does not show its content.
///
/// # Examples
///
/// ```
/// use tower_http_retry::{RetryEvent, RetryPolicy};
///
/// fn allows(policy: &RetryPolicy, event: &RetryEvent<'_>) -> bool {
///     let filter = policy.config().retry_filter.as_ref();
///     filter.is_none_or(|filter| filter(event))
/// }
/// ```
pub struct Shared<T: ?Sized>(pub(crate) Arc<T>);

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
