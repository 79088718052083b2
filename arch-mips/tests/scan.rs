//! The search for references, against compilers: whatever way code takes to a function's address, it is found. And the
//! classification of branches, against a disassembler.

use capstone::prelude::*;
use object::{Object, ObjectSection, ObjectSymbol};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;
use tigerfix_arch_mips::flow::{Kind, classify, scan_branches};
use tigerfix_arch_mips::operands::operands;
use tigerfix_core::arch::Constants;
use tigerfix_core::field::{Endian, load};

const FUNCTIONS: usize = 96;

/// Functions of which each is used in one place only, in one of many ways, with enough around to keep a compiler busy.
fn source() -> String {
    let mut c = String::from("volatile int sink;\nint (*volatile later)(int);\nint (*volatile table[64])(int);\n");
    c.push_str("__attribute__((noipa)) int apply(int (*f)(int), int x) { return f ? f(x) : x; }\n");
    for i in 0..FUNCTIONS {
        // All but a few are local; both kinds are reached differently in position-independent code.
        let kind = if i % 7 == 0 { "" } else { "static " };
        let _ = writeln!(
            c,
            "__attribute__((noipa)) {kind}int f{i}(int x) {{ sink ^= x + {i}; return x * {} + sink; }}",
            i + 3
        );
    }
    for i in (0..FUNCTIONS).step_by(8) {
        let f = |k: usize| format!("f{}", i + k);
        let _ = writeln!(
            c,
            "__attribute__((noipa)) int user{i}(int x, int y) {{
                int (*p)(int);
                later = {a};
                if (x > {i}) p = {b}; else if (y == 3) p = {c1}; else {{ sink = {d}(x); p = 0; }}
                for (int k = 0; k < y; k++) {{
                    switch ((x + k) & 15) {{
                        case 0: sink += apply({e}, k); break;
                        case 1: case 9: table[k & 63] = {f1}; break;
                        case 2: sink *= 3; p = later; break;
                        case 3: sink = apply(p, 3); break;
                        case 4: sink ^= 0x12345; break;
                        case 5: case 7: sink -= k; break;
                        case 6: return {g}(k);
                        default: sink++;
                    }}
                }}
                if (!p) return y ? {h}(x) : 1;
                return apply(p, y);
            }}",
            a = f(0),
            b = f(1),
            c1 = f(2),
            d = f(3),
            e = f(4),
            f1 = f(5),
            g = f(6),
            h = f(7)
        );
    }
    c.push_str("int main(int x, char **v) { int s = 0;\n");
    for i in (0..FUNCTIONS).step_by(8) {
        let _ = writeln!(c, "s += user{i}(x, s);");
    }
    c.push_str("return s; }\n");
    c
}

struct Linked {
    data: Vec<u8>,
}

fn compile(compiler: &str, flags: &str) -> Linked {
    let dir = std::env::temp_dir().join(format!(
        "tfix-scan-mips-{}-{}",
        std::process::id(),
        (compiler.to_owned() + flags).replace(' ', "")
    ));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("p.c"), source()).expect("the source");
    let done = Command::new(compiler)
        .current_dir(&dir)
        .args(flags.split_whitespace())
        .args(["-nostdlib", "-Wl,-emain", "p.c", "-o", "p"])
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(done.status.success(), "{compiler} {flags}: {}", String::from_utf8_lossy(&done.stderr));
    let data = std::fs::read(dir.join("p")).expect("the program");
    let _ = std::fs::remove_dir_all(&dir);
    Linked { data }
}

/// Functions that no code seems to use.
fn unseen(program: &Linked) -> Vec<String> {
    let file = object::File::parse(&*program.data).expect("an ELF file");
    let endian = if file.is_little_endian() { Endian::Little } else { Endian::Big };
    let is_64 = file.is_64();
    let gp = file.symbols().find(|s| s.name() == Ok("_gp")).map(|s| s.address());
    let got = file.section_by_name(".got").map(|s| (s.address(), s.data().expect("a GOT").to_vec()));
    let width = if is_64 { 8 } else { 4 };
    let word = |at: u64| {
        let (start, bytes) = got.as_ref()?;
        let from = usize::try_from(at.checked_sub(*start)?).ok()?;
        Some(load(bytes.get(from..from.checked_add(width)?)?, endian))
    };
    let constants = Constants { gp, word: &word };
    let text = file.section_by_name(".text").expect("code");
    let (at, code) = (text.address(), text.data().expect("code"));
    let mut seen = BTreeSet::new();
    scan_branches(is_64, endian, code, at, at, at + code.len() as u64, &constants, &mut |_, to| {
        seen.insert(to);
    });
    let functions = file.symbols().filter(|s| {
        s.name()
            .is_ok_and(|n| n.strip_prefix('f').is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())))
    });
    let functions: Vec<_> = functions.map(|s| (s.name().unwrap_or("").to_owned(), s.address())).collect();
    assert_eq!(functions.len(), FUNCTIONS);
    functions.into_iter().filter(|f| !seen.contains(&f.1)).map(|f| f.0).collect()
}

