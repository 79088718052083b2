//! Types, ranges, and what is settled when.

use crate::support::*;
use tigerfix_core::error::Explain;
use tigerfix_core::link::{LinkError, LinkOptions, Linked};
use tigerfix_core::model::Referent;

const PROGRAM: &str = "int value = 3; int q(void) { return value; } int p(void) { return q() + 1; }";

fn pie_program() -> Vec<u8> {
    pie(&format!("{PROGRAM} int main(void) {{ return p(); }}"))
}

/// An assembly object with a function `p` of these lines.
fn asm(lines: &str) -> Vec<u8> {
    object_named(
        "p.s",
        &format!(
            ".globl p\n.type p,@function\np:\n{lines}\nret\n.size p,.-p\n.section .note.GNU-stack,\"\",@progbits\n"
        ),
        "",
    )
}

fn based(program: &[u8], o: &[u8], base: u64) -> Result<Linked, LinkError> {
    patch_with(program, &[o], &LinkOptions { base: Some(base), ..LinkOptions::default() })
}

#[test]
fn inside_the_image_everything_relative_is_settled() {
    let source = "static int local = 1; int global = 2; static const int table[4] = {1,2,3,4}; int p(int i) { return table[i & 3] + local++ + global++; }";
    let linked = patch(&pie_program(), &object_named("p.c", source, "-O1 -fPIE")).unwrap();
    assert!(linked.package.residue.is_empty(), "{:?}", linked.report.residue);
    let linked = patch(&pie_program(), &object(source)).unwrap();
    let slots = linked.report.got.len();
    assert_eq!((slots, linked.package.residue.len()), (1, 1), "the GOT slot of `global`");
}

#[test]
fn jump_tables_stay_in_the_image() {
    let cases: String = (0..12).map(|i| format!("case {i}: return f{}(x) * {};", i % 2, i * 7 + 3)).collect();
    let source = marked(&format!(
        "int f0(int), f1(int); FIXFUN(p) static int __attribute__((used)) p(int i, int x) {{ switch (i) {{ {cases} }} return 0; }}"
    ));
    let linked = patch(
        &pie(&format!(
            "int f0(int x) {{ return x; }} int f1(int x) {{ return x; }} {PROGRAM} int main(void) {{ return p(); }}"
        )),
        &object(&source),
    )
    .unwrap();
    let names: Vec<&str> =
        linked.package.residue.iter().map(|r| linked.package.symbols[r.symbol as usize].name.as_str()).collect();
    assert!(!names.contains(&"p") && !names.contains(&".text"), "{names:?}");
}

#[test]
fn calls_of_the_program_are_residue_until_addresses_are_known() {
    let o = object_named("p.c", "int q(void); extern int value; int p(void) { return q() + value; }", "-O1 -fPIE");
    let linked = patch(&pie_program(), &o).unwrap();
    let call = residue(&linked.package, "q");
    assert_eq!((call.len(), call[0].0.r_type, call[0].0.addend), (1, 4, -4), "PLT32 keeps its type");
    assert!(matches!(call[0].1, Referent::Program(_)));
    assert_eq!(residue(&linked.package, "value")[0].0.r_type, 2, "PC32");
    // At fixed addresses nothing is left.
    let program = bare(PROGRAM);
    assert_eq!(patch(&program, &o).unwrap().package.residue.len(), 2, "the image's address is still open");
    let linked = based(&program, &o, 0x5000_0000).unwrap();
    assert!(linked.package.residue.is_empty());
    let p = offset(&linked, "p");
    let at = (0..16).find(|i| bytes(&linked.package, p + i, 1) == [0xe8]).unwrap() + p;
    let d = word(&linked.package, at + 1, 4) as u32 as i32;
    assert_eq!((0x5000_0000 + at + 5).wrapping_add_signed(d.into()), address(&program, "q"));
}

#[test]
fn branches_out_of_reach_get_veneers() {
    let program = bare(PROGRAM);
    let o = object_named("p.c", "int q(void); int p(void) { return q() + q() * 2; }", "-O1 -fPIE");
    let linked = based(&program, &o, 0x7000_0000_0000).unwrap();
    assert!(linked.package.residue.is_empty());
    assert_eq!((linked.report.veneers.len(), linked.report.got.len()), (1, 1));
    assert_eq!(word(&linked.package, linked.report.got[0].offset, 8), address(&program, "q"));
    assert_eq!(based(&program, &o, 0x6000_0000).unwrap().report.veneers.len(), 0);
}

