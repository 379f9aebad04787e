//! `Retry-After`, against a grammar and a calendar of its own.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use http::{
    HeaderMap, HeaderValue,
    header::{DATE, RETRY_AFTER},
};
use tower_http_retry::fuzzing;

use super::calendar::{self, Date, Form, at};

/// Whether the second 60 is valid.
///
/// Off: `httpdate`, on which this branch relies, rejects it.
const CHECK_LEAP_SECONDS: bool = false;

/// The local clock.
const NOW: u64 = 1_700_000_000;

/// The input is text: `Date` in the first line, if not empty, and one `Retry-After` in each further line.
pub fn retry_after(data: &[u8]) {
    check_text(data);
    let _ = check_values(&mut Unstructured::new(data));
}

fn check_text(data: &[u8]) {
    if !CHECK_LEAP_SECONDS && data.windows(3).any(|part| part == b":60") {
        return;
    }
    let mut headers = HeaderMap::new();
    let mut lines = data
        .split(|byte| *byte == b'\n')
        .map(HeaderValue::from_bytes);
    if let Some(Ok(date)) = lines.next() {
        if !date.is_empty() {
            headers.insert(DATE, date);
        }
    }
    for value in lines.flatten().take(100) {
        headers.append(RETRY_AFTER, value);
    }
    let date = headers
        .get(DATE)
        .and_then(|date| calendar::parse(visible(date)?));
    let date = date.map_or(NOW, Date::seconds);
    let values = headers.get_all(RETRY_AFTER).into_iter();
    let expected = values
        .filter_map(|value| delay(visible(value)?, date))
        .max();
    assert_eq!(
        fuzzing::retry_after(&headers, at(NOW)),
        expected,
        "{headers:?}"
    );
}

/// Returns the text of a value of visible characters, without the whitespace around it.
fn visible(value: &HeaderValue) -> Option<&str> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let visible = text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    visible.then(|| text.trim_matches([' ', '\t']))
}

fn delay(text: &str, date: u64) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        let seconds = calendar::parse(text)?.seconds();
        return Some(Duration::from_secs(seconds.saturating_sub(date)));
    }
    let seconds = text.bytes().try_fold(0_u64, |seconds, digit| {
        seconds
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))
    });
    Some(seconds.map_or(Duration::MAX, Duration::from_secs))
}

/// Formats numbers and dates, and expects the same numbers and dates.
fn check_values(u: &mut Unstructured<'_>) -> Result<()> {
    let mut headers = HeaderMap::new();
    let mut insert = |name, text: String| {
        headers.append(name, HeaderValue::try_from(text).expect("a visible value"));
    };
    let date = if u.arbitrary()? {
        Some(any_date(u)?)
    } else {
        None
    };
    if let Some((date, form)) = date {
        insert(DATE, date.format(form));
    }
    let origin = date.map_or(NOW, |(date, _)| date.seconds());
    let expected = if u.arbitrary()? {
        let seconds: u64 = u.arbitrary()?;
        insert(
            RETRY_AFTER,
            format!("{:0>width$}", seconds, width = u.int_in_range(0..=30)?),
        );
        seconds
    } else {
        let (date, form) = any_date(u)?;
        insert(RETRY_AFTER, date.format(form));
        date.seconds().saturating_sub(origin)
    };
    let found = fuzzing::retry_after(&headers, at(NOW));
    assert_eq!(found, Some(Duration::from_secs(expected)), "{headers:?}");
    Ok(())
}

fn any_date(u: &mut Unstructured<'_>) -> Result<(Date, Form)> {
    let form = u.arbitrary()?;
    let year = match form {
        Form::Rfc850 => u.int_in_range(1970..=2069)?,
        Form::Imf | Form::Asctime => u.int_in_range(1970..=9999)?,
    };
    let month = u.int_in_range(1..=12)?;
    let date = Date {
        year,
        month,
        day: u.int_in_range(1..=calendar::month_length(year, month))?,
        second_of_day: u.int_in_range(0..=86_399)?,
    };
    Ok((date, form))
}
