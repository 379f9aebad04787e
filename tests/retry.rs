//! Request, reply, wait: what the layer does after each result, under paused time.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::Instant;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn,
    timeout::TimeoutLayer,
};
use tower_http::classify::{
    ServerErrorsAsFailures, ServerErrorsFailureClass, SharedClassifier, StatusInRangeAsFailures,
};
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, ReplayBody, RequestOptions, ResponseBody, RetryBudget, RetryLayer,
    RetryOutcome, RetryPolicy, Retryability, RetryableFailure, backoff_fn,
};
use tower_test::mock::{Handle, Mock, SendResponse};

type Upload = Full<Bytes>;
type Reply = UnsyncBoxBody<Bytes, io::Error>;
type Sent = Request<ReplayBody<Upload>>;
type Server = Handle<Sent, Response<Reply>>;

const SECOND: Duration = Duration::from_secs(1);
const TOKEN_ERROR: &str =
    r#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token"}"#;

/// A policy whose waits can be told in advance: 100 ms before each retry.
fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| std::iter::repeat(SECOND / 10)))
}

fn request(method: &str) -> Request<Upload> {
    Request::builder()
        .method(method)
        .uri("http://api.example/accounts")
        .body(Full::from("sent"))
        .unwrap()
}

fn answer(status: u16) -> Response<Reply> {
    answer_with(status, Full::from("received").map_err(never))
}

fn answer_with<B>(status: u16, body: B) -> Response<Reply>
where
    B: Body<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn never(never: Infallible) -> io::Error {
    match never {}
}

fn with_header(mut response: Response<Reply>, name: &'static str, value: &str) -> Response<Reply> {
    let value = HeaderValue::from_str(value).unwrap();
    response.headers_mut().append(name, value);
    response
}

/// Calls a server that answers as `script` says, and that must not be asked more often.
async fn run<C>(
    policy: RetryPolicy<C>,
    request: Request<Upload>,
    script: Vec<Result<Response<Reply>, BoxError>>,
) -> Result<Response<ResponseBody<Reply>>, BoxError>
where
    C: tower_http::classify::MakeClassifier + Send + Sync + 'static,
    C::Classifier: Send,
    C::FailureClass: RetryableFailure,
{
    let (mock, handle): (Mock<Sent, _>, Server) = tower_test::mock::pair();
    let server = async move {
        let mut handle = pin!(handle);
        for answer in script {
            let (_, reply) = handle.next_request().await.expect("a request");
            match answer {
                Ok(response) => reply.send_response(response),
                Err(error) => reply.send_error(error),
            }
        }
        let more = handle.next_request().await;
        assert!(more.is_none(), "one request too many");
    };
    let client = RetryLayer::new(policy).layer(mock).oneshot(request);
    let (result, ()) = tokio::join!(client, server);
    result
}

async fn stopped(
    policy: RetryPolicy,
    request: Request<Upload>,
    last: Response<Reply>,
) -> RetryOutcome {
    let status = last.status();
    let response = run(policy, request, vec![Ok(last)]).await.unwrap();
    assert_eq!(response.status(), status);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(
        (outcome.attempts(), outcome.total_delay()),
        (1, Duration::ZERO)
    );
    outcome
}

