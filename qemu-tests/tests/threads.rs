//! Eight busy threads call the function without pause while it is replaced and restored, 200 times.

use std::fs::File;
use std::os::unix::fs::FileExt;

use qemu_tests::{Lab, Victim, until};

const THREADS: usize = 8;
const CYCLES: i32 = 200;

/// The page that victim and test share; `mode` 0 allows old and new results, 1 only new, 2 only old.
struct Shared(File);

impl Shared {
    fn set_mode(&self, round: i32, mode: i32) {
        self.0.write_all_at(&(round * 4 + mode).to_ne_bytes(), 0).expect("shared page");
    }

    fn wrong(&self) -> i32 {
        let mut word = [0; 4];
        self.0.read_exact_at(&mut word, 4).expect("shared page");
        i32::from_ne_bytes(word)
    }

    fn calls(&self) -> [i64; THREADS] {
        let mut bytes = [0; THREADS * 8];
        self.0.read_exact_at(&mut bytes, 8).expect("shared page");
        std::array::from_fn(|i| i64::from_ne_bytes(bytes[i * 8..i * 8 + 8].try_into().expect("8 bytes")))
    }

    /// Every thread makes `count` more calls, and none of them sees what `mode` forbids.
    fn all_call(&self, count: i64) {
        let start = self.calls();
        until("calls of every thread", || {
            assert_eq!(self.wrong(), 0, "a call that began after tfix had returned gave the other result");
            self.calls().iter().zip(start).all(|(now, then)| *now >= then + count).then_some(())
        });
    }
}

/// Applies and reverts `count` times; returns the victim, which is as it was in the beginning.
fn cycles(lab: &Lab, opt: &str, count: i32) -> Victim {
    let program = lab.program("threads_program.c", &[opt]);
    let package = lab.package(&program, &lab.patch("threads_patch.c", &["-O2"]));
    let page = lab.write("shared", [0; 4096]);
    let shared = Shared(File::options().read(true).write(true).open(&page).expect("shared page"));
    let mut victim = Victim::start_with(&program, &[&page]);
    victim.wait_line("alive");
    shared.all_call(100);
    let before = victim.snapshot();
    for round in 0..count {
        shared.set_mode(round, 0);
        victim.fix(&package, &["--timeout", "60"]).done();
        shared.set_mode(round, 1);
        shared.all_call(10);
        shared.set_mode(round, 0);
        victim.revert(&["--timeout", "60"]).done();
        shared.set_mode(round, 2);
        shared.all_call(10);
    }
    victim.still_prints();
    victim.assert_free();
    before.assert_same_code(&victim.snapshot());
    victim
}

#[test]
fn two_hundred_cycles_at_o2() {
    cycles(&Lab::new(), "-O2", CYCLES);
}

#[test]
fn two_hundred_cycles_at_o0() {
    cycles(&Lab::new(), "-O0", CYCLES);
}

/// An image that a thread may still have returned into is kept at first, but not for ever: a later visit frees it.
#[test]
fn what_was_parked_is_freed_later() {
    let lab = Lab::new();
    let victim = cycles(&lab, "-O2", 30);
    let left = victim.snapshot().of_tfix().len();
    assert!(left <= 12, "30 cycles have left {left} mappings behind");
}
