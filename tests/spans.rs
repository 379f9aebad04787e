//! Spans and events, as recorded by a `tracing` subscriber.

#[allow(
    dead_code,
    unused_imports,
    reason = "each suite uses a part of the helpers"
)]
mod common;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    sync::{Arc, Mutex},
};

use http::Request;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::classify::{
    ClassifyResponse, MakeClassifier, SharedClassifier, StatusInRangeAsFailures,
    StatusInRangeFailureClass,
};
use tower_http_retry::{FailureKind, RetryLayer, RetryPolicy, Retryability, RetryableFailure};
use tracing::{
    Instrument, Level, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{layer::Context, prelude::*, registry::LookupSpan};

use common::{
    InnerRequest, MS, RequestBody, ResponseExt, ScriptedServer, policy_with_delay, response,
};

type Script = [Result<u16, io::ErrorKind>];
type Fields = BTreeMap<&'static str, String>;

/// A closed span or an event.
#[derive(Clone, Debug)]
struct Record {
    name: String,
    level: Level,
    parent: Option<String>,
    fields: Fields,
}

/// A subscriber layer that keeps all spans and events.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Record>>>);

#[derive(Default)]
struct FieldCollector(Fields);

impl Visit for FieldCollector {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, cx: Context<'_, S>) {
        let mut collect = FieldCollector::default();
        attributes.record(&mut collect);
        cx.span(id).unwrap().extensions_mut().insert(collect);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, cx: Context<'_, S>) {
        let span = cx.span(id).unwrap();
        values.record(span.extensions_mut().get_mut::<FieldCollector>().unwrap());
    }

    fn on_close(&self, id: span::Id, cx: Context<'_, S>) {
        let span = cx.span(&id).unwrap();
        let fields = span.extensions_mut().remove::<FieldCollector>().unwrap().0;
        self.0.lock().unwrap().push(Record {
            name: span.name().to_owned(),
            level: *span.metadata().level(),
            parent: span.parent().map(|parent| parent.name().to_owned()),
            fields,
        });
    }

    fn on_event(&self, event: &tracing::Event<'_>, cx: Context<'_, S>) {
        let mut collect = FieldCollector::default();
        event.record(&mut collect);
        self.0.lock().unwrap().push(Record {
            name: collect.0.remove("message").unwrap_or_default(),
            level: *event.metadata().level(),
            parent: cx.event_span(event).map(|span| span.name().to_owned()),
            fields: collect.0,
        });
    }
}

async fn record_call(request: Request<RequestBody>, script: &Script) -> Vec<Record> {
    record_call_with(policy_with_delay(10 * MS), request, script).await
}

/// Makes a call in a span named `caller`, and returns the other spans and the events.
async fn record_call_with<C>(
    policy: RetryPolicy<C>,
    request: Request<RequestBody>,
    script: &Script,
) -> Vec<Record>
where
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
{
    let recorder = Recorder::default();
    let subscriber = tracing_subscriber::registry().with(recorder.clone());
    let _default = subscriber.set_default();
    let script = script.iter().map(|reply| {
        reply.map(|status| {
            response(status)
                .with_text("TOPSECRET")
                .with_header("www-authenticate", "Basic realm=TOPSECRET")
        })
    });
    let server = ScriptedServer::new(script);
    let inner = service_fn(async |request: InnerRequest| {
        tracing::info!("inside");
        server.clone().oneshot(request).await
    });
    let client = RetryLayer::new(policy).layer(inner);
    let call = client
        .oneshot(request)
        .instrument(tracing::info_span!("caller"));
    drop(call.await);
    server.assert_script_completed();
    let mut records = recorder.0.lock().unwrap().clone();
    records.retain(|record| record.name != "caller");
    records
}

/// Creates a request with a secret in each part that can hold one.
fn secret_request(method: &str) -> Request<RequestBody> {
    Request::builder()
        .method(method)
        .uri("https://user:TOPSECRET@api.example/TOPSECRET?token=TOPSECRET")
        .header("authorization", "Bearer TOPSECRET")
        .body(RequestBody::from("TOPSECRET"))
        .unwrap()
}

fn with_name<'a>(records: &'a [Record], name: &str) -> Vec<&'a Record> {
    let matching = records.iter().filter(|record| record.name == name);
    matching.collect()
}

