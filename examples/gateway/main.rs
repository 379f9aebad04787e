//! A small reverse proxy that gives any program, in any language, this crate's retry layer.
//!
//! `cargo run --example gateway -- --upstream http://127.0.0.1:8080 --listen 127.0.0.1:8000` forwards
//! what it is sent to the upstream, by HTTP/1.1 or by HTTP/2 with prior knowledge; `-- --help` tells of
//! every setting. It speaks no TLS, opens no tunnels (`CONNECT`) and upgrades no connection.

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
    // Before the address is printed: who has read it may send a signal.
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
        () = signals.next() => {}
    }
    drop(listener);
    tracing::info!(connections = connections.count(), "stopping");
    tokio::select! {
        () = connections.shutdown() => Ok(()),
        () = tokio::time::sleep(settings.grace) => Err("requests outlasted the grace period".into()),
        () = signals.next() => Err("told twice to stop, with requests still running".into()),
    }
}

async fn accept(listener: &TcpListener, gateway: Gateway, connections: &GracefulShutdown) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    // For hyper's own limit on how long a head may take to arrive.
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => serve(&server, stream, peer, gateway.clone(), connections),
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                // Out of file descriptors, perhaps: there is no use in asking again at once.
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
        tracing::debug!(%error, "small packets will be delayed");
    }
    let service = service_fn(move |request| {
        let gateway = gateway.clone();
        async move { Ok::<_, Infallible>(gateway.forward(request, peer.ip()).await) }
    });
    let connection = server.serve_connection(TokioIo::new(stream), service);
    let connection = connections.watch(connection.into_owned());
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error, "a connection broke off");
        }
    });
}

/// SIGINT and SIGTERM; where there are none, Ctrl-C.
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

    async fn next(&mut self) {
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

    async fn next(&mut self) {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "Ctrl-C cannot be heard");
            std::future::pending().await
        }
    }
}
