//! The patch linker: patch objects and the program become an image and residue.
//!
//! The stages, a file each: `input` parses objects; `sections` says what becomes of each section; `globals` applies the
//! ELF rules to global names; `replace` finds the functions to be replaced; `resolve` says what every symbol stands for;
//! `scan` reads relocations and counts GOT slots and veneers; `layout` places everything; `relocate` settles what does
//! not depend on a load address and keeps the rest as [`Residue`](crate::model::Residue).
//!
//! Rules that keep a patched process right:
//! * A call of a replaced function from the patch goes straight to the new one; its *address* is that of the program's
//!   entry, so that pointers compare equal and stay valid after the patch is undone. In `.eh_frame` it is the new function.
//! * Uninitialised data that the program has too is the program's; initialised data of the same name is refused.
//! * A static symbol of another file never wins over a global one, and of several statics none does.

mod ehframe;
mod error;
mod globals;
mod input;
mod layout;
mod names;
mod relocate;
mod replace;
mod report;
mod resolve;
mod scan;
mod sections;
mod symbols;

pub use error::{Candidate, LinkError, Place};
pub use names::Demangle;
pub use report::{GotSlot, How, LinkReport, Placement, ResolvedSymbol, SlotKind, Veneer};

use crate::arch::{AbiFacts, Arch, ElfIdent, Guard, NormalizeError, RawRelocs, Reloc};
use crate::model::{Package, ProgramRef, Site, Span};
use crate::package::format::MAX_PAGE_SIZE;
use crate::program::Program;
use crate::property;
use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};
use core::cell::RefCell;
use globals::Globals;
use input::Object;
use layout::{Counts, Layout, Nudges};
use relocate::{Contents, Values};
use replace::Replacement;
use report::Messages;
use resolve::{Resolver, Target};
use scan::{Plan, Slot};
use sections::{Fate, Part};
use symbols::Symbols;

/// What a caller can choose.
#[derive(Clone, Default)]
pub struct LinkOptions<'a> {
    /// `--replace NEW=OLD`; OLD may be `file.c:name`.
    pub replace: Vec<(String, String)>,
    /// `--bind NAME=file.c:NAME`: which of several static symbols of the program NAME means.
    pub bind: Vec<(String, String)>,
    /// `--base`: the image's load address.
    pub base: Option<u64>,
    /// `--page-size`: alignment of spans, where it is not to be the largest page size of the architecture.
    pub page_size: Option<u64>,
    /// Name of the package.
    pub name: String,
    /// `--description`
    pub description: String,
    /// File name of the program without its directory, for messages.
    pub program_file: String,
    /// Names that the libraries which the program needs define.
    pub known_imports: BTreeSet<String>,
    /// [`LinkOptions::known_imports`] is complete: all these libraries could be read.
    pub imports_known: bool,
    /// Turns mangled names into readable ones, for names in markers and options.
    pub demangle: Option<Demangle<'a>>,
}

/// The outcome.
#[derive(Clone, Debug)]
pub struct Linked {
    /// The package; of its sites `pad`, `window`, `expected` and `body` are still empty.
    pub package: Package,
    /// How it came about.
    pub report: LinkReport,
}

/// What all stages read.
struct Inputs<'o, 'd> {
    arch: &'o dyn Arch,
    program: &'o Program<'d>,
    objects: &'o [Object<'d>],
    fates: &'o [Vec<Fate>],
    /// For each object, relocations by section.
    relocs: &'o [BTreeMap<u32, Vec<Reloc>>],
    options: &'o LinkOptions<'o>,
    page_size: u64,
    /// Indices of the `--bind` options that were of use.
    binds: RefCell<BTreeSet<usize>>,
    /// Indirect branches into the program's code have to end at landing pads.
    guarded: bool,
}

