//! GNU ld as the oracle of the patch linker for AArch64: the same objects at the same addresses, every byte compared.
//!
//! How ld is made to do so: `support/oracle.rs`. What can't agree in bytes: slots of the GOT lie elsewhere, so that what they
//! hold is compared; ld makes offsets of thread-local variables of the slots that hold them, --no-relax or not, so that
//! its offset has to be what tfix's slot holds; and of a call of a weak function that nobody defines it makes a `nop`. Opcodes and
//! registers always have to be the same.
//!
//! Calls out of reach get veneers from both, which can't be compared: there tfix's are followed to where they lead.

mod support;

use std::fmt::Write as _;
use std::ops::Range;

use support::oracle::{Counts, Image, Lab, Reference, TestProgram, Tools, Where, print};
use support::{Rela, SHT_NOBITS, relocations, sections, symbols};
use tigerfix::link::{LinkError, SlotKind};
use tigerfix_arch_aarch64::Aarch64;
use tigerfix_core::arch::{Expr, Relocator as _};

const GCC: Tools = Tools {
    arch: &Aarch64,
    compiler: "aarch64-linux-gnu-gcc",
    ld: "aarch64-linux-gnu-ld",
    emulation: "aarch64elf",
    got_symbols: &[("_GLOBAL_OFFSET_TABLE_", 0)],
    hints: &[],
    // ld's GOT is too far for tiny code.
    branches: &["R_AARCH64_GOT_LD_PREL19", "R_AARCH64_TLSIE_LD_GOTTPREL_PREL19"],
};

// Numbers of AAELF64; those of the code under test are not used here.
const ADR_PREL_PG_HI21: u32 = 275;
const JUMP26: u32 = 282;
const CALL26: u32 = 283;
const GOT_LD_PREL19: u32 = 309;
const PLT32: u32 = 314;
const ADR_GOT_PAGE: u32 = 311;
const LD64_GOT_LO12_NC: u32 = 312;
const LD64_GOTPAGE_LO15: u32 = 313;
const TLSIE_ADR_GOTTPREL_PAGE21: u32 = 541;
const TLSIE_LD64_GOTTPREL_LO12_NC: u32 = 542;
const TLSIE_LD_GOTTPREL_PREL19: u32 = 543;

const NOP: u32 = 0xd503_201f;

/// Where the block of tls.c begins, which aligns a variable to 32 bytes: above the thread control block of 16.
const TLS_BLOCK: u64 = 32;

/// Within reach of calls.
const FIXED: Where = Where { bias: 0, image: 0x0100_0000 };
const PIE: Where = Where { bias: 0x5555_5555_0000, image: 0x5555_5600_0000 };
/// Within 1 MiB, as tiny code is.
const FIXED_TINY: Where = Where { bias: 0, image: 0x0048_0000 };
const PIE_TINY: Where = Where { bias: 0x5555_5555_0000, image: 0x5555_555d_0000 };
/// Out of reach of calls, and of `adrp`.
const FIXED_FAR: Where = Where { bias: 0, image: 0x7123_4560_0000 };

fn bits(word: u32, high: u32, low: u32) -> u64 {
    u64::from(word >> low & ((1 << (high - low + 1)) - 1))
}

fn signed(word: u32, high: u32, low: u32) -> u64 {
    let width = high - low + 1;
    ((bits(word, high, low) << (64 - width)) as i64 >> (64 - width)) as u64
}

fn page(addr: u64) -> u64 {
    addr & !0xfff
}

/// The page that the `adrp` at `p` computes.
fn adrp(word: u32, p: u64) -> u64 {
    let pages = signed(word, 23, 5) << 2 | bits(word, 30, 29);
    page(p).wrapping_add(pages << 12)
}

/// Where a branch to `addr` ends: veneers are followed.
fn destination(image: &Image, addr: u64) -> u64 {
    let hit = |v: &&tigerfix::link::Veneer| image.at.image + v.offset == addr;
    let Some(v) = image.report.veneers.iter().find(hit) else { return addr };
    let insn = |i: u64| image.format.number(image.read(addr + 4 * i, 4)) as u32;
    let fixed = [insn(0), insn(1) & 0x9f00_001f, insn(2) & 0xffc0_03ff, insn(3)];
    assert_eq!(fixed, [0xd503_245f, 0x9000_0010, 0xf940_0210, 0xd61f_0200], "bti c; adrp; ldr; br");
    let slot = adrp(insn(1), addr + 4) + bits(insn(2), 21, 10) * 8;
    let reported = v.slot.map(|s| image.at.image + s);
    assert_eq!(Some(slot), reported, "the veneer of `{}` takes another slot than reported", v.symbol);
    image.slot(slot, &[SlotKind::Address]).expect("a slot of an address")
}

/// One object's section in both outputs.
struct Pair<'a> {
    at: u64,
    ours: &'a [u8],
    ld: &'a [u8],
    image: &'a Image,
    reference: &'a Reference<'a>,
}

