//! The gateway under load by wrk.

use http::Version;

use crate::{
    process::Gateway,
    support::{
        nginx::nginx,
        programs::{command, installed},
        timeout::with_timeout,
    },
};

/// With one attempt in ten rejected, three retries leave one failed request in ten thousand.
#[tokio::test]
async fn retries_hide_random_rejections_under_load() {
    if !installed(&["nginx", "wrk"]) {
        return;
    }
    let config = r#"
        split_clients $request_id $rejected { 10% 1; * 0; }
        server {
            listen LISTEN;
            server_name front;
            keepalive_requests 1000000;
            if ($rejected) { return 429; }
            return 200 done;
        }
    "#;
    let mut upstream = nginx(Version::HTTP_11, config).await;
    let flags = ["--no-budget", "--max-retries", "3", "--backoff-base", "1ms"];
    let gateway = Gateway::start(upstream.address(), &flags).await;
    let mut wrk = command("wrk");
    wrk.args(["-t1", "-c16", "-d2s", &gateway.uri("/")]);
    let output = with_timeout(wrk.output()).await.unwrap();
    assert!(output.status.success());
    let report = String::from_utf8(output.stdout).unwrap();
    eprintln!("{report}");

    let requests = number_before(&report, " requests in").expect("the number of requests");
    let failed = number_after(&report, "Non-2xx or 3xx responses: ").unwrap_or(0);
    assert!(!report.contains("Socket errors"), "{report}");
    assert!(requests >= 200, "{report}");
    // Ten times the expected number, and a few more for a small number of requests.
    assert!(failed <= 5 + requests / 1000, "{report}");

    let log = upstream.log(requests).await;
    let rejected = log.iter().filter(|line| line.contains(" 429 ")).count();
    let share = rejected as f64 / log.len() as f64;
    assert!((0.05..0.15).contains(&share), "{share} of {}", log.len());
}

fn number_before(text: &str, mark: &str) -> Option<usize> {
    text.split(mark)
        .next()?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

fn number_after(text: &str, mark: &str) -> Option<usize> {
    text.split_once(mark)?
        .1
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}
