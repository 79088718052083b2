//! The branch filter against a disassembler, over real machine code.

use capstone::arch::arm64::Arm64OperandType;
use capstone::arch::{ArchDetail, DetailsArchInsn};
use capstone::prelude::*;
use object::{Object, ObjectSection, SectionKind};
use tigerfix_arch_aarch64::Aarch64;
use tigerfix_core::arch::{Constants, TrampolineEncoder};

/// A library with hand-written and vectorised code, wherever this system has it.
fn text() -> Option<(u64, Vec<u8>)> {
    let paths = ["/usr/aarch64-linux-gnu/lib/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"];
    let read = |p: &&str| {
        let bytes = std::fs::read(p).ok()?;
        let file = object::File::parse(&*bytes).ok()?;
        let text = file.sections().find(|s| s.kind() == SectionKind::Text && s.name() == Ok(".text"))?;
        let found = (text.address(), text.data().ok()?.to_vec());
        (file.architecture() == object::Architecture::Aarch64).then_some(found)
    };
    paths.iter().find_map(read)
}

/// Every direct branch, `adr` and literal that capstone finds is reported with the same target, and every address that two
/// adjacent instructions make.
#[test]
fn every_reference_of_a_library_is_found() {
    let Some((at, code)) = text() else {
        eprintln!("no AArch64 libc on this machine (package libc6-arm64-cross)");
        return;
    };
    let (lo, hi) = (at, at + code.len() as u64);
    let mut hits = std::collections::HashSet::new();
    Aarch64.scan_branches(&code, at, 0, u64::MAX, &Constants::NONE, &mut |from, to| {
        hits.insert((from, to));
    });
    let mut inside = std::collections::HashSet::new();
    Aarch64.scan_branches(&code, at, lo, hi, &Constants::NONE, &mut |from, to| {
        inside.insert((from, to));
    });
    let expect: std::collections::HashSet<_> = hits.iter().copied().filter(|h| (lo..hi).contains(&h.1)).collect();
    assert_eq!(inside, expect);

    let cs = Capstone::new().arm64().mode(arch::arm64::ArchMode::Arm).detail(true).build().unwrap();
    let (mut branches, mut literals, mut pairs) = (0, 0, 0);
    // A part is enough for a debug build; what is no instruction is stepped over.
    let mut page: Option<(RegId, u64)> = None;
    for pos in (0..code.len().min(600_000)).step_by(4) {
        let here = at + pos as u64;
        let insns = cs.disasm_count(&code[pos..pos + 4], here, 1).unwrap();
        let Some(insn) = insns.iter().next() else {
            page = None;
            continue;
        };
        let detail = cs.insn_detail(insn).unwrap();
        let ArchDetail::Arm64Detail(arm) = detail.arch_detail() else { unreachable!() };
        let operands: Vec<_> = arm.operands().map(|o| o.op_type).collect();
        let imm = operands.iter().find_map(|o| if let Arm64OperandType::Imm(v) = o { Some(*v as u64) } else { None });
        let name = insn.mnemonic().unwrap();
        // CS_GRP_BRANCH_RELATIVE, of which capstone takes blr for one; tbz has the bit's number first
        let relative = detail.groups().iter().any(|g| g.0 == 7);
        if let (true, Some(Arm64OperandType::Imm(target))) = (relative, operands.last()) {
            assert!(hits.contains(&(here, *target as u64)), "{insn}");
            branches += 1;
        } else if name == "adr" || (name.starts_with("ldr") || name == "prfm") && imm.is_some() && operands.len() == 2 {
            assert!(hits.contains(&(here, imm.unwrap())), "{insn}");
            literals += 1;
        }
        // adrp, and what counts from its register right behind
        if let Some((register, page)) = page {
            let target = match operands.as_slice() {
                [_, Arm64OperandType::Reg(r), Arm64OperandType::Imm(v)] if name == "add" && *r == register => {
                    Some(page + *v as u64)
                }
                [_, Arm64OperandType::Mem(m)] if m.base() == register && m.index().0 == 0 && !arm.writeback() => {
                    Some(page.wrapping_add_signed(m.disp().into()))
                }
                _ => None,
            };
            if let Some(target) = target {
                assert!(hits.contains(&(here, target)), "{insn}: {target:#x}");
                pairs += 1;
            }
        }
        page = match operands.as_slice() {
            [Arm64OperandType::Reg(r), Arm64OperandType::Imm(v)] if name == "adrp" => Some((*r, *v as u64)),
            _ => None,
        };
    }
    assert!(branches > 10_000 && literals > 10 && pairs > 1000, "{branches} {literals} {pairs}: is this a library?");
}
