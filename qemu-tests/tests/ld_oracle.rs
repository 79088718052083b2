//! GNU ld as the oracle of the patch linker: the same objects at the same addresses, every byte compared.
//!
//! How ld is made to do so: `support/oracle.rs`.
//!
//! Where GOT slots are involved the two can't agree in bytes, because the slots lie elsewhere: there the slot that the
//! field refers to is looked up on both sides, and what the slots hold is compared. ld turns dynamic models of
//! thread-local storage into the local-executable one, which tfix does not: there ld's immediate has to be what tfix's slot
//! holds.

mod support;

use std::collections::BTreeSet;

use support::oracle::{Counts, Image, Lab, Reference, TestProgram, Tools, Where, print};
use support::{Rela, relocations, sections, symbols, word};
use tigerfix::link::{LinkError, SlotKind};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::{Expr, Howto, Relocator as _};

const TOOLS: Tools = Tools {
    arch: &X86_64,
    compiler: "gcc",
    ld: "ld",
    emulation: "elf_x86_64",
    got_symbols: &[],
    hints: &[],
    branches: &[],
};

fn lab() -> Lab {
    Lab::new(TOOLS, &["-fPIC"])
}

fn program(lab: &Lab, pie: bool) -> TestProgram {
    let flags: &[&str] = if pie { &["-fPIE", "-static-pie"] } else { &["-fno-pie", "-no-pie", "-static"] };
    lab.program(pie, flags)
}

const FIXED: Where = Where { bias: 0, image: 0x1000_0000 };
const FIXED_FAR: Where = Where { bias: 0, image: 0x7123_4567_8000 };
const PIE: Where = Where { bias: 0x5555_5555_4000, image: 0x5555_6000_0000 };

/// Where a branch to `addr` ends: veneers are followed.
fn destination(image: &Image, addr: u64) -> u64 {
    let Some(v) = image.report.veneers.iter().find(|v| image.at.image + v.offset == addr) else { return addr };
    let code = image.read(addr, 6);
    assert_eq!(code[..2], [0xff, 0x25], "jmp qword ptr [rip + disp]");
    let slot = addr.wrapping_add(6).wrapping_add_signed(word(&code[2..]) as i32 as i64);
    let reported = v.slot.map(|s| image.at.image + s);
    assert_eq!(Some(slot), reported, "the veneer of `{}` takes another slot than reported", v.symbol);
    word(image.read(slot, 8))
}

/// One object's section in both outputs.
struct Pair<'a> {
    at: u64,
    ours: &'a [u8],
    ld: &'a [u8],
    image: &'a Image,
    reference: &'a Reference<'a>,
    /// The program's offset of the TLS block from the thread pointer, as ld computes it.
    block: i64,
    /// Start of tfix's GOT, once a relocation told.
    got: Option<u64>,
}

