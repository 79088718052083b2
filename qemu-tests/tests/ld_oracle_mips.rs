//! GNU ld as the oracle of the patch linker for MIPS: the same objects at the same addresses, every byte compared.
//!
//! How ld is made to do so: `support/oracle.rs`. Two things can't agree in bytes. The GOTs lie elsewhere and are ordered
//! in another way: for fields that select a slot, what the slots hold is compared, and for those that lead to the GOT,
//! where they lead. Calls out of reach, and those of functions that want their own address in $t9, go through
//! veneers: there the destinations are compared. Opcodes and registers always have to be the same.
//!
//! `R_MIPS_JALR` is hidden from ld, since it makes other instructions of what these mark.

mod support;

use std::collections::BTreeSet;
use std::ops::Range;

use support::oracle::{Counts, Image, Lab, Reference, TestProgram, Tools, Where, print};
use support::{Rela, SHF_ALLOC, SHT_NOBITS, relocations, sections, set_type, symbols};
use tigerfix::link::{LinkError, SlotKind};
use tigerfix_arch_mips::{MIPS, MIPS64, MIPS64EL, MIPSEL, Mips};
use tigerfix_core::arch::{Arch as _, Relocator as _};
use tigerfix_core::error::Explain as _;

const GP_BIAS: u64 = 0x7ff0;

const fn tools(arch: &'static Mips, compiler: &'static str, ld: &'static str, emulation: &'static str) -> Tools {
    Tools {
        arch,
        compiler,
        ld,
        emulation,
        got_symbols: &[("_gp", GP_BIAS)],
        hints: &[JALR],
        branches: &["R_MIPS_26", "R_MIPS_PC16"],
    }
}

const BE: Tools = tools(&MIPS, "mips-linux-gnu-gcc", "mips-linux-gnu-ld", "elf32btsmip");
const LE: Tools = tools(&MIPSEL, "mipsel-linux-gnu-gcc", "mipsel-linux-gnu-ld", "elf32ltsmip");
const BE64: Tools = tools(&MIPS64, "mips64-linux-gnuabi64-gcc", "mips64-linux-gnuabi64-ld", "elf64btsmip");
const LE64: Tools = tools(&MIPS64EL, "mips64el-linux-gnuabi64-gcc", "mips64el-linux-gnuabi64-ld", "elf64ltsmip");

// psABI numbers; those of the code under test are not used here.
const JUMP26: u32 = 4;
const HI16: u32 = 5;
const LO16: u32 = 6;
const GOT16: u32 = 9;
const PC16: u32 = 10;
const CALL16: u32 = 11;
const GPREL32: u32 = 12;
const GOT_DISP: u32 = 19;
const GOT_PAGE: u32 = 20;
const GOT_HI16: u32 = 22;
const GOT_LO16: u32 = 23;
const CALL_HI16: u32 = 30;
const CALL_LO16: u32 = 31;
const JALR: u32 = 37;
const GOTTPREL: u32 = 46;
const GPREL64: u32 = GPREL32 | 18 << 8;
const GP_MINUS_HI16: u32 = 7 | 24 << 8 | HI16 << 16;
const GP_MINUS_LO16: u32 = 7 | 24 << 8 | LO16 << 16;

const LEVELS: [&str; 3] = ["-O0", "-O2", "-Os"];
/// How code is compiled. Its program is compiled in the same way.
const MODES_O32: [&[&str]; 7] = [
    &["-mabicalls", "-fPIC"],
    &["-mabicalls", "-fPIC", "-mxgot"],
    &["-mabicalls", "-fno-pic"],
    &["-mabicalls", "-fno-pic", "-mplt"],
    &["-mno-abicalls", "-fno-pic", "-G0"],
    &["-mno-abicalls", "-fno-pic", "-G0", "-mlong-calls"],
    &["-mno-abicalls", "-fno-pic", "-G0", "-fsection-anchors"],
];
const MODES_N64: [&[&str]; 5] = [
    &["-mabicalls", "-fPIC"],
    &["-mabicalls", "-fPIC", "-mxgot"],
    &["-mabicalls", "-fno-pic"],
    &["-mno-abicalls", "-fno-pic", "-G0", "-mno-sym32"],
    &["-mno-abicalls", "-fno-pic", "-G0", "-msym32"],
];

/// In the program's region.
const NEAR: Where = Where { bias: 0, image: 0x0100_0000 };
/// In another one.
const FAR: Where = Where { bias: 0, image: 0x3000_0000 };

fn program(lab: &Lab, mode: &[&str]) -> TestProgram {
    lab.program(false, &[&["-static", "-no-pie"], mode].concat())
}

fn sext16(word: u32) -> u64 {
    i64::from(word as u16 as i16) as u64
}

