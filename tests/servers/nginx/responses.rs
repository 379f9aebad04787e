//! Failed responses of nginx and of its proxy.

use std::iter;

use futures_util::future::join_all;
use http::Method;
use tower::Layer;
use tower_http_retry::{GiveUpReason, RetryLayer};

use super::{GOOD, sorted};
use crate::{
    VERSIONS, client, get, policy, post, retrying_client, send,
    support::{nginx::nginx, programs::installed, silent_peer::SilentPeer},
};

#[tokio::test]
async fn rate_limited_requests_are_retried_and_delivered_once() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in VERSIONS {
        let config = r#"
            limit_req_zone $server_name zone=all:64k rate=20r/s;
            limit_req_status 429;
            server {
                listen LISTEN;
                server_name front;
                location / { limit_req zone=all; proxy_pass http://unix:good.sock; }
            }
        "#;
        let mut server = nginx(version, &[config, GOOD].concat()).await;
        let policy = policy().max_retries(1000).no_budget();
        let client = RetryLayer::new(policy).layer(client(version));
        let uri = server.uri("/payments");
        let bodies: Vec<_> = (0..8).map(|n| format!("payment={n}")).collect();
        let calls = bodies.iter().map(|body| post(&client, &uri, body));
        let calls = join_all(calls).await;

        for call in &calls {
            assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
        }
        let attempts = calls.iter().map(|call| call.outcome.attempts() as usize);
        let attempts = attempts.sum::<usize>();
        let log = server.log(attempts + bodies.len()).await;
        let rejected = log.iter().filter(|line| line.contains(" 429 ")).count();
        assert!(rejected > 0, "{version:?}: nothing was rejected: {log:?}");
        assert_eq!(rejected + bodies.len(), attempts, "{version:?}: {log:?}");
        for body in bodies {
            let done = format!("good POST /payments 200 {body}");
            let times = log.iter().filter(|line| **line == done).count();
            assert_eq!(times, 1, "{version:?}: {body}: {log:?}");
        }
    }
}

#[tokio::test]
async fn put_is_retried_after_gateway_timeout_and_post_is_not() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in VERSIONS {
        for (method, attempts) in [(Method::PUT, 2), (Method::POST, 1)] {
            let mut silent = SilentPeer::new();
            let config = alternating_with_good(&silent.address().to_string());
            let mut server = nginx(version, &config).await;
            let uri = server.uri("/account");
            let call = send(&retrying_client(version), method.clone(), &uri, "name=Ann").await;

            assert_eq!(silent.connections(), 1, "{version:?} {method}");
            if attempts == 2 {
                assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
                assert_eq!(call.attempts_and_reason(), (2, None), "{version:?}");
                let expected = [
                    "front PUT /account 504 name=Ann",
                    "good PUT /account 200 name=Ann",
                    "front PUT /account 200 name=Ann",
                ];
                assert_eq!(sorted(server.log(3).await), sorted(expected), "{version:?}");
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
async fn get_is_retried_after_500_up_to_max_retries() {
    if !installed(&["nginx"]) {
        return;
    }
    let config = r#"
        server {
            listen LISTEN;
            server_name front;
            location / { return 500 '{"error":"overloaded"}'; }
            location /token { return 500 '{"error":"invalid_token"}'; }
        }
    "#;
    for version in VERSIONS {
        let mut server = nginx(version, config).await;
        let client = retrying_client(version);

        let call = get(&client, &server.uri("/")).await;
        assert_eq!(call.response(), (500, &br#"{"error":"overloaded"}"#[..]));
        assert_eq!(
            call.attempts_and_reason(),
            (4, Some(GiveUpReason::RetriesExhausted))
        );

        let call = get(&client, &server.uri("/token")).await;
        assert_eq!(call.response(), (500, &br#"{"error":"invalid_token"}"#[..]));
        assert_eq!(
            call.attempts_and_reason(),
            (1, Some(GiveUpReason::InvalidToken))
        );

        let call = post(&client, &server.uri("/pay"), "money").await;
        assert_eq!(call.response(), (500, &br#"{"error":"overloaded"}"#[..]));
        assert_eq!(
            call.attempts_and_reason(),
            (1, Some(GiveUpReason::NotIdempotent))
        );

        let expected = [
            "front GET / 500 ",
            "front GET / 500 ",
            "front GET / 500 ",
            "front GET / 500 ",
            "front GET /token 500 ",
            "front POST /pay 500 ",
        ];
        assert_eq!(server.log(6).await, expected, "{version:?}");
    }
}

#[tokio::test]
async fn rejected_upload_is_stored_completely_by_retry() {
    if !installed(&["nginx"]) {
        return;
    }
    let stores = r#"
        server { listen unix:bad.sock; server_name bad; return 429; }
        upstream peers {
            server unix:bad.sock max_fails=0;
            server unix:store.sock max_fails=0;
        }
        server {
            listen LISTEN;
            server_name front;
            client_max_body_size 8m;
            location / { proxy_pass http://peers; proxy_request_buffering off; }
        }
        server {
            listen unix:store.sock;
            server_name store;
            client_max_body_size 8m;
            root stored;
            dav_methods PUT;
            create_full_put_path on;
        }
    "#;
    for version in VERSIONS {
        let mut server = nginx(version, stores).await;
        let client = RetryLayer::new(policy().replay_limit(4 << 20)).layer(client(version));
        let upload: Vec<u8> = iter::repeat_with(|| fastrand::u8(..))
            .take(3 << 20)
            .collect();
        let uri = server.uri("/statement.pdf");
        let call = send(&client, Method::PUT, &uri, upload.clone()).await;
        assert_eq!(
            (call.status(), call.attempts_and_reason()),
            (201, (2, None)),
            "{version:?}"
        );
        let stored = std::fs::read(server.file("stored/statement.pdf")).unwrap();
        assert!(stored == upload, "{version:?}");

        // The first attempt is rejected again, the second one reads from the store.
        let call = get(&client, &uri).await;
        assert_eq!(call.attempts_and_reason(), (2, None), "{version:?}");
        assert!(call.response() == (200, &upload[..]), "{version:?}");
        assert_eq!(server.log(8).await.len(), 8, "{version:?}");
    }
}

/// Returns a proxy that alternates between `first` and the server of `GOOD`.
fn alternating_with_good(first: &str) -> String {
    format!(
        r#"
        upstream peers {{
            server {first} max_fails=0;
            server unix:good.sock max_fails=0;
        }}
        server {{
            listen LISTEN;
            server_name front;
            location / {{
                proxy_pass http://peers;
                proxy_read_timeout 200ms;
                proxy_next_upstream off;
            }}
        }}
        {GOOD}"#
    )
}