#[test]
fn relative_data_out_of_range_is_an_overflow() {
    let program = bare(PROGRAM);
    let o = object_named("p.c", "extern int value; int p(void) { return value; }", "-O1 -fPIE");
    let e = refused(
        based(&program, &o, 0x7000_0000_0000),
        "relocation-overflow",
        &["R_X86_64_PC32", "`value`", "p0.o: .text+0x", "in `p`", "0x7fffffff"],
    );
    let LinkError::Overflow { min, max, value, .. } = e else { panic!() };
    assert_eq!((min, max), (-0x8000_0000, 0x7fff_ffff));
    assert!(value < min);
    // The last address that fits, and the first that does not: P is the field, A is -4.
    let value = address(&program, "value");
    for (lines, ok) in [("movl value+0x7ffff000(%rip),%eax", true), ("leaq value-0x7fffffff(%rip),%rax", false)] {
        assert_eq!(based(&program, &asm(lines), value / 0x1000 * 0x1000 + 0x10_0000).is_ok(), ok, "{lines}");
    }
}

#[test]
fn absolute_addresses_of_32_bits() {
    let source = "static int local[4]; extern int value; int p(int i) { return local[i]++ + (long)&value; }";
    let o = object_named("p.c", source, "-O1 -fno-pic");
    let e = refused(patch(&pie_program(), &o), "not-position-independent", &["R_X86_64_32", "anywhere"]);
    assert!(e.hint().unwrap().contains("-fPIC"));
    // A fixed program: left to fix, or settled and checked.
    let program = bare(PROGRAM);
    let linked = patch(&program, &o).unwrap();
    assert!(linked.report.residue.contains_key("R_X86_64_32S"), "{:?}", linked.report.residue);
    assert!(residue(&linked.package, "value").is_empty(), "the program's addresses are known");
    assert!(based(&program, &o, 0x5000_0000).unwrap().package.residue.is_empty());
    refused(based(&program, &o, 0x1_0000_0000), "relocation-overflow", &["R_X86_64_32S", ".bss"]);
    refused(based(&program, &o, 0x8000_0000), "relocation-overflow", &["R_X86_64_32S"]);
    let zero_extended = asm("movl $table,%eax\n.pushsection .data\ntable: .quad 1\n.popsection");
    assert!(based(&program, &zero_extended, 0x8000_0000).is_ok(), "R_X86_64_32 is unsigned");
    refused(based(&program, &zero_extended, 0x1_0000_0000), "relocation-overflow", &["R_X86_64_32 ", "0xffffffff"]);
}

#[test]
fn small_fields() {
    let program = bare(PROGRAM);
    let data = |directive: &str| asm(&format!("nop\n.pushsection .data\n{directive}\n.popsection"));
    assert!(based(&program, &data(".word small\n.set small, 0xffff"), 0x5000_0000).is_ok());
    let number = object_named("n.s", ".globl number\n.set number, 0x1ff\n", "");
    let with = |o: &[u8]| patch_with(&program, &[o, &number], &LinkOptions::default());
    refused(with(&data(".byte number")), "relocation-overflow", &["R_X86_64_8", "0x1ff", "0xff"]);
    let linked = with(&data(".word number\n.quad number+1\n.long number")).unwrap();
    let at = span(&linked.package, false, true).offset;
    assert_eq!(
        (word(&linked.package, at, 2), word(&linked.package, at + 2, 8), word(&linked.package, at + 10, 4)),
        (0x1ff, 0x200, 0x1ff)
    );
}

