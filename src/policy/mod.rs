//! The retry policy.

mod config;
pub(crate) mod decision;
pub(crate) mod idempotency;
#[cfg(feature = "serde")]
mod settings;

use std::{sync::Arc, time::Duration};

use http::{HeaderName, StatusCode};
use tower_http::classify::MakeClassifier;

use crate::{
    backoff::Backoff,
    budget::RetryBudget,
    classify::{ApiErrorsAsFailures, Retryability, RetryableFailure},
    events::{GiveUpEvent, RetryEvent},
    invalid_config::InvalidConfig,
    rate_gate::RateGate,
};

#[cfg(feature = "uuid")]
pub use self::idempotency::MakeIdempotencyUuid;
pub use self::{
    config::{BudgetConfig, OnGiveUp, OnRetry, RetryConfig, RetryFilter, Shared},
    idempotency::{MakeIdempotencyKey, RequestOptions, idempotency_key_fn},
};

/// Configures which requests are retried, when, and how often.
///
/// [`RetryConfig`] lists the settings with their defaults and the reasons for them. With the feature
/// `serde`, a policy is [deserialized](#deserialization) from a settings file.
///
/// The classifier `C` decides which responses and errors are failures, and whether each of them can be
/// retried. The default is [`ApiErrorsAsFailures`], the documented contract of the Mondo bank API: 429 is
/// retried for any method, 500 and 504 if the request is idempotent. Other statuses, including 502 and 503,
/// are not retried. [`FailureKind`](crate::FailureKind) lists the network errors that are.
///
/// # Examples
///
/// ```
/// use http::StatusCode;
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
///
/// # Deserialization
///
/// With the feature `serde`, `RetryPolicy` implements `Deserialize`. Each key is optional and has the
/// name of the method that it calls. Durations are strings in the format of `humantime` (`"250ms"`, `"1m 30s"`),
/// sizes are bytes. An unknown key is an error, and each error names its key.
///
/// | key | value |
/// | --- | --- |
/// | `max_retries` | number |
/// | `backoff` | `base` and `cap`, both durations |
/// | `max_elapsed`, `discard_timeout` | duration |
/// | `replay_limit`, `inspect_limit`, `drain_limit` | bytes |
/// | `inspect_token_errors`, `retry_non_idempotent` | boolean |
/// | `budget` | `capacity` and `cost`, both positive numbers; or `"disabled"` |
/// | `rate_gate` | boolean: a gate for all layers made from the policy |
/// | `idempotency_key` | `"quoted"` or `"unquoted"`: a UUID; requires the feature `uuid` |
/// | `attempt_header` | the name of the header |
/// | `client_name` | text |
/// | `classify_status` | a table from statuses to `"always"`, `"if_idempotent"` or `"never"` |
///
/// ```
/// # #[cfg(feature = "serde")]
/// # fn main() -> Result<(), toml::de::Error> {
/// use tower_http_retry::{RetryLayer, RetryPolicy};
///
/// let policy: RetryPolicy = toml::from_str(
///     r#"
///     max_retries = 5
///     max_elapsed = "20s"
///     backoff = { base = "50ms", cap = "2s" }
///     budget = { capacity = 500, cost = 14 }
///     classify_status = { 502 = "if_idempotent", 503 = "if_idempotent" }
///     "#,
/// )?;
/// let layer = RetryLayer::new(policy);
///
/// let error = toml::from_str::<RetryPolicy>("max_elapsed = \"soon\"").unwrap_err();
/// assert!(error.message().starts_with("max_elapsed: "));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "serde"))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug)]
pub struct RetryPolicy<C = ApiErrorsAsFailures> {
    pub(crate) classifier: C,
    pub(crate) config: RetryConfig,
}

impl RetryPolicy {
    /// Creates the policy of the documented contract, with the default settings.
    pub fn new() -> Self {
        Self {
            classifier: ApiErrorsAsFailures::new(),
            config: RetryConfig::default(),
        }
    }

    /// Overrides the retryability of a status, as
    /// [`ApiErrorsAsFailures::classify_status`] does. Default: 429 always, 500 and 504 if idempotent,
    /// other failures never.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidConfig`] if `status` is not a 4xx or 5xx.
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
    /// Sets the classifier, which decides what is a failure and which failures can be retried.
    ///
    /// Overrides made with [`classify_status`](RetryPolicy::classify_status) belong to the classifier
    /// that is replaced. A class that needs the end of the stream
    /// ([`RequiresEos`](tower_http::classify::ClassifiedResponse::RequiresEos)) is not a failure, and the
    /// response is returned. `invalid_token` prevents retries with every classifier.
    #[must_use]
    pub fn classifier<M>(self, classifier: M) -> RetryPolicy<M>
    where
        M: MakeClassifier,
        M::FailureClass: RetryableFailure,
    {
        RetryPolicy {
            classifier,
            config: self.config,
        }
    }

