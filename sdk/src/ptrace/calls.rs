//! Calls on behalf of a thread of the target, as a debugger makes them for `call mmap(...)`.
//!
//! # The thread outlives the tool
//! The tool may be killed at any moment; the kernel then detaches, and the thread runs on from the registers that it has.
//! Nothing it is made to do may therefore depend on the tool to end. Below its stack lies a signal frame with all of its
//! state, and where the call returns to lies the C library's code for `rt_sigreturn`: left alone, the thread ends the call
//! and is back at what it did. The order of the steps keeps that true in between:
//!
//! 1. the frame is written, then the registers are set (from here on the thread comes back by itself), then signals are
//!    blocked: the frame has the mask that was;
//! 2. the call is made from one stop to the next;
//! 3. extended state and mask are put back, then the registers (from here on nothing needs the frame), then the memory under
//!    the frame.
//!
//! Neither breakpoint nor single step is used for that: either raises SIGTRAP, which is deadly once there is no tracer to take
//! it away. A function that is called returns to a system call instruction instead, and the thread is stopped at the entry of
//! that call. (Architectures that return by a register have to use the breakpoint.) That suits functions that return
//! addresses, as resolvers do: without the tool, a small number that is returned would be taken for a system call.
//!
//! What remains: a sleep or a poll with a timeout that is wound back that way has its whole timeout again, and one that was
//! stopped before (the kernel then calls it restart_syscall) fails with EINTR, because rt_sigreturn forgets how to restart it
//! (arch/x86/kernel/signal_64.c). Threads in such calls are taken only where there are no others. And a call that the stop
//! itself ends with EINTR (`threads.rs`) shows that if the tool is killed in the microseconds before it has looked.
//!
//! # Nothing else notices
//! * All signals are blocked meanwhile, but for those of faults: the kernel resets the handler of a fault's signal if that is
//!   blocked (kernel/signal.c, force_sig_info_to_task). What arrives stays pending.
//! * The thread's own interrupted system call is restarted when the registers are back. For that they are put back in a stop
//!   *within* the kernel's signal handling, which looks at restarts; it does not after a system call stop.
//!   Where the kernel takes calls back before a tracer sees them ([`LinuxAbi::taken_back`]), it has then forgotten which call
//!   that was: a sleep is made again with its whole timeout, and a signal that arrives *during* the injected calls has its
//!   handler run before the thread's own call is made again, not within it.
//! * A restartable sequence that the thread was in is aborted, as preemption would (kernel/rseq.c): it ran something else
//!   meanwhile, and the kernel has dropped the sequence.
//! * The memory below the stack pointer belongs to nobody on a thread's own stack, but perhaps to another coroutine
//!   elsewhere: only a thread that is on its own stack is taken, and the memory is restored nevertheless.

use super::threads::{Patience, Phase, read_registers, write_registers};
use super::{PtraceTarget, gone, shadow_stack, sys, system, unsuitable};
use crate::restart::interrupted_call;
use nix::errno::Errno;
use std::time::{Duration, Instant};
use sys::{Event, Go};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::{LinuxAbi, Registers};
use tigerfix_core::field::{load, store};
use tigerfix_core::target::{Calls, Mapping, TargetError, ThreadId};

/// How long an injected call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a call that took too long gets to end once it was interrupted.
const LAST_CHANCE: Duration = Duration::from_millis(500);
/// How long one thread gets to stop, before another one is tried.
const HOLD_PATIENCE: Duration = Duration::from_millis(500);
/// How long a suitable thread is sought.
const HOLD_DEADLINE: Duration = Duration::from_secs(2);
/// Room for data of a call, bytes.
const SCRATCH: usize = 4096;
/// include/linux/errno.h
const ERESTART_RESTARTBLOCK: u64 = 516;
/// Rule of a thread that is second choice; nobody sees it.
const SECOND_CHOICE: &str = "second-choice";
/// Rules that a thread breaks at times only.
const STACK_SPACE: &str = "stack-space";
/// Stack that a called function may use.
const CALL_STACK: u64 = 16 * 1024;

/// Where in the target the code is that calls are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// A system call and a return, and `rt_sigreturn`.
    Returning { call: u64, sigreturn: u64 },
    /// A system call; nothing brings the thread back if the tool is gone.
    Bare { call: u64 },
}

