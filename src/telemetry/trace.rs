//! Spans and events: one span per attempt, one event before each retry and one after a failure.
//!
//! Names follow the OpenTelemetry semantic conventions for HTTP client spans. Of the request, only the
//! method, the host and the port are recorded: no header value, path, query or body. OpenTelemetry
//! exporters stringify unsigned integers, so numbers are recorded as `i64`.

use http::{Method, Request, StatusCode};
use tracing::{Level, Span, field, span::Entered};

use crate::{
    events::{Cause, GiveUpEvent, RetryEvent},
    outcome::GiveUpReason,
};

const TARGET: &str = "tower_http_retry";

macro_rules! attempt_span {
    ($request:expr, $($parent:tt)*) => {
        tracing::span!(
            target: TARGET,
            $($parent)*
            Level::INFO,
            "http_attempt",
            otel.name = otel_method($request.method()).unwrap_or("HTTP"),
            otel.kind = "client",
            otel.status_code = field::Empty,
            http.request.method = otel_method($request.method()).unwrap_or("_OTHER"),
            http.request.resend_count = field::Empty,
            http.response.status_code = field::Empty,
            server.address = server_address($request),
            server.port = server_port($request),
            "error.type" = field::Empty,
        )
    };
}

/// The spans of one request.
pub(super) struct Trace {
    /// `None` if the span of the first attempt is disabled.
    spans: Option<Box<Spans>>,
}

struct Spans {
    /// The span in which the service was called.
    parent: Span,
    attempt: Span,
}

impl Trace {
    #[inline]
    pub(super) fn new() -> Self {
        Self { spans: None }
    }

    /// Keeps the current span as the parent of attempts that begin later.
    pub(super) fn new_queued() -> Self {
        let parent = Span::current();
        let attempt = Span::none();
        let spans = Some(Box::new(Spans { parent, attempt }));
        Self { spans }
    }

    #[inline]
    pub(super) fn begin_attempt<B>(&mut self, request: &Request<B>, resend_count: u32) {
        match &mut self.spans {
            Some(spans) => spans.begin_attempt(request, resend_count),
            None if resend_count == 0 => {
                let attempt = attempt_span!(request,);
                self.spans = (!attempt.is_disabled()).then(|| {
                    let parent = Span::current();
                    Box::new(Spans { parent, attempt })
                });
            }
            None => {}
        }
    }

    #[inline]
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.spans.as_ref().map(|spans| spans.attempt.enter())
    }

    #[inline]
    pub(super) fn on_response(&mut self, status: StatusCode, failed: Option<Cause>) {
        if let Some(spans) = &mut self.spans {
            spans.on_response(status, failed);
        }
    }

    pub(super) fn on_error(&mut self, cause: Cause) {
        if let Some(spans) = &mut self.spans {
            spans.end_attempt(Some(cause));
        }
    }

    pub(super) fn in_parent_span(&self, report: impl FnOnce()) {
        match &self.spans {
            Some(spans) => spans.parent.in_scope(report),
            None => report(),
        }
    }
}

impl Spans {
    #[cold]
    fn begin_attempt<B>(&mut self, request: &Request<B>, resend_count: u32) {
        self.attempt = attempt_span!(request, parent: &self.parent,);
        if resend_count > 0 {
            self.attempt
                .record("http.request.resend_count", i64::from(resend_count));
        }
    }

    fn on_response(&mut self, status: StatusCode, failed: Option<Cause>) {
        self.attempt
            .record("http.response.status_code", i64::from(status.as_u16()));
        self.end_attempt(failed);
    }

    fn end_attempt(&mut self, failed: Option<Cause>) {
        if let Some(cause) = failed {
            self.attempt.record("error.type", cause.error_type());
            self.attempt.record("otel.status_code", "ERROR");
        }
        self.attempt = Span::none();
    }
}

pub(super) fn retry_event(event: &RetryEvent<'_>) {
    tracing::debug!(
        target: TARGET,
        {
            "error.type" = event.failure.cause.error_type(),
            delay = ?event.delay,
            http.request.resend_count = i64::from(event.attempt),
        },
        "retrying"
    );
}

pub(super) fn give_up_event(event: &GiveUpEvent<'_>) {
    macro_rules! give_up_event {
        ($level:expr) => {
            tracing::event!(
                target: TARGET,
                $level,
                give_up_reason = event.reason.as_str(),
                attempts = i64::from(event.outcome.attempts),
                total_delay = ?event.outcome.total_delay,
                "giving up"
            )
        };
    }

    let final_failure = matches!(
        event.reason,
        GiveUpReason::NotRetryable | GiveUpReason::InvalidToken
    );
    if final_failure && event.outcome.attempts == 1 {
        give_up_event!(Level::DEBUG);
    } else {
        give_up_event!(Level::WARN);
    }
}

/// Returns the method if the semantic conventions know it.
fn otel_method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 10] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
    ];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

/// Returns the host, an IPv6 address without the brackets of the URI.
fn server_address<B>(request: &Request<B>) -> Option<&str> {
    let host = request.uri().host()?;
    let address = host
        .strip_prefix('[')
        .and_then(|address| address.strip_suffix(']'));
    Some(address.unwrap_or(host))
}

fn server_port<B>(request: &Request<B>) -> Option<i64> {
    let uri = request.uri();
    let port = uri.port_u16().or_else(|| match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    });
    port.map(i64::from)
}
