//! System calls that a stop has interrupted: the registers alone tell.

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