/// The held thread.
pub(super) struct Held {
    tid: i32,
    /// It was stopped before, and stays so.
    keep: bool,
    /// Seccomp filters are out of action.
    unfiltered: bool,
    /// What it has to have back.
    saved: Registers,
    code: Code,
    place: Place,
    ground: Option<Ground>,
    /// Signals that were taken off the thread, to be sent again.
    deferred: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the stop that was asked for.
    Stop,
    /// In another stop.
    Elsewhere,
    /// Not back from a call.
    Running,
}

/// What was saved and laid out before the first call.
struct Ground {
    /// Register sets beside the general one: number of the note, contents.
    xstate: Vec<(usize, Vec<u8>)>,
    /// Bit 0: signal 1.
    mask: u128,
    /// Stack pointer to start calls with.
    sp: u64,
    /// Where calls return to by themselves.
    sigreturn: Option<u64>,
    /// Address of [`SCRATCH`] bytes.
    scratch: u64,
    /// What was in the memory that is used.
    under: (u64, Vec<u8>),
}

/// Signals that a fault raises; everything else is blocked during calls.
const FAULTS: [i32; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

fn blocked() -> u128 {
    FAULTS.iter().fold(u128::MAX, |mask, sig| mask & !(1 << (sig - 1)))
}

/// Finds the first of `needles` (best first) in the target's code, at a multiple of `align` and not at `except`.
fn search(t: &PtraceTarget, maps: &[&Mapping], needles: &[&[u8]], align: u64, except: Option<u64>) -> Option<u64> {
    const CHUNK: u64 = 1 << 20;
    for needle in needles {
        let finder = memchr::memmem::Finder::new(needle);
        let overlap = needle.len() as u64 - 1;
        for m in maps {
            let mut at = m.start.0;
            while at < m.end.0 {
                let len = (CHUNK + overlap).min(m.end.0 - at);
                let mut buf = vec![0u8; len as usize];
                if t.read_mem(at, &mut buf).is_err() {
                    break;
                }
                if let Some(i) =
                    finder.find_iter(&buf).map(|i| at + i as u64).find(|i| i % align == 0 && Some(*i) != except)
                {
                    return Some(i);
                }
                at += CHUNK;
            }
        }
    }
    None
}

fn holds(t: &PtraceTarget, at: u64, one_of: &[&[u8]]) -> bool {
    one_of.iter().any(|code| {
        let mut now = vec![0u8; code.len()];
        t.read_mem(at, &mut now).is_ok() && now == *code
    })
}

/// Has the stopped thread state that calls would not leave as it is?
fn check_state(tid: i32) -> Result<(), TargetError> {
    if sys::has_guarded_stack(tid) {
        return Err(shadow_stack(tid));
    }
    if sys::is_streaming(tid) {
        return Err(unsuitable("streaming-mode", tid, "is in streaming mode, which calls on its behalf would end"));
    }
    Ok(())
}

impl PtraceTarget {
    /// The thread that is held, if any.
    pub(super) fn held_thread(&self) -> Option<i32> {
        self.held.as_ref().map(|h| h.tid)
    }

    fn linux(&self) -> Result<&'static LinuxAbi, TargetError> {
        self.arch
            .linux()
            .ok_or(TargetError::Unsupported { what: "make system calls in the target: this ABI has no Linux" })
    }

    fn code(&mut self, linux: &LinuxAbi) -> Result<Code, TargetError> {
        // A library may have been unloaded since.
        let valid = match self.code {
            Some(Code::Returning { call, sigreturn }) => {
                holds(self, call, linux.syscall_return) && holds(self, sigreturn, linux.sigreturn_code)
            }
            _ => false,
        };
        if let (Some(code), true) = (self.code, valid) {
            return Ok(code);
        }
        let code = self.find_code(linux, None)?;
        self.code = Some(code);
        Ok(code)
    }

    /// Seeks code whose call is not at `except`.
    fn find_code(&mut self, linux: &LinuxAbi, except: Option<u64>) -> Result<Code, TargetError> {
        let all = self.maps()?;
        // The gate page is no memory of the process: its code can't be entered in the middle.
        let mut maps: Vec<&Mapping> = all.iter().filter(|m| m.perm.exec && m.name != "[vsyscall]").collect();
        maps.sort_by_key(|m| {
            let file = m.name.rsplit('/').next().unwrap_or_default();
            match file {
                "[vdso]" => 0,
                _ if file.starts_with("ld-") => 1,
                _ if file.starts_with("libc") => 2,
                _ => 3,
            }
        });
        let find = |needles: &[&[u8]]| search(self, &maps, needles, linux.insn_align, except);
        let call = find(linux.syscall_return);
        match (call, find(linux.sigreturn_code)) {
            (Some(call), Some(sigreturn)) => Ok(Code::Returning { call, sigreturn }),
            _ => match call.or_else(|| find(&[linux.syscall_insn])) {
                Some(call) => Ok(Code::Bare { call }),
                None => Err(unsuitable(
                    "no-syscall-instruction",
                    self.pid,
                    "has no system call instruction that could be used",
                )),
            },
        }
    }

    /// Where the kernel has taken the thread's call back, a call at that very place would become the rest of the thread's
    /// own one, whatever it is meant to be.
    fn code_apart(&mut self, held: &Held) -> Result<Code, TargetError> {
        let linux = self.linux()?;
        let pc = held.saved.get(self.layout().pc);
        let (Code::Returning { call, .. } | Code::Bare { call }) = held.code;
        if linux.taken_back.is_some() && call == pc { self.find_code(linux, Some(pc)) } else { Ok(held.code) }
    }

    /// Stops `tid` if it can be made to call something; `None` if it has ended.
    fn try_hold(&mut self, tid: i32, code: Code, choosy: bool) -> Result<Option<Held>, TargetError> {
        let Some(status) = self.task_status(tid) else { return Ok(None) };
        status.check_thread(tid)?;
        if choosy && status.state() == 'D' {
            return Err(unsuitable(SECOND_CHOICE, tid, "is in uninterruptible sleep"));
        }
        let keep = self.tasks.get(&tid).is_some_and(|t| t.phase == Phase::Stopped);
        if !keep && !self.stop_one(tid, HOLD_PATIENCE)? {
            return Ok(None);
        }
        let mut held = Held {
            tid,
            keep,
            unfiltered: false,
            saved: self.tasks.get(&tid).map_or(Registers::ZERO, |t| t.regs),
            code,
            place: Place::Stop,
            ground: None,
            deferred: Vec::new(),
        };
        let fit = self
            .check_filter(&mut held, status.number("Seccomp") == 2)
            .and_then(|()| check_state(held.tid))
            .and_then(|()| self.check_stack(&held))
            .and_then(|()| self.check_restart(&held, choosy))
            .and_then(|()| self.code_apart(&held));
        match fit {
            Ok(code) => Ok(Some(Held { code, ..held })),
            Err(e) => {
                self.part(&held);
                Err(e)
            }
        }
    }

    fn check_filter(&self, held: &mut Held, filtered: bool) -> Result<(), TargetError> {
        if filtered {
            sys::set_options(held.tid, sys::OPTIONS | sys::SUSPEND_SECCOMP).map_err(|e| {
                let why = format!(
                    "has a seccomp filter that may kill it for a call it is made to do, and the kernel does not let tfix set it \
                     aside ({}): that takes CAP_SYS_ADMIN",
                    e.desc()
                );
                unsuitable("seccomp", held.tid, &why)
            })?;
            held.unfiltered = true;
        }
        Ok(())
    }

    /// Can the call that the thread was stopped in be made again from its registers alone?
    fn check_restart(&self, held: &Held, choosy: bool) -> Result<(), TargetError> {
        match interrupted_call(self.layout(), &held.saved) {
            Some((_, ERESTART_RESTARTBLOCK)) if choosy => {
                Err(unsuitable(SECOND_CHOICE, held.tid, "sleeps for a time that only the kernel knows the rest of"))
            }
            _ => Ok(()),
        }
    }

    /// Is the thread on its own stack, with room left?
    fn check_stack(&self, held: &Held) -> Result<(), TargetError> {
        let layout = self.layout();
        let sp = held.saved.get(layout.sp);
        let maps = self.maps()?;
        let stack = maps.iter().find(|m| m.contains(RunAddr(sp)) && m.perm.read && m.perm.write);
        let own = stack.is_some_and(|m| {
            let block = layout.tp.map(|tp| held.saved.get(tp)).or_else(|| sys::thread_block(held.tid));
            let home = block.is_none_or(|at| m.contains(RunAddr(at)));
            m.name == "[stack]" || (m.file == (0, 0) && m.name != "[heap]" && home)
        });
        if !own {
            return Err(unsuitable(
                "foreign-stack",
                held.tid,
                "is not on a stack of its own (a coroutine's or a signal handler's)",
            ));
        }
        // Frames are some 3 KiB, 12 with AMX.
        let need = SCRATCH as u64 + 2 * CALL_STACK;
        if stack.is_some_and(|m| sp - m.start.0 < need) {
            return Err(unsuitable(STACK_SPACE, held.tid, &format!("has less than {need} bytes of stack left")));
        }
        Ok(())
    }

    /// Reads what has to be restored, and lays out the frame: before the first call.
    fn engage(&mut self, held: &mut Held) -> Result<(), TargetError> {
        if held.ground.is_some() {
            return Ok(());
        }
        let (layout, linux, tid) = (self.layout(), self.linux()?, held.tid);
        if let Some(abort) = self.rseq_abort(tid, held.saved.get(layout.pc)) {
            held.saved.set(layout.pc, abort);
        }
        let read = |note: usize| {
            let mut buf = vec![0u8; 64 * 1024];
            let len = sys::get_regset(tid, note, &mut buf).ok()?;
            buf.truncate(len);
            Some((note, buf))
        };
        let xstate: Vec<(usize, Vec<u8>)> =
            sys::EXTENDED_STATE.iter().filter_map(|group| group.iter().find_map(|note| read(*note))).collect();
        let mask =
            sys::get_sigmask(tid).map_err(|e| system(format!("read the signal mask of {}", self.thread(tid)), e))?;

        // A call that is about to be restarted is made anew, from its instruction on.
        let mut back = held.saved;
        if let (Some((nr, errno)), Some(restart_nr)) = (interrupted_call(layout, &back), layout.restart_nr) {
            // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (include/linux/errno.h). Where failure is a
            // flag the kernel keeps more in other places, and the back end knows.
            if matches!(errno, 512..=514 | ERESTART_RESTARTBLOCK) && layout.error_flag.is_none() {
                back.set(layout.result, nr);
                back.set(layout.pc, back.get(layout.pc).wrapping_sub(linux.syscall_insn.len() as u64));
                back.set(restart_nr, layout.restart_none);
            }
        }
        let frame = match held.code {
            Code::Returning { sigreturn, .. } => {
                let state: Vec<u8> = xstate.iter().flat_map(|(_, bytes)| bytes).copied().collect();
                self.arch.rescue_frame(&back, &state, mask).map(|f| (f, sigreturn))
            }
            Code::Bare { .. } => None,
        };
        let top = held.saved.get(layout.sp) - linux.red_zone;
        let (sp, end, lowest) = match &frame {
            Some((f, _)) => (f.sp, f.at + f.bytes.len() as u64, f.at.min(f.sp)),
            None => {
                let sp = ((top - 256) & !15) - if layout.ra.is_none() { self.word() } else { 0 };
                // A return address, or arguments.
                (sp, sp + 8 * self.word(), sp)
            }
        };
        let scratch = (lowest - linux.red_zone - SCRATCH as u64) & !15;
        let mut under = vec![0u8; (end - scratch) as usize];
        self.read_mem(scratch, &mut under)?;
        let sigreturn = frame.as_ref().map(|f| f.1);
        held.ground = Some(Ground { xstate, mask, sp, sigreturn, scratch, under: (scratch, under) });
        if let Some((f, sigreturn)) = frame {
            self.write_mem(f.at, &f.bytes)?;
            if layout.ra.is_none() {
                self.write_word(f.sp, sigreturn)?;
            }
        }
        Ok(())
    }

    /// Length of an address, bytes.
    fn word(&self) -> u64 {
        u64::from(self.arch.address_bits() / 8)
    }

    fn write_word(&self, at: u64, value: u64) -> Result<(), TargetError> {
        let mut bytes = vec![0u8; self.word() as usize];
        store(&mut bytes, self.arch.data_endian(), value);
        self.write_mem(at, &bytes)
    }

    /// Where the restartable sequence that the thread is in goes on when it is interrupted (struct rseq and struct rseq_cs,
    /// kernel include/uapi/linux/rseq.h).
    fn rseq_abort(&self, tid: i32, pc: u64) -> Option<u64> {
        const RSEQ_CS: u64 = 8;
        let endian = self.arch.data_endian();
        let mut pointer = [0u8; 8];
        self.read_mem(sys::rseq_area(tid)? + RSEQ_CS, &mut pointer).ok()?;
        let at = load(&pointer, endian);
        let mut cs = [0u8; 32];
        if at == 0 || self.read_mem(at, &mut cs).is_err() {
            return None;
        }
        // version and flags, start_ip, post_commit_offset, abort_ip
        let (start, len, abort) = (load(&cs[8..16], endian), load(&cs[16..24], endian), load(&cs[24..32], endian));
        (pc.wrapping_sub(start) < len).then_some(abort)
    }

    /// The registers to start a call with.
    fn start(&self, held: &Held, regs: &Registers) -> Result<(), TargetError> {
        self.write(held, regs)?;
        sys::set_sigmask(held.tid, blocked())
            .map_err(|e| system(format!("block the signals of {}", self.thread(held.tid)), e))
    }

    fn base_registers(&self, held: &Held) -> Registers {
        let layout = self.layout();
        let mut regs = held.saved;
        if let Some(g) = &held.ground {
            regs.set(layout.sp, g.sp);
            if let (Some(ra), Some(sigreturn)) = (layout.ra, g.sigreturn) {
                regs.set(ra, sigreturn);
            }
        }
        regs
    }

    /// Lets the thread run to its next system call stop, or to a fault of its own. Other signals stay out.
    fn run(&mut self, held: &mut Held, how: Go, what: &'static str, deadline: Instant) -> Result<Event, TargetError> {
        let tid = held.tid;
        let mut sig = 0;
        loop {
            match sys::go(tid, how, sig) {
                Ok(()) => held.place = Place::Running,
                // Killed meanwhile: that shows next.
                Err(Errno::ESRCH) => {}
                Err(e) => return Err(system(format!("let {} go on", self.thread(tid)), e)),
            }
            let event = match self.next_event(tid, &mut Patience::until(deadline), what) {
                Ok(e) => e,
                Err(e) => {
                    // A call that sleeps ends early then.
                    let _ = sys::interrupt(tid);
                    if self.next_event(tid, &mut Patience::until(Instant::now() + LAST_CHANCE), what).is_ok() {
                        held.place = Place::Elsewhere;
                    }
                    return Err(e);
                }
            };
            held.place = Place::Elsewhere;
            match self.route(held, event)? {
                Some(pass) => sig = pass,
                None => return Ok(event),
            }
        }
    }

    /// Deals with what has nothing to do with the call: the signal to go on with, or `None` if the event is the call's.
    fn route(&self, held: &mut Held, event: Event) -> Result<Option<i32>, TargetError> {
        Ok(match event {
            Event::Dead => return Err(gone(self.pid)),
            Event::Stop { event: sys::EVENT_EXEC, .. } => {
                return Err(unsuitable("exec", self.pid, "started another program meanwhile"));
            }
            e if e == Event::SYSCALL => None,
            // The stop of the whole process takes effect when the thread is detached.
            Event::Stop { sig: libc::SIGSTOP, event: 0 } => Some(libc::SIGSTOP),
            // Codes above 0 are the kernel's own: a fault, a breakpoint.
            Event::Stop { sig, event: 0 } if FAULTS.contains(&sig) && sys::siginfo(held.tid).is_ok_and(|i| i.1 > 0) => {
                None
            }
            Event::Stop { sig, event: 0 } => {
                held.deferred.push(sig);
                Some(0)
            }
            Event::Stop { .. } => Some(0),
        })
    }

    fn make_syscall(
        &mut self,
        held: &mut Held,
        name: &'static str,
        nr: u64,
        args: [u64; 6],
        scratch: Option<(usize, &[u8])>,
    ) -> Result<u64, TargetError> {
        self.engage(held)?;
        let layout = self.layout();
        let mut args = args;
        if let (Some((index, bytes)), Some(g)) = (scratch, &held.ground) {
            if bytes.len() > SCRATCH || index >= args.len() {
                return Err(TargetError::Unsupported { what: "pass that much data to a system call" });
            }
            self.write_mem(g.scratch, bytes)?;
            args[index] = g.scratch;
        }
        let mut regs = self.base_registers(held);
        let (Code::Returning { call, .. } | Code::Bare { call }) = held.code;
        layout.send(&mut regs, call);
        let on_stack = self.linux()?.stack_args.map(|words| regs.get(layout.sp) + u64::from(words) * self.word());
        for (i, a) in args.iter().enumerate() {
            match (layout.syscall_args.get(i), on_stack) {
                (Some(r), _) => regs.set(*r, *a),
                (None, Some(first)) => {
                    self.write_word(first + (i - layout.syscall_args.len()) as u64 * self.word(), *a)?;
                }
                (None, None) if *a == 0 => {}
                _ => return Err(TargetError::Unsupported { what: "pass that many arguments to a system call" }),
            }
        }
        regs.set(layout.syscall_nr, nr);
        self.start(held, &regs)?;

        let deadline = Instant::now() + CALL_DEADLINE;
        for _entry_then_exit in 0..2 {
            match self.run(held, Go::ToSyscall, "return from a system call", deadline)? {
                e if e == Event::SYSCALL => {}
                other => return Err(self.fault(held, name, other)),
            }
        }
        let now = read_registers(self.arch, held.tid)
            .map_err(|e| system(format!("read the registers of {}", self.thread(held.tid)), e))?;
        let result = now.get(layout.result);
        // The last 4095 values are errors in every ABI that has no flag for them (include/linux/err.h, MAX_ERRNO).
        let (failed, errno) = match layout.error_flag {
            Some(flag) => (now.get(flag) != 0, result),
            None if self.word() == 4 => ((result as u32) > u32::MAX - 4095, u64::from((result as u32).wrapping_neg())),
            None => (result > u64::MAX - 4095, result.wrapping_neg()),
        };
        if failed { Err(TargetError::Injected { call: name, errno }) } else { Ok(result) }
    }

    fn fault(&self, held: &Held, what: &str, event: Event) -> TargetError {
        let sig = match event {
            Event::Stop { sig, .. } => sig & 0x7f,
            Event::Dead => 0,
        };
        TargetError::System {
            what: format!("call {what} in {}", self.thread(held.tid)),
            why: format!("it raised signal {sig}, which was taken back"),
        }
    }

    fn make_call(&mut self, held: &mut Held, entry: RunAddr, args: &[u64], trap: RunAddr) -> Result<u64, TargetError> {
        let layout = self.layout();
        let name = format!("the function at {entry}");
        if args.len() > layout.call_args.len() {
            return Err(TargetError::Unsupported { what: "pass that many arguments to a function" });
        }
        self.engage(held)?;
        let Some((sp, sigreturn)) = held.ground.as_ref().map(|g| (g.sp, g.sigreturn)) else {
            return Err(gone(self.pid));
        };
        let mut regs = self.base_registers(held);
        layout.send(&mut regs, entry.0);
        for (r, a) in layout.call_args.iter().zip(args) {
            regs.set(*r, *a);
        }
        if let Some(r) = layout.entry {
            regs.set(r, entry.0);
        }
        let deadline = Instant::now() + CALL_DEADLINE;
        match (held.code, sigreturn) {
            (Code::Returning { call, .. }, Some(sigreturn)) if layout.ra.is_none() => {
                self.call_to_syscall(held, regs, (call, sigreturn), sp, deadline, &name)
            }
            _ => {
                match layout.ra {
                    Some(ra) => regs.set(ra, trap.0),
                    None => self.write_word(sp, trap.0)?,
                }
                let result = self.call_to_trap(held, &regs, trap, deadline, &name);
                if let (None, Some(back)) = (layout.ra, sigreturn) {
                    self.write_word(sp, back)?;
                }
                result
            }
        }
    }

    /// The function returns to `syscall; ret`: the entry of that system call is where it is stopped, and the call's number is
    /// its result. That call is not made. Left alone the thread would make it, return to the mere `ret`, and from there to
    /// `rt_sigreturn`. Where the result is an address, as a resolver's is, there is no call of that number, so that it does
    /// nothing; where it is a small number, that call would be made.
    fn call_to_syscall(
        &mut self,
        held: &mut Held,
        mut regs: Registers,
        (call, sigreturn): (u64, u64),
        sp: u64,
        deadline: Instant,
        name: &str,
    ) -> Result<u64, TargetError> {
        let layout = self.layout();
        let Some(nr) = layout.restart_nr else {
            return Err(TargetError::Unsupported { what: "call functions of the target on this architecture" });
        };
        let word = self.word();
        let ret = call + self.linux()?.syscall_insn.len() as u64;
        // The frame's place is aligned as at a function's entry, so two words have to go on top.
        self.write_word(sp, sigreturn)?;
        self.write_word(sp - word, ret)?;
        self.write_word(sp - 2 * word, call)?;
        regs.set(layout.sp, sp - 2 * word);
        self.start(held, &regs)?;
        loop {
            let event = self.run(held, Go::ToSyscall, "return from a function", deadline)?;
            if event != Event::SYSCALL {
                return Err(self.fault(held, name, event));
            }
            let mut now = self.call_registers(held)?;
            // Or else it is a system call of the function's own.
            if now.get(layout.pc) == ret && now.get(layout.sp) == sp - word {
                let result = now.get(nr);
                now.set(nr, layout.restart_none);
                self.write(held, &now)?;
                self.run(held, Go::ToSyscall, "return from a function", deadline)?;
                return Ok(result);
            }
            if Instant::now() >= deadline {
                return Err(TargetError::Timeout {
                    thread: ThreadId(held.tid as u64),
                    what: "return from a function",
                    millis: CALL_DEADLINE.as_millis() as u64,
                });
            }
        }
    }

    /// The function returns to a breakpoint. That ends the target if the tool is gone.
    fn call_to_trap(
        &mut self,
        held: &mut Held,
        regs: &Registers,
        trap: RunAddr,
        deadline: Instant,
        name: &str,
    ) -> Result<u64, TargetError> {
        let layout = self.layout();
        // The kernel would reset that to the default action (force_sig_info_to_task).
        let trap_bit = 1 << (libc::SIGTRAP - 1);
        let ignored = self.task_status(held.tid).is_some_and(|s| s.mask("SigIgn") & trap_bit != 0);
        if ignored {
            return Err(unsuitable(
                "sigtrap-ignored",
                held.tid,
                "ignores SIGTRAP, so that no function can be called in it",
            ));
        }
        self.start(held, regs)?;
        let event = self.run(held, Go::On, "return from a function", deadline)?;
        let now = self.call_registers(held)?;
        // Some processors report the address behind the breakpoint.
        let at_trap = now.get(layout.pc).wrapping_sub(trap.0) <= 4;
        match event {
            Event::Stop { sig: libc::SIGTRAP, event: 0 } if at_trap => Ok(now.get(layout.result)),
            other => Err(self.fault(held, name, other)),
        }
    }

    fn write(&self, held: &Held, regs: &Registers) -> Result<(), TargetError> {
        write_registers(self.arch, held.tid, regs)
            .map_err(|e| system(format!("set up a call in {}", self.thread(held.tid)), e))
    }

    fn call_registers(&self, held: &Held) -> Result<Registers, TargetError> {
        read_registers(self.arch, held.tid)
            .map_err(|e| system(format!("read the registers of {}", self.thread(held.tid)), e))
    }

    /// Puts everything back that calls have changed.
    fn restore(&mut self, held: &mut Held) -> Result<(), TargetError> {
        let tid = held.tid;
        if held.place == Place::Running {
            self.next_event(tid, &mut Patience::until(Instant::now() + CALL_DEADLINE), "return from a call")?;
            held.place = Place::Elsewhere;
        }
        if held.place == Place::Elsewhere {
            // To a stop within signal handling: before the thread's next instruction, and after no other system call.
            let mut sig = 0;
            loop {
                let _ = sys::interrupt(tid);
                let _ = sys::go(tid, Go::On, sig);
                let event = self.next_event(tid, &mut Patience::until(Instant::now() + CALL_DEADLINE), "stop")?;
                if let Event::Stop { event: sys::EVENT_STOP, .. } = event {
                    break;
                }
                sig = self.route(held, event)?.unwrap_or(0);
            }
            held.place = Place::Stop;
        }
        let Some(g) = &held.ground else { return Ok(()) };
        let error = |what: &'static str| move |e: Errno| system(format!("restore the {what} of thread {tid}"), e);
        for (note, saved) in &g.xstate {
            let mut now = vec![0u8; saved.len()];
            let same = sys::get_regset(tid, *note, &mut now).is_ok_and(|n| n == saved.len()) && now == *saved;
            if !same {
                sys::set_regset(tid, *note, saved).map_err(error("extended state"))?;
            }
        }
        sys::set_sigmask(tid, g.mask).map_err(error("signal mask"))?;
        write_registers(self.arch, tid, &held.saved).map_err(error("registers"))?;
        self.write_mem(g.under.0, &g.under.1)?;
        if let Some(t) = self.tasks.get_mut(&tid) {
            t.regs = held.saved;
        }
        Ok(())
    }

    /// Leaves the held thread to itself, or to the state it was found in.
    fn part(&mut self, held: &Held) {
        for sig in &held.deferred {
            let _ = sys::tgkill(self.pid, held.tid, *sig);
        }
        if held.place == Place::Running {
            // Not back yet. Should the tool end before it is, the kernel lets it go, and it comes back by itself.
            if let Some(t) = self.tasks.get_mut(&held.tid) {
                t.phase = Phase::Asked;
            }
        } else if !held.keep {
            self.let_go(held.tid);
        } else if held.unfiltered {
            let _ = sys::set_options(held.tid, sys::OPTIONS);
        }
    }

    fn with_held<T>(
        &mut self,
        f: impl FnOnce(&mut Self, &mut Held) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        let Some(mut held) = self.held.take() else {
            return Err(TargetError::Unsupported { what: "make calls without a held thread" });
        };
        let result = f(self, &mut held);
        self.held = Some(held);
        result
    }
}

