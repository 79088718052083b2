//! tfix on MIPS Linux: it runs in a guest and patches processes there, through ptrace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qemu_tests::blocked::{End, undisturbed};
use qemu_tests::cases::{A1, A2, A3, A4, A5, Case, build, live};
use qemu_tests::{Dice, Guest, Lab, Victim, until};
use tigerfix_core::field::load;

/// Position-independent and dynamic, as compilers make programs by default.
const PIE: &[&str] = &["-fPIE", "-pie"];
/// Static, at a fixed address.
const STATIC: &[&str] = &["-fno-pic", "-fno-pie", "-no-pie", "-static"];

/// How functions of a static program, and of patches for it, are called: by their address alone on O32. On n64 the linker makes
/// no stubs through which such code could call the C library.
fn plain(guest: &str) -> &'static [&'static str] {
    if guest == "mips64el" { &[] } else { &["-mno-abicalls"] }
}

/// Patched, observed, listed, reverted to the last bit.
fn case<C: Case>(guest: &str, opt: &str, link: &[&str]) {
    let lab = Lab::for_guest(&Guest::get(guest));
    let flags = if link == STATIC { plain(guest) } else { &[] };
    let program = build::<C>(&lab, opt, link, flags).0;
    let code = if flags.is_empty() { "-fPIC" } else { "-fno-pic" };
    let patch = lab.object(&format!("{}_patch.c", C::STEM), &[&[opt, code], flags].concat());
    let package = lab.package(&program, &patch);
    let mut victim = lab.start::<&str>(&program, &[]);
    C::shows_old(&mut victim);
    live::<C>(victim, &package);
}

fn all_cases(guest: &str, opt: &str, link: &[&str]) {
    case::<A1>(guest, opt, link);
    case::<A2>(guest, opt, link);
    case::<A3>(guest, opt, link);
    case::<A5>(guest, opt, link);
    if opt == "-O0" {
        // At higher levels the compiler may inline the function, and gen refuses: a_cases.rs.
        case::<A4>(guest, opt, link);
    }
}

/// A call that waits is not disturbed by fix, revert and fix.
fn blocked(guest: &str, calls: &[(&str, &str, End, i64, i32)]) {
    let guest = Guest::get(guest);
    for (kind, ready, end, result, errno) in calls {
        undisturbed(&Lab::for_guest(&guest), kind, ready, end, *result, *errno);
    }
}

fn calls_with_an_event(guest: &str) {
    let input = |kind, result| (kind, "waiting", End::Input, result, 0);
    let signal = |kind, ready, result, errno| (kind, ready, End::Signal, result, errno);
    blocked(
        guest,
        &[
            input("read", 1),
            input("cond", 0),
            input("futex", 0),
            input("poll", 1),
            input("ppoll", 1),
            input("select", 1),
            input("epoll", 1),
            input("semop", 0),
            input("msgrcv", 1),
            input("recv", 1),
            input("waitpid", 1),
            signal("sigwaitinfo", "blocked", 1, 0),
            signal("pause", "handling", -1, libc::EINTR),
            signal("sleep-signal", "handling", -1, libc::EINTR),
        ],
    );
}

fn calls_with_a_timeout(guest: &str) {
    let etimedout = Guest::get(guest).etimedout();
    let time = |kind, result, errno| (kind, "waiting", End::Time, result, errno);
    blocked(
        guest,
        &[
            time("sleep", 0, 0),
            time("nanosleep", 0, 0),
            time("futex-timed", -1, etimedout),
            time("poll-timed", 0, 0),
            time("select-timed", 0, 0),
            time("epoll-timed", 0, 0),
            time("sigtimedwait", -1, libc::EAGAIN),
            time("semtimedop", -1, libc::EAGAIN),
            time("recv-timed", -1, libc::EAGAIN),
        ],
    );
}

/// The page that victim and test share (`threads_program.c`).
struct Shared {
    guest: Arc<Guest>,
    path: String,
}

impl Shared {
    const THREADS: usize = 8;

    fn new(guest: &Arc<Guest>, path: &str) -> Shared {
        guest.write(path, 0o600, &[0; 4096]);
        Shared { guest: Arc::clone(guest), path: path.to_owned() }
    }