impl Pair<'_> {
    fn words(&self, at: u64) -> (u32, u32) {
        let word = |b: &[u8]| self.image.format.number(&b[at as usize..at as usize + 4]) as u32;
        (word(self.ours), word(self.ld))
    }

    /// The instruction words at `at`, which are the same outside of `field`.
    fn same_but(&self, at: u64, field: u32) -> Result<(u32, u32), String> {
        let (ours, ld) = self.words(at);
        let same = ours & !field == ld & !field;
        if same { Ok((ours, ld)) } else { Err(format!("the instruction is {ours:#x}, ld's is {ld:#x}")) }
    }

    /// Where our GOT begins.
    fn got(&self) -> u64 {
        self.image.at.image + self.image.report.got.iter().map(|s| s.offset).min().unwrap_or(0)
    }

    /// Compares one relocation by what it means. Gives the bytes that are not to be compared as bytes.
    fn relocation(&self, all: &[Rela], i: usize, symbol: &str) -> Result<Range<usize>, String> {
        const IMM21: u32 = 0x60ff_ffe0;
        const IMM19: u32 = 0x00ff_ffe0;
        const IMM12: u32 = 0x003f_fc00;
        const RT: u32 = 0x1f;
        let r = all[i];
        let o = r.offset as usize;
        let p = self.at + r.offset;
        // The other instruction of two that go together: the next, or the last one.
        let upper = |kind| all[..i].iter().rev().chain(&all[i..]).find(|h| h.kind == kind && h.symbol == r.symbol);
        let lower = |kind| all[i..].iter().chain(&all[..i]).find(|l| l.kind == kind && l.symbol == r.symbol);
        let two = |hi, lo| -> Result<(Rela, Rela), String> {
            let both = if r.kind == hi { lower(lo).map(|l| (r, *l)) } else { upper(hi).map(|h| (*h, r)) };
            both.ok_or_else(|| String::from("its other half is missing"))
        };
        let same = |what: &str, ours: u64, ld: u64| {
            if ours == ld { Ok(()) } else { Err(format!("{what} is {ours:#x}, ld says {ld:#x}")) }
        };
        match r.kind {
            JUMP26 | CALL26 => {
                let (ours, ld) = self.words(r.offset);
                let to = |word: u32| p.wrapping_add(signed(word, 25, 0) << 2);
                let end = destination(self.image, to(ours));
                if ld == NOP && self.reference.symbol(symbol) == 0 {
                    same("the destination", end, 0)?;
                    return Ok(o..o + 4);
                }
                if end == to(ours) {
                    return Ok(o..o);
                }
                same("the destination", end, to(ld))?;
                Ok(o..o + 4)
            }
            ADR_GOT_PAGE | LD64_GOT_LO12_NC => {
                let (hi, lo) = two(ADR_GOT_PAGE, LD64_GOT_LO12_NC)?;
                let (h, l) = (self.same_but(hi.offset, IMM21)?, self.same_but(lo.offset, IMM12)?);
                let slot = |h, l| adrp(h, self.at + hi.offset) + bits(l, 21, 10) * 8;
                let held = self.image.slot(slot(h.0, l.0), &[SlotKind::Address])?;
                same("the GOT slot", held, self.reference.word(slot(h.1, l.1)))?;
                Ok(o..o + 4)
            }
            LD64_GOTPAGE_LO15 => {
                let (ours, ld) = self.same_but(r.offset, IMM12)?;
                let held = self.image.slot(page(self.got()) + bits(ours, 21, 10) * 8, &[SlotKind::Address])?;
                let theirs = page(self.reference.symbol("_GLOBAL_OFFSET_TABLE_")) + bits(ld, 21, 10) * 8;
                same("the GOT slot", held, self.reference.word(theirs))?;
                Ok(o..o + 4)
            }
            ADR_PREL_PG_HI21 if symbol == "_GLOBAL_OFFSET_TABLE_" => {
                let (ours, ld) = self.same_but(r.offset, IMM21)?;
                same("our GOT's page", adrp(ours, p), page(self.got()))?;
                same("ld's GOT", adrp(ld, p), page(self.reference.symbol("_GLOBAL_OFFSET_TABLE_")))?;
                Ok(o..o + 4)
            }
            GOT_LD_PREL19 => {
                let (ours, _) = self.same_but(r.offset, IMM19)?;
                let held = self.image.slot(p.wrapping_add(signed(ours, 23, 5) << 2), &[SlotKind::Address])?;
                same("the GOT slot", held, self.reference.symbol(symbol))?;
                Ok(o..o + 4)
            }
            TLSIE_ADR_GOTTPREL_PAGE21 | TLSIE_LD64_GOTTPREL_LO12_NC => {
                // adrp, ldr -> movz, movk
                let (hi, lo) = two(TLSIE_ADR_GOTTPREL_PAGE21, TLSIE_LD64_GOTTPREL_LO12_NC)?;
                let (h, l) = (self.words(hi.offset), self.words(lo.offset));
                let made = (h.1 & 0xffe0_001f, l.1 & 0xffe0_001f);
                if made != (0xd2a0_0000 | h.0 & RT, 0xf280_0000 | l.0 & RT) {
                    return Err(format!("ld made {:#x} and {:#x} of it", h.1, l.1));
                }
                let slot = adrp(h.0, self.at + hi.offset) + bits(l.0, 21, 10) * 8;
                let held = self.image.slot(slot, &[SlotKind::TpOffset])?;
                same("the slot's offset from the thread pointer", held, bits(h.1, 20, 5) << 16 | bits(l.1, 20, 5))?;
                Ok(o..o + 4)
            }
            TLSIE_LD_GOTTPREL_PREL19 => {
                let (ours, _) = self.same_but(r.offset, IMM19)?;
                let held = self.image.slot(p.wrapping_add(signed(ours, 23, 5) << 2), &[SlotKind::TpOffset])?;
                let offset = TLS_BLOCK + self.reference.symbol(symbol);
                same("the slot's offset from the thread pointer", held, offset)?;
                Ok(o..o + 4)
            }
            _ => Ok(o..o),
        }
    }
}

