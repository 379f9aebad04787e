//! Metrics, as exported to Prometheus.

#[allow(
    dead_code,
    unused_imports,
    reason = "each suite uses a part of the helpers"
)]
mod common;

use metrics_exporter_prometheus::PrometheusBuilder;
use tower::{Layer, ServiceExt};
use tower_http_retry::{RateGate, RetryLayer};

use common::{SECOND, ScriptedServer, policy_with_delay, request};

#[test]
fn metrics_are_exported_and_described() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    metrics::with_local_recorder(&recorder, || {
        tower_http_retry::describe_metrics();
        runtime.block_on(async {
            let policy = policy_with_delay(2 * SECOND)
                .client_name("accounts")
                .max_retries(2)
                .rate_gate(RateGate::new());
            let server = ScriptedServer::new([200, 504, 200, 504, 504, 504, 404]);
            let client = RetryLayer::new(policy).layer(server.clone());
            for _ in 0..4 {
                client.clone().oneshot(request("GET")).await.unwrap();
            }
            server.assert_script_completed();
        });
    });
    let text = handle.render();
    for expected in [
        "tower_http_retry_requests_total{client=\"accounts\"} 4",
        "tower_http_retry_attempts_total{client=\"accounts\"} 7",
        "tower_http_retry_retries_total{client=\"accounts\",error_type=\"504\"} 3",
        "tower_http_retry_give_ups_total{client=\"accounts\",reason=\"retries_exhausted\"} 1",
        "tower_http_retry_give_ups_total{client=\"accounts\",reason=\"not_retryable\"} 1",
        "tower_http_retry_delay_seconds_sum{client=\"accounts\"} 6",
        "tower_http_retry_delay_seconds_count{client=\"accounts\"} 3",
        "tower_http_retry_budget_balance{client=\"accounts\"} 31",
        "tower_http_retry_gate_closed_seconds{client=\"accounts\"} 0",
        "tower_http_retry_gate_queue_length{client=\"accounts\"} 0",
    ] {
        let is_exported = text.lines().any(|line| line == expected);
        assert!(is_exported, "no {expected} in\n{text}");
    }
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().unwrap();
        let help = format!("# HELP {name} ");
        assert!(text.contains(&help), "{name} is not described in\n{text}");
    }
}
