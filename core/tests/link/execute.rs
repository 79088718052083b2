//! Patched code that really runs: a program takes the image into its own memory and writes the jumps itself.

use crate::support::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::addr::LinkAddr;
use tigerfix_core::arch::Relocator;
use tigerfix_core::link::{LinkOptions, Linked};
use tigerfix_core::model::{Referent, Residue};
use tigerfix_core::relocate::settle;

/// Runs `work`, takes a patch, runs `work` again. It tells the run-time addresses that residue may ask for.
const HOST: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#define NOINLINE __attribute__((noinline, noclone, noipa))
void work(void);
int main(void) {
    work(); work();
    printf("ADDRESS main %p\nADDRESS printf %p\nADDRESS strlen %p\nREADY\n", (void *)main, (void *)printf, (void *)strlen);
    fflush(stdout);
    char file[300]; unsigned long base, size, from, to;
    if (scanf("%299s %lx %lx", file, &base, &size) != 3) return 3;
    char *image = mmap((void *)base, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (image != (char *)base) return 4;
    FILE *f = fopen(file, "rb");
    if (!f || fread(image, 1, size, f) != size) return 5;
    while (scanf("%lx %lx", &from, &to) == 2) {
        char *page = (char *)(from & ~4095ul);
        if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) return 6;
        int d = (int)(to - from - 5);
        *(char *)from = (char)0xe9; memcpy((char *)from + 1, &d, 4);
    }
    work(); work();
    puts("END");
    return 0;
}
"#;

/// The run's output before and after the patch.
fn execute(program: &[u8], linked: &Linked) -> (String, String) {
    let dir = Dir::new();
    let path = dir.write("program", program);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // A test beside this one may just be starting a child that has inherited the descriptor the file was written by: until
    // that child executes its own program, this one is busy (ETXTBSY).
    let mut child = loop {
        match Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            other => break other.unwrap(),
        }
    };
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (mut before, mut addresses) = (String::new(), std::collections::BTreeMap::new());
    loop {
        let mut line = String::new();
        assert!(out.read_line(&mut line).unwrap() > 0, "the program ended: {before}");
        if line == "READY\n" {
            break;
        }
        match line.strip_prefix("ADDRESS ").and_then(|l| l.trim().split_once(" 0x")) {
            Some((name, hex)) => {
                addresses.insert(String::from(name), u64::from_str_radix(hex, 16).unwrap());
            }
            None => before += &line,
        }
    }
    let package = &linked.package;
    let bias = addresses["main"].wrapping_sub(address(program, "main"));
    let base = package.base.unwrap_or(bias + 0x3000_0000);
    let mut image = vec![0u8; package.image_size() as usize];
    for s in &package.spans {
        image[s.offset as usize..][..s.data.len()].copy_from_slice(&s.data);
    }
    for r in &package.residue {
        let symbol = &package.symbols[r.symbol as usize];
        let s = match symbol.referent {
            Referent::Image(o) => base + o,
            Referent::Program(LinkAddr(a)) => a.wrapping_add(bias),
            Referent::Import { weak: true } if !addresses.contains_key(&symbol.name) => 0,
            _ => *addresses.get(&symbol.name).unwrap_or_else(|| panic!("{symbol:?}")),
        };
        let howto = X86_64.howto(r.r_type).unwrap();
        settle(&X86_64, howto, &mut image, r.offset, s, r.addend, base + r.offset).unwrap();
    }
    let file = dir.write("image", &image);
    let mut stdin = child.stdin.take().unwrap();
    write!(stdin, "{} {base:x} {:x}", file.display(), image.len()).unwrap();
    for s in &package.sites {
        write!(stdin, " {:x} {:x}", s.entry.0.wrapping_add(bias), base + s.new_offset).unwrap();
    }
    drop(stdin);
    let mut after = String::new();
    out.read_to_string(&mut after).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() && after.ends_with("END\n"), "{status}: {after}");
    (before, after.trim_end_matches("END\n").into())
}

/// All the ways in which programs are built, and patches for them.
fn everywhere(source: &str, patch_source: &str, options: &LinkOptions<'_>, before: &str, after: &str) {
    let source = format!("{HOST}{source}");
    let builds: [(&str, &[&str], Option<u64>); 4] = [
        (
            "-O1 -fPIE -pie",
            &["-O0 -fPIC", "-O2 -fPIC", "-O1 -fPIC -fno-plt -fcommon", "-O1 -fPIC -ffunction-sections"],
            None,
        ),
        ("-O0 -fno-pie -no-pie", &["-O2 -fPIC", "-O0 -fPIE"], None),
        ("-O2 -fno-pie -no-pie -static", &["-O1 -fPIC", "-O1 -fPIE", "-O1 -fno-pic"], Some(0x5000_0000)),
        ("-O1 -static-pie -fPIE", &["-O2 -fPIC", "-O1 -fPIE"], None),
    ];
    for (flags, patches, base) in builds {
        let program = program_of(&[("program.c", &source)], flags);
        for patch_flags in patches {
            let o = object_named("p.c", &marked(patch_source), patch_flags);
            // Code for executables reaches imports through copies and PLTs, which a patch does not have.
            let options = LinkOptions { base, ..options.clone() };
            let linked =
                patch_with(&program, &[&o], &options).unwrap_or_else(|e| panic!("{flags} / {patch_flags}: {e}"));
            // At fixed addresses, only what the program itself chooses at start is left.
            let chosen =
                |r: &Residue| matches!(linked.package.symbols[r.symbol as usize].referent, Referent::ProgramIfunc(_));
            assert!(base.is_none() || linked.package.residue.iter().all(chosen), "{flags} / {patch_flags}");
            assert_eq!(execute(&program, &linked), (before.into(), after.into()), "{flags} / {patch_flags}");
        }
    }
}

