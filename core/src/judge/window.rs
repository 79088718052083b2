//! How many bytes at a function's entry may be overwritten: up to the function's end and the padding behind it, or up
//! to the first place inside that anything may jump to.

use super::error::{JudgeError, Obstacle, WindowFigures};
use super::listing::{Function, Listing, Raw, Source, direct_target};
use crate::addr::LinkAddr;
use crate::decode::Flow;
use crate::model::Site;
use crate::program::Symbol;
use alloc::{boxed::Box, format, rc::Rc, string::String, vec::Vec};

/// The longest window that is looked for, bytes.
pub(super) const LONGEST_WINDOW: u64 = 64;
/// The most entries of one jump table that are looked at.
const LONGEST_TABLE: usize = 4096;

/// What `gen` stores of a site, and what the other rules need of it.
pub(super) struct Judged {
    pub figures: WindowFigures,
    pub expected: Vec<u8>,
    pub body: Vec<(LinkAddr, u64)>,
    /// The decoded parts of the body.
    pub parts: Vec<Rc<Function>>,
}

/// The range behind `entry` in which references matter.
pub(super) fn watched(entry: LinkAddr) -> (u64, u64) {
    // A landing pad is a few bytes at most.
    (entry.0, entry.0.saturating_add(2 * LONGEST_WINDOW))
}

/// Judges the window of one site.
pub(super) fn judge(listing: &Listing<'_>, site: &Site) -> Result<Judged, JudgeError> {
    let entry = site.entry.0;
    let name = || site.old.clone();
    let code = listing.text(entry).ok_or_else(|| JudgeError::NoCode { function: name(), entry: site.entry })?;
    for s in names(listing, site) {
        listing
            .arch
            .accepts_function(s.other, s.addr.0)
            .map_err(|why| JudgeError::UnsupportedIsa { function: name(), why })?;
    }
    if listing.arch.leaves_delay_slot(listing.text_before(entry)) {
        return Err(JudgeError::DelaySlotEntry { function: name(), entry: site.entry });
    }
    let (size, size_guessed) = size(listing, site)?;
    let here = code.get(..usize::try_from(size).unwrap_or(usize::MAX));
    let here = here.ok_or_else(|| JudgeError::NoCode { function: name(), entry: site.entry })?;

    let pad = u64::from(listing.arch.landing_pad_len(here)).min(size);
    let next = listing.next_start(entry.saturating_add(size - 1));
    let gap = next.map_or(u64::MAX, |n| n.saturating_sub(entry.saturating_add(size)));
    let behind = &code[here.len()..];
    let behind = &behind[..behind.len().min(usize::try_from(gap.min(LONGEST_WINDOW)).unwrap_or(0))];
    let padding = listing.arch.padding_len(behind).min(behind.len()) as u64;

    let main = listing.decode(&site.old, entry, entry.saturating_add(size));
    let parts = parts(listing, site, main);
    let (from, to) = (entry + pad, entry.saturating_add(size).saturating_add(padding));
    let to = to.min(from.saturating_add(LONGEST_WINDOW));
    let obstacle = obstacle(listing, &parts, from, to);
    let window = obstacle.as_ref().map_or(to, |o| o.target.0).saturating_sub(from);

    let mut figures = WindowFigures {
        entry: site.entry,
        size,
        size_guessed,
        padding,
        pad: pad as u8,
        window: window as u8,
        obstacle,
        return_inside: None,
    };
    // Bytes that are no instructions may be data that somebody reads.
    let decoded = parts[0].decoded;
    if decoded < (from + window).min(entry.saturating_add(size)) {
        figures.window = decoded.saturating_sub(from) as u8;
    }
    let fits =
        |f: &&crate::arch::JumpForm| from.is_multiple_of(u64::from(f.align.max(1))) && listing.arch.suits(f, here);
    let needed = listing.arch.forms().iter().filter(fits).map(|f| f.len).min();
    let needed = needed.unwrap_or(u8::MAX);
    if figures.window < needed {
        if figures.obstacle.is_none() && window >= u64::from(needed) {
            return Err(JudgeError::Undecodable { function: name(), at: LinkAddr(decoded) });
        }
        return Err(JudgeError::WindowTooSmall { function: name(), needed, figures: Box::new(figures) });
    }
    let end = from + u64::from(figures.window);
    figures.return_inside = parts[0]
        .insns
        .iter()
        .filter(|i| matches!(i.flow, Flow::Call(_) | Flow::CallIndirect))
        .map(|i| i.addr + u64::from(i.len))
        .find(|r| (from + 1..end).contains(r))
        .map(LinkAddr);

    let kept = (pad + u64::from(figures.window)).max(size.min(LONGEST_WINDOW));
    let expected = code[..usize::try_from(kept).unwrap_or(0).min(code.len())].to_vec();
    let body = parts.iter().map(|p| (LinkAddr(p.entry), p.end - p.entry)).collect();
    Ok(Judged { figures, expected, body, parts })
}

