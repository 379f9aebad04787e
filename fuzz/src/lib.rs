//! The fuzz targets, whose sources are shared with the unit tests of the crate.

#[path = "../../src/fuzzing/targets/mod.rs"]
pub mod targets;
