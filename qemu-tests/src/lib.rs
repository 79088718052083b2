//! Harness of the live tests: compiles fixtures, starts victims, runs tfix and looks at what a user would see.
//!
//! A test owns a [`Lab`] (a temporary directory), one or more [`Victim`]s and calls [`tfix!`]. Nothing waits by sleeping:
//! a test waits for a line of output or for a state of the process, and panics with all it knows after [`DEADLINE`].

pub mod blocked;
pub mod board;
pub mod cases;
mod emulated;
mod guest;
pub mod inside;
mod lab;
mod memory;
pub mod on_guests;
mod stub;
mod tool;
mod victim;

use std::time::{Duration, Instant};

pub use emulated::{Emulated, emulated};
pub use guest::{GUESTS, Guest, Program};
pub use lab::{Lab, Link, MATRIX_OPTS, fixtures, repository};
pub use memory::{Region, Snapshot, read_memory};
pub use stub::{Gdbserver, GuestGdbserver, open};
pub use tool::{Background, Outcome, binary, run, run_as_nobody, start};
pub use victim::{Place, Victim, process_state, status_field};

/// Generous, because other programs may be using the machine; nothing that works comes near it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `ready` gives something; panics with `what` at the deadline.
pub fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Small deterministic generator for the tests that damage files at many places.
pub struct Dice(u64);

impl Dice {
    /// A sequence that depends on `seed` only.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("64-bit host") % limit
    }
}

/// Runs tfix with these arguments (paths, strings, numbers as text) to its end.
#[macro_export]
macro_rules! tfix {
    ($($argument:expr),* $(,)?) => {
        $crate::run(&[$(::std::convert::AsRef::<::std::ffi::OsStr>::as_ref(&$argument).to_owned()),*])
    };
}
