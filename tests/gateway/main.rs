//! The example `gateway` as a program: called by curl, loaded by wrk, stopped by signals.

mod curl;
mod process;

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the tests of the servers use the rest")]
mod support;

mod bodies;
mod headers;
mod load;
mod program;
mod requests;

use std::iter;

use http::Version;

/// The versions of HTTP, with the flags that make curl use them.
const VERSIONS: [(Version, &str); 2] = [
    (Version::HTTP_11, "--http1.1"),
    (Version::HTTP_2, "--http2-prior-knowledge"),
];

fn random_bytes(length: usize) -> Vec<u8> {
    iter::repeat_with(|| fastrand::u8(..))
        .take(length)
        .collect()
}