/// Where a branch to `addr` ends: veneers are followed, by executing them.
fn destination(image: &Image, addr: u64) -> u64 {
    let hit = |v: &&tigerfix::link::Veneer| image.at.image + v.offset == addr;
    if !image.report.veneers.iter().any(|v| hit(&v)) {
        return addr;
    }
    let (mut t9, mut at) = (0u64, addr);
    loop {
        let insn = image.format.number(image.read(at, 4)) as u32;
        t9 = match insn >> 16 {
            0x3c19 => sext16(insn) << 16,              // lui $t9
            0x2739 => t9.wrapping_add(sext16(insn)),   // addiu $t9, $t9
            0x6739 => t9.wrapping_add(sext16(insn)),   // daddiu $t9, $t9
            0x0019 if insn == 0x0019_cc38 => t9 << 16, // dsll $t9, $t9, 16
            0x0320 if insn == 0x0320_0008 => break,    // jr $t9
            _ => panic!("{insn:#x} in a veneer"),
        };
        at += 4;
    }
    if image.format.is_64 { t9 } else { t9 & 0xffff_ffff }
}

/// One object's section in both outputs.
struct Pair<'a> {
    at: u64,
    ours: &'a [u8],
    ld: &'a [u8],
    image: &'a Image,
    reference: &'a Reference<'a>,
    /// Where tfix's GOT pointer points, once something told.
    gp: Option<u64>,
}

impl Pair<'_> {
    /// The instruction word there, ours and ld's; all but the lower `bits` has to be the same.
    fn words(&self, at: u64, bits: u32) -> Result<(u32, u32), String> {
        let word = |b: &[u8]| self.image.format.number(&b[at as usize..at as usize + 4]) as u32;
        let (ours, ld) = (word(self.ours), word(self.ld));
        if ours >> bits != ld >> bits {
            return Err(format!("the instruction is {ours:#x}, ld's is {ld:#x}"));
        }
        Ok((ours, ld))
    }

    fn wrap(&self, v: u64) -> u64 {
        if self.image.format.is_64 { v } else { v & 0xffff_ffff }
    }

    fn same(&self, what: &str, ours: u64, ld: u64) -> Result<(), String> {
        let (ours, ld) = (self.wrap(ours), self.wrap(ld));
        if ours == ld { Ok(()) } else { Err(format!("{what} is {ours:#x}, ld says {ld:#x}")) }
    }

    fn our_gp(&mut self, told: u64) -> Result<u64, String> {
        let known = *self.gp.get_or_insert(self.wrap(told));
        if self.wrap(told) == known { Ok(known) } else { Err(format!("the GOT pointer is {told:#x} and {known:#x}")) }
    }

    fn gp(&self) -> Result<(u64, u64), String> {
        Ok((self.gp.ok_or("where is the GOT?")?, self.reference.symbol("_gp")))
    }

    /// The slots at these distances from the GOT pointers hold the same.
    fn slots(&self, ours: u64, ld: u64) -> Result<(), String> {
        let (our_gp, ld_gp) = self.gp()?;
        let kinds = [SlotKind::Address, SlotKind::Page, SlotKind::TpOffset];
        let held = self.image.slot(self.wrap(our_gp.wrapping_add(ours)), &kinds)?;
        self.same("the GOT slot", held, self.reference.word(self.wrap(ld_gp.wrapping_add(ld))))
    }

    /// The number that the halves at `hi` and `lo` make, ours and ld's.
    fn halves(&self, hi: u64, lo: u64) -> Result<(u64, u64), String> {
        let ((h1, h2), (l1, l2)) = (self.words(hi, 16)?, self.words(lo, 16)?);
        let whole = |h: u32, l: u32| (sext16(h) << 16).wrapping_add(sext16(l));
        Ok((whole(h1, l1), whole(h2, l2)))
    }

    /// Compares one relocation by what it means. Gives the bytes that are not to be compared as bytes.
    fn relocation(&mut self, all: &[Rela], i: usize, name: &str) -> Result<Range<usize>, String> {
        let r = all[i];
        let o = r.offset as usize;
        let p = self.at + r.offset;
        // The other half: the lower one that comes next, the upper one that came last.
        let lower = |kind| all[i..].iter().chain(&all[..i]).find(|l| l.kind == kind && l.symbol == r.symbol);
        let upper = |kind| all[..i].iter().rev().chain(&all[i..]).find(|h| h.kind == kind && h.symbol == r.symbol);
        let pair = |kind| match kind {
            HI16 => Some((r, *lower(LO16)?)),
            LO16 => Some((*upper(HI16)?, r)),
            GOT_HI16 => Some((r, *lower(GOT_LO16)?)),
            GOT_LO16 => Some((*upper(GOT_HI16)?, r)),
            CALL_HI16 => Some((r, *lower(CALL_LO16)?)),
            CALL_LO16 => Some((*upper(CALL_HI16)?, r)),
            GP_MINUS_HI16 => Some((r, *lower(GP_MINUS_LO16)?)),
            GP_MINUS_LO16 => Some((*upper(GP_MINUS_HI16)?, r)),
            _ => None,
        };
        let halves = || {
            let (hi, lo) = pair(r.kind).ok_or("its other half is missing")?;
            self.halves(hi.offset, lo.offset).map(|v| (v, hi))
        };
        match (r.kind, name) {
            (GOT16 | CALL16 | GOT_DISP | GOT_PAGE | GOTTPREL, _) => {
                let (ours, ld) = self.words(r.offset, 16)?;
                self.slots(sext16(ours), sext16(ld))?;
                Ok(o..o + 4)
            }
            (GOT_HI16 | GOT_LO16 | CALL_HI16 | CALL_LO16, _) => {
                let ((ours, ld), _) = halves()?;
                self.slots(ours, ld)?;
                Ok(o..o + 4)
            }
            (HI16 | LO16, "_gp_disp") => {
                let ((ours, ld), hi) = halves()?;
                let from = self.at + hi.offset;
                self.our_gp(from.wrapping_add(ours))?;
                self.same("ld's GOT pointer", self.reference.symbol("_gp"), from.wrapping_add(ld))?;
                Ok(o..o + 4)
            }
            (HI16 | LO16, "__gnu_local_gp") => {
                let ((ours, ld), _) = halves()?;
                self.our_gp(ours)?;
                self.same("ld's GOT pointer", self.reference.symbol("_gp"), ld)?;
                Ok(o..o + 4)
            }
            (GP_MINUS_HI16 | GP_MINUS_LO16, _) => {
                // %hi(%neg(%gp_rel(f))): the GOT pointer's distance from f.
                let ((ours, ld), _) = halves()?;
                let ld_gp = self.reference.symbol("_gp");
                let function = ld_gp.wrapping_sub(ld);
                self.our_gp(function.wrapping_add(ours))?;
                Ok(o..o + 4)
            }
            (GPREL32 | GPREL64, _) => {
                let n = if r.kind == GPREL64 { 8 } else { 4 };
                let read = |b: &[u8]| {
                    let v = self.image.format.number(&b[o..o + n]);
                    if n == 4 { i64::from(v as u32 as i32) as u64 } else { v }
                };
                let (our_gp, ld_gp) = self.gp()?;
                self.same("the place", our_gp.wrapping_add(read(self.ours)), ld_gp.wrapping_add(read(self.ld)))?;
                Ok(o..o + n)
            }
            (JUMP26, _) => {
                let (ours, ld) = self.words(r.offset, 26)?;
                let region = (p + 4) & !0x0fff_ffff;
                let to = |w: u32| region | u64::from(w & 0x03ff_ffff) << 2;
                if destination(self.image, to(ours)) == to(ours) {
                    return Ok(o..o);
                }
                // ld takes what is out of reach, if nobody checks.
                self.same("the destination", destination(self.image, to(ours)) & 0x0fff_ffff, to(ld) & 0x0fff_ffff)?;
                Ok(o..o + 4)
            }
            (PC16, _) => {
                let (ours, ld) = self.words(r.offset, 16)?;
                let to = |w: u32| (p + 4).wrapping_add(sext16(w) << 2);
                if destination(self.image, to(ours)) == to(ours) {
                    return Ok(o..o);
                }
                self.same("the destination", destination(self.image, to(ours)) & 0x3_ffff, to(ld) & 0x3_ffff)?;
                Ok(o..o + 4)
            }
            _ => Ok(o..o),
        }
    }
}

