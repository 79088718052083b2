//! Where things go, and what has no place.

use crate::support::*;
use tigerfix_core::error::Explain;
use tigerfix_core::link::{LinkOptions, link};
use tigerfix_core::program::Program;

const PROGRAM: &str = "int p(void) { return 1; } int q(void) { return 2; } int main(void) { return p() + q(); }";

#[test]
fn spans_and_their_order() {
    let source = "static int zeros[3000]; static int ones[2] = { 1, 1 }; const char text[] = \"read me\"; extern int puts(const char *);
        int p(void) { puts(text); return zeros[2]++ + ones[1]++; } int q(void) { return 5; }";
    let linked = patch(&pie(PROGRAM), &object(source)).unwrap();
    let package = &linked.package;
    let rights: Vec<_> = package.spans.iter().map(|s| (s.perm.read, s.perm.write, s.perm.exec)).collect();
    assert_eq!(rights, [(true, false, false), (true, false, true), (true, true, false)]);
    assert_eq!(package.page_size, 0x1000);
    let data = span(package, false, true);
    assert_eq!((data.data.len(), data.size >= 12008), (8, true), "zeros take no room in the package");
    let code = span(package, true, false);
    let end = code.offset + code.size;
    let landings: Vec<u64> = package.sites.iter().map(|s| s.landing).collect();
    assert_eq!(landings[1] - landings[0], 16);
    assert!(linked.report.veneers.iter().all(|v| v.offset < landings[0] && v.offset > offset(&linked, "q")));
    assert!(landings[1] + 14 <= package.trap && package.trap == end - 1);
    assert!(bytes(package, landings[0], 32).iter().all(|b| *b == 0xcc), "room only");
    assert_eq!(package.image_size() % 0x1000, 0);
}

#[test]
fn alignments_are_honoured() {
    let source =
        "__attribute__((aligned(4096))) static int far[4] = {1}; __attribute__((aligned(64))) const int table[3] = {7};
        __attribute__((aligned(128))) int p(void) { return table[1] + far[0]++; }";
    let linked = patch(&pie(PROGRAM), &object(source)).unwrap();
    for (name, align) in [("far", 4096), ("table", 64), ("p", 128)] {
        assert_eq!(offset(&linked, name) % align, 0, "{name}");
    }
    let too_much = "__attribute__((aligned(8192))) static int far[4] = {1}; int p(void) { return far[0]++; }";
    refused(patch(&pie(PROGRAM), &object(too_much)), "alignment", &["0x2000", "0x1000"]);
    let o = object_named(
        "p.c",
        "__attribute__((aligned(8192))) int far[4]; int p(void) { return far[0]++; }",
        "-O1 -fPIC -fcommon",
    );
    refused(patch(&pie(PROGRAM), &o), "alignment", &["far", "0x2000"]);
}

#[test]
fn sizes_are_bounded() {
    let source = |n: &str| format!("static char huge[{n}]; int p(void) {{ return huge[5]++; }}");
    let linked = patch(&pie(PROGRAM), &object(&source("200 << 20"))).unwrap();
    assert_eq!(span(&linked.package, false, true).data.len(), 0);
    refused(patch(&pie(PROGRAM), &object(&source("257L << 20"))), "image-size", &["bss"]);
    refused(patch(&pie(PROGRAM), &object(&source("1L << 40"))), "image-size", &["bss"]);
    let two = "static char a[200 << 20]; static char b[200 << 20]; int p(void) { return a[5]++ + b[6]++; }";
    refused(patch(&pie(PROGRAM), &object_named("p.c", two, "-O1 -fPIC -fdata-sections")), "image-size", &["bss"]);
    let common = object("__asm__(\".comm huge, 1 << 40, 8\"); int p(void) { return 2; }");
    refused(patch(&pie(PROGRAM), &common), "image-size", &["huge"]);
}

