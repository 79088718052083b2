//! The plan: all that `fix` is going to do, as a value, before a byte is written.

use crate::addr::{LinkAddr, RunAddr};
use crate::arch::{Arch, CacheNeed, Code, Expr, JumpForm, Reach, Via, region_start};
use crate::field::Overflow;
use crate::model::{Package, Referent, Site};
use crate::relocate::may_be_left;
use crate::session::area::{self, Reserved};
use crate::session::error::SessionError;
use crate::session::imports::{Binding, Scope};
use crate::session::modules::{Module, find_program};
use crate::session::record::{Record, SITE_BYTES, State};
use crate::session::resident;
use crate::session::space::{StartRange, candidates};
use crate::session::stack::Protected;
use crate::session::{Inspected, hex, inspect, is_active};
use crate::target::Target;
use alloc::{format, string::String, vec, vec::Vec};

/// What no thread may be inside when the sites are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// The whole old function: afterwards nobody runs old code.
    #[default]
    Function,
    /// Only the bytes that are overwritten: who is further inside finishes the old function.
    Window,
}

/// How to apply.
#[derive(Clone, Debug)]
pub struct Options {
    /// See [`Policy`].
    pub policy: Policy,
    /// Jump form by name, or `None`: the cheapest that fits.
    pub form: Option<String>,
    /// How long to retry while threads are in the way, milliseconds.
    pub timeout_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { policy: Policy::default(), form: None, timeout_ms: 10_000 }
    }
}

/// What is planned for one site.
#[derive(Clone, Debug)]
pub struct PlannedSite {
    /// Name of the replaced function.
    pub function: String,
    /// Entry of the old function.
    pub entry: RunAddr,
    /// Size of its first part, bytes.
    pub size: u64,
    /// Where the trampoline goes.
    pub at: RunAddr,
    /// The form.
    pub form: &'static JumpForm,
    /// Bytes that are there now.
    pub old_bytes: Vec<u8>,
    /// Offset of the new function in the image.
    pub new_offset: u64,
    /// Offset of the room for a landing in the image.
    pub landing: u64,
}

/// Value of a package symbol in this target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// An offset in the image.
    Image(u64),
    /// An address.
    Address(RunAddr),
    /// The result of a resolver function at this address, called in the target.
    Resolver(RunAddr),
}

/// A planned application.
pub struct Plan {
    /// The target, for messages.
    pub target: String,
    /// Patch name.
    pub name: String,
    /// Module that is patched.
    pub module: String,
    /// Bias of the module.
    pub bias: u64,
    /// What inspection found.
    pub inspected: Inspected,
    /// Sites.
    pub sites: Vec<PlannedSite>,
    /// Values of the package's symbols, by index.
    pub values: Vec<Value>,
    /// Imports: name and module that defines it (`None`: weak and absent).
    pub imports: Vec<(String, Option<String>)>,
    /// Size of the record, bytes, in whole pages.
    pub record_size: u64,
    /// Size of the image, bytes.
    pub image_size: u64,
    /// Allowed starts of the image.
    pub range: StartRange,
    /// Where the region (record, then image) may go, best first; empty where it is [`Plan::reserved`].
    pub places: Vec<RunAddr>,
    /// Where record and image go in the target's area.
    pub reserved: Option<Reserved>,
    /// Ranges that no thread may be inside.
    pub protected: Vec<Protected>,
    /// Sequence number of the new record.
    pub sequence: u64,
    /// What is done for the instruction caches.
    pub cache: CacheNeed,
}

impl Plan {
    /// What the record's region size says, bytes.
    pub(super) fn region_size(&self) -> u64 {
        self.record_size + if self.reserved.is_some() { 0 } else { self.image_size }
    }
}

