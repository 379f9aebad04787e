//! A small reverse proxy that adds this crate's retry layer to programs in any language.
//!
//! `cargo run --example gateway -- --upstream http://127.0.0.1:8080 --listen 127.0.0.1:8000` forwards
//! requests over HTTP/1.1, or over HTTP/2 with prior knowledge. `-- --help` describes all settings.
//! TLS, tunnels (`CONNECT`) and connection upgrades are not supported.

mod headers;
mod proxy;
mod settings;

use std::{
    convert::Infallible,
    error::Error,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::net::{TcpListener, TcpStream};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use proxy::Gateway;
use settings::Settings;

type BoxError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    log_to_stderr();
    match run(&settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
}

async fn run(settings: &Settings) -> Result<(), BoxError> {
    let gateway = Gateway::new(settings)?;
    // Installed before the address is printed: its reader may send a signal immediately.
    let mut signals = Signals::new()?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", settings.listen))?;
    writeln!(
        io::stdout(),
        "listening on http://{}",
        listener.local_addr()?
    )?;

    let connections = GracefulShutdown::new();
    tokio::select! {
        () = accept(&listener, gateway, &connections) => {}
        () = signals.recv() => {}
    }
    drop(listener);
    tracing::info!(connections = connections.count(), "shutting down");
    tokio::select! {
        () = connections.shutdown() => Ok(()),
        () = tokio::time::sleep(settings.grace) => {
            Err("grace period over, requests are still running".into())
        }
        () = signals.recv() => Err("second signal received, requests are still running".into()),
    }
}

async fn accept(listener: &TcpListener, gateway: Gateway, connections: &GracefulShutdown) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    // Required by hyper's read timeout for request heads.
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => serve(&server, stream, peer, gateway.clone(), connections),
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                // Possibly out of file descriptors: an immediate second attempt would fail too.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn serve(
    server: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    gateway: Gateway,
    connections: &GracefulShutdown,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "failed to set TCP_NODELAY");
    }
    let service = service_fn(move |request| {
        let gateway = gateway.clone();
        async move { Ok::<_, Infallible>(gateway.forward(request, peer.ip()).await) }
    });
    let connection = server.serve_connection(TokioIo::new(stream), service);
    let connection = connections.watch(connection.into_owned());
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error, "connection error");
        }
    });
}

/// Shutdown signals: SIGINT and SIGTERM, or Ctrl-C on systems without them.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    async fn recv(&mut self) {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "failed to listen for Ctrl-C");
            std::future::pending().await
        }
    }
}
