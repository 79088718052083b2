//! What the oracle tests share: compiling, and a look at ELF files that owes nothing to the code under test.
#![allow(dead_code)] // every test uses its part

pub mod oracle;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A fixture of the oracles.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oracle").join(name)
}

/// A temporary directory to compile in.
pub struct Workshop {
    dir: tempfile::TempDir,
}

impl Workshop {
    /// An empty one.
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("tfix-oracle-").tempdir().expect("temporary directory") }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// Runs gcc to make `out`; its bytes.
    pub fn gcc(&self, out: &str, sources: &[&Path], flags: &[&str]) -> Vec<u8> {
        self.compile("gcc", out, sources, flags)
    }

    /// Runs a compiler to make `out`; its bytes.
    pub fn compile(&self, compiler: &str, out: &str, sources: &[&Path], flags: &[&str]) -> Vec<u8> {
        let mut command = Command::new(compiler);
        command.args(flags).arg("-o").arg(self.path(out)).args(sources);
        run(&mut command);
        std::fs::read(self.path(out)).expect("the compiler wrote it")
    }

    /// Assembles a text.
    pub fn assemble(&self, text: &str) -> Vec<u8> {
        let source = self.write("text.s", text);
        self.gcc("text.o", &[&source], &["-c"])
    }
}

/// Runs a command that must succeed; what it said on standard error.
pub fn run(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command:?}\n{said}");
    said
}

/// Reads a little-endian number of 1 to 8 bytes.
pub fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |acc, b| acc << 8 | u64::from(*b))
}

/// Class and byte order of an ELF file, and what its structures look like.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub is_64: bool,
    pub big: bool,
}

impl Format {
    /// That of this file.
    pub fn of(file: &[u8]) -> Format {
        Format { is_64: file[4] == 2, big: file[5] == 2 }
    }
    /// Reads a number of 1 to 8 bytes.
    pub fn number(self, bytes: &[u8]) -> u64 {
        if self.big { bytes.iter().fold(0, |acc, b| acc << 8 | u64::from(*b)) } else { word(bytes) }
    }
    /// Writes one.
    pub fn put(self, bytes: &mut [u8], value: u64) {
        let n = bytes.len();
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = (value >> (8 * if self.big { n - 1 - i } else { i })) as u8;
        }
    }
    /// Size of an address, bytes.
    pub fn address(self) -> usize {
        if self.is_64 { 8 } else { 4 }
    }
    /// Size of a section header.
    fn section(self) -> usize {
        if self.is_64 { 64 } else { 40 }
    }
    /// Place and length of a section header's field: its place in either class, and whether it is as long as an address.
    pub fn section_field(self, of_64: usize, of_32: usize, long: bool) -> (usize, usize) {
        (if self.is_64 { of_64 } else { of_32 }, if long { self.address() } else { 4 })
    }
}

/// Fields of a section header: offset with 64 bits, with 32, and whether they are as long as an address.
pub const SH_NAME: (usize, usize, bool) = (0, 0, false);
pub const SH_TYPE: (usize, usize, bool) = (4, 4, false);
pub const SH_FLAGS: (usize, usize, bool) = (8, 8, true);
pub const SH_ADDR: (usize, usize, bool) = (16, 12, true);
pub const SH_OFFSET: (usize, usize, bool) = (24, 16, true);
pub const SH_SIZE: (usize, usize, bool) = (32, 20, true);
pub const SH_LINK: (usize, usize, bool) = (40, 24, false);
pub const SH_INFO: (usize, usize, bool) = (44, 28, false);

/// A section header.
#[derive(Clone, Debug)]
pub struct Section {
    /// Where the header itself lies in the file.
    pub header: usize,
    pub name: String,
    pub kind: u32,
    pub flags: u64,
    pub addr: u64,
    pub offset: usize,
    pub size: usize,
    pub link: u32,
    pub info: u32,
}

impl Section {
    /// Changes a field of the header in the file.
    pub fn set(&self, file: &mut [u8], (of_64, of_32, long): (usize, usize, bool), value: u64) {
        let format = Format::of(file);
        let (at, len) = format.section_field(of_64, of_32, long);
        format.put(&mut file[self.header + at..self.header + at + len], value);
    }
}

/// A relocation.
#[derive(Clone, Copy, Debug)]
pub struct Rela {
    pub offset: u64,
    pub kind: u32,
    pub symbol: u32,
    /// 0 where the file keeps it in the field.
    pub addend: i64,
    /// Where the entry lies in the file.
    pub at: usize,
}

/// A symbol.
#[derive(Clone, Debug)]
pub struct Symbol {
    pub name: String,
    pub value: u64,
    pub size: u64,
    pub info: u8,
    pub other: u8,
    pub section: u16,
}

pub const SHT_RELA: u32 = 4;
pub const SHT_REL: u32 = 9;
pub const SHT_NOBITS: u32 = 8;
pub const SHT_SYMTAB: u32 = 2;
pub const SHT_PROGBITS: u32 = 1;
pub const SHF_ALLOC: u64 = 2;
pub const SHF_MERGE: u64 = 0x10;
pub const SHF_STRINGS: u64 = 0x20;
pub const STT_TLS: u8 = 6;
const EM_MIPS: u64 = 8;

