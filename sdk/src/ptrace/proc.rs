//! What /proc says about a process.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::ElfIdent;
use tigerfix_core::program::ident_of;
use tigerfix_core::target::{Mapping, Perm, TargetError};

use super::sys::Tid;

/// The fields of /proc/PID/status that matter here (Documentation/filesystems/proc.rst, table 1-2).
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Command name.
    pub name: String,
    /// State letter.
    pub state: char,
    /// Thread group id.
    pub tgid: i32,
    /// Tracer, 0: none.
    pub tracer: i32,
    /// 0: none, 1: strict, 2: filter.
    pub seccomp: u8,
    /// A user shadow stack is on.
    pub shadow_stack: bool,
    /// Has user memory (kernel threads have none).
    pub user_memory: bool,
}

/// Reads /proc/PID/task/TID/status.
pub fn status(pid: Tid, tid: Tid) -> Option<Status> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let mut s = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key {
            "Name" => s.name = value.to_owned(),
            "State" => s.state = value.chars().next().unwrap_or('?'),
            "Tgid" => s.tgid = value.parse().unwrap_or(0),
            "TracerPid" => s.tracer = value.parse().unwrap_or(0),
            "Seccomp" => s.seccomp = value.parse().unwrap_or(0),
            "VmSize" => s.user_memory = true,
            "x86_Thread_features" => s.shadow_stack = value.split_whitespace().any(|w| w == "shstk"),
            _ => {}
        }
    }
    Some(s)
}

/// Thread ids of a process, ascending.
pub fn threads(pid: Tid) -> Vec<Tid> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut out: Vec<Tid> = dir.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    out.sort_unstable();
    out
}

/// Threads that are asked for their state before one is chosen.
const CANDIDATES: usize = 32;

/// Thread ids of a process, best first for injected calls: one that sleeps does not miss the time, one that computes is
/// stopped in its work, and one in uninterruptible sleep may take long to stop.
pub fn by_readiness(pid: Tid) -> Vec<Tid> {
    let mut all = threads(pid);
    let rank = |tid: &Tid| match thread_state(pid, *tid) {
        Some('S') => 0,
        Some('D') | None => 2,
        Some(_) => 1,
    };
    let mut looked_at = 0;
    for (i, tid) in all.iter().enumerate().take(CANDIDATES) {
        looked_at = i + 1;
        if rank(tid) == 0 {
            all.swap(0, i);
            return all;
        }
    }
    all[..looked_at].sort_by_cached_key(rank);
    all
}

/// The state letter of a thread: what follows the command name in /proc/PID/task/TID/stat, which may itself contain
/// parentheses.
pub fn thread_state(pid: Tid, tid: Tid) -> Option<char> {
    let text = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let at = text.iter().rposition(|b| *b == b')')?;
    text.get(at + 2).map(|b| char::from(*b))
}

/// Name of a thread.
pub fn thread_name(pid: Tid, tid: Tid) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).map_or(String::new(), |s| s.trim_end().to_owned())
}

/// Class, order and machine of the program that a process runs.
///
/// # Errors
/// [`TargetError`]
pub fn executable_ident(pid: Tid) -> Result<ElfIdent, TargetError> {
    let path = format!("/proc/{pid}/exe");
    let mut header = [0u8; 64];
    let mut file = fs::File::open(&path).map_err(|e| super::open_error(pid, "read the program of", &e))?;
    let n = file.read(&mut header).map_err(|e| super::open_error(pid, "read the program of", &e))?;
    ident_of(&header[..n]).map_err(|e| TargetError::Unsuitable {
        rule: "not-elf",
        what: format!("process {pid}"),
        why: format!("runs a program that is {e}"),
    })
}

/// Parses /proc/PID/maps.
pub fn mappings(pid: Tid) -> Result<Vec<Mapping>, TargetError> {
    let text = fs::read(format!("/proc/{pid}/maps")).map_err(|e| super::open_error(pid, "read the mappings of", &e))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse_mapping).collect())
}

/// `start-end perms offset major:minor inode   name` (proc_pid_maps(5)).
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let s = rest.trim_start_matches(' ');
        let (word, tail) = s.split_once(' ').unwrap_or((s, ""));
        rest = tail;
        word
    };
    let (start, end) = field().split_once('-')?;
    let perm = field().as_bytes();
    let offset = field();
    let (major, minor) = field().split_once(':')?;
    let inode = field();
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    Some(Mapping {
        start: RunAddr(hex(start)?),
        end: RunAddr(hex(end)?),
        perm: Perm {
            read: perm.first() == Some(&b'r'),
            write: perm.get(1) == Some(&b'w'),
            exec: perm.get(2) == Some(&b'x'),
        },
        offset: hex(offset)?,
        file: ((hex(major)? << 32) | hex(minor)?, inode.parse().ok()?),
        name: unescape(rest.trim_start_matches(' ')),
    })
}

