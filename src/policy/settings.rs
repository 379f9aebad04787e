//! The settings of a policy, as a configuration file has them.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use http::{HeaderName, StatusCode, status::InvalidStatusCode};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    backoff::ExponentialBackoff, budget::RetryBudget, classify::Retryability,
    invalid_config::InvalidConfig, policy::RetryPolicy, rate_gate::RateGate,
};

/// The settings of a [`RetryPolicy`], to be read by serde from a file in any format.
///
/// Each key is optional and has the name of the method of [`RetryPolicy`] that it stands for, with that
/// method's default. Durations are text as `humantime` reads it (`"250ms"`, `"1m 30s"`), sizes are bytes.
/// An unknown key is an error, and each error names its key.
///
/// | key | value |
/// | --- | --- |
/// | `max_retries` | number |
/// | `max_elapsed`, `discard_timeout` | duration |
/// | `backoff` | `base` and `cap`, both durations |
/// | `replay_limit`, `inspect_limit`, `drain_limit` | bytes |
/// | `retry_non_idempotent` | true or false |
/// | `budget` | `capacity` and `cost`, both numbers: one budget for all layers made from the policy |
/// | `no_budget` | true or false; not together with `budget` |
/// | `rate_gate` | true (a gate for all layers made from the policy) or false |
/// | `classify_status` | a table from statuses to `"always"`, `"if_idempotent"` or `"never"` |
/// | `attempt_header` | the name of the header |
/// | `idempotency_key` | `"quoted"` or `"bare"`: a UUID; needs the feature `uuid` |
/// | `name` | text |
///
/// ```
/// use tower_http_retry::{RetryLayer, RetryPolicy, RetrySettings};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let settings: RetrySettings = toml::from_str(
///     r#"
///     max_retries = 5
///     max_elapsed = "20s"
///     backoff = { base = "50ms", cap = "2s" }
///     budget = { capacity = 500, cost = 14 }
///     classify_status = { 502 = "if_idempotent", 503 = "if_idempotent" }
///     "#,
/// )?;
/// let layer = RetryLayer::new(RetryPolicy::try_from(settings)?);
///
/// let error = toml::from_str::<RetrySettings>("max_elapsed = \"soon\"").unwrap_err();
/// assert!(error.message().starts_with("max_elapsed: "));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySettings {
    #[serde(deserialize_with = "key::max_retries")]
    max_retries: Option<u32>,
    #[serde(deserialize_with = "key::max_elapsed")]
    max_elapsed: Option<Text>,
    backoff: Option<Backoff>,
    #[serde(deserialize_with = "key::replay_limit")]
    replay_limit: Option<usize>,
    #[serde(deserialize_with = "key::inspect_limit")]
    inspect_limit: Option<usize>,
    #[serde(deserialize_with = "key::drain_limit")]
    drain_limit: Option<usize>,
    #[serde(deserialize_with = "key::discard_timeout")]
    discard_timeout: Option<Text>,
    #[serde(deserialize_with = "key::retry_non_idempotent")]
    retry_non_idempotent: Option<bool>,
    budget: Option<Budget>,
    #[serde(deserialize_with = "key::no_budget")]
    no_budget: Option<bool>,
    #[serde(deserialize_with = "key::rate_gate")]
    rate_gate: Option<bool>,
    #[serde(deserialize_with = "key::classify_status")]
    classify_status: Option<BTreeMap<String, Retry>>,
    #[serde(deserialize_with = "key::attempt_header")]
    attempt_header: Option<String>,
    #[serde(deserialize_with = "key::idempotency_key")]
    idempotency_key: Option<Key>,
    #[serde(deserialize_with = "key::name")]
    name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backoff {
    #[serde(deserialize_with = "key::base")]
    base: Option<Text>,
    #[serde(deserialize_with = "key::cap")]
    cap: Option<Text>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    #[serde(deserialize_with = "key::capacity")]
    capacity: Option<NonZeroU32>,
    #[serde(deserialize_with = "key::cost")]
    cost: Option<NonZeroU32>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Retry {
    Always,
    IfIdempotent,
    Never,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Key {
    Quoted,
    Bare,
}

/// A duration that is written as text.
#[derive(Clone, Copy, Debug)]
struct Text(Duration);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration = humantime::parse_duration(&text);
        duration
            .map(Self)
            .map_err(|error| D::Error::custom(format_args!("{text:?} is no duration: {error}")))
    }
}

/// Reads a value, and names its key where it is bad: not every format does that on its own.
mod key {
    use super::*;

