//! Connections that fail: which of them are retried.

use std::sync::Arc;

use bytes::Bytes;
use clients::{policy, start_server, status, with_timeout};
use http::{Request, Version};
use http_body_util::Full;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client, Error, connect::Connect},
    rt::TokioExecutor,
};
use rustls::{RootCertStore, pki_types::ServerName};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;
use tower::{Layer, ServiceExt};
use tower_http::classify::ClassifyResponse;
use tower_http_retry::{
    ApiErrorsAsFailures, FailureKind, GiveUpReason, OutcomeHandle, ReplayBody, RetryLayer,
};

use crate::hyper_util::{client, client_with_roots, tls_config};

type Body = ReplayBody<Full<Bytes>>;

#[tokio::test]
async fn interrupted_handshake_is_retried_for_any_method() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let closing = tokio::spawn(async move {
        for _ in 0..4 {
            drop(listener.accept().await.unwrap());
        }
    });
    let outcome = OutcomeHandle::new();
    let request = Request::post(format!("https://{address}"))
        .extension(outcome.clone())
        .body(Full::from("money"))
        .unwrap();
    let client = RetryLayer::new(policy()).layer(client(Version::HTTP_11));
    let error = with_timeout(client.oneshot(request)).await.unwrap_err();
    assert!(error.is_connect());
    assert_eq!(outcome.get().unwrap().attempts(), 4);
    with_timeout(closing).await.unwrap();
}

/// A server without TLS answers the handshake. The next server of a load balancer may have TLS.
#[tokio::test]
async fn failed_handshake_is_retried_for_any_method() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let uri = format!("https://{}", listener.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        for _ in 0..4 {
            let (mut io, _) = listener.accept().await.unwrap();
            io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let error = fails(
        client(Version::HTTP_11),
        uri,
        GiveUpReason::RetriesExhausted,
        4,
    )
    .await;
    assert_eq!(kind_of(&error), FailureKind::NotProcessed, "{error:?}");
    with_timeout(answering).await.unwrap();
}

#[tokio::test]
async fn untrusted_server_is_not_retried_and_receives_no_request() {
    let server = start_server([status(200)]);
    let client = client_with_roots(RootCertStore::empty(), Version::HTTP_11);
    let error = fails_at_once(client, format!("https://{}", server.address())).await;
    assert!(error.is_connect());
    assert_eq!(server.request_count(), 0);
}

#[tokio::test]
async fn certificate_for_another_name_is_not_retried() {
    let server = start_server([status(200)]);
    let uri = format!("https://localhost:{}", server.address().port());
    fails_at_once(client(Version::HTTP_11), uri).await;
    assert_eq!(server.request_count(), 0);
}

#[tokio::test]
async fn uri_unsupported_by_http_connector_is_not_retried() {
    for uri in ["ftp://127.0.0.1/", "https://127.0.0.1/", "/accounts"] {
        let client = Client::builder(TokioExecutor::new()).build_http();
        fails_at_once(client, uri.to_owned()).await;
    }
}

#[tokio::test]
async fn uri_unsupported_by_hyper_rustls_is_not_retried() {
    for uri in ["ftp://127.0.0.1/", "https://a..b/", "/accounts"] {
        fails_at_once(client(Version::HTTP_11), uri.to_owned()).await;
    }
    let https_only = HttpsConnectorBuilder::new()
        .with_tls_config(tls_config(RootCertStore::empty()))
        .https_only()
        .enable_http1()
        .build();
    let client = Client::builder(TokioExecutor::new()).build(https_only);
    fails_at_once(client, "http://127.0.0.1/".to_owned()).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn failures_of_openssl_and_hyper_tls_are_not_retried() {
    let server = start_server([status(200)]);
    let mut connector = hyper_tls::HttpsConnector::new();
    let client = |connector| Client::builder(TokioExecutor::new()).build(connector);
    let uri = format!("https://{}", server.address());
    fails_at_once(client(connector.clone()), uri).await;
    connector.https_only(true);
    fails_at_once(client(connector), server.uri()).await;
    assert_eq!(server.request_count(), 0);
}

#[tokio::test]
async fn untrusted_certificate_is_recognized_in_error_of_tokio_rustls() {
    let server = start_server([]);
    let connector = TlsConnector::from(Arc::new(tls_config(RootCertStore::empty())));
    let io = TcpStream::connect(server.address()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let error = with_timeout(connector.connect(name, io)).await.unwrap_err();
    assert_eq!(kind_of(&error), FailureKind::InvalidEndpoint, "{error:?}");
}

async fn fails_at_once<C>(client: Client<C, Body>, uri: String) -> Error
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let error = fails(client, uri, GiveUpReason::NotRetryable, 1).await;
    assert_eq!(kind_of(&error), FailureKind::InvalidEndpoint, "{error:?}");
    error
}

/// Sends a POST through a retry layer. Checks the attempts, and returns the error.
async fn fails<C>(
    client: Client<C, Body>,
    uri: String,
    reason: GiveUpReason,
    attempts: u32,
) -> Error
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let outcome = OutcomeHandle::new();
    let request = Request::post(uri)
        .extension(outcome.clone())
        .body(Full::from("money"))
        .unwrap();
    let client = RetryLayer::new(policy()).layer(client);
    let error = with_timeout(client.oneshot(request)).await.unwrap_err();
    let outcome = outcome.get().unwrap();
    assert_eq!(
        (outcome.give_up_reason(), outcome.attempts()),
        (Some(reason), attempts),
        "{error:?}"
    );
    error
}

fn kind_of<E: std::fmt::Display + 'static>(error: &E) -> FailureKind {
    ApiErrorsAsFailures::new().classify_error(error).kind()
}
