//! Redaction of API messages that are shown in logs.
//!
//! A message is cut to 1 KiB, split into words at white space, control characters and invisible
//! formatting characters, and written as a single line of at most [`MAX_REDACTED_LEN`] bytes. The line
//! is cut between two words, or at a character boundary of a longer word.
//!
//! The following is replaced by `[redacted]`, together with the ASCII text around it in the same word.
//!
//! - *Long tokens*: 16 or more characters of `token68` (RFC 9110 §11.2) or `%`, with at least one digit.
//! - *Userinfo*: `user:password@host`, and any `@` after a `://`. An email address is not redacted.
//! - *Labelled values*, up to the end of the word. A label is a name that ends with `token`, `apikey`,
//!   `password`, `secret`, `authorization` or similar; case, `_`, `-` and `.` are ignored. Its value
//!   follows `=` or `:` in the same word or the next one, with or without quotes: `api_key=…`,
//!   `{"access_token":"…"}`. A quoted value extends to the closing quote. Within a word, `(` and `>`
//!   separate as well: `Token(…)`, `<token>…`.
//! - *The word after a scheme or a token's name*, even without `=` or `:`: `Bearer …`, `Basic …`,
//!   `Token …`, `ApiKey …`, `API key …`. Words such as `token`, `is` and `provided` between the two are
//!   skipped: `Bearer token …`.
//! - *Escaped words* in which one of these, or a query, appears after percent-decoding.
//!
//! An unquoted value is not redacted if it is a common word of error messages (see `words`), a single
//! character, or punctuation: `token expired` and `password: required` stay readable. After a token's
//! name, the same holds for text that is not ASCII. A label at the end of a sentence has no value.
//!
//! Queries, and fragments of URLs, are removed. Short secrets without a label cannot be recognized.
//!
//! A word that is cut at 1 KiB is treated as if the worst followed: its last token and everything after
//! a `:` are redacted.

mod labels;
mod scanner;
mod words;

use scanner::Scanner;

/// The maximum length of a redacted message, in bytes.
const MAX_REDACTED_LEN: usize = 204;

/// The length in bytes at which the line is cut.
const MAX_LINE_LEN: usize = MAX_REDACTED_LEN - " …".len();

/// The length in bytes of the part of a message that is scanned. Bounds the cost of a log line.
const MAX_SCANNED_LEN: usize = 1024;

/// The length in bytes of the longest word that is left out, rather than cut, if it does not fit.
const MAX_UNCUT_WORD_LEN: usize = 40;

const REDACTED: &str = "[redacted]";

/// Sanitizes an API message for logs: a single line, truncated, without credentials or query strings.
pub(super) fn redact(message: &str) -> String {
    let (start, rest) = split_at_boundary(message, MAX_SCANNED_LEN);
    let is_cut_in_word = !rest.starts_with(is_separator) && !rest.is_empty();
    let mut line = Line::default();
    let mut scanner = Scanner::default();
    let mut words = start.split(is_separator).peekable();
    while let Some(word) = words.next() {
        let is_partial = is_cut_in_word && words.peek().is_none();
        if !word.is_empty() && !line.push(&scanner.redact_word(word, is_partial)) {
            return line.text;
        }
    }
    if !rest.is_empty() {
        line.push_ellipsis();
    }
    line.text
}

/// A line under construction.
#[derive(Default)]
struct Line {
    text: String,
}

impl Line {
    /// Appends a word. Returns `false` if the line is full.
    fn push(&mut self, word: &str) -> bool {
        if word.is_empty() || (word == REDACTED && self.text.ends_with(REDACTED)) {
            return true;
        }
        let space = if self.text.is_empty() { "" } else { " " };
        let room = MAX_LINE_LEN.saturating_sub(self.text.len() + space.len());
        if word.len() <= room {
            self.text.push_str(space);
            self.text.push_str(word);
            return true;
        }
        let (start, _) = split_at_boundary(word, room);
        if word.len() > MAX_UNCUT_WORD_LEN && !start.is_empty() {
            self.text.push_str(space);
            self.text.push_str(start);
            self.text.push('…');
        } else {
            self.push_ellipsis();
        }
        false
    }

    fn push_ellipsis(&mut self) {
        let ellipsis = if self.text.is_empty() { "…" } else { " …" };
        self.text.push_str(ellipsis);
    }
}

/// Splits `text` at the last character boundary within the first `len` bytes.
fn split_at_boundary(text: &str, len: usize) -> (&str, &str) {
    let len = len.min(text.len());
    let split = (0..=len).rev().find_map(|at| text.split_at_checked(at));
    split.unwrap_or_default()
}

/// Returns `true` for white space, and for characters that could forge or reorder a line of a log.
fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests;