impl core::fmt::Debug for Plan {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Plan {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(f, "plan: apply `{}` to {}", self.name, self.target)?;
        writeln!(f, "  module {} (bias {:#x})", self.module, self.bias)?;
        for (name, module) in &self.imports {
            match module {
                Some(m) => writeln!(f, "  bind {name} from {m}")?,
                None => writeln!(f, "  bind {name} to nothing (weak)")?,
            }
        }
        let resolvers = self.values.iter().filter(|v| matches!(v, Value::Resolver(_))).count();
        if resolvers > 0 {
            writeln!(f, "  call {resolvers} IFUNC resolver(s) in the target")?;
        }
        if let Some(p) = self.places.first() {
            writeln!(
                f,
                "  map {} bytes near {p}: record {}, image {}",
                self.record_size + self.image_size,
                self.record_size,
                self.image_size
            )?;
        }
        if let Some(r) = &self.reserved {
            writeln!(
                f,
                "  use {} bytes at {} of the area for the record, {} at {} for the image",
                self.record_size, r.record, self.image_size, r.image
            )?;
        }
        for p in &self.protected {
            writeln!(f, "  wait until no thread is inside {} ({}..{})", p.name, p.start, p.end)?;
        }
        for s in &self.sites {
            writeln!(
                f,
                "  write {} bytes at {} (`{}`, {}) over {}",
                s.form.len,
                s.at,
                s.function,
                s.form.name,
                hex(&s.old_bytes)
            )?;
        }
        let cache = match self.cache {
            CacheNeed::Syscall | CacheNeed::LineOps if self.reserved.is_some() => "by the transport, as it writes",
            CacheNeed::Coherent => "none needed, fetch sees stores",
            CacheNeed::Syscall => "by a system call in the target",
            CacheNeed::LineOps => "by line operations",
        };
        write!(f, "  flush instruction caches: {cache}")
    }
}

/// Looks at the target and decides everything that can be decided before memory is allocated. Stops nobody, writes nothing.
///
/// # Errors
/// [`SessionError`]
pub fn plan(
    target: &mut dyn Target,
    arch: &dyn Arch,
    package: &Package,
    options: &Options,
) -> Result<Plan, SessionError> {
    if let Err(why) = arch.accepts(&package.ident) {
        return Err(SessionError::OtherArchitecture {
            package: format!("another machine (it {why})"),
            target: arch.name().into(),
        });
    }
    let forms = chosen_forms(arch, options)?;
    let inspected = inspect(target)?;
    check_records(target, &inspected.records, &package.name)?;
    let module = find_program(target, &inspected.modules, &package.program)?.clone();
    resident::verify(target, package, &inspected.records)?;

    let mut sites = Vec::new();
    for s in &package.sites {
        sites.push(plan_site(target, arch, &module, &inspected.records, s, &forms, options)?);
    }
    let (values, imports) = bind(target, &inspected.modules, &module, package)?;

    let page = package.page_size.max(1);
    let area = target.area();
    let record_size = record_bytes(package).next_multiple_of(if area.is_some() { area::GRANULE } else { page });
    let image_size = package.image_size();
    let near = sites.first().map_or(module.range.0, |s| s.at);
    let end = arch.user_space_end();
    let everywhere = if area.is_some() { StartRange::EVERYWHERE } else { StartRange::user_space(end) };
    if area.is_none() {
        check_page_size(target, package)?;
    }
    let (mut range, together) = image_range(arch, package, &values, everywhere)?;
    let anywhere = |wanted: StartRange| match area {
        Some(a) => Room::Area(area::reserve(a, &inspected.records, package, record_size, wanted)),
        None => Room::Map(places_for(&inspected, wanted, package, record_size, image_size, page, end, near)),
    };
    let room = |wanted: StartRange, sites: &[PlannedSite]| {
        let landings = sites.iter().filter(|s| s.form.via == Via::ImageLanding);
        let together =
            landings.fold(together, |t, s| Together::with_reach(t, s.form.landing_reach, s.landing, s.new_offset));
        match together {
            Some(t) => t.whole(wanted, record_size, &anywhere),
            None => anywhere(wanted),
        }
    };
    // Forms that jump straight into the image want it near; islands need not.
    let wanted =
        sites.iter().filter(|s| s.form.via != Via::NearIsland).fold(range, |r, s| r.and(form_range(s, s.form)));
    let mut found = room(wanted, &sites);
    if found.is_empty() || wanted.is_empty() {
        // Out of reach of the short jumps: each site takes the next form that goes farther.
        for s in &mut sites {
            let Some(site) = package.sites.iter().find(|x| x.old == s.function) else { continue };
            let far = forms.iter().find(|f| {
                f.len <= site.window
                    && arch.suits(f, &site.expected)
                    && (f.own_address || !site.own_address)
                    && (f.via == Via::NearIsland || f.reach == Reach::Anywhere && f.landing_reach == Reach::Anywhere)
            });
            if let Some(f) = far {
                s.form = f;
                s.old_bytes = read_bytes(target, s.at, f.len)?;
            }
        }
        let wanted =
            sites.iter().filter(|s| s.form.via != Via::NearIsland).fold(range, |r, s| r.and(form_range(s, s.form)));
        if wanted.is_empty() {
            return Err(SessionError::Unreachable {
                what: sites.first().map_or(String::new(), |s| s.function.clone()),
            });
        }
        range = wanted;
        found = room(wanted, &sites);
        if found.is_empty() {
            if let Some(a) = area
                && anywhere(StartRange::EVERYWHERE).is_empty()
            {
                return Err(area::full(a, &inspected.records, package, record_size));
            }
            return Err(SessionError::NoSpace {
                size: record_size + image_size,
                low: RunAddr(clamp(wanted.low)),
                high: RunAddr(clamp(wanted.high)),
                target: target.describe(),
            });
        }
    } else {
        range = wanted;
    }

    let (places, reserved) = match found {
        Room::Map(places) => (places, None),
        Room::Area(reserved) => (Vec::new(), reserved),
    };
    let mut protected = protect(package, &module, &sites, options.policy);
    if options.policy == Policy::Function {
        protected.extend(protect_earlier(&inspected, &sites, area.is_some()));
    }
    let sequence = next_sequence(&inspected.records)?;
    Ok(Plan {
        target: target.describe(),
        name: package.name.clone(),
        module: module.name.clone(),
        bias: module.bias.0,
        sites,
        values,
        imports,
        record_size,
        image_size,
        range,
        places,
        reserved,
        protected,
        sequence,
        cache: arch.cache_need(),
        inspected,
    })
}

