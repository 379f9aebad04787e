//! Errors of `error_for_status` and its layer: kinds, malformed bodies, limits and secrets.

#[path = "../common/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "each suite uses a part of the helpers"
)]
mod common;

mod body;

use std::{
    collections::BTreeMap,
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn, timeout::TimeoutLayer,
};
use tower_http_retry::{
    ApiError, Error, ErrorForStatus, ErrorForStatusLayer, FailureKind as Kind, GiveUpReason,
    OutcomeHandle, Retry, RetryLayer, RetryOutcome, RetryPolicy, error_for_status,
};

use common::{
    INVALID_TOKEN, InnerResponse, RequestBody, RequestExt, ResponseExt, SECOND, ScriptedServer,
    body_bytes, policy_with_delay, request, response,
};

/// Converts `response`, and returns the API error.
async fn api_error(response: InnerResponse) -> ApiError {
    into_api_error(error_for_status(response).await)
}

/// Returns the API error of `result`. Panics at any other result.
fn into_api_error<T>(result: Result<T, Error>) -> ApiError {
    match result {
        Err(Error::Api(error)) => error,
        Err(error) => panic!("not an API error: {error:?}"),
        Ok(_) => panic!("not an error"),
    }
}

/// Creates a client with a delay of 1 s before each retry and with errors for failed responses.
fn retrying_client(server: ScriptedServer) -> ErrorForStatus<Retry<ScriptedServer>> {
    ServiceBuilder::new()
        .layer(ErrorForStatusLayer::new())
        .layer(RetryLayer::new(policy_with_delay(SECOND)))
        .service(server)
}

#[tokio::test]
async fn non_error_status_passes_through_unchanged() {
    for status in [100, 200, 201, 204, 302, 304] {
        let response = error_for_status(response(status)).await.unwrap();
        assert_eq!(body_bytes(response).await, "received");
    }
}

/// The kind, the retryability and the text of each status.
const STATUSES: [(u16, Kind, bool, &str); 12] = [
    (
        400,
        Kind::BadRequest,
        false,
        "400 Bad Request: arguments are missing or malformed",
    ),
    (
        401,
        Kind::Unauthorized,
        false,
        "401 Unauthorized: not authenticated",
    ),
    (
        403,
        Kind::Forbidden,
        false,
        "403 Forbidden: authenticated, but not permitted",
    ),
    (
        404,
        Kind::NotFound,
        false,
        "404 Not Found: no such endpoint",
    ),
    (
        405,
        Kind::MethodNotAllowed,
        false,
        "405 Method Not Allowed: wrong verb for this endpoint",
    ),
    (
        406,
        Kind::NotAcceptable,
        false,
        "406 Not Acceptable: no content format that the request accepts",
    ),
    (
        409,
        Kind::ClientError,
        false,
        "409 Conflict: failed given the information provided",
    ),
    (
        429,
        Kind::TooManyRequests,
        true,
        "429 Too Many Requests: over the rate limit, back off",
    ),
    (
        500,
        Kind::InternalServerError,
        true,
        "500 Internal Server Error: fault on the server",
    ),
    (
        504,
        Kind::GatewayTimeout,
        true,
        "504 Gateway Timeout: timed out on the server",
    ),
    (
        503,
        Kind::ServerError,
        false,
        "503 Service Unavailable: fault on the server",
    ),
    (599, Kind::ServerError, false, "599: fault on the server"),
];