impl<'o> Inputs<'o, '_> {
    fn relocs_of(&self, object: u32, section: u32) -> &'o [Reloc] {
        self.relocs.get(object as usize).and_then(|r| r.get(&section)).map_or(&[], Vec::as_slice)
    }

    /// What `--bind` says about a name.
    fn bind(&self, name: &str) -> Option<&'o str> {
        let (i, (_, target)) = self.options.bind.iter().enumerate().find(|(_, (n, _))| n == name)?;
        self.binds.borrow_mut().insert(i);
        Some(target)
    }

    /// An option without effect is a slip that would go unnoticed.
    fn check_binds(&self) -> Result<(), LinkError> {
        let used = self.binds.borrow();
        let unused = self.options.bind.iter().enumerate().find(|(i, _)| !used.contains(i));
        unused.map_or(Ok(()), |(_, (name, target))| {
            Err(LinkError::BadBind {
                name: name.clone(),
                target: target.clone(),
                why: String::from("the patch does not ask for that name, or it is defined elsewhere"),
            })
        })
    }
}

/// Links patch objects, given as (file name, contents), against `program`.
///
/// # Errors
/// [`LinkError`]
pub fn link(
    arch: &dyn Arch,
    program: &Program<'_>,
    objects: &[(String, &[u8])],
    options: &LinkOptions<'_>,
) -> Result<Linked, LinkError> {
    let page_size = page_size(arch, options)?;
    let mut parsed = Vec::with_capacity(objects.len());
    for (name, data) in objects {
        let object = Object::parse(arch, name, data)?;
        same_machine(&object, program)?;
        compatible(arch, &object, program)?;
        parsed.push(object);
    }
    let Some(first) = parsed.first() else { return Err(LinkError::NoObjects) };
    let ident = first.ident;
    let fates = sections::fates(&parsed, page_size)?;
    let mut relocs = Vec::with_capacity(parsed.len());
    for (object, fates) in parsed.iter().zip(&fates) {
        relocs.push(normalize(arch, object, fates)?);
    }
    let eh_frames = eh_frames(&parsed, &fates, &mut relocs)?;
    let cx = Inputs {
        arch,
        program,
        objects: &parsed,
        fates: &fates,
        relocs: &relocs,
        options,
        page_size,
        binds: RefCell::new(BTreeSet::new()),
        guarded: arch.guard().is_some_and(|g| guarded(program.properties, ident, g)),
    };

    let mut messages = Messages::default();
    let globals = Globals::collect(&parsed, &fates)?;
    let version = sections::version(&parsed, &fates)?;
    let sites = replace::find(&cx, &globals, &mut messages)?;
    let theirs = globals::shared_with_program(&cx, &globals, &sites, &mut messages)?;
    let names: BTreeSet<&str> = theirs.keys().copied().collect();
    let bound = |name: &str| names.contains(name);
    let mut resolver = Resolver::new(&cx, &globals, theirs, &sites);
    let mut plan = Plan::scan(&cx, &mut resolver, &mut messages)?;
    cx.check_binds()?;

    let mut nudges = Nudges::new();
    let (layout, contents, symbols, (residue, residue_counts)) = loop {
        let layout = loop {
            let counts = Counts {
                slots: plan.slots.len() as u64,
                veneers: plan.veneers.len() as u64,
                landings: sites.len() as u64,
            };
            let layout = Layout::new(&cx, &globals, &bound, &eh_frames, counts, &nudges)?;
            let far = Values { cx: &cx, layout: &layout }.out_of_reach(&plan);
            // Every round gives a veneer to branches that had none, so this ends.
            if !plan.divert_all(&cx, &far)? {
                break layout;
            }
        };
        check_base(&cx, &layout)?;

        let values = Values { cx: &cx, layout: &layout };
        let mut contents = contents(&cx, &layout, &eh_frames);
        let mut symbols = Symbols::of_image(&cx, &globals, &layout, &bound);
        let left = values.apply(&plan, &resolver, &mut symbols, &mut contents)?;
        if !nudge(&cx, &layout, &contents, &mut nudges)? {
            break (layout, contents, symbols, left);
        }
    };
    arrays_of_program(&cx, &mut messages);
    hidden_addresses(&cx, &sites, &mut messages);
    let guarded = cx.guarded && promised(&cx, &mut messages);

    let spans = layout.spans.iter().zip(contents);
    let mut package = Package {
        ident,
        name: options.name.clone(),
        version,
        description: options.description.clone(),
        program: ProgramRef {
            file: options.program_file.clone(),
            identity: program.identity.clone(),
            fixed: program.fixed,
        },
        base: options.base,
        page_size,
        guarded,
        spans: spans.map(|(s, data)| Span { perm: s.perm(), offset: s.offset, size: s.size, data }).collect(),
        symbols: symbols.all,
        residue,
        sites: sites.iter().enumerate().map(|(i, r)| site(r, i, &layout)).collect(),
        eh_frame: layout.eh_frame,
        trap: layout.trap,
        warnings: messages.warnings.clone(),
    };
    // Some trampolines end with an indirect branch.
    package.guarded &= package.sites.iter().all(|s| {
        let span = package.spans.iter().find(|p| p.perm.exec && (p.offset..p.offset + p.size).contains(&s.new_offset));
        span.and_then(|p| p.data.get((s.new_offset - p.offset) as usize..))
            .is_some_and(|code| arch.takes_indirect(code))
    });
    let report = LinkReport {
        relocations: plan.counts.clone(),
        residue: residue_counts,
        symbols: resolved(&resolver, &layout),
        notes: messages.notes,
        warnings: messages.warnings,
        placements: layout.placements(&cx, &globals),
        got: got(&plan, &layout),
        veneers: veneers(&plan, &layout),
    };
    Ok(Linked { package, report })
}

