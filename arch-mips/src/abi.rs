//! Which of the many ABIs under one `e_machine` a file follows, and which of them go together.

use crate::Mips;
use tigerfix_core::arch::ElfIdent;
use tigerfix_core::field::Endian;

/// `EM_MIPS`
const EM_MIPS: u16 = 8;
/// `EM_MIPS_RS3_LE`, which nothing writes any more.
const EM_MIPS_RS3_LE: u16 = 10;

/// Bits of `e_flags`.
mod flags {
    pub const PIC: u32 = 0x2;
    pub const CPIC: u32 = 0x4;
    /// The code is N32 (in a 32-bit file).
    pub const ABI2: u32 = 0x20;
    pub const FP64: u32 = 0x200;
    pub const NAN2008: u32 = 0x400;
    pub const ABI: u32 = 0xf000;
    pub const MACH: u32 = 0x00ff_0000;
    pub const MICROMIPS: u32 = 0x0200_0000;
    pub const M16: u32 = 0x0400_0000;
    pub const MDMX: u32 = 0x0800_0000;
    pub const ARCH_SHIFT: u32 = 28;
}

pub(crate) fn accepts(arch: &Mips, ident: &ElfIdent) -> Result<(), &'static str> {
    if ident.machine == EM_MIPS_RS3_LE {
        return Err("has the obsolete machine number of little-endian MIPS");
    }
    if ident.machine != EM_MIPS {
        return Err("is not a MIPS object");
    }
    if ident.is_64 != arch.is_64 || ident.endian != arch.endian {
        return Err("is not of this variant of MIPS");
    }
    match (ident.flags & flags::ABI) >> 12 {
        0 | 1 => {}
        2 => return Err("is an O64 object (a 64-bit variant of the O32 ABI)"),
        3 => return Err("is an EABI32 object"),
        4 => return Err("is an EABI64 object"),
        _ => return Err("is marked with an unknown MIPS ABI"),
    }
    if ident.flags & flags::ABI2 != 0 {
        return Err("is an N32 object (64-bit registers with 32-bit pointers)");
    }
    if ident.is_64 && ident.flags & flags::ABI != 0 {
        return Err("is a 64-bit file that is marked as O32");
    }
    if ident.flags & flags::MICROMIPS != 0 {
        return Err("is microMIPS code");
    }
    match ident.flags >> flags::ARCH_SHIFT {
        0..=8 => Ok(()),
        9 => Err("is MIPS32 release 6 code, whose instructions differ from those of earlier releases"),
        10 => Err("is MIPS64 release 6 code, whose instructions differ from those of earlier releases"),
        _ => Err("is marked with an unknown MIPS instruction set"),
    }
}

/// Bits of `st_other` (binutils `include/elf/mips.h` names them STO_MIPS16, STO_MICROMIPS, STO_MIPS_PIC).
mod other {
    pub const MIPS16: u8 = 0xf0;
    pub const ISA: u8 = 0xc0;
    pub const MICROMIPS: u8 = 0x80;
    /// What is left beside instruction set and visibility.
    pub const REST: u8 = 0x3c;
    pub const PIC: u8 = 0x20;
}

pub(crate) fn accepts_function(st_other: u8, value: u64) -> Result<(), &'static str> {
    if st_other & other::MIPS16 == other::MIPS16 {
        return Err("is MIPS16 code");
    }
    if st_other & other::ISA == other::MICROMIPS {
        return Err("is microMIPS code");
    }
    match value % 4 {
        0 => Ok(()),
        1 | 3 => Err("has an odd address, which marks MIPS16 or microMIPS code"),
        _ => Err("does not begin at a whole instruction word"),
    }
}

/// All functions of a position-independent object do; elsewhere those that are marked.
pub(crate) fn wants_own_address(e_flags: u32, st_other: u8) -> bool {
    e_flags & flags::PIC != 0 || st_other & other::REST == other::PIC
}

#[cfg(feature = "alloc")]
pub(crate) fn same(
    _endian: Endian,
    _object: &tigerfix_core::arch::AbiFacts<'_>,
    _program: &tigerfix_core::arch::AbiFacts<'_>,
) -> Result<(), tigerfix_core::arch::AbiMismatch> {
    Ok(())
}
