//! The rate, as the server states it.
//!
//! The quota of a window is spread over the window. What is left of it, by the server's word, tells how
//! much of it others use: each gets its share, and when nothing is left, all wait for the next window.

use std::time::Duration;

use tokio::time::Instant;

use super::Quota;

#[derive(Debug)]
pub(super) struct Stated {
    quota: Quota,
    at: Instant,
    /// The longest time to a reset that was stated, where the window is not.
    longest_reset: Duration,
    /// When the present window began, as far as it was seen to begin.
    began: Option<Instant>,
    /// How much is used of the quota for each request through this gate: 1 where it is alone.
    share: f64,
    /// Answers in the present window.
    answers: u32,
    /// Requests waited for their turn in it.
    wanted: bool,
}

/// So much of the quota is used, so that a request more or less is not one too many.
const MARGIN: f64 = 0.99;
/// A longer window is not spread evenly: what is left is spread over so many seconds.
const SPREAD: f64 = 10.0;

impl Stated {
    pub(super) fn new(at: Instant, quota: Quota) -> Self {
        Self {
            quota,
            at,
            longest_reset: quota.reset,
            began: None,
            share: 1.0,
            answers: 1,
            wanted: false,
        }
    }

    pub(super) fn rate(&self) -> f64 {
        let evenly = self.quota.limit as f64 / self.window().as_secs_f64();
        let left = self.quota.remaining as f64 / SPREAD;
        evenly.max(left) * MARGIN / self.share
    }

    /// When there will be more, where what is left is on its way already.
    /// But for no longer than `longest`.
    pub(super) fn spent_until(&self, in_flight: u32, longest: Duration) -> Option<Instant> {
        let on_its_way = f64::from(in_flight) * self.share;
        let left = self.quota.remaining as f64 - on_its_way;
        // One for each of those who share it.
        if left >= self.share {
            return None;
        }
        // The reset is stated in whole seconds; the beginning that was seen is more exact.
        let stated = self.at.checked_add(self.quota.reset.min(longest))?;
        let seen = self
            .began
            .and_then(|began| began.checked_add(self.window()));
        match seen {
            Some(seen) if seen > self.at => Some(seen.min(stated)),
            _ => Some(stated),
        }
    }

    pub(super) fn left(&mut self, wanted: bool) {
        self.wanted |= wanted;
    }

    pub(super) fn update(&mut self, now: Instant, quota: Quota, in_flight: u32) {
        if quota.limit != self.quota.limit {
            // Another quota, or another size of this one: what was seen of it so far tells nothing.
            *self = Self::new(now, quota);
            return;
        }
        let answers_that_crossed = u64::from(in_flight).saturating_add(1);
        let before = self.quota.remaining.saturating_add(answers_that_crossed);
        if quota.remaining > before {
            self.begin(now);
        }
        self.answers = self.answers.saturating_add(1);
        self.longest_reset = self.longest_reset.max(quota.reset);
        self.quota = quota;
        self.at = now;
    }

    /// A new window was seen to begin.
    fn begin(&mut self, now: Instant) {
        let used = self.quota.limit.saturating_sub(self.quota.remaining) as f64;
        let measured = (used / f64::from(self.answers.max(1))).clamp(1.0, 1000.0);
        self.share = match (self.began, self.wanted) {
            (Some(_), true) => 0.5 * (self.share + measured),
            // What nobody wanted tells of no share.
            (Some(_), false) => 1.0,
            // The first window was seen only in part.
            (None, _) => self.share,
        };
        self.began = Some(now);
        self.longest_reset = Duration::ZERO;
        self.answers = 0;
        self.wanted = false;
    }

    /// Whether it is so long ago that the server seems to have stopped stating it.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.at);
        age > self.window().saturating_mul(2).max(Duration::from_secs(10))
    }

    fn window(&self) -> Duration {
        const SHORTEST: Duration = Duration::from_secs(1);
        let window = self.quota.window.unwrap_or(self.longest_reset);
        window.max(SHORTEST)
    }
}
