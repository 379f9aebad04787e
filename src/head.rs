//! What is kept of a request's head, so that each attempt gets the head that the caller made.

use http::{Request, request::Parts};

use crate::{outcome::OutcomeHandle, policy::RequestOptions};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The head of a request: method, URI, version, headers and extensions as the caller set them.
pub(crate) struct Head {
    parts: Parts,
}

impl Head {
    /// Takes the head apart from the body, and keeps a copy.
    pub(crate) fn keep<B>(request: Request<B>) -> (Self, Parts, B) {
        let (parts, body) = request.into_parts();
        let head = Self {
            parts: parts.clone(),
        };
        (head, parts, body)
    }

    /// The request again, with another body.
    pub(crate) fn request<B>(&self, body: B) -> Request<B> {
        Request::from_parts(self.parts.clone(), body)
    }

    /// Whether acting twice on the request does no harm: the caller's word where there is one,
    /// otherwise by its method, or by its `Idempotency-Key`.
    pub(crate) fn may_be_repeated(&self) -> bool {
        let options = self.parts.extensions.get::<RequestOptions>();
        options
            .and_then(|options| options.repeatable)
            .unwrap_or_else(|| self.parts.method.is_idempotent() || self.has_idempotency_key())
    }

    fn has_idempotency_key(&self) -> bool {
        let key = self.parts.headers.get(IDEMPOTENCY_KEY);
        key.is_some_and(|key| !key.as_bytes().trim_ascii().is_empty())
    }

    /// Where the caller wants to read the outcome.
    pub(crate) fn outcome_handle(&self) -> Option<&OutcomeHandle> {
        self.parts.extensions.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn what_may_be_repeated_follows_rfc_9110_the_key_and_the_callers_word() {
        let table: &[(&str, Option<&str>, Option<bool>, bool)] = &[
            ("GET", None, None, true),
            ("HEAD", None, None, true),
            ("OPTIONS", None, None, true),
            ("TRACE", None, None, true),
            ("PUT", None, None, true),
            ("DELETE", None, None, true),
            ("POST", None, None, false),
            ("PATCH", None, None, false),
            ("CONNECT", None, None, false),
            ("get", None, None, false),
            ("PURGE", None, None, false),
            ("POST", Some("\"8e03978e\""), None, true),
            ("POST", Some(""), None, false),
            ("POST", Some(" "), None, false),
            ("POST", None, Some(true), true),
            ("POST", Some("8e03978e"), Some(false), false),
            ("GET", None, Some(false), false),
        ];
        for (method, key, mark, expected) in table {
            let mut request = Request::new(());
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
            if let Some(key) = key {
                let headers = request.headers_mut();
                headers.insert("idempotency-key", key.parse().unwrap());
            }
            if let Some(mark) = mark {
                let options = RequestOptions::new().repeatable(*mark);
                request.extensions_mut().insert(options);
            }
            let (head, ..) = Head::keep(request);
            assert_eq!(
                head.may_be_repeated(),
                *expected,
                "{method} {key:?} {mark:?}"
            );
        }
    }
}
