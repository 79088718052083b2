//! What MIPS instructions mean to the judge.
//!
//! All but the text comes from the back end's own tables: capstone tells nothing of the registers that an instruction
//! touches, refuses some instructions, and takes others for those of release 6.
//!
//! A branch and its delay slot are one instruction here, of eight bytes: what the slot does happens before control goes
//! elsewhere, and a call's return address is behind both. A branch whose slot is missing, or holds another branch, ends the
//! decoding.
//!
//! Registers are judged whole. O32 code takes pairs of floating point registers for a double.
//!
//! Source: *System V ABI, MIPS RISC Processor Supplement*, chapter 3 "Registers" and "Parameter Passing"; for n64,
//! *MIPSpro N32 ABI Handbook*, chapter 2 (n64 has the same registers).

use capstone::Capstone;
use capstone::arch::{self, BuildsCapstone as _, BuildsCapstoneEndian as _};
use std::collections::BTreeMap;
use tigerfix_arch_mips::constants::{Snapshot, Tracker, Use};
use tigerfix_arch_mips::flow::{Branch, Kind, classify};
use tigerfix_arch_mips::operands::{Operands, Set, operands};
use tigerfix_core::arch::Constants;
use tigerfix_core::decode::{Flow, Insn};
use tigerfix_core::field::Endian;

/// Caller-saved registers of O32, by bit. $gp is one of them; where all code shares one, that is noticed as any other
/// register that a caller expects to be left alone.
const NAMES_32: [&str; 40] = [
    "at", "v0", "v1", "a0", "a1", "a2", "a3", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9", "hi", "lo",
    "gp", // general purpose
    "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12", "f13", "f14", "f15", "f16", "f17",
    "f18", "f19",
];

/// Those of n64, where $gp belongs to the caller.
const NAMES_64: [&str; 43] = [
    "at", "v0", "v1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "t0", "t1", "t2", "t3", "t8", "t9", "hi", "lo",
    "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12", "f13", "f14", "f15", "f16", "f17",
    "f18", "f19", "f20", "f21", "f22", "f23",
];

/// A capstone for texts.
pub(super) fn capstone(is_64: bool, endian: Endian) -> capstone::CsResult<Capstone> {
    let mode = if is_64 { arch::mips::ArchMode::Mips64 } else { arch::mips::ArchMode::Mips32 };
    let order = if endian == Endian::Big { capstone::Endian::Big } else { capstone::Endian::Little };
    Capstone::new().mips().mode(mode).endian(order).build()
}

/// MIPS as the decoder needs it.
pub(super) struct Isa {
    is_64: bool,
    endian: Endian,
    return_registers: u64,
    argument_registers: u64,
}

/// One word of code.
#[derive(Clone, Copy)]
struct Word {
    addr: u64,
    word: u32,
    branch: Branch,
    effects: Operands,
}

impl Isa {
    pub(super) fn new(is_64: bool, endian: Endian) -> Isa {
        let names = if is_64 { &NAMES_64[..] } else { &NAMES_32 };
        let set = |of: &[&[&str]]| {
            let bits = of.iter().copied().flatten().filter_map(|n| names.iter().position(|a| a == n));
            bits.fold(0, |set, bit| set | 1 << bit)
        };
        // With all parts of a complex or long double result.
        let returned: &[&str] = if is_64 { &[] } else { &["f1", "f3"] };
        let return_registers = set(&[&["v0", "v1", "f0", "f2"], returned]);
        // With $t9, which holds the function's address; $gp, which lazy binding needs; and the static chain ($15).
        let passed: &[&str] = match is_64 {
            true => &["a4", "a5", "a6", "a7", "t3", "f16", "f17", "f18", "f19"],
            false => &["gp", "t7"],
        };
        let argument_registers = set(&[&["a0", "a1", "a2", "a3", "t9", "f12", "f13", "f14", "f15"], passed]);
        Isa { is_64, endian, return_registers, argument_registers }
    }

    fn word(&self, code: &[u8], addr: u64, at: usize) -> Option<Word> {
        let bytes: [u8; 4] = code.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let word = self.load(bytes);
        let effects = operands(self.is_64, word)?;
        Some(Word { addr: addr.wrapping_add(at as u64), word, branch: classify(word), effects })
    }

