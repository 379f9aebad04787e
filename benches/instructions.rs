//! How many instructions the layer adds to a service that answers at once, beside `tower::retry` with a
//! policy written by hand: a first-try success, as `get` and `post` of the bench `overhead`.
//!
//! Time depends on what else the machine does; instructions hardly do. Callgrind counts those of a
//! process that makes some calls, and of one that makes more; the difference is what the calls take,
//! without what the processes do besides. From that, the bare service's is taken away.
//!
//! Needs valgrind. With `--check` it exits with 1 where the layer adds more than it may.

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
    traffic::{Body, Traffic, answer, read},
};

/// What the layer may add to a call, as a multiple of what tower's adds.
const MAX_RATIO_GET: f64 = 0.6;
const MAX_RATIO_POST: f64 = 0.9;

const CASES: [(&str, Traffic, f64); 2] = [
    ("get", Traffic::Get, MAX_RATIO_GET),
    ("post", Traffic::Post, MAX_RATIO_POST),
];

/// How many calls each of the two processes makes.
const CALLS: [u32; 2] = [1_000, 3_000];

/// The first argument of a process whose instructions are counted.
const COUNTED: &str = "counted";

fn main() -> Result<ExitCode, BoxError> {
    let args: Vec<_> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    if let [COUNTED, case, service, calls] = args[..] {
        let mut cases = CASES.into_iter();
        let (_, traffic, _) = cases.find(|it| it.0 == case).ok_or("no such case")?;
        make_calls(traffic, service, calls.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let check = args.contains(&"--check");
    let mut exit = ExitCode::SUCCESS;
    for (case, _, max) in CASES {
        let bare = instructions(case, "bare")?;
        let ours = instructions(case, "ours")? - bare;
        let tower = instructions(case, "tower")? - bare;
        let ratio = ours / tower;
        println!("instructions case={case} ours={ours:.0} tower={tower:.0} ratio={ratio:.2}");
        if check && ratio > max {
            eprintln!("missed: the ratio of {case} is to be at most {max}");
            exit = ExitCode::FAILURE;
        }
    }
    Ok(exit)
}

/// The instructions of one call.
fn instructions(case: &str, service: &str) -> Result<f64, BoxError> {
    let [fewer, more] = CALLS;
    let [less, total] = [count(case, service, fewer)?, count(case, service, more)?];
    Ok((total - less) / f64::from(more - fewer))
}

/// The instructions of a process that makes so many calls.
fn count(case: &str, service: &str, calls: u32) -> Result<f64, BoxError> {
    let mut valgrind = Command::new("valgrind");
    let valgrind = valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args([COUNTED, case, service, &calls.to_string()]);
    let output = valgrind.output();
    let output = output.map_err(|error| format!("valgrind cannot be run: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(report.into());
    }
    let collected = report.lines().find_map(|it| it.split_once("Collected :"));
    let (_, count) = collected.ok_or("valgrind says nothing of what it collected")?;
    Ok(count.trim().parse()?)
}

fn make_calls(traffic: Traffic, service: &str, calls: u32) -> Result<(), BoxError> {
    let sent = service_fn(answer::<Body>);
    match service {
        "bare" => run(sent, traffic, calls),
        "tower" => run(Retry::new(TowerPolicy::new()?, sent), traffic, calls),
        "ours" => {
            let layer = RetryLayer::new(RetryPolicy::new());
            let sent = service_fn(answer::<ReplayBody<Body>>);
            run(layer.layer(sent), traffic, calls)
        }
        _ => Err(format!("no such service: {service}").into()),
    }
}

fn run<S, R>(mut service: S, traffic: Traffic, calls: u32) -> Result<(), BoxError>
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
    R: http_body::Body<Data = Bytes>,
{
    for _ in 0..calls {
        let request = black_box(traffic.request::<Body>());
        let call = async {
            let response = service.ready().await?.call(request).await?;
            let status = response.status();
            read(response.into_body()).await;
            Ok::<_, Infallible>(status)
        };
        // Nobody waits for anything.
        let status = call.now_or_never().ok_or("a call that has to wait")??;
        assert!(status.is_success());
    }
    Ok(())
}
