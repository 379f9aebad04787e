//! The rate from the quota that the server advertises.
//!
//! The quota of a window is spread evenly over the window. The remaining quota shows how much other
//! clients consume: `usage_multiplier` M is the quota consumed per own request, and the rate is divided by
//! it. If the remaining quota is less than one own request, the gate closes until the next window.
//!
//! | state | event | condition | next state | M |
//! |---|---|---|---|---|
//! | any | quota | another limit | partial window | 1 |
//! | partial window | quota | more remains than before | full window | unchanged: 1 |
//! | full window | quota | more remains, requests were queued in the window | full window | (M + m) / 2 |
//! | full window | quota | more remains, none were queued | full window | 1 |
//! | any | quota | otherwise | unchanged | unchanged |
//!
//! m = quota consumed in the window / responses in the window, from 1 to 1000. A window is partial if its
//! start was not observed. "More remains" allows for responses that arrive out of order: the remaining
//! quota exceeds the previous one by more than the number of requests in flight plus one. Rate =
//! 0.99 / M × max(limit / window, remaining / 10 s).

use std::time::Duration;

use tokio::time::Instant;

use super::Quota;

/// The last advertised quota, and its observed use.
#[derive(Debug)]
pub(super) struct AdvertisedQuota {
    quota: Quota,
    updated_at: Instant,
    /// The longest time to a reset in this window. Stands in for a window length that is not advertised.
    longest_reset: Duration,
    /// The start of the current window; `None` if it was not observed.
    window_start: Option<Instant>,
    /// The quota consumed per own request; 1.0 if no other client shares it.
    usage_multiplier: f64,
    /// The number of responses in the current window.
    responses: u32,
    /// Whether requests were queued in the current window.
    backlogged: bool,
}

/// The fraction of the quota to use, which leaves room for small errors of measurement.
const QUOTA_FRACTION: f64 = 0.99;
/// A longer window is not spread evenly: the remaining quota may be used within this time.
const BURST_SPREAD_SECS: f64 = 10.0;

impl AdvertisedQuota {
    pub(super) fn new(now: Instant, quota: Quota) -> Self {
        Self {
            quota,
            updated_at: now,
            longest_reset: quota.reset,
            window_start: None,
            usage_multiplier: 1.0,
            responses: 1,
            backlogged: false,
        }
    }

    /// Returns the rate in requests per second.
    pub(super) fn rate(&self) -> f64 {
        let even_rate = self.quota.limit as f64 / self.window().as_secs_f64();
        let burst_rate = self.quota.remaining as f64 / BURST_SPREAD_SECS;
        even_rate.max(burst_rate) * QUOTA_FRACTION / self.usage_multiplier
    }

    /// Returns the reset time if the requests in flight exhaust the quota, capped at `max_closed` after
    /// the last update.
    pub(super) fn exhausted_until(&self, in_flight: u32, max_closed: Duration) -> Option<Instant> {
        let in_flight_use = f64::from(in_flight) * self.usage_multiplier;
        let remaining = self.quota.remaining as f64 - in_flight_use;
        if remaining >= self.usage_multiplier {
            return None;
        }
        let advertised_reset = self
            .updated_at
            .checked_add(self.quota.reset.min(max_closed))?;
        // Advertised in whole seconds: an observed window start is more precise.
        let observed_reset = self
            .window_start
            .and_then(|start| start.checked_add(self.window()));
        match observed_reset {
            Some(observed) if observed > self.updated_at => Some(observed.min(advertised_reset)),
            _ => Some(advertised_reset),
        }
    }

    /// Records a departure; `backlogged` if other requests are queued.
    pub(super) fn on_departed(&mut self, backlogged: bool) {
        self.backlogged |= backlogged;
    }

    /// Records a newer quota.
    pub(super) fn update(&mut self, now: Instant, quota: Quota, in_flight: u32) {
        if quota.limit != self.quota.limit {
            // Another quota, or a changed one: the observed use does not apply to it.
            *self = Self::new(now, quota);
            return;
        }
        let reordered = u64::from(in_flight).saturating_add(1);
        if quota.remaining > self.quota.remaining.saturating_add(reordered) {
            self.start_window(now);
        }
        self.responses = self.responses.saturating_add(1);
        self.longest_reset = self.longest_reset.max(quota.reset);
        self.quota = quota;
        self.updated_at = now;
    }

    /// Starts a window and measures the use of the previous one.
    fn start_window(&mut self, now: Instant) {
        let consumed = self.quota.limit.saturating_sub(self.quota.remaining) as f64;
        let measured = (consumed / f64::from(self.responses.max(1))).clamp(1.0, 1000.0);
        self.usage_multiplier = match (self.window_start, self.backlogged) {
            (Some(_), true) => 0.5 * (self.usage_multiplier + measured),
            // Without a backlog, the ratio depends on the own demand and shows no share.
            (Some(_), false) => 1.0,
            // Measured over a partial window only.
            (None, _) => self.usage_multiplier,
        };
        self.window_start = Some(now);
        self.longest_reset = Duration::ZERO;
        self.responses = 0;
        self.backlogged = false;
    }

    /// Returns whether the server seems to have stopped advertising the quota.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        const MIN_AGE: Duration = Duration::from_secs(10);
        let age = now.saturating_duration_since(self.updated_at);
        age > self.window().saturating_mul(2).max(MIN_AGE)
    }

    fn window(&self) -> Duration {
        const MIN_WINDOW: Duration = Duration::from_secs(1);
        let window = self.quota.window.unwrap_or(self.longest_reset);
        window.max(MIN_WINDOW)
    }
}
