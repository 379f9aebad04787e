mod discard;
pub(crate) mod future;
mod layer;
mod saved_head;
mod service;
mod session;

pub use self::{future::ResponseFuture, layer::RetryLayer, service::Retry};
