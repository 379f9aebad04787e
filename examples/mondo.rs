//! The documented contract, live: a scripted server on loopback, called by a hyper-util client
//! through the layer.
//!
//! `cargo run --example mondo` runs each scenario of the table below and exits with 1 where one
//! differs from it; `cargo run --example mondo -- http://host/path` sends one GET there instead.

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

use support::{Answer, Server};

type BoxError = Box<dyn Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Infallible>;

#[tokio::main]
async fn main() -> ExitCode {
    print_attempts();
    let result = match std::env::args().nth(1) {
        Some(url) => get(&url).await.map(|()| true),
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

/// Each attempt as it ends, each wait as it begins, with the time since the start.
fn print_attempts() {
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

async fn get(url: &str) -> Result<(), BoxError> {
    let uri: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => {}
        (Some("https"), Some(_)) => {
            return Err(format!("{url:?}: this example speaks no TLS, use http://").into());
        }
        _ => return Err(format!("{url:?}: not of the form http://host[:port]/path").into()),
    }
    let outcome = OutcomeHandle::new();
    let mut request = Request::get(uri).body(Empty::<Bytes>::new())?;
    request.extensions_mut().insert(outcome.clone());
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::new()))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let result = client.oneshot(request).await;
    let outcome = outcome.get().ok_or("the call has not ended")?;
    let (attempts, stop) = (outcome.attempts(), stop(&outcome));
    match result {
        Ok(response) => {
            let status = response.status().as_u16();
            println!("attempts={attempts} status={status} stop={stop}");
            Ok(())
        }
        Err(error) => {
            let source = error.source().map(|source| format!(": {source}"));
            let source = source.unwrap_or_default();
            Err(format!("attempts={attempts} stop={stop}: {error}{source}").into())
        }
    }
}

async fn run_all() -> Result<bool, BoxError> {
    let mut all_as_documented = true;
    for scenario in scenarios() {
        let expected = scenario.expected();
        let span = tracing::info_span!("scenario", name = scenario.name);
        let (line, bodies_match) = scenario.run().instrument(span).await?;
        println!("{line}");
        if line != expected {
            eprintln!("mondo: differs from\n{expected}");
            all_as_documented = false;
        }
        if !bodies_match {
            eprintln!("mondo: a body arrived that is not the one that was sent");
            all_as_documented = false;
        }
    }
    Ok(all_as_documented)
}

/// A request, the server's script, and what has to come of it.
struct Scenario {
    name: &'static str,
    method: Method,
    header: Option<(&'static str, &'static str)>,
    upload: Upload,
    policy: RetryPolicy,
    script: Vec<Answer>,
    /// Nobody listens until the first attempt has failed.
    refused_at_first: bool,
    attempts: u32,
    served: usize,
    status: StatusCode,
    stop: &'static str,
}

enum Upload {
    Nothing,
    Whole(Bytes),
    Chunks(Vec<Bytes>),
}

impl Upload {
    fn body(&self) -> Body {
        match self {
            Self::Nothing => Empty::new().boxed_unsync(),
            Self::Whole(bytes) => Full::new(bytes.clone()).boxed_unsync(),
            Self::Chunks(chunks) => {
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
            Self::Nothing => Bytes::new(),
            Self::Whole(bytes) => bytes.clone(),
            Self::Chunks(chunks) => chunks.concat().into(),
        }
    }
}

impl Scenario {
    fn expected(&self) -> String {
        self.line(self.attempts, self.served, self.status, self.stop)
    }

    fn line(&self, attempts: u32, served: usize, status: StatusCode, stop: &str) -> String {
        let Self { name, method, .. } = self;
        let status = status.as_u16();
        format!(
            "scenario={name} method={method} attempts={attempts} served={served} status={status} stop={stop}"
        )
    }

