//! The rate gate, as its callers observe it, under paused time.

#[allow(
    dead_code,
    unused_imports,
    reason = "each suite uses a part of the helpers"
)]
mod common;

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_http_retry::{
    Error, ErrorForStatusLayer, GiveUpReason, RateGate, Retry, RetryBudget, RetryLayer,
    RetryOutcome, RetryPolicy,
};

use common::{
    InnerRequest, InnerResponse, IntoReply, MS, RequestBody, ResponseExt, RetryResponse, SECOND,
    ScriptedServer, body_bytes, give_up_reason, policy_with_delay, response,
};

/// The time that a server takes to reply.
const LATENCY: Duration = Duration::from_millis(10);

/// A call that runs as a task.
type Call = JoinHandle<Result<RetryResponse, BoxError>>;

/// Creates a policy without a delay before retries.
fn policy(gate: &RateGate) -> RetryPolicy {
    policy_with_delay(Duration::ZERO).rate_gate(gate.clone())
}

/// Creates a server that replies to request `n` with `reply(n)`.
fn server<R: IntoReply>(reply: impl FnMut(usize) -> R + Send + 'static) -> ScriptedServer {
    ScriptedServer::from_fn(reply).with_latency(LATENCY)
}

/// Creates a server that replies with `first`, and with a 200 to all other requests.
fn server_with_first(first: fn() -> InnerResponse) -> ScriptedServer {
    server(move |n| match n {
        0 => first(),
        _ => response(200),
    })
}

fn client(policy: RetryPolicy, server: &ScriptedServer) -> Retry<ScriptedServer> {
    RetryLayer::new(policy).layer(server.clone())
}

/// Returns the paths of the requests received so far.
fn paths(server: &ScriptedServer) -> Vec<String> {
    let received = server.received().into_iter();
    received.map(|request| request.uri.to_string()).collect()
}

/// Returns the times of the requests received so far.
fn times(server: &ScriptedServer) -> Vec<Duration> {
    let received = server.received().into_iter();
    received.map(|request| request.at).collect()
}

/// Creates a 429 with `Retry-After`.
fn limited(retry_after: &str) -> InnerResponse {
    response(429).with_header("retry-after", retry_after)
}

/// Creates a response with a quota of 100 requests in the headers `RateLimit-*`.
fn with_quota(status: u16, remaining: u32, reset: u32) -> InnerResponse {
    response(status)
        .with_header("ratelimit-limit", "100")
        .with_header("ratelimit-remaining", &remaining.to_string())
        .with_header("ratelimit-reset", &reset.to_string())
}

fn get(path: &str) -> http::Request<RequestBody> {
    let request = http::Request::get(path);
    request.body(RequestBody::default()).unwrap()
}

/// Starts a call and runs it until it needs time to pass.
async fn start(client: &Retry<ScriptedServer>, path: &str) -> Call {
    let call = tokio::spawn(client.clone().oneshot(get(path)));
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    call
}

