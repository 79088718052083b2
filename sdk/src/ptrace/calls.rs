//! Calls injected into one thread of a process: system calls, and functions such as IFUNC resolvers.
//!
//! A thread that was made to do something for us must come back to what it did even if tfix is killed at that moment.
//! So before it runs, a signal frame with its saved state lies on its stack, and the address that the injected code
//! returns to is that of the C library's own `rt_sigreturn` code: left alone, the thread restores itself.

use super::stop::{SPIN, did_not_stop, seize, wait_until};
use super::sys::{self, Tid, Wait};
use super::{PtraceTarget, proc, thread_error};
use memchr::memmem;
use std::time::{Duration, Instant};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::{LinuxAbi, Registers, RescueFrame};
use tigerfix_core::field::store;
use tigerfix_core::target::{Calls, Mapping, Target as _, TargetError, ThreadId};

/// How long a thread may take to stop, and an injected call to return.
const STOP_TIMEOUT: Duration = Duration::from_millis(1000);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Resolvers take some hundred instructions.
const MAX_STEPS: u32 = 200_000;
/// Code is searched in pieces of this many bytes.
const CHUNK: usize = 64 << 10;
/// Larger than any extended register state so far.
const MAX_EXTENDED: usize = 64 << 10;
/// All signals (the kernel leaves SIGKILL and SIGSTOP out by itself) but SIGTRAP: a single step ends with one, and where
/// that is blocked, the kernel throws away the handler that the process may have for it (force_sig_info_to_task).
const ALL_SIGNALS: u64 = !(1 << (libc::SIGTRAP - 1));
/// Bytes kept free between the thread's stack and what we put below it.
const SLACK: u64 = 64;

/// Where in the target the code lies that injected calls use.
#[derive(Clone, Copy, Debug)]
struct Gadgets {
    /// A system call instruction, where possible followed by a return.
    syscall: u64,
    /// It is followed by a return.
    returns: bool,
    /// Code that makes `rt_sigreturn`.
    sigreturn: Option<u64>,
}

/// The held thread.
#[derive(Debug)]
struct Held {
    tid: Tid,
    registers: Registers,
    /// Kind and contents of the extended state.
    extended: Option<(usize, Vec<u8>)>,
    mask: u64,
    /// What brings the thread back if we end.
    rescue: Option<RescueFrame>,
    /// Stack pointer for injected code, and below it room for scratch bytes.
    sp: u64,
    scratch: u64,
}

/// State of the injected calls of one target.
#[derive(Debug, Default)]
pub(super) struct Injector {
    held: Option<Held>,
    urgent: Option<sys::Urgent>,
    gadgets: Option<Gadgets>,
}

impl Injector {
    /// The held thread.
    pub(super) fn held(&self) -> Option<Tid> {
        self.held.as_ref().map(|h| h.tid)
    }
}

