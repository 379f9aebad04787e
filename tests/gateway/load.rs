//! The gateway under load by wrk.

use http::Version;

use crate::{
    program::Gateway,
    support::{command, installed, nginx::nginx, within},
};

/// Three retries leave a ten-thousandth of what is refused one time in ten.
#[tokio::test]
async fn of_a_tenth_that_is_refused_hardly_any_is_left() {
    if !installed(&["nginx", "wrk"]) {
        return;
    }
    let config = r#"
        split_clients $request_id $refused { 10% 1; * 0; }
        server {
            listen LISTEN;
            server_name front;
            keepalive_requests 1000000;
            if ($refused) { return 429; }
            return 200 done;
        }
    "#;
    let mut upstream = nginx(Version::HTTP_11, config).await;
    let flags = ["--no-budget", "--max-retries", "3", "--backoff-base", "1ms"];
    let gateway = Gateway::start(upstream.address(), &flags).await;
    let mut wrk = command("wrk");
    wrk.args(["-t1", "-c16", "-d2s", &gateway.uri("/")]);
    let output = within(wrk.output()).await.unwrap();
    assert!(output.status.success());
    let report = String::from_utf8(output.stdout).unwrap();
    eprintln!("{report}");

    let requests = number_before(&report, " requests in").expect("wrk counts requests");
    let failed = number_after(&report, "Non-2xx or 3xx responses: ").unwrap_or(0);
    assert!(!report.contains("Socket errors"), "{report}");
    assert!(requests >= 200, "{report}");
    // The expectation ten times over; and a few, for when it is below one.
    assert!(failed <= 5 + requests / 1000, "{report}");

    let log = upstream.log(requests).await;
    let refused = log.iter().filter(|line| line.contains(" 429 ")).count();
    let share = refused as f64 / log.len() as f64;
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
