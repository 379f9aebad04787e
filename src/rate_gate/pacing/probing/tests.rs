//! The rows of the tables in the module documentation.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const RATE: f64 = 10.0;
/// The highest phase time at which the rate is not safe yet.
const UNPROVEN_SECS: f64 = 5.4;

/// Creates an estimator with a known rate, 4 s after its gate opened, and a closure of 1 s before.
fn known(phase: Phase, safe_rate: Option<f64>, now: Instant) -> ProbingEstimator {
    ProbingEstimator {
        rate: Some(RATE),
        safe_rate,
        phase,
        hold_secs: 7.0,
        first_step: 0.03,
        window_start: Some(now - 4 * SECOND),
        ..ProbingEstimator::default()
    }
}

/// Rejects a request, with a closure of 1 s and 22 requests in flight, and checks what is common to all
/// rows. Returns the rate, the safe rate, the hold time and the first step.
fn reject(mut estimator: ProbingEstimator, now: Instant) -> (f64, Option<f64>, f64, f64) {
    let rejected_rate = estimator.rate.unwrap_or(f64::INFINITY);
    estimator.phase_secs = 3.0;
    estimator.on_rejected(now, SECOND, 22);
    assert_eq!(estimator.phase, Phase::Hold);
    assert_eq!(estimator.rejected_rate, rejected_rate);
    assert_eq!((estimator.phase_secs, estimator.accepted), (0.0, 0));
    assert_eq!(estimator.window_start, Some(now + SECOND));
    let rate = estimator.rate.unwrap();
    (
        rate,
        estimator.safe_rate,
        estimator.hold_secs,
        estimator.first_step,
    )
}

/// Departs with a backlog after `phase_secs`. Returns the phase, the rate and the safe rate.
fn depart(mut estimator: ProbingEstimator, phase_secs: f64) -> (Phase, f64, Option<f64>) {
    let now = Instant::now();
    estimator.last_departure = Some(now);
    estimator.on_departed(now + Duration::from_secs_f64(phase_secs), true);
    let rate = estimator.rate.unwrap();
    if rate != RATE {
        assert_eq!(estimator.phase_secs, 0.0);
    }
    (estimator.phase, rate, estimator.safe_rate)
}

#[test]
fn rejection_in_unknown_state_guesses_or_measures() {
    let now = Instant::now();
    let unknown = ProbingEstimator::default;
    assert_eq!(reject(unknown(), now), (5.0, None, 2.0, 0.04));

    let mut measured = unknown();
    measured.window_start = Some(now - 4 * SECOND);
    measured.accepted = 50;
    measured.previous_rate = 2.0;
    assert_eq!(reject(measured, now), (10.0 * 0.97, None, 6.0, 0.01));

    let mut previous = unknown();
    previous.previous_rate = 20.0;
    assert_eq!(reject(previous, now), (20.0 * 0.97, None, 6.0, 0.01));
}

#[test]
fn rejection_of_probe_returns_to_safe_rate() {
    let now = Instant::now();
    let mut probe = known(Phase::Probe { step: 0.1 }, Some(8.0), now);
    assert_eq!(reject(probe, now), (8.0, Some(8.0), 14.0, 0.01));

    probe = known(Phase::Probe { step: 0.1 }, Some(8.0), now);
    probe.hold_secs = 9.0;
    assert_eq!(reject(probe, now), (8.0, Some(8.0), 16.0, 0.01));
}

#[test]
fn rejection_of_safe_rate_decreases_by_tenth() {
    let now = Instant::now();
    for (hold_secs, next_hold_secs) in [(2.0, 6.0), (7.0, 14.0), (16.0, 30.0)] {
        let mut hold = known(Phase::Hold, Some(RATE), now);
        hold.accepted = 1;
        hold.hold_secs = hold_secs;
        assert_eq!(reject(hold, now), (9.0, None, next_hold_secs, 0.01));
    }
}

#[test]
fn rejection_of_unproven_rate_decreases_towards_measured_rate() {
    let now = Instant::now();
    for (accepted, mean) in [(5, 7.5), (45, 90_f64.sqrt()), (100, 10.0)] {
        let mut hold = known(Phase::Hold, None, now);
        hold.accepted = accepted;
        assert_eq!(reject(hold, now), (mean * 0.97, None, 2.0, 0.04));
    }
}

