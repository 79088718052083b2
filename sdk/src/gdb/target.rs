//! A target behind a stub.

use super::calls::Held;
use super::description;
use super::error::GdbError;
use super::objects::{Region, end_of_ram, unwritable};
use super::registers::Map;
use super::stub::{Kind, Stub};
use super::waits::Waiting;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tigerfix_core::addr::{Bias, RunAddr};
use tigerfix_core::arch::Arch;
use tigerfix_core::error::Explain as _;
use tigerfix_core::program::Program;
use tigerfix_core::target::{Area, CacheFlush, Calls, FixedProgram, Mapping, Mappings, Target, TargetError, Threads};

/// What the caller knows about a target.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The program: path for messages, and the ELF file. Needed where there is no operating system, and where a stub has to
    /// be compared with a file that it can't give.
    pub program: Option<(String, Vec<u8>)>,
    /// Memory for patches, where there is no operating system.
    pub area: Option<Area>,
}

/// A target behind a stub.
pub struct GdbTarget {
    pub(super) stub: Stub,
    pub(super) arch: &'static dyn Arch,
    pub(super) map: Map,
    /// Numbers of the registers of [`tigerfix_core::arch::ExceptionReturns`] that the stub has, and their lowest levels.
    pub(super) returns: Vec<(u32, u64)>,
    pub(super) program: Option<FixedProgram>,
    area: Option<Area>,
    /// The memory map, where there is no operating system and the stub has one; else empty. Ascending.
    pub(super) regions: Vec<Region>,
    pub(super) held: Option<Held>,
    /// Breakpoints that are set, with what was there where they were written by hand: taken away as soon as the target stands.
    pub(super) planted: Vec<(u64, Option<Vec<u8>>)>,
    /// Places of system call instructions that are used for calls.
    pub(super) code: Vec<u64>,
    /// The address space, as long as nothing changes it.
    pub(super) maps: Option<Vec<Mapping>>,
    /// Interrupted calls are in order since the last stop.
    pub(super) settled: bool,
    /// What was found out of threads' control blocks.
    pub(super) blocks: HashMap<u64, RunAddr>,
    pub(super) waiting: Waiting,
    pid: Option<u64>,
}

impl std::fmt::Debug for GdbTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GdbTarget")
            .field("stub", &self.stub.name)
            .field("kind", &self.stub.kind)
            .finish_non_exhaustive()
    }
}

pub(super) fn unsuitable(rule: &'static str, what: &str, why: &str) -> TargetError {
    TargetError::Unsuitable { rule, what: what.to_owned(), why: why.to_owned() }
}

impl GdbTarget {
    /// Takes what is behind `stub`. A program that stands at its very first instruction is run up to its entry point: before
    /// that its libraries are not loaded.
    ///
    /// # Errors
    /// [`TargetError`], with the rules `other-architecture`, `remote-program`, `remote-area`, and those of [`GdbError`].
    pub fn new(mut stub: Stub, arch: &'static dyn Arch, options: Options) -> Result<GdbTarget, TargetError> {
        let name = stub.name.clone();
        let of = |e: GdbError| e.of(&name);
        let description = stub.description().map_err(of)?;
        let map = Map::new(arch.registers(), arch.data_endian(), &description);
        let addresses = arch.registers().returns.map_or(&[][..], |r| r.addresses);
        let mut returns = Vec::new();
        for d in description::registers(&description) {
            let known = addresses.iter().find(|a| a.0.eq_ignore_ascii_case(&d.name));
            returns.extend(known.map(|a| (d.number, a.1)));
        }
        let mut program = None;
        let mut area = None;
        let mut regions = Vec::new();
        if stub.kind == Kind::Process {
            if let Some(ident) = stub.ident().map_err(of)?
                && let Err(why) = arch.accepts(&ident)
            {
                return Err(unsuitable("other-architecture", &name, &format!("has a program that {why}")));
            }
            if options.area.is_some() {
                let why = "has a Linux process, which gives memory itself: leave out --area";
                return Err(unsuitable("remote-area", &name, why));
            }
            if let Some((name, bytes)) = options.program {
                program = Some(FixedProgram { name, bytes, bias: Bias(0) });
            }
        } else {
            let bias = stub.text_offset().map_err(of)?.unwrap_or(0);
            program = Some(bare_program(&name, arch, options.program, bias)?);
            regions = stub.memory_map().map_err(of)?;
            area = Some(bare_area(&name, program.as_ref(), &regions, options.area)?);
        }
        let pid = if stub.kind == Kind::Process { stub.pid().map_err(of)? } else { None };
        let mut target = GdbTarget {
            stub,
            arch,
            map,
            returns,
            program,
            area,
            regions,
            held: None,
            planted: Vec::new(),
            code: Vec::new(),
            maps: None,
            settled: false,
            blocks: HashMap::new(),
            waiting: Waiting::default(),
            pid,
        };
        target.past_the_loader()?;
        target.settle()?;
        Ok(target)
    }

