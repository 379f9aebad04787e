//! The program: its shutdown and its arguments.

use std::sync::Arc;

use tokio::{net::TcpStream, process::Command, sync::Notify};

use crate::{
    VERSIONS,
    curl::curl,
    process::{Gateway, gateway_program},
    support::{
        programs::{command, exit_status, installed, send_signal},
        scripted_server::{ScriptedServer, ok},
        silent_peer::SilentPeer,
        timeout::{wait_until, with_timeout},
    },
};

#[tokio::test]
async fn shutdown_completes_open_requests() {
    if !installed(&["curl"]) {
        return;
    }
    for (signal, (version, flag)) in ["TERM", "INT"].into_iter().zip(VERSIONS) {
        let release = Arc::new(Notify::new());
        let upstream = ScriptedServer::start([ok("at last").after(&release)]);
        let mut gateway = Gateway::start(upstream.address(), &[]).await;
        let uri = gateway.uri("/");
        let reply = tokio::spawn(async move { curl(&[flag, &uri]).await });
        upstream.head(0).await;
        send_signal(&gateway.child, signal).await;
        let address = gateway.address;
        wait_until("new connections are refused", async || {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        release.notify_one();
        let reply = with_timeout(reply).await.unwrap();
        assert_eq!(
            (reply.status, reply.text()),
            (200, "at last"),
            "{version:?}"
        );
        let status = exit_status(&mut gateway.child).await;
        assert_eq!(status.code(), Some(0), "{version:?}");
    }
}

#[tokio::test]
async fn grace_period_and_second_signal_abort_open_requests() {
    if !installed(&["curl"]) {
        return;
    }
    for (grace, signals) in [("100ms", 1), ("1h", 2)] {
        let mut silent = SilentPeer::new();
        let mut gateway = Gateway::start(silent.address(), &["--grace", grace]).await;
        let mut curl = command("curl");
        curl.args(["-q", "-s", "--noproxy", "*", &gateway.uri("/")]);
        let mut curl = curl.spawn().unwrap();
        wait_until("the request reaches the upstream", async || {
            silent.connections() == 1
        })
        .await;
        send_signal(&gateway.child, "TERM").await;
        if signals == 2 {
            let address = gateway.address;
            wait_until("the first signal takes effect", async || {
                TcpStream::connect(address).await.is_err()
            })
            .await;
            send_signal(&gateway.child, "TERM").await;
        }
        assert_eq!(
            exit_status(&mut gateway.child).await.code(),
            Some(1),
            "{grace}"
        );
        assert!(!exit_status(&mut curl).await.success(), "{grace}");
    }
}

#[tokio::test]
async fn invalid_arguments_are_reported() {
    let upstream = ["--upstream", "http://127.0.0.1:1"];
    for (arguments, text) in [
        (&[][..], "--upstream <URL>"),
        (&["--upstream", "https://127.0.0.1"], "speaks no TLS"),
        (&["--upstream", "127.0.0.1:80"], "http://host[:port]"),
        (
            &["--upstream", "http://u:p@127.0.0.1"],
            "http://host[:port]",
        ),
        (
            &[&upstream[..], &["--classify-status", "200"]].concat(),
            "classify_status.200: not a 4xx or 5xx status",
        ),
        (
            &[&upstream[..], &["--budget-cost", "0"]].concat(),
            "invalid value '0' for '--budget-cost",
        ),
        (&[&upstream[..], &["--grace", "soon"]].concat(), "--grace"),
    ] {
        let mut command = Command::new(gateway_program());
        let output = with_timeout(command.args(arguments).output())
            .await
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains(text), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{arguments:?}: {error}");
    }
}
