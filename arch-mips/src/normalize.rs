//! Relocation entries as the file has them, made neutral.
//!
//! Odd in this psABI:
//! * O32 keeps addends in the fields (SHT_REL). Those of an address in two halves are in two fields: AHL = (high << 16) + the
//!   sign-extended low one, and HI16 can't be computed without it. A HI16 belongs to the next LO16 *in the section* that is
//!   against the same symbol; assemblers order the entries so (GNU as moves a HI16 right before the LO16 with the same
//!   operand, so entries do not ascend by offset). Several HI16 may share a LO16.
//! * Compilers also use one HI16 for several LO16. The psABI does not know this; it works because the high half does not
//!   change the low bits of the sum. Here the whole sum has to be right, as what is at a section's symbol + AHL may lie
//!   elsewhere in the program. Where there are several high halves to choose from, the one that the instruction's base
//!   register comes from is taken.
//! * `R_MIPS_GOT16` against a local symbol is the high half of a pair as well, against a global one it is not.
//! * GNU as stores a low addend of the other two-part operators (`%got_hi`, `%tprel_hi`, ...) unshifted in both fields;
//!   they are not paired.
//! * `_gp_disp` is no symbol but an operator: its HI16 and LO16 mean GP - P and GP - P + 4, both counted from the HI16 in
//!   which P was.
//! * An addend of `R_MIPS_26` is bits 27 to 2 of an address in the same region where the symbol is local, else a signed
//!   distance. Regions begin at 0 in an object file: the psABI's `P & 0xf0000000` vanishes.
//! * n64's `r_info` is no number but a structure in memory order: the symbol as a word of 4 bytes, then a special symbol and
//!   three types, a byte each, last operation first. It has explicit addends only.
//!
//! Sources: psABI, "Relocation"; n64, "Relocation" (Elf64_Rela); entries that GNU as and GNU ld take and make.

use crate::Mips;
use crate::operands::{Set, operands};
use crate::relocations::*;
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use tigerfix_core::arch::{Expr, NormalizeError, RawRelocs, Reloc, Relocator as _};
use tigerfix_core::field::{Endian, load};

/// `Elf32_Rel`, `Elf32_Rela`: r_offset, r_info (and r_addend) of 4 bytes each.
const REL_32: usize = 8;
const RELA_32: usize = 12;
/// `Elf64_Rela`: r_offset of 8 bytes, the structure of 8, r_addend of 8.
const RELA_64: usize = 24;

/// The symbol that is none.
const GP_DISP: &str = "_gp_disp";
/// What the psABI adds to the low half of `_gp_disp`: the distance of its instruction from the HI16's.
const GP_DISP_LO_BIAS: i64 = 4;
/// From a branch to its delay slot, where the processor counts from.
const DELAY_SLOT: i64 = 4;

pub(crate) fn normalize(arch: &Mips, raw: &RawRelocs<'_>) -> Result<Vec<Reloc>, NormalizeError> {
    let refuse = |what| Err(NormalizeError { offset: 0, r_type: 0, what });
    if raw.is_64 != arch.is_64 || raw.endian != arch.endian {
        return refuse("the entries are not of this ABI's class and byte order");
    }
    if raw.is_64 && !raw.rela {
        return refuse("this ABI has explicit addends only, but the section is of type SHT_REL");
    }
    let size = match (raw.is_64, raw.rela) {
        (true, _) => RELA_64,
        (false, true) => RELA_32,
        (false, false) => REL_32,
    };
    if !raw.entries.len().is_multiple_of(size) {
        return refuse("the section's size is not a multiple of its entries'");
    }
    let mut relocs = Vec::with_capacity(raw.entries.len() / size);
    for e in raw.entries.chunks_exact(size) {
        relocs.push(if raw.is_64 { entry_64(e, raw.endian)? } else { entry_32(e, raw.endian) });
    }
    if !raw.rela {
        in_place(raw, &mut relocs)?;
    }
    for r in &mut relocs {
        special(arch, raw, r)?;
    }
    Ok(relocs)
}

fn entry_32(e: &[u8], endian: Endian) -> Reloc {
    let info = load(&e[4..8], endian) as u32;
    let addend = e.get(8..12).map_or(0, |a| i64::from(load(a, endian) as i32));
    Reloc { offset: load(&e[..4], endian), r_type: info & 0xff, symbol: info >> 8, addend }
}

