//! Register effects against a disassembler, over real machine code.

use capstone::prelude::*;
use object::{Object, ObjectSection, SectionKind};
use std::collections::{BTreeMap, BTreeSet};
use tigerfix_arch_aarch64::operands::{Set, operands};

/// Words of code of the C library and the mathematical one, each once.
fn words() -> BTreeSet<u32> {
    let mut out = BTreeSet::new();
    for lib in ["libc.so.6", "libm.so.6", "libstdc++.so.6", "ld-linux-aarch64.so.1"] {
        for dir in ["/usr/aarch64-linux-gnu/lib", "/lib/aarch64-linux-gnu"] {
            let Ok(bytes) = std::fs::read(format!("{dir}/{lib}")) else { continue };
            let file = object::File::parse(&*bytes).unwrap();
            for s in file.sections().filter(|s| s.kind() == SectionKind::Text) {
                let (words, _) = s.data().unwrap().as_chunks::<4>();
                out.extend(words.iter().map(|w| u32::from_le_bytes(*w)));
            }
        }
    }
    out
}

/// The whole register that `name` is a part of.
fn whole(name: &str) -> Set {
    let number = |prefix: &[char]| name.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok());
    match name {
        "fp" => Set::x(29),
        "lr" => Set::x(30),
        _ => match (number(&['x', 'w']), number(&['v', 'q', 'd', 's', 'h', 'b', 'z']), number(&['p'])) {
            (Some(n), ..) if n < 31 => Set::x(n),
            (_, Some(n), _) => Set::v(n),
            (.., Some(n)) => Set::p(n),
            _ => Set::NONE, // sp, zero, flags, system registers
        },
    }
}

/// Where the disassembler's tables are wrong (they take the first register of comparisons for written, of shifts by a
/// constant for read, say nothing of atomic accesses, ...), or where we are careful on purpose (SVE, memory tags).
const DIFFERENT: &[&str] = &[
    "adds", "asr", "bic", "cas", "casa", "casal", "casl", "cmn", "cmp", "cntb", "dc", "fmov", "gmi", "irg", "ld1",
    "ld1b", "ld1r", "ldadd", "ldadda", "ldaddal", "ldaddl", "ldclr", "ldclra", "ldclral", "ldclrl", "ldeor", "ldeora",
    "ldeoral", "ldeorl", "ldg", "ldset", "ldseta", "ldsetal", "ldsetl", "lsl", "lsr", "mov", "mvni", "ptrue", "ret",
    "sbfiz", "sbfx", "sshr", "st1", "st1b", "st2g", "stg", "stz2g", "stzg", "svc", "swp", "swpa", "swpal", "swpalb",
    "swpl", "sxtb", "sxth", "sxtw", "tst", "ubfiz", "ubfx", "ushr", "whilelo",
];

#[test]
fn effects_are_the_disassemblers() {
    let words = words();
    if words.is_empty() {
        eprintln!("no AArch64 libraries on this machine (package libc6-arm64-cross)");
        return;
    }
    let cs = Capstone::new().arm64().mode(arch::arm64::ArchMode::Arm).detail(true).build().unwrap();
    let mut wrong = Vec::new();
    let mut same = BTreeMap::new();
    for word in words {
        let insns = cs.disasm_count(&word.to_le_bytes(), 0x10_0000, 1).unwrap();
        let Some(insn) = insns.iter().next() else { continue };
        // Not the operands: the crate makes enumerations of numbers that they don't have.
        let detail = cs.insn_detail(insn).unwrap();
        let set = |all: &[RegId]| all.iter().fold(Set::NONE, |s, r| s.and(whole(&cs.reg_name(*r).unwrap_or_default())));
        let theirs = (set(detail.regs_read()), set(detail.regs_write()));
        let ours = operands(word);
        let name = insn.mnemonic().unwrap();
        if (ours.reads, ours.writes) == theirs {
            *same.entry(name.to_owned()).or_insert(0) += 1;
        } else if !DIFFERENT.contains(&name) {
            wrong.push(format!("{word:#x} {insn}: {ours:x?}, not {theirs:x?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let all: u32 = same.values().sum();
    assert!(all > 50_000 && same.len() > 150, "only {all} instructions of {} kinds", same.len());
}
