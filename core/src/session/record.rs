//! The record of a patch, in the target itself: it makes `list` and `revert` possible without a database, and holds the
//! old bytes of every site before the first one is changed (the journal).
//!
//! The record is the start of the patch's region (one named mapping); the image follows it. All integers are
//! little-endian on every target, so that one reader serves all. Layout: docs/record-format.md.

use crate::addr::RunAddr;
use crate::field::{Endian, load, store};
use crate::session::error::SessionError;
use crate::target::{Mapping, Target, TargetError};
use alloc::{string::String, vec, vec::Vec};

/// First bytes of a record.
pub const MAGIC: [u8; 8] = *b"TFIXREC\x01";
/// The kernel shows the region under this name, followed by the patch's name.
pub const REGION_PREFIX: &str = "/memfd:tfix:";
const HEADER: usize = 160;
const SITE: usize = 96;
/// Offset of the state word in the record.
const STATE_AT: u64 = 8;
/// The longest trampoline that a site of a record can hold, bytes.
pub const SITE_BYTES: usize = 16;
/// The largest record that is believed, and the most that all regions of a target may have together, bytes.
const MAX_RECORD: u64 = 16 << 20;

/// How far a patch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The image is being written; no site refers to it.
    Preparing = 1,
    /// Sites are being written.
    Applying = 2,
    /// All sites lead to the image.
    Applied = 3,
    /// Sites are being put back.
    Reverting = 4,
    /// All sites are as of old; the image stays because something may still refer to it.
    Parked = 5,
}

impl State {
    /// The word that `list` shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Preparing | State::Applying | State::Reverting => "interrupted",
            State::Applied => "applied",
            State::Parked => "parked",
        }
    }

    fn from_word(v: u64) -> Option<State> {
        [State::Preparing, State::Applying, State::Applied, State::Reverting, State::Parked]
            .into_iter()
            .find(|s| *s as u64 == v)
    }
}

/// One site as applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSite {
    /// Name of the replaced function.
    pub function: String,
    /// Name of the jump form.
    pub form: String,
    /// The old function's entry.
    pub entry: RunAddr,
    /// Where the trampoline lies (behind a landing pad).
    pub at: RunAddr,
    /// Size of the old function's first part, bytes.
    pub size: u64,
    /// The new function.
    pub new: RunAddr,
    /// Bytes before.
    pub old_bytes: Vec<u8>,
    /// Bytes of the trampoline.
    pub new_bytes: Vec<u8>,
}

/// A patch in a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where the record lies.
    pub at: RunAddr,
    /// How far it is.
    pub state: State,
    /// Order of application in this target, ascending.
    pub sequence: u64,
    /// Size of the whole region (record and image), bytes; in an area, of the block that the record lies in.
    pub region_size: u64,
    /// Start of the image.
    pub image: RunAddr,
    /// Size of the image, bytes.
    pub image_size: u64,
    /// A second region with islands, or (0, 0).
    pub islands: (RunAddr, u64),
    /// The patch's `.eh_frame`: address and size, or (0, 0).
    pub eh_frame: (RunAddr, u64),
    /// When it was applied, seconds since 1970 by the clock of the machine that ran `fix` (0: unknown).
    pub applied_at: u64,
    /// Patch name.
    pub name: String,
    /// Patch version.
    pub version: String,
    /// Description.
    pub description: String,
    /// File name of the program.
    pub program: String,
    /// Sites.
    pub sites: Vec<RecordSite>,
}

fn put(buf: &mut [u8], at: usize, len: usize, v: u64) {
    if let Some(cell) = buf.get_mut(at..at + len) {
        store(cell, Endian::Little, v);
    }
}

fn get(buf: &[u8], at: usize, len: usize) -> Option<u64> {
    Some(load(buf.get(at..at.checked_add(len)?)?, Endian::Little))
}

