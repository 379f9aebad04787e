//! Programs that the tests drive: found, started on free ports, waited for, and ended with the test.

pub(crate) mod haproxy;
pub(crate) mod nginx;

use std::{
    env,
    fs::File,
    future::Future,
    io::{Seek, SeekFrom},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};

/// Whether all `programs` are there. Under CI they have to be.
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

/// Debian keeps servers where only root's `PATH` leads to.
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

/// A port that nobody listens on.
///
/// Not one of those that the system hands out by itself: until the server takes it, it could become
/// the near end of anybody's connection.
pub(crate) fn free_port() -> u16 {
    // Counted up from anywhere, so that no two tests of one program get the same.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| fastrand::u16(10_000..30_000).into());
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.find(is_free).unwrap()
}

/// A server that runs in a folder of its own, and ends with the test.
#[derive(Debug)]
pub(crate) struct Server {
    dir: TempDir,
    port: u16,
    program: &'static str,
    arguments: &'static [&'static str],
    child: Option<Child>,
}

impl Server {
    /// One that is not running yet: `program` with its configuration written as `files`.
    fn new(
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

    /// Returns when it listens.
    pub(crate) async fn start(&mut self) {
        let mut log = File::options();
        let log = log.write(true).create(true).truncate(false);
        let mut log = log.open(self.file(LOG)).unwrap();
        // HAProxy would clear an append flag.
        log.seek(SeekFrom::End(0)).unwrap();
        let mut command = command(self.program);
        command.args(self.arguments).current_dir(self.dir.path());
        let (program, address) = (self.program, self.address());
        let child = self.child.insert(command.stdout(log).spawn().unwrap());
        until("the server listens", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{program}: {status}");
            }
            TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    /// Ends it by a signal: TERM at once, or USR1, by which HAProxy lets what is under way end.
    pub(crate) async fn stop(&mut self, signal: &str) {
        let mut child = self.child.take().expect("it runs");
        send_signal(&child, signal).await;
        ended(&mut child).await;
    }

    /// Without giving it time to take leave of anybody.
    pub(crate) async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().await.unwrap();
    }

    /// Changes its configuration, for the next start.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let file = self.file(self.arguments[self.arguments.len() - 1]);
        let config = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, config.replace(from, to)).unwrap();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The address of `path` on it.
    pub(crate) fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What its log says of each request, in order, as soon as there are `expected` lines.
    ///
    /// Stopped then, so that nothing can follow: it is the whole log.
    pub(crate) async fn log(&mut self, expected: usize) -> Vec<String> {
        until_or_late(async || self.logged().len() >= expected).await;
        self.stop("TERM").await;
        self.logged()
    }

    /// What its log says up to now; a request may be answered before it is logged.
    pub(crate) fn logged(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.file(LOG)).unwrap_or_default();
        // HAProxy has some last words.
        let requests = log.lines().filter(|line| !line.starts_with("Proxy "));
        requests.map(str::to_owned).collect()
    }
}

/// The log of requests in a server's folder.
const LOG: &str = "stdout";

pub(crate) async fn send_signal(child: &Child, signal: &str) {
    let id = child.id().expect("it runs");
    let mut kill = command("sh");
    kill.arg("-c").arg(format!("kill -{signal} {id}"));
    assert!(kill.status().await.unwrap().success());
}

pub(crate) async fn ended(child: &mut Child) -> ExitStatus {
    within(child.wait()).await.unwrap()
}

pub(crate) async fn until(what: &str, is_so: impl AsyncFnMut() -> bool) {
    assert!(until_or_late(is_so).await, "never came: {what}");
}

/// Whether it came in time.
async fn until_or_late(mut is_so: impl AsyncFnMut() -> bool) -> bool {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.is_ok()
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it hangs")
}

/// Many tests at once may share few processors.
const PATIENCE: Duration = Duration::from_secs(20);

/// A peer that takes connections and never says a word.
#[derive(Debug)]
pub(crate) struct Silent {
    listener: TcpListener,
    streams: Vec<std::net::TcpStream>,
}

impl Silent {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            listener,
            streams: Vec::new(),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// How many connections have come so far.
    pub(crate) fn connections(&mut self) -> usize {
        while let Ok((stream, _)) = self.listener.accept() {
            self.streams.push(stream);
        }
        self.streams.len()
    }
}
