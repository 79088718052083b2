//! The relocation tables, O32's and n64's: one row for each type that an object file may hold and that can be settled here.
//!
//! Odd in this psABI:
//! * Fields are the lower 16 or 26 bits of instruction words; the containers here are whole words in both byte orders.
//! * A high half is rounded, because the instruction that adds the low half extends its sign. Nothing checks that an address
//!   fits a pair: O32 addresses wrap, n64 code that uses pairs was compiled for addresses that fit (`-msym32`).
//! * `R_MIPS_26` holds bits 27 to 2 of a destination in the region of the *delay slot*.
//! * `R_MIPS_PC16` counts words from the delay slot. The assembler puts the difference into the addend, from where
//!   `normalize.rs` takes it, so that an addend of 0 means the symbol, as it does for all other branches; the row puts
//!   it back.
//! * `R_MIPS_GOT16` means two things, by the symbol's binding; `%hi(_gp_disp)` and `%lo(_gp_disp)` are HI16 and LO16 in the
//!   file, but relative to their place. Each meaning has a row, under a number that the psABI leaves free.
//! * n64 has up to three operations in one entry, each working on the result of the one before. What compilers make of
//!   that are a few combinations; here each is one type, whose number is type | type2 << 8 | type3 << 16, as in the file.
//! * `R_MIPS_CALL16` is a slot for calls alone: of a function that is replaced it may hold the new one's address, while a
//!   slot of `R_MIPS_GOT16` has to hold the old one's, by which pointers to it are compared.
//! * `R_MIPS_GPREL16` in code is about the *program's* global pointer (small data), `R_MIPS_GPREL32` about the GOT pointer of
//!   the code's own module (entries of jump tables; there only the new function can be meant).
//! * O32 takes `R_MIPS_64` for a data word whose upper half repeats the address's sign.
//!
//! Range checks are GNU ld's, as its refusals show it.
//!
//! Sources: *System V ABI, MIPS RISC Processor Supplement*, 3rd edition, "Relocation"; *64-bit ELF Object File
//! Specification*, draft 2.5, "Relocation" (n64's types, and how they combine); *MIPS TLS ABI* (<https://www.linux-mips.org/wiki/NPTL>)
//! for the thread-local ones.

use crate::Mips;
use tigerfix_core::arch::{Expr, Howto, Relocator, Role};
use tigerfix_core::field::{Field, Order, Overflow, Piece};

pub(crate) const NONE: u32 = 0;
pub(crate) const ABS16: u32 = 1;
pub(crate) const ABS32: u32 = 2;
pub(crate) const JUMP26: u32 = 4;
pub(crate) const HI16: u32 = 5;
pub(crate) const LO16: u32 = 6;
pub(crate) const GPREL16: u32 = 7;
pub(crate) const GOT16: u32 = 9;
pub(crate) const PC16: u32 = 10;
pub(crate) const CALL16: u32 = 11;
pub(crate) const GPREL32: u32 = 12;
pub(crate) const ABS64: u32 = 18;
pub(crate) const GOT_DISP: u32 = 19;
pub(crate) const GOT_PAGE: u32 = 20;
pub(crate) const GOT_OFST: u32 = 21;
pub(crate) const GOT_HI16: u32 = 22;
pub(crate) const GOT_LO16: u32 = 23;
const SUB: u32 = 24;
pub(crate) const HIGHER: u32 = 28;
pub(crate) const HIGHEST: u32 = 29;
pub(crate) const CALL_HI16: u32 = 30;
pub(crate) const CALL_LO16: u32 = 31;
pub(crate) const JALR: u32 = 37;
pub(crate) const TLS_GOTTPREL: u32 = 46;
pub(crate) const TLS_TPREL_HI16: u32 = 49;
pub(crate) const TLS_TPREL_LO16: u32 = 50;
pub(crate) const PC32: u32 = 248;

/// O32's numbers for what the psABI has no number of its own.
pub(crate) const PAGE_WORD_32: u32 = 200;
pub(crate) const GP_DISP_HI16: u32 = 201;
pub(crate) const GP_DISP_LO16: u32 = 202;
pub(crate) const GOT16_PAGE: u32 = 203;