async fn text(response: Response<ResponseBody<Reply>>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_success_at_the_first_attempt_is_passed_through_untouched() {
    for status in [101, 200, 204, 302, 304] {
        let response = run(policy(), request("POST"), vec![Ok(answer(status))])
            .await
            .unwrap();
        assert!(response.extensions().get::<RetryOutcome>().is_none());
        assert_eq!(
            RetryOutcome::from_response(&response).give_up_reason(),
            None
        );
        assert_eq!(text(response).await, "received");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_worth_retrying_is_sent_again_after_the_wait() {
    for (status, method) in [(429, "POST"), (500, "GET"), (504, "PUT"), (429, "GET")] {
        let start = Instant::now();
        let script = vec![Ok(answer(status)), Ok(answer(status)), Ok(answer(200))];
        let response = run(policy(), request(method), script).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(start.elapsed(), SECOND / 5);
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!((outcome.attempts(), outcome.total_delay()), (3, SECOND / 5));
        assert_eq!(outcome.give_up_reason(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn each_attempt_gets_the_whole_request_as_it_was() {
    #[derive(Clone, Debug, PartialEq)]
    struct Mark(u32);
    let seen = Arc::new(AtomicU32::new(0));
    let inner = service_fn(async |mut request: Sent| {
        assert_eq!(request.extensions().get::<Mark>(), Some(&Mark(1)));
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.uri(), "/v1?x=%20");
        let values: Vec<_> = request.headers().get_all("x-repeated").iter().collect();
        assert_eq!(values, ["b", "a"]);
        assert!(request.headers()["authorization"].is_sensitive());
        // What one attempt does to its request does not leak into the next.
        request.extensions_mut().insert(Mark(2));
        request.headers_mut().clear();
        let body = request.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "sent");
        let status = match seen.fetch_add(1, Ordering::Relaxed) {
            0..3 => 504,
            _ => 200,
        };
        Ok::<_, io::Error>(answer(status))
    });
    let mut secret = HeaderValue::from_static("Bearer x");
    secret.set_sensitive(true);
    let request = Request::put("/v1?x=%20")
        .version(Version::HTTP_2)
        .header("x-repeated", "b")
        .header("authorization", secret)
        .header("x-repeated", "a")
        .extension(Mark(1))
        .body(Upload::from("sent"))
        .unwrap();
    let client = RetryLayer::new(policy()).layer(inner);
    assert_eq!(client.oneshot(request).await.unwrap().status(), 200);
    assert_eq!(seen.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn what_the_contract_does_not_retry_is_surfaced_at_once() {
    for status in [400, 401, 403, 404, 405, 406, 409, 418, 501, 502, 503] {
        let outcome = stopped(policy(), request("GET"), answer(status)).await;
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::NotRetryable),
            "{status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_token_in_the_header_stops_whatever_the_status() {
    for status in [401, 403, 429, 500, 503, 504] {
        let answer = with_header(
            answer(status),
            "www-authenticate",
            r#"Bearer error="invalid_token""#,
        );
        let outcome = stopped(policy(), request("GET"), answer).await;
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::InvalidToken),
            "{status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_token_in_the_body_stops_and_the_body_arrives_whole() {
    for status in [429, 500, 504] {
        for chunk in [1, 7, 1000] {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-trailer", HeaderValue::from_static("1"));
            let chunks = TOKEN_ERROR.as_bytes().chunks(chunk).map(Frame::data);
            let frames = chunks.map(|f| f.map_data(Bytes::from_static));
            let frames = frames.chain([Frame::trailers(trailers.clone())]).map(Ok);
            let body = StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>()));
            let response = answer_with(status, body);
            let response = run(policy(), request("GET"), vec![Ok(response)])
                .await
                .unwrap();
            let outcome = RetryOutcome::from_response(&response);
            assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::InvalidToken));
            assert_eq!(
                (response.status().as_u16(), outcome.attempts()),
                (status, 1)
            );
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers(), Some(&trailers));
            assert_eq!(body.to_bytes(), TOKEN_ERROR);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_compressed_error_object_is_not_looked_into() {
    let answer_500 = || answer_with(500, Full::from(TOKEN_ERROR).map_err(never));
    let compressed = with_header(answer_500(), "content-encoding", "gzip");
    let script = vec![Ok(compressed), Ok(answer(200))];
    let response = run(policy(), request("GET"), script).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_retries_are_counted() {
    let script = (0..3).map(|_| Ok(answer(500))).collect();
    let response = run(policy().max_retries(2), request("GET"), script)
        .await
        .unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.attempts(), 3);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
    assert_eq!(text(response).await, "received");

    let none = stopped(policy().max_retries(0), request("GET"), answer(429)).await;
    assert_eq!(none.give_up_reason(), Some(GiveUpReason::RetriesExhausted));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_schedule_ends_the_retries() {
    let policy = RetryPolicy::new().backoff(backoff_fn(|| [SECOND].into_iter()));
    let script = vec![Ok(answer(500)), Ok(answer(500))];
    let response = run(policy, request("GET"), script).await.unwrap();
    let stop = RetryOutcome::from_response(&response).give_up_reason();
    assert_eq!(stop, Some(GiveUpReason::RetriesExhausted));
}

#[tokio::test(start_paused = true)]
async fn a_post_that_the_server_may_have_acted_on_is_not_repeated() {
    for status in [500, 504] {
        let outcome = stopped(policy(), request("POST"), answer(status)).await;
        assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    }
    let mut forbidden = request("GET");
    let mark = RequestOptions::new().idempotent(false);
    forbidden.extensions_mut().insert(mark);
    let outcome = stopped(policy(), forbidden, answer(500)).await;
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
}

#[tokio::test(start_paused = true)]
async fn a_post_is_repeated_with_a_key_a_mark_or_without_the_guard() {
    let mut keyed = request("POST");
    let key = HeaderValue::from_static("\"8e03978e\"");
    keyed.headers_mut().insert("idempotency-key", key);
    let mut marked = request("POST");
    let mark = RequestOptions::new().idempotent(true);
    marked.extensions_mut().insert(mark);
    let unguarded = policy().retry_non_idempotent(true);
    for (policy, request) in [
        (policy(), keyed),
        (policy(), marked),
        (unguarded, request("POST")),
    ] {
        let script = vec![Ok(answer(500)), Ok(answer(200))];
        let response = run(policy, request, script).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_above_the_limit_is_sent_once() {
    let inner = service_fn(async |request: Sent| {
        let body = request.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "sent");
        Ok::<_, io::Error>(answer(504))
    });
    for (limit, stop) in [
        (3, GiveUpReason::BodyNotReplayable),
        (4, GiveUpReason::RetriesExhausted),
    ] {
        let client = RetryLayer::new(policy().replay_limit(limit)).layer(inner);
        let response = client.oneshot(request("PUT")).await.unwrap();
        assert_eq!(
            RetryOutcome::from_response(&response).give_up_reason(),
            Some(stop)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_earlier_than_the_server_asked() {
    for (hint, wait) in [("3", 3.1), ("0", 0.1), ("soon", 0.1)] {
        let start = Instant::now();
        let limited = with_header(answer(429), "retry-after", hint);
        let script = vec![Ok(limited), Ok(answer(200))];
        run(policy(), request("POST"), script).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs_f64(wait));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_past_the_deadline_is_surfaced_at_once() {
    for (hint, told) in [
        ("3600", Duration::from_secs(3600)),
        ("99999999999999999999999", Duration::MAX),
    ] {
        let start = Instant::now();
        let limited = with_header(answer(429), "retry-after", hint);
        let outcome = stopped(policy(), request("GET"), limited).await;
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::DeadlineExceeded)
        );
        assert_eq!(outcome.retry_after(), Some(told));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_the_call_to_the_start_of_the_last_attempt() {
    let policy = RetryPolicy::new()
        .max_retries(u32::MAX)
        .max_elapsed(5 * SECOND)
        .backoff(backoff_fn(|| std::iter::repeat(2 * SECOND)));
    let start = Instant::now();
    let script = (0..3).map(|_| Ok(answer(500))).collect();
    let response = run(policy, request("GET"), script).await.unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::DeadlineExceeded)
    );
    assert_eq!((outcome.attempts(), start.elapsed()), (3, 4 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn reading_the_failed_response_is_bounded_in_time_and_counts_towards_the_wait() {
    for (delay, expected) in [(SECOND / 10, SECOND), (3 * SECOND, 3 * SECOND)] {
        let policy = RetryPolicy::new().backoff(backoff_fn(move || std::iter::repeat(delay)));
        let start = Instant::now();
        let stalled = StreamBody::new(futures_util::stream::pending());
        let script = vec![Ok(answer_with(500, stalled)), Ok(answer(200))];
        run(policy, request("GET"), script).await.unwrap();
        assert_eq!(start.elapsed(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_object_in_front_of_a_stall_is_still_seen() {
    let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from(TOKEN_ERROR)))]);
    let stalled = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    let script = vec![Ok(answer_with(500, StreamBody::new(stalled)))];
    let response = run(policy(), request("GET"), script).await.unwrap();
    let stop = RetryOutcome::from_response(&response).give_up_reason();
    assert_eq!(stop, Some(GiveUpReason::InvalidToken));
    let first = response.into_body().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), TOKEN_ERROR);
}

#[tokio::test(start_paused = true)]
async fn an_error_object_that_is_longer_than_what_is_looked_at_is_still_seen() {
    let trace = "at ".repeat(10_000);
    let long = format!(r#"{{"error":"invalid_token","trace":"{trace}"}}"#);
    let script = vec![Ok(answer_with(
        500,
        Full::from(long.clone()).map_err(|it| match it {}),
    ))];
    let response = run(policy(), request("GET"), script).await.unwrap();
    let stop = RetryOutcome::from_response(&response).give_up_reason();
    assert_eq!(stop, Some(GiveUpReason::InvalidToken));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, long);
}

#[tokio::test(start_paused = true)]
async fn a_failed_response_that_breaks_off_is_retried_all_the_same() {
    let broken = futures_util::stream::iter([Err(io::ErrorKind::ConnectionReset.into())]);
    let script = vec![
        Ok(answer_with(500, StreamBody::new(broken))),
        Ok(answer(200)),
    ];
    let response = run(policy(), request("GET"), script).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// A body of 1 MiB frames without end that says how much was read and when it is gone.
#[derive(Clone, Default)]
struct Endless {
    read: Arc<AtomicU32>,
    dropped: Arc<AtomicBool>,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.read.fetch_add(1024, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'['; 1024])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_discarded_response_is_read_within_bounds_and_gone_before_the_wait() {
    let body = Endless::default();
    let (read, dropped) = (body.read.clone(), body.dropped.clone());
    let (mock, handle): (Mock<Sent, _>, Server) = tower_test::mock::pair();
    let mut handle = pin!(handle);
    let policy = policy().inspect_limit(2048).drain_limit(10 * 1024);
    let mut call = pin!(RetryLayer::new(policy).layer(mock).oneshot(request("GET")));
    assert!(poll_once(call.as_mut()).await.is_none());
    expect(handle.as_mut())
        .await
        .send_response(answer_with(500, body));
    assert!(poll_once(call.as_mut()).await.is_none());
    assert!(dropped.load(Ordering::Relaxed));
    assert_eq!(read.load(Ordering::Relaxed), 12 * 1024);
}

async fn expect(handle: Pin<&mut Server>) -> SendResponse<Response<Reply>> {
    let mut handle = handle;
    handle.next_request().await.expect("a request").1
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_always_ready_is_read_no_longer_than_set() {
    let policy = policy().drain_limit(usize::MAX);
    let (mock, handle): (Mock<Sent, _>, Server) = tower_test::mock::pair();
    let mut handle = pin!(handle);
    let mut call = pin!(RetryLayer::new(policy).layer(mock).oneshot(request("GET")));
    assert!(poll_once(call.as_mut()).await.is_none());
    let endless = answer_with(500, Endless::default());
    expect(handle.as_mut()).await.send_response(endless);
    // It gives the thread back, so that its timer is looked at.
    assert!(poll_once(call.as_mut()).await.is_none());
    tokio::time::advance(SECOND).await;
    assert!(poll_once(call.as_mut()).await.is_none());
    expect(handle.as_mut()).await.send_response(answer(200));
    assert_eq!(call.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn reading_the_failed_response_does_not_pass_the_deadline() {
    let policy = policy().max_elapsed(SECOND / 5);
    let start = Instant::now();
    let stalled = StreamBody::new(futures_util::stream::pending());
    let script = vec![Ok(answer_with(500, stalled)), Ok(answer(200))];
    run(policy, request("GET"), script).await.unwrap();
    assert_eq!(start.elapsed(), SECOND / 5);
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_the_retries_of_all_requests_and_successes_pay_for_them() {
    let budget = RetryBudget::new(20.try_into().unwrap(), 10.try_into().unwrap()).unwrap();
    let policy = || policy().budget(budget.clone());
    let script = (0..3).map(|_| Ok(answer(500))).collect();
    let response = run(policy(), request("GET"), script).await.unwrap();
    let stop = RetryOutcome::from_response(&response).give_up_reason();
    assert_eq!(stop, Some(GiveUpReason::BudgetExhausted));
    assert_eq!((budget.balance(), budget.overdrafts()), (Some(0), 1));
    // A 404 pays too: the server is alive. A POST that failed does not.
    for (status, method, tokens) in [(200, "GET", 1), (404, "GET", 2), (500, "POST", 2)] {
        run(policy(), request(method), vec![Ok(answer(status))])
            .await
            .unwrap();
        assert_eq!(budget.balance(), Some(tokens));
    }
    // Where the server set the time, the retry is free.
    let limited = with_header(answer(429), "retry-after", "1");
    let script = vec![Ok(limited), Ok(answer(200))];
    run(policy(), request("GET"), script).await.unwrap();
    assert_eq!(budget.balance(), Some(3));
    for _ in 0..7 {
        run(policy(), request("GET"), vec![Ok(answer(200))])
            .await
            .unwrap();
    }
    // A retry that succeeds gets back what it cost.
    let script = vec![Ok(answer(504)), Ok(answer(200))];
    run(policy(), request("GET"), script).await.unwrap();
    assert_eq!((budget.balance(), budget.withdrawals()), (Some(10), 3));
}

#[tokio::test(start_paused = true)]
async fn only_a_retry_that_was_never_sent_is_given_back() {
    let budget = RetryBudget::default();
    let policy = || policy().budget(budget.clone());
    for (sent, tokens) in [(false, 50), (true, 40)] {
        let (mock, handle): (Mock<Sent, _>, Server) = tower_test::mock::pair();
        let mut handle = pin!(handle);
        let mut call = Box::pin(
            RetryLayer::new(policy())
                .layer(mock)
                .oneshot(request("GET")),
        );
        assert!(poll_once(call.as_mut()).await.is_none());
        expect(handle.as_mut()).await.send_response(answer(500));
        assert!(poll_once(call.as_mut()).await.is_none());
        assert_eq!(budget.balance(), Some(40));
        if sent {
            tokio::time::advance(SECOND).await;
            assert!(poll_once(call.as_mut()).await.is_none());
            drop(expect(handle.as_mut()).await);
        }
        drop(call);
        assert_eq!(budget.balance(), Some(tokens));
    }
    // A retry is not sent, either, where the failed response is found to say invalid_token.
    let budget = RetryBudget::default();
    let token = answer_with(500, Full::from(TOKEN_ERROR).map_err(never));
    let policy = self::policy().budget(budget.clone());
    run(policy, request("GET"), vec![Ok(token)]).await.unwrap();
    assert_eq!(budget.balance(), Some(50));
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_a_layer_further_in_left_is_not_taken_for_ones_own() {
    let calls = AtomicU32::new(0);
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .map_request(|request: Sent| request)
        .map_response(|response: Response<ResponseBody<Reply>>| response)
        .layer(RetryLayer::new(policy()))
        .service(service_fn(
            async |_: Request<ReplayBody<ReplayBody<Upload>>>| {
                let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
                Ok::<_, io::Error>(answer(if first { 500 } else { 200 }))
            },
        ));
    let response = client.oneshot(request("GET")).await.unwrap();
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 1);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn while_it_waits_a_request_holds_no_permit() {
    let calls = Arc::new(AtomicU32::new(0));
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service_fn(async |_: Sent| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            Ok::<_, io::Error>(answer(if first { 504 } else { 200 }))
        });
    let client = RetryLayer::new(policy()).layer(inner);
    let mut waiting = pin!(client.clone().oneshot(request("GET")));
    assert!(poll_once(waiting.as_mut()).await.is_none());
    let start = Instant::now();
    let other = client.clone().oneshot(request("GET")).await.unwrap();
    assert_eq!(
        (other.status().as_u16(), start.elapsed()),
        (200, Duration::ZERO)
    );
    assert_eq!(waiting.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_first_attempt_uses_the_readied_instance_and_each_later_one_gets_ready_itself() {
    #[derive(Default)]
    struct Readied {
        ready: bool,
        log: Arc<Mutex<Vec<&'static str>>>,
    }
    impl Clone for Readied {
        fn clone(&self) -> Self {
            let log = self.log.clone();
            Self { ready: false, log }
        }
    }
    impl Service<Sent> for Readied {
        type Response = Response<Reply>;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<Response<Reply>>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.ready = true;
            self.log.lock().unwrap().push("ready");
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Sent) -> Self::Future {
            assert!(
                std::mem::take(&mut self.ready),
                "called without being ready"
            );
            self.log.lock().unwrap().push("call");
            std::future::ready(Ok(answer(500)))
        }
    }
    let inner = Readied::default();
    let log = inner.log.clone();
    let client = RetryLayer::new(policy().max_retries(2)).layer(inner);
    client.oneshot(request("GET")).await.unwrap();
    let log = log.lock().unwrap().join(" ");
    assert_eq!(log, "ready call ready call ready call");
}

#[tokio::test(start_paused = true)]
async fn an_error_while_getting_ready_again_is_the_callers() {
    let (mock, handle): (Mock<Sent, _>, Server) = tower_test::mock::pair();
    let mut handle = pin!(handle);
    let outcome = OutcomeHandle::new();
    let mut request = request("GET");
    request.extensions_mut().insert(outcome.clone());
    let mut call = pin!(RetryLayer::new(policy()).layer(mock).oneshot(request));
    assert!(poll_once(call.as_mut()).await.is_none());
    expect(handle.as_mut()).await.send_response(answer(500));
    handle.send_error("broken for good");
    let error = call.await.unwrap_err();
    assert!(error.to_string().contains("broken for good"), "{error}");
    assert_eq!(outcome.get().map(|it| it.attempts()), Some(1));
}

#[tokio::test(start_paused = true)]
async fn dropped_it_sends_nothing_more_and_tells_of_the_attempts_made() {
    let (mock, handle): (Mock<Sent, _>, Server) = tower_test::mock::pair();
    let mut handle = pin!(handle);
    let outcome = OutcomeHandle::new();
    {
        let mut request = request("GET");
        request.extensions_mut().insert(outcome.clone());
        let mut call = pin!(RetryLayer::new(policy()).layer(mock).oneshot(request));
        assert!(poll_once(call.as_mut()).await.is_none());
        expect(handle.as_mut()).await.send_response(answer(500));
        assert!(poll_once(call.as_mut()).await.is_none());
        assert_eq!(outcome.get(), None);
    }
    assert!(handle.next_request().await.is_none());
    let outcome = outcome.get().unwrap();
    assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
}

#[tokio::test(start_paused = true)]
async fn transport_errors_are_retried_as_far_as_they_reached() {
    let io = |kind: io::ErrorKind| -> BoxError { io::Error::from(kind).into() };
    let table = [
        ("POST", io(io::ErrorKind::ConnectionRefused), None),
        ("GET", io(io::ErrorKind::ConnectionReset), None),
        (
            "POST",
            io(io::ErrorKind::ConnectionReset),
            Some(GiveUpReason::NotIdempotent),
        ),
        ("GET", tower::timeout::error::Elapsed::new().into(), None),
        (
            "POST",
            tower::timeout::error::Elapsed::new().into(),
            Some(GiveUpReason::NotIdempotent),
        ),
        ("GET", "unknown".into(), Some(GiveUpReason::NotRetryable)),
    ];
    for (method, error, stop) in table {
        let text = error.to_string();
        let handle = OutcomeHandle::new();
        let mut request = request(method);
        request.extensions_mut().insert(handle.clone());
        let mut script = vec![Err(error)];
        if stop.is_none() {
            script.push(Ok(answer(200)));
        }
        let attempts = script.len() as u32;
        let result = run(policy(), request, script).await;
        let outcome = handle.get().unwrap();
        assert_eq!(
            (outcome.attempts(), outcome.give_up_reason()),
            (attempts, stop),
            "{text}"
        );
        match stop {
            None => assert_eq!(result.unwrap().status(), 200),
            Some(_) => assert_eq!(result.unwrap_err().to_string(), text),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_times_out_inside_is_made_again() {
    let calls = AtomicU32::new(0);
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(TimeoutLayer::new(SECOND))
        .service_fn(async |_: Sent| {
            if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            Ok::<_, BoxError>(answer(200))
        });
    let start = Instant::now();
    assert_eq!(client.oneshot(request("GET")).await.unwrap().status(), 200);
    assert_eq!(start.elapsed(), SECOND + SECOND / 10);
}

#[tokio::test(start_paused = true)]
async fn other_classifiers_decide_what_is_a_failure() {
    let server_errors = SharedClassifier::new(ServerErrorsAsFailures::new());
    let policy = || policy().classifier(server_errors.clone());
    // To this classifier, a 429 is a success.
    let response = run(policy(), request("GET"), vec![Ok(answer(429))])
        .await
        .unwrap();
    assert_eq!(
        RetryOutcome::from_response(&response).give_up_reason(),
        None
    );
    let script = vec![Ok(answer(500)), Ok(answer(503))];
    let response = run(policy(), request("GET"), script).await.unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));
    // The rule of invalid_token holds all the same.
    let token = answer_with(500, Full::from(TOKEN_ERROR).map_err(never));
    let response = run(policy(), request("GET"), vec![Ok(token)])
        .await
        .unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::InvalidToken));
}

#[tokio::test(start_paused = true)]
async fn a_class_of_ones_own_says_what_is_retried() {
    struct Always(ServerErrorsFailureClass);
    impl RetryableFailure for Always {
        fn retryability(&self) -> Retryability {
            match self.0 {
                ServerErrorsFailureClass::StatusCode(_) => Retryability::Always,
                ServerErrorsFailureClass::Error(_) => Retryability::Never,
            }
        }
    }
    use tower_http::classify::ClassifyResponse;
    let classifier = ServerErrorsAsFailures::new().map_failure_class(Always as fn(_) -> _);
    let policy = policy().classifier(SharedClassifier::new(classifier));
    let script = vec![Ok(answer(502)), Ok(answer(200))];
    let response = run(policy, request("POST"), script).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_status_named_in_the_policy_is_retried() {
    let policy = policy()
        .classify_status(StatusCode::BAD_GATEWAY, Retryability::IfIdempotent)
        .unwrap();
    let script = vec![Ok(answer(502)), Ok(answer(200))];
    let response = run(policy, request("GET"), script).await.unwrap();
    assert_eq!(response.status(), 200);

    let range = StatusInRangeAsFailures::new_for_client_and_server_errors();
    let policy = self::policy().classifier(range.into_make_classifier());
    let script = vec![Ok(answer(429)), Ok(answer(200))];
    let response = run(policy, request("POST"), script).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_schedule_of_zeros_does_not_occupy_the_thread() {
    let policy = RetryPolicy::new()
        .no_budget()
        .max_retries(u32::MAX)
        .max_elapsed(Duration::MAX)
        .backoff(backoff_fn(|| std::iter::repeat(Duration::ZERO)));
    let inner = service_fn(async |_: Sent| Ok::<_, io::Error>(answer(429)));
    let mut call = pin!(RetryLayer::new(policy).layer(inner).oneshot(request("GET")));
    // It gives the thread back, whatever comes of it.
    assert!(poll_once(call.as_mut()).await.is_none());
}

#[test]
fn the_future_is_send_where_its_parts_are() {
    fn check<T: Send>(_: T) {}
    let inner = service_fn(|_: Sent| std::future::ready(Ok::<_, io::Error>(answer(200))));
    check(RetryLayer::new(policy()).layer(inner).call(request("GET")));
}