#[tokio::test]
async fn status_determines_kind_and_message() {
    for (status, kind, is_retryable, text) in STATUSES {
        let error = api_error(response(status).with_text(r#"{"message":"no amount"}"#)).await;
        assert_eq!(error.kind(), kind);
        assert_eq!(error.status().as_u16(), status);
        assert_eq!(error.is_retryable(), is_retryable, "{status}");
        assert_eq!(error.to_string(), format!("{text}: no amount (1 attempt)"));
        let outcome = error.outcome();
        assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
    }
}

#[tokio::test]
async fn invalid_token_in_body_sets_kind_for_any_status() {
    for status in [400, 401, 403, 429, 500, 503] {
        let error = api_error(response(status).with_text(INVALID_TOKEN)).await;
        assert_eq!(error.kind(), Kind::InvalidToken);
        assert!(error.is_invalid_token() && !error.is_retryable());
        assert_eq!(error.error_code(), Some("invalid_token"));
        assert_eq!(error.code(), Some("unauthorized.bad_access_token.expired"));
        assert_eq!(error.message(), Some("Unauthorised"));
        assert_eq!(error.error_description(), Some("It has expired"));
        assert_eq!(error.body(), INVALID_TOKEN);
        assert!(!error.is_body_truncated());
    }
}

#[tokio::test]
async fn invalid_token_in_header_sets_kind() {
    let reply = response(401)
        .with_text("")
        .with_header("www-authenticate", "Bearer error=\"invalid_token\"");
    assert_eq!(api_error(reply).await.kind(), Kind::InvalidToken);
}

#[tokio::test]
async fn json_deserializes_custom_error_type() {
    let error = api_error(response(422).with_text(r#"{"field":"amount","limit":5}"#)).await;
    let fields: BTreeMap<String, serde_json::Value> = error.json().unwrap();
    assert_eq!(fields["limit"], 5);
    assert!(error.json::<Vec<u8>>().is_err());

    let with_byte_order_mark = api_error(response(422).with_text("\u{feff}{\"limit\":5}")).await;
    let fields: BTreeMap<String, u32> = with_byte_order_mark.json().unwrap();
    assert_eq!(fields["limit"], 5);
}

#[tokio::test(start_paused = true)]
async fn api_error_reports_retry_outcome() {
    let limited = |_| {
        response(429)
            .with_text(r#"{"message":"Slow down"}"#)
            .with_header("retry-after", "2")
    };
    let server = ScriptedServer::new((0..4).map(limited));
    let client = retrying_client(server.clone());
    let error = into_api_error(client.oneshot(request("GET")).await);
    server.assert_script_completed();
    let outcome = error.outcome();
    assert_eq!(outcome.attempts(), 4);
    assert_eq!(outcome.total_delay(), 9 * SECOND);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
    assert_eq!(error.retry_after(), Some(2 * SECOND));
    assert_eq!(
        error.to_string(),
        "429 Too Many Requests: over the rate limit, back off: Slow down (4 attempts)"
    );
}

#[tokio::test(start_paused = true)]
async fn transport_error_keeps_source_and_reports_outcome() {
    let server = ScriptedServer::new([io::ErrorKind::ConnectionReset; 4]);
    let client = retrying_client(server.clone());
    let Err(Error::Transport(error)) = client.oneshot(request("GET")).await else {
        panic!("not a transport error")
    };
    server.assert_script_completed();
    assert_eq!(
        (error.kind(), error.outcome().attempts()),
        (Kind::Disconnected, 4)
    );
    assert_eq!(
        error.outcome().give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
    assert_eq!(
        error.to_string(),
        "the connection broke before the answer was complete (4 attempts)"
    );
    let source = error.source().unwrap().downcast_ref::<io::Error>();
    assert_eq!(
        source.map(io::Error::kind),
        Some(io::ErrorKind::ConnectionReset)
    );
    assert!(error.inner().is::<io::Error>());
    assert!(error.into_inner().downcast::<io::Error>().is_ok());
}

#[tokio::test]
async fn outcome_of_earlier_call_is_not_reused() {
    let server = ScriptedServer::from_fn(|_| Err::<u16, BoxError>("broken".into()));
    let client = ErrorForStatusLayer::new().layer(server);
    let request = Request::new(()).with_extension(OutcomeHandle::new());
    for _ in 0..2 {
        let error = client.clone().oneshot(request.clone()).await.unwrap_err();
        let outcome = error.outcome();
        assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
    }
}

#[tokio::test(start_paused = true)]
async fn outer_timeout_reports_attempts_made() {
    let policy = RetryPolicy::new().no_budget();
    let client = ServiceBuilder::new()
        .layer(ErrorForStatusLayer::new())
        .layer(TimeoutLayer::new(5 * SECOND))
        .layer(RetryLayer::new(policy.max_retries(2)))
        .service(service_fn({
            let calls = Arc::new(AtomicU64::new(0));
            move |_: Request<_>| {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                async move {
                    if call == 2 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, BoxError>(response(500).with_text(""))
                }
            }
        }));
    let request = Request::new(RequestBody::default());
    let error = client.oneshot(request).await.unwrap_err();
    assert_eq!(error.to_string(), "no answer in time (3 attempts)");
    let outcome = error.outcome();
    assert_eq!((outcome.attempts(), outcome.give_up_reason()), (3, None));
    assert!(!outcome.total_delay().is_zero());
}

#[tokio::test]
async fn display_omits_unknown_attempts() {
    let server = ScriptedServer::new([Err::<u16, BoxError>("shed".into())]);
    let client = ErrorForStatusLayer::new().layer(server);
    let error = client.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(error.to_string(), "the call failed");
}

#[tokio::test]
async fn ready_error_reports_zero_attempts() {
    #[derive(Clone)]
    struct Broken;

    impl Service<Request<()>> for Broken {
        type Response = InnerResponse;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<InnerResponse>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let client = ErrorForStatusLayer::new().layer(Broken);
    let error = client.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome().attempts()),
        (Kind::NotProcessed, 0)
    );
    assert_eq!(
        error.to_string(),
        "the server did not process the request (never sent)"
    );
}

#[tokio::test(start_paused = true)]
async fn error_and_sources_contain_no_secrets() {
    const SECRET: &str = "acctok-4f9a01b2c3d4e5f6";
    let body = format!(
        r#"{{"error":"{SECRET}","token":"{SECRET}","message":"Bearer {SECRET} of /x?access_token={SECRET} expired"}}"#
    );
    let reply = move |_| {
        response(500)
            .with_text(&body)
            .with_header("set-cookie", SECRET)
    };
    let client = retrying_client(ScriptedServer::from_fn(reply));
    let request = Request::get(format!("https://{SECRET}@api.example/{SECRET}?t={SECRET}"))
        .header("authorization", format!("Bearer {SECRET}"))
        .body(RequestBody::from(SECRET))
        .unwrap();
    let error = client.oneshot(request).await.unwrap_err();
    assert!(matches!(error, Error::Api(_)));
    let mut texts = vec![
        error.to_string(),
        format!("{error:?}"),
        format!("{error:#?}"),
    ];
    let mut source = error.source();
    while let Some(error) = source {
        texts.extend([error.to_string(), format!("{error:?}")]);
        source = error.source();
    }
    for text in texts {
        assert!(!text.contains("4f9a"), "{text}");
        assert!(!text.contains('\n') || text.starts_with("ApiError {"));
    }
}

#[test]
fn errors_are_send_sync_static() {
    fn check<T: std::error::Error + Send + Sync + 'static>() {}
    check::<Error>();
    check::<ApiError>();
    let _: fn(Error) -> BoxError = BoxError::from;
}

#[test]
fn default_outcome_has_one_attempt() {
    let outcome = RetryOutcome::from_response(&Response::new(()));
    assert_eq!(outcome.attempts(), 1);
}