/// Compares all that both linkers placed.
fn compare(
    arch: &Mips,
    objects: &[Vec<u8>],
    image: &Image,
    reference: &Reference<'_>,
    counts: &mut Counts,
) -> Result<(), String> {
    let start = image.report.got.iter().map(|s| s.offset).min();
    let mut gp = start.map(|s| image.at.image + s + GP_BIAS);
    let mut compared = BTreeSet::new();
    for pl in image.report.placements.iter().filter(|p| p.symbol.is_none() && p.size != 0) {
        let object = &objects[pl.object_index as usize];
        let section = &sections(object)[pl.index as usize];
        assert!(section.flags & SHF_ALLOC != 0);
        compared.insert((pl.object_index, pl.index));
        let at = image.at.image + pl.offset;
        let ours = image.read(at, pl.size as usize);
        if section.kind == SHT_NOBITS {
            assert!(ours.iter().all(|b| *b == 0), "{} is not zero", pl.section);
            continue;
        }
        let ld = reference.read(at, pl.size as usize);
        let mut pair = Pair { at, ours, ld, image, reference, gp };
        let mut skip = vec![false; ours.len()];
        let mut owner: Vec<&str> = vec![""; ours.len()];
        let here = |offset: usize| format!("{}: {}+{offset:#x} (at {:#x})", pl.object, pl.section, at + offset as u64);
        let names = symbols(object);
        let all = relocations(object, pl.index);
        for (i, r) in all.iter().enumerate() {
            let name = arch.reloc_name(r.kind).ok_or_else(|| format!("type {}", r.kind))?;
            let o = r.offset as usize;
            let symbol = names[r.symbol as usize].name.as_str();
            let masked = pair.relocation(&all, i, symbol).map_err(|e| format!("{} {name} `{symbol}`: {e}", here(o)))?;
            skip[masked].fill(true);
            owner[o..(o + 4).min(ours.len())].fill(name);
            if r.kind != 0 && r.kind != JALR {
                *counts.entry(name).or_default() += 1;
            }
        }
        gp = pair.gp;
        if let Some(i) = (0..ours.len()).find(|i| !skip[*i] && ours[*i] != ld[*i]) {
            let from = i / 4 * 4;
            let to = (from + 8).min(ours.len());
            return Err(format!("{} {}: {:02x?}, ld has {:02x?}", here(i), owner[i], &ours[from..to], &ld[from..to]));
        }
    }
    Ok(())
}

