//! HAProxy: its overdrafts, its `Retry-After`, its queue and its timeouts.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use tower::Layer;
use tower_http_retry::{GiveUpReason, RetryLayer, Retryability};

use crate::{
    BOTH, client, get, patient, policy, post, retrying, send,
    support::{Silent, haproxy::haproxy, installed, until, within},
};

/// A frontend that keeps bodies for the log and counts the requests of each path, and that answers what
/// passes `rules`. What follows belongs to it.
fn frontend(rules: &str) -> String {
    format!(
        r#"
        backend seen
            stick-table type string size 1k store http_req_cnt
        frontend front
            bind BIND
            declare capture request len 1000
            http-request capture req.body id 0
            http-request track-sc0 path table seen
            {rules}
            http-request return status 200 content-type text/plain lf-string "got %[req.body]"
        "#
    )
}

#[tokio::test]
async fn a_denied_post_is_sent_again_until_it_is_let_in() {
    if !installed(&["haproxy"]) {
        return;
    }
    let config = frontend("http-request deny deny_status 429 if { sc_http_req_cnt(0) le 2 }");
    for version in BOTH {
        let mut server = haproxy(version, &config).await;
        let uri = server.uri("/pay");
        let call = post(&retrying(version), &uri, "amount=100").await;
        assert_eq!(
            call.response(),
            (200, &b"got amount=100"[..]),
            "{version:?}"
        );
        assert_eq!(call.ended(), (3, None), "{version:?}");
        let expected = [
            "front POST /pay 429 amount=100",
            "front POST /pay 429 amount=100",
            "front POST /pay 200 amount=100",
        ];
        assert_eq!(server.log(3).await, expected, "{version:?}");
    }
}

#[tokio::test]
async fn a_retry_after_is_kept_to_however_it_was_added() {
    if !installed(&["haproxy"]) {
        return;
    }
    let first = "if { sc_http_req_cnt(0) eq 1 }";
    let returned = format!("http-request return status 429 hdr Retry-After 1 {first}");
    let added = format!(
        "http-after-response add-header Retry-After 1 if {{ status 429 }}
            http-request deny deny_status 429 {first}"
    );
    // At the same time, for each takes its second.
    let cases = BOTH.map(|version| [(version, &returned), (version, &added)]);
    let cases = cases.as_flattened().iter();
    join_all(cases.map(async |&(version, rules)| {
        let mut server = haproxy(version, &frontend(rules)).await;
        let call = get(&retrying(version), &server.uri("/")).await;
        assert_eq!(
            (call.status(), call.ended()),
            (200, (2, None)),
            "{version:?}"
        );
        let asked = Duration::from_secs(1);
        assert!(
            call.outcome.total_delay() >= asked,
            "{version:?}: {:?}",
            call.outcome
        );
        let expected = ["front GET / 429 -", "front GET / 200 -"];
        assert_eq!(server.log(2).await, expected, "{version:?}");
    }))
    .await;
}

