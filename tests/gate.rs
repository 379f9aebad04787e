//! The rate gate, as its callers notice it, under paused time.

use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use tokio::{task::JoinHandle, time::Instant};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_http_retry::{
    ErrorForStatusLayer, GiveUpReason, RateGate, ReplayBody, ResponseBody, RetryBudget, RetryLayer,
    RetryOutcome, RetryPolicy, backoff_fn,
};

type Answer = Response<Empty<Bytes>>;
type Sent = Request<ReplayBody<Empty<Bytes>>>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// When each request left, and by which path.
#[derive(Clone)]
struct Log {
    start: Instant,
    sent: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Log {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            sent: Arc::default(),
        }
    }

    fn paths(&self) -> Vec<String> {
        self.sent
            .lock()
            .unwrap()
            .iter()
            .map(|it| it.0.clone())
            .collect()
    }

    fn times(&self) -> Vec<Duration> {
        self.sent.lock().unwrap().iter().map(|it| it.1).collect()
    }
}

/// A client of a server that answers, 10 ms later, what `answer` says to the nth request.
fn client(
    policy: RetryPolicy,
    log: Log,
    answer: impl Fn(usize) -> Answer + Clone + Send + 'static,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<ResponseBody<Empty<Bytes>>>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone {
    RetryLayer::new(policy).layer(service_fn(move |request: Sent| {
        let (log, answer) = (log.clone(), answer.clone());
        async move {
            let nth = {
                let mut sent = log.sent.lock().unwrap();
                sent.push((request.uri().path().to_owned(), log.start.elapsed()));
                sent.len() - 1
            };
            tokio::time::sleep(10 * MS).await;
            Ok(answer(nth))
        }
    }))
}

fn policy(gate: &RateGate) -> RetryPolicy {
    RetryPolicy::new()
        .rate_gate(gate.clone())
        .backoff(backoff_fn(|| std::iter::repeat(Duration::ZERO)))
}

fn answer(status: u16) -> Answer {
    let mut answer = Response::new(Empty::new());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

fn limited(retry_after: &'static str) -> Answer {
    let mut limited = answer(429);
    let hint = retry_after.parse().unwrap();
    limited.headers_mut().insert("retry-after", hint);
    limited
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path.to_owned()).body(Empty::new()).unwrap()
}

/// Starts a call, and lets it come as far as it can without time passing.
async fn start<S>(client: &S, path: &str) -> JoinHandle<Response<ResponseBody<Empty<Bytes>>>>
where
    S: Service<
            Request<Empty<Bytes>>,
            Response = Response<ResponseBody<Empty<Bytes>>>,
            Error = Infallible,
        > + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let (client, request) = (client.clone(), get(path));
    let call = tokio::spawn(async move {
        match client.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    });
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    call
}

async fn all<T>(calls: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures_util::future::join_all(calls).await
}