    macro_rules! named {
        ($($key:ident: $type:ty,)*) => {$(
            pub(super) fn $key<'de, D: Deserializer<'de>>(value: D) -> Result<Option<$type>, D::Error> {
                let value = <$type>::deserialize(value);
                let name = stringify!($key);
                value.map(Some).map_err(|error| D::Error::custom(format_args!("{name}: {error}")))
            }
        )*};
    }

    named! {
        max_retries: u32,
        max_elapsed: Text,
        base: Text,
        cap: Text,
        replay_limit: usize,
        inspect_limit: usize,
        drain_limit: usize,
        discard_timeout: Text,
        retry_non_idempotent: bool,
        capacity: NonZeroU32,
        cost: NonZeroU32,
        no_budget: bool,
        rate_gate: bool,
        classify_status: BTreeMap<String, Retry>,
        attempt_header: String,
        idempotency_key: Key,
        name: String,
    }
}

impl TryFrom<RetrySettings> for RetryPolicy {
    type Error = InvalidConfig;

    /// The policy of these settings.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] where a value has the right form and makes no sense: a budget that allows
    /// nothing, a status that is no failure.
    fn try_from(settings: RetrySettings) -> Result<Self, InvalidConfig> {
        let mut policy = Self::new();
        if let Some(Backoff { base, cap }) = settings.backoff {
            let (Some(base), Some(cap)) = (base, cap) else {
                return Err(InvalidConfig::new("backoff", "needs `base` and `cap`"));
            };
            policy = policy.backoff(ExponentialBackoff::new(base.0, cap.0));
        }
        if let Some(Budget { capacity, cost }) = settings.budget {
            let (Some(capacity), Some(cost)) = (capacity, cost) else {
                let problem = "needs `capacity` and `cost`";
                return Err(InvalidConfig::new("budget", problem));
            };
            policy = policy.budget(RetryBudget::new(capacity, cost)?);
        }
        if settings.no_budget == Some(true) {
            if settings.budget.is_some() {
                let problem = "there is a `budget` as well";
                return Err(InvalidConfig::new("no_budget", problem));
            }
            policy = policy.no_budget();
        }
        for (status, retry) in settings.classify_status.into_iter().flatten() {
            let key = format!("classify_status.{status}");
            let retryability = match retry {
                Retry::Always => Retryability::Always,
                Retry::IfIdempotent => Retryability::IfIdempotent,
                Retry::Never => Retryability::Never,
            };
            let status: StatusCode = status
                .parse()
                .map_err(|error: InvalidStatusCode| InvalidConfig::new(key, error.to_string()))?;
            policy = policy.classify_status(status, retryability)?;
        }
        if let Some(name) = settings.attempt_header {
            let name = name.parse::<HeaderName>();
            let name =
                name.map_err(|error| InvalidConfig::new("attempt_header", error.to_string()))?;
            policy = policy.attempt_header(name);
        }
        if let Some(key) = settings.idempotency_key {
            policy = with_key(policy, key)?;
        }
        if settings.rate_gate == Some(true) {
            policy = policy.rate_gate(RateGate::new());
        }
        if let Some(retries) = settings.max_retries {
            policy = policy.max_retries(retries);
        }
        if let Some(limit) = settings.max_elapsed {
            policy = policy.max_elapsed(limit.0);
        }
        if let Some(bytes) = settings.replay_limit {
            policy = policy.replay_limit(bytes);
        }
        if let Some(bytes) = settings.inspect_limit {
            policy = policy.inspect_limit(bytes);
        }
        if let Some(bytes) = settings.drain_limit {
            policy = policy.drain_limit(bytes);
        }
        if let Some(limit) = settings.discard_timeout {
            policy = policy.discard_timeout(limit.0);
        }
        if let Some(retry) = settings.retry_non_idempotent {
            policy = policy.retry_non_idempotent(retry);
        }
        if let Some(name) = settings.name {
            policy = policy.name(name);
        }
        Ok(policy)
    }
}

#[cfg(feature = "uuid")]
fn with_key(policy: RetryPolicy, key: Key) -> Result<RetryPolicy, InvalidConfig> {
    use crate::policy::IdempotencyKey;

    Ok(policy.idempotency_key(match key {
        Key::Quoted => IdempotencyKey::uuid(),
        Key::Bare => IdempotencyKey::bare_uuid(),
    }))
}

