//! What the layer adds to a service that answers at once, beside `tower::retry` with a policy
//! written by hand: a GET with four headers, a success at the first attempt.

#[path = "support/by_hand.rs"]
mod by_hand;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{BoxError, Layer, Service, ServiceBuilder};
use tower_http_retry::{RetryLayer, RetryPolicy};

use self::by_hand::ByHand;

const ROUNDS: usize = 40;
const CALLS: u32 = 5_000;

fn main() -> Result<(), BoxError> {
    let mut bare = Answer;
    let mut ours = RetryLayer::new(RetryPolicy::new()).layer(Answer);
    let mut tower = ServiceBuilder::new().retry(ByHand::new()?).service(Answer);

    // In turn, so that what the machine does meanwhile is shared; the fastest round counts.
    let mut best = [Duration::MAX; 3];
    for _ in 0..ROUNDS {
        best[0] = best[0].min(round(&mut bare));
        best[1] = best[1].min(round(&mut ours));
        best[2] = best[2].min(round(&mut tower));
    }
    let added = |index: usize| {
        let added = best[index].saturating_sub(best[0]);
        added.as_nanos() as f64 / f64::from(CALLS)
    };
    let (ours, tower) = (added(1), added(2));
    let ratio = ours / tower;
    println!("overhead case=get ours_ns={ours:.0} tower_ns={tower:.0} ratio={ratio:.2}");
    Ok(())
}

fn round<S: Service<Request<Empty<Bytes>>, Error = Infallible>>(service: &mut S) -> Duration {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut spent = Duration::ZERO;
    for _ in 0..CALLS {
        let request = request();
        let start = Instant::now();
        let future = service.call(black_box(request));
        let future = std::pin::pin!(future);
        black_box(future.poll(cx).is_ready());
        spent += start.elapsed();
    }
    spent
}

fn request() -> Request<Empty<Bytes>> {
    let request = Request::get("https://api.example/accounts/acc_1/transactions?limit=10")
        .header("accept", "application/json")
        .header(
            "authorization",
            "Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG",
        )
        .header("user-agent", "bench/1.0")
        .header("x-request-id", "0af7651916cd43dd8448eb211c80319c");
    request.body(Empty::new()).unwrap_or_default()
}

/// Answers at once.
#[derive(Clone)]
struct Answer;

impl<B> Service<Request<B>> for Answer {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        drop(black_box(request));
        ready(Ok(Response::new(Empty::new())))
    }
}
