use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower::BoxError;
use tower_http::classify::MakeClassifier;
use tower_service::Service;

use crate::{
    body::{ReplayBody, ResponseBody},
    classify::{ApiErrorsAsFailures, RetryableFailure},
    policy::RetryPolicy,
    retry::ResponseFuture,
};

/// An HTTP client service that retries what is worth retrying; made by
/// [`RetryLayer`](crate::RetryLayer).
///
/// `S` is the inner service, which sees requests with a [`ReplayBody`]; its error type is kept.
/// The first attempt is made by the instance of `S` that `poll_ready` made ready, each later one by
/// a clone that gets ready on its own first.
///
/// ```
/// use tower::Layer;
/// use tower_http_retry::{Retry, RetryLayer};
///
/// let mut service: Retry<&str> = RetryLayer::default().layer("an HTTP client");
/// *service.get_mut() = "another";
/// assert_eq!(*service.get_ref(), "another");
/// assert_eq!(service.into_inner(), "another");
/// ```
pub struct Retry<S, C = ApiErrorsAsFailures> {
    inner: S,
    policy: Arc<RetryPolicy<C>>,
}

impl<S, C> Retry<S, C> {
    pub(crate) fn new(inner: S, policy: Arc<RetryPolicy<C>>) -> Self {
        Self { inner, policy }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, to be changed in place.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service, unwrapped.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, C> Clone for Retry<S, C> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.policy.clone())
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
