//! The way out of a function for which there is no unwind table: its code is followed to its return.
//!
//! Most MIPS programs carry no unwind tables. What compilers emit is regular enough to do without, though. From a frame's
//! pc the code is followed forward, both ways at every conditional branch and over every call, with the few values
//! that matter: the stack pointer, constants, and what is loaded from the stack. `jr $ra` then says where the caller goes
//! on, and with which stack pointer. A way that meets something that no compiled function does is given up; those that
//! are left must all say the same.
//!
//! That alone would be fooled by a call that never returns, behind which other code begins. So the code *before* the pc has
//! to tell the same: the prologue (`addiu $sp, $sp, -N`; `sw $ra, X($sp)`) of the same stretch of code must have made a
//! frame of just that size, with the return address in just that place. And before the address that is returned to, there
//! has to be a call.
//!
//! Whenever in doubt there is no answer: a wrong one may let code be changed under a thread's feet.
//!
//! Sources: *System V ABI, MIPS RISC Processor Supplement*, chapter 3 "Function Calling Sequence"; *MIPSpro N32 ABI
//! Handbook*, chapter 2; gcc's `config/mips/mips.cc` (mips_expand_prologue, mips_expand_epilogue); kernel
//! `arch/mips/kernel/signal.c` (struct sigframe, struct rt_sigframe, setup_sigcontext), `arch/mips/vdso/sigreturn.S`,
//! `arch/mips/include/uapi/asm/sigcontext.h` and `ucontext.h`.

use crate::flow::{Branch, Kind, classify};
use crate::operands::operands;
use crate::registers::PC;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use tigerfix_core::arch::{Frame, Registers};
use tigerfix_core::field::{Endian, load};

const GP: usize = 28;
const SP: usize = 29;
const FP: usize = 30;
const RA: usize = 31;

/// Instructions that are followed in all, and how many more once there is an answer.
const BUDGET: usize = 12_000;
const BUDGET_MORE: usize = 3_000;
/// How far before the pc a prologue is looked for, instructions.
const FARTHEST_PROLOGUE: u64 = 16_384;
/// How far apart the two steps of a large frame's allocation are, instructions.
const FARTHEST_STEP: u64 = 64;
/// No function has a larger frame (the kernel's limit for stacks is 8 MiB unless raised).
const LARGEST_FRAME: u64 = 8 << 20;

/// `b .`, with which code ends that never goes on.
const LOOP: u32 = 0x1000_ffff;
const SYSCALL: u32 = 0x0000_000c;
/// `li $v0, ...`
const LI_V0: u32 = 0x2402_0000;

/// The target's memory: code in blocks that are kept, data as it is.
struct Memory<'r> {
    read: &'r mut dyn FnMut(u64, &mut [u8]) -> bool,
    blocks: BTreeMap<u64, Option<[u8; Memory::BLOCK]>>,
    endian: Endian,
    is_64: bool,
}

impl Memory<'_> {
    /// Divides every page size.
    const BLOCK: usize = 256;

    fn insn(&mut self, at: u64) -> Option<u32> {
        if !at.is_multiple_of(4) {
            return None;
        }
        let start = at & !(Self::BLOCK as u64 - 1);
        let read = &mut self.read;
        let block = self.blocks.entry(start).or_insert_with(|| {
            let mut b = [0; Self::BLOCK];
            read(start, &mut b).then_some(b)
        });
        let offset = (at - start) as usize;
        Some(load(&block.as_ref()?[offset..offset + 4], self.endian) as u32)
    }

    /// A word of the stack, of `len` bytes.
    fn data(&mut self, at: u64, len: usize) -> Option<u64> {
        let mut b = [0; 8];
        (self.read)(at, &mut b[..len]).then(|| load(&b[..len], self.endian))
    }

    fn narrow(&self, v: u64) -> u64 {
        if self.is_64 { v } else { u64::from(v as u32) }
    }
}

/// One way through the code.
#[derive(Clone)]
struct Path {
    pc: u64,
    regs: [Option<u64>; 32],
    /// What was stored to the stack on the way: address and, if it is known, value.
    stored: Vec<(u64, Option<u64>)>,
    /// Where the value of `$ra` was loaded from.
    ra_slot: Option<u64>,
    /// It was stored there on the way.
    ra_stored: bool,
    /// A call was passed, so what comes is no prologue.
    called: bool,
    /// A frame was made on the way.
    entered: bool,
}

