//! Stopping all threads, and letting them go as if nothing had happened.
//!
//! * A thread is seized, asked to stop, and detached when it may go on: PTRACE_DETACH drops the requests that are left, and
//!   puts a thread whose process was stopped by job control back into that stop (kernel/ptrace.c, __ptrace_unlink).
//! * A thread that reports a signal instead of our stop gets it at once, and is asked again first, so that it stops before
//!   its next instruction, the handler's first if there is one (kernel/signal.c, recalc_sigpending_tsk). No signal is kept
//!   anywhere, hence none can be lost or doubled.
//! * All threads are known once the kernel's count of them (the links of /proc/PID/task: fs/proc/base.c,
//!   proc_task_getattr) is that of the stopped ones: nobody is left who could make another.
//! * A stop interrupts a system call as a signal would. Most calls then end with one of the kernel's ERESTART codes, and
//!   are made again by the kernel since no handler runs. Some end with EINTR for good (signal(7), "Interruption of system
//!   calls and library functions by stop signals"): their result is changed to ERESTARTNOHAND, which makes the kernel do
//!   the same with them, and still gives EINTR if a handler is to run (arch/x86/kernel/signal.c,
//!   arch_do_signal_or_restart; arch/mips/kernel/signal.c, do_signal). Where the kernel takes calls back before a tracer sees
//!   the thread ([`LinuxAbi::taken_back`]), the same is done by hand to those that have ended with EINTR, if it is certain
//!   which they were ([`crate::restart`]), and undone if a handler is to run.

use super::{PtraceTarget, Status, gone, proc_error, process, sys, system, unsuitable};
use crate::restart::{Call, Wait, given_up, handler_is_due, restarted};
use nix::errno::Errno;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};
use sys::{Event, Go};
use tigerfix_core::arch::{Arch, LinuxAbi, RegisterLayout, Registers};
use tigerfix_core::field::{load, store};
use tigerfix_core::target::{TargetError, ThreadId, Threads};

/// How long a thread that could not be stopped in time gets to come to its stop when the others are let go: on a loaded
/// machine it may wait for a processor.
const LAST_CHANCE: Duration = Duration::from_secs(2);

/// How late a sleep of ours may end while threads run that are to be stopped again at once, nanoseconds.
const SLACK_NS: libc::c_ulong = 1000;
/// With more threads than this, nobody looks which of them are busy.
const MANY: usize = 1024;

/// A thread that is attached.
pub(super) struct Task {
    pub(super) phase: Phase,
    /// It was not asleep when it was seized: it notices being stopped, so it is stopped last and let go first.
    pub(super) busy: bool,
    /// As read at the stop, the interrupted call put in order.
    pub(super) regs: Registers,
    /// The call that it was waiting in when it was asked to stop, where the kernel won't tell later.
    wait: Option<Wait>,
    /// How often it has stood for something else since.
    passed: u64,
    /// Its call had ended with EINTR, and was taken back by us.
    taken_back: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Runs on.
    Seized,
    /// Was asked to stop.
    Asked,
    /// Stands.
    Stopped,
}

/// Waits for something that takes micro- to milliseconds: looks again at once for a while, then sleeps until the kernel
/// has news of a traced thread. (Giving the processor away instead can take a whole time slice of a busy machine.)
pub(super) struct Patience {
    deadline: Instant,
    begin: Instant,
    turns: u32,
    news: Option<sys::ChildSignal>,
}

impl Patience {
    const SPIN: Duration = Duration::from_micros(15);
    /// The longest sleep, should the signal that wakes us go to another thread.
    const NAP: Duration = Duration::from_micros(500);

    pub(super) fn until(deadline: Instant) -> Patience {
        Patience { deadline, begin: Instant::now(), turns: 0, news: None }
    }

    /// Waits a little; false once the deadline has passed. Every so many turns is a slow one, in which to look at what
    /// seldom happens.
    fn wait(&mut self) -> bool {
        match &mut self.news {
            None if self.begin.elapsed() < Self::SPIN => {
                std::hint::spin_loop();
                return true;
            }
            // One more look follows before the first sleep, or news from in between would be slept over.
            None => self.news = Some(sys::ChildSignal::block()),
            Some(news) => {
                self.turns += 1;
                news.wait(Self::NAP);
            }
        }
        Instant::now() < self.deadline
    }

