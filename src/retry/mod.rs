//! The retry middleware.

mod discard;
mod future;
mod saved_head;
mod session;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower::BoxError;
use tower_http::classify::MakeClassifier;
use tower_layer::Layer;
use tower_service::Service;

pub use self::future::ResponseFuture;
use crate::{
    body::{ReplayBody, ResponseBody},
    budget::RetryBudget,
    classify::{ApiErrorsAsFailures, RetryableFailure},
    policy::RetryPolicy,
};

/// A layer that wraps HTTP client services in [`Retry`].
///
/// The layer and its services are cheap to clone and share one [`RetryPolicy`], its budget included.
///
/// # Examples
///
/// ```
/// use tower::ServiceBuilder;
/// use tower_http_retry::{RetryLayer, RetryPolicy};
///
/// let layer = RetryLayer::new(RetryPolicy::new().max_retries(2));
/// assert_eq!(layer.policy().config().max_retries, 2);
///
/// let stack = ServiceBuilder::new().layer(layer);
/// ```
pub struct RetryLayer<C = ApiErrorsAsFailures> {
    policy: Arc<RetryPolicy<C>>,
}

impl<C> RetryLayer<C> {
    /// Creates a new `RetryLayer` with the given policy.
    pub fn new(policy: RetryPolicy<C>) -> Self {
        let policy = resolve(policy);
        Self { policy }
    }

    /// Returns the policy. Its clones share the budget of this layer.
    pub fn policy(&self) -> &RetryPolicy<C> {
        &self.policy
    }

    /// Returns the retry budget, for example to export its balance; `None` if it is disabled.
    ///
    /// # Examples
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
        self.policy.config.budget()
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new(RetryPolicy::new())
    }
}

impl<C> From<RetryPolicy<C>> for RetryLayer<C> {
    fn from(policy: RetryPolicy<C>) -> Self {
        Self::new(policy)
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
        let policy = self.policy.clone();
        Retry { inner, policy }
    }
}

/// Middleware that retries failed HTTP requests. Created by [`RetryLayer`].
///
/// `S` is the inner service, which sees requests with a [`ReplayBody`]; its error type is kept. The
/// first attempt uses the instance of `S` that `poll_ready` readied. Each retry uses a clone, after its
/// own `poll_ready`.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tower_http_retry::{ReplayBody, Retry, RetryPolicy};
///
/// # #[tokio::main] async fn main() {
/// let client: Client<_, ReplayBody<Full<Bytes>>> =
///     Client::builder(TokioExecutor::new()).build_http();
/// let client = Retry::new(client, RetryPolicy::new().max_retries(5));
/// assert_eq!(client.policy().config().max_retries, 5);
/// # }
/// ```
pub struct Retry<S, C = ApiErrorsAsFailures> {
    inner: S,
    policy: Arc<RetryPolicy<C>>,
}

impl<C> Retry<(), C> {
    /// Returns a layer that wraps services in `Retry` with the given policy.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower::ServiceBuilder;
    /// use tower_http_retry::{Retry, RetryPolicy};
    ///
    /// let stack = ServiceBuilder::new().layer(Retry::layer(RetryPolicy::new()));
    /// ```
    pub fn layer(policy: RetryPolicy<C>) -> RetryLayer<C> {
        RetryLayer::new(policy)
    }
}

impl<S, C> Retry<S, C> {
    /// Creates a new `Retry` around `inner` with the given policy.
    pub fn new(inner: S, policy: RetryPolicy<C>) -> Self {
        let policy = resolve(policy);
        Self { inner, policy }
    }

    /// Returns the policy. Its clones share the budget of this service.
    pub fn policy(&self) -> &RetryPolicy<C> {
        &self.policy
    }

    /// Gets a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Gets a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Consumes `self`, returning the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// Gives the policy of one layer or service its budget.
fn resolve<C>(mut policy: RetryPolicy<C>) -> Arc<RetryPolicy<C>> {
    policy.config.resolve_budget();
    Arc::new(policy)
}

impl<S: Clone, C> Clone for Retry<S, C> {
    fn clone(&self) -> Self {
        let (inner, policy) = (self.inner.clone(), self.policy.clone());
        Self { inner, policy }
    }
}

impl<S: fmt::Debug, C: fmt::Debug> fmt::Debug for Retry<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("inner", &self.inner)
            .field("policy", &self.policy)
            .finish()
    }
}

impl<S, C, B, R> Service<Request<B>> for Retry<S, C>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    S::Error: fmt::Display + 'static,
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
    B: Body,
    B::Error: Into<BoxError>,
    R: Body,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, C, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture::new(&mut self.inner, self.policy.clone(), request)
    }
}
