//! GOT slots and veneers, and where thread-local storage lies.
//!
//! Odd in this psABI: code reaches the GOT relative to RIP, so there is no GOT pointer register to set up and no bias. The
//! symbol `_GLOBAL_OFFSET_TABLE_` is the GOT's start. Thread-local storage is variant II of the TLS ABI: the
//! executable's block lies *below* the thread pointer (`%fs:0`) and ends there, so offsets from it are negative.
//!
//! Source: psABI, "Global Offset Table", "Procedure Linkage Table", "Thread-Local Storage"; Drepper, *ELF Handling For
//! Thread-Local Storage*, section 3 (variant II).

use crate::X86_64;
use crate::trampoline::rel32;
use tigerfix_core::arch::{Code, EncodeError, GotBuilder};

/// `jmp qword ptr [rip + disp32]`, up to the displacement.
const JMP_RIP: [u8; 2] = [0xff, 0x25];
/// Length of the veneer, bytes.
const VENEER_LEN: u8 = 6;
const _: () = assert!(JMP_RIP.len() + 4 == VENEER_LEN as usize);

impl GotBuilder for X86_64 {
    fn slot_size(&self) -> u8 {
        8
    }

    fn gp_bias(&self) -> u64 {
        0
    }

    fn veneer_len(&self) -> u8 {
        VENEER_LEN
    }

    /// No `endbr64` in front: a veneer is reached by direct branches, or by a pointer only within the patch itself, and
    /// Linux does not enforce branch tracking in user space.
    fn encode_veneer(&self, at: u64, slot: u64) -> Result<Code, EncodeError> {
        let disp = rel32(at, slot, VENEER_LEN)?;
        Ok(Code::EMPTY.then(&JMP_RIP).then(&disp)) // jmp qword ptr [rip + disp]
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
    fn veneer_reaches_its_slot() {
        let code = X86_64.encode_veneer(0x1000, 0x3000).unwrap();
        assert_eq!(code.bytes(), [0xff, 0x25, 0xfa, 0x1f, 0x00, 0x00]);
        assert_eq!(crate::trampoline::tests::text(code.bytes(), 0x1000), "jmp qword ptr [rip + 0x1ffa]");
        assert!(X86_64.encode_veneer(0, 0x8000_0005).is_ok());
        assert!(matches!(X86_64.encode_veneer(0, 0x8000_0006), Err(EncodeError::OutOfReach { .. })));
        assert!(X86_64.encode_veneer(0x8000_0000, 6).is_ok());
        assert!(X86_64.encode_veneer(0x8000_0000, 5).is_err());
    }

    #[test]
    fn thread_pointer_is_the_blocks_end() {
        assert_eq!(X86_64.tp_offset(0x24, 0x10), -0x30);
        assert_eq!(X86_64.tp_offset(0x20, 0x10), -0x20);
        assert_eq!(X86_64.tp_offset(5, 0), -5);
        assert_eq!(X86_64.tp_offset(0, 8), 0);
    }
}
