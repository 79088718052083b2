//! Which bits of a stored return address are its own depends on how many a kernel leaves to addresses.

use tigerfix_arch_aarch64::Aarch64;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::session::unwind::return_bits;
use tigerfix_core::target::{Mapping, Perm};

fn ends_at(end: u64) -> Vec<Mapping> {
    let stack = |start, end| Mapping {
        start: RunAddr(start),
        end: RunAddr(end),
        perm: Perm::RW,
        offset: 0,
        file: (0, 0),
        name: String::new(),
    };
    vec![stack(0x40_0000, 0x40_1000), stack(end - 0x1000, end)]
}

#[test]
fn signatures_reach_down_to_the_highest_address() {
    // Kernels with 48, 42 and 39 bits; below them, signatures begin (arch/arm64/include/asm/compiler.h, ptrauth_user_pac_mask).
    for (end, bits) in [(0xffff_ffff_f000, 48), (0x3ff_ffff_f000, 42), (0x7f_ffff_f000, 39)] {
        assert_eq!(return_bits(&Aarch64, &ends_at(end)), (1 << bits) - 1);
        // No address of this process is cut by it.
        assert_eq!((end - 1) & return_bits(&Aarch64, &ends_at(end)), end - 1);
    }
    // Firmware in the upper half.
    assert_eq!(return_bits(&Aarch64, &ends_at(0xffff_0000_4010_0000)), (1 << 48) - 1);
    assert_eq!(return_bits(&Aarch64, &[]), (1 << 48) - 1);
}
