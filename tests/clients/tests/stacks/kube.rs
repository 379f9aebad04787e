//! kube's client, over a stack of one's own and over its default stack.

use bytes::Bytes;
use clients::{Answer, Server, policy, respond, status, within};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::{client::legacy, rt::TokioExecutor};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    client::{Body, ClientBuilder, ConfigExt},
    config::{ExecConfig, ExecInteractiveMode},
};
use tower::{BoxError, ServiceBuilder, buffer::BufferLayer, filter::AsyncFilterLayer};
use tower_http_retry::{OutcomeHandle, ReplayBody, RetryLayer, RetryOutcome, RetryPolicy};

/// From the connection upwards: the layer sees hyper-util's client below the authorization.
fn own_stack(server: &Server, policy: RetryPolicy) -> Client {
    own_stack_of(config(server), policy)
}

fn own_stack_of(config: Config, policy: RetryPolicy) -> Client {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(policy))
        .option_layer(config.auth_layer().unwrap())
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build_http());
    Client::new(service, config.default_namespace)
}

/// Over what kube makes of a configuration. That is a service which cannot be cloned and wants kube's
/// own body, which can be made from bytes only; kube's bodies are in memory anyway.
fn default_stack(server: &Server, policy: RetryPolicy) -> Client {
    let mut config = config(server);
    // kube retries, too, and two layers multiply their attempts.
    config.default_retry = false;
    ClientBuilder::try_from(config)
        .unwrap()
        .with_layer(&BufferLayer::new(1024))
        .with_layer(&AsyncFilterLayer::new(collect))
        .with_layer(&RetryLayer::new(policy))
        .build()
}

async fn collect(request: Request<ReplayBody<Body>>) -> Result<Request<Body>, BoxError> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Request::from_parts(head, Body::from(body)))
}

fn config(server: &Server) -> Config {
    Config::new(server.uri().parse().unwrap())
}

const STACKS: [fn(&Server, RetryPolicy) -> Client; 2] = [own_stack, default_stack];

#[tokio::test]
async fn failed_responses_are_sent_again() {
    for stack in STACKS {
        let server = Server::start([status(504), status(429), config_map()]);
        let maps = Api::<ConfigMap>::default_namespaced(stack(&server, policy()));
        let map = named("limits");
        let params = PostParams::default();
        let made = within(maps.replace("limits", &params, &map)).await;
        assert_eq!(made.unwrap().metadata.name.as_deref(), Some("limits"));
        let bodies = server.bodies();
        assert_eq!(bodies.len(), 3);
        assert!(bodies[0].starts_with(b"{"), "{bodies:?}");
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
        let targets = server.each(|seen| seen.head.uri.path().to_owned());
        assert_eq!(targets, ["/api/v1/namespaces/default/configmaps/limits"; 3]);
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_whatever_the_method() {
    for stack in STACKS {
        let (server, policy) = Server::down([config_map()]);
        let maps = Api::<ConfigMap>::default_namespaced(stack(&server, policy));
        let map = named("limits");
        let params = PostParams::default();
        let made = within(maps.create(&params, &map)).await;
        assert_eq!(made.unwrap().metadata.name.as_deref(), Some("limits"));
        assert_eq!(server.requests(), 1);
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_only_if_idempotent() {
    for stack in STACKS {
        let server = Server::start([Answer::HangUp, config_map(), Answer::HangUp]);
        let maps = Api::<ConfigMap>::default_namespaced(stack(&server, policy()));
        let read = within(maps.get("limits")).await.unwrap();
        assert_eq!(read.metadata.name.as_deref(), Some("limits"));
        // A PATCH is not idempotent by RFC 9110, though most of kube's are.
        let patch = Patch::Merge(named("limits"));
        let params = PatchParams::default();
        let result = within(maps.patch("limits", &params, &patch)).await;
        assert!(result.is_err());
        assert_eq!(server.requests(), 3);
    }
}

/// The command of the configuration is asked for a token whenever the last one is about to expire, and
/// these expire at once.
#[tokio::test]
async fn an_attempt_does_not_go_out_with_a_token_that_has_expired() {
    const COMMAND: &str = r#"printf '{
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": { "token": "%s", "expirationTimestamp": "2000-01-01T00:00:00Z" }
    }' "$(date +%s%N)""#;
    let server = Server::start([status(429), config_map()]);
    let mut config = config(&server);
    config.auth_info.exec = Some(ExecConfig {
        command: Some("sh".to_owned()),
        args: Some(vec!["-c".to_owned(), COMMAND.to_owned()]),
        interactive_mode: Some(ExecInteractiveMode::Never),
        ..ExecConfig::default()
    });
    let maps = Api::<ConfigMap>::default_namespaced(own_stack_of(config, policy()));
    within(maps.get("limits")).await.unwrap();
    let tokens = server.each(|seen| seen.head.headers["authorization"].clone());
    let [first, second] = &tokens[..] else {
        panic!("{tokens:?}")
    };
    assert!(first.to_str().unwrap().starts_with("Bearer "));
    assert_ne!(first, second);
}

/// Where kube hands out the `http::Response`, it has the outcome; otherwise a handle in the request.
#[tokio::test]
async fn the_outcome_can_be_read() {
    for stack in STACKS {
        let server = Server::start([status(429), status(200), status(429), config_map()]);
        let client = stack(&server, policy());
        let request = Request::put("/livez").body(Body::from(b"up?".to_vec()));
        let response = within(client.send(request.unwrap())).await.unwrap();
        assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);

        let handle = OutcomeHandle::new();
        let request = Request::get("/api/v1/namespaces/default/configmaps/limits");
        let request = request.extension(handle.clone()).body(Vec::new());
        let _: ConfigMap = within(client.request(request.unwrap())).await.unwrap();
        assert_eq!(handle.get().unwrap().attempts(), 2);
        assert_eq!(server.bodies()[..2], ["up?"; 2]);
    }
}

/// With kube's own retries left on, the layer sees only what they gave up on.
#[tokio::test]
async fn kubes_own_retries_hide_failures_from_the_layer() {
    let server = Server::start([status(429), status(429), status(200)]);
    let client = ClientBuilder::try_from(config(&server))
        .unwrap()
        .with_layer(&BufferLayer::new(1024))
        .with_layer(&AsyncFilterLayer::new(collect))
        .with_layer(&RetryLayer::new(policy()))
        .build();
    let request = Request::get("/livez").body(Body::empty()).unwrap();
    let response = within(client.send(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 1);
    assert_eq!(server.requests(), 3);
}

fn config_map() -> Answer {
    let head = Response::builder().header("content-type", "application/json");
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"limits"}}"#;
    respond(head, Bytes::from(body))
}

fn named(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map
}
