//! Who may leave, and when: first come, first served.
//!
//! The queue has no timer of its own and takes the time as an argument. Only the first in line is told a
//! time at which to ask again; whoever leaves, or gives up, hands that place to the next, and leaves no
//! hole. Turns are given when they have come and not before; one that was not used in time, or before the
//! gate closed, is not good any more.

use std::{collections::BTreeMap, fmt, sync::PoisonError, task::Waker, time::Duration};

use tokio::time::Instant;

use super::{pacing::Pace, quota::Quota};
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
pub(crate) enum Acquire {
    /// Go; the gate had closed that often.
    Granted(u64),
    /// Ask again at that time, or when woken.
    Wait(Option<Instant>),
    /// The turn would come too late, at that time; the place in line is given up.
    Expired(Instant),
}

impl Queue {
    /// A gate that is never closed for longer than `longest` at a time.
    pub(crate) fn new(longest: Duration) -> Self {
        // So that all points in time can be told.
        const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        Self {
            line: Mutex::new(Line::default()),
            longest: longest.min(A_YEAR),
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
    ) -> Acquire {
        // Wakers are the code of others: cloned and dropped outside of the lock.
        let waker = waker.cloned();
        let mut line = self.lock();
        let first = line.waiting.keys().next().is_none_or(|it| number <= *it);
        let turn = line.turn(now, self.longest);
        let expected = match latest {
            Some(_) => line.after(turn, line.ahead_of(number)),
            None => turn,
        };
        let too_late = line.waiting.get(&number).and_then(|it| it.too_late);
        // Whose turn it is may go, even where he asks a little late.
        let its_turn = first && turn <= now;
        let too_late = too_late.or_else(|| {
            let latest = latest.filter(|_| !its_turn)?;
            (expected > latest).then_some(expected)
        });
        let (answer, old, next) = if let Some(too_late) = too_late {
            let (old, next) = line.remove(number);
            (Acquire::Expired(too_late), old, next)
        } else if its_turn {
            let (old, next) = line.leave(number, now);
            (Acquire::Granted(line.closings), old, next)
        } else {
            let old = waker.and_then(|waker| line.join(number, latest, waker));
            (Acquire::Wait(first.then_some(turn)), old, None)
        };
        let pushed_back = match answer {
            Acquire::Wait(_) if !line.is_last(number) => line.send_away(now, self.longest),
            _ => Vec::new(),
        };
        drop(line);
        drop(old);
        next.into_iter().chain(pushed_back).for_each(Waker::wake);
        answer
    }

    /// Whether a turn that was given at `given`, when the gate had closed `closings` times, is still
    /// good. If not, the request has not left: turns that were not used in time would otherwise be used
    /// all at once.
    pub(crate) fn confirm(&self, closings: u64, given: Instant, now: Instant) -> bool {
        let line = self.lock();
        let good = line.closings == closings
            && line.closed_until.is_none_or(|until| until <= now)
            && now.saturating_duration_since(given) <= line.pace.interval() + LATE;
        drop(line);
        if !good {
            self.unsent(now);
        }
        good
    }

    /// A turn that was given was not used.
    pub(crate) fn unsent(&self, now: Instant) {
        self.change(now, |line| {
            line.pace.ended();
            let interval = line.pace.interval();
            line.next_turn = line.next_turn.and_then(|turn| turn.checked_sub(interval));
        });
    }

    /// Gives the place in line up.
    pub(crate) fn give_up(&self, number: u64) {
        let (old, next) = self.lock().remove(number);
        drop(old);
        next.into_iter().for_each(Waker::wake);
    }

    /// A request that had left is no longer under way, and no answer came.
    pub(crate) fn lost(&self, now: Instant) {
        self.change(now, |line| line.pace.ended());
    }

    /// The server accepted a request.
    pub(crate) fn accepted(&self, now: Instant, quota: Option<Quota>) {
        self.change(now, |line| {
            line.pace.ended();
            line.pace.accepted();
            line.pace.stated(now, quota);
        });
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
        self.change(now, |line| {
            line.pace.ended();
            line.pace.stated(now, quota);
            line.closed_until = line.closed_until.max(now.checked_add(wait));
            // What had left before the gate closed tells nothing of the pace since.
            if line.closings == closings {
                line.closings = line.closings.wrapping_add(1);
                line.pace.refused(now, wait, quota);
            }
        });
    }

    /// How many wait, and for how long the gate is closed.
    pub(crate) fn state(&self, now: Instant) -> (usize, Option<Duration>) {
        let line = self.lock();
        let spent_until = line.pace.spent_until(now, self.longest);
        let closed_until = line.closed_until.max(spent_until);
        let time_until_open = closed_until.map(|until| until.saturating_duration_since(now));
        (
            line.waiting.len(),
            time_until_open.filter(|it| !it.is_zero()),
        )
    }

    /// The time between two requests, by what is known.
    pub(crate) fn interval(&self) -> Duration {
        self.lock().pace.interval()
    }

    /// Changes what is known, and tells those to whom it makes a difference: the first in line where the
    /// turn comes earlier, whoever will now be too late where it comes later.
    fn change(&self, now: Instant, change: impl FnOnce(&mut Line)) {
        let mut line = self.lock();
        let before = (line.turn(now, self.longest), line.pace.interval());
        change(&mut line);
        let after = (line.turn(now, self.longest), line.pace.interval());
        let mut woken = if after.0 > before.0 || after.1 > before.1 {
            line.send_away(now, self.longest)
        } else {
            Vec::new()
        };
        if after.0 < before.0 {
            woken.extend(line.first_waker());
        }
        drop(line);
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By so much timers, and services that are about to be ready, may be late.
const LATE: Duration = Duration::from_millis(20);

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Line {
    /// When the first in line may leave.
    fn turn(&self, now: Instant, longest: Duration) -> Instant {
        let closed_until = self.closed_until.unwrap_or(now);
        let next_turn = self.next_turn.unwrap_or(now);
        let spent_until = self.pace.spent_until(now, longest).unwrap_or(now);
        closed_until.max(next_turn).max(spent_until)
    }

    /// When somebody with so many `ahead` of him may leave.
    fn after(&self, turn: Instant, ahead: usize) -> Instant {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let wait = self.pace.interval().saturating_mul(ahead);
        turn.checked_add(wait).unwrap_or(turn)
    }

    fn ahead_of(&self, number: u64) -> usize {
        match self.is_last(number) {
            // Most come last.
            true => self.waiting.len() - usize::from(self.waiting.contains_key(&number)),
            false => self.waiting.range(..number).count(),
        }
    }

    fn is_last(&self, number: u64) -> bool {
        self.waiting
            .keys()
            .next_back()
            .is_none_or(|it| *it <= number)
    }

    /// `number` stays in line; returns the waker that it no longer needs.
    fn join(&mut self, number: u64, latest: Option<Instant>, waker: Waker) -> Option<Waker> {
        let waiting = self.waiting.entry(number).or_insert(Waiting {
            latest,
            too_late: None,
            waker: None,
        });
        waiting.waker.replace(waker)
    }

    /// `number` leaves; returns its waker, and that of who is to ask now.
    fn leave(&mut self, number: u64, now: Instant) -> (Option<Waker>, Option<Waker>) {
        let (old, next) = self.remove(number);
        self.pace.left(now, !self.waiting.is_empty());
        let interval = self.pace.interval();
        // Timers are late by a little: what was missed by that is made up for, and no more.
        let slack = interval.clamp(LATE / 10, LATE);
        let earliest = now.checked_sub(slack).unwrap_or(now);
        let from = self.next_turn.map_or(now, |turn| turn.max(earliest));
        self.next_turn = from.checked_add(interval);
        (old, next.or_else(|| self.first_waker()))
    }

    /// Takes `number` out of the line; returns its waker, and that of who is first now, where that has
    /// changed.
    fn remove(&mut self, number: u64) -> (Option<Waker>, Option<Waker>) {
        let first = self.waiting.keys().next().copied();
        let Some(removed) = self.waiting.remove(&number) else {
            return (None, None);
        };
        let next = (first == Some(number)).then(|| self.first_waker());
        (removed.waker, next.flatten())
    }

    fn first_waker(&mut self) -> Option<Waker> {
        let (_, first) = self.waiting.iter_mut().next()?;
        first.waker.take()
    }

    /// Tells those whose turn would now come too late.
    fn send_away(&mut self, now: Instant, longest: Duration) -> Vec<Waker> {
        let interval = self.pace.interval();
        let mut turn = self.turn(now, longest);
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

#[cfg(all(test, not(retry_loom)))]
mod tests;

#[cfg(all(test, retry_loom))]
mod model;
