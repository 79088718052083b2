//! Data that patch and program both define, and data that is new.

use crate::support::*;
use tigerfix_core::error::Explain;
use tigerfix_core::link::{How, LinkError, LinkOptions};

const PROGRAM: &str = "
    int counter = 5; long zeroed; int numbers[10]; static int hidden_one = 4;
    const int limit = 3;
    int p(void) { return counter + zeroed + numbers[1] + hidden_one++ + limit; }
    int main(void) { return p(); }";

fn with(source: &str) -> Result<tigerfix_core::link::Linked, LinkError> {
    patch(&pie(PROGRAM), &object(&format!("{source} int p(void) {{ return 1; }}")))
}

fn program_at(linked: &tigerfix_core::link::Linked, name: &str) -> bool {
    how(linked, name) == How::Program(tigerfix_core::addr::LinkAddr(address(&pie(PROGRAM), name)))
}

#[test]
fn uninitialised_data_is_the_programs() {
    let uses = "int use(void) { return counter + zeroed + numbers[2]; }";
    let linked = with(&format!("int counter; long zeroed; int numbers[10]; {uses}")).unwrap();
    assert!(["counter", "zeroed", "numbers"].iter().all(|n| program_at(&linked, n)));
    let o = object_named(
        "p.c",
        &format!("int counter; long zeroed; int numbers[8]; {uses} int p(void) {{ return 1; }}"),
        "-O1 -fPIC -fcommon",
    );
    let linked = patch(&pie(PROGRAM), &o).unwrap();
    assert!(["counter", "zeroed", "numbers"].iter().all(|n| program_at(&linked, n)), "COMMON, and smaller than there");
    assert!(linked.report.placements.iter().all(|p| p.section != "COMMON"), "takes no room");
    assert!(linked.package.spans.iter().all(|s| !s.perm.write));
}

#[test]
fn declared_data_is_the_programs() {
    let linked = with("extern int counter, hidden_one; extern const int limit; int use(void) { return counter + hidden_one + limit; }").unwrap();
    assert!(["counter", "hidden_one", "limit"].iter().all(|n| program_at(&linked, n)), "a unique static too");
}

#[test]
fn initialised_data_is_refused() {
    let e = refused(with("int counter = 6;"), "redefined-data", &["`counter`", "p0.o"]);
    assert!(e.hint().unwrap().contains("extern"));
    refused(with("int counter = 5;"), "redefined-data", &["`counter`"]);
    refused(with("const int limit = 3;"), "redefined-data", &["`limit`"]);
    refused(with("__attribute__((section(\".data\"))) long zeroed = 0;"), "redefined-data", &["`zeroed`"]);
}

#[test]
fn sizes_are_compared() {
    let e = with("int numbers[11];");
    refused(e, "data-size", &["`numbers`", "44 bytes in the patch", "40 bytes in the program"]);
    let o = object_named("p.c", "int numbers[11]; int p(void) { return 1; }", "-O1 -fPIC -fcommon");
    refused(patch(&pie(PROGRAM), &o), "data-size", &["`numbers`"]);
}

#[test]
fn kinds_are_compared() {
    refused(with("int main[4];"), "kind-mismatch", &["`main`", "data in the patch", "a function in the program"]);
    refused(with("int counter(void) { return 1; }"), "kind-mismatch", &["`counter`", "a function in the patch"]);
}

#[test]
fn static_data_is_new() {
    let source = "static int counter = 9; static int numbers[3]; int bump(void) { return ++counter + ++numbers[1]; }";
    let linked = with(source).unwrap();
    assert_eq!(word(&linked.package, offset(&linked, "counter"), 4), 9);
    assert!(linked.package.residue.is_empty());
}

