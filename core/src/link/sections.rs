//! What becomes of each section: laid out, read, dropped, or refused by name.

use super::error::LinkError;
use super::input::{At, InSection, Kind, Object};
use alloc::{collections::BTreeSet, format, string::String, vec::Vec};
use object::elf;

/// Section of the replacement markers (`FIXFUN`).
pub(super) const MARKS: &str = ".tfix.marks";
/// Section of the patch's version (`PATCH_VERSION`).
pub(super) const VERSION: &str = ".tfix.version";

/// The parts of an image, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    ReadOnly,
    Code,
    Data,
}

/// What becomes of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Laid out.
    Keep(Part),
    /// Laid out with the other objects' unwind tables as one.
    EhFrame,
    /// Read by the linker.
    Marks,
    /// Read by the linker.
    Version,
    /// Not needed at run time.
    Drop,
    /// Another object has the same COMDAT group.
    Duplicate,
}

impl Fate {
    /// Part of the image.
    pub(super) fn laid_out(self) -> bool {
        matches!(self, Fate::Keep(_) | Fate::EhFrame)
    }
}

/// The fate of each section of each object.
pub(super) fn fates(objects: &[Object<'_>], max_align: u64) -> Result<Vec<Vec<Fate>>, LinkError> {
    let mut signatures = BTreeSet::new();
    let mut all = Vec::with_capacity(objects.len());
    for object in objects {
        let kept: Vec<bool> = object.groups.iter().map(|g| signatures.insert(g.signature.clone())).collect();
        let mut fates = Vec::with_capacity(object.sections.len());
        for section in &object.sections {
            let duplicate = section.group.is_some_and(|g| kept.get(g as usize) == Some(&false));
            let fate = if duplicate { Fate::Duplicate } else { fate(object, section)? };
            if fate.laid_out() {
                check_align(object, &section.name, section.align, max_align)?;
            }
            fates.push(fate);
        }
        for symbol in &object.symbols {
            refuse_symbol(object, symbol.name, symbol.kind, symbol.at, max_align)?;
        }
        all.push(fates);
    }
    Ok(all)
}

fn fate(object: &Object<'_>, s: &InSection<'_>) -> Result<Fate, LinkError> {
    let name: &str = &s.name;
    match name {
        MARKS => return Ok(Fate::Marks),
        VERSION => return Ok(Fate::Version),
        _ => {}
    }
    let is = |prefix: &str| name == prefix || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    if !s.is(elf::SHF_ALLOC) || s.is(elf::SHF_EXCLUDE) || s.kind == elf::SHT_NOTE.0 || is(".note") {
        return Ok(Fate::Drop);
    }
    let owned = || (String::from(object.name), String::from(name));
    let is_kind = |k: elf::SectionType| s.kind == k.0;
    if is_kind(elf::SHT_INIT_ARRAY)
        || is_kind(elf::SHT_FINI_ARRAY)
        || is_kind(elf::SHT_PREINIT_ARRAY)
        || [".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors", ".init", ".fini"].iter().any(|p| is(p))
    {
        if s.size == 0 {
            return Ok(Fate::Drop);
        }
        let (object, section) = owned();
        return Err(LinkError::Constructors { object, section });
    }
    if s.is(elf::SHF_TLS) || is(".tdata") || is(".tbss") {
        if s.size == 0 {
            return Ok(Fate::Drop);
        }
        let tls = |sym: &&super::input::InSymbol<'_>| {
            sym.kind == Kind::Tls
                && matches!(sym.at, At::Section { index, .. }
                    if object.sections.get(index as usize).is_some_and(|x| core::ptr::eq(x, s)))
        };
        let what = object.symbols.iter().find(tls).map_or_else(|| String::from(name), |v| format!("`{}`", v.name));
        return Err(LinkError::NewThreadLocal { object: String::from(object.name), what });
    }
    if is(".gcc_except_table") {
        if s.size == 0 {
            return Ok(Fate::Drop);
        }
        let (object, section) = owned();
        return Err(LinkError::ExceptionTable { object, section });
    }
    if name == ".eh_frame" {
        // Its type is SHT_PROGBITS or one of the processor's own.
        return Ok(if s.size == 0 || s.no_bits() { Fate::Drop } else { Fate::EhFrame });
    }
    if s.is(elf::SHF_COMPRESSED) {
        let why = format!("{name} is compressed though it is loaded");
        return Err(LinkError::Broken { object: String::from(object.name), what: "section headers", why });
    }
    if !is_kind(elf::SHT_PROGBITS) && !is_kind(elf::SHT_NOBITS) {
        // ABI flags, register usage and the like: they describe the object to a linker.
        return Ok(Fate::Drop);
    }
    match (s.is(elf::SHF_EXECINSTR), s.is(elf::SHF_WRITE)) {
        (true, true) => {
            let (object, section) = owned();
            Err(LinkError::WritableCode { object, section })
        }
        (true, false) => Ok(Fate::Keep(Part::Code)),
        (false, true) => Ok(Fate::Keep(Part::Data)),
        (false, false) => Ok(Fate::Keep(Part::ReadOnly)),
    }
}