/// Three operations in one entry of n64.
const fn composite(first: u32, second: u32, third: u32) -> u32 {
    first | second << 8 | third << 16
}

const GP_MINUS_HI16: u32 = composite(GPREL16, SUB, HI16);
const GP_MINUS_LO16: u32 = composite(GPREL16, SUB, LO16);
const GPREL64: u32 = composite(GPREL32, ABS64, NONE);
/// No file has this combination.
pub(crate) const PAGE_WORD_64: u32 = composite(ABS64, GOT_PAGE, NONE);

/// The lower `width` bits of an instruction word, after rounding and a shift.
const fn imm(width: u8, round: u64, rshift: u8) -> Field {
    Field { bytes: 4, order: Order::Insn, round, rshift, pieces: if width == 26 { LOW_26 } else { LOW_16 } }
}

const LOW_16: &[Piece] = &[Piece { value_lsb: 0, width: 16, field_lsb: 0 }];
const LOW_26: &[Piece] = &[Piece { value_lsb: 0, width: 26, field_lsb: 0 }];

const LO: Field = imm(16, 0, 0);
const HI: Field = imm(16, 0x8000, 16);
const HIGHER_FIELD: Field = imm(16, 0x8000_8000, 32);
const HIGHEST_FIELD: Field = imm(16, 0x8000_8000_8000, 48);
const JUMP_FIELD: Field = imm(26, 0, 2);
/// From the delay slot, in words.
const BRANCH_FIELD: Field = imm(16, 0u64.wrapping_sub(4), 2);

/// A data word of which the lower 16 bits stay 0 and the others are rounded to the nearest page.
const fn page(bytes: u8, pieces: &'static [Piece]) -> Field {
    Field { bytes, order: Order::Data, round: 0x8000, rshift: 16, pieces }
}

const fn row(r_type: u32, expr: Expr, field: Field, overflow: Overflow, role: Role) -> Howto {
    let name = match special_name(r_type) {
        Some(name) => name,
        None => NAMES[r_type as usize],
    };
    Howto { r_type, name, expr, field, overflow, align: 1, role }
}

/// The same for destinations of branches: words.
const fn branch(r_type: u32, expr: Expr, field: Field, overflow: Overflow) -> Howto {
    Howto { align: 4, ..row(r_type, expr, field, overflow, Role::Branch) }
}

const ANY: Overflow = Overflow::None;
const S16: Overflow = Overflow::Signed(16);
const REGION: Expr = Expr::Region { bits: 28, after: 4 };

/// All that [`Relocator::howto`] knows in O32, ascending by number.
static HOWTOS_32: [Howto; 28] = {
    use Expr::*;
    [
        row(NONE, Expr::None, Field::NONE, ANY, Role::Hint),
        row(ABS16, Abs, LO, S16, Role::Address),
        row(ABS32, Abs, Field::data(4), ANY, Role::Address),
        branch(JUMP26, REGION, JUMP_FIELD, Overflow::Unsigned(26)),
        row(HI16, Abs, HI, ANY, Role::Address),
        row(LO16, Abs, LO, ANY, Role::Address),
        row(GPREL16, GpRel, LO, S16, Role::Address),
        row(GOT16, Got, LO, S16, Role::Got),
        branch(PC16, Pc, BRANCH_FIELD, S16),
        row(CALL16, Got, LO, S16, Role::Branch),
        row(GPREL32, GotOff, Field::data(4), ANY, Role::Own),
        row(ABS64, Abs, Field::data(8), ANY, Role::Address),
        row(GOT_DISP, Got, LO, S16, Role::Got),
        row(GOT_PAGE, GotPage, LO, S16, Role::Address),
        row(GOT_OFST, Abs, LO, ANY, Role::Address),
        row(GOT_HI16, Got, HI, ANY, Role::Got),
        row(GOT_LO16, Got, LO, ANY, Role::Got),
        row(CALL_HI16, Got, HI, ANY, Role::Branch),
        row(CALL_LO16, Got, LO, ANY, Role::Branch),
        row(JALR, Expr::None, Field::NONE, ANY, Role::Hint),
        row(TLS_GOTTPREL, GotTpOff, LO, S16, Role::Tls),
        row(TLS_TPREL_HI16, TpOff, HI, ANY, Role::Tls),
        row(TLS_TPREL_LO16, TpOff, LO, ANY, Role::Tls),
        row(PAGE_WORD_32, Abs, page(4, &[Piece { value_lsb: 0, width: 16, field_lsb: 16 }]), ANY, Role::Address),
        row(GP_DISP_HI16, GotBasePc, HI, ANY, Role::Got),
        row(GP_DISP_LO16, GotBasePc, LO, ANY, Role::Got),
        row(GOT16_PAGE, GotPage, LO, S16, Role::Address),
        row(PC32, Pc, Field::data(4), ANY, Role::Address),
    ]
};

