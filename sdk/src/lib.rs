//! The facade of tfix: replace functions in programs that must not stop.
//!
//! Two halves, as in the command line:
//!
//! * [`generate`] (feature `gen`): patch objects + program -> package, offline. All decisions are made here.
//! * [`session`] over a [`Target`](target::Target): apply, list, revert on a live target. [`ptrace::PtraceTarget`]
//!   (feature `ptrace`) is the target for processes of this machine, [`gdb::GdbTarget`] (feature `gdb-remote`) for whatever
//!   is behind a stub of the gdb remote protocol.
//!
//! ```no_run
//! # #[cfg(all(feature = "gen", feature = "ptrace"))]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tigerfix::{arch, generate::Generate, package::PackageReader, ptrace::PtraceTarget, session, SystemClock};
//!
//! let program = std::fs::read("server")?;
//! let object = std::fs::read("fix.o")?;
//! let made = Generate::new("server", &program).object("fix.o", &object).run()?;
//!
//! let package = PackageReader::parse(&made.bytes)?.to_package();
//! let arch = arch::for_ident(&package.ident)?;
//! let mut target = PtraceTarget::open(1234, arch)?;
//! let options = session::Options::default();
//! let applied = session::apply(&mut target, arch, &package, &options, &mut SystemClock::new())?;
//! println!("paused for {} us", applied.pause_us);
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "gen", feature = "ptrace")))]
//! # fn main() {}
//! ```

pub mod arch;
mod clock;
#[cfg(feature = "gen")]
pub mod debug;
#[cfg(feature = "gen")]
pub mod decoder;
#[cfg(feature = "gdb-remote")]
pub mod gdb;
#[cfg(feature = "gen")]
pub mod generate;
#[cfg(feature = "gen")]
mod libraries;
#[cfg(any(feature = "ptrace", feature = "gdb-remote"))]
mod procfs;
#[cfg(feature = "ptrace")]
pub mod ptrace;
#[cfg(any(feature = "ptrace", feature = "gdb-remote"))]
mod restart;

pub use clock::SystemClock;
pub use tigerfix_core::{addr, decode, error, field, judge, link, model, package, program, session, target};
