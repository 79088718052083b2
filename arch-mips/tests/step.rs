//! The way out of a frame without an unwind table, against the unwind tables of compiled code: at every instruction of
//! every function, as if a thread had been stopped there, and at every return address, as if it waited for a callee.
//!
//! Registers and stack are made up so that they fit the table's row; all that the row does not speak of is filled with
//! what misleads most: addresses of other calls.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, Register, RegisterRule, RunTimeEndian, UnwindContext,
    UnwindSection,
};
use object::{Object, ObjectSection, ObjectSegment};
use std::collections::HashMap;
use tigerfix_arch_mips::flow::{Kind, classify, step_out};
use tigerfix_core::arch::{Frame, Registers};
use tigerfix_core::field::{Endian, store};

const PC: u8 = 34;

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    agree: usize,
    none: usize,
    disagree: usize,
}

#[derive(Debug, Default)]
struct Counts {
    exact: Count,
    returns: Count,
}

struct Code<'d> {
    is_64: bool,
    endian: Endian,
    segments: Vec<(u64, &'d [u8])>,
    /// Addresses behind calls.
    behind_calls: Vec<u64>,
}

impl Code<'_> {
    fn read(&self, at: u64, out: &mut [u8]) -> bool {
        self.segments.iter().any(|(base, bytes)| {
            let Some(from) = at.checked_sub(*base).map(|o| o as usize) else { return false };
            let Some(part) = bytes.get(from..from + out.len()) else { return false };
            out.copy_from_slice(part);
            true
        })
    }
    /// Does the instruction at `at` save or restore a register in the frame: sw, lw, sd, ld of $s0 to $s7, $fp, $ra?
    fn moves_saved(&self, at: u64) -> bool {
        self.word(at).is_some_and(|w| {
            matches!(w >> 21, 0x57d | 0x47d | 0x7fd | 0x6fd) && matches!(w >> 16 & 31, 16..=23 | 30 | 31)
        })
    }
    /// Are registers saved or restored shortly before `at`? Tables tell of that some instructions late.
    fn near_moves(&self, function: (u64, u64), at: u64) -> bool {
        let near = at.saturating_sub(4 * 24).max(function.0)..=at;
        let slots = (function.0..function.1).step_by(4).filter(|a| {
            let branch = self.word(*a).map(classify).filter(|b| b.has_delay_slot() && b.link.is_none());
            let target = branch.and_then(|b| b.target(self.is_64, *a));
            target.is_some_and(|t| near.contains(&t)) && self.moves_saved(a + 4)
        });
        (*near.start()..at).step_by(4).any(|a| self.moves_saved(a)) || slots.count() > 0
    }
    fn word(&self, at: u64) -> Option<u32> {
        let mut b = [0; 4];
        self.read(at, &mut b)
            .then(|| if self.endian == Endian::Big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) })
    }
}

