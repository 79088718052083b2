//! Data and references of all kinds in patches for 32-bit MIPS, both byte orders, executed.
//!
//! There is no tool at run time: the test writes down which bytes go where, as a firmware engineer would, and a piece of code
//! in the program (`self_patch_mips.c`) puts them there. Everything else is `gen`'s work.

use qemu_tests::{Lab, fixtures, repository, run};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tigerfix::generate::Generate;
use tigerfix::judge::JudgeOptions;
use tigerfix::model::{Package, Referent};
use tigerfix_arch_mips::{MIPS, MIPSEL, Mips};
use tigerfix_core::arch::{Arch as _, Relocator as _, TrampolineEncoder as _, Via};
use tigerfix_core::relocate::settle;

struct Variant {
    arch: &'static Mips,
    compiler: &'static str,
    qemu: &'static str,
}

const BOTH: [Variant; 2] = [
    Variant { arch: &MIPS, compiler: "mips-linux-gnu-gcc", qemu: "qemu-mips" },
    Variant { arch: &MIPSEL, compiler: "mipsel-linux-gnu-gcc", qemu: "qemu-mipsel" },
];

/// In the program's 256 MiB region, and in another.
const NEAR: u64 = 0x0200_0000;
const FAR: u64 = 0x2345_0000;

struct Bench<'v> {
    lab: Lab,
    variant: &'v Variant,
}

impl Bench<'_> {
    fn compile(&self, out: &str, sources: &[&str], flags: &[&str]) -> PathBuf {
        let out = self.lab.path(out);
        let mut command = Command::new(self.variant.compiler);
        command.arg("-I").arg(repository().join("include")).args(flags).arg("-o").arg(&out);
        command.args(sources.iter().map(|s| fixtures().join(s)));
        let done = command.output().unwrap_or_else(|e| panic!("{}: {e}", self.variant.compiler));
        assert!(done.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&done.stderr));
        out
    }

    /// A program that will look for its patch in this directory. Its naps are the ticks.
    fn program(&self, source: &str, flags: &[&str]) -> PathBuf {
        let file = format!("-DSELF_PATCH_FILE=\"{}\"", self.lab.path("list").display());
        let all = [&["-static", "-no-pie", "-Dusleep=self_patch_tick", &file], flags].concat();
        self.compile("program", &[source, "self_patch_mips.c"], &all)
    }

    fn patch(&self, source: &str, flags: &[&str]) -> PathBuf {
        self.compile("patch.o", &[source], &[&["-c"], flags].concat())
    }

    fn package(&self, program: &Path, patch: &Path, base: Option<u64>) -> Package {
        let (p, o) = (std::fs::read(program).expect("program"), std::fs::read(patch).expect("patch"));
        // The program's callers are compiled with the function out of their sight.
        let allow = JudgeOptions::strict().allow_inlined(true).allow_clobbers(true);
        let made = Generate::new(program, &p).object("patch.o", &o).base(base).allow(allow).run();
        made.unwrap_or_else(|e| panic!("{e}")).package
    }

    /// Writes down what has to go where, for an image at `at`; runs the program and returns what it printed.
    fn run(&self, program: &Path, package: &Package, at: u64) -> Vec<String> {
        let arch = self.variant.arch;
        let mut image = vec![0u8; package.image_size() as usize];
        for s in &package.spans {
            image[s.offset as usize..][..s.data.len()].copy_from_slice(&s.data);
        }
        for r in &package.residue {
            let s = match package.symbols[r.symbol as usize].referent {
                Referent::Image(o) => at + o,
                Referent::Program(a) => a.0,
                ref other => panic!("{other:?}"),
            };
            let howto = arch.howto(r.r_type).expect("known");
            settle(arch, howto, &mut image, r.offset, s, r.addend, at + r.offset)
                .unwrap_or_else(|e| panic!("{} at {:#x}: {e:?}", howto.name, r.offset));
        }
        let mut list = format!("map {at:x} {:x}\n", image.len());
        let mut sites = String::new();
        for s in &package.sites {
            let (entry, new, landing) = (s.entry.0 + u64::from(s.pad), at + s.new_offset, at + s.landing);
            let fits = |f: &&tigerfix_core::arch::JumpForm| {
                let to = if f.via == Via::ImageLanding { landing } else { new };
                f.len <= s.window
                    && f.via != Via::NearIsland
                    && f.reach.holds(entry, to)
                    && (f.own_address || !s.own_address)
            };
            let form = arch.forms().iter().find(fits).expect("a form that fits");
            let to = if form.via == Via::ImageLanding { landing } else { new };
            let code = arch.encode_landing(form, to, new).expect("encodes");
            image[s.landing as usize..][..code.bytes().len()].copy_from_slice(code.bytes());
            let jump = arch.encode_jump(form, entry, to).expect("encodes");
            let _ = writeln!(sites, "poke {entry:x} {}", hex(jump.bytes()));
        }
        // Zero pages need not be written, and lines should not grow without end.
        for (i, piece) in image.chunks(256).enumerate().filter(|(_, c)| c.iter().any(|b| *b != 0)) {
            let _ = writeln!(list, "poke {:x} {}", at + 256 * i as u64, hex(piece));
        }
        self.lab.write("list", list + &sites);
        let done = Command::new(self.variant.qemu)
            .arg(program)
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}", self.variant.qemu));
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{:?}\n{out}{err}", done.status);
        out.lines().map(str::to_owned).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |s, b| s + &format!("{b:02x}"))
}

