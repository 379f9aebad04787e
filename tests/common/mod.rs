//! Helpers for the test suites that run without a network.

mod message;
mod scripted_server;

use std::{iter, time::Duration};

use http::{Request, Response};
use tower::{BoxError, Layer, ServiceExt};
use tower_http::classify::MakeClassifier;
use tower_http_retry::{
    GiveUpReason, RetryLayer, RetryOutcome, RetryPolicy, RetryableFailure, backoff_fn,
};

pub(crate) use self::{
    message::{
        InnerBody, InnerRequest, InnerResponse, RequestBody, RequestExt, ResponseExt,
        RetryResponse, body_bytes, request, response,
    },
    scripted_server::{IntoReply, ScriptedServer},
};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// An error object with `invalid_token`.
pub(crate) const INVALID_TOKEN: &str = r#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token","error_description":"It has expired","message":"Unauthorised"}"#;

/// Creates a policy with a delay of `delay` before each retry.
pub(crate) fn policy_with_delay(delay: Duration) -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(move || iter::repeat(delay)))
}

/// Sends `request` through a retry layer to a server that follows `script`.
///
/// Panics unless the layer makes exactly one attempt per reply of the script.
pub(crate) async fn run_script<C>(
    policy: RetryPolicy<C>,
    request: Request<RequestBody>,
    script: impl IntoIterator<Item: IntoReply>,
) -> Result<RetryResponse, BoxError>
where
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
{
    let server = ScriptedServer::new(script);
    let client = RetryLayer::new(policy).layer(server.clone());
    let result = client.oneshot(request).await;
    server.assert_script_completed();
    result
}

/// Returns the reason for giving up from the outcome of `response`.
pub(crate) fn give_up_reason<B>(response: &Response<B>) -> Option<GiveUpReason> {
    RetryOutcome::from_response(response).give_up_reason()
}