#[test]
fn a_global_of_the_patch_and_a_static_of_the_program() {
    let linked = with("int hidden_one = 8; int use(void) { return hidden_one; }").unwrap();
    assert!(matches!(how(&linked, "hidden_one"), How::Patch(_)));
    assert!(linked.report.notes.iter().any(|n| n.contains("hidden_one")), "{:?}", linked.report.notes);
}

#[test]
fn several_objects_follow_the_elf_rules() {
    let program = pie(PROGRAM);
    let o = |s: &str| object_named("p.c", s, "-O1 -fPIC -fcommon");
    let all = |list: &[&[u8]]| patch_with(&program, list, &replacing(&[("p", "p")]));
    let p = o("extern int shared; int other(void); int p(void) { return shared + other(); }");
    let strong = o("int shared = 7; int other(void) { return 1; }");
    let weak = o("__attribute__((weak)) int shared = 8; __attribute__((weak)) int other(void) { return 2; }");
    let common = o("int shared; int other(void) { return 3; }");
    for list in [[&p[..], &strong, &weak], [&weak, &p, &strong], [&weak, &strong, &p]] {
        let linked = all(&list).unwrap();
        assert_eq!(word(&linked.package, offset(&linked, "shared"), 4), 7, "strong beats weak");
        assert_eq!(bytes(&linked.package, offset(&linked, "other"), 2), [0xb8, 1]);
    }
    refused(all(&[&p, &strong, &common]), "duplicate-symbol", &["`other`", "p1.o", "p2.o"]);
    let common = o("int shared; ");
    for list in [[&p[..], &strong, &common], [&common, &p, &strong]] {
        let linked = all(&list).unwrap();
        assert_eq!(word(&linked.package, offset(&linked, "shared"), 4), 7, "a definition beats COMMON");
        assert!(linked.report.placements.iter().all(|p| p.section != "COMMON"));
    }
    let weak_only = o("__attribute__((weak)) int shared = 8; int other(void) { return 2; }");
    let linked = all(&[&p, &weak_only, &common]).unwrap();
    assert_eq!(linked.report.placements.iter().filter(|p| p.section == "COMMON").count(), 1, "COMMON beats weak");
    let e = all(&[&p, &strong, &o("int shared = 1;")]);
    refused(e, "duplicate-symbol", &["`shared`", "p1.o", "p2.o"]);
}

#[test]
fn the_largest_common_counts() {
    let o = |s: &str| object_named("p.c", s, "-O1 -fPIC -fcommon");
    let p = o("char pool[3]; int p(void) { return pool[0]; }");
    let big = o("long pool[5] ;");
    let linked = patch_with(&pie(PROGRAM), &[&p, &big], &LinkOptions::default()).unwrap();
    let room: Vec<_> = linked.report.placements.iter().filter(|p| p.section == "COMMON").collect();
    assert_eq!((room.len(), room[0].size, room[0].offset % 8), (1, 40, 0));
    assert_eq!(room[0].symbol.as_deref(), Some("pool"));
}

