//! What an operator sees in tracing, and what nobody may see there.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_http_retry::{ReplayBody, RetryLayer, RetryPolicy, backoff_fn};
use tracing::{
    Instrument, Level, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{layer::Context, prelude::*, registry::LookupSpan};

type Script = [Result<u16, io::ErrorKind>];
type Fields = BTreeMap<&'static str, String>;

/// A span or an event, as it was at its end.
#[derive(Clone, Debug)]
struct Seen {
    name: String,
    level: Level,
    parent: Option<String>,
    fields: Fields,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

#[derive(Default)]
struct Collect(Fields);

impl Visit for Collect {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, cx: Context<'_, S>) {
        let mut collect = Collect::default();
        attributes.record(&mut collect);
        cx.span(id).unwrap().extensions_mut().insert(collect);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, cx: Context<'_, S>) {
        let span = cx.span(id).unwrap();
        values.record(span.extensions_mut().get_mut::<Collect>().unwrap());
    }

    fn on_close(&self, id: span::Id, cx: Context<'_, S>) {
        let span = cx.span(&id).unwrap();
        let fields = span.extensions_mut().remove::<Collect>().unwrap().0;
        self.0.lock().unwrap().push(Seen {
            name: span.name().to_owned(),
            level: *span.metadata().level(),
            parent: span.parent().map(|parent| parent.name().to_owned()),
            fields,
        });
    }

    fn on_event(&self, event: &tracing::Event<'_>, cx: Context<'_, S>) {
        let mut collect = Collect::default();
        event.record(&mut collect);
        self.0.lock().unwrap().push(Seen {
            name: collect.0.remove("message").unwrap_or_default(),
            level: *event.metadata().level(),
            parent: cx.event_span(event).map(|span| span.name().to_owned()),
            fields: collect.0,
        });
    }
}

/// What is seen of one call, made inside a span named `caller`, whose attempts end as `script` says.
async fn seen(request: Request<Full<Bytes>>, script: &Script) -> Vec<Seen> {
    let recorder = Recorder::default();
    let subscriber = tracing_subscriber::registry().with(recorder.clone());
    let _default = subscriber.set_default();
    let calls = AtomicUsize::new(0);
    let inner = service_fn(async |_: Request<ReplayBody<Full<Bytes>>>| {
        tracing::info!("inside");
        let status = script[calls.fetch_add(1, Ordering::Relaxed)].map_err(io::Error::from)?;
        let mut response = Response::new(Full::<Bytes>::from("TOPSECRET"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        let headers = response.headers_mut();
        headers.insert("www-authenticate", "Basic realm=TOPSECRET".parse().unwrap());
        Ok::<_, BoxError>(response)
    });
    let policy =
        RetryPolicy::new().backoff(backoff_fn(|| std::iter::repeat(Duration::from_millis(10))));
    let client = RetryLayer::new(policy).layer(inner);
    let call = client
        .oneshot(request)
        .instrument(tracing::info_span!("caller"));
    drop(call.await);
    assert_eq!(calls.into_inner(), script.len());
    let seen = recorder.0.lock().unwrap();
    seen.iter()
        .filter(|it| it.name != "caller")
        .cloned()
        .collect()
}

fn request(method: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri("https://user:TOPSECRET@api.example/TOPSECRET?token=TOPSECRET")
        .header("authorization", "Bearer TOPSECRET")
        .body(Full::from("TOPSECRET"))
        .unwrap()
}

fn named<'a>(seen: &'a [Seen], name: &str) -> Vec<&'a Seen> {
    seen.iter().filter(|it| it.name == name).collect()
}

fn fields(pairs: &[(&'static str, &str)]) -> Fields {
    pairs
        .iter()
        .map(|(name, value)| (*name, value.to_string()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_a_span_and_each_retry_an_event_of_the_callers_span() {
    let seen = seen(
        request("GET"),
        &[Ok(429), Err(io::ErrorKind::BrokenPipe), Ok(200)],
    )
    .await;
    let order: Vec<_> = seen.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        order,
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
    let common = fields(&[
        ("http.request.method", "GET"),
        ("otel.kind", "client"),
        ("otel.name", "GET"),
        ("server.address", "api.example"),
        ("server.port", "443"),
    ]);
    let with = |own: &[(&'static str, &str)]| {
        let mut all = common.clone();
        all.extend(fields(own));
        all
    };
    let attempts = named(&seen, "http_attempt");
    assert_eq!(
        attempts[0].fields,
        with(&[
            ("http.response.status_code", "429"),
            ("error.type", "429"),
            ("otel.status_code", "ERROR"),
        ])
    );
    assert_eq!(
        attempts[1].fields,
        with(&[
            ("http.request.resend_count", "1"),
            ("error.type", "disconnected"),
            ("otel.status_code", "ERROR"),
        ])
    );
    assert_eq!(
        attempts[2].fields,
        with(&[
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
    for inside in named(&seen, "inside") {
        assert_eq!(inside.parent.as_deref(), Some("http_attempt"));
    }
    let retries = named(&seen, "retrying");
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
async fn giving_up_is_a_warning_only_where_retries_were_made_or_refused() {
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
        let seen = seen(request(method), script).await;
        let [event] = named(&seen, "giving up")[..] else {
            panic!("one event at the end of a failure: {seen:?}")
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
async fn a_method_that_the_conventions_do_not_know_is_other() {
    let seen = seen(request("PURGE"), &[Ok(200)]).await;
    let attempt = named(&seen, "http_attempt")[0];
    assert_eq!(attempt.fields["http.request.method"], "_OTHER");
    assert_eq!(attempt.fields["otel.name"], "HTTP");
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_recorded() {
    let scripts: [&Script; 3] = [&[Ok(500), Ok(200)], &[Ok(401)], &[Ok(500); 4]];
    for script in scripts {
        let seen = seen(request("GET"), script).await;
        assert!(!seen.is_empty());
        assert!(!format!("{seen:?}").contains("TOPSECRET"), "{seen:?}");
    }
}
