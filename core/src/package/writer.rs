//! Writes a package.

use super::format::{self, RInfo, bind, info, note};
use super::reader::{seal, st_info, undefined_binding};
use super::{Head, IdentityRef, PackageError, Ranges, RangesIn, SiteRef, SpanRef, SymbolRef, View, check};
use crate::arch::ElfIdent;
use crate::field::Endian;
use crate::model::{Identity, Package, PackageSymbol, Referent, Residue};
use alloc::string::String;
use alloc::{format, vec, vec::Vec};
use object::write::elf::{Encoder, FileHeader, ProgramHeader, Rel, SectionHeader, SectionIndex, Sym, Writer};
use object::{Endianness, elf};

impl View for Package {
    fn head(&self) -> Head<'_> {
        Head {
            ident: self.ident,
            name: &self.name,
            version: &self.version,
            description: &self.description,
            program: &self.program.file,
            identity: match &self.program.identity {
                Identity::BuildId(id) => IdentityRef::BuildId(id),
                Identity::Sha256(digest) => IdentityRef::Sha256(digest),
            },
            fixed: self.program.fixed,
            base: self.base,
            page_size: self.page_size,
            guarded: self.guarded,
            eh_frame: self.eh_frame,
            trap: self.trap,
        }
    }
    fn spans(&self) -> impl Iterator<Item = SpanRef<'_>> {
        self.spans.iter().map(|s| SpanRef { perm: s.perm, offset: s.offset, size: s.size, data: &s.data })
    }
    fn symbols(&self) -> impl Iterator<Item = SymbolRef<'_>> {
        self.symbols.iter().map(|s| SymbolRef {
            name: &s.name,
            referent: s.referent.clone(),
            size: s.size,
            function: s.function,
            global: s.global,
        })
    }
    fn residue(&self) -> impl Iterator<Item = Residue> {
        self.residue.iter().copied()
    }
    fn sites(&self) -> impl Iterator<Item = SiteRef<'_>> {
        self.sites.iter().map(|s| SiteRef {
            old: &s.old,
            new: &s.new,
            entry: s.entry,
            pad: s.pad,
            window: s.window,
            expected: &s.expected,
            body: Ranges(RangesIn::Values(&s.body)),
            new_offset: s.new_offset,
            landing: s.landing,
            own_address: s.own_address,
        })
    }
    fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(String::as_str)
    }
}

/// Where a symbol stands in the symbol table: image-local, image-global, undefined.
fn rank(symbol: &PackageSymbol) -> u8 {
    match (&symbol.referent, symbol.global) {
        (Referent::Image(_), false) => 0,
        (Referent::Image(_), true) => 1,
        _ => 2,
    }
}

/// The order in which the symbols are stored, as indices into `symbols`.
fn symbol_order(symbols: &[PackageSymbol]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..symbols.len()).collect();
    order.sort_by_key(|i| rank(&symbols[*i])); // stable
    order
}

/// Brings the symbols into the order in which a package stores them (local ones of the image, global ones of the image,
/// all others; otherwise as they were) and makes the residue refer to their new places.
///
/// [`write()`] does so by itself; after this, reading back gives an equal value.
pub fn normalize(pkg: &mut Package) {
    let order = symbol_order(&pkg.symbols);
    let mut place = vec![0u32; order.len()];
    for (new, old) in order.iter().enumerate() {
        place[*old] = new as u32;
    }
    pkg.symbols = order.iter().map(|i| pkg.symbols[*i].clone()).collect();
    for r in &mut pkg.residue {
        // An index out of bounds stays out of bounds.
        r.symbol = place.get(r.symbol as usize).copied().unwrap_or(r.symbol);
    }
}

/// Makes the bytes of a `.tfp` file.
///
/// The same package gives the same bytes. Symbols are stored in the order that [`normalize`] gives them.
///
/// # Errors
/// [`PackageError`] for the first rule of the format that the package breaks.
pub fn write(pkg: &Package) -> Result<Vec<u8>, PackageError> {
    check::check(pkg)?;
    let mut file = Layout::new(pkg)?.emit()?;
    seal(&mut file)?;
    Ok(file)
}

