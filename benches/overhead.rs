//! Measures the time and the allocations that the layer adds to a service that responds immediately,
//! compared with `tower-resilience-retry`, and with `tower::retry` and a hand-written policy.
//!
//! - `get`: a GET that succeeds at the first attempt
//! - `post`: a POST of 1 KiB that succeeds at the first attempt
//! - `retry`: a GET with a 429 as the first response and, after a delay of zero, a 200 as the second
//! - `get_traced`, `post_traced`, `retry_traced`: the same with a subscriber that enables spans of INFO
//!   and above and writes nothing. This crate creates a span for each attempt. The peers create no
//!   spans, but run with the same subscriber.
//!
//! All candidates call the same service with the same requests (`support/traffic.rs`) and read the
//! response to its end. The figures of the bare service are subtracted. In `retry`, the bench calls the
//! bare service twice, with a second request created in advance, and drops the 429 unread.
//! `support/measure.rs` describes the method.
//!
//! In `retry`, tower's policy returns a future that is ready immediately, the fastest possible choice.
//! This crate always uses a timer, because a backoff of zeros could otherwise block a thread.
//! `tower-resilience-retry` does the same. The peer `tower-sleep` is tower with such a timer.
//!
//! In `get`, the peer `floor` is a lower bound for layers of this kind (`support/floor.rs`).
//!
//! `cargo bench --bench overhead` runs all cases. Names after `--` select cases.

#[path = "support/floor.rs"]
mod floor;
#[path = "support/measure.rs"]
mod measure;
#[path = "support/tower_policy.rs"]
mod tower_policy;
#[path = "support/traffic.rs"]
mod traffic;

use std::{
    future::{Ready, ready},
    iter,
    sync::Arc,
    time::Duration,
};

use http::{Response, StatusCode};
use tokio::time::{Sleep, sleep};
use tower::{
    BoxError, Layer,
    retry::{Retry, backoff::Backoff, budget::TpsBudget},
    service_fn,
};
use tower_http_retry::{ReplayBody, RetryLayer, RetryPolicy, backoff_fn};
use tower_resilience_retry::{FixedInterval, RetryBudgetBuilder};

use self::{
    floor::{Floor, WrappedBody},
    measure::{Candidates, Case, Cost},
    tower_policy::TowerPolicy,
    traffic::{Body, Traffic, respond},
};

fn main() -> Result<(), BoxError> {
    measure::run(report)
}

fn report(case: &Case) -> Result<(), BoxError> {
    let mut candidates = Candidates::new(case);
    add_candidates(&mut candidates, case.traffic)?;
    let costs = candidates.measure()?;

    let (case, (_, bare)) = (case.name, costs[0]);
    println!(
        "overhead bare case={case} ns={:.0} allocs={}",
        bare.ns, bare.allocations
    );
    for (peer, cost) in costs.iter().skip(3) {
        let Cost { ns, allocations } = *cost - bare;
        println!("overhead peer={peer} case={case} ns={ns:.0} allocs={allocations}");
    }
    let (ours, tower) = (costs[1].1 - bare, costs[2].1 - bare);
    let ratio = ours.ns / tower.ns;
    println!(
        "overhead case={case} ours_ns={:.0} tower_ns={:.0} ratio={ratio:.2} \
         ours_allocs={} tower_allocs={}",
        ours.ns, tower.ns, ours.allocations, tower.allocations
    );
    Ok(())
}

/// Adds the bare service, this crate's layer, tower's layer and the other peers, in this order.
fn add_candidates(candidates: &mut Candidates<'_>, traffic: Traffic) -> Result<(), BoxError> {
    let request = Traffic::request::<Body>;
    let service = service_fn(respond::<Body>);
    let replay_service = service_fn(respond::<ReplayBody<Body>>);
    let policy = RetryPolicy::new();
    let peer = tower_resilience_retry::RetryLayer::builder()
        .max_attempts(4)
        .retry_on_response(is_retryable)
        .budget(RetryBudgetBuilder::new().aimd().build()?);

    candidates.add_bare(request, service);
    if traffic == Traffic::Retry {
        let layer = RetryLayer::new(policy.backoff(backoff_fn(|| iter::repeat(Duration::ZERO))));
        candidates.add("ours", request, layer.layer(replay_service));
        let (ready, sleep) = (new_policy(ZeroDelay), new_policy(ZeroSleep));
        candidates.add("tower", request, Retry::new(ready, service));
        candidates.add("tower-sleep", request, Retry::new(sleep, service));
        let peer = peer.backoff(FixedInterval::new(Duration::ZERO)).build();
        candidates.add("tower-resilience-retry", request, peer.layer(service));
    } else {
        let layer = RetryLayer::new(policy);
        candidates.add("ours", request, layer.layer(replay_service));
        candidates.add("tower", request, Retry::new(TowerPolicy::new()?, service));
        candidates.add(
            "tower-resilience-retry",
            request,
            peer.build().layer(service),
        );
    }
    if traffic == Traffic::Get {
        candidates.add(
            "floor",
            request,
            Floor::new(service_fn(respond::<WrappedBody<Body>>)),
        );
    }
    Ok(())
}

fn is_retryable<R>(response: &Response<R>) -> bool {
    let status = response.status();
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// Creates a policy with a budget that allows one retry for each success: every call retries.
fn new_policy<W>(backoff: W) -> TowerPolicy<W> {
    TowerPolicy {
        budget: Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 1.0)),
        backoff,
        retries: 3,
    }
}

#[derive(Clone)]
struct ZeroDelay;

impl Backoff for ZeroDelay {
    type Future = Ready<()>;

    fn next_backoff(&mut self) -> Ready<()> {
        ready(())
    }
}

#[derive(Clone)]
struct ZeroSleep;

impl Backoff for ZeroSleep {
    type Future = Sleep;

    fn next_backoff(&mut self) -> Sleep {
        sleep(Duration::ZERO)
    }
}
