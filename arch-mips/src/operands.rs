//! Which registers an instruction reads and writes, and whether a word is an instruction of MIPS32 or MIPS64 (release 1
//! to 5) at all.
//!
//! Where control goes is the business of `flow.rs`; a branch is known here by what it reads and by its link register.
//! Left out are the condition bits of the floating point unit, the control registers, and the accumulators of the DSP
//! extension other than hi and lo: no compiler keeps anything in them across a call.
//!
//! Sources: *MIPS32 Architecture For Programmers*, volume II-A (MD00086), and *MIPS64*, volume II-A (MD00087), each with
//! appendix A "Instruction Bit Encodings"; volumes IV-e (DSP) and IV-j (MSA) for the extensions' opcodes.

/// A set of registers: bits 0 to 31 are the general ones, 32 to 63 those of the floating point unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(pub u128);

impl Set {
    /// None.
    pub const NONE: Set = Set(0);
    /// The multiplier's upper result.
    pub const HI: Set = Set(1 << 64);
    /// The multiplier's lower result.
    pub const LO: Set = Set(1 << 65);
    /// A general register; `$0` is never in a set.
    #[must_use]
    pub const fn gpr(n: u32) -> Set {
        Set((1u128 << (n & 31)) & !1)
    }
    /// A floating point register.
    #[must_use]
    pub const fn fpr(n: u32) -> Set {
        Set(1u128 << (32 + (n & 31)))
    }
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }
    /// Those that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }
    /// Is there a register in both?
    #[must_use]
    pub const fn meets(self, other: Set) -> bool {
        self.0 & other.0 != 0
    }
}

/// What an instruction does to registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    /// What it reads; with what it writes in part, or under a condition only.
    pub reads: Set,
    /// What it may write.
    pub writes: Set,
}

const HI_LO: Set = Set::HI.and(Set::LO);

fn ops(reads: Set, writes: Set) -> Option<Operands> {
    Some(Operands { reads, writes })
}

/// Floating point registers as far as a value of a format covers them. With 32 bit registers a double has a pair of them:
/// in O32 code `wide` values are therefore taken for pairs, in whatever mode it runs.
#[derive(Clone, Copy)]
struct Float {
    is_64: bool,
}

impl Float {
    fn reg(self, n: u32, wide: bool) -> Set {
        if wide && !self.is_64 { Set::fpr(n & !1).and(Set::fpr(n | 1)) } else { Set::fpr(n) }
    }
}

