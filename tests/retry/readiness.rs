//! Readiness of the inner service.

use std::{
    io, mem,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::poll;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_http_retry::{GiveUpReason, OutcomeHandle, RetryLayer, Retryability};

use crate::common::{ScriptedServer, body_bytes};

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
async fn last_response_is_returned_if_service_fails_before_retry() {
    let outcome = OutcomeHandle::new();
    let request = request("GET").with_extension(outcome.clone());
    let (client, mut server) = mock_client(policy());
    let mut call = pin!(client.oneshot(request));
    assert!(poll!(call.as_mut()).is_pending());
    let reply = response(500).with_header("retry-after", "1");
    respond(&mut server, reply).await;
    server.send_error("broken for good");
    let response = call.await.unwrap();
    assert_eq!(response.status(), 500);
    let carried = RetryOutcome::from_response(&response);
    assert_eq!(carried.attempts(), 1);
    assert_eq!(
        carried.give_up_reason(),
        Some(GiveUpReason::ReadinessFailed)
    );
    assert_eq!(carried.retry_after(), Some(SECOND));
    assert_eq!(outcome.get(), Some(carried));
    assert_eq!(body_bytes(response).await, "received");
}

#[tokio::test(start_paused = true)]
async fn ready_error_before_retry_is_returned_without_a_buffered_response() {
    let too_large = response(500).with_text(&"x".repeat(2000));
    for first in [Ok(too_large), Err(io::ErrorKind::ConnectionReset)] {
        let outcome = OutcomeHandle::new();
        let request = request("GET").with_extension(outcome.clone());
        let (client, mut server) = mock_client(policy().inspect_limit(1000));
        let mut call = pin!(client.oneshot(request));
        assert!(poll!(call.as_mut()).is_pending());
        let (_, reply) = server.next_request().await.unwrap();
        match first {
            Ok(response) => reply.send_response(response),
            Err(kind) => reply.send_error(io::Error::from(kind)),
        }
        assert!(poll!(call.as_mut()).is_pending());
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
}

#[tokio::test(start_paused = true)]
async fn last_response_is_returned_if_retry_is_shed() {
    /// Is ready once for each clone of the original, and never again.
    #[derive(Clone)]
    struct ReadyOnce(Arc<AtomicBool>, ScriptedServer);

    impl Service<InnerRequest> for ReadyOnce {
        type Response = InnerResponse;
        type Error = BoxError;
        type Future = <ScriptedServer as Service<InnerRequest>>::Future;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            match self.0.load(Ordering::Relaxed) {
                true => Service::<InnerRequest>::poll_ready(&mut self.1, cx),
                false => Poll::Pending,
            }
        }

        fn call(&mut self, request: InnerRequest) -> Self::Future {
            self.0.store(false, Ordering::Relaxed);
            self.1.call(request)
        }
    }

    let server = ScriptedServer::new([503]);
    let ready = Arc::new(AtomicBool::new(true));
    let inner = ServiceBuilder::new()
        .load_shed()
        .service(ReadyOnce(ready, server.clone()));
    let policy = policy()
        .classify_status(http::StatusCode::SERVICE_UNAVAILABLE, Retryability::Always)
        .unwrap();
    let client = RetryLayer::new(policy).layer(inner);
    let response = client.oneshot(request("GET")).await.unwrap();
    assert_eq!(response.status(), 503);
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::ReadinessFailed)
    );
    assert_eq!(body_bytes(response).await, "received");
    server.assert_script_completed();
}
