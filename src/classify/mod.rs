//! What happened: the documented error contract, as a classifier. What to do about it is decided in
//! [`RetryPolicy`](crate::RetryPolicy).

pub(crate) mod invalid_token;
pub(crate) mod transport;

use std::{collections::BTreeMap, fmt, sync::Arc};

use http::{Request, Response, StatusCode};
use tower_http::classify::{
    ClassifiedResponse, ClassifyResponse, MakeClassifier, NeverClassifyEos,
    ServerErrorsFailureClass, StatusInRangeFailureClass,
};

use crate::invalid_config::InvalidConfig;

/// The documented contract of the Mondo (later Monzo) bank API, as a classifier.
///
/// | status | kind | retryability |
/// | --- | --- | --- |
/// | 400, 401, 403, 404, 405, 406, other 4xx | one each, or [`ClientError`](FailureKind::ClientError) | never |
/// | 429 | [`TooManyRequests`](FailureKind::TooManyRequests) | always: it was refused before it was processed |
/// | 500, 504 | [`InternalServerError`](FailureKind::InternalServerError), [`GatewayTimeout`](FailureKind::GatewayTimeout) | if idempotent |
/// | other 5xx | [`ServerError`](FailureKind::ServerError) | never |
/// | 4xx or 5xx with `WWW-Authenticate: … error="invalid_token"` (RFC 6750 §3) | [`InvalidToken`](FailureKind::InvalidToken) | never |
///
/// Every other status is a success. An inner error is read as [`FailureKind`] tells.
///
/// It is both a [`ClassifyResponse`] and its own [`MakeClassifier`], so that the same value drives
/// this crate's layer and tower-http's `TraceLayer`:
///
/// ```
/// use http::StatusCode;
/// use tower::ServiceBuilder;
/// use tower_http::trace::TraceLayer;
/// use tower_http_retry::{ApiErrorsAsFailures, Retryability, RetryLayer, RetryPolicy};
///
/// # fn main() -> Result<(), tower_http_retry::InvalidConfig> {
/// let contract = ApiErrorsAsFailures::new()
///     .classify_status(StatusCode::BAD_GATEWAY, Retryability::IfIdempotent)?;
///
/// let stack = ServiceBuilder::new()
///     .layer(RetryLayer::new(RetryPolicy::new().classifier(contract.clone())))
///     .layer(TraceLayer::new(contract)); // sees each attempt
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ApiErrorsAsFailures {
    /// What differs from the contract: shared, since each attempt has a classifier of its own.
    named: Option<Arc<BTreeMap<StatusCode, Retryability>>>,
}

impl ApiErrorsAsFailures {
    /// The contract as documented.
    pub fn new() -> Self {
        Self { named: None }
    }

    /// Says for one status whether it is to be retried, in place of the contract's own word.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] where `status` is not a 4xx or 5xx: no other status is a failure.
    pub fn classify_status(
        mut self,
        status: StatusCode,
        retryability: Retryability,
    ) -> Result<Self, InvalidConfig> {
        if FailureKind::from_status(status).is_none() {
            let key = format!("classify_status.{}", status.as_u16());
            return Err(InvalidConfig::new(key, "not a 4xx or 5xx status"));
        }
        let mut named = self.named.take().unwrap_or_default();
        let differing = Arc::make_mut(&mut named);
        if retryability == Self::contract(status) {
            differing.remove(&status);
        } else {
            differing.insert(status, retryability);
        }
        self.named = (!named.is_empty()).then_some(named);
        Ok(self)
    }

    /// What is said of a status.
    pub(crate) fn retryability(&self, status: StatusCode) -> Retryability {
        let named = self.named.as_ref().and_then(|named| named.get(&status));
        named.copied().unwrap_or_else(|| Self::contract(status))
    }

    fn contract(status: StatusCode) -> Retryability {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Retryability::Always,
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::GATEWAY_TIMEOUT => {
                Retryability::IfIdempotent
            }
            _ => Retryability::Never,
        }
    }
}

impl Default for ApiErrorsAsFailures {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ApiErrorsAsFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statuses = (400..600).filter_map(|code| StatusCode::from_u16(code).ok());
        let retried = statuses
            .map(|status| (status.as_u16(), self.retryability(status)))
            .filter(|(_, retryability)| *retryability != Retryability::Never);
        f.write_str("ApiErrorsAsFailures ")?;
        f.debug_map().entries(retried).finish()
    }
}