/// The same for n64.
static HOWTOS_64: [Howto; 30] = {
    use Expr::*;
    [
        row(NONE, Expr::None, Field::NONE, ANY, Role::Hint),
        row(ABS16, Abs, LO, S16, Role::Address),
        row(ABS32, Abs, Field::data(4), Overflow::Bitfield(32), Role::Address),
        branch(JUMP26, REGION, JUMP_FIELD, Overflow::Unsigned(26)),
        row(HI16, Abs, HI, ANY, Role::Address),
        row(LO16, Abs, LO, ANY, Role::Address),
        row(GPREL16, GpRel, LO, S16, Role::Address),
        // The n64 ABI has GOT_PAGE and GOT_OFST for local symbols, and leaves GOT16 to global ones.
        row(GOT16, Got, LO, S16, Role::Got),
        branch(PC16, Pc, BRANCH_FIELD, S16),
        row(CALL16, Got, LO, S16, Role::Branch),
        row(GPREL32, GotOff, Field::data(4), Overflow::Signed(32), Role::Own),
        row(ABS64, Abs, Field::data(8), ANY, Role::Address),
        row(GOT_DISP, Got, LO, S16, Role::Got),
        row(GOT_PAGE, GotPage, LO, S16, Role::Address),
        row(GOT_OFST, Abs, LO, ANY, Role::Address),
        row(GOT_HI16, Got, HI, ANY, Role::Got),
        row(GOT_LO16, Got, LO, ANY, Role::Got),
        row(HIGHER, Abs, HIGHER_FIELD, ANY, Role::Address),
        row(HIGHEST, Abs, HIGHEST_FIELD, ANY, Role::Address),
        row(CALL_HI16, Got, HI, ANY, Role::Branch),
        row(CALL_LO16, Got, LO, ANY, Role::Branch),
        row(JALR, Expr::None, Field::NONE, ANY, Role::Hint),
        row(TLS_GOTTPREL, GotTpOff, LO, S16, Role::Tls),
        row(TLS_TPREL_HI16, TpOff, HI, ANY, Role::Tls),
        row(TLS_TPREL_LO16, TpOff, LO, ANY, Role::Tls),
        row(PC32, Pc, Field::data(4), Overflow::Signed(32), Role::Address),
        row(GPREL64, GotOff, Field::data(8), ANY, Role::Own),
        row(PAGE_WORD_64, Abs, page(8, &[Piece { value_lsb: 0, width: 48, field_lsb: 16 }]), ANY, Role::Address),
        row(GP_MINUS_HI16, GotMinus, HI, ANY, Role::Own),
        row(GP_MINUS_LO16, GotMinus, LO, ANY, Role::Own),
    ]
};

