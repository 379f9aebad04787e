//! tonic's channel below a hand-written gRPC client. A generated client takes the same stack:
//! `GreeterClient::new(stack)`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clients::{
    Reply, ScriptedServer, close, policy, refusing_server, response_with, silence, start_server,
    status, with_timeout,
};
use http::{HeaderMap, HeaderValue, Response, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use std::{convert::Infallible, future, io, time::Duration};
use tonic::{
    Code, Request, Status, TimeoutExpired,
    body::Body,
    client::{Grpc, GrpcService},
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{self, Channel, Endpoint},
};
use tower::{BoxError, Service, ServiceBuilder};
use tower_http::map_request_body::MapRequestBodyLayer;
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, RequestOptions, ResponseBody, RetryLayer, RetryOutcome,
    RetryPolicy,
};

/// Creates a stack that boxes the error of the channel, because the layer reads the sources of a boxed error.
fn stack(
    channel: Channel,
    policy: RetryPolicy,
) -> impl Service<
    http::Request<Body>,
    Response = Response<ResponseBody<Body>>,
    Error = BoxError,
    Future: Send,
> {
    ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(MapRequestBodyLayer::new(Body::new))
        .map_err(BoxError::from)
        .service(channel)
}

fn channel(server: &ScriptedServer) -> Endpoint {
    Channel::from_shared(server.uri()).unwrap()
}

#[tokio::test]
async fn http_429_is_retried_for_any_call() {
    let server = start_server([status(429), status(429), hello()]);
    let stack = stack(channel(&server).connect_lazy(), policy());
    let reply = with_timeout(greet(stack, Request::new("Ann".to_owned()))).await;
    let reply = reply.unwrap();
    let outcome = reply.extensions().get::<RetryOutcome>().unwrap();
    assert_eq!(outcome.attempts(), 3);
    assert_eq!(reply.into_inner(), "hello");
    assert_eq!(
        server.bodies(),
        [message("Ann"), message("Ann"), message("Ann")]
    );
}

/// A gRPC call is a POST: only the caller knows if it is idempotent.
#[tokio::test]
async fn http_504_is_retried_only_if_marked_idempotent() {
    let server = start_server([status(504), hello(), status(504)]);
    let channel = channel(&server).connect_lazy();

    let mut request = Request::new("Ann".to_owned());
    let idempotent = RequestOptions::new().idempotent(true);
    request.extensions_mut().insert(idempotent);
    let reply = with_timeout(greet(stack(channel.clone(), policy()), request)).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(server.bodies(), [message("Ann"), message("Ann")]);

    let (request, outcome) = watched("Ann");
    let result = with_timeout(greet(stack(channel, policy()), request)).await;
    // tonic maps the status to its own error, and drops the response.
    assert_eq!(result.unwrap_err().code(), Code::Unavailable);
    assert_eq!(
        outcome.get().unwrap().give_up_reason(),
        Some(GiveUpReason::NotIdempotent)
    );
    assert_eq!(server.request_count(), 3);
}

#[tokio::test]
async fn refused_connection_is_retried_for_any_call() {
    let (server, policy) = refusing_server([hello()]);
    let stack = stack(channel(&server).connect_lazy(), policy);
    let (request, outcome) = watched("Ann");
    let reply = with_timeout(greet(stack, request)).await.unwrap();
    assert_eq!(reply.into_inner(), "hello");
    assert_eq!(outcome.get().unwrap().attempts(), 2);
    assert_eq!(server.bodies(), [message("Ann")]);
}

/// The layer does not recognize the channel's error type.
#[tokio::test]
async fn unboxed_error_is_not_retried() {
    let (server, policy) = refusing_server([hello()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(MapRequestBodyLayer::new(Body::new))
        .service(channel(&server).connect_lazy());
    let (request, outcome) = watched("Ann");
    assert!(with_timeout(greet(stack, request)).await.is_err());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));
    assert_eq!(server.request_count(), 0);
}

