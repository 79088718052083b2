//! What the libraries define that a program needs, as far as they lie on this machine: it turns a slip of the pen in a
//! patch into an error of `gen` instead of one of `fix`.

use object::{Object as _, ObjectSymbol as _};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tigerfix_core::program::Program;

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

/// Collects what the libraries of `program` define, the loader included.
pub(crate) fn exports(program: &Program<'_>, data: &[u8], path: &Path) -> Exports {
    let mut out = Exports { names: BTreeSet::new(), complete: program.dynamic };
    let Ok(file) = object::File::parse(data) else { return Exports::default() };
    if !program.dynamic {
        return Exports::default();
    }
    let dirs = directories(path);
    let mut todo = needed(&file);
    todo.extend(program.section(".interp").map(|s| text(s.data)));
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn needed(file: &object::File<'_>) -> Vec<String> {
    let Ok(libraries) = file.import_libraries() else { return Vec::new() };
    libraries.filter_map(|l| Some(text(l.ok()?.name()))).collect()
}

fn directories(program: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = program.parent().map(Path::to_owned).into_iter().collect();
    if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
        dirs.extend(std::env::split_paths(&path));
    }
    for root in ROOTS {
        dirs.push(root.into());
        // Multi-architecture directories: /usr/lib/TRIPLET.
        let children = std::fs::read_dir(root).into_iter().flatten().flatten();
        dirs.extend(children.filter(|c| c.file_name().to_string_lossy().contains("-linux-gnu")).map(|c| c.path()));
    }
    dirs
}

/// The library's contents, if a file of that name and of the program's machine lies in one of `dirs`.
fn read_library(dirs: &[PathBuf], name: &str, program: &object::File<'_>) -> Option<Vec<u8>> {
    let paths: Vec<PathBuf> =
        if name.contains('/') { vec![name.into()] } else { dirs.iter().map(|d| d.join(name)).collect() };
    paths.iter().find_map(|p| {
        let bytes = std::fs::read(p).ok()?;
        let same = object::File::parse(bytes.as_slice())
            .is_ok_and(|f| f.architecture() == program.architecture() && f.endianness() == program.endianness());
        same.then_some(bytes)
    })
}
