//! The first experiment: an outage. The network holds all packets for ten seconds.
//!
//! The setup follows Bronson et al., "Metastable failures in distributed systems", HotOS 2021, §2.1. A
//! FIFO server has 30 slots of 100 ms each (300 requests/s). It does not notice client timeouts and
//! completes all work. Clients time out after 1 s. The network has no latency, but holds all requests
//! and responses sent from 30 s to 40 s and delivers them at 40 s. The run ends at 240 s.
//!
//! - peak: the maximum of attempts sent in a second from 30 s to 60 s, divided by the offered rate
//! - after: attempts divided by requests, from 40 s to 100 s
//! - recovery: the time from 40 s to the first of five consecutive seconds with a goodput of at least
//!   85 % of the arrivals; `never` if a seed does not recover before the end

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    mem,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Response;
use tokio::time::{Instant, sleep_until};
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use crate::{
    harness::{lock, mean, run_all, simulate},
    policies::{Body, Client, PolicyKind, Server},
    traffic::{Second, Traffic, send_requests},
};

const SLOTS: usize = 30;
const SERVICE_TIME: Duration = Duration::from_millis(100);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// In seconds since the start.
const OUTAGE: Range<u64> = 30..40;
const RUN: Duration = Duration::from_secs(240);

const PEAK_SECONDS: Range<usize> = 30..60;
const AFTER_SECONDS: Range<usize> = 40..100;
const RECOVERY_WINDOW: usize = 5;
const RECOVERY_GOODPUT: f64 = 0.85;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) rate: u32,
    pub(crate) clients: usize,
    /// The timeout of a request with all its attempts, applied outside of the retry layer.
    pub(crate) total_timeout: Option<Duration>,
}

impl Setting {
    const ALL: [Self; 5] = [
        Self::new(200, 1),
        Self::new(200, 20),
        Self::new(200, 100),
        Self::new(280, 20),
        Self {
            total_timeout: Some(Duration::from_millis(1500)),
            ..Self::new(200, 20)
        },
    ];

    pub(crate) const fn new(rate: u32, clients: usize) -> Self {
        Self {
            rate,
            clients,
            total_timeout: None,
        }
    }

    fn policies(self) -> &'static [PolicyKind] {
        match self.total_timeout {
            None => &PolicyKind::ALL,
            Some(_) => &[PolicyKind::None, PolicyKind::Ours],
        }
    }
}

/// The results of one setting and policy, over all seeds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) setting: Setting,
    pub(crate) policy: PolicyKind,
    pub(crate) runs: Vec<Run>,
}

/// The results of one seed.
#[derive(Debug)]
pub(crate) struct Run {
    peak: f64,
    after: f64,
    recovery: Option<f64>,
    seconds: Vec<Second>,
}

impl Row {
    pub(crate) fn peak(&self) -> f64 {
        mean(self.runs.iter().map(|run| run.peak))
    }

    pub(crate) fn highest_peak(&self) -> f64 {
        self.runs.iter().map(|run| run.peak).fold(0.0, f64::max)
    }

    pub(crate) fn after(&self) -> f64 {
        mean(self.runs.iter().map(|run| run.after))
    }

    /// Returns the mean time to recover in seconds, or `None` if any seed never recovered.
    pub(crate) fn recovery(&self) -> Option<f64> {
        let recoveries: Option<Vec<_>> = self.runs.iter().map(|run| run.recovery).collect();
        recoveries.map(|recoveries| mean(recoveries.into_iter()))
    }

    pub(crate) fn runs_without_recovery(&self) -> usize {
        let recoveries = self.runs.iter().map(|run| run.recovery);
        recoveries.filter(Option::is_none).count()
    }

    /// Returns the mean of `count` in each second of the run.
    pub(crate) fn mean_by_second(&self, count: fn(&Second) -> u32) -> Vec<f64> {
        let mean_in_second = |index: usize| {
            let seconds = self.runs.iter().map(|run| run.seconds.get(index));
            mean(seconds.map(|second| second.map_or(0.0, |second| count(second).into())))
        };
        (0..RUN.as_secs() as usize).map(mean_in_second).collect()
    }
}

