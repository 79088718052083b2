//! Where patching would do harm, tfix says no; what it did, it can take back, whatever happens to it meanwhile.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use qemu_tests::{Dice, Lab, Link, Snapshot, Victim, read_memory, start, status_field, tfix, until};

/// Assembly functions of awkward shape, and a patch for one of them.
fn tiny(function: &str, signature: &str, value: i32) -> (Lab, PathBuf, PathBuf) {
    let lab = Lab::new();
    let program = lab.program("tiny_program.c", &["-O2"]);
    let text =
        format!("#include <tigerfix/dev.h>\nFIXFUN({function})\nint {function}({signature}) {{ return {value}; }}\n");
    let patch = lab.patch_text(&format!("{function}.c"), &text, &["-O2"]);
    (lab, program, patch)
}

const TINY_OLD: &str = "0 5 6 40 50 70 27";

#[test]
fn a_function_without_room_is_refused() {
    let (lab, program, patch) = tiny("tiny", "void", 9);
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    outcome.refused(&["tiny", "3 bytes"]).by_rule("window-too-small");
    assert!(!package.exists());
}

/// A six-byte function whose neighbour starts at once: five bytes are enough, and the neighbour stays whole.
#[test]
fn the_neighbour_of_a_small_function_is_unharmed() {
    let (lab, program, patch) = tiny("neighbour", "void", 9);
    let package = lab.package(&program, &patch);
    let mut victim = Victim::start(&program);
    let before = victim.snapshot();
    victim.settles("old", 3, |l| l == TINY_OLD);
    victim.fix(&package, &[]).done();
    victim.settles("one changed function", 10, |l| l == "0 9 6 40 50 70 27");
    victim.revert(&[]).done();
    victim.settles("old", 5, |l| l == TINY_OLD);
    before.assert_same_code(&victim.snapshot());
}

#[test]
fn branches_into_the_window_are_refused() {
    for (function, signature) in [("loop_at_2", "void"), ("tail_at_4", "void")] {
        let (lab, program, patch) = tiny(function, signature, 9);
        let (outcome, package) = lab.generate(&program, &[&patch], &[]);
        outcome.refused(&[function]);
        assert!(!package.exists());
    }
}

/// A jump table leads into the window: nothing in the code shows it but an indirect jump.
#[test]
fn jump_tables_into_the_window_are_refused() {
    let (lab, program, patch) = tiny("tabled", "int n", 9);
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    outcome.refused(&["tabled"]);
    assert!(!package.exists());
}

#[test]
fn a_branch_behind_the_window_is_no_obstacle() {
    let (lab, program, patch) = tiny("loop_at_5", "void", 9);
    let package = lab.package(&program, &patch);
    let mut victim = Victim::start(&program);
    victim.settles("old", 3, |l| l == TINY_OLD);
    victim.fix(&package, &[]).done();
    victim.settles("new", 5, |l| l == "0 5 6 40 9 70 27");
    victim.revert(&[]).done();
    victim.settles("old", 5, |l| l == TINY_OLD);
    // A longer form would cover the loop's head.
    let before = victim.snapshot();
    victim.fix(&package, &["--form", LONG_FORMS[0]]).refused(&["loop_at_5"]);
    before.assert_same_code(&victim.snapshot());
    victim.still_prints();
}

/// Five bytes at the site; then those that need more room.
const SHORT_FORMS: [&str; 2] = ["jmp-rel32", "island"];
const LONG_FORMS: [&str; 2] = ["jmp-rip", "push-mov-jmp"];