/// How patches for a program with a C library are compiled, and whether one may be linked for any address.
const PATCHES: [&[&str]; 4] =
    [&["-fPIC", "-O2"], &["-fPIC", "-mxgot", "-O0"], &["-fno-pic", "-mplt", "-O2"], &["-fno-pic", "-O0"]];

/// Runs `check` on what the program says, for every way to compile and to place the patch.
fn everywhere(program: (&str, &[&str]), patch: (&str, &[&str]), check: impl Fn(&[String])) {
    for variant in &BOTH {
        let bench = Bench { lab: Lab::new(), variant };
        let file = bench.program(program.0, &[&["-O2"], program.1].concat());
        for flags in PATCHES {
            let object = bench.patch(patch.0, &[flags, patch.1].concat());
            for (base, at) in [(Some(NEAR), NEAR), (Some(FAR), FAR), (None, NEAR), (None, FAR)] {
                let package = bench.package(&file, &object, base);
                assert!(package.residue.is_empty() || base.is_none(), "{} {flags:?}", variant.arch.name());
                println!("{} {flags:?} at {at:#x}, base {base:x?}", variant.arch.name());
                check(&bench.run(&file, &package, at));
            }
        }
    }
}

#[test]
fn b1_new_data_beside_the_programs() {
    everywhere(("b1_program.c", &[]), ("b1_patch.c", &[]), |said| {
        let mut expected: Vec<String> = (0..3).map(|i| format!("pair {} {} limit 7", 2 - i % 2, 1 + i % 2)).collect();
        for call in 1..=6 {
            expected.push(format!("swapped {call} {} {} 0", 100 + call, 10 * call));
            let i = call + 2;
            expected.push(format!("pair {} {} limit {}", 2 - i % 2, 1 + i % 2, 7 + call));
        }
        assert_eq!(said, expected);
    });
}

#[test]
fn b2_weak_functions() {
    everywhere(("b2_program.c", &[]), ("b2_patch.c", &[]), |said| {
        assert_eq!(said[..3], ["work 2"; 3]);
        assert_eq!(said[3..], ["work 3"; 6], "the absent hook is skipped");
    });
    everywhere(("b2_program.c", &["-DHOOK"]), ("b2_patch.c", &[]), |said| {
        assert_eq!(said[..2], ["work 2", "hook 0"]);
        assert_eq!(said[6..], ["hook 42", "work 3", "hook 0"].repeat(6));
    });
}

#[test]
fn b3_common_symbols() {
    for bss in [&["-fcommon"][..], &["-fcommon", "-DWITH_BSS"]] {
        everywhere(("b2_program.c", &[]), ("b3_patch.c", bss), |said| {
            assert_eq!(said[3], "align 0 0 first 0 0 0");
            let own = usize::from(bss.len() == 2);
            assert_eq!(said[4 + own], "work 3");
            for round in said[5 + own..].chunks(2 + own) {
                assert_eq!(round[0], "align 0 0 first 120 2 -10");
                assert!(own == 0 || round[1] == "own 21");
                assert_eq!(round[1 + own], "work 3");
            }
        });
    }
}

