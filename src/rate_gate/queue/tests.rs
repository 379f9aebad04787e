use futures_util::task::noop_waker_ref;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Requests a permit and enqueues, with a waker that does nothing.
fn acquire(queue: &Queue, id: u64, now: Instant, deadline: Option<Instant>) -> Acquire {
    queue.acquire(id, now, deadline, Some(noop_waker_ref()))
}

/// Creates a queue whose gate is closed for `closed_for` from `now` on, after one second in which
/// `accepted` requests were accepted.
fn closed(now: Instant, accepted: u32, closed_for: Duration) -> Queue {
    let queue = Queue::new(60 * SECOND);
    let start = now - SECOND;
    for _ in 0..=accepted {
        let id = queue.next_id();
        assert_eq!(queue.acquire(id, start, None, None), Acquire::Granted(0));
    }
    (0..accepted).for_each(|_| queue.on_accepted(now, None));
    queue.on_rejected(0, now, closed_for, None);
    queue
}

#[test]
fn new_queue_grants_every_request() {
    let (queue, now) = (Queue::new(SECOND), Instant::now());
    for _ in 0..1000 {
        assert_eq!(
            acquire(&queue, queue.next_id(), now, None),
            Acquire::Granted(0)
        );
    }
    assert_eq!(queue.interval(), Duration::ZERO);
}

#[test]
fn reopens_at_accepted_rate_and_grants_one_by_one() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    // 10 requests in two seconds, less a margin.
    let interval = queue.interval();
    assert!(
        interval > SECOND / 5 && interval < SECOND / 4,
        "{interval:?}"
    );
    let [first, second] = [queue.next_id(), queue.next_id()];
    let opening = now + SECOND;
    assert_eq!(
        acquire(&queue, first, now, None),
        Acquire::Wait(Some(opening))
    );
    assert_eq!(acquire(&queue, second, now, None), Acquire::Wait(None));
    assert_eq!(acquire(&queue, second, opening, None), Acquire::Wait(None));
    assert_eq!(acquire(&queue, first, opening, None), Acquire::Granted(1));
    let Acquire::Wait(Some(permit_at)) = acquire(&queue, second, opening, None) else {
        panic!("one at a time")
    };
    // Up to the tolerance for late timers before the interval is over.
    let latest = opening + interval;
    assert!(permit_at <= latest && permit_at + Duration::from_millis(20) >= latest);
    assert_eq!(
        acquire(&queue, second, permit_at, None),
        Acquire::Granted(1)
    );
}

#[test]
fn retry_keeps_its_position() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let (early, late) = (queue.next_id(), queue.next_id());
    assert!(matches!(
        acquire(&queue, late, now, None),
        Acquire::Wait(Some(_))
    ));
    assert!(matches!(
        acquire(&queue, early, now, None),
        Acquire::Wait(Some(_))
    ));
    let opening = now + SECOND;
    assert_eq!(acquire(&queue, late, opening, None), Acquire::Wait(None));
    assert_eq!(acquire(&queue, early, opening, None), Acquire::Granted(1));
}

#[test]
fn rejection_of_earlier_epoch_keeps_rate() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let interval = queue.interval();
    queue.on_rejected(0, now, SECOND, None);
    assert_eq!(queue.interval(), interval);
    queue.on_rejected(1, now, SECOND, None);
    assert!(queue.interval() > interval);
}

#[test]
fn rate_without_backlog_is_not_raised() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let interval = queue.interval();
    for seconds in 1..600 {
        let at = now + seconds * SECOND;
        let id = queue.next_id();
        assert!(matches!(acquire(&queue, id, at, None), Acquire::Granted(_)));
        queue.on_accepted(at, None);
    }
    assert_eq!(queue.interval(), interval);
}

fn quota(limit: u64, remaining: u64, reset: u64, window: Option<u64>) -> Option<Quota> {
    Some(Quota {
        limit,
        remaining,
        reset: Duration::from_secs(reset),
        window: window.map(Duration::from_secs),
    })
}

/// Sends one request, which is accepted with a quota in the response.
fn exchange(queue: &Queue, now: Instant, quota: Option<Quota>) {
    let id = queue.next_id();
    assert!(matches!(
        queue.acquire(id, now, None, None),
        Acquire::Granted(_)
    ));
    queue.on_accepted(now, quota);
}

#[test]
fn max_closed_limits_advertised_reset_and_retry_after() {
    let (queue, now) = (Queue::new(3 * SECOND), Instant::now());
    exchange(&queue, now, quota(10, 0, 86_400, None));
    let end = now + 3 * SECOND;
    assert_eq!(queue.snapshot(now).time_until_open, Some(3 * SECOND));
    let id = queue.next_id();
    assert_eq!(acquire(&queue, id, now, None), Acquire::Wait(Some(end)));
    assert!(matches!(
        acquire(&queue, id, end, None),
        Acquire::Granted(_)
    ));

    let forever = Queue::new(Duration::MAX);
    assert_eq!(
        acquire(&forever, forever.next_id(), now, None),
        Acquire::Granted(0)
    );
    forever.on_rejected(0, now, Duration::MAX, None);
    assert!(forever.snapshot(now).time_until_open > Some(Duration::from_secs(24 * 3600)));
}

