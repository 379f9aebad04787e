//! `WWW-Authenticate`, against the grammar of RFC 9110 §11.6.1.

use arbitrary::{Result, Unstructured};
use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use tower_http_retry::fuzzing;

/// Whether only well-formed challenges of the schemes `Bearer` and `DPoP` may report.
///
/// Off: the parser of this branch reports `error="invalid_token"` of any scheme, and in malformed values.
const CHECK_STRICT: bool = false;

/// The input is text: a header value in each line.
pub fn www_authenticate(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').take(20);
    let values: Vec<_> = lines.flat_map(HeaderValue::from_bytes).collect();
    check(&values);
    let value = any_value(&mut Unstructured::new(data));
    if let Ok(Ok(value)) = value.map(HeaderValue::try_from) {
        check(&[value]);
    }
}

fn check(values: &[HeaderValue]) {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(WWW_AUTHENTICATE, value.clone());
    }
    let found = fuzzing::is_invalid_token_in_headers(&headers);
    let must = values.iter().any(|value| must_report(value.as_bytes()));
    assert!(found || !must, "not reported: {values:?}");
    if CHECK_STRICT {
        let may = values.iter().any(|value| may_report(value.as_bytes()));
        assert!(may || !found, "reported: {values:?}");
    }
}

/// A list of challenges reports, and so does a list with a malformed rest after a comma.
fn must_report(value: &[u8]) -> bool {
    let is_end = |end: &usize| value.get(*end).is_none_or(|byte| *byte == b',');
    let mut prefixes = (0..=value.len())
        .filter(is_end)
        .map(|end| challenges(&value[..end]));
    prefixes
        .any(|list| list.is_some_and(|list| list.iter().any(|one| one.reports && !one.repeated)))
}

/// A list with any rest after it may report, if the rest does not continue the last word of the list.
fn may_report(value: &[u8]) -> bool {
    let is_end = |end: &usize| value.get(*end).is_none_or(|byte| b", \t".contains(byte));
    let mut prefixes = (0..=value.len())
        .filter(is_end)
        .map(|end| challenges(&value[..end]));
    prefixes.any(|list| list.is_some_and(|list| list.iter().any(|one| one.reports)))
}

#[derive(Default)]
struct Challenge {
    /// Whether auth-params may follow: `1*SP` came after the scheme, and no token68.
    takes_params: bool,
    is_token_scheme: bool,
    names: Vec<Vec<u8>>,
    reports: bool,
    /// A parameter name occurs more than once, which the RFC forbids.
    repeated: bool,
}

/// Parses `#challenge`; `None` if the value does not match the grammar.
///
/// A list is its elements between commas. An element is the start of a challenge, or a parameter of the
/// challenge before it.
fn challenges(value: &[u8]) -> Option<Vec<Challenge>> {
    let mut list: Vec<Challenge> = Vec::new();
    for element in elements(value)? {
        let element = trim_start(element);
        let scheme_length = element.iter().take_while(|byte| is_tchar(**byte)).count();
        let (scheme, rest) = element.split_at(scheme_length);
        if let Some(param) = param(trim_end(element)) {
            list.last_mut().filter(|last| last.takes_params)?.add(param);
        } else if scheme.is_empty() {
            // An empty element of the list.
            if !element.is_empty() {
                return None;
            }
        } else {
            let mut challenge = Challenge {
                takes_params: rest.starts_with(b" "),
                is_token_scheme: ["bearer", "dpop"]
                    .iter()
                    .any(|name| scheme.eq_ignore_ascii_case(name.as_bytes())),
                ..Challenge::default()
            };
            let body = trim_end(rest);
            if !body.is_empty() {
                let spaces = body.iter().take_while(|byte| **byte == b' ').count();
                let body = &body[spaces..];
                if spaces == 0 {
                    return None;
                }
                if is_token68(body) {
                    challenge.takes_params = false;
                } else {
                    challenge.add(param(body)?);
                }
            }
            list.push(challenge);
        }
    }
    Some(list)
}

impl Challenge {
    fn add(&mut self, (name, value): (Vec<u8>, Vec<u8>)) {
        self.reports |= self.is_token_scheme && name == b"error" && value == b"invalid_token";
        self.repeated |= self.names.contains(&name);
        self.names.push(name);
    }
}

/// Splits at the commas outside of quoted strings; `None` if a quoted string does not end.
fn elements(value: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut elements, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (index, byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                elements.push(&value[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    elements.push(&value[start..]);
    (!quoted).then_some(elements)
}

/// Parses `token BWS "=" BWS ( token / quoted-string )` into the name in lower case and the value.
fn param(text: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let equals = text.iter().position(|byte| *byte == b'=')?;
    let name = trim_end(&text[..equals]);
    let value = trim_start(&text[equals + 1..]);
    if !is_token(name) {
        return None;
    }
    if is_token(value) {
        return Some((name.to_ascii_lowercase(), value.to_vec()));
    }
    let inside = value.strip_prefix(b"\"")?;
    let mut unquoted = Vec::new();
    let mut bytes = inside.iter();
    loop {
        match bytes.next()? {
            b'"' => break,
            b'\\' => unquoted.push(*bytes.next()?),
            byte => unquoted.push(*byte),
        }
    }
    bytes
        .as_slice()
        .is_empty()
        .then(|| (name.to_ascii_lowercase(), unquoted))
}

fn is_token68(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let text = &text[..text.len() - padding];
    let is_char = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    !text.is_empty() && text.iter().all(is_char)
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_tchar(*byte))
}

fn is_tchar(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !b"\"(),/:;<=>?@[\\]{}".contains(&byte)
}

fn trim_start(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|byte| b" \t".contains(byte)).count();
    &text[spaces..]
}

fn trim_end(text: &[u8]) -> &[u8] {
    let spaces = text
        .iter()
        .rev()
        .take_while(|byte| b" \t".contains(byte))
        .count();
    &text[..text.len() - spaces]
}

/// Joins parts of challenges.
fn any_value(u: &mut Unstructured<'_>) -> Result<String> {
    const PARTS: [&str; 22] = [
        "Bearer",
        "dpop",
        "Basic",
        " ",
        " ",
        ",",
        ", ",
        "\t",
        "error",
        "ERROR",
        "=",
        "=",
        "\"invalid_token\"",
        "\"invalid_token\"",
        "invalid_token",
        "\"invalid\\_token\"",
        "realm=\"a, b\"",
        "realm=\"\\\"\"",
        "YWJj==",
        "\"",
        "error=\"invalid_token\"",
        "error=\"invalid_token\"",
    ];
    let parts = (0..u.int_in_range(0..=12)?).map(|_| u.choose(&PARTS).copied());
    parts.collect()
}
