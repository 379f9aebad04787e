//! Client-side rate limiting driven by the responses of the server.

mod pacing;
mod queue;
pub(crate) mod quota;

use std::{
    fmt,
    sync::Arc,
    task::Waker,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

pub(crate) use self::queue::Acquire;
use self::{queue::Queue, quota::Quota};

/// A client-side rate limiter that follows the rate limit of the server.
///
/// All clones share one state. Use one gate per quota: give clones of it to the policies of all clients
/// that share the quota, and to no others.
///
/// Each attempt, first or retry, needs a permit from the gate. Requests get permits in the order in which
/// they arrived (FIFO), and a retry keeps the position of its request. Time in the queue is not an attempt.
/// A queued first attempt holds no tokens of the [`RetryBudget`](crate::RetryBudget); a queued retry holds
/// its cost, which is refunded if the retry is not sent.
///
/// # Closing
///
/// A 429 closes the gate for its `Retry-After`, or for the backoff delay if it has none. An exhausted
/// advertised quota closes it until the reset. No attempt is sent while the gate is closed. One closure
/// lasts at most 60 s by default; see [`with_max_closed`](Self::with_max_closed).
///
/// # Pacing
///
/// A new gate does not limit the rate. Once a limit is known, permits are spaced evenly, at no less than
/// one permit in 5 s. The rate comes from
///
/// 1. the quota that the server advertises in a response of any status: `RateLimit` and
///    `RateLimit-Policy` ([draft-ietf-httpapi-ratelimit-headers-10]), or the older `RateLimit-Limit`,
///    `RateLimit-Remaining` and `RateLimit-Reset`, or their `X-RateLimit-` forms. A 429 that contradicts
///    the quota disables this source for 30 s;
/// 2. otherwise an estimate from accepted requests and 429s, which decreases after a 429 and then probes
///    for a higher rate.
///
/// # Local 429
///
/// A request whose permit would come after its [`max_elapsed`](crate::RetryPolicy::max_elapsed) is not
/// queued any longer. It gets a 429 from the layer, with an empty body and a `Retry-After`, and an outcome
/// with [`GiveUpReason::RateGated`](crate::GiveUpReason::RateGated). The outcome's
/// [`retry_after`](crate::RetryOutcome::retry_after) is exact; the header is rounded up to seconds.
///
/// # Cancellation
///
/// A dropped call leaves the queue. A call that is kept but not polled, for example in a `select!` loop,
/// blocks the requests queued after it.
///
/// # Examples
///
/// Two clients that share a quota:
///
/// ```
/// use tower_http_retry::{RateGate, RetryLayer, RetryPolicy};
///
/// let gate = RateGate::new();
/// let accounts = RetryLayer::new(RetryPolicy::new().rate_gate(gate.clone()));
/// let payments = RetryLayer::new(RetryPolicy::new().rate_gate(gate.clone()));
///
/// assert_eq!(gate.queue_len(), 0);
/// assert_eq!(gate.time_until_open(), None);
/// assert_eq!(gate.pacing_interval(), None);
/// ```
///
/// [draft-ietf-httpapi-ratelimit-headers-10]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-10
#[derive(Clone)]
pub struct RateGate {
    queue: Arc<Queue>,
}

impl RateGate {
    /// Creates an open gate without a known limit, which closes for at most 60 s at a time.
    pub fn new() -> Self {
        Self::with_max_closed(Duration::from_secs(60))
    }

    /// Creates an open gate without a known limit, which closes for at most `limit` at a time.
    ///
    /// The limit bounds the effect of a wrong `Retry-After` or reset time on all requests. It does not
    /// shorten the delay of the request that received the 429. A limit above one year is reduced to one
    /// year.
    pub fn with_max_closed(limit: Duration) -> Self {
        Self {
            queue: Arc::new(Queue::new(limit)),
        }
    }

    /// Returns the number of queued requests.
    pub fn queue_len(&self) -> usize {
        self.queue.snapshot(Instant::now()).queue_len
    }

    /// Returns the time until the gate opens, or `None` if it is open.
    ///
    /// A gate is closed after a 429 and while the advertised quota is exhausted. The spacing between
    /// permits is not part of it; see [`pacing_interval`](Self::pacing_interval).
    pub fn time_until_open(&self) -> Option<Duration> {
        self.queue.snapshot(Instant::now()).time_until_open
    }

    /// Returns the current time between two permits, at most 5 s, or `None` if no limit is known.
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

/// A handle of one request at the gate, which acquires one permit per attempt.
///
/// The id, and with it the position in the queue, is the same for all attempts.
///
/// | state | event | condition | next state | effect |
/// |---|---|---|---|---|
/// | `Idle`, `Queued` | [`poll_acquire`](Self::poll_acquire) | permit available | `Granted` | dequeues |
/// | | | not available before the deadline | `Idle` | dequeues |
/// | | | otherwise | `Queued` | enqueues |
/// | `Idle` | [`try_acquire`](Self::try_acquire) | permit available | `InFlight` | |
/// | | | otherwise | `Idle` | |
/// | `Granted` | [`revalidate`](Self::revalidate) | permit valid | `Granted` | |
/// | | | expired, another one available | `Granted` | releases the old permit |
/// | | | otherwise | `Idle` | releases the permit |
/// | `Granted` | [`depart`](Self::depart) | | `InFlight` | |
/// | `InFlight` | [`on_response`](Self::on_response) | 429 | `Idle` | closes the gate |
/// | | | otherwise | `Idle` | counts as accepted |
/// | `InFlight` | [`on_error`](Self::on_error) | | `Idle` | |
/// | `Queued` | drop | | | dequeues |
/// | `Granted` | drop | | | releases the permit |
/// | `InFlight` | drop | | | as `on_error` |
///
/// `depart`, `on_response` and `on_error` have no effect in other states.
pub(crate) struct Permit {
    queue: Arc<Queue>,
    id: u64,
    /// The time by which a permit is needed; `None` if there is no deadline.
    deadline: Option<Instant>,
    state: PermitState,
}

#[derive(Clone, Copy)]
enum PermitState {
    Idle,
    Queued,
    Granted { epoch: u64, granted_at: Instant },
    InFlight { epoch: u64 },
}

impl Permit {
    /// Creates an idle handle. The last attempt may start at `deadline`; `None` means no deadline.
    pub(crate) fn new(gate: &RateGate, deadline: Option<Instant>) -> Self {
        Self {
            queue: gate.queue.clone(),
            id: gate.queue.next_id(),
            deadline,
            state: PermitState::Idle,
        }
    }

    /// Requests a permit and enqueues if there is none yet.
    pub(crate) fn poll_acquire(&mut self, now: Instant, waker: &Waker) -> Acquire {
        self.acquire(now, Some(waker))
    }

    /// Departs if a permit is available at once, without enqueueing; returns whether it departed.
    pub(crate) fn try_acquire(&mut self, now: Instant) -> bool {
        let granted = matches!(self.acquire(now, None), Acquire::Granted(_));
        self.depart();
        granted
    }

    /// Returns whether the request may depart now: either its permit is still valid, or another one is
    /// available at once.
    pub(crate) fn revalidate(&mut self, now: Instant) -> bool {
        if let PermitState::Granted { epoch, granted_at } = self.state {
            self.state = PermitState::Idle;
            if self.queue.validate_or_release(epoch, granted_at, now) {
                self.state = PermitState::Granted { epoch, granted_at };
                return true;
            }
        }
        matches!(self.acquire(now, None), Acquire::Granted(_))
    }

    /// Marks the request as in flight.
    pub(crate) fn depart(&mut self) {
        if let PermitState::Granted { epoch, .. } = self.state {
            self.state = PermitState::InFlight { epoch };
        }
    }

    /// Updates the gate from a response. A 429 closes it for `closed_for`.
    pub(crate) fn on_response(
        &mut self,
        now: Instant,
        status: StatusCode,
        headers: &HeaderMap,
        closed_for: impl FnOnce() -> Duration,
    ) {
        let PermitState::InFlight { epoch } = self.state else {
            return;
        };
        self.state = PermitState::Idle;
        let quota = Quota::from_headers(headers, SystemTime::now());
        match status {
            StatusCode::TOO_MANY_REQUESTS => {
                self.queue.on_rejected(epoch, now, closed_for(), quota);
            }
            _ => self.queue.on_accepted(now, quota),
        }
    }

    /// Records that an attempt ended without a response.
    pub(crate) fn on_error(&mut self) {
        if let PermitState::InFlight { .. } = self.state {
            self.state = PermitState::Idle;
            self.queue.on_error(Instant::now());
        }
    }

    fn acquire(&mut self, now: Instant, waker: Option<&Waker>) -> Acquire {
        let result = self.queue.acquire(self.id, now, self.deadline, waker);
        self.state = match result {
            Acquire::Granted(epoch) => PermitState::Granted {
                epoch,
                granted_at: now,
            },
            Acquire::Wait(_) if waker.is_some() => PermitState::Queued,
            Acquire::Wait(_) | Acquire::Expired(_) => PermitState::Idle,
        };
        result
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.state {
            PermitState::Idle => {}
            PermitState::Queued => self.queue.cancel(self.id),
            PermitState::Granted { .. } => self.queue.release(Instant::now()),
            PermitState::InFlight { .. } => self.queue.on_error(Instant::now()),
        }
    }
}