    /// A set of registers as bits of the names.
    fn bits(&self, set: Set) -> u64 {
        let all = set.0;
        let mut out = (all >> 1 & 0x7fff) as u64; // $1 to $15
        out |= ((all >> 24 & 3) as u64) << 15; // $24, $25
        out |= ((all >> 64 & 3) as u64) << 17; // hi, lo
        if self.is_64 {
            out |= ((all >> 32 & 0xff_ffff) as u64) << 19;
        } else {
            out |= ((all >> 28 & 1) as u64) << 19; // $gp
            out |= ((all >> 32 & 0xf_ffff) as u64) << 20;
        }
        out
    }

    /// Where control goes after `w`; `register` is the value of the register that it goes to, if that is known.
    fn flow(&self, w: &Word, register: Option<u64>) -> Flow {
        let target = w.branch.target(self.is_64, w.addr);
        match (w.branch.kind, target) {
            (Kind::Next, _) => Flow::Next,
            (Kind::Stop, _) => Flow::Stop,
            (Kind::ExceptionReturn, _) => Flow::Return,
            // A conditional call goes there or on, as a branch does; no compiler makes one.
            (Kind::Conditional, Some(t)) => Flow::Branch(t),
            // `bal` to the instruction behind it asks for the address only.
            (Kind::Always, Some(t)) if w.branch.is_call() && t == w.addr.wrapping_add(8) => Flow::Next,
            (Kind::Always, Some(t)) if w.branch.is_call() => Flow::Call(t),
            (Kind::Always, Some(t)) => Flow::Jump(t),
            (Kind::Register, _) if w.branch.is_return() => Flow::Return,
            (Kind::Register, _) => match (register, w.branch.is_call()) {
                (Some(t), true) => Flow::Call(t),
                (None, true) => Flow::CallIndirect,
                (Some(t), false) => Flow::Jump(t),
                (None, false) => Flow::JumpIndirect,
            },
            (Kind::Conditional | Kind::Always, None) => Flow::Stop,
        }
    }

    fn load(&self, bytes: [u8; 4]) -> u32 {
        if self.endian == Endian::Big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    fn text(&self, capstone: &Capstone, bytes: [u8; 4], addr: u64) -> String {
        match capstone.disasm_count(&bytes, addr, 1) {
            Ok(insns) if insns.len() == 1 => super::text(&insns[0]).replace('\t', " "),
            _ => plain_text(self.load(bytes)),
        }
    }
}

/// Instructions that capstone refuses.
fn plain_text(word: u32) -> String {
    let (rs, rt, rd, sel) = (word >> 21 & 31, word >> 16 & 31, word >> 11 & 31, word >> 6 & 7);
    let offset = word as u16 as i16;
    match (word >> 26, word & 0x3f) {
        (0x00, 0x0f) => format!("sync {}", word >> 6 & 31),
        (0x01, _) if rt == 0x1f => format!("synci {offset}(${rs})"),
        (0x1f, 0x3b) => format!("rdhwr ${rt}, ${rd}, {sel}"),
        (0x33, _) => format!("pref {rt}, {offset}(${rs})"),
        (0x2f, _) => format!("cache {rt}, {offset}(${rs})"),
        _ => format!(".word {word:#010x}"),
    }
}

/// The likeliest of the addresses that an instruction uses.
#[derive(Default)]
struct Refers(Option<u64>);

impl Refers {
    fn offer(&mut self, usage: Use, to: u64) {
        // What an entry of the GOT holds says more than where the entry is.
        if self.0.is_none() || usage == Use::Content {
            self.0 = Some(to);
        }
    }
    fn access(&mut self, at: Option<u64>) {
        self.0 = self.0.or(at);
    }
}

impl super::Isa for Isa {
    fn decode(&self, _: &Capstone, code: &[u8], addr: u64, constants: &Constants<'_>) -> Vec<Insn> {
        let mut insns = Vec::new();
        let mut tracker = Tracker::new(self.is_64, constants);
        tracker.enter(addr);
        // What is known where a branch forward leads.
        let mut joins: BTreeMap<u64, Snapshot> = BTreeMap::new();
        let mut falls = true;
        let mut at = 0;
        while let Some(first) = self.word(code, addr, at) {
            let slot = match first.branch.has_delay_slot() {
                true => match self.word(code, addr, at + 4) {
                    Some(s) if !s.branch.has_delay_slot() => Some(s),
                    _ => break,
                },
                false => None,
            };
            while let Some((&from, _)) = joins.first_key_value()
                && from <= first.addr
            {
                let Some((_, known)) = joins.pop_first() else { break };
                if from == first.addr {
                    tracker.join(&known, falls);
                }
            }
            let mut refers = Refers::default();
            let register = tracker.value(first.branch.register);
            let register = register.filter(|_| first.branch.kind == Kind::Register);
            let flow = self.flow(&first, register);
            refers.access(tracker.access(first.word));
            tracker.step(first.addr, first.word, &mut |usage, to| refers.offer(usage, to));
            let (mut reads, mut writes) = (self.bits(first.effects.reads), self.bits(first.effects.writes));
            let mut len = 4;
            if let Some(s) = slot {
                refers.access(tracker.access(s.word));
                tracker.step(s.addr, s.word, &mut |usage, to| refers.offer(usage, to));
                reads |= self.bits(s.effects.reads);
                writes |= self.bits(s.effects.writes);
                if first.branch.likely {
                    // Executed only if it is taken: what it writes may keep its value.
                    reads |= self.bits(s.effects.writes);
                }
                len = 8;
            }
            match flow {
                Flow::Branch(to) | Flow::Jump(to) if to > first.addr => {
                    let here = tracker.snapshot();
                    joins.entry(to).and_modify(|known| known.merge(&here)).or_insert(here);
                }
                Flow::Call(_) | Flow::CallIndirect => tracker.called(),
                _ => {}
            }
            falls = !matches!(flow, Flow::Jump(_) | Flow::JumpIndirect | Flow::Return | Flow::Stop);
            let refers = refers.0;
            insns.push(Insn { addr: first.addr, len: len as u8, flow, refers, reads, writes, table: None });
            at += len;
        }
        insns
    }

