//! What lies in a target's memory, read the way that a debugger reads it.

use std::os::unix::fs::FileExt;

use crate::victim::Place;

/// One mapping of a process.
#[derive(Clone, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `r-xp` and the like.
    pub permissions: String,
    /// File or label, may be empty.
    pub path: String,
    /// The contents, of executable file mappings only.
    pub text: Vec<u8>,
}

impl Region {
    /// Whether tfix has mapped it: the record of its patches or an image.
    pub fn is_of_tfix(&self) -> bool {
        self.path.starts_with("/memfd:tfix") || self.path.starts_with("[anon:tfix")
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{:x} {} {}", self.start, self.end, self.permissions, self.path)
    }
}

/// All mappings of a process with the code in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// In address order.
    pub regions: Vec<Region>,
}

/// Bytes of a running process.
pub fn read_memory(pid: i32, address: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mem = std::fs::File::open(format!("/proc/{pid}/mem")).expect("a process of ours");
    mem.read_exact_at(&mut bytes, address).unwrap_or_else(|e| panic!("/proc/{pid}/mem at {address:#x}: {e}"));
    bytes
}

impl Snapshot {
    /// Takes one. The stack is left out: it may grow at any time.
    pub fn take(pid: i32) -> Self {
        Self::take_at(&Place::Here, pid)
    }

    /// Takes one of a process that may be in a guest.
    pub fn take_at(place: &Place, pid: i32) -> Self {
        let maps = place.read(&format!("/proc/{pid}/maps")).expect("a process of ours");
        let maps = String::from_utf8_lossy(&maps);
        let regions = maps
            .lines()
            .map(|line| {
                let mut words = line.split_whitespace();
                let (start, end) = words.next().and_then(|r| r.split_once('-')).expect("a range");
                let start = u64::from_str_radix(start, 16).expect("hex");
                let end = u64::from_str_radix(end, 16).expect("hex");
                let permissions = words.next().expect("permissions").to_owned();
                let path = words.skip(3).collect::<Vec<_>>().join(" ");
                let text = if permissions.contains('x') && path.starts_with('/') {
                    place.memory(pid, start, usize::try_from(end - start).expect("64-bit host"))
                } else {
                    Vec::new()
                };
                Region { start, end, permissions, path, text }
            })
            .filter(|r| r.path != "[stack]")
            .collect();
        Self { regions }
    }

    /// Code that came from files, with its addresses: what `revert` has to restore to the last bit. Images of tfix are
    /// not counted: one that a thread may still return into is kept.
    pub fn code(&self) -> Vec<&Region> {
        self.regions.iter().filter(|r| !r.text.is_empty() && !r.is_of_tfix()).collect()
    }

    /// What tfix has mapped.
    pub fn of_tfix(&self) -> Vec<&Region> {
        self.regions.iter().filter(|r| r.is_of_tfix()).collect()
    }

    /// Panics, with the first difference, unless the code of both is the same.
    pub fn assert_same_code(&self, later: &Snapshot) {
        let (before, after) = (self.code(), later.code());
        assert_eq!(
            before.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>(),
            after.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>(),
            "other code is mapped than before"
        );
        for (b, a) in before.iter().zip(&after) {
            if let Some(at) = b.text.iter().zip(&a.text).position(|(x, y)| x != y) {
                let end = (at + 16).min(b.text.len());
                panic!(
                    "{} differs at {:#x}: was {:02x?}, is {:02x?}",
                    b.path,
                    b.start + at as u64,
                    &b.text[at..end],
                    &a.text[at..end]
                );
            }
        }
    }

    /// Panics unless the process looks as if tfix had never come: the same mappings, the same code.
    pub fn assert_untouched(&self, later: &Snapshot) {
        self.assert_same_code(later);
        assert_eq!(
            format!("{:#?}", self.regions),
            format!("{:#?}", later.regions),
            "the mappings are not the same as before"
        );
    }
}
