//! Expressions that x86-64 does not have, on types of its that compilers never use: regions, pages in GOT slots, offsets
//! from the GOT and from the program's global pointer, veneers without slots, functions that want their own address.

use crate::support::*;
use crate::toy::{PROGRAM, TOY, Toy};
use tigerfix_core::arch::*;
use tigerfix_core::error::Explain as _;
use tigerfix_core::field::{Field, Order, Overflow, Piece};
use tigerfix_core::link::{LinkError, LinkOptions, Linked, SlotKind, link};
use tigerfix_core::model::Referent;
use tigerfix_core::program::Program;
use tigerfix_core::relocate::settle;

const LOW_16: &[Piece] = &[Piece { value_lsb: 0, width: 16, field_lsb: 0 }];

const fn row(r_type: u32, name: &'static str, expr: Expr, field: Field, overflow: Overflow, role: Role) -> Howto {
    Howto { r_type, name, expr, field, overflow, align: 1, role }
}

const fn half(round: u64, rshift: u8) -> Field {
    Field { bytes: 4, order: Order::Insn, round, rshift, pieces: LOW_16 }
}

const WORD: Field = Field { order: Order::Insn, ..Field::data(4) };
const JUMP_FIELD: Field = Field { rshift: 2, pieces: &[Piece { value_lsb: 0, width: 10, field_lsb: 0 }], ..WORD };

/// Regions of 4 KiB, counted from behind the field.
const REGION: Expr = Expr::Region { bits: 12, after: 4 };

static ROWS: &[Howto] = &[
    Howto { align: 4, ..row(12, "R_TOY_JUMP", REGION, JUMP_FIELD, Overflow::Unsigned(10), Role::Branch) }, // R_X86_64_16
    row(13, "R_TOY_PC16", Expr::Pc, half(0u64.wrapping_sub(4), 2), Overflow::Signed(16), Role::Branch),
    row(14, "R_TOY_HI", Expr::Abs, half(0x8000, 16), Overflow::None, Role::Address), // R_X86_64_8
    row(15, "R_TOY_LO", Expr::Abs, half(0, 0), Overflow::None, Role::Address),       // R_X86_64_PC8
    row(3, "R_TOY_GOTPAGE", Expr::GotPage, half(0, 0), Overflow::Signed(16), Role::Address), // R_X86_64_GOT32
    row(26, "R_TOY_GOTMINUS", Expr::GotMinus, WORD, Overflow::Signed(32), Role::Own), // R_X86_64_GOTPC32
    row(32, "R_TOY_GPREL", Expr::GpRel, half(0, 0), Overflow::Signed(16), Role::Address), // R_X86_64_SIZE32
    row(22, "R_TOY_GOTTPREL", Expr::GotTpOff, half(0, 0), Overflow::Signed(16), Role::Tls), // R_X86_64_GOTTPOFF
    row(9, "R_TOY_GOT", Expr::Got, half(0, 0), Overflow::Signed(16), Role::Got),     // R_X86_64_GOTPCREL
    row(
        200,
        "R_TOY_PAGE",
        Expr::Abs,
        Field { round: 0x8000, rshift: 16, pieces: PAGE, ..Field::data(8) },
        Overflow::None,
        Role::Address,
    ),
];
const PAGE: &[Piece] = &[Piece { value_lsb: 0, width: 48, field_lsb: 16 }];

/// `mov eax, high; mov ecx, low; int3`: what counts are the two halves of the address.
static VENEER: Veneer = Veneer { code: &[0xb8, 0, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xcc], relocs: &[(1, 14, 0), (6, 15, 0)] };

const ARCH: Toy = Toy { rows: ROWS, veneer: Some(&VENEER), page_word: Some(200), ..TOY };

/// The program has a global pointer in the middle of its data.
fn program() -> Vec<u8> {
    bare(&format!(
        "{PROGRAM} __thread int tls = 3; int *gettls(void) {{ return &tls; }} \
         int near_gp = 1; __asm__(\".globl toy_gp\\n.set toy_gp, counter + 0x100\");"
    ))
}

fn toy_with(arch: Toy, program: &[u8], source: &str, options: &LinkOptions<'_>) -> Result<Linked, LinkError> {
    let o = object_named("p.s", source, "");
    link(&arch, &Program::parse(program).unwrap(), &[("p0.o".into(), &o)], options)
}

