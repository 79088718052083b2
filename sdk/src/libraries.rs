//! What the libraries define that a program needs, as far as they lie on this machine: it turns a slip of the pen in a
//! patch into an error of `gen` instead of one of `fix`.

use object::{Object as _, ObjectSymbol as _};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use tigerfix_core::arch::ElfIdent;
use tigerfix_core::field::load;
use tigerfix_core::program::{Program, ident_of};

/// Where loaders look by default; the architecture's own directories are found below these.
const ROOTS: &[&str] = &["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"];

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Exports {
    /// Names that the libraries define.
    pub(crate) names: BTreeSet<String>,
    /// All needed libraries were found and read.
    pub(crate) complete: bool,
}

/// Looks for `wanted` in what the libraries of `program` define, the loader included. Only if some of it is nowhere, all
/// names are collected: then there is something to explain. `sysroot` is where the target's files lie on this machine.
pub(crate) fn exports(
    program: &Program<'_>,
    data: &[u8],
    path: &Path,
    sysroot: Option<&Path>,
    wanted: &BTreeSet<&str>,
) -> Exports {
    if wanted.is_empty() || !program.dynamic {
        return Exports::default();
    }
    let Ok(file) = object::File::parse(data) else { return Exports::default() };
    let dirs = Places::new(path, sysroot);
    let mut roots = needed(&file);
    roots.extend(program.section(".interp").map(|s| text(s.data)));
    if let Some(names) = find(&dirs, roots.clone().into(), &program.ident, wanted) {
        return Exports { names, complete: false };
    }
    let mut out = Exports { names: BTreeSet::new(), complete: true };
    let mut todo = roots;
    let mut seen = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        match read_library(&dirs, &name, &file) {
            Some(bytes) => {
                if let Ok(library) = object::File::parse(bytes.as_slice()) {
                    let defined = library.dynamic_symbols().filter(|s| !s.is_undefined() && s.is_global());
                    out.names.extend(defined.filter_map(|s| s.name().ok()).map(str::to_owned));
                    todo.extend(needed(&library));
                }
            }
            None => out.complete = false,
        }
    }
    out
}

/// All of `wanted`, if the libraries have it; they are read only in part, and only until all is found.
fn find(
    dirs: &Places,
    mut todo: VecDeque<String>,
    ident: &ElfIdent,
    wanted: &BTreeSet<&str>,
) -> Option<BTreeSet<String>> {
    let mut missing: BTreeSet<&[u8]> = wanted.iter().map(|w| w.as_bytes()).collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = todo.pop_front() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let tables = dirs.of(&name).iter().find_map(|p| Tables::read(&File::open(p).ok()?, ident))?;
        missing.retain(|name| !tables.defined.contains(*name));
        if missing.is_empty() {
            return Some(wanted.iter().map(|w| (*w).to_owned()).collect());
        }
        todo.extend(tables.needed);
    }
    None
}

// ELF specification: section types, and the tag of needed libraries.
const SHT_DYNAMIC: u64 = 6;
const SHT_DYNSYM: u64 = 11;
const DT_NEEDED: u64 = 1;
/// Larger tables are not read.
const MAX_TABLE: u64 = 64 << 20;

/// What the dynamic tables of a library say.
struct Tables {
    defined: HashSet<Vec<u8>>,
    needed: Vec<String>,
}

