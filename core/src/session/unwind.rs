//! Exact unwinding by call frame information (DWARF 5 section 6.4, LSB `.eh_frame_hdr`), read from the target's memory;
//! where a module has none for a pc, by what the back end makes of the code itself.

use crate::addr::RunAddr;
use crate::arch::{self, Arch, RegisterLayout, Registers};
use crate::field::{Endian, load};
use crate::program::Program;
use crate::session::modules::Module;
use crate::target::{Mapping, Target};
use alloc::{boxed::Box, collections::BTreeMap, vec, vec::Vec};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, EvaluationResult, Location, Pointer, Register,
    RegisterRule, RunTimeEndian, UnwindContext, UnwindExpression, UnwindSection as _, UnwindTableRow, Value,
};

/// Deeper stacks than this are not followed.
const MAX_FRAMES: usize = 4096;
/// More unwind information than any real module has.
const MAX_CFI: u64 = 256 << 20;

type Slice<'a> = EndianSlice<'a, RunTimeEndian>;

/// One frame of a thread's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The pc (innermost frame) or the return address.
    pub pc: RunAddr,
    /// `pc` is where execution goes on (innermost frame, or interrupted by a signal) rather than a return address.
    pub exact: bool,
}

/// The frames of a thread.
#[derive(Clone, Debug)]
pub struct Backtrace {
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// The outermost frame was reached: no frame is missing.
    pub complete: bool,
    /// The stack pointer of the last frame: all that lies below it, on this stack and on those that the walk came over,
    /// is explained.
    pub explained: RunAddr,
    /// The link register of the last frame, where that frame may not have saved it yet and its value is known.
    pub link: Option<u64>,
}

/// Unwind information of one module.
struct Cfi {
    /// `.eh_frame` and its address.
    frame: (Vec<u8>, u64),
    /// How to find the entry of an address in it.
    lookup: Lookup,
}

/// A search table over `.eh_frame`.
enum Lookup {
    /// The module's own: `.eh_frame_hdr` and its address.
    Header(Vec<u8>, u64),
    /// Made here, for modules without one (statically linked programs): (first address, size, offset), ascending.
    Index(Vec<(u64, u64, usize)>),
}

/// Unwind information of one applied patch.
struct PatchCfi {
    /// Its image.
    code: (RunAddr, RunAddr),
    /// Its `.eh_frame`: address and size.
    eh_frame: (RunAddr, u64),
    /// Contents, once read.
    bytes: Option<Vec<u8>>,
}

/// Size of the pieces that memory is read in while code is followed; divides every page size, and is not much for a slow
/// line.
const PIECE: usize = 256;

/// Unwinds threads of a target; keeps what it read of each module.
pub struct Unwinder<'m> {
    modules: &'m [Module],
    arch: &'m dyn Arch,
    /// See [`return_bits`].
    return_bits: u64,
    layout: &'static RegisterLayout,
    /// Pieces of memory that were read since the target was stopped, by address.
    pieces: BTreeMap<u64, [u8; PIECE]>,
    endian: RunTimeEndian,
    is_64: bool,
    cfi: Vec<Option<Option<Cfi>>>,
    patches: Vec<PatchCfi>,
}