/// Where the image may go.
enum Room {
    /// Starts of a region to be mapped.
    Map(Vec<RunAddr>),
    /// In the area.
    Area(Option<Reserved>),
}

impl Room {
    fn is_empty(&self) -> bool {
        match self {
            Room::Map(places) => places.is_empty(),
            Room::Area(reserved) => reserved.is_none(),
        }
    }
}

fn clamp(v: i128) -> u64 {
    v.clamp(0, i128::from(u64::MAX)) as u64
}

/// Upper bound of the record's size: the sites, and every string at its longest.
fn record_bytes(package: &Package) -> u64 {
    let strings: usize = package.sites.iter().map(|s| s.old.len() + 32).sum();
    let texts = package.name.len() + package.version.len() + package.description.len() + package.program.file.len();
    (256 + 128 * package.sites.len() + strings + texts) as u64
}

fn chosen_forms(arch: &dyn Arch, options: &Options) -> Result<Vec<&'static JumpForm>, SessionError> {
    let all = arch.forms();
    match &options.form {
        None => Ok(all.iter().collect()),
        Some(name) => match all.iter().find(|f| f.name == name) {
            Some(f) => Ok(vec![f]),
            None => Err(SessionError::UnknownForm {
                name: name.clone(),
                known: all.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
            }),
        },
    }
}

/// The place of a new patch in the order of application.
fn next_sequence(records: &[Record]) -> Result<u64, SessionError> {
    let Some(last) = records.iter().max_by_key(|r| r.sequence) else { return Ok(1) };
    let why = "no sequence number can follow its own";
    last.sequence.checked_add(1).ok_or(SessionError::BadRecord { at: last.at, why })
}

fn check_records(target: &dyn Target, records: &[Record], name: &str) -> Result<(), SessionError> {
    for r in records {
        match r.state {
            State::Applied if r.name == name => {
                return Err(SessionError::AlreadyApplied { name: r.name.clone(), target: target.describe() });
            }
            State::Applied | State::Parked => {}
            s => {
                return Err(SessionError::Interrupted {
                    name: r.name.clone(),
                    target: target.describe(),
                    state: s.as_str(),
                });
            }
        }
    }
    Ok(())
}

fn read_bytes(target: &mut dyn Target, at: RunAddr, len: u8) -> Result<Vec<u8>, SessionError> {
    let mut b = vec![0u8; usize::from(len)];
    target.read(at, &mut b)?;
    Ok(b)
}

