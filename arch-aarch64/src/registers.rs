//! Registers, and what Linux expects in them.
//!
//! Odd in this ABI:
//! * When a tracer gets to see a thread that was stopped in a system call, the kernel has taken the call back already:
//!   the pc is at the `svc` instruction, x0 is the first argument again, and resuming makes the call anew (kernel
//!   `arch/arm64/kernel/signal.c`, do_signal: "so that a debugger will see the already changed PC"). Nothing has to be done
//!   about such a thread but to give it its registers back. Consequences:
//!   - The kernel's number of the call is forgotten at that stop. It is in a register set of its own (NT_ARM_SYSTEM_CALL),
//!     and decides about restarts only until the stop; hence there is no [`RegisterLayout::restart_nr`].
//!   - Whether the call will go on with the rest of its timeout (ERESTART_RESTARTBLOCK) can't be seen. The kernel decides when
//!     the thread is resumed, by the pc alone: if that is where the kernel put it, x8 becomes `restart_syscall`, *whatever
//!     call it was meant to make*. An injected call must therefore not start at the `svc` that the thread was stopped at.
//!     A thread that made another call meanwhile makes its own one anew, with all of the timeout.
//!   - Calls that end with EINTR have x0 overwritten. What it was (`orig_x0`) is in no register set. While the thread waits,
//!     `/proc/PID/task/TID/syscall` tells it; after the stop it does so while NT_ARM_SYSTEM_CALL holds a number that is not
//!     negative, on kernels where syscall_get_arguments takes `orig_x0` (6.1.192 takes x0), and of the last call of any kind:
//!     `rt_sigreturn`, too.
//! * x8 keeps the number of the system call, and stays what it was.
//! * A failed system call is a negative errno in x0; there is no flag.
//! * The thread pointer, TPIDR_EL0, is in a register set of its own (NT_ARM_TLS).
//! * PSTATE.BTYPE (bits 11:10 of `pstate`) is not zero in a thread that was stopped right behind an indirect branch; made to go on
//!   elsewhere in a guarded page it would get SIGILL ([`RegisterLayout::call_clears`]).
//! * Return addresses that are kept on the stack may carry an authentication code ([`tigerfix_core::arch::Arch::return_address_bits`]); DWARF register 34
//!   says where.
//! * Without an operating system: taking an exception sets PSTATE.I (bit 7), whatever exception it is, and moves the pc to
//!   ELR_ELx of the level that takes it; PSTATE.EL (bits 3:2) is that level then (the Arm ARM, D1.3 "Exceptions",
//!   AArch64.TakeException). No bit says that a processor is inside a handler, and ELR_ELx keeps its value afterwards.
//! * There is no red zone: what is below the stack pointer belongs to nobody (AAPCS64, 6.4.5.1).
//!
//! Sources: kernel `arch/arm64/include/uapi/asm/ptrace.h` (struct user_pt_regs, the order of NT_PRSTATUS),
//! `arch/arm64/kernel/{ptrace,signal,syscall}.c`, `include/uapi/asm-generic/unistd.h`, `include/linux/errno.h`; AAPCS64,
//! 6.1; AADWARF64, "DWARF register names"; gdb `features/aarch64-core.xml`.

use tigerfix_core::arch::{ExceptionReturns, GdbRegister, LinuxAbi, Reg, RegisterLayout};

/// Indices into NT_PRSTATUS; x0 to x30 are their numbers.
mod index {
    use tigerfix_core::arch::Reg;
    pub(crate) const X0: Reg = 0;
    pub(crate) const X8: Reg = 8;
    pub(crate) const X30: Reg = 30;
    pub(crate) const SP: Reg = 31;
    pub(crate) const PC: Reg = 32;
    pub(crate) const PSTATE: Reg = 33;
}
pub(crate) use index::*;

const NAMES: [&str; 34] = [
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
    "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x29", "x30", "sp", "pc", "pstate",
];

pub(crate) static LAYOUT: RegisterLayout = RegisterLayout {
    count: NAMES.len() as u8,
    word: 8,
    names: &NAMES,
    pc: PC,
    sp: SP,
    ra: Some(X30),
    tp: None,
    syscall_nr: X8,
    syscall_args: &[0, 1, 2, 3, 4, 5],
    result: X0,
    error_flag: None,
    restart_nr: None,
    restart_none: u64::MAX,
    call_clears: &[(PSTATE, BTYPE)],
    entry: None,
    call_args: &[0, 1, 2, 3, 4, 5, 6, 7],
    dwarf: &DWARF,
    dwarf_ra: 30,
    in_delay_slot: None,
    gdb: &GDB,
    exception: None,
    returns: Some(ExceptionReturns {
        masked: (PSTATE, 1 << 7),
        level: (PSTATE, 3 << 2),
        addresses: &[("elr_el1", 1 << 2), ("elr_el2", 2 << 2), ("elr_el3", 3 << 2)],
    }),
};

