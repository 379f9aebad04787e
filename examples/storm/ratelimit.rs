//! The second experiment: 200 workers against 100 requests a second.
//!
//! The server counts requests in fixed windows of one second, whose offset from the start of the run
//! hangs on the seed, and answers what is beyond the quota with `429` and `Retry-After: 1`; 10 ms each
//! way. Each worker sends one request after the other, up to 4 attempts each, for 60 s; what is under way
//! then is not counted. The quota of a changing server changes at 30 s, within a window that is open.
//!
//! - 429s for each success: as answered by the server
//! - failed: calls whose final result is not a 200, over all calls that ended
//! - quota used: 200s answered, over the seconds times the quota; because of the offset a run touches 61
//!   windows, so that it can be up to 2 % above 1

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use tokio::time::{Instant, sleep};
use tower::{BoxError, ServiceExt, service_fn};

use crate::{
    harness::{lock, mean, run_all, simulate},
    policies::{Body, Client, Server, Strategy},
};

const WORKERS: usize = 200;
const LATENCY: Duration = Duration::from_millis(10);
const RUN: Duration = Duration::from_secs(60);
const CHANGE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(1);

/// One setting and strategy, as means over the seeds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    pub(crate) headers: bool,
    pub(crate) strategy: Strategy,
    pub(crate) rejected_per_ok: f64,
    pub(crate) failed: f64,
    pub(crate) quota_used: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    Steady,
    Halved,
    Doubled,
    FourProcesses,
}

impl Scenario {
    const ALL: [Self; 4] = [
        Self::Steady,
        Self::Halved,
        Self::Doubled,
        Self::FourProcesses,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Halved => "halved",
            Self::Doubled => "doubled",
            Self::FourProcesses => "4procs",
        }
    }

    fn processes(self) -> usize {
        match self {
            Self::FourProcesses => 4,
            _ => 1,
        }
    }

    /// How many requests a window allows, so long after the start.
    fn quota(self, elapsed: Duration) -> u32 {
        match self {
            Self::Halved if elapsed >= CHANGE => 50,
            Self::Doubled if elapsed >= CHANGE => 200,
            _ => 100,
        }
    }

    /// How many requests the whole run allows.
    fn total_quota(self) -> f64 {
        (0..RUN.as_secs())
            .map(|second| f64::from(self.quota(Duration::from_secs(second))))
            .sum()
    }
}

pub(crate) fn run(seeds: &[u64], strategies: &[Strategy]) -> Vec<Row> {
    let mut settings = Vec::new();
    for scenario in Scenario::ALL {
        for headers in [false, true] {
            settings.extend(
                strategies
                    .iter()
                    .map(|strategy| (scenario, headers, *strategy)),
            );
        }
    }
    let jobs: Vec<_> = settings
        .iter()
        .flat_map(|setting| seeds.iter().map(move |seed| (*setting, *seed)))
        .collect();
    let tallies = run_all(
        "rate limit",
        &jobs,
        |((scenario, headers, strategy), seed)| {
            simulate(*seed, one_run(*scenario, *headers, *strategy))
        },
    );
    let by_setting = settings.into_iter().zip(tallies.chunks(seeds.len()));
    by_setting
        .map(|(setting, tallies)| row(setting, tallies))
        .collect()
}

fn row((scenario, headers, strategy): (Scenario, bool, Strategy), tallies: &[Tally]) -> Row {
    Row {
        scenario,
        headers,
        strategy,
        rejected_per_ok: mean(tallies.iter().map(|it| it.rejected / it.accepted)),
        failed: mean(tallies.iter().map(|it| it.failed_calls / it.calls)),
        quota_used: mean(
            tallies
                .iter()
                .map(|it| it.accepted / scenario.total_quota()),
        ),
    }
}

/// What is counted in one run; as numbers to be divided.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    accepted: f64,
    rejected: f64,
    calls: f64,
    failed_calls: f64,
}

async fn one_run(scenario: Scenario, headers: bool, strategy: Strategy) -> Tally {
    let limiter = Arc::new(Mutex::new(Limiter::new(scenario, headers)));
    let calls = Arc::new(Mutex::new(Tally::default()));
    for _ in 0..scenario.processes() {
        let process = strategy.client(server(limiter.clone()));
        for _ in 0..WORKERS / scenario.processes() {
            tokio::spawn(work(process.clone(), calls.clone()));
        }
    }
    sleep(RUN).await;
    let (answered, called) = (lock(&limiter).tally, *lock(&calls));
    Tally {
        calls: called.calls,
        failed_calls: called.failed_calls,
        ..answered
    }
}

/// Sends one request after the other, until the run ends.
async fn work(client: Client, tally: Arc<Mutex<Tally>>) {
    loop {
        let result = client.clone().oneshot(Request::new(Body::new())).await;
        let mut tally = lock(&tally);
        tally.calls += 1.0;
        if !matches!(result, Ok(StatusCode::OK)) {
            tally.failed_calls += 1.0;
        }
    }
}

fn server(limiter: Arc<Mutex<Limiter>>) -> Server {
    let answer = move |_| {
        let limiter = limiter.clone();
        async move {
            sleep(LATENCY).await;
            let response = lock(&limiter).answer(Instant::now());
            sleep(LATENCY).await;
            Ok::<_, BoxError>(response)
        }
    };
    service_fn(answer).boxed_clone()
}

/// A fixed window.
struct Limiter {
    scenario: Scenario,
    headers: bool,
    started: Instant,
    /// How long the first window was open when the run started.
    offset: Duration,
    window: u64,
    used: u32,
    tally: Tally,
}

impl Limiter {
    fn new(scenario: Scenario, headers: bool) -> Self {
        Self {
            scenario,
            headers,
            started: Instant::now(),
            offset: WINDOW.mul_f64(fastrand::f64()),
            window: 0,
            used: 0,
            tally: Tally::default(),
        }
    }

    fn answer(&mut self, now: Instant) -> Response<Body> {
        let elapsed = now - self.started;
        let window = ((elapsed + self.offset).as_nanos() / WINDOW.as_nanos()) as u64;
        if window != self.window {
            (self.window, self.used) = (window, 0);
        }
        let quota = self.scenario.quota(elapsed);
        let mut response = Response::new(Body::new());
        if self.used < quota {
            self.used += 1;
            self.tally.accepted += 1.0;
        } else {
            self.tally.rejected += 1.0;
            refuse(&mut response);
        }
        if self.headers {
            state_limit(&mut response, quota, quota.saturating_sub(self.used));
        }
        response
    }
}

fn refuse(response: &mut Response<Body>) {
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let seconds = WINDOW.as_secs().into();
    response.headers_mut().insert(RETRY_AFTER, seconds);
}

/// As in draft-ietf-httpapi-ratelimit-headers-10.
fn state_limit(response: &mut Response<Body>, quota: u32, remaining: u32) {
    let policy = format!("\"api\";q={quota};w=1");
    let state = format!("\"api\";r={remaining};t=1");
    for (name, value) in [("ratelimit-policy", policy), ("ratelimit", state)] {
        let value = value.try_into().expect("quotes and digits are valid");
        response.headers_mut().insert(name, value);
    }
}
