//! HAProxy as a server process.

use http::Version;

use super::programs::{ServerProcess, free_port};

/// Starts HAProxy with the configuration `sections`, in which `BIND` is replaced by a free port.
///
/// The log has a line for each request: `<frontend> <method> <path> <status> <body>`.
pub(crate) async fn haproxy(version: Version, sections: &str) -> ServerProcess {
    let port = free_port();
    let bind = match version {
        Version::HTTP_2 => format!("127.0.0.1:{port} proto h2"),
        _ => format!("127.0.0.1:{port}"),
    };
    let config = CONFIG.replace("SECTIONS", &sections.replace("BIND", &bind));
    let arguments = &["-db", "-f", "haproxy.cfg"];
    let mut server = ServerProcess::new("haproxy", arguments, port, &[("haproxy.cfg", &config)]);
    server.start().await;
    server
}

// With one thread, the counters cover all requests.
const CONFIG: &str = r#"
global
    log stdout format raw local0
    nbthread 1

defaults
    mode http
    log global
    option dontlognull
    option http-buffer-request
    log-format "%f %HM %HPO %ST %[capture.req.hdr(0)]"
    retries 0
    timeout connect 5s
    timeout client 10s
    timeout server 10s

SECTIONS
"#;