    /// What came of it, as a line; and whether each body that arrived is the one that was sent.
    async fn run(&self) -> Result<(String, bool), BoxError> {
        let server = Server::bind(self.script.clone())?;
        let (uri, seen) = (server.uri("/accounts")?, server.state());
        let mut waiting = Some(server);
        if !self.refused_at_first {
            waiting.take().map(Server::listen).transpose()?;
        }
        let waiting = Arc::new(Mutex::new(waiting));

        let client = ServiceBuilder::new()
            .layer(RetryLayer::new(self.policy.clone()))
            .map_err(move |error| {
                let mut server = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(Err(error)) = server.take().map(Server::listen) {
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
        let bodies = seen.bodies();
        let sent = self.upload.bytes();
        let line = self.line(outcome.attempts(), bodies.len(), status, &stop(&outcome));
        Ok((line, bodies.iter().all(|body| *body == sent)))
    }
}

fn stop(outcome: &RetryOutcome) -> String {
    let reason = outcome.give_up_reason();
    reason.map_or("-".to_owned(), |reason| reason.to_string())
}

fn scenarios() -> Vec<Scenario> {
    let ok = Answer::new(StatusCode::OK);
    let error = Answer::new(StatusCode::INTERNAL_SERVER_ERROR);
    let limited = Answer::new(StatusCode::TOO_MANY_REQUESTS);
    let timeout = Answer::new(StatusCode::GATEWAY_TIMEOUT);
    let money = || Upload::Whole(Bytes::from_static(b"amount=100&currency=GBP"));
    let chunks = || Upload::Chunks((0..50).map(|n| Bytes::from(vec![n; 4096])).collect());
    let surfaced = [
        ("bad_request", StatusCode::BAD_REQUEST),
        ("unauthorized", StatusCode::UNAUTHORIZED),
        ("forbidden", StatusCode::FORBIDDEN),
        ("not_found", StatusCode::NOT_FOUND),
        ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
        ("not_acceptable", StatusCode::NOT_ACCEPTABLE),
    ];

    let mut scenarios = vec![
        get_of("ok", vec![ok.clone()]).ends(1, StatusCode::OK, "-"),
        get_of(
            "rate_limited",
            vec![limited.clone().header(RETRY_AFTER, "1"), ok.clone()],
        )
        .ends(2, StatusCode::OK, "-"),
        get_of(
            "server_error",
            vec![error.clone(), error.clone(), ok.clone()],
        )
        .ends(3, StatusCode::OK, "-"),
        get_of("gateway_timeout", vec![timeout.clone(), ok.clone()]).ends(2, StatusCode::OK, "-"),
        get_of("exhausted", vec![error.clone()]).ends(
            4,
            StatusCode::INTERNAL_SERVER_ERROR,
            "retries_exhausted",
        ),
    ];
    scenarios.extend(surfaced.map(|(name, status)| {
        get_of(name, vec![Answer::new(status)]).ends(1, status, "not_retryable")
    }));
    scenarios.extend([
        get_of(
            "invalid_token",
            vec![
                Answer::expired_token(StatusCode::UNAUTHORIZED)
                    .header(WWW_AUTHENTICATE, r#"Bearer error="invalid_token""#),
            ],
        )
        .ends(1, StatusCode::UNAUTHORIZED, "invalid_token"),
        get_of(
            "invalid_token_500",
            vec![Answer::expired_token(StatusCode::INTERNAL_SERVER_ERROR)],
        )
        .ends(1, StatusCode::INTERNAL_SERVER_ERROR, "invalid_token"),
        get_of(
            "retry_after_too_long",
            vec![limited.clone().header(RETRY_AFTER, "3600")],
        )
        .ends(1, StatusCode::TOO_MANY_REQUESTS, "deadline_exceeded"),
        get_of("post_rate_limited", vec![limited, ok.clone()])
            .sends(Method::POST, money())
            .ends(2, StatusCode::OK, "-"),
        get_of("post_server_error", vec![error.clone()])
            .sends(Method::POST, money())
            .ends(1, StatusCode::INTERNAL_SERVER_ERROR, "not_idempotent"),
        Scenario {
            header: Some((
                "idempotency-key",
                "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
            )),
            ..get_of("post_with_key", vec![error, ok.clone()])
                .sends(Method::POST, money())
                .ends(2, StatusCode::OK, "-")
        },
        Scenario {
            policy: RetryPolicy::new().replay_limit(256 * 1024),
            ..get_of("upload_streamed", vec![timeout.clone(), ok.clone()])
                .sends(Method::PUT, chunks())
                .ends(2, StatusCode::OK, "-")
        },
        get_of("upload_too_large", vec![timeout])
            .sends(Method::PUT, chunks())
            .ends(1, StatusCode::GATEWAY_TIMEOUT, "body_not_replayable"),
        Scenario {
            refused_at_first: true,
            served: 1,
            ..get_of("connection_refused_then_up", vec![ok])
                .sends(Method::POST, money())
                .ends(2, StatusCode::OK, "-")
        },
    ]);
    scenarios
}

fn get_of(name: &'static str, script: Vec<Answer>) -> Scenario {
    Scenario {
        name,
        method: Method::GET,
        header: None,
        upload: Upload::Nothing,
        policy: RetryPolicy::new(),
        script,
        refused_at_first: false,
        attempts: 1,
        served: 1,
        status: StatusCode::OK,
        stop: "-",
    }
}

impl Scenario {
    fn sends(self, method: Method, upload: Upload) -> Self {
        Self {
            method,
            upload,
            ..self
        }
    }

    fn ends(self, attempts: u32, status: StatusCode, stop: &'static str) -> Self {
        let served = attempts as usize;
        Self {
            attempts,
            served,
            status,
            stop,
            ..self
        }
    }
}
