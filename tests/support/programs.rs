//! Programs that the tests run: they listen on free ports and end with the test.

use std::{
    env,
    fs::File,
    io::{Seek, SeekFrom},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::timeout::{becomes_true, wait_until, with_timeout};

/// Returns true if all `programs` are installed. Panics under CI otherwise.
pub(crate) fn installed(programs: &[&str]) -> bool {
    let missing = programs.iter().filter(|program| find(program).is_none());
    let missing: Vec<_> = missing.copied().collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    let text = format!("not installed: {missing}; apt-get install nginx haproxy curl wrk");
    assert!(env::var_os("CI").is_none(), "{text}");
    eprintln!("skipped: {text}");
    false
}

/// Finds a program, also in the folders of servers, which on Debian only root has in `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(Into::into));
    let mut files = folders.map(|folder| folder.join(program));
    files.find(|file| file.is_file())
}

pub(crate) fn command(program: &str) -> Command {
    let program = find(program).unwrap_or_else(|| program.into());
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Returns a port without a listener.
///
/// It is below the ephemeral ports: one of those could become the local port of another connection before
/// the server listens.
pub(crate) fn free_port() -> u16 {
    // A counter with a random start gives each test of a program another port.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| fastrand::u16(10_000..30_000).into());
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.find(is_free).unwrap()
}

/// A server program in its own folder. It ends with the test.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    dir: TempDir,
    port: u16,
    program: &'static str,
    arguments: &'static [&'static str],
    child: Option<Child>,
}

impl ServerProcess {
    /// Writes the configuration `files` of `program`, without starting it.
    pub(super) fn new(
        program: &'static str,
        arguments: &'static [&'static str],
        port: u16,
        files: &[(&str, &str)],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        Self {
            dir,
            port,
            program,
            arguments,
            child: None,
        }
    }

    /// Starts the program, and waits until it listens.
    pub(crate) async fn start(&mut self) {
        let mut log = File::options();
        let log = log.write(true).create(true).truncate(false);
        let mut log = log.open(self.file(LOG)).unwrap();
        // Not in append mode, because HAProxy clears that flag.
        log.seek(SeekFrom::End(0)).unwrap();
        let mut command = command(self.program);
        command.args(self.arguments).current_dir(self.dir.path());
        let (program, address) = (self.program, self.address());
        let child = self.child.insert(command.stdout(log).spawn().unwrap());
        wait_until("the server listens", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{program}: {status}");
            }
            TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    /// Stops the program with a signal: TERM, or USR1, after which HAProxy completes open requests.
    pub(crate) async fn stop(&mut self, signal: &str) {
        let mut child = self.child.take().expect("the program runs");
        send_signal(&child, signal).await;
        exit_status(&mut child).await;
    }

    /// Kills the program without a graceful shutdown.
    pub(crate) async fn kill(&mut self) {
        let mut child = self.child.take().expect("the program runs");
        child.kill().await.unwrap();
    }

    /// Changes the configuration for the next start.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let file = self.file(self.arguments[self.arguments.len() - 1]);
        let config = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, config.replace(from, to)).unwrap();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the URI of `path` on this server.
    pub(crate) fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits for `expected` lines in the log, stops the program, and returns the complete log.
    pub(crate) async fn log(&mut self, expected: usize) -> Vec<String> {
        becomes_true(async || self.logged().len() >= expected).await;
        self.stop("TERM").await;
        self.logged()
    }

    /// Returns the lines logged up to now. A request may be logged after its response was sent.
    pub(crate) fn logged(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.file(LOG)).unwrap_or_default();
        // HAProxy also logs its shutdown.
        let requests = log.lines().filter(|line| !line.starts_with("Proxy "));
        requests.map(str::to_owned).collect()
    }
}

/// The file in the server's folder with a line for each request.
const LOG: &str = "stdout";

pub(crate) async fn send_signal(child: &Child, signal: &str) {
    let id = child.id().expect("the program runs");
    let mut kill = command("sh");
    kill.arg("-c").arg(format!("kill -{signal} {id}"));
    assert!(kill.status().await.unwrap().success());
}

/// Waits for the end of the program.
pub(crate) async fn exit_status(child: &mut Child) -> ExitStatus {
    with_timeout(child.wait()).await.unwrap()
}
