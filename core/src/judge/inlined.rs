//! Inlined copies of a replaced function, as the program's DWARF lists them.
//!
//! One pass over `.debug_info` notes every inlined copy by the entry it is a copy of (its abstract origin), and which of
//! these entries describe a replaced function: those that a concrete function at the replaced entry comes from, and for
//! functions visible to other units also those of the same linkage name (each unit that inlines a header's function has
//! its own).

use super::callers;
use super::error::{InlinedCopy, JudgeError};
use super::listing::Listing;
use super::window::{Judged, names};
use crate::addr::LinkAddr;
use crate::field::Endian;
use crate::model::Site;
use crate::program::Binding;
use alloc::{borrow::Cow, collections::BTreeSet, format, string::String, vec::Vec};
use gimli::{AbbreviationsCacheStrategy, AttributeValue, DebuggingInformationEntry, RunTimeEndian, constants as dw};

/// What compilers wrote for `DW_AT_linkage_name` before DWARF 4 had it.
const OLD_LINKAGE_NAME: dw::DwAt = dw::DwAt(0x2007);

type Slice<'a> = gimli::EndianSlice<'a, RunTimeEndian>;
type Dwarf<'a> = gimli::Dwarf<Slice<'a>>;
type Unit<'a> = gimli::Unit<Slice<'a>>;
type Die<'a> = DebuggingInformationEntry<Slice<'a>>;

/// How many references from one entry to another are followed for a name.
const CHAIN: usize = 8;

/// What the debug information says of one site.
#[derive(Default)]
pub(super) struct SiteDebug {
    /// It describes the function.
    pub known: bool,
    /// Copies in functions that are not replaced.
    pub copies: Vec<InlinedCopy>,
    /// The compiler marked the function as inlined somewhere.
    pub marked: bool,
    /// It lists at least one copy, wherever.
    pub listed: bool,
    /// `DW_AT_producer` of the unit that defines the function.
    pub producer: Option<String>,
}

/// What the debug information says.
pub(super) struct Found {
    /// For each site.
    pub sites: Vec<SiteDebug>,
    /// Why it could not be read to its end.
    pub broken: Option<String>,
}

/// Refuses a function with copies.
pub(super) fn judge(site: &Site, found: &SiteDebug) -> Result<(), JudgeError> {
    let function = site.old.clone();
    if !found.copies.is_empty() {
        return Err(JudgeError::Inlined { function, copies: found.copies.clone() });
    }
    if found.known && found.marked && !found.listed {
        return Err(JudgeError::InlinedSomewhere { function });
    }
    Ok(())
}

/// May code that `producer` made rely on registers that its callee, by the ABI, might change? GCC does so from -O2 on,
/// unless told otherwise.
pub(super) fn has_ipa_ra(producer: &str) -> bool {
    if !producer.starts_with("GNU ") {
        return false;
    }
    let (mut level, mut ipa_ra) = (0u8, None);
    let mut options = 0;
    for option in producer.split_whitespace().filter(|o| o.starts_with('-')) {
        options += 1;
        match option {
            "-fno-ipa-ra" => ipa_ra = Some(false),
            "-fipa-ra" => ipa_ra = Some(true),
            "-O0" => level = 0,
            "-O" | "-O1" | "-Og" => level = 1,
            _ if option.starts_with("-O") => level = 2,
            _ => {}
        }
    }
    // Without recorded options nothing is known.
    ipa_ra.unwrap_or(level >= 2 || options == 0)
}

/// An inlined copy, before anyone asked what it is a copy of.
struct Copy {
    origin: usize,
    unit: usize,
    die: gimli::UnitOffset,
    container: Option<gimli::UnitOffset>,
}

/// Reads what there is.
pub(super) fn read(listing: &Listing<'_>, sites: &[Site], judged: &[Judged]) -> Found {
    let mut walk = Walk::new(listing, sites, judged);
    let broken = walk.run().err().map(|e| format!("{e}"));
    Found { sites: walk.finish(), broken }
}

