//! Registers, and what Linux expects in them.
//!
//! Odd in this ABI:
//! * DWARF numbers are not the processor's: 1 is rdx, 2 is rcx, 3 is rbx (psABI, "DWARF Register Number Mapping"), and
//!   the return address has a column of its own, 16, which no register stands behind.
//! * The kernel keeps rax twice: `orig_rax` is the number of the system call that the thread is in, or -1. It alone decides
//!   whether a call is restarted when the thread resumes (kernel `arch/x86/kernel/signal.c`, arch_do_signal_or_restart).
//! * `syscall` overwrites rcx and r11, hence the fourth argument of a system call is in r10, of a function in rcx.
//! * A failed system call is a negative errno in rax; there is no flag.
//!
//! Sources: kernel `arch/x86/include/asm/user_64.h` (struct user_regs_struct, the order of NT_PRSTATUS),
//! `arch/x86/entry/syscalls/syscall_64.tbl`, `include/linux/errno.h`; psABI, "Parameter Passing" and appendix A.2.1.

use tigerfix_core::arch::{GdbRegister, LinuxAbi, RegisterLayout};

/// Indices into NT_PRSTATUS.
mod index {
    use tigerfix_core::arch::Reg;
    pub(crate) const R15: Reg = 0;
    pub(crate) const R14: Reg = 1;
    pub(crate) const R13: Reg = 2;
    pub(crate) const R12: Reg = 3;
    pub(crate) const RBP: Reg = 4;
    pub(crate) const RBX: Reg = 5;
    pub(crate) const R11: Reg = 6;
    pub(crate) const R10: Reg = 7;
    pub(crate) const R9: Reg = 8;
    pub(crate) const R8: Reg = 9;
    pub(crate) const RAX: Reg = 10;
    pub(crate) const RCX: Reg = 11;
    pub(crate) const RDX: Reg = 12;
    pub(crate) const RSI: Reg = 13;
    pub(crate) const RDI: Reg = 14;
    pub(crate) const ORIG_RAX: Reg = 15;
    pub(crate) const RIP: Reg = 16;
    pub(crate) const CS: Reg = 17;
    pub(crate) const EFLAGS: Reg = 18;
    pub(crate) const RSP: Reg = 19;
    pub(crate) const SS: Reg = 20;
    pub(crate) const FS_BASE: Reg = 21;
    pub(crate) const GS_BASE: Reg = 22;
    pub(crate) const DS: Reg = 23;
    pub(crate) const ES: Reg = 24;
    pub(crate) const FS: Reg = 25;
    pub(crate) const GS: Reg = 26;
}
pub(crate) use index::*;

const NAMES: [&str; 27] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
];

pub(crate) static LAYOUT: RegisterLayout = RegisterLayout {
    count: NAMES.len() as u8,
    word: 8,
    names: &NAMES,
    pc: RIP,
    sp: RSP,
    ra: None, // on the stack
    tp: Some(FS_BASE),
    syscall_nr: RAX,
    syscall_args: &[RDI, RSI, RDX, R10, R8, R9],
    result: RAX,
    error_flag: None,
    restart_nr: Some(ORIG_RAX),
    restart_none: u64::MAX,
    call_clears: &[],
    entry: None,
    call_args: &[RDI, RSI, RDX, RCX, R8, R9],
    dwarf: &[
        (0, RAX),
        (1, RDX),
        (2, RCX),
        (3, RBX),
        (4, RSI),
        (5, RDI),
        (6, RBP),
        (7, RSP),
        (8, R8),
        (9, R9),
        (10, R10),
        (11, R11),
        (12, R12),
        (13, R13),
        (14, R14),
        (15, R15),
        (16, RIP),
        (49, EFLAGS),
        (50, ES),
        (51, CS),
        (52, SS),
        (53, DS),
        (54, FS),
        (55, GS),
        (58, FS_BASE),
        (59, GS_BASE),
    ],
    dwarf_ra: 16,
    in_delay_slot: None,
    gdb: &GDB,
    exception: None,
    returns: None,
};

