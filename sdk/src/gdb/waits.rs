//! Calls that a stop ends with EINTR, where the registers don't tell which they were ([`crate::restart`]): threads are looked at
//! through host I/O before a process is attached to, while it still runs.
//!
//! All of it is for stubs that attach by themselves (`gdbserver --multi`): others have stopped the process before anybody could
//! look, or take no requests while it runs.

use super::objects::process_threads;
use super::stub::Stub;
use super::target::GdbTarget;
use crate::restart::{Call, Wait, given_up, handler_is_due};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tigerfix_core::arch::{LinuxAbi, Registers};
use tigerfix_core::field::load;
use tigerfix_core::program::ident_of;
use tigerfix_core::target::TargetError;

/// How long threads are looked at, one after the other. Calls of the others end with EINTR.
const LOOK: Duration = Duration::from_secs(3);
/// By what gdbserver attaches. Not the number of every architecture, but of those that take calls back.
const SIGSTOP: u64 = 19;

impl Stub {
    /// What the threads of the process wait in that is to be attached to. Nothing, if something goes wrong: if the line is no
    /// good, that shows next.
    pub(super) fn look(&mut self) {
        self.waits.clear();
        let Some(pid) = self.attached else { return };
        if self.abi.is_none() {
            let ident = self.file(&format!("/proc/{pid}/exe"), 0, 64).ok().flatten().and_then(|head| ident_of(&head).ok());
            self.abi = Some(ident.and_then(|i| crate::arch::for_ident(&i).ok()?.linux()));
        }
        let Some(linux) = self.abi.flatten().filter(|l| l.taken_back.is_some()) else { return };
        let deadline = Instant::now() + LOOK;
        for tid in self.threads_of(pid) {
            if Instant::now() >= deadline {
                break;
            }
            let seen = Wait::look(linux, |file| self.task_text(pid, tid, file));
            self.waits.extend(seen.map(|w| (tid, w)));
        }
    }

    fn task_text(&mut self, pid: u64, tid: u64, file: &str) -> Option<String> {
        self.short_file(&format!("/proc/{pid}/task/{tid}/{file}")).ok().flatten()
    }

    /// The threads of a process that is not attached to: host I/O lists no directories.
    fn threads_of(&mut self, pid: u64) -> Vec<u64> {
        let stat = self.short_file(&format!("/proc/{pid}/stat")).ok().flatten().unwrap_or_default();
        match thread_count(&stat) {
            Some(1) => vec![pid],
            Some(n) if n == self.threads.len() => self.threads.clone(),
            _ => {
                let list = self.object("osdata", "threads").ok().flatten().unwrap_or_default();
                let tids = process_threads(&String::from_utf8_lossy(&list), pid);
                if tids.is_empty() { vec![pid] } else { tids }
            }
        }
    }

    /// The signal that the thread stands for that was asked about last, by the kernel's number.
    fn stop_signal(&mut self, endian: tigerfix_core::field::Endian) -> Option<u64> {
        let info = self.object("siginfo", "").ok().flatten()?;
        info.get(..4).map(|b| load(b, endian))
    }
}

/// By /proc/PID/stat (proc_pid_stat(5)): it is the 20th value, the second one has spaces.
fn thread_count(stat: &str) -> Option<usize> {
    let (_, from_third) = stat.rsplit_once(") ")?;
    from_third.split(' ').nth(17)?.parse().ok()
}

/// Calls of threads.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Taken back at this stop.
    back: BTreeMap<u64, Call>,
    /// That threads were let go to make.
    left: BTreeMap<u64, Wait>,
}

impl GdbTarget {
    /// Takes back what this stop has ended with EINTR, if it is certain what it was.
    pub(super) fn take_calls_back(&mut self, linux: &LinuxAbi) -> Result<(), TargetError> {
        let waits = std::mem::take(&mut self.stub.waits);
        let Waiting { left, .. } = std::mem::take(&mut self.waiting);
        let Some(pid) = self.stub.attached.filter(|_| !waits.is_empty() || !left.is_empty()) else { return Ok(()) };
        let layout = self.arch.registers();
        for thread in self.stub.thread_ids().map_err(|e| self.fault(e))? {
            let seen = [waits.get(&thread), left.get(&thread)];
            if seen == [None, None] {
                continue;
            }
            let block = self.stub.block(thread).map_err(|e| self.fault(e))?;
            let regs = self.decode(&block)?;
            let Some(ended) = Call::ended(layout, linux, &regs, |at, code| self.code_at(at, code)) else { continue };
            // For another signal there may be a handler, whose EINTR it is.
            if self.stub.stop_signal(self.arch.data_endian()) != Some(SIGSTOP) {
                continue;
            }
            let Some(status) = self.stub.task_text(pid, thread, "status") else { continue };
            let Some(wait) = seen.into_iter().flatten().find(|w| w.was(&ended, &status, 1)) else { continue };
            let again = wait.taken_back(layout, linux, &regs);
            self.set_registers(thread, &block, &again)?;
            self.waiting.back.insert(thread, wait.call());
        }
        Ok(())
    }

    /// Before the process goes on. Calls that were taken back end with EINTR after all in threads that are to run a handler, since
    /// that is what the program waits for. The others may be ended by the next stop before anybody could see them wait.
    pub(super) fn let_calls_go(&mut self) {
        let back = std::mem::take(&mut self.waiting.back);
        let (Some(linux), Some(pid)) = (self.arch.linux(), self.stub.attached) else { return };
        for (thread, call) in back {
            // A thread that has ended meanwhile.
            let Some(status) = self.stub.task_text(pid, thread, "status") else { continue };
            if handler_is_due(&status) || self.stub.signals.iter().any(|s| s.0 == thread) {
                let Ok(block) = self.stub.block(thread) else { continue };
                let Ok(regs) = self.decode(&block) else { continue };
                let _ = self.set_registers(thread, &block, &given_up(self.arch.registers(), linux, &regs));
            } else {
                self.waiting.left.extend(Wait::ahead(call, &status).map(|w| (thread, w)));
            }
        }
    }

    fn code_at(&mut self, at: u64, code: &mut [u8]) -> bool {
        match self.stub.read_bytes(at, code.len()) {
            Ok(bytes) => {
                code.copy_from_slice(&bytes);
                true
            }
            Err(_) => false,
        }
    }

    fn set_registers(&mut self, thread: u64, block: &[u8], regs: &Registers) -> Result<(), TargetError> {
        let mut new = block.to_vec();
        self.map.encode(regs, &mut new);
        self.stub.set_block(thread, &self.map, block, &new).map_err(|e| self.fault(e))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_of_threads() {
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 3 0 100 4096 1";
        assert_eq!(super::thread_count(stat), Some(3));
        for bad in ["", "12 (a) S 1", "12 (a) S 1 12 12 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 x"] {
            assert_eq!(super::thread_count(bad), None, "{bad}");
        }
    }
}
