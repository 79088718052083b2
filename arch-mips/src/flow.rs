//! Where control goes: branches and their delay slots, and the search for what refers to a range of addresses.
//!
//! Odd in this architecture:
//! * A branch takes effect after the instruction behind it, its delay slot. Branch and slot are a unit; a branch in a delay
//!   slot is undefined.
//! * A *likely* branch executes its slot only when it is taken.
//! * `j` and `jal` keep the upper bits of their delay slot's address; all other direct branches count words from there.
//! * Position-independent code calls by `jalr $t9`, with the address from the GOT; that is a direct call once the GOT is
//!   known.
//!
//! Left out is what release 6 and the compressed ISAs have instead. The opcodes of LWC2, LDC2, SWC2 and SDC2, which Octeon
//! processors use for branches, are no instructions here.
//!
//! Source: *MIPS32 Architecture For Programmers*, volume II-A (MD00086), "Branch and Jump" in the instruction list, and
//! appendix A "Instruction Bit Encodings"; volume I-A, section 5.3.2 "Jump and Branch Instructions".

use crate::constants::{Tracker, Use};
use tigerfix_core::arch::Constants;
use tigerfix_core::field::Endian;

#[cfg(feature = "alloc")]
pub use crate::step::step_out;

/// Where control goes after an instruction and its delay slot, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the next instruction (also after a call to the kernel, and past a trap whose condition does not hold).
    Next,
    /// To `Branch::target`, if a condition holds.
    Conditional,
    /// To `Branch::target`.
    Always,
    /// To where the register `Branch::register` points.
    Register,
    /// Back to interrupted code. No delay slot.
    ExceptionReturn,
    /// Nowhere: a breakpoint.
    Stop,
}

/// An instruction as far as control flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Where control goes.
    pub kind: Kind,
    /// The target, where it is in the instruction.
    pub target: Option<Target>,
    /// The register that holds the target, for [`Kind::Register`].
    pub register: u8,
    /// The register that the return address is written to.
    pub link: Option<u8>,
    /// The delay slot executes only if the branch is taken.
    pub likely: bool,
}

/// A branch target as the instruction has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Bytes from the delay slot.
    Relative(i32),
    /// The lower 28 bits.
    Region(u32),
    /// The lower 28 bits of a target in a compressed ISA (`jalx`).
    OtherIsa(u32),
}

/// No branch.
const NEXT: Branch = Branch { kind: Kind::Next, target: None, register: 0, link: None, likely: false };

impl Branch {
    /// Is the next instruction part of this one?
    #[must_use]
    pub fn has_delay_slot(&self) -> bool {
        matches!(self.kind, Kind::Conditional | Kind::Always | Kind::Register)
    }
    /// The target of the branch at `at`, where it is in the instruction.
    #[must_use]
    pub fn target(&self, is_64: bool, at: u64) -> Option<u64> {
        let slot = at.wrapping_add(4);
        let to = match self.target? {
            Target::Relative(offset) => slot.wrapping_add_signed(offset.into()),
            Target::Region(low) | Target::OtherIsa(low) => slot & !0x0fff_ffff | u64::from(low),
        };
        Some(if is_64 { to } else { u64::from(to as u32) })
    }
    /// Is it a call? (`jalr` with `$0` as its link register is a jump.)
    #[must_use]
    pub fn is_call(&self) -> bool {
        self.link.is_some()
    }
    /// Is it `jr $ra`?
    #[must_use]
    pub fn is_return(&self) -> bool {
        self.kind == Kind::Register && self.register == 31 && self.link.is_none()
    }
}

fn relative(word: u32, likely: bool, link: bool) -> Branch {
    let offset = i32::from(word as u16 as i16) << 2;
    let link = link.then_some(31);
    Branch { kind: Kind::Conditional, target: Some(Target::Relative(offset)), register: 0, link, likely }
}