impl Pair<'_> {
    fn field(&self, r: &Rela, howto: &Howto) -> (i64, i64) {
        let at = r.offset as usize;
        let n = usize::from(howto.field.bytes);
        let signed = |b: &[u8]| (word(&b[at..at + n]) << (64 - 8 * n)) as i64 >> (64 - 8 * n);
        (signed(self.ours), signed(self.ld))
    }

    /// Compares one relocation by what it means. Gives the bytes that are not to be compared as bytes.
    fn relocation(&mut self, r: &Rela, howto: &Howto) -> Result<std::ops::Range<usize>, String> {
        let at = r.offset as usize;
        let bytes = at..at + usize::from(howto.field.bytes);
        let p = self.at + r.offset;
        let (ours, ld) = self.field(r, howto);
        let same = |what: &str, a: u64, b: u64| {
            if a == b { Ok(()) } else { Err(format!("{what} is {a:#x}, ld says {b:#x}")) }
        };
        // Where a field that counts from `from` leads.
        let leads = |value: i64, from: u64| from.wrapping_add_signed(value).wrapping_add_signed(-r.addend);
        let got = || self.got.or(self.image.report.got.first().map(|s| self.image.at.image + s.offset));
        match howto.expr {
            Expr::GotPc => {
                let slot = self.image.slot(leads(ours, p), &[SlotKind::Address])?;
                let opcode = |b: &[u8]| if bytes.len() == 4 { b[at - 2] } else { 0 };
                // For undefined weak symbols ld does without a slot, --no-relax or not.
                if opcode(self.ours) != opcode(self.ld) {
                    let value = match opcode(self.ld) {
                        0x8d => leads(ld, p), // lea x(%rip), reg
                        0xc7 => ld as u64,    // mov $x, reg
                        other => return Err(format!("ld made {other:#x} of the opcode")),
                    };
                    same("the GOT slot", slot, value)?;
                    return Ok(at - 3..at + 4);
                }
                let theirs = word(self.reference.read(leads(ld, p), 8));
                same("the GOT slot", slot, theirs)?;
                Ok(bytes)
            }
            Expr::Got => {
                let base = got().ok_or("where is the GOT?")?;
                let slot = self.image.slot(leads(ours, base), &[SlotKind::Address])?;
                let theirs = word(self.reference.read(leads(ld, self.reference.symbol("_GLOBAL_OFFSET_TABLE_")), 8));
                same("the GOT slot", slot, theirs)?;
                Ok(bytes)
            }
            Expr::GotBasePc => {
                same("ld's GOT", leads(ld, p), self.reference.symbol("_GLOBAL_OFFSET_TABLE_"))?;
                let base = leads(ours, p);
                same("the GOT pointer", base, got().unwrap_or(base))?;
                self.got = Some(base);
                Ok(bytes)
            }
            Expr::GotOff | Expr::PltGotOff => {
                let base = got().ok_or("where is the GOT?")?;
                let to = destination(self.image, leads(ours, base));
                same("the symbol", to, leads(ld, self.reference.symbol("_GLOBAL_OFFSET_TABLE_")))?;
                Ok(bytes)
            }
            Expr::PltPc => {
                // In bytes the same, unless a veneer lies between.
                let to = leads(ours, p);
                if destination(self.image, to) == to {
                    return Ok(at..at);
                }
                same("the destination", destination(self.image, to), leads(ld, p))?;
                Ok(bytes)
            }
            Expr::GotTpOffPc => {
                // mov/add foo@gottpoff(%rip), reg -> mov/add/lea $foo@tpoff, reg: prefix, opcode and ModRM change.
                let slot = self.image.slot(leads(ours, p), &[SlotKind::TpOffset])?;
                same("the slot's offset from the thread pointer", slot, ld as u64)?;
                Ok(at - 3..at + 4)
            }
            Expr::GotTlsGdPc => {
                // data16 lea x@tlsgd(%rip), %rdi; data16 data16 rex.W call __tls_get_addr
                //   -> mov %fs:0, %rax; lea x@tpoff(%rax), %rax
                let pair = leads(ours, p);
                same("the module id", self.image.slot(pair, &[SlotKind::Module])?, 1)?;
                let offset = self.image.slot(pair + 8, &[SlotKind::DtpOffset])? as i64;
                let theirs = word(&self.ld[at + 8..at + 12]) as i32;
                same("the offset", (offset + self.block) as u64, i64::from(theirs) as u64)?;
                Ok(at - 4..at + 12)
            }
            Expr::GotTlsLdPc => {
                // lea x@tlsld(%rip), %rdi; call __tls_get_addr -> data16 data16 data16 mov %fs:0, %rax
                let pair = leads(ours, p);
                same("the module id", self.image.slot(pair, &[SlotKind::Module])?, 1)?;
                same("the second word", self.image.slot(pair + 8, &[SlotKind::DtpOffset])?, 0)?;
                Ok(at - 3..at + 9)
            }
            Expr::DtpOff if howto.field.bytes == 4 => {
                // Became an offset from the thread pointer, as the block's address did.
                same("the offset", (ours + self.block) as u64, ld as u64)?;
                Ok(bytes)
            }
            _ => Ok(at..at),
        }
    }
}

