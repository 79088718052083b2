//! GNU ld as the oracle of the patch linker: the same objects at the same addresses, every byte compared.
//!
//! ld is given copies of the objects in which every section has a name of its own (`.t5` for number 5), so that it takes
//! none for something special (it edits `.eh_frame` and merges strings), and a linker script that puts each to the address
//! that tfix chose. The program's symbols are assignments in that script, its thread-local storage is the very object
//! that the program was linked from.
//!
//! Where GOT slots are involved the two can't agree in bytes, because the slots lie elsewhere: there the slot that the
//! field refers to is looked up on both sides, and what the slots hold is compared. ld turns dynamic models of
//! thread-local storage into the local-executable one, which tfix does not: there ld's immediate has to be what tfix's slot
//! holds.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use support::{Rela, Section, Workshop, fixture, relocations, run, sections, symbols, word};
use tigerfix::link::{LinkError, LinkOptions, LinkReport, SlotKind, link};
use tigerfix::model::{Package, Referent};
use tigerfix::program::Program;
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::{Expr, Howto, Relocator as _};
use tigerfix_core::relocate::settle;

/// Where ld's own tables go, relative to the image: out of its way, but within 2 GiB of everything.
const LD_GOT: u64 = 0x2800_0000;
const LD_GOT_PLT: u64 = 0x2810_0000;
const LD_TLS: u64 = 0x2820_0000;

/// How often each relocation type was compared.
type Counts = BTreeMap<&'static str, u32>;

struct Lab {
    shop: Workshop,
    tls: PathBuf,
}

/// A program and what ld has to know of it.
struct TestProgram {
    file: Vec<u8>,
    pie: bool,
}

impl Lab {
    fn new() -> Lab {
        let shop = Workshop::new();
        let _ = shop.gcc("tls.o", &[&fixture("tls.c")], &["-c", "-O1", "-fPIC"]);
        let tls = shop.path("tls.o");
        Lab { shop, tls }
    }

    fn program(&self, pie: bool) -> TestProgram {
        let link: &[&str] = if pie { &["-fPIE", "-static-pie"] } else { &["-fno-pie", "-no-pie", "-static"] };
        let flags = [&["-O1", "-nostdlib", "-fno-stack-protector"], link].concat();
        TestProgram { file: self.shop.gcc("program", &[&fixture("program.c"), &self.tls], &flags), pie }
    }

    fn object(&self, source: &str, flags: &[&str]) -> Vec<u8> {
        self.shop.gcc("patch.o", &[&fixture(source)], &[&["-c", "-w"], flags].concat())
    }
}

/// Where things lie in one comparison.
#[derive(Clone, Copy, Debug)]
struct Where {
    bias: u64,
    image: u64,
}

const FIXED: Where = Where { bias: 0, image: 0x1000_0000 };
const FIXED_FAR: Where = Where { bias: 0, image: 0x7123_4567_8000 };
const PIE: Where = Where { bias: 0x5555_5555_4000, image: 0x5555_6000_0000 };

/// What tfix made of the objects.
struct Image {
    at: Where,
    bytes: Vec<u8>,
    report: LinkReport,
}

impl Image {
    fn read(&self, addr: u64, len: usize) -> &[u8] {
        let from = addr.checked_sub(self.at.image).unwrap_or_else(|| panic!("{addr:#x} is not in the image")) as usize;
        self.bytes.get(from..from + len).unwrap_or_else(|| panic!("{addr:#x} is not in the image"))
    }
    /// What the GOT slot at `addr` holds; it must be a slot of this kind.
    fn slot(&self, addr: u64, kind: SlotKind) -> Result<u64, String> {
        let found = self.report.got.iter().find(|s| self.at.image + s.offset == addr);
        match found {
            Some(s) if s.kind == kind => Ok(word(self.read(addr, 8))),
            Some(s) => Err(format!("the slot at {addr:#x} is {:?}, not {kind:?}", s.kind)),
            None => Err(format!("no GOT slot at {addr:#x}")),
        }
    }
    /// Where a branch to `addr` ends: veneers are followed.
    fn destination(&self, addr: u64) -> u64 {
        let Some(v) = self.report.veneers.iter().find(|v| self.at.image + v.offset == addr) else { return addr };
        let code = self.read(addr, 6);
        assert_eq!(code[..2], [0xff, 0x25], "jmp qword ptr [rip + disp]");
        let slot = addr.wrapping_add(6).wrapping_add_signed(word(&code[2..]) as i32 as i64);
        assert_eq!(
            Some(slot),
            v.slot.map(|s| self.at.image + s),
            "the veneer of `{}` takes another slot than reported",
            v.symbol
        );
        word(self.read(slot, 8))
    }
}

