//! The branch filter against a disassembler, over real machine code.

use capstone::arch::x86::X86OperandType;
use capstone::arch::{ArchDetail, DetailsArchInsn};
use capstone::prelude::*;
use object::{Object, ObjectSection, SectionKind};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::{Constants, TrampolineEncoder};

/// A library with hand-written and vectorised code, wherever this system has it.
fn text() -> Option<(u64, Vec<u8>)> {
    let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"];
    let bytes = paths.iter().find_map(|p| std::fs::read(p).ok())?;
    let file = object::File::parse(&*bytes).ok()?;
    let text = file.sections().find(|s| s.kind() == SectionKind::Text && s.name() == Ok(".text"))?;
    Some((text.address(), text.data().ok()?.to_vec()))
}

/// Every direct branch and every RIP-relative operand that capstone finds is reported, with the same target.
#[test]
fn every_reference_of_a_library_is_found() {
    let (at, code) = text().expect("a libc with a .text section on this machine");
    let (lo, hi) = (at, at + code.len() as u64);
    let mut hits = std::collections::HashSet::new();
    X86_64.scan_branches(&code, at, lo, hi, &Constants::NONE, &mut |from, to| {
        hits.insert((from, to));
    });
    let cs = Capstone::new().x86().mode(arch::x86::ArchMode::Mode64).detail(true).build().unwrap();
    let mut found = 0;
    // A part is enough for a debug build; what is no instruction is stepped over.
    let mut pos = 0;
    while pos < code.len().min(400_000) {
        let insns = cs.disasm_count(&code[pos..], at + pos as u64, 1).unwrap();
        let Some(insn) = insns.iter().next() else {
            pos += 1;
            continue;
        };
        pos += insn.len();
        let end = insn.address() + insn.len() as u64;
        let detail = cs.insn_detail(insn).unwrap();
        let groups: Vec<u8> = detail.groups().iter().map(|g| g.0).collect();
        let ArchDetail::X86Detail(x86) = detail.arch_detail() else { unreachable!() };
        // CS_GRP_BRANCH_RELATIVE
        let relative = groups.contains(&7);
        for op in x86.operands() {
            let target = match op.op_type {
                X86OperandType::Imm(v) if relative => v as u64,
                X86OperandType::Mem(m) if cs.reg_name(m.base()).as_deref() == Some("rip") => {
                    end.wrapping_add_signed(m.disp())
                }
                _ => continue,
            };
            if (lo..hi).contains(&target) {
                found += 1;
                let reported = (insn.address()..end).any(|from| hits.contains(&(from, target)));
                assert!(reported, "{insn}");
            }
        }
    }
    assert!(found > 5000, "only {found} references: is this a library?");
}
