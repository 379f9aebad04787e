//! Bodies of failed responses: inspected and discarded before a retry, or returned completely.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method};
use http_body_util::Empty;
use tower::{Layer, ServiceExt};
use tower_http_retry::{GiveUpReason, RetryLayer, RetryOutcome};

use crate::{
    VERSIONS, client, policy, read_body, retrying_client,
    scripted_server::{ScriptedServer, response, status},
    stalled,
    timeout::with_timeout,
};

#[tokio::test]
async fn invalid_token_gives_up_with_complete_response() {
    const ERROR: &str = r#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token",
        "error_description":"Access token has expired","message":"Access token has expired"}"#;
    for version in VERSIONS {
        let id = HeaderValue::from_static("9f86d081");
        let reply = response(500, ERROR).header("x-request-id", id.clone());
        let server = ScriptedServer::start([reply]);
        let request = server.request(Method::GET, Empty::<Bytes>::new());
        let response = with_timeout(retrying_client(version).oneshot(request))
            .await
            .unwrap();
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!(response.status(), 500, "{version:?}");
        assert_eq!(response.headers()["x-request-id"], id, "{version:?}");
        assert_eq!(outcome.attempts(), 1, "{version:?}");
        assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::InvalidToken));
        assert_eq!(read_body(response).await, ERROR, "{version:?}");
        assert_eq!(server.request_count(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn large_error_object_without_invalid_token_is_retried() {
    for version in VERSIONS {
        let large = format!(
            r#"{{"error":"overloaded","message":"{}"}}"#,
            "x".repeat(300 * 1024)
        );
        let server = ScriptedServer::start([response(500, large), status(200)]);
        let request = server.request(Method::GET, Empty::<Bytes>::new());
        let response = with_timeout(retrying_client(version).oneshot(request))
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert_eq!(
            RetryOutcome::from_response(&response).attempts(),
            2,
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn last_failure_has_complete_body() {
    for version in VERSIONS {
        let [first, last] = ["first", "last!"].map(|text| text.repeat(100_000));
        let server = ScriptedServer::start([response(500, first), response(500, last.clone())]);
        let client = RetryLayer::new(policy().max_retries(1)).layer(client(version));
        let request = server.request(Method::GET, Empty::<Bytes>::new());
        let response = with_timeout(client.oneshot(request)).await.unwrap();
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!(response.status(), 500, "{version:?}");
        assert_eq!(outcome.attempts(), 2, "{version:?}");
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::RetriesExhausted)
        );
        assert!(read_body(response).await == last, "{version:?}");
    }
}

#[tokio::test]
async fn stalled_body_does_not_delay_retry() {
    let timeout = Duration::from_millis(50);
    for version in VERSIONS {
        let server = ScriptedServer::start([stalled(500), status(200)]);
        let policy = policy().discard_timeout(timeout);
        let client = RetryLayer::new(policy).layer(client(version));
        let request = server.request(Method::GET, Empty::<Bytes>::new());
        let response = with_timeout(client.oneshot(request)).await.unwrap();
        let delay = RetryOutcome::from_response(&response).total_delay();
        assert_eq!(response.status(), 200, "{version:?}");
        // The default timeout is a second.
        let expected = timeout..Duration::from_secs(1);
        assert!(expected.contains(&delay), "{version:?} {delay:?}");
        assert_eq!(server.request_count(), 2, "{version:?}");
    }
}
