//! Forwards requests to the upstream through the retry layer.

use std::{error::Error, iter, net::IpAddr};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::CONTENT_TYPE,
    uri::{Authority, Scheme},
};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tower::{
    ServiceBuilder, ServiceExt,
    timeout::{Timeout, TimeoutLayer},
};
use tower_http::classify::ClassifyResponse;
use tower_http_retry::{
    ApiErrorsAsFailures, FailureKind, OutcomeHandle, ReplayBody, ResponseBody, Retry, RetryLayer,
    RetryOutcome,
};

use crate::{BoxError, headers, settings::Settings};

const X_RETRY_ATTEMPTS: HeaderName = HeaderName::from_static("x-retry-attempts");

/// The unchanged body of the upstream, or a text body created by the gateway.
pub(crate) type Body = Either<ResponseBody<Incoming>, Full<Bytes>>;

type HttpClient = Client<HttpConnector, ReplayBody<Incoming>>;

#[derive(Clone)]
pub(crate) struct Gateway {
    upstream: Authority,
    version: Version,
    client: Retry<Timeout<HttpClient>>,
}

impl Gateway {
    pub(crate) fn new(settings: &Settings) -> Result<Self, BoxError> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .http2_only(settings.upstream_http2)
            .build(connector);
        Ok(Self {
            upstream: settings.upstream.clone(),
            version: match settings.upstream_http2 {
                true => Version::HTTP_2,
                false => Version::HTTP_11,
            },
            client: ServiceBuilder::new()
                .layer(RetryLayer::new(settings.policy()?))
                .layer(TimeoutLayer::new(settings.attempt_timeout))
                .service(client),
        })
    }

    /// Returns the upstream's response, or an error response if there is none.
    pub(crate) async fn forward(
        &self,
        request: Request<Incoming>,
        client: IpAddr,
    ) -> Response<Body> {
        let Some(mut request) = self.rewrite_request(request, client) else {
            let text = "the gateway does not support CONNECT";
            return text_response(StatusCode::METHOD_NOT_ALLOWED, text.to_owned());
        };
        let method = request.method().clone();
        let handle = OutcomeHandle::new();
        request.extensions_mut().insert(handle.clone());

        let result = self.client.clone().oneshot(request).await;
        let (mut response, outcome) = match result {
            Ok(response) => {
                let outcome = RetryOutcome::from_response(&response);
                (rewrite_response(response), Some(outcome))
            }
            Err(error) => {
                let outcome = handle.get();
                (error_response(error, outcome.as_ref()), outcome)
            }
        };
        let attempts = outcome.map_or(0, |outcome| outcome.attempts());
        let reason = outcome.and_then(|outcome| outcome.give_up_reason());
        let stop = reason.map(|reason| reason.as_str());
        let status = response.status().as_u16();
        // Path and query may contain secrets and are not logged.
        tracing::info!(%method, status, attempts, stop, "answered");
        let attempts = HeaderValue::from(attempts);
        response.headers_mut().insert(X_RETRY_ATTEMPTS, attempts);
        response
    }

    /// Rewrites the request for the upstream. Returns `None` for `CONNECT`, whose URI has no path.
    fn rewrite_request(
        &self,
        request: Request<Incoming>,
        client: IpAddr,
    ) -> Option<Request<Incoming>> {
        let (parts, body) = request.into_parts();
        let requested = parts.uri.into_parts();
        let uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.upstream.clone())
            .path_and_query(requested.path_and_query?);
        // A new request: the server's extensions are not for the HTTP client.
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.uri_mut() = uri.build().ok()?;
        *request.version_mut() = self.version;
        *request.headers_mut() = parts.headers;
        let authority = requested.authority.as_ref().map(Authority::as_str);
        let headers = request.headers_mut();
        headers::rewrite_request(headers, client, parts.version, authority, self.version);
        Some(request)
    }
}

fn rewrite_response(response: Response<ResponseBody<Incoming>>) -> Response<Body> {
    let mut response = response.map(Either::Left);
    let received = response.version();
    headers::rewrite_response(response.headers_mut(), received);
    // The version of the upstream's connection does not apply to the client's connection.
    *response.version_mut() = Version::HTTP_11;
    response
}

/// Creates a response for a request that failed without one. Only the log contains the details.
fn error_response(error: BoxError, outcome: Option<&RetryOutcome>) -> Response<Body> {
    let kind = ApiErrorsAsFailures::new().classify_error(&error).kind();
    tracing::warn!(
        error = format_error_chain(&*error),
        "no response from the upstream"
    );
    let (status, text) = match kind {
        FailureKind::Timeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "the upstream did not answer in time",
        ),
        FailureKind::NotProcessed => (StatusCode::BAD_GATEWAY, "the upstream cannot be reached"),
        FailureKind::Disconnected => (
            StatusCode::BAD_GATEWAY,
            "the connection to the upstream was lost",
        ),
        _ => (
            StatusCode::BAD_GATEWAY,
            "the request to the upstream failed",
        ),
    };
    let reason = outcome.and_then(|outcome| outcome.give_up_reason());
    text_response(
        status,
        match reason {
            Some(reason) => format!("{text} ({reason})"),
            None => text.to_owned(),
        },
    )
}

fn format_error_chain(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source());
    let messages: Vec<String> = chain.map(ToString::to_string).collect();
    messages.join(": ")
}

fn text_response(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(text + "\n")));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
