//! Reads and checks a package without an allocator.

use super::format::{self, RInfo, Record, bind, info, note, range, site};
use super::{Head, IdentityRef, PackageError, Ranges, RangesIn, SiteRef, SpanRef, SymbolRef, View, check};
use crate::addr::LinkAddr;
use crate::arch::ElfIdent;
use crate::field::Endian;
use crate::model::{Referent, Residue};
use crate::target::Perm;
use object::Endianness;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use sha2::{Digest, Sha256};

/// A package that passed all checks, as views of the file's bytes.
#[derive(Clone, Copy, Debug)]
pub struct PackageReader<'a> {
    head: Head<'a>,
    file: &'a [u8],
    elf: Tables<'a>,
    endian: Endian,
    rinfo: RInfo,
    sites: &'a [u8],
    ranges: &'a [u8],
    bind: &'a [u8],
    warnings: &'a [u8],
    blob: &'a [u8],
    strtab: &'a [u8],
}

impl<'a> PackageReader<'a> {
    /// Checks `file` (the whole `.tfp` file) and reads it.
    ///
    /// All rules of the format are checked here, once: ELF structure, version, digest, every bound and every text. The
    /// iterators can't fail afterwards. Never panics, whatever the bytes.
    ///
    /// # Errors
    /// [`PackageError`] for the first rule that the file breaks, in the order: ELF header, note, version, digest,
    /// sections, records, contents.
    pub fn parse(file: &'a [u8]) -> Result<PackageReader<'a>, PackageError> {
        let found = Found::of(file)?;
        found.digest_matches()?;
        let reader = PackageReader::from_sections(&found)?;
        check::check(&reader)?;
        Ok(reader)
    }

    /// What the package says about itself as a whole.
    #[must_use]
    pub fn head(&self) -> &Head<'a> {
        &self.head
    }

    /// The spans of the image, ascending by offset.
    pub fn spans(&self) -> impl Iterator<Item = SpanRef<'a>> + use<'a> {
        let this = *self;
        (0..this.elf.segments()).filter_map(move |i| this.span(i).ok().flatten())
    }

    /// The symbols; [`Residue::symbol`] counts them from 0.
    pub fn symbols(&self) -> impl Iterator<Item = SymbolRef<'a>> + use<'a> {
        let this = *self;
        (0..this.symbol_count()).map_while(move |i| this.symbol_at(i).ok())
    }

