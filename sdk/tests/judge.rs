//! The judge on real programs: each test compiles C with gcc, asks whether a function may be replaced, and expects a
//! yes, or a refusal by its rule.
#![cfg(feature = "gen")]

mod judging;

use judging::ask_with;
use tigerfix::decoder::CapstoneDecoder;
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::addr::LinkAddr;
use tigerfix_core::error::Explain as _;
use tigerfix_core::judge::{JudgeError, JudgeOptions, Verdict, judge};
use tigerfix_core::program::Program;

/// New code that changes what the ABI lets it change: `call *%rax; ret`.
const CARELESS: &[u8] = &[0xff, 0xd0, 0xc3];
/// New code that changes the result only: `mov $2,%eax; ret`.
const CAREFUL: &[u8] = &[0xb8, 2, 0, 0, 0, 0xc3];

fn compile(source: &str, flags: &str) -> Vec<u8> {
    judging::compile("gcc", source, flags)
}

fn ask(data: &[u8], names: &[&str]) -> Result<Verdict, JudgeError> {
    ask_with(data, names, CAREFUL, JudgeOptions::strict()).0
}

fn rule(data: &[u8], names: &[&str]) -> &'static str {
    judging::rule(data, names, CAREFUL)
}

const PRINTER: &str = r#"
    #include <stdio.h>
    #include <unistd.h>
    __attribute__((noinline)) NOIPA int p(void) { return 1; }
    int main(void) { for (;;) { printf("%d\n", p()); usleep(1000); } }
"#;

#[test]
fn a_function_of_its_own_may_be_replaced() {
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        for kind in ["-pie -fPIE", "-no-pie -fno-pie", "-static", "-pie -fPIE -fcf-protection"] {
            for debug in ["", "-g", "-g -gdwarf-4"] {
                let flags = format!("{level} {kind} {debug} -DNOIPA=__attribute__((noipa))");
                let data = compile(PRINTER, &flags);
                let (verdict, package) = ask_with(&data, &["p"], CARELESS, JudgeOptions::strict());
                let verdict = verdict.unwrap_or_else(|e| panic!("{flags}: {e}"));
                let site = &package.sites[0];
                let pad = if kind.contains("cf-protection") { 4 } else { 0 };
                assert_eq!(site.pad, pad, "{flags}");
                assert!(site.window >= 5, "{flags}: {}", site.window);
                assert!(site.expected.len() >= usize::from(site.pad + site.window), "{flags}");
                assert_eq!(site.body.len(), 1);
                assert_eq!(site.body[0].0, site.entry);
                assert_eq!(verdict.sites[0].has_debug_info, !debug.is_empty(), "{flags}");
                assert_eq!(verdict.warnings.iter().any(|w| w.rule == "no-debug-info"), debug.is_empty(), "{flags}");
            }
        }
    }
}

#[test]
fn a_function_that_is_inlined_everywhere() {
    let source = PRINTER.replace("__attribute__((noinline)) NOIPA", "");
    for level in ["-O2", "-O3", "-O2 -no-pie", "-O2 -static", "-O2 -fcf-protection"] {
        assert_eq!(rule(&compile(&source, level), &["p"]), "no-caller", "{level}");
        assert_eq!(rule(&compile(&source, &format!("{level} -g")), &["p"]), "inlined", "{level} -g");
    }
    assert_eq!(rule(&compile(&source, "-O0"), &["p"]), "yes");
    assert_eq!(rule(&compile(&source, "-O0 -g"), &["p"]), "yes");
}

