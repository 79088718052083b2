//! A process in memory: address space, threads, files. It records what is done to it, notes whatever breaks a rule, and can
//! fail at any step.

use std::collections::BTreeMap;

use tigerfix::addr::RunAddr;
use tigerfix::arch::Registers;
use tigerfix::target::{Area, CacheFlush, Calls, Mapping, Mappings, Perm, Target, TargetError, ThreadId, Threads};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::Arch as _;

/// One step, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Read(u64, usize),
    Write(u64, usize),
    Mappings,
    File,
    Auxv,
    Attach,
    StopAll,
    Registers(u64),
    ResumeAll,
    Hold,
    Syscall(&'static str),
    Call(u64),
    Release,
    Flush(u64, u64),
}

/// How a step goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused and has no effect.
    Refused,
    /// It has its effect, and then fails nevertheless.
    Late,
    /// A write stops half way; all else is refused.
    Half,
    /// A write stores something else and reports success; all else works.
    Silent,
}

/// Which steps go wrong.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub fault: Fault,
    /// Number of the step, from 0 on.
    pub step: usize,
    pub then: Then,
}

/// What goes wrong after that step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing more.
    Once,
    /// All steps of the same kind.
    SameKind,
    /// All steps: who drove the target is dead.
    Everything,
}

/// What happens where a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// There is nothing.
    Unreadable,
    /// All else but the memory fails.
    Broken,
}

/// What may happen to a target while it runs.
pub type Event = fn(&mut Process);

/// Name of the memory for patches of a device, which can't make system calls.
pub const AREA: &str = "area";

/// A mapping with its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    pub start: u64,
    pub perm: Perm,
    pub offset: u64,
    pub file: (u64, u64),
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Map {
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
    pub fn is_region(&self) -> bool {
        self.name.starts_with("/memfd:tfix:") || self.name == AREA
    }
}

#[derive(Clone, Debug)]
pub struct Thread {
    pub id: u64,
    pub name: &'static str,
    pub registers: Registers,
}

#[derive(Clone, Debug)]
pub struct Process {
    pub maps: Vec<Map>,
    pub threads: Vec<Thread>,
    pub attached: bool,
    pub stopped: bool,
    pub held: bool,
    /// Offers cache maintenance, and so has to be asked for it.
    pub caches: bool,
    /// The maintenance is a system call that the target has to make.
    pub by_call: bool,
    /// Executable bytes that were written and not flushed: start and end.
    pub dirty: Vec<(u64, u64)>,
    pub log: Vec<Step>,
    pub broken_rules: Vec<String>,
    pub plan: Option<Plan>,
    /// The step that went wrong first.
    pub failed: Option<Step>,
    pub sites_written: bool,
    pub interrupt_at: Option<usize>,
    /// A thread that goes elsewhere before so many looks: looks, thread, pc.
    pub leaves: Option<(u32, u64, u64)>,
    /// What happens to the target before so many looks.
    pub event: Option<(u32, Event)>,
    /// Pages that can't be read, and those where the line breaks.
    pub holes: Vec<(u64, Hole)>,
    pub open: BTreeMap<u64, String>,
    next_file: u64,
}

fn kind(step: &Step) -> std::mem::Discriminant<Step> {
    std::mem::discriminant(step)
}

fn error(step: &Step) -> TargetError {
    let why = || "injected fault".to_owned();
    match *step {
        Step::Read(at, len) => TargetError::Memory { action: "read", addr: RunAddr(at), len, why: why() },
        Step::Write(at, len) => TargetError::Memory { action: "write", addr: RunAddr(at), len, why: why() },
        Step::Syscall(call) => TargetError::Injected { call, errno: 12 },
        Step::StopAll => TargetError::Timeout { thread: ThreadId(1), what: "stop", millis: 1 },
        ref other => TargetError::System { what: format!("{other:?}"), why: why() },
    }
}

