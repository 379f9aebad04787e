//! A compact copy of a request head, from which retries are rebuilt.
//!
//! Cloning a head costs an allocation for most of its headers. Retries are rare, so the head is encoded
//! into one buffer instead, and decoded when a retry is sent. The values of a rebuilt head are slices of
//! one copy of that buffer.

use std::error::Error;

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts,
    uri,
};

use crate::{
    events::{Cause, Failure, LazyUri, RebuildUri},
    outcome::OutcomeHandle,
    policy::{
        RequestOptions,
        idempotency::{self, IDEMPOTENCY_KEY},
    },
};

/// The head of a request: method, URI, version, headers and extensions as the caller set them.
pub(super) struct SavedHead {
    method: Method,
    version: Version,
    extensions: Extensions,
    /// Two pairs with the parts of the URI, then a pair of name and value per header.
    encoded: Vec<u8>,
    header_count: usize,
}

impl SavedHead {
    #[inline]
    pub(super) fn from_request<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        Self {
            method: request.method().clone(),
            version: request.version(),
            extensions: request.extensions().clone(),
            encoded: encode(request.uri(), headers),
            header_count: headers.len(),
        }
    }

    /// Frees unused capacity, for a request that is going to wait.
    pub(super) fn shrink_to_fit(&mut self) {
        self.encoded.shrink_to_fit();
    }

    /// Returns whether [`rebuild`](Self::rebuild) succeeds. It does not if a header value contains
    /// bytes that `http` does not allow (`HeaderValue::from_maybe_shared_unchecked`), or if the names of
    /// thousands of headers collide.
    pub(super) fn can_be_rebuilt(&self) -> bool {
        let mut headers = self.headers();
        let valid = |value: &[u8]| {
            let mut bytes = value.iter();
            bytes.all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
        };
        // `HeaderMap` is full at 24 576 names, or earlier if many of them collide. Below this number it has
        // room even then.
        const MAX_UNCHECKED_HEADERS: usize = 1000;

        let has_room = || {
            self.header_count <= MAX_UNCHECKED_HEADERS
                || decode_headers(&Bytes::copy_from_slice(&self.encoded), self.header_count)
                    .is_some()
        };
        headers.all(|pair| valid(pair.second))
            && has_room()
            && decode_uri(&self.encoded, Bytes::copy_from_slice).is_some()
    }

    /// Rebuilds the head; `None` if it is not [valid](Self::can_be_rebuilt).
    pub(super) fn rebuild(&self) -> Option<Parts> {
        let encoded = Bytes::copy_from_slice(&self.encoded);
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.uri = decode_uri(&encoded, |part| encoded.slice_ref(part))?;
        parts.headers = decode_headers(&encoded, self.header_count)?;
        parts.method = self.method.clone();
        parts.version = self.version;
        parts.extensions = self.extensions.clone();
        Some(parts)
    }

    /// Creates the description of a failure of this request.
    pub(super) fn failure<'a>(
        &'a self,
        cause: Cause,
        headers: Option<&'a HeaderMap>,
        error: Option<&'a (dyn Error + 'static)>,
    ) -> Failure<'a> {
        Failure {
            method: &self.method,
            uri: LazyUri::deferred(self),
            cause,
            headers,
            error,
        }
    }

    /// Returns whether the request is idempotent: `RequestOptions`, else method, else
    /// `Idempotency-Key`.
    pub(super) fn is_idempotent(&self) -> bool {
        idempotency::is_idempotent(self.options(), &self.method, || {
            self.headers().any(|pair| {
                pair.first == IDEMPOTENCY_KEY.as_str().as_bytes()
                    && !pair.second.trim_ascii().is_empty()
            })
        })
    }

    #[inline]
    pub(super) fn options(&self) -> RequestOptions {
        RequestOptions::from_extensions(&self.extensions)
    }

    #[inline]
    pub(super) fn outcome_handle(&self) -> Option<&OutcomeHandle> {
        self.extensions.get()
    }

    fn headers(&self) -> impl Iterator<Item = Pair<'_>> {
        Decoder(&self.encoded).skip(URI_PAIRS)
    }
}

