//! GOAWAY with each error code, at different moments.

use http::Method;
use tower_http_retry::GiveUpReason;

use super::{
    ANOTHER, ERROR_CODES,
    frames::{Connection, Status},
    send_to,
};
use crate::{CallEnd, CallResult, raw_server::Ending};

/// The first stream of a connection.
const FIRST: u32 = 1;
/// The last stream of a GOAWAY that excludes no stream.
const MAX: u32 = i32::MAX as u32;

/// The behavior of the first connection, with the streams that its GOAWAY frames include.
#[derive(Clone, Copy, Debug)]
enum Script {
    /// GOAWAY before a request, then no more frames.
    BeforeRequest,
    /// GOAWAY after the head of a request, which excludes it.
    ExcludesAfterHead,
    /// GOAWAY after a whole request, which excludes it.
    ExcludesAfterRequest,
    /// GOAWAY after a request, which includes it; then the end of the connection.
    IncludesAndEnds(u32, Ending),
    /// GOAWAY after a request, which includes it; then its response.
    IncludesAndResponds(u32),
    /// GOAWAY for all streams, then for the first one only; then its response.
    Graceful,
    /// GOAWAY after the head of the response; then the end of the connection.
    DuringResponse(Ending),
}

impl Script {
    async fn run(self, mut connection: Connection, code: u32) {
        if let Self::BeforeRequest = self {
            connection.go_away(0, code).await;
            return connection.read_to_end().await;
        }
        let stream = match self {
            Self::ExcludesAfterHead => connection.read_request_head().await,
            _ => connection.read_request().await,
        };
        assert_eq!(stream, Some(FIRST));
        match self {
            Self::BeforeRequest => unreachable!("returned above"),
            Self::ExcludesAfterHead | Self::ExcludesAfterRequest => {
                connection.go_away(0, code).await;
            }
            Self::IncludesAndEnds(last, ending) => {
                connection.go_away(last, code).await;
                return connection.end(ending);
            }
            Self::IncludesAndResponds(last) => {
                connection.go_away(last, code).await;
                respond(&mut connection).await;
            }
            Self::Graceful => {
                connection.go_away(MAX, code).await;
                connection.go_away(FIRST, code).await;
                respond(&mut connection).await;
            }
            Self::DuringResponse(ending) => {
                connection.send_head(FIRST, Status::Ok).await;
                connection.send_data(FIRST, "first").await;
                connection.go_away(FIRST, code).await;
                return connection.end(ending);
            }
        }
        connection.read_to_end().await;
    }
}

async fn respond(connection: &mut Connection) {
    connection.send_head(FIRST, Status::Ok).await;
    connection.send_last_data(FIRST, "first").await;
}

/// Runs `script` with each error code, and passes the results to `check`.
async fn for_each_code(script: Script, method: Method, check: impl Fn(&str, CallResult, usize)) {
    for code in ERROR_CODES {
        let misbehave = move |connection| async move {
            script.run(connection, code).await;
            None
        };
        let (result, responses) = send_to(misbehave, &method).await;
        let case = format!("{method}, {script:?}, code {code:#x}: {result:?}");
        check(&case, result, responses);
    }
}

fn assert_response(case: &str, result: &CallResult, expected: &str) {
    let CallEnd::Response(status, body) = &result.end else {
        panic!("{case}")
    };
    assert_eq!((status.as_u16(), &body[..]), (200, expected.as_bytes()));
}

#[tokio::test]
async fn excluded_request_is_retried_for_any_method() {
    for script in [Script::ExcludesAfterHead, Script::ExcludesAfterRequest] {
        for method in [Method::GET, Method::POST] {
            for_each_code(script, method, |case, result, responses| {
                assert_eq!((result.attempts, responses), (2, 1), "{case}");
                assert_response(case, &result, ANOTHER);
            })
            .await;
        }
    }
}

#[tokio::test]
async fn goaway_before_request_does_not_fail_call() {
    for method in [Method::GET, Method::POST] {
        for_each_code(Script::BeforeRequest, method, |case, result, responses| {
            assert_eq!(responses, 1, "{case}");
            assert_response(case, &result, ANOTHER);
        })
        .await;
    }
}

#[tokio::test]
async fn included_request_without_response_is_retried_only_if_idempotent() {
    for last in [FIRST, MAX] {
        for ending in Ending::ALL {
            let script = Script::IncludesAndEnds(last, ending);
            for_each_code(script, Method::GET, |case, result, responses| {
                assert_eq!((result.attempts, responses), (2, 1), "{case}");
                assert_response(case, &result, ANOTHER);
            })
            .await;
            for_each_code(script, Method::POST, |case, result, responses| {
                assert_eq!((result.attempts, responses), (1, 0), "{case}");
                assert!(matches!(result.end, CallEnd::Error(_)), "{case}");
                let reason = result.give_up_reason;
                assert_eq!(reason, Some(GiveUpReason::NotIdempotent), "{case}");
            })
            .await;
        }
    }
}

#[tokio::test]
async fn included_request_receives_response() {
    for script in [
        Script::IncludesAndResponds(FIRST),
        Script::IncludesAndResponds(MAX),
        Script::Graceful,
    ] {
        for method in [Method::GET, Method::POST] {
            for_each_code(script, method, |case, result, responses| {
                assert_eq!((result.attempts, responses), (1, 0), "{case}");
                assert_response(case, &result, "first");
            })
            .await;
        }
    }
}

#[tokio::test]
async fn connection_end_during_response_is_body_error() {
    for ending in Ending::ALL {
        for method in [Method::GET, Method::POST] {
            let script = Script::DuringResponse(ending);
            for_each_code(script, method, |case, result, responses| {
                assert_eq!((result.attempts, responses), (1, 0), "{case}");
                assert!(matches!(result.end, CallEnd::BodyError(..)), "{case}");
            })
            .await;
        }
    }
}
