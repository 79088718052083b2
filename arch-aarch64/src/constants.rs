//! Addresses that several instructions build together: `adrp` and `add`, or an offset in a load; `movz` and `movk`.
//!
//! Odd in this architecture: of the two instructions only the second knows the address, and compilers put others between, or
//! use one `adrp` for several addresses of its page, also in other blocks. Entries of jump tables are bytes or halfwords where
//! that is enough, and count instructions from a label.
//!
//! Source: Arm ARM, C6.2; AAELF64, "Relocation optimization", for the sequences that are usual.

use crate::flow::{direct, signed};
use crate::operands::operands;
use tigerfix_core::arch::{Constants, JumpTable};

/// The page that an `adrp` at `at` computes, and the register that it goes to.
pub(crate) fn page(word: u32, at: u64) -> Option<(u32, u64)> {
    if word >> 24 & 0x9f != 0x90 {
        return None;
    }
    let pages = signed(word, 5, 19) << 2 | i64::from(word >> 29 & 3);
    Some((word & 31, (at & !0xfff).wrapping_add_signed(pages << 12)))
}

/// `add` or `sub` of a constant to 64 bits, flags left alone.
pub(crate) fn is_add(word: u32) -> bool {
    word >> 23 & 0x17f == 0x122
}

/// The constant that an `add`, a load or a store adds to its base register.
pub(crate) fn offset(word: u32) -> Option<i64> {
    let imm12 = i64::from(word >> 10 & 0xfff);
    if is_add(word) {
        let value = if word >> 22 & 1 == 1 { imm12 << 12 } else { imm12 };
        return Some(if word >> 30 & 1 == 1 { -value } else { value });
    }
    // Loads and stores with an unsigned offset, scaled by the size of the access (vector registers: up to 16 bytes).
    if word >> 24 & 0x3b == 0x39 {
        let whole = word >> 26 & 1 == 1 && word >> 23 & 1 == 1;
        return Some(imm12 << (word >> 30) << if whole { 4 } else { 0 });
    }
    None
}

/// What a load with an index reads: its register, and the entry as a table whose `base` and `shift` are not known yet.
fn entry(word: u32, base: Option<u64>) -> Option<(u32, JumpTable)> {
    // ldr, ldrs, in all sizes, of general registers
    let (size, opc) = (word >> 30, word >> 22 & 3);
    let indexed = word >> 24 & 0x3f == 0x38 && word >> 21 & 1 == 1 && word >> 10 & 3 == 2;
    if !indexed || opc == 0 || size == 3 && opc != 1 {
        return None;
    }
    Some((word & 31, JumpTable { at: base?, base: 0, size: 1 << size, signed: opc > 1, shift: 0 }))
}

/// The registers that an `add` with an entry of a table adds, that with the entry last, and how the latter is extended (0 to 7
/// as in the instruction; `None`: not at all) and shifted.
fn sum(word: u32) -> Option<(u32, u32, Option<u32>, u8)> {
    let (n, m) = (word >> 5 & 31, word >> 16 & 31);
    match word & 0xffe0_0000 {
        0x8b20_0000 => Some((n, m, Some(word >> 13 & 7), (word >> 10 & 7) as u8)),
        0x8b00_0000 => Some((n, m, None, (word >> 10 & 63) as u8)),
        _ => None,
    }
}

/// What is known of the general registers, instruction by instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracker {
    values: [Option<u64>; 31],
    /// Registers, as bits, whose values come from the code above, though control does not.
    unsure: u32,
    /// The register that an entry of a table was loaded into last, and that with the place that such an entry leads to.
    entry: Option<(u32, JumpTable)>,
    place: Option<(u32, JumpTable)>,
}

impl Tracker {
    fn set(&mut self, register: u32, value: Option<u64>) {
        if let Some(v) = self.values.get_mut(register as usize) {
            *v = value;
        }
    }

    /// What a register holds, where that is known.
    #[must_use]
    pub fn value(&self, register: u32) -> Option<u64> {
        self.values.get(register as usize).copied().flatten()
    }

    /// The same, if control is known to come from where it was set.
    #[must_use]
    pub fn certain(&self, register: u32) -> Option<u64> {
        self.value(register).filter(|_| self.unsure >> (register & 31) & 1 == 0)
    }

    /// Goes on where control does not come from above, but from places that are not known. Addresses that are built here from
    /// parts that were set above are worth to be known, but not to be counted on.
    pub fn unreached(&mut self) {
        self.unsure = u32::MAX;
    }

