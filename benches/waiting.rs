//! What a request costs while it waits for its retry: memory, and the time to wake all that wait.
//!
//! 1 000, 10 000 and 100 000 requests fail at the same moment and wait for the same fixed time; this
//! crate's layer beside `tower::retry` with a policy written by hand. Requests (a GET with four headers
//! and no body), service and backoff are the same for both. The service refuses each request once, at
//! once, with a 429 and an error object, and no `Retry-After`. Neither side's budget refuses a retry. The
//! wait is a `tokio::time::Sleep` for both.
//!
//! - `bytes`: what one waiting request has on the heap, its future included, as asked of the allocator.
//!   The futures are boxed and polled by hand. What an executor adds is not in it; tokio's tasks are
//!   the same for both, but rounded up to 128 bytes.
//! - `wake_ns`: the futures are tasks of a runtime with one thread and a paused clock, which jumps to the
//!   end of the wait. The time from then until all have answered, for each request: timer, wake-up,
//!   second attempt, and the drop of what was kept. The two are measured in turn; the fastest round counts.
//!   The allocator counts meanwhile, for both.

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

const WAITING: [usize; 3] = [1_000, 10_000, 100_000];
const BACKOFF: Duration = Duration::from_secs(10);
/// Requests woken in all rounds together.
const WOKEN: usize = 500_000;

fn main() -> Result<(), BoxError> {
    let policy = RetryPolicy::new()
        .no_budget()
        .backoff(backoff_fn(|| iter::repeat(BACKOFF)));
    let ours = |service| RetryLayer::new(policy.clone()).layer(service);
    let tower_policy = TowerPolicy {
        budget: Arc::new(TpsBudget::new(Duration::from_secs(60), 1_000_000, 1.0)),
        backoff: Fixed,
        retries: TowerPolicy::new()?.retries,
    };
    let tower = |service| Retry::new(tower_policy.clone(), service);

    for n in WAITING {
        let (ours, tower) = (bytes(n, ours)?, bytes(n, tower)?);
        println!("waiting n={n} ours_bytes={ours:.0} tower_bytes={tower:.0}");
    }
    for n in WAITING {
        let mut best = [Duration::MAX; 2];
        for _ in 0..(WOKEN / n) {
            best[0] = best[0].min(wake(n, ours)?);
            best[1] = best[1].min(wake(n, tower)?);
        }
        let [ours, tower] = best.map(|all| all.as_nanos() as f64 / n as f64);
        println!("waiting n={n} ours_wake_ns={ours:.0} tower_wake_ns={tower:.0}");
    }
    Ok(())
}

/// What each of `n` waiting requests has on the heap.
fn bytes<S>(n: usize, retry: impl FnOnce(RefuseFirst) -> S) -> Result<f64, BoxError>
where
    S: Service<Request<Empty<Bytes>>>,
{
    let runtime = paused()?;
    let _context = runtime.enter();
    let service = RefuseFirst::new(n);
    let mut retry = retry(service.clone());
    let cx = &mut Context::from_waker(Waker::noop());

    let mut waiting = Vec::with_capacity(n);
    let before = on_the_heap();
    for _ in 0..n {
        let mut call = Box::pin(retry.call(request()));
        assert!(call.as_mut().poll(cx).is_pending(), "it waits");
        waiting.push(call);
    }
    let after = on_the_heap();
    assert!(service.has_refused_all());
    Ok((after - before) as f64 / n as f64)
}

/// The time until `n` waiting requests have answered.
fn wake<S, R>(n: usize, retry: impl FnOnce(RefuseFirst) -> S) -> Result<Duration, BoxError>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
    R: Send + 'static,
{
    paused()?.block_on(async {
        let service = RefuseFirst::new(n);
        let mut retry = retry(service.clone());
        let calls = (0..n).map(|_| tokio::spawn(retry.call(request())));
        let calls = Vec::from_iter(calls);
        // The clock stands still for as long as any of them has something to do.
        sleep(BACKOFF / 2).await;
        assert!(service.has_refused_all());

        let start = std::time::Instant::now();
        for call in calls {
            let response = call.await??;
            assert_eq!(response.status(), StatusCode::OK);
        }
        Ok(start.elapsed())
    })
}

fn paused() -> Result<Runtime, BoxError> {
    let mut builder = Builder::new_current_thread();
    Ok(builder.enable_time().start_paused(true).build()?)
}

fn on_the_heap() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn request() -> Request<Empty<Bytes>> {
    let uri = "https://api.example/accounts/acc_1/transactions?limit=10";
    get(uri).unwrap_or_default()
}

/// The same wait before each retry.
#[derive(Clone)]
struct Fixed;

impl Backoff for Fixed {
    type Future = Sleep;

    fn next_backoff(&mut self) -> Sleep {
        sleep(BACKOFF)
    }
}

/// Refuses the first so many requests, and accepts all others.
#[derive(Clone)]
struct RefuseFirst {
    refusals_left: Arc<AtomicUsize>,
}

impl RefuseFirst {
    fn new(overdrafts: usize) -> Self {
        Self {
            refusals_left: Arc::new(AtomicUsize::new(overdrafts)),
        }
    }

    fn has_refused_all(&self) -> bool {
        self.refusals_left.load(Ordering::Relaxed) == 0
    }

    fn answer(&self) -> Response<Full<Bytes>> {
        let relaxed = Ordering::Relaxed;
        let refused = self
            .refusals_left
            .fetch_update(relaxed, relaxed, |left| left.checked_sub(1));
        let (status, body) = match refused {
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

impl<B> Service<Request<B>> for RefuseFirst {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(self.answer()))
    }
}
