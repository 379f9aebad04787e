use super::*;
use FailureKind::*;
use Retryability::*;

fn classify(contract: &ApiErrorsAsFailures, status: u16) -> Option<ApiFailureClass> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    match contract.clone().classify_response(&response) {
        ClassifiedResponse::Ready(result) => result.err(),
        ClassifiedResponse::RequiresEos(_) => None,
    }
}

#[test]
fn every_status_is_read_as_documented() {
    let contract = ApiErrorsAsFailures::new();
    for code in 100..1000 {
        #[expect(
            clippy::match_overlapping_arm,
            reason = "the rows first, as in the table"
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
        let found = classify(&contract, code);
        let found = found.map(|class| (class.kind(), class.retryability()));
        assert_eq!(found, expected, "status {code}");
    }
}

#[test]
fn a_status_can_be_said_otherwise_without_touching_its_neighbours() {
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
                    "{status} set, {other} read"
                );
            }
        }
    }
}

#[test]
fn a_status_that_is_no_failure_is_refused() {
    for code in [100, 200, 302, 399, 600, 999] {
        let status = StatusCode::from_u16(code).unwrap();
        let error = ApiErrorsAsFailures::new()
            .classify_status(status, Always)
            .unwrap_err();
        assert_eq!(error.key(), format!("classify_status.{}", status.as_u16()));
    }
}

#[test]
fn a_failure_whose_header_names_invalid_token_is_that() {
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
            panic!("a status needs no end of stream")
        };
        assert_eq!(result.err().map(|class| class.kind()), expected);
    }
}

#[test]
fn debug_shows_what_is_retried() {
    assert_eq!(
        format!("{:?}", ApiErrorsAsFailures::new()),
        "ApiErrorsAsFailures {429: Always, 500: IfIdempotent, 504: IfIdempotent}"
    );
}
