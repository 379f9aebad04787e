//! The error of a failed response.

use std::{error, fmt, sync::OnceLock, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    error::{describe, write_attempts, write_status},
    redact::redact,
};
use crate::{
    classify::{ApiErrorsAsFailures, FailureKind, Retryability, invalid_token},
    outcome::RetryOutcome,
};

/// A 4xx or 5xx response of the server, as an error.
///
/// `Display` is a single line of at most 400 bytes with the status, its meaning, the start of the API's
/// message and the number of attempts. Query strings, and words of the message that look like
/// credentials, are removed. Neither `Display` nor `Debug` shows headers or other parts of the body.
///
/// # Examples
///
/// ```
/// use http::{Response, StatusCode};
/// use http_body_util::Full;
/// use tower_http_retry::{Error, error_for_status};
///
/// # #[tokio::main] async fn main() {
/// let body = r#"{"code":"bad_request.bad_param.account_id","message":"Unknown account_id"}"#;
/// let mut response = Response::new(Full::<bytes::Bytes>::from(body));
/// *response.status_mut() = StatusCode::BAD_REQUEST;
/// let Err(Error::Api(error)) = error_for_status(response).await else {
///     panic!("expected an API error")
/// };
/// assert_eq!(error.code(), Some("bad_request.bad_param.account_id"));
/// assert_eq!(
///     error.to_string(),
///     "400 Bad Request: arguments are missing or malformed: Unknown account_id (1 attempt)"
/// );
/// # }
/// ```
pub struct ApiError {
    // Boxed to keep a `Result` small.
    inner: Box<ApiErrorInner>,
}

struct ApiErrorInner {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    is_body_truncated: bool,
    is_invalid_token: bool,
    json: OnceLock<Option<Value>>,
    retry_after: Option<Duration>,
    outcome: RetryOutcome,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        is_body_truncated: bool,
        retry_after: Option<Duration>,
        outcome: RetryOutcome,
    ) -> Self {
        let is_invalid_token =
            invalid_token::in_headers(&headers) || invalid_token::in_body(&headers, &body);
        Self {
            inner: Box::new(ApiErrorInner {
                status,
                headers,
                body,
                is_body_truncated,
                is_invalid_token,
                json: OnceLock::new(),
                retry_after,
                outcome,
            }),
        }
    }

    /// Returns the kind of failure.
    ///
    /// The kind follows from the status, except for [`FailureKind::InvalidToken`]: the body or
    /// `WWW-Authenticate` decides that, whatever the status.
    pub fn kind(&self) -> FailureKind {
        if self.is_invalid_token() {
            return FailureKind::InvalidToken;
        }
        FailureKind::from_status(self.inner.status).unwrap_or(FailureKind::Other)
    }

    /// Returns the response's status.
    pub fn status(&self) -> StatusCode {
        self.inner.status
    }

    /// Returns the response's headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.inner.headers
    }

    /// Returns the part of the response's body that was read.
    pub fn body(&self) -> &Bytes {
        &self.inner.body
    }

    /// Returns `true` if [`body`](Self::body) is only the start of the response's body.
    ///
    /// The body exceeded the size or time limit of
    /// [`ErrorForStatusLayer`](crate::ErrorForStatusLayer), or ended with an error.
    pub fn is_body_truncated(&self) -> bool {
        self.inner.is_body_truncated
    }

    /// Returns the body as JSON, or `None` if it is not valid JSON or is compressed.
    ///
    /// The body is parsed on first use.
    pub fn json_value(&self) -> Option<&Value> {
        let inner = &*self.inner;
        let text = || invalid_token::json_text(&inner.headers, &inner.body);
        let parse = || serde_json::from_slice(text()?).ok();
        inner.json.get_or_init(parse).as_ref()
    }

    /// Deserializes the body, which must be JSON, into `T`.
    ///
    /// # Errors
    ///
    /// Returns an error if the body is not JSON, or does not match `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        let inner = &*self.inner;
        let text = invalid_token::json_text(&inner.headers, &inner.body);
        serde_json::from_slice(text.unwrap_or(&inner.body))
    }

    /// Returns the field `error` of the JSON body, if it is a string. An example is `invalid_token`.
    pub fn error_code(&self) -> Option<&str> {
        self.text("error")
    }

    /// Returns the field `code` of the JSON body, if it is a string. An example is
    /// `unauthorized.bad_access_token.expired`.
    pub fn code(&self) -> Option<&str> {
        self.text("code")
    }

    /// Returns the field `message` of the JSON body, if it is a string.
    pub fn message(&self) -> Option<&str> {
        self.text("message")
    }

    /// Returns the field `error_description` of the JSON body, if it is a string.
    pub fn error_description(&self) -> Option<&str> {
        self.text("error_description")
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.json_value()?.get(key)?.as_str()
    }

    /// Returns the response's `Retry-After`, relative to the arrival of the response, or `None`
    /// without a valid one.
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// Returns the outcome that the retry layer reported.
    ///
    /// Without a retry layer this is one attempt and no give-up reason.
    pub fn outcome(&self) -> RetryOutcome {
        self.inner.outcome
    }

    /// Returns `true` if the access token is invalid or has expired.
    pub fn is_invalid_token(&self) -> bool {
        self.inner.is_invalid_token
    }

    /// Returns `true` if the default contract allows a retry of this failure.
    ///
    /// These are 429, 500 and 504 without `invalid_token`, the latter two for idempotent requests
    /// only. The policy of the retry layer is not consulted.
    pub fn is_retryable(&self) -> bool {
        let retryability = ApiErrorsAsFailures::new().retryability(self.inner.status);
        retryability != Retryability::Never && !self.is_invalid_token()
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_status(f, self.inner.status)?;
        write!(f, ": {}", describe(self.kind()))?;
        let message = self.message().or(self.error_description()).map(redact);
        if let Some(message) = message.filter(|message| !message.is_empty()) {
            write!(f, ": {message}")?;
        }
        write_attempts(f, self.inner.outcome)
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiError")
            .field("status", &self.inner.status)
            .field("kind", &self.kind())
            .field("body_len", &self.inner.body.len())
            .field("is_body_truncated", &self.inner.is_body_truncated)
            .field("retry_after", &self.inner.retry_after)
            .field("outcome", &self.inner.outcome)
            .finish_non_exhaustive()
    }
}

