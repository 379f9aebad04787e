//! The error for invalid settings.

use std::{borrow::Cow, error, fmt};

/// The error returned for an invalid setting.
///
/// [`key`](Self::key) names the setting; `Display` begins with it.
///
/// # Examples
///
/// ```
/// use http::StatusCode;
/// use tower_http_retry::{Retryability, RetryPolicy};
///
/// let error = RetryPolicy::new()
///     .classify_status(StatusCode::OK, Retryability::Always)
///     .unwrap_err();
/// assert_eq!(error.key(), "classify_status.200");
/// assert_eq!(error.to_string(), "classify_status.200: not a 4xx or 5xx status");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig {
    key: Cow<'static, str>,
    message: Cow<'static, str>,
}

impl InvalidConfig {
    pub(crate) fn new(
        key: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }

    /// Returns the key of the setting, for example `budget` or `classify_status.200`.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl error::Error for InvalidConfig {}
