//! The system calls behind the transport: the only file of this crate with `unsafe`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// A thread id.
pub type Tid = libc::pid_t;

/// `NT_PRSTATUS` (include/uapi/linux/elf.h): general registers.
pub const NT_PRSTATUS: usize = 1;
/// `NT_X86_XSTATE` and `NT_PRFPREG`: extended state, tried in this order.
pub const EXTENDED_STATE: [usize; 2] = [0x202, 2];
/// `PTRACE_O_SUSPEND_SECCOMP` (include/uapi/linux/ptrace.h).
pub const O_SUSPEND_SECCOMP: usize = 1 << 21;
/// `PTRACE_O_TRACESYSGOOD`
pub const O_TRACESYSGOOD: usize = 1;
/// `PTRACE_EVENT_STOP`
const EVENT_STOP: i32 = 128;

fn request(request: libc::c_uint, tid: Tid, addr: usize, data: usize) -> io::Result<()> {
    // SAFETY: the requests made through here take plain numbers, or pointers to buffers that outlive the call; the
    // kernel checks every argument and touches none of our memory beyond the buffers named in `data`.
    let r = unsafe { libc::ptrace(request as _, tid, addr as *mut libc::c_void, data as *mut libc::c_void) };
    if r == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches without stopping.
pub fn seize(tid: Tid, options: usize) -> io::Result<()> {
    request(libc::PTRACE_SEIZE as _, tid, 0, options)
}

/// Asks a seized thread to stop.
pub fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT as _, tid, 0, 0)
}

/// Lets a stopped thread go on and delivers `signal` (0: none).
pub fn cont(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT as _, tid, 0, signal as usize)
}

/// Lets a stopped thread go on until the next system call boundary.
pub fn cont_to_syscall(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL as _, tid, 0, 0)
}

/// Executes one instruction of a stopped thread.
pub fn step(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP as _, tid, 0, 0)
}

/// Detaches a stopped thread and delivers `signal` (0: none).
pub fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH as _, tid, 0, signal as usize)
}

/// Reads a register set; returns how many bytes of `buf` it has.
pub fn get_regset(tid: Tid, kind: usize, buf: &mut [u8]) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    request(libc::PTRACE_GETREGSET as _, tid, kind, &raw mut iov as usize)?;
    Ok(iov.iov_len)
}

/// Writes a register set.
pub fn set_regset(tid: Tid, kind: usize, buf: &[u8]) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    request(libc::PTRACE_SETREGSET as _, tid, kind, &raw mut iov as usize)
}

/// `PTRACE_GETSIGMASK` and `PTRACE_SETSIGMASK` (include/uapi/linux/ptrace.h).
const GETSIGMASK: libc::c_uint = 0x420a;
const SETSIGMASK: libc::c_uint = 0x420b;

/// The blocked signals of a stopped thread.
pub fn sigmask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0u64;
    request(GETSIGMASK, tid, size_of::<u64>(), &raw mut mask as usize)?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
pub fn set_sigmask(tid: Tid, mask: u64) -> io::Result<()> {
    request(SETSIGMASK, tid, size_of::<u64>(), &raw const mask as usize)
}

/// Writes one word of a stopped thread's memory.
pub fn poke(tid: Tid, addr: usize, word: usize) -> io::Result<()> {
    request(libc::PTRACE_POKEDATA as _, tid, addr, word)
}

/// What a wait found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing yet.
    Nothing,
    /// Stopped because we asked; `group` where the whole process is stopped by a job control signal.
    Interrupted {
        /// Stopped by job control too.
        group: bool,
    },
    /// At a system call boundary.
    Syscall,
    /// About to get this signal.
    Signal(i32),
    /// It ended.
    Gone,
}

/// Looks whether `tid` stopped or ended; never blocks.
pub fn try_wait(tid: Tid) -> Wait {
    let mut status = 0;
    // SAFETY: `status` is valid for the write; no other memory is involved.
    let r = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
    if r == 0 {
        return Wait::Nothing;
    }
    if r < 0 {
        return if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            Wait::Nothing
        } else {
            Wait::Gone
        };
    }
    if !libc::WIFSTOPPED(status) {
        return Wait::Gone;
    }
    let signal = libc::WSTOPSIG(status);
    if status >> 16 == EVENT_STOP {
        return Wait::Interrupted { group: signal != libc::SIGTRAP };
    }
    if signal == libc::SIGTRAP | 0x80 { Wait::Syscall } else { Wait::Signal(signal) }
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

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Makes SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process: a patch is never left half way because
/// the user lost patience.
pub fn install_interrupt_flag() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: a zeroed sigaction is a valid one; the handler only stores to an atomic, which is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Did one of those signals come?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
