//! Stopping all threads of a process and letting them go.

use super::sys::{self, Tid, Wait};
use super::{PtraceTarget, proc, thread_error};
use std::time::{Duration, Instant};
use tigerfix_core::arch::Registers;
use tigerfix_core::target::{TargetError, ThreadId, Threads};

/// A thread that does not stop within this time (in uninterruptible sleep, say) makes the stop fail.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to look for one thread's stop before we sleep: shorter than to sleep and to be woken takes.
pub(super) const SPIN: Duration = Duration::from_micros(15);
/// The longest sleep between looks, should the signal that wakes us go to another thread.
const NAP: Duration = Duration::from_micros(500);

/// With more threads than this, nobody looks which of them are busy.
const MANY: usize = 1024;

/// Where an attached thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Attached, running.
    Running,
    /// Asked to stop.
    Asked,
    /// Stopped; this signal is to be delivered when it goes on (0: none).
    Stopped(i32),
}

/// The threads that we are attached to.
#[derive(Debug, Default)]
pub(super) struct Stops {
    threads: Vec<Thread>,
    urgent: Option<sys::Urgent>,
}

#[derive(Debug)]
struct Thread {
    tid: Tid,
    state: State,
    /// It was not asleep when we attached: it notices being stopped, so it is stopped last and let go first.
    busy: bool,
    /// Registers as they were when it stopped.
    registers: Option<Registers>,
}

impl Stops {
    /// A thread through which memory can be written.
    pub(super) fn any_stopped(&self) -> Option<Tid> {
        self.threads.iter().find(|t| matches!(t.state, State::Stopped(_))).map(|t| t.tid)
    }
}

/// Why a thread did not stop in time.
pub(super) fn did_not_stop(pid: Tid, tid: Tid, what: &'static str, limit: Duration) -> TargetError {
    // A process that is about to end (it writes a core file, say) never stops again.
    if proc::status(pid, pid).is_none_or(|s| matches!(s.state, 'Z' | 'X')) {
        return TargetError::Gone { what: format!("process {pid} ended") };
    }
    TargetError::Timeout { thread: ThreadId(tid as u64), what, millis: limit.as_millis() as u64 }
}

/// Waits until `tid` stops or ends, or the deadline; looks for `spin` before it sleeps.
pub(super) fn wait_until(tid: Tid, deadline: Instant, spin: Duration) -> Wait {
    match sys::try_wait(tid) {
        Wait::Nothing => {}
        other => return other,
    }
    let begin = Instant::now();
    while begin.elapsed() < spin {
        match sys::try_wait(tid) {
            Wait::Nothing => std::hint::spin_loop(),
            other => return other,
        }
    }
    let mut news = sys::ChildSignal::block();
    loop {
        match sys::try_wait(tid) {
            Wait::Nothing => {}
            other => return other,
        }
        if Instant::now() >= deadline {
            return Wait::Nothing;
        }
        news.wait(NAP);
    }
}

/// Attaches to one thread. `Ok(false)`: it ended meanwhile.
pub(super) fn seize(pid: Tid, tid: Tid, options: usize) -> Result<bool, TargetError> {
    match sys::seize(tid, options) {
        Ok(()) => Ok(true),
        Err(e) => {
            let status = proc::status(pid, tid);
            match status {
                None => Ok(false),
                // A leader that ended before its threads stays as a zombie, which nobody can attach to.
                Some(s) if matches!(s.state, 'Z' | 'X') => Ok(false),
                Some(_) if proc::status(pid, pid).is_none_or(|s| matches!(s.state, 'Z' | 'X')) => {
                    Err(TargetError::Gone { what: format!("process {pid} ended") })
                }
                Some(s) if s.tracer != 0 => {
                    Err(TargetError::AlreadyTraced { what: format!("thread {tid}"), tracer: s.tracer as u32 })
                }
                Some(_) => Err(thread_error(tid, "attach to", &e)),
            }
        }
    }
}

impl PtraceTarget {
    /// Attaches to threads that are not attached yet; returns how many there were. `look`: there is time to find out
    /// which of them are busy.
    fn seize_new(&mut self, look: bool) -> Result<usize, TargetError> {
        let mut new = 0;
        let tids = proc::threads(self.pid);
        let look = look && (2..=MANY).contains(&tids.len());
        for tid in tids {
            if self.stops.threads.binary_search_by_key(&tid, |t| t.tid).is_ok() {
                continue;
            }
            let busy = !look || proc::thread_state(self.pid, tid) != Some('S');
            if seize(self.pid, tid, 0)? {
                let at = self.stops.threads.partition_point(|t| t.tid < tid);
                self.stops.threads.insert(at, Thread { tid, state: State::Running, busy, registers: None });
                new += 1;
            }
        }
        Ok(new)
    }

    /// Notes that thread `i` stopped, about to get `signal` (0: none).
    fn stopped(&mut self, i: usize, signal: i32) -> Result<(), TargetError> {
        let tid = self.stops.threads[i].tid;
        self.stops.threads[i].state = State::Stopped(signal);
        self.stops.threads[i].registers = Some(self.mend_call(tid)?);
        Ok(())
    }

    /// One round: everybody who runs is asked to stop, and waited for; first those who sleep.
    fn stop_known(&mut self, deadline: Instant) -> Result<(), TargetError> {
        self.stop_some(deadline, false)?;
        self.stop_some(deadline, true)
    }

