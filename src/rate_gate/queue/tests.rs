use futures_util::task::noop_waker_ref;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn ask(queue: &Queue, number: u64, now: Instant, latest: Option<Instant>) -> Acquire {
    queue.ask(number, now, latest, Some(noop_waker_ref()))
}

/// A gate that is closed for `wait` from `now` on, after `accepted` of the requests of one second.
fn closed(now: Instant, accepted: u32, wait: Duration) -> Queue {
    let queue = Queue::new(60 * SECOND);
    let start = now - SECOND;
    for _ in 0..=accepted {
        let number = queue.number();
        assert_eq!(queue.ask(number, start, None, None), Acquire::Granted(0));
    }
    (0..accepted).for_each(|_| queue.accepted(now, None));
    queue.refused(0, now, wait, None);
    queue
}

#[test]
fn before_anything_is_known_nobody_waits() {
    let (queue, now) = (Queue::new(SECOND), Instant::now());
    for _ in 0..1000 {
        assert_eq!(ask(&queue, queue.number(), now, None), Acquire::Granted(0));
    }
    assert_eq!(queue.interval(), Duration::ZERO);
}

#[test]
fn it_opens_at_what_was_accepted_and_one_by_one() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    // 10 in two seconds, less a margin.
    let interval = queue.interval();
    assert!(
        interval > SECOND / 5 && interval < SECOND / 4,
        "{interval:?}"
    );
    let numbers = [queue.number(), queue.number()];
    let opening = now + SECOND;
    assert_eq!(
        ask(&queue, numbers[0], now, None),
        Acquire::Wait(Some(opening))
    );
    assert_eq!(ask(&queue, numbers[1], now, None), Acquire::Wait(None));
    assert_eq!(ask(&queue, numbers[1], opening, None), Acquire::Wait(None));
    assert_eq!(ask(&queue, numbers[0], opening, None), Acquire::Granted(1));
    let Acquire::Wait(Some(second)) = ask(&queue, numbers[1], opening, None) else {
        panic!("one at a time")
    };
    // What a timer may be late by is made up for.
    let late = opening + interval;
    assert!(second <= late && second + Duration::from_millis(20) >= late);
    assert_eq!(ask(&queue, numbers[1], second, None), Acquire::Granted(1));
}

#[test]
fn one_that_comes_back_keeps_its_place() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let (early, late) = (queue.number(), queue.number());
    assert!(matches!(
        ask(&queue, late, now, None),
        Acquire::Wait(Some(_))
    ));
    assert!(matches!(
        ask(&queue, early, now, None),
        Acquire::Wait(Some(_))
    ));
    let opening = now + SECOND;
    assert_eq!(ask(&queue, late, opening, None), Acquire::Wait(None));
    assert_eq!(ask(&queue, early, opening, None), Acquire::Granted(1));
}

#[test]
fn what_had_left_before_does_not_close_it_twice() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let interval = queue.interval();
    queue.refused(0, now, SECOND, None);
    assert_eq!(queue.interval(), interval);
    queue.refused(1, now, SECOND, None);
    assert!(queue.interval() > interval);
}

