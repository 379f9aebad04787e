//! What an OpenTelemetry backend sees, and what the next service is told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, iter,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use opentelemetry::{
    KeyValue, Value,
    propagation::{Injector, TextMapPropagator},
    trace::{SpanKind, Status, TracerProvider},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_http_retry::{ReplayBody, RetryLayer, RetryPolicy, backoff_fn};
use tracing::{Instrument, Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::prelude::*;

type Body = Full<Bytes>;
type Answers = [Result<u16, io::ErrorKind>];
type Fields<'a> = BTreeMap<&'a str, Value>;

/// Where the layer is that sends the trace along.
#[derive(Clone, Copy, PartialEq)]
enum Propagation {
    Inside,
    Outside,
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::try_from(key).unwrap();
        self.0.insert(name, HeaderValue::try_from(value).unwrap());
    }
}

/// What a propagating layer does: the span that is entered goes along.
fn propagate<B>(mut request: Request<B>) -> Request<B> {
    let context = Span::current().context();
    let mut headers = Headers(request.headers_mut());
    TraceContextPropagator::new().inject_context(&context, &mut headers);
    request
}

/// One call as the backend and the next service see it.
struct Seen {
    caller: SpanData,
    attempts: Vec<SpanData>,
    /// The `traceparent` of each attempt.
    parents: Vec<String>,
}

fn call(answers: &Answers, propagation: Propagation) -> Seen {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    // Without what would be the same for any span: where it is in the code, its thread, its target.
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
    let parents = tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let caller = tracing::info_span!("pay");
        runtime.block_on(send(answers, propagation).instrument(caller))
    });
    provider.force_flush().unwrap();
    // A span is exported when it ends: the attempts in their order, then the caller's.
    let mut attempts = exporter.get_finished_spans().unwrap();
    let caller = attempts.pop().unwrap();
    assert_eq!(caller.name, "pay");
    Seen {
        caller,
        attempts,
        parents,
    }
}

/// Sends a request full of secrets, and returns the `traceparent` of each attempt.
async fn send(answers: &Answers, propagation: Propagation) -> Vec<String> {
    let parents = Arc::new(Mutex::new(Vec::new()));
    let seen = parents.clone();
    let mut left = answers.iter().copied();
    let answers = Arc::new(Mutex::new(move || left.next()));
    let server = service_fn(|request: Request<ReplayBody<Body>>| {
        let parent = request.headers()["traceparent"].to_str().unwrap();
        seen.lock().unwrap().push(parent.to_owned());
        let answer = answers.lock().unwrap()().expect("one attempt too many");
        async move {
            let status = StatusCode::from_u16(answer.map_err(io::Error::from)?)?;
            let mut response = Response::new(Body::from("secret"));
            *response.status_mut() = status;
            let cookie = HeaderValue::from_static("session=secret");
            response.headers_mut().insert("set-cookie", cookie);
            Ok::<_, BoxError>(response)
        }
    });
    let inner = server.map_request(|request| match propagation {
        Propagation::Inside => propagate(request),
        Propagation::Outside => request,
    });
    let policy = RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::from_secs(1))));
    let request = Request::get("https://secret:secret@api.example:8443/secret?token=secret")
        .header("authorization", "Bearer secret")
        .body(Body::from("secret"))
        .unwrap();
    let request = match propagation {
        Propagation::Inside => request,
        Propagation::Outside => propagate(request),
    };
    drop(RetryLayer::new(policy).layer(inner).oneshot(request).await);
    std::mem::take(&mut parents.lock().unwrap())
}

fn fields(pairs: &[KeyValue]) -> Fields<'_> {
    let fields: Fields<'_> = pairs
        .iter()
        .map(|pair| (pair.key.as_str(), pair.value.clone()))
        .collect();
    assert_eq!(fields.len(), pairs.len(), "a field twice: {pairs:?}");
    fields
}

/// The events of a span, without the two fields that any event gets.
fn events(span: &SpanData) -> Vec<(&str, Fields<'_>)> {
    let events = span.events.iter().map(|event| {
        let mut fields = fields(&event.attributes);
        fields.retain(|name, _| !["level", "target"].contains(name));
        (event.name.as_ref(), fields)
    });
    events.collect()
}

