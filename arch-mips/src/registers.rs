//! Registers, and what Linux expects in them.
//!
//! Odd in this ABI:
//! * The register set is that of PTRACE_GETREGS, 38 words of 64 bits also on 32-bit kernels and for 32-bit programs. The
//!   one of NT_PRSTATUS will not do: it leaves out the words for $0 and $26, in which the kernel keeps what it needs to make
//!   an interrupted system call again (`arch/mips/kernel/scall32-o32.S`, PT_R0 and PT_R26): the call's number, and the
//!   argument register that the error flag has overwritten.
//! * A failed system call sets $a3, and its errno in $v0 is positive. Only then is the word of $0 the call's number;
//!   after a success, and outside of calls, it is 0.
//! * $v0 is the number of a call and its result.
//! * O32 has the fifth system call argument and all that follow on the stack, behind the place that every caller leaves for
//!   the four in registers.
//! * The thread pointer is in no general register.
//! * A thread that is interrupted in the delay slot of a branch has the branch's address for its pc, and a bit in Cause.
//!
//! Sources: kernel `arch/mips/include/uapi/asm/ptrace.h` (struct pt_regs), `arch/mips/kernel/ptrace.c` (ptrace_getregs),
//! `arch/mips/kernel/syscalls/syscall_o32.tbl` and `syscall_n64.tbl`, `arch/mips/include/uapi/asm/mman.h`,
//! `include/linux/errno.h`; *System V ABI, MIPS RISC Processor Supplement*, "Registers".

use tigerfix_core::arch::{GdbRegister, LinuxAbi, Reg, RegisterLayout};

/// Indices into the register set.
mod index {
    use tigerfix_core::arch::Reg;
    /// Of an interrupted call: its number.
    pub(crate) const RESTART: Reg = 0;
    pub(crate) const V0: Reg = 2;
    #[cfg(test)]
    pub(crate) const A0: Reg = 4;
    pub(crate) const A3: Reg = 7;
    pub(crate) const T9: Reg = 25;
    /// Of an interrupted call: what was in $a3.
    #[cfg(any(test, feature = "alloc"))]
    pub(crate) const RESTART_A3: Reg = 26;
    pub(crate) const SP: Reg = 29;
    pub(crate) const RA: Reg = 31;
    pub(crate) const LO: Reg = 32;
    pub(crate) const HI: Reg = 33;
    pub(crate) const PC: Reg = 34;
    pub(crate) const BADVADDR: Reg = 35;
    pub(crate) const STATUS: Reg = 36;
    pub(crate) const CAUSE: Reg = 37;
}
pub(crate) use index::*;

/// `Cause.BD`: the exception was in a delay slot (*MIPS32 Architecture*, volume III, "Cause Register").
const CAUSE_BD: u64 = 1 << 31;

const COUNT: usize = 38;

const NAMES_32: [&str; COUNT] = [
    "zero", "at", "v0", "v1", "a0", "a1", "a2", "a3", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "s0", "s1", "s2",
    "s3", "s4", "s5", "s6", "s7", "t8", "t9", "k0", "k1", "gp", "sp", "fp", "ra", "lo", "hi", "pc", "badvaddr",
    "status", "cause",
];

const NAMES_64: [&str; COUNT] = [
    "zero", "at", "v0", "v1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "t0", "t1", "t2", "t3", "s0", "s1", "s2",
    "s3", "s4", "s5", "s6", "s7", "t8", "t9", "k0", "k1", "gp", "sp", "fp", "ra", "lo", "hi", "pc", "badvaddr",
    "status", "cause",
];

/// DWARF numbers: the general registers have their own, 64 and 65 are the multiplier's (gcc `config/mips/mips.h`).
const DWARF: [(u16, Reg); 34] = {
    let mut out = [(0, 0); 34];
    let mut i = 0;
    while i < 32 {
        out[i] = (i as u16, i as Reg);
        i += 1;
    }
    out[32] = (64, HI);
    out[33] = (65, LO);
    out
};

