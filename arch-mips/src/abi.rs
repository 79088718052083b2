//! Which of the many ABIs under one `e_machine` a file follows, and which of them go together.
//!
//! Odd in this psABI:
//! * `e_flags` names the ABI, the instruction set and whether code is position-independent, in fields that grew over the
//!   years: an O32 file may say so or leave the field 0, N32 has a bit of its own, n64 is known by the file's class alone.
//! * What floating-point registers look like (16 pairs or 32 of 64 bits), and in which of them arguments travel, is known from
//!   `.MIPS.abiflags`, in older files from `.gnu.attributes`, in yet older ones not at all.
//! * GNU ld merges floating-point ABIs into the strictest mode that suits all, because the process is yet to start. Here it
//!   runs already, in one of the modes that its *program* admits: the patch must work in each of these.
//! * Code that keeps to `abicalls` changes $gp, code that does not expects it to stay.
//! * Functions of position-independent objects want their own address in $t9; a mark in `st_other` says the same of single
//!   functions. GNU ld sets it for its own use and does not write it out: in an executable that was linked from both kinds
//!   of code (CPIC without PIC) each function may be of either.
//!
//! Sources: psABI, "ELF Header"; binutils' documentation of `.module`, `.gnu_attribute` and ".MIPS.abiflags" (*MIPS O32 ABI -
//! FR0 and FR1 Interlinking*, <https://dmz-portal.mips.com/wiki/MIPS_O32_ABI_-_FR0_and_FR1_Interlinking>: Elf_ABIFlags_v0 and
//! the table of compatible modes); kernel `arch/mips/include/asm/elf.h` (EF_MIPS_*, struct mips_elf_abiflags_v0).

