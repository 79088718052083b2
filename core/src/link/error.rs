//! Why a patch can't be linked.

use crate::addr::LinkAddr;
use crate::error::{Class, Explain};
use crate::field::FieldError;
use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::fmt;

/// A place in a patch object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File name of the object.
    pub object: String,
    /// Section.
    pub section: String,
    /// Offset in the section, bytes.
    pub offset: u64,
    /// The function or object that holds it.
    pub within: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}+{:#x}", self.object, self.section, self.offset)?;
        self.within.as_ref().map_or(Ok(()), |w| write!(f, " (in `{w}`)"))
    }
}

/// One of several symbols that a name may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Name as in the symbol table.
    pub name: String,
    /// The source file (program) or object (patch) that it comes from, where that is known.
    pub file: Option<String>,
    /// Link-time address in the program; `None` in a patch object.
    pub address: Option<LinkAddr>,
    /// Size, bytes (0: unknown).
    pub size: u64,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file}:{}", self.name)?,
            None => f.write_str(&self.name)?,
        }
        if let Some(a) = self.address {
            write!(f, " at {a}")?;
        }
        if self.size != 0 { write!(f, " ({} bytes)", self.size) } else { Ok(()) }
    }
}

/// A number in hexadecimal with its sign, where `{:#x}` would print its two's complement.
struct Hex(i128);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:#x}", if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs())
    }
}

fn list(candidates: &[Candidate]) -> String {
    let texts: Vec<String> = candidates.iter().map(|c| format!("{c}")).collect();
    texts.join(", ")
}

fn meant(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or_else(String::new, |s| format!("; did you mean `{s}`?"))
}

fn others(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; also undefined: {}", names.join(", ")) }
}