#[test]
fn every_use_of_a_function_is_found() {
    let bare = "-no-pie -fno-pic -static -mno-abicalls";
    let ways = [
        ("mips-linux-gnu-gcc", "-static".to_owned()),
        ("mips-linux-gnu-gcc", "-fPIE -pie".to_owned()),
        ("mipsel-linux-gnu-gcc", "-fPIC -shared".to_owned()),
        ("mipsel-linux-gnu-gcc", "-fPIC -shared -mxgot".to_owned()),
        ("mips-linux-gnu-gcc", bare.to_owned()),
        ("mipsel-linux-gnu-gcc", format!("{bare} -mlong-calls")),
        ("mips-linux-gnu-gcc", format!("{bare} -G8")),
        ("mips-linux-gnu-gcc", format!("{bare} -mbranch-likely")),
        ("mipsel-linux-gnu-gcc", "-static -mno-shared".to_owned()),
        ("mips64-linux-gnuabi64-gcc", "-static".to_owned()),
        ("mips64el-linux-gnuabi64-gcc", "-fPIC -shared".to_owned()),
        ("mips64el-linux-gnuabi64-gcc", "-fPIE -pie -mxgot".to_owned()),
        ("mips64-linux-gnuabi64-gcc", bare.to_owned()),
        ("mips64el-linux-gnuabi64-gcc", format!("{bare} -mlong-calls")),
        ("mips64el-linux-gnuabi64-gcc", format!("{bare} -msym32")),
    ];
    let levels = ["-O0", "-O2", "-Os", "-O3 -fno-reorder-blocks"];
    let jobs: Vec<_> = ways.iter().flat_map(|(c, w)| levels.iter().map(move |l| (*c, format!("{w} {l}")))).collect();
    std::thread::scope(|scope| {
        for half in jobs.chunks(jobs.len().div_ceil(2)) {
            scope.spawn(move || {
                for (compiler, flags) in half {
                    let missing = unseen(&compile(compiler, flags));
                    assert!(missing.is_empty(), "{compiler} {flags}: {missing:?}");
                }
            });
        }
    });
}

/// Every word that capstone takes for a branch is one, with the same target; and what has a delay slot is one for it.
#[test]
fn capstone_sees_the_same_branches() {
    let at = 0x0040_1000u64;
    for (mode, is_64) in [(arch::mips::ArchMode::Mips32, false), (arch::mips::ArchMode::Mips64, true)] {
        let cs =
            Capstone::new().mips().mode(mode).endian(capstone::Endian::Big).detail(true).build().expect("capstone");
        let mut compared = 0;
        let mut unknown = BTreeSet::new();
        // All opcodes, all of what tells branches apart (rs, rt, function), a few of the rest.
        for high in 0..0x1_0000u32 {
            for low in [0u32, 3, 8, 9, 0x0c, 0x0d, 0x18, 0x1f, 0x34, 0x0409, 0x0408, 0xf809, 0xfc09, 0xfffe, 0x1021] {
                let word = high << 16 | low;
                let insns = cs.disasm_count(&word.to_be_bytes(), at, 1).expect("capstone");
                let Some(insn) = insns.iter().next() else { continue };
                let name = insn.mnemonic().unwrap_or("");
                let b = classify(word);
                let detail = cs.insn_detail(insn).expect("details");
                let groups: Vec<u8> = detail.groups().iter().map(|g| g.0).collect();
                // Coprocessor 2 and the extensions of some makers are none of ours.
                // COP3 is one of those in MIPS I only.
                if operands(is_64, word).is_none() || name.starts_with("bc3") {
                    unknown.insert(name.to_owned());
                    continue;
                }
                // jump, call, branch relative
                // Its groups leave out calls.
                let calls = ["jal", "bal", "bltzal", "bgezal"].iter().any(|c| name.starts_with(c));
                let branches = (calls || groups.iter().any(|g| [1, 2, 7].contains(g))) && !name.ends_with("eret");
                let plain = matches!(b.kind, Kind::Next | Kind::Stop | Kind::ExceptionReturn);
                assert_eq!(branches, !plain, "{word:08x} {name} {groups:?} {b:?}");
                if let Some(target) = b.target(is_64, at) {
                    let shown = insn.op_str().unwrap_or("").rsplit([' ', ',']).next().unwrap_or("").to_owned();
                    let shown = u64::from_str_radix(shown.trim_start_matches("0x"), 16).unwrap_or(u64::MAX);
                    assert_eq!(shown, target, "{word:08x} {insn}");
                    compared += 1;
                }
            }
        }
        println!("{compared} targets; unknown here: {unknown:?}");
        assert!(compared > 100_000, "{compared}");
    }
}
