//! The script of the caller and the server.
//!
//! Times of the server and delays are multiples of 100 ms. Time limits end 50 ms later, so that no two events
//! coincide.

use std::{io, time::Duration};

use arbitrary::{Result, Unstructured};
use http::{Method, StatusCode};

use super::super::calendar::Form;

#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) max_retries: u32,
    pub(super) max_elapsed: Duration,
    /// The backoff ends after these.
    pub(super) delays: Vec<Duration>,
    pub(super) replay_limit: usize,
    pub(super) inspect_limit: usize,
    pub(super) drain_limit: usize,
    pub(super) discard_timeout: Duration,
    pub(super) retry_non_idempotent: bool,
    /// Whether a 503 is retried if the request is idempotent.
    pub(super) retries_503: bool,
    /// The capacity and the cost.
    pub(super) budget: Option<(u32, u32)>,
    /// The number of the first call of the filter that forbids the retry.
    pub(super) vetoes_from: usize,
    pub(super) calls: Vec<Call>,
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) key: Option<&'static str>,
    pub(super) idempotent: Option<bool>,
    pub(super) max_retries: Option<u32>,
    pub(super) max_elapsed: Option<Duration>,
    /// The lengths of the chunks of the request body.
    pub(super) chunks: Vec<usize>,
    pub(super) has_exact_hint: bool,
    /// The request body ends with an error.
    pub(super) body_fails: bool,
    /// The replies to the attempts. After the last, the server replies with 200.
    pub(super) replies: Vec<Reply>,
}

#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// The server reads at least so much of the request body, if there is as much.
    pub(super) reads: usize,
    pub(super) latency: Duration,
    pub(super) result: Result<ResponseScript, io::ErrorKind>,
}

#[derive(Clone, Debug)]
pub(super) struct ResponseScript {
    pub(super) status: StatusCode,
    pub(super) retry_after: RetryAfter,
    pub(super) has_invalid_token_header: bool,
    pub(super) body: Vec<BodyStep>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum RetryAfter {
    None,
    Malformed,
    Overflow,
    Seconds(u64),
    Date(u64, Form),
}

#[derive(Clone, Debug)]
pub(super) enum BodyStep {
    Data(Vec<u8>),
    Wait(Duration),
    Stall,
    Fail,
}

impl Script {
    pub(super) fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let capacity = u.int_in_range(1..=40)?;
        let cost = u.int_in_range(1..=capacity)?;
        Ok(Self {
            max_retries: u.int_in_range(0..=4)?,
            max_elapsed: limit(u, 600)?,
            delays: (0..u.int_in_range(0..=5)?)
                .map(|_| time(u, 20))
                .collect::<Result<_>>()?,
            replay_limit: u.int_in_range(0..=300)?,
            inspect_limit: u.int_in_range(0..=120)?,
            drain_limit: u.int_in_range(0..=200)?,
            discard_timeout: limit(u, 20)?,
            retry_non_idempotent: u.ratio(1, 4)?,
            retries_503: u.arbitrary()?,
            budget: if u.arbitrary()? {
                Some((capacity, cost))
            } else {
                None
            },
            vetoes_from: if u.ratio(1, 4)? {
                u.int_in_range(0..=4)?
            } else {
                usize::MAX
            },
            calls: (0..u.int_in_range(1..=3)?)
                .map(|_| Call::any(u))
                .collect::<Result<_>>()?,
        })
    }
}

impl Call {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let methods = [
            Method::POST,
            Method::GET,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ];
        Ok(Self {
            method: u.choose(&methods)?.clone(),
            key: *u.choose(&[None, None, Some("\"k\""), Some("")])?,
            idempotent: *u.choose(&[None, None, None, Some(false), Some(true)])?,
            max_retries: if u.ratio(1, 5)? {
                Some(u.int_in_range(0..=4)?)
            } else {
                None
            },
            max_elapsed: if u.ratio(1, 5)? {
                Some(limit(u, 200)?)
            } else {
                None
            },
            chunks: (0..u.int_in_range(0..=6)?)
                .map(|_| u.int_in_range(0..=90))
                .collect::<Result<_>>()?,
            has_exact_hint: u.arbitrary()?,
            body_fails: u.ratio(1, 8)?,
            replies: (0..u.int_in_range(0..=5)?)
                .map(|_| Reply::any(u))
                .collect::<Result<_>>()?,
        })
    }

    pub(super) fn total(&self) -> usize {
        self.chunks.iter().sum()
    }
}