/// Names of composed and of own types.
const fn special_name(r_type: u32) -> Option<&'static str> {
    Some(match r_type {
        PAGE_WORD_32 => "R_MIPS_32(page)",
        PAGE_WORD_64 => "R_MIPS_64(page)",
        GP_DISP_HI16 => "R_MIPS_HI16(_gp_disp)",
        GP_DISP_LO16 => "R_MIPS_LO16(_gp_disp)",
        GOT16_PAGE => "R_MIPS_GOT16(page)",
        GP_MINUS_HI16 => "R_MIPS_GPREL16/R_MIPS_SUB/R_MIPS_HI16",
        GP_MINUS_LO16 => "R_MIPS_GPREL16/R_MIPS_SUB/R_MIPS_LO16",
        GPREL64 => "R_MIPS_GPREL32/R_MIPS_64",
        PC32 => "R_MIPS_PC32",
        _ => return Option::None,
    })
}

/// The psABI name of every type up to 67, by number.
const NAMES: [&str; 68] = [
    "R_MIPS_NONE",
    "R_MIPS_16",
    "R_MIPS_32",
    "R_MIPS_REL32",
    "R_MIPS_26",
    "R_MIPS_HI16",
    "R_MIPS_LO16",
    "R_MIPS_GPREL16",
    "R_MIPS_LITERAL",
    "R_MIPS_GOT16",
    "R_MIPS_PC16",
    "R_MIPS_CALL16",
    "R_MIPS_GPREL32",
    "R_MIPS_UNUSED1",
    "R_MIPS_UNUSED2",
    "R_MIPS_UNUSED3",
    "R_MIPS_SHIFT5",
    "R_MIPS_SHIFT6",
    "R_MIPS_64",
    "R_MIPS_GOT_DISP",
    "R_MIPS_GOT_PAGE",
    "R_MIPS_GOT_OFST",
    "R_MIPS_GOT_HI16",
    "R_MIPS_GOT_LO16",
    "R_MIPS_SUB",
    "R_MIPS_INSERT_A",
    "R_MIPS_INSERT_B",
    "R_MIPS_DELETE",
    "R_MIPS_HIGHER",
    "R_MIPS_HIGHEST",
    "R_MIPS_CALL_HI16",
    "R_MIPS_CALL_LO16",
    "R_MIPS_SCN_DISP",
    "R_MIPS_REL16",
    "R_MIPS_ADD_IMMEDIATE",
    "R_MIPS_PJUMP",
    "R_MIPS_RELGOT",
    "R_MIPS_JALR",
    "R_MIPS_TLS_DTPMOD32",
    "R_MIPS_TLS_DTPREL32",
    "R_MIPS_TLS_DTPMOD64",
    "R_MIPS_TLS_DTPREL64",
    "R_MIPS_TLS_GD",
    "R_MIPS_TLS_LDM",
    "R_MIPS_TLS_DTPREL_HI16",
    "R_MIPS_TLS_DTPREL_LO16",
    "R_MIPS_TLS_GOTTPREL",
    "R_MIPS_TLS_TPREL32",
    "R_MIPS_TLS_TPREL64",
    "R_MIPS_TLS_TPREL_HI16",
    "R_MIPS_TLS_TPREL_LO16",
    "R_MIPS_GLOB_DAT",
    "R_MIPS_UNUSED52",
    "R_MIPS_UNUSED53",
    "R_MIPS_UNUSED54",
    "R_MIPS_UNUSED55",
    "R_MIPS_UNUSED56",
    "R_MIPS_UNUSED57",
    "R_MIPS_UNUSED58",
    "R_MIPS_UNUSED59",
    "R_MIPS_PC21_S2",
    "R_MIPS_PC26_S2",
    "R_MIPS_PC18_S3",
    "R_MIPS_PC19_S2",
    "R_MIPS_PCHI16",
    "R_MIPS_PCLO16",
    "R_MIPS_UNUSED66",
    "R_MIPS_UNUSED67",
];

