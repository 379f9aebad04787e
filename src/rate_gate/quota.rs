//! What a server says of its rate limit, in the headers of any response.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

/// A rate limit as the server states it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quota {
    /// How many requests a window allows.
    pub(crate) limit: u64,
    /// How many of them are left.
    pub(crate) remaining: u64,
    /// When there will be more, counted from the response.
    pub(crate) reset: Duration,
    /// How long a window is, where the server says so.
    pub(crate) window: Option<Duration>,
}

/// The rate limit that `headers` state; `None` where they state none, or one that makes no sense.
///
/// Read are, in this order: `RateLimit` with `RateLimit-Policy`
/// (draft-ietf-httpapi-ratelimit-headers-10: `"name";r=50;t=30` and `"name";q=100;w=60`), and the
/// older `RateLimit-Limit`, `-Remaining` and `-Reset` and their `X-` forms, whose reset is in seconds
/// or, where it is far off, an epoch in seconds. Of several policies, the one with the least left
/// counts; one that counts anything but requests (its `qu`: bytes, or calls at the same time) does not.
pub(crate) fn quota(headers: &HeaderMap, now: SystemTime) -> Option<Quota> {
    let quota = structured(headers)
        .or_else(|| triple(headers, &TRIPLE, now))
        .or_else(|| triple(headers, &X_TRIPLE, now))?;
    let sound = quota.limit > 0
        && quota.remaining <= quota.limit
        && quota.reset <= FURTHEST_RESET
        && quota.window.is_none_or(|window| !window.is_zero());
    sound.then_some(quota)
}

/// A week: a reset further off is more likely a mistake, milliseconds for seconds say, than a quota.
const FURTHEST_RESET: Duration = Duration::from_secs(7 * 24 * 3600);

fn structured(headers: &HeaderMap) -> Option<Quota> {
    let states = items(headers, RATELIMIT);
    let policies: Vec<_> = items(headers, POLICY).collect();
    let quotas = states.filter_map(|state| {
        let mut policies = policies.iter();
        let policy = policies.find(|it| it.name == state.name && it.counts_requests())?;
        Some(Quota {
            limit: policy.get("q")?,
            remaining: state.get("r")?,
            reset: Duration::from_secs(state.get("t").or(policy.get("w"))?),
            window: policy.get("w").map(Duration::from_secs),
        })
    });
    quotas.min_by_key(|quota| quota.remaining)
}

/// An item of a structured list with parameters (RFC 9651), as far as it is needed here.
struct Item<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Item<'_> {
    fn get(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }

    fn counts_requests(&self) -> bool {
        // The drafts have both `request` and `requests`.
        let unit = self.text("qu").map(|unit| unit.trim_matches('"'));
        unit.is_none_or(|unit| matches!(unit, "request" | "requests"))
    }

    fn text(&self, key: &str) -> Option<&str> {
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

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const TRIPLE: [HeaderName; 3] = [
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
];
const X_TRIPLE: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

fn triple(headers: &HeaderMap, names: &[HeaderName; 3], now: SystemTime) -> Option<Quota> {
    let [limit, remaining, reset] = names;
    let number = |name: &HeaderName| -> Option<u64> {
        let value = headers.get(name)?.to_str().ok()?;
        // `100, 100;w=60` was in use: the first number is the limit in force.
        let first = value.split([',', ';']).next()?.trim();
        first.parse().ok()
    };
    // Below, a number of seconds; above, a point in time: 10⁹ s since 1970 was in 2001.
    const EPOCH: u64 = 1_000_000_000;
    let reset = match number(reset)? {
        epoch @ EPOCH.. => {
            let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Duration::from_secs(epoch).saturating_sub(now)
        }
        seconds => Duration::from_secs(seconds),
    };
    Some(Quota {
        limit: number(limit)?,
        remaining: number(remaining)?,
        reset,
        window: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const NOW: u64 = 1_700_000_000;

    fn read(pairs: &[(&'static str, &str)]) -> Option<(u64, u64, u64, Option<u64>)> {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        });
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let quota = quota(&HeaderMap::from_iter(pairs), now)?;
        let window = quota.window.map(|window| window.as_secs());
        Some((quota.limit, quota.remaining, quota.reset.as_secs(), window))
    }

    #[test]
    fn each_form_is_read() {
        let draft = [
            ("ratelimit-policy", "\"default\";q=100;w=10"),
            ("ratelimit", "\"default\";r=50;t=3"),
        ];
        assert_eq!(read(&draft), Some((100, 50, 3, Some(10))));
        let two = [
            (
                "ratelimit-policy",
                "\"burst\";q=100;w=1, \"daily\";q=1000;w=86400",
            ),
            ("ratelimit", "\"daily\";r=7;t=500, \"burst\";r=60;t=1"),
        ];
        assert_eq!(read(&two), Some((1000, 7, 500, Some(86400))));
        let units = [
            (
                "ratelimit-policy",
                "\"calls\";q=100;w=10;qu=\"requests\", \"load\";q=9;qu=\"concurrent-requests\"",
            ),
            ("ratelimit", "\"load\";r=1;t=60, \"calls\";r=60;t=5"),
        ];
        assert_eq!(read(&units), Some((100, 60, 5, Some(10))));
        let older = [
            ("ratelimit-limit", "100"),
            ("ratelimit-remaining", "0"),
            ("ratelimit-reset", "8"),
        ];
        assert_eq!(read(&older), Some((100, 0, 8, None)));
        let epoch = (NOW + 30).to_string();
        let x = [
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "4999"),
            ("x-ratelimit-reset", &epoch),
        ];
        assert_eq!(read(&x), Some((5000, 4999, 30, None)));
    }

    #[test]
    fn what_is_malformed_contradictory_or_absurd_is_ignored() {
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
            assert_eq!(read(case), None, "{case:?}");
        }
    }

    #[test]
    fn a_reset_in_the_past_is_now() {
        let x = [
            ("x-ratelimit-limit", "10"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1600000000"),
        ];
        assert_eq!(read(&x), Some((10, 0, 0, None)));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(value in "[ -~]{0,60}", other in "[ -~]{0,60}") {
            for name in ["ratelimit", "ratelimit-limit", "x-ratelimit-limit"] {
                read(&[(name, &value), ("ratelimit-policy", &other), ("ratelimit-reset", &other)]);
            }
        }
    }
}
