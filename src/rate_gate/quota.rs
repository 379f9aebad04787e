//! Parsing of the rate-limit fields of a response.

mod structured;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

/// A rate limit that a server advertises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quota {
    /// The number of requests that a window allows.
    pub(crate) limit: u64,
    /// The number of requests that remain in the current window.
    pub(crate) remaining: u64,
    /// The time from the response to the next window.
    pub(crate) reset: Duration,
    /// The length of a window, if advertised.
    pub(crate) window: Option<Duration>,
}

/// Longer times to a reset are treated as malformed: they are more likely in milliseconds than real.
const MAX_RESET: Duration = Duration::from_secs(7 * 24 * 3600);

/// The names of the limit, the remaining requests and the reset, in older drafts.
const LEGACY: [HeaderName; 3] = [
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
];
const X_LEGACY: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

impl Quota {
    /// Parses the quota in `headers`; returns `None` if absent or invalid.
    ///
    /// The first of these forms that is present:
    ///
    /// 1. `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), for example
    ///    `"name";r=50;t=30` and `"name";q=100;w=60`;
    /// 2. `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (draft 06 and before);
    /// 3. `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset`.
    ///
    /// The reset of the last two is in seconds, or a Unix timestamp. Of several policies, the one with the
    /// fewest remaining requests counts. Policies with another quota unit (`qu`) than requests are ignored.
    /// A structured field that does not parse by RFC 9651 is treated as absent.
    pub(crate) fn from_headers(headers: &HeaderMap, now: SystemTime) -> Option<Self> {
        let quota = structured::parse(headers)
            .or_else(|| Self::from_legacy_headers(headers, &LEGACY, now))
            .or_else(|| Self::from_legacy_headers(headers, &X_LEGACY, now))?;
        let valid = quota.limit > 0
            && quota.remaining <= quota.limit
            && quota.reset <= MAX_RESET
            && quota.window.is_none_or(|window| !window.is_zero());
        valid.then_some(quota)
    }

    fn from_legacy_headers(
        headers: &HeaderMap,
        names: &[HeaderName; 3],
        now: SystemTime,
    ) -> Option<Self> {
        // Values from 10⁹ are Unix timestamps: as a number of seconds that is 31 years.
        const MIN_TIMESTAMP: u64 = 1_000_000_000;

        let [limit, remaining, reset] = names;
        let reset = match leading_integer(headers, reset)? {
            timestamp @ MIN_TIMESTAMP.. => {
                let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
                Duration::from_secs(timestamp).saturating_sub(now)
            }
            seconds => Duration::from_secs(seconds),
        };
        Some(Self {
            limit: leading_integer(headers, limit)?,
            remaining: leading_integer(headers, remaining)?,
            reset,
            window: None,
        })
    }
}

