//! What an OpenTelemetry backend sees, and what the next service is told of it.

use std::{
    collections::BTreeMap,
    iter,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use opentelemetry::{
    Value,
    propagation::{Injector, TextMapPropagator},
    trace::{SpanId, SpanKind, Status, TracerProvider},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_http_retry::{ReplayBody, RetryLayer, RetryPolicy};
use tracing::{Instrument, Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::prelude::*;

type Body = Full<Bytes>;
type Answers = [Result<u16, std::io::ErrorKind>];

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

/// One call, with a propagating layer inside or outside: the exported spans in the order of their start,
/// and the `traceparent` of each attempt.
fn call(answers: &Answers, propagates_inside: bool) -> (Vec<SpanData>, Vec<String>) {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let backend = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry()
        .with(LevelFilter::DEBUG)
        .with(backend);
    let parents = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let caller = tracing::info_span!("pay");
        runtime.block_on(send(answers, propagates_inside, parents.clone()).instrument(caller));
    });
    provider.force_flush().unwrap();
    let mut spans = exporter.get_finished_spans().unwrap();
    spans.sort_by_key(|span| span.start_time);
    let parents = std::mem::take(&mut *parents.lock().unwrap());
    (spans, parents)
}

async fn send(answers: &Answers, propagates_inside: bool, parents: Arc<Mutex<Vec<String>>>) {
    let answers = Arc::new(Mutex::new(answers.iter().copied()));
    let server = service_fn(move |request: Request<ReplayBody<Body>>| {
        let parent = request.headers()["traceparent"].to_str().unwrap();
        parents.lock().unwrap().push(parent.to_owned());
        let answer = answers
            .lock()
            .unwrap()
            .next()
            .expect("one attempt too many");
        async move {
            // So that no two spans start at the same time.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut response = Response::new(Body::default());
            *response.status_mut() = StatusCode::from_u16(answer.map_err(std::io::Error::from)?)?;
            Ok::<_, BoxError>(response)
        }
    });
    let inner = server.map_request(move |request| match propagates_inside {
        true => propagate(request),
        false => request,
    });
    let policy = RetryPolicy::new().backoff(|| iter::repeat(Duration::from_secs(1)));
    let request = Request::get("https://user:pass@api.example:8443/accounts?token=secret")
        .header("authorization", "Bearer secret")
        .body(Body::default())
        .unwrap();
    let request = match propagates_inside {
        true => request,
        false => propagate(request),
    };
    let _ = RetryLayer::new(policy).layer(inner).oneshot(request).await;
}

fn attributes(span: &SpanData) -> BTreeMap<&str, Value> {
    let own = |key: &&str| {
        !["code.", "thread.", "busy_ns", "idle_ns", "target", "level"]
            .iter()
            .any(|prefix| key.starts_with(prefix))
    };
    let pairs = span.attributes.iter();
    let pairs = pairs.map(|pair| (pair.key.as_str(), pair.value.clone()));
    pairs.filter(|(key, _)| own(key)).collect()
}

#[test]
fn each_attempt_is_a_client_span_with_the_fields_of_the_conventions() {
    let answers = [Ok(429), Err(std::io::ErrorKind::TimedOut), Ok(200)];
    let (spans, _) = call(&answers, true);
    let (caller, attempts) = spans.split_first().unwrap();
    assert_eq!(caller.name, "pay");
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
        assert_eq!(matches!(span.status, Status::Error { .. }), error.is_some());
        let mut fields = BTreeMap::from([
            ("http.request.method", Value::from("GET")),
            ("server.address", Value::from("api.example")),
            ("server.port", Value::from(8443)),
        ]);
        fields.extend(status.map(|it| ("http.response.status_code", Value::from(it))));
        fields.extend(resends.map(|it| ("http.request.resend_count", Value::from(it))));
        fields.extend(error.map(|it| ("error.type", Value::from(it))));
        assert_eq!(attributes(span), fields);
    }

    let events: Vec<_> = caller
        .events
        .iter()
        .map(|event| event.name.as_ref())
        .collect();
    assert_eq!(events, ["retrying", "retrying"]);
    assert!(!format!("{spans:?}").contains("secret"));
    assert!(!format!("{spans:?}").contains("pass@"));
}

#[test]
fn the_end_of_a_failure_is_an_event_of_the_callers_span() {
    let (spans, _) = call(&[Ok(500); 4], true);
    let events: Vec<_> = spans[0]
        .events
        .iter()
        .map(|event| event.name.as_ref())
        .collect();
    assert_eq!(events, ["retrying", "retrying", "retrying", "giving up"]);
}

#[test]
fn a_propagating_layer_inside_tells_the_next_service_which_attempt_is_its_parent() {
    let (spans, parents) = call(&[Ok(504), Ok(429), Ok(200)], true);
    let named = |id: SpanId| {
        parents
            .iter()
            .filter(|it| it.contains(&id.to_string()))
            .count()
    };
    for attempt in &spans[1..] {
        assert_eq!(named(attempt.span_context.span_id()), 1);
    }
    let trace = spans[0].span_context.trace_id().to_string();
    assert!(parents.iter().all(|parent| parent.contains(&trace)));

    let (spans, parents) = call(&[Ok(504), Ok(200)], false);
    let caller = spans[0].span_context.span_id().to_string();
    assert_eq!(parents.len(), 2);
    assert!(parents.iter().all(|parent| parent.contains(&caller)));
}
