//! The loop: attempt, classify, decide, read what failed, wait, get ready, send again.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use http::{Request, Response, StatusCode, header::RETRY_AFTER, response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::BoxError;
use tower_http::classify::{ClassifiedResponse, ClassifyResponse, MakeClassifier};
use tower_service::Service;

use crate::{
    backoff::Delays,
    body::{Peek, ReplayBody, ResponseBody, Upload},
    budget::Withdrawal,
    classify::{Retryability, RetryableFailure},
    gate::{Ticket, Turn},
    head::Head,
    invalid_token,
    observe::{Observer, Reason},
    outcome::{RetryOutcome, StopReason},
    policy::{Decision, Failure, RetryPolicy},
    retry_after::retry_after,
    transport,
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
    pub(crate) fn new(ready: &mut S, policy: Arc<RetryPolicy<C>>, request: Request<B>) -> Self {
        let started = Instant::now();
        let ticket = policy.gate.as_ref().map(|gate| {
            let latest = started.checked_add(policy.max_elapsed);
            Box::new(Ticket::new(gate, latest))
        });
        let (head, parts, body) = Head::keep(request);
        let (upload, body) = Upload::new(body, policy.replay_limit);
        let request = Request::from_parts(parts, body);
        let mut call = Call {
            classifier: None,
            observer: Observer::new(),
            policy,
            head,
            upload,
            ticket,
            delays: None,
            withdrawal: None,
            paid: false,
            started,
            attempts: 0,
            waited: Duration::ZERO,
        };
        let state = if call.may_leave(started) {
            call.leave(&request);
            let attempt = call.observer.in_attempt(|| ready.call(request));
            State::Attempting { attempt }
        } else {
            // What is ready is not kept from others while this one waits.
            *ready = ready.clone();
            call.observer.wait_for_first_attempt();
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
                    let result = ready!(this.call.observer.in_attempt(|| attempt.poll(cx)));
                    // What the attempt held, a permit perhaps, is let go first.
                    this.state.set(State::Done);
                    match result {
                        Ok(response) => this.call.answered(response),
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
                    this.call.waited += since.elapsed();
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
                        let service = &mut *this.service;
                        let attempt = this.call.observer.in_attempt(|| service.call(request));
                        Next::Attempt(attempt)
                    }
                    Ok(()) => {
                        // The gate closed meanwhile; nothing ready is held while waiting.
                        *this.service = this.service.clone();
                        Next::Queue
                    }
                    Err(error) => this.call.end_with_error(error, StopReason::NotRetryable),
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
#[expect(clippy::large_enum_variant, reason = "consumed where it is made")]
enum Next<F, R: Body, E> {
    Attempt(F),
    Read(Box<FailedResponse<R>>),
    Wait(Duration, Instant),
    Queue,
    Ready,
    End(Result<Response<ResponseBody<R>>, E>),
}

/// What all attempts of one request have in common.
struct Call<C: MakeClassifier, B> {
    policy: Arc<RetryPolicy<C>>,
    /// That of the attempt under way.
    classifier: Option<C::Classifier>,
    head: Head,
    upload: Upload<B>,
    observer: Observer,
    /// Where there is a rate gate.
    ticket: Option<Box<Ticket>>,
    /// Made before the first retry.
    delays: Option<Delays>,
    /// Paid for a retry that is not sent yet.
    withdrawal: Option<Withdrawal>,
    /// The attempt under way is a retry that was paid for.
    paid: bool,
    started: Instant,
    attempts: u32,
    waited: Duration,
}

impl<C, B> Call<C, B>
where
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
    B: Body,
    B::Error: Into<BoxError>,
{
    fn next_request(&mut self) -> Request<ReplayBody<B>> {
        let request = self.head.request(self.upload.again());
        self.leave(&request);
        request
    }

    /// An attempt begins.
    fn leave(&mut self, request: &Request<ReplayBody<B>>) {
        self.observer.attempt(request, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        self.paid = self.withdrawal.is_some();
        if let Some(withdrawal) = self.withdrawal.take() {
            withdrawal.spend();
        }
        self.classifier = Some(self.policy.classifier.make_classifier(request));
    }

    /// Whether the gate, if there is one, lets the request out at once.
    fn may_leave(&mut self, now: Instant) -> bool {
        let ticket = self.ticket.as_mut();
        ticket.is_none_or(|ticket| matches!(ticket.ask(now, None), Turn::Now(_)))
    }

    /// Whether a turn that came before the service got ready is still good.
    fn is_still_free_to_leave(&mut self) -> bool {
        let ticket = self.ticket.as_mut();
        ticket.is_none_or(|ticket| ticket.confirm(Instant::now()))
    }

    fn line_up<F, R: Body, E>(&self) -> Next<F, R, E> {
        match self.ticket {
            Some(_) => Next::Queue,
            None => Next::Ready,
        }
    }

    /// Waits for the turn at the gate; an error tells when to come back.
    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Option<Sleep>>,
    ) -> Poll<Result<(), Instant>> {
        let Some(ticket) = &mut self.ticket else {
            return Poll::Ready(Ok(()));
        };
        loop {
            match ticket.ask(Instant::now(), Some(cx.waker())) {
                Turn::Now(_) => return Poll::Ready(Ok(())),
                Turn::TooLate(come_back) => return Poll::Ready(Err(come_back)),
                Turn::Later(None) => return Poll::Pending,
                Turn::Later(Some(at)) => {
                    match timer.as_mut().as_pin_mut() {
                        Some(timer) if timer.deadline() == at => {}
                        Some(timer) => timer.reset(at),
                        None => timer.set(Some(tokio::time::sleep_until(at))),
                    }
                    if let Some(timer) = timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(cx));
                    }
                }
            }
        }
    }

    /// The gate would let the request out too late: the one answer that is the layer's own.
    fn end_at_the_gate<F, R: Body, E>(&mut self, come_back: Instant) -> Next<F, R, E> {
        let hint = come_back.saturating_duration_since(Instant::now());
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        // In whole seconds, and not too early.
        let seconds = hint.as_secs().saturating_add(1);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
        self.end_with_response(response, Some(StopReason::RateGated), Some(hint))
    }

    fn answered<F, R: Body, E>(&mut self, response: Response<R>) -> Next<F, R, E> {
        let failed = self.classify(&response);
        self.observer.answered(response.status(), failed.is_some());
        if !matches!(
            failed,
            Some(Retryability::IfIdempotent | Retryability::Always)
        ) {
            self.policy
                .spending()
                .inspect(|budget| budget.deposit(self.paid));
        }
        let Some(retryability) = failed else {
            self.tell_the_gate(&response, None);
            return self.end_with_response(response.map(ResponseBody::unread), None, None);
        };
        let since = Instant::now();
        let hint = retry_after(response.headers(), SystemTime::now());
        let invalid_token = invalid_token::in_header(response.headers());
        let rate_limited = response.status() == StatusCode::TOO_MANY_REQUESTS;
        let decision = self.decide(retryability, invalid_token, rate_limited, hint, since);
        self.tell_the_gate(&response, Some(decision));
        match decision {
            Decision::Stop(stop) => {
                self.end_with_response(response.map(ResponseBody::unread), Some(stop), hint)
            }
            Decision::RetryAfter(wait) => {
                let failure = Reason::Status(response.status());
                let (parts, body) = response.into_parts();
                Next::Read(Box::new(FailedResponse {
                    parts,
                    peek: Peek::new(body),
                    inspected: false,
                    drain: self.policy.drain_limit,
                    failure,
                    hint,
                    wait,
                    since,
                }))
            }
        }
    }

    fn broke<F, R: Body, E: fmt::Display + 'static>(&mut self, error: E) -> Next<F, R, E> {
        let kind = transport::kind(&error);
        self.observer.broke(kind);
        if let Some(ticket) = &mut self.ticket {
            ticket.lost();
        }
        let classifier = self.classifier.take();
        let retryability = match classifier.map(|it| it.classify_error(&error)) {
            // The caller's own error is the caller's, whatever it looks like.
            Some(class) if !self.upload.failed() => class.retryability(),
            _ => Retryability::Never,
        };
        let since = Instant::now();
        match self.decide(retryability, false, false, None, since) {
            Decision::Stop(stop) => self.end_with_error(error, stop),
            Decision::RetryAfter(wait) => {
                drop(error);
                self.wait(Reason::Error(kind), wait, since)
            }
        }
    }

    /// Tells the gate, if there is one, of the server's limit. A 429 closes it for as long as the server
    /// asks, or else for as long as a retry waits.
    fn tell_the_gate<R>(&mut self, response: &Response<R>, decision: Option<Decision>) {
        let Some(ticket) = &mut self.ticket else {
            return;
        };
        let policy = &self.policy;
        let wait = || match retry_after(response.headers(), SystemTime::now()) {
            Some(hint) if !hint.is_zero() => hint,
            _ => match decision {
                Some(Decision::RetryAfter(wait)) => wait,
                _ => policy.delays().next().unwrap_or_default(),
            },
        };
        ticket.answered(Instant::now(), response.status(), response.headers(), wait);
    }

    /// `None` where the response is no failure.
    fn classify<R>(&mut self, response: &Response<R>) -> Option<Retryability> {
        match self.classifier.take()?.classify_response(response) {
            ClassifiedResponse::Ready(Err(class)) => Some(class.retryability()),
            ClassifiedResponse::Ready(Ok(())) | ClassifiedResponse::RequiresEos(_) => None,
        }
    }

    /// Where the answer is to retry, the upload of the attempt that failed has been paused.
    fn decide(
        &mut self,
        retryability: Retryability,
        invalid_token: bool,
        rate_limited: bool,
        hint: Option<Duration>,
        since: Instant,
    ) -> Decision {
        let failure = Failure {
            retryability,
            invalid_token,
            retries: self.attempts.saturating_sub(1),
            may_be_repeated: self.head.may_be_repeated(),
            body_is_replayable: retryability != Retryability::Never && self.upload.pause(),
            rate_limited,
            hint,
            elapsed: since.saturating_duration_since(self.started),
        };
        let (policy, delays) = (&self.policy, &mut self.delays);
        let withdrawal = &mut self.withdrawal;
        policy.decide(
            failure,
            || delays.get_or_insert_with(|| policy.delays()).next(),
            || match policy.spending() {
                Some(budget) => {
                    *withdrawal = budget.withdraw();
                    withdrawal.is_some()
                }
                None => true,
            },
        )
    }

    /// How long a failed response may be read: not past the deadline, either.
    fn reading_time(&self, since: Instant) -> Duration {
        let elapsed = since.saturating_duration_since(self.started);
        let left = self.policy.max_elapsed.saturating_sub(elapsed);
        self.policy.inspect_timeout.min(left)
    }

    /// The failed response, if there was one, is gone: waits for the next attempt.
    fn wait<F, R: Body, E>(
        &mut self,
        failure: Reason,
        wait: Duration,
        since: Instant,
    ) -> Next<F, R, E> {
        self.upload.supersede();
        self.observer.retrying(failure, wait, self.attempts);
        Next::Wait(wait, since)
    }

    /// The failed response was to be retried, and its body forbids it.
    fn invalid_token<F, R: Body, E>(&mut self, failed: FailedResponse<R>) -> Next<F, R, E> {
        let response = Response::from_parts(failed.parts, failed.peek.into());
        self.end_with_response(response, Some(StopReason::InvalidToken), failed.hint)
    }

    fn end_with_response<F, R: Body, E>(
        &mut self,
        mut response: Response<ResponseBody<R>>,
        stop: Option<StopReason>,
        hint: Option<Duration>,
    ) -> Next<F, R, E> {
        let outcome = self.end(stop, hint);
        let extensions = response.extensions_mut();
        if outcome != RetryOutcome::FIRST_TRY {
            extensions.insert(outcome);
        } else if !extensions.is_empty() {
            // That of a layer further in, or of a call that a cache remembers.
            extensions.remove::<RetryOutcome>();
        }
        Next::End(Ok(response))
    }

    fn end_with_error<F, R: Body, E>(&mut self, error: E, stop: StopReason) -> Next<F, R, E> {
        self.end(Some(stop), None);
        Next::End(Err(error))
    }

    fn end(&mut self, stop: Option<StopReason>, retry_after: Option<Duration>) -> RetryOutcome {
        self.upload.release();
        self.withdrawal = None;
        let outcome = RetryOutcome {
            attempts: self.attempts,
            waited: self.waited,
            stop,
            retry_after,
        };
        if let Some(stop) = stop {
            self.observer.giving_up(stop, &outcome);
        }
        if let Some(handle) = self.head.outcome_handle() {
            handle.set(outcome);
        }
        outcome
    }
}

