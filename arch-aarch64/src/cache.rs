//! Cache maintenance: line operations over what was written.
//!
//! Odd, next to other architectures: data and instruction caches are coherent only as far as CTR_EL0 says so, and
//! cleaning one and invalidating the other are instructions that programs may execute themselves (Linux sets SCTLR_EL1.UCI);
//! there is no system call for it. After stores of code, and before it runs (Arm ARM, B2.7.4.2 "Synchronization and
//! coherency issues between data and instruction accesses"):
//!
//! 1. `dc cvau` for each data cache line of the range (its size in words is 2 to the power of CTR_EL0.DminLine, bits 19:16);
//!    not needed where CTR_EL0.IDC (bit 28) is set;
//! 2. `dsb ish`;
//! 3. `ic ivau` for each instruction cache line (CTR_EL0.IminLine, bits 3:0); not needed where CTR_EL0.DIC (bit 29) is set;
//! 4. `dsb ish`;
//! 5. `isb`, or another context synchronisation event, on each processor that goes on to run the code. A return from an
//!    exception is one, so that threads which were stopped and resumed need nothing.
//!
//! Line sizes differ between the cores of one machine; Linux shows the smallest in CTR_EL0. Who writes through ptrace or
//! `/proc/PID/mem` into a mapping that is executable *at that time* has all of this done by the kernel
//! (`arch/arm64/mm/flush.c`, flush_ptrace_access), which is why code is written only after it was mapped executable.
//!
//! On a Neoverse N1 with erratum 1542419 a processor may see a new branch before the new code that it leads to; the kernel's
//! workaround is in its handling of `ic ivau`. The order in which patches are written is right for it in any case: the image
//! is written and flushed first, the sites last.

use crate::Aarch64;
use tigerfix_core::arch::{CacheInvalidation, CacheNeed};

impl CacheInvalidation for Aarch64 {
    fn cache_need(&self) -> CacheNeed {
        CacheNeed::LineOps
    }
}
