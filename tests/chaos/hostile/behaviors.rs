//! The behaviors of hostile servers.

use super::{
    Behavior, Ending,
    Expected::{self, *},
    Part::{self, *},
    Retried,
};

const NO_BODY: &str = "content-length: 0\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\n";
const WITH_LENGTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const CHUNK: &str = "20\r\n0123456789abcdef0123456789abcdef\r\n";
const FAILURE: &str = "HTTP/1.1 500 Internal Server Error\r\n";
const REJECTION: &str = "HTTP/1.1 429 Too Many Requests\r\n";
const UNAUTHORIZED: &str = "HTTP/1.1 401 Unauthorized\r\n";

pub(super) fn all() -> Vec<Behavior> {
    let groups = [
        status_lines(),
        header_fields(),
        header_floods(),
        lengths(),
        chunks(),
        interim_responses(),
        surplus(),
        failures(),
        rejections(),
    ];
    groups.into_iter().flatten().collect()
}

fn status_lines() -> Vec<Behavior> {
    vec![
        fin("nothing, then FIN", [], Error).retried(Retried::IfIdempotent),
        rst("nothing, then RST", [], Error).retried(Retried::IfIdempotent),
        stall("nothing", [], Timeout).retried(Retried::IfIdempotent),
        stall("half a status line", [Text("HTTP/1.1 2")], Timeout).retried(Retried::IfIdempotent),
        fin("half a status line, then FIN", [Text("HTTP/1.1 2")], Error)
            .retried(Retried::IfIdempotent),
        stall(
            "endless reason phrase",
            [Text("HTTP/1.1 200 "), Forever("x")],
            Error,
        ),
        stall("endless empty lines", [Forever("\r\n")], Error),
        stall("no HTTP", [Text("220 mail.example ESMTP\r\n")], Error),
        stall("binary data", [Text("\0\u{1}\u{2}\u{3}\r\n\r\n")], Error),
        stall(
            "TLS alert",
            [Text("\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}")],
            Error,
        ),
        stall("HTTP/2 SETTINGS", [Text("\0\0\0\u{4}\0\0\0\0\0")], Error),
        stall("unknown version", [Text("HTTP/9.9 200 OK\r\n\r\n")], Error),
        stall(
            "status with four digits",
            [Text("HTTP/1.1 2000 OK\r\n\r\n")],
            Error,
        ),
        stall("status 000", [Text("HTTP/1.1 000 None\r\n\r\n")], Error),
        stall("negative status", [Text("HTTP/1.1 -20 OK\r\n\r\n")], Error),
    ]
}

fn header_fields() -> Vec<Behavior> {
    let head = |line| [Text(OK), Text(line), Text("content-length: 5\r\n\r\nhello")];
    vec![
        keep_alive("NUL in a value", head("x: a\0b\r\n"), Error),
        keep_alive("NUL in a name", head("x\0: a\r\n"), Error),
        keep_alive("space before the colon", head("x : a\r\n"), Error),
        keep_alive("no colon", head("x\r\n"), Error),
        keep_alive("empty name", head(": a\r\n"), Error),
        keep_alive("folded line", head("x: a\r\n b\r\n"), Error),
        keep_alive("bare CR", head("x: a\rb\r\n"), Error),
        keep_alive("bare LF", head("x: a\ny: b\n"), Response),
        keep_alive("value in UTF-8", head("x: \u{fc}\r\n"), Response),
    ]
}

fn header_floods() -> Vec<Behavior> {
    vec![
        stall(
            "endless value",
            [Text(OK), Text("x: "), Forever("x")],
            Error,
        ),
        stall("endless headers", [Text(OK), Forever("x: a\r\n")], Error),
        stall(
            "1000 headers",
            [Text(OK), Times(1000, "x: a\r\n"), Text("\r\n")],
            Error,
        ),
        stall(
            "head byte by byte",
            [Drip(OK), DripForever("x: a\r\n")],
            Timeout,
        )
        .retried(Retried::IfIdempotent),
        stall("head without end", [Text(OK), Text("x: a\r\n")], Timeout)
            .retried(Retried::IfIdempotent),
    ]
}

