//! reqwest's client, which is a service of requests of its own.

use std::{io, time::Duration};

use bytes::Bytes;
use clients::{Answer, Server, policy, respond, status, within};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use reqwest::{Body, Client, ResponseBuilderExt, redirect};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, ReplayBody, ResponseBody, RetryLayer, RetryOutcome, RetryPolicy,
};

use crate::contract;

#[tokio::test]
async fn http_requests() {
    contract::holds(stack).await;
}

/// A stack of `http` requests. The filter turns them into reqwest's and boxes the errors of both.
fn stack(
    policy: RetryPolicy,
) -> impl Service<Request<Full<Bytes>>, Response = Response<ResponseBody<Body>>, Error = BoxError> {
    ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .filter(|request: Request<ReplayBody<Full<Bytes>>>| {
            reqwest::Request::try_from(request.map(Body::wrap))
        })
        .map_response(Response::<Body>::from)
        .service(Client::new())
}

/// The same with reqwest's own types outside, made by its `RequestBuilder`.
#[tokio::test]
async fn requests_of_its_own() {
    let server = Server::start([
        respond(Response::builder().status(429), "slow down"),
        status(500),
        respond(Response::builder(), "paid"),
    ]);
    let client = Client::new();
    let mut stack = ServiceBuilder::new()
        .filter(Request::<Body>::try_from)
        .map_response(|response: Response<ResponseBody<Body>>| {
            reqwest::Response::from(response.map(Body::wrap))
        })
        .layer(RetryLayer::new(policy()))
        .filter(|request: Request<ReplayBody<Body>>| {
            reqwest::Request::try_from(request.map(Body::wrap))
        })
        .map_response(with_url)
        .service(client.clone());

    let request = client.put(server.uri()).body("money").build().unwrap();
    let response = within(stack.ready().await.unwrap().call(request))
        .await
        .unwrap();
    let outcome = response.extensions().get::<RetryOutcome>().copied();
    assert_eq!(outcome.unwrap().attempts(), 3);
    assert_eq!(response.url().as_str(), format!("{}/", server.uri()));
    assert_eq!(response.text().await.unwrap(), "paid");
    assert_eq!(server.bodies(), ["money"; 3]);
}

/// A `http::Response` has no place for the URL, other than its extensions.
fn with_url(response: reqwest::Response) -> Response<Body> {
    let url = Response::builder().url(response.url().clone()).body(());
    let mut response = Response::<Body>::from(response);
    let url = url.unwrap().into_parts().0.extensions;
    response.extensions_mut().extend(url);
    response
}

#[tokio::test]
async fn a_request_without_a_host_is_refused_and_not_sent_again() {
    let outcome = OutcomeHandle::new();
    let request = Request::get("/accounts")
        .extension(outcome.clone())
        .body(Full::default())
        .unwrap();
    let error = within(stack(policy()).oneshot(request))
        .await
        .err()
        .unwrap();
    assert!(error.downcast_ref::<reqwest::Error>().unwrap().is_builder());
    assert_eq!(outcome.get().unwrap().attempts(), 1);
}

/// The error of reqwest's own `timeout` is of a private type, which the layer cannot read.
#[tokio::test]
async fn its_own_timeout_is_retried_only_where_it_is_told_apart() {
    let client = Client::builder().timeout(Duration::from_millis(300));
    let client = client.build().unwrap();
    let to_reqwest = |request: Request<ReplayBody<Full<Bytes>>>| {
        reqwest::Request::try_from(request.map(Body::wrap))
    };

    let server = Server::start([Answer::Silence]);
    let outcome = OutcomeHandle::new();
    let mut request = server.request(Method::PUT, "money");
    request.extensions_mut().insert(outcome.clone());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .filter(to_reqwest)
        .map_response(Response::<Body>::from)
        .service(client.clone());
    assert!(within(stack.oneshot(request)).await.is_err());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));

    let server = Server::start([Answer::Silence, status(200)]);
    let request = server.request(Method::PUT, "money");
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .filter(to_reqwest)
        .map_response(Response::<Body>::from)
        .map_err(readable)
        .service(client);
    let response = within(stack.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(server.bodies(), ["money"; 2]);
}

fn readable(error: reqwest::Error) -> BoxError {
    match error.is_timeout() && !error.is_connect() {
        true => io::Error::new(io::ErrorKind::TimedOut, error).into(),
        false => error.into(),
    }
}

/// reqwest sees a body that it cannot clone: a redirect that would need it again is not followed.
#[tokio::test]
async fn redirects_are_followed_without_a_body_only() {
    let redirect = |status: u16| {
        let head = Response::builder().status(status);
        respond(head.header("location", "/there"), "")
    };
    let server = Server::start([redirect(307), redirect(307), status(200)]);
    let response = stack(policy()).oneshot(server.request(Method::PUT, "money"));
    assert_eq!(within(response).await.unwrap().status(), 307);
    let response = stack(policy()).oneshot(server.request(Method::GET, ""));
    assert_eq!(within(response).await.unwrap().status(), 200);
    let paths = server.each(|seen| seen.head.uri.path().to_owned());
    assert_eq!(paths, ["/", "/", "/there"]);
}

/// A failure behind a redirect repeats all of it; with the redirect outside, it would not.
#[tokio::test]
async fn a_failure_behind_a_redirect_repeats_the_redirect() {
    let redirect = || {
        let head = Response::builder().status(302);
        respond(head.header("location", "/there"), "")
    };
    let server = Server::start([redirect(), status(429), redirect(), status(200)]);
    let response = stack(policy()).oneshot(server.request(Method::GET, ""));
    assert_eq!(within(response).await.unwrap().status(), 200);
    let paths = server.each(|seen| seen.head.uri.path().to_owned());
    assert_eq!(paths, ["/", "/there", "/", "/there"]);
}

#[tokio::test]
async fn a_response_that_is_not_retried_is_whole() {
    let server = Server::start([respond(Response::builder().status(403), "not yours")]);
    let client = Client::builder().redirect(redirect::Policy::none());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .filter(|request: Request<ReplayBody<Full<Bytes>>>| {
            reqwest::Request::try_from(request.map(Body::wrap))
        })
        .map_response(Response::<Body>::from)
        .service(client.build().unwrap());
    let response = within(stack.oneshot(server.request(Method::PUT, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 403);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));
    let body = within(response.into_body().collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "not yours");
}
