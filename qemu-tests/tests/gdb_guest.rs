//! From this machine, through a gdbserver inside a Linux guest: tfix patches processes there.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use qemu_tests::cases::{A1, Case};
use qemu_tests::on_guests::{
    PIE, STATIC, all_cases, calls_in_a_loop, calls_with_a_timeout, calls_with_an_event, threads,
};
use qemu_tests::{DEADLINE, Guest, GuestGdbserver, Lab, tfix};
use tigerfix::gdb::packet::{Decoder, Event, frame};

/// Does it with a gdbserver of its own in the guest.
fn through(guest: &str, test: impl FnOnce(&dyn Fn() -> Lab)) {
    let guest = Guest::bare(guest);
    let server = GuestGdbserver::start(&guest);
    test(&|| Lab::for_guest(&guest).behind(server.address()));
}

macro_rules! on {
    ($($guest:ident)*) => {
        $(mod $guest {
            use super::*;
            const GUEST: &str = stringify!($guest);

            #[test]
            fn a_cases_pie_o0() {
                through(GUEST, |lab| all_cases(lab, "-O0", PIE));
            }
            #[test]
            fn a_cases_static_o2() {
                through(GUEST, |lab| all_cases(lab, "-O2", STATIC));
            }
            #[test]
            fn calls_that_wait_for_an_event() {
                through(GUEST, |lab| calls_with_an_event(lab));
            }
            #[test]
            fn calls_that_wait_for_a_time() {
                through(GUEST, |lab| calls_with_a_timeout(lab));
            }
            #[test]
            fn calls_that_follow_each_other() {
                through(GUEST, |lab| calls_in_a_loop(&lab(), 1000, 8));
            }
            #[test]
            fn threads_that_have_to_be_led_out() {
                through(GUEST, |lab| threads(&lab(), 0, 2));
            }
            #[test]
            fn eight_busy_threads() {
                through(GUEST, |lab| threads(&lab(), 50, 4));
            }
        })*
    };
}

on!(mipsel mips mips64el aarch64);

/// On a line that nobody closes, a gdbserver goes on where the last client left it: waiting for an acknowledgement, or with the
/// process in its hands.
#[test]
fn after_a_client_that_was_cut_off() {
    let guest = Guest::bare("mipsel");
    let server = GuestGdbserver::start(&guest);
    let lab = Lab::for_guest(&guest).behind(server.address());
    let program = lab.program("a1_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let mut victim = lab.start::<&str>(&program, &[]);
    let attach = format!("vAttach;{:x}", victim.pid());
    for (packets, held) in [(&["qC"][..], false), (&["!", &attach], true)] {
        let mut line = UnixStream::connect(server.address().trim_start_matches("unix:")).expect("the line");
        line.set_read_timeout(Some(DEADLINE)).expect("a socket");
        for (n, packet) in packets.iter().enumerate() {
            line.write_all(&frame(packet.as_bytes())).expect("the server listens");
            let mut decoder = Decoder::default();
            let mut byte = [0];
            loop {
                line.read_exact(&mut byte).expect("the server answers");
                if let Some(Event::Packet(_)) = decoder.push(byte[0]) {
                    break;
                }
            }
            if n + 1 < packets.len() {
                line.write_all(b"+").expect("the server listens");
            }
        }
        drop(line);
        if held {
            // Whoever comes without a process's number gets the one that is there, and leaves it.
            tfix!["list", "--remote", server.address()].done();
        }
        victim.fix(&package, &[]).done();
        A1::shows_new(&mut victim);
        victim.revert(&[]).done();
        A1::shows_old(&mut victim);
        victim.assert_free();
    }
}
