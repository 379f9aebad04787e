//! nginx: its rate limit, its gateway's answers, and the many ways in which it closes a connection.

use std::{iter, sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use http::Method;
use tower::Layer;
use tower_http_retry::{GiveUpReason, RetryLayer, RetryPolicy};

use crate::{
    BOTH, client, get, patient, policy, post, retrying, send,
    support::{Silent, installed, nginx::nginx, until, within},
};

/// A front that asks the peers of `upstream` in turn, and `good`, the last of them, which reads bodies.
fn taking_turns(first: &str) -> String {
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

const GOOD: &str = r#"
    server {
        listen unix:good.sock;
        server_name good;
        location / { proxy_pass http://unix:sink.sock; }
    }
    server {
        listen unix:sink.sock;
        access_log off;
        return 200 done;
    }
"#;

// --- statuses ---

#[tokio::test]
async fn a_rate_limit_holds_requests_up_and_loses_none() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in BOTH {
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
        let refused = log.iter().filter(|line| line.contains(" 429 ")).count();
        assert!(refused > 0, "{version:?}: nothing was refused: {log:?}");
        assert_eq!(refused + bodies.len(), attempts, "{version:?}: {log:?}");
        for body in bodies {
            let done = format!("good POST /payments 200 {body}");
            let times = log.iter().filter(|line| **line == done).count();
            assert_eq!(times, 1, "{version:?}: {body}: {log:?}");
        }
    }
}

#[tokio::test]
async fn after_a_gateway_timeout_a_put_is_sent_again_whole_and_a_post_is_not() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in BOTH {
        for (method, attempts) in [(Method::PUT, 2), (Method::POST, 1)] {
            let mut silent = Silent::new();
            let config = taking_turns(&format!("127.0.0.1:{}", silent.port()));
            let mut server = nginx(version, &config).await;
            let uri = server.uri("/account");
            let call = send(&retrying(version), method.clone(), &uri, "name=Ann").await;

            assert_eq!(silent.connections(), 1, "{version:?} {method}");
            if attempts == 2 {
                assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
                assert_eq!(call.ended(), (2, None), "{version:?}");
                let expected = [
                    "front PUT /account 504 name=Ann",
                    "good PUT /account 200 name=Ann",
                    "front PUT /account 200 name=Ann",
                ];
                assert_eq!(sorted(server.log(3).await), sorted(expected), "{version:?}");
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
async fn a_500_is_retried_as_often_as_the_policy_says_and_the_last_arrives_whole() {
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
    for version in BOTH {
        let mut server = nginx(version, config).await;
        let client = retrying(version);

        let call = get(&client, &server.uri("/")).await;
        assert_eq!(call.response(), (500, &br#"{"error":"overloaded"}"#[..]));
        assert_eq!(call.ended(), (4, Some(GiveUpReason::RetriesExhausted)));

        let call = get(&client, &server.uri("/token")).await;
        assert_eq!(call.response(), (500, &br#"{"error":"invalid_token"}"#[..]));
        assert_eq!(call.ended(), (1, Some(GiveUpReason::InvalidToken)));

        let call = post(&client, &server.uri("/pay"), "money").await;
        assert_eq!(call.response(), (500, &br#"{"error":"overloaded"}"#[..]));
        assert_eq!(call.ended(), (1, Some(GiveUpReason::NotIdempotent)));

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
async fn an_upload_that_was_refused_is_stored_whole_and_read_back() {
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
    for version in BOTH {
        let mut server = nginx(version, stores).await;
        let client = RetryLayer::new(policy().replay_limit(4 << 20)).layer(client(version));
        let upload: Vec<u8> = iter::repeat_with(|| fastrand::u8(..))
            .take(3 << 20)
            .collect();
        let uri = server.uri("/statement.pdf");
        let call = send(&client, Method::PUT, &uri, upload.clone()).await;
        assert_eq!(
            (call.status(), call.ended()),
            (201, (2, None)),
            "{version:?}"
        );
        let stored = std::fs::read(server.file("stored/statement.pdf")).unwrap();
        assert!(stored == upload, "{version:?}");

        // Refused once more, then read from the store.
        let call = get(&client, &uri).await;
        assert_eq!(call.ended(), (2, None), "{version:?}");
        assert!(call.response() == (200, &upload[..]), "{version:?}");
        assert_eq!(server.log(8).await.len(), 8, "{version:?}");
    }
}

// --- connections ---

#[tokio::test]
async fn a_server_that_hangs_up_is_asked_again_by_a_get_and_never_by_a_post() {
    if !installed(&["nginx"]) {
        return;
    }
    let config = "server { listen LISTEN; server_name front; return 444; }";
    for version in BOTH {
        let mut server = nginx(version, config).await;
        let client = retrying(version);
        let call = get(&client, &server.uri("/")).await;
        assert!(call.result.is_err(), "{version:?}");
        assert_eq!(call.ended(), (4, Some(GiveUpReason::RetriesExhausted)));

        let call = post(&client, &server.uri("/pay"), "money").await;
        assert!(call.result.is_err(), "{version:?}");
        assert_eq!(call.ended(), (1, Some(GiveUpReason::NotIdempotent)));

        let log = server.log(5).await;
        let gets = log
            .iter()
            .filter(|line| line.starts_with("front GET / 444"))
            .count();
        let posts = log
            .iter()
            .filter(|line| line.starts_with("front POST /pay 444"))
            .count();
        assert_eq!((gets, posts, log.len()), (4, 1, 5), "{version:?}: {log:?}");
    }
}

/// The second request of each connection is hung up on.
const ONE_A_CONNECTION: &str = r#"
    server {
        listen LISTEN;
        server_name front;
        if ($connection_requests = 2) { return 444; }
        return 200 done;
    }
"#;

#[tokio::test]
async fn a_connection_that_dies_under_a_second_get_is_replaced() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in BOTH {
        let mut server = nginx(version, ONE_A_CONNECTION).await;
        let client = retrying(version);
        let mut attempts = 0;
        for _ in 0..20 {
            let call = get(&client, &server.uri("/")).await;
            assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
            attempts += call.outcome.attempts() as usize;
        }
        assert!(attempts > 20, "{version:?}: no connection died");
        let log = server.log(attempts).await;
        let done = log
            .iter()
            .filter(|line| line.starts_with("front GET / 200"))
            .count();
        assert_eq!((done, log.len()), (20, attempts), "{version:?}: {log:?}");
    }
}

#[tokio::test]
async fn a_connection_that_dies_under_a_post_is_the_callers_to_judge() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in BOTH {
        let mut server = nginx(version, ONE_A_CONNECTION).await;
        let client = retrying(version);
        let mut sent = 0;
        // A connection is used again if it was idle in time.
        let failed = loop {
            assert!(sent < 100, "{version:?}: no connection died");
            sent += 1;
            let call = post(&client, &server.uri("/pay"), "money").await;
            match &call.result {
                Ok(_) => assert_eq!(call.ended(), (1, None), "{version:?}"),
                Err(_) => break call,
            }
        };
        assert_eq!(failed.ended(), (1, Some(GiveUpReason::NotIdempotent)));
        assert_eq!(server.log(sent).await.len(), sent, "{version:?}");
    }
}

#[tokio::test]
async fn connections_of_one_or_two_requests_are_not_noticed() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in BOTH {
        for limit in [1, 2] {
            let config = format!(
                "server {{ listen LISTEN; server_name front; keepalive_requests {limit};
                    location / {{ proxy_pass http://unix:good.sock; }} }} {GOOD}"
            );
            let mut server = nginx(version, &config).await;
            let policy = policy().max_retries(1000).no_budget();
            let client = RetryLayer::new(policy).layer(client(version));
            let uri = server.uri("/pay");
            let bodies: Vec<_> = (0..40).map(|n| format!("payment={n}")).collect();
            for some in bodies.chunks(8) {
                let calls = join_all(some.iter().map(|body| post(&client, &uri, body))).await;
                for call in calls {
                    assert_eq!(call.response(), (200, &b"done"[..]), "{version:?} {limit}");
                }
            }
            let log = server.log(2 * bodies.len()).await;
            for body in &bodies {
                let done = format!("good POST /pay 200 {body}");
                let times = log.iter().filter(|line| **line == done).count();
                assert_eq!(times, 1, "{version:?} {limit}: {body}: {log:?}");
            }
        }
    }
}

/// A stream that the server says it has not looked at is no sign of an outage.
#[tokio::test]
async fn with_the_defaults_the_end_of_a_busy_connection_is_not_noticed() {
    if !installed(&["nginx"]) {
        return;
    }
    let config = "server { listen LISTEN; server_name front; return 200 done; }";
    for version in BOTH {
        let mut server = nginx(version, config).await;
        let client = RetryLayer::new(RetryPolicy::new()).layer(client(version));
        let uri = server.uri("/pay");
        // nginx ends a connection after 1000 requests.
        let callers = (0..100).map(async |_| {
            let mut failed = Vec::new();
            for _ in 0..50 {
                let call = post(&client, &uri, "").await;
                if call.result.is_err() {
                    failed.push(call);
                }
            }
            failed
        });
        let failed: Vec<_> = join_all(callers).await.into_iter().flatten().collect();
        let (count, first) = (failed.len(), failed.first());
        assert_eq!(count, 0, "{version:?}: {first:?}");
        assert_eq!(server.log(5000).await.len(), 5000, "{version:?}");
    }
}

#[tokio::test]
async fn a_get_that_meets_the_end_of_an_idle_connection_is_not_noticed() {
    if !installed(&["nginx"]) {
        return;
    }
    let idle = Duration::from_millis(10);
    let config =
        "server { listen LISTEN; server_name front; keepalive_timeout 10ms; return 200 done; }";
    for version in BOTH {
        let mut server = nginx(version, config).await;
        let client = retrying(version);
        let mut attempts = 0;
        for n in 0..50 {
            let call = get(&client, &server.uri("/")).await;
            assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
            attempts += call.outcome.attempts() as usize;
            // Now before the server closes the connection, now behind it, and now right then.
            tokio::time::sleep(idle * n / 25).await;
        }
        let log = server.log(50).await;
        let done = log
            .iter()
            .filter(|line| line.starts_with("front GET / 200"))
            .count();
        // One that was sent into a connection that was closing has left no trace.
        assert!(
            done >= 50 && done <= attempts,
            "{version:?}: {attempts}: {log:?}"
        );
    }
}

// --- stopped and started again ---

#[tokio::test]
async fn a_server_that_is_down_for_a_moment_is_waited_for_whatever_the_method() {
    if !installed(&["nginx"]) {
        return;
    }
    let config = "server { listen LISTEN; server_name front; return 200 done; }";
    for version in BOTH {
        let mut server = nginx(version, config).await;
        let (client, failed) = patient(version);
        let uri = server.uri("/");
        assert_eq!(get(&client, &uri).await.status(), 200, "{version:?}");

        server.stop("TERM").await;
        let calls = [Method::GET, Method::POST].map(|method| {
            let (client, uri) = (client.clone(), uri.clone());
            tokio::spawn(async move { send(&client, method, &uri, "").await })
        });
        until("both are refused", async || {
            failed.load(Ordering::SeqCst) == 2
        })
        .await;
        server.start().await;
        for call in calls {
            let call = within(call).await.unwrap();
            assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
        }
        let log = sorted(server.log(3).await);
        let expected = ["front GET / 200 ", "front GET / 200 ", "front POST / 200 "];
        assert_eq!(log, expected, "{version:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_killed_under_requests_loses_only_the_post() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in BOTH {
        let mut silent = Silent::new();
        let config = format!(
            "server {{ listen LISTEN; server_name front;
                location /slow {{ proxy_pass http://127.0.0.1:{}; }}
                location / {{ return 200 done; }} }}",
            silent.port()
        );
        let mut server = nginx(version, &config).await;
        let (client, failed) = patient(version);
        let calls = [Method::GET, Method::POST].map(|method| {
            let (client, uri) = (client.clone(), server.uri("/slow"));
            tokio::spawn(async move { send(&client, method, &uri, "money").await })
        });
        until("both are under way", async || silent.connections() == 2).await;
        server.kill().await;
        until("both are lost", async || failed.load(Ordering::SeqCst) == 2).await;
        server.reconfigure("/slow", "/fast");
        server.start().await;

        let [get, post] = calls;
        let get = within(get).await.unwrap();
        assert_eq!(get.response(), (200, &b"done"[..]), "{version:?}");
        assert!(get.outcome.attempts() >= 2, "{version:?}");
        let post = within(post).await.unwrap();
        assert!(post.result.is_err(), "{version:?}");
        assert_eq!(post.ended(), (1, Some(GiveUpReason::NotIdempotent)));
        let log = server.log(1).await;
        assert_eq!(log.len(), 1, "{version:?}: {log:?}");
        assert!(
            log[0].starts_with("front GET /slow 200"),
            "{version:?}: {log:?}"
        );
    }
}

fn sorted(lines: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().map(Into::into).collect();
    lines.sort();
    lines
}