fn same_machine(object: &Object<'_>, program: &Program<'_>) -> Result<(), LinkError> {
    let (o, p) = (&object.ident, &program.ident);
    if (o.is_64, o.endian, o.machine) == (p.is_64, p.endian, p.machine) {
        return Ok(());
    }
    let text = |i: &crate::arch::ElfIdent| {
        format!("{}-bit {:?}-endian machine {}", if i.is_64 { 64 } else { 32 }, i.endian, i.machine)
    };
    let why = format!("it is for {}, the program for {}", text(o), text(p));
    Err(LinkError::WrongMachine { object: String::from(object.name), why })
}

/// The least page size: what is put in front of code may want as much alignment.
const MIN_PAGE_SIZE: u64 = 16;

fn page_size(arch: &dyn Arch, options: &LinkOptions<'_>) -> Result<u64, LinkError> {
    let size = options.page_size.unwrap_or(arch.max_page_size()).max(1);
    let fits = options.page_size.is_none() || (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&size);
    if size.is_power_of_two() && fits { Ok(size) } else { Err(LinkError::BadPageSize { size }) }
}

/// Do the ABIs of object and program go together, and can its functions be handled?
fn compatible(arch: &dyn Arch, object: &Object<'_>, program: &Program<'_>) -> Result<(), LinkError> {
    let ours = |name: &str| object.sections.iter().find(|s| s.name == name).map(|s| s.data);
    let theirs = |name: &str| program.section(name).map(|s| s.data);
    let (ours, theirs) =
        (AbiFacts { ident: object.ident, section: &ours }, AbiFacts { ident: program.ident, section: &theirs });
    arch.same_abi(&ours, &theirs).map_err(|e| LinkError::AbiMismatch {
        object: String::from(object.name),
        why: e.why,
        hint: e.hint,
    })?;
    let is_code = |s: &&input::InSymbol<'_>| match (s.kind, s.at) {
        (input::Kind::Function | input::Kind::Ifunc, _) => true,
        (input::Kind::Untyped, input::At::Section { index, .. }) => {
            !s.is_local() && object.sections.get(index as usize).is_some_and(|x| x.is(object::elf::SHF_EXECINSTR))
        }
        (input::Kind::Untyped, input::At::Undefined) => s.other != 0,
        _ => false,
    };
    for s in object.symbols.iter().filter(is_code) {
        let value = if let input::At::Section { value, .. } = s.at { value } else { 0 };
        arch.accepts_function(s.other, value).map_err(|why| LinkError::UnsupportedIsa {
            object: String::from(object.name),
            symbol: String::from(s.name),
            why,
        })?;
    }
    Ok(())
}