/// What `word` does to control flow. A word that is no instruction does nothing; see `operands`.
#[must_use]
pub fn classify(word: u32) -> Branch {
    let rs = (word >> 21 & 31) as u8;
    let rt = (word >> 16 & 31) as u8;
    match word >> 26 {
        0x00 => match word & 0x3f {
            0x08 => Branch { kind: Kind::Register, register: rs, ..NEXT }, // jr, jr.hb
            0x09 => {
                let rd = (word >> 11 & 31) as u8;
                Branch { kind: Kind::Register, register: rs, link: (rd != 0).then_some(rd), ..NEXT } // jalr, jalr.hb
            }
            0x0d => Branch { kind: Kind::Stop, ..NEXT }, // break
            // teq $r, $r with a code of its own is how compilers trap; it holds always
            0x34 if rs == rt => Branch { kind: Kind::Stop, ..NEXT },
            _ => NEXT,
        },
        0x01 => match rt {
            // bgez $0 is b, bgezal $0 is bal
            0x01 if rs == 0 => Branch { kind: Kind::Always, ..relative(word, false, false) },
            0x11 if rs == 0 => Branch { kind: Kind::Always, ..relative(word, false, true) },
            0x00 | 0x01 | 0x1c => relative(word, false, false), // bltz bgez bposge32
            0x02 | 0x03 => relative(word, true, false),         // bltzl bgezl
            0x10 | 0x11 => relative(word, false, true),         // bltzal bgezal
            0x12 | 0x13 => relative(word, true, true),          // bltzall bgezall
            _ => NEXT,
        },
        op @ (0x02 | 0x03 | 0x1d) => {
            let low = (word & 0x03ff_ffff) << 2;
            let target = Some(if op == 0x1d { Target::OtherIsa(low) } else { Target::Region(low) });
            let link = (op != 0x02).then_some(31);
            Branch { kind: Kind::Always, target, link, ..NEXT } // j jal jalx
        }
        // beq $r, $r is b
        0x04 if rs == rt => Branch { kind: Kind::Always, ..relative(word, false, false) },
        0x04 | 0x05 => relative(word, false, false), // beq bne
        0x14 | 0x15 => relative(word, true, false),  // beql bnel
        // blez $0 is an old assembler's b
        0x06 if rs == 0 && rt == 0 => Branch { kind: Kind::Always, ..relative(word, false, false) },
        0x06 | 0x07 if rt == 0 => relative(word, false, false), // blez bgtz
        0x16 | 0x17 if rt == 0 => relative(word, true, false),  // blezl bgtzl
        0x10 => match (rs, word & 0x3f) {
            (0x08, _) => relative(word, rt & 2 != 0, false), // bc0f bc0t (MIPS I to III)
            (0x10, 0x18 | 0x1f) => Branch { kind: Kind::ExceptionReturn, ..NEXT }, // eret deret
            _ => NEXT,
        },
        0x11 => match rs {
            0x08 => relative(word, rt & 2 != 0, false), // bc1f bc1t bc1fl bc1tl
            // bc1any2, bc1any4 (MIPS-3D); bz.v bnz.v bz.b ... bnz.d (MSA)
            0x09 | 0x0a | 0x0b | 0x0f | 0x18..=0x1f => relative(word, false, false),
            _ => NEXT,
        },
        0x12 if rs == 0x08 => relative(word, rt & 2 != 0, false), // bc2f bc2t bc2fl bc2tl
        0x1c if word & 0x3f == 0x3f => Branch { kind: Kind::Stop, ..NEXT }, // sdbbp
        _ => NEXT,
    }
}

/// The words of `code`.
pub(crate) fn words(endian: Endian, code: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let big = endian == Endian::Big;
    let (words, _) = code.as_chunks::<4>();
    words.iter().map(move |w| if big { u32::from_be_bytes(*w) } else { u32::from_le_bytes(*w) })
}

