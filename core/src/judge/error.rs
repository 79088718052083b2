//! Why a function may not be replaced.

use crate::addr::LinkAddr;
use crate::error::{Class, Explain};
use alloc::{boxed::Box, string::String, vec::Vec};
use core::fmt;

/// A branch (or a table entry, or a pointer) that lands where the trampoline would be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Where it lands.
    pub target: LinkAddr,
    /// The instruction, table entry or data word that names the target.
    pub from: LinkAddr,
    /// What it is: "branch in `f`", "jump table entry".
    pub what: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {}) lands at {}", self.what, self.from, self.target)
    }
}

/// The figures of a window, for messages and reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowFigures {
    /// Entry of the old function.
    pub entry: LinkAddr,
    /// Its size, bytes.
    pub size: u64,
    /// The size is a guess: the symbol has none, the next function's start was taken.
    pub size_guessed: bool,
    /// Padding behind it that nobody executes, bytes (looked at up to the longest window only).
    pub padding: u64,
    /// Landing pad at the entry that stays, bytes.
    pub pad: u8,
    /// Bytes behind the landing pad that may be overwritten.
    pub window: u8,
    /// What cut the window, if anything did.
    pub obstacle: Option<Obstacle>,
    /// Return address of a call inside the window that lies inside the window too.
    pub return_inside: Option<LinkAddr>,
}

/// An inlined copy of a replaced function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlinedCopy {
    /// The function that holds the copy.
    pub into: String,
    /// Source file of the call (empty: unknown).
    pub file: String,
    /// Source line of the call (0: unknown).
    pub line: u64,
    /// Address of the copy's code (`None`: the compiler left no code of its own).
    pub addr: Option<LinkAddr>,
}

impl fmt::Display for InlinedCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.into)?;
        match (self.file.is_empty(), self.line) {
            (true, _) => {}
            (false, 0) => write!(f, " ({})", self.file)?,
            (false, line) => write!(f, " ({}:{line})", self.file)?,
        }
        match self.addr {
            Some(a) => write!(f, " at {a}"),
            None => Ok(()),
        }
    }
}

/// A caller that knows which registers its callee leaves alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reliance {
    /// Who relies on the registers.
    pub caller: String,
    /// The function it calls: the replaced one, or one that calls it.
    pub callee: String,
    /// Address of the call.
    pub at: LinkAddr,
    /// The registers.
    pub registers: Vec<&'static str>,
}

/// A list for a message: at most ten items, then how many more there are.
pub(super) struct List<'a, T>(pub &'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        for (i, item) in self.0.iter().take(SHOWN).enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{item}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Why a function may not be replaced. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// The program's file holds no code at the entry.
    #[error("`{function}`: the program's file holds no code at its entry {entry}")]
    NoCode {
        /// The function.
        function: String,
        /// Its entry.
        entry: LinkAddr,
    },
    /// The symbol has no size and no function follows it.
    #[error("`{function}` at {entry}: its symbol has no size and no function symbol follows, so its end is unknown")]
    UnknownSize {
        /// The function.
        function: String,
        /// Its entry.
        entry: LinkAddr,
    },
    /// The function is in an instruction set that the back end does not handle.
    #[error("`{function}` {why}, which can't be replaced")]
    UnsupportedIsa {
        /// The function.
        function: String,
        /// What it is, as a clause.
        why: &'static str,
    },
    /// The instruction before the entry executes the first one of the function before it takes effect.
    #[error("`{function}`: its first instruction, at {entry}, is in the delay slot of the branch before it")]
    DelaySlotEntry {
        /// The function.
        function: String,
        /// Its entry.
        entry: LinkAddr,
    },
    /// No form of jump fits.
    #[error(
        "`{function}` at {}: {} bytes from {} on may be overwritten, the shortest jump needs {needed} (function {} bytes{}, padding {}, landing pad {}){}",
        figures.entry, figures.window, figures.entry.offset(figures.pad.into()), figures.size,
        if figures.size_guessed { " up to the next symbol" } else { "" },
        figures.padding, figures.pad, Because(figures)
    )]
    WindowTooSmall {
        /// The function.
        function: String,
        /// Length of the shortest jump that the site's alignment admits, bytes.
        needed: u8,
        /// All figures.
        figures: Box<WindowFigures>,
    },
    /// The jump would replace bytes that are no instructions.
    #[error("`{function}`: the bytes at {at} are no instruction that tfix knows, and a jump would overwrite them")]
    Undecodable {
        /// The function.
        function: String,
        /// The first undecodable byte.
        at: LinkAddr,
    },
    /// Callers run a specialised copy.
    #[error(
        "`{function}`: the compiler made a specialised copy of it, `{clone}` at {addr}, which {} still run",
        List(callers)
    )]
    Cloned {
        /// The function.
        function: String,
        /// The copy's symbol.
        clone: String,
        /// Where the copy lies.
        addr: LinkAddr,
        /// Who refers to it.
        callers: Vec<String>,
    },
    /// The debug information lists copies of the function inside others.
    #[error("`{function}` is inlined into {}: the copies would go on with the old code", List(copies))]
    Inlined {
        /// The function.
        function: String,
        /// Where.
        copies: Vec<InlinedCopy>,
    },
    /// The debug information says that the function was inlined, without a place.
    #[error(
        "`{function}`: the debug information says that it was inlined, but lists no place: the compiler folded the copies into their callers"
    )]
    InlinedSomewhere {
        /// The function.
        function: String,
    },
    /// Nothing calls the function.
    #[error(
        "nothing in the program calls `{function}`{}: the compiler has most likely inlined it into its callers, or merged it with an identical function (or it is unused){}",
        OnlyFrom(only_from),
        Likely(likely)
    )]
    NoCaller {
        /// The function.
        function: String,
        /// Functions that do refer to it, but are themselves out of reach.
        only_from: Vec<String>,
        /// Functions whose code looks as if they held a copy.
        likely: Vec<String>,
    },
    /// Another function contains most of this function's instructions.
    #[error(
        "`{function}` looks inlined into `{into}` at {addr}: {common} of its {total} typical instruction groups occur there"
    )]
    LooksInlined {
        /// The function.
        function: String,
        /// The function that seems to hold a copy.
        into: String,
        /// Where that lies.
        addr: LinkAddr,
        /// Instruction groups in common.
        common: usize,
        /// Instruction groups of the function.
        total: usize,
    },
    /// A caller keeps values in registers that the new function changes.
    #[error(
        "`{}` keeps {} across its call of `{}` at {}, which the old `{function}` leaves alone and the new `{new}` changes",
        reliance.caller, List(&reliance.registers), reliance.callee, reliance.at
    )]
    IpaRa {
        /// The replaced function.
        function: String,
        /// The new function.
        new: String,
        /// Who relies on what.
        reliance: Box<Reliance>,
    },
}

