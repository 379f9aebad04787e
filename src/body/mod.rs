//! Request bodies that can be replayed, and response bodies that can be inspected before they are
//! returned.

mod replay;
mod superseded;

mod chunk_buffer;
mod peek;
mod response;

pub use replay::ReplayBody;
pub use response::ResponseBody;
pub use superseded::Superseded;

pub(crate) use peek::PeekedBody;
pub(crate) use replay::ReplaySource;
