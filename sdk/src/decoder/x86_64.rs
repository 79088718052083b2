//! What x86-64 instructions mean to the judge.
//!
//! Registers are judged whole: `al`, `ax` and `eax` are rax, `ymm3` and `zmm3` are xmm3. A write of 8 or 16 bits keeps the
//! rest of a register and therefore reads it; a write of 32 bits clears the upper half. The x87 and MMX registers and
//! the flags are left out: compilers keep nothing in them across calls.
//!
//! Source: psABI, section 3.2.1 "Registers" (all that is not rbx, rbp, rsp or r12 to r15 belongs to the callee) and
//! 3.2.3 "Parameter Passing"; SDM volume 2 for what single instructions do.

use super::Meaning;
use capstone::arch::x86::{X86InsnGroup, X86OpMem, X86Operand, X86OperandType, X86Reg};
use capstone::arch::{self, ArchDetail, DetailsArchInsn};
use capstone::prelude::*;
use capstone::{Capstone, InsnDetail, RegId};
use tigerfix_core::arch::Constants;
use tigerfix_core::decode::{Flow, Insn};

/// Caller-saved registers, by bit.
const NAMES: [&str; 49] = [
    "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", // general purpose
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
    "xmm14", "xmm15", // vector
    "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",
    "xmm28", "xmm29", "xmm30", "xmm31", // vector, AVX-512
    "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", // mask, AVX-512
];

const RAX: u64 = 1 << 0;
const RCX: u64 = 1 << 1;
const RDX: u64 = 1 << 2;
const RSI: u64 = 1 << 3;
const RDI: u64 = 1 << 4;
const R8: u64 = 1 << 5;
const R9: u64 = 1 << 6;
const R10: u64 = 1 << 7;
const R11: u64 = 1 << 8;
const FIRST_VECTOR: u32 = 9;
const FIRST_MASK: u32 = 41;
const XMM0: u64 = 1 << FIRST_VECTOR;
const XMM1: u64 = 2 << FIRST_VECTOR;
/// xmm0 to xmm7, in which arguments travel.
const XMM0_TO_7: u64 = 0xff << FIRST_VECTOR;
/// xmm0 to xmm15, which VZEROUPPER and VZEROALL change.
const XMM0_TO_15: u64 = 0xffff << FIRST_VECTOR;
/// xmm0 to xmm31.
const VECTORS: u64 = 0xffff_ffff << FIRST_VECTOR;
const MASKS: u64 = 0xff << FIRST_MASK;

/// A capstone for x86-64 that tells details.
pub(super) fn capstone() -> capstone::CsResult<Capstone> {
    Capstone::new().x86().mode(arch::x86::ArchMode::Mode64).syntax(arch::x86::ArchSyntax::Intel).detail(true).build()
}

/// One of capstone's registers, as far as it is of interest.
#[derive(Clone, Copy, Default)]
struct Volatile {
    /// Bit of the whole register in [`NAMES`]; 0 for all others.
    bit: u64,
    /// A write leaves a part of the whole register alone.
    partial: bool,
}

/// x86-64 as the decoder needs it.
pub(super) struct Isa {
    /// By capstone's register number.
    registers: Vec<Volatile>,
}

impl Isa {
    pub(super) fn new(capstone: &Capstone) -> Isa {
        let registers = (0..X86Reg::X86_REG_ENDING as u16)
            .map(|id| capstone.reg_name(RegId(id)).map_or_else(Volatile::default, |name| volatile(&name)))
            .collect();
        Isa { registers }
    }

    fn register(&self, id: RegId) -> Volatile {
        self.registers.get(usize::from(id.0)).copied().unwrap_or_default()
    }

    /// Reads and writes, in the sense of this file's head.
    fn effects(&self, name: &str, detail: &InsnDetail<'_>, operands: &[X86Operand]) -> (u64, u64) {
        let bits = |ids: &[RegId]| ids.iter().fold(0, |set, r| set | self.register(*r).bit);
        let (mut reads, mut writes) = (bits(detail.regs_read()), bits(detail.regs_write()));
        for op in operands {
            // Where capstone's tables are silent, anything may happen to the register.
            if let (X86OperandType::Reg(r), None) = (&op.op_type, op.access) {
                let bit = self.register(*r).bit;
                reads |= bit;
                writes |= bit;
            }
        }
        let regs: Vec<Volatile> = operands
            .iter()
            .filter_map(|op| if let X86OperandType::Reg(r) = op.op_type { Some(self.register(r)) } else { None })
            .collect();
        let first = match operands.first().map(|op| &op.op_type) {
            Some(X86OperandType::Reg(r)) => self.register(*r).bit,
            _ => 0,
        };
        correct_general(name, first, &mut reads, &mut writes);
        if name.starts_with(['v', 'k']) {
            correct_vectors(name, operands, &regs, first, &mut reads, &mut writes);
        }
        reads &= !independent(name, operands, &regs);
        // Last, since it depends on what is really written: a part that is written leaves the rest as it was.
        let partial = detail.regs_write().iter().map(|r| self.register(*r)).filter(|r| r.partial);
        reads |= partial.fold(0, |set, r| set | r.bit) & writes;
        (reads, writes)
    }
}