impl Process {
    pub fn new(maps: Vec<Map>, threads: Vec<Thread>) -> Self {
        let mut out = Self {
            maps,
            threads,
            attached: false,
            stopped: false,
            held: false,
            caches: true,
            by_call: false,
            dirty: Vec::new(),
            log: Vec::new(),
            broken_rules: Vec::new(),
            plan: None,
            failed: None,
            sites_written: false,
            interrupt_at: None,
            leaves: None,
            event: None,
            holes: Vec::new(),
            open: BTreeMap::new(),
            next_file: 5,
        };
        out.sort();
        out
    }

    fn sort(&mut self) {
        self.maps.sort_by_key(|m| m.start);
    }

    /// The same process with nothing recorded.
    pub fn rewound(&self) -> Self {
        let mut p = self.clone();
        p.log.clear();
        p.plan = None;
        p.failed = None;
        p.sites_written = false;
        p.interrupt_at = None;
        p
    }

    /// The same once the kernel let go of all that a dead tracer held.
    pub fn let_go(&self) -> Self {
        let mut p = self.rewound();
        (p.stopped, p.attached, p.held) = (false, false, false);
        p.dirty.clear();
        p.broken_rules.clear();
        p
    }

    /// Everything but the regions of patches: what has to be as it was.
    pub fn original(&self) -> Vec<Map> {
        self.maps.iter().filter(|m| !m.is_region()).cloned().collect()
    }

    pub fn regions(&self) -> Vec<&Map> {
        self.maps.iter().filter(|m| m.is_region()).collect()
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let m =
            self.maps.iter().find(|m| m.start <= at && at < m.end()).unwrap_or_else(|| panic!("nothing at {at:#x}"));
        m.bytes[(at - m.start) as usize..][..len].to_vec()
    }

    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        let m = self
            .maps
            .iter_mut()
            .find(|m| m.start <= at && at < m.end())
            .unwrap_or_else(|| panic!("nothing at {at:#x}"));
        m.bytes[(at - m.start) as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn rule(&mut self, kept: bool, text: impl FnOnce() -> String) {
        if !kept {
            let text = text();
            self.broken_rules.push(text);
        }
    }

    /// Records a step and says how it goes wrong, if it does.
    fn step(&mut self, step: Step) -> Option<Fault> {
        let number = self.log.len();
        self.log.push(step.clone());
        let plan = self.plan?;
        let first = number == plan.step;
        let again = match plan.then {
            Then::Once => false,
            Then::SameKind => self.failed.as_ref().is_some_and(|f| kind(f) == kind(&step)),
            Then::Everything => self.failed.is_some(),
        };
        if !first && !again {
            return None;
        }
        self.failed.get_or_insert(step);
        // The dead do nothing by halves.
        Some(if !first && plan.then == Then::Everything { Fault::Refused } else { plan.fault })
    }

    /// A step whose faults have no halves.
    fn simple(&mut self, step: Step, effect: impl FnOnce(&mut Self)) -> Result<(), TargetError> {
        match self.step(step.clone()) {
            Some(Fault::Refused | Fault::Half) => Err(error(&step)),
            Some(Fault::Late) => {
                effect(self);
                Err(error(&step))
            }
            Some(Fault::Silent) | None => {
                effect(self);
                Ok(())
            }
        }
    }

    fn store(&mut self, at: u64, bytes: &[u8]) -> Result<(), TargetError> {
        let bad =
            || TargetError::Memory { action: "write", addr: RunAddr(at), len: bytes.len(), why: "not mapped".into() };
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let m = self.maps.iter_mut().find(|m| m.start <= at && at < m.end()).ok_or_else(bad)?;
            let n = rest.len().min((m.end() - at) as usize);
            // In an area code and data are not told apart.
            let (region, exec) = (m.is_region(), m.perm.exec && m.name != AREA);
            m.bytes[(at - m.start) as usize..][..n].copy_from_slice(&rest[..n]);
            if exec && self.caches {
                self.dirty.push((at, at + n as u64));
            }
            if !region {
                self.sites_written = true;
                let stopped = self.stopped;
                self.rule(stopped, || format!("{n} bytes of the program at {at:#x} were written while threads ran"));
            }
            at += n as u64;
            rest = &rest[n..];
        }
        Ok(())
    }

