//! Who may leave, and when: first come, first served.
//!
//! The queue has no timer of its own and takes the time as an argument. Only the first in line is told a
//! time at which to ask again; whoever leaves, or gives up, hands that place to the next. So nobody holds
//! a turn that a closing gate would have to take back, and whoever gives up leaves no hole.

use std::{collections::BTreeMap, fmt, sync::PoisonError, task::Waker, time::Duration};

use tokio::time::Instant;

use super::{pace::Pace, quota::Quota};
use crate::sync::{Mutex, MutexGuard};

/// What the clones of a gate share.
pub(crate) struct Queue {
    line: Mutex<Line>,
    longest: Duration,
}

#[derive(Debug, Default)]
struct Line {
    pace: Pace,
    closed_until: Option<Instant>,
    /// When the next may leave, by the pace.
    next_turn: Option<Instant>,
    /// By their numbers, in the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    last_number: u64,
    /// How often the gate has closed.
    closings: u64,
}

#[derive(Debug)]
struct Waiting {
    /// A later turn is of no use.
    latest: Option<Instant>,
    /// The turn would come at this time, too late.
    too_late: Option<Instant>,
    waker: Option<Waker>,
}

/// What somebody in line is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Turn {
    /// Go; the gate had closed that often.
    Now(u64),
    /// Ask again at that time, or when woken.
    Later(Option<Instant>),
    /// The turn would come too late, at that time; the place in line is given up.
    TooLate(Instant),
}

