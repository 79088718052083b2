//! The transport for processes of this machine: ptrace and /proc.
//!
//! Threads are attached with PTRACE_SEIZE, so that attaching stops nobody and job control goes on as the user left it.
//! Memory is read and written through one descriptor of /proc/PID/mem: it reaches read-only text (copy on write: the
//! file on disk and other processes are untouched), makes the kernel keep the instruction caches in order
//! (mm/memory.c, copy_to_user_page), and stays with the address space it was opened for, so that a process that
//! executes another program meanwhile can't be hit by accident.
//!
//! All calls of one [`PtraceTarget`] must come from the thread that opened it (ptrace belongs to a thread), so it is
//! not `Send`.

mod calls;
mod proc;
mod stop;
mod sys;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt as _;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::{Arch, LinuxAbi, Registers};
use tigerfix_core::field::{load, store};
use tigerfix_core::target::{CacheFlush, Calls, Mapping, Mappings, Target, TargetError, Threads};

pub use proc::executable_ident;
pub use sys::install_interrupt_flag;

use sys::Tid;

/// A process of this machine.
pub struct PtraceTarget {
    pid: Tid,
    name: String,
    arch: &'static dyn Arch,
    memory: File,
    /// The process runs under a seccomp filter.
    seccomp: bool,
    stops: stop::Stops,
    calls: calls::Injector,
    /// Keeps the type on its thread.
    _not_send: PhantomData<*const ()>,
}

impl std::fmt::Debug for PtraceTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PtraceTarget").field("pid", &self.pid).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why something under /proc/PID, or an attach, failed.
fn open_error(pid: Tid, action: &'static str, e: &io::Error) -> TargetError {
    let what = format!("process {pid}");
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => TargetError::Gone { what },
        Some(libc::EPERM | libc::EACCES) => TargetError::NotPermitted { action, what, why: e.to_string() },
        _ => TargetError::System { what: format!("to {action} {what}"), why: e.to_string() },
    }
}

impl PtraceTarget {
    /// Looks at the process and opens its memory. Attaches to nothing, stops nobody.
    ///
    /// # Errors
    /// [`TargetError`]: no such process, no permission, traced by somebody else, or in a state in which tfix won't
    /// touch it (a zombie, a kernel thread, seccomp's strict mode, a shadow stack).
    pub fn open(pid: i32, arch: &'static dyn Arch) -> Result<PtraceTarget, TargetError> {
        let what = format!("process {pid}");
        let Some(status) = proc::status(pid, pid) else { return Err(TargetError::Gone { what }) };
        let unsuitable = |rule, why: &str| TargetError::Unsuitable { rule, what: what.clone(), why: why.into() };
        if status.tgid != pid {
            let why = format!("is a thread of process {}; name the process", status.tgid);
            return Err(unsuitable("not-a-process", &why));
        }
        if pid as u32 == std::process::id() {
            return Err(unsuitable("own-process", "is tfix itself"));
        }
        if matches!(status.state, 'Z' | 'X') {
            return Err(TargetError::Gone { what: format!("{what} has ended (it is a zombie)") });
        }
        if !status.user_memory {
            return Err(unsuitable("kernel-thread", "is a kernel thread"));
        }
        if status.tracer != 0 {
            return Err(TargetError::AlreadyTraced { what, tracer: status.tracer as u32 });
        }
        if status.seccomp == 1 {
            return Err(unsuitable("seccomp", "runs in seccomp's strict mode, which allows no mmap"));
        }
        if status.shadow_stack {
            return Err(unsuitable("shadow-stack", "has a user shadow stack, on which injected calls would fault"));
        }
        let ident = executable_ident(pid)?;
        if let Err(why) = arch.accepts(&ident) {
            return Err(unsuitable("other-architecture", &format!("runs a program that {why}")));
        }
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map_err(|e| open_error(pid, "open the memory of", &e))?;
        Ok(PtraceTarget {
            pid,
            name: status.name,
            arch,
            memory,
            seccomp: status.seccomp == 2,
            stops: stop::Stops::default(),
            calls: calls::Injector::default(),
            _not_send: PhantomData,
        })
    }

    /// Registers of a stopped thread, by the back end's layout.
    fn get_registers(&self, tid: Tid) -> Result<Registers, TargetError> {
        let layout = self.arch.registers();
        let word = usize::from(layout.word);
        let mut buf = vec![0u8; word * usize::from(layout.count)];
        sys::get_regset(tid, sys::NT_PRSTATUS, &mut buf).map_err(|e| thread_error(tid, "read the registers of", &e))?;
        let mut regs = Registers::ZERO;
        for (value, bytes) in regs.values.iter_mut().zip(buf.chunks_exact(word)) {
            *value = load(bytes, self.arch.data_endian());
        }
        Ok(regs)
    }

    /// Sets the registers of a stopped thread.
    fn set_registers(&self, tid: Tid, regs: &Registers) -> Result<(), TargetError> {
        let layout = self.arch.registers();
        let word = usize::from(layout.word);
        let mut buf = vec![0u8; word * usize::from(layout.count)];
        for (value, bytes) in regs.values.iter().zip(buf.chunks_exact_mut(word)) {
            store(bytes, self.arch.data_endian(), *value);
        }
        sys::set_regset(tid, sys::NT_PRSTATUS, &buf).map_err(|e| thread_error(tid, "set the registers of", &e))
    }

