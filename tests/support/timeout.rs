//! Waiting in real time, with a limit that only a hanging test reaches.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part, and the package `clients` exports it"
)]

use std::{future::Future, time::Duration};

use tokio::time::{sleep, timeout};

/// Generous, because many tests may share few processors.
const LIMIT: Duration = Duration::from_secs(20);

/// Awaits `future`. Panics if it takes too long.
pub async fn with_timeout<F: Future>(future: F) -> F::Output {
    timeout(LIMIT, future).await.expect("timed out")
}

/// Polls `condition` until it is true. Panics with its `name` if that takes too long.
pub async fn wait_until(name: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(becomes_true(condition).await, "timed out: {name}");
}

/// Polls `condition`. Returns false if it does not become true in time.
pub async fn becomes_true(mut condition: impl AsyncFnMut() -> bool) -> bool {
    let polling = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, polling).await.is_ok()
}
