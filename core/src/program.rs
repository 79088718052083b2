//! The program to be patched, as it lies on disk.
//!
//! One parse serves the linker (symbols, TLS), the judge (code, functions) and `fix` (identity). Nothing here trusts the
//! file: every offset goes through the `object` crate's bounds checks, and a broken table is an error that names it.

use crate::addr::LinkAddr;
use crate::arch::ElfIdent;
use crate::error::{Class, Explain};
use crate::field::Endian;
use crate::model::Identity;
use crate::target::Perm;
use alloc::{borrow::Cow, collections::BTreeMap, string::String, vec::Vec};
use object::read::elf::{
    Dyn as _, FileHeader, ProgramHeader as _, SectionHeader as _, SectionTable, Sym as _, SymbolTable,
};
use object::{Endianness, FileKind, elf};
use sha2::{Digest as _, Sha256};

/// Why a file can't serve as a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// No ELF magic, or a header that is cut short.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file, but of a kind that is never loaded.
    #[error("an ELF file of type {e_type}, not an executable or shared object")]
    WrongType {
        /// `e_type`
        e_type: u16,
    },
    /// A table of the file is broken or cut short.
    #[error("broken ELF file: {what}: {why}")]
    Broken {
        /// The table.
        what: &'static str,
        /// The parser's words.
        why: String,
    },
    /// A debug file that belongs to another program.
    #[error("the debug file belongs to another program: it has {debug}, the program has {program}")]
    OtherBuild {
        /// Identity of the debug file.
        debug: String,
        /// Identity of the program.
        program: String,
    },
}

impl Explain for ProgramError {
    fn rule(&self) -> &'static str {
        match self {
            ProgramError::NotElf => "not-elf",
            ProgramError::WrongType { .. } => "program-type",
            ProgramError::Broken { .. } => "broken-program",
            ProgramError::OtherBuild { .. } => "debug-file-mismatch",
        }
    }
    fn class(&self) -> Class {
        Class::BadInput
    }
    fn hint(&self) -> Option<&'static str> {
        match self {
            ProgramError::WrongType { .. } => Some("-m takes the linked program; patch objects (.o) come as arguments"),
            ProgramError::Broken { .. } => {
                Some("the file may be truncated or packed; use the file that is really loaded")
            }
            _ => None,
        }
    }
}

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'d> {
    /// Link-time address.
    pub addr: LinkAddr,
    /// Size in memory, bytes.
    pub size: u64,
    /// Contents in the file (shorter than `size` where the rest is zero).
    pub data: &'d [u8],
    /// Rights.
    pub perm: Perm,
}

/// A section header with its contents.
#[derive(Clone, Copy, Debug)]
pub struct Section<'d> {
    /// Name.
    pub name: &'d str,
    /// `sh_type`
    pub kind: u32,
    /// `sh_flags`
    pub flags: u64,
    /// Link-time address (0 for sections that are not loaded).
    pub addr: LinkAddr,
    /// Size, bytes.
    pub size: u64,
    /// Contents (empty for SHT_NOBITS).
    pub data: &'d [u8],
    /// The bytes are compressed (SHF_COMPRESSED).
    pub compressed: bool,
}

/// What a symbol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// STT_FUNC
    Function,
    /// STT_GNU_IFUNC: the value is a resolver's address.
    Ifunc,
    /// STT_OBJECT or STT_COMMON
    Object,
    /// STT_TLS: the value is an offset in the TLS segment.
    Tls,
    /// STT_NOTYPE
    Untyped,
}

/// Binding of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// STB_LOCAL
    Local,
    /// STB_GLOBAL and STB_GNU_UNIQUE
    Global,
    /// STB_WEAK
    Weak,
}

/// A symbol that the program defines.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'d> {
    /// Name, without a version suffix.
    pub name: &'d str,
    /// Its value: a link-time address, or the offset in the TLS segment for [`SymbolKind::Tls`].
    pub addr: LinkAddr,
    /// Size, bytes (0: unknown).
    pub size: u64,
    /// What it names.
    pub kind: SymbolKind,
    /// Binding.
    pub binding: Binding,
    /// `st_other`
    pub other: u8,
    /// The STT_FILE symbol before it, for local symbols.
    pub file: Option<&'d str>,
    /// From the dynamic symbol table (visible to other modules).
    pub exported: bool,
    /// Lies in a section without contents in the file (.bss).
    pub zero_initialized: bool,
    /// SHN_ABS: the value is a number, which no load bias changes.
    pub absolute: bool,
}

