use std::{fmt, sync::Arc};

use tower_layer::Layer;

use crate::{
    budget::RetryBudget, classify::ApiErrorsAsFailures, policy::RetryPolicy, retry::Retry,
};

/// Wraps an HTTP client service in [`Retry`].
///
/// The layer and the services it makes are cheap to clone and share one [`RetryPolicy`].
///
/// ```
/// use tower::ServiceBuilder;
/// use tower_http_retry::{RetryLayer, RetryPolicy};
///
/// let stack = ServiceBuilder::new().layer(RetryLayer::new(RetryPolicy::new()));
/// ```
pub struct RetryLayer<C = ApiErrorsAsFailures> {
    policy: Arc<RetryPolicy<C>>,
}

impl<C> RetryLayer<C> {
    /// A layer that follows `policy`.
    pub fn new(policy: RetryPolicy<C>) -> Self {
        Self {
            policy: Arc::new(policy.with_own_budget()),
        }
    }

    /// What the retries of this layer are paid from, to be watched; `None` without a budget.
    ///
    /// ```
    /// use tower_http_retry::{RetryLayer, RetryPolicy};
    ///
    /// let layer = RetryLayer::new(RetryPolicy::new());
    /// assert_eq!(layer.budget().and_then(|budget| budget.balance()), Some(50));
    /// let layer = RetryLayer::new(RetryPolicy::new().no_budget());
    /// assert!(layer.budget().is_none());
    /// ```
    pub fn budget(&self) -> Option<&RetryBudget> {
        self.policy.spending()
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new(RetryPolicy::new())
    }
}

impl<C> Clone for RetryLayer<C> {
    fn clone(&self) -> Self {
        let policy = self.policy.clone();
        Self { policy }
    }
}

impl<C: fmt::Debug> fmt::Debug for RetryLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RetryLayer");
        debug.field("policy", &self.policy).finish()
    }
}

impl<S, C> Layer<S> for RetryLayer<C> {
    type Service = Retry<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry::new(inner, self.policy.clone())
    }
}