    fn is_slow(&self) -> bool {
        self.turns > 0 && self.turns.is_multiple_of(16)
    }

    pub(super) fn millis(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }
}

/// Are the kernel's words for registers longer than those of the program? Then they are sign-extended there, and are not
/// here.
fn is_narrow(arch: &dyn Arch) -> bool {
    arch.address_bits() < 8 * arch.registers().word
}

/// Reads registers of a stopped thread.
pub(super) fn read_registers(arch: &dyn Arch, tid: i32) -> Result<Registers, Errno> {
    let (count, word) = (usize::from(arch.registers().count), usize::from(arch.registers().word));
    let mut buf = [0u8; Registers::MAX * 8];
    let len = sys::get_registers(tid, &mut buf)?;
    // A program in another mode of the processor (i386) has a set of another size.
    if len != count * word {
        return Err(Errno::ENOEXEC);
    }
    let mut regs = Registers::ZERO;
    for (v, b) in regs.values.iter_mut().zip(buf[..len].chunks_exact(word)) {
        let value = load(b, arch.data_endian());
        *v = if is_narrow(arch) { u64::from(value as u32) } else { value };
    }
    Ok(regs)
}

/// Writes registers of a stopped thread.
pub(super) fn write_registers(arch: &dyn Arch, tid: i32, regs: &Registers) -> Result<(), Errno> {
    let (count, word) = (usize::from(arch.registers().count), usize::from(arch.registers().word));
    let mut buf = [0u8; Registers::MAX * 8];
    for (v, b) in regs.values.iter().zip(buf[..count * word].chunks_exact_mut(word)) {
        let value = if is_narrow(arch) { *v as u32 as i32 as i64 as u64 } else { *v };
        store(b, arch.data_endian(), value);
    }
    sys::set_registers(tid, &buf[..count * word])
}

