//! What may happen at the same time, checked in every order.

use std::{future::poll_fn, task::Poll};

use loom::{future::block_on, thread};

use super::*;
use crate::sync::Arc;

const SECOND: Duration = Duration::from_secs(1);

/// A gate that was closed for a second at `now`.
fn closed(now: Instant) -> Arc<Queue> {
    let queue = Arc::new(Queue::new(60 * SECOND));
    let number = queue.number();
    assert_eq!(queue.ask(number, now, None, None), Acquire::Granted(0));
    queue.refused(0, now, SECOND, None);
    queue
}

/// Stays in line until the turn comes, or a time is told at which to ask again.
fn wait(queue: &Queue, number: u64, now: Instant) -> Acquire {
    block_on(poll_fn(|cx| {
        match queue.ask(number, now, None, Some(cx.waker())) {
            Acquire::Wait(None) => Poll::Pending,
            turn => Poll::Ready(turn),
        }
    }))
}

#[test]
fn whoever_gives_up_wakes_the_next() {
    let now = Instant::now();
    loom::model(move || {
        let queue = closed(now);
        let (first, second) = (queue.number(), queue.number());
        let waits = {
            let queue = queue.clone();
            thread::spawn(move || wait(&queue, second, now))
        };
        wait(&queue, first, now);
        queue.give_up(first);
        let opening = now + SECOND;
        assert_eq!(waits.join().unwrap(), Acquire::Wait(Some(opening)));
    });
}

#[test]
fn whoever_leaves_wakes_the_next_and_no_two_leave_at_once() {
    let (now, open) = (Instant::now(), Instant::now() + 2 * SECOND);
    loom::model(move || {
        let queue = closed(now);
        let (first, second) = (queue.number(), queue.number());
        let other = {
            let queue = queue.clone();
            thread::spawn(move || wait(&queue, second, open))
        };
        let turns = [wait(&queue, first, open), other.join().unwrap()];
        // The pace after a refusal of all is one request in more than a second.
        let left = turns
            .iter()
            .filter(|turn| matches!(turn, Acquire::Granted(_)));
        assert_eq!(left.count(), 1, "{turns:?}");
    });
}

#[test]
fn a_turn_is_not_good_any_more_once_the_gate_has_closed() {
    let now = Instant::now();
    loom::model(move || {
        let queue = Arc::new(Queue::new(60 * SECOND));
        let (first, second) = (queue.number(), queue.number());
        let Acquire::Granted(closings) = queue.ask(first, now, None, None) else {
            panic!("an open gate")
        };
        let refused = {
            let queue = queue.clone();
            thread::spawn(move || queue.refused(closings, now, SECOND, None))
        };
        let turn = queue.ask(second, now, None, None);
        let good = match turn {
            Acquire::Granted(closings) => queue.confirm(closings, now, now),
            _ => false,
        };
        refused.join().unwrap();
        // Whatever left did so before the gate closed; from now on nothing does.
        let (_, time_until_open) = queue.state(now);
        assert_eq!(time_until_open, Some(SECOND));
        if let (Acquire::Granted(closings), true) = (turn, good) {
            assert!(!queue.confirm(closings, now, now));
        }
    });
}
