//! The example `gateway`, as a program: driven by curl, loaded by wrk, ended by signals.

mod curl;
mod load;
mod program;
mod upstream;

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the tests of the servers use the rest")]
mod support;

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use http::{HeaderName, Method, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::Notify,
};

use curl::curl;
use program::{Gateway, gateway};
use support::{Silent, command, ended, free_port, installed, send_signal, until, within};
use upstream::{Seen, echo, ok, random, read_head, retry_after, status, upstream};

/// What curl is told, so that it speaks the one version or the other.
const BOTH: [(Version, &str); 2] = [
    (Version::HTTP_11, "--http1.1"),
    (Version::HTTP_2, "--http2-prior-knowledge"),
];

// --- requests ---

#[tokio::test]
async fn a_get_goes_through_by_both_versions() {
    if !installed(&["curl"]) {
        return;
    }
    let seen = Seen::default();
    let upstream = upstream(seen.script([ok("hello"), ok("hello")])).await;
    let gateway = Gateway::start(upstream, &[]).await;
    for (version, flag) in BOTH {
        let uri = gateway.uri("/accounts?page=2");
        let reply = curl(&[flag, &uri]).await;
        assert_eq!((reply.status, reply.text()), (200, "hello"), "{version:?}");
        assert_eq!(reply.version, version);
        assert_eq!(reply.headers["x-retry-attempts"], "1");
        assert_eq!(reply.headers["via"], "1.1 tower-http-retry");
        let (head, _) = seen.requests().pop().unwrap();
        assert_eq!(head.uri(), "/accounts?page=2");
        let via = match version {
            Version::HTTP_2 => "2 tower-http-retry",
            _ => "1.1 tower-http-retry",
        };
        assert_eq!(head.headers()["via"], via);
        assert_eq!(head.headers()["x-forwarded-for"], "127.0.0.1");
        assert_eq!(head.headers()["x-forwarded-proto"], "http");
        assert_eq!(head.headers()["host"], upstream.to_string());
        let asked = gateway.address.to_string();
        assert_eq!(head.headers()["x-forwarded-host"], asked, "{version:?}");
    }
}

