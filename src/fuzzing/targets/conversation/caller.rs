//! Sends the requests, and compares each conversation with the model.

use std::{
    io,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};
use tower::{Layer, Service, service_fn};
use tower_http_retry::{
    OutcomeHandle, RequestOptions, ResponseBody, RetryBudget, RetryLayer, RetryOutcome,
    RetryPolicy, Retryability, backoff_fn,
};

use super::{
    model::{Allowed, CallModel, Model, Next, retry_after},
    script::{BodyStep, Call, Reply, Script},
    server::{Attempt, ReplyBody, RequestBody, Server, request_data},
};

/// Timers have a resolution of a millisecond.
const TICK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Callbacks {
    filtered: Vec<Duration>,
    retries: u32,
    give_ups: u32,
}

pub(super) async fn run(script: Script) {
    let callbacks = Arc::<Mutex<Callbacks>>::default();
    let budget = script.budget.map(|(capacity, cost)| {
        let nonzero = |number| NonZeroU32::new(number).expect("above zero");
        RetryBudget::new(nonzero(capacity), nonzero(cost)).expect("a cost within the capacity")
    });
    let server = Server::default();
    let inner = service_fn({
        let server = server.clone();
        move |request| server.clone().answer(request)
    });
    let mut service = RetryLayer::new(policy(&script, budget.clone(), &callbacks)).layer(inner);
    let mut model = Model::new(script.clone());
    for call in &script.calls {
        server.begin(call);
        let before = {
            let callbacks = callbacks.lock().unwrap();
            (callbacks.retries, callbacks.give_ups)
        };
        let handle = OutcomeHandle::new();
        let mut state = CallModel::new(call, Instant::now());
        let result = service.call(request(call, &handle)).await;
        let attempts = server.attempts();
        let outcome = handle.get().expect("an outcome");
        let end = check_attempts(&mut model, &mut state, &attempts, &script);
        check_outcome(&attempts, outcome, &end, call);
        check_callbacks(&callbacks.lock().unwrap(), before, &model, outcome);
        assert_eq!(
            budget.as_ref().and_then(RetryBudget::balance),
            model.balance(),
            "{script:?}"
        );
        check_result(result, last_reply(call, &attempts), &attempts).await;
    }
}

fn policy(
    script: &Script,
    budget: Option<RetryBudget>,
    callbacks: &Arc<Mutex<Callbacks>>,
) -> RetryPolicy {
    let delays = script.delays.clone();
    let policy = RetryPolicy::new()
        .max_retries(script.max_retries)
        .max_elapsed(script.max_elapsed)
        .backoff(backoff_fn(move || delays.clone().into_iter()))
        .replay_limit(script.replay_limit)
        .inspect_limit(script.inspect_limit)
        .drain_limit(script.drain_limit)
        .discard_timeout(script.discard_timeout)
        .retry_non_idempotent(script.retry_non_idempotent)
        .retry_filter({
            let (callbacks, vetoes_from) = (callbacks.clone(), script.vetoes_from);
            move |event| {
                let filtered = &mut callbacks.lock().unwrap().filtered;
                filtered.push(event.delay());
                filtered.len() <= vetoes_from
            }
        })
        .on_retry({
            let callbacks = callbacks.clone();
            move |_| callbacks.lock().unwrap().retries += 1
        })
        .on_give_up({
            let callbacks = callbacks.clone();
            move |_| callbacks.lock().unwrap().give_ups += 1
        });
    let policy = match budget {
        Some(budget) => policy.budget(budget),
        None => policy.no_budget(),
    };
    if !script.retries_503 {
        return policy;
    }
    let policy =
        policy.classify_status(StatusCode::SERVICE_UNAVAILABLE, Retryability::IfIdempotent);
    policy.expect("a status of a failure")
}

fn request(call: &Call, handle: &OutcomeHandle) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::new(call));
    *request.method_mut() = call.method.clone();
    if let Some(key) = call.key {
        request
            .headers_mut()
            .insert("idempotency-key", key.parse().expect("a valid key"));
    }
    let mut options = RequestOptions::new();
    if let Some(idempotent) = call.idempotent {
        options = options.idempotent(idempotent);
    }
    if let Some(retries) = call.max_retries {
        options = options.max_retries(retries);
    }
    if let Some(limit) = call.max_elapsed {
        options = options.max_elapsed(limit);
    }
    request.extensions_mut().insert(options);
    request.extensions_mut().insert(handle.clone());
    request
}

fn reply(call: &Call, index: usize) -> Reply {
    call.replies.get(index).cloned().unwrap_or_else(Reply::ok)
}

fn last_reply(call: &Call, attempts: &[Attempt]) -> Reply {
    reply(call, attempts.len() - 1)
}

