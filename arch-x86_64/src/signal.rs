//! The signal frame that puts a hijacked thread back where it was.
//!
//! The frame is what the kernel itself would have pushed had a signal interrupted the thread, so that `rt_sigreturn` restores
//! everything. Odd about it:
//!
//! * rt_sigreturn finds the frame 8 bytes *below* rsp: a handler's `ret` has popped the first word, `pretcode`. Injected
//!   code that ends in `ret` does the same, which is why the frame's address serves as its stack pointer.
//! * Vector registers lie apart from the frame, at a multiple of 64, in XSAVE format. The kernel takes them only between
//!   two magic numbers; without them it restores x87 and SSE state alone, silently. The second one is sought where the
//!   frame says the area ends, or (in kernels that have commit dc8aa31a7ac2 and not its revert) where the *thread's*
//!   area ends. That depends on whether the thread ever used AMX, and what ptrace returns always has room for AMX tiles:
//!   see [`area_ends`].
//! * rt_sigreturn also sets the alternate signal stack, which can't be read from outside. A frame with flags that
//!   sigaltstack(2) refuses leaves it alone: restore_altstack squashes all errors but EFAULT (kernel `kernel/signal.c`).
//! * rt_sigreturn never restarts an interrupted system call and forgets the kernel's restart block. The frame therefore
//!   goes back to the `syscall` instruction where the thread was in a call that is to be restarted.
//! * Segment bases, and the fs and gs selectors, are not in the frame: injected code leaves them alone.
//! * With a user shadow stack rt_sigreturn demands a token there that only the kernel can push: threads that have one
//!   (`x86_Thread_features` in /proc/PID/status) can't be hijacked like this.
//!
//! Sources: kernel `arch/x86/include/asm/sigframe.h` (struct rt_sigframe), `arch/x86/include/uapi/asm/ucontext.h`,
//! `arch/x86/include/uapi/asm/sigcontext.h` (struct sigcontext_64, struct _fpx_sw_bytes), `arch/x86/kernel/signal_64.c`
//! (rt_sigreturn, restore_sigcontext), `arch/x86/kernel/fpu/signal.c` (check_xstate_in_sigframe); SDM volume 1,
//! "XSAVE Area".

use crate::registers as r;
use alloc::vec;
use tigerfix_core::arch::{Reg, Registers, RescueFrame};

/// struct rt_sigframe: pretcode, then struct ucontext, then struct siginfo.
mod frame {
    /// Offset of `uc.uc_flags`.
    pub const UC_FLAGS: usize = 8;
    /// Offset of `uc.uc_stack.ss_flags` (behind uc_link and ss_sp).
    pub const SS_FLAGS: usize = UC_FLAGS + 24;
    /// Offset of `uc.uc_mcontext`, a struct sigcontext_64.
    pub const SIGCONTEXT: usize = UC_FLAGS + 40;
    /// In the sigcontext: cs, gs, fs, ss, 16 bits each, behind 18 registers.
    pub const CS: usize = SIGCONTEXT + 18 * 8;
    pub const SS: usize = CS + 6;
    /// Behind err, trapno, oldmask and cr2.
    pub const FPSTATE: usize = CS + 8 + 4 * 8;
    /// Behind the sigcontext's 8 reserved words.
    pub const SIGMASK: usize = FPSTATE + 8 + 8 * 8;
    /// Behind the 8 bytes of the mask: siginfo, 128 bytes, which rt_sigreturn does not look at.
    pub const LEN: usize = SIGMASK + 8 + 128;
    const _: () = assert!(SIGCONTEXT == 48 && SIGMASK == 48 + 256 && LEN == 440);
}

/// The order of registers in struct sigcontext_64.
const SIGCONTEXT_ORDER: [Reg; 18] = [
    r::R8,
    r::R9,
    r::R10,
    r::R11,
    r::R12,
    r::R13,
    r::R14,
    r::R15,
    r::RDI,
    r::RSI,
    r::RBP,
    r::RBX,
    r::RDX,
    r::RAX,
    r::RCX,
    r::RSP,
    r::RIP,
    r::EFLAGS,
];

