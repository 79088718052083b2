//! May the code under these threads be changed? The check that runs while everybody is stopped.
//!
//! A thread is judged in two steps. First every aligned word of the used part of its stack, and its registers, are
//! compared with the protected ranges: no hit proves that the thread neither executes nor will return into them, and
//! costs one read. Only where a word does hit is the stack unwound exactly, to tell a return address from a stale or
//! unrelated value. Where that ends before the outermost frame, the words below the last frame are explained; those above
//! count as return addresses.

use crate::addr::RunAddr;
use crate::arch::{Arch, RegisterLayout, Registers};
use crate::field::{Endian, load};
use crate::session::Clock;
use crate::session::error::{Blocker, SessionError};
use crate::session::find_word;
use crate::session::unwind::{Unwinder, plain};
use crate::target::{Mapping, Target, TargetError, ThreadId};
use alloc::{string::String, vec::Vec};

/// Stacks are read in pieces of this many bytes.
const CHUNK: u64 = 256 << 10;
/// How long threads that are inside run at a time, microseconds.
const SLICE_US: u64 = 20;

/// A range of code that no thread may be inside.
#[derive(Clone, Debug)]
pub struct Protected {
    /// Name for messages.
    pub name: String,
    /// First address.
    pub start: RunAddr,
    /// Past the last address.
    pub end: RunAddr,
    /// Being exactly at `start` is fine (an entry: what is written there takes over).
    pub entry: bool,
    /// For the offset in messages: entry of the function.
    pub function: RunAddr,
}

impl Protected {
    /// A pc in the range.
    fn holds_pc(&self, pc: u64) -> bool {
        pc < self.end.0 && if self.entry { pc > self.start.0 } else { pc >= self.start.0 }
    }
    /// The pc of a thread that was interrupted in a delay slot: the branch's, and the branch may have begun to work.
    fn holds_branch(&self, pc: u64) -> bool {
        pc < self.end.0 && pc >= self.start.0
    }
    /// A return address into the range: it follows a call, so it is past the start; it may be the end (a call that does
    /// not return may be a function's last instruction).
    fn holds_return(&self, addr: u64) -> bool {
        addr > self.start.0 && addr <= self.end.0
    }
    fn holds(&self, frame: &crate::session::unwind::Frame) -> bool {
        if frame.exact { self.holds_pc(frame.pc.0) } else { self.holds_return(frame.pc.0) }
    }
}

/// All that the check needs besides the threads.
pub struct Checker<'c, 'm> {
    /// Ranges, any order.
    pub protected: &'c [Protected],
    /// For each of them: may its end be a return address? Else a word with that value is a pointer to what comes next.
    pub returns_to_end: Vec<bool>,
    /// For what only it can tell.
    pub arch: &'m dyn Arch,
    /// Register layout.
    pub layout: &'static RegisterLayout,
    /// Byte order of data.
    pub endian: Endian,
    /// Size of an address, bytes.
    pub word: u8,
    /// See [`crate::arch::Arch::return_address_bits`].
    pub return_bits: u64,
    /// The system call instruction, where the kernel takes interrupted calls back before anybody sees them.
    pub call_insn: Option<&'static [u8]>,
    /// Mappings as of shortly before the stop.
    pub mappings: Vec<Mapping>,
    /// No operating system gives threads their stacks: whatever the stack pointer points to is the processor's only one.
    pub one_stack: bool,
    /// Unwinder.
    pub unwinder: Unwinder<'m>,
    /// Room for pieces of stacks; kept, because everybody waits.
    pub buffer: Vec<u8>,
}

/// The mapping that holds `at`; `mappings` are ascending.
fn mapping_of(mappings: &[Mapping], at: RunAddr) -> Option<&Mapping> {
    let i = mappings.partition_point(|m| m.end <= at);
    mappings.get(i).filter(|m| m.contains(at))
}

impl Checker<'_, '_> {
    /// Judges all of `threads`, which are stopped. Empty: safe.
    ///
    /// # Errors
    /// Target errors, and [`SessionError::StackUnknown`].
    pub fn check(&mut self, target: &mut dyn Target, threads: &[ThreadId]) -> Result<Vec<Blocker>, SessionError> {
        let mut out = Vec::new();
        self.unwinder.forget();
        for &t in threads {
            let Some(api) = target.threads() else { return Ok(out) };
            let regs = api.registers(t)?;
            if let Some(why) = api.obstacle(t, &regs) {
                return Err(SessionError::StackUnknown { thread: t, why });
            }
            if let Some(mut b) = self.check_thread(target, t, &regs)? {
                if let Some(api) = target.threads() {
                    b.thread_name = api.thread_name(t);
                }
                out.push(b);
            }
        }
        Ok(out)
    }