fn toy(source: &str, base: Option<u64>) -> Result<Linked, LinkError> {
    toy_with(ARCH, &program(), source, &LinkOptions { base, ..LinkOptions::default() })
}

/// Functions begin where instruction words may.
fn function(name: &str, body: &str) -> String {
    format!(".p2align 2\n{}", crate::toy::function(name, body))
}

/// A word in code with a relocation.
fn reloc(kind: &str, to: &str) -> String {
    format!(".p2align 2\n.reloc ., R_X86_64_{kind}, {to}\n.long 0\n")
}

fn signed(p: &tigerfix_core::model::Package, at: u64, len: usize) -> i64 {
    let shift = 64 - 8 * len;
    (word(p, at, len) << shift) as i64 >> shift
}

const BASE: u64 = 0x5000_0000;

#[test]
fn regions_settle_where_all_is_known() {
    let source = function("p", &reloc("16", "near")) + &function("near", "nop");
    let linked = toy(&source, Some(BASE)).unwrap();
    let at = linked.package.sites[0].new_offset;
    assert_eq!(word(&linked.package, at, 4) & 0x3ff, (BASE + offset(&linked, "near")) >> 2 & 0x3ff);
    assert!(linked.report.veneers.is_empty() && linked.package.residue.is_empty());
    // Misaligned, and the region of the place behind the field is what counts.
    let odd = function("p", &reloc("16", "near+2")) + ".p2align 2\n" + &function("near", "nop");
    refused(toy(&odd, Some(BASE)), "relocation-misaligned", &["R_TOY_JUMP", "`near`", "multiple of 4"]);
    // `p` starts at a multiple of 4 KiB. `last` is the last word of its region, or the first of the next one, where veneers
    // are as well.
    let padded = |pad: usize| {
        let text = format!("{}.zero {pad}\n{}", function("p", &reloc("16", "last")), function("last", "nop"));
        toy(&text, Some(BASE))
    };
    let near = padded(0xff4).unwrap();
    assert!(near.report.veneers.is_empty());
    assert_eq!(offset(&near, "last") & 0xfff, 0xffc);
    let e = refused(padded(0xff8), "relocation-overflow", &["R_TOY_JUMP", "`last`", "0x0..=0xfff"]);
    assert!(matches!(e, LinkError::Overflow { min: 0, max: 0xfff, .. }));
}

/// A jump whose own region differs from that of the place behind it.
#[test]
fn the_region_is_that_of_the_place_behind_the_jump() {
    // The jump is the last word of a region, the target in the next one.
    let source =
        format!(".p2align 12\n.zero 0xffc\n{}{}", function("p", &reloc("16", "near")), function("near", "nop"));
    let linked = toy(&source, Some(BASE)).unwrap();
    assert_eq!(linked.package.sites[0].new_offset & 0xfff, 0xffc);
    assert!(linked.report.veneers.is_empty(), "it reaches the next region");
    let back =
        format!(".p2align 12\n{}.zero {}\n{}", function("near", "nop"), 0xffc - 2, function("p", &reloc("16", "near")));
    let linked = toy(&back, Some(BASE)).unwrap();
    assert_eq!(linked.package.sites[0].new_offset & 0xfff, 0xffc);
    assert_eq!(linked.report.veneers.len(), 1, "and not its own");
}