fn string(bytes: &[u8], at: usize) -> String {
    let end = bytes[at..].iter().position(|b| *b == 0).expect("a terminated string") + at;
    String::from_utf8(bytes[at..end].to_vec()).expect("UTF-8")
}

/// Index of the section with the sections' names.
pub fn names_index(file: &[u8]) -> usize {
    let (format, at) = (Format::of(file), if file[4] == 2 { 62 } else { 50 });
    format.number(&file[at..at + 2]) as usize
}

/// All section headers.
pub fn sections(file: &[u8]) -> Vec<Section> {
    let format = Format::of(file);
    let at = |from: usize, len: usize| format.number(&file[from..from + len]);
    let (start, count) =
        if format.is_64 { (at(40, 8) as usize, at(60, 2) as usize) } else { (at(32, 4) as usize, at(48, 2) as usize) };
    let field = |i: usize, (of_64, of_32, long): (usize, usize, bool)| {
        let (from, len) = format.section_field(of_64, of_32, long);
        at(start + format.section() * i + from, len)
    };
    let names = field(names_index(file), SH_OFFSET) as usize;
    (0..count)
        .map(|i| Section {
            header: start + format.section() * i,
            name: string(file, names + field(i, SH_NAME) as usize),
            kind: field(i, SH_TYPE) as u32,
            flags: field(i, SH_FLAGS),
            addr: field(i, SH_ADDR),
            offset: field(i, SH_OFFSET) as usize,
            size: field(i, SH_SIZE) as usize,
            link: field(i, SH_LINK) as u32,
            info: field(i, SH_INFO) as u32,
        })
        .collect()
}

/// The relocations of section number `index`. Types of 64-bit MIPS are `type | type2 << 8 | type3 << 16`.
pub fn relocations(file: &[u8], index: u32) -> Vec<Rela> {
    let format = Format::of(file);
    let split = format.is_64 && format.number(&file[18..20]) == EM_MIPS;
    let n = format.address();
    let mut out = Vec::new();
    for s in sections(file).into_iter().filter(|s| matches!(s.kind, SHT_RELA | SHT_REL) && s.info == index) {
        let step = if s.kind == SHT_RELA { 3 * n } else { 2 * n };
        for at in (s.offset..s.offset + s.size).step_by(step) {
            let number = |from: usize| format.number(&file[at + from..at + from + n]);
            let info = number(n);
            let (kind, symbol) = match (format.is_64, split) {
                (true, true) => {
                    let types = [15, 14, 13].map(|i| u32::from(file[at + i]));
                    (types[0] | types[1] << 8 | types[2] << 16, format.number(&file[at + 8..at + 12]) as u32)
                }
                (true, false) => (info as u32, (info >> 32) as u32),
                (false, _) => (info as u32 & 0xff, info as u32 >> 8),
            };
            let addend = match (s.kind, format.is_64) {
                (SHT_REL, _) => 0,
                (_, true) => number(16) as i64,
                (_, false) => i64::from(number(8) as i32),
            };
            out.push(Rela { offset: number(0), kind, symbol, addend, at });
        }
    }
    out
}

/// Makes a relocation of a 32-bit file, or of 64-bit MIPS, one that does nothing.
pub fn clear_type(file: &mut [u8], r: &Rela) {
    set_type(file, r, 0);
}

/// Gives a relocation of a 32-bit file, or of 64-bit MIPS, another type.
pub fn set_type(file: &mut [u8], r: &Rela, kind: u32) {
    let format = Format::of(file);
    match (format.is_64, format.big) {
        (true, _) => [15, 14, 13].iter().enumerate().for_each(|(i, at)| file[r.at + at] = (kind >> (8 * i)) as u8),
        (false, true) => file[r.at + 7] = kind as u8,
        (false, false) => file[r.at + 4] = kind as u8,
    }
}

/// The symbol table, by index.
pub fn symbols(file: &[u8]) -> Vec<Symbol> {
    let format = Format::of(file);
    let all = sections(file);
    let Some(table) = all.iter().find(|s| s.kind == SHT_SYMTAB) else { return Vec::new() };
    let names = all[table.link as usize].offset;
    // name, value, size, info (other follows), section
    let (step, value, size, info, section) = if format.is_64 { (24, 8, 16, 4, 6) } else { (16, 4, 8, 12, 14) };
    let n = format.address();
    (table.offset..table.offset + table.size)
        .step_by(step)
        .map(|at| {
            let number = |from: usize, len: usize| format.number(&file[at + from..at + from + len]);
            Symbol {
                name: string(file, names + number(0, 4) as usize),
                info: file[at + info],
                other: file[at + info + 1],
                section: number(section, 2) as u16,
                value: number(value, n),
                size: number(size, n),
            }
        })
        .collect()
}
