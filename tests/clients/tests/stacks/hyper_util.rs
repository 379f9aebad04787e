//! hyper-util's client: HTTP/1.1 and HTTP/2, with and without TLS.

use std::sync::Arc;

use bytes::Bytes;
use clients::certificate;
use http::{Request, Uri, Version};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use tower::{Layer, ServiceBuilder};
use tower_http_retry::{ReplayBody, RetryLayer};

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

pub(crate) fn client(
    version: Version,
) -> Client<HttpsConnector<HttpConnector>, ReplayBody<Full<Bytes>>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    client_with_roots(roots, version)
}

pub(crate) fn client_with_roots(
    roots: RootCertStore,
    version: Version,
) -> Client<HttpsConnector<HttpConnector>, ReplayBody<Full<Bytes>>> {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls_config(roots))
        .https_or_http();
    let http2 = version == Version::HTTP_2;
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build(match http2 {
            true => connector.enable_http2().build(),
            false => connector.enable_http1().build(),
        })
}

pub(crate) fn tls_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn to_https<B>(mut request: Request<B>) -> Request<B> {
    assert_eq!(request.uri().scheme_str(), Some("http"));
    let authority = request.uri().authority().unwrap().clone();
    let uri = Uri::builder().scheme("https").authority(authority);
    *request.uri_mut() = uri.path_and_query("/").build().unwrap();
    request
}
