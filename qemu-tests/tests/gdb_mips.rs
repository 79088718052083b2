//! MIPS programs under user-mode emulation, patched through the emulator's stub: both byte orders, 32 and 64 bits, with and
//! without position-independent code, static and dynamic.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qemu_tests::{DEADLINE, Lab, Victim, emulated, tfix};
use tigerfix::gdb::{Address, GdbTarget, Options, Stub};
use tigerfix::package::PackageReader;
use tigerfix::{SystemClock, arch, session};

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

fn open(at: &str, program: &Path, package: &Path) -> (GdbTarget, arch::AnyArch, tigerfix::model::Package) {
    let bytes = std::fs::read(package).expect("gen wrote it");
    let package = PackageReader::parse(&bytes).expect("a package").to_package();
    let back_end = arch::for_ident(&package.ident).expect("a back end");
    let address: Address = at.parse().expect("an address");
    let mut stub = Stub::connect(&address, None).unwrap_or_else(|e| panic!("{at}: {e}"));
    let ident = stub.ident().expect("memory can be read").expect("a program");
    assert!(back_end.accepts(&ident).is_ok(), "the stub tells the architecture: {ident:?}");
    let program = Some((program.display().to_string(), std::fs::read(program).expect("compiled")));
    let target =
        GdbTarget::new(stub, back_end, Options { program, area: None }).unwrap_or_else(|e| panic!("{at}: {e}"));
    (target, back_end, package)
}

/// Stopped, patched, run, stopped, reverted, run: twice.
fn live(triple: &str, how: &Build, opt: &str) {
    let lab = Lab::cross(triple);
    let (program, package) = build(&lab, "a1", how, opt);
    let emulator = format!("qemu-{}", triple.split('-').next().expect("a machine"));
    let library = format!("/usr/{triple}");
    let (mut victim, at) = emulated(&lab, &emulator, &["-L", &library], &program, &[]);
    let (mut target, back_end, package) = open(&at, &program, &package);
    target.go().expect("it runs");
    let old = |v: &mut Victim| v.settles("p to be 1", 5, |l| l.ends_with(" p 1"));
    let new = |v: &mut Victim| v.settles("p to be 2", 5, |l| l.ends_with(" p 2"));
    let stop = |target: &mut GdbTarget, victim: &Victim| {
        kill(Pid::from_raw(victim.pid()), Signal::SIGTRAP).expect("own child");
        target.await_stop(DEADLINE).expect("stopped");
    };
    let mut clock = SystemClock::new();
    old(&mut victim);
    for _ in 0..2 {
        stop(&mut target, &victim);
        session::apply(&mut target, back_end, &package, &session::Options::default(), &mut clock)
            .unwrap_or_else(|e| panic!("{triple} {opt}: {e}"));
        target.go().expect("it runs");
        new(&mut victim);
        stop(&mut target, &victim);
        assert_eq!(session::list(&mut target).expect("listed").len(), 1);
        session::revert(&mut target, back_end, None, 10_000, &mut clock)
            .unwrap_or_else(|e| panic!("{triple} {opt}: {e}"));
        target.go().expect("it runs");
        old(&mut victim);
    }
    stop(&mut target, &victim);
    drop(target);
    victim.still_prints();
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
