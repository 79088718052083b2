//! Apply, list and revert on a live target. One code for every transport ([`crate::target::Target`]) and every
//! architecture ([`crate::arch::Arch`]).

pub mod apply;
pub mod area;
mod attempt;
pub mod error;
pub mod imports;
pub mod list;
pub mod modules;
pub mod plan;
pub mod record;
mod region;
mod resident;
pub mod revert;
pub mod space;
pub mod stack;
pub mod sweep;
pub mod unwind;

pub use apply::{Applied, apply};
pub use error::{Blocker, SessionError};
pub use list::{Listed, list};
pub use plan::{Options, Plan, Policy, plan};
pub use revert::{Reverted, revert};

use crate::addr::RunAddr;
use crate::arch::{Arch, CacheNeed};
use crate::field::Endian;
use crate::session::modules::Module;
use crate::session::record::{Record, State};
use crate::session::stack::{Checker, Protected};
use crate::session::unwind::Unwinder;
use crate::target::{Mapping, Target, TargetError, ThreadId};
use alloc::vec::Vec;

/// Time, as the session needs it.
pub trait Clock {
    /// Microseconds since some fixed moment; never goes back.
    fn now_us(&mut self) -> u64;
    /// Waits about this many microseconds.
    fn wait_us(&mut self, us: u64);
    /// Seconds since 1970, or 0.
    fn unix_seconds(&mut self) -> u64;
}

/// What inspection of a target found.
pub struct Inspected {
    /// Address space.
    pub mappings: Vec<Mapping>,
    /// Loaded ELF objects.
    pub modules: Vec<Module>,
    /// Patches, in order of application.
    pub records: Vec<Record>,
}

/// Reads what is loaded and what is applied. Stops nobody.
///
/// # Errors
/// Target errors; [`SessionError::BadRecord`].
pub fn inspect(target: &mut dyn Target) -> Result<Inspected, SessionError> {
    let maps = target.mappings().ok_or(TargetError::Unsupported { what: "list mappings" })?;
    let mappings = maps.mappings()?;
    let modules = modules::modules(target, &mappings)?;
    let records = record::records(target, &mappings).into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Inspected { mappings, modules, records })
}

impl Inspected {
    /// A checker for `protected`, which knows the code of all applied patches.
    fn checker<'c, 'm>(
        &'m self,
        target: &mut dyn Target,
        arch: &'m dyn Arch,
        protected: &'c [Protected],
    ) -> Checker<'c, 'm> {
        let mut unwinder = Unwinder::new(&self.modules, arch, &self.mappings);
        for r in &self.records {
            unwinder.add_patch(r.image_range(), r.eh_frame);
        }
        unwinder.prepare(target);
        let returns_to_end = protected.iter().map(|p| {
            let mut before = [0u8; 8];
            let at = crate::addr::RunAddr(p.end.0.wrapping_sub(before.len() as u64));
            target.read(at, &mut before).is_err() || arch.may_return_behind(&before)
        });
        let returns_to_end = returns_to_end.collect();
        Checker {
            protected,
            returns_to_end,
            arch,
            layout: arch.registers(),
            endian: arch.data_endian(),
            word: arch.address_bits() / 8,
            return_bits: unwind::return_bits(arch, &self.mappings),
            call_insn: arch.linux().filter(|l| l.taken_back.is_some()).map(|l| l.syscall_insn),
            mappings: self.mappings.clone(),
            one_stack: target.calls().is_none(),
            unwinder,
            buffer: Vec::new(),
        }
    }
}

/// Makes written code visible to instruction fetch: by the transport, else by a system call in the target where the
/// architecture has one. A thread must be held if [`flush_call`] says so.
fn flush(target: &mut dyn Target, arch: &dyn Arch, start: RunAddr, len: u64) -> Result<(), TargetError> {
    if let Some(c) = target.cache() {
        return c.flush(start, len);
    }
    match flush_call(target, arch) {
        // Both caches: stores may still wait in the one for data.
        Some(nr) => region::syscall(target, "cacheflush", nr, [start.0, len, BCACHE, 0, 0, 0], None).map(|_| ()),
        None => Ok(()),
    }
}

/// ICACHE | DCACHE (kernel `arch/*/include/uapi/asm/cachectl.h`).
const BCACHE: u64 = 3;