    /// How long the target stood so far because of us.
    #[must_use]
    pub fn stood(&self) -> Duration {
        self.stub.stood()
    }

    /// The process id, where there is a process and the stub tells.
    #[must_use]
    pub fn pid(&self) -> Option<u64> {
        self.pid
    }

    /// Can it be seen what an interrupted processor will return to, where there is no operating system?
    #[must_use]
    pub fn sees_interrupts(&self) -> bool {
        self.arch.registers().exception.is_some() || !self.returns.is_empty()
    }

    /// What is behind the stub.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.stub.kind
    }

    /// Lets the target run on; the stub is not left.
    ///
    /// # Errors
    /// [`TargetError`]
    pub fn go(&mut self) -> Result<(), TargetError> {
        self.mend()?;
        if !self.stub.line.running {
            self.let_call_go();
        }
        self.forget();
        self.stub.go().map_err(|e| self.fault(e))
    }

    /// Waits until the running target stops by itself, or because somebody else saw to it: some stubs can't stop it.
    ///
    /// # Errors
    /// [`TargetError`], with the rule `remote-not-stopping` when it still runs after `limit`.
    pub fn await_stop(&mut self, limit: Duration) -> Result<(), TargetError> {
        self.stub.await_stop(limit).map_err(|e| self.fault(e))?;
        self.uproot()?;
        self.settle()
    }

    /// Lets the target run until a thread comes to `at`.
    ///
    /// # Errors
    /// [`TargetError`], with the rule `remote-not-stopping` when none has after `limit`: it runs on then.
    pub fn run_to(&mut self, at: RunAddr, limit: Duration) -> Result<(), TargetError> {
        self.stand()?;
        self.mend()?;
        let deadline = Instant::now() + limit;
        let ran = self.plant(at.0).and_then(|()| self.run_until(at.0, deadline));
        // While it runs the breakpoint can't be taken away; that is done when it stands again.
        if self.stub.line.running {
            return ran;
        }
        let uprooted = self.uproot();
        ran.and(uprooted)?;
        self.settle()
    }

    fn run_until(&mut self, at: u64, deadline: Instant) -> Result<(), TargetError> {
        self.forget();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.stub.go().and_then(|()| self.stub.await_stop(left)).map_err(|e| self.fault(e))?;
            let thread = self.current()?;
            let pc = self.registers_of(thread)?.get(self.arch.registers().pc);
            if self.is_at(pc, at) {
                return Ok(());
            }
            let signal = self.stub.stop.signal;
            if signal != 5 {
                self.stub.signals.push((thread, signal));
            }
        }
    }

    pub(super) fn fault(&self, e: GdbError) -> TargetError {
        e.of(&self.stub.name)
    }

    /// The word of the auxiliary vector.
    pub(super) fn auxiliary(&self, key: u64) -> Option<u64> {
        let word = usize::from(self.arch.address_bits() / 8);
        let load = |b: &[u8]| tigerfix_core::field::load(b, self.arch.data_endian());
        let mut entries = self.stub.auxv().chunks_exact(2 * word);
        entries.find(|e| load(&e[..word]) == key).map(|e| load(&e[word..]))
    }

    /// Runs a program that has not begun up to its entry point.
    fn past_the_loader(&mut self) -> Result<(), TargetError> {
        const AT_BASE: u64 = 7;
        const AT_ENTRY: u64 = 9;
        let (Some(base), Some(entry)) = (self.auxiliary(AT_BASE), self.auxiliary(AT_ENTRY)) else { return Ok(()) };
        if base == 0 {
            return Ok(());
        }
        let word = usize::from(self.arch.address_bits() / 8);
        // e_entry is behind 24 bytes in either class.
        let Ok(bytes) = self.stub.read_bytes(base.wrapping_add(24), word) else { return Ok(()) };
        let begin = base.wrapping_add(tigerfix_core::field::load(&bytes, self.arch.data_endian()));
        let thread = self.current()?;
        if self.registers_of(thread)?.get(self.arch.registers().pc) == begin {
            self.run_to(RunAddr(entry), Duration::from_secs(60))?;
        }
        Ok(())
    }

    /// What is true only while the target stands is forgotten.
    pub(super) fn forget(&mut self) {
        self.maps = None;
        self.settled = false;
    }
}

fn bare_program(
    stub: &str,
    arch: &dyn Arch,
    program: Option<(String, Vec<u8>)>,
    bias: u64,
) -> Result<FixedProgram, TargetError> {
    let Some((name, bytes)) = program else {
        let why = "has no operating system that could tell what runs: name the program's ELF file by --program";
        return Err(unsuitable("remote-program", stub, why));
    };
    let parsed = Program::parse(&bytes)
        .map_err(|e| unsuitable("remote-program", &name, &format!("cannot be used: {e} [{}]", e.rule())))?;
    if let Err(why) = arch.accepts(&parsed.ident) {
        return Err(unsuitable("other-architecture", &name, why));
    }
    let bias = if parsed.fixed { 0 } else { bias };
    Ok(FixedProgram { name, bytes, bias: Bias(bias) })
}

