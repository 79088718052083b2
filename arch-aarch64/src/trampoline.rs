//! Jump forms, landing pads, padding, and the search for branches.
//!
//! Odd in this architecture:
//! * `b` is one word, and reaches 128 MiB. Farther jumps go through x16, which every call may change (AAPCS64, 6.1.1).
//! * Only B, BL, BRK, HVC, ISB, NOP, SMC and SVC may be changed into one another while other processors execute them (Arm ARM,
//!   B2.2.5 "Concurrent modification and execution of instructions"). What a function begins with is nearly always something
//!   else, so that no form can be written while threads run, one word or not.
//! * In pages mapped with PROT_BTI, the processor raises an exception where an indirect branch meets anything but a landing
//!   pad for it (Arm ARM, D8.4.5 "Branch Target Identification"):
//!   - `bti c`, `bti j`, `bti jc` do nothing else. They stay, and the jump goes behind.
//!   - `paciasp` and `pacibsp` sign the return address as well. They can't stay: the new function would sign it again. They
//!     can't just go either, since calls by pointer would find no pad. So `bti c` takes their place, and the jump that of
//!     the instruction behind (forms `bti-...`); where nothing is guarded `bti` is a no-operation.
//!   - A page that is not mapped with PROT_BTI takes any branch, whoever makes it. Images and islands are mapped with it if
//!     all new code was compiled for it and every new function has a pad, as `br x16` of a landing wants one.
//!   - Direct branches need no pad anywhere. Landings and islands are reached by `b` alone, and have none.
//! * Shadow stacks (GCS) and return prediction rule out redirections by `ret`.
//! * Between `bti c` and the jump of a `bti-` form the unwind table says that the return address is signed, which it is not.
//!   Nobody unwinds from there but a profiler, for one instruction.
//! * Literals need an alignment of 4 only, as long as alignment checks are off (SCTLR_EL1.A; Linux has them off) and memory is
//!   normal; bare metal that runs without its MMU should use the forms with `b`.
//!
//! Source: Arm ARM, chapters C3.2 "Branches, exception generating, and system instructions", C4.1 "A64 instruction set
//! encoding", and the instructions' own pages in C6.2.

use crate::Aarch64;
use crate::constants::{is_add, offset, page};
use crate::flow::direct;
use tigerfix_core::arch::{Code, Constants, EncodeError, JumpForm, Reach, TrampolineEncoder, Via};

/// `b`, without its offset.
const B: u32 = 0x1400_0000;
/// `adrp x16`, without its offset.
const ADRP_X16: u32 = 0x9000_0010;
/// `add x16, x16, #0`
const ADD_X16_X16: u32 = 0x9100_0210;
/// `ldr x16, .+8`
const LDR_X16_8: u32 = 0x5800_0050;
/// `br x16`
const BR_X16: u32 = 0xd61f_0200;
/// `bti c`
const BTI_C: u32 = 0xd503_245f;
/// `bti j`
const BTI_J: u32 = 0xd503_249f;
/// `bti jc`
const BTI_JC: u32 = 0xd503_24df;
/// `paciasp`
const PACIASP: u32 = 0xd503_233f;
/// `pacibsp`
const PACIBSP: u32 = 0xd503_237f;
/// With FEAT_PAuth_LR.
const PACIASPPC: u32 = 0xdac1_a3fe;
const PACIBSPPC: u32 = 0xdac1_a7fe;
/// `nop`: of all hints this one alone does nothing on every processor.
const NOP: u32 = 0xd503_201f;
/// `brk #1`, with which LLVM's linker fills gaps.
const BRK_1: u32 = 0xd420_0020;
/// `udf #0`: zeros, with which GNU ld fills gaps.
const UDF_0: u32 = 0;

const WORD: u8 = 4;
const B_LEN: u8 = WORD;
const PAD_B_LEN: u8 = 2 * WORD;
const ADRP_LEN: u8 = 3 * WORD;
const LDR_LEN: u8 = 2 * WORD + 8;
const _: () = assert!(LDR_LEN as usize <= Code::CAPACITY);

