//! Symbols that neither patch nor program defines, or the program several times.

use crate::support::*;
use tigerfix_core::error::Explain;
use tigerfix_core::link::{How, LinkError, LinkOptions};
use tigerfix_core::model::Referent;

const PROGRAM: &str = "#include <stdio.h>
    int counter; int print_global(void) { return printf(\"%d\\n\", counter); }
    int p(void) { return print_global(); } int main(void) { return p(); }";

#[test]
fn calls_of_imports_go_through_veneers() {
    let program = pie(PROGRAM);
    let source = "int printf(const char *, ...); int puts(const char *); int p(void) { printf(\"%d\", 1); printf(\"%d\", 2); return puts(\"x\"); }";
    let linked = patch(&program, &object(source)).unwrap();
    assert_eq!(how(&linked, "printf"), How::Import { weak: false });
    assert_eq!(linked.report.veneers.len(), 2, "one for each symbol");
    assert_eq!(linked.report.got.len(), 2);
    for v in &linked.report.veneers {
        let slot = v.slot.unwrap();
        let code = bytes(&linked.package, v.offset, 6);
        assert_eq!(code[..2], [0xff, 0x25], "jmp [rip + d]");
        let d = i32::from_le_bytes(code[2..].try_into().unwrap());
        assert_eq!((v.offset + 6).wrapping_add_signed(d.into()), slot);
        let r = residue(&linked.package, &v.symbol);
        assert_eq!((r.len(), r[0].0.offset, r[0].0.addend), (1, slot, 0), "the slot is all that is left");
        assert_eq!(*r[0].1, Referent::Import { weak: false });
        assert_eq!(r[0].0.r_type, 1, "R_X86_64_64");
    }
    // The GOT is read-only.
    let slot = linked.report.got[0].offset;
    let holder = linked.package.spans.iter().find(|s| s.offset <= slot && slot < s.offset + s.size).unwrap();
    assert!(!holder.perm.write && !holder.perm.exec);
    assert!(linked.package.warnings.iter().all(|w| !w.contains("printf")), "the program imports it too");
    assert!(linked.package.warnings.iter().any(|w| w.contains("puts")), "nobody knows puts yet");
    let options = LinkOptions { known_imports: names(&["puts"]), ..LinkOptions::default() };
    let linked = patch_with(&program, &[&object(source)], &options).unwrap();
    assert!(linked.package.warnings.is_empty());
}

#[test]
fn without_plt_too() {
    let source = "int printf(const char *, ...); int p(void) { return printf(\"\") + printf(\"\"); }";
    let linked = patch(&pie(PROGRAM), &object_named("p.c", source, "-O1 -fPIC -fno-plt")).unwrap();
    assert_eq!((linked.report.veneers.len(), linked.report.got.len()), (0, 1));
}

#[test]
fn typing_slips() {
    let program = pie(PROGRAM);
    let o = object("int print_golbal(void); int p(void) { return print_golbal(); }");
    let linked = patch(&program, &o).unwrap();
    assert!(
        linked.package.warnings.iter().any(|w| w.contains("did you mean `print_global`")),
        "{:?}",
        linked.package.warnings
    );
    let options = LinkOptions { imports_known: true, ..LinkOptions::default() };
    let e = patch_with(&program, &[&o], &options);
    refused(e, "undefined-symbol", &["print_golbal", "`print_global`", "p0.o: .text+0x", "in `p`"]);
    let o = object("int something_else_entirely(void); int p(void) { return something_else_entirely(); }");
    assert_eq!(patch_with(&program, &[&o], &options).unwrap().package.warnings.len(), 1, "a plug-in may define it");
}

#[test]
fn a_static_program_has_no_imports() {
    let program =
        bare("int counter; int print_global(void) { return counter; } int p(void) { return print_global(); }");
    let o = object(
        "int print_golbal(void); int missing_a(void); int missing_b(void); int p(void) { return print_golbal() + missing_a() + missing_b(); }",
    );
    let e = refused(
        patch(&program, &o),
        "undefined-symbol",
        &["`print_golbal`", "did you mean `print_global`?", "missing_a, missing_b"],
    );
    assert!(e.hint().is_some());
    let LinkError::Undefined { place, .. } = e else { panic!() };
    assert_eq!((place.object.as_str(), place.section.as_str(), place.within.as_deref()), ("p0.o", ".text", Some("p")));
}

#[test]
fn a_static_pie_has_no_imports_either() {
    let program =
        program_of(&[("p.c", "int p(void) { return 1; } int main(void) { return p(); }")], "-O1 -static-pie -fPIE");
    refused(
        patch(&program, &object("int missing_a(void); int p(void) { return missing_a(); }")),
        "undefined-symbol",
        &["missing_a"],
    );
}

#[test]
fn weak_references() {
    let source = "__attribute__((weak)) int maybe(void); int p(void) { return maybe ? maybe() : 0; }";
    // Absent from a static program: 0, and the call that is never made has somewhere to go.
    let program = bare("int p(void) { return 1; }");
    let linked = patch(&program, &object(source)).unwrap();
    assert_eq!(how(&linked, "maybe"), How::Absolute(0));
    assert!(linked.package.residue.is_empty());
    assert_eq!(linked.report.got.len(), 1);
    assert_eq!(word(&linked.package, linked.report.got[0].offset, 8), 0);
    // Absent from a dynamic one: bound when the patch is applied.
    let linked = patch(&pie(PROGRAM), &object(source)).unwrap();
    assert_eq!(how(&linked, "maybe"), How::Import { weak: true });
    assert!(linked.package.warnings.is_empty());
    // Present.
    let program = bare("int maybe(void) { return 3; } int p(void) { return maybe(); }");
    let linked = patch(&program, &object(source)).unwrap();
    assert_eq!(how(&linked, "maybe"), How::Program(tigerfix_core::addr::LinkAddr(address(&program, "maybe"))));
    // One strong reference makes the symbol strong.
    let strong = object("int maybe(void); int fresh(void) { return maybe(); }");
    let linked = patch_with(&pie(PROGRAM), &[&object(source), &strong], &LinkOptions::default()).unwrap();
    assert_eq!(how(&linked, "maybe"), How::Import { weak: false });
}

#[test]
fn statics_of_several_files() {
    let a = "static int state = 1; int a(void) { return state++; } int b(void); int main(void) { return a() + b(); }";
    let b = "static int state = 2; static int only = 5; int b(void) { return state++ + only++; }";
    let program = program_of(&[("a.c", a), ("b.c", b)], "-O1 -pie -fPIE");
    let o = object("extern int state, only; int a(void) { return state + only; }");
    let e = refused(patch(&program, &o), "ambiguous-symbol", &["`state`", "a.c:state", "b.c:state", "in `a`"]);
    assert!(e.hint().unwrap().contains("--bind NAME=file.c:NAME"));
    let LinkError::AmbiguousSymbol { candidates, .. } = e else { panic!() };
    let bind = |target: &str| LinkOptions { bind: vec![("state".into(), target.into())], ..LinkOptions::default() };
    for (i, file) in ["a.c", "b.c"].iter().enumerate() {
        let linked = patch_with(&program, &[&o], &bind(&format!("{file}:state"))).unwrap();
        assert_eq!(how(&linked, "state"), How::Program(candidates[i].address.unwrap()));
        assert!(matches!(how(&linked, "only"), How::Program(_)), "the only one of that name");
    }
    refused(patch_with(&program, &[&o], &bind("c.c:state")), "bad-bind", &["state=c.c:state"]);
    let unused = LinkOptions {
        bind: vec![("state".into(), "a.c:state".into()), ("other".into(), "a.c:state".into())],
        ..LinkOptions::default()
    };
    refused(patch_with(&program, &[&o], &unused), "bad-bind", &["--bind other="]);
}

#[test]
fn ifuncs_of_the_program_are_left_to_fix() {
    let program = pie("static int one(void) { return 1; } static int (*pick(void))(void) { return one; }
        int multi(void) __attribute__((ifunc(\"pick\"))); int p(void) { return multi(); } int main(void) { return p(); }");
    let linked = patch(
        &program,
        &object("int multi(void); int (*pointer)(void) = multi; int p(void) { return multi() + (multi == pointer); }"),
    )
    .unwrap();
    let resolver = tigerfix_core::addr::LinkAddr(address(&program, "multi"));
    assert_eq!(how(&linked, "multi"), How::ProgramIfunc(resolver));
    let all = residue(&linked.package, "multi");
    assert_eq!(all.len(), 2, "the pointer and one slot, for call and comparison: {all:?}");
    assert!(all.iter().all(|(r, s)| r.r_type == 1 && **s == Referent::ProgramIfunc(resolver)));
    let near = object_named(
        "p.c",
        "int multi(void); int p(void) { return multi == 0; }",
        "-O0 -fPIE -mno-direct-extern-access",
    );
    assert!(patch(&program, &near).is_ok());
}

#[test]
fn near_references_to_far_symbols_are_refused() {
    let program = fixed(PROGRAM);
    let o = object_named("p.c", "extern int far_data; int p(void) { return far_data; }", "-O1 -fPIE");
    let e = refused(patch(&program, &o), "not-position-independent", &["R_X86_64_PC32", "`far_data`", "p0.o: .text+"]);
    assert_eq!(e.hint(), Some("compile the patch with -fPIC"));
    let o =
        object_named("p.c", "int far_function(void); int (*p(void))(void) { return far_function; }", "-O1 -fno-pic");
    refused(patch(&program, &o), "not-position-independent", &["R_X86_64_32", "`far_function`"]);
    // Calls are another matter, in non-PIC code too.
    let o = object_named("p.c", "int far_function(void); int p(void) { return far_function() + 1; }", "-O1 -fno-pic");
    assert_eq!(patch(&program, &o).unwrap().report.veneers.len(), 1);
}

#[test]
fn what_the_program_imports_is_not_its_static() {
    let a = "#include <stdlib.h>\nint b(void); int p(void) { return abs(-3) + b(); } int main(void) { return p(); }";
    let b = "static int __attribute__((noinline)) abs(int x) { return x + 1; } int b(void) { return abs(4); }";
    let program = program_of(&[("a.c", a), ("b.c", b)], "-O1 -pie -fPIE -fno-builtin");
    let o = object_named("p.c", "int abs(int); int p(void) { return abs(-4); }", "-O1 -fPIC -fno-builtin");
    let linked = patch(&program, &o).unwrap();
    assert_eq!(how(&linked, "abs"), How::Import { weak: false });
    assert!(linked.report.notes.iter().any(|n| n.contains("`abs`")));
    let options = LinkOptions { bind: vec![("abs".into(), "b.c:abs".into())], ..LinkOptions::default() };
    assert!(matches!(how(&patch_with(&program, &[&o], &options).unwrap(), "abs"), How::Program(_)));
    // Without the import, the static one is meant, with a warning if a library has the name.
    let program = program_of(
        &[("a.c", "int b(void); int p(void) { return b(); } int main(void) { return p(); }"), ("b.c", b)],
        "-O1 -pie -fPIE -fno-builtin",
    );
    let options = LinkOptions { known_imports: names(&["abs"]), ..LinkOptions::default() };
    let linked = patch_with(&program, &[&o], &options).unwrap();
    assert!(matches!(how(&linked, "abs"), How::Program(_)));
    assert!(linked.package.warnings.iter().any(|n| n.contains("`abs`")));
}

#[test]
fn data_is_not_called() {
    let program = pie(
        "static int index_; int rename_me; int p(void) { return rename_me++ + index_++; } int main(void) { return p(); }",
    );
    let o = object("int index_(int); int p(void) { return index_(1) + 1; }");
    refused(patch(&program, &o), "kind-mismatch", &["`index_`", "data in the program"]);
}
