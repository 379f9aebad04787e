//! At which rate requests may leave: learned from what the server says and does.
//!
//! Pure: time is an argument, and there is neither a timer nor a lock.

mod learned;
mod stated;

use std::time::Duration;

use tokio::time::Instant;

use self::{learned::Learned, stated::Stated};
use super::quota::Quota;

/// The pace of all requests through one gate.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    learned: Learned,
    /// What the server states, for as long as it does.
    stated: Option<Stated>,
    in_flight: u32,
}

impl Pace {
    /// The time between two requests.
    pub(crate) fn interval(&self) -> Duration {
        const SLOWEST: f64 = 0.2;

        let rate = match &self.stated {
            Some(stated) => Some(stated.rate()),
            None => self.learned.rate(),
        };
        match rate {
            Some(rate) => Duration::from_secs_f64(1.0 / rate.max(SLOWEST)),
            None => Duration::ZERO,
        }
    }

    /// Until when the server's quota is used up, by its own word.
    pub(crate) fn spent_until(&self, now: Instant) -> Option<Instant> {
        let spent_until = self.stated.as_ref()?.spent_until(self.in_flight)?;
        (spent_until > now).then_some(spent_until)
    }

    /// A request leaves; `wanted` where others wait for their turn behind it.
    pub(crate) fn left(&mut self, now: Instant, wanted: bool) {
        self.in_flight = self.in_flight.saturating_add(1);
        match &mut self.stated {
            Some(stated) => stated.left(wanted),
            None => self.learned.left(now, wanted),
        }
    }

    /// A request that left is no longer under way, whatever became of it.
    pub(crate) fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The server stated its quota, or did not, with an answer of any status.
    pub(crate) fn stated(&mut self, now: Instant, quota: Option<Quota>) {
        match (quota, &mut self.stated) {
            (Some(quota), Some(stated)) => stated.update(now, quota, self.in_flight),
            (Some(quota), None) => self.stated = Some(Stated::new(now, quota)),
            (None, Some(stated)) if stated.is_stale(now) => self.stated = None,
            (None, _) => {}
        }
    }

    /// The server accepted a request.
    pub(crate) fn accepted(&mut self) {
        self.learned.accepted();
    }

    /// The server refused a request that had left while the gate was open, and the gate closes for
    /// `wait`.
    pub(crate) fn refused(&mut self, now: Instant, wait: Duration) {
        self.learned.refused(now, wait, self.in_flight);
    }
}
