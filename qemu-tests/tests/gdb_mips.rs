//! MIPS programs under user-mode emulation, patched through the emulator's stub: both byte orders, 32 and 64 bits, with and
//! without position-independent code, static and dynamic.

use std::path::PathBuf;

use qemu_tests::{Emulated, Lab, emulated, tfix};

/// What programs and patches are compiled with.
struct Build {
    program: &'static [&'static str],
    patch: &'static [&'static str],
}

const NON_PIC: Build =
    Build { program: &["-static", "-no-pie", "-fno-pic", "-mno-abicalls"], patch: &["-fno-pic", "-mno-abicalls"] };
const STATIC_PIC: Build = Build { program: &["-static", "-fno-pie", "-no-pie"], patch: &["-fPIC"] };
const FIXED: Build = Build { program: &["-fno-pie", "-no-pie"], patch: &["-fPIC"] };
const PIE: Build = Build { program: &["-fPIE", "-pie"], patch: &["-fPIC"] };

fn build(lab: &Lab, case: &str, build: &Build, opt: &str) -> (PathBuf, PathBuf) {
    let program = lab.program(&format!("{case}_program.c"), &[build.program, &[opt, "-fno-ipa-ra"]].concat());
    let patch = lab.object(&format!("{case}_patch.c"), &[build.patch, &[opt]].concat());
    let package = lab.package(&program, &patch);
    (program, package)
}

fn live(triple: &str, how: &Build, opt: &str) {
    let lab = Lab::cross(triple);
    let (program, package) = build(&lab, "a1", how, opt);
    let emulator = format!("qemu-{}", triple.split('-').next().expect("a machine"));
    let emulated = Emulated::start(&lab, &emulator, &["-L", &format!("/usr/{triple}")], &program, &[], &package);
    emulated.live(
        |v| v.settles("p to be 1", 5, |l| l.ends_with(" p 1")),
        |v| v.settles("p to be 2", 5, |l| l.ends_with(" p 2")),
    );
}

macro_rules! live {
    ($($name:ident: $triple:literal, $build:ident;)*) => {$(
        #[test]
        fn $name() {
            for opt in ["-O0", "-O2"] {
                live($triple, &$build, opt);
            }
        }
    )*};
}

live! {
    big_endian_non_pic: "mips-linux-gnu", NON_PIC;
    big_endian_static: "mips-linux-gnu", STATIC_PIC;
    big_endian_fixed: "mips-linux-gnu", FIXED;
    big_endian_pie: "mips-linux-gnu", PIE;
    little_endian_non_pic: "mipsel-linux-gnu", NON_PIC;
    little_endian_static: "mipsel-linux-gnu", STATIC_PIC;
    little_endian_fixed: "mipsel-linux-gnu", FIXED;
    little_endian_pie: "mipsel-linux-gnu", PIE;
    n64_little_endian_static: "mips64el-linux-gnuabi64", STATIC_PIC;
    n64_little_endian_pie: "mips64el-linux-gnuabi64", PIE;
    n64_big_endian_static: "mips64-linux-gnuabi64", STATIC_PIC;
    n64_big_endian_pie: "mips64-linux-gnuabi64", PIE;
}

/// From the command line: patched before it starts, with the libraries that its loader brings.
#[test]
fn from_the_command_line() {
    for triple in ["mips-linux-gnu", "mips64el-linux-gnuabi64"] {
        let lab = Lab::cross(triple);
        // Three functions, data of the program and of the patch.
        let (program, package) = build(&lab, "a3", &PIE, "-O2");
        let emulator = format!("qemu-{}", triple.split('-').next().expect("a machine"));
        let (mut victim, at) = emulated(&lab, &emulator, &["-L", &format!("/usr/{triple}")], &program, &[]);
        tfix!["fix", "--remote", &at, "--program", &program, &package].done();
        victim.wait_line("prime 7");
        victim.wait_for("the number that only the patch takes for a prime", |l| l == "prime 9");
    }
}
