//! Jump forms, landing pads, padding, and the search for branches.
//!
//! Odd in this ABI:
//! * A relative jump counts from the end of its instruction, so its reach from the site is not symmetrical.
//! * There is no jump to an absolute 64-bit address in an instruction; the shortest ways are a load of a quad behind the
//!   instruction (14 bytes) or through a register (13 bytes with a register saved on the stack). At a function's
//!   entry every register may hold an argument or belong to the caller (rax: the number of vector arguments, r10: the
//!   static chain, r11: free by the psABI, but -fipa-ra gives it to callers), so no form leaves one changed.
//! * What is pushed at an entry lies below the return address, where the old function's own frame would be: no red zone is
//!   in use there. A redirection must not *return* to its target, though: `push; ret` breaks shadow stacks and return
//!   prediction.
//! * `endbr64` at an entry stays (an indirect call must find it), the jump goes behind it. Indirect jumps of a form
//!   land on code without `endbr64`: Linux does not enforce branch tracking in user space.
//!
//! Source: SDM volume 2, "JMP", "Jcc", "CALL", "NOP", "ENDBR64", and "RIP-Relative Addressing" in chapter 2.

use crate::X86_64;
use tigerfix_core::arch::{Code, Constants, EncodeError, JumpForm, Reach, TrampolineEncoder, Via};

/// `jmp rel32`, up to the displacement.
const JMP_REL32: [u8; 1] = [0xe9];
/// `jmp qword ptr [rip]`, complete; the address follows as a quad.
const JMP_RIP_0: [u8; 6] = [0xff, 0x25, 0x00, 0x00, 0x00, 0x00];
/// `push rax`, `movabs rax, imm64` up to the immediate.
const PUSH_MOVABS: [u8; 3] = [0x50, 0x48, 0xb8];
/// `jmp rax`
const JMP_RAX: [u8; 2] = [0xff, 0xe0];
/// `pop rax`, `jmp rel32` up to the displacement.
const POP_JMP: [u8; 2] = [0x58, 0xe9];
/// `endbr64`
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

const REL32_LEN: u8 = 5;
const ABS_LEN: u8 = 14;
const PUSH_LEN: u8 = 13;
const POP_LEN: u8 = 6;
const _: () = {
    assert!(JMP_REL32.len() + 4 == REL32_LEN as usize);
    assert!(JMP_RIP_0.len() + 8 == ABS_LEN as usize);
    assert!(PUSH_MOVABS.len() + 8 + JMP_RAX.len() == PUSH_LEN as usize);
    assert!(POP_JMP.len() + 4 == POP_LEN as usize);
    assert!(ABS_LEN as usize <= Code::CAPACITY);
};

/// How far `to - from` may be for an instruction at `from` that ends with its 32-bit displacement after `len` bytes.
const fn reach(len: u8) -> (i64, i64) {
    (i32::MIN as i64 + len as i64, i32::MAX as i64 + len as i64)
}

/// The same as a form's reach.
const fn offsets(len: u8) -> Reach {
    let (min, max) = reach(len);
    Reach::Offset(min, max)
}

/// The displacement of an instruction of `len` bytes at `from` that refers to `to`.
pub(crate) fn rel32(from: u64, to: u64, len: u8) -> Result<[u8; 4], EncodeError> {
    let end = from.wrapping_add(u64::from(len));
    match i32::try_from(to.wrapping_sub(end) as i64) {
        Ok(disp) => Ok(disp.to_le_bytes()),
        Err(_) => Err(EncodeError::OutOfReach { from, to, reach: offsets(len) }),
    }
}