#[test]
fn waiters_past_deadline_are_woken_when_quota_is_exhausted() {
    let now = Instant::now();
    let queue = Queue::new(3600 * SECOND);
    exchange(&queue, now, quota(1, 1, 1, Some(1)));
    assert_eq!(
        queue.acquire(queue.next_id(), now, None, None),
        Acquire::Granted(0)
    );
    let ids: Vec<_> = (0..3).map(|_| queue.next_id()).collect();
    let deadline = Some(now + 9 * SECOND);
    let mut waiters: Vec<_> = ids
        .iter()
        .map(|id| {
            let id = *id;
            let queue = &queue;
            tokio_test::task::spawn(std::future::poll_fn(move |cx| {
                match queue.acquire(id, now, deadline, Some(cx.waker())) {
                    Acquire::Wait(_) => std::task::Poll::Pending,
                    result => std::task::Poll::Ready(result),
                }
            }))
        })
        .collect();
    assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
    queue.on_accepted(now, quota(1, 0, 600, Some(1)));
    for waiter in &mut waiters {
        assert!(waiter.is_woken());
        let result = waiter.poll();
        assert!(
            matches!(result, std::task::Poll::Ready(Acquire::Expired(_))),
            "{result:?}"
        );
    }
}

#[test]
fn overtaken_waiter_past_deadline_is_woken() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let early: Vec<_> = (0..20).map(|_| queue.next_id()).collect();
    let late = queue.next_id();
    let mut waiter = tokio_test::task::spawn(());
    let deadline = Some(now + 2 * SECOND);
    let result = waiter.enter(|cx, _| queue.acquire(late, now, deadline, Some(cx.waker())));
    assert!(matches!(result, Acquire::Wait(Some(_))));
    for id in early {
        acquire(&queue, id, now, None);
    }
    assert!(waiter.is_woken());
    assert!(matches!(
        acquire(&queue, late, now, deadline),
        Acquire::Expired(_)
    ));
}

#[test]
fn front_waiter_is_woken_when_permit_comes_earlier() {
    let now = Instant::now();
    let queue = Queue::new(3600 * SECOND);
    for _ in 0..2 {
        queue.acquire(queue.next_id(), now, None, None);
    }
    queue.on_accepted(now, quota(100, 1, 30, Some(30)));
    let id = queue.next_id();
    let mut waiter = tokio_test::task::spawn(());
    let later = now + SECOND;
    let result = waiter.enter(|cx, _| queue.acquire(id, later, None, Some(cx.waker())));
    assert_eq!(result, Acquire::Wait(Some(now + 30 * SECOND)));
    // The request in flight, which would have used the last of the quota, fails.
    queue.on_error(later);
    assert!(waiter.is_woken());
    assert!(matches!(
        acquire(&queue, id, later, None),
        Acquire::Granted(_)
    ));
}

#[test]
fn contradicted_quota_is_ignored() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    let mut rejected = 0;
    for _ in 0..50_000 {
        now += Duration::from_millis(1);
        if let Acquire::Granted(epoch) = queue.acquire(queue.next_id(), now, None, None) {
            queue.on_rejected(epoch, now, Duration::ZERO, quota(1000, 1000, 1, Some(1)));
            rejected += 1;
        }
    }
    assert!(rejected < 200, "{rejected} rejected in 50 s");
}

#[test]
fn expired_permits_are_not_used_all_at_once() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let interval = queue.interval();
    let opening = now + SECOND;
    let late = opening + 20 * SECOND;
    let granted_at: Vec<_> = (0..5)
        .map(|index| {
            let at = opening + interval * index;
            assert_eq!(
                acquire(&queue, queue.next_id(), at, None),
                Acquire::Granted(1)
            );
            at
        })
        .collect();
    assert!(
        granted_at
            .iter()
            .all(|granted_at| !queue.validate_or_release(1, *granted_at, late))
    );
    let granted = (0..5).filter(|_| {
        matches!(
            acquire(&queue, queue.next_id(), late, None),
            Acquire::Granted(_)
        )
    });
    assert_eq!(granted.count(), 1);
}

#[test]
fn released_permit_is_granted_again_at_once() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let opening = now + SECOND;
    assert_eq!(
        acquire(&queue, queue.next_id(), opening, None),
        Acquire::Granted(1)
    );
    queue.release(opening);
    assert_eq!(
        acquire(&queue, queue.next_id(), opening, None),
        Acquire::Granted(1)
    );
}