/// Where a way ends that was followed to a return.
#[derive(Clone, Copy)]
struct Exit {
    pc: u64,
    regs: [Option<u64>; 32],
    sp: u64,
    ra_slot: Option<u64>,
    ra_stored: bool,
    entered: bool,
}

/// See [`tigerfix_core::arch::Arch::step_out`].
pub fn step_out(
    is_64: bool,
    endian: Endian,
    frame: &Frame,
    read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
) -> Option<Frame> {
    let mut memory = Memory { read, blocks: BTreeMap::new(), endian, is_64 };
    let known = |r: u8| frame.known >> r & 1 == 1;
    if !known(PC) || !known(SP as u8) {
        return None;
    }
    let pc = memory.narrow(frame.regs.get(PC));
    let mut regs = [None; 32];
    for (r, v) in regs.iter_mut().enumerate().skip(1) {
        *v = known(r as u8).then(|| memory.narrow(frame.regs.get(r as u8)));
    }
    regs[0] = Some(0);
    let sp = regs[SP]?;
    if !sp.is_multiple_of(4) {
        return None;
    }
    if let Some(frame) = signal_return(&mut memory, pc, sp, frame.exact) {
        return frame;
    }
    if !frame.exact {
        if memory.insn(pc)? == LOOP {
            // It never returns: there is no caller to speak of.
            return Some(outermost(regs, sp));
        }
        // At a return the registers that calls may change hold what the caller does not know.
        for r in (1..16).chain([24, 25, RA]) {
            regs[r] = None;
        }
    }
    let start =
        Path { pc, regs, stored: Vec::new(), ra_slot: None, ra_stored: false, called: !frame.exact, entered: false };
    let exits = follow(&mut memory, start)?;
    let exit = agreed(&exits)?;
    check(&mut memory, pc, &regs, frame.exact, &exit)?;
    if exit.pc == 0 {
        return Some(outermost(exit.regs, exit.sp));
    }
    let called = call_before(&mut memory, exit.pc);
    if !called && signal_number(&mut memory, exit.pc).is_none() {
        return None;
    }
    let mut out = Frame { regs: Registers::ZERO, known: 0, exact: false };
    let mut set = |r: usize, v: u64| {
        out.regs.set(r as u8, v);
        out.known |= 1 << r;
    };
    set(SP, exit.sp);
    set(usize::from(PC), exit.pc);
    for r in (16..24).chain([FP]).chain(is_64.then_some(GP)) {
        if let Some(v) = exit.regs[r] {
            set(r, v);
        }
    }
    Some(out)
}

/// The frame above the outermost one: a return address of 0.
fn outermost(regs: [Option<u64>; 32], sp: u64) -> Frame {
    let mut out = Frame { regs: Registers::ZERO, known: 1 << SP | 1 << PC, exact: false };
    out.regs.set(SP as u8, sp);
    if let Some(fp) = regs[FP] {
        out.regs.set(FP as u8, fp);
        out.known |= 1 << FP;
    }
    out
}

/// Is there a call that returns to `at`?
fn call_before(memory: &mut Memory<'_>, at: u64) -> bool {
    let call = at.checked_sub(8).and_then(|c| memory.insn(c));
    call.is_some_and(|w| {
        let b = classify(w);
        b.has_delay_slot() && b.link == Some(RA as u8)
    })
}

/// The number of the system call at `at`, if it is one that returns from a signal's handler.
fn signal_number(memory: &mut Memory<'_>, at: u64) -> Option<u32> {
    let li = memory.insn(at)?;
    let number = li & 0xffff;
    let known: &[u32] = if memory.is_64 { &[5211] } else { &[4119, 4193] }; // (rt_)sigreturn
    (li & 0xffff_0000 == LI_V0 && known.contains(&number) && memory.insn(at + 4)? == SYSCALL).then_some(number)
}

