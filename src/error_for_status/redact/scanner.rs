//! Redaction of single words, in the context of the words before them.

use std::iter;

use super::{
    REDACTED, is_separator,
    labels::{Label, SEPARATORS, find_label_values, is_key_qualifier, is_quote},
    words::{Meaning, meaning},
};

/// The number of nested percent-encodings that are decoded. A deeper one is redacted.
const MAX_ENCODINGS: usize = 3;

/// Redacts the words of a message one by one.
#[derive(Default)]
pub(super) struct Scanner {
    next: Next,
    /// The last word was `API`, `access` or similar, which makes `key` a label.
    after_key_qualifier: bool,
    /// The number of percent-encodings that have been decoded.
    encodings: usize,
}

/// The expected meaning of the next word.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Next {
    #[default]
    Text,
    /// A separator may follow: the last word was a label that requires one.
    Separator,
    /// The value of a label.
    Value(Label),
    /// The rest of a quoted value, up to the quote.
    Quoted(char),
}

impl Scanner {
    /// Returns `word` as it may be shown.
    ///
    /// `word` contains no separators. If `is_partial`, it continues with unknown text.
    pub(super) fn redact_word(&mut self, word: &str, is_partial: bool) -> String {
        let previous = self.next;
        let redacted = match previous {
            Next::Quoted(quote) => match word.split_once(quote) {
                Some((_, after)) => {
                    self.redact_text(after, is_partial);
                    REDACTED.to_owned()
                }
                None => REDACTED.to_owned(),
            },
            Next::Value(label) => match value_meaning(word, label) {
                Meaning::Punctuation => word.to_owned(),
                Meaning::Connector => self.redact_connector(word, is_partial, label),
                Meaning::Text => self.redact_text(word, is_partial),
                Meaning::Value => {
                    self.redact_text(word, is_partial);
                    if let Some(quote) = unclosed_quote(word) {
                        self.next = Next::Quoted(quote);
                    }
                    redact_value(word, label)
                }
            },
            Next::Separator => match meaning(word, Label::Secret) {
                Meaning::Punctuation if word.contains(SEPARATORS) => {
                    self.next = Next::Value(Label::Secret);
                    word.to_owned()
                }
                Meaning::Connector => self.redact_connector(word, is_partial, Label::Secret),
                _ => self.redact_text(word, is_partial),
            },
            Next::Text => self.redact_text(word, is_partial),
        };
        self.after_key_qualifier = is_key_qualifier(word);
        redacted
    }

    /// Redacts a word between a label and its value.
    fn redact_connector(&mut self, word: &str, is_partial: bool, label: Label) -> String {
        let redacted = self.redact_text(word, is_partial);
        if matches!(self.next, Next::Text | Next::Separator) {
            self.next = Next::Value(label);
        }
        redacted
    }

    /// Redacts a word that is not the value of an earlier label.
    fn redact_text(&mut self, word: &str, is_partial: bool) -> String {
        let labels = find_label_values(word, self.after_key_qualifier);
        self.next = labels.next;
        if self.is_credential_encoded(word) {
            return REDACTED.to_owned();
        }
        let query_start = without_query(word).len();
        // A value in the query is not shown anyway.
        let label_start = labels.first.filter(|start| *start < query_start);
        let label_start = label_start.map(|start| ascii_run_start(word, start));
        let starts = [label_start, userinfo_start(word, is_partial)];
        let redacted_from = starts.into_iter().flatten().min().unwrap_or(word.len());

        let mut redacted = String::new();
        for (start, run) in ascii_runs(word) {
            if start >= redacted_from {
                redacted.push_str(REDACTED);
                break;
            }
            let end = start + run.len();
            let is_unfinished = is_partial && end == word.len() && run.ends_with(is_token_char);
            if is_unfinished || has_long_token(run) {
                redacted.push_str(REDACTED);
            } else {
                let len = query_start.saturating_sub(start).min(run.len());
                redacted.push_str(run.get(..len).unwrap_or_default());
            }
            if end > query_start {
                break;
            }
        }
        redacted
    }

    /// Returns `true` if a credential or a query appears in `word` after decoding.
    fn is_credential_encoded(&mut self, word: &str) -> bool {
        if !word.contains(['%', '+']) {
            return false;
        }
        let Some(decoded) = decode(word) else {
            return true;
        };
        if decoded == word {
            return false;
        }
        if self.encodings == MAX_ENCODINGS {
            return true;
        }
        let mut scanner = Scanner {
            next: Next::Text,
            after_key_qualifier: self.after_key_qualifier,
            encodings: self.encodings + 1,
        };
        let mut is_redacted = false;
        for word in decoded.split(is_separator).filter(|word| !word.is_empty()) {
            is_redacted |= scanner.redact_word(word, false) != word;
        }
        if self.next == Next::Text {
            self.next = scanner.next;
        }
        is_redacted
    }
}

