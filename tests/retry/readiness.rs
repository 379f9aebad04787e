//! Readiness of the inner service.

use std::{
    io, mem,
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use futures_util::poll;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_http_retry::{GiveUpReason, OutcomeHandle, RetryLayer};

use crate::common::ScriptedServer;

use super::*;

#[tokio::test(start_paused = true)]
async fn concurrency_permit_is_released_during_delay() {
    let server = ScriptedServer::new([504, 200, 200]);
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(server.clone());
    let client = RetryLayer::new(policy()).layer(inner);
    let mut delayed = pin!(client.clone().oneshot(request("GET")));
    assert!(poll!(delayed.as_mut()).is_pending());
    let start = Instant::now();
    let other = client.clone().oneshot(request("GET")).await.unwrap();
    assert_eq!(
        (other.status().as_u16(), start.elapsed()),
        (200, Duration::ZERO)
    );
    assert_eq!(delayed.await.unwrap().status(), 200);
    server.assert_script_completed();
}

#[tokio::test(start_paused = true)]
async fn first_attempt_uses_ready_instance_and_retries_poll_ready() {
    /// A service that must be ready to be called, and whose clones are not.
    #[derive(Default)]
    struct Inner {
        is_ready: bool,
        log: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Clone for Inner {
        fn clone(&self) -> Self {
            Self {
                is_ready: false,
                log: self.log.clone(),
            }
        }
    }

    impl Service<InnerRequest> for Inner {
        type Response = InnerResponse;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<InnerResponse>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.is_ready = true;
            self.log.lock().unwrap().push("ready");
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: InnerRequest) -> Self::Future {
            assert!(mem::take(&mut self.is_ready), "called without being ready");
            self.log.lock().unwrap().push("call");
            std::future::ready(Ok(response(500)))
        }
    }

    let inner = Inner::default();
    let log = inner.log.clone();
    let client = RetryLayer::new(policy().max_retries(2)).layer(inner);
    client.oneshot(request("GET")).await.unwrap();
    let log = log.lock().unwrap().join(" ");
    assert_eq!(log, "ready call ready call ready call");
}

#[tokio::test(start_paused = true)]
async fn ready_error_before_retry_is_returned() {
    let outcome = OutcomeHandle::new();
    let request = request("GET").with_extension(outcome.clone());
    let (client, mut server) = mock_client(policy());
    let mut call = pin!(client.oneshot(request));
    assert!(poll!(call.as_mut()).is_pending());
    respond(&mut server, response(500)).await;
    server.send_error("broken for good");
    let error = call.await.unwrap_err();
    assert!(error.to_string().contains("broken for good"), "{error}");
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.attempts(), 1);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::ReadinessFailed)
    );
}
