//! The command line.

use std::{net::SocketAddr, num::NonZeroU32, str::FromStr, time::Duration};

use clap::Parser;
use http::{
    StatusCode, Uri,
    uri::{Authority, Scheme},
};
use tower_http_retry::{ExponentialBackoff, RateGate, RetryBudget, RetryPolicy, Retryability};

use crate::BoxError;

/// A small reverse proxy that retries failed requests when it is safe.
///
/// It accepts HTTP/1.1, or HTTP/2 with prior knowledge, and forwards requests to the upstream. It
/// retries a 429 for any method. It retries a 500, a 504, a timeout or a connection error for
/// idempotent methods and for requests with an Idempotency-Key header. The response header
/// x-retry-attempts contains the number of attempts. Durations are written as 250ms, 10s or 1m 30s.
/// After SIGINT or SIGTERM, running requests may complete; a second signal ends them. RUST_LOG sets
/// the log level on stderr.
#[derive(Debug, Parser)]
#[command(name = "gateway", verbatim_doc_comment)]
pub(crate) struct Settings {
    /// The server to forward requests to: http://host[:port]
    #[arg(long, value_name = "URL", value_parser = parse_upstream)]
    pub(crate) upstream: Authority,

    /// Use HTTP/2 with prior knowledge to the upstream, as gRPC requires
    #[arg(long)]
    pub(crate) upstream_http2: bool,

    /// The address to listen on, printed to stdout; with port 0 the system picks a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    pub(crate) listen: SocketAddr,

    /// The time for running requests to complete after a shutdown signal
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,

    /// The timeout of each attempt, until the response headers arrive
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) attempt_timeout: Duration,

    /// The maximum number of retries of a request
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_retries: u32,

    /// The deadline for the start of the last attempt, counted from the request's arrival
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    max_elapsed: Duration,

    /// The maximum delay before the first retry; it doubles with each further retry
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    backoff_base: Duration,

    /// The maximum delay before any retry, in addition to the upstream's Retry-After
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    backoff_cap: Duration,

    /// The maximum number of bytes of a request body that are buffered for replay
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024)]
    replay_limit: usize,

    /// Set when a status is retried, if-idempotent by default; can be used several times
    #[arg(long, value_name = "STATUS[=never|if-idempotent|always]")]
    classify_status: Vec<StatusRule>,

    /// Also retry requests that are not idempotent
    #[arg(long)]
    retry_non_idempotent: bool,

    /// Do not limit retries by a budget
    #[arg(long, conflicts_with_all = ["budget_capacity", "budget_cost"])]
    no_budget: bool,

    /// The capacity of the retry budget that all requests share; a success deposits one token
    #[arg(long, value_name = "TOKENS", default_value = "50")]
    budget_capacity: NonZeroU32,

    /// The cost of a retry
    #[arg(long, value_name = "TOKENS", default_value = "10")]
    budget_cost: NonZeroU32,

    /// Delay requests that the upstream's rate limit would reject
    #[arg(long)]
    rate_gate: bool,
}

impl Settings {
    pub(crate) fn policy(&self) -> Result<RetryPolicy, BoxError> {
        let mut policy = RetryPolicy::new()
            .max_retries(self.max_retries)
            .max_elapsed(self.max_elapsed)
            .backoff(ExponentialBackoff::new(self.backoff_base, self.backoff_cap))
            .replay_limit(self.replay_limit)
            .retry_non_idempotent(self.retry_non_idempotent);
        policy = match self.no_budget {
            true => policy.no_budget(),
            false => policy.budget(RetryBudget::new(self.budget_capacity, self.budget_cost)?),
        };
        if self.rate_gate {
            policy = policy.rate_gate(RateGate::new());
        }
        for rule in &self.classify_status {
            policy = policy.classify_status(rule.status, rule.retryability)?;
        }
        Ok(policy)
    }
}

/// A value of `--classify-status`.
#[derive(Clone, Copy, Debug)]
struct StatusRule {
    status: StatusCode,
    retryability: Retryability,
}

impl FromStr for StatusRule {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        let (status, retryability) = text.split_once('=').unwrap_or((text, "if-idempotent"));
        Ok(Self {
            status: status.parse()?,
            retryability: match retryability {
                "never" => Retryability::Never,
                "if-idempotent" => Retryability::IfIdempotent,
                "always" => Retryability::Always,
                _ => return Err("expected never, if-idempotent or always".into()),
            },
        })
    }
}

fn parse_upstream(text: &str) -> Result<Authority, BoxError> {
    let uri: Uri = text.parse()?;
    let parts = uri.into_parts();
    if parts.scheme.as_ref() == Some(&Scheme::HTTPS) {
        return Err("the gateway speaks no TLS, use http://".into());
    }
    match (parts.scheme, parts.authority, parts.path_and_query) {
        (Some(scheme), Some(authority), Some(path))
            if scheme == Scheme::HTTP && path == "/" && !authority.as_str().contains('@') =>
        {
            Ok(authority)
        }
        _ => Err("not of the form http://host[:port]".into()),
    }
}