fn options() -> LinkOptions<'static> {
    LinkOptions {
        replace: vec![("target_new".into(), "target".into())],
        name: "oracle".into(),
        program_file: "program".into(),
        ..LinkOptions::default()
    }
}

fn link_at(program: &TestProgram, objects: &[Vec<u8>], at: Where) -> Result<Image, LinkError> {
    let parsed = Program::parse(&program.file).expect("gcc's program");
    let inputs: Vec<(String, &[u8])> =
        objects.iter().enumerate().map(|(i, o)| (format!("o{i}.o"), o.as_slice())).collect();
    let base = (!program.pie).then_some(at.image);
    let linked = link(&X86_64, &parsed, &inputs, &LinkOptions { base, ..options() })?;
    let mut bytes = vec![0u8; linked.package.image_size() as usize];
    for s in &linked.package.spans {
        bytes[s.offset as usize..][..s.data.len()].copy_from_slice(&s.data);
    }
    if program.pie {
        settle_residue(&linked.package, &mut bytes, at);
    } else {
        assert!(linked.package.residue.is_empty(), "nothing is left to settle at a fixed address");
    }
    Ok(Image { at, bytes, report: linked.report })
}

/// What `fix` does once it has chosen a place.
fn settle_residue(package: &Package, bytes: &mut [u8], at: Where) {
    for r in &package.residue {
        let howto = X86_64.howto(r.r_type).expect("residue of a known type");
        let symbol = &package.symbols[r.symbol as usize];
        let s = match symbol.referent {
            Referent::Image(o) => at.image + o,
            Referent::Program(a) => a.0 + at.bias,
            ref other => panic!("`{}` is {other:?}", symbol.name),
        };
        settle(&X86_64, howto, bytes, r.offset, s, r.addend, at.image + r.offset)
            .unwrap_or_else(|e| panic!("{} against `{}`: {e:?}", howto.name, symbol.name));
    }
}

/// A copy of an object for ld: sections get neutral names and nothing is merged.
fn for_ld(object: &[u8]) -> Vec<u8> {
    let mut out = object.to_vec();
    let all = sections(object);
    let mut names = vec![0u8];
    for (i, s) in all.iter().enumerate().skip(1) {
        let at = names.len() as u32;
        names.extend_from_slice(format!(".t{i}\0").as_bytes());
        out[s.header..s.header + 4].copy_from_slice(&at.to_le_bytes());
        let flags = s.flags & !(support::SHF_MERGE | support::SHF_STRINGS);
        out[s.header + 8..s.header + 16].copy_from_slice(&flags.to_le_bytes());
        if s.name == ".eh_frame" {
            out[s.header + 4..s.header + 8].copy_from_slice(&support::SHT_PROGBITS.to_le_bytes());
        }
    }
    let table = &all[word(&object[62..64]) as usize];
    let at = out.len() as u64;
    out[table.header + 24..table.header + 32].copy_from_slice(&at.to_le_bytes());
    out[table.header + 32..table.header + 40].copy_from_slice(&(names.len() as u64).to_le_bytes());
    out.extend_from_slice(&names);
    out
}

/// Symbols that the patch needs and the program (or the image, for COMMON) provides.
fn assignments(program: &TestProgram, objects: &[Vec<u8>], image: &Image) -> String {
    let defined = |s: &&support::Symbol| s.section != 0 && s.info & 15 != support::STT_TLS && !s.name.is_empty();
    let mut theirs: BTreeMap<String, u64> = BTreeMap::new();
    for s in symbols(&program.file).iter().filter(defined) {
        theirs.insert(s.name.clone(), s.value + image.at.bias);
    }
    for p in &image.report.placements {
        if let Some(symbol) = &p.symbol {
            theirs.entry(symbol.clone()).or_insert(image.at.image + p.offset);
        }
    }
    const SHN_COMMON: u16 = 0xfff2;
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for o in objects {
        wanted.extend(symbols(o).into_iter().filter(|s| s.section == 0 || s.section == SHN_COMMON).map(|s| s.name));
    }
    let line = |name: &String| theirs.get(name).map(|v| format!("{name} = {v:#x};\n"));
    wanted.iter().filter_map(line).collect()
}

