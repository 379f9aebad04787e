//! A FIFO queue of permit requests.
//!
//! The queue has no timer and takes the time as an argument. Only the front waiter gets a time at which to
//! poll again. When it departs or is cancelled, it wakes its successor. A waiter is also woken if its
//! permit comes earlier, or moves past its deadline.
//!
//! Permits are spaced by the generic cell rate algorithm (GCRA, ITU-T I.371, virtual scheduling), with a
//! tolerance for late timers. A permit is granted when it is due and not before. It expires if it is not
//! used within an interval, or if the gate closes.
//!
//! Each closure starts an epoch. Only a rejection of the current epoch changes the estimated rate, as in
//! the recovery period of QUIC (RFC 9002, section 7.3.2): requests that were sent before the gate closed
//! were not sent at the new rate.

use std::{collections::BTreeMap, fmt, sync::PoisonError, task::Waker, time::Duration};

use tokio::time::Instant;

use super::{pacing::Pacer, quota::Quota};
use crate::sync::{Mutex, MutexGuard};

/// The state that all clones of a gate share.
pub(crate) struct Queue {
    state: Mutex<State>,
    max_closed: Duration,
}

/// The result of a request for a permit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Acquire {
    /// The permit is granted, in this epoch.
    Granted(u64),
    /// There is no permit yet: poll again at this time or when woken.
    Wait(Option<Instant>),
    /// The permit would come at this time, after the deadline; the request is no longer queued.
    Expired(Instant),
}

/// The state of a gate at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) queue_len: usize,
    /// `None` if the gate is open.
    pub(crate) time_until_open: Option<Duration>,
}

impl Queue {
    /// Creates the queue of a gate that closes for at most `max_closed` at a time.
    pub(crate) fn new(max_closed: Duration) -> Self {
        // Avoids overflow in `Instant` arithmetic.
        const MAX_CLOSED: Duration = Duration::from_secs(365 * 24 * 3600);
        Self {
            state: Mutex::new(State::default()),
            max_closed: max_closed.min(MAX_CLOSED),
        }
    }

    /// Returns a new id. A lower id comes first in the queue.
    pub(crate) fn next_id(&self) -> u64 {
        let mut state = self.lock();
        state.last_id = state.last_id.wrapping_add(1);
        state.last_id
    }

    /// Requests a permit for `id`; enqueues it if there is none yet and `waker` is given.
    ///
    /// The first row that applies:
    ///
    /// | condition | result | effect |
    /// |---|---|---|
    /// | an update has marked the waiter as expired | `Expired` | dequeues |
    /// | front of the queue, and a permit is due | `Granted` | dequeues, wakes the next waiter |
    /// | estimated time of the permit is after the deadline | `Expired` | dequeues |
    /// | front of the queue | `Wait` with a time | enqueues |
    /// | otherwise | `Wait` without a time | enqueues |
    ///
    /// The second row comes before the third: a front waiter that polls late still gets its permit.
    pub(crate) fn acquire(
        &self,
        id: u64,
        now: Instant,
        deadline: Option<Instant>,
        waker: Option<&Waker>,
    ) -> Acquire {
        // Wakers run foreign code: clone, wake and drop them outside the lock.
        let waker = waker.cloned();
        let mut state = self.lock();
        let is_front = state.waiters.keys().next().is_none_or(|front| id <= *front);
        let permit_at = state.next_permit_at(now, self.max_closed);
        let is_due = is_front && permit_at <= now;
        let marked = state.waiters.get(&id).and_then(|waiter| waiter.expired);
        let expired = marked.or_else(|| {
            let deadline = deadline.filter(|_| !is_due)?;
            let eta = state.eta(permit_at, state.position(id));
            (eta > deadline).then_some(eta)
        });
        let (result, old_waker, next_waker) = if let Some(eta) = expired {
            let (old_waker, next_waker) = state.remove(id);
            (Acquire::Expired(eta), old_waker, next_waker)
        } else if is_due {
            let (old_waker, next_waker) = state.dequeue_granted(id, now);
            (Acquire::Granted(state.epoch), old_waker, next_waker)
        } else {
            let old_waker = waker.and_then(|waker| state.enqueue(id, deadline, waker));
            (
                Acquire::Wait(is_front.then_some(permit_at)),
                old_waker,
                None,
            )
        };
        let overtaken = match result {
            Acquire::Wait(_) if !state.is_last(id) => state.expire_waiters(now, self.max_closed),
            _ => Vec::new(),
        };
        drop(state);
        drop(old_waker);
        next_waker
            .into_iter()
            .chain(overtaken)
            .for_each(Waker::wake);
        result
    }