fn fields(pairs: &[(&'static str, &str)]) -> Fields {
    pairs
        .iter()
        .map(|(name, value)| (*name, value.to_string()))
        .collect()
}

/// Records a call with two retries.
async fn record_retried_call() -> Vec<Record> {
    let script = [Ok(429), Err(io::ErrorKind::BrokenPipe), Ok(200)];
    record_call(secret_request("GET"), &script).await
}

#[tokio::test(start_paused = true)]
async fn retries_are_recorded_between_attempts() {
    let records = record_retried_call().await;
    let names: Vec<_> = records.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "inside",
            "http_attempt",
            "retrying",
            "inside",
            "http_attempt",
            "retrying",
            "inside",
            "http_attempt"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn attempts_are_child_spans_of_caller_span() {
    let records = record_retried_call().await;
    let attempts = with_name(&records, "http_attempt");
    assert_eq!(attempts.len(), 3);
    let attempt_fields = |specific: &[(&'static str, &str)]| {
        let mut all = fields(&[
            ("http.request.method", "GET"),
            ("otel.kind", "client"),
            ("otel.name", "GET"),
            ("server.address", "api.example"),
            ("server.port", "443"),
        ]);
        all.extend(fields(specific));
        all
    };
    assert_eq!(
        attempts[0].fields,
        attempt_fields(&[
            ("http.response.status_code", "429"),
            ("error.type", "429"),
            ("otel.status_code", "ERROR"),
        ])
    );
    assert_eq!(
        attempts[1].fields,
        attempt_fields(&[
            ("http.request.resend_count", "1"),
            ("error.type", "disconnected"),
            ("otel.status_code", "ERROR"),
        ])
    );
    assert_eq!(
        attempts[2].fields,
        attempt_fields(&[
            ("http.request.resend_count", "2"),
            ("http.response.status_code", "200"),
        ])
    );
    for attempt in attempts {
        assert_eq!(
            (attempt.level, attempt.parent.as_deref()),
            (Level::INFO, Some("caller"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn inner_service_runs_in_span_of_attempt() {
    let records = record_retried_call().await;
    let events = with_name(&records, "inside");
    assert_eq!(events.len(), 3);
    for inside in events {
        assert_eq!(inside.parent.as_deref(), Some("http_attempt"));
    }
}

#[tokio::test(start_paused = true)]
async fn retries_are_events_of_caller_span() {
    let records = record_retried_call().await;
    let retries = with_name(&records, "retrying");
    assert_eq!(retries.len(), 2);
    assert_eq!(
        retries[0].fields,
        fields(&[
            ("error.type", "429"),
            ("delay", "10ms"),
            ("http.request.resend_count", "1"),
        ])
    );
    assert_eq!(retries[1].fields["error.type"], "disconnected");
    for retry in retries {
        assert_eq!(
            (retry.level, retry.parent.as_deref()),
            (Level::DEBUG, Some("caller"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn give_up_is_debug_only_after_first_non_retryable_failure() {
    let table: [(&str, &Script, Level, &str, &str); 5] = [
        ("GET", &[Ok(404)], Level::DEBUG, "not_retryable", "1"),
        ("POST", &[Ok(500)], Level::WARN, "not_idempotent", "1"),
        (
            "GET",
            &[Ok(500), Ok(404)],
            Level::WARN,
            "not_retryable",
            "2",
        ),
        ("GET", &[Ok(500); 4], Level::WARN, "retries_exhausted", "4"),
        (
            "POST",
            &[Err(io::ErrorKind::TimedOut)],
            Level::WARN,
            "not_idempotent",
            "1",
        ),
    ];
    for (method, script, level, reason, attempts) in table {
        let records = record_call(secret_request(method), script).await;
        let [event] = with_name(&records, "giving up")[..] else {
            panic!("not exactly one give-up event: {records:?}")
        };
        assert_eq!(
            (event.level, event.parent.as_deref()),
            (level, Some("caller"))
        );
        assert_eq!(event.fields["give_up_reason"], reason);
        assert_eq!(event.fields["attempts"], attempts);
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_method_is_recorded_as_other() {
    let records = record_call(secret_request("PURGE"), &[Ok(200)]).await;
    let attempt = with_name(&records, "http_attempt")[0];
    assert_eq!(attempt.fields["http.request.method"], "_OTHER");
    assert_eq!(attempt.fields["otel.name"], "HTTP");
}

#[tokio::test(start_paused = true)]
async fn spans_and_events_contain_no_secrets() {
    let scripts: [&Script; 3] = [&[Ok(500), Ok(200)], &[Ok(401)], &[Ok(500); 4]];
    for script in scripts {
        let records = record_call(secret_request("GET"), script).await;
        assert!(!records.is_empty());
        assert!(!format!("{records:?}").contains("TOPSECRET"), "{records:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn custom_failure_kind_is_the_error_type() {
    struct NoContent;

    impl RetryableFailure for NoContent {
        fn retryability(&self) -> Retryability {
            Retryability::Always
        }

        fn failure_kind(&self) -> Option<FailureKind> {
            Some(FailureKind::Custom("no_content"))
        }
    }

    let to_class: fn(StatusInRangeFailureClass) -> NoContent = |_| NoContent;
    let classifier = StatusInRangeAsFailures::new(204..=204).map_failure_class(to_class);
    let policy = policy_with_delay(10 * MS).classifier(SharedClassifier::new(classifier));
    let script = [Ok(204), Ok(200)];
    let records = record_call_with(policy, secret_request("GET"), &script).await;
    let attempts = with_name(&records, "http_attempt");
    assert_eq!(attempts[0].fields["http.response.status_code"], "204");
    assert_eq!(attempts[0].fields["error.type"], "no_content");
    assert!(!attempts[1].fields.contains_key("error.type"));
    let retries = with_name(&records, "retrying");
    assert_eq!(retries[0].fields["error.type"], "no_content");
}
