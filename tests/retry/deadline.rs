//! `Retry-After` and the deadline.

use tokio::time::Instant;
use tower_http_retry::GiveUpReason;

use crate::common::policy_with_delay;

use super::*;

#[tokio::test(start_paused = true)]
async fn delay_is_retry_after_plus_backoff() {
    for (retry_after, seconds) in [("3", 3.1), ("0", 0.1), ("soon", 0.1)] {
        let start = Instant::now();
        let limited = response(429).with_header("retry-after", retry_after);
        let script = [limited, response(200)];
        run_script(policy(), request("POST"), script).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs_f64(seconds));
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_past_deadline_gives_up_immediately() {
    for (retry_after, expected) in [
        ("3600", Duration::from_secs(3600)),
        ("99999999999999999999999", Duration::MAX),
    ] {
        let start = Instant::now();
        let limited = response(429).with_header("retry-after", retry_after);
        let outcome = gives_up(policy(), request("GET"), limited).await;
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::DeadlineExceeded)
        );
        assert_eq!(outcome.retry_after(), Some(expected));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn deadline_limits_start_of_last_attempt() {
    let policy = policy_with_delay(2 * SECOND)
        .max_retries(u32::MAX)
        .max_elapsed(5 * SECOND);
    let start = Instant::now();
    let response = run_script(policy, request("GET"), [500; 3]).await.unwrap();
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(
        outcome.give_up_reason(),
        Some(GiveUpReason::DeadlineExceeded)
    );
    assert_eq!((outcome.attempts(), start.elapsed()), (3, 4 * SECOND));
}
