//! Bodies that pass through the gateway.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    VERSIONS,
    curl::curl,
    process::Gateway,
    random_bytes,
    support::{
        programs::{command, exit_status, installed},
        scripted_server::{ScriptedServer, echo},
        timeout::with_timeout,
    },
};

#[tokio::test]
async fn streams_large_body_in_both_directions() {
    if !installed(&["curl"]) {
        return;
    }
    let upstream = ScriptedServer::start([echo(), echo()]);
    let gateway = Gateway::start(upstream.address(), &[]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let sent = random_bytes(10 << 20);
    std::fs::write(&file, &sent).unwrap();
    let path = file.path().to_str().unwrap();
    for (version, flag) in VERSIONS {
        let reply = curl(&[flag, "-T", path, &gateway.uri("/")]).await;
        assert_eq!((reply.status, reply.version), (200, version));
        assert!(reply.body == sent, "{version:?}");
        assert_eq!(reply.headers["x-retry-attempts"], "1");
    }
}

#[tokio::test]
async fn forwards_body_frames_without_delay() {
    if !installed(&["curl"]) {
        return;
    }
    let upstream = ScriptedServer::start([echo(), echo()]);
    let gateway = Gateway::start(upstream.address(), &[]).await;
    for (version, flag) in VERSIONS {
        let mut curl = command("curl");
        // `-T .` receives while it waits for more input.
        let quiet = ["-q", "--no-progress-meter", "-N", "--noproxy", "*"];
        curl.args(quiet).args([flag, "-T", "."]);
        curl.arg(gateway.uri("/")).stdin(Stdio::piped());
        let mut curl = curl.stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (curl.stdin.take().unwrap(), curl.stdout.take().unwrap());
        for part in ["one", "two", "three"] {
            with_timeout(stdin.write_all(part.as_bytes()))
                .await
                .unwrap();
            let mut back = vec![0; part.len()];
            with_timeout(stdout.read_exact(&mut back)).await.unwrap();
            assert_eq!(back, part.as_bytes(), "{version:?}");
        }
        drop(stdin);
        assert!(exit_status(&mut curl).await.success(), "{version:?}");
    }
}
