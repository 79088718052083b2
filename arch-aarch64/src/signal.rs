//! The signal frame that puts a hijacked thread back where it was.
//!
//! The frame is what the kernel itself would have pushed had a signal interrupted the thread, so that `rt_sigreturn` restores
//! everything. Odd about it:
//!
//! * rt_sigreturn finds the frame exactly at sp, a multiple of 16. Injected code returns by x30, so the frame's address
//!   serves as its stack pointer.
//! * Behind the general registers lies a list of records, each with a number and its size, up to one of size 0: vector registers
//!   are in an `fpsimd_context`, which has to be there. The wider registers of SVE are in an `sve_context` as well, which
//!   is given only if the thread uses them; without it they become zero above their lower 128 bits, which is what a
//!   system call does to them anyway. 4096 bytes are set aside for the list. What does not fit (SVE vectors of more than 96
//!   bytes) would lie elsewhere, and that is not made here.
//! * rt_sigreturn also sets the alternate signal stack, which can't be read from outside. A frame with flags that
//!   sigaltstack(2) refuses leaves it alone: restore_altstack squashes all errors but EFAULT (kernel `kernel/signal.c`).
//! * rt_sigreturn never restarts an interrupted system call and forgets the kernel's restart block. That needs no care: the
//!   registers of a stopped thread are wound back to the `svc` instruction already (`registers.rs`).
//! * A guarded control stack (GCS) has to hold a token that only the kernel can push: threads that have one can't be hijacked
//!   like this.
//!
//! Sources: kernel `arch/arm64/kernel/signal.c` (struct rt_sigframe, sys_rt_sigreturn, parse_user_sigframe,
//! restore_sve_fpsimd_context), `arch/arm64/include/uapi/asm/{ucontext,sigcontext,ptrace}.h`, `Documentation/arch/arm64/sve.rst`.

use crate::registers as r;
use alloc::vec::Vec;
use tigerfix_core::arch::{Registers, RescueFrame};
use tigerfix_core::field::{Endian, load};

/// struct rt_sigframe: struct siginfo, then struct ucontext.
mod frame {
    const UC: usize = 128;
    /// Offset of `uc.uc_stack.ss_flags` (behind uc_flags, uc_link and ss_sp).
    pub const SS_FLAGS: usize = UC + 24;
    /// Behind ss_flags and ss_size.
    pub const SIGMASK: usize = UC + 40;
    /// `uc.uc_mcontext`, behind 1024 bits for signals, at a multiple of 16.
    const SIGCONTEXT: usize = (SIGMASK + 128).next_multiple_of(16);
    /// Behind fault_address: x0 to x30, sp, pc, pstate.
    pub const REGS: usize = SIGCONTEXT + 8;
    /// `__reserved`, the records, at a multiple of 16.
    pub const RECORDS: usize = (REGS + 34 * 8).next_multiple_of(16);
    /// Size of `__reserved`.
    pub const RECORDS_LEN: usize = 4096;
    const _: () = assert!(SIGCONTEXT == 304 && RECORDS == 592);
}

/// SS_ONSTACK | SS_DISABLE: a mode that sigaltstack refuses.
const NO_SUCH_ALTSTACK: u32 = 1 | 2;

/// FPSIMD_MAGIC; struct fpsimd_context: head, fpsr, fpcr, 32 registers of 16 bytes.
const FPSIMD_MAGIC: u32 = 0x4650_8001;
/// SVE_MAGIC; struct sve_context: head, vl, flags, padding, then the registers.
const SVE_MAGIC: u32 = 0x5356_4501;
/// Size of the last record.
const END_LEN: usize = 16;

/// Sizes and offsets in what ptrace gives.
mod regset {
    /// NT_PRFPREG, struct user_fpsimd_state: 32 registers of 16 bytes, fpsr, fpcr, 8 bytes of padding.
    pub const FPSIMD_LEN: usize = VREGS_LEN + 16;
    pub const VREGS_LEN: usize = 32 * 16;
    /// NT_ARM_SVE, struct user_sve_header: size, max_size (32 bits each), vl, max_vl, flags, padding (16 bits each).
    pub const SVE_HEADER: usize = 16;
    pub const SVE_VL: usize = 8;
    pub const SVE_FLAGS: usize = 12;
    /// SVE_PT_REGS_SVE: the registers are there in full, else only what NT_PRFPREG has.
    pub const SVE_FULL: u64 = 1;
    /// For each 16 bytes of a vector: 32 vectors, 16 predicates and FFR of one bit for each byte.
    pub const SVE_REGS_PER_VQ: usize = 32 * 16 + 16 * 2 + 2;
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    Some(load(bytes.get(at..at + len)?, Endian::Little))
}