/// gdb's amd64 Linux description (gdb `arch/amd64.c`, amd64_create_target_description, without AVX): the general
/// registers, eight of 10 bytes, eight of 4, sixteen of 16, mxcsr, then Linux' own and the segment bases.
const GDB: [GdbRegister; 27] = [
    GdbRegister::new("rax", 0, 0, 8, RAX),
    GdbRegister::new("rbx", 1, 8, 8, RBX),
    GdbRegister::new("rcx", 2, 16, 8, RCX),
    GdbRegister::new("rdx", 3, 24, 8, RDX),
    GdbRegister::new("rsi", 4, 32, 8, RSI),
    GdbRegister::new("rdi", 5, 40, 8, RDI),
    GdbRegister::new("rbp", 6, 48, 8, RBP),
    GdbRegister::new("rsp", 7, 56, 8, RSP),
    GdbRegister::new("r8", 8, 64, 8, R8),
    GdbRegister::new("r9", 9, 72, 8, R9),
    GdbRegister::new("r10", 10, 80, 8, R10),
    GdbRegister::new("r11", 11, 88, 8, R11),
    GdbRegister::new("r12", 12, 96, 8, R12),
    GdbRegister::new("r13", 13, 104, 8, R13),
    GdbRegister::new("r14", 14, 112, 8, R14),
    GdbRegister::new("r15", 15, 120, 8, R15),
    GdbRegister::new("rip", 16, 128, 8, RIP),
    GdbRegister::new("eflags", 17, 136, 4, EFLAGS),
    GdbRegister::new("cs", 18, 140, 4, CS),
    GdbRegister::new("ss", 19, 144, 4, SS),
    GdbRegister::new("ds", 20, 148, 4, DS),
    GdbRegister::new("es", 21, 152, 4, ES),
    GdbRegister::new("fs", 22, 156, 4, FS),
    GdbRegister::new("gs", 23, 160, 4, GS),
    GdbRegister::new("orig_rax", 57, 536, 8, ORIG_RAX),
    GdbRegister::new("fs_base", 58, 544, 8, FS_BASE),
    GdbRegister::new("gs_base", 59, 552, 8, GS_BASE),
];

