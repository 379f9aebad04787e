//! Schedules of other crates: `backon`'s as they are, `backoff`'s with the feature of that name.
//!
//! `cargo run --example schedules --features backoff` prints the first delays of each.

use std::time::Duration;

use backoff::{
    ExponentialBackoff as BackoffExponential,
    backoff::{Backoff as _, Constant},
};
use backon::{BackoffBuilder, ExponentialBuilder};
use tower_http_retry::{Backoff, ExponentialBackoff, RetryLayer, RetryPolicy, backoff_fn};

fn main() {
    show("this crate's, full jitter", ExponentialBackoff::default());
    show(
        "this crate's, seeded",
        ExponentialBackoff::default().with_seed(42),
    );
    show("backoff's exponential", BackoffExponential::default());
    show(
        "backoff's constant",
        backoff_fn(|| {
            let mut constant = Constant::new(Duration::from_millis(50));
            std::iter::from_fn(move || constant.next_backoff())
        }),
    );
    show(
        "backon's exponential",
        backoff_fn(|| ExponentialBuilder::default().with_jitter().build()),
    );
    show(
        "a closure",
        backoff_fn(|| [1, 5, 25].into_iter().map(Duration::from_millis)),
    );
}

fn show(name: &str, schedule: impl Backoff + 'static) {
    let delays: Vec<_> = schedule.delays().take(5).collect();
    println!("{name:<26} {delays:?}");
    // Any of them sets up the layer.
    let _layer = RetryLayer::new(RetryPolicy::new().backoff(schedule));
}
