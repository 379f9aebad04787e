//! Callers at one rate gate: in order of arrival, not while it is closed, and all are answered.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::Empty;
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, Service, service_fn};
use tower_http_retry::{
    GiveUpReason, RateGate, ReplayBody, RequestOptions, RetryLayer, RetryOutcome, RetryPolicy,
    backoff_fn,
};

use super::runtime::block_on;

/// Timers have a resolution of a millisecond.
const TICK: Duration = Duration::from_millis(2);

/// Decodes callers, and the replies of a server.
pub fn rate_gate(data: &[u8]) {
    if let Ok(script) = Script::any(&mut Unstructured::new(data)) {
        block_on(run(script));
    }
}

#[derive(Debug)]
struct Script {
    max_closed: Duration,
    max_retries: u32,
    backoff: Duration,
    callers: Vec<Caller>,
    replies: Vec<Reply>,
}

#[derive(Clone, Copy, Debug)]
struct Caller {
    arrives_after: Duration,
    max_elapsed: Duration,
    cancelled_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Reply {
    latency: Duration,
    /// `None` for an error.
    status: Option<StatusCode>,
    retry_after: Option<u64>,
    /// Limit, remaining, and reset in seconds.
    quota: Option<[u64; 3]>,
}

impl Script {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let max_closed = Duration::from_secs(*u.choose(&[60, 1, 5, 0, 100_000_000_000])?);
        let callers = (0..u.int_in_range(1..=20)?)
            .map(|_| Caller::any(u))
            .collect::<Result<_>>()?;
        let replies = (0..u.int_in_range(0..=30)?)
            .map(|_| Reply::any(u))
            .collect::<Result<_>>()?;
        Ok(Self {
            max_closed,
            max_retries: u.int_in_range(0..=3)?,
            backoff: Duration::from_millis(u.int_in_range(0..=500)?),
            callers,
            replies,
        })
    }
}

impl Caller {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let arrives_after = if u.arbitrary()? {
            0
        } else {
            u.int_in_range(0..=3000)?
        };
        let cancelled = u.ratio(1, 5)?;
        let cancelled_after = if cancelled {
            Some(u.int_in_range(0..=5000)?)
        } else {
            None
        };
        Ok(Self {
            arrives_after: Duration::from_millis(arrives_after),
            max_elapsed: Duration::from_millis(u.int_in_range(0..=60_000)?),
            cancelled_after: cancelled_after.map(Duration::from_millis),
        })
    }
}

impl Reply {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let status = match u.int_in_range(0..=7)? {
            0..=2 => Some(StatusCode::OK),
            3..=5 => Some(StatusCode::TOO_MANY_REQUESTS),
            6 => Some(StatusCode::INTERNAL_SERVER_ERROR),
            _ => None,
        };
        let quota = if u.ratio(1, 3)? {
            let limit = u.int_in_range(1..=100)?;
            Some([limit, u.int_in_range(0..=limit)?, u.int_in_range(0..=100)?])
        } else {
            None
        };
        Ok(Self {
            latency: Duration::from_millis(u.int_in_range(0..=1000)?),
            status,
            retry_after: if u.arbitrary()? {
                Some(u.int_in_range(0..=70)?)
            } else {
                None
            },
            quota,
        })
    }

    fn response(self, status: StatusCode) -> Response<Empty<Bytes>> {
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some([limit, remaining, reset]) = self.quota {
            headers.insert("ratelimit-limit", limit.into());
            headers.insert("ratelimit-remaining", remaining.into());
            headers.insert("ratelimit-reset", reset.into());
        }
        response
    }
}

/// The state of the server.
struct Server {
    script: Script,
    /// The number of attempts so far.
    attempts: usize,
    /// The last caller whose first attempt has arrived.
    last_first: Option<usize>,
    /// The number of attempts of each caller.
    sent: Vec<usize>,
    started: Vec<Instant>,
    closed_until: Instant,
}