    /// Helps threads that are inside to get out, while all others stay stopped: a function that is busy most of the time
    /// in several threads would otherwise never be free in all of them at once. They run
    /// in short slices until each was stopped outside once. Ends when nobody is inside any more,
    /// or when `deadline_us` has passed. Returns who still is.
    ///
    /// # Errors
    /// As [`Checker::check`].
    pub fn lead_out(
        &mut self,
        target: &mut dyn Target,
        mut blockers: Vec<Blocker>,
        clock: &mut dyn Clock,
        deadline_us: u64,
    ) -> Result<Vec<Blocker>, SessionError> {
        while !blockers.is_empty() && clock.now_us() < deadline_us {
            for b in &blockers {
                let Some(api) = target.threads() else { return Ok(blockers) };
                // Whoever waits for something inside does so for longer than the others should stand.
                let regs = api.registers(b.thread)?;
                if self.waits(target, &regs) {
                    return Ok(blockers);
                }
            }
            for b in &blockers {
                let Some(api) = target.threads() else { return Ok(blockers) };
                // One at a time: more would wait for a processor.
                match api.run_some(&[b.thread], SLICE_US) {
                    Err(TargetError::Unsupported { .. }) => return Ok(blockers),
                    other => other?,
                }
            }
            // Those that ran may have made threads, which run.
            let Some(api) = target.threads() else { return Ok(blockers) };
            let all = api.stop_all()?;
            blockers = self.check(target, &all)?;
        }
        Ok(blockers)
    }

    /// Was the thread stopped in a system call that the kernel makes again (ERESTARTSYS to ERESTART_RESTARTBLOCK,
    /// include/linux/errno.h)? Where it has taken the call back already, one that is about to be made looks the same.
    fn waits(&self, target: &mut dyn Target, regs: &Registers) -> bool {
        if let Some(insn) = self.call_insn {
            let mut code = alloc::vec![0; insn.len()];
            return target.read(RunAddr(regs.get(self.layout.pc)), &mut code).is_ok() && code == insn;
        }
        let Some(nr) = self.layout.restart_nr else { return false };
        let result = regs.get(self.layout.result);
        let errno = match self.layout.error_flag {
            Some(flag) if regs.get(flag) != 0 => result as u32,
            Some(_) => 0,
            None => (result as u32).wrapping_neg(),
        };
        regs.get(nr) as u32 as i32 >= 0 && (512..=516).contains(&errno)
    }

    fn blocker(&self, thread: ThreadId, p: &Protected, at: u64, frame: Option<usize>) -> Blocker {
        Blocker {
            thread,
            thread_name: String::new(),
            function: p.name.clone(),
            at: RunAddr(at),
            offset: at.wrapping_sub(p.function.0),
            frame,
        }
    }

    fn check_thread(
        &mut self,
        target: &mut dyn Target,
        thread: ThreadId,
        regs: &Registers,
    ) -> Result<Option<Blocker>, SessionError> {
        let pc = self.narrow(regs.get(self.layout.pc));
        let in_slot = self.layout.in_delay_slot.is_some_and(|(r, bit)| regs.get(r) & bit != 0);
        let inside = |p: &&Protected| p.holds_pc(pc) || in_slot && p.holds_branch(pc);
        if let Some(p) = self.protected.iter().find(inside) {
            return Ok(Some(self.blocker(thread, p, pc, Some(0))));
        }
        let Some(api) = target.threads() else { return Ok(None) };
        for at in api.returns(thread, regs)? {
            // As the processor that was interrupted there would be at its pc.
            if let Some(p) = self.protected.iter().find(|p| p.holds_pc(at.0)) {
                return Ok(Some(self.blocker(thread, p, at.0, None)));
            }
        }
        if self.out_of_place(target, RunAddr(pc)) {
            let why = "the system has it execute an instruction out of its place";
            return Err(SessionError::StackUnknown { thread, why });
        }
        // Code that compilers outline may be called with the return address in any general register.
        let usual = [Some(self.layout.pc), Some(self.layout.sp), self.layout.ra];
        let mut others = self.layout.dwarf.iter().map(|(_, r)| *r).filter(|r| !usual.contains(&Some(*r)));
        let kept = others.find_map(|r| self.suspect(self.narrow(regs.get(r))));
        let mut hit = self.layout.ra.and_then(|ra| self.suspect(self.narrow(regs.get(ra)))).or(kept);
        let sp = RunAddr(self.narrow(regs.get(self.layout.sp)));
        if mapping_of(&self.mappings, sp).is_none()
            && let Some(maps) = target.mappings()
        {
            // A thread younger than our list.
            self.mappings = maps.mappings()?;
        }
        let nowhere = SessionError::StackUnknown { thread, why: "its stack pointer points to no memory" };
        let Some((end, own)) = self.stack_of(target, thread, regs, sp) else { return Err(nowhere) };
        if hit.is_none() {
            hit = self.scan(target, sp, end)?;
        }
        if hit.is_none() && own {
            return Ok(None);
        }
        let trace = self.unwinder.backtrace(target, regs);
        for (n, frame) in trace.frames.iter().enumerate() {
            if let Some(p) = self.protected.iter().find(|p| p.holds(frame)) {
                return Ok(Some(self.blocker(thread, p, frame.pc.0, Some(n))));
            }
        }
        if trace.complete {
            return Ok(None);
        }
        // What the walk came over is explained; it may have led to another stack.
        let Some((end, own)) = self.stack_of(target, thread, regs, trace.explained) else { return Err(nowhere) };
        // The walk looks at the usual register itself.
        let mut left = trace.link.and_then(|v| self.suspect(v)).or(kept);
        if left.is_none() {
            left = self.scan(target, trace.explained, end)?;
        }
        match left {
            Some(addr) => {
                let p = self.protected.iter().find(|p| p.holds_return(addr) || p.holds_pc(addr));
                Ok(p.map(|p| self.blocker(thread, p, addr, None)))
            }
            None if own => Ok(None),
            None => Err(SessionError::StackUnknown {
                thread,
                why: "it runs on a stack of its own making that cannot be unwound to the end",
            }),
        }
    }