fn refuse_symbol(object: &Object<'_>, name: &str, kind: Kind, at: At, max_align: u64) -> Result<(), LinkError> {
    match (kind, at) {
        (Kind::Ifunc, At::Section { .. } | At::Absolute(_)) => {
            Err(LinkError::PatchIfunc { object: String::from(object.name), symbol: String::from(name) })
        }
        (Kind::Tls, At::Common { .. }) => {
            Err(LinkError::NewThreadLocal { object: String::from(object.name), what: format!("`{name}`") })
        }
        (_, At::Common { align }) => check_align(object, name, align, max_align),
        _ => Ok(()),
    }
}

fn check_align(object: &Object<'_>, what: &str, align: u64, max: u64) -> Result<(), LinkError> {
    // 0 means the same as 1.
    if align == 0 || (align.is_power_of_two() && align <= max) {
        return Ok(());
    }
    Err(LinkError::Alignment { object: String::from(object.name), what: String::from(what), align, max })
}

/// The NUL-terminated strings of the sections with this fate, with the index of their object.
pub(super) fn strings<'o>(
    objects: &'o [Object<'_>],
    fates: &[Vec<Fate>],
    wanted: Fate,
) -> Result<Vec<(u32, &'o str)>, LinkError> {
    let mut out = Vec::new();
    for (i, (object, fates)) in objects.iter().zip(fates).enumerate() {
        for (section, _) in object.sections.iter().zip(fates).filter(|(_, f)| **f == wanted) {
            let bad = |why: &str| LinkError::BadMarker {
                object: String::from(object.name),
                section: section.name.clone().into_owned(),
                why: String::from(why),
            };
            if section.no_bits() && section.size != 0 || !section.relocs.is_empty() {
                return Err(bad("it has to hold character strings, and nothing else"));
            }
            for text in section.data.split(|b| *b == 0).filter(|t| !t.is_empty()) {
                let text = core::str::from_utf8(text).map_err(|_| bad("a string is not UTF-8"))?;
                if text.chars().any(char::is_control) {
                    return Err(bad("a string has control characters"));
                }
                out.push((i as u32, text.trim()));
            }
        }
    }
    Ok(out)
}

/// The patch's version: the contents of [`VERSION`] sections, or of a global array `patch_version`.
pub(super) fn version(objects: &[Object<'_>], fates: &[Vec<Fate>]) -> Result<String, LinkError> {
    let mut found = strings(objects, fates, Fate::Version)?;
    for (i, object) in objects.iter().enumerate() {
        for symbol in object.symbols.iter().filter(|s| !s.is_local() && s.name == "patch_version") {
            let At::Section { index, value } = symbol.at else { continue };
            let Some(section) = object.sections.get(index as usize).filter(|s| s.relocs.is_empty()) else { continue };
            let (Ok(from), Ok(len)) = (usize::try_from(value), usize::try_from(symbol.size)) else { continue };
            let bytes = section.data.get(from..from.saturating_add(len)).unwrap_or(&[]);
            let text = bytes.split(|b| *b == 0).next().and_then(|t| core::str::from_utf8(t).ok());
            if let Some(text) = text.filter(|t| !t.is_empty() && !t.chars().any(char::is_control)) {
                found.push((i as u32, text));
            }
        }
    }
    let Some(&(first, version)) = found.first() else { return Ok(String::new()) };
    let name = |i: u32| objects.get(i as usize).map_or_else(String::new, |o| String::from(o.name));
    match found.iter().find(|(_, v)| *v != version) {
        None => Ok(String::from(version)),
        Some(&(other, v)) => Err(LinkError::VersionConflict {
            first_object: name(first),
            first: String::from(version),
            second_object: name(other),
            second: String::from(v),
        }),
    }
}
