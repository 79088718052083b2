//! System calls that a stop has ended with EINTR, and that may be made again.
//!
//! * Most kernels' registers tell of such a call whatever is needed ([`restarted`]).
//! * Where the kernel takes calls back before a tracer gets to see the thread ([`LinuxAbi::taken_back`]), it has forgotten the
//!   call that ended with EINTR, and its first argument is gone. What the thread waits for is looked up before it is stopped
//!   ([`Wait`]). A wrong argument is worse than EINTR; hence a call is made again only if the thread was in that very wait
//!   until it stopped. The kernel counts how often a thread went to sleep, and itself tells one sleep from another by that
//!   (`kernel/sched/core.c`, wait_task_inactive). The count is read before the call, and must have gone up by the stop alone.
//! * That leaves one gap: a thread that woke or was let go after the look, and was stopped while the kernel was just entering
//!   another call, too early to sleep in it, or leaving a signal handler, has the same count. It goes wrong only if that call
//!   has the same number, place, stack and arguments but for the first, or was ended by that handler.

use tigerfix_core::arch::{LinuxAbi, RegisterLayout, Registers};

/// The number of the system call that a thread was stopped in, and the positive errno that it is about to return.
pub(crate) fn interrupted_call(layout: &RegisterLayout, regs: &Registers) -> Option<(u64, u64)> {
    let nr = regs.get(layout.restart_nr?);
    let result = regs.get(layout.result);
    // The kernel compares it as an int: -1 (in any width) means not in a call, where 0 is a call's number.
    if (nr as u32 as i32) < 0 || nr == layout.restart_none {
        return None;
    }
    let errno = match layout.error_flag {
        None if layout.word == 4 => u64::from((result as u32).wrapping_neg()),
        None => result.wrapping_neg(),
        Some(flag) if regs.get(flag) != 0 => result,
        Some(_) => return None,
    };
    // 516, ERESTART_RESTARTBLOCK, is the highest (include/linux/errno.h).
    (1..=516).contains(&errno).then_some((u64::from(nr as u32), errno))
}

/// Where the call was ended by our stop with EINTR and may be made again: the registers that have the kernel do so.
pub(crate) fn restarted(layout: &RegisterLayout, linux: &LinuxAbi, regs: &Registers) -> Option<Registers> {
    let (nr, errno) = interrupted_call(layout, regs)?;
    if errno != linux.eintr || !linux.restart_after_eintr.contains(&nr) {
        return None;
    }
    let mut regs = *regs;
    let code = linux.erestartnohand;
    regs.set(layout.result, if layout.error_flag.is_some() { code } else { code.wrapping_neg() });
    Some(regs)
}

/// A system call that may be made again after EINTR: what /proc/PID/task/TID/syscall says while a thread waits in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    nr: u64,
    args: [u64; 6],
    sp: u64,
    /// Behind the system call instruction.
    pc: u64,
}

