//! The values that the stages hand to one another: what `gen` makes, a package stores and `fix` takes.
//!
//! Without `alloc` only the plain values exist; [`crate::package::PackageReader`] hands out borrowed views of the rest.

use crate::addr::LinkAddr;
#[cfg(feature = "alloc")]
use crate::{arch::ElfIdent, target::Perm};
#[cfg(feature = "alloc")]
use alloc::{string::String, vec::Vec};

/// How a program is recognised.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Contents of its NT_GNU_BUILD_ID note.
    BuildId(Vec<u8>),
    /// SHA-256 of the whole file, for programs without a build-id.
    Sha256([u8; 32]),
}

#[cfg(feature = "alloc")]
impl core::fmt::Display for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (kind, bytes): (_, &[u8]) = match self {
            Identity::BuildId(b) => ("build-id", b),
            Identity::Sha256(b) => ("sha256", b),
        };
        write!(f, "{kind} ")?;
        bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The program as the package remembers it.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRef {
    /// File name without its directory, for messages only.
    pub file: String,
    /// How it is recognised.
    pub identity: Identity,
    /// Loaded at the addresses in its file (ET_EXEC): the bias is 0.
    pub fixed: bool,
}

/// A run of the image with one set of rights. Offsets are relative to the image's start.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rights; never writable and executable.
    pub perm: Perm,
    /// Offset of its first byte, a multiple of the page size that the architecture's packages use.
    pub offset: u64,
    /// Size in memory, bytes; bytes past `data` are zero.
    pub size: u64,
    /// Contents.
    pub data: Vec<u8>,
}

/// What a residual relocation or an image symbol refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Referent {
    /// An offset in the image.
    Image(u64),
    /// A link-time address of the program.
    Program(LinkAddr),
    /// A link-time address of an IFUNC resolver in the program: its result is the address.
    ProgramIfunc(LinkAddr),
    /// Bound at fix time over the loaded modules.
    Import {
        /// A weak reference that is 0 when nobody defines it.
        weak: bool,
    },
}

/// A symbol of the package.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageSymbol {
    /// Name as in the symbol tables.
    pub name: String,
    /// What it is.
    pub referent: Referent,
    /// Size in bytes (0: unknown).
    pub size: u64,
    /// A function (as against data).
    pub function: bool,
    /// Visible to other objects (as against local to the patch).
    pub global: bool,
}

/// A relocation that only a load address can settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residue {
    /// Offset of the field in the image.
    pub offset: u64,
    /// psABI relocation type; the back end's `Howto` writes it. Its expression is `Abs`, `Pc`, `PltPc`, `PagePc`
    /// or `Region`, and `PltPc` is settled like `Pc` (see [`crate::relocate::settle`]).
    pub r_type: u32,
    /// Index into [`Package::symbols`].
    pub symbol: u32,
    /// The addend.
    pub addend: i64,
}

/// The entry of one replaced function.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Name of the function in the program.
    pub old: String,
    /// Name of the new function in the patch.
    pub new: String,
    /// Link-time address of the old function's entry.
    pub entry: LinkAddr,
    /// Bytes of a landing pad at the entry that stay; the trampoline goes behind it.
    pub pad: u8,
    /// Bytes from `entry + pad` on that may be overwritten safely.
    pub window: u8,
    /// Expected bytes from `entry` on (pad and window at least).
    pub expected: Vec<u8>,
    /// The old function's body, all parts: (start, size in bytes); the first part begins at `entry`.
    pub body: Vec<(LinkAddr, u64)>,
    /// Offset of the new function in the image.
    pub new_offset: u64,
    /// Offset in the image of room for a landing (of the longest form's `landing_len`).
    pub landing: u64,
    /// The new function wants its own address where its ABI has callers put it
    /// ([`crate::arch::Arch::wants_own_address`]).
    pub own_address: bool,
}

/// A package in memory.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Class, byte order, machine and flags of the target.
    pub ident: ElfIdent,
    /// Name (default: the output file's stem).
    pub name: String,
    /// `PATCH_VERSION` of the patch, or empty.
    pub version: String,
    /// `--description`, or empty.
    pub description: String,
    /// The program.
    pub program: ProgramRef,
    /// Fixed load address of the image (`--base`), or `None`: `fix` chooses.
    pub base: Option<u64>,
    /// Alignment of spans, bytes.
    pub page_size: u64,
    /// The program's code may be entered at landing pads only, and so may the image's ([`crate::arch::Arch::guard`]).
    pub guarded: bool,
    /// The image, ascending by offset, not overlapping.
    pub spans: Vec<Span>,
    /// Symbols that residue refers to, and the image's own.
    pub symbols: Vec<PackageSymbol>,
    /// Residue, ascending by offset.
    pub residue: Vec<Residue>,
    /// Sites, ascending by entry.
    pub sites: Vec<Site>,
    /// Offset in the image and size of the patch's `.eh_frame` (for unwinding through new code), if any.
    pub eh_frame: Option<(u64, u64)>,
    /// Offset in the image of a breakpoint instruction (injected function calls return to it).
    pub trap: u64,
    /// Notes of `gen` that whoever applies the package should read.
    pub warnings: Vec<String>,
}

#[cfg(feature = "alloc")]
impl Package {
    /// Size of the image in memory, bytes, rounded up to pages.
    #[must_use]
    pub fn image_size(&self) -> u64 {
        let end = self.spans.iter().map(|s| s.offset.saturating_add(s.size)).max().unwrap_or(0);
        end.checked_next_multiple_of(self.page_size.max(1)).unwrap_or(u64::MAX)
    }
}
