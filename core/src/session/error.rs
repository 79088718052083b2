//! Why a patch was not applied, listed or reverted.

use crate::addr::RunAddr;
use crate::arch::EncodeError;
use crate::error::{Class, Explain};
use crate::field::FieldError;
use crate::target::{TargetError, ThreadId};
use alloc::{string::String, vec::Vec};

/// A thread that a policy does not allow to be where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The thread.
    pub thread: ThreadId,
    /// Its name (may be empty).
    pub thread_name: String,
    /// The function whose body it executes or will return into.
    pub function: String,
    /// Where: the pc (frame 0) or a return address.
    pub at: RunAddr,
    /// Offset of `at` from the function's entry.
    pub offset: u64,
    /// Frame number, innermost 0; `None` where the stack could not be unwound and a word on it looks like a return
    /// address.
    pub frame: Option<usize>,
}

impl core::fmt::Display for Blocker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "thread {}", self.thread)?;
        if !self.thread_name.is_empty() {
            write!(f, " ({})", self.thread_name)?;
        }
        match self.frame {
            Some(0) => write!(f, " executes `{}` at {} (+{:#x}, frame 0)", self.function, self.at, self.offset),
            Some(n) => {
                write!(f, " will return into `{}` at {} (+{:#x}, frame {n})", self.function, self.at, self.offset)
            }
            None => write!(
                f,
                " may return into `{}` at {} (+{:#x}; its stack cannot be unwound to the end)",
                self.function, self.at, self.offset
            ),
        }
    }
}

fn describe_blockers(list: &[Blocker]) -> String {
    const SHOWN: usize = 4;
    let mut out = String::new();
    for (i, b) in list.iter().take(SHOWN).enumerate() {
        if i > 0 {
            out.push_str("; ");
        }
        out.push_str(&alloc::format!("{b}"));
    }
    if list.len() > SHOWN {
        out.push_str(&alloc::format!("; and {} more", list.len() - SHOWN));
    }
    out
}

