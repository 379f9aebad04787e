//! What holds with every client that is a service.

use std::fmt;

use bytes::Bytes;
use clients::{Answer, Server, policy, status, within};
use http::{Method, Request, Response};
use http_body_util::Full;
use tower::{Service, ServiceExt};
use tower_http_retry::{GiveUpReason, OutcomeHandle, RetryOutcome, RetryPolicy};

/// Holds a stack, made from a policy, to all of it.
pub(crate) async fn holds<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    failed_responses_are_sent_again(&stack).await;
    a_refused_connection_is_tried_again(&stack).await;
    a_lost_answer_is_asked_for_again(&stack).await;
    a_lost_answer_to_a_post_is_not(&stack).await;
}

async fn failed_responses_are_sent_again<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let server = Server::start([status(504), status(429), status(200)]);
    let request = server.request(Method::PUT, "money");
    let response = within(stack(policy()).oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 3);
    assert_eq!(server.bodies(), ["money"; 3]);
}

async fn a_refused_connection_is_tried_again<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let (server, policy) = Server::down([status(200)]);
    // Nothing was sent, so that it may be any method.
    let request = server.request(Method::POST, "money");
    let response = within(stack(policy).oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.bodies(), ["money"]);
}

async fn a_lost_answer_is_asked_for_again<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let server = Server::start([Answer::HangUp, status(200)]);
    let request = server.request(Method::PUT, "money");
    let response = within(stack(policy()).oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.bodies(), ["money"; 2]);
}

async fn a_lost_answer_to_a_post_is_not<S, B>(stack: impl Fn(RetryPolicy) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: fmt::Debug,
{
    let server = Server::start([Answer::HangUp]);
    let mut request = server.request(Method::POST, "money");
    let handle = OutcomeHandle::new();
    request.extensions_mut().insert(handle.clone());
    assert!(within(stack(policy()).oneshot(request)).await.is_err());
    let outcome = handle.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(server.bodies(), ["money"]);
}
