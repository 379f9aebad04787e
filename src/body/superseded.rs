//! The error of a request body whose attempt is over.

use std::fmt;

/// The error that ends a request body when its attempt was aborted: another attempt took over the body,
/// or the call was dropped.
///
/// Only the inner service sees it: the [`ReplayBody`](crate::ReplayBody) of an attempt that is over
/// yields it once. The upload is incomplete, although the body ends after the error.
///
/// # Examples
///
/// ```
/// use tower::BoxError;
/// use tower_http_retry::Superseded;
///
/// /// Returns whether the upload was aborted by the retry layer, not by a fault of the body.
/// fn is_superseded(error: &BoxError) -> bool {
///     error.is::<Superseded>()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Superseded;

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was given up, or is being sent by another attempt")
    }
}

impl std::error::Error for Superseded {}
