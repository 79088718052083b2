//! Writing to memory that a stub protects as the program does: it is made writable for the moment, by injected calls.

use super::error::GdbError;
use super::stub::Kind;
use super::target::GdbTarget;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::target::{Mapping, Mappings as _, Perm, TargetError};

// include/uapi/asm-generic/mman-common.h, the same on every Linux ABI.
const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const AT_PAGESZ: u64 = 6;

fn bits(perm: Perm) -> u64 {
    (if perm.read { PROT_READ } else { 0 })
        | (if perm.write { PROT_WRITE } else { 0 })
        | (if perm.exec { PROT_EXEC } else { 0 })
}

impl GdbTarget {
    /// Writes, whatever the rights of the memory are.
    pub(super) fn write_anywhere(&mut self, addr: RunAddr, bytes: &[u8]) -> Result<(), TargetError> {
        let answer = match self.stub.write_bytes(addr.0, bytes) {
            Ok(()) => return Ok(()),
            Err(GdbError::Refused { answer, .. }) => answer,
            Err(e) => return Err(self.fault(e)),
        };
        let error = TargetError::Memory { action: "write", addr, len: bytes.len(), why: answer };
        if self.stub.kind != Kind::Process || self.arch.linux().is_none() {
            return Err(error);
        }
        let page = self.auxiliary(AT_PAGESZ).filter(|p| p.is_power_of_two()).unwrap_or(4096);
        let low = addr.0 & !(page - 1);
        let Some(high) = addr.0.checked_add(bytes.len() as u64).and_then(|e| e.checked_next_multiple_of(page)) else {
            return Err(error);
        };
        let maps = self.mappings()?;
        let parts: Vec<(u64, u64, Perm)> = maps
            .iter()
            .filter(|m| m.start.0 < high && m.end.0 > low)
            .map(|m: &Mapping| (m.start.0.max(low), m.end.0.min(high), m.perm))
            .collect();
        // No memory there, or the stub's reason is another one.
        if parts.is_empty() || parts.iter().all(|p| p.2.write) {
            return Err(error);
        }
        self.with_thread(|t| t.write_protected(addr, bytes, (low, high), &parts))
    }

    /// Executable pages lose that right meanwhile: nobody executes them, and nothing is writable and executable.
    fn write_protected(
        &mut self,
        addr: RunAddr,
        bytes: &[u8],
        pages: (u64, u64),
        parts: &[(u64, u64, Perm)],
    ) -> Result<(), TargetError> {
        let Some(linux) = self.arch.linux() else { return Ok(()) };
        let mut result = Ok(());
        let mut changed = Vec::new();
        for &(start, end, perm) in parts {
            let args = [start, end - start, PROT_READ | PROT_WRITE, 0, 0, 0];
            match self.inject_outside("mprotect", linux.mprotect, args, None, pages) {
                Ok(_) => changed.push((start, end, perm)),
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        if result.is_ok() {
            result = self.stub.write_bytes(addr.0, bytes).map_err(|e| match e {
                GdbError::Refused { answer, .. } => {
                    TargetError::Memory { action: "write", addr, len: bytes.len(), why: answer }
                }
                e => self.fault(e),
            });
        }
        for (start, end, perm) in changed {
            let args = [start, end - start, bits(perm), 0, 0, 0];
            let back = self.inject_outside("mprotect", linux.mprotect, args, None, pages).map(|_| ());
            result = result.and(back);
        }
        result
    }
}