    /// Symbol `index`.
    #[must_use]
    pub fn symbol(&self, index: u32) -> Option<SymbolRef<'a>> {
        if index < self.symbol_count() { self.symbol_at(index).ok() } else { None }
    }

    /// The residue, ascending by offset.
    pub fn residue(&self) -> impl Iterator<Item = Residue> + use<'a> {
        let this = *self;
        (0..this.elf.relocations()).map_while(move |i| this.residue_at(i).ok())
    }

    /// The sites, ascending by entry.
    pub fn sites(&self) -> impl Iterator<Item = SiteRef<'a>> + use<'a> {
        let this = *self;
        (0..count(this.sites, site::SIZE)).map_while(move |i| this.site_at(i).ok())
    }

    /// Notes that whoever applies the package should read.
    pub fn warnings(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let this = *self;
        (0..count(this.warnings, format::REF_SIZE)).map_while(move |i| this.warning_at(i).ok())
    }

    /// The package as a value that owns all it has.
    #[cfg(feature = "alloc")]
    #[must_use]
    pub fn to_package(&self) -> crate::model::Package {
        use crate::model::{Identity, Package, PackageSymbol, ProgramRef, Site, Span};
        let head = &self.head;
        Package {
            ident: head.ident,
            name: head.name.into(),
            version: head.version.into(),
            description: head.description.into(),
            program: ProgramRef {
                file: head.program.into(),
                identity: match head.identity {
                    IdentityRef::BuildId(id) => Identity::BuildId(id.into()),
                    IdentityRef::Sha256(digest) => Identity::Sha256(*digest),
                },
                fixed: head.fixed,
            },
            base: head.base,
            page_size: head.page_size,
            guarded: head.guarded,
            spans: self
                .spans()
                .map(|s| Span { perm: s.perm, offset: s.offset, size: s.size, data: s.data.into() })
                .collect(),
            symbols: self
                .symbols()
                .map(|s| PackageSymbol {
                    name: s.name.into(),
                    referent: s.referent,
                    size: s.size,
                    function: s.function,
                    global: s.global,
                })
                .collect(),
            residue: self.residue().collect(),
            sites: self
                .sites()
                .map(|s| Site {
                    old: s.old.into(),
                    new: s.new.into(),
                    entry: s.entry,
                    pad: s.pad,
                    window: s.window,
                    expected: s.expected.into(),
                    body: s.body.iter().collect(),
                    new_offset: s.new_offset,
                    landing: s.landing,
                    own_address: s.own_address,
                })
                .collect(),
            eh_frame: head.eh_frame,
            trap: head.trap,
            warnings: self.warnings().map(Into::into).collect(),
        }
    }

    /// Makes sense of the sections; every record is decoded once here, so that the iterators can't fail.
    fn from_sections(found: &Found<'a>) -> Result<PackageReader<'a>, PackageError> {
        let record = found.record(found.section(S_INFO)?.bytes);
        sized(format::INFO, record.bytes, info::SIZE)?;
        let sites = sized(format::SITES, found.section(S_SITES)?.bytes, site::SIZE)?;
        let ranges = sized(format::RANGES, found.section(S_RANGES)?.bytes, range::SIZE)?;
        let bind = sized(format::BIND, found.section(S_BIND)?.bytes, bind::SIZE)?;
        let warnings = sized(format::WARNINGS, found.section(S_WARNINGS)?.bytes, format::REF_SIZE)?;
        let blob = found.section(S_BLOB)?.bytes;
        let strtab = found.section(S_STRTAB)?;
        let symtab = found.section(S_SYMTAB)?;
        let rela = found.section(S_RELA)?;
        if record.bytes.len() != info::SIZE {
            return Err(PackageError::Section {
                name: format::INFO,
                value: record.bytes.len() as u64,
                why: "is not one record",
            });
        }
        if symtab.link != strtab.index {
            return Err(PackageError::Section {
                name: format::SYMTAB,
                value: symtab.link.into(),
                why: "is not linked to .strtab",
            });
        }
        if rela.link != symtab.index {
            return Err(PackageError::Section {
                name: format::RELA,
                value: rela.link.into(),
                why: "is not linked to .symtab",
            });
        }
        // The blob is packed: every text of every record follows the one before it. So no byte is used twice, and
        // what a package unpacks to is never larger than its file.
        let mut cursor = Cursor { blob, at: 0 };
        let (head, rinfo) = head(found, &record, &mut cursor)?;
        let reader = PackageReader {
            head,
            file: found.file,
            elf: found.tables.with(symtab.bytes, rela.bytes)?,
            endian: found.endian(),
            rinfo,
            sites,
            ranges,
            bind,
            warnings,
            blob,
            strtab: strtab.bytes,
        };
        for i in 0..reader.elf.segments() {
            reader.span(i)?;
        }
        reader.symbol_table(symtab.info, found.section_count)?;
        for i in 0..reader.elf.relocations() {
            reader.residue_at(i)?;
        }
        let mut parts = 0;
        for i in 0..count(sites, site::SIZE) {
            for at in [site::OLD, site::NEW, site::EXPECTED] {
                let record = reader.record(sites, i, site::SIZE).ok_or(OUT_OF_RECORD)?;
                cursor.next(&record, at)?;
            }
            reader.site_at(i)?;
            let record = reader.record(sites, i, site::SIZE).ok_or(OUT_OF_RECORD)?;
            let first = record.u32(site::BODY_FIRST).ok_or(OUT_OF_RECORD)?;
            if u64::from(first) != parts {
                return Err(PackageError::Site {
                    index: index32(i),
                    field: "first body part",
                    value: first.into(),
                    why: "does not follow the parts of the site before it",
                });
            }
            parts += u64::from(record.u32(site::BODY_COUNT).ok_or(OUT_OF_RECORD)?);
        }
        if parts != count(ranges, range::SIZE) as u64 {
            return Err(PackageError::Section {
                name: format::RANGES,
                value: parts,
                why: "holds another number of parts than the sites have",
            });
        }
        for i in 0..count(warnings, format::REF_SIZE) {
            let record = reader.record(warnings, i, format::REF_SIZE).ok_or(OUT_OF_RECORD)?;
            cursor.next(&record, 0)?;
            reader.warning_at(i)?;
        }
        if cursor.at != blob.len() {
            return Err(PackageError::Section {
                name: format::BLOB,
                value: cursor.at as u64,
                why: "holds bytes that no record refers to, from this offset on",
            });
        }
        Ok(reader)
    }

    fn record(&self, table: &'a [u8], index: usize, size: usize) -> Option<Record<'a>> {
        let at = index.checked_mul(size)?;
        Some(Record { bytes: table.get(at..)?.get(..size)?, endian: self.endian })
    }

    /// Segment `index`: a span, or `None` where it is no loadable one.
    fn span(&self, index: usize) -> Result<Option<SpanRef<'a>>, PackageError> {
        let cut = PackageError::BrokenElf { what: "program header cut off", value: index as u64 };
        let seg = self.elf.segment(index).ok_or(cut)?;
        if seg.p_type != elf::PT_LOAD.0 {
            return Ok(None);
        }
        let bad = |field, value, why| PackageError::Span { index: index32(index), field, value, why };
        let start = usize::try_from(seg.offset).ok();
        let size = usize::try_from(seg.filesz).ok();
        let data = start.zip(size).and_then(|(start, size)| self.file.get(start..)?.get(..size));
        let data = data.ok_or(bad("file offset", seg.offset, "and size leave the file"))?;
        if seg.flags & !7 != 0 {
            return Err(bad("rights", seg.flags.into(), "are unknown"));
        }
        if seg.paddr != seg.vaddr {
            return Err(bad("physical address", seg.paddr, "is not the virtual address"));
        }
        if seg.align != self.head.page_size {
            return Err(bad("alignment", seg.align, "is not the package's page size"));
        }
        // The head's rules come later: the page size may still be 0 here.
        if seg.offset.checked_rem(seg.align) != seg.vaddr.checked_rem(seg.align) {
            return Err(bad("file offset", seg.offset, "is not congruent to the address"));
        }
        let offset = seg.vaddr.checked_sub(self.head.base.unwrap_or(0));
        let offset = offset.ok_or(bad("address", seg.vaddr, "lies before the image's base"))?;
        let on = |bit: elf::ProgramFlags| seg.flags & bit.0 != 0;
        let perm = Perm { read: on(elf::PF_R), write: on(elf::PF_W), exec: on(elf::PF_X) };
        Ok(Some(SpanRef { perm, offset, size: seg.memsz, data }))
    }

    /// Number of symbols without the null symbol.
    fn symbol_count(&self) -> u32 {
        u32::try_from(self.elf.symbols().saturating_sub(1)).unwrap_or(0)
    }

    /// Checks the symbol table's order: null, local ones, global ones of the image, undefined ones.
    fn symbol_table(&self, first_global: u32, sections: usize) -> Result<(), PackageError> {
        let wrong = |value, why| Err(PackageError::Section { name: format::SYMTAB, value, why });
        let entries = self.elf.symbols();
        if u32::try_from(entries).is_err() {
            return wrong(entries as u64, "has too many entries");
        }
        match self.elf.symbol(0) {
            Some(RawSym { name: 0, info: 0, other: 0, shndx: 0, value: 0, size: 0 }) => {}
            _ => return wrong(0, "does not begin with the null symbol"),
        }
        let undefined = count(self.bind, bind::SIZE);
        if undefined > entries - 1 {
            return wrong(undefined as u64, "has fewer symbols than there are binding records");
        }
        let mut locals = 1u32;
        for index in 0..self.symbol_count() {
            let raw = self.elf.symbol(index as usize + 1).ok_or(OUT_OF_RECORD)?;
            if usize::from(raw.shndx) >= sections {
                return Err(PackageError::Symbol {
                    index,
                    field: "section",
                    value: raw.shndx.into(),
                    why: "does not exist",
                });
            }
            let symbol = self.symbol_at(index)?;
            if matches!(symbol.referent, Referent::Image(_)) && !symbol.global {
                if locals != index + 1 {
                    return Err(PackageError::Symbol {
                        index,
                        field: "binding",
                        value: raw.info.into(),
                        why: "is local behind global symbols",
                    });
                }
                locals += 1;
            }
        }
        if first_global != locals {
            return wrong(first_global.into(), "states another number of local symbols than it has");
        }
        Ok(())
    }

    /// Symbol `index`, which is entry `index + 1` of the table. The last entries are undefined and have, in the same
    /// order, a binding record each.
    fn symbol_at(&self, index: u32) -> Result<SymbolRef<'a>, PackageError> {
        let bad = |field, value, why| Err(PackageError::Symbol { index, field, value, why });
        let raw = self.elf.symbol(index as usize + 1).ok_or(OUT_OF_RECORD)?;
        let text = |why| PackageError::Text { record: "symbol", index, field: "name", why };
        let rest = self.strtab.get(raw.name as usize..).ok_or(text("lies outside .strtab"))?;
        // One byte more than the longest name, for its NUL.
        let rest = rest.get(..=format::MAX_SYMBOL_NAME).unwrap_or(rest);
        let len = rest.iter().position(|b| *b == 0).ok_or(text("does not end, or is too long"))?;
        let name = rest.get(..len).ok_or(OUT_OF_RECORD)?;
        let name = core::str::from_utf8(name).map_err(|_| text("is not UTF-8"))?;
        if raw.other != 0 {
            return bad("visibility", raw.other.into(), "is not the default");
        }
        let image = self.symbol_count() as usize - count(self.bind, bind::SIZE).min(self.symbol_count() as usize);
        if (index as usize) < image {
            if raw.shndx == elf::SHN_UNDEF.0 {
                return bad("section", 0, "is undefined, but the symbol has no binding record");
            }
            let function = raw.info & 0xf == elf::STT_FUNC.0;
            let global = raw.info >> 4 == elf::STB_GLOBAL.0;
            if raw.info != st_info(function, if global { elf::STB_GLOBAL } else { elf::STB_LOCAL }) {
                return bad("binding and type", raw.info.into(), "are not among those of a package");
            }
            let Some(offset) = raw.value.checked_sub(self.head.base.unwrap_or(0)) else {
                return bad("address", raw.value, "lies before the image's base");
            };
            return Ok(SymbolRef { name, referent: Referent::Image(offset), size: raw.size, function, global });
        }
        let record = self.record(self.bind, index as usize - image, bind::SIZE).ok_or(OUT_OF_RECORD)?;
        let u32_at = |at| record.u32(at).ok_or(OUT_OF_RECORD);
        let owner = u32_at(bind::SYMBOL)?;
        if owner != index + 1 {
            return bad("binding record's symbol", owner.into(), "is not this symbol");
        }
        let address = record.u64(bind::ADDRESS).ok_or(OUT_OF_RECORD)?;
        let size = record.u64(bind::SYMBOL_SIZE).ok_or(OUT_OF_RECORD)?;
        let flags = u32_at(bind::FLAGS)?;
        let reserved = u32_at(bind::RESERVED)?;
        if flags & !bind::FLAGS_ALL != 0 {
            return bad("binding flags", flags.into(), "are unknown");
        }
        if reserved != 0 {
            return bad("reserved field", reserved.into(), "is not zero");
        }
        let referent = match u32_at(bind::KIND)? {
            bind::KIND_PROGRAM => Referent::Program(LinkAddr(address)),
            bind::KIND_PROGRAM_IFUNC => Referent::ProgramIfunc(LinkAddr(address)),
            bind::KIND_IMPORT => Referent::Import { weak: false },
            bind::KIND_WEAK_IMPORT => Referent::Import { weak: true },
            kind => return bad("binding kind", kind.into(), "is unknown"),
        };
        if matches!(referent, Referent::Import { .. }) && address != 0 {
            return bad("address", address, "of an import is not zero");
        }
        let function = flags & bind::FLAG_FUNCTION != 0;
        let global = flags & bind::FLAG_GLOBAL != 0;
        let expected = RawSym {
            name: raw.name,
            info: st_info(function, undefined_binding(&referent)),
            other: 0,
            shndx: elf::SHN_UNDEF.0,
            value: 0,
            size: 0,
        };
        if raw != expected {
            return bad("symbol table entry", raw.value, "contradicts the binding record");
        }
        Ok(SymbolRef { name, referent, size, function, global })
    }

    fn residue_at(&self, index: usize) -> Result<Residue, PackageError> {
        let bad = |field, value, why| PackageError::Residue { index: index32(index), field, value, why };
        let raw = self.elf.relocation(index, self.rinfo).ok_or(OUT_OF_RECORD)?;
        let offset = raw.offset.checked_sub(self.head.base.unwrap_or(0));
        Ok(Residue {
            offset: offset.ok_or(bad("address", raw.offset, "lies before the image's base"))?,
            r_type: raw.r_type,
            symbol: raw.symbol.checked_sub(1).ok_or(bad("symbol", 0, "is the null symbol"))?,
            addend: raw.addend,
        })
    }

    fn site_at(&self, index: usize) -> Result<SiteRef<'a>, PackageError> {
        let record = self.record(self.sites, index, site::SIZE).ok_or(OUT_OF_RECORD)?;
        let index = index32(index);
        let bad = |field, value, why| PackageError::Site { index, field, value, why };
        let u64_at = |at| record.u64(at).ok_or(OUT_OF_RECORD);
        let flags = record.u16(site::FLAGS).ok_or(OUT_OF_RECORD)?;
        if flags & !site::FLAGS_ALL != 0 {
            return Err(bad("flags", flags.into(), "has unknown bits"));
        }
        let reserved = record.u32(site::RESERVED32).ok_or(OUT_OF_RECORD)?;
        if reserved != 0 {
            return Err(bad("reserved field", reserved.into(), "is not zero"));
        }
        let first = record.u32(site::BODY_FIRST).ok_or(OUT_OF_RECORD)?;
        let parts = record.u32(site::BODY_COUNT).ok_or(OUT_OF_RECORD)?;
        let body = (first as usize).checked_mul(range::SIZE).zip((parts as usize).checked_mul(range::SIZE));
        let body = body.and_then(|(at, len)| self.ranges.get(at..)?.get(..len));
        let body = body.ok_or(bad("number of body parts", parts.into(), "leaves .tfix.ranges"))?;
        Ok(SiteRef {
            old: text(self.blob, &record, site::OLD, "site", index, "old name")?,
            new: text(self.blob, &record, site::NEW, "site", index, "new name")?,
            entry: LinkAddr(u64_at(site::ENTRY)?),
            pad: record.u8(site::PAD).ok_or(OUT_OF_RECORD)?,
            window: record.u8(site::WINDOW).ok_or(OUT_OF_RECORD)?,
            expected: refer(self.blob, &record, site::EXPECTED).ok_or(bad(
                "expected bytes",
                0,
                "lie outside .tfix.blob",
            ))?,
            body: Ranges(RangesIn::Records(body, self.endian)),
            new_offset: u64_at(site::NEW_OFFSET)?,
            landing: u64_at(site::LANDING)?,
            own_address: flags & site::FLAG_OWN_ADDRESS != 0,
        })
    }

    fn warning_at(&self, index: usize) -> Result<&'a str, PackageError> {
        let record = self.record(self.warnings, index, format::REF_SIZE).ok_or(OUT_OF_RECORD)?;
        text(self.blob, &record, 0, "warning", index32(index), "text")
    }
}