/// Cheapest first: by the bytes they take from the function, then by what they cost on each call.
static FORMS: [JumpForm; 4] = [
    // jmp rel32 to the new function
    JumpForm {
        name: "jmp-rel32",
        len: REL32_LEN,
        align: 1,
        reach: offsets(REL32_LEN),
        via: Via::Direct,
        landing_len: 0,
        landing_reach: Reach::Anywhere,
        own_address: true,
        clobbers: &[],
        single_store: false,
    },
    // jmp rel32 to a near island, which holds: jmp qword ptr [rip]; quad
    JumpForm {
        name: "island",
        len: REL32_LEN,
        align: 1,
        reach: offsets(REL32_LEN),
        via: Via::NearIsland,
        landing_len: ABS_LEN,
        landing_reach: Reach::Anywhere,
        own_address: true,
        clobbers: &[],
        single_store: false,
    },
    // push rax; movabs rax, landing; jmp rax -- landing in the image: pop rax; jmp rel32
    JumpForm {
        name: "push-mov-jmp",
        len: PUSH_LEN,
        align: 1,
        reach: Reach::Anywhere,
        via: Via::ImageLanding,
        landing_len: POP_LEN,
        landing_reach: offsets(POP_LEN),
        own_address: true,
        clobbers: &[], // rax is changed and restored
        single_store: false,
    },
    // jmp qword ptr [rip]; quad
    JumpForm {
        name: "jmp-rip",
        len: ABS_LEN,
        align: 1,
        reach: Reach::Anywhere,
        via: Via::Direct,
        landing_len: 0,
        landing_reach: Reach::Anywhere,
        own_address: true,
        clobbers: &[],
        single_store: false,
    },
];

fn jmp_rel32(from: u64, to: u64) -> Result<Code, EncodeError> {
    let disp = rel32(from, to, REL32_LEN)?;
    Ok(Code::EMPTY.then(&JMP_REL32).then(&disp)) // jmp to
}

fn jmp_abs(to: u64) -> Code {
    Code::EMPTY.then(&JMP_RIP_0).then(&to.to_le_bytes()) // jmp qword ptr [rip]; .quad to
}

impl TrampolineEncoder for X86_64 {
    fn forms(&self) -> &'static [JumpForm] {
        &FORMS
    }

    fn encode_jump(&self, form: &JumpForm, from: u64, to: u64) -> Result<Code, EncodeError> {
        match form.via {
            Via::Direct if form.reach == Reach::Anywhere => Ok(jmp_abs(to)),
            Via::Direct | Via::NearIsland => jmp_rel32(from, to),
            // push rax; movabs rax, to; jmp rax
            Via::ImageLanding => Ok(Code::EMPTY.then(&PUSH_MOVABS).then(&to.to_le_bytes()).then(&JMP_RAX)),
        }
    }

    fn encode_landing(&self, form: &JumpForm, at: u64, new: u64) -> Result<Code, EncodeError> {
        match form.via {
            Via::Direct => Ok(Code::EMPTY),
            Via::NearIsland => Ok(jmp_abs(new)),
            Via::ImageLanding => {
                let disp = rel32(at, new, POP_LEN)?;
                Ok(Code::EMPTY.then(&POP_JMP).then(&disp)) // pop rax; jmp new
            }
        }
    }

    fn landing_pad_len(&self, entry: &[u8]) -> u8 {
        if entry.starts_with(&ENDBR64) { ENDBR64.len() as u8 } else { 0 }
    }

    /// Counts whole `nop`s, in all lengths that assemblers and linkers fill gaps with, and `int3`.
    /// `call rel32` is e8 and four bytes; `call r/m64` is ff /2 with up to five more (Intel SDM, volume 2, "CALL").
    fn may_return_behind(&self, before: &[u8]) -> bool {
        let back = |n: usize| before.len().checked_sub(n).and_then(|i| before.get(i..));
        let indirect = |n: usize| back(n).is_some_and(|b| b[0] == 0xff && b[1] >> 3 & 7 == 2);
        before.len() < 7 || back(5).is_some_and(|b| b[0] == 0xe8) || (2..=7).any(indirect)
    }

    fn padding_len(&self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(n) = filler_len(&bytes[at..]) {
            at += n;
        }
        at
    }

    /// One pass over `code` at memory speed. What is reported:
    ///
    /// * `jmp`/`call rel32`, `jcc rel32`, `xbegin`: address of the opcode (prefixes before it are not looked for);
    /// * `jmp`/`jcc`/`loop*`/`jrcxz rel8`: address of the opcode;
    /// * RIP-relative operands (a ModRM byte with mod 0 and rm 5, then the displacement, then an immediate of 0, 1, 2 or 4
    ///   bytes): address of the *displacement*, since where the instruction starts can't be told backwards. One
    ///   operand may be reported with several targets, one for each length of the immediate.
    ///
    /// Every position in `code` is tried, so bytes in the middle of an instruction or in data may be reported too. Not
    /// found: absolute addresses (immediates, jump tables, APX `jmpabs`), and instructions of which `code` holds only a part.
    fn scan_branches(
        &self,
        code: &[u8],
        at: u64,
        lo: u64,
        hi: u64,
        _constants: &Constants<'_>,
        hit: &mut dyn FnMut(u64, u64),
    ) {
        if lo < hi {
            let scan = Scan { code, at, lo, hi };
            scan.short_branches(hit);
            scan.displacements(hit);
        }
    }
}

