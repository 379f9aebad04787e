//! What threads that share a budget, or a gate, cost each other.
//!
//! - `contention`: answers at the first attempt while the budget is full. Each thread deposits in a
//!   loop; this crate's `RetryBudget` beside tower's `TpsBudget`.
//! - `contention spending`: each thread withdraws what a retry costs and deposits as much, in a loop.
//!   Both budgets are so large that no withdrawal is refused.
//! - `contention gate`: calls through the layer to a service that answers at once, with and without an
//!   open `RateGate`; the difference. Each thread has a clone of the service.
//!
//! Both budgets are called through tower's trait. All threads begin together and stay at it for the
//! same time, with no work in between, so that they meet far more often than requests do. A figure is the
//! wall time of one operation (or pair, or call) as each thread sees it; where there are more threads than
//! cores, that includes waiting for a core. What is compared is measured in turn, so that what the machine
//! does meanwhile is shared; the median of all rounds counts: in the fastest, the threads may not have met.
//!
//! The features of the tests are on, so that tokio's clock, which `TpsBudget` reads, first looks whether
//! it is paused: one load.

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
/// Operations between two looks at the clock.
const BATCH: u32 = 1_000;

fn main() -> Result<(), BoxError> {
    let (ours, tps) = (RetryBudget::default(), TpsBudget::default());
    for threads in THREADS {
        let rounds = in_turn(|| deposit(&ours, threads), || deposit(&tps, threads));
        let (ours, tps) = medians(rounds);
        println!("contention threads={threads} ours_ns={ours:.1} tps_ns={tps:.1}");
    }

    let ours = RetryBudget::new(1_000_000.try_into()?, NonZeroU32::MIN)?;
    let tps = TpsBudget::new(Duration::from_secs(10), 1_000_000, 1.0);
    for threads in THREADS {
        let rounds = in_turn(|| spend(&ours, threads), || spend(&tps, threads));
        let (ours, tps) = medians(rounds);
        println!("contention spending threads={threads} ours_ns={ours:.1} tps_ns={tps:.1}");
    }

    let free = RetryLayer::new(RetryPolicy::new());
    let gated = RetryLayer::new(RetryPolicy::new().rate_gate(RateGate::new()));
    for threads in THREADS {
        let rounds = in_turn(|| call(&free, threads), || call(&gated, threads));
        let added = median(rounds.map(|(free, gated)| gated - free));
        println!("contention gate threads={threads} added_ns={added:.1}");
    }
    Ok(())
}

fn deposit(budget: &(impl Budget + Sync), threads: usize) -> f64 {
    round(threads, || || black_box(budget).deposit())
}

fn spend(budget: &(impl Budget + Sync), threads: usize) -> f64 {
    round(threads, || {
        || {
            assert!(
                black_box(budget).withdraw(),
                "there is enough for everybody"
            );
            budget.deposit();
        }
    })
}

fn call(layer: &RetryLayer, threads: usize) -> f64 {
    let service = layer.layer(Answer);
    round(threads, || {
        let mut service = service.clone();
        move || {
            let cx = &mut Context::from_waker(Waker::noop());
            let answer = pin!(service.call(Request::new(Empty::<Bytes>::new())));
            assert!(black_box(answer.poll(cx)).is_ready(), "the gate is open");
        }
    })
}

/// For so many threads at the same time, the nanoseconds that an operation takes on each; every thread
/// prepares its own.
fn round<O: FnMut()>(threads: usize, prepare: impl Fn() -> O + Sync) -> f64 {
    let together = Barrier::new(threads);
    let work = || {
        let mut operation = prepare();
        let mut operations = 0;
        together.wait();
        let start = Instant::now();
        while start.elapsed() < ROUND {
            (0..BATCH).for_each(|_| operation());
            operations += BATCH;
        }
        start.elapsed().as_nanos() as f64 / f64::from(operations)
    };
    let times = thread::scope(|scope| {
        let workers = Vec::from_iter((0..threads).map(|_| scope.spawn(work)));
        let times = workers.into_iter().map(|it| it.join().expect("no panic"));
        times.sum::<f64>()
    });
    times / threads as f64
}

/// Both in turn, a first time to warm up, which does not count.
fn in_turn(mut one: impl FnMut() -> f64, mut other: impl FnMut() -> f64) -> [(f64, f64); ROUNDS] {
    one();
    other();
    std::array::from_fn(|_| (one(), other()))
}

fn medians(rounds: [(f64, f64); ROUNDS]) -> (f64, f64) {
    (median(rounds.map(|it| it.0)), median(rounds.map(|it| it.1)))
}

fn median(mut figures: [f64; ROUNDS]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[ROUNDS / 2]
}

/// Answers at once.
#[derive(Clone)]
struct Answer;

impl<B> Service<Request<B>> for Answer {
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
