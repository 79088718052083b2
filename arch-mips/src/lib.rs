//! The MIPS back end of tfix: tables and a few hooks, one file for each subject.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod constants;
pub mod flow;
pub mod operands;
#[allow(dead_code)]
mod registers;
#[cfg(feature = "alloc")]
pub mod step;
