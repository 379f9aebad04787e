use futures_util::task::noop_waker_ref;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn ask(queue: &Queue, number: u64, now: Instant, latest: Option<Instant>) -> Turn {
    queue.ask(number, now, latest, Some(noop_waker_ref()))
}

/// A gate that is closed for `wait` from `now` on, after `accepted` of the requests of one second.
fn closed(now: Instant, accepted: u32, wait: Duration) -> Queue {
    let queue = Queue::new(60 * SECOND);
    let start = now - SECOND;
    for _ in 0..=accepted {
        let number = queue.number();
        assert_eq!(queue.ask(number, start, None, None), Turn::Now(0));
    }
    (0..accepted).for_each(|_| queue.accepted(now, None));
    queue.refused(0, now, wait, None);
    queue
}

#[test]
fn before_anything_is_known_nobody_waits() {
    let (queue, now) = (Queue::new(SECOND), Instant::now());
    for _ in 0..1000 {
        assert_eq!(ask(&queue, queue.number(), now, None), Turn::Now(0));
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
        Turn::Later(Some(opening))
    );
    assert_eq!(ask(&queue, numbers[1], now, None), Turn::Later(None));
    assert_eq!(ask(&queue, numbers[1], opening, None), Turn::Later(None));
    assert_eq!(ask(&queue, numbers[0], opening, None), Turn::Now(1));
    let Turn::Later(Some(second)) = ask(&queue, numbers[1], opening, None) else {
        panic!("one at a time")
    };
    // What a timer may be late by is made up for.
    let late = opening + interval;
    assert!(second <= late && second + Duration::from_millis(20) >= late);
    assert_eq!(ask(&queue, numbers[1], second, None), Turn::Now(1));
}

#[test]
fn one_that_comes_back_keeps_its_place() {
    let now = Instant::now();
    let queue = closed(now, 10, SECOND);
    let (early, late) = (queue.number(), queue.number());
    assert!(matches!(ask(&queue, late, now, None), Turn::Later(Some(_))));
    assert!(matches!(
        ask(&queue, early, now, None),
        Turn::Later(Some(_))
    ));
    let opening = now + SECOND;
    assert_eq!(ask(&queue, late, opening, None), Turn::Later(None));
    assert_eq!(ask(&queue, early, opening, None), Turn::Now(1));
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
        assert!(matches!(ask(&queue, number, at, None), Turn::Now(_)));
        queue.accepted(at, None);
    }
    assert_eq!(queue.interval(), interval);
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
                    Turn::Now(closings) => {
                        prop_assert!(now >= closed_until);
                        prop_assert!(waiting.is_empty(), "out of order");
                        if let Some((last, interval)) = last_left {
                            let slack = Duration::from_millis(21).min(2 * interval);
                            prop_assert!(now + slack >= last + interval);
                        }
                        under_way.push(closings);
                        last_left = Some((now, queue.interval()));
                    }
                    Turn::Later(_) => waiting.push(number),
                    Turn::TooLate(_) => prop_assert!(false, "there is no deadline"),
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
            Turn::TooLate(at) => prop_assert!(at == expected && at > latest),
            Turn::Later(_) => prop_assert!(expected <= latest),
            Turn::Now(_) => prop_assert!(false, "it is closed"),
        }
    }
}
