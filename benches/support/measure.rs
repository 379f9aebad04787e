//! Measures overhead.
//!
//! The candidates are measured alternately in short rounds, to spread the load of other programs evenly.
//! The fastest round counts. Requests are created before the clock starts. Each case runs in separate
//! processes: subscribers and paused clocks change global state. The memory layout of a process changes
//! the ratio by up to a tenth. Of several processes, the one with the median ratio is reported.
//!
//! Tokio's timers round up to whole milliseconds: a delay of zero takes about one millisecond of real
//! time for every candidate. The bench measures work, not delays. With retries, the clock is paused and
//! such a timer fires as soon as it is set.

use std::{
    env,
    fmt::Debug,
    hint::black_box,
    ops,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use tokio::runtime::{Builder, Runtime};
use tower::{BoxError, Service, ServiceExt};
use tracing_subscriber::{filter::LevelFilter, prelude::*};

use crate::traffic::{Traffic, read_body, reject_next};

const ROUNDS: u32 = 400;
const CALLS: u32 = 1_000;
const PROCESSES: usize = 7;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) traffic: Traffic,
    /// Installs a subscriber that enables spans of INFO and above and writes nothing.
    traced: bool,
}

#[rustfmt::skip]
const CASES: [Case; 6] = [
    Case { name: "get", traffic: Traffic::Get, traced: false },
    Case { name: "post", traffic: Traffic::Post, traced: false },
    Case { name: "retry", traffic: Traffic::Retry, traced: false },
    Case { name: "get_traced", traffic: Traffic::Get, traced: true },
    Case { name: "post_traced", traffic: Traffic::Post, traced: true },
    Case { name: "retry_traced", traffic: Traffic::Retry, traced: true },
];

/// The environment variable with the case, set in a process that measures one.
const CASE_VAR: &str = "OVERHEAD_CASE";

/// Runs `report` for the cases in the arguments, or for all cases. Prints the summary lines last.
pub(crate) fn run(report: fn(&Case) -> Result<(), BoxError>) -> Result<(), BoxError> {
    if let Ok(name) = env::var(CASE_VAR) {
        return report(find_case(&name)?);
    }
    let mut names: Vec<_> = env::args().skip(1).collect();
    // Cargo adds this argument.
    names.retain(|name| name != "--bench");
    let cases: Result<Vec<_>, _> = names.iter().map(|name| find_case(name)).collect();
    let mut cases = cases?;
    if cases.is_empty() {
        cases = CASES.iter().collect();
    }
    let mut summary = Vec::new();
    for case in cases {
        let output = run_median_process(case)?;
        for line in output.lines().map(str::to_owned) {
            if line.starts_with("overhead case=") {
                summary.push(line);
            } else {
                println!("{line}");
            }
        }
    }
    summary.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn find_case(name: &str) -> Result<&'static Case, BoxError> {
    let case = CASES.iter().find(|case| case.name == name);
    case.ok_or_else(|| format!("unknown case: {name}").into())
}

/// Runs several processes and returns the output of the one with the median ratio.
fn run_median_process(case: &Case) -> Result<String, BoxError> {
    let mut outputs = Vec::new();
    for _ in 0..PROCESSES {
        let output = run_process(case)?;
        let ratio = output.split_once(" ratio=").and_then(|(_, rest)| {
            let (ratio, _) = rest.split_once(' ')?;
            ratio.parse::<f64>().ok()
        });
        outputs.push((ratio.ok_or("a process reported no ratio")?, output));
    }
    outputs.sort_by(|(left, _), (right, _)| left.total_cmp(right));
    Ok(outputs.swap_remove(PROCESSES / 2).1)
}

fn run_process(case: &Case) -> Result<String, BoxError> {
    let mut command = Command::new(env::current_exe()?);
    let command = command.env(CASE_VAR, case.name).stderr(Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", case.name, output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The cost of a call.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) ns: f64,
    pub(crate) allocations: f64,
}

impl ops::Sub for Cost {
    type Output = Self;

    fn sub(self, bare: Self) -> Self {
        Self {
            ns: self.ns - bare.ns,
            allocations: self.allocations - bare.allocations,
        }
    }
}

/// The services measured in one run.
pub(crate) struct Candidates<'a> {
    case: &'a Case,
    names: Vec<&'static str>,
    rounds: Vec<Round>,
}

/// Makes a round of calls and returns the time they took.
type Round = Box<dyn FnMut(&Runtime) -> Duration>;

