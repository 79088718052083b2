//! The program's code as the judge sees it: functions decoded on demand, and one scan for everything that refers to a
//! function's start or into a watched range.

use crate::arch::{Arch, Constants};
use crate::decode::{Decoder, Flow, Insn};
use crate::field::Endian;
use crate::program::{Program, Symbol};
use alloc::{collections::BTreeMap, rc::Rc, string::String, vec::Vec};
use core::cell::RefCell;
use object::elf;

/// Functions longer than this are decoded up to here only.
const LONGEST: u64 = 4 << 20;

/// A function of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent<'a> {
    pub entry: u64,
    pub end: u64,
    /// The symbol had no size.
    pub guessed: bool,
    /// It surely runs: the program's entry, `main`, or visible to other modules.
    pub root: bool,
    pub symbol: &'a Symbol<'a>,
}

/// A decoded function.
#[derive(Debug)]
pub(super) struct Function {
    pub name: String,
    pub entry: u64,
    /// Past the symbol's last byte.
    pub end: u64,
    /// Past the last decoded instruction.
    pub decoded: u64,
    pub insns: Vec<Insn>,
}

impl Function {
    /// Index of the instruction that covers `addr`.
    pub fn covering(&self, addr: u64) -> Option<usize> {
        let i = self.insns.partition_point(|i| i.addr <= addr).checked_sub(1)?;
        (addr - self.insns[i].addr < u64::from(self.insns[i].len)).then_some(i)
    }
    /// Index of the instruction that starts at `addr`.
    pub fn starting(&self, addr: u64) -> Option<usize> {
        self.insns.binary_search_by_key(&addr, |i| i.addr).ok()
    }
    /// Does it hold `addr`?
    pub fn contains(&self, addr: u64) -> bool {
        (self.entry..self.end).contains(&addr)
    }
}

/// The target of a direct branch or call.
pub(super) fn direct_target(flow: Flow) -> Option<u64> {
    match flow {
        Flow::Jump(t) | Flow::Branch(t) | Flow::Call(t) => Some(t),
        _ => None,
    }
}

/// Something that may refer to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Raw {
    pub to: u64,
    pub from: u64,
    pub data: bool,
}

/// What became of a [`Raw`] reference on a closer look.
pub(super) enum Source {
    /// An instruction.
    Insn(Rc<Function>, usize),
    /// A data word (or a relocation's addend).
    Data,
    /// Code of which no function symbol tells; it may or may not be an instruction.
    Unknown,
    /// Not an instruction.
    Refuted,
}

