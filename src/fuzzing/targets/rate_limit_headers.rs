//! The rate-limit fields, against the parser of structured fields in the crate `sfv`.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItem, ListEntry, Parameters, Parser};
use tower_http_retry::fuzzing::{self, RateLimit};

use super::calendar::at;

/// Whether `RateLimit` and `RateLimit-Policy` are compared with RFC 9651.
///
/// Off: the parser of this branch splits at `,` and `;` in quoted names, and accepts what is not a structured
/// field. Turn it on when the library parses them with `sfv`.
const CHECK_STRUCTURED_FIELDS: bool = false;

const NOW: u64 = 1_700_000_000;
const NAMES: [&str; 8] = [
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];
/// The library may ignore the members of longer lists.
const MAX_MEMBERS: usize = 32;

/// The input is text: a header in each line, as a digit that is an index of [`NAMES`], and the value.
pub fn rate_limit_headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let Some((index, value)) = line.split_first() else {
            continue;
        };
        let name = NAMES.get(usize::from(index.wrapping_sub(b'0')));
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(*name, value);
        }
    }
    check(&headers);
    if let Ok(headers) = any_headers(&mut Unstructured::new(data)) {
        check(&headers);
    }
}

fn check(headers: &HeaderMap) {
    let found = fuzzing::rate_limit(headers, at(NOW));
    if let Some(found) = found {
        assert!(
            found.limit > 0 && found.remaining <= found.limit,
            "{found:?}"
        );
        assert!(
            found.reset <= Duration::from_secs(7 * 24 * 3600),
            "{found:?}"
        );
        assert!(
            found.window.is_none_or(|window| !window.is_zero()),
            "{found:?}"
        );
    }
    let structured = headers.contains_key("ratelimit");
    if structured && !CHECK_STRUCTURED_FIELDS {
        return;
    }
    if let Ok(expected) = expected(headers) {
        assert_eq!(found, expected, "{headers:?}");
    }
}

/// The library may decide either way.
struct Undefined;

fn expected(headers: &HeaderMap) -> Result<Option<RateLimit>, Undefined> {
    let found = match structured(headers)? {
        Some(found) => Some(found),
        None => match legacy(headers, "ratelimit")? {
            Some(found) => Some(found),
            None => legacy(headers, "x-ratelimit")?,
        },
    };
    Ok(found.filter(|found| {
        found.limit > 0
            && found.remaining <= found.limit
            && found.reset <= Duration::from_secs(604_800)
            && found.window != Some(Duration::ZERO)
    }))
}

fn structured(headers: &HeaderMap) -> Result<Option<RateLimit>, Undefined> {
    let (Some(states), Some(policies)) = (
        named_items(headers, "ratelimit")?,
        named_items(headers, "ratelimit-policy")?,
    ) else {
        return Ok(None);
    };
    let mut lowest: Option<RateLimit> = None;
    for (name, state) in states {
        // The first valid policy with this name.
        let policy = policies
            .iter()
            .filter(|(policy, _)| *policy == name)
            .find_map(|(_, policy)| {
                let requests = match policy.get("qu") {
                    None => true,
                    Some(unit) => {
                        text(unit).is_some_and(|unit| unit == "request" || unit == "requests")
                    }
                };
                let window = integer(policy, "w").ok()?;
                Some((integer(policy, "q").ok()??, window)).filter(|_| requests)
            });
        let (Some((limit, window)), Ok(Some(remaining)), Ok(reset)) =
            (policy, integer(&state, "r"), integer(&state, "t"))
        else {
            continue;
        };
        let Some(reset) = reset.or(window) else {
            continue;
        };
        if lowest.is_none_or(|lowest| remaining < lowest.remaining) {
            lowest = Some(RateLimit {
                limit,
                remaining,
                reset: Duration::from_secs(reset),
                window: window.map(Duration::from_secs),
            });
        }
    }
    Ok(lowest)
}

/// Returns the items that are a string or a token; `None` if the field is absent or malformed.
fn named_items(
    headers: &HeaderMap,
    name: &str,
) -> Result<Option<Vec<(String, Parameters)>>, Undefined> {
    let lines: Vec<_> = headers
        .get_all(name)
        .into_iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let field = lines.join(&b", "[..]);
    let Ok(list) = Parser::new(&field).parse::<sfv::List>() else {
        return Ok(None);
    };
    if list.len() > MAX_MEMBERS {
        return Err(Undefined);
    }
    let items = list.into_iter().filter_map(|member| match member {
        ListEntry::Item(item) => Some((text(&item.bare_item)?.to_owned(), item.params)),
        ListEntry::InnerList(_) => None,
    });
    Ok(Some(items.collect()))
}