#[test]
fn another_constant() {
    let source = "NOINLINE int p(void) { return 1; } void work(void) { printf(\"%d\\n\", p()); }";
    everywhere(source, "int p(void) { return 2; }", &LinkOptions::default(), "1\n1\n", "2\n2\n");
}

#[test]
fn recursion_and_an_import() {
    let source = "static int n = 4; NOINLINE long fact(long x) { return x < 2 ? 1 : x * fact(x - 1); }
        void work(void) { n++; printf(\"%d %ld\\n\", n, fact(n)); }";
    let patch = "int printf(const char *, ...); long fact(long x) { if (x < 2) { printf(\"<%ld>\", x); return 1; } return x * fact(x - 2); }";
    everywhere(source, patch, &LinkOptions::default(), "5 120\n6 720\n", "<1>7 105\n<0>8 384\n");
}

#[test]
fn the_programs_state_survives() {
    let source = "int counter = 10; static int secret = 7; NOINLINE void print_global(void) { printf(\"%d %d\\n\", counter, secret); }
        NOINLINE void step(void) { counter += 1; secret++; print_global(); } void work(void) { step(); }";
    let patch = "extern int counter, secret; void print_global(void); void step(void) { counter += 2; secret += 10; print_global(); }";
    everywhere(source, patch, &LinkOptions::default(), "11 8\n12 9\n", "14 19\n16 29\n");
}

#[test]
fn new_data_of_every_kind() {
    let source = "int total; NOINLINE void swap(int *a, int *b) { int t = *a; *a = *b; *b = t; }
        void work(void) { int a = 1, b = 2; swap(&a, &b); total++; printf(\"%d %d %d\\n\", a, b, total); }";
    let patch = "int printf(const char *, ...); unsigned long strlen(const char *); extern int total;
        int fresh_zero; char small; double wide; int ten[10]; int fresh_one = 40; static int table[3] = { 5, 6, 7 }; char *text = \"text\";
        static const char *const words[] = { \"x\", \"yy\", \"zzz\" };
        static long size(const char *s) { return strlen(s); }
        static long (*const sizes[])(const char *) = { size, size };
        void swap(int *a, int *b) {
            static int calls; calls++; fresh_zero += 2; ten[9] += 3; small++; wide += 0.5;
            printf(\"%d %d %d %d %d %s %ld %d| \", calls, fresh_zero, fresh_one++, ten[9], table[calls]++, text, sizes[1](words[calls]), small);
            total += 100 + (int)(wide * 2); int t = *a; *a = *b; *b = t;
        }";
    everywhere(
        source,
        patch,
        &LinkOptions::default(),
        "2 1 1\n2 1 2\n",
        "1 2 40 3 6 text 2 1| 2 1 104\n2 4 41 6 7 text 3 2| 2 1 207\n",
    );
}

#[test]
fn pointers_to_functions_stay_equal() {
    let source = "NOINLINE int old(void) { return 1; } NOINLINE int other(void) { return 8; } int (*kept)(void) = old;
        NOINLINE int compare(int (*f)(void)) { return f == kept; } NOINLINE int ask(void) { return 0; }
        void work(void) { printf(\"%d %d %d\\n\", old(), compare(kept), ask()); }";
    let patch =
        "FIXFUN(old) FIXFUN(ask) int other(void), compare(int (*)(void)); extern int (*kept)(void); int old(void);
        int (*fresh)(void) = old;
        int old(void) { return 2 + other(); }
        int ask(void) { return 100 * compare(old) + 10 * (fresh == kept) + (kept() == old()); }";
    everywhere(source, patch, &LinkOptions::default(), "1 1 0\n1 1 0\n", "10 1 111\n10 1 111\n");
}

#[test]
fn weak_references() {
    let source = "NOINLINE int present(void) { return 3; } NOINLINE int p(void) { return present(); } void work(void) { printf(\"%d\\n\", p()); }";
    let patch = "__attribute__((weak)) int present(void); __attribute__((weak)) int absent(void);
        int p(void) { return (present ? present() * 10 : -1) + (absent ? absent() : 5); }";
    let o = |flags: &str| object_named("p.c", patch, flags);
    for flags in ["-O1 -fPIE -pie", "-O1 -static -no-pie -fno-pie", "-O1 -static-pie -fPIE"] {
        let program = program_of(&[("program.c", &format!("{HOST}{source}"))], flags);
        let linked = patch_with(&program, &[&o("-O1 -fPIC")], &LinkOptions::default()).unwrap();
        assert_eq!(execute(&program, &linked), ("3\n3\n".into(), "35\n35\n".into()), "{flags}");
    }
}

#[test]
fn thread_local_variables() {
    let source =
        "__thread int mine = 5; static __thread long hidden = 50; NOINLINE void bump(void) { mine++; hidden++; }
        void work(void) { bump(); printf(\"%d %ld\\n\", mine, hidden); }";
    let patch = "extern __thread int mine; extern __thread long hidden; void bump(void) { mine += 10; hidden += 100; }";
    for flags in ["-O1 -fPIE -pie", "-O1 -fno-pie -no-pie", "-O1 -static -fno-pie -no-pie"] {
        let program = program_of(&[("program.c", &format!("{HOST}{source}"))], flags);
        for model in ["local-exec", "initial-exec"] {
            let o = object_named("p.c", patch, &format!("-O1 -fPIC -ftls-model={model}"));
            let linked = patch_with(&program, &[&o], &LinkOptions::default()).unwrap();
            assert_eq!(
                execute(&program, &linked),
                ("6 51\n7 52\n".into(), "17 152\n27 252\n".into()),
                "{flags} {model}"
            );
        }
    }
}
