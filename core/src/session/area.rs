//! Patches in an area: memory that the user set aside on a target where none can be allocated. Image, record and islands lie
//! anywhere in it; what is in use is what the records there say, so that no other bookkeeping can be lost.

use crate::addr::RunAddr;
use crate::model::Package;
use crate::session::error::SessionError;
use crate::session::plan::Plan;
use crate::session::record::{MAGIC, Record};
use crate::session::space::StartRange;
use crate::target::{Area, Target, TargetError};
use alloc::{string::String, vec, vec::Vec};

/// Records begin at multiples of this, bytes from address 0.
pub const GRANULE: u64 = 64;
/// The area is read in pieces of this many bytes.
const CHUNK: u64 = 64 << 10;

/// Places for one patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The record.
    pub record: RunAddr,
    /// The image.
    pub image: RunAddr,
}

type Block = (u64, u64);

fn bounds(area: Area) -> Block {
    (area.start.0, area.start.0.saturating_add(area.size))
}

fn blocks_of(r: &Record) -> [Block; 3] {
    let block = |at: RunAddr, size: u64| (at.0, at.0.saturating_add(size));
    [block(r.at, r.region_size), block(r.image, r.image_size), block(r.islands.0, r.islands.1)]
}

/// All records in the area, ascending by address.
pub(super) fn records(target: &mut dyn Target, area: Area) -> Vec<Result<Record, SessionError>> {
    let (low, high) = bounds(area);
    let mut hits = Vec::new();
    let mut at = low.next_multiple_of(GRANULE);
    let mut buf = vec![0u8; CHUNK.min(area.size) as usize];
    while at < high {
        let n = (high - at).min(CHUNK) as usize;
        let Some(piece) = buf.get_mut(..n) else { break };
        if let Err(e) = target.read(RunAddr(at), piece) {
            return vec![Err(e.into())];
        }
        let magic = |(_, c): &(usize, &[u8])| c.starts_with(&MAGIC);
        hits.extend(piece.chunks(GRANULE as usize).enumerate().filter(magic).map(|(i, _)| at + i as u64 * GRANULE));
        at += CHUNK;
    }
    let mut out: Vec<Result<Record, SessionError>> = Vec::new();
    let mut images: Vec<Block> = Vec::new();
    for at in hits {
        // An image may hold the same bytes, if it patches a patcher.
        if images.iter().any(|i| i.0 <= at && at < i.1) {
            continue;
        }
        let record = Record::read(target, RunAddr(at)).and_then(|r| {
            let inside = |b: &Block| b.0 == b.1 || low <= b.0 && b.0 < b.1 && b.1 <= high;
            if blocks_of(&r).iter().all(inside) {
                Ok(r)
            } else {
                Err(SessionError::BadRecord { at: RunAddr(at), why: "it claims memory outside of the area" })
            }
        });
        if let Ok(r) = &record {
            images.push((r.image.0, r.image.0.saturating_add(r.image_size)));
        }
        out.push(record);
    }
    out.retain(|r| r.as_ref().map_or(true, |r| !images.iter().any(|i| i.0 <= r.at.0 && r.at.0 < i.1)));
    out
}

/// What is free of the area, ascending.
fn free(area: Area, used: &mut [Block]) -> Vec<Block> {
    used.sort_unstable();
    let (mut at, high) = bounds(area);
    let mut out = Vec::new();
    for &(start, end) in used.iter().filter(|b| b.0 < b.1) {
        if start > at {
            out.push((at, start.min(high)));
        }
        at = at.max(end);
    }
    if at < high {
        out.push((at, high));
    }
    out
}

/// The lowest place for `size` bytes.
fn fit(free: &[Block], size: u64, align: u64, range: StartRange) -> Option<u64> {
    free.iter().find_map(|&(low, high)| {
        let low = i128::from(low).max(range.low);
        let at = u64::try_from(low).ok()?.checked_next_multiple_of(align.max(1))?;
        let end = at.checked_add(size)?;
        (end <= high && i128::from(at) <= range.high).then_some(at)
    })
}

fn used(records: &[Record]) -> Vec<Block> {
    records.iter().flat_map(blocks_of).collect()
}

