//! What is counted, as Prometheus sees it.

use std::{
    iter,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use metrics_exporter_prometheus::PrometheusBuilder;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_http_retry::{RateGate, ReplayBody, RetryLayer, RetryPolicy, backoff_fn};

type Body = Full<Bytes>;
type Attempt = Request<ReplayBody<Body>>;

#[test]
fn an_exporter_sees_requests_attempts_retries_stops_waits_budget_and_gate() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let text = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    metrics::with_local_recorder(&recorder, || {
        tower_http_retry::describe_metrics();
        runtime.block_on(async {
            let policy = RetryPolicy::new()
                .name("accounts")
                .backoff(backoff_fn(|| iter::repeat(Duration::from_secs(2))))
                .max_retries(2)
                .rate_gate(RateGate::new());
            let script = [200, 504, 200, 504, 504, 504, 404].into_iter();
            let script = Arc::new(Mutex::new(script));
            let client = RetryLayer::new(policy).layer(service_fn(move |_: Attempt| {
                let status = script.lock().unwrap().next().expect("one attempt too many");
                async move {
                    let mut response = Response::new(Body::default());
                    *response.status_mut() = StatusCode::from_u16(status)?;
                    Ok::<_, BoxError>(response)
                }
            }));
            for _ in 0..4 {
                let request = Request::new(Body::default());
                client.clone().oneshot(request).await.unwrap();
            }
        });
    });
    let text = text.render();
    for line in [
        "tower_http_retry_requests_total{client=\"accounts\"} 4",
        "tower_http_retry_attempts_total{client=\"accounts\"} 7",
        "tower_http_retry_retries_total{client=\"accounts\",reason=\"504\"} 3",
        "tower_http_retry_give_ups_total{client=\"accounts\",reason=\"retries_exhausted\"} 1",
        "tower_http_retry_give_ups_total{client=\"accounts\",reason=\"not_retryable\"} 1",
        "tower_http_retry_delay_seconds_sum{client=\"accounts\"} 6",
        "tower_http_retry_delay_seconds_count{client=\"accounts\"} 3",
        "tower_http_retry_budget_balance{client=\"accounts\"} 31",
        "tower_http_retry_gate_closed_seconds{client=\"accounts\"} 0",
        "tower_http_retry_gate_queue_length{client=\"accounts\"} 0",
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
    }
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().unwrap();
        let described = format!("# HELP {name} ");
        assert!(
            text.contains(&described),
            "{name} is not described in\n{text}"
        );
    }
}
