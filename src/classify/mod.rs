//! Failure classification.

pub(crate) mod invalid_token;
pub(crate) mod transport;

mod connect_errors;
mod kind;

pub use kind::FailureKind;

use std::{collections::BTreeMap, fmt, sync::Arc};

use http::{Request, Response, StatusCode};
use tower_http::classify::{
    ClassifiedResponse, ClassifyResponse, MakeClassifier, NeverClassifyEos,
    ServerErrorsFailureClass, StatusInRangeFailureClass,
};

use crate::invalid_config::InvalidConfig;

/// A classifier for the documented error contract of the Mondo (later Monzo) bank API.
///
/// | status | kind | retryability |
/// | --- | --- | --- |
/// | 400, 401, 403, 404, 405, 406 | one each | never |
/// | other 4xx | [`ClientError`](FailureKind::ClientError) | never |
/// | 429 | [`TooManyRequests`](FailureKind::TooManyRequests) | always: it was rejected before it was processed |
/// | 500, 504 | [`InternalServerError`](FailureKind::InternalServerError), [`GatewayTimeout`](FailureKind::GatewayTimeout) | if idempotent |
/// | other 5xx | [`ServerError`](FailureKind::ServerError) | never |
/// | 4xx or 5xx with `WWW-Authenticate: Bearer … error="invalid_token"` ([RFC 6750 §3](https://www.rfc-editor.org/rfc/rfc6750#section-3)), or the same for `DPoP` | [`InvalidToken`](FailureKind::InvalidToken) | never |
///
/// Any other status is a success. Errors of the inner service are classified as described at
/// [`FailureKind`].
///
/// It is both a [`ClassifyResponse`] and its own [`MakeClassifier`]. The same value can therefore be
/// given to this crate's layer and to tower-http's `TraceLayer`.
///
/// # Examples
///
/// ```
/// use http::StatusCode;
/// use tower::ServiceBuilder;
/// use tower_http::trace::TraceLayer;
/// use tower_http_retry::{ApiErrorsAsFailures, Retryability, RetryLayer, RetryPolicy};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let classifier = ApiErrorsAsFailures::new()
///     .classify_status(StatusCode::BAD_GATEWAY, Retryability::IfIdempotent)?;
///
/// let stack = ServiceBuilder::new()
///     .layer(RetryLayer::new(RetryPolicy::new().classifier(classifier.clone())))
///     // Below the retries, it traces each attempt.
///     .layer(TraceLayer::new(classifier));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ApiErrorsAsFailures {
    /// Differences from the contract. In an `Arc`, since the classifier is cloned for each attempt.
    overrides: Option<Arc<BTreeMap<StatusCode, Retryability>>>,
}

impl ApiErrorsAsFailures {
    /// Creates a classifier for the contract as documented.
    pub fn new() -> Self {
        Self { overrides: None }
    }

    /// Overrides the retryability of a status.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidConfig`] if `status` is not a 4xx or 5xx: no other status is a failure.
    pub fn classify_status(
        mut self,
        status: StatusCode,
        retryability: Retryability,
    ) -> Result<Self, InvalidConfig> {
        if FailureKind::from_status(status).is_none() {
            let key = format!("classify_status.{}", status.as_u16());
            return Err(InvalidConfig::new(key, "not a 4xx or 5xx status"));
        }
        let mut overrides = self.overrides.take().unwrap_or_default();
        let map = Arc::make_mut(&mut overrides);
        // Only differences are stored: classifiers that do the same are equal.
        if retryability == Self::default_retryability(status) {
            map.remove(&status);
        } else {
            map.insert(status, retryability);
        }
        self.overrides = (!overrides.is_empty()).then_some(overrides);
        Ok(self)
    }

    pub(crate) fn retryability(&self, status: StatusCode) -> Retryability {
        let overrides = self.overrides.as_ref();
        let overridden = overrides.and_then(|overrides| overrides.get(&status));
        overridden
            .copied()
            .unwrap_or_else(|| Self::default_retryability(status))
    }

    fn default_retryability(status: StatusCode) -> Retryability {
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
                FailureKind::NotProcessed => Retryability::Always,
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

/// The failure class of [`ApiErrorsAsFailures`].
///
/// # Examples
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_http::classify::{ClassifiedResponse, ClassifyResponse};
/// use tower_http_retry::{ApiErrorsAsFailures, ApiFailureClass, FailureKind, Retryability};
///
/// let mut response = Response::new(());
/// *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
/// let ClassifiedResponse::Ready(Err(class)) =
///     ApiErrorsAsFailures::new().classify_response(&response)
/// else {
///     panic!("429 is a failure")
/// };
/// let expected = ApiFailureClass::new(
///     FailureKind::TooManyRequests,
///     Some(StatusCode::TOO_MANY_REQUESTS),
///     Retryability::Always,
/// );
/// assert_eq!(class, expected);
/// assert_eq!(class.to_string(), "429 Too Many Requests");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiFailureClass {
    kind: FailureKind,
    status: Option<StatusCode>,
    retryability: Retryability,
}

impl ApiFailureClass {
    /// Creates a failure class, for a user's own classifier or for tests. `status` is `None` for an error
    /// of the inner service.
    pub fn new(kind: FailureKind, status: Option<StatusCode>, retryability: Retryability) -> Self {
        Self {
            kind,
            status,
            retryability,
        }
    }

