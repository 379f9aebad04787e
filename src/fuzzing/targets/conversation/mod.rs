//! One caller and one server, against a model of the order of decisions in the documentation of the crate.

mod caller;
mod model;
mod script;
mod server;

use arbitrary::Unstructured;

use self::script::Script;
use super::runtime::block_on;

/// Decodes a policy, requests, and the replies of a server.
pub fn conversation(data: &[u8]) {
    if let Ok(script) = Script::any(&mut Unstructured::new(data)) {
        block_on(caller::run(script));
    }
}
