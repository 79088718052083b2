//! Which registers an instruction reads and writes.
//!
//! Where control goes is the business of `flow.rs`; a call is known here by what it reads and by the link register.
//! Registers are whole: w0 is x0, s3 and q3 are v3. A write of part of a vector register clears the rest, but where an
//! instruction keeps some of it, it reads it too. Left out are flags, and the stack pointer. What SVE and SME instructions, and
//! those that this file does not know, write is taken to be read as well: then no one is misled, whichever question is asked.
//!
//! Odd in this instruction set: number 31 is the stack pointer in some fields and zero in others, so that neither is a register
//! here; one field of five bits is a register in one instruction and a part of the opcode in the next.
//!
//! Source: Arm ARM, C4.1 "A64 instruction set encoding", whose tables the functions below follow.

/// A set of registers: bits 0 to 30 are x0 to x30, 32 to 63 v0 to v31, 64 to 79 SVE's predicates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(pub u128);

impl Set {
    /// None.
    pub const NONE: Set = Set(0);
    /// A general register; the stack pointer and zero are never in a set.
    #[must_use]
    pub const fn x(n: u32) -> Set {
        Set(1u128 << (n & 31) & 0x7fff_ffff)
    }
    /// A vector register.
    #[must_use]
    pub const fn v(n: u32) -> Set {
        Set(1u128 << (32 + (n & 31)))
    }
    /// A predicate.
    #[must_use]
    pub const fn p(n: u32) -> Set {
        Set(1u128 << (64 + (n & 15)))
    }
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }
    /// `count` registers from `n` on; after the last comes the first.
    fn run(register: fn(u32) -> Set, n: u32, count: u32) -> Set {
        (0..count).fold(Set::NONE, |set, i| set.and(register(n + i)))
    }
    /// The set, or nothing.
    fn when(self, condition: bool) -> Set {
        if condition { self } else { Set::NONE }
    }
}

/// What an instruction does to registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    /// What it reads; with what it writes in part.
    pub reads: Set,
    /// What it writes.
    pub writes: Set,
}

fn ops(reads: Set, writes: Set) -> Operands {
    Operands { reads, writes }
}

/// Reads and writes all of these.
fn both(all: Set) -> Operands {
    ops(all, all)
}

/// The fields of an instruction word.
#[derive(Clone, Copy)]
struct Word(u32);

impl Word {
    /// Bits `high` to `low`.
    fn bits(self, high: u32, low: u32) -> u32 {
        self.0 >> low & ((1 << (high - low + 1)) - 1)
    }
    fn bit(self, n: u32) -> bool {
        self.0 >> n & 1 == 1
    }
    /// Are the bits of `mask` those of `value`?
    fn is(self, mask: u32, value: u32) -> bool {
        self.0 & mask == value
    }
    /// The first field of five bits: usually the destination.
    fn d(self) -> u32 {
        self.bits(4, 0)
    }
    fn n(self) -> u32 {
        self.bits(9, 5)
    }
    fn a(self) -> u32 {
        self.bits(14, 10)
    }
    fn m(self) -> u32 {
        self.bits(20, 16)
    }
}

/// Registers that the instruction `word` reads and writes.
#[must_use]
pub fn operands(word: u32) -> Operands {
    let w = Word(word);
    match w.bits(28, 25) {
        0b1000 | 0b1001 => immediate(w),
        0b1010 | 0b1011 => system(w),
        0b0100 | 0b0110 | 0b1100 | 0b1110 => memory(w),
        0b0101 | 0b1101 => register(w),
        0b0111 | 0b1111 => vector(w),
        0b0000 if !w.bit(31) => Operands::default(), // udf
        _ => unknown(w),
    }
}

/// SVE, SME and what is not allocated: all that the fields may mean.
fn unknown(w: Word) -> Operands {
    let fields = [w.d(), w.n(), w.m()];
    let all = fields.iter().fold(Set::NONE, |set, n| set.and(Set::x(*n)).and(Set::v(*n)));
    both(all.and(Set::p(w.d())).and(Set::p(w.n())).and(Set::p(w.bits(12, 10))).and(Set::p(w.bits(19, 16))))
}

