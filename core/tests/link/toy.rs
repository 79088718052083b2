//! What the real tables do not show: an architecture with short branches and displacements inside instruction words.

use crate::support::*;
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::*;
use tigerfix_core::field::{Endian, Field, Order, Overflow};
use tigerfix_core::link::{LinkError, LinkOptions, Linked, link};
use tigerfix_core::program::Program;

/// x86-64, but PLT32 reaches 64 KiB only, and PC32 counts from its field and belongs to the instruction.
struct Toy;

static SHORT: Howto = Howto {
    r_type: 4,
    name: "R_TOY_CALL",
    expr: Expr::PltPc,
    field: Field::data(4),
    overflow: Overflow::Signed(17),
    align: 1,
    role: Role::Branch,
};
static WORD: Howto = Howto {
    r_type: 2,
    name: "R_TOY_PC",
    expr: Expr::Pc,
    field: Field { order: Order::Insn, ..Field::data(4) },
    overflow: Overflow::Signed(32),
    align: 4,
    role: Role::Address,
};

impl Relocator for Toy {
    fn howto(&self, r_type: u32) -> Option<&'static Howto> {
        match r_type {
            4 => Some(&SHORT),
            2 => Some(&WORD),
            _ => X86_64.howto(r_type),
        }
    }
    fn reloc_name(&self, r_type: u32) -> Option<&'static str> {
        self.howto(r_type).map(|h| h.name)
    }
    fn normalize(&self, raw: &RawRelocs<'_>) -> Result<Vec<Reloc>, NormalizeError> {
        X86_64.normalize(raw)
    }
    fn address_word(&self) -> u32 {
        X86_64.address_word()
    }
}
impl TrampolineEncoder for Toy {
    fn forms(&self) -> &'static [JumpForm] {
        X86_64.forms()
    }
    fn encode_jump(&self, form: &JumpForm, from: u64, to: u64) -> Result<Code, EncodeError> {
        X86_64.encode_jump(form, from, to)
    }
    fn encode_landing(&self, form: &JumpForm, at: u64, new: u64) -> Result<Code, EncodeError> {
        X86_64.encode_landing(form, at, new)
    }
    fn landing_pad_len(&self, entry: &[u8]) -> u8 {
        X86_64.landing_pad_len(entry)
    }
    fn padding_len(&self, bytes: &[u8]) -> usize {
        X86_64.padding_len(bytes)
    }
    fn scan_branches(
        &self,
        code: &[u8],
        at: u64,
        lo: u64,
        hi: u64,
        constants: &Constants<'_>,
        hit: &mut dyn FnMut(u64, u64),
    ) {
        X86_64.scan_branches(code, at, lo, hi, constants, hit);
    }
}
impl GotBuilder for Toy {
    fn slot_size(&self) -> u8 {
        8
    }
    /// The GOT pointer points past the GOT's start.
    fn gp_bias(&self) -> u64 {
        0x70
    }
    fn veneer(&self) -> &'static Veneer {
        X86_64.veneer()
    }
    fn tp_offset(&self, size: u64, align: u64) -> i64 {
        X86_64.tp_offset(size, align)
    }
}
impl CacheInvalidation for Toy {
    fn cache_need(&self) -> CacheNeed {
        CacheNeed::Coherent
    }
}
impl Arch for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }
    fn accepts(&self, ident: &ElfIdent) -> Result<(), &'static str> {
        X86_64.accepts(ident)
    }
    fn address_bits(&self) -> u8 {
        64
    }
    fn data_endian(&self) -> Endian {
        Endian::Little
    }
    fn insn_endian(&self) -> Endian {
        Endian::Little
    }
    fn max_page_size(&self) -> u64 {
        0x10000
    }
    fn user_space_end(&self) -> u64 {
        X86_64.user_space_end()
    }
    fn breakpoint(&self) -> &'static [u8] {
        X86_64.breakpoint()
    }
    fn registers(&self) -> &'static RegisterLayout {
        X86_64.registers()
    }
    fn linux(&self) -> Option<&'static LinuxAbi> {
        None
    }
    fn rescue_frame(&self, _: &Registers, _: &[u8], _: u128) -> Option<RescueFrame> {
        None
    }
}

const PROGRAM: &str = "int counter; int q(int x) { return x + counter; } int p(int x) { return q(x); }";

fn toy(source: &str, options: &LinkOptions<'_>) -> Result<Linked, LinkError> {
    let program = bare(PROGRAM);
    let o = object_named("p.s", source, "");
    link(&Toy, &Program::parse(&program).unwrap(), &[("p0.o".into(), &o)], options)
}

