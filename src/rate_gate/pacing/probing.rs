//! The rate, learned from successes and overdrafts alone.
//!
//! A rate that was held for some time without a refusal is safe. After a refusal the pace goes back to
//! the last safe rate and is held there, longer each time that it was found right. Then it is raised by
//! steps that double: a limit that has not moved is met by a small step, which costs little, and one
//! that was raised is reached in a few. What a refusal costs is the time for which the server then asks
//! to wait, which is also the measure of time for the rest.

use std::time::Duration;

use tokio::time::Instant;

use super::SLOWEST;

#[derive(Debug)]
pub(super) struct Learned {
    /// Requests a second; `None` as long as nothing was refused.
    rate: Option<f64>,
    /// The highest rate that proved safe.
    safe: Option<f64>,
    phase: Phase,
    /// How long the phase has lasted, in seconds in which requests waited for their turn: a rate that
    /// nobody asks for proves nothing.
    lasted: f64,
    last_left: Option<Instant>,
    /// How long a rate that proved safe is held, in seconds.
    hold: f64,
    /// The step with which the next probe starts.
    first_step: f64,
    /// The lowest rate above the safe one that was refused.
    met: f64,
    /// For how long the server asked to wait, in seconds.
    scale: f64,
    /// When the gate opened, or the first request left.
    opened: Option<Instant>,
    /// Answers since then that were no refusal.
    accepted: u32,
    /// How many a second there were before that, as long as there was no refusal at all.
    before: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Hold,
    /// Raised by this part of the rate that was safe before.
    Probe(f64),
}

// In seconds, or as parts of the rate: chosen in the example `storm`, over 20 seeds. What gives most is how
// long a rate is held before it is safe, and it works both ways: a shorter time costs more overdrafts where
// others share the limit, a longer one finds a raised limit too late (from 6 on, below its target there).
const SHORT_HOLD: f64 = 2.0;
const FIRST_HOLD: f64 = 6.0;
const LONGEST_HOLD: f64 = 16.0;
const LONGEST_SHARED_HOLD: f64 = 30.0;
const SMALL_STEP: f64 = 0.01;
const LARGE_STEP: f64 = 0.04;
const RAISED_STEP: f64 = 0.25;
const LARGEST_STEP: f64 = 0.5;
/// So close to a rate that was refused, the steps are small.
const CLOSE: f64 = 1.1;
/// What is left, at the least, of a rate that was refused before it was safe.
const AT_LEAST: f64 = 0.75;
/// Below what was measured right at the limit.
const MARGIN: f64 = 0.97;
/// What is left of a safe rate that was refused, since others took from the limit.
const SHARED: f64 = 0.9;
/// How long a rate has to be held to be safe, in units of the scale.
const PROOF: f64 = 5.5;

impl Default for Learned {
    fn default() -> Self {
        Self {
            rate: None,
            safe: None,
            phase: Phase::Hold,
            lasted: 0.0,
            last_left: None,
            hold: FIRST_HOLD,
            first_step: SMALL_STEP,
            met: f64::INFINITY,
            scale: 1.0,
            opened: None,
            accepted: 0,
            before: 0.0,
        }
    }
}

impl Learned {
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    pub(super) fn left(&mut self, now: Instant, wanted: bool) {
        let opened = *self.opened.get_or_insert(now);
        if self.rate.is_none() {
            self.look_back(now, opened);
        }
        if let (Some(last), true) = (self.last_left, wanted) {
            self.lasted += now.saturating_duration_since(last).as_secs_f64();
        }
        self.last_left = Some(now);
        if let Some(rate) = self.rate {
            self.advance(rate);
        }
    }

    /// What was long ago tells nothing of the limit that a first refusal shows.
    fn look_back(&mut self, now: Instant, opened: Instant) {
        const WINDOW: f64 = 5.0;

        let secs = now.saturating_duration_since(opened).as_secs_f64();
        if secs > WINDOW {
            self.before = f64::from(self.accepted) / secs;
            self.opened = Some(now);
            self.accepted = 0;
        }
    }