impl Isa {
    /// `rest` is the code behind the instruction. `None`: this is not to be taken for an instruction.
    fn meaning(&self, insn: &capstone::Insn<'_>, detail: &InsnDetail<'_>, rest: &[u8]) -> Option<Meaning> {
        // Without prefixes such as lock, rep, bnd and notrack. Not capstone's instruction number: for comparisons with
        // a predicate it is the number of some other instruction.
        let name = insn.mnemonic()?.rsplit(' ').next()?;
        let ArchDetail::X86Detail(x86) = detail.arch_detail() else { return None };
        let operands: Vec<X86Operand> = x86.operands().collect();
        let flow = flow(name, detail, &operands);
        let direct = matches!(flow, Flow::Jump(_) | Flow::Branch(_) | Flow::Call(_));
        if direct && x86.encoding().imm.is_some_and(|imm| imm.size == 2) {
            // With an operand-size prefix AMD's processors take 16 bits of displacement, Intel's 32. No compiler makes it.
            return None;
        }
        // capstone leaves out the operands of these two, but the processor skips them.
        let more = if matches!(name, "ud0" | "ud1") { operand_len(rest)? } else { 0 };
        let len = insn.bytes().len() + more;
        let end = insn.address().wrapping_add(len as u64);
        let refers = operands.iter().find_map(|op| match op.op_type {
            X86OperandType::Mem(mem) => address(&mem, end),
            _ => None,
        });
        let (reads, writes) = self.effects(name, detail, &operands);
        let (refers, reads, writes) = match flow {
            _ if name == "nop" => (None, 0, 0),
            // What a call does is for the judge to find out; a call through registers reads those, though.
            Flow::Call(_) => (refers, 0, 0),
            Flow::CallIndirect => (refers, reads, 0),
            _ => (refers, reads, writes),
        };
        Some(Meaning { len, flow, refers, reads, writes })
    }
}

impl super::Isa for Isa {
    fn decode(&self, capstone: &Capstone, code: &[u8], addr: u64, _constants: &Constants<'_>) -> Vec<Insn> {
        super::in_order(capstone, code, addr, &|insn, detail, rest| self.meaning(insn, detail, rest))
    }

    fn texts(&self, capstone: &Capstone, code: &[u8], insns: &[Insn], with: &mut dyn FnMut(&Insn, &str)) {
        super::texts_in_order(capstone, code, insns, with);
    }

    fn volatile_names(&self) -> &'static [&'static str] {
        &NAMES
    }

    fn return_registers(&self) -> u64 {
        RAX | RDX | XMM0 | XMM1
    }

    /// With rax, which holds the number of vector registers in calls of variadic functions.
    fn argument_registers(&self) -> u64 {
        RDI | RSI | RDX | RCX | R8 | R9 | RAX | XMM0_TO_7
    }
}

/// What capstone's register `name` is a part of.
fn volatile(name: &str) -> Volatile {
    let (whole, partial) = match name {
        "rax" | "eax" => ("rax", false),
        "ax" | "al" | "ah" => ("rax", true),
        "rcx" | "ecx" => ("rcx", false),
        "cx" | "cl" | "ch" => ("rcx", true),
        "rdx" | "edx" => ("rdx", false),
        "dx" | "dl" | "dh" => ("rdx", true),
        "rsi" | "esi" => ("rsi", false),
        "si" | "sil" => ("rsi", true),
        "rdi" | "edi" => ("rdi", false),
        "di" | "dil" => ("rdi", true),
        // r8, r8d; r8w, r8b
        _ if name.starts_with('r') => match name.strip_suffix(['w', 'b']) {
            Some(whole) => (whole, true),
            None => (name.strip_suffix('d').unwrap_or(name), false),
        },
        // xmm0, ymm0 and zmm0 differ in the first letter
        _ if name.starts_with(['y', 'z']) => (&name[1..], false),
        _ => (name, false),
    };
    let is = |listed: &str| listed == whole || listed.strip_prefix('x').is_some_and(|mm| mm == whole && name != whole);
    match NAMES.iter().position(|listed| is(listed)) {
        Some(bit) => Volatile { bit: 1 << bit, partial },
        None => Volatile::default(),
    }
}

