//! Idempotency keys, the attempt header, limits of single requests and callbacks, under paused time.

#[allow(
    dead_code,
    unused_imports,
    reason = "each suite uses a part of the helpers"
)]
mod common;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderName, HeaderValue, Request};
use tower::{BoxError, Layer, ServiceExt};
use tower_http_retry::{
    FailureKind, GiveUpReason, MakeIdempotencyKey, OutcomeHandle, RequestOptions, RetryBudget,
    RetryLayer, RetryOutcome, RetryPolicy,
};

use common::{
    IntoReply, RequestBody, RequestExt, ResponseExt, RetryResponse, SECOND, ScriptedServer,
    give_up_reason, policy_with_delay, request, response, run_script,
};

fn policy() -> RetryPolicy {
    policy_with_delay(SECOND)
}

/// Creates keys that count up from 0.
fn counting_keys() -> impl MakeIdempotencyKey {
    let count = AtomicU64::new(0);
    move |_: &Request<()>| Some(count.fetch_add(1, Ordering::Relaxed).into())
}

/// The results of some calls, and the requests that the server received.
struct Calls {
    results: Vec<Result<RetryResponse, BoxError>>,
    server: ScriptedServer,
}

impl Calls {
    /// Sends the requests one after the other to a server that follows `script`.
    async fn run(
        policy: RetryPolicy,
        requests: impl IntoIterator<Item = Request<RequestBody>>,
        script: impl IntoIterator<Item: IntoReply>,
    ) -> Self {
        let server = ScriptedServer::new(script);
        let client = RetryLayer::new(policy).layer(server.clone());
        let mut results = Vec::new();
        for request in requests {
            results.push(client.clone().oneshot(request).await);
        }
        server.assert_script_completed();
        Self { results, server }
    }

    /// Returns the outcome of each call. Panics if a call ended with an error.
    fn outcomes(&self) -> Vec<RetryOutcome> {
        let responses = self.results.iter().map(|result| result.as_ref().unwrap());
        responses.map(RetryOutcome::from_response).collect()
    }

