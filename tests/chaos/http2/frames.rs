//! The server's side of HTTP/2, frame by frame.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::raw_server::Ending;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE_LENGTH: usize = 24;

/// A response status, which is the whole head of a response.
#[derive(Clone, Copy, Debug)]
pub(super) enum Status {
    Ok,
    TooManyRequests,
    InternalServerError,
}

impl Status {
    /// Returns the header block (RFC 7541: the static table, or a literal with the name `:status`).
    fn header_block(self) -> &'static [u8] {
        match self {
            Self::Ok => &[0x88],
            Self::TooManyRequests => b"\x08\x03429",
            Self::InternalServerError => &[0x8e],
        }
    }
}

/// A connection whose client may close it at any time: write errors are ignored.
pub(super) struct Connection {
    io: TcpStream,
    /// Streams that the server has reset, and whose frames may still arrive.
    reset: Vec<u32>,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Connection {
    /// Reads the client's preface and sends the server's.
    pub(super) async fn accept(io: TcpStream) -> Self {
        let reset = Vec::new();
        let mut connection = Self { io, reset };
        let _ = connection.io.read_exact(&mut [0; PREFACE_LENGTH]).await;
        connection.write(SETTINGS, 0, 0, &[]).await;
        connection
    }

    /// Reads up to the head of the next request, and returns its stream.
    pub(super) async fn read_request_head(&mut self) -> Option<u32> {
        loop {
            let frame = self.read().await?;
            if frame.kind == HEADERS {
                return Some(frame.stream);
            }
        }
    }

    /// Reads up to the end of the next request, and returns its stream.
    pub(super) async fn read_request(&mut self) -> Option<u32> {
        loop {
            let frame = self.read().await?;
            let ends_stream = frame.kind <= HEADERS && frame.flags & END_STREAM != 0;
            if ends_stream && !self.reset.contains(&frame.stream) {
                return Some(frame.stream);
            }
        }
    }

    /// Reads until the client closes the connection.
    pub(super) async fn read_to_end(mut self) {
        while self.read().await.is_some() {}
    }

    pub(super) async fn send_head(&mut self, stream: u32, status: Status) {
        let block = status.header_block();
        self.write(HEADERS, END_HEADERS, stream, block).await;
    }

    pub(super) async fn send_data(&mut self, stream: u32, data: &str) {
        self.write(DATA, 0, stream, data.as_bytes()).await;
    }

    pub(super) async fn send_last_data(&mut self, stream: u32, data: &str) {
        self.write(DATA, END_STREAM, stream, data.as_bytes()).await;
    }

    pub(super) async fn reset(&mut self, stream: u32, code: u32) {
        self.reset.push(stream);
        self.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    /// Sends a GOAWAY that excludes the streams above `last_stream`.
    pub(super) async fn go_away(&mut self, last_stream: u32, code: u32) {
        let payload = [last_stream.to_be_bytes(), code.to_be_bytes()];
        self.write(GOAWAY, 0, 0, &payload.concat()).await;
    }

    pub(super) fn end(self, ending: Ending) {
        ending.apply(self.io);
    }

    /// Reads a frame, and acknowledges it if it requires that.
    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        match kind {
            SETTINGS if flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await,
            PING if flags & ACK == 0 => self.write(PING, ACK, 0, &payload).await,
            _ => {}
        }
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
        })
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        let _ = self.io.write_all(&[&head, payload].concat()).await;
    }
}
