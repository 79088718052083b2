//! The ptrace transport, on processes of our own that are compiled from `victims/*.c`.
#![cfg(all(feature = "ptrace", target_os = "linux", target_arch = "x86_64"))]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tigerfix::ptrace::{PtraceTarget, executable_ident};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::{Arch, LinuxAbi};
use tigerfix_core::error::Explain;
use tigerfix_core::target::{Calls, Mappings, Perm, Target, TargetError, ThreadId, Threads};

static ARCH: X86_64 = X86_64;
const SOURCES: [(&str, &str); 3] = [
    ("calls", include_str!("victims/calls.c")),
    ("busy", include_str!("victims/busy.c")),
    ("odd", include_str!("victims/odd.c")),
];

fn linux() -> &'static LinuxAbi {
    ARCH.linux().unwrap()
}

/// Compiles the victims, once for each test process.
fn bin(name: &str) -> std::path::PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in SOURCES {
            let c = dir.path().join(format!("{name}.c"));
            std::fs::write(&c, text).unwrap();
            let out = dir.path().join(name);
            let gcc = Command::new("gcc").args(["-O2", "-pthread", "-w", "-o"]).arg(out).arg(c).status().unwrap();
            assert!(gcc.success());
        }
        dir
    });
    dir.path().join(name)
}

struct Victim {
    child: Child,
    stdin: Option<ChildStdin>,
    out: BufReader<ChildStdout>,
    /// The addresses that it printed first.
    at: Vec<u64>,
}

impl Victim {
    fn start(name: &str, args: &[&str]) -> Victim {
        let mut child =
            Command::new(bin(name)).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut v = Victim { child, stdin, out, at: Vec::new() };
        let line = v.line();
        v.at =
            line.split_whitespace().filter_map(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok()).collect();
        v
    }
    fn pid(&self) -> i32 {
        self.child.id() as i32
    }
    fn open(&self) -> PtraceTarget {
        PtraceTarget::open(self.pid(), &ARCH).unwrap()
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
    fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }
    fn word(&self, at: u64) -> u64 {
        use std::os::unix::fs::FileExt;
        let mut b = [0; 8];
        let read = std::fs::File::open(format!("/proc/{}/mem", self.pid())).and_then(|f| f.read_exact_at(&mut b, at));
        assert!(read.is_ok(), "the victim ended: {}", end_of(self.pid()));
        u64::from_le_bytes(b)
    }
    fn status(&self, key: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("").trim_start_matches(':').trim().to_owned()
    }
    fn states(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks
            .filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("status")).ok())
            .map(|s| s.lines().find_map(|l| l.strip_prefix("State:\t")).unwrap().to_owned())
            .collect()
    }
    /// Waits until `f` is true.
    fn until(&self, what: &str, f: impl Fn(&Victim) -> bool) {
        let begin = Instant::now();
        while !f(self) {
            assert!(begin.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.states());
            std::thread::yield_now();
        }
    }
    /// Waits until the main thread is blocked in system call `nr`.
    fn until_in(&self, nr: i64) {
        // Once restarted, some are shown as what the kernel restarts them by.
        let numbers = [format!("{nr} "), format!("{} ", libc::SYS_restart_syscall)];
        self.until(&format!("blocked in call {nr}"), |v| {
            std::fs::read_to_string(format!("/proc/{}/syscall", v.pid()))
                .is_ok_and(|s| numbers.iter().any(|n| s.starts_with(n)))
                && v.status("State").starts_with('S')
        });
    }
    fn until_rounds(&self, n: u64) {
        let goal = self.word(self.at[0]) + n;
        self.until("computing", |v| v.word(v.at[0]) >= goal);
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a child of ours ended, without taking its status away.
fn end_of(pid: i32) -> String {
    // The last field but two of stat is the exit code, as wait has it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    format!("exit code {}", stat.trim_end().rsplit(' ').next().unwrap_or_default())
}

fn rule<T>(r: Result<T, TargetError>) -> &'static str {
    match r {
        Ok(_) => "fine",
        Err(e) => e.rule(),
    }
}