fn entry_64(e: &[u8], endian: Endian) -> Result<Reloc, NormalizeError> {
    let [special, third, second, first] = [e[12], e[13], e[14], e[15]].map(u32::from);
    let r_type = first | second << 8 | third << 16;
    let offset = load(&e[..8], endian);
    if special != 0 {
        let what = "its second operation works on a special symbol (r_ssym), which is not supported";
        return Err(NormalizeError { offset, r_type, what });
    }
    Ok(Reloc { offset, r_type, symbol: load(&e[8..12], endian) as u32, addend: load(&e[16..24], endian) as i64 })
}

/// What is left to do for addends of either kind.
fn special(arch: &Mips, raw: &RawRelocs<'_>, r: &mut Reloc) -> Result<(), NormalizeError> {
    match r.r_type {
        PC16 => r.addend = r.addend.wrapping_add(DELAY_SLOT),
        GOT16 if (raw.is_local)(r.symbol) => r.r_type = if raw.is_64 { GOT_PAGE } else { GOT16_PAGE },
        HI16 if is_gp_disp(raw, r) => r.r_type = GP_DISP_HI16,
        LO16 if is_gp_disp(raw, r) => {
            r.r_type = GP_DISP_LO16;
            r.addend = r.addend.wrapping_add(GP_DISP_LO_BIAS);
        }
        _ => {}
    }
    let slot = arch.howto(r.r_type).is_some_and(|h| matches!(h.expr, Expr::Got | Expr::GotTpOff));
    if slot && r.addend != 0 && !(raw.is_local)(r.symbol) {
        // GNU ld silently drops it in O32.
        let what = "has an addend, but a global symbol's GOT slot holds its whole address: add the number in an \
                    instruction of its own";
        return Err(NormalizeError { offset: r.offset, r_type: r.r_type, what });
    }
    Ok(())
}

fn is_gp_disp(raw: &RawRelocs<'_>, r: &Reloc) -> bool {
    !raw.is_64 && (raw.name)(r.symbol) == GP_DISP
}

fn sign_extend(value: u64, bits: u32) -> i64 {
    (value << (64 - bits)) as i64 >> (64 - bits)
}

/// Is it the high half of a pair?
fn is_high(raw: &RawRelocs<'_>, r: &Reloc) -> bool {
    r.r_type == HI16 || r.r_type == GOT16 && (raw.is_local)(r.symbol)
}

/// Reads the addends of O32 from the fields.
fn in_place(raw: &RawRelocs<'_>, relocs: &mut [Reloc]) -> Result<(), NormalizeError> {
    let mut highs = Highs::default();
    for r in relocs.iter_mut() {
        let word = || field(raw, r, 4);
        let low_16 = || word().map(|w| sign_extend(w, 16));
        r.addend = match r.r_type {
            ABS32 | GPREL32 | PC32 => sign_extend(word()?, 32),
            ABS64 => field(raw, r, 8)? as i64,
            JUMP26 => match (word()? & 0x03ff_ffff) << 2 {
                region if (raw.is_local)(r.symbol) => region as i64,
                distance => sign_extend(distance, 28),
            },
            PC16 => low_16()? << 2,
            // A high half for now.
            HI16 => low_16()?,
            ABS16 | LO16 | GPREL16 | GOT16 | CALL16 | GOT_DISP | GOT_PAGE | GOT_OFST | GOT_HI16 | GOT_LO16
            | CALL_HI16 | CALL_LO16 | TLS_GOTTPREL | TLS_TPREL_HI16 | TLS_TPREL_LO16 => low_16()?,
            // Hints, and what the linker refuses by its name.
            _ => 0,
        };
        if is_high(raw, r) {
            highs.of.entry(r.symbol).or_default().insert(r.addend);
            highs.at.insert(r.offset, (r.symbol, r.addend));
        }
    }
    if !highs.at.is_empty() {
        pair(raw, relocs, &highs)?;
    }
    Ok(())
}

