use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// An attempt that is retried.
fn retryable() -> FailedAttempt {
    FailedAttempt {
        invalid_token: false,
        retryability: Retryability::IfIdempotent,
        retries: 0,
        max_retries: 3,
        idempotent: true,
        replayable: true,
        retry_after: None,
        elapsed: Duration::ZERO,
        max_elapsed: 60 * SECOND,
        exempt_from_budget: false,
    }
}

fn decide_with_1s_backoff(failed: FailedAttempt) -> Decision {
    decide(failed, || Some(SECOND), |_| true, || true)
}

fn retry(delay: Duration) -> Decision {
    Decision::Retry { delay }
}

#[test]
fn delay_is_retry_after_plus_backoff() {
    let failed = retryable();
    assert_eq!(decide_with_1s_backoff(failed), retry(SECOND));
    let hinted = FailedAttempt {
        retry_after: Some(2 * SECOND),
        ..failed
    };
    assert_eq!(decide_with_1s_backoff(hinted), retry(3 * SECOND));
}

#[test]
fn reasons_are_checked_in_the_documented_order() {
    // Each line adds an earlier reason.
    let mut failed = retryable();
    let mut gives_up_with = |spoil: fn(&mut FailedAttempt), reason| {
        spoil(&mut failed);
        assert_eq!(decide_with_1s_backoff(failed), Decision::GiveUp(reason));
    };
    gives_up_with(
        |failed| failed.elapsed = Duration::from_millis(59_001),
        GiveUpReason::DeadlineExceeded,
    );
    gives_up_with(
        |failed| failed.replayable = false,
        GiveUpReason::BodyNotReplayable,
    );
    gives_up_with(
        |failed| failed.idempotent = false,
        GiveUpReason::NotIdempotent,
    );
    gives_up_with(|failed| failed.retries = 3, GiveUpReason::RetriesExhausted);
    gives_up_with(
        |failed| failed.retryability = Retryability::Never,
        GiveUpReason::NotRetryable,
    );
    gives_up_with(
        |failed| failed.invalid_token = true,
        GiveUpReason::InvalidToken,
    );
}

#[test]
fn empty_budget_gives_up_unless_exempt() {
    let with_empty_budget = |failed| decide(failed, || Some(SECOND), |_| true, || false);
    let exhausted = Decision::GiveUp(GiveUpReason::BudgetExhausted);
    assert_eq!(with_empty_budget(retryable()), exhausted);
    let exempt = FailedAttempt {
        exempt_from_budget: true,
        ..retryable()
    };
    assert_eq!(with_empty_budget(exempt), retry(SECOND));
}

#[test]
fn max_retries_and_max_elapsed_are_inclusive() {
    let with = |max_retries, retries, max_elapsed, elapsed| {
        decide_with_1s_backoff(FailedAttempt {
            max_retries,
            retries,
            max_elapsed,
            elapsed,
            ..retryable()
        })
    };
    let exhausted = Decision::GiveUp(GiveUpReason::RetriesExhausted);
    let late = Decision::GiveUp(GiveUpReason::DeadlineExceeded);
    let zero = Duration::ZERO;
    for (max_retries, retries, max_elapsed, elapsed, expected) in [
        (5, 4, 60 * SECOND, zero, retry(SECOND)),
        (5, 5, 60 * SECOND, zero, exhausted),
        (0, 0, 60 * SECOND, zero, exhausted),
        (3, 0, 120 * SECOND, 119 * SECOND, retry(SECOND)),
        (3, 0, 120 * SECOND, 120 * SECOND, late),
        (3, 0, SECOND / 2, zero, late),
    ] {
        assert_eq!(with(max_retries, retries, max_elapsed, elapsed), expected);
    }
}

#[test]
fn filter_vetoes_before_the_budget_and_after_the_class() {
    let veto = |failed| {
        let filter = |delay| {
            assert_eq!(delay, SECOND);
            false
        };
        decide(failed, || Some(SECOND), filter, || panic!("withdrawn"))
    };
    assert_eq!(veto(retryable()), Decision::GiveUp(GiveUpReason::Vetoed));
    let never = FailedAttempt {
        retryability: Retryability::Never,
        ..retryable()
    };
    assert_eq!(veto(never), Decision::GiveUp(GiveUpReason::NotRetryable));
}

#[test]
fn end_of_backoff_exhausts_the_retries() {
    let decision = decide(retryable(), || None, |_| true, || true);
    assert_eq!(decision, Decision::GiveUp(GiveUpReason::RetriesExhausted));
}

#[test]
fn always_retryable_failure_needs_no_idempotency() {
    let post = FailedAttempt {
        idempotent: false,
        ..retryable()
    };
    let not_idempotent = Decision::GiveUp(GiveUpReason::NotIdempotent);
    assert_eq!(decide_with_1s_backoff(post), not_idempotent);
    let rejected = FailedAttempt {
        retryability: Retryability::Always,
        ..post
    };
    assert_eq!(decide_with_1s_backoff(rejected), retry(SECOND));
}

#[test]
fn deadline_is_exact_to_the_nanosecond_and_does_not_overflow() {
    let at = |max_elapsed, elapsed, retry_after| {
        decide_with_1s_backoff(FailedAttempt {
            max_elapsed,
            elapsed,
            retry_after: Some(retry_after),
            ..retryable()
        })
    };
    let late = Decision::GiveUp(GiveUpReason::DeadlineExceeded);
    let nano = Duration::from_nanos(1);
    assert_eq!(at(3 * SECOND, SECOND, SECOND), retry(2 * SECOND));
    assert_eq!(at(3 * SECOND, SECOND, SECOND + nano), late);
    assert_eq!(at(3 * SECOND, SECOND, Duration::MAX), late);
    assert_eq!(at(Duration::MAX, Duration::ZERO, Duration::MAX), late);
}

#[test]
fn only_429_with_retry_after_is_scheduled_by_server() {
    let (limited, unavailable) = (
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::SERVICE_UNAVAILABLE,
    );
    for (status, retry_after, expected) in [
        (unavailable, None, false),
        (limited, None, false),
        (limited, Some(Duration::ZERO), false),
        (unavailable, Some(SECOND), false),
        (limited, Some(SECOND), true),
    ] {
        let found = is_scheduled_by_server(status, retry_after);
        assert_eq!(found, expected, "{status} {retry_after:?}");
    }
}