/// `Status.EXL` and `Status.ERL` (*MIPS32 Architecture*, volume III, "Status Register").
const STATUS_EXL_ERL: u64 = 0b110;

/// gdb's numbers (`gdb/mips-tdep.h`, `gdb/features/mips-linux.xml`), all in words of one size: the general registers, the rest
/// of the processor's, 32 of the floating point unit and its control words (38 to 71), and a word of Linux' own for what the
/// register set has in that of $0. The real $0 has no row: nothing is kept there.
const fn gdb(word: u16) -> [GdbRegister; COUNT] {
    const OF: [&str; 32] = [
        "", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "r16",
        "r17", "r18", "r19", "r20", "r21", "r22", "r23", "r24", "r25", "r26", "r27", "r28", "r29", "r30", "r31",
    ];
    const fn row(name: &'static str, number: u16, word: u16, reg: Reg) -> GdbRegister {
        GdbRegister::new(name, number, number * word, word as u8, reg)
    }
    let mut out = [row("restart", 72, word, RESTART); COUNT];
    let mut i = 1;
    while i < 32 {
        out[i - 1] = row(OF[i], i as u16, word, i as Reg);
        i += 1;
    }
    out[31] = row("status", 32, word, STATUS);
    out[32] = row("lo", 33, word, LO);
    out[33] = row("hi", 34, word, HI);
    out[34] = row("badvaddr", 35, word, BADVADDR);
    out[35] = row("cause", 36, word, CAUSE);
    out[36] = row("pc", 37, word, PC);
    out
}
static GDB_32: [GdbRegister; COUNT] = gdb(4);
static GDB_64: [GdbRegister; COUNT] = gdb(8);

pub(crate) static LAYOUT_32: RegisterLayout = RegisterLayout {
    count: COUNT as u8,
    word: 8,
    names: &NAMES_32,
    pc: PC,
    sp: SP,
    ra: Some(RA),
    tp: None,
    syscall_nr: V0,
    syscall_args: &[4, 5, 6, 7],
    result: V0,
    error_flag: Some(A3),
    restart_nr: Some(RESTART),
    restart_none: 0,
    call_clears: &[],
    entry: Some(T9),
    call_args: &[4, 5, 6, 7],
    dwarf: &DWARF,
    dwarf_ra: RA as u16,
    in_delay_slot: Some((CAUSE, CAUSE_BD)),
    gdb: &GDB_32,
    exception: Some((STATUS, STATUS_EXL_ERL)),
    returns: None,
};

pub(crate) static LAYOUT_64: RegisterLayout = RegisterLayout {
    names: &NAMES_64,
    gdb: &GDB_64,
    syscall_args: &[4, 5, 6, 7, 8, 9],
    call_args: &[4, 5, 6, 7, 8, 9, 10, 11],
    ..LAYOUT_32
};

/// Calls that report EINTR itself, not one of the kernel's ERESTART codes, when a stop interrupts their wait, and that may be
/// made again: the same as on other architectures, for the same reasons. Left out are `connect`, `close`, `ioctl`,
/// and what multiplexes them (`socketcall`, the indirect `syscall`); `ipc` is in, because of all that it stands for
/// only `semop` and `semtimedop` end with EINTR.
const RESTART_AFTER_EINTR_O32: &[u64] = &[
    4250, // epoll_wait
    4313, // epoll_pwait
    4441, // epoll_pwait2
    4117, // ipc
    4420, // semtimedop_time64
    4197, // rt_sigtimedwait
    4421, // rt_sigtimedwait_time64
    4243, // io_getevents
    4426, // io_uring_enter
    4003, // read
    4145, // readv
    4168, // accept
    4334, // accept4
    4175, // recv
    4176, // recvfrom
    4177, // recvmsg
    4335, // recvmmsg
    4417, // recvmmsg_time64
    4004, // write
    4146, // writev
    4178, // send
    4180, // sendto
    4179, // sendmsg
    4343, // sendmmsg
];

