//! The first experiment: the network holds all packets for ten seconds, and delivers them then.
//!
//! After Bronson et al., "Metastable failures in distributed systems", HotOS 2021, §2.1. One FIFO server
//! has 30 slots of 100 ms (300 requests/s); it does not notice that a client has given up, and works on.
//! Clients time out after 1 s. From 30 s to 40 s the network holds all packets, requests and answers, and
//! delivers them at 40 s; otherwise it takes no time. The run ends at 240 s.
//!
//! - peak: the most attempts sent in any second from 30 s to 60 s, over the offered rate
//! - after: attempts over requests from 40 s to 100 s
//! - recovery: from 40 s to the first of five seconds in a row in each of which the requests that
//!   succeeded are at least 85 % of those that arrived; `never` where a seed had none until the end

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
    policies::{Body, Client, Retrying, Server},
    traffic::{Second, Traffic, offer},
};

const SLOTS: usize = 30;
const WORK: Duration = Duration::from_millis(100);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// In seconds since the start.
const HELD: Range<u64> = 30..40;
const RUN: Duration = Duration::from_secs(240);

const PEAK: Range<usize> = 30..60;
const AFTER: Range<usize> = 40..100;
const RECOVERED: usize = 5;
const GOOD: f64 = 0.85;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) rate: u32,
    pub(crate) clients: usize,
    /// Of each request with all its attempts, outside of the retry layer.
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

    fn policies(self) -> &'static [Retrying] {
        match self.total_timeout {
            None => &Retrying::ALL,
            Some(_) => &[Retrying::None, Retrying::Ours],
        }
    }
}

/// One setting and policy, over all seeds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) setting: Setting,
    pub(crate) policy: Retrying,
    pub(crate) runs: Vec<Run>,
}

/// One seed.
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

    /// In seconds; `None` where any seed never recovered.
    pub(crate) fn recovery(&self) -> Option<f64> {
        let recoveries: Option<Vec<_>> = self.runs.iter().map(|run| run.recovery).collect();
        recoveries.map(|recoveries| mean(recoveries.into_iter()))
    }

    pub(crate) fn never_recovered(&self) -> usize {
        let recoveries = self.runs.iter().map(|run| run.recovery);
        recoveries.filter(Option::is_none).count()
    }

    /// The mean of one figure in each second of the run.
    pub(crate) fn by_second(&self, figure: fn(&Second) -> u32) -> Vec<f64> {
        let in_second = |second: usize| {
            let runs = self.runs.iter();
            mean(runs.map(|run| run.seconds.get(second).map_or(0.0, |it| figure(it).into())))
        };
        (0..RUN.as_secs() as usize).map(in_second).collect()
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
        simulate(*seed, one_run(*setting, *policy))
    });
    let mut runs = runs.into_iter();
    let row = |(setting, policy)| Row {
        setting,
        policy,
        runs: runs.by_ref().take(seeds.len()).collect(),
    };
    rows.into_iter().map(row).collect()
}

async fn one_run(setting: Setting, policy: Retrying) -> Run {
    let traffic = Traffic::new();
    let server = server(traffic.clone());
    let client = || with_total_timeout(setting.total_timeout, policy.client(server.clone()));
    let clients: Vec<_> = (0..setting.clients).map(|_| client()).collect();
    offer(setting.rate, RUN, &clients, &traffic).await;
    let mut seconds = mem::take(&mut lock(&traffic).seconds);
    seconds.truncate(RUN.as_secs() as usize);
    Run {
        peak: peak(&seconds) / f64::from(setting.rate),
        after: after(&seconds),
        recovery: recovery(&seconds),
        seconds,
    }
}

fn peak(seconds: &[Second]) -> f64 {
    let attempts = seconds[PEAK].iter().map(|second| second.attempts);
    attempts.max().unwrap_or_default().into()
}

fn after(seconds: &[Second]) -> f64 {
    let sum = |figure: fn(&Second) -> u32| seconds[AFTER].iter().map(figure).sum::<u32>();
    f64::from(sum(|it| it.attempts)) / f64::from(sum(|it| it.arrivals))
}

fn recovery(seconds: &[Second]) -> Option<f64> {
    let is_good = |it: &Second| f64::from(it.goodput) >= GOOD * f64::from(it.arrivals);
    let mut spells = seconds[HELD.end as usize..].windows(RECOVERED);
    let start = spells.position(|spell| spell.iter().all(is_good));
    start.map(|seconds| seconds as f64)
}

fn with_total_timeout(limit: Option<Duration>, client: Client) -> Client {
    match limit {
        Some(limit) => ServiceBuilder::new()
            .timeout(limit)
            .service(client)
            .boxed_clone(),
        None => client,
    }
}

/// The server behind the network, as an attempt sees it.
fn server(traffic: Arc<Mutex<Traffic>>) -> Server {
    let backend = Arc::new(Mutex::new(Backend::new()));
    let send = move |_| {
        lock(&traffic).now().attempts += 1;
        let answered = lock(&backend).send(Instant::now());
        async move {
            sleep_until(answered).await;
            Ok::<_, BoxError>(Response::new(Body::new()))
        }
    };
    let service = ServiceBuilder::new().timeout(ATTEMPT_TIMEOUT);
    service.service(service_fn(send)).boxed_clone()
}

/// The network and the server's queue, computed ahead: since no packet overtakes another, what is sent
/// first is served first, and the time of its answer is known when it is sent.
struct Backend {
    started: Instant,
    /// When each slot has done all that it has been given so far.
    free: BinaryHeap<Reverse<Instant>>,
}

impl Backend {
    fn new() -> Self {
        let started = Instant::now();
        Self {
            started,
            free: vec![Reverse(started); SLOTS].into(),
        }
    }

    /// When the answer to what is sent at `now` reaches the client, if it still waits for it.
    fn send(&mut self, now: Instant) -> Instant {
        let arrived = self.delivered(now);
        let Some(mut earliest) = self.free.peek_mut() else {
            unreachable!("there are {SLOTS} slots");
        };
        earliest.0 = earliest.0.max(arrived) + WORK;
        let done = earliest.0;
        drop(earliest);
        self.delivered(done)
    }

    fn delivered(&self, sent: Instant) -> Instant {
        match HELD.contains(&(sent - self.started).as_secs()) {
            true => self.started + Duration::from_secs(HELD.end),
            false => sent,
        }
    }
}
