//! The spans of one call, with their fields, as an OpenTelemetry backend receives them.
//!
//! `cargo run --example otel` calls a mock server on loopback that returns a 504, a 429 and a 200. This
//! example keeps the spans in memory and prints them as a tree; a real program exports them to its
//! backend. The output omits all values that differ between runs: IDs, times and the server's port.

#[allow(
    dead_code,
    reason = "this example does not inspect the received requests"
)]
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

use support::{MockResponse, MockServer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let targets = Targets::new()
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
        .with(backend.with_filter(targets))
        .init();

    let server = MockServer::bind(vec![
        MockResponse::new(StatusCode::GATEWAY_TIMEOUT),
        MockResponse::new(StatusCode::TOO_MANY_REQUESTS).header(RETRY_AFTER, "0"),
        MockResponse::new(StatusCode::OK),
    ])?;
    let uri = server.uri("/accounts")?;
    server.listen()?;
    // No jitter: the output includes the delays.
    let policy = RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::from_millis(10))));
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let request = Request::get(uri).body(Empty::<Bytes>::new())?;
    let parent = tracing::info_span!("list accounts");
    client.oneshot(request).instrument(parent).await?;

    provider.force_flush()?;
    // Spans are exported when they end. Attempts do not overlap and keep their order.
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
            println!("{indent}  {}", format_field(field));
        }
        for event in span.events.iter() {
            let fields = event.attributes.iter().filter(|field| !is_metadata(field));
            let fields: Vec<_> = fields.map(format_field).collect();
            println!("{indent}  * {}: {}", event.name, fields.join(", "));
        }
        print_children(spans, span.span_context.span_id(), depth + 1);
    }
}

/// Returns `true` for fields that `tracing_opentelemetry` adds to each event.
fn is_metadata(field: &KeyValue) -> bool {
    ["level", "target"].contains(&field.key.as_str())
}

fn format_field(field: &KeyValue) -> String {
    match field.key.as_str() {
        "server.port" => "server.port = …".to_owned(),
        name => format!("{name} = {}", field.value),
    }
}