/// Compares all that both linkers placed.
fn compare(objects: &[Vec<u8>], image: &Image, reference: &Reference<'_>, counts: &mut Counts) -> Result<(), String> {
    let tls = reference.sections.iter().filter(|s| s.name == ".tdata" || s.name == ".tbss");
    let (start, end) = tls.fold((u64::MAX, 0), |(lo, hi), s| (lo.min(s.addr), hi.max(s.addr + s.size as u64)));
    let block = -((end - start).next_multiple_of(32) as i64); // tls.c aligns a variable to 32 bytes
    let mut got = None;
    for pl in image.report.placements.iter().filter(|p| p.symbol.is_none() && p.size != 0) {
        let section = &sections(&objects[pl.object_index as usize])[pl.index as usize];
        let at = image.at.image + pl.offset;
        let ours = image.read(at, pl.size as usize);
        if section.kind == support::SHT_NOBITS {
            assert!(ours.iter().all(|b| *b == 0), "{} is not zero", pl.section);
            continue;
        }
        let ld = reference.read(at, pl.size as usize);
        let mut pair = Pair { at, ours, ld, image, reference, block, got };
        let mut skip = vec![false; ours.len()];
        let mut owner: Vec<&str> = vec![""; ours.len()];
        let here = |offset: usize| format!("{}: {}+{offset:#x} (at {:#x})", pl.object, pl.section, at + offset as u64);
        let mut covered = 0..0;
        for r in relocations(&objects[pl.object_index as usize], pl.index) {
            let howto = X86_64.howto(r.kind).ok_or_else(|| format!("type {}", r.kind))?;
            let o = r.offset as usize;
            // The call that belongs to a general-dynamic sequence: ld's is gone, ours must reach the function.
            if covered.contains(&o) {
                assert_eq!(howto.expr, Expr::PltPc, "{}", here(o));
                continue;
            }
            let masked = pair.relocation(&r, howto).map_err(|e| format!("{} {}: {e}", here(o), howto.name))?;
            if matches!(howto.expr, Expr::GotTlsGdPc | Expr::GotTlsLdPc) {
                covered = masked.clone();
            }
            skip[masked].fill(true);
            owner[o..o + usize::from(howto.field.bytes)].fill(howto.name);
            *counts.entry(howto.name).or_default() += 1;
        }
        got = pair.got;
        if let Some(i) = (0..ours.len()).find(|i| !skip[*i] && ours[*i] != ld[*i]) {
            let to = (i + 8).min(ours.len());
            return Err(format!("{} {}: {:02x?}, ld has {:02x?}", here(i), owner[i], &ours[i..to], &ld[i..to]));
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

const LEVELS: [&str; 4] = ["-O0", "-O1", "-O2", "-O3"];
const MODES: [&str; 3] = ["-fPIC", "-fPIE", "-fno-pic"];
const TLS_LE: &str = "-DTLS_MODEL=\"local-exec\"";
const TLS_IE: &str = "-DTLS_MODEL=\"initial-exec\"";
const TLS_GD: &str = "-DTLS_MODEL=\"global-dynamic\"";

/// GOTPCREL instead of GOTPCRELX.
const NO_RELAX: &str = "-Wa,-mrelax-relocations=no";

/// What no comparison may lack.
const REQUIRED: [&str; 10] = [
    "R_X86_64_64",
    "R_X86_64_32",
    "R_X86_64_32S",
    "R_X86_64_PC32",
    "R_X86_64_PLT32",
    "R_X86_64_PC64",
    "R_X86_64_GOTPCRELX",
    "R_X86_64_REX_GOTPCRELX",
    "R_X86_64_GOTTPOFF",
    "R_X86_64_TPOFF32",
];

#[test]
fn compiled_code_for_a_fixed_program() {
    let lab = lab();
    let program = program(&lab, false);
    let mut counts = Counts::new();
    for level in LEVELS {
        for mode in MODES {
            for tls in [TLS_LE, TLS_IE, TLS_GD] {
                let relax = if tls == TLS_IE { NO_RELAX } else { "-Wa,-mrelax-relocations=yes" };
                let rich = lab.object("rich.c", &[level, mode, tls, relax, "-fcommon"]);
                check(&lab, &program, &[rich], FIXED, &format!("rich.c {level} {mode} {tls}"), &mut counts);
            }
            let weak = lab.object("weak.c", &[level, mode]);
            check(&lab, &program, &[weak], FIXED, &format!("weak.c {level} {mode}"), &mut counts);
            let sections = [level, mode, TLS_LE, "-fcommon", "-ffunction-sections", "-fdata-sections", "-fno-plt"];
            let rich = lab.object("rich.c", &sections);
            check(&lab, &program, &[rich], FIXED, &format!("rich.c {level} {mode}, many sections"), &mut counts);
        }
    }
    print("fixed program", &counts);
    for name in REQUIRED.into_iter().filter(|n| *n != "R_X86_64_PC64") {
        assert!(counts.contains_key(name), "{name} was never compared");
    }
    assert!(counts.contains_key("R_X86_64_GOTPCREL"));
}

#[test]
fn compiled_code_for_a_position_independent_program() {
    let lab = lab();
    let program = program(&lab, true);
    let mut counts = Counts::new();
    for level in LEVELS {
        for mode in ["-fPIC", "-fPIE"] {
            for tls in [TLS_LE, TLS_IE, TLS_GD] {
                let rich = lab.object("rich.c", &[level, mode, tls, "-fcommon"]);
                check(&lab, &program, &[rich], PIE, &format!("rich.c {level} {mode} {tls}"), &mut counts);
            }
        }
        let fixed = lab.object("rich.c", &[level, "-fno-pic", TLS_LE]);
        let refused = lab.link_at(&program, &[fixed], PIE).err();
        assert!(
            matches!(refused, Some(LinkError::NotPositionIndependent { name: "R_X86_64_32" | "R_X86_64_32S", .. })),
            "{refused:?}"
        );
    }
    print("position-independent program", &counts);
    for name in ["R_X86_64_64", "R_X86_64_PC32", "R_X86_64_PLT32", "R_X86_64_GOTTPOFF", "R_X86_64_TPOFF32"] {
        assert!(counts.contains_key(name), "{name} was never compared");
    }
}

#[test]
fn medium_and_large_code_models() {
    let lab = lab();
    let (fixed, pie) = (program(&lab, false), program(&lab, true));
    let mut counts = Counts::new();
    for level in LEVELS {
        for model in ["-mcmodel=medium", "-mcmodel=large"] {
            for mode in ["-fPIC", "-fno-pic"] {
                let objects = [
                    lab.object("large.c", &[level, model, mode]),
                    lab.object("weak.c", &[level, mode, "-Dtarget_new=weak_user"]),
                ];
                let what = format!("large.c {level} {model} {mode}");
                check(&lab, &fixed, &objects, FIXED, &what, &mut counts);
                if mode == "-fPIC" {
                    check(&lab, &pie, &objects[..1], PIE, &what, &mut counts);
                }
                if model == "-mcmodel=large" && mode == "-fno-pic" {
                    // Reaches the program from anywhere.
                    check(&lab, &fixed, &objects[..1], FIXED_FAR, &what, &mut counts);
                }
            }
        }
    }
    print("medium and large models", &counts);
    for name in ["R_X86_64_64", "R_X86_64_GOTOFF64", "R_X86_64_GOTPC64"] {
        assert!(counts.contains_key(name), "{name} was never compared");
    }
}

#[test]
fn hand_written_relocations() {
    let lab = lab();
    let fixed = program(&lab, false);
    let mut counts = Counts::new();
    let object = lab.object("relocations.s", &[]);
    check(&lab, &fixed, &[object], FIXED, "relocations.s", &mut counts);
    print("relocations.s", &counts);
    // Whatever the back end has a row for, but markers, occurs.
    let rows = (1..256).filter_map(|n| X86_64.howto(n)).map(|h| h.name);
    let missing: Vec<_> = rows.filter(|n| !counts.contains_key(n)).collect();
    assert!(missing.is_empty(), "never compared: {missing:?}");
    for name in REQUIRED {
        assert!(counts.contains_key(name), "{name} was never compared");
    }
}

/// The comparison itself must notice a single wrong bit, in every field and between the fields.
#[test]
fn the_comparison_sees_every_wrong_bit() {
    let lab = lab();
    let program = program(&lab, false);
    let object = lab.object("relocations.s", &[]);
    let mut image = lab.link_at(&program, std::slice::from_ref(&object), FIXED).expect("links");
    let file = lab.gnu_ld(&program, std::slice::from_ref(&object), &image, &[]);
    let reference = Reference::new(&file);
    let objects = [object];
    let same = |image: &Image| compare(&objects, image, &reference, &mut Counts::new());
    assert_eq!(same(&image), Ok(()));
    // Inside a sequence that ld rewrote, all but the field belongs to ld.
    let mut rewritten = 0;
    for p in image.report.placements.clone().iter().filter(|p| p.symbol.is_none()) {
        for i in p.offset..p.offset + p.size {
            image.bytes[i as usize] ^= 1;
            let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| same(&image).is_err())).unwrap_or(true);
            image.bytes[i as usize] ^= 1;
            rewritten += u32::from(!seen);
        }
    }
    // 2 x GOTTPOFF (3 bytes of opcode), TLSGD (16 - 4), TLSLD (12 - 4).
    assert_eq!(rewritten, 2 * 3 + 12 + 8, "bytes that nobody compares");
}

/// One field of 8 bytes in `.data`, with a relocation against `symbol` whose type and addend are written into the file.
fn one_field(lab: &Lab, symbol: &str, kind: u32, addend: i64, no_symbol: bool) -> Vec<u8> {
    let mut object = lab.shop.assemble(&format!(
        ".globl target_new\n.type target_new, @function\ntarget_new: ret\n.size target_new, 1\n\
         .data\n.globl near\nnear: .quad 1, 2\nfield: .quad 0\n.size near, 24\n\
         .reloc field, R_X86_64_64, {symbol}\n"
    ));
    let data = sections(&object).iter().position(|s| s.name == ".data").expect("a section") as u32;
    let r = relocations(&object, data)[0];
    let symbol = if no_symbol { 0 } else { r.symbol };
    object[r.at + 8..r.at + 16].copy_from_slice(&(u64::from(symbol) << 32 | u64::from(kind)).to_le_bytes());
    object[r.at + 16..r.at + 24].copy_from_slice(&addend.to_le_bytes());
    object
}

/// What a field holds (psABI, "Relocation Types", and the extensions that the processor applies), apart from the table
/// under test.
fn psabi_bounds(name: &str) -> Option<(i128, i128)> {
    let signed = |bits: u32| Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1));
    match name.strip_prefix("R_X86_64_")? {
        "32" | "SIZE32" => Some((0, 0xffff_ffff)),
        "16" => Some((-0x8000, 0xffff)),
        "8" => Some((-0x80, 0xff)),
        "PC16" => signed(16),
        "PC8" => signed(8),
        "64" | "PC64" | "DTPOFF64" | "TPOFF64" | "GOTOFF64" | "GOT64" | "GOTPCREL64" | "GOTPC64" | "GOTPLT64"
        | "PLTOFF64" | "SIZE64" | "NONE" => None,
        _ => signed(32),
    }
}

