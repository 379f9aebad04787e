//! The third experiment: each attempt fails with a 500, independently of all others.
//!
//! 20 clients send 200 GETs per second for 60 s. Each response takes 100 ms. All requests complete.
//!
//! - success: requests with a 200 as the final result, divided by all requests
//! - amplification: attempts divided by requests

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Response, StatusCode};
use tokio::time::sleep;
use tower::{BoxError, ServiceExt, service_fn};

use crate::{
    harness::{lock, mean, run_all, simulate},
    policies::{Body, PolicyKind, Server},
    traffic::{Second, Traffic, send_requests},
};

const RATE: u32 = 200;
const CLIENTS: usize = 20;
const RUN: Duration = Duration::from_secs(60);
const LATENCY: Duration = Duration::from_millis(100);
const PROBABILITIES: [f64; 3] = [0.05, 0.10, 0.30];

/// The results of one probability and policy, as means over the seeds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) p: f64,
    pub(crate) policy: PolicyKind,
    pub(crate) success: f64,
    pub(crate) amplification: f64,
}

pub(crate) fn run(seeds: &[u64]) -> Vec<Row> {
    let settings: Vec<_> = PROBABILITIES
        .iter()
        .flat_map(|p| PolicyKind::ALL.map(|policy| (*p, policy)))
        .collect();
    let jobs: Vec<_> = settings
        .iter()
        .flat_map(|setting| seeds.iter().map(move |seed| (*setting, *seed)))
        .collect();
    let runs = run_all("independent failures", &jobs, |((p, policy), seed)| {
        simulate(*seed, run_once(*p, *policy))
    });
    let by_setting = settings.into_iter().zip(runs.chunks(seeds.len()));
    by_setting
        .map(|(setting, runs)| average(setting, runs))
        .collect()
}

fn average((p, policy): (f64, PolicyKind), runs: &[Run]) -> Row {
    Row {
        p,
        policy,
        success: mean(runs.iter().map(|run| run.success)),
        amplification: mean(runs.iter().map(|run| run.amplification)),
    }
}

struct Run {
    success: f64,
    amplification: f64,
}

async fn run_once(p: f64, policy: PolicyKind) -> Run {
    let traffic = Traffic::new();
    let server = build_server(p, traffic.clone());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| policy.build_client(server.clone()))
        .collect();
    send_requests(RATE, RUN, &clients, &traffic).await;
    let max_request_duration = Duration::from_secs(60);
    sleep(max_request_duration).await;

    let traffic = lock(&traffic);
    let sum = |count: fn(&Second) -> u32| {
        let counts = traffic.seconds.iter().map(count);
        f64::from(counts.sum::<u32>())
    };
    let arrivals = sum(|second| second.arrivals);
    Run {
        success: sum(|second| second.goodput) / arrivals,
        amplification: sum(|second| second.attempts) / arrivals,
    }
}

fn build_server(p: f64, traffic: Arc<Mutex<Traffic>>) -> Server {
    let send = move |_| {
        lock(&traffic).current_second().attempts += 1;
        async move {
            sleep(LATENCY).await;
            let mut response = Response::new(Body::new());
            if fastrand::f64() < p {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok::<_, BoxError>(response)
        }
    };
    service_fn(send).boxed_clone()
}