/// Data processing, immediate.
fn immediate(w: Word) -> Operands {
    let (d, n) = (Set::x(w.d()), Set::x(w.n()));
    match w.bits(25, 23) {
        0b000 | 0b001 => ops(Set::NONE, d),                  // adr, adrp
        0b101 if w.bits(30, 29) == 0b11 => both(d),          // movk
        0b101 => ops(Set::NONE, d),                          // movz, movn
        0b110 if w.bits(30, 29) == 0b01 => ops(n.and(d), d), // bfm
        0b111 if w.bits(30, 29) == 0b11 => both(Set::x(30)), // autiasppc
        0b111 => ops(n.and(Set::x(w.m())), d),               // extr
        _ => ops(n, d),                                      // add, sub, and, orr, eor, sbfm, ubfm
    }
}

/// Branches, exceptions, system instructions.
fn system(w: Word) -> Operands {
    const LINK: Set = Set::x(30);
    let d = Set::x(w.d());
    match w.bits(31, 24) {
        0x94..=0x97 => ops(Set::NONE, LINK),                          // bl
        0x34..=0x37 | 0xb4..=0xb7 | 0x75 | 0xf5 => ops(d, Set::NONE), // cbz, tbz, cb<cc> with a constant
        0x74 | 0xf4 => ops(d.and(Set::x(w.m())), Set::NONE),          // cb<cc>
        0x55 => ops(LINK.and(d), Set::NONE),                          // retaasppc
        0xd6 | 0xd7 => {
            let call = w.bits(22, 21) == 0b01 && !w.bit(23);
            // braa, blraa: the modifier; retaa: none (31)
            let modifier = Set::x(w.d()).when(w.bit(24));
            ops(Set::x(w.n()).and(modifier), LINK.when(call))
        }
        // svc: Linux keeps all but the result. hvc, smc: the SMC calling convention lets go of x0 to x17.
        0xd4 if w.is(0x00e0_001f, 1) => ops(Set::run(Set::x, 0, 6).and(Set::x(8)), Set::x(0)),
        0xd4 if w.is(0x00e0_001f, 2) || w.is(0x00e0_001f, 3) => both(Set::run(Set::x, 0, 18)),
        0xd5 => match w.bits(23, 12) {
            0x032 => hint(w.bits(11, 5)),
            // msr of an immediate, barriers
            0x003 | 0x030 | 0x031 | 0x033..=0x03f => Operands::default(),
            _ if w.bit(22) => both(Set::run(Set::x, w.d(), 2)), // mrrs, msrr, sysp
            _ if w.bit(21) => ops(Set::NONE, d),                // mrs, sysl
            _ => ops(d, Set::NONE),                             // msr, sys
        },
        _ => Operands::default(), // b, b.cond, brk
    }
}

/// Hints that are no no-operations.
fn hint(number: u32) -> Operands {
    match number {
        7 | 24..=31 => both(Set::x(30)), // xpaclri; paciaz ... autibsp
        // pacia1716, pacib1716, autia1716, autib1716
        8 | 10 | 12 | 14 => ops(Set::x(16).and(Set::x(17)), Set::x(17)),
        40 => both(Set::x(16)), // chkfeat
        _ => Operands::default(),
    }
}

