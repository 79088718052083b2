//! Specialised copies that the compiler made of a function, as the symbol table shows them.

use super::callers::{self, Names};
use super::error::JudgeError;
use super::listing::Listing;
use super::window::{Judged, names};
use crate::addr::LinkAddr;
use crate::model::Site;
use alloc::{string::String, vec::Vec};

/// Suffixes of names of copies. What follows is a dot and a number, or another suffix.
const COPIES: &[&str] = &["constprop", "isra", "part", "specialized", "specialised", "simdclone"];
/// Suffixes that only rename a function (or another of the same name in another file).
const RENAMES: &[&str] = &["lto_priv", "localalias", "llvm", "__uniq"];

/// Is `suffix` (what follows the name, with its dot) that of a copy?
fn is_copy(suffix: &str) -> bool {
    let mut copy = false;
    for part in suffix.split('.').skip(1) {
        if COPIES.contains(&part) {
            copy = true;
        } else if !(RENAMES.contains(&part) || !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())) {
            return false;
        }
    }
    copy && suffix.starts_with('.')
}

/// The name without suffixes that only rename.
fn base(name: &str) -> &str {
    RENAMES.iter().filter_map(|r| name.find(*r)).min().map_or(name, |i| name[..i].trim_end_matches('.'))
}

/// Looks for copies of `site` that anything outside the replaced functions still runs.
pub(super) fn judge(listing: &Listing<'_>, site: &Site, judged: &[Judged]) -> Result<(), JudgeError> {
    for alias in names(listing, site) {
        let stem = base(alias.name);
        if stem.is_empty() {
            continue;
        }
        for s in listing.program.functions() {
            let copy = s.name.strip_prefix(stem).is_some_and(is_copy);
            // Local functions of two files may share a name; a copy stays in its function's file.
            let other_file =
                alias.file.is_some() && s.file.is_some() && alias.file != s.file && !alias.name.contains('.');
            if !copy || other_file || s.addr == site.entry || callers::inside(judged, s.addr.0) {
                continue;
            }
            let end = s.addr.0.saturating_add(s.size.max(1));
            let callers = users(listing, judged, s.addr.0, end);
            if !callers.is_empty() {
                return Err(JudgeError::Cloned {
                    function: site.old.clone(),
                    clone: String::from(s.name),
                    addr: s.addr,
                    callers,
                });
            }
        }
    }
    Ok(())
}

/// Who refers to the copy at `entry..end` from outside of it and of the replaced functions.
fn users(listing: &Listing<'_>, judged: &[Judged], entry: u64, end: u64) -> Vec<String> {
    let mut out = Names::default();
    for &raw in listing.references(entry, entry.saturating_add(1)) {
        if !raw.data && ((entry..end).contains(&raw.from) || callers::inside(judged, raw.from)) {
            continue;
        }
        callers::describe(listing, raw, LinkAddr(entry), &mut out);
    }
    out.into_vec()
}

#[cfg(test)]
mod tests {
    use super::{base, is_copy};

    #[test]
    fn suffixes() {
        for yes in [".constprop.0", ".isra.1", ".part.0.constprop.2", ".constprop.0.isra.0", ".lto_priv.0.part.3"] {
            assert!(is_copy(yes), "{yes}");
        }
        for no in ["", ".cold", ".constprop.0.cold", ".lto_priv.0", "x.constprop.0", ".foo", ".part.x"] {
            assert!(!is_copy(no), "{no}");
        }
        assert_eq!(base("f.lto_priv.12"), "f");
        assert_eq!(base("f"), "f");
    }
}
