//! The judge on AArch64 programs: each test compiles C or assembly with a cross compiler, asks whether a function may be
//! replaced, and expects a yes, or a refusal by its rule.
#![cfg(feature = "gen")]

mod judging;

use judging::ask_with;
use tigerfix_core::error::Explain as _;
use tigerfix_core::judge::{JudgeError, JudgeOptions};

const GCC: &str = "aarch64-linux-gnu-gcc";

/// Ways in which code refers to addresses, and what functions begin with.
const WAYS: &[&str] = &[
    "-fPIE -pie",
    "-no-pie -fno-pic -static",
    "-static -mbranch-protection=standard",
    "-fPIE -pie -mbranch-protection=bti",
    "-fPIE -pie -mcmodel=tiny",
];

/// New code that changes what the ABI lets it change: blr x0; ret.
const CARELESS: &[u8] = &[0x00, 0x00, 0x3f, 0xd6, 0xc0, 0x03, 0x5f, 0xd6];
/// New code that changes the result only: mov w0, #2; ret.
const CAREFUL: &[u8] = &[0x40, 0x00, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6];

fn compile(source: &str, flags: &str) -> Vec<u8> {
    judging::compile(GCC, source, flags)
}

fn rule(data: &[u8], names: &[&str]) -> &'static str {
    judging::rule(data, names, CAREFUL)
}

const PRINTER: &str = r#"
    volatile int sink;
    KIND int p(int x) { int i; for (i = 0; i < x; i++) sink += i * 3; return sink + 1; }
    int main(int argc, char **argv) { for (;;) { sink = p(argc); argc += sink; } }
"#;

#[test]
fn a_function_of_its_own_may_be_replaced() {
    for way in WAYS {
        for level in ["-O0", "-O2", "-Os", "-O2 -g"] {
            for kind in ["__attribute__((noipa))", "static __attribute__((noipa))"] {
                let flags = format!("{way} {level}");
                let data = compile(&PRINTER.replace("KIND", kind), &flags);
                let (verdict, package) = ask_with(&data, &["p"], CARELESS, JudgeOptions::strict());
                verdict.unwrap_or_else(|e| panic!("{flags} {kind}: {e}"));
                let site = &package.sites[0];
                assert!(site.window >= 4, "{flags}: {}", site.window);
                assert_eq!(site.body.len(), 1);
            }
        }
    }
}

#[test]
fn a_function_that_is_inlined_everywhere() {
    for way in WAYS {
        let source = PRINTER.replace("KIND", "");
        // With main as the only other function, likeness may be seen first.
        assert_eq!(rule(&compile(&source, &format!("{way} -O2")), &["p"]), "no-caller", "{way}");
        assert_eq!(rule(&compile(&source, &format!("{way} -O2 -g")), &["p"]), "inlined", "{way} -g");
        assert_eq!(rule(&compile(&source, &format!("{way} -O0")), &["p"]), "yes", "{way} -O0");
    }
}

#[test]
fn function_pointers_are_references() {
    let source = r#"
        volatile int sink;
        __attribute__((noipa)) static int p(int x) { sink ^= x; return x * 7 + sink; }
        int (*volatile later)(int);
        int main(int argc, char **argv) { later = p; return later(argc); }
    "#;
    for way in WAYS {
        for level in ["-O0", "-O2"] {
            assert_eq!(rule(&compile(source, &format!("{way} {level}")), &["p"]), "yes", "{way} {level}");
        }
    }
}

const KEEPER: &str = r#"
    int total;
    __attribute__((noinline)) static int leaf(int x) { total += x; return x + 1; }
    __attribute__((noinline)) int middle(int x) { return leaf(x) * 2; }
    __attribute__((noipa)) long keep(long a, long b, long c, long d) {
        long r = leaf((int)a);
        return r * (b + c) + d * a;
    }
    int main(int argc, char **argv) { total += keep(argc, 2, 3, argc); return middle(argc); }
"#;

