//! Forwarded requests, their retries, and the responses of the gateway itself.

use std::net::SocketAddr;

use http::{Method, Version};

use crate::{
    VERSIONS,
    curl::curl,
    process::Gateway,
    random_bytes,
    support::{
        programs::{free_port, installed},
        scripted_server::{ScriptedServer, ok, status},
        silent_peer::SilentPeer,
    },
};

#[tokio::test]
async fn forwards_get_over_both_versions() {
    if !installed(&["curl"]) {
        return;
    }
    let upstream = ScriptedServer::start([ok("hello"), ok("hello")]);
    let gateway = Gateway::start(upstream.address(), &[]).await;
    for (version, flag) in VERSIONS {
        let uri = gateway.uri("/accounts?page=2");
        let reply = curl(&[flag, &uri]).await;
        assert_eq!((reply.status, reply.text()), (200, "hello"), "{version:?}");
        assert_eq!(reply.version, version);
        assert_eq!(reply.headers["x-retry-attempts"], "1");
        assert_eq!(reply.headers["via"], "1.1 tower-http-retry");
        let head = upstream.heads().pop().unwrap();
        assert_eq!(head.uri, "/accounts?page=2");
        let via = match version {
            Version::HTTP_2 => "2 tower-http-retry",
            _ => "1.1 tower-http-retry",
        };
        assert_eq!(head.headers["via"], via);
        assert_eq!(head.headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(head.headers["x-forwarded-proto"], "http");
        assert_eq!(head.headers["host"], upstream.address().to_string());
        let gateway_address = gateway.address.to_string();
        assert_eq!(
            head.headers["x-forwarded-host"], gateway_address,
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn post_is_retried_with_complete_body_after_429() {
    if !installed(&["curl"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let sent = random_bytes(50_000);
    std::fs::write(&file, &sent).unwrap();
    let upload = format!("@{}", file.path().display());
    for flags in [
        &["--http1.1"][..],
        &["--http1.1", "-H", "Transfer-Encoding: chunked"],
        &["--http2-prior-knowledge"],
    ] {
        let upstream = ScriptedServer::start([status(429), status(429), ok("paid")]);
        let gateway = Gateway::start(upstream.address(), &[]).await;
        let uri = gateway.uri("/payments");
        let reply = curl(&[flags, &["--data-binary", &upload, &uri]].concat()).await;
        assert_eq!((reply.status, reply.text()), (200, "paid"), "{flags:?}");
        assert_eq!(reply.headers["x-retry-attempts"], "3");
        assert_eq!(upstream.request_count(), 3, "{flags:?}");
        for (n, head) in upstream.heads().into_iter().enumerate() {
            assert_eq!(head.method, Method::POST);
            assert!(upstream.body(n).await.unwrap().data == sent, "{flags:?}");
        }
    }
}

#[tokio::test]
async fn post_is_retried_after_500_only_with_idempotency_key() {
    if !installed(&["curl"]) {
        return;
    }
    let upstream = ScriptedServer::start([status(500), status(500), ok("paid")]);
    let gateway = Gateway::start(upstream.address(), &[]).await;
    let uri = gateway.uri("/payments");
    let reply = curl(&["-d", "amount=100", &uri]).await;
    assert_eq!(reply.status, 500);
    assert_eq!(reply.headers["x-retry-attempts"], "1");
    let reply = curl(&[
        "-d",
        "amount=100",
        "-H",
        "Idempotency-Key: \"8e03978e\"",
        &uri,
    ])
    .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["x-retry-attempts"], "2");
    assert_eq!(upstream.request_count(), 3);
}

#[tokio::test]
async fn flags_set_policy() {
    if !installed(&["curl"]) {
        return;
    }
    for (flags, script, expected, attempts) in [
        (&["--max-retries", "0"][..], vec![status(429)], 429, "1"),
        (
            &["--classify-status", "503"],
            vec![status(503), ok("")],
            200,
            "2",
        ),
        (
            &["--classify-status", "429=never"],
            vec![status(429)],
            429,
            "1",
        ),
        (
            &["--budget-capacity", "10", "--budget-cost", "10"],
            vec![status(429), status(429)],
            429,
            "2",
        ),
        (
            &["--no-budget", "--max-retries", "7"],
            (0..8).map(|_| status(429)).collect(),
            429,
            "8",
        ),
        (
            &["--rate-gate", "--max-elapsed", "2s"],
            vec![status(429).header("retry-after", 3600), ok("")],
            429,
            "1",
        ),
    ] {
        let upstream = ScriptedServer::start(script);
        let gateway = Gateway::start(upstream.address(), flags).await;
        let reply = curl(&[&gateway.uri("/")]).await;
        assert_eq!(reply.status, expected, "{flags:?}");
        assert_eq!(reply.headers["x-retry-attempts"], attempts, "{flags:?}");
        if flags.contains(&"--rate-gate") {
            // The gate is closed now, and rejects the request locally.
            let reply = curl(&[&gateway.uri("/")]).await;
            assert_eq!(reply.status, 429);
            assert_eq!(reply.headers["x-retry-attempts"], "0");
        }
    }
}

#[tokio::test]
async fn unreachable_and_silent_upstreams_become_502_and_504() {
    if !installed(&["curl"]) {
        return;
    }
    let unused = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gateway = Gateway::start(unused, &["--max-retries", "2"]).await;
    let reply = curl(&["-d", "amount=100", &gateway.uri("/payments?token=secret")]).await;
    assert_eq!(reply.status, 502);
    assert_eq!(reply.headers["x-retry-attempts"], "3");
    assert_eq!(
        reply.text(),
        "the upstream cannot be reached (retries_exhausted)\n"
    );

    let mut silent = SilentPeer::new();
    let flags = ["--attempt-timeout", "100ms", "--max-retries", "2"];
    let gateway = Gateway::start(silent.address(), &flags).await;
    let reply = curl(&[&gateway.uri("/")]).await;
    assert_eq!(reply.status, 504);
    assert_eq!(reply.headers["x-retry-attempts"], "3");
    assert_eq!(
        reply.text(),
        "the upstream did not answer in time (retries_exhausted)\n"
    );
    assert_eq!(silent.connections(), 3);
    let reply = curl(&["-d", "amount=100", &gateway.uri("/")]).await;
    assert_eq!(reply.status, 504);
    assert_eq!(reply.headers["x-retry-attempts"], "1");
    assert_eq!(
        reply.text(),
        "the upstream did not answer in time (not_idempotent)\n"
    );
}