/// Names by number of the types past [`NAMES`]; all without a row but PC32.
const FAR_NAMES: &[(u32, &str)] = &[
    (100, "R_MIPS16_26"),
    (101, "R_MIPS16_GPREL"),
    (102, "R_MIPS16_GOT16"),
    (103, "R_MIPS16_CALL16"),
    (104, "R_MIPS16_HI16"),
    (105, "R_MIPS16_LO16"),
    (106, "R_MIPS16_TLS_GD"),
    (107, "R_MIPS16_TLS_LDM"),
    (108, "R_MIPS16_TLS_DTPREL_HI16"),
    (109, "R_MIPS16_TLS_DTPREL_LO16"),
    (110, "R_MIPS16_TLS_GOTTPREL"),
    (111, "R_MIPS16_TLS_TPREL_HI16"),
    (112, "R_MIPS16_TLS_TPREL_LO16"),
    (113, "R_MIPS16_PC16_S1"),
    (126, "R_MIPS_COPY"),
    (127, "R_MIPS_JUMP_SLOT"),
    (133, "R_MICROMIPS_26_S1"),
    (134, "R_MICROMIPS_HI16"),
    (135, "R_MICROMIPS_LO16"),
    (136, "R_MICROMIPS_GPREL16"),
    (137, "R_MICROMIPS_LITERAL"),
    (138, "R_MICROMIPS_GOT16"),
    (139, "R_MICROMIPS_PC7_S1"),
    (140, "R_MICROMIPS_PC10_S1"),
    (141, "R_MICROMIPS_PC16_S1"),
    (142, "R_MICROMIPS_CALL16"),
    (145, "R_MICROMIPS_GOT_DISP"),
    (146, "R_MICROMIPS_GOT_PAGE"),
    (147, "R_MICROMIPS_GOT_OFST"),
    (148, "R_MICROMIPS_GOT_HI16"),
    (149, "R_MICROMIPS_GOT_LO16"),
    (150, "R_MICROMIPS_SUB"),
    (151, "R_MICROMIPS_HIGHER"),
    (152, "R_MICROMIPS_HIGHEST"),
    (153, "R_MICROMIPS_CALL_HI16"),
    (154, "R_MICROMIPS_CALL_LO16"),
    (155, "R_MICROMIPS_SCN_DISP"),
    (156, "R_MICROMIPS_JALR"),
    (157, "R_MICROMIPS_HI0_LO16"),
    (162, "R_MICROMIPS_TLS_GD"),
    (163, "R_MICROMIPS_TLS_LDM"),
    (164, "R_MICROMIPS_TLS_DTPREL_HI16"),
    (165, "R_MICROMIPS_TLS_DTPREL_LO16"),
    (166, "R_MICROMIPS_TLS_GOTTPREL"),
    (169, "R_MICROMIPS_TLS_TPREL_HI16"),
    (170, "R_MICROMIPS_TLS_TPREL_LO16"),
    (172, "R_MICROMIPS_GPREL7_S2"),
    (173, "R_MICROMIPS_PC23_S2"),
    (248, "R_MIPS_PC32"),
    (249, "R_MIPS_EH"),
    (250, "R_MIPS_GNU_REL16_S2"),
    (253, "R_MIPS_GNU_VTINHERIT"),
    (254, "R_MIPS_GNU_VTENTRY"),
];

impl Mips {
    fn howtos(&self) -> &'static [Howto] {
        if self.is_64 { &HOWTOS_64 } else { &HOWTOS_32 }
    }
}

impl Relocator for Mips {
    fn howto(&self, r_type: u32) -> Option<&'static Howto> {
        let rows = self.howtos();
        rows.binary_search_by_key(&r_type, |h| h.r_type).ok().map(|i| &rows[i])
    }

    /// A composed type that compilers don't make goes by the name of its first operation that has no row of its own, or else
    /// of its first one.
    fn reloc_name(&self, r_type: u32) -> Option<&'static str> {
        if let Some(h) = self.howto(r_type) {
            return Some(h.name);
        }
        if r_type <= 0xff || !self.is_64 {
            return name(r_type);
        }
        let parts = [r_type & 0xff, r_type >> 8 & 0xff, r_type >> 16 & 0xff];
        let odd = parts.into_iter().find(|p| self.howto(*p).is_none() && *p != SUB);
        name(odd.unwrap_or(parts[0]))
    }

    #[cfg(feature = "alloc")]
    fn normalize(
        &self,
        raw: &tigerfix_core::arch::RawRelocs<'_>,
    ) -> Result<alloc::vec::Vec<tigerfix_core::arch::Reloc>, tigerfix_core::arch::NormalizeError> {
        crate::normalize::normalize(self, raw)
    }

    fn address_word(&self) -> u32 {
        if self.is_64 { ABS64 } else { ABS32 }
    }
}