    /// Returns whether a permit of `epoch` that was granted at `granted_at` is still valid, and releases
    /// it if not.
    ///
    /// Permits expire because unused ones could otherwise be used all at once.
    pub(crate) fn validate_or_release(
        &self,
        epoch: u64,
        granted_at: Instant,
        now: Instant,
    ) -> bool {
        let state = self.lock();
        let valid = state.epoch == epoch
            && state.closed_until.is_none_or(|until| until <= now)
            && now.saturating_duration_since(granted_at) <= state.pacer.interval() + TIMER_SLACK;
        drop(state);
        if !valid {
            self.release(now);
        }
        valid
    }

    /// Releases an unused permit.
    pub(crate) fn release(&self, now: Instant) {
        self.update(now, |state| {
            state.pacer.on_completed();
            let interval = state.pacer.interval();
            state.paced_until = state
                .paced_until
                .and_then(|paced_until| paced_until.checked_sub(interval));
        });
    }

    /// Removes `id` from the queue.
    pub(crate) fn cancel(&self, id: u64) {
        let (old_waker, next_waker) = self.lock().remove(id);
        drop(old_waker);
        next_waker.into_iter().for_each(Waker::wake);
    }

    /// Records that a request in flight ended without a response.
    pub(crate) fn on_error(&self, now: Instant) {
        self.update(now, |state| state.pacer.on_completed());
    }

    /// Records a response other than a 429.
    pub(crate) fn on_accepted(&self, now: Instant, quota: Option<Quota>) {
        self.update(now, |state| {
            state.pacer.on_completed();
            state.pacer.on_accepted();
            state.pacer.on_quota(now, quota);
        });
    }

    /// Records a 429 for a request that was sent in `epoch`, and closes the gate for `closed_for`.
    pub(crate) fn on_rejected(
        &self,
        epoch: u64,
        now: Instant,
        closed_for: Duration,
        quota: Option<Quota>,
    ) {
        let closed_for = closed_for.min(self.max_closed);
        self.update(now, |state| {
            state.pacer.on_completed();
            state.pacer.on_quota(now, quota);
            state.closed_until = state.closed_until.max(now.checked_add(closed_for));
            // A request of an earlier epoch was not sent at the current rate.
            if state.epoch == epoch {
                state.epoch = state.epoch.wrapping_add(1);
                state.pacer.on_rejected(now, closed_for, quota);
            }
        });
    }

    /// Returns the queue length and the time until the gate opens.
    pub(crate) fn snapshot(&self, now: Instant) -> Snapshot {
        let state = self.lock();
        let exhausted_until = state.pacer.exhausted_until(now, self.max_closed);
        let closed_until = state.closed_until.max(exhausted_until);
        let time_until_open = closed_until.map(|until| until.saturating_duration_since(now));
        Snapshot {
            queue_len: state.waiters.len(),
            time_until_open: time_until_open.filter(|time| !time.is_zero()),
        }
    }

    /// Returns the time between two permits; zero if no limit is known.
    pub(crate) fn interval(&self) -> Duration {
        self.lock().pacer.interval()
    }

