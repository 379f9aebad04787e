//! Telemetry of the retry service: spans and events of `tracing`, metrics, and callbacks.

mod metrics;
mod trace;

use http::{Request, StatusCode};
use tracing::span::Entered;

#[cfg(feature = "metrics")]
pub use self::metrics::describe_metrics;
use self::trace::Trace;
use crate::{
    events::{Cause, GiveUpEvent, RetryEvent},
    policy::RetryConfig,
};

/// The telemetry of one request.
pub(crate) struct Telemetry {
    trace: Trace,
}

impl Telemetry {
    /// Records a request whose first attempt begins in `call`.
    #[inline]
    pub(crate) fn new(config: &RetryConfig) -> Self {
        metrics::on_request(&config.client_name);
        Self {
            trace: Trace::new(),
        }
    }

    /// Records a request whose first attempt is queued at the rate gate.
    pub(crate) fn new_queued(config: &RetryConfig) -> Self {
        metrics::on_request(&config.client_name);
        Self {
            trace: Trace::new_queued(),
        }
    }

    #[inline]
    pub(crate) fn begin_attempt<B>(
        &mut self,
        config: &RetryConfig,
        request: &Request<B>,
        resend_count: u32,
    ) {
        metrics::on_attempt(&config.client_name);
        self.trace.begin_attempt(request, resend_count);
    }

    /// Enters the attempt span; the guard exits it on drop.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        self.trace.enter()
    }

    /// Records the response of an attempt; `failed` is the cause if it is a failure.
    #[inline]
    pub(crate) fn on_response(&mut self, status: StatusCode, failed: Option<Cause>) {
        self.trace.on_response(status, failed);
    }

    /// Records an attempt that ended with an inner error.
    pub(crate) fn on_error(&mut self, cause: Cause) {
        self.trace.on_error(cause);
    }

    pub(crate) fn on_retry(&self, config: &RetryConfig, event: &RetryEvent<'_>) {
        metrics::on_retry(&config.client_name, event);
        self.trace.in_parent_span(|| {
            trace::retry_event(event);
            if let Some(callback) = &config.on_retry {
                callback(event);
            }
        });
    }

    pub(crate) fn on_give_up(&self, config: &RetryConfig, event: &GiveUpEvent<'_>) {
        metrics::on_give_up(&config.client_name, event);
        self.trace.in_parent_span(|| {
            trace::give_up_event(event);
            if let Some(callback) = &config.on_give_up {
                callback(event);
            }
        });
    }

    /// Records the balance of the budget after a deposit or a withdrawal.
    #[inline]
    pub(crate) fn on_budget_change(&self, config: &RetryConfig) {
        metrics::on_budget_change(&config.client_name, config.budget());
    }

    /// Records the state of the rate gate after a response or a local rejection.
    #[inline]
    pub(crate) fn on_gate_change(&self, config: &RetryConfig) {
        metrics::on_gate_change(&config.client_name, config.rate_gate.as_ref());
    }
}
