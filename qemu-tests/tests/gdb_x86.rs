//! The gdb remote transport on x86-64: processes behind gdbserver, and programs in user-mode emulation.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use qemu_tests::{Emulated, Gdbserver, Lab, Link, Victim, emulated, open, tfix};
use tigerfix::gdb::packet::{Decoder, Event, frame};
use tigerfix::{SystemClock, session};

fn build(lab: &Lab, flags: &[&str]) -> (PathBuf, PathBuf) {
    let program = lab.program("a1_program.c", flags);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    (program, package)
}

fn old(victim: &mut Victim) {
    victim.settles("p to be 1", 5, |l| l.ends_with(" p 1"));
}

fn new(victim: &mut Victim) {
    victim.settles("p to be 2", 5, |l| l.ends_with(" p 2"));
}

/// A gdbserver that is told by tfix which process to take, and stays for the next one.
#[test]
fn process_behind_a_gdbserver() {
    for link in Link::ALL {
        for opt in ["-O0", "-O2"] {
            let lab = Lab::new();
            let (program, package) = build(&lab, &[link.flags(), &[opt]].concat());
            let mut victim = Victim::start(&program);
            let server = Gdbserver::multi();
            let (at, pid) = (server.address(), victim.pid_text());
            let before = victim.snapshot();
            old(&mut victim);

            let plan = tfix!["fix", "--remote", &at, "--pid", &pid, &package, "--dry-run"];
            assert!(plan.done().stdout.contains("plan: apply `fix`"), "{plan}");
            before.assert_untouched(&victim.snapshot());
            victim.assert_free();

            let done = tfix!["fix", "--remote", &at, "--pid", &pid, &package, "--json"];
            assert_eq!(done.done().json()["pid"], victim.pid());
            new(&mut victim);
            victim.assert_free();
            // The record is the same for every transport.
            assert_eq!(victim.patches_in_state("applied"), ["fix"]);
            let list = tfix!["list", "--remote", &at, "--pid", &pid, "--json"];
            assert_eq!(list.done().json()["processes"][0]["patches"][0]["state"], "applied");
            tfix!["fix", "--remote", &at, "--pid", &pid, &package].refused(&[]).by_rule("already-applied");

            tfix!["revert", "--remote", &at, "--pid", &pid].done();
            old(&mut victim);
            victim.assert_free();
            before.assert_same_code(&victim.snapshot());
            tfix!["revert", "--remote", &at, "--pid", &pid, "fix"].refused(&[]).by_rule("not-applied");
        }
    }
}

/// One connection for several changes, with the target running in between.
#[test]
fn one_connection_to_a_gdbserver_that_is_attached() {
    let lab = Lab::new();
    let (program, package) = build(&lab, &["-O2"]);
    let mut command = Command::new(&program);
    // gdbserver interrupts the whole process group.
    command.process_group(0);
    let mut victim = Victim::spawn(command);
    let before = victim.snapshot();
    let server = Gdbserver::attached(victim.pid());
    let (mut target, back_end, package) = open(&server.address(), &program, &package);
    for _ in 0..3 {
        session::apply(&mut target, back_end, &package, &session::Options::default(), &mut SystemClock::new())
            .expect("applied");
        new(&mut victim);
        assert_eq!(session::list(&mut target).expect("listed").len(), 1);
        target.go().expect("it runs on");
        session::revert(&mut target, back_end, None, 10_000, &mut SystemClock::new()).expect("reverted");
        old(&mut victim);
    }
    drop(target);
    victim.still_prints();
    victim.assert_free();
    before.assert_same_code(&victim.snapshot());
}

