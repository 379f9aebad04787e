//! One call: what its attempts have in common, and what each result leads to.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use http::{Extensions, Request, Response, StatusCode, header::RETRY_AFTER, request::Parts};
use http_body::Body;
use tokio::time::{Instant, Sleep};
use tower::BoxError;
use tower_http::classify::{ClassifiedResponse, ClassifyResponse, MakeClassifier};

use super::{discard::FailedResponse, future::Next, saved_head::SavedHead};
use crate::{
    backoff::Delays,
    body::{PeekedBody, ReplayBody, ReplaySource, ResponseBody},
    budget::Withdrawal,
    classify::{Retryability, RetryableFailure, invalid_token, transport},
    outcome::{GiveUpReason, RetryOutcome},
    policy::{Decision, Failure, RequestOptions, RetryPolicy},
    rate_gate::{Acquire, Permit},
    retry_after::retry_after,
    telemetry::{
        events::{GiveUpEvent, Reason, RetryEvent},
        trace::Observer,
    },
};

/// What all attempts of one request have in common.
pub(super) struct Call<C: MakeClassifier, B> {
    pub(super) policy: Arc<RetryPolicy<C>>,
    pub(super) observer: Observer,
    pub(super) head: SavedHead,
    pub(super) upload: ReplaySource<B>,
    /// That of the attempt under way.
    pub(super) classifier: Option<C::Classifier>,
    /// Where there is a rate gate.
    pub(super) permit: Option<Box<Permit>>,
    pub(super) started: Instant,
    pub(super) attempts: u32,
    pub(super) later: Option<Box<Later>>,
}

/// What a call needs once its first attempt has failed, or had to wait; most calls never do.
#[derive(Default)]
pub(super) struct Later {
    /// Of the first attempt, while it waits.
    held_back: Option<Box<Parts>>,
    delays: Option<Delays>,
    /// Paid for a retry that is not sent yet.
    withdrawal: Option<Withdrawal>,
    /// The attempt under way is a retry that was paid for.
    paid: bool,
    waited: Duration,
}

/// Where there is a gate, a permit for it.
#[inline]
pub(super) fn permit<C, B>(
    policy: &RetryPolicy<C>,
    request: &Request<B>,
    started: Instant,
) -> Option<Box<Permit>> {
    policy.gate.as_ref().map(|gate| {
        let options = RequestOptions::of(request.extensions());
        let latest = started.checked_add(policy.deadline(options));
        Box::new(Permit::new(gate, latest))
    })
}

