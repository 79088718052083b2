//! What a `fix` left behind that was killed before it had written a record: mappings that nothing refers to.

use crate::addr::RunAddr;
use crate::arch::Arch;
use crate::session::error::SessionError;
use crate::session::record::{REGION_PREFIX, Record};
use crate::session::region;
use crate::target::{Mapping, Target};
use alloc::vec::Vec;

/// Mappings of ours that belong to no record. A record is written before the first jump to its image, so no code leads
/// to these.
#[must_use]
pub fn abandoned(mappings: &[Mapping], records: &[Record]) -> Vec<(RunAddr, u64)> {
    let ours = |m: &&Mapping| m.name.starts_with(REGION_PREFIX);
    // All pieces of a region are mappings of one file.
    let known: Vec<(u64, u64)> = mappings
        .iter()
        .filter(ours)
        .filter(|m| records.iter().any(|r| m.contains(r.at) || r.islands.1 != 0 && m.contains(r.islands.0)))
        .map(|m| m.file)
        .collect();
    let strays = mappings.iter().filter(ours).filter(|m| !known.contains(&m.file));
    strays.map(|m| (m.start, m.end.0 - m.start.0)).collect()
}

/// Unmaps what [`abandoned`] finds. The caller has the target to itself ([`Target::claim`]), so that nobody is just
/// about to write a record.
pub(super) fn sweep(
    target: &mut dyn Target,
    arch: &dyn Arch,
    mappings: &[Mapping],
    records: &[Record],
) -> Result<bool, SessionError> {
    let strays = abandoned(mappings, records);
    if strays.is_empty() {
        return Ok(false);
    }
    region::hold(target)?;
    let mut result = Ok(());
    for (at, size) in strays {
        result = result.and(region::unmap(target, arch, at, size));
    }
    let released = region::release(target);
    result?;
    released?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::record::State;
    use crate::target::Perm;
    use alloc::string::String;

    fn map(start: u64, inode: u64, name: &str) -> Mapping {
        Mapping {
            start: RunAddr(start),
            end: RunAddr(start + 0x1000),
            perm: Perm::R,
            offset: 0,
            file: (1, inode),
            name: String::from(name),
        }
    }

    fn record(at: u64, islands: (RunAddr, u64)) -> Record {
        Record {
            at: RunAddr(at),
            state: State::Applied,
            sequence: 1,
            region_size: 0x2000,
            image: RunAddr(at + 0x1000),
            image_size: 0x1000,
            islands,
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
    fn only_regions_without_a_record_are_abandoned() {
        let maps = [
            map(0x1000, 7, "/memfd:tfix:a (deleted)"),
            map(0x2000, 7, "/memfd:tfix:a (deleted)"),
            map(0x9000, 8, "/lib/x"),
        ];
        assert_eq!(abandoned(&maps, &[]), [(RunAddr(0x1000), 0x1000), (RunAddr(0x2000), 0x1000)]);
        assert_eq!(abandoned(&maps, &[record(0x1000, (RunAddr(0), 0))]), []);
        let islands = record(0x5000, (RunAddr(0x2000), 0x1000));
        assert_eq!(abandoned(&maps, &[islands]), []);
    }
}
