//! Failed responses as errors, like the exceptions of the API's own client libraries. In Python:
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
//! `cargo run --example errors` prints one line for each status of the contract. Then it handles
//! errors in Rust as a real program would.

#[allow(
    dead_code,
    reason = "this example does not inspect the received requests"
)]
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

use support::{MockResponse, MockServer};

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
        print_error(&fetch_error(MockResponse::new(status)).await?);
        if status == StatusCode::UNAUTHORIZED {
            print_error(&fetch_error(MockResponse::expired_token(status)).await?);
        }
    }

    let rate_limited = MockResponse::new(StatusCode::TOO_MANY_REQUESTS).header(RETRY_AFTER, "0");
    for response in [
        MockResponse::new(StatusCode::OK),
        MockResponse::expired_token(StatusCode::UNAUTHORIZED),
        MockResponse::new(StatusCode::FORBIDDEN),
        rate_limited,
    ] {
        println!("{}", handle(fetch_accounts(start_server(response)?).await));
    }
    Ok(())
}

/// Handles the result of a call as a program would, by the kind of the error.
fn handle(result: Result<usize, Error>) -> String {
    match result {
        Ok(length) => format!("ok: {length} bytes of accounts"),
        Err(error) if error.kind() == FailureKind::InvalidToken => {
            format!("refresh the token, then call again: {error}")
        }
        Err(error) if error.outcome().give_up_reason() == Some(GiveUpReason::RetriesExhausted) => {
            let retry_after = error.outcome().retry_after().unwrap_or_default();
            let delay = retry_after.max(Duration::from_secs(60));
            format!("queue it, to be tried again in {delay:?}: {error}")
        }
        Err(Error::Api(error)) if error.status().is_client_error() => {
            format!("give up, asking again changes nothing: {error}")
        }
        Err(error) => format!("tell an operator: {error}"),
    }
}

/// Calls the API through a client that returns failed responses as errors.
async fn fetch_accounts(uri: Uri) -> Result<usize, Error> {
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

/// Starts a server that returns `response` to every request.
fn start_server(response: MockResponse) -> Result<Uri, BoxError> {
    let server = MockServer::bind(vec![response])?;
    let uri = server.uri("/accounts")?;
    server.listen()?;
    Ok(uri)
}

async fn fetch_error(response: MockResponse) -> Result<Error, BoxError> {
    match fetch_accounts(start_server(response)?).await {
        Ok(_) => Err("expected an error, got a successful response".into()),
        Err(error) => Ok(error),
    }
}

fn print_error(error: &Error) {
    let status = error.status().map_or(0, |status| status.as_u16());
    let error_code = match error {
        Error::Api(error) => error.error_code(),
        _ => None,
    };
    println!(
        "status={status} kind={:?} error={} attempts={} display=\"{error}\"",
        error.kind(),
        error_code.unwrap_or("-"),
        error.outcome().attempts(),
    );
}
