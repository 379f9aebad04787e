//! Detection of the error `invalid_token`, in a header ([RFC 6750 §3.1]) or in a JSON body.
//!
//! [RFC 6750 §3.1]: https://www.rfc-editor.org/rfc/rfc6750#section-3.1

use std::{borrow::Cow, fmt};

use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, WWW_AUTHENTICATE},
};
use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

const INVALID_TOKEN: &str = "invalid_token";

/// Returns whether a `WWW-Authenticate` header has a challenge with `error="invalid_token"`.
pub(crate) fn in_headers(headers: &HeaderMap) -> bool {
    let challenges = headers.get_all(WWW_AUTHENTICATE).into_iter();
    challenges
        .map(|value| value.as_bytes())
        .any(|value| Parameters { rest: value }.any(is_invalid_token))
}

/// Returns whether a body that starts with `body` is a JSON object with `"error": "invalid_token"`.
///
/// `headers` are those of the response: a compressed body is not parsed. Only the key `error` is read,
/// and the body may be truncated after it.
pub(crate) fn in_body(headers: &HeaderMap, body: &[u8]) -> bool {
    let Some(text) = json_text(headers, body) else {
        return false;
    };
    let mut invalid_token = false;
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = json.deserialize_map(ErrorObject(&mut invalid_token));
    match read.and_then(|()| json.end()) {
        Ok(()) => invalid_token,
        Err(error) => invalid_token && error.is_eof(),
    }
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

/// Reads a JSON object. Sets the flag to whether the last `error` so far is `invalid_token`.
struct ErrorObject<'a>(&'a mut bool);

impl<'de> Visitor<'de> for ErrorObject<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == "error" {
                let value: &RawValue = map.next_value()?;
                let text: Result<Cow<'_, str>, _> = serde_json::from_str(value.get());
                *self.0 = text.is_ok_and(|text| text == INVALID_TOKEN);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

fn is_invalid_token((name, value): (&[u8], Vec<u8>)) -> bool {
    name.eq_ignore_ascii_case(b"error") && value == INVALID_TOKEN.as_bytes()
}

/// An iterator over the `name=value` parameters of a list of challenges, of any scheme
/// ([RFC 9110 §11.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1)).
struct Parameters<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a [u8], Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.skip_while(|byte| matches!(byte, b' ' | b'\t' | b','));
            let name = self.take_while(is_token_char);
            if name.is_empty() {
                // Not a token: a misplaced quoted string, or the `=` that pads a token68.
                match *self.rest.first()? {
                    b'"' => drop(self.take_quoted()),
                    _ => self.rest = self.rest.get(1..)?,
                }
                continue;
            }
            self.skip_while(|byte| matches!(byte, b' ' | b'\t'));
            let Some(value) = self.rest.strip_prefix(b"=") else {
                continue; // The name was a scheme.
            };
            self.rest = value;
            self.skip_while(|byte| matches!(byte, b' ' | b'\t'));
            let value = match self.rest.first() {
                Some(b'"') => self.take_quoted(),
                _ => self.take_while(is_token_char).to_vec(),
            };
            return Some((name, value));
        }
    }
}

impl<'a> Parameters<'a> {
    fn skip_while(&mut self, predicate: fn(u8) -> bool) {
        self.take_while(predicate);
    }

    fn take_while(&mut self, predicate: fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !predicate(*byte));
        let (taken, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Takes the quoted string at the start of `rest`; an unterminated one extends to the end.
    fn take_quoted(&mut self) -> Vec<u8> {
        let mut value = Vec::new();
        let mut bytes = self.rest.iter();
        bytes.next();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => break,
                b'\\' => value.extend(bytes.next()),
                byte => value.push(*byte),
            }
        }
        self.rest = bytes.as_slice();
        value
    }
}

