//! Measures the overhead of the layer, compared with the retries of two HTTP clients: `reqwest-retry`, a
//! middleware of `reqwest-middleware`, and `cf-gears-toolkit-http`, whose retries are a tower layer.
//!
//! The cases, the requests and the method are those of the crate's bench `overhead`. There is no network:
//! a service with the types of the client responds immediately. The figures of the same service without
//! retries are subtracted.
//!
//! All candidates use the same requests and responses, at most three retries, and a delay of zero with a
//! timer in `retry`. They differ in the following:
//!
//! - This crate and `cf-gears-toolkit-http` read the body of a 429 to its end, to reuse the connection.
//!   `reqwest-retry` drops it.
//! - The peers have no budget, no limit for buffered bodies and (as measured here) no spans.
//! - Of `cf-gears-toolkit-http`, only the retry layer is measured, without the boxes and the buffer task
//!   of the client's stack. This crate's layer wraps the same service.
//! - `reqwest-retry` works on reqwest's requests. The comparison therefore has two services and two bare
//!   figures. This crate's figure includes the conversion of the body for reqwest, which its users need.
//!   It does not include the conversion from `http::Request` to reqwest's request, which the bare service
//!   needs as well. The figure of `reqwest-retry` does not include the cost of `reqwest-middleware`,
//!   which the bare client has too.
//!
//! `cargo bench -p peers` runs all cases. Names after `--` select cases.

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
    traffic::{Body, Traffic, respond},
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
    let [
        bare,
        ours,
        toolkit,
        reqwest_bare,
        reqwest_ours,
        middleware_bare,
        reqwest_retry,
    ] = costs[..]
    else {
        return Err("unexpected number of candidates".into());
    };
    print_costs("cf-gears-toolkit-http", case, ours - bare, toolkit - bare);
    let ours = reqwest_ours - reqwest_bare;
    print_costs("reqwest-retry", case, ours, reqwest_retry - middleware_bare);
    Ok(())
}

fn print_costs(peer: &str, case: &Case, ours: Cost, theirs: Cost) {
    let ratio = ours.ns / theirs.ns;
    println!(
        "overhead peer={peer} case={} ours_ns={:.0} peer_ns={:.0} ratio={ratio:.2} \
         ours_allocs={} peer_allocs={}",
        case.name, ours.ns, theirs.ns, ours.allocations, theirs.allocations
    );
}

/// Creates this crate's layer, with a delay of zero in `retry`.
fn build_ours(traffic: Traffic) -> RetryLayer {
    let policy = RetryPolicy::new();
    RetryLayer::new(match traffic {
        Traffic::Get | Traffic::Post => policy,
        Traffic::Retry => policy.backoff(backoff_fn(|| iter::repeat(Duration::ZERO))),
    })
}

/// Adds the bare service, this crate's layer and the layer of `cf-gears-toolkit-http`.
fn add_toolkit_http(candidates: &mut Candidates<'_>, traffic: Traffic) {
    let mut config = RetryConfig::default();
    if traffic == Traffic::Retry {
        config.backoff.initial = Duration::ZERO;
        config.backoff.max = Duration::ZERO;
    }
    let theirs = toolkit_http::RetryLayer::new(config);
    let request = Traffic::request::<Body>;
    candidates.add_bare(request, service_fn(respond_for_toolkit::<Body>));
    candidates.add(
        "ours",
        request,
        build_ours(traffic).layer(service_fn(respond_for_toolkit)),
    );
    candidates.add(
        "toolkit",
        request,
        theirs.layer(service_fn(respond_for_toolkit::<Body>)),
    );
}

async fn respond_for_toolkit<B>(request: Request<B>) -> Result<Response<ResponseBody>, HttpError>
where
    B: http_body::Body<Data = Bytes>,
{
    let Ok(response) = respond(request).await;
    Ok(response.map(|body| body.map_err(|never| match never {}).boxed()))
}

/// Adds the bare service and this crate's layer, then the bare client and the client with
/// `reqwest-retry`.
fn add_reqwest_retry(candidates: &mut Candidates<'_>, traffic: Traffic) {
    let request = Traffic::request::<reqwest::Body>;
    let service = service_fn(respond_for_reqwest);
    candidates.add_bare(request, service);
    let replay_service = MapRequestBody::new(service, reqwest::Body::wrap);
    candidates.add("ours", request, build_ours(traffic).layer(replay_service));

    let backoff = ExponentialBackoff::builder();
    let backoff = match traffic {
        Traffic::Get | Traffic::Post => backoff,
        Traffic::Retry => backoff.retry_bounds(Duration::ZERO, Duration::ZERO),
    };
    let theirs = RetryTransientMiddleware::new_with_policy(backoff.build_with_max_retries(3));
    let bare = ClientBuilder::new(reqwest::Client::new());
    let client = ClientBuilder::new(reqwest::Client::new()).with(theirs);
    candidates.add_bare(
        build_reqwest_request,
        into_service(bare.with(ImmediateResponse).build()),
    );
    candidates.add(
        "reqwest-retry",
        build_reqwest_request,
        into_service(client.with(ImmediateResponse).build()),
    );
}

async fn respond_for_reqwest(
    request: Request<reqwest::Body>,
) -> Result<Response<reqwest::Body>, Infallible> {
    let Ok(response) = respond(request).await;
    Ok(response.map(reqwest::Body::wrap))
}

fn build_reqwest_request(traffic: Traffic) -> reqwest::Request {
    let request = traffic.request::<reqwest::Body>();
    let mut request = reqwest::Request::try_from(request).expect("a URL");
    if traffic != Traffic::Post {
        // A GET created by reqwest has no body.
        *request.body_mut() = None;
    }
    request
}

fn into_service(
    client: ClientWithMiddleware,
) -> impl Service<reqwest::Request, Response = Response<reqwest::Body>, Error = reqwest_middleware::Error>
{
    let client = Arc::new(client);
    service_fn(move |request| {
        let client = client.clone();
        async move { client.execute(request).await.map(Response::from) }
    })
}

/// The last middleware. It responds instead of the client.
struct ImmediateResponse;

#[async_trait::async_trait]
impl Middleware for ImmediateResponse {
    async fn handle(
        &self,
        mut request: reqwest::Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        let mut sent = Request::new(request.body_mut().take().unwrap_or_default());
        mem::swap(sent.method_mut(), request.method_mut());
        mem::swap(sent.headers_mut(), request.headers_mut());
        let Ok(response) = respond_for_reqwest(sent).await;
        Ok(response.into())
    }
}
