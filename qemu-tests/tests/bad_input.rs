//! Input that is damaged, foreign or out of reach: a clear error with its rule, the documented exit code, no output file,
//! and a target that never noticed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use qemu_tests::{Dice, Lab, Outcome, Victim, process_state, run_as_nobody, start, status_field, tfix, until};

/// A program, a patch object and a package that fit together.
struct Good {
    lab: Lab,
    program: PathBuf,
    object: PathBuf,
    package: PathBuf,
}

fn good() -> Good {
    let lab = Lab::new();
    let program = lab.program("a1_program.c", &["-O2"]);
    let object = lab.patch("a1_patch.c", &["-O2"]);
    let package = lab.package(&program, &object);
    Good { lab, program, object, package }
}

const OLD_CONTENT: &[u8] = b"the package of yesterday";

/// `gen` must fail, leave no new output file, and leave an existing one as it was.
#[track_caller]
fn gen_fails(lab: &Lab, program: &Path, object: &Path) -> Outcome {
    let fresh = lab.path("never.tfp");
    let existing = lab.write("yesterday.tfp", OLD_CONTENT);
    let files = lab.files();
    let outcome = tfix!["gen", "-m", program, "-o", &fresh, object];
    assert_ne!(outcome.code(), 0, "{outcome}");
    assert!(!fresh.exists(), "an output file was left\n{outcome}");
    let again = tfix!["gen", "-m", program, "-o", &existing, object];
    assert_eq!(again.code(), outcome.code(), "{again}");
    assert_eq!(std::fs::read(&existing).expect("still there"), OLD_CONTENT, "the old output was touched\n{again}");
    assert_eq!(lab.files(), files, "nothing else was left beside the output\n{outcome}");
    outcome
}

/// Damage with a known place in the ELF header: what, offset, new bytes.
const HEADER_DAMAGE: [(&str, usize, &[u8]); 6] = [
    ("no ELF magic", 0, b"\x7fELG"),
    ("32-bit class", 4, &[1]),
    ("big-endian", 5, &[2]),
    ("AArch64", 18, &[183, 0]),
    ("MIPS", 18, &[8, 0]),
    ("unknown machine", 18, &[0xfe, 0xfe]),
];

fn damaged(file: &Path, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = std::fs::read(file).expect("a good file");
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
    content
}

#[test]
fn objects_of_another_kind() {
    let g = good();
    for (what, offset, bytes) in HEADER_DAMAGE {
        let bad = g.lab.write("bad.o", damaged(&g.object, offset, bytes));
        let outcome = gen_fails(&g.lab, &g.program, &bad);
        assert_eq!(outcome.code(), 2, "{what}\n{outcome}");
        outcome.bad_input(&["bad.o"]);
    }
}

#[test]
fn programs_of_another_kind() {
    let g = good();
    for (what, offset, bytes) in HEADER_DAMAGE {
        let bad = g.lab.write("bad-program", damaged(&g.program, offset, bytes));
        let outcome = gen_fails(&g.lab, &bad, &g.object);
        assert_eq!(outcome.code(), 2, "{what}\n{outcome}");
    }
}

