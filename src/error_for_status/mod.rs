//! Conversion of failed responses into typed errors: the layer, the service, and a free function for
//! use without a stack.

mod api_error;
mod error;
mod future;
mod redact;

use std::{
    future::ready,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

pub use self::{
    api_error::ApiError,
    error::{Error, RateGatedError, TransportError},
    future::ErrorForStatusFuture,
};
use crate::outcome::{OutcomeHandle, RetryOutcome};

/// A layer that applies [`ErrorForStatus`], which turns failed responses into errors.
///
/// Place it outside of the retry layer: above it in a [`ServiceBuilder`](tower::ServiceBuilder).
///
/// # Examples
///
/// ```
/// use tower::ServiceBuilder;
/// use tower_http_retry::{ErrorForStatusLayer, RetryLayer, RetryPolicy};
///
/// let stack = ServiceBuilder::new()
///     .layer(ErrorForStatusLayer::new())
///     .layer(RetryLayer::new(RetryPolicy::new()));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorForStatusLayer {
    limits: Limits,
}

/// The limits on reading a failed response's body.
#[derive(Clone, Copy, Debug)]
struct Limits {
    bytes: usize,
    time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 * 1024,
            time: Duration::from_secs(5),
        }
    }
}

impl ErrorForStatusLayer {
    /// Creates a layer with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of bytes kept of a failed response's body. The default is 64 KiB.
    ///
    /// If the length of the body is unknown, one more frame may be read and dropped, to distinguish a
    /// body that just fits from a longer one ([`ApiError::is_body_truncated`]).
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.limits.bytes = bytes;
        self
    }

    /// Sets the maximum time spent reading a failed response's body. The default is 5 s.
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.limits.time = timeout;
        self
    }
}

impl<S> Layer<S> for ErrorForStatusLayer {
    type Service = ErrorForStatus<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let limits = self.limits;
        ErrorForStatus { inner, limits }
    }
}

/// Middleware that turns 4xx and 5xx responses into errors, created by [`ErrorForStatusLayer`].
///
/// A 4xx or 5xx response becomes [`Error::Api`], with as much of its body as the limits allow. A body
/// that is truncated, stalled, malformed or interrupted does not change the kind of error. A 429 that
/// the local rate gate created becomes [`Error::RateGated`], and an error of the inner service becomes
/// [`Error::Transport`]. All other responses pass through unchanged.
///
/// # Examples
///
/// ```
/// use http::{Request, Response, StatusCode};
/// use http_body_util::Full;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_http_retry::{Error, ErrorForStatusLayer};
///
/// # #[tokio::main] async fn main() {
/// let inner = service_fn(async |_: Request<()>| {
///     let mut response = Response::new(Full::<bytes::Bytes>::from(r#"{"message":"No such account"}"#));
///     *response.status_mut() = StatusCode::NOT_FOUND;
///     Ok::<_, std::io::Error>(response)
/// });
/// let client = ErrorForStatusLayer::new().body_limit(1024).layer(inner);
/// let Err(Error::Api(error)) = client.oneshot(Request::new(())).await else {
///     panic!("expected an API error")
/// };
/// assert_eq!(error.message(), Some("No such account"));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ErrorForStatus<S> {
    inner: S,
    limits: Limits,
}

impl ErrorForStatus<()> {
    /// Returns a layer that wraps services in `ErrorForStatus`, with the default limits.
    pub fn layer() -> ErrorForStatusLayer {
        ErrorForStatusLayer::new()
    }
}

impl<S> ErrorForStatus<S> {
    /// Creates a new `ErrorForStatus` around `inner`, with the default limits.
    pub fn new(inner: S) -> Self {
        ErrorForStatusLayer::new().layer(inner)
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Consumes `self` and returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B, R> Service<Request<B>> for ErrorForStatus<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body,
{
    type Response = Response<R>;
    type Error = Error;
    type Future = ErrorForStatusFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let not_ready = |error: S::Error| {
            TransportError::new(error.into(), Some(RetryOutcome::NOT_SENT)).into()
        };
        self.inner.poll_ready(cx).map_err(not_ready)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // An inner error has no extensions that could carry the outcome.
        let handle = request
            .extensions_mut()
            .get_or_insert_default::<OutcomeHandle>();
        let handle = handle.clone();
        handle.clear();
        ErrorForStatusFuture::new(self.inner.call(request), Some(handle), self.limits)
    }
}

/// Returns `response` if it is not a failure, or else the typed error, for use without the layer.
///
/// The body is read within the default limits of [`ErrorForStatusLayer`].
///
/// # Errors
///
/// Returns [`Error::Api`] if the status is a 4xx or 5xx, or [`Error::RateGated`] if the response is a
/// 429 that the local rate gate created.
///
/// # Panics
///
/// Panics if the body is not ready at once and there is no tokio runtime with its timer enabled.
///
/// # Examples
///
/// ```
/// use http::{Response, StatusCode};
/// use http_body_util::Full;
/// use tower_http_retry::{FailureKind, error_for_status};
///
/// # #[tokio::main] async fn main() {
/// let mut response = Response::new(Full::<bytes::Bytes>::from(r#"{"error":"invalid_token"}"#));
/// *response.status_mut() = StatusCode::UNAUTHORIZED;
/// let error = error_for_status(response).await.unwrap_err();
/// assert_eq!(error.kind(), FailureKind::InvalidToken);
/// # }
/// ```
pub async fn error_for_status<R: Body>(response: Response<R>) -> Result<Response<R>, Error> {
    let call = ready(Ok::<_, BoxError>(response));
    ErrorForStatusFuture::new(call, None, Limits::default()).await
}
