//! The facade.

#[cfg(feature = "gen")]
pub mod decoder;
