//! The futures of [`Retry`](crate::Retry) and [`ErrorForStatus`](crate::ErrorForStatus).

// The loop: attempt, classify, decide, read what failed, wait, get ready, send again.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::BoxError;
use tower_http::classify::MakeClassifier;
use tower_service::Service;

use super::{
    discard::{FailedResponse, Read},
    saved_head::SavedHead,
    session::{self as call, Call},
};
use crate::{
    body::{ReplayBody, ReplaySource, ResponseBody},
    classify::{Retryability, RetryableFailure},
    outcome::OutcomeHandle,
    policy::RetryPolicy,
    rate_gate::Permit,
    telemetry::trace::Observer,
};

pin_project! {
    /// The future of [`Retry`](crate::Retry): all attempts of one request.
    ///
    /// Dropped, it stops everything: the attempt under way, the wait, an upload that is still
    /// running.
    ///
    /// # Panics
    ///
    /// Polled after completion; or, where it has to wait, outside of a tokio runtime with its timer
    /// enabled.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, C, B, R>
    where
        S: Service<Request<ReplayBody<B>>>,
        C: MakeClassifier,
        R: Body,
    {
        #[pin]
        state: State<S::Future, R>,
        service: S,
        call: Call<C, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R>
    where
        R: Body,
    {
        // The inner service has the request.
        // => Reading, Waiting or Done
        Attempting { #[pin] attempt: F },
        // The attempt failed and will be made again; its response is read and dropped.
        // => Waiting or Done
        Reading { failed: Option<Box<FailedResponse<R>>>, #[pin] timeout: Sleep },
        // Nothing of the failed attempt is left.
        // => Queueing or Readying
        Waiting { #[pin] sleep: Sleep, since: Instant },
        // In line at the rate gate, with a timer where it is the first.
        // => Readying or Done
        Queueing { #[pin] turn: Option<Sleep> },
        // => Attempting, Queueing or Done
        Readying,
        Done,
    }
}

impl<S, C, B, R> ResponseFuture<S, C, B, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
    B: Body,
    B::Error: Into<BoxError>,
    R: Body,
{
    /// Makes the first attempt with `ready`, and keeps a clone of it for the others.
    #[inline]
    pub(crate) fn new(ready: &mut S, policy: Arc<RetryPolicy<C>>, mut request: Request<B>) -> Self {
        if let Some(key) = &policy.idempotency_key {
            key.add_to(&mut request);
        }
        if let Some(handle) = request.extensions().get::<OutcomeHandle>() {
            handle.clear();
        }
        let started = Instant::now();
        let mut permit = call::permit(&policy, &request, started);
        if permit.as_mut().is_some_and(|it| !it.try_acquire(started)) {
            return Self::waiting(ready, policy, permit, request, started);
        }
        // Each part has a place of its own until the last of them is there: what is put together before
        // is moved once more.
        let head = SavedHead::keep(&request);
        policy.meter.request();
        policy.meter.attempt();
        let observer = Observer::of_first_attempt(&request);
        let classifier = Some(policy.classifier.make_classifier(&request));
        let mut upload = ReplaySource::empty();
        let mut empty = None;
        let request = if request.body().is_end_stream() {
            request.map(|body| {
                // Dropped only when the head has moved: two moves with nothing between them are one.
                empty = Some(body);
                ReplayBody::default()
            })
        } else {
            request.map(|body| {
                let (kept, body) = ReplaySource::new(body, policy.bytes_kept(head.options()));
                upload = kept;
                body
            })
        };
        let attempt = {
            let _entered = observer.enter();
            ready.call(request)
        };
        Self {
            state: State::Attempting { attempt },
            // A clone made after the call can have nothing of the readiness that was used up.
            service: ready.clone(),
            call: Call {
                policy,
                observer,
                head,
                upload,
                classifier,
                permit,
                started,
                attempts: 1,
                later: None,
            },
        }
    }

    /// Waits for its turn at the gate.
    #[cold]
    fn waiting(
        ready: &mut S,
        policy: Arc<RetryPolicy<C>>,
        permit: Option<Box<Permit>>,
        request: Request<B>,
        started: Instant,
    ) -> Self {
        // What is ready is not kept from others while this one waits.
        *ready = ready.clone();
        Self {
            state: State::Queueing { turn: None },
            service: ready.clone(),
            call: Call::waiting(policy, permit, request, started),
        }
    }
}

impl<S, C, B, R> Future for ResponseFuture<S, C, B, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    S::Error: fmt::Display + 'static,
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
    B: Body,
    B::Error: Into<BoxError>,
    R: Body,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let end = if let StateProj::Attempting { attempt } = this.state.as_mut().project() {
                let result = {
                    let _entered = this.call.observer.enter();
                    ready!(attempt.poll(cx))
                };
                // What the attempt held, a permit perhaps, is let go first.
                this.state.set(State::Done);
                match result {
                    Ok(mut response) => match this.call.judge(&response) {
                        None => {
                            this.call.succeed(&mut response);
                            return Poll::Ready(Ok(response.map(ResponseBody::passthrough)));
                        }
                        Some(retryability) => self.as_mut().refused(response, retryability),
                    },
                    Err(error) => self.as_mut().broke(error),
                }
            } else {
                ready!(self.as_mut().poll_between(cx))
            };
            if let Some(result) = end {
                return Poll::Ready(result);
            }
        }
    }
}

/// What most calls never come to.
impl<S, C, B, R> ResponseFuture<S, C, B, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    S::Error: fmt::Display + 'static,
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
    B: Body,
    B::Error: Into<BoxError>,
    R: Body,
{
    #[cold]
    fn refused(
        mut self: Pin<&mut Self>,
        response: Response<R>,
        retryability: Retryability,
    ) -> Option<<Self as Future>::Output> {
        let next = self.as_mut().project().call.fail(response, retryability);
        self.go_to(next)
    }

    #[cold]
    fn broke(mut self: Pin<&mut Self>, error: S::Error) -> Option<<Self as Future>::Output> {
        let next = self.as_mut().project().call.broke(error);
        self.go_to(next)
    }

    /// The way to the next attempt; or to the end.
    #[cold]
    #[expect(
        clippy::panic,
        reason = "as every future that is polled after completion"
    )]
    fn poll_between(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<<Self as Future>::Output>> {
        let mut this = self.as_mut().project();
        let next = match this.state.as_mut().project() {
            StateProj::Reading { failed, timeout } => {
                let read = match failed {
                    Some(failed) => ready!(failed.poll_read(cx, timeout, &this.call.policy)),
                    None => Read::Dropped,
                };
                match (read, failed.take()) {
                    (Read::InvalidToken, Some(failed)) => this.call.invalid_token(*failed),
                    (_, Some(failed)) => {
                        let (failure, wait, since) = (failed.failure, failed.wait, failed.since);
                        drop(failed);
                        this.call.wait(failure, wait, since)
                    }
                    (_, None) => this.call.line_up(),
                }
            }
            StateProj::Waiting { sleep, since } => {
                ready!(sleep.poll(cx));
                this.call.waited(*since);
                this.call.line_up()
            }
            StateProj::Queueing { turn } => match this.call.poll_turn(cx, turn) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => Next::Ready,
                Poll::Ready(Err(come_back)) => this.call.end_at_the_gate(come_back),
            },
            StateProj::Readying => match ready!(this.service.poll_ready(cx)) {
                Ok(()) if this.call.is_still_free_to_leave() => {
                    let request = this.call.next_request();
                    let _entered = this.call.observer.enter();
                    Next::Attempt(this.service.call(request))
                }
                Ok(()) => {
                    // The gate closed meanwhile; nothing ready is held while waiting.
                    *this.service = this.service.clone();
                    Next::Queue
                }
                Err(error) => this.call.never_ready(error),
            },
            StateProj::Attempting { .. } | StateProj::Done => {
                panic!("ResponseFuture polled after completion")
            }
        };
        Poll::Ready(self.go_to(next))
    }

    fn go_to(
        self: Pin<&mut Self>,
        next: Next<S::Future, R, S::Error>,
    ) -> Option<<Self as Future>::Output> {
        let mut this = self.project();
        this.state.set(match next {
            Next::Attempt(attempt) => State::Attempting { attempt },
            Next::Read(failed) => State::Reading {
                timeout: sleep_from(failed.since, this.call.reading_time(failed.since)),
                failed: Some(failed),
            },
            Next::Wait(wait, since) => State::Waiting {
                // Also where there is nothing to wait for: a timer takes part in tokio's
                // cooperative scheduling, so that no schedule of zeros can occupy a thread.
                sleep: sleep_from(since, wait),
                since,
            },
            Next::Queue => State::Queueing { turn: None },
            Next::Ready => State::Readying,
            Next::End(result) => {
                this.state.set(State::Done);
                return Some(result);
            }
        });
        None
    }
}