impl<'m> Unwinder<'m> {
    /// For a target with these modules and mappings.
    #[must_use]
    pub fn new(modules: &'m [Module], arch: &'m dyn Arch, mappings: &[Mapping]) -> Unwinder<'m> {
        let (layout, endian) = (arch.registers(), arch.data_endian());
        Unwinder {
            modules,
            arch,
            return_bits: return_bits(arch, mappings),
            layout,
            pieces: BTreeMap::new(),
            endian: if endian == Endian::Big { RunTimeEndian::Big } else { RunTimeEndian::Little },
            is_64: arch.address_bits() == 64,
            cfi: modules.iter().map(|_| None).collect(),
            patches: Vec::new(),
        }
    }

    /// Makes the code of an applied patch known: its image range, and its `.eh_frame` (address, size).
    pub fn add_patch(&mut self, image: (RunAddr, RunAddr), eh_frame: (RunAddr, u64)) {
        self.patches.push(PatchCfi { code: image, eh_frame, bytes: None });
    }

    /// Reads what takes long to read, before anybody is stopped: the tables of modules that have no search table.
    pub fn prepare(&mut self, target: &mut dyn Target) {
        let word = if self.is_64 { 8 } else { 4 };
        for (cfi, module) in self.cfi.iter_mut().zip(self.modules) {
            if module.eh_frame_hdr.is_none() && cfi.is_none() {
                *cfi = Some(read_cfi(target, module, self.endian, word));
            }
        }
    }

    /// The target has run: what was read of its memory may have changed.
    pub fn forget(&mut self) {
        self.pieces.clear();
    }

    /// An address as wide as the architecture's: registers of a 32-bit program may be sign-extended.
    fn narrow(&self, v: u64) -> u64 {
        if self.is_64 { v } else { u64::from(v as u32) }
    }

    /// Unwinds a stopped thread.
    pub fn backtrace(&mut self, target: &mut dyn Target, regs: &Registers) -> Backtrace {
        let mut state = State { values: [None; 256] };
        for &(dwarf, index) in self.layout.dwarf {
            state.set(dwarf, Some(self.narrow(regs.get(index))));
        }
        let mut frames = vec![Frame { pc: RunAddr(self.narrow(regs.get(self.layout.pc))), exact: true }];
        let mut sp = self.narrow(regs.get(self.layout.sp));
        let mut complete = false;
        while frames.len() < MAX_FRAMES {
            let Some(&frame) = frames.last() else { break };
            let lookup = if frame.exact { frame.pc.0 } else { frame.pc.0.wrapping_sub(1) };
            let step = match self.step(target, &mut state, lookup, frame.exact) {
                Some(step) => Some(step),
                None => self.step_by_code(target, &mut state, frame, sp),
            };
            match step {
                Some(Step::End) => {
                    complete = true;
                    break;
                }
                Some(Step::Caller { pc, cfa, signal }) => {
                    // A caller's frame lies above its callee's, except across a signal frame on another stack.
                    if !signal && cfa < sp || cfa == sp && pc == frame.pc.0 {
                        break;
                    }
                    sp = cfa;
                    if pc == 0 {
                        complete = true;
                        break;
                    }
                    frames.push(Frame { pc: RunAddr(pc), exact: signal });
                }
                None => break,
            }
        }
        let link = frames.last().filter(|f| f.exact && self.layout.ra.is_some());
        let link = link.and_then(|_| state.get(self.layout.dwarf_ra));
        Backtrace { frames, complete, explained: RunAddr(sp), link }
    }

    /// Steps out of a frame for which there is no table.
    fn step_by_code(&mut self, target: &mut dyn Target, state: &mut State, frame: Frame, sp: u64) -> Option<Step> {
        let mut here = arch::Frame { regs: Registers::ZERO, known: 0, exact: frame.exact };
        let mut set = |r: arch::Reg, v: u64| {
            here.regs.set(r, v);
            here.known |= 1u128 << r;
        };
        for &(dwarf, index) in self.layout.dwarf {
            if let Some(v) = state.get(dwarf) {
                set(index, v);
            }
        }
        set(self.layout.sp, sp);
        set(self.layout.pc, frame.pc.0);
        let pieces = &mut self.pieces;
        let up = self.arch.step_out(&here, &mut |at, out| {
            let start = at & !(PIECE as u64 - 1);
            let offset = (at - start) as usize;
            let within = offset + out.len() <= PIECE;
            if within && !pieces.contains_key(&start) {
                let mut bytes = [0; PIECE];
                if target.read(RunAddr(start), &mut bytes).is_ok() {
                    pieces.insert(start, bytes);
                }
            }
            match pieces.get(&start).filter(|_| within) {
                Some(bytes) => {
                    out.copy_from_slice(&bytes[offset..offset + out.len()]);
                    true
                }
                None => target.read(RunAddr(at), out).is_ok(),
            }
        })?;
        let known = |r: arch::Reg| up.known >> r & 1 == 1;
        if !known(self.layout.pc) || !known(self.layout.sp) {
            return None;
        }
        for &(dwarf, index) in self.layout.dwarf {
            state.set(dwarf, known(index).then(|| up.regs.get(index)));
        }
        Some(Step::Caller { pc: up.regs.get(self.layout.pc), cfa: up.regs.get(self.layout.sp), signal: up.exact })
    }

    fn step(&mut self, target: &mut dyn Target, state: &mut State, pc: u64, exact: bool) -> Option<Step> {
        let word = if self.is_64 { 8 } else { 4 };
        let mut ctx = Box::new(UnwindContext::new());
        let at = RunAddr(pc);
        if let Some(i) = self.modules.iter().position(|m| m.contains(at)) {
            if self.cfi[i].is_none() {
                self.cfi[i] = Some(read_cfi(target, &self.modules[i], self.endian, word));
            }
            let cfi = self.cfi[i].as_ref()?.as_ref()?;
            let mut section = EhFrame::new(&cfi.frame.0, self.endian);
            section.set_address_size(word);
            section.set_vendor(self.arch.unwind_vendor());
            let mut bases = BaseAddresses::default().set_eh_frame(cfi.frame.1);
            let fde = match &cfi.lookup {
                Lookup::Header(bytes, at) => {
                    bases = bases.set_eh_frame_hdr(*at);
                    let hdr = EhFrameHdr::new(bytes, self.endian).parse(&bases, word).ok()?;
                    hdr.table()?.fde_for_address(&section, &bases, pc, EhFrame::cie_from_offset).ok()?
                }
                Lookup::Index(index) => {
                    let next = index.partition_point(|e| e.0 <= pc);
                    let (start, size, offset) = *index[..next].last()?;
                    if pc - start >= size {
                        return None;
                    }
                    section.fde_from_offset(&bases, offset.into(), EhFrame::cie_from_offset).ok()?
                }
            };
            let row = fde.unwind_info_for_address(&section, &bases, &mut ctx, pc).ok()?.clone();
            let signal = fde.is_signal_trampoline();
            return self.apply(target, state, &section, &row, signal, exact, pc);
        }
        let i = self.patches.iter().position(|p| p.code.0 <= at && at < p.code.1)?;
        let PatchCfi { eh_frame: (addr, size), bytes, .. } = &mut self.patches[i];
        if *size == 0 {
            return None;
        }
        if bytes.is_none() {
            let mut b = vec![0u8; usize::try_from((*size).min(MAX_CFI)).ok()?];
            target.read(*addr, &mut b).ok()?;
            *bytes = Some(b);
        }
        let (addr, bytes) = (addr.0, bytes.clone()?);
        let mut section = EhFrame::new(&bytes, self.endian);
        section.set_address_size(word);
        section.set_vendor(self.arch.unwind_vendor());
        let bases = BaseAddresses::default().set_eh_frame(addr);
        let fde = section.fde_for_address(&bases, pc, EhFrame::cie_from_offset).ok()?;
        let row = fde.unwind_info_for_address(&section, &bases, &mut ctx, pc).ok()?.clone();
        let signal = fde.is_signal_trampoline();
        self.apply(target, state, &section, &row, signal, exact, pc)
    }

    /// Computes the caller's registers from a row of the unwind table.
    #[allow(clippy::too_many_arguments)] // a row, and where it was found
    fn apply(
        &self,
        target: &mut dyn Target,
        state: &mut State,
        section: &EhFrame<Slice<'_>>,
        row: &UnwindTableRow<usize>,
        signal: bool,
        exact: bool,
        here: u64,
    ) -> Option<Step> {
        let word = if self.is_64 { 8 } else { 4 };
        let mut read = |at: u64| {
            let mut b = [0u8; 8];
            target.read(RunAddr(at), &mut b[..word]).ok()?;
            let e = if self.endian == RunTimeEndian::Big { Endian::Big } else { Endian::Little };
            Some(load(&b[..word], e))
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => state.get(register.0)?.wrapping_add(*offset as u64),
            CfaRule::Expression(e) => evaluate(e, section, state, None, word, &mut read)?,
        };
        let mut next = State { values: state.values };
        let sp = self.layout.dwarf.iter().find(|d| d.1 == self.layout.sp).map(|d| d.0);
        if let Some(sp) = sp {
            next.set(sp, Some(cfa));
        }
        let mut ra = RegisterRule::Undefined;
        let mut ra_seen = false;
        for (register, rule) in row.registers() {
            if register.0 == self.layout.dwarf_ra {
                ra = rule.clone();
                ra_seen = true;
            }
            let value = match rule {
                RegisterRule::Undefined => None,
                RegisterRule::SameValue => state.get(register.0),
                RegisterRule::Offset(n) => Some(read(cfa.wrapping_add(*n as u64))?),
                RegisterRule::ValOffset(n) => Some(cfa.wrapping_add(*n as u64)),
                RegisterRule::Register(r) => state.get(r.0),
                RegisterRule::Expression(e) => Some({
                    let at = evaluate(e, section, state, Some(cfa), word, &mut read)?;
                    read(at)?
                }),
                RegisterRule::ValExpression(e) => Some(evaluate(e, section, state, Some(cfa), word, &mut read)?),
                // A register that only tables know.
                RegisterRule::Constant(v) => Some(*v),
                _ => return None,
            };
            next.set(register.0, value);
        }
        // An undefined return address marks the outermost frame (glibc's _start and clone say so). Where the return
        // address lives in a register and no rule names it, it is still there.
        let in_register = self.layout.ra.is_some() && !ra_seen;
        // But not in a frame that waits for a callee: that is a table without content, as of hand-written code.
        if in_register && !exact {
            return None;
        }
        if matches!(ra, RegisterRule::Undefined) && !in_register {
            return Some(Step::End);
        }
        let pc = plain(next.get(self.layout.dwarf_ra)?, here, self.return_bits);
        next.set(self.layout.dwarf_ra, Some(pc));
        *state = next;
        Some(Step::Caller { pc, cfa, signal })
    }
}