fn map_args() -> [u64; 6] {
    [0, 8192, 5, linux().map_private | linux().map_anonymous, u64::MAX, 0]
}

// What can be opened.

#[test]
fn unsuitable_processes_are_named() {
    let open = |pid| rule(PtraceTarget::open(pid, &ARCH));
    assert_eq!(open(0), "no-such-target");
    assert_eq!(open(-1), "no-such-target");
    assert_eq!(open(i32::MAX), "no-such-target");
    assert_eq!(open(std::process::id() as i32), "own-process");
    if std::fs::read_to_string("/proc/2/comm").is_ok_and(|c| c.starts_with("kthreadd")) {
        assert_eq!(open(2), "kernel-thread");
        assert_eq!(rule(executable_ident(2)), "kernel-thread");
    }
    let v = Victim::start("busy", &["main"]);
    let tids = std::fs::read_dir(format!("/proc/{}/task", v.pid())).unwrap();
    let tid = tids.filter_map(|t| t.unwrap().file_name().to_str()?.parse().ok()).find(|t| *t != v.pid()).unwrap();
    assert_eq!(open(tid), "not-a-process");
    let e = PtraceTarget::open(tid, &ARCH).err().unwrap().to_string();
    assert!(e.contains(&format!("a thread of process {}", v.pid())), "{e}");

    let mut t = v.open();
    t.stop_all().unwrap();
    let e = PtraceTarget::open(v.pid(), &ARCH).err().unwrap();
    // The tracer is a thread of ours.
    let TargetError::AlreadyTraced { tracer, .. } = e else { panic!("{e}") };
    assert!(std::fs::exists(format!("/proc/self/task/{tracer}")).unwrap(), "{e}");
    drop(t);

    let v = Victim::start("odd", &["strict"]);
    v.until("strict", |v| v.status("Seccomp") == "1");
    assert_eq!(open(v.pid()), "seccomp");

    let dead = Ended(Command::new("true").spawn().unwrap());
    let pid = dead.0.id() as i32;
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    while !stat().contains("State:\tZ") {
        std::thread::yield_now();
    }
    assert_eq!(open(pid), "zombie");
    drop(dead);
}

/// A child that is waited for at the end.
struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.wait();
    }
}

#[test]
fn another_user_is_refused() {
    // Only root can start something as another user, and only an ordinary user is refused.
    if !std::fs::read_to_string("/proc/self/status").unwrap().contains("Uid:\t0\t0") {
        assert_eq!(rule(PtraceTarget::open(1, &ARCH)), "not-permitted");
    }
}

#[test]
fn back_end_is_chosen_by_the_program() {
    let v = Victim::start("busy", &["main"]);
    let ident = executable_ident(v.pid()).unwrap();
    assert!(ARCH.accepts(&ident).is_ok());
    assert_eq!(v.open().describe(), format!("process {} (busy)", v.pid()));
}

// Memory and mappings.

