//! What the oracle tests share: compiling, and a look at ELF files that owes nothing to the code under test.
#![allow(dead_code)] // every test uses its part

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
        let mut command = Command::new("gcc");
        command.args(flags).arg("-o").arg(self.path(out)).args(sources);
        run(&mut command);
        std::fs::read(self.path(out)).expect("gcc wrote it")
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

/// A section header of a 64-bit little-endian file.
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

/// A relocation with an explicit addend.
#[derive(Clone, Copy, Debug)]
pub struct Rela {
    pub offset: u64,
    pub kind: u32,
    pub symbol: u32,
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
    pub section: u16,
}

pub const SHT_RELA: u32 = 4;
pub const SHT_NOBITS: u32 = 8;
pub const SHT_SYMTAB: u32 = 2;
pub const SHT_PROGBITS: u32 = 1;
pub const SHF_ALLOC: u64 = 2;
pub const SHF_MERGE: u64 = 0x10;
pub const SHF_STRINGS: u64 = 0x20;
pub const STT_TLS: u8 = 6;

fn string(bytes: &[u8], at: usize) -> String {
    let end = bytes[at..].iter().position(|b| *b == 0).expect("a terminated string") + at;
    String::from_utf8(bytes[at..end].to_vec()).expect("UTF-8")
}

/// All section headers.
pub fn sections(file: &[u8]) -> Vec<Section> {
    let at = |from: usize, len: usize| word(&file[from..from + len]);
    let (start, count, names) = (at(40, 8) as usize, at(60, 2) as usize, at(62, 2) as usize);
    let names = at(start + 64 * names + 24, 8) as usize;
    (0..count)
        .map(|i| {
            let h = start + 64 * i;
            Section {
                header: h,
                name: string(file, names + at(h, 4) as usize),
                kind: at(h + 4, 4) as u32,
                flags: at(h + 8, 8),
                addr: at(h + 16, 8),
                offset: at(h + 24, 8) as usize,
                size: at(h + 32, 8) as usize,
                link: at(h + 40, 4) as u32,
                info: at(h + 44, 4) as u32,
            }
        })
        .collect()
}

/// The relocations of section number `index`.
pub fn relocations(file: &[u8], index: u32) -> Vec<Rela> {
    let tables = sections(file).into_iter().filter(|s| s.kind == SHT_RELA && s.info == index);
    let entry = |at: usize| {
        let info = word(&file[at + 8..at + 16]);
        Rela {
            offset: word(&file[at..at + 8]),
            kind: info as u32,
            symbol: (info >> 32) as u32,
            addend: word(&file[at + 16..at + 24]) as i64,
            at,
        }
    };
    tables.flat_map(|s| (s.offset..s.offset + s.size).step_by(24).map(entry).collect::<Vec<_>>()).collect()
}

/// The symbol table, by index.
pub fn symbols(file: &[u8]) -> Vec<Symbol> {
    let all = sections(file);
    let Some(table) = all.iter().find(|s| s.kind == SHT_SYMTAB) else { return Vec::new() };
    let names = all[table.link as usize].offset;
    (table.offset..table.offset + table.size)
        .step_by(24)
        .map(|at| Symbol {
            name: string(file, names + word(&file[at..at + 4]) as usize),
            info: file[at + 4],
            section: word(&file[at + 6..at + 8]) as u16,
            value: word(&file[at + 8..at + 16]),
            size: word(&file[at + 16..at + 24]),
        })
        .collect()
}
