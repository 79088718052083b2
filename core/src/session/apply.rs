//! `fix`: the seven steps, each undone when a later one fails.

use crate::addr::RunAddr;
use crate::arch::{Arch, Via};
use crate::model::{Package, Referent};
use crate::relocate::{SettleError, settle};
use crate::session::area;
use crate::session::attempt::{Attempt, Outcome, interrupted};
use crate::session::error::SessionError;
use crate::session::plan::{Options, Plan, PlannedSite, Value, encode_site, plan};
use crate::session::record::{MAGIC, REGION_PREFIX, Record, RecordSite, State};
use crate::session::region::{self, Piece};
use crate::session::space::{StartRange, candidates};
use crate::session::sweep::sweep;
use crate::session::{Clock, flush, flush_call, hex, with_flush};
use crate::target::{Perm, Target, TargetError};
use alloc::{boxed::Box, string::String, vec, vec::Vec};

/// A patch that was applied.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its record, as it lies in the target.
    pub record: Record,
    /// How long all threads were stopped in the attempt that wrote the sites, microseconds.
    pub pause_us: u64,
    /// How many times the threads were stopped.
    pub attempts: u32,
}

/// Applies `package`.
///
/// # Errors
/// [`SessionError`]; its class says whether sites had been touched (then they were put back).
pub fn apply(
    target: &mut dyn Target,
    arch: &dyn Arch,
    package: &Package,
    options: &Options,
    clock: &mut dyn Clock,
) -> Result<Applied, SessionError> {
    target.claim()?;
    let mut plan = plan(target, arch, package, options)?;
    interrupted(target)?;
    if sweep(target, arch, &plan.inspected.mappings, &plan.inspected.records)? {
        plan = super::plan(target, arch, package, options)?;
    }
    let mut prepared = prepare(target, arch, package, &plan, clock)?;
    match commit(target, arch, &plan, options, clock, &mut prepared) {
        Ok((pause_us, attempts)) => Ok(Applied { record: prepared.record, pause_us, attempts }),
        // Sites may lead to the image: the record is what can still mend them.
        Err(e @ (SessionError::Stuck { .. } | SessionError::NotResumed { .. })) => Err(e),
        Err(e) => match discard(target, arch, &prepared.record) {
            Ok(()) => Err(e),
            Err(_) if matches!(e, SessionError::Target(TargetError::Gone { .. })) => Err(e),
            Err(undo) => {
                let all = [(prepared.record.at, prepared.record.region_size), prepared.record.islands];
                Err(left_over(e, &addresses(&all), &undo))
            }
        },
    }
}

/// Where memory is, without what has no size.
fn addresses(ranges: &[(RunAddr, u64)]) -> Vec<RunAddr> {
    ranges.iter().filter(|r| r.1 != 0).map(|r| r.0).collect()
}

/// A failure after which memory stays mapped.
fn left_over(cause: SessionError, at: &[RunAddr], undo: &dyn core::fmt::Display) -> SessionError {
    SessionError::RolledBack { cause: Box::new(region::left_over(&cause, at, undo).into()) }
}

/// Unmaps a region that no site refers to.
pub(super) fn discard(target: &mut dyn Target, arch: &dyn Arch, record: &Record) -> Result<(), SessionError> {
    region::hold(target)?;
    let mut result = Ok(());
    // Only now: a look may stop the target, and whoever is held goes on as before.
    if is_there(target, record.at) {
        result = region::unmap(target, arch, record.at, record.region_size);
        if record.islands.1 != 0 {
            result = result.and(region::unmap(target, arch, record.islands.0, record.islands.1));
        }
    }
    let released = region::release(target);
    result?;
    Ok(released?)
}

/// Is our region still at `at`? A process that has become another program since has something of its own there.
fn is_there(target: &mut dyn Target, at: RunAddr) -> bool {
    let in_area = target.area().is_some();
    let maps = target.mappings().filter(|_| !in_area).and_then(|m| m.mappings().ok());
    maps.is_none_or(|maps| maps.iter().any(|m| m.contains(at) && m.name.starts_with(REGION_PREFIX)))
}

