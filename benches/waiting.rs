//! Measures the memory of requests during a retry delay, and the time to wake them.
//!
//! 1 000, 10 000 and 100 000 requests fail at the same time and have the same fixed delay, with this
//! crate's layer and with `tower::retry` and a hand-written policy. Both use the same requests (a GET
//! with four headers and no body), service and backoff. The service rejects each request once,
//! immediately, with a 429 and an error object, without `Retry-After`. Both budgets allow all retries.
//! The delay is a `tokio::time::Sleep` in both.
//!
//! - `bytes`: the heap memory of one delayed request, including its future, as requested from the
//!   allocator. The futures are boxed and polled by the bench. The memory of an executor is not
//!   included. Tokio's tasks would add the same to both, and round up to a multiple of 128 bytes.
//! - `wake_ns`: the futures are tasks of a runtime with one thread and a paused clock, which advances to
//!   the end of the delay. The figure is the time from then until all responses arrive, divided by
//!   the number of requests. It includes timer, wake-up, second attempt and the drop of saved data. The
//!   two layers are measured alternately; the fastest round counts. The allocator counts during the
//!   measurement, for both.

#[path = "support/get.rs"]
mod get;
#[path = "support/tower_policy.rs"]
mod tower_policy;

use std::{
    alloc::System,
    convert::Infallible,
    future::{Future, Ready, ready},
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Sleep, sleep},
};
use tower::{
    BoxError, Layer, Service,
    retry::{Retry, backoff::Backoff, budget::TpsBudget},
};
use tower_http_retry::{RetryLayer, RetryPolicy, backoff_fn};

use self::{get::get, tower_policy::TowerPolicy};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const DELAYED: [usize; 3] = [1_000, 10_000, 100_000];
const BACKOFF: Duration = Duration::from_secs(10);
/// Requests woken in all rounds.
const TOTAL_WOKEN: usize = 500_000;

fn main() -> Result<(), BoxError> {
    let policy = RetryPolicy::new()
        .no_budget()
        .backoff(backoff_fn(|| iter::repeat(BACKOFF)));
    let ours = |service| RetryLayer::new(policy.clone()).layer(service);
    let tower_policy = TowerPolicy {
        budget: Arc::new(TpsBudget::new(Duration::from_secs(60), 1_000_000, 1.0)),
        backoff: FixedDelay,
        retries: TowerPolicy::new()?.retries,
    };
    let tower = |service| Retry::new(tower_policy.clone(), service);

    for n in DELAYED {
        let (ours, tower) = (measure_bytes(n, ours)?, measure_bytes(n, tower)?);
        println!("waiting n={n} ours_bytes={ours:.0} tower_bytes={tower:.0}");
    }
    for n in DELAYED {
        let mut best = [Duration::MAX; 2];
        for _ in 0..(TOTAL_WOKEN / n) {
            best[0] = best[0].min(measure_wake(n, ours)?);
            best[1] = best[1].min(measure_wake(n, tower)?);
        }
        let [ours, tower] = best.map(|elapsed| elapsed.as_nanos() as f64 / n as f64);
        println!("waiting n={n} ours_wake_ns={ours:.0} tower_wake_ns={tower:.0}");
    }
    Ok(())
}

/// Returns the heap memory of each of `n` delayed requests.
fn measure_bytes<S>(n: usize, retry: impl FnOnce(RejectFirst) -> S) -> Result<f64, BoxError>
where
    S: Service<Request<Empty<Bytes>>>,
{
    let runtime = build_paused_runtime()?;
    let _context = runtime.enter();
    let service = RejectFirst::new(n);
    let mut retry = retry(service.clone());
    let cx = &mut Context::from_waker(Waker::noop());

    let mut delayed = Vec::with_capacity(n);
    let before = heap_bytes();
    for _ in 0..n {
        let mut call = Box::pin(retry.call(build_request()));
        assert!(call.as_mut().poll(cx).is_pending(), "the retry is delayed");
        delayed.push(call);
    }
    let after = heap_bytes();
    assert!(service.has_rejected_all());
    Ok((after - before) as f64 / n as f64)
}

/// Returns the time until all of `n` delayed requests have a response.
fn measure_wake<S, R>(n: usize, retry: impl FnOnce(RejectFirst) -> S) -> Result<Duration, BoxError>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
    R: Send + 'static,
{
    build_paused_runtime()?.block_on(async {
        let service = RejectFirst::new(n);
        let mut retry = retry(service.clone());
        let calls = (0..n).map(|_| tokio::spawn(retry.call(build_request())));
        let calls = Vec::from_iter(calls);
        // The paused clock advances when all tasks are idle, that is, delayed.
        sleep(BACKOFF / 2).await;
        assert!(service.has_rejected_all());

        let start = std::time::Instant::now();
        for call in calls {
            let response = call.await??;
            assert_eq!(response.status(), StatusCode::OK);
        }
        Ok(start.elapsed())
    })
}

fn build_paused_runtime() -> Result<Runtime, BoxError> {
    let mut builder = Builder::new_current_thread();
    Ok(builder.enable_time().start_paused(true).build()?)
}

fn heap_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn build_request() -> Request<Empty<Bytes>> {
    let uri = "https://api.example/accounts/acc_1/transactions?limit=10";
    get(uri).unwrap_or_default()
}

/// The same delay before each retry.
#[derive(Clone)]
struct FixedDelay;

impl Backoff for FixedDelay {
    type Future = Sleep;

    fn next_backoff(&mut self) -> Sleep {
        sleep(BACKOFF)
    }
}

/// A service that rejects the first `n` requests and accepts all others.
#[derive(Clone)]
struct RejectFirst {
    remaining_rejections: Arc<AtomicUsize>,
}

impl RejectFirst {
    fn new(rejections: usize) -> Self {
        Self {
            remaining_rejections: Arc::new(AtomicUsize::new(rejections)),
        }
    }

    fn has_rejected_all(&self) -> bool {
        self.remaining_rejections.load(Ordering::Relaxed) == 0
    }

    fn respond(&self) -> Response<Full<Bytes>> {
        let relaxed = Ordering::Relaxed;
        let rejected = self
            .remaining_rejections
            .fetch_update(relaxed, relaxed, |remaining| remaining.checked_sub(1));
        let (status, body) = match rejected {
            Ok(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                r#"{"code":"too_many_requests","message":"Too Many Requests"}"#,
            ),
            Err(_) => (StatusCode::OK, r#"{"transactions":[]}"#),
        };
        let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
        *response.status_mut() = status;
        response
    }
}

impl<B> Service<Request<B>> for RejectFirst {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(self.respond()))
    }
}
