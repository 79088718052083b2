//! Objects that are not what they should be, and contents that no patch can have.

use crate::support::*;
use tigerfix_core::error::{Class, Explain};

const PROGRAM: &str = "int p(void) { return 1; } int main(void) { return p(); }";

#[test]
fn files_of_other_kinds() {
    let program = pie(PROGRAM);
    let kind = |data: &[u8], rule: &str, piece: &str| {
        let e = refused(patch(&program, data), rule, &["p0.o", piece]);
        assert_eq!((e.class(), e.hint().is_some()), (Class::BadInput, true), "{e}");
        e
    };
    kind(b"", "not-elf", "empty");
    kind(b"int p(void) { return 1; }", "not-elf", "magic");
    kind(b"\x7fELF", "not-elf", "header");
    kind(&object("int p(void) { return 1; }")[..40], "not-elf", "header");
    kind(b"!<arch>\nlib.o/", "archive", "static library");
    kind(b"!<thin>\n", "archive", "");
    kind(b"BC\xc0\xde1234", "lto-object", "");
    kind(&program, "object-type", "type 3");
    kind(&fixed(PROGRAM), "object-type", "type 2");
}

#[test]
fn other_machines() {
    let program = pie(PROGRAM);
    let mut o = object("int p(void) { return 1; }");
    o[18] = 183;
    refused(patch(&program, &o), "wrong-machine", &["p0.o", "not an x86-64 object"]);
    let o = object_named("p.s", ".globl p\n.type p,@function\np: ret\n.size p,.-p\n", "-Wa,--32");
    refused(patch(&program, &o), "wrong-machine", &["i386"]);
    let o = object_named("p.s", ".globl p\n.type p,@function\np: ret\n.size p,.-p\n", "-Wa,--x32");
    refused(patch(&program, &o), "wrong-machine", &["x32"]);
}

#[test]
fn link_time_optimisation() {
    let program = pie(PROGRAM);
    let slim = object_named("p.c", "int p(void) { return 1; }", "-O1 -fPIC -flto -fno-fat-lto-objects");
    let e = refused(patch(&program, &slim), "lto-object", &["p0.o"]);
    assert!(e.hint().unwrap().contains("-ffat-lto-objects"));
    let fat = object_named("p.c", "int p(void) { return 2; }", "-O1 -fPIC -flto -ffat-lto-objects");
    assert_eq!(patch(&program, &fat).unwrap().package.sites.len(), 1);
}

#[test]
fn constructors() {
    let program = pie(PROGRAM);
    let with = |text: &str| patch(&program, &object(&format!("{text} int p(void) {{ return 1; }}")));
    let e = refused(
        with("__attribute__((constructor)) void c(void) { }"),
        "constructors",
        &["section .init_array", "p0.o"],
    );
    assert!(e.hint().is_some() && e.class() == Class::Refused);
    refused(with("__attribute__((constructor(200))) void c(void) { }"), "constructors", &[".init_array.00200"]);
    refused(with("__attribute__((destructor)) void c(void) { }"), "constructors", &[".fini_array"]);
    refused(with("__attribute__((section(\".ctors\"), used)) static void *c = 0;"), "constructors", &[".ctors"]);
    refused(
        with("__attribute__((section(\".preinit_array\"), used)) static void *c = 0;"),
        "constructors",
        &[".preinit_array"],
    );
    refused(with("__asm__(\".pushsection .init,\\\"ax\\\"\\nnop\\n.popsection\");"), "constructors", &[".init"]);
    with("__asm__(\".pushsection .init_array,\\\"aw\\\",@init_array\\n.popsection\");").unwrap();
}

#[test]
fn exception_handlers() {
    let program = program_of(&[("m.cc", "int p() { return 1; } int main() { return p(); }")], "-O1 -fPIE -pie");
    let throwing = "void may_throw(); int p() { try { may_throw(); } catch (int) { return 1; } return 2; }";
    let e = refused(
        patch(&program, &object_named("p.cc", throwing, "-O1 -fPIC")),
        "exception-table",
        &[".gcc_except_table"],
    );
    assert!(e.hint().unwrap().contains("-fno-exceptions"));
    let plain = "int p() { return 2; }";
    patch(&program, &object_named("p.cc", plain, "-O1 -fPIC")).unwrap();
}

#[test]
fn new_ifuncs() {
    let o = object(
        "static int one(void) { return 1; } static int (*pick(void))(void) { return one; }
        int multi(void) __attribute__((ifunc(\"pick\"))); int p(void) { return multi(); }",
    );
    refused(patch(&pie(PROGRAM), &o), "patch-ifunc", &["`multi`", "p0.o"]);
}

#[test]
fn references_to_what_is_not_loaded() {
    let o = object(
        "__asm__(\".pushsection extra,\\\"\\\",@progbits\\nthing: .quad 1\\n.popsection\"); extern long thing __attribute__((visibility(\"hidden\"))); int p(void) { return thing; }",
    );
    refused(patch(&pie(PROGRAM), &o), "discarded-section", &["extra", "in `p`"]);
}

#[test]
fn every_rule_has_its_words() {
    // Hints are whole clauses, rules are kebab-case.
    let program = pie(PROGRAM);
    let e = patch(&program, b"").unwrap_err();
    assert!(e.rule().chars().all(|c| c.is_ascii_lowercase() || c == '-'));
    assert!(!e.hint().unwrap().ends_with('.'));
}
