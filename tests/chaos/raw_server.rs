//! A server that reads and writes HTTP/1.1 by hand.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A server on a free loopback port. Its connections end when it is dropped.
pub(crate) struct RawServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl RawServer {
    /// Starts a server that calls `serve` with the index of each connection, starting at 0.
    pub(crate) async fn start<F>(
        mut serve: impl FnMut(usize, TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for index in 0.. {
                let (io, _) = listener.accept().await.unwrap();
                io.set_nodelay(true).unwrap();
                connections.spawn(serve(index, io));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }

    /// Returns the URI of `path` on this server.
    pub(crate) fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The way in which a server ends a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Fin,
    Rst,
}

impl Ending {
    pub(crate) const ALL: [Self; 2] = [Self::Fin, Self::Rst];

    /// Closes the connection. Unread data turns a FIN into an RST.
    pub(crate) fn apply(self, io: TcpStream) {
        if let Self::Rst = self {
            io.set_zero_linger().unwrap();
        }
        drop(io);
    }
}

/// A request as the server received it.
#[derive(Debug)]
pub(crate) struct RawRequest {
    pub(crate) path: String,
}

/// The server's side of a connection.
pub(crate) struct Connection {
    io: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(io: TcpStream) -> Self {
        let buffer = Vec::new();
        Self { io, buffer }
    }

    /// Reads a request with its body. Returns `None` if the connection ends before.
    pub(crate) async fn read_request(&mut self) -> Option<RawRequest> {
        loop {
            if let Some((request, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return Some(request);
            }
            self.read_some().await.ok()?;
        }
    }

    /// Reads once, and returns the request whose first line has been received so far.
    pub(crate) async fn read_partial_request(&mut self) -> Option<RawRequest> {
        self.read_some().await.ok()?;
        parse_first_line(&self.buffer)
    }

    /// Waits until data or the end of the connection has arrived, without reading it.
    pub(crate) async fn readable(&self) {
        if self.buffer.is_empty() {
            self.io.readable().await.unwrap();
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await
    }

    /// Sends a FIN, and keeps reading.
    pub(crate) async fn shut_down(&mut self) {
        // The client may have closed the connection already.
        let _ = self.io.shutdown().await;
    }

    /// Reads and ignores all data until the client closes the connection.
    pub(crate) async fn stall(mut self) {
        while self.read_some().await.is_ok() {
            self.buffer.clear();
        }
    }

    pub(crate) fn end(self, ending: Ending) {
        ending.apply(self.io);
    }

    async fn read_some(&mut self) -> io::Result<()> {
        match self.io.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Parses a whole request, and returns its length.
fn parse(bytes: &[u8]) -> Option<(RawRequest, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).unwrap();
    let mut lengths = text
        .lines()
        .filter_map(|line| line.strip_prefix("content-length: "));
    let body = lengths.next().map_or(0, |length| length.parse().unwrap());
    let request = parse_first_line(bytes)?;
    (bytes.len() >= head + body).then_some((request, head + body))
}

fn parse_first_line(bytes: &[u8]) -> Option<RawRequest> {
    let end = bytes.iter().position(|&byte| byte == b'\r')?;
    let mut words = std::str::from_utf8(&bytes[..end]).unwrap().split(' ');
    let path = words.nth(1)?.to_owned();
    Some(RawRequest { path })
}

/// Returns a response with `body` and its length.
pub(crate) fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
}
