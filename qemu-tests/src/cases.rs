//! Programs of which it is known how their old and their new behaviour look from outside.

use std::path::{Path, PathBuf};

use crate::{Lab, Victim};

/// One of the programs: how its old and its new behaviour look from outside.
pub trait Case {
    /// `<stem>_program.c` and `<stem>_patch.c`.
    const STEM: &'static str;
    /// The functions that the patch replaces.
    const FUNCTIONS: &'static [&'static str];
    /// Waits until the old behaviour shows and holds.
    fn shows_old(victim: &mut Victim);
    /// Waits until the new behaviour shows and holds.
    fn shows_new(victim: &mut Victim);
    /// Number that must only ever grow by the case's own rule: (value, line is one of those).
    fn state(line: &str) -> Option<i64>;
    /// Whether the state may go from one value to the next.
    fn follows(before: i64, after: i64) -> bool;
}

fn numbers(line: &str) -> Vec<i64> {
    line.split_whitespace().filter_map(|w| w.parse().ok()).collect()
}

/// `fixtures/a1_program.c`
pub struct A1;

impl Case for A1 {
    const STEM: &'static str = "a1";
    const FUNCTIONS: &'static [&'static str] = &["p"];
    fn shows_old(victim: &mut Victim) {
        victim.settles("p to be 1", 10, |l| l.ends_with(" p 1"));
    }
    fn shows_new(victim: &mut Victim) {
        victim.settles("p to be 2", 10, |l| l.ends_with(" p 2"));
    }
    fn state(line: &str) -> Option<i64> {
        numbers(line).first().copied()
    }
    fn follows(before: i64, after: i64) -> bool {
        after == before + 1
    }
}

/// `fixtures/a2_program.c`
pub struct A2;

/// `fact N V` where V is the product of N, N - step, N - 2 step ...
fn is_factorial(line: &str, step: usize) -> bool {
    let [n, value] = numbers(line)[..] else { return false };
    value == (1..=n).rev().step_by(step).product::<i64>()
}

impl Case for A2 {
    const STEM: &'static str = "a2";
    const FUNCTIONS: &'static [&'static str] = &["factorial"];
    fn shows_old(victim: &mut Victim) {
        victim
            .wait_for("a factorial", |l| !l.starts_with("fact 1 ") && !l.starts_with("fact 2 ") && is_factorial(l, 1));
        victim.keeps("factorials", 25, |l| is_factorial(l, 1) || l == "negative");
    }
    fn shows_new(victim: &mut Victim) {
        victim.wait_for("a double factorial", |l| {
            !l.starts_with("fact 1 ") && !l.starts_with("fact 2 ") && is_factorial(l, 2)
        });
        victim.keeps("double factorials", 25, |l| is_factorial(l, 2) || l == "no factorial of -1");
    }
    fn state(line: &str) -> Option<i64> {
        line.starts_with("fact ").then(|| numbers(line)[0])
    }
    fn follows(before: i64, after: i64) -> bool {
        after == before % 10 + 1
    }
}

/// `fixtures/a3_program.c`
pub struct A3;

impl Case for A3 {
    const STEM: &'static str = "a3";
    const FUNCTIONS: &'static [&'static str] = &["is_prime"];
    fn shows_old(victim: &mut Victim) {
        Self::round(victim, "prime 7", "prime 11", 1);
    }
    fn shows_new(victim: &mut Victim) {
        Self::round(victim, "prime 7", "prime 9", 2);
    }
    fn state(line: &str) -> Option<i64> {
        line.strip_prefix("counter ")?.parse().ok()
    }
    fn follows(before: i64, after: i64) -> bool {
        after == before + 1 || after == before + 2
    }
}

impl A3 {
    /// Waits until `second` is the prime that follows `first`; the counter then goes on in steps of `step`.
    fn round(victim: &mut Victim, first: &str, second: &str, step: i64) {
        let mut last = String::new();
        victim.wait_for(&format!("{first}, then {second}"), |line| {
            if !line.starts_with("prime ") {
                return false;
            }
            let hit = last == first && line == second;
            last = line.to_owned();
            hit
        });
        let mut counter = None;
        for _ in 0..30 {
            let line = victim.line();
            let Some(now) = Self::state(&line) else { continue };
            if let Some(before) = counter {
                assert_eq!(now, before + step, "the counter goes in steps of {step}");
            }
            counter = Some(now);
        }
        assert!(counter.is_some(), "the counter is printed");
    }
}

