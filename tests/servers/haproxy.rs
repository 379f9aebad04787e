//! HAProxy: its rate limit, its `Retry-After`, its queue, its timeouts and its restart.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use http::{Method, StatusCode, Version};
use tokio::sync::Notify;
use tower::Layer;
use tower_http_retry::{GiveUpReason, RetryLayer, Retryability};

use crate::{
    CallResult, VERSIONS, client, get, persistent_client, policy, post, retrying_client, send,
    support::{
        haproxy::haproxy,
        programs::installed,
        scripted_server::{ScriptedServer, status},
        silent_peer::SilentPeer,
        timeout::{wait_until, with_timeout},
    },
};

/// Returns a frontend that logs bodies, counts the requests of each path, and responds with 200 to requests
/// that pass `rules`.
fn frontend(rules: &str) -> String {
    format!(
        r#"
        backend counters
            stick-table type string size 1k store http_req_cnt
        frontend front
            bind BIND
            declare capture request len 1000
            http-request capture req.body id 0
            http-request track-sc0 path table counters
            {rules}
            http-request return status 200 content-type text/plain lf-string "got %[req.body]"
        "#
    )
}

#[tokio::test]
async fn post_is_retried_after_429() {
    if !installed(&["haproxy"]) {
        return;
    }
    let config = frontend("http-request deny deny_status 429 if { sc_http_req_cnt(0) le 2 }");
    for version in VERSIONS {
        let mut server = haproxy(version, &config).await;
        let uri = server.uri("/pay");
        let call = post(&retrying_client(version), &uri, "amount=100").await;
        assert_eq!(
            call.response(),
            (200, &b"got amount=100"[..]),
            "{version:?}"
        );
        assert_eq!(call.attempts_and_reason(), (3, None), "{version:?}");
        let expected = [
            "front POST /pay 429 amount=100",
            "front POST /pay 429 amount=100",
            "front POST /pay 200 amount=100",
        ];
        assert_eq!(server.log(3).await, expected, "{version:?}");
    }
}

#[tokio::test]
async fn retry_after_delays_retry() {
    if !installed(&["haproxy"]) {
        return;
    }
    let first = "if { sc_http_req_cnt(0) eq 1 }";
    let returned = format!("http-request return status 429 hdr Retry-After 1 {first}");
    let added = format!(
        "http-after-response add-header Retry-After 1 if {{ status 429 }}
            http-request deny deny_status 429 {first}"
    );
    // In parallel, because each case takes a second.
    let cases = VERSIONS.map(|version| [(version, &returned), (version, &added)]);
    let cases = cases.as_flattened().iter();
    join_all(cases.map(async |&(version, rules)| {
        let mut server = haproxy(version, &frontend(rules)).await;
        let call = get(&retrying_client(version), &server.uri("/")).await;
        assert_eq!(
            (call.status(), call.attempts_and_reason()),
            (200, (2, None)),
            "{version:?}"
        );
        let retry_after = Duration::from_secs(1);
        assert!(
            call.outcome.total_delay() >= retry_after,
            "{version:?}: {:?}",
            call.outcome
        );
        let expected = ["front GET / 429 -", "front GET / 200 -"];
        assert_eq!(server.log(2).await, expected, "{version:?}");
    }))
    .await;
}

