//! Why a file is not a package that tfix takes, or a package not one that tfix writes.

use super::format;
use crate::error::{Class, Explain};

/// Why a package could not be read or written. Nothing was changed, and no output was made.
///
/// Indices count from 0 in the order of the file (and of the fields of [`crate::model::Package`]). `value` is the
/// offending value of `field`, `why` a clause that completes the sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// The file does not begin with the ELF magic.
    #[error("not an ELF file")]
    NotElf,
    /// The file begins like an ELF file, but a header or table of it is cut off or contradicts another.
    #[error("broken ELF file: {what} ({value:#x})")]
    BrokenElf {
        /// What is wrong.
        what: &'static str,
        /// The offending offset, count or number.
        value: u64,
    },
    /// An ELF file, but not a package.
    #[error("not a tfix package (no {})", format::NOTE)]
    NotAPackage,
    /// The package was made by a tfix with another format.
    #[error("package format version {found}, this tfix reads {supported}")]
    Version {
        /// Version in the file.
        found: u32,
        /// Version that this reader knows.
        supported: u32,
    },
    /// The digest in the file is not the digest of the file.
    #[error("digest mismatch: the file was changed or truncated after it was written")]
    Digest,
    /// A section that every package has is missing, doubled, or not made of whole records.
    #[error("section {name}: {why} ({value:#x})")]
    Section {
        /// Name of the section.
        name: &'static str,
        /// Its size in bytes, or the number that is wrong with it.
        value: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A field of the package as a whole.
    #[error("package {field} {value:#x} {why}")]
    Head {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// A clause.
        why: &'static str,
    },
    /// A field of a span of the image.
    #[error("span {index}: {field} {value:#x} {why}")]
    Span {
        /// Which span.
        index: u32,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// A clause.
        why: &'static str,
    },
    /// A field of a symbol or of its binding record.
    #[error("symbol {index}: {field} {value:#x} {why}")]
    Symbol {
        /// Which symbol.
        index: u32,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// A clause.
        why: &'static str,
    },
    /// A field of a residual relocation.
    #[error("residue {index}: {field} {value:#x} {why}")]
    Residue {
        /// Which relocation.
        index: u32,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// A clause.
        why: &'static str,
    },
    /// A field of a site.
    #[error("site {index}: {field} {value:#x} {why}")]
    Site {
        /// Which site.
        index: u32,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// A clause.
        why: &'static str,
    },
    /// A name or another text is not valid.
    #[error("{record} {index}: {field} {why}")]
    Text {
        /// "package", "symbol", "site" or "warning".
        record: &'static str,
        /// Which record.
        index: u32,
        /// Which text of it.
        field: &'static str,
        /// A clause.
        why: &'static str,
    },
    /// More than the format can hold.
    #[error("{what}: {value:#x} is more than the package format can hold ({limit:#x})")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much or how many there are.
        value: u64,
        /// How much or how many there may be.
        limit: u64,
    },
}

impl Explain for PackageError {
    fn rule(&self) -> &'static str {
        match self {
            PackageError::NotElf => "package-not-elf",
            PackageError::BrokenElf { .. } => "package-broken-elf",
            PackageError::NotAPackage => "not-a-package",
            PackageError::Version { .. } => "package-version",
            PackageError::Digest => "package-digest",
            PackageError::Section { .. } => "package-section",
            PackageError::Head { .. } => "package-head",
            PackageError::Span { .. } => "package-span",
            PackageError::Symbol { .. } => "package-symbol",
            PackageError::Residue { .. } => "package-residue",
            PackageError::Site { .. } => "package-site",
            PackageError::Text { .. } => "package-text",
            PackageError::TooLarge { .. } => "package-too-large",
        }
    }
    fn class(&self) -> Class {
        Class::BadInput
    }
    fn hint(&self) -> Option<&'static str> {
        match self {
            PackageError::NotElf | PackageError::NotAPackage => Some("give the .tfp file that `tfix gen` wrote"),
            PackageError::Version { .. } => {
                Some("use the tfix release that made the package, or make it again with this")
            }
            PackageError::Digest | PackageError::BrokenElf { .. } => {
                Some("copy the package again from where it was made, and leave it as it is (no strip, no objcopy)")
            }
            _ => None,
        }
    }
}