/// As [`RESTART_AFTER_EINTR_O32`].
const RESTART_AFTER_EINTR_N64: &[u64] = &[
    5209, // epoll_wait
    5272, // epoll_pwait
    5441, // epoll_pwait2
    5063, // semop
    5214, // semtimedop
    5126, // rt_sigtimedwait
    5202, // io_getevents
    5426, // io_uring_enter
    5000, // read
    5018, // readv
    5042, // accept
    5293, // accept4
    5044, // recvfrom
    5046, // recvmsg
    5294, // recvmmsg
    5001, // write
    5019, // writev
    5043, // sendto
    5045, // sendmsg
    5302, // sendmmsg
];

/// The words of a piece of code in memory.
const fn words<const BYTES: usize>(words: &[u32], big: bool) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    let mut i = 0;
    while i < BYTES {
        let word = if big { words[i / 4].to_be_bytes() } else { words[i / 4].to_le_bytes() };
        out[i] = word[i % 4];
        i += 1;
    }
    out
}

const SYSCALL: u32 = 0x0000_000c;
const JR_RA: u32 = 0x03e0_0008;
const NOP: u32 = 0;
/// `li v0, rt_sigreturn`, as the kernel's own code in the vDSO has it (`arch/mips/vdso/sigreturn.S`).
const LI_V0: u32 = 0x2402_0000;

const RT_SIGRETURN_O32: u32 = 4193;
const RT_SIGRETURN_N64: u32 = 5211;

const LE_SYSCALL: [u8; 4] = words(&[SYSCALL], false);
const BE_SYSCALL: [u8; 4] = words(&[SYSCALL], true);
/// How C libraries end a call that cannot fail (getpid and the like).
const LE_RETURN: [u8; 12] = words(&[SYSCALL, JR_RA, NOP], false);
const BE_RETURN: [u8; 12] = words(&[SYSCALL, JR_RA, NOP], true);
const LE_SIGRETURN_O32: [u8; 8] = words(&[LI_V0 | RT_SIGRETURN_O32, SYSCALL], false);
const BE_SIGRETURN_O32: [u8; 8] = words(&[LI_V0 | RT_SIGRETURN_O32, SYSCALL], true);
const LE_SIGRETURN_N64: [u8; 8] = words(&[LI_V0 | RT_SIGRETURN_N64, SYSCALL], false);
const BE_SIGRETURN_N64: [u8; 8] = words(&[LI_V0 | RT_SIGRETURN_N64, SYSCALL], true);

pub(crate) static LINUX_O32_LE: LinuxAbi = LinuxAbi {
    mmap: 4210, // mmap2
    mmap_unit: 4096,
    munmap: 4091,
    memfd_create: 4354,
    ftruncate: 4093,
    close: 4006,
    openat: 4288,
    read: 4003,
    mprotect: 4125,
    prctl: 4192,
    rt_sigreturn: RT_SIGRETURN_O32 as u64,
    get_robust_list: 4310,
    single_step: false,
    cacheflush: Some(4147),
    map_private: 0x02,
    map_anonymous: 0x800,
    map_fixed_noreplace: 0x10_0000,
    stack_args: Some(4),
    syscall_insn: &LE_SYSCALL,
    insn_align: 4,
    syscall_return: &[&LE_RETURN],
    sigreturn_code: &[&LE_SIGRETURN_O32],
    taken_back: None,
    restart_after_eintr: RESTART_AFTER_EINTR_O32,
    eintr: 4,
    erestartnohand: 514,
    resolver_hwcap: None, // has no such functions
    red_zone: 0,
};

pub(crate) static LINUX_O32_BE: LinuxAbi = LinuxAbi {
    syscall_insn: &BE_SYSCALL,
    syscall_return: &[&BE_RETURN],
    sigreturn_code: &[&BE_SIGRETURN_O32],
    ..LINUX_O32_LE
};

