//! The text of errors: no secret, one line, bounded.

use std::{fmt, io};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_http_retry::{Error, ErrorForStatusLayer};

use super::runtime::block_on;

/// Whether secrets are planted that only their context marks: short ones after `password=`, for example.
///
/// Off: the redaction of this branch finds long tokens with a digit, and words after `Bearer` and `Basic`.
const CHECK_MARKED_SECRETS: bool = false;

/// A message is cut after 200 bytes. The rest is the status, its meaning and the number of attempts.
const MAX_LEN: usize = 400;

/// Decodes a failed response with a secret in it.
pub fn api_error(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let _ = check_response(u);
    let _ = check_inner_error(u);
}

fn check_response(u: &mut Unstructured<'_>) -> Result<()> {
    let status = StatusCode::from_u16(u.int_in_range(400..=599)?).expect("a valid status");
    let (secret, message) = if CHECK_MARKED_SECRETS && u.arbitrary()? {
        marked_message(u)?
    } else {
        let secret = any_secret(u)?;
        let message = any_message(u, &secret)?;
        (secret, message)
    };
    let body = any_body(u, &secret, &message)?;
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let value = HeaderValue::try_from(format!("Bearer {secret}")).expect("a visible secret");
    for name in [header::AUTHORIZATION, header::SET_COOKIE, header::LOCATION] {
        response.headers_mut().insert(name, value.clone());
    }
    let result = block_on(tower_http_retry::error_for_status(response));
    let error = result.expect_err("a failed status");
    let Error::Api(api) = &error else {
        panic!("not an API error: {error}")
    };
    check_text(api, &secret, &message);
    check_text(&error, &secret, &message);
    assert!(error.to_string().starts_with(status.as_str()), "{error}");
    Ok(())
}

/// The text of an inner error may hold anything, and is not shown at all.
fn check_inner_error(u: &mut Unstructured<'_>) -> Result<()> {
    let secret = any_secret(u)?;
    let message = any_message(u, &secret)?;
    let inner = service_fn(async |()| {
        let error = io::Error::other(message.clone());
        Err::<Response<Full<Bytes>>, BoxError>(error.into())
    });
    let inner = inner.map_request(|_: http::Request<()>| ());
    let call = ErrorForStatusLayer::new()
        .layer(inner)
        .oneshot(http::Request::new(()));
    let error = block_on(call).expect_err("an inner error");
    assert!(matches!(error, Error::Transport(_)));
    check_text(&error, &secret, &message);
    Ok(())
}

fn check_text<E: fmt::Display + fmt::Debug>(error: &E, secret: &str, message: &str) {
    let (display, debug, pretty) = (
        format!("{error}"),
        format!("{error:?}"),
        format!("{error:#?}"),
    );
    for text in [&display, &debug, &pretty] {
        assert!(
            !text.contains(secret),
            "{secret} in {text}, from the message {message:?}"
        );
        assert!(text.len() <= 2 * MAX_LEN, "{} bytes: {text}", text.len());
    }
    assert!(
        display.len() <= MAX_LEN,
        "{} bytes: {display}",
        display.len()
    );
    let is_break = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    assert!(!display.contains(is_break), "{display:?}");
    assert!(!debug.contains(is_break), "{debug:?}");
}

/// Returns 20 to 60 characters of a token68, with a digit, that occur in no text of the crate.
fn any_secret(u: &mut Unstructured<'_>) -> Result<String> {
    const CHARS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~+/";
    let mut secret = String::from("7zq");
    for _ in 0..u.int_in_range(17..=57)? {
        secret.push(char::from(*u.choose(CHARS)?));
    }
    Ok(secret)
}

/// Builds a message with the secret in any context, or in one that marks any word as a secret.
fn any_message(u: &mut Unstructured<'_>, secret: &str) -> Result<String> {
    const CONTEXTS: [(&str, &str); 16] = [
        ("", ""),
        ("Bearer ", ""),
        ("bearer:\n", " "),
        ("Authorization: Basic ", "."),
        ("token=", "&x=1"),
        ("\"access_token\":\"", "\"}"),
        ("/accounts?access_token=", "&limit=3"),
        ("postgres://user:", "@db.internal/x"),
        ("https://", "@host/"),
        ("https://host/#", ""),
        ("<", ">"),
        ("key '", "' is wrong"),
        ("(", ")"),
        ("\u{201c}", "\u{201d}"),
        ("\u{7}", "\u{0}"),
        ("caf\u{e9}:", "\u{e9}"),
    ];
    let (before, after) = u.choose(&CONTEXTS)?;
    let mut message = any_text(u)?;
    message.push_str(before);
    message.push_str(secret);
    message.push_str(after);
    message.push_str(&any_text(u)?);
    Ok(message)
}

fn any_text(u: &mut Unstructured<'_>) -> Result<String> {
    const WORDS: [&str; 12] = [
        "the ",
        "request failed ",
        "\n",
        "\r\n",
        "\t",
        "bearer ",
        "\u{2028}",
        "\u{1b}[31m",
        "account ",
        "?",
        "#",
        ": ",
    ];
    let mut text = String::new();
    for _ in 0..u.int_in_range(0..=6)? {
        match u.int_in_range(0..=9)? {
            0 => text.push_str(&"word ".repeat(u.int_in_range(0..=60)?)),
            1 => text.extend(std::iter::repeat_n(
                u.arbitrary::<char>()?,
                u.int_in_range(0..=300)?,
            )),
            _ => text.push_str(u.choose(&WORDS)?),
        }
    }
    // The words before a secret are separated from it: they are not part of it.
    if !text.is_empty() {
        text.push(' ');
    }
    Ok(text)
}

fn any_body(u: &mut Unstructured<'_>, secret: &str, message: &str) -> Result<Vec<u8>> {
    let field = *u.choose(&["message", "error_description"])?;
    let body = serde_json::json!({
        field: message,
        // Not shown.
        "code": secret,
        "error": secret,
        "token": { "value": secret },
    });
    let mut body = body.to_string().into_bytes();
    match u.int_in_range(0..=5)? {
        0 => body.truncate(u.int_in_range(0..=body.len())?),
        1 => body = message.as_bytes().to_vec(),
        _ => {}
    }
    Ok(body)
}

/// Builds a message whose secret only its context marks.
fn marked_message(u: &mut Unstructured<'_>) -> Result<(String, String)> {
    const MARKS: [&str; 12] = [
        "password=",
        "password: ",
        "access_token=",
        "refresh_token=",
        "\"access_token\":\"",
        "client_secret=",
        "api_key=",
        "api-key: ",
        "Bearer ",
        "Basic ",
        "token=",
        "secret=",
    ];
    let secret: String = (0..u.int_in_range(6..=24)?)
        .map(|_| Ok(char::from(b'a' + u.int_in_range(0..=25)?)))
        .collect::<Result<_>>()?;
    let secret = format!("zq{secret}");
    let message = format!("login with {}{secret} failed", u.choose(&MARKS)?);
    Ok((secret, message))
}
