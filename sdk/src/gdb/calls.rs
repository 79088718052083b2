//! Calls on behalf of a thread, as a debugger makes them: registers set to the call, a breakpoint right behind it, only that
//! thread let go; then all registers set back as they were.
//!
//! Should we be gone in the middle, the thread stands at the breakpoint or before it, with the call's registers: a stub keeps
//! it there. docs/remote.md says what to do then.

use super::error::GdbError;
use super::stub::Kind;
use super::target::{GdbTarget, unsuitable};
use std::time::{Duration, Instant};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::{LinuxAbi, Registers};
use tigerfix_core::field::store;
use tigerfix_core::target::{Calls, Target as _, TargetError, ThreadId};

/// How long an injected call may take. Tests have some that don't end.
const CALL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Room for data of a call, and below it for arguments on the stack, bytes.
const SCRATCH: u64 = 4096;
const ARGUMENTS: u64 = 256;
/// Stack that a called function may use.
const CALL_STACK: u64 = 16 * 1024;
/// gdb's numbers of the signals that a fault raises: SIGILL, SIGFPE, SIGBUS, SIGSEGV, SIGSYS.
const FAULTS: [u8; 5] = [4, 8, 10, 11, 12];
/// Places of system call instructions that are remembered.
const MAX_CODE: usize = 64;
/// Code of one module that is looked through, bytes.
const MAX_SEARCH: u64 = 4 << 20;

/// The error, with more said about it.
fn with_note(e: TargetError, note: &str) -> TargetError {
    match e {
        TargetError::Unsuitable { rule, what, why } => {
            TargetError::Unsuitable { rule, what, why: format!("{why}; {note}") }
        }
        TargetError::System { what, why } => TargetError::System { what, why: format!("{why}; {note}") },
        e => e,
    }
}

/// A thread that makes calls.
pub(super) struct Held {
    thread: u64,
    /// The target ran before.
    ran: bool,
    /// All its registers, and ours among them.
    block: Vec<u8>,
    regs: Registers,
    /// Memory below its stack that is used, and what was there.
    base: u64,
    under: Vec<u8>,
}

