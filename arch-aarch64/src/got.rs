//! GOT slots and veneers, and where thread-local storage lies.
//!
//! Odd in this psABI: there is no GOT pointer register, code reaches slots by `adrp` and an offset in the page.
//! `_GLOBAL_OFFSET_TABLE_` is the GOT's start. Thread-local storage is variant I of the TLS ABI: TPIDR_EL0 points to the
//! thread control block of 16 bytes, and the executable's block lies *above* it, so offsets are positive. The block starts at a
//! multiple of its alignment that leaves room for the control block.
//!
//! Source: AAELF64, "Proxy-generating relocations"; *System V ABI for the Arm 64-bit Architecture*, "Thread Local Storage";
//! Drepper, *ELF Handling For Thread-Local Storage*, section 3 (variant I); LLVM lld and GNU ld agree (`aligned TCB size`).

use crate::Aarch64;
use crate::relocations::{ADR_GOT_PAGE, LD64_GOT_LO12_NC};
use tigerfix_core::arch::{GotBuilder, Veneer};

/// Size of the thread control block: two words.
const TCB: u64 = 16;

/// The pad in front is for tables of distances to functions (R_AARCH64_PLT32 in data), through which code branches
/// indirectly. What a veneer leads to has to have one as well if it lies in a guarded page, even though `br x16` is content with
/// that of a function (`bti c`); functions that other modules call have one.
static VENEER: Veneer = Veneer {
    code: &[
        0x5f, 0x24, 0x03, 0xd5, // bti c
        0x10, 0x00, 0x00, 0x90, // adrp x16, page of the slot
        0x10, 0x02, 0x40, 0xf9, // ldr x16, [x16, offset in the page]
        0x00, 0x02, 0x1f, 0xd6, // br x16
    ],
    relocs: &[(4, ADR_GOT_PAGE, 0), (8, LD64_GOT_LO12_NC, 0)],
};

impl GotBuilder for Aarch64 {
    fn slot_size(&self) -> u8 {
        8
    }

    fn gp_bias(&self) -> u64 {
        0
    }

    fn veneer(&self) -> &'static Veneer {
        &VENEER
    }

    fn tp_offset(&self, _size: u64, align: u64) -> i64 {
        let block = TCB.max(align);
        i64::try_from(block).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tigerfix_core::arch::Relocator;

    #[test]
    fn veneer_jumps_through_its_slot() {
        let text = crate::trampoline::tests::text(VENEER.code, 0x1000);
        assert_eq!(text, "bti c; adrp x16, #0x1000; ldr x16, [x16]; br x16");
        for (at, r_type, _) in VENEER.relocs {
            let howto = Aarch64.howto(*r_type).unwrap();
            assert!(usize::from(at + howto.field.bytes) <= VENEER.code.len());
        }
    }

    #[test]
    fn block_lies_above_the_control_block() {
        assert_eq!(Aarch64.tp_offset(0x24, 8), 16);
        assert_eq!(Aarch64.tp_offset(0x24, 16), 16);
        assert_eq!(Aarch64.tp_offset(0x24, 64), 64);
        assert_eq!(Aarch64.tp_offset(0, 0), 16);
        assert_eq!(Aarch64.tp_offset(0, 1), 16);
    }
}