/// ld can't reveal a missing range check, so every bound is tried: the last value that fits and the first that doesn't.
#[test]
fn every_range_check_is_exact() {
    let lab = lab();
    let program = program(&lab, false);
    let mut tried = Vec::new();
    for kind in 1..256 {
        let Some(howto) = X86_64.howto(kind) else { continue };
        let Some((min, max)) = psabi_bounds(howto.name) else {
            assert_eq!(howto.overflow.bounds(), None, "{}: no bounds are known to this test", howto.name);
            continue;
        };
        // A branch out of reach gets a veneer instead; see below.
        if howto.expr == Expr::PltPc {
            continue;
        }
        let symbol = match howto.expr {
            Expr::Pc | Expr::Size => "near",
            Expr::TpOff | Expr::DtpOff | Expr::GotTpOffPc | Expr::GotTlsGdPc | Expr::GotTlsLdPc => "tls_last",
            Expr::GotBasePc => "_GLOBAL_OFFSET_TABLE_",
            _ => "counter",
        };
        // The program's addresses are too long for the short absolute fields.
        let bare = howto.expr == Expr::Abs && howto.field.bytes < 4;
        let link_with = |addend| {
            let object = one_field(&lab, symbol, kind, addend, bare);
            lab.link_at(&program, &[object], FIXED)
        };
        let read = |image: &Image| {
            let data = image.report.placements.iter().find(|p| p.section == ".data").expect("placed");
            let n = usize::from(howto.field.bytes);
            let raw = word(image.read(FIXED.image + data.offset + 16, n));
            let signed = (raw << (64 - 8 * n)) as i64 >> (64 - 8 * n);
            if min < 0 { i128::from(signed) } else { i128::from(raw) }
        };
        let small = read(&link_with(0).unwrap_or_else(|e| panic!("{e}")));
        for (value, fits) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
            let addend = i64::try_from(value - small).expect("64 bits");
            match link_with(addend) {
                Ok(image) => {
                    assert!(fits, "{} took {value:#x}", howto.name);
                    let stored = read(&image);
                    let mask = (1i128 << (8 * howto.field.bytes)) - 1;
                    assert_eq!(stored & mask, value & mask, "{}", howto.name);
                }
                Err(e) => {
                    assert!(!fits, "{} refused {value:#x}: {e}", howto.name);
                    let text = e.to_string();
                    match e {
                        LinkError::Overflow { name, value: v, min: lo, max: hi, .. } => {
                            assert_eq!((name, v, lo, hi), (howto.name, value, min, max));
                        }
                        other => panic!("{other:?}"),
                    }
                    let hex = |v: i128| if v < 0 { format!("-{:#x}", -v) } else { format!("{v:#x}") };
                    let end = format!("{} is not in {}..={}", hex(value), hex(min), hex(max));
                    assert!(text.contains(howto.name) && text.ends_with(&end), "{text}\nwants {end}");
                }
            }
        }
        tried.push(howto.name);
    }
    println!("bounds tried: {}", tried.join(" "));
    assert!(tried.len() >= 17, "{tried:?}");
}

