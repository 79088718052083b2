//! From this machine, through a gdbserver inside a MIPS Linux guest: tfix patches processes there.

use qemu_tests::on_guests::{PIE, STATIC, all_cases, calls_with_a_timeout, calls_with_an_event, threads};
use qemu_tests::{Guest, GuestGdbserver, Lab};

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
            fn a_cases_pie_o2() {
                through(GUEST, |lab| all_cases(lab, "-O2", PIE));
            }
            #[test]
            fn a_cases_static_o0() {
                through(GUEST, |lab| all_cases(lab, "-O0", STATIC));
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

on!(mipsel mips mips64el);
