//! The settings file of a policy: a mirror of [`RetryConfig`].

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

use http::{HeaderName, StatusCode, status::InvalidStatusCode};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    RetryPolicy,
    config::{BudgetConfig, RetryConfig, Shared},
    idempotency::MakeIdempotencyKey,
};
use crate::{
    backoff::ExponentialBackoff,
    budget::RetryBudget,
    classify::{ApiErrorsAsFailures, Retryability},
    invalid_config::InvalidConfig,
    rate_gate::RateGate,
};

/// The keys of the file. [`RetryPolicy`] documents them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Settings {
    #[serde(deserialize_with = "keyed::max_retries")]
    max_retries: Option<u32>,
    #[serde(deserialize_with = "keyed::backoff")]
    backoff: Option<BackoffSettings>,
    #[serde(deserialize_with = "keyed::max_elapsed")]
    max_elapsed: Option<HumanDuration>,
    #[serde(deserialize_with = "keyed::replay_limit")]
    replay_limit: Option<usize>,
    #[serde(deserialize_with = "keyed::inspect_limit")]
    inspect_limit: Option<usize>,
    #[serde(deserialize_with = "keyed::inspect_token_errors")]
    inspect_token_errors: Option<bool>,
    #[serde(deserialize_with = "keyed::drain_limit")]
    drain_limit: Option<usize>,
    #[serde(deserialize_with = "keyed::discard_timeout")]
    discard_timeout: Option<HumanDuration>,
    #[serde(deserialize_with = "keyed::retry_non_idempotent")]
    retry_non_idempotent: Option<bool>,
    #[serde(deserialize_with = "keyed::budget")]
    budget: Option<BudgetSettings>,
    #[serde(deserialize_with = "keyed::rate_gate")]
    rate_gate: Option<bool>,
    #[serde(deserialize_with = "keyed::idempotency_key")]
    idempotency_key: Option<KeyFormat>,
    #[serde(deserialize_with = "keyed::attempt_header")]
    attempt_header: Option<String>,
    #[serde(deserialize_with = "keyed::client_name")]
    client_name: Option<String>,
    #[serde(deserialize_with = "keyed::classify_status")]
    classify_status: Option<BTreeMap<String, Retryability>>,
}

/// Wraps each field's deserializer so that its errors begin with the key; not every format adds it.
mod keyed {
    use super::*;

    macro_rules! keyed {
        ($($key:ident: $type:ty,)*) => {$(
            pub(super) fn $key<'de, D: Deserializer<'de>>(value: D) -> Result<Option<$type>, D::Error> {
                let value = <$type>::deserialize(value);
                let key = stringify!($key);
                value.map(Some).map_err(|error| D::Error::custom(format_args!("{key}: {error}")))
            }
        )*};
    }

