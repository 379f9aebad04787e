//! Calls that are dropped before they complete.

use std::pin::pin;

use futures_util::poll;
use tower::{Service, ServiceExt};
use tower_http_retry::OutcomeHandle;

use super::*;

#[tokio::test(start_paused = true)]
async fn drop_cancels_retry_and_records_attempts() {
    let outcome = OutcomeHandle::new();
    let (client, mut server) = mock_client(policy());
    {
        let request = request("GET").with_extension(outcome.clone());
        let mut call = pin!(client.oneshot(request));
        assert!(poll!(call.as_mut()).is_pending());
        respond(&mut server, response(500)).await;
        assert!(poll!(call.as_mut()).is_pending());
        assert_eq!(outcome.get(), None);
    }
    assert!(server.next_request().await.is_none());
    let outcome = outcome.get().unwrap();
    assert_eq!((outcome.attempts(), outcome.give_up_reason()), (1, None));
}

#[tokio::test(start_paused = true)]
async fn late_drop_of_completed_call_leaves_next_outcome_alone() {
    let outcome = OutcomeHandle::new();
    let (client, mut server) = mock_client(policy());
    let request = || request("GET").with_extension(outcome.clone());

    // Not `oneshot`, which drops the future of the layer when it completes.
    let mut service = client.clone();
    let mut completed = Box::pin(service.ready().await.unwrap().call(request()));
    assert!(poll!(completed.as_mut()).is_pending());
    respond(&mut server, response(200)).await;
    completed.as_mut().await.unwrap();
    assert!(outcome.get().is_some());

    let mut in_flight = Box::pin(client.oneshot(request()));
    assert!(poll!(in_flight.as_mut()).is_pending());
    assert_eq!(outcome.get(), None);
    drop(completed);
    assert_eq!(outcome.get(), None);
    respond(&mut server, response(200)).await;
    in_flight.await.unwrap();
    assert_eq!(outcome.get().unwrap().attempts(), 1);
}