/// What was written before anybody was stopped.
struct Prepared {
    record: Record,
    /// The code of image and islands, where a device that starts anew may lose it.
    code: Vec<(RunAddr, Vec<u8>)>,
}

/// Steps 3 and 4: allocates, writes the image, settles the residue, writes the record. Nothing refers to it yet.
///
/// A thread is held while memory is mapped and resolvers are called. All else is written while nobody is.
fn prepare(
    target: &mut dyn Target,
    arch: &dyn Arch,
    package: &Package,
    plan: &Plan,
    clock: &mut dyn Clock,
) -> Result<Prepared, SessionError> {
    region::hold(target)?;
    let mapped = match map_all(target, arch, package, plan) {
        Ok(m) => m,
        Err(e) => {
            return Err(match region::release(target) {
                Ok(()) => e,
                Err(cause) => SessionError::NotResumed { what: alloc::format!("{e}"), cause: Box::new(cause) },
            });
        }
    };
    // A thread stays held only where its help is needed; else everybody runs while the image is written.
    let mut held = calls_resolvers(package, plan) || flush_call(target, arch).is_some();
    if !held {
        region::release(target).map_err(|cause| SessionError::NotResumed {
            what: alloc::format!("the image at {} stays mapped, nothing refers to it", mapped.region),
            cause: Box::new(cause),
        })?;
    }
    let mut built = build(target, arch, package, plan, &mapped, clock);
    if !held && matches!(&built, Err(SessionError::Target(TargetError::Memory { action: "write", .. }))) {
        // Some transports write to read-only memory only through a thread that is stopped.
        built = match region::hold(target) {
            Ok(()) => {
                held = true;
                build(target, arch, package, plan, &mapped, clock)
            }
            Err(e) => Err(e.into()),
        };
    }
    let e = match built {
        Ok(prepared) if !held => return Ok(prepared),
        Ok(prepared) => {
            return region::release(target).map(|()| prepared).map_err(|cause| SessionError::NotResumed {
                what: alloc::format!("the image at {} stays mapped, nothing refers to it", mapped.region),
                cause: Box::new(cause),
            });
        }
        Err(e) => e,
    };
    let mut undone = if held { Ok(()) } else { region::hold(target) };
    let all = [(mapped.region, plan.region_size()), mapped.islands];
    let mut stay = addresses(&all);
    if undone.is_ok() {
        for (at, size) in all.into_iter().filter(|r| r.1 != 0) {
            match region::unmap(target, arch, at, size) {
                Ok(()) => stay.retain(|a| *a != at),
                Err(e) => undone = undone.and(Err(e)),
            }
        }
    }
    Err(match (undone, region::release(target)) {
        (_, Err(cause)) => SessionError::NotResumed { what: alloc::format!("{e}"), cause: Box::new(cause) },
        (Ok(()) | Err(TargetError::Gone { .. }), Ok(())) => e,
        (Err(undo), Ok(())) => left_over(e, &stay, &undo),
    })
}

/// Does the residue refer to functions that choose another one at run time?
fn calls_resolvers(package: &Package, plan: &Plan) -> bool {
    let is_resolver = |symbol: u32| matches!(plan.values.get(symbol as usize), Some(Value::Resolver(_)));
    package.residue.iter().any(|r| is_resolver(r.symbol))
}

/// What the resolvers of this ABI are called with ([`crate::arch::LinuxAbi::resolver_hwcap`]).
fn resolver_args(target: &mut dyn Target, arch: &dyn Arch) -> Result<Vec<u64>, TargetError> {
    const AT_HWCAP: u64 = 16;
    let Some(bits) = arch.linux().and_then(|l| l.resolver_hwcap) else { return Ok(Vec::new()) };
    let hwcap = match target.mappings() {
        Some(m) => m.auxv(AT_HWCAP)?,
        None => None,
    };
    // A wrong guess would let it choose code that this processor does not have.
    let hwcap = hwcap.ok_or(TargetError::Unsupported { what: "tell what the processor has (AT_HWCAP)" })?;
    Ok(vec![hwcap & bits, 0])
}