impl PtraceTarget {
    pub(super) fn layout(&self) -> &'static RegisterLayout {
        self.arch.registers()
    }

    fn task_file(&self, tid: i32, file: &str) -> String {
        format!("/proc/{}/task/{tid}/{file}", self.pid)
    }

    /// The thread's status, or `None` if it has ended.
    pub(super) fn task_status(&self, tid: i32) -> Option<Status> {
        Status::read(&self.task_file(tid, "status")).ok().filter(|s| !matches!(s.state(), 'Z' | 'X'))
    }

    /// All threads there are now, also ended ones that nobody waited for yet.
    pub(super) fn tids(&self) -> Result<Vec<i32>, TargetError> {
        let error = |e: std::io::Error| proc_error(self.pid, "list", "task", &e);
        let mut tids = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.pid)).map_err(error)? {
            tids.extend(entry.map_err(error)?.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
        }
        Ok(tids)
    }

    /// The kernel's count of threads, without the listing.
    pub(super) fn thread_count(&self) -> Result<u64, TargetError> {
        let meta = std::fs::metadata(format!("/proc/{}/task", self.pid))
            .map_err(|e| proc_error(self.pid, "list", "task", &e))?;
        Ok(meta.nlink().saturating_sub(2))
    }

    /// Seizes a thread; false if it has ended.
    pub(super) fn seize(&mut self, tid: i32) -> Result<bool, TargetError> {
        // With very many threads it costs more to look than it saves.
        let busy = self.tasks.len() > MANY || !self.sleeps(tid);
        match sys::seize(tid, sys::OPTIONS) {
            Ok(()) => {
                let task = Task {
                    phase: Phase::Seized,
                    busy,
                    regs: Registers::ZERO,
                    wait: None,
                    passed: 0,
                    taken_back: false,
                };
                self.tasks.insert(tid, task);
                Ok(true)
            }
            Err(Errno::ESRCH) => Ok(false),
            Err(e) => match self.task_status(tid) {
                None => Ok(false),
                Some(s) if s.number("TracerPid") != 0 => {
                    Err(TargetError::AlreadyTraced { what: self.thread(tid), tracer: s.number("TracerPid") })
                }
                Some(_) => Err(TargetError::NotPermitted {
                    action: "attach to",
                    what: self.thread(tid),
                    why: e.desc().to_owned(),
                }),
            },
        }
    }

    /// Is the thread asleep? By the state letter behind the name in /proc/PID/task/TID/stat.
    fn sleeps(&self, tid: i32) -> bool {
        let stat = std::fs::read_to_string(self.task_file(tid, "stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }

    pub(super) fn thread(&self, tid: i32) -> String {
        if tid == self.pid { process(tid) } else { format!("thread {tid} of process {}", self.pid) }
    }

    /// Asks a seized thread to stop. One that has ended shows that when it is waited for.
    pub(super) fn ask(&mut self, tid: i32) {
        if self.tasks.get(&tid).is_none_or(|t| t.phase != Phase::Seized) {
            return;
        }
        // At the last moment: what it does afterwards is not seen.
        let wait = self.forgetful().and_then(|l| Wait::look(l, |file| self.task_text(tid, file)));
        if let Some(t) = self.tasks.get_mut(&tid) {
            let _ = sys::interrupt(tid);
            t.phase = Phase::Asked;
            t.wait = wait;
            t.passed = 0;
        }
    }

    /// The ABI, if the kernel does not tell a tracer which call a thread was in.
    fn forgetful(&self) -> Option<&'static LinuxAbi> {
        self.arch.linux().filter(|l| l.taken_back.is_some())
    }

    fn task_text(&self, tid: i32, file: &str) -> Option<String> {
        std::fs::read_to_string(self.task_file(tid, file)).ok()
    }

    /// Forgets a thread that has ended.
    pub(super) fn bury(&mut self, tid: i32) {
        self.tasks.remove(&tid);
        // Our own child's end is reported to us once, as parent and tracer in one: whoever started it wants to see it.
        if !(self.own_child && tid == self.pid) {
            sys::reap(tid);
        }
    }

    /// The next thing that a thread reports.
    pub(super) fn next_event(
        &self,
        tid: i32,
        patience: &mut Patience,
        what: &'static str,
    ) -> Result<Event, TargetError> {
        loop {
            match sys::peek(tid) {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(e) => return Err(system(format!("wait for {}", self.thread(tid)), e)),
            }
            if patience.is_slow() {
                if let Some(event) = sys::probe(tid) {
                    return Ok(event);
                }
                // The main thread's end is not reported before all others have ended.
                if self.task_status(tid).is_none() {
                    return Ok(Event::Dead);
                }
            }
            if !patience.wait() {
                return Err(TargetError::Timeout { thread: ThreadId(tid as u64), what, millis: patience.millis() });
            }
        }
    }

    /// Waits for the stop that was asked for; false if the thread has ended instead.
    pub(super) fn await_stop(&mut self, tid: i32, deadline: Instant) -> Result<bool, TargetError> {
        let mut patience = Patience::until(deadline);
        loop {
            match self.next_event(tid, &mut patience, "stop")? {
                Event::Dead => {
                    self.bury(tid);
                    return Ok(false);
                }
                Event::Stop { event: sys::EVENT_STOP, .. } => {
                    self.settle(tid)?;
                    return Ok(true);
                }
                Event::Stop { event: sys::EVENT_EXEC, .. } => {
                    if let Some(t) = self.tasks.get_mut(&tid) {
                        t.phase = Phase::Stopped;
                    }
                    return Err(unsuitable("exec", self.pid, "started another program meanwhile"));
                }
                // A signal: it is delivered now, and the stop comes before the thread's next instruction.
                Event::Stop { sig, event: 0 } if sig & 0x80 == 0 => self.carry_on(tid, sig),
                Event::Stop { .. } => self.carry_on(tid, 0),
            }
        }
    }

    /// Lets a thread run on towards the stop that it was asked for. Asks again, since any other stop takes the request with it
    /// (kernel/signal.c, ptrace_stop), but for one that is made during that stop. If the thread was killed meanwhile, that
    /// shows next.
    fn carry_on(&mut self, tid: i32, sig: i32) {
        if let Some(t) = self.tasks.get_mut(&tid) {
            t.passed += 1;
        }
        let _ = sys::interrupt(tid);
        let _ = sys::go(tid, Go::On, sig);
    }

    /// Reads the registers of a thread that has just stopped, and puts its interrupted call in order.
    fn settle(&mut self, tid: i32) -> Result<(), TargetError> {
        let layout = self.layout();
        if let Some(t) = self.tasks.get_mut(&tid) {
            t.phase = Phase::Stopped;
        }
        let mut regs = match read_registers(self.arch, tid) {
            Ok(r) => r,
            Err(Errno::ENOEXEC) => {
                return Err(unsuitable("other-abi", tid, "runs in another mode of the processor than its program's"));
            }
            // Killed meanwhile.
            Err(Errno::ESRCH) => return Err(gone(self.pid)),
            Err(e) => return Err(system(format!("read the registers of {}", self.thread(tid)), e)),
        };
        let linux = self.arch.linux();
        let taken_back = linux.and_then(|l| self.take_back(tid, l, &regs));
        if let Some(again) = taken_back.or_else(|| linux.and_then(|l| restarted(layout, l, &regs))) {
            regs = again;
            write_registers(self.arch, tid, &regs)
                .map_err(|e| system(format!("write the registers of {}", self.thread(tid)), e))?;
        }
        if let Some(t) = self.tasks.get_mut(&tid) {
            t.regs = regs;
            t.taken_back = taken_back.is_some();
        }
        Ok(())
    }

    /// Where the kernel takes calls back itself, but not those that end with EINTR: the registers that make such a call again,
    /// if it may be, and is certain to be the one that the thread was seen in, or was let go a moment ago to make.
    fn take_back(&mut self, tid: i32, linux: &LinuxAbi, regs: &Registers) -> Option<Registers> {
        let (layout, note) = (self.layout(), linux.taken_back? as usize);
        let left = self.left.remove(&tid);
        let task = self.tasks.get(&tid)?;
        let (wait, stops) = (task.wait, task.passed + 1);
        wait.or(left)?;
        let ended = Call::ended(layout, linux, regs, |at, code| self.read_mem(at, code).is_ok())?;
        // Reading its registers has waited until it was off the processor.
        let status = self.task_text(tid, "status")?;
        let wait = [wait, left].into_iter().flatten().find(|w| w.was(&ended, &status, stops))?;
        let told = self.told(tid, linux, note, &ended, regs);
        told.is_none_or(|first| first == wait.first()).then(|| wait.taken_back(layout, linux, regs))
    }

    /// The first argument of a call that has ended, by the kernel. Only some tell, and only while the thread is said to be in the
    /// call; the others give the result.
    fn told(&self, tid: i32, linux: &LinuxAbi, note: usize, ended: &Call, regs: &Registers) -> Option<u64> {
        const NO_CALL: i32 = -1;
        let nr = regs.get(self.layout().syscall_nr) as i32;
        sys::set_regset(tid, note, &nr.to_ne_bytes()).ok()?;
        let text = self.task_text(tid, "syscall");
        let _ = sys::set_regset(tid, note, &NO_CALL.to_ne_bytes());
        ended.first_by(linux, &text?)
    }

    /// Before a thread goes on. A call that we took back ends with EINTR after all if a handler is to run, since that is what
    /// the program waits for. A call that the thread makes now may be ended by our next stop, before anybody could see it
    /// wait.
    fn remember(&mut self, tid: i32) {
        let (layout, Some(linux)) = (self.layout(), self.forgetful()) else { return };
        self.left.remove(&tid);
        let Some(t) = self.tasks.get(&tid).filter(|t| t.phase == Phase::Stopped) else { return };
        let (regs, taken_back) = (t.regs, t.taken_back);
        let next = Call::next(layout, linux, &regs, |at, code| self.read_mem(at, code).is_ok());
        let Some((call, status)) = next.and_then(|call| Some((call, self.task_text(tid, "status")?))) else { return };
        if !taken_back || !handler_is_due(&status) {
            self.left.extend(Wait::ahead(call, &status).map(|wait| (tid, wait)));
        } else if let Some(t) = self.tasks.get_mut(&tid) {
            t.taken_back = false;
            t.regs = given_up(layout, linux, &regs);
            // Killed meanwhile, if that fails.
            let _ = write_registers(self.arch, tid, &t.regs);
        }
    }

    /// Detaches a stopped thread, which then goes on. Only SIGKILL takes a thread out of its stop otherwise: its end has to be
    /// waited for then, since nobody learns of the end of a process before its tracer has taken that of all threads.
    pub(super) fn let_go(&mut self, tid: i32) {
        self.remember(tid);
        let mut patience = Patience::until(Instant::now() + LAST_CHANCE);
        while sys::detach(tid).is_err() {
            match self.next_event(tid, &mut patience, "end") {
                Ok(Event::Dead) => return self.bury(tid),
                // It stopped once more on its way out.
                Ok(Event::Stop { .. }) if patience.wait() => {}
                _ => {
                    if let Some(t) = self.tasks.get_mut(&tid) {
                        t.phase = Phase::Asked;
                    }
                    return;
                }
            }
        }
        self.tasks.remove(&tid);
    }

    /// Detaches everything. Threads that run (a stop failed half way) have to be stopped for that; those that won't stay,
    /// and are tried again the next time.
    pub(super) fn let_all_go(&mut self) {
        let held = self.held_thread();
        let all = |t: &PtraceTarget, stopped: bool| -> Vec<i32> {
            let wanted = |tid: i32, t: &Task| (t.phase == Phase::Stopped) == stopped && Some(tid) != held;
            t.tasks.iter().filter(|(tid, t)| wanted(**tid, t)).map(|(tid, _)| *tid).collect()
        };
        let mut stopped = all(self, true);
        stopped.sort_by_key(|tid| self.tasks.get(tid).is_none_or(|t| !t.busy));
        for tid in stopped {
            self.let_go(tid);
        }
        self.urgent = None;
        let late = all(self, false);
        for &tid in &late {
            self.ask(tid);
        }
        let deadline = Instant::now() + LAST_CHANCE;
        for &tid in &late {
            self.let_late_one_go(tid, deadline);
        }
    }

    /// Detaches a thread that was asked to stop, once it does.
    fn let_late_one_go(&mut self, tid: i32, deadline: Instant) {
        // An error leaves the thread stopped, or there is nothing to be done about it.
        let _ = self.await_stop(tid, deadline);
        if self.tasks.get(&tid).is_some_and(|t| t.phase == Phase::Stopped) {
            self.let_go(tid);
        }
    }

    fn try_stop_all(&mut self, deadline: Instant) -> Result<Vec<ThreadId>, TargetError> {
        loop {
            // Seize until there is nobody new, before anyone has to stand and wait.
            let listed = loop {
                let mut fresh = false;
                let tids = self.tids()?;
                for &tid in &tids {
                    if !self.tasks.contains_key(&tid) {
                        fresh |= self.seize(tid)?;
                    }
                }
                if !fresh {
                    break tids.len() as u64;
                }
            };
            let pending: Vec<i32> =
                self.tasks.iter().filter(|(_, t)| t.phase != Phase::Stopped).map(|(tid, _)| *tid).collect();
            let (busy, asleep): (Vec<i32>, Vec<i32>) =
                pending.iter().partition(|tid| self.tasks.get(tid).is_none_or(|t| t.busy));
            for group in [asleep, busy] {
                for &tid in &group {
                    self.ask(tid);
                }
                for &tid in &group {
                    self.await_stop(tid, deadline)?;
                }
            }
            if self.tasks.is_empty() {
                return Err(gone(self.pid));
            }
            // Either all are stopped, or all that were listed, with nobody to stop among them: the rest are dead.
            let count = self.thread_count()?;
            if count == self.tasks.len() as u64 || (pending.is_empty() && count == listed) {
                return Ok(self.tasks.keys().map(|t| ThreadId(*t as u64)).collect());
            }
            if Instant::now() >= deadline {
                let millis = self.stop_deadline.as_millis() as u64;
                return Err(TargetError::Timeout {
                    thread: ThreadId(self.pid as u64),
                    what: "stop making threads",
                    millis,
                });
            }
        }
    }

    /// Runs `f` with a thread that is stopped; stops the first one that can be for that time if none is.
    pub(super) fn with_stopped_thread<T>(&mut self, f: impl FnOnce(&mut Self, i32) -> T) -> Option<T> {
        if let Some(tid) = self.tasks.iter().find(|(_, t)| t.phase == Phase::Stopped).map(|(tid, _)| *tid) {
            return Some(f(self, tid));
        }
        // The main thread by preference: it is the one whose tracer the kernel asks for (fs/proc/base.c,
        // proc_mem_foll_force).
        let mut tids = self.tids().ok()?;
        tids.sort_unstable_by_key(|t| (*t != self.pid, *t));
        for tid in tids {
            if matches!(self.stop_one(tid, LAST_CHANCE), Ok(true)) {
                let value = f(self, tid);
                self.let_go(tid);
                return Some(value);
            }
        }
        None
    }

    /// Seizes and stops one thread; false if it has ended. It is not attached where this fails.
    pub(super) fn stop_one(&mut self, tid: i32, patience: Duration) -> Result<bool, TargetError> {
        if !self.tasks.contains_key(&tid) && !self.seize(tid)? {
            return Ok(false);
        }
        self.ask(tid);
        let stopped = self.await_stop(tid, Instant::now() + patience);
        if stopped.is_err() {
            self.let_late_one_go(tid, Instant::now() + LAST_CHANCE);
        }
        stopped
    }
}

impl Threads for PtraceTarget {
    /// Checks that no thread has a tracer, and that all may be attached to. Nothing is seized before
    /// [`Threads::stop_all`]: a seized thread stops at its next signal until its tracer looks at it, and a session has
    /// other things to do before it stops the target.
    fn attach(&mut self) -> Result<(), TargetError> {
        for tid in self.tids()? {
            // One of ours that did not stop in time to be detached is still there.
            if self.tasks.contains_key(&tid) {
                continue;
            }
            if let Some(s) = self.task_status(tid) {
                match s.number("TracerPid") {
                    0 => s.check_thread(tid)?,
                    tracer => return Err(TargetError::AlreadyTraced { what: self.thread(tid), tracer }),
                }
            }
        }
        Ok(())
    }

    /// Seizes all threads, then stops them. When it fails everything was let go, apart from a thread that did not stop in
    /// time: it is let go when it does, at the next call, or when this OS thread ends.
    fn stop_all(&mut self) -> Result<Vec<ThreadId>, TargetError> {
        // While threads of the target stand, they wait for us.
        // They may do so already: a second guard would take our raised priority for the one to go back to.
        if self.urgent.is_none() {
            self.urgent = sys::Urgent::begin();
        }
        let stopped = self.try_stop_all(Instant::now() + self.stop_deadline);
        if stopped.is_err() {
            self.let_all_go();
        }
        stopped
    }

    fn registers(&mut self, thread: ThreadId) -> Result<Registers, TargetError> {
        match self.tasks.get(&(thread.0 as i32)) {
            Some(Task { phase: Phase::Stopped, regs, .. }) => Ok(*regs),
            _ => Err(TargetError::System {
                what: format!("read the registers of thread {thread}"),
                why: "it is not stopped".to_owned(),
            }),
        }
    }

    /// Detaches all threads.
    fn resume_all(&mut self) -> Result<(), TargetError> {
        self.let_all_go();
        match self.tasks.keys().next() {
            None => Ok(()),
            Some(tid) => Err(TargetError::System {
                what: format!("detach from {}", self.thread(*tid)),
                why: "it does not stop".to_owned(),
            }),
        }
    }

    fn run_some(&mut self, threads: &[ThreadId], micros: u64) -> Result<(), TargetError> {
        let mut running = Vec::new();
        for tid in threads.iter().map(|t| t.0 as i32) {
            let held = self.held_thread() == Some(tid);
            if !held {
                self.remember(tid);
            }
            if let Some(t) = self.tasks.get_mut(&tid)
                && t.phase == Phase::Stopped
                && !held
            {
                match sys::go(tid, Go::On, 0) {
                    // Killed meanwhile: that shows when it is waited for.
                    Ok(()) | Err(Errno::ESRCH) => t.phase = Phase::Seized,
                    Err(e) => return Err(system(format!("let {} go on", self.thread(tid)), e)),
                }
                running.push(tid);
            }
        }
        // Asleep, and not looking at the clock: the target may need this processor.
        let slack = nix::sys::prctl::get_timerslack();
        let _ = nix::sys::prctl::set_timerslack(SLACK_NS);
        std::thread::sleep(Duration::from_micros(micros));
        if let Ok(slack) = slack {
            let _ = nix::sys::prctl::set_timerslack(slack as libc::c_ulong);
        }
        for &tid in &running {
            self.ask(tid);
        }
        let deadline = Instant::now() + self.stop_deadline;
        for tid in running {
            self.await_stop(tid, deadline)?;
        }
        Ok(())
    }

    fn thread_block(&mut self, thread: ThreadId) -> Option<tigerfix_core::addr::RunAddr> {
        sys::thread_block(i32::try_from(thread.0).ok()?).map(tigerfix_core::addr::RunAddr)
    }

    fn thread_name(&mut self, thread: ThreadId) -> String {
        std::fs::read_to_string(self.task_file(thread.0 as i32, "comm")).unwrap_or_default().trim_end().to_owned()
    }
}