#[tokio::test]
async fn a_post_that_was_refused_is_sent_again_whole() {
    if !installed(&["curl"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let sent = random(50_000);
    std::fs::write(&file, &sent).unwrap();
    let upload = format!("@{}", file.path().display());
    for flags in [
        &["--http1.1"][..],
        &["--http1.1", "-H", "Transfer-Encoding: chunked"],
        &["--http2-prior-knowledge"],
    ] {
        let seen = Seen::default();
        let upstream = upstream(seen.script([status(429), status(429), ok("paid")])).await;
        let gateway = Gateway::start(upstream, &[]).await;
        let uri = gateway.uri("/payments");
        let reply = curl(&[flags, &["--data-binary", &upload, &uri]].concat()).await;
        assert_eq!((reply.status, reply.text()), (200, "paid"), "{flags:?}");
        assert_eq!(reply.headers["x-retry-attempts"], "3");
        let requests = seen.requests();
        assert_eq!(requests.len(), 3, "{flags:?}");
        for (head, body) in requests {
            assert_eq!(head.method(), Method::POST);
            assert!(body == sent, "{flags:?}");
        }
    }
}

#[tokio::test]
async fn a_post_that_failed_is_not_sent_again_unless_it_has_a_key() {
    if !installed(&["curl"]) {
        return;
    }
    let seen = Seen::default();
    let upstream = upstream(seen.script([status(500), status(500), ok("paid")])).await;
    let gateway = Gateway::start(upstream, &[]).await;
    let uri = gateway.uri("/payments");
    let reply = curl(&["-d", "amount=100", &uri]).await;
    assert_eq!(reply.status, 500);
    assert_eq!(reply.headers["x-retry-attempts"], "1");
    let reply = curl(&[
        "-d",
        "amount=100",
        "-H",
        "Idempotency-Key: \"8e03978e\"",
        &uri,
    ])
    .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["x-retry-attempts"], "2");
    assert_eq!(seen.requests().len(), 3);
}

#[tokio::test]
async fn the_flags_set_the_policy() {
    if !installed(&["curl"]) {
        return;
    }
    for (flags, script, expected, attempts) in [
        (&["--max-retries", "0"][..], vec![status(429)], 429, "1"),
        (
            &["--retry-status", "503"],
            vec![status(503), ok("")],
            200,
            "2",
        ),
        (
            &["--retry-status", "429=never"],
            vec![status(429)],
            429,
            "1",
        ),
        (
            &["--budget-capacity", "10", "--budget-cost", "10"],
            vec![status(429), status(429)],
            429,
            "2",
        ),
        (
            &["--no-budget", "--max-retries", "7"],
            (0..8).map(|_| status(429)).collect(),
            429,
            "8",
        ),
        (
            &["--rate-gate", "--max-elapsed", "2s"],
            vec![retry_after(3600), ok("")],
            429,
            "1",
        ),
    ] {
        let upstream = upstream(Seen::default().script(script)).await;
        let gateway = Gateway::start(upstream, flags).await;
        let reply = curl(&[&gateway.uri("/")]).await;
        assert_eq!(reply.status, expected, "{flags:?}");
        assert_eq!(reply.headers["x-retry-attempts"], attempts, "{flags:?}");
        if flags.contains(&"--rate-gate") {
            // Closed now, it answers in place of the upstream.
            let reply = curl(&[&gateway.uri("/")]).await;
            assert_eq!(reply.status, 429);
            assert_eq!(reply.headers["x-retry-attempts"], "0");
        }
    }
}

#[tokio::test]
async fn without_an_answer_the_gateway_gives_its_own() {
    if !installed(&["curl"]) {
        return;
    }
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gateway = Gateway::start(nobody, &["--max-retries", "2"]).await;
    let reply = curl(&["-d", "amount=100", &gateway.uri("/payments?token=secret")]).await;
    assert_eq!(reply.status, 502);
    assert_eq!(reply.headers["x-retry-attempts"], "3");
    assert_eq!(
        reply.text(),
        "the upstream cannot be reached (retries_exhausted)\n"
    );

    let mut silent = Silent::new();
    let address = SocketAddr::from(([127, 0, 0, 1], silent.port()));
    let flags = ["--attempt-timeout", "100ms", "--max-retries", "2"];
    let gateway = Gateway::start(address, &flags).await;
    let reply = curl(&[&gateway.uri("/")]).await;
    assert_eq!(reply.status, 504);
    assert_eq!(reply.headers["x-retry-attempts"], "3");
    assert_eq!(
        reply.text(),
        "the upstream did not answer in time (retries_exhausted)\n"
    );
    assert_eq!(silent.connections(), 3);
    let reply = curl(&["-d", "amount=100", &gateway.uri("/")]).await;
    assert_eq!(reply.status, 504);
    assert_eq!(reply.headers["x-retry-attempts"], "1");
    assert_eq!(
        reply.text(),
        "the upstream did not answer in time (not_idempotent)\n"
    );
}

// --- headers ---

#[tokio::test]
async fn each_side_may_speak_the_version_that_the_other_does_not() {
    if !installed(&["curl"]) {
        return;
    }
    let seen = Seen::default();
    let script = [status(429), ok("one"), status(429), ok("two")];
    let upstream = upstream(seen.script(script)).await;
    for ((version, flag), upstream_flags) in BOTH.into_iter().zip([&["--upstream-http2"][..], &[]])
    {
        let gateway = Gateway::start(upstream, upstream_flags).await;
        let cookies = ["-H", "Cookie: a=1", "-H", "Cookie: b=2"];
        let target = [
            "-X",
            "OPTIONS",
            "--request-target",
            "*",
            "-H",
            "TE: trailers",
        ];
        let uri = gateway.uri("/");
        let reply = curl(&[&cookies[..], &target, &[flag, &uri]].concat()).await;
        assert_eq!((reply.status, reply.version), (200, version));
        assert_eq!(reply.headers["x-retry-attempts"], "2", "{version:?}");
        let (head, _) = seen.requests().pop().unwrap();
        assert_ne!(head.version(), version);
        assert_eq!(head.uri().path(), "*", "{version:?}");
        let cookies: Vec<_> = head.headers().get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2"], "{version:?}");
        assert_eq!(head.headers()["te"], "trailers", "{version:?}");
    }
}

#[tokio::test]
async fn what_is_meant_for_the_next_hop_ends_there() {
    if !installed(&["curl"]) {
        return;
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let gateway = Gateway::start(listener.local_addr().unwrap(), &[]).await;
    let uri = gateway.uri("/");
    let reply = tokio::spawn(async move {
        let headers = [
            "Connection: x-hop, Keep-Alive",
            "X-Hop: client",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic c2VjcmV0",
            "TE: gzip, trailers",
            "Upgrade: websocket",
            "X-Forwarded-For: 192.0.2.7",
            "Via: 1.0 elsewhere",
            "Forwarded: for=192.0.2.66",
            "X-End: client",
        ];
        let headers = headers.iter().flat_map(|header| ["-H", header]);
        curl(&headers.chain([&*uri]).collect::<Vec<_>>()).await
    });
    // By hand, since a library would mend what it sends.
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let mut head = read_head(&mut stream).await;
    head.sort();
    let expected = [
        "GET / HTTP/1.1",
        "accept: */*",
        "connection: te",
        &format!("host: {}", listener.local_addr().unwrap()),
        "te: trailers",
        "via: 1.0 elsewhere",
        "via: 1.1 tower-http-retry",
        "x-end: client",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-for: 192.0.2.7",
        &format!("x-forwarded-host: {}", gateway.address),
        "x-forwarded-proto: http",
    ];
    let user_agent = head
        .iter()
        .position(|line| line.starts_with("user-agent: curl/"));
    head.remove(user_agent.expect("curl tells its name"));
    assert_eq!(head, expected);

    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: server\r\n\
        keep-alive: timeout=7\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\nvia: 1.0 older\r\n\
        x-retry-attempts: 99\r\nx-end: server\r\n\r\nhi";
    within(stream.write_all(answer.as_bytes())).await.unwrap();
    let reply = within(reply).await.unwrap();
    assert_eq!((reply.status, reply.text()), (200, "hi"));
    let mut names: Vec<_> = reply.headers.keys().map(HeaderName::as_str).collect();
    names.sort();
    let expected = ["content-length", "date", "via", "x-end", "x-retry-attempts"];
    assert_eq!(names, expected);
    assert_eq!(reply.headers["x-retry-attempts"], "1");
    let via: Vec<_> = reply.headers.get_all("via").iter().collect();
    assert_eq!(via, ["1.0 older", "1.1 tower-http-retry"]);
}

// --- bodies ---

#[tokio::test]
async fn ten_mebibytes_go_both_ways_at_once() {
    if !installed(&["curl"]) {
        return;
    }
    let upstream = upstream(echo).await;
    let gateway = Gateway::start(upstream, &[]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let sent = random(10 << 20);
    std::fs::write(&file, &sent).unwrap();
    let path = file.path().to_str().unwrap();
    for (version, flag) in BOTH {
        let reply = curl(&[flag, "-T", path, &gateway.uri("/")]).await;
        assert_eq!((reply.status, reply.version), (200, version));
        assert!(reply.body == sent, "{version:?}");
        assert_eq!(reply.headers["x-retry-attempts"], "1");
    }
}

#[tokio::test]
async fn a_body_is_passed_on_as_it_comes() {
    if !installed(&["curl"]) {
        return;
    }
    let upstream = upstream(echo).await;
    let gateway = Gateway::start(upstream, &[]).await;
    for (version, flag) in BOTH {
        let mut curl = command("curl");
        // `-T .` listens while it waits for more to send.
        let quiet = ["-q", "--no-progress-meter", "-N", "--noproxy", "*"];
        curl.args(quiet).args([flag, "-T", "."]);
        curl.arg(gateway.uri("/")).stdin(Stdio::piped());
        let mut curl = curl.stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (curl.stdin.take().unwrap(), curl.stdout.take().unwrap());
        for part in ["one", "two", "three"] {
            within(stdin.write_all(part.as_bytes())).await.unwrap();
            let mut back = vec![0; part.len()];
            within(stdout.read_exact(&mut back)).await.unwrap();
            assert_eq!(back, part.as_bytes(), "{version:?}");
        }
        drop(stdin);
        assert!(ended(&mut curl).await.success(), "{version:?}");
    }
}

// --- the program ---

#[tokio::test]
async fn a_request_under_way_outlives_the_signal_to_stop() {
    if !installed(&["curl"]) {
        return;
    }
    for (signal, (version, flag)) in ["TERM", "INT"].into_iter().zip(BOTH) {
        let (arrived, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let upstream = upstream({
            let (arrived, answer) = (arrived.clone(), answer.clone());
            move |_| {
                let (arrived, answer) = (arrived.clone(), answer.clone());
                async move {
                    arrived.notify_one();
                    answer.notified().await;
                    ok("at last")
                }
            }
        })
        .await;
        let mut gateway = Gateway::start(upstream, &[]).await;
        let uri = gateway.uri("/");
        let reply = tokio::spawn(async move { curl(&[flag, &uri]).await });
        within(arrived.notified()).await;
        send_signal(&gateway.child, signal).await;
        let address = gateway.address;
        until("no one else is let in", async || {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        answer.notify_one();
        let reply = within(reply).await.unwrap();
        assert_eq!(
            (reply.status, reply.text()),
            (200, "at last"),
            "{version:?}"
        );
        let status = ended(&mut gateway.child).await;
        assert_eq!(status.code(), Some(0), "{version:?}");
    }
}

#[tokio::test]
async fn the_grace_period_and_a_second_signal_end_it_with_requests_under_way() {
    if !installed(&["curl"]) {
        return;
    }
    for (grace, signals) in [("100ms", 1), ("1h", 2)] {
        let mut silent = Silent::new();
        let address = SocketAddr::from(([127, 0, 0, 1], silent.port()));
        let mut gateway = Gateway::start(address, &["--grace", grace]).await;
        let mut curl = command("curl");
        curl.args(["-q", "-s", "--noproxy", "*", &gateway.uri("/")]);
        let mut curl = curl.spawn().unwrap();
        until("it is under way", async || silent.connections() == 1).await;
        send_signal(&gateway.child, "TERM").await;
        if signals == 2 {
            let address = gateway.address;
            until("it has heard the first", async || {
                TcpStream::connect(address).await.is_err()
            })
            .await;
            send_signal(&gateway.child, "TERM").await;
        }
        assert_eq!(ended(&mut gateway.child).await.code(), Some(1), "{grace}");
        assert!(!ended(&mut curl).await.success(), "{grace}");
    }
}

#[tokio::test]
async fn what_it_cannot_do_it_says_at_once() {
    let fine = ["--upstream", "http://127.0.0.1:1"];
    for (arguments, text) in [
        (&[][..], "--upstream <URL>"),
        (&["--upstream", "https://127.0.0.1"], "speaks no TLS"),
        (&["--upstream", "127.0.0.1:80"], "http://host[:port]"),
        (
            &["--upstream", "http://u:p@127.0.0.1"],
            "http://host[:port]",
        ),
        (
            &[&fine[..], &["--retry-status", "200"]].concat(),
            "200 OK is not a 4xx",
        ),
        (
            &[&fine[..], &["--budget-cost", "0"]].concat(),
            "a retry has to cost",
        ),
        (&[&fine[..], &["--grace", "soon"]].concat(), "--grace"),
    ] {
        let mut command = Command::new(gateway());
        let output = within(command.args(arguments).output()).await.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains(text), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{arguments:?}: {error}");
    }
}