/// The interrupted code's frame, if `pc` is in the code that a signal's handler returns to. The inner `None`: it can't be
/// read.
fn signal_return(memory: &mut Memory<'_>, pc: u64, sp: u64, exact: bool) -> Option<Option<Frame>> {
    let number = match signal_number(memory, pc) {
        Some(n) => n,
        None if exact => signal_number(memory, pc.checked_sub(4)?)?,
        None => return None,
    };
    // The frame begins with room for four arguments and two unused words; of rt_sigframe siginfo (128 bytes) comes next,
    // then ucontext with flags, link, and the stack (12 or 24 bytes), then the machine's context with 8 byte alignment.
    let (pc_at, regs_at) = match (memory.is_64, number) {
        (false, 4119) => (24 + 8, 24 + 16), // sigcontext: regmask, status, pc, regs
        (false, _) => (24 + 128 + 24 + 8, 24 + 128 + 24 + 16),
        (true, _) => (24 + 128 + 40 + 576, 24 + 128 + 40), // sigcontext: regs, fpregs, hi.., lo.., pc
    };
    let mut out = Frame { regs: Registers::ZERO, known: 1 << PC, exact: true };
    let mut slot = |offset: u64| {
        let v = memory.data(sp.checked_add(offset)?, 8)?;
        Some(memory.narrow(v))
    };
    let mut fill = || {
        out.regs.set(PC, slot(pc_at)?);
        for r in 1..32u8 {
            out.regs.set(r, slot(regs_at + 8 * u64::from(r))?);
            out.known |= 1 << r;
        }
        Some(())
    };
    Some(fill().map(|()| out))
}

/// What one instruction does, and where the way goes on.
enum Next {
    /// Here.
    On(u64),
    /// Here or there.
    Fork(u64, u64),
    /// A return (or a jump to another function in its place) to this address.
    Out(u64),
    /// Nowhere that tells anything.
    Lost,
}

/// Follows all ways from `start`. `None`: there are too many, and none of them tells anything.
fn follow(memory: &mut Memory<'_>, start: Path) -> Option<Vec<Exit>> {
    let mut exits: Vec<Exit> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut todo = alloc::vec![start];
    let mut budget = BUDGET;
    while let Some(mut path) = todo.pop() {
        // The frame's layout is a function of the pc; what lies in other registers does not change where a return goes.
        while seen.insert((path.pc, path.regs[SP], path.regs[RA])) {
            if budget == 0 {
                return (!exits.is_empty()).then_some(exits);
            }
            budget -= 1;
            match path.step(memory) {
                Next::On(at) => path.pc = at,
                Next::Fork(here, there) => {
                    let mut other = path.clone();
                    other.pc = there;
                    // The slot of a likely branch executes on the way that branches only.
                    if let Some(b) = memory.insn(path.pc).map(classify)
                        && b.likely
                    {
                        other.slot(memory, path.pc.wrapping_add(4))?;
                    }
                    todo.push(other);
                    path.pc = here;
                }
                Next::Out(pc) => {
                    if let Some(sp) = path.regs[SP] {
                        let Path { regs, ra_slot, ra_stored, entered, .. } = path;
                        exits.push(Exit { pc, regs, sp, ra_slot, ra_stored, entered });
                        budget = budget.min(BUDGET_MORE);
                    }
                    break;
                }
                Next::Lost => break,
            }
        }
    }
    Some(exits)
}

/// What all ways say.
fn agreed(exits: &[Exit]) -> Option<Exit> {
    let (first, others) = exits.split_first()?;
    let mut out = *first;
    for e in others {
        if (e.pc, e.sp) != (out.pc, out.sp) {
            return None;
        }
        for (r, v) in out.regs.iter_mut().zip(e.regs) {
            if *r != v {
                *r = None;
            }
        }
        // Those that did not load it say nothing of where it is.
        if out.ra_slot != e.ra_slot {
            out.ra_slot = out.ra_slot.or(e.ra_slot);
        }
        out.entered |= e.entered;
        out.ra_stored &= e.ra_stored;
    }
    Some(out)
}

impl Path {
    fn step(&mut self, memory: &mut Memory<'_>) -> Next {
        let Some(word) = memory.insn(self.pc) else { return Next::Lost };
        let branch = classify(word);
        let behind = self.pc.wrapping_add(4);
        match branch.kind {
            Kind::Next => match self.execute(memory, word) {
                Some(()) => Next::On(behind),
                None => Next::Lost,
            },
            Kind::Stop | Kind::ExceptionReturn => Next::Lost,
            _ => self.branch(memory, branch),
        }
    }

    /// Executes the instruction in a delay slot; `None`: it is none that may be there.
    fn slot(&mut self, memory: &mut Memory<'_>, at: u64) -> Option<()> {
        let word = memory.insn(at)?;
        if classify(word).kind != Kind::Next {
            return None;
        }
        self.execute(memory, word)
    }

