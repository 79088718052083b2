//! What a patch may call and point to, and what happens when nobody has it.

use qemu_tests::{Lab, Link, Victim};

fn patched(lab: &Lab, flags: &[&str], patch: &str) -> Victim {
    let program = lab.program("imports_program.c", flags);
    let package = lab.package(&program, &lab.patch(patch, &["-O2", "-fno-builtin"]));
    let mut victim = Victim::start(&program);
    victim.settles("the old work", 3, |l| l == "work 1");
    victim.fix(&package, &[]).done();
    victim
}

#[test]
fn function_of_a_loaded_library_that_the_program_never_used() {
    let lab = Lab::new();
    let mut victim = patched(&lab, &["-O2", "-DWITH_LIBM", "-Wl,--no-as-needed", "-lm"], "imports_libm.c");
    victim.settles("sin(1)", 10, |l| l == "work 841470");
    victim.revert(&[]).done();
    victim.settles("the old work", 5, |l| l == "work 1");
}

#[test]
fn function_of_a_library_that_is_not_loaded() {
    let lab = Lab::new();
    let program = lab.program("imports_program.c", &["-O2"]);
    let patch = lab.patch("imports_libm.c", &["-O2", "-fno-builtin"]);
    let mut victim = Victim::start(&program);
    victim.wait_line("work 1");
    let before = victim.snapshot();
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    if outcome.code() == 0 {
        victim.fix(&package, &[]).refused(&["sin"]);
    } else {
        outcome.refused(&["sin"]);
    }
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

#[test]
fn a_static_program_has_no_more_than_it_was_linked_with() {
    let lab = Lab::new();
    let program = lab.program("imports_program.c", &[Link::Static.flags(), &["-O2"]].concat());
    let (outcome, package) = lab.generate(&program, &[&lab.patch("imports_libm.c", &["-O2", "-fno-builtin"])], &[]);
    outcome.refused(&["sin"]);
    assert!(!package.exists());
}

/// 5 * 511 is strlen's 511, memmove's and memset's byte is 5, memcmp of byte 511 aside.
#[test]
fn functions_that_libc_chooses_by_processor() {
    for flags in [&["-O2"][..], &["-O2", "-no-pie", "-fno-pie"], &["-O2", "-static"]] {
        let lab = Lab::new();
        let program = lab.program("imports_program.c", flags);
        let (outcome, package) =
            lab.generate(&program, &[&lab.patch("imports_ifunc.c", &["-O2", "-fno-builtin"])], &[]);
        if flags.contains(&"-static") && outcome.code() != 0 {
            // A static program need not contain all of them.
            outcome.refused(&["mem"]);
            continue;
        }
        outcome.done();
        let mut victim = Victim::start(&program);
        victim.settles("the old work", 3, |l| l == "work 1");
        victim.fix(&package, &[]).done();
        victim.settles("strlen and the byte that memmove moved", 10, |l| l == "work 516");
    }
}

#[test]
fn program_function_printf_and_static_counter_together() {
    for link in Link::ALL {
        for opt in ["-O0", "-O2"] {
            let lab = Lab::new();
            let mut victim = patched(&lab, &[link.flags(), &[opt]].concat(), "imports_mixed.c");
            for call in 1..=5 {
                victim.wait_line(&format!("call {call} first 11"));
                assert_eq!(victim.line(), format!("work {}", 1 + call));
            }
        }
    }
}

#[test]
fn tables_of_pointers_to_foreign_functions() {
    for link in Link::ALL {
        let lab = Lab::new();
        let mut victim = patched(&lab, &[link.flags(), &["-O2"]].concat(), "imports_table.c");
        for result in [11, 22, 33, 44, 11] {
            victim.wait_line(&format!("work {}", 101_000_000 + result));
        }
    }
}

#[test]
fn pointers_still_compare_equal() {
    for link in Link::ALL {
        for opt in ["-O0", "-O2"] {
            let lab = Lab::new();
            let program = lab.program("pointers_program.c", &[link.flags(), &[opt]].concat());
            let package = lab.package(&program, &lab.patch("pointers_patch.c", &["-O2"]));
            let mut victim = Victim::start(&program);
            victim.settles("old", 3, |l| l == "same 1 through 1");
            victim.fix(&package, &[]).done();
            victim.settles("the same address, the new code", 10, |l| l == "same 11 through 2");
            victim.revert(&[]).done();
            victim.settles("old again", 5, |l| l == "same 1 through 1");
        }
    }
}

/// The usual ways to compile a patch, for a program at a fixed address and for one that moves.
#[test]
fn every_code_model_that_gcc_offers() {
    for flags in [&["-fPIC"][..], &["-fPIE"], &["-fPIC", "-fno-plt"], &["-fPIC", "-mcmodel=large"], &["-fno-pic"]] {
        for opt in ["-O0", "-O1", "-O2", "-O3"] {
            let lab = Lab::new();
            let fixed = flags.contains(&"-fno-pic");
            let link = if fixed { Link::NoPie } else { Link::Pie };
            let program = lab.program("imports_program.c", &[link.flags(), &["-O2"]].concat());
            let patch = lab.object("imports_mixed.c", &[flags, &[opt]].concat());
            let package = lab.package(&program, &patch);
            let mut victim = Victim::start(&program);
            victim.wait_line("work 1");
            victim.fix(&package, &[]).done();
            for call in 1..=3 {
                victim.wait_line(&format!("call {call} first 11"));
                assert_eq!(victim.line(), format!("work {}", 1 + call));
            }
        }
    }
}

/// 32-bit absolute addresses can't name anything in a program that lies above 4 GiB.
#[test]
fn absolute_code_for_a_program_that_moves_is_refused() {
    let lab = Lab::new();
    let program = lab.program("imports_program.c", &["-O2"]);
    let patch = lab.object("imports_table.c", &["-O2", "-fno-pic", "-mcmodel=small"]);
    let mut victim = Victim::start(&program);
    victim.wait_line("work 1");
    let before = victim.snapshot();
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    if outcome.code() == 0 {
        victim.fix(&package, &[]).refused(&[]);
    } else {
        outcome.refused(&[]);
    }
    before.assert_untouched(&victim.snapshot());
    victim.still_prints();
}

#[test]
fn names_of_cxx() {
    let lab = Lab::new();
    let program = lab.program("cxx_program.cpp", &["-O2"]);
    let marked = lab.package(&program, &lab.patch("cxx_patch.cpp", &["-O2"]));
    let (outcome, unmarked) =
        lab.generate_to("unmarked.tfp", &program, &[&lab.patch("cxx_unmarked.cpp", &["-O2"])], &["--name", "double"]);
    outcome.done();
    let mut victim = Victim::start(&program);
    victim.settles("old", 3, |l| l.ends_with("scale 20 20.0 twice 8"));
    victim.fix(&marked, &[]).done();
    victim.settles("scale(int) only", 5, |l| l.ends_with("scale 30 20.0 twice 8"));
    let total = |line: &str| line.split(' ').nth(1).and_then(|n| n.parse::<i64>().ok()).expect("a total");
    let (first, second) = (total(&victim.line()), total(&victim.line()));
    assert_eq!(second - first, 1000, "the method works on the object that the program has");
    victim.fix(&unmarked, &[]).done();
    victim.settles("both overloads", 5, |l| l.ends_with("scale 30 50.0 twice 8"));
    victim.revert(&["double"]).done();
    victim.settles("scale(int) only", 5, |l| l.ends_with("scale 30 20.0 twice 8"));
    victim.revert(&[]).done();
    victim.settles("old", 5, |l| l.ends_with("scale 20 20.0 twice 8"));
}

#[test]
fn static_functions_of_one_name() {
    let lab = Lab::new();
    let main = lab.object("same_name_main.c", &["-O2", "-fPIE"]);
    let other = lab.object("same_name_other.c", &["-O2", "-fPIE"]);
    let program = lab.path("same_name");
    let linked = std::process::Command::new("gcc").arg("-o").arg(&program).args([&main, &other]).status();
    assert!(linked.expect("gcc").success());
    let patch = lab.patch("same_name_patch.c", &["-O2"]);

    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    outcome.refused(&["helper", "same_name_main.c", "same_name_other.c"]);
    assert!(!package.exists());

    // By an option, then by a mark.
    let (outcome, first) =
        lab.generate_to("first.tfp", &program, &[&patch], &["--replace", "helper=same_name_main.c:helper"]);
    outcome.done();
    let (outcome, second) = lab.generate_to("second.tfp", &program, &[&lab.patch("same_name_pick.c", &["-O2"])], &[]);
    outcome.done();
    let mut victim = Victim::start(&program);
    victim.settles("old", 3, |l| l == "here 1 there 2");
    victim.fix(&first, &[]).done();
    victim.settles("the first", 5, |l| l == "here 3 there 2");
    victim.fix(&second, &[]).done();
    victim.settles("both", 5, |l| l == "here 3 there 4");
    victim.revert(&["first"]).done();
    victim.settles("the second", 5, |l| l == "here 1 there 4");
    victim.revert(&["second"]).done();
    victim.settles("old", 5, |l| l == "here 1 there 2");
}

/// A name that nobody has, with the one that was meant.
#[test]
fn misspelt_names_get_a_suggestion() {
    let lab = Lab::new();
    let program = lab.program("a3_program.c", &["-O2"]);
    let patch = lab.patch_text(
        "typo.c",
        "#include <tigerfix/dev.h>\nextern void print_globel(void);\n\
         FIXFUN(is_prime) int is_prime(int n) { print_globel(); return n; }\n",
        &["-O2"],
    );
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    outcome.refused(&["print_globel", "print_global"]);
    assert!(!package.exists());

    let patch = lab.patch_text(
        "typo_in_mark.c",
        "#include <tigerfix/dev.h>\nFIXFUN(is_prim)\nint is_prim(int n) { return n; }\n",
        &["-O2"],
    );
    let (outcome, package) = lab.generate(&program, &[&patch], &[]);
    outcome.turned_down(&["is_prim", "is_prime"]);
    assert!(!package.exists());
}

/// A patch of several objects that refer to each other.
#[test]
fn several_objects_make_one_patch() {
    let lab = Lab::new();
    let program = lab.program("imports_program.c", &["-O2"]);
    let one = lab.patch_text(
        "one.c",
        "#include <tigerfix/dev.h>\nint shared_total = 5;\nint part(int);\nPATCH_VERSION(\"3.1\");\n\
         FIXFUN(work)\nint work(int n) { return part(n) + shared_total; }\n",
        &["-O2"],
    );
    let two = lab.patch_text(
        "two.c",
        "extern int shared_total;\nextern int first(void);\nint part(int n) { shared_total += n; return first(); }\n",
        &["-O2"],
    );
    let (outcome, package) = lab.generate(&program, &[&one, &two], &[]);
    outcome.done();
    let mut victim = Victim::start(&program);
    victim.wait_line("work 1");
    victim.fix(&package, &[]).done();
    for n in 6..12 {
        victim.wait_line(&format!("work {}", 11 + n));
    }
    assert_eq!(victim.patches()[0]["version"], "3.1");
}