/// What capstone's tables lack, or get wrong. `first` is the first operand, if it is a register.
fn correct_general(name: &str, first: u64, reads: &mut u64, writes: &mut u64) {
    match name {
        // Kernel entry: rcx and r11 are overwritten with rip and the flags.
        "syscall" => {
            *reads |= RAX | RDI | RSI | RDX | R10 | R8 | R9;
            *writes |= RAX | RCX | R11;
        }
        // int 0x80: some kernels clear r8 to r11.
        "int" | "sysenter" => {
            *reads |= RAX | RCX | RDX | RSI | RDI;
            *writes |= RAX | R8 | R9 | R10 | R11;
        }
        "vzeroupper" => {
            *reads |= XMM0_TO_15;
            *writes |= XMM0_TO_15;
        }
        "vzeroall" => *writes |= XMM0_TO_15,
        // An aborted transaction goes on with its reason in eax.
        "xbegin" | "xlatb" => {
            *reads |= RAX;
            *writes |= RAX;
        }
        "cmpxchg" => {
            *reads |= first;
            *writes |= RAX;
        }
        "cwd" | "cdq" | "cqo" => *writes &= !RAX,
        "shld" | "shrd" => *writes &= !RCX | first,
        "test" => *writes = 0,
        "rdpkru" => {
            *reads |= RCX;
            *writes |= RAX | RDX;
        }
        "wrpkru" => *reads |= RAX | RCX | RDX,
        "adox" => *reads |= first,
        "pcmpestri" | "vpcmpestri" => *reads |= RAX | RDX,
        "pcmpestrm" | "vpcmpestrm" => {
            *reads |= RAX | RDX;
            *writes |= XMM0;
        }
        "pcmpistrm" | "vpcmpistrm" => *writes |= XMM0,
        // A conditional move keeps its destination where the condition does not hold.
        _ if name.starts_with("cmov") => *reads |= first,
        _ => {}
    }
}

/// AVX and AVX-512, where capstone's tables are least reliable, follow one pattern: the first operand is the destination,
/// and a destination that is merged under a mask is read too.
fn correct_vectors(
    name: &str,
    operands: &[X86Operand],
    regs: &[Volatile],
    first: u64,
    reads: &mut u64,
    writes: &mut u64,
) {
    const ALL: u64 = VECTORS | MASKS;
    let sources = regs.iter().skip(usize::from(first != 0)).fold(0, |set, r| set | r.bit) & ALL;
    let first = first & ALL;
    *reads |= sources;
    match name {
        // Implicit destinations, settled before.
        "vzeroall" | "vzeroupper" | "vpcmpestri" | "vpcmpestrm" | "vpcmpistri" | "vpcmpistrm" => return,
        // Only the flags, or memory, are written.
        "vptest" | "vtestpd" | "vtestps" | "vcomisd" | "vcomiss" | "vucomisd" | "vucomiss" | "vmaskmovdqu" => {
            *writes &= !ALL;
            *reads |= first;
            return;
        }
        _ if name.starts_with("ktest") || name.starts_with("kortest") => {
            *writes &= !ALL;
            *reads |= first;
            return;
        }
        // Every element that was moved clears its bit of the mask (of AVX2, the sign in a vector register).
        _ if name.contains("gather") => {
            *writes |= first | sources;
            *reads |= first | sources;
            return;
        }
        _ if name.contains("scatter") => {
            *writes = *writes & !ALL | sources & MASKS;
            return;
        }
        _ => {}
    }
    *writes = *writes & !ALL | first;
    if first & MASKS != 0 {
        // The result of a comparison or of mask arithmetic: bits outside of a mask become 0.
        *reads &= !first | sources;
    } else if first != 0 && sources & MASKS != 0 && !operands.iter().any(|op| op.avx_zero_opmask) {
        *reads |= first;
    }
}

