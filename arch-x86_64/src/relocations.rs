//! The relocation table: one row for each type that an object file may hold and that can be settled here.
//!
//! Odd in this psABI:
//! * Fields are whole words of 1, 2, 4 or 8 bytes in the middle of instructions, never aligned. P is the field, and
//!   the processor counts from the end of the instruction: the assembler put the difference into the addend.
//! * `R_X86_64_32` and `R_X86_64_32S` differ only in the range check: the processor zero-extends one and sign-extends the
//!   other. Both are found in code that was compiled for the lower 2 GiB (non-PIE); no other program can take them.
//! * Since GNU as 2.31 calls carry `R_X86_64_PLT32` even where the callee is local; PC32 marks data and address
//!   computations, but hand-written assembly uses it for calls as well.
//! * `GOTPCRELX` and `REX_GOTPCRELX` permit the linker to rewrite the instruction so that it does without the GOT slot;
//!   they need not be rewritten, and here they are not.
//! * `R_X86_64_16`, `PC16`, `8`, `PC8` are not for conforming programs (psABI, "Relocation Types"), but start-up code has them.
//!
//! Range checks are GNU ld's (bfd/elf64-x86-64.c), except where ld lets a value pass that the field can't hold: its
//! "bitfield" check admits 17-bit values for 16 bits, and it applies that to PC16, where the processor sign-extends.
//!
//! Source: psABI, "Relocation" (table of relocation types, and the large-model ones in the section on it).

use crate::X86_64;
use tigerfix_core::arch::{Expr, Howto, Relocator, Role};
use tigerfix_core::field::{Field, Overflow};

const NONE: u32 = 0;
const ABS64: u32 = 1;
const PC32: u32 = 2;
const GOT32: u32 = 3;
const PLT32: u32 = 4;
pub(crate) const GOTPCREL: u32 = 9;
const ABS32: u32 = 10;
const ABS32S: u32 = 11;
const ABS16: u32 = 12;
const PC16: u32 = 13;
const ABS8: u32 = 14;
const PC8: u32 = 15;
const DTPOFF64: u32 = 17;
const TPOFF64: u32 = 18;
const TLSGD: u32 = 19;
const TLSLD: u32 = 20;
const DTPOFF32: u32 = 21;
const GOTTPOFF: u32 = 22;
const TPOFF32: u32 = 23;
const PC64: u32 = 24;
const GOTOFF64: u32 = 25;
const GOTPC32: u32 = 26;
const GOT64: u32 = 27;
const GOTPCREL64: u32 = 28;
const GOTPC64: u32 = 29;
const GOTPLT64: u32 = 30;
const PLTOFF64: u32 = 31;
const SIZE32: u32 = 32;
const SIZE64: u32 = 33;
const GOTPCRELX: u32 = 41;
const REX_GOTPCRELX: u32 = 42;

/// A row whose field is a whole data word; the name comes from [`NAMES`].
const fn row(r_type: u32, expr: Expr, bytes: u8, overflow: Overflow, role: Role) -> Howto {
    Howto { r_type, name: NAMES[r_type as usize], expr, field: Field::data(bytes), overflow, align: 1, role }
}

