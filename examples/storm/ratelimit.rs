//! The second experiment: 200 workers and a limit of 100 requests per second.
//!
//! The server counts requests in fixed windows of one second. The offset of the windows depends on the
//! seed. The server rejects requests beyond the quota with `429` and `Retry-After: 1`. The network
//! latency is 10 ms each way. Each worker sends requests sequentially for 60 s, with up to 4 attempts
//! each. Requests in flight at the end are not counted. In the scenarios with a change, the quota
//! changes at 30 s, within a window.
//!
//! - 429s for each success: 429s divided by 200s, as sent by the server
//! - failed: calls with a final result other than 200, divided by all completed calls
//! - quota used: 200s sent, divided by the quota of the run; the offset makes a run touch 61 windows,
//!   and the value can exceed 1 by up to 2 %

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
const QUOTA_CHANGE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(1);

/// The results of one scenario and strategy, as means over the seeds.
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

    /// Returns the quota of a window, `elapsed` after the start of the run.
    fn quota(self, elapsed: Duration) -> u32 {
        match self {
            Self::Halved if elapsed >= QUOTA_CHANGE => 50,
            Self::Doubled if elapsed >= QUOTA_CHANGE => 200,
            _ => 100,
        }
    }

    /// Returns the quota of the whole run.
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
            simulate(*seed, run_once(*scenario, *headers, *strategy))
        },
    );
    let by_setting = settings.into_iter().zip(tallies.chunks(seeds.len()));
    by_setting
        .map(|(setting, tallies)| average(setting, tallies))
        .collect()
}

fn average((scenario, headers, strategy): (Scenario, bool, Strategy), tallies: &[Tally]) -> Row {
    Row {
        scenario,
        headers,
        strategy,
        rejected_per_ok: mean(tallies.iter().map(|tally| tally.rejected / tally.accepted)),
        failed: mean(tallies.iter().map(|tally| tally.failed_calls / tally.calls)),
        quota_used: mean(
            tallies
                .iter()
                .map(|tally| tally.accepted / scenario.total_quota()),
        ),
    }
}

/// The counts of one run, as `f64` for divisions.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    accepted: f64,
    rejected: f64,
    calls: f64,
    failed_calls: f64,
}

async fn run_once(scenario: Scenario, headers: bool, strategy: Strategy) -> Tally {
    let limiter = Arc::new(Mutex::new(Limiter::new(scenario, headers)));
    let calls = Arc::new(Mutex::new(Tally::default()));
    for _ in 0..scenario.processes() {
        let process = strategy.build_client(build_server(limiter.clone()));
        for _ in 0..WORKERS / scenario.processes() {
            tokio::spawn(send_requests(process.clone(), calls.clone()));
        }
    }
    sleep(RUN).await;
    let (server_tally, client_tally) = (lock(&limiter).tally, *lock(&calls));
    Tally {
        calls: client_tally.calls,
        failed_calls: client_tally.failed_calls,
        ..server_tally
    }
}

/// Sends requests sequentially until the run ends.
async fn send_requests(client: Client, tally: Arc<Mutex<Tally>>) {
    loop {
        let result = client.clone().oneshot(Request::new(Body::new())).await;
        let mut tally = lock(&tally);
        tally.calls += 1.0;
        if !matches!(result, Ok(StatusCode::OK)) {
            tally.failed_calls += 1.0;
        }
    }
}

fn build_server(limiter: Arc<Mutex<Limiter>>) -> Server {
    let respond = move |_| {
        let limiter = limiter.clone();
        async move {
            sleep(LATENCY).await;
            let response = lock(&limiter).respond(Instant::now());
            sleep(LATENCY).await;
            Ok::<_, BoxError>(response)
        }
    };
    service_fn(respond).boxed_clone()
}

/// A rate limiter with fixed windows.
struct Limiter {
    scenario: Scenario,
    headers: bool,
    started: Instant,
    /// The age of the first window at the start of the run.
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

    fn respond(&mut self, now: Instant) -> Response<Body> {
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
            set_rejected(&mut response);
        }
        if self.headers {
            set_rate_limit_headers(&mut response, quota, quota.saturating_sub(self.used));
        }
        response
    }
}

fn set_rejected(response: &mut Response<Body>) {
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let seconds = WINDOW.as_secs().into();
    response.headers_mut().insert(RETRY_AFTER, seconds);
}

/// Sets the headers of draft-ietf-httpapi-ratelimit-headers-10.
fn set_rate_limit_headers(response: &mut Response<Body>, quota: u32, remaining: u32) {
    let policy = format!("\"api\";q={quota};w=1");
    let state = format!("\"api\";r={remaining};t=1");
    for (name, value) in [("ratelimit-policy", policy), ("ratelimit", state)] {
        let value = value.try_into().expect("only visible ASCII characters");
        response.headers_mut().insert(name, value);
    }
}
