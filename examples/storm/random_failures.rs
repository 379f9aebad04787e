//! The third experiment: each attempt fails with a 500, independently of all others.
//!
//! 200 GETs a second from 20 clients for 60 s, each answered after 100 ms. All of them end.
//!
//! - success: requests whose final result is a 200, over all requests
//! - amplification: attempts over requests

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Response, StatusCode};
use tokio::time::sleep;
use tower::{BoxError, ServiceExt, service_fn};

use crate::{
    harness::{lock, mean, run_all, simulate},
    policies::{Body, Retrying, Server},
    traffic::{Second, Traffic, offer},
};

const RATE: u32 = 200;
const CLIENTS: usize = 20;
const RUN: Duration = Duration::from_secs(60);
const LATENCY: Duration = Duration::from_millis(100);
const PROBABILITIES: [f64; 3] = [0.05, 0.10, 0.30];

/// One probability and policy, as means over the seeds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) p: f64,
    pub(crate) policy: Retrying,
    pub(crate) success: f64,
    pub(crate) amplification: f64,
}

pub(crate) fn run(seeds: &[u64]) -> Vec<Row> {
    let settings: Vec<_> = PROBABILITIES
        .iter()
        .flat_map(|p| Retrying::ALL.map(|policy| (*p, policy)))
        .collect();
    let jobs: Vec<_> = settings
        .iter()
        .flat_map(|setting| seeds.iter().map(move |seed| (*setting, *seed)))
        .collect();
    let runs = run_all("independent failures", &jobs, |((p, policy), seed)| {
        simulate(*seed, one_run(*p, *policy))
    });
    let by_setting = settings.into_iter().zip(runs.chunks(seeds.len()));
    by_setting
        .map(|(setting, runs)| row(setting, runs))
        .collect()
}

fn row((p, policy): (f64, Retrying), runs: &[Run]) -> Row {
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

async fn one_run(p: f64, policy: Retrying) -> Run {
    let traffic = Traffic::new();
    let server = server(p, traffic.clone());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| policy.client(server.clone()))
        .collect();
    offer(RATE, RUN, &clients, &traffic).await;
    let longest_request = Duration::from_secs(60);
    sleep(longest_request).await;

    let traffic = lock(&traffic);
    let sum = |figure: fn(&Second) -> u32| {
        let figures = traffic.seconds.iter().map(figure);
        f64::from(figures.sum::<u32>())
    };
    let arrivals = sum(|it| it.arrivals);
    Run {
        success: sum(|it| it.goodput) / arrivals,
        amplification: sum(|it| it.attempts) / arrivals,
    }
}

fn server(p: f64, traffic: Arc<Mutex<Traffic>>) -> Server {
    let send = move |_| {
        lock(&traffic).now().attempts += 1;
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
