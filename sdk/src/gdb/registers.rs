//! Registers: from the block of all of them that `g` gives to our own order, and back.
//!
//! What goes back is the whole block as it came, changed only where we want it: some stubs keep words in it that no
//! register stands behind (how to restart a system call), and all keep the floating point registers there.

use super::description::{self, Part};
use super::error::{GdbError, show};
use super::packet::to_hex;
use super::stub::Stub;
use tigerfix_core::arch::{RegisterLayout, Registers};
use tigerfix_core::field::{Endian, load, store};

/// Where our registers lie in the block.
#[derive(Debug)]
pub(super) struct Map {
    /// Index in our order, offset and size in bytes, number.
    rows: Vec<(u8, usize, usize, u32)>,
    endian: Endian,
    layout: &'static RegisterLayout,
}

impl Map {
    /// By the stub's own description if it has our registers, by the back end's table otherwise.
    pub(super) fn new(layout: &'static RegisterLayout, endian: Endian, description: &[Part]) -> Map {
        let described = description::registers(description);
        let mut rows = Vec::new();
        let mut offset = 0usize;
        for d in &described {
            let size = usize::from(d.size);
            if let Some(row) = layout.gdb.iter().find(|g| g.name == d.name)
                && size <= 8
            {
                rows.push((row.reg, offset, size, d.number));
            }
            offset += size;
        }
        let has = |reg: u8| rows.iter().any(|r| r.0 == reg);
        if !has(layout.pc) || !has(layout.sp) {
            let row = |g: &tigerfix_core::arch::GdbRegister| {
                (g.reg, usize::from(g.offset), usize::from(g.size), u32::from(g.number))
            };
            rows = layout.gdb.iter().map(row).collect();
        }
        Map { rows, endian, layout }
    }

    /// Our registers from a block. `None`: it is too short for pc or stack pointer.
    pub(super) fn decode(&self, block: &[u8]) -> Option<Registers> {
        let mut out = Registers::ZERO;
        // A stub that does not show it knows of no interrupted call.
        if let Some(nr) = self.layout.restart_nr {
            out.set(nr, self.layout.restart_none);
        }
        let mut found = 0;
        for &(reg, offset, size, _) in &self.rows {
            let Some(cell) = block.get(offset..offset.checked_add(size)?).filter(|c| !c.is_empty()) else { continue };
            out.set(reg, load(cell, self.endian));
            found += u32::from(reg == self.layout.pc) + u32::from(reg == self.layout.sp);
        }
        (found == 2).then_some(out)
    }

    /// Changes the block to hold `regs`.
    pub(super) fn encode(&self, regs: &Registers, block: &mut [u8]) {
        for &(reg, offset, size, _) in &self.rows {
            if let Some(cell) = block.get_mut(offset..offset + size) {
                store(cell, self.endian, regs.get(reg));
            }
        }
    }

    /// Rows whose values differ.
    fn changed(&self, old: &[u8], new: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let cell = |b: &[u8], at: usize, n: usize| b.get(at..at + n).map(<[u8]>::to_vec);
        let rows = self.rows.iter();
        rows.filter(|r| cell(old, r.1, r.2) != cell(new, r.1, r.2))
            .filter_map(|r| Some((r.3, cell(new, r.1, r.2)?)))
            .collect()
    }
}

impl Stub {
    fn select(&mut self, thread: u64) -> Result<(), GdbError> {
        self.order(format!("Hg{thread:x}").as_bytes()).map(|_| ())
    }

    /// The block of all registers of a thread.
    pub(super) fn block(&mut self, thread: u64) -> Result<Vec<u8>, GdbError> {
        self.select(thread)?;
        let answer = self.ask("g")?;
        if answer.is_empty() || super::reply::is_error(&answer) && answer.len() % 2 == 1 {
            return Err(GdbError::Refused { during: "g".into(), answer: show(&answer) });
        }
        // `xx`: not known.
        let known: Vec<u8> = answer.iter().map(|b| if *b == b'x' { b'0' } else { *b }).collect();
        super::packet::from_hex(&known).ok_or(GdbError::Nonsense { during: "g".into(), answer: show(&answer) })
    }

    /// One register by its number. `None`: the stub does not give it.
    pub(super) fn register(&mut self, thread: u64, number: u32) -> Result<Option<Vec<u8>>, GdbError> {
        self.select(thread)?;
        let answer = self.ask(&format!("p{number:x}"))?;
        if super::reply::is_error(&answer) && answer.len() % 2 == 1 {
            return Ok(None);
        }
        // `xx`: not known.
        Ok(super::packet::from_hex(&answer).filter(|b| !b.is_empty() && b.len() <= 8))
    }

    /// Sets all registers of a thread; `now` is what it has, for stubs that take single registers only.
    pub(super) fn set_block(&mut self, thread: u64, map: &Map, now: &[u8], block: &[u8]) -> Result<(), GdbError> {
        self.select(thread)?;
        if self.order(format!("G{}", to_hex(block)).as_bytes())? {
            return Ok(());
        }
        for (number, bytes) in map.changed(now, block) {
            if !self.order(format!("P{number:x}={}", to_hex(&bytes)).as_bytes())? {
                return Err(GdbError::Lacks { what: "set registers".into() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tigerfix_arch_x86_64::X86_64;
    use tigerfix_core::arch::Arch as _;

    fn layout() -> &'static RegisterLayout {
        X86_64.registers()
    }

    #[test]
    fn without_a_description_the_table_counts() {
        let map = Map::new(layout(), Endian::Little, &[]);
        let mut block = vec![0u8; 164];
        let mut regs = Registers::ZERO;
        regs.set(layout().pc, 0x1122_3344_5566_7788);
        regs.set(layout().sp, 0x7fff_0000_1000);
        map.encode(&regs, &mut block);
        assert_eq!(block[128..136], 0x1122_3344_5566_7788u64.to_le_bytes());
        assert_eq!(block[56..64], 0x7fff_0000_1000u64.to_le_bytes());
        let back = map.decode(&block).unwrap();
        assert_eq!(back.get(layout().pc), regs.get(layout().pc));
        // Not in a block this short: no call is to be made again.
        assert_eq!(layout().restart_nr.map(|r| back.get(r)), Some(u64::MAX));
        assert_eq!(map.decode(&block[..100]), None);
    }

    #[test]
    fn a_description_moves_registers() {
        let reg = |name: &str, bits, number| Part::Register { name: name.into(), bits, number };
        let parts = [reg("mystery", 80, None), reg("rip", 64, None), reg("rsp", 64, Some(9)), reg("rax", 64, Some(3))];
        let map = Map::new(layout(), Endian::Little, &parts);
        let mut block = vec![0u8; 10 + 24];
        block[10] = 1;
        block[18] = 2;
        block[26] = 3;
        let regs = map.decode(&block).unwrap();
        assert_eq!((regs.get(layout().pc), regs.get(layout().result), regs.get(layout().sp)), (1, 2, 3));
    }
}
