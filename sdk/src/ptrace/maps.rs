//! The address space: /proc/PID/maps, the files behind it, and the auxiliary vector.

use super::{PtraceTarget, proc_error, process, sys};
use crate::procfs::{Pages, parse_line};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::field::{Endian, load};
use tigerfix_core::target::{Mapping, Mappings, TargetError};

/// What the kernel puts behind the path of a file that was unlinked or replaced.
const DELETED: &str = " (deleted)";

impl PtraceTarget {
    /// The parts of an anonymous mapping that have pages. `None`: unknown.
    fn pages_of(&self, m: &Mapping) -> Option<Vec<(RunAddr, RunAddr)>> {
        let pages = Pages::of(m, sys::page_size())?;
        let mut entries = vec![0u8; pages.len];
        let file = File::open(format!("/proc/{}/pagemap", self.pid)).ok()?;
        file.read_exact_at(&mut entries, pages.offset).ok()?;
        Some(pages.there(&entries, if cfg!(target_endian = "big") { Endian::Big } else { Endian::Little }))
    }

    pub(super) fn maps(&self) -> Result<Vec<Mapping>, TargetError> {
        let text =
            std::fs::read(format!("/proc/{}/maps", self.pid)).map_err(|e| proc_error(self.pid, "read", "maps", &e))?;
        // Empty: the address space is gone, only the process is still there.
        if text.is_empty() {
            return Err(super::gone(self.pid));
        }
        String::from_utf8_lossy(&text)
            .lines()
            .map(|l| {
                parse_line(l).ok_or_else(|| TargetError::System {
                    what: format!("read /proc/{}/maps", self.pid),
                    why: format!("unexpected line {l:?}"),
                })
            })
            .collect()
    }

    /// Opens the file behind `mapping`, and no other one that has the same path meanwhile.
    fn open_file(&self, mapping: &Mapping) -> Result<File, TargetError> {
        // Exactly the mapped file, even if it was deleted; needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
        let exact = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, mapping.start.0, mapping.end.0);
        if let Ok(f) = File::open(exact) {
            return Ok(f);
        }
        let same = |f: &File| f.metadata().is_ok_and(|m| (m.dev(), m.ino()) == mapping.file);
        let exe = format!("/proc/{}/exe", self.pid);
        if let Some(f) = File::open(exe).ok().filter(same) {
            return Ok(f);
        }
        let path = mapping.name.strip_suffix(DELETED).unwrap_or(&mapping.name);
        let path = format!("/proc/{}/root{path}", self.pid);
        let what = format!("open {path}");
        let file = File::open(path).map_err(|e| TargetError::System { what: what.clone(), why: e.to_string() })?;
        if same(&file) {
            return Ok(file);
        }
        let why = format!("it is not the file that {} has mapped: that one was replaced", process(self.pid));
        Err(TargetError::System { what, why })
    }
}

impl Mappings for PtraceTarget {
    fn touched(&mut self, mapping: &Mapping) -> Vec<(RunAddr, RunAddr)> {
        self.pages_of(mapping).unwrap_or_else(|| vec![(mapping.start, mapping.end)])
    }

    fn mappings(&mut self) -> Result<Vec<Mapping>, TargetError> {
        self.maps()
    }

    fn file(&mut self, mapping: &Mapping) -> Result<Vec<u8>, TargetError> {
        if mapping.file == (0, 0) {
            return Err(TargetError::System {
                what: format!("read the file behind the mapping at {}", mapping.start),
                why: "there is none".to_owned(),
            });
        }
        let mut bytes = Vec::new();
        let read = self.open_file(mapping)?.read_to_end(&mut bytes);
        read.map_err(|e| TargetError::System { what: format!("read {}", mapping.name), why: e.to_string() })?;
        Ok(bytes)
    }

    fn auxv(&mut self, key: u64) -> Result<Option<u64>, TargetError> {
        let bytes =
            std::fs::read(format!("/proc/{}/auxv", self.pid)).map_err(|e| proc_error(self.pid, "read", "auxv", &e))?;
        let word = usize::from(self.arch.address_bits() / 8);
        let load = |b: &[u8]| load(b, self.arch.data_endian());
        Ok(bytes.chunks_exact(2 * word).find(|e| load(&e[..word]) == key).map(|e| load(&e[word..])))
    }
}