/// Threads that are busy in the function, behind a gdbserver.
#[test]
fn threads_behind_a_gdbserver() {
    let lab = Lab::new();
    let program = lab.program("threads_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("threads_patch.c", &["-O2"]));
    let page = lab.write("shared", [0; 4096]);
    // gdbserver sends interrupts to the group that the process leads, as one may be needed where threads are slow.
    let mut command = Command::new(&program);
    command.arg(&page).process_group(0);
    let mut victim = Victim::spawn(command);
    victim.wait_line("alive");
    let before = victim.snapshot();
    let server = Gdbserver::multi();
    let (at, pid) = (server.address(), victim.pid_text());
    for _ in 0..3 {
        tfix!["fix", "--remote", &at, "--pid", &pid, &package, "--timeout", "60"].done();
        victim.still_prints();
        tfix!["revert", "--remote", &at, "--pid", &pid, "--timeout", "60"].done();
        victim.still_prints();
    }
    victim.assert_free();
    before.assert_same_code(&victim.snapshot());
}

/// A thread that waits in a system call does not notice.
#[test]
fn waiting_calls_go_on_behind_a_gdbserver() {
    for (kind, ready) in [("read", "waiting"), ("epoll", "waiting"), ("semop", "waiting"), ("futex", "waiting")] {
        let lab = Lab::new();
        let program = lab.program("blocked_program.c", &["-O2"]);
        let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
        let socket = lab.path("socket");
        let mut victim = Victim::start_with(&program, &[kind.as_ref(), socket.as_os_str()]);
        victim.wait_line(ready);
        victim.wait_blocked();
        let server = Gdbserver::multi();
        let (at, pid) = (server.address(), victim.pid_text());
        tfix!["list", "--remote", &at, "--pid", &pid].done();
        tfix!["fix", "--remote", &at, "--pid", &pid, &package].done();
        tfix!["revert", "--remote", &at, "--pid", &pid].done();
        tfix!["fix", "--remote", &at, "--pid", &pid, &package].done();
        victim.wait_blocked();
        victim.send("x");
        let line = victim.line();
        assert!(line.starts_with(&format!("{kind} returned ")) && line.contains(" errno 0 "), "{line}");
        victim.settles("the new p", 5, |l| l == "p 2");
    }
}

/// Functions that are called in the target to learn an address.
#[test]
fn resolvers_are_called_behind_stubs() {
    let lab = Lab::new();
    let program = lab.program("imports_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("imports_ifunc.c", &["-O2", "-fno-builtin"]));
    let mut victim = Victim::start(&program);
    let server = Gdbserver::multi();
    tfix!["fix", "--remote", server.address(), "--pid", victim.pid_text(), &package].done();
    victim.settles("strlen and the byte that memmove moved", 10, |l| l == "work 516");
    // Before its first instruction: tfix lets the loader do its work first.
    let (mut victim, at) = emulated(&lab, "qemu-x86_64", &[], &program, &[]);
    tfix!["fix", "--remote", &at, &package].done();
    victim.settles("strlen and the byte that memmove moved", 10, |l| l == "work 516");
}

/// Started under the emulator, stopped, patched, seen to behave anew, stopped, reverted, seen to behave as of old: all on
/// the one connection that its stub allows.
#[test]
fn program_in_user_mode_emulation() {
    for link in Link::ALL {
        for opt in ["-O0", "-O2"] {
            let lab = Lab::new();
            let (program, package) = build(&lab, &[link.flags(), &[opt]].concat());
            Emulated::start(&lab, "qemu-x86_64", &[], &program, &[], &package).live(old, new);
        }
    }
}

/// The command line can patch a program in emulation once, before it starts.
#[test]
fn program_in_user_mode_emulation_from_the_command_line() {
    let lab = Lab::new();
    let (program, package) = build(&lab, &["-O2"]);
    let (mut victim, at) = emulated(&lab, "qemu-x86_64", &[], &program, &[]);
    tfix!["fix", "--remote", &at, &package].done();
    new(&mut victim);
    assert!(victim.lines_so_far().iter().all(|l| !l.ends_with(" p 1")), "patched before the first call");
}

#[test]
fn threads_in_user_mode_emulation_are_refused() {
    let lab = Lab::new();
    let program = lab.program("threads_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("threads_patch.c", &["-O2"]));
    let page = lab.write("shared", [0; 4096]);
    let page = page.to_str().expect("UTF-8");
    let mut emulated = Emulated::start(&lab, "qemu-x86_64", &[], &program, &[page], &package);
    emulated.go();
    emulated.victim.wait_line("alive");
    emulated.stop();
    let e = emulated.try_apply().expect_err("several threads");
    assert_eq!(tigerfix::error::Explain::rule(&*e), "remote-threads", "{e}");
}

#[test]
fn addresses_at_which_no_stub_answers() {
    let lab = Lab::new();
    let (_, package) = build(&lab, &["-O2"]);
    let fix = |at: &str| tfix!["fix", "--remote", at, &package];
    for bad in ["nowhere", "host:", "unix:", "/dev/ttyS0", "/dev/ttyS0,17"] {
        fix(bad).bad_input(&["stub"]).by_rule("remote-address");
    }
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    fix(&format!("127.0.0.1:{port}")).bad_input(&["refused"]).by_rule("remote-connect");
    let missing = lab.path("no-such-socket");
    fix(&format!("unix:{}", missing.display())).bad_input(&["no such file"]).by_rule("remote-connect");
    // Somebody answers, but not as a stub does.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("bound").to_string();
    let silent = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("tfix connects");
        // Held until tfix has left.
        let _ = std::io::copy(&mut &stream, &mut std::io::sink());
    });
    fix(&at).refused(&["qSupported", "within"]).by_rule("remote-silent");
    silent.join().expect("no panic");
    // A stub without a process, and a process that there is not.
    let server = Gdbserver::multi();
    fix(&server.address()).refused(&["--pid"]).by_rule("remote-lacks");
    let e = tfix!["fix", "--remote", server.address(), "--pid", "999999999", &package];
    e.refused(&["vAttach"]).by_rule("remote-refused");
}

/// A line to `server` that keeps requests for breakpoints from it, as some servers know none.
fn without_breakpoints(server: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("bound").to_string();
    let server = server.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let upstream = TcpStream::connect(&server).expect("the server listens");
            let (mut answers, mut back) =
                (upstream.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            let (mut upstream, mut client) = (upstream, client);
            let mut decoder = Decoder::default();
            let mut byte = [0u8];
            while client.read(&mut byte).is_ok_and(|n| n == 1) {
                let done = match decoder.push(byte[0]) {
                    Some(Event::Packet(p)) if p.starts_with(b"Z0") => client.write_all(&frame(b"")),
                    Some(Event::Packet(p)) => upstream.write_all(&frame(&p)),
                    Some(Event::Ack) => upstream.write_all(b"+"),
                    _ if byte[0] == 3 => upstream.write_all(&[3]),
                    _ => Ok(()),
                };
                if done.is_err() {
                    break;
                }
            }
            // The server notices.
            let _ = upstream.shutdown(std::net::Shutdown::Both);
        }
    });
    at
}