/// What the new code of B4 prints in the round that follows `round` earlier ones.
fn b4_round(counter: u32, round: u32) -> Vec<String> {
    let line = |what: &str, value: u32| format!("{what} {value:08x}");
    let n = counter & 1;
    vec![
        line("twice", 20),
        line("thrice", 30),
        line("four", 40 + round),
        line("five", 50 + 8),
        line("last", 0x1122_3344),
        line("sum", 2 + 3 + 4 + round + 5 + 8),
        line("work", n + 4 * (n + 100) + round),
        line("state", 5 + round),
        line("counter", counter + 0x100),
    ]
}

/// Code for fixed addresses, without and with calls in registers, and the same in position-independent code.
#[test]
fn b4_addresses_in_halves_tables_and_jumps() {
    // Program, patch: they have to follow the same conventions.
    let plain: (&[&str], &[&[&str]]) = (
        &["-mno-abicalls", "-fno-pic", "-G0"],
        &[
            &["-mno-abicalls", "-fno-pic", "-G0"],
            &["-mno-abicalls", "-fno-pic", "-G0", "-mlong-calls"],
            &["-mno-abicalls", "-fno-pic", "-G0", "-fsection-anchors"],
        ],
    );
    let pic: (&[&str], &[&[&str]]) = (
        &["-mabicalls", "-fPIC"],
        &[&["-mabicalls", "-fPIC"], &["-mabicalls", "-fPIC", "-mxgot"], &["-mabicalls", "-fno-pic", "-mplt"]],
    );
    let mixed: (&[&str], &[&[&str]]) = (&["-mabicalls", "-fno-pic", "-mplt"], pic.1);
    let mut veneers = 0;
    for variant in &BOTH {
        for (program, patches) in [plain, pic, mixed] {
            let bench = Bench { lab: Lab::new(), variant };
            let common = ["-O1", "-nostdlib", "-ffreestanding", "-Wl,-e,__start", "-Wl,--no-warn-rwx-segments"];
            let file = bench.program("b4_program.c", &[&common, program].concat());
            for flags in patches {
                for level in ["-O0", "-O2", "-Os"] {
                    let object = bench.patch("b4_patch.c", &[&[level, "-ffreestanding"], *flags].concat());
                    for (base, at) in [(Some(NEAR), NEAR), (Some(FAR), FAR), (None, NEAR), (None, FAR)] {
                        let package = bench.package(&file, &object, base);
                        println!("{} {program:?} {flags:?} {level} at {at:#x}", variant.arch.name());
                        veneers += package.symbols.iter().filter(|s| s.name.ends_with(".veneer")).count();
                        let said = bench.run(&file, &package, at);
                        let mut expected: Vec<String> = Vec::new();
                        let mut counter = 0;
                        for old in 0..3u32 {
                            let n = old & 1;
                            let work = n + if n == 1 { 3 } else { 2 };
                            expected.push(format!("work {work:08x}"));
                            expected.push("state 00000005".into());
                            expected.push(format!("counter {old:08x}"));
                            counter = old + 1;
                        }
                        for round in 1..=6 {
                            expected.extend(b4_round(counter, round));
                            counter += 0x101;
                        }
                        assert_eq!(said, expected);
                    }
                }
            }
        }
    }
    println!("{veneers} veneers in packages that can go anywhere");
    assert!(veneers > 0);
}

#[test]
fn b5_redefined_initialised_global_is_refused() {
    for variant in &BOTH {
        let bench = Bench { lab: Lab::new(), variant };
        let program = bench.program("b1_program.c", &["-O2"]);
        for flags in PATCHES {
            let patch = bench.patch("b5_patch.c", flags);
            let out = bench.lab.path("fix.tfp");
            let arguments: Vec<OsString> =
                vec!["gen".into(), "-m".into(), program.clone().into(), "-o".into(), out.clone().into(), patch.into()];
            run(&arguments).refused(&["limit"]);
            assert!(!out.exists(), "no output file");
        }
    }
}
