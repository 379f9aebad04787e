//! What an OpenTelemetry backend makes of one call: the tree of its spans, with their fields.
//!
//! `cargo run --example otel` calls a scripted server on loopback, which answers 504, then 429, then 200.
//! Where this example keeps the spans in memory and prints them, a program has an exporter to its backend.
//! What differs from run to run is left out: ids, times, the server's port.

#[allow(dead_code, reason = "one script, and nobody asks what the server saw")]
mod support;

use std::{error::Error, iter, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header::RETRY_AFTER};
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use opentelemetry::{
    KeyValue,
    trace::{SpanId, Status, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tower::{ServiceBuilder, ServiceExt};
use tower_http_retry::{RetryLayer, RetryPolicy, backoff_fn};
use tracing::{Instrument, level_filters::LevelFilter};
use tracing_subscriber::{Layer as _, filter::Targets, prelude::*};

use support::{Answer, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let wanted = Targets::new()
        .with_target("tower_http_retry", LevelFilter::DEBUG)
        .with_target("otel", LevelFilter::INFO);
    let backend = tracing_opentelemetry::layer()
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_level(false)
        .with_tracer(provider.tracer("otel"));
    tracing_subscriber::registry()
        .with(backend.with_filter(wanted))
        .init();

    let server = Server::bind(vec![
        Answer::new(StatusCode::GATEWAY_TIMEOUT),
        Answer::new(StatusCode::TOO_MANY_REQUESTS).header(RETRY_AFTER, "0"),
        Answer::new(StatusCode::OK),
    ])?;
    let uri = server.uri("/accounts")?;
    server.listen()?;
    // Without jitter, so that the delays are the same each time.
    let policy = RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::from_millis(10))));
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let request = Request::get(uri).body(Empty::<Bytes>::new())?;
    let caller = tracing::info_span!("list accounts");
    client.oneshot(request).instrument(caller).await?;

    provider.force_flush()?;
    // In the order of their ends, which for attempts is that of their starts.
    print_children(&exporter.get_finished_spans()?, SpanId::INVALID, 0);
    Ok(())
}

fn print_children(spans: &[SpanData], parent: SpanId, depth: usize) {
    let indent = "  ".repeat(depth);
    for span in spans.iter().filter(|span| span.parent_span_id == parent) {
        let failed = match span.status {
            Status::Error { .. } => " (failed)",
            _ => "",
        };
        println!("{indent}{} [{:?}]{failed}", span.name, span.span_kind);
        for field in &span.attributes {
            println!("{indent}  {}", text(field));
        }
        for event in span.events.iter() {
            let own = |field: &&KeyValue| !["level", "target"].contains(&field.key.as_str());
            let fields: Vec<_> = event.attributes.iter().filter(own).map(text).collect();
            println!("{indent}  * {}: {}", event.name, fields.join(", "));
        }
        print_children(spans, span.span_context.span_id(), depth + 1);
    }
}

fn text(field: &KeyValue) -> String {
    match field.key.as_str() {
        "server.port" => "server.port = …".to_owned(),
        name => format!("{name} = {}", field.value),
    }
}
