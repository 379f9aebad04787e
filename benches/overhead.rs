//! What the layer adds to a service that answers at once, in time and in allocations, beside
//! `tower::retry` with a policy written by hand, and beside `tower-resilience-retry`.
//!
//! - `get`: a GET, a success at the first attempt
//! - `post`: the same with a POST of 1 KiB
//! - `retry`: a GET, answered with a 429 and, after no wait, with a 200
//! - `get_traced`, `post_traced`, `retry_traced`: the same with a subscriber that takes all spans of
//!   INFO and above and writes nothing. This crate has a span for each attempt; the peers have none,
//!   and are measured with the subscriber on all the same.
//!
//! Everybody calls the same service with the same requests, those of `support/traffic.rs`, and reads the
//! response to its end. From each figure that of the bare service is taken away: in `retry` the service
//! called twice by hand, with a second request made beforehand and the refusal dropped unread.
//! `support/measure.rs` tells how it is measured.
//!
//! In `retry` nobody waits, and tower's policy gives a future that is ready at once, the best that it can
//! do. This crate has a timer even then (so that no schedule of zeros can occupy a thread), and so has
//! `tower-resilience-retry`; the peer `tower-sleep` is tower with such a timer.
//!
//! In `get` the peer `floor` is no layer, but the least that one of this kind can do
//! (`support/floor.rs`).
//!
//! `cargo bench --bench overhead` runs all cases; names behind `--` choose among them.

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
    floor::{Floor, Sent},
    measure::{Candidates, Case, Cost},
    tower_policy::TowerPolicy,
    traffic::{Body, Traffic, answer},
};

fn main() -> Result<(), BoxError> {
    measure::run(report)
}

fn report(case: &Case) -> Result<(), BoxError> {
    let mut candidates = Candidates::new(case);
    add_all(&mut candidates, case.traffic)?;
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

/// The bare service, the crate's layer and tower's, and then the other peers.
fn add_all(candidates: &mut Candidates<'_>, traffic: Traffic) -> Result<(), BoxError> {
    let request = Traffic::request::<Body>;
    let service = service_fn(answer::<Body>);
    let under_ours = service_fn(answer::<ReplayBody<Body>>);
    let policy = RetryPolicy::new();
    let peer = tower_resilience_retry::RetryLayer::builder()
        .max_attempts(4)
        .retry_on_response(is_worth_retrying)
        .budget(RetryBudgetBuilder::new().aimd().build()?);

    candidates.add_bare(request, service);
    if traffic == Traffic::Retry {
        let layer = RetryLayer::new(policy.backoff(backoff_fn(|| iter::repeat(Duration::ZERO))));
        candidates.add("ours", request, layer.layer(under_ours));
        let (tower, sleeping) = (with_backoff(NoWait), with_backoff(ZeroSleep));
        candidates.add("tower", request, Retry::new(tower, service));
        candidates.add("tower-sleep", request, Retry::new(sleeping, service));
        let peer = peer.backoff(FixedInterval::new(Duration::ZERO)).build();
        candidates.add("tower-resilience-retry", request, peer.layer(service));
    } else {
        let layer = RetryLayer::new(policy);
        candidates.add("ours", request, layer.layer(under_ours));
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
            Floor::new(service_fn(answer::<Sent<Body>>)),
        );
    }
    Ok(())
}

fn is_worth_retrying<R>(response: &Response<R>) -> bool {
    let status = response.status();
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The policy by hand, where every call needs a retry: a budget that grants one for each success.
fn with_backoff<W>(backoff: W) -> TowerPolicy<W> {
    TowerPolicy {
        budget: Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 1.0)),
        backoff,
        retries: 3,
    }
}

#[derive(Clone)]
struct NoWait;

impl Backoff for NoWait {
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
