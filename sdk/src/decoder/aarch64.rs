//! What AArch64 instructions mean to the judge.
//!
//! All but the text comes from the back end's own tables. capstone's are wrong about the registers of comparisons, shifts and
//! atomic accesses, and its bindings turn system registers that they don't know into enumerations without such a value.
//!
//! Registers are judged whole. Of v8 to v15 a function has to keep the lower half, so they count as kept; nothing that compilers
//! do depends on the upper one.
//!
//! Source: AAPCS64, 6.1 "Machine registers" and 6.8 "Parameter passing"; for predicates 6.1.3 "Scalable predicate registers".

use capstone::Capstone;
use capstone::arch::{self, BuildsCapstone as _};
use std::collections::BTreeMap;
use tigerfix_arch_aarch64::constants::Tracker;
use tigerfix_arch_aarch64::flow::{Kind, classify};
use tigerfix_arch_aarch64::operands::{Set, operands};
use tigerfix_core::arch::Constants;
use tigerfix_core::decode::{Flow, Insn};

/// Caller-saved registers, by bit. x16 and x17 are the linker's, x18 is the platform's or a static chain.
const NAMES: [&str; 60] = [
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
    "x18", "x30", // general purpose
    "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24",
    "v25", "v26", "v27", "v28", "v29", "v30", "v31", // vector
    "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", "p14",
    "p15", // predicate, SVE
];

/// A capstone for texts.
pub(super) fn capstone() -> capstone::CsResult<Capstone> {
    Capstone::new().arm64().mode(arch::arm64::ArchMode::Arm).build()
}

/// AArch64 as the decoder needs it.
pub(super) struct Isa;

/// A set of registers as bits of the names.
fn bits(set: Set) -> u64 {
    let field = |from: u32, count: u32| (set.0 >> from) as u64 & ((1 << count) - 1);
    field(0, 19) | field(30, 1) << 19 | field(32, 8) << 20 | field(48, 16) << 28 | field(64, 16) << 44
}

fn names(names: &[&str]) -> u64 {
    names.iter().filter_map(|n| NAMES.iter().position(|a| a == n)).fold(0, |set, bit| set | 1 << bit)
}

/// Where control goes; `register` is the value of the register that it goes to, if that is known.
fn flow(kind: Kind, register: Option<u64>) -> Flow {
    match (kind, register) {
        (Kind::Next, _) => Flow::Next,
        (Kind::Conditional(to), _) => Flow::Branch(to),
        (Kind::Always(to), _) | (Kind::Register, Some(to)) => Flow::Jump(to),
        (Kind::Call(to), _) | (Kind::CallRegister, Some(to)) => Flow::Call(to),
        (Kind::Register, None) => Flow::JumpIndirect,
        (Kind::CallRegister, None) => Flow::CallIndirect,
        (Kind::Return, _) => Flow::Return,
        (Kind::Stop, _) => Flow::Stop,
    }
}

impl super::Isa for Isa {
    fn decode(&self, capstone: &Capstone, code: &[u8], addr: u64, constants: &Constants<'_>) -> Vec<Insn> {
        let mut insns = Vec::new();
        let mut tracker = Tracker::default();
        // What is known where a branch forward leads.
        let mut joins: BTreeMap<u64, Tracker> = BTreeMap::new();
        let mut falls = true;
        let Ok(iter) = capstone.disasm_iter(code, addr) else { return insns };
        let mut iter = iter;
        while let Some(insn) = iter.next() {
            let (at, Some(bytes)) = (insn.address(), insn.bytes().first_chunk::<4>()) else { break };
            let word = u32::from_le_bytes(*bytes);
            let mut reached = falls;
            while let Some((&from, _)) = joins.first_key_value()
                && from <= at
            {
                let Some((_, known)) = joins.pop_first() else { break };
                if from == at {
                    tracker.join(&known, reached);
                    reached = true;
                }
            }
            if !reached {
                tracker.unreached();
            }
            let kind = classify(word, at);
            let flow = flow(kind, tracker.certain(word >> 5 & 31));
            let table = match flow {
                Flow::JumpIndirect => tracker.table(word >> 5 & 31).map(Box::new),
                _ => None,
            };
            let refers = tracker.step(word, at, constants);
            let effects = operands(word);
            let (reads, writes) = (bits(effects.reads), bits(effects.writes));
            // What a call does is for the judge to find out.
            let (reads, writes) = match kind {
                Kind::Call(_) => (0, 0),
                Kind::CallRegister => (reads, 0),
                _ => (reads, writes),
            };
            match flow {
                Flow::Branch(to) | Flow::Jump(to) if to > at => {
                    let here = tracker;
                    joins.entry(to).and_modify(|known| known.join(&here, true)).or_insert(here);
                }
                Flow::Call(_) | Flow::CallIndirect => tracker.called(),
                _ => {}
            }
            falls = !matches!(flow, Flow::Jump(_) | Flow::JumpIndirect | Flow::Return | Flow::Stop);
            insns.push(Insn { addr: at, len: 4, flow, refers, reads, writes, table });
        }
        insns
    }

