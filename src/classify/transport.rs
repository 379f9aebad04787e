//! Classification of the errors of the inner service.

use std::{any::Any, error::Error, io};

use tower::BoxError;

use super::{connect_errors, kind::FailureKind};

/// Returns the kind of an error: `NotProcessed`, `Timeout`, `Disconnected`, `InvalidEndpoint` or `Other`.
///
/// It is the kind of the outermost recognized error in the chain of sources.
pub(crate) fn classify_error<E: 'static>(error: &E) -> FailureKind {
    as_error(error).map_or(FailureKind::Other, classify_chain)
}

/// Returns whether an error of the kind [`FailureKind::NotProcessed`] comes from a graceful GOAWAY, which
/// excluded the request.
///
/// Servers renew busy HTTP/2 connections this way. It is no sign of an outage (RFC 9113 §6.8).
///
/// An error of another kind may have a graceful GOAWAY as its source, too.
#[cfg(feature = "hyper")]
pub(crate) fn is_graceful_goaway<E: 'static>(error: &E) -> bool {
    as_error(error).is_some_and(|error| {
        sources(error).any(hyper_errors::is_goaway_no_error)
            && classify_chain(error) == FailureKind::NotProcessed
    })
}

#[cfg(not(feature = "hyper"))]
pub(crate) fn is_graceful_goaway<E: 'static>(_: &E) -> bool {
    false
}

/// Returns whether tower's load shedder rejected the request because the inner service was not ready.
pub(crate) fn is_load_shed<E: 'static>(error: &E) -> bool {
    as_error(error).is_some_and(|error| {
        sources(error).any(|error| error.is::<tower::load_shed::error::Overloaded>())
    })
}

/// Downcasts `E`, which need not implement [`Error`], to a recognized error type.
pub(crate) fn as_error<E: 'static>(error: &E) -> Option<&(dyn Error + 'static)> {
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
    if let Some(error) = hyper_errors::as_error(any) {
        return Some(error);
    }
    None
}

pub(crate) fn classify_chain(error: &(dyn Error + 'static)) -> FailureKind {
    let mut kinds = sources(error).filter_map(classify_one);
    kinds.next().unwrap_or(FailureKind::Other)
}

/// Iterates over an error and its sources, outermost first.
pub(super) fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>() {
            // `io::Error::source` skips the wrapped error itself.
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => error.source(),
        }
    })
}

