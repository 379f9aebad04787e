//! The least that such a layer can do, to see how much of the rest is left to be saved.
//!
//! It reads the clock, copies the text of the head into one buffer, gives the request a body of another
//! type, and keeps all that beside the inner future, with a share of a policy and a clone of the
//! service. It neither keeps the body, nor classifies, nor retries.

use std::{
    future::Future,
    hint::black_box,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Uri};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

#[derive(Clone)]
pub(crate) struct Floor<S> {
    inner: S,
    policy: Arc<()>,
}

impl<S> Floor<S> {
    pub(crate) fn new(inner: S) -> Self {
        let policy = Arc::new(());
        Self { inner, policy }
    }
}

impl<S: Clone, B> Service<Request<B>> for Floor<S>
where
    S: Service<Request<Sent<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let started = Instant::now();
        let head = copy(request.uri(), request.headers());
        let attempt = self.inner.call(request.map(Sent));
        ResponseFuture {
            attempt: Some(attempt),
            kept: (head, started, self.inner.clone(), self.policy.clone()),
        }
    }
}

fn copy(uri: &Uri, headers: &HeaderMap) -> Vec<u8> {
    let mut text = Vec::with_capacity(128 + 64 * headers.len());
    text.extend_from_slice(uri.scheme_str().unwrap_or_default().as_bytes());
    text.extend_from_slice(uri.authority().map_or("", |it| it.as_str()).as_bytes());
    text.extend_from_slice(uri.path_and_query().map_or("", |it| it.as_str()).as_bytes());
    for (name, value) in headers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(value.as_bytes());
    }
    text
}

pin_project! {
    pub(crate) struct ResponseFuture<F, S> {
        #[pin]
        attempt: Option<F>,
        kept: (Vec<u8>, Instant, S, Arc<()>),
    }
}

impl<F: Future, S> Future for ResponseFuture<F, S> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let attempt = this.attempt.as_mut().as_pin_mut();
        let result = ready!(attempt.expect("not polled after completion").poll(cx));
        this.attempt.set(None);
        black_box(this.kept);
        Poll::Ready(result)
    }
}

/// The caller's body, as a type of the layer's own.
pub(crate) struct Sent<B>(B);

impl<B: Body + Unpin> Body for Sent<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