#[test]
fn memory_and_mappings() {
    let v = Victim::start("busy", &["main"]);
    let mut t = v.open();
    let maps = Mappings::mappings(&mut t).unwrap();
    let text = maps.iter().find(|m| m.perm == Perm::RX && m.name.ends_with("/busy")).unwrap().clone();
    assert!(maps.windows(2).all(|w| w[0].end <= w[1].start));
    assert_eq!(t.file(&text).unwrap(), std::fs::read(bin("busy")).unwrap());
    let stack = maps.iter().find(|m| m.name == "[stack]").unwrap().clone();
    let parts = t.touched(&stack);
    assert!(!parts.is_empty() && parts.iter().all(|p| stack.start <= p.0 && p.0 < p.1 && p.1 <= stack.end));
    assert_eq!(rule(t.file(&stack)), "system");
    assert_eq!(t.auxv(6).unwrap(), Some(4096));
    assert!(text.contains(RunAddr(t.auxv(9).unwrap().unwrap())));
    assert_eq!(t.auxv(9999).unwrap(), None);

    // Read-only text, without anyone being stopped, in odd lengths.
    let trap = RunAddr(v.at[1]);
    t.write(trap, &[0x90, 0xcc, 0x90]).unwrap();
    let mut b = [0; 3];
    t.read(trap, &mut b).unwrap();
    assert_eq!(b, [0x90, 0xcc, 0x90]);
    assert_eq!(std::fs::read(bin("busy")).unwrap(), t.file(&text).unwrap(), "the file is untouched");

    let e = t.read(RunAddr(16), &mut [0; 8]).unwrap_err();
    assert!(matches!(e, TargetError::Memory { action: "read", addr: RunAddr(16), len: 8, .. }), "{e}");
    assert_eq!(rule(t.write(RunAddr(16), &[1])), "target-memory");
    // Across the end of a mapping.
    let end = maps.windows(2).find(|w| w[0].end != w[1].start && w[0].perm.read).unwrap()[0].end;
    assert_eq!(rule(t.read(RunAddr(end.0 - 4), &mut [0; 8])), "target-memory");
    // Unreadable memory can be read all the same.
    if let Some(guard) = maps.iter().find(|m| !m.perm.read && m.name.is_empty()) {
        t.read(guard.start, &mut [0; 8]).unwrap();
    }
    v.until_rounds(2);
    assert!(v.states().iter().all(|s| !s.starts_with('t')));
}

#[test]
fn one_tool_at_a_time() {
    let v = Victim::start("busy", &["main"]);
    let mut first = v.open();
    first.claim().unwrap();
    first.claim().unwrap();
    let mut second = v.open();
    assert_eq!(rule(second.claim()), "in-use");
    drop(first);
    second.claim().unwrap();
}

#[test]
fn deleted_program_can_still_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my \n program");
    std::fs::copy(bin("busy"), &path).unwrap();
    let mut child = Command::new(&path).arg("main").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "another file").unwrap();
    let mut t = PtraceTarget::open(child.id() as i32, &ARCH).unwrap();
    let maps = Mappings::mappings(&mut t).unwrap();
    let text = maps.iter().find(|m| m.name.ends_with("/my \n program (deleted)")).unwrap().clone();
    assert_eq!(t.file(&text).unwrap(), std::fs::read(bin("busy")).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
}

// Stops.

/// 20 stops while the victim is blocked in `nr`; then the event comes. Returns result, errno, handler runs, milliseconds.
fn blocked_call(mode: &str, nr: i64) -> (i64, i64, i64, i64) {
    let mut v = Victim::start("calls", &[mode]);
    let mut t = v.open();
    t.attach().unwrap();
    for _ in 0..20 {
        v.until_in(nr);
        let threads = t.stop_all().unwrap();
        assert_eq!(threads.len(), 2);
        t.resume_all().unwrap();
    }
    v.until_in(nr);
    if mode.ends_with("-handler") {
        // A real signal, while all are stopped.
        t.stop_all().unwrap();
        let kill = Command::new("sh").args(["-c", &format!("kill -USR2 {}", v.pid())]).status().unwrap();
        assert!(kill.success());
        t.resume_all().unwrap();
    }
    drop(t);
    if !mode.ends_with("-handler") {
        v.say("go\n");
    }
    let line = v.line();
    let n: Vec<i64> = line.split(' ').map(|w| w.parse().unwrap()).collect();
    assert!(v.child.wait().unwrap().success());
    (n[0], n[1], n[2], n[3])
}

#[test]
fn blocked_calls_go_on() {
    let calls = [
        ("read", libc::SYS_read, 1),
        ("accept", libc::SYS_accept, 1),
        ("futex", libc::SYS_futex, 0),
        ("poll", libc::SYS_poll, 1),
        ("select", libc::SYS_pselect6, 1),
        ("epoll", libc::SYS_epoll_wait, 1),
        ("epoll-timed", libc::SYS_epoll_wait, 1),
        ("semop", libc::SYS_semtimedop, 0),
        ("sigwaitinfo", libc::SYS_rt_sigtimedwait, 1),
        ("recv", libc::SYS_recvfrom, 1),
    ];
    for (mode, nr, result) in calls {
        // The C library makes some calls by one of two numbers.
        let nr = match mode {
            "semop" => libc::SYS_semop.max(libc::SYS_semtimedop * i64::from(semop_is_semtimedop())),
            "select" if !select_is_pselect6() => libc::SYS_select,
            _ => nr,
        };
        let (r, errno, handled, _) = blocked_call(mode, nr);
        assert_eq!((r, errno, handled), (result, 0, 0), "{mode}");
    }
}

