//! The order of decisions, written from the documentation of the crate.

use std::{io, time::Duration};

use http::{Method, StatusCode};
use tokio::time::Instant;
use tower_http_retry::GiveUpReason;

use super::{
    script::{BodyStep, Call, Reply, ResponseScript, RetryAfter, Script},
    server::Attempt,
};

/// The state that the calls of one layer share.
pub(super) struct Model {
    script: Script,
    tokens: u32,
    /// The delays with which the filter is expected to be called.
    pub(super) filtered: Vec<Duration>,
}

/// The expected end of an attempt.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Success,
    GiveUp(GiveUpReason),
    /// The next attempt arrives at this time.
    Retry(Instant),
}

/// The state of one call.
pub(super) struct CallModel<'a> {
    pub(super) call: &'a Call,
    pub(super) started: Instant,
    retries: u32,
    /// The bytes that any attempt has read of the request body.
    read: usize,
    body_failed: bool,
    /// The current attempt is a retry that was paid for.
    is_charged: bool,
}

impl<'a> CallModel<'a> {
    pub(super) fn new(call: &'a Call, started: Instant) -> Self {
        Self {
            call,
            started,
            retries: 0,
            read: 0,
            body_failed: false,
            is_charged: false,
        }
    }

    /// Returns whether the server may process the request twice.
    pub(super) fn is_idempotent(&self) -> bool {
        let has_key = self.call.key.is_some_and(|key| !key.is_empty());
        let idempotent_methods = [Method::GET, Method::PUT, Method::DELETE];
        let by_default = has_key || idempotent_methods.contains(&self.call.method);
        self.call.idempotent.unwrap_or(by_default)
    }
}

/// When a retry is allowed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Allowed {
    Never,
    IfIdempotent,
    Always,
}

pub(super) fn retry_after(script: &ResponseScript) -> Option<Duration> {
    match script.retry_after {
        RetryAfter::None | RetryAfter::Malformed => None,
        RetryAfter::Overflow => Some(Duration::MAX),
        RetryAfter::Seconds(seconds) | RetryAfter::Date(seconds, _) => {
            Some(Duration::from_secs(seconds))
        }
    }
}

impl Model {
    pub(super) fn new(script: Script) -> Self {
        Self {
            tokens: script.budget.map_or(0, |(capacity, _)| capacity),
            script,
            filtered: Vec::new(),
        }
    }

    pub(super) fn balance(&self) -> Option<u32> {
        self.script.budget.map(|_| self.tokens)
    }

    pub(super) fn max_elapsed(&self, call: &Call) -> Duration {
        call.max_elapsed.unwrap_or(self.script.max_elapsed)
    }

    /// Returns when a failure may be retried; `None` for a success.
    pub(super) fn allowed(&self, attempt: &Attempt, reply: &Reply) -> Option<Allowed> {
        if attempt.body_failed {
            return Some(Allowed::Never);
        }
        match &reply.result {
            Err(io::ErrorKind::ConnectionRefused) => Some(Allowed::Always),
            Err(io::ErrorKind::TimedOut | io::ErrorKind::ConnectionReset) => {
                Some(Allowed::IfIdempotent)
            }
            Err(_) => Some(Allowed::Never),
            Ok(response) => match response.status.as_u16() {
                ..400 => None,
                _ if response.has_invalid_token_header => Some(Allowed::Never),
                429 => Some(Allowed::Always),
                500 | 504 => Some(Allowed::IfIdempotent),
                503 if self.script.retries_503 => Some(Allowed::IfIdempotent),
                _ => Some(Allowed::Never),
            },
        }
    }

    /// Returns what follows an attempt.
    pub(super) fn next(
        &mut self,
        state: &mut CallModel<'_>,
        attempt: &Attempt,
        reply: &Reply,
    ) -> Next {
        state.read = state.read.max(attempt.received.len());
        state.body_failed |= attempt.body_failed;
        let allowed = self.allowed(attempt, reply);
        let response = reply.result.as_ref().ok().filter(|_| !attempt.body_failed);
        if response.is_some() && matches!(allowed, None | Some(Allowed::Never)) {
            self.deposit(if state.is_charged { self.cost() } else { 1 });
        }
        let Some(allowed) = allowed else {
            return Next::Success;
        };
        match self.decide(state, attempt, response, allowed) {
            Err(reason) => Next::GiveUp(reason),
            Ok((delay, paid)) => match self.discard(state, attempt, response) {
                None => {
                    self.deposit(if paid { self.cost() } else { 0 });
                    Next::GiveUp(GiveUpReason::InvalidToken)
                }
                Some(discarded_at) => {
                    state.retries += 1;
                    state.is_charged = paid;
                    Next::Retry(discarded_at.max(attempt.answered_at + delay))
                }
            },
        }
    }