/// How far `b` goes.
const B_REACH: (i64, i64) = (-(1 << 27), (1 << 27) - 4);
/// How far `adrp` and `add` go at least, wherever both ends lie in their pages.
const ADRP_REACH: (i64, i64) = (-(1 << 32), (1 << 32) - 4096);
/// x16, by its name in the decoder.
const X16: &[&str] = &["x16"];

const fn reach((min, max): (i64, i64), ahead: u8) -> Reach {
    Reach::Offset(min + ahead as i64, max + ahead as i64)
}

const fn form(name: &'static str, len: u8, reach: Reach, clobbers: &'static [&'static str]) -> JumpForm {
    JumpForm {
        name,
        len,
        align: WORD,
        reach,
        via: Via::Direct,
        landing_len: 0,
        landing_reach: Reach::Anywhere,
        own_address: true,
        clobbers,
        single_store: false,
    }
}

/// The same with a landing in an island near the site, which holds: ldr x16, .+8; br x16; quad.
const fn island(name: &'static str, form: JumpForm) -> JumpForm {
    JumpForm { name, via: Via::NearIsland, landing_len: LDR_LEN, clobbers: X16, ..form }
}

/// b
const DIRECT: JumpForm = form("b", B_LEN, reach(B_REACH, 0), &[]);
/// bti c; b
const PADDED: JumpForm = form("bti-b", PAD_B_LEN, reach(B_REACH, WORD), &[]);

/// Cheapest first: by the bytes they take from the function, then by what they cost on each call. There is none with a
/// landing in the image: `b` to the landing reaches no farther than `b` to the function beside it.
static FORMS: [JumpForm; 6] = [
    DIRECT,
    island("b-island", DIRECT),
    PADDED,
    island("bti-b-island", PADDED),
    // adrp x16; add x16, x16, offset; br x16
    form("adrp", ADRP_LEN, reach(ADRP_REACH, 0), X16),
    // ldr x16, .+8; br x16; quad
    form("ldr", LDR_LEN, Reach::Anywhere, X16),
];

fn aligned(at: u64) -> Result<(), EncodeError> {
    if at.is_multiple_of(u64::from(WORD)) { Ok(()) } else { Err(EncodeError::Misaligned { at, align: WORD }) }
}

/// `to - from`, if it is within `reach`.
fn distance(from: u64, to: u64, reach: Reach) -> Result<i64, EncodeError> {
    if !reach.holds(from, to) {
        return Err(EncodeError::OutOfReach { from, to, reach });
    }
    aligned(from)?;
    aligned(to)?;
    Ok(to.wrapping_sub(from) as i64)
}

fn word(code: Code, insn: u32) -> Code {
    code.then(&insn.to_le_bytes())
}

/// `b` over a distance that is in its reach.
fn b(code: Code, distance: i64) -> Code {
    word(code, B | (distance >> 2) as u32 & 0x03ff_ffff) // b to
}

fn absolute(to: u64) -> Result<Code, EncodeError> {
    aligned(to)?;
    // ldr x16, .+8; br x16; .quad to
    Ok(word(word(Code::EMPTY, LDR_X16_8), BR_X16).then(&to.to_le_bytes()))
}

impl TrampolineEncoder for Aarch64 {
    fn forms(&self) -> &'static [JumpForm] {
        &FORMS
    }

    fn encode_jump(&self, form: &JumpForm, from: u64, to: u64) -> Result<Code, EncodeError> {
        match form.len {
            B_LEN => Ok(b(Code::EMPTY, distance(from, to, form.reach)?)),
            PAD_B_LEN => {
                let distance = distance(from, to, form.reach)?;
                Ok(b(word(Code::EMPTY, BTI_C), distance - i64::from(WORD))) // bti c; b to
            }
            ADRP_LEN => {
                distance(from, to, form.reach)?;
                let pages = (to >> 12).wrapping_sub(from >> 12) as u32;
                let adrp = ADRP_X16 | (pages & 3) << 29 | (pages >> 2 & 0x7_ffff) << 5;
                let add = ADD_X16_X16 | (to as u32 & 0xfff) << 10;
                // adrp x16, page; add x16, x16, #offset; br x16
                Ok([adrp, add, BR_X16].into_iter().fold(Code::EMPTY, word))
            }
            _ => {
                aligned(from)?;
                absolute(to)
            }
        }
    }

    fn encode_landing(&self, form: &JumpForm, at: u64, new: u64) -> Result<Code, EncodeError> {
        match form.via {
            Via::Direct => Ok(Code::EMPTY),
            Via::NearIsland | Via::ImageLanding => {
                aligned(at)?;
                absolute(new)
            }
        }
    }

    fn landing_pad_len(&self, entry: &[u8]) -> u8 {
        if matches!(first(entry), Some(BTI_C | BTI_J | BTI_JC)) { WORD } else { 0 }
    }

    /// What signs the return address is a pad as well ("PSTATE.BTYPE": PACIASP and its like are implicit `bti c`).
    fn takes_indirect(&self, entry: &[u8]) -> bool {
        self.landing_pad_len(entry) > 0 || signs(entry)
    }

    /// Where a pad signs the return address, only forms with a pad of their own.
    fn suits(&self, form: &JumpForm, entry: &[u8]) -> bool {
        form.len == PAD_B_LEN || !signs(entry)
    }

    /// Counts whole words that assemblers and linkers fill gaps with.
    fn padding_len(&self, bytes: &[u8]) -> usize {
        let (words, _) = bytes.as_chunks::<4>();
        4 * words.iter().take_while(|w| matches!(u32::from_le_bytes(**w), NOP | BRK_1 | UDF_0)).count()
    }

    /// One pass over `code`, word by word. What is reported, at the address of the instruction:
    ///
    /// * `b`, `bl`, `b.cond`, `bc.cond`, `cbz`, `cbnz`, `tbz`, `tbnz`, `cb<cc>`;
    /// * `adr`, loads and prefetches of literals;
    /// * `add` and `sub` of a constant to, and loads and stores at a constant offset from, a register that an `adrp` before (in
    ///   the order of addresses) left a page in, or such an `add` an address.
    ///
    /// Not found: addresses built by `movz` and `movk` or loaded, jump tables, and instructions outside of `code`.
    fn scan_branches(
        &self,
        code: &[u8],
        at: u64,
        lo: u64,
        hi: u64,
        _constants: &Constants<'_>,
        hit: &mut dyn FnMut(u64, u64),
    ) {
        if lo >= hi {
            return;
        }
        let skip = (at.wrapping_neg() & 3) as usize;
        let (words, _) = code.get(skip..).unwrap_or(&[]).as_chunks::<4>();
        let mut pages = Pages::default();
        let mut here = at.wrapping_add(skip as u64);
        for w in words {
            let w = u32::from_le_bytes(*w);
            let mut found = |target: u64| {
                if lo <= target && target < hi {
                    hit(here, target);
                }
            };
            match direct(w, here) {
                Some(target) => found(target),
                None => pages.step(w, here, &mut found),
            }
            here = here.wrapping_add(4);
        }
    }
}