    /// Returns the kind of the failure.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Returns the status of the response; `None` for an error of the inner service.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Returns whether the request may be retried.
    pub fn retryability(&self) -> Retryability {
        self.retryability
    }
}

/// Writes the status if there is one, otherwise the kind.
impl fmt::Display for ApiFailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => status.fmt(f),
            None => self.kind.fmt(f),
        }
    }
}

/// The conditions for a retry after a failure.
///
/// With the feature `serde` it can be deserialized, from `never`, `if_idempotent` and `always`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Retryability {
    /// Never retry.
    Never,
    /// Retry only if the request is idempotent: the server may have processed it
    /// ([RFC 9110 §9.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2)).
    IfIdempotent,
    /// Retry any request: the server has not processed it. This requires that one call of the inner
    /// service is one exchange with the server. A service that follows redirects, for example, belongs
    /// outside of the layer.
    Always,
}

/// A failure class that decides whether the request may be retried.
///
/// Any [`MakeClassifier`] whose failure class implements this trait can be given to
/// [`RetryPolicy::classifier`](crate::RetryPolicy::classifier).
///
/// tower-http's [`ServerErrorsFailureClass`] and [`StatusInRangeFailureClass`] implement it. They retry
/// a status as in the table of [`ApiErrorsAsFailures`], and never retry an error of the inner service.
/// With `ServerErrorsAsFailures`, a 429 is a success and is returned to the caller.
///
/// # Examples
///
/// ```
/// use tower_http::classify::{
///     ClassifyResponse, SharedClassifier, StatusInRangeAsFailures, StatusInRangeFailureClass,
/// };
/// use tower_http_retry::{FailureKind, Retryability, RetryableFailure, RetryPolicy};
///
/// enum TeapotFailure {
///     Teapot,
///     Transport,
/// }
///
/// impl RetryableFailure for TeapotFailure {
///     fn retryability(&self) -> Retryability {
///         match self {
///             // The teapot has rejected the request.
///             Self::Teapot => Retryability::Always,
///             // The server may have processed the request.
///             Self::Transport => Retryability::IfIdempotent,
///         }
///     }
///
///     fn failure_kind(&self) -> Option<FailureKind> {
///         match self {
///             Self::Teapot => Some(FailureKind::Custom("teapot")),
///             Self::Transport => None,
///         }
///     }
/// }
///
/// let classifier =
///     StatusInRangeAsFailures::new(418..=418).map_failure_class(|class| match class {
///         StatusInRangeFailureClass::StatusCode(_) => TeapotFailure::Teapot,
///         StatusInRangeFailureClass::Error(_) => TeapotFailure::Transport,
///     });
/// let policy = RetryPolicy::new().classifier(SharedClassifier::new(classifier));
/// ```
#[diagnostic::on_unimplemented(
    message = "the failure class `{Self}` does not decide whether a request may be retried",
    label = "`RetryableFailure` is not implemented for this failure class",
    note = "implement `RetryableFailure` for the failure class of your classifier, or map it to a class \
            that implements it with `ClassifyResponse::map_failure_class`"
)]
pub trait RetryableFailure {
    /// Returns whether the request may be retried.
    fn retryability(&self) -> Retryability;

    /// Returns the kind that is reported to callbacks and telemetry.
    ///
    /// `None`, the default, derives the kind from the status or from the error of the inner service.
    fn failure_kind(&self) -> Option<FailureKind> {
        None
    }
}

impl RetryableFailure for ApiFailureClass {
    fn retryability(&self) -> Retryability {
        self.retryability
    }

    fn failure_kind(&self) -> Option<FailureKind> {
        Some(self.kind)
    }
}

impl RetryableFailure for ServerErrorsFailureClass {
    fn retryability(&self) -> Retryability {
        match self {
            Self::StatusCode(status) => ApiErrorsAsFailures::default_retryability(*status),
            Self::Error(_) => Retryability::Never,
        }
    }
}

impl RetryableFailure for StatusInRangeFailureClass {
    fn retryability(&self) -> Retryability {
        match self {
            Self::StatusCode(status) => ApiErrorsAsFailures::default_retryability(*status),
            Self::Error(_) => Retryability::Never,
        }
    }
}

#[cfg(test)]
mod tests;