/// How the ELF tools expect `r_info` for this machine: asked of the ELF library by encoding one relocation, so that no
/// machine is named here.
fn rinfo(ident: ElfIdent) -> RInfo {
    let rel = Rel { r_offset: 0, r_sym: 1, r_type: elf::RelocationType(2), r_addend: 0 };
    let encode = |machine| {
        let mut bytes = Vec::new();
        Encoder::new(endianness(ident), ident.is_64, elf::Machine(machine)).relocation(&mut bytes, true, &rel);
        bytes
    };
    if encode(ident.machine) == encode(elf::EM_NONE.0) { RInfo::Plain } else { RInfo::Split }
}

fn endianness(ident: ElfIdent) -> Endianness {
    match ident.endian {
        Endian::Little => Endianness::Little,
        Endian::Big => Endianness::Big,
    }
}

/// Appends fixed-width integers in the file's byte order.
struct Records {
    bytes: Vec<u8>,
    endian: Endian,
}

impl Records {
    fn new(endian: Endian) -> Records {
        Records { bytes: Vec::new(), endian }
    }
    fn u8(&mut self, v: u8) -> &mut Self {
        self.bytes.push(v);
        self
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.put(v.to_le_bytes())
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.put(v.to_le_bytes())
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.put(v.to_le_bytes())
    }
    fn reference(&mut self, (offset, len): (u32, u32)) -> &mut Self {
        self.u32(offset).u32(len)
    }
    fn put<const N: usize>(&mut self, mut little: [u8; N]) -> &mut Self {
        if self.endian == Endian::Big {
            little.reverse();
        }
        self.bytes.extend_from_slice(&little);
        self
    }
}

/// The blob under construction.
struct Blob(Vec<u8>);

impl Blob {
    fn add(&mut self, bytes: &[u8]) -> Result<(u32, u32), PackageError> {
        let place = (narrow("texts and byte strings", self.0.len())?, narrow("a text or byte string", bytes.len())?);
        self.0.extend_from_slice(bytes);
        narrow("texts and byte strings", self.0.len())?;
        Ok(place)
    }
}

fn narrow(what: &'static str, value: usize) -> Result<u32, PackageError> {
    u32::try_from(value).map_err(|_| PackageError::TooLarge { what, value: value as u64, limit: u32::MAX.into() })
}

/// A section that shows (a part of) a span to the ELF tools.
struct Shown {
    name: String,
    span: usize,
    /// The bytes of the span that the file has, or the zeros behind them.
    filled: bool,
}

/// Contents of all record sections.
struct Layout<'a> {
    pkg: &'a Package,
    /// Symbols in file order, as indices into the package's.
    order: Vec<usize>,
    shown: Vec<Shown>,
    note: Vec<u8>,
    info: Vec<u8>,
    sites: Vec<u8>,
    ranges: Vec<u8>,
    bind: Vec<u8>,
    warnings: Vec<u8>,
    blob: Vec<u8>,
}

