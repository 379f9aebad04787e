//! Detection of the error `invalid_token`, in a header ([RFC 6750 §3.1]) or in a JSON body.
//!
//! [RFC 6750 §3.1]: https://www.rfc-editor.org/rfc/rfc6750#section-3.1

mod challenges;
mod error_object;

use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, WWW_AUTHENTICATE},
};

const INVALID_TOKEN: &str = "invalid_token";

/// Returns whether a `WWW-Authenticate` header has a `Bearer` or `DPoP` challenge with
/// `error="invalid_token"`. A malformed part ends its header value.
pub(crate) fn in_headers(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(WWW_AUTHENTICATE).into_iter();
    values.any(|value| challenges::reports_invalid_token(value.as_bytes()))
}

/// Returns whether a body that starts with `body` is a JSON object with `"error": "invalid_token"`.
///
/// `headers` are those of the response: a compressed body is not parsed. The body may be truncated after the
/// value, and the values of other keys may be malformed.
pub(crate) fn in_body(headers: &HeaderMap, body: &[u8]) -> bool {
    json_text(headers, body).is_some_and(error_object::is_invalid_token)
}

/// Returns the body without a byte order mark; `None` if it is compressed.
pub(crate) fn json_text<'a>(headers: &HeaderMap, body: &'a [u8]) -> Option<&'a [u8]> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

    let values = headers.get_all(CONTENT_ENCODING).into_iter();
    let mut codings = values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|coding| coding.trim_ascii());
    let plain = codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"));
    plain.then(|| body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body))
}

#[cfg(test)]
mod tests;
