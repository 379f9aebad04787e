//! The fuzz targets.
//!
//! Each function decodes an input, and panics if the crate contradicts an oracle: a model or a grammar that
//! shares no code with the crate. The inputs of the parsers of text are that text, which keeps the corpora
//! readable. They are also decoded by `arbitrary` into valid values.

mod api_error;
mod calendar;
mod conversation;
mod json_error;
mod rate_gate;
mod rate_limit_headers;
mod replay_body;
mod retry_after;
mod runtime;
mod saved_head;
#[cfg(feature = "serde")]
mod settings;
mod www_authenticate;

#[cfg(feature = "serde")]
pub use self::settings::settings;
pub use self::{
    api_error::api_error, conversation::conversation, json_error::json_error, rate_gate::rate_gate,
    rate_limit_headers::rate_limit_headers, replay_body::replay_body, retry_after::retry_after,
    saved_head::saved_head, www_authenticate::www_authenticate,
};