#[test]
fn inlined_copies_are_listed_with_their_places() {
    let source = r#"
        #include <stdio.h>
        volatile int v, w;
        int inner(int x) { v = x * 3 + w; w ^= v + 7; return v; }
        __attribute__((noinline)) int outer(int x) {
            return inner(x) + 1;
        }
        int main(void) { int (*volatile f)(int) = inner; printf("%d %d\n", outer(2), f(1)); }
    "#;
    // Link-time optimisation sees that the copy gains nothing, unless forced.
    let forced = source.replace("int inner(", "static inline __attribute__((always_inline)) int inner(");
    let forced = forced.replace("noinline", "noipa");
    for (flags, source) in [
        ("-O2 -g", source),
        ("-O2 -g -gdwarf-4", source),
        ("-O2 -g -no-pie", source),
        ("-O2 -g -flto", forced.as_str()),
        ("-O2 -g -gdwarf-4 -flto", forced.as_str()),
    ] {
        let data = compile(source, flags);
        let Err(JudgeError::Inlined { copies, .. }) = ask(&data, &["inner"]) else { panic!("{flags}: no refusal") };
        assert_eq!(copies.len(), 1, "{flags}: {copies:?}");
        assert_eq!((copies[0].into.as_str(), copies[0].line), ("outer", 6), "{flags}");
        assert!(copies[0].file.ends_with("program.c"), "{flags}: {}", copies[0].file);
        assert!(copies[0].addr.is_some());
        // With its host it may go; and where the user says so.
        assert_eq!(rule(&data, &["inner", "outer"]), "yes", "{flags}");
        let (verdict, _) = ask_with(&data, &["inner"], CAREFUL, JudgeOptions::strict().allow_inlined(true));
        assert!(verdict.expect("allowed").warnings.iter().any(|w| w.rule == "inlined"));
    }
    // Without debug information only a warning is possible: a pointer leads to it.
    let verdict = ask(&compile(source, "-O2"), &["inner"]).expect("reachable");
    assert!(verdict.warnings.iter().any(|w| w.rule == "no-debug-info"));
}

#[test]
fn mutual_recursion_is_replaced_whole_or_not_at_all() {
    let source = r#"
        #include <stdio.h>
        #include <unistd.h>
        int f2(int n);
        int f1(int n) { if (n <= 1) return 1; if (n % 2) return n * f1(n - 1); else return n * f2(n - 1); }
        int f2(int n) { if (n <= 1) return 1; if (n % 2) return n * f2(n - 1); else return n * f1(n - 1); }
        int main(void) { for (int i = 1;; i++) { printf("f1(%d) = %d\n", i, f1(i)); usleep(100000); } }
    "#;
    for level in ["-O2", "-O3"] {
        for f in ["f1", "f2"] {
            assert_ne!(rule(&compile(source, level), &[f]), "yes", "{level} {f}");
            let error = ask(&compile(source, &format!("{level} -g")), &[f]).expect_err("inlined into main");
            assert!(error.to_string().contains("`main`"), "{level} {f}: {error}");
        }
    }
    for level in ["-O0", "-O1"] {
        assert_eq!(rule(&compile(source, level), &["f1"]), "yes", "{level}");
        assert_eq!(rule(&compile(source, &format!("{level} -g")), &["f1"]), "yes", "{level} -g");
    }
}

/// Functions in assembly, each with its own hazard.
const SHAPES: &str = r#"
    asm(".text\n"
        ".macro fn name\n .p2align 4\n .globl \\name\n .type \\name,@function\n \\name:\n .endm\n"
        ".macro end name\n .size \\name,.-\\name\n .endm\n"
        "fn tiny\n ret\n end tiny\n .globl after_tiny\n .type after_tiny,@function\n after_tiny: ret\n end after_tiny\n"
        "fn padded\n ret\n end padded\n"
        "fn looping\n xor %eax,%eax\n 1: inc %eax\n cmp %edi,%eax\n jl 1b\n ret\n end looping\n"
        "fn head\n dec %edi\n jnz head\n mov %edi,%eax\n ret\n end head\n"
        "fn pointed\n mov %edi,%eax\n inside: add $1,%eax\n nop\n nop\n nop\n nop\n ret\n end pointed\n"
        "fn table\n lea jumps(%rip),%rdx\n 3: movslq (%rdx,%rdi,4),%rax\n add %rdx,%rax\n jmp *%rax\n"
        " 2: mov $1,%eax\n ret\n end table\n"
        "fn intruder\n test %edi,%edi\n je victim+3\n ret\n end intruder\n"
        "fn victim\n mov %rdi,%rax\n add $1,%rax\n ret\n end victim\n"
        "fn callee_first\n call padded\n add $1,%eax\n ret\n nop\n nop\n nop\n nop\n nop\n end callee_first\n"
        "fn sizeless\n mov %edi,%eax\n add $1,%eax\n ret\n"
        "fn junk\n .byte 0x06,0x06,0x06,0x06,0x06,0x06,0x06\n ret\n end junk\n"
        "fn split\n test %edi,%edi\n je split.cold\n nop\n 4: mov %edi,%eax\n ret\n end split\n"
        "fn last\n ret\n end last\n"
        ".section .text.unlikely,\"ax\"\n .type split.cold,@function\n split.cold: jmp 4b\n end split.cold\n"
        ".section .rodata\n jumps: .long 3b-jumps, 2b-jumps\n"
        ".data\n .p2align 3\n .quad inside\n .text\n");
    int main(void) { return 0; }
