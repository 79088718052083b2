//! What is tested of tfix inside a guest, where it patches processes through ptrace: the same on every architecture.

use std::time::{Duration, Instant};

use crate::on_guests::Shared;
use crate::{Dice, Guest, Lab, Victim};

/// A fresh lab whose programs run in the guest.
pub fn lab(guest: &str) -> Lab {
    Lab::for_guest(&Guest::get(guest))
}

/// tfix is killed at a random moment, again and again; the target lives, and what was begun can be undone.
pub fn killed(guest: &str, program: &str, patch: &str, trials: usize) {
    const SIGKILL: i32 = 9;
    let guest = Guest::get(guest);
    let lab = Lab::for_guest(&guest);
    let program = lab.program(program, &["-O2"]);
    let package = lab.package(&program, &lab.patch(patch, &["-O2"]));
    let shared = Shared::new(&guest, "/tmp/shared-by-killed");
    let mut victim = lab.start(&program, &[shared.path()]);
    victim.still_prints();
    let before = victim.snapshot();
    let begin = Instant::now();
    victim.fix(&package, &["--timeout", "60"]).done();
    let takes = begin.elapsed();
    victim.revert(&["--timeout", "60"]).done();
    let in_guest = guest.copy(&package);
    let mut dice = Dice::new(5);
    let (mut done, mut undone, mut half) = (0, 0, 0);
    for trial in 0..trials {
        let pid = victim.pid_text();
        let arguments = if trial % 2 == 0 {
            vec!["fix", &pid, &in_guest, "--timeout", "60"]
        } else {
            victim.fix(&package, &["--timeout", "60"]).done();
            vec!["revert", &pid, "--timeout", "60"]
        };
        let tool = guest.start_tfix(&arguments);
        if trial % 4 < 2 {
            std::thread::sleep(takes * u32::try_from(dice.below(110)).expect("small") / 100);
        } else {
            // What matters happens while tfix holds the target.
            let traced = || victim.place().status_field(victim.pid(), "TracerPid").as_deref() != Some("0");
            while tool.running() && !traced() {}
            std::thread::sleep(Duration::from_micros(dice.below(15_000) as u64));
        }
        tool.signal(SIGKILL);
        tool.wait();
        drop(tool);
        victim.still_prints();
        victim.assert_free();
        if !victim.patches_in_state("interrupted").is_empty() {
            half += 1;
            victim.revert(&["--timeout", "60"]).done();
        } else if !victim.patches_in_state("applied").is_empty() {
            done += 1;
            victim.revert(&["--timeout", "60"]).done();
        } else {
            undone += 1;
        }
        victim.still_prints();
        before.assert_same_code(&victim.snapshot());
    }
    println!("killed in time: {undone} without effect, {half} half way, {done} too late; fix takes {takes:?}");
}

/// `list` finds what is patched, and says nothing about the rest.
pub fn listed(guest: &str) {
    let guest = Guest::get(guest);
    let lab = Lab::for_guest(&guest);
    let program = lab.program("a1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let one: Victim = lab.start::<&str>(&program, &[]);
    let two: Victim = lab.start::<&str>(&program, &[]);
    two.fix(&package, &[]).done();
    let answer = guest.run_tfix(&["list", "--json"]).done().json();
    let found: Vec<i64> =
        answer["processes"].as_array().expect("a list").iter().filter_map(|p| p["pid"].as_i64()).collect();
    assert!(found.contains(&i64::from(two.pid())), "{answer}");
    assert!(!found.contains(&i64::from(one.pid())), "{answer}");
}

/// A function of Debian's zlib, in Debian's python.
pub fn zlib(guest: &str) {
    let guest = Guest::get(guest);
    let script =
        "import zlib, time\nwhile True:\n    print('crc', zlib.crc32(b'tfix'), flush=True)\n    time.sleep(0.01)\n";
    let mut victim = Victim::spawn_in(&guest, &["/usr/bin/python3.11", "-S", "-E", "-c", script]);
    // CRC-32 of "tfix"
    let old = "crc 1671591589";
    let new = "crc 1671591588";
    victim.settles("the right crc", 5, |l| l == old);
    let lab = Lab::for_guest(&guest);
    let library = victim.snapshot().regions.iter().find(|r| r.path.contains("libz.so")).map(|r| r.path.clone());
    let library = lab.write("libz.so.1", guest.read(&library.expect("python has loaded it")).expect("a file"));
    let package = lab.package(&library, &lab.patch("zlib_crc32.c", &["-O2"]));
    let before = victim.snapshot();
    for _ in 0..3 {
        victim.fix(&package, &[]).done();
        victim.settles("the patched crc", 10, |l| l == new);
        assert_eq!(victim.patches_in_state("applied"), ["fix"]);
        victim.revert(&[]).done();
        victim.settles("the right crc", 10, |l| l == old);
        before.assert_same_code(&victim.snapshot());
    }
}

/// The tests of every guest that is named.
#[macro_export]
macro_rules! in_guests {
    ($($guest:ident)*) => {
        $(mod $guest {
            use $crate::inside::{killed, lab, listed};
            use $crate::on_guests::{
                PIE, STATIC, all_cases, call_of_another_thread, calls_in_a_loop, calls_with_a_timeout, calls_with_an_event,
                threads,
            };
            const GUEST: &str = stringify!($guest);

            #[test]
            fn a_cases_pie_o0() {
                all_cases(|| lab(GUEST), "-O0", PIE);
            }
            #[test]
            fn a_cases_pie_o2() {
                all_cases(|| lab(GUEST), "-O2", PIE);
            }
            #[test]
            fn a_cases_static_o0() {
                all_cases(|| lab(GUEST), "-O0", STATIC);
            }
            #[test]
            fn a_cases_static_o2() {
                all_cases(|| lab(GUEST), "-O2", STATIC);
            }
            #[test]
            fn calls_that_wait_for_an_event() {
                calls_with_an_event(|| lab(GUEST));
            }
            #[test]
            fn calls_that_another_thread_waits_in() {
                call_of_another_thread(&lab(GUEST));
            }
            #[test]
            fn calls_that_wait_for_a_time() {
                calls_with_a_timeout(|| lab(GUEST));
            }
            #[test]
            fn calls_that_follow_each_other() {
                calls_in_a_loop(&lab(GUEST), 1000, 20);
            }
            #[test]
            fn eight_busy_threads() {
                threads(&lab(GUEST), 50, 10);
            }
            #[test]
            fn killed_while_patching_a_sleepy_target() {
                killed(GUEST, "a1_program.c", "a1_patch.c", 16);
            }
            #[test]
            fn killed_while_patching_a_busy_target() {
                killed(GUEST, "threads_program.c", "threads_patch.c", 8);
            }
            #[test]
            fn list_finds_what_is_patched() {
                listed(GUEST);
            }
        })*
    };
}