    fn flushed(&mut self, from: u64, to: u64) {
        // What is left of each dirty range.
        let left = |(a, b): (u64, u64)| [(a, b.min(from)), (a.max(to), b)].into_iter().filter(|(a, b)| a < b);
        self.dirty = std::mem::take(&mut self.dirty).into_iter().flat_map(left).collect();
    }

    fn unmap(&mut self, from: u64, to: u64) {
        let cut = |m: Map| {
            let piece = |a: u64, b: u64| {
                let (a, b) = (a.clamp(m.start, m.end()), b.clamp(m.start, m.end()));
                (a < b).then(|| Map {
                    start: a,
                    offset: m.offset + (a - m.start),
                    bytes: m.bytes[(a - m.start) as usize..(b - m.start) as usize].to_vec(),
                    ..m.clone()
                })
            };
            [piece(m.start, from), piece(to, m.end())]
        };
        self.maps = std::mem::take(&mut self.maps).into_iter().flat_map(cut).flatten().collect();
        self.sort();
        self.flushed(from, to);
    }

    fn system_call(&mut self, nr: u64, args: [u64; 6], scratch: Option<(usize, &[u8])>) -> Result<u64, u64> {
        let abi = X86_64.linux().expect("has Linux");
        const EBADF: u64 = 9;
        const EEXIST: u64 = 17;
        const EINVAL: u64 = 22;
        if nr == abi.memfd_create {
            let (_, name) = scratch.filter(|s| s.0 == 0).ok_or(EINVAL)?;
            let name = name.strip_suffix(&[0]).ok_or(EINVAL)?;
            let name = format!("/memfd:{}", String::from_utf8_lossy(name));
            self.next_file += 1;
            self.open.insert(self.next_file, format!("{name} (deleted)"));
            Ok(self.next_file)
        } else if nr == abi.ftruncate {
            self.open.get(&args[0]).map(|_| 0).ok_or(EBADF)
        } else if nr == abi.close {
            self.open.remove(&args[0]).map(|_| 0).ok_or(EBADF)
        } else if nr == abi.munmap {
            let end = args[0] + args[1];
            self.unmap(args[0], end);
            Ok(0)
        } else if nr == crate::caching::CACHEFLUSH {
            self.rule(args[2] == 3, || format!("cacheflush of {}", args[2]));
            self.flushed(args[0], args[0] + args[1]);
            Ok(0)
        } else if nr == abi.mmap {
            let name = self.open.get(&args[4]).cloned().ok_or(EBADF)?;
            let (start, len) = (args[0], args[1]);
            if start % 0x1000 != 0 || len % 0x1000 != 0 || len == 0 {
                return Err(EINVAL);
            }
            if self.maps.iter().any(|m| m.start < start + len && start < m.end()) {
                return Err(EEXIST);
            }
            let perm = Perm { read: args[2] & 1 != 0, write: args[2] & 2 != 0, exec: args[2] & 4 != 0 };
            self.rule(!(perm.write && perm.exec), || format!("{len:#x} bytes mapped writable and executable"));
            let fixed = abi.map_private | abi.map_fixed_noreplace;
            self.rule(args[3] == fixed, || format!("mmap with flags {:#x}", args[3]));
            self.maps.push(Map {
                start,
                perm,
                offset: args[5],
                file: (1, args[4]),
                name,
                bytes: vec![0; len as usize],
            });
            self.sort();
            Ok(start)
        } else {
            Err(38)
        }
    }
}