/// The first instruction.
fn first(code: &[u8]) -> Option<u32> {
    code.first_chunk().map(|w| u32::from_le_bytes(*w))
}

/// Does a function that begins so sign its return address first?
fn signs(entry: &[u8]) -> bool {
    matches!(first(entry), Some(PACIASP | PACIBSP | PACIASPPC | PACIBSPPC))
}

/// Addresses that instructions build together.
#[derive(Clone, Copy, Default)]
struct Pages {
    /// What the last `adrp` to each register left there. Never forgotten: code in other places may still count on it.
    page: [Option<u64>; 32],
    /// What the last `add` to each register made of a page; until the next `adrp`.
    sum: [Option<u64>; 32],
}

impl Pages {
    fn step(&mut self, w: u32, here: u64, found: &mut dyn FnMut(u64)) {
        let (rd, rn) = ((w & 31) as usize, (w >> 5 & 31) as usize);
        if let Some((_, page)) = page(w, here) {
            self.page[rd] = Some(page);
            self.sum[rd] = None;
            return;
        }
        let (page, sum) = (self.page[rn], self.sum[rn]);
        if page.is_none() && sum.is_none() {
            return;
        }
        let Some(offset) = offset(w) else { return };
        let targets = [page, sum].map(|base| base.map(|b| b.wrapping_add_signed(offset)));
        targets.into_iter().flatten().for_each(found);
        if is_add(w) {
            self.sum[rd] = targets[0].or(targets[1]);
        }
    }
}