/// The registers of the instruction `word`; `None`: it is none of these architectures, or one (of coprocessor 2 and of
/// maker's extensions) of which nothing is known.
#[must_use]
pub fn operands(is_64: bool, word: u32) -> Option<Operands> {
    let (rs, rt) = (Set::gpr(word >> 21), Set::gpr(word >> 16));
    let ra = Set::gpr(31);
    let float = Float { is_64 };
    let ft = word >> 16 & 31;
    match word >> 26 {
        0x00 => special(is_64, word),
        0x01 => match word >> 16 & 31 {
            // bltz bgez bltzl bgezl
            0x00..=0x03 => ops(rs, Set::NONE),
            // tgei tgeiu tlti tltiu teqi tnei
            0x08..=0x0c | 0x0e => ops(rs, Set::NONE),
            // bltzal bgezal bltzall bgezall: the link is written whether they branch or not
            0x10..=0x13 => ops(rs, ra),
            0x1c => ops(Set::NONE, Set::NONE), // bposge32
            0x1f => ops(rs, Set::NONE),        // synci
            _ => None,
        },
        0x02 => ops(Set::NONE, Set::NONE),                       // j
        0x03 | 0x1d => ops(Set::NONE, ra),                       // jal jalx
        0x04 | 0x05 | 0x14 | 0x15 => ops(rs.and(rt), Set::NONE), // beq bne beql bnel
        // blez bgtz blezl bgtzl (with rt: release 6)
        0x06 | 0x07 | 0x16 | 0x17 if word >> 16 & 31 == 0 => ops(rs, Set::NONE),
        0x08..=0x0e => ops(rs, rt), // addi addiu slti sltiu andi ori xori
        0x0f if word >> 21 & 31 == 0 => ops(Set::NONE, rt), // lui
        0x10 => cop0(word),
        0x11 => cop1(float, word),
        0x13 => cop1x(float, word),
        0x18 | 0x19 if is_64 => ops(rs, rt), // daddi daddiu
        // ldl ldr: the rest of the register stays
        0x1a | 0x1b if is_64 => ops(rs.and(rt), rt),
        0x1c => special2(is_64, word),
        0x1e => msa(float, word),
        0x1f => special3(is_64, word),
        0x20 | 0x21 | 0x23 | 0x24 | 0x25 | 0x30 => ops(rs, rt), // lb lh lw lbu lhu ll
        0x22 | 0x26 => ops(rs.and(rt), rt),                     // lwl lwr
        0x27 | 0x34 | 0x37 if is_64 => ops(rs, rt),             // lwu lld ld
        0x28 | 0x29 | 0x2a | 0x2b | 0x2e => ops(rs.and(rt), Set::NONE), // sb sh swl sw swr
        0x2c | 0x2d | 0x3f if is_64 => ops(rs.and(rt), Set::NONE), // sdl sdr sd
        0x2f | 0x33 => ops(rs, Set::NONE),                      // cache pref
        0x31 => ops(rs, float.reg(ft, false)),                  // lwc1
        0x35 => ops(rs, float.reg(ft, true)),                   // ldc1
        0x38 => ops(rs.and(rt), rt),                            // sc
        0x3c if is_64 => ops(rs.and(rt), rt),                   // scd
        0x39 => ops(rs.and(float.reg(ft, false)), Set::NONE),   // swc1
        0x3d => ops(rs.and(float.reg(ft, true)), Set::NONE),    // sdc1
        _ => None,
    }
}