fn function(name: &str, body: &str) -> String {
    format!(".globl {name}\n.type {name},@function\n{name}:\n{body}\nret\n.size {name},.-{name}\n")
}

#[test]
fn branches_inside_a_large_image() {
    let near = function("near", "nop");
    let far = function("far", "nop") + "first: nop\n.p2align 4\nsecond: nop\n";
    let calls = "call near\ncall far\ncall far\n.byte 0xe9\n.reloc ., R_X86_64_PLT32, .text+16\n.long 0\ncall q";
    let source = format!("{far}.zero 100000\n.section .text.b,\"ax\"\n{near}{}", function("p", calls));
    let linked = toy(&source, &LinkOptions::default()).unwrap();
    let p = &linked.package;
    assert_eq!(linked.report.relocations["R_TOY_CALL"], 5);
    // Out of reach are `far` and the place in .text; each has a veneer and a slot. The program's q is left to fix.
    assert_eq!(linked.report.veneers.len(), 2, "{:?}", linked.report.veneers);
    let at = linked.package.sites[0].new_offset;
    let target = |field: u64| (field + 4).wrapping_add_signed((word(p, field, 4) as u32 as i32).into());
    assert_eq!(target(at + 1), offset(&linked, "near"));
    assert_eq!(target(at + 6), linked.report.veneers[0].offset);
    assert_eq!(target(at + 11), linked.report.veneers[0].offset);
    assert_eq!(target(at + 16), linked.report.veneers[1].offset);
    let held = |slot: u64| {
        let r = p.residue.iter().find(|r| r.offset == slot).unwrap();
        let tigerfix_core::model::Referent::Image(o) = p.symbols[r.symbol as usize].referent else { panic!() };
        o.wrapping_add_signed(r.addend)
    };
    assert_eq!(held(linked.report.veneers[0].slot), offset(&linked, "far"));
    assert_eq!(held(linked.report.veneers[1].slot), offset(&linked, "far") + 20, "the addend is part of the place");
    assert_eq!(residue(p, "q").len(), 1);
}

#[test]
fn got_pointers_with_a_bias() {
    let body = "movabsq $q@GOT,%rax\nmovabsq $here@GOTOFF,%rcx\nleaq _GLOBAL_OFFSET_TABLE_(%rip),%rbx";
    let source = function("p", body) + ".data\nhere: .quad 1\n";
    let linked = toy(&source, &LinkOptions { base: Some(0x5000_0000), ..LinkOptions::default() }).unwrap();
    let p = linked.package.sites[0].new_offset;
    let gp = linked.report.got[0].offset + 0x70;
    let value = |at: u64, len| word(&linked.package, at, len);
    assert_eq!(gp.wrapping_add(value(p + 2, 8)), linked.report.got[0].offset);
    assert_eq!(gp.wrapping_add(value(p + 12, 8)), span(&linked.package, false, true).offset);
    assert_eq!((p + 27).wrapping_add_signed((value(p + 23, 4) as u32 as i32).into()), gp);
}

#[test]
fn alignment_of_values() {
    let source = |addend: u32| {
        function("p", &format!(".p2align 2\n.reloc ., R_X86_64_PC32, .data+{addend}\n.long 0"))
            + ".data\n.p2align 2\n.quad 1, 2\n"
    };
    assert!(toy(&source(4), &LinkOptions::default()).is_ok());
    refused(toy(&source(6), &LinkOptions::default()), "relocation-misaligned", &["R_TOY_PC", "multiple of 4"]);
}

/// Code that reaches `counter`, which is the program's, from an anchor in the section.
#[test]
fn anchors_do_not_reach_what_the_program_has() {
    let source = |addend: u32| {
        function("p", &format!(".p2align 2\n.reloc ., R_X86_64_PC32, .bss+{addend}\n.long 0"))
            + ".bss\n.p2align 2\nmine: .zero 8\n.globl counter\n.type counter,@object\n.size counter,4\ncounter: .zero 4\nother: .zero 4\n"
    };
    for (addend, ok) in [(0, true), (4, true), (8, false), (12, true)] {
        let linked = toy(&source(addend), &LinkOptions::default());
        if ok {
            assert!(linked.is_ok(), "{addend}");
        } else {
            refused(linked, "hidden-reference", &["`counter`", "in `p`"]);
        }
    }
    let alias = function("p", "movl alias(%rip),%eax")
        + ".bss\n.globl counter,alias\n.type counter,@object\n.size counter,4\ncounter:\nalias: .zero 4\n";
    refused(toy(&alias, &LinkOptions::default()), "hidden-reference", &["`counter`"]);
}