struct Mapped {
    region: RunAddr,
    image: RunAddr,
    islands: (RunAddr, u64),
}

fn map_all(target: &mut dyn Target, arch: &dyn Arch, package: &Package, plan: &Plan) -> Result<Mapped, SessionError> {
    let mut pieces = vec![Piece { offset: 0, size: plan.record_size, perm: Perm::R }];
    for s in &package.spans {
        let size = s.size.next_multiple_of(package.page_size.max(1));
        if size > 0 {
            pieces.push(Piece { offset: plan.record_size + s.offset, size, perm: s.perm });
        }
    }
    let (region, image) = match plan.reserved {
        Some(r) => (r.record, r.image),
        None => {
            let region = region::map(target, arch, &plan.name, package.guarded, &plan.places, &pieces)?;
            (region, region.offset(plan.record_size))
        }
    };
    let near: Vec<&PlannedSite> = plan.sites.iter().filter(|s| s.form.via == Via::NearIsland).collect();
    if near.is_empty() {
        return Ok(Mapped { region, image, islands: (RunAddr(0), 0) });
    }
    match map_islands(target, arch, package, plan, &near) {
        Ok(islands) => Ok(Mapped { region, image, islands }),
        Err(e) => match region::unmap(target, arch, region, plan.region_size()) {
            Ok(()) => Err(e),
            Err(undo) => Err(left_over(e, &[region], &undo)),
        },
    }
}

/// Bytes between islands of two sites.
const ISLAND_STRIDE: u64 = 32;

fn map_islands(
    target: &mut dyn Target,
    arch: &dyn Arch,
    package: &Package,
    plan: &Plan,
    sites: &[&PlannedSite],
) -> Result<(RunAddr, u64), SessionError> {
    let page = package.page_size.max(1);
    let size = (ISLAND_STRIDE * sites.len() as u64).next_multiple_of(page);
    let end = arch.user_space_end();
    let mut range = if plan.reserved.is_some() { StartRange::EVERYWHERE } else { StartRange::user_space(end) };
    for (i, s) in sites.iter().enumerate() {
        let Some((low, high)) = s.form.reach.targets(s.at.0) else { continue };
        let offset = i128::from(ISLAND_STRIDE * i as u64);
        range = range.and(StartRange { low: low - offset, high: high - offset });
    }
    if let Some(r) = plan.reserved {
        return area::islands(target.area(), plan, r, range, ISLAND_STRIDE * sites.len() as u64);
    }
    let maps = target.mappings().ok_or(TargetError::Unsupported { what: "list mappings" })?.mappings()?;
    let near = sites.first().map_or(RunAddr(0), |s| s.at);
    let places = if range.is_empty() { Vec::new() } else { candidates(&maps, range, size, page, end, near) };
    let at =
        region::map(target, arch, &plan.name, package.guarded, &places, &[Piece { offset: 0, size, perm: Perm::RX }])?;
    Ok((at, size))
}

