//! What the real tables do not show: an architecture with short branches and displacements inside instruction words.

use crate::support::*;
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::*;
use tigerfix_core::field::{Endian, Field, Order, Overflow};
use tigerfix_core::link::{LinkError, LinkOptions, Linked, link};
use tigerfix_core::program::Program;

/// x86-64, but PLT32 reaches 64 KiB only, and PC32 counts from its field and belongs to the instruction.
#[derive(Clone, Copy)]
pub struct Toy {
    /// Rows that are others than x86-64's.
    pub rows: &'static [Howto],
    pub veneer: Option<&'static Veneer>,
    pub page_word: Option<u32>,
    pub addend_in_slot: bool,
    /// What functions with this in their `st_other` (or objects with it in their `e_flags`) want.
    pub own_address: Option<u8>,
    pub compressed: Option<u8>,
    /// What [`Arch::same_abi`] compares.
    pub abi_section: Option<&'static str>,
    /// Where `ud2` must not be.
    pub erratum: fn(u64) -> bool,
}

pub const TOY: Toy = Toy {
    rows: &[SHORT, WORD],
    veneer: None,
    page_word: None,
    addend_in_slot: false,
    own_address: None,
    compressed: None,
    abi_section: None,
    erratum: |_| false,
};

const SHORT: Howto = Howto {
    r_type: 4,
    name: "R_TOY_CALL",
    expr: Expr::PltPc,
    field: Field::data(4),
    overflow: Overflow::Signed(17),
    align: 1,
    role: Role::Branch,
};
const WORD: Howto = Howto {
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
        self.rows.iter().find(|h| h.r_type == r_type).or_else(|| X86_64.howto(r_type))
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
        self.veneer.unwrap_or(X86_64.veneer())
    }
    fn page_word(&self) -> Option<u32> {
        self.page_word
    }
    fn addend_in_slot(&self) -> bool {
        self.addend_in_slot
    }
    fn global_pointer_symbol(&self) -> Option<&'static str> {
        Some("toy_gp")
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
    fn same_abi(&self, object: &AbiFacts<'_>, program: &AbiFacts<'_>) -> Result<(), AbiMismatch> {
        let Some(name) = self.abi_section else { return Ok(()) };
        let (o, p) = ((object.section)(name), (program.section)(name));
        if o == p {
            return Ok(());
        }
        Err(AbiMismatch { why: format!("has {o:?} in {name}, the program {p:?}"), hint: "compile it like the program" })
    }
    fn accepts_function(&self, st_other: u8, _value: u64) -> Result<(), &'static str> {
        if self.compressed == Some(st_other & 0xf0) { Err("is compressed code") } else { Ok(()) }
    }
    fn wants_own_address(&self, flags: u32, st_other: u8) -> bool {
        self.own_address.is_some_and(|o| flags & u32::from(o) != 0 || st_other & 0xf0 == o)
    }
    fn reserved_index(&self, shndx: u16) -> Option<ReservedIndex> {
        match shndx {
            0xff03 => Some(ReservedIndex::Common),
            0xff04 => Some(ReservedIndex::Undefined),
            _ => None,
        }
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
    fn hazard(&self, code: &[u8], at: u64) -> Option<Hazard> {
        let places = code.windows(2).zip(at..).filter(|(c, _)| *c == [0x0f, 0x0b]).map(|(_, at)| at);
        places.filter(|at| (self.erratum)(*at)).map(|at| Hazard { at, what: "an ud2 in a bad place" }).next()
    }
    fn rescue_frame(&self, _: &Registers, _: &[u8], _: u128) -> Option<RescueFrame> {
        None
    }
}

pub const PROGRAM: &str = "int counter; int q(int x) { return x + counter; } int p(int x) { return q(x); }";

fn toy(source: &str, options: &LinkOptions<'_>) -> Result<Linked, LinkError> {
    let program = bare(PROGRAM);
    let o = object_named("p.s", source, "");
    link(&TOY, &Program::parse(&program).unwrap(), &[("p0.o".into(), &o)], options)
}

pub fn function(name: &str, body: &str) -> String {
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
    // Out of reach are `far` and the place in .text; each has a veneer and a slot. The program's q may be anywhere.
    assert_eq!(linked.report.veneers.len(), 3, "{:?}", linked.report.veneers);
    let at = linked.package.sites[0].new_offset;
    let target = |field: u64| (field + 4).wrapping_add_signed((word(p, field, 4) as u32 as i32).into());
    assert_eq!(target(at + 1), offset(&linked, "near"));
    let veneer = |i: usize| &linked.report.veneers[i];
    assert_eq!(target(at + 6), veneer(1).offset);
    assert_eq!(target(at + 11), veneer(1).offset);
    assert_eq!(target(at + 16), veneer(2).offset);
    assert_eq!((target(at + 21), veneer(0).symbol.as_str()), (veneer(0).offset, "q"));
    let held = |slot: u64| {
        let r = p.residue.iter().find(|r| r.offset == slot).unwrap();
        let tigerfix_core::model::Referent::Image(o) = p.symbols[r.symbol as usize].referent else { panic!() };
        o.wrapping_add_signed(r.addend)
    };
    assert_eq!(held(veneer(1).slot.unwrap()), offset(&linked, "far"));
    assert_eq!(held(veneer(2).slot.unwrap()), offset(&linked, "far") + 20, "the addend is part of the place");
    assert!(residue(p, "q").is_empty(), "its address is known");
    assert_eq!(word(p, veneer(0).slot.unwrap(), 8), address(&bare(PROGRAM), "q"));
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

#[test]
fn code_is_moved_from_where_processors_get_it_wrong() {
    let program = bare(PROGRAM);
    let source = ".p2align 4\n.fill 16\n".to_owned() + &function("p", "ud2") + ".section .text.b,\"ax\"\nnop\n";
    let o = object_named("p.s", &source, "");
    let linked = |erratum| {
        let arch = Toy { erratum, ..TOY };
        link(&arch, &Program::parse(&program).unwrap(), &[("p0.o".into(), &o)], &LinkOptions::default())
    };
    let place = |l: Result<Linked, LinkError>| l.unwrap().package.sites[0].new_offset % 0x1000;
    assert_eq!(place(linked(|_| false)), 16);
    assert_eq!(place(linked(|at| at % 0x1000 < 0x60)), 0x60, "by as many steps as it takes");
    refused(linked(|_| true), "processor-erratum", &["p0.o: .text: an ud2 in a bad place, at image offset"]);
}