impl Server {
    fn on_request(&mut self, caller: usize) -> Reply {
        let now = Instant::now();
        assert!(
            now >= self.closed_until,
            "sent while the gate is closed: {:?}",
            self.script
        );
        let deadline = self.started[caller] + self.script.callers[caller].max_elapsed;
        assert!(
            now <= deadline + TICK,
            "sent after the deadline: {:?}",
            self.script
        );
        if self.sent[caller] == 0 {
            let in_order = self.last_first.is_none_or(|last| last < caller);
            assert!(
                in_order,
                "{caller} after {:?}: {:?}",
                self.last_first, self.script
            );
            self.last_first = Some(caller);
        }
        self.sent[caller] += 1;
        self.attempts += 1;
        let ok = Reply {
            latency: Duration::ZERO,
            status: Some(StatusCode::OK),
            retry_after: None,
            quota: None,
        };
        self.script
            .replies
            .get(self.attempts - 1)
            .copied()
            .unwrap_or(ok)
    }

    fn on_reply(&mut self, reply: Reply) {
        if reply.status == Some(StatusCode::TOO_MANY_REQUESTS) {
            let seconds = reply.retry_after.filter(|seconds| *seconds > 0);
            let closed_for = seconds.map_or(self.script.backoff, Duration::from_secs);
            let closed_until = Instant::now() + closed_for.min(self.script.max_closed);
            self.closed_until = self.closed_until.max(closed_until);
        }
    }
}

fn lock(server: &Mutex<Server>) -> MutexGuard<'_, Server> {
    server.lock().expect("the server has not panicked")
}

async fn run(script: Script) {
    let gate = RateGate::with_max_closed(script.max_closed);
    let (backoff, callers) = (script.backoff, script.callers.clone());
    let policy = RetryPolicy::new()
        .rate_gate(gate.clone())
        .max_retries(script.max_retries)
        .backoff(backoff_fn(move || std::iter::repeat(backoff)))
        .no_budget();
    let server = Arc::new(Mutex::new(Server {
        sent: vec![0; callers.len()],
        started: Vec::new(),
        script,
        attempts: 0,
        last_first: None,
        closed_until: Instant::now(),
    }));
    let inner = service_fn({
        let server = server.clone();
        move |request: Request<ReplayBody<Empty<Bytes>>>| {
            let server = server.clone();
            let caller: usize = *request
                .extensions()
                .get()
                .expect("the number of the caller");
            let reply = lock(&server).on_request(caller);
            async move {
                sleep(reply.latency).await;
                lock(&server).on_reply(reply);
                let status = reply.status.ok_or(io::ErrorKind::ConnectionReset)?;
                Ok::<_, io::Error>(reply.response(status))
            }
        }
    });
    let mut service = RetryLayer::new(policy).layer(inner);
    let mut calls = Vec::new();
    for (number, caller) in callers.iter().enumerate() {
        sleep(caller.arrives_after).await;
        let mut request = Request::new(Empty::new());
        request.extensions_mut().insert(number);
        request
            .extensions_mut()
            .insert(RequestOptions::new().max_elapsed(caller.max_elapsed));
        lock(&server).started.push(Instant::now());
        let call = tokio::spawn(service.call(request));
        if let Some(after) = caller.cancelled_after {
            let abort = call.abort_handle();
            tokio::spawn(async move {
                sleep(after).await;
                abort.abort();
            });
        }
        calls.push(call);
        // A call joins the queue when it is polled.
        tokio::task::yield_now().await;
    }
    for (number, call) in calls.into_iter().enumerate() {
        let answered = timeout(Duration::from_secs(3600), call)
            .await
            .expect("a call that ends");
        match answered {
            Ok(Ok(response)) => check_response(&lock(&server), number, response),
            Ok(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
                assert!(callers[number].cancelled_after.is_some());
            }
        }
    }
    assert_eq!(gate.queue_len(), 0);
}

fn check_response<B>(server: &Server, caller: usize, response: Response<B>) {
    let outcome = RetryOutcome::from_response(&response);
    assert_eq!(outcome.attempts() as usize, server.sent[caller]);
    if outcome.give_up_reason() == Some(GiveUpReason::RateGated) {
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let retry_after = outcome.retry_after().expect("the time until the permit");
        let max_closed = server.script.max_closed.min(Duration::from_secs(3600));
        // At most a closure, and the other callers at the lowest rate.
        let longest = max_closed + Duration::from_secs(5) * server.script.callers.len() as u32;
        assert!(
            retry_after <= longest,
            "{retry_after:?} after {:?}",
            server.script
        );
    }
}