/// The `len` bytes at a relocation's place.
fn field(raw: &RawRelocs<'_>, r: &Reloc, len: usize) -> Result<u64, NormalizeError> {
    let from = usize::try_from(r.offset).ok();
    let bytes = from.and_then(|from| raw.section.get(from..from.checked_add(len)?));
    let outside = NormalizeError { offset: r.offset, r_type: r.r_type, what: "its field lies outside the section" };
    bytes.map(|b| load(b, raw.endian)).ok_or(outside)
}

/// The high halves of a section.
#[derive(Default)]
struct Highs {
    /// Their values by symbol.
    of: BTreeMap<u32, BTreeSet<i64>>,
    /// Symbol and value by offset.
    at: BTreeMap<u64, (u32, i64)>,
}

/// Gives both halves of each pair the whole addend.
fn pair(raw: &RawRelocs<'_>, relocs: &mut [Reloc], highs: &Highs) -> Result<(), NormalizeError> {
    // From the end on: the last LO16 seen is then the next one in the section.
    let mut next_low: BTreeMap<u32, (usize, i64)> = BTreeMap::new();
    // High halves of which a LO16 is the next one.
    let mut high_of: BTreeMap<usize, BTreeSet<i64>> = BTreeMap::new();
    for i in (0..relocs.len()).rev() {
        let r = &mut relocs[i];
        if r.r_type == LO16 {
            next_low.insert(r.symbol, (i, r.addend));
        } else if is_high(raw, r) {
            let Some(&(at, low)) = next_low.get(&r.symbol) else {
                let what = "is the upper half of an address, but no R_MIPS_LO16 against the same symbol follows it";
                return Err(NormalizeError { offset: r.offset, r_type: r.r_type, what });
            };
            high_of.entry(at).or_default().insert(r.addend);
            r.addend = whole(r.addend, low);
        }
    }
    for (i, low) in relocs.iter_mut().enumerate().filter(|(_, r)| r.r_type == LO16) {
        let own = high_of.get(&i).or_else(|| highs.of.get(&low.symbol));
        let high = match own.map(|set| (set.len(), set.first())) {
            // Without a high half: code that knows its address to be small.
            None | Some((_, None)) => 0,
            Some((1, Some(only))) => *only,
            Some((_, Some(first))) => match high_by_register(raw, low, highs) {
                Some(high) => high,
                // Only the low bits of the sum matter where the symbol itself says what is meant.
                None if !(raw.name)(low.symbol).is_empty() => *first,
                None => {
                    let what = "is the lower half of an address, but it can't be told which of several upper halves \
                                belongs to it: compile with -fdata-sections";
                    return Err(NormalizeError { offset: low.offset, r_type: low.r_type, what });
                }
            },
        };
        low.addend = whole(high, low.addend);
    }
    Ok(())
}

/// AHL: halves make an address that wraps at 32 bits.
fn whole(high: i64, low: i64) -> i64 {
    i64::from(((high << 16) + low) as i32)
}