/// UC_FP_XSTATE: the fpstate is an XSAVE area.
const UC_FP_XSTATE: u64 = 1;
/// UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS: `ss` is valid and to be restored as it is.
const UC_SS: u64 = 2 | 4;
/// SS_ONSTACK | SS_DISABLE: a mode that sigaltstack refuses.
const NO_SUCH_ALTSTACK: u32 = 1 | 2;

/// Sizes and offsets in an XSAVE area of standard format.
mod xsave {
    /// The legacy area that FXSAVE knows.
    pub const LEGACY: usize = 512;
    /// The last 48 bytes of it are software's: struct _fpx_sw_bytes. ptrace stores XCR0 in the first 8.
    pub const SW_BYTES: usize = 464;
    /// XSTATE_BV: which components are not in their initial state.
    pub const XSTATE_BV: usize = 512;
    /// Legacy area and header.
    pub const MIN: usize = 576;
    /// FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2
    pub const MAGIC1: u32 = 0x4650_5853;
    pub const MAGIC2: u32 = 0x4650_5845;
    /// Size of the second magic number.
    pub const MAGIC2_LEN: usize = 4;
    /// x87 and SSE.
    pub const FPSSE: u64 = 3;
    /// AMX tile data: always the last component, 8 tiles of 1 KiB.
    pub const TILES: u64 = 1 << 18;
    pub const TILES_LEN: usize = 8192;
}

/// Where the kernel may look for the second magic number: the ends of the area without and with AMX tiles.
///
/// ptrace's copy always has room for the tiles if the machine has them. A thread's own area has it only once the thread
/// used AMX. Where the tiles are in their initial state the two can't be told apart, but then the place of the tiles holds
/// nothing, and both ends get the number.
fn area_ends(len: usize, features: u64, in_use: u64) -> (usize, usize) {
    let spare = features & xsave::TILES != 0 && in_use & xsave::TILES == 0;
    match len.checked_sub(xsave::TILES_LEN) {
        Some(short) if spare && short >= xsave::MIN => (short, len),
        _ => (len, len),
    }
}

