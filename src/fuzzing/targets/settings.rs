//! Settings in TOML: an error or a policy that has them.

use std::time::Duration;

use toml::{Table, Value};
use tower_http_retry::{Backoff, RetryLayer, RetryPolicy};

/// The input is a TOML document.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let table = text.parse::<Table>();
    match toml::from_str::<RetryPolicy>(text) {
        Err(error) => {
            assert!(!error.message().is_empty());
            assert!(!text.trim().is_empty(), "all keys are optional: {error}");
        }
        Ok(policy) => check(policy, &table.expect("a policy from invalid TOML")),
    }
}

fn check(policy: RetryPolicy, table: &Table) {
    const KEYS: [&str; 14] = [
        "attempt_header",
        "backoff",
        "budget",
        "classify_status",
        "client_name",
        "discard_timeout",
        "drain_limit",
        "idempotency_key",
        "inspect_limit",
        "max_elapsed",
        "max_retries",
        "rate_gate",
        "replay_limit",
        "retry_non_idempotent",
    ];
    for key in table.keys() {
        assert!(KEYS.contains(&key.as_str()), "unknown key {key:?}");
    }
    let config = policy.config();
    let number = |key, default| table.get(key).map_or(Some(default), Value::as_integer);
    assert_eq!(number("max_retries", 3), Some(config.max_retries.into()));
    assert_eq!(
        number("replay_limit", 64 * 1024),
        i64::try_from(config.replay_limit).ok()
    );
    assert_eq!(
        number("inspect_limit", 16 * 1024),
        i64::try_from(config.inspect_limit).ok()
    );
    assert_eq!(
        number("drain_limit", 256 * 1024),
        i64::try_from(config.drain_limit).ok()
    );
    let flag = |key| table.get(key).map_or(Some(false), Value::as_bool);
    assert_eq!(
        flag("retry_non_idempotent"),
        Some(config.retry_non_idempotent)
    );
    assert_eq!(flag("rate_gate"), Some(config.rate_gate.is_some()));
    let name = table
        .get("client_name")
        .map_or(Some("default"), Value::as_str);
    assert_eq!(name, Some(&*config.client_name));
    for (key, found) in [
        ("max_elapsed", config.max_elapsed),
        ("discard_timeout", config.discard_timeout),
    ] {
        if let Some(expected) = table.get(key).and_then(simple_duration) {
            assert_eq!(found, expected, "{key}");
        }
    }
    let cap = table
        .get("backoff")
        .and_then(|backoff| simple_duration(backoff.get("cap")?));
    let cap = cap.unwrap_or(Duration::MAX);
    assert!(config.backoff.delays().take(50).all(|delay| delay <= cap));
    // A policy can be printed, and makes a layer.
    assert!(!format!("{policy:?}").is_empty());
    let layer = RetryLayer::new(policy);
    if let Some(budget) = table.get("budget").and_then(Value::as_table) {
        let balance = layer.budget().and_then(|budget| budget.balance());
        assert_eq!(
            budget.get("capacity").and_then(Value::as_integer),
            balance.map(i64::from)
        );
    }
    let is_disabled = table.get("budget").and_then(Value::as_str) == Some("disabled");
    assert_eq!(layer.budget().is_none(), is_disabled);
}

/// Reads a duration of one number and one of the units `ms` and `s`.
fn simple_duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?;
    let (digits, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let number = digits.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}
