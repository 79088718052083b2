//! Which functions are replaced, and where calls and addresses of them go.

use crate::support::*;
use tigerfix_core::error::Explain;
use tigerfix_core::link::{How, LinkError, LinkOptions};
use tigerfix_core::model::Referent;

const PROGRAM: &str = "
    static int same(void) { return 1; }
    int (*table[])(void) = { same };
    int p(void) { return same() + 1; }
    int q(void) { return 7; }
    int value = 3;
    int main(void) { return p() + q() + table[0](); }";

fn sites(linked: &tigerfix_core::link::Linked) -> Vec<(String, String)> {
    linked.package.sites.iter().map(|s| (s.new.clone(), s.old.clone())).collect()
}

fn pair(new: &str, old: &str) -> (String, String) {
    (new.into(), old.into())
}

#[test]
fn a_common_global_name_replaces() {
    let program = pie(PROGRAM);
    let linked =
        patch(&program, &object("int helper(void); int p(void) { return 2; } int fresh(void) { return 1; }")).unwrap();
    assert_eq!(sites(&linked), [pair("p", "p")]);
    let site = &linked.package.sites[0];
    assert_eq!(site.entry.0, address(&program, "p"));
    assert_eq!(site.new_offset, offset(&linked, "p"));
    assert_eq!((site.pad, site.window, site.expected.len(), site.body.len()), (0, 0, 0, 0));
    assert_eq!(bytes(&linked.package, site.new_offset, 6), [0xb8, 2, 0, 0, 0, 0xc3], "mov eax, 2; ret");
    assert!(!linked.package.program.fixed && linked.package.base.is_none());
}

#[test]
fn markers_choose_and_the_rest_is_private() {
    let source = marked("FIXFUN(p) int p(void) { return q_(); } int q(void) { return 9; }").replace("q_", "q");
    let source = source.replace("FIXFUN(p) int p", "int q(void); FIXFUN(p) int p");
    let linked = patch(&pie(PROGRAM), &object(&source)).unwrap();
    assert_eq!(sites(&linked), [pair("p", "p")]);
    assert!(linked.report.notes.iter().any(|n| n.contains("`q` is not marked")), "{:?}", linked.report.notes);
    assert!(matches!(how(&linked, "q"), How::Patch(_)), "its own copy");
}

#[test]
fn a_static_function_may_be_the_new_one() {
    let source = marked("FIXFUN(p) static int __attribute__((used)) p(void) { return 2; }");
    let linked = patch(&pie(PROGRAM), &object(&source)).unwrap();
    assert_eq!(sites(&linked), [pair("p", "p")]);
}

#[test]
fn markers_and_options_name_pairs() {
    let source = marked("FIXFUN_AS(new_p, \"p\") int new_p(void) { return 2; } int new_q(void) { return 3; }");
    let options = replacing(&[("new_q", "q")]);
    let linked = patch_with(&pie(PROGRAM), &[&object(&source)], &options).unwrap();
    let mut got = sites(&linked);
    got.sort();
    assert_eq!(got, [pair("new_p", "p"), pair("new_q", "q")]);
}

#[test]
fn padding_between_markers_is_nothing() {
    let source = "__asm__(\".pushsection .tfix.marks,\\\"a\\\",@progbits\\n.zero 5\\n.asciz \\\"p\\\"\\n.balign 16\\n.asciz \\\"p\\\"\\n.balign 8\\n.popsection\");
        int p(void) { return 2; }";
    assert_eq!(sites(&patch(&pie(PROGRAM), &object(source)).unwrap()), [pair("p", "p")]);
}

#[test]
fn bad_markers() {
    let asm = |text: &str| {
        object(&format!(
            "__asm__(\".pushsection .tfix.marks,\\\"a\\\",@progbits\\n{text}\\n.popsection\"); int p(void) {{ return 2; }}"
        ))
    };
    let program = pie(PROGRAM);
    refused(patch(&program, &asm(".asciz \\\"=p\\\"")), "bad-marker", &["=p", "p0.o"]);
    refused(patch(&program, &asm(".asciz \\\"p=\\\"")), "bad-marker", &["p="]);
    refused(patch(&program, &asm(".byte 0xff, 0xfe, 0")), "bad-marker", &["UTF-8"]);
    refused(patch(&program, &asm(".byte 7, 112, 0")), "bad-marker", &["control"]);
    refused(patch(&program, &asm(".quad p")), "bad-marker", &["strings"]);
}

#[test]
fn nothing_to_replace() {
    let e = refused(patch(&pie(PROGRAM), &object("int fresh(void) { return 1; }")), "nothing-to-replace", &[]);
    assert!(e.hint().unwrap().contains("FIXFUN"));
}