#[test]
fn regions_are_residue_inside_an_image_and_veneers_lead_out_of_it() {
    let source =
        function("p", &(reloc("16", "near") + &reloc("16", "q") + &reloc("16", "q"))) + &function("near", "nop");
    let linked = toy(&source, None).unwrap();
    let p = &linked.package;
    assert_eq!(linked.report.veneers.len(), 1);
    let veneer = &linked.report.veneers[0];
    assert_eq!((veneer.symbol.as_str(), veneer.slot), ("q", None));
    assert_eq!(linked.report.residue["R_TOY_JUMP"], 3);
    // The program's address is known, so the veneer is whole.
    let q = address(&program(), "q");
    assert_eq!((word(p, veneer.offset + 1, 4), word(p, veneer.offset + 6, 4)), ((q + 0x8000) >> 16, q & 0xffff));
    let to: Vec<u64> = p
        .residue
        .iter()
        .map(|r| match p.symbols[r.symbol as usize].referent {
            Referent::Image(o) => o.wrapping_add_signed(r.addend),
            ref other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(to, [offset(&linked, "near"), veneer.offset, veneer.offset]);
    // What fix does with them.
    let (at, mut bytes) = (p.residue[0].offset, [0u8; 4]);
    let jump = ARCH.howto(12).unwrap();
    settle(&ARCH, jump, &mut bytes, 0, 0x7000_0ffc, 0, 0x7000_0ffc).unwrap_err();
    settle(&ARCH, jump, &mut bytes, 0, 0x7000_1ffc, -4, 0x7000_0ffc).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 0xff8 >> 2);
    assert!(at < veneer.offset);
}

#[test]
fn a_position_independent_program_leaves_the_veneer_open() {
    let source = function("p", &reloc("16", "q"));
    let program = pie(&format!("{PROGRAM} int main(void) {{ return p(1); }}"));
    let linked = toy_with(ARCH, &program, &source, &LinkOptions::default()).unwrap();
    let q = residue(&linked.package, "q");
    assert_eq!(q.iter().map(|r| r.0.r_type).collect::<Vec<_>>(), [14, 15], "both halves");
    let veneer = linked.report.veneers[0].offset;
    assert_eq!((q[0].0.offset, q[1].0.offset), (veneer + 1, veneer + 6));
}

#[test]
fn short_branches_take_veneers_and_keep_their_bias() {
    // The row makes up for the processor's counting from behind the field.
    let source = function("p", &(reloc("PC16", "near") + &reloc("PC16", "q") + &reloc("PC16", "q+8")))
        + &function("near", "nop");
    for (base, veneers) in [(None, 2), (Some(BASE), 2), (Some(0x41_0000), 0)] {
        let linked = toy(&source, base).unwrap();
        let p = &linked.package;
        assert_eq!(linked.report.veneers.len(), veneers, "{base:x?}");
        let at = p.sites[0].new_offset;
        let to = |field: u64| (field + 4).wrapping_add_signed(i64::from(word(p, field, 2) as i16) << 2);
        assert_eq!(to(at), offset(&linked, "near"));
        let q = address(&program(), "q");
        if veneers == 2 {
            let v = |i: usize| linked.report.veneers[i].offset;
            assert_eq!((to(at + 4), to(at + 8)), (v(0), v(1)));
            assert_eq!(
                (word(p, v(0) + 6, 2), word(p, v(1) + 6, 2)),
                (q & 0xffff, (q + 8) & 0xffff),
                "the rest of the addend counts"
            );
        } else {
            assert_eq!((to(at + 4).wrapping_add(0x41_0000), to(at + 8).wrapping_add(0x41_0000)), (q, q + 8));
        }
    }
}

#[test]
fn slots_hold_pages() {
    let body = reloc("GOT32", ".bss+0x17ffc")
        + &reloc("PC8", ".bss+0x17ffc")
        + &reloc("GOT32", ".bss+0x17ffc")
        + &reloc("GOT32", "counter");
    let source = function("p", &body) + ".bss\n.zero 0x20000\n";
    let linked = toy(&source, Some(BASE)).unwrap();
    let p = &linked.package;
    let got = &linked.report.got;
    assert_eq!(got.iter().map(|s| s.kind).collect::<Vec<_>>(), [SlotKind::Page, SlotKind::Page], "one for each page");
    let bss = BASE + span(p, false, true).offset;
    assert_eq!(word(p, got[0].offset, 8), (bss + 0x17ffc + 0x8000) & !0xffff);
    assert_eq!(word(p, got[1].offset, 8), (address(&program(), "counter") + 0x8000) & !0xffff);
    let at = p.sites[0].new_offset;
    let gp = p.spans[0].offset + linked.report.got[0].offset + ARCH.gp_bias();
    let slot = |i: u64| gp.wrapping_add_signed(signed(p, at + i, 2));
    assert_eq!((slot(0), slot(8), slot(12)), (got[0].offset, got[0].offset, got[1].offset));
    assert_eq!(word(p, at + 4, 2), (bss + 0x17ffc) & 0xffff);
    // Without an address the slot is left to fix, by the type for pages.
    let open = toy(&source, None).unwrap();
    let r = open.package.residue.iter().find(|r| r.r_type == 200).unwrap();
    assert_eq!((r.offset, r.addend), (open.report.got[0].offset, 0x17ffc));
    let none = toy_with(Toy { page_word: None, ..ARCH }, &program(), &source, &LinkOptions::default());
    refused(none, "unsupported-relocation", &["R_TOY_GOTPAGE"]);
}

#[test]
fn a_got_that_is_too_large_is_an_overflow() {
    let body: String =
        (0..0x3000).map(|i| reloc("GOT32", &format!(".bss+0x{:x}", u64::from(i as u32) << 16))).collect();
    let e = refused(toy(&function("p", &body), Some(BASE)), "relocation-overflow", &["R_TOY_GOTPAGE", "in `p`"]);
    let LinkError::Overflow { min, max, .. } = e else { panic!() };
    assert_eq!((min, max), (-0x8000, 0x7fff));
}

#[test]
fn halves_of_an_address_stay_together() {
    // `p` replaces the program's: its address is the program's entry, in all parts and by whatever name.
    let here = reloc("8", "p")
        + &reloc("PC8", "p")
        + &reloc("GOT32", "p")
        + &reloc("8", ".text+0x100")
        + &reloc("PC8", ".text+0x100");
    let text = |body: &str| format!(".zero 0x100\n{}", function("p", body));
    let entry = address(&program(), "p");
    let linked = toy(&text(&here), Some(BASE)).unwrap();
    let half = |l: &Linked, i: u64| word(&l.package, l.package.sites[0].new_offset + i, 2);
    assert_eq!(half(&linked, 0) << 16, (entry + 0x8000) & !0xffff);
    assert_eq!(half(&linked, 4), entry & 0xffff);
    assert_eq!(word(&linked.package, linked.report.got[0].offset, 8), (entry + 0x8000) & !0xffff);
    assert_eq!((half(&linked, 12) << 16, half(&linked, 16)), ((entry + 0x8000) & !0xffff, entry & 0xffff));
    // A place inside of the function is the new one's.
    let inside = toy(&text(&(reloc("8", "p+4") + &reloc("PC8", "p+4"))), Some(BASE)).unwrap();
    let new = BASE + inside.package.sites[0].new_offset + 4;
    assert_eq!((half(&inside, 0), half(&inside, 4)), ((new + 0x8000) >> 16, new & 0xffff));
}

#[test]
fn code_that_asks_where_it_lies_means_itself() {
    let source = function("p", &(reloc("GOTPC32", "p") + &reloc("GOTPC32", "p+8") + &reloc("GOT32", ".bss")))
        + ".bss\n.zero 8\n";
    for base in [None, Some(BASE)] {
        let linked = toy(&source, base).unwrap();
        let (p, at) = (&linked.package, linked.package.sites[0].new_offset);
        let gp = linked.report.got[0].offset + ARCH.gp_bias();
        assert_eq!(signed(p, at, 4), gp as i64 - at as i64);
        assert_eq!(signed(p, at + 4, 4), gp as i64 - at as i64 - 8);
    }
    let e = toy(&function("p", &reloc("GOTPC32", "q")), Some(BASE));
    // At fixed addresses everything has a distance from the GOT; elsewhere only the patch has.
    assert!(e.is_ok());
    refused(toy(&function("p", &reloc("GOTPC32", "q")), None), "not-position-independent", &["R_TOY_GOTMINUS", "`q`"]);
}

#[test]
fn small_data_is_the_programs() {
    let source = |to: &str| function("p", &reloc("SIZE32", to)) + ".bss\n.p2align 2\nmine: .zero 8\n";
    let linked = toy(&source("counter"), None).unwrap();
    assert_eq!(signed(&linked.package, linked.package.sites[0].new_offset, 2), -0x100);
    let gp = address(&program(), "toy_gp");
    assert_eq!(gp, address(&program(), "counter") + 0x100);
    let linked = toy(&source("near_gp+4"), None).unwrap();
    let distance = (address(&program(), "near_gp") + 4).wrapping_sub(gp) as i64;
    assert_eq!(signed(&linked.package, linked.package.sites[0].new_offset, 2), distance);
    // Both ends of the range.
    for (addend, ok) in [(0x80ffi64, true), (0x8100, false), (-0x7f00, true), (-0x7f01, false)] {
        let to = format!("counter{}{:#x}", if addend < 0 { "-" } else { "+" }, addend.abs());
        match toy(&source(&to), None) {
            Ok(_) => assert!(ok, "{addend:#x}"),
            Err(e) => {
                assert!(!ok, "{addend:#x}: {e}");
                assert_eq!(e.rule(), "relocation-overflow", "{e}");
            }
        }
    }
    for to in ["mine", ".bss+4"] {
        let e = refused(toy(&source(to), Some(BASE)), "small-data", &["R_TOY_GPREL", "far from it", "in `p`"]);
        assert_eq!(e.hint(), Some("compile the patch with -G0"));
    }
    let dynamic = fixed(&format!("{PROGRAM} int main(void) {{ return p(1); }}"));
    let e = toy_with(ARCH, &dynamic, &source("counter"), &LinkOptions::default());
    refused(e, "small-data", &["does not keep"]);
    let e = toy_with(ARCH, &bare(PROGRAM), &source("counter"), &LinkOptions::default());
    refused(e, "small-data", &["does not have"]);
}

#[test]
fn thread_pointer_offsets_in_slots() {
    let source = function("p", &(reloc("GOTTPOFF", "tls") + &reloc("GOTTPOFF", "tls")));
    let linked = toy(&source, None).unwrap();
    let got = &linked.report.got;
    assert_eq!((got.len(), got[0].kind), (1, SlotKind::TpOffset));
    assert!(linked.package.residue.is_empty());
    let at = linked.package.sites[0].new_offset;
    let slot = got[0].offset + ARCH.gp_bias();
    assert_eq!(slot.wrapping_add_signed(signed(&linked.package, at, 2)), got[0].offset);
    assert_eq!(signed(&linked.package, got[0].offset, 8), -4);
    refused(toy(&function("p", &reloc("GOTTPOFF", "counter")), None), "thread-local", &["`counter`"]);
}

#[test]
fn addends_in_slots() {
    let arch = Toy { addend_in_slot: true, ..ARCH };
    let source =
        function("p", &(reloc("GOTPCREL", "counter+8") + &reloc("GOTPCREL", "counter") + &reloc("GOTPCREL", ".text")));
    let options = LinkOptions { base: Some(BASE), ..LinkOptions::default() };
    let linked = toy_with(arch, &program(), &source, &options).unwrap();
    let held: Vec<u64> = linked.report.got.iter().map(|s| word(&linked.package, s.offset, 8)).collect();
    let counter = address(&program(), "counter");
    assert_eq!(held, [counter + 8, counter, address(&program(), "p")], "`p` is at the start of .text");
    let linked = toy_with(ARCH, &program(), &source, &options).unwrap();
    let at = linked.package.sites[0].new_offset;
    assert_eq!(linked.report.got.len(), 2);
    assert_eq!(signed(&linked.package, at, 2), signed(&linked.package, at + 4, 2) + 8, "else the addend is the slot's");
}

#[test]
fn who_wants_its_own_address_gets_it_from_a_veneer() {
    let wants = Toy { own_address: Some(0x20), ..ARCH };
    let options = LinkOptions { base: Some(BASE), ..LinkOptions::default() };
    let other = |mut object: Vec<u8>, name: &str, value: u8| {
        set_other(&mut object, name, value);
        object
    };
    let jumps = function("p", &(reloc("16", "mate") + &reloc("PC16", "mate"))) + &function("mate", "nop");
    let plain = object_named("p.s", &jumps, "");
    let link_all = |arch: Toy, objects: &[&[u8]], program: &[u8]| {
        let named: Vec<(String, &[u8])> = objects.iter().enumerate().map(|(i, o)| (format!("p{i}.o"), *o)).collect();
        link(&arch, &Program::parse(program).unwrap(), &named, &options).unwrap()
    };
    // Within an object nothing changes.
    let own = other(plain.clone(), "mate", 0x20);
    assert!(link_all(wants, &[&own], &program()).report.veneers.is_empty());
    // From another object there is a veneer, for each of the two types.
    let caller = object_named("p.s", &function("p", &(reloc("16", "mate") + &reloc("PC16", "mate"))), "");
    let mate = object_named("m.s", &function("mate", "nop"), "");
    let direct = link_all(wants, &[&caller, &mate], &program());
    assert!(direct.report.veneers.is_empty() && !direct.package.sites[0].own_address);
    let linked = link_all(wants, &[&caller, &other(mate.clone(), "mate", 0x20)], &program());
    assert_eq!(linked.report.veneers.len(), 1);
    let (v, to) = (linked.report.veneers[0].offset, BASE + offset(&linked, "mate"));
    assert_eq!((word(&linked.package, v + 1, 4), word(&linked.package, v + 6, 4)), ((to + 0x8000) >> 16, to & 0xffff));
    // Nor do branches in such code hand over another function's: calls there don't use branches.
    let mut alike = (caller.clone(), mate.clone());
    for o in [&mut alike.0, &mut alike.1] {
        o[48] |= 0x20; // e_flags
    }
    let both = link_all(wants, &[&alike.0, &alike.1], &program());
    assert_eq!(both.report.veneers.len(), 1);
    assert!(both.package.sites[0].own_address, "the new function is such code as well");
    // Functions of the program.
    let call = object_named("p.s", &function("p", &reloc("16", "q")), "");
    let mut program = bare_at(0x5010_0000);
    assert!(link_all(Toy { rows: WIDE, page_word: None, ..wants }, &[&call], &program).report.veneers.is_empty());
    set_other(&mut program, "q", 0x20);
    assert_eq!(link_all(Toy { rows: WIDE, page_word: None, ..wants }, &[&call], &program).report.veneers.len(), 1);
}

/// As [`ROWS`], with regions that hold program and image.
static WIDE: &[Howto] = &[
    Howto {
        align: 4,
        ..row(
            12,
            "R_TOY_JUMP",
            Expr::Region { bits: 28, after: 4 },
            Field { rshift: 2, ..WORD },
            Overflow::Unsigned(26),
            Role::Branch,
        )
    },
    row(14, "R_TOY_HI", Expr::Abs, half(0x8000, 16), Overflow::None, Role::Address),
    row(15, "R_TOY_LO", Expr::Abs, half(0, 0), Overflow::None, Role::Address),
];

/// A program at this address.
fn bare_at(at: u64) -> Vec<u8> {
    let source = format!("{PROGRAM}\nvoid _start(void) {{ for (;;) {{}} }}\n");
    program_of(
        &[("program.c", &source)],
        &format!("-O1 -falign-functions=4 -fno-pie -no-pie -nostdlib -static -fno-builtin -Wl,-Ttext-segment={at:#x}"),
    )
}

/// Changes a symbol's `st_other`.
fn set_other(file: &mut [u8], name: &str, value: u8) {
    let word = |at: usize, n: usize| file[at..at + n].iter().rev().fold(0usize, |v, b| v << 8 | usize::from(*b));
    let (headers, count) = (word(40, 8), word(60, 2));
    let section = |i: usize| headers + 64 * i;
    let table = (0..count).find(|i| word(section(*i) + 4, 4) == 2).unwrap();
    let (at, size, strings) =
        (word(section(table) + 24, 8), word(section(table) + 32, 8), word(section(table) + 40, 4));
    let names = word(section(strings) + 24, 8);
    let symbol = (at..at + size).step_by(24).find(|s| {
        let from = names + word(*s, 4);
        file[from..].starts_with(name.as_bytes()) && file[from + name.len()] == 0
    });
    file[symbol.unwrap() + 5] = value;
}

#[test]
fn other_instruction_sets_are_refused_by_name() {
    let arch = Toy { compressed: Some(0xf0), ..ARCH };
    let mut o = object_named("p.s", &(function("p", "nop") + &function("r", "nop")), "");
    let try_with = |o: &[u8], program: &[u8]| {
        link(&arch, &Program::parse(program).unwrap(), &[("p0.o".into(), o)], &LinkOptions::default())
    };
    assert!(try_with(&o, &program()).is_ok());
    set_other(&mut o, "r", 0xf0);
    refused(try_with(&o, &program()), "unsupported-isa", &["p0.o", "`r`", "is compressed code"]);
    let call = object_named("p.s", &function("p", &reloc("16", "q")), "");
    let mut program = program();
    assert!(try_with(&call, &program).is_ok());
    set_other(&mut program, "q", 0xf0);
    refused(try_with(&call, &program), "unsupported-isa", &["`q`"]);
}

#[test]
fn abis_are_compared_by_the_back_end() {
    let arch = Toy { abi_section: Some(".toy.abi"), ..ARCH };
    let with = |bytes: &str| function("p", "nop") + &format!(".section .toy.abi,\"a\"\n.byte {bytes}\n");
    let program = program_of(
        &[(
            "program.c",
            &format!(
                "{PROGRAM}\nvoid _start(void) {{ for (;;) {{}} }}\n__asm__(\".pushsection .toy.abi,\\\"a\\\"\\n.byte 1\\n.popsection\");"
            ),
        )],
        "-O1 -fno-pie -no-pie -nostdlib -static",
    );
    assert!(toy_with(arch, &program, &with("1"), &LinkOptions::default()).is_ok());
    let e =
        refused(toy_with(arch, &program, &with("2"), &LinkOptions::default()), "abi-mismatch", &["p0.o", "Some([2])"]);
    assert_eq!(e.hint(), Some("compile it like the program"));
}

#[test]
fn section_indices_of_the_processor() {
    let mut o = object_named("p.s", &(function("p", &reloc("8", "room")) + ".comm room,12,8\n"), "");
    let index = |o: &mut Vec<u8>, from: u16, to: u16| {
        let symbols: Vec<usize> =
            o.windows(2).enumerate().filter(|(_, w)| *w == from.to_le_bytes()).map(|(i, _)| i).collect();
        let at = symbols.into_iter().find(|i| o[i + 2..].starts_with(&8u64.to_le_bytes())).unwrap();
        o[at..at + 2].copy_from_slice(&to.to_le_bytes());
    };
    index(&mut o, 0xfff2, 0xff03);
    let program = program();
    let linked =
        |o: &[u8]| link(&ARCH, &Program::parse(&program).unwrap(), &[("p0.o".into(), o)], &LinkOptions::default());
    let l = linked(&o).unwrap();
    assert!(l.report.placements.iter().any(|p| p.symbol.as_deref() == Some("room") && p.size == 12));
    index(&mut o, 0xff03, 0xff04);
    refused(linked(&o), "undefined-symbol", &["`room`"]);
    index(&mut o, 0xff04, 0xff05);
    refused(linked(&o), "broken-object", &["`room`", "0xff05"]);
}

/// Labels from which a compiler reaches several objects.
#[test]
fn anchors_are_seen_through() {
    let source = |addend: u32| {
        function("p", &(reloc("8", &format!(".Lanchor+{addend}")) + &reloc("PC8", &format!("anchor+{addend}"))))
            + ".bss\n.p2align 3\n.Lanchor: anchor:\nmine: .zero 8\n.globl counter\n.type counter,@object\n.size counter,4\ncounter: .zero 4\nother: .zero 4\n"
    };
    for (addend, ok) in [(0, true), (4, true), (8, false), (12, true)] {
        let linked = toy(&source(addend), None);
        if ok {
            assert!(linked.is_ok(), "{addend}");
        } else {
            refused(linked, "hidden-reference", &["`counter`", "in `p`"]);
        }
    }
}

#[test]
fn small_pages() {
    let source = function("p", "nop") + ".data\n.p2align 4\n.quad 1\n.bss\n.zero 100\n";
    let size = |n| LinkOptions { page_size: Some(n), ..LinkOptions::default() };
    let linked = toy_with(ARCH, &program(), &source, &size(16)).unwrap();
    assert_eq!(linked.package.page_size, 16);
    assert!(linked.package.image_size() < 400, "{}", linked.package.image_size());
    assert!(linked.package.spans.iter().all(|s| s.offset % 16 == 0));
    assert!(toy_with(ARCH, &program(), &source, &LinkOptions { base: Some(BASE + 0x10), ..size(16) }).is_ok());
    refused(
        toy_with(ARCH, &program(), &source, &LinkOptions { base: Some(BASE + 8), ..size(16) }),
        "bad-base",
        &["0x10"],
    );
    for n in [0, 8, 24, 1 << 22] {
        refused(toy_with(ARCH, &program(), &source, &size(n)), "bad-page-size", &["power of two"]);
    }
    let aligned = source.replace(".p2align 4", ".p2align 6");
    refused(toy_with(ARCH, &program(), &aligned, &size(16)), "alignment", &[".data"]);
}