/// The relocations of everything that is laid out, in the neutral form.
fn normalize(arch: &dyn Arch, object: &Object<'_>, fates: &[Fate]) -> Result<BTreeMap<u32, Vec<Reloc>>, LinkError> {
    let mut out = BTreeMap::new();
    let name = |i: u32| object.symbols.get(i as usize).map_or("", |s| s.name);
    let is_local = |i: u32| object.symbols.get(i as usize).is_some_and(input::InSymbol::is_local);
    for (i, (section, fate)) in object.sections.iter().zip(fates).enumerate() {
        if !fate.laid_out() || section.relocs.is_empty() {
            continue;
        }
        let mut all = Vec::new();
        for table in &section.relocs {
            let raw = RawRelocs {
                entries: table.entries,
                rela: table.rela,
                section: section.data,
                is_64: object.ident.is_64,
                endian: object.ident.endian,
                is_local: &is_local,
                name: &name,
            };
            let bad = |e: NormalizeError| LinkError::BadRelocation {
                name: arch.reloc_name(e.r_type).map_or_else(|| format!("type {}", e.r_type), String::from),
                place: Box::new(Place {
                    object: String::from(object.name),
                    section: section.name.clone().into_owned(),
                    offset: e.offset,
                    within: object.within(i as u32, e.offset),
                }),
                what: e.what,
            };
            all.extend(arch.normalize(&raw).map_err(bad)?);
        }
        out.insert(i as u32, all);
    }
    Ok(out)
}

