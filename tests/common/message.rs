//! Requests and responses.

use std::{fmt::Debug, io};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tower::BoxError;
use tower_http_retry::{ReplayBody, ResponseBody};

/// The request body of the caller.
pub(crate) type RequestBody = Full<Bytes>;
/// The request that the inner service receives.
pub(crate) type InnerRequest = Request<ReplayBody<RequestBody>>;

/// The response body of the inner service.
pub(crate) type InnerBody = UnsyncBoxBody<Bytes, io::Error>;
/// The response of the inner service.
pub(crate) type InnerResponse = Response<InnerBody>;
/// The response that the caller receives.
pub(crate) type RetryResponse = Response<ResponseBody<InnerBody>>;

/// Creates a request with the body "sent".
pub(crate) fn request(method: &str) -> Request<RequestBody> {
    Request::builder()
        .method(method)
        .uri("http://api.example/accounts")
        .body(Full::from("sent"))
        .unwrap()
}

pub(crate) trait RequestExt {
    /// Appends a header.
    fn with_header(self, name: &'static str, value: &str) -> Self;

    /// Inserts an extension.
    fn with_extension<T: Clone + Send + Sync + 'static>(self, extension: T) -> Self;
}

impl<B> RequestExt for Request<B> {
    fn with_header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).unwrap();
        self.headers_mut().append(name, value);
        self
    }

    fn with_extension<T: Clone + Send + Sync + 'static>(mut self, extension: T) -> Self {
        self.extensions_mut().insert(extension);
        self
    }
}

/// Creates a response with the body "received".
pub(crate) fn response(status: u16) -> InnerResponse {
    let mut response = Response::new(into_inner_body(Full::from("received")));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

pub(crate) trait ResponseExt {
    /// Appends a header.
    fn with_header(self, name: &'static str, value: &str) -> Self;

    /// Replaces the body.
    fn with_body<B>(self, body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;

    /// Replaces the body with one of a single chunk.
    fn with_text(self, text: &str) -> Self;
}

impl ResponseExt for InnerResponse {
    fn with_header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).unwrap();
        self.headers_mut().append(name, value);
        self
    }

    fn with_body<B>(self, body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        self.map(|_| into_inner_body(body))
    }

    fn with_text(self, text: &str) -> Self {
        self.with_body(Full::from(text.to_owned()))
    }
}

fn into_inner_body<B>(body: B) -> InnerBody
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_err(into_io_error).boxed_unsync()
}

/// Converts an error, and keeps an `io::Error` as it is.
fn into_io_error(error: impl Into<BoxError>) -> io::Error {
    match error.into().downcast() {
        Ok(error) => *error,
        Err(error) => io::Error::other(error),
    }
}

/// Collects the body of `response`.
pub(crate) async fn body_bytes<B>(response: Response<B>) -> Bytes
where
    B: Body<Data = Bytes, Error: Debug>,
{
    response.into_body().collect().await.unwrap().to_bytes()
}
