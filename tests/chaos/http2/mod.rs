//! HTTP/2 servers that reset streams, send GOAWAY or drop connections.

mod frames;

mod resets;

mod goaway;

mod drops;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Method, Version};

use self::frames::{Connection, Status};
use crate::{CallResult, call, raw_server::RawServer, request, retrying_client};

/// The error codes of RFC 9113 §7, and unknown ones.
const ERROR_CODES: [u32; 17] = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    0xff,
    0xffff_ffff,
];
const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;

/// The body of all responses after the first one.
const ANOTHER: &str = "another";

/// Sends a request to a server that treats its first connection with `misbehave`. Other connections, and
/// the first one afterwards, respond with 200. Returns the result, and the number of these responses.
async fn send_to<F>(
    misbehave: impl Fn(Connection) -> F + Send + Sync + 'static,
    method: &Method,
) -> (CallResult, usize)
where
    F: Future<Output = Option<Connection>> + Send + 'static,
{
    let responses = Arc::new(AtomicUsize::new(0));
    let server = {
        let responses = responses.clone();
        let misbehave = Arc::new(misbehave);
        RawServer::start(move |index, io| {
            let (misbehave, responses) = (misbehave.clone(), responses.clone());
            async move {
                let mut connection = Some(Connection::accept(io).await);
                if index == 0 {
                    connection = misbehave(connection.unwrap()).await;
                }
                if let Some(connection) = connection {
                    respond_to_all(connection, &responses).await;
                }
            }
        })
        .await
    };
    let client = retrying_client(Version::HTTP_2);
    let result = call(client, request(method, &server.uri("/"))).await;
    (result, responses.load(Ordering::SeqCst))
}

async fn respond_to_all(mut connection: Connection, responses: &AtomicUsize) {
    while let Some(stream) = connection.read_request().await {
        responses.fetch_add(1, Ordering::SeqCst);
        connection.send_head(stream, Status::Ok).await;
        connection.send_last_data(stream, ANOTHER).await;
    }
}
