//! What the layer adds to a call, beside the retries of two HTTP clients: `reqwest-retry`, a middleware
//! of `reqwest-middleware`, and `cf-gears-toolkit-http`, whose retries are a tower layer of its own.
//!
//! Cases, requests, and how it is measured are those of the crate's bench `overhead`. There is no
//! network: in place of the client below the retries stands what answers at once, in that client's types,
//! and from each figure that of the same without retries is taken away.
//!
//! The same for everybody: requests and answers, three retries at the most, no wait in `retry`, and a
//! timer even then. Not the same:
//!
//! - This crate and `cf-gears-toolkit-http` read a refusal to its end, so that its connection can be used
//!   again; `reqwest-retry` drops it.
//! - Neither of the peers has a budget, a limit to what is kept of a body, or (as measured here) a span.
//! - `cf-gears-toolkit-http` is its layer alone: that client's stack, which keeps it in boxes and behind
//!   a buffer's task, is left out. Beside it, this crate's layer stands around the same service.
//! - `reqwest-retry` works on reqwest's requests, so that each of the two has a service and a bare figure
//!   of its own. This crate's wraps the body for reqwest, as it has to, and that counts; the conversion
//!   from `http::Request` to reqwest's does not, which the bare service needs as well. For
//!   `reqwest-retry`, neither does what `reqwest-middleware` itself takes: the bare client has it too.
//!
//! `cargo bench -p peers` runs all cases; names behind `--` choose among them.

#[path = "../../support/measure.rs"]
mod measure;
#[path = "../../support/traffic.rs"]
mod traffic;

use std::{convert::Infallible, iter, mem, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body_util::BodyExt;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};
use toolkit_http::{HttpError, ResponseBody, RetryConfig};
use tower::{BoxError, Layer, Service, service_fn};
use tower_http::map_request_body::MapRequestBody;
use tower_http_retry::{RetryLayer, RetryPolicy, backoff_fn};

use self::{
    measure::{Candidates, Case, Cost},
    traffic::{Body, Traffic, answer},
};

fn main() -> Result<(), BoxError> {
    measure::run(report)
}

fn report(case: &Case) -> Result<(), BoxError> {
    let mut candidates = Candidates::new(case);
    add_toolkit_http(&mut candidates, case.traffic);
    add_reqwest_retry(&mut candidates, case.traffic);
    let costs = candidates.measure()?;

    let costs: Vec<_> = costs.into_iter().map(|(_, cost)| cost).collect();
    let [a, ours_a, toolkit, b, ours_b, c, reqwest] = costs[..] else {
        return Err("not as many candidates as were added".into());
    };
    print("cf-gears-toolkit-http", case, ours_a - a, toolkit - a);
    print("reqwest-retry", case, ours_b - b, reqwest - c);
    Ok(())
}

fn print(peer: &str, case: &Case, ours: Cost, theirs: Cost) {
    let ratio = ours.ns / theirs.ns;
    println!(
        "overhead peer={peer} case={} ours_ns={:.0} peer_ns={:.0} ratio={ratio:.2} \
         ours_allocs={} peer_allocs={}",
        case.name, ours.ns, theirs.ns, ours.allocations, theirs.allocations
    );
}

/// This crate's layer, with no wait where there is a retry.
fn ours(traffic: Traffic) -> RetryLayer {
    let policy = RetryPolicy::new();
    RetryLayer::new(match traffic {
        Traffic::Get | Traffic::Post => policy,
        Traffic::Retry => policy.backoff(backoff_fn(|| iter::repeat(Duration::ZERO))),
    })
}

/// The bare service, this crate's layer, and that of `cf-gears-toolkit-http`.
fn add_toolkit_http(candidates: &mut Candidates<'_>, traffic: Traffic) {
    let mut config = RetryConfig::default();
    if traffic == Traffic::Retry {
        config.backoff.initial = Duration::ZERO;
        config.backoff.max = Duration::ZERO;
    }
    let theirs = toolkit_http::RetryLayer::new(config);
    let request = Traffic::request::<Body>;
    candidates.add_bare(request, service_fn(toolkit_answer::<Body>));
    candidates.add(
        "ours",
        request,
        ours(traffic).layer(service_fn(toolkit_answer)),
    );
    candidates.add(
        "toolkit",
        request,
        theirs.layer(service_fn(toolkit_answer::<Body>)),
    );
}

async fn toolkit_answer<B>(request: Request<B>) -> Result<Response<ResponseBody>, HttpError>
where
    B: http_body::Body<Data = Bytes>,
{
    let Ok(response) = answer(request).await;
    Ok(response.map(|body| body.map_err(|never| match never {}).boxed()))
}

/// The bare service and this crate's layer, then the bare client and that with `reqwest-retry`.
fn add_reqwest_retry(candidates: &mut Candidates<'_>, traffic: Traffic) {
    let request = Traffic::request::<reqwest::Body>;
    let service = service_fn(reqwest_answer);
    candidates.add_bare(request, service);
    let under_ours = MapRequestBody::new(service, reqwest::Body::wrap);
    candidates.add("ours", request, ours(traffic).layer(under_ours));

    let backoff = ExponentialBackoff::builder();
    let backoff = match traffic {
        Traffic::Get | Traffic::Post => backoff,
        Traffic::Retry => backoff.retry_bounds(Duration::ZERO, Duration::ZERO),
    };
    let theirs = RetryTransientMiddleware::new_with_policy(backoff.build_with_max_retries(3));
    let bare = ClientBuilder::new(reqwest::Client::new());
    let client = ClientBuilder::new(reqwest::Client::new()).with(theirs);
    candidates.add_bare(reqwest_request, execute(bare.with(Answer).build()));
    candidates.add(
        "reqwest-retry",
        reqwest_request,
        execute(client.with(Answer).build()),
    );
}

async fn reqwest_answer(
    request: Request<reqwest::Body>,
) -> Result<Response<reqwest::Body>, Infallible> {
    let Ok(response) = answer(request).await;
    Ok(response.map(reqwest::Body::wrap))
}

fn reqwest_request(traffic: Traffic) -> reqwest::Request {
    let request = traffic.request::<reqwest::Body>();
    let mut request = reqwest::Request::try_from(request).expect("a URL");
    if traffic != Traffic::Post {
        // As a GET of reqwest's has it.
        *request.body_mut() = None;
    }
    request
}

fn execute(
    client: ClientWithMiddleware,
) -> impl Service<reqwest::Request, Response = Response<reqwest::Body>, Error = reqwest_middleware::Error>
{
    let client = Arc::new(client);
    service_fn(move |request| {
        let client = client.clone();
        async move { client.execute(request).await.map(Response::from) }
    })
}

/// The end of the middlewares, in place of the client.
struct Answer;

#[async_trait::async_trait]
impl Middleware for Answer {
    async fn handle(
        &self,
        mut request: reqwest::Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        let mut sent = Request::new(request.body_mut().take().unwrap_or_default());
        mem::swap(sent.method_mut(), request.method_mut());
        mem::swap(sent.headers_mut(), request.headers_mut());
        let Ok(response) = reqwest_answer(sent).await;
        Ok(response.into())
    }
}
