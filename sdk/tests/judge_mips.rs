//! The judge on MIPS programs: each test compiles C or assembly with a cross compiler, asks whether a function may be
//! replaced, and expects a yes, or a refusal by its rule.
#![cfg(feature = "gen")]

mod judging;

use tigerfix_core::error::Explain as _;
use tigerfix_core::field::Endian;
use tigerfix_core::judge::{JudgeError, JudgeOptions, Verdict};
use tigerfix_core::model::Package;
use tigerfix_core::program::Program;

const BE: &str = "mips-linux-gnu-gcc";
const LE: &str = "mipsel-linux-gnu-gcc";
const BE64: &str = "mips64-linux-gnuabi64-gcc";
const LE64: &str = "mips64el-linux-gnuabi64-gcc";

/// Compilers and the ways in which code refers to addresses.
const WAYS: &[(&str, &str)] = &[
    (BE, ""),
    (LE, "-fPIE -pie"),
    (LE, "-no-pie -fno-pic -static -mno-abicalls"),
    (BE, "-no-pie -fno-pic -static -mno-abicalls"),
    (BE, "-static"),
    (LE64, "-fPIE -pie"),
    (BE64, ""),
    (BE64, "-static"),
];

/// New code that changes what the ABI lets it change: jalr $v0; nop; jr $ra; nop (registers as the ABI says).
const CARELESS: &[u32] = &[0x0040_f809, 0, 0x03e0_0008, 0];
/// New code that changes the result only: jr $ra; li $v0, 2.
const CAREFUL: &[u32] = &[0x03e0_0008, 0x2402_0002];

fn compile(compiler: &str, source: &str, flags: &str) -> Vec<u8> {
    // Debian's libraries for these are abicalls; a program that is not can't be linked with them.
    let bare = if flags.contains("-mno-abicalls") { "-nostdlib -Wl,-emain" } else { "" };
    judging::compile(compiler, source, &format!("{flags} {bare}"))
}

fn ask_with(
    data: &[u8],
    names: &[&str],
    code: &[u32],
    options: JudgeOptions,
) -> (Result<Verdict, JudgeError>, Package) {
    let big = Program::parse(data).expect("a program").ident.endian == Endian::Big;
    let order = |w: &u32| if big { w.to_be_bytes() } else { w.to_le_bytes() };
    judging::ask_with(data, names, &code.iter().flat_map(order).collect::<Vec<u8>>(), options)
}

fn rule(data: &[u8], names: &[&str]) -> &'static str {
    ask_with(data, names, CAREFUL, JudgeOptions::strict()).0.map_or_else(|e| e.rule(), |_| "yes")
}

const PRINTER: &str = r#"
    volatile int sink;
    KIND int p(int x) { int i; for (i = 0; i < x; i++) sink += i * 3; return sink + 1; }
    int main(int argc, char **argv) { for (;;) { sink = p(argc); argc += sink; } }
"#;

#[test]
fn a_function_of_its_own_may_be_replaced() {
    for (compiler, way) in WAYS {
        for level in ["-O0", "-O2", "-Os", "-O2 -g"] {
            for kind in ["__attribute__((noipa))", "static __attribute__((noipa))"] {
                let flags = format!("{way} {level}");
                let data = compile(compiler, &PRINTER.replace("KIND", kind), &flags);
                let (verdict, package) = ask_with(&data, &["p"], CARELESS, JudgeOptions::strict());
                verdict.unwrap_or_else(|e| panic!("{compiler} {flags} {kind}: {e}"));
                let site = &package.sites[0];
                assert!(site.window >= 8 && site.pad == 0, "{compiler} {flags}: {}", site.window);
                assert_eq!(site.body.len(), 1);
            }
        }
    }
}

