//! An estimate of the permitted rate from accepted requests and 429s alone.
//!
//! # Algorithm
//!
//! The estimator is a rate-based variant of congestion control with binary feedback. It decreases
//! multiplicatively, like AIMD (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
//! Congestion Avoidance in Computer Networks", Computer Networks and ISDN Systems 17, 1989), but does not
//! increase additively. It searches for the limit like BIC (Xu, Harfoush and Rhee, "Binary Increase
//! Congestion Control (BIC) for Fast Long-Distance Networks", INFOCOM 2004) and its successor CUBIC
//! (RFC 9438): it remembers the rate that was rejected, goes halfway towards it while well below it, probes
//! in small steps close to it, and in large steps beyond it. Steps double until a rejection. The adaptive
//! retry mode of the AWS SDKs applies CUBIC to the same problem.
//!
//! It differs from these in three ways, because a 429 costs the whole closure of the gate:
//!
//! - A rate that is not rejected for some time becomes safe. A rejected probe returns to the last safe rate
//!   instead of a fraction of the rejected rate, and doubles the time until the next probe.
//! - The unit of time is the closure of the last 429. It stands in for the unknown window of the limit, as
//!   the round-trip time does in TCP.
//! - Time counts only while requests are queued. A rate that is not used proves nothing; compare the
//!   congestion window validation of TCP (RFC 7661).
//!
//! # State machine
//!
//! | symbol | field | meaning |
//! |---|---|---|
//! | R | `rate` | requests per second |
//! | S | `safe_rate` | highest safe rate |
//! | L | `rejected_rate` | last rejected rate, the upper bound of the search; infinite at first |
//! | T | `phase_secs` | time between departures while others are queued, since R last changed |
//! | H | `hold_secs` | T before the first probe; 6 s at first |
//! | F | `first_step` | step of the first probe, as a fraction of R; 1 % at first |
//! | C | `closed_secs` | closure of the last 429, from 0.01 s to 10 s |
//! | m | `measured` | accepted / (time since the window started + C) |
//! | p | `previous_rate` | accepted rate of the window before, while R is unknown |
//!
//! States: `Unknown` (no R), `Hold` (R, no S), `Hold safe` (R = S) and `Probe(s)` (R > S, after a step s).
//!
//! On a departure, the first row that applies:
//!
//! | state | condition | next state | R | S |
//! |---|---|---|---|---|
//! | `Unknown` | | `Unknown` | | |
//! | other | T < 5.5 C | unchanged | | |
//! | `Hold`, `Hold safe` | T < H | `Hold safe` | | R |
//! | other | 1.1 R < L < ∞ | `Probe(0.5 %)` | halfway to L, at most 1.5 R | old R |
//! | `Hold`, `Hold safe` | | `Probe(F)` | (1 + F) R | old R |
//! | `Probe(s)` | R > L | `Probe(s')`, s' = 2s, from 25 % to 50 % | (1 + s') R | old R |
//! | `Probe(s)` | | `Probe(s')`, s' = 2s, at most 50 % | (1 + s') R | old R |
//!
//! A change of R resets T. In `Unknown`, the first departure starts the window, and a departure more than
//! 5 s later sets p and starts another one.
//!
//! An accepted request is counted; no state changes.
//!
//! On a 429:
//!
//! | state | condition | next state | R | S | H | F |
//! |---|---|---|---|---|---|---|
//! | `Unknown` | none accepted, p = 0 | `Hold` | max(⌊in flight / 4⌋, 1) / C | none | 2 s | 4 % |
//! | `Unknown` | otherwise | `Hold` | 0.97 max(m, p) | none | 6 s | 1 % |
//! | `Probe` | | `Hold safe` | S | unchanged | 2H, at most 16 s | 1 % |
//! | `Hold safe` | some accepted | `Hold` | 0.9 R | none | 2H, from 6 s to 30 s | 1 % |
//! | `Hold` | some accepted | `Hold` | 0.97 √(m R), √ from 0.75 R to R | none | 2 s | 4 % |
//! | `Hold`, `Hold safe` | none accepted | `Hold` | R / 2 | none | 2 s | 4 % |
//!
//! L is set to the old R, except in `Unknown`. R is at least 0.2 per second. T and the number of accepted
//! requests restart at zero, and the window restarts when the gate opens.

use std::time::Duration;

use tokio::time::Instant;

use super::MIN_RATE_PER_SEC;