/// The program's global pointer, where it is for small data.
fn small_data(program: &TestProgram, mode: &[&str]) -> Vec<(&'static str, u64)> {
    let gp = symbols(&program.file).into_iter().find(|s| s.name == "_gp").map(|s| s.value);
    gp.filter(|_| mode.contains(&"-mno-abicalls")).map(|v| ("_gp", v)).into_iter().collect()
}

/// Links both ways and compares.
fn check(
    lab: &Lab,
    program: &TestProgram,
    objects: &[Vec<u8>],
    at: Where,
    mode: &[&str],
    what: &str,
    counts: &mut Counts,
) {
    let arch = mips(lab);
    let image = lab.link_at(program, objects, at).unwrap_or_else(|e| panic!("{what} {mode:?}: {e}"));
    let file = lab.gnu_ld(program, objects, &image, &small_data(program, mode));
    if let Err(e) = compare(arch, objects, &image, &Reference::new(&file), counts) {
        panic!("{what} {mode:?}: {e}");
    }
}

fn mips(lab: &Lab) -> &'static Mips {
    [&MIPS, &MIPSEL, &MIPS64, &MIPS64EL].into_iter().find(|m| m.name() == lab.tools.arch.name()).expect("one of them")
}

fn required(counts: &Counts, names: &[&str]) {
    for name in names {
        assert!(counts.contains_key(name), "{name} was never compared");
    }
}

const TLS_LE: &str = "-DTLS_MODEL=\"local-exec\"";
const TLS_IE: &str = "-DTLS_MODEL=\"initial-exec\"";

fn compiled(tools: Tools, modes: &[&[&str]], places: &[Where]) -> Counts {
    let mut counts = Counts::new();
    for mode in modes {
        let lab = Lab::new(tools, mode);
        let program = program(&lab, mode);
        for level in LEVELS {
            for tls in [TLS_LE, TLS_IE] {
                let rich = lab.object("rich.c", &[&[level, tls, "-fcommon"], *mode].concat());
                for at in places {
                    let what = format!("{} rich.c {level} {tls} at {:#x}", tools.arch.name(), at.image);
                    check(&lab, &program, std::slice::from_ref(&rich), *at, mode, &what, &mut counts);
                }
            }
            let more = ["-ffunction-sections", "-fdata-sections", "-fcommon", TLS_LE];
            let objects = [
                lab.object("rich.c", &[&[level], &more[..], *mode].concat()),
                lab.object("weak.c", &[&[level, "-Dtarget_new=weak_user"], *mode].concat()),
            ];
            let what = format!("{} rich.c and weak.c {level}", tools.arch.name());
            check(&lab, &program, &objects, NEAR, mode, &what, &mut counts);
        }
    }
    print(tools.arch.name(), &counts);
    counts
}

const O32: [&str; 13] = [
    "R_MIPS_32",
    "R_MIPS_26",
    "R_MIPS_HI16",
    "R_MIPS_LO16",
    "R_MIPS_GOT16",
    "R_MIPS_CALL16",
    "R_MIPS_GPREL32",
    "R_MIPS_GOT_HI16",
    "R_MIPS_GOT_LO16",
    "R_MIPS_CALL_HI16",
    "R_MIPS_CALL_LO16",
    "R_MIPS_TLS_GOTTPREL",
    "R_MIPS_TLS_TPREL_HI16",
];

#[test]
fn o32_big_endian() {
    required(&compiled(BE, &MODES_O32, &[NEAR, FAR]), &O32);
}

#[test]
fn o32_little_endian() {
    required(&compiled(LE, &MODES_O32, &[NEAR, FAR]), &O32);
}

const N64: [&str; 10] = [
    "R_MIPS_64",
    "R_MIPS_GOT_DISP",
    "R_MIPS_GOT_PAGE",
    "R_MIPS_GOT_OFST",
    "R_MIPS_CALL16",
    "R_MIPS_HIGHEST",
    "R_MIPS_HIGHER",
    "R_MIPS_HI16",
    "R_MIPS_LO16",
    "R_MIPS_TLS_GOTTPREL",
];

#[test]
fn n64_big_endian() {
    required(&compiled(BE64, &MODES_N64, &[NEAR, FAR]), &N64);
}

#[test]
fn n64_little_endian() {
    required(&compiled(LE64, &MODES_N64, &[NEAR, FAR]), &N64);
}

