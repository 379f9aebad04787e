//! The bodies on either side of the layer: the request's, which can be sent again, and the
//! response's, which can be looked into and handed on whole.

mod replay;

mod chunk_buffer;
mod peek;
mod response;

pub use replay::{ReplayBody, Superseded};
pub use response::ResponseBody;

pub(crate) use peek::PeekedBody;
pub(crate) use replay::ReplaySource;
