//! Objects that stubs give as XML, besides descriptions of registers: the memory map, lists of threads and of libraries. Pure
//! functions over text that somebody else made.

use super::reply::thread_id;
use super::xml::{is_whole, plain, tags};

/// Longer texts are not read, bytes.
pub const MAX_TEXT: usize = 4 << 20;
/// More than any target has.
const MAX_REGIONS: usize = 4096;
const MAX_THREADS: usize = 1 << 16;
const MAX_LIBRARIES: usize = 4096;
/// Names of threads, and paths, are cut there, bytes.
const NAME: usize = 64;
const PATH: usize = 256;

/// Kind of memory (GDB manual, "Memory Map Format").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Written as it is read.
    Ram,
    /// Not written at all.
    Rom,
    /// Written after it was erased in blocks, by other requests.
    Flash,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Memory::Ram => "RAM",
            Memory::Rom => "ROM",
            Memory::Flash => "flash",
        })
    }
}

/// A region of a memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What is there.
    pub kind: Memory,
    /// First address.
    pub start: u64,
    /// First address past it; the last address of all where it goes to the end.
    pub end: u64,
}

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:#x} to {:#x})", self.kind, self.start, self.end)
    }
}

/// The regions of a memory map, ascending (GDB manual, "Memory Map Format"). Empty: it is none, or not whole.
#[must_use]
pub fn memory_map(text: &str) -> Vec<Region> {
    if !is_whole(text, "memory-map") {
        return Vec::new();
    }
    let mut out = Vec::new();
    for t in tags(text).filter(|t| t.begins("memory")).take(MAX_REGIONS) {
        let kind = match t.attribute("type") {
            Some("ram") => Memory::Ram,
            Some("rom") => Memory::Rom,
            Some("flash") => Memory::Flash,
            _ => continue,
        };
        if let (Some(start), Some(length @ 1..)) = (t.number("start"), t.number("length")) {
            out.push(Region { kind, start, end: start.saturating_add(length) });
        }
    }
    out.sort_by_key(|r| (r.start, r.end));
    out
}

/// The first region in `start..end` that memory writes don't change.
#[must_use]
pub fn unwritable(map: &[Region], start: u64, end: u64) -> Option<&Region> {
    map.iter().find(|r| r.kind != Memory::Ram && r.start < end && start < r.end)
}

/// Where the RAM that `at` lies in ends: regions that touch are one. `map` is ascending.
#[must_use]
pub fn end_of_ram(map: &[Region], at: u64) -> Option<u64> {
    let mut end = None;
    for r in map.iter().filter(|r| r.kind == Memory::Ram) {
        match end {
            None if r.start <= at && at < r.end => end = Some(r.end),
            Some(e) if r.start <= e && e < r.end => end = Some(r.end),
            _ => {}
        }
    }
    end
}

/// Threads and their names, which may be empty (GDB manual, "Thread List Format"). `None`: it is no such list, or one that
/// may have more threads than can be told.
#[must_use]
pub fn threads(text: &str) -> Option<Vec<(u64, String)>> {
    if !is_whole(text, "threads") {
        return None;
    }
    let mut out = Vec::new();
    for t in tags(text).filter(|t| t.begins("thread")) {
        let id = thread_id(t.attribute("id")?.as_bytes())?;
        if out.len() >= MAX_THREADS {
            return None;
        }
        out.push((id, plain(t.attribute("name").unwrap_or_default(), NAME)));
    }
    Some(out)
}

/// The libraries' paths, of either kind of list (GDB manual, "Library List Format", "Library List Format for SVR4 Targets").
#[must_use]
pub fn libraries(text: &str) -> Vec<String> {
    let names = tags(text).filter(|t| t.begins("library")).filter_map(|t| t.attribute("name"));
    names.map(path).filter(|n| !n.is_empty()).take(MAX_LIBRARIES).collect()
}