    /// Was this stopped thread thrown out of a system call that it should make again, but that the kernel ends with
    /// EINTR?
    fn lost_call(&self, regs: &Registers) -> Option<&'static LinuxAbi> {
        let layout = self.arch.registers();
        let linux = self.arch.linux()?;
        let nr = regs.get(layout.restart_nr?);
        let sign = 1u64 << (u32::from(layout.word) * 8 - 1);
        if nr & sign != 0 {
            return None;
        }
        let result = regs.get(layout.result).wrapping_neg() & (sign << 1).wrapping_sub(1);
        let errno = match layout.error_flag {
            Some(flag) if regs.get(flag) != 0 => regs.get(layout.result),
            Some(_) => 0,
            None => result,
        };
        (errno == linux.eintr && linux.restart_after_eintr.contains(&nr)).then_some(linux)
    }

    /// Puts a thread that a stop threw out of its system call back in order: see [`Threads::stop_all`].
    fn mend_call(&self, tid: Tid) -> Result<Registers, TargetError> {
        let mut regs = self.get_registers(tid)?;
        if let Some(linux) = self.lost_call(&regs) {
            let layout = self.arch.registers();
            // With this error the kernel makes the call again, unless a signal handler is to run: then the call ends
            // with EINTR, as it would have without us (arch_do_signal_or_restart).
            regs.set(
                layout.result,
                match layout.error_flag {
                    Some(_) => linux.erestartnohand,
                    None => linux.erestartnohand.wrapping_neg(),
                },
            );
            self.set_registers(tid, &regs)?;
        }
        Ok(regs)
    }
}

fn thread_error(tid: Tid, action: &'static str, e: &io::Error) -> TargetError {
    match e.raw_os_error() {
        Some(libc::ESRCH) => TargetError::Gone { what: format!("thread {tid} ended or is not stopped") },
        Some(libc::EPERM | libc::EACCES) => {
            TargetError::NotPermitted { action, what: format!("thread {tid}"), why: e.to_string() }
        }
        _ => TargetError::System { what: format!("to {action} thread {tid}"), why: e.to_string() },
    }
}

impl Target for PtraceTarget {
    fn describe(&self) -> String {
        format!("process {} ({})", self.pid, self.name)
    }

    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> Result<(), TargetError> {
        self.memory.read_exact_at(buf, addr.0).map_err(|e| TargetError::Memory {
            action: "read",
            addr,
            len: buf.len(),
            why: e.to_string(),
        })
    }

    fn write(&mut self, addr: RunAddr, bytes: &[u8]) -> Result<(), TargetError> {
        let error = |e: io::Error| TargetError::Memory { action: "write", addr, len: bytes.len(), why: e.to_string() };
        match self.memory.write_all_at(bytes, addr.0) {
            Ok(()) => Ok(()),
            // Kernels may be built or booted to refuse writes to read-only memory here (proc_mem.force_override).
            Err(e) => match self.stops.any_stopped().or(self.calls.held()) {
                Some(tid) => self.poke(tid, addr, bytes).map_err(|_| error(e)),
                None => Err(error(e)),
            },
        }
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
    fn cache(&mut self) -> Option<&mut dyn CacheFlush> {
        None
    }
    fn claim(&mut self) -> Result<(), TargetError> {
        // The lock lies on the file in /proc that only those can open who may change the process, and ends with us.
        self.memory.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => TargetError::Unsuitable {
                rule: "in-use",
                what: self.describe(),
                why: "is just being patched by another tfix".into(),
            },
            TryLockError::Error(e) => open_error(self.pid, "lock", &e),
        })
    }
    fn interrupted(&self) -> bool {
        sys::interrupted()
    }
}

impl PtraceTarget {
    /// Writes word by word through a stopped thread.
    fn poke(&mut self, tid: Tid, addr: RunAddr, bytes: &[u8]) -> Result<(), TargetError> {
        const WORD: usize = size_of::<usize>();
        let first = addr.0 & !(WORD as u64 - 1);
        let lead = (addr.0 - first) as usize;
        let mut words = vec![0u8; (lead + bytes.len()).next_multiple_of(WORD)];
        self.read(RunAddr(first), &mut words)?;
        words[lead..lead + bytes.len()].copy_from_slice(bytes);
        for (i, w) in words.chunks_exact(WORD).enumerate() {
            let mut value = [0u8; WORD];
            value.copy_from_slice(w);
            let at = first as usize + i * WORD;
            sys::poke(tid, at, usize::from_ne_bytes(value))
                .map_err(|e| thread_error(tid, "write memory through", &e))?;
        }
        Ok(())
    }
}

impl Mappings for PtraceTarget {
    fn mappings(&mut self) -> Result<Vec<Mapping>, TargetError> {
        proc::mappings(self.pid)
    }
    fn touched(&mut self, mapping: &Mapping) -> Vec<(RunAddr, RunAddr)> {
        proc::touched(self.pid, mapping).unwrap_or_else(|| vec![(mapping.start, mapping.end)])
    }
    fn file(&mut self, mapping: &Mapping) -> Result<Vec<u8>, TargetError> {
        proc::mapped_file(self.pid, mapping)
    }
    fn auxv(&mut self, key: u64) -> Result<Option<u64>, TargetError> {
        proc::auxv(self.pid, key, usize::from(self.arch.registers().word))
    }
}

impl Drop for PtraceTarget {
    fn drop(&mut self) {
        // Whatever went wrong before: nobody stays stopped or attached, and a held thread gets its state back.
        let _ = Calls::release(self);
        let _ = Threads::resume_all(self);
    }
}
