//! What a setting is refused with.

use std::{error, fmt};

use http::StatusCode;

/// A status was named that is no failure, and so is never retried.
///
/// ```
/// use http::StatusCode;
/// use tower_http_retry::{Retryability, RetryPolicy};
///
/// let error = RetryPolicy::new()
///     .retry_status(StatusCode::OK, Retryability::Always)
///     .unwrap_err();
/// assert_eq!(error.to_string(), "200 OK is not a 4xx or 5xx status");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidStatus {
    pub(crate) status: StatusCode,
}

impl InvalidStatus {
    /// The status that was refused.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl fmt::Display for InvalidStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a 4xx or 5xx status", self.status)
    }
}

impl error::Error for InvalidStatus {}
