//! Letting the target run, and stopping it.

use super::connection::Connection;
use super::error::GdbError;
use super::reply::Stop;
use super::stub::Stub;
use std::time::{Duration, Instant};

/// How long attaching to a process, and stopping one, may take. Tests have some that don't stop.
const STOP: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

impl Stub {
    fn can(&self, action: u8) -> bool {
        let actions = self.vcont.strip_prefix(b"vCont").unwrap_or_default();
        actions.split(|b| *b == b';').any(|a| a == [action])
    }

    fn stands(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn runs(&mut self) {
        self.line.running = true;
        if let Some(since) = self.since.take() {
            self.stood += since.elapsed();
        }
    }

    /// Lets only `thread` go on (`b'c'`) or make one step (`b's'`), and waits for it to stop. `None`: it has not in time,
    /// and still runs.
    pub(super) fn run_one(&mut self, thread: u64, action: char, deadline: Instant) -> Result<Option<Stop>, GdbError> {
        let what = if self.can(action as u8) {
            format!("vCont;{action}:{thread:x}")
        } else {
            self.order(format!("Hc{thread:x}").as_bytes())?;
            action.to_string()
        };
        self.line.send(what.as_bytes())?;
        self.runs();
        self.stopped(what.as_bytes(), deadline)
    }

    /// Waits for the stop. A stub that says no to `during` has not let the target go.
    fn stopped(&mut self, during: &[u8], deadline: Instant) -> Result<Option<Stop>, GdbError> {
        let stop = self.line.stopped(during, deadline);
        match &stop {
            Ok(Some(s)) => {
                self.stop = s.clone();
                self.stands();
            }
            Err(GdbError::Refused { .. } | GdbError::Lacks { .. }) => {
                self.line.running = false;
                self.stands();
            }
            _ => {}
        }
        stop
    }

    /// Lets everything go on, with the signals that it was due.
    pub(super) fn go(&mut self) -> Result<(), GdbError> {
        if self.line.running {
            return Ok(());
        }
        let what = if self.can(b'C') {
            let signals = std::mem::take(&mut self.signals);
            let mut what = String::from("vCont");
            let mut seen = Vec::new();
            for (thread, signal) in signals {
                // A thread takes one signal at a time; the next one when it stops again.
                if seen.contains(&thread) {
                    self.signals.push((thread, signal));
                } else {
                    seen.push(thread);
                    what.push_str(&format!(";C{signal:02x}:{thread:x}"));
                }
            }
            what + ";c"
        } else {
            String::from("c")
        };
        self.line.send(what.as_bytes())?;
        self.runs();
        Ok(())
    }

    /// Stops a running target.
    pub(super) fn halt(&mut self) -> Result<(), GdbError> {
        if !self.line.running {
            return Ok(());
        }
        if self.interruptible {
            self.line.interrupt()?;
        }
        self.await_stop(STOP)?;
        // gdb's SIGINT: that was us.
        let Stop { signal, thread } = self.stop.clone();
        if !matches!(signal, 0 | 2 | 5)
            && let Some(thread) = thread
        {
            self.signals.push((thread, signal));
        }
        Ok(())
    }

    /// Waits until a running target stops by itself, or by somebody else's doing.
    ///
    /// # Errors
    /// [`GdbError::NotStopping`]
    pub fn await_stop(&mut self, limit: Duration) -> Result<(), GdbError> {
        if !self.line.running {
            return Ok(());
        }
        match self.stopped(b"0x03", Instant::now() + limit)? {
            Some(_) => Ok(()),
            None => Err(GdbError::NotStopping { millis: limit.as_millis() as u64 }),
        }
    }

    /// Leaves the target: it runs on, and the stub forgets us.
    pub(super) fn detach(&mut self) -> Result<(), GdbError> {
        if !self.order(b"D")? {
            return Err(GdbError::Lacks { what: "be left (`D`)".into() });
        }
        self.runs();
        self.left = true;
        Ok(())
    }

    /// Attaches to the process, for the first time or again after it was left.
    pub(super) fn attach_again(&mut self) -> Result<(), GdbError> {
        if let Some(pid) = self.attached
            && self.left
        {
            self.look();
            self.stop = attach(&mut self.line, pid)?;
            self.left = false;
            self.stands();
        }
        Ok(())
    }
}

/// Whatever went wrong: a target that stands goes on.
impl Drop for Stub {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Errors have nobody to go to.
        if !self.line.running {
            let _ = self.detach();
        } else if !self.left && self.interruptible && self.halt().is_ok() {
            // A stub that is left without a word may keep the target, and stop it when it notices.
            let _ = self.detach();
        }
    }
}

fn attach(line: &mut Connection, pid: u64) -> Result<Stop, GdbError> {
    let what = format!("vAttach;{pid:x}");
    line.send(what.as_bytes())?;
    match line.stopped(what.as_bytes(), Instant::now() + STOP)? {
        Some(stop) => Ok(stop),
        None => Err(GdbError::NotStopping { millis: STOP.as_millis() as u64 }),
    }
}
