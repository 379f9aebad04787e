//! Parsing of the rate-limit fields of a response.

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

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

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
    pub(crate) fn from_headers(headers: &HeaderMap, now: SystemTime) -> Option<Self> {
        let quota = Self::from_structured_fields(headers)
            .or_else(|| Self::from_legacy_headers(headers, &LEGACY, now))
            .or_else(|| Self::from_legacy_headers(headers, &X_LEGACY, now))?;
        let valid = quota.limit > 0
            && quota.remaining <= quota.limit
            && quota.reset <= MAX_RESET
            && quota.window.is_none_or(|window| !window.is_zero());
        valid.then_some(quota)
    }

    fn from_structured_fields(headers: &HeaderMap) -> Option<Self> {
        let limits = items(headers, RATELIMIT);
        let policies: Vec<_> = items(headers, POLICY).collect();
        let quotas = limits.filter_map(|limit| {
            let mut policies = policies.iter();
            let policy =
                policies.find(|policy| policy.name == limit.name && policy.counts_requests())?;
            Some(Self {
                limit: policy.integer("q")?,
                remaining: limit.integer("r")?,
                reset: Duration::from_secs(limit.integer("t").or(policy.integer("w"))?),
                window: policy.integer("w").map(Duration::from_secs),
            })
        });
        quotas.min_by_key(|quota| quota.remaining)
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

/// An item of a list with parameters (RFC 9651). Only the syntax that rate-limit fields use is supported.
struct Item<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Item<'_> {
    fn integer(&self, key: &str) -> Option<u64> {
        self.parameter(key)?.parse().ok()
    }

    fn counts_requests(&self) -> bool {
        // The drafts have both `request` and `requests`.
        let unit = self.parameter("qu").map(|unit| unit.trim_matches('"'));
        unit.is_none_or(|unit| matches!(unit, "request" | "requests"))
    }

    /// Returns the last parameter of this name, as RFC 9651 requires.
    fn parameter(&self, key: &str) -> Option<&str> {
        let mut found = self.parameters.iter().filter(|(name, _)| *name == key);
        found.next_back().map(|(_, value)| *value)
    }
}

fn items<'a>(headers: &'a HeaderMap, name: HeaderName) -> impl Iterator<Item = Item<'a>> {
    let values = headers.get_all(name).into_iter();
    let members = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    members.filter_map(|member| {
        let mut parts = member.split(';').map(str::trim);
        let name = parts.next()?.trim_matches('"');
        let parameters = parts.filter_map(|part| part.split_once('='));
        Some(Item {
            name,
            parameters: parameters.collect(),
        })
    })
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
        fn parsing_arbitrary_fields_does_not_panic(value in "[ -~]{0,60}", other in "[ -~]{0,60}") {
            for name in ["ratelimit", "ratelimit-limit", "x-ratelimit-limit"] {
                parse(&[(name, &value), ("ratelimit-policy", &other), ("ratelimit-reset", &other)]);
            }
        }
    }
}