/// The header that makes `span` the parent of what the next service does.
fn traceparent(span: &SpanData) -> String {
    let context = &span.span_context;
    format!("00-{}-{}-01", context.trace_id(), context.span_id())
}

#[test]
fn each_attempt_is_a_client_span_with_the_fields_of_the_conventions() {
    let answers = [Ok(429), Err(io::ErrorKind::TimedOut), Ok(200)];
    let Seen {
        caller, attempts, ..
    } = call(&answers, Propagation::Inside);
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
        // A success stays unset, and a failure has no description: `error.type` says what it is.
        let outcome = error.map_or(Status::Unset, |_| Status::error(""));
        assert_eq!(span.status, outcome);
        let mut expected = Fields::from([
            ("http.request.method", "GET".into()),
            ("server.address", "api.example".into()),
            ("server.port", 8443.into()),
        ]);
        expected.extend(status.map(|it| ("http.response.status_code", it.into())));
        expected.extend(resends.map(|it| ("http.request.resend_count", it.into())));
        expected.extend(error.map(|it| ("error.type", it.into())));
        assert_eq!(fields(&span.attributes), expected);
    }
}

#[test]
fn each_retry_is_an_event_of_the_callers_span() {
    let answers = [Ok(429), Err(io::ErrorKind::TimedOut), Ok(200)];
    let Seen {
        caller, attempts, ..
    } = call(&answers, Propagation::Inside);
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
    // The call went well in the end.
    assert_eq!(caller.status, Status::Unset);
    assert!(attempts.iter().all(|attempt| attempt.events.is_empty()));
}

#[test]
fn the_end_of_a_failure_is_an_event_of_the_callers_span() {
    let table: [(&Answers, &[&str], &str); 3] = [
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
    for (answers, names, stop) in table {
        let Seen {
            caller, attempts, ..
        } = call(answers, Propagation::Inside);
        assert_eq!(attempts.len(), answers.len());
        let events = events(&caller);
        assert!(events.iter().map(|(name, _)| name).eq(names));
        let (_, fields) = events.last().unwrap();
        assert_eq!(fields["give_up_reason"], stop.into());
        let attempts_made = i64::try_from(answers.len()).unwrap();
        assert_eq!(fields["attempts"], attempts_made.into());
        // Whether a failed attempt is the caller's failure too is for the caller to say.
        assert_eq!(caller.status, Status::Unset);
        assert!(attempts.iter().all(|attempt| attempt.events.is_empty()));
    }
}

#[test]
fn nothing_secret_is_exported() {
    let scripts: [&Answers; 2] = [&[Ok(429), Ok(200)], &[Ok(500); 4]];
    for answers in scripts {
        let Seen {
            caller, attempts, ..
        } = call(answers, Propagation::Inside);
        let exported = format!("{caller:?} {attempts:?}");
        // Not for want of anything: the host and the events are there.
        assert!(exported.contains("api.example") && exported.contains("retrying"));
        assert!(!exported.contains("secret"), "{exported}");
        assert!(!exported.contains("url."), "{exported}");
    }
}

#[test]
fn a_propagating_layer_inside_makes_each_attempt_the_parent_of_what_it_causes() {
    let seen = call(&[Ok(504), Ok(429), Ok(200)], Propagation::Inside);
    let attempts: Vec<_> = seen.attempts.iter().map(traceparent).collect();
    assert_eq!(attempts.len(), 3);
    assert_eq!(seen.parents, attempts);
    let trace = seen.caller.span_context.trace_id();
    let mut traces = seen.attempts.iter().map(|it| it.span_context.trace_id());
    assert!(traces.all(|it| it == trace));
    let distinct: BTreeSet<_> = attempts.iter().collect();
    assert_eq!(distinct.len(), 3);
}

#[test]
fn a_propagating_layer_outside_makes_the_caller_the_parent_of_all() {
    let seen = call(&[Ok(504), Ok(429), Ok(200)], Propagation::Outside);
    assert_eq!(seen.parents, vec![traceparent(&seen.caller); 3]);
}
