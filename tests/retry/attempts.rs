//! Successful calls, with and without retries.

use std::{future::ready, io, pin::pin};

use futures_util::poll;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http_retry::{ResponseBody, RetryLayer, RetryOutcome, backoff_fn};

use crate::common::{ScriptedServer, body_bytes, give_up_reason};

use super::*;

#[tokio::test(start_paused = true)]
async fn success_passes_through_unchanged() {
    for status in [101, 200, 204, 302, 304] {
        let response = run_script(policy(), request("POST"), [status])
            .await
            .unwrap();
        assert!(response.extensions().get::<RetryOutcome>().is_none());
        assert_eq!(give_up_reason(&response), None);
        assert_eq!(body_bytes(response).await, "received");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_after_delay() {
    for (status, method) in [(429, "POST"), (500, "GET"), (504, "PUT"), (429, "GET")] {
        let start = Instant::now();
        let response = run_script(policy(), request(method), [status, status, 200])
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(start.elapsed(), 2 * DELAY);
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!((outcome.attempts(), outcome.total_delay()), (3, 2 * DELAY));
        assert_eq!(outcome.give_up_reason(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn overwrites_outcome_of_inner_layer() {
    let server = ScriptedServer::new([500, 200]);
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .map_request(|request: InnerRequest| request)
        .map_response(|response: http::Response<ResponseBody<common::InnerBody>>| response)
        .layer(RetryLayer::new(policy()))
        .service(server.clone());
    let response = client.oneshot(request("GET")).await.unwrap();
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 1);
    server.assert_script_completed();
}

#[tokio::test(start_paused = true)]
async fn zero_delay_yields_to_runtime() {
    let policy = RetryPolicy::new()
        .no_budget()
        .max_retries(u32::MAX)
        .max_elapsed(Duration::MAX)
        .backoff(backoff_fn(|| std::iter::repeat(Duration::ZERO)));
    let inner = ScriptedServer::from_fn(|_| 429);
    let mut call = pin!(RetryLayer::new(policy).layer(inner).oneshot(request("GET")));
    // Returns at all, although each attempt fails at once.
    assert!(poll!(call.as_mut()).is_pending());
}

#[test]
fn future_is_send() {
    fn check<T: Send>(_: T) {}
    let inner = service_fn(|_: InnerRequest| ready(Ok::<_, io::Error>(response(200))));
    check(RetryLayer::new(policy()).layer(inner).call(request("GET")));
}
