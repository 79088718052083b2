//! The relocation table: one row for each type that an object file may hold and that can be settled here.
//!
//! Odd in this psABI:
//! * `adrp` and its companions share an address: one takes the difference of *pages* of 4 KiB, whatever the system's page
//!   size is, the other what the address has above its page. The latter is known before the address is, since images
//!   are moved by whole pages.
//! * Loads and stores scale their offset by the size of the access, so that an address has to be aligned; all of the address
//!   is checked, though only a few bits of it are stored.
//! * `MOVW` types for signed values turn `movz` into `movn` where the value is negative, and store it inverted.
//! * P is the instruction, and displacements count from there: nothing is hidden in addends.
//! * A branch may be sent through a veneer if it is `b` or `bl` (AAELF64, "Call and Jump relocations"). Conditional branches
//!   may not: they stay in the code that they were compiled with, and mean the new function if they mean one.
//! * Types that go through the GOT have no addend ("must have a zero addend").
//! * Position-independent code finds thread-local variables by descriptors: a call of a function that the dynamic loader
//!   chooses. The sequence is made so that linkers can put the offset in its place (AAELF64, "Thread-local storage descriptors"),
//!   and that is done here, since a program's own variables lie at an offset that is known. The traditional dialect
//!   (TLSGD, TLSLD), which calls `__tls_get_addr`, is refused by name.
//!
//! Range checks are the document's; for ABS32 and ABS16 it admits both signed and unsigned values.
//!
//! Source: AAELF64, "Relocation types" and the tables behind it.

use crate::Aarch64;
use tigerfix_core::arch::{Expr, Howto, Relocator, Role};
use tigerfix_core::field::{Field, Opcode, Order, Overflow, Piece};

const ABS64: u32 = 257;
pub(crate) const ADR_GOT_PAGE: u32 = 311;
pub(crate) const LD64_GOT_LO12_NC: u32 = 312;

/// `Page()` of the document.
const BITS: u8 = 12;

/// An instruction that takes these bits of the value, shifted right by `rshift`.
const fn insn(rshift: u8, pieces: &'static [Piece]) -> Field {
    Field { bytes: 4, order: Order::Insn, round: 0, rshift, pieces, opcode: Opcode::Keep }
}

/// A word that counts from its own place, also where it lies in code: in the order of instructions, which is that of data.
const fn relative(bytes: u8) -> Field {
    Field { order: Order::Insn, ..Field::data(bytes) }
}

/// `movz` or `movn`, by the value's sign; bit 30 tells them apart.
const fn movnz(rshift: u8) -> Field {
    Field { opcode: Opcode::Sign { bit: 30 }, ..insn(rshift, IMM16) }
}

/// Another instruction.
const fn instead(opcode: u32, rshift: u8, pieces: &'static [Piece]) -> Field {
    Field { opcode: Opcode::Replace(opcode as u64), ..insn(rshift, pieces) }
}

/// `movz x0, #0, lsl #16`
const MOVZ_X0_LSL_16: u32 = 0xd2a0_0000;
/// `movk x0, #0`
const MOVK_X0: u32 = 0xf280_0000;
/// `nop`
const NOP: u32 = 0xd503_201f;

/// `movz`, `movn`, `movk`
const IMM16: &[Piece] = &[Piece { value_lsb: 0, width: 16, field_lsb: 5 }];
/// `adr`, `adrp`
const IMM21: &[Piece] =
    &[Piece { value_lsb: 0, width: 2, field_lsb: 29 }, Piece { value_lsb: 2, width: 19, field_lsb: 5 }];
/// Load of a literal, conditional branch.
const IMM19: &[Piece] = &[Piece { value_lsb: 0, width: 19, field_lsb: 5 }];
/// `tbz`, `tbnz`
const IMM14: &[Piece] = &[Piece { value_lsb: 0, width: 14, field_lsb: 5 }];
/// `b`, `bl`
const IMM26: &[Piece] = &[Piece { value_lsb: 0, width: 26, field_lsb: 0 }];
/// `add`, loads and stores: all of the field.
const IMM12: &[Piece] = &[Piece { value_lsb: 0, width: 12, field_lsb: 10 }];
/// The same of which scaled accesses leave the upper bits 0: what is above the page is not theirs.
const IMM11: &[Piece] = &[Piece { value_lsb: 0, width: 11, field_lsb: 10 }];
const IMM10: &[Piece] = &[Piece { value_lsb: 0, width: 10, field_lsb: 10 }];
const IMM9: &[Piece] = &[Piece { value_lsb: 0, width: 9, field_lsb: 10 }];
const IMM8: &[Piece] = &[Piece { value_lsb: 0, width: 8, field_lsb: 10 }];

/// The rows: number, expression, field, range check, alignment, use.
type Row = (u32, Expr, Field, Overflow, u8, Role);

