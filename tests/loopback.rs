//! The layer over hyper-util's client and real sockets: what the caller and the server notice.

use std::{
    collections::VecDeque,
    convert::Infallible,
    error::Error as _,
    future::Future,
    io, iter,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, request};
use http_body::{Body, Frame};
use http_body_util::{
    BodyExt, Empty, Full, StreamBody,
    channel::{Channel, Sender},
    combinators::UnsyncBoxBody,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, oneshot},
};
use tower::{BoxError, Layer, ServiceExt, util::MapResponse};
use tower_http_retry::{
    GiveUpReason, OutcomeHandle, ReplayBody, Retry, RetryLayer, RetryOutcome, RetryPolicy,
    backoff_fn,
};

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

// --- the request body ---

#[tokio::test]
async fn a_streamed_upload_is_sent_again_whole() {
    for version in BOTH {
        let (server, [mut first, mut second]) =
            Server::start([after_upload(status(504)), after_upload(status(200))]).await;
        let (body, sent) = streamed(None);
        let request = request(Method::PUT, server.address, body);
        let response = within(retrying(version).oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert_eq!(
            RetryOutcome::from_response(&response).attempts(),
            2,
            "{version:?}"
        );
        for exchange in [&mut first, &mut second] {
            let upload = exchange.upload().await.unwrap();
            assert!(upload.data == sent, "{version:?}");
            assert_eq!(upload.trailers, None, "{version:?}");
        }
    }
}

#[tokio::test]
async fn trailers_are_sent_again_behind_the_upload() {
    for version in BOTH {
        let (server, [mut first, mut second]) =
            Server::start([after_upload(status(504)), after_upload(status(200))]).await;
        let checksum = HeaderName::from_static("x-checksum");
        let trailers =
            HeaderMap::from_iter([(checksum.clone(), HeaderValue::from_static("5eb63bbb"))]);
        let (body, sent) = streamed(Some(trailers.clone()));
        let mut request = request(Method::PUT, server.address, body);
        // HTTP/1.1 sends only the trailers that were announced.
        request.headers_mut().insert("trailer", checksum.into());
        let response = within(retrying(version).oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        for exchange in [&mut first, &mut second] {
            let upload = exchange.upload().await.unwrap();
            assert!(upload.data == sent, "{version:?}");
            assert_eq!(upload.trailers.as_ref(), Some(&trailers), "{version:?}");
        }
    }
}

#[tokio::test]
async fn an_early_failure_leaves_the_rest_of_the_upload_to_the_next_attempt() {
    for version in BOTH {
        let (server, [mut first, mut second, mut third]) = Server::start([
            at_once(status(504)),
            at_once(status(504)),
            after_upload(status(200)),
        ])
        .await;
        let (mut source, body) = source();
        let request = request(Method::PUT, server.address, body);
        let call = tokio::spawn(retrying(version).oneshot(request));
        push(&mut source, "one, ").await;
        first.arrived().await;
        push(&mut source, "two, ").await;
        second.arrived().await;
        push(&mut source, "three").await;
        third.arrived().await;
        drop(source);
        let response = within(call).await.unwrap().unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert_eq!(
            RetryOutcome::from_response(&response).attempts(),
            3,
            "{version:?}"
        );
        assert_eq!(third.upload().await.unwrap().data, b"one, two, three");
        // Never a clean end: the server would take it for all there is.
        assert!(first.upload().await.is_err(), "{version:?}");
        assert!(second.upload().await.is_err(), "{version:?}");
        let connections = if version == Version::HTTP_2 { 1 } else { 3 };
        assert_eq!(server.connections(), connections, "{version:?}");
    }
}

#[tokio::test]
async fn a_superseded_upload_ends_even_while_its_source_is_silent() {
    for version in BOTH {
        let (server, [mut first, mut second]) =
            Server::start([at_once(status(504)), at_once(status(200))]).await;
        let (mut source, body) = source();
        push(&mut source, "all there is").await;
        let request = request(Method::PUT, server.address, body);
        let response = within(retrying(version).oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert!(first.upload().await.is_err(), "{version:?}");
        drop(source);
        assert_eq!(second.upload().await.unwrap().data, b"all there is");
    }
}

#[tokio::test]
async fn an_early_success_does_not_end_the_upload() {
    for version in BOTH {
        let (server, [mut exchange]) = Server::start([at_once(response(200, "go on"))]).await;
        let (mut source, body) = source();
        push(&mut source, "before, ").await;
        let request = request(Method::POST, server.address, body);
        let response = within(retrying(version).oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        for _ in 0..100 {
            push(&mut source, &"after".repeat(1000)).await;
        }
        drop(source);
        let upload = exchange.upload().await.unwrap();
        let sent = format!("before, {}", "after".repeat(100_000));
        assert!(upload.data == sent.as_bytes(), "{version:?}");
        assert_eq!(read_body(response).await, "go on", "{version:?}");
        assert_eq!(server.requests(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn an_early_failure_that_is_not_retried_does_not_end_the_upload() {
    for version in BOTH {
        let (server, [mut exchange]) = Server::start([at_once(status(504))]).await;
        let (mut source, body) = source();
        push(&mut source, "before, ").await;
        let request = request(Method::POST, server.address, body);
        let response = within(retrying(version).oneshot(request)).await.unwrap();
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
        push(&mut source, "after").await;
        drop(source);
        let upload = exchange.upload().await.unwrap();
        assert_eq!(upload.data, b"before, after", "{version:?}");
    }
}

#[tokio::test]
async fn an_early_success_of_a_retry_does_not_cut_short_what_was_kept() {
    let (server, [_, mut second]) =
        Server::start([after_upload(status(504)), at_once(status(200))]).await;
    // Flow control keeps most of it from being sent before the answer.
    let sent = vec![b'x'; 4 * 1024 * 1024];
    let chunks = sent.chunks(64 * 1024).map(Bytes::copy_from_slice);
    let chunks = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    let body = StreamBody::new(stream::iter(chunks.collect::<Vec<_>>()));
    let policy = policy().replay_limit(sent.len());
    let client = RetryLayer::new(policy).layer(client(Version::HTTP_2));
    let request = request(Method::PUT, server.address, body);
    let response = within(client.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(second.upload().await.unwrap().data == sent);
}

#[tokio::test]
async fn an_error_of_the_callers_own_body_is_never_retried() {
    for version in BOTH {
        let (server, [mut exchange]) = Server::start([after_upload(status(200))]).await;
        let (mut source, body) = source();
        let mut request = request(Method::PUT, server.address, body);
        let outcome = watch(&mut request);
        let call = tokio::spawn(retrying(version).oneshot(request));
        push(&mut source, "the disk was fine up to here").await;
        exchange.arrived().await;
        source.abort(io::Error::new(io::ErrorKind::ConnectionReset, "disk gone"));
        let error = within(call).await.unwrap().unwrap_err();
        // Over HTTP/2 hyper keeps the cause to itself: its error tells of the stream.
        if version == Version::HTTP_11 {
            assert!(io_error(&error).is_some_and(|io| io.to_string() == "disk gone"));
        }
        assert!(exchange.upload().await.is_err(), "{version:?}");
        assert_eq!(
            outcome.get().map(|it| it.attempts()),
            Some(1),
            "{version:?}"
        );
        assert_eq!(server.requests(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn a_call_dropped_between_two_attempts_ends_the_upload() {
    let long = Duration::from_secs(30);
    for (version, answer) in BOTH
        .into_iter()
        .flat_map(|version| [(version, status(504)), (version, stalled(504))])
    {
        let (server, [mut exchange]) = Server::start([at_once(answer)]).await;
        let (mut source, body) = source();
        push(&mut source, "unfinished").await;
        let answered = Arc::new(Notify::new());
        let policy = RetryPolicy::new()
            .backoff(backoff_fn(move || iter::repeat(long)))
            .discard_timeout(long);
        let client = RetryLayer::new(policy).layer(signalling(version, answered.clone()));
        let request = request(Method::PUT, server.address, body);
        let call = tokio::spawn(client.oneshot(request));
        within(answered.notified()).await;
        call.abort();
        assert!(exchange.upload().await.is_err(), "{version:?}");
        assert_eq!(server.requests(), 1, "{version:?}");
        drop(source);
    }
}

// --- the connection ---

#[tokio::test]
async fn failures_in_a_row_share_one_connection() {
    for size in [20, 8 * 1024, 64 * 1024, 256 * 1024] {
        let answered = Arc::new(Notify::new());
        let (server, exchanges) = Server::start::<6>(std::array::from_fn(|n| {
            after_upload(match n {
                5 => status(200),
                _ => late_body(500, size, &answered),
            })
        }))
        .await;
        let client = signalling(Version::HTTP_11, answered);
        let client = RetryLayer::new(policy().max_retries(5)).layer(client);
        let request = request(Method::GET, server.address, Empty::<Bytes>::new());
        let response = within(client.oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200, "{size}");
        assert_eq!(server.requests(), exchanges.len(), "{size}");
        assert_eq!(server.connections(), 1, "{size}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_whatever_the_method() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    let (up, mut server) = oneshot::channel();
    let down = Arc::new(Mutex::new(Some((socket, up))));
    let attempts = Arc::new(AtomicUsize::new(0));
    let client = client(Version::HTTP_11);
    let inner = {
        let attempts = attempts.clone();
        tower::service_fn(move |request| {
            if attempts.fetch_add(1, Ordering::SeqCst) == 2 {
                let (socket, up) = down.lock().unwrap().take().unwrap();
                let listener = socket.listen(8).unwrap();
                let server = Server::on(listener, [after_upload(status(200))]);
                up.send(server).ok().unwrap();
            }
            client.request(request)
        })
    };
    let request = request(Method::POST, address, Full::<Bytes>::from("money"));
    let client = RetryLayer::new(policy()).layer(inner);
    let response = within(client.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
    let (server, [mut exchange]) = server.try_recv().unwrap();
    assert_eq!(exchange.upload().await.unwrap().data, b"money");
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_get_that_is_hung_up_on_is_sent_again() {
    let (server, _) = Server::start([hang_up(), after_upload(status(200))]).await;
    let request = request(Method::GET, server.address, Empty::<Bytes>::new());
    let response = within(retrying(Version::HTTP_11).oneshot(request)).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_post_that_is_hung_up_on_is_not_sent_again() {
    let (server, _) = Server::start([hang_up(), after_upload(status(200))]).await;
    let mut request = request(Method::POST, server.address, Full::<Bytes>::from("money"));
    let outcome = watch(&mut request);
    let result = within(retrying(Version::HTTP_11).oneshot(request)).await;
    assert!(hyper_error(&result.unwrap_err()).is_incomplete_message());
    let outcome = outcome.get().unwrap();
    assert_eq!(outcome.attempts(), 1);
    assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::NotIdempotent));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_post_with_an_idempotency_key_that_is_hung_up_on_is_sent_again() {
    let (server, [_, mut second]) = Server::start([hang_up(), after_upload(status(200))]).await;
    let mut request = request(Method::POST, server.address, Full::<Bytes>::from("money"));
    let key = HeaderValue::from_static("\"8e03978e\"");
    request.headers_mut().insert("idempotency-key", key.clone());
    let response = within(retrying(Version::HTTP_11).oneshot(request)).await;
    assert_eq!(response.unwrap().status(), 200);
    assert_eq!(second.arrived().await.headers["idempotency-key"], key);
    assert_eq!(second.upload().await.unwrap().data, b"money");
    assert_eq!(server.requests(), 2);
}

// --- HTTP/2 streams ---

#[tokio::test]
async fn a_refused_stream_is_sent_again_whatever_the_method() {
    let (server, [_, mut second]) =
        Server::start([reset(Reason::REFUSED_STREAM), after_upload(status(200))]).await;
    let request = request(Method::POST, server.address, Full::<Bytes>::from("money"));
    let response = within(retrying(Version::HTTP_2).oneshot(request)).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(second.upload().await.unwrap().data, b"money");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_stream_that_a_goaway_leaves_out_is_sent_again_whatever_the_method() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let next_server = tokio::spawn(async move {
        let (io, _) = listener.accept().await.unwrap();
        tokio::spawn(answer_one_stream_and_go_away(io));
        Server::on(listener, [after_upload(status(200))])
    });
    let client = retrying(Version::HTTP_2);

    let first = request(Method::POST, address, Full::<Bytes>::from("rent"));
    let response = within(client.clone().oneshot(first)).await.unwrap();
    assert_eq!(response.status(), 204);
    let (server, [mut exchange]) = within(next_server).await.unwrap();

    let second = request(Method::POST, address, Full::<Bytes>::from("money"));
    let response = within(client.oneshot(second)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(exchange.upload().await.unwrap().data, b"money");
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_stream_that_broke_is_sent_again_only_if_idempotent() {
    for (method, attempts) in [(Method::POST, 1), (Method::GET, 2)] {
        let (server, _) =
            Server::start([reset(Reason::INTERNAL_ERROR), after_upload(status(200))]).await;
        let mut request = request(method.clone(), server.address, Empty::<Bytes>::new());
        let outcome = watch(&mut request);
        let result = within(retrying(Version::HTTP_2).oneshot(request)).await;
        assert_eq!(result.is_ok(), attempts == 2, "{method}");
        assert_eq!(outcome.get().unwrap().attempts(), attempts, "{method}");
        assert_eq!(server.requests(), attempts as usize, "{method}");
    }
}

// --- the failed response's body ---

#[tokio::test]
async fn an_invalid_token_stops_at_once_and_the_response_is_whole() {
    const ERROR: &str = r#"{"code":"unauthorized.bad_access_token.expired","error":"invalid_token",
        "error_description":"Access token has expired","message":"Access token has expired"}"#;
    for version in BOTH {
        let mut answer = response(500, ERROR);
        let id = HeaderValue::from_static("9f86d081");
        answer.headers_mut().insert("x-request-id", id.clone());
        let (server, _) = Server::start([after_upload(answer)]).await;
        let request = request(Method::GET, server.address, Empty::<Bytes>::new());
        let response = within(retrying(version).oneshot(request)).await.unwrap();
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!(response.status(), 500, "{version:?}");
        assert_eq!(response.headers()["x-request-id"], id, "{version:?}");
        assert_eq!(outcome.attempts(), 1, "{version:?}");
        assert_eq!(outcome.give_up_reason(), Some(GiveUpReason::InvalidToken));
        assert_eq!(read_body(response).await, ERROR, "{version:?}");
        assert_eq!(server.requests(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn a_large_error_object_without_invalid_token_is_retried() {
    for version in BOTH {
        let large = format!(
            r#"{{"error":"overloaded","message":"{}"}}"#,
            "x".repeat(300 * 1024)
        );
        let (server, _) = Server::start([
            after_upload(response(500, large)),
            after_upload(status(200)),
        ])
        .await;
        let request = request(Method::GET, server.address, Empty::<Bytes>::new());
        let response = within(retrying(version).oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200, "{version:?}");
        assert_eq!(
            RetryOutcome::from_response(&response).attempts(),
            2,
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn the_last_failure_arrives_whole_however_large() {
    for version in BOTH {
        let [first, last] = ["first", "last!"].map(|text| text.repeat(100_000));
        let (server, _) = Server::start([
            after_upload(response(500, first)),
            after_upload(response(500, last.clone())),
        ])
        .await;
        let client = RetryLayer::new(policy().max_retries(1)).layer(client(version));
        let request = request(Method::GET, server.address, Empty::<Bytes>::new());
        let response = within(client.oneshot(request)).await.unwrap();
        let outcome = RetryOutcome::from_response(&response);
        assert_eq!(response.status(), 500, "{version:?}");
        assert_eq!(outcome.attempts(), 2, "{version:?}");
        assert_eq!(
            outcome.give_up_reason(),
            Some(GiveUpReason::RetriesExhausted)
        );
        assert!(read_body(response).await == last, "{version:?}");
    }
}

#[tokio::test]
async fn a_stalled_body_does_not_hold_the_retry_up() {
    let patience = Duration::from_millis(50);
    for version in BOTH {
        let (server, _) =
            Server::start([after_upload(stalled(500)), after_upload(status(200))]).await;
        let policy = policy().discard_timeout(patience);
        let client = RetryLayer::new(policy).layer(client(version));
        let request = request(Method::GET, server.address, Empty::<Bytes>::new());
        let response = within(client.oneshot(request)).await.unwrap();
        let waited = RetryOutcome::from_response(&response).total_delay();
        assert_eq!(response.status(), 200, "{version:?}");
        // The default patience is a second.
        let expected = patience..Duration::from_secs(1);
        assert!(expected.contains(&waited), "{version:?} {waited:?}");
        assert_eq!(server.requests(), 2, "{version:?}");
    }
}

// --- the client's side ---

type HyperClient<B> = Client<HttpConnector, ReplayBody<B>>;

fn client<B>(version: Version) -> HyperClient<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build(connector)
}

fn policy() -> RetryPolicy {
    RetryPolicy::new().backoff(backoff_fn(|| iter::repeat(Duration::ZERO)))
}

fn retrying<B>(version: Version) -> Retry<HyperClient<B>>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
{
    RetryLayer::new(policy()).layer(client(version))
}

/// A client that tells when a response's head has arrived.
fn signalling<B>(
    version: Version,
    answered: Arc<Notify>,
) -> MapResponse<HyperClient<B>, impl FnOnce(Response<Incoming>) -> Response<Incoming> + Clone>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    client(version).map_response(move |response| {
        answered.notify_one();
        response
    })
}

fn request<B>(method: Method, address: SocketAddr, body: B) -> Request<B> {
    let uri = format!("http://{address}/");
    let request = Request::builder().method(method).uri(uri);
    request.body(body).unwrap()
}

fn watch<B>(request: &mut Request<B>) -> OutcomeHandle {
    let handle = OutcomeHandle::new();
    request.extensions_mut().insert(handle.clone());
    handle
}

/// A body of several frames that do not all come at once, and its bytes.
fn streamed(
    trailers: Option<HeaderMap>,
) -> (
    impl Body<Data = Bytes, Error = Infallible> + Send + 'static,
    Vec<u8>,
) {
    let chunks = [(b'a', 1), (b'b', 20_000), (b'c', 30_000)];
    let chunks = chunks.map(|(byte, len)| vec![byte; len]);
    let sent = chunks.concat();
    let data = chunks.map(|chunk| Frame::data(Bytes::from(chunk)));
    let frames = data.into_iter().chain(trailers.map(Frame::trailers));
    let frames = stream::iter(frames).then(async |frame| {
        tokio::task::yield_now().await;
        Ok(frame)
    });
    (StreamBody::new(frames), sent)
}

/// A body that the test feeds.
fn source() -> (Sender<Bytes, io::Error>, Channel<Bytes, io::Error>) {
    Channel::new(1)
}

async fn push(source: &mut Sender<Bytes, io::Error>, data: &str) {
    let data = Bytes::copy_from_slice(data.as_bytes());
    within(source.send_data(data)).await.unwrap();
}

async fn read_body<B>(response: Response<B>) -> Bytes
where
    B: Body<Error: std::fmt::Debug>,
{
    let body = within(response.into_body().collect()).await;
    body.unwrap().to_bytes()
}

fn hyper_error(error: &legacy::Error) -> &hyper::Error {
    error.source().unwrap().downcast_ref().unwrap()
}

fn io_error(error: &legacy::Error) -> Option<&io::Error> {
    hyper_error(error).source()?.downcast_ref()
}

async fn within<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, future).await.expect("it hangs")
}

// --- the server's side ---

/// The n-th request, on whatever connection it comes, gets the n-th answer of the script.
struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Server {
    async fn start<const N: usize>(answers: [Answer; N]) -> (Self, [Exchange; N]) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self::on(listener, answers)
    }

    fn on<const N: usize>(listener: TcpListener, answers: [Answer; N]) -> (Self, [Exchange; N]) {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let mut script = VecDeque::new();
        let exchanges = answers.map(|answer| {
            let (arrived, on_arrival) = oneshot::channel();
            let (upload, on_upload) = oneshot::channel();
            script.push_back((answer, arrived, upload));
            Exchange {
                arrived: on_arrival,
                upload: on_upload,
            }
        });
        let script = Arc::new(Mutex::new(script));
        tokio::spawn(serve(listener, script, seen.clone()));
        (Self { address, seen }, exchanges)
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }
}

type Script = VecDeque<(
    Answer,
    oneshot::Sender<request::Parts>,
    oneshot::Sender<hyper::Result<Upload>>,
)>;

/// One request as the server sees it.
struct Exchange {
    arrived: oneshot::Receiver<request::Parts>,
    upload: oneshot::Receiver<hyper::Result<Upload>>,
}

impl Exchange {
    /// When the head and the first frame of the body have been read.
    async fn arrived(&mut self) -> request::Parts {
        within(&mut self.arrived).await.unwrap()
    }

    /// When the body has ended, well or badly.
    async fn upload(&mut self) -> hyper::Result<Upload> {
        within(&mut self.upload).await.unwrap()
    }
}

#[derive(Debug, Default)]
struct Upload {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
}

struct Answer {
    at_once: bool,
    answer: Result<Response<AnswerBody>, h2::Error>,
}

type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// As soon as the first frame of the upload has arrived.
fn at_once(response: Response<AnswerBody>) -> Answer {
    Answer {
        at_once: true,
        answer: Ok(response),
    }
}

fn after_upload(response: Response<AnswerBody>) -> Answer {
    Answer {
        at_once: false,
        answer: Ok(response),
    }
}

fn reset(reason: Reason) -> Answer {
    Answer {
        at_once: false,
        answer: Err(reason.into()),
    }
}

/// Over HTTP/1.1, where there is no stream to reset, hyper closes the connection.
fn hang_up() -> Answer {
    reset(Reason::INTERNAL_ERROR)
}

fn status(status: u16) -> Response<AnswerBody> {
    response(status, "")
}

fn response(status: u16, body: impl Into<Bytes>) -> Response<AnswerBody> {
    answer_with(status, Full::new(body.into()))
}

/// The head comes, the body never.
fn stalled(status: u16) -> Response<AnswerBody> {
    answer_with(status, StreamBody::new(stream::pending()))
}

/// The body is sent only when the head has been read.
fn late_body(status: u16, size: usize, answered: &Arc<Notify>) -> Response<AnswerBody> {
    let answered = answered.clone();
    let body = stream::once(async move {
        answered.notified().await;
        Ok(Frame::data(Bytes::from(vec![b'x'; size])))
    });
    answer_with(status, StreamBody::new(body))
}

fn answer_with(
    status: u16,
    body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static,
) -> Response<AnswerBody> {
    let response = Response::builder().status(status);
    response.body(body.boxed_unsync()).unwrap()
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>, seen: Arc<Seen>) {
    loop {
        let (io, _) = listener.accept().await.unwrap();
        io.set_nodelay(true).unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let (script, seen) = (script.clone(), seen.clone());
        let service = service_fn(move |request| {
            seen.requests.fetch_add(1, Ordering::SeqCst);
            let next = script.lock().unwrap().pop_front();
            let (answer, arrived, upload) = next.expect("no request beyond the script");
            answer.give(request, arrived, upload)
        });
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // How a connection ends is seen by the exchanges.
            let _ = server.serve_connection(TokioIo::new(io), service).await;
        });
    }
}

impl Answer {
    async fn give(
        self,
        request: Request<Incoming>,
        arrived: oneshot::Sender<request::Parts>,
        upload: oneshot::Sender<hyper::Result<Upload>>,
    ) -> Result<Response<AnswerBody>, h2::Error> {
        let (parts, body) = request.into_parts();
        let (start, started) = oneshot::channel();
        // On its own: the upload may outlive the answer.
        let reading = tokio::spawn(async move {
            let result = read_upload(body, || {
                let _ = arrived.send(parts);
                let _ = start.send(());
            });
            let _ = upload.send(result.await);
        });
        match self.at_once {
            true => started.await.unwrap(),
            false => reading.await.unwrap(),
        }
        self.answer
    }
}

async fn read_upload(mut body: Incoming, on_arrival: impl FnOnce()) -> hyper::Result<Upload> {
    let mut upload = Upload::default();
    let mut next = body.frame().await;
    on_arrival();
    while let Some(frame) = next {
        match frame?.into_data() {
            Ok(data) => upload.data.extend(data),
            Err(frame) => upload.trailers = frame.into_trailers().ok(),
        }
        next = body.frame().await;
    }
    Ok(upload)
}

/// An HTTP/2 server by hand: stream 1 gets a 204, of stream 3 it says that it has not looked at it.
async fn answer_one_stream_and_go_away(mut io: TcpStream) {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const STATUS_204: &[u8] = &[0x89];
    const LAST_STREAM_1_NO_ERROR: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 0];
    io.read_exact(&mut [0; 24]).await.unwrap();
    write_frame(&mut io, SETTINGS, 0, 0, &[]).await;
    read_request(&mut io, 1).await;
    write_frame(&mut io, HEADERS, END_HEADERS | END_STREAM, 1, STATUS_204).await;
    read_request(&mut io, 3).await;
    write_frame(&mut io, GOAWAY, 0, 0, LAST_STREAM_1_NO_ERROR).await;
    // It is the client that closes.
    let _ = io.read_to_end(&mut Vec::new()).await;
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

async fn write_frame(io: &mut TcpStream, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
    let length = payload.len() as u8;
    let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
    io.write_all(&[&head, payload].concat()).await.unwrap();
}

/// Reads up to the last frame of a request.
async fn read_request(io: &mut TcpStream, stream: u8) {
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let [l0, l1, l2, kind, flags, .., id] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        // DATA or HEADERS: elsewhere the same bit means an acknowledgement.
        if kind <= 1 && id == stream && flags & END_STREAM != 0 {
            return;
        }
    }
}
