//! The architecture-neutral engine of tfix.
//!
//! Nothing in this crate names an architecture: all that differs between processors comes in through
//! [`arch::Arch`], all that differs between ways of reaching a target through [`target::Target`].
//!
//! * [`link`]: patch objects + program -> image and residue (`gen`)
//! * [`judge`]: may this function be replaced? (`gen`)
//! * [`package`]: the `.tfp` file
//! * [`session`]: plan, apply, list and revert on a live target (`fix`)
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod addr;
pub mod arch;
pub mod error;
pub mod field;
pub mod model;
pub mod package;
pub mod relocate;
pub mod target;

#[cfg(feature = "alloc")]
pub mod decode;
#[cfg(feature = "alloc")]
pub mod judge;
#[cfg(feature = "alloc")]
pub mod link;
#[cfg(feature = "alloc")]
pub mod program;
#[cfg(feature = "alloc")]
mod property;
#[cfg(feature = "alloc")]
pub mod session;
