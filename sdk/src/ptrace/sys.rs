//! The system calls of the transport: the only file of it with `unsafe`.
//!
//! `nix` covers what it can. The rest is here because nix's signal type knows no real-time signals, which a traced
//! program may well use, and because it waits without WNOWAIT (see [`peek`]).

// The type of ptrace requests, and of their constants, differs between C libraries.
#![allow(clippy::unnecessary_cast)]

use nix::errno::Errno;
use std::io::IoSliceMut;
use std::mem::{MaybeUninit, size_of};
use std::sync::atomic::{AtomicBool, Ordering};

type Result<T> = std::result::Result<T, Errno>;

/// Options of every seized thread: exec and system call stops can be told from signals.
pub(super) const OPTIONS: usize = (libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD) as usize;
/// Takes the thread's seccomp filters out of action (needs CAP_SYS_ADMIN and CONFIG_CHECKPOINT_RESTORE).
pub(super) const SUSPEND_SECCOMP: usize = libc::PTRACE_O_SUSPEND_SECCOMP as usize;
/// `PTRACE_EVENT_STOP`: the stop that PTRACE_INTERRUPT asks for, and group stops (kernel include/uapi/linux/ptrace.h).
pub(super) const EVENT_STOP: i32 = 128;
/// `PTRACE_EVENT_EXEC`
pub(super) const EVENT_EXEC: i32 = libc::PTRACE_EVENT_EXEC;
/// General registers (kernel include/uapi/linux/elf.h).
#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
const NT_PRSTATUS: usize = 1;
/// Floating point registers.
const NT_PRFPREG: usize = 2;
/// The XSAVE area of x86.
const NT_X86_XSTATE: usize = 0x202;
/// The DSP accumulators of MIPS.
const NT_MIPS_DSP: usize = 0x800;
/// The long vectors of AArch64; their lower parts are floating point registers as well.
const NT_ARM_SVE: usize = 0x405;
/// Register sets that hold state beside the general registers, in the order in which they are put back. Of each group the first
/// is taken that there is; a number that belongs to another architecture is refused by the kernel.
pub(super) const EXTENDED_STATE: [&[usize]; 3] = [&[NT_X86_XSTATE, NT_PRFPREG], &[NT_MIPS_DSP], &[NT_ARM_SVE]];
/// PTRACE_GET_RSEQ_CONFIGURATION, since Linux 5.13; not in every libc.
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;

/// How a stopped thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// Until the next signal or event.
    On,
    /// Also stops at system call entry and exit.
    ToSyscall,
}

/// What a traced thread reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It is stopped: on a signal that is about to be delivered (`event` 0), or for `event`.
    Stop { sig: i32, event: i32 },
    /// It ended.
    Dead,
}

impl Event {
    /// Entry or exit of a system call (PTRACE_O_TRACESYSGOOD).
    pub(super) const SYSCALL: Event = Event::Stop { sig: libc::SIGTRAP | 0x80, event: 0 };
}

fn ptrace(request: u32, tid: i32, addr: usize, data: usize) -> Result<()> {
    // SAFETY: all requests that come here take plain numbers, or `data` is the address of a live object of the size that
    // the request writes or reads (the callers below pass a reference that outlives the call).
    let r = unsafe { libc::ptrace(request as _, tid, addr as *mut libc::c_void, data as *mut libc::c_void) };
    Errno::result(r).map(drop)
}

