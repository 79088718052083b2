//! The transport to whatever speaks the gdb remote protocol: gdbserver, emulators, probes on a processor's debug port.
//!
//! * A stub's target stands while it is looked at: from the moment of connecting it runs only between the attempts of a
//!   session, and after it. How long it stood is [`GdbTarget::stood`].
//! * A Linux process ([`Kind::Process`]) is patched as by ptrace: memory comes from an injected `mmap`, the record of a
//!   patch is a named mapping.
//! * A processor without an operating system ([`Kind::Bare`]) has no calls and no files. Its program is a file of ours that its
//!   memory is compared with, and patches lie in memory that the caller sets aside ([`Options::area`]).
//! * When a [`GdbTarget`] is dropped, the stub is left and the target runs on, whether it ran before or not.
//!
//! What each kind of stub can do: docs/remote.md.
//!
//! Source: GDB manual, appendix "GDB Remote Serial Protocol".

mod address_space;
mod calls;
mod connection;
mod control;
pub mod description;
mod error;
mod files;
mod link;
mod memory;
pub mod objects;
pub mod packet;
mod registers;
pub mod reply;
mod stub;
mod target;
mod threads;
mod waits;
mod write;
mod xml;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod process_tests;
#[cfg(test)]
mod tests;

pub use address_space::parse_area;
pub use error::GdbError;
pub use link::Address;
pub use stub::{Kind, Stub};
pub use target::{GdbTarget, Options};