impl Symbol<'_> {
    /// A function or IFUNC.
    #[must_use]
    pub fn is_function(&self) -> bool {
        matches!(self.kind, SymbolKind::Function | SymbolKind::Ifunc)
    }
}

/// The PT_TLS segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Size in memory, bytes.
    pub size: u64,
    /// Alignment, bytes.
    pub align: u64,
}

/// Where debug information comes from (DWARF), uncompressed; missing sections are empty.
#[derive(Clone, Debug, Default)]
pub struct DebugInfo<'d> {
    /// Section contents by name, such as `.debug_info`.
    pub sections: BTreeMap<String, Cow<'d, [u8]>>,
}

/// A parsed program.
#[derive(Clone, Debug)]
pub struct Program<'d> {
    /// Class, order, machine, flags.
    pub ident: ElfIdent,
    /// Loaded at the addresses in the file (ET_EXEC).
    pub fixed: bool,
    /// A shared library rather than an executable.
    pub library: bool,
    /// Goes through the dynamic loader: imports are possible.
    pub dynamic: bool,
    /// Entry point.
    pub entry: LinkAddr,
    /// How a running copy is recognised.
    pub identity: Identity,
    /// PT_LOAD segments, in file order.
    pub segments: Vec<Segment<'d>>,
    /// All sections, in file order (none in a program without section headers).
    pub sections: Vec<Section<'d>>,
    /// Defined symbols: `.symtab` first, then those that only `.dynsym` has.
    pub symbols: Vec<Symbol<'d>>,
    /// Names that the program itself imports.
    pub undefined: Vec<&'d str>,
    /// Static TLS of an executable, or of a library.
    pub tls: Option<Tls>,
    /// Contents of its notes of properties, or empty (`.note.gnu.property`).
    pub properties: &'d [u8],
    /// DT_PLTGOT: its global offset table, where the dynamic segment says.
    pub got: Option<LinkAddr>,
    /// Has `.symtab` (its own or from a debug file).
    pub has_symtab: bool,
    /// DWARF, where the caller attached it with [`Program::attach_debug_info`].
    pub debug: DebugInfo<'d>,
    by_name: NameIndex,
    functions: Vec<u32>,
}

fn broken(what: &'static str) -> impl Fn(object::read::Error) -> ProgramError {
    move |e| ProgramError::Broken { what, why: alloc::format!("{e}") }
}