/// Reports everything in `code`, which lies at `at`, that could be a branch, call or address computation into `lo..hi`:
///
/// * direct branches and calls, and `jr`/`jalr` with a register whose value is known;
/// * `addiu`, `ori` and the like that complete an address (but not loads and stores that have one: nobody gets there);
/// * loads of an address from the GOT, as far as its contents are in `constants`.
///
/// Code is followed in the order of addresses, not of execution. What the compiler has put into a register with `lui` or
/// from the GOT counts in address computations until the fourth next such value for the same register, whatever else is
/// written to it: a branch may lead around that. Not found: an address whose parts were more than four such values apart or in different
/// functions' registers, that went through memory or a register copy across a branch, or that comes out of other
/// arithmetic, as only hand-written code does it.
#[expect(clippy::too_many_arguments)]
pub fn scan_branches(
    is_64: bool,
    endian: Endian,
    code: &[u8],
    at: u64,
    lo: u64,
    hi: u64,
    constants: &Constants<'_>,
    hit: &mut dyn FnMut(u64, u64),
) {
    if lo >= hi {
        return;
    }
    // The two orders as two loops, each without a choice inside.
    match (endian, is_64) {
        (Endian::Big, false) => scan::<true, false>(code, at, lo, hi, constants, hit),
        (Endian::Big, true) => scan::<true, true>(code, at, lo, hi, constants, hit),
        (Endian::Little, false) => scan::<false, false>(code, at, lo, hi, constants, hit),
        (Endian::Little, true) => scan::<false, true>(code, at, lo, hi, constants, hit),
    }
}

fn scan<const BIG: bool, const IS_64: bool>(
    code: &[u8],
    at: u64,
    lo: u64,
    hi: u64,
    constants: &Constants<'_>,
    hit: &mut dyn FnMut(u64, u64),
) {
    let width = hi - lo;
    let mut tracker = Tracker::new(IS_64, constants);
    let (words, _) = code.as_chunks::<4>();
    let mut from = at;
    for bytes in words {
        let word = if BIG { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) };
        let mut offer = |to: u64| {
            // Nothing but an instruction's address leads anywhere.
            if to.wrapping_sub(lo) < width && to.is_multiple_of(4) {
                hit(from, to);
            }
        };
        // The opcodes of branches, as bits; of SPECIAL, jr and jalr are looked at.
        const BRANCHES: u64 = 0x0000_0000_20f7_00ff;
        let op = word >> 26;
        if BRANCHES >> op & 1 == 1 && (op != 0 || word & 0x3e == 8) {
            let branch = classify(word);
            if let Some(to) = branch.target(IS_64, from) {
                offer(to);
            } else if branch.kind == Kind::Register
                && branch.register != 31
                && let Some(to) = tracker.value(branch.register)
            {
                offer(to);
            }
        }
        tracker.step(from, word, &mut |_: Use, to| offer(to));
        from = from.wrapping_add(4);
    }
}

/// Where a thread at `pc` comes past next: at the next branch, system call or trap; from a branch, at its target or behind
/// its delay slot. `None`: it stands at something that leads elsewhere, or waits, or at a branch to itself.
#[must_use]
pub fn comes_past(is_64: bool, endian: Endian, pc: u64, code: &[u8], register: &dyn Fn(u8) -> u64) -> Option<[u64; 2]> {
    const SYSCALL: u32 = 0x0c;
    let narrow = |at: u64| if is_64 { at } else { u64::from(at as u32) };
    let plain = |w: u32| classify(w).kind == Kind::Next && (w >> 26 != 0 || w & 0x3f != SYSCALL);
    let ahead = words(endian, code).take_while(|w| plain(*w)).count();
    if ahead > 0 {
        return Some([narrow(pc.wrapping_add(4 * ahead as u64)); 2]);
    }
    let branch = words(endian, code).next().map(classify)?;
    let behind = narrow(pc.wrapping_add(8));
    let places = match (branch.kind, branch.target) {
        (_, Some(Target::OtherIsa(_))) => return None,
        (Kind::Conditional, _) => [branch.target(is_64, pc)?, behind],
        (Kind::Always, _) => [branch.target(is_64, pc)?; 2],
        (Kind::Register, _) => [narrow(register(branch.register)); 2],
        _ => return None,
    };
    places.iter().all(|p| *p != pc && p.is_multiple_of(4)).then_some(places)
}

