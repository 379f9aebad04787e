//! The measured requests, and a service that responds immediately.
//!
//! Each request has four headers. Their values are created from `&str`, as most code does with `http`'s
//! builder: each value is copied into its own buffer, and the first clone of that buffer allocates.
//! (Clones of a shared `HeaderValue`, or of one from `from_static`, do not allocate. With two such values
//! of the four, a clone of the request costs tower 5 allocations instead of 7.) The URI is parsed for
//! each request. There are no extensions.

use std::{
    convert::Infallible,
    hint::black_box,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT},
};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};

/// The body of all requests: a client has a single body type. The body of a GET is empty.
pub(crate) type Body = Full<Bytes>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// A GET with a 200 as the response.
    Get,
    /// A POST of 1 KiB with a 200 as the response.
    Post,
    /// A GET with a 429 as the first response and a 200 as the second.
    #[allow(dead_code, reason = "some benches do not retry")]
    Retry,
}

const POST_LENGTH: usize = 1024;
const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhY2NfMSJ9.ZRrHA1JJJW8opsbCGfG";
const REQUEST_ID: &str = "0af7651916cd43dd8448eb211c80319c";

impl Traffic {
    pub(crate) fn request<B: From<Bytes>>(self) -> Request<B> {
        let body = match self {
            Self::Get | Self::Retry => Bytes::new(),
            Self::Post => Bytes::from(vec![b'a'; POST_LENGTH]),
        };
        let mut request = Request::new(B::from(body));
        let (method, uri, name) = match self {
            Self::Get | Self::Retry => (
                Method::GET,
                "https://api.example/accounts/acc_1/transactions?limit=10",
                ACCEPT,
            ),
            Self::Post => (
                Method::POST,
                "https://api.example/accounts/acc_1/feed",
                CONTENT_TYPE,
            ),
        };
        *request.method_mut() = method;
        *request.uri_mut() = black_box(uri).parse().expect("a URI");
        let headers = request.headers_mut();
        headers.insert(name, new_header_value("application/json"));
        headers.insert(USER_AGENT, new_header_value("bench/1.0"));
        headers.insert(AUTHORIZATION, new_header_value(&format!("Bearer {TOKEN}")));
        headers.insert("x-request-id", new_header_value(REQUEST_ID));
        request
    }
}

fn new_header_value(value: &str) -> HeaderValue {
    black_box(value).parse().expect("a header value")
}

/// Set if the next request gets a 429.
static REJECT_NEXT: AtomicBool = AtomicBool::new(false);

/// Rejects the next request with a 429.
#[allow(dead_code, reason = "some benches do not retry")]
pub(crate) fn reject_next() {
    REJECT_NEXT.store(true, Ordering::Relaxed);
}

/// Consumes the head and the body of the request, as a client that sends it, and responds.
pub(crate) async fn respond<B>(request: Request<B>) -> Result<Response<Body>, Infallible>
where
    B: http_body::Body<Data = Bytes>,
{
    let (head, body) = request.into_parts();
    let expected = if head.method == Method::POST {
        POST_LENGTH
    } else {
        0
    };
    assert_eq!(body.size_hint().exact(), Some(expected as u64));
    assert_eq!(read_body(body).await, expected);
    drop(black_box(head));

    if REJECT_NEXT.load(Ordering::Relaxed) {
        REJECT_NEXT.store(false, Ordering::Relaxed);
        let mut response = Response::new(Body::from(
            r#"{"code":"too_many_requests","message":"You are over the rate limit"}"#,
        ));
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        return Ok(response);
    }
    Ok(Response::new(Body::from(r#"{"balance":5000}"#)))
}

/// Reads a body to its end and returns its length.
pub(crate) async fn read_body<B: http_body::Body<Data = Bytes>>(body: B) -> usize {
    let mut body = pin!(body);
    let mut length = 0;
    while !body.is_end_stream() {
        let Some(Ok(frame)) = body.frame().await else {
            break;
        };
        length += frame.data_ref().map_or(0, |data| black_box(data).len());
    }
    length
}
