//! GOT slots and veneers, and where thread-local storage lies.
//!
//! Odd in this psABI: code reaches the GOT relative to RIP, so there is no GOT pointer register to set up and no bias. The
//! symbol `_GLOBAL_OFFSET_TABLE_` is the GOT's start. Thread-local storage is variant II of the TLS ABI: the
//! executable's block lies *below* the thread pointer (`%fs:0`) and ends there, so offsets from it are negative.
//!
//! Source: psABI, "Global Offset Table", "Procedure Linkage Table", "Thread-Local Storage"; Drepper, *ELF Handling For
//! Thread-Local Storage*, section 3 (variant II).

use crate::X86_64;
use crate::relocations::GOTPCREL;
use tigerfix_core::arch::{GotBuilder, Veneer};

/// No `endbr64` in front: a veneer is reached by direct branches, or by a pointer only within the patch itself, and
/// Linux does not enforce branch tracking in user space.
static VENEER: Veneer = Veneer {
    code: &[0xff, 0x25, 0, 0, 0, 0], // jmp qword ptr [rip + disp32]
    relocs: &[(2, GOTPCREL, -4)],
};

impl GotBuilder for X86_64 {
    fn slot_size(&self) -> u8 {
        8
    }

    fn gp_bias(&self) -> u64 {
        0
    }

    fn veneer(&self) -> &'static Veneer {
        &VENEER
    }

    fn tp_offset(&self, size: u64, align: u64) -> i64 {
        // The block's end is the thread pointer; its size is rounded up to its alignment.
        let block = size.checked_next_multiple_of(align.max(1)).unwrap_or(size);
        0i64.wrapping_sub_unsigned(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn veneer_reads_its_slot() {
        assert_eq!(crate::trampoline::tests::text(X86_64.veneer().code, 0x1000), "jmp qword ptr [rip]");
        assert_eq!(X86_64.veneer().relocs, [(2, GOTPCREL, -4)]);
    }

    #[test]
    fn thread_pointer_is_the_blocks_end() {
        assert_eq!(X86_64.tp_offset(0x24, 0x10), -0x30);
        assert_eq!(X86_64.tp_offset(0x20, 0x10), -0x20);
        assert_eq!(X86_64.tp_offset(5, 0), -5);
        assert_eq!(X86_64.tp_offset(0, 8), 0);
    }
}
