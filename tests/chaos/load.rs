//! Concurrent requests with unique paths, and the checks on the ends of their calls.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

use http::Method;
use tokio::task::JoinSet;
use tower_http_retry::GiveUpReason;

use crate::{CallEnd, CallResult, Client, call, raw_server::RawServer, request};

/// Counters by key, shared by client and server.
pub(crate) struct Counts<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K: Hash + Eq> Counts<K> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn add(&self, key: K) {
        *self.0.lock().unwrap().entry(key).or_default() += 1;
    }

    pub(crate) fn get(&self, key: &K) -> usize {
        self.0.lock().unwrap().get(key).copied().unwrap_or(0)
    }

    pub(crate) fn to_map(&self) -> HashMap<K, usize>
    where
        K: Clone,
    {
        self.0.lock().unwrap().clone()
    }
}

impl<K> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The requests of a round.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    /// Number of requests at the same time.
    pub(crate) workers: usize,
    /// The body of each POST.
    pub(crate) post_body: &'static str,
}

/// Sends all requests from concurrent workers, which take turns with the `clients`. A third of the requests
/// are POSTs. The server responds with the path as the body.
///
/// `received` are the paths of the requests that the server may have processed. Panics if a POST is among
/// them twice, or if a call ends in an unexpected way. Returns the number of calls by method and end.
pub(crate) async fn send_all<S>(
    load: Load,
    clients: &[S],
    server: RawServer,
    received: &Counts<String>,
) -> HashMap<(Method, &'static str), usize>
where
    S: Client + Clone + Send + 'static,
    S::Future: Send,
{
    let server = Arc::new(server);
    let ends = Counts::new();
    let mut tasks = JoinSet::new();
    for worker in 0..load.workers {
        let client = clients[worker % clients.len()].clone();
        let (server, received, ends) = (server.clone(), received.clone(), ends.clone());
        tasks.spawn(async move {
            for id in (worker..load.requests).step_by(load.workers) {
                let (method, path) = match id % 3 {
                    0 => (Method::POST, format!("/post/{id}")),
                    _ => (Method::GET, format!("/get/{id}")),
                };
                let mut request = request(&method, &server.uri(&path));
                if method == Method::POST {
                    *request.body_mut() = load.post_body.into();
                }
                let result = call(client.clone(), request).await;
                ends.add((method, check(result, &path, received.get(&path))));
            }
        });
    }
    tasks.join_all().await;
    // Again, because a request may be received after its call has ended.
    for (path, times) in received.to_map() {
        assert!(is_get(&path) || times == 1, "{path}: {times} times");
    }
    let ends = ends.to_map();
    assert_eq!(ends.values().sum::<usize>(), load.requests);
    ends
}

fn is_get(path: &str) -> bool {
    path.starts_with("/get/")
}

/// Checks the result of a request that was received `times` times. Returns the end of the call.
fn check(result: CallResult, path: &str, times: usize) -> &'static str {
    match (&result.end, result.give_up_reason) {
        (CallEnd::Response(status, body), None) => {
            assert_eq!(*status, 200, "{path}");
            // Not the response to another request.
            assert_eq!(body, path);
            assert!(times > 0, "{path}");
            "response"
        }
        (CallEnd::BodyError(..), None) => "body error",
        (CallEnd::Error(_), Some(GiveUpReason::NotIdempotent)) if !is_get(path) => "not retried",
        (CallEnd::Error(_), Some(GiveUpReason::RetriesExhausted)) => {
            // A POST is retried only if the server has not processed it.
            assert!(is_get(path) || times == 0, "{path}: {times} times");
            "retries exhausted"
        }
        _ => panic!("{path}: {result:?}"),
    }
}
