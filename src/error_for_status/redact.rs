//! Redaction of API messages that are shown in logs.

/// The length in bytes at which a message is truncated, between two words.
const MAX_MESSAGE_LEN: usize = 200;

const REDACTED: &str = "[redacted]";

/// Sanitizes an API message for logs: a single line, truncated, without credentials or query strings.
pub(super) fn redact(message: &str) -> String {
    let mut line = String::new();
    let mut after_scheme = false;
    let words = message.split(|c: char| c.is_whitespace() || c.is_control());
    for word in words.filter(|word| !word.is_empty()) {
        let shown = match after_scheme || may_be_credential(word) {
            true => REDACTED,
            false => without_query(word),
        };
        after_scheme = ends_with_scheme(word);
        if shown.is_empty() {
            continue;
        }
        if line.len() + shown.len() > MAX_MESSAGE_LEN {
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

/// Returns `true` if `word` ends with an authentication scheme, which means that the next word is a
/// credential: `Bearer`, `"Bearer` or `Authorization:Basic`, for example.
fn ends_with_scheme(word: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic();
    let word = word.trim_end_matches(|c| !is_letter(c));
    let last = word.rsplit(|c| !is_letter(c)).next().unwrap_or_default();
    ["bearer", "basic"].contains(&last.to_ascii_lowercase().as_str())
}

/// Removes the query, and the fragment of a URL, which may hold an access token.
fn without_query(word: &str) -> &str {
    // Outside of a URL, `#` often precedes a number.
    let is_end = |c| c == '?' || (c == '#' && word.contains("://"));
    word.split(is_end).next().unwrap_or_default()
}

/// Returns `true` if `word` is a URL with userinfo, or contains a long token with at least one digit.
fn may_be_credential(word: &str) -> bool {
    const MIN_TOKEN_LEN: usize = 16;

    if word
        .split_once("://")
        .is_some_and(|(_, after)| after.contains('@'))
    {
        return true;
    }
    // The characters of `token68` (RFC 9110 §11.2).
    word.split(|c: char| !c.is_ascii_alphanumeric() && !"-._~+/=".contains(c))
        .any(|token| {
            token.len() >= MIN_TOKEN_LEN && token.bytes().any(|byte| byte.is_ascii_digit())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redacts_credentials_and_queries() {
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
            assert_eq!(redact(message), expected);
        }
    }

    #[test]
    fn truncates_long_messages() {
        let redacted = redact(&"word ".repeat(100));
        assert!(redacted.len() <= 210 && redacted.ends_with('…'));
    }
}
