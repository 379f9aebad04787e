//! What is kept of a request's head, so that each attempt gets the head that the caller made.
//!
//! A clone of the head costs an allocation for most of its headers. What nearly no request needs is
//! therefore kept as bytes, all of them in one buffer, from which the head is rebuilt when a retry is
//! made. The values of a rebuilt head are slices of that buffer.

use bytes::{Buf, Bytes};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts,
    uri,
};

use crate::{
    outcome::OutcomeHandle,
    policy::{RequestOptions, idempotency::IDEMPOTENCY_KEY},
};

/// The head of a request: method, URI, version, headers and extensions as the caller set them.
pub(crate) struct SavedHead {
    method: Method,
    version: Version,
    extensions: Extensions,
    /// The parts of the URI, then names and values of the headers, behind their lengths.
    text: Vec<u8>,
    headers: usize,
}

impl SavedHead {
    #[inline]
    pub(crate) fn keep<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        Self {
            method: request.method().clone(),
            version: request.version(),
            extensions: request.extensions().clone(),
            text: write(request.uri(), headers),
            headers: headers.len(),
        }
    }

    /// What waits should be small.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
    }

    /// The head again, exactly; `None` where that cannot be, because somebody has put a header together
    /// that `http` would not let through.
    pub(crate) fn rebuild(&self) -> Option<Parts> {
        let mut text = Text(Bytes::copy_from_slice(&self.text));
        let uri = text.uri()?;
        let headers = text.headers(self.headers)?;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = self.method.clone();
        parts.version = self.version;
        parts.extensions = self.extensions.clone();
        parts.uri = uri;
        parts.headers = headers;
        Some(parts)
    }

    /// Whether acting twice on the request does no harm: the caller's word where there is one,
    /// otherwise by its method, or by its `Idempotency-Key`.
    pub(crate) fn may_be_repeated(&self) -> bool {
        self.options()
            .repeatable
            .unwrap_or_else(|| self.method.is_idempotent() || self.has_idempotency_key())
    }

    /// What the caller says of the request.
    #[inline]
    pub(crate) fn options(&self) -> RequestOptions {
        RequestOptions::of(&self.extensions)
    }

    fn has_idempotency_key(&self) -> bool {
        let mut text = Text(Bytes::copy_from_slice(&self.text));
        // The URI comes first.
        let mut headers = std::iter::from_fn(|| text.take()).skip(2);
        headers.any(|(name, value, _)| {
            name == IDEMPOTENCY_KEY.as_str() && !value.trim_ascii().is_empty()
        })
    }

    /// Where the caller wants to read the outcome.
    #[inline]
    pub(crate) fn outcome_handle(&self) -> Option<&OutcomeHandle> {
        self.extensions.get()
    }
}

fn write(uri: &Uri, headers: &HeaderMap) -> Vec<u8> {
    // To guess is cheaper than to measure: a head that is longer grows its buffer.
    const URI: usize = 128;
    const HEADER: usize = 64;
    let mut text = Vec::with_capacity(URI + HEADER * headers.len());

    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", uri::Authority::as_str);
    let path = uri.path_and_query().map_or("", uri::PathAndQuery::as_str);
    put(&mut text, scheme, authority.as_bytes(), false);
    put(&mut text, "", path.as_bytes(), false);
    for (name, value) in headers {
        put(
            &mut text,
            name.as_str(),
            value.as_bytes(),
            value.is_sensitive(),
        );
    }
    text
}

/// Two parts behind their lengths: that of the first fits 16 bits, since `http` allows no longer name.
fn put(text: &mut Vec<u8>, first: &str, second: &[u8], marked: bool) {
    let lengths = (second.len() as u64) << 17 | (first.len() as u64) << 1 | u64::from(marked);
    text.extend_from_slice(&lengths.to_le_bytes());
    text.extend_from_slice(first.as_bytes());
    text.extend_from_slice(second);
}

/// What is left to be read of a head.
struct Text(Bytes);

impl Text {
    /// What one [`put`] has written.
    fn take(&mut self) -> Option<(Bytes, Bytes, bool)> {
        let lengths = u64::from_le_bytes(*self.0.first_chunk()?);
        let marked = lengths & 1 == 1;
        let first = usize::from((lengths >> 1) as u16);
        let second = usize::try_from(lengths >> 17).ok()?;
        self.0.advance(size_of_val(&lengths));
        if first.checked_add(second)? > self.0.len() {
            return None;
        }
        Some((self.0.split_to(first), self.0.split_to(second), marked))
    }

    fn uri(&mut self) -> Option<Uri> {
        let (scheme, authority, _) = self.take()?;
        let (_, path, _) = self.take()?;
        let mut parts = uri::Parts::default();
        if !scheme.is_empty() {
            parts.scheme = Some(uri::Scheme::try_from(&*scheme).ok()?);
        }
        if !authority.is_empty() {
            parts.authority = Some(uri::Authority::from_maybe_shared(authority).ok()?);
        }
        if !path.is_empty() {
            parts.path_and_query = Some(uri::PathAndQuery::from_maybe_shared(path).ok()?);
        }
        Uri::from_parts(parts).ok()
    }