/// Spans with different rights can't share a page of the target.
fn check_page_size(target: &mut dyn Target, package: &Package) -> Result<(), SessionError> {
    const AT_PAGESZ: u64 = 6;
    let found = target.mappings().and_then(|m| m.auxv(AT_PAGESZ).ok().flatten());
    match found.filter(|size| *size != 0 && !package.page_size.is_multiple_of(*size)) {
        Some(size) => Err(SessionError::PageSize { package: package.page_size, size, target: target.describe() }),
        None => Ok(()),
    }
}

/// What should be at `at`: the program's bytes, with the trampolines of applied patches over them.
pub(super) fn overlay(expected: &mut [u8], at: RunAddr, records: &[Record]) {
    for site in records.iter().filter(|r| is_active(r)).flat_map(|r| &r.sites) {
        for (i, b) in site.new_bytes.iter().enumerate() {
            let pos = site.at.0.wrapping_add(i as u64).wrapping_sub(at.0);
            if let Some(cell) = usize::try_from(pos).ok().and_then(|p| expected.get_mut(p)) {
                *cell = *b;
            }
        }
    }
}

fn plan_site(
    target: &mut dyn Target,
    arch: &dyn Arch,
    module: &Module,
    records: &[Record],
    site: &Site,
    forms: &[&'static JumpForm],
    options: &Options,
) -> Result<PlannedSite, SessionError> {
    let entry = site.entry.at(module.bias);
    // Whichever form is taken in the end, it lies in the window.
    target.writable(&site.old, entry.offset(site.pad.into()), site.window.into())?;
    let mut expected = site.expected.clone();
    overlay(&mut expected, entry, records);
    let mut found = vec![0u8; expected.len()];
    target.read(entry, &mut found)?;
    if let Some(i) = expected.iter().zip(&found).position(|(a, b)| a != b) {
        let to = (i + 8).min(found.len());
        return Err(SessionError::UnexpectedBytes {
            function: site.old.clone(),
            at: entry.offset(i as u64),
            expected: hex(&expected[i..to]),
            found: hex(&found[i..to]),
        });
    }
    let at = entry.offset(u64::from(site.pad));
    let suitable: Vec<_> = forms.iter().copied().filter(|f| arch.suits(f, &site.expected)).collect();
    let form = choose_form(site, at, &suitable, options)?;
    let pad = usize::from(site.pad);
    Ok(PlannedSite {
        function: site.old.clone(),
        entry,
        size: site.body.first().map_or(0, |b| b.1),
        at,
        form,
        old_bytes: found.get(pad..pad + usize::from(form.len)).unwrap_or(&[]).to_vec(),
        new_offset: site.new_offset,
        landing: site.landing,
    })
}

/// The cheapest form that fits the site and gives the new function what it expects.
fn choose_form(
    site: &Site,
    at: RunAddr,
    forms: &[&'static JumpForm],
    options: &Options,
) -> Result<&'static JumpForm, SessionError> {
    let fits = |f: &&&'static JumpForm| {
        f.len <= site.window
            && usize::from(f.len) <= SITE_BYTES
            && (f.align <= 1 || at.0.is_multiple_of(u64::from(f.align)))
    };
    let provides = |f: &&&'static JumpForm| fits(f) && (f.own_address || !site.own_address);
    if let Some(form) = forms.iter().find(provides) {
        return Ok(form);
    }
    Err(match forms.iter().find(fits) {
        Some(form) => SessionError::NoOwnAddress { function: site.old.clone(), at, form: form.name },
        None => SessionError::NoJumpForm {
            function: site.old.clone(),
            at,
            window: site.window,
            forced: options.form.clone(),
        },
    })
}

/// Values of the package's symbols, and what each import was bound to.
type Bound = (Vec<Value>, Vec<(String, Option<String>)>);

