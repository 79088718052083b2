//! The x86-64 back end of tfix: tables and a few hooks, one file for each subject.
//!
//! What is peculiar to x86-64, as far as patching goes:
//!
//! * Instructions are 1 to 15 bytes long and need no alignment, so machine code can't be read backwards, and any byte may
//!   look like a branch ([`TrampolineEncoder::scan_branches`] therefore reports candidates, not facts).
//! * Direct branches and RIP-relative operands reach 2 GiB from the *end* of their instruction, in an address space of
//!   128 TiB: whatever is not allocated near needs a landing or a GOT slot.
//! * Instruction fetch is coherent with stores; what is left to do is to see that no thread is in the middle of the bytes
//!   (`cache.rs`).
//! * Two objects share `EM_X86_64`: the LP64 ABI, which this crate handles, and x32 (ELFCLASS32), which it refuses.
//! * 128 bytes below the stack pointer belong to the running function (the red zone), so nothing may be pushed there
//!   on behalf of a thread that was stopped somewhere.
//! * The instruction `endbr64` at a function's entry is a landing pad that indirect branches demand where Intel CET's
//!   branch tracking is on; it stays where it is. CET's shadow stack rules out every redirection by `push` and `ret`.
//!
//! Sources, here and in the other files: *System V ABI, AMD64 Architecture Processor Supplement* (the psABI,
//! <https://gitlab.com/x86-psABIs/x86-64-ABI>); *Intel 64 and IA-32 Architectures Software Developer's Manual* (the SDM);
//! the Linux kernel's `arch/x86`.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

use tigerfix_core::arch::{Arch, ElfIdent, LinuxAbi, RegisterLayout};
use tigerfix_core::field::Endian;

mod cache;
mod got;
#[cfg(feature = "alloc")]
mod normalize;
mod registers;
mod relocations;
#[cfg(feature = "alloc")]
mod signal;
mod trampoline;

#[cfg(doc)]
use tigerfix_core::arch::TrampolineEncoder;

/// `EM_X86_64` (psABI, "ELF Header").
const EM_X86_64: u16 = 62;
/// `EM_386`
const EM_386: u16 = 3;

/// x86-64 in the LP64 ABI. There is one variant and one byte order, so it has no fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct X86_64;

impl Arch for X86_64 {
    fn name(&self) -> &'static str {
        "x86-64"
    }

    fn accepts(&self, ident: &ElfIdent) -> Result<(), &'static str> {
        match (ident.machine, ident.is_64, ident.endian) {
            (EM_X86_64, true, Endian::Little) => Ok(()),
            (EM_X86_64, false, Endian::Little) => Err("is an x32 object (x86-64 with 32-bit pointers)"),
            (EM_X86_64, _, Endian::Big) => Err("is marked as big-endian x86-64, which does not exist"),
            (EM_386, _, _) => Err("is a 32-bit x86 (i386) object"),
            _ => Err("is not an x86-64 object"),
        }
    }

    fn address_bits(&self) -> u8 {
        64
    }

    fn data_endian(&self) -> Endian {
        Endian::Little
    }

    fn insn_endian(&self) -> Endian {
        Endian::Little
    }

    /// Base pages are 4 KiB on every x86-64 kernel; large pages are never needed.
    fn max_page_size(&self) -> u64 {
        0x1000
    }

    /// TASK_SIZE with 47 address bits (kernel `arch/x86/include/asm/page_64_types.h`). Processors with 57 bits hand out
    /// more only to who asks for it by an address hint, which tfix does not.
    fn user_space_end(&self) -> u64 {
        (1 << 47) - 0x1000
    }

    fn breakpoint(&self) -> &'static [u8] {
        &[0xcc] // int3
    }

    fn registers(&self) -> &'static RegisterLayout {
        &registers::LAYOUT
    }

    fn linux(&self) -> Option<&'static LinuxAbi> {
        Some(&registers::LINUX)
    }

    #[cfg(feature = "alloc")]
    fn rescue_frame(
        &self,
        regs: &tigerfix_core::arch::Registers,
        xstate: &[u8],
        sigmask: u128,
    ) -> Option<tigerfix_core::arch::RescueFrame> {
        signal::rescue_frame(regs, xstate, sigmask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_lp64() {
        let ident = |machine, is_64, endian| ElfIdent { is_64, endian, machine, flags: 0 };
        assert_eq!(X86_64.accepts(&ident(62, true, Endian::Little)), Ok(()));
        assert!(X86_64.accepts(&ident(62, false, Endian::Little)).unwrap_err().contains("x32"));
        assert!(X86_64.accepts(&ident(62, true, Endian::Big)).unwrap_err().contains("big-endian"));
        assert!(X86_64.accepts(&ident(3, false, Endian::Little)).unwrap_err().contains("i386"));
        assert!(X86_64.accepts(&ident(183, true, Endian::Little)).is_err());
    }
}
