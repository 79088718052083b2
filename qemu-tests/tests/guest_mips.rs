//! tfix on MIPS Linux: it runs in a guest and patches processes there, through ptrace.

use qemu_tests::in_guests;

/// Static code that is called by its address alone.
const PLAIN: (&[&str], &[&str]) =
    (&["-mno-abicalls", "-fno-pic", "-fno-pie", "-no-pie", "-static"], &["-mno-abicalls", "-fno-pic"]);

in_guests!(mipsel mips mips64el);

#[test]
fn debians_zlib_in_a_running_python() {
    qemu_tests::inside::zlib("mipsel");
}
