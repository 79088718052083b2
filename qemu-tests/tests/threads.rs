//! Eight busy threads call the function without pause while it is replaced and restored, 200 times.

use std::fs::File;
use std::os::unix::fs::FileExt;

use qemu_tests::{Lab, Victim, until};

const THREADS: usize = 8;
const CYCLES: usize = 200;

/// The page that victim and test share; `mode` 0 allows old and new results, 1 only new, 2 only old.
struct Shared(File);

impl Shared {
    fn set_mode(&self, mode: i32) {
        self.0.write_all_at(&mode.to_ne_bytes(), 0).expect("shared page");
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
            assert_eq!(self.wrong(), 0, "a call that started after tfix had returned gave the other result");
            self.calls().iter().zip(start).all(|(now, then)| *now >= then + count).then_some(())
        });
    }
}

fn cycles(opt: &str) {
    let lab = Lab::new();
    let program = lab.program("threads_program.c", &[opt]);
    let package = lab.package(&program, &lab.patch("threads_patch.c", &["-O2"]));
    let page = lab.write("shared", [0; 4096]);
    let shared = Shared(File::options().read(true).write(true).open(&page).expect("shared page"));
    let mut victim = Victim::start_with(&program, &[&page]);
    victim.wait_line("alive");
    shared.all_call(100);
    let before = victim.snapshot();
    for _ in 0..CYCLES {
        shared.set_mode(0);
        victim.fix(&package, &["--timeout", "60"]).done();
        shared.set_mode(1);
        shared.all_call(10);
        shared.set_mode(0);
        victim.revert(&["--timeout", "60"]).done();
        shared.set_mode(2);
        shared.all_call(10);
    }
    victim.still_prints();
    victim.assert_free();
    before.assert_same_code(&victim.snapshot());
    let executable = |s: &qemu_tests::Snapshot| s.regions.iter().filter(|r| r.permissions.starts_with("r-x")).count();
    let (then, now) = (executable(&before), executable(&victim.snapshot()));
    assert!(now <= then + 8, "{CYCLES} cycles left {} executable mappings behind", now - then);
}

#[test]
fn two_hundred_cycles_at_o2() {
    cycles("-O2");
}

#[test]
fn two_hundred_cycles_at_o0() {
    cycles("-O0");
}
