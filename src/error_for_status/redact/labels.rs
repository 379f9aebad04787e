//! Names of credentials in messages, and their values.

use super::{
    scanner::Next,
    words::{Meaning, is_punctuation, meaning},
};

/// A kind of name that precedes a credential.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Label {
    /// An authentication scheme. The next word is a credential, even in another sentence.
    Scheme,
    /// The name of a token or key. The next word is a credential, unless a sentence ends before it.
    Token,
    /// The name of another secret. A credential follows only after a separator or `is`.
    Secret,
}

/// The labelled values in a word.
pub(super) struct LabelValues {
    /// The start of the label of the first value.
    pub(super) first: Option<usize>,
    /// The expected meaning of the next word.
    pub(super) next: Next,
}

/// The separators of a label and its value.
pub(super) const SEPARATORS: [char; 4] = [':', '=', '：', '＝'];

/// The characters that separate a label and its value within a word: also of `<token>…` and `Token(…)`.
const INNER_SEPARATORS: [char; 6] = [':', '=', '：', '＝', '>', '('];

/// Finds labels with separators and values in `word`, and a label at its end.
pub(super) fn find_label_values(word: &str, after_key_qualifier: bool) -> LabelValues {
    let mut found = LabelValues {
        first: None,
        next: Next::Text,
    };
    for (at, separator) in word.match_indices(INNER_SEPARATORS) {
        let before = word.get(..at).unwrap_or_default();
        let before = before.trim_end_matches(|c| is_quote(c) || "\\])}".contains(c));
        let (start, name) = last_name(before);
        let Some(label) = label(name, after_key_qualifier && start == 0) else {
            continue;
        };
        let after = word.get(at + separator.len()..).unwrap_or_default();
        found.next = match value(after, label) {
            (Meaning::Value, opening_quote) => {
                found.first.get_or_insert(start);
                match opening_quote {
                    Some(quote) => {
                        found.next = Next::Quoted(quote);
                        return found;
                    }
                    None => Next::Text,
                }
            }
            (Meaning::Punctuation | Meaning::Connector, _) => Next::Value(label),
            (Meaning::Text, _) => Next::Text,
        };
    }
    if found.next == Next::Text {
        found.next = after_last_label(word, after_key_qualifier);
    }
    found
}

/// Returns the meaning of the value at the start of `text`, which follows a separator, and its quote if
/// that is not closed.
fn value(text: &str, label: Label) -> (Meaning, Option<char>) {
    let is_opening = |c: char| "([{<>\\".contains(c) || is_quote(c) || SEPARATORS.contains(&c);
    let value = text.trim_start_matches(is_opening);
    let opening = text.strip_suffix(value).unwrap_or_default();
    let quote = opening.chars().rfind(|c| is_quote(*c));
    let unclosed_quote = quote.filter(|quote| !value.contains(*quote));

    let is_end = |c: char| is_quote(c) || ",;&)]}>，。；".contains(c);
    let end = value.find(is_end).unwrap_or(value.len());
    let (core, rest) = value.split_at_checked(end).unwrap_or_default();
    // Unless another pair follows, the delimiter may be part of the value.
    let is_delimited = rest.chars().all(is_punctuation) || rest.contains(SEPARATORS);
    let is_nested = opening.contains(['[', '{']) && !value.is_empty();
    let meaning = match meaning(core, label) {
        _ if is_nested || !is_delimited => Meaning::Value,
        // A quoted value is not prose.
        Meaning::Text | Meaning::Connector if quote.is_some() => Meaning::Value,
        Meaning::Connector if !rest.chars().all(is_punctuation) => Meaning::Text,
        meaning => meaning,
    };
    (meaning, unclosed_quote)
}

/// Returns the expectation after a word without a pending label, from the name at its end.
fn after_last_label(word: &str, after_key_qualifier: bool) -> Next {
    let text = word.trim_end_matches(|c| !is_name_char(c));
    let text = text.trim_end_matches('.');
    let end = word.strip_prefix(text).unwrap_or_default();
    let (start, name) = last_name(text);
    let is_end_of_sentence = end.contains(['.', ',', ';', '!', '?', '，', '。', '；', '！', '？']);
    match label(name, after_key_qualifier && start == 0) {
        Some(Label::Scheme) => Next::Value(Label::Scheme),
        // `invalid_token` is an error code.
        _ if is_end_of_sentence || is_error_code(name) => Next::Text,
        Some(Label::Token) => Next::Value(Label::Token),
        Some(Label::Secret) => Next::Separator,
        None => Next::Text,
    }
}

/// Returns the kind of label that `name` is, or `None` if it is none.
fn label(name: &str, after_key_qualifier: bool) -> Option<Label> {
    const SCHEMES: [&str; 2] = ["bearer", "basic"];
    const TOKENS: [&str; 8] = [
        "token",
        "apikey",
        "accesskey",
        "secretkey",
        "privatekey",
        "authkey",
        "signingkey",
        "jwt",
    ];
    const SECRETS: [&str; 11] = [
        "password",
        "passwd",
        "pwd",
        "passphrase",
        "passcode",
        "secret",
        "authorization",
        "credential",
        "credentials",
        "sessionid",
        "signature",
    ];

    let name: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    // `password2`, for example.
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_in = |labels: &[&str]| labels.iter().any(|label| name.ends_with(label));
    if is_in(&SCHEMES) {
        Some(Label::Scheme)
    } else if is_in(&TOKENS) || (name == "key" && after_key_qualifier) {
        Some(Label::Token)
    } else if is_in(&SECRETS) {
        Some(Label::Secret)
    } else {
        None
    }
}

/// Returns `true` if `key` after this word is the name of a credential.
pub(super) fn is_key_qualifier(word: &str) -> bool {
    let (_, name) = last_name(word);
    let qualifiers = ["api", "access", "secret", "private", "auth", "signing"];
    qualifiers
        .iter()
        .any(|qualifier| name.eq_ignore_ascii_case(qualifier))
}

fn is_error_code(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let problems = [
        "invalid", "bad_", "expired", "missing", "unknown", "revoked",
    ];
    problems.iter().any(|problem| name.contains(problem))
}

/// Returns the name at the end of `text`, and its start.
fn last_name(text: &str) -> (usize, &str) {
    let start = text.trim_end_matches(is_name_char).len();
    (start, text.get(start..).unwrap_or_default())
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.".contains(c)
}

pub(super) fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`')
}
