//! Open-loop load: requests arrive whatever became of those before, and are counted by the second.

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

/// What happened in each second since the start.
#[derive(Debug)]
pub(crate) struct Traffic {
    started: Instant,
    pub(crate) seconds: Vec<Second>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Second {
    pub(crate) arrivals: u32,
    pub(crate) attempts: u32,
    /// Requests that ended in a success.
    pub(crate) goodput: u32,
}

impl Traffic {
    pub(crate) fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            started: Instant::now(),
            seconds: Vec::new(),
        }))
    }

    /// The second that it is now.
    pub(crate) fn now(&mut self) -> &mut Second {
        let second = self.started.elapsed().as_secs() as usize;
        if second >= self.seconds.len() {
            self.seconds.resize(second + 1, Second::default());
        }
        &mut self.seconds[second]
    }
}

/// Sends Poisson arrivals of GETs for so long, each through one of `clients`.
pub(crate) async fn offer(
    rate: u32,
    duration: Duration,
    clients: &[Client],
    traffic: &Arc<Mutex<Traffic>>,
) {
    let end = Instant::now() + duration;
    let mut arrival = Instant::now() + interarrival(rate);
    while arrival < end {
        sleep_until(arrival).await;
        let client = clients[fastrand::usize(..clients.len())].clone();
        tokio::spawn(request(client, traffic.clone()));
        arrival += interarrival(rate);
    }
    sleep_until(end).await;
}

fn interarrival(rate: u32) -> Duration {
    let mean = Duration::from_secs(1) / rate;
    mean.mul_f64(-(1.0 - fastrand::f64()).ln())
}

async fn request(client: Client, traffic: Arc<Mutex<Traffic>>) {
    lock(&traffic).now().arrivals += 1;
    let result = client.oneshot(Request::new(Body::new())).await;
    if let Ok(StatusCode::OK) = result {
        lock(&traffic).now().goodput += 1;
    }
}
