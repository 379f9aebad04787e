//! octocrab over a custom service.

use std::sync::Arc;

use clients::{
    ScriptedServer, close, policy, refusing_server, response, start_server, status, with_timeout,
};
use http::{HeaderValue, Request, header::USER_AGENT};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use octocrab::{
    AuthState, OctoBody, Octocrab, OctocrabBuilder,
    service::middleware::{base_uri::BaseUriLayer, extra_headers::ExtraHeadersLayer},
};
use tower::ServiceBuilder;
use tower_http_retry::{GiveUpReason, OutcomeHandle, RetryLayer, RetryOutcome, RetryPolicy};

/// Creates a client with the retries in its service, because a layer given to octocrab's `with_layer` has to
/// call a service that takes octocrab's body.
fn octocrab(server: &ScriptedServer, policy: RetryPolicy) -> Octocrab {
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
async fn failed_responses_are_retried() {
    let server = start_server([status(504), status(429), status(200)]);
    let github = octocrab(&server, policy());
    let response = with_timeout(github._put("/user/starred", Some(&["a", "b"])));
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 3);
    assert_eq!(server.bodies(), [r#"["a","b"]"#; 3]);
    let heads = server.heads();
    let agents: Vec<_> = heads.iter().map(|head| &head.headers[USER_AGENT]).collect();
    assert_eq!(agents, ["tower-http-retry"; 3]);
}

#[tokio::test]
async fn refused_connection_is_retried_for_any_method() {
    let (server, policy) = refusing_server([status(201)]);
    let github = octocrab(&server, policy);
    let response = with_timeout(github._post("/gists", Some(&["a"])))
        .await
        .unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.bodies(), [r#"["a"]"#]);
}

#[tokio::test]
async fn lost_response_is_retried_only_if_idempotent() {
    let server = start_server([close(), status(200), close()]);
    let github = octocrab(&server, policy());
    let response = with_timeout(github._put("/user/starred", Some(&["a"])));
    assert_eq!(
        RetryOutcome::from_response(&response.await.unwrap()).attempts(),
        2
    );

    let outcome = OutcomeHandle::new();
    let request = Request::post("/gists").extension(outcome.clone());
    let request = request.body(OctoBody::from("a".to_owned())).unwrap();
    assert!(with_timeout(github.execute(request)).await.is_err());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(server.bodies(), [r#"["a"]"#, r#"["a"]"#, "a"]);
}

/// A typed call returns an error that is parsed from the complete last response.
#[tokio::test]
async fn error_comes_from_last_response() {
    let not_found = r#"{"message":"Not Found","documentation_url":""}"#;
    let server = start_server([status(429), response(404, not_found)]);
    let github = octocrab(&server, policy());
    let error = with_timeout(github.repos("rust-lang", "rust").get()).await;
    let octocrab::Error::GitHub { source, .. } = error.unwrap_err() else {
        panic!("404 is an error")
    };
    assert_eq!(source.message, "Not Found");
    assert_eq!(source.status_code, 404);
    assert_eq!(server.request_count(), 2);
}
