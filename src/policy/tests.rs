use super::*;
use crate::classify::FailureKind;

const SECOND: Duration = Duration::from_secs(1);

fn worth_retrying() -> Failure {
    Failure {
        reason: Reason::Error(FailureKind::Timeout),
        options: RequestOptions::new(),
        retryability: Retryability::IfIdempotent,
        invalid_token: false,
        retries: 0,
        may_be_repeated: true,
        is_replayable: true,
        was_handed_back: false,
        hint: None,
        elapsed: Duration::ZERO,
    }
}

fn decide(policy: &RetryPolicy, failure: Failure) -> Decision {
    policy.decide(failure, || Some(SECOND), || true)
}

#[test]
fn what_is_worth_retrying_waits_for_the_hint_and_the_delay() {
    let policy = RetryPolicy::new();
    let failure = worth_retrying();
    assert_eq!(decide(&policy, failure), Decision::RetryAfter(SECOND));
    let hint = Some(2 * SECOND);
    let asked = Failure { hint, ..failure };
    assert_eq!(decide(&policy, asked), Decision::RetryAfter(3 * SECOND));
}

#[test]
fn each_reason_stops_and_the_first_in_order_is_named() {
    let policy = RetryPolicy::new();
    // Each line spoils one thing more, from the last reason to the first.
    let mut failure = worth_retrying();
    let mut stops_with = |spoil: fn(&mut Failure), reason| {
        spoil(&mut failure);
        assert_eq!(decide(&policy, failure), Decision::Stop(reason));
    };
    stops_with(
        |f| f.elapsed = Duration::from_millis(59_001),
        GiveUpReason::DeadlineExceeded,
    );
    stops_with(|f| f.is_replayable = false, GiveUpReason::BodyNotReplayable);
    stops_with(|f| f.may_be_repeated = false, GiveUpReason::NotIdempotent);
    stops_with(|f| f.retries = 3, GiveUpReason::RetriesExhausted);
    stops_with(
        |f| f.retryability = Retryability::Never,
        GiveUpReason::NotRetryable,
    );
    stops_with(|f| f.invalid_token = true, GiveUpReason::InvalidToken);
}

#[test]
fn what_the_budget_does_not_pay_for_stops_unless_the_server_set_its_time() {
    let policy = RetryPolicy::new();
    let broke = |failure| policy.decide(failure, || Some(SECOND), || false);
    let failure = worth_retrying();
    let limited = Failure {
        reason: Reason::Status(StatusCode::TOO_MANY_REQUESTS),
        ..failure
    };
    let hinted = |failure, hint| Failure {
        hint: Some(hint),
        ..failure
    };
    let exhausted = Decision::Stop(GiveUpReason::BudgetExhausted);
    for failure in [
        failure,
        limited,
        hinted(limited, Duration::ZERO),
        hinted(failure, SECOND),
    ] {
        assert_eq!(broke(failure), exhausted, "{failure:?}");
    }
    let free = hinted(limited, SECOND);
    assert_eq!(broke(free), Decision::RetryAfter(2 * SECOND));
    let handed_back = Failure {
        was_handed_back: true,
        ..failure
    };
    assert_eq!(broke(handed_back), Decision::RetryAfter(SECOND));
}

#[test]
fn what_the_caller_says_of_one_request_goes_before_the_policy() {
    let policy = RetryPolicy::new();
    let with = |options, retries, elapsed| {
        let failure = Failure {
            options,
            retries,
            elapsed,
            ..worth_retrying()
        };
        decide(&policy, failure)
    };
    let none = RequestOptions::new();
    let exhausted = Decision::Stop(GiveUpReason::RetriesExhausted);
    let late = Decision::Stop(GiveUpReason::DeadlineExceeded);
    let again = Decision::RetryAfter(SECOND);
    for (options, retries, elapsed, expected) in [
        (none.max_retries(5), 4, Duration::ZERO, again),
        (none.max_retries(5), 5, Duration::ZERO, exhausted),
        (none.max_retries(0), 0, Duration::ZERO, exhausted),
        (none.max_elapsed(120 * SECOND), 0, 119 * SECOND, again),
        (none.max_elapsed(120 * SECOND), 0, 120 * SECOND, late),
        (none.max_elapsed(SECOND / 2), 0, Duration::ZERO, late),
    ] {
        assert_eq!(with(options, retries, elapsed), expected, "{options:?}");
    }
}

