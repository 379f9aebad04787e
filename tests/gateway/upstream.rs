//! What the gateway forwards to: a scripted server.

use std::{
    convert::Infallible,
    future::Future,
    iter,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, header::RETRY_AFTER};
use http_body_util::{BodyExt, Either, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::support::within;

pub(crate) type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// Starts a server that answers each request by `answer`.
pub(crate) async fn upstream<F, A>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // How a connection ends is seen at its other end.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// The requests that have come, with their bodies.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    requests: Arc<Mutex<Vec<Whole>>>,
}

type Whole = (Request<()>, Bytes);

impl Seen {
    pub(crate) fn requests(&self) -> Vec<Whole> {
        self.requests.lock().unwrap().clone()
    }

    /// Answers the n-th request by the n-th answer.
    pub(crate) fn script(
        &self,
        answers: impl IntoIterator<Item = Answer>,
    ) -> impl Fn(Request<Incoming>) -> Pinned + Clone + Send + 'static {
        let answers = answers.into_iter().collect::<Vec<_>>().into_iter();
        let script = Arc::new(Mutex::new(answers));
        let seen = self.requests.clone();
        move |request| {
            let (script, seen) = (script.clone(), seen.clone());
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                seen.lock()
                    .unwrap()
                    .push((Request::from_parts(head, ()), body));
                let next = script.lock().unwrap().next();
                next.expect("no request beyond the script")
            })
        }
    }
}

type Pinned = std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>;

pub(crate) fn ok(body: &'static str) -> Answer {
    Response::new(Either::Right(body.into()))
}

pub(crate) fn status(status: u16) -> Answer {
    let response = Response::builder().status(status);
    response.body(Either::Right(Full::default())).unwrap()
}

/// A 429.
pub(crate) fn retry_after(seconds: u32) -> Answer {
    let mut answer = status(429);
    answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    answer
}

/// Sends back what comes, as it comes.
pub(crate) async fn echo(request: Request<Incoming>) -> Answer {
    Response::new(Either::Left(request.into_body()))
}

/// The lines of a request's head, as they were sent.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Vec<String> {
    let mut lines = BufReader::new(stream).lines();
    let mut head = Vec::new();
    loop {
        let line = within(lines.next_line()).await.unwrap();
        match line.expect("the end of the head") {
            line if line.is_empty() => return head,
            line => head.push(line),
        }
    }
}

pub(crate) fn random(length: usize) -> Vec<u8> {
    iter::repeat_with(|| fastrand::u8(..))
        .take(length)
        .collect()
}
