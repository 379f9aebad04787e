//! `invalid_token` in a JSON body, against `serde_json::Value`.

use arbitrary::{Result, Unstructured};
use http::HeaderMap;
use serde_json::Value;
use tower_http_retry::fuzzing;

/// Whether each prefix of an object, after a top-level `"error":"invalid_token"`, has to report.
///
/// Off: the parser of this branch rejects some objects that are cut, for example within an escape.
const CHECK_PREFIXES: bool = false;

/// The input is a body.
pub fn json_error(data: &[u8]) {
    check_value(data);
    let _ = check_object(&mut Unstructured::new(data));
}

fn reports(body: &[u8]) -> bool {
    fuzzing::is_invalid_token_in_body(&HeaderMap::new(), body)
}

fn check_value(body: &[u8]) {
    let found = reports(body);
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    match serde_json::from_slice::<Value>(text) {
        // Of repeated keys, `Value` keeps the last.
        Ok(value) => {
            let expected = value.get("error").and_then(Value::as_str) == Some("invalid_token");
            assert_eq!(found, expected, "{}", body.escape_ascii());
        }
        // A malformed or cut object may report, other text may not.
        Err(_) => {
            let is_object = text.trim_ascii_start().first() == Some(&b'{');
            assert!(is_object || !found, "{}", body.escape_ascii());
        }
    }
}

/// A member of an object: its text with the comma before it, and the value of `error`.
struct Member {
    text: String,
    is_error: bool,
    reports: bool,
}

/// Checks an object, and each prefix of it.
fn check_object(u: &mut Unstructured<'_>) -> Result<()> {
    let members = (0..u.int_in_range(0..=5)?)
        .map(|_| any_member(u))
        .collect::<Result<Vec<_>>>()?;
    let mut body = String::from(*u.choose(&["{", " {\n", "\u{feff}{"])?);
    let mut expected = vec![(body.len(), false)];
    let mut last = false;
    for (index, member) in members.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let start = body.len();
        body.push_str(separator);
        body.push_str(&member.text);
        if member.is_error {
            // Within the member, the value is not complete: undefined.
            expected.retain(|(end, _)| *end <= start);
            last = member.reports;
            expected.push((body.len(), last));
        } else {
            expected.extend((start + 1..=body.len()).map(|end| (end, last)));
        }
    }
    body.push_str(u.choose(&["}", " }", "}\n"])?);
    check_value(body.as_bytes());
    assert_eq!(reports(body.as_bytes()), last, "{body}");
    if CHECK_PREFIXES {
        for (end, expected) in expected {
            let prefix = &body.as_bytes()[..end];
            assert_eq!(reports(prefix), expected, "{}", prefix.escape_ascii());
        }
    }
    Ok(())
}

fn any_member(u: &mut Unstructured<'_>) -> Result<Member> {
    const ERRORS: [&str; 3] = ["\"error\"", "\"\\u0065rror\"", " \"error\" "];
    const TOKENS: [&str; 3] = [
        "\"invalid_token\"",
        " \"invalid\\u005ftoken\" ",
        "\"invalid_\\u0074oken\"",
    ];
    let is_error = u.ratio(1, 3)?;
    let key = match is_error {
        true => (*u.choose(&ERRORS)?).to_owned(),
        false => any_string(u)?,
    };
    let reports = is_error && u.arbitrary()?;
    let value = match reports {
        true => (*u.choose(&TOKENS)?).to_owned(),
        false => any_json(u, 0)?,
    };
    Ok(Member {
        text: format!("{key}:{value}"),
        is_error,
        reports,
    })
}

/// Returns a string that is neither `error` nor `invalid_token`, as JSON.
fn any_string(u: &mut Unstructured<'_>) -> Result<String> {
    const STRINGS: [&str; 8] = [
        "error_",
        "Error",
        "invalid_token_",
        "{\"error\":\"invalid_token\"}",
        "\\",
        "\u{1f600}\n",
        "\"",
        "",
    ];
    let text = if u.arbitrary()? {
        (*u.choose(&STRINGS)?).to_owned()
    } else {
        "x".to_owned() + u.arbitrary()?
    };
    Ok(serde_json::to_string(&text).expect("a string"))
}

fn any_json(u: &mut Unstructured<'_>, depth: u32) -> Result<String> {
    Ok(match u.int_in_range(0..=if depth < 4 { 7 } else { 4 })? {
        0 => "null".into(),
        1 => u.arbitrary::<bool>()?.to_string(),
        2 => u.arbitrary::<i64>()?.to_string(),
        3 => (*u.choose(&["-0.5e+3", "1E2", " 0 ", "1.25"])?).into(),
        4 => any_string(u)?,
        5 => format!("[{},{}]", any_json(u, depth + 1)?, any_json(u, depth + 1)?),
        6 => format!(
            "{{\"error\":\"invalid_token\",{}:{}}}",
            any_string(u)?,
            any_json(u, depth + 1)?
        ),
        _ => "[]".into(),
    })
}
