//! A mock HTTP server on a free loopback port. It returns scripted responses with the error bodies of
//! the documented contract.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};

/// A scripted response.
#[derive(Clone, Debug)]
pub(crate) struct MockResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl MockResponse {
    /// Creates a response with the error object for `status`, or with a list of accounts if `status`
    /// is a success.
    pub(crate) fn new(status: StatusCode) -> Self {
        let body = match status.canonical_reason() {
            Some(reason) if !status.is_success() => {
                let code = reason.to_lowercase().replace(' ', "_");
                format!(r#"{{"code":"{code}","message":"{reason}"}}"#)
            }
            _ => r#"{"accounts":[]}"#.to_owned(),
        };
        Self {
            status,
            headers: HeaderMap::new(),
            body: body.into(),
        }
    }

    /// Creates a response with the OAuth error object for an expired access token.
    pub(crate) fn expired_token(status: StatusCode) -> Self {
        Self {
            body: Bytes::from_static(
                br#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token","error_description":"The access token has expired","message":"Access token has expired"}"#,
            ),
            ..Self::new(status)
        }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert("content-type", json);
        response
    }
}

/// A server that owns its port from the start and accepts connections after a call of
/// [`listen`](Self::listen).
pub(crate) struct MockServer {
    socket: TcpSocket,
    address: SocketAddr,
    state: Arc<ServerState>,
}

impl MockServer {
    /// Binds a free port. The system refuses connections to it until the server listens.
    pub(crate) fn bind(script: Vec<MockResponse>) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self {
            address: socket.local_addr()?,
            socket,
            state: Arc::new(ServerState {
                script,
                bodies: Mutex::default(),
            }),
        })
    }

    /// Returns the URI of `path` on this server.
    pub(crate) fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        let authority = self.address.to_string();
        let uri = Uri::builder().scheme("http").authority(authority);
        uri.path_and_query(path).build()
    }

    /// Returns the state that the server shares with its connections.
    pub(crate) fn state(&self) -> Arc<ServerState> {
        self.state.clone()
    }

    /// Starts to accept connections, in the background.
    pub(crate) fn listen(self) -> io::Result<()> {
        let listener = self.socket.listen(64)?;
        tokio::spawn(accept(listener, self.state));
        Ok(())
    }
}

/// The script of a server and the requests received so far.
pub(crate) struct ServerState {
    script: Vec<MockResponse>,
    bodies: Mutex<Vec<Bytes>>,
}

impl ServerState {
    /// Returns the bodies of all requests that arrived complete, in order.
    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        self.lock().clone()
    }

    /// Records a request and returns the next scripted response. The last one repeats.
    fn next_response(&self, body: Bytes) -> Option<MockResponse> {
        let mut bodies = self.lock();
        bodies.push(body);
        let response = self.script.get(bodies.len() - 1);
        response.or(self.script.last()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, state: Arc<ServerState>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| respond(state.clone(), request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // The client reports connection errors.
        tokio::spawn(async { drop(connection.await) });
    }
}

async fn respond(
    state: Arc<ServerState>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match request.into_body().collect().await {
        Ok(body) => state.next_response(body.to_bytes()),
        Err(_) => Some(MockResponse::new(StatusCode::BAD_REQUEST)),
    };
    let response = response.unwrap_or_else(|| MockResponse::new(StatusCode::NOT_FOUND));
    Ok(response.into_response())
}