fn lengths() -> Vec<Behavior> {
    let length = |line| [Text(OK), Text(line), Text("\r\nhello")];
    vec![
        stall(
            "body without end",
            [Text(WITH_LENGTH), Text("hell")],
            BodyTimeout,
        ),
        fin(
            "body without end, then FIN",
            [Text(WITH_LENGTH), Text("hell")],
            BodyError,
        ),
        keep_alive(
            "body byte by byte",
            [Text(WITH_LENGTH), Drip("hello")],
            Response,
        ),
        stall(
            "endless body byte by byte",
            [Text(CHUNKED), DripForever("1\r\nx\r\n")],
            BodyTimeout,
        ),
        stall(
            "endless body until close",
            [Text(OK), Text("\r\n"), Forever("x")],
            BodyTooLarge,
        ),
        keep_alive("negative length", length("content-length: -5\r\n"), Error),
        keep_alive(
            "length with a sign",
            length("content-length: +5\r\n"),
            Error,
        ),
        keep_alive(
            "length of 21 digits",
            length("content-length: 100000000000000000000\r\n"),
            Error,
        ),
        fin(
            "length of 2^64 - 1",
            length("content-length: 18446744073709551615\r\n"),
            Error,
        ),
        keep_alive(
            "two lengths",
            length("content-length: 5\r\ncontent-length: 6\r\n"),
            Error,
        ),
        keep_alive(
            "length and chunks",
            length("content-length: 1\r\ntransfer-encoding: chunked\r\n"),
            BodyError,
        ),
        fin(
            "unknown transfer coding",
            length("transfer-encoding: zip\r\n"),
            Response,
        ),
    ]
}

fn chunks() -> Vec<Behavior> {
    let chunk = |text| [Text(CHUNKED), Text(text)];
    vec![
        stall(
            "endless chunks",
            [Text(CHUNKED), Forever(CHUNK)],
            BodyTooLarge,
        ),
        stall("chunks without end", chunk("5\r\nhello\r\n"), BodyTimeout),
        fin(
            "chunks without end, then FIN",
            chunk("5\r\nhello\r\n"),
            BodyError,
        ),
        stall(
            "chunk size is no number",
            chunk("x\r\nhello\r\n0\r\n\r\n"),
            BodyError,
        ),
        stall(
            "chunk size is negative",
            chunk("-5\r\nhello\r\n0\r\n\r\n"),
            BodyError,
        ),
        stall(
            "chunk size of 17 digits",
            chunk("FFFFFFFFFFFFFFFFF\r\nhello"),
            BodyError,
        ),
        stall(
            "chunk size of 2^64 - 1",
            chunk("FFFFFFFFFFFFFFFF\r\nhello"),
            BodyTimeout,
        ),
        stall(
            "no CRLF after a chunk",
            chunk("5\r\nhelloworld\r\n0\r\n\r\n"),
            BodyError,
        ),
        stall(
            "endless chunk extension",
            [Text(CHUNKED), Text("5;"), Forever("x")],
            BodyError,
        ),
        stall(
            "endless trailers",
            [Text(CHUNKED), Text("0\r\n"), Forever("x: a\r\n")],
            BodyError,
        ),
        stall(
            "endless trailer",
            [Text(CHUNKED), Text("0\r\nx: "), Forever("x")],
            BodyError,
        ),
    ]
}

fn interim_responses() -> Vec<Behavior> {
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    vec![
        stall("endless 100", [Forever(CONTINUE)], Timeout).retried(Retried::IfIdempotent),
        stall("endless 103", [Forever(HINTS)], Timeout).retried(Retried::IfIdempotent),
        keep_alive(
            "1000 times 103",
            [Times(1000, HINTS), Text(WITH_LENGTH), Text("hello")],
            Response,
        ),
        stall(
            "101 without upgrade",
            [Text("HTTP/1.1 101 Switching Protocols\r\n\r\n")],
            Response,
        ),
        stall(
            "100 with a body",
            [Text(
                "HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nhello",
            )],
            Error,
        ),
    ]
}