/// The unwind tables, ready to be laid out one after the other.
fn eh_frames(
    objects: &[Object<'_>],
    fates: &[Vec<Fate>],
    relocs: &mut [BTreeMap<u32, Vec<Reloc>>],
) -> Result<BTreeMap<(u32, u32), Vec<u8>>, LinkError> {
    let mut out = BTreeMap::new();
    for (o, ((object, fates), relocs)) in objects.iter().zip(fates).zip(relocs).enumerate() {
        let dropped = |symbol: u32| {
            let at = object.symbols.get(symbol as usize).map(|s| s.at);
            matches!(at, Some(input::At::Section { index, .. })
                if fates.get(index as usize).is_some_and(|f| !f.laid_out()))
        };
        for (i, (section, _)) in
            object.sections.iter().zip(fates).enumerate().filter(|(_, (_, f))| **f == Fate::EhFrame)
        {
            let mut none = Vec::new();
            let relocs = relocs.get_mut(&(i as u32)).unwrap_or(&mut none);
            let table = ehframe::prepare(object.name, section.data, relocs, &dropped, object.ident.endian)?;
            if !table.is_empty() {
                out.insert((o as u32, i as u32), table);
            }
        }
    }
    Ok(out)
}

fn check_base(cx: &Inputs<'_, '_>, layout: &Layout) -> Result<(), LinkError> {
    let Some(base) = cx.options.base else { return Ok(()) };
    let bad = |why: String| Err(LinkError::BadBase { base, why });
    let page = cx.page_size;
    if base % page != 0 {
        return bad(format!("it is not a multiple of {page:#x}"));
    }
    let last = base.checked_add(layout.size.saturating_sub(1));
    let Some(last) = last.filter(|l| cx.arch.address_bits() >= 64 || *l <= u64::from(u32::MAX)) else {
        return bad(format!("{:#x} bytes do not fit there", layout.size));
    };
    let hits = |s: &&crate::program::Segment<'_>| base < s.addr.0.saturating_add(s.size) && s.addr.0 <= last;
    match cx.program.segments.iter().filter(|_| cx.program.fixed).find(hits) {
        Some(s) => bad(format!("the program's segment at {} is there", s.addr)),
        None => Ok(()),
    }
}

/// The image's bytes before relocation.
fn contents(cx: &Inputs<'_, '_>, layout: &Layout, eh_frames: &BTreeMap<(u32, u32), Vec<u8>>) -> Contents {
    let mut out = Contents::new();
    for span in &layout.spans {
        let mut bytes = alloc::vec![0u8; usize::try_from(span.filled).unwrap_or(0)];
        // Whatever runs into a gap stops there.
        let trap = cx.arch.breakpoint();
        if span.part == Part::Code && !trap.is_empty() {
            bytes.chunks_exact_mut(trap.len()).for_each(|c| c.copy_from_slice(trap));
        }
        for (o, object) in cx.objects.iter().enumerate() {
            for (i, section) in object.sections.iter().enumerate() {
                let key = (o as u32, i as u32);
                let data = eh_frames.get(&key).map_or(section.data, Vec::as_slice);
                let Some(at) = layout.section(key.0, key.1) else { continue };
                let from = at.checked_sub(span.offset).and_then(|f| usize::try_from(f).ok());
                let range = from.and_then(|f| Some(f..f.checked_add(data.len())?));
                if let Some(cell) = range.and_then(|r| bytes.get_mut(r)) {
                    cell.copy_from_slice(data);
                }
            }
        }
        if let Some(table) = layout.eh_frame.filter(|_| span.part == Part::ReadOnly) {
            let end = usize::try_from(table.0 + table.1 - span.offset).unwrap_or(0);
            if let Some(terminator) = bytes.get_mut(end.saturating_sub(4)..end) {
                terminator.fill(0);
            }
        }
        out.push(bytes);
    }
    out
}

/// How often a section is moved before it is given up.
const MAX_NUDGES: u64 = 64;

/// Moves a section with code that some processors get wrong where it lies; false if there is none.
fn nudge(cx: &Inputs<'_, '_>, layout: &Layout, contents: &Contents, nudges: &mut Nudges) -> Result<bool, LinkError> {
    let base = cx.options.base.unwrap_or(0);
    let code = layout.spans.iter().zip(contents).filter(|(s, _)| s.part == Part::Code);
    let Some(hazard) = code.filter_map(|(s, bytes)| cx.arch.hazard(bytes, base.wrapping_add(s.offset))).next() else {
        return Ok(false);
    };
    let offset = hazard.at.wrapping_sub(base);
    let at = layout.section_at(offset);
    let object = at.and_then(|(o, _)| cx.objects.get(o as usize));
    let section = object.and_then(|o| o.sections.get(at.map_or(0, |a| a.1) as usize));
    if let (Some(key), Some(section)) = (at, section) {
        let step = section.align.max(cx.arch.breakpoint().len() as u64);
        let room = nudges.entry(key).or_default();
        *room += step;
        if *room <= MAX_NUDGES * step {
            return Ok(true);
        }
    }
    Err(LinkError::Hazard {
        object: object.map_or_else(String::new, |o| String::from(o.name)),
        section: section.map_or_else(String::new, |s| s.name.clone().into_owned()),
        what: hazard.what,
        offset,
    })
}

fn site(r: &Replacement, index: usize, layout: &Layout) -> Site {
    Site {
        old: r.old_name.clone(),
        new: r.new_name.clone(),
        entry: r.entry,
        pad: 0,
        window: 0,
        expected: Vec::new(),
        body: Vec::new(),
        new_offset: layout.offset_of(Target::Spot(r.new)).unwrap_or(0),
        landing: layout.landing(index),
        own_address: r.own_address,
    }
}

/// Do these notes promise landing pads?
fn guarded(notes: &[u8], ident: ElfIdent, guard: Guard) -> bool {
    let value = property::value(notes, ident.endian, ident.is_64, guard.property);
    value.is_some_and(|v| v & guard.bits == guard.bits)
}

/// Do all objects promise landing pads, as the program does? Else the image can't be guarded.
fn promised(cx: &Inputs<'_, '_>, messages: &mut Messages) -> bool {
    let Some(guard) = cx.arch.guard() else { return false };
    let padded = |o: &&Object<'_>| {
        let notes = o.sections.iter().find(|s| s.name == ".note.gnu.property");
        notes.is_some_and(|s| guarded(s.data, o.ident, guard))
    };
    let without = cx.objects.iter().find(|o| !padded(o));
    if let Some(object) = without {
        messages.warn(format!(
            "{} has no landing pads, as the program has: indirect branches to everywhere in the new code will be allowed \
             (compile it with the program's -mbranch-protection)",
            object.name
        ));
    }
    without.is_none()
}

