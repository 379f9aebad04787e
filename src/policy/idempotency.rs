//! Keys by which a server recognises a request that comes twice.

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue, Method, Request};

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Where the `Idempotency-Key` of a request comes from that has none
/// (draft-ietf-httpapi-idempotency-key-header-07).
///
/// Each request gets a key of its own, which all its attempts carry. Only a server that knows the header
/// makes it safe to send a POST twice; one that does not will act twice.
///
/// ```
/// use http::HeaderValue;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use tower_http_retry::{IdempotencyKey, RetryPolicy};
///
/// let count = AtomicU64::new(0);
/// let keys = IdempotencyKey::from_fn(move || {
///     HeaderValue::try_from(format!("\"worker-7-{}\"", count.fetch_add(1, Ordering::Relaxed))).ok()
/// });
/// let policy = RetryPolicy::new().idempotency_key(keys);
/// ```
#[derive(Clone)]
pub struct IdempotencyKey {
    make: Arc<dyn Fn() -> Option<HeaderValue> + Send + Sync>,
}

impl IdempotencyKey {
    /// A UUID of version 4 as a quoted string, `"8e03978e-40d5-43dd-bc93-6894a57f9324"` with the
    /// quotes, as the draft's §2.1 writes it.
    #[cfg(feature = "uuid")]
    #[cfg_attr(docsrs, doc(cfg(feature = "uuid")))]
    pub fn uuid() -> Self {
        Self::from_fn(|| HeaderValue::try_from(format!("\"{}\"", uuid::Uuid::new_v4())).ok())
    }

    /// A UUID of version 4 without quotes, for servers that know the header from before the draft.
    #[cfg(feature = "uuid")]
    #[cfg_attr(docsrs, doc(cfg(feature = "uuid")))]
    pub fn bare_uuid() -> Self {
        Self::from_fn(|| HeaderValue::try_from(uuid::Uuid::new_v4().to_string()).ok())
    }

    /// The value that `make` gives, as it is; where it gives `None`, the request goes without a key, and
    /// is not repeated on its account.
    pub fn from_fn(make: impl Fn() -> Option<HeaderValue> + Send + Sync + 'static) -> Self {
        Self {
            make: Arc::new(make),
        }
    }

    /// Gives a key to a request that needs one and has none.
    pub(crate) fn add_to<B>(&self, request: &mut Request<B>) {
        let method = request.method();
        let needs_none = method.is_idempotent() || method == Method::CONNECT;
        if needs_none || request.headers().contains_key(IDEMPOTENCY_KEY) {
            return;
        }
        if let Some(key) = (self.make)() {
            // A head that is full goes without, and is not repeated.
            let _ = request.headers_mut().try_insert(IDEMPOTENCY_KEY, key);
        }
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKey").finish_non_exhaustive()
    }
}
