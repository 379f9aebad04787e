use std::time::Duration;

use http::{Extensions, HeaderName, HeaderValue, Method, Request};

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Overrides of the policy for one request, set in the request's extensions.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use std::time::Duration;
/// use tower_http_retry::RequestOptions;
///
/// // A POST that the server deduplicates.
/// let options = RequestOptions::new()
///     .idempotent(true)
///     .max_retries(5)
///     .max_elapsed(Duration::from_secs(10));
/// let request = Request::post("https://api.example/feed").extension(options).body(());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    pub(crate) idempotent: Option<bool>,
    pub(crate) max_retries: Option<u32>,
    pub(crate) max_elapsed: Option<Duration>,
}

impl RequestOptions {
    /// Creates options that override nothing.
    pub fn new() -> Self {
        Self::default()
    }

    #[inline]
    pub(crate) fn from_extensions(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or_default()
    }

    /// Sets whether this request is idempotent, whatever its method and headers. By default, an
    /// idempotent method or an `Idempotency-Key` header decides.
    ///
    /// A failure before the server processed the request (a 429, a refused connection) is retried
    /// either way.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = Some(idempotent);
        self
    }

    /// Sets the maximum number of retries of this request, in place of
    /// [`RetryPolicy::max_retries`](crate::RetryPolicy::max_retries).
    ///
    /// With 0, the request is sent once and its body is not buffered.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// Sets the deadline for starting the last attempt of this request, in place of
    /// [`RetryPolicy::max_elapsed`](crate::RetryPolicy::max_elapsed).
    #[must_use]
    pub fn max_elapsed(mut self, limit: Duration) -> Self {
        self.max_elapsed = Some(limit);
        self
    }
}

/// A generator of `Idempotency-Key` values (draft-ietf-httpapi-idempotency-key-header-07), set by
/// [`RetryPolicy::idempotency_key`](crate::RetryPolicy::idempotency_key).
///
/// All attempts of a request carry the same key. Retrying a POST with a key is safe only if the server
/// supports the header.
///
/// Closures implement this trait ([`idempotency_key_fn`]), and so does `MakeIdempotencyUuid` (feature `uuid`).
///
/// # Examples
///
/// ```
/// use http::{HeaderValue, Request};
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use tower_http_retry::{MakeIdempotencyKey, RetryPolicy};
///
/// /// Numbers the requests of one worker.
/// #[derive(Default)]
/// struct WorkerKey(AtomicU64);
///
/// impl MakeIdempotencyKey for WorkerKey {
///     fn make_idempotency_key(&self, _request: &Request<()>) -> Option<HeaderValue> {
///         let number = self.0.fetch_add(1, Ordering::Relaxed);
///         HeaderValue::try_from(format!("\"worker-7-{number}\"")).ok()
///     }
/// }
///
/// let policy = RetryPolicy::new().idempotency_key(WorkerKey::default());
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not generate idempotency keys",
    label = "not a generator of idempotency keys",
    note = "wrap a closure in `idempotency_key_fn`, or use `MakeIdempotencyUuid` (feature `uuid`)"
)]
pub trait MakeIdempotencyKey: Send + Sync {
    /// Returns the key for `request`, which is shown without its body; `None` to send it without a key.
    ///
    /// Called only for a request with a non-idempotent method, other than CONNECT, that has no key yet.
    fn make_idempotency_key(&self, request: &Request<()>) -> Option<HeaderValue>;
}

/// Returns a closure as a generator of idempotency keys, with the type of its argument inferred.
///
/// # Examples
///
/// ```
/// use http::HeaderValue;
/// use tower_http_retry::{RetryPolicy, idempotency_key_fn};
///
/// let make = idempotency_key_fn(|request| request.extensions().get::<HeaderValue>().cloned());
/// let policy = RetryPolicy::new().idempotency_key(make);
/// ```
pub fn idempotency_key_fn<F>(make: F) -> F
where
    F: Fn(&Request<()>) -> Option<HeaderValue> + Send + Sync,
{
    make
}

impl<F> MakeIdempotencyKey for F
where
    F: Fn(&Request<()>) -> Option<HeaderValue> + Send + Sync,
{
    fn make_idempotency_key(&self, request: &Request<()>) -> Option<HeaderValue> {
        self(request)
    }
}

/// A generator of `Idempotency-Key` values that are random UUIDs (version 4).
///
/// # Examples
///
/// ```
/// use tower_http_retry::{MakeIdempotencyUuid, RetryPolicy};
///
/// let policy = RetryPolicy::new().idempotency_key(MakeIdempotencyUuid::quoted());
/// ```
#[cfg(feature = "uuid")]
#[cfg_attr(docsrs, doc(cfg(feature = "uuid")))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MakeIdempotencyUuid {
    quoted: bool,
}

#[cfg(feature = "uuid")]
impl MakeIdempotencyUuid {
    /// Creates a generator of quoted strings, `"8e03978e-40d5-43dd-bc93-6894a57f9324"` with the quotes,
    /// as §2.1 of the draft requires.
    pub fn quoted() -> Self {
        Self { quoted: true }
    }

    /// Creates a generator of UUIDs without quotes, for servers that predate the draft.
    pub fn unquoted() -> Self {
        Self { quoted: false }
    }
}

#[cfg(feature = "uuid")]
impl MakeIdempotencyKey for MakeIdempotencyUuid {
    fn make_idempotency_key(&self, _request: &Request<()>) -> Option<HeaderValue> {
        let uuid = uuid::Uuid::new_v4();
        HeaderValue::try_from(match self.quoted {
            true => format!("\"{uuid}\""),
            false => uuid.to_string(),
        })
        .ok()
    }
}

/// Adds a key to `request` if it needs one and has none.
#[cold]
pub(crate) fn apply_key<B>(make: &dyn MakeIdempotencyKey, request: Request<B>) -> Request<B> {
    let method = request.method();
    let needs_none = method.is_idempotent() || method == Method::CONNECT;
    if needs_none || request.headers().contains_key(IDEMPOTENCY_KEY) {
        return request;
    }
    let (parts, body) = request.into_parts();
    let mut head = Request::from_parts(parts, ());
    if let Some(key) = make.make_idempotency_key(&head) {
        // Without room for the header, the request is sent without a key and is not idempotent.
        let _ = head.headers_mut().try_insert(IDEMPOTENCY_KEY, key);
    }
    head.map(|()| body)
}

/// Returns whether a request is idempotent: its [`RequestOptions`] decide, else its method (RFC 9110
/// §9.2.2), else an `Idempotency-Key` header.
pub(crate) fn is_idempotent(
    options: RequestOptions,
    method: &Method,
    has_key: impl FnOnce() -> bool,
) -> bool {
    options
        .idempotent
        .unwrap_or_else(|| method.is_idempotent() || has_key())
}

#[cfg(all(test, feature = "uuid"))]
mod tests {
    use super::*;

    #[test]
    fn uuid_keys_are_quoted_or_unquoted() {
        let request = Request::post("/").body(()).unwrap();
        for (make, quoted) in [
            (MakeIdempotencyUuid::quoted(), true),
            (MakeIdempotencyUuid::unquoted(), false),
        ] {
            let key = make.make_idempotency_key(&request).unwrap();
            let key = key.to_str().unwrap();
            let uuid = key.trim_matches('"');
            assert_eq!(key.len() - uuid.len(), if quoted { 2 } else { 0 });
            assert_eq!(uuid::Uuid::parse_str(uuid).unwrap().get_version_num(), 4);
        }
    }
}