impl Reply {
    pub(super) fn ok() -> Self {
        Self {
            reads: usize::MAX,
            latency: Duration::ZERO,
            result: Ok(ResponseScript {
                status: StatusCode::OK,
                retry_after: RetryAfter::None,
                has_invalid_token_header: false,
                body: vec![BodyStep::Data(b"done".to_vec())],
            }),
        }
    }

    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        const ERRORS: [io::ErrorKind; 4] = [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::TimedOut,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::PermissionDenied,
        ];
        let reads = if u.arbitrary()? {
            usize::MAX
        } else {
            u.int_in_range(0..=400)?
        };
        let latency = time(u, 30)?;
        let result = if u.ratio(1, 4)? {
            Err(*u.choose(&ERRORS)?)
        } else {
            Ok(ResponseScript::any(u)?)
        };
        Ok(Self {
            reads,
            latency,
            result,
        })
    }
}

impl ResponseScript {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        const STATUSES: [u16; 16] = [
            429, 429, 429, 500, 500, 504, 504, 503, 200, 204, 301, 400, 401, 408, 502, 599,
        ];
        let retry_after = match u.int_in_range(0..=9)? {
            0..=4 => RetryAfter::None,
            5 => RetryAfter::Malformed,
            6 => RetryAfter::Overflow,
            7 => RetryAfter::Date(u.int_in_range(0..=20)?, u.arbitrary()?),
            _ => RetryAfter::Seconds(u.int_in_range(0..=40)?),
        };
        Ok(Self {
            status: StatusCode::from_u16(*u.choose(&STATUSES)?).expect("a valid status"),
            retry_after,
            has_invalid_token_header: u.ratio(1, 10)?,
            body: any_body(u)?,
        })
    }

    /// Returns the data of the whole body.
    pub(super) fn data(&self) -> Vec<u8> {
        let data = self.body.iter().filter_map(|step| match step {
            BodyStep::Data(data) => Some(data.as_slice()),
            _ => None,
        });
        data.collect::<Vec<_>>().concat()
    }
}

fn any_body(u: &mut Unstructured<'_>) -> Result<Vec<BodyStep>> {
    let padding = "x".repeat(u.int_in_range(0..=150)?);
    let text = match u.int_in_range(0..=5)? {
        0 => format!("{{\"error\":\"invalid_token\",\"more\":\"{padding}\"}}"),
        1 => format!("{{\"more\":\"{padding}\",\"error\":\"invalid_token\"}}"),
        2 => format!("{{\"error\":\"other\",\"more\":\"{padding}\"}}"),
        _ => padding,
    };
    let mut rest = text.as_bytes();
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if u.ratio(1, 6)? {
            steps.push(BodyStep::Wait(time(u, 10)?));
        }
        let (chunk, after) = rest.split_at(u.int_in_range(1..=rest.len())?);
        steps.push(BodyStep::Data(chunk.to_vec()));
        rest = after;
        if steps.len() > 12 {
            steps.push(BodyStep::Data(rest.to_vec()));
            break;
        }
    }
    match u.int_in_range(0..=8)? {
        0 => steps.push(BodyStep::Stall),
        1 => steps.push(BodyStep::Fail),
        _ => {}
    }
    Ok(steps)
}

fn time(u: &mut Unstructured<'_>, max: u64) -> Result<Duration> {
    Ok(Duration::from_millis(100 * u.int_in_range(0..=max)?))
}

fn limit(u: &mut Unstructured<'_>, max: u64) -> Result<Duration> {
    Ok(time(u, max)? + Duration::from_millis(50))
}
