//! Errors of the inner service.

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::time::Instant;
use tower::{
    BoxError, ServiceBuilder, ServiceExt,
    timeout::{TimeoutLayer, error::Elapsed},
};
use tower_http_retry::{GiveUpReason, OutcomeHandle, RetryLayer};

use super::*;

#[tokio::test(start_paused = true)]
async fn transport_errors_are_retried_by_kind_and_method() {
    let io = |kind: io::ErrorKind| -> BoxError { io::Error::from(kind).into() };
    let not_idempotent = Some(GiveUpReason::NotIdempotent);
    let table = [
        ("POST", io(io::ErrorKind::ConnectionRefused), None),
        ("GET", io(io::ErrorKind::ConnectionReset), None),
        ("POST", io(io::ErrorKind::ConnectionReset), not_idempotent),
        ("GET", Elapsed::new().into(), None),
        ("POST", Elapsed::new().into(), not_idempotent),
        ("GET", "unknown".into(), Some(GiveUpReason::NotRetryable)),
    ];
    for (method, error, reason) in table {
        let text = error.to_string();
        let outcome = OutcomeHandle::new();
        let request = request(method).with_extension(outcome.clone());
        let mut script = vec![Err(error)];
        if reason.is_none() {
            script.push(Ok(200));
        }
        let attempts = script.len() as u32;
        let result = run_script(policy(), request, script).await;
        let outcome = outcome.get().unwrap();
        assert_eq!(
            (outcome.attempts(), outcome.give_up_reason()),
            (attempts, reason),
            "{text}"
        );
        match reason {
            None => assert_eq!(result.unwrap().status(), 200),
            Some(_) => assert_eq!(result.unwrap_err().to_string(), text),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inner_timeout_is_retried() {
    let calls = AtomicU32::new(0);
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(policy()))
        .layer(TimeoutLayer::new(SECOND))
        .service_fn(async |_: InnerRequest| {
            if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            Ok::<_, BoxError>(response(200))
        });
    let start = Instant::now();
    assert_eq!(client.oneshot(request("GET")).await.unwrap().status(), 200);
    assert_eq!(start.elapsed(), SECOND + DELAY);
}

#[tokio::test(start_paused = true)]
async fn errors_of_another_major_version_are_not_recognized() {
    let error: BoxError = Elapsed::new().into();
    let foreign: BoxError = tower_04::timeout::error::Elapsed::new().into();
    assert_eq!(error.to_string(), foreign.to_string());
    for (error, attempts) in [(error, 2), (foreign, 1)] {
        let mut script = vec![Err(error)];
        script.extend((attempts == 2).then_some(Ok(200)));
        let outcome = OutcomeHandle::new();
        let request = request("GET").with_extension(outcome.clone());
        let result = run_script(policy(), request, script).await;
        assert_eq!(result.is_ok(), attempts == 2);
        assert_eq!(outcome.get().unwrap().attempts(), attempts);
    }
}
