//! Failures as typed errors.

use std::{error, fmt, sync::OnceLock, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::BoxError;

use crate::{
    classify::{ApiErrorsAsFailures, FailureKind, Retryability, invalid_token, transport},
    outcome::{GiveUpReason, RetryOutcome},
};

/// A failed call: the API's answer, or the transport's error.
///
/// Made by [`ErrorForStatus`](crate::ErrorForStatus) and
/// [`error_for_status`](crate::error_for_status). It is as large as a few pointers.
///
/// ```
/// use tower_http_retry::{FailureKind, Error, GiveUpReason};
///
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::Api(api) if api.is_invalid_token() => "refresh the token",
///         Error::Api(api) if api.status().is_client_error() && !api.is_retryable() => "fix the request",
///         _ => match error.outcome().give_up_reason() {
///             Some(GiveUpReason::NotIdempotent) => "look whether it was carried out",
///             _ => "queue it for later",
///         },
///     }
/// }
/// ```
pub enum Error {
    /// The server answered with a 4xx or 5xx.
    Api(ApiError),
    /// There was no answer.
    Transport(TransportError),
}

impl Error {
    /// What failed.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Api(error) => error.kind(),
            Self::Transport(error) => error.kind(),
        }
    }

    /// The status of the answer; `None` where there was none.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Api(error) => Some(error.status()),
            Self::Transport(_) => None,
        }
    }

    /// What the retry layer did.
    pub fn outcome(&self) -> RetryOutcome {
        match self {
            Self::Api(error) => error.outcome(),
            Self::Transport(error) => error.outcome(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => error.fmt(f),
            Self::Transport(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => error.fmt(f),
            Self::Transport(error) => error.fmt(f),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Api(_) => None,
            Self::Transport(error) => error.source(),
        }
    }
}

/// A response with a 4xx or 5xx, as an error.
///
/// Its `Display` is one line to act on: the status, what the contract says of it, the API's own
/// message, the attempts. Words of the message that look like a credential, and query strings, are
/// left out of it; headers and the rest of the body appear neither there nor in `Debug`.
pub struct ApiError {
    // Boxed, so that a `Result` stays small where nothing fails.
    failed: Box<Failed>,
}

struct Failed {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    cut: bool,
    invalid_token: bool,
    json: OnceLock<Option<Value>>,
    retry_after: Option<Duration>,
    outcome: RetryOutcome,
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        cut: bool,
        retry_after: Option<Duration>,
        outcome: RetryOutcome,
    ) -> Self {
        let invalid_token =
            invalid_token::in_headers(&headers) || invalid_token::in_body(&headers, &body);
        Self {
            failed: Box::new(Failed {
                status,
                headers,
                body,
                cut,
                invalid_token,
                json: OnceLock::new(),
                retry_after,
                outcome,
            }),
        }
    }

    /// What failed, as the contract names it; [`FailureKind::InvalidToken`] where the body or
    /// `WWW-Authenticate` says so, whatever the status.
    pub fn kind(&self) -> FailureKind {
        if self.is_invalid_token() {
            return FailureKind::InvalidToken;
        }
        FailureKind::from_status(self.failed.status).unwrap_or(FailureKind::Other)
    }

    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.failed.status
    }

    /// The response's headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.failed.headers
    }

    /// The response's body, as far as it was read.
    pub fn body(&self) -> &Bytes {
        &self.failed.body
    }

    /// Whether [`body`](Self::body) is not all of it: it was larger than the limit, took longer than
    /// the time, or broke off.
    pub fn is_body_truncated(&self) -> bool {
        self.failed.cut
    }

    /// The body as JSON, parsed when it is first asked for; `None` where it is no JSON, or
    /// compressed.
    pub fn json_value(&self) -> Option<&Value> {
        let failed = &*self.failed;
        let text = || invalid_token::json_text(&failed.headers, &failed.body);
        let parse = || serde_json::from_slice(text()?).ok();
        failed.json.get_or_init(parse).as_ref()
    }

    /// The body as an error type of one's own.
    ///
    /// # Errors
    ///
    /// Where the body is not JSON, or not of that shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        let failed = &*self.failed;
        let text = invalid_token::json_text(&failed.headers, &failed.body);
        serde_json::from_slice(text.unwrap_or(&failed.body))
    }

    /// The error object's `error`, where it is a string: `invalid_token`, for instance.
    pub fn error_code(&self) -> Option<&str> {
        self.text("error")
    }

    /// The error object's `code`, where it is a string:
    /// `unauthorized.bad_access_token.expired`, for instance.
    pub fn code(&self) -> Option<&str> {
        self.text("code")
    }

    /// The error object's `message`, where it is a string.
    pub fn message(&self) -> Option<&str> {
        self.text("message")
    }

    /// The error object's `error_description`, where it is a string.
    pub fn error_description(&self) -> Option<&str> {
        self.text("error_description")
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.json_value()?.get(key)?.as_str()
    }

    /// The response's `Retry-After`, counted from its arrival; `None` without a valid one.
    pub fn retry_after(&self) -> Option<Duration> {
        self.failed.retry_after
    }

    /// What the retry layer did. Without that layer, one attempt and no stop reason.
    pub fn outcome(&self) -> RetryOutcome {
        self.failed.outcome
    }

    /// Whether the access token is invalid or has expired.
    pub fn is_invalid_token(&self) -> bool {
        self.failed.invalid_token
    }

    /// Whether the documented contract would have such a failure retried: 429, 500 and 504 without
    /// `invalid_token`. Of these, the last two only where the request may be repeated.
    pub fn is_retryable(&self) -> bool {
        let retryability = ApiErrorsAsFailures::new().retryability(self.failed.status);
        retryability != Retryability::Never && !self.is_invalid_token()
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.failed.status;
        f.write_str(status.as_str())?;
        if let Some(reason) = status.canonical_reason() {
            write!(f, " {reason}")?;
        }
        write!(f, ": {}", meaning(self.kind()))?;
        let message = self.message().or(self.error_description());
        if let Some(message) = message.map(presentable).filter(|it| !it.is_empty()) {
            write!(f, ": {message}")?;
        }
        after(f, self.failed.outcome)
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiError")
            .field("status", &self.failed.status)
            .field("kind", &self.kind())
            .field("body_len", &self.failed.body.len())
            .field("cut", &self.failed.cut)
            .field("retry_after", &self.failed.retry_after)
            .field("outcome", &self.failed.outcome)
            .finish_non_exhaustive()
    }
}

