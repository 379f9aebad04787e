//! Common words of error messages, which are not credentials.

use super::labels::{Label, SEPARATORS};

/// The meaning of a word after a label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Meaning {
    /// Only punctuation: the value may follow.
    Punctuation,
    /// A word such as `is`: the value may follow.
    Connector,
    /// Text: no value follows.
    Text,
    /// The value of the label.
    Value,
}

/// Returns the meaning of `word` after `label`.
pub(super) fn meaning(word: &str, label: Label) -> Meaning {
    let start = word.trim_start_matches(is_punctuation);
    let core = start.trim_end_matches(is_punctuation);
    let end = start.strip_prefix(core).unwrap_or_default();
    let mut chars = core.chars();
    if chars.next().is_none() {
        return Meaning::Punctuation;
    }
    // A single character is no secret: `unexpected token u`.
    if chars.next().is_none() {
        return Meaning::Text;
    }
    let lower = core.to_ascii_lowercase().replace('’', "'");
    let is_followed = end.contains(SEPARATORS);
    let is_sentence_end = end.contains(['.', ',', ';', '!', '?']);
    if CONNECTORS.contains(&&*lower) {
        match is_sentence_end && !is_followed {
            true => Meaning::Text,
            false => Meaning::Connector,
        }
    } else if WORDS.binary_search(&&*lower).is_ok() {
        match is_followed {
            true => Meaning::Connector,
            false => Meaning::Text,
        }
    } else if label != Label::Secret && !core.contains(|c: char| c.is_ascii_alphanumeric()) {
        match core.contains(char::is_alphabetic) {
            true => Meaning::Text,
            false => Meaning::Value,
        }
    } else {
        Meaning::Value
    }
}

/// Returns `true` for punctuation of prose and of JSON.
pub(super) fn is_punctuation(c: char) -> bool {
    "\"'`‘’“”.,;:!?()[]{}<>=|\\…-–—：＝，。；！？（）「」".contains(c)
}

/// Words between a label and its value.
const CONNECTORS: [&str; 19] = [
    "apikey", "are", "basic", "bearer", "given", "header", "id", "invalid", "is", "jwt", "key",
    "provided", "received", "sent", "supplied", "token", "used", "value", "was",
];

/// Words after which no value follows, sorted. None is a likely password.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "a", "about", "above", "absent", "access", "account", "accounts", "action", "add", "after",
    "again", "against", "all", "allowed", "already", "also", "although", "always", "an", "and",
    "another", "any", "api", "app", "appears", "application", "applications", "apps", "array",
    "as", "associated", "at", "attached", "attempt", "audience", "auth", "authenticate",
    "authenticated", "authentication", "authority", "authorization", "authorize", "authorized",
    "available", "based", "be", "because", "been", "before", "being", "belong", "belongs",
    "below", "between", "blank", "blocked", "body", "boolean", "both", "but", "by", "bytes",
    "call", "called", "can", "can't", "cannot", "challenge", "change", "changed", "changes",
    "character", "characters", "check", "claim", "claims", "code", "configuration",
    "configured", "connection", "contain", "contained", "contains", "correct", "could",
    "couldn't", "count", "create", "created", "creation", "credential", "credentials",
    "current", "currently", "date", "deactivated", "decoded", "decoding", "deleted", "denied",
    "did", "didn't", "different", "disabled", "do", "does", "doesn't", "don't", "due", "during",
    "each", "either", "empty", "enabled", "encoded", "encoding", "endpoint", "endpoints",
    "error", "errors", "exceeded", "exceeds", "exchange", "exhausted", "exist", "exists",
    "expected", "expiration", "expire", "expired", "expires", "expiry", "failed", "failure",
    "false", "field", "following", "for", "forbidden", "format", "found", "from", "generate",
    "generated", "generation", "grant", "granted", "group", "had", "has", "hasn't", "have",
    "haven't", "headers", "how", "http", "https", "if", "in", "included", "includes",
    "incorrect", "incorrectly", "information", "insufficient", "integer", "into",
    "introspected", "introspection", "invalidated", "isn't", "issue", "issued", "issuer", "it",
    "its", "json", "just", "keys", "lacking", "lacks", "last", "length", "level", "lifetime",
    "like", "limit", "limited", "live", "longer", "lookup", "malformed", "management", "match",
    "matched", "matches", "matching", "may", "mismatch", "missing", "mode", "more", "must",
    "my", "need", "needed", "needs", "never", "new", "no", "none", "nor", "not", "now", "null",
    "number", "object", "obtained", "of", "off", "on", "once", "one", "only", "optional", "or",
    "organisation", "organization", "other", "our", "out", "over", "parameter", "parameters",
    "parse", "parsing", "passed", "payload", "permission", "permissions", "permitted", "plan",
    "please", "policy", "prefix", "presented", "process", "property", "provide", "provider",
    "query", "quota", "rate", "reached", "read", "recognized", "refresh", "refreshed",
    "refused", "rejected", "renew", "renewal", "renewed", "request", "requested", "requests",
    "require", "required", "requires", "reset", "resource", "response", "restricted",
    "returned", "reuse", "reused", "revoked", "role", "rotated", "rotation", "scheme", "scope",
    "scopes", "security", "see", "seems", "service", "session", "shorter", "should",
    "signature", "signed", "since", "size", "so", "some", "specified", "still", "submitted",
    "supported", "suspended", "syntax", "than", "that", "the", "their", "then", "there",
    "these", "they", "this", "tier", "time", "timed", "timeout", "to", "token's", "tokens",
    "too", "true", "try", "type", "unable", "unauthorised", "unauthorized", "unavailable",
    "undefined", "under", "unexpected", "unknown", "unless", "unrecognized", "unsupported",
    "until", "url", "use", "using", "valid", "validate", "validated", "validation",
    "verification", "verified", "verify", "version", "via", "violation", "wasn't", "we", "were",
    "when", "where", "which", "while", "who", "will", "with", "within", "without", "won't",
    "wrong", "yet", "you", "your",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted() {
        assert!(WORDS.is_sorted());
    }
}
