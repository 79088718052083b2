//! `revert`: the stop and the check of `fix`, with the journal backwards.

use crate::addr::RunAddr;
use crate::arch::Arch;
use crate::session::apply::{discard, restore_sites, write_site};
use crate::session::attempt::{Attempt, Outcome, WAIT_US};
use crate::session::error::SessionError;
use crate::session::record::{Record, RecordSite, State};
use crate::session::stack::Protected;
use crate::session::sweep::sweep;
use crate::session::unwind::return_bits;
use crate::session::{Clock, Inspected, attach, find_word, hex, inspect, is_active, resume_all, stop_all, with_flush};
use crate::target::{Target, TargetError, ThreadId};
use alloc::{boxed::Box, format, string::String, vec, vec::Vec};

/// How long to wait for threads to leave the image, and for a pointer to vanish, before the image is parked, microseconds.
const LEAVE_US: u64 = 1_000_000;
const FORGET_US: u64 = 200_000;
/// The longest wait between looks (each is a pause), microseconds.
const LOOK_US: u64 = 50_000;
/// Mappings up to this size are searched without asking which parts were touched, bytes.
const SMALL: u64 = 64 << 10;
/// Memory is searched in pieces of this many bytes.
const CHUNK: u64 = 256 << 10;
/// What can't be read is at least this large, bytes.
const PAGE: u64 = 4 << 10;

/// A patch that was reverted.
#[derive(Clone, Debug)]
pub struct Reverted {
    /// Its record, as it was.
    pub record: Record,
    /// The image stays mapped, because something may still refer to it: what, as a clause.
    pub parked: Option<String>,
    /// The longest time that all threads were stopped, microseconds.
    pub pause_us: u64,
    /// How many times the threads were stopped.
    pub attempts: u32,
}

/// Reverts the patch `name`, or the newest one.
///
/// # Errors
/// [`SessionError`]
pub fn revert(
    target: &mut dyn Target,
    arch: &dyn Arch,
    name: Option<&str>,
    timeout_ms: u64,
    clock: &mut dyn Clock,
) -> Result<Reverted, SessionError> {
    target.claim()?;
    let mut found = inspect(target)?;
    if sweep(target, arch, &found.mappings, &found.records)? {
        found = inspect(target)?;
    }
    let mut record = choose(target, &found.records, name)?;
    topmost(&found.records, &record)?;
    let (pause_us, attempts) = put_back(target, arch, &found, &mut record, timeout_ms, clock)?;
    // The old code is back: what fails from here on only keeps the image mapped.
    let (parked, retire_us) = match retire(target, arch, &found, &mut record, clock) {
        Ok(done) => done,
        Err(e @ SessionError::NotResumed { .. }) => return Err(e),
        Err(e) => (Some(format!("{e}")), 0),
    };
    Ok(Reverted { record, parked, pause_us: pause_us.max(retire_us), attempts })
}

fn choose(target: &dyn Target, records: &[Record], name: Option<&str>) -> Result<Record, SessionError> {
    records
        .iter()
        .rev()
        .find(|r| is_active(r) && name.is_none_or(|n| r.name == n))
        .cloned()
        .ok_or_else(|| SessionError::NotApplied { name: name.map(String::from), target: target.describe() })
}

fn overlap(a: (RunAddr, usize), b: (RunAddr, usize)) -> bool {
    a.0.0 < b.0.0.saturating_add(b.1 as u64) && b.0.0 < a.0.0.saturating_add(a.1 as u64)
}