/// Where control goes.
fn flow(name: &str, detail: &InsnDetail<'_>, operands: &[X86Operand]) -> Flow {
    let in_group = |group: u32| detail.groups().iter().any(|g| u32::from(g.0) == group);
    let target = match operands.first().map(|op| &op.op_type) {
        Some(X86OperandType::Imm(to)) => Some(*to as u64),
        _ => None,
    };
    match (name, target) {
        ("call", Some(to)) => Flow::Call(to),
        ("call" | "lcall", _) => Flow::CallIndirect,
        ("jmp", Some(to)) => Flow::Jump(to),
        ("jmp" | "ljmp", _) => Flow::JumpIndirect,
        ("int3" | "int1" | "hlt" | "ud0" | "ud1" | "ud2", _) => Flow::Stop,
        ("sysret" | "sysretq" | "sysexit" | "sysexitq", _) => Flow::Return,
        _ if in_group(X86InsnGroup::X86_GRP_RET) || in_group(X86InsnGroup::X86_GRP_IRET) => Flow::Return,
        // xbegin goes there when the transaction aborts
        ("xbegin", Some(to)) => Flow::Branch(to),
        // jcc, loop, jrcxz
        (_, Some(to)) if in_group(X86InsnGroup::X86_GRP_JUMP) || in_group(X86InsnGroup::X86_GRP_BRANCH_RELATIVE) => {
            Flow::Branch(to)
        }
        _ => Flow::Next,
    }
}