    /// Updates the state and wakes the affected waiters: the front waiter if its permit comes earlier, and
    /// all whose permit has moved past their deadline.
    fn update(&self, now: Instant, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let old_permit_at = state.next_permit_at(now, self.max_closed);
        let old_interval = state.pacer.interval();
        change(&mut state);
        let permit_at = state.next_permit_at(now, self.max_closed);
        let interval = state.pacer.interval();
        let mut woken = if permit_at > old_permit_at || interval > old_interval {
            state.expire_waiters(now, self.max_closed)
        } else {
            Vec::new()
        };
        if permit_at < old_permit_at {
            woken.extend(state.take_front_waker());
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

/// The tolerance for late timers, and for the time that `poll_ready` takes after a permit was granted.
const TIMER_SLACK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct State {
    pacer: Pacer,
    /// The end of the closure by a 429.
    closed_until: Option<Instant>,
    /// The time of the next permit by the pacing interval.
    paced_until: Option<Instant>,
    /// The queued requests by id, which is the order of arrival.
    waiters: BTreeMap<u64, Waiter>,
    last_id: u64,
    /// The number of closures that have changed the rate.
    epoch: u64,
}

#[derive(Debug)]
struct Waiter {
    deadline: Option<Instant>,
    /// The estimated time of the permit, if that has moved past the deadline.
    expired: Option<Instant>,
    waker: Option<Waker>,
}

impl State {
    /// Returns the time of the permit for the front of the queue.
    fn next_permit_at(&self, now: Instant, max_closed: Duration) -> Instant {
        let closed_until = self.closed_until.unwrap_or(now);
        let paced_until = self.paced_until.unwrap_or(now);
        let exhausted_until = self.pacer.exhausted_until(now, max_closed).unwrap_or(now);
        closed_until.max(paced_until).max(exhausted_until)
    }

    /// Returns the estimated time of the permit after `ahead` others, if the first one is at `permit_at`.
    fn eta(&self, permit_at: Instant, ahead: usize) -> Instant {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let delay = self.pacer.interval().saturating_mul(ahead);
        permit_at.checked_add(delay).unwrap_or(permit_at)
    }

    /// Returns the number of waiters with a lower id.
    fn position(&self, id: u64) -> usize {
        match self.is_last(id) {
            // PERF: avoids the linear scan for a new request, which is usually last.
            true => self.waiters.len() - usize::from(self.waiters.contains_key(&id)),
            false => self.waiters.range(..id).count(),
        }
    }

    /// Returns whether no waiter has a higher id.
    fn is_last(&self, id: u64) -> bool {
        self.waiters
            .keys()
            .next_back()
            .is_none_or(|last| *last <= id)
    }

    /// Adds a waiter, or replaces its waker; returns the old waker.
    fn enqueue(&mut self, id: u64, deadline: Option<Instant>, waker: Waker) -> Option<Waker> {
        let waiter = self.waiters.entry(id).or_insert(Waiter {
            deadline,
            expired: None,
            waker: None,
        });
        waiter.waker.replace(waker)
    }

    /// Takes `id` out of the queue and uses up a permit; returns its waker and the waker of the front.
    fn dequeue_granted(&mut self, id: u64, now: Instant) -> (Option<Waker>, Option<Waker>) {
        let (old_waker, next_waker) = self.remove(id);
        self.pacer.on_departed(now, !self.waiters.is_empty());
        let interval = self.pacer.interval();
        // Compensates for late timers, bounded by `slack`: the tolerance of the GCRA.
        let slack = interval.clamp(TIMER_SLACK / 10, TIMER_SLACK);
        let earliest = now.checked_sub(slack).unwrap_or(now);
        let start = self
            .paced_until
            .map_or(now, |paced_until| paced_until.max(earliest));
        self.paced_until = start.checked_add(interval);
        (old_waker, next_waker.or_else(|| self.take_front_waker()))
    }

    /// Takes `id` out of the queue; returns its waker, and the waker of the new front if `id` was the
    /// front.
    fn remove(&mut self, id: u64) -> (Option<Waker>, Option<Waker>) {
        let front = self.waiters.keys().next().copied();
        let Some(removed) = self.waiters.remove(&id) else {
            return (None, None);
        };
        let next_waker = (front == Some(id)).then(|| self.take_front_waker());
        (removed.waker, next_waker.flatten())
    }

    fn take_front_waker(&mut self) -> Option<Waker> {
        let (_, front) = self.waiters.iter_mut().next()?;
        front.waker.take()
    }

    /// Marks the waiters whose permit would come after their deadline; returns their wakers.
    fn expire_waiters(&mut self, now: Instant, max_closed: Duration) -> Vec<Waker> {
        let interval = self.pacer.interval();
        let mut permit_at = self.next_permit_at(now, max_closed);
        let mut woken = Vec::new();
        for waiter in self.waiters.values_mut() {
            if waiter.deadline.is_some_and(|deadline| permit_at > deadline) {
                waiter.expired = Some(permit_at);
                woken.extend(waiter.waker.take());
            } else {
                permit_at = permit_at.checked_add(interval).unwrap_or(permit_at);
            }
        }
        woken
    }
}

#[cfg(all(test, not(retry_loom)))]
mod tests;

#[cfg(all(test, retry_loom))]
mod model;
