//! Constants and record layouts of the `.tfp` format, version 1. `docs/package-format.md` has the same in prose.
//!
//! All integers are in the byte order of the ELF header, unsigned unless said otherwise, and naturally aligned within
//! their record; records are multiples of 8 bytes and their sections are aligned to 8.

use crate::field::Endian;

/// The format version that this crate writes and reads.
pub const VERSION: u32 = 1;

/// Section (and PT_NOTE segment) with the format version and the digest.
pub const NOTE: &str = ".note.tfix";
/// The package as a whole: one record of [`info::SIZE`] bytes.
pub const INFO: &str = ".tfix.info";
/// One record of [`site::SIZE`] bytes for each site.
pub const SITES: &str = ".tfix.sites";
/// One record of [`range::SIZE`] bytes for each part of a replaced function's body.
pub const RANGES: &str = ".tfix.ranges";
/// One record of [`bind::SIZE`] bytes for each undefined symbol.
pub const BIND: &str = ".tfix.bind";
/// One [reference](REF_SIZE) for each warning.
pub const WARNINGS: &str = ".tfix.warnings";
/// Texts and byte strings that the records refer to.
pub const BLOB: &str = ".tfix.blob";
/// The residue: SHT_RELA, linked to the symbol table.
pub const RELA: &str = ".rela.tfix";
/// The symbol table.
pub const SYMTAB: &str = ".symtab";
/// Names of the symbols.
pub const STRTAB: &str = ".strtab";

/// A reference into [`BLOB`]: u32 offset, u32 length, both in bytes.
pub const REF_SIZE: usize = 8;

/// The most spans a package may have.
pub const MAX_SPANS: usize = 256;
/// The largest page size, bytes.
pub const MAX_PAGE_SIZE: u64 = 1 << 21;
/// The longest symbol name, bytes.
pub const MAX_SYMBOL_NAME: usize = 0xffff;
/// The longest build-id, bytes.
pub const MAX_BUILD_ID: usize = 255;

/// The note in [`NOTE`]: an ordinary ELF note with 4-byte alignment, and the only one in its section.
pub mod note {
    /// u32: length of the name with its NUL, 5.
    pub const NAMESZ: usize = 0;
    /// u32: length of the descriptor, 32.
    pub const DESCSZ: usize = 4;
    /// u32: the note's type, which is the format version.
    pub const TYPE: usize = 8;
    /// The name, NUL and padding: [`NAME_BYTES`].
    pub const NAME: usize = 12;
    /// What stands at [`NAME`].
    pub const NAME_BYTES: [u8; 8] = *b"tfix\0\0\0\0";
    /// SHA-256 over the whole file with these bytes as zeros.
    pub const DIGEST: usize = 20;
    /// Length of the digest, bytes.
    pub const DIGEST_SIZE: usize = 32;
    /// Length of the note, bytes.
    pub const SIZE: usize = DIGEST + DIGEST_SIZE;
}

/// The record in [`INFO`].
pub mod info {
    /// u32: bits of the `FLAG_` constants; others are 0.
    pub const FLAGS: usize = 0;
    /// u32: 0, or [`RINFO_SPLIT`].
    pub const RINFO: usize = 4;
    /// u64: load address of the image where [`FLAG_BASE`] is set, else 0.
    pub const BASE: usize = 8;
    /// u64: alignment of spans, bytes; a power of two.
    pub const PAGE_SIZE: usize = 16;
    /// u64: offset of a breakpoint instruction in the image.
    pub const TRAP: usize = 24;
    /// u64: offset of the unwind table in the image where [`FLAG_EH_FRAME`] is set, else 0.
    pub const EH_FRAME: usize = 32;
    /// u64: its size in bytes, else 0.
    pub const EH_FRAME_SIZE: usize = 40;
    /// Reference: name of the package.
    pub const NAME: usize = 48;
    /// Reference: its version.
    pub const VERSION: usize = 56;
    /// Reference: its description.
    pub const DESCRIPTION: usize = 64;
    /// Reference: file name of the program.
    pub const PROGRAM: usize = 72;
    /// Reference: the program's identity, raw bytes.
    pub const IDENTITY: usize = 80;
    /// u32: [`IDENTITY_BUILD_ID`] or [`IDENTITY_SHA256`].
    pub const IDENTITY_KIND: usize = 88;
    /// u32: 0.
    pub const RESERVED: usize = 92;
    /// Size of the record, bytes.
    pub const SIZE: usize = 96;

    /// The program is loaded at the addresses in its file.
    pub const FLAG_FIXED: u32 = 1;
    /// The image has a fixed load address.
    pub const FLAG_BASE: u32 = 2;
    /// The image holds an unwind table.
    pub const FLAG_EH_FRAME: u32 = 4;
    /// Indirect branches into the image end at landing pads: its code may lie in guarded pages.
    pub const FLAG_GUARDED: u32 = 8;
    /// All known flags.
    pub const FLAGS_ALL: u32 = FLAG_FIXED | FLAG_BASE | FLAG_EH_FRAME | FLAG_GUARDED;