/// Which numbers this C library uses, seen once.
fn uses(mode: &str, nr: i64) -> bool {
    let v = Victim::start("calls", &[mode]);
    let path = format!("/proc/{}/syscall", v.pid());
    v.until("blocked", |v| {
        v.status("State").starts_with('S')
            && std::fs::read_to_string(&path)
                .is_ok_and(|s| s.split(' ').next().is_some_and(|n| n != "1" && n != "running"))
    });
    std::fs::read_to_string(path).unwrap().starts_with(&format!("{nr} "))
}
fn semop_is_semtimedop() -> bool {
    uses("semop", libc::SYS_semtimedop)
}
fn select_is_pselect6() -> bool {
    uses("select", libc::SYS_pselect6)
}

#[test]
fn sleep_lasts_as_long_as_asked_for() {
    let (r, errno, _, ms) = blocked_call("nanosleep", libc::SYS_clock_nanosleep);
    assert_eq!((r, errno), (0, 0));
    assert!((1000..1500).contains(&ms), "{ms}");
}

#[test]
fn real_signals_still_interrupt() {
    let eintr = linux().eintr as i64;
    let (r, errno, handled, _) = blocked_call("epoll-handler", libc::SYS_epoll_wait);
    assert_eq!((r, errno, handled), (-1, eintr, 1));
    let (r, errno, handled, _) = blocked_call("read-handler", libc::SYS_read);
    assert_eq!((r, errno, handled), (-1, eintr, 1));
}

#[test]
fn signals_are_neither_lost_nor_doubled() {
    const N: u64 = 3000;
    let v = Victim::start("odd", &["signals"]);
    let pid = v.pid();
    let mut t = v.open();
    let sender = std::thread::spawn(move || {
        for i in 0..N {
            loop {
                let value = libc::sigval { sival_ptr: i as usize as *mut libc::c_void };
                // SAFETY: numbers only. The queue may be full for a while.
                if unsafe { libc::sigqueue(pid, libc::SIGRTMIN() + 1, value) } == 0 {
                    break;
                }
                std::thread::yield_now();
            }
        }
    });
    let mut stops = 0;
    while !sender.is_finished() || stops < 300 {
        let all = t.stop_all().unwrap();
        t.run_some(&all, 20).unwrap();
        t.resume_all().unwrap();
        if stops % 5 == 0 {
            t.hold().unwrap();
            let at = t.syscall("mmap", linux().mmap, map_args(), None).unwrap();
            t.syscall("munmap", linux().munmap, [at, 8192, 0, 0, 0, 0], None).unwrap();
            t.release().unwrap();
        }
        stops += 1;
    }
    sender.join().unwrap();
    v.until("all signals", |v| v.word(v.at[0]) >= N);
    t.stop_all().unwrap();
    t.resume_all().unwrap();
    assert_eq!((v.word(v.at[0]), v.word(v.at[1])), (N, N * (N - 1) / 2));
}

#[test]
fn our_priority_is_what_it_was() {
    // SAFETY: numbers only; 0 is this thread.
    let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let before = nice();
    let v = Victim::start("busy", &["main"]);
    let mut t = v.open();
    for _ in 0..3 {
        t.stop_all().unwrap();
    }
    t.resume_all().unwrap();
    assert_eq!(nice(), before);
    t.stop_all().unwrap();
    t.stop_all().unwrap();
    drop(t);
    assert_eq!(nice(), before);
}