impl<S, C, B, R> fmt::Debug for ResponseFuture<S, C, B, R>
where
    S: Service<Request<ReplayBody<B>>>,
    C: MakeClassifier,
    R: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Attempting { .. } => "Attempting",
            State::Reading { .. } => "Reading",
            State::Waiting { .. } => "Waiting",
            State::Queueing { .. } => "Queueing",
            State::Readying => "Readying",
            State::Done => "Done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .field("attempts", &self.call.attempts)
            .finish_non_exhaustive()
    }
}

/// Where a step leads.
pub(super) enum Next<F, R: Body, E> {
    Attempt(F),
    Read(Box<FailedResponse<R>>),
    Wait(Duration, Instant),
    Queue,
    Ready,
    End(Result<Response<ResponseBody<R>>, E>),
}

fn sleep_from(start: Instant, wait: Duration) -> Sleep {
    // tokio's timer panics close to the end of time.
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

    let wait = wait.min(LONGEST);
    match start.checked_add(wait) {
        Some(end) => tokio::time::sleep_until(end),
        None => tokio::time::sleep(wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_to_the_end_of_time_is_one_that_a_timer_can_be_set_for() {
        let now = Instant::now();
        let mut longest = Duration::ZERO;
        let mut step = Duration::MAX;
        while !step.is_zero() {
            let more = longest.checked_add(step);
            longest = more
                .filter(|it| now.checked_add(*it).is_some())
                .unwrap_or(longest);
            step /= 2;
        }
        for wait in [longest, Duration::MAX] {
            let mut timer = tokio_test::task::spawn(sleep_from(now, wait));
            assert!(timer.poll().is_pending());
        }
    }
}