/// A number that looks random.
fn scramble(n: u64) -> u64 {
    let mut x = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn compare(data: &[u8], every: usize) -> Counts {
    let file = object::File::parse(data).expect("an ELF file");
    let is_64 = file.is_64();
    let endian = if file.is_little_endian() { Endian::Little } else { Endian::Big };
    let runtime = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
    let segments = file.segments().filter_map(|s| Some((s.address(), s.data().ok()?))).collect();
    let mut code = Code { is_64, endian, segments, behind_calls: vec![] };
    for s in file.sections().filter(|s| s.name() == Ok(".text")) {
        for at in (s.address()..s.address() + s.size()).step_by(4) {
            if code.word(at).map(classify).is_some_and(|b| b.link == Some(31) && b.has_delay_slot()) {
                code.behind_calls.push(at + 8);
            }
        }
    }
    let section = file.section_by_name(".eh_frame").expect("an unwind table");
    let bytes = section.uncompressed_data().expect("its contents");
    let mut eh = EhFrame::from(EndianSlice::new(&bytes, runtime));
    eh.set_address_size(if is_64 { 8 } else { 4 });
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let mut entries = eh.entries(&bases);
    let mut counts = Counts::default();
    let mut shown = 0;
    let mut n = 0;
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(fde) = partial.parse(|_, bases, offset| eh.cie_from_offset(bases, offset)) else { continue };
        let (start, end) = (fde.initial_address(), fde.initial_address() + fde.len());
        // Where the function saves the return address, below its caller's stack pointer.
        let mut slot = HashMap::new();
        let mut table = 0;
        let mut ctx = UnwindContext::new();
        let mut rows = fde.rows(&eh, &bases, &mut ctx).expect("rows");
        while let Ok(Some(row)) = rows.next_row() {
            table += 1;
            for (register, rule) in row.registers() {
                if let RegisterRule::Offset(n) = rule {
                    slot.insert(usize::from(register.0), *n);
                }
            }
        }
        let moves = (start..end).step_by(4).any(|at| code.word(at).is_some_and(|w| matches!(w >> 16, 0x27bd | 0x67bd)));
        if table < 2 && moves {
            continue; // assembly without a real table
        }
        for at in (start..end).step_by(4) {
            n += 1;
            if n % every != 0 {
                continue;
            }
            let in_slot = at > start && code.word(at - 4).map(classify).is_some_and(|b| b.has_delay_slot());
            let behind_call = at > start + 4 && code.behind_calls.binary_search(&at).is_ok();
            // Filler behind a jump or return; nobody gets there.
            let filler = code.word(at) == Some(0)
                && at > start + 4
                && code
                    .word(at - 8)
                    .map(classify)
                    .is_some_and(|b| b.link.is_none() && matches!(b.kind, Kind::Always | Kind::Register));
            for exact in [true, false] {
                if exact && (in_slot || filler) || !exact && !behind_call {
                    continue;
                }
                let mut ctx = UnwindContext::new();
                let lookup = if exact { at } else { at - 1 };
                let Ok(row) = fde.unwind_info_for_address(&eh, &bases, &mut ctx, lookup) else { continue };
                let both = judge(&code, (start, end), at, exact, row, &slot, true);
                // Where the value is nowhere but in the place that the table names.
                let one = if code.near_moves((start, end), at) {
                    None
                } else {
                    judge(&code, (start, end), at, exact, row, &slot, false)
                };
                let outcome = match (both, one) {
                    (None, _) => continue,
                    (Some(Outcome::Disagree(why)), _) | (_, Some(Outcome::Disagree(why))) => Outcome::Disagree(why),
                    (Some(Outcome::None), _) | (_, Some(Outcome::None)) => Outcome::None,
                    _ => Outcome::Agree,
                };
                let count = if exact { &mut counts.exact } else { &mut counts.returns };
                match outcome {
                    Outcome::Agree => count.agree += 1,
                    Outcome::None => {
                        count.none += 1;
                    }
                    Outcome::Disagree(why) => {
                        count.disagree += 1;
                        shown += 1;
                        if shown < 20 {
                            println!("{at:#x} (function {start:#x}, exact {exact}): {why}");
                        }
                    }
                }
            }
        }
    }
    counts
}

enum Outcome {
    Agree,
    None,
    Disagree(String),
}

