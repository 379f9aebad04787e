//! Calls that are dropped before they complete.

use std::pin::pin;

use futures_util::poll;
use tower::ServiceExt;
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