#[test]
fn old_functions_that_are_not_there() {
    let program =
        pie("#include <stdio.h>\nint counter(void) { return 1; } int main(void) { puts(\"\"); return counter(); }");
    let object = object("int n(void) { return 1; }");
    let with = |old: &str| patch_with(&program, &[&object], &replacing(&[("n", old)]));
    refused(with("cuonter"), "no-such-function", &["`cuonter`", "did you mean `counter`?"]);
    refused(with("nothing_like_it"), "no-such-function", &["nothing_like_it"]);
    let e = refused(with("puts"), "imported-function", &["puts"]);
    assert!(e.hint().unwrap().contains("library"));
    let e = patch_with(&program, &[&object], &replacing(&[("nn", "counter")]));
    refused(e, "no-patch-function", &["`nn`"]);
}

#[test]
fn a_clone_is_suggested() {
    let program = pie(
        "static int __attribute__((noinline)) twice(int a) { return a * 2; } int main(int c, char **v) { return twice(c); }",
    );
    let e = patch_with(&program, &[&object("int n(int a) { return a; }")], &replacing(&[("n", "twic")]));
    refused(e, "no-such-function", &["did you mean `twice`"]);
    let program = pie(
        "int f(int a) __asm__(\"f.constprop.0\"); int f(int a) { return a; } int main(int c, char **v) { return f(c); }",
    );
    let e = patch_with(&program, &[&object("int n(int a) { return a; }")], &replacing(&[("n", "f")]));
    refused(e, "no-such-function", &["did you mean `f.constprop.0`"]);
}

fn two_statics() -> Vec<u8> {
    let a = "static int __attribute__((noinline)) init(int x) { return x + 1; } int a(int x) { return init(x) * 2; } int b(int);
        int main(int c, char **v) { return a(c) + b(c); }";
    let b = "static int __attribute__((noinline)) init(int x) { return x + 2; } int b(int x) { return init(x) * 3; }";
    program_of(&[("a.c", a), ("b.c", b)], "-O1 -pie -fPIE")
}

#[test]
fn ambiguous_statics_are_listed_and_picked() {
    let program = two_statics();
    let object = object("int init2(int x) { return x; }");
    let with = |old: &str| patch_with(&program, &[&object], &replacing(&[("init2", old)]));
    let e = refused(with("init"), "ambiguous-function", &["a.c:init at 0x", "b.c:init at 0x"]);
    assert!(e.hint().unwrap().contains("file.c:NAME"));
    let LinkError::AmbiguousFunction { candidates, .. } = e else { panic!() };
    let entry = |spec: &str| with(spec).unwrap().package.sites[0].entry;
    assert_eq!(
        (entry("a.c:init"), entry("./src/b.c:init")),
        (candidates[0].address.unwrap(), candidates[1].address.unwrap())
    );
    refused(with("c.c:init"), "no-such-function", &["c.c:init", "did you mean `a.c:init`"]);
    // --bind picks for markers too.
    let bind = vec![("init".to_string(), "b.c:init".to_string())];
    let options = LinkOptions { bind, ..replacing(&[("init2", "init")]) };
    let linked = patch_with(&program, &[&object], &options).unwrap();
    assert_eq!(Some(linked.package.sites[0].entry), candidates[1].address);
}

#[test]
fn a_global_wins_over_statics() {
    let a = "int init(int x) { return x + 1; } int b(int); int main(int c, char **v) { return init(c) + b(c); }";
    let b = "static int __attribute__((noinline)) init(int x) { return x + 2; } int b(int x) { return init(x) * 3; }";
    for files in [[("a.c", a), ("b.c", b)], [("b.c", b), ("a.c", a)]] {
        let program = program_of(&files, "-O1 -pie -fPIE");
        let linked = patch(&program, &object("int init(int x) { return x; }")).unwrap();
        let parsed = tigerfix_core::program::Program::parse(&program).unwrap();
        let global = parsed.named("init").find(|s| s.file.is_none()).unwrap().addr;
        assert_eq!(linked.package.sites[0].entry, global);
    }
}

#[test]
fn the_program_static_alone_is_not_replaced_by_chance() {
    let program = pie(PROGRAM);
    let linked = patch(&program, &object("int same(void) { return 5; } int p(void) { return same(); }")).unwrap();
    assert_eq!(sites(&linked), [pair("p", "p")]);
    assert!(linked.report.notes.iter().any(|n| n.contains("`same` is a new function")), "{:?}", linked.report.notes);
}

