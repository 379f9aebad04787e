//! Measures throughput and latency over real loopback connections: hyper-util's client without a layer,
//! with this crate's layer, and with `tower::retry` and a hand-written policy. The protocols are HTTP/1.1
//! and HTTP/2, each with 1 and with 64 requests in flight.
//!
//! All candidates use the same server, request (a GET with four headers and no body), response (a 200
//! with a small body, read to its end), client settings and runtime. Each has its own client and its own
//! connections, opened before the measurement: one for each request in flight over HTTP/1.1, a single one
//! over HTTP/2.
//!
//! Server and clients share one thread and one runtime. With two threads, each request would include the
//! time to wake the other thread, which depends on the load of the machine. With one thread, the time of
//! a request is the work of client and server.
//!
//! Two more candidates put the ratios in perspective. `floor` is a lower bound for such a layer
//! (`support/floor.rs`). `again` is a second bare client: its difference from the first is the noise of
//! the bench.
//!
//! In each round, all five candidates send the same number of requests, for 0.1 to 0.3 s. They alternate
//! in slices of 10 to 20 ms, in rotating order, to spread the load of other programs evenly. `rps` is the
//! median of the rounds. `over_bare` is the median of the ratios to the bare client in the same round,
//! followed by the quartiles. Latencies span from the call to the end of the response, over all rounds.

#[path = "support/floor.rs"]
mod floor;
#[path = "support/get.rs"]
mod get;
#[path = "support/tower_policy.rs"]
mod tower_policy;

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, task::JoinSet};
use tower::{BoxError, Layer, Service, ServiceExt, retry::Retry};
use tower_http_retry::{RetryLayer, RetryPolicy};

use self::{floor::Floor, get::get, tower_policy::TowerPolicy};

const IN_FLIGHT: [usize; 2] = [1, 64];
const ROUNDS: usize = 21;
/// Slices in a round.
const SLICES: usize = 12;
const MIN_SLICE: Duration = Duration::from_millis(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let server = start_server().await?;
    let mut summary = Vec::new();
    println!("proto inflight client      rps  p50_us  p99_us  over_bare");
    for proto in ["h1", "h2"] {
        for in_flight in IN_FLIGHT {
            let candidates = compare(proto, in_flight, server).await?;
            let [bare, ours, tower, ..] = &candidates;
            for candidate in &candidates {
                candidate.print(proto, bare);
            }
            let [bare_rps, ours_rps, tower_rps] =
                [bare, ours, tower].map(|candidate| median(&candidate.rates));
            let ours_over_bare = median(&ours.rates_over(bare));
            summary.push(format!(
                "loopback proto={proto} inflight={in_flight} bare_rps={bare_rps:.0} ours_rps={ours_rps:.0} tower_rps={tower_rps:.0} ours_over_bare={ours_over_bare:.3}"
            ));
        }
    }
    println!("{}", summary.join("\n"));
    Ok(())
}

/// Measures all candidates: the bare client, this crate's layer, tower's layer, `floor` and `again`.
async fn compare(
    proto: &str,
    in_flight: usize,
    server: SocketAddr,
) -> Result<[Candidate; 5], BoxError> {
    let uri: Uri = format!("http://{server}/accounts/acc_1/transactions?limit=10").parse()?;
    let ours = RetryLayer::new(RetryPolicy::new()).layer(build_client(proto));
    let tower = Retry::new(TowerPolicy::new()?, build_client(proto));
    let mut candidates = [
        Candidate::new("bare", build_client(proto), &uri, in_flight),
        Candidate::new("ours", ours, &uri, in_flight),
        Candidate::new("tower", tower, &uri, in_flight),
        Candidate::new("floor", Floor::new(build_client(proto)), &uri, in_flight),
        Candidate::new("again", build_client(proto), &uri, in_flight),
    ];

    // Warms up and finds the number of requests that fill a slice.
    let mut requests = in_flight;
    for candidate in &mut candidates {
        while candidate.run_slice(requests).await? < MIN_SLICE {
            requests *= 2;
        }
        candidate.reset();
    }
    for round in 0..ROUNDS {
        for slice in 0..SLICES {
            for position in 0..candidates.len() {
                let index = (round + slice + position) % candidates.len();
                candidates[index].run_slice(requests).await?;
            }
        }
        for candidate in &mut candidates {
            candidate.end_round(requests * SLICES);
        }
    }
    Ok(candidates)
}