/// Links with GNU ld what tfix linked, at the same addresses.
fn gnu_ld(lab: &Lab, program: &TestProgram, objects: &[Vec<u8>], image: &Image) -> Vec<u8> {
    let mut script = assignments(program, objects, image);
    script.push_str("SECTIONS {\n");
    let mut placed = BTreeSet::new();
    for p in image.report.placements.iter().filter(|p| p.symbol.is_none()) {
        let (o, i) = (p.object_index, p.index);
        placed.insert((o, i));
        let _ = writeln!(script, "  .o{o}s{i} {:#x} : {{ o{o}.o(.t{i}) }}", image.at.image + p.offset);
    }
    for (name, inputs, at) in
        [(".got", "*(.got)", LD_GOT), (".got.plt", "*(.got.plt)", LD_GOT_PLT), (".tdata", "tls.o(.tdata)", LD_TLS)]
    {
        let _ = writeln!(script, "  {name} {:#x} : {{ {inputs} }}", image.at.image + at);
    }
    script.push_str("  .tbss : { tls.o(.tbss) }\n  /DISCARD/ : { ");
    for (o, object) in objects.iter().enumerate() {
        for (i, s) in sections(object).iter().enumerate() {
            if s.flags & support::SHF_ALLOC != 0 && !placed.contains(&(o as u32, i as u32)) {
                let _ = write!(script, "o{o}.o(.t{i}) ");
            }
        }
    }
    script.push_str("tls.o(.note*) tls.o(.eh_frame) tls.o(.comment) }\n}\n");
    lab.shop.write("script.ld", &script);
    let mut command = Command::new("ld");
    command.current_dir(lab.shop.path(""));
    command.args(["-m", "elf_x86_64", "-static", "--no-relax", "--no-warn-rwx-segments", "--no-gc-sections"]);
    command.args(["-e", "0", "-T", "script.ld", "-o", "reference"]);
    for (i, o) in objects.iter().enumerate() {
        command.arg(lab.shop.write(&format!("o{i}.o"), for_ld(o)).file_name().expect("a name"));
    }
    command.arg("tls.o");
    run(&mut command);
    std::fs::read(lab.shop.path("reference")).expect("ld wrote it")
}

/// ld's output, by address.
struct Reference<'a> {
    file: &'a [u8],
    sections: Vec<Section>,
    got: u64,
}