    /// Returns the settings.
    pub fn config(&self) -> &RetryConfig {
        &self.config
    }

    /// Gets a reference to the classifier.
    pub fn get_classifier(&self) -> &C {
        &self.classifier
    }

    /// Sets the maximum number of retries per request. Default: 3 (4 attempts).
    ///
    /// With 0, no request body is buffered.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.config.max_retries = retries;
        self
    }

    /// Sets the backoff strategy. Default: [`ExponentialBackoff::default`](crate::ExponentialBackoff).
    ///
    /// The server's `Retry-After` is added to each delay. Retries stop when the iterator ends.
    #[must_use]
    pub fn backoff(mut self, backoff: impl Backoff + 'static) -> Self {
        self.config.backoff = Arc::new(backoff);
        self
    }

    /// Sets the deadline for starting the last attempt, measured from `call`. Default: 60 s.
    ///
    /// If a retry would start later, the failure is returned at once, before the delay. The time that
    /// the inner service needs to become ready or to respond is not limited; use a timeout for that.
    #[must_use]
    pub fn max_elapsed(mut self, limit: Duration) -> Self {
        self.config.max_elapsed = limit;
        self
    }

    /// Sets how many bytes of a request body are buffered for replay. Default: 64 KiB.
    ///
    /// A request is not retried once more than this many bytes of its body have been sent. The data is
    /// copied to the buffer, which allocates at most this many bytes per request plus less than 4 KiB. A
    /// body of a single chunk is shared instead, along with the allocation that it is a slice of.
    #[must_use]
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.config.replay_limit = bytes;
        self
    }

    /// Sets how many bytes of a failed response's body are inspected for `invalid_token` before a
    /// retry. Default: 16 KiB.
    ///
    /// Longer bodies are inspected up to the limit; compressed ones are not inspected. With 0, only
    /// the header is.
    #[must_use]
    pub fn inspect_limit(mut self, bytes: usize) -> Self {
        self.config.inspect_limit = bytes;
        self
    }

    /// Sets whether the body of a 400, 401 or 403 is inspected for `invalid_token` too. Default: false.
    ///
    /// This applies if the status is not retryable; the response is returned unmodified either way. With
    /// `true`, a token error in its body is reported as [`GiveUpReason::InvalidToken`](crate::GiveUpReason::InvalidToken), for a layer
    /// outside that refreshes the token.
    #[must_use]
    pub fn inspect_token_errors(mut self, inspect: bool) -> Self {
        self.config.inspect_token_errors = inspect;
        self
    }

    /// Sets how many further bytes of a failed response's body are drained before a retry, which
    /// leaves the connection reusable. Default: 256 KiB.
    #[must_use]
    pub fn drain_limit(mut self, bytes: usize) -> Self {
        self.config.drain_limit = bytes;
        self
    }

    /// Sets the time limit for inspecting and draining a failed response. Default: 1 s.
    ///
    /// The time counts towards the delay before the retry.
    #[must_use]
    pub fn discard_timeout(mut self, limit: Duration) -> Self {
        self.config.discard_timeout = limit;
        self
    }

    /// Sets whether non-idempotent requests are retried, even if the server may have processed them.
    /// Default: false (RFC 9110 §9.2.2).
    #[must_use]
    pub fn retry_non_idempotent(mut self, retry: bool) -> Self {
        self.config.retry_non_idempotent = retry;
        self
    }

    /// Sets the retry budget. Default: each layer has its own [`RetryBudget::default`].
    ///
    /// The budget is shared by all layers made from this policy or its clones, and by all holders of a
    /// clone of the budget.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.config.budget = BudgetConfig::Shared(budget);
        self
    }

    /// Disables the retry budget. Not recommended: retries then multiply an outage by the number of
    /// attempts.
    #[must_use]
    pub fn no_budget(mut self) -> Self {
        self.config.budget = BudgetConfig::Disabled;
        self
    }

    /// Sets the rate gate, which queues attempts that would exceed the server's rate limit. Default:
    /// none.
    ///
    /// Use one gate per quota: give clones of it to all policies whose requests share the quota.
    #[must_use]
    pub fn rate_gate(mut self, gate: RateGate) -> Self {
        self.config.rate_gate = Some(gate);
        self
    }

    /// Removes the rate gate.
    #[must_use]
    pub fn no_rate_gate(mut self) -> Self {
        self.config.rate_gate = None;
        self
    }

    /// Adds an `Idempotency-Key` to each request that has none and whose method is not idempotent.
    /// Default: none is added.
    ///
    /// All attempts of a request carry the same key. A request with a key is idempotent unless its
    /// [`RequestOptions`] say otherwise. CONNECT requests get no key.
    #[must_use]
    pub fn idempotency_key(mut self, make: impl MakeIdempotencyKey + 'static) -> Self {
        self.config.idempotency_key = Some(Shared(Arc::new(make)));
        self
    }

    /// Adds no `Idempotency-Key`.
    #[must_use]
    pub fn no_idempotency_key(mut self) -> Self {
        self.config.idempotency_key = None;
        self
    }

    /// Sets a request header that carries the attempt number on retries. Default: none.
    ///
    /// The first attempt does not carry the header; the first retry carries `2`, the next one `3`.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_http_retry::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new().attempt_header(HeaderName::from_static("x-attempt"));
    /// ```
    #[must_use]
    pub fn attempt_header(mut self, name: HeaderName) -> Self {
        self.config.attempt_header = Some(name);
        self
    }

    /// Removes the attempt header.
    #[must_use]
    pub fn no_attempt_header(mut self) -> Self {
        self.config.attempt_header = None;
        self
    }

    /// Sets a callback that is called when a retry is scheduled, after the failed response was drained.
    /// Default: none.
    ///
    /// The retry may still be prevented, by the rate gate or an error in `poll_ready`;
    /// [`on_give_up`](Self::on_give_up) is called then too.
    ///
    /// The callback runs inside the future: in the span in which the service was called if attempts
    /// are recorded, otherwise in the span of the polling task. It must not block.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_http_retry::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new()
    ///     .on_retry(|event| {
    ///         let (attempt, kind, delay) = (event.attempt(), event.kind(), event.delay());
    ///         eprintln!("attempt {attempt} failed ({kind}), next attempt in {delay:?}");
    ///     })
    ///     .on_give_up(|event| {
    ///         eprintln!("{} {}: {}", event.method(), event.uri().path(), event.reason());
    ///     });
    /// ```
    #[must_use]
    pub fn on_retry(mut self, callback: impl Fn(&RetryEvent<'_>) + Send + Sync + 'static) -> Self {
        self.config.on_retry = Some(Shared(Arc::new(callback)));
        self
    }

    /// Sets a callback that is called for each failure that is returned to the caller. Default: none.
    ///
    /// As with [`on_retry`](Self::on_retry), the callback must not block.
    #[must_use]
    pub fn on_give_up(
        mut self,
        callback: impl Fn(&GiveUpEvent<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.config.on_give_up = Some(Shared(Arc::new(callback)));
        self
    }

    /// Sets a filter that is called before each retry that passed all checks up to the deadline.
    /// If it returns false, the layer gives up with
    /// [`GiveUpReason::Vetoed`](crate::GiveUpReason::Vetoed). Default: none.
    ///
    /// A filter can only forbid retries. The budget, and an `invalid_token` in the body of the failed
    /// response, are checked after it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    /// use tower_http_retry::RetryPolicy;
    ///
    /// let shutting_down = Arc::new(AtomicBool::new(false));
    /// let policy = RetryPolicy::new().retry_filter({
    ///     let shutting_down = shutting_down.clone();
    ///     move |_| !shutting_down.load(Ordering::Relaxed)
    /// });
    /// ```
    #[must_use]
    pub fn retry_filter(
        mut self,
        filter: impl Fn(&RetryEvent<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.config.retry_filter = Some(Shared(Arc::new(filter)));
        self
    }

    /// Removes the callbacks [`on_retry`](Self::on_retry) and [`on_give_up`](Self::on_give_up), and the
    /// [`retry_filter`](Self::retry_filter).
    #[must_use]
    pub fn no_callbacks(mut self) -> Self {
        self.config.on_retry = None;
        self.config.on_give_up = None;
        self.config.retry_filter = None;
        self
    }

    /// Sets the value of the label `client` of all metrics. Default: `default`.
    ///
    /// Unused without the feature `metrics`.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.config.client_name = name.into();
        self
    }
}

// Not derived: the type parameter would have to be written out.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
