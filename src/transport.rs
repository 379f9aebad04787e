//! What an inner error means: whether the request reached the server, and what became of it.

use std::{any::Any, error::Error, io};

use tower::BoxError;

use crate::classify::ApiFailureKind;

/// The kind of an inner error: one of `Connect`, `Timeout`, `Interrupted` and `Other`.
///
/// The outermost error of the chain that has something to say decides.
pub(crate) fn kind<E: 'static>(error: &E) -> ApiFailureKind {
    as_error(error).map_or(ApiFailureKind::Other, kind_of_chain)
}

/// Whether the server ended a connection in good order, and says that it has not looked at the request.
///
/// That is how servers renew busy HTTP/2 connections, and no sign of an outage (RFC 9113 §6.8).
#[cfg(feature = "hyper")]
pub(crate) fn was_handed_back<E: 'static>(error: &E) -> bool {
    as_error(error).is_some_and(|error| {
        let renewed = chain(error).any(hyper_stack::is_graceful_goaway);
        renewed && kind_of_chain(error) == ApiFailureKind::Connect
    })
}

#[cfg(not(feature = "hyper"))]
pub(crate) fn was_handed_back<E: 'static>(_: &E) -> bool {
    false
}

/// As far as the type is known here: nothing says that `E` is an [`Error`].
fn as_error<E: 'static>(error: &E) -> Option<&(dyn Error + 'static)> {
    let any: &dyn Any = error;
    if let Some(boxed) = any.downcast_ref::<BoxError>() {
        return Some(&**boxed);
    }
    if let Some(error) = any.downcast_ref::<io::Error>() {
        return Some(error);
    }
    if let Some(error) = any.downcast_ref::<tower::timeout::error::Elapsed>() {
        return Some(error);
    }
    if let Some(error) = any.downcast_ref::<tokio::time::error::Elapsed>() {
        return Some(error);
    }
    #[cfg(feature = "hyper")]
    if let Some(error) = hyper_stack::as_error(any) {
        return Some(error);
    }
    None
}

pub(crate) fn kind_of_chain(error: &(dyn Error + 'static)) -> ApiFailureKind {
    let mut kinds = chain(error).filter_map(kind_of_link);
    kinds.next().unwrap_or(ApiFailureKind::Other)
}

/// An error and what caused it, from the outside to the inside.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>() {
            // `source` of an `io::Error` skips the error that it wraps.
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => error.source(),
        }
    })
}