fn bare_area(
    stub: &str,
    program: Option<&FixedProgram>,
    regions: &[Region],
    area: Option<Area>,
) -> Result<Area, TargetError> {
    /// Larger ones would take too long to look through.
    const MOST: u64 = 16 << 20;
    let Some(area) = area else {
        let why = "has no operating system that could give memory: name some that nothing uses by --area START:SIZE";
        return Err(unsuitable("remote-area", stub, why));
    };
    let Some(end) = area.start.0.checked_add(area.size).filter(|_| area.size > 0) else {
        return Err(unsuitable("remote-area", "the area", "is empty, or goes past the end of memory"));
    };
    if area.size > MOST {
        return Err(unsuitable("remote-area", "the area", &format!("is larger than {MOST:#x} bytes")));
    }
    let parsed = program.and_then(|p| Some((p.bias, Program::parse(&p.bytes).ok()?)));
    if let Some((bias, parsed)) = parsed {
        for s in &parsed.segments {
            let (low, high) = (s.addr.at(bias).0, s.addr.offset(s.size).at(bias).0);
            if low < end && area.start.0 < high {
                let why = format!("lies over the program's own memory ({low:#x} to {high:#x})");
                return Err(unsuitable("remote-area", "the area", &why));
            }
        }
    }
    if let Some(region) = unwritable(regions, area.start.0, end) {
        return Err(unsuitable("remote-area", "the area", &format!("lies in {region}, by the stub's memory map")));
    }
    if !regions.is_empty() {
        let why = match end_of_ram(regions, area.start.0) {
            None => format!("does not begin in RAM, by the stub's memory map ({})", listed(regions)),
            Some(last) if last < end => format!("goes past the RAM that it begins in, which ends at {last:#x}"),
            Some(_) => return Ok(area),
        };
        return Err(unsuitable("remote-area", "the area", &why));
    }
    Ok(area)
}

/// The first few regions, for messages.
fn listed(regions: &[Region]) -> String {
    const SHOWN: usize = 8;
    let mut text: Vec<String> = regions.iter().take(SHOWN).map(ToString::to_string).collect();
    if regions.len() > SHOWN {
        text.push("...".into());
    }
    text.join(", ")
}

impl Target for GdbTarget {
    fn describe(&self) -> String {
        match (self.stub.kind, self.pid) {
            (Kind::Process, Some(pid)) => format!("process {pid} behind {}", self.stub.name),
            (Kind::Process, None) => format!("the process behind {}", self.stub.name),
            (Kind::Bare, _) => format!("the device behind {}", self.stub.name),
        }
    }

    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> Result<(), TargetError> {
        self.stand()?;
        match self.stub.read_bytes(addr.0, buf.len()) {
            Ok(bytes) => {
                buf.copy_from_slice(&bytes);
                Ok(())
            }
            Err(GdbError::Refused { answer, .. }) => {
                Err(TargetError::Memory { action: "read", addr, len: buf.len(), why: answer })
            }
            Err(e) => Err(self.fault(e)),
        }
    }

    fn write(&mut self, addr: RunAddr, bytes: &[u8]) -> Result<(), TargetError> {
        self.stand()?;
        self.write_anywhere(addr, bytes)
    }

    fn writable(&self, name: &str, start: RunAddr, len: u64) -> Result<(), TargetError> {
        match unwritable(&self.regions, start.0, start.0.saturating_add(len)) {
            Some(region) => {
                let why = format!("at {start} lies in {region}, which memory writes don't change");
                Err(unsuitable("remote-flash", &format!("`{name}`"), &why))
            }
            None => Ok(()),
        }
    }

    fn mappings(&mut self) -> Option<&mut dyn Mappings> {
        Some(self)
    }

    fn threads(&mut self) -> Option<&mut dyn Threads> {
        Some(self)
    }

    fn calls(&mut self) -> Option<&mut dyn Calls> {
        if self.stub.kind == Kind::Process { Some(self) } else { None }
    }

    /// None: a session makes the call that flushes caches itself, where there is one; all else is the business of the stub,
    /// which knows the processor.
    fn cache(&mut self) -> Option<&mut dyn CacheFlush> {
        None
    }

    fn area(&self) -> Option<Area> {
        self.area
    }

    fn search_limit(&self) -> u64 {
        if self.stub.line.is_slow() { 64 << 10 } else { 4 << 20 }
    }

    fn interrupted(&self) -> bool {
        #[cfg(feature = "ptrace")]
        return crate::ptrace::interrupted();
        #[cfg(not(feature = "ptrace"))]
        false
    }
}

impl Drop for GdbTarget {
    fn drop(&mut self) {
        // Errors have nobody to go to, and whoever tried this before has told. The stub leaves the target when it is dropped
        // itself; but one that would crash is better off where it stands.
        if self.mend().or_else(|_| self.mend()).is_err() {
            self.stub.keep = true;
        } else if !self.stub.line.running {
            self.let_call_go();
        }
    }
}