    /// The list under "Order of decisions". Returns the delay, and whether the retry was paid for.
    fn decide(
        &mut self,
        state: &CallModel<'_>,
        attempt: &Attempt,
        response: Option<&ResponseScript>,
        allowed: Allowed,
    ) -> Result<(Duration, bool), GiveUpReason> {
        let call = state.call;
        if response.is_none() && state.body_failed {
            return Err(GiveUpReason::BodyNotReplayable);
        }
        if response.is_some_and(|response| response.has_invalid_token_header) {
            return Err(GiveUpReason::InvalidToken);
        }
        if allowed == Allowed::Never {
            return Err(GiveUpReason::NotRetryable);
        }
        let max_retries = call.max_retries.unwrap_or(self.script.max_retries);
        let backoff = self.script.delays.get(state.retries as usize);
        let (true, Some(backoff)) = (state.retries < max_retries, backoff) else {
            return Err(GiveUpReason::RetriesExhausted);
        };
        let is_idempotent = self.script.retry_non_idempotent || state.is_idempotent();
        if allowed == Allowed::IfIdempotent && !is_idempotent {
            return Err(GiveUpReason::NotIdempotent);
        }
        // Bodies that are known to exceed the limit are not buffered at all.
        let is_buffered = !call.has_exact_hint || call.total() <= self.script.replay_limit;
        let replay_limit = if is_buffered {
            self.script.replay_limit
        } else {
            0
        };
        if state.read > replay_limit || state.body_failed {
            return Err(GiveUpReason::BodyNotReplayable);
        }
        let retry_after = response.and_then(retry_after).unwrap_or_default();
        let elapsed = attempt.answered_at - state.started;
        let delay = retry_after.saturating_add(*backoff);
        if elapsed.saturating_add(delay) > self.max_elapsed(call) {
            return Err(GiveUpReason::DeadlineExceeded);
        }
        self.filtered.push(delay);
        if self.filtered.len() > self.script.vetoes_from {
            return Err(GiveUpReason::Vetoed);
        }
        let is_scheduled = !retry_after.is_zero()
            && response.is_some_and(|response| response.status == StatusCode::TOO_MANY_REQUESTS);
        if is_scheduled || self.script.budget.is_none() {
            return Ok((delay, false));
        }
        match self.tokens.checked_sub(self.cost()) {
            None => Err(GiveUpReason::BudgetExhausted),
            Some(tokens) => {
                self.tokens = tokens;
                Ok((delay, true))
            }
        }
    }

    /// Returns when the failed response has been drained; `None` if its start reports `invalid_token`.
    fn discard(
        &self,
        state: &CallModel<'_>,
        attempt: &Attempt,
        response: Option<&ResponseScript>,
    ) -> Option<Instant> {
        let Some(response) = response else {
            return Some(attempt.answered_at);
        };
        let elapsed = attempt.answered_at - state.started;
        let remaining = self.max_elapsed(state.call) - elapsed;
        let limit = attempt.answered_at + self.script.discard_timeout.min(remaining);
        let (mut now, mut inspected, mut drained) = (attempt.answered_at, Vec::new(), 0);
        let Script {
            inspect_limit,
            drain_limit,
            ..
        } = self.script;
        for step in &response.body {
            // Nothing is read after the limits are reached.
            if inspected.len() == inspect_limit && drained >= drain_limit {
                break;
            }
            match step {
                BodyStep::Data(data) => {
                    let (start, rest) =
                        data.split_at(data.len().min(inspect_limit - inspected.len()));
                    inspected.extend_from_slice(start);
                    drained += rest.len();
                }
                BodyStep::Wait(time) => now += *time,
                BodyStep::Stall => now = limit,
                BodyStep::Fail => break,
            }
            if now >= limit {
                now = limit;
                break;
            }
        }
        let needle = b"\"error\":\"invalid_token\"";
        let reports = inspected.starts_with(b"{")
            && inspected.windows(needle.len()).any(|part| part == needle);
        (!reports).then_some(now)
    }

    fn cost(&self) -> u32 {
        self.script.budget.map_or(0, |(_, cost)| cost)
    }

    fn deposit(&mut self, tokens: u32) {
        if let Some((capacity, _)) = self.script.budget {
            self.tokens = (self.tokens + tokens).min(capacity);
        }
    }
}