/// A rate estimator that holds safe rates and probes for higher ones. Rates are in requests per second.
#[derive(Debug)]
pub(super) struct ProbingEstimator {
    /// The current rate; `None` before the first 429.
    rate: Option<f64>,
    /// The highest safe rate.
    safe_rate: Option<f64>,
    phase: Phase,
    /// The time between departures while others are queued, since the rate last changed.
    phase_secs: f64,
    last_departure: Option<Instant>,
    /// The part of `phase_secs` before the first probe.
    hold_secs: f64,
    /// The step of the first probe, as a fraction of the rate.
    first_step: f64,
    /// The last rejected rate; infinite before the first rejection of a known rate.
    rejected_rate: f64,
    /// The time for which the last 429 closed the gate.
    closed_secs: f64,
    /// The time at which the gate opened or the first request departed.
    window_start: Option<Instant>,
    /// The number of responses other than 429 in the window.
    accepted: u32,
    /// The accepted rate of the window before, while the rate is unknown.
    previous_rate: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Hold,
    /// Above the last safe rate. The next step is twice `step`, a fraction of the rate.
    Probe {
        step: f64,
    },
}

// Tuned with the example `storm`, over 20 seeds. `SAFE_AFTER_CLOSURES` matters most: a smaller value costs
// more 429s if other clients share the limit, and a larger one finds a raised limit too late (from 6 on,
// `storm` misses its target).

/// The time after which a rate is safe, as a multiple of `closed_secs`.
const SAFE_AFTER_CLOSURES: f64 = 5.5;
const MIN_CLOSED_SECS: f64 = 0.01;
const MAX_CLOSED_SECS: f64 = 10.0;
/// After a rejection of an unproven rate.
const SHORT_HOLD_SECS: f64 = 2.0;
const FIRST_HOLD_SECS: f64 = 6.0;
/// After rejections of probes.
const MAX_HOLD_SECS: f64 = 16.0;
/// After rejections of safe rates, that is, if other clients share the limit.
const MAX_SHARED_HOLD_SECS: f64 = 30.0;
const SMALL_STEP: f64 = 0.01;
const LARGE_STEP: f64 = 0.04;
/// The minimum step above a rejected rate.
const RAISED_LIMIT_STEP: f64 = 0.25;
const MAX_STEP: f64 = 0.5;
/// The step from which probing continues after a step halfway to a rejected rate.
const STEP_AFTER_HALFWAY: f64 = SMALL_STEP / 2.0;
/// Within this ratio of a rejected rate, the steps are small.
const NEAR_LIMIT_RATIO: f64 = 1.1;
/// The fraction of a measured rate that is used, as a safety margin.
const MEASURED_FRACTION: f64 = 0.97;
/// The decrease after the rejection of a safe rate.
const DECREASE_FACTOR: f64 = 0.9;
/// The lower bound of the decrease after the rejection of an unproven rate.
const MIN_UNPROVEN_DECREASE_FACTOR: f64 = 0.75;
/// The decrease if no request was accepted since the gate opened.
const NONE_ACCEPTED_DECREASE_FACTOR: f64 = 0.5;

impl Default for ProbingEstimator {
    fn default() -> Self {
        Self {
            rate: None,
            safe_rate: None,
            phase: Phase::Hold,
            phase_secs: 0.0,
            last_departure: None,
            hold_secs: FIRST_HOLD_SECS,
            first_step: SMALL_STEP,
            rejected_rate: f64::INFINITY,
            closed_secs: 1.0,
            window_start: None,
            accepted: 0,
            previous_rate: 0.0,
        }
    }
}

impl ProbingEstimator {
    /// Returns the current rate, or `None` before the first 429.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Records a departure; `backlogged` if other requests are queued.
    pub(super) fn on_departed(&mut self, now: Instant, backlogged: bool) {
        let window_start = *self.window_start.get_or_insert(now);
        if self.rate.is_none() {
            self.roll_window(now, window_start);
        }
        if let (Some(last), true) = (self.last_departure, backlogged) {
            self.phase_secs += now.saturating_duration_since(last).as_secs_f64();
        }
        self.last_departure = Some(now);
        if let Some(rate) = self.rate {
            self.maybe_probe(rate);
        }
    }

    /// Records a response other than a 429.
    pub(super) fn on_accepted(&mut self) {
        self.accepted = self.accepted.saturating_add(1);
    }

    /// Records a 429, which closes the gate for `closed_for`.
    pub(super) fn on_rejected(&mut self, now: Instant, closed_for: Duration, in_flight: u32) {
        let closed_secs = closed_for
            .as_secs_f64()
            .clamp(MIN_CLOSED_SECS, MAX_CLOSED_SECS);
        let window_start = self.window_start.unwrap_or(now);
        let open_secs = now.saturating_duration_since(window_start).as_secs_f64();
        // The closure counts too: the server accepted these requests for the whole time.
        let measured = f64::from(self.accepted) / (open_secs + closed_secs);
        self.closed_secs = closed_secs;

        self.decrease(measured, in_flight);
        self.rate = self.rate.map(|rate| rate.max(MIN_RATE_PER_SEC));
        self.phase = Phase::Hold;
        self.phase_secs = 0.0;
        self.last_departure = None;
        self.accepted = 0;
        self.window_start = now.checked_add(closed_for);
    }

