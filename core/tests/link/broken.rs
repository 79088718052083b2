//! Damaged objects: whatever the bytes are, the linker comes back soon, with an error or with a sound package.

use crate::support::*;
use std::time::{Duration, Instant};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::error::Explain;
use tigerfix_core::link::{LinkOptions, link};
use tigerfix_core::program::Program;

const PROGRAM: &str = "
    int counter = 3; __thread int mine = 4; static int state = 2; int numbers[10];
    int q(int x) { return x + counter + mine + state++ + numbers[x]; }
    int p(int x) { return q(x) + 1; }";

fn objects() -> Vec<Vec<u8>> {
    let c = marked("
        FIXFUN(p) PATCH_VERSION(\"1\")
        extern int counter, state; extern __thread int mine; int q(int); int puts(const char *); int numbers[10];
        __attribute__((weak)) int maybe(void); static int calls = 1; int fresh; char room[100];
        const char *const words[] = { \"one\", \"two\" };
        int p(int x) { calls++; puts(words[x & 1]); if (maybe) maybe(); return q(x) * counter + state + mine + fresh + room[x] + numbers[1]; }
        int (*pointer)(int) = p;");
    let cc = "inline __attribute__((noinline)) int twice(int x) { return x * 2; } inline int n = 3;
        extern \"C\" int p(int x) { return twice(x) + n; } struct A { virtual int f(); }; int A::f() { return 1; }";
    vec![
        object_named("p.c", &c, "-O1 -fPIC -fcommon -ffunction-sections"),
        object_named("p.cc", cc, "-O0 -fPIC -std=c++17"),
    ]
}

/// xorshift64*: the same cases in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

struct Bench<'d> {
    programs: Vec<Program<'d>>,
    options: Vec<LinkOptions<'static>>,
    linked: usize,
    refused: std::collections::BTreeMap<&'static str, usize>,
}

impl Bench<'_> {
    fn try_all(&mut self, data: &[u8]) {
        for (program, options) in self.programs.iter().zip(&self.options) {
            let start = Instant::now();
            match link(&X86_64, program, &[("p.o".into(), data)], options) {
                Ok(linked) => {
                    self.linked += 1;
                    let p = &linked.package;
                    assert!(p.image_size() <= 257 << 20);
                    assert!(p.residue.iter().all(|r| {
                        (r.symbol as usize) < p.symbols.len()
                            && p.spans.iter().any(|s| r.offset >= s.offset && r.offset < s.offset + s.data.len() as u64)
                    }));
                    let held: usize = p.spans.iter().map(|s| s.data.len()).sum();
                    assert!(held < data.len() + (1 << 20), "{held} bytes from {}", data.len());
                }
                Err(e) => {
                    assert!(!format!("{e}").is_empty());
                    *self.refused.entry(e.rule()).or_default() += 1;
                }
            }
            assert!(start.elapsed() < Duration::from_secs(5), "slow");
        }
    }
}

fn bench<'d>(pie: &'d [u8], fixed: &'d [u8]) -> Bench<'d> {
    Bench {
        programs: vec![Program::parse(pie).unwrap(), Program::parse(fixed).unwrap()],
        options: vec![LinkOptions::default(), LinkOptions { base: Some(0x5000_0000), ..LinkOptions::default() }],
        linked: 0,
        refused: Default::default(),
    }
}

fn programs() -> (Vec<u8>, Vec<u8>) {
    (pie(&format!("{PROGRAM} int main(void) {{ return p(1); }}")), bare(PROGRAM))
}

#[test]
fn cut_short_at_every_length() {
    let (a, b) = programs();
    for o in objects() {
        let mut bench = bench(&a, &b);
        bench.try_all(&o);
        let whole = bench.linked;
        assert!(whole > 0, "{:?}", bench.refused);
        for n in 0..o.len() {
            bench.try_all(&o[..n]);
        }
        assert_eq!(bench.linked, whole, "the section headers are at the end, so nothing shorter is whole");
    }
}

#[test]
fn flipped_bytes() {
    let (a, b) = programs();
    let mut random = Random(0x7f1e_57ed);
    for o in objects() {
        let mut bench = bench(&a, &b);
        for _ in 0..4000 {
            let mut data = o.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(data.len());
                data[at] ^= 1 << random.below(8);
            }
            bench.try_all(&data);
        }
        assert!(bench.linked > 100 && bench.refused.len() > 5, "{} {:?}", bench.linked, bench.refused);
    }
}

/// Headers, symbols and relocations with the values that break arithmetic.
#[test]
fn extreme_words() {
    let (a, b) = programs();
    let mut random = Random(0xdead_beef);
    const WORDS: [u64; 14] = [
        0,
        1,
        3,
        7,
        0xff,
        0xff00,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        1 << 40,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
    ];
    for o in objects() {
        let mut bench = bench(&a, &b);
        let headers = u64::from_le_bytes(o[0x28..0x30].try_into().unwrap()) as usize;
        for i in 0..6000 {
            let mut data = o.clone();
            // Half of them in the section headers, which end the file.
            let from = if i % 2 == 0 { headers } else { 0x10 };
            let at = (from + random.below(data.len() - from - 8)) & !3;
            let size = [1, 2, 4, 8][random.below(4)];
            let word = WORDS[random.below(WORDS.len())].to_le_bytes();
            data[at..at + size].copy_from_slice(&word[..size]);
            bench.try_all(&data);
        }
        assert!(bench.refused.len() > 8, "{:?}", bench.refused);
    }
}

#[test]
fn overlapping_sections_are_no_way_to_ask_for_more() {
    let (a, _) = programs();
    let o = objects().remove(0);
    // All sections with contents become the whole file.
    let headers = u64::from_le_bytes(o[0x28..0x30].try_into().unwrap()) as usize;
    let mut data = o.clone();
    for at in (headers..o.len()).step_by(64).skip(1) {
        if u32::from_le_bytes(o[at + 4..at + 8].try_into().unwrap()) == 1 {
            data[at + 24..at + 32].fill(0);
            data[at + 32..at + 40].copy_from_slice(&(o.len() as u64).to_le_bytes());
        }
    }
    refused(patch(&a, &data), "broken-object", &["overlap"]);
}

#[test]
fn objects_may_lie_at_any_address() {
    let (a, _) = programs();
    for o in objects() {
        for shift in 0..8 {
            let mut moved = vec![0; shift];
            moved.extend(&o);
            patch(&a, &moved[shift..]).unwrap();
        }
    }
}

#[test]
fn sections_of_the_oldest_comdat_kind() {
    let (a, _) = programs();
    let once = ".section .gnu.linkonce.t.thunk,\"ax\",@progbits\n.weak thunk\n.type thunk,@function\nthunk: ret\n.size thunk,1\n";
    let one = object_named(
        "p.s",
        &format!("{once}.text\n.globl p\n.type p,@function\np: call thunk\nret\n.size p,.-p\n"),
        "",
    );
    let two = object_named("q.s", &format!("{once}.text\n.globl fresh\nfresh: call thunk\nret\n"), "");
    let linked = patch_with(&a, &[&one, &two], &LinkOptions::default()).unwrap();
    assert_eq!(linked.report.placements.iter().filter(|p| p.section.contains("linkonce")).count(), 1);
    // A static symbol of a dropped copy has no other definition.
    let lost = object_named("r.s", &format!("{once}inside: ret\n.section .data\n.quad inside\n"), "");
    refused(
        patch_with(&a, &[&one, &lost], &LinkOptions::default()),
        "discarded-section",
        &["linkonce", "p1.o: .data+0x0"],
    );
}