fn bind(
    target: &mut dyn Target,
    modules: &[Module],
    module: &Module,
    package: &Package,
) -> Result<Bound, SessionError> {
    let mut scope = None;
    let mut imports = Vec::new();
    let mut values = Vec::new();
    for s in &package.symbols {
        values.push(match s.referent {
            Referent::Image(at) => Value::Image(at),
            Referent::Program(LinkAddr(a)) => Value::Address(LinkAddr(a).at(module.bias)),
            Referent::ProgramIfunc(a) => Value::Resolver(a.at(module.bias)),
            Referent::Import { weak } => {
                let scope = scope.get_or_insert_with(|| Scope::new(target, modules));
                match scope.find(target, &s.name) {
                    Some(found) => {
                        imports.push((s.name.clone(), Some(found.module.clone())));
                        match found.binding {
                            Binding::Address(a) => Value::Address(a),
                            Binding::Resolver(a) => Value::Resolver(a),
                            Binding::Tls => {
                                return Err(SessionError::ImportUnusable {
                                    symbol: s.name.clone(),
                                    module: found.module,
                                    why: "it is thread-local",
                                });
                            }
                        }
                    }
                    None if weak => {
                        imports.push((s.name.clone(), None));
                        Value::Address(RunAddr(0))
                    }
                    None => {
                        return Err(SessionError::ImportMissing { symbol: s.name.clone(), target: target.describe() });
                    }
                }
            }
        });
    }
    Ok((values, imports))
}

fn scaled_bounds(overflow: Overflow, rshift: u8) -> Option<(i128, i128)> {
    let (min, max) = overflow.bounds()?;
    let scale = 1i128 << rshift;
    Some((min * scale, max * scale + (scale - 1)))
}

/// Offsets in the image which have to lie in one aligned region of 2^`bits` bytes, wherever the image goes: jumps that
/// keep the upper bits of the program counter, and where they lead.
#[derive(Clone, Copy)]
struct Together {
    low: i128,
    high: i128,
    bits: u8,
}

impl Together {
    /// `known` and a jump at `from` to `to`. Of regions of different sizes all have to fit the smallest.
    fn with(known: Option<Together>, bits: u8, from: i128, to: i128) -> Option<Together> {
        let one = Together { low: from.min(to), high: from.max(to), bits };
        Some(known.map_or(one, |k| Together {
            low: k.low.min(one.low),
            high: k.high.max(one.high),
            bits: k.bits.min(bits),
        }))
    }

    fn with_reach(known: Option<Together>, reach: Reach, from: u64, to: u64) -> Option<Together> {
        match reach {
            Reach::Region { bits, after } => {
                Together::with(known, bits, i128::from(from) + i128::from(after), i128::from(to))
            }
            Reach::Anywhere | Reach::Offset(..) => known,
        }
    }

    /// The boundary that would separate them, for an image at `image`.
    fn boundary(&self, image: RunAddr) -> Option<i128> {
        let of = |offset: i128| i128::from(region_start(clamp(i128::from(image.0) + offset), self.bits, 0));
        (of(self.low) != of(self.high)).then(|| of(self.high))
    }

    /// What `room` finds in `wanted`, without the places at which a boundary would lie between the offsets; where that is
    /// so, those next to the boundary are tried.
    fn whole(&self, wanted: StartRange, record_size: u64, room: &dyn Fn(StartRange) -> Room) -> Room {
        let boundary = |found: &Room| match found {
            Room::Map(places) => places.iter().find_map(|p| self.boundary(p.offset(record_size))),
            Room::Area(reserved) => reserved.and_then(|r| self.boundary(r.image)),
        };
        let found = room(wanted);
        let Some(at) = boundary(&found) else { return found };
        let below = room(wanted.and(StartRange { low: wanted.low, high: at - self.high - 1 }));
        let above = room(wanted.and(StartRange { low: at - self.low, high: wanted.high }));
        if let Room::Area(_) = found {
            let whole = |r: &Room| matches!(r, Room::Area(Some(r)) if self.boundary(r.image).is_none());
            return [below, above].into_iter().find(whole).unwrap_or(Room::Area(None));
        }
        let mut places: Vec<RunAddr> = Vec::new();
        for room in [found, below, above] {
            let Room::Map(more) = room else { continue };
            for p in more {
                if self.boundary(p.offset(record_size)).is_none() && !places.contains(&p) {
                    places.push(p);
                }
            }
        }
        Room::Map(places)
    }
}

