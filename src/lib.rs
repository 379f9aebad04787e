//! A [`tower`] layer that retries failed HTTP requests when it is safe to do so.
//!
//! [`RetryLayer`] wraps any `Service<http::Request<ReplayBody<_>>, Response = http::Response<_>> + Clone`
//! whose error implements `Display`. It
//! classifies each result by a documented error contract, retries the requests that are safe to retry, and
//! returns every other failure to the caller at once.
//!
//! ```text
//! request ─▶ save head and body ─▶ attempt ─▶ classify ─▶ decide ──▶ return, with the outcome
//!                                     ▲                      │
//!                                     │                      ▼
//!                                 poll_ready ◀── delay ◀── inspect and drain the failed response
//! ```
//!
//! # What is retried
//!
//! The default is the documented contract of the Mondo bank API. **502, 503 and 408 are not retried** unless
//! the policy says so ([`RetryPolicy::classify_status`]).
//!
//! | result | retried |
//! | --- | --- |
//! | 1xx, 2xx, 3xx | no: success |
//! | 429 | for any method: it was rejected before it was processed |
//! | 500, 504 | if the request is idempotent |
//! | other 4xx and 5xx | never |
//! | `invalid_token`, in the body or in `WWW-Authenticate` | never, whatever the status |
//! | the request did not reach the server | for any method |
//! | timeout, connection lost | if the request is idempotent |
//! | untrusted certificate, unsupported scheme, other errors of the inner service | never |
//!
//! A request is idempotent if its method is (RFC 9110 §9.2.2), or if it has a non-empty `Idempotency-Key`
//! header. [`RequestOptions::idempotent`] overrides both.
//!
//! # Quick start
//!
//! ```
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::Full;
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
//! use tower_http_retry::{RetryLayer, RetryOutcome, RetryPolicy};
//!
//! # async fn get() -> Result<(), BoxError> {
//! // Build it once: its clones share the connections and the retry budget.
//! let mut client = ServiceBuilder::new()
//!     .layer(RetryLayer::new(RetryPolicy::new()))
//!     .service(Client::builder(TokioExecutor::new()).build_http());
//!
//! let request = Request::get("http://api.example/accounts").body(Full::<Bytes>::default())?;
//! let response = client.ready().await?.call(request).await?;
//!
//! let outcome = RetryOutcome::from_response(&response);
//! println!("{} after {} attempts", response.status(), outcome.attempts());
//! # Ok(())
//! # }
//! ```
//!
//! # Order of decisions
//!
//! A success at the first attempt is returned untouched. After a failure, the layer checks in this order:
//!
//! 1. `WWW-Authenticate` contains `error="invalid_token"`: [`GiveUpReason::InvalidToken`].
//! 2. The classifier marks the failure as never retryable: [`GiveUpReason::NotRetryable`].
//! 3. The maximum number of retries is reached, or the backoff has ended:
//!    [`GiveUpReason::RetriesExhausted`].
//! 4. The server may have processed the request, and the request is not idempotent:
//!    [`GiveUpReason::NotIdempotent`].
//! 5. The request cannot be replayed in full: [`GiveUpReason::BodyNotReplayable`]. If the request body
//!    returned an error, this is the first check.
//! 6. The delay, which is the server's `Retry-After` plus the backoff delay, would end after the deadline
//!    ([`RetryPolicy::max_elapsed`]): [`GiveUpReason::DeadlineExceeded`], at once and not after sleeping.
//! 7. The retry filter returns false ([`RetryPolicy::retry_filter`]): [`GiveUpReason::Vetoed`].
//! 8. The retry budget is exhausted: [`GiveUpReason::BudgetExhausted`].
//!
//! In all of these cases the response is returned with its body untouched (with
//! [`RetryPolicy::inspect_token_errors`], that of a 400, 401 or 403 is inspected first). Otherwise the
//! beginning of the body is inspected: `"error": "invalid_token"` gives up too, and the response is returned
//! in full. The rest is drained, so that the connection can be reused. The delay is measured from the failure. After it, the
//! inner service is polled until it is ready for the next attempt; if that fails, the response is returned if
//! its body fit into [`RetryPolicy::inspect_limit`], otherwise the error
//! ([`GiveUpReason::ReadinessFailed`]).
//!
//! With a [`RateGate`], each attempt first acquires a permit. If the permit would come after the deadline, the
//! call ends with a local 429 ([`GiveUpReason::RateGated`]).
//!
//! # Types by use
//!
//! | use | types |
//! | --- | --- |
//! | start here | [`RetryLayer`], [`Retry`], [`RetryPolicy`], [`ServiceBuilderExt`] |
//! | configure | [`RetryConfig`], [`Shared`], [`RequestOptions`], [`Backoff`], [`BackoffFn`], [`ExponentialBackoff`], [`backoff_fn`], [`MakeIdempotencyKey`], [`idempotency_key_fn`], [`InvalidConfig`] |
//! | classify | [`ApiErrorsAsFailures`], [`ApiFailureClass`], [`FailureKind`], [`Retryability`], [`RetryableFailure`] |
//! | outcomes | [`RetryOutcome`], [`GiveUpReason`], [`OutcomeHandle`], [`RetryEvent`], [`GiveUpEvent`] |
//! | storms | [`RetryBudget`], [`BudgetConfig`], [`RateGate`] |
//! | errors | [`ErrorForStatusLayer`], [`ErrorForStatus`], [`error_for_status`](fn@error_for_status), [`Error`], [`ApiError`], [`TransportError`], [`RateGatedError`] |
//! | bodies | [`ReplayBody`], [`ResponseBody`], [`Superseded`] |
//!
//! The guides on docs.rs, in the module `guide`, cover stacks for common clients, tuning, observability
//! and retry storms.
//!
//! # Spans and events
//!
//! All have the target `tower_http_retry`. Each attempt is a span `http_attempt` (INFO), a child of the span
//! in which the service was called, with the fields of OpenTelemetry's semantic conventions for HTTP
//! clients: `otel.name`, `otel.kind`, `otel.status_code`, `http.request.method`,
//! `http.request.resend_count` (absent on the first attempt), `http.response.status_code`,
//! `server.address`, `server.port`, `error.type`. `url.full` is left out on purpose: it may contain
//! secrets. An event `retrying` (DEBUG) precedes each retry, with `error.type`, `delay` and
//! `http.request.resend_count`. An event `giving up` follows a failure that is returned, with
//! `give_up_reason`, `attempts` and `total_delay`: WARN, or DEBUG if the first attempt failed with a failure
//! that is not retryable.
//!
//! # Runtime
//!
//! Delays, the rate gate and the time limit for draining use tokio timers; the runtime must have time
//! enabled.
//!
//! # Features
//!
//! - `hyper` (default): recognizes the errors of hyper-util's client, hyper and h2.
//! - `metrics`: emits metrics through the `metrics` facade, see `describe_metrics`.
//! - `serde`: deserializes [`RetryPolicy`].
//! - `uuid`: idempotency keys that are UUIDs, see `MakeIdempotencyUuid`.
//! - `backoff`: [`Backoff`] for `ExponentialBackoff` of the crate `backoff`. Off by default, as the crate and its dependency
//!   `instant` are unmaintained (RUSTSEC-2025-0012, RUSTSEC-2024-0384).