impl Queue {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            line: Mutex::new(Line::default()),
            longest,
        }
    }

    /// A number, by which a request keeps its place over all its attempts.
    pub(crate) fn number(&self) -> u64 {
        let mut line = self.lock();
        line.last_number = line.last_number.wrapping_add(1);
        line.last_number
    }

    /// Asks for the turn of `number`, and stays in line for it if there is a `waker`.
    pub(crate) fn ask(
        &self,
        number: u64,
        now: Instant,
        latest: Option<Instant>,
        waker: Option<&Waker>,
    ) -> Turn {
        let mut line = self.lock();
        if let Some(too_late) = line.waiting.get(&number).and_then(|it| it.too_late) {
            let next = line.remove(number);
            drop(line);
            wake(next);
            return Turn::TooLate(too_late);
        }
        let first = line.waiting.keys().next().is_none_or(|it| number <= *it);
        let turn = line.turn(now);
        if first && turn <= now {
            let next = line.leave(number, now);
            let closings = line.closings;
            drop(line);
            wake(next);
            return Turn::Now(closings);
        }
        if let Some(waker) = waker {
            if let Some(waiting) = line.waiting.get_mut(&number) {
                match &mut waiting.waker {
                    Some(old) => old.clone_from(waker),
                    None => waiting.waker = Some(waker.clone()),
                }
            } else {
                let ahead = line.waiting.range(..number).count();
                let expected = line.after(turn, ahead);
                if latest.is_some_and(|latest| expected > latest) {
                    return Turn::TooLate(expected);
                }
                let waker = Some(waker.clone());
                let waiting = Waiting {
                    latest,
                    too_late: None,
                    waker,
                };
                line.waiting.insert(number, waiting);
            }
        }
        Turn::Later(first.then_some(turn))
    }

    /// Whether a turn that was given when the gate had closed `closings` times is still good; otherwise
    /// the request has not left.
    pub(crate) fn confirm(&self, closings: u64, now: Instant) -> bool {
        let mut line = self.lock();
        let good = line.closings == closings && line.closed_until.is_none_or(|until| until <= now);
        if !good {
            line.pace.ended();
        }
        good
    }

    /// Gives the place in line up.
    pub(crate) fn give_up(&self, number: u64) {
        let next = self.lock().remove(number);
        wake(next);
    }

    /// A request that had left is no longer under way, and no answer came.
    pub(crate) fn lost(&self) {
        self.lock().pace.ended();
    }

    /// The server accepted a request.
    pub(crate) fn accepted(&self, now: Instant, quota: Option<Quota>) {
        let mut line = self.lock();
        line.pace.ended();
        line.pace.accepted();
        line.pace.stated(now, quota);
    }

    /// The server refused a request, which had left when the gate had closed `closings` times, and asks
    /// to wait.
    pub(crate) fn refused(
        &self,
        closings: u64,
        now: Instant,
        wait: Duration,
        quota: Option<Quota>,
    ) {
        let wait = wait.min(self.longest);
        let mut line = self.lock();
        line.pace.ended();
        line.pace.stated(now, quota);
        line.closed_until = line.closed_until.max(now.checked_add(wait));
        // What had left before the gate closed tells nothing of the pace since.
        if line.closings == closings {
            line.closings = line.closings.wrapping_add(1);
            line.pace.refused(now, wait);
        }
        let woken = line.send_away(now);
        drop(line);
        woken.into_iter().for_each(Waker::wake);
    }

    /// How many wait, and until when the gate is closed.
    pub(crate) fn state(&self, now: Instant) -> (usize, Option<Duration>) {
        let line = self.lock();
        let closed_for = line
            .closed_until
            .map(|until| until.saturating_duration_since(now));
        let closed_for = closed_for.filter(|it| !it.is_zero());
        (line.waiting.len(), closed_for)
    }

    /// The time between two requests, by what is known.
    pub(crate) fn interval(&self) -> Duration {
        self.lock().pace.interval()
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // Nothing in here runs code of others but wakers, and those outside of the lock.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Line {
    /// When the first in line may leave.
    fn turn(&self, now: Instant) -> Instant {
        let closed_until = self.closed_until.unwrap_or(now);
        let next_turn = self.next_turn.unwrap_or(now);
        let spent_until = self.pace.spent_until(now).unwrap_or(now);
        closed_until.max(next_turn).max(spent_until)
    }

    /// When somebody with so many `ahead` of him may leave.
    fn after(&self, turn: Instant, ahead: usize) -> Instant {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let wait = self.pace.interval().saturating_mul(ahead);
        turn.checked_add(wait).unwrap_or(turn)
    }

    /// `number` leaves; returns who is to ask now.
    fn leave(&mut self, number: u64, now: Instant) -> Option<Waker> {
        let next = self.remove(number);
        self.pace.left(now, !self.waiting.is_empty());
        let interval = self.pace.interval();
        // Timers are late by a little: what was missed by that is made up for, and no more.
        let slack = interval.min(Duration::from_millis(20));
        let earliest = now.checked_sub(slack).unwrap_or(now);
        let from = self.next_turn.map_or(now, |turn| turn.max(earliest));
        self.next_turn = from.checked_add(interval);
        next.or_else(|| self.first_waker())
    }

    /// Takes `number` out of the line; returns who is first now, where that has changed.
    fn remove(&mut self, number: u64) -> Option<Waker> {
        let first = self.waiting.keys().next().copied();
        self.waiting.remove(&number)?;
        (first == Some(number))
            .then(|| self.first_waker())
            .flatten()
    }

    fn first_waker(&mut self) -> Option<Waker> {
        let (_, first) = self.waiting.iter_mut().next()?;
        first.waker.take()
    }

    /// Tells those whose turn would now come too late.
    fn send_away(&mut self, now: Instant) -> Vec<Waker> {
        let interval = self.pace.interval();
        let mut turn = self.turn(now);
        let mut woken = Vec::new();
        for waiting in self.waiting.values_mut() {
            if waiting.latest.is_some_and(|latest| turn > latest) {
                waiting.too_late = Some(turn);
                woken.extend(waiting.waker.take());
            } else {
                turn = turn.checked_add(interval).unwrap_or(turn);
            }
        }
        woken
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(all(test, not(retry_loom)))]
mod tests;

#[cfg(all(test, retry_loom))]
mod model;