impl<'d> Program<'d> {
    /// Parses an executable or shared object.
    ///
    /// # Errors
    /// [`ProgramError`]
    pub fn parse(data: &'d [u8]) -> Result<Program<'d>, ProgramError> {
        match FileKind::parse(data) {
            Ok(FileKind::Elf32) => Self::parse_as::<elf::FileHeader32<Endianness>>(data),
            Ok(FileKind::Elf64) => Self::parse_as::<elf::FileHeader64<Endianness>>(data),
            _ => Err(ProgramError::NotElf),
        }
    }

    fn parse_as<H: FileHeader<Endian = Endianness>>(data: &'d [u8]) -> Result<Program<'d>, ProgramError> {
        let header = H::parse(data).map_err(|_| ProgramError::NotElf)?;
        let endian = header.endian().map_err(|_| ProgramError::NotElf)?;
        let e_type = header.e_type(endian);
        if e_type != elf::ET_EXEC && e_type != elf::ET_DYN {
            return Err(ProgramError::WrongType { e_type: e_type.0 });
        }
        let ident = elf_ident(header, endian);

        let mut segments = Vec::new();
        let mut properties = None;
        let (mut tls, mut got, mut dynamic, mut interp, mut pie) = (None, None, false, false, false);
        for ph in header.program_headers(endian, data).map_err(broken("program headers"))? {
            let p_type = ph.p_type(endian);
            if p_type == elf::PT_LOAD {
                let flags = ph.p_flags(endian);
                let bytes = ph.data(endian, data).map_err(|()| ProgramError::Broken {
                    what: "program headers",
                    why: alloc::format!("segment at {:#x} lies outside the file", ph.p_vaddr(endian).into()),
                })?;
                segments.push(Segment {
                    addr: LinkAddr(ph.p_vaddr(endian).into()),
                    size: ph.p_memsz(endian).into(),
                    data: bytes,
                    perm: Perm {
                        read: flags.contains(elf::PF_R),
                        write: flags.contains(elf::PF_W),
                        exec: flags.contains(elf::PF_X),
                    },
                });
            } else if p_type == elf::PT_TLS {
                tls = Some(Tls { size: ph.p_memsz(endian).into(), align: ph.p_align(endian).into() });
            } else if p_type == elf::PT_GNU_PROPERTY {
                properties = ph.data(endian, data).ok();
            } else if p_type == elf::PT_INTERP {
                interp = true;
            } else if p_type == elf::PT_DYNAMIC {
                dynamic = true;
                if let Ok(Some(entries)) = ph.dynamic(endian, data) {
                    pie = entries
                        .iter()
                        .any(|d| d.tag(endian) == elf::DT_FLAGS_1 && d.val(endian) & elf::DF_1_PIE.0 != 0);
                    let table = entries.iter().find(|d| d.tag(endian) == elf::DT_PLTGOT);
                    got = table.map(|d| LinkAddr(d.val(endian)));
                }
            }
        }

        let table = header.sections(endian, data).map_err(broken("section headers"))?;
        let sections = read_sections(&table, endian, data)?;
        let properties = sections.iter().find(|s| s.name == ".note.gnu.property").map(|s| s.data).or(properties);
        let properties = properties.unwrap_or(&[]);
        let build_id = find_build_id::<H>(header, endian, data, &table);
        let identity = match build_id {
            Some(id) => Identity::BuildId(id.to_vec()),
            None => Identity::Sha256(Sha256::digest(data).into()),
        };

        let mut program = Program {
            ident,
            fixed: e_type == elf::ET_EXEC,
            library: e_type == elf::ET_DYN && !interp && !pie,
            // A static PIE has a dynamic segment too, for its own start-up code.
            dynamic: dynamic && (interp || !pie),
            entry: LinkAddr(header.e_entry(endian).into()),
            identity,
            segments,
            sections,
            symbols: Vec::new(),
            undefined: Vec::new(),
            tls,
            properties,
            got,
            has_symtab: false,
            debug: DebugInfo::default(),
            by_name: NameIndex::default(),
            functions: Vec::new(),
        };
        program.add_symbols(&table, endian, data)?;
        program.index();
        Ok(program)
    }

    /// Adds the symbols of a separate debug file (same build-id). Its DWARF is attached separately, by
    /// [`Program::attach_debug_info`], since it may have to be decompressed.
    ///
    /// # Errors
    /// [`ProgramError`], also where the two do not belong together.
    pub fn add_debug_file(&mut self, data: &'d [u8]) -> Result<(), ProgramError> {
        match FileKind::parse(data) {
            Ok(FileKind::Elf32) => self.add_debug_file_as::<elf::FileHeader32<Endianness>>(data),
            Ok(FileKind::Elf64) => self.add_debug_file_as::<elf::FileHeader64<Endianness>>(data),
            _ => Err(ProgramError::NotElf),
        }
    }

    fn add_debug_file_as<H: FileHeader<Endian = Endianness>>(&mut self, data: &'d [u8]) -> Result<(), ProgramError> {
        let header = H::parse(data).map_err(|_| ProgramError::NotElf)?;
        let endian = header.endian().map_err(|_| ProgramError::NotElf)?;
        let table = header.sections(endian, data).map_err(broken("section headers of the debug file"))?;
        let id = find_build_id::<H>(header, endian, data, &table).map(|b| Identity::BuildId(b.to_vec()));
        if let (Identity::BuildId(_), Some(debug)) = (&self.identity, &id)
            && *debug != self.identity
        {
            return Err(ProgramError::OtherBuild {
                debug: alloc::format!("{debug}"),
                program: alloc::format!("{}", self.identity),
            });
        }
        if !self.has_symtab {
            let exported = core::mem::take(&mut self.symbols);
            self.add_symbols(&table, endian, data)?;
            merge_exported(&mut self.symbols, exported);
            self.index();
        }
        Ok(())
    }

    /// Attaches uncompressed DWARF sections.
    pub fn attach_debug_info(&mut self, debug: DebugInfo<'d>) {
        self.debug = debug;
    }

    fn add_symbols<H: FileHeader<Endian = Endianness>>(
        &mut self,
        table: &SectionTable<'d, H>,
        endian: Endianness,
        data: &'d [u8],
    ) -> Result<(), ProgramError> {
        let symtab = table.symbols(endian, data, elf::SHT_SYMTAB).map_err(broken(".symtab"))?;
        let dynsym = table.symbols(endian, data, elf::SHT_DYNSYM).map_err(broken(".dynsym"))?;
        self.has_symtab |= !symtab.is_empty();
        let mut undefined = Vec::new();
        self.symbols = read_symbols(&symtab, table, endian, false, &mut undefined)?;
        let exported = read_symbols(&dynsym, table, endian, true, &mut undefined)?;
        merge_exported(&mut self.symbols, exported);
        undefined.sort_unstable();
        undefined.dedup();
        if !undefined.is_empty() {
            self.undefined = undefined;
        }
        Ok(())
    }

    fn index(&mut self) {
        self.by_name = NameIndex::new(&self.symbols);
        let functions = self.symbols.iter().enumerate().filter(|(_, s)| s.is_function() && s.addr.0 != 0);
        // Of several names for one address the one with a size, then the global one comes first.
        let mut keyed: Vec<(u64, u8, u32)> = functions
            .map(|(i, s)| (s.addr.0, u8::from(s.size == 0) << 1 | u8::from(s.binding == Binding::Local), i as u32))
            .collect();
        keyed.sort_unstable();
        self.functions = keyed.into_iter().map(|k| k.2).collect();
    }

    /// All definitions of `name`.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Symbol<'d>> + '_ {
        self.by_name.named(&self.symbols, name).map(|i| &self.symbols[i])
    }

    /// All function symbols, ascending by address.
    pub fn functions(&self) -> impl DoubleEndedIterator<Item = &Symbol<'d>> + '_ {
        self.functions.iter().map(|&i| &self.symbols[i as usize])
    }

    /// The function whose body holds `addr` (by symbol size).
    #[must_use]
    pub fn function_at(&self, addr: LinkAddr) -> Option<&Symbol<'d>> {
        let end = self.functions.partition_point(|&i| self.symbols[i as usize].addr <= addr);
        let start = self.functions[..end].last().map(|&i| self.symbols[i as usize].addr)?;
        let first = self.functions[..end].partition_point(|&i| self.symbols[i as usize].addr < start);
        let s = &self.symbols[self.functions[first] as usize];
        (addr.0 - s.addr.0 < s.size.max(1)).then_some(s)
    }