impl PtraceTarget {
    fn linux(&self) -> Result<&'static LinuxAbi, TargetError> {
        self.arch.linux().ok_or(TargetError::Unsupported { what: "make system calls: this ABI has no Linux" })
    }

    /// Finds the code for injected calls; the C library and the loader have all of it.
    fn find_gadgets(&mut self) -> Result<Gadgets, TargetError> {
        if let Some(g) = self.calls.gadgets {
            return Ok(g);
        }
        let linux = self.linux()?;
        let mut code: Vec<Mapping> = proc::mappings(self.pid)?
            .into_iter()
            .filter(|m| m.perm.exec && m.perm.read && !m.name.is_empty())
            .collect();
        // Where both are likely comes first.
        code.sort_by_key(|m| {
            let file = m.name.rsplit('/').next().unwrap_or("");
            if file.starts_with("libc.") || file.starts_with("libc-") {
                0
            } else if file.starts_with("ld-") || file.starts_with("ld.") {
                1
            } else {
                2
            }
        });
        let with_return = linux.syscall_return.iter().find_map(|p| self.find_code(&code, p));
        let plain = || self.find_code(&code, linux.syscall_insn);
        let Some(syscall) = with_return.or_else(plain) else {
            return Err(TargetError::Unsuitable {
                rule: "no-syscall-instruction",
                what: self.describe(),
                why: "has no system call instruction in its code, so that no memory can be allocated in it".into(),
            });
        };
        let gadgets = Gadgets {
            syscall,
            returns: with_return.is_some(),
            sigreturn: linux.sigreturn_code.iter().find_map(|p| self.find_code(&code, p)),
        };
        self.calls.gadgets = Some(gadgets);
        Ok(gadgets)
    }

    fn find_code(&self, code: &[Mapping], pattern: &[u8]) -> Option<u64> {
        use std::os::unix::fs::FileExt as _;
        let finder = memmem::Finder::new(pattern);
        let mut buf = vec![0u8; CHUNK + pattern.len()];
        for m in code {
            let mut at = m.start.0;
            while at < m.end.0 {
                let n = ((m.end.0 - at) as usize).min(buf.len());
                if self.memory.read_exact_at(&mut buf[..n], at).is_err() {
                    break;
                }
                if let Some(i) = finder.find(&buf[..n]) {
                    return Some(at + i as u64);
                }
                at += CHUNK as u64;
            }
        }
        None
    }

    /// Stops `tid` alone. `None`: it can't be used (ended, or does not stop).
    fn hold_thread(&mut self, tid: Tid) -> Result<Option<Held>, TargetError> {
        let mut options = sys::O_TRACESYSGOOD;
        if self.seccomp {
            options |= sys::O_SUSPEND_SECCOMP;
        }
        // A thread that is just getting a signal gets it first: only from a plain stop all comes back as it was.
        for _ in 0..100 {
            match seize(self.pid, tid, options) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) if self.seccomp => {
                    return Err(TargetError::Unsuitable {
                        rule: "seccomp",
                        what: self.describe(),
                        why: "runs under a seccomp filter, which only root may suspend; an injected mmap could kill it"
                            .into(),
                    });
                }
                Err(e) => return Err(e),
            }
            let _ = sys::interrupt(tid);
            match wait_until(tid, Instant::now() + STOP_TIMEOUT, SPIN) {
                Wait::Interrupted { .. } => match self.save(tid) {
                    Ok(Some(held)) => return Ok(Some(held)),
                    other => {
                        let _ = self.mend_call(tid);
                        let _ = sys::detach(tid, 0);
                        return other;
                    }
                },
                Wait::Signal(s) => {
                    let _ = sys::detach(tid, s);
                }
                Wait::Syscall => {
                    let _ = sys::detach(tid, 0);
                }
                Wait::Gone => return Ok(None),
                // We stay attached until it stops; it is not stopped by us.
                Wait::Nothing => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Saves the state of a stopped thread and lays out what goes below its stack. `None`: there is no room.
    fn save(&mut self, tid: Tid) -> Result<Option<Held>, TargetError> {
        let layout = self.arch.registers();
        let linux = self.linux()?;
        let gadgets = self.find_gadgets()?;
        // From here on every interrupted call is one that the kernel, or the rescue frame, makes again.
        let registers = self.mend_call(tid)?;
        let mask = sys::sigmask(tid).map_err(|e| thread_error(tid, "read the signal mask of", &e))?;
        let mut extended = None;
        for kind in sys::EXTENDED_STATE {
            let mut buf = vec![0u8; MAX_EXTENDED];
            if let Ok(n) = sys::get_regset(tid, kind, &mut buf) {
                buf.truncate(n);
                extended = Some((kind, buf));
                break;
            }
        }
        let mut rescue = None;
        if gadgets.returns && gadgets.sigreturn.is_some() {
            let state = extended.as_ref().map_or(&[][..], |e| &e.1);
            rescue = self.arch.rescue_frame(&registers, state, mask);
        }
        let red_zone = registers.get(layout.sp).wrapping_sub(linux.red_zone + SLACK) & !15;
        let (sp, low) = rescue.as_ref().map_or((red_zone, red_zone), |r| (r.sp, r.at.min(r.sp)));
        let scratch = low.wrapping_sub(1024) & !15;
        // All of it must lie in the stack's mapping as it is now: nothing here makes the kernel grow it.
        let mut probe = [0u8; 8];
        if self.read(RunAddr(scratch), &mut probe).is_err() || self.write(RunAddr(scratch), &probe).is_err() {
            return Ok(None);
        }
        if let Some(r) = &rescue {
            let word = usize::from(layout.word);
            let mut address = [0u8; 8];
            store(&mut address[..word], self.arch.data_endian(), gadgets.sigreturn.unwrap_or(0));
            let frame = self.write(RunAddr(r.at), &r.bytes);
            if frame.and_then(|()| self.write(RunAddr(r.sp), &address[..word])).is_err() {
                return Ok(None);
            }
        }
        sys::set_sigmask(tid, ALL_SIGNALS).map_err(|e| thread_error(tid, "set the signal mask of", &e))?;
        Ok(Some(Held { tid, registers, extended, mask, rescue, sp, scratch }))
    }

    fn held(&self) -> Result<&Held, TargetError> {
        self.calls.held.as_ref().ok_or(TargetError::Unsupported { what: "inject a call while no thread is held" })
    }

    /// Runs the held thread to its next system call boundary.
    fn run_to_boundary(&mut self, tid: Tid) -> Result<(), TargetError> {
        sys::cont_to_syscall(tid).map_err(|e| thread_error(tid, "resume", &e))?;
        match wait_until(tid, Instant::now() + CALL_TIMEOUT, SPIN) {
            Wait::Syscall => Ok(()),
            Wait::Interrupted { .. } => self.run_to_boundary(tid),
            Wait::Gone => Err(TargetError::Gone { what: format!("{} ended", self.describe()) }),
            Wait::Nothing => Err(did_not_stop(self.pid, tid, "return from a system call", CALL_TIMEOUT)),
            Wait::Signal(s) => Err(TargetError::System {
                what: format!("an injected call in thread {tid}"),
                why: format!("it got signal {s}"),
            }),
        }
    }

    fn restore(&mut self, held: &Held) -> Result<(), TargetError> {
        let tid = held.tid;
        if let Some((kind, state)) = &held.extended {
            sys::set_regset(tid, *kind, state).map_err(|e| thread_error(tid, "restore the registers of", &e))?;
        }
        self.set_registers(tid, &held.registers)?;
        // From the end of a system call the kernel would not restart the one that we had interrupted; from a plain
        // stop it does. So the thread is brought from here to a plain stop before it is let go.
        sys::interrupt(tid).map_err(|e| thread_error(tid, "stop", &e))?;
        sys::cont(tid, 0).map_err(|e| thread_error(tid, "resume", &e))?;
        let stopped = wait_until(tid, Instant::now() + CALL_TIMEOUT, SPIN);
        sys::set_sigmask(tid, held.mask).map_err(|e| thread_error(tid, "restore the signal mask of", &e))?;
        match stopped {
            Wait::Interrupted { .. } | Wait::Syscall => {
                self.mend_call(tid)?;
                sys::detach(tid, 0).map_err(|e| thread_error(tid, "detach from", &e))
            }
            Wait::Signal(s) => sys::detach(tid, s).map_err(|e| thread_error(tid, "detach from", &e)),
            Wait::Gone => Err(TargetError::Gone { what: format!("{} ended", self.describe()) }),
            Wait::Nothing => Err(did_not_stop(self.pid, tid, "stop", CALL_TIMEOUT)),
        }
    }
}

