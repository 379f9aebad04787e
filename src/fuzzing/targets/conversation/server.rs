//! The scripted server, and the bodies of both sides.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    Method, Request, Response,
    header::{DATE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep};
use tower_http_retry::ReplayBody;

use super::super::calendar::Date;
use super::script::{BodyStep, Call, Reply, ResponseScript, RetryAfter};

/// An attempt, as the server has seen it.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) method: Method,
    pub(super) key: Option<String>,
    pub(super) arrived_at: Instant,
    /// The part of the request body that was read.
    pub(super) received: Vec<u8>,
    /// The request body ended without an error.
    pub(super) is_whole: bool,
    pub(super) body_failed: bool,
    pub(super) answered_at: Instant,
}

/// Replies to the attempts of one call.
#[derive(Clone, Default)]
pub(super) struct Server {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    replies: VecDeque<Reply>,
    attempts: Vec<Attempt>,
}

impl Server {
    pub(super) fn begin(&self, call: &Call) {
        let mut state = self.lock();
        state.replies = call.replies.iter().cloned().collect();
        state.attempts.clear();
    }

    pub(super) fn attempts(&self) -> Vec<Attempt> {
        self.lock().attempts.clone()
    }

    pub(super) async fn answer(
        self,
        request: Request<ReplayBody<RequestBody>>,
    ) -> io::Result<Response<ReplyBody>> {
        let reply = self.lock().replies.pop_front().unwrap_or_else(Reply::ok);
        let (head, mut body) = request.into_parts();
        let key = head
            .headers
            .get("idempotency-key")
            .map(|key| key.to_str().unwrap_or("?").to_owned());
        let now = Instant::now();
        let mut attempt = Attempt {
            method: head.method,
            key,
            arrived_at: now,
            received: Vec::new(),
            is_whole: false,
            body_failed: false,
            answered_at: now,
        };
        while attempt.received.len() < reply.reads {
            match body.frame().await {
                Some(Ok(frame)) => attempt
                    .received
                    .extend(frame.into_data().expect("no trailers")),
                Some(Err(_)) => {
                    attempt.body_failed = true;
                    break;
                }
                None => {
                    attempt.is_whole = true;
                    break;
                }
            }
        }
        sleep(reply.latency).await;
        attempt.answered_at = Instant::now();
        let body_failed = attempt.body_failed;
        self.lock().attempts.push(attempt);
        if body_failed {
            return Err(io::Error::other("the request body has failed"));
        }
        let script = reply.result.map_err(io::Error::from)?;
        Ok(response(&script))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the server has not panicked")
    }
}

fn response(script: &ResponseScript) -> Response<ReplyBody> {
    let steps = script.body.iter().cloned().collect();
    let mut response = Response::new(ReplyBody { steps, wait: None });
    *response.status_mut() = script.status;
    let headers = response.headers_mut();
    let mut insert = |name, text: String| {
        headers.insert(name, text.try_into().expect("a valid value"));
    };
    match script.retry_after {
        RetryAfter::None => {}
        RetryAfter::Malformed => insert(RETRY_AFTER, "soon".into()),
        RetryAfter::Overflow => insert(RETRY_AFTER, "9".repeat(30)),
        RetryAfter::Seconds(seconds) => insert(RETRY_AFTER, seconds.to_string()),
        RetryAfter::Date(seconds, form) => {
            let date = Date {
                year: 2024,
                month: 2,
                day: 29,
                second_of_day: 86_300,
            };
            insert(DATE, date.format(form));
            let later = Date {
                second_of_day: date.second_of_day + seconds,
                ..date
            };
            insert(RETRY_AFTER, later.format(form));
        }
    }
    if script.has_invalid_token_header {
        insert(
            WWW_AUTHENTICATE,
            "Bearer realm=\"x\", error=\"invalid_token\"".into(),
        );
    }
    response
}

/// The caller's body.
pub(super) struct RequestBody {
    pub(super) chunks: VecDeque<Bytes>,
    pub(super) fails: bool,
    pub(super) has_exact_hint: bool,
}

impl RequestBody {
    pub(super) fn new(call: &Call) -> Self {
        let whole = Bytes::from(request_data(call.total()));
        let mut rest = whole.clone();
        Self {
            chunks: call
                .chunks
                .iter()
                .map(|length| rest.split_to(*length))
                .collect(),
            fails: call.body_fails,
            has_exact_hint: call.has_exact_hint,
        }
    }
}

pub(super) fn request_data(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(match self.chunks.pop_front() {
            Some(chunk) => Some(Ok(Frame::data(chunk))),
            None if self.fails => Some(Err(io::Error::other("the caller's body"))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty() && !self.fails
    }

    fn size_hint(&self) -> SizeHint {
        match self.has_exact_hint {
            true => SizeHint::with_exact(self.chunks.iter().map(|chunk| chunk.len() as u64).sum()),
            false => SizeHint::default(),
        }
    }
}

/// The server's body.
pub(super) struct ReplyBody {
    steps: VecDeque<BodyStep>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            return match self.steps.pop_front() {
                Some(BodyStep::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data.into())))),
                Some(BodyStep::Wait(time)) => {
                    self.wait = Some(Box::pin(sleep(time)));
                    continue;
                }
                Some(BodyStep::Stall) => {
                    self.steps.push_front(BodyStep::Stall);
                    Poll::Pending
                }
                Some(BodyStep::Fail) => {
                    Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
                }
                None => Poll::Ready(None),
            };
        }
    }
}