#[tokio::test(start_paused = true)]
async fn while_it_is_closed_no_attempt_leaves_and_then_they_leave_in_order_and_paced() {
    let (gate, log) = (RateGate::new(), Log::new());
    let client = client(policy(&gate), log.clone(), |nth| match nth {
        0 => limited("2"),
        _ => answer(200),
    });
    let mut calls = vec![start(&client, "/first").await];
    tokio::time::sleep(20 * MS).await;
    assert_eq!(gate.time_until_open(), Some(2 * SECOND - 10 * MS));
    for path in ["/a", "/b", "/c", "/d"] {
        calls.push(start(&client, path).await);
    }
    // The first keeps its place, in which it joins when its own wait is over.
    assert_eq!(gate.queue_len(), 4);
    let answers = all(calls).await;
    assert_eq!(log.paths(), ["/first", "/first", "/a", "/b", "/c", "/d"]);
    let times = log.times();
    assert!(times[1..].iter().all(|time| *time >= 2 * SECOND + 10 * MS));
    let interval = gate.pacing_interval().unwrap();
    assert!(
        interval > SECOND,
        "one success in two seconds: {interval:?}"
    );
    for pair in times[1..].windows(2) {
        assert!(pair[1] - pair[0] + 20 * MS >= interval, "{times:?}");
    }
    let attempts = answers.into_iter().map(|answer| {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        RetryOutcome::from_response(&answer).attempts()
    });
    // Waiting costs no attempt.
    assert_eq!(attempts.collect::<Vec<_>>(), [2, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn waiting_costs_no_budget() {
    let (gate, log) = (RateGate::new(), Log::new());
    let budget = RetryBudget::default();
    let policy = policy(&gate).budget(budget.clone());
    let client = client(policy, log.clone(), |nth| match nth {
        0 => limited("1"),
        _ => answer(200),
    });
    let first = start(&client, "/first").await;
    tokio::time::sleep(20 * MS).await;
    let waiting = start(&client, "/waiting").await;
    first.await.unwrap();
    waiting.await.unwrap();
    assert_eq!((budget.withdrawals(), budget.balance()), (0, Some(50)));
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_leaves_no_hole() {
    let (gate, log) = (RateGate::new(), Log::new());
    let client = client(policy(&gate), log.clone(), |nth| match nth {
        0 => limited("1"),
        _ => answer(200),
    });
    let mut calls = vec![start(&client, "/first").await];
    tokio::time::sleep(20 * MS).await;
    for path in ["/a", "/b", "/c"] {
        calls.push(start(&client, path).await);
    }
    calls.remove(2).abort();
    calls.remove(1).abort();
    all(calls).await;
    assert_eq!(log.paths(), ["/first", "/first", "/c"]);
    let times = log.times();
    let interval = gate.pacing_interval().unwrap();
    assert!(times[2] - times[1] <= interval + MS, "{times:?}");
    assert_eq!(gate.queue_len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_would_come_too_late_is_refused_at_once_by_an_answer_that_is_marked() {
    let (gate, log) = (RateGate::new(), Log::new());
    let policy = policy(&gate).max_elapsed(5 * SECOND);
    let client = client(policy, log.clone(), |_| limited("30"));
    let server = client.clone().oneshot(get("/server")).await.unwrap();
    assert_eq!(
        RetryOutcome::from_response(&server).give_up_reason(),
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
    assert_eq!(
        (local.status().as_u16(), &local.headers()["retry-after"]),
        (429, &"30".parse().unwrap())
    );
    assert!(
        local
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .is_empty()
    );
    assert_eq!(log.paths(), ["/server"]);
}

#[tokio::test(start_paused = true)]
async fn as_an_error_it_is_not_mistaken_for_the_servers_answer() {
    let (gate, log) = (RateGate::new(), Log::new());
    let policy = policy(&gate).max_elapsed(5 * SECOND);
    let client = client(policy, log.clone(), |_| limited("30"));
    let client = ErrorForStatusLayer::new().layer(client);
    client.clone().oneshot(get("/server")).await.unwrap_err();
    let error = client.oneshot(get("/local")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "429 Too Many Requests: over the rate limit, back off (never sent, held back by the rate gate)"
    );
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_is_refused_so_too_since_its_response_is_gone() {
    let (gate, log) = (RateGate::new(), Log::new());
    let policy = policy(&gate).max_elapsed(5 * SECOND);
    let client = client(policy, log.clone(), |nth| match nth {
        0 => answer(500),
        _ => limited("30"),
    });
    // While the retry of the first waits for its turn, another request is refused.
    let slow = RetryPolicy::new()
        .rate_gate(gate.clone())
        .max_elapsed(5 * SECOND)
        .backoff(backoff_fn(|| std::iter::repeat(SECOND)));
    let slow = self::client(slow, log.clone(), |nth| match nth {
        0 => answer(500),
        _ => limited("30"),
    });
    let retried = start(&slow, "/retried").await;
    tokio::time::sleep(20 * MS).await;
    client.oneshot(get("/other")).await.unwrap();
    let retried = retried.await.unwrap();
    let outcome = RetryOutcome::from_response(&retried);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::RateGated));
    assert_eq!((outcome.attempts(), retried.status().as_u16()), (1, 429));
    assert_eq!(log.paths(), ["/retried", "/other"]);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_told_when_it_closes_past_their_deadline() {
    let (gate, log) = (RateGate::new(), Log::new());
    let patient = client(policy(&gate), log.clone(), |nth| match nth {
        0 => limited("1"),
        _ => limited("40"),
    });
    let hasty = client(policy(&gate).max_elapsed(5 * SECOND), log.clone(), |_| {
        answer(200)
    });
    let first = start(&patient, "/first").await;
    tokio::time::sleep(20 * MS).await;
    let waiting = start(&hasty, "/waiting").await;
    let waiting = waiting.await.unwrap();
    let outcome = RetryOutcome::from_response(&waiting);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::RateGated));
    // When the first was refused again: at its second attempt, and not only at the deadline.
    assert!(
        log.start.elapsed() < 2 * SECOND,
        "{:?}",
        log.start.elapsed()
    );
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn no_server_closes_it_for_longer_than_set() {
    let gate = RateGate::with_max_closed(3 * SECOND);
    let log = Log::new();
    let client = client(policy(&gate), log.clone(), |nth| match nth {
        0 => limited("50"),
        _ => answer(200),
    });
    let told = start(&client, "/told").await;
    tokio::time::sleep(20 * MS).await;
    let other = start(&client, "/other").await;
    other.await.unwrap();
    assert!(log.start.elapsed() < 4 * SECOND);
    // Who was told to wait longer does.
    told.await.unwrap();
    assert_eq!(log.times()[2], 50 * SECOND + 10 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_zero_for_ever_cannot_make_it_spin() {
    let (gate, log) = (RateGate::new(), Log::new());
    let policy = policy(&gate).no_budget().max_retries(u32::MAX);
    let client = client(policy, log.clone(), |_| limited("0"));
    let mut calls = Vec::new();
    for _ in 0..20 {
        calls.push(start(&client, "/").await);
    }
    tokio::time::sleep(50 * SECOND).await;
    let sent = log.paths().len();
    assert!(sent < 200, "{sent} requests in 50 s");
    calls.into_iter().for_each(|call| call.abort());
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_the_server_states_is_kept_to_before_it_has_to_refuse() {
    let (gate, log) = (RateGate::new(), Log::new());
    // Ten a second; the window begins with the first request.
    let (window, used) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let refused = Arc::new(AtomicU32::new(0));
    let counted = refused.clone();
    let begin = Instant::now();
    let client = client(policy(&gate), log.clone(), move |_| {
        let now = begin.elapsed().as_secs() as u32;
        if window.swap(now, Ordering::Relaxed) != now {
            used.store(0, Ordering::Relaxed);
        }
        let left = 10_u32.checked_sub(used.fetch_add(1, Ordering::Relaxed) + 1);
        let mut response = match left {
            Some(_) => answer(200),
            None => {
                counted.fetch_add(1, Ordering::Relaxed);
                limited("1")
            }
        };
        let state = format!("\"x\";r={};t=1", left.unwrap_or(0));
        let headers = response.headers_mut();
        headers.insert("ratelimit-policy", "\"x\";q=10;w=1".parse().unwrap());
        headers.insert("ratelimit", state.parse().unwrap());
        response
    });
    // One at first, which learns the quota; then as many as there are.
    client.clone().oneshot(get("/")).await.unwrap();
    let mut calls = Vec::new();
    for _ in 0..40 {
        calls.push(start(&client, "/").await);
    }
    for answer in all(calls).await {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(refused.load(Ordering::Relaxed), 0);
    assert!(
        log.start.elapsed() < 6 * SECOND,
        "{:?}",
        log.start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_is_not_kept_from_others_while_one_waits_at_the_gate() {
    let gate = RateGate::new();
    let served = AtomicU32::new(0);
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service_fn(async |_: Sent| {
            let first = served.fetch_add(1, Ordering::Relaxed) == 0;
            Ok::<_, Infallible>(if first { limited("3") } else { answer(200) })
        });
    let gated = RetryLayer::new(policy(&gate)).layer(inner.clone());
    let free = RetryLayer::new(RetryPolicy::new()).layer(inner);
    let first = gated.clone().oneshot(get("/"));
    let others = async {
        tokio::time::sleep(10 * MS).await;
        let waiting = gated.clone().oneshot(get("/"));
        let passing = async {
            tokio::time::sleep(10 * MS).await;
            let before = Instant::now();
            free.oneshot(get("/")).await.unwrap();
            assert_eq!(before.elapsed(), Duration::ZERO);
        };
        tokio::join!(waiting, passing)
    };
    tokio::join!(first, others).0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn when_it_opens_earlier_whoever_waits_is_told_though_the_pace_is_slower() {
    let stated = |remaining: u32, reset: u32| {
        let mut stated = answer(200);
        for (name, value) in [("limit", 100), ("remaining", remaining), ("reset", reset)] {
            let name = HeaderName::try_from(format!("ratelimit-{name}")).unwrap();
            stated.headers_mut().insert(name, value.into());
        }
        stated
    };
    // A new window; and a refusal by somebody who knows of no window.
    for second in [stated(10, 60), limited("2")] {
        let (gate, log) = (RateGate::new(), Log::new());
        let spent = stated(0, 30);
        let policy = policy(&gate).max_retries(0).max_elapsed(300 * SECOND);
        let client = client(policy, log.clone(), move |nth| match nth {
            0 => spent.clone(),
            1 => second.clone(),
            _ => answer(200),
        });
        let first = start(&client, "/first").await;
        tokio::time::sleep(5 * MS).await;
        let second = start(&client, "/second").await;
        first.await.unwrap();
        let waiting = start(&client, "/waiting").await;
        assert_eq!(gate.queue_len(), 1);
        second.await.unwrap();
        assert_eq!(waiting.await.unwrap().status(), 200);
        assert!(log.start.elapsed() < 5 * SECOND, "{:?}", log.times());
    }
}

#[tokio::test(start_paused = true)]
async fn open_it_makes_no_answer_of_its_own_though_the_timer_was_late() {
    let wait = Duration::from_micros(100_300);
    let policy = policy(&RateGate::new())
        .backoff(backoff_fn(move || std::iter::repeat(wait)))
        .max_elapsed(wait + MS / 10);
    let calls = Arc::new(AtomicU32::new(0));
    let client = RetryLayer::new(policy).layer(service_fn(move |_: Sent| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(answer(if call == 0 { 500 } else { 200 })) }
    }));
    let response = client.oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_has_ended_and_is_kept_holds_nobody_up() {
    /// Ready once.
    struct Once(bool);

    impl Clone for Once {
        fn clone(&self) -> Self {
            Self(true)
        }
    }

    impl Service<Request<ReplayBody<Empty<Bytes>>>> for Once {
        type Response = Answer;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<Answer>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.0 {
                true => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                false => Poll::Ready(Ok(())),
            }
        }

        fn call(&mut self, _: Sent) -> Self::Future {
            let mut failed = answer(500);
            for (name, value) in [("limit", 100), ("remaining", 1), ("reset", 50)] {
                let name = HeaderName::try_from(format!("ratelimit-{name}")).unwrap();
                failed.headers_mut().insert(name, value.into());
            }
            std::future::ready(Ok(failed))
        }
    }

    let (gate, log) = (RateGate::new(), Log::new());
    let mut broken = RetryLayer::new(policy(&gate)).layer(Once(false));
    let mut kept = std::pin::pin!(broken.ready().await.unwrap().call(get("/broken")));
    assert!(kept.as_mut().await.is_err());
    let client = client(policy(&gate), log.clone(), |_| answer(200));
    client.oneshot(get("/other")).await.unwrap();
    assert!(log.start.elapsed() < SECOND, "{:?}", log.start.elapsed());
}