    /// Returns the header `name` of each attempt.
    fn headers(&self, name: &str) -> Vec<Option<HeaderValue>> {
        let received = self.server.received().into_iter();
        received
            .map(|request| request.headers.get(name).cloned())
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_of_one_request_share_idempotency_key() {
    let policy = policy().idempotency_key(counting_keys());
    let script = [
        Ok(504),
        Err(io::ErrorKind::TimedOut),
        Ok(200),
        Ok(500),
        Ok(200),
    ];
    let calls = Calls::run(policy, [request("POST"), request("PATCH")], script).await;
    let attempts = calls.outcomes().into_iter();
    let attempts: Vec<_> = attempts.map(|outcome| outcome.attempts()).collect();
    assert_eq!(attempts, [3, 2]);
    let keys = calls.headers("idempotency-key").into_iter();
    let keys: Vec<_> = keys.map(Option::unwrap).collect();
    assert_eq!(keys, ["0", "0", "0", "1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn idempotency_key_is_only_added_if_needed() {
    let with_key = request("POST").with_header("idempotency-key", "\"mine\"");
    let requests = ["GET", "PUT", "DELETE", "CONNECT"].map(request);
    let requests = requests.into_iter().chain([with_key]);
    let policy = policy().idempotency_key(counting_keys());
    let calls = Calls::run(policy, requests, [200; 5]).await;
    let mine = Some(HeaderValue::from_static("\"mine\""));
    let keys = calls.headers("idempotency-key");
    assert_eq!(keys, [None, None, None, None, mine]);
}

#[tokio::test(start_paused = true)]
async fn post_is_not_retried_if_generator_returns_no_key() {
    let policy = policy().idempotency_key(|_: &Request<()>| None);
    let calls = Calls::run(policy, [request("POST")], [504]).await;
    assert_eq!(
        calls.outcomes()[0].give_up_reason(),
        Some(GiveUpReason::NotIdempotent)
    );
    assert_eq!(calls.headers("idempotency-key"), [None]);
    assert_eq!(calls.headers("x-attempt"), [None]);
}

#[tokio::test(start_paused = true)]
async fn idempotent_false_overrides_generated_key() {
    let policy = policy().idempotency_key(counting_keys());
    let request = request("POST").with_extension(RequestOptions::new().idempotent(false));
    let response = run_script(policy, request, [504]).await.unwrap();
    assert_eq!(give_up_reason(&response), Some(GiveUpReason::NotIdempotent));
}

#[tokio::test(start_paused = true)]
async fn attempt_header_numbers_retries() {
    let policy = policy().attempt_header(HeaderName::from_static("x-attempt"));
    let requests = ["GET", "GET"].map(request);
    let calls = Calls::run(policy, requests, [504, 429, 200, 200]).await;
    let number = |number: u32| Some(HeaderValue::from(number));
    let numbers = calls.headers("x-attempt");
    assert_eq!(numbers, [None, number(2), number(3), None]);
}

#[tokio::test(start_paused = true)]
async fn attempt_header_is_off_by_default() {
    let requests = ["GET", "GET"].map(request);
    let calls = Calls::run(policy(), requests, [504, 429, 200, 200]).await;
    assert_eq!(calls.headers("x-attempt"), [None, None, None, None]);
}

#[tokio::test(start_paused = true)]
async fn request_options_override_limits_of_policy() {
    let options = RequestOptions::new;
    for (options, attempts, reason) in [
        (options().max_retries(1), 2, GiveUpReason::RetriesExhausted),
        (options().max_retries(4), 5, GiveUpReason::RetriesExhausted),
        (options().max_retries(0), 1, GiveUpReason::RetriesExhausted),
        (
            options().max_elapsed(2 * SECOND),
            3,
            GiveUpReason::DeadlineExceeded,
        ),
    ] {
        let request = request("PUT").with_extension(options);
        let script = vec![504; attempts as usize];
        let response = run_script(policy(), request, script).await.unwrap();
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!(outcome.attempts(), attempts, "{options:?}");
        assert_eq!(outcome.give_up_reason(), Some(reason), "{options:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn callbacks_receive_retries_and_give_ups() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let policy = {
        let (retries, give_ups) = (events.clone(), events.clone());
        policy()
            .max_retries(2)
            .on_retry(move |event| {
                let (kind, status) = (event.kind(), event.status());
                let text = format!("{kind} {status:?} {} {:?}", event.attempt(), event.delay());
                retries.lock().unwrap().push(text);
            })
            .on_give_up(move |event| {
                let (kind, reason) = (event.kind(), event.reason());
                let (status, attempts) = (event.status(), event.outcome().attempts());
                let text = format!("{kind} {status:?} {attempts} {reason}");
                give_ups.lock().unwrap().push(text);
            })
    };
    let script = [
        Ok(429),
        Err(io::ErrorKind::TimedOut),
        Ok(504),
        Ok(404),
        Ok(200),
    ];
    Calls::run(policy, ["GET", "GET", "GET"].map(request), script).await;
    assert_eq!(
        *events.lock().unwrap(),
        [
            "too_many_requests Some(429) 1 1s",
            "timeout None 2 1s",
            "gateway_timeout Some(504) 3 retries_exhausted",
            "not_found Some(404) 1 not_retryable",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn retry_filter_veto_returns_response_and_costs_no_budget() {
    let budget = RetryBudget::default();
    let policy = policy()
        .budget(budget.clone())
        .retry_filter(|event| event.kind() != FailureKind::GatewayTimeout);
    let response = run_script(policy, request("GET"), [429, 504])
        .await
        .unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.attempts(), 2);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::Vetoed));
    assert_eq!(response.status(), 504);
    // Only the retry after the 429 cost tokens.
    assert_eq!(budget.balance(), Some(40));
}

#[tokio::test(start_paused = true)]
async fn on_give_up_is_called_for_errors() {
    let (last_event, outcome) = (Arc::new(Mutex::new(None)), OutcomeHandle::new());
    let policy = {
        let last_event = last_event.clone();
        policy().on_give_up(move |event| {
            let error = event.error().unwrap();
            let io_error = error.downcast_ref::<io::Error>().unwrap();
            *last_event.lock().unwrap() = Some((
                event.kind(),
                (event.status(), event.reason()),
                *event.outcome(),
                io_error.kind(),
            ));
        })
    };
    let request = request("POST").with_extension(outcome.clone());
    let result = run_script(policy, request, [io::ErrorKind::ConnectionReset]).await;
    assert!(result.is_err());
    let event = last_event.lock().unwrap().take().unwrap();
    let (kind, status_and_reason, event_outcome, io_error) = event;
    assert_eq!(kind, FailureKind::Disconnected);
    assert_eq!(status_and_reason, (None, GiveUpReason::NotIdempotent));
    assert_eq!(outcome.get(), Some(event_outcome));
    assert_eq!(io_error, io::ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn callbacks_receive_request_and_response_by_reference() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let policy = {
        let (retries, give_ups) = (events.clone(), events.clone());
        let describe =
            |method: &http::Method, uri: &http::Uri, headers: Option<&http::HeaderMap>| {
                let server = headers.unwrap()["server"].to_str().unwrap();
                format!("{method} {uri} {server}")
            };
        policy()
            .on_retry(move |event| {
                let text = describe(event.method(), event.uri(), event.headers());
                retries.lock().unwrap().push(text);
            })
            .on_give_up(move |event| {
                let text = describe(event.method(), event.uri(), event.headers());
                give_ups.lock().unwrap().push(text);
            })
    };
    let request = Request::put("https://api.example:8443/a/b?c=%20d")
        .body(Default::default())
        .unwrap();
    let script = [504, 404].map(|status| response(status).with_header("server", "test"));
    run_script(policy, request, script).await.unwrap();
    assert_eq!(
        *events.lock().unwrap(),
        ["PUT https://api.example:8443/a/b?c=%20d test"; 2]
    );
}
