//! Servers that violate HTTP/1.1, or that exhaust time or memory.

mod behaviors;

use std::{
    alloc::System,
    io, mem,
    sync::{
        Arc,
        atomic::{AtomicIsize, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower::{
    BoxError, Layer, ServiceExt,
    timeout::{Timeout, error::Elapsed},
};
use tower_http_retry::{RateGate, RetryLayer};

use crate::{
    CallEnd, Client, call, client, policy,
    raw_server::{self, Connection, RawServer},
    request,
    timeout::with_timeout,
};

type Request = http::Request<Full<Bytes>>;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The heap usage allowed during a call, including that of the tests that run at the same time. (The
/// backtrace of one that fails exceeds it.)
const MAX_HEAP_GROWTH: isize = 16 << 20;
/// The body that the caller accepts.
const MAX_BODY: usize = 1 << 20;

/// The timeout of an attempt or a body if it is the expected end of the call.
const SHORT: Duration = Duration::from_millis(200);
/// The timeout otherwise. It only ends calls that hang.
const LONG: Duration = Duration::from_secs(15);

/// The bytes that a server sends after a request, and how it goes on.
#[derive(Debug)]
struct Behavior {
    name: &'static str,
    parts: Vec<Part>,
    ending: Ending,
    expected: Expected,
    retried: Retried,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Text(&'static str),
    Times(usize, &'static str),
    /// Until the client closes the connection.
    Forever(&'static str),
    /// One byte at a time.
    Drip(&'static str),
    DripForever(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Fin,
    Rst,
    /// Sends nothing more.
    Stall,
    /// Serves the next request on the same connection.
    KeepAlive,
}

/// The end of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Response,
    Error,
    /// The timeout of the attempt.
    Timeout,
    BodyError,
    /// The caller's timeout of the body.
    BodyTimeout,
    /// The caller's limit of the body.
    BodyTooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retried {
    Never,
    IfIdempotent,
    Always,
}

impl Behavior {
    fn attempts(&self, method: &Method) -> usize {
        match self.retried {
            Retried::Always => 2,
            Retried::IfIdempotent if method.is_idempotent() => 2,
            Retried::IfIdempotent | Retried::Never => 1,
        }
    }

    fn attempt_timeout(&self) -> Duration {
        match self.expected {
            Expected::Timeout => SHORT,
            _ => LONG,
        }
    }

    fn body_timeout(&self) -> Duration {
        match self.expected {
            Expected::BodyTimeout => SHORT,
            _ => LONG,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_in_bounded_time_and_memory() {
    for behavior in behaviors::all() {
        let behavior = Arc::new(behavior);
        for method in [Method::GET, Method::POST] {
            let case = format!("{method}, {}", behavior.name);
            let before = heap_bytes();
            let peak = HeapPeak::start();
            run(&case, behavior.clone(), method).await;
            let growth = peak.stop() - before;
            println!("{case}: {} KiB", growth >> 10);
            assert!(growth < MAX_HEAP_GROWTH, "{case}: {growth} bytes");
        }
    }
}

/// Sends a request to a hostile server, and another one with the same client.
async fn run(case: &str, behavior: Arc<Behavior>, method: Method) {
    let received = Arc::new(AtomicUsize::new(0));
    let server = {
        let (behavior, received) = (behavior.clone(), received.clone());
        let serve = move |_, io| serve(Connection::new(io), behavior.clone(), received.clone());
        RawServer::start(serve).await
    };
    let policy = policy().max_retries(1).discard_timeout(SHORT);
    let policy = policy.rate_gate(RateGate::with_max_closed(SHORT));
    let inner = Timeout::new(client(Version::HTTP_11), behavior.attempt_timeout());
    let client = RetryLayer::new(policy).layer(inner);

    let hostile = request(&method, &server.uri("/hostile"));
    let end = with_timeout(end_of_call(
        client.clone(),
        hostile,
        behavior.body_timeout(),
    ))
    .await;
    assert_eq!(end, behavior.expected, "{case}");
    let received = received.load(Ordering::SeqCst);
    let attempts = behavior.attempts(&method);
    match behavior.expected {
        // An attempt may have timed out before the server accepted its connection.
        Expected::Timeout => assert!(received <= attempts, "{case}: {received}"),
        _ => assert_eq!(received, attempts, "{case}"),
    }

    // Nothing that the server sent is taken for the response to the next request.
    let next = call(client, request(&Method::GET, &server.uri("/next"))).await;
    let CallEnd::Response(status, body) = next.end else {
        panic!("{case}: {next:?}")
    };
    assert_eq!((status.as_u16(), &body[..]), (200, &b"next"[..]), "{case}");
}

/// Sends `request`, and reads the response as a careful caller does.
async fn end_of_call(
    client: impl Client<Error = BoxError>,
    request: Request,
    body_timeout: Duration,
) -> Expected {
    let response = match client.oneshot(request).await {
        Ok(response) => response,
        Err(error) if error.is::<Elapsed>() => return Expected::Timeout,
        Err(_) => return Expected::Error,
    };
    let body = Limited::new(response.into_body(), MAX_BODY);
    match timeout(body_timeout, body.collect()).await {
        Ok(Ok(_)) => Expected::Response,
        Ok(Err(error)) if error.is::<LengthLimitError>() => Expected::BodyTooLarge,
        Ok(Err(_)) => Expected::BodyError,
        Err(_) => Expected::BodyTimeout,
    }
}

/// Treats the requests for `/hostile` with `behavior`, and responds to all others.
async fn serve(mut connection: Connection, behavior: Arc<Behavior>, received: Arc<AtomicUsize>) {
    while let Some(request) = connection.read_request().await {
        if request.path != "/hostile" {
            let whole = raw_server::response("200 OK", "next");
            if connection.send(whole).await.is_err() {
                return;
            }
            continue;
        }
        received.fetch_add(1, Ordering::SeqCst);
        if send(&mut connection, &behavior.parts).await.is_err() {
            return;
        }
        match behavior.ending {
            Ending::Fin => return connection.end(raw_server::Ending::Fin),
            Ending::Rst => return connection.end(raw_server::Ending::Rst),
            Ending::Stall => return connection.stall().await,
            Ending::KeepAlive => {}
        }
    }
}

/// Sends adjacent texts with one write, so that they arrive together.
async fn send(connection: &mut Connection, parts: &[Part]) -> io::Result<()> {
    let mut unsent = String::new();
    for part in parts {
        match part {
            Part::Text(text) => unsent.push_str(text),
            Part::Times(times, text) => unsent.push_str(&text.repeat(*times)),
            Part::Forever(text) => {
                connection.send(mem::take(&mut unsent)).await?;
                let block = text.repeat(BLOCK / text.len());
                loop {
                    connection.send(&block).await?;
                }
            }
            Part::Drip(text) => {
                connection.send(mem::take(&mut unsent)).await?;
                drip(connection, text).await?;
            }
            Part::DripForever(text) => {
                connection.send(mem::take(&mut unsent)).await?;
                loop {
                    drip(connection, text).await?;
                }
            }
        }
    }
    connection.send(unsent).await
}

/// The size of a write in an endless part.
const BLOCK: usize = 16 << 10;

async fn drip(connection: &mut Connection, text: &str) -> io::Result<()> {
    for byte in text.bytes() {
        connection.send([byte]).await?;
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Returns the heap usage of the process.
fn heap_bytes() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// Samples the heap usage of the process, in its own task.
struct HeapPeak {
    peak: Arc<AtomicIsize>,
    task: JoinHandle<()>,
}

impl HeapPeak {
    fn start() -> Self {
        let peak = Arc::new(AtomicIsize::new(heap_bytes()));
        let task = {
            let peak = peak.clone();
            tokio::spawn(async move {
                loop {
                    peak.fetch_max(heap_bytes(), Ordering::Relaxed);
                    sleep(Duration::from_millis(1)).await;
                }
            })
        };
        Self { peak, task }
    }

    fn stop(self) -> isize {
        self.task.abort();
        self.peak.load(Ordering::Relaxed)
    }
}