#[test]
fn common_symbols_are_aligned_and_apart() {
    for extra in ["", "static int in_bss; int *get(void) { return &in_bss; }"] {
        let source = format!(
            "char c1; double d1; int ten[10]; char c2; double d2; {extra} int p(void) {{ return c1 + d1 + ten[3] + c2 + d2; }}"
        );
        let linked = patch(&pie(PROGRAM), &object_named("p.c", &source, "-O1 -fPIC -fcommon")).unwrap();
        let data = span(&linked.package, false, true);
        assert_eq!(data.data.len(), 0, "nothing but zeros");
        let mut rooms: Vec<(u64, u64)> = linked
            .report
            .placements
            .iter()
            .filter(|p| p.size > 0 && p.offset >= data.offset)
            .map(|p| (p.offset, p.size))
            .collect();
        rooms.sort_unstable();
        assert_eq!(rooms.len(), 5 + usize::from(!extra.is_empty()));
        assert!(rooms.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{rooms:x?}");
        assert!(rooms.iter().all(|(o, s)| *o >= data.offset && o + s <= data.offset + data.size));
        for (name, align) in [("d1", 8), ("d2", 8), ("ten", 16), ("c1", 1)] {
            assert_eq!(offset(&linked, name) % align, 0, "{name}");
        }
    }
}

#[test]
fn inline_objects_of_cxx_are_the_programs_if_they_are_alike() {
    let text = |v: &str, size: &str| {
        format!(
            "inline int tuned[{size}] = {{ {v} }}; struct A {{ virtual int f() {{ return 1; }} }};
            int p(A *a) {{ return a->f() + tuned[0]; }}"
        )
    };
    let program = program_of(
        &[("m.cc", &(text("4, 2", "2") + "int main() { A a; return p(&a); }"))],
        "-O1 -fPIE -pie -std=c++17",
    );
    let o = |v: &str, size: &str| {
        object_named("p.cc", &(text(v, size) + "A *make() { return new A; }"), "-O1 -fPIC -std=c++17")
    };
    let options = replacing(&[("_Z1pP1A", "_Z1pP1A")]);
    let linked = patch_with(&program, &[&o("4, 2", "2")], &options).unwrap();
    assert!(matches!(how(&linked, "tuned"), How::Program(_)));
    assert!(matches!(how(&linked, "_ZTV1A"), How::Program(_)), "the table of virtual functions");
    refused(patch_with(&program, &[&o("4, 3", "2")], &options), "redefined-data", &["tuned"]);
    refused(patch_with(&program, &[&o("4", "1")], &options), "redefined-data", &["tuned"]);
}

#[test]
fn comdat_groups_are_kept_once() {
    let header = "inline __attribute__((noinline)) int twice(int x) { return x * 2; } inline int shared_counter = 3;";
    let a = format!("{header} int p() {{ return twice(++shared_counter); }}");
    let b = format!(
        "{header} int fresh() {{ return twice(++shared_counter) + 1; }} int fresh2() {{ return fresh() + twice(2); }}"
    );
    let program = program_of(&[("m.cc", "int p() { return 1; } int main() { return p(); }")], "-O1 -fPIE -pie");
    let o = |s: &str| object_named("p.cc", s, "-O1 -fPIC -std=c++17");
    let linked = patch_with(&program, &[&o(&a), &o(&b)], &LinkOptions::default()).unwrap();
    let placed = |name: &str| linked.report.placements.iter().filter(|p| p.section == name).count();
    assert_eq!((placed(".text._Z5twicei"), placed(".text")), (1, 2));
    // The second object's unwind record for the dropped copy is gone, the others are there.
    let (at, size) = linked.package.eh_frame.unwrap();
    let code = span(&linked.package, true, false);
    let (mut fdes, mut pos) = (0, at);
    while pos < at + size - 4 {
        let len = word(&linked.package, pos, 4);
        assert!(len > 0, "the table ends only at its end");
        if word(&linked.package, pos + 4, 4) != 0 {
            fdes += 1;
            let start = (pos + 8).wrapping_add_signed((word(&linked.package, pos + 8, 4) as u32 as i32).into());
            assert!(start >= code.offset && start < code.offset + code.size);
        }
        pos += 4 + len;
    }
    assert_eq!(fdes, 4, "p, twice, fresh, fresh2");
}

#[test]
fn arrays_that_the_program_collects_are_warned_about() {
    let entry = "__attribute__((used, section(\"hooks\"))) static int hook = 1;";
    let program = pie(&format!(
        "{entry} extern int __start_hooks[], __stop_hooks[]; int p(void) {{ return __stop_hooks - __start_hooks; }} int main(void) {{ return p(); }}"
    ));
    let linked = patch(&program, &object(&format!("{entry} int p(void) {{ return 2; }}"))).unwrap();
    assert!(linked.package.warnings.iter().any(|w| w.contains("hooks")), "{:?}", linked.package.warnings);
}