/// Starts of the image for which all residue fits, and what of it must not be separated.
fn image_range(
    arch: &dyn Arch,
    package: &Package,
    values: &[Value],
    everywhere: StartRange,
) -> Result<(StartRange, Option<Together>), SessionError> {
    let (mut range, mut together) = (everywhere, None);
    if let Some(base) = package.base {
        range = StartRange { low: i128::from(base), high: i128::from(base) };
    }
    for r in &package.residue {
        let howto = arch
            .howto(r.r_type)
            .filter(|h| may_be_left(h.expr))
            .ok_or(SessionError::UnknownResidue { r_type: r.r_type, offset: r.offset })?;
        let Some((min, max)) = scaled_bounds(howto.overflow, howto.field.rshift) else { continue };
        let (a, off) = (i128::from(r.addend), i128::from(r.offset));
        let value = values.get(r.symbol as usize).copied().unwrap_or(Value::Address(RunAddr(0)));
        let allowed = match (howto.expr, value) {
            // min <= base + o + a <= max
            (Expr::Abs, Value::Image(o)) => StartRange { low: min - i128::from(o) - a, high: max - i128::from(o) - a },
            // min <= s + a - (base + off) <= max
            (Expr::Pc | Expr::PltPc, Value::Address(s)) => {
                let s = i128::from(s.0) + a - off;
                StartRange { low: s - max, high: s - min }
            }
            // The distance of the pages is less than a page longer or shorter than that of what they hold.
            (Expr::PagePc { bits }, Value::Address(s)) => {
                let (s, page) = (i128::from(s.0) + a - off, (1i128 << bits) - 1);
                StartRange { low: s - max + page, high: s - min - page }
            }
            (Expr::Region { bits, after }, Value::Image(o)) => {
                together = Together::with(together, bits, off + i128::from(after), i128::from(o) + a);
                continue;
            }
            (Expr::Region { bits, after }, Value::Address(s)) => {
                same_region(s.0.wrapping_add_signed(r.addend), off + i128::from(after), bits)
            }
            _ => continue,
        };
        range = range.and(allowed);
        if range.is_empty() {
            let what = package.symbols.get(r.symbol as usize).map_or(String::new(), |s| s.name.clone());
            return Err(SessionError::Unreachable { what });
        }
    }
    Ok((range, together))
}

/// Starts of the image for which `offset` in it lies in the region of 2^`bits` bytes that holds `to`.
fn same_region(to: u64, offset: i128, bits: u8) -> StartRange {
    let low = i128::from(region_start(to, bits, 0)) - offset;
    StartRange { low, high: low + (1i128 << bits) - 1 }
}

/// Starts of the image that the site's jump reaches.
fn form_range(site: &PlannedSite, form: &JumpForm) -> StartRange {
    let all = StartRange { low: i128::MIN / 4, high: i128::MAX / 4 };
    let Some((low, high)) = form.reach.targets(site.at.0) else { return all };
    let target = match form.via {
        Via::Direct => site.new_offset,
        Via::ImageLanding => site.landing,
        Via::NearIsland => return all,
    };
    StartRange { low: low - i128::from(target), high: high - i128::from(target) }
}

#[allow(clippy::too_many_arguments)] // one call's worth of figures, each of its own kind
fn places_for(
    inspected: &Inspected,
    range: StartRange,
    package: &Package,
    record: u64,
    image: u64,
    page: u64,
    end: u64,
    near: RunAddr,
) -> Vec<RunAddr> {
    // The region starts with the record, so that its start is that much below the image's.
    let shift = i128::from(record);
    let region = StartRange { low: range.low - shift, high: range.high - shift };
    if package.base.is_some() {
        let at = clamp(region.low);
        let free = inspected.mappings.iter().all(|m| at + record + image <= m.start.0 || at >= m.end.0);
        return if free { vec![RunAddr(at)] } else { Vec::new() };
    }
    candidates(&inspected.mappings, region, record + image, page, end, near)
}

fn protect(package: &Package, module: &Module, sites: &[PlannedSite], policy: Policy) -> Vec<Protected> {
    let mut out = Vec::new();
    for (site, planned) in package.sites.iter().zip(sites) {
        match policy {
            Policy::Window => out.push(Protected {
                name: site.old.clone(),
                start: planned.at,
                end: planned.at.offset(u64::from(planned.form.len)),
                entry: true,
                function: planned.entry,
            }),
            Policy::Function => {
                for (i, (start, size)) in site.body.iter().enumerate() {
                    let start = start.at(module.bias);
                    out.push(Protected {
                        name: site.old.clone(),
                        start,
                        end: start.offset(*size),
                        entry: i == 0,
                        function: planned.entry,
                    });
                }
                // A window may reach into padding behind a short function.
                let end = planned.at.offset(u64::from(planned.form.len));
                if let Some(p) = out.iter_mut().rev().find(|p| p.start == planned.entry)
                    && p.end < end
                {
                    p.end = end;
                }
            }
        }
    }
    out
}