fn text(item: &BareItem) -> Option<&str> {
    item.as_string()
        .map(|string| string.as_str())
        .or_else(|| item.as_token().map(|token| token.as_str()))
}

/// Returns a parameter; `Err` if it is not a non-negative integer.
fn integer(parameters: &Parameters, key: &str) -> Result<Option<u64>, ()> {
    let Some(value) = parameters.get(key) else {
        return Ok(None);
    };
    let integer = value.as_integer().ok_or(())?;
    u64::try_from(i64::from(integer)).map(Some).map_err(|_| ())
}

fn legacy(headers: &HeaderMap, prefix: &str) -> Result<Option<RateLimit>, Undefined> {
    let field = |suffix: &str| {
        let value = headers.get(format!("{prefix}-{suffix}"));
        value.map_or(Ok(None), |value| first_number(value.as_bytes()))
    };
    let fields = (field("limit")?, field("remaining")?, field("reset")?);
    let (Some(limit), Some(remaining), Some(reset)) = fields else {
        return Ok(None);
    };
    let reset = if reset >= 1_000_000_000 {
        reset.saturating_sub(NOW)
    } else {
        reset
    };
    Ok(Some(RateLimit {
        limit,
        remaining,
        reset: Duration::from_secs(reset),
        window: None,
    }))
}

/// Parses the digits before the first `,` or `;`. A sign is not defined by any draft.
fn first_number(value: &[u8]) -> Result<Option<u64>, Undefined> {
    if value
        .iter()
        .any(|byte| !matches!(byte, b' '..=b'~' | b'\t'))
    {
        return Ok(None);
    }
    let end = value
        .iter()
        .position(|byte| b",;".contains(byte))
        .unwrap_or(value.len());
    let digits = value[..end].trim_ascii();
    match digits {
        [] => Ok(None),
        [b'+', ..] => Err(Undefined),
        digits => Ok(digits.iter().try_fold(0_u64, |number, digit| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            number.checked_mul(10)?.checked_add(digit)
        })),
    }
}

/// Builds fields that are nearly valid.
fn any_headers(u: &mut Unstructured<'_>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let mut add = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    };
    for _ in 0..u.int_in_range(0..=3)? {
        let members = u.int_in_range(1..=4)?;
        let states = (0..members)
            .map(|_| any_member(u, &["r", "t"]))
            .collect::<Result<Vec<_>>>()?;
        add(
            "ratelimit",
            states.join(u.choose(&[", ", ",", " ,\t", ";"])?),
        );
        let policies = (0..members)
            .map(|_| any_member(u, &["q", "w", "qu"]))
            .collect::<Result<Vec<_>>>()?;
        add("ratelimit-policy", policies.join(", "));
    }
    for name in &NAMES[2..] {
        if u.ratio(1, 3)? {
            let tail = u.choose(&["", ", 100;w=60", ";w=1", " ", "x"])?;
            add(name, format!("{}{tail}", any_number(u)?));
        }
    }
    Ok(headers)
}

fn any_member(u: &mut Unstructured<'_>, keys: &[&str]) -> Result<String> {
    const MEMBERS: [&str; 12] = [
        "\"a\"",
        "\"a\"",
        "\"b\"",
        "a",
        "\"a,b\"",
        "\"a;r=1\"",
        "\"\\\"\"",
        "(\"a\" b)",
        "7",
        "?1",
        "\"a",
        "",
    ];
    let mut member = (*u.choose(&MEMBERS)?).to_owned();
    for key in keys {
        for _ in 0..u.int_in_range(0..=5)? / 3 {
            let value = match u.int_in_range(0..=12)? {
                0 => "=\"requests\"".into(),
                1 => "=request".into(),
                2 => {
                    (*u.choose(&["", "=\"x;t=1\"", "=-1", "=1.5", "= 1", "=:Aw==:", "=@1"])?).into()
                }
                _ => format!("={}", any_number(u)?),
            };
            member.push_str(u.choose(&[";", ";", "; ", " ;"])?);
            member.push_str(key);
            member.push_str(&value);
        }
    }
    Ok(member)
}

fn any_number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=9)? {
        0 => u.arbitrary()?,
        1 => u.int_in_range(999_999_999..=1_800_000_000)?,
        2 => u.int_in_range(600_000..=610_000)?,
        _ => u.int_in_range(0..=100)?,
    })
}