#[test]
fn stopped_jobs_stay_stopped() {
    let mut v = Victim::start("busy", &["main", "3"]);
    let kill = |sig: &str| assert!(Command::new("kill").args([sig, &v.pid().to_string()]).status().unwrap().success());
    kill("-STOP");
    v.until("stopped", |v| v.states().iter().all(|s| s.starts_with('T')));
    let mut t = v.open();
    for _ in 0..10 {
        assert_eq!(t.stop_all().unwrap().len(), 5);
        t.resume_all().unwrap();
        v.until("stopped again", |v| v.states().iter().all(|s| s.starts_with('T')));
    }
    let before = v.word(v.at[0]);
    t.hold().unwrap();
    let at = t.syscall("mmap", linux().mmap, map_args(), None).unwrap();
    t.syscall("munmap", linux().munmap, [at, 8192, 0, 0, 0, 0], None).unwrap();
    t.release().unwrap();
    v.until("stopped again", |v| v.states().iter().all(|s| s.starts_with('T')));
    assert_eq!(v.word(v.at[0]), before);
    // Stopped while we have it, continued while we have it.
    t.stop_all().unwrap();
    kill("-CONT");
    t.resume_all().unwrap();
    v.until_rounds(2);
    t.stop_all().unwrap();
    kill("-STOP");
    t.resume_all().unwrap();
    v.until("stopped", |v| v.states().iter().all(|s| s.starts_with('T')));
    kill("-CONT");
    v.until_rounds(2);
    drop(t);
    v.say("hello\n");
    assert_eq!(v.line(), "hello");
}

#[test]
fn all_threads_are_stopped_while_threads_come_and_go() {
    let v = Victim::start("odd", &["churn"]);
    let mut t = v.open();
    for _ in 0..200 {
        let threads = t.stop_all().unwrap();
        let before = v.word(v.at[0]);
        let states = v.states();
        assert_eq!(states.iter().filter(|s| s.starts_with('t')).count(), threads.len());
        assert!(states.iter().all(|s| s.starts_with('t') || s.starts_with('Z') || s.starts_with('X')), "{states:?}");
        for thread in &threads {
            assert_ne!(t.registers(*thread).unwrap().get(ARCH.registers().pc), 0);
        }
        assert_eq!(v.word(v.at[0]), before);
        t.resume_all().unwrap();
        assert_eq!(rule(t.registers(threads[0])), "system");
    }
    v.until_rounds(100);
}

#[test]
fn one_thread_runs_while_the_others_stand() {
    let mut v = Victim::start("busy", &["main", "2"]);
    let mut t = v.open();
    let main = ThreadId(v.pid() as u64);
    let all = t.stop_all().unwrap();
    let rounds = v.word(v.at[0]);
    while v.word(v.at[0]) < rounds + 3 {
        t.run_some(&[main], 200).unwrap();
        assert!(v.states().iter().all(|s| s.starts_with('t')));
    }
    // Those in a system call are none the worse for it.
    t.run_some(&all, 200).unwrap();
    assert_eq!(t.stop_all().unwrap(), all);
    t.resume_all().unwrap();
    v.until_rounds(2);
    v.say("hello\n");
    assert_eq!(v.line(), "hello");
}

#[test]
fn programs_that_exec_are_left_alone() {
    let v = Victim::start("odd", &["exec"]);
    let mut errors = 0;
    for _ in 0..300 {
        let Ok(mut t) = PtraceTarget::open(v.pid(), &ARCH) else { continue };
        match t.stop_all() {
            Ok(_) => t.resume_all().unwrap(),
            Err(e) => {
                errors += 1;
                assert!(matches!(e.rule(), "exec" | "no-such-target" | "target-timeout"), "{e}");
            }
        }
    }
    println!("{errors} of 300 met an exec");
    v.until("running", |v| !v.states().iter().any(|s| s.starts_with('t')));
}

#[test]
fn main_thread_may_have_ended() {
    let v = Victim::start("odd", &["leaderless"]);
    v.until("leader is gone", |v| v.status("State").starts_with('Z'));
    let e = PtraceTarget::open(v.pid(), &ARCH).err().unwrap();
    assert_eq!(e.rule(), "zombie");
    assert!(e.to_string().contains("lost its main thread"), "{e}");
}

