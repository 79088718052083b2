//! Addresses that are built from several instructions: `lui` and `addiu`, an entry of the GOT and an offset, and so on.
//!
//! Source: *System V ABI, MIPS RISC Processor Supplement*, chapter 3 "Coding Examples", and the relocations that pair up;
//! for n64, *64-bit ELF Object File Specification* (SGI 007-4658-001), and what gcc and gas emit.

use crate::flow::classify;
use tigerfix_core::arch::Constants;

/// `$t9`: a function's own address, when it is entered.
const T9: usize = 25;
/// `$gp`
const GP: usize = 28;
const SP: usize = 29;
/// `$0`, and `$gp`: who restores it from somewhere restores what it was.
const LASTING: u32 = 1 | 1 << GP;

/// How an instruction uses a constant address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It computes it.
    Address,
    /// It loads this address from the GOT.
    Content,
}

/// How many values are kept for each register.
const KEPT: usize = 4;

/// The last few values of a register.
#[derive(Clone, Copy, Default)]
struct Ring {
    values: [u64; KEPT],
    newest: u8,
    count: u8,
}

impl Ring {
    #[inline]
    fn push(&mut self, v: u64) {
        let at = (usize::from(self.newest) + 1) % KEPT;
        self.newest = at as u8;
        self.values[at] = v;
        self.count = (self.count + 1).min(KEPT as u8);
    }
    /// Newest first.
    #[inline]
    fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let newest = usize::from(self.newest) + KEPT;
        (0..usize::from(self.count)).map(move |i| self.values[(newest - i) % KEPT])
    }
    fn last(&self) -> Option<u64> {
        self.iter().next()
    }
}

/// What is known of each register, as bits for its value: exactly that; or that plus something that is not known, an
/// element of a table. `part`: a part of the computation of `$gp` from `$t9`, of which `with_t9` and `with_low` are in it.
#[derive(Clone, Copy)]
struct Known {
    values: [u64; 32],
    exact: u32,
    near: u32,
    part: u32,
    with_t9: u32,
    with_low: u32,
}

impl Known {
    fn is(set: u32, r: usize) -> bool {
        set >> r & 1 == 1
    }
    fn forget(&mut self, r: usize) {
        let keep = !(1 << r) | LASTING;
        self.exact &= keep;
        self.near &= keep;
        self.part &= keep;
    }
    fn set(&mut self, r: usize, v: u64) {
        if r != 0 {
            self.values[r] = v;
            self.exact |= 1 << r;
            self.near &= !(1 << r);
            self.part &= !(1 << r);
        }
    }
    fn set_near(&mut self, r: usize, v: u64) {
        if r != 0 && r != GP {
            self.values[r] = v;
            self.near |= 1 << r;
            self.exact &= !(1 << r);
            self.part &= !(1 << r);
        }
    }
    fn set_part(&mut self, r: usize, v: u64, t9: bool, low: bool) {
        if r != 0 {
            let bit = 1 << r;
            self.values[r] = v;
            self.part |= bit;
            self.exact &= !bit;
            self.near &= !bit;
            self.with_t9 = self.with_t9 & !bit | if t9 { bit } else { 0 };
            self.with_low = self.with_low & !bit | if low { bit } else { 0 };
        }
    }
    fn any(&self, r: usize) -> bool {
        Self::is(self.exact | self.near | self.part, r)
    }
    /// A move from `s` to `r`.
    fn copy_within(&mut self, r: usize, s: usize) {
        let v = self.values[s];
        match s {
            _ if Self::is(self.exact, s) => self.set(r, v),
            _ if Self::is(self.near, s) => self.set_near(r, v),
            _ if Self::is(self.part, s) => self.set_part(r, v, Self::is(self.with_t9, s), Self::is(self.with_low, s)),
            _ => self.forget(r),
        }
    }
    fn copy(&mut self, r: usize, from: &Known, s: usize) {
        match s {
            _ if Self::is(from.exact, s) => self.set(r, from.values[s]),
            _ if Self::is(from.near, s) => self.set_near(r, from.values[s]),
            _ if Self::is(from.part, s) => {
                self.set_part(r, from.values[s], Self::is(from.with_t9, s), Self::is(from.with_low, s));
            }
            _ => self.forget(r),
        }
    }
}