fn surplus() -> Vec<Behavior> {
    const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";
    vec![
        keep_alive("two responses", [Times(2, WHOLE)], Response),
        stall("endless responses", [Forever(WHOLE)], Response),
        keep_alive(
            "body above its length",
            [Text(WHOLE), Text("world")],
            Response,
        ),
        keep_alive(
            "204 with a body",
            [Text(NO_CONTENT), Text("hello")],
            Response,
        ),
        keep_alive(
            "bytes after the last chunk",
            [Text(CHUNKED), Text("0\r\n\r\nhello")],
            Response,
        ),
    ]
}

/// Failures that the layer inspects, drains and retries.
fn failures() -> Vec<Behavior> {
    vec![
        stall(
            "500 with an endless body",
            [Text(FAILURE), Text("\r\n"), Forever("x")],
            BodyTooLarge,
        )
        .retried(Retried::IfIdempotent),
        stall(
            "500 with a stalled body",
            [Text(FAILURE), Text("\r\n"), Text("x")],
            BodyTimeout,
        )
        .retried(Retried::IfIdempotent),
        stall(
            "500 byte by byte",
            [Text(FAILURE), Text("\r\n"), DripForever("x")],
            BodyTimeout,
        )
        .retried(Retried::IfIdempotent),
        fin(
            "500 with deep JSON",
            [Text(FAILURE), Text("\r\n"), Times(100_000, "[")],
            Response,
        )
        .retried(Retried::IfIdempotent),
        stall(
            "500 with JSON without end",
            [Text(FAILURE), Text("\r\n{\"error\": \""), Forever("x")],
            BodyTooLarge,
        )
        .retried(Retried::IfIdempotent),
        fin(
            "500 with false gzip",
            [
                Text(FAILURE),
                Text("content-encoding: gzip\r\n\r\n"),
                Text("{}"),
            ],
            Response,
        )
        .retried(Retried::IfIdempotent),
        stall(
            "500 with invalid chunks",
            [
                Text(FAILURE),
                Text("transfer-encoding: chunked\r\n\r\nx\r\n"),
            ],
            BodyError,
        )
        .retried(Retried::IfIdempotent),
    ]
}

fn rejections() -> Vec<Behavior> {
    vec![
        keep_alive(
            "401 with a long challenge",
            [
                Text(UNAUTHORIZED),
                Text("www-authenticate: Bearer x=\""),
                Times(300_000, "\\"),
                Text("\"\r\n"),
                Text(NO_BODY),
            ],
            Response,
        ),
        keep_alive(
            "429 with Retry-After above 2^64",
            [
                Text(REJECTION),
                Text("retry-after: 99999999999999999999\r\n"),
                Text(NO_BODY),
            ],
            Response,
        ),
        keep_alive(
            "429 with Retry-After in the year 9999",
            [
                Text(REJECTION),
                Text("retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n"),
                Text(NO_BODY),
            ],
            Response,
        ),
        keep_alive(
            "429 with an invalid Retry-After",
            [
                Text(REJECTION),
                Text("retry-after: \u{fc}\r\n"),
                Text(NO_BODY),
            ],
            Response,
        )
        .retried(Retried::Always),
        stall(
            "429 with an endless body",
            [Text(REJECTION), Text("\r\n"), Forever("x")],
            BodyTooLarge,
        )
        .retried(Retried::Always),
    ]
}

fn fin(name: &'static str, parts: impl Into<Vec<Part>>, expected: Expected) -> Behavior {
    behavior(name, parts, Ending::Fin, expected)
}

fn rst(name: &'static str, parts: impl Into<Vec<Part>>, expected: Expected) -> Behavior {
    behavior(name, parts, Ending::Rst, expected)
}

fn stall(name: &'static str, parts: impl Into<Vec<Part>>, expected: Expected) -> Behavior {
    behavior(name, parts, Ending::Stall, expected)
}

fn keep_alive(name: &'static str, parts: impl Into<Vec<Part>>, expected: Expected) -> Behavior {
    behavior(name, parts, Ending::KeepAlive, expected)
}

fn behavior(
    name: &'static str,
    parts: impl Into<Vec<Part>>,
    ending: Ending,
    expected: Expected,
) -> Behavior {
    Behavior {
        name,
        parts: parts.into(),
        ending,
        expected,
        retried: Retried::Never,
    }
}

impl Behavior {
    fn retried(mut self, retried: Retried) -> Self {
        self.retried = retried;
        self
    }
}
