//! Where control goes: branches, addresses that are built from several instructions, and the way out of a function.

use tigerfix_core::arch::{Constants, Frame};
use tigerfix_core::field::Endian;

#[expect(clippy::too_many_arguments)]
pub(crate) fn scan_branches(
    _is_64: bool,
    _endian: Endian,
    _code: &[u8],
    _at: u64,
    _lo: u64,
    _hi: u64,
    _constants: &Constants<'_>,
    _hit: &mut dyn FnMut(u64, u64),
) {
}

pub(crate) fn leaves_delay_slot(_endian: Endian, _before: &[u8]) -> bool {
    false
}

pub(crate) fn step_out(
    _is_64: bool,
    _endian: Endian,
    _frame: &Frame,
    _read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
) -> Option<Frame> {
    None
}