impl View for PackageReader<'_> {
    fn head(&self) -> Head<'_> {
        self.head
    }
    fn spans(&self) -> impl Iterator<Item = SpanRef<'_>> {
        PackageReader::spans(self)
    }
    fn symbols(&self) -> impl Iterator<Item = SymbolRef<'_>> {
        PackageReader::symbols(self)
    }
    fn residue(&self) -> impl Iterator<Item = Residue> {
        PackageReader::residue(self)
    }
    fn sites(&self) -> impl Iterator<Item = SiteRef<'_>> {
        PackageReader::sites(self)
    }
    fn warnings(&self) -> impl Iterator<Item = &str> {
        PackageReader::warnings(self)
    }
}

/// Writes the digest of a package whose bytes were put together or changed.
///
/// For writers of packages and for tests; a reader never needs it. The digest says nothing about the contents:
/// [`PackageReader::parse`] does.
///
/// # Errors
/// [`PackageError`] where `file` is not an ELF file with a `.note.tfix` of this version. `file` is unchanged then.
pub fn seal(file: &mut [u8]) -> Result<(), PackageError> {
    let (at, digest) = {
        let found = Found::of(file)?;
        (found.digest_at, found.digest())
    };
    if let Some(place) = file.get_mut(at..).and_then(|f| f.get_mut(..note::DIGEST_SIZE)) {
        place.copy_from_slice(&digest);
    }
    Ok(())
}

