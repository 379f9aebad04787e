//! Backoff strategies of this crate and of other crates: `backon` works as it is, `backoff` with the
//! feature `backoff`.
//!
//! `cargo run --example schedules --features backoff` prints the first delays of each strategy.

use std::time::Duration;

use backoff::{
    ExponentialBackoff as BackoffExponential,
    backoff::{Backoff as _, Constant},
};
use backon::{BackoffBuilder, ExponentialBuilder};
use tower_http_retry::{Backoff, ExponentialBackoff, RetryLayer, RetryPolicy, backoff_fn};

fn main() {
    print_delays("this crate's, full jitter", ExponentialBackoff::default());
    print_delays(
        "this crate's, seeded",
        ExponentialBackoff::default().with_seed(42),
    );
    print_delays("backoff's exponential", BackoffExponential::default());
    print_delays(
        "backoff's constant",
        backoff_fn(|| {
            let mut constant = Constant::new(Duration::from_millis(50));
            std::iter::from_fn(move || constant.next_backoff())
        }),
    );
    print_delays(
        "backon's exponential",
        backoff_fn(|| ExponentialBuilder::default().with_jitter().build()),
    );
    print_delays(
        "a closure",
        backoff_fn(|| [1, 5, 25].into_iter().map(Duration::from_millis)),
    );
}

fn print_delays(name: &str, backoff: impl Backoff + 'static) {
    let delays: Vec<_> = backoff.delays().take(5).collect();
    println!("{name:<26} {delays:?}");
    // Each strategy can configure the layer.
    let _layer = RetryLayer::new(RetryPolicy::new().backoff(backoff));
}
