//! System calls in which the target waits when tfix comes: they go on as if nothing had happened.

use qemu_tests::blocked::{End, check, undisturbed};
use qemu_tests::{Lab, Victim};

macro_rules! call {
    ($name:ident, $kind:literal, $ready:literal, $end:ident, $result:expr, $errno:expr) => {
        #[test]
        fn $name() {
            undisturbed(&Lab::new(), $kind, $ready, &End::$end, $result, $errno);
        }
    };
}

call!(read, "read", "waiting", Input, 1, 0);
call!(sleep, "sleep", "waiting", Time, 0, 0);
call!(nanosleep, "nanosleep", "waiting", Time, 0, 0);
call!(accept, "accept", "listening", Connect, 1, 0);
call!(condition_variable, "cond", "waiting", Input, 0, 0);
call!(futex, "futex", "waiting", Input, 0, 0);
call!(futex_with_timeout, "futex-timed", "waiting", Time, -1, libc::ETIMEDOUT);
call!(poll, "poll", "waiting", Input, 1, 0);
call!(poll_with_timeout, "poll-timed", "waiting", Time, 0, 0);
call!(ppoll, "ppoll", "waiting", Input, 1, 0);
call!(select, "select", "waiting", Input, 1, 0);
call!(select_with_timeout, "select-timed", "waiting", Time, 0, 0);
call!(epoll_wait, "epoll", "waiting", Input, 1, 0);
call!(epoll_wait_with_timeout, "epoll-timed", "waiting", Time, 0, 0);
call!(sigwaitinfo, "sigwaitinfo", "blocked", Signal, 1, 0);
call!(sigtimedwait, "sigtimedwait", "waiting", Time, -1, libc::EAGAIN);
call!(pause, "pause", "handling", Signal, -1, libc::EINTR);
call!(own_signal_ends_a_sleep, "sleep-signal", "handling", Signal, -1, libc::EINTR);
call!(semop, "semop", "waiting", Input, 0, 0);
call!(semtimedop, "semtimedop", "waiting", Time, -1, libc::EAGAIN);
call!(msgrcv, "msgrcv", "waiting", Input, 1, 0);
call!(recv_with_timeout, "recv", "waiting", Input, 1, 0);
call!(recv_times_out, "recv-timed", "waiting", Time, -1, libc::EAGAIN);
call!(waitpid, "waitpid", "waiting", Input, 1, 0);

/// A sleep that started anew with every visit would never end here.
fn ends_under_steady_visits(kind: &str, result: i64, errno: i32) {
    let lab = Lab::new();
    let program = lab.program("blocked_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut victim = Victim::start_with(&program, &[kind]);
    victim.wait_line("waiting");
    victim.wait_blocked();
    let mut visits = 0;
    let line = qemu_tests::until("the end of the sleep", || {
        victim.fix(&package, &[]).done();
        victim.revert(&[]).done();
        visits += 1;
        victim.lines_so_far().into_iter().find(|l| l.starts_with(kind))
    });
    assert!(visits > 1, "there was time for more than one visit");
    check(&line, kind, result, errno, &End::Time);
    // Where the sleep ended within a visit, there are lines of the new p among those of the old one.
    let mut old = 0;
    victim.wait_for("the old p for good", |l| {
        old = if l == "p 1" { old + 1 } else { 0 };
        old == 10
    });
}

#[test]
fn sleep_keeps_its_length() {
    ends_under_steady_visits("sleep", 0, 0);
}

#[test]
fn nanosleep_keeps_its_length() {
    ends_under_steady_visits("nanosleep", 0, 0);
}

#[test]
fn poll_keeps_its_length() {
    ends_under_steady_visits("poll-timed", 0, 0);
}

#[test]
fn select_keeps_its_length() {
    ends_under_steady_visits("select-timed", 0, 0);
}

#[test]
fn futex_keeps_its_length() {
    ends_under_steady_visits("futex-timed", -1, libc::ETIMEDOUT);
}

/// `list`, a dry run and a refusal leave a waiting call alone as well.
#[test]
fn looking_disturbs_nothing() {
    let lab = Lab::new();
    let program = lab.program("blocked_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut victim = Victim::start_with(&program, &["epoll-timed"]);
    victim.wait_line("waiting");
    victim.wait_blocked();
    let before = victim.snapshot();
    assert!(victim.patches().is_empty());
    victim.fix(&package, &["--dry-run"]).done();
    victim.revert(&["nothing-of-this-name"]).refused(&[]).by_rule("not-applied");
    before.assert_untouched(&victim.snapshot());
    let line = victim.line();
    check(&line, "epoll-timed", 0, 0, &End::Time);
}