/// `st_info` of a package's symbols.
pub(super) fn st_info(function: bool, binding: elf::SymbolBind) -> u8 {
    let kind = if function { elf::STT_FUNC } else { elf::STT_OBJECT };
    elf::SymbolInfo::new(binding, kind).0
}

/// The binding of an undefined symbol in the symbol table (whether the program's symbol is local to it, the binding
/// record says: an undefined symbol can't be local).
pub(super) fn undefined_binding(referent: &Referent) -> elf::SymbolBind {
    match referent {
        Referent::Import { weak: true } => elf::STB_WEAK,
        _ => elf::STB_GLOBAL,
    }
}

/// A field that lies past the end of its record: the sections' sizes are checked first, so this is never seen.
const OUT_OF_RECORD: PackageError = PackageError::BrokenElf { what: "record cut off", value: 0 };

fn index32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn count(table: &[u8], size: usize) -> usize {
    table.len() / size
}

fn sized<'a>(name: &'static str, bytes: &'a [u8], size: usize) -> Result<&'a [u8], PackageError> {
    if !bytes.len().is_multiple_of(size) || u32::try_from(bytes.len() / size).is_err() {
        return Err(PackageError::Section { name, value: bytes.len() as u64, why: "is not made of whole records" });
    }
    Ok(bytes)
}

