//! The size of the response future, checked against growth.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    mem::size_of_val,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::{Sleep, sleep};
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
type Reply = Result<Response<Body>, Infallible>;

/// The largest size allowed, with an inner future of 144 bytes on a 64-bit machine.
const MAX_SIZE: usize = 328;

#[test]
fn future_is_not_larger_than_that_of_tower_retry() {
    let layer = RetryLayer::new(RetryPolicy::new());
    let mut ours = layer.layer(service_fn(reply::<ReplayBody<Body>>));
    let ours = size_of_val(&ours.call(Request::new(Body::default())));
    let policy = TowerPolicy(Arc::default());
    let mut tower = Retry::new(policy, service_fn(reply::<Body>));
    let tower = size_of_val(&tower.call(Request::new(Body::default())));
    assert!(ours <= tower, "{ours} bytes, in tower {tower}");
    assert!(ours <= MAX_SIZE, "grew from {MAX_SIZE} to {ours} bytes");
}

/// A policy for `tower::retry` with a budget and a backoff.
#[derive(Clone)]
struct TowerPolicy(Arc<TpsBudget>);

impl Policy<Request<Body>, Response<Body>, Infallible> for TowerPolicy {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Request<Body>, result: &mut Reply) -> Option<Sleep> {
        let is_failure = result
            .as_ref()
            .is_ok_and(|response| response.status() == 429);
        (is_failure && self.0.withdraw()).then(|| sleep(Duration::ZERO))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

fn reply<B>(_: Request<B>) -> Ready<Reply> {
    ready(Ok(Response::new(Body::default())))
}