/// A client and its measurements.
struct Candidate {
    name: &'static str,
    in_flight: usize,
    /// Sends a number of requests sequentially.
    send: Box<dyn Fn(usize) -> SendFuture>,
    /// The time spent in the current round.
    elapsed: Duration,
    /// Requests per second, for each round.
    rates: Vec<f64>,
    /// Microseconds, for each request.
    latencies: Vec<f64>,
}

/// Returns the latency of each request.
type SendFuture = Pin<Box<dyn Future<Output = Result<Vec<Duration>, BoxError>> + Send>>;

impl Candidate {
    fn new<S, R>(name: &'static str, service: S, uri: &Uri, in_flight: usize) -> Self
    where
        S: Service<Request<Empty<Bytes>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let uri = uri.clone();
        Self {
            name,
            in_flight,
            send: Box::new(move |requests| {
                Box::pin(send_sequentially(service.clone(), uri.clone(), requests))
            }),
            elapsed: Duration::ZERO,
            rates: Vec::new(),
            latencies: Vec::new(),
        }
    }

    /// Sends `requests` requests and returns the elapsed time.
    async fn run_slice(&mut self, requests: usize) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let futures = (0..self.in_flight).map(|_| (self.send)(requests / self.in_flight));
        let mut tasks = JoinSet::from_iter(futures);
        while let Some(latencies) = tasks.join_next().await {
            let latencies = latencies??.into_iter();
            let micros = latencies.map(|latency| latency.as_secs_f64() * 1e6);
            self.latencies.extend(micros);
        }
        let elapsed = start.elapsed();
        self.elapsed += elapsed;
        Ok(elapsed)
    }

    /// Records the rate of a round with `requests` requests.
    fn end_round(&mut self, requests: usize) {
        let elapsed = std::mem::take(&mut self.elapsed);
        self.rates.push(requests as f64 / elapsed.as_secs_f64());
    }

    /// Discards the measurements of the warm-up.
    fn reset(&mut self) {
        self.elapsed = Duration::ZERO;
        self.rates.clear();
        self.latencies.clear();
    }

    /// Returns the ratio of the rates to those of `bare`, for each round.
    fn rates_over(&self, bare: &Self) -> Vec<f64> {
        let rounds = self.rates.iter().zip(&bare.rates);
        rounds.map(|(rate, bare)| rate / bare).collect()
    }

    fn print(&self, proto: &str, bare: &Self) {
        let Self {
            name, in_flight, ..
        } = self;
        let (rps, ratios) = (median(&self.rates), self.rates_over(bare));
        let [p50, p99] = [0.50, 0.99].map(|part| quantile(&self.latencies, part));
        let [low, middle, high] = [0.25, 0.50, 0.75].map(|part| quantile(&ratios, part));
        println!(
            "{proto:5} {in_flight:8} {name:6} {rps:8.0} {p50:7.1} {p99:7.1}  {middle:.3} ({low:.3} to {high:.3})"
        );
    }
}

async fn send_sequentially<S, R>(
    mut service: S,
    uri: Uri,
    requests: usize,
) -> Result<Vec<Duration>, BoxError>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body,
    R::Error: Into<BoxError>,
{
    let mut latencies = Vec::with_capacity(requests);
    for _ in 0..requests {
        let request = get(&uri)?;
        let start = Instant::now();
        let service = service.ready().await.map_err(Into::into)?;
        let response = service.call(request).await.map_err(Into::into)?;
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.map_err(Into::into)?;
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

fn build_client<B>(proto: &str) -> Client<HttpConnector, B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.http2_only(proto == "h2").build(connector)
}

/// Starts a server that returns a 200 to every request.
async fn start_server() -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let server = auto::Builder::new(TokioExecutor::new());
                let stream = TokioIo::new(stream);
                server.serve_connection(stream, service_fn(respond)).await
            });
        }
    });
    Ok(address)
}

async fn respond(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(r#"{"transactions":[]}"#)))
}

fn median(figures: &[f64]) -> f64 {
    quantile(figures, 0.50)
}

fn quantile(figures: &[f64], part: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1) as f64;
    sorted[(last * part).round() as usize]
}
