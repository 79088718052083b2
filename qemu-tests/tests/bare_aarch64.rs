//! Firmware on an emulated board without an operating system, patched from outside through the emulator's stub. AArch64.

use qemu_tests::board::Machine;
use qemu_tests::on_a_board;

/// `virt`. Without an MMU all memory wants aligned access, and nobody has switched vector registers on.
const MACHINE: Machine = Machine {
    triple: "aarch64-linux-gnu",
    flags: &[
        "-O2",
        "-ffreestanding",
        "-fno-stack-protector",
        "-fno-pic",
        "-fno-pie",
        "-mgeneral-regs-only",
        "-mstrict-align",
        "-fno-ipa-ra",
    ],
    qemu: &["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57"],
    text: 0x4008_0000,
};

on_a_board!(MACHINE);

#[test]
fn what_a_handler_returns_to_counts() {
    qemu_tests::board::what_a_handler_returns_to_counts(MACHINE);
}

/// Addresses come from the GOT, which lies in the image: that is not moved by whole pages here, as the instructions count them.
mod position_independent {
    use super::*;

    const MACHINE: Machine = Machine {
        flags: &[
            "-O2",
            "-ffreestanding",
            "-fno-stack-protector",
            "-fPIC",
            "-mgeneral-regs-only",
            "-mstrict-align",
            "-fno-ipa-ra",
        ],
        ..super::MACHINE
    };

    on_a_board!(MACHINE);
}