fn name(r_type: u32) -> Option<&'static str> {
    let near = usize::try_from(r_type).ok().and_then(|i| NAMES.get(i)).copied();
    near.or_else(|| FAR_NAMES.iter().find(|n| n.0 == r_type).map(|n| n.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MIPS, MIPS64, MIPS64EL, MIPSEL};
    use std::collections::BTreeSet;
    use tigerfix_core::arch::Arch;
    use tigerfix_core::field::FieldError;

    #[test]
    fn rows_ascend_and_are_found() {
        for arch in [&MIPS, &MIPSEL, &MIPS64, &MIPS64EL] {
            assert!(arch.howtos().windows(2).all(|w| w[0].r_type < w[1].r_type));
            let names: BTreeSet<&str> = arch.howtos().iter().map(|h| h.name).collect();
            assert_eq!(names.len(), arch.howtos().len(), "no name twice");
            for h in arch.howtos() {
                assert!(core::ptr::eq(arch.howto(h.r_type).unwrap(), h));
                assert_eq!(arch.reloc_name(h.r_type), Some(h.name));
                assert!(arch.is_64 || h.r_type <= 0xff, "{}: fits a 32-bit ELF relocation", h.name);
            }
        }
        assert_eq!(MIPS.howto(MIPS.address_word()).unwrap().name, "R_MIPS_32");
        assert_eq!(MIPS64.howto(MIPS64.address_word()).unwrap().name, "R_MIPS_64");
    }

    #[test]
    fn own_numbers_are_free_in_the_psabi() {
        for n in [PAGE_WORD_32, GP_DISP_HI16, GP_DISP_LO16, GOT16_PAGE] {
            assert_eq!(name(n), None, "{n}");
            assert!(MIPS.howto(n).is_some() && MIPS64.howto(n).is_none());
        }
    }

    #[test]
    fn names_agree_with_the_object_crate() {
        for n in 0..=255 {
            if let Some(theirs) = object::elf::NAMES_R_MIPS.name(object::elf::RelocationType(n)) {
                assert_eq!(name(n), Some(theirs));
            }
        }
        assert_eq!((name(255), name(u32::MAX)), (None, None));
    }

    #[test]
    fn unsupported_types_have_a_name_but_no_row() {
        for n in [3, 8, 16, 17, 24, 25, 26, 27, 36, 42, 43, 44, 45, 47, 48, 60, 64, 100, 105, 126, 127, 133, 135, 249] {
            for arch in [&MIPS, &MIPS64EL] {
                assert!(arch.howto(n).is_none() && arch.reloc_name(n).is_some(), "{n}");
            }
        }
        assert_eq!(MIPS.reloc_name(HIGHEST), Some("R_MIPS_HIGHEST"));
        assert!(MIPS.howto(HIGHEST).is_none());
        assert_eq!(MIPS64.reloc_name(composite(ABS32, 42, 0)), Some("R_MIPS_TLS_GD"));
        assert_eq!(MIPS64.reloc_name(composite(ABS32, SUB, ABS64)), Some("R_MIPS_32"));
    }

    /// Both ends of every range, and the values just outside.
    #[test]
    fn ranges_are_exact() {
        let rows: &[(&Mips, u32, i64, i64, i64)] = &[
            // type, least, greatest, step
            (&MIPS, ABS16, -0x8000, 0x7fff, 1),
            (&MIPS, GPREL16, -0x8000, 0x7fff, 1),
            (&MIPS, GOT16, -0x8000, 0x7fff, 1),
            (&MIPS, CALL16, -0x8000, 0x7fff, 1),
            (&MIPS, GOT16_PAGE, -0x8000, 0x7fff, 1),
            (&MIPS, TLS_GOTTPREL, -0x8000, 0x7fff, 1),
            // Less the region's start.
            (&MIPS, JUMP26, 0, 0x0fff_fffc, 4),
            (&MIPS64, JUMP26, 0, 0x0fff_fffc, 4),
            // From the branch itself.
            (&MIPS, PC16, -0x2_0000 + 4, 0x1_fffc + 4, 4),
            (&MIPS64, PC16, -0x2_0000 + 4, 0x1_fffc + 4, 4),
            (&MIPS64, GOT_DISP, -0x8000, 0x7fff, 1),
            (&MIPS64, GOT_PAGE, -0x8000, 0x7fff, 1),
            (&MIPS64, ABS32, -0x8000_0000, 0xffff_ffff, 1),
            (&MIPS64, PC32, -0x8000_0000, 0x7fff_ffff, 1),
            (&MIPS64, GPREL32, -0x8000_0000, 0x7fff_ffff, 1),
        ];
        for &(arch, t, min, max, step) in rows {
            let h = arch.howto(t).unwrap();
            let put =
                |v: i64| h.field.write(&mut [0; 8], arch.endian, v as u64, h.overflow, h.align, arch.address_bits());
            assert_eq!((put(min), put(max)), (Ok(()), Ok(())), "{}", h.name);
            for bad in [min - step, max + step] {
                assert!(matches!(put(bad), Err(FieldError::Overflow { .. })), "{} {bad:#x}", h.name);
            }
            if step == 4 {
                assert!(matches!(put(min + 2), Err(FieldError::Misaligned { .. })), "{}", h.name);
            }
        }
    }

    /// type, what was there, value, what is there then
    #[test]
    fn fields() {
        let rows: &[(&Mips, u32, u64, u64, u64)] = &[
            (&MIPS, JUMP26, 0x0c00_0000, 0x0123_4568, 0x0c48_d15a), // jal
            (&MIPS, HI16, 0x3c02_1234, 0x8012_8000, 0x3c02_8013),   // lui
            (&MIPS, HI16, 0x3c02_0000, 0xffff_8000, 0x3c02_0000),   // wraps
            (&MIPS, LO16, 0x2442_ffff, 0x8012_8000, 0x2442_8000),   // addiu
            (&MIPS, PC16, 0x1000_ffff, 0x10, 0x1000_0003),          // b, from the delay slot
            (&MIPS, PC16, 0x1000_0000, 0, 0x1000_ffff),             // b to itself
            (&MIPS64, HIGHEST, 0x3c19_0000, 0x7fff_7fff_7fff_7ffc, 0x3c19_7fff),
            (&MIPS64, HIGHEST, 0x3c19_0000, 0x7fff_7fff_7fff_8000, 0x3c19_8000),
            (&MIPS64, HIGHEST, 0x3c19_0000, 0x7fff_8000_0000_0000, 0x3c19_8000),
            (&MIPS64, HIGHER, 0x6739_0000, 0x7fff_7fff_8000_0000, 0x6739_8000),
            (&MIPS64, HI16, 0x6739_0000, 0x7fff_7fff_7fff_8000, 0x6739_8000),
            (&MIPS64, GPREL64, 0, u64::MAX, u64::MAX),
            (&MIPS64, PAGE_WORD_64, 0, 0x1_2000_8000, 0x1_2001_0000),
            (&MIPS, PAGE_WORD_32, 0, 0x40_8000, 0x41_0000),
            (&MIPS, ABS64, 0, 0x8000_0010, 0xffff_ffff_8000_0010),
        ];
        for &(arch, t, before, value, after) in rows {
            let h = arch.howto(t).unwrap();
            let mut buf = [0u8; 8];
            let cell = &mut buf[..h.field.bytes.into()];
            tigerfix_core::field::store(cell, arch.endian, before);
            h.field.write(cell, arch.endian, value, h.overflow, h.align, arch.address_bits()).unwrap();
            assert_eq!(tigerfix_core::field::load(cell, arch.endian), after, "{} {value:#x}", h.name);
        }
    }
}
