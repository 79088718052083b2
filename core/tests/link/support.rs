//! Compiling fixtures, linking patches, and looking into what comes out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::error::{Class, Explain};
use tigerfix_core::link::{How, LinkError, LinkOptions, Linked, link};
use tigerfix_core::model::{Package, Referent, Residue, Span};
use tigerfix_core::program::Program;

/// The compiler's scratch directory; it goes when the test ends.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// Runs a tool to its end, which has to be a good one.
pub fn run(tool: &str, args: &[&str], cwd: &Path) -> String {
    let out = Command::new(tool).args(args).current_dir(cwd).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(out.status.success(), "{tool} {args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

fn compiler(file: &str) -> &'static str {
    if file.ends_with(".cc") { "g++" } else { "gcc" }
}

/// Compiles one file to an object. `flags` are separated by spaces.
pub fn object_named(file: &str, source: &str, flags: &str) -> Vec<u8> {
    let dir = Dir::new();
    dir.write(file, source);
    let mut args: Vec<&str> = flags.split_whitespace().collect();
    args.extend(["-c", file, "-o", "out.o"]);
    run(compiler(file), &args, dir.0.path());
    std::fs::read(dir.path("out.o")).unwrap()
}

/// A position-independent C object.
pub fn object(source: &str) -> Vec<u8> {
    object_named("patch.c", source, "-O1 -fPIC")
}

/// Links a program from files (name, source).
pub fn program_of(files: &[(&str, &str)], flags: &str) -> Vec<u8> {
    let dir = Dir::new();
    let mut args: Vec<&str> = flags.split_whitespace().collect();
    for (name, source) in files {
        dir.write(name, source);
        args.push(name);
    }
    args.extend(["-o", "program"]);
    run(compiler(files[0].0), &args, dir.0.path());
    std::fs::read(dir.path("program")).unwrap()
}

/// A dynamically linked PIE.
pub fn pie(source: &str) -> Vec<u8> {
    program_of(&[("program.c", source)], "-O1 -fPIE -pie")
}

/// A dynamically linked program at fixed addresses.
pub fn fixed(source: &str) -> Vec<u8> {
    program_of(&[("program.c", source)], "-O1 -fno-pie -no-pie")
}

/// A program at fixed addresses that needs nothing, not even a C library.
pub fn bare(source: &str) -> Vec<u8> {
    let source = format!("{source}\nvoid _start(void) {{ for (;;) {{}} }}\n");
    program_of(&[("program.c", &source)], "-O1 -fno-pie -no-pie -nostdlib -static -fno-builtin")
}

/// Links patch objects against a program.
pub fn patch_with(program: &[u8], objects: &[&[u8]], options: &LinkOptions<'_>) -> Result<Linked, LinkError> {
    let program = Program::parse(program).unwrap();
    let names: Vec<(String, &[u8])> = objects.iter().enumerate().map(|(i, o)| (format!("p{i}.o"), *o)).collect();
    let linked = link(&X86_64, &program, &names, options);
    if let Ok(linked) = &linked {
        check(&linked.package);
        let again = link(&X86_64, &program, &names, options).unwrap();
        assert_eq!(
            (&again.package, &again.report),
            (&linked.package, &linked.report),
            "the same input, the same output"
        );
    }
    linked
}

/// Links one object without options.
pub fn patch(program: &[u8], object: &[u8]) -> Result<Linked, LinkError> {
    patch_with(program, &[object], &LinkOptions::default())
}

/// Options with `--replace`.
pub fn replacing(pairs: &[(&str, &str)]) -> LinkOptions<'static> {
    let replace = pairs.iter().map(|(n, o)| (String::from(*n), String::from(*o))).collect();
    LinkOptions { replace, ..LinkOptions::default() }
}