impl GdbTarget {
    fn linux(&self) -> Result<&'static LinuxAbi, TargetError> {
        self.arch
            .linux()
            .ok_or(TargetError::Unsupported { what: "make system calls in the target: this ABI has no Linux" })
    }

    /// Where the held thread's room for data is.
    pub(super) fn scratch(&self) -> u64 {
        self.held.as_ref().map_or(0, |h| h.base + ARGUMENTS)
    }

    /// Does `f` while a thread is held, the one that is held already if there is one.
    pub(super) fn with_thread<T>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        let mine = self.held.is_none();
        self.hold()?;
        let result = f(self);
        if !mine {
            return result;
        }
        match (result, self.release()) {
            (result, Ok(())) => result,
            (Ok(_), Err(e)) => Err(e),
            // A thread without its own registers is the worse of the two.
            (Err(first), Err(e)) => Err(with_note(e, &format!("before that: {first}"))),
        }
    }

    /// Sets a breakpoint in a target that stands: by the stub, or by hand.
    pub(super) fn plant(&mut self, at: u64) -> Result<(), TargetError> {
        // What is there now is ours, not what was there.
        if self.planted.iter().any(|p| p.0 == at) {
            return Ok(());
        }
        let code = self.arch.breakpoint();
        if self.stub.breakpoints != Some(false) {
            let done = self.stub.order(format!("Z0,{at:x},{:x}", code.len()).as_bytes()).map_err(|e| self.fault(e))?;
            self.stub.breakpoints = Some(done);
            if done {
                self.planted.push((at, None));
                return Ok(());
            }
        }
        let mut old = vec![0u8; code.len()];
        self.read(RunAddr(at), &mut old)?;
        // First: a write that fails may have happened.
        self.planted.push((at, Some(old)));
        self.stub.write_bytes(at, code).map_err(|e| self.fault(e))
    }

    /// Takes all breakpoints away from a target that stands. Those for which that fails stay noted.
    pub(super) fn uproot(&mut self) -> Result<(), TargetError> {
        let mut result = Ok(());
        for (at, old) in std::mem::take(&mut self.planted) {
            let done = match &old {
                Some(old) => self.stub.write_bytes(at, old),
                None => {
                    let len = self.arch.breakpoint().len();
                    self.stub.order(format!("z0,{at:x},{len:x}").as_bytes()).map(|_| ())
                }
            };
            if let Err(e) = done {
                self.planted.push((at, old));
                let note = format!("a breakpoint of tfix stays at {at:#x}, and the target must not go on with it");
                result = result.and(Err(with_note(self.fault(e), &note)));
            }
        }
        result
    }

    /// Puts back all that is changed for the moment only, breakpoints and a held thread's state: before the target goes on.
    pub(super) fn mend(&mut self) -> Result<(), TargetError> {
        if self.held.is_none() && self.planted.is_empty() {
            return Ok(());
        }
        let stands = self.stand();
        if self.stub.line.running {
            return stands;
        }
        stands.and(self.uproot()).and(self.restore())
    }

    /// Puts the held thread's state back. It stays held until that is done.
    fn restore(&mut self) -> Result<(), TargetError> {
        let Some(held) = &self.held else { return Ok(()) };
        let thread = held.thread;
        let under = self.stub.write_bytes(held.base, &held.under);
        let set = self.stub.block(thread).and_then(|now| self.stub.set_block(thread, &self.map, &now, &held.block));
        under.and(set).map_err(|e| {
            let note =
                format!("thread {thread} still has the registers of an injected call, and must not go on with them");
            with_note(self.fault(e), &note)
        })?;
        self.held = None;
        Ok(())
    }

    /// Is a thread with this pc at the breakpoint at `at`? Some stubs report the address behind it.
    pub(super) fn is_at(&self, pc: u64, at: u64) -> bool {
        pc == at || pc == at.wrapping_add(self.arch.breakpoint().len() as u64)
    }

    /// System call instructions in the program and its loader, in address order.
    fn find_code(&mut self) -> Result<(), TargetError> {
        if !self.code.is_empty() {
            return Ok(());
        }
        let linux = self.linux()?;
        let (insn, align) = (linux.syscall_insn, linux.insn_align.max(1));
        let mut found = Vec::new();
        for (start, end) in self.known_code() {
            let len = (end - start).min(MAX_SEARCH) as usize;
            // Whatever can't be read has no instruction for us.
            let Ok(bytes) = self.stub.read_bytes(start, len) else { continue };
            let finder = memchr::memmem::find_iter(&bytes, insn);
            found.extend(finder.map(|i| start + i as u64).filter(|a| a.is_multiple_of(align)).take(MAX_CODE));
            // One module is enough if its calls are on several pages.
            if found.iter().any(|a| found[0] >> 12 != a >> 12) {
                break;
            }
        }
        if found.is_empty() {
            let why = "has a program without a system call instruction that could be used";
            return Err(unsuitable("no-syscall-instruction", &self.stub.name, why));
        }
        self.code = found;
        Ok(())
    }

    /// The first place that `fits` and is still what it was found to be: a patch may have put a jump there.
    fn pick_code(&mut self, insn: &[u8], fits: &dyn Fn(u64) -> bool) -> Result<u64, TargetError> {
        // Twice: what is found at the first look may all be gone.
        for _ in 0..2 {
            while let Some(i) = self.code.iter().position(|c| fits(*c)) {
                let at = self.code[i];
                match self.stub.read_bytes(at, insn.len()) {
                    Ok(now) if now == insn => return Ok(at),
                    Ok(_) | Err(GdbError::Refused { .. }) => self.code.remove(i),
                    Err(e) => return Err(self.fault(e)),
                };
            }
            if !self.code.is_empty() {
                break;
            }
            self.find_code()?;
        }
        let why = "has no system call instruction that could be used, but on the page that is to be changed or where the \
                   thread waits";
        Err(unsuitable("no-syscall-instruction", &self.stub.name, why))
    }

    /// Makes a system call in the held thread.
    pub(super) fn inject(
        &mut self,
        name: &'static str,
        nr: u64,
        args: [u64; 6],
        scratch: Option<(usize, &[u8])>,
    ) -> Result<u64, TargetError> {
        self.inject_outside(name, nr, args, scratch, (0, 0))
    }

    /// The same, by an instruction outside of the range `avoid`.
    pub(super) fn inject_outside(
        &mut self,
        name: &'static str,
        nr: u64,
        mut args: [u64; 6],
        scratch: Option<(usize, &[u8])>,
        avoid: (u64, u64),
    ) -> Result<u64, TargetError> {
        let (linux, layout) = (self.linux()?, self.arch.registers());
        let Some(held) = &self.held else {
            return Err(TargetError::Unsupported { what: "make calls without a held thread" });
        };
        let (base, mut regs) = (held.base, held.regs);
        let insn = linux.syscall_insn.len() as u64;
        let room = insn + self.arch.breakpoint().len() as u64;
        // Where the kernel has taken the thread's call back, one at that very place would become the rest of the thread's own,
        // whatever it is meant to be.
        let own = linux.taken_back.map(|_| held.regs.get(layout.pc));
        let apart = |c: u64| (c + room <= avoid.0 || c >= avoid.1) && Some(c) != own;
        let call = self.pick_code(linux.syscall_insn, &apart)?;
        if let Some((index, bytes)) = scratch {
            if bytes.len() as u64 > SCRATCH || index >= args.len() {
                return Err(TargetError::Unsupported { what: "pass that much data to a system call" });
            }
            self.stub.write_bytes(base + ARGUMENTS, bytes).map_err(|e| self.fault(e))?;
            args[index] = base + ARGUMENTS;
        }
        layout.send(&mut regs, call);
        // A handler that runs now must not use the memory of the call's data for its frame.
        regs.set(layout.sp, base);
        for (r, a) in layout.syscall_args.iter().zip(args) {
            regs.set(*r, a);
        }
        let rest = args.get(layout.syscall_args.len()..).unwrap_or_default();
        if let (Some(offset), false) = (linux.stack_args, rest.is_empty()) {
            let word = usize::from(self.arch.address_bits() / 8);
            let mut bytes = vec![0u8; rest.len() * word];
            for (cell, a) in bytes.chunks_exact_mut(word).zip(rest) {
                store(cell, self.arch.data_endian(), *a);
            }
            let at = base + u64::from(offset) * word as u64;
            self.stub.write_bytes(at, &bytes).map_err(|e| self.fault(e))?;
        } else if rest.iter().any(|a| *a != 0) {
            return Err(TargetError::Unsupported { what: "pass that many arguments to a system call" });
        }
        regs.set(layout.syscall_nr, nr);
        let now = self.run_call(&regs, call + insn, name)?;
        let result = now.get(layout.result);
        let (failed, errno) = match layout.error_flag {
            Some(flag) => (now.get(flag) != 0, result),
            None if self.arch.address_bits() == 32 => {
                ((result as u32) > u32::MAX - 4095, u64::from((result as u32).wrapping_neg()))
            }
            None => (result > u64::MAX - 4095, result.wrapping_neg()),
        };
        if failed { Err(TargetError::Injected { call: name, errno }) } else { Ok(result) }
    }

    /// Runs the held thread from `regs` to `end`, where a breakpoint is set meanwhile.
    fn run_call(&mut self, regs: &Registers, end: u64, name: &str) -> Result<Registers, TargetError> {
        let ran = self.plant(end).and_then(|()| self.run_to_end(regs, end, name));
        // While the thread runs nothing can be put back; that is done when it stands again.
        if self.stub.line.running {
            return ran;
        }
        let uprooted = self.uproot();
        let now = ran?;
        uprooted.map(|()| now)
    }

    fn run_to_end(&mut self, regs: &Registers, end: u64, name: &str) -> Result<Registers, TargetError> {
        let Some(held) = &self.held else {
            return Err(TargetError::Unsupported { what: "make calls without a held thread" });
        };
        let thread = held.thread;
        let mut block = held.block.clone();
        self.map.encode(regs, &mut block);
        let old = self.stub.block(thread).map_err(|e| self.fault(e))?;
        self.stub.set_block(thread, &self.map, &old, &block).map_err(|e| self.fault(e))?;
        let deadline = Instant::now() + CALL;
        loop {
            let stop = match self.stub.run_one(thread, 'c', deadline).map_err(|e| self.fault(e))? {
                Some(stop) => stop,
                None => {
                    let late = TargetError::Timeout {
                        thread: ThreadId(thread),
                        what: "return from an injected call",
                        millis: CALL.as_millis() as u64,
                    };
                    // So that its registers can be put back.
                    return Err(self.stub.halt().map_or_else(|e| self.fault(e), |()| late));
                }
            };
            let now = self.registers_of(thread)?;
            let pc = now.get(self.arch.registers().pc);
            if stop.signal == 5 && self.is_at(pc, end) {
                return Ok(now);
            }
            if matches!(stop.signal, 0 | 5) || FAULTS.contains(&stop.signal) {
                return Err(TargetError::System {
                    what: format!("call {name} in thread {thread}"),
                    why: format!("it stopped at {pc:#x} by signal {} (gdb's number)", stop.signal),
                });
            }
            // For the thread itself, later.
            self.stub.signals.push((thread, stop.signal));
        }
    }

    fn try_hold(&mut self, thread: u64, ran: bool) -> Result<Held, TargetError> {
        let (layout, linux) = (self.arch.registers(), self.linux()?);
        let block = self.stub.block(thread).map_err(|e| self.fault(e))?;
        let regs = self.decode(&block)?;
        let need = SCRATCH + ARGUMENTS;
        let sp = regs.get(layout.sp);
        let base = sp.wrapping_sub(linux.red_zone).wrapping_sub(need) & !15;
        let mut under = vec![0u8; need as usize];
        let little = || {
            let what = format!("thread {thread}");
            unsuitable("stack-space", &what, "has no room left on its stack for calls on its behalf")
        };
        self.read(RunAddr(base.wrapping_sub(CALL_STACK)), &mut [0u8]).map_err(|_| little())?;
        self.read(RunAddr(base), &mut under).map_err(|_| little())?;
        self.stub.write_bytes(base, &under).map_err(|_| little())?;
        Ok(Held { thread, ran, block, regs, base, under })
    }
}