/// Attaches without stopping.
pub(super) fn seize(tid: i32, options: usize) -> Result<()> {
    loop {
        match ptrace(libc::PTRACE_SEIZE as u32, tid, 0, options) {
            // The kernel waits for the target's cred_guard_mutex, interruptibly.
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Asks for a stop with [`EVENT_STOP`], also on top of the stop that the thread may be in.
pub(super) fn interrupt(tid: i32) -> Result<()> {
    ptrace(libc::PTRACE_INTERRUPT as u32, tid, 0, 0)
}

pub(super) fn set_options(tid: i32, options: usize) -> Result<()> {
    ptrace(libc::PTRACE_SETOPTIONS as u32, tid, 0, options)
}

/// Lets a stopped thread go on, with signal `sig` (0: none) where it was stopped on a signal.
pub(super) fn go(tid: i32, how: Go, sig: i32) -> Result<()> {
    let request = match how {
        Go::On => libc::PTRACE_CONT,
        Go::ToSyscall => libc::PTRACE_SYSCALL,
    };
    ptrace(request as u32, tid, 0, sig as usize)
}

/// Lets a stopped thread go, for good.
pub(super) fn detach(tid: i32) -> Result<()> {
    ptrace(libc::PTRACE_DETACH as u32, tid, 0, 0)
}

/// Reads a register set; returns its length.
pub(super) fn get_regset(tid: i32, note: usize, buf: &mut [u8]) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    ptrace(libc::PTRACE_GETREGSET as u32, tid, note, (&raw mut iov) as usize)?;
    Ok(iov.iov_len)
}

/// Writes a register set.
pub(super) fn set_regset(tid: i32, note: usize, buf: &[u8]) -> Result<()> {
    let mut iov = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    ptrace(libc::PTRACE_SETREGSET as u32, tid, note, (&raw mut iov) as usize)
}

/// Reads the general registers; returns the length of the set.
#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
pub(super) fn get_registers(tid: i32, buf: &mut [u8]) -> Result<usize> {
    get_regset(tid, NT_PRSTATUS, buf)
}

/// Writes the general registers.
#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
pub(super) fn set_registers(tid: i32, buf: &[u8]) -> Result<()> {
    set_regset(tid, NT_PRSTATUS, buf)
}

/// 38 words of 64 bits: NT_PRSTATUS lacks those in which MIPS kernels keep how to restart a system call
/// (arch/mips/kernel/ptrace.c, ptrace_getregs and gpr32_set).
#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
const GETREGS_LEN: usize = 38 * 8;

/// Reads the general registers; returns the length of the set.
#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
pub(super) fn get_registers(tid: i32, buf: &mut [u8]) -> Result<usize> {
    const PTRACE_GETREGS: u32 = 12;
    let buf = buf.get_mut(..GETREGS_LEN).ok_or(Errno::EINVAL)?;
    ptrace(PTRACE_GETREGS, tid, 0, buf.as_mut_ptr() as usize)?;
    Ok(GETREGS_LEN)
}

/// Writes the general registers.
#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
pub(super) fn set_registers(tid: i32, buf: &[u8]) -> Result<()> {
    const PTRACE_SETREGS: u32 = 13;
    if buf.len() != GETREGS_LEN {
        return Err(Errno::EINVAL);
    }
    ptrace(PTRACE_SETREGS, tid, 0, buf.as_ptr() as usize)
}

/// An address in the thread's control block, where the thread pointer is in no general register.
#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
pub(super) fn thread_block(tid: i32) -> Option<u64> {
    const PTRACE_GET_THREAD_AREA: u32 = 25;
    /// The thread pointer is that far past the end of the block, which variables with initial values follow
    /// (glibc sysdeps/mips/nptl/tls.h, TLS_TCB_OFFSET).
    const BIAS: u64 = 0x7000;
    let mut pointer = 0usize;
    ptrace(PTRACE_GET_THREAD_AREA, tid, 0, (&raw mut pointer) as usize).ok()?;
    (pointer as u64).checked_sub(BIAS + 1)
}

/// An address in the thread's control block, where the thread pointer is in no general register.
#[cfg(target_arch = "aarch64")]
pub(super) fn thread_block(tid: i32) -> Option<u64> {
    const NT_ARM_TLS: usize = 0x401;
    // With SME there is a second pointer behind it.
    let mut pointers = [0u8; 16];
    get_regset(tid, NT_ARM_TLS, &mut pointers).ok()?;
    pointers.first_chunk().map(|p| u64::from_ne_bytes(*p))
}

/// An address in the thread's control block, where the thread pointer is in no general register.
#[cfg(not(any(target_arch = "mips", target_arch = "mips64", target_arch = "aarch64")))]
pub(super) fn thread_block(_: i32) -> Option<u64> {
    None
}

/// Is the thread in the streaming mode of SME? To read and write back its vectors as NT_ARM_SVE would take it out of that
/// (kernel arch/arm64/kernel/ptrace.c, sve_init_header_from_task and sve_set_common).
#[cfg(target_arch = "aarch64")]
pub(super) fn is_streaming(tid: i32) -> bool {
    const NT_ARM_SSVE: usize = 0x40b;
    // `struct user_sve_header`.
    let mut header = [0u8; 16];
    get_regset(tid, NT_ARM_SSVE, &mut header).is_ok_and(|len| len == header.len() && streaming_flag(&header))
}

/// `SVE_PT_REGS_SVE` in the `flags` of a `struct user_sve_header` (kernel arch/arm64/include/uapi/asm/ptrace.h): of the two sets
/// of vectors only the one that is in use has it.
#[cfg(any(target_arch = "aarch64", test))]
fn streaming_flag(header: &[u8; 16]) -> bool {
    // Behind `size` and `max_size` (32 bits each), `vl` and `max_vl` (16).
    u16::from_ne_bytes([header[12], header[13]]) & 1 != 0
}

/// Is the thread in the streaming mode of SME?
#[cfg(not(target_arch = "aarch64"))]
pub(super) fn is_streaming(_: i32) -> bool {
    false
}

/// Does the stopped thread have a guarded control stack (kernel arch/arm64/include/uapi/asm/ptrace.h, `struct user_gcs`)? Of
/// those the status in /proc says nothing.
#[cfg(target_arch = "aarch64")]
pub(super) fn has_guarded_stack(tid: i32) -> bool {
    const NT_ARM_GCS: usize = 0x410;
    /// PR_SHADOW_STACK_ENABLE
    const ENABLE: u64 = 1;
    // `features_enabled`, the first of three.
    let mut features = [0u8; 8];
    get_regset(tid, NT_ARM_GCS, &mut features).is_ok_and(|len| len == 8 && u64::from_ne_bytes(features) & ENABLE != 0)
}

/// Does the stopped thread have a guarded control stack?
#[cfg(not(target_arch = "aarch64"))]
pub(super) fn has_guarded_stack(_: i32) -> bool {
    false
}

/// A kernel's `sigset_t`: an array of longs, the one with the lowest signals first. There are 64 signals, on MIPS 128
/// (include/uapi/asm-generic/signal.h, arch/mips/include/uapi/asm/signal.h).
type SigSet = [u8; if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 16 } else { 8 }];

/// Is it a kernel with longs of 64 bits, under a tool that has 32?
fn kernel_is_wider() -> bool {
    cfg!(target_pointer_width = "32")
        && nix::sys::utsname::uname().is_ok_and(|u| u.machine().to_str().is_some_and(|m| m.contains("64")))
}

/// Turns a mask with bit 0 for signal 1 into a set, or back: both are the same exchange of words.
fn exchange(bytes: SigSet) -> SigSet {
    let mut out = bytes;
    if cfg!(target_endian = "big") {
        let long = if kernel_is_wider() { 8 } else { size_of::<usize>() };
        for (to, from) in out.chunks_exact_mut(long).zip(bytes.chunks_exact(long)) {
            to.iter_mut().zip(from.iter().rev()).for_each(|(t, f)| *t = *f);
        }
    }
    out
}

/// The thread's mask of blocked signals, bit 0 for signal 1; in calls like ppoll, the mask that it returns to.
pub(super) fn get_sigmask(tid: i32) -> Result<u128> {
    let mut set: SigSet = [0; size_of::<SigSet>()];
    ptrace(libc::PTRACE_GETSIGMASK as u32, tid, size_of::<SigSet>(), (&raw mut set) as usize)?;
    let mut mask = [0; 16];
    mask[..size_of::<SigSet>()].copy_from_slice(&exchange(set));
    Ok(u128::from_le_bytes(mask))
}

pub(super) fn set_sigmask(tid: i32, mask: u128) -> Result<()> {
    let mut set: SigSet = [0; size_of::<SigSet>()];
    set.copy_from_slice(&mask.to_le_bytes()[..size_of::<SigSet>()]);
    let set = exchange(set);
    ptrace(libc::PTRACE_SETSIGMASK as u32, tid, size_of::<SigSet>(), (&raw const set) as usize)
}

/// Writes one word, through any protection.
pub(super) fn poke(tid: i32, addr: usize, word: usize) -> Result<()> {
    ptrace(libc::PTRACE_POKEDATA as u32, tid, addr, word)
}

/// Number and code of the signal that a thread is stopped on; ESRCH while it is not stopped.
pub(super) fn siginfo(tid: i32) -> Result<(i32, i32)> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    ptrace(libc::PTRACE_GETSIGINFO as u32, tid, 0, info.as_mut_ptr() as usize)?;
    // SAFETY: all zero is a valid siginfo_t, and the kernel has filled it.
    let info = unsafe { info.assume_init() };
    Ok((info.si_signo, info.si_code))
}