/// Registers, as far as their values are constants. Fed with instructions in the order of addresses.
pub struct Tracker<'a> {
    is_64: bool,
    /// All ones of an address.
    mask: u64,
    constants: &'a Constants<'a>,
    known: Known,
    /// For each register, what `lui` and loads from the GOT have put there. Survives other writes, since a branch may
    /// lead around those.
    bases: [Ring; 32],
    /// Of these, with `$gp` added: parts of the addresses of entries in a GOT of more than 64 KiB.
    gots: [Ring; 32],
    /// Where the function begins that is looked at, if that is known.
    entry: Option<u64>,
}

/// What a [`Tracker`] knows at one place, to go on with at another.
#[derive(Clone)]
pub struct Snapshot(Known);

impl Snapshot {
    /// Two ways lead to the same place.
    pub fn merge(&mut self, other: &Snapshot) {
        for r in 1..32 {
            if !self.0.any(r) {
                self.0.copy(r, &other.0, r);
            }
        }
    }
}

/// What an instruction does to constants, by opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Nothing,
    /// Writes rt, with something that is no constant.
    Kill,
    Lui,
    Add,
    Or,
    Load,
    Special,
    Link,
    Move,
    KillRd,
    Special3,
}

static CLASSES: [Class; 64] = {
    use Class::{Add, Kill, KillRd, Link, Load, Lui, Move, Nothing, Or, Special, Special3};
    let mut c = [Nothing; 64];
    c[0x00] = Special;
    c[0x01] = Link; // bltzal bgezal
    c[0x03] = Link; // jal
    c[0x08] = Add; // addi
    c[0x09] = Add; // addiu
    c[0x0a] = Kill; // slti
    c[0x0b] = Kill; // sltiu
    c[0x0c] = Kill; // andi
    c[0x0d] = Or; // ori
    c[0x0e] = Kill; // xori
    c[0x0f] = Lui;
    c[0x10] = Move; // mfc0
    c[0x11] = Move; // mfc1
    c[0x12] = Move; // mfc2
    c[0x18] = Add; // daddi
    c[0x19] = Add; // daddiu
    c[0x1a] = Kill; // ldl
    c[0x1b] = Kill; // ldr
    c[0x1c] = KillRd; // mul clz
    c[0x1f] = Special3; // ext ins seb seh rdhwr
    let mut op = 0x20; // lb lh lwl lw lbu lhu lwr lwu
    while op < 0x28 {
        c[op] = Kill;
        op += 1;
    }
    c[0x23] = Load; // lw
    c[0x30] = Kill; // ll
    c[0x34] = Kill; // lld
    c[0x37] = Load; // ld
    c[0x38] = Kill; // sc
    c[0x3c] = Kill; // scd
    c
};

