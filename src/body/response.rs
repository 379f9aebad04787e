//! The response body that the caller sees.

use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::peek::{PeekedBody, Rest};

pin_project! {
    /// The response body that the caller sees: the inner service's body `R`, whole.
    ///
    /// Most are passed through unread. Where the start of a failed response was read to look for
    /// `invalid_token`, it is put back in front of the rest, with the trailers or the error that the
    /// reading met; `size_hint` and `is_end_stream` tell of both parts. `Data` is [`Bytes`] (no copy
    /// where `R`'s data is that already), the error type is `R`'s own.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use http_body_util::{BodyExt, Empty, Full};
    /// use bytes::Bytes;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_http_retry::{ReplayBody, ResponseBody, RetryLayer, RetryPolicy};
    ///
    /// # #[tokio::main] async fn main() {
    /// let inner = service_fn(async |_: Request<ReplayBody<Empty<Bytes>>>| {
    ///     Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::from("hello")))
    /// });
    /// let client = RetryLayer::new(RetryPolicy::new()).layer(inner);
    /// let response: Response<ResponseBody<Full<Bytes>>> =
    ///     client.oneshot(Request::new(Empty::new())).await.unwrap();
    /// assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    /// # }
    /// ```
    pub struct ResponseBody<R>
    where
        R: Body,
    {
        #[pin]
        inner: Inner<R>,
    }
}

pin_project! {
    #[project = InnerProj]
    enum Inner<R>
    where
        R: Body,
    {
        Unread { #[pin] body: R },
        // Rare and large: in a box, it makes no other response larger.
        Peeked { peek: Box<PeekedBody<R>> },
    }
}

impl<R: Body> ResponseBody<R> {
    pub(crate) fn empty() -> Self {
        PeekedBody::empty().into()
    }

    /// A body that nobody has read from.
    pub(crate) fn passthrough(body: R) -> Self {
        let inner = Inner::Unread { body };
        Self { inner }
    }
}

impl<R: Body> From<PeekedBody<R>> for ResponseBody<R> {
    fn from(peek: PeekedBody<R>) -> Self {
        let peek = Box::new(peek);
        let inner = Inner::Peeked { peek };
        Self { inner }
    }
}

impl<R: Body + Default> Default for ResponseBody<R> {
    fn default() -> Self {
        Self::passthrough(R::default())
    }
}

impl<R: Body> fmt::Debug for ResponseBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl<R: Body> Body for ResponseBody<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.project().inner.project() {
            InnerProj::Unread { body } => body.poll_frame(cx).map_ok(into_bytes),
            InnerProj::Peeked { peek } => peek.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Unread { body } => body.is_end_stream(),
            Inner::Peeked { peek } => peek.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Unread { body } => body.size_hint(),
            Inner::Peeked { peek } => peek.size_hint(),
        }
    }
}

impl<R: Body> PeekedBody<R> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        if !self.kept.is_empty() {
            let kept = mem::take(&mut self.kept).into();
            return Poll::Ready(Some(Ok(Frame::data(kept))));
        }
        if !self.beyond.is_empty() {
            let beyond = mem::take(&mut self.beyond);
            return Poll::Ready(Some(Ok(Frame::data(beyond))));
        }
        if let Rest::Unread(body) = &mut self.rest {
            return body.as_mut().poll_frame(cx).map_ok(into_bytes);
        }
        Poll::Ready(match mem::replace(&mut self.rest, Rest::Ended) {
            Rest::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Rest::Failed(error, _) => Some(Err(error)),
            Rest::Unread(_) | Rest::Ended => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.put_back() == 0
            && match &self.rest {
                Rest::Unread(body) => body.is_end_stream(),
                Rest::Trailers(_) | Rest::Failed(..) => false,
                Rest::Ended => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Rest::Unread(body) => body.size_hint(),
            Rest::Failed(_, hint) => *hint,
            Rest::Trailers(_) | Rest::Ended => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(self.put_back()));
        if let Some(upper) = rest
            .upper()
            .and_then(|upper| upper.checked_add(self.put_back()))
        {
            hint.set_upper(upper);
        }
        hint
    }

    fn put_back(&self) -> u64 {
        (self.kept.len() + self.beyond.len()) as u64
    }
}

fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

#[cfg(test)]
mod tests;
