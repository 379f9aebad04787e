//! Spans as exported to OpenTelemetry, and propagation of the trace context.

#[allow(
    dead_code,
    unused_imports,
    reason = "each suite uses a part of the helpers"
)]
mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use opentelemetry::{
    KeyValue, Value,
    propagation::{Injector, TextMapPropagator},
    trace::{SpanKind, Status, TracerProvider},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tower::{Layer, ServiceExt};
use tower_http_retry::RetryLayer;
use tracing::{Instrument, Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::prelude::*;

use common::{RequestBody, ResponseExt, SECOND, ScriptedServer, policy_with_delay, response};

type Script = [Result<u16, io::ErrorKind>];
type Fields<'a> = BTreeMap<&'a str, Value>;

/// The position of the layer that propagates the trace context, relative to the retry layer.
#[derive(Clone, Copy, PartialEq)]
enum Propagation {
    Inside,
    Outside,
}

struct HeaderInjector<'a>(&'a mut HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::try_from(key).unwrap();
        self.0.insert(name, HeaderValue::try_from(value).unwrap());
    }
}

/// Adds the context of the current span, as a propagating layer does.
fn propagate<B>(mut request: Request<B>) -> Request<B> {
    let context = Span::current().context();
    let mut headers = HeaderInjector(request.headers_mut());
    TraceContextPropagator::new().inject_context(&context, &mut headers);
    request
}

/// The exported spans of a call.
struct Exported {
    caller: SpanData,
    attempts: Vec<SpanData>,
    /// The header `traceparent` of each attempt.
    traceparents: Vec<String>,
}

/// Makes a call in a span named `pay`, and returns the exported spans.
fn export_call(script: &Script, propagation: Propagation) -> Exported {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    // Without the fields that any span gets.
    let backend = tracing_opentelemetry::layer()
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_level(false)
        .with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry()
        .with(LevelFilter::DEBUG)
        .with(backend);
    let traceparents = tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let caller = tracing::info_span!("pay");
        runtime.block_on(send(script, propagation).instrument(caller))
    });
    provider.force_flush().unwrap();
    // Spans are exported when they end: the attempts in order, then the caller.
    let mut attempts = exporter.get_finished_spans().unwrap();
    let caller = attempts.pop().unwrap();
    assert_eq!(caller.name, "pay");
    Exported {
        caller,
        attempts,
        traceparents,
    }
}

/// Sends a request with many secrets, and returns the header `traceparent` of each attempt.
async fn send(script: &Script, propagation: Propagation) -> Vec<String> {
    let script = script.iter().map(|reply| {
        reply.map(|status| {
            response(status)
                .with_text("secret")
                .with_header("set-cookie", "session=secret")
        })
    });
    let server = ScriptedServer::new(script);
    let inner = server.clone().map_request(|request| match propagation {
        Propagation::Inside => propagate(request),
        Propagation::Outside => request,
    });
    let request = Request::get("https://secret:secret@api.example:8443/secret?token=secret")
        .header("authorization", "Bearer secret")
        .body(RequestBody::from("secret"))
        .unwrap();
    let request = match propagation {
        Propagation::Inside => request,
        Propagation::Outside => propagate(request),
    };
    let client = RetryLayer::new(policy_with_delay(SECOND)).layer(inner);
    drop(client.oneshot(request).await);
    server.assert_script_completed();
    let received = server.received();
    let traceparents = received
        .iter()
        .map(|request| request.headers["traceparent"].to_str().unwrap().to_owned());
    traceparents.collect()
}

fn fields(pairs: &[KeyValue]) -> Fields<'_> {
    let fields: Fields<'_> = pairs
        .iter()
        .map(|pair| (pair.key.as_str(), pair.value.clone()))
        .collect();
    assert_eq!(fields.len(), pairs.len(), "duplicate field: {pairs:?}");
    fields
}

/// Returns the events of a span, without the two fields that any event gets.
fn events(span: &SpanData) -> Vec<(&str, Fields<'_>)> {
    let events = span.events.iter().map(|event| {
        let mut fields = fields(&event.attributes);
        fields.retain(|name, _| !["level", "target"].contains(name));
        (event.name.as_ref(), fields)
    });
    events.collect()
}

/// Returns the header `traceparent` that makes `span` the parent of a remote span.
fn traceparent(span: &SpanData) -> String {
    let context = &span.span_context;
    format!("00-{}-{}-01", context.trace_id(), context.span_id())
}