#[test]
fn hidden_functions_of_a_library_count_as_global() {
    let library = program_of(
        &[(
            "lib.c",
            "__attribute__((visibility(\"hidden\"))) int hid(int a) { return a + 1; } int pub(int a) { return hid(a); }",
        )],
        "-O0 -fPIC -shared",
    );
    let linked = patch(&library, &object("int hid(int a) { return a + 2; }")).unwrap();
    assert_eq!(sites(&linked), [pair("hid", "hid")]);
}

#[test]
fn one_old_function_one_new_one() {
    let program = pie(PROGRAM);
    let o = object("int n1(void) { return 1; } int n2(void) { return 2; }");
    refused(
        patch_with(&program, &[&o], &replacing(&[("n1", "p"), ("n2", "p")])),
        "duplicate-replacement",
        &["`p`", "n1", "n2"],
    );
    let same = patch_with(&program, &[&o], &replacing(&[("n1", "p"), ("n1", "p")])).unwrap();
    assert_eq!(same.package.sites.len(), 1, "said twice is said once");
    let both = patch_with(&program, &[&o], &replacing(&[("n1", "p"), ("n1", "q")])).unwrap();
    assert_eq!(both.package.sites.len(), 2, "one new function may replace several");
}

#[test]
fn aliases_are_one_function() {
    let program = pie(
        "int f(void) { return 1; } int g(void) __attribute__((alias(\"f\"))); int main(void) { return f() + g(); }",
    );
    let e = patch(&program, &object("int f(void) { return 1; } int g(void) { return 2; }"));
    refused(e, "duplicate-replacement", &["`f`", "`g`"]);
    let linked =
        patch(&program, &object("int f(void) { return 1; } int g(void) __attribute__((alias(\"f\")));")).unwrap();
    assert_eq!(linked.package.sites.len(), 1);
}

#[test]
fn ambiguous_in_the_patch() {
    let a = object("static int __attribute__((used)) p(void) { return 1; }");
    let b = object("static int __attribute__((used)) p(void) { return 2; }");
    let options = replacing(&[("p", "p")]);
    refused(patch_with(&pie(PROGRAM), &[&a, &b], &options), "ambiguous-patch-function", &["p0.o:p", "p1.o:p"]);
    // A marker speaks of its own object.
    let b = object(&marked("FIXFUN(p) static int __attribute__((used)) p(void) { return 2; }"));
    let linked = patch_with(&pie(PROGRAM), &[&a, &b], &LinkOptions::default()).unwrap();
    assert_eq!(bytes(&linked.package, linked.package.sites[0].new_offset, 2), [0xb8, 2]);
}

