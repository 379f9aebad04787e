//! Measures the cost of a budget and a gate that several threads share.
//!
//! - `contention`: successes at the first attempt with a full budget. Each thread deposits in a loop,
//!   with this crate's `RetryBudget` and with tower's `TpsBudget`.
//! - `contention spending`: each thread withdraws the cost of a retry and deposits the same amount, in a
//!   loop. Both budgets are large enough to grant all withdrawals.
//! - `contention gate`: the time that an open `RateGate` adds to calls through the layer. The service
//!   responds immediately. Each thread has a clone of the service.
//!
//! Both budgets are called through tower's trait. All threads start together and run for the same time,
//! with no other work between operations: they contend far more often than requests do. A figure is
//! the wall time of one operation (or pair, or call) on each thread. With more threads than cores it
//! includes the time without a core. The candidates are measured alternately, to spread the load of other
//! programs evenly. The median of all rounds counts, because the fastest round may be one without
//! contention.
//!
//! The test features of tokio are enabled: its clock, which `TpsBudget` reads, first checks whether it is
//! paused. This costs one load.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    num::NonZeroU32,
    pin::pin,
    sync::Barrier,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{
    BoxError, Layer, Service,
    retry::budget::{Budget, TpsBudget},
};
use tower_http_retry::{RateGate, RetryBudget, RetryLayer, RetryPolicy};

const THREADS: [usize; 3] = [1, 2, 4];
const ROUNDS: usize = 51;
const ROUND: Duration = Duration::from_millis(15);
/// Operations between two readings of the clock.
const BATCH: u32 = 1_000;

fn main() -> Result<(), BoxError> {
    let (ours, tps) = (RetryBudget::default(), TpsBudget::default());
    for threads in THREADS {
        let rounds = alternate(|| deposit(&ours, threads), || deposit(&tps, threads));
        let (ours, tps) = medians(rounds);
        println!("contention threads={threads} ours_ns={ours:.1} tps_ns={tps:.1}");
    }

    let ours = RetryBudget::new(1_000_000.try_into()?, NonZeroU32::MIN)?;
    let tps = TpsBudget::new(Duration::from_secs(10), 1_000_000, 1.0);
    for threads in THREADS {
        let rounds = alternate(|| spend(&ours, threads), || spend(&tps, threads));
        let (ours, tps) = medians(rounds);
        println!("contention spending threads={threads} ours_ns={ours:.1} tps_ns={tps:.1}");
    }

    let ungated = RetryLayer::new(RetryPolicy::new());
    let gated = RetryLayer::new(RetryPolicy::new().rate_gate(RateGate::new()));
    for threads in THREADS {
        let rounds = alternate(|| call(&ungated, threads), || call(&gated, threads));
        let added = median(rounds.map(|(ungated, gated)| gated - ungated));
        println!("contention gate threads={threads} added_ns={added:.1}");
    }
    Ok(())
}

fn deposit(budget: &(impl Budget + Sync), threads: usize) -> f64 {
    measure_round(threads, || || black_box(budget).deposit())
}

fn spend(budget: &(impl Budget + Sync), threads: usize) -> f64 {
    measure_round(threads, || {
        || {
            assert!(
                black_box(budget).withdraw(),
                "the budget is large enough for all threads"
            );
            budget.deposit();
        }
    })
}

fn call(layer: &RetryLayer, threads: usize) -> f64 {
    let service = layer.layer(ImmediateService);
    measure_round(threads, || {
        let mut service = service.clone();
        move || {
            let cx = &mut Context::from_waker(Waker::noop());
            let response = pin!(service.call(Request::new(Empty::<Bytes>::new())));
            assert!(black_box(response.poll(cx)).is_ready(), "the gate is open");
        }
    })
}

/// Runs an operation on several threads in parallel and returns its mean time in nanoseconds. `prepare`
/// creates the operation of a thread.
fn measure_round<O: FnMut()>(threads: usize, prepare: impl Fn() -> O + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let work = || {
        let mut operation = prepare();
        let mut operations = 0;
        barrier.wait();
        let start = Instant::now();
        while start.elapsed() < ROUND {
            (0..BATCH).for_each(|_| operation());
            operations += BATCH;
        }
        start.elapsed().as_nanos() as f64 / f64::from(operations)
    };
    let times = thread::scope(|scope| {
        let workers = Vec::from_iter((0..threads).map(|_| scope.spawn(work)));
        let times = workers
            .into_iter()
            .map(|worker| worker.join().expect("the worker does not panic"));
        times.sum::<f64>()
    });
    times / threads as f64
}

/// Runs both alternately, after one uncounted round to warm up.
fn alternate(
    mut first: impl FnMut() -> f64,
    mut second: impl FnMut() -> f64,
) -> [(f64, f64); ROUNDS] {
    first();
    second();
    std::array::from_fn(|_| (first(), second()))
}

fn medians(rounds: [(f64, f64); ROUNDS]) -> (f64, f64) {
    (
        median(rounds.map(|(first, _)| first)),
        median(rounds.map(|(_, second)| second)),
    )
}

fn median(mut figures: [f64; ROUNDS]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[ROUNDS / 2]
}

/// A service that responds immediately.
#[derive(Clone)]
struct ImmediateService;

impl<B> Service<Request<B>> for ImmediateService {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        drop(black_box(request));
        ready(Ok(Response::new(Empty::new())))
    }
}
