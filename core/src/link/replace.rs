//! Which functions of the program are replaced, and by which ones of the patch.

use super::Inputs;
use super::error::{Candidate, LinkError};
use super::globals::{Globals, is_function};
use super::input::{At, Bind};
use super::names::{self, Level};
use super::report::Messages;
use super::resolve::Spot;
use super::sections::{self, Fate, Part};
use crate::addr::LinkAddr;
use crate::program::{Symbol, SymbolKind};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};

/// One function to be replaced.
#[derive(Clone, Debug)]
pub(super) struct Replacement {
    pub new: Spot,
    pub new_name: String,
    pub old_name: String,
    pub old_size: u64,
    pub entry: LinkAddr,
    /// The new function wants its own address when it is entered.
    pub own_address: bool,
}

/// A function that the patch defines.
#[derive(Clone, Copy)]
struct New<'d> {
    spot: Spot,
    name: &'d str,
    size: u64,
    local: bool,
    /// `st_other`
    other: u8,
    /// A copy that every object has (an inline function or a template instance).
    vague: bool,
}

/// All replacements, ascending by entry.
pub(super) fn find<'d>(
    cx: &Inputs<'_, 'd>,
    globals: &Globals<'d>,
    messages: &mut Messages,
) -> Result<Vec<Replacement>, LinkError> {
    let functions = patch_functions(cx, globals);
    let marks = sections::strings(cx.objects, cx.fates, Fate::Marks)?;
    let mut list = List { cx, by_entry: BTreeMap::new() };
    let mut chosen = Vec::new();
    for (new, old) in &cx.options.replace {
        let new = patch_function(cx, &functions, new.trim(), None)?;
        list.add(new, program_function(cx, old.trim())?)?;
        chosen.push(new.spot);
    }
    for &(object, mark) in &marks {
        let (name, old) = mark.split_once('=').map_or((mark, None), |(n, o)| (n.trim(), Some(o.trim())));
        if name.is_empty() || old == Some("") {
            return Err(bad_mark(cx, object, mark));
        }
        let new = patch_function(cx, &functions, name, Some(object))?;
        // An option says more exactly what a marker without an old name means.
        if old.is_none() && chosen.contains(&new.spot) {
            continue;
        }
        let old = match old {
            Some(old) => program_function(cx, old)?,
            // A C++ function is marked by its plain name, but replaces what has the same parameters.
            None => match program_function(cx, new.name) {
                Err(LinkError::NoSuchFunction { .. }) if new.name != name => program_function(cx, name)?,
                other => other?,
            },
        };
        list.add(new, old)?;
    }
    if marks.is_empty() && cx.options.replace.is_empty() {
        list.add_shared(&functions, messages)?;
    }
    if list.by_entry.is_empty() {
        return Err(LinkError::NothingToReplace);
    }
    Ok(list.by_entry.into_values().collect())
}

struct List<'c, 'o, 'd> {
    cx: &'c Inputs<'o, 'd>,
    by_entry: BTreeMap<LinkAddr, Replacement>,
}

impl<'d> List<'_, '_, 'd> {
    fn add(&mut self, new: &New<'d>, old: &Symbol<'d>) -> Result<(), LinkError> {
        let name = || String::from(old.name);
        if old.kind == SymbolKind::Ifunc {
            return Err(LinkError::IfuncFunction { name: name() });
        }
        let exec = self.cx.program.segment_at(old.addr).is_some_and(|s| s.perm.exec);
        if !exec || old.absolute || self.cx.program.bytes(old.addr, old.size.max(1)).is_none() {
            return Err(LinkError::NoCode { name: name(), address: old.addr });
        }
        if let Some(first) = self.by_entry.get(&old.addr) {
            if first.new == new.spot {
                return Ok(());
            }
            return Err(LinkError::DuplicateReplacement {
                old: name(),
                first: first.new_name.clone(),
                second: String::from(new.name),
            });
        }
        let flags = self.cx.objects.get(new.spot.object as usize).map_or(0, |o| o.ident.flags);
        self.by_entry.insert(
            old.addr,
            Replacement {
                new: new.spot,
                new_name: String::from(new.name),
                old_name: name(),
                old_size: old.size,
                entry: old.addr,
                own_address: self.cx.arch.wants_own_address(flags, new.other),
            },
        );
        Ok(())
    }