impl Target for Process {
    fn describe(&self) -> String {
        "process 1 (recorded)".into()
    }

    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> Result<(), TargetError> {
        let step = Step::Read(addr.0, buf.len());
        if let Some(Fault::Refused | Fault::Half | Fault::Late) = self.step(step.clone()) {
            return Err(error(&step));
        }
        let end = addr.0 + buf.len() as u64;
        match self.holes.iter().find(|h| h.0 < end && addr.0 < h.0 + 0x1000) {
            Some((_, Hole::Unreadable)) => return Err(error(&step)),
            Some((_, Hole::Broken)) => return Err(error(&Step::File)),
            None => {}
        }
        let (mut at, mut rest) = (addr.0, buf);
        while !rest.is_empty() {
            let Some(m) = self.maps.iter().find(|m| m.start <= at && at < m.end()) else { return Err(error(&step)) };
            let (now, later) = rest.split_at_mut(rest.len().min((m.end() - at) as usize));
            now.copy_from_slice(&m.bytes[(at - m.start) as usize..][..now.len()]);
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn write(&mut self, addr: RunAddr, bytes: &[u8]) -> Result<(), TargetError> {
        let step = Step::Write(addr.0, bytes.len());
        match self.step(step.clone()) {
            None => self.store(addr.0, bytes),
            Some(Fault::Refused) => Err(error(&step)),
            Some(Fault::Late) => self.store(addr.0, bytes).and(Err(error(&step))),
            Some(Fault::Half) => self.store(addr.0, &bytes[..bytes.len() / 2]).and(Err(error(&step))),
            Some(Fault::Silent) => {
                let mut wrong = bytes.to_vec();
                if let Some(b) = wrong.last_mut() {
                    *b ^= 0x10;
                }
                self.store(addr.0, &wrong)
            }
        }
    }

    fn mappings(&mut self) -> Option<&mut dyn Mappings> {
        Some(self)
    }
    fn threads(&mut self) -> Option<&mut dyn Threads> {
        Some(self)
    }
    fn calls(&mut self) -> Option<&mut dyn Calls> {
        if self.area().is_none() { Some(self) } else { None }
    }
    fn area(&self) -> Option<Area> {
        let m = self.maps.iter().find(|m| m.name == AREA)?;
        Some(Area { start: RunAddr(m.start), size: m.bytes.len() as u64 })
    }
    fn cache(&mut self) -> Option<&mut dyn CacheFlush> {
        if self.caches && !self.by_call { Some(self) } else { None }
    }
    fn interrupted(&self) -> bool {
        self.interrupt_at.is_some_and(|n| self.log.len() >= n)
    }
}

impl Mappings for Process {
    fn mappings(&mut self) -> Result<Vec<Mapping>, TargetError> {
        self.simple(Step::Mappings, |_| {})?;
        let one = |m: &Map| Mapping {
            start: RunAddr(m.start),
            end: RunAddr(m.end()),
            perm: m.perm,
            offset: m.offset,
            file: m.file,
            name: m.name.clone(),
        };
        Ok(self.maps.iter().map(one).collect())
    }
    fn file(&mut self, _: &Mapping) -> Result<Vec<u8>, TargetError> {
        self.simple(Step::File, |_| {})?;
        Err(TargetError::Unsupported { what: "read files" })
    }
    fn auxv(&mut self, _: u64) -> Result<Option<u64>, TargetError> {
        self.simple(Step::Auxv, |_| {})?;
        Ok(None)
    }
}

impl Threads for Process {
    fn attach(&mut self) -> Result<(), TargetError> {
        let held = self.held;
        self.rule(!held, || "attach while a thread is held".into());
        if let Some((looks, id, pc)) = &mut self.leaves {
            *looks -= 1;
            if *looks == 0 {
                let at = X86_64.registers().pc;
                self.threads.iter_mut().filter(|t| t.id == *id).for_each(|t| t.registers.set(at, *pc));
                self.leaves = None;
            }
        }
        if let Some((looks, happen)) = self.event {
            self.event = Some((looks - 1, happen)).filter(|e| e.0 > 0);
            if looks == 1 {
                happen(self);
            }
        }
        // "Nothing stays attached" when it fails.
        let result = self.simple(Step::Attach, |_| {});
        self.attached = result.is_ok();
        result
    }

    fn stop_all(&mut self) -> Result<Vec<ThreadId>, TargetError> {
        let attached = self.attached;
        self.rule(attached, || "stop without attach".into());
        let result = self.simple(Step::StopAll, |_| {});
        self.stopped = result.is_ok();
        self.attached = result.is_ok();
        result.map(|()| self.threads.iter().map(|t| ThreadId(t.id)).collect())
    }

    fn registers(&mut self, thread: ThreadId) -> Result<Registers, TargetError> {
        let stopped = self.stopped;
        self.rule(stopped, || "registers of a running thread".into());
        self.simple(Step::Registers(thread.0), |_| {})?;
        Ok(self.threads.iter().find(|t| t.id == thread.0).expect("one of ours").registers)
    }

    fn resume_all(&mut self) -> Result<(), TargetError> {
        let dirty = self.dirty.clone();
        self.rule(dirty.is_empty(), || format!("threads go on with unflushed code: {dirty:x?}"));
        self.simple(Step::ResumeAll, |p| {
            p.stopped = false;
            p.attached = false;
        })
    }

    fn thread_name(&mut self, thread: ThreadId) -> String {
        self.threads.iter().find(|t| t.id == thread.0).map_or_else(String::new, |t| t.name.into())
    }
}

impl Calls for Process {
    fn hold(&mut self) -> Result<ThreadId, TargetError> {
        // What flushes may have to be done at a stop, and only that.
        let running = !self.stopped;
        self.rule(running || self.by_call, || "hold while all are stopped".into());
        let result = self.simple(Step::Hold, |_| {});
        self.held |= result.is_ok();
        result.map(|()| ThreadId(1))
    }

    fn syscall(
        &mut self,
        name: &'static str,
        nr: u64,
        args: [u64; 6],
        scratch: Option<(usize, &[u8])>,
    ) -> Result<u64, TargetError> {
        let held = self.held;
        self.rule(held, || format!("{name} without a held thread"));
        let stopped = self.stopped;
        self.rule(!stopped || name == "cacheflush", || format!("{name} while all are stopped"));
        let step = Step::Syscall(name);
        match self.step(step.clone()) {
            Some(Fault::Refused | Fault::Half) => Err(error(&step)),
            // The call was made, but its result got lost: nobody can know what it did. Not for calls that make things.
            Some(Fault::Late) if matches!(name, "munmap" | "ftruncate" | "close") => {
                let _ = self.system_call(nr, args, scratch);
                Err(error(&step))
            }
            Some(Fault::Late) => Err(error(&step)),
            Some(Fault::Silent) | None => {
                self.system_call(nr, args, scratch).map_err(|errno| TargetError::Injected { call: name, errno })
            }
        }
    }

    fn call(&mut self, entry: RunAddr, _: &[u64], trap: RunAddr) -> Result<u64, TargetError> {
        let (held, dirty) = (self.held, self.dirty.clone());
        self.rule(held, || "a call without a held thread".into());
        self.rule(dirty.is_empty(), || format!("a call that returns to unflushed code: {dirty:x?}"));
        let exec = self.maps.iter().any(|m| m.start <= trap.0 && trap.0 < m.end() && m.perm.exec);
        self.rule(exec && self.bytes(trap.0, 1) == [0xcc], || format!("no breakpoint at {trap}"));
        self.simple(Step::Call(entry.0), |_| {})?;
        Ok(entry.0)
    }

    fn release(&mut self) -> Result<(), TargetError> {
        self.simple(Step::Release, |p| p.held = false)
    }
}

impl CacheFlush for Process {
    fn flush(&mut self, start: RunAddr, len: u64) -> Result<(), TargetError> {
        self.simple(Step::Flush(start.0, len), |p| p.flushed(start.0, start.0 + len))
    }
}
