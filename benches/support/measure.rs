//! How overhead is measured.
//!
//! Of the candidates one after the other is measured for a short round, again and again, so that what the
//! machine does meanwhile is shared; the fastest round counts. Requests are made before the clock
//! starts. Each case has processes of its own: neither a subscriber nor a paused clock of another case
//! can linger in global state. Where things happen to lie in a process's memory moves the ratio by a tenth; of
//! several processes that with the median ratio is reported.
//!
//! Tokio's timers round up to whole milliseconds, so that by the running clock each wait of nothing lasts
//! about one, whoever waits. What counts here is work: where there is a retry, the clock is paused, and
//! such a timer has run out as soon as it is set.

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

use crate::traffic::{Traffic, read, refuse_next};

const ROUNDS: u32 = 400;
const CALLS: u32 = 1_000;
const PROCESSES: usize = 7;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) traffic: Traffic,
    /// With a subscriber that takes all spans of INFO and above, and writes nothing.
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

/// Set where the process is one that measures a case.
const CASE: &str = "OVERHEAD_CASE";

/// Lets `report` measure and print all cases, or those that the arguments name. Lines that tell of a
/// case as a whole come last.
pub(crate) fn run(report: fn(&Case) -> Result<(), BoxError>) -> Result<(), BoxError> {
    if let Ok(name) = env::var(CASE) {
        return report(find(&name)?);
    }
    let mut names: Vec<_> = env::args().skip(1).collect();
    // Cargo's own.
    names.retain(|name| name != "--bench");
    let cases: Result<Vec<_>, _> = names.iter().map(|name| find(name)).collect();
    let mut cases = cases?;
    if cases.is_empty() {
        cases = CASES.iter().collect();
    }
    let mut last = Vec::new();
    for case in cases {
        let output = typical_output(case)?;
        for line in output.lines().map(str::to_owned) {
            if line.starts_with("overhead case=") {
                last.push(line);
            } else {
                println!("{line}");
            }
        }
    }
    last.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn find(name: &str) -> Result<&'static Case, BoxError> {
    let case = CASES.iter().find(|case| case.name == name);
    case.ok_or_else(|| format!("no such case: {name}").into())
}

/// Of several processes, what that with the median ratio says.
fn typical_output(case: &Case) -> Result<String, BoxError> {
    let mut outputs = Vec::new();
    for _ in 0..PROCESSES {
        let output = in_process_of_its_own(case)?;
        let ratio = output.split_once(" ratio=").and_then(|(_, it)| {
            let (ratio, _) = it.split_once(' ')?;
            ratio.parse::<f64>().ok()
        });
        outputs.push((ratio.ok_or("a process that reports no ratio")?, output));
    }
    outputs.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    Ok(outputs.swap_remove(PROCESSES / 2).1)
}

fn in_process_of_its_own(case: &Case) -> Result<String, BoxError> {
    let mut command = Command::new(env::current_exe()?);
    let command = command.env(CASE, case.name).stderr(Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", case.name, output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What a call takes.
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

/// What is measured in one run.
pub(crate) struct Candidates<'a> {
    case: &'a Case,
    names: Vec<&'static str>,
    rounds: Vec<Round>,
}

/// Makes some calls; gives the time that they took.
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

    /// The service without a layer: where there is a retry, the caller makes it.
    pub(crate) fn add_bare<Q, S, R>(&mut self, request: fn(Traffic) -> Q, service: S)
    where
        Q: 'static,
        S: Service<Q, Response = Response<R>, Error: Debug> + 'static,
        R: Body<Data = Bytes>,
    {
        let traffic = self.case.traffic;
        self.names.push("bare");
        self.rounds
            .push(round(traffic, request, service, traffic == Traffic::Retry));
    }

    /// A service with a layer, which makes the retries.
    pub(crate) fn add<Q, S, R>(&mut self, name: &'static str, request: fn(Traffic) -> Q, service: S)
    where
        Q: 'static,
        S: Service<Q, Response = Response<R>, Error: Debug> + 'static,
        R: Body<Data = Bytes>,
    {
        self.names.push(name);
        self.rounds
            .push(round(self.case.traffic, request, service, false));
    }

    /// What a call of each takes.
    pub(crate) fn measure(mut self) -> Result<Vec<(&'static str, Cost)>, BoxError> {
        if self.case.traced {
            let subscriber = tracing_subscriber::registry();
            subscriber.with(LevelFilter::INFO).try_init()?;
        }
        let mut runtime = Builder::new_current_thread();
        let retries = self.case.traffic == Traffic::Retry;
        let runtime = runtime.enable_time().start_paused(retries).build()?;

        let counted = self.rounds.iter_mut().map(|it| allocations(it, &runtime));
        let allocations: Vec<_> = counted.collect();
        let mut fastest = vec![Duration::MAX; self.rounds.len()];
        // What counts the allocations stands aside; each allocation and its release still take about 3 ns
        // more.
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

fn round<Q, S, R>(traffic: Traffic, request: fn(Traffic) -> Q, mut service: S, twice: bool) -> Round
where
    Q: 'static,
    S: Service<Q, Response = Response<R>, Error: Debug> + 'static,
    R: Body<Data = Bytes>,
{
    Box::new(move |runtime| {
        runtime.block_on(async {
            let mut spent = Duration::ZERO;
            for _ in 0..CALLS {
                let requests = || (request(traffic), twice.then(|| request(traffic)));
                let (first, second) = black_box(uncounted(requests));
                if traffic == Traffic::Retry {
                    refuse_next();
                }
                let start = Instant::now();
                let mut response = call(&mut service, first).await;
                if let Some(second) = second {
                    drop(response);
                    response = call(&mut service, second).await;
                }
                let status = response.status();
                read(response.into_body()).await;
                spent += start.elapsed();
                assert_eq!(status, StatusCode::OK);
            }
            spent
        })
    })
}

async fn call<Q, S: Service<Q, Error: Debug>>(service: &mut S, request: Q) -> S::Response {
    let result = async { service.ready().await?.call(request).await };
    result.await.expect("a service that never fails")
}

/// How many allocations a call makes, when all is warm.
fn allocations(round: &mut Round, runtime: &Runtime) -> f64 {
    round(runtime);
    let counted = allocation_counter::measure(|| {
        black_box(round(runtime));
    });
    let per_call = counted.count_total as f64 / f64::from(CALLS);
    // Not what is looked for: tables that are enlarged once in a while.
    (per_call * 100.0).round() / 100.0
}

/// What is made here is not counted.
fn uncounted<T>(make: impl FnOnce() -> T) -> T {
    let mut made = None;
    allocation_counter::opt_out(|| made = Some(make()));
    made.expect("made at once")
}
