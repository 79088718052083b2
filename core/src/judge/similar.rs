//! Signs of an inlined copy in a program without debug information.
//!
//! A function's fingerprint is the set of its pairs of neighbouring instructions, without registers and addresses but
//! with the constants they use, and of the addresses that it refers to. An inlined copy keeps most of them.

use super::callers;
use super::error::JudgeError;
use super::listing::{Function, Listing, Source, direct_target};
use super::window::Judged;
use crate::addr::LinkAddr;
use crate::decode::{Flow, Insn};
use crate::model::Site;
use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    rc::Rc,
    string::String,
    vec::Vec,
};

/// How many functions are compared at most.
const NEIGHBOURS: usize = 64;

fn mix(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn word(text: &str) -> u64 {
    text.bytes().fold(1, |h, b| mix(h, b.into()))
}

/// What an instruction does, without registers and addresses; `None` for what compilers sprinkle about.
fn token(insn: &Insn, text: &str, sp: &str) -> Option<u64> {
    let (mnemonic, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let h = word(mnemonic);
    match insn.flow {
        Flow::Next => {}
        Flow::Call(t) => return Some(mix(2, t)),
        Flow::Jump(_) | Flow::Return => return None,
        _ => return Some(h),
    }
    if let Some(r) = insn.refers {
        return Some(mix(h, r));
    }
    if mnemonic.contains("nop") || mnemonic.starts_with("push") || mnemonic.starts_with("pop") || operands.is_empty() {
        return None;
    }
    let memory = operands.contains(['[', '(']);
    if operands.contains(sp) {
        // Where the frame lies differs from copy to copy; setting it up is no part of a copy.
        return memory.then_some(h);
    }
    let plain = mix(h, memory.into());
    let h = numbers(operands).fold(plain, mix);
    (h != plain || memory || !mnemonic.starts_with("mov")).then_some(h)
}

/// The numbers in an instruction's operands.
fn numbers(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter_map(|w| match w.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => w.parse().ok(),
    })
}

/// Pairs of neighbouring tokens, in order.
fn pairs(listing: &Listing<'_>, f: &Function) -> Vec<u64> {
    let layout = listing.arch.registers();
    let sp = layout.names.get(usize::from(layout.sp)).copied().unwrap_or("sp");
    let mut tokens = Vec::with_capacity(f.insns.len());
    listing.texts(f, &mut |i, text| tokens.extend(token(i, text, sp)));
    tokens.windows(2).map(|w| mix(w[0], w[1])).collect()
}

/// How many of the pairs `own` occur in one stretch of `theirs` of at most `stretch` pairs.
fn densest(own: &BTreeSet<u64>, theirs: &[u64], stretch: usize) -> usize {
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    let mut best = 0;
    for (i, pair) in theirs.iter().enumerate() {
        if own.contains(pair) {
            *seen.entry(*pair).or_default() += 1;
        }
        if let Some(gone) = i.checked_sub(stretch).map(|j| theirs[j])
            && let Some(n) = seen.get_mut(&gone)
        {
            *n -= 1;
            if *n == 0 {
                seen.remove(&gone);
            }
        }
        best = best.max(seen.len());
    }
    best
}

/// A function that seems to hold a copy.
pub(super) struct Likeness {
    pub name: String,
    pub addr: LinkAddr,
    /// Pairs in common, of `total`.
    pub common: usize,
    pub total: usize,
    /// It calls the function as well.
    pub calls: bool,
}

impl Likeness {
    fn at_least(&self, tenths: usize, pairs: usize) -> bool {
        self.total >= pairs && self.common * 10 >= self.total * tenths
    }
}

/// Refuses a recursive function, or one with a loop, that one of its callers seems to contain: compilers unroll a
/// recursion (which may end as a loop) into callers and still call it at the end. In other cases likeness is a
/// warning's worth only: families of functions resemble one another.
pub(super) fn judge(
    listing: &Listing<'_>,
    site: &Site,
    judged: &Judged,
    all: &[Judged],
) -> (Result<(), JudgeError>, Option<String>) {
    let best = likenesses(listing, judged, all, false).into_iter().filter(|l| l.calls).max_by_key(|l| l.common);
    let Some(best) = best else { return (Ok(()), None) };
    let entry = judged.figures.entry.0;
    // A recursion, or a loop that may have been one.
    let recursive = judged.parts.iter().flat_map(|p| &p.insns).any(|i| match i.flow {
        Flow::Call(t) => t == entry,
        Flow::Jump(t) | Flow::Branch(t) => (entry..=i.addr).contains(&t),
        _ => false,
    });
    if recursive && best.at_least(6, 10) {
        let Likeness { name, addr, common, total, .. } = best;
        return (Err(JudgeError::LooksInlined { function: site.old.clone(), into: name, addr, common, total }), None);
    }
    let text = best.at_least(7, 6).then(|| {
        format!("`{}` may be inlined into `{}` at {}, whose code is much like it", site.old, best.name, best.addr)
    });
    (Ok(()), text)
}

/// Functions that seem to hold a copy of one that nothing calls, for a message.
pub(super) fn name_likely(listing: &Listing<'_>, judged: &Judged, all: &[Judged]) -> Vec<String> {
    let likely = likenesses(listing, judged, all, true).into_iter().filter(|l| l.at_least(5, 4));
    likely.map(|l| format!("`{}` at {}", l.name, l.addr)).collect()
}

/// Compares a function with its callers and, where `siblings`, with its callees and their other callers.
fn likenesses(listing: &Listing<'_>, judged: &Judged, all: &[Judged], siblings: bool) -> Vec<Likeness> {
    let list = pairs(listing, &judged.parts[0]);
    let own: BTreeSet<u64> = list.iter().copied().collect();
    if own.len() < 4 {
        return Vec::new();
    }
    let entry = judged.figures.entry.0;
    let mut near: BTreeMap<u64, Rc<Function>> = BTreeMap::new();
    let mut meet = |f: Rc<Function>| {
        if f.entry != entry && !callers::inside(all, f.entry) && near.len() < NEIGHBOURS {
            near.insert(f.entry, f);
        }
    };
    let meet_callers = |of: u64, meet: &mut dyn FnMut(Rc<Function>)| {
        for &raw in listing.references(of, of.saturating_add(1)).iter().take(NEIGHBOURS) {
            if let Source::Insn(f, _) = listing.confirm(raw) {
                meet(f);
            }
        }
    };
    meet_callers(entry, &mut meet);
    if siblings {
        let flows = judged.parts.iter().flat_map(|p| &p.insns).map(|i| i.flow);
        let callees: BTreeSet<u64> = flows.filter_map(direct_target).collect();
        // Jumps inside the body lead to no function's start.
        for at in callees.into_iter().filter(|&at| listing.extent(at).is_some_and(|e| e.entry == at)) {
            listing.function(at).into_iter().for_each(&mut meet);
            meet_callers(at, &mut meet);
        }
    }
    let compare = |f: &Rc<Function>| {
        let theirs = pairs(listing, f);
        // One that is no longer than this one is a twin (or both call each other alike), not a host of a copy.
        if theirs.len() * 2 < own.len() * 3 {
            return None;
        }
        let common = densest(&own, &theirs, 2 * list.len() + 16);
        let calls = f.insns.iter().any(|i| direct_target(i.flow) == Some(entry));
        Some(Likeness { name: f.name.clone(), addr: LinkAddr(f.entry), common, total: own.len(), calls })
    };
    near.values().filter_map(compare).collect()
}

#[cfg(test)]
mod tests {
    use super::{densest, numbers};
    use alloc::{collections::BTreeSet, vec::Vec};

    #[test]
    fn constants_of_an_instruction() {
        assert_eq!(numbers("eax, dword ptr [r12 + 0x18]").collect::<Vec<_>>(), [0x18]);
        assert_eq!(numbers("$a0, $zero, -5").collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn the_densest_stretch_counts_each_pair_once() {
        let own = BTreeSet::from([1, 2, 3, 4]);
        assert_eq!(densest(&own, &[1, 1, 1, 1], 10), 1);
        assert_eq!(densest(&own, &[1, 9, 2, 9, 3, 9, 9, 9, 9, 4], 4), 2);
        assert_eq!(densest(&own, &[1, 9, 2, 9, 3, 9, 9, 9, 9, 4], 10), 4);
        assert_eq!(densest(&own, &[], 10), 0);
    }
}
