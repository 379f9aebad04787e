//! What one request may say for itself and carry, and whom a retry is told, under paused time.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_http_retry::{
    FailureKind, GiveUpReason, IdempotencyKey, OutcomeHandle, ReplayBody, RequestOptions,
    ResponseBody, RetryBudget, RetryLayer, RetryOutcome, RetryPolicy, backoff_fn,
};

type Body = Full<Bytes>;

/// What the server saw of one attempt: its key and its number.
type Seen = (Option<HeaderValue>, Option<HeaderValue>);

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| std::iter::repeat(SECOND)))
}

fn request(method: &str) -> Request<Body> {
    let request = Request::builder().method(method);
    let request = request.uri("http://api.example/payments?secret=1");
    request.body(Body::from("sent")).unwrap()
}

/// Counts up, so that keys can be told apart.
fn keys() -> IdempotencyKey {
    let count = AtomicU64::new(0);
    IdempotencyKey::from_fn(move || Some(count.fetch_add(1, Ordering::Relaxed).into()))
}

/// Sends the requests one after the other to a server that answers as the script says.
async fn run(
    policy: RetryPolicy,
    requests: Vec<Request<Body>>,
    script: &[Result<u16, io::ErrorKind>],
) -> (
    Vec<Result<Response<ResponseBody<Body>>, BoxError>>,
    Vec<Seen>,
) {
    let script = Arc::new(Mutex::new(script.iter().copied()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let server = {
        let seen = seen.clone();
        service_fn(move |request: Request<ReplayBody<Body>>| {
            let header = |name| request.headers().get(name).cloned();
            let attempt = (header("idempotency-key"), header("x-attempt"));
            seen.lock().unwrap().push(attempt);
            let answer = script.lock().unwrap().next().expect("one request too many");
            async move {
                let mut response = Response::new(Body::from("received"));
                *response.status_mut() =
                    StatusCode::from_u16(answer.map_err(io::Error::from)?).unwrap();
                Ok::<_, BoxError>(response)
            }
        })
    };
    let client = RetryLayer::new(policy).layer(server);
    let mut results = Vec::new();
    for request in requests {
        results.push(client.clone().oneshot(request).await);
    }
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (results, seen)
}

fn outcomes(results: &[Result<Response<ResponseBody<Body>>, BoxError>]) -> Vec<RetryOutcome> {
    let outcome = |it: &Result<_, _>| RetryOutcome::from_response(it.as_ref().unwrap());
    results.iter().map(outcome).collect()
}

#[tokio::test(start_paused = true)]
async fn all_attempts_of_a_request_carry_one_key_and_another_request_another() {
    let policy = policy().idempotency_key(keys());
    let script = [
        Ok(504),
        Err(io::ErrorKind::TimedOut),
        Ok(200),
        Ok(500),
        Ok(200),
    ];
    let (results, seen) = run(policy, vec![request("POST"), request("PATCH")], &script).await;
    let attempts: Vec<_> = outcomes(&results).iter().map(|it| it.attempts()).collect();
    assert_eq!(attempts, [3, 2]);
    let keys: Vec<_> = seen.into_iter().map(|(key, _)| key.unwrap()).collect();
    assert_eq!(keys, ["0", "0", "0", "1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_only_given_to_who_needs_one_and_has_none() {
    let mut own = request("POST");
    let key = HeaderValue::from_static("\"mine\"");
    own.headers_mut().insert("idempotency-key", key.clone());
    let methods = ["GET", "PUT", "DELETE", "CONNECT"];
    let mut requests: Vec<_> = methods.into_iter().map(request).collect();
    requests.push(own);
    let (_, seen) = run(policy().idempotency_key(keys()), requests, &[Ok(200); 5]).await;
    let given: Vec<_> = seen.into_iter().map(|(key, _)| key).collect();
    assert_eq!(given, [None, None, None, None, Some(key)]);
}

#[tokio::test(start_paused = true)]
async fn without_a_key_or_against_the_callers_word_a_post_is_not_repeated() {
    let none = IdempotencyKey::from_fn(|| None);
    let (results, seen) = run(
        policy().idempotency_key(none),
        vec![request("POST")],
        &[Ok(504)],
    )
    .await;
    let stop = Some(GiveUpReason::NotIdempotent);
    assert_eq!(outcomes(&results)[0].give_up_reason(), stop);
    assert_eq!(seen, [(None, None)]);

    let mut once = request("POST");
    let options = RequestOptions::new().idempotent(false);
    once.extensions_mut().insert(options);
    let (results, _) = run(policy().idempotency_key(keys()), vec![once], &[Ok(504)]).await;
    assert_eq!(outcomes(&results)[0].give_up_reason(), stop);
}

#[tokio::test(start_paused = true)]
async fn each_retry_says_which_attempt_it_is_where_that_is_wanted() {
    let name = HeaderName::from_static("x-attempt");
    let script = [Ok(504), Ok(429), Ok(200), Ok(200)];
    let requests = || vec![request("GET"), request("GET")];
    let (_, seen) = run(policy().attempt_header(name), requests(), &script).await;
    let said: Vec<_> = seen.into_iter().map(|(_, number)| number).collect();
    let number = |number: u32| Some(HeaderValue::from(number));
    assert_eq!(said, [None, number(2), number(3), None]);

    let (_, seen) = run(policy(), requests(), &script).await;
    assert!(seen.into_iter().all(|(_, number)| number.is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_request_may_have_limits_of_its_own() {
    for (options, attempts, stop) in [
        (
            RequestOptions::new().max_retries(1),
            2,
            GiveUpReason::RetriesExhausted,
        ),
        (
            RequestOptions::new().max_retries(4),
            5,
            GiveUpReason::RetriesExhausted,
        ),
        (
            RequestOptions::new().max_retries(0),
            1,
            GiveUpReason::RetriesExhausted,
        ),
        (
            RequestOptions::new().max_elapsed(2 * SECOND),
            3,
            GiveUpReason::DeadlineExceeded,
        ),
    ] {
        let mut request = request("PUT");
        request.extensions_mut().insert(options);
        let (results, _) = run(policy(), vec![request], &[Ok(504); 5]).await;
        let outcome = outcomes(&results)[0];
        assert_eq!(outcome.attempts(), attempts, "{options:?}");
        assert_eq!(outcome.give_up_reason(), Some(stop), "{options:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn callbacks_are_told_of_each_retry_and_of_the_end() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let policy = {
        let (retries, ends) = (told.clone(), told.clone());
        policy()
            .max_retries(2)
            .on_retry(move |event| {
                let (kind, status) = (event.kind(), event.status());
                let text = format!("{kind} {status:?} {} {:?}", event.attempt(), event.delay());
                retries.lock().unwrap().push(text);
            })
            .on_give_up(move |event| {
                let (kind, stop) = (event.kind(), event.give_up_reason());
                let (status, attempts) = (event.status(), event.outcome().attempts());
                let text = format!("{kind} {status:?} {attempts} {stop}");
                ends.lock().unwrap().push(text);
            })
    };
    let script = [
        Ok(429),
        Err(io::ErrorKind::TimedOut),
        Ok(504),
        Ok(404),
        Ok(200),
    ];
    let requests = vec![request("GET"), request("GET"), request("GET")];
    run(policy, requests, &script).await;
    assert_eq!(
        *told.lock().unwrap(),
        [
            "too_many_requests Some(429) 1 1s",
            "timeout None 2 1s",
            "gateway_timeout Some(504) 3 retries_exhausted",
            "not_found Some(404) 1 not_retryable",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_veto_ends_the_retries_with_the_real_response_and_nothing_is_paid() {
    let budget = RetryBudget::default();
    let policy = policy().budget(budget.clone());
    let policy = policy.retry_filter(|event| event.kind() != FailureKind::GatewayTimeout);
    let (results, _) = run(policy, vec![request("GET")], &[Ok(429), Ok(504)]).await;
    let outcome = outcomes(&results)[0];
    assert_eq!(outcome.attempts(), 2);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::Vetoed));
    assert_eq!(results[0].as_ref().unwrap().status(), 504);
    // For the one retry that was made.
    assert_eq!(budget.balance(), Some(40));
}

#[tokio::test(start_paused = true)]
async fn an_error_that_is_surfaced_is_told_as_well() {
    let (told, handle) = (Arc::new(Mutex::new(None)), OutcomeHandle::new());
    let policy = {
        let told = told.clone();
        policy().on_give_up(move |event| *told.lock().unwrap() = Some(*event))
    };
    let mut request = request("POST");
    request.extensions_mut().insert(handle.clone());
    let (results, _) = run(
        policy,
        vec![request],
        &[Err(io::ErrorKind::ConnectionReset)],
    )
    .await;
    assert!(results[0].is_err());
    let event = told.lock().unwrap().take().unwrap();
    assert_eq!(event.kind(), FailureKind::Disconnected);
    assert_eq!(
        (event.status(), event.give_up_reason()),
        (None, GiveUpReason::NotIdempotent)
    );
    assert_eq!(handle.get().as_ref(), Some(event.outcome()));
}
