//! Failed responses as typed errors: the layer, the service, and a function for those who stack
//! neither.

mod error;

use std::{
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

pub use self::error::{ApiError, Error, TransportError};
use crate::{
    body::PeekedBody,
    classify::FailureKind,
    outcome::{OutcomeHandle, RetryOutcome},
    retry_after::retry_after,
};

/// Turns failed responses into errors: wraps a client in [`ErrorForStatus`].
///
/// It goes outside of the retry layer.
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

/// How much of a failed response's body is read, and for how long.
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
    /// A layer with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes of a failed response's body are read at the most; by default 64 KiB.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.limits.bytes = bytes;
        self
    }

    /// How long reading a failed response's body may take; by default 5 s.
    #[must_use]
    pub fn body_timeout(mut self, limit: Duration) -> Self {
        self.limits.time = limit;
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

/// A client whose failed responses are errors; made by [`ErrorForStatusLayer`].
///
/// 1xx, 2xx and 3xx pass untouched, and so does what is above 599. A 4xx or 5xx becomes [`Error::Api`],
/// with as much of its body as the limits allow; whatever is wrong with the body, the error is that of
/// the status. An inner error becomes [`Error::Transport`].
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
///     panic!("404 is a failure")
/// };
/// assert_eq!(error.message(), Some("No such account"));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ErrorForStatus<S> {
    inner: S,
    limits: Limits,
}

impl<S> ErrorForStatus<S> {
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
        let unsent = |error: S::Error| transport(error, Some(RetryOutcome::NOT_SENT));
        self.inner.poll_ready(cx).map_err(unsent)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // An inner error has no extensions to carry the outcome.
        let handle = request
            .extensions_mut()
            .get_or_insert_default::<OutcomeHandle>();
        let handle = handle.clone();
        handle.clear();
        ErrorForStatusFuture::new(self.inner.call(request), Some(handle), self.limits)
    }
}

/// `response` if it is a success, otherwise the typed error: [`ErrorForStatus`] for those who hold a
/// response and stack no layer. Reads within the default limits of [`ErrorForStatusLayer`].
///
/// # Errors
///
/// [`Error::Api`] where the status is a 4xx or 5xx.
///
/// # Panics
///
/// Where it has to wait for the body, outside of a tokio runtime with its timer enabled.
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
    let answered: Ready<Result<_, BoxError>> = ready(Ok(response));
    ErrorForStatusFuture::new(answered, None, Limits::default()).await
}

pin_project! {
    /// The future of [`ErrorForStatus`].
    ///
    /// # Panics
    ///
    /// Polled after completion; or, where it has to wait for a body, outside of a tokio runtime with
    /// its timer enabled.
    #[must_use = "futures do nothing unless polled"]
    pub struct ErrorForStatusFuture<F, R>
    where
        R: Body,
    {
        #[pin]
        state: State<F, R>,
        handle: Option<OutcomeHandle>,
        limits: Limits,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R>
    where
        R: Body,
    {
        // => Reading or Done
        Calling { #[pin] call: F },
        // => Done
        Reading { failed: Option<Box<FailedResponse<R>>>, #[pin] timeout: Option<Sleep> },
        Done,
    }
}

impl<F, R: Body> ErrorForStatusFuture<F, R> {
    fn new(call: F, handle: Option<OutcomeHandle>, limits: Limits) -> Self {
        let state = State::Calling { call };
        Self {
            state,
            handle,
            limits,
        }
    }
}

impl<F, R, E> Future for ErrorForStatusFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
    R: Body,
{
    type Output = Result<Response<R>, Error>;

    #[expect(
        clippy::panic,
        reason = "as every future that is polled after completion"
    )]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Calling { call } => match ready!(call.poll(cx)) {
                    Ok(response) if FailureKind::from_status(response.status()).is_some() => {
                        this.state.set(State::Reading {
                            failed: Some(Box::new(FailedResponse::new(response))),
                            timeout: None,
                        });
                        continue;
                    }
                    Ok(response) => Ok(response),
                    Err(error) => {
                        // A call that somebody around it gave up tells of itself when it is dropped.
                        this.state.set(State::Done);
                        let outcome = this.handle.as_ref().and_then(OutcomeHandle::get);
                        Err(transport(error, outcome))
                    }
                },
                StateProj::Reading {
                    failed,
                    mut timeout,
                } => {
                    if let Some(failed) = failed {
                        if failed.poll_read(cx, this.limits.bytes).is_pending() {
                            // Where there is nothing to wait for, there need not be a timer.
                            if timeout.is_none() {
                                timeout.set(Some(tokio::time::sleep(this.limits.time)));
                            }
                            if let Some(timeout) = timeout.as_pin_mut() {
                                ready!(timeout.poll(cx));
                            }
                        }
                    }
                    match failed.take() {
                        Some(failed) => Err(failed.into_error().into()),
                        None => continue,
                    }
                }
                StateProj::Done => panic!("ErrorForStatusFuture polled after completion"),
            };
            this.state.set(State::Done);
            return Poll::Ready(result);
        }
    }
}

impl<F, R: Body> fmt::Debug for ErrorForStatusFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorForStatusFuture")
            .finish_non_exhaustive()
    }
}

/// A response that becomes an error, while its body is read.
struct FailedResponse<R: Body> {
    parts: response::Parts,
    outcome: RetryOutcome,
    retry_after: Option<Duration>,
    peek: PeekedBody<R>,
}

impl<R: Body> FailedResponse<R> {
    fn new(response: Response<R>) -> Self {
        let outcome = RetryOutcome::from_response(&response);
        let (parts, body) = response.into_parts();
        Self {
            outcome,
            retry_after: retry_after(&parts.headers, SystemTime::now()),
            parts,
            peek: PeekedBody::new(body),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<()> {
        self.peek.poll_buffer(cx, limit)
    }

    fn into_error(self) -> ApiError {
        let cut = !self.peek.is_complete();
        let body = Bytes::from(self.peek.into_buffered());
        let response::Parts {
            status, headers, ..
        } = self.parts;
        ApiError::new(status, headers, body, cut, self.retry_after, self.outcome)
    }
}

fn transport<E: Into<BoxError>>(error: E, outcome: Option<RetryOutcome>) -> Error {
    TransportError::new(error.into(), outcome).into()
}
