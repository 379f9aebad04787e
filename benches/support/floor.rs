//! A lower bound for the overhead of a retry layer.
//!
//! It reads the clock, copies the text of the head into one buffer and wraps the request body in another
//! type. It stores these next to the inner future, with a reference to a policy and a clone of the
//! service. It does not buffer the body, classify the response or retry.

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
    S: Service<Request<WrappedBody<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let started = Instant::now();
        let head = copy_head(request.uri(), request.headers());
        let attempt = self.inner.call(request.map(WrappedBody));
        ResponseFuture {
            attempt: Some(attempt),
            saved: (head, started, self.inner.clone(), self.policy.clone()),
        }
    }
}

fn copy_head(uri: &Uri, headers: &HeaderMap) -> Vec<u8> {
    let mut text = Vec::with_capacity(128 + 64 * headers.len());
    text.extend_from_slice(uri.scheme_str().unwrap_or_default().as_bytes());
    text.extend_from_slice(
        uri.authority()
            .map_or("", |authority| authority.as_str())
            .as_bytes(),
    );
    text.extend_from_slice(
        uri.path_and_query()
            .map_or("", |path| path.as_str())
            .as_bytes(),
    );
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
        saved: (Vec<u8>, Instant, S, Arc<()>),
    }
}

impl<F: Future, S> Future for ResponseFuture<F, S> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let attempt = this.attempt.as_mut().as_pin_mut();
        let result = ready!(attempt.expect("not polled after completion").poll(cx));
        this.attempt.set(None);
        black_box(this.saved);
        Poll::Ready(result)
    }
}

/// The caller's body, wrapped in a type of the layer.
pub(crate) struct WrappedBody<B>(B);

impl<B: Body + Unpin> Body for WrappedBody<B> {
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