#[test]
fn rejection_without_accepted_requests_halves_rate() {
    let now = Instant::now();
    for safe_rate in [None, Some(RATE)] {
        let hold = known(Phase::Hold, safe_rate, now);
        assert_eq!(reject(hold, now), (5.0, None, 2.0, 0.04));
    }
    let mut slow = known(Phase::Hold, None, now);
    slow.rate = Some(0.3);
    assert_eq!(reject(slow, now), (0.2, None, 2.0, 0.04));
}

#[test]
fn held_rate_becomes_safe_before_it_is_raised() {
    let hold = || known(Phase::Hold, None, Instant::now());
    assert_eq!(depart(hold(), UNPROVEN_SECS), (Phase::Hold, RATE, None));
    assert_eq!(depart(hold(), 6.9), (Phase::Hold, RATE, Some(RATE)));
    let probe = (Phase::Probe { step: 0.03 }, RATE * 1.03, Some(RATE));
    assert_eq!(depart(hold(), 7.0), probe);
}

#[test]
fn probe_doubles_step_up_to_half() {
    for (step, next_step) in [(0.01, 0.02), (0.2, 0.4), (0.4, 0.5)] {
        let phase = Phase::Probe { step };
        let probe = || known(phase, Some(9.0), Instant::now());
        assert_eq!(depart(probe(), UNPROVEN_SECS), (phase, RATE, Some(9.0)));
        let next = Phase::Probe { step: next_step };
        assert_eq!(
            depart(probe(), 5.5),
            (next, RATE * (1.0 + next_step), Some(RATE))
        );
    }
}

#[test]
fn rate_well_below_rejected_rate_rises_halfway() {
    let next = Phase::Probe { step: 0.005 };
    for (phase, phase_secs) in [(Phase::Hold, 7.0), (Phase::Probe { step: 0.1 }, 5.5)] {
        for (rejected_rate, rate) in [(12.0, 11.0), (100.0, 15.0)] {
            let mut estimator = known(phase, Some(9.0), Instant::now());
            estimator.rejected_rate = rejected_rate;
            assert_eq!(depart(estimator, phase_secs), (next, rate, Some(RATE)));
        }
    }
}

#[test]
fn rate_near_rejected_rate_rises_by_small_steps() {
    let mut hold = known(Phase::Hold, None, Instant::now());
    hold.rejected_rate = 10.9;
    let probe = (Phase::Probe { step: 0.03 }, RATE * 1.03, Some(RATE));
    assert_eq!(depart(hold, 7.0), probe);
}

#[test]
fn probe_above_rejected_rate_rises_by_large_steps() {
    for (step, next_step) in [(0.01, 0.25), (0.2, 0.4), (0.4, 0.5)] {
        let mut probe = known(Phase::Probe { step }, Some(9.0), Instant::now());
        probe.rejected_rate = 9.5;
        let next = Phase::Probe { step: next_step };
        assert_eq!(
            depart(probe, 5.5),
            (next, RATE * (1.0 + next_step), Some(RATE))
        );
    }
}

#[test]
fn departures_without_backlog_prove_nothing() {
    let now = Instant::now();
    let mut hold = known(Phase::Hold, None, now);
    for secs in 1..100 {
        hold.on_departed(now + secs * SECOND, false);
    }
    assert_eq!((hold.rate, hold.safe_rate), (Some(RATE), None));
}

#[test]
fn window_rolls_after_five_seconds_while_rate_is_unknown() {
    let now = Instant::now();
    let mut unknown = ProbingEstimator::default();
    unknown.on_departed(now, false);
    (0..12).for_each(|_| unknown.on_accepted());
    unknown.on_departed(now + 5 * SECOND, false);
    assert_eq!((unknown.previous_rate, unknown.accepted), (0.0, 12));
    unknown.on_departed(now + 6 * SECOND, false);
    assert_eq!((unknown.previous_rate, unknown.accepted), (2.0, 0));
    assert_eq!(unknown.window_start, Some(now + 6 * SECOND));
}