/// Length of the `nop` or `int3` that `b` starts with.
fn filler_len(b: &[u8]) -> Option<usize> {
    /// The processor refuses longer instructions.
    const LONGEST: usize = 15;
    if b.first() == Some(&0xcc) {
        return Some(1); // int3
    }
    // Operand-size and cs prefixes, in any number: data16 cs nop ...
    let prefixes = b.iter().take(LONGEST).take_while(|p| matches!(p, 0x66 | 0x2e)).count();
    let len = match b.get(prefixes..)? {
        [0x90, ..] => 1, // nop (with 66: xchg ax, ax)
        // nop r/m: 0f 1f /0, with all of ModRM's address forms
        [0x0f, 0x1f, modrm, tail @ ..] if modrm & 0o070 == 0 => {
            let (mode, rm) = (modrm >> 6, modrm & 7);
            let sib = usize::from(mode != 3 && rm == 4);
            let disp = match mode {
                0 if rm == 5 => 4,                                             // [rip + disp32]
                0 if rm == 4 && tail.first().is_some_and(|s| s & 7 == 5) => 4, // SIB without a base
                1 => 1,
                2 => 4,
                _ => 0,
            };
            3 + sib + disp
        }
        _ => return None,
    };
    let whole = prefixes + len;
    (whole <= LONGEST && whole <= b.len()).then_some(whole)
}

/// A search for references from `code` (at address `at`) into `lo..hi`.
struct Scan<'a> {
    code: &'a [u8],
    at: u64,
    lo: u64,
    hi: u64,
}