/// Is the last word of `before` a branch, so that the next one is in its delay slot?
#[must_use]
pub fn leaves_delay_slot(endian: Endian, before: &[u8]) -> bool {
    let Some(last) = before.len().checked_sub(4) else { return false };
    words(endian, &before[last..]).any(|w| classify(w).has_delay_slot())
}

/// Is the word before the last of `before` a call, which returns behind its delay slot?
#[must_use]
pub fn may_return_behind(endian: Endian, before: &[u8]) -> bool {
    let Some(call) = before.len().checked_sub(8) else { return true };
    words(endian, &before[call..call + 4]).any(|w| classify(w).is_call())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn calls_return_behind_their_delay_slots() {
        let ends = |words: [u32; 2]| may_return_behind(Endian::Big, &words.map(u32::to_be_bytes).concat());
        for call in [0x0c10_0000, 0x0320_f809, 0x0411_0004] {
            assert!(ends([call, 0]), "{call:#x}"); // jal, jalr $t9, bal
            assert!(!ends([0, call]), "{call:#x} has its delay slot behind");
        }
        for other in [0x03e0_0008, 0x0810_0000, 0x1000_ffff, 0x2402_0001] {
            assert!(!ends([other, 0]), "{other:#x}"); // jr $ra, j, b, li
        }
        assert!(may_return_behind(Endian::Big, &[0; 4]), "too little to tell");
    }

    #[test]
    fn branches() {
        use Kind::{Always, Conditional, ExceptionReturn, Next, Register, Stop};
        // word, text at 0x40_1000, kind, target, link, likely
        type Row = (u32, Kind, Option<u64>, Option<u8>, bool);
        let rows: &[Row] = &[
            (0x0810_0800, Always, Some(0x40_2000), None, false),     // j 0x402000
            (0x0c10_0800, Always, Some(0x40_2000), Some(31), false), // jal 0x402000
            (0x7410_0800, Always, Some(0x40_2000), Some(31), false), // jalx 0x402000
            (0x03e0_0008, Register, None, None, false),              // jr ra
            (0x03e0_0408, Register, None, None, false),              // jr.hb ra
            (0x0320_f809, Register, None, Some(31), false),          // jalr t9
            (0x0320_fc09, Register, None, Some(31), false),          // jalr.hb t9
            (0x0320_0009, Register, None, None, false),              // jalr zero, t9: a jump
            (0x1000_0003, Always, Some(0x40_1010), None, false),     // b
            (0x1040_ffff, Conditional, Some(0x40_1000), None, false), // beqz v0
            (0x1442_0001, Conditional, Some(0x40_1008), None, false), // bne v0, v0
            (0x5040_0001, Conditional, Some(0x40_1008), None, true), // beqzl v0
            (0x5440_0001, Conditional, Some(0x40_1008), None, true), // bnezl v0
            (0x1840_0001, Conditional, Some(0x40_1008), None, false), // blez v0
            (0x1c40_0001, Conditional, Some(0x40_1008), None, false), // bgtz v0
            (0x5840_0001, Conditional, Some(0x40_1008), None, true), // blezl v0
            (0x5c40_0001, Conditional, Some(0x40_1008), None, true), // bgtzl v0
            (0x0440_0001, Conditional, Some(0x40_1008), None, false), // bltz v0
            (0x0441_0001, Conditional, Some(0x40_1008), None, false), // bgez v0
            (0x0442_0001, Conditional, Some(0x40_1008), None, true), // bltzl v0
            (0x0450_0001, Conditional, Some(0x40_1008), Some(31), false), // bltzal v0
            (0x0411_0001, Always, Some(0x40_1008), Some(31), false), // bal
            (0x0453_0001, Conditional, Some(0x40_1008), Some(31), true), // bgezall v0
            (0x4500_0001, Conditional, Some(0x40_1008), None, false), // bc1f
            (0x4503_0001, Conditional, Some(0x40_1008), None, true), // bc1tl
            (0x4901_0001, Conditional, Some(0x40_1008), None, false), // bc2t
            (0x0000_000d, Stop, None, None, false),                  // break
            (0x0000_0034, Stop, None, None, false),                  // teq zero, zero
            (0x0040_01f4, Next, None, None, false),                  // teq v0, zero, 7
            (0x0000_000c, Next, None, None, false),                  // syscall
            (0x4200_0018, ExceptionReturn, None, None, false),       // eret
            (0x4200_001f, ExceptionReturn, None, None, false),       // deret
            (0x041f_0000, Next, None, None, false),                  // synci 0(zero)
            (0x27bd_ffe0, Next, None, None, false),                  // addiu sp, sp, -32
        ];
        for &(word, kind, target, link, likely) in rows {
            let b = classify(word);
            assert_eq!(
                (b.kind, b.target(false, 0x40_1000), b.link, b.likely),
                (kind, target, link, likely),
                "{word:08x}"
            );
        }
        assert!(classify(0x03e0_0008).is_return() && !classify(0x0320_0008).is_return());
        // The region is that of the delay slot; offsets wrap in 32 bits.
        assert_eq!(classify(0x0800_0001).target(false, 0x0fff_fffc), Some(0x1000_0004));
        assert_eq!(classify(0x1000_ffff).target(false, 0xffff_fffc), Some(0xffff_fffc));
        assert_eq!(classify(0x0800_0001).target(true, 0xffff_ffff_8000_0000), Some(0xffff_ffff_8000_0004));
    }

    #[test]
    fn what_leaves_a_delay_slot() {
        let last = |w: u32| [[0; 4], w.to_be_bytes()].concat();
        assert!(leaves_delay_slot(Endian::Big, &last(0x03e0_0008))); // jr ra
        assert!(leaves_delay_slot(Endian::Big, &last(0x1000_0003))); // b
        assert!(!leaves_delay_slot(Endian::Big, &last(0))); // nop
        assert!(!leaves_delay_slot(Endian::Big, &last(0x0000_000d))); // break
        assert!(!leaves_delay_slot(Endian::Little, &last(0x1000_0003)));
        assert!(leaves_delay_slot(Endian::Little, &0x03e0_0008u32.to_le_bytes()));
        assert!(!leaves_delay_slot(Endian::Big, &[]) && !leaves_delay_slot(Endian::Big, &[3, 0xe0, 0]));
    }

    #[test]
    fn where_a_thread_comes_past() {
        let at = |code: &[u32]| {
            let big: Vec<u8> = code.iter().flat_map(|w| w.to_be_bytes()).collect();
            let little: Vec<u8> = code.iter().flat_map(|w| w.to_le_bytes()).collect();
            let past = |endian, code| comes_past(false, endian, 0x40_1000, code, &|r| 0x50_0000 + u64::from(r) * 0x100);
            assert_eq!(past(Endian::Big, &big), past(Endian::Little, &little));
            past(Endian::Big, &big)
        };
        let add = 0x2442_0001; // addiu v0, v0, 1
        assert_eq!(at(&[add, add, 0x1040_ffff, 0]), Some([0x40_1008; 2])); // beqz
        assert_eq!(at(&[add, 0x0000_000c]), Some([0x40_1004; 2])); // syscall
        assert_eq!(at(&[add, add]), Some([0x40_1008; 2]));
        assert_eq!(at(&[0x1040_0003, add]), Some([0x40_1010, 0x40_1008]));
        assert_eq!(at(&[0x1000_0003, add]), Some([0x40_1010; 2])); // b
        assert_eq!(at(&[0x0320_f809, add]), Some([0x50_1900; 2])); // jalr t9
        assert_eq!(at(&[0x1040_ffff, add]), None, "to itself");
        for stays in [0x0000_000c, 0x0000_000d, 0x7410_0800, 0x4200_0018] {
            assert_eq!(at(&[stays, add]), None, "{stays:08x}"); // syscall break jalx eret
        }
        assert_eq!(at(&[]), None);
    }

    #[test]
    fn branch_opcodes_are_in_the_filter() {
        for op in 0..64u32 {
            for low in 0..0x1_0000u32 {
                let word = op << 26 | (low & 0x3ff) << 16 | low >> 10;
                let b = classify(word);
                if b.target.is_some() || b.kind == Kind::Register {
                    assert_eq!(0x0000_0000_20f7_00ffu64 >> op & 1, 1, "{word:08x}");
                }
            }
        }
    }

    fn scan(code: &[u32], constants: &Constants<'_>) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        for endian in [Endian::Big, Endian::Little] {
            let order = |w: &u32| if endian == Endian::Big { w.to_be_bytes() } else { w.to_le_bytes() };
            let bytes: Vec<u8> = code.iter().flat_map(order).collect();
            let mut hits = Vec::new();
            scan_branches(false, endian, &bytes, 0x40_1000, 0x40_0000, 0x41_0000, constants, &mut |from, to| {
                hits.push((from - 0x40_1000, to));
            });
            hits.dedup();
            out.push(hits);
        }
        assert_eq!(out[0], out[1]);
        out.remove(0)
    }

    #[test]
    fn references_are_found() {
        let word = |at: u64| (at == 0x42_0010).then_some(0x40_8000u64);
        let constants = Constants { gp: Some(0x42_7ff0), word: &word };
        type Row = (&'static [u32], &'static [(u64, u64)]);
        let rows: &[Row] = &[
            (&[0x0c10_0800, 0], &[(0, 0x40_2000)]),           // jal 0x402000
            (&[0x1000_ffff, 0], &[(0, 0x40_1000)]),           // b .
            (&[0x3c02_0040, 0x2442_2000], &[(4, 0x40_2000)]), // lui v0; addiu v0
            (&[0x3c02_0041, 0x2444_8000], &[(4, 0x40_8000)]), // lui v0; addiu a0, v0, -32768
            (&[0x3c02_0040, 0x3444_8000], &[(4, 0x40_8000)]), // lui v0; ori a0, v0, 0x8000
            // lui v0; addu v1, v0, a0; addiu v1, v1, -32768: an indexed table
            (&[0x3c02_0041, 0x0044_1821, 0x2463_8000], &[(8, 0x40_8000)]),
            // lui v0, 0x41; lw v0, 0(a0); addiu v0, v0, -32768: a branch may lead from the first to the third
            (&[0x3c02_0041, 0x8c82_0000, 0x2442_8000], &[(8, 0x40_8000)]),
            (&[0x8f99_8020, 0x0320_f809, 0], &[(0, 0x40_8000), (4, 0x40_8000)]), // lw t9, -32736(gp); jalr t9
            (&[0x8f99_8020, 0x2739_0010, 0x0320_f809], &[(0, 0x40_8000), (4, 0x40_8010), (8, 0x40_8010)]),
            // lui t9, 0; addu t9, t9, gp; lw t9, -32736(t9): -mxgot
            (&[0x3c19_0000, 0x033c_c821, 0x8f39_8020], &[(8, 0x40_8000)]),
            // bal .+8; nop; addiu v0, ra, 0x100
            (&[0x0411_0001, 0, 0x27e2_0100], &[(0, 0x40_1008), (8, 0x40_1108)]),
        ];
        for (code, hits) in rows {
            assert_eq!(scan(code, &constants), *hits, "{code:08x?}");
        }
        assert_eq!(scan(&[0x8f99_8020, 0x0320_f809], &Constants::NONE), []);
    }
}