impl Calls for PtraceTarget {
    fn hold(&mut self) -> Result<ThreadId, TargetError> {
        if let Some(h) = &self.calls.held {
            return Ok(ThreadId(h.tid as u64));
        }
        // The search takes longer than all calls together: it is done before anybody is stopped.
        self.find_gadgets()?;
        let tids = proc::by_readiness(self.pid);
        if tids.is_empty() {
            return Err(TargetError::Gone { what: format!("process {}", self.pid) });
        }
        let urgent = sys::Urgent::begin();
        for &tid in &tids {
            if let Some(held) = self.hold_thread(tid)? {
                self.calls.urgent = urgent;
                self.calls.held = Some(held);
                return Ok(ThreadId(tid as u64));
            }
        }
        Err(did_not_stop(self.pid, tids[0], "stop with enough stack for a call", STOP_TIMEOUT))
    }

    fn syscall(
        &mut self,
        name: &'static str,
        nr: u64,
        mut args: [u64; 6],
        scratch: Option<(usize, &[u8])>,
    ) -> Result<u64, TargetError> {
        let layout = self.arch.registers();
        let gadgets = self.find_gadgets()?;
        let held = self.held()?;
        let (tid, mut regs, at) = (held.tid, held.registers, held.scratch);
        regs.set(layout.sp, held.sp);
        if let Some((index, bytes)) = scratch {
            if bytes.len() > 1024 {
                return Err(TargetError::Unsupported { what: "pass that many bytes to an injected call" });
            }
            self.write(RunAddr(at), bytes)?;
            if let Some(a) = args.get_mut(index) {
                *a = at;
            }
        }
        regs.set(layout.pc, gadgets.syscall);
        regs.set(layout.syscall_nr, nr);
        for (r, v) in layout.syscall_args.iter().zip(args) {
            regs.set(*r, v);
        }
        let ones = if layout.word == 8 { u64::MAX } else { u64::from(u32::MAX) };
        if let Some(r) = layout.restart_nr {
            regs.set(r, ones);
        }
        self.set_registers(tid, &regs)?;
        self.run_to_boundary(tid)?;
        self.run_to_boundary(tid)?;
        let after = self.get_registers(tid)?;
        let result = after.get(layout.result);
        let errno = match layout.error_flag {
            Some(f) if after.get(f) != 0 => result,
            Some(_) => 0,
            None => {
                let negated = result.wrapping_neg() & ones;
                if (1..4096).contains(&negated) { negated } else { 0 }
            }
        };
        if errno != 0 { Err(TargetError::Injected { call: name, errno }) } else { Ok(result) }
    }