impl<'a> Layout<'a> {
    fn new(pkg: &'a Package) -> Result<Layout<'a>, PackageError> {
        let endian = pkg.ident.endian;
        let mut blob = Blob(Vec::new());

        let mut note = Records::new(endian);
        note.u32(5).u32(note::DIGEST_SIZE as u32).u32(format::VERSION);
        note.bytes.extend_from_slice(&note::NAME_BYTES);
        note.bytes.extend_from_slice(&[0; note::DIGEST_SIZE]);

        let (identity_kind, identity): (u32, &[u8]) = match &pkg.program.identity {
            Identity::BuildId(id) => (info::IDENTITY_BUILD_ID, id),
            Identity::Sha256(digest) => (info::IDENTITY_SHA256, digest),
        };
        let flag = |on, bit| if on { bit } else { 0 };
        let flags = flag(pkg.program.fixed, info::FLAG_FIXED)
            | flag(pkg.base.is_some(), info::FLAG_BASE)
            | flag(pkg.eh_frame.is_some(), info::FLAG_EH_FRAME)
            | flag(pkg.guarded, info::FLAG_GUARDED);
        let (eh_frame, eh_frame_size) = pkg.eh_frame.unwrap_or((0, 0));
        let mut head = Records::new(endian);
        head.u32(flags).u32(if rinfo(pkg.ident) == RInfo::Split { info::RINFO_SPLIT } else { 0 });
        head.u64(pkg.base.unwrap_or(0)).u64(pkg.page_size).u64(pkg.trap).u64(eh_frame).u64(eh_frame_size);
        for text in [&pkg.name, &pkg.version, &pkg.description, &pkg.program.file] {
            head.reference(blob.add(text.as_bytes())?);
        }
        head.reference(blob.add(identity)?).u32(identity_kind).u32(0);

        let mut sites = Records::new(endian);
        let mut ranges = Records::new(endian);
        let mut parts = 0u32;
        for site in &pkg.sites {
            let count = narrow("number of body parts", site.body.len())?;
            sites.u64(site.entry.0).u64(site.new_offset).u64(site.landing);
            sites.reference(blob.add(site.old.as_bytes())?);
            sites.reference(blob.add(site.new.as_bytes())?);
            sites.reference(blob.add(&site.expected)?);
            let flags = if site.own_address { format::site::FLAG_OWN_ADDRESS } else { 0 };
            sites.u32(parts).u32(count).u8(site.pad).u8(site.window).u16(flags).u32(0);
            for (start, size) in &site.body {
                ranges.u64(start.0).u64(*size);
            }
            parts = narrow("number of body parts", parts as usize + count as usize)?;
        }

        let order = symbol_order(&pkg.symbols);
        let mut bind = Records::new(endian);
        for (index, symbol) in order.iter().map(|i| &pkg.symbols[*i]).enumerate() {
            let (kind, address) = match &symbol.referent {
                Referent::Image(_) => continue,
                Referent::Program(at) => (bind::KIND_PROGRAM, at.0),
                Referent::ProgramIfunc(at) => (bind::KIND_PROGRAM_IFUNC, at.0),
                Referent::Import { weak: false } => (bind::KIND_IMPORT, 0),
                Referent::Import { weak: true } => (bind::KIND_WEAK_IMPORT, 0),
            };
            let flags = flag(symbol.function, bind::FLAG_FUNCTION) | flag(symbol.global, bind::FLAG_GLOBAL);
            bind.u32(index as u32 + 1).u32(kind).u64(address).u64(symbol.size).u32(flags).u32(0);
        }

        let mut warnings = Records::new(endian);
        for text in &pkg.warnings {
            warnings.reference(blob.add(text.as_bytes())?);
        }

        Ok(Layout {
            pkg,
            order,
            shown: shown(pkg),
            note: note.bytes,
            info: head.bytes,
            sites: sites.bytes,
            ranges: ranges.bytes,
            bind: bind.bytes,
            warnings: warnings.bytes,
            blob: blob.0,
        })
    }

    /// Index in `shown` of the section for an image offset: the one that holds it, else the one that ends there.
    fn section_of(&self, offset: u64) -> Option<usize> {
        let bounds = |s: &Shown| {
            let span = &self.pkg.spans[s.span];
            let filled = span.data.len() as u64;
            if s.filled { (span.offset, span.offset + filled) } else { (span.offset + filled, span.offset + span.size) }
        };
        let holds = |s: &Shown| bounds(s).0 <= offset && offset < bounds(s).1;
        self.shown.iter().position(holds).or_else(|| self.shown.iter().position(|s| bounds(s).1 == offset))
    }

    /// Writes the file, without its digest.
    fn emit(&self) -> Result<Vec<u8>, PackageError> {
        let pkg = self.pkg;
        let base = pkg.base.unwrap_or(0);
        let mut out = Vec::new();
        let mut w = Writer::new(endianness(pkg.ident), pkg.ident.is_64, &mut out);

        // First all places...
        w.reserve_file_header();
        w.reserve_program_headers(pkg.spans.len() as u32 + 1);
        let span_at: Vec<u64> = pkg.spans.iter().map(|s| w.reserve(s.data.len() as u64, pkg.page_size)).collect();
        let note_at = w.reserve(self.note.len() as u64, 4);
        let plain = [
            (format::INFO, &self.info, 8),
            (format::SITES, &self.sites, 8),
            (format::RANGES, &self.ranges, 8),
            (format::BIND, &self.bind, 8),
            (format::WARNINGS, &self.warnings, 8),
            (format::BLOB, &self.blob, 1),
        ];
        let plain_at = plain.map(|(_, bytes, align)| w.reserve(bytes.len() as u64, align));
        let rela_at = w.reserve_relocations(pkg.residue.len(), true);

        w.reserve_null_section_index();
        let shown: Vec<(SectionIndex, _)> =
            self.shown.iter().map(|s| (w.reserve_section_index(), w.add_section_name(s.name.as_bytes()))).collect();
        w.reserve_section_index();
        let note_name = w.add_section_name(format::NOTE.as_bytes());
        let plain_name = plain.map(|(name, ..)| {
            w.reserve_section_index();
            w.add_section_name(name.as_bytes())
        });
        w.reserve_section_index();
        let rela_name = w.add_section_name(format::RELA.as_bytes());
        let symtab = w.reserve_symtab_section_index();
        w.reserve_strtab_section_index();
        w.reserve_shstrtab_section_index();

        w.reserve_null_symbol_index();
        let mut symbols = Vec::new();
        for symbol in self.order.iter().map(|i| &pkg.symbols[*i]) {
            let section = match symbol.referent {
                Referent::Image(offset) => self.section_of(offset).map(|i| shown[i].0),
                _ => None,
            };
            w.reserve_symbol_index(section);
            let name = if symbol.name.is_empty() { None } else { Some(w.add_string(symbol.name.as_bytes())) };
            symbols.push((symbol, section, name));
        }
        let too_large = |_| PackageError::TooLarge {
            what: "string tables or file",
            value: u64::from(u32::MAX) + 1,
            limit: u32::MAX.into(),
        };
        w.reserve_symtab();
        w.reserve_strtab().map_err(too_large)?;
        w.reserve_shstrtab().map_err(too_large)?;
        w.reserve_section_headers();

        // ...then the contents, in the same order.
        w.write_file_header(&FileHeader {
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            e_type: elf::ET_DYN,
            e_machine: elf::Machine(pkg.ident.machine),
            e_entry: 0,
            e_flags: elf::FileFlags(pkg.ident.flags),
        })
        .map_err(too_large)?;
        w.write_align_program_headers();
        for (span, at) in pkg.spans.iter().zip(&span_at) {
            let mut flags = 0;
            for (on, bit) in [(span.perm.read, elf::PF_R), (span.perm.write, elf::PF_W), (span.perm.exec, elf::PF_X)] {
                flags |= if on { bit.0 } else { 0 };
            }
            w.write_program_header(&ProgramHeader {
                p_type: elf::PT_LOAD,
                p_flags: elf::ProgramFlags(flags),
                p_offset: *at,
                p_vaddr: base + span.offset,
                p_paddr: base + span.offset,
                p_filesz: span.data.len() as u64,
                p_memsz: span.size,
                p_align: pkg.page_size,
            });
        }
        w.write_program_header(&ProgramHeader {
            p_type: elf::PT_NOTE,
            p_flags: elf::PF_R,
            p_offset: note_at,
            p_vaddr: 0,
            p_paddr: 0,
            p_filesz: self.note.len() as u64,
            p_memsz: 0,
            p_align: 4,
        });
        for (span, at) in pkg.spans.iter().zip(&span_at) {
            w.pad_until(*at);
            w.write(&span.data);
        }
        w.pad_until(note_at);
        w.write(&self.note);
        for ((_, bytes, _), at) in plain.iter().zip(plain_at) {
            w.pad_until(at);
            w.write(bytes);
        }
        w.write_align_relocation();
        let mut place = vec![0u32; self.order.len()];
        for (index, old) in self.order.iter().enumerate() {
            place[*old] = index as u32 + 1;
        }
        for r in &pkg.residue {
            w.write_relocation(
                true,
                &Rel {
                    r_offset: base + r.offset,
                    r_sym: place[r.symbol as usize],
                    r_type: elf::RelocationType(r.r_type),
                    r_addend: r.addend,
                },
            );
        }
        w.write_null_symbol();
        let mut locals = 1;
        for (symbol, section, name) in symbols {
            let (binding, value, size) = match symbol.referent {
                Referent::Image(offset) => {
                    locals += u32::from(!symbol.global);
                    let binding = if symbol.global { elf::STB_GLOBAL } else { elf::STB_LOCAL };
                    (binding, base + offset, symbol.size)
                }
                _ => (undefined_binding(&symbol.referent), 0, 0),
            };
            let st_name = w.string_offset(name);
            w.write_symbol(&Sym {
                section: section.map(|s| s.0),
                st_name,
                st_info: elf::SymbolInfo(st_info(symbol.function, binding)),
                st_other: elf::SymbolOther(0),
                st_shndx: elf::SHN_UNDEF,
                st_value: value,
                st_size: size,
            });
        }
        w.write_strtab();
        w.write_shstrtab();

        w.write_null_section_header();
        for (shown, (_, name)) in self.shown.iter().zip(&shown) {
            let span = &pkg.spans[shown.span];
            let filled = span.data.len() as u64;
            let mut flags = elf::SHF_ALLOC.0;
            for (on, bit) in [(span.perm.write, elf::SHF_WRITE), (span.perm.exec, elf::SHF_EXECINSTR)] {
                flags |= if on { bit.0 } else { 0 };
            }
            let before = if shown.filled { 0 } else { filled };
            let header = SectionHeader {
                sh_name: w.section_name_offset(Some(*name)),
                sh_type: if shown.filled { elf::SHT_PROGBITS } else { elf::SHT_NOBITS },
                sh_flags: elf::SectionFlags(flags),
                sh_addr: base + span.offset + before,
                sh_offset: span_at[shown.span] + before,
                sh_size: if shown.filled { filled } else { span.size - filled },
                sh_link: 0,
                sh_info: 0,
                sh_addralign: if shown.filled { pkg.page_size.min(16) } else { 1 },
                sh_entsize: 0,
            };
            w.write_section_header(&header);
        }
        let unloaded = |sh_name, sh_type, sh_offset, len: usize, sh_addralign| SectionHeader {
            sh_name,
            sh_type,
            sh_flags: elf::SectionFlags(0),
            sh_addr: 0,
            sh_offset,
            sh_size: len as u64,
            sh_link: 0,
            sh_info: 0,
            sh_addralign,
            sh_entsize: 0,
        };
        let name = w.section_name_offset(Some(note_name));
        w.write_section_header(&unloaded(name, elf::SHT_NOTE, note_at, self.note.len(), 4));
        for (((_, bytes, align), at), name) in plain.iter().zip(plain_at).zip(plain_name) {
            let name = w.section_name_offset(Some(name));
            w.write_section_header(&unloaded(name, elf::SHT_PROGBITS, at, bytes.len(), *align));
        }
        let (entry, align) = if pkg.ident.is_64 { (24, 8) } else { (12, 4) };
        let name = w.section_name_offset(Some(rela_name));
        let header = unloaded(name, elf::SHT_RELA, rela_at, pkg.residue.len() * entry as usize, align);
        w.write_section_header(&SectionHeader { sh_link: symtab.0, sh_entsize: entry, ..header });
        w.write_symtab_section_header(locals);
        w.write_strtab_section_header();
        w.write_shstrtab_section_header();
        Ok(out)
    }
}

/// The sections that show the spans: `.text`, `.rodata` or `.data` by rights, `.bss` for the zeros behind; the second
/// and later ones of a name get a number.
fn shown(pkg: &Package) -> Vec<Shown> {
    let mut used: Vec<(&str, u32)> = Vec::new();
    let mut shown = Vec::new();
    for (index, span) in pkg.spans.iter().enumerate() {
        let stem = match (span.perm.exec, span.perm.write) {
            (true, _) => ".text",
            (false, true) => ".data",
            (false, false) => ".rodata",
        };
        let parts = [(stem, true, !span.data.is_empty()), (".bss", false, (span.data.len() as u64) < span.size)];
        for (stem, filled, _) in parts.into_iter().filter(|(.., there)| *there) {
            let count = match used.iter_mut().find(|(s, _)| *s == stem) {
                Some((_, count)) => {
                    *count += 1;
                    *count
                }
                None => {
                    used.push((stem, 0));
                    0
                }
            };
            let name = if count == 0 { stem.into() } else { format!("{stem}.{count}") };
            shown.push(Shown { name, span: index, filled });
        }
    }
    shown
}