    fn branch(&mut self, memory: &mut Memory<'_>, branch: Branch) -> Next {
        let at = self.pc;
        let (slot, behind) = (at.wrapping_add(4), memory.narrow(at.wrapping_add(8)));
        let target = branch.target(memory.is_64, at);
        let register = self.regs[usize::from(branch.register)];
        let (ra, ra_slot) = (self.regs[RA], self.ra_slot);
        if !branch.likely && self.slot(memory, slot).is_none() {
            return Next::Lost;
        }
        if let Some(link) = branch.link {
            if branch.likely && self.slot(memory, slot).is_none() {
                return Next::Lost;
            }
            // `bal` to the next instruction only asks for the address; everything else is a call.
            if target != Some(behind) {
                self.call(memory.is_64);
            }
            self.regs[usize::from(link)] = None;
            if usize::from(link) == RA {
                self.ra_slot = None;
            }
            return Next::On(behind);
        }
        match (branch.kind, target) {
            (Kind::Conditional, Some(t)) => Next::Fork(behind, t),
            (Kind::Always, Some(t)) => Next::On(t),
            (Kind::Register, _) if branch.is_return() => register.map_or(Next::Lost, Next::Out),
            // A jump to another function in place of a call and a return: $ra is the caller's again. Otherwise it can't be
            // told from one by a table.
            (Kind::Register, _) if ra_slot.is_some() => ra.map_or(Next::Lost, Next::Out),
            _ => Next::Lost,
        }
    }

    /// A call came back: what the ABI lets it change is unknown.
    fn call(&mut self, is_64: bool) {
        for r in (1..16).chain([24, 25, RA]) {
            self.regs[r] = None;
        }
        if !is_64 {
            self.regs[GP] = None;
        }
        self.ra_slot = None;
        self.called = true;
    }

    /// Executes an instruction that is no branch, as far as it matters.
    fn execute(&mut self, memory: &mut Memory<'_>, word: u32) -> Option<()> {
        let effects = operands(memory.is_64, word)?;
        let (rs, rt, rd) = ((word >> 21 & 31) as usize, (word >> 16 & 31) as usize, (word >> 11 & 31) as usize);
        let low = word as u16 as i16 as i64 as u64;
        let width = if memory.is_64 { 8 } else { 4 };
        let (s, t) = (self.regs[rs], self.regs[rt]);
        let value = match word >> 26 {
            // addi addiu daddi daddiu
            0x08 | 0x09 | 0x18 | 0x19 => s.map(|v| memory.narrow(v.wrapping_add(low))),
            0x0d => s.map(|v| v | u64::from(word as u16)), // ori
            0x0f => Some(memory.narrow((word << 16) as i32 as i64 as u64)), // lui
            // lw, ld
            op @ (0x23 | 0x37) => {
                let len = if op == 0x37 { 8 } else { 4 };
                let at = s.map(|v| memory.narrow(v.wrapping_add(low))).filter(|&at| self.on_stack(at));
                let value = if len == width { at.and_then(|at| self.load(memory, at, len)) } else { None };
                if rt == RA {
                    self.ra_slot = at;
                    self.ra_stored = self.stored.iter().any(|s| Some(s.0) == at);
                }
                value
            }
            // stores: sb sh swl sw sdl sdr swr, sc, swc1, scd, sdc1, sd
            op @ (0x28..=0x2e | 0x38 | 0x39 | 0x3c | 0x3d | 0x3f) => {
                if let Some(at) = s.map(|v| memory.narrow(v.wrapping_add(low)))
                    && self.on_stack(at)
                {
                    let whole = op == if memory.is_64 { 0x3f } else { 0x2b };
                    self.store(at, if whole { t } else { None }, width as u64);
                    if matches!(op, 0x3d | 0x3f | 0x3c) && !memory.is_64 {
                        self.store(at.wrapping_add(4), None, 4);
                    }
                }
                None
            }
            0x00 => match word & 0x3f {
                // addu daddu, or: moves, mostly
                0x20 | 0x21 | 0x2c | 0x2d => s.zip(t).map(|(a, b)| memory.narrow(a.wrapping_add(b))),
                0x25 if rt == 0 => s,
                0x25 if rs == 0 => t,
                0x22 | 0x23 | 0x2e | 0x2f => s.zip(t).map(|(a, b)| memory.narrow(a.wrapping_sub(b))), // subu dsubu
                // dsll dsll32, in a large constant
                0x38 => t.map(|v| v << (word >> 6 & 31)),
                0x3c => t.map(|v| v << ((word >> 6 & 31) + 32)),
                _ => None,
            },
            _ => None,
        };
        let destination = match word >> 26 {
            0x00 => rd,
            _ => rt,
        };
        for r in 1..32 {
            if effects.writes.0 >> r & 1 == 1 {
                let v = if r == destination { value } else { None };
                if r == SP {
                    self.move_stack(v)?;
                }
                if r == RA && !matches!(word >> 26, 0x23 | 0x37) {
                    // From another register: some hand-written code keeps it there.
                    self.ra_slot = None;
                }
                self.regs[r] = v;
            }
        }
        Some(())
    }