/// The program, ready to be asked.
pub(super) struct Listing<'a> {
    pub arch: &'a dyn Arch,
    pub decoder: &'a dyn Decoder,
    pub program: &'a Program<'a>,
    /// Executable sections: address and contents.
    texts: Vec<(u64, &'a [u8])>,
    /// Loaded sections that hold data.
    datas: Vec<(u64, &'a [u8])>,
    /// Functions by entry, one for each address.
    extents: Vec<Extent<'a>>,
    references: Vec<Raw>,
    /// The program's global pointer, where the architecture has one.
    pub gp: Option<u64>,
    /// Global offset tables: address and contents.
    gots: Vec<(u64, &'a [u8])>,
    cache: RefCell<BTreeMap<u64, Rc<Function>>>,
}

impl<'a> Listing<'a> {
    /// Finds code, data and functions, and all references to function starts and into `watch`.
    pub fn new(
        arch: &'a dyn Arch,
        decoder: &'a dyn Decoder,
        program: &'a Program<'a>,
        watch: &[(u64, u64)],
    ) -> Listing<'a> {
        let (texts, datas) = split(program);
        let extents = extents(program, &texts);
        let mut listing = Listing {
            arch,
            decoder,
            program,
            texts,
            datas,
            extents,
            references: Vec::new(),
            gp: global_pointer(arch, program),
            gots: gots(program),
            cache: RefCell::new(BTreeMap::new()),
        };
        listing.references = listing.scan(watch);
        listing
    }

    /// References to addresses in `lo..hi`, if that was watched or holds function starts, ascending by target.
    pub fn references(&self, lo: u64, hi: u64) -> &[Raw] {
        let from = self.references.partition_point(|r| r.to < lo);
        let to = self.references.partition_point(|r| r.to < hi);
        &self.references[from..to.max(from)]
    }

    /// Looks closer at a reference.
    pub fn confirm(&self, raw: Raw) -> Source {
        if raw.data {
            return Source::Data;
        }
        let Some(function) = self.function(raw.from) else { return Source::Unknown };
        match function.covering(raw.from) {
            Some(i) => {
                let insn = &function.insns[i];
                if direct_target(insn.flow) == Some(raw.to) || insn.refers == Some(raw.to) {
                    Source::Insn(function, i)
                } else {
                    Source::Refuted
                }
            }
            None => Source::Unknown,
        }
    }

    /// The extent of the function that holds `addr`.
    pub fn extent(&self, addr: u64) -> Option<Extent<'a>> {
        let end = self.extents.partition_point(|e| e.entry <= addr);
        // A symbol may lie inside another function (assembly); look a little further back.
        self.extents[..end].iter().rev().take(8).find(|e| addr < e.end).copied()
    }

    /// Start of the first function past `addr`.
    pub fn next_start(&self, addr: u64) -> Option<u64> {
        self.extents.get(self.extents.partition_point(|e| e.entry <= addr)).map(|e| e.entry)
    }

    /// The decoded function that holds `addr`.
    pub fn function(&self, addr: u64) -> Option<Rc<Function>> {
        let extent = self.extent(addr)?;
        if let Some(f) = self.cache.borrow().get(&extent.entry) {
            return Some(f.clone());
        }
        let f = Rc::new(self.decode(extent.symbol.name, extent.entry, extent.end));
        self.cache.borrow_mut().insert(extent.entry, f.clone());
        Some(f)
    }

    /// Decodes `entry..end`, whatever symbols say.
    pub fn decode(&self, name: &str, entry: u64, end: u64) -> Function {
        let len = end.saturating_sub(entry).min(LONGEST);
        let mut insns = match self.text(entry) {
            Some(code) => {
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(code.len());
                self.with_constants(|known| self.decoder.decode(&code[..len], entry, known))
            }
            None => Vec::new(),
        };
        // The decoder is a foreign part: rely on nothing that was not checked.
        let mut decoded = entry;
        let sound = insns.iter().take_while(|i| {
            let good = i.addr == decoded && i.len > 0;
            decoded = decoded.wrapping_add(u64::from(i.len)).max(decoded);
            good
        });
        let sound = sound.count();
        insns.truncate(sound);
        let decoded = insns.last().map_or(entry, |i| i.addr.saturating_add(i.len.into()));
        Function { name: String::from(name), entry, end, decoded, insns }
    }

    /// The instructions of `f` with their assembly text.
    pub fn texts(&self, f: &Function, with: &mut dyn FnMut(&Insn, &str)) {
        let code = self.text(f.entry).unwrap_or(&[]);
        let len = usize::try_from(f.end.saturating_sub(f.entry)).unwrap_or(usize::MAX).min(code.len());
        self.decoder.texts(&code[..len], &f.insns, with);
    }

    /// Calls `f` with what code that builds addresses may count on.
    fn with_constants<R>(&self, f: impl FnOnce(&Constants<'_>) -> R) -> R {
        let word = usize::from(self.arch.address_bits() / 8).max(4);
        // Only a global offset table's words are what code makes of them: variables change.
        let entry = |at: u64| self.integer(tail(&self.gots, at)?.get(..word)?);
        f(&Constants { gp: self.gp, word: &entry })
    }

    /// Code before `addr`, in its section.
    pub fn text_before(&self, addr: u64) -> &'a [u8] {
        let here = self.texts.iter().find_map(|&(at, bytes)| {
            let len = usize::try_from(addr.checked_sub(at)?).ok()?;
            (len < bytes.len()).then(|| &bytes[..len])
        });
        here.unwrap_or(&[])
    }

    /// Code from `addr` to the end of its section.
    pub fn text(&self, addr: u64) -> Option<&'a [u8]> {
        tail(&self.texts, addr)
    }

    /// Data from `addr` to the end of its section.
    pub fn data(&self, addr: u64) -> Option<&'a [u8]> {
        tail(&self.datas, addr)
    }

    /// Is `addr` in executable code?
    pub fn is_code(&self, addr: u64) -> bool {
        self.text(addr).is_some()
    }

    /// An integer of `bytes.len()` (1, 2, 4 or 8) bytes in the data's byte order.
    pub fn integer(&self, bytes: &[u8]) -> Option<u64> {
        let little = self.arch.data_endian() == Endian::Little;
        match bytes.len() {
            4 => {
                let b = bytes.try_into().ok()?;
                Some(u64::from(if little { u32::from_le_bytes(b) } else { u32::from_be_bytes(b) }))
            }
            8 => {
                let b = bytes.try_into().ok()?;
                Some(if little { u64::from_le_bytes(b) } else { u64::from_be_bytes(b) })
            }
            1 | 2 => Some(crate::field::load(bytes, self.arch.data_endian())),
            _ => None,
        }
    }

    fn scan(&self, watch: &[(u64, u64)]) -> Vec<Raw> {
        let mut watch: Vec<(u64, u64)> = watch.to_vec();
        watch.sort_unstable();
        let lo = self.extents.first().map(|e| e.entry).into_iter().chain(watch.first().map(|w| w.0)).min();
        let hi = self.extents.last().map(|e| e.entry.saturating_add(1));
        let hi = hi.into_iter().chain(watch.iter().map(|w| w.1).max()).max();
        let (Some(lo), Some(hi)) = (lo, hi) else { return Vec::new() };
        // One bit for each 16 bytes of lo..hi says whether a start or a watched range lies there: nearly all of the
        // filter's guesses end here.
        let mut map = Bitmap::new(lo, hi);
        self.extents.iter().for_each(|e| map.set(e.entry, e.entry.saturating_add(1)));
        watch.iter().for_each(|&(from, to)| map.set(from, to));
        let wanted = |to: u64| {
            map.get(to)
                && (self.extents.binary_search_by_key(&to, |e| e.entry).is_ok()
                    || watch.iter().any(|&(from, end)| (from..end).contains(&to)))
        };
        let mut found = Vec::new();
        for &(at, code) in &self.texts {
            self.with_constants(|known| {
                self.arch.scan_branches(code, at, lo, hi, known, &mut |from, to| {
                    if wanted(to) {
                        found.push(Raw { to, from, data: false });
                    }
                });
            });
        }
        let word = usize::from(self.arch.address_bits() / 8).max(4);
        for &(at, bytes) in &self.datas {
            let skip = (at.wrapping_neg() % word as u64) as usize;
            let bytes = bytes.get(skip..).unwrap_or(&[]);
            for (i, w) in bytes.chunks_exact(word).enumerate() {
                if let Some(to) = self.integer(w)
                    && (lo..hi).contains(&to)
                    && wanted(to)
                {
                    found.push(Raw { to, from: at + (skip + i * word) as u64, data: true });
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

struct Bitmap {
    lo: u64,
    hi: u64,
    shift: u32,
    bits: Vec<u64>,
}

impl Bitmap {
    /// A map of at most 1 MiB, whatever the addresses are.
    fn new(lo: u64, hi: u64) -> Bitmap {
        let mut shift = 4;
        while (hi.saturating_sub(lo) >> shift) > 8 << 20 {
            shift += 1;
        }
        let n = (hi.saturating_sub(lo) >> shift) as usize / 64 + 1;
        Bitmap { lo, hi, shift, bits: alloc::vec![0; n] }
    }
    fn set(&mut self, from: u64, to: u64) {
        let (from, to) = (from.max(self.lo), to.min(self.hi));
        if from < to {
            for i in (from - self.lo) >> self.shift..=(to - 1 - self.lo) >> self.shift {
                self.bits[(i / 64) as usize] |= 1 << (i % 64);
            }
        }
    }
    fn get(&self, addr: u64) -> bool {
        if !(self.lo..self.hi).contains(&addr) {
            return false;
        }
        let i = (addr - self.lo) >> self.shift;
        self.bits[(i / 64) as usize] >> (i % 64) & 1 == 1
    }
}

fn tail<'a>(parts: &[(u64, &'a [u8])], addr: u64) -> Option<&'a [u8]> {
    parts.iter().find_map(|&(at, bytes)| {
        let from = usize::try_from(addr.checked_sub(at)?).ok()?;
        (from < bytes.len()).then(|| &bytes[from..])
    })
}