#[test]
fn a_veto_is_the_last_word_and_costs_nothing() {
    let policy = RetryPolicy::new().retry_filter(|event| {
        assert_eq!((event.attempt(), event.delay()), (1, SECOND));
        assert_eq!(event.kind(), FailureKind::Timeout);
        false
    });
    let decision = policy.decide(worth_retrying(), || Some(SECOND), || panic!("paid"));
    assert_eq!(decision, Decision::Stop(GiveUpReason::Vetoed));
    let never = Failure {
        retryability: Retryability::Never,
        ..worth_retrying()
    };
    assert_eq!(
        decide(&policy, never),
        Decision::Stop(GiveUpReason::NotRetryable)
    );
}

#[test]
fn the_end_of_the_schedule_is_the_end_of_the_retries() {
    let decision = RetryPolicy::new().decide(worth_retrying(), || None, || true);
    assert_eq!(decision, Decision::Stop(GiveUpReason::RetriesExhausted));
}

#[test]
fn only_what_the_server_did_not_act_on_needs_no_idempotency() {
    let policy = RetryPolicy::new();
    let post = Failure {
        may_be_repeated: false,
        ..worth_retrying()
    };
    let stop = Decision::Stop(GiveUpReason::NotIdempotent);
    assert_eq!(decide(&policy, post), stop);
    let refused = Failure {
        retryability: Retryability::Always,
        ..post
    };
    assert_eq!(decide(&policy, refused), Decision::RetryAfter(SECOND));
    let unguarded = policy.retry_non_idempotent(true);
    assert_eq!(decide(&unguarded, post), Decision::RetryAfter(SECOND));
}

#[test]
fn what_is_never_sent_again_is_not_kept() {
    let (once, again) = (RetryPolicy::new().max_retries(0), RetryPolicy::new());
    let options = RequestOptions::new();
    assert_eq!(once.bytes_kept(options), 0);
    assert_eq!(once.bytes_kept(options.max_retries(1)), 64 * 1024);
    assert_eq!(again.bytes_kept(options), 64 * 1024);
    assert_eq!(again.bytes_kept(options.max_retries(0)), 0);
}

#[test]
fn the_deadline_is_kept_to_the_nanosecond_and_nothing_overflows() {
    let policy = RetryPolicy::new().max_elapsed(3 * SECOND);
    let at = |elapsed, hint| {
        let hint = Some(hint);
        let failure = Failure {
            elapsed,
            hint,
            ..worth_retrying()
        };
        decide(&policy, failure)
    };
    let stop = Decision::Stop(GiveUpReason::DeadlineExceeded);
    let nano = Duration::from_nanos(1);
    assert_eq!(at(SECOND, SECOND), Decision::RetryAfter(2 * SECOND));
    assert_eq!(at(SECOND, SECOND + nano), stop);
    assert_eq!(at(SECOND, Duration::MAX), stop);
    let unlimited = RetryPolicy::new().max_elapsed(Duration::MAX);
    let for_ever = Failure {
        hint: Some(Duration::MAX),
        ..worth_retrying()
    };
    assert_eq!(decide(&unlimited, for_ever), stop);
}

#[test]
fn the_table_of_defaults_is_true() {
    let policy = RetryPolicy::new();
    let delays = policy.delays().take(3).collect::<Vec<_>>();
    let ceilings = [100, 200, 400].map(Duration::from_millis);
    assert!(
        delays
            .iter()
            .zip(ceilings)
            .all(|(delay, max)| *delay <= max)
    );
    assert_eq!(
        format!("{policy:?}"),
        "RetryPolicy { classifier: ApiErrorsAsFailures {429: Always, 500: IfIdempotent, \
         504: IfIdempotent}, max_retries: 3, max_elapsed: 60s, replay_limit: 65536, \
         inspect_limit: 16384, drain_limit: 262144, discard_timeout: 1s, \
         retry_non_idempotent: false, budget: Default, gate: None, idempotency_key: None, \
         attempt_header: None, callbacks: Callbacks { on_retry: false, on_give_up: false, \
         retry_filter: false }, .. }"
    );
}
