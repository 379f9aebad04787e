//! A scripted HTTP server for tests over real sockets.
//!
//! The package `clients` includes this file, too: it depends only on crates that both packages have, and
//! on the module `timeout` beside it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part, and the package `clients` exports it"
)]

use std::{
    collections::VecDeque,
    fmt,
    future::{self, Future},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, request};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, watch},
};
use tower::BoxError;

use super::timeout::with_timeout;

/// An HTTP/1.1 and HTTP/2 server on a loopback port.
///
/// The n-th request, on any connection, gets the n-th reply of the script. The server records every
/// request, and panics on one beyond the script.
pub struct ScriptedServer {
    address: SocketAddr,
    state: Arc<State>,
}

impl ScriptedServer {
    /// Starts a server on a free port.
    pub fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        let (server, port) = Self::bind(script);
        port.listen();
        server
    }

    /// Creates a server whose port refuses connections until it listens.
    pub fn bind(script: impl IntoIterator<Item = Reply>) -> (Self, BoundPort) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let server = Self::new(socket.local_addr().unwrap(), script);
        let state = server.state.clone();
        (server, BoundPort { socket, state })
    }

    /// Starts a server that takes over `listener`.
    pub fn on(listener: TcpListener, script: impl IntoIterator<Item = Reply>) -> Self {
        let server = Self::new(listener.local_addr().unwrap(), script);
        tokio::spawn(accept(listener, server.state.clone(), serve_plain));
        server
    }

    fn new(address: SocketAddr, script: impl IntoIterator<Item = Reply>) -> Self {
        let state = Arc::new(State {
            script: Mutex::new(script.into_iter().collect()),
            connections: AtomicUsize::new(0),
            requests: watch::Sender::new(Vec::new()),
        });
        Self { address, state }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates a request to this server.
    pub fn request<B>(&self, method: Method, body: B) -> Request<B> {
        let request = Request::builder().method(method).uri(self.uri());
        request.body(body).unwrap()
    }

    /// Returns the number of connections accepted up to now.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Returns the number of requests whose head has been received.
    pub fn request_count(&self) -> usize {
        self.state.requests.borrow().len()
    }

    /// Returns the heads of the requests, in the order of their arrival.
    pub fn heads(&self) -> Vec<request::Parts> {
        let requests = self.state.requests.borrow();
        requests
            .iter()
            .map(|request| request.head.clone())
            .collect()
    }

    /// Returns the paths of the requests, in the order of their arrival.
    pub fn paths(&self) -> Vec<String> {
        let requests = self.state.requests.borrow();
        let paths = requests.iter().map(|request| request.head.uri.path());
        paths.map(str::to_owned).collect()
    }

    /// Returns the bodies received completely, in the order in which their requests arrived.
    pub fn bodies(&self) -> Vec<Bytes> {
        let requests = self.state.requests.borrow();
        let bodies = requests.iter().filter_map(|request| match &request.body {
            BodyState::Ended(Ok(body)) => Some(body.data.clone().into()),
            _ => None,
        });
        bodies.collect()
    }

    /// Waits until the head and the first body frame of the n-th request have been received.
    pub async fn head(&self, n: usize) -> request::Parts {
        self.state
            .wait_for(n, |request| match request.body {
                BodyState::NotStarted => None,
                BodyState::Started | BodyState::Ended(_) => Some(request.head.clone()),
            })
            .await
    }

    /// Waits until the body of the n-th request has ended, completely or with an error.
    pub async fn body(&self, n: usize) -> Result<ReceivedBody, Arc<hyper::Error>> {
        self.state
            .wait_for(n, |request| match &request.body {
                BodyState::Ended(result) => Some(result.clone()),
                _ => None,
            })
            .await
    }
}

/// The port of a server that does not listen yet.
pub struct BoundPort {
    socket: TcpSocket,
    state: Arc<State>,
}

impl BoundPort {
    /// Starts to accept connections.
    pub fn listen(self) {
        self.listen_with(serve_plain);
    }

    /// Starts to accept connections that `serve` prepares, for example with a TLS handshake.
    pub fn listen_with<F>(self, serve: impl Fn(TcpStream, ConnectionHandler) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = self.socket.listen(64).unwrap();
        tokio::spawn(accept(listener, self.state, serve));
    }
}

/// A request body as the server received it.
#[derive(Clone, Debug, Default)]
pub struct ReceivedBody {
    pub data: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

/// A reply of the script. It is sent when the request has been received completely, unless set otherwise.
pub struct Reply {
    time: ReplyTime,
    content: ReplyContent,
}

enum ReplyTime {
    FirstFrame,
    RequestEnd,
    Notified(Arc<Notify>),
    Never,
}

enum ReplyContent {
    Response(Response<ReplyBody>),
    Echo,
    Error(BoxError),
}

type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// Creates a response without a body.
pub fn status(status: u16) -> Reply {
    response(status, "")
}

/// Creates a response with a status of 200.
pub fn ok(body: impl Into<Bytes>) -> Reply {
    response(200, body)
}

pub fn response(status: u16, body: impl Into<Bytes>) -> Reply {
    response_with(status, Full::new(body.into()))
}

pub fn response_with(
    status: u16,
    body: impl Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
) -> Reply {
    let response = Response::builder().status(status);
    let body = body.map_err(Into::into).boxed_unsync();
    Reply::new(ReplyContent::Response(response.body(body).unwrap()))
}

/// Creates a response that returns the request body while it arrives. The body is not recorded.
pub fn echo() -> Reply {
    Reply::new(ReplyContent::Echo)
}

/// Closes the connection over HTTP/1.1, and resets the stream over HTTP/2.
pub fn close() -> Reply {
    fail(io::Error::other("closed by the script"))
}

/// Closes the connection over HTTP/1.1. Over HTTP/2, hyper takes the reason of the reset from an h2 error.
pub fn fail(error: impl Into<BoxError>) -> Reply {
    Reply::new(ReplyContent::Error(error.into()))
}

/// Receives the request, and never replies.
pub fn silence() -> Reply {
    let mut reply = status(200);
    reply.time = ReplyTime::Never;
    reply
}

impl Reply {
    fn new(content: ReplyContent) -> Self {
        Self {
            time: ReplyTime::RequestEnd,
            content,
        }
    }

