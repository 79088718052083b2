//! Link-time and run-time addresses as two types, so that one can't pass for the other.

use core::fmt;

/// An address as the program's ELF file states it (before any load bias).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LinkAddr(pub u64);

/// An address in the live target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RunAddr(pub u64);

/// What the loader added to every link-time address of one module (modulo 2^64).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Bias(pub u64);

impl LinkAddr {
    /// Where this address lies in a target that loaded the module with `bias`.
    #[must_use]
    pub fn at(self, bias: Bias) -> RunAddr {
        RunAddr(self.0.wrapping_add(bias.0))
    }
    /// This address plus `n` bytes (modulo 2^64).
    #[must_use]
    pub fn offset(self, n: u64) -> LinkAddr {
        LinkAddr(self.0.wrapping_add(n))
    }
}

impl RunAddr {
    /// The link-time address of a module that was loaded with `bias`.
    #[must_use]
    pub fn without(self, bias: Bias) -> LinkAddr {
        LinkAddr(self.0.wrapping_sub(bias.0))
    }
    /// This address plus `n` bytes (modulo 2^64).
    #[must_use]
    pub fn offset(self, n: u64) -> RunAddr {
        RunAddr(self.0.wrapping_add(n))
    }
}

impl fmt::Debug for LinkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {:#x}", self.0)
    }
}
impl fmt::Display for LinkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
impl fmt::Debug for RunAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {:#x}", self.0)
    }
}
impl fmt::Display for RunAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
impl fmt::Debug for Bias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bias {:#x}", self.0)
    }
}
