//! Failures as errors, the way the API's own libraries raise them. In Python:
//!
//! ```python
//! try:
//!     accounts = client.accounts()
//! except InvalidTokenError:
//!     refresh_token()
//! except ApiError as e:
//!     print(e.status, e.json_value["error"])
//! ```
//!
//! `cargo run --example errors` prints one line for each status of the contract, then runs the same
//! in Rust, with the decisions that a real program makes.

#[allow(dead_code, reason = "not every example asks what the server saw")]
mod support;

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header::RETRY_AFTER};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_http_retry::{
    Error, ErrorForStatusLayer, ExponentialBackoff, FailureKind, GiveUpReason, RetryLayer,
    RetryPolicy,
};

use support::{Answer, Server};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("errors: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let statuses = [400, 401, 403, 404, 405, 406, 409, 429, 500, 503, 504];
    for status in statuses {
        let status = StatusCode::from_u16(status)?;
        print(&failure(Answer::new(status)).await?);
        if status == StatusCode::UNAUTHORIZED {
            print(&failure(Answer::expired_token(status)).await?);
        }
    }

    let later = Answer::new(StatusCode::TOO_MANY_REQUESTS).header(RETRY_AFTER, "0");
    for answer in [
        Answer::new(StatusCode::OK),
        Answer::expired_token(StatusCode::UNAUTHORIZED),
        Answer::new(StatusCode::FORBIDDEN),
        later,
    ] {
        println!("{}", decide(accounts(start(answer)?).await));
    }
    Ok(())
}

/// What a program does with the result of a call.
fn decide(result: Result<usize, Error>) -> String {
    match result {
        Ok(length) => format!("ok: {length} bytes of accounts"),
        Err(error) if error.kind() == FailureKind::InvalidToken => {
            format!("refresh the token, then call again: {error}")
        }
        Err(error) if error.outcome().give_up_reason() == Some(GiveUpReason::RetriesExhausted) => {
            let hint = error.outcome().retry_after().unwrap_or_default();
            let later = hint.max(Duration::from_secs(60));
            format!("queue it, to be tried again in {later:?}: {error}")
        }
        Err(Error::Api(error)) if error.status().is_client_error() => {
            format!("give up, asking again changes nothing: {error}")
        }
        Err(error) => format!("tell an operator: {error}"),
    }
}

/// One call of the API, by a client that raises errors.
async fn accounts(uri: Uri) -> Result<usize, Error> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = uri;
    let backoff = ExponentialBackoff::new(Duration::from_millis(10), Duration::from_millis(50));
    let client = ServiceBuilder::new()
        .layer(ErrorForStatusLayer::new())
        .layer(RetryLayer::new(RetryPolicy::new().backoff(backoff)))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let response = client.oneshot(request).await?;
    let body = response.into_body().collect().await;
    Ok(body.map_or(0, |body| body.to_bytes().len()))
}

/// A server that answers every request so.
fn start(answer: Answer) -> Result<Uri, BoxError> {
    let server = Server::bind(vec![answer])?;
    let uri = server.uri("/accounts")?;
    server.listen()?;
    Ok(uri)
}

async fn failure(answer: Answer) -> Result<Error, BoxError> {
    match accounts(start(answer)?).await {
        Ok(_) => Err("a failure was scripted".into()),
        Err(error) => Ok(error),
    }
}

fn print(error: &Error) {
    let status = error.status().map_or(0, |status| status.as_u16());
    let key = match error {
        Error::Api(error) => error.error_code(),
        _ => None,
    };
    println!(
        "status={status} kind={:?} error={} attempts={} display=\"{error}\"",
        error.kind(),
        key.unwrap_or("-"),
        error.outcome().attempts(),
    );
}