/// Parses the first number of a header. Older drafts allow policies after the limit, as in
/// `100, 100;w=60`.
fn leading_integer(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let value = headers.get(name)?.to_str().ok()?;
    let first = value.split([',', ';']).next()?.trim();
    first.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const NOW: u64 = 1_700_000_000;

    /// Parses the limit, the remaining requests, the reset and the window.
    fn parse(pairs: &[(&'static str, &str)]) -> Option<(u64, u64, u64, Option<u64>)> {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        });
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let quota = Quota::from_headers(&HeaderMap::from_iter(pairs), now)?;
        let window = quota.window.map(|window| window.as_secs());
        Some((quota.limit, quota.remaining, quota.reset.as_secs(), window))
    }

    #[test]
    fn parses_structured_and_legacy_fields() {
        let draft = [
            ("ratelimit-policy", "\"default\";q=100;w=10"),
            ("ratelimit", "\"default\";r=50;t=3"),
        ];
        assert_eq!(parse(&draft), Some((100, 50, 3, Some(10))));
        let two = [
            (
                "ratelimit-policy",
                "\"burst\";q=100;w=1, \"daily\";q=1000;w=86400",
            ),
            ("ratelimit", "\"daily\";r=7;t=500, \"burst\";r=60;t=1"),
        ];
        assert_eq!(parse(&two), Some((1000, 7, 500, Some(86400))));
        let units = [
            (
                "ratelimit-policy",
                "\"calls\";q=100;w=10;qu=\"requests\", \"load\";q=9;qu=\"concurrent-requests\"",
            ),
            ("ratelimit", "\"load\";r=1;t=60, \"calls\";r=60;t=5"),
        ];
        assert_eq!(parse(&units), Some((100, 60, 5, Some(10))));
        let older = [
            ("ratelimit-limit", "100"),
            ("ratelimit-remaining", "0"),
            ("ratelimit-reset", "8"),
        ];
        assert_eq!(parse(&older), Some((100, 0, 8, None)));
        let epoch = (NOW + 30).to_string();
        let x = [
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "4999"),
            ("x-ratelimit-reset", &epoch),
        ];
        assert_eq!(parse(&x), Some((5000, 4999, 30, None)));
    }

    #[test]
    fn ignores_malformed_or_implausible_quotas() {
        let cases: &[&[(&'static str, &str)]] = &[
            &[],
            &[("ratelimit", "\"default\";r=50;t=3")],
            &[
                ("ratelimit-policy", "\"a\";q=10;w=1"),
                ("ratelimit", "\"b\";r=5;t=1"),
            ],
            &[
                ("ratelimit-policy", "\"a\";q=0;w=1"),
                ("ratelimit", "\"a\";r=0;t=1"),
            ],
            &[
                ("ratelimit-policy", "\"a\";q=10;w=0"),
                ("ratelimit", "\"a\";r=5;t=1"),
            ],
            &[
                ("ratelimit-policy", "\"a\";q=10;w=1"),
                ("ratelimit", "\"a\";r=11;t=1"),
            ],
            &[
                ("ratelimit-policy", "\"a\";q=-1;w=1"),
                ("ratelimit", "\"a\";r=5;t=1"),
            ],
            &[
                ("ratelimit-policy", "\"a\";q=10;w=1;qu=\"content-bytes\""),
                ("ratelimit", "\"a\";r=5;t=1"),
            ],
            &[
                ("ratelimit-policy", "\"a\";q=1e9;w=1"),
                ("ratelimit", "\"a\";r=5;t=1"),
            ],
            &[("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "5")],
            &[
                ("x-ratelimit-limit", "10"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1700000030000"),
            ],
            &[
                ("x-ratelimit-limit", "ten"),
                ("x-ratelimit-remaining", "5"),
                ("x-ratelimit-reset", "1"),
            ],
        ];
        for case in cases {
            assert_eq!(parse(case), None, "{case:?}");
        }
    }

    #[test]
    fn separators_in_quoted_names_are_part_of_the_name() {
        for name in [
            "\"a;x\"",
            "\"a,b\"",
            "\"a;q=1;w=1, b\"",
            "\"say \\\"hi\\\", then \\\\\"",
        ] {
            let policy = format!("\"a\";q=1;w=1, {name};q=10;w=5");
            let state = format!("{name};r=4;t=3");
            let fields = [("ratelimit-policy", &*policy), ("ratelimit", &*state)];
            assert_eq!(parse(&fields), Some((10, 4, 3, Some(5))), "{name}");
        }
    }

    #[test]
    fn token_and_string_of_the_same_text_are_the_same_name() {
        for (policy, state) in [
            ("default;q=100;w=10", "default;r=50;t=3"),
            ("default;q=100;w=10", "\"default\";r=50;t=3"),
            ("\"default\"; q=100; w=10", "default; r=50; t=3"),
        ] {
            let fields = [("ratelimit-policy", policy), ("ratelimit", state)];
            assert_eq!(parse(&fields), Some((100, 50, 3, Some(10))), "{state}");
        }
    }

    #[test]
    fn item_with_invalid_parameter_is_ignored() {
        let quota = |policy: &str, state: &str| {
            parse(&[("ratelimit-policy", policy), ("ratelimit", state)])
        };
        let (policy, state) = ("\"a\";q=10;w=5", "\"a\";r=4;t=3");
        assert_eq!(quota(policy, state), Some((10, 4, 3, Some(5))));
        assert_eq!(quota(policy, "\"a\";r=4"), Some((10, 4, 5, Some(5))));
        let invalid = ["-1", "3.0", "\"3\"", "soon", "?1", "@3", ":Aw==:"];
        for value in invalid {
            for state in [
                format!("\"a\";r=4;t={value}"),
                format!("\"a\";r={value};t=3"),
            ] {
                assert_eq!(quota(policy, &state), None, "{state}");
                // Other items still count.
                let states = format!("{state}, \"b\";r=6;t=2");
                let two = quota("\"a\";q=10;w=5, \"b\";q=20;w=1", &states);
                assert_eq!(two, Some((20, 6, 2, Some(1))), "{states}");
            }
            for policy in [
                format!("\"a\";q=10;w={value}"),
                format!("\"a\";q={value};w=5"),
            ] {
                assert_eq!(quota(&policy, state), None, "{policy}");
                // The next policy of the same name counts.
                let policies = format!("{policy}, \"a\";q=20;w=1");
                let next = quota(&policies, state);
                assert_eq!(next, Some((20, 4, 3, Some(1))), "{policies}");
            }
        }
        // A parameter without a value is a boolean.
        assert_eq!(quota(policy, "\"a\";r=4;t"), None);
        // The last parameter of a name counts.
        let repeated = quota("\"a\";q=x;q=10;w=5", "\"a\";r=9;t=x;t=3;r=4");
        assert_eq!(repeated, Some((10, 4, 3, Some(5))));
        // Parameters of the other field have no meaning.
        let other = quota("\"a\";q=10;w=5;r=-1;t=x", "\"a\";r=4;t=3;q=x;w=-1");
        assert_eq!(other, Some((10, 4, 3, Some(5))));
    }

    #[test]
    fn unnamed_members_are_ignored() {
        let fields = [
            (
                "ratelimit-policy",
                "(\"a\" b);q=1;w=1, 7;q=1;w=1, \"a\";q=10;w=5",
            ),
            ("ratelimit", "(\"a\" b);r=0;t=1, 7;r=0;t=1, \"a\";r=4;t=3"),
        ];
        assert_eq!(parse(&fields), Some((10, 4, 3, Some(5))));
    }

    #[test]
    fn field_with_a_syntax_error_is_absent() {
        let policy = "\"a\";q=10;w=5";
        let legacy = [
            ("x-ratelimit-limit", "100"),
            ("x-ratelimit-remaining", "50"),
            ("x-ratelimit-reset", "8"),
        ];
        for state in [
            "\"a\";r=4;t=3,",
            "\"a\";r=4;t=3, ,\"b\";r=1",
            "\"a\";r=4;t=3, \"b",
            "\"a\" ;r=4;t=3",
            "\"a\";r= 4;t=3",
            "\"a\";R=4;r=4;t=3",
            "\"a\";r=4;t=3;note=\u{fc}",
            "\"a\";r=4;t=1234567890123456",
            "limit=100, remaining=50, reset=8",
        ] {
            let mut fields = vec![("ratelimit-policy", policy), ("ratelimit", state)];
            assert_eq!(parse(&fields), None, "{state}");
            fields.extend(legacy);
            assert_eq!(parse(&fields), Some((100, 50, 8, None)), "{state}");
        }
        let fields = [
            ("ratelimit-policy", "\"a\";q=10;w=5;"),
            ("ratelimit", "\"a\";r=4;t=3"),
        ];
        assert_eq!(parse(&fields), None);
    }

    #[test]
    fn lines_of_a_field_are_one_list() {
        let mut fields = vec![
            ("ratelimit-policy", "\"a\";q=10;w=5"),
            ("ratelimit-policy", "\"b\";q=20;w=1"),
            ("ratelimit", "\"a\";r=6;t=3, \"c\";r=0;t=1"),
            ("ratelimit", "\"b\";r=4;t=1"),
        ];
        assert_eq!(parse(&fields), Some((20, 4, 1, Some(1))));
        let split_in_a_name = [
            ("ratelimit-policy", "\"a, b\";q=10;w=5"),
            ("ratelimit", "\"a"),
            ("ratelimit", "b\";r=4;t=3"),
        ];
        assert_eq!(parse(&split_in_a_name), Some((10, 4, 3, Some(5))));
        fields.push(("ratelimit", "\"a\";r="));
        assert_eq!(parse(&fields), None);
    }

    #[test]
    fn items_after_the_first_32_are_ignored_but_checked() {
        let state = |items: usize, last: &str| {
            let mut states = "\"x\";r=1;t=1, ".repeat(items);
            states.push_str(last);
            parse(&[
                ("ratelimit-policy", "\"a\";q=10;w=5"),
                ("ratelimit", &states),
            ])
        };
        assert_eq!(state(31, "\"a\";r=4;t=3"), Some((10, 4, 3, Some(5))));
        assert_eq!(state(32, "\"a\";r=4;t=3"), None);
        let first = |rest: &str| {
            let states = format!("\"a\";r=4;t=3, {}{rest}", "\"x\";r=1;t=1, ".repeat(99));
            parse(&[
                ("ratelimit-policy", "\"a\";q=10;w=5"),
                ("ratelimit", &states),
            ])
        };
        assert_eq!(first("\"b\""), Some((10, 4, 3, Some(5))));
        assert_eq!(first("\"b"), None);
    }

    #[test]
    fn past_timestamp_is_a_reset_of_zero() {
        let x = [
            ("x-ratelimit-limit", "10"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1600000000"),
        ];
        assert_eq!(parse(&x), Some((10, 0, 0, None)));
    }

    proptest! {
        #[test]
        fn policy_is_found_by_any_string_as_its_name(name in "[ -~]{0,20}") {
            let name = format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
            let policy = format!("{name};q=10;w=5");
            let state = format!("{name};r=4;t=3");
            let found = parse(&[("ratelimit-policy", &policy), ("ratelimit", &state)]);
            prop_assert_eq!(found, Some((10, 4, 3, Some(5))));
        }

        #[test]
        fn parsing_arbitrary_fields_does_not_panic(value in "[ -~]{0,60}", other in "[ -~]{0,60}") {
            for name in ["ratelimit", "ratelimit-limit", "x-ratelimit-limit"] {
                parse(&[(name, &value), ("ratelimit-policy", &other), ("ratelimit-reset", &other)]);
            }
        }
    }
}