#[test]
fn a_rate_that_nobody_asks_for_is_not_raised() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let interval = queue.interval();
    for seconds in 1..600 {
        let at = now + seconds * SECOND;
        let number = queue.number();
        assert!(matches!(ask(&queue, number, at, None), Acquire::Granted(_)));
        queue.accepted(at, None);
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

/// One request leaves, and its answer states a quota.
fn stated(queue: &Queue, now: Instant, quota: Option<Quota>) {
    let number = queue.number();
    assert!(matches!(
        queue.ask(number, now, None, None),
        Acquire::Granted(_)
    ));
    queue.accepted(now, quota);
}

#[test]
fn nothing_that_a_server_states_closes_it_for_longer_than_set() {
    let (queue, now) = (Queue::new(3 * SECOND), Instant::now());
    stated(&queue, now, quota(10, 0, 86_400, None));
    let end = now + 3 * SECOND;
    assert_eq!(queue.state(now).1, Some(3 * SECOND));
    let number = queue.number();
    assert_eq!(ask(&queue, number, now, None), Acquire::Wait(Some(end)));
    assert!(matches!(
        ask(&queue, number, end, None),
        Acquire::Granted(_)
    ));

    let forever = Queue::new(Duration::MAX);
    assert_eq!(
        ask(&forever, forever.number(), now, None),
        Acquire::Granted(0)
    );
    forever.refused(0, now, Duration::MAX, None);
    assert!(forever.state(now).1 > Some(Duration::from_secs(24 * 3600)));
}

#[test]
fn those_in_line_are_told_when_their_turn_moves_past_their_deadline() {
    let now = Instant::now();
    let queue = Queue::new(3600 * SECOND);
    stated(&queue, now, quota(1, 1, 1, Some(1)));
    assert_eq!(
        queue.ask(queue.number(), now, None, None),
        Acquire::Granted(0)
    );
    let numbers: Vec<_> = (0..3).map(|_| queue.number()).collect();
    let latest = Some(now + 9 * SECOND);
    let mut line: Vec<_> = numbers
        .iter()
        .map(|number| {
            let number = *number;
            let queue = &queue;
            tokio_test::task::spawn(std::future::poll_fn(move |cx| {
                match queue.ask(number, now, latest, Some(cx.waker())) {
                    Acquire::Wait(_) => std::task::Poll::Pending,
                    turn => std::task::Poll::Ready(turn),
                }
            }))
        })
        .collect();
    assert!(line.iter_mut().all(|it| it.poll().is_pending()));
    queue.accepted(now, quota(1, 0, 600, Some(1)));
    for waiting in &mut line {
        assert!(waiting.is_woken());
        let turn = waiting.poll();
        assert!(
            matches!(turn, std::task::Poll::Ready(Acquire::Expired(_))),
            "{turn:?}"
        );
    }
}

#[test]
fn who_is_pushed_back_past_his_deadline_is_told() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let early: Vec<_> = (0..20).map(|_| queue.number()).collect();
    let late = queue.number();
    let mut waiting = tokio_test::task::spawn(());
    let latest = Some(now + 2 * SECOND);
    let turn = waiting.enter(|cx, _| queue.ask(late, now, latest, Some(cx.waker())));
    assert!(matches!(turn, Acquire::Wait(Some(_))));
    for number in early {
        ask(&queue, number, now, None);
    }
    assert!(waiting.is_woken());
    assert!(matches!(
        ask(&queue, late, now, latest),
        Acquire::Expired(_)
    ));
}

#[test]
fn the_first_in_line_is_woken_when_its_turn_comes_earlier() {
    let now = Instant::now();
    let queue = Queue::new(3600 * SECOND);
    for _ in 0..2 {
        queue.ask(queue.number(), now, None, None);
    }
    queue.accepted(now, quota(100, 1, 30, Some(30)));
    let number = queue.number();
    let mut waiting = tokio_test::task::spawn(());
    let later = now + SECOND;
    let turn = waiting.enter(|cx, _| queue.ask(number, later, None, Some(cx.waker())));
    assert_eq!(turn, Acquire::Wait(Some(now + 30 * SECOND)));
    // What was on its way, and would have taken the last of the quota, broke.
    queue.lost(later);
    assert!(waiting.is_woken());
    assert!(matches!(
        ask(&queue, number, later, None),
        Acquire::Granted(_)
    ));
}

#[test]
fn a_server_that_refuses_what_it_grants_is_not_believed() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    let mut refused = 0;
    for _ in 0..50_000 {
        now += Duration::from_millis(1);
        if let Acquire::Granted(closings) = queue.ask(queue.number(), now, None, None) {
            queue.refused(closings, now, Duration::ZERO, quota(1000, 1000, 1, Some(1)));
            refused += 1;
        }
    }
    assert!(refused < 200, "{refused} overdrafts in 50 s");
}

#[test]
fn turns_that_were_not_used_in_time_are_not_used_all_at_once() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let interval = queue.interval();
    let opening = now + SECOND;
    let late = opening + 20 * SECOND;
    let given: Vec<_> = (0..5)
        .map(|nth| {
            let at = opening + interval * nth;
            assert_eq!(ask(&queue, queue.number(), at, None), Acquire::Granted(1));
            at
        })
        .collect();
    assert!(given.iter().all(|given| !queue.confirm(1, *given, late)));
    let left =
        (0..5).filter(|_| matches!(ask(&queue, queue.number(), late, None), Acquire::Granted(_)));
    assert_eq!(left.count(), 1);
}

#[test]
fn a_turn_that_was_not_used_leaves_no_hole() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let opening = now + SECOND;
    assert_eq!(
        ask(&queue, queue.number(), opening, None),
        Acquire::Granted(1)
    );
    queue.unsent(opening);
    assert_eq!(
        ask(&queue, queue.number(), opening, None),
        Acquire::Granted(1)
    );
}

#[test]
fn after_a_long_refusal_it_finds_back() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    let mut accepted = 0;
    let mut number = queue.number();
    ask(&queue, number, now, None);
    queue.refused(0, now, SECOND, None);
    for tick in 0..120_000 {
        now += Duration::from_millis(10);
        // Somebody always waits behind the first.
        let behind = u64::MAX;
        ask(&queue, behind, now, None);
        if let Acquire::Granted(closings) = ask(&queue, number, now, None) {
            number = queue.number();
            match tick < 60_000 {
                true => queue.refused(closings, now, SECOND, None),
                false => {
                    queue.accepted(now, None);
                    accepted += 1;
                }
            }
        }
    }
    // Ten minutes of overdrafts, then ten in which nothing is refused.
    assert!(accepted > 1000, "{accepted} in 600 s");
}

