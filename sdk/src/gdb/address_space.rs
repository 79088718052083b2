//! The address space: what the stub's files tell, what the process itself reads from its /proc, or what the program's file and
//! the area say where there is no operating system.

use super::objects::end_of_ram;
use super::stub::{Kind, hex_number};
use super::target::{GdbTarget, unsuitable};
use crate::procfs::{Pages, parse_line};
use tigerfix_core::addr::RunAddr;
use tigerfix_core::error::Explain as _;
use tigerfix_core::field::{Endian, load};
use tigerfix_core::program::Program;
use tigerfix_core::session::record::{MAGIC, REGION_PREFIX};
use tigerfix_core::target::{FixedProgram, Mapping, Mappings, Perm, Target as _, TargetError};

/// More text than the list of mappings of any process has, bytes.
const MAX_MAPS: usize = 16 << 20;
/// How far above the stack pointer a stack is looked through that lies in no known memory, bytes.
const STACK: u64 = 64 << 10;
const PT_LOAD: u64 = 1;
const PF_X: u64 = 1;
const AT_PHDR: u64 = 3;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;

impl GdbTarget {
    fn process_path(&self, file: &str) -> String {
        self.pid().map_or(String::new(), |pid| format!("/proc/{pid}/{file}"))
    }

    fn process_maps(&mut self) -> Result<Vec<Mapping>, TargetError> {
        let path = self.process_path("maps");
        let text = match self.stub.file(&path, 0, MAX_MAPS).map_err(|e| self.fault(e))? {
            Some(text) if !text.is_empty() => text,
            _ => self.with_thread(GdbTarget::own_maps).map_err(|e| self.without_maps(e))?,
        };
        let bad = |line: &str| TargetError::System {
            what: "read the list of mappings".into(),
            why: format!("unexpected line {line:?}"),
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut maps = Vec::new();
        for l in text.lines() {
            let m = parse_line(l).ok_or_else(|| bad(l))?;
            // Emulators list some twice.
            if maps.last().is_none_or(|p: &Mapping| p.end <= m.start) {
                maps.push(m);
            }
        }
        if !self.stub.interruptible {
            maps = self.with_exec(maps);
        }
        Ok(maps)
    }

    /// The list of mappings can't be had. What libraries the stub lists is only told: their list is no substitute, as it has
    /// no rights, no stacks, and no records of patches, which would be taken for absent.
    fn without_maps(&mut self, e: TargetError) -> TargetError {
        const SHOWN: usize = 4;
        if self.stub.line.running || matches!(e, TargetError::Gone { .. } | TargetError::Interrupted) {
            return e;
        }
        // Whatever is wrong with these lists, what is told is why there is none of mappings.
        let mut names: Vec<String> = self.stub.exec_file().ok().flatten().into_iter().collect();
        names.extend(self.stub.libraries().unwrap_or_default());
        if names.is_empty() {
            return e;
        }
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        names.truncate(SHOWN);
        let but =
            format!("it lists {}{more}, but not what rights they have and what else is in memory", names.join(", "));
        match e {
            TargetError::Unsuitable { rule, what, why } => unsuitable(rule, &what, &format!("{why}; {but}")),
            e => unsuitable(e.rule(), &self.stub.name, &format!("has no list of mappings ({e}); {but}")),
        }
    }

    /// Has the process itself read /proc/self/maps.
    fn own_maps(&mut self) -> Result<Vec<u8>, TargetError> {
        const AT_FDCWD: u64 = -100i64 as u64;
        const PIECE: u64 = 2048;
        let linux =
            self.arch.linux().ok_or(TargetError::Unsupported { what: "list mappings: this ABI has no Linux" })?;
        let fd = self.inject("openat", linux.openat, [AT_FDCWD, 0, 0, 0, 0, 0], Some((1, b"/proc/self/maps\0")))?;
        let mut out = Vec::new();
        let nothing = vec![0u8; PIECE as usize];
        let result = loop {
            // The scratch memory takes what is read.
            match self.inject("read", linux.read, [fd, 0, PIECE, 0, 0, 0], Some((1, &nothing))) {
                Ok(0) => break Ok(()),
                Ok(n) if n <= PIECE && out.len() < MAX_MAPS => {
                    let at = self.scratch();
                    match self.stub.read_bytes(at, n as usize) {
                        Ok(bytes) => out.extend(bytes),
                        Err(e) => break Err(self.fault(e)),
                    }
                }
                Ok(_) => {
                    let why = "it has no end".to_owned();
                    break Err(TargetError::System { what: "read the list of mappings".into(), why });
                }
                Err(e) => break Err(e),
            }
        };
        let closed = self.inject("close", linux.close, [fd, 0, 0, 0, 0, 0], None);
        result?;
        closed?;
        Ok(out)
    }

    /// Program headers of the object at `base`: (type, flags, address relative to the object's start, size in memory).
    fn headers(&mut self, base: u64) -> Option<Vec<(u64, u64, u64, u64)>> {
        let wide = self.arch.address_bits() == 64;
        let header = self.stub.read_bytes(base, if wide { 64 } else { 52 }).ok()?;
        if !header.starts_with(b"\x7fELF") {
            return None;
        }
        let endian = self.arch.data_endian();
        let get = |b: &[u8], at: usize, n: usize| b.get(at..at + n).map(|c| load(c, endian));
        let (at, count) = if wide {
            (get(&header, 32, 8)?, get(&header, 56, 2)?)
        } else {
            (get(&header, 28, 4)?, get(&header, 44, 2)?)
        };
        let size = if wide { 56 } else { 32 };
        let table = self.stub.read_bytes(base.wrapping_add(at), size * count.min(512) as usize).ok()?;
        let mut out = Vec::new();
        let mut first = None;
        for p in table.chunks_exact(size) {
            let (kind, flags, offset, addr, memory) = if wide {
                (get(p, 0, 4)?, get(p, 4, 4)?, get(p, 8, 8)?, get(p, 16, 8)?, get(p, 40, 8)?)
            } else {
                (get(p, 0, 4)?, get(p, 24, 4)?, get(p, 4, 4)?, get(p, 8, 4)?, get(p, 20, 4)?)
            };
            if kind == PT_LOAD && first.is_none() {
                first = Some(addr.wrapping_sub(offset));
            }
            out.push((kind, flags, addr, memory));
        }
        let first = first?;
        out.iter_mut().for_each(|p| p.2 = p.2.wrapping_sub(first));
        Some(out)
    }

    /// Executable ranges of the object at `base`.
    fn code_of(&mut self, base: u64) -> Vec<(u64, u64)> {
        let all = self.headers(base).unwrap_or_default();
        let code = all.into_iter().filter(|p| p.0 == PT_LOAD && p.1 & PF_X != 0);
        code.map(|p| (base.wrapping_add(p.2), base.wrapping_add(p.2).wrapping_add(p.3))).filter(|r| r.0 < r.1).collect()
    }

    /// Code of the program and its loader, found without the list of mappings.
    pub(super) fn known_code(&mut self) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        if let Some(base) = self.auxiliary(AT_BASE).filter(|b| *b != 0) {
            out.extend(self.code_of(base));
        }
        let header = if self.arch.address_bits() == 64 { 64 } else { 52 };
        if let Some(base) = self.auxiliary(AT_PHDR).and_then(|p| p.checked_sub(header)) {
            out.extend(self.code_of(base));
        }
        out
    }