const ROWS: [Row; 75] = {
    use Expr::*;
    use Overflow::{Bitfield, Signed, Unsigned};
    use Role::{Address, Branch, Got, Hint, Own, Tls};
    const ANY: Overflow = Overflow::None;
    const PAGE_PC: Expr = PagePc { bits: BITS };
    const PAGE_OFFSET: Expr = PageOffset { bits: BITS };
    [
        (0, None, Field::NONE, ANY, 1, Hint),
        (256, None, Field::NONE, ANY, 1, Hint),
        // data
        (ABS64, Abs, Field::data(8), ANY, 1, Address),
        (258, Abs, Field::data(4), Bitfield(32), 1, Address), // ABS32
        (259, Abs, Field::data(2), Bitfield(16), 1, Address), // ABS16
        (260, Pc, relative(8), ANY, 1, Address),              // PREL64
        (261, Pc, relative(4), Signed(32), 1, Address),       // PREL32
        (262, Pc, relative(2), Signed(16), 1, Address),       // PREL16
        // movz, movk of an address
        (263, Abs, insn(0, IMM16), Unsigned(16), 1, Address), // MOVW_UABS_G0
        (264, Abs, insn(0, IMM16), ANY, 1, Address),          // ..._NC
        (265, Abs, insn(16, IMM16), Unsigned(16), 1, Address), // MOVW_UABS_G1
        (266, Abs, insn(16, IMM16), ANY, 1, Address),         // ..._NC
        (267, Abs, insn(32, IMM16), Unsigned(16), 1, Address), // MOVW_UABS_G2
        (268, Abs, insn(32, IMM16), ANY, 1, Address),         // ..._NC
        (269, Abs, insn(48, IMM16), ANY, 1, Address),         // MOVW_UABS_G3
        // movz or movn
        (270, Abs, movnz(0), Signed(17), 1, Address),  // MOVW_SABS_G0
        (271, Abs, movnz(16), Signed(17), 1, Address), // MOVW_SABS_G1
        (272, Abs, movnz(32), Signed(17), 1, Address), // MOVW_SABS_G2
        // addresses near the instruction
        (273, Pc, insn(2, IMM19), Signed(19), 4, Address), // LD_PREL_LO19
        (274, Pc, insn(0, IMM21), Signed(21), 1, Address), // ADR_PREL_LO21
        (275, PAGE_PC, insn(12, IMM21), Signed(21), 1, Address), // ADR_PREL_PG_HI21
        (276, PAGE_PC, insn(12, IMM21), ANY, 1, Address),  // ..._NC
        (277, PAGE_OFFSET, insn(0, IMM12), ANY, 1, Address), // ADD_ABS_LO12_NC
        (278, PAGE_OFFSET, insn(0, IMM12), ANY, 1, Address), // LDST8_ABS_LO12_NC
        // branches
        (279, Pc, insn(2, IMM14), Signed(14), 4, Own),       // TSTBR14
        (280, Pc, insn(2, IMM19), Signed(19), 4, Own),       // CONDBR19
        (282, PltPc, insn(2, IMM26), Signed(26), 4, Branch), // JUMP26
        (283, PltPc, insn(2, IMM26), Signed(26), 4, Branch), // CALL26
        (284, PAGE_OFFSET, insn(1, IMM11), ANY, 2, Address), // LDST16_ABS_LO12_NC
        (285, PAGE_OFFSET, insn(2, IMM10), ANY, 4, Address), // LDST32_ABS_LO12_NC
        (286, PAGE_OFFSET, insn(3, IMM9), ANY, 8, Address),  // LDST64_ABS_LO12_NC
        // movz, movn, movk of a distance
        (287, Pc, movnz(0), Signed(17), 1, Address),         // MOVW_PREL_G0
        (288, Pc, insn(0, IMM16), ANY, 1, Address),          // ..._NC
        (289, Pc, movnz(16), Signed(17), 1, Address),        // MOVW_PREL_G1
        (290, Pc, insn(16, IMM16), ANY, 1, Address),         // ..._NC
        (291, Pc, movnz(32), Signed(17), 1, Address),        // MOVW_PREL_G2
        (292, Pc, insn(32, IMM16), ANY, 1, Address),         // ..._NC
        (293, Pc, movnz(48), ANY, 1, Address),               // MOVW_PREL_G3
        (299, PAGE_OFFSET, insn(4, IMM8), ANY, 16, Address), // LDST128_ABS_LO12_NC
        // the GOT
        (307, GotOff, Field::data(8), ANY, 1, Address),         // GOTREL64
        (308, GotOff, Field::data(4), Signed(32), 1, Address),  // GOTREL32
        (309, GotPc, insn(2, IMM19), Signed(19), 4, Got),       // GOT_LD_PREL19
        (310, Expr::Got, insn(3, IMM12), Unsigned(12), 8, Got), // LD64_GOTOFF_LO15
        (ADR_GOT_PAGE, GotPagePc { bits: BITS }, insn(12, IMM21), Signed(21), 1, Got),
        (LD64_GOT_LO12_NC, GotPageOffset { bits: BITS }, insn(3, IMM9), ANY, 8, Got),
        (313, GotFromPage { bits: BITS }, insn(3, IMM12), Unsigned(12), 8, Got), // LD64_GOTPAGE_LO15
        (314, PltPc, relative(4), Signed(32), 1, Branch),                        // PLT32
        (315, GotPc, relative(4), Signed(32), 1, Got),                           // GOTPCREL32
        // thread-local variables, offset in a GOT slot
        (541, GotTpOffPagePc { bits: BITS }, insn(12, IMM21), Signed(21), 1, Tls), // TLSIE_ADR_GOTTPREL_PAGE21
        (542, GotTpOffPageOffset { bits: BITS }, insn(3, IMM9), ANY, 8, Tls),      // TLSIE_LD64_GOTTPREL_LO12_NC
        (543, GotTpOffPc, insn(2, IMM19), Signed(19), 4, Tls),                     // TLSIE_LD_GOTTPREL_PREL19
        // thread-local variables, offset in the instruction
        (544, TpOff, movnz(32), Signed(17), 1, Tls), // TLSLE_MOVW_TPREL_G2
        (545, TpOff, movnz(16), Signed(17), 1, Tls), // TLSLE_MOVW_TPREL_G1
        (546, TpOff, insn(16, IMM16), ANY, 1, Tls),  // ..._NC
        (547, TpOff, movnz(0), Signed(17), 1, Tls),  // TLSLE_MOVW_TPREL_G0
        (548, TpOff, insn(0, IMM16), ANY, 1, Tls),   // ..._NC
        (549, TpOff, insn(12, IMM12), Unsigned(12), 1, Tls), // TLSLE_ADD_TPREL_HI12
        (550, TpOff, insn(0, IMM12), Unsigned(12), 1, Tls), // TLSLE_ADD_TPREL_LO12
        (551, TpOff, insn(0, IMM12), ANY, 1, Tls),   // ..._NC
        (552, TpOff, insn(0, IMM12), Unsigned(12), 1, Tls), // TLSLE_LDST8_TPREL_LO12
        (553, TpOff, insn(0, IMM12), ANY, 1, Tls),   // ..._NC
        (554, TpOff, insn(1, IMM11), Unsigned(11), 2, Tls), // TLSLE_LDST16_TPREL_LO12
        (555, TpOff, insn(1, IMM11), ANY, 2, Tls),   // ..._NC
        (556, TpOff, insn(2, IMM10), Unsigned(10), 4, Tls), // TLSLE_LDST32_TPREL_LO12
        (557, TpOff, insn(2, IMM10), ANY, 4, Tls),   // ..._NC
        (558, TpOff, insn(3, IMM9), Unsigned(9), 8, Tls), // TLSLE_LDST64_TPREL_LO12
        (559, TpOff, insn(3, IMM9), ANY, 8, Tls),    // ..._NC
        // descriptors (of the sequences that compilers make for small and tiny code), replaced by movz, movk, nop, nop
        (560, TpOff, instead(MOVZ_X0_LSL_16, 16, IMM16), Unsigned(16), 1, Tls), // TLSDESC_LD_PREL19
        (561, TpOff, instead(MOVK_X0, 0, IMM16), ANY, 1, Tls),                  // TLSDESC_ADR_PREL21
        (562, TpOff, instead(MOVZ_X0_LSL_16, 16, IMM16), Unsigned(16), 1, Tls), // TLSDESC_ADR_PAGE21
        (563, TpOff, instead(MOVK_X0, 0, IMM16), ANY, 1, Tls),                  // TLSDESC_LD64_LO12
        (564, TpOff, instead(NOP, 0, &[]), ANY, 1, Tls),                        // TLSDESC_ADD_LO12
        (569, TpOff, instead(NOP, 0, &[]), ANY, 1, Tls),                        // TLSDESC_CALL
        (570, TpOff, insn(4, IMM8), Unsigned(8), 16, Tls),                      // TLSLE_LDST128_TPREL_LO12
        (571, TpOff, insn(4, IMM8), ANY, 16, Tls),                              // ..._NC
    ]
};