#[test]
fn every_form_works_and_can_be_undone() {
    for link in Link::ALL {
        let lab = Lab::new();
        let program = lab.program("a2_program.c", &[link.flags(), &["-O2"]].concat());
        let package = lab.package(&program, &lab.patch("a2_patch.c", &["-O2"]));
        let mut victim = Victim::start(&program);
        let before = victim.snapshot();
        for form in SHORT_FORMS.iter().chain(&LONG_FORMS) {
            victim.wait_line("fact 5 120");
            let outcome = victim.fix(&package, &["--form", form, "--json"]);
            let sites = outcome.done().json()["sites"].clone();
            assert_eq!(sites[0]["form"], *form, "{sites}");
            assert_eq!(victim.patches()[0]["sites"][0]["form"], *form);
            victim.wait_line("fact 5 15");
            victim.wait_line("fact 10 3840");
            victim.revert(&[]).done();
            victim.wait_line("fact 10 3628800");
            before.assert_same_code(&victim.snapshot());
        }
    }
}

/// With branch protection an indirect call must still find its landing pad at the entry.
#[test]
fn landing_pads_stay() {
    let lab = Lab::new();
    let program = lab.program("pointers_program.c", &["-O2", "-fcf-protection=full"]);
    let package = lab.package(&program, &lab.patch("pointers_patch.c", &["-O2", "-fcf-protection=full"]));
    let mut victim = Victim::start(&program);
    victim.wait_line("same 1 through 1");
    let before = victim.snapshot();
    let outcome = victim.fix(&package, &["--json"]);
    for site in outcome.done().json()["sites"].as_array().expect("sites") {
        let address = site["address"].as_str().and_then(|a| u64::from_str_radix(a.trim_start_matches("0x"), 16).ok());
        let entry = read_memory(victim.pid(), address.expect("an address"), 8);
        let pad = [0xf3, 0x0f, 0x1e, 0xfa];
        // The address may be that of the entry or of the jump behind the pad.
        let in_front = read_memory(victim.pid(), address.expect("an address") - 4, 4);
        assert!(entry[..4] == pad || in_front == pad, "endbr64 was overwritten: {entry:02x?}");
    }
    victim.settles("new", 5, |l| l == "same 11 through 2");
    victim.revert(&[]).done();
    before.assert_same_code(&victim.snapshot());
}

