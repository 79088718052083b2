//! Files of /proc that tell about a process, as text and bytes: read here, or by a stub elsewhere.

use tigerfix_core::addr::RunAddr;
use tigerfix_core::field::{Endian, load};
use tigerfix_core::target::{Mapping, Perm};

/// One line of /proc/PID/maps: `start-end perms offset major:minor inode    path` (kernel fs/proc/task_mmu.c,
/// show_map_vma). The path is everything behind the padding, spaces and all; the kernel escapes newlines only.
pub(crate) fn parse_line(line: &str) -> Option<Mapping> {
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

/// Where /proc/PID/pagemap tells which pages of a mapping there are.
pub(crate) struct Pages {
    start: RunAddr,
    page: u64,
    /// Offset in the file, bytes.
    pub(crate) offset: u64,
    /// Size of the entries, bytes.
    pub(crate) len: usize,
}

impl Pages {
    /// `None`: too many to look at.
    pub(crate) fn of(m: &Mapping, page: u64) -> Option<Pages> {
        let start = RunAddr(m.start.0 / page * page);
        let count = (m.end.0 - start.0) / page;
        if count > MAX_PAGES {
            return None;
        }
        Some(Pages { start, page, offset: start.0 / page * 8, len: usize::try_from(count * 8).ok()? })
    }

    /// The parts that have pages, by the entries.
    pub(crate) fn there(&self, entries: &[u8], endian: Endian) -> Vec<(RunAddr, RunAddr)> {
        let mut out: Vec<(RunAddr, RunAddr)> = Vec::new();
        for (i, e) in entries.chunks_exact(8).enumerate() {
            if load(e, endian) & PAGE_THERE == 0 {
                continue;
            }
            let at = self.start.offset(i as u64 * self.page);
            match out.last_mut() {
                Some(last) if last.1 == at => last.1 = at.offset(self.page),
                _ => out.push((at, at.offset(self.page))),
            }
        }
        out
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
