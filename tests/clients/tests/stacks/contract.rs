//! The behaviour common to all clients that are services.

use std::fmt;

use bytes::Bytes;
use clients::{close, policy, refusing_server, request_to, start_server, status, with_timeout};
use http::{Method, Request, Response};
use http_body_util::Full;
use tower::{Service, ServiceExt};
use tower_http_retry::{GiveUpReason, OutcomeHandle, RetryOutcome, RetryPolicy};

/// Checks the stack that `stack` creates from a policy.
pub(crate) async fn check<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    failed_responses_are_retried(&stack).await;
    refused_connection_is_retried(&stack).await;
    lost_response_is_retried(&stack).await;
    lost_response_to_post_is_not_retried(&stack).await;
}

async fn failed_responses_are_retried<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let server = start_server([status(504), status(429), status(200)]);
    let request = request_to(&server, Method::PUT, "money");
    let response = with_timeout(stack(policy()).oneshot(request))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 3);
    assert_eq!(server.bodies(), ["money"; 3]);
}

async fn refused_connection_is_retried<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let (server, policy) = refusing_server([status(200)]);
    // Nothing was sent, which allows a retry for any method.
    let request = request_to(&server, Method::POST, "money");
    let response = with_timeout(stack(policy).oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.bodies(), ["money"]);
}

async fn lost_response_is_retried<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let server = start_server([close(), status(200)]);
    let request = request_to(&server, Method::PUT, "money");
    let response = with_timeout(stack(policy()).oneshot(request))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.bodies(), ["money"; 2]);
}

async fn lost_response_to_post_is_not_retried<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let server = start_server([close()]);
    let mut request = request_to(&server, Method::POST, "money");
    let handle = OutcomeHandle::new();
    request.extensions_mut().insert(handle.clone());
    assert!(
        with_timeout(stack(policy()).oneshot(request))
            .await
            .is_err()
    );
    let outcome = handle.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(server.bodies(), ["money"]);
}
