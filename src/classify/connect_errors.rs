//! Recognition of errors that every connection to a server would end with.
//!
//! The connectors have private error types, or belong to crates that are not dependencies. Their errors are
//! recognized by their texts. Tests check the texts against each crate.

use std::io;

/// `rustls::Error::InvalidCertificate`, with the reason after it.
const RUSTLS_CERTIFICATE: &str = "invalid peer certificate: ";

/// Returns whether an I/O error is that of tokio-rustls for an invalid certificate of the server.
///
/// Other errors of a TLS handshake may be temporary: a load balancer may choose another server next time.
pub(super) fn is_invalid_certificate(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData && error.to_string().starts_with(RUSTLS_CERTIFICATE)
}

/// Returns whether a connector failed because of the URI or of the certificate of the server.
///
/// `error` is the error of the connector of hyper-util's client.
#[cfg(feature = "hyper")]
pub(super) fn is_permanent(error: &(dyn std::error::Error + 'static)) -> bool {
    super::transport::sources(error).any(|error| {
        let text = error.to_string();
        PREFIXES.iter().any(|prefix| text.starts_with(prefix))
            || TEXTS.contains(&&*text)
            || text.contains(OPENSSL_CERTIFICATE)
    })
}

#[cfg(feature = "hyper")]
const PREFIXES: [&str; 3] = [
    RUSTLS_CERTIFICATE,
    // hyper-util's `HttpConnector`. The scheme is not http, or the scheme or the host is missing.
    "invalid URL, ",
    // hyper-rustls, with the scheme after it.
    "unsupported scheme ",
];

#[cfg(feature = "hyper")]
const TEXTS: [&str; 2] = [
    // `rustls::pki_types::InvalidDnsNameError`, for a host that is not valid in a certificate.
    "invalid dns name",
    // hyper-tls with `https_only`.
    "https required but URI was not https",
];

/// The reason string of OpenSSL's `SSL_R_CERTIFICATE_VERIFY_FAILED`, among other details.
#[cfg(feature = "hyper")]
const OPENSSL_CERTIFICATE: &str = "certificate verify failed";

#[cfg(all(test, feature = "hyper"))]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{Request, Uri};
    use http_body_util::Empty;
    use hyper_util::{
        client::legacy::{
            Client, Error,
            connect::{Connect, HttpConnector, dns::Name},
        },
        rt::TokioExecutor,
    };
    use tower::{Service, service_fn};

    use crate::{FailureKind, classify::transport::classify_error};

    async fn failure_of<C>(uri: &str, connector: C) -> Error
    where
        C: Connect + Clone + Send + Sync + 'static,
    {
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let request = Request::post(uri).body(Empty::<Bytes>::new()).unwrap();
        client.request(request).await.unwrap_err()
    }

    #[tokio::test]
    async fn unsupported_or_incomplete_uri_is_invalid_endpoint() {
        for uri in ["ftp://127.0.0.1/", "https://127.0.0.1/", "/accounts"] {
            let error = failure_of(uri, HttpConnector::new()).await;
            assert_eq!(
                classify_error(&error),
                FailureKind::InvalidEndpoint,
                "{error:?}"
            );
        }
        let uri = Uri::from_static("/accounts");
        let error = HttpConnector::new().call(uri).await.unwrap_err();
        assert!(is_permanent(&error), "{error:?}");
    }

    #[tokio::test]
    async fn refused_connection_and_dns_failure_are_not_sent() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let uri = format!("http://{}", socket.local_addr().unwrap());
        let error = failure_of(&uri, HttpConnector::new()).await;
        assert_eq!(
            classify_error(&error),
            FailureKind::NotProcessed,
            "{error:?}"
        );

        let resolver = service_fn(|_: Name| {
            let error = io::Error::other("no such host");
            std::future::ready(Err::<std::vec::IntoIter<std::net::SocketAddr>, _>(error))
        });
        let connector = HttpConnector::new_with_resolver(resolver);
        let error = failure_of("http://api.example/", connector).await;
        assert_eq!(
            classify_error(&error),
            FailureKind::NotProcessed,
            "{error:?}"
        );
    }
}
