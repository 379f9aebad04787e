//! Responses that are cut at each byte offset, by FIN and by RST.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::{Method, Version};
use tower::Layer;
use tower_http_retry::{GiveUpReason, RetryLayer};

use crate::{
    CallEnd, CallResult, call, client, policy,
    raw_server::{Connection, Ending, RawServer, response},
    request,
};

const WITH_LENGTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfirst one";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: sum\r\n\r\n\
    6\r\nfirst \r\n3\r\none\r\n0\r\nsum: 9\r\n\r\n";
const CHUNKED_500: &str = "HTTP/1.1 500 Internal Server Error\r\ntransfer-encoding: chunked\r\n\r\n\
    9\r\nfirst one\r\n0\r\n\r\n";
const REJECTION: &str = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 9\r\n\r\n\
    first one";

/// A cut response, and how it reaches the client.
#[derive(Clone, Copy, Debug)]
struct Case {
    first: &'static str,
    offset: usize,
    ending: Ending,
    /// The connection has already served another request.
    reused: bool,
}

impl Case {
    /// Returns the cases for all offsets of `first`, including the one after its end.
    fn all(first: &'static str) -> impl Iterator<Item = Self> {
        let offsets = 0..=first.len();
        offsets.flat_map(move |offset| {
            Ending::ALL.into_iter().flat_map(move |ending| {
                [false, true].map(|reused| Self {
                    first,
                    offset,
                    ending,
                    reused,
                })
            })
        })
    }

    fn head_length(&self) -> usize {
        self.first.find("\r\n\r\n").unwrap() + 4
    }

    fn cuts_head(&self) -> bool {
        self.offset < self.head_length()
    }

    fn cuts_body(&self) -> bool {
        !self.cuts_head() && self.offset < self.first.len()
    }

    /// Returns true if the client may see the connection end before it has read all that was sent.
    fn may_lose_data(&self) -> bool {
        matches!(self.ending, Ending::Rst)
    }

    /// Sends a request with `method`. Returns the result, and how often the server received it.
    async fn run(self, method: Method) -> (CallResult, usize) {
        let received = Arc::new(AtomicUsize::new(0));
        let server = {
            let received = received.clone();
            RawServer::start(move |_, io| self.serve(Connection::new(io), received.clone())).await
        };
        let client = RetryLayer::new(policy()).layer(client(Version::HTTP_11));
        if self.reused {
            let result = call(client.clone(), request(&Method::GET, &server.uri("/warm"))).await;
            let CallEnd::Response(..) = result.end else {
                panic!("{self:?}: {result:?}")
            };
        }
        let result = call(client, request(&method, &server.uri("/cut"))).await;
        (result, received.load(Ordering::SeqCst))
    }

    /// Cuts the response to the first request for `/cut`, and serves all other requests.
    async fn serve(self, mut connection: Connection, received: Arc<AtomicUsize>) {
        while let Some(request) = connection.read_request().await {
            let is_first = request.path == "/cut" && received.fetch_add(1, Ordering::SeqCst) == 0;
            if is_first {
                connection.send(&self.first[..self.offset]).await.unwrap();
                return connection.end(self.ending);
            }
            let whole = response("200 OK", "another");
            if connection.send(whole).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn get_returns_whole_response_or_error() {
    for case in [WITH_LENGTH, CHUNKED].into_iter().flat_map(Case::all) {
        let (result, received) = case.run(Method::GET).await;
        assert_eq!(received, result.attempts as usize, "{case:?}");
        match (&result.end, result.attempts) {
            (CallEnd::Response(status, body), 1) if *status == 200 => {
                assert_eq!(body, "first one", "{case:?}");
                assert_eq!(case.offset, case.first.len(), "{case:?}");
            }
            (CallEnd::Response(status, body), 2) if *status == 200 => {
                assert_eq!(body, "another", "{case:?}");
                assert!(case.cuts_head() || case.may_lose_data(), "{case:?}");
            }
            (CallEnd::BodyError(status, _), 1) if *status == 200 => {
                assert!(case.cuts_body() || case.may_lose_data(), "{case:?}");
            }
            _ => panic!("{case:?}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn get_is_retried_after_cut_failure() {
    for case in [CHUNKED_500, REJECTION].into_iter().flat_map(Case::all) {
        let (result, received) = case.run(Method::GET).await;
        assert_eq!((result.attempts, received), (2, 2), "{case:?}");
        let CallEnd::Response(status, body) = &result.end else {
            panic!("{case:?}: {result:?}")
        };
        assert_eq!((status.as_u16(), &body[..]), (200, &b"another"[..]));
    }
}

#[tokio::test]
async fn post_is_not_retried_after_cut_response() {
    for first in [WITH_LENGTH, CHUNKED, CHUNKED_500] {
        for case in Case::all(first) {
            let (result, received) = case.run(Method::POST).await;
            assert_eq!((result.attempts, received), (1, 1), "{case:?}");
            match &result.end {
                CallEnd::Response(_, body) => {
                    assert_eq!(body, "first one", "{case:?}");
                    assert_eq!(case.offset, first.len(), "{case:?}");
                }
                CallEnd::BodyError(..) => {
                    assert!(case.cuts_body() || case.may_lose_data(), "{case:?}");
                }
                CallEnd::Error(_) => {
                    assert!(case.cuts_head() || case.may_lose_data(), "{case:?}");
                    assert_eq!(result.give_up_reason, Some(GiveUpReason::NotIdempotent));
                }
            }
        }
    }
}

#[tokio::test]
async fn post_is_retried_only_after_whole_head_of_429() {
    for case in Case::all(REJECTION) {
        let (result, received) = case.run(Method::POST).await;
        assert_eq!(received, result.attempts as usize, "{case:?}");
        match (&result.end, result.attempts) {
            (CallEnd::Response(status, body), 2) if *status == 200 => {
                assert_eq!(body, "another", "{case:?}");
                assert!(!case.cuts_head(), "{case:?}");
            }
            (CallEnd::Error(_), 1) => {
                assert!(case.cuts_head() || case.may_lose_data(), "{case:?}");
                assert_eq!(result.give_up_reason, Some(GiveUpReason::NotIdempotent));
            }
            _ => panic!("{case:?}: {result:?}"),
        }
    }
}