impl RebuildUri for SavedHead {
    fn rebuild_uri(&self) -> Uri {
        decode_uri(&self.encoded, Bytes::copy_from_slice).unwrap_or_default()
    }
}

const URI_PAIRS: usize = 2;

fn encode(uri: &Uri, headers: &HeaderMap) -> Vec<u8> {
    // PERF: estimating the capacity is cheaper than measuring it (bench `overhead`, GET).
    const URI: usize = 128;
    const HEADER: usize = 64;
    let mut encoded = Vec::with_capacity(URI + HEADER * headers.len());

    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", uri::Authority::as_str);
    let path = match uri.path() {
        // `PathAndQuery::as_str` shows an empty path as "/".
        "" => "",
        _ => uri.path_and_query().map_or("", uri::PathAndQuery::as_str),
    };
    encode_pair(&mut encoded, scheme, authority.as_bytes(), false);
    encode_pair(&mut encoded, "", path.as_bytes(), false);
    for (name, value) in headers {
        let sensitive = value.is_sensitive();
        encode_pair(&mut encoded, name.as_str(), value.as_bytes(), sensitive);
    }
    encoded
}

/// Appends a length-prefixed pair. `http` limits header names to 16 bits.
fn encode_pair(encoded: &mut Vec<u8>, first: &str, second: &[u8], sensitive: bool) {
    let lengths = (second.len() as u64) << 17 | (first.len() as u64) << 1 | u64::from(sensitive);
    encoded.extend_from_slice(&lengths.to_le_bytes());
    encoded.extend_from_slice(first.as_bytes());
    encoded.extend_from_slice(second);
}

/// The pairs of an encoded head.
struct Decoder<'a>(&'a [u8]);

struct Pair<'a> {
    first: &'a [u8],
    second: &'a [u8],
    sensitive: bool,
}

impl<'a> Iterator for Decoder<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Pair<'a>> {
        let (lengths, rest) = self.0.split_first_chunk()?;
        let lengths = u64::from_le_bytes(*lengths);
        let (first, rest) = rest.split_at_checked(usize::from((lengths >> 1) as u16))?;
        let second = usize::try_from(lengths >> 17).ok()?;
        let (second, rest) = rest.split_at_checked(second)?;
        self.0 = rest;
        Some(Pair {
            first,
            second,
            sensitive: lengths & 1 == 1,
        })
    }
}

/// `share` turns a part of the encoded head into `Bytes`.
fn decode_uri(encoded: &[u8], share: impl Fn(&[u8]) -> Bytes) -> Option<Uri> {
    let mut pairs = Decoder(encoded);
    let (start, end) = (pairs.next()?, pairs.next()?);
    let mut parts = uri::Parts::default();
    if !start.first.is_empty() {
        parts.scheme = Some(uri::Scheme::try_from(start.first).ok()?);
    }
    if !start.second.is_empty() {
        let authority = share(start.second);
        parts.authority = Some(uri::Authority::from_maybe_shared(authority).ok()?);
    }
    if !end.second.is_empty() {
        let path = share(end.second);
        parts.path_and_query = Some(uri::PathAndQuery::from_maybe_shared(path).ok()?);
    }
    Uri::from_parts(parts).ok()
}