/// What one error of the chain says by itself; `None` asks its source.
fn kind_of_link(error: &(dyn Error + 'static)) -> Option<ApiFailureKind> {
    if error.is::<tower::timeout::error::Elapsed>() || error.is::<tokio::time::error::Elapsed>() {
        return Some(ApiFailureKind::Timeout);
    }
    #[cfg(feature = "hyper")]
    if let Some(kind) = hyper_stack::kind_of_link(error) {
        return Some(kind);
    }
    let io = error.downcast_ref::<io::Error>()?;
    match io.kind() {
        // A TCP connection is refused before anything is sent.
        io::ErrorKind::ConnectionRefused => Some(ApiFailureKind::Connect),
        io::ErrorKind::TimedOut => Some(ApiFailureKind::Timeout),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => Some(ApiFailureKind::Interrupted),
        _ => None,
    }
}

#[cfg(feature = "hyper")]
mod hyper_stack {
    use std::{any::Any, error::Error};

    use h2::Reason;
    use hyper_util::client::legacy;

    use crate::classify::ApiFailureKind;

    pub(super) fn as_error(any: &dyn Any) -> Option<&(dyn Error + 'static)> {
        if let Some(error) = any.downcast_ref::<legacy::Error>() {
            return Some(error);
        }
        if let Some(error) = any.downcast_ref::<hyper::Error>() {
            return Some(error);
        }
        if let Some(error) = any.downcast_ref::<h2::Error>() {
            return Some(error);
        }
        None
    }

    pub(super) fn kind_of_link(error: &(dyn Error + 'static)) -> Option<ApiFailureKind> {
        if let Some(error) = error.downcast_ref::<legacy::Error>() {
            return error.is_connect().then_some(ApiFailureKind::Connect);
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return of_hyper(error);
        }
        error.downcast_ref::<h2::Error>().and_then(of_h2)
    }

    pub(super) fn is_graceful_goaway(error: &(dyn Error + 'static)) -> bool {
        error.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
        })
    }

    fn of_hyper(error: &hyper::Error) -> Option<ApiFailureKind> {
        // The task of the connection is gone: that of a runtime that ends, or over HTTP/2 that of a
        // connection that ended while the request waited for a stream.
        if error.is_user() && error.to_string() == DISPATCH_GONE {
            return Some(ApiFailureKind::Interrupted);
        }
        // A fault of the caller's own code, whatever network error it may hold as its source.
        if error.is_user() || error.is_body_write_aborted() {
            return Some(ApiFailureKind::Other);
        }
        // hyper hands such a request back: it was never written. `is_incomplete_message` is not
        // among them: there the request was sent and the answer did not come.
        if error.is_canceled() || error.is_closed() {
            return Some(ApiFailureKind::Connect);
        }
        if error.is_timeout() {
            return Some(ApiFailureKind::Timeout);
        }
        if error.is_incomplete_message() {
            return Some(ApiFailureKind::Interrupted);
        }
        let source = error.source()?;
        match super::kind_of_chain(source) {
            // A connection was there; only HTTP/2 can say that it did not process a request, and only
            // as long as there is no response.
            ApiFailureKind::Connect
                if !source.is::<h2::Error>() || error.to_string() != REQUEST_OVER_HTTP2 =>
            {
                Some(ApiFailureKind::Interrupted)
            }
            kind => Some(kind),
        }
    }

    // hyper tells these two apart by their texts only; tests hold that they still do.
    const DISPATCH_GONE: &str = "dispatch task is gone";
    const REQUEST_OVER_HTTP2: &str = "http2 error";

    fn of_h2(error: &h2::Error) -> Option<ApiFailureKind> {
        // An error that carries neither frame is a bare reason: one that the peer gave.
        let from_peer = error.is_remote() || !(error.is_reset() || error.is_go_away());
        let refused = from_peer && error.reason() == Some(Reason::REFUSED_STREAM);
        // h2 fails a stream with the peer's GOAWAY where the stream is above its last id. (It fails one
        // so, too, that hyper opens in the very moment in which a GOAWAY arrives; its errors do not tell
        // the two apart.)
        if refused || error.is_go_away() && error.is_remote() {
            return Some(ApiFailureKind::Connect);
        }
        if error.is_reset() && error.is_remote() {
            return Some(ApiFailureKind::Interrupted);
        }
        // Its `source` is empty: the io error is in here only, and that of a connection that was there.
        match super::kind_of_chain(error.get_io()?) {
            ApiFailureKind::Connect => Some(ApiFailureKind::Interrupted),
            kind => Some(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Wrapper(BoxError);

    impl fmt::Display for Wrapper {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapper {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn io_errors_are_read_bare_boxed_and_wrapped() {
        for (kind_of_io, expected) in [
            (io::ErrorKind::ConnectionRefused, ApiFailureKind::Connect),
            (io::ErrorKind::TimedOut, ApiFailureKind::Timeout),
            (io::ErrorKind::ConnectionReset, ApiFailureKind::Interrupted),
            (io::ErrorKind::BrokenPipe, ApiFailureKind::Interrupted),
            (io::ErrorKind::UnexpectedEof, ApiFailureKind::Interrupted),
            (io::ErrorKind::InvalidData, ApiFailureKind::Other),
            (io::ErrorKind::PermissionDenied, ApiFailureKind::Other),
        ] {
            assert_eq!(kind(&io::Error::from(kind_of_io)), expected);
            let boxed = BoxError::from(io::Error::from(kind_of_io));
            assert_eq!(kind(&boxed), expected);
            let wrapped: BoxError = Wrapper(boxed).into();
            assert_eq!(kind(&wrapped), expected);
            let inside_io = io::Error::other(io::Error::from(kind_of_io));
            assert_eq!(kind(&inside_io), expected);
        }
    }

    #[test]
    fn timeouts_are_read() {
        assert_eq!(
            kind(&tower::timeout::error::Elapsed::new()),
            ApiFailureKind::Timeout
        );
        let boxed: BoxError = tower::timeout::error::Elapsed::new().into();
        assert_eq!(kind(&boxed), ApiFailureKind::Timeout);
    }

    #[test]
    fn an_unknown_error_is_other() {
        assert_eq!(kind(&"text"), ApiFailureKind::Other);
        assert_eq!(kind(&BoxError::from("text")), ApiFailureKind::Other);
        // Not boxed, its type is not known here.
        let opaque = Wrapper(io::Error::from(io::ErrorKind::ConnectionReset).into());
        assert_eq!(kind(&opaque), ApiFailureKind::Other);
    }

    #[cfg(feature = "hyper")]
    #[test]
    fn a_refused_stream_never_reached_the_server() {
        let refused = h2::Error::from(h2::Reason::REFUSED_STREAM);
        assert_eq!(kind(&refused), ApiFailureKind::Connect);
        let internal = h2::Error::from(h2::Reason::INTERNAL_ERROR);
        assert_eq!(kind(&internal), ApiFailureKind::Other);
    }

    #[cfg(feature = "hyper")]
    mod texts_of_hyper {
        use super::*;
        use bytes::Bytes;
        use http_body_util::{BodyExt, Empty};
        use hyper::client::conn::{http1, http2};
        use hyper_util::rt::{TokioExecutor, TokioIo};

        #[tokio::test]
        async fn a_connection_whose_task_is_gone_was_interrupted() {
            let (ours, _theirs) = tokio::io::duplex(1024);
            let (mut client, connection) = http1::handshake(TokioIo::new(ours)).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut call = tokio_test::task::spawn(
                client.send_request(http::Request::new(Empty::<Bytes>::new())),
            );
            assert!(call.poll().is_pending());
            tokio::task::yield_now().await;
            connection.abort();
            let error = call.await.unwrap_err();
            assert!(error.is_user(), "{error:?}");
            assert_eq!(kind(&error), ApiFailureKind::Interrupted);
        }

        #[tokio::test]
        async fn a_stream_is_refused_before_a_response_and_broken_behind_one() {
            for (head_first, expected) in [
                (false, ApiFailureKind::Connect),
                (true, ApiFailureKind::Interrupted),
            ] {
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                let (head_arrived, head_was_read) = tokio::sync::oneshot::channel();
                let mut head_was_read = Some(head_was_read);
                tokio::spawn(async move {
                    let mut server = h2::server::handshake(theirs).await.unwrap();
                    while let Some(Ok((_request, mut reply))) = server.accept().await {
                        if head_first {
                            let head = http::Response::new(());
                            let mut body = reply.send_response(head, false).unwrap();
                            let head_was_read = head_was_read.take().unwrap();
                            tokio::spawn(async move {
                                head_was_read.await.unwrap();
                                body.send_reset(h2::Reason::REFUSED_STREAM);
                            });
                        } else {
                            reply.send_reset(h2::Reason::REFUSED_STREAM);
                        }
                    }
                });
                let io = TokioIo::new(ours);
                let (mut client, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                let request =
                    http::Request::post("http://api.example/").body(Empty::<Bytes>::new());
                let result = client.send_request(request.unwrap()).await;
                let error = match result {
                    Ok(response) => {
                        head_arrived.send(()).unwrap();
                        response.into_body().collect().await.unwrap_err()
                    }
                    Err(error) => error,
                };
                assert_eq!(kind(&error), expected, "{error:?}");
            }
        }
    }
}