    /// May `at` be on this stack? Nothing else is worth a read.
    fn on_stack(&self, at: u64) -> bool {
        self.regs[SP].is_some_and(|sp| at >= sp && at - sp < LARGEST_FRAME)
    }

    fn load(&self, memory: &mut Memory<'_>, at: u64, len: usize) -> Option<u64> {
        match self.stored.iter().rev().find(|s| s.0 == at) {
            Some(s) => s.1,
            None if at.is_multiple_of(len as u64) => memory.data(at, len),
            None => None,
        }
    }

    fn store(&mut self, at: u64, value: Option<u64>, width: u64) {
        // A store of a part spoils the whole.
        let at = at & !(width - 1);
        match self.stored.iter_mut().find(|s| s.0 == at) {
            Some(s) => s.1 = value,
            None => self.stored.push((at, value)),
        }
    }

    /// The stack pointer changes: by a prologue, once and before anything is called, or upwards. An amount that is not
    /// known is an array of variable size (or its end).
    fn move_stack(&mut self, to: Option<u64>) -> Option<()> {
        if let (Some(old), Some(new)) = (self.regs[SP], to) {
            if new < old {
                if self.called {
                    return None;
                }
                self.entered = true;
            }
            if new.abs_diff(old) > LARGEST_FRAME {
                return None;
            }
        }
        Some(())
    }
}

/// What the code before a pc says of its frame.
struct Prologue {
    /// Its first instruction.
    at: u64,
    /// The frame's size.
    size: u64,
    /// Where the return address lies, below the caller's stack pointer.
    ra_below: Option<u64>,
    /// The frame pointer is the stack pointer behind the prologue.
    has_fp: bool,
    /// Behind the last load of `$ra` from the stack before the pc there is no store of it: the pc may be past the
    /// frame's end.
    reloaded: bool,
}

/// How far a word moves the stack pointer down, if that is what it does.
fn allocates(is_64: bool, word: u32) -> Option<u64> {
    let op = if is_64 { 0x67bd_0000 } else { 0x27bd_0000 }; // daddiu, addiu $sp, $sp
    let low = word as u16 as i16;
    (word & 0xffff_0000 == op && low < 0).then(|| u64::from(low.unsigned_abs()))
}

/// `sw $ra, X($sp)`, or with `load` `lw $ra, X($sp)`: X.
fn ra_access(is_64: bool, word: u32, load: bool) -> Option<u64> {
    let op = match (is_64, load) {
        (false, false) => 0xafbf_0000,
        (false, true) => 0x8fbf_0000,
        (true, false) => 0xffbf_0000,
        (true, true) => 0xdfbf_0000,
    };
    (word & 0xffff_0000 == op).then_some(u64::from(word as u16))
}

/// Finds the prologue of the function that `pc` is in.
fn prologue(memory: &mut Memory<'_>, pc: u64) -> Option<Prologue> {
    let is_64 = memory.is_64;
    let lowest = pc.saturating_sub(4 * FARTHEST_PROLOGUE);
    let mut at = pc;
    let size = loop {
        at = at.checked_sub(4).filter(|a| *a >= lowest)?;
        if let Some(n) = allocates(is_64, memory.insn(at)?) {
            break n;
        }
    };
    let mut found = Prologue { at, size, ra_below: None, has_fp: false, reloaded: false };
    read_prologue(memory, &mut found, pc);
    if found.ra_below.is_none() {
        // The second step of a large frame: the registers are saved before it.
        for _ in 0..FARTHEST_STEP {
            at = at.checked_sub(4)?;
            if let Some(n) = allocates(is_64, memory.insn(at)?) {
                let mut whole = Prologue { at, size: n, ra_below: None, has_fp: false, reloaded: false };
                read_prologue(memory, &mut whole, pc);
                if whole.ra_below.is_some() && whole.size == n + size {
                    return Some(whole);
                }
                break;
            }
        }
    }
    Some(found)
}

