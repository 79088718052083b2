//! The AArch64 back end of tfix: tables and a few hooks, one file for each subject.
//!
//! What is peculiar to AArch64, as far as patching goes:
//!
//! * An instruction is one aligned word of 4 bytes, little-endian whatever the order of data. A trampoline of one word
//!   fits every function there is, and no thread can be in the middle of it.
//! * `b` and `bl` reach 128 MiB, `adrp` 4 GiB, a load of an address everything. Between a call and its target the
//!   registers x16 and x17 belong to the linker (AAPCS64, 6.1.1), so that veneers and landings may use them, and callers
//!   know (GCC counts both as changed by every call, even with -fipa-ra).
//! * Instruction fetch is *not* coherent with stores (`cache.rs`).
//! * In pages mapped with PROT_BTI an indirect branch must meet a landing pad: `bti`, or `paciasp`, which does something
//!   else as well (`trampoline.rs`).
//! * Return addresses may carry an authentication code in their upper bits (PAC); what is on the stack is not simply an
//!   address then ([`Arch::return_address_bits`]).
//! * Linux has taken a thread's interrupted system call back to its `svc` instruction before a tracer gets to see the
//!   registers (`registers.rs`).
//!
//! Three kinds of object share `EM_AARCH64`: LP64 little-endian, which this crate handles, ILP32 (ELFCLASS32) and big-endian,
//! which it refuses.
//!
//! Sources, here and in the other files: *ELF for the Arm 64-bit Architecture* (AAELF64), *Procedure Call Standard for the
//! Arm 64-bit Architecture* (AAPCS64), *DWARF for the Arm 64-bit Architecture* (AADWARF64), all at
//! <https://github.com/ARM-software/abi-aa>; *Arm Architecture Reference Manual for A-profile architecture* (the Arm
//! ARM, DDI 0487); the Linux kernel's `arch/arm64`.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

use tigerfix_core::arch::{Arch, ElfIdent, Guard, Hazard, LinuxAbi, RegisterLayout, Vendor};
use tigerfix_core::field::Endian;

mod cache;
pub mod constants;
pub mod flow;
mod got;
#[cfg(feature = "alloc")]
mod normalize;
pub mod operands;
mod registers;
mod relocations;
#[cfg(feature = "alloc")]
mod signal;
mod trampoline;

pub use trampoline::cortex_a53_843419;

/// `EM_AARCH64` (AAELF64, "ELF Header").
const EM_AARCH64: u16 = 183;
/// `EM_ARM`
const EM_ARM: u16 = 40;
/// `STO_AARCH64_VARIANT_PCS` (AAELF64, "st_other Values").
const STO_VARIANT_PCS: u8 = 0x80;

/// AArch64 in the LP64 ABI, little-endian. There is one variant, so it has no fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aarch64;

impl Arch for Aarch64 {
    fn name(&self) -> &'static str {
        "aarch64"
    }

    fn accepts(&self, ident: &ElfIdent) -> Result<(), &'static str> {
        match (ident.machine, ident.is_64, ident.endian) {
            (EM_AARCH64, true, Endian::Little) => Ok(()),
            (EM_AARCH64, false, _) => Err("is an ILP32 object (AArch64 with 32-bit pointers)"),
            (EM_AARCH64, true, Endian::Big) => Err("is a big-endian AArch64 object"),
            (EM_ARM, _, _) => Err("is a 32-bit Arm object (AArch32)"),
            _ => Err("is not an AArch64 object"),
        }
    }

    /// Functions of a variant of the procedure call standard (vector PCS, SVE) keep registers that others may change; their
    /// callers count on it, and nothing says whether the new function does so too.
    fn accepts_function(&self, st_other: u8, value: u64) -> Result<(), &'static str> {
        if st_other & STO_VARIANT_PCS != 0 {
            return Err("follows a variant of the procedure call standard (vector or SVE functions)");
        }
        if !value.is_multiple_of(4) {
            return Err("does not lie at a multiple of 4, where instructions are");
        }
        Ok(())
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

    /// Kernels have pages of 4, 16 or 64 KiB (`arch/arm64/Kconfig`, "Page size"), and linkers align segments to the largest.
    fn max_page_size(&self) -> u64 {
        0x1_0000
    }

    /// TASK_SIZE with 48 address bits (kernel `arch/arm64/include/asm/processor.h`, DEFAULT_MAP_WINDOW_64). Kernels with 52
    /// bits hand out more only to who asks for it by an address hint; those with 39 or 42 refuse what is too high.
    fn user_space_end(&self) -> u64 {
        1 << 48
    }

    fn breakpoint(&self) -> &'static [u8] {
        &[0x00, 0x00, 0x20, 0xd4] // brk #0
    }

    fn registers(&self) -> &'static RegisterLayout {
        &registers::LAYOUT
    }

    fn linux(&self) -> Option<&'static LinuxAbi> {
        Some(&registers::LINUX)
    }

    /// Those of an address of user space; the others hold an authentication code where the function signs its return address
    /// (kernel `Documentation/arch/arm64/pointer-authentication.rst`).
    fn return_address_bits(&self) -> u64 {
        self.user_space_end() - 1
    }

    /// For DW_CFA_AARCH64_negate_ra_state (AADWARF64, "Call frame instructions").
    fn unwind_vendor(&self) -> Vendor {
        Vendor::AArch64
    }

    /// `BTI`: GNU_PROPERTY_AARCH64_FEATURE_1_AND and its lowest bit (AAELF64, "Program Property"); PROT_BTI of Linux
    /// (arch/arm64/include/uapi/asm/mman.h).
    fn guard(&self) -> Option<Guard> {
        Some(Guard { property: 0xc000_0000, bits: 1, prot: 0x10 })
    }

    fn hazard(&self, code: &[u8], at: u64) -> Option<Hazard> {
        let what = "an address that a Cortex-A53 with erratum 843419 computes wrongly";
        cortex_a53_843419(code, at).map(|at| Hazard { at, what })
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
    fn accepts_only_lp64_little_endian() {
        let ident = |machine, is_64, endian| ElfIdent { is_64, endian, machine, flags: 0 };
        assert_eq!(Aarch64.accepts(&ident(183, true, Endian::Little)), Ok(()));
        assert!(Aarch64.accepts(&ident(183, false, Endian::Little)).unwrap_err().contains("ILP32"));
        assert!(Aarch64.accepts(&ident(183, false, Endian::Big)).unwrap_err().contains("ILP32"));
        assert!(Aarch64.accepts(&ident(183, true, Endian::Big)).unwrap_err().contains("big-endian"));
        assert!(Aarch64.accepts(&ident(40, false, Endian::Little)).unwrap_err().contains("AArch32"));
        assert!(Aarch64.accepts(&ident(62, true, Endian::Little)).is_err());
    }

    #[test]
    fn refuses_functions_by_name() {
        assert_eq!(Aarch64.accepts_function(0, 0x40_1000), Ok(()));
        assert_eq!(Aarch64.accepts_function(2, 0x40_1004), Ok(()), "hidden");
        assert!(Aarch64.accepts_function(0x80, 0x40_1000).unwrap_err().contains("variant"));
        assert!(Aarch64.accepts_function(0, 0x40_1002).unwrap_err().contains("multiple of 4"));
    }
}
