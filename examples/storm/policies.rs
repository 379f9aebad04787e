//! Who is compared: the crate's own layer and its peers, each as it comes.
//!
//! All retry up to three times, with the same schedule: full jitter below 100 ms · 2ⁿ, at most 10 s.

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

/// One attempt: the simulated server, with whatever stands between it and the retries.
pub(crate) type Server = BoxCloneService<Request<Body>, Response<Body>, BoxError>;

/// One process that sends requests: all clones share one layer.
pub(crate) type Client = BoxCloneService<Request<Body>, StatusCode, BoxError>;

/// Who faces the outage and the independent failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retrying {
    None,
    Unbudgeted,
    Tower,
    TowerResilience,
    Ours,
}

impl Retrying {
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

    pub(crate) fn client(self, server: Server) -> Client {
        match self {
            Self::None => client(server),
            Self::Unbudgeted => ours(RetryPolicy::new().no_budget(), server),
            Self::Tower => client(Retry::new(HandWritten::with_budget(), server)),
            Self::TowerResilience => tower_resilience(server),
            Self::Ours => ours(RetryPolicy::new(), server),
        }
    }
}

/// Who faces the rate limit.
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

    pub(crate) fn client(self, server: Server) -> Client {
        match self {
            Self::Backoff => client(Retry::new(HandWritten::new(Wait::Backoff), server)),
            Self::RetryAfter => client(Retry::new(HandWritten::new(Wait::RetryAfter), server)),
            Self::Tower => client(Retry::new(HandWritten::with_budget(), server)),
            Self::Ours => ours(RetryPolicy::new(), server),
            Self::OursGate => ours(RetryPolicy::new().rate_gate(RateGate::new()), server),
        }
    }
}

/// This crate's layer.
fn ours(policy: RetryPolicy, server: Server) -> Client {
    let without_body = MapRequestBodyLayer::new(|_: ReplayBody<Body>| Body::new());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(without_body);
    client(stack.service(server))
}

/// The layer of `tower-resilience-retry`, with its AIMD budget: its token bucket runs on the system's
/// clock and would never refill here. Its own jitter cannot be seeded.
fn tower_resilience(server: Server) -> Client {
    let layer = tower_resilience_retry::RetryLayer::builder()
        .max_attempts(MAX_RETRIES + 1)
        .backoff(FnInterval::new(full_jitter))
        .retry_on_response(is_worth_retrying)
        .budget(aimd_budget().expect("its own defaults are valid"))
        .build();
    client(layer.layer(server))
}

fn aimd_budget() -> Result<Arc<dyn tower_resilience_retry::RetryBudget>, RetryBudgetConfigError> {
    RetryBudgetBuilder::new().aimd().build()
}

fn client<S, R>(service: S) -> Client
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

/// What users of `tower::retry` write themselves.
#[derive(Clone)]
struct HandWritten {
    retries: usize,
    wait: Wait,
    budget: Option<Arc<TpsBudget>>,
}

#[derive(Clone, Copy)]
enum Wait {
    Backoff,
    RetryAfter,
}

impl HandWritten {
    fn new(wait: Wait) -> Self {
        Self {
            retries: 0,
            wait,
            budget: None,
        }
    }

    /// With tower's budget as it comes.
    fn with_budget() -> Self {
        Self {
            budget: Some(Arc::default()),
            ..Self::new(Wait::Backoff)
        }
    }

    /// As tower's own example spends it: successes deposit, retries withdraw.
    fn deposit(&self) {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    fn withdraw(&self) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.withdraw())
    }
}

impl<R, E> Policy<Request<Body>, Response<R>, E> for HandWritten {
    type Future = Sleep;

    fn retry(
        &mut self,
        _: &mut Request<Body>,
        result: &mut Result<Response<R>, E>,
    ) -> Option<Sleep> {
        let response = result.as_ref().ok();
        if response.is_some_and(|response| !is_worth_retrying(response)) {
            self.deposit();
            return None;
        }
        if self.retries == MAX_RETRIES || !self.withdraw() {
            return None;
        }
        let wait = match self.wait {
            Wait::Backoff => full_jitter(self.retries),
            Wait::RetryAfter => response.and_then(retry_after).unwrap_or_default(),
        };
        self.retries += 1;
        Some(sleep(wait))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

fn is_worth_retrying<R>(response: &Response<R>) -> bool {
    let status = response.status();
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The delay before retry `retry`, drawn independently of those before.
fn full_jitter(retry: usize) -> Duration {
    let mut delays = ExponentialBackoff::default().delays();
    delays.nth(retry).unwrap_or_default()
}

fn retry_after<R>(response: &Response<R>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    seconds.parse().ok().map(Duration::from_secs)
}