/// Compares all that both linkers placed.
fn compare(objects: &[Vec<u8>], image: &Image, reference: &Reference<'_>, counts: &mut Counts) -> Result<(), String> {
    for pl in image.report.placements.iter().filter(|p| p.symbol.is_none() && p.size != 0) {
        let object = &objects[pl.object_index as usize];
        let section = &sections(object)[pl.index as usize];
        let at = image.at.image + pl.offset;
        let ours = image.read(at, pl.size as usize);
        if section.kind == SHT_NOBITS {
            assert!(ours.iter().all(|b| *b == 0), "{} is not zero", pl.section);
            continue;
        }
        let ld = reference.read(at, pl.size as usize);
        let pair = Pair { at, ours, ld, image, reference };
        let mut skip = vec![false; ours.len()];
        let mut owner: Vec<&str> = vec![""; ours.len()];
        let here = |offset: usize| format!("{}: {}+{offset:#x} (at {:#x})", pl.object, pl.section, at + offset as u64);
        let names = symbols(object);
        let all = relocations(object, pl.index);
        for (i, r) in all.iter().enumerate() {
            let name = Aarch64.reloc_name(r.kind).ok_or_else(|| format!("type {}", r.kind))?;
            let o = r.offset as usize;
            let symbol = names[r.symbol as usize].name.as_str();
            let masked = pair.relocation(&all, i, symbol).map_err(|e| format!("{} {name} `{symbol}`: {e}", here(o)))?;
            skip[masked].fill(true);
            owner[o..(o + 4).min(ours.len())].fill(name);
            *counts.entry(name).or_default() += 1;
        }
        if let Some(i) = (0..ours.len()).find(|i| !skip[*i] && ours[*i] != ld[*i]) {
            let from = i / 4 * 4;
            let to = (from + 8).min(ours.len());
            return Err(format!("{} {}: {:02x?}, ld has {:02x?}", here(i), owner[i], &ours[from..to], &ld[from..to]));
        }
    }
    Ok(())
}

/// Links both ways and compares.
fn check(lab: &Lab, program: &TestProgram, objects: &[Vec<u8>], at: Where, what: &str, counts: &mut Counts) {
    let image = lab.link_at(program, objects, at).unwrap_or_else(|e| panic!("{what}: {e}"));
    let file = lab.gnu_ld(program, objects, &image, &[]);
    if let Err(e) = compare(objects, &image, &Reference::new(&file), counts) {
        panic!("{what}: {e}");
    }
}

fn required(counts: &Counts, names: &[&str]) {
    for name in names {
        let name = format!("R_AARCH64_{name}");
        assert!(counts.contains_key(name.as_str()), "{name} was never compared");
    }
}

const LEVELS: [&str; 3] = ["-O0", "-O2", "-Os"];
const PROTECTION: [&str; 2] = ["-mbranch-protection=none", "-mbranch-protection=standard"];
const TLS_LE: &str = "-DTLS_MODEL=\"local-exec\"";
const TLS_IE: &str = "-DTLS_MODEL=\"initial-exec\"";
/// By descriptors.
const TLS_GD: &str = "-DTLS_MODEL=\"global-dynamic\"";

fn program(lab: &Lab, pie: bool, model: &str) -> TestProgram {
    let flags: &[&str] = if pie { &["-fPIE", "-static-pie"] } else { &["-fno-pie", "-no-pie", "-static"] };
    lab.program(pie, &[flags, &[model]].concat())
}

/// Compilers of the patches; the programs are always gcc's.
const BY_GCC: &[&str] = &["aarch64-linux-gnu-gcc"];
const BY_CLANG: &[&str] = &["clang", "--target=aarch64-linux-gnu"];

/// Code for one model: ways to make code position-independent, kinds of thread-local storage, where it lies.
struct Model {
    flag: &'static str,
    modes: &'static [&'static str],
    tls: &'static [&'static str],
    fixed: Where,
    pie: Option<Where>,
}

/// Every level, kind of thread-local storage and branch protection of one compiler's code for one model.
fn compiled(compiler: &[&str], model: &Model) -> Counts {
    let lab = Lab::new(GCC, &["-fPIC"]);
    let mut counts = Counts::new();
    let mut programs = vec![(program(&lab, false, model.flag), model.fixed)];
    programs.extend(model.pie.map(|at| (program(&lab, true, model.flag), at)));
    for (program, at) in &programs {
        let mut one = |source: &str, flags: &[&str]| {
            let flags = [&[model.flag], flags].concat();
            let object = lab.object_by(compiler, source, &flags);
            check(&lab, program, &[object], *at, &format!("{source} {} {flags:?}", compiler[0]), &mut counts);
        };
        for level in LEVELS {
            for mode in model.modes.iter().filter(|m| !program.pie || **m != "-fno-pic") {
                for protection in PROTECTION {
                    for tls in model.tls {
                        one("rich.c", &[level, mode, protection, tls, "-fcommon"]);
                    }
                }
                one("rich.c", &[level, mode, "-ffunction-sections", "-fdata-sections", "-fcommon", TLS_LE]);
                if !program.pie {
                    one("weak.c", &[level, mode]);
                }
            }
        }
    }
    print(&format!("{} {}", compiler[0], model.flag), &counts);
    counts
}