impl Scan<'_> {
    /// Positions that are filtered in one go.
    const BLOCK: usize = 1024;
    /// Immediates that may follow a displacement, bytes.
    const IMMEDIATES: [u64; 4] = [0, 1, 2, 4];
    /// The longest of them.
    const LONGEST_IMMEDIATE: u64 = 4;

    fn addr(&self, i: usize) -> u64 {
        self.at.wrapping_add(i as u64)
    }

    fn wanted(&self, target: u64) -> bool {
        self.lo <= target && target < self.hi
    }

    /// Branches with an 8-bit displacement can only come from around the window, so only that is looked at.
    fn short_branches(&self, hit: &mut dyn FnMut(u64, u64)) {
        // target = address + 2 + disp, disp in -128..=127
        let first = self.lo.saturating_sub(2 + 127).saturating_sub(self.at);
        let last = self.hi.saturating_add(128 - 2).saturating_sub(self.at);
        let clamp = |v: u64| usize::try_from(v).unwrap_or(usize::MAX).min(self.code.len());
        let near = clamp(first)..clamp(last.saturating_add(1));
        let start = near.start;
        for (i, pair) in self.code[near].windows(2).enumerate() {
            // jmp rel8; jcc rel8; loopne, loope, loop, jrcxz
            if matches!(pair[0], 0xeb | 0x70..=0x7f | 0xe0..=0xe3) {
                let from = self.addr(start + i);
                let target = from.wrapping_add(2).wrapping_add_signed(i64::from(pair[1] as i8));
                if self.wanted(target) {
                    hit(from, target);
                }
            }
        }
    }

    /// Everything with a 32-bit displacement at the end of the instruction or before its immediate.
    ///
    /// A displacement `d` at position `i` leads into the window when `at + i + 4 + k + d` lies in `lo..hi`, `k` being
    /// the immediate's length. Modulo 2^32 and for all `k` at once this is one addition and one comparison, which the
    /// compiler does for several positions in one instruction; only blocks in which it holds somewhere are looked at.
    fn displacements(&self, hit: &mut dyn FnMut(u64, u64)) {
        let positions = self.code.len().saturating_sub(3);
        let width = u32::try_from((self.hi - self.lo).saturating_add(Self::LONGEST_IMMEDIATE));
        let mut start = 0;
        if let Ok(width) = width {
            // Compared as signed numbers with the sign bit flipped: the baseline has no unsigned vector comparison.
            let limit = (width ^ SIGN) as i32;
            while start + Self::BLOCK + 3 <= self.code.len() {
                // d + at + i + 4 - (lo - LONGEST_IMMEDIATE) at i = start
                let base = self.addr(start).wrapping_add(4 + Self::LONGEST_IMMEDIATE).wrapping_sub(self.lo) as u32;
                if (0..4).any(|phase| self.phase_may_hit(start + phase, base.wrapping_add(phase as u32), limit)) {
                    (start..start + Self::BLOCK).for_each(|i| self.displacement_at(i, hit));
                }
                start += Self::BLOCK;
            }
        }
        (start..positions).for_each(|i| self.displacement_at(i, hit));
    }

    /// Does one of the words at `start`, `start + 4`, ... (one block) pass the filter?
    fn phase_may_hit(&self, start: usize, base: u32, limit: i32) -> bool {
        let (words, _) = self.code[start..start + Self::BLOCK].as_chunks::<4>();
        let mut place = base ^ SIGN; // flips the sign bit of every sum below
        let mut any = false;
        for w in words {
            any |= (u32::from_le_bytes(*w).wrapping_add(place) as i32) < limit;
            place = place.wrapping_add(4);
        }
        any
    }

    /// The exact test of position `i`.
    fn displacement_at(&self, i: usize, hit: &mut dyn FnMut(u64, u64)) {
        let Some(&[a, b, c, d]) = self.code.get(i..i + 4) else { return };
        let disp = i64::from(i32::from_le_bytes([a, b, c, d]));
        let end = self.addr(i).wrapping_add(4).wrapping_add_signed(disp);
        let before = |n: usize| i.checked_sub(n).map(|at| self.code[at]);
        // jmp, call rel32: one opcode byte; jcc rel32 (0f 80..8f), xbegin (c7 f8): two
        let opcode = match (before(2), before(1)) {
            (_, Some(0xe8 | 0xe9)) => 1,
            (Some(0x0f), Some(0x80..=0x8f)) | (Some(0xc7), Some(0xf8)) => 2,
            _ => 0,
        };
        if opcode != 0 {
            if self.wanted(end) {
                hit(self.addr(i - opcode), end);
            }
        } else if before(1).is_some_and(|modrm| modrm & 0o307 == 0o005) {
            for k in Self::IMMEDIATES {
                let target = end.wrapping_add(k);
                if self.wanted(target) {
                    hit(self.addr(i), target);
                }
            }
        }
    }
}