/// All that [`Relocator::howto`] knows, ascending by number.
static HOWTOS: [Howto; ROWS.len()] = {
    let mut all = [NO_HOWTO; ROWS.len()];
    let mut i = 0;
    while i < ROWS.len() {
        let (r_type, expr, field, overflow, align, role) = ROWS[i];
        all[i] = Howto { r_type, name: name(r_type), expr, field, overflow, align, role };
        i += 1;
    }
    all
};

const NO_HOWTO: Howto = Howto {
    r_type: 0,
    name: "",
    expr: Expr::None,
    field: Field::NONE,
    overflow: Overflow::None,
    align: 1,
    role: Role::Hint,
};

const fn name(r_type: u32) -> &'static str {
    let mut i = 0;
    while NAMES[i].0 != r_type {
        i += 1;
    }
    NAMES[i].1
}

/// The psABI name of every type, ascending by number. Types without a row are for dynamic linking, belong to the
/// traditional TLS dialect or to the large code model's position-independent form (MOVW_GOTOFF, TLSDESC_OFF: GCC has
/// none, and clang's uses the small model's GOT), or to the PAuth and structure protection extensions.
const NAMES: [(u32, &str); 146] = [
    (0, "R_AARCH64_NONE"),
    (256, "R_AARCH64_NONE"),
    (257, "R_AARCH64_ABS64"),
    (258, "R_AARCH64_ABS32"),
    (259, "R_AARCH64_ABS16"),
    (260, "R_AARCH64_PREL64"),
    (261, "R_AARCH64_PREL32"),
    (262, "R_AARCH64_PREL16"),
    (263, "R_AARCH64_MOVW_UABS_G0"),
    (264, "R_AARCH64_MOVW_UABS_G0_NC"),
    (265, "R_AARCH64_MOVW_UABS_G1"),
    (266, "R_AARCH64_MOVW_UABS_G1_NC"),
    (267, "R_AARCH64_MOVW_UABS_G2"),
    (268, "R_AARCH64_MOVW_UABS_G2_NC"),
    (269, "R_AARCH64_MOVW_UABS_G3"),
    (270, "R_AARCH64_MOVW_SABS_G0"),
    (271, "R_AARCH64_MOVW_SABS_G1"),
    (272, "R_AARCH64_MOVW_SABS_G2"),
    (273, "R_AARCH64_LD_PREL_LO19"),
    (274, "R_AARCH64_ADR_PREL_LO21"),
    (275, "R_AARCH64_ADR_PREL_PG_HI21"),
    (276, "R_AARCH64_ADR_PREL_PG_HI21_NC"),
    (277, "R_AARCH64_ADD_ABS_LO12_NC"),
    (278, "R_AARCH64_LDST8_ABS_LO12_NC"),
    (279, "R_AARCH64_TSTBR14"),
    (280, "R_AARCH64_CONDBR19"),
    (282, "R_AARCH64_JUMP26"),
    (283, "R_AARCH64_CALL26"),
    (284, "R_AARCH64_LDST16_ABS_LO12_NC"),
    (285, "R_AARCH64_LDST32_ABS_LO12_NC"),
    (286, "R_AARCH64_LDST64_ABS_LO12_NC"),
    (287, "R_AARCH64_MOVW_PREL_G0"),
    (288, "R_AARCH64_MOVW_PREL_G0_NC"),
    (289, "R_AARCH64_MOVW_PREL_G1"),
    (290, "R_AARCH64_MOVW_PREL_G1_NC"),
    (291, "R_AARCH64_MOVW_PREL_G2"),
    (292, "R_AARCH64_MOVW_PREL_G2_NC"),
    (293, "R_AARCH64_MOVW_PREL_G3"),
    (299, "R_AARCH64_LDST128_ABS_LO12_NC"),
    (300, "R_AARCH64_MOVW_GOTOFF_G0"),
    (301, "R_AARCH64_MOVW_GOTOFF_G0_NC"),
    (302, "R_AARCH64_MOVW_GOTOFF_G1"),
    (303, "R_AARCH64_MOVW_GOTOFF_G1_NC"),
    (304, "R_AARCH64_MOVW_GOTOFF_G2"),
    (305, "R_AARCH64_MOVW_GOTOFF_G2_NC"),
    (306, "R_AARCH64_MOVW_GOTOFF_G3"),
    (307, "R_AARCH64_GOTREL64"),
    (308, "R_AARCH64_GOTREL32"),
    (309, "R_AARCH64_GOT_LD_PREL19"),
    (310, "R_AARCH64_LD64_GOTOFF_LO15"),
    (311, "R_AARCH64_ADR_GOT_PAGE"),
    (312, "R_AARCH64_LD64_GOT_LO12_NC"),
    (313, "R_AARCH64_LD64_GOTPAGE_LO15"),
    (314, "R_AARCH64_PLT32"),
    (315, "R_AARCH64_GOTPCREL32"),
    (316, "R_AARCH64_PATCHINST"),
    (317, "R_AARCH64_FUNCINIT64"),
    (512, "R_AARCH64_TLSGD_ADR_PREL21"),
    (513, "R_AARCH64_TLSGD_ADR_PAGE21"),
    (514, "R_AARCH64_TLSGD_ADD_LO12_NC"),
    (515, "R_AARCH64_TLSGD_MOVW_G1"),
    (516, "R_AARCH64_TLSGD_MOVW_G0_NC"),
    (517, "R_AARCH64_TLSLD_ADR_PREL21"),
    (518, "R_AARCH64_TLSLD_ADR_PAGE21"),
    (519, "R_AARCH64_TLSLD_ADD_LO12_NC"),
    (520, "R_AARCH64_TLSLD_MOVW_G1"),
    (521, "R_AARCH64_TLSLD_MOVW_G0_NC"),
    (522, "R_AARCH64_TLSLD_LD_PREL19"),
    (523, "R_AARCH64_TLSLD_MOVW_DTPREL_G2"),
    (524, "R_AARCH64_TLSLD_MOVW_DTPREL_G1"),
    (525, "R_AARCH64_TLSLD_MOVW_DTPREL_G1_NC"),
    (526, "R_AARCH64_TLSLD_MOVW_DTPREL_G0"),
    (527, "R_AARCH64_TLSLD_MOVW_DTPREL_G0_NC"),
    (528, "R_AARCH64_TLSLD_ADD_DTPREL_HI12"),
    (529, "R_AARCH64_TLSLD_ADD_DTPREL_LO12"),
    (530, "R_AARCH64_TLSLD_ADD_DTPREL_LO12_NC"),
    (531, "R_AARCH64_TLSLD_LDST8_DTPREL_LO12"),
    (532, "R_AARCH64_TLSLD_LDST8_DTPREL_LO12_NC"),
    (533, "R_AARCH64_TLSLD_LDST16_DTPREL_LO12"),
    (534, "R_AARCH64_TLSLD_LDST16_DTPREL_LO12_NC"),
    (535, "R_AARCH64_TLSLD_LDST32_DTPREL_LO12"),
    (536, "R_AARCH64_TLSLD_LDST32_DTPREL_LO12_NC"),
    (537, "R_AARCH64_TLSLD_LDST64_DTPREL_LO12"),
    (538, "R_AARCH64_TLSLD_LDST64_DTPREL_LO12_NC"),
    (539, "R_AARCH64_TLSIE_MOVW_GOTTPREL_G1"),
    (540, "R_AARCH64_TLSIE_MOVW_GOTTPREL_G0_NC"),
    (541, "R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21"),
    (542, "R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC"),
    (543, "R_AARCH64_TLSIE_LD_GOTTPREL_PREL19"),
    (544, "R_AARCH64_TLSLE_MOVW_TPREL_G2"),
    (545, "R_AARCH64_TLSLE_MOVW_TPREL_G1"),
    (546, "R_AARCH64_TLSLE_MOVW_TPREL_G1_NC"),
    (547, "R_AARCH64_TLSLE_MOVW_TPREL_G0"),
    (548, "R_AARCH64_TLSLE_MOVW_TPREL_G0_NC"),
    (549, "R_AARCH64_TLSLE_ADD_TPREL_HI12"),
    (550, "R_AARCH64_TLSLE_ADD_TPREL_LO12"),
    (551, "R_AARCH64_TLSLE_ADD_TPREL_LO12_NC"),
    (552, "R_AARCH64_TLSLE_LDST8_TPREL_LO12"),
    (553, "R_AARCH64_TLSLE_LDST8_TPREL_LO12_NC"),
    (554, "R_AARCH64_TLSLE_LDST16_TPREL_LO12"),
    (555, "R_AARCH64_TLSLE_LDST16_TPREL_LO12_NC"),
    (556, "R_AARCH64_TLSLE_LDST32_TPREL_LO12"),
    (557, "R_AARCH64_TLSLE_LDST32_TPREL_LO12_NC"),
    (558, "R_AARCH64_TLSLE_LDST64_TPREL_LO12"),
    (559, "R_AARCH64_TLSLE_LDST64_TPREL_LO12_NC"),
    (560, "R_AARCH64_TLSDESC_LD_PREL19"),
    (561, "R_AARCH64_TLSDESC_ADR_PREL21"),
    (562, "R_AARCH64_TLSDESC_ADR_PAGE21"),
    (563, "R_AARCH64_TLSDESC_LD64_LO12"),
    (564, "R_AARCH64_TLSDESC_ADD_LO12"),
    (565, "R_AARCH64_TLSDESC_OFF_G1"),
    (566, "R_AARCH64_TLSDESC_OFF_G0_NC"),
    (567, "R_AARCH64_TLSDESC_LDR"),
    (568, "R_AARCH64_TLSDESC_ADD"),
    (569, "R_AARCH64_TLSDESC_CALL"),
    (570, "R_AARCH64_TLSLE_LDST128_TPREL_LO12"),
    (571, "R_AARCH64_TLSLE_LDST128_TPREL_LO12_NC"),
    (572, "R_AARCH64_TLSLD_LDST128_DTPREL_LO12"),
    (573, "R_AARCH64_TLSLD_LDST128_DTPREL_LO12_NC"),
    (580, "R_AARCH64_AUTH_ABS64"),
    (581, "R_AARCH64_AUTH_MOVW_GOTOFF_G0"),
    (582, "R_AARCH64_AUTH_MOVW_GOTOFF_G0_NC"),
    (583, "R_AARCH64_AUTH_MOVW_GOTOFF_G1"),
    (584, "R_AARCH64_AUTH_MOVW_GOTOFF_G1_NC"),
    (585, "R_AARCH64_AUTH_MOVW_GOTOFF_G2"),
    (586, "R_AARCH64_AUTH_MOVW_GOTOFF_G2_NC"),
    (587, "R_AARCH64_AUTH_MOVW_GOTOFF_G3"),
    (588, "R_AARCH64_AUTH_GOT_LD_PREL19"),
    (589, "R_AARCH64_AUTH_LD64_GOTOFF_LO15"),
    (590, "R_AARCH64_AUTH_ADR_GOT_PAGE"),
    (591, "R_AARCH64_AUTH_LD64_GOT_LO12_NC"),
    (592, "R_AARCH64_AUTH_LD64_GOTPAGE_LO15"),
    (593, "R_AARCH64_AUTH_GOT_ADD_LO12_NC"),
    (594, "R_AARCH64_AUTH_GOT_ADR_PREL_LO21"),
    (595, "R_AARCH64_AUTH_TLSDESC_ADR_PAGE21"),
    (596, "R_AARCH64_AUTH_TLSDESC_LD64_LO12"),
    (597, "R_AARCH64_AUTH_TLSDESC_ADD_LO12"),
    (1024, "R_AARCH64_COPY"),
    (1025, "R_AARCH64_GLOB_DAT"),
    (1026, "R_AARCH64_JUMP_SLOT"),
    (1027, "R_AARCH64_RELATIVE"),
    (1028, "R_AARCH64_TLS_DTPMOD"),
    (1029, "R_AARCH64_TLS_DTPREL"),
    (1030, "R_AARCH64_TLS_TPREL"),
    (1031, "R_AARCH64_TLSDESC"),
    (1032, "R_AARCH64_IRELATIVE"),
];

