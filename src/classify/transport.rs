//! What an inner error means: whether the request reached the server, and what became of it.

use std::{any::Any, error::Error, io};

use tower::BoxError;

use crate::classify::FailureKind;

/// The kind of an inner error: one of `Connect`, `Timeout`, `Interrupted` and `Other`.
///
/// The outermost error of the chain that has something to say decides.
pub(crate) fn classify_error<E: 'static>(error: &E) -> FailureKind {
    as_error(error).map_or(FailureKind::Other, classify_chain)
}

/// Whether the server ended a connection in good order, and says that it has not looked at the request.
///
/// That is how servers renew busy HTTP/2 connections, and no sign of an outage (RFC 9113 §6.8).
#[cfg(feature = "hyper")]
pub(crate) fn is_graceful_goaway<E: 'static>(error: &E) -> bool {
    as_error(error).is_some_and(|error| {
        let renewed = sources(error).any(hyper::is_goaway_no_error);
        renewed && classify_chain(error) == FailureKind::NotSent
    })
}

#[cfg(not(feature = "hyper"))]
pub(crate) fn is_graceful_goaway<E: 'static>(_: &E) -> bool {
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
    if let Some(error) = hyper::as_error(any) {
        return Some(error);
    }
    None
}

pub(crate) fn classify_chain(error: &(dyn Error + 'static)) -> FailureKind {
    let mut kinds = sources(error).filter_map(classify_one);
    kinds.next().unwrap_or(FailureKind::Other)
}

/// An error and what caused it, from the outside to the inside.
fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>() {
            // `source` of an `io::Error` skips the error that it wraps.
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => error.source(),
        }
    })
}

