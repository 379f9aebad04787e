//! The request of the benches `loopback` and `waiting`.

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Empty;

/// Creates a GET with four headers and no body.
pub(crate) fn get<U>(uri: U) -> http::Result<Request<Empty<Bytes>>>
where
    U: TryInto<Uri, Error: Into<http::Error>>,
{
    let request = Request::get(uri)
        .header("accept", "application/json")
        .header(
            "authorization",
            "Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG",
        )
        .header("user-agent", "bench/1.0")
        .header("x-request-id", "0af7651916cd43dd8448eb211c80319c");
    request.body(Empty::new())
}