fn is_token_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn headers(name: HeaderName, values: &[&[u8]]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_bytes(value));
        values.map(|value| (name.clone(), value.unwrap())).collect()
    }

    #[test]
    fn header_is_parsed_by_the_grammar_of_challenges() {
        let reported: &[&[u8]] = &[
            br#"Bearer error="invalid_token""#,
            br#"bearer realm="a, b", ERROR = "invalid_token", error_description="gone""#,
            br"Bearer error=invalid_token",
            br#"Basic YWJj==, Bearer error="invalid_token""#,
            br#"Basic realm="x\"y", DPoP algs="ES256", error="invalid_token""#,
            br#"Bearer error="invalid\_token""#,
            b"Bearer realm=\"\xe4\", error=\"invalid_token\"",
        ];
        for value in reported {
            assert!(
                in_headers(&headers(WWW_AUTHENTICATE, &[value])),
                "{}",
                value.escape_ascii()
            );
        }
        let not_reported: &[&[u8]] = &[
            b"",
            b"Bearer",
            b"invalid_token",
            br#"Bearer error="insufficient_scope""#,
            br#"Bearer error="invalid_token_x""#,
            br#"Bearer error="Invalid_Token""#,
            br#"Bearer error_description="error=\"invalid_token\"""#,
            br#"Bearer realm="x, error=invalid_token"#,
            br#"Bearer x-error="invalid_token""#,
            br#"Bearer "error="invalid_token"#,
        ];
        for value in not_reported {
            assert!(
                !in_headers(&headers(WWW_AUTHENTICATE, &[value])),
                "{}",
                value.escape_ascii()
            );
        }
        let second = [
            b"Basic realm=x" as &[u8],
            br#"Bearer error="invalid_token""#,
        ];
        assert!(in_headers(&headers(WWW_AUTHENTICATE, &second)));
    }

    #[test]
    fn body_is_parsed_as_json_object() {
        let real = br#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token",
            "error_description":"Access token has expired","message":"Unauthorised"}"#;
        assert!(in_body(&HeaderMap::new(), real));
        assert!(in_body(
            &HeaderMap::new(),
            br#" { "error" : "invalid\u005ftoken" } "#
        ));
        for body in [
            "\u{feff}{\"error\":\"invalid_token\"}",
            r#"{"x":1e999,"error":"invalid_token"}"#,
            r#"{"x":"\ud800","error":"invalid_token"}"#,
            r#"{"error":"other","error":"invalid_token"}"#,
            // Truncated.
            r#"{"error":"invalid_token""#,
            r#"{"error":"invalid_token","trace":"at"#,
            r#"{"error":"invalid_token","more":[{"#,
        ] {
            assert!(in_body(&HeaderMap::new(), body.as_bytes()), "{body}");
        }
        let deep = [b"[".repeat(4096), b"]".repeat(4096)].concat();
        let deep_error = [b"{\"error\":".to_vec(), deep.clone(), b"}".to_vec()].concat();
        let not_reported: &[&[u8]] = &[
            b"",
            b"invalid_token",
            br#""invalid_token""#,
            br#"["invalid_token"]"#,
            br#"{"error":{"error":"invalid_token"}}"#,
            br#"{"error":["invalid_token"]}"#,
            br#"{"error":null}"#,
            br#"{"error":1}"#,
            br#"{"Error":"invalid_token"}"#,
            br#"{"error":"INVALID_TOKEN"}"#,
            br#"{"error":"invalid_tok"#,
            br#"{"error":"invalid_token" or so}"#,
            br#"{"error":"invalid_token"}}"#,
            br#"{"error":"invalid_token","error":"other","more":"#,
            br#""{\"error\":\"invalid_token\"}""#,
            b"{\"error\":\"invalid_token\xff\"}",
            &deep,
            &deep_error,
        ];
        for body in not_reported {
            assert!(!in_body(&HeaderMap::new(), body), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn compressed_body_is_not_parsed() {
        let body = br#"{"error":"invalid_token"}"#;
        for (codings, expected) in [
            (&[b"gzip" as &[u8]] as &[&[u8]], false),
            (&[b"identity"], true),
            (&[b"", b"identity, Identity,"], true),
            (&[b"identity, gzip"], false),
            (&[b"Identity", b"br"], false),
            (&[b"\xff"], false),
        ] {
            assert_eq!(in_body(&headers(CONTENT_ENCODING, codings), body), expected);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_header_terminates_without_panic(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            if HeaderValue::from_bytes(&value).is_ok() {
                in_headers(&headers(WWW_AUTHENTICATE, &[&value]));
            }
        }

        #[test]
        fn error_parameter_is_found_among_others(
            before in "[a-z]{1,8} [a-z]{1,8}=\"[^\"\\\\]{0,20}\", ",
            after in "(, [a-z]{1,8}=[a-z]{1,8}){0,3}",
        ) {
            let value = format!("{before}error=\"invalid_token\"{after}");
            if let Ok(value) = HeaderValue::from_str(&value) {
                prop_assert!(in_headers(&headers(WWW_AUTHENTICATE, &[value.as_bytes()])));
            }
        }
    }
}