/// The bytes in the blob that the reference at `at` names.
fn refer<'a>(blob: &'a [u8], record: &Record<'_>, at: usize) -> Option<&'a [u8]> {
    let offset = record.u32(at)? as usize;
    let len = record.u32(at + 4)? as usize;
    blob.get(offset..)?.get(..len)
}

fn text<'a>(
    blob: &'a [u8],
    from: &Record<'_>,
    at: usize,
    record: &'static str,
    index: u32,
    field: &'static str,
) -> Result<&'a str, PackageError> {
    let bad = |why| PackageError::Text { record, index, field, why };
    let bytes = refer(blob, from, at).ok_or(bad("lies outside .tfix.blob"))?;
    core::str::from_utf8(bytes).map_err(|_| bad("is not UTF-8"))
}

/// Walks the blob in the order in which the records refer to it.
struct Cursor<'a> {
    blob: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn next(&mut self, record: &Record<'_>, at: usize) -> Result<(), PackageError> {
        let offset = record.u32(at).ok_or(OUT_OF_RECORD)?;
        let bytes = refer(self.blob, record, at);
        match bytes {
            Some(bytes) if offset as usize == self.at => {
                self.at += bytes.len();
                Ok(())
            }
            _ => Err(PackageError::Section {
                name: format::BLOB,
                value: offset.into(),
                why: "is not packed in the order of the records: a reference has this offset",
            }),
        }
    }
}