#[test]
fn ifuncs_are_not_replaced() {
    let program = pie("static int one(void) { return 1; } static int (*pick(void))(void) { return one; }
        int multi(void) __attribute__((ifunc(\"pick\"))); int main(void) { return multi(); }");
    refused(patch(&program, &object("int multi(void) { return 2; }")), "ifunc", &["multi"]);
}

#[test]
fn options_are_more_exact_than_markers() {
    let program = two_statics();
    let o = object(&marked("FIXFUN(init) static int __attribute__((used)) init(int x) { return x; }"));
    refused(patch(&program, &o), "ambiguous-function", &["a.c:init"]);
    let linked = patch_with(&program, &[&o], &replacing(&[("init", "b.c:init")])).unwrap();
    assert_eq!(linked.package.sites.len(), 1);
}

#[test]
fn calls_go_to_the_new_function_and_addresses_to_the_old_entry() {
    let program = pie(PROGRAM);
    let source = "int p(void); int (*pointer)(void) = p;
        int q(void) { return 1; }
        int (*get(void))(void) { return p; }
        int p(void) { volatile int n = 1; return n ? get() == p : p() * 3 + n; }";
    for flags in ["-O1 -fPIC", "-O1 -fPIE", "-O1 -fPIE -ffunction-sections", "-O0 -fPIC -fno-plt"] {
        let linked = patch(&program, &object_named("p.c", source, flags)).unwrap();
        let entry = address(&program, "p");
        let site = linked.package.sites.iter().find(|s| s.new == "p").unwrap();
        let to_old = residue(&linked.package, "p");
        assert!(!to_old.is_empty(), "{flags}");
        assert!(to_old.iter().all(|(_, r)| **r == Referent::Program(tigerfix_core::addr::LinkAddr(entry))), "{flags}");
        let pointer = offset(&linked, "pointer");
        assert!(to_old.iter().any(|(r, _)| r.offset == pointer && r.addend == 0), "the pointer in data: {flags}");
        // Direct calls: e8 rel32 to the new function, settled.
        if !flags.contains("no-plt") {
            let code = span(&linked.package, true, false);
            let calls = (0..code.data.len() - 4).filter(|i| matches!(code.data[*i], 0xe8 | 0xe9)).filter(|i| {
                let d = i32::from_le_bytes(code.data[i + 1..i + 5].try_into().unwrap());
                (code.offset + *i as u64 + 5).wrapping_add_signed(d.into()) == site.new_offset
            });
            assert!(calls.count() >= 1, "{flags}");
        }
    }
}

#[test]
fn the_old_name_called_from_a_renamed_replacement() {
    let program = pie(PROGRAM);
    let o = object("int p(void); int new_p(void) { return p() + 1; } int (*a)(void) = p;");
    let linked = patch_with(&program, &[&o], &replacing(&[("new_p", "p")])).unwrap();
    let to_old = residue(&linked.package, "p");
    assert_eq!(to_old.len(), 1, "only the pointer; the call goes straight to the new function");
    assert_eq!(to_old[0].0.offset, offset(&linked, "a"));
}

#[test]
fn static_functions_are_found_behind_section_symbols() {
    let program = pie(PROGRAM);
    // The compiler refers to static functions by section and offset.
    let source = marked(
        "static int __attribute__((used)) pad(void) { return 4; }
        FIXFUN(same) static int __attribute__((used)) same(void) { return 5; }
        FIXFUN(p) int p(void) { return same(); }
        int (*pointers[2])(void) = { same, pad };
        int (*get(void))(void) { return same; }
        int (*get_pad(void))(void) { return pad; }",
    );
    for flags in ["-O0 -fPIC -ffunction-sections", "-O1 -fPIC -ffunction-sections", "-O1 -fPIC"] {
        let linked = patch(&program, &object_named("p.c", &source, flags)).unwrap();
        let to_old = residue(&linked.package, "same");
        let entry = Referent::Program(tigerfix_core::addr::LinkAddr(address(&program, "same")));
        let at = offset(&linked, "pointers");
        assert!(to_old.iter().any(|(r, s)| r.offset == at && r.addend == 0 && **s == entry), "{flags}: {to_old:?}");
        if flags.contains("sections") {
            let get = offset(&linked, "get");
            let lea = to_old.iter().find(|(r, _)| r.offset >= get && r.offset < get + 16);
            assert!(lea.is_some_and(|(r, s)| r.addend == -4 && **s == entry), "{flags}: {to_old:?}");
        }
        assert_eq!(residue(&linked.package, "same").len(), to_old.len());
        let pad = linked.package.residue.iter().find(|r| r.offset == at + 8).unwrap();
        let symbol = &linked.package.symbols[pad.symbol as usize];
        let Referent::Image(start) = symbol.referent else { panic!("{symbol:?}") };
        assert_eq!(start.wrapping_add_signed(pad.addend), offset(&linked, "pad"), "a function that stays in the patch");
    }
}

#[test]
fn unwind_tables_describe_the_new_function() {
    let program = pie(PROGRAM);
    let o = object(&marked("FIXFUN(p) int p(void) { return 5; }"));
    let linked = patch(&program, &o).unwrap();
    let (at, size) = linked.package.eh_frame.unwrap();
    assert!(size > 20);
    assert!(residue(&linked.package, "p").is_empty(), "nothing in .eh_frame leads to the program");
    // The FDE behind the CIE: its start, relative to the field, is the new function.
    let fde = at + 4 + word(&linked.package, at, 4);
    let start = word(&linked.package, fde + 8, 4) as u32 as i32;
    assert_eq!((fde + 8).wrapping_add_signed(start.into()), linked.package.sites[0].new_offset);
}

#[test]
fn versions() {
    let program = pie(PROGRAM);
    let v = |text: &str| object(&marked(&format!("{text} int p(void) {{ return 1; }}")));
    let version = |o: &[u8]| patch(&program, o).unwrap().package.version;
    assert_eq!(version(&v("")), "");
    assert_eq!(version(&v("PATCH_VERSION(\"1.2\")")), "1.2");
    assert_eq!(version(&v("const char patch_version[] = \"3.4\";")), "3.4");
    let other = object(&marked("PATCH_VERSION(\"1.2\") int fresh(void) { return 1; }"));
    let linked = patch_with(&program, &[&v("PATCH_VERSION(\"1.2\")"), &other], &LinkOptions::default()).unwrap();
    assert_eq!(linked.package.version, "1.2");
    let e = patch_with(&program, &[&v("PATCH_VERSION(\"1.3\")"), &other], &LinkOptions::default());
    refused(e, "version-conflict", &["1.2", "1.3", "p0.o", "p1.o"]);
}

fn demangle(name: &str) -> Option<String> {
    if let Ok(d) = rustc_demangle::try_demangle(name) {
        return Some(format!("{d:#}"));
    }
    cpp_demangle::Symbol::new(name).ok()?.demangle().ok()
}

#[test]
fn plain_names_of_cxx_functions() {
    let source =
        "namespace net { int open(int a) { return a; } int open(char a) { return a; } int shut(int a) { return a + 1; }
        struct S { int get() const; }; int S::get() const { return 3; } }
        int main(int c, char **) { net::S s; return net::open(c) + net::open((char)c) + net::shut(c) + s.get(); }";
    let program = program_of(&[("m.cc", source)], "-O0 -pie -fPIE");
    let patch_source = "namespace net { int shut(int a) { return a + 2; } int open(int a) { return a + 9; }
        struct S { int get() const; }; int S::get() const { return 4; } }";
    let o = object_named("p.cc", patch_source, "-O1 -fPIC");
    let options = |new: &str, old: &str| LinkOptions { demangle: Some(&demangle), ..replacing(&[(new, old)]) };
    for (new, old) in [
        ("_ZN3net4shutEi", "_ZN3net4shutEi"),
        ("net::shut(int)", "net::shut"),
        ("shut", "m.cc:nope"),
        ("shut", "shut"),
        ("net::S::get", "net::S::get() const"),
    ] {
        let linked = patch_with(&program, &[&o], &options(new, old));
        if old.contains("nope") {
            refused(linked, "no-such-function", &[]);
            continue;
        }
        assert_eq!(linked.unwrap().package.sites.len(), 1, "{new}={old}");
    }
    let e = patch_with(&program, &[&o], &options("shut", "open"));
    refused(e, "ambiguous-function", &["_ZN3net4openEi", "_ZN3net4openEc"]);
    // A marker's plain name means what has the same parameters.
    let o =
        object_named("p.cc", &marked("FIXFUN(open) namespace net { int open(int a) { return a + 9; } }"), "-O1 -fPIC");
    let with = LinkOptions { demangle: Some(&demangle), ..LinkOptions::default() };
    let linked = patch_with(&program, &[&o], &with).unwrap();
    assert_eq!(linked.package.sites[0].old, "_ZN3net4openEi");
    refused(patch_with(&program, &[&o], &LinkOptions::default()), "no-patch-function", &["`open`"]);
}

#[test]
fn functions_without_code() {
    let program = pie(
        "__asm__(\".pushsection .bss\\n.globl ghost\\n.type ghost,@function\\nghost: .zero 8\\n.size ghost,8\\n.popsection\");
        int p(void) { return 1; } int main(void) { return p(); }",
    );
    let o = object("int n(void) { return 1; }");
    refused(patch_with(&program, &[&o], &replacing(&[("n", "ghost")])), "no-code", &["`ghost`", "0x"]);
}

#[test]
fn copies_of_inline_functions() {
    let header = "inline __attribute__((noinline)) int twice(int x) { return x * 2; }";
    let program = program_of(
        &[(
            "m.cc",
            &format!("{header} int p(int x) {{ return twice(x); }} int main(int c, char **) {{ return p(c); }}"),
        )],
        "-O1 -fPIE -pie",
    );
    let o = object_named("p.cc", &format!("{header} int p(int x) {{ return twice(x) + 1; }}"), "-O1 -fPIC");
    let linked = patch(&program, &o).unwrap();
    assert_eq!(sites(&linked), [pair("_Z1pi", "_Z1pi")], "vague copies are not what the patch is about");
    assert!(linked.package.warnings.iter().any(|w| w.contains("_Z5twicei")), "{:?}", linked.package.warnings);
    // With nothing else in common they are.
    let o = object_named("p.cc", &format!("{header} int fresh(int x) {{ return twice(x) + 1; }}"), "-O1 -fPIC");
    assert_eq!(sites(&patch(&program, &o).unwrap()), [pair("_Z5twicei", "_Z5twicei")]);
}

#[test]
fn static_replacements_beside_other_functions_are_pointed_out() {
    let source =
        marked("FIXFUN(same) static int __attribute__((used)) same(void) { return 5; } int fresh(void) { return 1; }");
    let noted = |flags: &str| {
        let linked = patch(&pie(PROGRAM), &object_named("p.c", &source, flags)).unwrap();
        linked.report.notes.iter().any(|n| n.contains("-ffunction-sections"))
    };
    assert!(noted("-O1 -fPIC") && !noted("-O1 -fPIC -ffunction-sections"));
}
