//! What is tested on every guest, whichever way tfix comes to the processes there. `lab` makes a fresh lab whose programs run
//! in the guest.

use std::sync::Arc;

use tigerfix_core::field::{Endian, load};

use crate::blocked::{End, undisturbed};
use crate::cases::{A1, A2, A3, A4, A5, Case, build, live};
use crate::{Guest, Lab, until};

/// Position-independent and dynamic, as compilers make programs by default.
pub const PIE: &[&str] = &["-fPIE", "-pie"];
/// Static, at a fixed address.
pub const STATIC: &[&str] = &["-fno-pic", "-fno-pie", "-no-pie", "-static"];

/// What a static program and patches for it are compiled with, and the patches besides: functions are called by their address
/// alone. On n64 the linker makes no stubs through which such code could call the C library.
fn plain(guest: &Guest) -> (&'static [&'static str], &'static str) {
    match guest.name() {
        "mips64el" => (&[], "-fPIC"),
        "mips" | "mipsel" => (&["-mno-abicalls"], "-fno-pic"),
        _ => (&[], "-fno-pic"),
    }
}

fn guest(lab: &Lab) -> &Arc<Guest> {
    lab.guest().expect("a lab for a guest")
}

/// Patched, observed, listed, reverted to the last bit.
fn case<C: Case>(lab: &Lab, opt: &str, link: &[&str]) {
    let (flags, code) = if link == STATIC { plain(guest(lab)) } else { (&[][..], "-fPIC") };
    let program = build::<C>(lab, opt, link, flags).0;
    let patch = lab.object(&format!("{}_patch.c", C::STEM), &[&[opt, code], flags].concat());
    let package = lab.package(&program, &patch);
    let mut victim = lab.start::<&str>(&program, &[]);
    C::shows_old(&mut victim);
    live::<C>(victim, &package);
}

/// A1 to A5, the program linked in this way.
pub fn all_cases(lab: impl Fn() -> Lab, opt: &str, link: &[&str]) {
    case::<A1>(&lab(), opt, link);
    case::<A2>(&lab(), opt, link);
    case::<A3>(&lab(), opt, link);
    case::<A5>(&lab(), opt, link);
    if opt == "-O0" {
        // At higher levels the compiler may inline the function, and gen refuses: a_cases.rs.
        case::<A4>(&lab(), opt, link);
    }
}

/// A call that waits is not disturbed by fix, revert and fix.
fn blocked(lab: impl Fn() -> Lab, calls: &[(&str, &str, End, i64, i32)]) {
    for (kind, ready, end, result, errno) in calls {
        undisturbed(&lab(), kind, ready, end, *result, *errno);
    }
}

/// Calls that wait for an event.
pub fn calls_with_an_event(lab: impl Fn() -> Lab) {
    let input = |kind, result| (kind, "waiting", End::Input, result, 0);
    let signal = |kind, ready, result, errno| (kind, ready, End::Signal, result, errno);
    blocked(
        lab,
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

/// The same of a thread that is not the main one. Not for gdbserver, which itself lets such a thread go on with EINTR.
pub fn call_of_another_thread(lab: &Lab) {
    undisturbed(lab, "epoll-thread", "waiting", &End::Input, 1, 0);
}

/// Calls that wait for a time.
pub fn calls_with_a_timeout(lab: impl Fn() -> Lab) {
    let etimedout = guest(&lab()).etimedout();
    let time = |kind, result, errno| (kind, "waiting", End::Time, result, errno);
    blocked(
        lab,
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

/// Calls that differ in their first argument only are not taken for each other, however soon one follows the other.
pub fn calls_in_a_loop(lab: &Lab, pause_us: u32, cycles: u32) {
    let program = lab.program("waiting_loop_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut victim = lab.start(&program, &[pause_us.to_string()]);
    for _ in 0..cycles {
        victim.fix(&package, &[]).done();
        victim.settles("the new p", 2, |l| l.starts_with("p 2 "));
        victim.revert(&[]).done();
        victim.settles("the old p", 2, |l| l.starts_with("p 1 "));
    }
    let line = victim.line();
    println!("{line}");
    assert!(line.contains(" wrong 0 "), "a call was made again with another's argument: {line}");
    victim.assert_free();
}

/// The page that victim and test share (`threads_program.c`).
pub struct Shared {
    guest: Arc<Guest>,
    path: String,
}

impl Shared {
    /// Where it lies in the guest.
    pub fn path(&self) -> &str {
        &self.path
    }

    const THREADS: usize = 8;

    /// A new one.
    pub fn new(guest: &Arc<Guest>, path: &str) -> Shared {
        guest.write(path, 0o600, &[0; 4096]);
        Shared { guest: Arc::clone(guest), path: path.to_owned() }
    }

    /// Tells the victim which results are right from now on.
    pub fn set_mode(&self, round: i32, mode: i32) {
        let mut word = (round * 4 + mode).to_le_bytes();
        if self.guest.endian() == Endian::Big {
            word.reverse();
        }
        self.guest.write_at(&self.path, 0, &word);
    }

    /// Every thread makes `count` more calls, and none of them sees what the mode forbids.
    pub fn all_call(&self, count: u64) {
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
/// Between the calls they do `idle` rounds of something else: with none, some are in the function at any time.
pub fn threads(lab: &Lab, idle: u32, cycles: i32) {
    let program = lab.program("threads_program.c", &["-O2", &format!("-DIDLE={idle}")]);
    let package = lab.package(&program, &lab.patch("threads_patch.c", &["-O2"]));
    let shared = Shared::new(guest(lab), &format!("/tmp/shared-by-threads-{idle}"));
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