fn size(listing: &Listing<'_>, site: &Site) -> Result<(u64, bool), JudgeError> {
    let entry = site.entry.0;
    let sized = names(listing, site).map(|s| s.size).max().unwrap_or(0);
    if sized > 0 {
        return Ok((sized, false));
    }
    match listing.next_start(entry) {
        Some(next) => Ok((next - entry, true)),
        None => Err(JudgeError::UnknownSize { function: site.old.clone(), entry: site.entry }),
    }
}

/// All function symbols of the site's entry.
pub(super) fn names<'p>(listing: &Listing<'p>, site: &Site) -> impl Iterator<Item = &'p Symbol<'p>> {
    let program = listing.program;
    let entry = site.entry;
    // Symbols are few compared to what follows; a linear pass keeps `Program` free of one more index.
    program.functions().skip_while(move |s| s.addr < entry).take_while(move |s| s.addr == entry)
}

/// Other functions of the program that have the same body (aliases, or identical functions that were merged).
pub(super) fn others<'p>(listing: &Listing<'p>, site: &Site) -> Vec<&'p str> {
    let mut out: Vec<&str> = names(listing, site).map(|s| s.name).filter(|n| *n != site.old).collect();
    out.sort_unstable();
    out.dedup();
    // The site may be written as file:name.
    if !names(listing, site).any(|s| s.name == site.old) {
        out.retain(|n| !site.old.ends_with(n));
    }
    out
}

/// The body, and its `.cold` parts: local functions of that name which the body jumps to.
fn parts(listing: &Listing<'_>, site: &Site, main: Function) -> Vec<Rc<Function>> {
    let mut parts = alloc::vec![Rc::new(main)];
    for alias in names(listing, site) {
        let fragments = listing.program.functions().filter(|s| {
            s.name.strip_prefix(alias.name).is_some_and(is_cold_suffix)
                && (alias.file.is_none() || alias.file == s.file)
                && s.size > 0
        });
        for s in fragments {
            let (lo, hi) = (s.addr.0, s.addr.0.saturating_add(s.size));
            let joined = parts.iter().any(|p| {
                p.insns.iter().any(|i| match i.flow {
                    Flow::Jump(t) | Flow::Branch(t) => (lo..hi).contains(&t),
                    _ => false,
                })
            });
            if joined && parts.iter().all(|p| p.entry != lo) {
                parts.push(Rc::new(listing.decode(s.name, lo, hi)));
            }
        }
    }
    parts
}

fn is_cold_suffix(suffix: &str) -> bool {
    match suffix.strip_prefix(".cold") {
        Some("") => true,
        Some(rest) => rest.strip_prefix('.').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())),
        None => false,
    }
}

/// The lowest place in `from..to` that anything may jump to.
fn obstacle(listing: &Listing<'_>, parts: &[Rc<Function>], from: u64, to: u64) -> Option<Obstacle> {
    let mut lowest: Option<Obstacle> = None;
    let mut offer = |target: u64, at: u64, what: String| {
        if (from..to).contains(&target) && lowest.as_ref().is_none_or(|l| target < l.target.0) {
            lowest = Some(Obstacle { target: LinkAddr(target), from: LinkAddr(at), what });
        }
    };
    let entry = parts[0].entry;
    for &raw in listing.references(from, to) {
        if let Some((what, at)) = reference(listing, parts, entry, raw) {
            offer(raw.to, at, what);
        }
    }
    // The scan knows symbols only; the body itself was decoded from the size that was settled on.
    for part in parts {
        for i in &part.insns {
            let jump = matches!(i.flow, Flow::Jump(_) | Flow::Branch(_));
            if let Some(t) = direct_target(i.flow)
                && (jump || t != entry)
            {
                offer(t, i.addr, format!("branch in `{}`", part.name));
            }
        }
        for (at, target) in table_targets(listing, parts, part) {
            offer(target, at, String::from("jump table entry"));
        }
    }
    for i in &parts[0].insns {
        let bytes = listing.text(i.addr).unwrap_or(&[]);
        if i.addr > from && i.addr < to && listing.arch.landing_pad_len(bytes) > 0 {
            offer(i.addr, i.addr, String::from("landing pad of an indirect branch"));
        }
    }
    for s in listing.program.symbols.iter().filter(|s| s.addr.0 > from && s.addr.0 < to) {
        let label = s.kind == crate::program::SymbolKind::Untyped && !is_mapping_symbol(s.name);
        if s.is_function() || label {
            offer(s.addr.0, s.addr.0, format!("symbol `{}`", s.name));
        }
    }
    lowest
}