#[test]
fn values_kept_in_registers_that_the_new_function_changes() {
    for way in WAYS {
        let data = compile(KEEPER, &format!("{way} -O2"));
        let error = ask_with(&data, &["leaf"], CARELESS, JudgeOptions::strict()).0.expect_err(way);
        assert_eq!(error.rule(), "ipa-ra", "{way}: {error}");
        let JudgeError::IpaRa { reliance, .. } = error else { panic!("{way}") };
        assert!(reliance.caller == "keep" && !reliance.registers.is_empty(), "{way}: {reliance:?}");
        let may = |data: &[u8], names: &[&str], code: &[u8], what: &str| {
            let (verdict, _) = ask_with(data, names, code, JudgeOptions::strict());
            verdict.unwrap_or_else(|e| panic!("{way}, {what}: {e}"));
        };
        may(&data, &["leaf"], CAREFUL, "careful");
        may(&data, &["leaf", "keep"], CARELESS, "caller replaced");
        let data = compile(KEEPER, &format!("{way} -O2 -fno-ipa-ra"));
        may(&data, &["leaf"], CARELESS, "-fno-ipa-ra");
    }
}

/// A machine that goes on with the next command right where it began, which the compiler does from 17 cases on by a table.
const MACHINE: &str = r#"
    volatile int sink;
    #define C(n) case n: sink = sink * (n + 3) ^ n; break;
    __attribute__((noipa)) int run(const unsigned char *p) {
        for (;;) {
            switch (*p++) {
            case 0: return 1;
            C(1) C(2) C(4) C(5) C(6) C(7) C(8) C(9) C(10) C(11) C(12) C(13) C(14) C(15) C(16) C(17) C(18) C(19) C(20)
            case 3: continue;
            case 21: return 9;
            }
        }
    }
    int main(int argc, char **argv) { return run((unsigned char *)argv[argc - 1]); }
"#;

#[test]
fn jump_tables_of_compilers_are_no_hindrance() {
    for way in WAYS {
        for level in ["-O0", "-O2", "-Os"] {
            assert_eq!(rule(&compile(MACHINE, &format!("{way} {level}")), &["run"]), "yes", "{way} {level}");
        }
    }
}

/// Functions with tables of all kinds; one of the cases begins at `CASE`.
const TABLES: &str = r#"
    asm(".text\n"
        ".macro fn name\n .p2align 4\n .globl \\name\n .type \\name,%function\n \\name:\n .endm\n"
        ".macro end name\n .size \\name,.-\\name\n .endm\n"
        "fn bytes\n ldrb w1,[x0],#1\n adrp x2,t1\n add x2,x2,:lo12:t1\n ldrb w1,[x2,w1,uxtw]\n adr x3,1f\n"
        " add x1,x3,w1,sxtb #2\n br x1\n 1: mov w0,#1\n ret\n end bytes\n"
        "fn halves\n ldrb w1,[x0],#1\n adrp x2,t2\n add x2,x2,:lo12:t2\n ldrh w1,[x2,w1,uxtw #1]\n adr x3,2f\n"
        " add x1,x3,w1,sxth #2\n br x1\n 2: mov w0,#1\n ret\n end halves\n"
        "fn words\n ldrb w1,[x0],#1\n adrp x2,t3\n add x2,x2,:lo12:t3\n ldr w1,[x2,w1,uxtw #2]\n adr x3,3f\n"
        " add x1,x3,w1,sxtw #2\n br x1\n 3: mov w0,#1\n ret\n end words\n"
        "fn llvm\n ldrb w8,[x0],#1\n adrp x9,t4\n add x9,x9,:lo12:t4\n adr x10,llvm+CASE\n ldrb w11,[x9,x8]\n"
        " add x10,x10,x11,lsl #2\n br x10\n 4: mov w0,#1\n ret\n end llvm\n"
        "fn relative\n ldrb w8,[x0],#1\n adrp x9,t5\n add x9,x9,:lo12:t5\n ldrsw x11,[x9,x8,lsl #2]\n add x9,x9,x11\n"
        " br x9\n 5: mov w0,#1\n ret\n end relative\n"
        "fn labels\n ldrb w8,[x0],#1\n adrp x9,t6\n add x9,x9,:lo12:t6\n ldr x11,[x9,x8,lsl #3]\n br x11\n"
        " 6: mov w0,#1\n ret\n end labels\n"
        ".section .rodata\n"
        "t1: .byte 0,(bytes+CASE-1b)/4\n .p2align 1\n t2: .hword 0,(halves+CASE-2b)/4\n .p2align 2\n"
        "t3: .word 0,(words+CASE-3b)/4\n t4: .byte (4b-llvm-CASE)/4,0\n .p2align 2\n t5: .word 5b-t5,relative+CASE-t5\n"
        ".section .data.rel.ro,\"aw\"\n .p2align 3\n t6: .quad 6b,labels+CASE\n .text\n");
    int main(void) { return 0; }
