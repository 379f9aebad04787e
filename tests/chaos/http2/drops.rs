//! Connections that end while many streams are open.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Connection, SendResponse},
};
use http::{Method, Request, Response, Version};
use tokio::{
    net::TcpStream,
    task::{JoinSet, yield_now},
    time::timeout,
};

use crate::{
    factor,
    load::{Counts, send_all},
    raw_server::RawServer,
    retrying_client,
};

const REQUESTS: usize = 6_000;
const WORKERS: usize = 32;
const SEED: u64 = 0x6472_6f70;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn post_is_accepted_at_most_once() {
    for round in 0..factor() as u64 {
        run_round(SEED + round).await;
    }
}

async fn run_round(seed: u64) {
    let accepted = Counts::new();
    let server = {
        let accepted = accepted.clone();
        RawServer::start(move |index, io| {
            let rng = fastrand::Rng::with_seed(seed ^ ((index as u64) << 32));
            serve(io, rng, accepted.clone())
        })
        .await
    };
    let clients = [retrying_client(Version::HTTP_2)];
    let ends = send_all(REQUESTS, WORKERS, &clients, server, &accepted).await;
    println!("seed {seed:#x}: {ends:?}");
    assert!(ends.contains_key(&(Method::POST, "not retried")));
}

/// Serves a random number of streams, then ends the connection while some of them are open. Counts the
/// streams that are accepted, and not refused.
async fn serve(io: TcpStream, mut rng: fastrand::Rng, accepted: Counts<String>) {
    if rng.bool() {
        // The connection ends with an RST.
        io.set_zero_linger().unwrap();
    }
    let Ok(mut connection) = h2::server::handshake(io).await else {
        return;
    };
    let mut streams = JoinSet::new();
    for _ in 0..rng.usize(1..150) {
        let Some(Ok((request, mut reply))) = connection.accept().await else {
            return;
        };
        if rng.u8(0..20) == 0 {
            reply.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        accepted.add(request.uri().path().to_owned());
        streams.spawn(respond(request, reply, rng.fork()));
    }
    match rng.u8(0..4) {
        0 => {}
        1 => {
            let codes = [
                Reason::NO_ERROR,
                Reason::INTERNAL_ERROR,
                Reason::ENHANCE_YOUR_CALM,
            ];
            connection.abrupt_shutdown(rng.choice(codes).unwrap());
            close(connection).await;
        }
        _ => {
            connection.graceful_shutdown();
            while let Some(Ok((request, reply))) = connection.accept().await {
                accepted.add(request.uri().path().to_owned());
                streams.spawn(respond(request, reply, rng.fork()));
            }
        }
    }
}

/// Sends what is left, as long as the client reads it.
async fn close(mut connection: Connection<TcpStream, Bytes>) {
    let closed = poll_fn(|cx| connection.poll_closed(cx));
    let _ = timeout(Duration::from_secs(1), closed).await;
}

/// Responds with the path, or resets the stream. The connection may end at any moment.
async fn respond(
    mut request: Request<RecvStream>,
    mut reply: SendResponse<Bytes>,
    mut rng: fastrand::Rng,
) {
    let path = request.uri().path().to_owned();
    while let Some(Ok(data)) = request.body_mut().data().await {
        let _ = request
            .body_mut()
            .flow_control()
            .release_capacity(data.len());
    }
    for _ in 0..rng.u8(0..20) {
        yield_now().await;
    }
    if rng.u8(0..30) == 0 {
        return reply.send_reset(Reason::INTERNAL_ERROR);
    }
    let Ok(mut body) = reply.send_response(Response::new(()), false) else {
        return;
    };
    yield_now().await;
    let _ = body.send_data(path.into(), true);
}