    fn set_mode(&self, round: i32, mode: i32) {
        let mut word = (round * 4 + mode).to_le_bytes();
        if self.guest.endian() == tigerfix_core::field::Endian::Big {
            word.reverse();
        }
        self.guest.write_at(&self.path, 0, &word);
    }

    /// Every thread makes `count` more calls, and none of them sees what the mode forbids.
    fn all_call(&self, count: u64) {
        let look = || {
            let bytes = self.guest.read_at(&self.path, 4, 4092).expect("shared page");
            let number = |b: &[u8]| load(b, self.guest.endian());
            assert_eq!(number(&bytes[..4]), 0, "a call that began after tfix had returned gave the other result");
            let calls: Vec<u64> = bytes[4..].chunks_exact(self.guest.word()).take(Self::THREADS).map(number).collect();
            calls
        };
        let start = look();
        until("calls of every thread", || look().iter().zip(&start).all(|(n, s)| *n >= s + count).then_some(()));
    }
}

/// Eight busy threads call the function without pause while it is replaced and restored.
fn threads(guest: &str, cycles: i32) {
    let guest = Guest::get(guest);
    let lab = Lab::for_guest(&guest);
    let program = lab.program("threads_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("threads_patch.c", &["-O2"]));
    let shared = Shared::new(&guest, "/tmp/shared-by-threads");
    let mut victim = lab.start(&program, &[&shared.path]);
    victim.wait_line("alive");
    shared.all_call(100);
    let before = victim.snapshot();
    for round in 0..cycles {
        shared.set_mode(round, 0);
        victim.fix(&package, &["--timeout", "60"]).done();
        shared.set_mode(round, 1);
        shared.all_call(10);
        shared.set_mode(round, 0);
        victim.revert(&["--timeout", "60"]).done();
        shared.set_mode(round, 2);
        shared.all_call(10);
    }
    victim.still_prints();
    victim.assert_free();
    before.assert_same_code(&victim.snapshot());
}

/// tfix is killed at a random moment, again and again; the target lives, and what was begun can be undone.
fn killed(guest: &str, program: &str, patch: &str, trials: usize) {
    const SIGKILL: i32 = 9;
    let guest = Guest::get(guest);
    let lab = Lab::for_guest(&guest);
    let program = lab.program(program, &["-O2"]);
    let package = lab.package(&program, &lab.patch(patch, &["-O2"]));
    let shared = Shared::new(&guest, "/tmp/shared-by-killed");
    let mut victim = lab.start(&program, &[&shared.path]);
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
fn listed(guest: &str) {
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

macro_rules! on {
    ($($guest:ident)*) => {
        $(mod $guest {
            use super::*;
            const GUEST: &str = stringify!($guest);

            #[test]
            fn a_cases_pie_o0() {
                all_cases(GUEST, "-O0", PIE);
            }
            #[test]
            fn a_cases_pie_o2() {
                all_cases(GUEST, "-O2", PIE);
            }
            #[test]
            fn a_cases_static_o0() {
                all_cases(GUEST, "-O0", STATIC);
            }
            #[test]
            fn a_cases_static_o2() {
                all_cases(GUEST, "-O2", STATIC);
            }
            #[test]
            fn calls_that_wait_for_an_event() {
                calls_with_an_event(GUEST);
            }
            #[test]
            fn calls_that_wait_for_a_time() {
                calls_with_a_timeout(GUEST);
            }
            #[test]
            fn eight_busy_threads() {
                threads(GUEST, 10);
            }
            #[test]
            fn killed_while_patching_a_sleepy_target() {
                killed(GUEST, "a1_program.c", "a1_patch.c", 24);
            }
            #[test]
            fn killed_while_patching_a_busy_target() {
                killed(GUEST, "threads_program.c", "threads_patch.c", 12);
            }
            #[test]
            fn list_finds_what_is_patched() {
                listed(GUEST);
            }
        })*
    };
}

on!(mipsel mips mips64el);

/// A function of Debian's zlib, in Debian's python.
#[test]
fn debians_zlib_in_a_running_python() {
    let guest = Guest::get("mipsel");
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
