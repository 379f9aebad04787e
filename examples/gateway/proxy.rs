//! One request through the gateway: to the upstream, by way of the layer, and back.

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

/// The upstream's body as it comes, or a text of the gateway's own.
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

    /// The upstream's answer; where there is none, one that says why.
    pub(crate) async fn forward(&self, request: Request<Incoming>, from: IpAddr) -> Response<Body> {
        let Some(mut request) = self.to_upstream(request, from) else {
            let text = "the gateway opens no tunnels";
            return plain(StatusCode::METHOD_NOT_ALLOWED, text.to_owned());
        };
        let method = request.method().clone();
        let handle = OutcomeHandle::new();
        request.extensions_mut().insert(handle.clone());

        let result = self.client.clone().oneshot(request).await;
        let (mut response, outcome) = match result {
            Ok(response) => {
                let outcome = RetryOutcome::from_response(&response);
                (from_upstream(response), Some(outcome))
            }
            Err(error) => {
                let outcome = handle.get();
                (failure(error, outcome.as_ref()), outcome)
            }
        };
        let attempts = outcome.map_or(0, |outcome| outcome.attempts());
        let stop = outcome.and_then(|outcome| outcome.give_up_reason());
        let stop = stop.map(|stop| stop.as_str());
        let status = response.status().as_u16();
        // Without path and query: they may hold secrets.
        tracing::info!(%method, status, attempts, stop, "answered");
        let attempts = HeaderValue::from(attempts);
        response.headers_mut().insert(X_RETRY_ATTEMPTS, attempts);
        response
    }

    /// The request as the upstream gets it; `None` for `CONNECT`, which names no path.
    fn to_upstream(&self, request: Request<Incoming>, from: IpAddr) -> Option<Request<Incoming>> {
        let (parts, body) = request.into_parts();
        let asked = parts.uri.into_parts();
        let uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.upstream.clone())
            .path_and_query(asked.path_and_query?);
        // Nothing that the server has put into the extensions is meant for the client.
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.uri_mut() = uri.build().ok()?;
        *request.version_mut() = self.version;
        *request.headers_mut() = parts.headers;
        let authority = asked.authority.as_ref().map(Authority::as_str);
        let headers = request.headers_mut();
        headers::to_upstream(headers, from, parts.version, authority, self.version);
        Some(request)
    }
}

fn from_upstream(response: Response<ResponseBody<Incoming>>) -> Response<Body> {
    let mut response = response.map(Either::Left);
    let received = response.version();
    headers::from_upstream(response.headers_mut(), received);
    // To the client the gateway speaks its own version, whatever the upstream speaks.
    *response.version_mut() = Version::HTTP_11;
    response
}

/// An answer in place of the upstream's. What exactly went wrong is for the log alone.
fn failure(error: BoxError, outcome: Option<&RetryOutcome>) -> Response<Body> {
    let kind = ApiErrorsAsFailures::new().classify_error(&error).kind();
    tracing::warn!(error = chain(&*error), "no answer from the upstream");
    let (status, text) = match kind {
        FailureKind::Timeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "the upstream did not answer in time",
        ),
        FailureKind::NotSent => (StatusCode::BAD_GATEWAY, "the upstream cannot be reached"),
        FailureKind::Disconnected => (
            StatusCode::BAD_GATEWAY,
            "the connection to the upstream broke off",
        ),
        _ => (
            StatusCode::BAD_GATEWAY,
            "the exchange with the upstream failed",
        ),
    };
    let stop = outcome.and_then(|outcome| outcome.give_up_reason());
    plain(
        status,
        match stop {
            Some(stop) => format!("{text} ({stop})"),
            None => text.to_owned(),
        },
    )
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source());
    let texts: Vec<String> = chain.map(ToString::to_string).collect();
    texts.join(": ")
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(text + "\n")));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
