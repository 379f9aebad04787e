//! kube's client, over a custom stack and over its default stack.

use clients::{
    Reply, ScriptedServer, close, ok, policy, refusing_server, start_server, status, with_timeout,
};
use http::Request;
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

/// Creates a client over a complete stack, in which the layer is above the authorization.
fn custom_stack(server: &ScriptedServer, policy: RetryPolicy) -> Client {
    custom_stack_of(config(server), policy)
}

fn custom_stack_of(config: Config, policy: RetryPolicy) -> Client {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(policy))
        .option_layer(config.auth_layer().unwrap())
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build_http());
    Client::new(service, config.default_namespace)
}

/// Creates a client over kube's stack. That service cannot be cloned, and takes only kube's body type,
/// which is created from bytes; kube's bodies are in memory anyway.
fn default_stack(server: &ScriptedServer, policy: RetryPolicy) -> Client {
    let mut config = config(server);
    // kube retries as well, and two layers would multiply their attempts.
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

fn config(server: &ScriptedServer) -> Config {
    Config::new(server.uri().parse().unwrap())
}

const STACKS: [fn(&ScriptedServer, RetryPolicy) -> Client; 2] = [custom_stack, default_stack];

#[tokio::test]
async fn failed_responses_are_retried() {
    for stack in STACKS {
        let server = start_server([status(504), status(429), config_map_reply()]);
        let maps = Api::<ConfigMap>::default_namespaced(stack(&server, policy()));
        let map = config_map_named("limits");
        let params = PostParams::default();
        let result = with_timeout(maps.replace("limits", &params, &map)).await;
        assert_eq!(result.unwrap().metadata.name.as_deref(), Some("limits"));
        let bodies = server.bodies();
        assert_eq!(bodies.len(), 3);
        assert!(bodies[0].starts_with(b"{"), "{bodies:?}");
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
        let targets = server.paths();
        assert_eq!(targets, ["/api/v1/namespaces/default/configmaps/limits"; 3]);
    }
}

#[tokio::test]
async fn refused_connection_is_retried_for_any_method() {
    for stack in STACKS {
        let (server, policy) = refusing_server([config_map_reply()]);
        let maps = Api::<ConfigMap>::default_namespaced(stack(&server, policy));
        let map = config_map_named("limits");
        let params = PostParams::default();
        let result = with_timeout(maps.create(&params, &map)).await;
        assert_eq!(result.unwrap().metadata.name.as_deref(), Some("limits"));
        assert_eq!(server.request_count(), 1);
    }
}

#[tokio::test]
async fn lost_response_is_retried_only_if_idempotent() {
    for stack in STACKS {
        let server = start_server([close(), config_map_reply(), close()]);
        let maps = Api::<ConfigMap>::default_namespaced(stack(&server, policy()));
        let read = with_timeout(maps.get("limits")).await.unwrap();
        assert_eq!(read.metadata.name.as_deref(), Some("limits"));
        // A PATCH is not idempotent by RFC 9110, although most of kube's are.
        let patch = Patch::Merge(config_map_named("limits"));
        let params = PatchParams::default();
        let result = with_timeout(maps.patch("limits", &params, &patch)).await;
        assert!(result.is_err());
        assert_eq!(server.request_count(), 3);
    }
}

/// kube runs the command of the configuration when the last token is about to expire. These expire at once.
#[tokio::test]
async fn retry_uses_fresh_token() {
    const COMMAND: &str = r#"printf '{
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": { "token": "%s", "expirationTimestamp": "2000-01-01T00:00:00Z" }
    }' "$(date +%s%N)""#;
    let server = start_server([status(429), config_map_reply()]);
    let mut config = config(&server);
    config.auth_info.exec = Some(ExecConfig {
        command: Some("sh".to_owned()),
        args: Some(vec!["-c".to_owned(), COMMAND.to_owned()]),
        interactive_mode: Some(ExecInteractiveMode::Never),
        ..ExecConfig::default()
    });
    let maps = Api::<ConfigMap>::default_namespaced(custom_stack_of(config, policy()));
    with_timeout(maps.get("limits")).await.unwrap();
    let heads = server.heads();
    let [first, second] = &heads[..] else {
        panic!("{heads:?}")
    };
    let [first, second] = [first, second].map(|head| &head.headers["authorization"]);
    assert!(first.to_str().unwrap().starts_with("Bearer "));
    assert_ne!(first, second);
}

/// An `http::Response` from kube has the outcome. Other results need a handle in the request.
#[tokio::test]
async fn outcome_is_in_response_or_handle() {
    for stack in STACKS {
        let server = start_server([status(429), status(200), status(429), config_map_reply()]);
        let client = stack(&server, policy());
        let request = Request::put("/livez").body(Body::from(b"up?".to_vec()));
        let response = with_timeout(client.send(request.unwrap())).await.unwrap();
        assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);

        let handle = OutcomeHandle::new();
        let request = Request::get("/api/v1/namespaces/default/configmaps/limits");
        let request = request.extension(handle.clone()).body(Vec::new());
        let _: ConfigMap = with_timeout(client.request(request.unwrap()))
            .await
            .unwrap();
        assert_eq!(handle.get().unwrap().attempts(), 2);
        assert_eq!(server.bodies()[..2], ["up?"; 2]);
    }
}

/// If kube's retries are enabled, the layer sees only the failures after which they give up.
#[tokio::test]
async fn default_retries_of_kube_hide_failures() {
    let server = start_server([status(429), status(429), status(200)]);
    let client = ClientBuilder::try_from(config(&server))
        .unwrap()
        .with_layer(&BufferLayer::new(1024))
        .with_layer(&AsyncFilterLayer::new(collect))
        .with_layer(&RetryLayer::new(policy()))
        .build();
    let request = Request::get("/livez").body(Body::empty()).unwrap();
    let response = with_timeout(client.send(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 1);
    assert_eq!(server.request_count(), 3);
}

fn config_map_reply() -> Reply {
    ok(r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"limits"}}"#)
        .header("content-type", "application/json")
}

fn config_map_named(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map
}