impl ClassifyResponse for ApiErrorsAsFailures {
    type FailureClass = ApiFailureClass;
    type ClassifyEos = NeverClassifyEos<ApiFailureClass>;

    fn classify_response<B>(
        self,
        response: &Response<B>,
    ) -> ClassifiedResponse<Self::FailureClass, Self::ClassifyEos> {
        let status = response.status();
        ClassifiedResponse::Ready(match FailureKind::from_status(status) {
            None => Ok(()),
            Some(_) if invalid_token::in_headers(response.headers()) => Err(ApiFailureClass {
                kind: FailureKind::InvalidToken,
                status: Some(status),
                retryability: Retryability::Never,
            }),
            Some(kind) => Err(ApiFailureClass {
                kind,
                status: Some(status),
                retryability: self.retryability(status),
            }),
        })
    }

    fn classify_error<E>(self, error: &E) -> Self::FailureClass
    where
        E: fmt::Display + 'static,
    {
        let kind = transport::classify_error(error);
        ApiFailureClass {
            kind,
            status: None,
            retryability: match kind {
                FailureKind::NotSent => Retryability::Always,
                FailureKind::Timeout | FailureKind::Disconnected => Retryability::IfIdempotent,
                _ => Retryability::Never,
            },
        }
    }
}

impl MakeClassifier for ApiErrorsAsFailures {
    type Classifier = Self;
    type FailureClass = ApiFailureClass;
    type ClassifyEos = NeverClassifyEos<ApiFailureClass>;

    fn make_classifier<B>(&self, _request: &Request<B>) -> Self {
        self.clone()
    }
}

/// A failure as [`ApiErrorsAsFailures`] reads it.
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_http::classify::{ClassifiedResponse, ClassifyResponse};
/// use tower_http_retry::{ApiErrorsAsFailures, FailureKind, Retryability};
///
/// let mut response = Response::new(());
/// *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
/// let ClassifiedResponse::Ready(Err(class)) =
///     ApiErrorsAsFailures::new().classify_response(&response)
/// else {
///     panic!("429 is a failure")
/// };
/// assert_eq!(class.kind(), FailureKind::TooManyRequests);
/// assert_eq!(class.retryability(), Retryability::Always);
/// assert_eq!(class.to_string(), "429 Too Many Requests");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiFailureClass {
    kind: FailureKind,
    status: Option<StatusCode>,
    retryability: Retryability,
}

impl ApiFailureClass {
    /// What failed.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The response's status; `None` for an inner error.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Whether the request may be sent again.
    pub fn retryability(&self) -> Retryability {
        self.retryability
    }
}

/// The status where there is one, otherwise the kind.
impl fmt::Display for ApiFailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => status.fmt(f),
            None => self.kind.fmt(f),
        }
    }
}

/// What failed, as the contract names it.
///
/// The last four are the transport's: they are read from the inner service's error where it is a
/// [`std::io::Error`], a timeout of tower or tokio, with the feature `hyper` an error of
/// hyper-util's client, of hyper or of h2, or a [`tower::BoxError`] whose chain of sources holds any
/// of them. A classifier cannot see into an error of another type: where the inner service has one
/// (`reqwest::Error`, say), put `map_err(tower::BoxError::from)` between it and the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// 400: missing arguments, or malformed.
    BadRequest,
    /// 401: not authenticated.
    Unauthorized,
    /// 403: authenticated, not permitted.
    Forbidden,
    /// 404: no such endpoint.
    NotFound,
    /// 405: wrong verb.
    MethodNotAllowed,
    /// 406: no content format that `Accept` allows.
    NotAcceptable,
    /// 429: over the rate limit.
    TooManyRequests,
    /// 500: a fault on the server.
    InternalServerError,
    /// 504: timed out on the server.
    GatewayTimeout,
    /// The access token is invalid or has expired.
    InvalidToken,
    /// Another 4xx: failed given the information provided.
    ClientError,
    /// Another 5xx: a fault on the server.
    ServerError,
    /// The request never reached the server: no connection could be made, it was cancelled before
    /// it was sent, or the server said over HTTP/2 that it was not processed (`REFUSED_STREAM`, or
    /// a stream above the last one of a `GOAWAY`; RFC 9113 §8.7). Retried whatever the method.
    NotSent,
    /// No answer in time. Retried where the request may be repeated.
    Timeout,
    /// The connection broke before the answer was complete. Retried where the request may be
    /// repeated.
    Disconnected,
    /// Any other error; never retried.
    Other,
}