/// Then tfix writes the instruction itself, for the moments of its calls.
#[test]
fn a_server_without_breakpoints() {
    let lab = Lab::new();
    let program = lab.program("imports_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("imports_ifunc.c", &["-O2", "-fno-builtin"]));
    let mut victim = Victim::start(&program);
    let before = victim.snapshot();
    let server = Gdbserver::multi();
    let (at, pid) = (without_breakpoints(&server.address()), victim.pid_text());
    tfix!["fix", "--remote", &at, "--pid", &pid, &package].done();
    victim.settles("strlen and the byte that memmove moved", 10, |l| l == "work 516");
    tfix!["revert", "--remote", &at, "--pid", &pid].done();
    victim.settles("the old work", 3, |l| l == "work 1");
    // Of those instructions none is left anywhere.
    before.assert_same_code(&victim.snapshot());
}

/// The package's and the program's architecture, and the program itself.
#[test]
fn the_wrong_process_behind_a_gdbserver() {
    let lab = Lab::new();
    let (_, package) = build(&lab, &["-O2"]);
    let other = lab.program("a2_program.c", &["-O2"]);
    let mut victim = Victim::start(&other);
    let before = victim.snapshot();
    let server = Gdbserver::multi();
    let fix = tfix!["fix", "--remote", server.address(), "--pid", victim.pid_text(), &package];
    fix.refused(&["a1_program"]).by_rule("program-not-loaded");
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
    let area =
        tfix!["fix", "--remote", server.address(), "--pid", victim.pid_text(), "--area", "0x1000:0x1000", &package];
    area.refused(&["--area"]).by_rule("remote-area");
    tfix!["fix", "--remote", server.address(), "--area", "here", &package].bad_input(&["here"]).by_rule("remote-area");
}