/// Sections whose entries the program collects between `__start_` and `__stop_` symbols: the patch's are not among them.
fn arrays_of_program(cx: &Inputs<'_, '_>, messages: &mut Messages) {
    let mut seen = BTreeSet::new();
    for (object, fates) in cx.objects.iter().zip(cx.fates) {
        for (section, fate) in object.sections.iter().zip(fates) {
            let array = fate.laid_out() && cx.program.named(&format!("__start_{}", section.name)).next().is_some();
            if array && seen.insert(section.name.clone()) {
                messages.warn(format!(
                    "section {} of {}: the program goes through its own entries only, not through the patch's",
                    section.name, object.name
                ));
            }
        }
    }
}

/// The assembler settles references to a static function of the same section, so their direction can't be changed.
fn hidden_addresses(cx: &Inputs<'_, '_>, sites: &[Replacement], messages: &mut Messages) {
    for r in sites {
        let Some(object) = cx.objects.get(r.new.object as usize) else { continue };
        let here = |s: &&input::InSymbol<'_>| {
            s.kind == input::Kind::Function
                && matches!(s.at, input::At::Section { index, value }
                    if index == r.new.section && (value != r.new.value || !s.is_local()))
        };
        let local = !object.symbols.iter().filter(|s| !s.is_local()).any(|s| here(&s) && s.name == r.new_name);
        if local && object.symbols.iter().any(|s| here(&s)) {
            messages.note(format!(
                "`{}` is static: if its address is compared anywhere in {}, compile with -ffunction-sections",
                r.new_name, object.name
            ));
        }
    }
}

fn resolved(resolver: &Resolver<'_, '_, '_>, layout: &Layout) -> Vec<ResolvedSymbol> {
    let weak = |i: u32| resolver.imports.get(i as usize).is_some_and(|x| x.weak);
    let one = |(name, target): (&&str, &Target)| ResolvedSymbol {
        name: String::from(*name),
        how: report::how(*target, layout, weak),
    };
    resolver.asked.iter().map(one).collect()
}

fn got(plan: &Plan, layout: &Layout) -> Vec<GotSlot> {
    let kind = |s: &Slot| match s {
        Slot::Address(..) => SlotKind::Address,
        Slot::Page(..) => SlotKind::Page,
        Slot::TpOffset(_) => SlotKind::TpOffset,
        Slot::Module(_) => SlotKind::Module,
        Slot::DtpOffset(_) => SlotKind::DtpOffset,
    };
    let one = |(i, (slot, name)): (usize, &(Slot, String))| GotSlot {
        offset: layout.slot(i as u32),
        symbol: name.clone(),
        kind: kind(slot),
    };
    plan.slots.iter().enumerate().map(one).collect()
}

fn veneers(plan: &Plan, layout: &Layout) -> Vec<Veneer> {
    let one = |(i, v): (usize, &scan::VeneerPlan)| Veneer {
        offset: layout.veneer(i),
        slot: v.items.iter().find_map(|item| item.slot).map(|slot| layout.slot(slot)),
        symbol: v.name.clone(),
    };
    plan.veneers.iter().enumerate().map(one).collect()
}
