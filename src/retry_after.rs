//! Parsing of `Retry-After` ([RFC 9110 §10.2.3]).
//!
//! [RFC 9110 §10.2.3]: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderValue,
    header::{DATE, RETRY_AFTER},
};

/// Returns the `Retry-After` of a response, measured from the arrival of its head; `None` without a
/// valid header.
///
/// A value is a number of seconds or an HTTP-date in any of the three forms. A date is relative to the
/// `Date` header of the response, which makes it independent of the local clock, or to `now` if there is
/// none. A date in the past yields zero, and a number that overflows yields [`Duration::MAX`]. The
/// longest of several headers is returned.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = headers.get(DATE).and_then(http_date).unwrap_or(now);
    let values = headers.get_all(RETRY_AFTER).into_iter();
    values.filter_map(|value| parse(value, date)).max()
}

fn parse(value: &HeaderValue, date: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let at = http_date(value)?;
    Some(at.duration_since(date).unwrap_or(Duration::ZERO))
}

fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    let text = value.to_str().ok()?.trim();
    let date = httpdate::parse_http_date(text).ok();
    date.or_else(|| leap_second(text))
}

/// Parses an HTTP-date whose second is 60, which RFC 9110 §5.6.7 allows and `httpdate` rejects.
///
/// `SystemTime` does not count leap seconds: the result is the second after `:59`.
fn leap_second(text: &str) -> Option<SystemTime> {
    // In all forms only the seconds are between a colon and a space.
    let (start, end) = text.split_once(":60 ")?;
    let previous = httpdate::parse_http_date(&format!("{start}:59 {end}")).ok()?;
    previous.checked_add(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATE_TEXT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn parsed(values: &[&str], date: Option<&str>, now: SystemTime) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
        }
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_str(date).unwrap());
        }
        retry_after(&headers, now)
    }

    #[test]
    fn seconds_and_dates_are_parsed_and_malformed_values_ignored() {
        let secs = |n| Some(Duration::from_secs(n));
        let table: &[(&str, Option<Duration>)] = &[
            ("0", secs(0)),
            ("120", secs(120)),
            ("000007", secs(7)),
            (" 3 ", secs(3)),
            ("18446744073709551615", secs(u64::MAX)),
            ("18446744073709551616", Some(Duration::MAX)),
            (
                "99999999999999999999999999999999999999",
                Some(Duration::MAX),
            ),
            ("Sun, 06 Nov 1994 08:49:39 GMT", secs(2)),
            ("Sunday, 06-Nov-94 08:49:40 GMT", secs(3)),
            ("Sun Nov  6 08:49:41 1994", secs(4)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", secs(0)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1, 2", None),
            ("1s", None),
            ("0x10", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:99 GMT", None),
        ];
        for (text, expected) in table {
            let found = parsed(&[text], Some(DATE_TEXT), SystemTime::UNIX_EPOCH);
            assert_eq!(found, *expected, "Retry-After: {text:?}");
        }
    }

    #[test]
    fn retry_date_is_relative_to_date_header_or_else_local_clock() {
        let now = httpdate::parse_http_date(DATE_TEXT).unwrap();
        let at = "Sun, 06 Nov 1994 08:49:47 GMT";
        let ten = Some(Duration::from_secs(10));
        assert_eq!(parsed(&[at], None, now), ten);
        assert_eq!(parsed(&[at], Some("yesterday"), now), ten);
        assert_eq!(parsed(&[at], Some(at), now), Some(Duration::ZERO));
    }

    #[test]
    fn leap_second_is_the_second_after_59() {
        let before = "Sat, 31 Dec 2016 23:59:58 GMT";
        let after = "Sun, 01 Jan 2017 00:00:07 GMT";
        let now = SystemTime::UNIX_EPOCH;
        let secs = |n| Some(Duration::from_secs(n));
        for leap in [
            "Sat, 31 Dec 2016 23:59:60 GMT",
            "Saturday, 31-Dec-16 23:59:60 GMT",
            "Sat Dec 31 23:59:60 2016",
        ] {
            assert_eq!(parsed(&[leap], Some(before), now), secs(2), "{leap}");
            assert_eq!(parsed(&[after], Some(leap), now), secs(7), "{leap}");
        }
        for invalid in [
            "Sat, 31 Dec 2016 23:59:61 GMT",
            "Sat, 31 Dec 2016 23:60:00 GMT",
            "Sat, 31 Dec 2016 23:60:60 GMT",
            "Sat, 31 Dec 2016 60:59:60 GMT",
            "Fri, 31 Dec 2016 23:59:60 GMT",
            "Sat, 31 Dec 2016 23:59:60",
            "Sat Dec 31 23:59:60 GMT",
            ":60 ",
        ] {
            assert_eq!(parsed(&[invalid], Some(before), now), None, "{invalid}");
        }
    }

    #[test]
    fn multiple_headers_use_longest_valid() {
        let now = SystemTime::now();
        let two = Some(Duration::from_secs(2));
        assert_eq!(parsed(&["1", "2", "x"], None, now), two);
        assert_eq!(parsed(&["x", "y"], None, now), None);
        assert_eq!(parsed(&[], None, now), None);
    }

    proptest! {
        #[test]
        fn arbitrary_value_does_not_panic(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut headers = HeaderMap::new();
                headers.append(RETRY_AFTER, value.clone());
                headers.append(DATE, value);
                retry_after(&headers, SystemTime::now());
            }
        }

        #[test]
        fn formatted_date_round_trips(now in 0u64..4_000_000_000, ahead in 0u64..1_000_000) {
            let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
            let found = parsed(
                &[&httpdate::fmt_http_date(at(now + ahead))],
                Some(&httpdate::fmt_http_date(at(now))),
                at(0),
            );
            prop_assert_eq!(found, Some(Duration::from_secs(ahead)));
        }
    }
}
