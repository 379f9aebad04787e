//! The rate at which the gate grants permits.
//!
//! Two sources: the quota that the server advertises ([`advertised`]) and, without one, an estimate from
//! accepted and rejected requests ([`probing`]).
//!
//! | state | event | condition | next state |
//! |---|---|---|---|
//! | estimating | quota in a response | | advertised |
//! | advertised | quota in a response | | advertised, updated |
//! | advertised | response without a quota | the last quota is stale | estimating |
//! | advertised | 429 | its quota does not explain it: remaining > 0, reset = 0 or absent | estimating; quotas are ignored for 30 s |
//!
//! A "429" is one of the current epoch (see [`queue`](super::queue)). The estimator is notified of
//! responses in both states, and of departures only while it is in use.
//!
//! Pure: time is an argument, and there is neither a timer nor a lock.

mod advertised;
mod probing;

use std::time::Duration;

use tokio::time::Instant;

use self::{advertised::AdvertisedQuota, probing::ProbingEstimator};
use super::quota::Quota;

/// The pacing state of all requests through one gate.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    estimator: ProbingEstimator,
    /// The advertised quota, while fresh.
    advertised: Option<AdvertisedQuota>,
    /// The time until which advertised quotas are ignored, because the server contradicted one.
    ignore_quota_until: Option<Instant>,
    in_flight: u32,
}

/// The minimum rate in requests per second. A lower one would notice too late that the server has
/// recovered.
const MIN_RATE_PER_SEC: f64 = 0.2;

impl Pacer {
    /// Returns the time between two permits; zero if no limit is known.
    pub(crate) fn interval(&self) -> Duration {
        let rate = match &self.advertised {
            Some(advertised) => Some(advertised.rate()),
            None => self.estimator.rate(),
        };
        match rate {
            Some(rate) => Duration::from_secs_f64(1.0 / rate.max(MIN_RATE_PER_SEC)),
            None => Duration::ZERO,
        }
    }

    /// Returns the time until which the advertised quota is exhausted, capped at `max_closed` after its
    /// response; `None` if it is not exhausted.
    pub(crate) fn exhausted_until(&self, now: Instant, max_closed: Duration) -> Option<Instant> {
        let advertised = self.advertised.as_ref()?;
        let exhausted_until = advertised.exhausted_until(self.in_flight, max_closed)?;
        (exhausted_until > now).then_some(exhausted_until)
    }

    /// Records a departure; `backlogged` if other requests are queued.
    pub(crate) fn on_departed(&mut self, now: Instant, backlogged: bool) {
        self.in_flight = self.in_flight.saturating_add(1);
        match &mut self.advertised {
            Some(advertised) => advertised.on_departed(backlogged),
            None => self.estimator.on_departed(now, backlogged),
        }
    }

    /// Records that a request is no longer in flight, with any result.
    pub(crate) fn on_completed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Updates the advertised quota from a response of any status.
    pub(crate) fn on_quota(&mut self, now: Instant, quota: Option<Quota>) {
        if self.ignore_quota_until.is_some_and(|until| now < until) {
            return;
        }
        match (quota, &mut self.advertised) {
            (Some(quota), Some(advertised)) => advertised.update(now, quota, self.in_flight),
            (Some(quota), None) => self.advertised = Some(AdvertisedQuota::new(now, quota)),
            (None, Some(advertised)) if advertised.is_stale(now) => self.advertised = None,
            (None, _) => {}
        }
    }

    /// Records a response other than a 429.
    pub(crate) fn on_accepted(&mut self) {
        self.estimator.on_accepted();
    }

    /// Records a 429 for a request of the current epoch, which carried `quota` and closes the gate for
    /// `closed_for`.
    pub(crate) fn on_rejected(&mut self, now: Instant, closed_for: Duration, quota: Option<Quota>) {
        const IGNORE_QUOTA_FOR: Duration = Duration::from_secs(30);

        let consistent = quota.is_some_and(|quota| quota.remaining == 0 && !quota.reset.is_zero());
        if self.advertised.is_some() && !consistent {
            self.advertised = None;
            self.ignore_quota_until = now.checked_add(IGNORE_QUOTA_FOR);
        }
        self.estimator.on_rejected(now, closed_for, self.in_flight);
    }
}
