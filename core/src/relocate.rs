//! Settling a relocation: the one place where its value is computed and stored, for `gen` and for `fix`.

use crate::arch::{Arch, Expr, Howto, page_start, region_start};
use crate::field::{Endian, FieldError, Order};

/// Why a relocation could not be settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleError {
    /// The value does not fit, or the field lies outside `bytes`.
    Field(FieldError),
    /// An expression that needs more than S, A and P; the linker settles those, and none is left in a package.
    Expression(Expr),
}

impl From<FieldError> for SettleError {
    fn from(e: FieldError) -> Self {
        SettleError::Field(e)
    }
}

/// Computes `howto`'s expression from `s` (symbol), `a` (addend) and `p` (address of the field), and stores it at `offset`
/// of `bytes`. `PltPc` is computed like `Pc`: whoever wants a veneer between passes its address as `s`. Likewise the
/// expressions about pages, for which `s` is the slot's address if they mean one.
///
/// # Errors
/// [`SettleError`]; `bytes` is unchanged then.
pub fn settle(
    arch: &dyn Arch,
    howto: &Howto,
    bytes: &mut [u8],
    offset: u64,
    s: u64,
    a: i64,
    p: u64,
) -> Result<(), SettleError> {
    let value = match howto.expr {
        Expr::None => return Ok(()),
        Expr::Abs => s.wrapping_add_signed(a),
        Expr::Pc | Expr::PltPc => s.wrapping_add_signed(a).wrapping_sub(p),
        Expr::PagePc { bits } | Expr::GotPagePc { bits } | Expr::GotTpOffPagePc { bits } => {
            page_start(s.wrapping_add_signed(a), bits).wrapping_sub(page_start(p, bits))
        }
        Expr::PageOffset { bits } | Expr::GotPageOffset { bits } | Expr::GotTpOffPageOffset { bits } => {
            let s = s.wrapping_add_signed(a);
            s.wrapping_sub(page_start(s, bits))
        }
        Expr::Region { bits, after } => s.wrapping_add_signed(a).wrapping_sub(region_start(p, bits, after)),
        other => return Err(SettleError::Expression(other)),
    };
    Ok(put(arch, howto, bytes, offset, value)?)
}

/// May a relocation with this expression be left once a patch is linked: can [`settle`] compute it?
#[must_use]
pub fn may_be_left(expr: Expr) -> bool {
    matches!(
        expr,
        Expr::None
            | Expr::Abs
            | Expr::Pc
            | Expr::PltPc
            | Expr::PagePc { .. }
            | Expr::PageOffset { .. }
            | Expr::GotPagePc { .. }
            | Expr::GotPageOffset { .. }
            | Expr::GotTpOffPagePc { .. }
            | Expr::GotTpOffPageOffset { .. }
            | Expr::Region { .. }
    )
}

/// Stores a computed value at `offset` of `bytes`, with `howto`'s checks.
///
/// # Errors
/// [`FieldError`]; `bytes` is unchanged then.
pub fn put(arch: &dyn Arch, howto: &Howto, bytes: &mut [u8], offset: u64, value: u64) -> Result<(), FieldError> {
    let at = usize::try_from(offset).map_err(|_| FieldError::OutOfSection)?;
    let cell = bytes.get_mut(at..).ok_or(FieldError::OutOfSection)?;
    howto.field.write(cell, order(arch, howto), value, howto.overflow, howto.align, arch.address_bits())
}

/// The byte order of `howto`'s field.
#[must_use]
pub fn order(arch: &dyn Arch, howto: &Howto) -> Endian {
    match howto.field.order {
        Order::Data => arch.data_endian(),
        Order::Insn => arch.insn_endian(),
    }
}