    fn texts(&self, capstone: &Capstone, code: &[u8], insns: &[Insn], with: &mut dyn FnMut(&Insn, &str)) {
        let Some(first) = insns.first() else { return };
        for insn in insns {
            let at = insn.addr.wrapping_sub(first.addr) as usize;
            let Some(code) = code.get(at..) else { return };
            let (words, _) = code.as_chunks::<4>();
            let words = words.iter().take(usize::from(insn.len / 4)).zip((insn.addr..).step_by(4));
            let texts: Vec<String> = words.map(|(w, addr)| self.text(capstone, *w, addr)).collect();
            with(insn, &texts.join("; "));
        }
    }

    fn data(&self, code: &[u8]) -> (usize, String) {
        match code.first_chunk::<4>() {
            Some(b) => {
                let word = self.load(*b);
                let known = operands(self.is_64, word).is_some();
                (4, if known { plain_text(word) } else { format!(".word {word:#010x}") })
            }
            None => (1, code.first().map_or_else(String::new, |b| format!(".byte {b:#04x}"))),
        }
    }

    fn volatile_names(&self) -> &'static [&'static str] {
        if self.is_64 { &NAMES_64 } else { &NAMES_32 }
    }

    fn return_registers(&self) -> u64 {
        self.return_registers
    }

    fn argument_registers(&self) -> u64 {
        self.argument_registers
    }
}

#[cfg(test)]
mod tests {
    use crate::decoder::CapstoneDecoder;
    use tigerfix_core::arch::Constants;
    use tigerfix_core::decode::{Decoder, Flow, Insn};
    use tigerfix_core::field::Endian;

    const AT: u64 = 0x40_1000;

    fn decode_with(words: &[u32], is_64: bool, constants: &Constants<'_>) -> Vec<Insn> {
        let decode = |endian: Endian| {
            let order = |w: &u32| if endian == Endian::Big { w.to_be_bytes() } else { w.to_le_bytes() };
            let code: Vec<u8> = words.iter().flat_map(order).collect();
            CapstoneDecoder::mips(is_64, endian).decode(&code, AT, constants)
        };
        let (big, little) = (decode(Endian::Big), decode(Endian::Little));
        assert_eq!(format!("{big:?}"), format!("{little:?}"));
        big
    }

    fn decode(words: &[u32]) -> Vec<Insn> {
        decode_with(words, false, &Constants::NONE)
    }