impl Calls for PtraceTarget {
    /// The main thread if it will do, or else another one. Not every thread is fit at every moment (on a signal stack, or
    /// deep in a driver), so that it is tried for up to 2 s.
    fn hold(&mut self) -> Result<ThreadId, TargetError> {
        if let Some(h) = &self.held {
            return Ok(ThreadId(h.tid as u64));
        }
        let code = self.code(self.linux()?)?;
        let deadline = Instant::now() + HOLD_DEADLINE;
        let mut reason = None;
        // To stop a thread and let it go again makes a sleep one that rt_sigreturn can't wind back any more: not where there is
        // no other thread to take.
        let mut choosy = self.thread_count()? > 1;
        loop {
            // The others are listed only if the main thread won't do.
            for main in [true, false] {
                let mut tids = if main { vec![self.pid] } else { self.tids()? };
                tids.retain(|t| main || *t != self.pid);
                for tid in tids {
                    match self.try_hold(tid, code, choosy) {
                        Ok(Some(held)) => {
                            self.held = Some(held);
                            return Ok(ThreadId(tid as u64));
                        }
                        Ok(None) => {}
                        Err(e) => {
                            reason.get_or_insert(e);
                        }
                    }
                }
            }
            if std::mem::take(&mut choosy) {
                reason = None;
                continue;
            }
            let passing = match &reason {
                None | Some(TargetError::Timeout { .. }) => true,
                Some(TargetError::Unsuitable { rule, .. }) => {
                    matches!(*rule, "foreign-stack" | STACK_SPACE | "streaming-mode")
                }
                Some(_) => false,
            };
            if !passing || Instant::now() >= deadline || super::interrupted() {
                return Err(reason.unwrap_or_else(|| gone(self.pid)));
            }
            reason = None;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn syscall(
        &mut self,
        name: &'static str,
        nr: u64,
        args: [u64; 6],
        scratch: Option<(usize, &[u8])>,
    ) -> Result<u64, TargetError> {
        self.with_held(|t, h| t.make_syscall(h, name, nr, args, scratch))
    }

    fn call(&mut self, entry: RunAddr, args: &[u64], trap: RunAddr) -> Result<u64, TargetError> {
        self.with_held(|t, h| t.make_call(h, entry, args, trap))
    }

    fn release(&mut self) -> Result<(), TargetError> {
        let Some(mut held) = self.held.take() else { return Ok(()) };
        let restored = self.restore(&mut held);
        self.part(&held);
        restored
    }
}
