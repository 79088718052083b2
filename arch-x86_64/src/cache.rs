//! Cache maintenance: none.
//!
//! Odd, next to other architectures: instruction fetch snoops stores, on the same processor and on others, and the kernel's
//! ptrace write needs no flush. What remains is *cross-modifying code*: a processor that already fetched the old bytes
//! goes on with them until it executes a serialising instruction (SDM volume 3, "Handling Self- and Cross-Modifying Code").
//! A thread that was stopped and is resumed comes back through IRET, which serialises, after the writes were made.

use crate::X86_64;
use tigerfix_core::arch::{CacheInvalidation, CacheNeed};

impl CacheInvalidation for X86_64 {
    fn cache_need(&self) -> CacheNeed {
        CacheNeed::Coherent
    }
}
