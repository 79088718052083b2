//! What users read: every refusal of `gen` that is cheap to provoke, `inspect`, and `fix --dry-run`.
//!
//! Programs and patches are assembly where the text tells sizes or addresses, so that the snapshots do not depend on a
//! compiler's version; addresses are filtered.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// `_start` calls all functions, says that it is there, and sleeps for good.
const PROGRAM: &str = r#"
.macro function name, bytes
    .globl \name
    .type \name, @function
\name:
    lea 1(%rdi), %eax
    .rept \bytes
    add $7, %eax
    .endr
    ret
    .size \name, . - \name
    .balign 16, 0xcc
.endm
    .text
    function work 20
    function helper 9
    function lonely 9
    .globl tiny
    .type tiny, @function
tiny: ret
    .size tiny, 1
    .globl behind_tiny
    .type behind_tiny, @function
behind_tiny: xor %eax, %eax
    ret
    .size behind_tiny, . - behind_tiny
    .balign 16, 0xcc
    .globl _start
    .type _start, @function
_start:
    call work
    call helper
    call tiny
    call behind_tiny
    mov $1, %eax                # write(1, ready, 1)
    mov $1, %edi
    lea ready(%rip), %rsi
    mov $1, %edx
    syscall
1:  xor %edx, %edx
    xor %esi, %esi
    mov $34, %eax               # pause
    syscall
    jmp 1b
    .size _start, . - _start
    .globl endless
    .type endless, @function
endless: jmp endless
    .data
    .globl setting, buffer
    .type setting, @object
setting: .long 5
    .size setting, 4
    .type buffer, @object
buffer: .zero 64
    .size buffer, 64
ready: .ascii "R"
    .section .tdata, "awT", @progbits
    .globl per_thread
    .type per_thread, @object
per_thread: .long 1
    .size per_thread, 4
    .section .note.GNU-stack, "", @progbits
"#;

/// A patch with a function `new_work` of this body, and whatever else.
fn patch(body: &str, more: &str) -> String {
    format!(
        ".text\n.globl new_work\n.type new_work, @function\nnew_work:\n{body}\nret\n.size new_work, . - new_work\n{more}\n\
         .section .note.GNU-stack, \"\", @progbits\n"
    )
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::Builder::new().prefix("tfix-cli-").tempdir().expect("temporary directory") }
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, contents).expect("own directory");
        path
    }

    fn gcc(&self, source: &str, text: &str, out: &str, flags: &[&str]) {
        self.write(source, text);
        let done = Command::new("gcc").current_dir(self.dir.path()).args(flags).args(["-o", out, source]).output();
        let done = done.expect("gcc is installed");
        assert!(done.status.success(), "{source}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn program(&self, out: &str, text: &str, pie: bool) {
        let link: &[&str] = if pie { &["-static-pie"] } else { &["-static", "-no-pie"] };
        self.gcc(&format!("{out}.s"), text, out, &[&["-nostdlib", "-Wl,--build-id"], link].concat());
    }

    fn object(&self, out: &str, text: &str) {
        self.gcc(&format!("{out}.s"), text, out, &["-c"]);
    }

    fn tfix(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tfix"));
        command.current_dir(self.dir.path()).args(args).output().expect("tfix runs")
    }

    fn here(&self) -> String {
        self.dir.path().display().to_string()
    }
}

/// Addresses, ids and paths of this run become dots.
fn filters<T>(run: impl FnOnce() -> T) -> T {
    insta::with_settings!({filters => vec![
        (r"0x[0-9a-f]+", "0x…"),
        (r"\b[0-9a-f]{40}\b", "<build-id>"),
        (r"\b[0-9a-f]{64}\b", "<digest>"),
        (r"process \d+", "process <pid>"),
        (r"/\S*/tfix-cli-[^/]*/", "/…/"),
    ]}, { run() })
}

/// Collects answers, each under the rule that it must name.
#[derive(Default)]
struct Answers {
    text: String,
    rules: Vec<String>,
}