/// Address of the thread's `struct rseq`, if it registered one.
pub(super) fn rseq_area(tid: i32) -> Option<u64> {
    /// `struct ptrace_rseq_configuration`
    #[repr(C)]
    struct Configuration {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut c = Configuration { pointer: 0, size: 0, signature: 0, flags: 0, pad: 0 };
    ptrace(GET_RSEQ_CONFIGURATION, tid, size_of::<Configuration>(), (&raw mut c) as usize).ok()?;
    (c.pointer != 0).then_some(c.pointer)
}

fn waitid(tid: i32, flags: i32) -> Result<Option<(i32, i32)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is writable and large enough.
    let r = unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, info.as_mut_ptr(), flags | libc::__WALL) };
    Errno::result(r)?;
    // SAFETY: all zero is a valid siginfo_t, the kernel filled it, and waitid's fields are the ones to read.
    let (pid, code, status) = unsafe {
        let info = info.assume_init();
        (info.si_pid(), info.si_code, info.si_status())
    };
    Ok((pid != 0).then_some((code, status)))
}

/// What the thread reports, if anything, without taking the report away.
///
/// A report that was taken (any wait without WNOWAIT) has the signal's number with it: should the tool be gone before it let
/// the thread go on, the signal would be lost (kernel/exit.c, wait_task_stopped clears `exit_code`, from which ptrace_stop
/// takes the signal). Left in place, the signal is delivered even then.
pub(super) fn peek(tid: i32) -> Result<Option<Event>> {
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    Ok(match waitid(tid, flags) {
        Ok(None) => None,
        Ok(Some((libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED, _))) | Err(Errno::ECHILD) => Some(Event::Dead),
        Ok(Some((_, status))) => Some(Event::Stop { sig: status & 0xff, event: status >> 8 }),
        Err(Errno::EINTR) => None,
        Err(e) => return Err(e),
    })
}

