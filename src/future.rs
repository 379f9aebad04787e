//! The loop: attempt, classify, decide, read what failed, wait, get ready, send again.

mod call;

mod failed;

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

use self::{
    call::Call,
    failed::{FailedResponse, Read},
};
use crate::{
    body::{ReplayBody, ResponseBody},
    classify::RetryableFailure,
    policy::RetryPolicy,
};

pub use crate::error_for_status::ErrorForStatusFuture;

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
    pub(crate) fn new(ready: &mut S, policy: Arc<RetryPolicy<C>>, request: Request<B>) -> Self {
        let started = Instant::now();
        let mut call = Call::new(policy, &request, started);
        let state = if call.may_leave(started) {
            call.leave(&request);
            let request = request.map(|body| call.share(body));
            let _entered = call.observer.enter();
            let attempt = ready.call(request);
            State::Attempting { attempt }
        } else {
            // What is ready is not kept from others while this one waits.
            *ready = ready.clone();
            call.hold_back(request);
            State::Queueing { turn: None }
        };
        Self {
            state,
            // A clone made after the call can have nothing of the readiness that was used up.
            service: ready.clone(),
            call,
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

    #[expect(
        clippy::panic,
        reason = "as every future that is polled after completion"
    )]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Attempting { attempt } => {
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
                                return Poll::Ready(Ok(response.map(ResponseBody::unread)));
                            }
                            Some(retryability) => this.call.fail(response, retryability),
                        },
                        Err(error) => this.call.broke(error),
                    }
                }
                StateProj::Reading { failed, timeout } => {
                    let read = match failed {
                        Some(failed) => ready!(failed.poll_read(cx, timeout, &this.call.policy)),
                        None => Read::Dropped,
                    };
                    match (read, failed.take()) {
                        (Read::InvalidToken, Some(failed)) => this.call.invalid_token(*failed),
                        (_, Some(failed)) => {
                            let (failure, wait, since) =
                                (failed.failure, failed.wait, failed.since);
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
                StateProj::Done => panic!("ResponseFuture polled after completion"),
            };
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
                    return Poll::Ready(result);
                }
            });
        }
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
enum Next<F, R: Body, E> {
    Attempt(F),
    Read(Box<FailedResponse<R>>),
    Wait(Duration, Instant),
    Queue,
    Ready,
    End(Result<Response<ResponseBody<R>>, E>),
}

fn sleep_from(start: Instant, wait: Duration) -> Sleep {
    match start.checked_add(wait) {
        Some(end) => tokio::time::sleep_until(end),
        None => tokio::time::sleep(wait),
    }
}