use crate::Mips;
use tigerfix_core::arch::ElfIdent;

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
    pub const ABI: u32 = 0xf000;
    pub const MICROMIPS: u32 = 0x0200_0000;
    pub const MACH: u32 = 0x00ff_0000;
    /// Octeon, Octeon 2 and Octeon 3.
    pub const OCTEONS: [u32; 3] = [0x008b_0000, 0x008d_0000, 0x008e_0000];
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
    if flags::OCTEONS.contains(&(ident.flags & flags::MACH)) {
        // BBIT0, BBIT1 and the like; nobody here would see where they lead.
        return Err("is for Octeon processors, which have branch instructions of their own");
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

/// All functions of a position-independent object do, and those that are marked. Other abicalls objects may hold some as
/// well, once they are linked.
pub(crate) fn wants_own_address(e_flags: u32, st_other: u8) -> bool {
    e_flags & (flags::PIC | flags::CPIC) != 0 || st_other & other::REST == other::PIC
}

#[cfg(feature = "alloc")]
pub(crate) use compare::same;

/// May the code of a patch run inside a program?
#[cfg(feature = "alloc")]
mod compare {
    use super::flags;
    use alloc::{
        format,
        string::{String, ToString as _},
        vec::Vec,
    };
    use tigerfix_core::arch::{AbiFacts, AbiMismatch};
    use tigerfix_core::field::{Endian, load};

    // More bits of `e_flags`.
    const FP64: u32 = 0x200;
    const NAN2008: u32 = 0x400;
    const MACH: u32 = 0x00ff_0000;
    const M16: u32 = 0x0400_0000;
    const MDMX: u32 = 0x0800_0000;

    /// What is known of a file.
    struct Facts {
        flags: u32,
        isa: Isa,
        /// Processor whose own instructions are used: `isa_ext`, or the bits of `e_flags`.
        extension: (u32, u32),
        ases: u32,
        fp: Fp,
    }

    /// An instruction set: MIPS I to V, MIPS32 and MIPS64, with a revision.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Isa {
        level: u8,
        rev: u8,
    }

    impl Isa {
        /// By the top four bits of `e_flags`.
        fn of_flags(e_flags: u32) -> Isa {
            let (level, rev) = match e_flags >> flags::ARCH_SHIFT {
                n @ 0..=4 => (n as u8 + 1, 0),
                5 => (32, 1),
                6 => (64, 1),
                7 => (32, 2),
                _ => (64, 2),
            };
            Isa { level, rev }
        }

        /// Does a processor of this set execute code for `code`? Each of MIPS I to V holds those before it, MIPS32 holds
        /// MIPS II, MIPS64 holds MIPS V and MIPS32.
        fn runs(self, code: Isa) -> bool {
            match (self.level, code.level) {
                (32, 1 | 2) | (64, 1..=5) => true,
                (32 | 64, 32) | (64, 64) => code.rev <= self.rev,
                (mine @ 1..=5, theirs @ 1..=5) => theirs <= mine,
                _ => false,
            }
        }

        fn name(self) -> String {
            match (self.level, self.rev) {
                (level @ 1..=5, _) => {
                    let roman = ["I", "II", "III", "IV", "V"];
                    format!("MIPS {}", roman[usize::from(level) - 1])
                }
                (level, rev) => format!("MIPS{level} release {rev}"),
            }
        }
    }

    /// How floating-point values are kept and passed (the values of Tag_GNU_MIPS_ABI_FP).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Fp {
        Any,
        Double,
        Single,
        Soft,
        Old64,
        Xx,
        Is64,
        Is64A,
        Unknown(u8),
    }

    impl Fp {
        pub(super) fn of(value: u64) -> Fp {
            match value {
                0 => Fp::Any,
                1 => Fp::Double,
                2 => Fp::Single,
                3 => Fp::Soft,
                4 => Fp::Old64,
                5 => Fp::Xx,
                6 => Fp::Is64,
                7 => Fp::Is64A,
                n => Fp::Unknown(n.min(255) as u8),
            }
        }

        /// Does code of this kind work in every mode that a program of kind `program` may run in?
        pub(super) fn works_in(self, program: Fp) -> bool {
            match (self, program) {
                _ if self == program => true,
                // A program that uses none says nothing of the mode; nor does GNU ld object.
                (Fp::Any, _) | (_, Fp::Any) => true,
                // FPXX is for either register mode, but only as its own libraries see it.
                (Fp::Xx, Fp::Double | Fp::Is64 | Fp::Is64A) => true,
                // Does without odd single registers, which FR=1 has.
                (Fp::Is64A, Fp::Is64) => true,
                _ => false,
            }
        }

        /// What the patch has, as the object of "uses".
        fn name(self) -> &'static str {
            match self {
                Fp::Any => "no floating point",
                Fp::Double => "hard float with 32-bit registers in pairs (-mfp32)",
                Fp::Single => "hard float in single precision only (-msingle-float)",
                Fp::Soft => "soft float (-msoft-float)",
                Fp::Old64 => "an obsolete 64-bit floating-point mode",
                Fp::Xx => "hard float for either register size (-mfpxx)",
                Fp::Is64 => "hard float with 64-bit registers (-mfp64)",
                Fp::Is64A => "hard float with 64-bit registers (-mfp64 -mno-odd-spreg)",
                Fp::Unknown(_) => "an unknown floating-point ABI",
            }
        }

        /// How to compile for a program of this kind.
        fn hint(self) -> &'static str {
            match self {
                Fp::Any | Fp::Unknown(_) | Fp::Old64 => {
                    "compile the patch with the floating-point options of the program"
                }
                Fp::Double => "compile the patch with -mhard-float -mfp32",
                Fp::Single => "compile the patch with -mhard-float -msingle-float",
                Fp::Soft => "compile the patch with -msoft-float",
                Fp::Xx => "compile the patch with -mhard-float -mfpxx",
                Fp::Is64 => "compile the patch with -mhard-float -mfp64",
                Fp::Is64A => "compile the patch with -mhard-float -mfp64 -mno-odd-spreg",
            }
        }
    }

    /// Instruction set extensions: bit of `.MIPS.abiflags`, name, and how to do without.
    const ASES: &[(u32, &str, &str)] = &[
        (0x1, "DSP", "compile the patch with -mno-dsp"),
        (0x2, "DSP release 2", "compile the patch with -mno-dspr2"),
        (0x4, "EVA", "compile the patch with -mno-eva"),
        (0x8, "MCU", "compile the patch with -mno-mcu"),
        (0x10, "MDMX", "compile the patch with -mno-mdmx"),
        (0x20, "MIPS-3D", "compile the patch with -mno-mips3d"),
        (0x40, "MT", "compile the patch with -mno-mt"),
        (0x80, "SmartMIPS", "compile the patch with -mno-smartmips"),
        (0x100, "VZ", "compile the patch with -mno-virt"),
        (0x200, "MSA", "compile the patch with -mno-msa"),
        (0x400, "MIPS16", "compile the patch with -mno-mips16"),
        (0x800, "microMIPS", "compile the patch with -mno-micromips"),
        (0x1000, "XPA", "compile the patch with -mno-xpa"),
        (0x2000, "DSP release 3", "compile the patch with -mno-dspr3"),
        (0x4000, "MIPS16e2", "compile the patch with -mno-mips16e2"),
        (0x8000, "CRC", "compile the patch with -mno-crc"),
        (0x2_0000, "GINV", "compile the patch with -mno-ginv"),
        (0x4_0000, "Loongson MMI", "compile the patch with -mno-loongson-mmi"),
        (0x8_0000, "Loongson CAM", "compile the patch with -mno-loongson-cam"),
        (0x10_0000, "Loongson EXT", "compile the patch with -mno-loongson-ext"),
        (0x20_0000, "Loongson EXT2", "compile the patch with -mno-loongson-ext2"),
    ];

    /// Those that `e_flags` tells of: (its bit, the bit in [`ASES`]).
    const ASES_OF_FLAGS: [(u32, u32); 3] = [(M16, 0x400), (flags::MICROMIPS, 0x800), (MDMX, 0x10)];

    impl Facts {
        fn of(file: &AbiFacts<'_>, endian: Endian) -> Facts {
            let e_flags = file.ident.flags;
            let mut facts = Facts {
                flags: e_flags,
                isa: Isa::of_flags(e_flags),
                extension: (e_flags & MACH, 0),
                ases: ASES_OF_FLAGS.iter().filter(|a| e_flags & a.0 != 0).fold(0, |all, a| all | a.1),
                fp: Fp::Any,
            };
            let attribute = (file.section)(".gnu.attributes").and_then(|s| attribute(s, endian, TAG_ABI_FP));
            match (file.section)(".MIPS.abiflags").filter(|s| s.len() >= ABIFLAGS_LEN) {
                Some(s) if load(&s[..2], endian) == 0 => {
                    facts.isa = Isa { level: s[2], rev: s[3] };
                    facts.extension.1 = load(&s[8..12], endian) as u32;
                    facts.ases |= load(&s[12..16], endian) as u32;
                    facts.fp = Fp::of(s[7].into());
                }
                _ => {
                    facts.fp = match attribute.map(Fp::of) {
                        // What was the only way to say it before there was a section for it.
                        None | Some(Fp::Any) if e_flags & FP64 != 0 && !file.ident.is_64 => Fp::Old64,
                        fp => fp.unwrap_or(Fp::Any),
                    }
                }
            }
            facts
        }
    }

    /// Size of Elf_ABIFlags_v0: version (2 bytes), ISA level and revision, three register sizes, the floating-point ABI, then
    /// words: processor, extensions, two of flags.
    const ABIFLAGS_LEN: usize = 24;

    const TAG_FILE: u64 = 1;
    pub(super) const TAG_ABI_FP: u64 = 4;
    const TAG_COMPATIBILITY: u64 = 32;

    /// The value of a GNU attribute of a whole file. The section: `A`, then for each vendor a length, the vendor's name, and
    /// for each scope a tag, a length, and the attributes, a tag and a value each (gABI supplements, "Attributes").
    pub(super) fn attribute(section: &[u8], endian: Endian, wanted: u64) -> Option<u64> {
        let mut rest = section.strip_prefix(b"A")?;
        while rest.len() >= 4 {
            let (mut vendor, behind) = sized(rest, endian, 4)?;
            rest = behind;
            let Some(scopes) = vendor.strip_prefix(b"gnu\0") else { continue };
            vendor = scopes;
            while let Some((tag, after_tag)) = uleb(vendor) {
                // The length counts from the tag on, which is one byte for all scopes there are.
                let (mut scope, behind) = sized(after_tag, endian, 5)?;
                vendor = behind;
                while tag == TAG_FILE && !scope.is_empty() {
                    let (tag, value) = uleb(scope)?;
                    // Odd ones are strings, the one for compatibility is a number and a string.
                    let (number, after) =
                        if tag % 2 == 0 || tag == TAG_COMPATIBILITY { uleb(value)? } else { (0, value) };
                    scope = if tag % 2 == 1 || tag == TAG_COMPATIBILITY {
                        after.get(after.iter().position(|b| *b == 0)? + 1..)?
                    } else {
                        after
                    };
                    if tag == wanted {
                        return Some(number);
                    }
                }
            }
        }
        None
    }

    /// A part that begins with its length of 4 bytes, and what is behind it. `before` bytes of the length are already gone or
    /// are the length itself.
    fn sized(bytes: &[u8], endian: Endian, before: usize) -> Option<(&[u8], &[u8])> {
        let len = usize::try_from(load(bytes.get(..4)?, endian)).ok()?.checked_sub(before)?;
        bytes[4..].split_at_checked(len)
    }

    fn uleb(bytes: &[u8]) -> Option<(u64, &[u8])> {
        let mut value = 0u64;
        for (i, b) in bytes.iter().enumerate().take(9) {
            value |= u64::from(b & 0x7f) << (7 * i);
            if b & 0x80 == 0 {
                return Some((value, &bytes[i + 1..]));
            }
        }
        None
    }

    pub(crate) fn same(endian: Endian, object: &AbiFacts<'_>, program: &AbiFacts<'_>) -> Result<(), AbiMismatch> {
        let (patch, host) = (Facts::of(object, endian), Facts::of(program, endian));
        let refuse = |why: String, hint| Err(AbiMismatch { why, hint });
        if !host.isa.runs(patch.isa) {
            let hint = match (host.isa.level, host.isa.rev) {
                (1, _) => "compile the patch with -march=mips1",
                (2, _) => "compile the patch with -march=mips2",
                (3, _) => "compile the patch with -march=mips3",
                (4 | 5, _) => "compile the patch with -march=mips4",
                (32, 0 | 1) => "compile the patch with -march=mips32",
                (32, 2) => "compile the patch with -march=mips32r2",
                (64, 0 | 1) => "compile the patch with -march=mips64",
                (64, 2) => "compile the patch with -march=mips64r2",
                _ => "compile the patch with the program's -march option",
            };
            return refuse(format!("is {} code, the program is {}", patch.isa.name(), host.isa.name()), hint);
        }
        let own = |patch: u32, host: u32| patch != 0 && patch != host;
        if own(patch.extension.0, host.extension.0) || own(patch.extension.1, host.extension.1) {
            let why = "uses the instructions of one processor model, which the program does not".to_string();
            return refuse(why, "compile the patch with the program's -march option");
        }
        let more = patch.ases & !host.ases;
        if more != 0 {
            let names: Vec<&str> = ASES.iter().filter(|a| more & a.0 != 0).map(|a| a.1).collect();
            let what = if names.is_empty() { format!("unknown ({more:#x})") } else { names.join(", ") };
            let hint =
                ASES.iter().find(|a| more & a.0 != 0).map_or("compile the patch with the program's options", |a| a.2);
            return refuse(format!("uses instruction set extensions that the program does not: {what}"), hint);
        }
        if !patch.fp.works_in(host.fp) {
            return refuse(format!("uses {}, the program {}", patch.fp.name(), host.fp.name()), host.fp.hint());
        }
        if (patch.flags ^ host.flags) & NAN2008 != 0 {
            let [mine, theirs, hint] = if host.flags & NAN2008 != 0 {
                ["legacy", "2008", "compile the patch with -mnan=2008"]
            } else {
                ["2008", "legacy", "compile the patch with -mnan=legacy"]
            };
            return refuse(format!("encodes NaNs the {mine} way, the program the {theirs} way"), hint);
        }
        const ABICALLS: u32 = flags::PIC | flags::CPIC;
        if patch.flags & ABICALLS != 0 && host.flags & ABICALLS == 0 {
            let why =
                "follows the conventions for shared code (abicalls), which change $gp; the program does not".into();
            return refuse(why, "compile the patch with -mno-abicalls -fno-pic -mlong-calls -G0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::compare::{Fp, TAG_ABI_FP, attribute};
    use super::*;
    use crate::{MIPS, MIPS64, MIPS64EL, MIPSEL};
    use std::vec::Vec;
    use tigerfix_core::arch::{AbiFacts, AbiMismatch, Arch as _};
    use tigerfix_core::field::{Endian, store};

    const O32: u32 = 0x1000;
    const R2: u32 = 0x7000_0000;
    const R1: u32 = 0x5000_0000;

    fn ident(is_64: bool, endian: Endian, flags: u32) -> ElfIdent {
        ElfIdent { is_64, endian, machine: 8, flags }
    }

    #[test]
    fn each_file_has_one_variant() {
        let all = [&MIPS, &MIPSEL, &MIPS64, &MIPS64EL];
        for (i, arch) in all.iter().enumerate() {
            let flags = if arch.is_64 { 0x8000_0007 } else { 0x7000_1005 };
            for (k, other) in all.iter().enumerate() {
                let answer = other.accepts(&ident(arch.is_64, arch.endian, flags));
                assert_eq!(answer.is_ok(), i == k);
                assert!(answer.is_ok() || answer.unwrap_err().starts_with("is not"), "no claim on others' files");
            }
            assert_eq!(arch.family(), "mips");
        }
    }

    #[test]
    fn what_is_refused_has_a_name() {
        let refused = |arch: &Mips, flags| arch.accepts(&ident(arch.is_64, arch.endian, flags)).unwrap_err();
        for (flags, word) in [
            (0x20, "N32"),
            (0x808b_0000, "Octeon"),
            (0x8000_0020, "N32"),
            (0x2000, "O64"),
            (0x3000, "EABI32"),
            (0x4000, "EABI64"),
            (0x5000, "unknown MIPS ABI"),
            (0x9000_1000, "MIPS32 release 6"),
            (0xa000_1000, "MIPS64 release 6"),
            (0xb000_1000, "unknown MIPS instruction set"),
            (0x7200_1000, "microMIPS"),
        ] {
            assert!(refused(&MIPS, flags).contains(word), "{flags:#x}");
            assert!(refused(&MIPSEL, flags).contains(word), "{flags:#x}");
        }
        assert!(refused(&MIPS64, 0xa000_0000).contains("MIPS64 release 6"));
        assert!(refused(&MIPS64, O32).contains("marked as O32"));
        let rs3 = ElfIdent { machine: 10, ..ident(false, Endian::Little, 0) };
        assert!(MIPSEL.accepts(&rs3).unwrap_err().contains("obsolete"));
        assert!(MIPSEL.accepts(&ElfIdent { machine: 62, ..rs3 }).unwrap_err().starts_with("is not"));
    }

    #[test]
    fn what_is_accepted() {
        // No ABI field; MIPS16 functions inside; MIPS I to V.
        for flags in [0, O32, 0x7400_1007, 0x1000_1000, 0x4000_1000, R1 | O32, R2 | O32] {
            assert_eq!(MIPS.accepts(&ident(false, Endian::Big, flags)), Ok(()), "{flags:#x}");
        }
        assert_eq!(MIPS64EL.accepts(&ident(true, Endian::Little, 0x8000_0007)), Ok(()));
    }

    #[test]
    fn functions() {
        for (other, value, what) in [
            (0, 0x40_1000, ""),
            (0x20, 0x40_1000, ""),
            (2, 0x40_1000, ""), // hidden
            (0xf0, 0x40_1000, "MIPS16"),
            (0xf0, 0x40_1001, "MIPS16"),
            (0x80, 0x40_1000, "microMIPS"),
            (0xa0, 0x40_1000, "microMIPS"),
            (0, 0x40_1001, "odd address"),
            (0, 0x40_1002, "whole instruction"),
        ] {
            match MIPS.accepts_function(other, value) {
                Ok(()) => assert_eq!(what, ""),
                Err(e) => assert!(!what.is_empty() && e.contains(what), "{e}"),
            }
        }
        assert!(MIPS.wants_own_address(6, 0) && MIPS.wants_own_address(2, 0));
        assert!(MIPS.wants_own_address(4, 0), "mixed code");
        assert!(MIPS.wants_own_address(0, 0x20) && MIPS.wants_own_address(0, 0x22));
        assert!(!MIPS.wants_own_address(1, 0) && !MIPS.wants_own_address(0, 0xf0));
    }

    /// Elf_ABIFlags_v0.
    fn abiflags(endian: Endian, level: u8, rev: u8, fp: u8, ext: u32, ases: u32) -> Vec<u8> {
        let mut out = std::vec![0, 0, level, rev, 1, 1, 0, fp];
        for word in [ext, ases, 0, 0] {
            let mut bytes = [0; 4];
            store(&mut bytes, endian, word.into());
            out.extend(bytes);
        }
        out
    }

    fn same(arch: &Mips, object: (u32, &[u8]), program: (u32, &[u8])) -> Result<(), AbiMismatch> {
        let of = |flags: u32| ident(arch.is_64, arch.endian, flags);
        let (o, p) = (object.1, program.1);
        let in_object = |name: &str| (name == ".MIPS.abiflags" && !o.is_empty()).then_some(o);
        let in_program = |name: &str| (name == ".MIPS.abiflags" && !p.is_empty()).then_some(p);
        arch.same_abi(
            &AbiFacts { ident: of(object.0), section: &in_object },
            &AbiFacts { ident: of(program.0), section: &in_program },
        )
    }

    #[test]
    fn instruction_sets() {
        let none: &[u8] = &[];
        let mismatch = |o: u32, p: u32| same(&MIPS, (o | O32, none), (p | O32, none)).err();
        for (patch, program, fits) in [
            (R2, R2, true),
            (R1, R2, true),
            (0, R1, true),
            (0x1000_0000, R1, true),
            (R2, R1, false),
            (R1, 0x1000_0000, false),
            (0x2000_0000, R1, false), // MIPS III is not in MIPS32
            (0x2000_0000, 0x6000_0000, true),
            (R2, 0x8000_0000, true),
            (R2, 0x6000_0000, false),
            (0x8000_0000, R2, false),
        ] {
            assert_eq!(mismatch(patch, program).is_none(), fits, "{patch:#x} in {program:#x}");
        }
        let m = mismatch(R2, R1).unwrap();
        assert_eq!(m.why, "is MIPS32 release 2 code, the program is MIPS32 release 1");
        assert!(m.hint.contains("-march=mips32"));
        // The section knows what e_flags does not.
        for endian_arch in [&MIPS, &MIPSEL] {
            let flags = |rev| abiflags(endian_arch.endian, 32, rev, 0, 0, 0);
            let m = same(endian_arch, (R2 | O32, &flags(5)), (R2 | O32, &flags(2))).unwrap_err();
            assert!(m.why.contains("release 5") && m.hint.contains("-march=mips32r2"));
            assert_eq!(same(endian_arch, (R2 | O32, &flags(2)), (R2 | O32, &flags(5))), Ok(()));
        }
        // An Octeon's code elsewhere.
        let m = same(&MIPS64, (0x808b_0006, none), (0x8000_0006, none)).unwrap_err();
        assert!(m.why.contains("one processor model"));
        assert_eq!(same(&MIPS64, (0x8000_0006, none), (0x808b_0006, none)), Ok(()));
    }

    #[test]
    fn extensions() {
        let ases = |ases| abiflags(Endian::Little, 32, 2, 0, 0, ases);
        let both = |o, p| same(&MIPSEL, (R2 | O32, &ases(o)), (R2 | O32, &ases(p)));
        assert_eq!(both(0, 0x201), Ok(()));
        assert_eq!(both(0x201, 0x203), Ok(()));
        let m = both(0x201, 1).unwrap_err();
        assert!(m.why.ends_with(": MSA") && m.hint.contains("-mno-msa"));
        assert!(both(3, 0).unwrap_err().why.ends_with(": DSP, DSP release 2"));
        assert!(both(0x8000_0000, 0).unwrap_err().why.contains("unknown (0x80000000)"));
    }

    #[test]
    fn floating_point() {
        use Fp::*;
        let all = [Any, Double, Single, Soft, Old64, Xx, Is64, Is64A, Unknown(99)];
        for patch in all {
            for program in all {
                let fits = patch == program
                    || patch == Any
                    || program == Any
                    || patch == Xx && matches!(program, Double | Is64 | Is64A)
                    || patch == Is64A && program == Is64;
                assert_eq!(patch.works_in(program), fits, "{patch:?} in {program:?}");
            }
        }
        let fp = |fp| abiflags(Endian::Big, 32, 2, fp, 0, 0);
        let both = |o, p| same(&MIPS, (R2 | O32, &fp(o)), (R2 | O32, &fp(p)));
        let m = both(1, 3).unwrap_err();
        assert!(
            m.why.contains("hard float") && m.why.contains("the program soft float") && m.hint.contains("-msoft-float")
        );
        assert!(both(6, 1).unwrap_err().hint.contains("-mfp32"));
        assert!(both(1, 5).unwrap_err().hint.contains("-mfpxx"));
        assert_eq!(both(5, 1), Ok(()));
        let m = same(&MIPS, (R2 | O32 | 0x400, &[]), (R2 | O32, &[])).unwrap_err();
        assert!(m.why.contains("NaN") && m.hint.contains("-mnan=legacy"));
        assert!(same(&MIPS, (R2 | O32, &[]), (R2 | O32 | 0x400, &[])).unwrap_err().hint.contains("-mnan=2008"));
        // Old files that say FR=1 in e_flags only.
        let m = same(&MIPS, (R2 | O32 | 0x200, &[]), (R2 | O32, &fp(1))).unwrap_err();
        assert!(m.hint.contains("-mfp32"));
    }

    /// As GNU as writes them: hard float, and an attribute of 8 in front.
    #[test]
    fn attributes() {
        let be = b"A\0\0\0\x0fgnu\0\x01\0\0\0\x07\x04\x01";
        let le = b"A\x0f\0\0\0gnu\0\x01\x07\0\0\0\x04\x01";
        assert_eq!(attribute(be, Endian::Big, TAG_ABI_FP), Some(1));
        assert_eq!(attribute(le, Endian::Little, TAG_ABI_FP), Some(1));
        let more = b"A\0\0\0\x07xy\0\0\0\0\x16gnu\0\x01\0\0\0\x0e\x05ab\0\x08\x01\x20\x01\0";
        assert_eq!(attribute(more, Endian::Big, 8), Some(1));
        assert_eq!(attribute(more, Endian::Big, TAG_ABI_FP), None);
        for bytes in [&be[..], le, more] {
            for len in 0..bytes.len() {
                for endian in [Endian::Big, Endian::Little] {
                    attribute(&bytes[..len], endian, 77);
                }
            }
        }
    }

    #[test]
    fn shared_code_and_other_code() {
        let none: &[u8] = &[];
        let fits = |o: u32, p: u32| same(&MIPS, (R2 | O32 | o, none), (R2 | O32 | p, none));
        for (patch, program) in [(6, 6), (4, 6), (6, 4), (4, 4), (0, 0), (0, 6), (0, 4)] {
            assert_eq!(fits(patch, program), Ok(()));
        }
        for patch in [2, 4, 6] {
            let m = fits(patch, 0).unwrap_err();
            assert!(m.why.contains("$gp") && m.hint.contains("-mno-abicalls"));
        }
    }
}