    pub(super) fn accepted(&mut self) {
        self.accepted = self.accepted.saturating_add(1);
    }

    fn advance(&mut self, rate: f64) {
        if self.lasted < PROOF * self.scale {
            return;
        }
        self.safe = Some(self.safe.map_or(rate, |safe| safe.max(rate)));
        let step = match self.phase {
            Phase::Hold if self.lasted < self.hold => return,
            // Well below what was refused: halfway towards it.
            _ if rate * CLOSE < self.met && self.met.is_finite() => {
                let halfway = 0.5 * (self.met / rate - 1.0);
                self.raise(rate, halfway.min(LARGEST_STEP), SMALL_STEP / 2.0);
                return;
            }
            Phase::Hold => self.first_step,
            // Above what was refused, the limit has been raised, by who knows how much.
            Phase::Probe(step) if rate > self.met => (2.0 * step).clamp(RAISED_STEP, LARGEST_STEP),
            Phase::Probe(step) => (2.0 * step).min(LARGEST_STEP),
        };
        self.raise(rate, step, step);
    }

    fn raise(&mut self, rate: f64, step: f64, phase: f64) {
        self.phase = Phase::Probe(phase);
        self.rate = Some(rate * (1.0 + step));
        self.lasted = 0.0;
    }

    pub(super) fn refused(&mut self, now: Instant, wait: Duration, in_flight: u32) {
        let wait_secs = wait.as_secs_f64().clamp(0.01, 10.0);
        let opened = self.opened.unwrap_or(now);
        let open_secs = now.saturating_duration_since(opened).as_secs_f64();
        // What the server took, spread over the time for which it was meant.
        let measured = f64::from(self.accepted) / (open_secs + wait_secs);
        self.scale = wait_secs;

        match (self.rate, self.safe, self.phase) {
            // Nothing was accepted: a guess, to be mended soon.
            (None, ..) if self.accepted == 0 && self.before == 0.0 => {
                let guess = f64::from(in_flight / 4).max(1.0);
                self.rate = Some(guess / wait_secs);
                self.hold = SHORT_HOLD;
                self.first_step = LARGE_STEP;
            }
            (None, ..) => {
                self.rate = Some(measured.max(self.before) * MARGIN);
                self.hold = FIRST_HOLD;
                self.first_step = SMALL_STEP;
            }
            // The probe met the limit above what is safe.
            (Some(rate), Some(safe), Phase::Probe(_)) => {
                self.met = rate;
                self.rate = Some(safe);
                self.hold = (2.0 * self.hold).min(LONGEST_HOLD);
                self.first_step = SMALL_STEP;
            }
            // A safe rate was refused: others take from the limit, or it has come down.
            (Some(rate), Some(_), Phase::Hold) if self.accepted > 0 => {
                self.met = rate;
                self.rate = Some(rate * SHARED);
                self.safe = None;
                self.hold = (2.0 * self.hold).clamp(FIRST_HOLD, LONGEST_SHARED_HOLD);
                self.first_step = SMALL_STEP;
            }
            // One that was not safe yet: the limit is well below.
            (Some(rate), ..) => {
                let lower = match self.accepted {
                    0 => 0.5 * rate,
                    _ => (measured * rate).sqrt().clamp(AT_LEAST * rate, rate) * MARGIN,
                };
                self.met = rate;
                self.rate = Some(lower);
                self.safe = None;
                self.hold = SHORT_HOLD;
                self.first_step = LARGE_STEP;
            }
        }
        self.rate = self.rate.map(|rate| rate.max(SLOWEST));
        self.phase = Phase::Hold;
        self.lasted = 0.0;
        self.last_left = None;
        self.accepted = 0;
        self.opened = now.checked_add(wait);
    }
}
