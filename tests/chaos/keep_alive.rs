//! Servers that close a kept-alive connection while the next request arrives.

use http::{Method, Version};
use tokio::task::yield_now;
use tower::Layer;
use tower_http_retry::{FailureKind, RetryLayer};

use crate::{
    RetryingClient, client_builder, connector, factor,
    load::{Counts, Load, send_all},
    policy,
    raw_server::{Connection, Ending, RawServer, response},
};

const LOAD: Load = Load {
    requests: 20_000,
    workers: 16,
    post_body: "money",
};
const SEED: u64 = 0x6b65_6570;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn post_is_received_at_most_once() {
    // Each round has its own port, because closed connections occupy port pairs for a minute.
    for round in 0..factor() as u64 {
        run_round(SEED + round).await;
    }
}

async fn run_round(seed: u64) {
    let received = Counts::new();
    let server = {
        let received = received.clone();
        RawServer::start(move |index, io| {
            let rng = fastrand::Rng::with_seed(seed ^ ((index as u64) << 32));
            serve(Connection::new(io), rng, received.clone())
        })
        .await
    };
    let retried_posts = Counts::new();
    let clients = clients(&retried_posts);
    let ends = send_all(LOAD, &clients, server, &received).await;
    let retried_posts = retried_posts.to_map();
    println!("seed {seed:#x}: {ends:?}, retried POSTs: {retried_posts:?}");
    assert!(ends.contains_key(&(Method::POST, "not retried")));
    let mut kinds = retried_posts.keys();
    assert!(kinds.all(|&kind| kind == FailureKind::NotProcessed));
}

/// Creates a client that itself sends unsent requests again, as by default, and one that does not.
fn clients(retried_posts: &Counts<FailureKind>) -> [RetryingClient; 2] {
    [true, false].map(|resends| {
        let retried_posts = retried_posts.clone();
        let policy = policy().on_retry(move |event| {
            if event.method() == Method::POST {
                retried_posts.add(event.kind());
            }
        });
        let mut builder = client_builder(Version::HTTP_11);
        builder.retry_canceled_requests(resends);
        RetryLayer::new(policy).layer(builder.build(connector()))
    })
}

/// Serves requests until it closes the connection at a random bad moment.
async fn serve(mut connection: Connection, mut rng: fastrand::Rng, received: Counts<String>) {
    while let Some(request) = connection.read_request().await {
        received.add(request.path.clone());
        let ending = rng.choice(Ending::ALL).unwrap();
        if rng.u8(0..20) == 0 {
            return connection.end(ending);
        }
        let whole = response("200 OK", &request.path);
        if connection.send(whole).await.is_err() {
            return;
        }
        match rng.u8(0..12) {
            // At once.
            0 | 1 => return connection.end(ending),
            // While the client may be about to send the next request.
            2 | 3 => {
                for _ in 0..rng.u8(1..40) {
                    yield_now().await;
                }
                return connection.end(ending);
            }
            // When the next request has arrived, unread.
            4 => {
                connection.readable().await;
                return connection.end(ending);
            }
            // After the beginning of the next request.
            5 => {
                if let Some(request) = connection.read_partial_request().await {
                    received.add(request.path);
                }
                return connection.end(ending);
            }
            // The FIN crosses the next request, which is still received.
            6 => {
                connection.shut_down().await;
                if let Some(request) = connection.read_request().await {
                    received.add(request.path);
                }
                return connection.end(ending);
            }
            _ => {}
        }
    }
}
