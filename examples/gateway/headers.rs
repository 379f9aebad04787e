//! The headers that are a proxy's affair.

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

/// Makes the headers that a client has sent into those that the upstream gets.
///
/// `Host` is left to the HTTP client, which names the upstream; what the client has named goes into
/// `X-Forwarded-Host`. Its address is put behind those that `X-Forwarded-For` lists, and `Via` is
/// continued.
pub(crate) fn to_upstream(
    headers: &mut HeaderMap,
    from: IpAddr,
    received: Version,
    authority: Option<&str>,
    sent: Version,
) {
    let takes_trailers = lists(headers, &TE, "trailers");
    remove_hop_by_hop(headers);
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if sent == Version::HTTP_11 {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    // The gateway's server answers it, as soon as the upstream takes the body.
    headers.remove(EXPECT);
    // It would contradict what is said below.
    headers.remove(FORWARDED);

    let host = headers.remove(HOST);
    let authority = authority.and_then(|authority| HeaderValue::from_str(authority).ok());
    match authority.or(host) {
        Some(host) => headers.insert(X_FORWARDED_HOST, host),
        None => headers.remove(X_FORWARDED_HOST),
    };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    append(headers, X_FORWARDED_FOR, &from.to_canonical().to_string());
    append(headers, VIA, via(received));
    join_cookies(headers);
}

/// Makes the headers that the upstream has sent into those that the client gets.
pub(crate) fn from_upstream(headers: &mut HeaderMap, received: Version) {
    remove_hop_by_hop(headers);
    append(headers, VIA, via(received));
}

/// What is meant for the next hop alone: RFC 9110 §7.6.1, and §11.7 for the two of `Proxy-`.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

    let named: Vec<HeaderName> = elements(headers, &CONNECTION)
        .filter_map(|name| name.parse().ok())
        .collect();
    for name in named {
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

/// HTTP/2 may spread one cookie header over several lines, which no other version knows: RFC 9113
/// §8.2.3.
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

/// The protocol by which a message was received, and by whom: RFC 9110 §7.6.3.
fn via(received: Version) -> &'static str {
    match received {
        Version::HTTP_10 => "1.0 tower-http-retry",
        Version::HTTP_2 => "2 tower-http-retry",
        _ => "1.1 tower-http-retry",
    }
}

/// Puts `element` behind the others of a list.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    if let Ok(element) = HeaderValue::from_str(element) {
        headers.append(name, element);
    }
}

fn lists(headers: &HeaderMap, name: &HeaderName, element: &str) -> bool {
    elements(headers, name).any(|found| found.eq_ignore_ascii_case(element))
}

/// The elements of a list, without what is not ASCII.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}
