//! Thread-local storage: the program's may be used, in every model; new or foreign one may not.

use crate::support::*;
use tigerfix_core::link::{How, SlotKind};

const PROGRAM: &str = "
    __thread long first = 1; __thread int second = 2; static __thread char hidden = 3; __thread long zeroed[4];
    int p(void) { return first + second + hidden++ + zeroed[0]; } int main(void) { return p(); }";

const PATCH: &str = "extern __thread int second; int p(void) { return ++second; }";

/// Offset of a variable from the thread pointer.
fn tp_offset(program: &[u8], name: &str) -> i64 {
    let p = tigerfix_core::program::Program::parse(program).unwrap();
    let tls = p.tls.unwrap();
    address(program, name) as i64 - tls.size.next_multiple_of(tls.align) as i64
}

#[test]
fn local_exec() {
    let program = pie(PROGRAM);
    let linked = patch(&program, &object_named("p.c", PATCH, "-O1 -fPIC -ftls-model=local-exec")).unwrap();
    assert!(linked.package.residue.is_empty() && linked.report.got.is_empty());
    assert_eq!(linked.report.relocations["R_X86_64_TPOFF32"], 2);
    assert_eq!(how(&linked, "second"), How::ProgramTls(address(&program, "second")));
    let p = offset(&linked, "p");
    // mov eax, fs:[disp32]; add eax, 1; mov fs:[disp32], eax
    assert_eq!(word(&linked.package, p + 4, 4) as u32 as i32, tp_offset(&program, "second") as i32);
}

#[test]
fn initial_exec() {
    let program = pie(PROGRAM);
    let linked = patch(&program, &object_named("p.c", PATCH, "-O1 -fPIC -ftls-model=initial-exec")).unwrap();
    assert!(linked.package.residue.is_empty());
    let slot = &linked.report.got[0];
    assert_eq!((slot.kind, slot.symbol.as_str(), linked.report.got.len()), (SlotKind::TpOffset, "second", 1));
    assert_eq!(word(&linked.package, slot.offset, 8) as i64, tp_offset(&program, "second"));
}

#[test]
fn global_and_local_dynamic() {
    let program = pie(PROGRAM);
    let linked = patch(&program, &object(PATCH)).unwrap();
    let kinds: Vec<SlotKind> = linked.report.got.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [SlotKind::Module, SlotKind::DtpOffset, SlotKind::Address], "and the slot of __tls_get_addr");
    let at = linked.report.got[0].offset;
    assert_eq!((word(&linked.package, at, 8), word(&linked.package, at + 8, 8)), (1, address(&program, "second")));
    let source = "extern __thread int second __attribute__((visibility(\"hidden\"))); extern __thread char hidden __attribute__((visibility(\"hidden\")));
        int p(void) { return ++second + ++hidden; }";
    let linked = patch(&program, &object_named("p.c", source, "-O1 -fPIC -ftls-model=local-dynamic")).unwrap();
    let at = linked.report.got[0].offset;
    assert_eq!((word(&linked.package, at, 8), word(&linked.package, at + 8, 8)), (1, 0));
    assert!(linked.report.relocations["R_X86_64_DTPOFF32"] >= 2);
    assert!(matches!(how(&linked, "hidden"), How::ProgramTls(_)), "a static of the program");
}

#[test]
fn descriptors_are_refused_by_name() {
    let o = object_named("p.c", PATCH, "-O1 -fPIC -mtls-dialect=gnu2");
    refused(patch(&pie(PROGRAM), &o), "unsupported-relocation", &["R_X86_64_GOTPC32_TLSDESC", "`second`", "in `p`"]);
}

#[test]
fn new_ones_are_refused() {
    let program = pie(PROGRAM);
    let with = |declaration: &str, flags: &str| {
        patch(&program, &object_named("p.c", &format!("{declaration} int p(void) {{ return ++fresh; }}"), flags))
    };
    refused(with("__thread int fresh = 1;", "-O1 -fPIC"), "new-thread-local", &["`fresh`", "p0.o"]);
    refused(with("__thread int fresh;", "-O1 -fPIC"), "new-thread-local", &["`fresh`"]);
    refused(with("static __thread int fresh;", "-O1 -fPIC"), "new-thread-local", &["`fresh`"]);
    refused(with("__thread int fresh;", "-O1 -fPIC -fcommon"), "new-thread-local", &["`fresh`"]);
}

#[test]
fn foreign_ones_are_refused() {
    let o = object("extern __thread int elsewhere; int p(void) { return elsewhere; }");
    refused(patch(&pie(PROGRAM), &o), "thread-local", &["`elsewhere`", "another module"]);
    let library =
        program_of(&[("l.c", "__thread int second = 2; int p(void) { return second; }")], "-O1 -fPIC -shared");
    refused(patch(&library, &object(PATCH)), "thread-local", &["`second`", "shared library"]);
}

#[test]
fn kinds_are_compared() {
    let program = pie(&format!("{PROGRAM} int plain = 1;"));
    let o = object("extern __thread int plain; int p(void) { return plain; }");
    refused(patch(&program, &o), "thread-local", &["`plain`", "ordinary variable in the program"]);
    let o = object("extern int second; int p(void) { return second; }");
    refused(patch(&program, &o), "thread-local", &["`second`", "ordinary variable in the patch"]);
    let o = object("__thread int plain; int p(void) { return plain; }");
    refused(patch(&program, &o), "new-thread-local", &["`plain`"]);
}