/// Reads on from a prologue's first instruction.
fn read_prologue(memory: &mut Memory<'_>, p: &mut Prologue, pc: u64) {
    let is_64 = memory.is_64;
    let first = p.size;
    // Constants for the second step of a large frame.
    let mut small = [None; 32];
    small[0] = Some(0u64);
    let mut at = p.at.wrapping_add(4);
    while at < pc {
        let Some(word) = memory.insn(at) else { return };
        let near = at - p.at < 4 * FARTHEST_STEP;
        let (rs, rt, rd) = ((word >> 21 & 31) as usize, (word >> 16 & 31) as usize, (word >> 11 & 31) as usize);
        if let Some(x) = ra_access(is_64, word, false)
            && p.ra_below.is_none()
            && x < first
        {
            p.ra_below = Some(first - x);
            p.reloaded = false;
        } else if ra_access(is_64, word, true).is_some() {
            p.reloaded = true;
        } else if near
            && !p.has_fp
            && let Some(n) = allocates(is_64, word)
        {
            p.size += n;
        } else if near {
            match word >> 26 {
                0x0f => small[rt] = Some(u64::from(word as u16) << 16), // lui
                0x0d => small[rt] = small[rs].map(|v| v | u64::from(word as u16)), // ori
                0x08 | 0x09 | 0x18 | 0x19 if rt != SP => {
                    small[rt] = small[rs].map(|v| v.wrapping_add(word as u16 as i16 as i64 as u64));
                }
                // subu dsubu $sp, $sp, $r
                // (behind the frame pointer it makes an array)
                0x00 if matches!(word & 0x3f, 0x23 | 0x2f) && rs == SP && rd == SP && !p.has_fp => {
                    p.size = p.size.saturating_add(small[rt].unwrap_or(LARGEST_FRAME));
                }
                // addu daddu or: move $fp, $sp
                0x00 if matches!(word & 0x3f, 0x21 | 0x25 | 0x2d) && rs == SP && rt == 0 && rd == FP => p.has_fp = true,
                _ => {}
            }
            small[0] = Some(0);
        }
        at += 4;
    }
}

/// Is `pc` in the same function as the prologue at `start`? A function ends at a return or jump that no branch before it
/// leads past.
fn same_function(memory: &mut Memory<'_>, start: u64, pc: u64) -> bool {
    let mut reach = start;
    let mut at = start;
    while at < pc {
        let Some(word) = memory.insn(at) else { return false };
        let b = classify(word);
        if b.link.is_none() && b.has_delay_slot() {
            if let Some(t) = b.target(memory.is_64, at).filter(|t| *t > at) {
                reach = reach.max(t);
            }
            let ends = match b.kind {
                Kind::Always => true,
                // By another register it is a table's jump, whose targets are not known.
                Kind::Register => matches!(b.register, 25 | 31),
                _ => false,
            };
            let behind = at.wrapping_add(8);
            if ends && reach < behind && behind <= pc {
                return false;
            }
        }
        at += 4;
    }
    true
}

