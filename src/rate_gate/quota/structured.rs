//! `RateLimit` and `RateLimit-Policy`, which are lists by [RFC 9651].
//!
//! [RFC 9651]: https://www.rfc-editor.org/rfc/rfc9651

use std::{borrow::Cow, collections::HashMap, convert::Infallible, time::Duration};

use http::{HeaderMap, HeaderName};
use sfv::{
    BareItemFromInput, KeyRef, Parser,
    visitor::{
        EntryVisitor, Ignored, InnerListVisitor, ItemVisitor, ListVisitor, ParameterVisitor,
    },
};

use super::Quota;

/// The number of items of each field that are considered; further ones are ignored.
///
/// It bounds the memory that a response can claim. The drafts set no limit, but a server needs only a few
/// policies.
const MAX_ITEMS: usize = 32;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Parses the quota with the fewest remaining requests, not yet checked for plausibility.
///
/// A field that does not parse is ignored as a whole, and so is an item with an invalid parameter. Without
/// a `t`, the reset is the window of the policy.
pub(super) fn parse(headers: &HeaderMap) -> Option<Quota> {
    let states = join_lines(headers, RATELIMIT)?;
    let policies = join_lines(headers, POLICY)?;
    let policies = parse_items(&policies)?;
    let mut by_name = HashMap::with_capacity(policies.len());
    for item in &policies {
        if let Some(policy) = Policy::from_item(item) {
            // The first policy of a name counts.
            by_name.entry(&*item.name).or_insert(policy);
        }
    }
    let states = parse_items(&states)?;
    let quotas = states.iter().filter_map(|state| {
        let policy = by_name.get(&*state.name)?;
        let reset = state.reset.ok()?.or(policy.window)?;
        Some(Quota {
            limit: policy.limit,
            remaining: state.remaining.ok()??,
            reset: Duration::from_secs(reset),
            window: policy.window.map(Duration::from_secs),
        })
    });
    quotas.min_by_key(|quota| quota.remaining)
}

/// Joins the lines of a field, which are one list (RFC 9651 §4.2); returns `None` if there is none.
fn join_lines(headers: &HeaderMap, name: HeaderName) -> Option<Cow<'_, [u8]>> {
    let mut lines = headers.get_all(name).into_iter();
    let mut joined = Cow::Borrowed(lines.next()?.as_bytes());
    for line in lines {
        let joined = joined.to_mut();
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
    }
    Some(joined)
}

/// Parses the first [`MAX_ITEMS`] items of a list; returns `None` if the list is invalid anywhere.
fn parse_items(field: &[u8]) -> Option<Vec<Item<'_>>> {
    let list = Parser::new(field).parse_list_with_visitor(Items(Vec::new()));
    list.ok()
}

/// A valid policy that counts requests.
struct Policy {
    limit: u64,
    window: Option<u64>,
}

impl Policy {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        let policy = Self {
            limit: item.limit.ok()??,
            window: item.window.ok()?,
        };
        item.counts_requests.then_some(policy)
    }
}

/// An item of either field, with the parameters that the drafts define.
struct Item<'a> {
    /// The name, a string. Tokens are accepted as names too.
    name: Cow<'a, str>,
    /// The parameter `r` of a state.
    remaining: Integer,
    /// The parameter `t` of a state.
    reset: Integer,
    /// The parameter `q` of a policy.
    limit: Integer,
    /// The parameter `w` of a policy.
    window: Integer,
    /// Whether the parameter `qu` of a policy is absent or is the unit of requests.
    counts_requests: bool,
}

/// A parameter that is a non-negative integer, `None` if absent.
type Integer = Result<Option<u64>, InvalidInteger>;

#[derive(Clone, Copy)]
struct InvalidInteger;

impl<'a> Item<'a> {
    fn new(name: Cow<'a, str>) -> Self {
        Self {
            name,
            remaining: Ok(None),
            reset: Ok(None),
            limit: Ok(None),
            window: Ok(None),
            counts_requests: true,
        }
    }
}

/// Collects the items of a list. Other members are inner lists, which are skipped.
struct Items<'a>(Vec<Item<'a>>);

impl<'a> ListVisitor<'a> for Items<'a> {
    type Out = Vec<Item<'a>>;
    type Error = Infallible;

    fn entry(&mut self) -> Result<impl EntryVisitor<'a>, Infallible> {
        let considered = self.0.len() < MAX_ITEMS;
        // Further members are ignored, but their syntax is still checked.
        Ok(considered.then_some(NewItem(&mut self.0)))
    }

    fn finish(self) -> Result<Self::Out, Infallible> {
        Ok(self.0)
    }
}

struct NewItem<'v, 'a>(&'v mut Vec<Item<'a>>);

impl<'a> EntryVisitor<'a> for NewItem<'_, 'a> {
    type Error = Infallible;

    fn item(self) -> Result<impl ItemVisitor<'a>, Infallible> {
        Ok(self)
    }

    fn inner_list(self) -> Result<impl InnerListVisitor<'a>, Infallible> {
        Ok(Ignored)
    }
}

impl<'a> ItemVisitor<'a> for NewItem<'_, 'a> {
    type Out = Option<()>;
    type Error = Infallible;

    fn bare_item(
        self,
        name: BareItemFromInput<'a>,
    ) -> Result<impl ParameterVisitor<'a, Out = Option<()>>, Infallible> {
        let name = match name {
            BareItemFromInput::String(Cow::Borrowed(name)) => Cow::Borrowed(name.as_str()),
            BareItemFromInput::String(Cow::Owned(name)) => Cow::Owned(name.into()),
            BareItemFromInput::Token(name) => Cow::Borrowed(name.as_str()),
            _ => return Ok(None),
        };
        self.0.push(Item::new(name));
        Ok(self.0.last_mut())
    }
}

impl<'a> ParameterVisitor<'a> for &mut Item<'a> {
    type Out = ();
    type Error = Infallible;

    /// Sets a parameter. A later value replaces an earlier one, as RFC 9651 §4.2.3.2 requires.
    fn parameter(
        &mut self,
        key: &'a KeyRef,
        value: BareItemFromInput<'a>,
    ) -> Result<(), Infallible> {
        match key.as_str() {
            "r" => self.remaining = integer(&value),
            "t" => self.reset = integer(&value),
            "q" => self.limit = integer(&value),
            "w" => self.window = integer(&value),
            "qu" => self.counts_requests = is_request_unit(&value),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Infallible> {
        Ok(())
    }
}

fn integer(value: &BareItemFromInput<'_>) -> Integer {
    let integer = value.as_integer().ok_or(InvalidInteger)?;
    let integer = u64::try_from(i64::from(integer)).map_err(|_| InvalidInteger)?;
    Ok(Some(integer))
}

fn is_request_unit(value: &BareItemFromInput<'_>) -> bool {
    let unit = match value {
        BareItemFromInput::String(unit) => unit.as_str(),
        BareItemFromInput::Token(unit) => unit.as_str(),
        _ => return false,
    };
    // The drafts have both `request` and `requests`.
    matches!(unit, "request" | "requests")
}