impl error::Error for ApiError {}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<TransportError> for Error {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// An error of the inner service: no answer came.
///
/// The inner error is its [`source`](error::Error::source). It is left out of `Display` and `Debug`,
/// since nothing is known of what it shows.
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use std::io;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_http_retry::{FailureKind, Error, ErrorForStatusLayer};
///
/// # #[tokio::main] async fn main() {
/// let client = ErrorForStatusLayer::new().layer(service_fn(async |_: Request<()>| {
///     Err::<Response<Empty<bytes::Bytes>>, _>(io::Error::from(io::ErrorKind::TimedOut))
/// }));
/// let Err(Error::Transport(error)) = client.oneshot(Request::new(())).await else {
///     panic!("nobody answered")
/// };
/// assert_eq!(error.kind(), FailureKind::Timeout);
/// assert!(error.inner().downcast_ref::<io::Error>().is_some());
/// assert_eq!(error.to_string(), "no answer in time");
/// # }
/// ```
pub struct TransportError {
    broken: Box<Broken>,
}

struct Broken {
    kind: FailureKind,
    source: BoxError,
    /// Where somebody told it.
    outcome: Option<RetryOutcome>,
}

impl TransportError {
    pub(crate) fn new(source: BoxError, outcome: Option<RetryOutcome>) -> Self {
        let kind = transport::classify_error(&source);
        Self {
            broken: Box::new(Broken {
                kind,
                source,
                outcome,
            }),
        }
    }

    /// What failed: [`Connect`](FailureKind::NotSent), [`Timeout`](FailureKind::Timeout),
    /// [`Interrupted`](FailureKind::Disconnected) or [`Other`](FailureKind::Other).
    pub fn kind(&self) -> FailureKind {
        self.broken.kind
    }

    /// What the retry layer did. Where the request met no such layer, one attempt and no stop reason.
    pub fn outcome(&self) -> RetryOutcome {
        self.broken.outcome.unwrap_or(RetryOutcome::FIRST_ATTEMPT)
    }

    /// The inner error; `downcast_ref` leads to its own type.
    pub fn inner(&self) -> &(dyn error::Error + Send + Sync + 'static) {
        &*self.broken.source
    }

    /// The inner error, unwrapped.
    pub fn into_inner(self) -> BoxError {
        self.broken.source
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(meaning(self.broken.kind))?;
        match self.broken.outcome {
            Some(outcome) => after(f, outcome),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportError")
            .field("kind", &self.broken.kind)
            .field("outcome", &self.outcome())
            .finish_non_exhaustive()
    }
}

impl error::Error for TransportError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&*self.broken.source)
    }
}