    /// The address of the first function symbol after `addr`, or the end of the segment.
    #[must_use]
    pub fn next_function(&self, addr: LinkAddr) -> Option<LinkAddr> {
        let next = self.functions.partition_point(|&i| self.symbols[i as usize].addr <= addr);
        let end = self.segment_at(addr).map(|s| s.addr.offset(s.data.len() as u64));
        let function = self.functions.get(next).map(|&i| self.symbols[i as usize].addr);
        match (function, end) {
            (Some(f), Some(e)) => Some(f.min(e)),
            (f, e) => f.or(e),
        }
    }

    /// The segment that holds `addr` in memory.
    #[must_use]
    pub fn segment_at(&self, addr: LinkAddr) -> Option<&Segment<'d>> {
        self.segments.iter().find(|s| addr >= s.addr && addr.0 - s.addr.0 < s.size)
    }

    /// `len` bytes of file contents at `addr`, or `None` where the file does not hold all of them.
    #[must_use]
    pub fn bytes(&self, addr: LinkAddr, len: u64) -> Option<&'d [u8]> {
        let s = self.segment_at(addr)?;
        let from = usize::try_from(addr.0 - s.addr.0).ok()?;
        let to = from.checked_add(usize::try_from(len).ok()?)?;
        s.data.get(from..to)
    }

    /// The section named `name`.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section<'d>> {
        self.sections.iter().find(|s| s.name == name)
    }
}

/// Class, order, machine and flags of any ELF file.
///
/// # Errors
/// [`ProgramError::NotElf`]
pub fn ident_of(data: &[u8]) -> Result<ElfIdent, ProgramError> {
    fn of<H: FileHeader<Endian = Endianness>>(data: &[u8]) -> Result<ElfIdent, ProgramError> {
        let header = H::parse(data).map_err(|_| ProgramError::NotElf)?;
        Ok(elf_ident(header, header.endian().map_err(|_| ProgramError::NotElf)?))
    }
    match FileKind::parse(data) {
        Ok(FileKind::Elf32) => of::<elf::FileHeader32<Endianness>>(data),
        Ok(FileKind::Elf64) => of::<elf::FileHeader64<Endianness>>(data),
        _ => Err(ProgramError::NotElf),
    }
}

