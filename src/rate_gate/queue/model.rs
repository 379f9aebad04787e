//! Loom models: every interleaving of concurrent calls to the queue.

use std::{future::poll_fn, task::Poll};

use loom::{future::block_on, thread};

use super::*;
use crate::sync::Arc;

const SECOND: Duration = Duration::from_secs(1);

/// Creates a queue whose gate was closed for a second at `now`.
fn closed(now: Instant) -> Arc<Queue> {
    let queue = Arc::new(Queue::new(60 * SECOND));
    let id = queue.next_id();
    assert_eq!(queue.acquire(id, now, None, None), Acquire::Granted(0));
    queue.on_rejected(0, now, SECOND, None);
    queue
}

/// Waits in the queue until the permit is granted, or the time at which to poll again is known.
fn wait(queue: &Queue, id: u64, now: Instant) -> Acquire {
    block_on(poll_fn(|cx| {
        match queue.acquire(id, now, None, Some(cx.waker())) {
            Acquire::Wait(None) => Poll::Pending,
            result => Poll::Ready(result),
        }
    }))
}

#[test]
fn cancelled_waiter_wakes_next() {
    let now = Instant::now();
    loom::model(move || {
        let queue = closed(now);
        let (first, second) = (queue.next_id(), queue.next_id());
        let waiter = {
            let queue = queue.clone();
            thread::spawn(move || wait(&queue, second, now))
        };
        wait(&queue, first, now);
        queue.cancel(first);
        let opening = now + SECOND;
        assert_eq!(waiter.join().unwrap(), Acquire::Wait(Some(opening)));
    });
}

#[test]
fn departure_wakes_next_and_only_one_permit_is_granted() {
    let (now, open) = (Instant::now(), Instant::now() + 2 * SECOND);
    loom::model(move || {
        let queue = closed(now);
        let (first, second) = (queue.next_id(), queue.next_id());
        let waiter = {
            let queue = queue.clone();
            thread::spawn(move || wait(&queue, second, open))
        };
        let results = [wait(&queue, first, open), waiter.join().unwrap()];
        // The interval is longer than a second, because no request was accepted.
        let granted = results
            .iter()
            .filter(|result| matches!(result, Acquire::Granted(_)));
        assert_eq!(granted.count(), 1, "{results:?}");
    });
}

#[test]
fn permit_is_invalid_after_gate_closes() {
    let now = Instant::now();
    loom::model(move || {
        let queue = Arc::new(Queue::new(60 * SECOND));
        let (first, second) = (queue.next_id(), queue.next_id());
        let Acquire::Granted(epoch) = queue.acquire(first, now, None, None) else {
            panic!("the gate is open")
        };
        let rejection = {
            let queue = queue.clone();
            thread::spawn(move || queue.on_rejected(epoch, now, SECOND, None))
        };
        let result = queue.acquire(second, now, None, None);
        let valid = match result {
            Acquire::Granted(epoch) => queue.validate_or_release(epoch, now, now),
            _ => false,
        };
        rejection.join().unwrap();
        // A valid permit was validated before the gate closed; none is valid from here on.
        assert_eq!(queue.snapshot(now).time_until_open, Some(SECOND));
        if let (Acquire::Granted(epoch), true) = (result, valid) {
            assert!(!queue.validate_or_release(epoch, now, now));
        }
    });
}
