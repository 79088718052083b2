//! The `.tfp` package: an ELF file that carries the image, the residue, the sites and the program's identity.
//!
//! [`PackageReader`] never allocates: it checks everything once and then hands out borrowed views. With `alloc`,
//! [`write()`] makes the file of a [`Package`](crate::model) and `PackageReader::to_package` goes back. Both sides run
//! the same rules (`check.rs`), so a package that can be written can be read and the other way round.
//!
//! A device without std has one thing to add: the `object` crate, which reads the ELF headers, links `alloc`, so the
//! linker asks for a global allocator. One whose `alloc` returns null will do, since the reader never calls it.
//!
//! The digest shows damage, not forgery: whoever can write the file can write a digest.

mod check;
mod error;
pub mod format;
mod reader;
#[cfg(feature = "alloc")]
mod writer;

#[cfg(all(test, feature = "alloc"))]
mod tests;

pub use error::PackageError;
pub use reader::{PackageReader, seal};
#[cfg(feature = "alloc")]
pub use writer::{normalize, write};

use crate::addr::LinkAddr;
use crate::arch::ElfIdent;
use crate::field::Endian;
use crate::model::{Referent, Residue};
use crate::target::Perm;
use format::{Record, range};

/// How the program is recognised, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityRef<'a> {
    /// Contents of its NT_GNU_BUILD_ID note.
    BuildId(&'a [u8]),
    /// SHA-256 of the whole file.
    Sha256(&'a [u8; 32]),
}

/// What a package says about itself as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Class, byte order, machine and flags of the target.
    pub ident: ElfIdent,
    /// Name of the package.
    pub name: &'a str,
    /// Its version, or empty.
    pub version: &'a str,
    /// Its description, or empty.
    pub description: &'a str,
    /// File name of the program, for messages only.
    pub program: &'a str,
    /// How the program is recognised.
    pub identity: IdentityRef<'a>,
    /// The program is loaded at the addresses in its file.
    pub fixed: bool,
    /// Fixed load address of the image.
    pub base: Option<u64>,
    /// Alignment of spans, bytes.
    pub page_size: u64,
    /// Indirect branches into the image end at landing pads.
    pub guarded: bool,
    /// Offset in the image and size of the unwind table, bytes.
    pub eh_frame: Option<(u64, u64)>,
    /// Offset in the image of a breakpoint instruction.
    pub trap: u64,
}

/// A run of the image with one set of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanRef<'a> {
    /// Rights.
    pub perm: Perm,
    /// Offset of its first byte in the image.
    pub offset: u64,
    /// Size in memory, bytes; bytes past `data` are zero.
    pub size: u64,
    /// Contents.
    pub data: &'a [u8],
}

/// A symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolRef<'a> {
    /// Name as in the symbol tables.
    pub name: &'a str,
    /// What it is.
    pub referent: Referent,
    /// Size in bytes (0: unknown).
    pub size: u64,
    /// A function (as against data).
    pub function: bool,
    /// Visible to other objects (as against local to the patch).
    pub global: bool,
}

/// The entry of one replaced function; the fields are those of [`crate::model`]'s `Site`.
#[derive(Clone, Copy, Debug)]
pub struct SiteRef<'a> {
    /// Name of the function in the program.
    pub old: &'a str,
    /// Name of the new function in the patch.
    pub new: &'a str,
    /// Link-time address of the old function's entry.
    pub entry: LinkAddr,
    /// Bytes of a landing pad at the entry that stay.
    pub pad: u8,
    /// Bytes from `entry + pad` on that may be overwritten safely.
    pub window: u8,
    /// Expected bytes from `entry` on.
    pub expected: &'a [u8],
    /// The old function's body, all parts; the first begins at `entry`.
    pub body: Ranges<'a>,
    /// Offset of the new function in the image.
    pub new_offset: u64,
    /// Offset in the image of the room for a landing.
    pub landing: u64,
    /// The new function wants its own address where its ABI has callers put it.
    pub own_address: bool,
}

/// Parts of a function's body.
#[derive(Clone, Copy, Debug)]
pub struct Ranges<'a>(RangesIn<'a>);

#[derive(Clone, Copy, Debug)]
enum RangesIn<'a> {
    Records(&'a [u8], Endian),
    #[cfg(feature = "alloc")]
    Values(&'a [(LinkAddr, u64)]),
}

impl<'a> Ranges<'a> {
    /// How many parts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            RangesIn::Records(bytes, _) => bytes.len() / range::SIZE,
            #[cfg(feature = "alloc")]
            RangesIn::Values(values) => values.len(),
        }
    }
    /// Are there none? (Never so in a package that was accepted.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Part `index`: link-time address of its first byte and size in bytes.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<(LinkAddr, u64)> {
        match self.0 {
            RangesIn::Records(bytes, endian) => {
                let at = index.checked_mul(range::SIZE)?;
                let record = Record { bytes: bytes.get(at..)?.get(..range::SIZE)?, endian };
                Some((LinkAddr(record.u64(range::START)?), record.u64(range::LEN)?))
            }
            #[cfg(feature = "alloc")]
            RangesIn::Values(values) => values.get(index).copied(),
        }
    }
    /// All parts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (LinkAddr, u64)> + use<'a> {
        let ranges = *self;
        (0..ranges.len()).map_while(move |i| ranges.get(i))
    }
}

/// What the rules of the format are checked over: a package in memory, or one in a file.
trait View {
    fn head(&self) -> Head<'_>;
    fn spans(&self) -> impl Iterator<Item = SpanRef<'_>>;
    fn symbols(&self) -> impl Iterator<Item = SymbolRef<'_>>;
    fn residue(&self) -> impl Iterator<Item = Residue>;
    fn sites(&self) -> impl Iterator<Item = SiteRef<'_>>;
    fn warnings(&self) -> impl Iterator<Item = &str>;
}