fn special(is_64: bool, word: u32) -> Option<Operands> {
    let (rs, rt, rd) = (Set::gpr(word >> 21), Set::gpr(word >> 16), Set::gpr(word >> 11));
    let sa = word >> 6 & 31;
    match word & 0x3f {
        0x00 | 0x03 if word >> 21 & 31 == 0 => ops(rt, rd), // sll sra
        0x02 if word >> 22 & 15 == 0 => ops(rt, rd),        // srl rotr
        // movf movt: keeps rd where the condition does not hold
        0x01 if word >> 17 & 1 == 0 && sa == 0 => ops(rs.and(rd), rd),
        0x04 | 0x07 if sa == 0 => ops(rs.and(rt), rd),         // sllv srav
        0x06 if sa < 2 => ops(rs.and(rt), rd),                 // srlv rotrv
        0x08 if word >> 11 & 0x3ff == 0 => ops(rs, Set::NONE), // jr, with any hint
        0x09 if word >> 16 & 31 == 0 => ops(rs, rd),           // jalr
        0x0a | 0x0b if sa == 0 => ops(rs.and(rt).and(rd), rd), // movz movn
        // syscall: the kernel returns v0, v1, a3, and keeps none of at, t0 to t9, hi, lo
        // (arch/mips/include/asm/syscall.h; glibc's sysdep.h lists the same clobbers)
        0x0c => {
            let arguments = if is_64 { 0x3f0 } else { 0x0f0 };
            let clobbered = if is_64 { 0x0300_fc8e } else { 0x0300_ff8e };
            ops(Set(arguments | 1 << 2 | 1 << 29), Set(clobbered).and(HI_LO))
        }
        0x0d => ops(Set::NONE, Set::NONE),                              // break
        0x0f if word >> 11 & 0x7fff == 0 => ops(Set::NONE, Set::NONE),  // sync
        0x10 if word >> 16 & 0x3ff == 0 && sa == 0 => ops(Set::HI, rd), // mfhi
        0x12 if word >> 16 & 0x3ff == 0 && sa == 0 => ops(Set::LO, rd), // mflo
        // the same for the other accumulators of the DSP extension
        0x10 | 0x12 if word >> 16 & 31 == 0 && sa == 0 => ops(Set::NONE, rd),
        0x11 if word >> 16 & 31 == 0 && sa == 0 => ops(rs, if word >> 11 & 31 == 0 { Set::HI } else { Set::NONE }),
        0x13 if word >> 16 & 31 == 0 && sa == 0 => ops(rs, if word >> 11 & 31 == 0 { Set::LO } else { Set::NONE }),
        0x14 | 0x17 if is_64 && sa == 0 => ops(rs.and(rt), rd), // dsllv dsrav
        0x16 if is_64 && sa < 2 => ops(rs.and(rt), rd),         // dsrlv drotrv
        // mult multu
        0x18 | 0x19 if sa == 0 => ops(rs.and(rt), if word >> 11 & 31 == 0 { HI_LO } else { rd.and(HI_LO) }),
        0x1a | 0x1b if word >> 6 & 0x3ff == 0 => ops(rs.and(rt), HI_LO), // div divu
        0x1c..=0x1f if is_64 && word >> 6 & 0x3ff == 0 => ops(rs.and(rt), HI_LO), // dmult dmultu ddiv ddivu
        // add addu sub subu and or xor nor slt sltu
        0x20..=0x27 | 0x2a | 0x2b if sa == 0 => three(word),
        0x2c..=0x2f if is_64 && sa == 0 => three(word), // dadd daddu dsub dsubu
        0x30..=0x34 | 0x36 => ops(rs.and(rt), Set::NONE), // tge tgeu tlt tltu teq tne
        0x38 | 0x3b | 0x3c | 0x3f if is_64 && word >> 21 & 31 == 0 => ops(rt, rd), // dsll dsra dsll32 dsra32
        0x3a | 0x3e if is_64 && word >> 22 & 15 == 0 => ops(rt, rd), // dsrl drotr dsrl32 drotr32
        _ => None,
    }
}

/// An operation on two registers; the result of some does not depend on them.
fn three(word: u32) -> Option<Operands> {
    let (s, t, rd) = (word >> 21 & 31, word >> 16 & 31, Set::gpr(word >> 11));
    let cancels = s == t && matches!(word & 0x3f, 0x22 | 0x23 | 0x26 | 0x2a | 0x2b | 0x2e | 0x2f);
    ops(if cancels { Set::NONE } else { Set::gpr(s).and(Set::gpr(t)) }, rd)
}

fn special2(is_64: bool, word: u32) -> Option<Operands> {
    let (rs, rt, rd) = (Set::gpr(word >> 21), Set::gpr(word >> 16), Set::gpr(word >> 11));
    // Another accumulator of the DSP extension.
    let own = word >> 11 & 3 != 0;
    match word & 0x3f {
        0x00 | 0x01 | 0x04 | 0x05 if word >> 6 & 31 == 0 => {
            let acc = if own { Set::NONE } else { HI_LO };
            ops(rs.and(rt).and(acc), acc) // madd maddu msub msubu
        }
        0x02 if word >> 6 & 31 == 0 => ops(rs.and(rt), rd.and(HI_LO)), // mul leaves hi and lo undefined
        0x20 | 0x21 if word >> 6 & 31 == 0 => ops(rs, rd),             // clz clo
        0x24 | 0x25 if is_64 && word >> 6 & 31 == 0 => ops(rs, rd),    // dclz dclo
        0x3f => ops(Set::NONE, Set::NONE),                             // sdbbp
        _ => None,
    }
}