fn build(
    target: &mut dyn Target,
    arch: &dyn Arch,
    package: &Package,
    plan: &Plan,
    mapped: &Mapped,
    clock: &mut dyn Clock,
) -> Result<Prepared, SessionError> {
    let image = mapped.image;
    let mut spans: Vec<(u64, Vec<u8>)> = package.spans.iter().map(|s| (s.offset, s.data.clone())).collect();
    if plan.reserved.is_some() {
        // New mappings are zero, an area is whatever it was.
        for ((_, data), s) in spans.iter_mut().zip(&package.spans) {
            data.resize(usize::try_from(s.size).unwrap_or(data.len()).max(data.len()), 0);
        }
    }

    // Landings, and the sites' bytes.
    let mut islands = Vec::new();
    let mut sites = Vec::new();
    for s in &plan.sites {
        let island =
            (s.form.via == Via::NearIsland).then(|| mapped.islands.0.offset(ISLAND_STRIDE * islands.len() as u64));
        let e = encode_site(arch, s, image, island)?;
        match s.form.via {
            Via::Direct => {}
            Via::ImageLanding => put(&mut spans, s.landing, e.landing.bytes())?,
            Via::NearIsland => islands.push((e.landing_at, e.landing)),
        }
        sites.push(RecordSite {
            function: s.function.clone(),
            form: String::from(s.form.name),
            entry: s.entry,
            at: s.at,
            size: s.size,
            new: image.offset(s.new_offset),
            old_bytes: s.old_bytes.clone(),
            new_bytes: e.jump.bytes().to_vec(),
        });
    }

    // Residue that needs no resolver comes first: resolvers run once the image is there.
    let mut values = plan.values.clone();
    if calls_resolvers(package, plan) {
        write_spans(target, &spans, image)?;
        // They return to the breakpoint in the image.
        show(target, arch, package, &spans, image)?;
        let trap = image.offset(package.trap);
        let args = resolver_args(target, arch)?;
        let used: Vec<u32> = package.residue.iter().map(|r| r.symbol).collect();
        for (i, v) in values.iter_mut().enumerate() {
            if let Value::Resolver(at) = *v
                && used.contains(&(i as u32))
            {
                let calls = target.calls().ok_or(TargetError::Unsupported { what: "call functions in the target" })?;
                *v = Value::Address(RunAddr(calls.call(at, &args, trap)?));
            }
        }
    }
    settle_all(arch, package, &values, image, &mut spans)?;
    check_hazards(arch, package, image, &spans)?;
    write_spans(target, &spans, image)?;
    for (at, code) in &islands {
        target.write(*at, code.bytes())?;
        flush(target, arch, *at, code.bytes().len() as u64)?;
        verify(target, *at, code.bytes(), "island")?;
    }
    show(target, arch, package, &spans, image)?;

    let record = Record {
        at: mapped.region,
        state: State::Preparing,
        sequence: plan.sequence,
        region_size: plan.region_size(),
        image,
        image_size: plan.image_size,
        islands: mapped.islands,
        eh_frame: package.eh_frame.map_or((RunAddr(0), 0), |(o, n)| (image.offset(o), n)),
        applied_at: clock.unix_seconds(),
        name: package.name.clone(),
        version: package.version.clone(),
        description: package.description.clone(),
        program: package.program.file.clone(),
        sites,
    };
    write_record(target, &record)?;
    let mut code = Vec::new();
    if target.area().is_some() {
        let exec = package.spans.iter().zip(spans).filter(|(s, _)| s.perm.exec);
        code.extend(exec.map(|(_, (offset, data))| (image.offset(offset), data)));
        code.extend(islands.iter().map(|(at, code)| (*at, code.bytes().to_vec())));
    }
    Ok(Prepared { record, code })
}

/// Writes the record, its mark last, as one aligned store: half a record would be taken for a damaged one, and keep
/// everybody from reverting the patches that were there before.
fn write_record(target: &mut dyn Target, record: &Record) -> Result<(), SessionError> {
    let mut bytes = record.encode();
    // The place may still bear a mark, from a first try.
    bytes[..MAGIC.len()].fill(0);
    target.write(record.at, &bytes)?;
    verify(target, record.at, &bytes, "record")?;
    target.write(record.at, &MAGIC)?;
    verify(target, record.at, &MAGIC, "record")
}

fn put(spans: &mut [(u64, Vec<u8>)], at: u64, bytes: &[u8]) -> Result<(), SessionError> {
    let cell = span_at(spans, at).and_then(|(s, o)| s.get_mut(o..o + bytes.len()));
    match cell {
        Some(c) => {
            c.copy_from_slice(bytes);
            Ok(())
        }
        None => Err(SessionError::BadRecord { at: RunAddr(at), why: "the package has no room for a landing there" }),
    }
}