fn judge(
    code: &Code<'_>,
    function: (u64, u64),
    at: u64,
    exact: bool,
    row: &gimli::UnwindTableRow<usize>,
    saved_at: &HashMap<usize, i64>,
    both: bool,
) -> Option<Outcome> {
    let word = if code.is_64 { 8u64 } else { 4 };
    let sp = if code.is_64 { 0xff_ffe0_0000u64 } else { 0x7fe0_0000 };
    // Addresses that returns may go to: any but those in the function itself for the true one.
    let far = |n: u64| {
        let calls = &code.behind_calls;
        let i = scramble(n) as usize % calls.len();
        (0..calls.len()).map(|k| calls[(i + k) % calls.len()]).find(|c| !(function.0..=function.1).contains(c))
    };
    let inside = code.behind_calls.partition_point(|c| *c < function.0);
    let stale = code.behind_calls.get(inside).filter(|c| **c <= function.1).copied();
    let ra = far(at)?;
    let mut regs = [0u64; 32];
    for (r, v) in regs.iter_mut().enumerate().skip(1) {
        *v = scramble(at ^ r as u64) & 0x7fff_fff8;
    }
    regs[29] = sp;
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: Register(29), offset } => sp.wrapping_add_signed(*offset),
        CfaRule::RegisterAndOffset { register: Register(30), offset } => {
            regs[30] = sp + 0x240;
            regs[30].wrapping_add_signed(*offset)
        }
        _ => return None,
    };
    let mut expected = regs;
    let mut memory: HashMap<u64, u64> = HashMap::new();
    let mut ra_rule = false;
    for (register, rule) in row.registers() {
        let r = usize::from(register.0);
        match rule {
            RegisterRule::Offset(n) if r < 32 => {
                let value = if r == 31 { ra } else { scramble(at + register.0 as u64) & 0x7fff_fff0 };
                memory.insert(cfa.wrapping_add_signed(*n), value);
                expected[r] = value;
                ra_rule |= r == 31;
            }
            RegisterRule::SameValue => {}
            // The outermost frame, or something that is not in the tables of compiled functions.
            _ if r == 31 => return None,
            _ => {}
        }
    }
    if !ra_rule && !exact {
        return None;
    }
    regs[31] = if ra_rule && !both { stale.or_else(|| far(at + 7))? } else { ra };
    if both && cfa > sp {
        expected[31] = ra;
        for (&r, &n) in saved_at.iter().filter(|s| *s.0 < 32) {
            memory.insert(cfa.wrapping_add_signed(n), expected[r]);
            if r != 30 || !matches!(row.cfa(), CfaRule::RegisterAndOffset { register: Register(30), .. }) {
                regs[r] = expected[r];
            }
        }
    }
    let mut frame = Frame { regs: Registers::ZERO, known: 0, exact };
    for (r, v) in regs.iter().enumerate() {
        if exact || (16..24).contains(&r) || (28..=30).contains(&r) {
            frame.regs.set(r as u8, *v);
            frame.known |= 1 << r;
        }
    }
    frame.regs.set(PC, at);
    frame.known |= 1 << PC;
    let mut read = |address: u64, out: &mut [u8]| {
        if address >= sp - 0x1_0000 && address < sp + 0x100_0000 {
            let mut done = 0;
            while done < out.len() {
                let here = address + done as u64;
                let slot = here & !(word - 1);
                let value = memory.get(&slot).copied().or_else(|| far(slot)).unwrap_or(0);
                let mut b = [0; 8];
                store(&mut b[..word as usize], code.endian, value);
                let from = (here - slot) as usize;
                let n = (word as usize - from).min(out.len() - done);
                out[done..done + n].copy_from_slice(&b[from..from + n]);
                done += n;
            }
            return true;
        }
        code.read(address, out)
    };
    let Some(up) = step_out(code.is_64, code.endian, &frame, &mut read) else { return Some(Outcome::None) };
    let known = |r: u8| up.known >> r & 1 == 1;
    let (pc, up_sp) = (up.regs.get(PC), up.regs.get(29));
    if (pc, up_sp) != (ra, cfa) {
        return Some(Outcome::Disagree(format!(
            "returns to {pc:#x} with {up_sp:#x}; the table says {ra:#x}, {cfa:#x}"
        )));
    }
    for r in (16..24).chain([30]) {
        if known(r) && up.regs.get(r) != expected[usize::from(r)] {
            let (a, b) = (up.regs.get(r), expected[usize::from(r)]);
            return Some(Outcome::Disagree(format!("${r} is {a:#x}; the table says {b:#x}")));
        }
    }
    Some(Outcome::Agree)
}

/// The C library of a cross compiler: built without asynchronous tables, but with those of exceptions.
fn library(triple: &str, every: usize) {
    let path = format!("/usr/{triple}/lib/libc.so.6");
    let data = std::fs::read(&path).unwrap_or_else(|e| panic!("{path} (of the cross compiler for {triple}): {e}"));
    settle(&path, &compare(&data, every));
}

fn settle(what: &str, counts: &Counts) {
    println!("{what}: {counts:?}");
    let Counts { exact, returns } = counts;
    assert_eq!((exact.disagree, returns.disagree), (0, 0), "{what}");
    assert!(exact.agree > 4 * exact.none, "{what}: {exact:?}");
    assert!(returns.agree > 9 * returns.none && returns.agree > 100, "{what}: {returns:?}");
}

#[test]
fn big_endian_library() {
    library("mips-linux-gnu", 19);
}

#[test]
fn little_endian_library() {
    library("mipsel-linux-gnu", 23);
}

#[test]
fn big_endian_64_bit_library() {
    library("mips64-linux-gnuabi64", 19);
}

#[test]
fn little_endian_64_bit_library() {
    library("mips64el-linux-gnuabi64", 23);
}