/// Loads and stores.
fn memory(w: Word) -> Operands {
    let is_vector = w.bit(26);
    let register: fn(u32) -> Set = if is_vector { Set::v } else { Set::x };
    let (t, t2, n, m) = (register(w.d()), register(w.a()), Set::x(w.n()), Set::x(w.m()));
    let transfer = |load: bool, values: Set, more: Set, writeback: bool| {
        let back = n.when(writeback);
        if load { ops(n.and(more), values.and(back)) } else { ops(n.and(more).and(values), back) }
    };
    match w.bits(29, 24) {
        0b001000 => exclusive(w),
        0b001100 | 0b001101 => structures(w),
        // ldapur, stlur; stg, ldg and more tags; memory copies
        0b011001 | 0b011101 if w.bit(21) || w.bits(11, 10) != 0 => {
            both(Set::x(w.d()).and(n).and(m).and(Set::v(w.d()).when(is_vector)))
        }
        0b011001 | 0b011101 => transfer(w.bits(23, 22) != 0, t, Set::NONE, false),
        0b011000 | 0b011100 if w.bits(31, 30) == 3 && !is_vector => Operands::default(), // prfm of a literal
        0b011000 | 0b011100 => ops(Set::NONE, t),                                        // ldr of a literal
        // ldp, stp, ldnp, stnp, ldpsw, stgp
        0b101000 | 0b101001 | 0b101100 | 0b101101 => transfer(w.bit(22), t.and(t2), Set::NONE, w.bit(23)),
        0b111001 | 0b111101 => transfer_one(w, t, n, Set::NONE, false), // unsigned offset
        _ if !w.bit(21) => transfer_one(w, t, n, Set::NONE, w.bit(10)), // unscaled; post- and pre-indexed have bit 10
        _ => match (w.bits(11, 10), is_vector) {
            (0b10, _) => transfer_one(w, t, n, m, false), // register offset
            // ldadd, ldclr, ..., swp; ldapr; st64b and ld64b, of 8 registers
            (0b00, false) if w.bits(15, 12) == 0b1100 => ops(n, t),
            (0b00, false) if w.bit(15) && w.bits(14, 12) != 0 => both(Set::run(Set::x, w.d(), 8).and(n).and(m)),
            (0b00, false) => ops(n.and(m), t),
            (_, false) => transfer(true, t, Set::NONE, w.bit(11)), // ldraa, ldrab
            _ => unknown(w),
        },
    }
}

/// One register, and where it is loaded from or stored to.
fn transfer_one(w: Word, t: Set, n: Set, more: Set, writeback: bool) -> Operands {
    let back = n.when(writeback);
    let (size, opc) = (w.bits(31, 30), w.bits(23, 22));
    let load = if w.bit(26) { opc & 1 == 1 } else { opc != 0 };
    if !w.bit(26) && size == 3 && opc == 2 {
        return ops(n.and(more), back); // prfm
    }
    if load { ops(n.and(more), t.and(back)) } else { ops(n.and(more).and(t), back) }
}

/// Exclusive and ordered accesses, compare and swap.
fn exclusive(w: Word) -> Operands {
    let (t, t2, n, s) = (Set::x(w.d()), Set::x(w.a()), Set::x(w.n()), Set::x(w.m()));
    let (ordered, load, pair) = (w.bit(23), w.bit(22), w.bit(21));
    match (ordered, load, pair) {
        (false, _, true) if !w.bit(31) => {
            // casp
            let s = Set::run(Set::x, w.m(), 2);
            ops(s.and(Set::run(Set::x, w.d(), 2)).and(n), s)
        }
        (false, false, _) => ops(t.and(t2.when(pair)).and(n), s), // stxr, stxp
        (false, true, _) => ops(n, t.and(t2.when(pair))),         // ldxr, ldxp
        (true, _, true) => ops(s.and(t).and(n), s),               // cas
        (true, false, false) => ops(t.and(n), Set::NONE),         // stlr
        (true, true, false) => ops(n, t),                         // ldar
    }
}

/// Loads and stores of one to four vector registers, whole or by elements.
fn structures(w: Word) -> Operands {
    let n = Set::x(w.n());
    let indexed = w.bit(23);
    let back = n.when(indexed);
    let reads = n.and(Set::x(w.m()).when(indexed));
    let one = w.bit(24);
    let count = if one {
        (w.bits(13, 13) << 1 | w.bits(21, 21)) + 1
    } else {
        match w.bits(15, 12) {
            0b0000 | 0b0010 => 4,
            0b0100 | 0b0110 => 3,
            0b1000 | 0b1010 => 2,
            _ => 1,
        }
    };
    let values = Set::run(Set::v, w.d(), count);
    match (w.bit(22), one && w.bits(15, 14) != 0b11) {
        (false, _) => ops(reads.and(values), back),
        (true, false) => ops(reads, values.and(back)),
        (true, true) => ops(reads.and(values), values.and(back)), // the other elements stay
    }
}

