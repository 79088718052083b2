//! The signal frame that puts a hijacked thread back where it was.
//!
//! The frame is what the kernel itself would have pushed had a signal interrupted the thread, so that `rt_sigreturn` restores
//! everything. Odd about it:
//!
//! * The frame lies exactly at the stack pointer, and begins with the place that O32 callers leave for arguments. Words 4
//!   and 5, once the signal trampoline, are where O32 has the fifth and sixth argument of a system call: rt_sigreturn looks
//!   at neither, so that the frame's address serves as stack pointer of injected calls.
//! * A struct sigcontext holds 64-bit registers in both ABIs, but in different orders.
//! * `sc_used_math` says whether the thread has used floating point. ptrace doesn't, but a thread that has not reads as all
//!   ones (kernel `arch/mips/kernel/ptrace.c`, fpr_get and init_fp_ctx), to which the kernel sets it when it does.
//! * The DSP accumulators are restored from the frame where the processor has them: they are in `xstate` then.
//! * The upper halves of MSA vectors are not in the frame. Injected code leaves them alone.
//! * rt_sigreturn also sets the alternate signal stack, which can't be read from outside. A frame with flags that
//!   sigaltstack(2) refuses leaves it alone: restore_altstack squashes all errors but EFAULT (kernel `kernel/signal.c`).
//! * rt_sigreturn never restarts an interrupted system call and forgets the kernel's restart block. The frame therefore
//!   goes back to the `syscall` instruction where the thread was in a call that is to be restarted, and undoes what the
//!   kernel did to its registers (`do_signal`).
//! * There are 128 signals.
//!
//! Sources: kernel `arch/mips/kernel/signal.c` (struct rt_sigframe, sys_rt_sigreturn, restore_sigcontext), `signal_o32.c`,
//! `arch/mips/include/uapi/asm/sigcontext.h`, `ucontext.h`, `signal.h` (stack_t, of an order of its own).

use crate::registers as r;
use alloc::vec;
use tigerfix_core::arch::{Registers, RescueFrame};
use tigerfix_core::field::{Endian, load, store};

/// Offsets in struct rt_sigframe: 4 words for arguments, 2 of padding, 128 bytes of siginfo, then the ucontext.
struct Layout {
    /// `rs_uc.uc_stack.ss_flags`
    ss_flags: usize,
    pc: usize,
    regs: usize,
    fpregs: usize,
    fpc_csr: usize,
    used_math: usize,
    mdhi: usize,
    mdlo: usize,
    /// hi1, lo1, hi2, lo2, hi3, lo3: the order of NT_MIPS_DSP.
    dsp_regs: [usize; 6],
    dsp_control: usize,
    sigmask: usize,
    len: usize,
    /// Size of a long, bytes.
    long: usize,
}

const UC: usize = 16 + 8 + 128;

/// ucontext: flags, link, stack (sp, size, flags), padding to a multiple of 8, then struct sigcontext32.
const O32: Layout = {
    let sc = UC + 24;
    Layout {
        ss_flags: UC + 16,
        pc: sc + 8,
        regs: sc + 16,
        fpregs: sc + 16 + 256,
        fpc_csr: sc + 532,
        used_math: sc + 540,
        dsp_control: sc + 544,
        mdhi: sc + 552,
        mdlo: sc + 560,
        dsp_regs: [sc + 568, sc + 572, sc + 576, sc + 580, sc + 584, sc + 588],
        sigmask: sc + 592,
        len: sc + 592 + 16,
        long: 4,
    }
};

const N64: Layout = {
    let sc = UC + 40;
    Layout {
        ss_flags: UC + 32,
        regs: sc,
        fpregs: sc + 256,
        mdhi: sc + 512,
        mdlo: sc + 544,
        dsp_regs: [sc + 520, sc + 552, sc + 528, sc + 560, sc + 536, sc + 568],
        pc: sc + 576,
        fpc_csr: sc + 584,
        used_math: sc + 588,
        dsp_control: sc + 592,
        sigmask: sc + 600,
        len: sc + 600 + 16,
        long: 8,
    }
};

