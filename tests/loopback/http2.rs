//! HTTP/2 streams that the server refuses, excludes by a GOAWAY, or resets.

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request, Version};
use http_body_util::{Empty, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;
use tower_http_retry::RetryOutcome;

use crate::{
    retrying_client,
    scripted_server::{Reply, ScriptedServer, fail, status},
    timeout::with_timeout,
    watch,
};

#[tokio::test]
async fn refused_stream_is_retried_for_any_method() {
    let server = ScriptedServer::start([reset(Reason::REFUSED_STREAM), status(200)]);
    let request = server.request(Method::POST, Full::<Bytes>::from("money"));
    let response = with_timeout(retrying_client(Version::HTTP_2).oneshot(request)).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.body(1).await.unwrap().data, b"money");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn stream_excluded_by_goaway_is_retried_for_any_method() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let next_server = tokio::spawn(async move {
        let (io, _) = listener.accept().await.unwrap();
        tokio::spawn(serve_one_stream_and_go_away(io));
        ScriptedServer::on(listener, [status(200)])
    });
    let client = retrying_client(Version::HTTP_2);

    let first = Request::post(uri).body(Full::<Bytes>::from("rent"));
    let response = with_timeout(client.clone().oneshot(first.unwrap()))
        .await
        .unwrap();
    assert_eq!(response.status(), 204);
    let server = with_timeout(next_server).await.unwrap();

    let second = server.request(Method::POST, Full::<Bytes>::from("money"));
    let response = with_timeout(client.oneshot(second)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(RetryOutcome::from_response(&response).attempts(), 2);
    assert_eq!(server.body(0).await.unwrap().data, b"money");
    assert_eq!(server.request_count(), 1);
}

#[tokio::test]
async fn reset_stream_is_retried_only_if_idempotent() {
    for (method, attempts) in [(Method::POST, 1), (Method::GET, 2)] {
        let server = ScriptedServer::start([reset(Reason::INTERNAL_ERROR), status(200)]);
        let mut request = server.request(method.clone(), Empty::<Bytes>::new());
        let outcome = watch(&mut request);
        let result = with_timeout(retrying_client(Version::HTTP_2).oneshot(request)).await;
        assert_eq!(result.is_ok(), attempts == 2, "{method}");
        assert_eq!(outcome.get().unwrap().attempts(), attempts, "{method}");
        assert_eq!(server.request_count(), attempts as usize, "{method}");
    }
}

/// Resets the stream.
fn reset(reason: Reason) -> Reply {
    fail(h2::Error::from(reason))
}

/// Speaks HTTP/2 frame by frame: stream 1 gets a 204, and the GOAWAY excludes stream 3.
async fn serve_one_stream_and_go_away(mut io: TcpStream) {
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
    // The client closes the connection.
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
        // DATA or HEADERS: in SETTINGS and PING, the same bit is the acknowledgement.
        if kind <= 1 && id == stream && flags & END_STREAM != 0 {
            return;
        }
    }
}