/// Data processing, register.
fn register(w: Word) -> Operands {
    let (d, n, m, a) = (Set::x(w.d()), Set::x(w.n()), Set::x(w.m()), Set::x(w.a()));
    if !w.bit(28) {
        return ops(n.and(m), d); // logical, add, sub
    }
    match w.bits(24, 21) {
        0b0000 if w.bits(15, 10) == 0 => ops(n.and(m), d),   // adc, sbc
        0b0000 => ops(n, Set::NONE),                         // rmif, setf8, setf16
        0b0010 => ops(n.and(m.when(!w.bit(11))), Set::NONE), // ccmp, ccmn
        0b0100 => ops(n.and(m), d),                          // csel and its kin
        // rbit, clz, ...; pacia and its kin change their register
        0b0110 if w.bit(30) => ops(n.and(d.when(w.m() == 1)), d),
        0b0110 => ops(n.and(m), d),   // udiv, lslv, ...
        _ => ops(n.and(m).and(a), d), // madd, smulh, ...
    }
}

/// Floating point, and vectors of fixed size.
fn vector(w: Word) -> Operands {
    let (d, n, m, a) = (Set::v(w.d()), Set::v(w.n()), Set::v(w.m()), Set::v(w.a()));
    let (xd, xn) = (Set::x(w.d()), Set::x(w.n()));
    if w.is(0x5f00_0000, 0x1f00_0000) {
        return ops(n.and(m).and(a), d); // fmadd and its kin
    }
    // Scalars. Rounding to and conversion from a general register.
    if w.is(0x5f20_fc00, 0x1e20_0000) || w.is(0x5f20_0000, 0x1e00_0000) {
        return match w.bits(18, 16) {
            0b010 | 0b011 => ops(xn, d),                           // scvtf, ucvtf
            0b111 if w.bits(20, 19) == 0b01 => ops(xn.and(d), d),  // fmov to the upper half
            0b111 if w.is(0x5f20_fc00, 0x1e20_0000) => ops(xn, d), // fmov
            _ => ops(n, xd),                                       // fcvtzs, fmov, ...
        };
    }
    if w.is(0x5f20_0000, 0x1e20_0000) {
        return match (w.bits(11, 10), w.bits(15, 12)) {
            (0b01, _) => ops(n.and(m), Set::NONE),     // fccmp
            (0b10, _) | (0b11, _) => ops(n.and(m), d), // fadd, ...; fcsel
            (0b00, 0b0010 | 0b0110 | 0b1010 | 0b1110) => ops(n.and(m.when(!w.bit(3))), Set::NONE), // fcmp
            (0b00, e) if e & 1 == 1 => ops(Set::NONE, d), // fmov of a constant
            _ => ops(n, d),                            // fabs, fcvt, frint, ...
        };
    }
    if w.is(0xff00_0000, 0xce00_0000) {
        // sha512, sha3, sm3, sm4
        return ops(d.and(n).and(m).and(a), d);
    }
    let scalar = w.is(0xdf00_0000, 0x5e00_0000) || w.is(0xdf00_0000, 0x5f00_0000) || w.is(0xdf00_0000, 0x7e00_0000);
    let scalar = scalar || w.is(0xdf00_0000, 0x7f00_0000);
    if !scalar && (w.bit(31) || w.bits(28, 25) == 0b1111) {
        return unknown(w);
    }
    advanced(w, d, n, m)
}