fn head<'a>(
    found: &Found<'a>,
    record: &Record<'a>,
    cursor: &mut Cursor<'a>,
) -> Result<(Head<'a>, RInfo), PackageError> {
    let bad = |field, value, why| PackageError::Head { field, value, why };
    let u32_at = |at| record.u32(at).ok_or(OUT_OF_RECORD);
    let u64_at = |at| record.u64(at).ok_or(OUT_OF_RECORD);
    for at in [info::NAME, info::VERSION, info::DESCRIPTION, info::PROGRAM, info::IDENTITY] {
        cursor.next(record, at)?;
    }
    let blob = cursor.blob;
    let flags = u32_at(info::FLAGS)?;
    if flags & !info::FLAGS_ALL != 0 {
        return Err(bad("flags", flags.into(), "are unknown"));
    }
    let reserved = u32_at(info::RESERVED)?;
    if reserved != 0 {
        return Err(bad("reserved field", reserved.into(), "is not zero"));
    }
    let rinfo = match u32_at(info::RINFO)? {
        0 => RInfo::Plain,
        info::RINFO_SPLIT if found.ident.is_64 && found.ident.endian == Endian::Little => RInfo::Split,
        other => return Err(bad("r_info layout", other.into(), "is unknown or not of this class and byte order")),
    };
    let base = u64_at(info::BASE)?;
    let has_base = flags & info::FLAG_BASE != 0;
    if !has_base && base != 0 {
        return Err(bad("base", base, "is given without its flag"));
    }
    let eh_frame = (u64_at(info::EH_FRAME)?, u64_at(info::EH_FRAME_SIZE)?);
    let has_eh_frame = flags & info::FLAG_EH_FRAME != 0;
    if !has_eh_frame && eh_frame != (0, 0) {
        return Err(bad("eh_frame offset", eh_frame.0, "is given without its flag"));
    }
    let identity = refer(blob, record, info::IDENTITY).ok_or(OUT_OF_RECORD)?;
    let identity = match u32_at(info::IDENTITY_KIND)? {
        info::IDENTITY_BUILD_ID => IdentityRef::BuildId(identity),
        info::IDENTITY_SHA256 => IdentityRef::Sha256(
            identity.try_into().map_err(|_| bad("identity length", identity.len() as u64, "is not 32 bytes"))?,
        ),
        other => return Err(bad("identity kind", other.into(), "is unknown")),
    };
    let text = |at, field| text(blob, record, at, "package", 0, field);
    let head = Head {
        ident: found.ident,
        name: text(info::NAME, "name")?,
        version: text(info::VERSION, "version")?,
        description: text(info::DESCRIPTION, "description")?,
        program: text(info::PROGRAM, "program")?,
        identity,
        fixed: flags & info::FLAG_FIXED != 0,
        base: has_base.then_some(base),
        page_size: u64_at(info::PAGE_SIZE)?,
        guarded: flags & info::FLAG_GUARDED != 0,
        eh_frame: has_eh_frame.then_some(eh_frame),
        trap: u64_at(info::TRAP)?,
    };
    Ok((head, rinfo))
}

// --- ELF: what differs between the classes ends here ---

/// Segments, symbols and relocations of either class.
#[derive(Clone, Copy, Debug)]
enum Tables<'a> {
    Bits32(Typed<'a, elf::FileHeader32<Endianness>>),
    Bits64(Typed<'a, elf::FileHeader64<Endianness>>),
}

#[derive(Debug)]
struct Typed<'a, E: FileHeader> {
    endian: Endianness,
    segments: &'a [E::ProgramHeader],
    symbols: &'a [E::Sym],
    relocations: &'a [E::Rela],
}

// Derived impls would ask for `E: Clone`.
impl<E: FileHeader> Clone for Typed<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: FileHeader> Copy for Typed<'_, E> {}