/// Does the code before the pc say the same as the code behind it?
fn check(memory: &mut Memory<'_>, pc: u64, regs: &[Option<u64>; 32], exact: bool, exit: &Exit) -> Option<()> {
    let sp = regs[SP]?;
    let alignment = if memory.is_64 { 16 } else { 8 };
    if exit.sp < sp || exit.sp - sp > LARGEST_FRAME || !exit.sp.is_multiple_of(alignment) || !exit.pc.is_multiple_of(4)
    {
        return None;
    }
    let found = prologue(memory, pc).filter(|p| same_function(memory, p.at, pc));
    let Some(p) = found else {
        // Without a prologue, only a function that was just entered, or that has no frame at all.
        return (exact && (exit.entered || exit.ra_slot.is_none() && exit.sp == sp)).then_some(());
    };
    let of_stack = exit.sp == sp.wrapping_add(p.size);
    let of_pointer = p.has_fp && regs[FP].is_some_and(|fp| fp >= sp && exit.sp == fp.wrapping_add(p.size));
    let slot = p.ra_below.and_then(|b| exit.sp.checked_sub(b));
    match exit.ra_slot {
        // In the middle of the prologue.
        Some(_) if !exit.entered && exact && exit.ra_stored && p.ra_below.is_none() => of_stack.then_some(()),
        // The usual case: made by this prologue, and undone behind the pc.
        Some(at) if !exit.entered => ((of_stack || of_pointer) && slot == Some(at)).then_some(()),
        // A frame that is still to be made.
        Some(_) => exact.then_some(()),
        None if !exact => None,
        // $ra still, or again, holds the return address: before it was saved, or past the frame's end. A return address
        // into the function itself is that of a call it made.
        None => {
            let own = exit.pc >= p.at && exit.pc <= pc.wrapping_add(4 * FARTHEST_PROLOGUE);
            let unsaved = p.ra_below.is_none() && (of_stack || exit.sp == sp);
            let past = p.reloaded && (of_stack || exit.sp == sp);
            (!own && (unsaved || past)).then_some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const CODE: u64 = 0x40_1000;
    const STACK: u64 = 0x7fff_0000;
    /// Where all that is followed returns to: behind `jal 0x401000; nop`.
    const CALLER: u64 = 0x40_0008;

    struct Machine {
        words: Vec<(u64, u32)>,
        stack: Vec<(u64, u64)>,
        is_64: bool,
    }

    fn machine(is_64: bool, code: &[u32]) -> Machine {
        let mut words: Vec<(u64, u32)> = (0..).map(|i| CODE + 4 * i).zip(code.iter().copied()).collect();
        words.extend([(CALLER - 8, 0x0c10_0400), (CALLER - 4, 0)]);
        Machine { words, stack: Vec::new(), is_64 }
    }

    impl Machine {
        /// Big-endian memory; blocks of code are zero where there is none, the stack is unreadable there.
        fn read(&self, at: u64, out: &mut [u8]) -> bool {
            if at >= STACK {
                let Some(s) = self.stack.iter().find(|s| s.0 == at) else { return false };
                let bytes = s.1.to_be_bytes();
                out.copy_from_slice(&bytes[8 - out.len()..]);
                return true;
            }
            for (i, b) in out.iter_mut().enumerate() {
                let here = at + i as u64;
                let word = self.words.iter().find(|w| w.0 == here & !3);
                *b = word.map_or(0, |w| w.1.to_be_bytes()[(here & 3) as usize]);
            }
            true
        }
        fn step(&self, pc: u64, exact: bool, set: &[(u8, u64)]) -> Option<(u64, u64)> {
            self.out(pc, exact, set).map(|f| (f.regs.get(PC), f.regs.get(SP as u8)))
        }
        fn out(&self, pc: u64, exact: bool, set: &[(u8, u64)]) -> Option<Frame> {
            let mut frame = Frame { regs: Registers::ZERO, known: 1 << PC | 1 << SP, exact };
            frame.regs.set(PC, pc);
            frame.regs.set(SP as u8, STACK);
            for &(r, v) in set {
                frame.regs.set(r, v);
                frame.known |= 1 << r;
            }
            step_out(self.is_64, Endian::Big, &frame, &mut |at, out| self.read(at, out))
        }
    }

    /// `addiu sp, -32; sw ra, 28(sp); jal; nop; lw ra, 28(sp); jr ra; addiu sp, 32`
    const FRAMED: [u32; 7] = [0x27bd_ffe0, 0xafbf_001c, 0x0c10_0800, 0, 0x8fbf_001c, 0x03e0_0008, 0x27bd_0020];

    #[test]
    fn a_function_with_a_frame() {
        let mut m = machine(false, &FRAMED);
        let ra = [(31, CALLER)];
        assert_eq!(m.step(CODE, true, &ra), Some((CALLER, STACK)), "at its entry");
        assert_eq!(m.step(CODE + 4, true, &ra), Some((CALLER, STACK + 32)), "before $ra is saved");
        m.stack.push((STACK + 28, CALLER));
        assert_eq!(m.step(CODE + 16, false, &[]), Some((CALLER, STACK + 32)), "waiting for a callee");
        assert_eq!(m.step(CODE + 20, true, &ra), Some((CALLER, STACK + 32)), "about to return");
        // What lies there is no return address.
        m.stack = std::vec![(STACK + 28, CALLER + 0x100)];
        assert_eq!(m.step(CODE + 16, false, &[]), None);
        m.stack.clear();
        assert_eq!(m.step(CODE + 16, false, &[]), None, "unreadable");
    }

    #[test]
    fn a_function_without_a_frame() {
        let m = machine(false, &[0x2442_0001, 0x1440_fffe, 0, 0x03e0_0008, 0]); // a loop, then jr ra
        assert_eq!(m.step(CODE, true, &[(31, CALLER)]), Some((CALLER, STACK)));
        assert_eq!(m.step(CODE + 8, false, &[(31, CALLER)]), None, "it calls nobody");
        assert_eq!(m.step(CODE, true, &[]), None, "$ra is not known");
    }

    #[test]
    fn a_call_that_does_not_return_leads_nowhere() {
        // addiu sp, -32; sw ra, 28(sp); jal; nop; and what is behind belongs to somebody else:
        // lw ra, 60(sp); jr ra; addiu sp, 64
        let mut m = machine(false, &[0x27bd_ffe0, 0xafbf_001c, 0x0c10_0800, 0, 0x8fbf_003c, 0x03e0_0008, 0x27bd_0040]);
        m.stack = std::vec![(STACK + 28, CALLER), (STACK + 60, CALLER)];
        assert_eq!(m.step(CODE + 16, false, &[]), None);
        // b .: nobody gets out of there.
        let m = machine(false, &[0x27bd_ffe0, 0xafbf_001c, 0x0c10_0800, 0, LOOP, 0]);
        assert_eq!(m.step(CODE + 16, false, &[]), Some((0, STACK)));
    }

    #[test]
    fn a_frame_pointer_outlives_an_array() {
        // addiu sp, -32; sw ra, 28(sp); sw fp, 24(sp); move fp, sp; subu sp, sp, v0; jal; nop;
        // move sp, fp; lw ra, 28(sp); lw fp, 24(sp); jr ra; addiu sp, 32
        let code = [
            0x27bd_ffe0,
            0xafbf_001c,
            0xafbe_0018,
            0x03a0_f025,
            0x03a2_e823,
            0x0c10_0800,
            0,
            0x03c0_e825,
            0x8fbf_001c,
            0x8fbe_0018,
            0x03e0_0008,
            0x27bd_0020,
        ];
        let mut m = machine(false, &code);
        m.stack = std::vec![(STACK + 0x11c, CALLER), (STACK + 0x118, 0x1234)];
        let up = m.out(CODE + 28, false, &[(30, STACK + 0x100)]).expect("by the frame pointer");
        assert_eq!((up.regs.get(PC), up.regs.get(29), up.regs.get(30)), (CALLER, STACK + 0x120, 0x1234));
        assert_eq!(m.step(CODE + 28, false, &[]), None);
    }

    #[test]
    fn n64_frames() {
        // daddiu sp, -32; sd ra, 24(sp); jal; nop; ld ra, 24(sp); jr ra; daddiu sp, 32
        let mut m = machine(true, &[0x67bd_ffe0, 0xffbf_0018, 0x0c10_0800, 0, 0xdfbf_0018, 0x03e0_0008, 0x67bd_0020]);
        m.stack.push((STACK + 24, CALLER));
        assert_eq!(m.step(CODE + 16, false, &[]), Some((CALLER, STACK + 32)));
    }

    #[test]
    fn signal_frames() {
        // What the kernel would restore from is what the back end builds such frames of.
        for (is_64, li) in [(false, LI_V0 | 4193), (true, LI_V0 | 5211)] {
            let mut regs = Registers::ZERO;
            (1..32u8).for_each(|r| regs.set(r, 0x1000 * u64::from(r)));
            regs.set(SP as u8, STACK + 0x4000);
            regs.set(PC, 0x40_1234);
            let arch = if is_64 { &crate::MIPS64 } else { &crate::MIPS };
            let built = tigerfix_core::arch::Arch::rescue_frame(arch, &regs, &[], 0).expect("a frame");
            let mut m = machine(is_64, &[li, SYSCALL]);
            let (words, _) = built.bytes.as_chunks::<8>();
            m.stack = (0..).map(|i| built.at + 8 * i).zip(words.iter().map(|w| u64::from_be_bytes(*w))).collect();
            for (pc, exact) in [(CODE, false), (CODE, true), (CODE + 4, true)] {
                let up = m.out(pc, exact, &[(29, built.at)]).expect("the interrupted frame");
                assert!(up.exact);
                assert_eq!((up.regs.get(PC), up.regs.get(29)), (0x40_1234, STACK + 0x4000));
                assert!((1..29).all(|r| up.regs.get(r) == 0x1000 * u64::from(r)));
            }
        }
    }
}