/// Advanced SIMD: vectors, and scalars that share their opcodes.
fn advanced(w: Word, d: Set, n: Set, m: Set) -> Operands {
    let (u, q) = (w.bit(29), w.bit(30));
    let with = |sources: Set, keeps: bool| ops(sources.and(d.when(keeps)), d);
    if w.bit(24) {
        if !w.bit(10) {
            // By element; of 16 bits, only the first 16 registers have them.
            let m = if w.bits(23, 22) == 0b01 { Set::v(w.m() & 15) } else { m };
            let plain = matches!((w.bits(15, 12), u), (0b1000 | 0b1100 | 0b1101, false) | (0b1001..=0b1011, _));
            return with(n.and(m), !plain);
        }
        if w.bits(22, 19) == 0 && !w.bit(23) {
            // A constant; orr and bic work on what is there.
            let cmode = w.bits(15, 12);
            return with(Set::NONE, cmode & 1 == 1 && cmode < 12);
        }
        // Shifts by a constant: ssra, srsra, sri, sli; narrowing ones fill one half of the register.
        let opcode = w.bits(15, 11);
        let narrow = q && (0b10000..=0b10011).contains(&opcode);
        return with(n, matches!(opcode, 0b00010 | 0b00110 | 0b01000) || opcode == 0b01010 && u || narrow);
    }
    if w.is(0x9fe0_8400, 0x0e00_0400) || w.is(0xdfe0_8400, 0x5e00_0400) {
        // Copies of elements.
        let general = Set::x(w.n());
        return match (u, w.bits(14, 11)) {
            (false, 0b0001) => ops(general, d),                // dup
            (false, 0b0011) => ops(general.and(d), d),         // ins
            (false, 0b0101 | 0b0111) => ops(n, Set::x(w.d())), // smov, umov
            (true, _) => ops(n.and(d), d),                     // ins of an element
            _ => ops(n, d),                                    // dup of an element
        };
    }
    if w.bit(21) {
        let opcode = w.bits(15, 11);
        if w.bit(10) {
            // Three of the same: mla, mls; bsl, bit, bif; saba; fmla, fmls; fmlal, fmlsl
            let keeps = match opcode {
                0b10010 | 0b01111 => true,
                0b00011 => u && w.bits(23, 22) != 0,
                0b11001 => true,
                0b11101 => !u,
                _ => false,
            };
            return with(n.and(m), keeps);
        }
        return match w.bits(11, 10) {
            // Three different: sabal, mlal, sqdmlal, mlsl, sqdmlsl; addhn and subhn fill one half
            0b00 => {
                let opcode = w.bits(15, 12);
                let keeps = matches!(opcode, 0b0101 | 0b1000 | 0b1001 | 0b1010 | 0b1011);
                with(n.and(m), keeps || q && matches!(opcode, 0b0100 | 0b0110))
            }
            // Two registers: suqadd, sadalp; xtn, sqxtn, fcvtn fill one half; aese, aesd; sha
            _ => {
                let opcode = w.bits(16, 12);
                let aes = w.is(0xff3e_0c00, 0x4e28_0800) && matches!(opcode, 0b00100 | 0b00101);
                let sha = w.is(0xff3e_0c00, 0x5e28_0800) && opcode != 0;
                let narrow = q && matches!(opcode, 0b10010 | 0b10100 | 0b10110) && w.bits(20, 17) == 0;
                with(n, matches!(opcode, 0b00011 | 0b00110) && w.bits(20, 17) == 0 || narrow || aes || sha)
            }
        };
    }
    if w.is(0xff20_8c00, 0x5e00_0000) {
        return with(n.and(m), true); // sha1c, sha256h, ...
    }
    if w.is(0xbf20_8c00, 0x0e00_0000) {
        // tbl, tbx: one to four tables
        return with(Set::run(Set::v, w.n(), w.bits(14, 13) + 1).and(m), w.bit(12));
    }
    if w.is(0x9f60_c400, 0x0e40_0400) {
        return with(n.and(m), !u && w.bits(13, 11) == 0b001); // three of the same, 16 bits: fmla, fmls
    }
    if w.bit(15) && w.bit(10) {
        return with(n.and(m), true); // sdot, sqrdmlah, fcmla, mmla
    }
    with(n.and(m), false) // ext, zip, uzp, trn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trampoline::tests::text;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn names(set: Set) -> String {
        let name = |i: u32| match i {
            0..32 => format!("x{i}"),
            32..64 => format!("v{}", i - 32),
            _ => format!("p{}", i - 64),
        };
        let all: Vec<String> = (0..128).filter(|i| set.0 >> i & 1 == 1).map(name).collect();
        all.join(" ")
    }

    #[test]
    fn each_class() {
        // word, text, reads, writes
        let rows: &[(u32, &str, &str, &str)] = &[
            // constants
            (0x9000_0001, "adrp x1, #0x401000", "", "x1"),
            (0x9100_8022, "add x2, x1, #0x20", "x1", "x2"),
            (0x9100_03fd, "mov x29, sp", "", "x29"),
            (0xf100_043f, "cmp x1, #1", "x1", ""),
            (0x9240_0c22, "and x2, x1, #0xf", "x1", "x2"),
            (0xd280_0001, "mov x1, #0", "", "x1"),
            (0xf2a0_0001, "movk x1, #0, lsl #16", "x1", "x1"),
            (0xb340_1c22, "bfxil x2, x1, #0, #8", "x1 x2", "x2"),
            (0xd340_1c22, "ubfx x2, x1, #0, #8", "x1", "x2"),
            (0x93c1_1022, "ror x2, x1, #4", "x1", "x2"),
            (0x93c3_1022, "extr x2, x1, x3, #4", "x1 x3", "x2"),
            // branches and the system
            (0x9400_0400, "bl #0x402000", "", "x30"),
            (0xb400_8001, "cbz x1, #0x402000", "x1", ""),
            (0xd63f_0060, "blr x3", "x3", "x30"),
            (0xd73f_0861, "blraa x3, x1", "x1 x3", "x30"),
            (0xd61f_0200, "br x16", "x16", ""),
            (0xd65f_03c0, "ret", "x30", ""),
            (0xd400_0001, "svc #0", "x0 x1 x2 x3 x4 x5 x8", "x0"),
            (0xd503_233f, "paciasp", "x30", "x30"),
            (0xd503_23bf, "autiasp", "x30", "x30"),
            (0xd503_20ff, "xpaclri", "x30", "x30"),
            (0xd503_211f, "pacia1716", "x16 x17", "x17"),
            (0xd503_245f, "bti c", "", ""),
            (0xd503_3bbf, "dmb ish", "", ""),
            (0xd53b_d041, "mrs x1, tpidr_el0", "", "x1"),
            (0xd51b_d041, "msr tpidr_el0, x1", "x1", ""),
            (0xd50b_7421, "dc zva, x1", "x1", ""),
            // memory
            (0xf940_1022, "ldr x2, [x1, #0x20]", "x1", "x2"),
            (0xf900_1022, "str x2, [x1, #0x20]", "x1 x2", ""),
            (0x3940_1022, "ldrb w2, [x1, #4]", "x1", "x2"),
            (0xb980_1022, "ldrsw x2, [x1, #0x10]", "x1", "x2"),
            (0xf980_0020, "prfm pldl1keep, [x1]", "x1", ""),
            (0xf840_8422, "ldr x2, [x1], #8", "x1", "x1 x2"),
            (0xf81f_0c22, "str x2, [x1, #-0x10]!", "x1 x2", "x1"),
            (0xf85f_8022, "ldur x2, [x1, #-8]", "x1", "x2"),
            (0xf863_6822, "ldr x2, [x1, x3]", "x1 x3", "x2"),
            (0x3c63_6822, "ldr b2, [x1, x3]", "x1 x3", "v2"),
            (0xfd40_0422, "ldr d2, [x1, #8]", "x1", "v2"),
            (0x3d80_0422, "str q2, [x1, #0x10]", "x1 v2", ""),
            (0x3dc0_0422, "ldr q2, [x1, #0x10]", "x1", "v2"),
            (0x5800_8001, "ldr x1, #0x402000", "", "x1"),
            (0x9c00_8001, "ldr q1, #0x402000", "", "v1"),
            (0xa9bf_7bfd, "stp x29, x30, [sp, #-0x10]!", "x29 x30", ""),
            (0xa8c1_7bfd, "ldp x29, x30, [sp], #0x10", "", "x29 x30"),
            (0xa940_0c22, "ldp x2, x3, [x1]", "x1", "x2 x3"),
            (0xad40_0c22, "ldp q2, q3, [x1]", "x1", "v2 v3"),
            (0xc85f_7c22, "ldxr x2, [x1]", "x1", "x2"),
            (0xc803_7c22, "stxr w3, x2, [x1]", "x1 x2", "x3"),
            (0xc87f_1022, "ldxp x2, x4, [x1]", "x1", "x2 x4"),
            (0xc89f_fc22, "stlr x2, [x1]", "x1 x2", ""),
            (0xc8df_fc22, "ldar x2, [x1]", "x1", "x2"),
            (0xc8e3_fc22, "casal x3, x2, [x1]", "x1 x2 x3", "x3"),
            (0x4864_fc22, "caspal x4, x5, x2, x3, [x1]", "x1 x2 x3 x4 x5", "x4 x5"),
            (0xf8e3_0022, "ldaddal x3, x2, [x1]", "x1 x3", "x2"),
            (0xf8a3_8022, "swpa x3, x2, [x1]", "x1 x3", "x2"),
            (0xf8bf_c022, "ldapr x2, [x1]", "x1", "x2"),
            (0x4c40_7022, "ld1 {v2.16b}, [x1]", "x1", "v2"),
            (0x4cdf_2022, "ld1 {v2.16b, v3.16b, v4.16b, v5.16b}, [x1], #64", "x1", "x1 v2 v3 v4 v5"),
            (0x0c40_8022, "ld2 {v2.8b, v3.8b}, [x1]", "x1", "v2 v3"),
            (0x4c00_7022, "st1 {v2.16b}, [x1]", "x1 v2", ""),
            (0x4d40_8022, "ld1 {v2.s}[2], [x1]", "x1 v2", "v2"),
            (0x4d40_c022, "ld1r {v2.16b}, [x1]", "x1", "v2"),
            // registers
            (0x8b03_0022, "add x2, x1, x3", "x1 x3", "x2"),
            (0xaa03_03e2, "mov x2, x3", "x3", "x2"),
            (0xeb03_003f, "cmp x1, x3", "x1 x3", ""),
            (0x9a03_0022, "adc x2, x1, x3", "x1 x3", "x2"),
            (0x9a83_0022, "csel x2, x1, x3, eq", "x1 x3", "x2"),
            (0xfa43_0020, "ccmp x1, x3, #0, eq", "x1 x3", ""),
            (0xfa43_0820, "ccmp x1, #3, #0, eq", "x1", ""),
            (0xdac0_1022, "clz x2, x1", "x1", "x2"),
            (0xdac1_0022, "pacia x2, x1", "x1 x2", "x2"),
            (0x9ac3_0822, "udiv x2, x1, x3", "x1 x3", "x2"),
            (0x9b03_1022, "madd x2, x1, x3, x4", "x1 x3 x4", "x2"),
            (0x9b03_7c22, "mul x2, x1, x3", "x1 x3", "x2"),
            // floating point
            (0x1e63_2822, "fadd d2, d1, d3", "v1 v3", "v2"),
            (0x1f43_1022, "fmadd d2, d1, d3, d4", "v1 v3 v4", "v2"),
            (0x1e60_4022, "fmov d2, d1", "v1", "v2"),
            (0x1e6e_1002, "fmov d2, #1.00000000", "", "v2"),
            (0x1e63_2020, "fcmp d1, d3", "v1 v3", ""),
            (0x1e60_2028, "fcmp d1, #0.0", "v1", ""),
            (0x1e63_0420, "fccmp d1, d3, #0, eq", "v1 v3", ""),
            (0x1e63_0c22, "fcsel d2, d1, d3, eq", "v1 v3", "v2"),
            (0x9e66_0022, "fmov x2, d1", "v1", "x2"),
            (0x9e67_0022, "fmov d2, x1", "x1", "v2"),
            (0x9eaf_0022, "fmov v2.d[1], x1", "x1 v2", "v2"),
            (0x9eae_0022, "fmov x2, v1.d[1]", "v1", "x2"),
            (0x9e62_0022, "scvtf d2, x1", "x1", "v2"),
            (0x9e78_0022, "fcvtzs x2, d1", "v1", "x2"),
            (0x9e42_fc22, "scvtf d2, x1, #1", "x1", "v2"),
            (0x9e58_fc22, "fcvtzs x2, d1, #1", "v1", "x2"),
            (0x1e62_4022, "fcvt s2, d1", "v1", "v2"),
            // vectors
            (0x4ea3_8422, "add v2.4s, v1.4s, v3.4s", "v1 v3", "v2"),
            (0x4ea3_9422, "mla v2.4s, v1.4s, v3.4s", "v1 v2 v3", "v2"),
            (0x6e23_1c22, "eor v2.16b, v1.16b, v3.16b", "v1 v3", "v2"),
            (0x6e63_1c22, "bsl v2.16b, v1.16b, v3.16b", "v1 v2 v3", "v2"),
            (0x4e23_cc22, "fmla v2.4s, v1.4s, v3.4s", "v1 v2 v3", "v2"),
            (0x0e63_8022, "smlal v2.4s, v1.4h, v3.4h", "v1 v2 v3", "v2"),
            (0x0e63_c022, "smull v2.4s, v1.4h, v3.4h", "v1 v3", "v2"),
            (0x0e21_2822, "xtn v2.8b, v1.8h", "v1", "v2"),
            (0x4e21_2822, "xtn2 v2.16b, v1.8h", "v1 v2", "v2"),
            (0x4e04_0c22, "dup v2.4s, w1", "x1", "v2"),
            (0x4e04_0422, "dup v2.4s, v1.s[0]", "v1", "v2"),
            (0x4e0c_1c22, "mov v2.s[1], w1", "x1 v2", "v2"),
            (0x6e0c_0422, "mov v2.s[1], v1.s[0]", "v1 v2", "v2"),
            (0x0e0c_3c22, "mov w2, v1.s[1]", "v1", "x2"),
            (0x4f00_0402, "movi v2.4s, #0", "", "v2"),
            (0x4f00_1422, "orr v2.4s, #1", "v2", "v2"),
            (0x4f20_5422, "shl v2.4s, v1.4s, #0", "v1", "v2"),
            (0x6f20_5422, "sli v2.4s, v1.4s, #0", "v1 v2", "v2"),
            (0x4f20_1422, "ssra v2.4s, v1.4s, #0x20", "v1 v2", "v2"),
            (0x0f08_8422, "shrn v2.8b, v1.8h, #8", "v1", "v2"),
            (0x4f08_8422, "shrn2 v2.16b, v1.8h, #8", "v1 v2", "v2"),
            (0x4f83_8022, "mul v2.4s, v1.4s, v3.s[0]", "v1 v3", "v2"),
            (0x4f83_1022, "fmla v2.4s, v1.4s, v3.s[0]", "v1 v2 v3", "v2"),
            (0x4e03_0022, "tbl v2.16b, {v1.16b}, v3.16b", "v1 v3", "v2"),
            (0x4e03_2022, "tbl v2.16b, {v1.16b, v2.16b}, v3.16b", "v1 v2 v3", "v2"),
            (0x4e03_1022, "tbx v2.16b, {v1.16b}, v3.16b", "v1 v2 v3", "v2"),
            (0x6e03_2022, "ext v2.16b, v1.16b, v3.16b, #4", "v1 v3", "v2"),
            (0x4e83_3822, "zip1 v2.4s, v1.4s, v3.4s", "v1 v3", "v2"),
            (0x4eb1_b822, "addv s2, v1.4s", "v1", "v2"),
            (0x4e28_4822, "aese v2.16b, v1.16b", "v1 v2", "v2"),
            (0x4e28_6822, "aesmc v2.16b, v1.16b", "v1", "v2"),
            (0x5e03_4022, "sha256h q2, q1, v3.4s", "v1 v2 v3", "v2"),
            (0x4e83_9422, "sdot v2.4s, v1.16b, v3.16b", "v1 v2 v3", "v2"),
            (0x5e21_b822, "fcvtms s2, s1", "v1", "v2"),
            (0x0000_0000, "udf #0", "", ""),
        ];
        let mut wrong = Vec::new();
        for &(word, asm, reads, writes) in rows {
            let all = operands(word);
            let found = (text(&word.to_le_bytes(), 0x40_1000), names(all.reads), names(all.writes));
            let expected = (String::from(asm), String::from(reads), String::from(writes));
            if found != expected {
                wrong.push(format!("{word:#x}: {found:?}, not {expected:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// What is not known is taken to touch whatever its fields may mean.
    #[test]
    fn unknown_is_careful() {
        // add z2.s, z1.s, z3.s; ptrue p1.b
        for (word, at_least) in [(0x04a3_0022, "v1 v2 v3"), (0x2518_e3e1, "p1")] {
            let all = operands(word);
            assert_eq!(all.reads, all.writes);
            for name in at_least.split(' ') {
                assert!(names(all.reads).split(' ').any(|n| n == name), "{name}");
            }
        }
    }
}