/// The vector registers as the kernel keeps them in NT_ARM_SVE, if the thread uses them: their length, and their contents.
/// `None`: this is no such register set, or of a form that no frame is made for.
fn sve(set: &[u8]) -> Option<Option<(u16, &[u8])>> {
    if set.is_empty() {
        return Some(None);
    }
    let (vl, flags) = (number(set, regset::SVE_VL, 2)? as usize, number(set, regset::SVE_FLAGS, 2)?);
    if flags & regset::SVE_FULL == 0 {
        return Some(None);
    }
    if vl == 0 || vl % 16 != 0 {
        return None;
    }
    let len = vl / 16 * regset::SVE_REGS_PER_VQ;
    Some(Some((vl as u16, set.get(regset::SVE_HEADER..regset::SVE_HEADER + len)?)))
}

/// Builds the frame below `regs`'s stack pointer. `xstate` is NT_PRFPREG, and NT_ARM_SVE behind it if there is one.
pub(crate) fn rescue_frame(regs: &Registers, xstate: &[u8], sigmask: u128) -> Option<RescueFrame> {
    let (fp, rest) = xstate.split_at_checked(regset::FPSIMD_LEN)?;
    let sve = sve(rest)?;

    let mut bytes = Vec::with_capacity(frame::RECORDS + 1024);
    bytes.resize(frame::RECORDS, 0);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(frame::SS_FLAGS, &NO_SUCH_ALTSTACK.to_le_bytes());
    // 64 signals on this architecture.
    put(frame::SIGMASK, &(sigmask as u64).to_le_bytes());
    for i in 0..=r::PSTATE {
        put(frame::REGS + 8 * usize::from(i), &regs.get(i).to_le_bytes());
    }

    record(&mut bytes, FPSIMD_MAGIC, &[&fp[regset::VREGS_LEN..regset::VREGS_LEN + 8], &fp[..regset::VREGS_LEN]]);
    if let Some((vl, registers)) = sve {
        let mut head = [0; 8];
        head[..2].copy_from_slice(&vl.to_le_bytes());
        record(&mut bytes, SVE_MAGIC, &[&head, registers]);
    }
    bytes.resize(bytes.len() + END_LEN, 0);
    if bytes.len() > frame::RECORDS + frame::RECORDS_LEN {
        return None;
    }
    let at = regs.get(r::SP).checked_sub(bytes.len() as u64)? & !15;
    Some(RescueFrame { bytes, at, sp: at })
}

