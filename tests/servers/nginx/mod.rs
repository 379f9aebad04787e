//! nginx: its rate limit, the responses of its proxy, its closed connections and its restart.

mod connections;
mod responses;
mod restart;

/// A server that reads the body before it responds with 200.
const GOOD: &str = r#"
    server {
        listen unix:good.sock;
        server_name good;
        location / { proxy_pass http://unix:sink.sock; }
    }
    server {
        listen unix:sink.sock;
        access_log off;
        return 200 done;
    }
"#;

/// Sorts the lines of a log, in which a proxy and its upstream have no fixed order.
fn sorted(lines: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().map(Into::into).collect();
    lines.sort();
    lines
}
