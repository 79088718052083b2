//! The address space: /proc/PID/maps, the files behind it, and the auxiliary vector.

use super::{PtraceTarget, proc_error, process, sys};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::field::load;
use tigerfix_core::target::{Mapping, Mappings, Perm, TargetError};

/// What the kernel puts behind the path of a file that was unlinked or replaced.
const DELETED: &str = " (deleted)";

/// One line of /proc/PID/maps: `start-end perms offset major:minor inode    path` (kernel fs/proc/task_mmu.c,
/// show_map_vma). The path is everything behind the padding, spaces and all; the kernel escapes newlines only.
fn parse_line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        rest = rest.trim_start_matches(' ');
        let (w, r) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
        rest = r;
        w
    };
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let (start, end) = word().split_once('-')?;
    let perm = word().as_bytes();
    let offset = hex(word())?;
    let (major, minor) = word().split_once(':')?;
    let inode = word().parse().ok()?;
    let device = libc::makedev(hex(major)? as u32, hex(minor)? as u32);
    Some(Mapping {
        start: RunAddr(hex(start)?),
        end: RunAddr(hex(end)?),
        perm: Perm {
            read: perm.first() == Some(&b'r'),
            write: perm.get(1) == Some(&b'w'),
            exec: perm.get(2) == Some(&b'x'),
        },
        offset,
        file: if inode == 0 { (0, 0) } else { (device, inode) },
        name: rest.trim_start_matches(' ').replace("\\012", "\n"),
    })
}

/// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): in memory, or swapped out.
const PAGE_THERE: u64 = 1 << 63 | 1 << 62;
/// Larger mappings are not looked up page by page.
const MAX_PAGES: u64 = 1 << 18;

impl PtraceTarget {
    /// The parts of an anonymous mapping that have pages. `None`: unknown.
    fn pages_of(&self, m: &Mapping) -> Option<Vec<(RunAddr, RunAddr)>> {
        let page = sys::page_size();
        let start = RunAddr(m.start.0 / page * page);
        let count = (m.end.0 - start.0) / page;
        if count > MAX_PAGES {
            return None;
        }
        let mut entries = vec![0u8; usize::try_from(count * 8).ok()?];
        let file = File::open(format!("/proc/{}/pagemap", self.pid)).ok()?;
        file.read_exact_at(&mut entries, start.0 / page * 8).ok()?;
        let mut out: Vec<(RunAddr, RunAddr)> = Vec::new();
        for (i, e) in entries.chunks_exact(8).enumerate() {
            let mut word = [0u8; 8];
            word.copy_from_slice(e);
            if u64::from_ne_bytes(word) & PAGE_THERE == 0 {
                continue;
            }
            let at = start.offset(i as u64 * page);
            match out.last_mut() {
                Some(last) if last.1 == at => last.1 = at.offset(page),
                _ => out.push((at, at.offset(page))),
            }
        }
        Some(out)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind() {
        let m = parse_line("55d0c8a6e000-55d0c8a70000 r-xp 00002000 fe:01 1311  /opt/my app/b in (deleted)").unwrap();
        assert_eq!((m.start, m.end, m.offset), (RunAddr(0x55d0_c8a6_e000), RunAddr(0x55d0_c8a7_0000), 0x2000));
        assert_eq!(m.perm, Perm::RX);
        assert_eq!(m.file, (libc::makedev(0xfe, 1), 1311));
        assert_eq!(m.name, "/opt/my app/b in (deleted)");
        let m = parse_line("7ffd1000-7ffd2000 rw-p 00000000 00:00 0                          [stack]").unwrap();
        assert_eq!((m.file, m.name.as_str(), m.perm), ((0, 0), "[stack]", Perm::RW));
        let m = parse_line("7ffd1000-7ffd2000 ---p 00000000 00:00 0 ").unwrap();
        assert_eq!((m.name.as_str(), m.perm.to_string().as_str()), ("", "---"));
        let m = parse_line("7ffd1000-7ffd2000 r--s 00001000 00:01 77    /tmp/a\\012b").unwrap();
        assert_eq!((m.name.as_str(), m.perm), ("/tmp/a\nb", Perm::R));
        for bad in ["", "x", "1-2", "1-2 rwxp", "1-2 rwxp 0 0", "1-2 rwxp 0 0:0", "1-g rwxp 0 0:0 0"] {
            assert!(parse_line(bad).is_none(), "{bad}");
        }
    }
}