    fn texts(words: &[u32]) -> Vec<String> {
        let code: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        let mut out = Vec::new();
        let with = &mut |_: &Insn, text: &str| out.push(text.trim().into());
        CapstoneDecoder::mips(false, Endian::Big).texts(&code, &decode(words), with);
        out
    }

    fn names(is_64: bool, set: u64) -> String {
        let all = CapstoneDecoder::mips(is_64, Endian::Big).volatile_names();
        let named: Vec<&str> = (0..all.len()).filter(|i| set >> i & 1 == 1).map(|i| all[i]).collect();
        named.join(" ")
    }

    #[test]
    fn a_branch_and_its_slot_are_one() {
        let rows: &[(&[u32], &str, u8, Flow)] = &[
            (&[0x0810_0800, 0], "j 0x402000; nop", 8, Flow::Jump(0x40_2000)),
            (&[0x0c10_0800, 0x0000_2025], "jal 0x402000; move $a0, $zero", 8, Flow::Call(0x40_2000)),
            (&[0x1000_ffff, 0], "b 0x401000; nop", 8, Flow::Jump(AT)),
            (&[0x1040_0003, 0], "beqz $v0, 0x401010; nop", 8, Flow::Branch(0x40_1010)),
            (&[0x5040_0003, 0], "beql $v0, $zero, 0x401010; nop", 8, Flow::Branch(0x40_1010)),
            (&[0x0411_0003, 0], "bal 0x401010; nop", 8, Flow::Call(0x40_1010)),
            (&[0x0411_0001, 0], "bal 0x401008; nop", 8, Flow::Next),
            (&[0x03e0_0008, 0x27bd_0020], "jr $ra; addiu $sp, $sp, 0x20", 8, Flow::Return),
            (&[0x0320_f809, 0], "jalr $t9; nop", 8, Flow::CallIndirect),
            (&[0x0040_0008, 0], "jr $v0; nop", 8, Flow::JumpIndirect),
            (&[0x0000_000d], "break", 4, Flow::Stop),
            (&[0x0000_000c], "syscall", 4, Flow::Next),
            (&[0x7c03_e83b], "rdhwr $v1, $29", 4, Flow::Next),
            (&[0x0000_000f], "sync", 4, Flow::Next),
        ];
        for (words, text, len, flow) in rows {
            let all = decode(words);
            assert_eq!(all.len(), 1, "{text}: {all:?}");
            assert_eq!((all[0].len, all[0].flow), (*len, *flow), "{text}");
            assert_eq!(texts(words), [*text]);
        }
    }

    #[test]
    fn what_ends_the_decoding() {
        let lens = |words: &[u32]| decode(words).iter().map(|i| i.len).collect::<Vec<_>>();
        assert_eq!(lens(&[0, 0x0c10_0800]), [4], "no slot");
        assert_eq!(lens(&[0, 0x0c10_0800, 0x03e0_0008, 0]), [4], "a branch in a slot");
        assert_eq!(lens(&[0, 0xffff_ffff, 0]), [4], "no instruction");
        assert_eq!(lens(&[0, 0x0c10_0800, 0xffff_ffff]), [4], "none in a slot");
        let odd = CapstoneDecoder::mips(false, Endian::Big).decode(&[0, 0, 0, 0, 0, 0], AT, &Constants::NONE);
        assert_eq!(odd.len(), 1);
        assert!(decode(&[]).is_empty());
    }