/// Length of the operand that starts with the ModRM byte `b[0]`: ModRM, SIB, displacement (SDM volume 2, 2.1.5).
fn operand_len(b: &[u8]) -> Option<usize> {
    let modrm = *b.first()?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let sib = if mode != 3 && rm == 4 { Some(*b.get(1)?) } else { None };
    let disp = match mode {
        0 if rm == 5 || sib.is_some_and(|s| s & 7 == 5) => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    let len = 1 + usize::from(sib.is_some()) + disp;
    (len <= b.len()).then_some(len)
}

/// The constant address of a memory operand of an instruction that ends at `end`: relative to rip, or absolute. A table
/// that is indexed, but has no base register, counts as well: jump tables of programs at fixed addresses look like it.
fn address(mem: &X86OpMem, end: u64) -> Option<u64> {
    /// Below, a displacement is a number rather than an address (kernel `vm.mmap_min_addr`).
    const LOWEST_ADDRESS: i64 = 0x1000;
    let id = |r: RegId| u32::from(r.0);
    if matches!(id(mem.segment()), X86Reg::X86_REG_FS | X86Reg::X86_REG_GS) {
        return None; // thread-local: relative to a base that is no constant
    }
    let indexed = id(mem.index()) != X86Reg::X86_REG_INVALID && id(mem.index()) != X86Reg::X86_REG_RIZ;
    match id(mem.base()) {
        X86Reg::X86_REG_RIP => Some(end.wrapping_add_signed(mem.disp())),
        X86Reg::X86_REG_EIP => Some(u64::from(end.wrapping_add_signed(mem.disp()) as u32)),
        X86Reg::X86_REG_INVALID if !indexed || mem.disp() >= LOWEST_ADDRESS => Some(mem.disp() as u64),
        _ => None,
    }
}

/// Registers that occur as sources, but on whose value the result does not depend: xor r, r; pcmpeqd x, x; or r, -1.
fn independent(name: &str, operands: &[X86Operand], regs: &[Volatile]) -> u64 {
    let (same, constant) = match operands {
        [.., a, b] => match (&a.op_type, &b.op_type) {
            (X86OperandType::Reg(a), X86OperandType::Reg(b)) => (a == b, None),
            (_, X86OperandType::Imm(v)) => (false, Some(*v)),
            _ => return 0,
        },
        _ => return 0,
    };
    let base = name.strip_prefix('v').unwrap_or(name);
    let cancels = match base {
        "xor" | "sub" | "sbb" => operands.len() == 2,
        "pxor" | "pxord" | "pxorq" | "xorps" | "xorpd" | "pandn" | "pandnd" | "pandnq" | "andnps" | "andnpd" => true,
        _ if base.starts_with("psub") || base.starts_with("pcmpeq") || base.starts_with("pcmpgt") => true,
        _ => name.starts_with("kxor") || name.starts_with("kxnor"),
    };
    let whole = |r: Option<&Volatile>| r.map_or(0, |r| r.bit);
    match (operands.len(), name) {
        // The last register is a source in both forms: of two operands the destination itself.
        (2 | 3, _) if cancels && same => whole(regs.last()),
        (2, "or") if matches!(constant, Some(-1 | 0xffff_ffff)) => whole(regs.first()),
        (2, "and") if constant == Some(0) => whole(regs.first()),
        // All zeros or all ones by truth table.
        (4, "vpternlogd" | "vpternlogq") if matches!(constant, Some(0 | 0xff | -1)) => {
            regs.iter().fold(0, |set, r| set | r.bit)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use crate::decoder::CapstoneDecoder;
    use tigerfix_core::arch::Constants;
    use tigerfix_core::decode::{Decoder, Flow, Insn};

    const AT: u64 = 0x40_1000;

    fn one(code: &[u8]) -> Insn {
        let all = CapstoneDecoder::x86_64().decode(code, AT, &Constants::NONE);
        assert_eq!(all.len(), 1, "{code:02x?}: {all:?}");
        assert_eq!(usize::from(all[0].len), code.len(), "{}", text(code));
        all[0].clone()
    }

    fn text(code: &[u8]) -> String {
        let d = CapstoneDecoder::x86_64();
        let mut out = String::new();
        d.texts(code, &d.decode(code, AT, &Constants::NONE), &mut |_, text| out.push_str(text.trim()));
        out
    }

    fn names(set: u64) -> String {
        let all = CapstoneDecoder::x86_64().volatile_names();
        let named: Vec<&str> = (0..all.len()).filter(|i| set >> i & 1 == 1).map(|i| all[i]).collect();
        named.join(" ")
    }

    #[test]
    fn where_control_goes() {
        let rows: &[(&[u8], &str, Flow)] = &[
            (&[0xe9, 0xfb, 0x0f, 0, 0], "jmp 0x402000", Flow::Jump(0x40_2000)),
            (&[0xeb, 0xfe], "jmp 0x401000", Flow::Jump(AT)),
            (&[0xf2, 0xe9, 0xfa, 0x0f, 0, 0], "bnd jmp 0x402000", Flow::Jump(0x40_2000)),
            (&[0x0f, 0x84, 0xfa, 0x0f, 0, 0], "je 0x402000", Flow::Branch(0x40_2000)),
            (&[0x7f, 0x10], "jg 0x401012", Flow::Branch(0x40_1012)),
            (&[0xe2, 0xfe], "loop 0x401000", Flow::Branch(AT)),
            (&[0xe1, 0xfe], "loope 0x401000", Flow::Branch(AT)),
            (&[0xe3, 0x10], "jrcxz 0x401012", Flow::Branch(0x40_1012)),
            (&[0x67, 0xe3, 0x10], "jecxz 0x401013", Flow::Branch(0x40_1013)),
            (&[0xc7, 0xf8, 0xfa, 0x0f, 0, 0], "xbegin 0x402000", Flow::Branch(0x40_2000)),
            (&[0xe8, 0xfb, 0xef, 0xff, 0xff], "call 0x400000", Flow::Call(0x40_0000)),
            (&[0x66, 0x66, 0x48, 0xe8, 0xf8, 0xef, 0xff, 0xff], "call 0x400000", Flow::Call(0x40_0000)),
            (&[0xff, 0xd0], "call rax", Flow::CallIndirect),
            (&[0xff, 0x15, 0xfa, 0x0f, 0, 0], "call qword ptr [rip + 0xffa]", Flow::CallIndirect),
            (&[0xff, 0xe0], "jmp rax", Flow::JumpIndirect),
            (&[0x3e, 0xff, 0xe0], "notrack jmp rax", Flow::JumpIndirect),
            (&[0xff, 0x25, 0xfa, 0x0f, 0, 0], "jmp qword ptr [rip + 0xffa]", Flow::JumpIndirect),
            (&[0xc3], "ret", Flow::Return),
            (&[0xf3, 0xc3], "repz ret", Flow::Return),
            (&[0xc2, 8, 0], "ret 8", Flow::Return),
            (&[0xcb], "retf", Flow::Return),
            (&[0x48, 0xcf], "iretq", Flow::Return),
            (&[0xcc], "int3", Flow::Stop),
            (&[0x0f, 0x0b], "ud2", Flow::Stop),
            (&[0xf4], "hlt", Flow::Stop),
            (&[0x0f, 0x05], "syscall", Flow::Next),
            (&[0xcd, 0x80], "int 0x80", Flow::Next),
            (&[0xf3, 0x0f, 0x1e, 0xfa], "endbr64", Flow::Next),
            (&[0x90], "nop", Flow::Next),
            (&[0x55], "push rbp", Flow::Next),
        ];
        for (code, text, flow) in rows {
            let insn = one(code);
            assert_eq!((self::text(code).as_str(), insn.flow), (*text, *flow), "{code:02x?}");
        }
    }

    #[test]
    fn constant_addresses() {
        let rows: &[(&[u8], Option<u64>)] = &[
            (&[0x48, 0x8d, 0x05, 0xf9, 0x0f, 0, 0], Some(0x40_2000)), // lea rax, [rip + 0xff9]
            (&[0x48, 0x8b, 0x05, 0xf9, 0xef, 0xff, 0xff], Some(0x40_0000)), // mov rax, [rip - 0x1007]
            (&[0xc7, 0x05, 0xf6, 0x0f, 0, 0, 1, 0, 0, 0], Some(0x40_2000)), // mov dword [rip + 0xff6], 1
            (&[0xff, 0x25, 0xfa, 0x0f, 0, 0], Some(0x40_2000)),       // jmp [rip + 0xffa]
            (&[0x8b, 0x04, 0x25, 0, 0x20, 0x40, 0], Some(0x40_2000)), // mov eax, [0x402000]
            (&[0x67, 0x48, 0x8d, 0x05, 0xf8, 0x0f, 0, 0], Some(0x40_2000)), // lea rax, [eip + 0xff8]
            (&[0xa1, 0, 0x20, 0x40, 0, 0, 0, 0, 0], Some(0x40_2000)), // movabs eax, [0x402000]
            (&[0xff, 0x24, 0xc5, 0, 0x20, 0x40, 0], Some(0x40_2000)), // jmp [rax*8 + 0x402000]
            (&[0x48, 0x8d, 0x04, 0xc5, 0, 0, 0, 0], None),            // lea rax, [rax*8]
            (&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], None),   // mov rax, fs:[0x28]
            (&[0x8b, 0x87, 0, 0x20, 0x40, 0], None),                  // mov eax, [rdi + 0x402000]
            (&[0xb8, 0, 0x20, 0x40, 0], None),                        // mov eax, 0x402000: an immediate
            (&[0x0f, 0x1f, 0x05, 0, 0x10, 0, 0], None),               // nop dword [rip + 0x1000]
            (&[0xe8, 0, 0, 0, 0], None),                              // call: that is its flow
        ];
        for (code, refers) in rows {
            assert_eq!(one(code).refers, *refers, "{}", text(code));
        }
    }

    #[test]
    fn registers_read_and_written() {
        // bytes, text, reads, writes
        let rows: &[(&[u8], &str, &str, &str)] = &[
            (&[0x89, 0xc8], "mov eax, ecx", "rcx", "rax"),
            (&[0x66, 0x89, 0xc8], "mov ax, cx", "rax rcx", "rax"),
            (&[0x88, 0xe8], "mov al, ch", "rax rcx", "rax"),
            (&[0x45, 0x88, 0xc1], "mov r9b, r8b", "r8 r9", "r9"),
            (&[0x0f, 0x94, 0xc2], "sete dl", "rdx", "rdx"),
            (&[0x0f, 0xb6, 0xc2], "movzx eax, dl", "rdx", "rax"),
            (&[0x01, 0xc8], "add eax, ecx", "rax rcx", "rax"),
            (&[0x39, 0xc8], "cmp eax, ecx", "rax rcx", ""),
            (&[0x85, 0xc0], "test eax, eax", "rax", ""),
            (&[0xa9, 1, 0, 0, 0], "test eax, 1", "rax", ""),
            (&[0x31, 0xc0], "xor eax, eax", "", "rax"),
            (&[0x30, 0xc0], "xor al, al", "rax", "rax"),
            (&[0x30, 0xe0], "xor al, ah", "rax", "rax"),
            (&[0x31, 0xc8], "xor eax, ecx", "rax rcx", "rax"),
            (&[0x29, 0xd2], "sub edx, edx", "", "rdx"),
            (&[0x19, 0xc0], "sbb eax, eax", "", "rax"),
            (&[0x83, 0xc8, 0xff], "or eax, 0xffffffff", "", "rax"),
            (&[0x48, 0x83, 0xc8, 0xff], "or rax, 0xffffffffffffffff", "", "rax"),
            (&[0x83, 0xc8, 0x01], "or eax, 1", "rax", "rax"),
            (&[0x48, 0x8d, 0x04, 0xb7], "lea rax, [rdi + rsi*4]", "rsi rdi", "rax"),
            (&[0x48, 0x89, 0x0c, 0xf7], "mov qword ptr [rdi + rsi*8], rcx", "rcx rsi rdi", ""),
            (&[0x48, 0x0f, 0x44, 0xc1], "cmove rax, rcx", "rax rcx", "rax"),
            (&[0xf7, 0xe1], "mul ecx", "rax rcx", "rax rdx"),
            (&[0x48, 0xf7, 0xf9], "idiv rcx", "rax rcx rdx", "rax rdx"),
            (&[0x99], "cdq", "rax", "rdx"),
            (&[0x48, 0x99], "cqo", "rax", "rdx"),
            (&[0x48, 0x98], "cdqe", "rax", "rax"),
            (&[0xd3, 0xe0], "shl eax, cl", "rax rcx", "rax"),
            (&[0x0f, 0xa5, 0xd0], "shld eax, edx, cl", "rax rcx rdx", "rax"),
            (&[0x48, 0x87, 0xc8], "xchg rax, rcx", "rax rcx", "rax rcx"),
            (&[0xf0, 0x48, 0x0f, 0xb1, 0x0f], "lock cmpxchg qword ptr [rdi], rcx", "rax rcx rdi", "rax"),
            (&[0xf3, 0xa4], "rep movsb byte ptr [rdi], byte ptr [rsi]", "rcx rsi rdi", "rcx rsi rdi"),
            (&[0x50], "push rax", "rax", ""),
            (&[0x5f], "pop rdi", "", "rdi"),
            (&[0x53], "push rbx", "", ""),
            (&[0xe2, 0xfe], "loop 0x401000", "rcx", "rcx"),
            (&[0xe3, 0xfe], "jrcxz 0x401000", "rcx", ""),
            (&[0x0f, 0x31], "rdtsc", "", "rax rdx"),
            (&[0x0f, 0xa2], "cpuid", "rax rcx", "rax rcx rdx"),
            (&[0x0f, 0x05], "syscall", "rax rdx rsi rdi r8 r9 r10", "rax rcx r11"),
            (&[0x0f, 0x1f, 0x44, 0, 0], "nop dword ptr [rax + rax]", "", ""),
            // calls: only what an indirect one goes through
            (&[0xe8, 0xfb, 0xef, 0xff, 0xff], "call 0x400000", "", ""),
            (&[0x41, 0xff, 0xd3], "call r11", "r11", ""),
            (&[0xff, 0x57, 0x08], "call qword ptr [rdi + 8]", "rdi", ""),
            (&[0xff, 0xe0], "jmp rax", "rax", ""),
            // SSE
            (&[0x0f, 0x28, 0xc1], "movaps xmm0, xmm1", "xmm1", "xmm0"),
            (&[0xf2, 0x0f, 0x10, 0xc1], "movsd xmm0, xmm1", "xmm0 xmm1", "xmm0"),
            (&[0xf2, 0x0f, 0x10, 0x07], "movsd xmm0, qword ptr [rdi]", "rdi", "xmm0"),
            (&[0xf2, 0x0f, 0x58, 0xc1], "addsd xmm0, xmm1", "xmm0 xmm1", "xmm0"),
            (&[0x66, 0x0f, 0xef, 0xc0], "pxor xmm0, xmm0", "", "xmm0"),
            (&[0x0f, 0x57, 0xc9], "xorps xmm1, xmm1", "", "xmm1"),
            (&[0x66, 0x0f, 0x76, 0xc9], "pcmpeqd xmm1, xmm1", "", "xmm1"),
            (&[0x66, 0x0f, 0x2e, 0xc1], "ucomisd xmm0, xmm1", "xmm0 xmm1", ""),
            (&[0xf2, 0x0f, 0xc2, 0xc1, 0x04], "cmpneqsd xmm0, xmm1", "xmm0 xmm1", "xmm0"),
            (&[0x66, 0x48, 0x0f, 0x7e, 0xc0], "movq rax, xmm0", "xmm0", "rax"),
            (&[0x66, 0x0f, 0x3a, 0x62, 0xf1, 0x7f], "pcmpistrm xmm6, xmm1, 0x7f", "xmm1 xmm6", "xmm0"),
            // AVX and AVX-512
            (&[0xc5, 0xf1, 0xef, 0xc9], "vpxor xmm1, xmm1, xmm1", "", "xmm1"),
            (&[0xc5, 0xf4, 0x58, 0xc2], "vaddps ymm0, ymm1, ymm2", "xmm1 xmm2", "xmm0"),
            (&[0xc4, 0xe2, 0xf5, 0xb8, 0xc2], "vfmadd231pd ymm0, ymm1, ymm2", "xmm0 xmm1 xmm2", "xmm0"),
            (&[0xc5, 0x4d, 0xc2, 0xd1, 0x04], "vcmpneqpd ymm10, ymm6, ymm1", "xmm1 xmm6", "xmm10"),
            (&[0xc4, 0xe2, 0x7d, 0x17, 0xc1], "vptest ymm0, ymm1", "xmm0 xmm1", ""),
            (&[0x62, 0xf1, 0x64, 0x4b, 0x58, 0xca], "vaddps zmm1 {k3}, zmm3, zmm2", "xmm1 xmm2 xmm3 k3", "xmm1"),
            (&[0x62, 0xf1, 0xe5, 0xab, 0x58, 0xca], "vaddpd ymm1 {k3} {z}, ymm3, ymm2", "xmm2 xmm3 k3", "xmm1"),
            (&[0x62, 0xb2, 0x5d, 0x20, 0x26, 0xcc], "vptestmb k1, ymm20, ymm20", "xmm20", "k1"),
            (&[0x62, 0xf3, 0x7d, 0x48, 0x25, 0xc9, 0xff], "vpternlogd zmm1, zmm0, zmm1, 0xff", "", "xmm1"),
            (&[0xc4, 0xe1, 0xf8, 0x99, 0xc1], "ktestq k0, k1", "k0 k1", ""),
        ];
        for (code, text, reads, writes) in rows {
            let insn = one(code);
            assert_eq!(self::text(code), *text);
            assert_eq!(names(insn.writes), *writes, "writes of {text}");
            assert_eq!(names(insn.reads), *reads, "reads of {text}");
        }
        let sixteen = (0..16).map(|i| format!("xmm{i}")).collect::<Vec<_>>().join(" ");
        assert_eq!(names(one(&[0xc5, 0xf8, 0x77]).writes), sixteen, "vzeroupper");
    }

    #[test]
    fn every_register_maps_to_its_whole() {
        let cs = super::capstone().unwrap();
        let wholes = [
            ("rax", "rax eax ax al ah"),
            ("rsi", "rsi esi si sil"),
            ("r8", "r8 r8d r8w r8b"),
            ("r11", "r11 r11d r11w r11b"),
        ];
        for (whole, parts) in wholes {
            for part in parts.split(' ') {
                assert_eq!(names(super::volatile(part).bit), whole);
                let narrow = part.ends_with(['w', 'b', 'l', 'h']) || matches!(part, "ax" | "si");
                assert_eq!(super::volatile(part).partial, narrow, "{part}");
            }
        }
        for n in 0..32 {
            for kind in ["xmm", "ymm", "zmm"] {
                assert_eq!(names(super::volatile(&format!("{kind}{n}")).bit), format!("xmm{n}"));
            }
        }
        for kept in [
            "rbx", "ebx", "bl", "bh", "rbp", "bpl", "rsp", "spl", "r12", "r12d", "r15b", "rip", "st(0)", "mm0", "fs",
            "cr0",
        ] {
            assert_eq!(super::volatile(kept).bit, 0, "{kept}");
        }
        // Every bit stands for some register that capstone knows.
        let isa = super::Isa::new(&cs);
        let all = isa.registers.iter().fold(0, |set, r| set | r.bit);
        assert_eq!(all, (1 << super::NAMES.len()) - 1);
    }

    #[test]
    fn return_and_argument_registers() {
        let d = CapstoneDecoder::x86_64();
        assert_eq!(names(d.return_registers()), "rax rdx xmm0 xmm1");
        assert_eq!(names(d.argument_registers()), "rax rcx rdx rsi rdi r8 r9 xmm0 xmm1 xmm2 xmm3 xmm4 xmm5 xmm6 xmm7");
    }

    #[test]
    fn lengths_that_capstone_has_wrong() {
        // ud1 eax, [eax + 0x12], as sanitizers emit it, then ret
        let code = [0x67, 0x0f, 0xb9, 0x40, 0x12, 0xc3];
        let d = CapstoneDecoder::x86_64();
        let insns = d.decode(&code, AT, &Constants::NONE);
        assert_eq!(
            insns.iter().map(|i| (i.addr, i.len, i.flow)).collect::<Vec<_>>(),
            [(AT, 5, Flow::Stop), (AT + 5, 1, Flow::Return)]
        );
        let mut texts = Vec::new();
        d.texts(&code, &insns, &mut |i, text| texts.push((i.addr, text.to_owned())));
        assert_eq!(texts, [(AT, "ud1".to_owned()), (AT + 5, "ret".to_owned())]);
        assert_eq!(super::operand_len(&[0xc8]), Some(1));
        assert_eq!(super::operand_len(&[0x44, 0x24, 8]), Some(3));
        assert_eq!(super::operand_len(&[0x04, 0x25, 0, 0, 0, 0]), Some(6));
        assert_eq!(super::operand_len(&[0x05, 0, 0, 0]), None);
        // jno rel16 or jno rel32, depending on the maker of the processor
        assert!(
            CapstoneDecoder::x86_64()
                .decode(&[0x66, 0x0f, 0x81, 0x4a, 0x4d, 0x29, 0x2d], AT, &Constants::NONE)
                .is_empty()
        );
    }
}