impl Relocator for Aarch64 {
    fn howto(&self, r_type: u32) -> Option<&'static Howto> {
        HOWTOS.binary_search_by_key(&r_type, |h| h.r_type).ok().map(|i| &HOWTOS[i])
    }

    fn reloc_name(&self, r_type: u32) -> Option<&'static str> {
        NAMES.binary_search_by_key(&r_type, |n| n.0).ok().map(|i| NAMES[i].1)
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

    fn by_name(name: &str) -> &'static Howto {
        let name = std::format!("R_AARCH64_{name}");
        HOWTOS.iter().find(|h| h.name == name).unwrap_or_else(|| panic!("{name}"))
    }

    #[test]
    fn rows_ascend_and_are_found() {
        assert!(HOWTOS.windows(2).all(|w| w[0].r_type < w[1].r_type));
        assert!(NAMES.windows(2).all(|w| w[0].0 < w[1].0));
        for h in &HOWTOS {
            assert!(core::ptr::eq(Aarch64.howto(h.r_type).unwrap(), h));
            assert_eq!(Aarch64.reloc_name(h.r_type), Some(h.name));
        }
        assert_eq!(Aarch64.howto(Aarch64.address_word()).unwrap().name, "R_AARCH64_ABS64");
        assert_eq!(Aarch64.howto(ADR_GOT_PAGE).unwrap().name, "R_AARCH64_ADR_GOT_PAGE");
        assert_eq!(Aarch64.howto(LD64_GOT_LO12_NC).unwrap().name, "R_AARCH64_LD64_GOT_LO12_NC");
    }

    #[test]
    fn names_agree_with_the_object_crate() {
        let mut known = 0;
        for n in (0..=0).chain(189..2048u32) {
            if let Some(theirs) = object::elf::NAMES_R_AARCH64.name(object::elf::RelocationType(n)) {
                assert_eq!(Aarch64.reloc_name(n), Some(theirs));
                known += 1;
            } else if let Some(ours) = Aarch64.reloc_name(n) {
                // Withdrawn, or younger than that list.
                assert!(n == 256 || matches!(n, 316 | 317) || ours.starts_with("R_AARCH64_AUTH_"), "{n} {ours}");
            }
        }
        assert!(known > 120, "{known}");
        assert_eq!(Aarch64.reloc_name(u32::MAX), None);
        // ELF32's (ILP32's) numbers are not ours.
        assert_eq!(Aarch64.reloc_name(1), None);
    }

    #[test]
    fn dynamic_and_unsupported_types_have_a_name_but_no_row() {
        let others = (300..=306).chain(512..=540).chain(565..=568).chain(572..=573).chain(580..=597).chain(1024..=1032);
        for n in others.chain([316, 317]) {
            assert!(Aarch64.howto(n).is_none() && Aarch64.reloc_name(n).is_some(), "{n}");
        }
    }

    /// Both ends of every range, and the values just outside; the distance between values that the field can tell apart.
    #[test]
    fn ranges_are_exact() {
        let rows: &[(&str, i64, i64, i64)] = &[
            ("ABS32", -(1 << 31), (1 << 32) - 1, 1),
            ("ABS16", -(1 << 15), (1 << 16) - 1, 1),
            ("PREL32", -(1 << 31), (1 << 31) - 1, 1),
            ("PREL16", -(1 << 15), (1 << 15) - 1, 1),
            ("PLT32", -(1 << 31), (1 << 31) - 1, 1),
            ("GOTPCREL32", -(1 << 31), (1 << 31) - 1, 1),
            ("GOTREL32", -(1 << 31), (1 << 31) - 1, 1),
            ("MOVW_UABS_G0", 0, (1 << 16) - 1, 1),
            ("MOVW_UABS_G1", 0, (1 << 32) - 1, 1),
            ("MOVW_UABS_G2", 0, (1 << 48) - 1, 1),
            ("MOVW_SABS_G0", -(1 << 16), (1 << 16) - 1, 1),
            ("MOVW_SABS_G1", -(1 << 32), (1 << 32) - 1, 1),
            ("MOVW_SABS_G2", -(1 << 48), (1 << 48) - 1, 1),
            ("MOVW_PREL_G0", -(1 << 16), (1 << 16) - 1, 1),
            ("MOVW_PREL_G1", -(1 << 32), (1 << 32) - 1, 1),
            ("MOVW_PREL_G2", -(1 << 48), (1 << 48) - 1, 1),
            ("TLSLE_MOVW_TPREL_G0", -(1 << 16), (1 << 16) - 1, 1),
            ("TLSLE_MOVW_TPREL_G1", -(1 << 32), (1 << 32) - 1, 1),
            ("TLSLE_MOVW_TPREL_G2", -(1 << 48), (1 << 48) - 1, 1),
            ("LD_PREL_LO19", -(1 << 20), (1 << 20) - 4, 4),
            ("GOT_LD_PREL19", -(1 << 20), (1 << 20) - 4, 4),
            ("TLSIE_LD_GOTTPREL_PREL19", -(1 << 20), (1 << 20) - 4, 4),
            ("ADR_PREL_LO21", -(1 << 20), (1 << 20) - 1, 1),
            ("ADR_PREL_PG_HI21", -(1 << 32), (1 << 32) - 4096, 4096),
            ("ADR_GOT_PAGE", -(1 << 32), (1 << 32) - 4096, 4096),
            ("TLSIE_ADR_GOTTPREL_PAGE21", -(1 << 32), (1 << 32) - 4096, 4096),
            ("TSTBR14", -(1 << 15), (1 << 15) - 4, 4),
            ("CONDBR19", -(1 << 20), (1 << 20) - 4, 4),
            ("JUMP26", -(1 << 27), (1 << 27) - 4, 4),
            ("CALL26", -(1 << 27), (1 << 27) - 4, 4),
            ("LD64_GOTOFF_LO15", 0, (1 << 15) - 8, 8),
            ("LD64_GOTPAGE_LO15", 0, (1 << 15) - 8, 8),
            ("TLSLE_ADD_TPREL_HI12", 0, (1 << 24) - 1, 1),
            ("TLSLE_ADD_TPREL_LO12", 0, (1 << 12) - 1, 1),
            ("TLSLE_LDST8_TPREL_LO12", 0, (1 << 12) - 1, 1),
            ("TLSLE_LDST16_TPREL_LO12", 0, (1 << 12) - 2, 2),
            ("TLSLE_LDST32_TPREL_LO12", 0, (1 << 12) - 4, 4),
            ("TLSLE_LDST64_TPREL_LO12", 0, (1 << 12) - 8, 8),
            ("TLSLE_LDST128_TPREL_LO12", 0, (1 << 12) - 16, 16),
            ("TLSDESC_ADR_PAGE21", 0, (1 << 32) - 1, 1),
            ("TLSDESC_LD_PREL19", 0, (1 << 32) - 1, 1),
        ];
        let put = |h: &Howto, v: i64| h.field.write(&mut [0; 8], Endian::Little, v as u64, h.overflow, h.align, 64);
        for &(name, min, max, step) in rows {
            let h = by_name(name);
            assert_eq!((put(h, min), put(h, max)), (Ok(()), Ok(())), "{name}");
            for bad in [min - step, max + step] {
                assert!(matches!(put(h, bad), Err(FieldError::Overflow { .. })), "{name} {bad:#x}");
            }
            if h.align > 1 {
                assert_eq!(i64::from(h.align), step);
                let bad = max + step / 2;
                assert!(matches!(put(h, bad), Err(FieldError::Misaligned { .. })), "{name} {bad:#x}");
            }
        }
        // All that has a check was looked at.
        let checked = HOWTOS.iter().filter(|h| h.overflow != Overflow::None);
        assert_eq!(checked.count(), rows.len());
        for h in HOWTOS.iter().filter(|h| h.overflow == Overflow::None && h.field.bytes != 0) {
            assert_eq!((put(h, 0x7fff_ffff_ffff_fff0), put(h, i64::MIN)), (Ok(()), Ok(())), "{}", h.name);
        }
        for (name, align) in [("LDST16", 2), ("LDST32", 4), ("LDST64", 8), ("LDST128", 16)] {
            for name in [std::format!("{name}_ABS_LO12_NC"), std::format!("TLSLE_{name}_TPREL_LO12_NC")] {
                let h = by_name(&name);
                assert_eq!(put(h, align), Ok(()));
                assert!(matches!(put(h, align / 2), Err(FieldError::Misaligned { .. })), "{name}");
            }
        }
    }

    /// Instruction before, value, instruction behind, in the disassembler's words.
    #[test]
    fn values_are_where_the_processor_looks_for_them() {
        let rows: &[(&str, u32, i64, &str)] = &[
            ("MOVW_UABS_G0", 0xd280_0001, 0x1234, "mov x1, #0x1234"),
            ("MOVW_UABS_G1_NC", 0xf2a0_0001, 0x1_5678_9abc, "movk x1, #0x5678, lsl #16"),
            ("MOVW_UABS_G3", 0xf2e0_0001, -0x1234_5678_9abc_def0, "movk x1, #0xedcb, lsl #48"),
            ("MOVW_SABS_G0", 0xd280_0001, -0x1235, "mov x1, #-0x1235"),
            ("MOVW_SABS_G0", 0x9280_0001, 0x1235, "mov x1, #0x1235"),
            ("MOVW_SABS_G1", 0xd2a0_0001, -0x1234_0001, "mov x1, #-0x12340001"),
            ("MOVW_SABS_G2", 0xd2c0_0001, 0x1234_0000_0000, "mov x1, #0x123400000000"),
            ("MOVW_PREL_G0_NC", 0xf280_0001, -2, "movk x1, #0xfffe"),
            ("LD_PREL_LO19", 0x5800_0001, 0x1000, "ldr x1, #0x402000"),
            ("ADR_PREL_LO21", 0x1000_0001, -0x1001, "adr x1, #0x3fffff"),
            ("ADR_PREL_LO21", 0x1000_0001, 0x1003, "adr x1, #0x402003"),
            ("ADR_PREL_PG_HI21", 0x9000_0001, 0x5000, "adrp x1, #0x406000"),
            ("ADR_PREL_PG_HI21", 0x9000_0001, -0x3000, "adrp x1, #0x3fe000"),
            ("ADD_ABS_LO12_NC", 0x9100_0021, 0x1_2345, "add x1, x1, #0x345"),
            ("LDST8_ABS_LO12_NC", 0x3940_0021, 0x1_2345, "ldrb w1, [x1, #0x345]"),
            ("LDST16_ABS_LO12_NC", 0x7940_0021, 0x1_2346, "ldrh w1, [x1, #0x346]"),
            ("LDST32_ABS_LO12_NC", 0xb940_0021, 0x1_2344, "ldr w1, [x1, #0x344]"),
            ("LDST64_ABS_LO12_NC", 0xf940_0021, 0x1_2348, "ldr x1, [x1, #0x348]"),
            ("LDST128_ABS_LO12_NC", 0x3dc0_0021, 0x1_2340, "ldr q1, [x1, #0x340]"),
            ("TSTBR14", 0x3600_0001, -0x1000, "tbz w1, #0, #0x400000"),
            ("CONDBR19", 0x5400_0001, 0x1000, "b.ne #0x402000"),
            ("CONDBR19", 0xb400_0001, -0x1000, "cbz x1, #0x400000"),
            ("JUMP26", 0x1400_0000, 0x1000, "b #0x402000"),
            ("CALL26", 0x9400_0000, -0x1000, "bl #0x400000"),
            ("LD64_GOT_LO12_NC", 0xf940_0021, 0x1_2ff8, "ldr x1, [x1, #0xff8]"),
            ("LD64_GOTPAGE_LO15", 0xf940_0021, 0x7ff8, "ldr x1, [x1, #0x7ff8]"),
            ("TLSLE_ADD_TPREL_HI12", 0x9140_0021, 0x12_3456, "add x1, x1, #0x123, lsl #12"),
            ("TLSLE_ADD_TPREL_LO12_NC", 0x9100_0021, 0x12_3456, "add x1, x1, #0x456"),
            ("TLSLE_MOVW_TPREL_G1", 0xd2a0_0001, 0x12_3456, "mov x1, #0x120000"),
            ("TLSLE_MOVW_TPREL_G0_NC", 0xf280_0001, 0x12_3456, "movk x1, #0x3456"),
            ("TLSDESC_ADR_PAGE21", 0x9000_0000, 0x12_3456, "mov x0, #0x120000"),
            ("TLSDESC_LD64_LO12", 0xf940_0001, 0x12_3456, "movk x0, #0x3456"),
            ("TLSDESC_ADD_LO12", 0x9100_0000, 0x12_3456, "nop"),
            ("TLSDESC_CALL", 0xd63f_0020, 0x12_3456, "nop"),
            ("TLSDESC_LD_PREL19", 0x5800_0001, 0x12_3456, "mov x0, #0x120000"),
            ("TLSDESC_ADR_PREL21", 0x1000_0000, 0x12_3456, "movk x0, #0x3456"),
        ];
        for &(name, before, value, after) in rows {
            let h = by_name(name);
            let mut word = before.to_le_bytes();
            h.field.write(&mut word, Endian::Little, value as u64, h.overflow, h.align, 64).unwrap();
            assert_eq!(crate::trampoline::tests::text(&word, 0x40_1000), after, "{name}");
            // What was in the field before does not matter.
            let mask = h.field.pieces.iter().fold(0u32, |m, p| m | ((1u32 << p.width) - 1) << p.field_lsb);
            let mut again = (before | mask).to_le_bytes();
            h.field.write(&mut again, Endian::Little, value as u64, h.overflow, h.align, 64).unwrap();
            assert_eq!(again, word, "{name}");
        }
    }
}