#[tokio::test]
async fn a_retry_after_beyond_the_deadline_is_handed_to_the_caller() {
    if !installed(&["haproxy"]) {
        return;
    }
    let config = frontend("http-request return status 429 hdr Retry-After 3600 if TRUE");
    for version in BOTH {
        let mut server = haproxy(version, &config).await;
        let call = get(&retrying(version), &server.uri("/")).await;
        assert_eq!(call.status(), 429, "{version:?}");
        assert_eq!(call.ended(), (1, Some(GiveUpReason::DeadlineExceeded)));
        assert_eq!(call.outcome.retry_after(), Some(Duration::from_secs(3600)));
        assert_eq!(server.log(1).await.len(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn after_a_server_timeout_a_put_is_sent_again_whole_and_a_post_is_not() {
    if !installed(&["haproxy"]) {
        return;
    }
    for version in BOTH {
        for (method, attempts) in [(Method::PUT, 2), (Method::POST, 1)] {
            let mut silent = Silent::new();
            let config = format!(
                "{}
                    use_backend slow
                backend slow
                    timeout server 200ms
                    server silent 127.0.0.1:{}",
                frontend("http-request allow if { sc_http_req_cnt(0) eq 1 }"),
                silent.port()
            );
            let mut server = haproxy(version, &config).await;
            let uri = server.uri("/account");
            let call = send(&retrying(version), method.clone(), &uri, "name=Ann").await;
            assert_eq!(silent.connections(), 1, "{version:?} {method}");
            if attempts == 2 {
                assert_eq!(call.response(), (200, &b"got name=Ann"[..]), "{version:?}");
                assert_eq!(call.ended(), (2, None), "{version:?}");
                let expected = [
                    "front PUT /account 504 name=Ann",
                    "front PUT /account 200 name=Ann",
                ];
                assert_eq!(server.log(2).await, expected, "{version:?}");
            } else {
                assert_eq!(call.status(), 504, "{version:?}");
                assert_eq!(call.ended(), (1, Some(GiveUpReason::NotIdempotent)));
                let expected = ["front POST /account 504 name=Ann"];
                assert_eq!(server.log(1).await, expected, "{version:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_full_queue_is_surfaced_unless_the_policy_names_its_503() {
    if !installed(&["haproxy"]) {
        return;
    }
    for version in BOTH {
        let (open, port) = origin().await;
        let config = format!(
            "frontend front
                bind BIND
                default_backend narrow
            backend narrow
                timeout queue 100ms
                server origin 127.0.0.1:{port} maxconn 1"
        );
        let mut server = haproxy(version, &config).await;
        let uri = server.uri("/");
        let first = tokio::spawn({
            let (client, uri) = (retrying(version), uri.clone());
            async move { get(&client, &uri).await }
        });
        until("the only place is taken", async || {
            open.receiver_count() == 2
        })
        .await;

        let call = get(&retrying(version), &uri).await;
        assert_eq!(call.status(), 503, "{version:?}");
        assert_eq!(call.ended(), (1, Some(GiveUpReason::NotRetryable)));

        let second = tokio::spawn(async move {
            let policy = policy().max_retries(1000).no_budget();
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let policy = policy.classify_status(status, Retryability::IfIdempotent);
            let client = RetryLayer::new(policy.unwrap()).layer(client(version));
            get(&client, &uri).await
        });
        until("it is refused, too", async || server.logged().len() == 2).await;
        open.send(true).unwrap();
        let (first, second) = (within(first).await.unwrap(), within(second).await.unwrap());
        assert_eq!(
            (first.status(), first.ended()),
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

/// A server that answers once it is opened, and its port. Each connection is a receiver.
async fn origin() -> (watch::Sender<bool>, u16) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (open, opened) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut opened = opened.clone();
            tokio::spawn(async move {
                opened.wait_for(|open| *open).await.unwrap();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                // What is unread when it is closed would reset the connection.
                let _ = stream.read(&mut [0; 1024]).await;
            });
        }
    });
    (open, port)
}

#[tokio::test]
async fn a_proxy_that_is_restarted_is_not_noticed() {
    if !installed(&["haproxy"]) {
        return;
    }
    let config = frontend("");
    for version in BOTH {
        let mut server = haproxy(version, &config).await;
        let (client, failed) = patient(version);
        let uri = server.uri("/");
        assert_eq!(get(&client, &uri).await.status(), 200, "{version:?}");
        until("it is logged", async || server.logged().len() == 1).await;
        server.stop("USR1").await;
        let calls = [Method::GET, Method::POST].map(|method| {
            let (client, uri) = (client.clone(), uri.clone());
            tokio::spawn(async move { send(&client, method, &uri, "money").await })
        });
        until("both are refused", async || {
            failed.load(Ordering::SeqCst) == 2
        })
        .await;
        server.start().await;
        for call in calls {
            let call = within(call).await.unwrap();
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