/// Compares the attempts with the model, and with the promises that hold without it. Returns the end.
fn check_attempts(
    model: &mut Model,
    state: &mut CallModel<'_>,
    attempts: &[Attempt],
    script: &Script,
) -> Next {
    let call = state.call;
    let mut end = Next::Success;
    let mut processed = 0;
    for (index, attempt) in attempts.iter().enumerate() {
        check_attempt(call, attempt);
        let reply = reply(call, index);
        let deadline = state.started + model.max_elapsed(call);
        assert!(
            index == 0 || attempt.arrived_at <= deadline + TICK,
            "after the deadline: {script:?}"
        );
        let may_have_processed = model.allowed(attempt, &reply) != Some(Allowed::Always);
        processed += u32::from(may_have_processed);
        if let (Ok(response), Some(next)) = (&reply.result, attempts.get(index + 1)) {
            let retry_after = retry_after(response).unwrap_or_default();
            assert!(
                next.arrived_at - attempt.answered_at >= retry_after,
                "too early: {script:?}"
            );
        }
        end = model.next(state, attempt, &reply);
        match (&end, attempts.get(index + 1)) {
            (Next::Retry(at), Some(next)) => {
                let in_time = next.arrived_at >= *at && next.arrived_at <= *at + TICK;
                assert!(
                    in_time,
                    "attempt {index} at {:?} instead of {at:?}: {script:?}",
                    next.arrived_at
                );
            }
            (Next::Success | Next::GiveUp(_), None) => {}
            (end, next) => panic!("{end:?} after attempt {index}, but {next:?}: {script:?}"),
        }
    }
    let may_repeat = script.retry_non_idempotent || state.is_idempotent();
    assert!(
        may_repeat || processed <= 1,
        "processed {processed} times: {script:?}"
    );
    end
}

fn check_attempt(call: &Call, attempt: &Attempt) {
    assert_eq!(attempt.method, call.method);
    assert_eq!(attempt.key.as_deref(), call.key);
    let whole = request_data(call.total());
    assert!(whole.starts_with(&attempt.received), "another body");
    assert!(
        !attempt.is_whole || (attempt.received == whole && !call.body_fails),
        "a cut body"
    );
    assert!(
        !attempt.body_failed || call.body_fails,
        "a body that is cut off"
    );
}

fn check_outcome(attempts: &[Attempt], outcome: RetryOutcome, end: &Next, call: &Call) {
    assert_eq!(outcome.attempts() as usize, attempts.len());
    let delays = attempts
        .windows(2)
        .map(|pair| pair[1].arrived_at - pair[0].answered_at);
    assert_eq!(outcome.total_delay(), delays.sum::<Duration>());
    let reply = last_reply(call, attempts);
    let reason = match end {
        Next::GiveUp(reason) => Some(*reason),
        _ => None,
    };
    assert_eq!(outcome.give_up_reason(), reason, "{call:?}");
    let body_failed = attempts.last().is_some_and(|attempt| attempt.body_failed);
    let expected = match &reply.result {
        Ok(response) if reason.is_some() && !body_failed => retry_after(response),
        _ => None,
    };
    assert_eq!(outcome.retry_after(), expected);
}

fn check_callbacks(
    callbacks: &Callbacks,
    before: (u32, u32),
    model: &Model,
    outcome: RetryOutcome,
) {
    assert_eq!(callbacks.filtered, model.filtered);
    assert_eq!(callbacks.retries - before.0, outcome.attempts() - 1);
    let gave_up = outcome.give_up_reason().is_some();
    assert_eq!(callbacks.give_ups - before.1, u32::from(gave_up));
}

/// The caller gets the last reply, with its body whole.
async fn check_result(
    result: io::Result<Response<ResponseBody<ReplyBody>>>,
    reply: Reply,
    attempts: &[Attempt],
) {
    let body_failed = attempts.last().is_some_and(|attempt| attempt.body_failed);
    let (response, script) = match (result, reply.result) {
        (Err(error), _) if body_failed => return assert_eq!(error.kind(), io::ErrorKind::Other),
        (Err(error), Err(kind)) => return assert_eq!(error.kind(), kind),
        (Ok(response), Ok(script)) => (response, script),
        (result, script) => panic!("{script:?}, but {result:?}"),
    };
    assert_eq!(response.status(), script.status);
    let mut body = response.into_body();
    let (mut data, mut failed, mut stalled) = (Vec::new(), false, false);
    loop {
        match timeout(Duration::from_secs(100), body.frame()).await {
            Ok(Some(Ok(frame))) => data.extend(frame.into_data().expect("no trailers")),
            Ok(Some(Err(_))) => failed = true,
            Ok(None) => break,
            Err(_) => {
                stalled = true;
                break;
            }
        }
    }
    assert_eq!(data, script.data());
    let has = |is_step: fn(&BodyStep) -> bool| script.body.iter().any(is_step);
    assert_eq!(failed, has(|step| matches!(step, BodyStep::Fail)));
    assert_eq!(stalled, has(|step| matches!(step, BodyStep::Stall)));
}
