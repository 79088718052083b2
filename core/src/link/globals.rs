//! One table of the patch's global symbols, by the ELF rules, and what to do with names that the program has as well.

use super::Inputs;
use super::error::LinkError;
use super::input::{At, Bind, InSymbol, Kind, Object};
use super::names::{self, Found};
use super::replace::Replacement;
use super::report::Messages;
use super::resolve::Spot;
use super::sections::{Fate, Part};
use crate::program::{Symbol, SymbolKind};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use object::elf;

/// The definition that a global name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Def {
    Symbol { object: u32, symbol: u32 },
    Common(u32),
}

/// Room for an uninitialised object that no section holds.
pub(super) struct Common<'d> {
    pub name: &'d str,
    pub object: u32,
    pub size: u64,
    pub align: u64,
}

/// The patch's global symbols.
pub(super) struct Globals<'d> {
    pub by_name: BTreeMap<&'d str, Def>,
    pub commons: Vec<Common<'d>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    Weak,
    Common,
    Strong,
}

impl<'d> Globals<'d> {
    pub(super) fn collect(objects: &[Object<'d>], fates: &[Vec<Fate>]) -> Result<Globals<'d>, LinkError> {
        let mut table: BTreeMap<&'d str, (Def, Strength, u32)> = BTreeMap::new();
        let mut commons: Vec<Common<'d>> = Vec::new();
        for (o, (object, fates)) in objects.iter().zip(fates).enumerate() {
            for (i, s) in object.symbols.iter().enumerate().filter(|(_, s)| !s.is_local()) {
                let strength = match (s.at, s.bind) {
                    (At::Undefined, _) => continue,
                    (At::Section { index, .. }, _) if fates.get(index as usize) == Some(&Fate::Duplicate) => continue,
                    (At::Common { .. }, _) => Strength::Common,
                    (_, Bind::Weak | Bind::Unique) => Strength::Weak,
                    _ => Strength::Strong,
                };
                let known = table.get(s.name).copied();
                let def = match (s.at, known) {
                    (_, Some((_, Strength::Strong, first))) if strength == Strength::Strong => {
                        return Err(duplicate(objects, s, first, o as u32));
                    }
                    (At::Common { align }, Some((Def::Common(c), ..))) => {
                        if let Some(c) = commons.get_mut(c as usize) {
                            c.size = c.size.max(s.size);
                            c.align = c.align.max(align);
                        }
                        continue;
                    }
                    (_, Some((_, old, _))) if old >= strength => continue,
                    (At::Common { align }, _) => {
                        commons.push(Common { name: s.name, object: o as u32, size: s.size, align });
                        Def::Common(commons.len() as u32 - 1)
                    }
                    _ => Def::Symbol { object: o as u32, symbol: i as u32 },
                };
                table.insert(s.name, (def, strength, o as u32));
            }
        }
        let by_name: BTreeMap<&'d str, Def> = table.into_iter().map(|(name, (def, ..))| (name, def)).collect();
        // A COMMON symbol that a definition overrode needs no room.
        for (i, c) in commons.iter_mut().enumerate() {
            if by_name.get(c.name) != Some(&Def::Common(i as u32)) {
                c.size = 0;
            }
        }
        Ok(Globals { by_name, commons })
    }

    /// Is this symbol the one that its name stands for?
    pub(super) fn wins(&self, object: u32, symbol: u32, name: &str) -> bool {
        self.by_name.get(name) == Some(&Def::Symbol { object, symbol })
    }
}

fn duplicate(objects: &[Object<'_>], s: &InSymbol<'_>, first: u32, second: u32) -> LinkError {
    let name = |i: u32| objects.get(i as usize).map_or_else(String::new, |o| String::from(o.name));
    LinkError::DuplicateSymbol { symbol: String::from(s.name), first: name(first), second: name(second) }
}

/// Is this symbol of the patch a function?
pub(super) fn is_function(s: &InSymbol<'_>, fates: &[Fate]) -> bool {
    match (s.kind, s.at) {
        (Kind::Function, At::Section { .. }) => true,
        (Kind::Untyped, At::Section { index, .. }) => fates.get(index as usize) == Some(&Fate::Keep(Part::Code)),
        _ => false,
    }
}

/// What a definition of the program is, in words.
fn program_kind(cx: &Inputs<'_, '_>, s: &Symbol<'_>) -> &'static str {
    match s.kind {
        SymbolKind::Function | SymbolKind::Ifunc => FUNCTION,
        SymbolKind::Object => DATA,
        SymbolKind::Tls => "a thread-local variable",
        SymbolKind::Untyped if cx.program.segment_at(s.addr).is_some_and(|x| x.perm.exec) && !s.absolute => FUNCTION,
        SymbolKind::Untyped => DATA,
    }
}

const FUNCTION: &str = "a function";
const DATA: &str = "data";

/// Names that patch and program both define: which of them stand for the program's object.
pub(super) fn shared_with_program<'d>(
    cx: &Inputs<'_, 'd>,
    globals: &Globals<'d>,
    replaced: &[Replacement],
    messages: &mut Messages,
) -> Result<BTreeMap<&'d str, Symbol<'d>>, LinkError> {
    let mut bound = BTreeMap::new();
    for (&name, &def) in &globals.by_name {
        let Some(ours) = Ours::of(cx, globals, def).filter(|_| name != "patch_version") else { continue };
        let Some(theirs) = names::program_global(cx.program, name) else {
            note_local(cx, name, &ours, messages);
            continue;
        };
        let (patch, program) = (ours.kind, program_kind(cx, theirs));
        if patch != program {
            return Err(LinkError::KindMismatch {
                object: String::from(ours.object.name),
                symbol: String::from(name),
                patch,
                program,
            });
        }
        if patch == FUNCTION {
            if !replaced.iter().any(|r| Some(r.new) == ours.spot) {
                messages
                    .note(format!("`{name}` is not marked: the patch uses its own copy, the program keeps its own"));
            }
        } else {
            ours.check_data(cx, name, theirs)?;
            if theirs.size == 0 && ours.size != 0 {
                messages.warn(format!("`{name}` is the program's object, whose size the symbol table does not tell"));
            }
            bound.insert(name, *theirs);
        }
    }
    Ok(bound)
}

/// A global definition of the patch.
struct Ours<'o, 'd> {
    object: &'o Object<'d>,
    kind: &'static str,
    size: u64,
    /// Not for COMMON.
    spot: Option<Spot>,
    /// Several objects may define it, all alike (weak or unique).
    vague: bool,
}

impl<'o, 'd> Ours<'o, 'd> {
    fn of(cx: &'o Inputs<'_, 'd>, globals: &Globals<'d>, def: Def) -> Option<Ours<'o, 'd>> {
        match def {
            Def::Common(c) => {
                let common = globals.commons.get(c as usize)?;
                let object = cx.objects.get(common.object as usize)?;
                Some(Ours { object, kind: DATA, size: common.size, spot: None, vague: false })
            }
            Def::Symbol { object: o, symbol } => {
                let object = cx.objects.get(o as usize)?;
                let fates = cx.fates.get(o as usize)?;
                let s = object.symbols.get(symbol as usize)?;
                let At::Section { index, value } = s.at else { return None };
                Some(Ours {
                    object,
                    kind: if is_function(s, fates) { FUNCTION } else { DATA },
                    size: s.size,
                    spot: Some(Spot { object: o, section: index, value }),
                    vague: matches!(s.bind, Bind::Weak | Bind::Unique),
                })
            }
        }
    }

    /// May the program's object stand in for the patch's?
    fn check_data(&self, cx: &Inputs<'_, '_>, name: &str, theirs: &Symbol<'_>) -> Result<(), LinkError> {
        let initialised = self.spot.is_some_and(|spot| {
            self.object.sections.get(spot.section as usize).is_some_and(|s| s.kind != elf::SHT_NOBITS.0)
        });
        // Weak objects with contents are the copies that every C++ object has of a table: the same or nothing.
        if initialised && !(self.vague && self.size == theirs.size && self.same_contents(cx, theirs)) {
            return Err(LinkError::RedefinedData {
                object: String::from(self.object.name),
                symbol: String::from(name),
            });
        }
        if self.size > theirs.size && theirs.size != 0 {
            return Err(LinkError::DataSize {
                object: String::from(self.object.name),
                symbol: String::from(name),
                patch: self.size,
                program: theirs.size,
            });
        }
        Ok(())
    }

    /// Are the program's initial bytes the same, apart from those that relocations fill?
    fn same_contents(&self, cx: &Inputs<'_, '_>, theirs: &Symbol<'_>) -> bool {
        let same = || {
            let spot = self.spot?;
            let data = self.object.sections.get(spot.section as usize)?.data;
            let (from, len) = (usize::try_from(spot.value).ok()?, usize::try_from(self.size).ok()?);
            let ours = data.get(from..from.checked_add(len)?)?;
            let program = cx.program.bytes(theirs.addr, theirs.size)?;
            let mut filled = alloc::vec![false; ours.len()];
            for r in cx.relocs_of(spot.object, spot.section) {
                let bytes = cx.arch.howto(r.r_type).map_or(8, |h| u64::from(h.field.bytes));
                for at in 0..bytes {
                    let at = r.offset.wrapping_add(at).checked_sub(spot.value).and_then(|i| usize::try_from(i).ok());
                    if let Some(cell) = at.and_then(|i| filled.get_mut(i)) {
                        *cell = true;
                    }
                }
            }
            Some(ours.iter().zip(program).zip(filled).all(|((a, b), filled)| filled || a == b))
        };
        same() == Some(true)
    }
}

/// A program's static symbol is another one than the patch's global of the same name.
fn note_local(cx: &Inputs<'_, '_>, name: &str, ours: &Ours<'_, '_>, messages: &mut Messages) {
    if matches!(names::program_symbol(cx.program, name), Found::None) {
        return;
    }
    messages.note(if ours.kind == FUNCTION {
        format!("`{name}` is a new function: the program's static function of that name is another one")
    } else {
        format!("`{name}` is a new object: the program's static one is another; declare it extern to use that")
    });
}
