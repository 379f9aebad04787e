//! Metrics; no-ops without the feature `metrics`.
#![cfg_attr(not(feature = "metrics"), allow(unused_variables))]

use std::sync::Arc;

use crate::{
    budget::RetryBudget,
    events::{GiveUpEvent, RetryEvent},
    rate_gate::RateGate,
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

/// Registers descriptions and units of all metrics with the global recorder of the crate `metrics`.
///
/// Call it once, after installing the recorder. All metrics have the label `client`, set by
/// [`RetryPolicy::client_name`](crate::RetryPolicy::client_name).
///
/// | metric | type | meaning |
/// | --- | --- | --- |
/// | `tower_http_retry_requests_total` | counter | requests passed to the layer |
/// | `tower_http_retry_attempts_total` | counter | attempts sent |
/// | `tower_http_retry_retries_total` | counter | retries scheduled, by `error_type`: the status of a 4xx or 5xx, otherwise the kind of failure |
/// | `tower_http_retry_give_ups_total` | counter | failures returned to the caller, by `reason`: a [`GiveUpReason`](crate::GiveUpReason) |
/// | `tower_http_retry_delay_seconds` | histogram | planned delay before each retry, in seconds |
/// | `tower_http_retry_budget_balance` | gauge | tokens in the retry budget, at the last update |
/// | `tower_http_retry_gate_closed_seconds` | gauge | time until the rate gate opens, in seconds, at the last update |
/// | `tower_http_retry_gate_queue_length` | gauge | requests queued at the rate gate, at the last update |
///
/// # Examples
///
/// ```
/// // After the recorder of an exporter has been installed:
/// tower_http_retry::describe_metrics();
/// ```
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

    describe_counter!(names::REQUESTS, Unit::Count, "Requests passed to the layer");
    describe_counter!(names::ATTEMPTS, Unit::Count, "Attempts sent");
    describe_counter!(
        names::RETRIES,
        Unit::Count,
        "Retries scheduled, by the type of the error"
    );
    describe_counter!(
        names::GIVE_UPS,
        Unit::Count,
        "Failures returned to the caller, by reason"
    );
    describe_histogram!(names::DELAY, Unit::Seconds, "Delay before each retry");
    describe_gauge!(names::BUDGET, Unit::Count, "Tokens in the retry budget");
    describe_gauge!(
        names::GATE_CLOSED,
        Unit::Seconds,
        "Time until the rate gate opens"
    );
    describe_gauge!(
        names::GATE_QUEUE,
        Unit::Count,
        "Requests queued at the rate gate"
    );
}

#[inline]
pub(super) fn on_request(client: &Arc<str>) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REQUESTS, "client" => client.clone()).increment(1);
}

#[inline]
pub(super) fn on_attempt(client: &Arc<str>) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::ATTEMPTS, "client" => client.clone()).increment(1);
}

pub(super) fn on_retry(client: &Arc<str>, event: &RetryEvent<'_>) {
    #[cfg(feature = "metrics")]
    {
        let error_type = event.failure.cause.error_type().to_owned();
        metrics::counter!(names::RETRIES, "client" => client.clone(), "error_type" => error_type)
            .increment(1);
        metrics::histogram!(names::DELAY, "client" => client.clone()).record(event.delay);
    }
}

pub(super) fn on_give_up(client: &Arc<str>, event: &GiveUpEvent<'_>) {
    #[cfg(feature = "metrics")]
    {
        let reason = event.reason.as_str();
        metrics::counter!(names::GIVE_UPS, "client" => client.clone(), "reason" => reason)
            .increment(1);
    }
}

#[inline]
pub(super) fn on_budget_change(client: &Arc<str>, budget: Option<&RetryBudget>) {
    #[cfg(feature = "metrics")]
    if let Some(balance) = budget.and_then(RetryBudget::balance) {
        metrics::gauge!(names::BUDGET, "client" => client.clone()).set(balance);
    }
}

#[inline]
pub(super) fn on_gate_change(client: &Arc<str>, gate: Option<&RateGate>) {
    #[cfg(feature = "metrics")]
    if let Some(gate) = gate {
        let closed = gate.time_until_open().unwrap_or_default();
        metrics::gauge!(names::GATE_CLOSED, "client" => client.clone()).set(closed);
        let queued = u32::try_from(gate.queue_len()).unwrap_or(u32::MAX);
        metrics::gauge!(names::GATE_QUEUE, "client" => client.clone()).set(queued);
    }
}
