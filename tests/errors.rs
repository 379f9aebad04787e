//! Failed responses as typed errors: every row of the contract, every malformed body, no secrets.

use std::{
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http_retry::{
    ApiError, Error, ErrorForStatusLayer, FailureKind as Kind, GiveUpReason, OutcomeHandle,
    RetryLayer, RetryOutcome, RetryPolicy, backoff_fn, error_for_status,
};

type Reply = UnsyncBoxBody<Bytes, io::Error>;

const TOKEN_ERROR: &str = r#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token","error_description":"It has expired","message":"Unauthorised"}"#;

fn reply<B>(status: u16, body: B) -> Response<Reply>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut response = Response::new(body.map_err(io::Error::other).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn reply_text(status: u16, body: &str) -> Response<Reply> {
    reply(status, Full::<Bytes>::from(body.to_owned()))
}

async fn api_error(response: Response<Reply>) -> ApiError {
    match error_for_status(response).await {
        Err(Error::Api(error)) => error,
        other => panic!("not the API's error: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_no_failure_passes_untouched() {
    for status in [100, 200, 201, 204, 302, 304] {
        let response = error_for_status(reply_text(status, "text")).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "text");
    }
}

#[tokio::test]
async fn every_row_of_the_contract_has_its_kind() {
    for (status, kind, retryable, line) in [
        (
            400,
            Kind::BadRequest,
            false,
            "400 Bad Request: arguments are missing or malformed: no amount (1 attempt)",
        ),
        (
            401,
            Kind::Unauthorized,
            false,
            "401 Unauthorized: not authenticated: no amount (1 attempt)",
        ),
        (
            403,
            Kind::Forbidden,
            false,
            "403 Forbidden: authenticated, but not permitted: no amount (1 attempt)",
        ),
        (
            404,
            Kind::NotFound,
            false,
            "404 Not Found: no such endpoint: no amount (1 attempt)",
        ),
        (
            405,
            Kind::MethodNotAllowed,
            false,
            "405 Method Not Allowed: wrong verb for this endpoint: no amount (1 attempt)",
        ),
        (
            406,
            Kind::NotAcceptable,
            false,
            "406 Not Acceptable: no content format that the request accepts: no amount (1 attempt)",
        ),
        (
            409,
            Kind::ClientError,
            false,
            "409 Conflict: failed given the information provided: no amount (1 attempt)",
        ),
        (
            429,
            Kind::TooManyRequests,
            true,
            "429 Too Many Requests: over the rate limit, back off: no amount (1 attempt)",
        ),
        (
            500,
            Kind::InternalServerError,
            true,
            "500 Internal Server Error: fault on the server: no amount (1 attempt)",
        ),
        (
            504,
            Kind::GatewayTimeout,
            true,
            "504 Gateway Timeout: timed out on the server: no amount (1 attempt)",
        ),
        (
            503,
            Kind::ServerError,
            false,
            "503 Service Unavailable: fault on the server: no amount (1 attempt)",
        ),
        (
            599,
            Kind::ServerError,
            false,
            "599: fault on the server: no amount (1 attempt)",
        ),
    ] {
        let error = api_error(reply_text(status, r#"{"message":"no amount"}"#)).await;
        assert_eq!(error.kind(), kind);
        assert_eq!(error.status().as_u16(), status);
        assert_eq!(error.is_retryable(), retryable, "{status}");
        assert_eq!(error.to_string(), line);
        let outcome = error.outcome();
        assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
    }
}

#[tokio::test]
async fn the_error_object_is_read_and_decides_invalid_token_on_any_status() {
    for status in [400, 401, 403, 429, 500, 503] {
        let error = api_error(reply_text(status, TOKEN_ERROR)).await;
        assert_eq!(error.kind(), Kind::InvalidToken);
        assert!(error.is_invalid_token() && !error.is_retryable());
        assert_eq!(error.error_code(), Some("invalid_token"));
        assert_eq!(error.code(), Some("unauthorized.bad_access_token.expired"));
        assert_eq!(error.message(), Some("Unauthorised"));
        assert_eq!(error.error_description(), Some("It has expired"));
        assert_eq!(error.body(), TOKEN_ERROR);
        assert!(!error.is_body_truncated());
    }
    let mut only_in_header = reply_text(401, "");
    let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    only_in_header
        .headers_mut()
        .insert("www-authenticate", challenge);
    assert_eq!(api_error(only_in_header).await.kind(), Kind::InvalidToken);
}

#[tokio::test]
async fn an_error_type_of_ones_own_is_read_from_the_body() {
    let error = api_error(reply_text(422, r#"{"field":"amount","limit":5}"#)).await;
    let fields: std::collections::BTreeMap<String, serde_json::Value> = error.json().unwrap();
    assert_eq!(fields["limit"], 5);
    assert!(error.json::<Vec<u8>>().is_err());

    let marked = api_error(reply_text(422, "\u{feff}{\"limit\":5}")).await;
    let fields: std::collections::BTreeMap<String, u32> = marked.json().unwrap();
    assert_eq!(fields["limit"], 5);
}

#[test]
fn where_a_body_is_there_no_runtime_is_needed() {
    let response = Response::new(Full::<Bytes>::from(TOKEN_ERROR));
    let (mut parts, body) = response.into_parts();
    parts.status = StatusCode::UNAUTHORIZED;
    let call = error_for_status(Response::from_parts(parts, body));
    let error = call.now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidToken);
}

#[tokio::test]
async fn a_malformed_body_still_gives_the_error_of_the_status() {
    let deep = "[".repeat(60_000);
    let deep_object = format!("{}1{}", r#"{"error":"#.repeat(500), "}".repeat(500));
    let strange = [
        "",
        "no JSON at all",
        "{",
        r#"{"error":"invalid_tok"#,
        r#"{"error":{"error":"invalid_token"}}"#,
        r#"{"error":7}"#,
        r#"{"error":null}"#,
        r#""{\"error\":\"invalid_token\"}""#,
        r#"["invalid_token"]"#,
        "null",
        &deep,
        &deep_object,
    ];
    for body in strange {
        let error = api_error(reply_text(401, body)).await;
        assert_eq!(error.kind(), Kind::Unauthorized, "{body:.60}");
        assert_eq!(
            (error.error_code(), error.message()),
            (None, None),
            "{body:.60}"
        );
        assert_eq!(error.body(), body);
    }
    let not_utf8 = Full::from(Bytes::from_static(b"{\"error\":\"invalid_token\xff\"}"));
    let error = api_error(reply(401, not_utf8)).await;
    assert_eq!(
        (error.kind(), error.error_code()),
        (Kind::Unauthorized, None)
    );
    assert_eq!(error.body().len(), 26);
}

#[tokio::test]
async fn a_compressed_body_is_kept_and_not_taken_for_json() {
    let mut response = reply_text(401, TOKEN_ERROR);
    let gzip = HeaderValue::from_static("gzip");
    response.headers_mut().insert("content-encoding", gzip);
    let error = api_error(response).await;
    assert_eq!(
        (error.kind(), error.json_value()),
        (Kind::Unauthorized, None)
    );
    assert_eq!(error.body(), TOKEN_ERROR);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_kept_as_far_as_it_came() {
    let frames = [
        Ok(Frame::data(Bytes::from("{\"message\":"))),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ];
    let error = api_error(reply(500, StreamBody::new(stream::iter(frames)))).await;
    assert_eq!(error.kind(), Kind::InternalServerError);
    assert_eq!(error.body(), "{\"message\":");
    assert!(error.is_body_truncated());
}

#[tokio::test]
async fn a_body_of_a_gibibyte_is_never_read_whole() {
    const CHUNK: u64 = 8 * 1024;
    let read = Arc::new(AtomicU64::new(0));
    let counter = read.clone();
    let gibibyte = stream::iter(0..(1 << 30) / CHUNK).map_chunks(move |_| {
        counter.fetch_add(CHUNK, Ordering::Relaxed);
        Bytes::from_static(&[b' '; CHUNK as usize])
    });
    let error = api_error(reply(500, StreamBody::new(gibibyte))).await;
    assert_eq!(error.body().len(), 64 * 1024);
    assert_eq!(read.load(Ordering::Relaxed), 64 * 1024);
    assert!(error.is_body_truncated());
}

trait MapChunks: futures_util::Stream + Sized {
    fn map_chunks(
        self,
        f: impl FnMut(Self::Item) -> Bytes,
    ) -> impl futures_util::Stream<Item = io::Result<Frame<Bytes>>> {
        let mut f = f;
        futures_util::StreamExt::map(self, move |item| Ok(Frame::data(f(item))))
    }
}

impl<S: futures_util::Stream> MapChunks for S {}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_waited_for_as_long_as_set() {
    for (layer, expected) in [
        (ErrorForStatusLayer::new(), Duration::from_secs(5)),
        (
            ErrorForStatusLayer::new().body_timeout(Duration::from_millis(20)),
            Duration::from_millis(20),
        ),
    ] {
        let service = layer.layer(service_fn(async |_: Request<()>| {
            let start = stream::iter([Ok(Frame::data(Bytes::from(TOKEN_ERROR)))]);
            let stalled = futures_util::StreamExt::chain(start, stream::pending::<io::Result<_>>());
            Ok::<_, BoxError>(reply(503, StreamBody::new(stalled)))
        }));
        let start = Instant::now();
        let error = service.oneshot(Request::new(())).await.unwrap_err();
        assert_eq!(start.elapsed(), expected);
        // What came before the stall was all that mattered.
        assert_eq!(error.kind(), Kind::InvalidToken);
    }
}

#[tokio::test]
async fn the_limit_can_be_set_and_a_body_that_just_fits_is_not_cut() {
    for (limit, cut) in [(3, true), (4, false), (5, false), (0, true)] {
        let layer = ErrorForStatusLayer::new().body_limit(limit);
        let service = layer.layer(service_fn(async |_: Request<()>| {
            Ok::<_, BoxError>(reply_text(400, "four"))
        }));
        let Err(Error::Api(error)) = service.oneshot(Request::new(())).await else {
            panic!("400 is the API's error")
        };
        assert_eq!(
            (error.body().len(), error.is_body_truncated()),
            (limit.min(4), cut)
        );
    }
}

fn retrying(
    inner: impl Service<
        Request<tower_http_retry::ReplayBody<Full<Bytes>>>,
        Response = Response<Reply>,
        Error = BoxError,
        Future: Send,
    > + Clone,
) -> impl Service<Request<Full<Bytes>>, Response = impl Sized, Error = Error> {
    let policy =
        RetryPolicy::new().backoff(backoff_fn(|| std::iter::repeat(Duration::from_secs(1))));
    ServiceBuilder::new()
        .layer(ErrorForStatusLayer::new())
        .layer(RetryLayer::new(policy))
        .service(inner)
}

#[tokio::test(start_paused = true)]
async fn with_the_retry_layer_the_error_tells_of_the_attempts() {
    let client = retrying(service_fn(async |_| {
        let mut response = reply_text(429, r#"{"message":"Slow down"}"#);
        let hint = HeaderValue::from_static("2");
        response.headers_mut().insert("retry-after", hint);
        Ok(response)
    }));
    let Err(Error::Api(error)) = client.oneshot(Request::new(Full::default())).await else {
        panic!("429 is the API's error")
    };
    let outcome = error.outcome();
    assert_eq!(outcome.attempts(), 4);
    assert_eq!(outcome.total_delay(), Duration::from_secs(9));
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
    assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
    assert_eq!(
        error.to_string(),
        "429 Too Many Requests: over the rate limit, back off: Slow down (4 attempts)"
    );
}

#[tokio::test(start_paused = true)]
async fn a_transport_error_keeps_its_source_and_tells_of_the_attempts() {
    let client = retrying(service_fn(async |_| {
        Err::<Response<Reply>, BoxError>(io::Error::from(io::ErrorKind::ConnectionReset).into())
    }));
    let Err(Error::Transport(error)) = client.oneshot(Request::new(Full::default())).await else {
        panic!("no answer came")
    };
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
    let source = error.source().and_then(|it| it.downcast_ref::<io::Error>());
    assert_eq!(
        source.map(io::Error::kind),
        Some(io::ErrorKind::ConnectionReset)
    );
    assert!(error.inner().is::<io::Error>());
    assert!(error.into_inner().downcast::<io::Error>().is_ok());
}

#[tokio::test]
async fn an_outcome_of_an_earlier_call_is_not_told_again() {
    let client = ErrorForStatusLayer::new().layer(service_fn(async |_: Request<()>| {
        Err::<Response<Reply>, BoxError>("broken".into())
    }));
    let mut request = Request::new(());
    request.extensions_mut().insert(OutcomeHandle::new());
    for _ in 0..2 {
        let error = client.clone().oneshot(request.clone()).await.unwrap_err();
        let outcome = error.outcome();
        assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_from_outside_tells_of_the_attempts_made() {
    let policy = RetryPolicy::new().no_budget();
    let client = ServiceBuilder::new()
        .layer(ErrorForStatusLayer::new())
        .layer(tower::timeout::TimeoutLayer::new(Duration::from_secs(5)))
        .layer(RetryLayer::new(policy.max_retries(2)))
        .service(service_fn({
            let calls = Arc::new(AtomicU64::new(0));
            move |_: Request<_>| {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                async move {
                    if call == 2 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, BoxError>(reply_text(500, ""))
                }
            }
        }));
    let request = Request::new(Full::<Bytes>::default());
    let error = client.oneshot(request).await.unwrap_err();
    assert_eq!(error.to_string(), "no answer in time (3 attempts)");
    let outcome = error.outcome();
    assert_eq!((outcome.attempts(), outcome.give_up_reason()), (3, None));
    assert!(!outcome.total_delay().is_zero());
}

#[tokio::test]
async fn where_nobody_tells_of_attempts_none_are_claimed() {
    let client = ErrorForStatusLayer::new().layer(service_fn(async |_: Request<()>| {
        Err::<Response<Reply>, BoxError>("shed".into())
    }));
    let error = client.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(error.to_string(), "the call failed");
}

#[tokio::test]
async fn an_error_while_getting_ready_is_of_no_attempt() {
    #[derive(Clone)]
    struct Broken;
    impl Service<Request<()>> for Broken {
        type Response = Response<Reply>;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<Response<Reply>>>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("it is never ready")
        }
    }
    let client = ErrorForStatusLayer::new().layer(Broken);
    let error = client.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome().attempts()),
        (Kind::NotSent, 0)
    );
    assert_eq!(
        error.to_string(),
        "the server could not be reached (never sent)"
    );
}

#[tokio::test(start_paused = true)]
async fn no_secret_appears_in_the_error_or_its_sources() {
    const SECRET: &str = "acctok-4f9a01b2c3d4e5f6";
    let body = format!(
        r#"{{"error":"{SECRET}","token":"{SECRET}","message":"Bearer {SECRET} of /x?access_token={SECRET} expired"}}"#
    );
    let client = retrying(service_fn(async |_| {
        let mut response = reply_text(500, &body);
        let headers: &mut HeaderMap = response.headers_mut();
        headers.insert("set-cookie", HeaderValue::from_static(SECRET));
        Ok(response)
    }));
    let request = Request::get(format!("https://{SECRET}@api.example/{SECRET}?t={SECRET}"))
        .header("authorization", format!("Bearer {SECRET}"))
        .body(Full::from(SECRET))
        .unwrap();
    let error = client.oneshot(request).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::Api(_)));
    let mut shown = vec![
        error.to_string(),
        format!("{error:?}"),
        format!("{error:#?}"),
    ];
    let mut source = error.source();
    while let Some(error) = source {
        shown.extend([error.to_string(), format!("{error:?}")]);
        source = error.source();
    }
    for text in shown {
        assert!(!text.contains("4f9a"), "{text}");
        assert!(!text.contains('\n') || text.starts_with("ApiError {"));
    }
}

#[test]
fn errors_go_where_errors_go() {
    fn check<T: std::error::Error + Send + Sync + 'static>() {}
    check::<Error>();
    check::<ApiError>();
    let _: fn(Error) -> BoxError = BoxError::from;
    assert_eq!(
        RetryOutcome::from_response(&Response::new(())).attempts(),
        1
    );
}