pub(crate) fn run(seeds: &[u64]) -> Vec<Row> {
    let mut rows = Vec::new();
    for setting in Setting::ALL {
        rows.extend(setting.policies().iter().map(|policy| (setting, *policy)));
    }
    let jobs: Vec<_> = rows
        .iter()
        .flat_map(|row| seeds.iter().map(move |seed| (*row, *seed)))
        .collect();
    let runs = run_all("outage", &jobs, |((setting, policy), seed)| {
        simulate(*seed, run_once(*setting, *policy))
    });
    let mut runs = runs.into_iter();
    let row = |(setting, policy)| Row {
        setting,
        policy,
        runs: runs.by_ref().take(seeds.len()).collect(),
    };
    rows.into_iter().map(row).collect()
}

async fn run_once(setting: Setting, policy: PolicyKind) -> Run {
    let traffic = Traffic::new();
    let server = build_server(traffic.clone());
    let new_client = || {
        let client = policy.build_client(server.clone());
        add_total_timeout(setting.total_timeout, client)
    };
    let clients: Vec<_> = (0..setting.clients).map(|_| new_client()).collect();
    send_requests(setting.rate, RUN, &clients, &traffic).await;
    let mut seconds = mem::take(&mut lock(&traffic).seconds);
    seconds.truncate(RUN.as_secs() as usize);
    Run {
        peak: count_peak_attempts(&seconds) / f64::from(setting.rate),
        after: measure_amplification_after(&seconds),
        recovery: find_recovery(&seconds),
        seconds,
    }
}

fn count_peak_attempts(seconds: &[Second]) -> f64 {
    let attempts = seconds[PEAK_SECONDS].iter().map(|second| second.attempts);
    attempts.max().unwrap_or_default().into()
}

fn measure_amplification_after(seconds: &[Second]) -> f64 {
    let sum = |count: fn(&Second) -> u32| seconds[AFTER_SECONDS].iter().map(count).sum::<u32>();
    f64::from(sum(|second| second.attempts)) / f64::from(sum(|second| second.arrivals))
}

fn find_recovery(seconds: &[Second]) -> Option<f64> {
    let has_recovered = |second: &Second| {
        f64::from(second.goodput) >= RECOVERY_GOODPUT * f64::from(second.arrivals)
    };
    let mut windows = seconds[OUTAGE.end as usize..].windows(RECOVERY_WINDOW);
    let start = windows.position(|window| window.iter().all(has_recovered));
    start.map(|seconds| seconds as f64)
}

fn add_total_timeout(limit: Option<Duration>, client: Client) -> Client {
    match limit {
        Some(limit) => ServiceBuilder::new()
            .timeout(limit)
            .service(client)
            .boxed_clone(),
        None => client,
    }
}

/// Creates the service that an attempt calls: the network and the server, with the attempt timeout.
fn build_server(traffic: Arc<Mutex<Traffic>>) -> Server {
    let backend = Arc::new(Mutex::new(Backend::new()));
    let send = move |_| {
        lock(&traffic).current_second().attempts += 1;
        let response_at = lock(&backend).send(Instant::now());
        async move {
            sleep_until(response_at).await;
            Ok::<_, BoxError>(Response::new(Body::new()))
        }
    };
    let service = ServiceBuilder::new().timeout(ATTEMPT_TIMEOUT);
    service.service(service_fn(send)).boxed_clone()
}

/// The network and the server's queue.
///
/// Packets stay in order and the queue is FIFO. The time of a response is therefore known when its
/// request is sent.
struct Backend {
    started: Instant,
    /// The time at which each slot completes its queued work.
    slots_free_at: BinaryHeap<Reverse<Instant>>,
}

impl Backend {
    fn new() -> Self {
        let started = Instant::now();
        Self {
            started,
            slots_free_at: vec![Reverse(started); SLOTS].into(),
        }
    }

    /// Queues a request sent at `now` and returns the time at which its response reaches the client.
    fn send(&mut self, now: Instant) -> Instant {
        let arrives_at = self.delivery_time(now);
        let Some(mut earliest) = self.slots_free_at.peek_mut() else {
            unreachable!("there are {SLOTS} slots");
        };
        earliest.0 = earliest.0.max(arrives_at) + SERVICE_TIME;
        let done = earliest.0;
        drop(earliest);
        self.delivery_time(done)
    }

    fn delivery_time(&self, sent: Instant) -> Instant {
        match OUTAGE.contains(&(sent - self.started).as_secs()) {
            true => self.started + Duration::from_secs(OUTAGE.end),
            false => sent,
        }
    }
}
