//! Callers that know too much. A compiler that sees both caller and callee may keep a value in a register that the ABI
//! lets a callee change, because it knows that this callee does not. A new function that obeys the ABI, and no more,
//! then breaks the caller.
//!
//! Compared are three sets of caller-saved registers: what the new function (with all it calls) changes and the old one
//! (with all it calls) does not; and, behind each call, what the caller reads before it writes. What a caller of the old
//! function changes may grow in turn, so its own callers are looked at too, until nothing new is left.

use super::callers;
use super::error::{JudgeError, Reliance};
use super::listing::{Function, Listing, Raw, Source};
use super::window::{Judged, has_table};
use crate::addr::LinkAddr;
use crate::arch::Constants;
use crate::decode::{Flow, Insn};
use crate::model::{Package, Referent, Site};
use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, VecDeque},
    format,
    rc::Rc,
    string::String,
    vec::Vec,
};

/// How many functions are followed for one clobber set.
const DEPTH: usize = 256;
/// How many functions' callers are looked at for one site.
const CALLEES: usize = 256;

/// Looks at every call of the old function, and at calls of what calls it. The second result is a warning.
pub(super) fn judge(
    listing: &Listing<'_>,
    package: &Package,
    site: &Site,
    judged: &Judged,
    all: &[Judged],
    new_clobbers: &mut Vec<&'static str>,
) -> (Result<(), JudgeError>, Option<String>) {
    let names = listing.decoder.volatile_names();
    let known = Known { listing, everything: mask(names.len()), memo: Default::default() };
    let jumps = jump_clobbers(listing, judged, names);
    let mut new = NewCode { known: &known, package, functions: new_functions(package) };
    let changed = (new.clobbers(site.new_offset) | jumps) & !known.of(site.entry.0);
    *new_clobbers = registers(changed, names);

    let mut queue = VecDeque::from([(site.entry.0, changed)]);
    let mut best: BTreeMap<u64, u64> = BTreeMap::new();
    while let Some((callee, extra)) = queue.pop_front() {
        let before = best.get(&callee).copied().unwrap_or(0);
        if extra & !before == 0 {
            continue;
        }
        best.insert(callee, before | extra);
        if best.len() > CALLEES {
            let why = format!("`{}`: too many callers of callers to look at for the registers they rely on", site.old);
            return (Ok(()), Some(why));
        }
        for &raw in listing.references(callee, callee.saturating_add(1)) {
            if raw.data || callers::inside(all, raw.from) {
                continue;
            }
            let Some((caller, i)) = call_site(listing, raw) else { continue };
            if let Flow::Call(_) = caller.insns[i].flow {
                let relied = known.live_after(&caller, i, extra);
                if relied != 0 {
                    let name = listing.extent(callee).map_or_else(|| site.old.clone(), |e| String::from(e.symbol.name));
                    let refusal = JudgeError::IpaRa {
                        function: site.old.clone(),
                        new: site.new.clone(),
                        reliance: Box::new(Reliance {
                            caller: caller.name.clone(),
                            callee: name,
                            at: LinkAddr(caller.insns[i].addr),
                            registers: registers(relied, names),
                        }),
                    };
                    return (Err(refusal), None);
                }
            }
            let entry = callers::owner(listing, &caller.name).unwrap_or(caller.entry);
            // What it changes, with all it calls, takes long to find out: not for one that nobody calls.
            let called = listing.references(entry, entry.saturating_add(1));
            if !called.iter().any(|r| !r.data && !callers::inside(all, r.from)) {
                continue;
            }
            let extra = extra & !known.of(entry);
            if extra != 0 {
                queue.push_back((entry, extra));
            }
        }
    }
    (Ok(()), None)
}

fn mask(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

fn registers(set: u64, names: &'static [&'static str]) -> Vec<&'static str> {
    names.iter().enumerate().filter(|(i, _)| *i < 64 && set >> i & 1 == 1).map(|(_, n)| *n).collect()
}

/// Registers that a trampoline itself may change.
fn jump_clobbers(listing: &Listing<'_>, judged: &Judged, names: &[&str]) -> u64 {
    let arch = listing.arch;
    let fits = arch.forms().iter().filter(|f| f.len <= judged.figures.window && arch.suits(f, &judged.expected));
    let clobbered = fits.flat_map(|f| f.clobbers).filter_map(|c| names.iter().take(64).position(|n| n == c));
    clobbered.fold(0, |set, bit| set | 1 << bit)
}