fn inside() -> (Lab, Victim, PathBuf) {
    let lab = Lab::new();
    let program = lab.program("inside_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("inside_patch.c", &["-O2"]));
    let mut victim = Victim::start(&program);
    victim.wait_line("inside");
    victim.wait_line("tick");
    (lab, victim, package)
}

/// The main thread will return into outer() from five frames below.
#[test]
fn a_thread_inside_the_old_function_is_named() {
    let (_lab, mut victim, package) = inside();
    let before = victim.snapshot();
    let outcome = victim.fix(&package, &["--timeout", "1"]);
    outcome.refused(&["outer", &victim.pid_text()]);
    before.assert_untouched(&victim.snapshot());
    victim.assert_free();
    victim.still_prints();
    victim.send("go");
    victim.wait_line("outer 4");
}

#[test]
fn fix_waits_until_the_thread_has_left() {
    let (_lab, mut victim, package) = inside();
    let mut fix = start(&["fix", &victim.pid_text(), package.to_str().expect("UTF-8"), "--timeout", "60", "--json"]);
    let tfix_pid = fix.pid().to_string();
    until("tfix to have looked", || (status_field_is(victim.pid(), "TracerPid", &tfix_pid)).then_some(()));
    // The function may be entered again at once: give it a new line whenever it asks, until tfix got its moment.
    while fix.running() {
        victim.send("go");
        victim.wait_for("the next round", |l| l == "inside" || l.starts_with("outer 10"));
    }
    let outcome = fix.finish();
    outcome.done();
    victim.wait_line("outer 1000");
    victim.keeps("the new function", 5, |l| l == "outer 1000" || l == "tick");
    victim.revert(&["--timeout", "30"]).done();
    victim.wait_line("inside");
}

fn status_field_is(pid: i32, name: &str, value: &str) -> bool {
    status_field(pid, name).as_deref() == Some(value)
}

/// `--policy window` asks for less: nobody executes the overwritten bytes.
#[test]
fn policy_window_allows_an_old_call_to_finish() {
    let (_lab, mut victim, package) = inside();
    let before = victim.snapshot();
    victim.fix(&package, &["--policy", "window", "--timeout", "5"]).done();
    victim.send("go");
    victim.wait_line("leaving");
    victim.wait_line("outer 4");
    victim.wait_line("outer 1000");
    victim.keeps("the new function", 5, |l| l == "outer 1000" || l == "tick");
    victim.revert(&["--timeout", "30"]).done();
    victim.wait_line("inside");
    before.assert_same_code(&victim.snapshot());
}

#[test]
fn the_same_patch_twice_is_refused() {
    let lab = Lab::new();
    let program = lab.program("a1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut victim = Victim::start(&program);
    victim.fix(&package, &[]).done();
    victim.settles("new", 3, |l| l.ends_with(" p 2"));
    let once = victim.snapshot();
    victim.fix(&package, &[]).refused(&["fix"]).by_rule("already-applied");
    // Other content under the same name is refused as well.
    let text = "#include <tigerfix/dev.h>\nFIXFUN(p)\nint p(void) { return 3; }\n";
    let (outcome, other) =
        lab.generate_to("other.tfp", &program, &[&lab.patch_text("other.c", text, &["-O2"])], &["--name", "fix"]);
    outcome.done();
    victim.fix(&other, &[]).refused(&["fix"]).by_rule("already-applied");
    once.assert_untouched(&victim.snapshot());
    victim.still_prints();
    victim.settles("still new", 3, |l| l.ends_with(" p 2"));
    assert_eq!(victim.patches_in_state("applied"), ["fix"]);
}

#[test]
fn patches_stack_and_come_off_from_the_top() {
    for link in Link::ALL {
        let lab = Lab::new();
        let program = lab.program("a1_program.c", &[link.flags(), &["-O2"]].concat());
        let lower = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
        let text = "#include <tigerfix/dev.h>\nPATCH_VERSION(\"2.0\");\nFIXFUN(p)\nint p(void) { return 3; }\n";
        let (outcome, upper) =
            lab.generate_to("upper.tfp", &program, &[&lab.patch_text("upper.c", text, &["-O2"])], &["--name", "upper"]);
        outcome.done();
        let mut victim = Victim::start(&program);
        let before = victim.snapshot();
        victim.settles("old", 3, |l| l.ends_with(" p 1"));
        victim.revert(&[]).refused(&[]).by_rule("not-applied");
        victim.fix(&lower, &[]).done();
        victim.settles("lower", 3, |l| l.ends_with(" p 2"));
        let with_lower = victim.snapshot();
        victim.fix(&upper, &[]).done();
        victim.settles("upper", 3, |l| l.ends_with(" p 3"));
        let mut applied = victim.patches_in_state("applied");
        applied.sort();
        assert_eq!(applied, ["fix", "upper"]);
        victim.revert(&["fix"]).refused(&["upper"]).by_rule("not-topmost");
        victim.settles("upper still", 3, |l| l.ends_with(" p 3"));
        victim.revert(&[]).done();
        victim.settles("lower again", 3, |l| l.ends_with(" p 2"));
        with_lower.assert_same_code(&victim.snapshot());
        victim.revert(&["upper"]).refused(&["upper"]).by_rule("not-applied");
        victim.revert(&["fix"]).done();
        victim.settles("old again", 3, |l| l.ends_with(" p 1"));
        before.assert_same_code(&victim.snapshot());
        // And all over again.
        victim.fix(&upper, &[]).done();
        victim.settles("upper alone", 3, |l| l.ends_with(" p 3"));
        victim.revert(&["upper"]).done();
        victim.settles("old at last", 3, |l| l.ends_with(" p 1"));
        before.assert_same_code(&victim.snapshot());
    }
}

#[test]
fn a_dry_run_touches_nothing() {
    let lab = Lab::new();
    let program = lab.program("a5_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a5_patch.c", &["-O2"]));
    let mut victim = Victim::start(&program);
    victim.wait_line("round 3");
    let before = victim.snapshot();
    let outcome = victim.fix(&package, &["--dry-run"]);
    for function in ["input_student", "print_student", "event"] {
        assert!(outcome.done().stdout.contains(function), "the plan names {function}\n{outcome}");
    }
    let answer = victim.fix(&package, &["--dry-run", "--json"]);
    let answer = answer.done().json();
    assert_eq!((&answer["ok"], &answer["dry_run"]), (&true.into(), &true.into()));
    assert!(answer["plan"].is_object() || answer["plan"].is_array(), "{answer}");
    before.assert_untouched(&victim.snapshot());
    victim.assert_free();
    assert!(victim.patches().is_empty());
    victim.skip_arrived();
    victim.keeps("the old lines", 12, |l| !l.starts_with("grade"));
}

#[test]
fn a_stripped_program_needs_its_debug_file() {
    for link in Link::ALL {
        let lab = Lab::new();
        let program = lab.program("a1_program.c", &[link.flags(), &["-O2", "-g"]].concat());
        let debug = lab.path("a1_program.debug");
        let run = |tool: &str, arguments: &[&std::ffi::OsStr]| {
            assert!(Command::new(tool).args(arguments).status().expect("binutils").success());
        };
        run("objcopy", &["--only-keep-debug".as_ref(), program.as_os_str(), debug.as_os_str()]);
        run("strip", &[program.as_os_str()]);
        let patch = lab.patch("a1_patch.c", &["-O2"]);
        let (outcome, package) = lab.generate(&program, &[&patch], &[]);
        outcome.turned_down(&["p", "--debug-file"]);
        assert!(!package.exists());
        let (outcome, package) = lab.generate(&program, &[&patch], &["--debug-file", debug.to_str().expect("UTF-8")]);
        outcome.done();
        let mut victim = Victim::start(&program);
        victim.settles("old", 3, |l| l.ends_with(" p 1"));
        victim.fix(&package, &[]).done();
        victim.settles("new", 3, |l| l.ends_with(" p 2"));
        victim.revert(&[]).done();
        victim.settles("old", 3, |l| l.ends_with(" p 1"));
    }
}

/// The compiler's clones of a function are named, or the patch works; it never claims success without effect.
#[test]
fn clones_of_a_function() {
    for opt in ["-O2", "-O3"] {
        for extra in [&[][..], &["-g"]] {
            let lab = Lab::new();
            let program = lab.program("constprop_program.c", &[&[opt], extra].concat());
            let patch = lab.patch("constprop_patch.c", &[opt]);
            let mut victim = Victim::start(&program);
            victim.wait_line("scale 5 5130");
            let (outcome, package) = lab.generate(&program, &[&patch], &[]);
            if outcome.code() != 0 {
                outcome.turned_down(&["scale"]);
                assert!(!package.exists());
                continue;
            }
            victim.fix(&package, &[]).done();
            for n in 1..=5 {
                victim.wait_line(&format!("scale {n} {}", -n * 1024));
            }
        }
    }
}

#[test]
fn a_function_of_a_shared_library() {
    for nodelete in [&["-O0"][..], &["-O2"]] {
        let lab = Lab::new();
        let library = lab.library("shared_lib.c", nodelete);
        let program = lab.program("shared_program.c", &["-O2"]);
        let (outcome, package) = lab.generate(&library, &[&lab.patch("shared_patch.c", &["-O2"])], &[]);
        outcome.done();
        let mut victim = Victim::start_with(&program, &[&library]);
        victim.wait_line("lib 105");
        victim.wait_line("lib 110");
        let before = victim.snapshot();
        victim.fix(&package, &[]).done();
        let value = |line: &str| line.split(' ').nth(1).and_then(|n| n.parse::<i64>().ok()).expect("a number");
        let first = value(&victim.wait_for("a negative result", |l| l.contains('-')));
        assert!(first < -105, "the library's state went on: {first}");
        assert_eq!(value(&victim.line()), first - 1);
        victim.revert(&[]).done();
        let old = value(&victim.wait_for("a positive result", |l| !l.contains('-')));
        assert!(old > 110, "the state was kept: {old}");
        before.assert_same_code(&victim.snapshot());
    }
}

/// The same library in a process that has not loaded it.
#[test]
fn a_library_that_is_not_loaded() {
    let lab = Lab::new();
    let library = lab.library("shared_lib.c", &["-O2"]);
    let program = lab.program("a1_program.c", &["-O2"]);
    let (outcome, package) = lab.generate(&library, &[&lab.patch("shared_patch.c", &["-O2"])], &[]);
    outcome.done();
    let mut victim = Victim::start(&program);
    victim.line();
    let before = victim.snapshot();
    victim.fix(&package, &[]).refused(&["libshared_lib"]);
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

/// A program in its own mount and process namespace: its path means nothing outside.
#[test]
fn a_target_in_a_container() {
    let lab = Lab::new();
    let program = lab.program("a1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]);
    command.arg("mount -t tmpfs inner /mnt && cp \"$1\" /mnt/inner-program && exec /mnt/inner-program");
    command.arg("sh").arg(&program);
    let mut victim = Victim::spawn(command);
    victim.settles("old", 3, |l| l.ends_with(" p 1"));
    let wrapper = victim.pid();
    let children = std::fs::read_to_string(format!("/proc/{wrapper}/task/{wrapper}/children")).expect("own child");
    victim.set_pid(children.split_whitespace().next().and_then(|p| p.parse().ok()).expect("a child of unshare"));
    let before = victim.snapshot();
    victim.fix(&package, &[]).done();
    victim.settles("new", 5, |l| l.ends_with(" p 2"));
    assert_eq!(victim.patches_in_state("applied"), ["fix"]);
    victim.revert(&[]).done();
    victim.settles("old", 5, |l| l.ends_with(" p 1"));
    before.assert_same_code(&victim.snapshot());
}

/// An upgrade has replaced or removed the file while the old program runs on.
#[test]
fn a_target_whose_file_is_gone() {
    let lab = Lab::new();
    let program = lab.program("a1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut victim = Victim::start(&program);
    victim.settles("old", 3, |l| l.ends_with(" p 1"));
    std::fs::remove_file(&program).expect("own program");
    lab.program("other_build_program.c", &["-O2"]);
    std::fs::rename(lab.path("other_build_program"), &program).expect("own program");
    victim.fix(&package, &[]).done();
    victim.settles("new", 5, |l| l.ends_with(" p 2"));
    victim.revert(&[]).done();
    victim.settles("old", 5, |l| l.ends_with(" p 1"));
}

/// A directory of an unlucky name beside the output is nobody's business.
#[test]
fn gen_leaves_the_directory_alone() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let program = lab.program("a1_program.c", &["-O2"]);
    let patch = lab.patch("a1_patch.c", &["-O2"]);
    std::fs::create_dir(lab.path("tigerfix")).expect("own directory");
    lab.write("tigerfix/precious", "data");
    let mut expected = lab.files();
    expected.push("fix.tfp".into());
    expected.sort();
    let package = lab.package(&program, &patch);
    assert_eq!(lab.files(), expected);
    assert!(lab.path("tigerfix/precious").exists());
    assert_eq!(std::fs::metadata(&package).expect("a package").permissions().mode() & 0o7777, 0o644);
    // The same input gives the same bytes.
    let first = std::fs::read(&package).expect("a package");
    lab.package(&program, &patch);
    assert_eq!(first, std::fs::read(&package).expect("a package"));
}

/// What gen writes is an ELF file that the usual tools read without complaint.
#[test]
fn binutils_and_gdb_read_a_package() {
    let lab = Lab::new();
    let program = lab.program("b1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("b1_patch.c", &["-O2"]));
    for (tool, arguments) in [
        ("readelf", &["-aW"][..]),
        ("objdump", &["-d"]),
        ("nm", &["-a"]),
        ("gdb", &["-batch", "-nx", "-ex", "info functions"]),
    ] {
        let done = Command::new(tool).args(arguments).arg(&package).env("LC_ALL", "C").output().expect(tool);
        assert!(done.status.success(), "{tool}: {done:?}");
        let said = String::from_utf8_lossy(&done.stderr).to_lowercase();
        assert!(!said.contains("warning") && !said.contains("error"), "{tool} complains: {said}");
        let shown = String::from_utf8_lossy(&done.stdout);
        assert!(shown.contains("swap"), "{tool} shows the new function\n{shown}");
    }
    let text = tfix!["inspect", &package, "--disasm"];
    assert!(text.done().stdout.contains("swap"), "{text}");
    assert!(tfix!["inspect", &package, "--json"].done().json()["ok"] == true);
}

/// A signal each millisecond through fifty rounds: none is lost in the sense that the program stops, none kills it.
#[test]
fn a_storm_of_signals() {
    let lab = Lab::new();
    let program = lab.program("signals_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut victim = Victim::start(&program);
    victim.wait_line("p 1");
    let before = victim.snapshot();
    for _ in 0..50 {
        victim.fix(&package, &[]).done();
        victim.settles("new", 1, |l| l == "p 2");
        victim.revert(&[]).done();
        victim.settles("old", 1, |l| l == "p 1");
    }
    before.assert_same_code(&victim.snapshot());
}

/// No page of the target may ever be writable and executable, nor may anything be left behind after a revert that a
/// thread could not need.
#[test]
fn nothing_is_writable_and_executable() {
    let lab = Lab::new();
    let program = lab.program("b1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("b1_patch.c", &["-O2"]));
    let mut victim = Victim::start(&program);
    victim.line();
    victim.fix(&package, &[]).done();
    victim.wait_for("new", |l| l.starts_with("swapped"));
    let now = victim.snapshot();
    let both = now.regions.iter().find(|r| r.permissions.contains('w') && r.permissions.contains('x'));
    assert!(both.is_none(), "{both:?}");
    let named = now.regions.iter().any(|r| r.path.contains("tfix"));
    assert!(named, "/proc/PID/maps shows the record by name: {:#?}", now.regions);
}

/// tfix is killed at a random moment, again and again; the target lives, and what was begun can be finished or undone.
fn killed(program: &str, patch: &str, arguments: impl Fn(&Lab) -> Vec<PathBuf>, lives: impl Fn(&mut Victim)) {
    let lab = Lab::new();
    let program = lab.program(program, &["-O2"]);
    let package = lab.package(&program, &lab.patch(patch, &["-O2"]));
    let mut victim = Victim::start_with(&program, &arguments(&lab));
    lives(&mut victim);
    let before: Snapshot = victim.snapshot();
    let begin = Instant::now();
    victim.fix(&package, &["--timeout", "60"]).done();
    let fix_takes = begin.elapsed();
    let begin = Instant::now();
    victim.revert(&["--timeout", "60"]).done();
    let revert_takes = begin.elapsed();
    let mut dice = Dice::new(4);
    let (mut done, mut undone, mut half) = (0, 0, 0);
    for trial in 0..120 {
        let pid = victim.pid_text();
        let (takes, arguments) = if trial % 2 == 0 {
            (fix_takes, vec!["fix", &pid, package.to_str().expect("UTF-8"), "--timeout", "60"])
        } else {
            victim.fix(&package, &["--timeout", "60"]).done();
            (revert_takes, vec!["revert", &pid, "--timeout", "60"])
        };
        let mut tool = start(&arguments);
        if trial % 4 < 2 {
            std::thread::sleep(takes * u32::try_from(dice.below(110)).expect("small") / 100);
        } else {
            // Most of the time goes into reading and planning; what matters happens while tfix holds the target.
            while tool.running() && status_field(victim.pid(), "TracerPid").as_deref() == Some("0") {}
            let moment = Instant::now() + Duration::from_micros(dice.below(1500) as u64);
            while Instant::now() < moment {}
        }
        tool.signal(Signal::SIGKILL);
        tool.finish();
        lives(&mut victim);
        victim.assert_free();
        // Whatever the moment was: list tells, and one revert makes the target what it was.
        if !victim.patches_in_state("interrupted").is_empty() {
            half += 1;
            victim.revert(&["--timeout", "60"]).done();
        } else if !victim.patches_in_state("applied").is_empty() {
            done += 1;
            victim.revert(&["--timeout", "60"]).done();
        } else {
            undone += 1;
        }
        lives(&mut victim);
        before.assert_same_code(&victim.snapshot());
    }
    println!("killed in time: {undone} without effect, {half} half way, {done} too late");
    victim.fix(&package, &["--timeout", "60"]).done();
    lives(&mut victim);
    victim.revert(&["--timeout", "60"]).done();
    let after = victim.snapshot();
    before.assert_same_code(&after);
    if victim.patches().is_empty() {
        assert!(after.of_tfix().is_empty(), "mapped, but unknown to list: {:?}", after.of_tfix());
    }
}

#[test]
fn killed_while_patching_a_sleepy_target() {
    killed("a1_program.c", "a1_patch.c", |_| Vec::new(), Victim::still_prints);
}

#[test]
fn killed_while_patching_a_busy_target() {
    killed("threads_program.c", "threads_patch.c", |lab| vec![lab.write("shared", [0; 4096])], Victim::still_prints);
}

/// `list` without a process finds every target that carries a patch.
#[test]
fn list_finds_all_patched_processes() {
    let lab = Lab::new();
    let program = lab.program("a1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let (mut one, mut two, mut three) = (Victim::start(&program), Victim::start(&program), Victim::start(&program));
    for victim in [&mut one, &mut two, &mut three] {
        victim.line();
    }
    one.fix(&package, &[]).done();
    three.fix(&package, &[]).done();
    let answer = tfix!["list", "--json"];
    let answer = answer.done().json();
    let pids: Vec<i64> =
        answer["processes"].as_array().expect("processes").iter().filter_map(|p| p["pid"].as_i64()).collect();
    assert!(pids.contains(&one.pid().into()) && pids.contains(&three.pid().into()), "{answer}");
    assert!(!pids.contains(&two.pid().into()), "{answer}");
    let text = tfix!["list", one.pid_text()];
    for word in ["a1_program", "fix", "1.0", "applied", "jmp-rel32", "p "] {
        assert!(text.done().stdout.contains(word), "no `{word}`\n{text}");
    }
}

/// The caller trusts registers that the old body leaves alone and the new one does not.
fn trusting_caller(flags: &[&str], must_work: bool) {
    let lab = Lab::new();
    let program = lab.program("ipara_program.c", flags);
    let patch = lab.patch("ipara_patch.c", &["-O2"]);
    let mut victim = Victim::start(&program);
    victim.settles("the sum", 3, |l| l == "sum 5383 leaf 2");
    let before = victim.snapshot();
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    if !must_work && outcome.code() != 0 {
        outcome.refused(&["leaf"]);
        assert!(outcome.rule() == "cloned" || outcome.stderr.contains("caller"), "the caller is named\n{outcome}");
        assert!(!package.exists());
        before.assert_untouched(&victim.snapshot());
        return;
    }
    outcome.done();
    victim.fix(&package, &[]).done();
    victim.wait_line("leaf 9 3");
    victim.keeps("the same sums, by way of the new function", 60, |l| l == "sum 5383 leaf 2" || l.starts_with("leaf "));
    victim.revert(&[]).done();
    victim.wait_line("sum 5383 leaf 2");
    before.assert_same_code(&victim.snapshot());
}

#[test]
fn callers_that_trust_the_old_bodys_registers() {
    for flags in [&["-O2"][..], &["-O2", "-g"], &["-O3"], &["-O2", "-static"], &["-O2", "-no-pie", "-fno-pie"]] {
        trusting_caller(flags, false);
    }
}

#[test]
fn callers_that_trust_nobody() {
    trusting_caller(&["-O0"], true);
    trusting_caller(&["-O1", "-g"], true);
    trusting_caller(&["-O2", "-g", "-fno-ipa-ra"], true);
}