const SMALL: Model = Model {
    flag: "-mcmodel=small",
    modes: &["-fPIC", "-fpic", "-fPIE", "-fno-pic"],
    tls: &[TLS_LE, TLS_IE, TLS_GD],
    fixed: FIXED,
    pie: Some(PIE),
};
const TINY: Model = Model {
    flag: "-mcmodel=tiny",
    modes: &["-fPIC", "-fPIE", "-fno-pic"],
    tls: &[TLS_LE, TLS_IE, TLS_GD],
    fixed: FIXED_TINY,
    pie: Some(PIE_TINY),
};
/// GCC has no position-independent code of this model.
const LARGE: Model =
    Model { flag: "-mcmodel=large", modes: &["-fno-pic"], tls: &[TLS_LE, TLS_IE, TLS_GD], fixed: FIXED, pie: None };
/// clang has some (whose own parts are absolute all the same), but knows no other thread-local storage: "ELF TLS only supported
/// in small memory model or in local exec TLS model".
const LARGE_CLANG: Model = Model { modes: &["-fPIC", "-fPIE", "-fno-pic"], tls: &[TLS_LE], ..LARGE };

/// What both compilers make of small code.
const OF_SMALL: [&str; 18] = [
    "ABS64",
    "ADR_PREL_PG_HI21",
    "ADD_ABS_LO12_NC",
    "LDST8_ABS_LO12_NC",
    "LDST32_ABS_LO12_NC",
    "LDST64_ABS_LO12_NC",
    "JUMP26",
    "CALL26",
    "ADR_GOT_PAGE",
    "LD64_GOT_LO12_NC",
    "TLSIE_ADR_GOTTPREL_PAGE21",
    "TLSIE_LD64_GOTTPREL_LO12_NC",
    "TLSLE_ADD_TPREL_HI12",
    "TLSLE_ADD_TPREL_LO12_NC",
    "TLSDESC_ADR_PAGE21",
    "TLSDESC_LD64_LO12",
    "TLSDESC_ADD_LO12",
    "TLSDESC_CALL",
];

#[test]
fn small_code_by_gcc() {
    let counts = compiled(BY_GCC, &SMALL);
    required(&counts, &OF_SMALL);
    // clang's -fpic is -fPIC.
    required(&counts, &["LD64_GOTPAGE_LO15"]);
}

#[test]
fn small_code_by_clang() {
    required(&compiled(BY_CLANG, &SMALL), &OF_SMALL);
}

const OF_TINY: [&str; 3] = ["ADR_PREL_LO21", "GOT_LD_PREL19", "TLSIE_LD_GOTTPREL_PREL19"];

#[test]
fn tiny_code_by_gcc() {
    required(&compiled(BY_GCC, &TINY), &OF_TINY);
}

#[test]
fn tiny_code_by_clang() {
    let counts = compiled(BY_CLANG, &TINY);
    required(&counts, &OF_TINY);
    // GCC computes the address even of what it loads.
    required(&counts, &["LD_PREL_LO19"]);
}

#[test]
fn large_code() {
    required(&compiled(BY_GCC, &LARGE), &["ABS64", "CALL26"]);
    let moved = ["MOVW_UABS_G0_NC", "MOVW_UABS_G1_NC", "MOVW_UABS_G2_NC", "MOVW_UABS_G3", "ADR_GOT_PAGE", "PREL64"];
    required(&compiled(BY_CLANG, &LARGE_CLANG), &moved);
}

/// What compilers don't make, or seldom.
const HAND_WRITTEN: &str = "
	.text
	.globl target_new
	.type target_new, %function