impl Tables {
    /// `None`: another kind of file, or one without section headers.
    fn read(file: &File, ident: &ElfIdent) -> Option<Tables> {
        let mut header = [0u8; 64];
        file.read_exact_at(&mut header, 0).ok()?;
        let own = ident_of(&header).ok()?;
        if (own.is_64, own.endian, own.machine) != (ident.is_64, ident.endian, ident.machine) {
            return None;
        }
        // Offsets: ELF specification, Ehdr, Shdr, Sym and Dyn of both classes.
        let get = |b: &[u8], at: usize, len: usize| Some(load(b.get(at..at + len)?, ident.endian));
        let word = if ident.is_64 { 8 } else { 4 };
        let (e_shoff, counts) = if ident.is_64 { (40, 58) } else { (32, 46) };
        let size = get(&header, counts, 2)? as usize;
        let count = get(&header, counts + 2, 2)? as usize;
        let read = |at: u64, len: u64| {
            let mut bytes = vec![0u8; usize::try_from(len).ok().filter(|_| len <= MAX_TABLE)?];
            file.read_exact_at(&mut bytes, at).ok()?;
            Some(bytes)
        };
        let headers = read(get(&header, e_shoff, word)?, (size * count) as u64)?;
        let (offset, link) = if ident.is_64 { (24, 40) } else { (16, 24) };
        let contents = |h: &[u8]| read(get(h, offset, word)?, get(h, offset + word, word)?);
        let section = |kind| {
            let h = headers.chunks_exact(size.max(1)).find(|h| get(h, 4, 4) == Some(kind))?;
            let strings = headers.chunks_exact(size).nth(get(h, link, 4)? as usize)?;
            Some((contents(h)?, contents(strings)?))
        };
        let name = |strings: &[u8], at: u64| {
            let rest = strings.get(usize::try_from(at).ok()?..)?;
            Some(rest[..rest.iter().position(|b| *b == 0)?].to_vec())
        };
        let (symbols, strings) = section(SHT_DYNSYM)?;
        let (length, info, shndx) = if ident.is_64 { (24, 4, 6) } else { (16, 12, 14) };
        let defined = symbols
            .chunks_exact(length)
            .filter(|s| s[info] >> 4 != 0 && get(s, shndx, 2) != Some(0))
            .filter_map(|s| name(&strings, get(s, 0, 4)?))
            .collect();
        let needed = section(SHT_DYNAMIC).map_or(Vec::new(), |(entries, strings)| {
            entries
                .chunks_exact(2 * word)
                .filter(|e| get(e, 0, word) == Some(DT_NEEDED))
                .filter_map(|e| Some(String::from_utf8_lossy(&name(&strings, get(e, word, word)?)?).into_owned()))
                .collect()
        });
        Some(Tables { defined, needed })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn needed(file: &object::File<'_>) -> Vec<String> {
    let Ok(libraries) = file.import_libraries() else { return Vec::new() };
    libraries.filter_map(|l| Some(text(l.ok()?.name()))).collect()
}

/// Where libraries are looked for.
struct Places {
    dirs: Vec<PathBuf>,
    sysroot: Option<PathBuf>,
}

impl Places {
    fn new(program: &Path, sysroot: Option<&Path>) -> Places {
        let mut dirs: Vec<PathBuf> = program.parent().map(Path::to_owned).into_iter().collect();
        // The variable speaks of this machine.
        if let (Some(path), None) = (std::env::var_os("LD_LIBRARY_PATH"), sysroot) {
            dirs.extend(std::env::split_paths(&path));
        }
        for root in ROOTS {
            let root = below(sysroot, root);
            // Multi-architecture directories: /usr/lib/TRIPLET.
            let children = std::fs::read_dir(&root).into_iter().flatten().flatten();
            let triplets = children.filter(|c| c.file_name().to_string_lossy().contains("-linux-gnu"));
            let triplets: Vec<PathBuf> = triplets.map(|c| c.path()).collect();
            dirs.push(root);
            dirs.extend(triplets);
        }
        Places { dirs, sysroot: sysroot.map(Path::to_owned) }
    }

    /// Where a library of this name may lie.
    fn of(&self, name: &str) -> Vec<PathBuf> {
        if name.contains('/') {
            return vec![below(self.sysroot.as_deref(), name)];
        }
        self.dirs.iter().map(|d| d.join(name)).collect()
    }
}

/// A path of the target on this machine.
pub(crate) fn below(sysroot: Option<&Path>, path: &str) -> PathBuf {
    sysroot.map_or_else(|| path.into(), |root| root.join(path.trim_start_matches('/')))
}

/// The library's contents, if a file of that name and of the program's machine lies in one of `dirs`.
fn read_library(dirs: &Places, name: &str, program: &object::File<'_>) -> Option<Vec<u8>> {
    dirs.of(name).iter().find_map(|p| {
        let bytes = std::fs::read(p).ok()?;
        let same = object::File::parse(bytes.as_slice())
            .is_ok_and(|f| f.architecture() == program.architecture() && f.endianness() == program.endianness());
        same.then_some(bytes)
    })
}
