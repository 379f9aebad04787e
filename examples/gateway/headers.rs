//! Header changes that HTTP requires of a proxy.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        CONNECTION, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Rewrites the headers of a client's request for the upstream.
///
/// Moves the requested host to `X-Forwarded-Host`; the HTTP client sets `Host` to the upstream.
/// Appends the client's address to `X-Forwarded-For` and the received version to `Via`.
pub(crate) fn rewrite_request(
    headers: &mut HeaderMap,
    client: IpAddr,
    received: Version,
    authority: Option<&str>,
    sent: Version,
) {
    let accepts_trailers = contains_element(headers, &TE, "trailers");
    remove_hop_by_hop(headers);
    if accepts_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if sent == Version::HTTP_11 {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    // The gateway's server sends the 100 (Continue) when the upstream reads the body.
    headers.remove(EXPECT);
    // It would contradict the `X-Forwarded-*` headers set below.
    headers.remove(FORWARDED);

    let host = headers.remove(HOST);
    let authority = authority.and_then(|authority| HeaderValue::from_str(authority).ok());
    match authority.or(host) {
        Some(host) => headers.insert(X_FORWARDED_HOST, host),
        None => headers.remove(X_FORWARDED_HOST),
    };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    append(headers, X_FORWARDED_FOR, &client.to_canonical().to_string());
    append(headers, VIA, via_element(received));
    join_cookies(headers);
}

/// Rewrites the headers of the upstream's response for the client.
pub(crate) fn rewrite_response(headers: &mut HeaderMap, received: Version) {
    remove_hop_by_hop(headers);
    append(headers, VIA, via_element(received));
}

/// Removes the headers for a single hop: RFC 9110 §7.6.1, and §11.7 for proxy authentication.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

    let connection_options: Vec<HeaderName> = elements(headers, &CONNECTION)
        .filter_map(|name| name.parse().ok())
        .collect();
    for name in connection_options {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
}

/// Joins several `Cookie` headers into one. Only HTTP/2 allows more than one: RFC 9113 §8.2.3.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        if let Ok(mut cookie) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            cookie.set_sensitive(true);
            headers.insert(COOKIE, cookie);
        }
    }
}

/// Returns this proxy's element of `Via`: RFC 9110 §7.6.3.
fn via_element(received: Version) -> &'static str {
    match received {
        Version::HTTP_10 => "1.0 tower-http-retry",
        Version::HTTP_2 => "2 tower-http-retry",
        _ => "1.1 tower-http-retry",
    }
}

/// Appends `element` to a list header.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    if let Ok(element) = HeaderValue::from_str(element) {
        headers.append(name, element);
    }
}

/// Returns `true` if a list header contains `element`, in any case.
fn contains_element(headers: &HeaderMap, name: &HeaderName, element: &str) -> bool {
    elements(headers, name).any(|candidate| candidate.eq_ignore_ascii_case(element))
}

/// Returns the elements of a list header. Skips values that are not visible ASCII.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}
