//! The same fixtures for every back end, from this one host: packages are generated, applied to a running program and
//! taken out again. What can run here is patched by ptrace, all else in user-mode emulation through the emulator's stub.

use std::path::Path;

use qemu_tests::cases::{A1, A3, Case, assert_state_kept, live};
use qemu_tests::{Emulated, Lab, Link, Victim, tfix};
use tigerfix::arch;

/// How programs for a back end are run; fails for one that has no row, so that none is forgotten.
fn triple(name: &str) -> Option<&'static str> {
    match name {
        // The tests' own machine.
        "x86-64" => None,
        "mips" => Some("mips-linux-gnu"),
        "mipsel" => Some("mipsel-linux-gnu"),
        "mips64" => Some("mips64-linux-gnuabi64"),
        "mips64el" => Some("mips64el-linux-gnuabi64"),
        "aarch64" => Some("aarch64-linux-gnu"),
        other => panic!("nothing runs programs for {other}"),
    }
}

/// By ptrace, with the command line. Returns the form of the jump.
fn native<C: Case>(program: &Path, package: &Path) -> String {
    let mut victim = Victim::start(program);
    C::shows_old(&mut victim);
    let plan = tfix!["fix", victim.pid_text(), package, "--dry-run", "--json"];
    let plan = plan.done().json();
    let form = plan["plan"]["sites"][0]["form"].as_str().expect("a form").to_owned();
    live::<C>(victim, package);
    form
}

fn under_emulation<C: Case>(lab: &Lab, triple: &str, program: &Path, package: &Path) -> String {
    let machine = triple.split('-').next().expect("a machine");
    let (emulator, library) = (format!("qemu-{machine}"), format!("/usr/{triple}"));
    // All that the processor can do: authentication of pointers, and branch targets.
    let cpu: &[&str] = if machine == "aarch64" { &["-cpu", "max"] } else { &[] };
    let emulated = Emulated::start(lab, &emulator, &[cpu, &["-L", &library]].concat(), program, &[], package);
    let (plan, victim) = emulated.live(C::shows_old, C::shows_new);
    assert_state_kept::<C>(&victim.lines_so_far());
    plan.sites[0].form.name.to_owned()
}

/// One fixture on one architecture. `flags` are for both, program and patch; `more` are the program's.
fn one<C: Case>(name: &str, lab: &Lab, flags: &[&str], more: &[&str]) {
    let program = lab.program(&format!("{}_program.c", C::STEM), &[Link::Pie.flags(), flags, more].concat());
    let package = lab.package(&program, &lab.patch(&format!("{}_patch.c", C::STEM), flags));
    let form = match triple(name) {
        None => native::<C>(&program, &package),
        Some(triple) => under_emulation::<C>(lab, triple, &program, &package),
    };
    let size = std::fs::metadata(&package).expect("gen wrote it").len();
    println!("{name:9} {} {flags:?}: a package of {size} bytes, {form}", C::STEM);
}

fn lab(name: &str) -> Lab {
    triple(name).map_or_else(Lab::new, Lab::cross)
}

fn everywhere<C: Case>() {
    for name in arch::names() {
        for opt in ["-O0", "-O2"] {
            one::<C>(name, &lab(name), &[opt], &[]);
        }
    }
}

#[test]
fn a1_constant() {
    everywhere::<A1>();
}

#[test]
fn a3_program_data() {
    everywhere::<A3>();
}

/// clang keeps a `noinline` function out of line, but tells its callers what it returns: `p` is always 1 to them.
const OPAQUE: &str = "-DKEEP=OPAQUE";

/// Program and patch by another compiler.
#[test]
fn clang() {
    for name in arch::names() {
        for opt in ["-O0", "-O2"] {
            one::<A1>(name, &lab(name).by_clang(), &[opt], &[OPAQUE]);
            one::<A3>(name, &lab(name).by_clang(), &[opt], &[OPAQUE]);
        }
    }
}

/// What AArch64 has in addition.
#[test]
fn clang_with_branch_protection() {
    for opt in ["-O0", "-O2"] {
        let flags = [opt, "-mbranch-protection=standard"];
        one::<A1>("aarch64", &lab("aarch64").by_clang(), &flags, &[OPAQUE]);
        one::<A3>("aarch64", &lab("aarch64").by_clang(), &flags, &[OPAQUE]);
    }
}
