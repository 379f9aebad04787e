//! What an operator sees: one span an attempt, an event before each retry and one at the end of a
//! failure. Names follow OpenTelemetry's semantic conventions for HTTP client spans.
//!
//! Nothing that a caller or a server wrote is recorded beyond the method, the host and the port: no
//! header value, no path, no query, no body. Numbers are signed: what exports spans to OpenTelemetry
//! makes text of the others.

use http::{Method, Request, StatusCode};
use tracing::{Level, Span, field, span::Entered};

use crate::{
    classify::FailureKind,
    outcome::GiveUpReason,
    policy::RetryPolicy,
    telemetry::events::{GiveUpEvent, RetryEvent},
};

const TARGET: &str = "tower_http_retry";

/// Watches one request; the one place from which spans and events, metrics and the user's own functions
/// learn what happens to it.
pub(crate) struct Observer {
    /// `None` where nobody records the first attempt's span.
    spans: Option<Box<Spans>>,
}

struct Spans {
    /// The span in which the service was called.
    caller: Span,
    attempt: Span,
}

impl Spans {
    fn answered(&mut self, status: StatusCode, failed: bool) {
        self.attempt
            .record("http.response.status_code", i64::from(status.as_u16()));
        self.end_attempt(failed.then_some(status.as_str()));
    }

    fn end_attempt(&mut self, error: Option<&str>) {
        if let Some(error) = error {
            self.attempt.record("error.type", error);
            self.attempt.record("otel.status_code", "ERROR");
        }
        self.attempt = Span::none();
    }
}

macro_rules! attempt_span {
    ($request:expr, $($parent:tt)*) => {
        tracing::span!(
            target: TARGET,
            $($parent)*
            Level::INFO,
            "http_attempt",
            otel.name = known($request.method()).unwrap_or("HTTP"),
            otel.kind = "client",
            otel.status_code = field::Empty,
            http.request.method = known($request.method()).unwrap_or("_OTHER"),
            http.request.resend_count = field::Empty,
            http.response.status_code = field::Empty,
            server.address = address($request),
            server.port = port($request),
            "error.type" = field::Empty,
        )
    };
}

macro_rules! giving_up {
    ($level:expr, $stop:expr, $outcome:expr) => {
        tracing::event!(
            target: TARGET,
            $level,
            give_up_reason = $stop.as_str(),
            attempts = i64::from($outcome.attempts),
            total_delay = ?$outcome.waited,
            "giving up"
        )
    };
}

impl Observer {
    /// The first attempt begins.
    pub(crate) fn of_first_attempt<B>(request: &Request<B>) -> Self {
        let attempt = attempt_span!(request,);
        let spans = (!attempt.is_disabled()).then(|| {
            let caller = Span::current();
            Box::new(Spans { caller, attempt })
        });
        Self { spans }
    }

    /// The first attempt has to wait: its span will be a child of the present one.
    pub(crate) fn waiting() -> Self {
        let caller = Span::current();
        let attempt = Span::none();
        let spans = Some(Box::new(Spans { caller, attempt }));
        Self { spans }
    }

    /// An attempt that waited begins, after so many others.
    pub(crate) fn attempt<B>(&mut self, request: &Request<B>, resend_count: u32) {
        if let Some(spans) = &mut self.spans {
            spans.attempt = attempt_span!(request, parent: &spans.caller,);
            if resend_count > 0 {
                spans
                    .attempt
                    .record("http.request.resend_count", i64::from(resend_count));
            }
        }
    }

    /// Enters the span of the attempt, until what is returned is dropped.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        self.spans.as_ref().map(|spans| spans.attempt.enter())
    }

    /// The attempt has ended with a response.
    #[inline]
    pub(crate) fn answered(&mut self, status: StatusCode, failed: bool) {
        if let Some(spans) = &mut self.spans {
            spans.answered(status, failed);
        }
    }

    /// The attempt has ended with an inner error.
    pub(crate) fn broke(&mut self, kind: FailureKind) {
        if let Some(spans) = &mut self.spans {
            spans.end_attempt(Some(kind.as_str()));
        }
    }

    /// The request will be sent again.
    pub(crate) fn retrying<C>(&self, policy: &RetryPolicy<C>, event: RetryEvent) {
        policy.meter.retrying(&event);
        self.in_caller(|| {
            event.failure.with_str(|failure| {
                tracing::debug!(
                    target: TARGET,
                    {
                        "error.type" = failure,
                        delay = ?event.delay,
                        http.request.resend_count = i64::from(event.attempt),
                    },
                    "retrying"
                );
            });
            if let Some(callback) = &policy.callbacks.on_retry {
                callback(&event);
            }
        });
    }

    /// The call ends with a failure.
    pub(crate) fn giving_up<C>(&self, policy: &RetryPolicy<C>, event: GiveUpEvent) {
        policy.meter.giving_up(&event);
        let GiveUpEvent { stop, outcome, .. } = event;
        let surfaced = matches!(
            stop,
            GiveUpReason::NotRetryable | GiveUpReason::InvalidToken
        );
        self.in_caller(|| {
            if surfaced && outcome.attempts == 1 {
                giving_up!(Level::DEBUG, stop, outcome);
            } else {
                giving_up!(Level::WARN, stop, outcome);
            }
            if let Some(callback) = &policy.callbacks.on_give_up {
                callback(&event);
            }
        });
    }

    fn in_caller(&self, report: impl FnOnce()) {
        match &self.spans {
            Some(spans) => spans.caller.in_scope(report),
            None => report(),
        }
    }
}

/// The method, where it is one of those that the conventions know.
fn known(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 10] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
    ];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

/// The host; an IPv6 address without the brackets that a URI needs.
fn address<B>(request: &Request<B>) -> Option<&str> {
    let host = request.uri().host()?;
    let address = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    Some(address.unwrap_or(host))
}

fn port<B>(request: &Request<B>) -> Option<i64> {
    let uri = request.uri();
    let port = uri.port_u16().or_else(|| match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    });
    port.map(i64::from)
}
