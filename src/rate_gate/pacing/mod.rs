//! At which rate requests may leave: learned from what the server says and does.
//!
//! Pure: time is an argument, and there is neither a timer nor a lock.

mod advertised;
mod probing;

use std::time::Duration;

use tokio::time::Instant;

use self::{advertised::Stated, probing::Learned};
use super::quota::Quota;

/// The pace of all requests through one gate.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    learned: Learned,
    /// What the server states, for as long as it does.
    stated: Option<Stated>,
    /// Until then nothing that the server states is believed: it refused what it had granted.
    distrusted_until: Option<Instant>,
    in_flight: u32,
}

/// Requests a second; no gate is slower, or it would not see that the server has recovered.
const SLOWEST: f64 = 0.2;

impl Pace {
    /// The time between two requests.
    pub(crate) fn interval(&self) -> Duration {
        let rate = match &self.stated {
            Some(stated) => Some(stated.rate()),
            None => self.learned.rate(),
        };
        match rate {
            Some(rate) => Duration::from_secs_f64(1.0 / rate.max(SLOWEST)),
            None => Duration::ZERO,
        }
    }

    /// Until when the server's quota is used up, by its own word, but for no longer than `longest`.
    pub(crate) fn spent_until(&self, now: Instant, longest: Duration) -> Option<Instant> {
        let stated = self.stated.as_ref()?;
        let spent_until = stated.spent_until(self.in_flight, longest)?;
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
        if self.distrusted_until.is_some_and(|until| now < until) {
            return;
        }
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
    /// `wait`; `quota` is what it states with the refusal.
    pub(crate) fn refused(&mut self, now: Instant, wait: Duration, quota: Option<Quota>) {
        const DISTRUST: Duration = Duration::from_secs(30);

        let explained = quota.is_some_and(|it| it.remaining == 0 && !it.reset.is_zero());
        if self.stated.is_some() && !explained {
            self.stated = None;
            self.distrusted_until = now.checked_add(DISTRUST);
        }
        self.learned.refused(now, wait, self.in_flight);
    }
}