impl<'a> Reference<'a> {
    fn new(file: &'a [u8]) -> Self {
        let got = symbols(file).into_iter().find(|s| s.name == "_GLOBAL_OFFSET_TABLE_").map_or(0, |s| s.value);
        Self { file, sections: sections(file), got }
    }
    fn read(&self, addr: u64, len: usize) -> &'a [u8] {
        let inside = |s: &&Section| {
            s.flags & support::SHF_ALLOC != 0
                && s.kind != support::SHT_NOBITS
                && s.addr <= addr
                && addr + len as u64 <= s.addr + s.size as u64
        };
        let s = self.sections.iter().find(inside).unwrap_or_else(|| panic!("ld has nothing at {addr:#x}"));
        &self.file[s.offset + (addr - s.addr) as usize..][..len]
    }
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
                let slot = self.image.slot(leads(ours, p), SlotKind::Address)?;
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
                let slot = self.image.slot(leads(ours, base), SlotKind::Address)?;
                let theirs = word(self.reference.read(leads(ld, self.reference.got), 8));
                same("the GOT slot", slot, theirs)?;
                Ok(bytes)
            }
            Expr::GotBasePc => {
                same("ld's GOT", leads(ld, p), self.reference.got)?;
                let base = leads(ours, p);
                same("the GOT pointer", base, got().unwrap_or(base))?;
                self.got = Some(base);
                Ok(bytes)
            }
            Expr::GotOff | Expr::PltGotOff => {
                let base = got().ok_or("where is the GOT?")?;
                let to = self.image.destination(leads(ours, base));
                same("the symbol", to, leads(ld, self.reference.got))?;
                Ok(bytes)
            }
            Expr::PltPc => {
                // In bytes the same, unless a veneer lies between.
                let to = leads(ours, p);
                if self.image.destination(to) == to {
                    return Ok(at..at);
                }
                same("the destination", self.image.destination(to), leads(ld, p))?;
                Ok(bytes)
            }
            Expr::GotTpOffPc => {
                // mov/add foo@gottpoff(%rip), reg -> mov/add/lea $foo@tpoff, reg: prefix, opcode and ModRM change.
                let slot = self.image.slot(leads(ours, p), SlotKind::TpOffset)?;
                same("the slot's offset from the thread pointer", slot, ld as u64)?;
                Ok(at - 3..at + 4)
            }
            Expr::GotTlsGdPc => {
                // data16 lea x@tlsgd(%rip), %rdi; data16 data16 rex.W call __tls_get_addr
                //   -> mov %fs:0, %rax; lea x@tpoff(%rax), %rax
                let pair = leads(ours, p);
                same("the module id", self.image.slot(pair, SlotKind::Module)?, 1)?;
                let offset = self.image.slot(pair + 8, SlotKind::DtpOffset)? as i64;
                let theirs = word(&self.ld[at + 8..at + 12]) as i32;
                same("the offset", (offset + self.block) as u64, i64::from(theirs) as u64)?;
                Ok(at - 4..at + 12)
            }
            Expr::GotTlsLdPc => {
                // lea x@tlsld(%rip), %rdi; call __tls_get_addr -> data16 data16 data16 mov %fs:0, %rax
                let pair = leads(ours, p);
                same("the module id", self.image.slot(pair, SlotKind::Module)?, 1)?;
                same("the second word", self.image.slot(pair + 8, SlotKind::DtpOffset)?, 0)?;
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
    let image = link_at(program, objects, at).unwrap_or_else(|e| panic!("{what}: {e}"));
    let file = gnu_ld(lab, program, objects, &image);
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

fn print(title: &str, counts: &Counts) {
    let total: u32 = counts.values().sum();
    println!("{title}: {total} relocations compared");
    for (name, n) in counts {
        println!("  {n:6} {name}");
    }
}

#[test]
fn compiled_code_for_a_fixed_program() {
    let lab = Lab::new();
    let program = lab.program(false);
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
    let lab = Lab::new();
    let program = lab.program(true);
    let mut counts = Counts::new();
    for level in LEVELS {
        for mode in ["-fPIC", "-fPIE"] {
            for tls in [TLS_LE, TLS_IE, TLS_GD] {
                let rich = lab.object("rich.c", &[level, mode, tls, "-fcommon"]);
                check(&lab, &program, &[rich], PIE, &format!("rich.c {level} {mode} {tls}"), &mut counts);
            }
        }
        let fixed = lab.object("rich.c", &[level, "-fno-pic", TLS_LE]);
        let refused = link_at(&program, &[fixed], PIE).err();
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
    let lab = Lab::new();
    let (fixed, pie) = (lab.program(false), lab.program(true));
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
    let lab = Lab::new();
    let fixed = lab.program(false);
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
    let lab = Lab::new();
    let program = lab.program(false);
    let object = lab.object("relocations.s", &[]);
    let mut image = link_at(&program, std::slice::from_ref(&object), FIXED).expect("links");
    let file = gnu_ld(&lab, &program, std::slice::from_ref(&object), &image);
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
    let lab = Lab::new();
    let program = lab.program(false);
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
            link_at(&program, &[object], FIXED)
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
    let lab = Lab::new();
    let program = lab.program(false);
    let template = one_field(&lab, "counter", 1, 0, false);
    let data = sections(&template).iter().position(|s| s.name == ".data").expect("a section") as u32;
    let at = relocations(&template, data)[0].at;
    let mut names = BTreeSet::new();
    for kind in (0..256).filter(|n| X86_64.howto(*n).is_none()) {
        let mut object = template.clone();
        object[at + 8..at + 12].copy_from_slice(&u32::to_le_bytes(kind));
        let error = link_at(&program, &[object], FIXED).err().unwrap_or_else(|| panic!("type {kind} was taken"));
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
    let lab = Lab::new();
    let program = lab.program(false);
    let object = lab.shop.assemble(
        ".globl target_new\n.type target_new, @function\ntarget_new:\n call helper\n jmp other\n je helper\n\
         call helper@PLT+2\n call target_new\n ret\n.size target_new, .-target_new\n",
    );
    let address = |name: &str| symbols(&program.file).into_iter().find(|s| s.name == name).expect("defined").value;
    let near = link_at(&program, std::slice::from_ref(&object), FIXED).expect("links");
    let far = link_at(&program, std::slice::from_ref(&object), FIXED_FAR).expect("links");
    assert!(near.report.veneers.is_empty());
    assert_eq!(far.report.veneers.len(), 3, "helper, other, helper+2");
    for image in [&near, &far] {
        let text = image.report.placements.iter().find(|p| p.section == ".text").expect("placed");
        let at = image.at.image + text.offset;
        let to = |field: u64| {
            let to = (at + field + 4).wrapping_add_signed(i64::from(word(image.read(at + field, 4)) as i32));
            image.destination(to)
        };
        let (helper, other) = (address("helper"), address("other"));
        assert_eq!([to(1), to(6), to(12), to(17), to(22)], [helper, other, helper, helper + 2, at]);
    }
}
