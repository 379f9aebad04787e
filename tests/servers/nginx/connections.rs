//! Connections that nginx closes: before a response, after a number of requests, or idle ones.

use std::time::Duration;

use futures_util::future::join_all;
use tower::Layer;
use tower_http_retry::{GiveUpReason, RetryLayer, RetryPolicy};

use super::GOOD;
use crate::{
    VERSIONS, client, get, policy, post, retrying_client,
    support::{nginx::nginx, programs::installed},
};

#[tokio::test]
async fn get_is_retried_after_closed_connection_and_post_is_not() {
    if !installed(&["nginx"]) {
        return;
    }
    let config = "server { listen LISTEN; server_name front; return 444; }";
    for version in VERSIONS {
        let mut server = nginx(version, config).await;
        let client = retrying_client(version);
        let call = get(&client, &server.uri("/")).await;
        assert!(call.result.is_err(), "{version:?}");
        assert_eq!(
            call.attempts_and_reason(),
            (4, Some(GiveUpReason::RetriesExhausted))
        );

        let call = post(&client, &server.uri("/pay"), "money").await;
        assert!(call.result.is_err(), "{version:?}");
        assert_eq!(
            call.attempts_and_reason(),
            (1, Some(GiveUpReason::NotIdempotent))
        );

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

/// A server that closes the connection after the second request, without a response.
const ONE_RESPONSE_PER_CONNECTION: &str = r#"
    server {
        listen LISTEN;
        server_name front;
        if ($connection_requests = 2) { return 444; }
        return 200 done;
    }
"#;

#[tokio::test]
async fn get_is_retried_after_reused_connection_closes() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in VERSIONS {
        let mut server = nginx(version, ONE_RESPONSE_PER_CONNECTION).await;
        let client = retrying_client(version);
        let mut attempts = 0;
        for _ in 0..20 {
            let call = get(&client, &server.uri("/")).await;
            assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
            attempts += call.outcome.attempts() as usize;
        }
        assert!(attempts > 20, "{version:?}: no connection was reused");
        let log = server.log(attempts).await;
        let done = log
            .iter()
            .filter(|line| line.starts_with("front GET / 200"))
            .count();
        assert_eq!((done, log.len()), (20, attempts), "{version:?}: {log:?}");
    }
}

#[tokio::test]
async fn post_fails_after_reused_connection_closes() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in VERSIONS {
        let mut server = nginx(version, ONE_RESPONSE_PER_CONNECTION).await;
        let client = retrying_client(version);
        let mut sent = 0;
        // The client reuses a connection only if it is idle when the next request starts.
        let failed = loop {
            assert!(sent < 100, "{version:?}: no connection was reused");
            sent += 1;
            let call = post(&client, &server.uri("/pay"), "money").await;
            match &call.result {
                Ok(_) => assert_eq!(call.attempts_and_reason(), (1, None), "{version:?}"),
                Err(_) => break call,
            }
        };
        assert_eq!(
            failed.attempts_and_reason(),
            (1, Some(GiveUpReason::NotIdempotent))
        );
        assert_eq!(server.log(sent).await.len(), sent, "{version:?}");
    }
}

#[tokio::test]
async fn keepalive_request_limit_is_transparent() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in VERSIONS {
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
            for batch in bodies.chunks(8) {
                let calls = join_all(batch.iter().map(|body| post(&client, &uri, body))).await;
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

/// A stream excluded by a GOAWAY does not count as a sign of an outage.
#[tokio::test]
async fn default_policy_hides_keepalive_limit_under_load() {
    if !installed(&["nginx"]) {
        return;
    }
    let config = "server { listen LISTEN; server_name front; return 200 done; }";
    for version in VERSIONS {
        let mut server = nginx(version, config).await;
        let client = RetryLayer::new(RetryPolicy::new()).layer(client(version));
        let uri = server.uri("/pay");
        // nginx closes a connection after 1000 requests.
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
async fn get_is_retried_after_idle_connection_closes() {
    if !installed(&["nginx"]) {
        return;
    }
    let idle = Duration::from_millis(10);
    let config =
        "server { listen LISTEN; server_name front; keepalive_timeout 10ms; return 200 done; }";
    for version in VERSIONS {
        let mut server = nginx(version, config).await;
        let client = retrying_client(version);
        let mut attempts = 0;
        for n in 0..50 {
            let call = get(&client, &server.uri("/")).await;
            assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
            attempts += call.outcome.attempts() as usize;
            // Before, after and at the moment when the server closes the connection.
            tokio::time::sleep(idle * n / 25).await;
        }
        let log = server.log(50).await;
        let done = log
            .iter()
            .filter(|line| line.starts_with("front GET / 200"))
            .count();
        // A request sent into a closing connection is not logged.
        assert!(
            done >= 50 && done <= attempts,
            "{version:?}: {attempts}: {log:?}"
        );
    }
}
