//! What all clones of a gate know of the server's rate limit, and how requests keep to it.

mod pacing;
mod queue;
mod quota;

use std::{
    fmt,
    sync::Arc,
    task::Waker,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

pub(crate) use self::queue::Acquire;
use self::{queue::Queue, quota::quota};

/// A gate that lets requests out no faster than the server's rate limit allows, as far as that is known.
///
/// A 429 closes it until the server's `Retry-After`, or for as long as the retry waits where there is
/// none. While it is closed no attempt leaves, neither a first one nor a later one; waiting costs no
/// attempt and no budget. It then opens paced, at the rate that it has learned: from what the server
/// states on any response (`RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10,
/// the older `RateLimit-Limit`, `-Remaining` and `-Reset`, and their `X-` forms), or else from its own
/// successes and 429s. Requests leave in the order in which they came.
///
/// A request whose turn would come only after its
/// [`max_elapsed`](crate::RetryPolicy::max_elapsed) is answered at once, with a 429 of the layer's own,
/// marked as [`GiveUpReason::RateGated`](crate::GiveUpReason::RateGated): it has no body, and its
/// `Retry-After`, which the outcome has too, tells when to come back.
///
/// The order holds because each waits for the one before: a call that is held and not polled, in a
/// `select!` say, holds those behind it up until it is polled or dropped.
///
/// One gate stands for one quota: give clones of it to the policies of all clients that share the quota,
/// and to no others.
///
/// ```
/// use tower_http_retry::{RateGate, RetryLayer, RetryPolicy};
///
/// let gate = RateGate::new();
/// let accounts = RetryLayer::new(RetryPolicy::new().rate_gate(gate.clone()));
/// let payments = RetryLayer::new(RetryPolicy::new().rate_gate(gate.clone()));
/// assert_eq!((gate.queue_len(), gate.time_until_open()), (0, None));
/// ```
#[derive(Clone)]
pub struct RateGate {
    queue: Arc<Queue>,
}

impl RateGate {
    /// An open gate that knows of no limit yet, and that no server can close for longer than 60 s at a
    /// time.
    pub fn new() -> Self {
        Self::with_max_closed(Duration::from_secs(60))
    }

    /// An open gate that no server can close for longer than `limit` at a time.
    ///
    /// A request that was itself told to wait longer waits that long all the same.
    pub fn with_max_closed(limit: Duration) -> Self {
        Self {
            queue: Arc::new(Queue::new(limit)),
        }
    }

    /// How many requests wait for their turn.
    pub fn queue_len(&self) -> usize {
        self.queue.state(Instant::now()).0
    }

    /// For how long the gate is still closed, by a 429 or because the server's quota is used up; `None`
    /// while it is open.
    pub fn time_until_open(&self) -> Option<Duration> {
        self.queue.state(Instant::now()).1
    }

    /// The time between two requests at the present pace; `None` while nothing is known to limit them.
    pub fn pacing_interval(&self) -> Option<Duration> {
        let interval = self.queue.interval();
        (!interval.is_zero()).then_some(interval)
    }
}

impl Default for RateGate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RateGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateGate")
            .field("queue_len", &self.queue_len())
            .field("time_until_open", &self.time_until_open())
            .field("pacing_interval", &self.pacing_interval())
            .finish()
    }
}

/// One request at the gate, over all its attempts: it keeps its place in the order of arrival.
pub(crate) struct Permit {
    queue: Arc<Queue>,
    number: u64,
    /// A later turn is of no use.
    latest: Option<Instant>,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Outside,
    InLine,
    /// It may leave: the gate had closed that often, and it was then.
    Free(u64, Instant),
    /// Under way since the gate had closed so often.
    UnderWay(u64),
}

impl Permit {
    /// `latest` is when the last attempt may start; without it, whenever.
    pub(crate) fn new(gate: &RateGate, latest: Option<Instant>) -> Self {
        Self {
            queue: gate.queue.clone(),
            number: gate.queue.number(),
            latest,
            place: Place::Outside,
        }
    }

    /// Asks to leave; with a `waker`, stays in line for it.
    pub(crate) fn ask(&mut self, now: Instant, waker: Option<&Waker>) -> Acquire {
        let turn = self.queue.ask(self.number, now, self.latest, waker);
        self.place = match turn {
            Acquire::Granted(closings) => Place::Free(closings, now),
            Acquire::Wait(_) if waker.is_some() => Place::InLine,
            Acquire::Wait(_) | Acquire::Expired(_) => Place::Outside,
        };
        turn
    }

    /// The request leaves, where it is let out at once; otherwise it does not wait in line yet.
    pub(crate) fn leave_at_once(&mut self, now: Instant) -> bool {
        let may_leave = matches!(self.ask(now, None), Acquire::Granted(_));
        self.leave();
        may_leave
    }

    /// Whether the turn is still good when the request is about to leave, or another is to be had at
    /// once.
    pub(crate) fn confirm(&mut self, now: Instant) -> bool {
        if let Place::Free(closings, given) = self.place {
            self.place = Place::Outside;
            if self.queue.confirm(closings, given, now) {
                self.place = Place::Free(closings, given);
                return true;
            }
        }
        matches!(self.ask(now, None), Acquire::Granted(_))
    }

    /// The request leaves.
    pub(crate) fn leave(&mut self) {
        if let Place::Free(closings, _) = self.place {
            self.place = Place::UnderWay(closings);
        }
    }

    /// The server has answered. Refused, the gate closes for `wait`.
    pub(crate) fn answered(
        &mut self,
        now: Instant,
        status: StatusCode,
        headers: &HeaderMap,
        wait: impl FnOnce() -> Duration,
    ) {
        let Place::UnderWay(closings) = self.place else {
            return;
        };
        self.place = Place::Outside;
        let quota = quota(headers, SystemTime::now());
        match status {
            StatusCode::TOO_MANY_REQUESTS => self.queue.refused(closings, now, wait(), quota),
            _ => self.queue.accepted(now, quota),
        }
    }

    /// No answer came.
    pub(crate) fn lost(&mut self) {
        if let Place::UnderWay(_) = self.place {
            self.place = Place::Outside;
            self.queue.lost(Instant::now());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.place {
            Place::Outside => {}
            Place::InLine => self.queue.give_up(self.number),
            Place::Free(..) => self.queue.unsent(Instant::now()),
            Place::UnderWay(_) => self.queue.lost(Instant::now()),
        }
    }
}