    /// The table that the place in a register was taken from.
    #[must_use]
    pub fn table(&self, register: u32) -> Option<JumpTable> {
        let in_it = |known: &(u32, JumpTable)| known.0 == register;
        let found = self.place.filter(in_it).or(self.entry.filter(in_it)).map(|(_, table)| table);
        // An entry that is no offset is a whole address.
        found.filter(|t| t.base != 0 || t.size == 8)
    }

    /// The place that an `add` makes of a table's entry.
    fn sum(&self, word: u32) -> Option<(u32, JumpTable)> {
        let (register, entry) = self.entry?;
        let (n, m, extension, shift) = sum(word)?;
        let (base, extension) = match extension {
            None if n == register && shift == 0 => (m, None),
            _ if m == register => (n, extension),
            _ => return None,
        };
        let signed = match extension {
            Some(e) if 1 << (e & 3) < entry.size => return None,
            Some(e) if 1 << (e & 3) == entry.size => e >= 4,
            _ => entry.signed,
        };
        let base = self.value(base)?;
        Some((word & 31, JumpTable { base, signed, shift, ..entry }))
    }

    /// Goes on behind the instruction `word` at `at`. Returns the address that it computes or accesses, if it is a constant.
    /// An `adrp` alone refers to nothing; a load from the global offset table refers to what is in there, if that is known.
    pub fn step(&mut self, word: u32, at: u64, constants: &Constants<'_>) -> Option<u64> {
        let (d, n) = (word & 31, word >> 5 & 31);
        let unsure = |register: u32| self.unsure >> register & 1;
        let mut result = None;
        // Does the result depend on a value that is not certain?
        let mut taint = 0;
        let refers = if let Some((_, page)) = page(word, at) {
            result = Some((d, page));
            None
        } else if word >> 24 & 0x9f == 0x10 {
            // adr
            let to = direct(word, at);
            result = to.map(|v| (d, v));
            to
        } else if word >> 24 & 0x3b == 0x18 {
            direct(word, at) // a literal
        } else if let (Some(base), Some(offset)) = (self.value(n), offset(word)) {
            let to = base.wrapping_add_signed(offset);
            // ldr of 64 bits; the dynamic loader has yet to fill in what is 0
            let slot = if word >> 22 == 0x3e5 { (constants.word)(to).filter(|w| *w != 0) } else { None };
            result = if is_add(word) { Some((d, to)) } else { slot.map(|w| (d, w)) };
            taint = unsure(n);
            Some(slot.unwrap_or(to))
        } else if word & 0xffe0_ffe0 == 0xaa00_03e0 {
            // mov between registers
            result = self.value(word >> 16 & 31).map(|v| (d, v));
            taint = unsure(word >> 16 & 31);
            None
        } else if word >> 23 & 0x1ff == 0x1a5 || word >> 23 & 0x1ff == 0x1e5 {
            // movz, movk
            let shift = (word >> 21 & 3) * 16;
            let part = u64::from(word >> 5 & 0xffff) << shift;
            let whole = match word >> 29 & 3 {
                2 => Some(part),
                _ => self.value(d).map(|v| v & !(0xffff << shift) | part),
            };
            taint = if word >> 29 & 3 == 2 { 0 } else { unsure(d) };
            result = whole.map(|v| (d, v));
            // The last part of an address is its upper one.
            whole.filter(|_| word >> 29 & 3 == 3 && shift != 0)
        } else {
            None
        };
        let (entry, place) = (entry(word, self.value(n)), self.sum(word));
        let writes = operands(word).writes.0;
        let stays = |known: &(u32, JumpTable)| writes >> known.0 & 1 == 0;
        self.entry = entry.or(self.entry.filter(stays));
        self.place = place.or(self.place.filter(stays));
        for (register, value) in self.values.iter_mut().enumerate() {
            if writes >> register & 1 == 1 {
                *value = None;
            }
        }
        self.unsure &= !(writes as u32);
        if let Some((register, value)) = result {
            self.set(register, Some(value));
            self.unsure = self.unsure & !(1 << register) | taint << register;
        }
        refers
    }

    /// Forgets what a function that was called may have changed.
    pub fn called(&mut self) {
        for (register, value) in self.values.iter_mut().enumerate() {
            if !(19..=29).contains(&register) {
                *value = None;
            }
        }
        (self.entry, self.place) = (None, None);
    }

