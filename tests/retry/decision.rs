//! Retry decisions by status, number of retries and idempotency.

use tower_http_retry::{GiveUpReason, RequestOptions, backoff_fn};

use crate::common::{body_bytes, give_up_reason};

use super::*;

#[tokio::test(start_paused = true)]
async fn non_retryable_status_gives_up() {
    for status in [400, 401, 403, 404, 405, 406, 409, 418, 501, 502, 503] {
        let outcome = gives_up(policy(), request("GET"), response(status)).await;
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::NotRetryable),
            "{status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn gives_up_after_max_retries() {
    let response = run_script(policy().max_retries(2), request("GET"), [500; 3])
        .await
        .unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.attempts(), 3);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
    assert_eq!(body_bytes(response).await, "received");
}

#[tokio::test(start_paused = true)]
async fn max_retries_zero_disables_retries() {
    let outcome = gives_up(policy().max_retries(0), request("GET"), response(429)).await;
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
}

#[tokio::test(start_paused = true)]
async fn gives_up_when_backoff_ends() {
    let policy = RetryPolicy::new().backoff(backoff_fn(|| [SECOND].into_iter()));
    let response = run_script(policy, request("GET"), [500, 500])
        .await
        .unwrap();
    assert_eq!(
        give_up_reason(&response),
        Some(GiveUpReason::RetriesExhausted)
    );
}

#[tokio::test(start_paused = true)]
async fn post_is_not_retried_after_server_error() {
    for status in [500, 504] {
        let outcome = gives_up(policy(), request("POST"), response(status)).await;
        assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    }
}

#[tokio::test(start_paused = true)]
async fn idempotent_false_prevents_retry_of_get() {
    let request = request("GET").with_extension(RequestOptions::new().idempotent(false));
    let outcome = gives_up(policy(), request, response(500)).await;
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
}

#[tokio::test(start_paused = true)]
async fn post_is_retried_if_key_option_or_policy_allows() {
    let with_key = request("POST").with_header("idempotency-key", "\"8e03978e\"");
    let idempotent = request("POST").with_extension(RequestOptions::new().idempotent(true));
    let permissive = policy().retry_non_idempotent(true);
    for (policy, request) in [
        (policy(), with_key),
        (policy(), idempotent),
        (permissive, request("POST")),
    ] {
        let response = run_script(policy, request, [500, 200]).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}