/// The bits of a return address that are its own ([`Arch::return_address_bits`]) in a target with these mappings: how many its
/// system leaves to addresses shows in how high they go.
#[must_use]
pub fn return_bits(arch: &dyn Arch, mappings: &[Mapping]) -> u64 {
    let bits = arch.return_address_bits();
    match mappings.iter().map(|m| m.end.0).max() {
        // Nothing is signed, or nothing known.
        Some(end) if bits != u64::MAX && end > 0 => bits & (u64::MAX >> (end - 1).leading_zeros()),
        _ => bits,
    }
}

/// The address that a stored return address means, of which only `bits` are its own; the others are as in `near`.
pub(super) fn plain(value: u64, near: u64, bits: u64) -> u64 {
    value & bits | near & !bits
}

enum Step {
    End,
    Caller { pc: u64, cfa: u64, signal: bool },
}

/// Registers by DWARF number; `None`: not known in this frame.
struct State {
    values: [Option<u64>; 256],
}

impl State {
    fn get(&self, dwarf: u16) -> Option<u64> {
        self.values.get(usize::from(dwarf)).copied().flatten()
    }
    fn set(&mut self, dwarf: u16, value: Option<u64>) {
        if let Some(v) = self.values.get_mut(usize::from(dwarf)) {
            *v = value;
        }
    }
}