target_new:
	movk x0, #:abs_g0_nc:counter + 0x1234
	movz x0, #:abs_g1:counter
	movk x0, #:abs_g0_nc:counter
	movz x0, #:abs_g2:counter
	movk x0, #:abs_g1_nc:counter
	movz x0, #:abs_g3:counter
	movk x0, #:abs_g2_nc:counter
	movz x1, #:abs_g1_s:counter
	movz x1, #:abs_g1_s:counter - 0x7fffffff
	movn x1, #:abs_g1_s:counter + 4
	movz x1, #:abs_g2_s:counter
	movz x1, #:abs_g2_s:counter - 0x123456789abc
	movz x2, #:prel_g1:counter
	movk x2, #:prel_g0_nc:counter
	movz x2, #:prel_g2:helper
	movk x2, #:prel_g1_nc:helper
	movz x2, #:prel_g3:data
	movk x2, #:prel_g2_nc:data
	ldr x3, literal
	ldr w3, literal + 4
	ldr q3, literal
	adr x4, literal + 1
	adrp x4, literal
	adrp x5, :pg_hi21_nc:counter
	add x5, x5, #:lo12:counter + 3
	ldrb w6, [x5, #:lo12:text + 3]
	ldrh w6, [x5, #:lo12:halves + 2]
	ldr w6, [x5, #:lo12:counter]
	ldr x6, [x5, #:lo12:names + 8]
	ldr q6, [x5, #:lo12:literal]
	str q6, [x5, #:lo12:literal + 16]
	tbz x0, #40, elsewhere
	tbnz w0, #3, elsewhere + 8
	cbz x0, elsewhere
	b.ne elsewhere + 4
	adr x7, elsewhere
	bl helper
	b helper
	mrs x8, tpidr_el0
	movz x9, #:tprel_g2:tls_block
	movk x9, #:tprel_g1_nc:tls_block
	movk x9, #:tprel_g0_nc:tls_block
	movz x9, #:tprel_g1:tls_block
	movz x9, #:tprel_g0:tls_block
	add x9, x8, #:tprel_lo12:tls_first
	add x9, x8, #:tprel_hi12:tls_block, lsl #12
	add x9, x9, #:tprel_lo12_nc:tls_block
	ldrb w10, [x8, #:tprel_lo12:tls_block]
	ldrb w10, [x9, #:tprel_lo12_nc:tls_block]
	ldrh w10, [x8, #:tprel_lo12:tls_last]
	ldrh w10, [x9, #:tprel_lo12_nc:tls_last]
	ldr w10, [x8, #:tprel_lo12:tls_first]
	ldr w10, [x9, #:tprel_lo12_nc:tls_first]
	ldr x10, [x8, #:tprel_lo12:tls_zero]
	ldr x10, [x9, #:tprel_lo12_nc:tls_zero]
	ret
	.size target_new, .-target_new
	.section .text.other, \"ax\", %progbits
	nop
elsewhere:
	ret
	ret
	ret
	.section .rodata.literal, \"a\", %progbits
	.balign 16
literal:
	.quad 1, 2, 3, 4
	.data
	.balign 8
data:
	.xword counter + 5
	.xword helper - .
	.word counter
	.word counter - 4 - .
	.hword small
	.hword data - .
halves:
	.hword 1, 2
	.globl small
	.set small, 0x1234
";

#[test]
fn hand_written_relocations() {
    let lab = Lab::new(GCC, &["-fPIC"]);
    let program = program(&lab, false, "-mcmodel=small");
    let object = lab.assemble(HAND_WRITTEN, &[]);
    let mut counts = Counts::new();
    check(&lab, &program, &[object], FIXED, "hand-written", &mut counts);
    print("hand-written", &counts);
    required(
        &counts,
        &[
            "MOVW_UABS_G0_NC",
            "MOVW_UABS_G1",
            "MOVW_UABS_G1_NC",
            "MOVW_UABS_G2",
            "MOVW_UABS_G2_NC",
            "MOVW_UABS_G3",
            "MOVW_SABS_G1",
            "MOVW_SABS_G2",
            "MOVW_PREL_G0_NC",
            "MOVW_PREL_G1",
            "MOVW_PREL_G1_NC",
            "MOVW_PREL_G2",
            "MOVW_PREL_G2_NC",
            "MOVW_PREL_G3",
            "LD_PREL_LO19",
            "ADR_PREL_LO21",
            "ADR_PREL_PG_HI21_NC",
            "LDST16_ABS_LO12_NC",
            "LDST128_ABS_LO12_NC",
            "TSTBR14",
            "CONDBR19",
            "ABS32",
            "ABS16",
            "PREL64",
            "PREL32",
            "TLSLE_MOVW_TPREL_G2",
            "TLSLE_MOVW_TPREL_G1",
            "TLSLE_MOVW_TPREL_G0",
            "TLSLE_MOVW_TPREL_G0_NC",
            "TLSLE_LDST16_TPREL_LO12",
            "TLSLE_LDST64_TPREL_LO12_NC",
        ],
    );
}

/// Code that builds whole addresses reaches the program from anywhere, and calls by veneers.
#[test]
fn calls_out_of_reach_take_veneers() {
    let lab = Lab::new(GCC, &["-fPIC"]);
    let program = program(&lab, false, "-mcmodel=large");
    let flags = ["-O2", "-mcmodel=large", "-fno-pic", TLS_LE, "-fcommon"];
    let object = lab.object("rich.c", &flags);
    let image = lab.link_at(&program, std::slice::from_ref(&object), FIXED_FAR).expect("it links");
    let theirs = symbols(&program.file);
    let ours = symbols(&object);
    let mut followed = 0;
    for pl in image.report.placements.iter().filter(|p| p.symbol.is_none() && p.size != 0) {
        for r in relocations(&object, pl.index).iter().filter(|r| matches!(r.kind, CALL26 | JUMP26)) {
            let at = image.at.image + pl.offset + r.offset;
            let word = image.format.number(image.read(at, 4)) as u32;
            let end = destination(&image, at.wrapping_add(signed(word, 25, 0) << 2));
            let symbol = &ours[r.symbol as usize];
            if let Some(s) = theirs.iter().find(|s| s.name == symbol.name && symbol.section == 0 && s.section != 0) {
                assert_eq!(end, s.value, "{}", symbol.name);
                followed += 1;
            }
        }
    }
    assert!(followed >= 3, "only {followed} calls of the program");
    let small = lab.object("rich.c", &["-O2", "-fno-pic", TLS_LE, "-fcommon"]);
    let refused = lab.link_at(&program, &[small], FIXED_FAR).err();
    assert!(matches!(refused, Some(LinkError::Overflow { name: "R_AARCH64_ADR_PREL_PG_HI21", .. })), "{refused:?}");
}

#[test]
fn what_has_no_row_is_refused_by_name() {
    let lab = Lab::new(GCC, &["-fPIC"]);
    let program = program(&lab, false, "-mcmodel=small");
    let flags = ["-O2", "-fPIC", "-mtls-dialect=trad", TLS_GD, "-fcommon"];
    let traditional = lab.object("rich.c", &flags);
    let refused = lab.link_at(&program, &[traditional], FIXED).err();
    let Some(LinkError::UnsupportedRelocation { name, .. }) = refused else { panic!("{refused:?}") };
    assert!(name.starts_with("R_AARCH64_TLSGD_"), "{name}");
}

/// What a field's value may be, and the distance between two values that it can tell apart: AAELF64's checks ("Relocation
/// types", tables of static relocations), apart from the table under test. None where the document says "No overflow check".
fn aaelf_range(name: &str) -> Option<(i128, i128, i128)> {
    let signed = |bits: u32, step| Some((-(1i128 << bits), 1i128 << bits, step));
    let unsigned = |bits: u32, step| Some((0, 1i128 << bits, step));
    match name.strip_prefix("R_AARCH64_").expect("a name of the psABI") {
        "ABS32" => Some((-(1 << 31), 1 << 32, 1)),
        "ABS16" => Some((-(1 << 15), 1 << 16, 1)),
        "PREL32" | "PLT32" | "GOTPCREL32" | "GOTREL32" => signed(31, 1),
        "PREL16" => signed(15, 1),
        "MOVW_UABS_G0" => unsigned(16, 1),
        "MOVW_UABS_G1" => unsigned(32, 1),
        "MOVW_UABS_G2" => unsigned(48, 1),
        "MOVW_SABS_G0" | "MOVW_PREL_G0" | "TLSLE_MOVW_TPREL_G0" => signed(16, 1),
        "MOVW_SABS_G1" | "MOVW_PREL_G1" | "TLSLE_MOVW_TPREL_G1" => signed(32, 1),
        "MOVW_SABS_G2" | "MOVW_PREL_G2" | "TLSLE_MOVW_TPREL_G2" => signed(48, 1),
        "LD_PREL_LO19" | "CONDBR19" | "GOT_LD_PREL19" | "TLSIE_LD_GOTTPREL_PREL19" => signed(20, 4),
        "ADR_PREL_LO21" => signed(20, 1),
        "ADR_PREL_PG_HI21" | "ADR_GOT_PAGE" | "TLSIE_ADR_GOTTPREL_PAGE21" => signed(32, 4096),
        "TSTBR14" => signed(15, 4),
        "JUMP26" | "CALL26" => signed(27, 4),
        "LD64_GOTOFF_LO15" | "LD64_GOTPAGE_LO15" => unsigned(15, 8),
        "TLSLE_ADD_TPREL_HI12" => unsigned(24, 1),
        "TLSLE_ADD_TPREL_LO12" | "TLSLE_LDST8_TPREL_LO12" => unsigned(12, 1),
        "TLSLE_LDST16_TPREL_LO12" => unsigned(12, 2),
        "TLSLE_LDST32_TPREL_LO12" => unsigned(12, 4),
        "TLSLE_LDST64_TPREL_LO12" => unsigned(12, 8),
        "TLSLE_LDST128_TPREL_LO12" => unsigned(12, 16),
        // The offset that takes the descriptor's place has 32 bits.
        "TLSDESC_ADR_PAGE21" | "TLSDESC_LD_PREL19" => unsigned(32, 1),
        _ => None,
    }
}

/// An object with a field of some type at `.text` + 8, against `number` or, for thread-local storage, `tls_last`.
fn one_field(template: &[u8], kind: u32, addend: i64) -> Vec<u8> {
    let mut object = template.to_vec();
    let text = sections(&object).iter().position(|s| s.name == ".text").expect("a section") as u32;
    let at = relocations(&object, text)[0].at;
    object[at + 8..at + 12].copy_from_slice(&kind.to_le_bytes());
    object[at + 16..at + 24].copy_from_slice(&addend.to_le_bytes());
    object
}

const FIELD: &str = "
	.text
	.globl target_new
	.type target_new, %function
target_new:
	ret
	.size target_new, .-target_new
	.balign 8
	.reloc ., R_AARCH64_ABS64, SYMBOL
	.inst 0xd2800001, 0xd503201f
";
const NUMBER: &str = ".globl number\n.set number, 0\n";

/// ld can't reveal a missing range check, so every bound is tried: the last value that fits and the first that doesn't. What
/// fits is compared with ld, too.
#[test]
fn every_range_check_is_exact() {
    // The document takes signed values for these, ld does not; the bytes are the same.
    let signed = &["R_AARCH64_ABS32", "R_AARCH64_ABS16"];
    let lab = Lab::new(Tools { branches: signed, ..GCC }, &["-fPIC"]);
    let program = program(&lab, false, "-mcmodel=small");
    let number = lab.assemble(NUMBER, &[]);
    let of_number = lab.assemble(&FIELD.replace("SYMBOL", "number"), &[]);
    let of_tls = lab.assemble(&format!(".type tls_last, %tls_object\n{}", FIELD.replace("SYMBOL", "tls_last")), &[]);
    // With a slot, so that it is known where the GOT begins.
    let beside_got =
        lab.assemble(&format!("{}ldr x0, [x0, #:got_lo12:number]\n", FIELD.replace("SYMBOL", "number")), &[]);
    let tls_last = symbols(&program.file).into_iter().find(|s| s.name == "tls_last").expect("defined").value;
    let mut counts = Counts::new();
    let (mut tried, mut elsewhere) = (Vec::new(), Vec::new());
    for (kind, howto) in (0..1100).filter_map(|k| Aarch64.howto(k).map(|h| (k, h))) {
        let Some((min, end, step)) = aaelf_range(howto.name) else {
            assert_eq!(howto.overflow.bounds(), None, "{}: no bounds are known to this test", howto.name);
            continue;
        };
        let template = match howto.expr {
            Expr::TpOff => &of_tls,
            Expr::GotOff => &beside_got,
            _ => &of_number,
        };
        let link_with = |addend| {
            let objects = [one_field(template, kind, addend), number.clone()];
            (lab.link_at(&program, &objects, FIXED), objects)
        };
        let image = link_with(0).0.ok();
        let place = |image: &Image| {
            let text = image.report.placements.iter().find(|p| p.section == ".text").expect("placed");
            FIXED.image + text.offset + 8
        };
        // The field's place does not depend on the value, but some values are refused.
        let p = image.as_ref().map_or(FIXED.image + 8, place);
        // What the value is without an addend.
        let origin = match howto.expr {
            Expr::Abs => 0,
            Expr::Pc => -i128::from(p),
            Expr::PagePc { .. } => -i128::from(page(p)),
            Expr::GotOff => -i128::from(FIXED.image + image.expect("near").report.got[0].offset),
            Expr::TpOff => i128::from(TLS_BLOCK + tls_last),
            _ => {
                elsewhere.push(howto.name);
                continue;
            }
        };
        for (value, fits) in [(min - step, false), (min, true), (end - step, true), (end, false)] {
            let (linked, objects) = link_with(i64::try_from(value - origin).expect("64 bits"));
            match linked {
                Ok(image) => {
                    assert!(fits, "{} took {value:#x}", howto.name);
                    assert_eq!(place(&image), p, "{}: the field has moved", howto.name);
                    let compared = match howto.expr {
                        // ld has no such types.
                        Expr::GotOff => false,
                        Expr::TpOff if howto.name.contains("LDST128") => false,
                        // Offsets from the thread pointer are positive, so that ld never writes `movn` for one. Of descriptors
                        // it changes whole sequences: those are compared where compilers make them.
                        Expr::TpOff => value >= 0 && !howto.name.starts_with("R_AARCH64_TLSDESC_"),
                        _ => true,
                    };
                    if compared {
                        let file = lab.gnu_ld(&program, &objects, &image, &[]);
                        let same = compare(&objects, &image, &Reference::new(&file), &mut counts);
                        same.unwrap_or_else(|e| panic!("{} {value:#x}: {e}", howto.name));
                    }
                }
                Err(LinkError::Overflow { name, value: v, min: lo, max: hi, .. }) => {
                    assert!(!fits, "{name} refused {value:#x}");
                    assert_eq!((name, v, lo, hi), (howto.name, value, min, end - 1));
                }
                Err(e) => panic!("{} {value:#x}: {e}", howto.name),
            }
        }
        if (2..4096).contains(&step) {
            match link_with(i64::try_from(min + step / 2 - origin).expect("64 bits")).0 {
                Err(LinkError::Misaligned { align, .. }) => assert_eq!(i128::from(align), step, "{}", howto.name),
                other => panic!("{}: {:?}", howto.name, other.map(|i| i.report)),
            }
        }
        tried.push(howto.name);
    }
    println!("bounds tried: {}", tried.join(" "));
    print("at their bounds", &counts);
    // Those of the next two tests, and three of which the ends are gigabytes away from any slot: the field's own test has them.
    let next = ["JUMP26", "CALL26", "GOT_LD_PREL19", "LD64_GOTOFF_LO15", "ADR_GOT_PAGE", "LD64_GOTPAGE_LO15", "PLT32"];
    let more = ["GOTPCREL32", "TLSIE_ADR_GOTTPREL_PAGE21", "TLSIE_LD_GOTTPREL_PREL19"];
    let plain: Vec<_> = elsewhere.iter().filter_map(|n| n.strip_prefix("R_AARCH64_")).collect();
    assert_eq!(plain, [&next[..], &more].concat());
}

/// Branches reach 128 MiB (where a word of data is one, 2 GiB); beyond there are veneers, and none to odd places.
#[test]
fn branches_end_where_they_end() {
    let lab = Lab::new(GCC, &["-fPIC"]);
    let program = program(&lab, false, "-mcmodel=small");
    let number = lab.assemble(NUMBER, &[]);
    let template = lab.assemble(&FIELD.replace("SYMBOL", "number"), &[]);
    let at = Where { bias: 0, image: 0x10_0000_0000 };
    for kind in [JUMP26, CALL26, PLT32] {
        let name = Aarch64.reloc_name(kind).expect("a row");
        let (min, end, step) = aaelf_range(name).expect("it has bounds");
        let link_to = |to: i128| {
            let field = one_field(&template, kind, i64::try_from(to).expect("64 bits"));
            lab.link_at(&program, &[field, number.clone()], at)
        };
        let place = |image: &Image| {
            let text = image.report.placements.iter().find(|p| p.section == ".text").expect("placed");
            at.image + text.offset + 8
        };
        let p = i128::from(place(&link_to(at.image.into()).unwrap_or_else(|e| panic!("{name}: {e}"))));
        for (value, veneers) in [(min - step, 1), (min, 0), (end - step, 0), (end, 1)] {
            let image = link_to(p + value).unwrap_or_else(|e| panic!("{name} {value:#x}: {e}"));
            assert_eq!(image.report.veneers.len(), veneers, "{name} {value:#x}");
            // The veneer's slot moves the code.
            let from = place(&image);
            assert!(veneers == 1 || i128::from(from) == p, "{name}: the field has moved");
            let word = image.format.number(image.read(from, 4)) as u32;
            let to = if kind == PLT32 { i64::from(word as i32) as u64 } else { signed(word, 25, 0) << 2 };
            assert_eq!(i128::from(destination(&image, from.wrapping_add(to))), p + value, "{name} {value:#x}");
        }
        for odd in (1..4).filter(|_| step == 4) {
            match link_to(p + odd) {
                Err(LinkError::Misaligned { align: 4, symbol, .. }) => assert_eq!(symbol, "number"),
                other => panic!("{name} {odd}: {:?}", other.map(|i| i.report)),
            }
        }
    }
}

/// Literal loads reach slots within 1 MiB (of the code in front of them: none lie behind), and offsets in the GOT end at
/// 32 KiB.
#[test]
fn slots_end_where_they_end() {
    let lab = Lab::new(GCC, &["-fPIC"]);
    let program = program(&lab, false, "-mcmodel=small");
    const HEAD: &str =
        ".globl target_new\n.type target_new, %function\ntarget_new: ret\n.size target_new, .-target_new\n";
    for (load, name) in [
        ("ldr x0, :got:counter", "R_AARCH64_GOT_LD_PREL19"),
        ("ldr x0, :gottprel:tls_last", "R_AARCH64_TLSIE_LD_GOTTPREL_PREL19"),
    ] {
        let (min, end, step) = aaelf_range(name).expect("it has bounds");
        // The load at this offset of a text that is as long, wherever the load is.
        let linked = |at: u64| {
            let text = format!("{HEAD}.space {}\n{load}\n.space {}\n", at - 4, 0x20_0000 - at - 4);
            lab.link_at(&program, &[lab.assemble(&text, &[])], FIXED)
        };
        let image = linked(8).expect("near");
        let text = image.report.placements.iter().find(|p| p.section == ".text").expect("placed").offset;
        let slot = i128::from(image.report.got[0].offset) - i128::from(text);
        // The slots lie before the code.
        for (distance, fits) in [(min, true), (min - step, false)] {
            match linked(u64::try_from(slot - distance).expect("the text is long enough")) {
                Ok(image) => {
                    assert!(fits, "{name} {distance:#x}");
                    assert_eq!(i128::from(image.report.got[0].offset) - i128::from(text), slot, "it has moved");
                }
                Err(LinkError::Overflow { name: n, value, max, .. }) => {
                    assert!(!fits, "{name} {distance:#x}");
                    assert_eq!((n, value, max), (name, distance, end - 1));
                }
                Err(e) => panic!("{name} {distance:#x}: {e}"),
            }
        }
    }
    for name in ["R_AARCH64_LD64_GOTOFF_LO15", "R_AARCH64_LD64_GOTPAGE_LO15"] {
        let (_, end, step) = aaelf_range(name).expect("it has bounds");
        // Behind the slots of this many others.
        let linked = |others: i128| {
            let (mut text, mut numbers) = (String::from(HEAD), String::new());
            for i in 0..others {
                let _ = writeln!(text, ".reloc ., R_AARCH64_LD64_GOT_LO12_NC, s{i}\nldr x0, [x0]");
                let _ = writeln!(numbers, ".globl s{i}\n.set s{i}, {i}");
            }
            let _ = writeln!(text, ".reloc ., {name}, counter\nldr x0, [x0]");
            lab.link_at(&program, &[lab.assemble(&text, &[]), lab.assemble(&numbers, &[])], FIXED)
        };
        let fits = end / step - 1;
        let image = linked(fits).unwrap_or_else(|e| panic!("{name}: {e}"));
        let offsets = image.report.got.iter().map(|s| s.offset);
        let (first, last) = (offsets.clone().min().expect("slots"), offsets.max().expect("slots"));
        assert_eq!((first & 0xfff, i128::from(last - first)), (0, end - step), "the GOT begins a page");
        match linked(fits + 1).map(|i| i.report) {
            Err(LinkError::Overflow { name: n, value, max, .. }) => assert_eq!((n, value, max), (name, end, end - 1)),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Types without a row are refused under their psABI name.
#[test]
fn unknown_types_are_refused_by_name() {
    let lab = Lab::new(GCC, &["-fPIC"]);
    let program = program(&lab, false, "-mcmodel=small");
    let number = lab.assemble(NUMBER, &[]);
    let template = lab.assemble(&FIELD.replace("SYMBOL", "number"), &[]);
    for kind in (0..1100).filter(|n| Aarch64.howto(*n).is_none()) {
        let linked = lab.link_at(&program, &[one_field(&template, kind, 0), number.clone()], FIXED);
        match linked.map(|i| i.report) {
            Err(LinkError::UnsupportedRelocation { name, symbol, .. }) => {
                let known = Aarch64.reloc_name(kind).map_or(format!("type {kind}"), str::to_owned);
                assert_eq!((name, symbol.as_str()), (known, "number"));
            }
            other => panic!("type {kind}: {other:?}"),
        }
    }
}