    /// `r_info` of a 64-bit relocation is not one integer but a 32-bit symbol index followed by four bytes of type,
    /// most significant first (only in little-endian files; see [`super::RInfo`]).
    pub const RINFO_SPLIT: u32 = 1;

    /// The identity is the contents of the program's NT_GNU_BUILD_ID note.
    pub const IDENTITY_BUILD_ID: u32 = 1;
    /// The identity is the SHA-256 of the program's whole file.
    pub const IDENTITY_SHA256: u32 = 2;
}

/// A record in [`SITES`].
pub mod site {
    /// u64: link-time address of the old function's entry.
    pub const ENTRY: usize = 0;
    /// u64: offset of the new function in the image.
    pub const NEW_OFFSET: usize = 8;
    /// u64: offset in the image of the room for a landing.
    pub const LANDING: usize = 16;
    /// Reference: name of the old function.
    pub const OLD: usize = 24;
    /// Reference: name of the new function.
    pub const NEW: usize = 32;
    /// Reference: expected bytes from the entry on.
    pub const EXPECTED: usize = 40;
    /// u32: index of the body's first part in the section of ranges.
    pub const BODY_FIRST: usize = 48;
    /// u32: number of its parts, at least 1.
    pub const BODY_COUNT: usize = 52;
    /// u8: bytes of the landing pad at the entry that stay.
    pub const PAD: usize = 56;
    /// u8: bytes behind the pad that may be overwritten.
    pub const WINDOW: usize = 57;
    /// u16: bits of the `FLAG_` constants; others are 0.
    pub const FLAGS: usize = 58;
    /// u32: 0.
    pub const RESERVED32: usize = 60;
    /// Size of the record, bytes.
    pub const SIZE: usize = 64;

    /// The new function wants its own address in the register that its ABI names.
    pub const FLAG_OWN_ADDRESS: u16 = 1;
    /// All known flags.
    pub const FLAGS_ALL: u16 = FLAG_OWN_ADDRESS;
}

/// A record in [`RANGES`].
pub mod range {
    /// u64: link-time address of the first byte.
    pub const START: usize = 0;
    /// u64: size in bytes.
    pub const LEN: usize = 8;
    /// Size of the record, bytes.
    pub const SIZE: usize = 16;
}

/// A record in [`BIND`].
pub mod bind {
    /// u32: index of the symbol in the symbol table.
    pub const SYMBOL: usize = 0;
    /// u32: one of the `KIND_` constants.
    pub const KIND: usize = 4;
    /// u64: link-time address in the program; 0 for imports.
    pub const ADDRESS: usize = 8;
    /// u64: size in bytes, 0 where unknown.
    pub const SYMBOL_SIZE: usize = 16;
    /// u32: bits of the `FLAG_` constants; others are 0.
    pub const FLAGS: usize = 24;
    /// u32: 0.
    pub const RESERVED: usize = 28;
    /// Size of the record, bytes.
    pub const SIZE: usize = 32;

    /// An address in the program.
    pub const KIND_PROGRAM: u32 = 1;
    /// An IFUNC resolver in the program: its result is the address.
    pub const KIND_PROGRAM_IFUNC: u32 = 2;
    /// Bound by name over the loaded modules; an error where nobody defines it.
    pub const KIND_IMPORT: u32 = 3;
    /// Bound by name over the loaded modules; 0 where nobody defines it.
    pub const KIND_WEAK_IMPORT: u32 = 4;

    /// A function.
    pub const FLAG_FUNCTION: u32 = 1;
    /// Visible to other objects.
    pub const FLAG_GLOBAL: u32 = 2;
    /// All known flags.
    pub const FLAGS_ALL: u32 = FLAG_FUNCTION | FLAG_GLOBAL;
}

/// How `r_info` of 64-bit relocations is laid out. The record in [`INFO`] says it, so that a reader needs no table of
/// machines; the writer takes what the ELF tools expect of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RInfo {
    /// The usual one: `symbol << 32 | type`, one integer.
    Plain,
    /// A 32-bit symbol index, then four bytes of type, most significant first.
    Split,
}

/// Reads fixed-width integers out of a record; `None` past its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) endian: Endian,
}

impl Record<'_> {
    fn take<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let raw = self.bytes.get(at..)?.get(..N)?;
        raw.try_into().ok()
    }
    pub(crate) fn u8(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }
    pub(crate) fn u16(&self, at: usize) -> Option<u16> {
        let raw = self.take(at)?;
        Some(match self.endian {
            Endian::Little => u16::from_le_bytes(raw),
            Endian::Big => u16::from_be_bytes(raw),
        })
    }
    pub(crate) fn u32(&self, at: usize) -> Option<u32> {
        let raw = self.take(at)?;
        Some(match self.endian {
            Endian::Little => u32::from_le_bytes(raw),
            Endian::Big => u32::from_be_bytes(raw),
        })
    }
    pub(crate) fn u64(&self, at: usize) -> Option<u64> {
        let raw = self.take(at)?;
        Some(match self.endian {
            Endian::Little => u64::from_le_bytes(raw),
            Endian::Big => u64::from_be_bytes(raw),
        })
    }
}