/// Types without a row are refused under their psABI name, whatever they are against.
#[test]
fn unknown_types_are_refused_by_name() {
    let lab = lab();
    let program = program(&lab, false);
    let template = one_field(&lab, "counter", 1, 0, false);
    let data = sections(&template).iter().position(|s| s.name == ".data").expect("a section") as u32;
    let at = relocations(&template, data)[0].at;
    let mut names = BTreeSet::new();
    for kind in (0..256).filter(|n| X86_64.howto(*n).is_none()) {
        let mut object = template.clone();
        object[at + 8..at + 12].copy_from_slice(&u32::to_le_bytes(kind));
        let error = lab.link_at(&program, &[object], FIXED).err().unwrap_or_else(|| panic!("type {kind} was taken"));
        let LinkError::UnsupportedRelocation { name, symbol, .. } = &error else { panic!("{error:?}") };
        assert_eq!(symbol, "counter");
        assert!(error.to_string().contains(name.as_str()), "{error}");
        match X86_64.reloc_name(kind) {
            Some(n) => assert_eq!(n, name),
            None => assert_eq!(*name, format!("type {kind}")),
        }
        names.insert(name.clone());
    }
    for name in ["COPY", "GLOB_DAT", "JUMP_SLOT", "RELATIVE", "DTPMOD64", "TLSDESC_CALL", "TLSDESC", "IRELATIVE"] {
        assert!(names.contains(&format!("R_X86_64_{name}")), "{name}: {names:?}");
    }
}