impl Call {
    /// `NR 0xARG (six of them) 0xSP 0xPC`; outside of calls NR is -1 and there are no arguments (fs/proc/base.c,
    /// proc_pid_syscall).
    fn parse(text: &str) -> Option<Call> {
        let mut words = text.split_whitespace();
        let nr = words.next()?.parse().ok()?;
        let mut values = [0; 8];
        for v in &mut values {
            *v = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        let [args @ .., sp, pc] = values;
        Some(Call { nr, args, sp, pc })
    }

    /// From registers, `pc` apart.
    fn of(layout: &RegisterLayout, regs: &Registers, pc: u64) -> Call {
        let mut args = [0; 6];
        for (a, r) in args.iter_mut().zip(layout.syscall_args) {
            *a = regs.get(*r);
        }
        Call { nr: regs.get(layout.syscall_nr), args, sp: regs.get(layout.sp), pc }
    }

    /// The one that a thread with these registers makes next. `read` reads code.
    #[cfg(any(feature = "ptrace", test))]
    pub(crate) fn next(
        layout: &RegisterLayout,
        linux: &LinuxAbi,
        regs: &Registers,
        read: impl FnOnce(u64, &mut [u8]) -> bool,
    ) -> Option<Call> {
        let at = regs.get(layout.pc);
        let call = Call::of(layout, regs, at.wrapping_add(linux.syscall_insn.len() as u64));
        (call.may_be_made_again(linux) && is_call(linux, at, read)).then_some(call)
    }

    /// The one that has just ended with EINTR in a thread with these registers; its first argument is not known. `read`
    /// reads code.
    pub(crate) fn ended(
        layout: &RegisterLayout,
        linux: &LinuxAbi,
        regs: &Registers,
        read: impl FnOnce(u64, &mut [u8]) -> bool,
    ) -> Option<Call> {
        let pc = regs.get(layout.pc);
        let call = Call::of(layout, regs, pc);
        let failed = regs.get(layout.result) == linux.eintr.wrapping_neg() && call.may_be_made_again(linux);
        (failed && is_call(linux, pc.wrapping_sub(linux.syscall_insn.len() as u64), read)).then_some(call)
    }

    fn may_be_made_again(&self, linux: &LinuxAbi) -> bool {
        linux.restart_after_eintr.contains(&self.nr)
    }

    /// Is it `ended`, as far as can be seen of that?
    fn may_be(&self, ended: &Call) -> bool {
        let but_first = |c: &Call| (c.nr, c.sp, c.pc, [c.args[1], c.args[2], c.args[3], c.args[4], c.args[5]]);
        but_first(self) == but_first(ended)
    }

    /// The first argument, by the same file of a thread that stands, if that has to tell more than the result.
    #[cfg(feature = "ptrace")]
    pub(crate) fn first_by(&self, linux: &LinuxAbi, text: &str) -> Option<u64> {
        let told = Call::parse(text).filter(|c| c.may_be(self))?.args[0];
        (told != linux.eintr.wrapping_neg()).then_some(told)
    }
}

/// Is a system call instruction there?
fn is_call(linux: &LinuxAbi, at: u64, read: impl FnOnce(u64, &mut [u8]) -> bool) -> bool {
    let mut code = vec![0; linux.syscall_insn.len()];
    read(at, &mut code) && code == linux.syscall_insn
}

/// A call that a thread waits in, or is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    call: Call,
    /// How often it had gone to sleep, at most.
    switches: u64,
}

impl Wait {
    /// Looks what a running thread waits in: a call that may be made again after EINTR? `file` reads a file of
    /// /proc/PID/task/TID.
    pub(crate) fn look(linux: &LinuxAbi, mut file: impl FnMut(&str) -> Option<String>) -> Option<Wait> {
        let call = |text: &str| Call::parse(text).filter(|c| c.may_be_made_again(linux));
        // Most threads are done with this.
        call(&file("syscall")?)?;
        // In this order: a sleep between the two makes the count too low, and that is noticed.
        let switches = switches(&file("status")?)?;
        Some(Wait { call: call(&file("syscall")?)?, switches })
    }

    /// What a thread that stands will be in, by its `status`.
    pub(crate) fn ahead(call: Call, status: &str) -> Option<Wait> {
        Some(Wait { call, switches: switches(status)? })
    }

    /// Is it what ended with EINTR in a thread that stands? By its `status`, read when it was off the processor: the kernel tells
    /// of a stop before it counts it. `stops`: how often it has stood since.
    pub(crate) fn was(&self, ended: &Call, status: &str, stops: u64) -> bool {
        self.call.may_be(ended) && switches(status).is_some_and(|n| n == self.switches.wrapping_add(stops))
    }

    /// The call.
    #[cfg(feature = "gdb-remote")]
    pub(crate) fn call(&self) -> Call {
        self.call
    }

    /// The first argument.
    #[cfg(feature = "ptrace")]
    pub(crate) fn first(&self) -> u64 {
        self.call.args[0]
    }

    /// The registers that make the call again.
    pub(crate) fn taken_back(&self, layout: &RegisterLayout, linux: &LinuxAbi, regs: &Registers) -> Registers {
        let mut regs = *regs;
        if let Some(first) = layout.syscall_args.first() {
            regs.set(*first, self.call.args[0]);
            regs.set(layout.pc, self.call.pc.wrapping_sub(linux.syscall_insn.len() as u64));
        }
        regs
    }
}

