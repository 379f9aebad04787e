//! The retry budget.

use futures_util::poll;
use tower::ServiceExt;
use tower_http_retry::{GiveUpReason, RetryBudget};

use crate::common::{INVALID_TOKEN, give_up_reason};

use super::*;

/// Creates a budget of 20 tokens, of which a retry costs 10.
fn small_budget() -> RetryBudget {
    RetryBudget::new(20.try_into().unwrap(), 10.try_into().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn budget_limits_retries_and_successes_refill_it() {
    let budget = small_budget();
    let policy = || policy().budget(budget.clone());
    let exhausted = run_script(policy(), request("GET"), [500; 3])
        .await
        .unwrap();
    assert_eq!(
        give_up_reason(&exhausted),
        Some(GiveUpReason::BudgetExhausted)
    );
    assert_eq!((budget.balance(), budget.overdrafts()), (Some(0), 1));
    // A 404 deposits too, since the server works. A failed POST does not.
    for (status, method, balance) in [(200, "GET", 1), (404, "GET", 2), (500, "POST", 2)] {
        run_script(policy(), request(method), [status])
            .await
            .unwrap();
        assert_eq!(budget.balance(), Some(balance));
    }
    // A retry at the time set by the server is free.
    let limited = response(429).with_header("retry-after", "1");
    let script = [limited, response(200)];
    run_script(policy(), request("GET"), script).await.unwrap();
    assert_eq!(budget.balance(), Some(3));
    for _ in 0..7 {
        run_script(policy(), request("GET"), [200]).await.unwrap();
    }
    // A retry that succeeds is refunded.
    run_script(policy(), request("GET"), [504, 200])
        .await
        .unwrap();
    assert_eq!((budget.balance(), budget.withdrawals()), (Some(10), 3));
}

#[tokio::test(start_paused = true)]
async fn drop_refunds_retry_only_if_unsent() {
    let budget = RetryBudget::default();
    for (is_sent, balance) in [(false, 50), (true, 40)] {
        let (client, mut server) = mock_client(policy().budget(budget.clone()));
        let mut call = Box::pin(client.oneshot(request("GET")));
        assert!(poll!(call.as_mut()).is_pending());
        respond(&mut server, response(500)).await;
        assert!(poll!(call.as_mut()).is_pending());
        assert_eq!(budget.balance(), Some(40));
        if is_sent {
            tokio::time::advance(SECOND).await;
            assert!(poll!(call.as_mut()).is_pending());
            drop(server.next_request().await.expect("a retry"));
        }
        drop(call);
        assert_eq!(budget.balance(), Some(balance));
    }
}

#[tokio::test(start_paused = true)]
async fn retry_is_refunded_if_body_says_invalid_token() {
    let budget = RetryBudget::default();
    let policy = policy().budget(budget.clone());
    let reply = response(500).with_text(INVALID_TOKEN);
    run_script(policy, request("GET"), [reply]).await.unwrap();
    assert_eq!(budget.balance(), Some(50));
}
