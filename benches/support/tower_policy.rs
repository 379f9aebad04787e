//! A policy for `tower::retry` that follows its documentation: a budget, a backoff and a clone of the
//! request.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};
use tower::{
    BoxError,
    retry::{
        Policy,
        backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff},
        budget::{Budget, TpsBudget},
    },
    util::rng::HasherRng,
};

/// A hand-written policy for `tower::retry`. It retries errors and the retryable statuses of the
/// contract, up to 3 times.
#[derive(Clone)]
pub(crate) struct TowerPolicy<W = ExponentialBackoff> {
    pub(crate) budget: Arc<TpsBudget>,
    pub(crate) backoff: W,
    pub(crate) retries: u32,
}

impl TowerPolicy {
    pub(crate) fn new() -> Result<Self, BoxError> {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(10));
        let rng = HasherRng::default();
        let mut maker = ExponentialBackoffMaker::new(min, max, 0.99, rng)?;
        Ok(Self {
            budget: Arc::default(),
            backoff: maker.make_backoff(),
            retries: 3,
        })
    }
}

impl<B: Clone, R, E, W: Backoff> Policy<Request<B>, Response<R>, E> for TowerPolicy<W> {
    type Future = W::Future;

    fn retry(
        &mut self,
        _: &mut Request<B>,
        result: &mut Result<Response<R>, E>,
    ) -> Option<Self::Future> {
        if result
            .as_ref()
            .is_ok_and(|response| !is_retryable(response))
        {
            self.budget.deposit();
            return None;
        }
        self.retries = self.retries.checked_sub(1)?;
        self.budget.withdraw().then(|| self.backoff.next_backoff())
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        Some(request.clone())
    }
}

fn is_retryable<R>(response: &Response<R>) -> bool {
    matches!(response.status().as_u16(), 429 | 500 | 504)
}