/// All that [`Relocator::howto`] knows, ascending by number.
static HOWTOS: [Howto; 31] = {
    use Expr::*;
    use Overflow::{Bitfield, Signed, Unsigned};
    const ANY: Overflow = Overflow::None;
    [
        row(NONE, Expr::None, 0, ANY, Role::Hint),
        row(ABS64, Abs, 8, ANY, Role::Address),
        row(PC32, Pc, 4, Signed(32), Role::Address),
        row(GOT32, Got, 4, Signed(32), Role::Got),
        row(PLT32, PltPc, 4, Signed(32), Role::Branch),
        row(GOTPCREL, GotPc, 4, Signed(32), Role::Got),
        row(ABS32, Abs, 4, Unsigned(32), Role::Address),
        row(ABS32S, Abs, 4, Signed(32), Role::Address),
        row(ABS16, Abs, 2, Bitfield(16), Role::Address),
        row(PC16, Pc, 2, Signed(16), Role::Address),
        row(ABS8, Abs, 1, Bitfield(8), Role::Address),
        row(PC8, Pc, 1, Signed(8), Role::Address),
        row(DTPOFF64, DtpOff, 8, ANY, Role::Tls),
        row(TPOFF64, TpOff, 8, ANY, Role::Tls),
        row(TLSGD, GotTlsGdPc, 4, Signed(32), Role::Tls),
        row(TLSLD, GotTlsLdPc, 4, Signed(32), Role::Tls),
        row(DTPOFF32, DtpOff, 4, Signed(32), Role::Tls),
        row(GOTTPOFF, GotTpOffPc, 4, Signed(32), Role::Tls),
        row(TPOFF32, TpOff, 4, Signed(32), Role::Tls),
        row(PC64, Pc, 8, ANY, Role::Address),
        row(GOTOFF64, GotOff, 8, ANY, Role::Address),
        row(GOTPC32, GotBasePc, 4, Signed(32), Role::Got),
        row(GOT64, Got, 8, ANY, Role::Got),
        row(GOTPCREL64, GotPc, 8, ANY, Role::Got),
        row(GOTPC64, GotBasePc, 8, ANY, Role::Got),
        // psABI: "G + A", as GOT64; the promise of a PLT entry that it once carried is obsolete.
        row(GOTPLT64, Got, 8, ANY, Role::Got),
        row(PLTOFF64, PltGotOff, 8, ANY, Role::Branch),
        row(SIZE32, Size, 4, Unsigned(32), Role::Address),
        row(SIZE64, Size, 8, ANY, Role::Address),
        row(GOTPCRELX, GotPc, 4, Signed(32), Role::Got),
        row(REX_GOTPCRELX, GotPc, 4, Signed(32), Role::Got),
    ]
};

/// The psABI name of every type, by number. Types without a row are for dynamic linking (COPY, GLOB_DAT, JUMP_SLOT,
/// RELATIVE, DTPMOD64, IRELATIVE), use TLS descriptors, were withdrawn (MPX's BND), or belong to Intel APX (CODE_4 to 6).
const NAMES: [&str; 52] = [
    "R_X86_64_NONE",
    "R_X86_64_64",
    "R_X86_64_PC32",
    "R_X86_64_GOT32",
    "R_X86_64_PLT32",
    "R_X86_64_COPY",
    "R_X86_64_GLOB_DAT",
    "R_X86_64_JUMP_SLOT",
    "R_X86_64_RELATIVE",
    "R_X86_64_GOTPCREL",
    "R_X86_64_32",
    "R_X86_64_32S",
    "R_X86_64_16",
    "R_X86_64_PC16",
    "R_X86_64_8",
    "R_X86_64_PC8",
    "R_X86_64_DTPMOD64",
    "R_X86_64_DTPOFF64",
    "R_X86_64_TPOFF64",
    "R_X86_64_TLSGD",
    "R_X86_64_TLSLD",
    "R_X86_64_DTPOFF32",
    "R_X86_64_GOTTPOFF",
    "R_X86_64_TPOFF32",
    "R_X86_64_PC64",
    "R_X86_64_GOTOFF64",
    "R_X86_64_GOTPC32",
    "R_X86_64_GOT64",
    "R_X86_64_GOTPCREL64",
    "R_X86_64_GOTPC64",
    "R_X86_64_GOTPLT64",
    "R_X86_64_PLTOFF64",
    "R_X86_64_SIZE32",
    "R_X86_64_SIZE64",
    "R_X86_64_GOTPC32_TLSDESC",
    "R_X86_64_TLSDESC_CALL",
    "R_X86_64_TLSDESC",
    "R_X86_64_IRELATIVE",
    "R_X86_64_RELATIVE64",
    "R_X86_64_PC32_BND",
    "R_X86_64_PLT32_BND",
    "R_X86_64_GOTPCRELX",
    "R_X86_64_REX_GOTPCRELX",
    "R_X86_64_CODE_4_GOTPCRELX",
    "R_X86_64_CODE_4_GOTTPOFF",
    "R_X86_64_CODE_4_GOTPC32_TLSDESC",
    "R_X86_64_CODE_5_GOTPCRELX",
    "R_X86_64_CODE_5_GOTTPOFF",
    "R_X86_64_CODE_5_GOTPC32_TLSDESC",
    "R_X86_64_CODE_6_GOTPCRELX",
    "R_X86_64_CODE_6_GOTTPOFF",
    "R_X86_64_CODE_6_GOTPC32_TLSDESC",
];

