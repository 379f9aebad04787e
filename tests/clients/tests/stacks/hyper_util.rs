//! hyper-util's client: HTTP/1.1 and HTTP/2, with and without TLS.

use std::sync::Arc;

use bytes::Bytes;
use clients::{certificate, policy, request_to, start_server, status, with_timeout};
use http::{Method, Request, Uri, Version};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpListener;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http_retry::{GiveUpReason, OutcomeHandle, ReplayBody, RetryLayer};

use crate::contract;

#[tokio::test]
async fn http1_client_meets_contract() {
    contract::check(|policy| RetryLayer::new(policy).layer(client(Version::HTTP_11))).await;
}

#[tokio::test]
async fn http2_client_meets_contract() {
    contract::check(|policy| RetryLayer::new(policy).layer(client(Version::HTTP_2))).await;
}

#[tokio::test]
async fn tls_client_meets_contract() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        contract::check(|policy| {
            ServiceBuilder::new()
                .map_request(to_https)
                .layer(RetryLayer::new(policy))
                .map_response(move |response: http::Response<_>| {
                    assert_eq!(response.version(), version);
                    response
                })
                .service(client(version))
        })
        .await;
    }
}

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

/// The error is the same as for an interrupted handshake: it is retried, and the request is never sent.
#[tokio::test]
async fn untrusted_server_receives_no_request() {
    let server = start_server([status(200)]);
    let outcome = OutcomeHandle::new();
    let mut request = request_to(&server, Method::POST, "money");
    *request.uri_mut() = format!("https://{}", server.address()).parse().unwrap();
    request.extensions_mut().insert(outcome.clone());
    let client = client_with_roots(RootCertStore::empty(), Version::HTTP_11);
    let client = RetryLayer::new(policy()).layer(client);
    let error = with_timeout(client.oneshot(request)).await.unwrap_err();
    assert!(error.is_connect());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.attempts(), 4);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::RetriesExhausted)
    );
    assert_eq!(server.request_count(), 0);
}

fn client(version: Version) -> Client<HttpsConnector<HttpConnector>, ReplayBody<Full<Bytes>>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    client_with_roots(roots, version)
}

fn client_with_roots(
    roots: RootCertStore,
    version: Version,
) -> Client<HttpsConnector<HttpConnector>, ReplayBody<Full<Bytes>>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    let http2 = version == Version::HTTP_2;
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build(match http2 {
            true => connector.enable_http2().build(),
            false => connector.enable_http1().build(),
        })
}

fn to_https<B>(mut request: Request<B>) -> Request<B> {
    assert_eq!(request.uri().scheme_str(), Some("http"));
    let authority = request.uri().authority().unwrap().clone();
    let uri = Uri::builder().scheme("https").authority(authority);
    *request.uri_mut() = uri.path_and_query("/").build().unwrap();
    request
}