/// A call of something out of reach goes through a veneer, with all that the addend says.
#[test]
fn far_branches_go_through_veneers() {
    let lab = lab();
    let program = program(&lab, false);
    let object = lab.shop.assemble(
        ".globl target_new\n.type target_new, @function\ntarget_new:\n call helper\n jmp other\n je helper\n\
         call helper@PLT+2\n call target_new\n ret\n.size target_new, .-target_new\n",
    );
    let address = |name: &str| symbols(&program.file).into_iter().find(|s| s.name == name).expect("defined").value;
    let near = lab.link_at(&program, std::slice::from_ref(&object), FIXED).expect("links");
    let far = lab.link_at(&program, std::slice::from_ref(&object), FIXED_FAR).expect("links");
    assert!(near.report.veneers.is_empty());
    assert_eq!(far.report.veneers.len(), 3, "helper, other, helper+2");
    for image in [&near, &far] {
        let text = image.report.placements.iter().find(|p| p.section == ".text").expect("placed");
        let at = image.at.image + text.offset;
        let to = |field: u64| {
            let to = (at + field + 4).wrapping_add_signed(i64::from(word(image.read(at + field, 4)) as i32));
            destination(image, to)
        };
        let (helper, other) = (address("helper"), address("other"));
        assert_eq!([to(1), to(6), to(12), to(17), to(22)], [helper, other, helper, helper + 2, at]);
    }
}