impl Answers {
    fn refused(&mut self, bench: &Bench, rule: &str, args: &[&str]) {
        let before = files(bench);
        let out = bench.tfix(args);
        let said = String::from_utf8_lossy(&out.stderr).replace(&format!("{}/", bench.here()), "");
        assert!(said.contains(&format!("[{rule}]")), "{rule}: {said}");
        assert!(matches!(out.status.code(), Some(1 | 2)), "{rule}: {:?}", out.status);
        assert!(out.stdout.is_empty(), "{rule}: {}", String::from_utf8_lossy(&out.stdout));
        assert_eq!(files(bench), before, "{rule}: a file was made or changed");
        let _ = writeln!(self.text, "$ tfix {}\n{said}exit {}\n", args.join(" "), out.status.code().unwrap_or(-1));
        self.rules.push(rule.into());
    }
}

fn files(bench: &Bench) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut all: Vec<_> = std::fs::read_dir(bench.dir.path())
        .expect("own directory")
        .flatten()
        .map(|f| (f.path(), f.metadata().and_then(|m| m.modified()).expect("a time")))
        .collect();
    all.sort();
    all
}

const GEN: [&str; 5] = ["gen", "-m", "server", "-o", "out.tfp"];
const WORK: [&str; 2] = ["--replace", "new_work=work"];

#[test]
fn objects_that_gen_does_not_take() {
    let b = Bench::new();
    b.program("server", PROGRAM, true);
    let mut a = Answers::default();
    let rows: Vec<(&str, String)> = vec![
        ("writable-code", patch("nop", ".section .both, \"awx\"\nnop")),
        ("constructors", patch("nop", ".section .init_array, \"aw\", @init_array\n.quad new_work")),
        ("new-thread-local", patch("nop", ".section .tbss, \"awT\", @nobits\n.type mine, @object\nmine: .zero 8")),
        ("exception-table", patch("nop", ".section .gcc_except_table, \"a\"\n.byte 255, 255")),
        ("patch-ifunc", patch("nop", ".globl i\n.type i, @gnu_indirect_function\ni: ret")),
        ("alignment", patch("nop", ".data\n.balign 0x4000\n.long 1")),
        ("image-size", patch("nop", ".bss\n.zero 0x12345678")),
        ("bad-marker", patch("nop", ".section .tfix.marks, \"a\"\n.asciz \"=work\"")),
        ("data-size", patch("nop", ".comm buffer, 100, 8")),
        (
            "redefined-data",
            patch("nop", ".data\n.globl setting\n.type setting, @object\nsetting: .long 6\n.size setting, 4"),
        ),
        (
            "kind-mismatch",
            patch("nop", ".data\n.globl helper\n.type helper, @object\nhelper: .long 6\n.size helper, 4"),
        ),
        ("undefined-symbol", patch("call helpre\nmov nowhere(%rip), %eax", "")),
        ("thread-local", patch("mov per_thread(%rip), %eax", "")),
        ("discarded-section", patch("lea note(%rip), %rax", ".section .note.mine, \"a\", @note\nnote: .long 1")),
        ("unsupported-relocation", patch("nop", ".data\nx: .quad 0\n.reloc x, R_X86_64_TLSDESC, setting")),
        ("not-position-independent", patch("mov $setting, %eax", "")),
        ("relocation-overflow", patch("nop", ".data\nx: .long 0\n.reloc x, R_X86_64_PC32, x+0x80000010")),
    ];
    for (rule, text) in &rows {
        let name = format!("{rule}.o");
        b.object(&name, text);
        a.refused(&b, rule, &[&GEN[..], &WORK, &[&name]].concat());
    }
    b.object("good.o", &patch("nop", ""));
    b.object("twin.o", &patch("nop", ""));
    a.refused(&b, "duplicate-symbol", &[&GEN[..], &WORK, &["good.o", "twin.o"]].concat());

    b.write("text.o", "int x;\n");
    a.refused(&b, "not-elf", &[&GEN[..], &["text.o"]].concat());
    b.write("archive.o", "!<arch>\n");
    a.refused(&b, "archive", &[&GEN[..], &["archive.o"]].concat());
    b.gcc("lto.c", "int new_work(int x) { return x; }", "lto.o", &["-c", "-flto"]);
    a.refused(&b, "lto-object", &[&GEN[..], &WORK, &["lto.o"]].concat());
    a.refused(&b, "object-type", &[&GEN[..], &["server"]].concat());
    b.gcc("narrow.s", "new_work: ret\n", "narrow.o", &["-c", "-m32"]);
    a.refused(&b, "wrong-machine", &[&GEN[..], &["narrow.o"]].concat());
    let whole = std::fs::read(b.dir.path().join("good.o")).expect("assembled");
    b.write("cut.o", &whole[..whole.len() - 100]);
    a.refused(&b, "broken-object", &[&GEN[..], &["cut.o"]].concat());
    a.refused(&b, "unreadable-file", &[&GEN[..], &["absent.o"]].concat());
    filters(|| insta::assert_snapshot!("objects", a.text));
}