fn span_at(spans: &mut [(u64, Vec<u8>)], at: u64) -> Option<(&mut Vec<u8>, usize)> {
    spans.iter_mut().find(|(o, d)| at >= *o && at - *o < d.len() as u64).map(|(o, d)| (d, (at - *o) as usize))
}

fn settle_all(
    arch: &dyn Arch,
    package: &Package,
    values: &[Value],
    image: RunAddr,
    spans: &mut [(u64, Vec<u8>)],
) -> Result<(), SessionError> {
    for r in &package.residue {
        let unknown = SessionError::UnknownResidue { r_type: r.r_type, offset: r.offset };
        let Some(howto) = arch.howto(r.r_type) else { return Err(unknown) };
        let symbol = package.symbols.get(r.symbol as usize);
        let s = match (values.get(r.symbol as usize), symbol.map(|s| &s.referent)) {
            (Some(Value::Image(o)), _) => image.offset(*o).0,
            (Some(Value::Address(a)), _) => a.0,
            (Some(Value::Resolver(_)) | None, Some(Referent::Image(_)) | Some(_) | None) => return Err(unknown),
        };
        let Some((data, offset)) = span_at(spans, r.offset) else { return Err(unknown) };
        settle(arch, howto, data, offset as u64, s, r.addend, image.offset(r.offset).0).map_err(|e| match e {
            SettleError::Field(why) => SessionError::Relocation {
                name: howto.name,
                symbol: symbol.map_or(String::new(), |s| s.name.clone()),
                offset: r.offset,
                why,
            },
            SettleError::Expression(_) => SessionError::UnknownResidue { r_type: r.r_type, offset: r.offset },
        })?;
    }
    Ok(())
}

/// `gen` has laid out the code so that there is none, but for an image that is moved by less than a page.
fn check_hazards(
    arch: &dyn Arch,
    package: &Package,
    image: RunAddr,
    spans: &[(u64, Vec<u8>)],
) -> Result<(), SessionError> {
    let code = |at: u64| package.spans.iter().any(|s| s.perm.exec && s.offset == at);
    let mut found = spans.iter().filter(|s| code(s.0)).filter_map(|(o, data)| arch.hazard(data, image.offset(*o).0));
    found.next().map_or(Ok(()), |h| Err(SessionError::Hazard { what: h.what, at: RunAddr(h.at) }))
}

fn write_spans(target: &mut dyn Target, spans: &[(u64, Vec<u8>)], image: RunAddr) -> Result<(), SessionError> {
    for (offset, data) in spans.iter().filter(|s| !s.1.is_empty()) {
        target.write(image.offset(*offset), data)?;
    }
    Ok(())
}

/// Makes the written image visible to instruction fetch, and reads it back.
fn show(
    target: &mut dyn Target,
    arch: &dyn Arch,
    package: &Package,
    spans: &[(u64, Vec<u8>)],
    image: RunAddr,
) -> Result<(), SessionError> {
    for (s, (offset, data)) in package.spans.iter().zip(spans) {
        if s.perm.exec {
            flush(target, arch, image.offset(*offset), data.len() as u64)?;
        }
        verify(target, image.offset(*offset), data, "image")?;
    }
    Ok(())
}

fn verify(target: &mut dyn Target, at: RunAddr, bytes: &[u8], what: &str) -> Result<(), SessionError> {
    let mut back = vec![0u8; bytes.len()];
    target.read(at, &mut back)?;
    if back == bytes { Ok(()) } else { Err(SessionError::ReadBack { what: String::from(what), at }) }
}