    pub fn header<V>(mut self, name: &'static str, value: V) -> Self
    where
        V: TryInto<HeaderValue, Error: fmt::Debug>,
    {
        let ReplyContent::Response(response) = &mut self.content else {
            panic!("headers need a response")
        };
        let value = value.try_into().unwrap();
        response.headers_mut().insert(name, value);
        self
    }

    /// Sends the reply as soon as the first frame of the request body has been received.
    pub fn early(mut self) -> Self {
        self.time = ReplyTime::FirstFrame;
        self
    }

    /// Holds the reply until the request has been received and `signal` notifies.
    pub fn after(mut self, signal: &Arc<Notify>) -> Self {
        self.time = ReplyTime::Notified(signal.clone());
        self
    }
}

/// The script and the records, shared by the connections.
struct State {
    script: Mutex<VecDeque<Reply>>,
    connections: AtomicUsize,
    requests: watch::Sender<Vec<ReceivedRequest>>,
}

struct ReceivedRequest {
    head: request::Parts,
    body: BodyState,
}

enum BodyState {
    NotStarted,
    Started,
    Ended(Result<ReceivedBody, Arc<hyper::Error>>),
}

impl State {
    /// Records a request. Returns its number and its reply.
    fn record(&self, head: request::Parts) -> (usize, Reply) {
        let mut numbered_reply = (0, None);
        self.requests.send_modify(|requests| {
            numbered_reply = (requests.len(), self.script.lock().unwrap().pop_front());
            let body = BodyState::NotStarted;
            requests.push(ReceivedRequest { head, body });
        });
        let (n, reply) = numbered_reply;
        (n, reply.expect("no request beyond the script"))
    }

    fn set_body(&self, n: usize, body: BodyState) {
        self.requests
            .send_modify(|requests| requests[n].body = body);
    }

    /// Waits until the n-th request exists and `select` finds a value in it.
    async fn wait_for<T>(&self, n: usize, select: impl Fn(&ReceivedRequest) -> Option<T>) -> T {
        let mut selected = None;
        let mut requests = self.requests.subscribe();
        let found = requests.wait_for(|requests| {
            selected = requests.get(n).and_then(&select);
            selected.is_some()
        });
        drop(with_timeout(found).await.unwrap());
        selected.unwrap()
    }
}

async fn accept<F>(
    listener: TcpListener,
    state: Arc<State>,
    serve: impl Fn(TcpStream, ConnectionHandler) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let (io, _) = listener.accept().await.unwrap();
        io.set_nodelay(true).unwrap();
        state.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(serve(io, ConnectionHandler(state.clone())));
    }
}

async fn serve_plain(io: TcpStream, handler: ConnectionHandler) {
    handler.serve(io).await;
}

/// Serves one connection by the script.
pub struct ConnectionHandler(Arc<State>);

impl ConnectionHandler {
    pub async fn serve<I>(self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            let (n, reply) = self.0.record(head);
            reply.send(n, body, self.0.clone())
        });
        let server = auto::Builder::new(TokioExecutor::new());
        // The records and the client show how a connection ends.
        let _ = server.serve_connection(TokioIo::new(io), service).await;
    }
}

impl Reply {
    async fn send(
        self,
        n: usize,
        body: Incoming,
        state: Arc<State>,
    ) -> Result<Response<ReplyBody>, BoxError> {
        let response = match self.content {
            ReplyContent::Echo => {
                return Ok(Response::new(body.map_err(Into::into).boxed_unsync()));
            }
            ReplyContent::Response(response) => Ok(response),
            ReplyContent::Error(error) => Err(error),
        };
        let started = Arc::new(Notify::new());
        // In its own task, because the request body may outlive the response.
        let receiving = tokio::spawn(receive(n, body, state, started.clone()));
        match self.time {
            ReplyTime::FirstFrame => started.notified().await,
            ReplyTime::RequestEnd => receiving.await.unwrap(),
            ReplyTime::Notified(signal) => {
                receiving.await.unwrap();
                signal.notified().await;
            }
            ReplyTime::Never => future::pending().await,
        }
        response
    }
}

async fn receive(n: usize, mut body: Incoming, state: Arc<State>, started: Arc<Notify>) {
    let first = body.frame().await;
    state.set_body(n, BodyState::Started);
    started.notify_one();
    let result = read_frames(first, body).await;
    state.set_body(n, BodyState::Ended(result.map_err(Arc::new)));
}

async fn read_frames(
    first: Option<hyper::Result<http_body::Frame<Bytes>>>,
    mut body: Incoming,
) -> hyper::Result<ReceivedBody> {
    let mut received = ReceivedBody::default();
    let mut next = first;
    while let Some(frame) = next {
        match frame?.into_data() {
            Ok(data) => received.data.extend(data),
            Err(frame) => received.trailers = frame.into_trailers().ok(),
        }
        next = body.frame().await;
    }
    Ok(received)
}