/// As [`peek`], for the case that someone else in this process took the report (a wait for any child does): asks the thread.
pub(super) fn probe(tid: i32) -> Option<Event> {
    let (sig, code) = siginfo(tid).ok()?;
    // ptrace_do_notify gives the code of its stops as (event << 8 | signal), or SIGTRAP | 0x80 (kernel/signal.c).
    Some(if code >> 8 > 0 && code & 0xff == sig || (sig == libc::SIGTRAP && code == libc::SIGTRAP | 0x80) {
        Event::Stop { sig: code & 0xff, event: code >> 8 }
    } else {
        Event::Stop { sig, event: 0 }
    })
}

/// Takes the report of a thread's end, so that the kernel can forget it.
pub(super) fn reap(tid: i32) {
    // Nothing to do about errors: then there is nothing to take.
    let _ = waitid(tid, libc::WEXITED | libc::WNOHANG);
}

/// Reads memory that the target itself may read; returns how much there was.
pub(super) fn vm_read(pid: i32, addr: usize, buf: &mut [u8]) -> Result<usize> {
    let len = buf.len();
    let remote = [nix::sys::uio::RemoteIoVec { base: addr, len }];
    nix::sys::uio::process_vm_readv(nix::unistd::Pid::from_raw(pid), &mut [IoSliceMut::new(buf)], &remote)
}

/// Sends a signal to one thread.
pub(super) fn tgkill(pid: i32, tid: i32, sig: i32) -> Result<()> {
    // SAFETY: three numbers.
    let r = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, sig) };
    Errno::result(r).map(drop)
}

/// Does process `pid` exist, and may we send it signals?
pub(super) fn exists(pid: i32) -> Result<()> {
    // SAFETY: two numbers; signal 0 only checks.
    Errno::result(unsafe { libc::kill(pid, 0) }).map(drop)
}

