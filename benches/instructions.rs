//! Counts the instructions that the layer adds to a service that responds immediately, compared with
//! `tower::retry` and a hand-written policy. The calls succeed at the first attempt, as in the cases
//! `get` and `post` of the bench `overhead`.
//!
//! Unlike times, instruction counts hardly depend on the load of the machine. Callgrind counts the
//! instructions of a process with few calls and of one with more calls. The difference excludes startup.
//! The instructions of the bare service are subtracted.
//!
//! Requires valgrind. With `--check` it exits with 1 if the layer exceeds a limit.

#[path = "support/tower_policy.rs"]
mod tower_policy;
#[path = "support/traffic.rs"]
mod traffic;

use std::{
    convert::Infallible,
    env,
    hint::black_box,
    process::{Command, ExitCode},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use tower::{BoxError, Layer, Service, ServiceExt, retry::Retry, service_fn};
use tower_http_retry::{ReplayBody, RetryLayer, RetryPolicy};

use self::{
    tower_policy::TowerPolicy,
    traffic::{Body, Traffic, read_body, respond},
};

/// The limits of the added instructions, relative to those that tower's layer adds.
const MAX_RATIO_GET: f64 = 0.6;
const MAX_RATIO_POST: f64 = 0.9;

const CASES: [(&str, Traffic, f64); 2] = [
    ("get", Traffic::Get, MAX_RATIO_GET),
    ("post", Traffic::Post, MAX_RATIO_POST),
];

/// The number of calls of each process.
const CALLS: [u32; 2] = [1_000, 3_000];

/// The first argument of a process that runs under callgrind.
const COUNTED: &str = "counted";

fn main() -> Result<ExitCode, BoxError> {
    let args: Vec<_> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    if let [COUNTED, case, service, calls] = args[..] {
        let mut cases = CASES.into_iter();
        let (_, traffic, _) = cases
            .find(|(name, _, _)| *name == case)
            .ok_or("unknown case")?;
        make_calls(traffic, service, calls.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let check = args.contains(&"--check");
    let mut exit = ExitCode::SUCCESS;
    for (case, _, max) in CASES {
        let bare = count_per_call(case, "bare")?;
        let ours = count_per_call(case, "ours")? - bare;
        let tower = count_per_call(case, "tower")? - bare;
        let ratio = ours / tower;
        println!("instructions case={case} ours={ours:.0} tower={tower:.0} ratio={ratio:.2}");
        if check && ratio > max {
            eprintln!("missed: the ratio of {case} must be at most {max}");
            exit = ExitCode::FAILURE;
        }
    }
    Ok(exit)
}

/// Returns the instructions of one call.
fn count_per_call(case: &str, service: &str) -> Result<f64, BoxError> {
    let [fewer, more] = CALLS;
    let count = |calls| count_process(case, service, calls);
    Ok((count(more)? - count(fewer)?) / f64::from(more - fewer))
}

/// Returns the instructions of a process that makes `calls` calls.
fn count_process(case: &str, service: &str, calls: u32) -> Result<f64, BoxError> {
    let mut valgrind = Command::new("valgrind");
    let valgrind = valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args([COUNTED, case, service, &calls.to_string()]);
    let output = valgrind.output();
    let output = output.map_err(|error| format!("failed to run valgrind: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(report.into());
    }
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected :"));
    let (_, count) = collected.ok_or("valgrind reported no instruction count")?;
    Ok(count.trim().parse()?)
}

fn make_calls(traffic: Traffic, service: &str, calls: u32) -> Result<(), BoxError> {
    let client = service_fn(respond::<Body>);
    match service {
        "bare" => run_calls(client, traffic, calls),
        "tower" => run_calls(Retry::new(TowerPolicy::new()?, client), traffic, calls),
        "ours" => {
            let layer = RetryLayer::new(RetryPolicy::new());
            let client = service_fn(respond::<ReplayBody<Body>>);
            run_calls(layer.layer(client), traffic, calls)
        }
        _ => Err(format!("unknown service: {service}").into()),
    }
}

fn run_calls<S, R>(mut service: S, traffic: Traffic, calls: u32) -> Result<(), BoxError>
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
    R: http_body::Body<Data = Bytes>,
{
    for _ in 0..calls {
        let request = black_box(traffic.request::<Body>());
        let call = async {
            let response = service.ready().await?.call(request).await?;
            let status = response.status();
            read_body(response.into_body()).await;
            Ok::<_, Infallible>(status)
        };
        let status = call.now_or_never().ok_or("a call is pending")??;
        assert!(status.is_success());
    }
    Ok(())
}
