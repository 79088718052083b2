//! `list`: what is applied, from the records in the target alone.

use crate::session::error::SessionError;
use crate::session::record::{Record, records};
use crate::target::{Target, TargetError};
use alloc::vec::Vec;

/// A patch that a target carries, or a record that can't be read.
pub type Listed = Result<Record, SessionError>;

/// All patches of the target, in order of application. Stops nobody.
///
/// # Errors
/// Target errors.
pub fn list(target: &mut dyn Target) -> Result<Vec<Listed>, SessionError> {
    let maps = target.mappings().ok_or(TargetError::Unsupported { what: "list mappings" })?;
    let mappings = maps.mappings()?;
    Ok(records(target, &mappings))
}