impl Relocator for X86_64 {
    fn howto(&self, r_type: u32) -> Option<&'static Howto> {
        HOWTOS.binary_search_by_key(&r_type, |h| h.r_type).ok().map(|i| &HOWTOS[i])
    }

    fn reloc_name(&self, r_type: u32) -> Option<&'static str> {
        match r_type {
            // GNU's marks for collecting unused C++ virtual functions; outside the psABI.
            250 => Some("R_X86_64_GNU_VTINHERIT"),
            251 => Some("R_X86_64_GNU_VTENTRY"),
            _ => NAMES.get(usize::try_from(r_type).ok()?).copied(),
        }
    }

    #[cfg(feature = "alloc")]
    fn normalize(
        &self,
        raw: &tigerfix_core::arch::RawRelocs<'_>,
    ) -> Result<alloc::vec::Vec<tigerfix_core::arch::Reloc>, tigerfix_core::arch::NormalizeError> {
        crate::normalize::normalize(raw)
    }

    fn address_word(&self) -> u32 {
        ABS64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tigerfix_core::field::{Endian, FieldError};

    #[test]
    fn rows_ascend_and_are_found() {
        assert!(HOWTOS.windows(2).all(|w| w[0].r_type < w[1].r_type));
        for h in &HOWTOS {
            assert!(core::ptr::eq(X86_64.howto(h.r_type).unwrap(), h));
            assert_eq!(X86_64.reloc_name(h.r_type), Some(h.name));
        }
        assert_eq!(X86_64.howto(X86_64.address_word()).unwrap().name, "R_X86_64_64");
    }

    #[test]
    fn names_agree_with_the_object_crate() {
        for n in 0..NAMES.len() as u32 {
            // 39 and 40 were withdrawn and are not listed there.
            if let Some(theirs) = object::elf::NAMES_R_X86_64.name(object::elf::RelocationType(n)) {
                assert_eq!(X86_64.reloc_name(n), Some(theirs));
            } else {
                assert!(n == 39 || n == 40, "{n}");
            }
        }
        assert_eq!(X86_64.reloc_name(52), None);
        assert_eq!(X86_64.reloc_name(u32::MAX), None);
    }

    #[test]
    fn dynamic_and_unsupported_types_have_a_name_but_no_row() {
        for n in [5, 6, 7, 8, 16, 34, 35, 36, 37, 38, 39, 40, 43, 44, 45, 51, 250, 251] {
            assert!(X86_64.howto(n).is_none() && X86_64.reloc_name(n).is_some(), "{n}");
        }
    }

    /// Both ends of every range, and the values just outside.
    #[test]
    fn ranges_are_exact() {
        let rows: &[(u32, i64, i64)] = &[
            (PC32, -(1 << 31), (1 << 31) - 1),
            (PLT32, -(1 << 31), (1 << 31) - 1),
            (GOTPCREL, -(1 << 31), (1 << 31) - 1),
            (GOTPCRELX, -(1 << 31), (1 << 31) - 1),
            (REX_GOTPCRELX, -(1 << 31), (1 << 31) - 1),
            (GOTTPOFF, -(1 << 31), (1 << 31) - 1),
            (TPOFF32, -(1 << 31), (1 << 31) - 1),
            (ABS32, 0, (1 << 32) - 1),
            (ABS32S, -(1 << 31), (1 << 31) - 1),
            (SIZE32, 0, (1 << 32) - 1),
            (ABS16, -(1 << 15), (1 << 16) - 1),
            (PC16, -(1 << 15), (1 << 15) - 1),
            (ABS8, -(1 << 7), (1 << 8) - 1),
            (PC8, -(1 << 7), (1 << 7) - 1),
        ];
        for &(t, min, max) in rows {
            let h = X86_64.howto(t).unwrap();
            let put = |v: i64| h.field.write(&mut [0; 8], Endian::Little, v as u64, h.overflow, h.align, 64);
            assert_eq!((put(min), put(max)), (Ok(()), Ok(())), "{}", h.name);
            for bad in [min - 1, max + 1] {
                assert!(matches!(put(bad), Err(FieldError::Overflow { .. })), "{} {bad:#x}", h.name);
            }
        }
    }
}