    /// See [`Arch::out_of_place`]. Firmware has no system that would do so.
    fn out_of_place(&self, target: &mut dyn Target, pc: RunAddr) -> bool {
        let copies = !self.one_stack && mapping_of(&self.mappings, pc).is_some_and(|m| m.file == (0, 0));
        let mut code = [0; 8];
        copies && target.read(pc, &mut code).is_ok() && self.arch.out_of_place(&code)
    }

    /// An address as wide as the architecture's.
    fn narrow(&self, v: u64) -> u64 {
        if self.word == 4 { u64::from(v as u32) } else { v }
    }

    /// End of the mapping that holds `sp`, and whether it is the thread's own stack: the kernel's [stack], or the one that
    /// holds its control block. On any other (a signal handler's, a coroutine's) the words below do not tell all.
    fn stack_of(
        &self,
        target: &mut dyn Target,
        thread: ThreadId,
        regs: &Registers,
        sp: RunAddr,
    ) -> Option<(RunAddr, bool)> {
        let stack = mapping_of(&self.mappings, sp)?;
        let mut own = self.one_stack || stack.name == "[stack]";
        if !own {
            let block = match self.layout.tp {
                Some(tp) => Some(RunAddr(regs.get(tp))),
                None => target.threads().and_then(|t| t.thread_block(thread)),
            };
            own = block.is_some_and(|at| stack.contains(at));
        }
        Some((stack.end, own))
    }

    /// The address that `value` means, if that could be a return address into a protected range.
    fn suspect(&self, value: u64) -> Option<u64> {
        let mut ranges = self.protected.iter().zip(&self.returns_to_end);
        ranges.find_map(|(p, end)| {
            let addr = plain(value, p.start.0, self.return_bits);
            (p.holds_return(addr) && (*end || addr != p.end.0)).then_some(addr)
        })
    }

    /// The first aligned word in `from..to` that could be a return address into a protected range.
    fn scan(&mut self, target: &mut dyn Target, from: RunAddr, to: RunAddr) -> Result<Option<u64>, SessionError> {
        let (Some(low), Some(high)) =
            (self.protected.iter().map(|p| p.start.0).min(), self.protected.iter().map(|p| p.end.0).max())
        else {
            return Ok(None);
        };
        let word = usize::from(self.word);
        let mut at = RunAddr(from.0 & !(word as u64 - 1));
        let largest = to.0.saturating_sub(at.0).min(CHUNK) as usize;
        if self.buffer.len() < largest {
            self.buffer.resize(largest, 0);
        }
        while at < to {
            let n = (to.0 - at.0).min(CHUNK) as usize;
            let piece = &mut self.buffer[..n];
            target.read(at, piece)?;
            let mut rest = &self.buffer[..n];
            // What lies in the hull of all ranges is looked at closely.
            let hull = low.saturating_add(1)..high.saturating_add(1);
            while let Some(i) = find_word(rest, self.word, self.endian, self.return_bits, hull.clone()) {
                let (hit, behind) = rest[i * word..].split_at(word);
                if let Some(v) = self.suspect(load(hit, self.endian)) {
                    return Ok(Some(v));
                }
                rest = behind;
            }
            at = at.offset(n as u64);
        }
        Ok(None)
    }
}