/// The direct call or jump that a reference is, if it is one.
fn call_site(listing: &Listing<'_>, raw: Raw) -> Option<(Rc<Function>, usize)> {
    match listing.confirm(raw) {
        Source::Insn(f, i) if matches!(f.insns[i].flow, Flow::Call(t) | Flow::Jump(t) | Flow::Branch(t) if t == raw.to) => {
            Some((f, i))
        }
        _ => None,
    }
}

/// What functions of the program change.
struct Known<'a> {
    listing: &'a Listing<'a>,
    everything: u64,
    memo: core::cell::RefCell<BTreeMap<u64, u64>>,
}

impl Known<'_> {
    /// Caller-saved registers that the function at `entry` changes, with all it calls.
    fn of(&self, entry: u64) -> u64 {
        if let Some(&set) = self.memo.borrow().get(&entry) {
            return set;
        }
        let mut set = 0;
        let mut seen = BTreeSet::from([entry]);
        let mut queue = VecDeque::from([entry]);
        while let Some(at) = queue.pop_front() {
            let Some(f) = self.listing.function(at).filter(|f| f.starting(at).is_some()) else {
                set = self.everything;
                break;
            };
            if f.decoded < f.end || seen.len() > DEPTH {
                set = self.everything;
            }
            for insn in &f.insns {
                set |= insn.writes;
                match insn.flow {
                    // Outside of the program's functions, as a stub of the dynamic linker is.
                    Flow::Call(t) if self.listing.extent(t).is_none() => set = self.everything,
                    Flow::Call(t) if seen.insert(t) => queue.push_back(t),
                    Flow::Jump(t) | Flow::Branch(t) if !f.contains(t) && seen.insert(t) => queue.push_back(t),
                    Flow::CallIndirect => set = self.everything,
                    Flow::JumpIndirect if !has_table(self.listing, &f) => set = self.everything,
                    _ => {}
                }
            }
            if set & self.everything == self.everything {
                break;
            }
        }
        let set = set & self.everything;
        self.memo.borrow_mut().insert(entry, set);
        set
    }

    /// Those of the registers `of_interest` that are read after the call at `call` before they are written.
    fn live_after(&self, f: &Function, call: usize, of_interest: u64) -> u64 {
        let returned = self.listing.decoder.return_registers();
        let at_return = self.value_kept(f, call) & returned;
        // Nothing else can be read, and each register is followed for itself.
        let of_interest = of_interest & f.insns.iter().fold(at_return, |set, i| set | i.reads);
        // For each instruction: registers that reach it as they were before the call.
        let mut reach: BTreeMap<usize, u64> = BTreeMap::new();
        let mut queue = Vec::new();
        if call + 1 < f.insns.len() {
            queue.push((call + 1, of_interest));
        }
        let mut live = 0;
        while let Some((i, set)) = queue.pop() {
            let before = reach.get(&i).copied().unwrap_or(0);
            let set = set | before;
            if set == before {
                continue;
            }
            reach.insert(i, set);
            let insn = &f.insns[i];
            live |= set & insn.reads;
            let mut set = set & !insn.writes;
            match insn.flow {
                // The callee keeps what it does not change; its arguments are not taken for reads, since nothing tells
                // how many it has.
                Flow::Call(t) if set != 0 => set &= !self.of(t),
                Flow::CallIndirect => set = 0,
                Flow::Return => live |= set & at_return,
                _ => {}
            }
            if set == 0 {
                continue;
            }
            for next in successors(f, i, insn) {
                queue.push((next, set));
            }
            // Into an instruction, as past a prefix or into a delay slot: a part of it runs.
            if let Flow::Branch(t) | Flow::Jump(t) = insn.flow
                && f.starting(t).is_none()
                && let Some(part) = f.covering(t)
            {
                live |= set & f.insns[part].reads;
                if part + 1 < f.insns.len() {
                    queue.push((part + 1, set));
                }
            }
        }
        live
    }

    /// Registers that the caller set itself before the call at `call`, and has not read since: at a return they carry
    /// its result, else it would not have set them.
    fn value_kept(&self, f: &Function, call: usize) -> u64 {
        // What the call itself writes, it writes before control goes: in a delay slot.
        let mut settled = f.insns[call].reads;
        let mut set = f.insns[call].writes & !settled;
        settled |= f.insns[call].writes;
        for i in (0..call).rev() {
            let insn = &f.insns[i];
            match insn.flow {
                Flow::Next => {}
                // A called function's result may be kept as well, or it has none: that can't be told.
                _ => break,
            }
            set |= insn.writes & !settled;
            settled |= insn.writes | insn.reads;
        }
        set & !self.listing.decoder.argument_registers()
    }
}