    /// Goes on where another way leads as well, or (`falls` is false) only that one.
    pub fn join(&mut self, other: &Tracker, falls: bool) {
        if !falls {
            *self = *other;
            return;
        }
        for (mine, theirs) in self.values.iter_mut().zip(other.values) {
            if *mine != theirs {
                *mine = None;
            }
        }
        self.unsure |= other.unsure;
        self.entry = self.entry.filter(|e| other.entry == Some(*e));
        self.place = self.place.filter(|p| other.place == Some(*p));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_add_up() {
        // (words, what the last one refers to)
        let rows: &[(&[u32], Option<u64>)] = &[
            (&[0xb000_0001, 0x9100_8021], Some(0x40_2020)), // adrp x1; add x1, x1, #0x20
            (&[0xb000_0001, 0x9140_0421], Some(0x40_3000)), // add x1, x1, #1, lsl #12
            (&[0xb000_0001, 0xd100_1021], Some(0x40_1ffc)), // sub x1, x1, #4
            (&[0xb000_0001, 0xf940_1022], Some(0x40_2020)), // ldr x2, [x1, #0x20]
            (&[0xb000_0001, 0x3940_1022], Some(0x40_2004)), // ldrb w2, [x1, #4]
            (&[0xb000_0001, 0x3d80_0422], Some(0x40_2010)), // str q2, [x1, #0x10]
            (&[0xb000_0001, 0xaa01_03e3, 0x9100_8062], Some(0x40_2020)), // mov x3, x1; add x2, x3, #0x20
            (&[0xb000_0001, 0x9100_4021, 0xf940_0422], Some(0x40_2018)), // add x1, x1, #0x10; ldr x2, [x1, #8]
            (&[0x1000_8001], Some(0x40_2000)),              // adr x1
            (&[0x5800_8001], Some(0x40_2000)),              // ldr x1, literal
            (&[0xd284_0001, 0xf2a0_0801], Some(0x40_2000)), // movz x1, #0x2000; movk x1, #0x40, lsl #16
            (&[0xb000_0001], None),                         // adrp alone
            (&[0xb000_0001, 0x9100_8043], None),            // add x3, x2, #0x20: of another register
            (&[0xb000_0001, 0xf940_0021, 0x9100_8021], None), // ldr x1, [x1]: the page is gone
            (&[0xb000_0001, 0x8b02_0021, 0x9100_8021], None), // add x1, x1, x2
            (&[0xd284_0001], None),                         // movz: a number
        ];
        for (words, expect) in rows {
            let mut tracker = Tracker::default();
            let mut last = None;
            for (i, w) in words.iter().enumerate() {
                last = tracker.step(*w, 0x40_1000 + 4 * i as u64, &Constants::NONE);
            }
            assert_eq!(last, *expect, "{words:x?}");
        }
    }

    #[test]
    fn slots_of_the_global_offset_table_are_looked_up() {
        let word = |at: u64| match at {
            0x40_2020 => Some(0x41_2340),
            0x40_2028 => Some(0),
            _ => None,
        };
        let constants = Constants { gp: None, word: &word };
        let mut tracker = Tracker::default();
        tracker.step(0xb000_0001, 0x40_1000, &constants); // adrp x1
        assert_eq!(tracker.step(0xf940_1022, 0x40_1004, &constants), Some(0x41_2340)); // ldr x2, [x1, #0x20]
        assert_eq!(tracker.value(2), Some(0x41_2340));
        assert_eq!(tracker.step(0xf940_1422, 0x40_1008, &constants), Some(0x40_2028)); // ldr x2, [x1, #0x28]
        assert_eq!(tracker.value(2), None);
        assert_eq!(tracker.step(0xb940_2022, 0x40_100c, &constants), Some(0x40_2020)); // ldr w2, [x1, #0x20]
        assert_eq!(tracker.value(2), None);
    }

    #[test]
    fn entries_of_jump_tables_lead_to_places() {
        // adrp x2; add x2, x2, #0x20; then a load of an entry, and what makes a place of it in x1
        let table = |words: &[u32], register: u32| {
            let mut tracker = Tracker::default();
            for (i, w) in [&[0xb000_0002, 0x9100_8042], words].concat().iter().enumerate() {
                tracker.step(*w, 0x40_1000 + 4 * i as u64, &Constants::NONE);
            }
            tracker.table(register)
        };
        // What the entries count from, their size, sign and shift.
        type Found = Option<(u64, u8, bool, u8)>;
        let rows: &[(&[u32], Found)] = &[
            // ldrb w1, [x2, w1, uxtw]; adr x3; add x1, x3, w1, sxtb #2
            (&[0x3861_4841, 0x1000_0063, 0x8b21_8861], Some((0x40_1018, 1, true, 2))),
            // ldrh w1, [x2, w1, uxtw #1]; adr x3; add x1, x3, w1, sxth #2
            (&[0x7861_5841, 0x1000_0063, 0x8b21_a861], Some((0x40_1018, 2, true, 2))),
            // ldr w1, [x2, w1, uxtw #2]; adr x3; add x1, x3, w1, sxtw #2
            (&[0xb861_5841, 0x1000_0063, 0x8b21_c861], Some((0x40_1018, 4, true, 2))),
            // ldrb w1, [x2, x1]; adr x3; add x1, x3, x1, lsl #2
            (&[0x3861_6841, 0x1000_0063, 0x8b01_0861], Some((0x40_1018, 1, false, 2))),
            // adr x3; ldrb w1, [x2, x1]; add x1, x3, x1, lsl #2: in another order
            (&[0x1000_0063, 0x3861_6841, 0x8b01_0861], Some((0x40_1014, 1, false, 2))),
            // ldrsw x1, [x2, x1, lsl #2]; add x1, x1, x2: from the table itself
            (&[0xb8a1_7841, 0x8b02_0021], Some((0x40_2020, 4, true, 0))),
            // ldr x1, [x2, x1, lsl #3]: addresses
            (&[0xf861_7841], Some((0, 8, false, 0))),
            // ldr w1: an offset from nothing
            (&[0xb861_5841], None),
            // ldrb w1; add x1, x4, w1, sxtb #2: of what is not known
            (&[0x3861_4841, 0x8b21_8881], None),
            // ldrb w1; adr x3; mov w1, #0; add x1, x3, w1, sxtb #2
            (&[0x3861_4841, 0x1000_0063, 0x5280_0001, 0x8b21_8861], None),
            // ldrh w1; adr x3; add x1, x3, w1, sxtb #2: half of an entry
            (&[0x7861_5841, 0x1000_0063, 0x8b21_8861], None),
            // ldrb w1; adr x3; add x1, x3, w1, sxtb #2; mov x1, #0
            (&[0x3861_4841, 0x1000_0063, 0x8b21_8861, 0xd280_0001], None),
        ];
        for (words, expect) in rows {
            let expect =
                expect.map(|(base, size, signed, shift)| JumpTable { at: 0x40_2020, base, size, signed, shift });
            assert_eq!(table(words, 1), expect, "{words:x?}");
            assert_eq!(table(words, 5), None, "{words:x?}");
        }
        // strb and prfm read no entry.
        for word in [0x3821_4841, 0xf8a1_4841] {
            assert_eq!(table(&[word], 1), None, "{word:x}");
        }
    }

    #[test]
    fn what_comes_from_above_without_control_is_not_certain() {
        let mut tracker = Tracker::default();
        tracker.step(0xb000_0001, 0x40_1000, &Constants::NONE); // adrp x1
        assert_eq!(tracker.certain(1), Some(0x40_2000));
        tracker.unreached();
        assert_eq!((tracker.value(1), tracker.certain(1)), (Some(0x40_2000), None));
        // add x2, x1, #0x20; mov x3, x2: still of use, still not certain
        assert_eq!(tracker.step(0x9100_8022, 0x40_1004, &Constants::NONE), Some(0x40_2020));
        tracker.step(0xaa02_03e3, 0x40_1008, &Constants::NONE);
        assert_eq!((tracker.value(3), tracker.certain(3)), (Some(0x40_2020), None));
        // adrp x1; add x2, x1, #0x20: all here
        tracker.step(0xb000_0001, 0x40_100c, &Constants::NONE);
        tracker.step(0x9100_8022, 0x40_1010, &Constants::NONE);
        assert_eq!((tracker.certain(2), tracker.certain(3)), (Some(0x40_2020), None));
        let mut joined = Tracker::default();
        joined.step(0xb000_0001, 0x40_100c, &Constants::NONE);
        joined.step(0x9100_8022, 0x40_1010, &Constants::NONE);
        joined.step(0xaa02_03e3, 0x40_1008, &Constants::NONE);
        joined.join(&tracker, true);
        assert_eq!((joined.certain(2), joined.value(3), joined.certain(3)), (Some(0x40_2020), Some(0x40_2020), None));
    }

    #[test]
    fn calls_and_joins_forget() {
        let mut tracker = Tracker::default();
        tracker.step(0xb000_0001, 0x40_1000, &Constants::NONE); // adrp x1
        tracker.step(0xb000_0013, 0x40_1004, &Constants::NONE); // adrp x19
        let mut after = tracker;
        after.called();
        assert_eq!((after.value(1), after.value(19)), (None, Some(0x40_2000)));
        let mut other = tracker;
        other.step(0xd000_0001, 0x40_1008, &Constants::NONE); // adrp x1, another page
        let mut both = tracker;
        both.join(&other, true);
        assert_eq!((both.value(1), both.value(19)), (None, Some(0x40_2000)));
        tracker.join(&other, false);
        assert_eq!(tracker.value(1), Some(0x40_3000));
    }
}