/// While it lives, the signal that the kernel sends when a traced thread stops (SIGCHLD) is kept back in this thread,
/// so that waiting for it misses none.
pub struct ChildSignal {
    before: libc::sigset_t,
    foreign: bool,
}

impl ChildSignal {
    fn set() -> libc::sigset_t {
        // SAFETY: a zeroed sigset_t is a valid one, and both calls only write to it.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            set
        }
    }

    /// Keeps the signal back from now on.
    pub fn block() -> ChildSignal {
        let set = ChildSignal::set();
        // SAFETY: as above for the zeroed set; the call reads one set and writes the other, both live.
        let before = unsafe {
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
            before
        };
        ChildSignal { before, foreign: false }
    }

    /// Sleeps until the signal comes, for whichever thread, or `limit` has passed.
    pub fn wait(&mut self, limit: std::time::Duration) {
        let set = ChildSignal::set();
        let time =
            libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(limit.subsec_nanos().min(999_999_999) as i32) };
        // SAFETY: a zeroed siginfo_t is a valid one; the call reads `set` and `time` and writes `info`, all live.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            if libc::sigtimedwait(&raw const set, &raw mut info, &raw const time) == libc::SIGCHLD {
                self.foreign |= !matches!(info.si_code, libc::CLD_TRAPPED | libc::CLD_STOPPED);
            }
        }
    }
}

impl Drop for ChildSignal {
    fn drop(&mut self) {
        // SAFETY: `before` is the set that `block` was given; kill takes plain numbers.
        unsafe {
            // A handler that the embedding program has for its own children must not miss one.
            if self.foreign {
                libc::kill(libc::getpid(), libc::SIGCHLD);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut());
        }
    }
}

/// Size of a page, bytes.
pub fn page_size() -> u64 {
    // SAFETY: takes a plain number.
    let n = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(n).ok().filter(|n| *n > 0).unwrap_or(4096)
}

/// The highest ordinary priority, as long as it lives and where we have the right to it: while threads of the target are
/// stopped, they wait for us.
#[derive(Debug)]
pub struct Urgent {
    before: libc::c_int,
}

impl Urgent {
    /// From now on. `None`: without the right to it nothing changes.
    pub fn begin() -> Option<Urgent> {
        // SAFETY: both calls take plain numbers, and are about the calling thread only.
        unsafe {
            let before = libc::getpriority(libc::PRIO_PROCESS, 0);
            (libc::setpriority(libc::PRIO_PROCESS, 0, -20) == 0).then_some(Urgent { before })
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // SAFETY: takes plain numbers.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, self.before) };
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Has one of the signals of [`install_interrupt_flag`] come?
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// From now on SIGINT, SIGTERM and SIGHUP set a flag and do nothing else. Those that are ignored (nohup) stay ignored.
pub(super) fn install_interrupt_flag() {
    for sig in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: all zero is a valid sigaction; the handler only stores to an atomic, which is async-signal-safe; it has
        // the signature that a handler without SA_SIGINFO has. The pointers are to locals.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(sig, std::ptr::null(), &raw mut old) == 0 && old.sa_sigaction != libc::SIG_IGN {
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = on_interrupt as *const () as usize;
                new.sa_flags = libc::SA_RESTART;
                libc::sigemptyset(&raw mut new.sa_mask);
                libc::sigaction(sig, &raw const new, std::ptr::null_mut());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streaming_flag_is_that_of_the_set_in_use() {
        // As Linux gives it for vectors of 32 bytes: size, max_size, vl, max_vl, flags, reserved.
        let header = |flags: u16| {
            let mut h = [0; 16];
            h[..4].copy_from_slice(&1112u32.to_ne_bytes());
            h[4..8].copy_from_slice(&1112u32.to_ne_bytes());
            h[8..10].copy_from_slice(&32u16.to_ne_bytes());
            h[10..12].copy_from_slice(&32u16.to_ne_bytes());
            h[12..14].copy_from_slice(&flags.to_ne_bytes());
            h
        };
        assert!(streaming_flag(&header(1)));
        assert!(streaming_flag(&header(3)));
        // SVE_PT_VL_INHERIT alone.
        assert!(!streaming_flag(&header(2)));
        assert!(!streaming_flag(&header(0)));
    }
}
