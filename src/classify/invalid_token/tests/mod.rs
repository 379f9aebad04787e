mod body_properties;
mod header_properties;

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
        br#",, Bearer , , error = "invalid_token""#,
        br#"Basic, dpop  error="invalid_token", Basic realm=x"#,
        br#"error a, Bearer error="invalid_token""#,
        // Malformed after the parameter.
        br#"Bearer error="invalid_token" error_description="gone""#,
        br#"Bearer error="invalid_token", realm=https://a/cb"#,
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
        // Parameters of another scheme.
        br#"Basic realm="x", error="invalid_token""#,
        br#"Bearer realm="x", Digest error="invalid_token""#,
        br#"Bearer YWJj==, error="invalid_token""#,
        br#"Bearer, error="invalid_token""#,
        br#"error="invalid_token""#,
        // Malformed in the parameter or before it.
        br"Bearer realm=https://a/cb?error=invalid_token",
        br#"Bearer realm=https://a/cb, error="invalid_token""#,
        br#"Bearer realm="x" error="invalid_token""#,
        br#"Bearer realm="x", "y", error="invalid_token""#,
        br#"Bearer realm=, error="invalid_token""#,
        br#"Basic a b, Bearer error="invalid_token""#,
        br#"Basic {}, Bearer error="invalid_token""#,
        b"Bearer\terror=invalid_token",
        br#"Bearer error="invalid_token"x"#,
        br"Bearer error=invalid_token:x",
        br#"Bearer error="invalid_token"#,
        br#"Bearer error="invalid_token\""#,
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
        r#"{"error":"invalid_token","code":-"#,
        r#"{"error":"invalid_token","code":1e"#,
        r#"{"error":"invalid_token","code":tr"#,
        r#"{"error":"invalid_token","more":"\"#,
        r#"{"error":"invalid_token","more":"\u00"#,
        r#"{"error":"invalid_token","error":"oth"#,
        // Malformed in the keys and values of other members.
        r#"{"code":NaN,"error":"invalid_token","more":[undefined, -]}"#,
        r#"{"\ud800":1,"error":"invalid_token","more":["\udc00\x"]}"#,
        "{\"line\n\":\"\0\n\",\"error\":\"invalid_token\",\"more\":\"a\nb\"}",
        // Padded.
        "{\"error\":\"invalid_token\"}\0",
        "{\"error\":\"invalid_token\"}\r\n\0\0",
    ] {
        assert!(in_body(&HeaderMap::new(), body.as_bytes()), "{body}");
    }
    let not_utf8 = b"{\"\xff\":\"\xff\",\"error\":\"invalid_token\",\"\xe4\":[\"\xe4\"]}";
    assert!(in_body(&HeaderMap::new(), not_utf8));
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
        br#"{"error":"invalid_token"} or so"#,
        br#"{"error":"invalid_token","error":1"#,
        br#"{"error":"invalid_token","more":}"#,
        br#"{"error":"invalid_token","more"}"#,
        br#"{"error":"invalid_token",more:1}"#,
        br#"{"error":"invalid_token":1}"#,
        br#"{"error" "invalid_token"}"#,
        br#"{error:"invalid_token"}"#,
        br#"{"error":invalid_token}"#,
        br#"{"error":"invalid\u015ftoken"}"#,
        br#"{"error":"invalid\u5ftoken"}"#,
        br#"{"more":"\\","x":"error\":\"invalid_token"}"#,
        br#"{"more":[{}],"x":{"error":"invalid_token"}}"#,
        br#"{}{"error":"invalid_token"}"#,
        br#"{"more":1}{"error":"invalid_token"}"#,
        b"\0{\"error\":\"invalid_token\"}",
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

/// Quadratic time would be minutes for each input.
#[test]
fn long_input_is_scanned_in_linear_time() {
    const LEN: usize = 1 << 18;

    for part in [
        "a=", "a ", "a b=c,", "a  ,", "\"", "a=\"\\\"", ",", "a", "a b,", "  ",
    ] {
        let value = format!("Bearer {}", part.repeat(LEN / part.len()));
        assert!(!in_headers(&headers(WWW_AUTHENTICATE, &[value.as_bytes()])));
    }
    for part in [
        "[",
        "{",
        "\"",
        "\\",
        "\"a\":1,",
        "[],",
        " ",
        "-",
        "\"error\":1,",
        "\\u",
    ] {
        for start in ["{", "{\"a\":", "{\"a\":[", "{\"a\":\""] {
            let body = format!("{start}{}", part.repeat(LEN / part.len()));
            assert!(!in_body(&HeaderMap::new(), body.as_bytes()));
        }
    }
}
