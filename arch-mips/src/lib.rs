//! The MIPS back end of tfix: tables and a few hooks, one file for each subject.
//!
//! What is peculiar to MIPS, as far as patching goes:
//!
//! * Every branch executes the instruction behind it, its *delay slot*, before it takes effect. Two words are one unit: a
//!   trampoline is two words, and a thread that was interrupted in a delay slot has the branch's address for its pc.
//! * `j` and `jal` reach the 256 MiB region that holds their delay slot, and nothing of the next one.
//! * Position-independent functions are called with their own address in $t9, from which they find their GOT. Whoever
//!   redirects a call has to see to that.
//! * Relocations of O32 have no explicit addends; a 32-bit one is spread over two instructions, and over two relocations
//!   that have to find each other (`normalize.rs`). Those of n64 are up to three operations in one entry.
//! * Instruction fetch does not see stores until the caches were told (`cache.rs`).
//! * One `e_machine` stands for many ABIs, instruction sets and ways to pass floating-point numbers; `e_flags`,
//!   `.MIPS.abiflags` and `.gnu.attributes` tell them apart (`abi.rs`).
//!
//! Handled are O32 and n64 in both byte orders, from MIPS I to release 5. Refused by name: N32, O64, EABI; release 6, whose
//! encodings differ; MIPS16 and microMIPS, whose functions have odd addresses and other instructions.
//!
//! Sources, here and in the other files: *System V ABI, MIPS RISC Processor Supplement*, 3rd edition (the psABI);
//! *64-bit ELF Object File Specification*, draft 2.5 (n64); *MIPS Architecture For Programmers*, volumes I to III; the
//! Linux kernel's `arch/mips`.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

use tigerfix_core::arch::{Arch, ElfIdent, LinuxAbi, RegisterLayout, ReservedIndex};
use tigerfix_core::field::{Endian, load};

mod abi;
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
#[cfg(feature = "alloc")]
pub mod step;
mod trampoline;

const BIG: Endian = Endian::Big;
const LITTLE: Endian = Endian::Little;

/// MIPS in one of its ABIs and byte orders: [`MIPS`], [`MIPSEL`], [`MIPS64`], [`MIPS64EL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mips {
    is_64: bool,
    endian: Endian,
}

/// O32, big-endian.
pub static MIPS: Mips = Mips { is_64: false, endian: BIG };
/// O32, little-endian.
pub static MIPSEL: Mips = Mips { is_64: false, endian: LITTLE };
/// n64, big-endian.
pub static MIPS64: Mips = Mips { is_64: true, endian: BIG };
/// n64, little-endian.
pub static MIPS64EL: Mips = Mips { is_64: true, endian: LITTLE };

