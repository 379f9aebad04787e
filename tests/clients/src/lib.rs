//! What the tests of this package share: a server on a free loopback port that answers by a script
//! and keeps what it was sent.
//!
//! It speaks HTTP/1.1 and HTTP/2, and both over TLS, as the client likes.

#[cfg(doctest)]
#[doc = include_str!("../../../docs/stacks.md")]
struct Guide;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{self, Future},
    io, iter,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, request};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tower_http_retry::{RetryPolicy, backoff_fn};

/// The n-th request, on whatever connection it comes, gets the n-th answer of the script.
pub struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A request that arrived whole.
pub struct Seen {
    pub head: request::Parts,
    pub body: Bytes,
}

impl Server {
    pub fn start<const N: usize>(script: [Answer; N]) -> Self {
        let (server, listen) = Self::bind(script);
        listen();
        server
    }

    /// A server that refuses connections, and a policy whose first retry brings it up.
    pub fn down<const N: usize>(script: [Answer; N]) -> (Self, RetryPolicy) {
        let (server, listen) = Self::bind(script);
        let listen = Arc::new(Mutex::new(Some(listen)));
        let policy = RetryPolicy::new().backoff(backoff_fn(move || {
            let listen = listen.clone();
            iter::from_fn(move || {
                if let Some(listen) = listen.lock().unwrap().take() {
                    listen();
                }
                Some(Duration::ZERO)
            })
        }));
        (server, policy)
    }

    /// A free port, on which connections are refused as long as nobody listens.
    fn bind<const N: usize>(script: [Answer; N]) -> (Self, impl FnOnce() + Send + 'static) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = Self {
            address,
            seen: seen.clone(),
        };
        let script = Arc::new(Mutex::new(VecDeque::from(script)));
        let listen = || {
            let listener = socket.listen(64).unwrap();
            tokio::spawn(serve(listener, script, seen));
        };
        (server, listen)
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn tls_uri(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A request to this server.
    pub fn request(&self, method: Method, body: &'static str) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(self.uri());
        request.body(body.into()).unwrap()
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Until that many requests have arrived.
    pub async fn arrived(&self, requests: usize) {
        within(async {
            while self.requests() < requests {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The bodies that have arrived, in order.
    pub fn bodies(&self) -> Vec<Bytes> {
        self.each(|seen| seen.body.clone())
    }

    /// Something of each request that has arrived, in order.
    pub fn each<T>(&self, of: impl Fn(&Seen) -> T) -> Vec<T> {
        self.seen.lock().unwrap().iter().map(of).collect()
    }
}

/// What the server does with a request that it has read to its end.
pub enum Answer {
    Respond(Response<AnswerBody>),
    /// Closes the connection, or over HTTP/2 the stream.
    HangUp,
    /// Keeps the client waiting.
    Silence,
}

pub type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// An answer without a body.
pub fn status(status: u16) -> Answer {
    respond(Response::builder().status(status), "")
}

pub fn respond(head: http::response::Builder, body: impl Into<Bytes>) -> Answer {
    respond_with(head, Full::new(body.into()))
}

pub fn respond_with(
    head: http::response::Builder,
    body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static,
) -> Answer {
    Answer::Respond(head.body(body.boxed_unsync()).unwrap())
}

/// The default policy without its waits.
pub fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::ZERO)))
}

pub async fn within<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.expect("it hangs")
}

/// The certificate that the servers show, its own root.
pub fn certificate() -> CertificateDer<'static> {
    TLS.0.clone()
}

static TLS: LazyLock<(CertificateDer<'static>, TlsAcceptor)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (certificate, TlsAcceptor::from(Arc::new(config)))
});

type Script = Arc<Mutex<VecDeque<Answer>>>;

async fn serve(listener: TcpListener, script: Script, seen: Arc<Mutex<Vec<Seen>>>) {
    while let Ok((io, _)) = listener.accept().await {
        let (script, seen) = (script.clone(), seen.clone());
        tokio::spawn(async move {
            // A connection that breaks is the client's to report.
            if starts_tls(&io).await {
                if let Ok(io) = TLS.1.accept(io).await {
                    serve_connection(io, script, seen).await;
                }
            } else {
                serve_connection(io, script, seen).await;
            }
        });
    }
}

async fn starts_tls(io: &TcpStream) -> bool {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    io.peek(&mut first).await.is_ok() && first == [HANDSHAKE]
}

async fn serve_connection<I>(io: I, script: Script, seen: Arc<Mutex<Vec<Seen>>>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (script, seen) = (script.clone(), seen.clone());
        answer(request, script, seen)
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(io), service).await;
}

async fn answer(
    request: Request<Incoming>,
    script: Script,
    seen: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<AnswerBody>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    seen.lock().unwrap().push(Seen { head, body });
    let answer = script.lock().unwrap().pop_front();
    match answer.expect("no request beyond the script") {
        Answer::Respond(response) => Ok(response),
        Answer::HangUp => Err(io::Error::other("as the script says").into()),
        Answer::Silence => future::pending().await,
    }
}