#[test]
fn attempts_are_client_spans_with_semantic_convention_fields() {
    let script = [Ok(429), Err(io::ErrorKind::TimedOut), Ok(200)];
    let Exported {
        caller, attempts, ..
    } = export_call(&script, Propagation::Inside);
    assert_eq!(attempts.len(), 3);

    let expected = [
        (Some(429), None, Some("429")),
        (None, Some(1), Some("timeout")),
        (Some(200), Some(2), None),
    ];
    for (span, (status, resends, error)) in attempts.iter().zip(expected) {
        assert_eq!(span.name, "GET");
        assert_eq!(span.span_kind, SpanKind::Client);
        assert_eq!(span.parent_span_id, caller.span_context.span_id());
        assert_eq!(span.span_context.trace_id(), caller.span_context.trace_id());
        // The conventions leave a success unset. `error.type` replaces a description of the error.
        let span_status = error.map_or(Status::Unset, |_| Status::error(""));
        assert_eq!(span.status, span_status);
        let mut expected = Fields::from([
            ("http.request.method", "GET".into()),
            ("server.address", "api.example".into()),
            ("server.port", 8443.into()),
        ]);
        expected.extend(status.map(|status| ("http.response.status_code", status.into())));
        expected.extend(resends.map(|resends| ("http.request.resend_count", resends.into())));
        expected.extend(error.map(|error| ("error.type", error.into())));
        assert_eq!(fields(&span.attributes), expected);
    }
}

#[test]
fn retries_are_events_of_caller_span() {
    let script = [Ok(429), Err(io::ErrorKind::TimedOut), Ok(200)];
    let Exported {
        caller, attempts, ..
    } = export_call(&script, Propagation::Inside);
    let retrying = |error: &'static str, resend_count: i64| {
        let fields = Fields::from([
            ("error.type", error.into()),
            ("delay", "1s".into()),
            ("http.request.resend_count", resend_count.into()),
        ]);
        ("retrying", fields)
    };
    assert_eq!(
        events(&caller),
        [retrying("429", 1), retrying("timeout", 2)]
    );
    // The last attempt succeeded.
    assert_eq!(caller.status, Status::Unset);
    assert!(attempts.iter().all(|attempt| attempt.events.is_empty()));
}

#[test]
fn give_up_is_event_of_caller_span() {
    let table: [(&Script, &[&str], &str); 3] = [
        (&[Ok(404)], &["giving up"], "not_retryable"),
        (
            &[Err(io::ErrorKind::TimedOut), Ok(404)],
            &["retrying", "giving up"],
            "not_retryable",
        ),
        (
            &[Ok(500); 4],
            &["retrying", "retrying", "retrying", "giving up"],
            "retries_exhausted",
        ),
    ];
    for (script, names, reason) in table {
        let Exported {
            caller, attempts, ..
        } = export_call(script, Propagation::Inside);
        assert_eq!(attempts.len(), script.len());
        let events = events(&caller);
        assert!(events.iter().map(|(name, _)| name).eq(names));
        let (_, fields) = events.last().unwrap();
        assert_eq!(fields["give_up_reason"], reason.into());
        let attempt_count = i64::try_from(script.len()).unwrap();
        assert_eq!(fields["attempts"], attempt_count.into());
        // The caller decides if its own span failed.
        assert_eq!(caller.status, Status::Unset);
        assert!(attempts.iter().all(|attempt| attempt.events.is_empty()));
    }
}

#[test]
fn exported_spans_contain_no_secrets() {
    let scripts: [&Script; 2] = [&[Ok(429), Ok(200)], &[Ok(500); 4]];
    for script in scripts {
        let Exported {
            caller, attempts, ..
        } = export_call(script, Propagation::Inside);
        let exported = format!("{caller:?} {attempts:?}");
        // The export is not empty.
        assert!(exported.contains("api.example") && exported.contains("retrying"));
        assert!(!exported.contains("secret"), "{exported}");
        assert!(!exported.contains("url."), "{exported}");
    }
}

#[test]
fn propagation_inside_retry_layer_sends_context_of_attempt() {
    let exported = export_call(&[Ok(504), Ok(429), Ok(200)], Propagation::Inside);
    let attempts: Vec<_> = exported.attempts.iter().map(traceparent).collect();
    assert_eq!(attempts.len(), 3);
    assert_eq!(exported.traceparents, attempts);
    let trace_id = exported.caller.span_context.trace_id();
    for attempt in &exported.attempts {
        assert_eq!(attempt.span_context.trace_id(), trace_id);
    }
    let distinct: BTreeSet<_> = attempts.iter().collect();
    assert_eq!(distinct.len(), 3);
}

#[test]
fn propagation_outside_retry_layer_sends_context_of_caller() {
    let exported = export_call(&[Ok(504), Ok(429), Ok(200)], Propagation::Outside);
    let caller = traceparent(&exported.caller);
    assert_eq!(exported.traceparents, vec![caller; 3]);
}