fn read_cfi(target: &mut dyn Target, module: &Module, endian: RunTimeEndian, word: u8) -> Option<Cfi> {
    let Some((at, size)) = module.eh_frame_hdr else {
        let (at, size) = section_from_file(target, module)?;
        let mut bytes = vec![0u8; usize::try_from(size.min(MAX_CFI)).ok()?];
        target.read(RunAddr(at), &mut bytes).ok()?;
        let lookup = index(&bytes, at, endian, word);
        return Some(Cfi { frame: (bytes, at), lookup });
    };
    let mut hdr = vec![0u8; usize::try_from(size.min(MAX_CFI)).ok()?];
    target.read(at, &mut hdr).ok()?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(at.0);
    let parsed = EhFrameHdr::new(&hdr, endian).parse(&bases, word).ok()?;
    let Pointer::Direct(frame) = parsed.eh_frame_ptr() else { return None };
    let has_table = parsed.table().is_some();
    let end = module.loads.iter().find(|(lo, hi)| *lo <= RunAddr(frame) && RunAddr(frame) < *hi)?.1;
    let mut bytes = vec![0u8; usize::try_from((end.0 - frame).min(MAX_CFI)).ok()?];
    target.read(RunAddr(frame), &mut bytes).ok()?;
    let lookup = if has_table { Lookup::Header(hdr, at.0) } else { index(&bytes, frame, endian, word) };
    Some(Cfi { frame: (bytes, frame), lookup })
}