/// Address of the first `adrp` in `code` (which lies at `at`) that makes a Cortex-A53 with erratum 843419 compute a wrong address:
/// one in the last two words of a page of 4 KiB, with a load or store behind it, and within two more instructions a
/// load or store at an offset from its register. GNU ld and lld move or rewrite such code when asked to
/// (`--fix-cortex-a53-843419`); a patch image has to be laid out so that there is none.
///
/// Takes some sequences for harmful that are not (the list of loads and stores that the erratum needs is shorter).
#[must_use]
pub fn cortex_a53_843419(code: &[u8], at: u64) -> Option<u64> {
    let skip = (at.wrapping_neg() & 3) as usize;
    let (words, _) = code.get(skip..)?.as_chunks::<4>();
    let insn = |i: usize| words.get(i).map(|w| u32::from_le_bytes(*w));
    let base = at.wrapping_add(skip as u64);
    let mut page_end = ((0xff8u64.wrapping_sub(base) & 0xfff) / 4) as usize;
    if base & 0xfff == 0xffc {
        page_end = 0; // starts with the second of the two words
    }
    while page_end < words.len() {
        let place = base.wrapping_add(4 * page_end as u64);
        let both = if place & 0xfff == 0xff8 { 2 } else { 1 };
        for i in page_end..page_end + both {
            if is_843419(insn(i), insn(i + 1), insn(i + 2), insn(i + 3)) {
                return Some(base.wrapping_add(4 * i as u64));
            }
        }
        page_end += if both == 2 { 1024 } else { 1023 };
    }
    None
}