"#;

#[test]
fn targets_in_tables_end_the_window() {
    let options = JudgeOptions::strict().allow_inlined(true).allow_clobbers(true);
    for way in WAYS {
        // A case at the entry is a loop around the whole function: nothing can be overwritten.
        for (case, window) in [(0, 0), (4, 4), (8, 8)] {
            let data = compile(&TABLES.replace("CASE", &case.to_string()), &format!("{way} -O1"));
            for name in ["bytes", "halves", "words", "llvm", "relative", "labels"] {
                let figures = match ask_with(&data, &[name], CAREFUL, options).0 {
                    Ok(v) => v.sites[0].window.clone(),
                    Err(JudgeError::WindowTooSmall { figures, .. }) => *figures,
                    Err(e) => panic!("{way} {name}: {e}"),
                };
                assert_eq!(figures.window, window, "{way} {name}: {figures:?}");
                let what = figures.obstacle.map(|o| o.what);
                // Of some the address is built or stored as well, which is seen for itself.
                let seen = ["jump table entry", "pointer in the program's data", "branch in `llvm`"];
                assert!(what.as_deref().is_some_and(|w| seen.contains(&w)), "{way} {name}: {what:?}");
            }
        }
    }
}

/// Functions in assembly, each with its own hazard.
const SHAPES: &str = r#"
    asm(".text\n"
        ".macro fn name\n .p2align 4\n .globl \\name\n .type \\name,%function\n \\name:\n .endm\n"
        ".macro end name\n .size \\name,.-\\name\n .endm\n"
        "fn looping\n mov w1,#0\n 1: add w1,w1,#1\n cmp w1,w0\n b.ne 1b\n ret\n end looping\n"
        "fn head\n subs w0,w0,#1\n b.ne head\n ret\n end head\n"
        "fn pointed\n mov w1,w0\n inside: add w1,w1,#1\n ret\n end pointed\n"
        "fn intruder\n cbz w0,victim+8\n ret\n end intruder\n"
        "fn victim\n mov w1,w0\n add w1,w1,#1\n add w1,w1,#2\n ret\n end victim\n"
        "fn padded\n hint #34\n b.eq 2f\n 2: mov w0,#1\n ret\n end padded\n"
        "fn junk\n .word 0xffffffff,0xffffffff\n ret\n end junk\n"
        "fn last\n ret\n end last\n"
        ".data\n .p2align 3\n .quad inside\n .text\n");
    int main(void) { return 0; }
"#;

#[test]
fn windows_end_at_the_first_target() {
    let options = JudgeOptions::strict().allow_inlined(true).allow_clobbers(true);
    for way in WAYS {
        let data = compile(SHAPES, &format!("{way} -O1"));
        let outcome = |name: &str| ask_with(&data, &[name], CAREFUL, options).0;
        let window = |name: &str| match outcome(name) {
            Ok(v) => v.sites[0].window.clone(),
            Err(JudgeError::WindowTooSmall { figures, .. }) => *figures,
            Err(e) => panic!("{way} {name}: {e}"),
        };
        let looping = window("looping");
        assert_eq!(looping.window, 4, "{way}");
        assert!(looping.obstacle.expect("the loop").what.contains("`looping`"));
        assert_eq!(window("head").window, 0, "{way}");
        assert_eq!(outcome("head").expect_err("a loop").rule(), "window-too-small");
        assert_eq!(window("pointed").window, 4, "{way}");
        assert_eq!(window("victim").window, 8, "{way}");
        assert!(window("victim").obstacle.expect("a branch").what.contains("`intruder`"));
        // The landing pad stays.
        let padded = window("padded");
        assert_eq!((padded.pad, padded.window), (4, 4), "{way}: {padded:?}");
        let junk = outcome("junk").expect_err("no code");
        assert_eq!(junk.rule(), "undecodable", "{way}: {junk}");
        assert_eq!(outcome("last").map_err(|e| e.rule()).map(|_| ()), Ok(()), "{way}");
    }
}