/// x0 to x30, sp, pc have their indices as DWARF numbers.
const DWARF: [(u16, Reg); 33] = {
    let mut all = [(0, 0); 33];
    let mut i = 0;
    while i < all.len() {
        all[i] = (i as u16, i as Reg);
        i += 1;
    }
    all
};

/// The same order and numbers; `cpsr`, which is pstate, has 4 bytes.
const GDB: [GdbRegister; 34] = {
    let mut all = [GdbRegister::new("cpsr", 33, 33 * 8, 4, PSTATE); 34];
    let mut i = 0;
    while i < 33 {
        all[i] = GdbRegister::new(NAMES[i], i as u16, i as u16 * 8, 8, i as Reg);
        i += 1;
    }
    all
};

pub(crate) static LINUX: LinuxAbi = LinuxAbi {
    mmap: 222,
    mmap_unit: 1,
    munmap: 215,
    memfd_create: 279,
    ftruncate: 46,
    close: 57,
    openat: 56,
    read: 63,
    mprotect: 226,
    prctl: 167,
    rt_sigreturn: 139,
    get_robust_list: 100,
    single_step: true,
    cacheflush: None,
    map_private: 0x02,
    map_anonymous: 0x20,
    map_fixed_noreplace: 0x10_0000,
    syscall_insn: &SVC_0,
    insn_align: 4,
    syscall_return: &[
        // svc #0; ret: getpid and the like in the C libraries, fallbacks in the vDSO
        &[0x01, 0x00, 0x00, 0xd4, 0xc0, 0x03, 0x5f, 0xd6],
    ],
    sigreturn_code: &[
        // mov x8, #139; svc #0: the vDSO's __kernel_rt_sigreturn, and musl's restorer
        &[0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4],
        // mov w8, #139; svc #0
        &[0x68, 0x11, 0x80, 0x52, 0x01, 0x00, 0x00, 0xd4],
    ],
    taken_back: Some(NT_ARM_SYSTEM_CALL),
    restart_after_eintr: RESTART_AFTER_EINTR,
    eintr: 4,
    erestartnohand: 514,
    stack_args: None,
    resolver_hwcap: Some(!IFUNC_ARG_HWCAP),
    red_zone: 0,
};

/// What kind of branch the processor has just made, in `pstate` (the Arm ARM, "PSTATE.BTYPE"). In a guarded page it decides
/// whether the next instruction has to be a landing pad.
const BTYPE: u64 = 3 << 10;

/// `_IFUNC_ARG_HWCAP`: says to a resolver that its second argument is a pointer to more (glibc
/// `sysdeps/aarch64/sys/ifunc.h`, `sysdeps/aarch64/dl-irel.h`). Without it, it has AT_HWCAP to go by.
const IFUNC_ARG_HWCAP: u64 = 1 << 62;

/// Kernel `include/uapi/linux/elf.h`.
const NT_ARM_SYSTEM_CALL: u32 = 0x404;

/// `svc #0`
const SVC_0: [u8; 4] = [0x01, 0x00, 0x00, 0xd4];