    fn texts(&self, capstone: &Capstone, code: &[u8], insns: &[Insn], with: &mut dyn FnMut(&Insn, &str)) {
        super::texts_in_order(capstone, code, insns, with);
    }

    fn data(&self, code: &[u8]) -> (usize, String) {
        match code.first_chunk::<4>() {
            Some(b) => (4, format!(".word {:#010x}", u32::from_le_bytes(*b))),
            None => (1, code.first().map_or_else(String::new, |b| format!(".byte {b:#04x}"))),
        }
    }

    fn volatile_names(&self) -> &'static [&'static str] {
        &NAMES
    }

    /// With all parts of an aggregate of up to four floating point numbers.
    fn return_registers(&self) -> u64 {
        names(&["x0", "x1", "v0", "v1", "v2", "v3"])
    }

    /// With x8, the place of a large result, and x18, GCC's static chain.
    fn argument_registers(&self) -> u64 {
        names(&[
            "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x18", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7",
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::{NAMES, bits};
    use crate::decoder::CapstoneDecoder;
    use tigerfix_arch_aarch64::operands::Set;
    use tigerfix_core::arch::Constants;
    use tigerfix_core::decode::{Decoder, Flow, Insn};

    const AT: u64 = 0x40_1000;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn decode(words: &[u32]) -> Vec<Insn> {
        CapstoneDecoder::aarch64().decode(&bytes(words), AT, &Constants::NONE)
    }

    fn names(set: u64) -> String {
        let named: Vec<&str> = (0..NAMES.len()).filter(|i| set >> i & 1 == 1).map(|i| NAMES[i]).collect();
        named.join(" ")
    }

    #[test]
    fn where_control_goes() {
        let rows: &[(u32, &str, Flow)] = &[
            (0x1400_0400, "b #0x402000", Flow::Jump(0x40_2000)),
            (0x97ff_fc00, "bl #0x400000", Flow::Call(0x40_0000)),
            (0x5400_8001, "b.ne #0x402000", Flow::Branch(0x40_2000)),
            (0xb400_8001, "cbz x1, #0x402000", Flow::Branch(0x40_2000)),
            (0x3600_8001, "tbz w1, #0, #0x402000", Flow::Branch(0x40_2000)),
            (0xd63f_0060, "blr x3", Flow::CallIndirect),
            (0xd61f_0200, "br x16", Flow::JumpIndirect),
            (0xd65f_03c0, "ret", Flow::Return),
            (0xd65f_0bff, "retaa", Flow::Return),
            (0xd420_0000, "brk #0", Flow::Stop),
            (0x0000_0000, "udf #0", Flow::Stop),
            (0xd400_0001, "svc #0", Flow::Next),
            (0xd503_245f, "bti c", Flow::Next),
            (0xd503_233f, "paciasp", Flow::Next),
            (0xa9bf_7bfd, "stp x29, x30, [sp, #-0x10]!", Flow::Next),
        ];
        for (word, text, flow) in rows {
            let all = decode(&[*word]);
            assert_eq!(all.len(), 1, "{text}");
            let mut texts = Vec::new();
            let with = &mut |_: &Insn, text: &str| texts.push(text.trim().to_owned());
            CapstoneDecoder::aarch64().texts(&bytes(&[*word]), &all, with);
            assert_eq!((texts.as_slice(), all[0].len, all[0].flow), (&[(*text).to_owned()][..], 4, *flow));
        }
    }

    #[test]
    fn addresses_from_several_instructions() {
        let refers = |words: &[u32]| decode(words).iter().map(|i| (i.flow, i.refers)).collect::<Vec<_>>();
        // adrp x1; nop; add x1, x1, #0x20; ldr x2, [x1, #8]
        assert_eq!(
            refers(&[0xb000_0001, 0xd503_201f, 0x9100_8021, 0xf940_0422]).iter().map(|r| r.1).collect::<Vec<_>>(),
            [None, None, Some(0x40_2020), Some(0x40_2028)]
        );
        // adrp x3; add x3, x3, #0x20; blr x3; blr x3: the call leaves nothing of it
        let calls = refers(&[0xb000_0003, 0x9100_8063, 0xd63f_0060, 0xd63f_0060]);
        assert_eq!((calls[2].0, calls[3].0), (Flow::Call(0x40_2020), Flow::CallIndirect));
        // adrp x1; cbz x0, 1f; ldr x1, [x2]; ret; 1: add x1, x1, #0x20: the adrp reaches it
        let around = refers(&[0xb000_0001, 0xb400_0060, 0xf940_0041, 0xd65f_03c0, 0x9100_8021]);
        assert_eq!(around.last().map(|r| r.1), Some(Some(0x40_2020)));
        // The same without the ret: it may be the one or the other.
        let either = refers(&[0xb000_0001, 0xb400_0060, 0xf940_0041, 0xd503_201f, 0x9100_8021]);
        assert_eq!(either.last().map(|r| r.1), Some(None));
    }

    #[test]
    fn registers_read_and_written() {
        let rows: &[(u32, &str, &str)] = &[
            (0x8b03_0022, "x1 x3", "x2"),                // add x2, x1, x3
            (0x9400_0400, "", ""),                       // bl
            (0xd63f_0060, "x3", ""),                     // blr x3
            (0xd65f_03c0, "x30", ""),                    // ret
            (0xa8c1_7bfd, "", "x30"),                    // ldp x29, x30, [sp], #0x10
            (0xf940_1262, "", "x2"),                     // ldr x2, [x19, #0x20]
            (0x1e63_2822, "v1 v3", "v2"),                // fadd d2, d1, d3
            (0x1e72_2a30, "v17 v18", "v16"),             // fadd d16, d17, d18
            (0x1e6a_2928, "", ""),                       // fadd d8, d9, d10
            (0xd400_0001, "x0 x1 x2 x3 x4 x5 x8", "x0"), // svc #0
        ];
        for (word, reads, writes) in rows {
            let insn = &decode(&[*word])[0];
            assert_eq!((names(insn.reads).as_str(), names(insn.writes).as_str()), (*reads, *writes), "{word:#x}");
        }
        let d = CapstoneDecoder::aarch64();
        assert_eq!(names(d.return_registers()), "x0 x1 v0 v1 v2 v3");
        assert_eq!(names(d.argument_registers()), "x0 x1 x2 x3 x4 x5 x6 x7 x8 x18 v0 v1 v2 v3 v4 v5 v6 v7");
        assert_eq!(names(bits(Set(u128::MAX))), NAMES.join(" "));
        for (name, set) in [("x18", Set::x(18)), ("x30", Set::x(30)), ("v7", Set::v(7)), ("v16", Set::v(16))] {
            assert_eq!(names(bits(set)), name);
        }
        assert_eq!((names(bits(Set::v(31))), names(bits(Set::p(15)))), ("v31".into(), "p15".into()));
        assert_eq!(bits(Set::x(19).and(Set::x(29)).and(Set::v(8)).and(Set::v(15))), 0, "the caller's");
    }

    #[test]
    fn what_is_no_instruction() {
        assert_eq!(decode(&[0xd503_201f, 0xffff_ffff, 0xd503_201f]).len(), 1);
        assert!(decode(&[]).is_empty());
        let d = CapstoneDecoder::aarch64();
        assert_eq!(d.decode(&[0x1f, 0x20, 0x03, 0xd5, 0x1f], AT, &Constants::NONE).len(), 1, "cut off");
        let lines = d.disassemble(&[&bytes(&[0xd503_201f, 0xffff_ffff, 0xd65f_03c0])[..], &[1]].concat(), AT);
        let texts: Vec<String> = lines.iter().map(|l| format!("{:x} {}", l.addr, l.text)).collect();
        assert_eq!(texts, ["401000 nop", "401004 .word 0xffffffff", "401008 ret", "40100c .byte 0x01"]);
    }
}