impl<C, B> Call<C, B>
where
    C: MakeClassifier,
    C::FailureClass: RetryableFailure,
    B: Body,
    B::Error: Into<BoxError>,
{
    /// A call whose first attempt has to wait: its request is kept as it is.
    pub(super) fn waiting(
        policy: Arc<RetryPolicy<C>>,
        permit: Option<Box<Permit>>,
        request: Request<B>,
        started: Instant,
    ) -> Self {
        policy.meter.request();
        let head = SavedHead::keep(&request);
        let (parts, body) = request.into_parts();
        let (upload, _) = ReplaySource::new(body, policy.bytes_kept(head.options()));
        let later = Later {
            held_back: Some(Box::new(parts)),
            ..Later::default()
        };
        Self {
            observer: Observer::waiting(),
            classifier: None,
            policy,
            head,
            upload,
            permit,
            started,
            attempts: 0,
            later: Some(Box::new(later)),
        }
    }

    pub(super) fn next_request(&mut self) -> Request<ReplayBody<B>> {
        let held_back = self.later.as_mut().and_then(|it| it.held_back.take());
        #[expect(clippy::expect_used, reason = "there is no retry without a head")]
        let parts = held_back
            .map(|it| *it)
            .or_else(|| self.head.rebuild())
            .expect("rebuilt before, when the retry was decided");
        let mut request = Request::from_parts(parts, self.upload.replay_body());
        if let (Some(name), 1..) = (&self.policy.attempt_header, self.attempts) {
            let attempt = self.attempts.saturating_add(1);
            // A head that is full goes without.
            let _ = request.headers_mut().try_insert(name, attempt.into());
        }
        self.leave(&request);
        request
    }

    /// Whether the request can be sent again whole; if so, its upload is paused.
    fn prepare(&mut self) -> bool {
        self.head.shrink();
        // Rebuilt when it is sent: a request that waits should be small.
        self.upload.pause() && self.head.rebuild().is_some()
    }

    /// An attempt begins that waited.
    fn leave<T>(&mut self, request: &Request<T>) {
        if let Some(permit) = &mut self.permit {
            permit.depart();
        }
        self.policy.meter.attempt();
        self.observer.attempt(request, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        if let Some(later) = &mut self.later {
            let withdrawal = later.withdrawal.take();
            later.paid = withdrawal.is_some();
            if let Some(withdrawal) = withdrawal {
                withdrawal.spend();
            }
        }
        self.classifier = Some(self.policy.classifier.make_classifier(request));
    }

    /// Whether a turn that came before the service got ready is still good.
    pub(super) fn is_still_free_to_leave(&mut self) -> bool {
        let permit = self.permit.as_mut();
        permit.is_none_or(|permit| permit.revalidate(Instant::now()))
    }

    pub(super) fn line_up<F, R: Body, E>(&self) -> Next<F, R, E> {
        match self.permit {
            Some(_) => Next::Queue,
            None => Next::Ready,
        }
    }

    /// Waits for the turn at the gate; an error tells when to come back.
    pub(super) fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Option<Sleep>>,
    ) -> Poll<Result<(), Instant>> {
        let Some(permit) = &mut self.permit else {
            return Poll::Ready(Ok(()));
        };
        loop {
            match permit.poll_acquire(Instant::now(), cx.waker()) {
                Acquire::Granted(_) => return Poll::Ready(Ok(())),
                Acquire::Expired(come_back) => return Poll::Ready(Err(come_back)),
                Acquire::Wait(None) => return Poll::Pending,
                Acquire::Wait(Some(at)) => {
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
    pub(super) fn end_at_the_gate<F, R: Body, E>(&mut self, come_back: Instant) -> Next<F, R, E> {
        let hint = come_back.saturating_duration_since(Instant::now());
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        // In whole seconds, and not too early.
        let fraction = u64::from(hint.subsec_nanos() > 0);
        let seconds = hint.as_secs().saturating_add(fraction);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
        self.policy.meter.gate(self.policy.gate.as_ref());
        self.end_with_response(response, GiveUpReason::RateGated, Some(hint))
    }

    /// What the layer makes of a response; `None` where it is no failure.
    #[inline]
    pub(super) fn judge<R>(&mut self, response: &Response<R>) -> Option<Retryability> {
        let failed = self.classify(response);
        self.observer.answered(response.status(), failed.is_some());
        let to_be_retried = matches!(
            failed,
            Some(Retryability::IfIdempotent | Retryability::Always)
        );
        if let (Some(budget), false) = (self.policy.spending(), to_be_retried) {
            budget.deposit(self.later.as_ref().is_some_and(|later| later.paid));
            self.policy.meter.budget(budget);
        }
        failed
    }

    /// The response is no failure.
    #[inline]
    pub(super) fn succeed<R: Body>(&mut self, response: &mut Response<R>) {
        if self.permit.is_some() || self.later.is_some() {
            return self.succeed_late(response);
        }
        self.upload.release();
        self.pass_on(response.extensions_mut(), RetryOutcome::FIRST_ATTEMPT);
    }

    /// The same, after a retry or behind a gate.
    #[cold]
    fn succeed_late<R: Body>(&mut self, response: &mut Response<R>) {
        self.tell_the_gate(response, None);
        self.end(response.extensions_mut(), None, None);
    }

    /// The outcome goes into the extensions of the response, and to whoever has left a handle for it.
    #[inline]
    fn pass_on(&self, extensions: &mut Extensions, outcome: RetryOutcome) {
        if outcome != RetryOutcome::FIRST_ATTEMPT {
            extensions.insert(outcome);
        } else if !extensions.is_empty() {
            // That of a layer further in, or of a call that a cache remembers.
            extensions.remove::<RetryOutcome>();
        }
        if let Some(handle) = self.head.outcome_handle() {
            handle.set(outcome);
        }
    }

    pub(super) fn fail<F, R: Body, E>(
        &mut self,
        response: Response<R>,
        retryability: Retryability,
    ) -> Next<F, R, E> {
        let since = Instant::now();
        let hint = retry_after(response.headers(), SystemTime::now());
        let invalid_token = invalid_token::in_headers(response.headers());
        let failure = Reason::Status(response.status());
        let failed = Failure {
            invalid_token,
            hint,
            ..self.failure(failure, retryability, since)
        };
        let decision = self.decide(failed);
        self.tell_the_gate(&response, Some(decision));
        match decision {
            Decision::Stop(stop) => {
                self.end_with_response(response.map(ResponseBody::passthrough), stop, hint)
            }
            Decision::RetryAfter(wait) => {
                let (parts, body) = response.into_parts();
                Next::Read(Box::new(FailedResponse {
                    parts,
                    peek: PeekedBody::new(body),
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

    pub(super) fn broke<F, R: Body, E: fmt::Display + 'static>(
        &mut self,
        error: E,
    ) -> Next<F, R, E> {
        let kind = transport::classify_error(&error);
        self.observer.broke(kind);
        if let Some(permit) = &mut self.permit {
            permit.on_error();
        }
        let classifier = self.classifier.take();
        let retryability = match classifier.map(|it| it.classify_error(&error)) {
            // The caller's own error is the caller's, whatever it looks like.
            Some(class) if !self.upload.has_failed() => class.retryability(),
            _ => Retryability::Never,
        };
        let since = Instant::now();
        let failure = Reason::Error(kind);
        let failed = Failure {
            was_handed_back: transport::is_graceful_goaway(&error),
            ..self.failure(failure, retryability, since)
        };
        match self.decide(failed) {
            Decision::Stop(stop) => self.end_with_error(error, stop, failure),
            Decision::RetryAfter(wait) => {
                drop(error);
                self.wait(failure, wait, since)
            }
        }
    }

    /// The inner service will not get ready again: its error is final.
    pub(super) fn never_ready<F, R: Body, E: fmt::Display + 'static>(
        &mut self,
        error: E,
    ) -> Next<F, R, E> {
        let failure = Reason::Error(transport::classify_error(&error));
        self.end_with_error(error, GiveUpReason::NotRetryable, failure)
    }

    /// Tells the gate, if there is one, of the server's limit. A 429 closes it for as long as the server
    /// asks, or else for as long as a retry waits.
    #[inline]
    fn tell_the_gate<R>(&mut self, response: &Response<R>, decision: Option<Decision>) {
        let Some(permit) = &mut self.permit else {
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
        permit.on_response(Instant::now(), response.status(), response.headers(), wait);
        policy.meter.gate(policy.gate.as_ref());
    }

    /// `None` where the response is no failure.
    #[inline]
    fn classify<R>(&mut self, response: &Response<R>) -> Option<Retryability> {
        match self.classifier.take()?.classify_response(response) {
            ClassifiedResponse::Ready(Err(class)) => Some(class.retryability()),
            ClassifiedResponse::Ready(Ok(())) | ClassifiedResponse::RequiresEos(_) => None,
        }
    }

    /// What is known of a failure whatever it is. Where it may be retried, the upload is paused.
    fn failure(&mut self, reason: Reason, retryability: Retryability, since: Instant) -> Failure {
        Failure {
            reason,
            options: self.head.options(),
            retryability,
            invalid_token: false,
            retries: self.attempts.saturating_sub(1),
            may_be_repeated: self.head.may_be_repeated(),
            is_replayable: retryability != Retryability::Never && self.prepare(),
            was_handed_back: false,
            hint: None,
            elapsed: since.saturating_duration_since(self.started),
        }
    }

    fn decide(&mut self, failure: Failure) -> Decision {
        let policy = &self.policy;
        let Later {
            delays, withdrawal, ..
        } = &mut **self.later.get_or_insert_default();
        policy.decide(
            failure,
            || delays.get_or_insert_with(|| policy.delays()).next(),
            || match policy.spending() {
                Some(budget) => {
                    *withdrawal = budget.try_withdraw();
                    policy.meter.budget(budget);
                    withdrawal.is_some()
                }
                None => true,
            },
        )
    }

    /// A wait has ended.
    pub(super) fn waited(&mut self, since: Instant) {
        self.later.get_or_insert_default().waited += since.elapsed();
    }

    /// How long a failed response may be read: not past the deadline, either.
    pub(super) fn reading_time(&self, since: Instant) -> Duration {
        let elapsed = since.saturating_duration_since(self.started);
        let deadline = self.policy.deadline(self.head.options());
        let left = deadline.saturating_sub(elapsed);
        self.policy.discard_timeout.min(left)
    }

    /// The failed response, if there was one, is gone: waits for the next attempt.
    pub(super) fn wait<F, R: Body, E>(
        &mut self,
        failure: Reason,
        wait: Duration,
        since: Instant,
    ) -> Next<F, R, E> {
        self.upload.supersede();
        let event = RetryEvent {
            failure,
            attempt: self.attempts,
            delay: wait,
        };
        self.observer.retrying(&self.policy, event);
        Next::Wait(wait, since)
    }

    /// The failed response was to be retried, and its body forbids it.
    pub(super) fn invalid_token<F, R: Body, E>(
        &mut self,
        failed: FailedResponse<R>,
    ) -> Next<F, R, E> {
        let response = Response::from_parts(failed.parts, failed.peek.into());
        self.end_with_response(response, GiveUpReason::InvalidToken, failed.hint)
    }

    fn end_with_response<F, R: Body, E>(
        &mut self,
        mut response: Response<ResponseBody<R>>,
        stop: GiveUpReason,
        hint: Option<Duration>,
    ) -> Next<F, R, E> {
        let failure = Reason::Status(response.status());
        self.end(response.extensions_mut(), Some((stop, failure)), hint);
        Next::End(Ok(response))
    }

    fn end_with_error<F, R: Body, E>(
        &mut self,
        error: E,
        stop: GiveUpReason,
        failure: Reason,
    ) -> Next<F, R, E> {
        self.end(&mut Extensions::new(), Some((stop, failure)), None);
        Next::End(Err(error))
    }

    /// The call ends, and whoever watches hears of it.
    #[cold]
    fn end(
        &mut self,
        extensions: &mut Extensions,
        failure: Option<(GiveUpReason, Reason)>,
        retry_after: Option<Duration>,
    ) {
        self.upload.release();
        // Also where the future is kept, others may leave.
        self.permit = None;
        let later = self.later.take();
        let outcome = RetryOutcome {
            attempts: self.attempts,
            waited: later.map_or(Duration::ZERO, |later| later.waited),
            stop: failure.map(|(stop, _)| stop),
            retry_after,
        };
        if let Some((stop, failure)) = failure {
            let event = GiveUpEvent {
                failure,
                stop,
                outcome,
            };
            self.observer.giving_up(&self.policy, event);
        }
        self.pass_on(extensions, outcome);
    }
}

/// A call that does not come to its end leaves word of how far it came.
impl<C: MakeClassifier, B> Drop for Call<C, B> {
    #[inline]
    fn drop(&mut self) {
        if let Some(handle) = self.head.outcome_handle() {
            handle.get_or_insert_with(|| RetryOutcome {
                attempts: self.attempts,
                waited: self.later.as_ref().map_or(Duration::ZERO, |it| it.waited),
                ..RetryOutcome::NOT_SENT
            });
        }
    }
}