/// A response that is to be retried, while its body is looked into and read to its end.
struct FailedResponse<R: Body> {
    parts: response::Parts,
    peek: Peek<R>,
    inspected: bool,
    /// How many bytes may still be discarded.
    drain: usize,
    failure: Reason,
    hint: Option<Duration>,
    wait: Duration,
    /// When its head arrived.
    since: Instant,
}

enum Read {
    /// The body says so.
    InvalidToken,
    /// There is nothing more to learn or to gain from it.
    Dropped,
}

impl<R: Body> FailedResponse<R> {
    fn poll_read<C>(
        &mut self,
        cx: &mut Context<'_>,
        timeout: Pin<&mut Sleep>,
        policy: &RetryPolicy<C>,
    ) -> Poll<Read> {
        if self.poll_inspect(cx, policy).is_pending() {
            ready!(timeout.poll(cx));
            return Poll::Ready(self.inspect());
        }
        if !self.inspected {
            self.inspected = true;
            if let Read::InvalidToken = self.inspect() {
                return Poll::Ready(Read::InvalidToken);
            }
        }
        if self.peek.poll_discard(cx, &mut self.drain).is_pending() {
            ready!(timeout.poll(cx));
        }
        Poll::Ready(Read::Dropped)
    }

    fn poll_inspect<C>(&mut self, cx: &mut Context<'_>, policy: &RetryPolicy<C>) -> Poll<()> {
        if self.inspected {
            return Poll::Ready(());
        }
        self.peek.poll_keep(cx, policy.inspect_limit)
    }

    fn inspect(&self) -> Read {
        match invalid_token::in_body(&self.parts.headers, self.peek.kept()) {
            true => Read::InvalidToken,
            false => Read::Dropped,
        }
    }
}

fn sleep_from(start: Instant, wait: Duration) -> Sleep {
    match start.checked_add(wait) {
        Some(end) => tokio::time::sleep_until(end),
        None => tokio::time::sleep(wait),
    }
}
