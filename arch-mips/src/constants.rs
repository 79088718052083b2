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

/// How an instruction uses a constant address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It computes it.
    Address,
    /// It loads from there, or stores there.
    Access,
    /// It loads this address from memory.
    Content,
}

/// What is known of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Unknown,
    /// Exactly this.
    Known(u64),
    /// This, plus something that is not known: an element of a table.
    Near(u64),
    /// Part of the computation of `$gp` from `$t9`: what was added up so far, as if `$t9` were the address of its first
    /// instruction; whether `$t9` and the lower half are in it.
    Entry {
        sum: u64,
        t9: bool,
        low: bool,
    },
}

/// How many values of `lui` and of GOT entries are kept for each register.
const KEPT: usize = 4;

/// Registers, as far as their values are constants. Fed with instructions in the order of addresses.
pub struct Tracker<'a> {
    is_64: bool,
    constants: &'a Constants<'a>,
    values: [Value; 32],
    /// For each register, what `lui` and loads from the GOT have put there, newest first from `newest` on. Survives
    /// other writes, since a branch may lead around those.
    bases: [[u64; KEPT]; 32],
    newest: [u8; 32],
    count: [u8; 32],
    /// Where the function begins that is looked at, if that is known.
    entry: Option<u64>,
}

/// What a [`Tracker`] knows at one place, to go on with at another.
#[derive(Clone)]
pub struct Snapshot([Value; 32]);

impl Snapshot {
    /// Two ways lead to the same place.
    pub fn merge(&mut self, other: &Snapshot) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            if *mine == Value::Unknown {
                *mine = theirs;
            }
        }
    }
}