/// An image that was linked for one address goes exactly there.
fn alignment(package: &Package) -> u64 {
    if package.base.is_some() { 1 } else { package.page_size.max(1) }
}

/// Finds room for an image that may start in `range`, and for its record.
pub(super) fn reserve(
    area: Area,
    records: &[Record],
    package: &Package,
    record_size: u64,
    range: StartRange,
) -> Option<Reserved> {
    let mut used = used(records);
    let size = package.image_size();
    let image = fit(&free(area, &mut used), size, alignment(package), range)?;
    used.push((image, image + size));
    let record = fit(&free(area, &mut used), record_size, GRANULE, StartRange::EVERYWHERE)?;
    Some(Reserved { record: RunAddr(record), image: RunAddr(image) })
}

/// That there is no room, with all figures.
pub(super) fn full(area: Area, records: &[Record], package: &Package, record_size: u64) -> SessionError {
    let free = free(area, &mut used(records));
    SessionError::AreaFull {
        name: package.name.clone(),
        image: package.image_size(),
        align: alignment(package),
        record: record_size,
        start: area.start,
        size: area.size,
        free: free.iter().map(|b| b.1 - b.0).max().unwrap_or(0),
    }
}

/// Finds room for `size` bytes of islands that may start in `range`, besides what is reserved already.
pub(super) fn islands(
    area: Option<Area>,
    plan: &Plan,
    reserved: Reserved,
    range: StartRange,
    size: u64,
) -> Result<(RunAddr, u64), SessionError> {
    let no_space = || SessionError::NoSpace {
        size,
        low: RunAddr(range.low.clamp(0, i128::from(u64::MAX)) as u64),
        high: RunAddr(range.high.clamp(0, i128::from(u64::MAX)) as u64),
        target: plan.target.clone(),
    };
    let area = area.ok_or_else(no_space)?;
    let mut used = used(&plan.inspected.records);
    used.push((reserved.image.0, reserved.image.0 + plan.image_size));
    used.push((reserved.record.0, reserved.record.0 + plan.record_size));
    let at = fit(&free(area, &mut used), size, GRANULE, range).ok_or_else(no_space)?;
    Ok((RunAddr(at), size))
}

/// Takes the mark off a record: its blocks are free from then on.
pub(super) fn forget(target: &mut dyn Target, at: RunAddr) -> Result<(), TargetError> {
    let none = [0u8; MAGIC.len()];
    target.write(at, &none)?;
    let mut back = MAGIC;
    target.read(at, &mut back)?;
    if back == none {
        return Ok(());
    }
    let why = String::from("it did not read back as written");
    Err(TargetError::Memory { action: "write", addr: at, len: none.len(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area { start: RunAddr(0x1010), size: 0x1000 };

    #[test]
    fn free_blocks_are_what_is_not_used() {
        assert_eq!(free(AREA, &mut []), [(0x1010, 0x2010)]);
        let mut used = [(0x1f00, 0x2010), (0, 0), (0x1010, 0x1100), (0x1080, 0x1200)];
        assert_eq!(free(AREA, &mut used), [(0x1200, 0x1f00)]);
        assert_eq!(free(AREA, &mut [(0, u64::MAX)]), []);
    }

    #[test]
    fn blocks_fit_by_size_alignment_and_reach() {
        let free = [(0x1010, 0x1100), (0x1200, 0x1f00)];
        let all = StartRange::EVERYWHERE;
        assert_eq!(fit(&free, 0x40, 64, all), Some(0x1040));
        assert_eq!(fit(&free, 0xf0, 1, all), Some(0x1010));
        assert_eq!(fit(&free, 0xf0, 64, all), Some(0x1200));
        assert_eq!(fit(&free, 0xd01, 1, all), None);
        assert_eq!(fit(&free, 0x40, 64, StartRange { low: 0x1300, high: 0x1fff }), Some(0x1300));
        assert_eq!(fit(&free, 0x40, 1, StartRange { low: 0x1ee0, high: 0x1fff }), None);
        assert_eq!(fit(&free, 0x40, 1, StartRange { low: 0, high: 0x1000 }), None);
    }
}