struct Walk<'a> {
    listing: &'a Listing<'a>,
    sites: &'a [Site],
    judged: &'a [Judged],
    dwarf: Dwarf<'a>,
    /// Units with their offsets in the section, ascending.
    units: Vec<(usize, Unit<'a>)>,
    copies: Vec<Copy>,
    /// For each site: entries that describe it.
    origins: Vec<BTreeSet<usize>>,
    /// For each site: names by which other units may know it.
    names: Vec<Vec<&'a str>>,
    found: Vec<SiteDebug>,
}

impl<'a> Walk<'a> {
    fn new(listing: &'a Listing<'a>, sites: &'a [Site], judged: &'a [Judged]) -> Walk<'a> {
        let endian = match listing.arch.data_endian() {
            Endian::Little => RunTimeEndian::Little,
            Endian::Big => RunTimeEndian::Big,
        };
        let sections = &listing.program.debug.sections;
        let load = |id: gimli::SectionId| -> Result<Slice<'a>, core::convert::Infallible> {
            let data: &'a [u8] = sections.get(id.name()).map_or(&[], |c: &'a Cow<'_, [u8]>| c.as_ref());
            Ok(Slice::new(data, endian))
        };
        let mut dwarf = match Dwarf::load(load) {
            Ok(dwarf) => dwarf,
            Err(never) => match never {},
        };
        dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
        let names = sites
            .iter()
            .map(|s| names(listing, s).filter(|n| n.binding != Binding::Local).map(|n| n.name).collect())
            .collect();
        Walk {
            listing,
            sites,
            judged,
            dwarf,
            units: Vec::new(),
            copies: Vec::new(),
            origins: sites.iter().map(|_| BTreeSet::new()).collect(),
            names,
            found: sites.iter().map(|_| SiteDebug::default()).collect(),
        }
    }

    fn run(&mut self) -> gimli::Result<()> {
        let mut headers = self.dwarf.units();
        // All units first: entries refer to one another across them.
        let mut broken = Ok(());
        loop {
            let unit = match headers.next() {
                Ok(Some(header)) => match header.debug_info_offset() {
                    Some(at) => self.dwarf.unit(header).map(|u| (at.0, u)),
                    None => continue,
                },
                Ok(None) => break,
                Err(e) => {
                    broken = Err(e);
                    break;
                }
            };
            match unit {
                Ok(unit) => self.units.push(unit),
                Err(e) => broken = Err(e),
            }
        }
        let units = core::mem::take(&mut self.units);
        for (index, (_, unit)) in units.iter().enumerate() {
            if let Err(e) = self.unit(index, unit, &units) {
                broken = Err(e);
            }
        }
        self.units = units;
        broken
    }

    fn unit(&mut self, index: usize, unit: &Unit<'a>, units: &[(usize, Unit<'a>)]) -> gimli::Result<()> {
        let mut entries = unit.entries_raw(None)?;
        let mut die = Die::null();
        // Functions that the walk is inside of, by depth.
        let mut inside: Vec<(isize, gimli::UnitOffset)> = Vec::new();
        while !entries.is_empty() {
            let (depth, offset) = (entries.next_depth(), entries.next_offset());
            let Some(abbrev) = entries.read_abbreviation()? else { continue };
            while inside.last().is_some_and(|l| l.0 >= depth) {
                inside.pop();
            }
            match abbrev.tag() {
                dw::DW_TAG_subprogram => {
                    let mut attrs = Vec::new();
                    entries.read_attributes(abbrev.attributes(), &mut attrs)?;
                    if abbrev.has_children() {
                        inside.push((depth, offset));
                    }
                    die = unit.entry(offset)?;
                    self.function(unit, &die, units)?;
                }
                dw::DW_TAG_inlined_subroutine => {
                    for &spec in abbrev.attributes() {
                        let attr = entries.read_attribute(spec)?;
                        if attr.name() == dw::DW_AT_abstract_origin
                            && let Some(origin) = section_offset(unit, &attr.value())
                        {
                            let container = inside.last().map(|l| l.1);
                            self.copies.push(Copy { origin, unit: index, die: offset, container });
                        }
                    }
                }
                _ => entries.skip_attributes(abbrev.attributes())?,
            }
        }
        drop(die);
        Ok(())
    }

    /// Notes whether a function's entry describes a site.
    fn function(&mut self, unit: &Unit<'a>, die: &Die<'a>, units: &[(usize, Unit<'a>)]) -> gimli::Result<()> {
        let at = self.start(unit, die);
        let own = die.offset().to_unit_section_offset(&unit.header).0;
        let inline = die.attr_value(dw::DW_AT_inline);
        for i in 0..self.sites.len() {
            if at == Some(self.sites[i].entry.0) {
                self.origins[i].insert(own);
                if let Some(origin) = die.attr_value(dw::DW_AT_abstract_origin)
                    && let Some(offset) = section_offset(unit, &origin)
                {
                    self.origins[i].insert(offset);
                    if let Some((unit, die)) = entry_at(units, offset) {
                        self.found[i].marked |= is_inlined(die.attr_value(dw::DW_AT_inline));
                        self.found[i].producer = self.producer(unit);
                    }
                }
                self.found[i].known = true;
                if self.found[i].producer.is_none() {
                    self.found[i].producer = self.producer(unit);
                }
            } else if inline.is_some() && !self.names[i].is_empty() {
                let (name, external) = self.name(unit, die, units);
                if external && name.is_some_and(|n| self.names[i].iter().any(|m| m.as_bytes() == n.slice())) {
                    self.origins[i].insert(own);
                }
            }
        }
        Ok(())
    }

    fn producer(&self, unit: &Unit<'a>) -> Option<String> {
        let root = unit.entry(unit.header.root_offset()).ok()?;
        let producer = root.attr_value(dw::DW_AT_producer)?;
        let text = self.dwarf.attr_string(unit, producer).ok()?;
        Some(String::from(text.to_string_lossy()))
    }

    /// The first address of a function or copy.
    fn start(&self, unit: &Unit<'a>, die: &Die<'a>) -> Option<u64> {
        for name in [dw::DW_AT_low_pc, dw::DW_AT_entry_pc] {
            if let Some(value) = die.attr_value(name)
                && let Ok(Some(addr)) = self.dwarf.attr_address(unit, value)
            {
                return Some(addr);
            }
        }
        let ranges = die.attr_value(dw::DW_AT_ranges)?;
        let mut ranges = self.dwarf.attr_ranges(unit, ranges).ok()??;
        Some(ranges.next().ok()??.begin)
    }

    /// The linkage name (or name) of an entry, and whether it is visible outside its unit; both may be on the entry
    /// that this one comes from.
    fn name(&self, unit: &Unit<'a>, die: &Die<'a>, units: &[(usize, Unit<'a>)]) -> (Option<Slice<'a>>, bool) {
        let mut named = None;
        let mut external = false;
        let mut place = (unit_of(units, unit), die.offset());
        for _ in 0..CHAIN {
            let Some((_, unit)) = place.0.and_then(|i| units.get(i)) else { break };
            let Ok(die) = unit.entry(place.1) else { break };
            let text = |n| die.attr_value(n).and_then(|v| self.dwarf.attr_string(unit, v).ok());
            external |= die.attr_value(dw::DW_AT_external).is_some();
            if let Some(linkage) = text(dw::DW_AT_linkage_name).or_else(|| text(OLD_LINKAGE_NAME)) {
                return (Some(linkage), external || die.has_attr(dw::DW_AT_external));
            }
            named = named.or_else(|| text(dw::DW_AT_name));
            let next = die.attr_value(dw::DW_AT_abstract_origin).or_else(|| die.attr_value(dw::DW_AT_specification));
            let Some(offset) = next.and_then(|v| section_offset(unit, &v)) else { break };
            let Some(index) = unit_index(units, offset) else { break };
            let Some(local) = offset.checked_sub(units[index].0) else { break };
            place = (Some(index), gimli::UnitOffset(local));
        }
        (named, external)
    }

    fn finish(mut self) -> Vec<SiteDebug> {
        let mut found = core::mem::take(&mut self.found);
        for copy in &self.copies {
            for (i, origins) in self.origins.iter().enumerate() {
                if !origins.contains(&copy.origin) {
                    continue;
                }
                // A function of another unit that merely has the same name is no description of this one.
                found[i].listed = true;
                if let Some(place) = self.place(copy)
                    && !found[i].copies.contains(&place)
                {
                    found[i].copies.push(place);
                }
            }
        }
        for f in &mut found {
            f.copies.sort_by_key(|c| c.addr);
        }
        found
    }

    /// Where a copy lies, unless in a replaced function or in code that the linker dropped.
    fn place(&self, copy: &Copy) -> Option<InlinedCopy> {
        let (_, unit) = self.units.get(copy.unit)?;
        let die = unit.entry(copy.die).ok()?;
        let container = copy.container.and_then(|c| unit.entry(c).ok());
        let around = container.as_ref().and_then(|c| self.start(unit, c));
        let addr = self.start(unit, &die).filter(|&a| self.listing.is_code(a));
        // No address around it: an abstract instance, whose concrete ones are listed on their own.
        let around = around.filter(|&a| self.listing.is_code(a));
        let here = addr.or(around)?;
        if callers::inside(self.judged, here) || around.is_some_and(|a| callers::inside(self.judged, a)) {
            return None;
        }
        let into = self.listing.extent(here).map(|e| String::from(e.symbol.name));
        let into = container
            .and_then(|c| self.name(unit, &c, &self.units).0)
            .map(|n| String::from(n.to_string_lossy()))
            .or(into)
            .unwrap_or_else(|| format!("code at {here:#x}"));
        let number = |n| die.attr_value(n).and_then(|v| v.udata_value()).unwrap_or(0);
        let file = self.file(unit, number(dw::DW_AT_call_file), &die).unwrap_or_default();
        Some(InlinedCopy { into, file, line: number(dw::DW_AT_call_line), addr: addr.map(LinkAddr) })
    }

    fn file(&self, unit: &Unit<'a>, udata: u64, die: &Die<'a>) -> Option<String> {
        let index = match die.attr_value(dw::DW_AT_call_file)? {
            AttributeValue::FileIndex(i) => i,
            _ => udata,
        };
        let header = unit.line_program.as_ref()?.header();
        let path = self.dwarf.attr_string(unit, header.file(index)?.path_name()).ok()?;
        Some(String::from(path.to_string_lossy()))
    }
}

/// Did the compiler inline it (whether or not it was declared inline)?
fn is_inlined(inline: Option<AttributeValue<Slice<'_>>>) -> bool {
    matches!(inline, Some(AttributeValue::Inline(dw::DW_INL_inlined | dw::DW_INL_declared_inlined)))
}

/// The offset in `.debug_info` that a reference means.
fn section_offset(unit: &Unit<'_>, value: &AttributeValue<Slice<'_>>) -> Option<usize> {
    match value {
        AttributeValue::UnitRef(o) => {
            let start = unit.header.debug_info_offset()?.0;
            start.checked_add(o.0)
        }
        AttributeValue::DebugInfoRef(o) => Some(o.0),
        _ => None,
    }
}

fn unit_index(units: &[(usize, Unit<'_>)], offset: usize) -> Option<usize> {
    units.partition_point(|u| u.0 <= offset).checked_sub(1)
}

fn unit_of(units: &[(usize, Unit<'_>)], unit: &Unit<'_>) -> Option<usize> {
    let at = unit.header.debug_info_offset()?.0;
    units.binary_search_by_key(&at, |u| u.0).ok()
}

fn entry_at<'u, 'a>(units: &'u [(usize, Unit<'a>)], offset: usize) -> Option<(&'u Unit<'a>, Die<'a>)> {
    let (start, unit) = units.get(unit_index(units, offset)?)?;
    let die = unit.entry(gimli::UnitOffset(offset.checked_sub(*start)?)).ok()?;
    Some((unit, die))
}

#[cfg(test)]
mod tests {
    use super::has_ipa_ra;

    #[test]
    fn who_allocates_registers_across_functions() {
        assert!(has_ipa_ra("GNU C17 12.2.0 -mtune=generic -g -O2"));
        assert!(has_ipa_ra("GNU C17 12.2.0 -O0 -O3"));
        assert!(has_ipa_ra("GNU C17 4.8"));
        assert!(!has_ipa_ra("GNU C17 12.2.0 -mtune=generic -g -O2 -fno-ipa-ra"));
        assert!(!has_ipa_ra("GNU C17 12.2.0 -mtune=generic -g -O1"));
        assert!(!has_ipa_ra("GNU C17 12.2.0 -mtune=generic -g"));
        assert!(!has_ipa_ra("clang version 14.0.6"));
    }
}
