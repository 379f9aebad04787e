//! The future of the retry service: a state machine that carries out the steps of its session.

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
    discard::{DiscardingResponse, Inspection, Purpose},
    saved_head::SavedHead,
    session::{self, ResponseStep, Session, Step},
};
use crate::{
    body::{ReplayBody, ReplaySource, ResponseBody},
    classify::{RetryableFailure, transport},
    outcome::{GiveUpReason, OutcomeHandle},
    policy::{RetryPolicy, idempotency},
    rate_gate::Permit,
    telemetry::Telemetry,
};

pin_project! {
    /// The future of [`Retry`](crate::Retry): all attempts of one request.
    ///
    /// Dropping the future cancels the attempt in flight, the delay, and an upload in progress.
    ///
    /// # Panics
    ///
    /// Panics if polled after completion, or if it needs to sleep outside of a tokio runtime with the
    /// timer enabled.
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
        session: Session<C, B>,
        // The last failed response, if it was small enough to be buffered whole: returned if the retry
        // cannot be sent.
        last_response: Option<Box<DiscardingResponse<R>>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R>
    where
        R: Body,
    {
        // The inner service processes the request.
        // => Discarding, BackingOff or Done
        Attempting { #[pin] attempt: F },
        // The attempt failed; its response is inspected, and drained if the request will be retried.
        // => BackingOff or Done
        Discarding { response: Option<Box<DiscardingResponse<R>>>, #[pin] timeout: Sleep },
        // The failed attempt has been discarded.
        // => Queued or PollingReady
        BackingOff { #[pin] sleep: Sleep, failed_at: Instant },
        // Queued at the rate gate; the head of the queue holds a timer.
        // => PollingReady or Done
        Queued { #[pin] timer: Option<Sleep> },
        // Polling `poll_ready` of the inner service.
        // => Attempting, Queued or Done
        PollingReady,
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
    /// Sends the first attempt on `service`, which is ready, and keeps a clone for retries.
    #[inline]
    pub(super) fn new(
        service: &mut S,
        policy: Arc<RetryPolicy<C>>,
        mut request: Request<B>,
    ) -> Self {
        if let Some(make) = &policy.config.idempotency_key {
            request = idempotency::apply_key(&**make, request);
        }
        if let Some(handle) = request.extensions().get::<OutcomeHandle>() {
            handle.clear();
        }
        let started = Instant::now();
        let mut permit = session::new_permit(&policy.config, &request, started);
        if permit
            .as_mut()
            .is_some_and(|permit| !permit.try_acquire(started))
        {
            return Self::new_queued(service, policy, permit, request, started);
        }
        // PERF: the fields are built separately and moved into `Self` once (bench `overhead`, GET).
        let head = SavedHead::from_request(&request);
        let mut telemetry = Telemetry::new(&policy.config);
        let classifier = session::begin_attempt(&policy, &mut telemetry, &request, 0);
        let mut body = ReplaySource::empty();
        let mut empty = None;
        let request = if request.body().is_end_stream() {
            request.map(|body| {
                // PERF: the empty body is dropped after the head has been moved, so that the two
                // moves of the request merge (bench `overhead`, GET).
                empty = Some(body);
                ReplayBody::default()
            })
        } else {
            request.map(|original| {
                let limit = policy.config.replay_limit_for(head.options());
                let (source, first) = ReplaySource::new(original, limit);
                body = source;
                first
            })
        };
        let attempt = {
            let _entered = telemetry.enter();
            service.call(request)
        };
        Self {
            state: State::Attempting { attempt },
            // Cloned after `call`, which has consumed the readiness.
            service: service.clone(),
            session: Session {
                policy,
                telemetry,
                head,
                body,
                classifier: Some(classifier),
                permit,
                started,
                attempts: 1,
                finished: false,
                retry: None,
            },
            last_response: None,
        }
    }

    #[cold]
    fn new_queued(
        service: &mut S,
        policy: Arc<RetryPolicy<C>>,
        permit: Option<Box<Permit>>,
        request: Request<B>,
        started: Instant,
    ) -> Self {
        // Release the readiness, which may hold a concurrency permit, while queued.
        *service = service.clone();
        Self {
            state: State::Queued { timer: None },
            service: service.clone(),
            session: Session::new_queued(policy, permit, request, started),
            last_response: None,
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
            let output = match this.state.as_mut().project() {
                StateProj::Attempting { attempt } => {
                    let result = {
                        let _entered = this.session.enter();
                        ready!(attempt.poll(cx))
                    };
                    // Drop the attempt first: it may hold a concurrency permit.
                    this.state.set(State::Done);
                    match result {
                        Ok(mut response) => match this.session.on_response(&mut response) {
                            ResponseStep::Return => {
                                return Poll::Ready(Ok(response.map(ResponseBody::passthrough)));
                            }
                            step => self.as_mut().inspect(response, step),
                        },
                        Err(error) => self.as_mut().fail(error),
                    }
                }
                _ => ready!(self.as_mut().poll_retry(cx)),
            };
            if let Some(output) = output {
                return Poll::Ready(output);
            }
        }
    }
}

/// The path of a request whose first attempt failed or was queued. Each function makes one transition,
/// and returns the output if that is to `Done`.
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
    fn inspect(
        self: Pin<&mut Self>,
        response: Response<R>,
        step: ResponseStep,
    ) -> Option<<Self as Future>::Output> {
        let mut this = self.project();
        let (failure, purpose) = match step {
            ResponseStep::Discard(failure) => (failure, Purpose::Retry),
            ResponseStep::Inspect(failure) => (failure, Purpose::Return),
            ResponseStep::Return => return Some(Ok(response.map(ResponseBody::passthrough))),
        };
        let timeout = this.session.discard_timeout(failure.failed_at);
        let response = DiscardingResponse::new(response, failure, purpose, this.session.config());
        this.state.set(State::Discarding {
            response: Some(Box::new(response)),
            timeout: sleep_until_saturating(failure.failed_at, timeout),
        });
        None
    }

    #[cold]
    fn fail(mut self: Pin<&mut Self>, error: S::Error) -> Option<<Self as Future>::Output> {
        let this = self.as_mut().project();
        if transport::is_load_shed(&error) {
            if let Some(last) = this.last_response.take() {
                this.session.on_shed(&error);
                return Some(Ok(Self::give_up_with_last_response(this.session, *last)));
            }
        }
        match self.as_mut().project().session.on_error(&error) {
            None => Some(Err(error)),
            Some(step) => {
                // The error is gone before the delay starts, as a failed response is.
                drop(error);
                self.transition(step);
                None
            }
        }
    }

    #[cold]
    fn poll_retry(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<<Self as Future>::Output>> {
        let mut this = self.as_mut().project();
        let step = match this.state.as_mut().project() {
            StateProj::Discarding { response, timeout } => {
                let Some(discarding) = response else {
                    polled_after_completion()
                };
                let inspection =
                    ready!(discarding.poll_discard(cx, timeout, this.session.config()));
                match response.take() {
                    Some(response) => return Poll::Ready(self.inspected(response, inspection)),
                    None => polled_after_completion(),
                }
            }
            StateProj::BackingOff { sleep, failed_at } => {
                ready!(sleep.poll(cx));
                this.session.on_backoff_elapsed(*failed_at)
            }
            StateProj::Queued { timer } => match ready!(this.session.poll_permit(cx, timer)) {
                Ok(()) => Step::PollReady,
                Err(available_at) => {
                    let response = this.session.reject_rate_gated(available_at);
                    this.state.set(State::Done);
                    return Poll::Ready(Some(Ok(response.map(|()| ResponseBody::empty()))));
                }
            },
            StateProj::PollingReady => return self.poll_ready(cx),
            StateProj::Attempting { .. } | StateProj::Done => polled_after_completion(),
        };
        self.transition(step);
        Poll::Ready(None)
    }

    fn inspected(
        mut self: Pin<&mut Self>,
        response: Box<DiscardingResponse<R>>,
        inspection: Inspection,
    ) -> Option<<Self as Future>::Output> {
        let mut this = self.as_mut().project();
        let failure = response.failure;
        if let (Inspection::Passed, Purpose::Retry) = (&inspection, response.purpose) {
            let step = this.session.on_discarded(failure, &response.parts);
            *this.last_response = response.is_self_contained().then_some(response);
            self.transition(step);
            return None;
        }
        let mut response = response.into_response();
        let reason = match inspection {
            Inspection::InvalidToken => GiveUpReason::InvalidToken,
            Inspection::Passed => GiveUpReason::NotRetryable,
        };
        this.session.give_up(reason, failure, &mut response);
        this.state.set(State::Done);
        Some(Ok(response))
    }

    fn poll_ready(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<<Self as Future>::Output>> {
        let mut this = self.project();
        match ready!(this.service.poll_ready(cx)) {
            Ok(()) if this.session.confirm_permit() => {
                let request = this.session.next_request();
                let attempt = {
                    let _entered = this.session.enter();
                    this.service.call(request)
                };
                this.state.set(State::Attempting { attempt });
                Poll::Ready(None)
            }
            Ok(()) => {
                // The gate has closed; release the readiness while queued.
                *this.service = this.service.clone();
                this.state.set(State::Queued { timer: None });
                Poll::Ready(None)
            }
            Err(error) => {
                this.state.set(State::Done);
                Poll::Ready(Some(match this.last_response.take() {
                    Some(last) => Ok(Self::give_up_with_last_response(this.session, *last)),
                    None => {
                        this.session.on_ready_error(&error);
                        Err(error)
                    }
                }))
            }
        }
    }

    /// The retry cannot be sent: returns the failed response before it.
    fn give_up_with_last_response(
        session: &mut Session<C, B>,
        last: DiscardingResponse<R>,
    ) -> Response<ResponseBody<R>> {
        let failure = last.failure;
        let mut response = last.into_response();
        session.give_up(GiveUpReason::ReadinessFailed, failure, &mut response);
        response
    }

    fn transition(self: Pin<&mut Self>, step: Step) {
        self.project().state.set(match step {
            Step::BackOff(failure) => State::BackingOff {
                // A timer even for a delay of zero: it takes part in tokio's cooperative scheduling,
                // so that a backoff of zeros cannot occupy a thread.
                sleep: sleep_until_saturating(failure.failed_at, failure.delay),
                failed_at: failure.failed_at,
            },
            Step::AcquirePermit => State::Queued { timer: None },
            Step::PollReady => State::PollingReady,
        });
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
            State::Discarding { .. } => "Discarding",
            State::BackingOff { .. } => "BackingOff",
            State::Queued { .. } => "Queued",
            State::PollingReady => "PollingReady",
            State::Done => "Done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .field("attempts", &self.session.attempts)
            .finish_non_exhaustive()
    }
}

#[expect(
    clippy::panic,
    reason = "futures may panic when polled after completion"
)]
fn polled_after_completion() -> ! {
    panic!("ResponseFuture polled after completion")
}

fn sleep_until_saturating(start: Instant, delay: Duration) -> Sleep {
    // tokio's timer panics on deadlines close to the maximum of `Instant`.
    const MAX_SLEEP: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

    let delay = delay.min(MAX_SLEEP);
    match start.checked_add(delay) {
        Some(end) => tokio::time::sleep_until(end),
        None => tokio::time::sleep(delay),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sleep_until_saturating_accepts_any_delay() {
        let now = Instant::now();
        let mut longest = Duration::ZERO;
        let mut step = Duration::MAX;
        while !step.is_zero() {
            let more = longest.checked_add(step);
            longest = more
                .filter(|delay| now.checked_add(*delay).is_some())
                .unwrap_or(longest);
            step /= 2;
        }
        for delay in [longest, Duration::MAX] {
            let mut timer = tokio_test::task::spawn(sleep_until_saturating(now, delay));
            assert!(timer.poll().is_pending());
        }
    }
}
