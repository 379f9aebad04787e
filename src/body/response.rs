//! The response body of the layer.

use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::peek::{PeekedBody, Tail};

pin_project! {
    /// The response body that the caller receives: the whole body `R` of the inner service.
    ///
    /// Most bodies pass through untouched. If the layer has read the start of a failed response to
    /// look for `invalid_token`, this body yields that start first, then the rest. Trailers and errors
    /// are preserved, and `size_hint` and `is_end_stream` account for both parts. `Data` is [`Bytes`]
    /// (without a copy if the data of `R` is [`Bytes`] already); the error type is that of `R`.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::{BodyExt, Empty, Full};
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_http_retry::{ReplayBody, ResponseBody, RetryLayer, RetryPolicy};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let inner = service_fn(async |_: Request<ReplayBody<Empty<Bytes>>>| {
    ///     Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::from("hello")))
    /// });
    /// let client = RetryLayer::new(RetryPolicy::new()).layer(inner);
    /// let response: Response<ResponseBody<Full<Bytes>>> =
    ///     client.oneshot(Request::new(Empty::new())).await?;
    /// assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
    /// # Ok(())
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
        Passthrough { #[pin] body: R },
        // Boxed: rare and large.
        Peeked { peek: Box<PeekedBody<R>> },
    }
}

impl<R: Body> ResponseBody<R> {
    pub(crate) fn empty() -> Self {
        PeekedBody::empty().into()
    }

    /// Wraps a body that has not been read from.
    pub(crate) fn passthrough(body: R) -> Self {
        let inner = Inner::Passthrough { body };
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
            InnerProj::Passthrough { body } => body.poll_frame(cx).map_ok(into_bytes),
            InnerProj::Peeked { peek } => peek.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Passthrough { body } => body.is_end_stream(),
            Inner::Peeked { peek } => peek.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Passthrough { body } => body.size_hint(),
            Inner::Peeked { peek } => peek.size_hint(),
        }
    }
}

impl<R: Body> PeekedBody<R> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        if !self.buffered.is_empty() {
            let buffered = mem::take(&mut self.buffered).into();
            return Poll::Ready(Some(Ok(Frame::data(buffered))));
        }
        if !self.overflow.is_empty() {
            let overflow = mem::take(&mut self.overflow);
            return Poll::Ready(Some(Ok(Frame::data(overflow))));
        }
        if let Tail::Unread(body) = &mut self.tail {
            return body.as_mut().poll_frame(cx).map_ok(into_bytes);
        }
        Poll::Ready(match mem::replace(&mut self.tail, Tail::Ended) {
            Tail::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Tail::Failed(error, _) => Some(Err(error)),
            Tail::Unread(_) | Tail::Ended => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.buffered_len() == 0
            && match &self.tail {
                Tail::Unread(body) => body.is_end_stream(),
                Tail::Trailers(_) | Tail::Failed(..) => false,
                Tail::Ended => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let tail = match &self.tail {
            Tail::Unread(body) => body.size_hint(),
            Tail::Failed(_, hint) => *hint,
            Tail::Trailers(_) | Tail::Ended => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(tail.lower().saturating_add(self.buffered_len()));
        if let Some(upper) = tail
            .upper()
            .and_then(|upper| upper.checked_add(self.buffered_len()))
        {
            hint.set_upper(upper);
        }
        hint
    }

    fn buffered_len(&self) -> u64 {
        (self.buffered.len() + self.overflow.len()) as u64
    }
}

fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

#[cfg(test)]
mod tests;