/// Classifies a single error; `None` continues with its source.
fn classify_one(error: &(dyn Error + 'static)) -> Option<FailureKind> {
    if error.is::<tower::timeout::error::Elapsed>() || error.is::<tokio::time::error::Elapsed>() {
        return Some(FailureKind::Timeout);
    }
    #[cfg(feature = "hyper")]
    if let Some(kind) = hyper_errors::classify_one(error) {
        return Some(kind);
    }
    let io = error.downcast_ref::<io::Error>()?;
    match io.kind() {
        // A TCP connection is refused before anything is sent.
        io::ErrorKind::ConnectionRefused => Some(FailureKind::NotProcessed),
        io::ErrorKind::TimedOut => Some(FailureKind::Timeout),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => Some(FailureKind::Disconnected),
        _ => connect_errors::is_invalid_certificate(io).then_some(FailureKind::InvalidEndpoint),
    }
}

#[cfg(feature = "hyper")]
mod hyper_errors {
    use std::{any::Any, error::Error};

    use h2::Reason;
    use hyper_util::client::legacy;

    use crate::classify::{connect_errors, kind::FailureKind};

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
            return classify_client(error);
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

    fn classify_client(error: &legacy::Error) -> Option<FailureKind> {
        if error.is_connect() {
            let permanent = error.source().is_some_and(connect_errors::is_permanent);
            return Some(match permanent {
                true => FailureKind::InvalidEndpoint,
                false => FailureKind::NotProcessed,
            });
        }
        // Other errors have a source, except for those of invalid requests.
        let is_relative = error.source().is_none() && error.to_string() == ABSOLUTE_URI_REQUIRED;
        is_relative.then_some(FailureKind::InvalidEndpoint)
    }

    // hyper-util exposes it only through `Display`. A test checks that the text is still the same.
    const ABSOLUTE_URI_REQUIRED: &str = "client error (UserAbsoluteUriRequired)";

    fn classify_hyper(error: &hyper::Error) -> Option<FailureKind> {
        // The task of the connection is gone. Its runtime has shut down, or over HTTP/2 the connection
        // has ended while the request was pending on a stream.
        if error.is_user() && error.to_string() == DISPATCH_GONE {
            return Some(FailureKind::Disconnected);
        }
        // A fault in the caller's code, even if its source is a network error.
        if error.is_user() || error.is_body_write_aborted() {
            return Some(FailureKind::Other);
        }
        // The request was never written. (After `is_incomplete_message` it was, and the response is
        // missing.)
        if error.is_canceled() || error.is_closed() {
            return Some(FailureKind::NotProcessed);
        }
        if error.is_timeout() {
            return Some(FailureKind::Timeout);
        }
        if error.is_incomplete_message() {
            return Some(FailureKind::Disconnected);
        }
        let source = error.source()?;
        match super::classify_chain(source) {
            // There was a connection. Only HTTP/2 can report that a request was not processed, and only
            // before a response.
            FailureKind::NotProcessed
                if !source.is::<h2::Error>() || error.to_string() != REQUEST_OVER_HTTP2 =>
            {
                Some(FailureKind::Disconnected)
            }
            kind => Some(kind),
        }
    }

    // hyper exposes these two only through `Display`. Tests check that the texts are still the same.
    const DISPATCH_GONE: &str = "dispatch task is gone";
    const REQUEST_OVER_HTTP2: &str = "http2 error";

    fn classify_h2(error: &h2::Error) -> Option<FailureKind> {
        // An error with neither frame is a bare reason, given by the peer.
        let from_peer = error.is_remote() || !(error.is_reset() || error.is_go_away());
        let refused = from_peer && error.reason() == Some(Reason::REFUSED_STREAM);
        // h2 fails a stream with the peer's GOAWAY if the id of the stream is above the last one. (It
        // does the same if hyper opens the stream while the GOAWAY arrives. The errors are equal.)
        if refused || error.is_go_away() && error.is_remote() {
            return Some(FailureKind::NotProcessed);
        }
        if error.is_reset() && error.is_remote() {
            return Some(FailureKind::Disconnected);
        }
        // `h2::Error::source` is empty: only `get_io` returns the io error. There was a connection.
        match super::classify_chain(error.get_io()?) {
            FailureKind::NotProcessed => Some(FailureKind::Disconnected),
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
    fn io_errors_are_classified_bare_boxed_and_wrapped() {
        for (kind_of_io, expected) in [
            (io::ErrorKind::ConnectionRefused, FailureKind::NotProcessed),
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
    fn elapsed_is_timeout() {
        assert_eq!(
            classify_error(&tower::timeout::error::Elapsed::new()),
            FailureKind::Timeout
        );
        let boxed: BoxError = tower::timeout::error::Elapsed::new().into();
        assert_eq!(classify_error(&boxed), FailureKind::Timeout);
    }

    #[test]
    fn unknown_errors_are_other() {
        assert_eq!(classify_error(&"text"), FailureKind::Other);
        assert_eq!(classify_error(&BoxError::from("text")), FailureKind::Other);
        // An unknown type that is not boxed cannot be inspected.
        let opaque = Wrapper(io::Error::from(io::ErrorKind::ConnectionReset).into());
        assert_eq!(classify_error(&opaque), FailureKind::Other);
    }

    #[cfg(feature = "hyper")]
    #[test]
    fn refused_stream_is_not_sent() {
        let refused = h2::Error::from(h2::Reason::REFUSED_STREAM);
        assert_eq!(classify_error(&refused), FailureKind::NotProcessed);
        let internal = h2::Error::from(h2::Reason::INTERNAL_ERROR);
        assert_eq!(classify_error(&internal), FailureKind::Other);
    }

    #[cfg(feature = "hyper")]
    mod hyper_connections {
        use super::*;
        use bytes::Bytes;
        use http_body_util::{BodyExt, Empty};
        use hyper::client::conn::{http1, http2};
        use hyper_util::rt::{TokioExecutor, TokioIo};

        #[tokio::test]
        async fn aborted_connection_task_is_disconnected() {
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
        async fn refused_stream_is_not_sent_before_response_and_disconnected_after() {
            for (head_first, expected) in [
                (false, FailureKind::NotProcessed),
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
