//! The challenges of a `WWW-Authenticate` header ([RFC 9110 §11.6.1]).
//!
//! [RFC 9110 §11.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1

use super::INVALID_TOKEN;

/// The schemes whose parameter `error` reports the state of an access token: [RFC 6750 §3] and
/// [RFC 9449 §7.1].
///
/// [RFC 6750 §3]: https://www.rfc-editor.org/rfc/rfc6750#section-3
/// [RFC 9449 §7.1]: https://www.rfc-editor.org/rfc/rfc9449#section-7.1
const TOKEN_SCHEMES: [&[u8]; 2] = [b"Bearer", b"DPoP"];

/// Returns whether a header value has a challenge for a token with `error="invalid_token"`.
pub(super) fn reports_invalid_token(value: &[u8]) -> bool {
    let mut challenges = Challenges {
        rest: value,
        scheme: None,
    };
    std::iter::from_fn(|| challenges.next_param()).any(|param| param.is_invalid_token())
}

/// A parameter of a challenge.
struct AuthParam<'a> {
    scheme: &'a [u8],
    name: &'a [u8],
    /// A token, or the inside of a quoted string, with its escapes.
    value: &'a [u8],
}

impl AuthParam<'_> {
    fn is_invalid_token(&self) -> bool {
        let mut schemes = TOKEN_SCHEMES.into_iter();
        schemes.any(|scheme| self.scheme.eq_ignore_ascii_case(scheme))
            && self.name.eq_ignore_ascii_case(b"error")
            && unescape(self.value).eq(INVALID_TOKEN.bytes())
    }
}

/// Removes the backslashes of quoted pairs. A token has none.
fn unescape(quoted: &[u8]) -> impl Iterator<Item = u8> {
    let mut bytes = quoted.iter().copied();
    std::iter::from_fn(move || match bytes.next() {
        Some(b'\\') => bytes.next(),
        byte => byte,
    })
}

/// The rest of a list of challenges.
#[derive(Clone, Copy)]
struct Challenges<'a> {
    rest: &'a [u8],
    /// The scheme of the current challenge. `None` if no parameter may follow: after a scheme without a
    /// space, and after a token68.
    scheme: Option<&'a [u8]>,
}

impl<'a> Challenges<'a> {
    /// Takes the next parameter of any challenge; `None` at the end or at a malformed part.
    fn next_param(&mut self) -> Option<AuthParam<'a>> {
        loop {
            self.take_while(is_delimiter);
            let name = self.take_token()?;
            if let Some(value) = self.take_value() {
                return self.finish_param(name, value);
            }
            // Without a value it is the scheme of the next challenge.
            self.scheme = self.rest.starts_with(b" ").then_some(name);
            if self.at_end_of_element() {
                continue;
            }
            self.scheme?;
            self.take_while(|byte| byte == b' ');
            if self.take_token68() {
                self.scheme = None;
                continue;
            }
            let name = self.take_token()?;
            let value = self.take_value()?;
            return self.finish_param(name, value);
        }
    }

    /// Takes the end of an element, and returns its parameter. If more than whitespace follows the
    /// parameter, nothing after it is read; if anything else than whitespace follows directly, the parameter
    /// itself is malformed.
    fn finish_param(&mut self, name: &'a [u8], value: &'a [u8]) -> Option<AuthParam<'a>> {
        let is_delimited = self.rest.first().is_none_or(|byte| is_delimiter(*byte));
        if !self.at_end_of_element() {
            self.rest = &[];
        }
        let scheme = self.scheme.filter(|_| is_delimited)?;
        Some(AuthParam {
            scheme,
            name,
            value,
        })
    }

    /// Skips whitespace if an element of the list ends there.
    fn at_end_of_element(&mut self) -> bool {
        let mut ahead = *self;
        ahead.take_while(is_space_or_tab);
        let at_end = matches!(ahead.rest, [] | [b',', ..]);
        if at_end {
            *self = ahead;
        }
        at_end
    }

    /// Takes `=` and the value of a parameter. Takes nothing if they are missing or malformed.
    fn take_value(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        ahead.take_while(is_space_or_tab);
        ahead.rest = ahead.rest.strip_prefix(b"=")?;
        ahead.take_while(is_space_or_tab);
        let value = match ahead.rest {
            [b'"', ..] => ahead.take_quoted_string()?,
            _ => ahead.take_token()?,
        };
        *self = ahead;
        Some(value)
    }

    /// Takes a token68 if it is a whole element.
    fn take_token68(&mut self) -> bool {
        let mut ahead = *self;
        let text =
            ahead.take_while(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        ahead.take_while(|byte| byte == b'=');
        let found = !text.is_empty() && ahead.at_end_of_element();
        if found {
            *self = ahead;
        }
        found
    }

    fn take_token(&mut self) -> Option<&'a [u8]> {
        let token = self.take_while(is_token_char);
        (!token.is_empty()).then_some(token)
    }

    /// Takes a quoted string, and returns its inside; `None` if it is not terminated.
    fn take_quoted_string(&mut self) -> Option<&'a [u8]> {
        let text = self.rest.strip_prefix(b"\"")?;
        let mut bytes = text.iter().enumerate();
        while let Some((index, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    let (quoted, rest) = text.split_at(index);
                    self.rest = rest.strip_prefix(b"\"")?;
                    return Some(quoted);
                }
                b'\\' => drop(bytes.next()),
                _ => {}
            }
        }
        None
    }

    fn take_while(&mut self, predicate: fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !predicate(*byte));
        let (taken, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }
}

fn is_delimiter(byte: u8) -> bool {
    is_space_or_tab(byte) || byte == b','
}

fn is_space_or_tab(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_token_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
