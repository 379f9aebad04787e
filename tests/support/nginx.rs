//! nginx, in a folder of its own.

use http::Version;

use super::{Server, free_port};

/// Starts nginx with the directives `http` of its block of that name, in which `LISTEN` stands for a
/// free port.
///
/// Its log has a line for each request: `<server_name> <method> <URI> <status> <body>`, the body as far
/// as it was read.
pub(crate) async fn nginx(version: Version, http: &str) -> Server {
    let port = free_port();
    let listen = match version {
        Version::HTTP_2 => format!("127.0.0.1:{port} http2"),
        _ => format!("127.0.0.1:{port}"),
    };
    let config = CONFIG.replace("HTTP", &http.replace("LISTEN", &listen));
    let arguments = &["-p", ".", "-e", "error.log", "-c", "nginx.conf"];
    let mut server = Server::new("nginx", arguments, port, &[("nginx.conf", &config)]);
    server.start().await;
    server
}

// One process, so that what it counts it counts for all, and so that none is left behind.
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
