//! The compared policies: this crate's layer and its peers, with default settings except as noted.
//!
//! All retry up to three times. All use the same backoff: full jitter between 0 and 100 ms · 2ⁿ, at
//! most 10 s.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::Empty;
use tokio::time::{Sleep, sleep};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    retry::{
        Policy, Retry,
        budget::{Budget, TpsBudget},
    },
    util::BoxCloneService,
};
use tower_http::map_request_body::MapRequestBodyLayer;
use tower_http_retry::{
    Backoff, ExponentialBackoff, RateGate, ReplayBody, RetryLayer, RetryPolicy,
};
use tower_resilience_retry::{FnInterval, RetryBudgetBuilder, RetryBudgetConfigError};

pub(crate) type Body = Empty<Bytes>;

/// The simulated server and the layers inside the retry layer. A call is one attempt.
pub(crate) type Server = BoxCloneService<Request<Body>, Response<Body>, BoxError>;

/// A process that sends requests. All clones share one retry layer.
pub(crate) type Client = BoxCloneService<Request<Body>, StatusCode, BoxError>;

/// A policy in the experiments with an outage and with random failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolicyKind {
    None,
    Unbudgeted,
    Tower,
    TowerResilience,
    Ours,
}

impl PolicyKind {
    pub(crate) const ALL: [Self; 5] = [
        Self::None,
        Self::Unbudgeted,
        Self::Tower,
        Self::TowerResilience,
        Self::Ours,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unbudgeted => "unbudgeted",
            Self::Tower => "tower",
            Self::TowerResilience => "tower-resilience",
            Self::Ours => "ours",
        }
    }

    pub(crate) fn build_client(self, server: Server) -> Client {
        match self {
            Self::None => box_client(server),
            Self::Unbudgeted => wrap_in_ours(RetryPolicy::new().no_budget(), server),
            Self::Tower => wrap_in_tower(TowerPolicy::with_budget(), server),
            Self::TowerResilience => wrap_in_tower_resilience(server),
            Self::Ours => wrap_in_ours(RetryPolicy::new(), server),
        }
    }
}

/// A strategy in the experiment with a rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    Backoff,
    RetryAfter,
    Tower,
    Ours,
    OursGate,
}

impl Strategy {
    pub(crate) const ALL: [Self; 5] = [
        Self::Backoff,
        Self::RetryAfter,
        Self::Tower,
        Self::Ours,
        Self::OursGate,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Backoff => "backoff",
            Self::RetryAfter => "retry-after",
            Self::Tower => "tower",
            Self::Ours => "ours",
            Self::OursGate => "ours-gate",
        }
    }

    pub(crate) fn build_client(self, server: Server) -> Client {
        match self {
            Self::Backoff => wrap_in_tower(TowerPolicy::new(DelaySource::Backoff), server),
            Self::RetryAfter => wrap_in_tower(TowerPolicy::new(DelaySource::RetryAfter), server),
            Self::Tower => wrap_in_tower(TowerPolicy::with_budget(), server),
            Self::Ours => wrap_in_ours(RetryPolicy::new(), server),
            Self::OursGate => wrap_in_ours(RetryPolicy::new().rate_gate(RateGate::new()), server),
        }
    }
}

/// Wraps the server in this crate's layer.
fn wrap_in_ours(policy: RetryPolicy, server: Server) -> Client {
    let without_body = MapRequestBodyLayer::new(|_: ReplayBody<Body>| Body::new());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(without_body);
    box_client(stack.service(server))
}

/// Wraps the server in tower's layer.
fn wrap_in_tower(policy: TowerPolicy, server: Server) -> Client {
    box_client(Retry::new(policy, server))
}

/// Wraps the server in the layer of `tower-resilience-retry`.
///
/// It uses the crate's AIMD budget: the token bucket runs on the system clock and would not refill
/// under the paused clock. It uses this crate's jitter: its own cannot be seeded.
fn wrap_in_tower_resilience(server: Server) -> Client {
    let layer = tower_resilience_retry::RetryLayer::builder()
        .max_attempts(MAX_RETRIES + 1)
        .backoff(FnInterval::new(draw_delay))
        .retry_on_response(is_retryable)
        .budget(build_aimd_budget().expect("the default settings are valid"))
        .build();
    box_client(layer.layer(server))
}

fn build_aimd_budget()
-> Result<Arc<dyn tower_resilience_retry::RetryBudget>, RetryBudgetConfigError> {
    RetryBudgetBuilder::new().aimd().build()
}

/// Reduces responses to their status and boxes the service.
fn box_client<S, R>(service: S) -> Client
where
    S: Service<Request<Body>, Response = Response<R>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: 'static,
{
    service
        .map_response(|response: Response<R>| response.status())
        .boxed_clone()
}

const MAX_RETRIES: usize = 3;

/// A policy for `tower::retry`, which leaves the policy to its users.
#[derive(Clone)]
struct TowerPolicy {
    retries: usize,
    delay_source: DelaySource,
    budget: Option<Arc<TpsBudget>>,
}

#[derive(Clone, Copy)]
enum DelaySource {
    Backoff,
    RetryAfter,
}

impl TowerPolicy {
    fn new(delay_source: DelaySource) -> Self {
        Self {
            retries: 0,
            delay_source,
            budget: None,
        }
    }

    /// Creates a policy with backoff and tower's default budget.
    fn with_budget() -> Self {
        Self {
            budget: Some(Arc::default()),
            ..Self::new(DelaySource::Backoff)
        }
    }

    /// Deposits for a success, as in the documentation of `tower::retry`.
    fn deposit(&self) {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    /// Withdraws for a retry. Returns `false` if the budget is exhausted.
    fn withdraw(&self) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.withdraw())
    }
}

impl<R, E> Policy<Request<Body>, Response<R>, E> for TowerPolicy {
    type Future = Sleep;

    fn retry(
        &mut self,
        _: &mut Request<Body>,
        result: &mut Result<Response<R>, E>,
    ) -> Option<Sleep> {
        let response = result.as_ref().ok();
        if response.is_some_and(|response| !is_retryable(response)) {
            self.deposit();
            return None;
        }
        if self.retries == MAX_RETRIES || !self.withdraw() {
            return None;
        }
        let delay = match self.delay_source {
            DelaySource::Backoff => draw_delay(self.retries),
            DelaySource::RetryAfter => response.and_then(parse_retry_after).unwrap_or_default(),
        };
        self.retries += 1;
        Some(sleep(delay))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

fn is_retryable<R>(response: &Response<R>) -> bool {
    let status = response.status();
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// Draws the delay before retry number `retry`, counted from 0, with full jitter.
fn draw_delay(retry: usize) -> Duration {
    let mut delays = ExponentialBackoff::default().delays();
    delays.nth(retry).unwrap_or_default()
}

fn parse_retry_after<R>(response: &Response<R>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    seconds.parse().ok().map(Duration::from_secs)
}