/// Indices of the instructions that may run after `insn`.
fn successors(f: &Function, i: usize, insn: &Insn) -> impl Iterator<Item = usize> {
    let (next, target) = match insn.flow {
        Flow::Next | Flow::Call(_) | Flow::CallIndirect => (true, None),
        Flow::Branch(t) => (true, f.starting(t)),
        Flow::Jump(t) => (false, f.starting(t)),
        Flow::Return | Flow::Stop | Flow::JumpIndirect => (false, None),
    };
    let next = (next && i + 1 < f.insns.len()).then_some(i + 1);
    next.into_iter().chain(target)
}

/// Functions of the image: offset and size, ascending.
fn new_functions(package: &Package) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = package
        .symbols
        .iter()
        .filter(|s| s.function)
        .filter_map(|s| match s.referent {
            Referent::Image(offset) => Some((offset, s.size)),
            _ => None,
        })
        .collect();
    out.sort_unstable();
    out
}

/// The code of the patch.
struct NewCode<'a> {
    known: &'a Known<'a>,
    package: &'a Package,
    functions: Vec<(u64, u64)>,
}

impl NewCode<'_> {
    /// Caller-saved registers that the function at `offset` in the image changes, with all it calls.
    fn clobbers(&mut self, offset: u64) -> u64 {
        let base = self.package.base.unwrap_or(0);
        let everything = self.known.everything;
        let mut seen = BTreeSet::from([offset]);
        let mut queue = VecDeque::from([offset]);
        let mut set = 0;
        while let Some(at) = queue.pop_front() {
            let Some(insns) = self.decode(at, base) else { return everything };
            let end = insns.last().map_or(at, |i| i.addr.wrapping_sub(base).saturating_add(i.len.into()));
            for insn in insns {
                set |= insn.writes;
                let here = insn.addr.wrapping_sub(base);
                let target = match insn.flow {
                    Flow::Call(t) | Flow::Jump(t) | Flow::Branch(t) => t,
                    Flow::CallIndirect | Flow::JumpIndirect => return everything,
                    _ => continue,
                };
                // A field that only the load address settles: the target is not in the bytes. It begins in the first bytes;
                // what is behind them may be a delay slot's.
                let own = here..here.saturating_add(u64::from(insn.len.min(4)));
                if let Some(r) = self.package.residue.iter().find(|r| own.contains(&r.offset)) {
                    match self.package.symbols.get(r.symbol as usize).map(|s| &s.referent) {
                        Some(&Referent::Program(addr)) => set |= self.known.of(addr.0),
                        _ => return everything,
                    }
                    continue;
                }
                let offset = target.wrapping_sub(base);
                if offset < self.package.image_size() {
                    if !(at..end).contains(&offset) && seen.insert(offset) {
                        queue.push_back(offset);
                    }
                } else if self.package.base.is_some() {
                    set |= self.known.of(target);
                } else {
                    return everything;
                }
            }
            if set & everything == everything {
                break;
            }
        }
        set & everything
    }

    /// Decodes the function at `offset`, up to its symbol's end or the next function.
    fn decode(&self, offset: u64, base: u64) -> Option<Vec<Insn>> {
        let span =
            self.package.spans.iter().find(|s| s.perm.exec && offset.wrapping_sub(s.offset) < s.data.len() as u64)?;
        let code = &span.data[(offset - span.offset) as usize..];
        let known = self.functions.iter().filter(|f| f.0 == offset).map(|f| f.1).max().unwrap_or(0);
        let next = self.functions.iter().find(|f| f.0 > offset).map_or(u64::MAX, |f| f.0 - offset);
        let len = if known > 0 { known } else { next };
        let code = &code[..usize::try_from(len).unwrap_or(usize::MAX).min(code.len())];
        let insns = self.known.listing.decoder.decode(code, base.wrapping_add(offset), &Constants::NONE);
        let sound = insns.iter().all(|i| i.addr >= base.wrapping_add(offset));
        (sound && !insns.is_empty()).then_some(insns)
    }
}
