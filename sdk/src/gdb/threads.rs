//! Stopping and letting go, all threads at once.

use super::error::GdbError;
use super::stub::Kind;
use super::target::{GdbTarget, unsuitable};
use crate::restart::restarted;
use std::time::{Duration, Instant};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::Registers;
use tigerfix_core::field::load;
use tigerfix_core::target::{Target as _, TargetError, ThreadId, Threads};

/// How many instructions a thread makes at a time on its way out of a function.
const STEPS: u32 = 64;
/// The same where a step is made by breakpoints: several requests each.
const STRIDES: u32 = 32;
/// Code that one of those may run through, bytes.
const STRIDE: u64 = 256;
/// How long one instruction may take: it may be a system call.
const STEP: Duration = Duration::from_millis(500);

impl GdbTarget {
    /// Is a system call the thread's next instruction? It may wait there for a thread that stands, and an interrupt may be
    /// taken by one that stands as well: the step would not end.
    fn before_call(&mut self, thread: ThreadId) -> Result<bool, TargetError> {
        let Some(linux) = self.arch.linux().filter(|_| self.stub.kind == Kind::Process) else { return Ok(false) };
        let pc = self.registers(thread)?.get(self.arch.registers().pc);
        let mut next = vec![0u8; linux.syscall_insn.len()];
        self.read(RunAddr(pc), &mut next)?;
        Ok(next == linux.syscall_insn)
    }

    /// Sees to it that the target stands.
    pub(super) fn stand(&mut self) -> Result<(), TargetError> {
        if !self.stub.line.running {
            return Ok(());
        }
        let stopped = if self.stub.left { self.stub.attach_again() } else { self.stub.halt() };
        self.forget();
        stopped.map_err(|e| self.fault(e))?;
        let uprooted = self.uproot();
        self.settle().and(uprooted)
    }

    /// The thread that reported the last stop.
    pub(super) fn current(&mut self) -> Result<u64, TargetError> {
        match self.stub.stop.thread {
            Some(t) => Ok(t),
            None => {
                let ids = self.stub.thread_ids().map_err(|e| self.fault(e))?;
                Ok(ids.first().copied().unwrap_or(1))
            }
        }
    }

    pub(super) fn registers_of(&mut self, thread: u64) -> Result<Registers, TargetError> {
        let block = self.stub.block(thread).map_err(|e| self.fault(e))?;
        self.decode(&block)
    }

    pub(super) fn decode(&self, block: &[u8]) -> Result<Registers, TargetError> {
        self.map.decode(block).ok_or_else(|| {
            let why = format!("shows {} bytes of registers, too few for this architecture", block.len());
            unsuitable("remote-registers", &self.stub.name, &why)
        })
    }

    /// Puts calls in order that the stop has ended with EINTR.
    pub(super) fn settle(&mut self) -> Result<(), TargetError> {
        let layout = self.arch.registers();
        let (Some(linux), false) = (self.arch.linux(), self.settled) else { return Ok(()) };
        self.settled = true;
        if self.stub.kind != Kind::Process {
            return Ok(());
        }
        if linux.taken_back.is_some() {
            return self.take_call_back(linux);
        }
        if layout.restart_nr.is_none() {
            return Ok(());
        }
        for thread in self.stub.thread_ids().map_err(|e| self.fault(e))? {
            let block = self.stub.block(thread).map_err(|e| self.fault(e))?;
            let Some(again) = restarted(layout, linux, &self.decode(&block)?) else { continue };
            let mut new = block.clone();
            self.map.encode(&again, &mut new);
            self.stub.set_block(thread, &self.map, &block, &new).map_err(|e| self.fault(e))?;
        }
        Ok(())
    }
}

impl GdbTarget {
    fn robust_list(&mut self, thread: u64) -> Result<RunAddr, TargetError> {
        let Some(linux) = self.arch.linux() else { return Err(TargetError::Unsupported { what: "make system calls" }) };
        let word = usize::from(self.arch.address_bits() / 8);
        let at = self.scratch();
        // Takes the address; the length is put behind it.
        let args = [thread, 0, at + word as u64, 0, 0, 0];
        self.inject("get_robust_list", linux.get_robust_list, args, Some((1, &[0; 16])))?;
        let bytes = self.stub.read_bytes(at, word).map_err(|e| self.fault(e))?;
        Ok(RunAddr(load(&bytes, self.arch.data_endian())))
    }
}

impl GdbTarget {
    /// Lets a thread run a little, by breakpoints where it comes past. Is more of that of use?
    fn stride(&mut self, thread: u64) -> Result<bool, TargetError> {
        let regs = self.registers_of(thread)?;
        let pc = regs.get(self.arch.registers().pc);
        // Not across the end of a page: memory may end there.
        let mut code = vec![0u8; (STRIDE - pc % STRIDE) as usize];
        self.read(RunAddr(pc), &mut code)?;
        let Some(places) = self.arch.comes_past(&regs, &code) else { return Ok(false) };
        let count = if places[0] == places[1] { 1 } else { 2 };
        let planted = places[..count].iter().try_for_each(|at| self.plant(*at));
        let result = planted.and_then(|()| self.run_past(thread, &places));
        // Else when it stands again.
        if self.stub.line.running {
            return result;
        }
        let uprooted = self.uproot();
        result.and_then(|more| uprooted.map(|()| more))
    }

