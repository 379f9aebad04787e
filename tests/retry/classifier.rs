//! Classifiers and failure classes other than the default.

use http::StatusCode;
use tower_http::classify::{
    ClassifyResponse, ServerErrorsAsFailures, ServerErrorsFailureClass, SharedClassifier,
    StatusInRangeAsFailures,
};
use tower_http_retry::{GiveUpReason, Retryability, RetryableFailure};

use crate::common::{INVALID_TOKEN, give_up_reason};

use super::*;

fn server_errors_policy() -> RetryPolicy<SharedClassifier<ServerErrorsAsFailures>> {
    policy().classifier(SharedClassifier::new(ServerErrorsAsFailures::new()))
}

#[tokio::test(start_paused = true)]
async fn custom_classifier_decides_failures() {
    // A 429 is a success for this classifier.
    let response = run_script(server_errors_policy(), request("GET"), [429])
        .await
        .unwrap();
    assert_eq!(give_up_reason(&response), None);
    let response = run_script(server_errors_policy(), request("GET"), [500, 503])
        .await
        .unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::NotRetryable));
}

#[tokio::test(start_paused = true)]
async fn invalid_token_gives_up_with_custom_classifier() {
    let reply = response(500).with_text(INVALID_TOKEN);
    let response = run_script(server_errors_policy(), request("GET"), [reply])
        .await
        .unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::InvalidToken));
}

#[tokio::test(start_paused = true)]
async fn custom_failure_class_decides_retryability() {
    struct RetryAllStatuses(ServerErrorsFailureClass);

    impl RetryableFailure for RetryAllStatuses {
        fn retryability(&self) -> Retryability {
            match self.0 {
                ServerErrorsFailureClass::StatusCode(_) => Retryability::Always,
                ServerErrorsFailureClass::Error(_) => Retryability::Never,
            }
        }
    }

    let classifier =
        ServerErrorsAsFailures::new().map_failure_class(RetryAllStatuses as fn(_) -> _);
    let policy = policy().classifier(SharedClassifier::new(classifier));
    let response = run_script(policy, request("POST"), [502, 200])
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn classify_status_makes_status_retryable() {
    let policy = policy()
        .classify_status(StatusCode::BAD_GATEWAY, Retryability::IfIdempotent)
        .unwrap();
    let response = run_script(policy, request("GET"), [502, 200])
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn status_range_classifier_retries_429() {
    let range = StatusInRangeAsFailures::new_for_client_and_server_errors();
    let policy = policy().classifier(range.into_make_classifier());
    let response = run_script(policy, request("POST"), [429, 200])
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}
