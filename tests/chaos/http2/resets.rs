//! RST_STREAM with each error code, before and after the head of the response.

use http::Method;
use tower_http_retry::GiveUpReason;

use super::{
    ANOTHER, ERROR_CODES, NO_ERROR, REFUSED_STREAM,
    frames::{Connection, Status},
    send_to,
};
use crate::{CallEnd, CallResult};

/// The moment of the reset.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// After the head of the request, whose body may not have arrived yet.
    RequestHead,
    /// After the whole request.
    Request,
    /// After the head of the response.
    ResponseHead(Status),
    /// After a part of the response body.
    ResponseData(Status),
}

impl Moment {
    /// Resets the first stream at this moment. Returns the connection, which stays usable.
    async fn reset(self, mut connection: Connection, code: u32) -> Option<Connection> {
        let stream = match self {
            Self::RequestHead => connection.read_request_head().await?,
            _ => connection.read_request().await?,
        };
        if let Self::ResponseHead(status) | Self::ResponseData(status) = self {
            connection.send_head(stream, status).await;
        }
        if let Self::ResponseData(_) = self {
            connection.send_data(stream, "first").await;
        }
        connection.reset(stream, code).await;
        Some(connection)
    }
}

const BEFORE_RESPONSE: [Moment; 2] = [Moment::RequestHead, Moment::Request];
const DURING_SUCCESS: [Moment; 2] = [
    Moment::ResponseHead(Status::Ok),
    Moment::ResponseData(Status::Ok),
];
const DURING_FAILURE: [Moment; 2] = [
    Moment::ResponseHead(Status::InternalServerError),
    Moment::ResponseData(Status::InternalServerError),
];
const DURING_REJECTION: [Moment; 2] = [
    Moment::ResponseHead(Status::TooManyRequests),
    Moment::ResponseData(Status::TooManyRequests),
];

/// Runs each moment with each error code, and passes the results to `check`.
async fn for_each_code(
    moments: [Moment; 2],
    method: Method,
    check: impl Fn(&str, u32, CallResult, usize),
) {
    for moment in moments {
        for code in ERROR_CODES {
            let misbehave = move |connection| moment.reset(connection, code);
            let (result, responses) = send_to(misbehave, &method).await;
            let case = format!("{method}, {moment:?}, code {code:#x}: {result:?}");
            check(&case, code, result, responses);
        }
    }
}

fn assert_succeeds_at_second_attempt(case: &str, result: CallResult, responses: usize) {
    assert_eq!((result.attempts, responses), (2, 1), "{case}");
    let CallEnd::Response(status, body) = result.end else {
        panic!("{case}")
    };
    assert_eq!((status.as_u16(), &body[..]), (200, ANOTHER.as_bytes()));
}

#[tokio::test]
async fn get_is_retried_after_reset_before_response() {
    for_each_code(
        BEFORE_RESPONSE,
        Method::GET,
        |case, _, result, responses| {
            assert_succeeds_at_second_attempt(case, result, responses);
        },
    )
    .await;
}

#[tokio::test]
async fn post_is_retried_only_after_refused_stream() {
    for_each_code(
        BEFORE_RESPONSE,
        Method::POST,
        |case, code, result, responses| {
            if code == REFUSED_STREAM {
                return assert_succeeds_at_second_attempt(case, result, responses);
            }
            assert_eq!((result.attempts, responses), (1, 0), "{case}");
            assert!(matches!(result.end, CallEnd::Error(_)), "{case}");
            let reason = result.give_up_reason;
            assert_eq!(reason, Some(GiveUpReason::NotIdempotent), "{case}");
        },
    )
    .await;
}

#[tokio::test]
async fn reset_of_success_is_body_error() {
    for method in [Method::GET, Method::POST] {
        for_each_code(DURING_SUCCESS, method, |case, code, result, responses| {
            assert_eq!((result.attempts, responses), (1, 0), "{case}");
            // hyper ends the body without an error (RFC 9113 §8.1).
            if code != NO_ERROR {
                assert!(matches!(result.end, CallEnd::BodyError(..)), "{case}");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn reset_of_500_is_retried_only_if_idempotent() {
    for_each_code(DURING_FAILURE, Method::GET, |case, _, result, responses| {
        assert_succeeds_at_second_attempt(case, result, responses);
    })
    .await;
    for_each_code(
        DURING_FAILURE,
        Method::POST,
        |case, _, result, responses| {
            assert_eq!((result.attempts, responses), (1, 0), "{case}");
        },
    )
    .await;
}

#[tokio::test]
async fn reset_of_429_is_retried_for_any_method() {
    for method in [Method::GET, Method::POST] {
        for_each_code(DURING_REJECTION, method, |case, _, result, responses| {
            assert_succeeds_at_second_attempt(case, result, responses);
        })
        .await;
    }
}
