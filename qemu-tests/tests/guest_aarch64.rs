//! tfix on AArch64 Linux: it runs in a guest and patches processes there, through ptrace. On a small processor, and on one that
//! signs return addresses and guards pages.

use qemu_tests::{Guest, Lab, in_guests};

in_guests!(aarch64 aarch64_max);

#[test]
fn debians_zlib_in_a_running_python() {
    qemu_tests::inside::zlib("aarch64");
}

/// Called through a pointer, the function begins with `paciasp`: neither may that be executed twice, nor may the pad be missing.
#[test]
fn guarded_pages_and_signed_return_addresses() {
    let guest = Guest::get("aarch64_max");
    let lab = Lab::for_guest(&guest);
    for opt in ["-O0", "-O2"] {
        let program = lab.program("guarded_program_aarch64.c", &[opt, "-fno-ipa-ra"]);
        let patch = lab.object("guarded_patch_aarch64.c", &["-mbranch-protection=standard", opt]);
        let package = lab.package(&program, &patch);
        let mut victim = lab.start::<&str>(&program, &[]);
        victim.settles("the old function", 5, |l| l == "b");
        let map = guest.read(&format!("/proc/{}/smaps", victim.pid())).expect("it runs");
        let flags = String::from_utf8_lossy(&map).lines().any(|l| l.starts_with("VmFlags:") && l.ends_with(" bt "));
        assert!(flags, "the kernel guards its pages:\n{}", String::from_utf8_lossy(&map));
        let before = victim.snapshot();
        for _ in 0..3 {
            victim.fix(&package, &[]).done();
            victim.settles("the new function", 5, |l| l == "q");
            victim.revert(&[]).done();
            victim.settles("the old function", 5, |l| l == "b");
            before.assert_same_code(&victim.snapshot());
        }
    }
}

/// The C library chooses some of its functions when they are first called: tfix lets it choose.
#[test]
fn functions_that_are_chosen_by_a_resolver() {
    let guest = Guest::get("aarch64_max");
    let lab = Lab::for_guest(&guest);
    let program = lab.program("a1_program.c", &["-O2", "-fPIE", "-pie"]);
    let text = "#include <string.h>\n\
                #include <tigerfix/dev.h>\n\
                static char text[64] = \"long enough for vectors, twice or so\";\n\
                FIXFUN(p)\n\
                int p(void) { volatile int c = 'x'; char *volatile t = text; return memchr(t, c, sizeof text) ? 7 : 2; }\n";
    let package = lab.package(&program, &lab.patch_text("patch.c", text, &["-O2"]));
    let mut victim = lab.start::<&str>(&program, &[]);
    victim.settles("the old p", 5, |l| l.ends_with(" p 1"));
    let before = victim.snapshot();
    victim.fix(&package, &[]).done();
    victim.settles("the new p", 5, |l| l.ends_with(" p 2"));
    victim.revert(&[]).done();
    victim.settles("the old p", 5, |l| l.ends_with(" p 1"));
    before.assert_same_code(&victim.snapshot());
}
