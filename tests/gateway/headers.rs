//! Headers between the two connections of the gateway.

use std::net::SocketAddr;

use http::HeaderName;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    VERSIONS,
    curl::{Reply, curl},
    process::Gateway,
    support::{
        programs::installed,
        scripted_server::{ScriptedServer, ok, status},
        timeout::with_timeout,
    },
};

#[tokio::test]
async fn translates_between_http_versions() {
    if !installed(&["curl"]) {
        return;
    }
    let script = [status(429), ok("one"), status(429), ok("two")];
    let upstream = ScriptedServer::start(script);
    for ((version, flag), upstream_flags) in
        VERSIONS.into_iter().zip([&["--upstream-http2"][..], &[]])
    {
        let gateway = Gateway::start(upstream.address(), upstream_flags).await;
        let cookies = ["-H", "Cookie: a=1", "-H", "Cookie: b=2"];
        let target = [
            "-X",
            "OPTIONS",
            "--request-target",
            "*",
            "-H",
            "TE: trailers",
        ];
        let uri = gateway.uri("/");
        let reply = curl(&[&cookies[..], &target, &[flag, &uri]].concat()).await;
        assert_eq!((reply.status, reply.version), (200, version));
        assert_eq!(reply.headers["x-retry-attempts"], "2", "{version:?}");
        let head = upstream.heads().pop().unwrap();
        assert_ne!(head.version, version);
        assert_eq!(head.uri.path(), "*", "{version:?}");
        let cookies: Vec<_> = head.headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2"], "{version:?}");
        assert_eq!(head.headers["te"], "trailers", "{version:?}");
    }
}

#[tokio::test]
async fn removes_hop_by_hop_headers_from_request() {
    if !installed(&["curl"]) {
        return;
    }
    let headers = [
        "Connection: x-hop, Keep-Alive",
        "X-Hop: client",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic c2VjcmV0",
        "TE: gzip, trailers",
        "Upgrade: websocket",
        "X-Forwarded-For: 192.0.2.7",
        "Via: 1.0 elsewhere",
        "Forwarded: for=192.0.2.66",
        "X-End: client",
    ];
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let mut exchange = exchange(&headers, response).await;
    let head = &mut exchange.request_head;
    head.sort();
    let user_agent = head
        .iter()
        .position(|line| line.starts_with("user-agent: curl/"));
    head.remove(user_agent.expect("a user-agent"));
    let expected = [
        "GET / HTTP/1.1",
        "accept: */*",
        "connection: te",
        &format!("host: {}", exchange.upstream),
        "te: trailers",
        "via: 1.0 elsewhere",
        "via: 1.1 tower-http-retry",
        "x-end: client",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-for: 192.0.2.7",
        &format!("x-forwarded-host: {}", exchange.gateway),
        "x-forwarded-proto: http",
    ];
    assert_eq!(*head, expected);
    assert_eq!(exchange.reply.status, 200);
}

#[tokio::test]
async fn removes_hop_by_hop_headers_from_response() {
    if !installed(&["curl"]) {
        return;
    }
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: server\r\n\
        keep-alive: timeout=7\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\nvia: 1.0 older\r\n\
        x-retry-attempts: 99\r\nx-end: server\r\n\r\nhi";
    let reply = exchange(&[], response).await.reply;
    assert_eq!((reply.status, reply.text()), (200, "hi"));
    let mut names: Vec<_> = reply.headers.keys().map(HeaderName::as_str).collect();
    names.sort();
    let expected = ["content-length", "date", "via", "x-end", "x-retry-attempts"];
    assert_eq!(names, expected);
    assert_eq!(reply.headers["x-retry-attempts"], "1");
    let via: Vec<_> = reply.headers.get_all("via").iter().collect();
    assert_eq!(via, ["1.0 older", "1.1 tower-http-retry"]);
}

struct Exchange {
    gateway: SocketAddr,
    upstream: SocketAddr,
    request_head: Vec<String>,
    reply: Reply,
}

/// Sends a GET with `headers` through the gateway to an upstream that sends the bytes of `response`.
///
/// The upstream is a bare socket, because an HTTP library would correct its headers.
async fn exchange(headers: &[&str], response: &str) -> Exchange {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let gateway = Gateway::start(upstream, &[]).await;
    let uri = gateway.uri("/");
    let headers = headers.iter().flat_map(|header| ["-H", header]);
    let arguments: Vec<_> = headers.chain([&*uri]).collect();
    let serving = async {
        let (mut stream, _) = with_timeout(listener.accept()).await.unwrap();
        let head = read_head(&mut stream).await;
        let sent = with_timeout(stream.write_all(response.as_bytes())).await;
        sent.unwrap();
        (head, stream)
    };
    let (reply, (request_head, _stream)) = tokio::join!(curl(&arguments), serving);
    Exchange {
        gateway: gateway.address,
        upstream,
        request_head,
        reply,
    }
}

/// Reads the lines of a request head.
async fn read_head(stream: &mut TcpStream) -> Vec<String> {
    let mut lines = BufReader::new(stream).lines();
    let mut head = Vec::new();
    loop {
        let line = with_timeout(lines.next_line()).await.unwrap();
        match line.expect("the end of the head") {
            line if line.is_empty() => return head,
            line => head.push(line),
        }
    }
}
