//! HAProxy, in a folder of its own.

use http::Version;

use super::{Server, free_port};

/// Starts HAProxy with the proxies `sections`, in which `BIND` stands for a free port.
///
/// Its log has a line for each request: `<frontend> <method> <path> <status> <body>`.
pub(crate) async fn haproxy(version: Version, sections: &str) -> Server {
    let port = free_port();
    let bind = match version {
        Version::HTTP_2 => format!("127.0.0.1:{port} proto h2"),
        _ => format!("127.0.0.1:{port}"),
    };
    let config = CONFIG.replace("SECTIONS", &sections.replace("BIND", &bind));
    let arguments = &["-db", "-f", "haproxy.cfg"];
    let mut server = Server::new("haproxy", arguments, port, &[("haproxy.cfg", &config)]);
    server.start().await;
    server
}

// One thread, so that what it counts it counts for all.
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