    keyed! {
        max_retries: u32,
        backoff: BackoffSettings,
        max_elapsed: HumanDuration,
        replay_limit: usize,
        inspect_limit: usize,
        inspect_token_errors: bool,
        drain_limit: usize,
        discard_timeout: HumanDuration,
        retry_non_idempotent: bool,
        budget: BudgetSettings,
        rate_gate: bool,
        idempotency_key: KeyFormat,
        attempt_header: String,
        client_name: String,
        classify_status: BTreeMap<String, Retryability>,
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackoffSettings {
    base: HumanDuration,
    cap: HumanDuration,
}

#[derive(Debug)]
enum BudgetSettings {
    Disabled,
    Tokens(TokenSettings),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenSettings {
    capacity: NonZeroU32,
    cost: NonZeroU32,
}

impl<'de> Deserialize<'de> for BudgetSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = BudgetSettings;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`capacity` and `cost`, or \"disabled\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    "disabled" => Ok(BudgetSettings::Disabled),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                map: A,
            ) -> Result<Self::Value, A::Error> {
                let map = serde::de::value::MapAccessDeserializer::new(map);
                TokenSettings::deserialize(map).map(BudgetSettings::Tokens)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeyFormat {
    Quoted,
    Unquoted,
}

#[derive(Clone, Copy, Debug)]
struct HumanDuration(Duration);

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match humantime::parse_duration(&text) {
            Ok(duration) => Ok(Self(duration)),
            Err(error) => {
                let message = format_args!("invalid duration {text:?}: {error}");
                Err(D::Error::custom(message))
            }
        }
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
impl<'de> Deserialize<'de> for RetryPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let settings = Settings::deserialize(deserializer)?;
        Self::try_from_settings(settings).map_err(D::Error::custom)
    }
}

impl RetryPolicy {
    // Both patterns name all fields: the compiler finds a setting that is missing here.
    fn try_from_settings(settings: Settings) -> Result<Self, InvalidConfig> {
        let Settings {
            max_retries,
            backoff,
            max_elapsed,
            replay_limit,
            inspect_limit,
            inspect_token_errors,
            drain_limit,
            discard_timeout,
            retry_non_idempotent,
            budget,
            rate_gate,
            idempotency_key,
            attempt_header,
            client_name,
            classify_status,
        } = settings;
        let default = RetryConfig::default();
        let config = RetryConfig {
            max_retries: max_retries.unwrap_or(default.max_retries),
            backoff: backoff.map_or(default.backoff, |BackoffSettings { base, cap }| {
                Arc::new(ExponentialBackoff::new(base.0, cap.0))
            }),
            max_elapsed: max_elapsed.map_or(default.max_elapsed, |limit| limit.0),
            replay_limit: replay_limit.unwrap_or(default.replay_limit),
            inspect_limit: inspect_limit.unwrap_or(default.inspect_limit),
            inspect_token_errors: inspect_token_errors.unwrap_or(default.inspect_token_errors),
            drain_limit: drain_limit.unwrap_or(default.drain_limit),
            discard_timeout: discard_timeout.map_or(default.discard_timeout, |limit| limit.0),
            retry_non_idempotent: retry_non_idempotent.unwrap_or(default.retry_non_idempotent),
            budget: budget.map_or(Ok(default.budget), BudgetConfig::try_from)?,
            rate_gate: rate_gate.unwrap_or_default().then(RateGate::new),
            idempotency_key: idempotency_key.map(key_maker).transpose()?,
            attempt_header: attempt_header.map(header_name).transpose()?,
            client_name: client_name.map_or(default.client_name, Arc::from),
            // Callbacks cannot be deserialized.
            on_retry: default.on_retry,
            on_give_up: default.on_give_up,
            retry_filter: default.retry_filter,
        };
        let classifier = classifier(classify_status.unwrap_or_default())?;
        Ok(Self { classifier, config })
    }
}

impl TryFrom<BudgetSettings> for BudgetConfig {
    type Error = InvalidConfig;

    fn try_from(settings: BudgetSettings) -> Result<Self, InvalidConfig> {
        match settings {
            BudgetSettings::Disabled => Ok(Self::Disabled),
            BudgetSettings::Tokens(TokenSettings { capacity, cost }) => {
                RetryBudget::new(capacity, cost).map(Self::Shared)
            }
        }
    }
}

fn header_name(name: String) -> Result<HeaderName, InvalidConfig> {
    HeaderName::try_from(name)
        .map_err(|error| InvalidConfig::new("attempt_header", error.to_string()))
}

fn classifier(
    statuses: BTreeMap<String, Retryability>,
) -> Result<ApiErrorsAsFailures, InvalidConfig> {
    let mut classifier = ApiErrorsAsFailures::new();
    for (status, retryability) in statuses {
        let parsed: Result<StatusCode, InvalidStatusCode> = status.parse();
        let parsed = parsed.map_err(|error| {
            InvalidConfig::new(format!("classify_status.{status}"), error.to_string())
        })?;
        classifier = classifier.classify_status(parsed, retryability)?;
    }
    Ok(classifier)
}

#[cfg(feature = "uuid")]
fn key_maker(format: KeyFormat) -> Result<Shared<dyn MakeIdempotencyKey>, InvalidConfig> {
    use super::idempotency::MakeIdempotencyUuid;

    Ok(Shared(Arc::new(match format {
        KeyFormat::Quoted => MakeIdempotencyUuid::quoted(),
        KeyFormat::Unquoted => MakeIdempotencyUuid::unquoted(),
    })))
}

#[cfg(not(feature = "uuid"))]
fn key_maker(_: KeyFormat) -> Result<Shared<dyn MakeIdempotencyKey>, InvalidConfig> {
    let message = "requires the feature `uuid` of tower-http-retry";
    Err(InvalidConfig::new("idempotency_key", message))
}

#[cfg(test)]
mod tests;