/// The global pointer that the program's code counts on: the value of its symbol, or by the dynamic segment.
fn global_pointer(arch: &dyn Arch, program: &Program<'_>) -> Option<u64> {
    let name = arch.global_pointer_symbol()?;
    let symbol = program.named(name).next().map(|s| s.addr.0);
    symbol.or(program.got.map(|g| g.0.wrapping_add(arch.gp_bias())))
}

/// Sections that are global offset tables; without section headers all that is writable may be one.
fn gots<'a>(program: &'a Program<'a>) -> Parts<'a> {
    let mut out: Parts<'a> = Vec::new();
    for s in &program.sections {
        let named = s.name == ".got" || s.name.starts_with(".got.");
        if named && s.flags & elf::SHF_ALLOC.0 != 0 && !s.data.is_empty() {
            out.push((s.addr.0, s.data));
        }
    }
    if program.sections.is_empty() {
        out.extend(program.segments.iter().filter(|s| s.perm.write && !s.data.is_empty()).map(|s| (s.addr.0, s.data)));
    }
    out
}

/// Loaded parts of the file, by address.
type Parts<'a> = Vec<(u64, &'a [u8])>;

/// Code and data of the program: by sections, or by segments where there are no section headers.
fn split<'a>(program: &'a Program<'a>) -> (Parts<'a>, Parts<'a>) {
    let (mut texts, mut datas) = (Vec::new(), Vec::new());
    for s in &program.sections {
        if s.flags & elf::SHF_ALLOC.0 == 0 || s.kind == elf::SHT_NOBITS.0 || s.data.is_empty() {
            continue;
        }
        if s.flags & elf::SHF_EXECINSTR.0 != 0 {
            texts.push((s.addr.0, s.data));
        } else if s.kind != elf::SHT_DYNSYM.0 && !s.name.starts_with(".eh_frame") && s.name != ".gcc_except_table" {
            datas.push((s.addr.0, s.data));
        }
    }
    if texts.is_empty() {
        datas.clear();
        for s in program.segments.iter().filter(|s| !s.data.is_empty()) {
            if s.perm.exec {
                texts.push((s.addr.0, s.data));
            }
            // Without sections even a code segment may hold tables.
            datas.push((s.addr.0, s.data));
        }
    }
    // What ends past the address space is a lie; all sums below rely on that.
    let sound = |p: &(u64, &[u8])| p.0.checked_add(p.1.len() as u64 + 4096).is_some();
    texts.retain(sound);
    datas.retain(sound);
    (texts, datas)
}

fn extents<'a>(program: &'a Program<'a>, texts: &[(u64, &'a [u8])]) -> Vec<Extent<'a>> {
    let mut out: Vec<Extent<'a>> = Vec::new();
    for symbol in program.functions() {
        let entry = symbol.addr.0;
        let root = symbol.exported
            || matches!(symbol.name, "main" | "_start" | "_init" | "_fini")
            || symbol.addr == program.entry;
        match out.last_mut() {
            Some(last) if last.entry == entry => last.root |= root,
            _ if tail(texts, entry).is_some() => {
                let end = entry.saturating_add(symbol.size);
                out.push(Extent { entry, end, guessed: symbol.size == 0, root, symbol });
            }
            _ => {}
        }
    }
    for i in 0..out.len() {
        if out[i].guessed {
            let limit = tail(texts, out[i].entry).map_or(0, |t| t.len() as u64);
            let limit = out[i].entry.saturating_add(limit);
            out[i].end = out.get(i + 1).map_or(limit, |n| n.entry.min(limit));
        }
    }
    out
}
