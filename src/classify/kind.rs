//! The kinds of failures.

use std::fmt;

use http::StatusCode;

/// The kind of a failure.
///
/// [`NotProcessed`](Self::NotProcessed), [`Timeout`](Self::Timeout), [`Disconnected`](Self::Disconnected),
/// [`InvalidEndpoint`](Self::InvalidEndpoint) and [`Other`](Self::Other) describe errors of the inner
/// service. The following errors are recognized:
///
/// - [`std::io::Error`]
/// - the timeout errors of tower and tokio
/// - with the feature `hyper`, the errors of hyper-util's client, of hyper and of h2, and those of the
///   connectors of hyper-util, hyper-rustls and hyper-tls below that client
/// - a [`tower::BoxError`] that is one of these, or that has one of these in its chain of sources
///
/// A classifier cannot inspect an error of another type, such as `reqwest::Error`. For an inner service
/// with such an error, put `map_err(tower::BoxError::from)` between the service and the layer.
///
/// # Examples
///
/// ```
/// use tower_http_retry::FailureKind;
///
/// assert_eq!(FailureKind::GatewayTimeout.as_str(), "gateway_timeout");
/// assert_eq!(FailureKind::Custom("quota_exceeded").to_string(), "quota_exceeded");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// 400: arguments are missing or malformed.
    BadRequest,
    /// 401: not authenticated.
    Unauthorized,
    /// 403: authenticated, but not permitted.
    Forbidden,
    /// 404: no such endpoint.
    NotFound,
    /// 405: wrong method for this endpoint.
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
    /// The server did not process the request. No connection could be made, the request was cancelled
    /// before it was sent, or the server reported over HTTP/2 that it was not processed: with
    /// `REFUSED_STREAM`, or with a `GOAWAY` whose last stream is below that of the request
    /// ([RFC 9113 §8.7](https://www.rfc-editor.org/rfc/rfc9113#section-8.7)). Retried for every method.
    NotProcessed,
    /// No response in time. Retried if the request is idempotent.
    Timeout,
    /// The connection broke before the response was complete. Retried if the request is idempotent.
    Disconnected,
    /// No connection can be made to this endpoint: the URI has no host or an unsupported scheme, or the
    /// certificate of the server is not valid, or not trusted. Never retried. hyper-rustls and, with OpenSSL,
    /// hyper-tls report such a certificate. Any other error of a TLS handshake is [`NotProcessed`](Self::NotProcessed),
    /// because it may be temporary.
    InvalidEndpoint,
    /// Any other error. Never retried.
    Other,
    /// The kind of a user's own failure class, reported by
    /// [`RetryableFailure::failure_kind`](crate::RetryableFailure::failure_kind).
    ///
    /// The text becomes the `error.type` in telemetry. It should be in `snake_case`, and one of a small
    /// set.
    Custom(&'static str),
}

impl FailureKind {
    /// Returns the kind of a 4xx or 5xx status; `None` for any other status.
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

    /// Returns the kind as text in `snake_case`; for [`Custom`](Self::Custom), its text.
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
            Self::NotProcessed => "not_processed",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::InvalidEndpoint => "invalid_endpoint",
            Self::Other => "other",
            Self::Custom(text) => text,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