impl error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::outcome::GiveUpReason;

    fn error_with_message(status: u16, message: &str, outcome: RetryOutcome) -> ApiError {
        let body = json!({ "message": message }).to_string().into();
        let status = StatusCode::from_u16(status).unwrap();
        ApiError::new(status, HeaderMap::new(), body, false, None, outcome)
    }

    const LONGEST_OUTCOME: RetryOutcome = RetryOutcome {
        attempts: u32::MAX,
        reason: Some(GiveUpReason::RateGated),
        ..RetryOutcome::FIRST_ATTEMPT
    };

    #[test]
    fn display_is_bounded_for_all_statuses() {
        for status in 400..600 {
            let error = error_with_message(status, &"word ".repeat(100), LONGEST_OUTCOME);
            assert!(error.to_string().len() <= 400, "{error}");
        }
    }

    #[test]
    fn message_length_does_not_change_display() {
        for text in ["无效", "#", "word "] {
            let display = |count| {
                let message = text.repeat(count);
                error_with_message(500, &message, RetryOutcome::FIRST_ATTEMPT).to_string()
            };
            assert_eq!(display(1_000_000), display(10_000));
            assert!(
                display(1_000_000).contains(&text.repeat(200 / text.len())),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn display_is_one_bounded_line(
            status in 400u16..1000,
            message in prop_oneof![any::<String>(), "\\PC{0,1200}"],
        ) {
            let text = error_with_message(status, &message, LONGEST_OUTCOME).to_string();
            prop_assert!(text.len() <= 400);
            prop_assert!(!text.contains(char::is_control));
        }

        #[test]
        fn secret_in_message_is_not_shown(
            form in proptest::sample::select(vec![
                "Bearer $", "Bearer token $", "Token $", "ApiKey $", "api_key=$", "access_token: $",
                "me:$@host", "ftp://me:$@host", "{\"access_token\":\"$\"}", "Bearer%20$", "%3A$12345678901234",
            ]),
            secret in "ZQ[A-Za-z0-9]{2,12}",
            before in "[ a-z无]{0,30}",
            after in "[ a-z无]{0,300}",
        ) {
            let message = format!("{before} {} {after}", form.replace('$', &secret));
            let error = error_with_message(401, &message, RetryOutcome::FIRST_ATTEMPT);
            for text in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
                prop_assert!(!text.contains("ZQ"), "{text}");
            }
        }
    }
}