/// Calls that report EINTR itself, not one of the kernel's ERESTART codes, when a stop interrupts their wait. EINTR is only
/// returned where nothing was transferred, accepted or dequeued, so the same call may be made again. A relative timeout
/// starts anew then. The reasons for each are those of the other back ends: they lie in code that all architectures share
/// (`fs/eventpoll.c`, `ipc/sem.c`, `kernel/signal.c`, `fs/aio.c`, `io_uring/io_uring.c`, `include/net/sock.h`).
const RESTART_AFTER_EINTR: &[u64] = &[
    22,  // epoll_pwait
    441, // epoll_pwait2
    193, // semop
    192, // semtimedop
    137, // rt_sigtimedwait (sigwaitinfo, sigtimedwait)
    4,   // io_getevents
    426, // io_uring_enter
    // Receiving and accepting on a socket with SO_RCVTIMEO.
    63,  // read
    65,  // readv
    202, // accept
    242, // accept4
    207, // recvfrom
    212, // recvmsg
    243, // recvmmsg
    // Sending on a socket with SO_SNDTIMEO.
    64,  // write
    66,  // writev
    206, // sendto
    211, // sendmsg
    269, // sendmmsg
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn indices_and_names_agree() {
        for (r, name) in [(X0, "x0"), (X8, "x8"), (X30, "x30"), (SP, "sp"), (PC, "pc"), (PSTATE, "pstate")] {
            assert_eq!(NAMES[usize::from(r)], name);
        }
        for n in 0..31u8 {
            assert_eq!(NAMES[usize::from(n)], format!("x{n}"));
            assert!(LAYOUT.dwarf.contains(&(u16::from(n), n)));
        }
        assert!(LAYOUT.dwarf.contains(&(31, SP)) && LAYOUT.dwarf.contains(&(32, PC)));
        assert!(LAYOUT.dwarf.iter().all(|d| d.0 < 33), "33 and up are no registers of ours");
    }

    #[test]
    fn gdb_rows_are_its_description() {
        for (i, row) in LAYOUT.gdb.iter().enumerate() {
            let name = if row.reg == PSTATE { "cpsr" } else { NAMES[usize::from(row.reg)] };
            assert_eq!((row.name, usize::from(row.number), usize::from(row.offset)), (name, i, 8 * i));
            assert_eq!(row.size, if i == 33 { 4 } else { 8 });
        }
        // What qemu's stub sends for these: 268 bytes.
        let end = LAYOUT.gdb.iter().map(|r| r.offset + u16::from(r.size)).max();
        assert_eq!(end, Some(268));
    }

    #[test]
    fn code_is_what_it_says() {
        use crate::trampoline::tests::text;
        assert_eq!(text(LINUX.syscall_insn, 0), "svc #0");
        let all: std::vec::Vec<_> =
            LINUX.syscall_return.iter().chain(LINUX.sigreturn_code).map(|c| text(c, 0)).collect();
        assert_eq!(all, ["svc #0; ret", "mov x8, #0x8b; svc #0", "mov w8, #0x8b; svc #0"]);
        assert!(LINUX.syscall_return.iter().all(|c| c.starts_with(LINUX.syscall_insn)));
        use tigerfix_core::arch::Arch;
        assert_eq!(text(crate::Aarch64.breakpoint(), 0), "brk #0");
    }

    #[test]
    #[cfg(all(target_arch = "aarch64", target_os = "linux", target_pointer_width = "64"))]
    fn layout_and_numbers_are_the_c_librarys() {
        use core::mem::{offset_of, size_of};
        use libc::user_regs_struct as U;
        assert_eq!(size_of::<U>(), usize::from(LAYOUT.count) * usize::from(LAYOUT.word));
        let at = |r: Reg| usize::from(r) * 8;
        assert_eq!(at(X0), offset_of!(U, regs));
        assert_eq!(at(SP), offset_of!(U, sp));
        assert_eq!(at(PC), offset_of!(U, pc));
        assert_eq!(at(PSTATE), offset_of!(U, pstate));
        let numbers = [
            (LINUX.mmap, libc::SYS_mmap),
            (LINUX.munmap, libc::SYS_munmap),
            (LINUX.memfd_create, libc::SYS_memfd_create),
            (LINUX.ftruncate, libc::SYS_ftruncate),
            (LINUX.close, libc::SYS_close),
            (LINUX.openat, libc::SYS_openat),
            (LINUX.read, libc::SYS_read),
            (LINUX.mprotect, libc::SYS_mprotect),
            (LINUX.prctl, libc::SYS_prctl),
            (LINUX.rt_sigreturn, libc::SYS_rt_sigreturn),
            (LINUX.get_robust_list, libc::SYS_get_robust_list),
        ];
        for (ours, theirs) in numbers {
            assert_eq!(ours, theirs as u64);
        }
        let restart = [
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
            libc::SYS_semop,
            libc::SYS_semtimedop,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_io_getevents,
            libc::SYS_io_uring_enter,
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_recvmmsg,
            libc::SYS_write,
            libc::SYS_writev,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
        ];
        assert!(LINUX.restart_after_eintr.iter().copied().eq(restart.map(|n| n as u64)));
        assert_eq!(LINUX.map_private, libc::MAP_PRIVATE as u64);
        assert_eq!(LINUX.map_anonymous, libc::MAP_ANONYMOUS as u64);
        assert_eq!(LINUX.map_fixed_noreplace, libc::MAP_FIXED_NOREPLACE as u64);
        assert_eq!(LINUX.eintr, libc::EINTR as u64);
    }
}