    fn run_past(&mut self, thread: u64, places: &[u64]) -> Result<bool, TargetError> {
        match self.stub.run_one(thread, 'c', Instant::now() + STEP).map_err(|e| self.fault(e))? {
            Some(stop) if matches!(stop.signal, 0 | 5) => {
                let pc = self.registers_of(thread)?.get(self.arch.registers().pc);
                Ok(places.contains(&pc))
            }
            Some(stop) => {
                self.stub.signals.push((thread, stop.signal));
                Ok(false)
            }
            None => {
                self.settled = false;
                self.stub.halt().map_err(|e| self.fault(e))?;
                self.settle()?;
                Ok(false)
            }
        }
    }
}

impl Threads for GdbTarget {
    fn attach(&mut self) -> Result<(), TargetError> {
        Ok(())
    }

    fn stop_all(&mut self) -> Result<Vec<ThreadId>, TargetError> {
        self.stand()?;
        let ids = self.stub.thread_ids().map_err(|e| self.fault(e))?;
        if !self.stub.interruptible && ids.len() > 1 {
            let why = "stops only one thread of a program that has several (user-mode emulation): patch it with a \
                       gdbserver or tfix in the emulated system";
            return Err(unsuitable("remote-threads", &self.stub.name, why));
        }
        Ok(ids.into_iter().map(ThreadId).collect())
    }

    fn registers(&mut self, thread: ThreadId) -> Result<Registers, TargetError> {
        self.registers_of(thread.0)
    }

    /// A stub that can't stop the target again keeps it until the session's end.
    fn resume_all(&mut self) -> Result<(), TargetError> {
        if !self.stub.interruptible {
            return Ok(());
        }
        self.mend()?;
        if self.stub.line.running {
            return Ok(());
        }
        self.let_call_go();
        self.forget();
        let gone = if self.stub.attached.is_some() { self.stub.detach() } else { self.stub.go() };
        gone.map_err(|e| self.fault(e))
    }

    /// By single steps: nothing has to be stopped again after them.
    fn run_some(&mut self, threads: &[ThreadId], _micros: u64) -> Result<(), TargetError> {
        self.maps = None;
        // The system's answer to a gdbserver that tries it there is an error, and gdbserver is no good any more.
        let steps = self.arch.linux().is_none_or(|l| l.single_step) || !self.stub.interruptible;
        if self.stub.kind == Kind::Process && !steps {
            for t in threads {
                for _ in 0..STRIDES {
                    if !self.stride(t.0)? {
                        break;
                    }
                }
            }
            return Ok(());
        }
        for t in threads {
            for _ in 0..STEPS {
                if self.before_call(*t)? {
                    break;
                }
                match self.stub.run_one(t.0, 's', Instant::now() + STEP) {
                    Ok(Some(stop)) if matches!(stop.signal, 0 | 5) => {}
                    Ok(Some(stop)) => {
                        self.stub.signals.push((t.0, stop.signal));
                        break;
                    }
                    // It waits inside a call.
                    Ok(None) => {
                        self.settled = false;
                        self.stub.halt().map_err(|e| self.fault(e))?;
                        self.settle()?;
                        break;
                    }
                    Err(GdbError::Lacks { .. }) => {
                        return Err(TargetError::Unsupported { what: "let single threads run" });
                    }
                    Err(e) => return Err(self.fault(e)),
                }
            }
        }
        Ok(())
    }

    fn obstacle(&mut self, _thread: ThreadId, regs: &Registers) -> Option<&'static str> {
        let (reg, bits) = self.arch.registers().exception?;
        let inside = self.stub.kind == Kind::Bare && regs.get(reg) & bits != 0;
        inside.then_some("the processor is inside an exception handler")
    }

    fn returns(&mut self, thread: ThreadId, regs: &Registers) -> Result<Vec<RunAddr>, TargetError> {
        let Some(r) = self.arch.registers().returns.filter(|_| self.stub.kind == Kind::Bare) else {
            return Ok(Vec::new());
        };
        if regs.get(r.masked.0) & r.masked.1 == 0 {
            return Ok(Vec::new());
        }
        let level = regs.get(r.level.0) & r.level.1;
        let mut out = Vec::new();
        for &(number, _) in self.returns.iter().filter(|(_, lowest)| *lowest <= level) {
            let bytes = self.stub.register(thread.0, number).map_err(|e| self.fault(e))?;
            let bytes = bytes.ok_or(TargetError::Unsupported { what: "read what an exception handler returns to" })?;
            out.push(RunAddr(load(&bytes, self.arch.data_endian())));
        }
        Ok(out)
    }

    /// The stub shows no thread pointer that is in no general register. But C libraries keep the list of robust mutexes, of
    /// which the kernel knows, in the control block; musl only of threads that have locked one.
    fn thread_block(&mut self, thread: ThreadId) -> Option<RunAddr> {
        if self.stub.kind != Kind::Process {
            return None;
        }
        if let Some(at) = self.blocks.get(&thread.0) {
            return Some(*at);
        }
        let at = self.with_thread(|t| t.robust_list(thread.0)).ok().filter(|at| at.0 != 0)?;
        // While a thread lives it stays where it is.
        self.blocks.insert(thread.0, at);
        Some(at)
    }

    fn thread_name(&mut self, thread: ThreadId) -> String {
        if self.stub.kind == Kind::Process {
            let path = format!("/proc/{}/comm", thread.0);
            if let Ok(Some(name)) = self.stub.file(&path, 0, 64) {
                return String::from_utf8_lossy(&name).trim_end().to_owned();
            }
        }
        // Only for messages: without a list there is no name.
        let listed = self.stub.listed_threads().ok().flatten().unwrap_or_default();
        listed.into_iter().find(|t| t.0 == thread.0).map_or(String::new(), |t| t.1)
    }
}
