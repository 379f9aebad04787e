//! A [`tower`] layer that makes any HTTP client service retry what is worth retrying, and nothing
//! else.
//!
//! It wraps any `Service<http::Request<_>, Response = http::Response<_>> + Clone`, reads each result
//! against a documented error contract, sends again what can safely be sent again, and hands every other
//! failure to the caller at once. Waits run on tokio: its runtime needs the timer.
//!
//! ```text
//! request ─▶ keep what a resend needs ─▶ attempt ─▶ classify ─▶ decide ──▶ return, with the outcome
//!             (head, replayable body)       ▲                      │
//!                                           │                      ▼
//!                                    ready again ◀── wait ◀── read and drop the failed response
//! ```
//!
//! A success at the first attempt is passed through untouched. After a failure the layer decides, in
//! this order:
//!
//! 1. A `WWW-Authenticate` header says `invalid_token`: [`GiveUpReason::InvalidToken`].
//! 2. The class says never: [`GiveUpReason::NotRetryable`].
//! 3. The retries are used up or the schedule has ended: [`GiveUpReason::RetriesExhausted`].
//! 4. The server might have acted on the request, and repeating it is not safe:
//!    [`GiveUpReason::NotIdempotent`].
//! 5. The request body cannot be sent again whole: [`GiveUpReason::BodyNotReplayable`].
//! 6. The wait, which is the server's `Retry-After` plus the next delay of the schedule, would end
//!    past the deadline ([`RetryPolicy::max_elapsed`]): [`GiveUpReason::DeadlineExceeded`], now and not
//!    after sleeping.
//! 7. The user's own function says no ([`RetryPolicy::retry_filter`]): [`GiveUpReason::Vetoed`].
//! 8. The budget has nothing left: [`GiveUpReason::BudgetExhausted`].
//!
//! A response that is stopped so reaches the caller unread. Otherwise the start of its body is looked
//! into: `"error": "invalid_token"` stops too, and the caller gets the response whole. The rest is
//! read and dropped, so that the connection can be used again; then comes the wait, counted from the
//! failure, and the inner service is made ready for the next attempt.
//!
//! With a [`RateGate`], each attempt waits for its turn first; where that would come past the deadline,
//! the call ends with a 429 of the layer's own ([`GiveUpReason::RateGated`]).
//!
//! # Example
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Empty;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_http_retry::{RetryLayer, RetryOutcome, RetryPolicy};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tower::BoxError> {
//! // Stands for any HTTP client: it is over the rate limit once, then fine.
//! let mut answers = vec![StatusCode::OK, StatusCode::TOO_MANY_REQUESTS];
//! let (client, handle) = tower_test::mock::pair();
//! tokio::spawn(async move {
//!     tokio::pin!(handle);
//!     while let Some((_request, reply)) = handle.next_request().await {
//!         let mut response = Response::new(Empty::<Bytes>::new());
//!         *response.status_mut() = answers.pop().unwrap_or_default();
//!         reply.send_response(response);
//!     }
//! });
//!
//! let mut client = ServiceBuilder::new()
//!     .layer(RetryLayer::new(RetryPolicy::new()))
//!     .service(client);
//!
//! let request = Request::get("http://api.example/accounts").body(Empty::<Bytes>::new())?;
//! let response = client.ready().await?.call(request).await?;
//! assert_eq!(response.status(), StatusCode::OK);
//! assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! # Spans and events
//!
//! With the target `tower_http_retry`: one span `http_attempt` (INFO) per attempt, a child of the span
//! in which the service was called, with the fields of OpenTelemetry's semantic conventions for HTTP
//! clients: `otel.name`, `otel.kind`, `otel.status_code`, `http.request.method`,
//! `http.request.resend_count` (absent on the first attempt), `http.response.status_code`,
//! `server.address`, `server.port`, `error.type`. `url.full` is left out on purpose: it may hold
//! secrets. Before each retry the event `retrying` (DEBUG), and at the end of a failure `giving up`
//! (DEBUG where the first attempt's failure was not to be retried, otherwise WARN). The first has the
//! fields `error.type`, `delay` and `http.request.resend_count`; the second `give_up_reason`, `attempts` and
//! `waited`.
//!
//! # Features
//!
//! - `hyper` (on by default): reads the errors of hyper-util's client, of hyper and of h2.
//! - `metrics`: counts requests, attempts, retries and stops; see `describe_metrics`.
//! - `serde`: `RetrySettings`, the settings as a configuration file has them.
//! - `uuid`: idempotency keys that are UUIDs.
//! - `backoff`: the schedules of the crate `backoff`. Off by default, since it and its dependency
//!   `instant` are unmaintained (RUSTSEC-2025-0012, RUSTSEC-2024-0384).

#![cfg_attr(docsrs, feature(doc_cfg))]
// What a caller or a server sends must not be able to make it panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

mod retry;

mod body;

mod classify;

mod policy;

mod retry_after;

mod backoff;

mod budget;

mod rate_gate;

mod invalid_config;

mod outcome;

mod telemetry;

mod error_for_status;

mod sync;

/// The futures of [`Retry`] and [`ErrorForStatus`].
pub mod future {
    pub use crate::{error_for_status::ErrorForStatusFuture, retry::ResponseFuture};
}

pub use self::{
    backoff::{Backoff, BackoffFn, Delays, ExponentialBackoff, backoff_fn},
    body::{ReplayBody, ResponseBody, Superseded},
    budget::RetryBudget,
    classify::{ApiErrorsAsFailures, ApiFailureClass, FailureKind, Retryability, RetryableFailure},
    error_for_status::{
        ApiError, Error, ErrorForStatus, ErrorForStatusLayer, RateGatedError, TransportError,
        error_for_status,
    },
    invalid_config::InvalidConfig,
    outcome::{GiveUpReason, OutcomeHandle, RetryOutcome},
    policy::{IdempotencyKey, RequestOptions, RetryPolicy},
    rate_gate::RateGate,
    retry::{Retry, RetryLayer},
    telemetry::{GiveUpEvent, RetryEvent},
};

#[cfg(feature = "serde")]
#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
pub use self::policy::RetrySettings;
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub use self::telemetry::describe_metrics;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
