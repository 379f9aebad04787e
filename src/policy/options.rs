//! What the caller says of one request.

use std::time::Duration;

use http::Extensions;

/// What the caller says of one request, in the request's extensions.
///
/// ```
/// use tower_http_retry::RequestOptions;
///
/// use std::time::Duration;
///
/// // A POST that the server is known to recognise when it comes twice.
/// let mut request = http::Request::post("https://api.example/feed").body(()).unwrap();
/// let options = RequestOptions::new().idempotent(true).max_retries(5);
/// request.extensions_mut().insert(options.max_elapsed(Duration::from_secs(10)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    pub(crate) repeatable: Option<bool>,
    pub(crate) max_retries: Option<u32>,
    pub(crate) max_elapsed: Option<Duration>,
}

impl RequestOptions {
    /// Nothing is said: the policy decides.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is said in a request's extensions.
    #[inline]
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or_default()
    }

    /// Says that acting twice on this request does no harm (or that it does), whatever its method
    /// and headers. Unsaid, an idempotent method or an `Idempotency-Key` header decides. What the
    /// server has not acted on (a 429, a refused connection) is retried either way.
    #[must_use]
    pub fn idempotent(mut self, repeatable: bool) -> Self {
        self.repeatable = Some(repeatable);
        self
    }

    /// How often this request is sent again at the most, in place of
    /// [`RetryPolicy::max_retries`](crate::RetryPolicy::max_retries). The schedule may end earlier.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// The latest planned start of an attempt of this request, in place of
    /// [`RetryPolicy::max_elapsed`](crate::RetryPolicy::max_elapsed).
    #[must_use]
    pub fn max_elapsed(mut self, limit: Duration) -> Self {
        self.max_elapsed = Some(limit);
        self
    }
}
