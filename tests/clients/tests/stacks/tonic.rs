//! tonic's channel under a gRPC client, which stands for a generated one: those are made from the same
//! stack, with `GreeterClient::new(stack)`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clients::{Answer, Server, policy, respond, respond_with, status, within};
use http::{HeaderMap, HeaderValue, Response, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use std::{future, io, time::Duration};
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

/// The error of the channel is boxed, so that the layer can read what is inside.
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

fn channel(server: &Server) -> Endpoint {
    Channel::from_shared(server.uri()).unwrap()
}

#[tokio::test]
async fn a_rate_limit_is_kept_to_whatever_the_call() {
    let server = Server::start([status(429), status(429), hello()]);
    let stack = stack(channel(&server).connect_lazy(), policy());
    let reply = within(greet(stack, Request::new("Ann".to_owned()))).await;
    let reply = reply.unwrap();
    let outcome = reply.extensions().get::<RetryOutcome>().unwrap();
    assert_eq!(outcome.attempts(), 3);
    assert_eq!(reply.into_inner(), "hello");
    assert_eq!(
        server.bodies(),
        [message("Ann"), message("Ann"), message("Ann")]
    );
}

/// A gRPC call is a POST: only its caller knows whether it may be repeated.
#[tokio::test]
async fn a_gateway_timeout_is_retried_where_the_call_says_so() {
    let server = Server::start([status(504), hello(), status(504)]);
    let channel = channel(&server).connect_lazy();

    let mut request = Request::new("Ann".to_owned());
    let repeatable = RequestOptions::new().idempotent(true);
    request.extensions_mut().insert(repeatable);
    let reply = within(greet(stack(channel.clone(), policy()), request)).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(server.bodies(), [message("Ann"), message("Ann")]);

    let (request, outcome) = watched("Ann");
    let result = within(greet(stack(channel, policy()), request)).await;
    // tonic makes its own of the status, and the response is gone.
    assert_eq!(result.unwrap_err().code(), Code::Unavailable);
    assert_eq!(
        outcome.get().unwrap().give_up_reason(),
        Some(GiveUpReason::NotIdempotent)
    );
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_whatever_the_call() {
    let (server, policy) = Server::down([hello()]);
    let stack = stack(channel(&server).connect_lazy(), policy);
    let (request, outcome) = watched("Ann");
    let reply = within(greet(stack, request)).await.unwrap();
    assert_eq!(reply.into_inner(), "hello");
    assert_eq!(outcome.get().unwrap().attempts(), 2);
    assert_eq!(server.bodies(), [message("Ann")]);
}

/// Not boxed, the channel's error is opaque to the layer.
#[tokio::test]
async fn an_error_that_is_not_boxed_is_not_read() {
    let (server, policy) = Server::down([hello()]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(MapRequestBodyLayer::new(Body::new))
        .service(channel(&server).connect_lazy());
    let (request, outcome) = watched("Ann");
    assert!(within(greet(stack, request)).await.is_err());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotRetryable));
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn a_broken_stream_is_opened_again_where_the_call_says_so() {
    let server = Server::start([Answer::HangUp, hello(), Answer::HangUp]);
    let channel = channel(&server).connect_lazy();

    let (mut request, outcome) = watched("Ann");
    let repeatable = RequestOptions::new().idempotent(true);
    request.extensions_mut().insert(repeatable);
    let reply = within(greet(stack(channel.clone(), policy()), request)).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(outcome.get().unwrap().attempts(), 2);
    assert_eq!(server.bodies(), [message("Ann"), message("Ann")]);

    let (request, outcome) = watched("Ann");
    let result = within(greet(stack(channel, policy()), request)).await;
    assert!(result.is_err());
    assert_eq!(
        outcome.get().unwrap().give_up_reason(),
        Some(GiveUpReason::NotIdempotent)
    );
    assert_eq!(server.requests(), 3);
}

/// The layer reads HTTP's status, which is 200 for every answer of a gRPC server.
#[tokio::test]
async fn a_status_of_grpc_passes_untouched() {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("14"));
    trailers.insert("grpc-message", HeaderValue::from_static("later"));
    trailers.insert("x-shard", HeaderValue::from_static("7"));
    let head = grpc().header("grpc-status", "14").header("x-shard", "7");
    let server = Server::start([
        respond_with(grpc(), Full::default().with_trailers(trailer(trailers))),
        respond(head.header("grpc-message", "later"), ""),
    ]);
    let channel = channel(&server).connect_lazy();
    for _ in ["in trailers", "in the head"] {
        let (request, outcome) = watched("Ann");
        let result = within(greet(stack(channel.clone(), policy()), request)).await;
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

/// The error of the channel's own `timeout` is tonic's, which the layer cannot read.
#[tokio::test]
async fn the_channels_own_timeout_is_retried_only_where_it_is_told_apart() {
    let silence = || Answer::Silence;
    let server = Server::start([silence(), silence(), hello(), silence(), hello()]);
    let limit = Duration::from_millis(300);
    let endpoint = channel(&server);
    let channel = endpoint.clone().timeout(limit).connect_lazy();
    let policy = policy().retry_non_idempotent(true);

    let (request, outcome) = watched("Ann");
    let stack = stack(channel.clone(), policy.clone());
    assert!(within(greet(stack, request)).await.is_err());
    assert_eq!(
        outcome.get().unwrap().give_up_reason(),
        Some(GiveUpReason::NotRetryable)
    );

    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy.clone()))
        .layer(MapRequestBodyLayer::new(Body::new))
        .map_err(readable)
        .service(channel);
    let reply = within(greet(stack, Request::new("Ann".to_owned()))).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(server.requests(), 3);

    // One of tower's it can read.
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(MapRequestBodyLayer::new(Body::new))
        .timeout(limit)
        .service(endpoint.connect_lazy());
    let reply = within(greet(stack, Request::new("Ann".to_owned()))).await;
    assert_eq!(reply.unwrap().into_inner(), "hello");
    assert_eq!(server.requests(), 5);
}

fn readable(error: transport::Error) -> BoxError {
    let source = std::error::Error::source(&error);
    match source.is_some_and(|source| source.is::<TimeoutExpired>()) {
        true => io::Error::new(io::ErrorKind::TimedOut, error).into(),
        false => error.into(),
    }
}

// --- the client's side ---

async fn greet<S>(stack: S, request: Request<String>) -> Result<tonic::Response<String>, Status>
where
    S: GrpcService<Body>,
    // As generated clients have it.
    S::ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    let mut client = Grpc::new(stack);
    let ready = client.ready().await;
    ready.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/greeter.Greeter/Greet");
    client.unary(request, path, Text).await
}

fn watched(name: &str) -> (Request<String>, OutcomeHandle) {
    let outcome = OutcomeHandle::new();
    let mut request = Request::new(name.to_owned());
    request.extensions_mut().insert(outcome.clone());
    (request, outcome)
}

/// Messages that are plain text.
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

// --- the server's side ---

fn hello() -> Answer {
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(message("hello"));
    respond_with(grpc(), body.with_trailers(trailer(trailers)))
}

fn grpc() -> http::response::Builder {
    Response::builder().header("content-type", "application/grpc")
}

fn trailer<E>(trailers: HeaderMap) -> future::Ready<Option<Result<HeaderMap, E>>> {
    future::ready(Some(Ok(trailers)))
}

/// As gRPC frames it: not compressed, its length, itself.
fn message(text: &str) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(text.len() as u32);
    message.put(text.as_bytes());
    message.freeze()
}
