//! Access to crate-private parts for the fuzz targets.
//!
//! The targets are in `targets`. The package in the directory `fuzz` runs them with libFuzzer, and the unit
//! tests here replay its corpora on stable. Not part of the public API: it exists only with `--cfg fuzzing`,
//! which `cargo fuzz` sets, and in tests.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use http::HeaderMap;
use http_body::Body;

use crate::{
    body::{ReplayBody, ReplaySource},
    classify::invalid_token,
    rate_gate::quota::Quota,
};

#[cfg(test)]
pub mod targets;
#[cfg(test)]
mod tests;

/// Parses `Retry-After`.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    crate::retry_after::retry_after(headers, now)
}

/// The fields of a rate limit that a server advertises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// The number of requests that a window allows.
    pub limit: u64,
    /// The number of requests that remain in the current window.
    pub remaining: u64,
    /// The time to the next window.
    pub reset: Duration,
    /// The length of a window.
    pub window: Option<Duration>,
}

/// Parses the rate-limit fields of a response.
pub fn rate_limit(headers: &HeaderMap, now: SystemTime) -> Option<RateLimit> {
    let quota = Quota::from_headers(headers, now)?;
    Some(RateLimit {
        limit: quota.limit,
        remaining: quota.remaining,
        reset: quota.reset,
        window: quota.window,
    })
}

/// Returns whether `WWW-Authenticate` reports an invalid token.
pub fn is_invalid_token_in_headers(headers: &HeaderMap) -> bool {
    invalid_token::in_headers(headers)
}

/// Returns whether a response body reports an invalid token.
pub fn is_invalid_token_in_body(headers: &HeaderMap, body: &[u8]) -> bool {
    invalid_token::in_body(headers, body)
}

/// The handle from which the request body of each attempt is created.
pub struct Upload<B: Body>(ReplaySource<B>);

impl<B: Body> Upload<B> {
    /// Creates the handle, and the body of the first attempt.
    pub fn new(body: B, limit: usize) -> (Self, ReplayBody<B>) {
        let (source, first) = ReplaySource::new(body, limit);
        (Self(source), first)
    }

    /// Pauses the current attempt. Returns whether the whole body can be replayed.
    pub fn pause(&self) -> bool {
        self.0.pause()
    }

    /// Ends the current attempt, and creates the body of the next one.
    pub fn replay(&self) -> ReplayBody<B> {
        self.0.supersede();
        self.0.replay_body()
    }

    /// Resumes the current attempt as the last one.
    pub fn release(&mut self) {
        self.0.release();
    }

    /// Returns whether the caller's body failed.
    pub fn has_failed(&self) -> bool {
        self.0.has_failed()
    }
}

impl<B: Body> fmt::Debug for Upload<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}