    fn stop_some(&mut self, deadline: Instant, busy: bool) -> Result<(), TargetError> {
        for t in &mut self.stops.threads {
            if t.state == State::Running && t.busy == busy {
                // ESRCH: it ended; the wait below finds out.
                let _ = sys::interrupt(t.tid);
                t.state = State::Asked;
            }
        }
        let mut gone = Vec::new();
        for i in 0..self.stops.threads.len() {
            let Thread { tid, state: State::Asked, .. } = self.stops.threads[i] else { continue };
            let signal = match wait_until(tid, deadline, Duration::ZERO) {
                Wait::Interrupted { .. } | Wait::Syscall => 0,
                Wait::Signal(s) => s,
                Wait::Gone => {
                    gone.push(tid);
                    continue;
                }
                Wait::Nothing => return Err(did_not_stop(self.pid, tid, "stop", STOP_TIMEOUT)),
            };
            self.stopped(i, signal)?;
        }
        self.stops.threads.retain(|t| !gone.contains(&t.tid));
        Ok(())
    }

    fn try_stop_all(&mut self) -> Result<(), TargetError> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            self.stop_known(deadline)?;
            // Whoever still ran may have made new threads; once a round finds none, nobody is left to make any.
            if self.seize_new(false)? == 0 {
                break;
            }
        }
        if self.stops.threads.is_empty() {
            return Err(TargetError::Gone { what: format!("process {} ended", self.pid) });
        }
        Ok(())
    }
}

impl Threads for PtraceTarget {
    fn attach(&mut self) -> Result<(), TargetError> {
        loop {
            match self.seize_new(true) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) => {
                    let _ = self.resume_all();
                    return Err(e);
                }
            }
        }
    }

    fn stop_all(&mut self) -> Result<Vec<ThreadId>, TargetError> {
        self.stops.urgent = sys::Urgent::begin();
        match self.try_stop_all() {
            Ok(()) => Ok(self.stops.threads.iter().map(|t| ThreadId(t.tid as u64)).collect()),
            Err(e) => {
                let _ = self.resume_all();
                Err(e)
            }
        }
    }

    fn registers(&mut self, thread: ThreadId) -> Result<Registers, TargetError> {
        let tid = thread.0 as Tid;
        let known = self.stops.threads.binary_search_by_key(&tid, |t| t.tid);
        match known.ok().and_then(|i| self.stops.threads[i].registers) {
            Some(r) => Ok(r),
            None => self.get_registers(tid),
        }
    }

    fn resume_all(&mut self) -> Result<(), TargetError> {
        let mut first_error = None;
        let mut threads = std::mem::take(&mut self.stops.threads);
        threads.sort_by_key(|t| !t.busy);
        // Those that are stopped first: their pause is what counts.
        for t in &threads {
            if let State::Stopped(signal) = t.state
                && let Err(e) = sys::detach(t.tid, signal)
                && e.raw_os_error() != Some(libc::ESRCH)
            {
                first_error.get_or_insert(thread_error(t.tid, "detach from", &e));
            }
        }
        // A running thread has to stop for a moment to be detached.
        for t in threads.iter().filter(|t| t.state == State::Running) {
            let _ = sys::interrupt(t.tid);
        }
        for t in threads.iter().filter(|t| !matches!(t.state, State::Stopped(_))) {
            let deadline = Instant::now() + STOP_TIMEOUT;
            let signal = match wait_until(t.tid, deadline, Duration::ZERO) {
                Wait::Signal(s) => s,
                Wait::Interrupted { .. } | Wait::Syscall => {
                    let _ = self.mend_call(t.tid);
                    0
                }
                // It ended, or sleeps where nothing can stop it: the kernel detaches it when we end.
                Wait::Gone | Wait::Nothing => continue,
            };
            let _ = sys::detach(t.tid, signal);
        }
        self.stops.urgent = None;
        first_error.map_or(Ok(()), Err)
    }

    fn step(&mut self, thread: ThreadId) -> Result<(), TargetError> {
        let tid = thread.0 as Tid;
        let Some(i) = self.stops.threads.iter().position(|t| t.tid == tid) else { return Ok(()) };
        if self.stops.threads[i].state != State::Stopped(0) {
            return Ok(());
        }
        sys::step(tid).map_err(|e| thread_error(tid, "step", &e))?;
        self.stops.threads[i].state = State::Asked;
        match wait_until(tid, Instant::now() + STOP_TIMEOUT, SPIN) {
            // The end of the step.
            Wait::Signal(libc::SIGTRAP) | Wait::Interrupted { .. } | Wait::Syscall => self.stopped(i, 0),
            Wait::Signal(s) => self.stopped(i, s),
            Wait::Gone => {
                self.stops.threads.remove(i);
                Ok(())
            }
            Wait::Nothing => Err(did_not_stop(self.pid, tid, "stop", STOP_TIMEOUT)),
        }
    }

    fn run_some(&mut self, threads: &[ThreadId], micros: u64) -> Result<(), TargetError> {
        for t in threads {
            let tid = t.0 as Tid;
            if let Some(known) = self.stops.threads.iter_mut().find(|k| k.tid == tid)
                && let State::Stopped(signal) = known.state
            {
                sys::cont(tid, signal).map_err(|e| thread_error(tid, "resume", &e))?;
                known.state = State::Running;
            }
        }
        let end = Instant::now() + Duration::from_micros(micros);
        while Instant::now() < end {
            std::thread::yield_now();
        }
        self.stop_known(Instant::now() + STOP_TIMEOUT)
    }

    fn thread_name(&mut self, thread: ThreadId) -> String {
        proc::thread_name(self.pid, thread.0 as Tid)
    }
}
