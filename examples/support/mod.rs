//! A real HTTP server on a free loopback port that answers by a script, in the words of the
//! documented contract.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};

/// What the server answers to one request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// An answer with the error object that such a status has, or with a plain success.
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

    /// An answer with the OAuth error object of an access token that has expired.
    pub(crate) fn expired_token(status: StatusCode) -> Self {
        Self {
            body: Bytes::from_static(
                br#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token","error_description":"The access token has expired","message":"Access token has expired"}"#,
            ),
            ..Self::new(status)
        }
    }

    /// The same answer with one more header.
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

/// The server: bound from the start, listening when it is told to.
pub(crate) struct Server {
    socket: TcpSocket,
    address: SocketAddr,
    state: Arc<State>,
}

/// What the server has seen, for as long as anybody asks.
pub(crate) struct State {
    script: Vec<Answer>,
    bodies: Mutex<Vec<Bytes>>,
}

impl State {
    /// The bodies of the requests that arrived whole, in order.
    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        self.lock().clone()
    }

    /// The answer to the request with this body: the script's next, and at its end the last again.
    fn answer(&self, body: Bytes) -> Option<Answer> {
        let mut bodies = self.lock();
        bodies.push(body);
        let answer = self.script.get(bodies.len() - 1);
        answer.or(self.script.last()).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Bytes>> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Takes a free port, on which a connection is refused as long as nobody listens.
    pub(crate) fn bind(script: Vec<Answer>) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self {
            address: socket.local_addr()?,
            socket,
            state: Arc::new(State {
                script,
                bodies: Mutex::default(),
            }),
        })
    }

    /// The address of `path` on this server.
    pub(crate) fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        let authority = self.address.to_string();
        let uri = Uri::builder().scheme("http").authority(authority);
        uri.path_and_query(path).build()
    }

    /// What the server sees.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Serves from now on.
    pub(crate) fn listen(self) -> io::Result<()> {
        let listener = self.socket.listen(64)?;
        tokio::spawn(accept(listener, self.state));
        Ok(())
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| respond(state.clone(), request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A connection that breaks is the client's to report.
        tokio::spawn(async { drop(connection.await) });
    }
}

async fn respond(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = match request.into_body().collect().await {
        Ok(body) => state.answer(body.to_bytes()),
        Err(_) => Some(Answer::new(StatusCode::BAD_REQUEST)),
    };
    let answer = answer.unwrap_or_else(|| Answer::new(StatusCode::NOT_FOUND));
    Ok(answer.into_response())
}