"#;

#[test]
fn windows_end_at_the_first_target() {
    for flags in ["-O1 -rdynamic", "-O1 -no-pie -rdynamic", "-O1 -rdynamic -static"] {
        // Without the dynamic table a static program exports nothing: keep to what the window says.
        let options = JudgeOptions::strict().allow_inlined(true).allow_clobbers(true);
        let data = compile(SHAPES, flags);
        let outcome = |name: &str| ask_with(&data, &[name], CAREFUL, options).0;
        let window = |name: &str| match outcome(name) {
            Ok(v) => v.sites[0].window.clone(),
            Err(JudgeError::WindowTooSmall { figures, needed: 5, .. }) => *figures,
            Err(e) => panic!("{flags} {name}: {e}"),
        };
        assert_eq!(window("tiny").window, 1, "{flags}");
        assert_eq!(outcome("tiny").expect_err("too small").rule(), "window-too-small");
        assert_eq!((window("padded").size, window("padded").padding), (1, 15), "{flags}");
        assert_eq!(window("padded").window, 16, "{flags}");
        let looping = window("looping");
        assert_eq!(looping.window, 2, "{flags}");
        assert!(looping.obstacle.expect("the loop").what.contains("`looping`"));
        assert_eq!(window("head").window, 0, "{flags}");
        assert_eq!(window("pointed").window, 2, "{flags}");
        assert_eq!(window("table").window, 7, "{flags}");
        assert_eq!(window("table").obstacle.expect("a table").what, "jump table entry");
        assert_eq!(window("victim").window, 3, "{flags}");
        assert!(window("victim").obstacle.expect("a branch").what.contains("`intruder`"));
        let call = window("callee_first");
        assert_eq!(call.return_inside, Some(call.entry.offset(5)), "{flags}");
        assert!(window("sizeless").size_guessed, "{flags}");
        assert_eq!(outcome("junk").expect_err("no code").rule(), "undecodable", "{flags}");
    }
}

#[test]
fn refusals_leave_the_package_alone() {
    let data = compile(SHAPES, "-O1 -rdynamic");
    let (verdict, package) = ask_with(&data, &["padded", "tiny"], CAREFUL, JudgeOptions::strict());
    assert!(verdict.is_err());
    assert!(package.sites.iter().all(|s| s.window == 0 && s.expected.is_empty() && s.body.is_empty()));
}

#[test]
fn specialised_copies() {
    let source = r#"
        #include <stdio.h>
        int (*volatile keep)(int, int);
        volatile int sink;
        __attribute__((noinline)) static int work(int n, int mode) {
            for (int i = 0; i < n; i++) {
                if (mode == 3) sink += i * i; else if (mode == 4) sink ^= n; else { sink -= mode; puts("x"); }
            }
            return sink;
        }
        int main(int argc, char **argv) {
            keep = work;
            for (int i = 0; i < argc; i++) printf("%d %d\n", work(argc, 3), work(argc + 2, 3));
        }
    "#;
    let data = compile(source, "-O3");
    let error = ask(&data, &["work"]).expect_err("a copy");
    assert_eq!(error.rule(), "cloned", "{error}");
    assert!(error.to_string().contains("`work.constprop.0`") && error.to_string().contains("`main`"), "{error}");
    // Its only user is replaced as well.
    assert_eq!(rule(&data, &["main", "work"]), "yes");
}

#[test]
fn cold_parts_belong_to_the_body() {
    let data = compile(SHAPES, "-O1 -rdynamic");
    let options = JudgeOptions::strict().allow_clobbers(true);
    let (verdict, package) = ask_with(&data, &["split"], CAREFUL, options);
    let verdict = verdict.expect("replaceable");
    let body = &package.sites[0].body;
    assert_eq!(body.len(), 2, "{body:?}");
    assert_eq!(body[1].1, 5);
    assert_eq!(verdict.sites[0].window.window, 9, "the fragment jumps back");
}

const KEEPER: &str = r#"
    #include <stdio.h>
    int total;
    __attribute__((noinline)) static int leaf(int x) { total += x; return x + 1; }
    __attribute__((noinline)) int middle(int x) { return leaf(x) * 2; }
    __attribute__((noinline)) long keep(long a, long b, long c, long d, long e, long f) {
        long r = leaf((int)a);
        return r * (b + c) + d * e - f;
    }
    int main(int argc, char **argv) { printf("%ld\n", keep(argc, 2, 3, 4, 5, argc)); printf("%d\n", middle(argc)); }