#[test]
fn a_function_that_is_inlined_everywhere() {
    for (compiler, way) in WAYS {
        let source = PRINTER.replace("KIND", "");
        // With main as the only other function, likeness may be seen first.
        let data = compile(compiler, &source, &format!("{way} -O2"));
        assert_eq!(rule(&data, &["p"]), "no-caller", "{compiler} {way}");
        let data = compile(compiler, &source, &format!("{way} -O2 -g"));
        assert_eq!(rule(&data, &["p"]), "inlined", "{compiler} {way} -g");
        assert_eq!(rule(&compile(compiler, &source, &format!("{way} -O0")), &["p"]), "yes", "{compiler} {way} -O0");
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
    for (compiler, way) in WAYS {
        for level in ["-O0", "-O2"] {
            assert_eq!(rule(&compile(compiler, source, &format!("{way} {level}")), &["p"]), "yes", "{compiler} {way}");
        }
    }
}

#[test]
fn specialised_copies() {
    let source = r#"
        int (*volatile keep)(int, int);
        volatile int sink;
        __attribute__((noinline)) static int work(int n, int mode) {
            for (int i = 0; i < n; i++) {
                if (mode == 3) sink += i * i; else if (mode == 4) sink ^= n; else { sink -= mode; sink *= 3; }
            }
            return sink;
        }
        int main(int argc, char **argv) {
            keep = work;
            for (int i = 0; i < argc; i++) sink += work(argc, 3) + work(argc + 2, 3);
            return 0;
        }
    "#;
    for (compiler, way) in WAYS {
        let data = compile(compiler, source, &format!("{way} -O3"));
        let error = ask_with(&data, &["work"], CAREFUL, JudgeOptions::strict()).0.expect_err("a copy");
        assert_eq!(error.rule(), "cloned", "{compiler} {way}: {error}");
        assert!(error.to_string().contains("`work.constprop.0`") && error.to_string().contains("`main`"), "{error}");
        assert_eq!(rule(&data, &["main", "work"]), "yes", "{compiler} {way}");
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
    for (compiler, way) in WAYS {
        let data = compile(compiler, KEEPER, &format!("{way} -O2"));
        let (verdict, _) = ask_with(&data, &["leaf"], CARELESS, JudgeOptions::strict());
        let error = verdict.expect_err(way);
        assert_eq!(error.rule(), "ipa-ra", "{compiler} {way}: {error}");
        let JudgeError::IpaRa { reliance, .. } = error else { panic!("{way}") };
        assert!(reliance.caller == "keep" && !reliance.registers.is_empty(), "{compiler} {way}: {reliance:?}");
        let (verdict, _) = ask_with(&data, &["leaf"], CAREFUL, JudgeOptions::strict());
        verdict.unwrap_or_else(|e| panic!("{compiler} {way}: {e}"));
        let (verdict, _) = ask_with(&data, &["leaf", "keep"], CARELESS, JudgeOptions::strict());
        verdict.unwrap_or_else(|e| panic!("{compiler} {way}, caller replaced: {e}"));
        let data = compile(compiler, KEEPER, &format!("{way} -O2 -fno-ipa-ra"));
        let (verdict, _) = ask_with(&data, &["leaf"], CARELESS, JudgeOptions::strict());
        verdict.unwrap_or_else(|e| panic!("{compiler} {way} -fno-ipa-ra: {e}"));
    }
}

/// A jump table whose first case is in the window's second word could only be hand-written; this one has its dispatch
/// there.
const SWITCH: &str = r#"
    volatile int sink;
    __attribute__((noipa)) int pick(int x) {
        switch (x) {
            case 0: return sink + 3; case 1: sink = 4; return 7; case 2: sink *= 2; return 9; case 3: return sink ^ 5;
            case 4: sink = sink / 3; return 1; case 5: sink++; return 22; case 6: return sink - 8; case 7: sink = x; return 2;
        }
        return 0;
    }
    int main(int argc, char **argv) { return pick(argc); }
"#;

#[test]
fn jump_tables_are_seen() {
    for (compiler, way) in WAYS {
        let data = compile(compiler, SWITCH, &format!("{way} -O2 -fno-jump-tables"));
        assert_eq!(rule(&data, &["pick"]), "yes", "{compiler} {way}");
        let data = compile(compiler, SWITCH, &format!("{way} -O2"));
        assert_eq!(rule(&data, &["pick"]), "yes", "{compiler} {way}");
    }
}

/// Functions in assembly, each with its own hazard.
const SHAPES: &str = r#"
    asm(".text\n .set noreorder\n .set noat\n"
        ".macro fn name\n .p2align 4\n .globl \\name\n .type \\name,@function\n \\name:\n .endm\n"
        ".macro end name\n .size \\name,.-\\name\n .endm\n"
        "fn tiny\n .word 0x0000000d\n end tiny\n .globl after_tiny\n .type after_tiny,@function\n"
        " after_tiny: jr $31\n nop\n end after_tiny\n"
        "fn looping\n li $2,0\n 1: addiu $2,$2,1\n bne $2,$4,1b\n nop\n jr $31\n nop\n end looping\n"
        "fn head\n addiu $4,$4,-1\n bnez $4,head\n nop\n jr $31\n move $2,$4\n end head\n"
        "fn own_slot\n bnez $4,1f\n 1: addiu $4,$4,1\n jr $31\n move $2,$4\n end own_slot\n"
        "fn pointed\n move $2,$4\n inside: addiu $2,$2,1\n jr $31\n nop\n end pointed\n"
        "fn intruder\n beqz $4,victim+4\n nop\n jr $31\n nop\n end intruder\n"
        "fn victim\n move $2,$4\n addiu $2,$2,1\n jr $31\n nop\n end victim\n"
        "fn call_first\n bal after_tiny\n nop\n jr $31\n nop\n end call_first\n"
        "fn before_slot\n move $2,$4\n jr $31\n end before_slot\n .globl slot\n .type slot,@function\n"
        " slot: addiu $2,$2,1\n jr $31\n nop\n end slot\n"
        "fn junk\n .word 0x0000003d,0x0000003d\n jr $31\n nop\n end junk\n"
        "fn last\n jr $31\n nop\n end last\n"
        ".data\n .p2align 3\n POINTER inside\n .text\n .set reorder\n .set at\n");
    int main(void) { return 0; }
"#;

#[test]
fn windows_end_at_the_first_target() {
    for (compiler, way) in WAYS {
        let wide = if compiler.contains("64") { ".dword" } else { ".word" };
        let data = compile(compiler, &SHAPES.replace("POINTER", wide), &format!("{way} -O1"));
        let options = JudgeOptions::strict().allow_inlined(true).allow_clobbers(true);
        let outcome = |name: &str| ask_with(&data, &[name], CAREFUL, options).0;
        let window = |name: &str| match outcome(name) {
            Ok(v) => v.sites[0].window.clone(),
            Err(JudgeError::WindowTooSmall { figures, .. }) => *figures,
            Err(e) => panic!("{compiler} {way} {name}: {e}"),
        };
        assert_eq!(window("tiny").window, 4, "{compiler} {way}");
        assert_eq!(outcome("tiny").expect_err("too small").rule(), "window-too-small");
        let looping = window("looping");
        assert_eq!(looping.window, 4, "{compiler} {way}");
        assert!(looping.obstacle.expect("the loop").what.contains("`looping`"));
        assert_eq!(window("head").window, 0, "{compiler} {way}");
        // A branch to its own delay slot.
        assert_eq!(window("own_slot").window, 4, "{compiler} {way}");
        assert_eq!(window("pointed").window, 4, "{compiler} {way}");
        assert_eq!(window("victim").window, 4, "{compiler} {way}");
        assert!(window("victim").obstacle.expect("a branch").what.contains("`intruder`"));
        // A call and its slot are both overwritten; the return address is behind them.
        let call = window("call_first");
        assert!(call.window >= 8, "{compiler} {way}: {call:?}");
        assert_eq!(outcome("slot").expect_err("a delay slot").rule(), "delay-slot-entry", "{compiler} {way}");
        assert_eq!(outcome("junk").expect_err("no code").rule(), "undecodable", "{compiler} {way}");
        assert_eq!(outcome("last").map_err(|e| e.rule()).map(|_| ()), Ok(()), "{compiler} {way}");
    }
}

#[test]
fn compressed_functions_are_refused_by_name() {
    let source = r#"
        volatile int sink;
        __attribute__((noipa, mips16)) int p(int x) { sink += x; return sink * 3; }
        int main(int argc, char **argv) { return p(argc); }
    "#;
    for compiler in [BE, LE] {
        let data = compile(compiler, source, "-O2 -static -no-pie -fno-pic -mno-abicalls -msoft-float");
        let options = JudgeOptions::strict().allow_inlined(true).allow_clobbers(true);
        let error = ask_with(&data, &["p"], CAREFUL, options).0.expect_err("MIPS16");
        assert_eq!(error.rule(), "unsupported-isa", "{compiler}: {error}");
        assert!(error.to_string().contains("MIPS16"), "{error}");
    }
}