#[test]
fn recovers_after_long_rejection() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    let mut accepted = 0;
    let mut id = queue.next_id();
    acquire(&queue, id, now, None);
    queue.on_rejected(0, now, SECOND, None);
    for tick in 0..120_000 {
        now += Duration::from_millis(10);
        // Keeps a backlog.
        let last = u64::MAX;
        acquire(&queue, last, now, None);
        if let Acquire::Granted(epoch) = acquire(&queue, id, now, None) {
            id = queue.next_id();
            match tick < 60_000 {
                true => queue.on_rejected(epoch, now, SECOND, None),
                false => {
                    queue.on_accepted(now, None);
                    accepted += 1;
                }
            }
        }
    }
    // Ten minutes in which all are rejected, then ten in which none is.
    assert!(accepted > 1000, "{accepted} in 600 s");
}

#[test]
fn first_rejection_after_quiet_time_uses_recent_rate() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    for _ in 0..60 {
        now += 60 * SECOND;
        exchange(&queue, now, None);
    }
    now += 60 * SECOND;
    for _ in 0..100 {
        exchange(&queue, now, None);
    }
    let id = queue.next_id();
    assert_eq!(acquire(&queue, id, now, None), Acquire::Granted(0));
    queue.on_rejected(0, now, SECOND, None);
    assert!(queue.interval() < SECOND / 50, "{:?}", queue.interval());
}

#[test]
fn millisecond_timers_do_not_slow_fast_quota() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    exchange(&queue, now, quota(10_000, 9_999, 1, Some(1)));
    let mut granted = 0;
    for _ in 0..500 {
        now += Duration::from_millis(1);
        while let Acquire::Granted(_) = queue.acquire(queue.next_id(), now, None, None) {
            granted += 1;
            queue.on_accepted(now, quota(10_000, 9_000, 1, Some(1)));
        }
    }
    assert!(granted > 4_500, "{granted} in half a second");
}

#[test]
fn alternating_quotas_do_not_change_usage_multiplier() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    for index in 0..200 {
        now += SECOND;
        let hourly = quota(5000, 4000 - index, 3000, None);
        let per_minute = quota(30, 20, 40, None);
        let id = queue.next_id();
        acquire(&queue, id, now, None);
        queue.on_accepted(now, if index % 2 == 0 { hourly } else { per_minute });
        queue.cancel(id);
    }
    exchange(&queue, now + 60 * SECOND, quota(5000, 3962, 3000, None));
    assert!(queue.interval() < SECOND / 100, "{:?}", queue.interval());
}

proptest! {
    #[test]
    fn permits_respect_closure_interval_and_order(
        steps in proptest::collection::vec((0u8..6, 0u64..3000, any::<bool>()), 1..120),
    ) {
        let (queue, mut now) = (Queue::new(10 * SECOND), Instant::now());
        let mut closed_until = now;
        let mut queued: Vec<u64> = Vec::new();
        let mut in_flight: Vec<u64> = Vec::new();
        let mut last_granted: Option<(Instant, Duration)> = None;
        for (step, millis, cancels) in steps {
            match step {
                0 | 1 => queued.push(queue.next_id()),
                2 => now += Duration::from_millis(millis),
                3 => if in_flight.pop().is_some() {
                        queue.on_accepted(now, None);
                    },
                4 => if let Some(epoch) = in_flight.pop() {
                    let closed_for = Duration::from_millis(millis);
                    queue.on_rejected(epoch, now, closed_for, None);
                    closed_until = closed_until.max(now + closed_for);
                },
                _ => if cancels && !queued.is_empty() {
                    queue.cancel(queued.remove(0));
                },
            }
            let mut still_queued = Vec::new();
            for id in std::mem::take(&mut queued) {
                match acquire(&queue, id, now, None) {
                    Acquire::Granted(epoch) => {
                        prop_assert!(now >= closed_until);
                        prop_assert!(still_queued.is_empty(), "out of order");
                        if let Some((last, interval)) = last_granted {
                            let slack = Duration::from_millis(21);
                            prop_assert!(now + slack >= last + interval);
                        }
                        in_flight.push(epoch);
                        last_granted = Some((now, queue.interval()));
                    }
                    Acquire::Wait(_) => still_queued.push(id),
                    Acquire::Expired(_) => prop_assert!(false, "there is no deadline"),
                }
            }
            queued = still_queued;
        }
    }

    #[test]
    fn request_expires_at_once_or_meets_deadline(
        ahead in 0usize..30,
        deadline_millis in 0u64..20_000,
        closed_millis in 1u64..5_000,
    ) {
        let now = Instant::now();
        let queue = closed(now, 10, Duration::from_millis(closed_millis));
        for _ in 0..ahead {
            acquire(&queue, queue.next_id(), now, None);
        }
        let deadline = now + Duration::from_millis(deadline_millis);
        let result = acquire(&queue, queue.next_id(), now, Some(deadline));
        let opening = now + Duration::from_millis(closed_millis);
        let eta = opening + queue.interval() * ahead as u32;
        match result {
            Acquire::Expired(at) => prop_assert!(at == eta && at > deadline),
            Acquire::Wait(_) => prop_assert!(eta <= deadline),
            Acquire::Granted(_) => prop_assert!(false, "the gate is closed"),
        }
    }
}