fn merge(into: &mut Counts, from: Counts) {
    from.into_iter().for_each(|(name, n)| *into.entry(name).or_default() += n);
}

/// Without and with a GOT.
fn hand_written_modes(tools: Tools) -> [(&'static [&'static str], &'static [&'static str]); 2] {
    // The pairs in the file are 32-bit addresses in either ABI.
    let sym32: &[&str] = if tools.arch.address_bits() == 64 { &["-msym32"] } else { &[] };
    [
        if sym32.is_empty() {
            (&["-mno-abicalls", "-fno-pic", "-G0"], &[])
        } else {
            (&["-mno-abicalls", "-fno-pic", "-G0", "-msym32"], &["-msym32"])
        },
        (&["-mabicalls", "-fno-pic"], &["-DGOT"]),
    ]
}

fn hand_written(tools: Tools) -> Counts {
    let mut counts = Counts::new();
    for (mode, more) in hand_written_modes(tools) {
        let lab = Lab::new(tools, mode);
        let program = program(&lab, mode);
        let object = lab.object("relocations_mips.S", &[mode, more].concat());
        for at in [NEAR, FAR] {
            let what = format!("{} relocations_mips.S", tools.arch.name());
            check(&lab, &program, std::slice::from_ref(&object), at, mode, &what, &mut counts);
        }
    }
    counts
}

#[test]
fn hand_written_relocations() {
    let mut all = Counts::new();
    for tools in [BE, LE, BE64, LE64] {
        let counts = hand_written(tools);
        print(&format!("{} relocations_mips.S", tools.arch.name()), &counts);
        // Whatever the back end has a row for, but markers and what only the linker itself makes, occurs.
        let rows = (1..256)
            .filter(|n| *n != JALR)
            .filter_map(|n| tools.arch.howto(n))
            .filter(|h| !h.name.contains(['(', ' ']) && !matches!(h.name, "R_MIPS_GOT16_PAGE"));
        let missing: Vec<_> = rows.map(|h| h.name).filter(|n| !counts.contains_key(n)).collect();
        assert!(missing.is_empty(), "{} never compared: {missing:?}", tools.arch.name());
        merge(&mut all, counts);
    }
}

/// Programs whose functions want their own address, and patches that don't care; and the other way round.
#[test]
fn objects_and_programs_of_different_kinds() {
    let (pic, plain): (&[&str], &[&str]) = (&["-mabicalls", "-fPIC"], &["-mabicalls", "-fno-pic", "-mplt"]);
    let mut counts = Counts::new();
    for tools in [BE, LE, BE64, LE64] {
        for (programs, patches) in [(pic, plain), (plain, pic)] {
            let lab = Lab::new(tools, programs);
            let program = program(&lab, programs);
            for level in LEVELS {
                let rich = lab.object("rich.c", &[&[level, TLS_LE, "-fcommon"], patches].concat());
                let what = format!("{} rich.c {level} {patches:?}", tools.arch.name());
                check(&lab, &program, std::slice::from_ref(&rich), NEAR, programs, &what, &mut counts);
                let image = lab.link_at(&program, &[rich], NEAR).expect("links");
                let jumps = image.report.relocations.contains_key("R_MIPS_26");
                let expected = jumps && programs == pic;
                assert_eq!(!image.report.veneers.is_empty(), expected, "{what}: {:?}", image.report.veneers);
            }
        }
    }
    print("mixed", &counts);
}

/// Addresses as firmware has them: the unmapped segments from 0x80000000 on.
#[test]
fn firmware_addresses() {
    let mut counts = Counts::new();
    for tools in [BE, LE] {
        for mode in &MODES_O32[4..6] {
            let lab = Lab::new(tools, mode);
            let flags = ["-static", "-no-pie", "-Wl,-Ttext-segment=0x80100000"];
            let program = lab.program(false, &[&flags[..], mode].concat());
            for image in [0x8040_0000u64, 0xa040_0000, 0x8fff_0000] {
                for level in LEVELS {
                    let rich = lab.object("rich.c", &[&[level, TLS_LE, "-fcommon"], *mode].concat());
                    let what = format!("{} rich.c {level} at {image:#x}", tools.arch.name());
                    // An image across the end of a region.
                    let big = lab.assemble(".text\n.globl pad\npad: .space 0x8000\n", mode);
                    let at = Where { bias: 0, image };
                    check(&lab, &program, &[rich, big], at, mode, &what, &mut counts);
                }
            }
        }
    }
    print("firmware addresses", &counts);
}