    /// Sets the rate, the hold time and the first step after a 429, in the order of the rows of the table.
    fn decrease(&mut self, measured: f64, in_flight: u32) {
        match (self.rate, self.safe_rate, self.phase) {
            // No information yet: a guess, which the next responses correct.
            (None, ..) if self.accepted == 0 && self.previous_rate == 0.0 => {
                let guess = f64::from(in_flight / 4).max(1.0);
                self.rate = Some(guess / self.closed_secs);
                self.hold_secs = SHORT_HOLD_SECS;
                self.first_step = LARGE_STEP;
            }
            (None, ..) => {
                self.rate = Some(measured.max(self.previous_rate) * MEASURED_FRACTION);
                self.hold_secs = FIRST_HOLD_SECS;
                self.first_step = SMALL_STEP;
            }
            // The probe exceeded the limit: back to the safe rate.
            (Some(rate), Some(safe_rate), Phase::Probe { .. }) => {
                self.rejected_rate = rate;
                self.rate = Some(safe_rate);
                self.hold_secs = (2.0 * self.hold_secs).min(MAX_HOLD_SECS);
                self.first_step = SMALL_STEP;
            }
            // The limit was lowered, or other clients use more of it.
            (Some(rate), Some(_), Phase::Hold) if self.accepted > 0 => {
                self.rejected_rate = rate;
                self.rate = Some(rate * DECREASE_FACTOR);
                self.safe_rate = None;
                self.hold_secs =
                    (2.0 * self.hold_secs).clamp(FIRST_HOLD_SECS, MAX_SHARED_HOLD_SECS);
                self.first_step = SMALL_STEP;
            }
            // The rate was not safe, or none was accepted: the limit is well below.
            (Some(rate), ..) => {
                let lower = match self.accepted {
                    0 => rate * NONE_ACCEPTED_DECREASE_FACTOR,
                    _ => {
                        let min = MIN_UNPROVEN_DECREASE_FACTOR * rate;
                        (measured * rate).sqrt().clamp(min, rate) * MEASURED_FRACTION
                    }
                };
                self.rejected_rate = rate;
                self.rate = Some(lower);
                self.safe_rate = None;
                self.hold_secs = SHORT_HOLD_SECS;
                self.first_step = LARGE_STEP;
            }
        }
    }

    /// Starts another window after 5 s, because older responses do not show the limit that a first 429
    /// is about.
    fn roll_window(&mut self, now: Instant, window_start: Instant) {
        const WINDOW_SECS: f64 = 5.0;

        let secs = now.saturating_duration_since(window_start).as_secs_f64();
        if secs > WINDOW_SECS {
            self.previous_rate = f64::from(self.accepted) / secs;
            self.window_start = Some(now);
            self.accepted = 0;
        }
    }

    /// Marks the rate as safe and raises it, if it has been held long enough.
    fn maybe_probe(&mut self, rate: f64) {
        if self.phase_secs < SAFE_AFTER_CLOSURES * self.closed_secs {
            return;
        }
        self.safe_rate = Some(self.safe_rate.map_or(rate, |safe_rate| safe_rate.max(rate)));
        let limit = self.rejected_rate;
        let step = match self.phase {
            Phase::Hold if self.phase_secs < self.hold_secs => return,
            // Well below a rejected rate: halfway to it, as in a binary search.
            _ if rate * NEAR_LIMIT_RATIO < limit && limit.is_finite() => {
                let halfway = 0.5 * (limit / rate - 1.0);
                self.raise(rate, halfway.min(MAX_STEP), STEP_AFTER_HALFWAY);
                return;
            }
            Phase::Hold => self.first_step,
            // Above a rejected rate: the limit must have been raised, by an unknown amount.
            Phase::Probe { step } if rate > limit => {
                (2.0 * step).clamp(RAISED_LIMIT_STEP, MAX_STEP)
            }
            Phase::Probe { step } => (2.0 * step).min(MAX_STEP),
        };
        self.raise(rate, step, step);
    }

    /// Raises the rate by `step`. The next step is twice `probe_step`.
    fn raise(&mut self, rate: f64, step: f64, probe_step: f64) {
        self.phase = Phase::Probe { step: probe_step };
        self.rate = Some(rate * (1.0 + step));
        self.phase_secs = 0.0;
    }
}

#[cfg(test)]
mod tests;