#[tokio::test]
async fn retry_after_beyond_deadline_gives_up() {
    if !installed(&["haproxy"]) {
        return;
    }
    let config = frontend("http-request return status 429 hdr Retry-After 3600 if TRUE");
    for version in VERSIONS {
        let mut server = haproxy(version, &config).await;
        let call = get(&retrying_client(version), &server.uri("/")).await;
        assert_eq!(call.status(), 429, "{version:?}");
        assert_eq!(
            call.attempts_and_reason(),
            (1, Some(GiveUpReason::DeadlineExceeded))
        );
        assert_eq!(call.outcome.retry_after(), Some(Duration::from_secs(3600)));
        assert_eq!(server.log(1).await.len(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn put_is_retried_after_server_timeout_and_post_is_not() {
    if !installed(&["haproxy"]) {
        return;
    }
    for version in VERSIONS {
        for (method, attempts) in [(Method::PUT, 2), (Method::POST, 1)] {
            let mut silent = SilentPeer::new();
            let config = format!(
                "{}
                    use_backend slow
                backend slow
                    timeout server 200ms
                    server silent {}",
                frontend("http-request allow if { sc_http_req_cnt(0) eq 1 }"),
                silent.address()
            );
            let mut server = haproxy(version, &config).await;
            let uri = server.uri("/account");
            let call = send(&retrying_client(version), method.clone(), &uri, "name=Ann").await;
            assert_eq!(silent.connections(), 1, "{version:?} {method}");
            if attempts == 2 {
                assert_eq!(call.response(), (200, &b"got name=Ann"[..]), "{version:?}");
                assert_eq!(call.attempts_and_reason(), (2, None), "{version:?}");
                let expected = [
                    "front PUT /account 504 name=Ann",
                    "front PUT /account 200 name=Ann",
                ];
                assert_eq!(server.log(2).await, expected, "{version:?}");
            } else {
                assert_eq!(call.status(), 504, "{version:?}");
                assert_eq!(
                    call.attempts_and_reason(),
                    (1, Some(GiveUpReason::NotIdempotent))
                );
                let expected = ["front POST /account 504 name=Ann"];
                assert_eq!(server.log(1).await, expected, "{version:?}");
            }
        }
    }
}

#[tokio::test]
async fn queue_timeout_503_is_retried_only_if_classified() {
    if !installed(&["haproxy"]) {
        return;
    }
    for version in VERSIONS {
        let release = Arc::new(Notify::new());
        let origin = ScriptedServer::start([status(200).after(&release), status(200)]);
        let config = format!(
            "frontend front
                bind BIND
                default_backend narrow
            backend narrow
                timeout queue 100ms
                server origin {} maxconn 1",
            origin.address()
        );
        let mut server = haproxy(version, &config).await;
        let uri = server.uri("/");
        let first = tokio::spawn({
            let (client, uri) = (retrying_client(version), uri.clone());
            async move { get(&client, &uri).await }
        });
        // The first call occupies the only connection to the origin.
        origin.head(0).await;

        let call = get(&retrying_client(version), &uri).await;
        assert_eq!(call.status(), 503, "{version:?}");
        assert_eq!(
            call.attempts_and_reason(),
            (1, Some(GiveUpReason::NotRetryable))
        );

        let second = tokio::spawn(async move { get_with_retry_after_503(version, &uri).await });
        wait_until("the second call also gets a 503", async || {
            server.logged().len() == 2
        })
        .await;
        release.notify_one();
        let (first, second) = (
            with_timeout(first).await.unwrap(),
            with_timeout(second).await.unwrap(),
        );
        assert_eq!(
            (first.status(), first.attempts_and_reason()),
            (200, (1, None)),
            "{version:?}"
        );
        assert_eq!(second.status(), 200, "{version:?}");
        let attempts = second.outcome.attempts() as usize;
        assert!(attempts >= 2, "{version:?}");
        let log = server.log(attempts + 2).await;
        let done = log.iter().filter(|line| line.contains(" 200 ")).count();
        assert_eq!((done, log.len()), (2, attempts + 2), "{version:?}: {log:?}");
    }
}

async fn get_with_retry_after_503(version: Version, uri: &str) -> CallResult {
    let policy = policy().max_retries(1000).no_budget();
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let policy = policy.classify_status(status, Retryability::IfIdempotent);
    let client = RetryLayer::new(policy.unwrap()).layer(client(version));
    get(&client, uri).await
}

#[tokio::test]
async fn restart_is_transparent() {
    if !installed(&["haproxy"]) {
        return;
    }
    let config = frontend("");
    for version in VERSIONS {
        let mut server = haproxy(version, &config).await;
        let (client, failed) = persistent_client(version);
        let uri = server.uri("/");
        assert_eq!(get(&client, &uri).await.status(), 200, "{version:?}");
        wait_until("the first request is logged", async || {
            server.logged().len() == 1
        })
        .await;
        server.stop("USR1").await;
        let calls = [Method::GET, Method::POST].map(|method| {
            let (client, uri) = (client.clone(), uri.clone());
            tokio::spawn(async move { send(&client, method, &uri, "money").await })
        });
        wait_until("both connections are refused", async || {
            failed.load(Ordering::SeqCst) == 2
        })
        .await;
        server.start().await;
        for call in calls {
            let call = with_timeout(call).await.unwrap();
            assert_eq!(call.response(), (200, &b"got money"[..]), "{version:?}");
        }
        let mut log = server.log(3).await;
        log.sort();
        let expected = [
            "front GET / 200 -",
            "front GET / 200 money",
            "front POST / 200 money",
        ];
        assert_eq!(log, expected, "{version:?}");
    }
}
