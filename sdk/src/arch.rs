//! The back ends that this build carries: the one place where architectures are enumerated.

use tigerfix_arch_x86_64::X86_64;
pub use tigerfix_core::arch::*;
use tigerfix_core::error::{Class, Explain};

/// A back end, as everything behind this module takes it.
pub type AnyArch = &'static (dyn Arch + Sync);

/// Every variant of every back end.
static BACK_ENDS: &[AnyArch] = &[&X86_64];

/// No back end takes an ELF file or a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnsupportedArch {
    /// The file is of a machine that this build has no back end for.
    #[error("{}", describe(.ident, .why))]
    File {
        /// What the file is.
        ident: ElfIdent,
        /// A clause of the back end that came closest, if any knows the machine.
        why: Option<&'static str>,
    },
    /// There is no back end of that name.
    #[error("no architecture `{name}`; this build has {}", names().join(", "))]
    Name {
        /// The name.
        name: String,
    },
}

fn describe(ident: &ElfIdent, why: &Option<&'static str>) -> String {
    match why {
        Some(w) => format!("unsupported machine: the file {w}"),
        None => format!(
            "unsupported machine: e_machine {}, {}-bit, {:?}-endian",
            ident.machine,
            if ident.is_64 { 64 } else { 32 },
            ident.endian
        ),
    }
}

impl Explain for UnsupportedArch {
    fn rule(&self) -> &'static str {
        "unsupported-architecture"
    }
    fn class(&self) -> Class {
        Class::BadInput
    }
}

/// Names of all back ends, for messages.
#[must_use]
pub fn names() -> Vec<&'static str> {
    BACK_ENDS.iter().map(|a| a.name()).collect()
}

/// The back end that takes files of `ident`.
///
/// # Errors
/// [`UnsupportedArch::File`]
pub fn for_ident(ident: &ElfIdent) -> Result<AnyArch, UnsupportedArch> {
    let mut why = None;
    for &a in BACK_ENDS {
        match a.accepts(ident) {
            Ok(()) => return Ok(a),
            Err(clause) => why = why.or((!clause.starts_with("is not")).then_some(clause)),
        }
    }
    Err(UnsupportedArch::File { ident: *ident, why })
}

/// The back end named `name`; `_` and `-` are the same.
///
/// # Errors
/// [`UnsupportedArch::Name`]
pub fn by_name(name: &str) -> Result<AnyArch, UnsupportedArch> {
    let plain = name.replace('_', "-").to_ascii_lowercase();
    BACK_ENDS
        .iter()
        .find(|a| a.name() == plain || plain == "amd64" && a.name() == "x86-64")
        .copied()
        .ok_or_else(|| UnsupportedArch::Name { name: name.to_owned() })
}