#[test]
fn rights_of_sections() {
    let asm = |line: &str| {
        object(&format!("__asm__(\".pushsection {line}\\n.byte 1\\n.popsection\"); int p(void) {{ return 2; }}"))
    };
    refused(patch(&pie(PROGRAM), &asm(".both,\\\"awx\\\",@progbits")), "writable-code", &["section .both", "p0.o"]);
    let linked = patch(&pie(PROGRAM), &asm("notloaded,\\\"\\\",@progbits")).unwrap();
    assert!(linked.report.placements.iter().all(|p| p.section != "notloaded"));
    let linked = patch(&pie(PROGRAM), &asm(".note.thing,\\\"a\\\",@note")).unwrap();
    assert!(linked.report.placements.iter().all(|p| p.section != ".note.thing" && p.section != ".comment"));
    let linked = patch(&pie(PROGRAM), &asm("mine,\\\"aw\\\",@progbits")).unwrap();
    let at = linked.report.placements.iter().find(|p| p.section == "mine").unwrap().offset;
    assert!(at >= span(&linked.package, false, true).offset);
}

#[test]
fn base_addresses() {
    let o = object("int counter = 1; int *pointer = &counter; int p(void) { return *pointer; }");
    let with =
        |program: &[u8], base| patch_with(program, &[&o], &LinkOptions { base: Some(base), ..LinkOptions::default() });
    let program = fixed(PROGRAM);
    let linked = with(&program, 0x5000_0000).unwrap();
    assert!(linked.package.residue.is_empty(), "bytes to copy");
    assert_eq!(linked.package.base, Some(0x5000_0000));
    assert_eq!(word(&linked.package, offset(&linked, "pointer"), 8), 0x5000_0000 + offset(&linked, "counter"));
    refused(with(&program, 0x5000_0800), "bad-base", &["0x50000800", "0x1000"]);
    refused(with(&program, u64::MAX - 0xfff), "bad-base", &["do not fit"]);
    refused(with(&program, address(&program, "p") & !0xfff), "bad-base", &["segment"]);
    // In a program that may lie anywhere, the base settles what refers to the image only.
    let linked = with(&pie(PROGRAM), 0x5000_0000).unwrap();
    assert_eq!(word(&linked.package, offset(&linked, "pointer"), 8), 0x5000_0000 + offset(&linked, "counter"));
}

#[test]
fn many_sections() {
    let functions: String = (0..70).map(|i| format!("int f{i}(int x) {{ return x + {i}; }} int d{i} = {i};")).collect();
    let o = object_named(
        "p.c",
        &format!("{functions} int p(void) {{ return f7(d9); }}"),
        "-O1 -fPIC -ffunction-sections -fdata-sections",
    );
    let linked = patch(&pie(PROGRAM), &o).unwrap();
    for i in 0..70 {
        assert_eq!(word(&linked.package, offset(&linked, &format!("d{i}")), 4), i);
    }
    // More sections than a symbol's 16-bit index can count.
    let lines: String = (0..0xff10).map(|i| format!(".section .text.s{i},\"ax\",@progbits\n")).collect();
    let source = format!(
        "{lines}.section .text.p,\"ax\",@progbits\n.globl p\n.type p,@function\np: movl $9,%eax\nret\n.size p,.-p\n"
    );
    let o = object_named("p.s", &source, "");
    let program = pie(PROGRAM);
    let parsed = Program::parse(&program).unwrap();
    let linked = link(&tigerfix_arch_x86_64::X86_64, &parsed, &[("p.o".into(), &o)], &LinkOptions::default()).unwrap();
    assert_eq!(bytes(&linked.package, linked.package.sites[0].new_offset, 2), [0xb8, 9]);
}

#[test]
fn the_report_names_everything() {
    let linked =
        patch(&pie(PROGRAM), &object("extern int puts(const char *); int p(void) { return puts(\"a\"); }")).unwrap();
    let sections: Vec<&str> = linked.report.placements.iter().map(|p| p.section.as_str()).collect();
    for s in [".text", ".eh_frame", ".rodata.str1.1"] {
        assert!(sections.contains(&s), "{sections:?}");
    }
    assert_eq!(linked.report.relocations["R_X86_64_PLT32"], 1);
    assert_eq!(linked.report.residue.iter().map(|(n, c)| (n.as_str(), *c)).collect::<Vec<_>>(), [("R_X86_64_64", 1)]);
    let e = refused(patch_with(&pie(PROGRAM), &[], &LinkOptions::default()), "no-objects", &[]);
    assert!(e.hint().is_some());
}