#![cfg_attr(docsrs, feature(doc_cfg))]
// No input from a caller or a server may cause a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

// Blank lines keep rustfmt from sorting.
mod builder;

mod retry;

mod body;

mod classify;

mod policy;

mod backoff;

mod retry_after;

mod budget;

mod rate_gate;

mod outcome;

mod events;

mod telemetry;

mod error_for_status;

mod invalid_config;

mod sync;

#[cfg(all(any(fuzzing, test), not(retry_loom)))]
#[doc(hidden)]
pub mod fuzzing;

// The fuzz targets, which unit tests include, name the crate as a dependency.
#[cfg(test)]
extern crate self as tower_http_retry;

#[cfg(any(doc, doctest))]
pub mod guide;

/// The futures of [`Retry`] and [`ErrorForStatus`].
pub mod future {
    pub use crate::{error_for_status::ErrorForStatusFuture, retry::ResponseFuture};
}

pub use self::{
    backoff::{Backoff, BackoffFn, Delays, ExponentialBackoff, backoff_fn},
    body::{ReplayBody, ResponseBody, Superseded},
    budget::RetryBudget,
    builder::ServiceBuilderExt,
    classify::{ApiErrorsAsFailures, ApiFailureClass, FailureKind, Retryability, RetryableFailure},
    error_for_status::{
        ApiError, Error, ErrorForStatus, ErrorForStatusLayer, RateGatedError, TransportError,
        error_for_status,
    },
    events::{GiveUpEvent, RetryEvent},
    invalid_config::InvalidConfig,
    outcome::{GiveUpReason, OutcomeHandle, RetryOutcome},
    policy::{
        BudgetConfig, MakeIdempotencyKey, OnGiveUp, OnRetry, RequestOptions, RetryConfig,
        RetryFilter, RetryPolicy, Shared, idempotency_key_fn,
    },
    rate_gate::RateGate,
    retry::{Retry, RetryLayer},
};

#[cfg(feature = "uuid")]
#[cfg_attr(docsrs, doc(cfg(feature = "uuid")))]
pub use self::policy::MakeIdempotencyUuid;
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub use self::telemetry::describe_metrics;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
