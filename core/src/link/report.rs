//! What the linker did, for `gen`'s output, for scripts and for tests.

use super::layout::Layout;
use super::resolve::Target;
use crate::addr::LinkAddr;
use alloc::{collections::BTreeMap, string::String, vec::Vec};

/// Where an input section, or room for a COMMON symbol, went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// File name of the object.
    pub object: String,
    /// Index of the object among the inputs.
    pub object_index: u32,
    /// Section name (`COMMON` for a COMMON symbol).
    pub section: String,
    /// Section index in the object (0 for a COMMON symbol).
    pub index: u32,
    /// The COMMON symbol.
    pub symbol: Option<String>,
    /// Offset in the image.
    pub offset: u64,
    /// Size, bytes.
    pub size: u64,
}

/// Where a symbol was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// Defined by the patch: an offset in the image.
    Patch(u64),
    /// Defined by the program.
    Program(LinkAddr),
    /// An IFUNC of the program: the address of its resolver.
    ProgramIfunc(LinkAddr),
    /// A thread-local variable of the program: its offset in the TLS block.
    ProgramTls(u64),
    /// Bound when the patch is applied.
    Import {
        /// May stay undefined.
        weak: bool,
    },
    /// A number (also 0 for a weak symbol that nobody defines).
    Absolute(u64),
    /// The linker's own GOT.
    Got,
}

/// A symbol that the patch refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedSymbol {
    /// Name.
    pub name: String,
    /// Where it was found.
    pub how: How,
}

/// What a GOT slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// An address.
    Address,
    /// The page of an address.
    Page,
    /// An offset from the thread pointer.
    TpOffset,
    /// The first word of a pair: a module id.
    Module,
    /// The second word of a pair: an offset in the module's TLS block.
    DtpOffset,
}

/// A slot of the GOT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GotSlot {
    /// Offset in the image.
    pub offset: u64,
    /// The symbol.
    pub symbol: String,
    /// What it holds.
    pub kind: SlotKind,
}

/// A veneer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veneer {
    /// Offset in the image.
    pub offset: u64,
    /// Offset in the image of the GOT slot that it jumps through, if it has one.
    pub slot: Option<u64>,
    /// Where it leads.
    pub symbol: String,
}

/// What the linker did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkReport {
    /// Number of relocations in the patch objects, by psABI name.
    pub relocations: BTreeMap<String, u32>,
    /// How many of them (and of the GOT's slots) are left for `fix`, by psABI name.
    pub residue: BTreeMap<String, u32>,
    /// The symbols that the patch refers to, by name.
    pub symbols: Vec<ResolvedSymbol>,
    /// What may be of interest to the author of the patch.
    pub notes: Vec<String>,
    /// What should be of interest to them; the package has these too.
    pub warnings: Vec<String>,
    /// Where each input section went.
    pub placements: Vec<Placement>,
    /// The GOT.
    pub got: Vec<GotSlot>,
    /// The veneers.
    pub veneers: Vec<Veneer>,
}

/// Collects notes and warnings while the stages run.
#[derive(Default)]
pub(super) struct Messages {
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
}

impl Messages {
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }
    pub(super) fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }
}

/// `target` in the report's words.
pub(super) fn how(target: Target, layout: &Layout, weak: impl Fn(u32) -> bool) -> How {
    match target {
        Target::Spot(_) | Target::Common(_) => How::Patch(layout.offset_of(target).unwrap_or(0)),
        Target::Program(a) => How::Program(a),
        Target::Ifunc(a) => How::ProgramIfunc(a),
        Target::Tls(v) => How::ProgramTls(v),
        Target::Import(i) => How::Import { weak: weak(i) },
        Target::Absolute(v) => How::Absolute(v),
        Target::GotBase => How::Got,
    }
}
