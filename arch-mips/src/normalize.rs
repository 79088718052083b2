//! Relocation entries as the file has them, made neutral.

use crate::Mips;
use alloc::vec::Vec;
use tigerfix_core::arch::{NormalizeError, RawRelocs, Reloc};

pub(crate) fn normalize(_arch: &Mips, _raw: &RawRelocs<'_>) -> Result<Vec<Reloc>, NormalizeError> {
    Ok(Vec::new())
}