impl Calls for GdbTarget {
    fn hold(&mut self) -> Result<ThreadId, TargetError> {
        if let Some(h) = &self.held {
            let thread = ThreadId(h.thread);
            // After a call that did not end.
            self.stand()?;
            return Ok(thread);
        }
        if self.stub.kind != Kind::Process {
            return Err(TargetError::Unsupported { what: "make calls in a target without an operating system" });
        }
        let ran = self.stub.line.running;
        self.stand()?;
        self.uproot()?;
        self.find_code()?;
        let mut ids = self.stub.thread_ids().map_err(|e| self.fault(e))?;
        if !self.stub.interruptible && ids.len() > 1 {
            self.stop_all_refused()?;
        }
        // The one that reported the stop first.
        let first = self.stub.stop.thread;
        ids.sort_by_key(|t| Some(*t) != first);
        let mut reason = None;
        for thread in ids {
            match self.try_hold(thread, ran) {
                Ok(h) => {
                    self.held = Some(h);
                    return Ok(ThreadId(thread));
                }
                Err(e) => {
                    reason.get_or_insert(e);
                }
            }
        }
        Err(reason.unwrap_or_else(|| self.fault(GdbError::Lacks { what: "show a thread".into() })))
    }

    fn syscall(
        &mut self,
        name: &'static str,
        nr: u64,
        args: [u64; 6],
        scratch: Option<(usize, &[u8])>,
    ) -> Result<u64, TargetError> {
        // It may well change the address space.
        self.maps = None;
        self.inject(name, nr, args, scratch)
    }