/// Returns the meaning of `word` after `label`.
fn value_meaning(word: &str, label: Label) -> Meaning {
    match meaning(word, label) {
        // A passphrase may begin with a common word.
        Meaning::Text | Meaning::Connector
            if label == Label::Secret && unclosed_quote(word).is_some() =>
        {
            Meaning::Value
        }
        meaning => meaning,
    }
}

/// Returns the value of a label, as it may be shown.
fn redact_value(word: &str, label: Label) -> String {
    // Tokens are ASCII. Text in a script without spaces may precede one.
    let text = word.find(|c: char| c.is_ascii_alphanumeric());
    let text = text.and_then(|end| word.get(..end)).unwrap_or_default();
    if label != Label::Secret && text.contains(char::is_alphabetic) {
        return format!("{text}{REDACTED}");
    }
    REDACTED.to_owned()
}

/// Returns the quote that `word` starts with, if it is not closed.
fn unclosed_quote(word: &str) -> Option<char> {
    let word = word.trim_start_matches(['(', '[', '{', '<', '\\', ':', '=']);
    let mut chars = word.chars();
    let quote = chars.next().filter(|c| is_quote(*c))?;
    (!chars.as_str().contains(quote)).then_some(quote)
}

/// Removes the query, and the fragment of a URL, which may hold an access token.
fn without_query(word: &str) -> &str {
    // Outside of a URL, `#` often precedes a number.
    let is_url = word.contains("://");
    let is_end = |c| c == '?' || (c == '#' && is_url);
    word.split(is_end).next().unwrap_or_default()
}

/// Returns the start of the credential if `word` contains userinfo.
fn userinfo_start(word: &str, is_partial: bool) -> Option<usize> {
    let end = match is_partial {
        true => word.len(),
        false => word.rfind('@')?,
    };
    let before = word.get(..end)?;
    let is_userinfo = |(colon, _): &(usize, &str)| {
        let user = before.get(..*colon).unwrap_or_default();
        let rest = before.get(*colon..).unwrap_or_default();
        // `"email":"name@host"` is not userinfo.
        let is_json = user.ends_with(is_quote) || rest.chars().nth(1).is_some_and(is_quote);
        rest.starts_with("://") || !is_json || is_partial
    };
    let (colon, _) = before.match_indices(':').find(is_userinfo)?;
    Some(ascii_run_start(word, colon))
}

/// Returns `true` if `text` contains a long token with at least one digit.
fn has_long_token(text: &str) -> bool {
    const MIN_TOKEN_LEN: usize = 16;

    text.split(|c| !is_token_char(c)).any(|token| {
        token.len() >= MIN_TOKEN_LEN && token.bytes().any(|byte| byte.is_ascii_digit())
    })
}

/// Returns `true` for the characters of `token68` (RFC 9110 §11.2), and for `%`, which escapes others.
fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~+/=%".contains(c)
}

/// Splits `word` into runs of ASCII and of other characters, with their offsets.
fn ascii_runs(word: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    iter::from_fn(move || {
        let rest = word.get(start..).filter(|rest| !rest.is_empty())?;
        let is_ascii = rest.starts_with(|c: char| c.is_ascii());
        let end = rest.find(|c: char| c.is_ascii() != is_ascii);
        let run = rest.get(..end.unwrap_or(rest.len()))?;
        let at = start;
        start += run.len();
        Some((at, run))
    })
}

/// Returns the start of the ASCII characters before `at`.
fn ascii_run_start(word: &str, at: usize) -> usize {
    let before = word.get(..at).unwrap_or_default();
    before.trim_end_matches(|c: char| c.is_ascii()).len()
}

/// Decodes percent-escapes, and `+` for a space. Returns `None` if the result is not text.
fn decode(word: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut decoded = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let [first, after @ ..] = rest {
        let escape = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)),
            _ => None,
        };
        let escape = escape.and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match (first, escape) {
            (_, Some(byte)) => {
                decoded.push(byte);
                rest = rest.get(3..).unwrap_or_default();
            }
            (b'+', None) => {
                decoded.push(b' ');
                rest = after;
            }
            (byte, None) => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    let decoded = String::from_utf8(decoded).ok()?;
    let is_binary = decoded.contains(|c: char| c.is_control() && !c.is_whitespace());
    (!is_binary).then_some(decoded)
}
