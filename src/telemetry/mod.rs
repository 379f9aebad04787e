pub(crate) mod events;
pub(crate) mod metrics;
pub(crate) mod trace;

pub use self::events::{GiveUpEvent, RetryEvent};
#[cfg(feature = "metrics")]
pub use self::metrics::describe_metrics;
