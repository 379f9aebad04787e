//! octocrab, over a service of one's own.

use std::sync::Arc;

use clients::{Answer, Server, policy, respond, status, within};
use http::{HeaderValue, Request, Response, header::USER_AGENT};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use octocrab::{
    AuthState, OctoBody, Octocrab, OctocrabBuilder,
    service::middleware::{base_uri::BaseUriLayer, extra_headers::ExtraHeadersLayer},
};
use tower::ServiceBuilder;
use tower_http_retry::{GiveUpReason, OutcomeHandle, RetryLayer, RetryOutcome, RetryPolicy};

/// The retries belong into the service: octocrab's `with_layer` wants what is below it to take its own
/// body already.
fn octocrab(server: &Server, policy: RetryPolicy) -> Octocrab {
    let agent = (USER_AGENT, HeaderValue::from_static("tower-http-retry"));
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(server.uri().parse().unwrap()))
        .layer(ExtraHeadersLayer::new(Arc::new(vec![agent])))
        .layer(RetryLayer::new(policy))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let builder = OctocrabBuilder::new_empty().with_service(service);
    builder.with_auth(AuthState::None).build().unwrap()
}

#[tokio::test]
async fn failed_responses_are_sent_again() {
    let server = Server::start([status(504), status(429), status(200)]);
    let github = octocrab(&server, policy());
    let response = within(github._put("/user/starred", Some(&["a", "b"])));
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 3);
    assert_eq!(server.bodies(), [r#"["a","b"]"#; 3]);
    let agents = server.each(|seen| seen.head.headers[USER_AGENT].clone());
    assert_eq!(agents, ["tower-http-retry"; 3]);
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_whatever_the_method() {
    let (server, policy) = Server::down([status(201)]);
    let github = octocrab(&server, policy);
    let response = within(github._post("/gists", Some(&["a"]))).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.bodies(), [r#"["a"]"#]);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_only_if_idempotent() {
    let server = Server::start([Answer::HangUp, status(200), Answer::HangUp]);
    let github = octocrab(&server, policy());
    let response = within(github._put("/user/starred", Some(&["a"])));
    assert_eq!(
        RetryOutcome::from_response(&response.await.unwrap()).attempts(),
        2
    );

    let outcome = OutcomeHandle::new();
    let request = Request::post("/gists").extension(outcome.clone());
    let request = request.body(OctoBody::from("a".to_owned())).unwrap();
    assert!(within(github.execute(request)).await.is_err());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(server.bodies(), [r#"["a"]"#, r#"["a"]"#, "a"]);
}

/// Its typed calls make an error of a failure, from the response that is whole.
#[tokio::test]
async fn its_errors_are_those_of_the_last_response() {
    let not_found = r#"{"message":"Not Found","documentation_url":""}"#;
    let server = Server::start([
        status(429),
        respond(Response::builder().status(404), not_found),
    ]);
    let github = octocrab(&server, policy());
    let error = within(github.repos("rust-lang", "rust").get()).await;
    let octocrab::Error::GitHub { source, .. } = error.unwrap_err() else {
        panic!("404 is an error")
    };
    assert_eq!(source.message, "Not Found");
    assert_eq!(source.status_code, 404);
    assert_eq!(server.requests(), 2);
}
