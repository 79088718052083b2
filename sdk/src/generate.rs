//! `gen`: patch objects and the program become a package. Offline; all that can be decided without a target is decided
//! here, and explained when the answer is no.

use crate::arch::{self, AnyArch, UnsupportedArch};
use crate::decoder::CapstoneDecoder;
use crate::{debug, libraries};
use std::collections::BTreeSet;
use std::path::Path;
use tigerfix_core::error::{Class, Explain};
use tigerfix_core::judge::{JudgeError, JudgeOptions, Verdict, judge};
use tigerfix_core::link::{LinkError, LinkOptions, LinkReport, link};
use tigerfix_core::model::Package;
use tigerfix_core::package::{self, PackageError};
use tigerfix_core::program::{Program, ProgramError, ident_of};

/// Why no package was made. Each variant is the error of one stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The program.
    #[error("{0}")]
    Program(#[from] ProgramError),
    /// The debug file.
    #[error("debug file: {0}")]
    DebugFile(#[source] ProgramError),
    /// No back end for the program.
    #[error("{0}")]
    Arch(#[from] UnsupportedArch),
    /// The architecture that was asked for is not the program's.
    #[error("the program is for {program}, not {asked}")]
    ArchMismatch {
        /// The program's.
        program: &'static str,
        /// The one that was asked for.
        asked: &'static str,
    },
    /// This build can't disassemble for the back end.
    #[error("this build has no disassembler for {arch}")]
    NoDecoder {
        /// Name of the back end.
        arch: &'static str,
    },
    /// Linking.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// A function may not be replaced.
    #[error("{0}")]
    Judge(#[from] JudgeError),
    /// The package can't be written.
    #[error("{0}")]
    Package(#[from] PackageError),
}

impl Explain for GenerateError {
    fn rule(&self) -> &'static str {
        match self {
            GenerateError::Program(e) | GenerateError::DebugFile(e) => e.rule(),
            GenerateError::Arch(e) => e.rule(),
            GenerateError::ArchMismatch { .. } => "architecture-mismatch",
            GenerateError::NoDecoder { .. } => "no-disassembler",
            GenerateError::Link(e) => e.rule(),
            GenerateError::Judge(e) => e.rule(),
            GenerateError::Package(e) => e.rule(),
        }
    }
    fn class(&self) -> Class {
        match self {
            GenerateError::Program(e) | GenerateError::DebugFile(e) => e.class(),
            GenerateError::Link(e) => e.class(),
            GenerateError::Judge(e) => e.class(),
            _ => Class::BadInput,
        }
    }
    fn hint(&self) -> Option<&'static str> {
        match self {
            GenerateError::Program(e) | GenerateError::DebugFile(e) => e.hint(),
            GenerateError::ArchMismatch { .. } => Some("leave out --arch, tfix then takes the program's"),
            GenerateError::Link(e) => e.hint(),
            GenerateError::Judge(e) => e.hint(),
            GenerateError::Package(e) => e.hint(),
            GenerateError::Arch(_) | GenerateError::NoDecoder { .. } => None,
        }
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The package.
    pub package: Package,
    /// Its file.
    pub bytes: Vec<u8>,
    /// What the linker did.
    pub report: LinkReport,
    /// What the judge found.
    pub verdict: Verdict,
}

/// A job for `gen`.
pub struct Generate<'a> {
    program_path: &'a Path,
    program: &'a [u8],
    objects: Vec<(String, &'a [u8])>,
    debug_file: Option<&'a [u8]>,
    sysroot: Option<&'a Path>,
    arch: Option<AnyArch>,
    link: LinkOptions<'a>,
    judge: JudgeOptions,
}

impl<'a> Generate<'a> {
    /// A patch for the program at `path`, whose contents are `data`. The path gives the file name and, for programs of
    /// this machine, says where to look for the libraries that it needs.
    #[must_use]
    pub fn new<P: AsRef<Path> + ?Sized>(path: &'a P, data: &'a [u8]) -> Generate<'a> {
        let program_path = path.as_ref();
        let file = program_path.file_name().map_or(String::new(), |f| f.to_string_lossy().into_owned());
        Generate {
            program_path,
            program: data,
            objects: Vec::new(),
            debug_file: None,
            sysroot: None,
            arch: None,
            link: LinkOptions { name: "patch".into(), program_file: file, ..LinkOptions::default() },
            judge: JudgeOptions::strict(),
        }
    }

    /// Adds a patch object.
    #[must_use]
    pub fn object(mut self, name: impl Into<String>, data: &'a [u8]) -> Self {
        self.objects.push((name.into(), data));
        self
    }
    /// Symbols and DWARF from a separate debug file.
    #[must_use]
    pub fn debug_file(mut self, data: Option<&'a [u8]>) -> Self {
        self.debug_file = data;
        self
    }
    /// Where the target's files (libraries, debug files) lie on this machine, if it is not the target itself.
    #[must_use]
    pub fn sysroot(mut self, sysroot: Option<&'a Path>) -> Self {
        self.sysroot = sysroot;
        self
    }
    /// Insists on an architecture.
    #[must_use]
    pub fn arch(mut self, arch: Option<AnyArch>) -> Self {
        self.arch = arch;
        self
    }
    /// Name of the package.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.link.name = name.into();
        self
    }
    /// Description of the package.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.link.description = text.into();
        self
    }
    /// Function `new` of the patch replaces `old` (or `file.c:old`) of the program.
    #[must_use]
    pub fn replace(mut self, new: impl Into<String>, old: impl Into<String>) -> Self {
        self.link.replace.push((new.into(), old.into()));
        self
    }
    /// `name` in the patch means the program's `file.c:name`.
    #[must_use]
    pub fn bind(mut self, name: impl Into<String>, target: impl Into<String>) -> Self {
        self.link.bind.push((name.into(), target.into()));
        self
    }
    /// Load address of the image.
    #[must_use]
    pub fn base(mut self, base: Option<u64>) -> Self {
        self.link.base = base;
        self
    }
    /// Alignment of the image's spans, where it is not to be the largest page size of the architecture.
    #[must_use]
    pub fn page_size(mut self, size: Option<u64>) -> Self {
        self.link.page_size = size;
        self
    }
    /// What the user lets pass.
    #[must_use]
    pub fn allow(mut self, judge: JudgeOptions) -> Self {
        self.judge = judge;
        self
    }

    /// Makes the package.
    ///
    /// # Errors
    /// [`GenerateError`]
    pub fn run(mut self) -> Result<Generated, GenerateError> {
        let ident = ident_of(self.program)?;
        let arch = arch::for_ident(&ident)?;
        if let Some(asked) = self.arch
            && !arch::is_meant(asked, arch)
        {
            return Err(GenerateError::ArchMismatch { program: arch.name(), asked: asked.name() });
        }
        let decoder = CapstoneDecoder::for_arch(arch).ok_or(GenerateError::NoDecoder { arch: arch.name() })?;
        let mut program = Program::parse(self.program)?;
        let installed = match self.debug_file {
            None => debug::installed_debug_file(&program.identity, self.sysroot).and_then(|p| std::fs::read(p).ok()),
            Some(_) => None,
        };
        let debug_file = self.debug_file.or(installed.as_deref());
        if let Some(data) = debug_file {
            program.add_debug_file(data).map_err(GenerateError::DebugFile)?;
        }
        let mut info = debug::load(self.program);
        if info.sections.is_empty()
            && let Some(data) = debug_file
        {
            info = debug::load(data);
        }
        program.attach_debug_info(info);

        let wanted = wanted_imports(&program, &self.objects);
        let found = libraries::exports(&program, self.program, self.program_path, self.sysroot, &wanted);
        self.link.known_imports = found.names;
        self.link.imports_known = found.complete;
        self.link.demangle = Some(&demangle);
        let linked = link(arch, &program, &self.objects, &self.link)?;
        let mut package = linked.package;
        let verdict = judge(arch, &decoder, &program, &mut package, &self.judge)?;
        package.warnings.extend(verdict.warnings.iter().map(|w| w.to_string()));
        package::normalize(&mut package);
        let bytes = package::write(&package)?;
        Ok(Generated { package, bytes, report: linked.report, verdict })
    }
}

/// Names that the patch needs and does not define, and that the program neither defines nor imports.
fn wanted_imports<'d>(program: &Program<'_>, objects: &[(String, &'d [u8])]) -> BTreeSet<&'d str> {
    use object::{Object as _, ObjectSymbol as _};
    let mut wanted = BTreeSet::new();
    let mut defined = BTreeSet::new();
    // An object that can't be read is the linker's to complain about.
    for file in objects.iter().filter_map(|o| object::File::parse(o.1).ok()) {
        for symbol in file.symbols().filter(|s| s.is_global()) {
            let Ok(name) = symbol.name() else { continue };
            if symbol.is_undefined() {
                wanted.insert(name)
            } else {
                defined.insert(name)
            };
        }
    }
    for symbol in &program.symbols {
        wanted.remove(symbol.name);
    }
    wanted.retain(|name| !defined.contains(name) && !program.undefined.contains(name));
    wanted
}

/// A readable name for a mangled one (C++ and Rust).
fn demangle(name: &str) -> Option<String> {
    if let Ok(d) = rustc_demangle::try_demangle(name) {
        return Some(format!("{d:#}"));
    }
    cpp_demangle::Symbol::new(name).ok()?.demangle().ok()
}