    fn call(&mut self, entry: RunAddr, args: &[u64], trap: RunAddr) -> Result<u64, TargetError> {
        let layout = self.arch.registers();
        let held = self.held()?;
        let (tid, mut regs) = (held.tid, held.registers);
        // With a rescue frame the function returns to the sigreturn code, where we catch it by single steps; without
        // one it returns to the breakpoint.
        let (sp, back) = match (&held.rescue, self.calls.gadgets.and_then(|g| g.sigreturn)) {
            (Some(r), Some(code)) => (r.sp, code),
            _ => ((held.sp & !15).wrapping_sub(u64::from(layout.word)), trap.0),
        };
        let word = usize::from(layout.word);
        let mut address = [0u8; 8];
        store(&mut address[..word], self.arch.data_endian(), back);
        self.write(RunAddr(sp), &address[..word])?;
        regs.set(layout.sp, sp);
        regs.set(layout.pc, entry.0);
        if let Some(ra) = layout.ra {
            regs.set(ra, back);
        }
        for (r, v) in layout.call_args.iter().zip(args) {
            regs.set(*r, *v);
        }
        if let Some(r) = layout.restart_nr {
            regs.set(r, if word == 8 { u64::MAX } else { u64::from(u32::MAX) });
        }
        self.set_registers(tid, &regs)?;
        for _ in 0..MAX_STEPS {
            sys::step(tid).map_err(|e| thread_error(tid, "step", &e))?;
            match wait_until(tid, Instant::now() + CALL_TIMEOUT, SPIN) {
                Wait::Signal(libc::SIGTRAP) | Wait::Interrupted { .. } | Wait::Syscall => {}
                Wait::Signal(s) => {
                    return Err(TargetError::System {
                        what: format!("calling the function at {entry} in thread {tid}"),
                        why: format!("it got signal {s}"),
                    });
                }
                Wait::Gone => return Err(TargetError::Gone { what: format!("{} ended", self.describe()) }),
                Wait::Nothing => return Err(did_not_stop(self.pid, tid, "step", CALL_TIMEOUT)),
            }
            let now = self.get_registers(tid)?;
            if now.get(layout.pc) == back {
                return Ok(now.get(layout.result));
            }
        }
        Err(TargetError::System {
            what: format!("calling the function at {entry} in thread {tid}"),
            why: format!("it did not return within {MAX_STEPS} instructions"),
        })
    }

    fn release(&mut self) -> Result<(), TargetError> {
        let restored = match self.calls.held.take() {
            Some(held) => self.restore(&held),
            None => Ok(()),
        };
        self.calls.urgent = None;
        restored
    }
}
