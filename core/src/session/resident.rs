//! Programs that are in a target's memory without a file behind them: firmware.

use crate::addr::{LinkAddr, RunAddr};
use crate::model::Package;
use crate::program::Program;
use crate::session::error::SessionError;
use crate::session::modules::{Module, Place, parse_module};
use crate::session::plan::overlay;
use crate::session::record::Record;
use crate::target::{FixedProgram, Mapping, Perm, Target};
use alloc::{vec, vec::Vec};

/// Code up to this size is compared as a whole, bytes.
const SMALL: u64 = 64 << 10;
/// Of more code, so many pieces of so many bytes, besides the functions that are replaced.
const SAMPLES: u64 = 32;
const SAMPLE: u64 = 256;

/// The program as a module. `None`: its file is broken.
pub(super) fn module(program: &FixedProgram) -> Option<Module> {
    let mapping = Mapping {
        start: RunAddr(0),
        end: RunAddr(0),
        perm: Perm::RX,
        offset: 0,
        file: (0, 0),
        name: program.name.clone(),
    };
    let mut module = parse_module(&mapping, Some(program.bias), &mut |place, buf| {
        let (Place::Header(offset) | Place::Loaded { offset, .. }) = place;
        let from = usize::try_from(offset).ok()?;
        buf.copy_from_slice(program.bytes.get(from..from.checked_add(buf.len())?)?);
        Some(())
    })?;
    (module.mapping.start, module.mapping.end) = module.range;
    Some(module)
}

/// Compares the target's code with the program's file, where there is no other proof that it runs it.
///
/// # Errors
/// [`SessionError::OtherProgram`]; target errors.
pub(super) fn verify(target: &mut dyn Target, package: &Package, records: &[Record]) -> Result<(), SessionError> {
    let Some(fixed) = target.mappings().and_then(|m| m.fixed_program()) else { return Ok(()) };
    let program =
        Program::parse(&fixed.bytes).map_err(|why| SessionError::BadProgram { file: fixed.name.clone(), why })?;
    let code = code_of(&program);
    let total: u64 = code.iter().map(|c| c.1.len() as u64).sum();
    let mut compare = |at: RunAddr, bytes: &[u8]| {
        let mut expected = bytes.to_vec();
        overlay(&mut expected, at, records);
        let mut now = vec![0u8; bytes.len()];
        target.read(at, &mut now)?;
        match now.iter().zip(&expected).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(i) => Err(SessionError::OtherProgram {
                target: target.describe(),
                file: fixed.name.clone(),
                at: at.offset(i as u64),
            }),
        }
    };
    if total <= SMALL {
        return code.iter().try_for_each(|(addr, data)| compare(addr.at(fixed.bias), data));
    }
    for &(start, size) in package.sites.iter().flat_map(|s| &s.body) {
        // A body without bytes in the file is gen's mistake, and the sites' expected bytes are compared in any case.
        if let Some(bytes) = program.bytes(start, size) {
            compare(start.at(fixed.bias), bytes)?;
        }
    }
    for (addr, data) in code {
        let step = (data.len() as u64 / SAMPLES).max(SAMPLE);
        for from in (0..data.len() as u64).step_by(step as usize) {
            let to = (from + SAMPLE).min(data.len() as u64);
            compare(addr.offset(from).at(fixed.bias), &data[from as usize..to as usize])?;
        }
    }
    Ok(())
}

/// The code, by sections where there are some: a segment may be writable as well, and hold variables.
fn code_of<'d>(program: &Program<'d>) -> Vec<(LinkAddr, &'d [u8])> {
    const SHF_ALLOC_EXEC: u64 = 2 | 4;
    let sections = program.sections.iter().filter(|s| s.flags & SHF_ALLOC_EXEC == SHF_ALLOC_EXEC);
    let sections: Vec<_> = sections.filter(|s| !s.data.is_empty()).map(|s| (s.addr, s.data)).collect();
    if !sections.is_empty() {
        return sections;
    }
    let segments = program.segments.iter().filter(|s| s.perm.exec && !s.perm.write && !s.data.is_empty());
    segments.map(|s| (s.addr, s.data)).collect()
}
