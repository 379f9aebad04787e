//! A tolerant scanner for JSON error objects.
//!
//! The body of a failed response may be cut anywhere, and servers send values that are not quite JSON. A
//! parser would reject the whole object. This scanner only follows its structure: the members of the object,
//! and the ends of strings and of nested values. It is linear, and it neither recurses nor allocates.

use super::INVALID_TOKEN;

/// Returns whether `json` starts an object whose last complete `error` so far is `invalid_token`.
///
/// Within strings, numbers and nested values nothing is validated. A prefix of an object is accepted, an
/// object with an error in its own structure is not. Only whitespace and control characters may follow it.
pub(super) fn is_invalid_token(json: &[u8]) -> bool {
    let mut scanner = Scanner { rest: json };
    let mut invalid_token = false;
    match scanner.scan_object(&mut invalid_token) {
        Ok(()) => invalid_token && scanner.rest.iter().all(|byte| *byte <= b' '),
        Err(Stop::EndOfInput) => invalid_token,
        Err(Stop::Malformed) => false,
    }
}

/// The reason why a scan ended early.
enum Stop {
    EndOfInput,
    Malformed,
}

struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    /// Scans an object, and sets the flag to whether the last `error` so far is `invalid_token`.
    fn scan_object(&mut self, invalid_token: &mut bool) -> Result<(), Stop> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return self.expect(b'}');
        }
        loop {
            self.peek()?;
            let key = self.take_string()?;
            self.expect(b':')?;
            let starts_string = self.peek()? == b'"';
            if !string_equals(key, "error") {
                self.skip_value()?;
            } else if starts_string {
                *invalid_token = string_equals(self.take_string()?, INVALID_TOKEN);
            } else {
                *invalid_token = false;
                self.skip_value()?;
            }
            match self.peek()? {
                b'}' => return self.expect(b'}'),
                _ => self.expect(b',')?,
            }
        }
    }

    /// Skips a value. The kinds of brackets in a nested value need not match.
    fn skip_value(&mut self) -> Result<(), Stop> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => drop(self.take_string()?),
                b'{' | b'[' => {
                    depth += 1;
                    self.advance(1);
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.advance(1);
                }
                b',' | b':' if depth > 0 => self.advance(1),
                _ => self.skip_scalar()?,
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Skips a number, `true`, `false`, `null` or another word, such as `NaN`.
    fn skip_scalar(&mut self) -> Result<(), Stop> {
        let is_end = |byte: &u8| is_whitespace(*byte) || b"{}[],:\"".contains(byte);
        match self.rest.iter().position(is_end) {
            None => Err(Stop::EndOfInput),
            Some(0) => Err(Stop::Malformed),
            Some(len) => {
                self.advance(len);
                Ok(())
            }
        }
    }

    /// Takes a string, and returns the bytes between the quotes.
    fn take_string(&mut self) -> Result<&'a [u8], Stop> {
        let Some(text) = self.rest.strip_prefix(b"\"") else {
            return Err(Stop::Malformed);
        };
        let mut bytes = text.iter().enumerate();
        while let Some((index, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    let (string, rest) = text.split_at(index);
                    self.rest = rest;
                    self.advance(1);
                    return Ok(string);
                }
                b'\\' => drop(bytes.next()),
                _ => {}
            }
        }
        Err(Stop::EndOfInput)
    }

    fn expect(&mut self, expected: u8) -> Result<(), Stop> {
        match self.peek()? == expected {
            true => {
                self.advance(1);
                Ok(())
            }
            false => Err(Stop::Malformed),
        }
    }

    /// Skips whitespace, and returns the byte after it.
    fn peek(&mut self) -> Result<u8, Stop> {
        let start = self.rest.iter().position(|byte| !is_whitespace(*byte));
        self.advance(start.unwrap_or(self.rest.len()));
        self.rest.first().copied().ok_or(Stop::EndOfInput)
    }

    fn advance(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or_default();
    }
}

fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Returns whether a JSON string, given without its quotes, has the value `expected`, which is ASCII.
fn string_equals(mut string: &[u8], expected: &str) -> bool {
    for expected in expected.bytes() {
        match take_char(string) {
            Some((found, rest)) if found == expected => string = rest,
            _ => return false,
        }
    }
    string.is_empty()
}

/// Takes an ASCII character, which may be escaped ([RFC 8259 §7]), off a string.
///
/// [RFC 8259 §7]: https://www.rfc-editor.org/rfc/rfc8259#section-7
fn take_char(string: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = string.split_first()?;
    if *first != b'\\' {
        return Some((*first, rest));
    }
    let (escape, rest) = rest.split_first()?;
    if *escape != b'u' {
        // The other escapes stand for characters that are in neither of the expected strings.
        return None;
    }
    let (digits, rest) = rest.split_at_checked(4)?;
    let code = digits.iter().try_fold(0, |code, digit| {
        Some(code * 16 + char::from(*digit).to_digit(16)?)
    })?;
    Some((u8::try_from(code).ok()?, rest))
}
