//! tfix on MIPS Linux: it runs in a guest and patches processes there, through ptrace.

use qemu_tests::in_guests;

in_guests!(mipsel mips mips64el);

#[test]
fn debians_zlib_in_a_running_python() {
    qemu_tests::inside::zlib("mipsel");
}
