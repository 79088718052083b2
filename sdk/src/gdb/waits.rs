//! Calls that a stop ends with EINTR, where the registers don't tell which they were ([`crate::restart`]): the main thread is
//! looked at through host I/O before a process is attached to, while it still runs.
//!
//! * All of it is for stubs that attach by themselves (`gdbserver --multi`): others have stopped the process before anybody could
//!   look, or take no requests while it runs.
//! * Only the main thread's call can be saved. gdbserver takes the stop of any other thread that it attaches to for a late one
//!   of its own, lets the thread go on, and stops it once more (gdbserver/linux-low.cc, filter_event: "delayed SIGSTOP"):
//!   the program has EINTR before a client is asked anything.

use super::stub::Stub;
use super::target::GdbTarget;
use crate::restart::{Call, Wait, given_up, handler_is_due};
use tigerfix_core::arch::{LinuxAbi, Registers};
use tigerfix_core::field::load;
use tigerfix_core::program::ident_of;
use tigerfix_core::target::TargetError;

/// By what gdbserver attaches. Not the number of every architecture, but of those that take calls back.
const SIGSTOP: u64 = 19;

impl Stub {
    /// What the main thread of the process waits in that is to be attached to. Nothing, if something goes wrong: if the line is
    /// no good, that shows next.
    pub(super) fn look(&mut self) {
        self.wait = None;
        let Some(pid) = self.attached else { return };
        if self.abi.is_none() {
            let ident =
                self.file(&format!("/proc/{pid}/exe"), 0, 64).ok().flatten().and_then(|head| ident_of(&head).ok());
            self.abi = Some(ident.and_then(|i| crate::arch::for_ident(&i).ok()?.linux()));
        }
        let Some(linux) = self.abi.flatten().filter(|l| l.taken_back.is_some()) else { return };
        self.wait = Wait::look(linux, |file| self.task_text(pid, file));
    }

    /// A file of the main thread.
    fn task_text(&mut self, pid: u64, file: &str) -> Option<String> {
        self.short_file(&format!("/proc/{pid}/task/{pid}/{file}")).ok().flatten()
    }

    /// The signal that the thread stands for that was asked about last, by the kernel's number.
    fn stop_signal(&mut self, endian: tigerfix_core::field::Endian) -> Option<u64> {
        let info = self.object("siginfo", "").ok().flatten()?;
        info.get(..4).map(|b| load(b, endian))
    }
}

/// The main thread's call.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Taken back at this stop.
    back: Option<Call>,
    /// That it was let go to make.
    left: Option<Wait>,
}

impl GdbTarget {
    /// Takes the call back that this stop has ended with EINTR, if it is certain which it was.
    pub(super) fn take_call_back(&mut self, linux: &LinuxAbi) -> Result<(), TargetError> {
        let seen = [self.stub.wait.take(), std::mem::take(&mut self.waiting).left];
        let Some(pid) = self.stub.attached.filter(|_| seen != [None, None]) else { return Ok(()) };
        let layout = self.arch.registers();
        let block = self.stub.block(pid).map_err(|e| self.fault(e))?;
        let regs = self.decode(&block)?;
        let Some(ended) = Call::ended(layout, linux, &regs, |at, code| self.code_at(at, code)) else { return Ok(()) };
        // For another signal there may be a handler, whose EINTR it is.
        if self.stub.stop_signal(self.arch.data_endian()) != Some(SIGSTOP) {
            return Ok(());
        }
        let Some(status) = self.stub.task_text(pid, "status") else { return Ok(()) };
        let Some(wait) = seen.into_iter().flatten().find(|w| w.was(&ended, &status, 1)) else { return Ok(()) };
        self.set_registers(pid, &block, &wait.taken_back(layout, linux, &regs))?;
        self.waiting.back = Some(wait.call());
        Ok(())
    }

    /// Before the process goes on. A call that was taken back ends with EINTR after all if the thread is to run a handler, since
    /// that is what the program waits for. Else the next stop may end it before anybody could see it wait.
    pub(super) fn let_call_go(&mut self) {
        let (Some(call), Some(linux), Some(pid)) = (self.waiting.back.take(), self.arch.linux(), self.stub.attached)
        else {
            return;
        };
        // A thread that has ended meanwhile.
        let Some(status) = self.stub.task_text(pid, "status") else { return };
        if !handler_is_due(&status) && self.stub.signals.iter().all(|s| s.0 != pid) {
            self.waiting.left = Wait::ahead(call, &status);
        } else if let Ok(block) = self.stub.block(pid)
            && let Ok(regs) = self.decode(&block)
        {
            let _ = self.set_registers(pid, &block, &given_up(self.arch.registers(), linux, &regs));
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