/// The upper half that the base register of the instruction at `low` holds, as far as the code before it tells: the
/// nearest instruction that set it carries a high half against the same symbol. Sums with an index are followed.
fn high_by_register(raw: &RawRelocs<'_>, low: &Reloc, highs: &Highs) -> Option<i64> {
    /// How far a compiler may have moved the upper half ahead, in bytes; a bound for hostile input.
    const FAR: usize = 0x4000;
    let from = usize::try_from(low.offset).ok()?;
    let word = |at: usize| raw.section.get(at..at + 4).map(|b| load(b, raw.endian) as u32);
    // The registers that may hold it.
    let mut wanted = Set::gpr(word(from)? >> 21);
    let mut at = from;
    while wanted != Set::NONE && from - at < FAR {
        at = at.checked_sub(4)?;
        let insn = word(at)?;
        let set = operands(raw.is_64, insn)?.writes;
        if !set.meets(wanted) {
            continue;
        }
        if let Some((_, high)) = highs.at.get(&(at as u64)).filter(|h| h.0 == low.symbol) {
            return Some(*high);
        }
        wanted = wanted.without(set);
        // addu, daddu, or (a move): the register is one of the two.
        if insn >> 26 == 0 && matches!(insn & 0x3f, 0x21 | 0x2d | 0x25) {
            wanted = wanted.and(Set::gpr(insn >> 21)).and(Set::gpr(insn >> 16));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MIPS, MIPS64, MIPS64EL, MIPSEL};
    use std::vec;
    use tigerfix_core::arch::Arch as _;
    use tigerfix_core::field::store;
    use tigerfix_core::relocate::settle;

    /// Symbols of the tests: sections are local and nameless.
    const TEXT: u32 = 1;
    const BSS: u32 = 3;
    const LOCAL: u32 = 5;
    const EXT: u32 = 12;
    const DISP: u32 = 13;

    fn name(symbol: u32) -> &'static str {
        match symbol {
            LOCAL => "local",
            EXT => "ext",
            DISP => "_gp_disp",
            _ => "",
        }
    }

    fn words(arch: &Mips, words: &[u32]) -> Vec<u8> {
        let mut out = vec![0; 4 * words.len()];
        out.chunks_mut(4).zip(words).for_each(|(at, w)| store(at, arch.endian, u64::from(*w)));
        out
    }

    /// Elf32_Rel: offset, type, symbol.
    fn rel(arch: &Mips, code: &[u32], entries: &[(u32, u32, u32)]) -> Result<Vec<Reloc>, NormalizeError> {
        let flat: Vec<u32> = entries.iter().flat_map(|(at, t, s)| [*at, s << 8 | t]).collect();
        raw(arch, &words(arch, &flat), &words(arch, code), false)
    }

    fn raw(arch: &Mips, entries: &[u8], section: &[u8], rela: bool) -> Result<Vec<Reloc>, NormalizeError> {
        normalize(
            arch,
            &RawRelocs {
                entries,
                rela,
                section,
                is_64: arch.is_64,
                endian: arch.endian,
                is_local: &|s| s < EXT,
                name: &|s| name(s),
            },
        )
    }

    /// The same in both orders: offset, type and addend of each.
    fn both(code: &[u32], entries: &[(u32, u32, u32)], expect: &[(u64, u32, i64)]) {
        for arch in [&MIPS, &MIPSEL] {
            let got = rel(arch, code, entries).unwrap();
            let got: Vec<(u64, u32, i64)> = got.iter().map(|r| (r.offset, r.r_type, r.addend)).collect();
            assert_eq!(got, expect, "{}", arch.name());
        }
    }

    /// What GNU as 2.40 made of code that works on two variables of 96 KiB, `a` and `b` (at .bss + 0x18008), with shared
    /// upper halves, an index, and a LO16 in the delay slot of a call.
    #[test]
    fn one_high_half_for_many_low_ones() {
        let code = [
            0x3c02_0000, // 00 lui $2,%hi(a)
            0x3c03_0002, // 04 lui $3,%hi(b)
            0x8c44_0000, // 08 lw $4,%lo(a)($2)
            0x8c65_8008, // 0c lw $5,%lo(b)($3)
            0x0047_3021, // 10 addu $6,$2,$7
            0x8cc8_0004, // 14 lw $8,%lo(a+4)($6)
            0xac68_800c, // 18 sw $8,%lo(b+4)($3)
            0x0320_f809, // 1c jalr $25
            0x2464_8010, // 20 addiu $4,$3,%lo(b+8)
            0x3c04_0000, // 24 lui $4,%hi(a+8)
            0x0320_0008, // 28 jr $25
            0x2484_0008, // 2c addiu $4,$4,%lo(a+8)
        ];
        let entries = [
            (0x00, HI16, BSS),
            (0x08, LO16, BSS),
            (0x04, HI16, BSS),
            (0x0c, LO16, BSS),
            (0x14, LO16, BSS),
            (0x18, LO16, BSS),
            (0x20, LO16, BSS),
            (0x24, HI16, BSS),
            (0x2c, LO16, BSS),
        ];
        let expect = [
            (0x00, HI16, 0),
            (0x08, LO16, 0),
            (0x04, HI16, 0x1_8008),
            (0x0c, LO16, 0x1_8008),
            (0x14, LO16, 4), // by its register: the entry before it is b's
            (0x18, LO16, 0x1_800c),
            (0x20, LO16, 0x1_8010),
            (0x24, HI16, 8),
            (0x2c, LO16, 8),
        ];
        both(&code, &entries, &expect);
    }

    /// GNU as puts every HI16 in front of its LO16, so their order is not that of the code.
    #[test]
    fn many_high_halves_for_one_low_one() {
        let code = [
            0x3c05_0001, // 0 lui $5,%hi(ext+0x8000)
            0x3c06_0001, // 4 lui $6,%hi(ext+0x8000)
            0x8ca5_8000, // 8 lw $5,%lo(ext+0x8000)($5)
            0x8cc6_8004, // c lw $6,%lo(ext+0x8004)($6)
        ];
        let entries = [(4, HI16, EXT), (0, HI16, EXT), (8, LO16, EXT), (0xc, LO16, EXT)];
        both(&code, &entries, &[(4, HI16, 0x8000), (0, HI16, 0x8000), (8, LO16, 0x8000), (0xc, LO16, 0x8004)]);
        // A loop: the upper half behind the lower one.
        let code = [0x8ca5_0010, 0x3c05_0000];
        both(&code, &[(4, HI16, EXT), (0, LO16, EXT)], &[(4, HI16, 0x10), (0, LO16, 0x10)]);
        // Pairs of several symbols, interleaved.
        let code = [0x3c02_0001, 0x3c03_0000, 0x2442_fff0, 0x2463_7ff0];
        let entries = [(0, HI16, EXT), (4, HI16, LOCAL), (8, LO16, EXT), (0xc, LO16, LOCAL)];
        both(&code, &entries, &[(0, HI16, 0xfff0), (4, HI16, 0x7ff0), (8, LO16, 0xfff0), (0xc, LO16, 0x7ff0)]);
    }

    /// The sum of both halves decides about the carry, with negative addends and at the end of the address space too.
    #[test]
    fn carries() {
        for (hi, lo, s, address) in [
            (0, 0x7ff0, 0x40_0010u64, 0x40_8000u32),
            (0, 0x7fef, 0x40_0010, 0x40_7fff),
            (1, 0x8000, 0x40_7fff, 0x40_ffff),
            (0, 0xfffc, 0x40_0000, 0x3f_fffc),
            (0xffff, 0xfffc, 0x41_0000, 0x3f_fffc),
            (0x8000, 0, 0x8000_1000, 0x1000),
            (0, 0x7fff, 0xffff_ffff, 0x7ffe),
        ] {
            for arch in [&MIPS, &MIPSEL] {
                let code = [0x3c02_0000 | hi, 0x2442_0000 | lo];
                let mut bytes = words(arch, &code);
                for r in rel(arch, &code, &[(0, HI16, EXT), (4, LO16, EXT)]).unwrap() {
                    settle(arch, arch.howto(r.r_type).unwrap(), &mut bytes, r.offset, s, r.addend, 0).unwrap();
                }
                let half = |at: usize| load(&bytes[at..at + 4], arch.endian) as u32 & 0xffff;
                let sum = (half(0) << 16).wrapping_add(half(4) as u16 as i16 as u32);
                assert_eq!(sum, address, "{hi:#x} {lo:#x} {s:#x}");
            }
        }
    }

    #[test]
    fn pairs_that_can_not_be_made() {
        let refused = |code: &[u32], entries: &[(u32, u32, u32)]| {
            let [be, le] = [&MIPS, &MIPSEL].map(|a| rel(a, code, entries).unwrap_err());
            assert_eq!(be, le);
            (be.offset, be.r_type, be.what)
        };
        // No lower half, one in front of it only, one against another symbol.
        for entries in [
            &[(4, HI16, EXT)][..],
            &[(0, LO16, EXT), (4, HI16, EXT)],
            &[(4, HI16, EXT), (0, LO16, LOCAL)],
            &[(4, GOT16, BSS), (0, LO16, TEXT)],
        ] {
            let (at, _, what) = refused(&[0x2442_0000, 0x3c02_0000], entries);
            assert!(at == 4 && what.contains("no R_MIPS_LO16"), "{what}");
        }
        // Two upper halves, and a register that comes from neither.
        let code = [0x3c02_0000, 0x3c03_0002, 0x8c44_0000, 0x8c65_0000, 0x8d08_0004];
        let entries = [(0, HI16, BSS), (8, LO16, BSS), (4, HI16, BSS), (0xc, LO16, BSS), (0x10, LO16, BSS)];
        let (at, t, what) = refused(&code, &entries);
        assert!(at == 0x10 && t == LO16 && what.contains("-fdata-sections"));
        // By a symbol's name, the low bits are all that counts.
        let named = entries.map(|(at, t, _)| (at, t, LOCAL));
        assert_eq!(rel(&MIPS, &code, &named).unwrap()[4].addend & 0xffff, 4);
        let (at, _, what) = refused(&[0], &[(4, HI16, EXT)]);
        assert!(at == 4 && what.contains("outside"));
        assert!(refused(&[0, 0], &[(6, ABS32, EXT)]).2.contains("outside"));
        assert!(refused(&[0, 0], &[(4, ABS64, EXT)]).2.contains("outside"));
        assert!(refused(&[0, 0], &[(u32::MAX, ABS32, EXT)]).2.contains("outside"));
    }

    #[test]
    fn a_low_half_alone() {
        both(&[0x2402_fff8], &[(0, LO16, EXT)], &[(0, LO16, -8)]);
    }

    /// Local GOT16 is the page of a pair; global GOT16 and all other references to slots are whole.
    #[test]
    fn global_offset_table() {
        let code = [
            0x8f82_0000, // 00 lw $2,%got(a)($28)
            0x8f83_0002, // 04 lw $3,%got(b)($28)
            0x2442_0000, // 08 addiu $2,$2,%lo(a)
            0x8c65_8008, // 0c lw $5,%lo(b)($3)
            0x8f99_0000, // 10 lw $25,%call16(ext)($28)
            0x8f98_0000, // 14 lw $24,%got(ext)($28)
            0x8f99_0000, // 18 lw $25,%got(.text)($28)
            0x2739_0008, // 1c addiu $25,$25,%lo(.text+8)
            0x3c02_0000, // 20 lui $2,%got_hi(ext)
            0x8c42_0000, // 24 lw $2,%got_lo(ext)($2)
            0x3c19_0000, // 28 lui $25,%call_hi(ext)
            0x8f39_0000, // 2c lw $25,%call_lo(ext)($25)
            0x2464_800c, // 30 addiu $4,$3,%lo(b+4)
        ];
        let entries = [
            (0x00, GOT16, BSS),
            (0x08, LO16, BSS),
            (0x04, GOT16, BSS),
            (0x0c, LO16, BSS),
            (0x10, CALL16, EXT),
            (0x14, GOT16, EXT),
            (0x18, GOT16, TEXT),
            (0x1c, LO16, TEXT),
            (0x20, GOT_HI16, EXT),
            (0x24, GOT_LO16, EXT),
            (0x28, CALL_HI16, EXT),
            (0x2c, CALL_LO16, EXT),
            (0x30, LO16, BSS),
        ];
        let expect = [
            (0x00, GOT16_PAGE, 0),
            (0x08, LO16, 0),
            (0x04, GOT16_PAGE, 0x1_8008),
            (0x0c, LO16, 0x1_8008),
            (0x10, CALL16, 0),
            (0x14, GOT16, 0),
            (0x18, GOT16_PAGE, 8),
            (0x1c, LO16, 8),
            (0x20, GOT_HI16, 0),
            (0x24, GOT_LO16, 0),
            (0x28, CALL_HI16, 0),
            (0x2c, CALL_LO16, 0),
            (0x30, LO16, 0x1_800c),
        ];
        both(&code, &entries, &expect);
        for t in [GOT16, CALL16, GOT_DISP, GOT_HI16, GOT_LO16, CALL_HI16, CALL_LO16, TLS_GOTTPREL] {
            let e = rel(&MIPS, &[0x8f82_0004], &[(0, t, EXT)]).unwrap_err();
            assert!(e.what.contains("whole address") && e.r_type == t);
            if t != GOT16 {
                assert_eq!(rel(&MIPS, &[0x8f82_0004], &[(0, t, LOCAL)]).unwrap()[0].addend, 4);
            }
        }
    }

    #[test]
    fn the_operator_gp_disp() {
        // lui $28,%hi(_gp_disp); addiu $28,$28,%lo(_gp_disp); lui $2,%hi(ext); addiu $2,$2,%lo(ext)
        let code = [0x3c1c_0000, 0x279c_0000, 0x3c02_0000, 0x2442_0000];
        let entries = [(0, HI16, DISP), (4, LO16, DISP), (8, HI16, EXT), (0xc, LO16, EXT)];
        both(&code, &entries, &[(0, GP_DISP_HI16, 0), (4, GP_DISP_LO16, 4), (8, HI16, 0), (0xc, LO16, 0)]);
        // With an addend, which is in both.
        let code = [0x3c1c_0001, 0x279c_8000];
        both(&code, &entries[..2], &[(0, GP_DISP_HI16, 0x8000), (4, GP_DISP_LO16, 0x8004)]);
        // What it is for: from both places the pair is the same distance, that of the HI16 to the GOT pointer.
        let (gp, p) = (0x1_0fff_8000u64, 0x40_1000u64);
        for arch in [&MIPS, &MIPSEL] {
            let code = [0x3c1c_0000, 0x279c_0000];
            let mut bytes = words(arch, &code);
            for r in rel(arch, &code, &entries[..2]).unwrap() {
                let howto = arch.howto(r.r_type).unwrap();
                assert_eq!(howto.expr, Expr::GotBasePc);
                let value = gp.wrapping_add_signed(r.addend).wrapping_sub(p + r.offset);
                tigerfix_core::relocate::put(arch, howto, &mut bytes, r.offset, value).unwrap();
            }
            let half = |at: usize| load(&bytes[at..at + 4], arch.endian) as u32 & 0xffff;
            let sum = (half(0) << 16).wrapping_add(half(4) as u16 as i16 as u32);
            assert_eq!(sum.wrapping_add(p as u32), gp as u32);
        }
    }

    #[test]
    fn jumps_and_branches() {
        let code = [0x0c00_0004, 0x0e00_0000, 0x0fff_fffe, 0x1000_ffff, 0x1000_0003];
        // jal ext+16; jal to the section's offset 128 MiB; jal ext-8; b ext; b ext+16
        let entries = [(0, JUMP26, EXT), (4, JUMP26, TEXT), (8, JUMP26, EXT), (0xc, PC16, EXT), (0x10, PC16, EXT)];
        let expect = [(0, JUMP26, 0x10), (4, JUMP26, 0x0800_0000), (8, JUMP26, -8), (0xc, PC16, 0), (0x10, PC16, 0x10)];
        both(&code, &entries, &expect);
    }

    #[test]
    fn words_and_hints() {
        let code = [0xffff_fffc, 0x0000_0038, 0x1234_5678, 0xffff_fff0, 0x8f82_fffc];
        let entries = [
            (0, ABS32, EXT),
            (4, GPREL32, TEXT),
            (8, JALR, EXT),
            (0xc, PC32, EXT),
            (0x10, GPREL16, EXT),
            (0x10, NONE, 0),
            (0x10, 0xff, 0),
        ];
        let expect = [
            (0, ABS32, -4),
            (4, GPREL32, 0x38),
            (8, JALR, 0),
            (0xc, PC32, -16),
            (0x10, GPREL16, -4),
            (0x10, NONE, 0),
            (0x10, 0xff, 0), // the linker refuses it by its number
        ];
        both(&code, &entries, &expect);
        for (arch, section) in [(&MIPS, [0, 0, 0, 1, 0, 0, 0, 2]), (&MIPSEL, [2, 0, 0, 0, 1, 0, 0, 0])] {
            let got = raw(arch, &words(arch, &[0, EXT << 8 | ABS64]), &section, false).unwrap();
            assert_eq!(got[0].addend, 0x1_0000_0002);
        }
        // GNU as keeps the same 16 bits in both: lui $2,%tprel_hi(x+0x1230); addiu $2,$2,%tprel_lo(x+0x1230)
        both(
            &[0x3c02_1230, 0x2442_1230],
            &[(0, TLS_TPREL_HI16, EXT), (4, TLS_TPREL_LO16, EXT)],
            &[(0, TLS_TPREL_HI16, 0x1230), (4, TLS_TPREL_LO16, 0x1230)],
        );
    }

    /// The entries of `readelf -r` as the file has them: 8: GPREL16/SUB/HI16 against symbol 0x01020304, plus 0x40.
    #[test]
    fn composed_entries() {
        let be = [
            [0, 0, 0, 0, 0, 0, 0, 8, 1, 2, 3, 4, 0, 5, 24, 7, 0, 0, 0, 0, 0, 0, 0, 0x40],
            [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 12, 0, 0, 0, 10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfc],
        ];
        let le = [
            [8, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 5, 24, 7, 0x40, 0, 0, 0, 0, 0, 0, 0],
            [0x10, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 10, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ];
        for (arch, entries) in [(&MIPS64, be), (&MIPS64EL, le)] {
            let got = raw(arch, entries.as_flattened(), &[], true).unwrap();
            assert_eq!(got[0], Reloc { offset: 8, r_type: 0x05_1807, symbol: 0x0102_0304, addend: 0x40 });
            assert_eq!(arch.howto(got[0].r_type).unwrap().expr, Expr::GotMinus);
            // From the branch, not from its delay slot.
            assert_eq!(got[1], Reloc { offset: 0x10, r_type: PC16, symbol: EXT, addend: 0 });
            let mut special = entries[0];
            special[12] = 1;
            assert!(raw(arch, &special, &[], true).unwrap_err().what.contains("r_ssym"));
        }
        let got16 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, BSS as u8, 0, 0, 0, GOT16 as u8, 0, 0, 0, 0, 0, 1, 0, 4];
        let got = raw(&MIPS64, &got16, &[], true).unwrap();
        assert_eq!((got[0].r_type, got[0].addend), (GOT_PAGE, 0x1_0004));
    }

    #[test]
    fn explicit_addends_of_o32() {
        for arch in [&MIPS, &MIPSEL] {
            let flat =
                [0, EXT << 8 | HI16, 0x1_8000, 4, BSS << 8 | GOT16, 8, 8, DISP << 8 | LO16, 0, 12, 4 << 8 | PC16, !3];
            let got = raw(arch, &words(arch, &flat), &[], true).unwrap();
            let got: Vec<(u64, u32, i64)> = got.iter().map(|r| (r.offset, r.r_type, r.addend)).collect();
            assert_eq!(got, [(0, HI16, 0x1_8000), (4, GOT16_PAGE, 8), (8, GP_DISP_LO16, 4), (12, PC16, 0)]);
        }
    }

    #[test]
    fn refuses_what_the_abis_do_not_have() {
        let what = |r: Result<Vec<Reloc>, NormalizeError>| r.unwrap_err().what;
        assert!(what(raw(&MIPS64, &[0; 16], &[], false)).contains("SHT_REL"));
        assert!(what(raw(&MIPS64, &[0; 23], &[], true)).contains("multiple"));
        assert!(what(raw(&MIPS, &[0; 12], &[0; 4], false)).contains("multiple"));
        let wrong = |is_64, endian| RawRelocs {
            entries: &[],
            rela: true,
            section: &[],
            is_64,
            endian,
            is_local: &|_| false,
            name: &|_| "",
        };
        assert!(what(normalize(&MIPS, &wrong(true, Endian::Big))).contains("class"));
        assert!(what(normalize(&MIPS, &wrong(false, Endian::Little))).contains("byte order"));
        assert_eq!(raw(&MIPS, &[], &[], false), Ok(Vec::new()));
    }

    /// Bytes from anywhere lead to an answer or an error, in a reasonable time.
    #[test]
    fn hostile_input() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u32
        };
        for round in 0..400 {
            let code: Vec<u32> = (0..64).map(|_| random()).collect();
            let entries: Vec<(u32, u32, u32)> = (0..40)
                .map(|_| {
                    let t = [HI16, LO16, LO16, GOT16, JUMP26, PC16, ABS64, 255][random() as usize % 8];
                    let at = if round % 4 == 0 { random() } else { random() % 260 };
                    (at, t, [TEXT, BSS, LOCAL, EXT, DISP, 0xff_ffff][random() as usize % 6])
                })
                .collect();
            for arch in [&MIPS, &MIPSEL] {
                if let Ok(got) = rel(arch, &code, &entries) {
                    assert_eq!(got.len(), entries.len());
                }
            }
        }
    }
}
