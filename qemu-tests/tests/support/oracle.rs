//! GNU ld as the oracle of the patch linker: the same objects at the same addresses.
//!
//! ld is given copies of the objects in which every section has a name of its own (`.t5` for number 5), so that it takes
//! none for something special (it edits `.eh_frame` and merges strings), and a linker script that puts each to the address
//! that tfix chose. The program's symbols are assignments in that script, its thread-local storage is the very object
//! that the program was linked from. How what they made is compared is each architecture's business.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::{Format, Section, Workshop, fixture, names_index, run, sections, symbols};
use tigerfix::link::{LinkError, LinkOptions, LinkReport, link};
use tigerfix::model::{Package, Referent};
use tigerfix::program::Program;
use tigerfix_core::arch::Arch;
use tigerfix_core::relocate::settle;

/// Where ld's own tables go, relative to the image: out of its way, but within 2 GiB of everything.
const LD_GOT: u64 = 0x2800_0000;
const LD_GOT_PLT: u64 = 0x2810_0000;
const LD_TLS: u64 = 0x2820_0000;

/// How often each relocation type was compared.
pub type Counts = BTreeMap<&'static str, u32>;

/// Prints how often each type was compared, and the sum.
pub fn print(title: &str, counts: &Counts) {
    let total: u32 = counts.values().sum();
    println!("{title}: {total} relocations compared");
    for (name, n) in counts {
        println!("  {n:6} {name}");
    }
}

/// One architecture's tools.
#[derive(Clone, Copy)]
pub struct Tools {
    pub arch: &'static (dyn Arch + Sync),
    pub compiler: &'static str,
    pub ld: &'static str,
    pub emulation: &'static str,
    /// Symbols that a program must have for ld, as distances from the start of ld's GOT.
    pub got_symbols: &'static [(&'static str, u64)],
    /// Relocations that ld may use to write other instructions, and which change nothing else.
    pub hints: &'static [u32],
    /// Types of branches: out of reach they get veneers from tfix, and from ld a complaint.
    pub branches: &'static [&'static str],
}

pub struct Lab {
    pub shop: Workshop,
    pub tools: Tools,
    tls: PathBuf,
}

/// A program and what ld has to know of it.
pub struct TestProgram {
    pub file: Vec<u8>,
    pub pie: bool,
}

impl Lab {
    /// With the thread-local storage of the program compiled.
    pub fn new(tools: Tools, flags: &[&str]) -> Lab {
        let shop = Workshop::new();
        let flags = [&["-c", "-O1"], flags].concat();
        let _ = shop.compile(tools.compiler, "tls.o", &[&fixture("tls.c")], &flags);
        let tls = shop.path("tls.o");
        Lab { shop, tools, tls }
    }

    /// The program, compiled and linked with these flags.
    pub fn program(&self, pie: bool, flags: &[&str]) -> TestProgram {
        let flags = [&["-O1", "-nostdlib", "-fno-stack-protector"], flags].concat();
        let sources = [&fixture("program.c"), &self.tls];
        let file = self.shop.compile(self.tools.compiler, "program", &sources.map(|s| s.as_path()), &flags);
        TestProgram { file, pie }
    }

    pub fn object(&self, source: &str, flags: &[&str]) -> Vec<u8> {
        self.object_by(&[self.tools.compiler], source, flags)
    }

    /// By another compiler than the program: its name, and what it always has to be told.
    pub fn object_by(&self, compiler: &[&str], source: &str, flags: &[&str]) -> Vec<u8> {
        let (name, own) = compiler.split_first().expect("a name");
        self.shop.compile(name, "patch.o", &[&fixture(source)], &[own, &["-c", "-w"], flags].concat())
    }

    pub fn assemble(&self, text: &str, flags: &[&str]) -> Vec<u8> {
        let source = self.shop.write("text.s", text);
        self.shop.compile(self.tools.compiler, "text.o", &[&source], &[&["-c"], flags].concat())
    }