/// Number of the system call that flushes caches, where the transport leaves that to the target. The kernel has flushed
/// what it wrote itself, but it skips processors on which the target has not run yet; the call is cheap and certain.
fn flush_call(target: &mut dyn Target, arch: &dyn Arch) -> Option<u64> {
    if arch.cache_need() != CacheNeed::Syscall || target.cache().is_some() || target.calls().is_none() {
        return None;
    }
    arch.linux()?.cacheflush
}

/// Changes sites while everybody is stopped, with a thread held for [`flush`] where that takes one. `state` says in which
/// state the target is after this outcome, should that thread not be let go.
fn with_flush<T>(
    target: &mut dyn Target,
    arch: &dyn Arch,
    state: &dyn Fn(&Result<T, SessionError>) -> alloc::string::String,
    change: impl FnOnce(&mut dyn Target) -> Result<T, SessionError>,
) -> Result<T, SessionError> {
    if flush_call(target, arch).is_none() {
        return change(target);
    }
    // Before anything is changed: without a thread nothing could be flushed on the way back either.
    region::hold(target)?;
    let changed = change(target);
    match region::release(target) {
        Ok(()) => changed,
        Err(cause) => Err(SessionError::NotResumed { what: state(&changed), cause: alloc::boxed::Box::new(cause) }),
    }
}

fn stop_all(target: &mut dyn Target) -> Result<Vec<ThreadId>, TargetError> {
    target.threads().ok_or(TargetError::Unsupported { what: "stop threads" })?.stop_all()
}

fn resume_all(target: &mut dyn Target) -> Result<(), TargetError> {
    let threads = target.threads().ok_or(TargetError::Unsupported { what: "resume threads" })?;
    // Nothing is worse than a target that stays stopped: once more, should it fail.
    threads.resume_all().or_else(|_| threads.resume_all())
}

fn attach(target: &mut dyn Target) -> Result<(), TargetError> {
    target.threads().ok_or(TargetError::Unsupported { what: "attach to threads" })?.attach()
}

/// Index of the first word of `bytes` whose value, as far as `bits` go, is in `range`. Runs over a lot of memory while everybody waits: a plain
/// loop for each kind of word.
fn find_word(bytes: &[u8], word: u8, endian: Endian, bits: u64, range: core::ops::Range<u64>) -> Option<usize> {
    let len = range.end.saturating_sub(range.start);
    let hit = |v: u64| v.wrapping_sub(range.start) & bits < len;
    let (words, _) = bytes.as_chunks::<8>();
    let (halves, _) = bytes.as_chunks::<4>();
    match (word, endian) {
        (8, Endian::Little) => words.iter().position(|w| hit(u64::from_le_bytes(*w))),
        (8, Endian::Big) => words.iter().position(|w| hit(u64::from_be_bytes(*w))),
        (_, Endian::Little) => halves.iter().position(|w| hit(u32::from_le_bytes(*w).into())),
        (_, Endian::Big) => halves.iter().position(|w| hit(u32::from_be_bytes(*w).into())),
    }
}

/// Bytes as hex, for messages.
fn hex(bytes: &[u8]) -> alloc::string::String {
    bytes.iter().map(|b| alloc::format!("{b:02x}")).collect()
}

/// Does `record` still change code?
fn is_active(record: &Record) -> bool {
    record.state != State::Parked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_both_orders_and_sizes() {
        let bytes = [0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0x12];
        let range = 0x1230..0x1235;
        assert_eq!(find_word(&bytes, 8, Endian::Big, u64::MAX, range.clone()), Some(0));
        assert_eq!(find_word(&bytes, 8, Endian::Little, u64::MAX, range.clone()), Some(1));
        assert_eq!(find_word(&bytes, 4, Endian::Big, u64::MAX, range.clone()), Some(1));
        assert_eq!(find_word(&bytes, 4, Endian::Little, u64::MAX, range), Some(2));
        assert_eq!(find_word(&bytes, 8, Endian::Little, u64::MAX, 0x1235..0x1235), None);
        // Signed in the upper bits, in the lower and in the upper half of the address space.
        let signed = [0x3d00_5555_5555_1234u64.to_le_bytes(), 0x1234_8000_0000_1234u64.to_le_bytes()].concat();
        for (start, expect) in [(0x5555_5555_1200, 0), (0xffff_8000_0000_1200, 1)] {
            let range = start..start + 0x100;
            assert_eq!(find_word(&signed, 8, Endian::Little, (1 << 48) - 1, range.clone()), Some(expect));
            assert_eq!(find_word(&signed, 8, Endian::Little, u64::MAX, range), None);
        }
    }
}