pub(crate) fn elf_ident<H: FileHeader<Endian = Endianness>>(header: &H, endian: Endianness) -> ElfIdent {
    ElfIdent {
        is_64: header.is_class_64(),
        endian: if endian == Endianness::Big { Endian::Big } else { Endian::Little },
        machine: header.e_machine(endian).0,
        flags: header.e_flags(endian).0,
    }
}

fn read_sections<'d, H: FileHeader<Endian = Endianness>>(
    table: &SectionTable<'d, H>,
    endian: Endianness,
    data: &'d [u8],
) -> Result<Vec<Section<'d>>, ProgramError> {
    let mut out = Vec::new();
    for sh in table.iter() {
        let name = table.section_name(endian, sh).map_err(broken("section names"))?;
        let flags = sh.sh_flags(endian).0;
        out.push(Section {
            name: core::str::from_utf8(name).unwrap_or(""),
            kind: sh.sh_type(endian).0,
            flags,
            addr: LinkAddr(sh.sh_addr(endian).into()),
            size: sh.sh_size(endian).into(),
            // Debug files keep headers of sections whose contents stayed in the program.
            data: sh.data(endian, data).unwrap_or(&[]),
            compressed: flags & elf::SHF_COMPRESSED.0 != 0,
        });
    }
    Ok(out)
}

fn find_build_id<'d, H: FileHeader<Endian = Endianness>>(
    header: &H,
    endian: Endianness,
    data: &'d [u8],
    table: &SectionTable<'d, H>,
) -> Option<&'d [u8]> {
    let is_build_id =
        |n: &object::read::elf::Note<'d, H>| n.name() == elf::ELF_NOTE_GNU && n.n_type(endian) == elf::NT_GNU_BUILD_ID;
    for ph in header.program_headers(endian, data).ok()? {
        if let Ok(Some(mut notes)) = ph.notes(endian, data) {
            while let Ok(Some(n)) = notes.next() {
                if is_build_id(&n) && !n.desc().is_empty() {
                    return Some(n.desc());
                }
            }
        }
    }
    for sh in table.iter() {
        if let Ok(Some(mut notes)) = sh.notes(endian, data) {
            while let Ok(Some(n)) = notes.next() {
                if is_build_id(&n) && !n.desc().is_empty() {
                    return Some(n.desc());
                }
            }
        }
    }
    None
}

fn read_symbols<'d, H: FileHeader<Endian = Endianness>>(
    symbols: &SymbolTable<'d, H>,
    table: &SectionTable<'d, H>,
    endian: Endianness,
    exported: bool,
    undefined: &mut Vec<&'d str>,
) -> Result<Vec<Symbol<'d>>, ProgramError> {
    let mut out = Vec::new();
    let mut file = None;
    for sym in symbols.iter() {
        let Ok(name) = sym.name(endian, symbols.strings()) else {
            return Err(ProgramError::Broken { what: "symbol names", why: String::from("offset outside the table") });
        };
        let Ok(name) = core::str::from_utf8(name) else { continue };
        let kind = match sym.st_type() {
            elf::STT_FILE => {
                file = Some(name);
                continue;
            }
            elf::STT_FUNC => SymbolKind::Function,
            elf::STT_GNU_IFUNC => SymbolKind::Ifunc,
            elf::STT_OBJECT | elf::STT_COMMON => SymbolKind::Object,
            elf::STT_TLS => SymbolKind::Tls,
            elf::STT_NOTYPE => SymbolKind::Untyped,
            _ => continue,
        };
        // Linkers write a default version as name@@VERSION into .symtab.
        let name = name.split_once('@').map_or(name, |(n, _)| n);
        if name.is_empty() {
            continue;
        }
        let shndx = sym.st_shndx(endian);
        if shndx == elf::SHN_UNDEF {
            undefined.push(name);
            continue;
        }
        let binding = match sym.st_bind() {
            elf::STB_LOCAL => Binding::Local,
            elf::STB_WEAK => Binding::Weak,
            _ => Binding::Global,
        };
        let zero_initialized = table
            .section(object::SectionIndex(usize::from(shndx.0)))
            .is_ok_and(|sh| sh.sh_type(endian) == elf::SHT_NOBITS);
        out.push(Symbol {
            name,
            addr: LinkAddr(sym.st_value(endian).into()),
            size: sym.st_size(endian).into(),
            kind,
            binding,
            other: sym.st_other().0,
            file: if binding == Binding::Local { file } else { None },
            exported,
            zero_initialized,
            absolute: shndx == elf::SHN_ABS,
        });
    }
    Ok(out)
}