/// Strings of a record: appended once, referred to by offset and length.
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, s: &str) -> u64 {
        let at = self.0.len() as u64;
        self.0.extend_from_slice(s.as_bytes());
        at | (s.len() as u64) << 32
    }
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut strings = Strings(Vec::new());
        let mut out = vec![0u8; HEADER + SITE * self.sites.len()];
        out[..8].copy_from_slice(&MAGIC);
        put(&mut out, 8, 8, self.state as u64);
        put(&mut out, 24, 8, self.sequence);
        put(&mut out, 32, 8, self.region_size);
        put(&mut out, 40, 8, self.image.0);
        put(&mut out, 48, 8, self.image_size);
        put(&mut out, 56, 8, self.islands.0.0);
        put(&mut out, 64, 8, self.islands.1);
        put(&mut out, 72, 8, self.eh_frame.0.0);
        put(&mut out, 80, 8, self.eh_frame.1);
        put(&mut out, 88, 8, self.applied_at);
        for (i, s) in [&self.name, &self.version, &self.description, &self.program].into_iter().enumerate() {
            put(&mut out, 96 + 8 * i, 8, strings.add(s));
        }
        put(&mut out, 128, 8, self.sites.len() as u64);
        for (i, s) in self.sites.iter().enumerate() {
            let at = HEADER + SITE * i;
            put(&mut out, at, 8, s.entry.0);
            put(&mut out, at + 8, 8, s.at.0);
            put(&mut out, at + 16, 8, s.size);
            put(&mut out, at + 24, 8, s.new.0);
            put(&mut out, at + 32, 8, strings.add(&s.function));
            put(&mut out, at + 40, 8, strings.add(&s.form));
            let n = s.old_bytes.len().min(SITE_BYTES);
            put(&mut out, at + 48, 8, n as u64);
            out[at + 56..at + 56 + n].copy_from_slice(&s.old_bytes[..n]);
            out[at + 72..at + 72 + n].copy_from_slice(&s.new_bytes[..n]);
        }
        let strings_at = out.len() as u64;
        put(&mut out, 136, 8, strings_at);
        put(&mut out, 144, 8, strings.0.len() as u64);
        out.extend_from_slice(&strings.0);
        let total = out.len() as u64;
        put(&mut out, 16, 8, total);
        out
    }

    /// Reads the record at `at`.
    ///
    /// # Errors
    /// [`SessionError::BadRecord`] with what is wrong; target errors.
    pub fn read(target: &mut dyn Target, at: RunAddr) -> Result<Record, SessionError> {
        Record::read_within(target, at, &mut MAX_RECORD.clone())
    }

    /// [`Record::read`], of a record of at most `room` bytes, which its size is taken off.
    fn read_within(target: &mut dyn Target, at: RunAddr, room: &mut u64) -> Result<Record, SessionError> {
        let bad = |why| SessionError::BadRecord { at, why };
        let mut header = [0u8; HEADER];
        target.read(at, &mut header)?;
        if header[..8] != MAGIC {
            return Err(bad("no magic number"));
        }
        let total = get(&header, 16, 8).unwrap_or(0);
        if total < HEADER as u64 || total > *room {
            return Err(bad("impossible size"));
        }
        *room -= total;
        let mut bytes = vec![0u8; total as usize];
        target.read(at, &mut bytes)?;
        Record::decode(at, &bytes).ok_or_else(|| bad("fields outside the record"))
    }

    fn decode(at: RunAddr, b: &[u8]) -> Option<Record> {
        let strings = usize::try_from(get(b, 136, 8)?).ok()?;
        // Texts don't overlap: anybody can make a record, and must not make us need more memory than it has itself.
        let mut left = b.len();
        let mut string = |pos: usize| {
            let v = get(b, pos, 8)?;
            let (at, len) = ((v & 0xffff_ffff) as usize, (v >> 32) as usize);
            left = left.checked_sub(len)?;
            let from = strings.checked_add(at)?;
            let bytes = b.get(from..from.checked_add(len)?)?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let addr = |pos| get(b, pos, 8).map(RunAddr);
        let count = get(b, 128, 8)?;
        if count > (b.len() / SITE) as u64 {
            return None;
        }
        let mut sites = Vec::new();
        for i in 0..count as usize {
            let s = HEADER + SITE * i;
            let n = usize::try_from(get(b, s + 48, 8)?).ok().filter(|n| *n <= SITE_BYTES)?;
            sites.push(RecordSite {
                entry: addr(s)?,
                at: addr(s + 8)?,
                size: get(b, s + 16, 8)?,
                new: addr(s + 24)?,
                function: string(s + 32)?,
                form: string(s + 40)?,
                old_bytes: b.get(s + 56..s + 56 + n)?.to_vec(),
                new_bytes: b.get(s + 72..s + 72 + n)?.to_vec(),
            });
        }
        Some(Record {
            at,
            state: State::from_word(get(b, 8, 8)?)?,
            sequence: get(b, 24, 8)?,
            region_size: get(b, 32, 8)?,
            image: addr(40)?,
            image_size: get(b, 48, 8)?,
            islands: (addr(56)?, get(b, 64, 8)?),
            eh_frame: (addr(72)?, get(b, 80, 8)?),
            applied_at: get(b, 88, 8)?,
            name: string(96)?,
            version: string(104)?,
            description: string(112)?,
            program: string(120)?,
            sites,
        })
    }

    /// Changes the state word in the target: one aligned 8-byte store.
    ///
    /// # Errors
    /// Target errors.
    pub fn set_state(&mut self, target: &mut dyn Target, state: State) -> Result<(), TargetError> {
        let mut word = [0u8; 8];
        store(&mut word, Endian::Little, state as u64);
        let addr = self.at.offset(STATE_AT);
        target.write(addr, &word)?;
        let mut back = [0u8; 8];
        target.read(addr, &mut back)?;
        if back != word {
            let why = String::from("it did not read back as written");
            return Err(TargetError::Memory { action: "write", addr, len: word.len(), why });
        }
        self.state = state;
        Ok(())
    }

    /// The image's address range.
    #[must_use]
    pub fn image_range(&self) -> (RunAddr, RunAddr) {
        (self.image, self.image.offset(self.image_size))
    }
}