impl<'a> Tracker<'a> {
    /// Knows nothing of the registers yet.
    #[must_use]
    pub fn new(is_64: bool, constants: &'a Constants<'a>) -> Tracker<'a> {
        let mut values = [Value::Unknown; 32];
        values[0] = Value::Known(0);
        if let Some(gp) = constants.gp {
            values[GP] = Value::Known(gp);
        }
        Tracker { is_64, constants, values, bases: [[0; KEPT]; 32], newest: [0; 32], count: [0; 32], entry: None }
    }

    /// The value of a register, if it is known.
    #[must_use]
    pub fn value(&self, r: u8) -> Option<u64> {
        match self.values[usize::from(r & 31)] {
            // An entry of the GOT that the loader fills in holds 0.
            Value::Known(v) if v != 0 => Some(v),
            _ => None,
        }
    }

    /// All that follows is one function, which begins at `entry`: what `$t9` held then.
    pub fn enter(&mut self, entry: u64) {
        self.entry = Some(entry);
    }

    /// Forgets the values of the registers that a called function may change.
    pub fn called(&mut self) {
        for r in (1..16).chain([24, T9, 31]) {
            self.values[r] = Value::Unknown;
        }
    }

    /// What is known here.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.values)
    }

    /// Control gets here from where `from` was taken as well; `falls`: and from the instruction before.
    pub fn join(&mut self, from: &Snapshot, falls: bool) {
        for (mine, theirs) in self.values.iter_mut().zip(from.0) {
            // A register that only one of the two ways has set is used on that way only.
            if !falls && theirs != Value::Unknown || *mine == Value::Unknown {
                *mine = theirs;
            }
        }
    }

    fn narrow(&self, v: u64) -> u64 {
        if self.is_64 { v } else { u64::from(v as u32) }
    }

    fn keep(&mut self, r: usize, v: u64) {
        let at = (usize::from(self.newest[r]) + 1) % KEPT;
        self.newest[r] = at as u8;
        self.bases[r][at] = v;
        self.count[r] = (self.count[r] + 1).min(KEPT as u8);
    }

    /// Reports what `base` plus `offset` may be.
    #[inline]
    fn candidates(&self, base: usize, offset: u64, usage: Use, found: &mut impl FnMut(Use, u64)) {
        let mut first = None;
        if let Value::Known(v) | Value::Near(v) = self.values[base] {
            let v = self.narrow(v.wrapping_add(offset));
            first = Some(v);
            found(usage, v);
        }
        if usage == Use::Access {
            return;
        }
        let newest = usize::from(self.newest[base]);
        for i in 0..usize::from(self.count[base]) {
            let v = self.narrow(self.bases[base][(newest + KEPT - i) % KEPT].wrapping_add(offset));
            if first != Some(v) {
                found(usage, v);
            }
        }
    }

    /// Takes one instruction, at `at`, into account; calls `found` for every constant address that it may use, the
    /// likeliest first.
    #[inline]
    pub fn step(&mut self, at: u64, word: u32, found: &mut impl FnMut(Use, u64)) {
        let rs = (word >> 21 & 31) as usize;
        let rt = (word >> 16 & 31) as usize;
        let low = word as u16 as i16 as i64 as u64;
        match word >> 26 {
            0x0f => {
                // lui
                let v = self.narrow((word << 16) as i32 as i64 as u64);
                self.set(rt, Value::Known(v));
                // Nobody uses it alone: the lower half is added even where it is 0.
                if v != 0 {
                    self.keep(rt, v);
                }
                if let Value::Known(sum) = self.values[rt] {
                    self.pending(rt, at, sum);
                }
            }
            // addi addiu; daddi daddiu
            0x08 | 0x09 | 0x18 | 0x19 => self.add_immediate(rs, rt, low, found),
            0x0d => {
                // ori
                let v = match self.values[rs] {
                    Value::Known(v) => Value::Known(v | u64::from(word as u16)),
                    _ => Value::Unknown,
                };
                if rs != 0 {
                    if let Value::Known(v) = v {
                        found(Use::Address, v);
                    }
                    for i in 0..usize::from(self.count[rs]) {
                        let b = self.bases[rs][(usize::from(self.newest[rs]) + KEPT - i) % KEPT];
                        if v != Value::Known(b | u64::from(word as u16)) {
                            found(Use::Address, b | u64::from(word as u16));
                        }
                    }
                }
                self.set(rt, v);
            }
            // lw ld (lwu reads no address)
            op @ (0x23 | 0x37) => {
                if rs == 29 {
                    // A local variable: not a constant; with $gp as the target, the caller's own.
                    if rt != GP {
                        self.set(rt, Value::Unknown);
                    }
                    return;
                }
                self.candidates(rs, low, Use::Access, found);
                let mut value = Value::Unknown;
                if (op == 0x37) == self.is_64
                    && let Value::Known(base) = self.values[rs]
                    && rs != 0
                    && let Some(v) = (self.constants.word)(self.narrow(base.wrapping_add(low)))
                {
                    // The page of the lowest addresses is 0.
                    if v != 0 {
                        found(Use::Content, v);
                    }
                    value = Value::Known(v);
                    self.keep(rt, v);
                }
                if rt != GP || value != Value::Unknown {
                    self.set(rt, value);
                }
            }
            // all other loads, stores, cache and prefetch
            op @ (0x1a | 0x1b | 0x20..=0x3f) => {
                if rs != 29 {
                    self.candidates(rs, low, Use::Access, found);
                }
                // lb lh lwl lbu lhu lwr lwu ll ldl ldr lld, sc scd
                if matches!(op, 0x1a | 0x1b | 0x20..=0x27 | 0x30 | 0x34 | 0x38 | 0x3c) {
                    self.set(rt, Value::Unknown);
                }
            }
            0x00 => self.special(at, word, rs, rt),
            0x01 | 0x03 => {
                // Whatever links knows its own address.
                if let Some(r) = classify(word).link {
                    self.set(r.into(), Value::Known(self.narrow(at.wrapping_add(8))));
                }
            }
            // slti sltiu andi xori
            0x0a..=0x0c | 0x0e => self.set(rt, Value::Unknown),
            // mfc0, mfc1, cfc1, mfhc1
            0x10..=0x12 if rs < 4 => self.set(rt, Value::Unknown),
            // mul clz
            0x1c => self.set((word >> 11 & 31) as usize, Value::Unknown),
            0x1f => {
                // ext ins rdhwr write rt; seb seh wsbh write rd
                let r = if word & 0x3f == 0x20 { word >> 11 & 31 } else { word >> 16 & 31 };
                self.set(r as usize, Value::Unknown);
            }
            _ => {}
        }
    }

    fn set(&mut self, r: usize, v: Value) {
        if r != 0 {
            self.values[r] = v;
        }
    }

    /// A `lui` may begin the computation of `$gp`; which one does is seen when `$t9` is added.
    fn pending(&mut self, r: usize, at: u64, sum: u64) {
        if r == GP {
            self.values[GP] =
                Value::Entry { sum: self.narrow(sum.wrapping_add(self.entry.unwrap_or(at))), t9: false, low: false };
        }
    }

    fn add_immediate(&mut self, rs: usize, rt: usize, low: u64, found: &mut impl FnMut(Use, u64)) {
        let v = match self.values[rs] {
            Value::Known(v) => Value::Known(self.narrow(v.wrapping_add(low))),
            Value::Near(v) => Value::Near(self.narrow(v.wrapping_add(low))),
            Value::Entry { sum, t9, .. } => {
                self.finish(Value::Entry { sum: self.narrow(sum.wrapping_add(low)), t9, low: true })
            }
            Value::Unknown => Value::Unknown,
        };
        // From $0 it is a small number, from $sp the address of a local variable.
        if rs != 0 && rs != 29 {
            self.candidates(rs, low, Use::Address, found);
        }
        self.set(rt, v);
    }

    /// A complete computation of `$gp` gives the program's, or that of another of its GOTs.
    fn finish(&self, v: Value) -> Value {
        /// The first instruction of the computation may not be the function's first.
        const SLACK: u64 = 0x400;
        match (v, self.constants.gp) {
            (Value::Entry { sum, t9: true, low: true }, Some(gp)) => {
                let off = sum.wrapping_sub(gp);
                let near = if self.is_64 { off < SLACK } else { (off as u32) < SLACK as u32 };
                Value::Known(if near { gp } else { sum })
            }
            (Value::Entry { t9: true, low: true, .. }, None) => Value::Unknown,
            (v, _) => v,
        }
    }

    fn special(&mut self, at: u64, word: u32, rs: usize, rt: usize) {
        let rd = (word >> 11 & 31) as usize;
        let sa = word >> 6 & 31;
        match word & 0x3f {
            // jr break syscall sync traps, mult div, mthi mtlo
            0x08 | 0x0c | 0x0d | 0x0f | 0x11 | 0x13 | 0x18..=0x1f | 0x30..=0x36 => {}
            0x09 => self.set(rd, Value::Known(self.narrow(at.wrapping_add(8)))), // jalr
            // addu daddu, or
            op @ (0x20 | 0x21 | 0x25 | 0x2c | 0x2d) => {
                use Value::{Entry, Known, Near, Unknown};
                let (a, b) = (self.values[rs], self.values[rt]);
                let v = match (a, b) {
                    (v, _) if rt == 0 => v,
                    (_, v) if rs == 0 => v,
                    _ if op == 0x25 => Unknown,
                    // Part of $gp, and $t9. Of a function whose entry is known, that is exact.
                    (Entry { sum, t9: false, low }, _) if rt == T9 => self.finish(Entry { sum, t9: true, low }),
                    (_, Entry { sum, t9: false, low }) if rs == T9 => self.finish(Entry { sum, t9: true, low }),
                    (Known(h), _) if rt == T9 && self.is_half(h) => self.finish(self.entry(at, h)),
                    (_, Known(h)) if rs == T9 && self.is_half(h) => self.finish(self.entry(at, h)),
                    (Known(a), Known(b)) => Known(self.narrow(a.wrapping_add(b))),
                    (Known(a) | Near(a), Unknown) | (Unknown, Known(a) | Near(a)) => Near(a),
                    (Near(a), Known(b)) | (Known(a), Near(b)) => Near(self.narrow(a.wrapping_add(b))),
                    _ => Unknown,
                };
                if rd != rs && rd != rt && rd != 0 && v == Unknown {
                    // A table's address plus an index: what was kept for it goes along.
                    let from = if self.count[rs] > 0 { rs } else { rt };
                    if self.count[from] > 0 && rs != 0 && rt != 0 {
                        let base = self.bases[from][usize::from(self.newest[from])];
                        self.keep(rd, base);
                    }
                }
                if rd != GP || v != Unknown {
                    self.set(rd, v);
                }
            }
            0x38 | 0x3c if self.is_64 => {
                // dsll dsll32
                let by = sa + if word & 0x3f == 0x3c { 32 } else { 0 };
                let v = match self.values[rt] {
                    Value::Known(v) => Value::Known(v << by),
                    _ => Value::Unknown,
                };
                if let Value::Known(v) = v
                    && rd != 0
                    && v != 0
                {
                    self.keep(rd, v);
                }
                self.set(rd, v);
            }
            _ => self.set(rd, Value::Unknown),
        }
    }

    /// May this be the upper half of a distance to `$gp`?
    fn is_half(&self, v: u64) -> bool {
        v & 0xffff == 0
    }

    /// n64 code adds `$t9` before the lower half, in any register.
    fn entry(&self, at: u64, half: u64) -> Value {
        // `lui` is one of the few instructions before.
        Value::Entry { sum: self.narrow(half.wrapping_add(self.entry.unwrap_or(at))), t9: true, low: false }
    }
}