/// The kernel writes a newline in a name as `\012` (seq_path, fs/seq_file.c).
fn unescape(name: &str) -> String {
    name.replace("\\012", "\n")
}

/// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): in memory, or swapped out.
const PAGE_THERE: u64 = 1 << 63 | 1 << 62;
/// Larger mappings are not looked up page by page.
const MAX_PAGES: u64 = 1 << 18;

/// The parts of an anonymous mapping that have pages. `None`: unknown.
pub fn touched(pid: Tid, m: &Mapping) -> Option<Vec<(RunAddr, RunAddr)>> {
    use std::os::unix::fs::FileExt as _;
    let page = super::sys::page_size();
    let start = RunAddr(m.start.0 / page * page);
    let count = (m.end.0 - start.0) / page;
    if count > MAX_PAGES {
        return None;
    }
    let mut entries = vec![0u8; usize::try_from(count * 8).ok()?];
    let file = fs::File::open(format!("/proc/{pid}/pagemap")).ok()?;
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

/// The file behind a mapping: through the kernel's own link where it lets us, else by path in the process's own root.
pub fn mapped_file(pid: Tid, m: &Mapping) -> Result<Vec<u8>, TargetError> {
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", m.start.0, m.end.0);
    if let Ok(bytes) = fs::read(&link) {
        return Ok(bytes);
    }
    let error = |why: String| TargetError::System { what: format!("reading the file {}", m.name), why };
    let is_ours = |p: &Path| {
        use std::os::linux::fs::MetadataExt as _;
        fs::metadata(p).is_ok_and(|meta| meta.st_ino() == m.file.1)
    };
    for path in [format!("/proc/{pid}/exe"), format!("/proc/{pid}/root{}", m.name)] {
        if is_ours(Path::new(&path)) {
            return fs::read(&path).map_err(|e| error(e.to_string()));
        }
    }
    Err(error("the file was deleted or replaced".into()))
}

/// One value of /proc/PID/auxv; `word` is the size of its words, bytes.
pub fn auxv(pid: Tid, key: u64, word: usize) -> Result<Option<u64>, TargetError> {
    let bytes = fs::read(format!("/proc/{pid}/auxv")).map_err(|e| super::open_error(pid, "read the auxv of", &e))?;
    let get = |b: &[u8]| {
        let mut v = [0u8; 8];
        if cfg!(target_endian = "little") {
            v[..word].copy_from_slice(b);
        } else {
            v[8 - word..].copy_from_slice(b);
        }
        u64::from_ne_bytes(v)
    };
    Ok(bytes.chunks_exact(2 * word).map(|e| (get(&e[..word]), get(&e[word..]))).find(|e| e.0 == key).map(|e| e.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_the_kernel_writes() {
        let m = parse_mapping(
            "7f348e121000-7f348e147000 r-xp 00026000 fe:00 326279                     /tmp/a b\\012c (deleted)",
        )
        .unwrap();
        assert_eq!((m.start.0, m.end.0, m.offset), (0x7f34_8e12_1000, 0x7f34_8e14_7000, 0x26000));
        assert_eq!(m.perm, Perm::RX);
        assert_eq!(m.file.1, 326_279);
        assert_eq!(m.name, "/tmp/a b\nc (deleted)");
        let anon = parse_mapping("7f348e30c000-7f348e30e000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!((anon.name.as_str(), anon.file), ("", (0, 0)));
        assert!(parse_mapping("nonsense").is_none());
    }

    #[test]
    fn reads_our_own() {
        let pid = std::process::id() as Tid;
        let maps = mappings(pid).unwrap();
        assert!(maps.iter().any(|m| m.name == "[stack]"));
        let s = status(pid, pid).unwrap();
        assert_eq!((s.tgid, s.tracer), (pid, 0));
        assert!(s.user_memory);
        let exe = maps.iter().find(|m| m.offset == 0 && m.name.starts_with('/')).unwrap();
        assert_eq!(&mapped_file(pid, exe).unwrap()[..4], b"\x7fELF");
        let stack = maps.iter().find(|m| m.name == "[stack]").unwrap();
        let parts = touched(pid, stack).unwrap();
        assert!(!parts.is_empty() && parts.iter().all(|p| stack.start <= p.0 && p.0 < p.1 && p.1 <= stack.end));
        assert_eq!(auxv(pid, 6, size_of::<usize>()).unwrap(), Some(4096));
    }
}