/// The registers to go on with: those of a thread in a system call that waits for its restart are wound back to the
/// `syscall` instruction, as the kernel would do on resuming it.
fn restarted(regs: &Registers) -> Registers {
    /// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (kernel include/linux/errno.h). The last one
    /// would go on with the rest of a timeout; its restart block being lost, the call is made anew.
    const RESTARTS: [i64; 4] = [-512, -513, -514, -516];
    const SYSCALL_LEN: u64 = 2;
    let mut regs = *regs;
    let nr = regs.get(r::ORIG_RAX);
    if nr as i32 >= 0 && RESTARTS.contains(&(regs.get(r::RAX) as i64)) {
        regs.set(r::RAX, nr);
        regs.set(r::RIP, regs.get(r::RIP).wrapping_sub(SYSCALL_LEN));
    }
    regs
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn get(bytes: &[u8], at: usize) -> u64 {
    tigerfix_core::field::load(&bytes[at..at + 8], tigerfix_core::field::Endian::Little)
}

/// Builds the frame below `regs`'s stack pointer and its red zone. `xstate` is NT_X86_XSTATE, or NT_PRFPREG's 512 bytes
/// on a processor without XSAVE.
pub(crate) fn rescue_frame(regs: &Registers, xstate: &[u8], sigmask: u128) -> Option<RescueFrame> {
    let has_header = xstate.len() >= xsave::MIN;
    if !has_header && xstate.len() != xsave::LEGACY {
        return None;
    }
    // Downwards, as the kernel lays it out: red zone, vector state at a multiple of 64, frame at 8 below a multiple of 16.
    let sp = regs.get(r::RSP);
    let room = (xstate.len() + xsave::MAGIC2_LEN) as u64;
    let fpstate = sp.checked_sub(crate::registers::LINUX.red_zone)?.checked_sub(room)? & !63;
    let at = (fpstate.checked_sub(frame::LEN as u64)? & !15).checked_sub(8)?;
    let area = (fpstate - at) as usize;

    let mut bytes = vec![0; area + room as usize];
    let flags = UC_SS | if has_header { UC_FP_XSTATE } else { 0 };
    put(&mut bytes, frame::UC_FLAGS, &flags.to_le_bytes());
    put(&mut bytes, frame::SS_FLAGS, &NO_SUCH_ALTSTACK.to_le_bytes());
    let regs = restarted(regs);
    for (i, reg) in SIGCONTEXT_ORDER.iter().enumerate() {
        put(&mut bytes, frame::SIGCONTEXT + 8 * i, &regs.get(*reg).to_le_bytes());
    }
    put(&mut bytes, frame::CS, &(regs.get(r::CS) as u16).to_le_bytes());
    put(&mut bytes, frame::SS, &(regs.get(r::SS) as u16).to_le_bytes());
    put(&mut bytes, frame::FPSTATE, &fpstate.to_le_bytes());
    // 64 signals on this architecture.
    put(&mut bytes, frame::SIGMASK, &(sigmask as u64).to_le_bytes());

    let fp = &mut bytes[area..];
    put(fp, 0, xstate);
    if has_header {
        let in_use = get(fp, xsave::XSTATE_BV);
        let features = match get(fp, xsave::SW_BYTES) {
            0 => in_use | xsave::FPSSE,
            xcr0 => xcr0,
        };
        let (end, far_end) = area_ends(xstate.len(), features, in_use);
        let features = if end == far_end { features } else { features & !xsave::TILES };
        put(fp, end, &xsave::MAGIC2.to_le_bytes());
        put(fp, far_end, &xsave::MAGIC2.to_le_bytes());
        // struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size, 28 bytes of padding
        let sw = &mut fp[xsave::SW_BYTES..xsave::LEGACY];
        sw.fill(0);
        put(sw, 0, &xsave::MAGIC1.to_le_bytes());
        put(sw, 4, &((end + xsave::MAGIC2_LEN) as u32).to_le_bytes());
        put(sw, 8, &features.to_le_bytes());
        put(sw, 16, &(end as u32).to_le_bytes());
    }
    Some(RescueFrame { bytes, at, sp: at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn regs(sp: u64) -> Registers {
        let mut regs = Registers::ZERO;
        for i in 0..27 {
            regs.set(i, 0x1111_0000 + u64::from(i));
        }
        regs.set(r::RSP, sp);
        regs.set(r::ORIG_RAX, u64::MAX);
        regs
    }

    /// An area of ptrace's kind: XCR0 in the software bytes, and the components in use.
    fn xstate(len: usize, xcr0: u64, in_use: u64) -> Vec<u8> {
        let mut x = vec![0; len];
        put(&mut x, xsave::SW_BYTES, &xcr0.to_le_bytes());
        put(&mut x, xsave::XSTATE_BV, &in_use.to_le_bytes());
        x
    }

    fn u32_at(b: &[u8], at: usize) -> u32 {
        get(b, at) as u32
    }

    #[test]
    fn layout_is_the_kernels() {
        for sp in (0x7fff_ffff_0000..0x7fff_ffff_0080u64).step_by(8) {
            let f = rescue_frame(&regs(sp), &xstate(2696, 0x2e7, 7), 0x5a5a).unwrap();
            assert_eq!((f.sp, f.at % 16), (f.at, 8));
            assert!(f.at + f.bytes.len() as u64 <= sp - 128, "the red zone is untouched");
            let fp = get(&f.bytes, frame::FPSTATE);
            assert_eq!(fp % 64, 0);
            let fx = &f.bytes[(fp - f.at) as usize..];
            assert_eq!(u32_at(fx, 464), 0x4650_5853);
            assert_eq!(u32_at(fx, 468), 2700);
            assert_eq!(get(fx, 472), 0x2e7);
            assert_eq!(u32_at(fx, 480), 2696);
            assert_eq!(fx[2696..2700], 0x4650_5845u32.to_le_bytes());
            assert_eq!(get(&f.bytes, 8), 7);
            assert_eq!(get(&f.bytes, frame::SIGMASK), 0x5a5a);
            assert_eq!(get(&f.bytes, 48 + 15 * 8), sp);
            assert_eq!(get(&f.bytes, 48 + 16 * 8), 0x1111_0010); // rip
        }
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64"))]
    fn offsets_are_the_c_librarys() {
        use core::mem::offset_of;
        use libc::{mcontext_t, stack_t, ucontext_t};
        assert_eq!(frame::SS_FLAGS, 8 + offset_of!(ucontext_t, uc_stack) + offset_of!(stack_t, ss_flags));
        assert_eq!(frame::SIGCONTEXT, 8 + offset_of!(ucontext_t, uc_mcontext));
        assert_eq!(frame::FPSTATE, frame::SIGCONTEXT + offset_of!(mcontext_t, fpregs));
        assert_eq!(frame::SIGMASK, 8 + offset_of!(ucontext_t, uc_sigmask));
        let place = |reg| SIGCONTEXT_ORDER.iter().position(|r| *r == reg).unwrap() as i32;
        assert_eq!(place(r::R8), libc::REG_R8);
        assert_eq!(place(r::R15), libc::REG_R15);
        assert_eq!(place(r::RDI), libc::REG_RDI);
        assert_eq!(place(r::RSI), libc::REG_RSI);
        assert_eq!(place(r::RBP), libc::REG_RBP);
        assert_eq!(place(r::RBX), libc::REG_RBX);
        assert_eq!(place(r::RDX), libc::REG_RDX);
        assert_eq!(place(r::RAX), libc::REG_RAX);
        assert_eq!(place(r::RCX), libc::REG_RCX);
        assert_eq!(place(r::RSP), libc::REG_RSP);
        assert_eq!(place(r::RIP), libc::REG_RIP);
        assert_eq!(place(r::EFLAGS), libc::REG_EFL);
    }

    #[test]
    fn both_ends_of_an_area_with_unused_tiles() {
        let magic = 0x4650_5845u32.to_le_bytes();
        let area = |in_use| {
            let f = rescue_frame(&regs(0x7fff_0000_0000), &xstate(11008, 0x602e7, in_use), 0).unwrap();
            let at = (get(&f.bytes, frame::FPSTATE) - f.at) as usize;
            f.bytes[at..].to_vec()
        };
        let unused = area(7);
        assert_eq!((u32_at(&unused, 480), get(&unused, 472)), (2816, 0x202e7));
        assert!(unused[2816..2820] == magic && unused[11008..11012] == magic);
        let used = area(0x60007);
        assert_eq!((u32_at(&used, 480), get(&used, 472)), (11008, 0x602e7));
        assert!(used[2816..2820] == [0; 4] && used[11008..11012] == magic);
    }

    #[test]
    fn legacy_area_and_nonsense() {
        let f = rescue_frame(&regs(0x7fff_0000_0000), &[0; 512], 0).unwrap();
        assert_eq!(get(&f.bytes, 8), 6, "no UC_FP_XSTATE");
        for len in [0, 511, 513, 575] {
            assert!(rescue_frame(&regs(0x7fff_0000_0000), &vec![0; len], 0).is_none());
        }
        for sp in [0, 128, 700, 1100] {
            assert!(rescue_frame(&regs(sp), &[0; 512], 0).is_none());
        }
    }

    #[test]
    fn interrupted_calls_are_wound_back() {
        let with = |rax: i64, orig: i64| {
            let mut regs = regs(0x7fff_0000_0000);
            regs.set(r::RAX, rax as u64);
            regs.set(r::ORIG_RAX, orig as u64);
            regs.set(r::RIP, 0x1002);
            let got = restarted(&regs);
            (got.get(r::RAX) as i64, got.get(r::RIP))
        };
        for code in [-512, -513, -514, -516] {
            assert_eq!(with(code, 0), (0, 0x1000));
            assert_eq!(with(code, 35), (35, 0x1000));
            assert_eq!(with(code, -1), (code, 0x1002), "not in a call");
        }
        for result in [-4, -515, 0, 512] {
            assert_eq!(with(result, 35), (result, 0x1002));
        }
    }
}
