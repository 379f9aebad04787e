//! Servers and other programs that the tests run.

pub(crate) mod programs;

pub(crate) mod haproxy;
pub(crate) mod nginx;

pub(crate) mod scripted_server;
pub(crate) mod silent_peer;

pub(crate) mod timeout;