#[test]
fn main_thread_ends_after_opening() {
    let mut v = Victim::start("busy", &["read", "2"]);
    let mut t = v.open();
    for _ in 0..5 {
        assert_eq!(t.stop_all().unwrap().len(), 4);
        t.resume_all().unwrap();
    }
    t.stop_all().unwrap();
    v.child.kill().unwrap();
    let _ = t.resume_all();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(v.child.wait().unwrap().signal(), Some(libc::SIGKILL), "the parent still gets the status");
    assert_eq!(rule(t.stop_all()), "no-such-target");
    assert_eq!(rule(t.hold()), "no-such-target");
}

#[test]
fn a_thread_that_cannot_stop_is_a_timeout() {
    let mut v = Victim::start("odd", &["vfork"]);
    v.until("in vfork", |v| v.status("State").starts_with('D') || v.status("State").starts_with('S'));
    let mut t = v.open();
    t.set_stop_deadline(Duration::from_millis(200));
    let e = t.stop_all();
    if let Err(e) = &e {
        assert!(matches!(e, TargetError::Timeout { thread, .. } if thread.0 == v.pid() as u64), "{e}");
    }
    v.say("\n");
    drop(t);
    v.until_rounds(2);
    // Whatever was left pending is gone.
    let mut t = v.open();
    t.stop_all().unwrap();
    t.resume_all().unwrap();
    v.until_rounds(2);
}

#[test]
fn dropping_lets_everything_go() {
    let mut v = Victim::start("busy", &["read", "8"]);
    let mut t = v.open();
    t.stop_all().unwrap();
    drop(t);
    v.until_rounds(2);
    let mut t = v.open();
    t.hold().unwrap();
    t.syscall("mmap", linux().mmap, map_args(), None).unwrap();
    drop(t);
    v.until_rounds(2);
    v.say("still here\n");
    assert_eq!(v.line(), "still here");
    assert_eq!(v.status("TracerPid"), "0");
}

// Calls.

#[test]
fn injected_calls_leave_no_trace() {
    for place in ["main", "read", "epoll", "alone"] {
        let mut v = Victim::start("busy", &[place]);
        let mut t = v.open();
        let nr = match place {
            "read" => libc::SYS_read,
            "epoll" => libc::SYS_epoll_wait,
            _ => libc::SYS_clock_nanosleep,
        };
        if place != "main" {
            v.until_in(nr);
        }
        let masks = (v.status("SigBlk"), v.status("SigCgt"), v.status("SigIgn"));
        let mut held = 0;
        for round in 0..30 {
            if place != "main" {
                v.until_in(nr);
            }
            t.stop_all().unwrap();
            let main = ThreadId(v.pid() as u64);
            let before = t.registers(main).unwrap();
            let keep = round % 2 == 1;
            if !keep {
                t.resume_all().unwrap();
            }
            // Another one is chosen where the main thread happens to wait for the processor or for memory.
            if t.hold().unwrap() != main {
                t.release().unwrap();
                t.resume_all().unwrap();
                continue;
            }
            held += 1;
            let at = t.syscall("mmap", linux().mmap, map_args(), None).unwrap();
            let maps = Mappings::mappings(&mut t).unwrap();
            assert!(maps.iter().any(|m| m.contains(RunAddr(at)) && m.perm == Perm::RX), "{at:#x}");
            t.write(RunAddr(at), &[1, 2, 3]).unwrap();
            let fd =
                t.syscall("memfd_create", linux().memfd_create, [0, 1, 0, 0, 0, 0], Some((0, b"a name\0"))).unwrap();
            let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", v.pid())).unwrap();
            assert_eq!(link.to_str().unwrap(), "/memfd:a name (deleted)");
            assert_eq!(t.syscall("ftruncate", linux().ftruncate, [fd, 4096, 0, 0, 0, 0], None).unwrap(), 0);
            assert_eq!(t.syscall("close", linux().close, [fd, 0, 0, 0, 0, 0], None).unwrap(), 0);
            let e = t.syscall("munmap", linux().munmap, [at + 1, 8192, 0, 0, 0, 0], None).unwrap_err();
            assert!(matches!(e, TargetError::Injected { call: "munmap", errno: 22 }), "{e}");
            t.syscall("munmap", linux().munmap, [at, 8192, 0, 0, 0, 0], None).unwrap();
            t.release().unwrap();
            if keep {
                assert_eq!(t.registers(main).unwrap(), before, "{place}");
                t.resume_all().unwrap();
            } else if place != "main" {
                v.until_in(nr);
                t.stop_all().unwrap();
                let mut after = t.registers(main).unwrap();
                if place == "alone" {
                    // By the restart's number the kernel knows how much of the time is left.
                    let nr = ARCH.registers().restart_nr.unwrap();
                    assert_eq!(after.get(nr) as i64, libc::SYS_restart_syscall);
                    after.set(nr, before.get(nr));
                }
                assert_eq!(after, before, "{place}");
                t.resume_all().unwrap();
            }
        }
        assert!(held > 3, "{place}: the main thread was held in {held} rounds");
        assert_eq!((v.status("SigBlk"), v.status("SigCgt"), v.status("SigIgn")), masks);
        drop(t);
        assert_eq!(v.word(v.at[6]), 0, "EINTR");
        if place == "alone" {
            v.until_in(nr);
            continue;
        }
        v.until_rounds(2);
        v.say("hello\n");
        assert_eq!(v.line(), "hello", "{place}");
    }
}

