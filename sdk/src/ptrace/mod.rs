//! The transport to a Linux process on this machine: ptrace(2), process_vm_readv(2) and /proc/PID/mem.
//!
//! What it promises, whatever happens to the tool itself, down to SIGKILL at any moment:
//!
//! * No thread is traced while it runs. [`Threads::stop_all`] seizes and stops, [`Threads::resume_all`] detaches. A
//!   thread that stayed seized would stop at its next signal and wait for a tracer that is busy or sleeping.
//! * Signals are neither lost nor doubled, job control keeps its state, and interrupted system calls go on
//!   (`threads.rs`).
//! * A thread that was made to call something finds its own way back (`calls.rs`).
//!
//! ptrace belongs to the OS thread that attached: requests from others fail with ESRCH. [`PtraceTarget`] therefore is not
//! `Send`. The kernel detaches from everything when that thread ends (kernel/ptrace.c, exit_ptrace).
//!
//! Sources: ptrace(2), proc(5); kernel `kernel/ptrace.c`, `kernel/signal.c` (ptrace_stop, do_jobctl_trap, get_signal),
//! `fs/proc/base.c` (mem_rw, proc_task_getattr), `mm/memory.c` (__access_remote_vm).

mod calls;
mod maps;
mod sys;
mod threads;

use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::{Arch, ElfIdent};
use tigerfix_core::program::ident_of;
use tigerfix_core::target::{CacheFlush, Calls, Mappings, Target, TargetError, Threads};

/// A running process.
///
/// Not `Send`: all calls have to come from the OS thread that made the first one.
pub struct PtraceTarget {
    pid: i32,
    name: String,
    arch: &'static dyn Arch,
    /// /proc/PID/mem. It refers to the address space that was there when it was opened: after an exec, or when the pid was
    /// given to another process, nothing can be read or written by it.
    mem: File,
    /// Is the process our own child? Then its end is reported once only, and the report is not ours to take.
    own_child: bool,
    tasks: BTreeMap<i32, threads::Task>,
    /// Calls that threads were let go to make, where the kernel does not tell which call a thread was in.
    left: BTreeMap<i32, crate::restart::Wait>,
    held: Option<calls::Held>,
    code: Option<calls::Code>,
    stop_deadline: Duration,
    urgent: Option<sys::Urgent>,
    not_send: PhantomData<*const ()>,
}

