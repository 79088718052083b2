//! Data of all kinds that a patch brings along or shares with the program.

use qemu_tests::{Lab, Link, Victim};

/// New data, a literal, function statics and the program's own global in one patch.
fn b1(link: Link, opt: &str) {
    let lab = Lab::new();
    let program = lab.program("b1_program.c", &[link.flags(), &[opt]].concat());
    let package = lab.package(&program, &lab.patch("b1_patch.c", &[opt]));
    let mut victim = Victim::start(&program);
    let before = victim.snapshot();
    victim.settles("the old swap", 3, |l| l.ends_with(" limit 7"));
    victim.fix(&package, &[]).done();
    for call in 1..=5 {
        let said = victim.wait_for("the new swap", |l| l.starts_with("swapped"));
        assert_eq!(said, format!("swapped {call} {} {} 0", 100 + call, 10 * call));
        let pair = victim.line();
        assert!(pair.ends_with(&format!(" limit {}", 7 + call)), "the program sees its own global change: {pair}");
    }
    victim.revert(&[]).done();
    let mut last = String::new();
    victim.wait_for("two pairs without a word of the new swap between them", |l| {
        let hit = last.starts_with("pair ") && l.starts_with("pair ");
        last = l.to_owned();
        hit
    });
    victim.keeps("the old swap again", 5, |l| l.starts_with("pair "));
    before.assert_same_code(&victim.snapshot());
}

#[test]
fn b1_new_data_beside_the_programs() {
    for link in Link::ALL {
        for opt in qemu_tests::MATRIX_OPTS {
            b1(link, opt);
        }
    }
}

#[test]
fn b2_absent_weak_function_is_skipped() {
    for link in Link::ALL {
        let lab = Lab::new();
        let program = lab.program("b2_program.c", &[link.flags(), &["-O2"]].concat());
        let package = lab.package(&program, &lab.patch("b2_patch.c", &["-O2"]));
        let mut victim = Victim::start(&program);
        victim.settles("the old work", 3, |l| l == "work 2");
        victim.fix(&package, &[]).done();
        victim.settles("the new work without the hook", 10, |l| l == "work 3");
    }
}

#[test]
fn b2_present_weak_function_is_called() {
    for link in Link::ALL {
        let lab = Lab::new();
        let program = lab.program("b2_program.c", &[link.flags(), &["-O2", "-DHOOK"]].concat());
        let package = lab.package(&program, &lab.patch("b2_patch.c", &["-O2"]));
        let mut victim = Victim::start(&program);
        victim.settles("the old work", 3, |l| l == "work 2" || l == "hook 0");
        victim.fix(&package, &[]).done();
        for _ in 0..5 {
            victim.wait_line("hook 42");
            assert_eq!(victim.line(), "work 3");
            assert_eq!(victim.line(), "hook 0");
        }
    }
}

/// COMMON symbols are aligned, zero, writable, and lie on nothing else.
fn b3(flags: &[&str], link: Link) {
    let lab = Lab::new();
    let program = lab.program("b2_program.c", &[link.flags(), &["-O2"]].concat());
    let package = lab.package(&program, &lab.patch("b3_patch.c", &[&["-fcommon"], flags].concat()));
    let with_bss = flags.contains(&"-DWITH_BSS");
    let mut victim = Victim::start(&program);
    victim.wait_line("work 2");
    victim.fix(&package, &[]).done();
    victim.wait_line("align 0 0 first 0 0 0");
    if with_bss {
        assert_eq!(victim.line(), "own 0");
    }
    assert_eq!(victim.line(), "work 3");
    for _ in 0..5 {
        assert_eq!(victim.line(), "align 0 0 first 120 2 -10", "what was stored is there, and nothing else changed it");
        if with_bss {
            assert_eq!(victim.line(), "own 21");
        }
        assert_eq!(victim.line(), "work 3");
    }
}

#[test]
fn b3_common_alone() {
    for link in Link::ALL {
        b3(&["-O0"], link);
        b3(&["-O2"], link);
    }
}

#[test]
fn b3_common_beside_bss() {
    for link in Link::ALL {
        b3(&["-O0", "-DWITH_BSS"], link);
        b3(&["-O2", "-DWITH_BSS"], link);
    }
}

/// Variables that both define without a value: the program's is meant.
#[test]
fn common_of_the_program_keeps_its_value() {
    let lab = Lab::new();
    let program = lab.program("a3_program.c", &["-O2"]);
    for model in ["-fcommon", "-fno-common"] {
        let patch = lab.patch_text(
            "own_counter.c",
            "#include <tigerfix/dev.h>\nint counter;\nvoid print_global(void);\n\
             FIXFUN(is_prime) int is_prime(int n) { print_global(); counter += 1000; return n < 0; }\n",
            &["-O2", model],
        );
        let package = lab.package(&program, &patch);
        let mut victim = Victim::start(&program);
        victim.wait_line("counter 20");
        victim.fix(&package, &[]).done();
        let first = victim.wait_for("a great step", |l| {
            l.strip_prefix("counter ").and_then(|n| n.parse::<i64>().ok()).is_some_and(|n| n >= 1000)
        });
        let first: i64 = first["counter ".len()..].parse().expect("a number");
        assert!(first % 1000 >= 20, "the counter went on from its old value: {first}");
    }
}

#[test]
fn b5_redefined_initialised_global_is_refused() {
    for flags in [&["-O2"][..], &["-O0"], &["-O2", "-static"], &["-O2", "-no-pie", "-fno-pie"]] {
        let lab = Lab::new();
        let program = lab.program("b1_program.c", flags);
        let (outcome, package) = lab.generate(&program, &[&lab.patch("b5_patch.c", &["-O2"])], &[]);
        outcome.refused(&["limit"]);
        assert!(!package.exists(), "no output file");
    }
}
