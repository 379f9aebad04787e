//! Rate-gate handling of a session.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, Request, Response, StatusCode, header::RETRY_AFTER};
use tokio::time::{Instant, Sleep};
use tower_http::classify::MakeClassifier;

use super::{Session, Step};
use crate::{
    events::Cause,
    outcome::GiveUpReason,
    policy::{RequestOptions, RetryConfig},
    rate_gate::{Acquire, Permit},
};

/// Creates the permit of a request if the policy has a rate gate.
#[inline]
pub(in crate::retry) fn new_permit<B>(
    config: &RetryConfig,
    request: &Request<B>,
    started: Instant,
) -> Option<Box<Permit>> {
    config.rate_gate.as_ref().map(|gate| {
        let options = RequestOptions::from_extensions(request.extensions());
        let deadline = started.checked_add(config.max_elapsed_for(options));
        Box::new(Permit::new(gate, deadline))
    })
}

impl<C: MakeClassifier, B> Session<C, B> {
    /// Polls for a permit of the rate gate. `Err` holds the time at which one would be available.
    pub(in crate::retry) fn poll_permit(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Option<Sleep>>,
    ) -> Poll<Result<(), Instant>> {
        let Some(permit) = &mut self.permit else {
            return Poll::Ready(Ok(()));
        };
        loop {
            match permit.poll_acquire(Instant::now(), cx.waker()) {
                Acquire::Granted(_) => return Poll::Ready(Ok(())),
                Acquire::Expired(available_at) => return Poll::Ready(Err(available_at)),
                Acquire::Wait(None) => return Poll::Pending,
                Acquire::Wait(Some(at)) => {
                    match timer.as_mut().as_pin_mut() {
                        Some(timer) if timer.deadline() == at => {}
                        Some(timer) => timer.reset(at),
                        None => timer.set(Some(tokio::time::sleep_until(at))),
                    }
                    if let Some(timer) = timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(cx));
                    }
                }
            }
        }
    }

    /// Gives up because a permit would be available only after the deadline, and returns the local 429.
    pub(in crate::retry) fn reject_rate_gated(&mut self, available_at: Instant) -> Response<()> {
        let delay = available_at.saturating_duration_since(Instant::now());
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        // `Retry-After` is in whole seconds; rounded up, so that a retry is not too early.
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
        self.telemetry.on_gate_change(&self.policy.config);
        let cause = Cause::from_status(response.status(), None);
        let reason = GiveUpReason::RateGated;
        self.give_up_with_response(&mut response, reason, cause, Some(delay));
        response
    }

    /// Revalidates the permit after `poll_ready`; false if the request has to queue again.
    pub(in crate::retry) fn confirm_permit(&mut self) -> bool {
        let permit = self.permit.as_mut();
        permit.is_none_or(|permit| permit.revalidate(Instant::now()))
    }

    pub(super) fn acquire_or_poll_ready(&self) -> Step {
        match self.permit {
            Some(_) => Step::AcquirePermit,
            None => Step::PollReady,
        }
    }

    /// Reports a response to the rate gate. A 429 closes it for the duration that `close_for` returns.
    pub(super) fn update_rate_gate<T>(
        &mut self,
        response: &Response<T>,
        close_for: impl FnOnce(&RetryConfig, &HeaderMap) -> Duration,
    ) {
        let Some(permit) = &mut self.permit else {
            return;
        };
        let config = &self.policy.config;
        let headers = response.headers();
        let close_for = || close_for(config, headers);
        permit.on_response(Instant::now(), response.status(), headers, close_for);
        self.telemetry.on_gate_change(config);
    }
}