impl<'a> Candidates<'a> {
    pub(crate) fn new(case: &'a Case) -> Self {
        let (names, rounds) = Default::default();
        Self {
            case,
            names,
            rounds,
        }
    }

    /// Adds the service without a layer. If the case retries, the bench itself calls it twice.
    pub(crate) fn add_bare<Q, S, R>(&mut self, request: fn(Traffic) -> Q, service: S)
    where
        Q: 'static,
        S: Service<Q, Response = Response<R>, Error: Debug> + 'static,
        R: Body<Data = Bytes>,
    {
        let traffic = self.case.traffic;
        self.names.push("bare");
        self.rounds.push(new_round(
            traffic,
            request,
            service,
            traffic == Traffic::Retry,
        ));
    }

    /// Adds a service with a layer that retries.
    pub(crate) fn add<Q, S, R>(&mut self, name: &'static str, request: fn(Traffic) -> Q, service: S)
    where
        Q: 'static,
        S: Service<Q, Response = Response<R>, Error: Debug> + 'static,
        R: Body<Data = Bytes>,
    {
        self.names.push(name);
        self.rounds
            .push(new_round(self.case.traffic, request, service, false));
    }

    /// Measures the cost of a call for each candidate.
    pub(crate) fn measure(mut self) -> Result<Vec<(&'static str, Cost)>, BoxError> {
        if self.case.traced {
            let subscriber = tracing_subscriber::registry();
            subscriber.with(LevelFilter::INFO).try_init()?;
        }
        let mut runtime = Builder::new_current_thread();
        let retries = self.case.traffic == Traffic::Retry;
        let runtime = runtime.enable_time().start_paused(retries).build()?;

        let rounds = self.rounds.iter_mut();
        let allocations: Vec<_> = rounds
            .map(|round| count_allocations(round, &runtime))
            .collect();
        let mut fastest = vec![Duration::MAX; self.rounds.len()];
        // Without the allocation counter, which still adds about 3 ns to an allocation and its release.
        allocation_counter::opt_out(|| {
            for _ in 0..ROUNDS {
                for (fastest, round) in fastest.iter_mut().zip(&mut self.rounds) {
                    *fastest = (*fastest).min(round(&runtime));
                }
            }
        });
        let costs = fastest
            .iter()
            .zip(allocations)
            .map(|(time, allocations)| Cost {
                ns: time.as_nanos() as f64 / f64::from(CALLS),
                allocations,
            });
        Ok(self.names.into_iter().zip(costs).collect())
    }
}

fn new_round<Q, S, R>(
    traffic: Traffic,
    request: fn(Traffic) -> Q,
    mut service: S,
    twice: bool,
) -> Round
where
    Q: 'static,
    S: Service<Q, Response = Response<R>, Error: Debug> + 'static,
    R: Body<Data = Bytes>,
{
    Box::new(move |runtime| {
        runtime.block_on(async {
            let mut elapsed = Duration::ZERO;
            for _ in 0..CALLS {
                let requests = || (request(traffic), twice.then(|| request(traffic)));
                let (first, second) = black_box(without_counting(requests));
                if traffic == Traffic::Retry {
                    reject_next();
                }
                let start = Instant::now();
                let mut response = call(&mut service, first).await;
                if let Some(second) = second {
                    drop(response);
                    response = call(&mut service, second).await;
                }
                let status = response.status();
                read_body(response.into_body()).await;
                elapsed += start.elapsed();
                assert_eq!(status, StatusCode::OK);
            }
            elapsed
        })
    })
}

async fn call<Q, S: Service<Q, Error: Debug>>(service: &mut S, request: Q) -> S::Response {
    let result = async { service.ready().await?.call(request).await };
    result.await.expect("the service never fails")
}

/// Returns the allocations of a call, after a round to warm up.
fn count_allocations(round: &mut Round, runtime: &Runtime) -> f64 {
    round(runtime);
    let counted = allocation_counter::measure(|| {
        black_box(round(runtime));
    });
    let per_call = counted.count_total as f64 / f64::from(CALLS);
    // Rounds away the rare allocations of tables that grow.
    (per_call * 100.0).round() / 100.0
}

/// Calls `create` without counting its allocations.
fn without_counting<T>(create: impl FnOnce() -> T) -> T {
    let mut value = None;
    allocation_counter::opt_out(|| value = Some(create()));
    value.expect("the closure has run")
}