/// SS_ONSTACK | SS_DISABLE: a mode that sigaltstack refuses.
const NO_SUCH_ALTSTACK: u64 = 1 | 2;
/// `USED_FP` of `sc_used_math`.
const USED_FP: u64 = 1;
/// Length of NT_PRFPREG: 32 registers, control and implementation word.
const FP_LEN: usize = 32 * 8 + 8;
/// Number of words of NT_MIPS_DSP: 6 accumulators, the control word.
const DSP_WORDS: usize = 7;
/// Room above a frame that the kernel leaves for its floating point emulator (get_sigframe).
const EMULATOR: u64 = 32;

/// The registers to go on with: those of a thread in a system call that waits for its restart are wound back to the
/// `syscall` instruction, as the kernel would do on resuming it.
fn restarted(regs: &Registers) -> Registers {
    /// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (kernel include/linux/errno.h). The last one
    /// would go on with the rest of a timeout; its restart block being lost, the call is made anew.
    const RESTARTS: [u64; 4] = [512, 513, 514, 516];
    let mut regs = *regs;
    let nr = regs.get(r::RESTART);
    if nr != 0 && RESTARTS.contains(&regs.get(r::V0)) {
        regs.set(r::V0, nr);
        regs.set(r::A3, regs.get(r::RESTART_A3));
        regs.set(r::PC, regs.get(r::PC).wrapping_sub(4));
    }
    regs
}

