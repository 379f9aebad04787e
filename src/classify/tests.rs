use super::*;
use FailureKind::*;
use Retryability::*;

fn classify(classifier: &ApiErrorsAsFailures, status: u16) -> Option<ApiFailureClass> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    match classifier.clone().classify_response(&response) {
        ClassifiedResponse::Ready(result) => result.err(),
        ClassifiedResponse::RequiresEos(_) => None,
    }
}

#[test]
fn statuses_are_classified_as_documented() {
    let classifier = ApiErrorsAsFailures::new();
    for code in 100..1000 {
        #[expect(
            clippy::match_overlapping_arm,
            reason = "the order of the documented table"
        )]
        let expected = match code {
            400 => Some((BadRequest, Never)),
            401 => Some((Unauthorized, Never)),
            403 => Some((Forbidden, Never)),
            404 => Some((NotFound, Never)),
            405 => Some((MethodNotAllowed, Never)),
            406 => Some((NotAcceptable, Never)),
            429 => Some((TooManyRequests, Always)),
            500 => Some((InternalServerError, IfIdempotent)),
            504 => Some((GatewayTimeout, IfIdempotent)),
            400..500 => Some((ClientError, Never)),
            500..600 => Some((ServerError, Never)),
            _ => None,
        };
        let found = classify(&classifier, code);
        let found = found.map(|class| (class.kind(), class.retryability()));
        assert_eq!(found, expected, "status {code}");
    }
}

#[test]
fn classify_status_overrides_only_that_status() {
    for code in 400..600 {
        for retryability in [Never, IfIdempotent, Always] {
            let status = StatusCode::from_u16(code).unwrap();
            let before = ApiErrorsAsFailures::new();
            let after = before
                .clone()
                .classify_status(status, retryability)
                .unwrap();
            for other in (400..600).map(|code| StatusCode::from_u16(code).unwrap()) {
                let expected = match other == status {
                    true => retryability,
                    false => before.retryability(other),
                };
                assert_eq!(
                    after.retryability(other),
                    expected,
                    "{other}, with {status} overridden"
                );
            }
        }
    }
}

#[test]
fn classify_status_rejects_success_statuses() {
    for code in [100, 200, 302, 399, 600, 999] {
        let status = StatusCode::from_u16(code).unwrap();
        let error = ApiErrorsAsFailures::new()
            .classify_status(status, Always)
            .unwrap_err();
        assert_eq!(error.key(), format!("classify_status.{}", status.as_u16()));
    }
}

#[test]
fn invalid_token_header_overrides_kind_of_failures_only() {
    for (status, expected) in [
        (401, Some(InvalidToken)),
        (429, Some(InvalidToken)),
        (200, None),
    ] {
        let response = Response::builder()
            .status(status)
            .header("www-authenticate", r#"Bearer error="invalid_token""#)
            .body(())
            .unwrap();
        let ClassifiedResponse::Ready(result) =
            ApiErrorsAsFailures::new().classify_response(&response)
        else {
            panic!("a status is classified without the end of the stream")
        };
        assert_eq!(result.err().map(|class| class.kind()), expected);
    }
}

#[test]
fn debug_lists_retried_statuses() {
    assert_eq!(
        format!("{:?}", ApiErrorsAsFailures::new()),
        "ApiErrorsAsFailures {429: Always, 500: IfIdempotent, 504: IfIdempotent}"
    );
}

#[test]
fn tower_http_classes_follow_the_documented_table() {
    for code in 400..600 {
        let status = StatusCode::from_u16(code).unwrap();
        let expected = ApiErrorsAsFailures::new().retryability(status);
        let server_errors = ServerErrorsFailureClass::StatusCode(status);
        assert_eq!(server_errors.retryability(), expected, "{status}");
        let in_range = StatusInRangeFailureClass::StatusCode(status);
        assert_eq!(in_range.retryability(), expected, "{status}");
    }
    let gateway_timeout = ServerErrorsFailureClass::StatusCode(StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(gateway_timeout.retryability(), IfIdempotent);
    let error = ServerErrorsFailureClass::Error("text".into());
    assert_eq!(error.retryability(), Never);
    let error = StatusInRangeFailureClass::Error("text".into());
    assert_eq!(error.retryability(), Never);
}

#[test]
fn custom_kind_is_its_text() {
    let kind = FailureKind::Custom("quota_exceeded");
    assert_eq!(kind.as_str(), "quota_exceeded");
    assert_eq!(kind.to_string(), "quota_exceeded");
    assert_ne!(FailureKind::Custom("other"), Other);
}

#[test]
fn api_failure_class_reports_its_kind() {
    let status = StatusCode::UNAUTHORIZED;
    for kind in [InvalidToken, Unauthorized, Custom("quota_exceeded")] {
        let class = ApiFailureClass::new(kind, Some(status), IfIdempotent);
        assert_eq!(class.kind(), kind);
        assert_eq!(class.status(), Some(status));
        assert_eq!(class.retryability(), IfIdempotent);
        assert_eq!(class.to_string(), "401 Unauthorized");
        assert_eq!(class.failure_kind(), Some(kind));
        assert_eq!(RetryableFailure::retryability(&class), IfIdempotent);
    }
    let error = ApiFailureClass::new(Custom("quota_exceeded"), None, Never);
    assert_eq!(error.to_string(), "quota_exceeded");
}

#[test]
fn retryable_failure_reports_nothing_by_default() {
    struct AlwaysRetry;

    impl RetryableFailure for AlwaysRetry {
        fn retryability(&self) -> Retryability {
            Always
        }
    }

    assert_eq!(AlwaysRetry.failure_kind(), None);
    let class = ServerErrorsFailureClass::StatusCode(StatusCode::BAD_GATEWAY);
    assert_eq!(class.failure_kind(), None);
    let class = StatusInRangeFailureClass::StatusCode(StatusCode::BAD_GATEWAY);
    assert_eq!(class.failure_kind(), None);
}

#[cfg(feature = "serde")]
#[test]
fn retryability_deserializes_from_snake_case() {
    for (text, expected) in [
        (r#""never""#, Never),
        (r#""if_idempotent""#, IfIdempotent),
        (r#""always""#, Always),
    ] {
        let found: Retryability = serde_json::from_str(text).unwrap();
        assert_eq!(found, expected);
    }
    for text in [r#""Never""#, r#""IfIdempotent""#, r#""sometimes""#, "1"] {
        assert!(
            serde_json::from_str::<Retryability>(text).is_err(),
            "{text}"
        );
    }
}