    /// Links with tfix.
    pub fn link_at(&self, program: &TestProgram, objects: &[Vec<u8>], at: Where) -> Result<Image, LinkError> {
        let parsed = Program::parse(&program.file).expect("the compiler's program");
        let inputs: Vec<(String, &[u8])> =
            objects.iter().enumerate().map(|(i, o)| (format!("o{i}.o"), o.as_slice())).collect();
        let base = (!program.pie).then_some(at.image);
        let linked = link(self.tools.arch, &parsed, &inputs, &LinkOptions { base, ..options() })?;
        let mut bytes = vec![0u8; linked.package.image_size() as usize];
        for s in &linked.package.spans {
            bytes[s.offset as usize..][..s.data.len()].copy_from_slice(&s.data);
        }
        if program.pie {
            settle_residue(self.tools.arch, &linked.package, &mut bytes, at);
        } else {
            assert!(linked.package.residue.is_empty(), "nothing is left to settle at a fixed address");
        }
        Ok(Image { at, bytes, report: linked.report, format: Format::of(&program.file) })
    }

    /// Links with GNU ld what tfix linked, at the same addresses. `symbols` are more assignments.
    pub fn gnu_ld(
        &self,
        program: &TestProgram,
        objects: &[Vec<u8>],
        image: &Image,
        symbols: &[(&str, u64)],
    ) -> Vec<u8> {
        let mut script = assignments(program, objects, image);
        for (name, value) in symbols {
            let _ = writeln!(script, "{name} = {value:#x};");
        }
        for (name, offset) in self.tools.got_symbols.iter().filter(|s| symbols.iter().all(|x| x.0 != s.0)) {
            let _ = writeln!(script, "{name} = {:#x};", image.at.image + LD_GOT + offset);
        }
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
                if s.flags & super::SHF_ALLOC != 0 && !placed.contains(&(o as u32, i as u32)) {
                    let _ = write!(script, "o{o}.o({}) ", if is_plain(s) { format!(".t{i}") } else { s.name.clone() });
                }
            }
        }
        script.push_str("tls.o(.note*) tls.o(.eh_frame) tls.o(.comment) tls.o(.text) }\n}\n");
        self.shop.write("script.ld", &script);
        let mut command = Command::new(self.tools.ld);
        command.current_dir(self.shop.path(""));
        command.args([
            "-m",
            self.tools.emulation,
            "-static",
            "--no-relax",
            "--no-warn-rwx-segments",
            "--no-gc-sections",
        ]);
        command.args(["-e", "0", "-T", "script.ld", "-o", "reference"]);
        for (i, o) in objects.iter().enumerate() {
            command.arg(self.shop.write(&format!("o{i}.o"), for_ld(o, self.tools.hints)).file_name().expect("a name"));
        }
        command.arg("tls.o");
        if self.tools.branches.is_empty() {
            run(&mut command);
        } else {
            let said = run(command.arg("--noinhibit-exec"));
            // It stops telling one by one after some.
            let told = said.lines().filter(|l| !l.contains("relocation overflows omitted"));
            for line in told.filter(|l| l.contains("relocation") || l.contains("error")) {
                assert!(self.tools.branches.iter().any(|b| line.contains(&format!("to fit: {b} "))), "ld: {said}");
            }
        }
        std::fs::read(self.shop.path("reference")).expect("ld wrote it")
    }
}

/// Where things lie in one comparison.
#[derive(Clone, Copy, Debug)]
pub struct Where {
    pub bias: u64,
    pub image: u64,
}

/// What tfix made of the objects.
pub struct Image {
    pub at: Where,
    pub bytes: Vec<u8>,
    pub report: LinkReport,
    pub format: Format,
}

