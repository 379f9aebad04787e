//! Open-loop load: arrivals do not depend on earlier responses. Counts are recorded for each second.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, StatusCode};
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;

use crate::{
    harness::lock,
    policies::{Body, Client},
};

/// The counts of each second since the start.
#[derive(Debug)]
pub(crate) struct Traffic {
    started: Instant,
    pub(crate) seconds: Vec<Second>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Second {
    pub(crate) arrivals: u32,
    pub(crate) attempts: u32,
    /// Requests that succeeded.
    pub(crate) goodput: u32,
}

impl Traffic {
    pub(crate) fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            started: Instant::now(),
            seconds: Vec::new(),
        }))
    }

    /// Returns the counts of the current second.
    pub(crate) fn current_second(&mut self) -> &mut Second {
        let second = self.started.elapsed().as_secs() as usize;
        if second >= self.seconds.len() {
            self.seconds.resize(second + 1, Second::default());
        }
        &mut self.seconds[second]
    }
}

/// Sends GETs with Poisson arrivals for `duration`, each through a random one of `clients`.
pub(crate) async fn send_requests(
    rate: u32,
    duration: Duration,
    clients: &[Client],
    traffic: &Arc<Mutex<Traffic>>,
) {
    let end = Instant::now() + duration;
    let mut arrival = Instant::now() + draw_interarrival_time(rate);
    while arrival < end {
        sleep_until(arrival).await;
        let client = clients[fastrand::usize(..clients.len())].clone();
        tokio::spawn(send_request(client, traffic.clone()));
        arrival += draw_interarrival_time(rate);
    }
    sleep_until(end).await;
}

fn draw_interarrival_time(rate: u32) -> Duration {
    let mean = Duration::from_secs(1) / rate;
    mean.mul_f64(-(1.0 - fastrand::f64()).ln())
}

async fn send_request(client: Client, traffic: Arc<Mutex<Traffic>>) {
    lock(&traffic).current_second().arrivals += 1;
    let result = client.oneshot(Request::new(Body::new())).await;
    if let Ok(StatusCode::OK) = result {
        lock(&traffic).current_second().goodput += 1;
    }
}
