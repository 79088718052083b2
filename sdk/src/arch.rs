//! The back ends that this build carries: the one place where architectures are enumerated.

use tigerfix_arch_mips::{MIPS, MIPS64, MIPS64EL, MIPSEL};
use tigerfix_arch_x86_64::X86_64;
pub use tigerfix_core::arch::*;
use tigerfix_core::error::{Class, Explain};

/// A back end, as everything behind this module takes it.
pub type AnyArch = &'static (dyn Arch + Sync);

/// Every variant of every back end.
static BACK_ENDS: &[AnyArch] = &[&X86_64, &MIPS, &MIPSEL, &MIPS64, &MIPS64EL];

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

/// The back end named `name`, or the first of the family of that name; `_` and `-` are the same. What files it stands for
/// then, [`is_meant`] says.
///
/// # Errors
/// [`UnsupportedArch::Name`]
pub fn by_name(name: &str) -> Result<AnyArch, UnsupportedArch> {
    let plain = name.replace('_', "-").to_ascii_lowercase();
    BACK_ENDS
        .iter()
        .find(|a| a.name() == plain || plain == "amd64" && a.name() == "x86-64")
        .or_else(|| BACK_ENDS.iter().find(|a| a.family() == plain))
        .copied()
        .ok_or_else(|| UnsupportedArch::Name { name: name.to_owned() })
}

/// Is `found`, the back end of some file, what a user meant who named `asked`? The name of a family means all of its
/// variants: which one, the file says.
#[must_use]
pub fn is_meant(asked: AnyArch, found: AnyArch) -> bool {
    asked.name() == found.name() || asked.name() == asked.family() && asked.family() == found.family()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_stands_for_its_variants() {
        let named = |n: &str| by_name(n).expect("a name");
        for (asked, found, is) in [
            ("mips", "mips", true),
            ("MIPS", "mips64el", true),
            ("mipsel", "mipsel", true),
            ("mipsel", "mips", false),
            ("mips64", "mips64el", false),
            ("mips", "x86-64", false),
            ("x86_64", "x86-64", true),
        ] {
            assert_eq!(is_meant(named(asked), named(found)), is, "{asked} for {found}");
        }
        assert!(matches!(by_name("mips65"), Err(UnsupportedArch::Name { .. })));
    }

    #[test]
    fn refusals_name_what_came_closest() {
        let refused = |machine, is_64, flags| {
            for_ident(&ElfIdent { is_64, endian: tigerfix_core::field::Endian::Little, machine, flags })
                .err()
                .expect("no such back end")
                .to_string()
        };
        assert!(refused(8, false, 0x20).contains("N32"));
        assert!(refused(8, false, 0x9000_1000).contains("release 6"));
        assert!(refused(243, true, 0).contains("e_machine 243"));
    }
}