fn special3(is_64: bool, word: u32) -> Option<Operands> {
    let (rs, rt, rd) = (Set::gpr(word >> 21), Set::gpr(word >> 16), Set::gpr(word >> 11));
    let sa = word >> 6 & 31;
    match word & 0x3f {
        0x00 => ops(rs, rt),                                       // ext
        0x04 => ops(rs.and(rt), rt),                               // ins
        0x01..=0x03 if is_64 => ops(rs, rt),                       // dextm dextu dext
        0x05..=0x07 if is_64 => ops(rs.and(rt), rt),               // dinsm dinsu dins
        0x20 if matches!(sa, 0x02 | 0x10 | 0x18) => ops(rt, rd),   // wsbh seb seh
        0x24 if is_64 && matches!(sa, 0x02 | 0x05) => ops(rt, rd), // dsbh dshd
        0x3b if word >> 21 & 31 == 0 => ops(Set::NONE, rt),        // rdhwr
        // ll and so on for the kernel's view of user space (EVA): lbue lhue lbe lhe lle lwe
        0x28 | 0x29 | 0x2c..=0x2f => ops(rs, rt),
        0x19 | 0x1a => ops(rs.and(rt), rt), // lwle lwre
        // swle swre cachee sbe she sce swe prefe
        0x1b..=0x1d | 0x1f | 0x21..=0x23 => ops(rs.and(rt), Set::NONE),
        0x1e => ops(rs.and(rt), rt), // sce
        // The DSP extension: every register field may be read and written.
        0x0a | 0x0c | 0x10..=0x14 | 0x18 | 0x30 | 0x31 | 0x38 => {
            ops(rs.and(rt).and(rd).and(HI_LO), rt.and(rd).and(HI_LO))
        }
        _ => None,
    }
}

fn cop0(word: u32) -> Option<Operands> {
    let rt = Set::gpr(word >> 16);
    match word >> 21 & 31 {
        0x00 | 0x01 => ops(Set::NONE, rt),            // mfc0 dmfc0
        0x04 | 0x05 => ops(rt, Set::NONE),            // mtc0 dmtc0
        0x08 => ops(Set::NONE, Set::NONE),            // bc0f bc0t (MIPS I)
        0x0a => ops(Set::NONE, Set::gpr(word >> 11)), // rdpgpr
        0x0e => ops(rt, Set::NONE),                   // wrpgpr
        0x0b => ops(Set::NONE, rt),                   // di ei and those of the MT extension
        0x10..=0x1f => ops(Set::NONE, Set::NONE),     // tlbp tlbr tlbwi tlbwr eret deret wait
        _ => None,
    }
}

/// Does a floating point format take 64 bits?
fn is_wide(fmt: u32) -> bool {
    matches!(fmt, 0x11 | 0x15 | 0x16) // d, l, ps
}