/// Builds the frame below `regs`'s stack pointer. `xstate` is NT_PRFPREG and, where the processor has it, NT_MIPS_DSP behind it.
pub(crate) fn rescue_frame(
    endian: Endian,
    is_64: bool,
    regs: &Registers,
    xstate: &[u8],
    sigmask: u128,
) -> Option<RescueFrame> {
    let l = if is_64 { &N64 } else { &O32 };
    let dsp = match xstate.len() {
        0 | FP_LEN => None,
        n if n == FP_LEN + DSP_WORDS * l.long => Some(&xstate[FP_LEN..]),
        _ => return None,
    };
    let at = regs.get(r::SP).checked_sub(EMULATOR + l.len as u64)? & !15;
    let mut bytes = vec![0; l.len];
    let mut put = |at: usize, len: usize, value: u64| store(&mut bytes[at..at + len], endian, value);

    put(l.ss_flags, 4, NO_SUCH_ALTSTACK);
    let regs = restarted(regs);
    // A 64-bit kernel wants the registers of a 32-bit program sign-extended.
    let wide = |v: u64| if is_64 { v } else { v as u32 as i32 as i64 as u64 };
    for i in 1..32 {
        put(l.regs + 8 * usize::from(i), 8, wide(regs.get(i)));
    }
    for (at, reg) in [(l.pc, r::PC), (l.mdhi, r::HI), (l.mdlo, r::LO)] {
        put(at, 8, wide(regs.get(reg)));
    }
    let fp = xstate.get(..FP_LEN).filter(|fp| fp[..32 * 8].iter().any(|b| *b != 0xff));
    if let Some(fp) = fp {
        for i in 0..32 {
            put(l.fpregs + 8 * i, 8, load(&fp[8 * i..8 * i + 8], endian));
        }
        put(l.fpc_csr, 4, load(&fp[256..260], endian));
        put(l.used_math, 4, USED_FP);
    }
    if let Some(dsp) = dsp {
        for (i, word) in dsp.chunks_exact(l.long).enumerate() {
            match l.dsp_regs.get(i) {
                Some(at) => put(*at, l.long, load(word, endian)),
                None => put(l.dsp_control, 4, load(word, endian)),
            }
        }
    }
    // Longs, the one with the lowest signals first.
    for i in 0..16 / l.long {
        put(l.sigmask + i * l.long, l.long, (sigmask >> (8 * l.long * i)) as u64);
    }
    Some(RescueFrame { bytes, at, sp: at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn regs() -> Registers {
        let mut regs = Registers::ZERO;
        for i in 1..38 {
            regs.set(i, 0x1111_0000 + u64::from(i));
        }
        regs.set(r::SP, 0x7fff_1234);
        regs
    }

    fn fp() -> Vec<u8> {
        (0..FP_LEN).map(|i| i as u8).collect()
    }

    /// Offsets as the C compiler has them (offsetof on mips-linux-gnu and mips64-linux-gnuabi64).
    #[test]
    fn layouts() {
        assert_eq!((O32.pc, O32.regs, O32.fpregs, O32.fpc_csr), (184, 192, 448, 708));
        assert_eq!((O32.used_math, O32.mdhi, O32.mdlo, O32.sigmask), (716, 728, 736, 768));
        assert_eq!((N64.regs, N64.fpregs, N64.mdhi, N64.mdlo, N64.pc), (192, 448, 704, 736, 768));
        assert_eq!((N64.fpc_csr, N64.used_math, N64.sigmask), (776, 780, 792));
        assert_eq!((O32.ss_flags, N64.ss_flags), (168, 184));
    }

    #[test]
    fn everything_is_in_the_frame() {
        for (endian, is_64, l) in [
            (Endian::Little, false, &O32),
            (Endian::Big, false, &O32),
            (Endian::Little, true, &N64),
            (Endian::Big, true, &N64),
        ] {
            let mask = 0x8000_0000_0000_0003_4000_0000_2000_0001;
            let mut state = fp();
            state.extend((0..DSP_WORDS * l.long).map(|i| 0x80 | i as u8));
            let f = rescue_frame(endian, is_64, &regs(), &state, mask).unwrap();
            assert_eq!((f.at % 16, f.at, f.bytes.len()), (0, f.sp, l.len));
            assert!(f.at + f.bytes.len() as u64 + EMULATOR <= 0x7fff_1234);
            let get = |at: usize, len: usize| load(&f.bytes[at..at + len], endian);
            assert_eq!(get(l.regs + 8 * 31, 8), 0x1111_001f);
            assert_eq!(get(l.regs, 8), 0, "$0");
            assert_eq!((get(l.pc, 8), get(l.mdlo, 8)), (0x1111_0022, 0x1111_0020));
            assert_eq!(f.bytes[l.fpregs..l.fpregs + 256], state[..256]);
            assert_eq!((f.bytes[l.fpc_csr], get(l.used_math, 4)), (state[256], 1));
            assert_eq!(get(l.dsp_regs[1], l.long), load(&state[FP_LEN + l.long..FP_LEN + 2 * l.long], endian));
            let halves = if is_64 {
                [get(l.sigmask, 8), get(l.sigmask + 8, 8)]
            } else {
                let word = |i: usize| get(l.sigmask + 4 * i, 4);
                [word(0) | word(1) << 32, word(2) | word(3) << 32]
            };
            assert_eq!(halves, [mask as u64, (mask >> 64) as u64]);
        }
    }

    #[test]
    fn registers_of_32_bits_are_sign_extended() {
        let mut regs = regs();
        regs.set(16, 0xffff_fff0);
        let at = O32.regs + 8 * 16;
        let f = rescue_frame(Endian::Little, false, &regs, &fp(), 0).unwrap();
        assert_eq!(load(&f.bytes[at..at + 8], Endian::Little), 0xffff_ffff_ffff_fff0);
    }

    #[test]
    fn unused_floating_point_stays_unused() {
        for state in [Vec::new(), [vec![0xff; 256], vec![0; 8]].concat()] {
            let f = rescue_frame(Endian::Big, false, &regs(), &state, 0).unwrap();
            assert_eq!(f.bytes[O32.used_math..O32.used_math + 4], [0; 4]);
        }
        assert!(rescue_frame(Endian::Big, false, &regs(), &[0; 100], 0).is_none());
        let mut low = regs();
        low.set(r::SP, 100);
        assert!(rescue_frame(Endian::Big, false, &low, &[], 0).is_none());
    }

    #[test]
    fn interrupted_calls_are_wound_back() {
        let with = |v0: u64, nr: u64| {
            let mut regs = regs();
            for (reg, v) in [(r::RESTART, nr), (r::V0, v0), (r::A3, 1), (r::RESTART_A3, 77), (r::PC, 0x1004)] {
                regs.set(reg, v);
            }
            let got = restarted(&regs);
            (got.get(r::V0), got.get(r::A3), got.get(r::PC))
        };
        for code in [512, 513, 514, 516] {
            assert_eq!(with(code, 4003), (4003, 77, 0x1000));
            assert_eq!(with(code, 0), (code, 1, 0x1004), "not in a call");
        }
        for result in [4, 515, 0] {
            assert_eq!(with(result, 4003), (result, 1, 0x1004));
        }
    }
}