#[test]
fn a_sleeping_thread_is_second_choice() {
    let v = Victim::start("busy", &["sleep"]);
    v.until_in(libc::SYS_clock_nanosleep);
    let mut t = v.open();
    assert_ne!(t.hold().unwrap().0, v.pid() as u64);
    t.release().unwrap();
    v.until_in(libc::SYS_clock_nanosleep);
}

#[test]
fn functions_of_the_target_can_be_called() {
    for place in ["main", "read"] {
        let mut v = Victim::start("busy", &[place]);
        let mut t = v.open();
        let [_, trap, add, segv, slow, vectors, ..] = v.at[..] else { panic!() };
        let trap = RunAddr(trap);
        for _ in 0..10 {
            t.hold().unwrap();
            assert_eq!(t.call(RunAddr(add), &[20, 21], trap).unwrap(), 42);
            assert_eq!(t.call(RunAddr(vectors), &[], trap).unwrap(), vectors);
            let e = t.call(RunAddr(segv), &[], trap).unwrap_err();
            assert!(e.to_string().contains("signal 11"), "{e}");
            assert_eq!(t.call(RunAddr(add), &[1, 2], trap).unwrap(), 4);
            assert!(t.syscall("munmap", linux().munmap, [4096, 4096, 0, 0, 0, 0], None).is_ok());
            t.release().unwrap();
            v.until_rounds(1);
        }
        // Longer than anyone wants to step.
        t.hold().unwrap();
        assert_eq!(t.call(RunAddr(slow), &[1_000_000], trap).unwrap(), 499_999_500_000);
        assert_eq!(t.call(RunAddr(add), &[1, 2], trap).unwrap(), 4);
        t.release().unwrap();
        v.until_rounds(2);
        drop(t);
        v.say("hello\n");
        assert_eq!(v.line(), "hello");
    }
}

#[test]
fn a_function_that_never_ends_is_taken_back() {
    let v = Victim::start("busy", &["read"]);
    let mut t = v.open();
    t.hold().unwrap();
    let e = t.call(RunAddr(v.at[4]), &[i64::MAX as u64], RunAddr(v.at[1]));
    assert_eq!(rule(e), "target-timeout");
    t.release().unwrap();
    drop(t);
    v.until_rounds(2);
    v.until_in(libc::SYS_read);
}

#[test]
fn calls_need_a_held_thread() {
    let v = Victim::start("busy", &["main"]);
    let mut t = v.open();
    assert_eq!(rule(t.syscall("mmap", linux().mmap, map_args(), None)), "transport-lacks");
    t.release().unwrap();
    assert_eq!(t.hold().unwrap(), t.hold().unwrap());
    t.release().unwrap();
    v.until_rounds(2);
}