fn topmost(records: &[Record], record: &Record) -> Result<(), SessionError> {
    for later in records.iter().filter(|r| is_active(r) && r.sequence > record.sequence) {
        for s in &record.sites {
            if later.sites.iter().any(|l| overlap((l.at, l.new_bytes.len()), (s.at, s.new_bytes.len()))) {
                return Err(SessionError::NotTopmost {
                    name: record.name.clone(),
                    upper: later.name.clone(),
                    function: s.function.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Stops everybody, writes the old bytes. No thread may be inside a trampoline.
fn put_back(
    target: &mut dyn Target,
    arch: &dyn Arch,
    found: &Inspected,
    record: &mut Record,
    timeout_ms: u64,
    clock: &mut dyn Clock,
) -> Result<(u64, u32), SessionError> {
    let windows: Vec<Protected> = record
        .sites
        .iter()
        .map(|s| Protected {
            name: s.function.clone(),
            start: s.at,
            end: s.at.offset(s.new_bytes.len() as u64),
            entry: true,
            function: s.entry,
        })
        .collect();
    let mut checker = found.checker(target, arch, &windows);
    let at = record.at;
    let state = |outcome: Outcome<'_>| match outcome {
        Outcome::Written => format!("the old code is back, the image at {at} stays mapped"),
        Outcome::Blocked => String::from("the patch is still in"),
        Outcome::Failed(e) => format!("{e}"),
    };
    let held = |result: &Result<(), SessionError>| match result {
        Ok(()) => state(Outcome::Written),
        Err(e) => state(Outcome::Failed(e)),
    };
    let mut write = |target: &mut dyn Target, _| with_flush(target, arch, &held, |t| restore(t, arch, record));
    let attempt = Attempt { timeout_ms, lead_out: false, write: &mut write, state: &state };
    attempt.run(target, &mut checker, clock)
}

fn restore(target: &mut dyn Target, arch: &dyn Arch, record: &mut Record) -> Result<(), SessionError> {
    // A site must hold our trampoline, or already its old bytes (an interrupted fix or revert).
    for s in &record.sites {
        let mut now = vec![0u8; s.new_bytes.len()];
        target.read(s.at, &mut now)?;
        let ours = now == s.new_bytes || now == s.old_bytes;
        // A killed fix may have left a site between the two only where the write itself was cut short.
        let between = || now.iter().zip(s.new_bytes.iter().zip(&s.old_bytes)).all(|(n, (a, b))| n == a || n == b);
        let unfinished = record.state != State::Applied && between();
        if !ours && !unfinished {
            return Err(SessionError::UnexpectedBytes {
                function: s.function.clone(),
                at: s.at,
                expected: hex(&s.new_bytes),
                found: hex(&now),
            });
        }
    }
    let before = record.state;
    if let Err(e) = record.set_state(target, State::Reverting) {
        // It may have been written nevertheless.
        let _ = record.set_state(target, before);
        return Err(e.into());
    }
    let sites = record.sites.clone();
    let Err(cause) = old_code(target, arch, record, &sites) else { return Ok(()) };
    let cause = Box::new(cause);
    if before == State::Applied {
        return Err(match new_code(target, arch, record, &sites) {
            Ok(()) => SessionError::StillApplied { cause },
            Err(undo) => SessionError::Stuck { cause, undo: Box::new(undo) },
        });
    }
    // Half a patch was there before: the only way is forward.
    old_code(target, arch, record, &sites).map_err(|again| SessionError::Stuck { cause, undo: Box::new(again) })
}

fn old_code(
    target: &mut dyn Target,
    arch: &dyn Arch,
    record: &mut Record,
    sites: &[RecordSite],
) -> Result<(), SessionError> {
    restore_sites(target, arch, sites)?;
    Ok(record.set_state(target, State::Parked)?)
}

/// Puts the trampolines in again.
fn new_code(
    target: &mut dyn Target,
    arch: &dyn Arch,
    record: &mut Record,
    sites: &[RecordSite],
) -> Result<(), SessionError> {
    // Should this fail, the record must say that it is not finished.
    let _ = record.set_state(target, State::Reverting);
    let write = |result: Result<(), SessionError>, s: &RecordSite| {
        let r = write_site(target, arch, s.at, &s.new_bytes, &s.function);
        result.and(r)
    };
    sites.iter().fold(Ok(()), write)?;
    Ok(record.set_state(target, State::Applied)?)
}

/// Frees the image if nothing refers to it; else it stays, as `Parked`. Returns why, and the longest stop, microseconds.
fn retire(
    target: &mut dyn Target,
    arch: &dyn Arch,
    found: &Inspected,
    record: &mut Record,
    clock: &mut dyn Clock,
) -> Result<(Option<String>, u64), SessionError> {
    let mut longest = 0;
    let mut ranges = vec![record.image_range()];
    if record.islands.1 != 0 {
        ranges.push((record.islands.0, record.islands.0.offset(record.islands.1)));
    }
    let protected: Vec<Protected> = ranges
        .iter()
        .map(|r| Protected { name: record.name.clone(), start: r.0, end: r.1, entry: false, function: record.image })
        .collect();
    let mut checker = found.checker(target, arch, &protected);
    let begin = clock.now_us();
    let mut wait = WAIT_US.0;
    loop {
        attach(target)?;
        let stopped_at = clock.now_us();
        let threads = stop_all(target)?;
        let looked = match checker.check(target, &threads) {
            Ok(b) => match b.first() {
                Some(b) => Ok(Some(Why { text: format!("{b}"), patience: LEAVE_US })),
                None => search(target, arch, record, &ranges, &threads),
            },
            Err(e @ SessionError::StackUnknown { .. }) => Ok(Some(format!("{e}").into())),
            Err(e) => Err(e),
        };
        // Between this look and the unmapping nobody can get a new reference: no site leads to the image, and no
        // memory or register names it.
        resume_all(target).map_err(|cause| SessionError::NotResumed {
            what: format!("the old code is back, the image at {} stays mapped", record.at),
            cause: Box::new(cause),
        })?;
        longest = longest.max(clock.now_us().saturating_sub(stopped_at));
        let why = looked?;
        match why {
            None => {
                discard(target, arch, record)?;
                return Ok((None, longest));
            }
            Some(why) if clock.now_us().saturating_sub(begin) >= why.patience || target.interrupted() => {
                return Ok((Some(why.text), longest));
            }
            Some(_) => {
                clock.wait_us(wait);
                wait = (wait * 2).min(LOOK_US);
            }
        }
    }
}

/// Why an image has to stay.
struct Why {
    text: String,
    /// How long to look again before that is final, microseconds.
    patience: u64,
}

impl From<String> for Why {
    fn from(text: String) -> Why {
        Why { text, patience: FORGET_US }
    }
}

/// What is left of `start..end` without the `excluded` ranges, which are ascending.
fn without(start: RunAddr, end: RunAddr, excluded: &[(RunAddr, RunAddr)]) -> Vec<(RunAddr, RunAddr)> {
    let mut out = Vec::new();
    let mut at = start;
    for &(low, high) in excluded.iter().filter(|x| x.1 > start && x.0 < end) {
        if low > at {
            out.push((at, low));
        }
        at = at.max(high);
    }
    if at < end {
        out.push((at, end));
    }
    out
}

/// Looks for a word in the target's writable memory and registers that points into `ranges`: a callback, a string that
/// the patch handed out. Everybody is stopped.
fn search(
    target: &mut dyn Target,
    arch: &dyn Arch,
    record: &Record,
    ranges: &[(RunAddr, RunAddr)],
    threads: &[ThreadId],
) -> Result<Option<Why>, SessionError> {
    let layout = arch.registers();
    let word = arch.address_bits() / 8;
    let all = target.mappings().ok_or(TargetError::Unsupported { what: "list mappings" })?.mappings()?;
    let bits = return_bits(arch, &all) & if word == 4 { u64::from(u32::MAX) } else { u64::MAX };
    let inside = |v: u64| ranges.iter().any(|r| v.wrapping_sub(r.0.0) & bits < r.1.0.saturating_sub(r.0.0));
    let mut stacks = Vec::new();
    for &t in threads {
        let api = target.threads().ok_or(TargetError::Unsupported { what: "read registers" })?;
        let regs = api.registers(t)?;
        if let Some(r) = (0..layout.count).find(|r| inside(regs.get(*r))) {
            let name = layout.names.get(usize::from(r)).copied().unwrap_or("a register");
            return Ok(Some(format!("{name} of thread {t} points into the image").into()));
        }
        stacks.push(regs.get(layout.sp));
    }
    stacks.sort_unstable();
    let red_zone = arch.linux().map_or(0, |l| l.red_zone);
    let maps = target.mappings().ok_or(TargetError::Unsupported { what: "list mappings" })?;
    let region = (record.at, record.at.offset(record.region_size));
    let own = |at: RunAddr| at >= region.0 && at < region.1;
    let mut excluded = ranges.to_vec();
    excluded.push(region);
    excluded.sort_unstable();
    let mut pieces: Vec<(RunAddr, RunAddr, String)> = Vec::new();
    let mut total = 0;
    for mut m in all.into_iter().filter(|m| m.perm.write && m.perm.read && !own(m.start)) {
        // Below the lowest stack pointer of a stack nothing is alive.
        let mut live = m.start;
        if let Some(&sp) = stacks.get(stacks.partition_point(|sp| *sp < m.start.0)).filter(|sp| **sp < m.end.0) {
            live = live.max(RunAddr(sp.saturating_sub(red_zone) & !(u64::from(word) - 1)));
            m.start = m.start.max(RunAddr(live.0 & !0xfff));
        }
        let size = m.end.0 - m.start.0;
        let parts = if m.file == (0, 0) && size > SMALL { maps.touched(&m) } else { vec![(m.start, m.end)] };
        for (start, end) in parts {
            let start = start.max(live).min(end);
            for (start, end) in without(start, end, &excluded) {
                total += end.0 - start.0;
                pieces.push((start, end, m.name.clone()));
            }
        }
    }
    if total > target.search_limit() {
        let text = format!("{} MiB of writable memory are too many to search for pointers into the image", total >> 20);
        return Ok(Some(Why { text, patience: 0 }));
    }
    let largest = pieces.iter().map(|p| p.1.0 - p.0.0).max().unwrap_or(0).min(CHUNK);
    let mut buf = vec![0u8; largest as usize];
    for (start, end, name) in pieces {
        let mut at = start;
        while at < end {
            let n = (end.0 - at.0).min(CHUNK) as usize;
            let piece = &mut buf[..n];
            read_around(target, at, piece)?;
            let find = |r: &(RunAddr, RunAddr)| find_word(piece, word, arch.data_endian(), bits, r.0.0..r.1.0);
            if let Some(i) = ranges.iter().find_map(find) {
                let place = at.offset((i * usize::from(word)) as u64);
                let name = if name.is_empty() { "anonymous memory" } else { name.as_str() };
                return Ok(Some(format!("a pointer into the image lies at {place} ({name})").into()));
            }
            at = at.offset(n as u64);
        }
    }
    Ok(None)
}

/// Reads what can be read at `at`, page by page where it is not all; the rest becomes zeros, which point nowhere. Device
/// memory and guard pages can't be read, and hold no pointers of ours.
fn read_around(target: &mut dyn Target, at: RunAddr, buf: &mut [u8]) -> Result<(), TargetError> {
    match target.read(at, buf) {
        Err(TargetError::Memory { .. }) => {}
        other => return other,
    }
    let mut at = at;
    let mut rest = buf;
    while !rest.is_empty() {
        let to_next = (PAGE - at.0 % PAGE) as usize;
        let (page, behind) = rest.split_at_mut(to_next.min(rest.len()));
        match target.read(at, page) {
            // What was read in part is not what lies there.
            Err(TargetError::Memory { .. }) => page.fill(0),
            other => other?,
        }
        at = at.offset(page.len() as u64);
        rest = behind;
    }
    Ok(())
}
