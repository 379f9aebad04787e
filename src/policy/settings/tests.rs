use super::*;

fn policy(text: &str) -> Result<RetryPolicy, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
}

fn debug(policy: &RetryPolicy) -> String {
    format!("{policy:#?}")
}

#[test]
fn empty_settings_equal_the_default() {
    assert_eq!(debug(&policy("").unwrap()), debug(&RetryPolicy::new()));
}

#[test]
fn keys_map_to_the_setters_of_their_names() {
    let seconds = Duration::from_secs;
    let exponential = ExponentialBackoff::new(seconds(1), seconds(2));
    let budget = RetryBudget::new(20.try_into().unwrap(), 2.try_into().unwrap()).unwrap();
    let new = RetryPolicy::new;
    let by_key = [
        ("max_retries = 7", new().max_retries(7)),
        (
            "backoff = { base = '1s', cap = '2s' }",
            new().backoff(exponential),
        ),
        ("max_elapsed = '1m 30s'", new().max_elapsed(seconds(90))),
        ("replay_limit = 1", new().replay_limit(1)),
        ("inspect_limit = 2", new().inspect_limit(2)),
        (
            "inspect_token_errors = true",
            new().inspect_token_errors(true),
        ),
        ("drain_limit = 3", new().drain_limit(3)),
        ("discard_timeout = '5s'", new().discard_timeout(seconds(5))),
        (
            "retry_non_idempotent = true",
            new().retry_non_idempotent(true),
        ),
        ("budget = { capacity = 20, cost = 2 }", new().budget(budget)),
        ("budget = 'disabled'", new().no_budget()),
        ("rate_gate = true", new().rate_gate(RateGate::new())),
        (
            "attempt_header = 'X-Attempt'",
            new().attempt_header(HeaderName::from_static("x-attempt")),
        ),
        ("client_name = 'accounts'", new().client_name("accounts")),
        (
            "classify_status = { 429 = 'never' }",
            new()
                .classify_status(StatusCode::TOO_MANY_REQUESTS, Retryability::Never)
                .unwrap(),
        ),
        (
            "classify_status = { 502 = 'if_idempotent' }",
            new()
                .classify_status(StatusCode::BAD_GATEWAY, Retryability::IfIdempotent)
                .unwrap(),
        ),
        (
            "classify_status = { 503 = 'always' }",
            new()
                .classify_status(StatusCode::SERVICE_UNAVAILABLE, Retryability::Always)
                .unwrap(),
        ),
    ];
    for (text, expected) in by_key {
        let read = policy(text).unwrap();
        assert_eq!(debug(&read), debug(&expected), "{text}");
        assert_ne!(debug(&read), debug(&new()), "{text}");
    }
}

#[test]
fn every_setting_has_a_key_unless_it_is_a_function() {
    let error = policy("unknown = 1").unwrap_err();
    let (_, keys) = error.split_once("expected one of ").unwrap();
    let keys: Vec<_> = keys.split(", ").map(|key| key.trim_matches('`')).collect();
    let functions = ["on_retry", "on_give_up", "retry_filter"];
    for field in super::super::tests::FIELDS {
        assert_eq!(
            keys.contains(&field),
            !functions.contains(&field),
            "{field}"
        );
    }
}

#[test]
fn documentation_of_the_policy_lists_every_key() {
    let error = policy("unknown = 1").unwrap_err();
    let (_, keys) = error.split_once("expected one of ").unwrap();
    let docs = include_str!("../mod.rs");
    let table = docs.split("/// | key | value |").nth(1).unwrap();
    let table = table.split("/// ```").next().unwrap();
    for key in keys.split(", ") {
        assert!(table.contains(key), "{key} is not documented");
    }
}

#[test]
fn errors_begin_with_the_key() {
    for (text, expected) in [
        (
            "max_elapsed = \"soon\"",
            "max_elapsed: invalid duration \"soon\"",
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
        ("budget = { capacity = 5 }", "budget: missing field `cost`"),
        (
            "budget = { capacity = 5, cost = 0 }",
            "budget: invalid value: integer `0`",
        ),
        (
            "budget = { capacity = 5, cost = 1, x = 1 }",
            "budget: unknown field `x`",
        ),
        ("budget = 'none'", "budget: invalid value: string \"none\""),
        (
            "backoff = { base = \"1s\", cap = \"-1s\" }",
            "backoff: invalid duration \"-1s\"",
        ),
        (
            "backoff = { base = \"1s\" }",
            "backoff: missing field `cap`",
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
    ] {
        let error = policy(text).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[cfg(feature = "uuid")]
#[test]
fn idempotency_keys_are_quoted_or_unquoted() {
    for text in ["quoted", "unquoted"] {
        let policy = policy(&format!("idempotency_key = \"{text}\"")).unwrap();
        let make = policy.config.idempotency_key.unwrap();
        let request = http::Request::post("/").body(()).unwrap();
        let key = make.make_idempotency_key(&request).unwrap();
        let key = key.to_str().unwrap();
        let uuid = key.trim_matches('"');
        assert_eq!(uuid.len() < key.len(), text == "quoted");
        assert_eq!(uuid::Uuid::parse_str(uuid).unwrap().get_version_num(), 4);
    }
}

#[cfg(not(feature = "uuid"))]
#[test]
fn idempotency_key_requires_the_feature_uuid() {
    let error = policy("idempotency_key = \"quoted\"").unwrap_err();
    assert!(error.starts_with("idempotency_key: "), "{error}");
}