/// Appends a record; sizes are multiples of 16.
fn record(bytes: &mut Vec<u8>, magic: u32, parts: &[&[u8]]) {
    let size = (8 + parts.iter().map(|p| p.len()).sum::<usize>()).next_multiple_of(16);
    let end = bytes.len() + size;
    bytes.extend_from_slice(&magic.to_le_bytes());
    bytes.extend_from_slice(&(size as u32).to_le_bytes());
    parts.iter().for_each(|p| bytes.extend_from_slice(p));
    bytes.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn regs(sp: u64) -> Registers {
        let mut regs = Registers::ZERO;
        for i in 0..34 {
            regs.set(i, 0x1111_0000 + u64::from(i));
        }
        regs.set(r::SP, sp);
        regs
    }

    fn fp() -> Vec<u8> {
        let mut x: Vec<u8> = (0..512u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
        x.extend_from_slice(&0x0800_0001u32.to_le_bytes()); // fpsr
        x.extend_from_slice(&0x0300_0000u32.to_le_bytes()); // fpcr
        x.resize(528, 0);
        x
    }

    fn sve(vl: u16, flags: u16) -> Vec<u8> {
        let regs = usize::from(vl) / 16 * 546;
        let size = (16 + regs).next_multiple_of(16) + 16;
        let mut x = (size as u32).to_le_bytes().to_vec();
        x.extend_from_slice(&(size as u32).to_le_bytes());
        for h in [vl, vl, flags, 0] {
            x.extend_from_slice(&h.to_le_bytes());
        }
        x.extend((0..regs).map(|i| (i % 251) as u8));
        x.resize(size, 0);
        x
    }

    /// (magic, offset, size) of the records.
    fn records(frame: &[u8]) -> Vec<(u32, usize, usize)> {
        let mut out = Vec::new();
        let mut at = frame::RECORDS;
        loop {
            let (magic, size) = (number(frame, at, 4).unwrap() as u32, number(frame, at + 4, 4).unwrap() as usize);
            out.push((magic, at, size));
            if magic == 0 {
                assert_eq!(size, 0);
                return out;
            }
            assert_eq!(size % 16, 0);
            at += size;
        }
    }

    #[test]
    fn layout_is_the_kernels() {
        for sp in (0xffff_ffff_0000..0xffff_ffff_0040u64).step_by(8) {
            let f = rescue_frame(&regs(sp), &fp(), 0x5a5a).unwrap();
            assert_eq!((f.sp, f.at % 16), (f.at, 0));
            assert!(f.at + f.bytes.len() as u64 <= sp);
            let word = |at| number(&f.bytes, at, 8).unwrap();
            assert_eq!(word(frame::SIGMASK), 0x5a5a);
            for i in 0..34 {
                let expect = if i == 31 { sp } else { 0x1111_0000 + i };
                assert_eq!(word(frame::REGS + 8 * i as usize), expect);
            }
            assert_eq!(records(&f.bytes), [(FPSIMD_MAGIC, 592, 528), (0, 1120, 0)]);
            assert_eq!(number(&f.bytes, 600, 4), Some(0x0800_0001));
            assert_eq!(number(&f.bytes, 604, 4), Some(0x0300_0000));
            assert_eq!(f.bytes[608..608 + 512], fp()[..512]);
        }
    }

    #[test]
    #[cfg(all(target_arch = "aarch64", target_os = "linux", target_pointer_width = "64"))]
    fn offsets_are_the_c_librarys() {
        use core::mem::offset_of;
        use libc::{mcontext_t, stack_t, ucontext_t};
        let uc = size_of::<libc::siginfo_t>();
        assert_eq!(frame::SS_FLAGS, uc + offset_of!(ucontext_t, uc_stack) + offset_of!(stack_t, ss_flags));
        assert_eq!(frame::SIGMASK, uc + offset_of!(ucontext_t, uc_sigmask));
        let mc = uc + offset_of!(ucontext_t, uc_mcontext);
        assert_eq!(frame::REGS, mc + offset_of!(mcontext_t, regs));
        assert_eq!(frame::REGS + 8 * usize::from(r::SP), mc + offset_of!(mcontext_t, sp));
        assert_eq!(frame::REGS + 8 * usize::from(r::PSTATE), mc + offset_of!(mcontext_t, pstate));
        assert_eq!(frame::RECORDS + frame::RECORDS_LEN, mc + size_of::<mcontext_t>());
    }

    #[test]
    fn wide_vectors_are_kept_where_they_are_in_use() {
        for vl in [16u16, 32, 64, 96] {
            let f = rescue_frame(&regs(0xffff_0000_0000), &[fp(), sve(vl, 1)].concat(), 0).unwrap();
            let all = records(&f.bytes);
            let len = usize::from(vl) / 16 * 546;
            let size = (16 + len).next_multiple_of(16);
            assert_eq!(all, [(FPSIMD_MAGIC, 592, 528), (SVE_MAGIC, 1120, size), (0, 1120 + size, 0)]);
            assert_eq!(number(&f.bytes, 1128, 8), Some(u64::from(vl)), "vl, no flags");
            assert_eq!(f.bytes[1136..1136 + len], sve(vl, 1)[16..16 + len]);
            assert!(f.bytes.len() <= frame::RECORDS + frame::RECORDS_LEN);
            // In use, but nothing in it: the registers are those of NT_PRFPREG.
            let f = rescue_frame(&regs(0xffff_0000_0000), &[fp(), sve(vl, 0)].concat(), 0).unwrap();
            assert_eq!(records(&f.bytes).len(), 2);
        }
    }

    #[test]
    fn nonsense_makes_no_frame() {
        let none = |x: &[u8]| rescue_frame(&regs(0xffff_0000_0000), x, 0).is_none();
        for len in [0, 1, 511, 527] {
            assert!(none(&vec![0; len]));
        }
        let whole = [fp(), sve(32, 1)].concat();
        assert!(!none(&whole));
        for cut in [529, 536, 541, 544, 600, whole.len() - 40] {
            assert!(none(&whole[..cut]), "{cut}");
        }
        assert!(none(&[fp(), sve(112, 1)].concat()), "no room");
        assert!(none(&[fp(), sve(2048, 1)].concat()));
        assert!(none(&[fp(), sve(24, 1)].concat()), "no such length");
        assert!(none(&[fp(), sve(0, 1)].concat()));
        for sp in [0, 16, 1000, 1135] {
            assert!(rescue_frame(&regs(sp), &fp(), 0).is_none());
        }
    }
}
