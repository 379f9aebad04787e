//! Retry decisions and delays of the layer, under paused time.

#[path = "../common/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "each suite uses a part of the helpers"
)]
mod common;

mod attempts;
mod budget;
mod cancellation;
mod classifier;
mod deadline;
mod decision;
mod discard;
mod invalid_token;
mod readiness;
mod replay;
mod transport;

use std::time::Duration;

use tower::Layer;
use tower_http_retry::{Retry, RetryLayer, RetryOutcome, RetryPolicy};
use tower_test::mock::{Handle, Mock};

use common::{
    InnerRequest, InnerResponse, RequestBody, RequestExt, ResponseExt, SECOND, request, response,
    run_script,
};

/// The delay before each retry under [`policy`].
const DELAY: Duration = Duration::from_millis(100);

fn policy() -> RetryPolicy {
    common::policy_with_delay(DELAY)
}

/// Sends `request`, and returns the outcome of a call that gives up after the first attempt.
async fn gives_up(
    policy: RetryPolicy,
    request: http::Request<RequestBody>,
    reply: InnerResponse,
) -> RetryOutcome {
    let status = reply.status();
    let response = run_script(policy, request, [reply]).await.unwrap();
    assert_eq!(response.status(), status);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(
        (outcome.attempts(), outcome.total_delay()),
        (1, Duration::ZERO)
    );
    outcome
}

/// The server side of [`mock_client`].
type Server = Handle<InnerRequest, InnerResponse>;

/// Creates a client whose server replies step by step.
fn mock_client(policy: RetryPolicy) -> (Retry<Mock<InnerRequest, InnerResponse>>, Server) {
    let (inner, server) = tower_test::mock::pair();
    (RetryLayer::new(policy).layer(inner), server)
}

/// Waits for a request and responds to it.
async fn respond(server: &mut Server, response: InnerResponse) {
    let (_, reply) = server.next_request().await.expect("a request");
    reply.send_response(response);
}
