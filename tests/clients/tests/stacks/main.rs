//! The layer combined with each client and with other layers, over real sockets.

mod contract;

mod connect_errors;
mod hyper_util;
mod reqwest;

mod kube;
mod octocrab;
mod tonic;

mod axum;

mod tower_http_layers;
mod tower_layers;