/// Why a patch can't be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No patch object was given.
    #[error("there is no patch object")]
    NoObjects,
    /// Not an ELF file.
    #[error("{object}: not an ELF file ({what})")]
    NotElf {
        /// The object.
        object: String,
        /// What it is instead, as far as one can tell.
        what: &'static str,
    },
    /// A static library.
    #[error("{object}: an archive (static library), not a relocatable object")]
    Archive {
        /// The object.
        object: String,
    },
    /// Compiler's intermediate code instead of machine code.
    #[error("{object}: holds intermediate code for link-time optimisation, no machine code")]
    Lto {
        /// The object.
        object: String,
    },
    /// An ELF file, but not a relocatable object.
    #[error("{object}: an ELF file of type {e_type}, not a relocatable object")]
    WrongType {
        /// The object.
        object: String,
        /// `e_type`
        e_type: u16,
    },
    /// For another processor, class, byte order or ABI.
    #[error("{object}: {why}")]
    WrongMachine {
        /// The object.
        object: String,
        /// A clause.
        why: String,
    },
    /// An object whose ABI does not go with the program's.
    #[error("{object}: {why}")]
    AbiMismatch {
        /// The object.
        object: String,
        /// A clause.
        why: String,
        /// How to compile it.
        hint: &'static str,
    },
    /// A function in an instruction set that the back end does not handle.
    #[error("{object}: `{symbol}` {why}")]
    UnsupportedIsa {
        /// The object, or the program.
        object: String,
        /// The function.
        symbol: String,
        /// A clause.
        why: &'static str,
    },
    /// A table of the object is broken or cut short.
    #[error("{object}: broken object: {what}: {why}")]
    Broken {
        /// The object.
        object: String,
        /// The table.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A section that is both writable and executable.
    #[error("{object}: section {section} is both writable and executable")]
    WritableCode {
        /// The object.
        object: String,
        /// The section.
        section: String,
    },
    /// Constructors or destructors.
    #[error("{object}: section {section} holds constructors or destructors, which nobody would call")]
    Constructors {
        /// The object.
        object: String,
        /// The section.
        section: String,
    },
    /// New thread-local variables.
    #[error("{object}: {what} is a new thread-local variable; running threads have no room for it")]
    NewThreadLocal {
        /// The object.
        object: String,
        /// The section or symbol.
        what: String,
    },
    /// Tables of exception handlers.
    #[error("{object}: section {section} holds exception handlers, which can't be registered in a running process")]
    ExceptionTable {
        /// The object.
        object: String,
        /// The section.
        section: String,
    },
    /// An indirect function defined by the patch.
    #[error("{object}: `{symbol}` is an indirect function (IFUNC); a patch can't define one")]
    PatchIfunc {
        /// The object.
        object: String,
        /// The function.
        symbol: String,
    },
    /// An alignment that is no power of two or that the image can't honour.
    #[error("{object}: {what} asks for an alignment of {align:#x} bytes; it has to be a power of two up to {max:#x}")]
    Alignment {
        /// The object.
        object: String,
        /// The section or symbol.
        what: String,
        /// The alignment, bytes.
        align: u64,
        /// The largest one possible.
        max: u64,
    },
    /// Some processors get the code wrong wherever it is put.
    #[error("{object}: {section}: {what}, at image offset {offset:#x}")]
    Hazard {
        /// The object.
        object: String,
        /// The section.
        section: String,
        /// What the code is.
        what: &'static str,
        /// Where it is.
        offset: u64,
    },
    /// A function without a landing pad would be reached through a register, in a program that is guarded.
    #[error("{place}: `{symbol}` at {to} would be reached through a register, and has no landing pad for that")]
    NoLandingPad {
        /// The function.
        symbol: String,
        /// Its address.
        to: LinkAddr,
        /// Where it is called.
        place: Box<Place>,
    },
    /// The image would be too large.
    #[error("the patch needs more than {max} bytes of memory ({what})")]
    TooLarge {
        /// What went over the limit.
        what: String,
        /// The limit, bytes.
        max: u64,
    },
    /// Two strong definitions of a symbol.
    #[error("`{symbol}` is defined in both {first} and {second}")]
    DuplicateSymbol {
        /// The symbol.
        symbol: String,
        /// The object that defines it first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A marker that can't be read.
    #[error("{object}: section {section}: {why}")]
    BadMarker {
        /// The object.
        object: String,
        /// The section.
        section: String,
        /// A clause.
        why: String,
    },
    /// The patch objects disagree on the patch's version.
    #[error("{first_object} has PATCH_VERSION \"{first}\", {second_object} has \"{second}\"")]
    VersionConflict {
        /// An object.
        first_object: String,
        /// Its version.
        first: String,
        /// Another object.
        second_object: String,
        /// Its version.
        second: String,
    },
    /// Neither markers nor options nor a common name say what to replace.
    #[error("nothing to replace: no function is marked, and patch and program have no global function in common")]
    NothingToReplace,
    /// The new function does not exist in the patch.
    #[error("the patch does not define a function `{name}`{}", meant(suggestion))]
    NoPatchFunction {
        /// The name in the marker or option.
        name: String,
        /// A name that is much like it.
        suggestion: Option<String>,
    },
    /// The new function's name is not unique in the patch.
    #[error("the patch has several functions `{name}`: {}", list(candidates))]
    AmbiguousPatchFunction {
        /// The name in the marker or option.
        name: String,
        /// All of them.
        candidates: Vec<Candidate>,
    },
    /// The old function does not exist in the program.
    #[error("the program has no function `{name}`{}", meant(suggestion))]
    NoSuchFunction {
        /// The name asked for.
        name: String,
        /// A name that is much like it.
        suggestion: Option<String>,
    },
    /// The old function's name is not unique in the program.
    #[error("the program has several functions `{name}`: {}", list(candidates))]
    AmbiguousFunction {
        /// The name asked for.
        name: String,
        /// All of them.
        candidates: Vec<Candidate>,
    },
    /// The old function is only imported by the program.
    #[error("the program only imports `{name}`; another module defines it")]
    ImportedFunction {
        /// The function.
        name: String,
    },
    /// The old function is an IFUNC.
    #[error("`{name}` is an indirect function (IFUNC) in the program: its code is chosen at start")]
    IfuncFunction {
        /// The function.
        name: String,
    },
    /// The old function has no bytes in the file, or lies in data.
    #[error("the program's file holds no code for `{name}` at {address}")]
    NoCode {
        /// The function.
        name: String,
        /// Where it should be.
        address: LinkAddr,
    },
    /// One old function with two new ones.
    #[error("`{old}` would be replaced twice, by `{first}` and by `{second}`")]
    DuplicateReplacement {
        /// The old function.
        old: String,
        /// A new function.
        first: String,
        /// Another one.
        second: String,
    },
    /// Patch and program both define an initialised global object.
    #[error("{object}: defines `{symbol}`, which the program defines too; a patch can't give new contents to it")]
    RedefinedData {
        /// The object.
        object: String,
        /// The symbol.
        symbol: String,
    },
    /// An object that is larger in the patch than in the program.
    #[error("{object}: `{symbol}` has {patch} bytes in the patch, but {program} bytes in the program")]
    DataSize {
        /// The object.
        object: String,
        /// The symbol.
        symbol: String,
        /// Size in the patch, bytes.
        patch: u64,
        /// Size in the program, bytes.
        program: u64,
    },
    /// Code that reaches an object, for which the program's stands in, by another way than its name.
    #[error("{place}: reaches `{symbol}` by its place in the patch, but `{symbol}` is the program's object")]
    HiddenReference {
        /// The object.
        symbol: String,
        /// The reference.
        place: Box<Place>,
    },
    /// A name that is a function on one side and data on the other.
    #[error("{object}: `{symbol}` is {patch} in the patch, but {program} in the program")]
    KindMismatch {
        /// The object.
        object: String,
        /// The symbol.
        symbol: String,
        /// What it is in the patch.
        patch: &'static str,
        /// What it is in the program.
        program: &'static str,
    },
    /// A symbol that neither patch nor program defines.
    #[error("{place}: `{symbol}` is undefined{}{}", meant(suggestion), others(more))]
    Undefined {
        /// The symbol.
        symbol: String,
        /// The first reference.
        place: Box<Place>,
        /// A name that is much like it.
        suggestion: Option<String>,
        /// Other undefined symbols.
        more: Vec<String>,
    },
    /// A symbol for which the program has several local definitions.
    #[error("{place}: the program has several local symbols `{symbol}`: {}", list(candidates))]
    AmbiguousSymbol {
        /// The symbol.
        symbol: String,
        /// The first reference.
        place: Box<Place>,
        /// All of them.
        candidates: Vec<Candidate>,
    },
    /// `--bind` with a name that can't be found or that no one asks for.
    #[error("--bind {name}={target}: {why}")]
    BadBind {
        /// The name in the patch.
        name: String,
        /// What it should be bound to.
        target: String,
        /// A clause.
        why: String,
    },
    /// A thread-local variable that the patch can't reach.
    #[error("{place}: thread-local `{symbol}` can't be used: {why}")]
    ThreadLocal {
        /// The symbol.
        symbol: String,
        /// The reference.
        place: Box<Place>,
        /// A clause.
        why: &'static str,
    },
    /// A reference to a section that does not go into the image.
    #[error("{place}: refers to {target}, which is not part of the image")]
    Discarded {
        /// The section or symbol.
        target: String,
        /// The reference.
        place: Box<Place>,
    },
    /// A relocation type that this architecture's back end does not do.
    #[error("{place}: relocation {name} against `{symbol}` is not supported")]
    UnsupportedRelocation {
        /// psABI name, or its number.
        name: String,
        /// The symbol.
        symbol: String,
        /// The field.
        place: Box<Place>,
    },
    /// A relocation section that breaks the psABI's rules.
    #[error("{place}: relocation {name}: {what}")]
    BadRelocation {
        /// psABI name, or its number.
        name: String,
        /// The field.
        place: Box<Place>,
        /// A clause.
        what: &'static str,
    },
    /// Code that works only at addresses that this program can't promise.
    #[error("{place}: relocation {name} against `{symbol}` {why}")]
    NotPositionIndependent {
        /// psABI name.
        name: &'static str,
        /// The symbol.
        symbol: String,
        /// The field.
        place: Box<Place>,
        /// A clause.
        why: &'static str,
    },
    /// Data that code reaches from the program's global pointer, but which is not near it.
    #[error("{place}: relocation {name} against `{symbol}` {why}")]
    SmallData {
        /// psABI name.
        name: &'static str,
        /// The symbol.
        symbol: String,
        /// The field.
        place: Box<Place>,
        /// A clause.
        why: &'static str,
    },
    /// A value that its field can't hold.
    #[error("{place}: relocation {name} against `{symbol}`: {} is not in {}..={}", Hex(*value), Hex(*min), Hex(*max))]
    Overflow {
        /// psABI name.
        name: &'static str,
        /// The symbol.
        symbol: String,
        /// The field.
        place: Box<Place>,
        /// The value.
        value: i128,
        /// Smallest value that fits.
        min: i128,
        /// Largest value that fits.
        max: i128,
    },
    /// A value that breaks its field's alignment.
    #[error("{place}: relocation {name} against `{symbol}`: {value:#x} is not a multiple of {align}")]
    Misaligned {
        /// psABI name.
        name: &'static str,
        /// The symbol.
        symbol: String,
        /// The field.
        place: Box<Place>,
        /// The value.
        value: u64,
        /// The alignment, bytes.
        align: u8,
    },
    /// A veneer or a GOT slot that can't hold what it has to.
    #[error("the veneer or GOT slot for `{symbol}` can't be made: {why:?}")]
    Veneer {
        /// The symbol.
        symbol: String,
        /// What does not fit.
        why: FieldError,
    },
    /// A load address that can't be.
    #[error("the image can't lie at {base:#x}: {why}")]
    BadBase {
        /// The address asked for.
        base: u64,
        /// A clause.
        why: String,
    },
    /// A page size that can't be.
    #[error("the page size {size:#x} is not a power of two from 16 to 2 MiB")]
    BadPageSize {
        /// The size asked for.
        size: u64,
    },
}

impl Explain for LinkError {
    fn rule(&self) -> &'static str {
        match self {
            LinkError::NoObjects => "no-objects",
            LinkError::NotElf { .. } => "not-elf",
            LinkError::Archive { .. } => "archive",
            LinkError::Lto { .. } => "lto-object",
            LinkError::WrongType { .. } => "object-type",
            LinkError::WrongMachine { .. } => "wrong-machine",
            LinkError::AbiMismatch { .. } => "abi-mismatch",
            LinkError::UnsupportedIsa { .. } => "unsupported-isa",
            LinkError::Broken { .. } => "broken-object",
            LinkError::WritableCode { .. } => "writable-code",
            LinkError::Constructors { .. } => "constructors",
            LinkError::NewThreadLocal { .. } => "new-thread-local",
            LinkError::ExceptionTable { .. } => "exception-table",
            LinkError::PatchIfunc { .. } => "patch-ifunc",
            LinkError::Alignment { .. } => "alignment",
            LinkError::TooLarge { .. } => "image-size",
            LinkError::Hazard { .. } => "processor-erratum",
            LinkError::NoLandingPad { .. } => "no-landing-pad",
            LinkError::DuplicateSymbol { .. } => "duplicate-symbol",
            LinkError::BadMarker { .. } => "bad-marker",
            LinkError::VersionConflict { .. } => "version-conflict",
            LinkError::NothingToReplace => "nothing-to-replace",
            LinkError::NoPatchFunction { .. } => "no-patch-function",
            LinkError::AmbiguousPatchFunction { .. } => "ambiguous-patch-function",
            LinkError::NoSuchFunction { .. } => "no-such-function",
            LinkError::AmbiguousFunction { .. } => "ambiguous-function",
            LinkError::ImportedFunction { .. } => "imported-function",
            LinkError::IfuncFunction { .. } => "ifunc",
            LinkError::NoCode { .. } => "no-code",
            LinkError::DuplicateReplacement { .. } => "duplicate-replacement",
            LinkError::RedefinedData { .. } => "redefined-data",
            LinkError::DataSize { .. } => "data-size",
            LinkError::HiddenReference { .. } => "hidden-reference",
            LinkError::KindMismatch { .. } => "kind-mismatch",
            LinkError::Undefined { .. } => "undefined-symbol",
            LinkError::AmbiguousSymbol { .. } => "ambiguous-symbol",
            LinkError::BadBind { .. } => "bad-bind",
            LinkError::ThreadLocal { .. } => "thread-local",
            LinkError::Discarded { .. } => "discarded-section",
            LinkError::UnsupportedRelocation { .. } => "unsupported-relocation",
            LinkError::BadRelocation { .. } => "bad-relocation",
            LinkError::NotPositionIndependent { .. } => "not-position-independent",
            LinkError::SmallData { .. } => "small-data",
            LinkError::Overflow { .. } => "relocation-overflow",
            LinkError::Misaligned { .. } => "relocation-misaligned",
            LinkError::Veneer { .. } => "veneer",
            LinkError::BadBase { .. } => "bad-base",
            LinkError::BadPageSize { .. } => "bad-page-size",
        }
    }

    fn class(&self) -> Class {
        match self {
            LinkError::NoObjects
            | LinkError::NotElf { .. }
            | LinkError::Archive { .. }
            | LinkError::Lto { .. }
            | LinkError::WrongType { .. }
            | LinkError::WrongMachine { .. }
            | LinkError::Broken { .. }
            | LinkError::Alignment { .. }
            | LinkError::BadMarker { .. }
            | LinkError::BadBind { .. }
            | LinkError::BadRelocation { .. }
            | LinkError::BadBase { .. }
            | LinkError::BadPageSize { .. } => Class::BadInput,
            _ => Class::Refused,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            LinkError::NoObjects => "give the compiled patch (.o) as an argument",
            LinkError::NotElf { .. } => "compile the patch with `cc -c -fPIC`",
            LinkError::Archive { .. } => "extract the members that you need with `ar x` and give them one by one",
            LinkError::Lto { .. } => "compile the patch with -fno-lto or with -ffat-lto-objects",
            LinkError::WrongType { .. } => "compile with -c and without -shared; the program itself goes to -m",
            LinkError::WrongMachine { .. } => "compile the patch with the compiler and the ABI options of the program",
            LinkError::AbiMismatch { hint, .. } => hint,
            LinkError::UnsupportedIsa { .. } => {
                "compile patch and program for the architecture's ordinary instruction set, or leave that function alone"
            }
            LinkError::Broken { .. } => "the file may be truncated; compile it again",
            LinkError::WritableCode { .. } => "no memory of a patch is ever writable and executable; split the section",
            LinkError::Constructors { .. } => {
                "move the initialisation into a function that the patched code calls when it runs first"
            }
            LinkError::NewThreadLocal { .. } => {
                "use the program's thread-local variables (extern __thread), or pthread_getspecific for new ones"
            }
            LinkError::ExceptionTable { .. } => {
                "compile with -fno-exceptions, or keep try, catch and destructors out of the patched functions"
            }
            LinkError::PatchIfunc { .. } => "define an ordinary function under this name",
            LinkError::Alignment { .. } => {
                "spans of an image are aligned to pages (--page-size), and nothing in them to more"
            }
            LinkError::Hazard { .. } => "compile with -ffunction-sections, so that the parts can be moved one by one",
            LinkError::NoLandingPad { .. } => {
                "call it by name; if it is too far away for that, choose a --base within reach of the program, or leave that to fix"
            }
            LinkError::DuplicateSymbol { .. } => "make one of them static, or leave one object out",
            LinkError::VersionConflict { .. } => "give PATCH_VERSION in one object only",
            LinkError::NothingToReplace => "mark functions with FIXFUN(name), or use --replace NEW=OLD",
            LinkError::NoPatchFunction { .. } => "the new function must be defined in one of the patch objects",
            LinkError::AmbiguousPatchFunction { .. } => "give the function to be used a name of its own",
            LinkError::NoSuchFunction { .. } => {
                "the compiler may have inlined or renamed it; a stripped program needs its symbols: --debug-file FILE"
            }
            LinkError::AmbiguousFunction { .. } => "pick one with --replace NEW=file.c:NAME",
            LinkError::ImportedFunction { .. } => "generate the patch against the library that defines it (-m LIBRARY)",
            LinkError::IfuncFunction { .. } => "replace the variant that the resolver returns, by its own name",
            LinkError::NoCode { .. } => "use the file that is really loaded, not one with its contents removed",
            LinkError::DuplicateReplacement { .. } => "mark only one function for each old one",
            LinkError::RedefinedData { .. } => {
                "declare it extern to use the program's object and assign to it at run time, or rename it"
            }
            LinkError::DataSize { .. } => "the object must keep its size; put new members into a new object",
            LinkError::HiddenReference { .. } => "compile with -fno-section-anchors, or declare the object extern",
            LinkError::KindMismatch { .. } => "rename the symbol in the patch",
            LinkError::Undefined { .. } => "check the spelling; functions that were inlined everywhere leave no symbol",
            LinkError::AmbiguousSymbol { .. } => "pick one with --bind NAME=file.c:NAME",
            LinkError::BadBind { .. } => "--bind takes NAME=file.c:NAME, the second one as in the program",
            LinkError::ThreadLocal { .. } => "call a function of the program that reads or writes the variable",
            LinkError::UnsupportedRelocation { .. } => {
                "compile with -fPIC and with the default code and thread-local storage models"
            }
            LinkError::NotPositionIndependent { .. } => "compile the patch with -fPIC",
            LinkError::SmallData { .. } => "compile the patch with -G0",
            LinkError::Overflow { .. } => "compile the patch with -fPIC, or choose another --base",
            LinkError::BadPageSize { .. } => {
                "firmware that has no memory protection can take 16, a system its page size"
            }
            LinkError::BadBase { .. } => "choose a page-aligned address that the program does not use",
            _ => return None,
        })
    }
}