#[test]
fn seccomp_filter_never_sees_the_calls() {
    let v = Victim::start("odd", &["seccomp"]);
    v.until("filter", |v| v.status("Seccomp") == "2");
    let mut t = v.open();
    t.stop_all().unwrap();
    t.resume_all().unwrap();
    match t.hold() {
        Ok(_) => {
            let at = t.syscall("mmap", linux().mmap, map_args(), None).unwrap();
            assert_ne!(at, 0);
            t.release().unwrap();
        }
        Err(e) => assert_eq!(e.rule(), "seccomp"),
    }
    drop(t);
    v.until_rounds(2);
}

/// The tool that [`victims_outlive_the_tool`] ends: started by that test only.
#[test]
#[ignore = "part of victims_outlive_the_tool"]
fn tool_that_is_killed() {
    let Ok(text) = std::env::var("TIGERFIX_TEST_VICTIM") else { return };
    let n: Vec<u64> = text.split(' ').map(|w| w.parse().unwrap()).collect();
    let mut t = PtraceTarget::open(n[0] as i32, &ARCH).unwrap();
    println!("at work");
    for round in 0.. {
        t.hold().unwrap();
        let at = t.syscall("mmap", linux().mmap, map_args(), None).unwrap();
        if round % 4 == 0 {
            // Functions that return addresses: see the documentation of injected calls.
            assert_eq!(t.call(RunAddr(n[2]), &[], RunAddr(n[1])).unwrap(), n[4]);
            assert_eq!(t.call(RunAddr(n[3]), &[], RunAddr(n[1])).unwrap(), n[3]);
        }
        t.syscall("munmap", linux().munmap, [at, 8192, 0, 0, 0, 0], None).unwrap();
        t.release().unwrap();
        if round % 8 == 0 {
            t.stop_all().unwrap();
            t.resume_all().unwrap();
        }
    }
}

#[test]
fn victims_outlive_the_tool() {
    // xorshift, from the time: the moments should differ from run to run.
    let mut random = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    let seed = random;
    for (place, times) in [("main", 50), ("read", 50), ("epoll", 25), ("sleep", 25)] {
        let mut v = Victim::start("busy", &[place, "2"]);
        v.until_rounds(1);
        match place {
            "read" => v.until_in(libc::SYS_read),
            "epoll" => v.until_in(libc::SYS_epoll_wait),
            "sleep" => v.until_in(libc::SYS_clock_nanosleep),
            _ => {}
        }
        let masks = (v.status("SigBlk"), v.status("SigCgt"));
        for n in 0..times {
            let mut tool = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tool_that_is_killed", "--ignored", "--nocapture"])
                .env("TIGERFIX_TEST_VICTIM", format!("{} {} {} {} {}", v.pid(), v.at[1], v.at[7], v.at[5], v.at[2]))
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap();
            let mut out = BufReader::new(tool.stdout.take().unwrap());
            let mut line = String::new();
            while !line.contains("at work") {
                line.clear();
                assert_ne!(out.read_line(&mut line).unwrap(), 0, "the tool ended by itself (seed {seed})");
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let moment = Instant::now() + Duration::from_micros(random % 4000);
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            assert!(tool.try_wait().unwrap().is_none(), "the tool ended by itself (seed {seed})");
            tool.kill().unwrap();
            tool.wait().unwrap();
            let what = format!("{place} {n} seed {seed}");
            v.until(&what, |v| v.states().iter().all(|s| !s.starts_with('t')));
            if let Some(status) = v.child.try_wait().unwrap() {
                panic!("{what}: {status} {}", v.line());
            }
            v.until_rounds(2);
            v.say("hello\n");
            assert_eq!(v.line(), "hello", "{what}");
            v.until(&what, |v| (v.status("SigBlk"), v.status("SigCgt")) == masks);
        }
        // Killed in the microseconds between the stop and the look at it, which this test aims at.
        println!("{place}: {} of {times} interrupted epoll_wait", v.word(v.at[6]));
    }
}