fn cop1(float: Float, word: u32) -> Option<Operands> {
    let rt = Set::gpr(word >> 16);
    let (ft, fs, fd) = (word >> 16 & 31, word >> 11 & 31, word >> 6 & 31);
    let fmt = word >> 21 & 31;
    match fmt {
        0x00 => ops(float.reg(fs, false), rt), // mfc1
        0x01 => ops(float.reg(fs, true), rt),  // dmfc1
        0x02 => ops(Set::NONE, rt),            // cfc1
        0x03 => ops(float.reg(fs, true), rt),  // mfhc1
        0x04 => ops(rt, float.reg(fs, false)), // mtc1
        0x05 => ops(rt, float.reg(fs, true)),  // dmtc1
        0x06 => ops(rt, Set::NONE),            // ctc1
        // mthc1: the lower half stays
        0x07 => ops(rt.and(float.reg(fs, true)), float.reg(fs, true)),
        // bc1f bc1t bc1fl bc1tl, bc1any2, bc1any4 (MIPS-3D)
        0x08..=0x0a => ops(Set::NONE, Set::NONE),
        // bz.v bnz.v and so on: vector registers are the floating point ones
        0x0b | 0x0f | 0x18..=0x1f => ops(float.reg(ft, true), Set::NONE),
        0x10 | 0x11 | 0x14..=0x16 => {
            let wide = is_wide(fmt);
            let (t, s) = (float.reg(ft, wide), float.reg(fs, wide));
            match word & 0x3f {
                0x00..=0x03 => ops(s.and(t), float.reg(fd, wide)), // add sub mul div
                0x04..=0x07 | 0x15 | 0x16 => ops(s, float.reg(fd, wide)), // sqrt abs mov neg recip rsqrt
                // movf movt, movz movn: keep fd where the condition does not hold
                0x11 => ops(s.and(float.reg(fd, wide)), float.reg(fd, wide)),
                0x12 | 0x13 => ops(s.and(rt).and(float.reg(fd, wide)), float.reg(fd, wide)),
                0x08..=0x0b | 0x21 | 0x25 => ops(s, float.reg(fd, true)), // round.l trunc.l ceil.l floor.l cvt.d cvt.l
                0x0c..=0x0f | 0x20 | 0x24 => ops(s, float.reg(fd, false)), // round.w trunc.w ceil.w floor.w cvt.s cvt.w
                0x26 => ops(float.reg(fs, false).and(float.reg(ft, false)), float.reg(fd, true)), // cvt.ps.s
                0x28 => ops(s, float.reg(fd, false)),                     // cvt.s.pl
                0x2c..=0x2f => ops(s.and(t), float.reg(fd, wide)),        // pll plu pul puu
                // addr.ps mulr.ps cvt.pw.ps recip2 recip1 rsqrt1 rsqrt2 (MIPS-3D)
                0x18 | 0x1a | 0x1c..=0x1f => ops(s.and(t), float.reg(fd, wide)),
                0x30..=0x3f => ops(s.and(t), Set::NONE), // c.cond
                _ => None,
            }
        }
        _ => None,
    }
}

fn cop1x(float: Float, word: u32) -> Option<Operands> {
    let (rs, rt) = (Set::gpr(word >> 21), Set::gpr(word >> 16));
    let (fr, ft, fs, fd) = (word >> 21 & 31, word >> 16 & 31, word >> 11 & 31, word >> 6 & 31);
    match word & 0x3f {
        0x00 => ops(rs.and(rt), float.reg(fd, false)),                // lwxc1
        0x01 | 0x05 => ops(rs.and(rt), float.reg(fd, true)),          // ldxc1 luxc1
        0x08 => ops(rs.and(rt).and(float.reg(fs, false)), Set::NONE), // swxc1
        0x09 | 0x0d => ops(rs.and(rt).and(float.reg(fs, true)), Set::NONE), // sdxc1 suxc1
        0x0f => ops(rs.and(rt), Set::NONE),                           // prefx
        0x1e => ops(rs.and(float.reg(fs, true)).and(float.reg(ft, true)), float.reg(fd, true)), // alnv.ps
        // madd msub nmadd nmsub, single, double, paired single
        op @ (0x20..=0x22 | 0x26 | 0x28..=0x2a | 0x2e | 0x30..=0x32 | 0x36 | 0x38..=0x3a | 0x3e) => {
            let wide = op & 7 != 0;
            let sources = float.reg(fr, wide).and(float.reg(ft, wide)).and(float.reg(fs, wide));
            ops(sources, float.reg(fd, wide))
        }
        _ => None,
    }
}