impl<'a> Tracker<'a> {
    /// Knows nothing of the registers yet.
    #[must_use]
    pub fn new(is_64: bool, constants: &'a Constants<'a>) -> Tracker<'a> {
        let mut known = Known { values: [0; 32], exact: 1, near: 0, part: 0, with_t9: 0, with_low: 0 };
        if let Some(gp) = constants.gp {
            known.set(GP, gp);
        }
        let mask = if is_64 { u64::MAX } else { u64::from(u32::MAX) };
        let rings = [Ring::default(); 32];
        Tracker { is_64, mask, constants, known, bases: rings, gots: rings, entry: None }
    }

    /// The value of a register, if it is known.
    #[must_use]
    pub fn value(&self, r: u8) -> Option<u64> {
        let r = usize::from(r & 31);
        // An entry of the GOT that the loader fills in holds 0.
        (Known::is(self.known.exact, r) && self.known.values[r] != 0).then_some(self.known.values[r])
    }

    /// The address that a load or store at this place accesses, or that of the table in which it does.
    #[must_use]
    pub fn access(&self, word: u32) -> Option<u64> {
        let rs = (word >> 21 & 31) as usize;
        let is_access = matches!(word >> 26, 0x1a | 0x1b | 0x20..=0x3f);
        let known = Known::is(self.known.exact | self.known.near, rs) && !matches!(rs, 0 | SP);
        (is_access && known).then(|| self.known.values[rs].wrapping_add(low(word)) & self.mask)
    }

    /// All that follows is one function, which begins at `entry`: what `$t9` held then.
    pub fn enter(&mut self, entry: u64) {
        self.entry = Some(entry);
    }

    /// Forgets the values of the registers that a called function may change.
    pub fn called(&mut self) {
        for r in (1..16).chain([24, T9, 31]) {
            self.known.forget(r);
        }
    }

    /// What is known here.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.known)
    }

    /// Control gets here from where `from` was taken as well; `falls`: and from the instruction before.
    pub fn join(&mut self, from: &Snapshot, falls: bool) {
        for r in 1..32 {
            // A register that only one of the two ways has set is used on that way only.
            if !falls && from.0.any(r) || !self.known.any(r) {
                self.known.copy(r, &from.0, r);
            }
        }
    }

    /// Takes one instruction, at `at`, into account; calls `found` for every address that it may compute, or load from the
    /// GOT, the likeliest first.
    #[inline]
    pub fn step(&mut self, at: u64, word: u32, found: &mut impl FnMut(Use, u64)) {
        let rt = (word >> 16 & 31) as usize;
        match CLASSES[(word >> 26) as usize] {
            Class::Nothing => {}
            Class::Kill => self.known.forget(rt),
            Class::Lui => self.lui(at, word, rt),
            Class::Add => self.add_immediate(at, word, rt, found),
            Class::Or => self.or_immediate(word, rt, found),
            Class::Load => self.load(word, rt, found),
            Class::Special if word != 0 => self.special(at, word, rt),
            Class::Special => {}
            Class::Link => {
                // Whatever links knows its own address.
                if let Some(r) = classify(word).link {
                    self.known.set(r.into(), at.wrapping_add(8) & self.mask);
                }
            }
            // mfc1 dmfc1 cfc1 mfhc1, and those of other coprocessors
            Class::Move if word >> 21 & 31 < 4 => self.known.forget(rt),
            Class::Move => {}
            Class::KillRd => self.known.forget((word >> 11 & 31) as usize),
            // seb seh wsbh write rd
            Class::Special3 if word & 0x3f == 0x20 => self.known.forget((word >> 11 & 31) as usize),
            Class::Special3 => self.known.forget(rt),
        }
    }

    fn lui(&mut self, at: u64, word: u32, rt: usize) {
        let v = (word << 16) as i32 as i64 as u64 & self.mask;
        self.bases[rt].push(v);
        if rt == GP {
            // The computation of $gp may begin like this; if it does is seen when $t9 is added.
            self.known.set_part(GP, v.wrapping_add(self.entry.unwrap_or(at)) & self.mask, false, false);
            self.bases[GP].push(v);
        } else {
            self.known.set(rt, v);
        }
    }

    fn add_immediate(&mut self, at: u64, word: u32, rt: usize, found: &mut impl FnMut(Use, u64)) {
        let rs = (word >> 21 & 31) as usize;
        let (low, mask) = (low(word), self.mask);
        let sum = self.known.values[rs].wrapping_add(low) & mask;
        let (exact, near) = (Known::is(self.known.exact, rs), Known::is(self.known.near, rs));
        // From $0 it is a small number, from $sp the address of a local variable.
        if !matches!(rs, 0 | SP) {
            let mut first = None;
            if exact || near {
                first = Some(sum);
                found(Use::Address, beside(at, sum));
            }
            for b in self.bases[rs].iter() {
                let v = b.wrapping_add(low) & mask;
                if first != Some(v) {
                    found(Use::Address, beside(at, v));
                }
            }
        }
        if exact {
            self.known.set(rt, sum);
        } else if near {
            self.known.set_near(rt, sum);
        } else if Known::is(self.known.part, rs) {
            let t9 = Known::is(self.known.with_t9, rs);
            if rs == GP && !t9 {
                // Without $t9 it is the address itself, as in code for a fixed place.
                let whole = self.bases[GP].last().unwrap_or(0).wrapping_add(low) & mask;
                if self.constants.gp == Some(whole) {
                    self.known.set(rt, whole);
                    return;
                }
            }
            self.part(rt, sum, t9, true);
        } else {
            self.known.forget(rt);
        }
    }

    fn or_immediate(&mut self, word: u32, rt: usize, found: &mut impl FnMut(Use, u64)) {
        let rs = (word >> 21 & 31) as usize;
        let low = u64::from(word as u16);
        let exact = Known::is(self.known.exact, rs);
        let v = self.known.values[rs] | low;
        if rs != 0 {
            if exact {
                found(Use::Address, v);
            }
            for b in self.bases[rs].iter().map(|b| b | low) {
                if !exact || b != v {
                    found(Use::Address, b);
                }
            }
        }
        if exact { self.known.set(rt, v) } else { self.known.forget(rt) }
    }

    /// `lw` or `ld`.
    fn load(&mut self, word: u32, rt: usize, found: &mut impl FnMut(Use, u64)) {
        let rs = (word >> 21 & 31) as usize;
        // Of other registers than $gp few hold an address near it.
        let from_got = rs == GP || Known::is(self.known.exact, rs) && rs != 0 || self.gots[rs].count > 0;
        if !from_got || (word >> 26 == 0x37) != self.is_64 {
            self.known.forget(rt);
            return;
        }
        let low = low(word);
        let mut value = None;
        if Known::is(self.known.exact, rs) {
            value = (self.constants.word)(self.known.values[rs].wrapping_add(low) & self.mask);
        }
        if self.gots[rs].count > 0 {
            for at in self.gots[rs].values {
                // An older base, if a branch leads here.
                let other = (self.constants.word)(at.wrapping_add(low) & self.mask);
                if let Some(v) = other.filter(|_| other != value && at != 0) {
                    found(Use::Content, v);
                    self.bases[rt].push(v);
                }
            }
        }
        match value {
            Some(v) => {
                // The page of the lowest addresses is 0.
                if v != 0 {
                    found(Use::Content, v);
                }
                self.bases[rt].push(v);
                self.known.set(rt, v);
            }
            None => self.known.forget(rt),
        }
    }

    fn special(&mut self, at: u64, word: u32, rt: usize) {
        let rs = (word >> 21 & 31) as usize;
        let rd = (word >> 11 & 31) as usize;
        match word & 0x3f {
            // jr syscall break sync, mthi mtlo, mult div, traps
            0x08 | 0x0c | 0x0d | 0x0f | 0x11 | 0x13 | 0x18..=0x1f | 0x30..=0x36 => {}
            0x09 => self.known.set(rd, at.wrapping_add(8) & self.mask), // jalr
            // add addu or dadd daddu: moves, too
            0x20 | 0x21 | 0x25 | 0x2c | 0x2d => self.add(at, word, rs, rt, rd),
            op @ (0x38 | 0x3c) if self.is_64 => {
                // dsll dsll32
                let by = (word >> 6 & 31) + if op == 0x3c { 32 } else { 0 };
                if Known::is(self.known.exact, rt) {
                    let v = self.known.values[rt] << by;
                    self.known.set(rd, v);
                    if v != 0 {
                        self.bases[rd].push(v);
                    }
                } else {
                    self.known.forget(rd);
                }
            }
            _ => self.known.forget(rd),
        }
    }

    fn add(&mut self, at: u64, word: u32, rs: usize, rt: usize, rd: usize) {
        if rs == 0 || rt == 0 {
            let s = rs + rt;
            self.known.copy_within(rd, s);
            if s != 0 && s != rd && rd != GP && self.bases[s].count > 0 && !self.known.any(s) {
                self.bases[rd] = self.bases[s];
            }
            return;
        }
        if word & 0x3f == 0x25 {
            self.known.forget(rd);
            return;
        }
        if (rs == GP || rt == GP) && Known::is(self.known.exact, GP) {
            // An entry of a large GOT, maybe from before a branch.
            let other = rs + rt - GP;
            let gp = self.known.values[GP];
            let bases = self.bases[other];
            for b in bases.iter().filter(|b| is_half(self.is_64, *b)) {
                let v = b.wrapping_add(gp) & self.mask;
                self.gots[rd].push(v);
            }
        }
        // Part of $gp, and $t9.
        for (a, b) in [(rs, rt), (rt, rs)] {
            if b != T9 {
                continue;
            }
            if Known::is(self.known.part, a) && !Known::is(self.known.with_t9, a) {
                let low = Known::is(self.known.with_low, a);
                return self.part(rd, self.known.values[a], true, low);
            }
            let half = self.known.values[a];
            // Whatever $t9 held in the code before.
            if self.is_64
                && Known::is(self.known.exact, a)
                && a != GP
                && is_half(true, half)
                && self.constants.gp.is_some()
            {
                // n64 code adds it before the lower half, in any register; `lui` was shortly before.
                return self.part(rd, half.wrapping_add(self.entry.unwrap_or(at)) & self.mask, true, false);
            }
        }
        let sum = self.known.values[rs].wrapping_add(self.known.values[rt]) & self.mask;
        let (s, t) = (Known::is(self.known.exact, rs), Known::is(self.known.exact, rt));
        let (near_s, near_t) = (Known::is(self.known.near, rs), Known::is(self.known.near, rt));
        if s && t {
            self.known.set(rd, sum);
        } else if s && near_t || near_s && t {
            self.known.set_near(rd, sum);
        } else if (s || near_s) && !near_t {
            self.known.set_near(rd, self.known.values[rs]);
        } else if (t || near_t) && !near_s {
            self.known.set_near(rd, self.known.values[rt]);
        } else {
            // A table's address plus an index: what was kept for it goes along.
            let from = if self.bases[rs].count > 0 { rs } else { rt };
            if rd != rs
                && rd != rt
                && rd != 0
                && let Some(base) = self.bases[from].last()
            {
                self.bases[rd].push(base);
            }
            self.known.forget(rd);
        }
    }

    /// A part of the computation of `$gp`, or the whole: the program's, or that of another of its GOTs.
    fn part(&mut self, r: usize, sum: u64, t9: bool, low: bool) {
        /// The first instruction of the computation may not be the function's first.
        const SLACK: u64 = 0x400;
        if !(t9 && low) {
            return self.known.set_part(r, sum, t9, low);
        }
        match self.constants.gp {
            Some(gp) if sum.wrapping_sub(gp) & self.mask < SLACK => self.known.set(r, gp),
            Some(_) => self.known.set(r, sum),
            None => {
                self.known.exact &= !(1 << r);
                self.known.part &= !(1 << r);
            }
        }
    }
}

/// The sign-extended lower half of an instruction.
fn low(word: u32) -> u64 {
    word as u16 as i16 as i64 as u64
}

/// May this be the upper half of a distance from `$gp`?
fn is_half(is_64: bool, v: u64) -> bool {
    let v = if is_64 { v as i64 } else { i64::from(v as u32 as i32) };
    v & 0xffff == 0 && v.unsigned_abs() <= 1 << 24
}

/// Code above 4 GiB makes addresses of two halves, in two registers, and may add them anywhere. The lower one tells enough:
/// what it means is in the same 4 GiB as the code.
#[inline]
fn beside(at: u64, v: u64) -> u64 {
    const LOW: u64 = u32::MAX as u64;
    let is_half = at > LOW && v as u32 as i32 as i64 as u64 == v;
    if is_half { at & !LOW | v & LOW } else { v }
}