/// Waits for the response of a call.
async fn finish(call: Call) -> RetryResponse {
    call.await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn closed_gate_queues_requests_then_paces_them_in_order() {
    let gate = RateGate::new();
    let server = server_with_first(|| limited("2"));
    let client = client(policy(&gate), &server);
    let mut calls = vec![start(&client, "/first").await];
    tokio::time::sleep(2 * LATENCY).await;
    assert_eq!(gate.time_until_open(), Some(2 * SECOND - LATENCY));
    for path in ["/a", "/b", "/c", "/d"] {
        calls.push(start(&client, path).await);
    }
    // The first call keeps its place, but joins the queue only after its own delay.
    assert_eq!(gate.queue_len(), 4);
    let mut attempts = Vec::new();
    for call in calls {
        let response = finish(call).await;
        assert_eq!(response.status(), 200);
        attempts.push(RetryOutcome::from_response(&response).attempts());
    }
    // Time in the queue is no attempt.
    assert_eq!(attempts, [2, 1, 1, 1, 1]);
    let paths = paths(&server);
    assert_eq!(paths, ["/first", "/first", "/a", "/b", "/c", "/d"]);
    let times = times(&server);
    assert!(times[1..].iter().all(|time| *time >= 2 * SECOND + LATENCY));
    let interval = gate.pacing_interval().unwrap();
    assert!(
        interval > SECOND,
        "one success in two seconds: {interval:?}"
    );
    for pair in times[1..].windows(2) {
        assert!(pair[1] - pair[0] + 2 * LATENCY >= interval, "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn queued_request_costs_no_budget() {
    let gate = RateGate::new();
    let budget = RetryBudget::default();
    let server = server_with_first(|| limited("1"));
    let client = client(policy(&gate).budget(budget.clone()), &server);
    let first = start(&client, "/first").await;
    tokio::time::sleep(2 * LATENCY).await;
    let queued = start(&client, "/queued").await;
    finish(first).await;
    finish(queued).await;
    assert_eq!((budget.withdrawals(), budget.balance()), (0, Some(50)));
}

#[tokio::test(start_paused = true)]
async fn cancelled_request_frees_its_place_in_queue() {
    let gate = RateGate::new();
    let server = server_with_first(|| limited("1"));
    let client = client(policy(&gate), &server);
    let first = start(&client, "/first").await;
    tokio::time::sleep(2 * LATENCY).await;
    let a = start(&client, "/a").await;
    let b = start(&client, "/b").await;
    let c = start(&client, "/c").await;
    b.abort();
    a.abort();
    finish(first).await;
    finish(c).await;
    assert_eq!(paths(&server), ["/first", "/first", "/c"]);
    let times = times(&server);
    let interval = gate.pacing_interval().unwrap();
    assert!(times[2] - times[1] <= interval + MS, "{times:?}");
    assert_eq!(gate.queue_len(), 0);
}

#[tokio::test(start_paused = true)]
async fn rejects_locally_when_permit_exceeds_deadline() {
    let policy = policy(&RateGate::new()).max_elapsed(5 * SECOND);
    let server = server(|_| limited("30"));
    let client = client(policy, &server);
    let from_server = client.clone().oneshot(get("/server")).await.unwrap();
    assert_eq!(
        give_up_reason(&from_server),
        Some(GiveUpReason::DeadlineExceeded)
    );
    let before = Instant::now();
    let local = client.oneshot(get("/local")).await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
    let outcome = RetryOutcome::from_response(&local);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::RateGated));
    assert_eq!(
        (outcome.attempts(), outcome.retry_after()),
        (0, Some(30 * SECOND))
    );
    assert_eq!(local.status(), 429);
    assert_eq!(local.headers()["retry-after"], "30");
    assert!(body_bytes(local).await.is_empty());
    assert_eq!(paths(&server), ["/server"]);
}

#[tokio::test(start_paused = true)]
async fn error_for_status_marks_local_429() {
    let policy = policy(&RateGate::new()).max_elapsed(5 * SECOND);
    let client = client(policy, &server(|_| limited("30")));
    let client = ErrorForStatusLayer::new().layer(client);
    client.clone().oneshot(get("/server")).await.unwrap_err();
    let error = client.oneshot(get("/local")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "429 Too Many Requests: over the rate limit, back off (never sent, held back by the rate gate)"
    );
    // The server did not respond.
    assert!(matches!(error, Error::RateGated(_)), "{error:?}");
    assert_eq!(error.status(), None);
    assert_eq!(error.outcome().attempts(), 0);
    assert!(error.retry_after().is_some_and(|delay| delay > 29 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn rejects_retry_locally_when_permit_exceeds_deadline() {
    let gate = RateGate::new();
    let server = server(|n| match n {
        0 => response(500),
        _ => limited("30"),
    });
    let with_delay = policy_with_delay(SECOND).rate_gate(gate.clone());
    let with_delay = client(with_delay.max_elapsed(5 * SECOND), &server);
    let without_delay = client(policy(&gate).max_elapsed(5 * SECOND), &server);
    let retried = start(&with_delay, "/retried").await;
    tokio::time::sleep(2 * LATENCY).await;
    // The server rejects another request during the delay.
    without_delay.oneshot(get("/other")).await.unwrap();
    let retried = finish(retried).await;
    let outcome = RetryOutcome::from_response(&retried);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::RateGated));
    // The response to the first attempt is gone.
    assert_eq!((outcome.attempts(), retried.status().as_u16()), (1, 429));
    assert_eq!(paths(&server), ["/retried", "/other"]);
}

#[tokio::test(start_paused = true)]
async fn queued_request_gives_up_when_gate_closes_past_its_deadline() {
    let gate = RateGate::new();
    let begin = Instant::now();
    let server = server(|n| match n {
        0 => limited("1"),
        _ => limited("40"),
    });
    let patient = client(policy(&gate), &server);
    let hasty = client(policy(&gate).max_elapsed(5 * SECOND), &server);
    let first = start(&patient, "/first").await;
    tokio::time::sleep(2 * LATENCY).await;
    let queued = finish(start(&hasty, "/queued").await).await;
    assert_eq!(give_up_reason(&queued), Some(GiveUpReason::RateGated));
    // It gives up when the second attempt is rejected, before the deadline.
    assert!(begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn max_closed_limits_closure_by_retry_after() {
    let gate = RateGate::with_max_closed(3 * SECOND);
    let begin = Instant::now();
    let server = server_with_first(|| limited("50"));
    let client = client(policy(&gate), &server);
    let rejected = start(&client, "/rejected").await;
    tokio::time::sleep(2 * LATENCY).await;
    let other = start(&client, "/other").await;
    finish(other).await;
    assert!(begin.elapsed() < 4 * SECOND);
    // The rejected request itself still waits for the whole `Retry-After`.
    finish(rejected).await;
    assert_eq!(times(&server)[2], 50 * SECOND + LATENCY);
}

#[tokio::test(start_paused = true)]
async fn retry_after_zero_causes_no_busy_loop() {
    let policy = policy(&RateGate::new()).no_budget().max_retries(u32::MAX);
    let server = server(|_| limited("0"));
    let client = client(policy, &server);
    let mut calls = Vec::new();
    for _ in 0..20 {
        calls.push(start(&client, "/").await);
    }
    tokio::time::sleep(50 * SECOND).await;
    let sent = server.received().len();
    assert!(sent < 200, "{sent} requests in 50 s");
    calls.into_iter().for_each(|call| call.abort());
}

#[tokio::test(start_paused = true)]
async fn advertised_quota_prevents_rejections() {
    let begin = Instant::now();
    let rejections = Arc::new(AtomicU32::new(0));
    let rejected = rejections.clone();
    // Ten requests a second. The first window begins with the first request.
    let (mut window, mut used) = (0, 0);
    let server = server(move |_| {
        let now = begin.elapsed().as_secs();
        if now != window {
            (window, used) = (now, 0);
        }
        used += 1;
        let remaining = 10_u32.checked_sub(used);
        let reply = match remaining {
            Some(_) => response(200),
            None => {
                rejected.fetch_add(1, Ordering::Relaxed);
                limited("1")
            }
        };
        let state = format!("\"x\";r={};t=1", remaining.unwrap_or(0));
        reply
            .with_header("ratelimit-policy", "\"x\";q=10;w=1")
            .with_header("ratelimit", &state)
    });
    let client = client(policy(&RateGate::new()), &server);
    // The first response advertises the quota.
    client.clone().oneshot(get("/")).await.unwrap();
    let mut calls = Vec::new();
    for _ in 0..40 {
        calls.push(start(&client, "/").await);
    }
    for call in calls {
        assert_eq!(finish(call).await.status(), 200);
    }
    assert_eq!(rejections.load(Ordering::Relaxed), 0);
    assert!(begin.elapsed() < 6 * SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn queued_request_holds_no_concurrency_permit() {
    let server = ScriptedServer::new([limited("3"), response(200), response(200), response(200)]);
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(server.clone());
    let gated = RetryLayer::new(policy(&RateGate::new())).layer(inner.clone());
    let ungated = RetryLayer::new(RetryPolicy::new()).layer(inner);
    let first = gated.clone().oneshot(get("/first"));
    let others = async {
        tokio::time::sleep(LATENCY).await;
        let queued = gated.clone().oneshot(get("/queued"));
        let passing = async {
            tokio::time::sleep(LATENCY).await;
            let before = Instant::now();
            ungated.oneshot(get("/passing")).await.unwrap();
            assert_eq!(before.elapsed(), Duration::ZERO);
        };
        tokio::join!(queued, passing)
    };
    tokio::join!(first, others).0.unwrap();
    server.assert_script_completed();
}

#[tokio::test(start_paused = true)]
async fn queued_requests_are_woken_when_gate_opens_earlier() {
    // Both replies open the gate earlier, but at a slower pace: a new window, and a 429 without one.
    for second_reply in [|| with_quota(200, 10, 60), || limited("2")] {
        let gate = RateGate::new();
        let begin = Instant::now();
        let policy = policy(&gate).max_retries(0).max_elapsed(300 * SECOND);
        let server = server(move |n| match n {
            0 => with_quota(200, 0, 30),
            1 => second_reply(),
            _ => response(200),
        });
        let client = client(policy, &server);
        let first = start(&client, "/first").await;
        tokio::time::sleep(LATENCY / 2).await;
        let second = start(&client, "/second").await;
        finish(first).await;
        let queued = start(&client, "/queued").await;
        assert_eq!(gate.queue_len(), 1);
        finish(second).await;
        assert_eq!(finish(queued).await.status(), 200);
        assert!(begin.elapsed() < 5 * SECOND, "{:?}", times(&server));
    }
}

#[tokio::test(start_paused = true)]
async fn late_timer_does_not_reject() {
    // Timers have a resolution of 1 ms, which ends this delay after the deadline.
    let delay = Duration::from_micros(100_300);
    let policy = policy_with_delay(delay)
        .rate_gate(RateGate::new())
        .max_elapsed(delay + MS / 10);
    let server = ScriptedServer::new([500, 200]);
    let response = client(policy, &server).oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn completed_future_releases_its_permit_before_drop() {
    /// A service whose clones do not get ready.
    struct ReadyOnce {
        is_clone: bool,
    }

    impl Clone for ReadyOnce {
        fn clone(&self) -> Self {
            Self { is_clone: true }
        }
    }

    impl Service<InnerRequest> for ReadyOnce {
        type Response = InnerResponse;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<InnerResponse>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(match self.is_clone {
                true => Err(io::ErrorKind::NotConnected.into()),
                false => Ok(()),
            })
        }

        fn call(&mut self, _: InnerRequest) -> Self::Future {
            std::future::ready(Ok(with_quota(500, 1, 50)))
        }
    }

    let gate = RateGate::new();
    let begin = Instant::now();
    let inner = ReadyOnce { is_clone: false };
    let mut broken = RetryLayer::new(policy(&gate)).layer(inner);
    let mut completed = pin!(broken.ready().await.unwrap().call(get("/broken")));
    let response = completed.as_mut().await.unwrap();
    assert_eq!(
        give_up_reason(&response),
        Some(GiveUpReason::ReadinessFailed)
    );
    let client = client(policy(&gate), &server(|_| 200));
    client.oneshot(get("/other")).await.unwrap();
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}
