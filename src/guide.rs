//! Guides: pages of the documentation, without code of their own.

/// How to add the layer to common clients.
// The code of this page is compiled by the workspace member `clients`, which has the dependencies.
#[cfg(not(doctest))]
#[doc = include_str!("../docs/stacks.md")]
pub mod stacks {}

/// How to choose the settings.
#[doc = include_str!("../docs/tuning.md")]
pub mod tuning {}

/// Outcomes, spans, events, metrics and callbacks.
#[doc = include_str!("../docs/observability.md")]
pub mod observability {}

/// How the layer behaves during outages and at rate limits.
#[doc = include_str!("../docs/storms.md")]
pub mod storms {}
