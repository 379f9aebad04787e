//! reqwest's client, which is a service with its own request type.

use std::{io, time::Duration};

use bytes::Bytes;
use clients::{ok, policy, request_to, response, silence, start_server, status, with_timeout};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use reqwest::{Body, Client, ResponseBuilderExt, redirect};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, ReplayBody, ResponseBody, RetryLayer, RetryOutcome, RetryPolicy,
};

use crate::contract;

#[tokio::test]
async fn http_requests_meet_contract() {
    contract::check(stack).await;
}

/// Creates a stack for `http` requests. The filter converts them to reqwest's, and boxes both errors.
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

/// A stack for requests from reqwest's `RequestBuilder`.
#[tokio::test]
async fn reqwest_requests_are_retried() {
    let server = start_server([response(429, "slow down"), status(500), ok("paid")]);
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
    let response = with_timeout(stack.ready().await.unwrap().call(request))
        .await
        .unwrap();
    let outcome = response.extensions().get::<RetryOutcome>().copied();
    assert_eq!(outcome.unwrap().attempts(), 3);
    assert_eq!(response.url().as_str(), format!("{}/", server.uri()));
    assert_eq!(response.text().await.unwrap(), "paid");
    assert_eq!(server.bodies(), ["money"; 3]);
}

/// Moves the URL to the extensions, because an `http::Response` has no field for it.
fn with_url(response: reqwest::Response) -> Response<Body> {
    let url = Response::builder().url(response.url().clone()).body(());
    let mut response = Response::<Body>::from(response);
    let url = url.unwrap().into_parts().0.extensions;
    response.extensions_mut().extend(url);
    response
}

#[tokio::test]
async fn request_without_host_is_not_retried() {
    let outcome = OutcomeHandle::new();
    let request = Request::get("/accounts")
        .extension(outcome.clone())
        .body(Full::default())
        .unwrap();
    let error = with_timeout(stack(policy()).oneshot(request))
        .await
        .err()
        .unwrap();
    assert!(error.downcast_ref::<reqwest::Error>().unwrap().is_builder());
    assert_eq!(outcome.get().unwrap().attempts(), 1);
}

/// The error of reqwest's `timeout` has a private type, which the layer does not recognize.
#[tokio::test]
async fn reqwest_timeout_is_retried_only_if_mapped() {
    let client = Client::builder().timeout(Duration::from_millis(300));
    let client = client.build().unwrap();
    let to_reqwest = |request: Request<ReplayBody<Full<Bytes>>>| {
        reqwest::Request::try_from(request.map(Body::wrap))
    };

    let server = start_server([silence()]);
    let outcome = OutcomeHandle::new();
    let mut request = request_to(&server, Method::PUT, "money");
    request.extensions_mut().insert(outcome.clone());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .filter(to_reqwest)
        .map_response(Response::<Body>::from)
        .service(client.clone());
    assert!(with_timeout(stack.oneshot(request)).await.is_err());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));

    let server = start_server([silence(), status(200)]);
    let request = request_to(&server, Method::PUT, "money");
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .filter(to_reqwest)
        .map_response(Response::<Body>::from)
        .map_err(timeout_to_io_error)
        .service(client);
    let response = with_timeout(stack.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(server.bodies(), ["money"; 2]);
}

fn timeout_to_io_error(error: reqwest::Error) -> BoxError {
    match error.is_timeout() && !error.is_connect() {
        true => io::Error::new(io::ErrorKind::TimedOut, error).into(),
        false => error.into(),
    }
}

/// reqwest cannot clone the body, and does not follow a redirect that would need it again.
#[tokio::test]
async fn redirect_is_followed_only_without_body() {
    let redirect = || status(307).header("location", "/there");
    let server = start_server([redirect(), redirect(), status(200)]);
    let response = stack(policy()).oneshot(request_to(&server, Method::PUT, "money"));
    assert_eq!(with_timeout(response).await.unwrap().status(), 307);
    let response = stack(policy()).oneshot(request_to(&server, Method::GET, ""));
    assert_eq!(with_timeout(response).await.unwrap().status(), 200);
    let paths = server.paths();
    assert_eq!(paths, ["/", "/", "/there"]);
}

/// A retry repeats the redirect. If the redirect were followed above the layer, it would not.
#[tokio::test]
async fn failure_after_redirect_repeats_redirect() {
    let redirect = || status(302).header("location", "/there");
    let server = start_server([redirect(), status(429), redirect(), status(200)]);
    let response = stack(policy()).oneshot(request_to(&server, Method::GET, ""));
    assert_eq!(with_timeout(response).await.unwrap().status(), 200);
    let paths = server.paths();
    assert_eq!(paths, ["/", "/there", "/", "/there"]);
}

#[tokio::test]
async fn response_without_retry_is_complete() {
    let server = start_server([response(403, "not yours")]);
    let client = Client::builder().redirect(redirect::Policy::none());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .filter(|request: Request<ReplayBody<Full<Bytes>>>| {
            reqwest::Request::try_from(request.map(Body::wrap))
        })
        .map_response(Response::<Body>::from)
        .service(client.build().unwrap());
    let response = with_timeout(stack.oneshot(request_to(&server, Method::PUT, "money"))).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 403);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));
    let body = with_timeout(response.into_body().collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "not yours");
}
