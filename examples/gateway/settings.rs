//! The command line.

use std::{net::SocketAddr, num::NonZeroU32, str::FromStr, time::Duration};

use clap::Parser;
use http::{
    StatusCode, Uri,
    uri::{Authority, Scheme},
};
use tower_http_retry::{ExponentialBackoff, RateGate, RetryBudget, RetryPolicy, Retryability};

use crate::BoxError;

/// A small reverse proxy that retries what is worth retrying.
///
/// Send it requests over HTTP/1.1, or over HTTP/2 with prior knowledge; it forwards them to the
/// upstream and sends a failed one again where that is safe: a 429 for any method; a 500, a 504, a
/// timeout or a broken connection for idempotent methods, or with an Idempotency-Key header. Every
/// response tells in x-retry-attempts how often the request was sent. Durations are written as 250ms,
/// 10s or 1m 30s. SIGINT and SIGTERM let the running requests end; a second one does not. RUST_LOG
/// sets what is logged on stderr.
#[derive(Debug, Parser)]
#[command(name = "gateway", verbatim_doc_comment)]
pub(crate) struct Settings {
    /// Where requests go: http://host[:port]
    #[arg(long, value_name = "URL", value_parser = upstream)]
    pub(crate) upstream: Authority,

    /// Speak HTTP/2 with prior knowledge to the upstream, as gRPC needs it
    #[arg(long)]
    pub(crate) upstream_http2: bool,

    /// Where to listen; with port 0 the system picks one, and stdout's first line tells which
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    pub(crate) listen: SocketAddr,

    /// How long running requests may take to end once the gateway is told to stop
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,

    /// How long one attempt may take: its upload, and the head of its response
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) attempt_timeout: Duration,

    /// How often a request is sent again at the most
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_retries: u32,

    /// How late the last attempt may start, counted from the request's arrival
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    max_elapsed: Duration,

    /// The longest wait before the first retry; it doubles with each further one
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    backoff_base: Duration,

    /// The longest wait before any retry, on top of what the upstream asks for
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    backoff_cap: Duration,

    /// How many bytes of a request's body are kept; a larger one is sent only once
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024)]
    replay_limit: usize,

    /// Retry this status too (or not), when idempotent unless said otherwise; may be repeated
    #[arg(long, value_name = "STATUS[=never|if-idempotent|always]")]
    classify_status: Vec<StatusRule>,

    /// Retry requests, too, that may do harm when they are carried out twice
    #[arg(long)]
    retry_non_idempotent: bool,

    /// Let every request retry, whatever others do
    #[arg(long, conflicts_with_all = ["budget_capacity", "budget_cost"])]
    no_budget: bool,

    /// The tokens that all retries share; a success gives one
    #[arg(long, value_name = "TOKENS", default_value = "50")]
    budget_capacity: NonZeroU32,

    /// What one retry costs
    #[arg(long, value_name = "TOKENS", default_value = "10")]
    budget_cost: NonZeroU32,

    /// Hold requests back that the upstream's rate limit would refuse
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

#[derive(Clone, Copy, Debug)]
struct StatusRule {
    status: StatusCode,
    retryability: Retryability,
}

impl FromStr for StatusRule {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        let (status, word) = text.split_once('=').unwrap_or((text, "if-idempotent"));
        Ok(Self {
            status: status.parse()?,
            retryability: match word {
                "never" => Retryability::Never,
                "if-idempotent" => Retryability::IfIdempotent,
                "always" => Retryability::Always,
                _ => return Err("neither never, if-idempotent nor always".into()),
            },
        })
    }
}

fn upstream(text: &str) -> Result<Authority, BoxError> {
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
