//! An in-memory server that replies by script and records the requests.

use std::{
    io, mem,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Uri};
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service};

use super::message::{InnerResponse, response};

/// An inner service that replies by script and records the requests.
///
/// Clones share the script and the record. A request body is dropped unread.
pub(crate) struct ScriptedServer {
    shared: Arc<Shared>,
    latency: Duration,
    is_ready: bool,
}

struct Shared {
    start: Instant,
    /// The number of replies in the script, if it ends.
    script_len: Option<usize>,
    reply: Mutex<Box<dyn FnMut(usize) -> Reply + Send>>,
    received: Mutex<Vec<ReceivedRequest>>,
}

type Reply = Result<InnerResponse, BoxError>;

/// The head of a request, and the time from the creation of the server to the request.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedRequest {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) at: Duration,
}

impl ScriptedServer {
    /// Creates a server that gives each reply of `script` once, in order.
    ///
    /// A further request panics.
    pub(crate) fn new(script: impl IntoIterator<Item: IntoReply>) -> Self {
        let script = script.into_iter().map(|reply| Some(reply.into_reply()));
        let mut script: Vec<_> = script.collect();
        let script_len = Some(script.len());
        Self::with_script(script_len, move |n| script[n].take().unwrap())
    }

    /// Creates a server that replies to request `n`, counted from 0, with `reply(n)`.
    pub(crate) fn from_fn<R: IntoReply>(
        mut reply: impl FnMut(usize) -> R + Send + 'static,
    ) -> Self {
        Self::with_script(None, move |n| reply(n).into_reply())
    }

    fn with_script(
        script_len: Option<usize>,
        reply: impl FnMut(usize) -> Reply + Send + 'static,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                start: Instant::now(),
                script_len,
                reply: Mutex::new(Box::new(reply)),
                received: Mutex::default(),
            }),
            latency: Duration::ZERO,
            is_ready: false,
        }
    }

    /// Sets the time between a request and its reply.
    pub(crate) fn with_latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Returns the requests received so far.
    pub(crate) fn received(&self) -> Vec<ReceivedRequest> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Panics if the server received fewer requests than the script has replies.
    pub(crate) fn assert_script_completed(&self) {
        let received = self.received().len();
        assert_eq!(Some(received), self.shared.script_len, "too few requests");
    }
}

impl Clone for ScriptedServer {
    /// Creates a handle to the same server, which is not ready.
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            latency: self.latency,
            is_ready: false,
        }
    }
}

impl<B> Service<Request<B>> for ScriptedServer {
    type Response = InnerResponse;
    type Error = BoxError;
    type Future = BoxFuture<'static, Reply>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(mem::take(&mut self.is_ready), "called without being ready");
        let (shared, latency) = (self.shared.clone(), self.latency);
        let n = shared.record(request);
        let is_in_script = shared.script_len.is_none_or(|script_len| n < script_len);
        assert!(is_in_script, "one request too many");
        async move {
            // Even a sleep of zero may wait for the timer.
            if !latency.is_zero() {
                sleep(latency).await;
            }
            let mut reply = shared.reply.lock().unwrap();
            reply(n)
        }
        .boxed()
    }
}

impl Shared {
    /// Records a request and returns its number.
    fn record<B>(&self, request: Request<B>) -> usize {
        let (head, _) = request.into_parts();
        let mut received = self.received.lock().unwrap();
        received.push(ReceivedRequest {
            uri: head.uri,
            headers: head.headers,
            at: self.start.elapsed(),
        });
        received.len() - 1
    }
}

/// A reply in a script: a status, a response or an error.
pub(crate) trait IntoReply {
    fn into_reply(self) -> Result<InnerResponse, BoxError>;
}

impl IntoReply for u16 {
    fn into_reply(self) -> Reply {
        Ok(response(self))
    }
}

impl IntoReply for InnerResponse {
    fn into_reply(self) -> Reply {
        Ok(self)
    }
}

impl IntoReply for io::ErrorKind {
    fn into_reply(self) -> Reply {
        Err(io::Error::from(self).into())
    }
}

impl<T: IntoReply> IntoReply for Result<T, io::ErrorKind> {
    fn into_reply(self) -> Reply {
        match self {
            Ok(reply) => reply.into_reply(),
            Err(kind) => kind.into_reply(),
        }
    }
}

impl<T: IntoReply> IntoReply for Result<T, BoxError> {
    fn into_reply(self) -> Reply {
        self.and_then(T::into_reply)
    }
}
