//! Where a stopped thread may not be when a function's first two words are replaced.

use tigerfix_arch_mips::MIPS;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::arch::{Arch as _, Registers};
use tigerfix_core::field::Endian;
use tigerfix_core::session::stack::{Checker, Protected};
use tigerfix_core::session::unwind::Unwinder;
use tigerfix_core::target::{CacheFlush, Calls, Mapping, Mappings, Perm, Target, TargetError, ThreadId, Threads};

const ENTRY: u64 = 0x40_0100;
const STACK: u64 = 0x7fff_0000;

/// One thread with these registers and an empty stack.
struct One(Registers);

impl Target for One {
    fn describe(&self) -> String {
        "one thread".into()
    }
    fn read(&mut self, _: RunAddr, buf: &mut [u8]) -> Result<(), TargetError> {
        buf.fill(0);
        Ok(())
    }
    fn write(&mut self, _: RunAddr, _: &[u8]) -> Result<(), TargetError> {
        unreachable!("nothing is to be written")
    }
    fn mappings(&mut self) -> Option<&mut dyn Mappings> {
        None
    }
    fn threads(&mut self) -> Option<&mut dyn Threads> {
        Some(self)
    }
    fn calls(&mut self) -> Option<&mut dyn Calls> {
        None
    }
    fn cache(&mut self) -> Option<&mut dyn CacheFlush> {
        None
    }
}

impl Threads for One {
    fn attach(&mut self) -> Result<(), TargetError> {
        Ok(())
    }
    fn stop_all(&mut self) -> Result<Vec<ThreadId>, TargetError> {
        Ok(vec![ThreadId(1)])
    }
    fn registers(&mut self, _: ThreadId) -> Result<Registers, TargetError> {
        Ok(self.0)
    }
    fn resume_all(&mut self) -> Result<(), TargetError> {
        Ok(())
    }
    fn thread_name(&mut self, _: ThreadId) -> String {
        String::new()
    }
}

/// Is a thread in the way that was stopped at `pc`, in the delay slot of the branch there or not?
fn in_the_way(pc: u64, in_slot: bool) -> bool {
    in_the_way_with(Registers::ZERO, pc, in_slot)
}

/// The same, with these other registers.
fn in_the_way_with(mut regs: Registers, pc: u64, in_slot: bool) -> bool {
    let layout = MIPS.registers();
    regs.set(layout.pc, pc);
    regs.set(layout.sp, STACK + 0x800);
    let (cause, bit) = layout.in_delay_slot.expect("this architecture has delay slots");
    regs.set(cause, if in_slot { bit } else { 0 });
    let window = [Protected {
        name: "f".into(),
        start: RunAddr(ENTRY),
        end: RunAddr(ENTRY + 8),
        entry: true,
        function: RunAddr(ENTRY),
    }];
    let stack = Mapping {
        start: RunAddr(STACK),
        end: RunAddr(STACK + 0x1000),
        perm: Perm::RW,
        offset: 0,
        file: (0, 0),
        name: "[stack]".into(),
    };
    let mut checker = Checker {
        protected: &window,
        returns_to_end: vec![true],
        arch: &MIPS,
        layout,
        endian: Endian::Big,
        word: 4,
        return_bits: u64::MAX,
        call_insn: None,
        mappings: vec![stack],
        one_stack: false,
        unwinder: Unwinder::new(&[], &MIPS, &[]),
        buffer: Vec::new(),
    };
    let blockers = checker.check(&mut One(regs), &[ThreadId(1)]).expect("can be judged");
    !blockers.is_empty()
}

#[test]
fn a_window_is_two_words_and_a_branch_at_its_start_has_a_slot() {
    assert!(!in_the_way(ENTRY, false), "the entry itself: what is written there takes over");
    assert!(in_the_way(ENTRY, true), "the branch at the entry has taken effect, its slot has not");
    assert!(in_the_way(ENTRY + 4, false), "the second word");
    assert!(!in_the_way(ENTRY + 8, false), "behind it");
    assert!(!in_the_way(ENTRY - 8, true), "in some other branch's slot");
}

#[test]
fn return_addresses_are_seen_in_any_register() {
    let layout = MIPS.registers();
    for r in layout.dwarf.iter().map(|(_, r)| *r).filter(|r| ![layout.pc, layout.sp].contains(r)) {
        let kept = |value: u64| {
            let mut regs = Registers::ZERO;
            regs.set(r, value);
            in_the_way_with(regs, ENTRY + 0x100, false)
        };
        let name = layout.names[usize::from(r)];
        // There is no table here that would explain it.
        assert!(kept(ENTRY + 8), "{name}");
        assert!(!kept(ENTRY), "{name}: a pointer to the function is no return address");
    }
}