/// All records among `mappings`, in order of application. A region whose record can't be read is given with its error.
pub fn records(target: &mut dyn Target, mappings: &[Mapping]) -> Vec<Result<Record, SessionError>> {
    let mut out = match target.area() {
        Some(area) => super::area::records(target, area),
        None => Vec::new(),
    };
    // One small file can be mapped any number of times.
    let mut room = MAX_RECORD;
    for m in mappings {
        if !m.name.starts_with(REGION_PREFIX) || m.offset != 0 {
            continue;
        }
        match Record::read_within(target, m.start, &mut room) {
            Ok(r) => out.push(Ok(r)),
            // An islands region has no record; it belongs to one that has.
            Err(SessionError::BadRecord { why: "no magic number", .. }) => {}
            Err(e) => out.push(Err(e)),
        }
    }
    out.sort_by_key(|r| r.as_ref().map_or(u64::MAX, |r| r.sequence));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        Record {
            at: RunAddr(0x7000_0000),
            state: State::Applied,
            sequence: 3,
            region_size: 0x5000,
            image: RunAddr(0x7000_1000),
            image_size: 0x4000,
            islands: (RunAddr(0), 0),
            eh_frame: (RunAddr(0x7000_1010), 64),
            applied_at: 1_700_000_000,
            name: "fix".into(),
            version: "1.0".into(),
            description: "a fix with ümlaut".into(),
            program: "server".into(),
            sites: vec![RecordSite {
                function: "p".into(),
                form: "jmp".into(),
                entry: RunAddr(0x40_1000),
                at: RunAddr(0x40_1004),
                size: 40,
                new: RunAddr(0x7000_2000),
                old_bytes: vec![1, 2, 3, 4, 5],
                new_bytes: vec![9, 8, 7, 6, 5],
            }],
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let r = sample();
        assert_eq!(Record::decode(r.at, &r.encode()), Some(r));
    }

    #[test]
    fn texts_that_share_their_bytes_are_refused() {
        let mut b = sample().encode();
        let whole = (b.len() as u64) << 32;
        put(&mut b, 136, 8, 0);
        put(&mut b, 96, 8, whole);
        put(&mut b, 104, 8, 0);
        for pos in [112, 120, HEADER + 32, HEADER + 40] {
            put(&mut b, pos, 8, 0);
        }
        assert!(Record::decode(RunAddr(0), &b).is_some(), "one of them is possible");
        put(&mut b, 104, 8, 1 << 32);
        assert_eq!(Record::decode(RunAddr(0), &b), None);
    }

    #[test]
    fn no_damage_makes_the_reader_panic() {
        let r = sample();
        let good = r.encode();
        for i in 0..good.len() {
            for v in [0u8, 0x7f, 0xff] {
                let mut b = good.clone();
                b[i] = v;
                let _ = Record::decode(r.at, &b);
            }
            let _ = Record::decode(r.at, &good[..i]);
        }
    }
}
