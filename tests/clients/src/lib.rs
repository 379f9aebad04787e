//! Helpers shared by the tests of this package: a scripted server that speaks HTTP/1.1 and HTTP/2, with and
//! without TLS, and a policy without delays.

#[cfg(doctest)]
#[doc = include_str!("../../../docs/stacks.md")]
struct Guide;

#[path = "../../support/scripted_server.rs"]
mod scripted_server;
#[path = "../../support/timeout.rs"]
mod timeout;

use std::{
    iter,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tower_http_retry::{RetryPolicy, backoff_fn};

use scripted_server::ConnectionHandler;

pub use scripted_server::{
    Reply, ScriptedServer, close, ok, response, response_with, silence, status,
};
pub use timeout::with_timeout;

/// Starts a server that accepts connections with and without TLS.
pub fn start_server(script: impl IntoIterator<Item = Reply>) -> ScriptedServer {
    let (server, port) = ScriptedServer::bind(script);
    port.listen_with(serve);
    server
}

/// Creates a server that refuses connections, and a policy whose first retry makes it listen.
pub fn refusing_server(script: impl IntoIterator<Item = Reply>) -> (ScriptedServer, RetryPolicy) {
    let (server, port) = ScriptedServer::bind(script);
    let port = Arc::new(Mutex::new(Some(port)));
    let policy = RetryPolicy::new().backoff(backoff_fn(move || {
        let port = port.clone();
        iter::from_fn(move || {
            if let Some(port) = port.lock().unwrap().take() {
                port.listen_with(serve);
            }
            Some(Duration::ZERO)
        })
    }));
    (server, policy)
}

/// Creates a request to `server`.
pub fn request_to(
    server: &ScriptedServer,
    method: Method,
    body: &'static str,
) -> Request<Full<Bytes>> {
    server.request(method, body.into())
}

/// The default policy without delays.
pub fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::ZERO)))
}

/// Returns the certificate of the servers, which is its own root.
pub fn certificate() -> CertificateDer<'static> {
    TLS.0.clone()
}

static TLS: LazyLock<(CertificateDer<'static>, TlsAcceptor)> = LazyLock::new(|| {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
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

async fn serve(io: TcpStream, handler: ConnectionHandler) {
    if !starts_tls(&io).await {
        handler.serve(io).await;
    } else if let Ok(io) = TLS.1.accept(io).await {
        handler.serve(io).await;
    }
}

async fn starts_tls(io: &TcpStream) -> bool {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    io.peek(&mut first).await.is_ok() && first == [HANDSHAKE]
}