const SIGN: u32 = 1 << 31;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use capstone::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn capstone() -> Capstone {
        Capstone::new().x86().mode(arch::x86::ArchMode::Mode64).build().unwrap()
    }

    /// What capstone prints for `code` at `at`, up to the first bytes that are no instruction.
    pub(crate) fn text(code: &[u8], at: u64) -> String {
        let cs = capstone();
        let all = cs.disasm_all(code, at).unwrap();
        let each: Vec<String> = all
            .iter()
            .map(|i| format!("{} {}", i.mnemonic().unwrap(), i.op_str().unwrap_or("")).trim_end().into())
            .collect();
        each.join("; ")
    }

    fn form(name: &str) -> &'static JumpForm {
        FORMS.iter().find(|f| f.name == name).unwrap()
    }

    /// form, from, to, bytes, assembly text (of the code, without the quads)
    type Row = (&'static str, u64, u64, &'static [u8], &'static str);

    const JUMPS: &[Row] = &[
        ("jmp-rel32", 0x40_1000, 0x40_2000, &[0xe9, 0xfb, 0x0f, 0x00, 0x00], "jmp 0x402000"),
        ("jmp-rel32", 0x40_2000, 0x40_1000, &[0xe9, 0xfb, 0xef, 0xff, 0xff], "jmp 0x401000"),
        ("jmp-rel32", 0x5555_5555_5004, 0x5555_d555_5008, &[0xe9, 0xff, 0xff, 0xff, 0x7f], "jmp 0x5555d5555008"),
        ("jmp-rel32", 0x5555_d555_5000, 0x5555_5555_5005, &[0xe9, 0x00, 0x00, 0x00, 0x80], "jmp 0x555555555005"),
        ("island", 0x7fff_f7c0_0004, 0x7fff_f7b0_0000, &[0xe9, 0xf7, 0xff, 0xef, 0xff], "jmp 0x7ffff7b00000"),
        (
            "push-mov-jmp",
            0x40_1000,
            0x7fff_f7b0_0010,
            &[0x50, 0x48, 0xb8, 0x10, 0x00, 0xb0, 0xf7, 0xff, 0x7f, 0x00, 0x00, 0xff, 0xe0],
            "push rax; movabs rax, 0x7ffff7b00010; jmp rax",
        ),
        (
            "jmp-rip",
            0x40_1000,
            0x7fff_f7b0_0010,
            &[0xff, 0x25, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0xb0, 0xf7, 0xff, 0x7f, 0x00, 0x00],
            "jmp qword ptr [rip]",
        ),
    ];

    const LANDINGS: &[Row] = &[
        ("jmp-rel32", 0x40_1000, 0x40_2000, &[], ""),
        ("jmp-rip", 0x40_1000, 0x40_2000, &[], ""),
        (
            "island",
            0x7fff_f7b0_0000,
            0x1234_5678_9abc,
            &[0xff, 0x25, 0x00, 0x00, 0x00, 0x00, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0x00, 0x00],
            "jmp qword ptr [rip]",
        ),
        (
            "push-mov-jmp",
            0x7fff_f7b0_0010,
            0x7fff_f7b0_0000,
            &[0x58, 0xe9, 0xea, 0xff, 0xff, 0xff],
            "pop rax; jmp 0x7ffff7b00000",
        ),
    ];

    /// The instructions in front of a template's trailing quad.
    fn without_quad(code: &[u8]) -> &[u8] {
        if code.starts_with(&JMP_RIP_0) { &code[..JMP_RIP_0.len()] } else { code }
    }

    #[test]
    fn calls_that_may_end_somewhere() {
        let ends = |code: &[u8]| X86_64.may_return_behind(&[&[0x90; 8], code].concat());
        for call in [
            &[0xe8, 1, 2, 3, 4][..],         // call
            &[0xff, 0xd0],                   // call rax
            &[0x41, 0xff, 0xd3],             // call r11
            &[0xff, 0x55, 0x10],             // call [rbp+16]
            &[0xff, 0x54, 0x24, 0x08],       // call [rsp+8]
            &[0xff, 0x15, 1, 2, 3, 4],       // call [rip+...]
            &[0xff, 0x94, 0xc3, 1, 2, 3, 4], // call [rbx+rax*8+...]
        ] {
            assert!(ends(call), "{call:02x?}");
        }
        for other in [&[0xc3][..], &[0xe9, 1, 2, 3, 4], &[0xff, 0xe0], &[0x5d, 0xc3], &[0x0f, 0x0b]] {
            assert!(!ends(other), "{other:02x?}");
        }
        assert!(X86_64.may_return_behind(&[0xc3]), "too little to tell");
    }

    #[test]
    fn rows_encode_and_disassemble() {
        for (name, from, to, bytes, asm) in JUMPS {
            let code = X86_64.encode_jump(form(name), *from, *to).unwrap();
            assert_eq!(code.bytes(), *bytes, "{name}");
            assert_eq!(text(without_quad(code.bytes()), *from), *asm, "{name}");
            assert_eq!(code.bytes().len(), usize::from(form(name).len));
        }
        for (name, at, new, bytes, asm) in LANDINGS {
            let code = X86_64.encode_landing(form(name), *at, *new).unwrap();
            assert_eq!(code.bytes(), *bytes, "{name}");
            assert_eq!(text(without_quad(code.bytes()), *at), *asm, "{name}");
            assert_eq!(code.bytes().len(), usize::from(form(name).landing_len));
        }
        for f in &FORMS {
            assert!(JUMPS.iter().any(|r| r.0 == f.name) && LANDINGS.iter().any(|r| r.0 == f.name), "{}", f.name);
        }
    }

    /// The reach that the table states is exactly what the encoders take.
    #[test]
    fn reach_is_exact() {
        let from = 0x7f00_0000_0000u64;
        let check = |reach: Reach, encode: &dyn Fn(u64) -> Result<Code, EncodeError>| {
            let Reach::Offset(min, max) = reach else {
                assert!(encode(0).is_ok() && encode(u64::MAX).is_ok());
                return;
            };
            for d in [min, max, 0] {
                assert!(encode(from.wrapping_add_signed(d)).is_ok());
            }
            for d in [min - 1, max + 1, i64::MIN, i64::MAX] {
                let to = from.wrapping_add_signed(d);
                assert_eq!(encode(to), Err(EncodeError::OutOfReach { from, to, reach }));
            }
        };
        for f in &FORMS {
            check(f.reach, &|to| X86_64.encode_jump(f, from, to));
            check(f.landing_reach, &|to| X86_64.encode_landing(f, from, to));
        }
    }

    #[test]
    fn landing_pad_is_endbr64_only() {
        assert_eq!(text(&ENDBR64, 0), "endbr64");
        assert_eq!(X86_64.landing_pad_len(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55]), 4);
        assert_eq!(X86_64.landing_pad_len(&[0xf3, 0x0f, 0x1e, 0xfb]), 0); // endbr32
        assert_eq!(X86_64.landing_pad_len(&[0xf3, 0x0f, 0x1e]), 0);
        assert_eq!(X86_64.landing_pad_len(&[]), 0);
    }

    #[test]
    fn padding_takes_every_nop_and_nothing_else() {
        let nops: &[&[u8]] = &[
            &[0xcc],                                                                      // int3
            &[0x90],                                                                      // nop
            &[0x66, 0x90],                                                                // xchg ax, ax
            &[0x66, 0x66, 0x90],                                                          // data16 nop
            &[0x0f, 0x1f, 0x00],                                                          // nop dword ptr [rax]
            &[0x0f, 0x1f, 0xc0],                                                          // nop eax
            &[0x0f, 0x1f, 0x40, 0x00],                                                    // nop dword ptr [rax + 0]
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],                                              // ... [rax + rax + 0]
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],                                        // nop word ptr
            &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],                                  // ... [rax + disp32]
            &[0x0f, 0x1f, 0x05, 0x00, 0x00, 0x00, 0x00],                                  // ... [rip + disp32]
            &[0x0f, 0x1f, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00],                            // ... [disp32]
            &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],                            // ... [rax + rax + disp32]
            &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],                      // nop word ptr
            &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],                // cs nop word ptr
            &[0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],          // data16 cs nop
            &[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], // data16 x5 cs nop
        ];
        let cs = capstone();
        let mut run = Vec::new();
        for nop in nops {
            let insns = cs.disasm_all(nop, 0).unwrap();
            assert_eq!(insns.len(), 1, "{nop:02x?}");
            assert_eq!(insns[0].len(), nop.len(), "{nop:02x?}");
            assert_eq!(X86_64.padding_len(nop), nop.len(), "{nop:02x?}");
            assert_eq!(X86_64.padding_len(&nop[..nop.len() - 1]), 0, "cut off: {nop:02x?}");
            run.extend_from_slice(nop);
        }
        assert_eq!(X86_64.padding_len(&run), run.len());
        let total = run.len();
        run.extend_from_slice(&ENDBR64);
        assert_eq!(X86_64.padding_len(&run), total, "the next function's landing pad is none");
        let others: &[&[u8]] = &[
            &[],
            &[0x00, 0x00],             // add [rax], al
            &[0xc3],                   // ret
            &[0x66],                   // a prefix alone
            &[0x0f, 0x1f],             // cut off
            &[0x0f, 0x1f, 0x44, 0x00], // cut off
            &[0x0f, 0x1f, 0x48, 0x00], // not /0
            &[0xf3, 0x90],             // pause
            &[0x66; 16],               // longer than any instruction
        ];
        for bytes in others {
            assert_eq!(X86_64.padding_len(bytes), 0, "{bytes:02x?}");
        }
        let long = [&[0x66; 15][..], &[0x90]].concat();
        assert_eq!(X86_64.padding_len(&long), 0, "16 bytes are no instruction");
    }

    fn scan(code: &[u8], at: u64, lo: u64, hi: u64) -> Vec<(u64, u64)> {
        let mut hits = Vec::new();
        X86_64.scan_branches(code, at, lo, hi, &Constants::NONE, &mut |from, to| hits.push((from, to)));
        hits.sort_unstable();
        hits
    }

    #[test]
    fn scan_reports_each_kind() {
        // (bytes at 0x1000, where reported, target)
        let rows: &[(&[u8], u64, u64)] = &[
            (&[0xe9, 0xfb, 0x0f, 0, 0], 0x1000, 0x2000),             // jmp 0x2000
            (&[0xe8, 0xfb, 0xef, 0xff, 0xff], 0x1000, 0),            // call 0
            (&[0x0f, 0x84, 0xfa, 0x0f, 0, 0], 0x1000, 0x2000),       // je 0x2000
            (&[0x0f, 0x8f, 0xfa, 0x0f, 0, 0], 0x1000, 0x2000),       // jg 0x2000
            (&[0xc7, 0xf8, 0xfa, 0x0f, 0, 0], 0x1000, 0x2000),       // xbegin 0x2000
            (&[0xeb, 0x7f], 0x1000, 0x1081),                         // jmp 0x1081
            (&[0x70, 0x80], 0x1000, 0xf82),                          // jo 0xf82
            (&[0x7f, 0xfe], 0x1000, 0x1000),                         // jg 0x1000
            (&[0xe0, 0x00], 0x1000, 0x1002),                         // loopne 0x1002
            (&[0xe3, 0x10], 0x1000, 0x1012),                         // jrcxz 0x1012
            (&[0x48, 0x8d, 0x05, 0xf9, 0x0f, 0, 0], 0x1003, 0x2000), // lea rax, [0x2000]
            (&[0x4c, 0x8b, 0x3d, 0xf9, 0x0f, 0, 0], 0x1003, 0x2000), // mov r15, [0x2000]
            (&[0xff, 0x15, 0xfa, 0x0f, 0, 0], 0x1002, 0x2000),       // call [0x2000]
            (&[0xff, 0x25, 0xfa, 0x0f, 0, 0], 0x1002, 0x2000),       // jmp [0x2000]
            (&[0x80, 0x3d, 0xf9, 0x0f, 0, 0, 0x01], 0x1002, 0x2000), // cmp byte [0x2000], 1
            (&[0x66, 0x81, 0x3d, 0xf7, 0x0f, 0, 0, 0x01, 0x02], 0x1003, 0x2000), // cmp word [0x2000], 0x201
            (&[0xc7, 0x05, 0xf6, 0x0f, 0, 0, 1, 2, 3, 4], 0x1002, 0x2000), // mov dword [0x2000], ...
            (&[0x62, 0xf1, 0x7c, 0x48, 0x28, 0x05, 0xf6, 0x0f, 0, 0], 0x1006, 0x2000), // vmovaps zmm0, [0x2000]
        ];
        for (code, from, to) in rows {
            assert_eq!(scan(code, 0x1000, *to, to + 1), [(*from, *to)], "{code:02x?}");
            assert_eq!(scan(code, 0x1000, to + 1, to + 2).iter().filter(|h| h.1 == *to).count(), 0);
            assert!(scan(code, 0x1000, *to, *to).is_empty(), "an empty window");
            // The same far from the start, so that the block filter sees it; at every alignment.
            for shift in 0..8 {
                let mut long = std::vec![0u8; 5000 + shift];
                long[3000 + shift..][..code.len()].copy_from_slice(code);
                let at = 0x1000u64.wrapping_sub(3000 + shift as u64);
                let hits = scan(&long, at, *to, to + 1);
                assert!(hits.contains(&(*from, *to)), "{code:02x?} at shift {shift}");
            }
        }
    }

    /// The block filter must agree with the exact test of every position, also at block edges and for any window.
    #[test]
    fn scan_filter_never_misses() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..60 {
            let len = [0, 1, 3, 4, 5, 1026, 1027, 1028, 2050, 4096, 5000][round % 11];
            let at = [0x40_1000, 0x7fff_f7c0_0000, 0xffff_fff0, 0][round % 4];
            // Small displacements, so that many lead back into the code.
            let code: Vec<u8> = (0..len)
                .map(|i| match (i % 4, random()) {
                    (0, r) => [0xe8, 0x05, 0x0f, 0xeb, 0x84, 0x3d, 0x74, r as u8][(r >> 32) as usize % 8],
                    (1 | 2, r) => r as u8,
                    (_, r) => [0, 0xff][r as usize % 2],
                })
                .collect();
            let lo = at + random() % (len as u64 + 1);
            for width in [1, 5, 14, 300, 0xffff_ffff, 0x1_0000_0000, 1 << 40] {
                let hi = lo.saturating_add(width);
                let s = Scan { code: &code, at, lo, hi };
                let mut expect = Vec::new();
                (0..len).for_each(|i| s.displacement_at(i, &mut |f, t| expect.push((f, t))));
                for (i, w) in code.windows(2).enumerate() {
                    let from = at + i as u64;
                    let to = from.wrapping_add(2).wrapping_add_signed(i64::from(w[1] as i8));
                    if matches!(w[0], 0xeb | 0x70..=0x7f | 0xe0..=0xe3) && (lo..hi).contains(&to) {
                        expect.push((from, to));
                    }
                }
                expect.sort_unstable();
                assert!(scan(&code, at, lo, hi) == expect, "{len} bytes at {at:#x}, window {lo:#x}..{hi:#x}");
            }
        }
    }
}