#[test]
fn a_first_refusal_after_a_quiet_time_does_not_stop_nearly_all() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    for _ in 0..60 {
        now += 60 * SECOND;
        stated(&queue, now, None);
    }
    now += 60 * SECOND;
    for _ in 0..100 {
        stated(&queue, now, None);
    }
    let number = queue.number();
    assert_eq!(ask(&queue, number, now, None), Acquire::Granted(0));
    queue.refused(0, now, SECOND, None);
    assert!(queue.interval() < SECOND / 50, "{:?}", queue.interval());
}

#[test]
fn a_fast_quota_is_not_slowed_down_by_timers_of_a_millisecond() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    stated(&queue, now, quota(10_000, 9_999, 1, Some(1)));
    let mut left = 0;
    for _ in 0..500 {
        now += Duration::from_millis(1);
        while let Acquire::Granted(_) = queue.ask(queue.number(), now, None, None) {
            left += 1;
            queue.accepted(now, quota(10_000, 9_000, 1, Some(1)));
        }
    }
    assert!(left > 4_500, "{left} in half a second");
}

#[test]
fn limits_that_alternate_are_not_taken_for_the_use_of_others() {
    let (queue, mut now) = (Queue::new(60 * SECOND), Instant::now());
    for nth in 0..200 {
        now += SECOND;
        let of_one = quota(5000, 4000 - nth, 3000, None);
        let of_another = quota(30, 20, 40, None);
        let number = queue.number();
        ask(&queue, number, now, None);
        queue.accepted(now, if nth % 2 == 0 { of_one } else { of_another });
        queue.give_up(number);
    }
    stated(&queue, now + 60 * SECOND, quota(5000, 3962, 3000, None));
    assert!(queue.interval() < SECOND / 100, "{:?}", queue.interval());
}

proptest! {
    #[test]
    fn nothing_leaves_before_the_hint_nor_too_fast_nor_out_of_order(
        steps in proptest::collection::vec((0u8..6, 0u64..3000, any::<bool>()), 1..120),
    ) {
        let (queue, mut now) = (Queue::new(10 * SECOND), Instant::now());
        let mut closed_until = now;
        let mut line: Vec<u64> = Vec::new();
        let mut under_way: Vec<u64> = Vec::new();
        let mut last_left: Option<(Instant, Duration)> = None;
        for (step, number, early) in steps {
            match step {
                0 | 1 => line.push(queue.number()),
                2 => now += Duration::from_millis(number),
                3 => if under_way.pop().is_some() {
                        queue.accepted(now, None);
                    },
                4 => if let Some(closings) = under_way.pop() {
                    let wait = Duration::from_millis(number);
                    queue.refused(closings, now, wait, None);
                    closed_until = closed_until.max(now + wait);
                },
                _ => if early && !line.is_empty() {
                    queue.give_up(line.remove(0));
                },
            }
            let mut waiting = Vec::new();
            for number in std::mem::take(&mut line) {
                match ask(&queue, number, now, None) {
                    Acquire::Granted(closings) => {
                        prop_assert!(now >= closed_until);
                        prop_assert!(waiting.is_empty(), "out of order");
                        if let Some((last, interval)) = last_left {
                            let slack = Duration::from_millis(21);
                            prop_assert!(now + slack >= last + interval);
                        }
                        under_way.push(closings);
                        last_left = Some((now, queue.interval()));
                    }
                    Acquire::Wait(_) => waiting.push(number),
                    Acquire::Expired(_) => prop_assert!(false, "there is no deadline"),
                }
            }
            line = waiting;
        }
    }

    #[test]
    fn a_deadline_is_refused_at_once_or_kept(
        ahead in 0usize..30,
        patience in 0u64..20_000,
        wait in 1u64..5_000,
    ) {
        let now = Instant::now();
        let queue = closed(now, 10, Duration::from_millis(wait));
        for _ in 0..ahead {
            ask(&queue, queue.number(), now, None);
        }
        let latest = now + Duration::from_millis(patience);
        let turn = ask(&queue, queue.number(), now, Some(latest));
        let opening = now + Duration::from_millis(wait);
        let expected = opening + queue.interval() * ahead as u32;
        match turn {
            Acquire::Expired(at) => prop_assert!(at == expected && at > latest),
            Acquire::Wait(_) => prop_assert!(expected <= latest),
            Acquire::Granted(_) => prop_assert!(false, "it is closed"),
        }
    }
}