/// A path, made fit for messages.
#[must_use]
pub fn path(text: &str) -> String {
    plain(text, PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = r#"<?xml version="1.0"?><!DOCTYPE memory-map PUBLIC "+//IDN gnu.org//DTD GDB Memory Map V1.0//EN"
        "http://sourceware.org/gdb/gdb-memory-map.dtd"><memory-map>
        <memory type="ram" start="0x20000000" length="0x8000"/><memory type="ram" start="0x20008000" length="32768"/>
        <memory type="flash" start="0x8000000" length="0x20000"><property name="blocksize">0x400</property></memory>
        <memory type="rom" start="0x0" length="0x1000"/></memory-map>"#;
    const THREADS: &str =
        r#"<threads><thread id="1" name="main &amp; more" core="0"/><thread id="p1.2f">Name: x</thread></threads>"#;
    const SVR4: &str = r#"<library-list-svr4 version="1.0" main-lm="0x1"><library name="/lib/libc.so.6" lm="0xe4eefc50"
        l_addr="0x7f0000" l_ld="0xe4eefc60"/><library name="[x]" l_addr="0x1"/><library lm="1"/></library-list-svr4>"#;
    const PLAIN: &str = r#"<library-list><library name="/lib/b.so"><segment address="0x10000000"/>
        <segment address="0x20000000"/></library><library name="/c"><section address="1"/></library></library-list>"#;

    #[test]
    fn memory_maps() {
        let map = memory_map(MAP);
        let all: Vec<_> = map.iter().map(|r| (r.kind, r.start, r.end)).collect();
        let ram = [(Memory::Ram, 0x2000_0000, 0x2000_8000), (Memory::Ram, 0x2000_8000, 0x2001_0000)];
        assert_eq!(all, [(Memory::Rom, 0, 0x1000), (Memory::Flash, 0x800_0000, 0x802_0000), ram[0], ram[1]]);
        assert_eq!(map[1].to_string(), "flash (0x8000000 to 0x8020000)");
        assert_eq!(unwritable(&map, 0x801_fff0, 0x802_0010), Some(&map[1]));
        assert_eq!(unwritable(&map, 0x1000, 0x800_0000), None);
        assert_eq!(end_of_ram(&map, 0x2000_0000), Some(0x2001_0000));
        assert_eq!(end_of_ram(&map, 0x2001_0000), None);
        assert_eq!(end_of_ram(&map, 0x800_0000), None);
        let last =
            memory_map("<memory-map><memory type='ram' start='0xffffffffffff0000' length='0x10000'/></memory-map>");
        assert_eq!((last[0].start, last[0].end), (0xffff_ffff_ffff_0000, u64::MAX));
    }

    #[test]
    fn lists_of_threads() {
        assert_eq!(threads(THREADS), Some(vec![(1, "main & more".into()), (0x2f, String::new())]));
        assert_eq!(threads("<threads/>"), Some(Vec::new()));
        // A thread that is not seen would not be looked at.
        for bad in
            ["", "<threads><thread id='1'/>", "<threads><thread/></threads>", "<threads><thread id='-1'/></threads>"]
        {
            assert_eq!(threads(bad), None, "{bad}");
        }
        let many = format!("<threads>{}</threads>", "<thread id='1'/>".repeat(MAX_THREADS + 1));
        assert_eq!(threads(&many), None);
    }

    #[test]
    fn lists_of_libraries() {
        assert_eq!(libraries(SVR4), ["/lib/libc.so.6", "[x]"]);
        assert_eq!(libraries(PLAIN), ["/lib/b.so", "/c"]);
        assert_eq!(libraries(&SVR4.repeat(MAX_LIBRARIES)).len(), MAX_LIBRARIES);
    }

    #[test]
    fn odd_texts_are_harmless() {
        for text in [MAP, THREADS, SVR4, PLAIN] {
            for i in 0..text.len() {
                for part in [&text[..i], &text[i..]] {
                    let _ = (threads(part), libraries(part));
                    assert!(memory_map(part).is_empty() || part.len() > text.len() / 2 && i < 200, "{part}");
                }
            }
        }
        for odd in
            ["type='ram'", "type='ram' start='0'", "type='ram' start='0' length='0'", "start='1' length='1' type='io'"]
        {
            assert!(memory_map(&format!("<memory-map><memory {odd}/></memory-map>")).is_empty(), "{odd}");
        }
    }
}