/// The comparison itself must notice a single wrong bit, in every field and between the fields.
#[test]
fn the_comparison_sees_every_wrong_bit() {
    for tools in [BE, LE64] {
        for (mode, more) in hand_written_modes(tools) {
            let lab = Lab::new(tools, mode);
            let program = program(&lab, mode);
            let objects = [lab.object("relocations_mips.S", &[mode, more].concat())];
            let mut image = lab.link_at(&program, &objects, NEAR).expect("links");
            let file = lab.gnu_ld(&program, &objects, &image, &small_data(&program, mode));
            let reference = Reference::new(&file);
            let same = |image: &Image| compare(mips(&lab), &objects, image, &reference, &mut Counts::new());
            assert_eq!(same(&image), Ok(()));
            let mut unseen = Vec::new();
            for p in image.report.placements.clone().iter().filter(|p| p.symbol.is_none() && p.section != ".bss") {
                for i in p.offset..p.offset + p.size {
                    for bit in [0, 7] {
                        image.bytes[i as usize] ^= 1 << bit;
                        let run = std::panic::AssertUnwindSafe(|| same(&image).is_err());
                        if !std::panic::catch_unwind(run).unwrap_or(true) {
                            unseen.push((p.section.clone(), i - p.offset));
                        }
                        image.bytes[i as usize] ^= 1 << bit;
                    }
                }
            }
            assert!(unseen.is_empty(), "bits that nobody compares: {unseen:x?}");
        }
    }
}

/// An object with a field in .data that has a relocation of type `kind` against `number`.
fn one_field(lab: &Lab, mode: &[&str], kind: u32) -> Vec<u8> {
    let text = ".globl target_new\n.type target_new, @function\n.ent target_new\ntarget_new: jr $31\nnop\n.end target_new\n\
         .size target_new, .-target_new\n.data\n.align 3\nfield: .word 0, 0\n.size field, 8\n.type field, @object\n\
         .reloc field, R_MIPS_16, number\n";
    let mut object = lab.assemble(text, mode);
    let data = sections(&object).iter().position(|s| s.name == ".data").expect("a section") as u32;
    let r = relocations(&object, data)[0];
    set_type(&mut object, &r, kind);
    object
}

/// An object that defines `number`.
fn number(lab: &Lab, mode: &[&str], value: i128) -> Vec<u8> {
    lab.assemble(&format!(".globl number\n.set number, {value:#x}\n", value = value as u64 & mask(lab)), mode)
}

fn mask(lab: &Lab) -> u64 {
    if lab.tools.arch.address_bits() == 64 { u64::MAX } else { 0xffff_ffff }
}

fn plain_mode(lab_is_64: bool) -> &'static [&'static str] {
    if lab_is_64 { &["-mno-abicalls", "-fno-pic", "-G0", "-msym32"] } else { &["-mno-abicalls", "-fno-pic", "-G0"] }
}

/// Links the field with `number` so that the value is `value`, given that it is `origin` for a number of 0.
fn with_value(
    lab: &Lab,
    program: &TestProgram,
    field: &[u8],
    value: i128,
    origin: i128,
    at: Where,
) -> Result<Image, LinkError> {
    let mode = plain_mode(lab.tools.arch.address_bits() == 64);
    lab.link_at(program, &[field.to_vec(), number(lab, mode, value - origin)], at)
}

/// ld can't reveal a missing range check, so every bound is tried: the last value that fits and the first that doesn't.
#[test]
fn every_range_check_is_exact() {
    for tools in [BE, LE, BE64, LE64] {
        let is_64 = tools.arch.address_bits() == 64;
        let mode = plain_mode(is_64);
        let lab = Lab::new(tools, mode);
        let program = program(&lab, mode);
        let gp = symbols(&program.file).into_iter().find(|s| s.name == "_gp").expect("a global pointer").value;
        // type, least and greatest value, and what the value is for a number of 0
        let (s16, s32) = ((-0x8000, 0x7fff), (-0x8000_0000, 0x7fff_ffff));
        let mut rows: Vec<(u32, (i128, i128), i128)> = vec![(1, s16, 0), (7, s16, -i128::from(gp))];
        let probe = |kind| {
            let field = one_field(&lab, mode, kind);
            let image = lab.link_at(&program, &[field.clone(), number(&lab, mode, 0)], NEAR).expect("links");
            let data = image.report.placements.iter().find(|p| p.section == ".data").expect("placed").offset;
            (NEAR.image + data, image)
        };
        if is_64 {
            rows.push((2, (-0x8000_0000, 0xffff_ffff), 0));
            let (field, _) = probe(18);
            rows.push((248, s32, -i128::from(field)));
        }
        for (kind, (min, max), origin) in rows {
            let field = one_field(&lab, mode, kind);
            let name = tools.arch.reloc_name(kind).expect("known");
            for (value, fits) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
                match with_value(&lab, &program, &field, value, origin, NEAR) {
                    Ok(_) => assert!(fits, "{name} took {value:#x}"),
                    Err(LinkError::Overflow { name: n, value: v, min: lo, max: hi, symbol, place }) => {
                        assert!(!fits, "{name} refused {value:#x}");
                        assert_eq!((n, v, lo, hi, symbol.as_str()), (name, value, min, max, "number"));
                        assert_eq!((place.section.as_str(), place.within.as_deref()), (".data", Some("field")));
                    }
                    Err(e) => panic!("{name} {value:#x}: {e}"),
                }
            }
        }
    }
}

