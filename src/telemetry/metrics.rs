//! What is counted, with the feature `metrics`; without it, nothing.
#![cfg_attr(not(feature = "metrics"), allow(dead_code, unused_variables))]

use std::sync::Arc;

use crate::{
    budget::RetryBudget,
    rate_gate::RateGate,
    telemetry::events::{GiveUpEvent, RetryEvent},
};

#[cfg(feature = "metrics")]
mod names {
    pub(super) const REQUESTS: &str = "tower_http_retry_requests_total";
    pub(super) const ATTEMPTS: &str = "tower_http_retry_attempts_total";
    pub(super) const RETRIES: &str = "tower_http_retry_retries_total";
    pub(super) const GIVE_UPS: &str = "tower_http_retry_give_ups_total";
    pub(super) const DELAY: &str = "tower_http_retry_delay_seconds";
    pub(super) const BUDGET: &str = "tower_http_retry_budget_balance";
    pub(super) const GATE_CLOSED: &str = "tower_http_retry_gate_closed_seconds";
    pub(super) const GATE_QUEUE: &str = "tower_http_retry_gate_queue_length";
}

/// Tells the recorder of the crate `metrics` what each metric means, and its unit.
///
/// To be called once, after the recorder was installed; without it, the metrics have no descriptions.
/// All of them have the label `client`, the policy's [`name`](crate::RetryPolicy::name).
///
/// | metric | type | meaning |
/// | --- | --- | --- |
/// | `tower_http_retry_requests_total` | counter | requests that the layer was called with |
/// | `tower_http_retry_attempts_total` | counter | attempts sent |
/// | `tower_http_retry_retries_total` | counter | retries decided, by `reason`: the status, or the kind of error |
/// | `tower_http_retry_give_ups_total` | counter | failures handed to the caller, by `reason`: a [`GiveUpReason`](crate::GiveUpReason) |
/// | `tower_http_retry_delay_seconds` | histogram | how long before each retry is waited, in seconds |
/// | `tower_http_retry_budget_balance` | gauge | tokens left for retries |
/// | `tower_http_retry_gate_closed_seconds` | gauge | for how long the rate gate stays closed, in seconds, when last seen |
/// | `tower_http_retry_gate_queue_length` | gauge | requests that wait at the rate gate, when last seen |
///
/// ```
/// use tower_http_retry::describe_metrics;
///
/// // An exporter's recorder is installed, then:
/// describe_metrics();
/// ```
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

    describe_counter!(
        names::REQUESTS,
        Unit::Count,
        "Requests that the layer was called with"
    );
    describe_counter!(names::ATTEMPTS, Unit::Count, "Attempts sent");
    describe_counter!(
        names::RETRIES,
        Unit::Count,
        "Retries decided, by what failed"
    );
    describe_counter!(
        names::GIVE_UPS,
        Unit::Count,
        "Failures handed to the caller, by the reason"
    );
    describe_histogram!(
        names::DELAY,
        Unit::Seconds,
        "How long before each retry is waited"
    );
    describe_gauge!(names::BUDGET, Unit::Count, "Tokens left for retries");
    describe_gauge!(
        names::GATE_CLOSED,
        Unit::Seconds,
        "For how long the rate gate stays closed"
    );
    describe_gauge!(
        names::GATE_QUEUE,
        Unit::Count,
        "Requests that wait at the rate gate"
    );
}

/// Counts for all requests of one policy.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    /// The label `client`.
    name: Arc<str>,
}

impl Meter {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self { name }
    }

    /// A call begins.
    #[inline]
    pub(crate) fn request(&self) {
        #[cfg(feature = "metrics")]
        metrics::counter!(names::REQUESTS, "client" => self.name.clone()).increment(1);
    }

    /// An attempt begins.
    #[inline]
    pub(crate) fn attempt(&self) {
        #[cfg(feature = "metrics")]
        metrics::counter!(names::ATTEMPTS, "client" => self.name.clone()).increment(1);
    }

    /// A retry has been decided.
    pub(crate) fn retrying(&self, event: &RetryEvent) {
        #[cfg(feature = "metrics")]
        {
            let reason = event.failure.with_str(str::to_owned);
            let client = || self.name.clone();
            metrics::counter!(names::RETRIES, "client" => client(), "reason" => reason)
                .increment(1);
            metrics::histogram!(names::DELAY, "client" => client()).record(event.delay());
        }
    }

    /// A failure is handed to the caller.
    pub(crate) fn giving_up(&self, event: &GiveUpEvent) {
        #[cfg(feature = "metrics")]
        {
            let reason = event.give_up_reason().as_str();
            metrics::counter!(names::GIVE_UPS, "client" => self.name.clone(), "reason" => reason)
                .increment(1);
        }
    }

    /// What is left of the budget, after it may have changed.
    #[inline]
    pub(crate) fn budget(&self, budget: &RetryBudget) {
        #[cfg(feature = "metrics")]
        if let Some(tokens) = budget.balance() {
            metrics::gauge!(names::BUDGET, "client" => self.name.clone()).set(tokens);
        }
    }

    /// The gate's state, after it may have changed.
    #[inline]
    pub(crate) fn gate(&self, gate: Option<&RateGate>) {
        #[cfg(feature = "metrics")]
        if let Some(gate) = gate {
            let closed = gate.time_until_open().unwrap_or_default();
            metrics::gauge!(names::GATE_CLOSED, "client" => self.name.clone()).set(closed);
            let waiting = u32::try_from(gate.queue_len()).unwrap_or(u32::MAX);
            metrics::gauge!(names::GATE_QUEUE, "client" => self.name.clone()).set(waiting);
        }
    }
}