/// Errors of the session: everything between "the target is reachable" and "the patch is in".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The transport failed.
    #[error("{0}")]
    Target(#[from] TargetError),
    /// Package and target have different architectures.
    #[error("the package is for {package}, the target runs {target}")]
    OtherArchitecture {
        /// Back end that the package needs.
        package: String,
        /// What the target is.
        target: String,
    },
    /// The program that the package was made for is not among the target's modules.
    #[error("no module of {target} is `{file}` with {wanted}{}", .found.as_ref().map_or(String::new(), |f| alloc::format!("; the loaded `{file}` has {f}")))]
    ProgramNotLoaded {
        /// The target.
        target: String,
        /// File name of the program.
        file: String,
        /// Identity that the package wants.
        wanted: String,
        /// Identity of a module of the same file name, if there is one.
        found: Option<String>,
    },
    /// Code in the target is not what the package expects.
    #[error("`{function}` at {at} does not have the expected bytes: {found} instead of {expected}")]
    UnexpectedBytes {
        /// The function.
        function: String,
        /// First differing address.
        at: RunAddr,
        /// What the package expects, hex.
        expected: String,
        /// What is there, hex.
        found: String,
    },
    /// A patch of this name is applied already.
    #[error("patch `{name}` is already applied to {target}")]
    AlreadyApplied {
        /// Patch name.
        name: String,
        /// The target.
        target: String,
    },
    /// An earlier `fix` or `revert` was killed half way.
    #[error("patch `{name}` in {target} was interrupted half way ({state})")]
    Interrupted {
        /// Patch name.
        name: String,
        /// The target.
        target: String,
        /// What its record says.
        state: &'static str,
    },
    /// No such patch.
    #[error("{target} carries no patch{}", .name.as_ref().map_or(String::new(), |n| alloc::format!(" named `{n}`")))]
    NotApplied {
        /// The name asked for.
        name: Option<String>,
        /// The target.
        target: String,
    },
    /// A later patch lies on top of this one.
    #[error("patch `{upper}` was applied on top of `{name}` at `{function}`")]
    NotTopmost {
        /// Patch to be reverted.
        name: String,
        /// The later one.
        upper: String,
        /// A function that both replace.
        function: String,
    },
    /// An import that no loaded module defines.
    #[error("no loaded module of {target} defines `{symbol}`, which the patch needs")]
    ImportMissing {
        /// The symbol.
        symbol: String,
        /// The target.
        target: String,
    },
    /// An import that can't be bound.
    #[error("`{symbol}` of {module} cannot be bound: {why}")]
    ImportUnusable {
        /// The symbol.
        symbol: String,
        /// The module that defines it.
        module: String,
        /// A clause.
        why: &'static str,
    },
    /// No free address range for the image.
    #[error("no free {size:#x} bytes between {low} and {high} in {target} for the image")]
    NoSpace {
        /// Bytes needed.
        size: u64,
        /// Lowest allowed start.
        low: RunAddr,
        /// Highest allowed start.
        high: RunAddr,
        /// The target.
        target: String,
    },
    /// The area that the target has for patches has no room.
    #[error(
        "patch `{name}` needs {image:#x} bytes, aligned to {align:#x}, and {record:#x} for its record; the area of {size:#x} bytes at {start} has at most {free:#x} in one piece"
    )]
    AreaFull {
        /// Patch name.
        name: String,
        /// Size of the image, bytes.
        image: u64,
        /// Alignment of the image, bytes.
        align: u64,
        /// Size of the record, bytes.
        record: u64,
        /// Start of the area.
        start: RunAddr,
        /// Size of the area, bytes.
        size: u64,
        /// The largest free piece, bytes.
        free: u64,
    },
    /// The target's memory is not that of the program.
    #[error("{target} does not run `{file}`: its code differs at {at}")]
    OtherProgram {
        /// The target.
        target: String,
        /// The program's file.
        file: String,
        /// First address that differs.
        at: RunAddr,
    },
    /// The program's file can't be read as one.
    #[error("`{file}`: {why}")]
    BadProgram {
        /// The program's file.
        file: String,
        /// What is wrong.
        why: crate::program::ProgramError,
    },
    /// No address satisfies all relocations and jumps at once.
    #[error("no address for the image is in reach of everything it refers to (`{what}` conflicts)")]
    Unreachable {
        /// The symbol or site that made the range empty.
        what: String,
    },
    /// A relocation does not fit at the chosen addresses.
    #[error("{name} against `{symbol}` at image offset {offset:#x} does not fit: {why:?}")]
    Relocation {
        /// psABI name.
        name: &'static str,
        /// Symbol.
        symbol: String,
        /// Offset in the image.
        offset: u64,
        /// Value and bounds.
        why: FieldError,
    },
    /// The package holds something that this back end does not know.
    #[error("the package has relocation type {r_type} at image offset {offset:#x}, which this back end cannot settle")]
    UnknownResidue {
        /// Raw type.
        r_type: u32,
        /// Offset in the image.
        offset: u64,
    },
    /// Some processors get the image's code wrong where it would lie.
    #[error("the image's code has {what}, at {at}")]
    Hazard {
        /// What it is.
        what: &'static str,
        /// Where.
        at: RunAddr,
    },
    /// No jump form fits a site.
    #[error("no jump form fits `{function}` at {at} (window of {window} bytes){}", .forced.as_ref().map_or(String::new(), |f| alloc::format!(", asked for {f}")))]
    NoJumpForm {
        /// The function.
        function: String,
        /// Where the jump would go.
        at: RunAddr,
        /// Bytes that may be overwritten.
        window: u8,
        /// `--form`
        forced: Option<String>,
    },
    /// The forms that fit a site don't hand the new function its own address.
    #[error("the jump form {form} does not hand the new function its own address, which `{function}` at {at} needs")]
    NoOwnAddress {
        /// The function.
        function: String,
        /// Where the jump would go.
        at: RunAddr,
        /// The form.
        form: &'static str,
    },
    /// The package's spans are not aligned to the target's pages.
    #[error("the package is made of pages of {package:#x} bytes, those of {target} have {size:#x}")]
    PageSize {
        /// Page size of the package.
        package: u64,
        /// Page size of the target.
        size: u64,
        /// The target.
        target: String,
    },
    /// `--form` names no form of this architecture.
    #[error("no jump form named `{name}`; there are {known}")]
    UnknownForm {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// A jump could not be encoded.
    #[error("jump at `{function}`: {why:?}")]
    Encode {
        /// The function.
        function: String,
        /// Why.
        why: EncodeError,
    },
    /// Threads were inside the functions until the timeout.
    #[error("not safe within {millis} ms ({attempts} attempts): {}", describe_blockers(.blockers))]
    Busy {
        /// Who was where, at the last attempt.
        blockers: Vec<Blocker>,
        /// How often we looked.
        attempts: u32,
        /// The timeout.
        millis: u64,
    },
    /// A thread's stack could not be judged.
    #[error("the stack of thread {thread} cannot be judged: {why}")]
    StackUnknown {
        /// The thread.
        thread: ThreadId,
        /// A clause.
        why: &'static str,
    },
    /// Memory did not read back as it was written.
    #[error("{what} at {at} did not read back as written")]
    ReadBack {
        /// "image" or a function's name.
        what: String,
        /// Where.
        at: RunAddr,
    },
    /// A record in the target is damaged.
    #[error("the patch record at {at} is damaged: {why}")]
    BadRecord {
        /// Where.
        at: RunAddr,
        /// A clause.
        why: &'static str,
    },
    /// Sites were written, then something failed; the sites have their old bytes again.
    #[error("{cause}; the old code was put back")]
    RolledBack {
        /// What failed.
        cause: alloc::boxed::Box<SessionError>,
    },
    /// A revert failed half way; all sites lead to the patch again.
    #[error("{cause}; the patch was put in again")]
    StillApplied {
        /// What failed.
        cause: alloc::boxed::Box<SessionError>,
    },
    /// The threads could not be told to go on.
    #[error("{what}; then the threads could not be let go: {cause}")]
    NotResumed {
        /// What had been done by then, as a clause.
        what: String,
        /// Why not.
        cause: alloc::boxed::Box<TargetError>,
    },
    /// Sites were written, something failed, and undoing that failed as well.
    #[error("{cause}; UNDOING THAT FAILED TOO: {undo}")]
    Stuck {
        /// What failed first.
        cause: alloc::boxed::Box<SessionError>,
        /// What failed then.
        undo: alloc::boxed::Box<SessionError>,
    },
}