    fn headers(&mut self, count: usize) -> Option<HeaderMap> {
        // There is room for more headers of one name than for names.
        let mut headers = HeaderMap::try_with_capacity(count).unwrap_or_default();
        for _ in 0..count {
            let (name, value, sensitive) = self.take()?;
            let name = HeaderName::from_bytes(&name).ok()?;
            let mut value = HeaderValue::from_maybe_shared(value).ok()?;
            value.set_sensitive(sensitive);
            headers.try_append(name, value).ok()?;
        }
        Some(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_may_be_repeated_follows_rfc_9110_the_key_and_the_callers_word() {
        let table: &[(&str, Option<&str>, Option<bool>, bool)] = &[
            ("GET", None, None, true),
            ("HEAD", None, None, true),
            ("OPTIONS", None, None, true),
            ("TRACE", None, None, true),
            ("QUERY", None, None, true),
            ("PUT", None, None, true),
            ("DELETE", None, None, true),
            ("POST", None, None, false),
            ("PATCH", None, None, false),
            ("CONNECT", None, None, false),
            ("get", None, None, false),
            ("PURGE", None, None, false),
            ("POST", Some("\"8e03978e\""), None, true),
            ("POST", Some(""), None, false),
            ("POST", Some(" "), None, false),
            ("POST", None, Some(true), true),
            ("POST", Some("8e03978e"), Some(false), false),
            ("GET", None, Some(false), false),
        ];
        for (method, key, mark, expected) in table {
            let mut request = Request::new(());
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
            if let Some(key) = key {
                let headers = request.headers_mut();
                headers.insert("idempotency-key", key.parse().unwrap());
            }
            if let Some(mark) = mark {
                let options = RequestOptions::new().idempotent(*mark);
                request.extensions_mut().insert(options);
            }
            let head = SavedHead::keep(&request);
            assert_eq!(
                head.may_be_repeated(),
                *expected,
                "{method} {key:?} {mark:?}"
            );
        }
    }

    #[test]
    fn as_many_headers_as_http_can_hold_are_rebuilt() {
        let mut request = Request::new(());
        let headers = request.headers_mut();
        for number in 0..24_000 {
            let name = HeaderName::try_from(format!("x-{number}")).unwrap();
            headers.insert(name, HeaderValue::from(number));
        }
        for number in 0..10_000 {
            headers.append("cookie", HeaderValue::from(number));
        }
        let rebuilt = SavedHead::keep(&request).rebuild().unwrap();
        assert_eq!(&rebuilt.headers, request.headers());
    }

    fn uris() -> impl Strategy<Value = Uri> {
        let authority =
            "([a-z]{1,8}(:[a-z0-9%]{0,6})?@)?([a-z0-9.-]{1,12}|\\[::1\\])(:[0-9]{1,5})?";
        let path = "(/[!-~&&[^#?\"<>`{}|\\^\\\\ ]]{0,20})(\\?[!-~&&[^#<>\"]]{0,20})?";
        prop_oneof![
            path,
            Just("*".to_owned()),
            authority,
            ("(https?|ftp|[a-z]{2,5})", authority, path)
                .prop_map(|(s, a, p)| format!("{s}://{a}{p}")),
            ("https?", authority).prop_map(|(s, a)| format!("{s}://{a}")),
        ]
        .prop_filter_map("an URI", |text| text.parse().ok())
    }

    fn requests() -> impl Strategy<Value = Request<()>> {
        let method = "[A-Za-z!#$%&'*+.^_`|~-]{1,30}";
        let version = prop_oneof![
            Just(Version::HTTP_09),
            Just(Version::HTTP_10),
            Just(Version::HTTP_11),
            Just(Version::HTTP_2),
            Just(Version::HTTP_3),
        ];
        let name = prop_oneof![
            "[a-z0-9-]{1,30}",
            Just("cookie".to_owned()),
            Just("accept".to_owned())
        ];
        let value = proptest::collection::vec(any::<u8>(), 0..40);
        let headers = proptest::collection::vec((name, value, any::<bool>()), 0..20);
        let extension = proptest::option::of(any::<u32>());
        (method, uris(), version, headers, extension).prop_map(
            |(method, uri, version, headers, extension)| {
                let mut request = Request::new(());
                *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
                *request.uri_mut() = uri;
                *request.version_mut() = version;
                for (name, value, sensitive) in headers {
                    let Ok(mut value) = HeaderValue::from_bytes(&value) else {
                        continue;
                    };
                    value.set_sensitive(sensitive);
                    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                    request.headers_mut().append(name, value);
                }
                extension.map(|it| request.extensions_mut().insert(it));
                request
            },
        )
    }

    proptest! {
        #[test]
        fn rebuilt_it_is_as_it_was(request in requests()) {
            let rebuilt = SavedHead::keep(&request).rebuild().expect("what http let through");
            let (original, ()) = request.into_parts();
            prop_assert_eq!(&rebuilt.method, &original.method);
            prop_assert_eq!(&rebuilt.uri, &original.uri);
            prop_assert_eq!(rebuilt.uri.to_string(), original.uri.to_string());
            prop_assert_eq!(rebuilt.version, original.version);
            let all = |headers: &HeaderMap| {
                let pairs = headers.iter().map(|(name, value)| {
                    (name.clone(), value.clone(), value.is_sensitive())
                });
                pairs.collect::<Vec<_>>()
            };
            prop_assert_eq!(all(&rebuilt.headers), all(&original.headers));
            prop_assert_eq!(rebuilt.extensions.get::<u32>(), original.extensions.get::<u32>());
        }
    }
}