/// Step 5: stop, check, write, resume.
fn commit(
    target: &mut dyn Target,
    arch: &dyn Arch,
    plan: &Plan,
    options: &Options,
    clock: &mut dyn Clock,
    prepared: &mut Prepared,
) -> Result<(u64, u32), SessionError> {
    let mut checker = plan.inspected.checker(target, arch, &plan.protected);
    let Prepared { record, code } = prepared;
    let at = record.at;
    let state = |outcome: Outcome<'_>| match outcome {
        Outcome::Written => String::from("the patch is in"),
        Outcome::Blocked => alloc::format!("the patch is not in, its image at {at} stays mapped"),
        Outcome::Failed(e) => alloc::format!("{e}; its image at {at} stays mapped"),
    };
    let held = |result: &Result<(), SessionError>| match result {
        Ok(()) => state(Outcome::Written),
        Err(e) => state(Outcome::Failed(e)),
    };
    let mut write = |target: &mut dyn Target, attempt: u32| {
        with_flush(target, arch, &held, |t| {
            // Everybody waits: the first attempt follows the writing at once.
            let code = if attempt > 1 { code.as_slice() } else { &[] };
            still_as_written(t, record, code)?;
            write_sites(t, arch, record)
        })
    };
    let attempt = Attempt { timeout_ms: options.timeout_ms, lead_out: true, write: &mut write, state: &state };
    attempt.run(target, &mut checker, clock)
}

/// The target has run since record and image were written: a process may have become another program, a device may have
/// started anew with the same old code, and the jumps would lead to nowhere.
fn still_as_written(target: &mut dyn Target, record: &Record, code: &[(RunAddr, Vec<u8>)]) -> Result<(), SessionError> {
    verify(target, record.at, &record.encode(), "record")?;
    code.iter().try_for_each(|(at, code)| verify(target, *at, code, "image"))
}

/// All threads are stopped and none is in the way. The journal (old and new bytes of every site) is in the record.
fn write_sites(target: &mut dyn Target, arch: &dyn Arch, record: &mut Record) -> Result<(), SessionError> {
    for s in &record.sites {
        let mut now = vec![0u8; s.old_bytes.len()];
        target.read(s.at, &mut now)?;
        if now != s.old_bytes {
            return Err(SessionError::UnexpectedBytes {
                function: s.function.clone(),
                at: s.at,
                expected: hex(&s.old_bytes),
                found: hex(&now),
            });
        }
    }
    record.set_state(target, State::Applying)?;
    let sites = record.sites.clone();
    let mut result = Ok(());
    for s in &sites {
        result = write_site(target, arch, s.at, &s.new_bytes, &s.function);
        if result.is_err() {
            break;
        }
    }
    let result = result.and_then(|()| Ok(record.set_state(target, State::Applied)?));
    let Err(cause) = result else { return Ok(()) };
    // Should the undoing fail as well, the record must say that it is not finished.
    let _ = record.set_state(target, State::Applying);
    // Put everything back, also the site whose write failed: it may have been written in part.
    match restore_sites(target, arch, &sites).and_then(|()| Ok(record.set_state(target, State::Preparing)?)) {
        Ok(()) => Err(SessionError::RolledBack { cause: Box::new(cause) }),
        Err(undo) => Err(SessionError::Stuck { cause: Box::new(cause), undo: Box::new(undo) }),
    }
}

pub(super) fn write_site(
    target: &mut dyn Target,
    arch: &dyn Arch,
    at: RunAddr,
    bytes: &[u8],
    function: &str,
) -> Result<(), SessionError> {
    let written = target.write(at, bytes);
    // A write that failed may have stored a part.
    let flushed = flush(target, arch, at, bytes.len() as u64);
    written.and(flushed)?;
    verify(target, at, bytes, function)
}

/// Writes the old bytes of all sites, last first.
pub(super) fn restore_sites(
    target: &mut dyn Target,
    arch: &dyn Arch,
    sites: &[RecordSite],
) -> Result<(), SessionError> {
    // One that fails must not keep the others from being restored.
    let restore = |result: Result<(), SessionError>, s: &RecordSite| {
        let r = write_site(target, arch, s.at, &s.old_bytes, &s.function);
        result.and(r)
    };
    sites.iter().rev().fold(Ok(()), restore)
}