#[test]
fn sizes_and_got_offsets() {
    let program = pie_program();
    let o = asm(
        "movl $value@SIZE,%eax\nleaq _GLOBAL_OFFSET_TABLE_(%rip),%rbx\nmovabsq $q@GOT,%rax\nmovabsq $here@GOTOFF,%rcx\nmovabsq $q@PLTOFF,%rdx\n.pushsection .data\nhere: .quad 1\n.popsection",
    );
    let linked = patch(&program, &o).unwrap();
    let p = linked.package.sites[0].new_offset;
    assert_eq!(word(&linked.package, p + 1, 4), 4, "sizeof value");
    let got = linked.report.got.iter().map(|s| s.offset).min().unwrap();
    let lea = p + 5;
    assert_eq!((lea + 7).wrapping_add_signed((word(&linked.package, lea + 3, 4) as u32 as i32).into()), got);
    let q = linked.report.got.iter().find(|s| s.symbol == "q").unwrap().offset;
    assert_eq!(word(&linked.package, lea + 7 + 2, 8), q - got);
    let here = span(&linked.package, false, true).offset;
    assert_eq!(word(&linked.package, lea + 17 + 2, 8), here - got);
    let veneer = linked.report.veneers[0].offset;
    assert_eq!(word(&linked.package, lea + 27 + 2, 8), veneer - got, "the program's function, through a veneer");
    refused(
        patch(&program, &asm("movabsq $value@GOTOFF,%rcx")),
        "not-position-independent",
        &["R_X86_64_GOTOFF64", "`value`"],
    );
}

#[test]
fn one_slot_for_each_symbol() {
    let o = object(
        "extern int value; int q(void); int *a(void) { return &value; } int *b(void) { return &value; } int (*c(void))(void) { return q; } int p(void) { return (long)q; }",
    );
    let linked = patch(&pie_program(), &o).unwrap();
    let symbols: Vec<&str> = linked.report.got.iter().map(|s| s.symbol.as_str()).collect();
    assert_eq!(symbols.len(), 2, "{symbols:?}");
    assert!(linked.package.residue.iter().all(|r| r.r_type == 1 && r.addend == 0));
}

#[test]
fn unsupported_types_are_named() {
    let mut o = asm("call q");
    // PLT32 (4) becomes COPY (5).
    let at = find(&o, &[4, 0, 0, 0]);
    o[at] = 5;
    refused(patch(&pie_program(), &o), "unsupported-relocation", &["R_X86_64_COPY", "`q`", "p0.o: .text+0x1 (in `p`)"]);
    o[at] = 200;
    refused(patch(&pie_program(), &o), "unsupported-relocation", &["type 200"]);
}

/// Where the relocation type lies in the first entry of an object whose only relocation is of this type.
fn find(o: &[u8], r_type: &[u8]) -> usize {
    use object::read::elf::{FileHeader, SectionHeader};
    let header = object::elf::FileHeader64::<object::Endianness>::parse(o).unwrap();
    let e = header.endian().unwrap();
    let sections = header.sections(e, o).unwrap();
    let rela = sections.iter().find(|s| s.sh_type(e) == object::elf::SHT_RELA).unwrap();
    let at = rela.sh_offset(e) as usize + 8;
    assert_eq!(o[at..at + 4], *r_type);
    at
}

#[test]
fn fields_outside_their_section() {
    let o = asm("call q");
    let at = find(&o, &[4, 0, 0, 0]) - 8;
    for offset in [3u64, 4, 6, 100, u64::MAX, u64::MAX - 2] {
        let mut o = o.clone();
        o[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        refused(patch(&pie_program(), &o), "bad-relocation", &["R_X86_64_PLT32", "outside"]);
        refused(based(&bare(PROGRAM), &o, 0x5000_0000), "bad-relocation", &["outside"]);
    }
    let mut o = o.clone();
    o[at + 12] = 200; // symbol 200
    refused(patch(&pie_program(), &o), "broken-object", &["symbol 200"]);
}

#[test]
fn weak_symbols_as_addresses() {
    let program = bare(PROGRAM);
    let source = "__attribute__((weak)) extern int maybe; int p(void) { return &maybe != 0; }";
    let linked = patch(&program, &object(source)).unwrap();
    assert_eq!(word(&linked.package, linked.report.got[0].offset, 8), 0);
    let o = asm(".weak maybe\nleaq maybe(%rip),%rax");
    refused(patch(&program, &o), "not-position-independent", &["R_X86_64_PC32", "`maybe`", "fixed address"]);
    assert!(based(&program, &o, 0x5000_0000).is_ok(), "0 is in reach there");
}
