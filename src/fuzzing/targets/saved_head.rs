//! The head of a retry, which is equal to the head of the first attempt.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    Version, request::Parts,
};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_http_retry::{ReplayBody, RequestOptions, RetryLayer, RetryPolicy, backoff_fn};

use super::runtime::block_on;

/// Decodes a request head, and sends it twice.
pub fn saved_head(data: &[u8]) {
    if let Ok(Some(request)) = any_request(&mut Unstructured::new(data)) {
        check(request);
    }
}

fn check(request: Request<Full<Bytes>>) {
    let received: Arc<Mutex<Vec<(Parts, Bytes)>>> = Arc::default();
    let server = service_fn({
        let received = received.clone();
        move |request: Request<ReplayBody<Full<Bytes>>>| {
            let received = received.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body
                    .collect()
                    .await
                    .expect("a body that does not fail")
                    .to_bytes();
                received.lock().unwrap().push((head, body));
                let mut response = Response::new(Full::<Bytes>::default());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                Ok::<_, Infallible>(response)
            }
        }
    });
    let policy = RetryPolicy::new()
        .max_retries(1)
        .no_budget()
        .backoff(backoff_fn(|| std::iter::repeat(Duration::ZERO)));
    let head = request.map(|_| ());
    let mut copy = Request::new(Full::from("body"));
    (*copy.method_mut(), *copy.uri_mut()) = (head.method().clone(), head.uri().clone());
    (*copy.version_mut(), *copy.headers_mut()) = (head.version(), head.headers().clone());
    *copy.extensions_mut() = head.extensions().clone();
    block_on(RetryLayer::new(policy).layer(server).oneshot(copy)).expect("a response");
    let received = received.lock().unwrap();
    assert_eq!(received.len(), 2, "{head:?}");
    let (expected, ()) = head.into_parts();
    for (head, body) in received.iter() {
        assert_eq!(body, "body");
        assert_eq!(head.method, expected.method);
        assert_eq!(head.version, expected.version);
        assert_eq!(head.uri, expected.uri);
        assert_eq!(uri_parts(&head.uri), uri_parts(&expected.uri));
        assert_eq!(fields(&head.headers), fields(&expected.headers));
        let marker = |extensions: &Extensions| extensions.get::<u32>().copied();
        assert_eq!(marker(&head.extensions), marker(&expected.extensions));
    }
}

/// The parts as text, whose case `Uri` does not compare.
fn uri_parts(uri: &Uri) -> [Option<String>; 3] {
    [
        uri.scheme().map(ToString::to_string),
        uri.authority().map(ToString::to_string),
        uri.path_and_query().map(ToString::to_string),
    ]
}

/// The fields in order, with the flag that `HeaderMap` does not compare.
fn fields(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue, bool)> {
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.clone(), value.clone(), value.is_sensitive()))
        .collect()
}

fn any_request(u: &mut Unstructured<'_>) -> Result<Option<Request<Full<Bytes>>>> {
    const METHODS: [&str; 8] = [
        "GET",
        "POST",
        "CONNECT",
        "PURGE",
        "get",
        "x",
        "QUERY",
        "M-SEARCH-LONGER-THAN-15",
    ];
    const VERSIONS: [Version; 5] = [
        Version::HTTP_09,
        Version::HTTP_10,
        Version::HTTP_11,
        Version::HTTP_2,
        Version::HTTP_3,
    ];
    const NAMES: [&str; 6] = [
        "accept",
        "cookie",
        "content-length",
        "x-a",
        "idempotency-key",
        "x-b",
    ];

    let mut request = Request::new(Full::default());
    *request.method_mut() = u.choose(&METHODS)?.parse().unwrap_or(Method::GET);
    *request.version_mut() = *u.choose(&VERSIONS)?;
    let Some(uri) = any_uri(u)? else {
        return Ok(None);
    };
    *request.uri_mut() = uri;
    for _ in 0..u.int_in_range(0..=20)? {
        let name = match u.arbitrary()? {
            true => HeaderName::from_static(u.choose(&NAMES)?),
            false => match HeaderName::from_bytes(u.bytes(5)?) {
                Ok(name) => name,
                Err(_) => continue,
            },
        };
        let Ok(mut value) = HeaderValue::from_bytes(u.arbitrary()?) else {
            continue;
        };
        value.set_sensitive(u.arbitrary()?);
        request.headers_mut().append(name, value);
    }
    let options = RequestOptions::new().idempotent(true);
    request.extensions_mut().insert(options);
    request.extensions_mut().insert::<u32>(u.arbitrary()?);
    Ok(Some(request))
}

fn any_uri(u: &mut Unstructured<'_>) -> Result<Option<Uri>> {
    const AUTHORITIES: [&str; 7] = [
        "h",
        "user:p%20w@H.example:80",
        "[::1]:443",
        "1.2.3.4",
        "a_b",
        "h:",
        "u@h:1",
    ];
    const PATHS: [&str; 9] = [
        "/",
        "*",
        "/a//b?",
        "/?q=1&q",
        "/%zz?\"'{}",
        "?a",
        "",
        "/a#b",
        "/\u{e9}",
    ];
    let (authority, path) = (*u.choose(&AUTHORITIES)?, *u.choose(&PATHS)?);
    let text = match u.int_in_range(0..=4)? {
        0 => path.to_owned(),
        1 => authority.to_owned(),
        2 => format!(
            "{}://{authority}{path}",
            u.choose(&["http", "HTTPS", "ftp", "x+y.z"])?
        ),
        3 => format!("/{}", u.arbitrary::<&str>()?),
        _ => u.arbitrary::<String>()?,
    };
    Ok(text.parse().ok())
}