/// What every package has to be.
fn check(package: &Package) {
    let mut end = 0;
    for s in &package.spans {
        assert_eq!(s.offset % package.page_size, 0);
        assert!(s.offset >= end && s.data.len() as u64 <= s.size && s.size > 0);
        assert!(!(s.perm.write && s.perm.exec) && s.perm.read);
        end = s.offset + s.size;
    }
    assert_eq!(package.spans[0].offset, 0);
    assert!(package.residue.windows(2).all(|w| w[0].offset <= w[1].offset));
    assert!(package.residue.iter().all(|r| (r.symbol as usize) < package.symbols.len()));
    assert!(package.sites.windows(2).all(|w| w[0].entry < w[1].entry));
    let code = span(package, true, false);
    for s in &package.sites {
        for at in [s.new_offset, s.landing] {
            assert!(at >= code.offset && at < code.offset + code.size, "{at:#x} is not code");
        }
        assert_eq!(s.landing % 16, 0);
    }
    assert_eq!(bytes(package, package.trap, 1), [0xcc], "int3");
    if let Some((at, size)) = package.eh_frame {
        assert_eq!(bytes(package, at + size - 4, 4), [0; 4], "the terminator");
    }
}

/// The span with these rights.
pub fn span(package: &Package, exec: bool, write: bool) -> &Span {
    package.spans.iter().find(|s| s.perm.exec == exec && s.perm.write == write).unwrap()
}

/// Bytes of the image.
pub fn bytes(package: &Package, at: u64, len: usize) -> Vec<u8> {
    let s = package.spans.iter().find(|s| s.offset <= at && at < s.offset + s.size).unwrap();
    let from = (at - s.offset) as usize;
    (from..from + len).map(|i| s.data.get(i).copied().unwrap_or(0)).collect()
}

/// A little-endian word of the image.
pub fn word(package: &Package, at: u64, len: usize) -> u64 {
    bytes(package, at, len).iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

/// Where a symbol was found.
pub fn how(linked: &Linked, name: &str) -> How {
    let all = &linked.report.symbols;
    all.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name} is not among {all:?}")).how
}

/// Offset in the image of a symbol that the patch defines.
pub fn offset(linked: &Linked, name: &str) -> u64 {
    let symbol = linked.package.symbols.iter().find(|s| s.name == name && matches!(s.referent, Referent::Image(_)));
    match symbol.unwrap_or_else(|| panic!("no {name}")).referent {
        Referent::Image(o) => o,
        _ => unreachable!(),
    }
}

/// Link-time address of a program's symbol.
pub fn address(program: &[u8], name: &str) -> u64 {
    Program::parse(program).unwrap().named(name).next().unwrap_or_else(|| panic!("no {name}")).addr.0
}

/// Residue with the referent's name.
pub fn residue<'p>(package: &'p Package, name: &str) -> Vec<(&'p Residue, &'p Referent)> {
    let all = package.residue.iter().map(|r| (r, &package.symbols[r.symbol as usize]));
    all.filter(|(_, s)| s.name == name).map(|(r, s)| (r, &s.referent)).collect()
}

/// Asserts a refusal: its rule, and pieces of its message.
#[track_caller]
pub fn refused(result: Result<Linked, LinkError>, rule: &str, pieces: &[&str]) -> LinkError {
    let e = result.map(|l| l.report).unwrap_err();
    let text = format!("{e}");
    assert_eq!(e.rule(), rule, "{text}");
    for p in pieces {
        assert!(text.contains(p), "no `{p}` in: {text}");
    }
    assert!(e.class() != Class::RolledBack);
    e
}

/// A set of names.
pub fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|s| String::from(*s)).collect()
}

/// The macros that a patch author's header has, in the form that the linker reads.
pub const MARKS: &str = r#"
#define TFIX_STRING(section, text) __asm__(".pushsection " section ",\"a\",@progbits\n.asciz \"" text "\"\n.popsection")
#define FIXFUN(name) TFIX_STRING(".tfix.marks", #name);
#define FIXFUN_AS(new, old) TFIX_STRING(".tfix.marks", #new "=" old);
#define PATCH_VERSION(v) TFIX_STRING(".tfix.version", v);
"#;

/// C source with the markers' macros in front.
pub fn marked(source: &str) -> String {
    format!("{MARKS}{source}")
}