#[test]
fn what_gen_can_not_replace() {
    let b = Bench::new();
    b.program("server", PROGRAM, false);
    b.object("good.o", &patch("nop", ".text\n.type second, @function\nsecond: ret\n.size second, 1"));
    let mut a = Answers::default();
    let with = |a: &mut Answers, rule: &str, replace: &[&str]| {
        let options: Vec<&str> = replace.iter().flat_map(|r| ["--replace", *r]).collect();
        a.refused(&b, rule, &[&GEN[..], &options, &["good.o"]].concat());
    };
    with(&mut a, "nothing-to-replace", &[]);
    with(&mut a, "no-patch-function", &["new_wrok=work"]);
    with(&mut a, "no-such-function", &["new_work=wrok"]);
    with(&mut a, "duplicate-replacement", &["new_work=work", "second=work"]);
    with(&mut a, "window-too-small", &["new_work=tiny"]);
    with(&mut a, "no-caller", &["new_work=lonely"]);
    with(&mut a, "unknown-size", &["new_work=endless"]);
    a.refused(&b, "bad-bind", &[&GEN[..], &WORK, &["--bind", "setting=other.c:setting", "good.o"]].concat());
    a.refused(&b, "bad-base", &[&GEN[..], &WORK, &["--base", "0x400000", "good.o"]].concat());
    a.refused(&b, "bad-base", &[&GEN[..], &WORK, &["--base", "0x10000123", "good.o"]].concat());
    b.object("far.o", &patch("mov setting(%rip), %eax", ""));
    a.refused(&b, "relocation-overflow", &[&GEN[..], &WORK, &["--base", "0x200000000000", "far.o"]].concat());
    a.refused(&b, "unsupported-architecture", &[&GEN[..], &WORK, &["--arch", "pdp11", "good.o"]].concat());
    a.refused(&b, "output", &["gen", "-m", "server", "-o", "good.o", "good.o"]);

    b.write("text", "#!/bin/sh\n");
    a.refused(&b, "not-elf", &["gen", "-m", "text", "-o", "out.tfp", "good.o"]);
    a.refused(&b, "program-type", &["gen", "-m", "good.o", "-o", "out.tfp", "good.o"]);
    let whole = std::fs::read(b.dir.path().join("server")).expect("linked");
    b.write("cut", &whole[..whole.len() - 50]);
    a.refused(&b, "broken-program", &["gen", "-m", "cut", "-o", "out.tfp", "good.o"]);
    let mut other = whole.clone();
    other[18] = 22; // S/390
    b.write("other", &other);
    a.refused(&b, "unsupported-architecture", &["gen", "-m", "other", "-o", "out.tfp", "good.o"]);
    b.program("rebuilt", &PROGRAM.replace("function helper 9", "function helper 10"), false);
    let debug = ["--debug-file", "rebuilt", "good.o"];
    a.refused(&b, "debug-file-mismatch", &[&GEN[..], &WORK, &debug].concat());
    filters(|| insta::assert_snapshot!("programs", a.text));
}

