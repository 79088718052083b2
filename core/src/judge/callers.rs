//! Who runs a function: a walk from the replaced function up through its callers, until something is met that surely
//! runs. Without debug information this is what tells that a function was inlined everywhere: nothing calls it.

use super::error::JudgeError;
use super::listing::{Listing, Raw, Source};
use super::similar;
use super::window::Judged;
use crate::addr::LinkAddr;
use crate::model::Site;
use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    format,
    string::String,
    vec::Vec,
};

/// How many supposed paths to a root may turn out to be none before the function is taken for reachable.
const PATIENCE: usize = 256;

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
pub(super) fn judge(listing: &Listing<'_>, site: &Site, judged: &Judged, all: &[Judged]) -> Result<(), JudgeError> {
    let mut refuted = BTreeSet::new();
    // References are taken for real until a path to a root is found; only those on the path are looked at closer.
    for _ in 0..PATIENCE {
        let Some(path) = path_to_root(listing, site.entry.0, &refuted) else {
            return Err(JudgeError::NoCaller {
                function: site.old.clone(),
                only_from: users(listing, site),
                likely: similar::name_likely(listing, judged, all),
            });
        };
        let before = refuted.len();
        refuted.extend(path.into_iter().filter(|&raw| matches!(listing.confirm(raw), Source::Refuted)));
        if refuted.len() == before {
            return Ok(());
        }
    }
    Ok(())
}

/// The references that lead from a root down to `start`, none of them in `refuted`; `None`: there is no such path.
fn path_to_root(listing: &Listing<'_>, start: u64, refuted: &BTreeSet<Raw>) -> Option<Vec<Raw>> {
    // The reference by which the walk came to each function, and the function that it leads to.
    let mut came_by: BTreeMap<u64, Option<(Raw, u64)>> = BTreeMap::from([(start, None)]);
    let mut queue = VecDeque::from([start]);
    while let Some(entry) = queue.pop_front() {
        let trail = |last: Option<Raw>, mut at: u64| {
            let mut path: Vec<Raw> = last.into_iter().collect();
            while let Some(&Some((raw, next))) = came_by.get(&at) {
                path.push(raw);
                at = next;
            }
            path
        };
        if listing.extent(entry).is_none_or(|e| e.root) {
            return Some(trail(None, entry));
        }
        let mut callers = Vec::new();
        for &raw in listing.references(entry, entry.saturating_add(1)).iter().filter(|r| !refuted.contains(r)) {
            match listing.extent(raw.from).filter(|_| !raw.data) {
                // A pointer, or code outside of all functions: who knows when it is used.
                None => return Some(trail(Some(raw), entry)),
                Some(caller) => callers.push((raw, caller)),
            }
        }
        for (raw, caller) in callers {
            // A fragment runs when its function does.
            let owner = owner(listing, caller.symbol.name).unwrap_or(caller.entry);
            for e in [caller.entry, owner] {
                if let Entry::Vacant(v) = came_by.entry(e) {
                    v.insert(Some((raw, entry)));
                    queue.push_back(e);
                }
            }
        }
    }
    None
}

/// Functions other than itself that refer to a site's entry.
fn users(listing: &Listing<'_>, site: &Site) -> Vec<String> {
    let mut out = Names::default();
    for &raw in listing.references(site.entry.0, site.entry.0.saturating_add(1)) {
        if let Source::Insn(f, _) = listing.confirm(raw)
            && f.entry != site.entry.0
        {
            out.add(format!("`{}`", f.name));
        }
    }
    out.into_vec()
}

/// Entry of the function that `NAME.cold` belongs to.
pub(super) fn owner(listing: &Listing<'_>, name: &str) -> Option<u64> {
    let stem = &name[..name.find(".cold")?];
    listing.program.named(stem).find(|s| s.is_function()).map(|s| s.addr.0)
}
