//! Firmware on an emulated board without an operating system, patched from outside through the emulator's stub. Big-endian MIPS.

use qemu_tests::board::Machine;
use qemu_tests::on_a_board;

/// Malta.
const MACHINE: Machine = Machine {
    triple: "mips-linux-gnu",
    flags: &[
        "-O2",
        "-ffreestanding",
        "-fno-stack-protector",
        "-mno-abicalls",
        "-fno-pic",
        "-G0",
        "-msoft-float",
        "-mips32r2",
        "-fno-ipa-ra",
    ],
    qemu: &["qemu-system-mips", "-M", "malta"],
    text: 0x8010_0000,
};

on_a_board!(MACHINE);