    fn call(&mut self, entry: RunAddr, args: &[u64], trap: RunAddr) -> Result<u64, TargetError> {
        let layout = self.arch.registers();
        let Some(held) = &self.held else {
            return Err(TargetError::Unsupported { what: "make calls without a held thread" });
        };
        if args.len() > layout.call_args.len() {
            return Err(TargetError::Unsupported { what: "pass that many arguments to a function" });
        }
        let (base, mut regs) = (held.base, held.regs);
        layout.send(&mut regs, entry.0);
        for (r, a) in layout.call_args.iter().zip(args) {
            regs.set(*r, *a);
        }
        let word = usize::from(self.arch.address_bits() / 8);
        match layout.ra {
            Some(ra) => {
                regs.set(ra, trap.0);
                regs.set(layout.sp, base);
            }
            None => {
                // Aligned as behind a call.
                let mut bytes = vec![0u8; word];
                store(&mut bytes, self.arch.data_endian(), trap.0);
                let sp = base - word as u64;
                self.write(RunAddr(sp), &bytes)?;
                regs.set(layout.sp, sp);
            }
        }
        if let Some(r) = layout.entry {
            regs.set(r, entry.0);
        }
        self.run_call(&regs, trap.0, &format!("the function at {entry}")).map(|now| now.get(layout.result))
    }

    fn release(&mut self) -> Result<(), TargetError> {
        let Some(held) = &self.held else { return Ok(()) };
        let ran = held.ran;
        if self.stub.line.running {
            return Err(TargetError::Timeout {
                thread: ThreadId(held.thread),
                what: "stop, so that its registers could be put back,",
                millis: CALL.as_millis() as u64,
            });
        }
        self.uproot().and(self.restore())?;
        if ran {
            use tigerfix_core::target::Threads as _;
            self.resume_all()?;
        }
        Ok(())
    }
}

impl GdbTarget {
    fn stop_all_refused(&mut self) -> Result<(), TargetError> {
        use tigerfix_core::target::Threads as _;
        self.stop_all().map(|_| ())
    }
}