/// What one error of the chain says by itself; `None` asks its source.
fn classify_one(error: &(dyn Error + 'static)) -> Option<FailureKind> {
    if error.is::<tower::timeout::error::Elapsed>() || error.is::<tokio::time::error::Elapsed>() {
        return Some(FailureKind::Timeout);
    }
    #[cfg(feature = "hyper")]
    if let Some(kind) = hyper::classify_one(error) {
        return Some(kind);
    }
    let io = error.downcast_ref::<io::Error>()?;
    match io.kind() {
        // A TCP connection is refused before anything is sent.
        io::ErrorKind::ConnectionRefused => Some(FailureKind::NotSent),
        io::ErrorKind::TimedOut => Some(FailureKind::Timeout),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => Some(FailureKind::Disconnected),
        _ => None,
    }
}

#[cfg(feature = "hyper")]
mod hyper {
    use std::{any::Any, error::Error};

    use h2::Reason;
    use hyper_util::client::legacy;

    use crate::classify::FailureKind;

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

    pub(super) fn classify_one(error: &(dyn Error + 'static)) -> Option<FailureKind> {
        if let Some(error) = error.downcast_ref::<legacy::Error>() {
            return error.is_connect().then_some(FailureKind::NotSent);
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return classify_hyper(error);
        }
        error.downcast_ref::<h2::Error>().and_then(classify_h2)
    }

    pub(super) fn is_goaway_no_error(error: &(dyn Error + 'static)) -> bool {
        error.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
        })
    }

    fn classify_hyper(error: &hyper::Error) -> Option<FailureKind> {
        // The task of the connection is gone: that of a runtime that ends, or over HTTP/2 that of a
        // connection that ended while the request waited for a stream.
        if error.is_user() && error.to_string() == DISPATCH_GONE {
            return Some(FailureKind::Disconnected);
        }
        // A fault of the caller's own code, whatever network error it may hold as its source.
        if error.is_user() || error.is_body_write_aborted() {
            return Some(FailureKind::Other);
        }
        // hyper hands such a request back: it was never written. `is_incomplete_message` is not
        // among them: there the request was sent and the answer did not come.
        if error.is_canceled() || error.is_closed() {
            return Some(FailureKind::NotSent);
        }
        if error.is_timeout() {
            return Some(FailureKind::Timeout);
        }
        if error.is_incomplete_message() {
            return Some(FailureKind::Disconnected);
        }
        let source = error.source()?;
        match super::classify_chain(source) {
            // A connection was there; only HTTP/2 can say that it did not process a request, and only
            // as long as there is no response.
            FailureKind::NotSent
                if !source.is::<h2::Error>() || error.to_string() != REQUEST_OVER_HTTP2 =>
            {
                Some(FailureKind::Disconnected)
            }
            kind => Some(kind),
        }
    }

    // hyper tells these two apart by their texts only; tests hold that they still do.
    const DISPATCH_GONE: &str = "dispatch task is gone";
    const REQUEST_OVER_HTTP2: &str = "http2 error";

    fn classify_h2(error: &h2::Error) -> Option<FailureKind> {
        // An error that carries neither frame is a bare reason: one that the peer gave.
        let from_peer = error.is_remote() || !(error.is_reset() || error.is_go_away());
        let refused = from_peer && error.reason() == Some(Reason::REFUSED_STREAM);
        // h2 fails a stream with the peer's GOAWAY where the stream is above its last id. (It fails one
        // so, too, that hyper opens in the very moment in which a GOAWAY arrives; its errors do not tell
        // the two apart.)
        if refused || error.is_go_away() && error.is_remote() {
            return Some(FailureKind::NotSent);
        }
        if error.is_reset() && error.is_remote() {
            return Some(FailureKind::Disconnected);
        }
        // Its `source` is empty: the io error is in here only, and that of a connection that was there.
        match super::classify_chain(error.get_io()?) {
            FailureKind::NotSent => Some(FailureKind::Disconnected),
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
            (io::ErrorKind::ConnectionRefused, FailureKind::NotSent),
            (io::ErrorKind::TimedOut, FailureKind::Timeout),
            (io::ErrorKind::ConnectionReset, FailureKind::Disconnected),
            (io::ErrorKind::BrokenPipe, FailureKind::Disconnected),
            (io::ErrorKind::UnexpectedEof, FailureKind::Disconnected),
            (io::ErrorKind::InvalidData, FailureKind::Other),
            (io::ErrorKind::PermissionDenied, FailureKind::Other),
        ] {
            assert_eq!(classify_error(&io::Error::from(kind_of_io)), expected);
            let boxed = BoxError::from(io::Error::from(kind_of_io));
            assert_eq!(classify_error(&boxed), expected);
            let wrapped: BoxError = Wrapper(boxed).into();
            assert_eq!(classify_error(&wrapped), expected);
            let inside_io = io::Error::other(io::Error::from(kind_of_io));
            assert_eq!(classify_error(&inside_io), expected);
        }
    }

    #[test]
    fn timeouts_are_read() {
        assert_eq!(
            classify_error(&tower::timeout::error::Elapsed::new()),
            FailureKind::Timeout
        );
        let boxed: BoxError = tower::timeout::error::Elapsed::new().into();
        assert_eq!(classify_error(&boxed), FailureKind::Timeout);
    }

    #[test]
    fn an_unknown_error_is_other() {
        assert_eq!(classify_error(&"text"), FailureKind::Other);
        assert_eq!(classify_error(&BoxError::from("text")), FailureKind::Other);
        // Not boxed, its type is not known here.
        let opaque = Wrapper(io::Error::from(io::ErrorKind::ConnectionReset).into());
        assert_eq!(classify_error(&opaque), FailureKind::Other);
    }

    #[cfg(feature = "hyper")]
    #[test]
    fn a_refused_stream_never_reached_the_server() {
        let refused = h2::Error::from(h2::Reason::REFUSED_STREAM);
        assert_eq!(classify_error(&refused), FailureKind::NotSent);
        let internal = h2::Error::from(h2::Reason::INTERNAL_ERROR);
        assert_eq!(classify_error(&internal), FailureKind::Other);
    }

    #[cfg(feature = "hyper")]
    mod texts_of_hyper {
        use super::*;
        use ::hyper::client::conn::{http1, http2};
        use bytes::Bytes;
        use http_body_util::{BodyExt, Empty};
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
            assert_eq!(classify_error(&error), FailureKind::Disconnected);
        }

        #[tokio::test]
        async fn a_stream_is_refused_before_a_response_and_broken_behind_one() {
            for (head_first, expected) in [
                (false, FailureKind::NotSent),
                (true, FailureKind::Disconnected),
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
                assert_eq!(classify_error(&error), expected, "{error:?}");
            }
        }
    }
}
