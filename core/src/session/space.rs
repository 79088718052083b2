//! Where an image can go: address ranges that all jumps and relocations reach, and free space in them.

use crate::addr::RunAddr;
use crate::target::Mapping;
use alloc::vec::Vec;

/// Lowest address that is ever asked for (above vm.mmap_min_addr's usual value).
const LOWEST: u64 = 0x1_0000;
/// The heap grows up from its mapping and the stack down from its own; an image keeps this far away.
const GROWTH: u64 = 1 << 30;

/// Allowed start addresses of a block, inclusive. `i128`, since bounds of relocations lie outside 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartRange {
    /// Lowest allowed start.
    pub low: i128,
    /// Highest allowed start.
    pub high: i128,
}

impl StartRange {
    /// Every address.
    pub const EVERYWHERE: StartRange = StartRange { low: 0, high: u64::MAX as i128 };
    /// All of a user address space that ends at `end`.
    #[must_use]
    pub fn user_space(end: u64) -> StartRange {
        StartRange { low: i128::from(LOWEST), high: i128::from(end) }
    }
    /// Only what both allow.
    #[must_use]
    pub fn and(self, other: StartRange) -> StartRange {
        StartRange { low: self.low.max(other.low), high: self.high.min(other.high) }
    }
    /// No address is allowed.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.low > self.high
    }
}

/// Free places for `size` bytes within `range`, best first: close to `near`, not where the heap or a stack grows.
/// All starts are multiples of `page`.
#[must_use]
pub fn candidates(
    mappings: &[Mapping],
    range: StartRange,
    size: u64,
    page: u64,
    end: u64,
    near: RunAddr,
) -> Vec<RunAddr> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    let mut add = |gap_low: u64, gap_high: u64, above_heap: bool, below_stack: bool| {
        // The page next to a neighbour stays free: an overrun then faults.
        let low = i128::from(gap_low) + i128::from(page);
        let high = i128::from(gap_high) - i128::from(size) - i128::from(page);
        let low = if above_heap { (low + i128::from(GROWTH)).min(low.max(high / 2 + low / 2)) } else { low };
        let high = if below_stack { high - i128::from(GROWTH) } else { high };
        let r = StartRange { low, high }.and(range);
        if r.is_empty() {
            return;
        }
        let up = (r.low as u64).next_multiple_of(page);
        let down = (r.high as u64) / page * page;
        if up > down {
            return;
        }
        // The end of the gap that is nearer; above the heap always the far one.
        let at = if above_heap || near.0 > gap_low { down } else { up };
        let at = if below_stack { up } else { at };
        // Growth areas come last.
        let penalty = if above_heap || below_stack { 1 << 62 } else { 0 };
        out.push((penalty | (at.abs_diff(near.0) >> 2), at));
    };
    let mut previous: Option<&Mapping> = None;
    for m in mappings {
        let gap_low = previous.map_or(LOWEST - page.min(LOWEST), |p| p.end.0);
        if m.start.0 > gap_low && gap_low < end {
            let heap = previous.is_some_and(|p| p.name == "[heap]");
            // The program break may start right above the last segment of the program when there is no heap yet.
            let maybe_heap = heap
                || previous
                    .is_some_and(|p| p.perm.write && p.file != (0, 0) && near.0 < p.end.0 && p.end.0 - near.0 < GROWTH);
            add(gap_low, m.start.0.min(end), maybe_heap, m.name.starts_with("[stack"));
        }
        previous = Some(m);
    }
    let last = previous.map_or(0, |p| p.end.0);
    if last < end {
        add(last, end, false, false);
    }
    out.sort_unstable();
    out.into_iter().map(|(_, at)| RunAddr(at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Perm;
    use alloc::string::String;

    fn map(start: u64, end: u64, name: &str) -> Mapping {
        Mapping {
            start: RunAddr(start),
            end: RunAddr(end),
            perm: Perm::RW,
            offset: 0,
            file: (0, 0),
            name: String::from(name),
        }
    }

    #[test]
    fn prefers_the_gap_below_and_keeps_off_the_heap() {
        let maps = [
            map(0x5555_0000_0000, 0x5555_0000_5000, "/p"),
            map(0x5555_0000_5000, 0x5555_0002_0000, "[heap]"),
            map(0x7fff_0000_0000, 0x7fff_0000_1000, "[stack]"),
        ];
        let all = StartRange::user_space(0x7fff_ffff_f000);
        let near = RunAddr(0x5555_0000_1000);
        let c = candidates(&maps, all, 0x3000, 0x1000, 0x7fff_ffff_f000, near);
        assert_eq!(c[0], RunAddr(0x5555_0000_0000 - 0x4000));
        for a in &c {
            assert!(maps.iter().all(|m| a.0 + 0x3000 <= m.start.0 || a.0 >= m.end.0), "{a} overlaps");
        }
    }

    #[test]
    fn a_low_fixed_program_gets_low_memory() {
        let maps = [
            map(0x40_0000, 0x40_5000, "/p"),
            map(0x120_0000, 0x122_0000, "[heap]"),
            map(0x7fff_0000_0000, 0x7fff_0000_1000, "[stack]"),
        ];
        let low = StartRange { low: 0, high: 0x7fff_ffff };
        let c = candidates(&maps, low, 0x3000, 0x1000, 0x7fff_ffff_f000, RunAddr(0x40_1000));
        assert!(!c.is_empty());
        assert!(c.iter().all(|a| a.0 + 0x3000 <= 0x8000_0000 + 0x3000 && a.0 >= 0x1_0000));
    }

    #[test]
    fn a_full_range_has_no_candidate() {
        let maps = [map(0x1_0000, 0x8000_0000, "/p")];
        let low = StartRange { low: 0x2_0000, high: 0x7000_0000 };
        assert!(candidates(&maps, low, 0x3000, 0x1000, 0x7fff_ffff_f000, RunAddr(0x40_1000)).is_empty());
    }
}