/// What the contract says of a failure.
fn meaning(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::BadRequest => "arguments are missing or malformed",
        FailureKind::Unauthorized => "not authenticated",
        FailureKind::Forbidden => "authenticated, but not permitted",
        FailureKind::NotFound => "no such endpoint",
        FailureKind::MethodNotAllowed => "wrong verb for this endpoint",
        FailureKind::NotAcceptable => "no content format that the request accepts",
        FailureKind::TooManyRequests => "over the rate limit, back off",
        FailureKind::InternalServerError | FailureKind::ServerError => "fault on the server",
        FailureKind::GatewayTimeout => "timed out on the server",
        FailureKind::InvalidToken => "the access token is invalid or has expired",
        FailureKind::ClientError => "failed given the information provided",
        FailureKind::NotSent => "the server could not be reached",
        FailureKind::Timeout => "no answer in time",
        FailureKind::Disconnected => "the connection broke before the answer was complete",
        FailureKind::Other | FailureKind::Custom(_) => "the call failed",
    }
}

/// The attempts, where there is something to tell of them.
fn after(f: &mut fmt::Formatter<'_>, outcome: RetryOutcome) -> fmt::Result {
    match outcome.attempts() {
        0 => f.write_str(" (never sent"),
        1 => f.write_str(" (1 attempt"),
        attempts => write!(f, " ({attempts} attempts"),
    }?;
    match outcome.give_up_reason() {
        // Not the server's answer.
        Some(GiveUpReason::RateGated) => f.write_str(", held back by the rate gate)"),
        _ => f.write_str(")"),
    }
}

/// A message of the API for a person: one line, not long, without what nobody may read in a log.
fn presentable(message: &str) -> String {
    const MOST: usize = 200;

    let mut line = String::new();
    let mut behind_scheme = false;
    let words = message.split(|c: char| c.is_whitespace() || c.is_control());
    for word in words.filter(|word| !word.is_empty()) {
        let shown = match behind_scheme || looks_secret(word) {
            true => "[redacted]",
            false => without_query(word),
        };
        behind_scheme = ends_with_scheme(word);
        if shown.is_empty() {
            continue;
        }
        if line.len() + shown.len() > MOST {
            line.push_str(" …");
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(shown);
    }
    line
}

/// Whether the next word is a credential: `Bearer`, `"Bearer`, `Authorization:Basic`.
fn ends_with_scheme(word: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic();
    let word = word.trim_end_matches(|c| !letter(c));
    let last = word.rsplit(|c| !letter(c)).next().unwrap_or_default();
    ["bearer", "basic"].contains(&last.to_ascii_lowercase().as_str())
}

fn without_query(word: &str) -> &str {
    // Behind the `#` of an URL stand access tokens too; elsewhere, numbers.
    let end = |c| c == '?' || (c == '#' && word.contains("://"));
    word.split(end).next().unwrap_or_default()
}

/// Whether a word may be a credential, long and not only letters, or has the user's part of an URL.
fn looks_secret(word: &str) -> bool {
    if word.split_once("://").is_some_and(|it| it.1.contains('@')) {
        return true;
    }
    let longest = word
        .split(|c: char| !c.is_ascii_alphanumeric() && !"-._~+/=".contains(c))
        .map(|run| match run.bytes().any(|byte| byte.is_ascii_digit()) {
            true => run.len(),
            false => 0,
        });
    longest.max().unwrap_or_default() >= 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_made_presentable() {
        let long = "word ".repeat(100);
        let presented_long = presentable(&long);
        assert!(presented_long.len() <= 210 && presented_long.ends_with('…'));
        for (message, expected) in [
            ("Slow down", "Slow down"),
            ("  two\nlines\t\u{7}x ", "two lines x"),
            ("no /accounts?token=abc here", "no /accounts here"),
            (
                "bad token eyJhbGciOiJIUzI1NiJ9.e30.x",
                "bad token [redacted]",
            ),
            ("sent Bearer abc today", "sent Bearer [redacted] today"),
            ("sent Bearer  abc today", "sent Bearer [redacted] today"),
            ("sent \"Bearer abc\"", "sent \"Bearer [redacted]"),
            (
                "Authorization:Basic:\r\n abc",
                "Authorization:Basic: [redacted]",
            ),
            ("at ftp://me:abc@host/ twice", "at [redacted] twice"),
            ("at ftp://host/#abc item #5", "at ftp://host/ item #5"),
            ("token='0af7651916cd43dd'", "[redacted]"),
            (
                "unauthorized.bad_access_token.expired",
                "unauthorized.bad_access_token.expired",
            ),
            ("", ""),
        ] {
            assert_eq!(presentable(message), expected);
        }
    }

    #[test]
    fn a_result_stays_small() {
        assert!(size_of::<Error>() <= 2 * size_of::<usize>());
    }
}