struct RawSegment {
    p_type: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

#[derive(PartialEq, Eq)]
struct RawSym {
    name: u32,
    info: u8,
    other: u8,
    shndx: u16,
    value: u64,
    size: u64,
}

struct RawRela {
    offset: u64,
    symbol: u32,
    r_type: u32,
    addend: i64,
}

impl<'a, E: FileHeader<Endian = Endianness>> Typed<'a, E> {
    fn segment(&self, index: usize) -> Option<RawSegment> {
        let (e, p) = (self.endian, self.segments.get(index)?);
        Some(RawSegment {
            p_type: p.p_type(e).0,
            flags: p.p_flags(e).0,
            offset: p.p_offset(e).into(),
            vaddr: p.p_vaddr(e).into(),
            paddr: p.p_paddr(e).into(),
            filesz: p.p_filesz(e).into(),
            memsz: p.p_memsz(e).into(),
            align: p.p_align(e).into(),
        })
    }
    fn symbol(&self, index: usize) -> Option<RawSym> {
        let (e, s) = (self.endian, self.symbols.get(index)?);
        Some(RawSym {
            name: s.st_name(e),
            info: s.st_info().0,
            other: s.st_other().0,
            shndx: s.st_shndx(e).0,
            value: s.st_value(e).into(),
            size: s.st_size(e).into(),
        })
    }
    fn relocation(&self, index: usize, rinfo: RInfo) -> Option<RawRela> {
        let (e, r) = (self.endian, self.relocations.get(index)?);
        let split = rinfo == RInfo::Split;
        Some(RawRela {
            offset: r.r_offset(e).into(),
            symbol: r.r_sym(e, split),
            r_type: r.r_type(e, split).0,
            addend: r.r_addend(e).into(),
        })
    }
    fn with(mut self, symtab: &'a [u8], rela: &'a [u8]) -> Result<Self, PackageError> {
        self.symbols = typed(format::SYMTAB, symtab)?;
        self.relocations = typed(format::RELA, rela)?;
        Ok(self)
    }
}

fn typed<'a, T: object::pod::Pod>(name: &'static str, bytes: &'a [u8]) -> Result<&'a [T], PackageError> {
    sized(name, bytes, size_of::<T>())?;
    object::pod::slice_from_all_bytes(bytes).map_err(|()| PackageError::Section {
        name,
        value: bytes.len() as u64,
        why: "is not made of whole records",
    })
}

impl<'a> Tables<'a> {
    fn with(self, symtab: &'a [u8], rela: &'a [u8]) -> Result<Self, PackageError> {
        Ok(match self {
            Tables::Bits32(t) => Tables::Bits32(t.with(symtab, rela)?),
            Tables::Bits64(t) => Tables::Bits64(t.with(symtab, rela)?),
        })
    }
    fn segments(&self) -> usize {
        match self {
            Tables::Bits32(t) => t.segments.len(),
            Tables::Bits64(t) => t.segments.len(),
        }
    }
    fn symbols(&self) -> usize {
        match self {
            Tables::Bits32(t) => t.symbols.len(),
            Tables::Bits64(t) => t.symbols.len(),
        }
    }
    fn relocations(&self) -> usize {
        match self {
            Tables::Bits32(t) => t.relocations.len(),
            Tables::Bits64(t) => t.relocations.len(),
        }
    }
    fn segment(&self, index: usize) -> Option<RawSegment> {
        match self {
            Tables::Bits32(t) => t.segment(index),
            Tables::Bits64(t) => t.segment(index),
        }
    }
    fn symbol(&self, index: usize) -> Option<RawSym> {
        match self {
            Tables::Bits32(t) => t.symbol(index),
            Tables::Bits64(t) => t.symbol(index),
        }
    }
    fn relocation(&self, index: usize, rinfo: RInfo) -> Option<RawRela> {
        match self {
            Tables::Bits32(t) => t.relocation(index, rinfo),
            Tables::Bits64(t) => t.relocation(index, rinfo),
        }
    }
}

/// A section of a package.
#[derive(Clone, Copy)]
struct Section<'a> {
    index: u32,
    link: u32,
    info: u32,
    bytes: &'a [u8],
}

/// All sections of a package that the reader wants: name, ELF type.
const WANTED: [(&str, elf::SectionType); 10] = [
    (format::NOTE, elf::SHT_NOTE),
    (format::INFO, elf::SHT_PROGBITS),
    (format::SITES, elf::SHT_PROGBITS),
    (format::RANGES, elf::SHT_PROGBITS),
    (format::BIND, elf::SHT_PROGBITS),
    (format::WARNINGS, elf::SHT_PROGBITS),
    (format::BLOB, elf::SHT_PROGBITS),
    (format::RELA, elf::SHT_RELA),
    (format::SYMTAB, elf::SHT_SYMTAB),
    (format::STRTAB, elf::SHT_STRTAB),
];
const S_NOTE: usize = 0;
const S_INFO: usize = 1;
const S_SITES: usize = 2;
const S_RANGES: usize = 3;
const S_BIND: usize = 4;
const S_WARNINGS: usize = 5;
const S_BLOB: usize = 6;
const S_RELA: usize = 7;
const S_SYMTAB: usize = 8;
const S_STRTAB: usize = 9;

/// The parts of an ELF file that make it a package of a version that we know; contents not yet looked at.
struct Found<'a> {
    file: &'a [u8],
    ident: ElfIdent,
    tables: Tables<'a>,
    sections: [Option<Section<'a>>; WANTED.len()],
    section_count: usize,
    digest_at: usize,
}