impl Arch for Mips {
    fn name(&self) -> &'static str {
        match (self.is_64, self.endian) {
            (false, Endian::Big) => "mips",
            (false, Endian::Little) => "mipsel",
            (true, Endian::Big) => "mips64",
            (true, Endian::Little) => "mips64el",
        }
    }

    fn family(&self) -> &'static str {
        "mips"
    }

    fn accepts(&self, ident: &ElfIdent) -> Result<(), &'static str> {
        abi::accepts(self, ident)
    }

    #[cfg(feature = "alloc")]
    fn same_abi(
        &self,
        object: &tigerfix_core::arch::AbiFacts<'_>,
        program: &tigerfix_core::arch::AbiFacts<'_>,
    ) -> Result<(), tigerfix_core::arch::AbiMismatch> {
        abi::same(self.endian, object, program)
    }

    /// SHN_MIPS_SCOMMON and SHN_MIPS_SUNDEFINED (psABI, "Special Sections"): common and undefined symbols of small data.
    fn reserved_index(&self, shndx: u16) -> Option<ReservedIndex> {
        match shndx {
            0xff03 => Some(ReservedIndex::Common),
            0xff04 => Some(ReservedIndex::Undefined),
            _ => None,
        }
    }

    fn accepts_function(&self, st_other: u8, value: u64) -> Result<(), &'static str> {
        abi::accepts_function(st_other, value)
    }

    fn wants_own_address(&self, flags: u32, st_other: u8) -> bool {
        abi::wants_own_address(flags, st_other)
    }

    fn address_bits(&self) -> u8 {
        if self.is_64 { 64 } else { 32 }
    }

    fn data_endian(&self) -> Endian {
        self.endian
    }

    fn insn_endian(&self) -> Endian {
        self.endian
    }

    /// Linkers align segments to 64 KiB, the largest page that the ABIs allow for.
    fn max_page_size(&self) -> u64 {
        0x1_0000
    }

    /// TASK_SIZE32, and TASK_SIZE64 with the 40 address bits that every processor has (kernel
    /// `arch/mips/include/asm/processor.h`; 48 are a build option).
    fn user_space_end(&self) -> u64 {
        if self.is_64 { 1 << 40 } else { 0x7fff_8000 }
    }

    fn breakpoint(&self) -> &'static [u8] {
        match self.endian {
            Endian::Big => &[0x00, 0x00, 0x00, 0x0d],    // break
            Endian::Little => &[0x0d, 0x00, 0x00, 0x00], // break
        }
    }

    fn registers(&self) -> &'static RegisterLayout {
        if self.is_64 { &registers::LAYOUT_64 } else { &registers::LAYOUT_32 }
    }

    fn linux(&self) -> Option<&'static LinuxAbi> {
        Some(match (self.is_64, self.endian) {
            (false, Endian::Big) => &registers::LINUX_O32_BE,
            (false, Endian::Little) => &registers::LINUX_O32_LE,
            (true, Endian::Big) => &registers::LINUX_N64_BE,
            (true, Endian::Little) => &registers::LINUX_N64_LE,
        })
    }

    #[cfg(feature = "alloc")]
    fn rescue_frame(
        &self,
        regs: &tigerfix_core::arch::Registers,
        xstate: &[u8],
        sigmask: u128,
    ) -> Option<tigerfix_core::arch::RescueFrame> {
        signal::rescue_frame(self.endian, self.is_64, regs, xstate, sigmask)
    }

    #[cfg(feature = "alloc")]
    fn step_out(
        &self,
        frame: &tigerfix_core::arch::Frame,
        read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
    ) -> Option<tigerfix_core::arch::Frame> {
        flow::step_out(self.is_64, self.endian, frame, read)
    }

    /// Where the kernel emulates the FPU, it lets the instruction in the delay slot of an FPU branch be executed in a page of
    /// its own, followed by `break 514` (`arch/mips/math-emu/dsemul.c`: `struct emuframe`, BREAK_MATH). Only the kernel
    /// knows where the branch is and where it leads.
    fn out_of_place(&self, code: &[u8; 8]) -> bool {
        const BREAK_MATH: u64 = 514 << 16 | 0xd;
        code.chunks(4).any(|insn| load(insn, self.endian) == BREAK_MATH)
    }

    fn comes_past(&self, regs: &tigerfix_core::arch::Registers, code: &[u8]) -> Option<[u64; 2]> {
        let pc = regs.get(self.registers().pc);
        flow::comes_past(self.is_64, self.endian, pc, code, &|r| regs.get(r))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_slots_that_the_kernel_emulates_are_known() {
        // `addiu $v0, $v0, 1; break 514`, and the same one instruction later.
        let frames: [[u32; 2]; 2] = [[0x2442_0001, 0x0202_000d], [0x0202_000d, 0]];
        for words in frames {
            let bytes = |f: fn(u32) -> [u8; 4]| [f(words[0]), f(words[1])].concat().try_into().unwrap();
            assert!(MIPS.out_of_place(&bytes(u32::to_be_bytes)) && MIPSEL.out_of_place(&bytes(u32::to_le_bytes)));
            assert!(!MIPSEL.out_of_place(&bytes(u32::to_be_bytes)));
        }
        // `break 7`
        assert!(!MIPS.out_of_place(&[0, 7, 0, 0xd, 0, 0, 0, 0]));
    }
}