#[cfg(not(feature = "uuid"))]
fn with_key(_: RetryPolicy, _: Key) -> Result<RetryPolicy, InvalidConfig> {
    let problem = "this program was built without UUIDs (the feature `uuid` of tower-http-retry)";
    Err(InvalidConfig::new("idempotency_key", problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Result<RetryPolicy, String> {
        let settings: RetrySettings = toml::from_str(text).map_err(|it| it.message().to_owned())?;
        RetryPolicy::try_from(settings).map_err(|it| it.to_string())
    }

    #[test]
    fn nothing_said_is_the_default() {
        let policy = policy("").unwrap();
        assert_eq!(format!("{policy:?}"), format!("{:?}", RetryPolicy::new()));
    }

    #[test]
    fn each_key_does_what_the_method_of_its_name_does() {
        let read = policy(
            r#"
            max_retries = 7
            max_elapsed = "1m 30s"
            replay_limit = 1
            inspect_limit = 2
            drain_limit = 3
            discard_timeout = "250ms"
            retry_non_idempotent = true
            no_budget = true
            attempt_header = "X-Attempt"
            name = "accounts"
            [classify_status]
            429 = "never"
            500 = "always"
            502 = "if_idempotent"
            "#,
        )
        .unwrap();
        let made = RetryPolicy::new()
            .max_retries(7)
            .max_elapsed(Duration::from_secs(90))
            .replay_limit(1)
            .inspect_limit(2)
            .drain_limit(3)
            .discard_timeout(Duration::from_millis(250))
            .retry_non_idempotent(true)
            .no_budget()
            .attempt_header(HeaderName::from_static("x-attempt"))
            .name("accounts")
            .classify_status(StatusCode::TOO_MANY_REQUESTS, Retryability::Never)
            .and_then(|it| {
                it.classify_status(StatusCode::INTERNAL_SERVER_ERROR, Retryability::Always)
            })
            .and_then(|it| it.classify_status(StatusCode::BAD_GATEWAY, Retryability::IfIdempotent))
            .unwrap();
        assert_eq!(format!("{read:?}"), format!("{made:?}"));

        let read = policy(
            "budget = { capacity = 20, cost = 2 }\nrate_gate = true\nbackoff = { base = \"1s\", cap = \"1s\" }",
        );
        let read = read.unwrap();
        assert_eq!(read.spending().and_then(RetryBudget::balance), Some(20));
        assert!(read.gate.is_some());
        assert!(
            read.delays()
                .take(50)
                .all(|it| it <= Duration::from_secs(1))
        );
    }

    #[test]
    fn a_bad_value_is_named_with_its_key() {
        for (text, expected) in [
            (
                "max_elapsed = \"soon\"",
                "max_elapsed: \"soon\" is no duration",
            ),
            ("max_elapsed = 5", "max_elapsed: invalid type: integer `5`"),
            (
                "max_retries = -1",
                "max_retries: invalid value: integer `-1`",
            ),
            ("max_retrys = 1", "unknown field `max_retrys`"),
            (
                "budget = { capacity = 5, cost = 10 }",
                "budget: a retry costs 10 tokens",
            ),
            ("budget = { capacity = 5 }", "missing field `cost`"),
            (
                "budget = { capacity = 5, cost = 1, x = 1 }",
                "unknown field `x`",
            ),
            (
                "backoff = { base = \"1s\", cap = \"-1s\" }",
                "cap: \"-1s\" is no duration",
            ),
            (
                "classify_status = { 200 = \"always\" }",
                "classify_status.200: ",
            ),
            (
                "classify_status = { abc = \"always\" }",
                "classify_status.abc: ",
            ),
            (
                "classify_status = { 500 = \"perhaps\" }",
                "classify_status: unknown variant `perhaps`",
            ),
            ("attempt_header = \"two words\"", "attempt_header: "),
            (
                "idempotency_key = \"single\"",
                "idempotency_key: unknown variant",
            ),
            (
                "no_budget = true\nbudget = { capacity = 5, cost = 1 }",
                "no_budget: ",
            ),
        ] {
            let error = policy(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[cfg(feature = "uuid")]
    #[test]
    fn a_key_is_quoted_or_bare() {
        for text in ["quoted", "bare"] {
            let policy = policy(&format!("idempotency_key = \"{text}\"")).unwrap();
            let mut request = http::Request::post("/").body(()).unwrap();
            policy.idempotency_key.unwrap().add_to(&mut request);
            let key = request.headers()["idempotency-key"].to_str().unwrap();
            let bare = key.trim_matches('"');
            assert_eq!(bare.len() < key.len(), text == "quoted");
            assert_eq!(uuid::Uuid::parse_str(bare).unwrap().get_version_num(), 4);
        }
    }
}