    /// User-mode emulators show the rights that they themselves need: what is executable for the program is not among them,
    /// unless those rights were changed once. The objects' headers know.
    fn with_exec(&mut self, maps: Vec<Mapping>) -> Vec<Mapping> {
        let page = self.auxiliary(AT_PAGESZ).filter(|p| p.is_power_of_two()).unwrap_or(4096);
        let mut code: Vec<(u64, u64)> = Vec::new();
        for m in maps.iter().filter(|m| m.perm.read && m.offset == 0 && !m.name.is_empty()) {
            if m.name.starts_with(REGION_PREFIX) {
                // Behind the record everything that can't be written; islands have no record.
                let head = self.stub.read_bytes(m.start.0, 48).unwrap_or_default();
                let image = head.strip_prefix(&MAGIC).and_then(|h| h.get(32..40)).map(|w| load(w, Endian::Little));
                code.push((image.unwrap_or(m.start.0), m.end.0));
            } else {
                let ranges = self.code_of(m.start.0);
                code.extend(ranges.iter().map(|r| (r.0 & !(page - 1), r.1.next_multiple_of(page))));
            }
        }
        let mut out = Vec::new();
        for m in maps {
            let mut at = m.start.0;
            let mut cuts: Vec<u64> = code.iter().flat_map(|c| [c.0, c.1]).filter(|c| m.contains(RunAddr(*c))).collect();
            cuts.push(m.end.0);
            cuts.sort_unstable();
            for cut in cuts.into_iter().filter(|c| *c > m.start.0) {
                if cut == at {
                    continue;
                }
                let mut piece = m.clone();
                piece.start = RunAddr(at);
                piece.end = RunAddr(cut);
                piece.offset = m.offset + (at - m.start.0);
                piece.perm.exec |= !m.perm.write && code.iter().any(|c| c.0 <= at && at < c.1);
                out.push(piece);
                at = cut;
            }
        }
        out
    }

