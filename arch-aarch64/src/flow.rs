//! Where control goes, and what a single instruction refers to.
//!
//! Odd in this architecture: nothing. An instruction is one word, displacements count from it, and a branch takes effect at
//! once.
//!
//! Source: Arm ARM, C4.1 "A64 instruction set encoding": "Branches, exception generating and system instructions", "Load
//! register (literal)", "PC-rel. addressing".

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the next one (also after a call to the kernel).
    Next,
    /// There or to the next one.
    Conditional(u64),
    /// There.
    Always(u64),
    /// There, and back.
    Call(u64),
    /// To where a register points.
    Register,
    /// To where a register points, and back.
    CallRegister,
    /// Back to the caller, or to interrupted code.
    Return,
    /// Nowhere: a breakpoint, or no instruction.
    Stop,
}

/// `width` bits from `lsb` on, sign-extended.
pub(crate) fn signed(word: u32, lsb: u32, width: u32) -> i64 {
    i64::from((word << (32 - lsb - width)) as i32 >> (32 - width))
}

/// Where control goes after the instruction `word` at `at`.
#[must_use]
pub fn classify(word: u32, at: u64) -> Kind {
    let target = || direct(word, at).unwrap_or(at);
    match word >> 24 {
        0x14..=0x17 => Kind::Always(target()), // b
        0x94..=0x97 => Kind::Call(target()),   // bl
        // b.cond, cbz, cbnz, tbz, tbnz, cb<cc>
        0x54 | 0x34..=0x37 | 0xb4..=0xb7 | 0x74 | 0x75 | 0xf4 | 0xf5 => Kind::Conditional(target()),
        0x55 => Kind::Return, // retaasppc, retabsppc
        0xd6 | 0xd7 => match word >> 21 & 7 {
            // br, blr, ret, eret, drps; braa and blraa, which take a second register
            0 => Kind::Register,
            1 => Kind::CallRegister,
            _ => Kind::Return,
        },
        // hlt; brk. svc and its kin go on; dcps1 to 3 don't.
        0xd4 if matches!(word >> 21 & 7, 1 | 2 | 5) => Kind::Stop,
        0 if word >> 16 == 0 => Kind::Stop, // udf
        _ => Kind::Next,
    }
}

/// Where a branch, `adr`, or load of a literal leads.
#[must_use]
pub fn direct(word: u32, at: u64) -> Option<u64> {
    let to = |offset: i64| Some(at.wrapping_add_signed(offset));
    match word >> 24 {
        0x14..=0x17 | 0x94..=0x97 => to(4 * signed(word, 0, 26)), // b, bl
        0x54 | 0x34 | 0x35 | 0xb4 | 0xb5 => to(4 * signed(word, 5, 19)), // b.cond, bc.cond; cbz, cbnz
        0x36 | 0x37 | 0xb6 | 0xb7 => to(4 * signed(word, 5, 14)), // tbz, tbnz
        0x74 | 0x75 | 0xf4 | 0xf5 => to(4 * signed(word, 5, 9)),  // cb<cc>, cbb<cc>, cbh<cc>
        // ldr, ldrsw, prfm of a literal
        0x18 | 0x1c | 0x58 | 0x5c | 0x98 | 0x9c | 0xd8 => to(4 * signed(word, 5, 19)),
        0x10 | 0x30 | 0x50 | 0x70 => to(signed(word, 5, 19) << 2 | i64::from(word >> 29 & 3)), // adr
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trampoline::tests::text;

    #[test]
    fn each_kind() {
        const AT: u64 = 0x40_1000;
        let rows: &[(u32, &str, Kind)] = &[
            (0x1400_0400, "b #0x402000", Kind::Always(0x40_2000)),
            (0x97ff_fc00, "bl #0x400000", Kind::Call(0x40_0000)),
            (0x5400_8001, "b.ne #0x402000", Kind::Conditional(0x40_2000)),
            (0x34ff_8001, "cbz w1, #0x400000", Kind::Conditional(0x40_0000)),
            (0xb500_8001, "cbnz x1, #0x402000", Kind::Conditional(0x40_2000)),
            (0x3600_8001, "tbz w1, #0, #0x402000", Kind::Conditional(0x40_2000)),
            (0xb707_8001, "tbnz x1, #0x20, #0x400000", Kind::Conditional(0x40_0000)),
            (0xd61f_0200, "br x16", Kind::Register),
            (0xd71f_0a11, "braa x16, x17", Kind::Register),
            (0xd61f_0a1f, "braaz x16", Kind::Register),
            (0xd63f_0060, "blr x3", Kind::CallRegister),
            (0xd73f_0861, "blraa x3, x1", Kind::CallRegister),
            (0xd63f_0c7f, "blrabz x3", Kind::CallRegister),
            (0xd65f_03c0, "ret", Kind::Return),
            (0xd65f_0020, "ret x1", Kind::Return),
            (0xd65f_0bff, "retaa", Kind::Return),
            (0xd65f_0fff, "retab", Kind::Return),
            (0xd69f_03e0, "eret", Kind::Return),
            (0xd420_0020, "brk #1", Kind::Stop),
            (0xd440_0000, "hlt #0", Kind::Stop),
            (0x0000_0000, "udf #0", Kind::Stop),
            (0xd400_0001, "svc #0", Kind::Next),
            (0xd503_201f, "nop", Kind::Next),
            (0xd503_233f, "paciasp", Kind::Next),
            (0x1000_8001, "adr x1, #0x402000", Kind::Next),
            (0x9000_0001, "adrp x1, #0x401000", Kind::Next),
            (0x5800_8001, "ldr x1, #0x402000", Kind::Next),
            (0xa9bf_7bfd, "stp x29, x30, [sp, #-0x10]!", Kind::Next),
            (0xd53b_d041, "mrs x1, tpidr_el0", Kind::Next),
        ];
        for &(word, asm, kind) in rows {
            assert_eq!(text(&word.to_le_bytes(), AT), asm);
            assert_eq!(classify(word, AT), kind, "{asm}");
        }
        // Younger than the disassembler: cbgt w1, w2 and cbgt x1, #2, both to 0x401008; retaasppc.
        assert_eq!(classify(0x7402_0041, AT), Kind::Conditional(0x40_1008));
        assert_eq!(classify(0xf501_0041, AT), Kind::Conditional(0x40_1008));
        assert_eq!(classify(0x5500_001f, AT), Kind::Return);
    }
}
