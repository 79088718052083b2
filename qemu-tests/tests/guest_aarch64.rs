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

/// The image of a patch is guarded as the program is, if all of its code has landing pads.
#[test]
fn images_are_guarded_like_the_program() {
    let guest = Guest::get("aarch64_max");
    let lab = Lab::for_guest(&guest);
    let program = lab.program("guarded_program_aarch64.c", &["-O2", "-fno-ipa-ra"]);
    for (name, protection, guarded) in [("with", "standard", true), ("bti", "bti", true), ("without", "none", false)] {
        let flag = format!("-mbranch-protection={protection}");
        let patch = lab.object("guarded_patch_aarch64.c", &[&flag, "-O2"]);
        let (outcome, package) = lab.generate_to(&format!("{name}.tfp"), &program, &[&patch], &[]);
        assert_eq!(outcome.done().stderr.contains("no landing pads"), !guarded, "{outcome}");
        let mut victim = lab.start::<&str>(&program, &[]);
        victim.settles("the old function", 5, |l| l == "b");
        victim.fix(&package, &[]).done();
        victim.settles("the new function", 5, |l| l == "q");
        let map = guest.read(&format!("/proc/{}/smaps", victim.pid())).expect("it runs");
        let map = String::from_utf8_lossy(&map).into_owned();
        let mut seen = 0;
        let mut ours = false;
        for line in map.lines() {
            if !line.split(' ').next().is_some_and(|w| w.ends_with(':')) {
                ours = line.contains("/memfd:tfix") && line.contains(" r-xp ");
            } else if ours && line.starts_with("VmFlags:") {
                assert_eq!(line.ends_with(" bt "), guarded, "{protection}:\n{map}");
                seen += 1;
            }
        }
        assert_eq!(seen, 1, "{protection}:\n{map}");
        victim.revert(&[]).done();
        victim.settles("the old function", 5, |l| l == "b");
    }
}

/// What the program only calls directly has no landing pad.
#[test]
fn functions_without_landing_pads_are_called_directly_or_not_at_all() {
    let lab = Lab::cross("aarch64-linux-gnu");
    let program = lab.program("guarded_program_aarch64.c", &["-O2", "-fno-ipa-ra"]);
    let text = "#include <tigerfix/dev.h>\n\
                extern long system_call(long, long, long, long);\n\
                extern int leaf(int);\n\
                FIXFUN(letter)\n\
                int letter(int x) { return CALL; }\n";
    let flags = ["-mbranch-protection=standard", "-mcmodel=large", "-fno-pic", "-O2"];
    let far = ["--base", "0x7100000000"];
    // Called only directly, and static.
    let patch = lab.patch_text("one.c", &text.replace("CALL", "(int)system_call(178, 0, 0, 0) + 1"), &flags);
    let (refused, _) = lab.generate(&program, &[&patch], &far);
    refused.refused(&["system_call", "no landing pad"]).by_rule("no-landing-pad");
    // Near enough it is called directly.
    let (near, _) = lab.generate(&program, &[&patch], &[]);
    near.done();
    // Through a pointer it can't be called, however near.
    let pointer = "static long (*volatile pointer)(long, long, long, long) = system_call;\nFIXFUN";
    let through = text.replace("FIXFUN", pointer).replace("CALL", "(int)pointer(178, 0, 0, 0)");
    let patch = lab.patch_text("three.c", &through, &flags);
    let (refused, _) = lab.generate(&program, &[&patch], &[]);
    refused.refused(&["system_call", "no landing pad"]).by_rule("no-landing-pad");
    // A global function has one.
    let patch = lab.patch_text("two.c", &text.replace("CALL", "leaf(x) + 1"), &flags);
    let (done, _) = lab.generate(&program, &[&patch], &far);
    done.done();
}

/// A resolver of the program goes by AT_HWCAP, its first argument. The bit that says that there is a second one is clear.
#[test]
fn resolvers_are_told_what_the_processor_has() {
    let guest = Guest::get("aarch64_max");
    let lab = Lab::for_guest(&guest);
    let text = "#include \"loop.h\"\n\
                #include <sys/auxv.h>\n\
                unsigned long hwcap;\n\
                static int right(void) { return 7; }\n\
                static int wrong(void) { return 3; }\n\
                __attribute__((used)) static void *pick(unsigned long had, unsigned long more)\n\
                {\n\
                        if (!hwcap) return wrong;\n\
                        return had == (hwcap & ~(1ul << 62)) && !more ? right : wrong;\n\
                }\n\
                int chosen(void) __attribute__((ifunc(\"pick\")));\n\
                KEEP int p(void) { for (volatile int i = 0; i < 2; i++) { } return 1; }\n\
                int main(void)\n\
                {\n\
                        int (*volatile early)(void) = chosen;\n\
                        lines();\n\
                        hwcap = getauxval(AT_HWCAP);\n\
                        for (;;) { printf(\"early %d p %d\\n\", early(), p()); nap(); }\n\
                }\n";
    let program = lab.program_text("told.c", text, &["-O2", "-fPIE", "-pie"]);
    let text = "#include <tigerfix/dev.h>\n\
                extern int chosen(void);\n\
                FIXFUN(p)\n\
                int p(void) { return chosen(); }\n";
    let package = lab.package(&program, &lab.patch_text("patch.c", text, &["-O2"]));
    let mut victim = lab.start::<&str>(&program, &[]);
    victim.settles("the old p", 5, |l| l == "early 3 p 1");
    victim.fix(&package, &[]).done();
    victim.settles("what the resolver chose", 5, |l| l == "early 3 p 7");
    victim.revert(&[]).done();
    victim.settles("the old p", 5, |l| l == "early 3 p 1");
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
