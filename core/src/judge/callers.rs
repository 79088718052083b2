//! Who runs a function: a walk from the replaced function up through its callers, until something is met that surely
//! runs. Without debug information this is what tells that a function was inlined everywhere: nothing calls it.

use super::error::JudgeError;
use super::listing::{Listing, Raw, Source};
use super::window::Judged;
use crate::addr::LinkAddr;
use crate::model::Site;
use alloc::{
    collections::{BTreeSet, VecDeque},
    format,
    string::String,
    vec::Vec,
};

/// How many functions the walk decodes before it takes the function for reachable.
const PATIENCE: usize = 4000;

/// Does a replaced function's body hold `addr`?
pub(super) fn inside(judged: &[Judged], addr: u64) -> bool {
    judged.iter().any(|j| j.body.iter().any(|&(start, size)| addr.wrapping_sub(start.0) < size))
}

/// Names for a message, each once, in the order of their first mention.
#[derive(Default)]
pub(super) struct Names {
    seen: BTreeSet<String>,
    list: Vec<String>,
}

impl Names {
    pub fn add(&mut self, name: String) {
        if self.seen.insert(name.clone()) {
            self.list.push(name);
        }
    }
    pub fn into_vec(self) -> Vec<String> {
        self.list
    }
}

/// Adds what `raw` is to `out`, unless it is no reference.
pub(super) fn describe(listing: &Listing<'_>, raw: Raw, to: LinkAddr, out: &mut Names) {
    match listing.confirm(raw) {
        Source::Refuted => {}
        Source::Insn(f, _) => out.add(format!("`{}`", f.name)),
        Source::Data => out.add(format!("a pointer at {:#x}", raw.from)),
        Source::Unknown => out.add(format!("code at {:#x} (a possible branch to {to})", raw.from)),
    }
}

/// Refuses a function that nothing reaches.
pub(super) fn judge(listing: &Listing<'_>, site: &Site) -> Result<(), JudgeError> {
    let start = site.entry.0;
    let mut queue = VecDeque::from([start]);
    let mut seen = BTreeSet::from([start]);
    let mut direct = Names::default();
    while let Some(entry) = queue.pop_front() {
        if is_root(listing, entry) || seen.len() > PATIENCE {
            return Ok(());
        }
        let refs = listing.references(entry, entry.saturating_add(1));
        // Pointers first: they need no decoding.
        if refs.iter().any(|r| r.data) {
            return Ok(());
        }
        for &raw in refs {
            match listing.confirm(raw) {
                Source::Refuted => {}
                Source::Data | Source::Unknown => return Ok(()),
                Source::Insn(f, _) => {
                    if entry == start && f.entry != start {
                        direct.add(format!("`{}`", f.name));
                    }
                    // A fragment runs when its function does.
                    let owner = owner(listing, &f.name).unwrap_or(f.entry);
                    for e in [f.entry, owner] {
                        if seen.insert(e) {
                            if is_root(listing, e) {
                                return Ok(());
                            }
                            queue.push_back(e);
                        }
                    }
                }
            }
        }
    }
    Err(JudgeError::NoCaller { function: site.old.clone(), only_from: direct.into_vec() })
}

/// Entry of the function that `NAME.cold` belongs to.
fn owner(listing: &Listing<'_>, name: &str) -> Option<u64> {
    let stem = &name[..name.find(".cold")?];
    listing.program.named(stem).find(|s| s.is_function()).map(|s| s.addr.0)
}

/// Does `entry` surely run: the program's entry, `main`, or visible to other modules?
fn is_root(listing: &Listing<'_>, entry: u64) -> bool {
    let program = listing.program;
    if program.entry.0 == entry && entry != 0 {
        return true;
    }
    let symbols = program.functions().skip_while(|s| s.addr.0 < entry).take_while(|s| s.addr.0 == entry);
    let mut symbols = symbols;
    symbols.any(|s| s.exported || matches!(s.name, "main" | "_start" | "_init" | "_fini"))
}