fn decode_headers(encoded: &Bytes, count: usize) -> Option<HeaderMap> {
    // `HeaderMap` holds more values than it can reserve buckets.
    let mut headers = HeaderMap::try_with_capacity(count).unwrap_or_default();
    for pair in Decoder(encoded).skip(URI_PAIRS) {
        let name = HeaderName::from_bytes(pair.first).ok()?;
        let value = encoded.slice_ref(pair.second);
        let mut value = HeaderValue::from_maybe_shared(value).ok()?;
        value.set_sensitive(pair.sensitive);
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn idempotency_by_method_key_and_options() {
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
        for (method, key, idempotent, expected) in table {
            let mut request = Request::new(());
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
            if let Some(key) = key {
                let headers = request.headers_mut();
                headers.insert("idempotency-key", key.parse().unwrap());
            }
            if let Some(idempotent) = idempotent {
                let options = RequestOptions::new().idempotent(*idempotent);
                request.extensions_mut().insert(options);
            }
            let head = SavedHead::from_request(&request);
            assert_eq!(
                head.is_idempotent(),
                *expected,
                "{method} {key:?} {idempotent:?}"
            );
        }
    }

    /// Returns `count` names whose hashes are in `hashes`. A sparse `HeaderMap` uses 15 bits of FNV-1a.
    fn names_with_hash(hashes: std::ops::Range<u64>, count: usize) -> Vec<HeaderName> {
        let step = |hash: u64, byte: u8| ((hash ^ u64::from(byte)) * 0x1b3) & 0x7fff;
        let custom_name = 1_isize.to_ne_bytes().into_iter();
        let start = custom_name.fold(0x2325, step);
        const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut names = Vec::new();
        // All words of five letters, in an order in which most of the hash is known before the last one.
        for word in 0..36_usize.pow(4) {
            let word = [3, 2, 1, 0].map(|at| LETTERS[word / 36_usize.pow(at) % 36]);
            let hash = word.into_iter().fold(start, step);
            for last in *LETTERS {
                if hashes.contains(&step(hash, last)) {
                    let name = [&word[..], &[last]].concat();
                    names.push(HeaderName::from_bytes(&name).unwrap());
                }
            }
            if names.len() >= count {
                break;
            }
        }
        names.truncate(count);
        names
    }

    fn colliding_names() -> Vec<HeaderName> {
        let mut names = names_with_hash(77..78, 650);
        let alternating = names.split_off(550).into_iter();
        let near = names_with_hash(650..700, 100).into_iter();
        names.extend(near.zip(alternating).flat_map(|(near, same)| [near, same]));
        names
    }

    #[test]
    fn head_with_thousands_of_colliding_names_is_known_not_to_be_rebuilt() {
        let colliding = colliding_names();
        let mut request = Request::new(());
        let headers = request.headers_mut();
        // The map switches to another hash function, and keeps it.
        for name in &colliding {
            headers.insert(name.clone(), 1.into());
        }
        for name in &colliding {
            headers.remove(name);
        }
        for number in 0..6500 {
            let name = HeaderName::try_from(format!("y-{number}")).unwrap();
            headers.insert(name, 1.into());
        }
        for name in &colliding {
            headers.insert(name.clone(), 1.into());
        }
        let saved = SavedHead::from_request(&request);
        assert!(saved.rebuild().is_none());
        assert!(!saved.can_be_rebuilt());
    }

    #[test]
    fn rebuilds_empty_uri() {
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_parts(uri::Parts::default()).unwrap();
        let rebuilt = SavedHead::from_request(&request).rebuild().unwrap();
        assert_eq!(rebuilt.uri.to_string(), request.uri().to_string());
        assert_eq!(rebuilt.uri, *request.uri());
    }

    #[test]
    fn rebuilds_as_many_headers_as_http_can_hold() {
        let mut request = Request::new(());
        let headers = request.headers_mut();
        for number in 0..24_000 {
            let name = HeaderName::try_from(format!("x-{number}")).unwrap();
            headers.insert(name, HeaderValue::from(number));
        }
        for number in 0..10_000 {
            headers.append("cookie", HeaderValue::from(number));
        }
        let rebuilt = SavedHead::from_request(&request).rebuild().unwrap();
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
        .prop_filter_map("a URI", |text| text.parse().ok())
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
                extension.map(|value| request.extensions_mut().insert(value));
                request
            },
        )
    }

    proptest! {
        #[test]
        fn rebuild_round_trips(request in requests()) {
            let saved = SavedHead::from_request(&request);
            prop_assert!(saved.can_be_rebuilt());
            let rebuilt = saved.rebuild().expect("a valid head");
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