/// `$x`, `$d.1` and the like only say what is code and what is data.
fn is_mapping_symbol(name: &str) -> bool {
    let rest = name.strip_prefix('$').and_then(|n| n.strip_prefix(['a', 'd', 't', 'x']));
    rest.is_some_and(|r| r.is_empty() || r.starts_with('.'))
}

/// What kind of target a reference makes, and from where; `None`: none.
fn reference(listing: &Listing<'_>, parts: &[Rc<Function>], entry: u64, raw: Raw) -> Option<(String, u64)> {
    let inside = parts.iter().find(|p| p.contains(raw.from));
    let at_entry = raw.to == entry;
    match listing.confirm(raw) {
        Source::Refuted => None,
        // A pointer to the function, or an unknown caller, is no reason: both start it from the beginning.
        Source::Data | Source::Unknown if at_entry => None,
        Source::Data => Some((String::from("pointer in the program's data"), raw.from)),
        // Inside the body, where it could not be decoded, or between functions.
        Source::Unknown => Some((String::from("possible branch"), raw.from)),
        Source::Insn(function, i) => {
            let insn = &function.insns[i];
            // Calls, tail calls from elsewhere and address computations start the function from the beginning; a jump
            // from inside is a loop (or can't be told from one).
            let looping = matches!(insn.flow, Flow::Jump(_) | Flow::Branch(_)) && inside.is_some();
            if at_entry && !looping {
                return None;
            }
            Some((format!("branch in `{}`", function.name), insn.addr))
        }
    }
}

/// Targets of the jump tables that `part` may use, as (address of the entry, target).
fn table_targets(listing: &Listing<'_>, parts: &[Rc<Function>], part: &Function) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    if !part.insns.iter().any(|i| i.flow == Flow::JumpIndirect) {
        return out;
    }
    let mut tables: Vec<u64> = part.insns.iter().filter_map(|i| i.refers).collect();
    tables.sort_unstable();
    tables.dedup();
    let word = usize::from(listing.arch.address_bits() / 8).max(4);
    let ours = |t: u64| parts.iter().any(|p| p.contains(t));
    for known in part.insns.iter().filter_map(|i| i.table.as_deref()) {
        // It ends where the next one begins, or with what is not of this function.
        let next = tables.iter().find(|t| **t > known.at).map_or(u64::MAX, |t| t - known.at);
        let Some(bytes) = listing.data(known.at) else { continue };
        let bytes = &bytes[..bytes.len().min(usize::try_from(next).unwrap_or(usize::MAX))];
        let size = usize::from(known.size.max(1));
        let targets = bytes.chunks_exact(size).map_while(|e| Some(known.target(listing.integer(e)?)));
        let targets = targets.take(LONGEST_TABLE).take_while(|t| ours(*t)).enumerate();
        out.extend(targets.map(|(i, t)| (known.at + (size * i) as u64, t)));
    }
    for table in tables {
        let Some(bytes) = listing.data(table) else { continue };
        // Offsets from the table's start; an entry may also lead to a fragment elsewhere.
        for (i, e) in bytes.chunks_exact(4).take(LONGEST_TABLE).enumerate() {
            let offset = listing.integer(e).unwrap_or(0) as u32 as i32;
            let target = table.wrapping_add_signed(i64::from(offset));
            if !listing.is_code(target) {
                break;
            }
            if ours(target) {
                out.push((table + 4 * i as u64, target));
            }
        }
        for (i, e) in bytes.chunks_exact(word).take(LONGEST_TABLE).enumerate() {
            let target = listing.integer(e).unwrap_or(0);
            if !listing.is_code(target) {
                break;
            }
            if ours(target) {
                out.push((table + (word * i) as u64, target));
            }
        }
        // Offsets from the global pointer.
        let Some(gp) = listing.gp else { continue };
        for (i, e) in bytes.chunks_exact(word).take(LONGEST_TABLE).enumerate() {
            let sum = gp.wrapping_add(listing.integer(e).unwrap_or(0));
            let target = if word == 4 { u64::from(sum as u32) } else { sum };
            if !listing.is_code(target) {
                break;
            }
            if ours(target) {
                out.push((table + (word * i) as u64, target));
            }
        }
    }
    out
}

/// Does the function pick an indirect jump's target from a table of its own (as against a tail call)?
pub(super) fn has_table(listing: &Listing<'_>, function: &Rc<Function>) -> bool {
    !table_targets(listing, core::slice::from_ref(function), function).is_empty()
}
