//! The documented error contract, run by hyper-util's client and the retry layer against a mock server
//! on loopback.
//!
//! `cargo run --example mondo` runs all scenarios and prints one line for each. It exits with 1 if one
//! of them differs from its expectation. `cargo run --example mondo -- http://host/path` sends a
//! single GET to that URL instead.

mod support;

use std::{
    convert::Infallible,
    error::Error,
    io::{self, IsTerminal},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{
    Method, Request, StatusCode, Uri,
    header::{RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{ServiceBuilder, ServiceExt};
use tower_http_retry::{OutcomeHandle, RetryLayer, RetryOutcome, RetryPolicy};
use tracing::Instrument;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use support::{MockResponse, MockServer};

type BoxError = Box<dyn Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Infallible>;

#[tokio::main]
async fn main() -> ExitCode {
    log_to_stderr();
    let result = match std::env::args().nth(1) {
        Some(url) => send_get(&url).await.map(|()| true),
        None => run_all().await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mondo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Logs the end of each attempt and the start of each delay, with the time since the program started.
fn log_to_stderr() {
    let filter = EnvFilter::new("tower_http_retry=debug,mondo=info");
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE)
        .with_target(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
}

async fn send_get(url: &str) -> Result<(), BoxError> {
    let mut request = Request::get(parse_url(url)?).body(Empty::<Bytes>::new())?;
    let handle = OutcomeHandle::new();
    request.extensions_mut().insert(handle.clone());
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::new()))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let result = client.oneshot(request).await;

    let outcome = handle.get().ok_or("the call reported no outcome")?;
    let (attempts, reason) = (outcome.attempts(), format_give_up_reason(&outcome));
    match result {
        Ok(response) => {
            let status = response.status().as_u16();
            println!("attempts={attempts} status={status} stop={reason}");
            Ok(())
        }
        Err(error) => {
            let source = error.source().map(|source| format!(": {source}"));
            let source = source.unwrap_or_default();
            Err(format!("attempts={attempts} stop={reason}: {error}{source}").into())
        }
    }
}

fn parse_url(url: &str) -> Result<Uri, BoxError> {
    let uri: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(uri),
        (Some("https"), Some(_)) => {
            Err(format!("{url:?}: this example does not support TLS, use http://").into())
        }
        _ => Err(format!("{url:?}: not of the form http://host[:port]/path").into()),
    }
}

fn format_give_up_reason(outcome: &RetryOutcome) -> String {
    let reason = outcome.give_up_reason();
    reason.map_or("-".to_owned(), |reason| reason.to_string())
}

/// Runs all scenarios. Returns `false` if one differs from its expectation.
async fn run_all() -> Result<bool, BoxError> {
    let mut all_match = true;
    for scenario in all_scenarios() {
        let expected = scenario.format_expected();
        let span = tracing::info_span!("scenario", name = scenario.name);
        let (line, bodies_match) = scenario.run().instrument(span).await?;
        println!("{line}");
        if line != expected {
            eprintln!("mondo: expected\n{expected}");
            all_match = false;
        }
        if !bodies_match {
            eprintln!("mondo: the server received a body that differs from the one sent");
            all_match = false;
        }
    }
    Ok(all_match)
}

/// A request, the responses of the server, and the expected outcome.
struct Scenario {
    name: &'static str,
    method: Method,
    header: Option<(&'static str, &'static str)>,
    upload: Upload,
    policy: RetryPolicy,
    script: Vec<MockResponse>,
    /// The server starts to listen after the first attempt has failed.
    listen_after_first_attempt: bool,
    expected: Expected,
}

struct Expected {
    attempts: u32,
    /// Requests that reach the server.
    served: usize,
    status: StatusCode,
    give_up_reason: &'static str,
}

impl Scenario {
    /// Creates a scenario with a GET that succeeds at the first attempt.
    fn get(name: &'static str, script: Vec<MockResponse>) -> Self {
        Self {
            name,
            method: Method::GET,
            header: None,
            upload: Upload::Empty,
            policy: RetryPolicy::new(),
            script,
            listen_after_first_attempt: false,
            expected: Expected {
                attempts: 1,
                served: 1,
                status: StatusCode::OK,
                give_up_reason: "-",
            },
        }
    }

    /// Sets the method and the body of the request.
    fn with_upload(self, method: Method, upload: Upload) -> Self {
        Self {
            method,
            upload,
            ..self
        }
    }

    /// Sets the expected outcome. Each attempt is expected to reach the server.
    fn expect_outcome(
        self,
        attempts: u32,
        status: StatusCode,
        give_up_reason: &'static str,
    ) -> Self {
        let expected = Expected {
            attempts,
            served: attempts as usize,
            status,
            give_up_reason,
        };
        Self { expected, ..self }
    }

    /// Returns the outcome as a line, and `true` if every body received equals the body sent.
    async fn run(&self) -> Result<(String, bool), BoxError> {
        let server = MockServer::bind(self.script.clone())?;
        let (uri, state) = (server.uri("/accounts")?, server.state());
        let mut not_listening = Some(server);
        if !self.listen_after_first_attempt {
            not_listening.take().map(MockServer::listen).transpose()?;
        }
        let not_listening = Arc::new(Mutex::new(not_listening));

        let client = ServiceBuilder::new()
            .layer(RetryLayer::new(self.policy.clone()))
            .map_err(move |error| {
                let mut server = not_listening.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(Err(error)) = server.take().map(MockServer::listen) {
                    eprintln!("mondo: {error}");
                }
                error
            })
            .service(Client::builder(TokioExecutor::new()).build_http());

        let mut request = Request::builder().method(&self.method).uri(uri);
        if let Some((name, value)) = self.header {
            request = request.header(name, value);
        }
        let response = client.oneshot(request.body(self.upload.body())?).await?;

        let outcome = RetryOutcome::from_response(&response);
        let status = response.status();
        response.into_body().collect().await?;
        let bodies = state.bodies();
        let sent = self.upload.bytes();
        let reason = format_give_up_reason(&outcome);
        let line = self.format_line(outcome.attempts(), bodies.len(), status, &reason);
        Ok((line, bodies.iter().all(|body| *body == sent)))
    }

    fn format_expected(&self) -> String {
        let expected = &self.expected;
        self.format_line(
            expected.attempts,
            expected.served,
            expected.status,
            expected.give_up_reason,
        )
    }

    fn format_line(
        &self,
        attempts: u32,
        served: usize,
        status: StatusCode,
        reason: &str,
    ) -> String {
        let Self { name, method, .. } = self;
        let status = status.as_u16();
        format!(
            "scenario={name} method={method} attempts={attempts} served={served} status={status} stop={reason}"
        )
    }
}

/// The body of a request.
enum Upload {
    Empty,
    Buffered(Bytes),
    Streamed(Vec<Bytes>),
}

impl Upload {
    /// Returns a small form.
    fn payment() -> Self {
        Self::Buffered(Bytes::from_static(b"amount=100&currency=GBP"))
    }

    /// Returns a stream of 200 KiB.
    fn stream() -> Self {
        Self::Streamed((0..50).map(|n| Bytes::from(vec![n; 4096])).collect())
    }

    fn body(&self) -> Body {
        match self {
            Self::Empty => Empty::new().boxed_unsync(),
            Self::Buffered(bytes) => Full::new(bytes.clone()).boxed_unsync(),
            Self::Streamed(chunks) => {
                let frames = chunks
                    .clone()
                    .into_iter()
                    .map(|chunk| Ok(Frame::data(chunk)));
                StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
            }
        }
    }

    fn bytes(&self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::Buffered(bytes) => bytes.clone(),
            Self::Streamed(chunks) => chunks.concat().into(),
        }
    }
}

fn all_scenarios() -> Vec<Scenario> {
    let mut scenarios = retryable_statuses();
    scenarios.extend(non_retryable_statuses());
    scenarios.extend(invalid_tokens());
    scenarios.push(retry_after_beyond_deadline());
    scenarios.extend(posts());
    scenarios.extend(uploads());
    scenarios.push(connection_refused());
    scenarios
}

fn ok() -> MockResponse {
    MockResponse::new(StatusCode::OK)
}

fn rate_limited() -> MockResponse {
    MockResponse::new(StatusCode::TOO_MANY_REQUESTS)
}

fn server_error() -> MockResponse {
    MockResponse::new(StatusCode::INTERNAL_SERVER_ERROR)
}

fn gateway_timeout() -> MockResponse {
    MockResponse::new(StatusCode::GATEWAY_TIMEOUT)
}

fn retryable_statuses() -> Vec<Scenario> {
    vec![
        Scenario::get("ok", vec![ok()]).expect_outcome(1, StatusCode::OK, "-"),
        Scenario::get(
            "rate_limited",
            vec![rate_limited().header(RETRY_AFTER, "1"), ok()],
        )
        .expect_outcome(2, StatusCode::OK, "-"),
        Scenario::get("server_error", vec![server_error(), server_error(), ok()]).expect_outcome(
            3,
            StatusCode::OK,
            "-",
        ),
        Scenario::get("gateway_timeout", vec![gateway_timeout(), ok()]).expect_outcome(
            2,
            StatusCode::OK,
            "-",
        ),
        Scenario::get("exhausted", vec![server_error()]).expect_outcome(
            4,
            StatusCode::INTERNAL_SERVER_ERROR,
            "retries_exhausted",
        ),
    ]
}

fn non_retryable_statuses() -> impl Iterator<Item = Scenario> {
    let statuses = [
        ("bad_request", StatusCode::BAD_REQUEST),
        ("unauthorized", StatusCode::UNAUTHORIZED),
        ("forbidden", StatusCode::FORBIDDEN),
        ("not_found", StatusCode::NOT_FOUND),
        ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
        ("not_acceptable", StatusCode::NOT_ACCEPTABLE),
    ];
    statuses.into_iter().map(|(name, status)| {
        let script = vec![MockResponse::new(status)];
        Scenario::get(name, script).expect_outcome(1, status, "not_retryable")
    })
}

fn invalid_tokens() -> [Scenario; 2] {
    let unauthorized = MockResponse::expired_token(StatusCode::UNAUTHORIZED)
        .header(WWW_AUTHENTICATE, r#"Bearer error="invalid_token""#);
    let server_error = MockResponse::expired_token(StatusCode::INTERNAL_SERVER_ERROR);
    [
        Scenario::get("invalid_token", vec![unauthorized]).expect_outcome(
            1,
            StatusCode::UNAUTHORIZED,
            "invalid_token",
        ),
        Scenario::get("invalid_token_500", vec![server_error]).expect_outcome(
            1,
            StatusCode::INTERNAL_SERVER_ERROR,
            "invalid_token",
        ),
    ]
}

fn retry_after_beyond_deadline() -> Scenario {
    let script = vec![rate_limited().header(RETRY_AFTER, "3600")];
    Scenario::get("retry_after_too_long", script).expect_outcome(
        1,
        StatusCode::TOO_MANY_REQUESTS,
        "deadline_exceeded",
    )
}

fn posts() -> [Scenario; 3] {
    [
        Scenario::get("post_rate_limited", vec![rate_limited(), ok()])
            .with_upload(Method::POST, Upload::payment())
            .expect_outcome(2, StatusCode::OK, "-"),
        Scenario::get("post_server_error", vec![server_error()])
            .with_upload(Method::POST, Upload::payment())
            .expect_outcome(1, StatusCode::INTERNAL_SERVER_ERROR, "not_idempotent"),
        Scenario {
            header: Some((
                "idempotency-key",
                "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
            )),
            ..Scenario::get("post_with_key", vec![server_error(), ok()])
                .with_upload(Method::POST, Upload::payment())
                .expect_outcome(2, StatusCode::OK, "-")
        },
    ]
}

fn uploads() -> [Scenario; 2] {
    [
        Scenario {
            policy: RetryPolicy::new().replay_limit(256 * 1024),
            ..Scenario::get("upload_streamed", vec![gateway_timeout(), ok()])
                .with_upload(Method::PUT, Upload::stream())
                .expect_outcome(2, StatusCode::OK, "-")
        },
        Scenario::get("upload_too_large", vec![gateway_timeout()])
            .with_upload(Method::PUT, Upload::stream())
            .expect_outcome(1, StatusCode::GATEWAY_TIMEOUT, "body_not_replayable"),
    ]
}

fn connection_refused() -> Scenario {
    let mut scenario = Scenario::get("connection_refused_then_up", vec![ok()])
        .with_upload(Method::POST, Upload::payment())
        .expect_outcome(2, StatusCode::OK, "-");
    scenario.listen_after_first_attempt = true;
    scenario.expected.served = 1;
    scenario
}
