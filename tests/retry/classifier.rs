//! Classifiers and failure classes other than the default.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use http::{Response, StatusCode};
use tower_http::classify::{
    ClassifiedResponse, ClassifyResponse, NeverClassifyEos, ServerErrorsAsFailures,
    ServerErrorsFailureClass, SharedClassifier, StatusInRangeAsFailures,
};
use tower_http_retry::{
    ApiErrorsAsFailures, ApiFailureClass, FailureKind, GiveUpReason, Retryability, RetryableFailure,
};

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

/// Classifies a 200 with the header `x-error` as a failure of the kind `hidden_error`.
#[derive(Clone, Copy)]
struct HiddenErrors;

struct HiddenError;

impl RetryableFailure for HiddenError {
    fn retryability(&self) -> Retryability {
        Retryability::Always
    }

    fn failure_kind(&self) -> Option<FailureKind> {
        Some(FailureKind::Custom("hidden_error"))
    }
}

impl ClassifyResponse for HiddenErrors {
    type FailureClass = HiddenError;
    type ClassifyEos = NeverClassifyEos<HiddenError>;

    fn classify_response<B>(
        self,
        response: &Response<B>,
    ) -> ClassifiedResponse<HiddenError, Self::ClassifyEos> {
        ClassifiedResponse::Ready(match response.headers().contains_key("x-error") {
            true => Err(HiddenError),
            false => Ok(()),
        })
    }

    fn classify_error<E: fmt::Display + 'static>(self, _: &E) -> HiddenError {
        HiddenError
    }
}

#[tokio::test(start_paused = true)]
async fn custom_failure_kind_reaches_callbacks() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let policy = {
        let (retries, give_ups) = (events.clone(), events.clone());
        policy()
            .max_retries(1)
            .on_retry(move |event| {
                let event = (event.kind(), event.status().map(|status| status.as_u16()));
                retries.lock().unwrap().push(event);
            })
            .on_give_up(move |event| {
                let event = (event.kind(), event.status().map(|status| status.as_u16()));
                give_ups.lock().unwrap().push(event);
            })
            .classifier(SharedClassifier::new(HiddenErrors))
    };
    let script = [200, 200].map(|status| response(status).with_header("x-error", "1"));
    let response = run_script(policy, request("GET"), script).await.unwrap();
    assert_eq!(
        give_up_reason(&response),
        Some(GiveUpReason::RetriesExhausted)
    );
    let event = (FailureKind::Custom("hidden_error"), Some(200));
    assert_eq!(*events.lock().unwrap(), [event; 2]);
}

#[tokio::test(start_paused = true)]
async fn invalid_token_header_gives_up_with_custom_failure_class() {
    let reply = response(200)
        .with_header("x-error", "1")
        .with_header("www-authenticate", "Bearer error=\"invalid_token\"");
    let policy = policy().classifier(SharedClassifier::new(HiddenErrors));
    let response = run_script(policy, request("GET"), [reply]).await.unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::InvalidToken));
}

#[tokio::test(start_paused = true)]
async fn invalid_token_header_gives_up_whatever_the_class_is_made_from() {
    /// Classifies the status alone, with the failure class of the default contract.
    #[derive(Clone, Copy)]
    struct StatusOnly;

    impl ClassifyResponse for StatusOnly {
        type FailureClass = ApiFailureClass;
        type ClassifyEos = NeverClassifyEos<ApiFailureClass>;

        fn classify_response<B>(
            self,
            response: &Response<B>,
        ) -> ClassifiedResponse<ApiFailureClass, Self::ClassifyEos> {
            let mut without_headers = Response::new(());
            *without_headers.status_mut() = response.status();
            ApiErrorsAsFailures::new().classify_response(&without_headers)
        }

        fn classify_error<E: fmt::Display + 'static>(self, error: &E) -> ApiFailureClass {
            ApiErrorsAsFailures::new().classify_error(error)
        }
    }

    let reply = response(429).with_header("www-authenticate", "Bearer error=\"invalid_token\"");
    let policy = policy().classifier(SharedClassifier::new(StatusOnly));
    let response = run_script(policy, request("GET"), [reply]).await.unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::InvalidToken));
}

#[test]
fn default_policy_needs_no_type_annotation() {
    let layer = tower_http_retry::RetryLayer::new(RetryPolicy::default());
    assert_eq!(layer.policy().config().max_retries, 3);
}
