//! The requests that are measured, and the service that answers them at once.
//!
//! Each request has four headers, whose values come as `&str`, as most code gives them to `http`'s
//! builder: each is copied into a buffer of its own, whose first clone allocates. (A value that is kept
//! as a `HeaderValue` for all requests, or made with `from_static`, is cloned for nothing: with two such
//! values of the four, a clone of the request costs tower 5 allocations in place of 7.)
//! The URI is parsed for each request, and there are no extensions.

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

/// One type for all requests, as a client has it; that of a GET is empty.
pub(crate) type Body = Full<Bytes>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// A GET, answered with a 200.
    Get,
    /// A POST with a body of 1 KiB, answered with a 200.
    Post,
    /// A GET, answered with a 429 and then with a 200.
    #[allow(dead_code, reason = "not every bench retries")]
    Retry,
}

const POSTED: usize = 1024;
const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhY2NfMSJ9.ZRrHA1JJJW8opsbCGfG";
const ID: &str = "0af7651916cd43dd8448eb211c80319c";

impl Traffic {
    pub(crate) fn request<B: From<Bytes>>(self) -> Request<B> {
        let body = match self {
            Self::Get | Self::Retry => Bytes::new(),
            Self::Post => Bytes::from(vec![b'a'; POSTED]),
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
        headers.insert(name, copied("application/json"));
        headers.insert(USER_AGENT, copied("bench/1.0"));
        headers.insert(AUTHORIZATION, copied(&format!("Bearer {TOKEN}")));
        headers.insert("x-request-id", copied(ID));
        request
    }
}

fn copied(value: &str) -> HeaderValue {
    black_box(value).parse().expect("a header value")
}

/// What the next request is refused with, if at all.
static REFUSE: AtomicBool = AtomicBool::new(false);

/// Lets the next request be answered with a 429.
#[allow(dead_code, reason = "not every bench retries")]
pub(crate) fn refuse_next() {
    REFUSE.store(true, Ordering::Relaxed);
}

/// Reads the request as a client that sends it: its head, and its body to the end.
pub(crate) async fn answer<B>(request: Request<B>) -> Result<Response<Body>, Infallible>
where
    B: http_body::Body<Data = Bytes>,
{
    let (head, body) = request.into_parts();
    let whole = if head.method == Method::POST {
        POSTED
    } else {
        0
    };
    assert_eq!(body.size_hint().exact(), Some(whole as u64));
    assert_eq!(read(body).await, whole);
    drop(black_box(head));

    if REFUSE.load(Ordering::Relaxed) {
        REFUSE.store(false, Ordering::Relaxed);
        let mut response = Response::new(Body::from(
            r#"{"code":"too_many_requests","message":"You are over the rate limit"}"#,
        ));
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        return Ok(response);
    }
    Ok(Response::new(Body::from(r#"{"balance":5000}"#)))
}

/// Reads a body to its end; gives its length.
pub(crate) async fn read<B: http_body::Body<Data = Bytes>>(body: B) -> usize {
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