/// Address and size of `.eh_frame` by the section headers, which only the file has.
fn section_from_file(target: &mut dyn Target, module: &Module) -> Option<(u64, u64)> {
    let file = target.mappings()?.file(&module.mapping).ok()?;
    let program = Program::parse(&file).ok()?;
    let section = program.section(".eh_frame")?;
    Some((section.addr.at(module.bias).0, section.size))
}

/// A search table over all entries; what can't be read is left out.
fn index(bytes: &[u8], at: u64, endian: RunTimeEndian, word: u8) -> Lookup {
    let mut section = EhFrame::new(bytes, endian);
    section.set_address_size(word);
    let bases = BaseAddresses::default().set_eh_frame(at);
    let mut entries = section.entries(&bases);
    let mut out = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
        {
            out.push((fde.initial_address(), fde.len(), fde.offset()));
        }
    }
    out.sort_unstable();
    Lookup::Index(out)
}

fn evaluate(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Slice<'_>>,
    state: &State,
    initial: Option<u64>,
    word: usize,
    read: &mut dyn FnMut(u64) -> Option<u64>,
) -> Option<u64> {
    let expression = expression.get(section).ok()?;
    let encoding = gimli::Encoding { address_size: word as u8, format: gimli::Format::Dwarf32, version: 5 };
    let mut eval = expression.evaluation(encoding);
    eval.set_max_iterations(10_000);
    if let Some(v) = initial {
        eval.set_initial_value(v);
    }
    let mut result = eval.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register: Register(r), .. } => {
                eval.resume_with_register(Value::Generic(state.get(r)?)).ok()?
            }
            EvaluationResult::RequiresMemory { address, .. } => {
                eval.resume_with_memory(Value::Generic(read(address)?)).ok()?
            }
            _ => return None,
        };
    }
    match eval.as_result().last()?.location {
        Location::Address { address } => Some(address),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_taken_off_return_addresses() {
        let bits = (1 << 48) - 1;
        assert_eq!(plain(0x3d00_5555_5555_1234, 0x5555_0000_0000, bits), 0x5555_5555_1234);
        assert_eq!(plain(0x1234_8000_0000_1234, 0xffff_8000_0000_0000, bits), 0xffff_8000_0000_1234);
        assert_eq!(plain(0x3d00_5555_5555_1234, 0x5555_0000_0000, u64::MAX), 0x3d00_5555_5555_1234);
    }
}