#[test]
fn packages_of_another_kind() {
    let g = good();
    let mut victim = Victim::start(&g.program);
    victim.line();
    let before = victim.snapshot();
    for (what, offset, bytes) in HEADER_DAMAGE {
        let bad = g.lab.write("bad.tfp", damaged(&g.package, offset, bytes));
        for outcome in [victim.fix(&bad, &[]), tfix!["inspect", &bad]] {
            assert_eq!(outcome.code(), 2, "{what}\n{outcome}");
            outcome.bad_input(&["bad.tfp"]);
        }
    }
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

#[test]
fn files_that_are_something_else() {
    let g = good();
    let text = g.lab.write("notes.txt", "no program at all\n");
    let empty = g.lab.write("empty", "");
    let missing = g.lab.path("missing");
    let directory = g.lab.path("tigerfix");
    std::fs::create_dir(&directory).expect("own directory");
    for bad in [&text, &empty, &missing, &directory] {
        let name = bad.file_name().and_then(OsStr::to_str).expect("a name");
        gen_fails(&g.lab, &g.program, bad).bad_input(&[name]);
        gen_fails(&g.lab, bad, &g.object).bad_input(&[name]);
        tfix!["inspect", bad].bad_input(&[name]);
    }
    // A program is no patch object, an object is no program, and neither is a package.
    gen_fails(&g.lab, &g.program, &g.program).bad_input(&[]);
    gen_fails(&g.lab, &g.object, &g.object).bad_input(&[]);
    tfix!["inspect", &g.object].bad_input(&[]);
    tfix!["inspect", &g.program].bad_input(&[]);

    let mut victim = Victim::start(&g.program);
    victim.line();
    let before = victim.snapshot();
    for bad in [&text, &empty, &missing, &directory, &g.object, &g.program] {
        victim.fix(bad, &[]).bad_input(&[]);
    }
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

/// Shorter versions of a file: every header boundary and a spread over the rest.
fn cuts(length: usize) -> Vec<usize> {
    let mut cuts = vec![1, 4, 15, 16, 18, 52, 63, 64, length - 1];
    cuts.extend((1..24).map(|i| length * i / 24));
    cuts.retain(|c| *c < length);
    cuts
}

#[test]
fn truncated_objects() {
    let g = good();
    let content = std::fs::read(&g.object).expect("own object");
    for cut in cuts(content.len()) {
        let bad = g.lab.write("bad.o", &content[..cut]);
        gen_fails(&g.lab, &g.program, &bad).bad_input(&["bad.o"]);
    }
}

#[test]
fn truncated_packages() {
    let g = good();
    let content = std::fs::read(&g.package).expect("own package");
    let mut victim = Victim::start(&g.program);
    victim.line();
    let before = victim.snapshot();
    for cut in cuts(content.len()) {
        let bad = g.lab.write("bad.tfp", &content[..cut]);
        tfix!["inspect", &bad].bad_input(&["bad.tfp"]);
        victim.fix(&bad, &[]).bad_input(&["bad.tfp"]);
    }
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

/// A program that is cut may still hold all that `gen` needs; it must never end otherwise than documented.
#[test]
fn truncated_programs() {
    let g = good();
    let content = std::fs::read(&g.program).expect("own program");
    for cut in cuts(content.len()) {
        let bad = g.lab.write("bad-program", &content[..cut]);
        gen_fails(&g.lab, &bad, &g.object);
    }
}

#[test]
fn flipped_bits_in_objects_and_programs() {
    let g = good();
    let mut dice = Dice::new(1);
    for (file, as_object) in [(&g.object, true), (&g.program, false)] {
        let content = std::fs::read(file).expect("own file");
        // Headers, section table and symbols are small against the rest: half of the flips go to the first 1 KiB and
        // the last 4 KiB.
        for round in 0..150 {
            let mut bad = content.clone();
            let place = match round % 4 {
                0 => dice.below(content.len().min(1024)),
                1 => content.len() - 1 - dice.below(content.len().min(4096)),
                _ => dice.below(content.len()),
            };
            bad[place] ^= 1 << dice.below(8);
            let bad = g.lab.write("bad", &bad);
            let out = g.lab.path("flipped.tfp");
            let (program, object) = if as_object { (&g.program, &bad) } else { (&bad, &g.object) };
            let outcome = tfix!["gen", "-m", program, "-o", &out, object];
            match outcome.code() {
                0 => std::fs::remove_file(&out).expect("success leaves an output file"),
                1 => assert!(!out.exists(), "bit at {place:#x}\n{}", outcome.refused(&[])),
                _ => assert!(!out.exists(), "bit at {place:#x}\n{}", outcome.bad_input(&[])),
            }
        }
    }
}

/// The digest covers the whole file: no flip goes unnoticed.
#[test]
fn flipped_bits_in_packages() {
    let g = good();
    let content = std::fs::read(&g.package).expect("own package");
    let mut victim = Victim::start(&g.program);
    victim.line();
    let before = victim.snapshot();
    let mut dice = Dice::new(2);
    for round in 0..200 {
        let place = if round < 64 { round } else { dice.below(content.len()) };
        let mut bad = content.clone();
        bad[place] ^= 1 << dice.below(8);
        let bad = g.lab.write("bad.tfp", &bad);
        let outcome = tfix!["inspect", &bad];
        assert_eq!(outcome.code(), 2, "bit at {place:#x}\n{outcome}");
        if round % 5 == 0 {
            let outcome = victim.fix(&bad, &[]);
            assert_eq!(outcome.code(), 2, "bit at {place:#x}\n{outcome}");
        }
    }
    let mut longer = content.clone();
    longer.push(0);
    let longer = g.lab.write("longer.tfp", longer);
    tfix!["inspect", &longer].bad_input(&[]);
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

#[test]
fn a_package_for_another_build() {
    for extra in [&[][..], &["-Wl,--build-id=none"], &["-static"], &["-no-pie", "-fno-pie"]] {
        let lab = Lab::new();
        let program = lab.program("a1_program.c", &[&["-O2"], extra].concat());
        let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
        // The same names at other places, under the same path.
        std::fs::remove_file(&program).expect("own program");
        let other = lab.program("other_build_program.c", &[&["-O2"], extra].concat());
        std::fs::rename(&other, &program).expect("own program");
        let mut victim = Victim::start(&program);
        victim.wait_for("another program", |l| l.ends_with(" p 21"));
        let before = victim.snapshot();
        victim.fix(&package, &[]).refused(&[]);
        before.assert_untouched(&victim.snapshot());
        victim.still_prints();
    }
}

#[test]
fn process_ids_that_lead_nowhere() {
    let g = good();
    let mut gone = Victim::start(&g.program);
    gone.line();
    gone.end_unreaped();
    gone.fix(&g.package, &[]).turned_down(&[&gone.pid_text()]);
    gone.end();
    gone.fix(&g.package, &[]).turned_down(&[&gone.pid_text()]);
    gone.revert(&[]).turned_down(&[&gone.pid_text()]);
    tfix!["list", gone.pid_text()].turned_down(&[&gone.pid_text()]);
    for nonsense in ["0", "x", "-5", "99999999999999999999", ""] {
        tfix!["fix", nonsense, &g.package].bad_input_or_usage();
        tfix!["revert", nonsense].bad_input_or_usage();
    }
}

trait Usage {
    fn bad_input_or_usage(&self);
}

impl Usage for Outcome {
    /// Complaints about the command line itself have no rule, but the same exit code.
    #[track_caller]
    fn bad_input_or_usage(&self) {
        assert_eq!(self.code(), 2, "{self}");
        assert!(!self.stderr.is_empty(), "it says what is wrong\n{self}");
    }
}

#[test]
fn wrong_usage() {
    let g = good();
    tfix![].bad_input_or_usage();
    tfix!["nonsense"].bad_input_or_usage();
    tfix!["gen"].bad_input_or_usage();
    tfix!["gen", "-m", &g.program, "-o", g.lab.path("x.tfp")].bad_input_or_usage();
    tfix!["fix", "1"].bad_input_or_usage();
    tfix!["gen", "-m", &g.program, "-o", g.lab.path("x.tfp"), &g.object, "--replace", "p"].bad_input_or_usage();
    tfix!["--arch", "pdp11", "gen", "-m", &g.program, "-o", g.lab.path("x.tfp"), &g.object].bad_input_or_usage();
    let nowhere = g.lab.path("no/such/directory/x.tfp");
    tfix!["gen", "-m", &g.program, "-o", &nowhere, &g.object].bad_input(&["no/such/directory"]);
    let victim = Victim::start(&g.program);
    victim.fix(&g.package, &["--form", "teleport"]).bad_input_or_usage();
    victim.fix(&g.package, &["--timeout", "soon"]).bad_input_or_usage();
    victim.fix(&g.package, &["--policy", "hope"]).bad_input_or_usage();
    assert_eq!(tfix!["--help"].code(), 0);
    assert_eq!(tfix!["--version"].code(), 0);
    assert!(!g.lab.path("x.tfp").exists());
}

/// With --json a complaint is JSON on stdout as well, with the same exit code.
#[test]
fn complaints_as_json() {
    let g = good();
    let bad = g.lab.write("bad.tfp", "nothing");
    let outcome = tfix!["inspect", &bad, "--json"];
    outcome.bad_input(&["bad.tfp"]);
    let answer = outcome.json();
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["exit"], 2);
    assert_eq!(answer["rule"], outcome.rule());
    assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{answer}");

    let victim = Victim::start(&g.program);
    let outcome = victim.revert(&["--json"]);
    outcome.refused(&[]).by_rule("not-applied");
    let answer = outcome.json();
    assert_eq!((&answer["ok"], &answer["exit"], &answer["rule"]), (&false.into(), &1.into(), &"not-applied".into()));
}

#[test]
fn a_process_of_somebody_else() {
    let g = good();
    let mut victim = Victim::start(&g.program);
    victim.line();
    let before = victim.snapshot();
    if nix::unistd::geteuid().is_root() {
        for arguments in [
            &["fix".as_ref(), victim.pid_text().as_ref(), g.package.as_os_str()][..],
            &["revert".as_ref(), victim.pid_text().as_ref()],
        ] {
            let outcome = run_as_nobody(&g.lab, arguments);
            outcome.refused(&[&victim.pid_text(), "permi"]);
        }
    } else {
        tfix!["fix", "1", &g.package].refused(&["permi"]);
        tfix!["revert", "1"].refused(&["permi"]);
    }
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

/// An unreadable package is an error about the package.
#[test]
fn a_package_of_somebody_else() {
    use std::os::unix::fs::PermissionsExt;
    let g = good();
    std::fs::set_permissions(&g.package, std::fs::Permissions::from_mode(0o000)).expect("own file");
    let outcome = if nix::unistd::geteuid().is_root() {
        run_as_nobody(&g.lab, &["inspect".as_ref(), g.package.as_os_str()])
    } else {
        tfix!["inspect", &g.package]
    };
    outcome.bad_input(&["fix.tfp"]);
}

#[test]
fn a_process_that_is_traced_already() {
    let g = good();
    let mut victim = Victim::start(&g.program);
    victim.line();
    let before = victim.snapshot();
    let pid = Pid::from_raw(victim.pid());
    nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).expect("own child");
    victim.fix(&g.package, &[]).refused(&["trac"]);
    // Only the tracer may detach, and only from a stopped process.
    nix::sys::ptrace::interrupt(pid).expect("own tracee");
    nix::sys::wait::waitpid(pid, None).expect("own tracee");
    nix::sys::ptrace::detach(pid, None).expect("own tracee");
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
    victim.fix(&g.package, &[]).done();
}

#[test]
fn a_target_that_user_or_shell_has_stopped() {
    let g = good();
    let mut victim = Victim::start(&g.program);
    victim.line();
    let pid = Pid::from_raw(victim.pid());
    nix::sys::signal::kill(pid, Signal::SIGSTOP).expect("own child");
    until("the stop", || (process_state(victim.pid()) == Some('T')).then_some(()));
    let outcome = victim.fix(&g.package, &["--timeout", "1"]);
    assert_eq!(process_state(victim.pid()), Some('T'), "a stopped target stays stopped\n{outcome}");
    nix::sys::signal::kill(pid, Signal::SIGCONT).expect("own child");
    match outcome.code() {
        0 => victim.settles("the new p", 5, |l| l.ends_with(" p 2")),
        _ => {
            outcome.refused(&[]);
            victim.skip_arrived();
            victim.keeps("the old p", 5, |l| l.ends_with(" p 1"));
        }
    }
}

#[test]
fn a_32_bit_target() {
    let g = good();
    let program = g.lab.program("target32.S", &["-m32", "-nostdlib", "-static", "-no-pie"]);
    gen_fails(&g.lab, &program, &g.object).bad_input(&[]);
    let running = Command::new(&program).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    if running.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENOEXEC)) {
        // A kernel without 32-bit support: there can be no such target here.
        return;
    }
    drop_child(running.expect("a 32-bit program starts"), |pid| {
        until("the 32-bit program to wait", || (process_state(pid) == Some('S')).then_some(()));
        tfix!["fix", pid.to_string(), &g.package].turned_down(&["32-bit"]);
        assert_eq!(process_state(pid), Some('S'));
        assert_eq!(status_field(pid, "TracerPid").as_deref(), Some("0"));
    });
}

fn drop_child(mut child: std::process::Child, look: impl FnOnce(i32) + std::panic::UnwindSafe) {
    let pid = i32::try_from(child.id()).expect("a pid");
    let result = std::panic::catch_unwind(|| look(pid));
    let _ = child.kill();
    let _ = child.wait();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// A victim inside outer(), so that `fix` has to wait, and its package.
fn waiting_fix() -> (Lab, Victim, PathBuf) {
    let lab = Lab::new();
    let program = lab.program("inside_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("inside_patch.c", &["-O2"]));
    let mut victim = Victim::start(&program);
    victim.wait_line("inside");
    (lab, victim, package)
}

fn interrupted_by(signal: Signal) {
    let (_lab, mut victim, package) = waiting_fix();
    victim.wait_line("tick");
    let before = victim.snapshot();
    let mut fix = start(&["fix", &victim.pid_text(), package.to_str().expect("UTF-8"), "--timeout", "300"]);
    let tfix_pid = fix.pid().to_string();
    until("tfix to take hold of the target", || {
        assert!(fix.running(), "tfix ended though a thread is inside the function");
        (status_field(victim.pid(), "TracerPid").as_deref() == Some(&tfix_pid)).then_some(())
    });
    fix.signal(signal);
    let outcome = fix.finish();
    outcome.refused(&["interrupt"]);
    victim.assert_free();
    before.assert_untouched(&victim.snapshot());
    assert!(victim.patches().is_empty());
    victim.still_prints();
    victim.send("go");
    victim.wait_line("leaving");
    victim.wait_for("the old result", |l| l == "outer 4");
    victim.send("go");
    victim.wait_for("the old result again", |l| l == "outer 4");
}

#[test]
fn ctrl_c_while_fix_waits() {
    interrupted_by(Signal::SIGINT);
}

#[test]
fn termination_while_fix_waits() {
    interrupted_by(Signal::SIGTERM);
}

/// Ctrl-C at any moment of a fix that would succeed: it is done, or nothing happened.
#[test]
fn ctrl_c_at_any_moment() {
    let g = good();
    let mut victim = Victim::start(&g.program);
    victim.line();
    let before = victim.snapshot();
    let mut dice = Dice::new(3);
    let whole = std::time::Instant::now();
    victim.fix(&g.package, &[]).done();
    let whole = whole.elapsed();
    victim.settles("the new p", 2, |l| l.ends_with(" p 2"));
    victim.revert(&[]).done();
    victim.settles("the old p", 2, |l| l.ends_with(" p 1"));
    for _ in 0..30 {
        let mut fix = start(&["fix", &victim.pid_text(), g.package.to_str().expect("UTF-8")]);
        std::thread::sleep(whole * u32::try_from(dice.below(100)).expect("small") / 100);
        fix.signal(Signal::SIGINT);
        let outcome = fix.finish();
        // Before tfix has its handler the signal kills it, as it would any program.
        let code = outcome.status.code();
        victim.assert_free();
        match code {
            Some(0) => {
                victim.settles("the new p", 2, |l| l.ends_with(" p 2"));
                victim.revert(&[]).done();
            }
            Some(1) | None => assert!(victim.patches_in_state("applied").is_empty(), "{outcome}"),
            _ => panic!("undocumented end\n{outcome}"),
        }
        victim.settles("the old p", 2, |l| l.ends_with(" p 1"));
        before.assert_same_code(&victim.snapshot());
    }
}