impl std::fmt::Debug for PtraceTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PtraceTarget").field("pid", &self.pid).field("name", &self.name).finish_non_exhaustive()
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP of this process only set a flag, which [`interrupted`] (and through it
/// [`Target::interrupted`]) reads: a session ends at the next step that can be undone. Ignored signals stay ignored.
pub fn install_interrupt_flag() {
    sys::install_interrupt_flag();
}

/// Did a signal ask this process to end, since [`install_interrupt_flag`]?
#[must_use]
pub fn interrupted() -> bool {
    sys::interrupted()
}

/// Class, byte order and machine of the program that process `pid` runs, to choose the back end by.
///
/// # Errors
/// [`TargetError::Gone`], [`TargetError::NotPermitted`], or a rule of [`PtraceTarget::open`].
pub fn executable_ident(pid: i32) -> Result<ElfIdent, TargetError> {
    Status::of(pid)?;
    let mut file = File::open(format!("/proc/{pid}/exe")).map_err(|e| proc_error(pid, "open", "exe", &e))?;
    // ident_of needs the file header only: 64 bytes in either class.
    let mut header = [0u8; 64];
    let mut len = 0;
    while len < header.len() {
        match file.read(&mut header[len..]).map_err(|e| proc_error(pid, "read", "exe", &e))? {
            0 => break,
            n => len += n,
        }
    }
    ident_of(&header[..len])
        .map_err(|e| unsuitable("not-elf", pid, &format!("runs something that is no ELF file: {e}")))
}

impl PtraceTarget {
    /// Opens process `pid` without attaching to it: nothing in it changes.
    ///
    /// # Errors
    /// [`TargetError::Gone`]; [`TargetError::NotPermitted`]; [`TargetError::AlreadyTraced`]; [`TargetError::Unsuitable`] with
    /// the rules `own-process`, `not-a-process`, `zombie`, `kernel-thread`, `seccomp`, `shadow-stack`, `other-architecture`.
    pub fn open(pid: i32, arch: &'static dyn Arch) -> Result<PtraceTarget, TargetError> {
        let status = Status::of(pid)?;
        if status.number("TracerPid") != 0 {
            return Err(TargetError::AlreadyTraced { what: process(pid), tracer: status.number("TracerPid") });
        }
        status.check_thread(pid)?;
        if let Err(why) = arch.accepts(&executable_ident(pid)?) {
            return Err(unsuitable("other-architecture", pid, &format!("runs a program that {why}")));
        }
        let mem = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map_err(|e| proc_error(pid, "attach to", "mem", &e))?;
        Ok(PtraceTarget {
            pid,
            name: status.text("Name").to_owned(),
            arch,
            mem,
            own_child: status.number("PPid") == std::process::id(),
            tasks: BTreeMap::new(),
            left: BTreeMap::new(),
            held: None,
            code: None,
            stop_deadline: Duration::from_secs(5),
            urgent: None,
            not_send: PhantomData,
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How long [`Threads::stop_all`] waits for the slowest thread (one that is deep in a driver, or waits for its vfork
    /// child) while the others stand. 5 s unless set.
    pub fn set_stop_deadline(&mut self, deadline: Duration) {
        self.stop_deadline = deadline;
    }

    fn read_mem(&self, addr: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        // process_vm_readv stops early where it comes to something unmapped or unreadable. /proc/PID/mem reads the
        // unreadable, too, and what is beyond the addresses of this tool.
        let done = usize::try_from(addr).map_or(0, |at| sys::vm_read(self.pid, at, buf).unwrap_or(0));
        if done == buf.len() {
            return Ok(());
        }
        let len = buf.len();
        self.mem
            .read_exact_at(&mut buf[done..], addr.wrapping_add(done as u64))
            .map_err(|e| memory("read", addr, len, e.to_string()))
    }

    /// Writes through /proc/PID/mem. The kernel lets it pass write protection and makes a private copy of the page
    /// (FOLL_FORCE), and flushes the instruction cache for executable mappings where the architecture asks for it.
    fn write_mem(&self, addr: u64, bytes: &[u8]) -> Result<(), TargetError> {
        self.mem.write_all_at(bytes, addr).map_err(|e| memory("write", addr, bytes.len(), e.to_string()))
    }

    /// Writes through the stopped thread `tid`, for kernels that restrict /proc/PID/mem (proc_mem.force_override=,
    /// CONFIG_PROC_MEM_NO_FORCE; fs/proc/base.c).
    fn poke_mem(&self, tid: i32, addr: u64, bytes: &[u8]) -> Result<(), TargetError> {
        const WORD: usize = size_of::<usize>();
        let mut at = addr & !(WORD as u64 - 1);
        let end = addr + bytes.len() as u64;
        if usize::try_from(end).is_err() {
            return Err(memory("write", addr, bytes.len(), "it is beyond the addresses of this tool".to_owned()));
        }
        while at < end {
            let mut word = [0u8; WORD];
            self.read_mem(at, &mut word)?;
            for (i, b) in word.iter_mut().enumerate() {
                let a = at + i as u64;
                if (addr..end).contains(&a) {
                    *b = bytes[(a - addr) as usize];
                }
            }
            sys::poke(tid, at as usize, usize::from_ne_bytes(word))
                .map_err(|e| memory("write", addr, bytes.len(), e.desc().to_owned()))?;
            at += WORD as u64;
        }
        Ok(())
    }
}

impl Target for PtraceTarget {
    fn describe(&self) -> String {
        format!("process {} ({})", self.pid, self.name)
    }

    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> Result<(), TargetError> {
        self.read_mem(addr.0, buf)
    }

    fn write(&mut self, addr: RunAddr, bytes: &[u8]) -> Result<(), TargetError> {
        let Err(error) = self.write_mem(addr.0, bytes) else { return Ok(()) };
        // The kernel may insist on a tracer, or on POKE.
        self.with_stopped_thread(|t, tid| t.write_mem(addr.0, bytes).or_else(|_| t.poke_mem(tid, addr.0, bytes)))
            .unwrap_or(Err(error))
    }

    fn mappings(&mut self) -> Option<&mut dyn Mappings> {
        Some(self)
    }

    fn threads(&mut self) -> Option<&mut dyn Threads> {
        Some(self)
    }

    fn calls(&mut self) -> Option<&mut dyn Calls> {
        Some(self)
    }

    /// None: the kernel does what is needed when it writes.
    fn cache(&mut self) -> Option<&mut dyn CacheFlush> {
        None
    }

    fn claim(&mut self) -> Result<(), TargetError> {
        // The lock lies on the file in /proc that only those can open who may change the process, and ends with us.
        self.mem.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => unsuitable("in-use", self.pid, "is just being patched by another tfix"),
            TryLockError::Error(e) => proc_error(self.pid, "lock", "mem", &e),
        })
    }

    fn interrupted(&self) -> bool {
        interrupted()
    }
}

impl Drop for PtraceTarget {
    fn drop(&mut self) {
        // Errors have nobody to go to; the kernel does the rest when this OS thread ends.
        let _ = self.release();
        self.let_all_go();
    }
}

fn process(pid: i32) -> String {
    format!("process {pid}")
}

/// The thread's return addresses are kept a second time, where calls on its behalf don't put theirs.
fn shadow_stack(tid: i32) -> TargetError {
    unsuitable("shadow-stack", tid, "has a shadow stack, which calls on its behalf would break")
}

fn unsuitable(rule: &'static str, pid: i32, why: &str) -> TargetError {
    TargetError::Unsuitable { rule, what: process(pid), why: why.to_owned() }
}

fn memory(action: &'static str, addr: u64, len: usize, why: String) -> TargetError {
    TargetError::Memory { action, addr: RunAddr(addr), len, why }
}

fn system(what: String, why: Errno) -> TargetError {
    TargetError::System { what, why: why.desc().to_owned() }
}

fn gone(pid: i32) -> TargetError {
    TargetError::Gone { what: process(pid) }
}

/// Turns an error on /proc/PID/`file` into ours.
fn proc_error(pid: i32, action: &'static str, file: &str, e: &std::io::Error) -> TargetError {
    match e.kind() {
        ErrorKind::NotFound => gone(pid),
        ErrorKind::PermissionDenied => TargetError::NotPermitted { action, what: process(pid), why: e.to_string() },
        _ if e.raw_os_error() == Some(libc::ESRCH) => gone(pid),
        _ => TargetError::System { what: format!("{action} /proc/{pid}/{file}"), why: e.to_string() },
    }
}

/// /proc/PID/status, or a thread's.
struct Status {
    text: String,
}

impl Status {
    fn read(path: &str) -> std::io::Result<Status> {
        std::fs::read(path).map(|b| Status { text: String::from_utf8_lossy(&b).into_owned() })
    }

    /// The status of a process that is none of those that can't be patched for what they are.
    fn of(pid: i32) -> Result<Status, TargetError> {
        if pid <= 0 {
            return Err(gone(pid));
        }
        let status = Status::read(&format!("/proc/{pid}/status")).map_err(|e| match sys::exists(pid) {
            // /proc mounted with hidepid=
            Err(Errno::EPERM) => {
                TargetError::NotPermitted { action: "look at", what: process(pid), why: Errno::EPERM.desc().to_owned() }
            }
            Err(_) => gone(pid),
            Ok(()) => proc_error(pid, "read", "status", &e),
        })?;
        let tgid = status.number("Tgid");
        if tgid == std::process::id() {
            return Err(unsuitable("own-process", pid, "is this tool itself"));
        }
        if i64::from(tgid) != i64::from(pid) {
            return Err(unsuitable("not-a-process", pid, &format!("is a thread of process {tgid}: name that")));
        }
        if matches!(status.state(), 'Z' | 'X') {
            let why = match status.number("Threads") {
                0 | 1 => "is a zombie: it has ended, and its parent did not ask for its status yet",
                _ => "has lost its main thread, and with it all that the kernel shows of its memory",
            };
            return Err(unsuitable("zombie", pid, why));
        }
        if status.text("Kthread") == "1" || status.text("VmSize").is_empty() {
            return Err(unsuitable("kernel-thread", pid, "is a kernel thread"));
        }
        Ok(status)
    }

    /// Can a thread with this status be stopped, and be made to call something?
    fn check_thread(&self, tid: i32) -> Result<(), TargetError> {
        if self.number("Seccomp") == 1 {
            return Err(unsuitable(
                "seccomp",
                tid,
                "runs in seccomp strict mode, where it may not even allocate memory",
            ));
        }
        if self.text("x86_Thread_features").split_whitespace().any(|f| f == "shstk") {
            return Err(shadow_stack(tid));
        }
        Ok(())
    }

    fn text(&self, key: &str) -> &str {
        self.text.lines().find_map(|l| l.strip_prefix(key).and_then(|r| r.strip_prefix(':'))).map_or("", str::trim)
    }

    fn number(&self, key: &str) -> u32 {
        self.text(key).parse().unwrap_or(0)
    }

    /// A signal mask.
    fn mask(&self, key: &str) -> u64 {
        u64::from_str_radix(self.text(key), 16).unwrap_or(0)
    }

    fn state(&self) -> char {
        self.text("State").chars().next().unwrap_or('X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    static ARCH: tigerfix_arch_x86_64::X86_64 = tigerfix_arch_x86_64::X86_64;

    struct Sleeper(Child);
    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A process that is past its exec.
    fn sleeper() -> (Sleeper, PtraceTarget) {
        let child = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = child.0.id() as i32;
        let asleep = format!("{} ", libc::SYS_clock_nanosleep);
        while !std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().starts_with(&asleep) {
            std::thread::yield_now();
        }
        let t = PtraceTarget::open(pid, &ARCH).unwrap();
        (child, t)
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn pokes_keep_what_is_around() {
        let (_child, mut t) = sleeper();
        let code = t.maps().unwrap().into_iter().find(|m| m.perm.exec && m.name.ends_with("/sleep")).unwrap();
        for (offset, len) in [(0, 8), (3, 1), (3, 5), (5, 6), (7, 30), (8, 16)] {
            let mut before = [0u8; 64];
            t.read(code.start, &mut before).unwrap();
            let bytes: Vec<u8> = (0..len).map(|i| before[offset + i] ^ 0x5a).collect();
            let poked = t.with_stopped_thread(|t, tid| t.poke_mem(tid, code.start.0 + offset as u64, &bytes));
            poked.unwrap().unwrap();
            let mut after = [0u8; 64];
            t.read(code.start, &mut after).unwrap();
            before[offset..offset + len].copy_from_slice(&bytes);
            assert_eq!(after, before);
        }
        assert!(t.tasks.is_empty(), "detached");
        let nowhere = t.with_stopped_thread(|t, tid| t.poke_mem(tid, 4096, &[1]));
        assert!(matches!(nowhere, Some(Err(TargetError::Memory { .. }))));
    }

    /// Whoever embeds this may wait for any child, and then takes our reports, too.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn stops_are_seen_when_someone_else_takes_the_reports() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (child, mut t) = sleeper();
        let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                use nix::sys::wait::{WaitPidFlag, waitpid};
                while !done.load(Ordering::Relaxed) {
                    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
                }
            });
            for _ in 0..50 {
                assert_eq!(t.stop_all().unwrap().len(), 1);
                t.resume_all().unwrap();
                t.hold().unwrap();
                let linux = ARCH.linux().unwrap();
                let flags = linux.map_private | linux.map_anonymous;
                t.syscall("mmap", linux.mmap, [0, 4096, 1, flags, u64::MAX, 0], None).unwrap();
                t.release().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