/// Jumps reach the region of their delay slot, branches 128 KiB; beyond there are veneers, and none to odd places.
#[test]
fn branches_end_where_they_end() {
    for tools in [BE, LE, BE64, LE64] {
        let mode = plain_mode(tools.arch.address_bits() == 64);
        let lab = Lab::new(tools, mode);
        let program = program(&lab, mode);
        let (jump, branch) = (one_field(&lab, mode, JUMP26), one_field(&lab, mode, PC16));
        let veneers = |field: &[u8], value: i128, at| {
            let image = with_value(&lab, &program, field, value, 0, at).unwrap_or_else(|e| panic!("{value:#x}: {e}"));
            image.report.veneers.len()
        };
        for (value, at, expected) in [
            (0x0fff_fffc, NEAR, 0),
            (0x1000_0000, NEAR, 1),
            (0, NEAR, 0),
            (0x2fff_fffc, FAR, 1),
            (0x3000_0000, FAR, 0),
            (0x3fff_fffc, FAR, 0),
            (0x4000_0000, FAR, 1),
        ] {
            assert_eq!(veneers(&jump, value, at), expected, "{value:#x}");
        }
        let image =
            lab.link_at(&program, &[branch.clone(), number(&lab, mode, NEAR.image.into())], NEAR).expect("links");
        let data = image.report.placements.iter().find(|p| p.section == ".data").expect("placed").offset;
        // The field holds no addend, so that the value counts from the branch.
        let from = i128::from(NEAR.image + data);
        for (distance, expected) in [(-0x2_0000, 0), (-0x2_0004, 1), (0x1_fffc, 0), (0x2_0000, 1)] {
            assert_eq!(veneers(&branch, from + distance, NEAR), expected, "{distance:#x}");
        }
        for field in [&jump, &branch] {
            for odd in [1, 2, 3] {
                match with_value(&lab, &program, field, i128::from(NEAR.image) + odd, 0, NEAR) {
                    Err(LinkError::Misaligned { align: 4, symbol, .. }) => assert_eq!(symbol, "number"),
                    other => panic!("{:?}", other.map(|i| i.report)),
                }
            }
        }
        // A jump in the last word of a region is the next region's.
        let last = |to: u64| {
            let text = format!(
                ".set noreorder\n.globl target_new\n.type target_new, @function\n.ent target_new\ntarget_new: jr $31\nnop\n\
                 .end target_new\n.size target_new, .-target_new\n.space 0xfff4\njal number\nnop\n\
                 .globl number\n.set number, {to:#x}\n"
            );
            let image = lab.link_at(&program, &[lab.assemble(&text, mode)], Where { bias: 0, image: 0x0fff_0000 });
            let image = image.expect("links");
            let text = image.report.placements.iter().find(|p| p.section == ".text").expect("placed").offset;
            assert_eq!(0x0fff_0000 + text + 0xfffc, 0x0fff_fffc);
            image.report.veneers.len()
        };
        assert_eq!((last(0x1000_0000), last(0x0fff_fff0), last(0x1fff_fffc), last(0x2000_0000)), (0, 1, 0, 1));
        // A veneer that lies in another region than the jump is of no use.
        let text = ".globl target_new\n.type target_new, @function\n.ent target_new\ntarget_new: jal number\nnop\n.end target_new\n\
             .size target_new, .-target_new\n.space 0x10000\n.globl number\n.set number, 0x40000000\n";
        let across = lab.link_at(&program, &[lab.assemble(text, mode)], Where { bias: 0, image: 0x0fff_0000 });
        let e = across.map(|i| i.report).expect_err("out of reach");
        assert!(matches!(&e, LinkError::Overflow { name: "R_MIPS_26", min: 0, max: 0x0fff_ffff, .. }), "{e}");
        assert!(e.to_string().contains("`number`") && e.to_string().contains("in `target_new`"), "{e}");
    }
}