/// `fixtures/a4_program.c`
pub struct A4;

impl Case for A4 {
    const STEM: &'static str = "a4";
    const FUNCTIONS: &'static [&'static str] = &["f1"];
    fn shows_old(victim: &mut Victim) {
        victim.wait_for("f1 6 720", |l| l == "f1 6 720");
        victim.keeps("factorials", 25, |l| is_factorial(l, 1));
    }
    fn shows_new(victim: &mut Victim) {
        let two = |l: &str| numbers(l).get(1) == Some(&2);
        victim.wait_for("2 where it makes a difference", |l| two(l) && !l.starts_with("f1 2 "));
        victim.keeps("2 in every line", 25, two);
    }
    fn state(line: &str) -> Option<i64> {
        numbers(line).first().copied()
    }
    fn follows(before: i64, after: i64) -> bool {
        after == before % 10 + 1
    }
}

/// `fixtures/a5_program.c`
pub struct A5;

impl Case for A5 {
    const STEM: &'static str = "a5";
    const FUNCTIONS: &'static [&'static str] = &["input_student", "print_student", "event"];
    fn shows_old(victim: &mut Victim) {
        Self::rounds(victim, &["name Ada Lovelace", "id AL1815"]);
    }
    fn shows_new(victim: &mut Victim) {
        Self::rounds(victim, &["name Ada Lovelace", "id AL1815", "grade 4.30"]);
    }
    fn state(line: &str) -> Option<i64> {
        line.strip_prefix("round ")?.parse().ok()
    }
    fn follows(before: i64, after: i64) -> bool {
        after == before + 1
    }
}

impl A5 {
    /// Waits for a round with exactly these lines, and five more of the same.
    fn rounds(victim: &mut Victim, expected: &[&str]) {
        let mut seen: Vec<String> = Vec::new();
        let mut complete = false;
        victim.wait_for(&format!("a round with {expected:?}"), |line| {
            if line.starts_with("round ") {
                let hit = complete && seen == expected;
                seen.clear();
                complete = true;
                return hit;
            }
            seen.push(line.to_owned());
            false
        });
        for _ in 0..5 {
            for wanted in expected {
                assert_eq!(victim.line(), *wanted);
            }
            assert!(victim.line().starts_with("round "), "a new round after {expected:?}");
        }
    }
}

/// Compiles program and patch; `link` and `flags` are for the program.
pub fn build<C: Case>(lab: &Lab, opt: &str, link: &[&str], flags: &[&str]) -> (PathBuf, PathBuf) {
    let program = lab.program(&format!("{}_program.c", C::STEM), &[link, &[opt], flags].concat());
    let patch = lab.patch(&format!("{}_patch.c", C::STEM), &[opt]);
    (program, patch)
}

/// The state in all lines up to here goes on by its rule, through `fix` and `revert`.
pub fn assert_state_kept<C: Case>(lines: &[String]) {
    let values: Vec<i64> = lines.iter().filter_map(|l| C::state(l)).collect();
    assert!(values.len() > 20, "the state is printed often");
    for pair in values.windows(2) {
        assert!(C::follows(pair[0], pair[1]), "the state went from {} to {}", pair[0], pair[1]);
    }
}

/// Fix, look, list, revert, look again, compare bytes.
pub fn live<C: Case>(mut victim: Victim, package: &Path) {
    let before = victim.snapshot();
    victim.fix(package, &[]).done();
    C::shows_new(&mut victim);
    victim.assert_free();

    let patches = victim.patches();
    assert_eq!(patches.len(), 1, "one patch is listed: {patches:?}");
    assert_eq!(patches[0]["name"], "fix");
    assert_eq!(patches[0]["version"], "1.0");
    assert_eq!(patches[0]["state"], "applied");
    let mut listed: Vec<&str> = patches[0]["sites"]
        .as_array()
        .expect("sites")
        .iter()
        .map(|s| s["function"].as_str().expect("a name"))
        .collect();
    listed.sort_unstable();
    let mut replaced = C::FUNCTIONS.to_vec();
    replaced.sort_unstable();
    assert_eq!(listed, replaced);

    victim.revert(&[]).done();
    C::shows_old(&mut victim);
    victim.assert_free();
    before.assert_same_code(&victim.snapshot());
    assert_eq!(victim.patches_in_state("applied"), [""; 0], "nothing is applied any more");
    assert_state_kept::<C>(&victim.lines_so_far());
}
