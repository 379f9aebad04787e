use http::{HeaderValue, Method, Request, Response};

use super::*;

pub(super) const FIELDS: [&str; 17] = [
    "max_retries",
    "backoff",
    "max_elapsed",
    "replay_limit",
    "inspect_limit",
    "inspect_token_errors",
    "drain_limit",
    "discard_timeout",
    "retry_non_idempotent",
    "budget",
    "rate_gate",
    "idempotency_key",
    "attempt_header",
    "on_retry",
    "on_give_up",
    "retry_filter",
    "client_name",
];

#[test]
fn debug_shows_every_setting() {
    // All fields, by a pattern that the compiler checks.
    let RetryConfig {
        max_retries: _,
        backoff: _,
        max_elapsed: _,
        replay_limit: _,
        inspect_limit: _,
        inspect_token_errors: _,
        drain_limit: _,
        discard_timeout: _,
        retry_non_idempotent: _,
        budget: _,
        rate_gate: _,
        idempotency_key: _,
        attempt_header: _,
        on_retry: _,
        on_give_up: _,
        retry_filter: _,
        client_name: _,
    } = RetryConfig::default();
    let debug = format!("{:#?}", RetryPolicy::new());
    let shown: Vec<_> = debug
        .lines()
        .filter_map(|line| line.strip_prefix("        "))
        .filter_map(|line| line.split_once(": "))
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with(' '))
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert_eq!(shown, FIELDS);
}

/// The rows of the settings table in README: the names and the default.
fn readme_settings() -> Vec<(String, String)> {
    let readme = include_str!("../../README.md");
    let table = readme.split("| setting | default |").nth(1).unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let cells = |row: &str| {
        let mut cells = row.trim_matches('|').split(" | ");
        let names = cells.next().unwrap().trim().to_owned();
        (names, cells.next().unwrap().trim().to_owned())
    };
    rows.map(cells).collect()
}

#[test]
fn readme_lists_every_setting_with_its_default() {
    let rows = readme_settings();
    let documented = |name: &str| {
        let call = format!("`{name}(");
        let row = rows.iter().find(|(names, _)| names.contains(&call));
        &row.unwrap_or_else(|| panic!("README lacks {name}")).1
    };
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    let default = RetryConfig::default();
    let defaults = [
        ("max_retries", format!("{} (", default.max_retries)),
        (
            "backoff",
            "full jitter, 0 to 100 ms · 2ⁿ, at most 10 s".to_owned(),
        ),
        (
            "max_elapsed",
            format!("{} s", default.max_elapsed.as_secs()),
        ),
        ("replay_limit", kib(default.replay_limit)),
        ("inspect_limit", kib(default.inspect_limit)),
        ("drain_limit", kib(default.drain_limit)),
        (
            "discard_timeout",
            format!("{} s", default.discard_timeout.as_secs()),
        ),
        (
            "retry_non_idempotent",
            default.retry_non_idempotent.to_string(),
        ),
        ("client_name", format!("`{}`", default.client_name)),
        (
            "classify_status",
            "429 always; 500 and 504 if idempotent".to_owned(),
        ),
        ("classifier", "`ApiErrorsAsFailures`".to_owned()),
    ];
    for name in FIELDS {
        documented(name);
    }
    for (name, default) in defaults {
        let found = documented(name);
        assert!(
            found.starts_with(&default),
            "{name}: {found}, not {default}"
        );
    }
    let budget = RetryBudget::default().balance().unwrap();
    assert!(documented("budget").contains(&format!("capacity {budget}")));
}

#[test]
fn default_backoff_and_contract_are_those_documented() {
    let policy = RetryPolicy::new();
    assert_eq!(
        format!("{:?}", policy.config.backoff),
        "ExponentialBackoff { base: 100ms, cap: 10s, seed: None }"
    );
    assert_eq!(
        format!("{:?}", policy.classifier),
        "ApiErrorsAsFailures {429: Always, 500: IfIdempotent, 504: IfIdempotent}"
    );
}

#[test]
fn setters_can_be_undone() {
    let default = format!("{:?}", RetryPolicy::new());
    let policy = RetryPolicy::new()
        .rate_gate(RateGate::new())
        .idempotency_key(|_: &Request<()>| None::<HeaderValue>)
        .attempt_header(HeaderName::from_static("x-attempt"))
        .on_retry(|_| ())
        .on_give_up(|_| ())
        .retry_filter(|_| true);
    assert_ne!(format!("{policy:?}"), default);
    let policy = policy
        .no_rate_gate()
        .no_idempotency_key()
        .no_attempt_header()
        .no_callbacks();
    assert_eq!(format!("{policy:?}"), default);
}

#[test]
fn request_options_override_the_limits() {
    let (once, default) = (RetryPolicy::new().max_retries(0), RetryPolicy::new());
    let (once, default) = (once.config(), default.config());
    let options = RequestOptions::new();
    assert_eq!(once.replay_limit_for(options), 0);
    assert_eq!(once.replay_limit_for(options.max_retries(1)), 64 * 1024);
    assert_eq!(default.replay_limit_for(options), 64 * 1024);
    assert_eq!(default.replay_limit_for(options.max_retries(0)), 0);
    assert_eq!(default.max_retries_for(options.max_retries(5)), 5);
    let minute = Duration::from_secs(60);
    assert_eq!(default.max_elapsed_for(options), minute);
    assert_eq!(
        default.max_elapsed_for(options.max_elapsed(2 * minute)),
        2 * minute
    );
}

#[test]
fn events_show_no_secrets_in_debug() {
    let uri = "https://user:password@api.example/accounts?token=secret"
        .parse()
        .unwrap();
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("set-cookie", HeaderValue::from_static("id=secret"));
    let retry = RetryEvent::from_response(&Method::GET, &uri, &response, 1, Duration::ZERO);
    let reason = crate::GiveUpReason::NotRetryable;
    let give_up = GiveUpEvent::from_response(&Method::GET, &uri, &response, reason, 1);
    for debug in [format!("{retry:?}"), format!("{give_up:?}")] {
        assert!(debug.contains("api.example"), "{debug}");
        for secret in ["secret", "password", "user", "accounts", "token", "cookie"] {
            assert!(!debug.contains(secret), "{debug}");
        }
    }
}
