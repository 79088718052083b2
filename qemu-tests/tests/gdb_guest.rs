//! From this machine, through a gdbserver inside a MIPS Linux guest: tfix patches processes there.

use qemu_tests::cases::{A1, A2, A3, A4, A5, Case, build, live};
use qemu_tests::{Guest, GuestGdbserver, Lab};

/// Position-independent and dynamic, as compilers make programs by default.
const PIE: &[&str] = &["-fPIE", "-pie"];
/// Static code that is called by its address alone.
const PLAIN: &[&str] = &["-mno-abicalls", "-fno-pic", "-fno-pie", "-no-pie", "-static"];

fn case<C: Case>(server: &GuestGdbserver, guest: &str, opt: &str, link: &[&str]) {
    let lab = Lab::for_guest(&Guest::get(guest)).behind(server.address());
    let plain: &[&str] = if link == PLAIN { &["-mno-abicalls", "-fno-pic"] } else { &[] };
    let program = build::<C>(&lab, opt, link, &[]).0;
    let patch = lab.object(&format!("{}_patch.c", C::STEM), &[&[opt, "-fPIC"], plain].concat());
    let package = lab.package(&program, &patch);
    let mut victim = lab.start::<&str>(&program, &[]);
    C::shows_old(&mut victim);
    live::<C>(victim, &package);
}

fn all_cases(guest: &str, opt: &str, link: &[&str]) {
    let running = Guest::get(guest);
    let server = GuestGdbserver::start(&running);
    case::<A1>(&server, guest, opt, link);
    case::<A2>(&server, guest, opt, link);
    case::<A3>(&server, guest, opt, link);
    case::<A5>(&server, guest, opt, link);
    if opt == "-O0" {
        // At higher levels the compiler may inline the function, and gen refuses: a_cases.rs.
        case::<A4>(&server, guest, opt, link);
    }
}

#[test]
fn a_cases_pie_o0() {
    all_cases("mipsel", "-O0", PIE);
}
#[test]
fn a_cases_plain_o2() {
    all_cases("mipsel", "-O2", PLAIN);
}