fn is_843419(first: Option<u32>, second: Option<u32>, third: Option<u32>, fourth: Option<u32>) -> bool {
    let (Some(first), Some(second), Some(third)) = (first, second, third) else { return false };
    if first >> 24 & 0x9f != 0x90 {
        return false;
    }
    let rd = first & 31;
    let memory = |w: u32| w >> 24 & 0x0a == 0x08;
    let based = |w: u32| w >> 24 & 0x3b == 0x39 && w >> 5 & 31 == rd;
    // A plain load that replaces the page, as loads of GOT slots do.
    let replaced = second >> 24 & 0x3f == 0x39 && second >> 22 & 3 != 0 && second & 31 == rd;
    let branch = third >> 26 & 7 == 5;
    memory(second) && !replaced && (based(third) || !branch && fourth.is_some_and(based))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use capstone::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    /// What capstone prints for `code` at `at`, up to the first bytes that are no instruction.
    pub(crate) fn text(code: &[u8], at: u64) -> String {
        let cs = Capstone::new().arm64().mode(arch::arm64::ArchMode::Arm).build().unwrap();
        let all = cs.disasm_all(code, at).unwrap();
        let each: Vec<String> = all
            .iter()
            .map(|i| format!("{} {}", i.mnemonic().unwrap(), i.op_str().unwrap_or("")).trim_end().into())
            .collect();
        each.join("; ")
    }

    fn by_name(name: &str) -> &'static JumpForm {
        FORMS.iter().find(|f| f.name == name).unwrap()
    }

    /// form, from, to, words, assembly text (of the code, without the quads)
    type Row = (&'static str, u64, u64, &'static [u32], &'static str);

    const JUMPS: &[Row] = &[
        ("b", 0x40_1000, 0x40_2000, &[0x1400_0400], "b #0x402000"),
        ("b", 0x40_2000, 0x40_1000, &[0x17ff_fc00], "b #0x401000"),
        ("b", 0xaaaa_aaaa_1004, 0xaaaa_b2aa_1000, &[0x15ff_ffff], "b #0xaaaab2aa1000"),
        ("b", 0xaaaa_b2aa_1000, 0xaaaa_aaaa_1000, &[0x1600_0000], "b #0xaaaaaaaa1000"),
        ("b-island", 0xffff_f7c0_0004, 0xffff_f7b0_0000, &[0x17fb_ffff], "b #0xfffff7b00000"),
        ("bti-b", 0x40_1000, 0x40_2000, &[0xd503_245f, 0x1400_03ff], "bti c; b #0x402000"),
        ("bti-b", 0x40_2000, 0x40_1000, &[0xd503_245f, 0x17ff_fbff], "bti c; b #0x401000"),
        ("bti-b-island", 0x40_1000, 0x40_2000, &[0xd503_245f, 0x1400_03ff], "bti c; b #0x402000"),
        (
            "adrp",
            0x40_1ffc,
            0x40_2004,
            &[0xb000_0010, 0x9100_1210, 0xd61f_0200],
            "adrp x16, #0x402000; add x16, x16, #4; br x16",
        ),
        (
            "adrp",
            0xaaaa_aaaa_1004,
            0xaaa9_aaaa_1ffc,
            &[0x9080_0010, 0x913f_f210, 0xd61f_0200],
            "adrp x16, #0xaaa9aaaa1000; add x16, x16, #0xffc; br x16",
        ),
        (
            "ldr",
            0x40_1000,
            0xffff_f7b0_0010,
            &[0x5800_0050, 0xd61f_0200, 0xf7b0_0010, 0xffff],
            "ldr x16, #0x401008; br x16",
        ),
    ];

    const LANDINGS: &[Row] = &[
        ("b", 0x40_1000, 0x40_2000, &[], ""),
        ("bti-b", 0x40_1000, 0x40_2000, &[], ""),
        ("adrp", 0x40_1000, 0x40_2000, &[], ""),
        ("ldr", 0x40_1000, 0x40_2000, &[], ""),
        (
            "b-island",
            0xffff_f7b0_0000,
            0x1234_5678_9abc,
            &[0x5800_0050, 0xd61f_0200, 0x5678_9abc, 0x1234],
            "ldr x16, #0xfffff7b00008; br x16",
        ),
        (
            "bti-b-island",
            0xffff_f7b0_0000,
            0x1234_5678_9abc,
            &[0x5800_0050, 0xd61f_0200, 0x5678_9abc, 0x1234],
            "ldr x16, #0xfffff7b00008; br x16",
        ),
    ];

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// The instructions in front of a template's trailing quad.
    fn without_quad(code: &[u8]) -> &[u8] {
        if first(code) == Some(LDR_X16_8) { &code[..8] } else { code }
    }

    #[test]
    fn rows_encode_and_disassemble() {
        for (name, from, to, words, asm) in JUMPS {
            let code = Aarch64.encode_jump(by_name(name), *from, *to).unwrap();
            assert_eq!(code.bytes(), bytes(words), "{name}");
            assert_eq!(text(without_quad(code.bytes()), *from), *asm, "{name}");
            assert_eq!(code.bytes().len(), usize::from(by_name(name).len));
        }
        for (name, at, new, words, asm) in LANDINGS {
            let code = Aarch64.encode_landing(by_name(name), *at, *new).unwrap();
            assert_eq!(code.bytes(), bytes(words), "{name}");
            assert_eq!(text(without_quad(code.bytes()), *at), *asm, "{name}");
            assert_eq!(code.bytes().len(), usize::from(by_name(name).landing_len));
        }
        for f in &FORMS {
            assert!(JUMPS.iter().any(|r| r.0 == f.name) && LANDINGS.iter().any(|r| r.0 == f.name), "{}", f.name);
        }
        assert!(FORMS.windows(2).all(|w| w[0].len <= w[1].len), "cheapest first");
    }

    /// The reach that the table states is exactly what the encoders take.
    #[test]
    fn reach_is_exact() {
        for from in [0x7f00_0000_0000u64, 0x7f00_0000_0ffc, 0x7f00_0000_0800] {
            let check = |reach: Reach, encode: &dyn Fn(u64) -> Result<Code, EncodeError>| {
                let Reach::Offset(min, max) = reach else {
                    assert!(encode(0).is_ok() && encode(u64::MAX - 3).is_ok());
                    return;
                };
                for d in [min, max, 0] {
                    assert!(encode(from.wrapping_add_signed(d)).is_ok(), "{d:#x}");
                }
                for d in [min - 4, max + 4, min - 1, max + 1, i64::MIN, i64::MAX] {
                    let to = from.wrapping_add_signed(d);
                    assert_eq!(encode(to), Err(EncodeError::OutOfReach { from, to, reach }));
                }
            };
            for f in &FORMS {
                check(f.reach, &|to| Aarch64.encode_jump(f, from, to));
                check(f.landing_reach, &|to| Aarch64.encode_landing(f, from, to));
            }
        }
    }

    #[test]
    fn nothing_is_encoded_at_or_to_odd_addresses() {
        for f in &FORMS {
            for odd in 1..4 {
                for (from, to) in [(0x1000 + odd, 0x2000), (0x1000, 0x2000 + odd)] {
                    let at = if from % 4 != 0 { from } else { to };
                    let refused = Err(EncodeError::Misaligned { at, align: 4 });
                    assert_eq!(Aarch64.encode_jump(f, from, to), refused, "{}", f.name);
                    if f.via != Via::Direct {
                        assert_eq!(Aarch64.encode_landing(f, from, to), refused, "{}", f.name);
                    }
                }
            }
        }
    }

    /// What `adrp` and `add` compute is the target, wherever the two lie in their pages.
    #[test]
    fn pages_add_up() {
        let f = by_name("adrp");
        let Reach::Offset(min, max) = f.reach else { unreachable!() };
        for from in (0..0x2000).step_by(0x3fc).map(|o| 0x5555_0000_0000u64 + o) {
            for d in [min, min + 4, -4096, -4, 0, 4, 4092, 0x1234_5678, max - 4, max] {
                let to = from.wrapping_add_signed(d);
                let code = Aarch64.encode_jump(f, from, to).unwrap();
                let mut seen = Vec::new();
                let all = 0..u64::MAX;
                Aarch64.scan_branches(code.bytes(), from, all.start, all.end, &Constants::NONE, &mut |at, to| {
                    seen.push((at, to));
                });
                assert_eq!(seen, [(from + 4, to)]);
            }
        }
    }

    #[test]
    fn landing_pads_are_those_that_do_nothing_else() {
        let entry = |insn: u32| bytes(&[insn, 0xa9bf_7bfd]);
        for (insn, asm) in [(BTI_C, "bti c"), (BTI_J, "bti j"), (BTI_JC, "bti jc")] {
            assert_eq!(text(&insn.to_le_bytes(), 0), asm);
            assert_eq!(Aarch64.landing_pad_len(&entry(insn)), 4, "{asm}");
            assert!(Aarch64.takes_indirect(&entry(insn)), "{asm}");
            assert!(FORMS.iter().all(|f| Aarch64.suits(f, &entry(insn))));
        }
        let signing = [(PACIASP, "paciasp"), (PACIBSP, "pacibsp"), (PACIASPPC, ""), (PACIBSPPC, "")];
        for (insn, asm) in signing {
            // capstone does not know the newest.
            if !asm.is_empty() {
                assert_eq!(text(&insn.to_le_bytes(), 0), asm);
            }
            assert!(Aarch64.takes_indirect(&entry(insn)));
            assert_eq!(Aarch64.landing_pad_len(&entry(insn)), 0, "{asm} must not run before the new function");
            let suit: Vec<&str> = FORMS.iter().filter(|f| Aarch64.suits(f, &entry(insn))).map(|f| f.name).collect();
            assert_eq!(suit, ["bti-b", "bti-b-island"], "{asm}");
            // Behind a pad of its own it is none.
            assert!(FORMS.iter().all(|f| Aarch64.suits(f, &bytes(&[BTI_C, insn]))));
        }
        // bti without a target, nop, autiasp, the first of a frame
        for insn in [0xd503_241f, NOP, 0xd503_23bf, 0xa9bf_7bfd] {
            assert_eq!(Aarch64.landing_pad_len(&entry(insn)), 0);
            assert!(!Aarch64.takes_indirect(&entry(insn)));
            assert!(FORMS.iter().all(|f| Aarch64.suits(f, &entry(insn))));
        }
        assert_eq!(Aarch64.landing_pad_len(&BTI_C.to_le_bytes()[..3]), 0);
        assert_eq!(Aarch64.landing_pad_len(&[]), 0);
        assert!(Aarch64.suits(&FORMS[0], &[]));
    }

    #[test]
    fn padding_takes_whole_words_of_nothing() {
        for (insn, asm) in [(NOP, "nop"), (BRK_1, "brk #1"), (UDF_0, "udf #0")] {
            assert_eq!(text(&insn.to_le_bytes(), 0), asm);
            assert_eq!(Aarch64.padding_len(&insn.to_le_bytes()), 4);
            assert_eq!(Aarch64.padding_len(&insn.to_le_bytes()[..3]), 0, "cut off");
        }
        assert_eq!(Aarch64.padding_len(&bytes(&[NOP, UDF_0, BRK_1, NOP, BTI_C, NOP])), 16);
        // yield, paciasp, bti c, csdb: hints that are no padding; brk #0, ret, udf #1
        for insn in [0xd503_203f, PACIASP, BTI_C, 0xd503_229f, 0xd420_0000, 0xd65f_03c0, 1] {
            assert_eq!(Aarch64.padding_len(&bytes(&[insn, NOP])), 0, "{insn:#x}");
        }
        assert_eq!(Aarch64.padding_len(&[]), 0);
    }

    fn scan(code: &[u8], at: u64, lo: u64, hi: u64) -> Vec<(u64, u64)> {
        let mut hits = Vec::new();
        Aarch64.scan_branches(code, at, lo, hi, &Constants::NONE, &mut |from, to| hits.push((from, to)));
        hits
    }

    #[test]
    fn scan_reports_each_kind() {
        // (words at 0x40_1000, which of them is reported, target, text of that one)
        let rows: &[(&[u32], u64, u64, &str)] = &[
            (&[0x1400_0400], 0, 0x40_2000, "b #0x402000"),
            (&[0x97ff_fc00], 0, 0x40_0000, "bl #0x400000"),
            (&[0x5400_8001], 0, 0x40_2000, "b.ne #0x402000"),
            (&[0x34ff_8001], 0, 0x40_0000, "cbz w1, #0x400000"),
            (&[0xb500_8001], 0, 0x40_2000, "cbnz x1, #0x402000"),
            (&[0x3600_8001], 0, 0x40_2000, "tbz w1, #0, #0x402000"),
            (&[0xb707_8001], 0, 0x40_0000, "tbnz x1, #0x20, #0x400000"),
            (&[0x7000_7fe1], 0, 0x40_1fff, "adr x1, #0x401fff"),
            (&[0x10ff_8001], 0, 0x40_0000, "adr x1, #0x400000"),
            (&[0x1800_8001], 0, 0x40_2000, "ldr w1, #0x402000"),
            (&[0x5800_8001], 0, 0x40_2000, "ldr x1, #0x402000"),
            (&[0x9800_8001], 0, 0x40_2000, "ldrsw x1, #0x402000"),
            (&[0x1c00_8001], 0, 0x40_2000, "ldr s1, #0x402000"),
            (&[0x5c00_8001], 0, 0x40_2000, "ldr d1, #0x402000"),
            (&[0x9c00_8001], 0, 0x40_2000, "ldr q1, #0x402000"),
            (&[0xd800_8001], 0, 0x40_2000, "prfm pldl1strm, #0x402000"),
            (&[0x9000_0001, 0x9100_8022], 1, 0x40_1020, "add x2, x1, #0x20"),
            (&[0xb000_0001, 0x9140_0421], 1, 0x40_3000, "add x1, x1, #1, lsl #12"),
            (&[0xb000_0001, 0xd100_1021], 1, 0x40_1ffc, "sub x1, x1, #4"),
            (&[0xb000_0001, NOP, NOP, 0xf940_1022], 3, 0x40_2020, "ldr x2, [x1, #0x20]"),
            (&[0xb000_0001, 0xb900_1022], 1, 0x40_2010, "str w2, [x1, #0x10]"),
            (&[0xb000_0001, 0x3940_1022], 1, 0x40_2004, "ldrb w2, [x1, #4]"),
            (&[0xb000_0001, 0x3dc0_0422], 1, 0x40_2010, "ldr q2, [x1, #0x10]"),
            (&[0xb000_0001, 0xfd40_0422], 1, 0x40_2008, "ldr d2, [x1, #8]"),
            // one page, two addresses; an address and what lies behind it
            (&[0xb000_0001, 0x9100_4021, 0x9100_8021], 2, 0x40_2020, "add x1, x1, #0x20"),
            (&[0xb000_0001, 0x9100_4021, 0xf940_0422], 2, 0x40_2018, "ldr x2, [x1, #8]"),
        ];
        for (words, which, to, asm) in rows {
            let code = bytes(words);
            let from = 0x40_1000 + 4 * which;
            assert_eq!(text(&code[4 * *which as usize..], from), *asm);
            for shift in [0u64, 1, 2, 3, 4] {
                // The same behind other bytes.
                let mut long = std::vec![0u8; shift as usize];
                long.extend_from_slice(&code);
                assert!(scan(&long, 0x40_1000 - shift, *to, to + 1).contains(&(from, *to)), "{asm}");
            }
            assert!(!scan(&code, 0x40_1000, to + 1, to + 2).iter().any(|h| h.1 == *to));
            assert!(scan(&code, 0x40_1000, *to, *to).is_empty(), "an empty window");
        }
        // What only looks like it: br, ret, blr, adds, add of 32 bits, ldr at a register.
        let others = [0xd61f_0200, 0xd65f_03c0, 0xd63f_0200, 0xb100_8022, 0x1100_8022, 0xf862_6822];
        assert_eq!(scan(&bytes(&others), 0x40_1000, 0, u64::MAX), []);
        assert_eq!(scan(&bytes(&[0xb000_0001, 0xb100_8022, 0x1100_8022]), 0x40_1000, 0, u64::MAX), []);
        assert_eq!(scan(&[0, 0, 0], 0x40_1000, 0, u64::MAX), []);
    }

    #[test]
    fn erratum_843419_is_seen_at_page_ends() {
        const ADRP_X0: u32 = 0xb000_0000; // adrp x0, next page
        const STR: u32 = 0xf900_0041; // str x1, [x2]
        const ADD: u32 = 0x9100_0421; // add x1, x1, #1
        const USE: u32 = 0xf940_0003; // ldr x3, [x0]
        const OTHER: u32 = 0xf940_0023; // ldr x3, [x1]
        const GOT: u32 = 0xf940_0000; // ldr x0, [x0]
        let harmful: &[[u32; 4]] = &[[ADRP_X0, STR, USE, NOP], [ADRP_X0, STR, ADD, USE], [ADRP_X0, STR, OTHER, USE]];
        let harmless: &[[u32; 4]] = &[
            [ADRP_X0, ADD, USE, NOP],
            [ADRP_X0, STR, OTHER, NOP],
            [ADRP_X0, GOT, USE, USE],
            [ADRP_X0, STR, BR_X16, USE],
            [NOP, STR, USE, USE],
        ];
        for start in [0x40_1000u64, 0x40_1ff8, 0x40_1ffc, 0x40_1ff6] {
            for place in [0x40_1ff8u64, 0x40_1ffc, 0x40_2ff8, 0x40_2ffc, 0x40_1ff4, 0x40_2000] {
                if place < start {
                    continue;
                }
                let at_end = place & 0xfff >= 0xff8;
                let lay = |insns: &[u32; 4]| {
                    let mut code = std::vec![0xffu8; (place - start) as usize];
                    code.extend(bytes(insns));
                    code
                };
                for insns in harmful {
                    let found = cortex_a53_843419(&lay(insns), start);
                    assert_eq!(found, at_end.then_some(place), "{insns:x?} at {place:#x} from {start:#x}");
                }
                for insns in harmless {
                    assert_eq!(cortex_a53_843419(&lay(insns), start), None, "{insns:x?}");
                }
            }
        }
        assert_eq!(cortex_a53_843419(&[], 0xff8), None);
        assert_eq!(cortex_a53_843419(&bytes(&[ADRP_X0, STR]), 0xff8), None);
    }
}