/// The vector extension: its registers hold the floating point ones, and every field may name one that is read and
/// written. Some forms have a general register in a field.
fn msa(float: Float, word: u32) -> Option<Operands> {
    let all =
        [word >> 16, word >> 11, word >> 6].into_iter().fold(Set::NONE, |set, n| set.and(float.reg(n & 31, true)));
    let general = Set::gpr(word >> 16).and(Set::gpr(word >> 11));
    // copy_s, copy_u and cfcmsa write a general register
    let written = if word & 0x3f == 0x19 { Set::gpr(word >> 6) } else { Set::NONE };
    ops(all.and(general), all.and(written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{format, string::String, vec::Vec};

    fn names(set: Set) -> String {
        let mut out = Vec::new();
        for n in 0..32 {
            if set.0 >> n & 1 == 1 {
                out.push(format!("${n}"));
            }
        }
        for n in 32..64 {
            if set.0 >> n & 1 == 1 {
                out.push(format!("$f{}", n - 32));
            }
        }
        if set.meets(Set::HI) {
            out.push("hi".into());
        }
        if set.meets(Set::LO) {
            out.push("lo".into());
        }
        out.join(" ")
    }

    #[test]
    fn reads_and_writes() {
        // word, 64-bit, reads, writes
        let rows: &[(u32, bool, &str, &str)] = &[
            (0x27bd_ffe0, false, "$29", "$29"),                 // addiu sp, sp, -32
            (0xafbf_001c, false, "$29 $31", ""),                // sw ra, 28(sp)
            (0x8fbf_001c, false, "$29", "$31"),                 // lw ra, 28(sp)
            (0x0000_0000, false, "", ""),                       // nop
            (0x0080_1025, false, "$4", "$2"),                   // move v0, a0
            (0x0044_1023, false, "$2 $4", "$2"),                // subu v0, v0, a0
            (0x0042_1026, false, "", "$2"),                     // xor v0, v0, v0
            (0x0085_100b, false, "$2 $4 $5", "$2"),             // movn v0, a0, a1
            (0x0085_0018, false, "$4 $5", "hi lo"),             // mult a0, a1
            (0x7085_1002, false, "$4 $5", "$2 hi lo"),          // mul v0, a0, a1
            (0x0000_1012, false, "lo", "$2"),                   // mflo v0
            (0x8882_0000, false, "$2 $4", "$2"),                // lwl v0, 0(a0)
            (0x4600_1080, false, "$f2 $f0", "$f2"),             // add.s f2, f2, f0
            (0x4620_1080, false, "$f0 $f1 $f2 $f3", "$f2 $f3"), // add.d f2, f2, f0
            (0x4620_1080, true, "$f0 $f2", "$f2"),              // the same with 64-bit registers
            (0xd7a0_0010, false, "$29", "$f0 $f1"),             // ldc1 f0, 16(sp)
            (0x7c03_e83b, false, "", "$3"),                     // rdhwr v1, $29
            (0x7c82_2800, false, "$4", "$2"),                   // ext v0, a0, 0, 6
            (0x7c82_2804, false, "$2 $4", "$2"),                // ins v0, a0, 0, 6
            (0x0c00_0000, false, "", "$31"),                    // jal
            (0x0320_f809, false, "$25", "$31"),                 // jalr t9
            (0x03e0_0008, false, "$31", ""),                    // jr ra
            (0xdfbf_0018, true, "$29", "$31"),                  // ld ra, 24(sp)
            (0xe082_0000, false, "$2 $4", "$2"),                // sc v0, 0(a0)
        ];
        for &(word, is_64, reads, writes) in rows {
            let o = operands(is_64, word).unwrap_or_else(|| panic!("{word:08x} is an instruction"));
            let sorted = |s: &str| {
                let mut parts: Vec<String> = s.split_whitespace().map(String::from).collect();
                parts.sort();
                parts
            };
            assert_eq!(sorted(&names(o.reads)), sorted(reads), "reads of {word:08x}");
            assert_eq!(sorted(&names(o.writes)), sorted(writes), "writes of {word:08x}");
        }
        // ld, sd and lwu are none in 32-bit code; release 6 forms and coprocessor 2 are none at all.
        for word in [0xdfbf_0018u32, 0xffbf_0018, 0x9c82_0000] {
            assert_eq!(operands(false, word), None, "{word:08x}");
        }
        for word in [0xc800_0000u32, 0x4800_0000, 0xd880_0001, 0x0000_0005, 0xffff_ffff] {
            assert_eq!(operands(false, word), None, "{word:08x}");
        }
    }
}
