//! The gateway as a running process.

use std::{env, net::SocketAddr, path::PathBuf, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::timeout::with_timeout;

/// A gateway on a free port. It ends with the test.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Gateway {
    pub(crate) async fn start(upstream: SocketAddr, flags: &[&str]) -> Self {
        let mut command = Command::new(gateway_program());
        command
            .args([
                "--upstream",
                &format!("http://{upstream}"),
                "--listen",
                "127.0.0.1:0",
            ])
            .args(flags)
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        with_timeout(stdout.read_line(&mut line)).await.unwrap();
        let address = line.trim_end().strip_prefix("listening on http://");
        let address = address.and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}"));
        Self { child, address }
    }

    pub(crate) fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Returns the path of the example, which `cargo test` builds beside the tests.
///
/// `cargo test --test gateway` builds no examples, and runs the program of an earlier build.
pub(crate) fn gateway_program() -> PathBuf {
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let name = format!("gateway{}", env::consts::EXE_SUFFIX);
    let file = profile.join("examples").join(name);
    assert!(
        file.is_file(),
        "{} is missing: cargo build --example gateway",
        file.display()
    );
    file
}
