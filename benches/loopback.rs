//! Requests a second and latency over real loopback connections: hyper-util's client bare, under this
//! crate's layer, and under `tower::retry` with a policy written by hand. HTTP/1.1 and HTTP/2, with 1
//! and with 64 requests in flight.
//!
//! The same for all: the server, the request (a GET with four headers and no body), the answer (a 200
//! with a small body, read to its end), the client's settings, and the runtime. Each has a client and
//! connections of its own, which are open before anything is timed: one for each request in flight
//! over HTTP/1.1, a single one over HTTP/2.
//!
//! Server and clients share one thread and one runtime. On two threads, each request waits for the other
//! thread to wake, and how long that takes depends on what else the machine does. On one, it takes the
//! time that is worked for it, the server's part included.
//!
//! Two more are measured as these are, to tell what the ratios are worth: `floor`, the least that such a
//! layer can do (`support/floor.rs`), and `again`, a second bare client: how far it is from the first is
//! what the bench cannot tell apart.
//!
//! In each round each of the five makes the same number of requests, between 0.1 and 0.3 s of them, in
//! turns of 10 to 20 ms, so that what the machine does meanwhile is shared; the order rotates. `rps` is
//! the median of the rounds; `over_bare` the median, with the quartiles behind it, of the ratios to the
//! bare client in the same round. Latencies are from the call to the end of the answer, over all rounds.

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
/// Turns in a round.
const TURNS: usize = 12;
const TURN: Duration = Duration::from_millis(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let server = serve().await?;
    let mut summary = Vec::new();
    println!("proto inflight client      rps  p50_us  p99_us  over_bare");
    for proto in ["h1", "h2"] {
        for in_flight in IN_FLIGHT {
            let candidates = compare(proto, in_flight, server).await?;
            let [bare, ours, tower, ..] = &candidates;
            for it in &candidates {
                let (rps, ratios) = (median(&it.rates), it.over(bare));
                let [p50, p99] = [0.50, 0.99].map(|part| quantile(&it.latencies, part));
                let [low, middle, high] = [0.25, 0.50, 0.75].map(|part| quantile(&ratios, part));
                println!(
                    "{proto:5} {in_flight:8} {:6} {rps:8.0} {p50:7.1} {p99:7.1}  {middle:.3} ({low:.3} to {high:.3})",
                    it.name
                );
            }
            let [bare_rps, ours_rps, tower_rps] = [bare, ours, tower].map(|it| median(&it.rates));
            let ours_over_bare = median(&ours.over(bare));
            summary.push(format!(
                "loopback proto={proto} inflight={in_flight} bare_rps={bare_rps:.0} ours_rps={ours_rps:.0} tower_rps={tower_rps:.0} ours_over_bare={ours_over_bare:.3}"
            ));
        }
    }
    println!("{}", summary.join("\n"));
    Ok(())
}

/// All candidates after all rounds: the bare client, ours and tower's first.
async fn compare(
    proto: &str,
    in_flight: usize,
    server: SocketAddr,
) -> Result<[Candidate; 5], BoxError> {
    let uri: Uri = format!("http://{server}/accounts/acc_1/transactions?limit=10").parse()?;
    let ours = RetryLayer::new(RetryPolicy::new()).layer(client(proto));
    let tower = Retry::new(TowerPolicy::new()?, client(proto));
    let mut candidates = [
        Candidate::new("bare", client(proto), &uri, in_flight),
        Candidate::new("ours", ours, &uri, in_flight),
        Candidate::new("tower", tower, &uri, in_flight),
        Candidate::new("floor", Floor::new(client(proto)), &uri, in_flight),
        Candidate::new("again", client(proto), &uri, in_flight),
    ];

    // Warms up, and tells how many requests fill a turn.
    let mut requests = in_flight;
    for candidate in &mut candidates {
        while candidate.take_turn(requests).await? < TURN {
            requests *= 2;
        }
        candidate.forget();
    }
    for round in 0..ROUNDS {
        for turn in 0..TURNS {
            for position in 0..candidates.len() {
                let at = (round + turn + position) % candidates.len();
                let candidate = &mut candidates[at];
                candidate.take_turn(requests).await?;
            }
        }
        for candidate in &mut candidates {
            candidate.end_round(requests * TURNS);
        }
    }
    Ok(candidates)
}

/// A client, and what has been measured of it.
struct Candidate {
    name: &'static str,
    in_flight: usize,
    /// Makes so many requests, one after the other.
    sequence: Box<dyn Fn(usize) -> Sequence>,
    /// In this round.
    elapsed: Duration,
    /// Requests a second, for each round.
    rates: Vec<f64>,
    /// Microseconds, for each request.
    latencies: Vec<f64>,
}

type Sequence = Pin<Box<dyn Future<Output = Result<Vec<Duration>, BoxError>> + Send>>;

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
            sequence: Box::new(move |requests| {
                Box::pin(in_sequence(service.clone(), uri.clone(), requests))
            }),
            elapsed: Duration::ZERO,
            rates: Vec::new(),
            latencies: Vec::new(),
        }
    }

    /// Makes so many requests, and returns how long that took.
    async fn take_turn(&mut self, requests: usize) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let sequences = (0..self.in_flight).map(|_| (self.sequence)(requests / self.in_flight));
        let mut tasks = JoinSet::from_iter(sequences);
        while let Some(latencies) = tasks.join_next().await {
            let micros = latencies??.into_iter().map(|it| it.as_secs_f64() * 1e6);
            self.latencies.extend(micros);
        }
        let elapsed = start.elapsed();
        self.elapsed += elapsed;
        Ok(elapsed)
    }

    /// Ends a round of so many requests.
    fn end_round(&mut self, requests: usize) {
        let elapsed = std::mem::take(&mut self.elapsed);
        self.rates.push(requests as f64 / elapsed.as_secs_f64());
    }

    /// All that was so far was to warm up.
    fn forget(&mut self) {
        self.elapsed = Duration::ZERO;
        self.rates.clear();
        self.latencies.clear();
    }

    /// The ratio of the rates, for each round.
    fn over(&self, bare: &Self) -> Vec<f64> {
        let rounds = self.rates.iter().zip(&bare.rates);
        rounds.map(|(rate, bare)| rate / bare).collect()
    }
}

async fn in_sequence<S, R>(
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

fn client<B>(proto: &str) -> Client<HttpConnector, B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.http2_only(proto == "h2").build(connector)
}

/// Starts a server that answers every request with a success.
async fn serve() -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let server = auto::Builder::new(TokioExecutor::new());
                let stream = TokioIo::new(stream);
                server.serve_connection(stream, service_fn(answer)).await
            });
        }
    });
    Ok(address)
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
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