    /// Without an operating system: the program's segments, the area, and whatever stacks lie elsewhere.
    fn bare_maps(&mut self) -> Result<Vec<Mapping>, TargetError> {
        let mut maps = Vec::new();
        let mapping = |start: u64, end: u64, perm: Perm, name: &str| Mapping {
            start: RunAddr(start),
            end: RunAddr(end),
            perm,
            offset: 0,
            file: (0, 0),
            name: name.to_owned(),
        };
        if let Some(p) = &self.program
            && let Ok(parsed) = Program::parse(&p.bytes)
        {
            for s in parsed.segments.iter().filter(|s| s.size > 0) {
                let start = s.addr.at(p.bias).0;
                maps.push(mapping(start, start.saturating_add(s.size), s.perm, &p.name));
            }
        }
        if let Some(a) = self.area() {
            let perm = Perm { read: true, write: true, exec: true };
            maps.push(mapping(a.start.0, a.start.0 + a.size, perm, "[area]"));
        }
        maps.sort_by_key(|m| m.start);
        if !self.stub.line.running {
            for thread in self.stub.thread_ids().map_err(|e| self.fault(e))? {
                let sp = self.registers_of(thread)?.get(self.arch.registers().sp);
                if maps.iter().any(|m| m.contains(RunAddr(sp))) {
                    continue;
                }
                let next = maps.iter().map(|m| m.start.0).find(|s| *s > sp).unwrap_or(u64::MAX);
                // Behind RAM there may be devices, which reading can change.
                let ram = end_of_ram(&self.regions, sp).unwrap_or(u64::MAX);
                let end = self.readable(sp, next.min(sp.saturating_add(STACK)).min(ram));
                if end > sp {
                    maps.push(mapping(sp, end, Perm::RW, "[stack]"));
                    maps.sort_by_key(|m| m.start);
                }
            }
        }
        Ok(maps)
    }

    /// How far memory can be read from `start` on, at most to `end`.
    fn readable(&mut self, start: u64, end: u64) -> u64 {
        const STEP: u64 = 1024;
        let mut at = start;
        while at < end {
            let next = (at / STEP * STEP + STEP).min(end);
            if self.stub.read_bytes(next - 1, 1).is_err() {
                break;
            }
            at = next;
        }
        at
    }
}

impl Mappings for GdbTarget {
    fn mappings(&mut self) -> Result<Vec<Mapping>, TargetError> {
        self.stand()?;
        if self.stub.kind == Kind::Bare {
            return self.bare_maps();
        }
        if let Some(m) = &self.maps {
            return Ok(m.clone());
        }
        let maps = self.process_maps()?;
        self.maps = Some(maps.clone());
        Ok(maps)
    }

    fn touched(&mut self, mapping: &Mapping) -> Vec<(RunAddr, RunAddr)> {
        let whole = vec![(mapping.start, mapping.end)];
        let page = self.auxiliary(AT_PAGESZ).filter(|p| p.is_power_of_two()).unwrap_or(4096);
        let Some(pages) = Pages::of(mapping, page) else { return whole };
        let path = self.process_path("pagemap");
        match self.stub.file(&path, pages.offset, pages.len) {
            Ok(Some(entries)) if entries.len() == pages.len => pages.there(&entries, self.arch.data_endian()),
            _ => whole,
        }
    }

    fn file(&mut self, mapping: &Mapping) -> Result<Vec<u8>, TargetError> {
        let exact = self.process_path(&format!("map_files/{:x}-{:x}", mapping.start.0, mapping.end.0));
        let exe = self.process_path("exe");
        let path = mapping.name.strip_suffix(" (deleted)").unwrap_or(&mapping.name);
        let by_path = self.process_path(&format!("root{path}"));
        if self.stub.kind == Kind::Process {
            let is_exe = self.stub.link_target(&exe).map_err(|e| self.fault(e))?.as_deref() == Some(&mapping.name);
            for (path, fits) in [(&exact, true), (&exe, is_exe), (&by_path, !mapping.name.ends_with(" (deleted)"))] {
                if fits && let Some(bytes) = self.stub.file(path, 0, usize::MAX).map_err(|e| self.fault(e))? {
                    return Ok(bytes);
                }
            }
        }
        let file_name = |p: &str| p.rsplit('/').next().unwrap_or_default().to_owned();
        match &self.program {
            Some(p) if self.stub.kind == Kind::Bare || file_name(&p.name) == file_name(path) => Ok(p.bytes.clone()),
            _ => Err(TargetError::System {
                what: format!("read {}", mapping.name),
                why: "the stub gives no files; name the program's file by --program".into(),
            }),
        }
    }

    fn fixed_program(&mut self) -> Option<FixedProgram> {
        self.program.clone().filter(|_| self.stub.kind == Kind::Bare)
    }

    fn auxv(&mut self, key: u64) -> Result<Option<u64>, TargetError> {
        Ok(self.auxiliary(key))
    }
}

/// An area as the command line has it: `START:SIZE`, both decimal or hexadecimal with 0x.
#[must_use]
pub fn parse_area(text: &str) -> Option<tigerfix_core::target::Area> {
    let number = |t: &str| match t.strip_prefix("0x").or_else(|| t.strip_prefix("0X")) {
        Some(hex) => hex_number(hex.as_bytes()),
        None => t.parse().ok(),
    };
    let (start, size) = text.split_once(':')?;
    Some(tigerfix_core::target::Area { start: RunAddr(number(start)?), size: number(size)? })
}