impl<'a> Found<'a> {
    fn of(file: &'a [u8]) -> Result<Found<'a>, PackageError> {
        if !file.starts_with(&elf::ELFMAG) {
            return Err(PackageError::NotElf);
        }
        match file.get(4) {
            Some(1) => Found::typed::<elf::FileHeader32<Endianness>>(file, Tables::Bits32),
            Some(2) => Found::typed::<elf::FileHeader64<Endianness>>(file, Tables::Bits64),
            class => Err(PackageError::BrokenElf { what: "unknown class", value: class.copied().unwrap_or(0).into() }),
        }
    }

    fn typed<E: FileHeader<Endian = Endianness>>(
        file: &'a [u8],
        wrap: fn(Typed<'a, E>) -> Tables<'a>,
    ) -> Result<Found<'a>, PackageError> {
        let broken = |what, value| PackageError::BrokenElf { what, value };
        let len = file.len() as u64;
        let header = E::parse(file).map_err(|_| broken("unsupported or cut off file header", len))?;
        let e = header.endian().map_err(|_| broken("unknown byte order", 0))?;
        let segments = header
            .program_headers(e, file)
            .map_err(|_| broken("program headers leave the file", header.e_phoff(e).into()))?;
        let sections =
            header.sections(e, file).map_err(|_| broken("section headers leave the file", header.e_shoff(e).into()))?;
        let mut all = [None; WANTED.len()];
        for (index, section) in sections.iter().enumerate() {
            let name = sections.section_name(e, section).map_err(|_| broken("section name", index as u64))?;
            let Some(slot) = WANTED.iter().position(|(n, _)| n.as_bytes() == name) else { continue };
            let (name, kind) = WANTED[slot];
            let bad = |value, why| PackageError::Section { name, value, why };
            if section.sh_type(e) != kind {
                return Err(bad(section.sh_type(e).0.into(), "has another ELF section type"));
            }
            let bytes = section.data(e, file).map_err(|_| bad(section.sh_offset(e).into(), "leaves the file"))?;
            if all[slot].is_some() {
                return Err(bad(index as u64, "is there twice"));
            }
            all[slot] = Some((
                Section { index: index32(index), link: section.sh_link(e), info: section.sh_info(e), bytes },
                section.sh_offset(e).into(),
            ));
        }
        let (note_section, note_at) = all[S_NOTE].ok_or(PackageError::NotAPackage)?;
        let endian = if header.is_big_endian() { Endian::Big } else { Endian::Little };
        let record = Record { bytes: note_section.bytes, endian };
        let well_formed = record.bytes.len() == note::SIZE
            && record.u32(note::NAMESZ) == Some(5)
            && record.u32(note::DESCSZ) == Some(note::DIGEST_SIZE as u32)
            && record.bytes.get(note::NAME..note::DIGEST) == Some(&note::NAME_BYTES);
        // A later version may have another note, so the version is looked at first.
        let found = record.u32(note::TYPE).ok_or(PackageError::NotAPackage)?;
        if found != format::VERSION {
            return Err(PackageError::Version { found, supported: format::VERSION });
        }
        if !well_formed {
            return Err(PackageError::Section {
                name: format::NOTE,
                value: record.bytes.len() as u64,
                why: "is not the note of a package",
            });
        }
        if header.e_type(e) != elf::ET_DYN {
            return Err(broken("file type is not ET_DYN", header.e_type(e).0.into()));
        }
        // Bounds what the checks cost: each looks through the segments.
        if segments.len() > format::MAX_SPANS + 16 {
            return Err(PackageError::TooLarge {
                what: "number of segments",
                value: segments.len() as u64,
                limit: format::MAX_SPANS as u64 + 16,
            });
        }
        let digest_at: u64 = note_at;
        let digest_at = usize::try_from(digest_at).ok().and_then(|at| at.checked_add(note::DIGEST));
        Ok(Found {
            file,
            ident: ElfIdent {
                is_64: header.is_class_64(),
                endian,
                machine: header.e_machine(e).0,
                flags: header.e_flags(e).0,
            },
            tables: wrap(Typed { endian: e, segments, symbols: &[], relocations: &[] }),
            sections: all.map(|s| s.map(|(section, _)| section)),
            section_count: sections.len(),
            digest_at: digest_at.ok_or(broken("note leaves the file", note_at))?,
        })
    }

    fn endian(&self) -> Endian {
        self.ident.endian
    }

    fn record(&self, bytes: &'a [u8]) -> Record<'a> {
        Record { bytes, endian: self.endian() }
    }

    fn section(&self, slot: usize) -> Result<Section<'a>, PackageError> {
        let missing = PackageError::Section { name: WANTED[slot].0, value: 0, why: "is missing" };
        self.sections[slot].ok_or(missing)
    }

    /// SHA-256 over the file with zeros for the digest.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.file.get(..self.digest_at).unwrap_or_default());
        hash.update([0; note::DIGEST_SIZE]);
        hash.update(self.file.get(self.digest_at + note::DIGEST_SIZE..).unwrap_or_default());
        hash.finalize().into()
    }

    fn digest_matches(&self) -> Result<(), PackageError> {
        let stored = self.file.get(self.digest_at..).and_then(|f| f.get(..note::DIGEST_SIZE));
        if stored == Some(&self.digest()[..]) { Ok(()) } else { Err(PackageError::Digest) }
    }
}