#[test]
fn names_that_mean_several_things() {
    let b = Bench::new();
    let unit = |n: u32| {
        format!(
            "static volatile int state = {n};\n\
             __attribute__((noinline, noipa)) static int same(int x) {{ return x * state + {n}; }}\n\
             int use_{n}(int x) {{ return same(x) + same(x + 1); }}\n"
        )
    };
    b.gcc("one.c", &unit(1), "one.o", &["-c", "-O1", "-fPIE"]);
    b.gcc("two.c", &unit(2), "two.o", &["-c", "-O1", "-fPIE"]);
    let main = "int use_1(int), use_2(int);\n\
                int puts(const char *);\n\
                static int fast(int x) { return x; }\n\
                static void *pick(void) { return fast; }\n\
                int chosen(int) __attribute__((ifunc(\"pick\")));\n\
                __attribute__((noinline, noipa)) static int unused_copy(int x) { return x * 9 + 5; }\n\
                int main(void) { puts(\"x\"); return use_1(1) + use_2(2) + chosen(3) + unused_copy(1); }\n";
    b.gcc("main.c", main, "server", &["-O1", "-fPIE", "-pie", "one.o", "two.o"]);
    let source = "extern int state;\nint new_work(int x) { return x + state; }\nint other(int x) { return x; }\n";
    b.gcc("patch.c", source, "patch.o", &["-c", "-O1", "-fPIC"]);
    b.gcc("plain.c", "int new_work(int x) { return x; }\n", "plain.o", &["-c", "-O1", "-fPIC"]);
    let mut a = Answers::default();
    let with = |a: &mut Answers, rule: &str, replace: &str, object: &str| {
        a.refused(&b, rule, &[&GEN[..], &["--replace", replace, object]].concat());
    };
    with(&mut a, "ambiguous-function", "new_work=same", "plain.o");
    with(&mut a, "ambiguous-symbol", "new_work=one.c:same", "patch.o");
    with(&mut a, "imported-function", "new_work=puts", "plain.o");
    with(&mut a, "ifunc", "new_work=chosen", "plain.o");
    a.refused(&b, "version-conflict", &{
        for (name, version) in [("v1.o", "1.0"), ("v2.o", "2.0")] {
            let more = format!(".section .tfix.version, \"a\"\n.asciz \"{version}\"");
            b.object(name, &format!("{more}\n"));
        }
        [&GEN[..], &["--replace", "new_work=one.c:same", "plain.o", "v1.o", "v2.o"]].concat()
    });
    filters(|| insta::assert_snapshot!("names", a.text));
}

/// Ends the process with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stdout(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn inspect_and_dry_run() {
    let b = Bench::new();
    b.program("server", PROGRAM, true);
    let body = "mov setting(%rip), %eax\nmov helper@GOTPCREL(%rip), %rdx\ncall helper\nmov table(%rip), %rcx\n\
                mov %fs:per_thread@TPOFF, %esi\nmov per_thread@GOTTPOFF(%rip), %rsi";
    let more = ".section .data.rel, \"aw\"\ntable: .quad setting, new_work, table+8\n.bss\n.zero 100\n\
                .section .tfix.version, \"a\"\n.asciz \"1.2.3\"\n.section .tfix.marks, \"a\"\n.asciz \"new_work=work\"\n";
    b.object("fix.o", &patch(body, more));
    let made = b.tfix(&["gen", "-m", "server", "-o", "fix.tfp", "--description", "a snapshot", "fix.o"]);
    let mut text = format!("$ tfix gen\n{}", stdout(&made));
    for args in [&["inspect", "fix.tfp"][..], &["inspect", "fix.tfp", "--disasm"]] {
        let _ = write!(text, "\n$ tfix {}\n{}", args.join(" "), stdout(&b.tfix(args)));
    }
    let mut command = Command::new(b.dir.path().join("server"));
    let mut target = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts"));
    target.0.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("runs");
    let pid = target.0.id().to_string();
    let memory = || {
        let maps = std::fs::read_to_string(Path::new("/proc").join(&pid).join("maps")).expect("lives");
        maps.lines().map(String::from).collect::<Vec<_>>()
    };
    let before = memory();
    for args in
        [&["fix", &pid, "fix.tfp", "--dry-run"][..], &["fix", &pid, "fix.tfp", "--dry-run", "--form", "jmp-rip"]]
    {
        let shown = args.join(" ").replace(&pid, "PID");
        let _ = write!(text, "\n$ tfix {shown}\n{}", stdout(&b.tfix(args)));
    }
    assert_eq!(memory(), before, "a dry run changes nothing");
    let listed = stdout(&b.tfix(&["list", &pid]));
    assert!(!listed.contains("fix"), "{listed}");
    filters(|| insta::assert_snapshot!("inspect-and-dry-run", text));

    let json = stdout(&b.tfix(&["inspect", "fix.tfp", "--json"]));
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    filters(|| insta::assert_snapshot!("inspect-json", serde_json::to_string_pretty(&value).expect("JSON")));
}