"#;

#[test]
fn values_kept_in_registers_that_the_new_function_changes() {
    for flags in ["-O2", "-O2 -g", "-O3 -no-pie"] {
        let data = compile(KEEPER, flags);
        let (verdict, _) = ask_with(&data, &["leaf"], CARELESS, JudgeOptions::strict());
        let error = verdict.expect_err(flags);
        assert_eq!(error.rule(), "ipa-ra", "{flags}: {error}");
        let JudgeError::IpaRa { reliance, .. } = error else { panic!("{flags}") };
        let (caller, registers) = (reliance.caller, reliance.registers);
        assert!(caller == "keep" && !registers.is_empty(), "{flags}: {caller} {registers:?}");
        let (verdict, _) = ask_with(&data, &["leaf"], CAREFUL, JudgeOptions::strict());
        verdict.unwrap_or_else(|e| panic!("{flags}: {e}"));
        let (verdict, _) = ask_with(&data, &["leaf"], CARELESS, JudgeOptions::strict().allow_clobbers(true));
        assert!(verdict.expect("allowed").warnings.iter().any(|w| w.rule == "ipa-ra"), "{flags}");
        let (verdict, _) = ask_with(&data, &["leaf", "keep"], CARELESS, JudgeOptions::strict());
        verdict.unwrap_or_else(|e| panic!("{flags}, caller replaced: {e}"));
    }
    for flags in ["-O2 -fno-ipa-ra", "-O2 -g -fno-ipa-ra", "-O1", "-O0 -g"] {
        let (verdict, _) = ask_with(&compile(KEEPER, flags), &["leaf"], CARELESS, JudgeOptions::strict());
        verdict.unwrap_or_else(|e| panic!("{flags}: {e}"));
    }
}

#[test]
fn values_kept_by_a_caller_of_a_caller() {
    let source = KEEPER.replace("long r = leaf((int)a);", "long r = middle((int)a);");
    let source = source.replace("int middle(", "static int middle(");
    let (verdict, _) = ask_with(&compile(&source, "-O2"), &["leaf"], CARELESS, JudgeOptions::strict());
    let error = verdict.expect_err("keep relies on what middle leaves alone");
    let JudgeError::IpaRa { reliance, .. } = error else { panic!("{error}") };
    assert_eq!(reliance.callee, "middle");
}

#[test]
fn exported_functions_of_a_library_have_callers_elsewhere() {
    let source = "int f(int x) { return x * 7 + 1; } static int g(int x) { return x; } int h(int x) { return g(x); }";
    let verdict = ask(&compile(source, "-O2 -shared -fPIC"), &["f"]).expect("a root");
    assert_eq!(verdict.sites[0].function, "f");
}

#[test]
fn broken_debug_information_never_panics() {
    let data = compile(&PRINTER.replace("NOIPA", ""), "-O2 -g");
    let program = Program::parse(&data).expect("a program");
    let places: Vec<(usize, usize)> = program
        .sections
        .iter()
        .filter(|s| s.name.starts_with(".debug") && !s.data.is_empty())
        .map(|s| (s.data.as_ptr() as usize - data.as_ptr() as usize, s.data.len()))
        .collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..400 {
        let mut hurt = data.clone();
        for _ in 0..1 + random() % 6 {
            let (at, len) = places[random() % places.len()];
            hurt[at + random() % len] = random() as u8;
        }
        let _ = ask(&hurt, &["p"]);
    }
}

#[test]
fn broken_programs_never_panic() {
    let data = compile(PRINTER, "-O2 -DNOIPA=");
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let decoder = CapstoneDecoder::for_arch(&X86_64).expect("a decoder");
    for _ in 0..400 {
        let mut hurt = data.clone();
        for _ in 0..1 + random() % 8 {
            let at = random() % hurt.len();
            hurt[at] = random() as u8;
        }
        // Symbols and headers are the likeliest to hurt.
        let Ok(program) = Program::parse(&hurt) else { continue };
        let (_, mut package) = ask_with(&data, &["p"], CARELESS, JudgeOptions::strict());
        let entries: Vec<LinkAddr> = program.functions().map(|s| s.addr).take(40).collect();
        for entry in entries {
            package.sites[0].entry = entry;
            let _ = judge(&X86_64, &decoder, &program, &mut package, &JudgeOptions::strict().allow_inlined(true));
        }
    }
}