pub(crate) static LINUX_N64_LE: LinuxAbi = LinuxAbi {
    mmap: 5009,
    mmap_unit: 1,
    munmap: 5011,
    memfd_create: 5314,
    ftruncate: 5075,
    close: 5003,
    openat: 5247,
    read: 5000,
    mprotect: 5010,
    prctl: 5153,
    rt_sigreturn: RT_SIGRETURN_N64 as u64,
    get_robust_list: 5269,
    cacheflush: Some(5197),
    stack_args: None,
    sigreturn_code: &[&LE_SIGRETURN_N64],
    taken_back: None,
    restart_after_eintr: RESTART_AFTER_EINTR_N64,
    ..LINUX_O32_LE
};

pub(crate) static LINUX_N64_BE: LinuxAbi = LinuxAbi {
    syscall_insn: &BE_SYSCALL,
    syscall_return: &[&BE_RETURN],
    sigreturn_code: &[&BE_SIGRETURN_N64],
    ..LINUX_N64_LE
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_and_names_agree() {
        for layout in [&LAYOUT_32, &LAYOUT_64] {
            let name = |r: Reg| layout.names[usize::from(r)];
            for (r, n) in [(V0, "v0"), (A0, "a0"), (A3, "a3"), (T9, "t9"), (RESTART_A3, "k0"), (SP, "sp"), (RA, "ra")] {
                assert_eq!(name(r), n);
            }
            for (r, n) in [(LO, "lo"), (HI, "hi"), (PC, "pc"), (CAUSE, "cause")] {
                assert_eq!(name(r), n);
            }
            assert_eq!(layout.names.len(), usize::from(layout.count));
            let dwarf = |n: u16| layout.dwarf.iter().find(|d| d.0 == n).map(|d| name(d.1));
            assert_eq!((dwarf(29), dwarf(layout.dwarf_ra), dwarf(64)), (Some("sp"), Some("ra"), Some("hi")));
            let args = layout.syscall_args;
            assert!(args.iter().enumerate().all(|(i, r)| name(*r) == ["a0", "a1", "a2", "a3", "a4", "a5"][i]));
        }
    }

    #[test]
    fn code_in_both_orders() {
        assert_eq!(LINUX_O32_LE.sigreturn_code[0], [0x61, 0x10, 0x02, 0x24, 0x0c, 0, 0, 0]);
        assert_eq!(LINUX_O32_BE.sigreturn_code[0], [0x24, 0x02, 0x10, 0x61, 0, 0, 0, 0x0c]);
        assert_eq!(LINUX_N64_BE.sigreturn_code[0], [0x24, 0x02, 0x14, 0x5b, 0, 0, 0, 0x0c]);
        assert_eq!(LINUX_N64_LE.syscall_return[0], [0x0c, 0, 0, 0, 0x08, 0, 0xe0, 0x03, 0, 0, 0, 0]);
        assert_eq!(LINUX_N64_BE.syscall_insn, [0, 0, 0, 0x0c]);
    }

    #[test]
    #[cfg(all(target_os = "linux", any(target_arch = "mips", target_arch = "mips64")))]
    fn numbers_are_the_c_librarys() {
        let linux = if cfg!(target_arch = "mips") { &LINUX_O32_LE } else { &LINUX_N64_LE };
        let numbers = [
            (linux.munmap, libc::SYS_munmap as u64),
            (linux.memfd_create, libc::SYS_memfd_create as u64),
            (linux.ftruncate, libc::SYS_ftruncate as u64),
            (linux.close, libc::SYS_close as u64),
            (linux.prctl, libc::SYS_prctl as u64),
            (linux.rt_sigreturn, libc::SYS_rt_sigreturn as u64),
            (linux.get_robust_list, libc::SYS_get_robust_list as u64),
            (linux.cacheflush.unwrap_or(0), libc::SYS_cacheflush as u64),
            (linux.map_anonymous, libc::MAP_ANONYMOUS as u64),
        ];
        for (ours, theirs) in numbers {
            assert_eq!(ours, theirs);
        }
    }
}