/// Marks what `.dynsym` has too, and appends what only `.dynsym` has.
fn merge_exported<'d>(symbols: &mut Vec<Symbol<'d>>, exported: Vec<Symbol<'d>>) {
    if exported.is_empty() {
        return;
    }
    let known = NameIndex::new(symbols);
    for e in exported {
        match known.named(symbols, e.name).filter(|&i| symbols[i].addr == e.addr).last() {
            Some(i) => symbols[i].exported = true,
            None => symbols.push(e),
        }
    }
}

/// Symbols by name: a hash table with chains, since most of a large program's names are never asked for.
#[derive(Clone, Debug, Default)]
struct NameIndex {
    /// By hash: the first symbol of a chain, plus 1.
    heads: Vec<u32>,
    /// By symbol: the next one of its chain, plus 1; and its hash.
    links: Vec<(u32, u32)>,
}

impl NameIndex {
    fn new(symbols: &[Symbol<'_>]) -> NameIndex {
        let mask = symbols.len().next_power_of_two() - 1;
        let mut heads = alloc::vec![0; mask + 1];
        let mut links = alloc::vec![(0, 0); symbols.len()];
        // The last one first: chains are then in the symbols' order.
        for (i, (s, link)) in symbols.iter().zip(&mut links).enumerate().rev() {
            let hash = Self::hash(s.name);
            let head = &mut heads[hash as usize & mask];
            *link = (*head, hash);
            *head = i as u32 + 1;
        }
        NameIndex { heads, links }
    }

    /// Indices of the symbols of that name, ascending; `symbols` begins with those that were indexed.
    fn named<'s>(&'s self, symbols: &'s [Symbol<'_>], name: &str) -> impl Iterator<Item = usize> + use<'s> {
        let hash = Self::hash(name);
        let mask = self.heads.len().wrapping_sub(1);
        let next = move |link: u32, name: &str| {
            let mut at = link.checked_sub(1)? as usize;
            loop {
                let (link, own) = *self.links.get(at)?;
                if own == hash && symbols.get(at)?.name == name {
                    return Some(at);
                }
                at = link.checked_sub(1)? as usize;
            }
        };
        let first = self.heads.get(hash as usize & mask).and_then(|&head| next(head, name));
        core::iter::successors(first, move |&i| next(self.links[i].0, symbols[i].name))
    }

    /// FNV-1a, with the upper bits folded into those that pick the chain.
    fn hash(name: &str) -> u32 {
        let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        hash ^ hash >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::{Binding, LinkAddr, NameIndex, Symbol, SymbolKind, merge_exported};
    use alloc::{format, string::String, vec::Vec};

    fn symbol(name: &str, addr: u64, exported: bool) -> Symbol<'_> {
        Symbol {
            name,
            addr: LinkAddr(addr),
            size: 4,
            kind: SymbolKind::Function,
            binding: Binding::Global,
            other: 0,
            file: None,
            exported,
            zero_initialized: false,
            absolute: false,
        }
    }

    #[test]
    fn symbols_are_found_by_name_in_their_order() {
        let names: Vec<String> = (0..500).map(|i| format!("f{}", i % 200)).collect();
        let symbols: Vec<Symbol<'_>> = names.iter().zip(0..).map(|(n, at)| symbol(n, at, false)).collect();
        let index = NameIndex::new(&symbols);
        for name in names.iter().map(String::as_str).chain(["", "f200"]) {
            let plain: Vec<usize> = (0..symbols.len()).filter(|&i| symbols[i].name == name).collect();
            assert_eq!(index.named(&symbols, name).collect::<Vec<_>>(), plain, "{name}");
        }
        assert_eq!(NameIndex::default().named(&[], "f").count(), 0);
        assert_eq!(NameIndex::new(&[]).named(&[], "f").count(), 0);
    }

    #[test]
    fn exported_symbols_are_marked_or_added() {
        let mut symbols = Vec::from([symbol("a", 16, false), symbol("b", 32, false), symbol("a", 48, false)]);
        merge_exported(&mut symbols, Vec::from([symbol("a", 48, true), symbol("b", 64, true)]));
        let found: Vec<(&str, u64, bool)> = symbols.iter().map(|s| (s.name, s.addr.0, s.exported)).collect();
        assert_eq!(found, [("a", 16, false), ("b", 32, false), ("a", 48, true), ("b", 64, true)]);
    }
}
