//! AArch64 programs under user-mode emulation, patched through the emulator's stub: with and without position-independent code,
//! static and dynamic, with and without branch protection, and where the processor enforces it.

use std::path::PathBuf;

use qemu_tests::{Emulated, Lab, emulated, tfix};
use tigerfix::package::PackageReader;

/// What programs and patches are compiled with.
struct Build {
    program: &'static [&'static str],
    patch: &'static [&'static str],
}

const FIXED: Build = Build { program: &["-static", "-fno-pie", "-no-pie"], patch: &["-fno-pic"] };
const STATIC_PIE: Build = Build { program: &["-fPIE", "-static-pie"], patch: &["-fPIE"] };
const PIE: Build = Build { program: &["-fPIE", "-pie"], patch: &["-fPIC"] };
const PROTECTED: Build = Build {
    program: &["-fPIE", "-pie", "-mbranch-protection=standard"],
    patch: &["-fPIC", "-mbranch-protection=standard"],
};
const GUARDED: Build = Build { program: &[], patch: &["-mbranch-protection=standard"] };

const TRIPLE: &str = "aarch64-linux-gnu";
/// All that the processor can do: authentication of pointers, and branch targets.
const EMULATOR: &[&str] = &["-cpu", "max", "-L", "/usr/aarch64-linux-gnu"];

fn build(lab: &Lab, case: &str, build: &Build, opt: &str) -> (PathBuf, PathBuf) {
    let (case, machine) = case.split_once('_').map_or((case, String::new()), |(c, m)| (c, format!("_{m}")));
    let program = lab.program(&format!("{case}_program{machine}.c"), &[build.program, &[opt, "-fno-ipa-ra"]].concat());
    let patch = lab.object(&format!("{case}_patch{machine}.c"), &[build.patch, &[opt]].concat());
    let package = lab.package(&program, &patch);
    (program, package)
}

/// Lines of the old and of the new function end like that.
fn live(case: &str, how: &Build, opt: &str, form: &str, (was, is): (&str, &str)) {
    let lab = Lab::cross(TRIPLE);
    let (program, package) = build(&lab, case, how, opt);
    let (plan, _) = Emulated::start(&lab, "qemu-aarch64", EMULATOR, &program, &[], &package).live(
        |v| v.settles("the old function", 5, |l| l.ends_with(was)),
        |v| v.settles("the new function", 5, |l| l.ends_with(is)),
    );
    assert_eq!(plan.sites[0].form.name, form, "{opt}");
}

macro_rules! live {
    ($($name:ident: $build:ident;)*) => {$(
        #[test]
        fn $name() {
            for opt in ["-O0", "-O2"] {
                live("a1", &$build, opt, "b", (" p 1", " p 2"));
            }
        }
    )*};
}

live! {
    fixed_and_static: FIXED;
    position_independent_and_static: STATIC_PIE;
    position_independent: PIE;
    with_branch_protection: PROTECTED;
}

/// Called through a pointer, the function begins with `paciasp`: neither may that be executed twice, nor may the pad be missing.
#[test]
fn guarded_pages_keep_a_landing_pad() {
    for opt in ["-O0", "-O2"] {
        live("guarded_aarch64", &GUARDED, opt, "bti-b", ("b", "q"));
    }
}

/// From the command line: patched before it starts, with the libraries that its loader brings.
#[test]
fn from_the_command_line() {
    let lab = Lab::cross(TRIPLE);
    // Three functions, data of the program and of the patch.
    let (program, package) = build(&lab, "a3", &PIE, "-O2");
    let (mut victim, at) = emulated(&lab, "qemu-aarch64", EMULATOR, &program, &[]);
    tfix!["fix", "--remote", &at, "--program", &program, &package].done();
    victim.wait_line("prime 7");
    victim.wait_for("the number that only the patch takes for a prime", |l| l == "prime 9");
}

/// An `adrp` in one of the last two words of a page, before loads and stores: the linker moves such code.
#[test]
fn code_with_an_erratum_is_moved() {
    let lab = Lab::cross(TRIPLE);
    let program = lab.program("a1_program.c", &["-O2"]);
    let found = |nops: u32| {
        let text = format!(
            "#include <tigerfix/dev.h>\n\
             int counter;\n\
             FIXFUN(p)\n\
             int p(void);\n\
             __asm__(\".text\\n.rept {nops}\\nnop\\n.endr\\n.globl p\\n.type p,%function\\n\"\n\
             \"p: adrp x0, counter\\nstr x1, [x2]\\nldr w0, [x0, :lo12:counter]\\nret\\n.size p, .-p\");\n"
        );
        let package =
            std::fs::read(lab.package(&program, &lab.patch_text("patch.c", &text, &[]))).expect("gen wrote it");
        let package = PackageReader::parse(&package).expect("a package").to_package();
        let code = package.spans.iter().find(|s| s.perm.exec).expect("code");
        assert_eq!(tigerfix_arch_aarch64::cortex_a53_843419(&code.data, code.offset), None, "{nops}");
        package.sites[0].new_offset - code.offset
    };
    assert_eq!(found(1021), 0xff4, "is harmless");
    assert!(found(1022) > 0xff8 && found(1023) > 0xffc);
    assert_eq!(found(1024), 0x1000, "is harmless");
}