#[tokio::test]
async fn reset_stream_is_retried_only_if_marked_idempotent() {
    let server = start_server([close(), hello(), close()]);
    let channel = channel(&server).connect_lazy();

    let (mut request, outcome) = watched("Ann");
    let idempotent = RequestOptions::new().idempotent(true);
    request.extensions_mut().insert(idempotent);
    let reply = with_timeout(greet(stack(channel.clone(), policy()), request)).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(outcome.get().unwrap().attempts(), 2);
    assert_eq!(server.bodies(), [message("Ann"), message("Ann")]);

    let (request, outcome) = watched("Ann");
    let result = with_timeout(greet(stack(channel, policy()), request)).await;
    assert!(result.is_err());
    assert_eq!(
        outcome.get().unwrap().give_up_reason(),
        Some(GiveUpReason::NotIdempotent)
    );
    assert_eq!(server.request_count(), 3);
}

/// The layer reads the HTTP status, which is 200 for every gRPC status.
#[tokio::test]
async fn grpc_status_is_not_retried() {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("14"));
    trailers.insert("grpc-message", HeaderValue::from_static("later"));
    trailers.insert("x-shard", HeaderValue::from_static("7"));
    let server = start_server([
        grpc(Full::default().with_trailers(ready(trailers))),
        grpc(Full::default())
            .header("grpc-status", "14")
            .header("x-shard", "7")
            .header("grpc-message", "later"),
    ]);
    let channel = channel(&server).connect_lazy();
    for _ in ["in trailers", "in the head"] {
        let (request, outcome) = watched("Ann");
        let result = with_timeout(greet(stack(channel.clone(), policy()), request)).await;
        let status = result.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "later")
        );
        assert_eq!(status.metadata().get("x-shard").unwrap(), "7");
        let outcome = outcome.get().unwrap();
        assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
    }
}

/// The error of the channel's `timeout` has a type of tonic, which the layer does not recognize.
#[tokio::test]
async fn channel_timeout_is_retried_only_if_mapped() {
    let server = start_server([silence(), silence(), hello(), silence(), hello()]);
    let limit = Duration::from_millis(300);
    let endpoint = channel(&server);
    let channel = endpoint.clone().timeout(limit).connect_lazy();
    let policy = policy().retry_non_idempotent(true);

    let (request, outcome) = watched("Ann");
    let stack = stack(channel.clone(), policy.clone());
    assert!(with_timeout(greet(stack, request)).await.is_err());
    assert_eq!(
        outcome.get().unwrap().give_up_reason(),
        Some(GiveUpReason::NotRetryable)
    );

    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy.clone()))
        .layer(MapRequestBodyLayer::new(Body::new))
        .map_err(timeout_to_io_error)
        .service(channel);
    let reply = with_timeout(greet(stack, Request::new("Ann".to_owned()))).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(server.request_count(), 3);

    // The layer recognizes the error of tower's timeout.
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(MapRequestBodyLayer::new(Body::new))
        .timeout(limit)
        .service(endpoint.connect_lazy());
    let reply = with_timeout(greet(stack, Request::new("Ann".to_owned()))).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(server.request_count(), 5);
}

fn timeout_to_io_error(error: transport::Error) -> BoxError {
    let source = std::error::Error::source(&error);
    match source.is_some_and(|source| source.is::<TimeoutExpired>()) {
        true => io::Error::new(io::ErrorKind::TimedOut, error).into(),
        false => error.into(),
    }
}

async fn greet<S>(stack: S, request: Request<String>) -> Result<tonic::Response<String>, Status>
where
    S: GrpcService<Body>,
    // The bounds of a generated client.
    S::ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    let mut client = Grpc::new(stack);
    let ready = client.ready().await;
    ready.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/greeter.Greeter/Greet");
    client.unary(request, path, Text).await
}

/// Creates a request with a handle for its outcome.
fn watched(name: &str) -> (Request<String>, OutcomeHandle) {
    let outcome = OutcomeHandle::new();
    let mut request = Request::new(name.to_owned());
    request.extensions_mut().insert(outcome.clone());
    (request, outcome)
}

/// A codec for messages of plain text.
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

fn hello() -> Reply {
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(message("hello"));
    grpc(body.with_trailers(ready(trailers)))
}

fn grpc(body: impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static) -> Reply {
    response_with(200, body).header("content-type", "application/grpc")
}

fn ready<E>(trailers: HeaderMap) -> future::Ready<Option<Result<HeaderMap, E>>> {
    future::ready(Some(Ok(trailers)))
}

/// Encodes a gRPC message: the flag for no compression, the length, the text.
fn message(text: &str) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(text.len() as u32);
    message.put(text.as_bytes());
    message.freeze()
}