    #[test]
    fn registers_of_both() {
        let rows: &[(&[u32], bool, &str, &str)] = &[
            (&[0x0c10_0800, 0x0080_1025], false, "a0", "v0"), // jal; move v0, a0
            (&[0x0320_f809, 0x2404_0001], false, "t9", "a0"), // jalr t9; li a0, 1
            (&[0x1040_0003, 0x0085_1021], false, "v0 a0 a1", "v0"), // beqz v0; addu v0, a0, a1
            (&[0x5060_0003, 0x0085_1021], false, "v0 v1 a0 a1", "v0"), // beqzl v1: the slot may not run
            (&[0x0085_0018], false, "a0 a1", "hi lo"),        // mult a0, a1
            (&[0x8f99_8020], false, "gp", "t9"),              // lw t9, -32736(gp)
            (&[0x8f99_8020], true, "", "t9"),                 // the same in n64, where gp is the caller's
            (&[0x0110_4021], true, "a4", "a4"),               // addu $8, $8, $16
            (&[0x4620_1080], false, "f0 f1 f2 f3", "f2 f3"),  // add.d f2, f2, f0
            (&[0x4620_1080], true, "f0 f2", "f2"),
            (&[0x4600_b500], false, "", ""), // add.s f20, f22, f0: see below
        ];
        for (words, is_64, reads, writes) in &rows[..rows.len() - 1] {
            let all = decode_with(words, *is_64, &Constants::NONE);
            assert_eq!(
                (names(*is_64, all[0].reads).as_str(), names(*is_64, all[0].writes).as_str()),
                (*reads, *writes)
            );
        }
        assert_eq!(names(false, decode(&[0x4600_b500])[0].reads), "f0");
        assert_eq!(names(true, decode_with(&[0x4600_b500], true, &Constants::NONE)[0].reads), "f0 f22");
        for is_64 in [false, true] {
            let d = CapstoneDecoder::mips(is_64, Endian::Big);
            assert!(d.volatile_names().len() <= 64);
            assert_eq!(d.return_registers().count_ones(), if is_64 { 4 } else { 6 });
            assert_eq!(d.argument_registers().count_ones(), if is_64 { 18 } else { 11 });
        }
    }

    #[test]
    fn addresses_from_several_instructions() {
        let word = |at: u64| match at {
            0x42_0010 => Some(0x40_8000u64),
            0x42_0014 => Some(0x41_0000),
            _ => None,
        };
        let constants = Constants { gp: Some(0x42_7ff0), word: &word };
        let refers = |words: &[u32]| {
            decode_with(words, false, &constants).iter().map(|i| (i.flow, i.refers)).collect::<Vec<_>>()
        };
        // lui v0, 0x41; addiu a0, v0, -4; lw v1, 4(v0)
        assert_eq!(
            refers(&[0x3c02_0041, 0x2444_fffc, 0x8c43_0004]),
            [(Flow::Next, None), (Flow::Next, Some(0x40_fffc)), (Flow::Next, Some(0x41_0004))]
        );
        // lw t9, -32736(gp); jalr t9; nop
        assert_eq!(
            refers(&[0x8f99_8020, 0x0320_f809, 0]),
            [(Flow::Next, Some(0x40_8000)), (Flow::Call(0x40_8000), None)]
        );
        // lw t9, -32732(gp); addiu t9, t9, 0x20; jr t9; nop
        assert_eq!(
            refers(&[0x8f99_8024, 0x2739_0020, 0x0320_0008, 0]),
            [(Flow::Next, Some(0x41_0000)), (Flow::Next, Some(0x41_0020)), (Flow::Jump(0x41_0020), None)]
        );
        // The call leaves nothing of t9: lw t9; jalr t9; nop; jalr t9; nop
        assert_eq!(refers(&[0x8f99_8020, 0x0320_f809, 0, 0x0320_f809, 0])[2].0, Flow::CallIndirect);
        // lui v0; beqz a0, 1f; nop; lw v0, 0(a1); jr ra; nop; 1: addiu a0, v0, 8: the lui reaches it
        let branchy = [0x3c02_0041, 0x1080_0004, 0, 0x8ca2_0000, 0x03e0_0008, 0, 0x2444_0008];
        assert_eq!(refers(&branchy).last().map(|r| r.1), Some(Some(0x41_0008)));
        // A local variable and a small number are no addresses: addiu a0, sp, 16; li v0, 1
        assert_eq!(refers(&[0x27a4_0010, 0x2402_0001]), [(Flow::Next, None), (Flow::Next, None)]);
    }

    #[test]
    fn disassembly_shows_single_lines() {
        let d = CapstoneDecoder::mips(false, Endian::Big);
        let code: Vec<u8> =
            [0x0c10_0800u32, 0, 0xffff_ffff, 0x03e0_0008].iter().flat_map(|w| w.to_be_bytes()).collect();
        let lines = d.disassemble(&[&code[..], &[1, 2]].concat(), AT);
        let texts: Vec<String> = lines.iter().map(|l| format!("{:x} {}", l.addr, l.text)).collect();
        assert_eq!(
            texts,
            [
                "401000 jal 0x402000",
                "401004 nop",
                "401008 .word 0xffffffff",
                "40100c jr $ra",
                "401010 .byte 0x01",
                "401011 .byte 0x02"
            ]
        );
    }
}