    /// Without any marker: what patch and program both define globally.
    fn add_shared(&mut self, functions: &[New<'d>], messages: &mut Messages) -> Result<(), LinkError> {
        let mut copies = Vec::new();
        for new in functions.iter().filter(|f| !f.local) {
            match names::program_global(self.cx.program, new.name) {
                Some(old) if old.is_function() && new.vague => copies.push((new, old)),
                Some(old) if old.is_function() => self.add(new, old)?,
                _ => {}
            }
        }
        if self.by_entry.is_empty() {
            return copies.into_iter().try_for_each(|(new, old)| self.add(new, old));
        }
        if !copies.is_empty() {
            let names: Vec<&str> = copies.iter().map(|(new, _)| new.name).collect();
            messages.warn(format!(
                "the patch uses its own copies of inline functions or template instances, the program keeps its own \
                 (mark them to replace them): {}",
                names.join(", ")
            ));
        }
        Ok(())
    }
}

fn bad_mark(cx: &Inputs<'_, '_>, object: u32, mark: &str) -> LinkError {
    LinkError::BadMarker {
        object: cx.objects.get(object as usize).map_or_else(String::new, |o| String::from(o.name)),
        section: String::from(sections::MARKS),
        why: format!("\"{mark}\" is neither NAME nor NEW=OLD"),
    }
}

/// All functions that the patch defines and that count.
fn patch_functions<'d>(cx: &Inputs<'_, 'd>, globals: &Globals<'d>) -> Vec<New<'d>> {
    let mut out = Vec::new();
    for (o, (object, fates)) in cx.objects.iter().zip(cx.fates).enumerate() {
        for (i, s) in object.symbols.iter().enumerate() {
            let At::Section { index, value } = s.at else { continue };
            let counts = s.is_local() || globals.wins(o as u32, i as u32, s.name);
            let code = fates.get(index as usize) == Some(&Fate::Keep(Part::Code));
            if s.name.is_empty() || !counts || !code || !is_function(s, fates) {
                continue;
            }
            let group = object.sections.get(index as usize).and_then(|x| x.group);
            out.push(New {
                spot: Spot { object: o as u32, section: index, value },
                name: s.name,
                size: s.size,
                local: s.is_local(),
                other: s.other,
                vague: s.bind == Bind::Weak && group.is_some(),
            });
        }
    }
    out
}

/// The function of the patch that `name` means: the marker's own object first, then all.
fn patch_function<'f, 'd>(
    cx: &Inputs<'_, '_>,
    functions: &'f [New<'d>],
    name: &str,
    object: Option<u32>,
) -> Result<&'f New<'d>, LinkError> {
    let demangle = cx.options.demangle;
    for level in Level::ALL {
        if level != Level::Exact && demangle.is_none() {
            break;
        }
        let all: Vec<&New<'_>> = functions.iter().filter(|f| level.matches(f.name, name, demangle)).collect();
        let own: Vec<&New<'_>> = all.iter().filter(|f| Some(f.spot.object) == object).copied().collect();
        let globals: Vec<&New<'_>> = all.iter().filter(|f| !f.local).copied().collect();
        let best = [own, globals, all].into_iter().find(|c| !c.is_empty());
        let Some(best) = best else { continue };
        let Some(first) = best.first() else { continue };
        if best.iter().all(|f| f.spot == first.spot) {
            return Ok(first);
        }
        let candidates = best.iter().map(|f| Candidate {
            name: String::from(f.name),
            file: cx.objects.get(f.spot.object as usize).map(|o| String::from(o.name)),
            address: None,
            size: f.size,
        });
        return Err(LinkError::AmbiguousPatchFunction { name: String::from(name), candidates: candidates.collect() });
    }
    let suggestion = names::suggest(name, functions.iter().map(|f| f.name));
    Err(LinkError::NoPatchFunction { name: String::from(name), suggestion })
}

/// The function of the program that `spec` means; `--bind` picks one of several locals here as well.
fn program_function<'c, 'd>(cx: &Inputs<'c, 'd>, spec: &str) -> Result<&'c Symbol<'d>, LinkError> {
    names::program_function(cx.program, cx.bind(spec).unwrap_or(spec), cx.options.demangle)
}