/// The old code of a function that is patched already is the earlier patch's.
fn protect_earlier(inspected: &Inspected, sites: &[PlannedSite], in_area: bool) -> Vec<Protected> {
    let mut out = Vec::new();
    for r in inspected.records.iter().filter(|r| is_active(r)) {
        let Some(site) = r.sites.iter().find(|old| sites.iter().any(|s| s.entry == old.entry)) else { continue };
        let (low, high) = r.image_range();
        if in_area {
            // No rights tell code from data there.
            out.push(Protected {
                name: format!("{} of patch {}", site.function, r.name),
                start: low,
                end: high,
                entry: false,
                function: site.new,
            });
            continue;
        }
        let code = inspected.mappings.iter().filter(|m| m.perm.exec && m.start >= low && m.start < high);
        out.extend(code.map(|m| Protected {
            name: format!("{} of patch {}", site.function, r.name),
            start: m.start,
            end: m.end,
            entry: false,
            function: site.new,
        }));
    }
    out
}

/// Bytes of the trampoline and of the landing, once the image's address is known.
pub(super) struct Encoded {
    pub(super) jump: Code,
    pub(super) landing: Code,
    pub(super) landing_at: RunAddr,
}

/// Encodes a site's jump for an image at `image`; `island` is the room for a near landing.
pub(super) fn encode_site(
    arch: &dyn Arch,
    site: &PlannedSite,
    image: RunAddr,
    island: Option<RunAddr>,
) -> Result<Encoded, SessionError> {
    let err = |why| SessionError::Encode { function: site.function.clone(), why };
    let new = image.offset(site.new_offset);
    let landing_at = match site.form.via {
        Via::Direct => new,
        Via::ImageLanding => image.offset(site.landing),
        Via::NearIsland => island.unwrap_or(image.offset(site.landing)),
    };
    let landing = arch.encode_landing(site.form, landing_at.0, new.0).map_err(err)?;
    let jump = arch.encode_jump(site.form, site.at.0, landing_at.0).map_err(err)?;
    Ok(Encoded { jump, landing, landing_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: JumpForm = JumpForm {
        name: "plain",
        len: 8,
        align: 4,
        reach: Reach::Region { bits: 28, after: 4 },
        via: Via::Direct,
        landing_len: 0,
        landing_reach: Reach::Anywhere,
        own_address: false,
        clobbers: &[],
        single_store: false,
    };
    static PLAIN: JumpForm = FORM;
    static WITH_ADDRESS: JumpForm = JumpForm { name: "with-address", own_address: true, ..FORM };
    static LONG: JumpForm = JumpForm { name: "long", len: 16, own_address: true, ..FORM };

    fn site(own_address: bool, window: u8) -> Site {
        Site {
            old: "f".into(),
            new: "g".into(),
            entry: LinkAddr(0x40_0000),
            pad: 0,
            window,
            expected: vec![0; 16],
            body: vec![(LinkAddr(0x40_0000), 16)],
            new_offset: 0,
            landing: 0,
            own_address,
        }
    }

    #[test]
    fn sequence_numbers_end() {
        let last = |n| [record_with(2), record_with(n)];
        assert_eq!(next_sequence(&[]).unwrap(), 1);
        assert_eq!(next_sequence(&last(7)).unwrap(), 8);
        assert_eq!(next_sequence(&last(1)).unwrap(), 3);
        assert!(matches!(next_sequence(&last(u64::MAX)).unwrap_err(), SessionError::BadRecord { .. }));
    }

    fn record_with(sequence: u64) -> Record {
        Record {
            at: RunAddr(0x1000),
            state: State::Applied,
            sequence,
            region_size: 0x2000,
            image: RunAddr(0x2000),
            image_size: 0x1000,
            islands: (RunAddr(0), 0),
            eh_frame: (RunAddr(0), 0),
            applied_at: 0,
            name: String::new(),
            version: String::new(),
            description: String::new(),
            program: String::new(),
            sites: Vec::new(),
        }
    }

    #[test]
    fn forms_hand_over_the_address_where_it_is_wanted() {
        let (at, all) = (RunAddr(0x40_0000), [&PLAIN, &WITH_ADDRESS, &LONG]);
        let chosen = |own, window, forms: &[&'static JumpForm]| {
            choose_form(&site(own, window), at, forms, &Options::default()).map(|f| f.name)
        };
        assert_eq!(chosen(false, 8, &all).unwrap(), "plain");
        assert_eq!(chosen(true, 8, &all).unwrap(), "with-address");
        assert_eq!(chosen(true, 16, &[&PLAIN, &LONG]).unwrap(), "long");
        // Forced, or too short a window for those that do.
        for (window, forms) in [(8, &[&PLAIN][..]), (16, &[&PLAIN]), (8, &[&PLAIN, &LONG])] {
            let e = chosen(true, window, forms).unwrap_err();
            assert!(matches!(e, SessionError::NoOwnAddress { form: "plain", .. }), "{e}");
        }
        assert!(matches!(chosen(true, 4, &all).unwrap_err(), SessionError::NoJumpForm { window: 4, .. }));
        assert!(choose_form(&site(false, 8), RunAddr(0x40_0002), &all, &Options::default()).is_err(), "misaligned");
    }

    #[test]
    fn a_fixed_destination_is_an_interval() {
        // A jump whose delay slot is at offset 0x10 of the image, into the region at 0x1000_0000.
        let r = same_region(0x1234_5678, 0x10, 28);
        assert_eq!(r, StartRange { low: 0x1000_0000 - 0x10, high: 0x2000_0000 - 0x10 - 1 });
        for (start, ok) in [(r.low - 1, false), (r.low, true), (r.high, true), (r.high + 1, false)] {
            let reach = Reach::Region { bits: 28, after: 4 };
            assert_eq!(reach.holds((start + 0x10 - 4) as u64, 0x1234_5678), ok, "{start:#x}");
        }
    }

    #[test]
    fn jumps_inside_the_image_are_not_torn_apart() {
        let t = Together::with(None, 28, 0x1004, 0x3000);
        let t = Together::with(t, 28, 0x800, 0x40).unwrap();
        assert_eq!((t.low, t.high), (0x40, 0x3000));
        assert_eq!(t.boundary(RunAddr(0x0fff_d000 - 1)), None, "the last byte that is needed");
        assert_eq!(t.boundary(RunAddr(0x0fff_d000)), Some(0x1000_0000));
        assert_eq!(t.boundary(RunAddr(0x1000_0000 - 0x41)), Some(0x1000_0000));
        assert_eq!(t.boundary(RunAddr(0x1000_0000 - 0x40)), None);
    }

    #[test]
    fn places_at_a_boundary_give_way_to_those_beside_it() {
        let t = Together { low: 0, high: 0x2fff, bits: 28 };
        const RECORD: u64 = 0x1000;
        let all = StartRange { low: 0x0f00_0000, high: 0x1100_0000 };
        // Room that begins as high as it may, and at multiples of 16.
        let high = |r: StartRange| {
            let start = (r.high.min(0x1000_0000 - 0x800)) as u64 / 16 * 16;
            let fits = !r.is_empty() && r.low <= i128::from(start);
            Room::Map(if fits { vec![RunAddr(start - RECORD)] } else { vec![] })
        };
        let Room::Map(places) = t.whole(all, RECORD, &high) else { panic!() };
        assert_eq!(places, [RunAddr(0x1000_0000 - 0x3000 - RECORD)]);
        let in_area = |r: StartRange| {
            let start = r.low.max(0x0fff_f000) as u64;
            let image = RunAddr(start);
            Room::Area((!r.is_empty() && i128::from(start) <= r.high).then_some(Reserved { record: RunAddr(0), image }))
        };
        let Room::Area(Some(r)) = t.whole(all, RECORD, &in_area) else { panic!() };
        assert_eq!(r.image, RunAddr(0x1000_0000));
        // What is larger than a region fits nowhere.
        let huge = Together { low: 0, high: 1 << 28, bits: 28 };
        assert!(huge.whole(all, RECORD, &high).is_empty() && huge.whole(all, RECORD, &in_area).is_empty());
    }
}