impl Image {
    pub fn read(&self, addr: u64, len: usize) -> &[u8] {
        let from = addr.checked_sub(self.at.image).unwrap_or_else(|| panic!("{addr:#x} is not in the image")) as usize;
        self.bytes.get(from..from + len).unwrap_or_else(|| panic!("{addr:#x} is not in the image"))
    }
    /// What the GOT slot at `addr` holds; it must be a slot of one of these kinds.
    pub fn slot(&self, addr: u64, kinds: &[tigerfix::link::SlotKind]) -> Result<u64, String> {
        let found = self.report.got.iter().find(|s| self.at.image + s.offset == addr);
        match found {
            Some(s) if kinds.contains(&s.kind) => Ok(self.format.number(self.read(addr, self.format.address()))),
            Some(s) => Err(format!("the slot at {addr:#x} is {:?}, not {kinds:?}", s.kind)),
            None => Err(format!("no GOT slot at {addr:#x}")),
        }
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

/// What `fix` does once it has chosen a place.
fn settle_residue(arch: &dyn Arch, package: &Package, bytes: &mut [u8], at: Where) {
    for r in &package.residue {
        let howto = arch.howto(r.r_type).expect("residue of a known type");
        let symbol = &package.symbols[r.symbol as usize];
        let s = match symbol.referent {
            Referent::Image(o) => at.image + o,
            Referent::Program(a) => a.0 + at.bias,
            ref other => panic!("`{}` is {other:?}", symbol.name),
        };
        settle(arch, howto, bytes, r.offset, s, r.addend, at.image + r.offset)
            .unwrap_or_else(|e| panic!("{} against `{}`: {e:?}", howto.name, symbol.name));
    }
}

/// Not one of the kinds that mean something to ld by their type.
fn is_plain(s: &Section) -> bool {
    s.kind < 0x7000_0000 || s.name == ".eh_frame"
}

/// A copy of an object for ld: sections get neutral names, nothing is merged, and calls stay as the compiler made them.
fn for_ld(object: &[u8], hints: &[u32]) -> Vec<u8> {
    let mut out = object.to_vec();
    let all = sections(object);
    let table = &all[names_index(object)];
    // Behind the old ones: clang keeps the names of symbols in the same table.
    let mut names = object[table.offset..table.offset + table.size].to_vec();
    for (i, s) in all.iter().enumerate().skip(1) {
        let at = names.len() as u64;
        let name = if is_plain(s) { format!(".t{i}") } else { s.name.clone() };
        names.extend_from_slice(format!("{name}\0").as_bytes());
        s.set(&mut out, super::SH_NAME, at);
        s.set(&mut out, super::SH_FLAGS, s.flags & !(super::SHF_MERGE | super::SHF_STRINGS));
        if s.name == ".eh_frame" {
            s.set(&mut out, super::SH_TYPE, super::SHT_PROGBITS.into());
        }
    }
    for i in 0..all.len() as u32 {
        for r in super::relocations(object, i).iter().filter(|r| hints.contains(&r.kind)) {
            super::clear_type(&mut out, r);
        }
    }
    let at = out.len() as u64;
    table.set(&mut out, super::SH_OFFSET, at);
    table.set(&mut out, super::SH_SIZE, names.len() as u64);
    out.extend_from_slice(&names);
    out
}

/// Symbols that the patch needs and the program (or the image, for COMMON) provides.
fn assignments(program: &TestProgram, objects: &[Vec<u8>], image: &Image) -> String {
    let defined = |s: &&super::Symbol| s.section != 0 && s.info & 15 != super::STT_TLS && !s.name.is_empty();
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

/// ld's output, by address.
pub struct Reference<'a> {
    file: &'a [u8],
    pub sections: Vec<Section>,
    symbols: BTreeMap<String, u64>,
}

impl<'a> Reference<'a> {
    pub fn new(file: &'a [u8]) -> Self {
        let symbols = symbols(file).into_iter().map(|s| (s.name, s.value)).collect();
        Self { file, sections: sections(file), symbols }
    }
    /// A symbol's value, 0 if ld has no such symbol.
    pub fn symbol(&self, name: &str) -> u64 {
        self.symbols.get(name).copied().unwrap_or(0)
    }
    pub fn read(&self, addr: u64, len: usize) -> &'a [u8] {
        let inside = |s: &&Section| {
            s.flags & super::SHF_ALLOC != 0
                && s.kind != super::SHT_NOBITS
                && s.addr <= addr
                && addr + len as u64 <= s.addr + s.size as u64
        };
        let s = self.sections.iter().find(inside).unwrap_or_else(|| panic!("ld has nothing at {addr:#x}"));
        &self.file[s.offset + (addr - s.addr) as usize..][..len]
    }
    /// A word of an address's size.
    pub fn word(&self, addr: u64) -> u64 {
        let format = Format::of(self.file);
        format.number(self.read(addr, format.address()))
    }
}