impl FailureKind {
    /// The kind that a status stands for; `None` where the status is no failure.
    #[inline]
    pub(crate) fn from_status(status: StatusCode) -> Option<Self> {
        Some(match status {
            StatusCode::BAD_REQUEST => Self::BadRequest,
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::NOT_ACCEPTABLE => Self::NotAcceptable,
            StatusCode::TOO_MANY_REQUESTS => Self::TooManyRequests,
            StatusCode::INTERNAL_SERVER_ERROR => Self::InternalServerError,
            StatusCode::GATEWAY_TIMEOUT => Self::GatewayTimeout,
            status if status.is_client_error() => Self::ClientError,
            status if status.is_server_error() => Self::ServerError,
            _ => return None,
        })
    }

    /// The kind as text, in snake_case.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotAcceptable => "not_acceptable",
            Self::TooManyRequests => "too_many_requests",
            Self::InternalServerError => "internal_server_error",
            Self::GatewayTimeout => "gateway_timeout",
            Self::InvalidToken => "invalid_token",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::NotSent => "not_sent",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a failed request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retryability {
    /// Sending it again changes nothing.
    Never,
    /// The server may have acted on it: only where acting twice does no harm
    /// ([RFC 9110 §9.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2)).
    IfIdempotent,
    /// The server has not acted on it. That holds where one call of the inner service is one exchange
    /// with the server: what follows redirects, say, belongs outside of the layer.
    Always,
}

/// A failure class that says whether the request may be sent again.
///
/// Any [`MakeClassifier`] whose class implements it can drive the layer, through
/// [`RetryPolicy::classifier`](crate::RetryPolicy::classifier). tower-http's
/// [`ServerErrorsFailureClass`] and [`StatusInRangeFailureClass`] implement it: a status as in the
/// contract's table, an error never, so that no network fault is retried with them. With
/// `ServerErrorsAsFailures` a 429 is a success, and so it is returned.
///
/// ```
/// use http::StatusCode;
/// use tower_http::classify::{
///     ClassifyResponse, ServerErrorsFailureClass, SharedClassifier, StatusInRangeAsFailures,
///     StatusInRangeFailureClass,
/// };
/// use tower_http_retry::{Retryability, RetryableFailure, RetryPolicy};
///
/// enum Teapot {
///     Refused,
///     Broken,
/// }
///
/// impl RetryableFailure for Teapot {
///     fn retryability(&self) -> Retryability {
///         match self {
///             Self::Refused => Retryability::Always,
///             // Nobody knows whether the server acted on it.
///             Self::Broken => Retryability::IfIdempotent,
///         }
///     }
/// }
///
/// let teapots = StatusInRangeAsFailures::new(418..=418).map_failure_class(|class| match class {
///     StatusInRangeFailureClass::StatusCode(_) => Teapot::Refused,
///     StatusInRangeFailureClass::Error(_) => Teapot::Broken,
/// });
/// let policy = RetryPolicy::new().classifier(SharedClassifier::new(teapots));
///
/// let class = ServerErrorsFailureClass::StatusCode(StatusCode::GATEWAY_TIMEOUT);
/// assert_eq!(class.retryability(), Retryability::IfIdempotent);
/// ```
pub trait RetryableFailure {
    /// Whether a request that failed so may be sent again.
    fn retryability(&self) -> Retryability;
}

impl RetryableFailure for ApiFailureClass {
    fn retryability(&self) -> Retryability {
        self.retryability
    }
}

impl RetryableFailure for ServerErrorsFailureClass {
    fn retryability(&self) -> Retryability {
        match self {
            Self::StatusCode(status) => ApiErrorsAsFailures::new().retryability(*status),
            Self::Error(_) => Retryability::Never,
        }
    }
}

impl RetryableFailure for StatusInRangeFailureClass {
    fn retryability(&self) -> Retryability {
        match self {
            Self::StatusCode(status) => ApiErrorsAsFailures::new().retryability(*status),
            Self::Error(_) => Retryability::Never,
        }
    }
}

#[cfg(test)]
mod tests;