impl Explain for SessionError {
    fn rule(&self) -> &'static str {
        match self {
            SessionError::Target(e) => e.rule(),
            SessionError::OtherArchitecture { .. } => "other-architecture",
            SessionError::ProgramNotLoaded { .. } => "program-not-loaded",
            SessionError::UnexpectedBytes { .. } => "unexpected-bytes",
            SessionError::AlreadyApplied { .. } => "already-applied",
            SessionError::Interrupted { .. } => "interrupted-patch",
            SessionError::NotApplied { .. } => "not-applied",
            SessionError::NotTopmost { .. } => "not-topmost",
            SessionError::ImportMissing { .. } => "import-missing",
            SessionError::ImportUnusable { .. } => "import-unusable",
            SessionError::NoSpace { .. } => "no-space",
            SessionError::AreaFull { .. } => "area-full",
            SessionError::OtherProgram { .. } => "other-program",
            SessionError::BadProgram { why, .. } => why.rule(),
            SessionError::Unreachable { .. } => "unreachable",
            SessionError::Relocation { .. } => "relocation-overflow",
            SessionError::UnknownResidue { .. } => "unknown-residue",
            SessionError::Hazard { .. } => "processor-erratum",
            SessionError::NoJumpForm { .. } => "no-jump-form",
            SessionError::NoOwnAddress { .. } => "no-own-address",
            SessionError::PageSize { .. } => "page-size",
            SessionError::UnknownForm { .. } => "unknown-form",
            SessionError::Encode { .. } => "jump-encoding",
            SessionError::Busy { .. } => "busy",
            SessionError::StackUnknown { .. } => "stack-unknown",
            SessionError::ReadBack { .. } => "read-back",
            SessionError::BadRecord { .. } => "bad-record",
            SessionError::RolledBack { cause } | SessionError::StillApplied { cause } => cause.rule(),
            SessionError::NotResumed { .. } => "not-resumed",
            SessionError::Stuck { .. } => "undo-failed",
        }
    }

    fn class(&self) -> Class {
        match self {
            SessionError::Target(e) => e.class(),
            SessionError::OtherArchitecture { .. }
            | SessionError::BadProgram { .. }
            | SessionError::UnknownResidue { .. }
            | SessionError::UnknownForm { .. } => Class::BadInput,
            SessionError::RolledBack { .. } | SessionError::StillApplied { .. } => Class::RolledBack,
            SessionError::NotResumed { .. } | SessionError::Stuck { .. } => Class::Failed,
            _ => Class::Refused,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            SessionError::Target(e) => return e.hint(),
            SessionError::ProgramNotLoaded { found: Some(_), .. } => {
                "the package was made for another build; run `tfix gen` against the file that is running"
            }
            SessionError::ProgramNotLoaded { .. } => {
                "check the process id, and that -m named the file that this process runs"
            }
            SessionError::UnexpectedBytes { .. } => {
                "something else changed this code (a breakpoint, another patcher); nothing was written"
            }
            SessionError::AlreadyApplied { .. } => "revert it first, or give the new package another --name",
            SessionError::Interrupted { .. } => "run `tfix revert` with this name to finish the undoing",
            SessionError::NotApplied { .. } => "`tfix list` shows what is applied",
            SessionError::NotTopmost { .. } => "revert the later patch first",
            SessionError::ImportMissing { .. } => "the library that defines it is not loaded in this process",
            SessionError::AreaFull { .. } => "give it a larger --area, or revert a patch that is in it",
            SessionError::OtherProgram { .. } => "name the file that the target really runs; nothing was written",
            SessionError::Unreachable { .. } | SessionError::Relocation { .. } => "compile the patch with -fPIC",
            SessionError::PageSize { .. } => "run `tfix gen` without --page-size, or with the target's",
            SessionError::NoJumpForm { forced: Some(_), .. } | SessionError::NoOwnAddress { .. } => {
                "leave out --form, tfix then takes the shortest that fits"
            }
            SessionError::Busy { .. } => "raise --timeout, or wake the thread so that it leaves the function",
            SessionError::NotResumed { .. } => {
                "the kernel lets them go when tfix ends; `tfix list` shows what is applied, `tfix revert` removes it"
            }
            SessionError::Stuck { .. } => "the record in the target still holds the old bytes: run `tfix revert`",
            _ => return None,
        })
    }
}
