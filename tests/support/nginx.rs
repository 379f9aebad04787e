//! nginx as a server process.

use http::Version;

use super::programs::{ServerProcess, free_port};

/// Starts nginx with the directives of its block `http`, in which `LISTEN` is replaced by a free port.
///
/// The log has a line for each request: `<server_name> <method> <URI> <status> <body>`, with the part of the
/// body that was read.
pub(crate) async fn nginx(version: Version, http: &str) -> ServerProcess {
    let port = free_port();
    let listen = match version {
        Version::HTTP_2 => format!("127.0.0.1:{port} http2"),
        _ => format!("127.0.0.1:{port}"),
    };
    let config = CONFIG.replace("HTTP", &http.replace("LISTEN", &listen));
    let arguments = &["-p", ".", "-e", "error.log", "-c", "nginx.conf"];
    let mut server = ServerProcess::new("nginx", arguments, port, &[("nginx.conf", &config)]);
    server.start().await;
    server
}

// With one process, the counters cover all requests, and no worker outlives the test.
const CONFIG: &str = r#"
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events { worker_connections 1024; }
http {
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    log_format requests escape=none "$server_name $request_method $request_uri $status $request_body";
    access_log /dev/stdout requests;
    default_type text/plain;
    client_body_buffer_size 1m;
    HTTP
}
"#;
