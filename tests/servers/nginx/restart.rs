//! nginx stopped or killed, and started again.

use std::sync::atomic::Ordering;

use http::Method;
use tower_http_retry::GiveUpReason;

use super::sorted;
use crate::{
    VERSIONS, get, persistent_client, send,
    support::{
        nginx::nginx,
        programs::installed,
        silent_peer::SilentPeer,
        timeout::{wait_until, with_timeout},
    },
};

#[tokio::test]
async fn refused_connections_are_retried_until_restart() {
    if !installed(&["nginx"]) {
        return;
    }
    let config = "server { listen LISTEN; server_name front; return 200 done; }";
    for version in VERSIONS {
        let mut server = nginx(version, config).await;
        let (client, failed) = persistent_client(version);
        let uri = server.uri("/");
        assert_eq!(get(&client, &uri).await.status(), 200, "{version:?}");

        server.stop("TERM").await;
        let calls = [Method::GET, Method::POST].map(|method| {
            let (client, uri) = (client.clone(), uri.clone());
            tokio::spawn(async move { send(&client, method, &uri, "").await })
        });
        wait_until("both connections are refused", async || {
            failed.load(Ordering::SeqCst) == 2
        })
        .await;
        server.start().await;
        for call in calls {
            let call = with_timeout(call).await.unwrap();
            assert_eq!(call.response(), (200, &b"done"[..]), "{version:?}");
        }
        let log = sorted(server.log(3).await);
        let expected = ["front GET / 200 ", "front GET / 200 ", "front POST / 200 "];
        assert_eq!(log, expected, "{version:?}");
    }
}

#[tokio::test]
async fn get_is_retried_after_server_is_killed_and_post_is_not() {
    if !installed(&["nginx"]) {
        return;
    }
    for version in VERSIONS {
        let mut silent = SilentPeer::new();
        let config = format!(
            "server {{ listen LISTEN; server_name front;
                location /slow {{ proxy_pass http://{}; }}
                location / {{ return 200 done; }} }}",
            silent.address()
        );
        let mut server = nginx(version, &config).await;
        let (client, failed) = persistent_client(version);
        let calls = [Method::GET, Method::POST].map(|method| {
            let (client, uri) = (client.clone(), server.uri("/slow"));
            tokio::spawn(async move { send(&client, method, &uri, "money").await })
        });
        wait_until("both requests reach the peer", async || {
            silent.connections() == 2
        })
        .await;
        server.kill().await;
        wait_until("both attempts fail", async || {
            failed.load(Ordering::SeqCst) == 2
        })
        .await;
        server.reconfigure("/slow", "/fast");
        server.start().await;

        let [get, post] = calls;
        let get = with_timeout(get).await.unwrap();
        assert_eq!(get.response(), (200, &b"done"[..]), "{version:?}");
        assert!(get.outcome.attempts() >= 2, "{version:?}");
        let post = with_timeout(post).await.unwrap();
        assert!(post.result.is_err(), "{version:?}");
        assert_eq!(
            post.attempts_and_reason(),
            (1, Some(GiveUpReason::NotIdempotent))
        );
        let log = server.log(1).await;
        assert_eq!(log.len(), 1, "{version:?}: {log:?}");
        assert!(
            log[0].starts_with("front GET /slow 200"),
            "{version:?}: {log:?}"
        );
    }
}