struct Because<'a>(&'a WindowFigures);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.obstacle {
            Some(o) => write!(f, ": a {o}"),
            None => Ok(()),
        }
    }
}

struct OnlyFrom<'a>(&'a [String]);

impl fmt::Display for OnlyFrom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, " except {}, which nothing calls either", List(self.0))
    }
}

struct Likely<'a>(&'a [String]);

impl fmt::Display for Likely<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; its code seems to live on in {}", List(self.0))
    }
}

impl Explain for JudgeError {
    fn rule(&self) -> &'static str {
        match self {
            JudgeError::NoCode { .. } => "no-code",
            JudgeError::UnknownSize { .. } => "unknown-size",
            JudgeError::UnsupportedIsa { .. } => "unsupported-isa",
            JudgeError::DelaySlotEntry { .. } => "delay-slot-entry",
            JudgeError::WindowTooSmall { .. } => "window-too-small",
            JudgeError::Undecodable { .. } => "undecodable",
            JudgeError::Cloned { .. } => "cloned",
            JudgeError::Inlined { .. } | JudgeError::InlinedSomewhere { .. } => "inlined",
            JudgeError::NoCaller { .. } => "no-caller",
            JudgeError::LooksInlined { .. } => "looks-inlined",
            JudgeError::IpaRa { .. } => "ipa-ra",
        }
    }
    fn class(&self) -> Class {
        Class::Refused
    }
    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            JudgeError::NoCode { .. } => "check that -m names the file that is really loaded",
            JudgeError::UnknownSize { .. } => "give the function a .size directive, or replace its caller",
            JudgeError::UnsupportedIsa { .. } => "build the program with this function in the ordinary instruction set",
            JudgeError::WindowTooSmall { .. } | JudgeError::Undecodable { .. } | JudgeError::DelaySlotEntry { .. } => {
                "replace the functions that call it instead, and let them call the new function"
            }
            JudgeError::Cloned { .. } => {
                "replace the callers of the copy too; or build the program with __attribute__((noipa)) on the function; or pass --allow-inlined"
            }
            JudgeError::Inlined { .. } => {
                "replace the functions named as well; or build the program with __attribute__((noinline)) on it; or pass --allow-inlined"
            }
            JudgeError::InlinedSomewhere { .. } => {
                "replace its callers as well; or build the program with __attribute__((noinline)) on it; or pass --allow-inlined"
            }
            JudgeError::NoCaller { .. } => {
                "replace the functions that hold the copies too (-g lets tfix see where they are); or build the program with __attribute__((noipa)) on it; or pass --allow-inlined"
            }
            JudgeError::LooksInlined { .. } => {
                "compile the program with -g so that tfix can see for certain, or pass --allow-inlined"
            }
            JudgeError::IpaRa { .. } => {
                "compile the program with -fno-ipa-ra; or replace the caller too; or pass --allow-clobbers if you know that the values are dead"
            }
        })
    }
}
