//! How large the future is, so that growth is seen.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    mem::size_of_val,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{
    Layer, Service,
    retry::{
        Policy, Retry,
        budget::{Budget, TpsBudget},
    },
    service_fn,
};
use tower_http_retry::{ReplayBody, RetryLayer, RetryPolicy};

type Body = Full<Bytes>;
type Answer = Result<Response<Body>, Infallible>;

/// For `tower::retry`: a budget, and the sleep of its backoff.
#[derive(Clone)]
struct ByHand(std::sync::Arc<TpsBudget>);

impl Policy<Request<Body>, Response<Body>, Infallible> for ByHand {
    type Future = tokio::time::Sleep;

    fn retry(&mut self, _: &mut Request<Body>, result: &mut Answer) -> Option<Self::Future> {
        let failed = result.as_ref().is_ok_and(|it| it.status() == 429);
        (failed && self.0.withdraw()).then(|| tokio::time::sleep(std::time::Duration::ZERO))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

fn answer<B>(_: Request<B>) -> Ready<Answer> {
    ready(Ok(Response::new(Body::default())))
}

#[test]
fn the_future_is_smaller_than_that_of_towers_retry() {
    let mut ours =
        RetryLayer::new(RetryPolicy::new()).layer(service_fn(answer::<ReplayBody<Body>>));
    let ours = size_of_val(&ours.call(Request::new(Body::default())));
    let mut tower = Retry::new(ByHand(Default::default()), service_fn(answer::<Body>));
    let tower = size_of_val(&tower.call(Request::new(Body::default())));
    assert!(ours <= tower, "{ours} bytes, tower's {tower}");
    assert!(ours <= OURS, "it has grown from {OURS} to {ours} bytes");
}

/// With a response future of 144 bytes, on a machine of 64 bits.
const OURS: usize = 328;