/// Undoes [`Wait::taken_back`]: the call has ended with EINTR after all.
pub(crate) fn given_up(layout: &RegisterLayout, linux: &LinuxAbi, regs: &Registers) -> Registers {
    let mut regs = *regs;
    regs.set(layout.result, linux.eintr.wrapping_neg());
    regs.set(layout.pc, regs.get(layout.pc).wrapping_add(linux.syscall_insn.len() as u64));
    regs
}

/// What a file like /proc/PID/status says behind `key:`.
fn entry<'t>(status: &'t str, key: &str) -> Option<&'t str> {
    status.lines().find_map(|l| Some(l.strip_prefix(key)?.strip_prefix(':')?.trim()))
}

/// How often the thread has gone to sleep.
fn switches(status: &str) -> Option<u64> {
    entry(status, "voluntary_ctxt_switches")?.parse().ok()
}

/// Will the thread run a signal handler when it goes on? By its status.
pub(crate) fn handler_is_due(status: &str) -> bool {
    let mask = |key| entry(status, key).and_then(|m| u64::from_str_radix(m, 16).ok()).unwrap_or(0);
    (mask("SigPnd") | mask("ShdPnd")) & !mask("SigBlk") & mask("SigCgt") != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use tigerfix_arch_aarch64::Aarch64;
    use tigerfix_core::arch::Arch as _;

    const LINE: &str = "22 0x3 0xffffd575aa68 0x1 0xffffffffffffffff 0x0 0x8 0xffffd575a9f0 0x441c74\n";
    const CALL: Call =
        Call { nr: 22, args: [3, 0xffff_d575_aa68, 1, u64::MAX, 0, 8], sp: 0xffff_d575_a9f0, pc: 0x44_1c74 };

    fn layout() -> &'static RegisterLayout {
        Aarch64.registers()
    }

    fn linux() -> &'static LinuxAbi {
        Aarch64.linux().unwrap()
    }

    fn status(switches: u64) -> String {
        format!(
            "Name:\tx\nSigPnd:\t0000000000000000\nvoluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t7\n"
        )
    }

    /// A thread whose call has ended with EINTR.
    fn ended() -> Registers {
        let mut regs = Registers::ZERO;
        for (r, a) in layout().syscall_args.iter().zip(CALL.args) {
            regs.set(*r, a);
        }
        regs.set(layout().syscall_nr, CALL.nr);
        regs.set(layout().sp, CALL.sp);
        regs.set(layout().pc, CALL.pc);
        regs.set(layout().result, -4i64 as u64);
        regs
    }

    fn code(at: u64, buf: &mut [u8]) -> bool {
        buf.copy_from_slice(if at == CALL.pc - 4 { &[1, 0, 0, 0xd4] } else { &[0; 4] });
        true
    }

    #[test]
    fn what_the_kernel_says_of_a_call() {
        assert_eq!(Call::parse(LINE), Some(CALL));
        for none in ["running\n", "-1 0xffffd575a9f0 0x441c74\n", "", "22 0x3\n", "22 3 4 5 6 7 8 9 10\n", "x 0x1"] {
            assert_eq!(Call::parse(none), None, "{none}");
        }
    }

    #[test]
    fn the_count_is_read_between_two_looks_at_the_call() {
        let look = |files: &[(&str, &str)]| {
            let mut files: VecDeque<_> = files.iter().copied().collect();
            let seen = Wait::look(linux(), |name| {
                let (expected, text) = files.pop_front().expect("no more is read");
                assert_eq!(name, expected);
                Some(text.to_owned())
            });
            assert!(files.is_empty(), "all is read");
            seen
        };
        let count = status(41);
        let all = [("syscall", LINE), ("status", &count), ("syscall", LINE)];
        assert_eq!(look(&all), Some(Wait { call: CALL, switches: 41 }));
        // The later one counts.
        let other = LINE.replacen("0x3", "0x5", 1);
        assert_eq!(look(&[all[0], all[1], ("syscall", &other)]).unwrap().call.args[0], 5);
        assert_eq!(look(&[all[0], all[1], ("syscall", "running")]), None);
        assert_eq!(look(&[all[0], ("status", "Name:\tx\nnonvoluntary_ctxt_switches:\t7\n")]), None);
        // Nothing else is asked of a thread in no call, or in one that the kernel makes again: ppoll.
        for line in ["running", "-1 0x1 0x2", &LINE.replacen("22", "73", 1)] {
            assert_eq!(look(&[("syscall", line)]), None, "{line}");
        }
        assert_eq!(Wait::look(linux(), |_| None), None);
    }

    #[test]
    fn ended_calls_are_found_by_registers_and_code() {
        let regs = ended();
        let call = Call::ended(layout(), linux(), &regs, code).unwrap();
        assert!(CALL.may_be(&call) && call.args[0] != CALL.args[0]);
        for (reg, value) in [
            (layout().result, 0),
            (layout().result, -11i64 as u64),
            (layout().syscall_nr, 73),
            (layout().pc, CALL.pc + 4),
        ] {
            let mut other = regs;
            other.set(reg, value);
            assert_eq!(Call::ended(layout(), linux(), &other, code), None);
        }
        assert_eq!(Call::ended(layout(), linux(), &regs, |_, _| false), None);
    }

    #[test]
    fn only_the_same_wait_is_made_again() {
        let wait = Wait { call: CALL, switches: 41 };
        let regs = ended();
        let call = Call::ended(layout(), linux(), &regs, code).unwrap();
        assert!(wait.was(&call, &status(42), 1) && wait.was(&call, &status(43), 2));
        // Not counted yet, slept in between, no count at all.
        for (text, stops) in [(status(41), 1), (status(43), 1), (status(42), 2), (String::new(), 1)] {
            assert!(!wait.was(&call, &text, stops), "{text}");
        }
        for reg in [layout().sp, 1, 2, 3, 4, 5] {
            let mut other = regs;
            other.set(reg, 0x1234);
            let call = Call::ended(layout(), linux(), &other, code).unwrap();
            assert!(!wait.was(&call, &status(42), 1), "register {reg}");
        }
    }

    #[test]
    fn taken_back_and_given_up() {
        let regs = ended();
        let back = Wait { call: CALL, switches: 0 }.taken_back(layout(), linux(), &regs);
        assert_eq!((back.get(0), back.get(layout().pc)), (3, CALL.pc - 4));
        assert_eq!(Call::next(layout(), linux(), &back, code), Some(CALL));
        assert_eq!(Call::next(layout(), linux(), &regs, code), None);
        assert_eq!(given_up(layout(), linux(), &back).values, regs.values);
        assert_eq!(Wait::ahead(CALL, &status(9)), Some(Wait { call: CALL, switches: 9 }));
        assert_eq!(Wait::ahead(CALL, ""), None);
    }

    #[test]
    #[cfg(feature = "ptrace")]
    fn some_kernels_tell_the_first_argument() {
        let call = Call::ended(layout(), linux(), &ended(), code).unwrap();
        assert_eq!(call.first_by(linux(), LINE), Some(3));
        assert_eq!(call.first_by(linux(), &LINE.replacen("0x3", "0xfffffffffffffffc", 1)), None);
        assert_eq!(call.first_by(linux(), &LINE.replacen("0x441c74", "0x441c78", 1)), None);
    }

    #[test]
    fn handlers_that_are_due() {
        let status = |pending, shared, blocked, caught| {
            format!(
                "SigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigCgt:\t{caught:016x}\n"
            )
        };
        assert!(handler_is_due(&status(0x200, 0, 0, 0x200)) && handler_is_due(&status(0, 0x200, 1, 0x200)));
        for (p, s, b, c) in [(0, 0, 0, 0x200), (0x200, 0x200, 0x200, 0x200), (0x200, 0x200, 0, 0x100)] {
            assert!(!handler_is_due(&status(p, s, b, c)));
        }
        assert!(!handler_is_due(""));
    }
}
