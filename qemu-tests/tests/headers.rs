//! `include/tigerfix/*.h` in every language, at every level, without a warning.

use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol};
use qemu_tests::{Lab, repository};

const PATCH: &str = r#"
#include <stdio.h>
#include <tigerfix/dev.h>

#ifdef __cplusplus
extern "C" {
#endif

extern int f2(int);
int declared_before(int n);

PATCH_VERSION("1.0");

FIXFUN(f1)
int f1(int n) {
    return f2(n);
}

FIXFUN(declared_before) 
int declared_before(int n)
{
    return f1(n);
}

FIXFUN(file_local)
static int file_local(int n) { return n; }

TFIX_REPLACE(old_name, new_name)
int new_name(int n) { return n + 1; }

TFIX_REPLACE_IN(dir/server.c, reset, new_reset)
void new_reset(void) { printf("reset\n"); }

/* No mark: the patch's own. */
void print_it(int n) { printf("%d\n", n); }

#ifdef __cplusplus
}
#endif
"#;

fn strings(object: &object::File<'_>, section: &str) -> Vec<String> {
    let section = object.section_by_name(section).unwrap_or_else(|| panic!("no section {section}"));
    let mut all: Vec<String> = section
        .data()
        .expect("contents")
        .split(|b| *b == 0)
        .filter(|s| !s.is_empty())
        .map(|s| String::from_utf8_lossy(s).into_owned())
        .collect();
    all.sort();
    all
}

fn compile(lab: &Lab, compiler: &str, language: &str, standard: &str, opt: &str, text: &str) -> Vec<u8> {
    let source = lab.write("header_test.src", text);
    let out = lab.path("header_test.o");
    let done = Command::new(compiler)
        .args(["-x", language, standard, opt, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fPIC", "-c", "-I"])
        .arg(repository().join("include"))
        .arg("-o")
        .args([&out, &source])
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(done.status.success(), "{compiler} {language} {standard} {opt}\n{}", String::from_utf8_lossy(&done.stderr));
    std::fs::read(out).expect("own object")
}

#[test]
fn marks_and_version_arrive_in_the_object() {
    let lab = Lab::new();
    for (compiler, language, standard) in [
        ("gcc", "c", "-std=gnu89"),
        ("gcc", "c", "-std=c99"),
        ("gcc", "c", "-std=c11"),
        ("gcc", "c", "-std=gnu17"),
        ("g++", "c++", "-std=c++98"),
        ("g++", "c++", "-std=c++11"),
        ("g++", "c++", "-std=c++20"),
    ] {
        for opt in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
            // gnu89 knows no `//`, but every block comment.
            let bytes = compile(&lab, compiler, language, standard, opt, PATCH);
            let object = object::File::parse(&*bytes).expect("an object");
            assert_eq!(
                strings(&object, ".tfix.marks"),
                ["declared_before", "f1", "file_local", "new_name=old_name", "new_reset=dir/server.c:reset"]
            );
            assert_eq!(strings(&object, ".tfix.version"), ["1.0"]);
            for name in ["f1", "declared_before", "file_local", "new_name", "new_reset", "print_it"] {
                let symbol = object.symbols().find(|s| s.name() == Ok(name));
                let symbol = symbol.unwrap_or_else(|| panic!("{name} was optimised away at {opt}"));
                assert_eq!(symbol.is_global(), name != "file_local", "{name} keeps its linkage");
            }
        }
    }
}

#[test]
fn functions_of_cxx_take_marks_too() {
    let lab = Lab::new();
    let text = "#include <tigerfix/dev.h>\nnamespace a { struct B { int c(int n); int d; };\n\
                FIXFUN(_ZN1a1B1cEi)\nint B::c(int n) { return n + d; } }\n\
                FIXFUN(_Z1ed)\nint e(double n) { return static_cast<int>(n); }\n\
                FIXFUN(_Z1ei)\nint e(int n) { return n; }\n";
    for opt in ["-O0", "-O2"] {
        let bytes = compile(&lab, "g++", "c++", "-std=c++17", opt, text);
        let object = object::File::parse(&*bytes).expect("an object");
        assert_eq!(strings(&object, ".tfix.marks"), ["_Z1ed", "_Z1ei", "_ZN1a1B1cEi"]);
        for name in ["_ZN1a1B1cEi", "_Z1ed", "_Z1ei"] {
            assert!(object.symbols().any(|s| s.name() == Ok(name)), "{name}");
        }
    }
}

#[test]
fn the_program_header_leaves_no_trace() {
    let lab = Lab::new();
    let with = "#include <tigerfix/def.h>\nint main(void) { return 0; }\n";
    for (compiler, language) in [("gcc", "c"), ("g++", "c++")] {
        let bytes =
            compile(&lab, compiler, language, if language == "c" { "-std=c99" } else { "-std=c++98" }, "-O2", with);
        let object = object::File::parse(&*bytes).expect("an object");
        let names: Vec<&str> =
            object.symbols().filter_map(|s| s.name().ok()).filter(|n| !n.is_empty() && !n.contains('.')).collect();
        assert_eq!(names, ["main"], "no symbol beyond the program's own");
        assert!(object.section_by_name(".tfix.marks").is_none());
    }
}

/// One patch source for every architecture: no assembly, no question which architecture it is.
#[test]
fn the_headers_name_no_architecture() {
    for header in ["def.h", "dev.h"] {
        let text = std::fs::read_to_string(repository().join("include/tigerfix").join(header)).expect("a header");
        for word in ["asm", "x86", "mips", "arm", "aarch", "#elif"] {
            assert!(!text.to_lowercase().contains(word), "{header} contains `{word}`");
        }
        let conditions: Vec<&str> = text.lines().filter(|l| l.starts_with("#if")).collect();
        assert_eq!(conditions.len(), 1, "{header} has its include guard only: {conditions:?}");
    }
}