pub(crate) static LINUX: LinuxAbi = LinuxAbi {
    mmap: 9,
    mmap_unit: 1,
    munmap: 11,
    memfd_create: 319,
    ftruncate: 77,
    close: 3,
    openat: 257,
    read: 0,
    mprotect: 10,
    prctl: 157,
    rt_sigreturn: 15,
    get_robust_list: 274,
    single_step: true,
    cacheflush: None,
    map_private: 0x02,
    map_anonymous: 0x20,
    map_fixed_noreplace: 0x10_0000,
    syscall_insn: &[0x0f, 0x05], // syscall
    insn_align: 1,
    syscall_return: &[
        &[0x0f, 0x05, 0xc3], // syscall; ret
    ],
    sigreturn_code: &[
        // mov rax, 15; syscall: what the C libraries hand to the kernel as SA_RESTORER, glibc's form
        &[0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
        // mov eax, 15; syscall: musl's and others'
        &[0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
    ],
    taken_back: None,
    restart_after_eintr: RESTART_AFTER_EINTR,
    eintr: 4,
    erestartnohand: 514,
    stack_args: None,
    resolver_hwcap: None,
    red_zone: 128,
};

/// Calls that report EINTR itself, not one of the kernel's ERESTART codes, when a stop interrupts their wait. EINTR is only
/// returned where nothing was transferred, accepted or dequeued, so the same call may be made again. A relative timeout
/// starts anew then.
///
/// Left out on purpose: `connect` (the attempt goes on; a second call fails with EALREADY), `close` (the descriptor
/// is gone already), `ioctl` and whatever else drivers give a meaning of their own, and all calls that the kernel restarts
/// by itself (`poll`, `select`, `futex`, `nanosleep`, `msgrcv`, `pause`, `wait4`, `io_pgetevents`, ...).
const RESTART_AFTER_EINTR: &[u64] = &[
    // Waiting for events: fs/eventpoll.c, ep_poll returns -EINTR before any event was copied out.
    232, // epoll_wait
    281, // epoll_pwait
    441, // epoll_pwait2
    // System V semaphores: ipc/sem.c, __do_semtimedop takes its entry off the queue, and the operations are all or nothing.
    65,  // semop
    220, // semtimedop
    // Waiting for a signal: kernel/signal.c, do_sigtimedwait returns -EINTR only when none was dequeued.
    128, // rt_sigtimedwait (sigwaitinfo, sigtimedwait)
    // Asynchronous I/O: fs/aio.c, io_getevents returns -EINTR only with no event; io_uring/io_uring.c, io_uring_enter
    // returns the number submitted if any was, the wait's error otherwise.
    208, // io_getevents
    426, // io_uring_enter
    // Receiving and accepting on a socket with SO_RCVTIMEO: include/net/sock.h, sock_intr_errno gives -EINTR where a
    // timeout is set (and -ERESTARTSYS where none is); a partial transfer is reported as its length instead.
    0,   // read
    19,  // readv
    43,  // accept
    288, // accept4
    45,  // recvfrom
    47,  // recvmsg
    299, // recvmmsg
    // Sending on a socket with SO_SNDTIMEO: the same function, for lack of buffer space; again only with nothing sent.
    1,   // write
    20,  // writev
    44,  // sendto
    46,  // sendmsg
    307, // sendmmsg
];

#[cfg(test)]
mod tests {
    use super::*;
    use tigerfix_core::arch::Reg;

    #[test]
    fn indices_and_names_agree() {
        for (r, name) in [(R15, "r15"), (RAX, "rax"), (ORIG_RAX, "orig_rax"), (RIP, "rip"), (RSP, "rsp"), (GS, "gs")] {
            assert_eq!(NAMES[usize::from(r)], name);
        }
        let dwarf = |n: u16| LAYOUT.dwarf.iter().find(|d| d.0 == n).map(|d| NAMES[usize::from(d.1)]);
        let names = [
            "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15", "rip",
        ];
        for (n, name) in names.iter().enumerate() {
            assert_eq!(dwarf(n as u16), Some(*name));
        }
        let others = [
            (49, "eflags"),
            (50, "es"),
            (51, "cs"),
            (52, "ss"),
            (53, "ds"),
            (54, "fs"),
            (55, "gs"),
            (58, "fs_base"),
            (59, "gs_base"),
        ];
        for (n, name) in others {
            assert_eq!(dwarf(n), Some(name));
        }
    }

    #[test]
    fn gdb_names_are_ours_and_rows_do_not_overlap() {
        for (i, row) in LAYOUT.gdb.iter().enumerate() {
            assert_eq!(row.name, NAMES[usize::from(row.reg)]);
            if let Some(next) = LAYOUT.gdb.get(i + 1) {
                assert!(row.number < next.number && row.offset + u16::from(row.size) <= next.offset, "{next:?}");
            }
        }
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64"))]
    fn layout_and_numbers_are_the_c_librarys() {
        use core::mem::{offset_of, size_of};
        use libc::user_regs_struct as U;
        assert_eq!(size_of::<U>(), usize::from(LAYOUT.count) * usize::from(LAYOUT.word));
        let at = |r: Reg| usize::from(r) * 8;
        assert_eq!(at(RAX), offset_of!(U, rax));
        assert_eq!(at(ORIG_RAX), offset_of!(U, orig_rax));
        assert_eq!(at(RIP), offset_of!(U, rip));
        assert_eq!(at(RSP), offset_of!(U, rsp));
        assert_eq!(at(FS_BASE), offset_of!(U, fs_base));
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
            libc::SYS_epoll_wait,
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