/// The GOT that 16 bits reach has 64 KiB, less 16 bytes.
#[test]
fn got_offsets_end_where_they_end() {
    for tools in [BE, LE64] {
        let mode: &[&str] = &["-mabicalls", "-fno-pic"];
        let lab = Lab::new(tools, mode);
        let program = program(&lab, mode);
        let slots = (0x7fff + 0x7ff0) / u64::from(tools.arch.address_bits() / 8) + 1;
        for (kind, symbol) in [
            (GOT16, "counter"),
            (CALL16, "helper"),
            (GOT_DISP, "counter"),
            (GOT_PAGE, "counter"),
            (GOTTPREL, "tls_last"),
        ] {
            // One of each kind is enough for the wider slots.
            if tools.arch.address_bits() == 64 && !matches!(kind, CALL16 | GOT_PAGE) {
                continue;
            }
            let linked = |others: u64| {
                let mut text = String::from(
                    ".globl target_new\n.type target_new, @function\n.ent target_new\ntarget_new:\n.set noreorder\njr $31\nnop\n",
                );
                let mut numbers = String::new();
                for i in 0..others {
                    text += &format!(".reloc ., R_MIPS_GOT_LO16, s{i}\nlw $2, 0($2)\n");
                    numbers += &format!(".globl s{i}\n.set s{i}, {:#x}\n", 4 * i);
                }
                let numbers = lab.assemble(&numbers, mode);
                text += &format!(
                    ".reloc ., R_MIPS_16, {symbol}\nlw $2, 0($28)\n.end target_new\n.size target_new, .-target_new\n"
                );
                let mut object = lab.assemble(&text, mode);
                let index = sections(&object).iter().position(|s| s.name == ".text").expect("a section") as u32;
                let all = relocations(&object, index);
                let r = all.iter().find(|r| r.kind == 1).expect("the last one");
                set_type(&mut object, r, kind);
                lab.link_at(&program, &[object, numbers], NEAR)
            };
            linked(slots - 1).unwrap_or_else(|e| panic!("{kind}: {e}"));
            let e = linked(slots).map(|i| i.report).expect_err("too large a GOT");
            let LinkError::Overflow { name, min, max, value, .. } = &e else { panic!("{e}") };
            assert_eq!((*min, *max, *value), (-0x8000, 0x7fff, 0x8000), "{e}");
            assert!(tools.arch.reloc_name(kind).is_some_and(|n| name.starts_with(n)), "{e}");
        }
    }
}

/// Types without a row are refused under their psABI name, whatever they are against.
#[test]
fn unknown_types_are_refused_by_name() {
    for tools in [BE, LE, LE64] {
        let mode = plain_mode(tools.arch.address_bits() == 64);
        let lab = Lab::new(tools, mode);
        let program = program(&lab, mode);
        let field = one_field(&lab, mode, 1);
        let with = number(&lab, mode, 0);
        let data = sections(&field).iter().position(|s| s.name == ".data").expect("a section") as u32;
        let r = relocations(&field, data)[0];
        let mut names = BTreeSet::new();
        for kind in (0..256).filter(|n| tools.arch.howto(*n).is_none()) {
            let mut object = field.clone();
            set_type(&mut object, &r, kind);
            let error =
                lab.link_at(&program, &[object, with.clone()], NEAR).map(|i| i.report).expect_err("no such row");
            let LinkError::UnsupportedRelocation { name, symbol, .. } = &error else { panic!("{kind}: {error:?}") };
            assert_eq!((symbol.as_str(), error.rule()), ("number", "unsupported-relocation"));
            match tools.arch.reloc_name(kind) {
                Some(n) => assert_eq!(n, name),
                None => assert_eq!(*name, format!("type {kind}")),
            }
            names.insert(name.clone());
        }
        for name in ["LITERAL", "TLS_GD", "TLS_LDM", "COPY", "JUMP_SLOT", "PC21_S2", "PC26_S2"] {
            assert!(names.contains(&format!("R_MIPS_{name}")), "{name}: {names:?}");
        }
        assert!(
            names.iter().any(|n| n.starts_with("R_MIPS16_")) && names.iter().any(|n| n.starts_with("R_MICROMIPS_"))
        );
    }
}

/// A call of a replaced function goes to the new one, its address is the old one's, in every kind of code.
#[test]
fn calls_and_addresses_of_replaced_functions() {
    let source = "int target(int); int (*volatile kept)(int);\n\
                  int target_new(int x) { kept = target; return x ? target(x - 1) + 1 : 0; }\n";
    for (tools, modes) in [(BE, &MODES_O32[..]), (LE64, &MODES_N64[..])] {
        for mode in modes {
            let lab = Lab::new(tools, mode);
            let program = program(&lab, mode);
            let file = lab.shop.write("replaced.c", source);
            let flags = [&["-c", "-O1"], *mode].concat();
            let object = lab.shop.compile(tools.compiler, "replaced.o", &[&file], &flags);
            let image = lab.link_at(&program, &[object], NEAR).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
            let old = symbols(&program.file).into_iter().find(|s| s.name == "target").expect("defined").value;
            let text = image.report.placements.iter().find(|p| p.section == ".text").expect("placed");
            let new = NEAR.image + text.offset;
            let counted = |name: &str| image.report.relocations.contains_key(name);
            let slots: Vec<u64> = image.report.got.iter().filter(|s| s.symbol == "target").map(|s| s.offset).collect();
            let held: BTreeSet<u64> =
                slots.iter().map(|s| image.format.number(image.read(NEAR.image + s, image.format.address()))).collect();
            if counted("R_MIPS_CALL16") || counted("R_MIPS_CALL_HI16") {
                assert_eq!(held, BTreeSet::from([old, new]), "{mode:?}");
            } else if counted("R_MIPS_26") {
                let jal = (3u32 << 26) | (new >> 2) as u32 & 0x03ff_ffff;
                let code = image.read(new, text.size as usize);
                let found = code.chunks_exact(4).any(|w| image.format.number(w) as u32 == jal);
                assert!(found, "{mode:?}: no call of the new function itself");
            }
        }
    }
}
