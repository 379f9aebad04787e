//! A peer that accepts connections and never replies.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

/// A listener that keeps its connections open and sends nothing.
#[derive(Debug)]
pub(crate) struct SilentPeer {
    listener: TcpListener,
    streams: Vec<TcpStream>,
}

impl SilentPeer {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            listener,
            streams: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Returns the number of connections opened up to now.
    pub(crate) fn connections(&mut self) -> usize {
        while let Ok((stream, _)) = self.listener.accept() {
            self.streams.push(stream);
        }
        self.streams.len()
    }
}
