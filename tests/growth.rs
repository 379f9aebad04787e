//! The cost of parsing response headers, checked for growth that is not linear.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, ServiceExt, service_fn};
use tower_http_retry::{RateGate, ReplayBody, RetryLayer, RetryPolicy};

type Body = Full<Bytes>;

/// The factor between the two sizes that are compared.
const FACTOR: usize = 4;

/// The largest allowed ratio of the costs. Linear cost gives 4, quadratic cost 16.
const MAX_RATIO: f64 = 8.0;

/// The smaller size is chosen to take at least this time, which hides the constant cost of a call.
const MIN_COST: Duration = Duration::from_millis(1);

/// The largest size tried. An input that is still cheaper is read only in part.
const MAX_SIZE: usize = 1 << 22;

/// The number of ratios that are measured. Their median counts.
const MIN_RUNS: usize = 15;

/// The number of ratios after which a median above the limit is a failure.
const MAX_RUNS: usize = 100;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[test]
fn rate_limit_fields_are_parsed_in_linear_time() {
    let unique = |n: usize, parameters: &str| {
        let items = (0..n / 16).map(|i| format!("\"{i}\"{parameters}"));
        items.collect::<Vec<_>>().join(",")
    };
    assert_linear("equal names", |n| rate_limit(list("a", n), list("b", n)));
    assert_linear("unique names", |n| {
        rate_limit(unique(n, ";r=1;t=1"), unique(n, ";q=2;w=1"))
    });
    assert_linear("names with escapes", |n| {
        let name = format!("\"{}\"", r#"\""#.repeat(n / 2));
        rate_limit(format!("{name};r=1;t=1"), format!("{name};q=2;w=1"))
    });
    assert_linear("parameters", |n| {
        let parameters = "a;r=1;t=1".to_owned() + &";q=2;w=1;x=?1".repeat(n / 13);
        rate_limit(parameters.clone(), parameters)
    });
    assert_linear("byte sequences", |n| {
        let key = format!("a;pk=:{}:", "QUJD".repeat(n / 4));
        rate_limit(key.clone(), key)
    });
    assert_linear("inner list", |n| {
        let list = format!("({})", "a ".repeat(n / 2));
        rate_limit(list.clone(), list)
    });
    assert_linear("syntax error at the end", |n| {
        rate_limit(list("a", n) + ",", list("b", n))
    });
    assert_linear("lines", |n| {
        let mut headers = lines(&RATELIMIT, "a", n / 8);
        headers.extend(lines(&POLICY, "b", n / 8));
        ok(headers)
    });
}

#[test]
fn legacy_rate_limit_fields_are_parsed_in_linear_time() {
    for name in ["ratelimit-reset", "x-ratelimit-reset"] {
        let name = HeaderName::from_static(name);
        assert_linear("digits", |n| ok(one(&name, "0".repeat(n))));
        assert_linear("list", |n| ok(one(&name, list(" ", n))));
    }
}

#[test]
fn retry_after_and_date_are_parsed_in_linear_time() {
    for name in [header::RETRY_AFTER, header::DATE] {
        assert_linear("digits", |n| limited(one(&name, "9".repeat(n))));
        assert_linear("leap seconds", |n| {
            limited(one(&name, ":60 ".repeat(n / 4)))
        });
    }
    assert_linear("lines", |n| {
        let date = "Sat, 31 Dec 2016 23:59:60 GMT";
        limited(lines(&header::RETRY_AFTER, date, n / 32))
    });
}

/// Asserts that the cost of `response(n)` grows linearly with `n`.
///
/// `n` is about the size of the response in bytes. It starts small and doubles until a response takes
/// [`MIN_COST`].
fn assert_linear(input: &str, response: impl Fn(usize) -> Response<Body>) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let mut n = 1 << 10;
    let mut small = response(n);
    while (0..3).any(|_| cost(&runtime, &small) < MIN_COST) && n < MAX_SIZE {
        n *= 2;
        small = response(n);
    }
    let large = response(n * FACTOR);
    let mut ratios = Vec::new();
    loop {
        // Two measurements of about the same time, interleaved: a slower phase of the CPU affects both.
        let small_cost = |_| cost(&runtime, &small);
        let before: Duration = (0..FACTOR / 2).map(small_cost).sum();
        let large_cost = cost(&runtime, &large);
        let after: Duration = (0..FACTOR / 2).map(small_cost).sum();
        let small_cost = (before + after) / FACTOR as u32;
        ratios.push(large_cost.as_secs_f64() / small_cost.as_secs_f64());
        if ratios.len() >= MIN_RUNS {
            let median = median(&mut ratios);
            if median < MAX_RATIO {
                break;
            }
            assert!(
                ratios.len() < MAX_RUNS,
                "{input}: {small_cost:?} for {n} bytes, {median:.1} times as much for {FACTOR}·{n}"
            );
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the CPU time of a call that gets this response.
fn cost(runtime: &Runtime, response: &Response<Body>) -> Duration {
    let status = response.status();
    let mut response = Some(response.clone());
    let server = service_fn(
        move |_: Request<ReplayBody<Body>>| -> Ready<Result<_, Infallible>> {
            ready(Ok(response.take().unwrap()))
        },
    );
    // A new gate, which no earlier response has closed.
    let policy = RetryPolicy::new().max_retries(0).rate_gate(RateGate::new());
    let retry = RetryLayer::new(policy).layer(server);
    let request = Request::new(Body::default());
    runtime.block_on(async {
        let start = Timestamp::now();
        let response = retry.oneshot(request).await;
        let cost = start.elapsed();
        assert_eq!(response.unwrap().status(), status);
        cost
    })
}

/// The CPU time of this thread, on Linux. Elsewhere the wall-clock time, which other load affects.
struct Timestamp {
    cpu_time: Option<Duration>,
    wall_clock: Instant,
}

impl Timestamp {
    fn now() -> Self {
        Self {
            cpu_time: Self::cpu_time(),
            wall_clock: Instant::now(),
        }
    }

    fn elapsed(&self) -> Duration {
        let cpu_time = Self::cpu_time().zip(self.cpu_time);
        let cpu_time = cpu_time.map(|(end, start)| end.saturating_sub(start));
        cpu_time.unwrap_or_else(|| self.wall_clock.elapsed())
    }

    fn cpu_time() -> Option<Duration> {
        // The kernel updates the file when a thread yields, or else only once per tick.
        std::thread::yield_now();
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let nanos = stat.split(' ').next()?.parse().ok()?;
        // Zero if the kernel does not account for it.
        (nanos > 0).then_some(Duration::from_nanos(nanos))
    }
}

fn ok(headers: HeaderMap) -> Response<Body> {
    with_status(StatusCode::OK, headers)
}

fn limited(headers: HeaderMap) -> Response<Body> {
    with_status(StatusCode::TOO_MANY_REQUESTS, headers)
}

fn with_status(status: StatusCode, headers: HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn rate_limit(state: String, policy: String) -> Response<Body> {
    let mut headers = one(&RATELIMIT, state);
    headers.extend(one(&POLICY, policy));
    ok(headers)
}

fn one(name: &HeaderName, value: String) -> HeaderMap {
    HeaderMap::from_iter([(name.clone(), value.try_into().unwrap())])
}

fn lines(name: &HeaderName, line: &'static str, count: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..count {
        headers.append(name, line.try_into().unwrap());
    }
    headers
}

/// Creates a list of equal members that is about `n` bytes long.
fn list(member: &str, n: usize) -> String {
    vec![member; n / (member.len() + 1)].join(",")
}
