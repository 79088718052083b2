//! Patch objects as values: sections, symbols and relocation entries, with every bound checked.
//!
//! Nothing here decides anything about the patch; what is refused are files that are no objects of this architecture, or
//! whose tables contradict themselves.

use super::error::LinkError;
use crate::arch::{Arch, ElfIdent, ReservedIndex};
use crate::program::elf_ident;
use alloc::{borrow::Cow, format, string::String, vec::Vec};
use object::read::elf::{FileHeader, SectionHeader as _, SectionTable, Sym as _, SymbolTable};
use object::{Endianness, FileKind, SectionIndex, elf};

/// Entries of one relocation section, bytes as in the file.
#[derive(Clone, Copy)]
pub(super) struct RelocTable<'d> {
    pub entries: &'d [u8],
    /// Explicit addends.
    pub rela: bool,
}

/// A section of an object. Index 0 and sections that carry no contents of the patch are there too, so that indices
/// agree with the file.
pub(super) struct InSection<'d> {
    pub name: Cow<'d, str>,
    pub kind: u32,
    pub flags: u64,
    pub size: u64,
    pub align: u64,
    /// Empty for SHT_NOBITS, else `size` bytes.
    pub data: &'d [u8],
    pub relocs: Vec<RelocTable<'d>>,
    /// Index of the section group that it belongs to, in [`Object::groups`].
    pub group: Option<u32>,
}

impl InSection<'_> {
    pub(super) fn is(&self, flag: elf::SectionFlags) -> bool {
        self.flags & flag.0 != 0
    }
    pub(super) fn no_bits(&self) -> bool {
        self.kind == elf::SHT_NOBITS.0
    }
}

/// A COMDAT group.
pub(super) struct Group<'d> {
    pub signature: Cow<'d, str>,
}

/// Where a symbol lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Undefined,
    Absolute(u64),
    Common { align: u64 },
    Section { index: u32, value: u64 },
}

/// What a symbol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Untyped,
    Object,
    Function,
    Ifunc,
    Tls,
    Section,
    /// STT_FILE and types that nobody may refer to.
    Other,
}

/// Binding of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bind {
    Local,
    Global,
    Weak,
    /// STB_GNU_UNIQUE: one object in the whole process.
    Unique,
}

/// A symbol of an object.
#[derive(Clone, Copy)]
pub(super) struct InSymbol<'d> {
    pub name: &'d str,
    pub at: At,
    pub size: u64,
    pub kind: Kind,
    pub bind: Bind,
    /// `st_other`
    pub other: u8,
}

impl InSymbol<'_> {
    pub(super) fn is_local(&self) -> bool {
        self.bind == Bind::Local
    }
}

/// A parsed patch object.
pub(super) struct Object<'d> {
    pub name: &'d str,
    pub ident: ElfIdent,
    pub sections: Vec<InSection<'d>>,
    pub symbols: Vec<InSymbol<'d>>,
    pub groups: Vec<Group<'d>>,
}

impl<'d> Object<'d> {
    /// Parses `data`, which has to be an object that `arch` accepts.
    pub(super) fn parse(arch: &dyn Arch, name: &'d str, data: &'d [u8]) -> Result<Object<'d>, LinkError> {
        let object = String::from(name);
        if data.starts_with(b"!<arch>\n") || data.starts_with(b"!<thin>\n") {
            return Err(LinkError::Archive { object });
        }
        if data.starts_with(b"BC\xc0\xde") || data.starts_with(&[0xde, 0xc0, 0x17, 0x0b]) {
            return Err(LinkError::Lto { object });
        }
        let not_elf = |what| LinkError::NotElf { object: object.clone(), what };
        if data.is_empty() {
            return Err(not_elf("the file is empty"));
        }
        if !data.starts_with(&elf::ELFMAG) {
            return Err(not_elf("no ELF magic"));
        }
        match FileKind::parse(data) {
            Ok(FileKind::Elf32) => Reader::<elf::FileHeader32<Endianness>>::open(name, data)?.object(arch),
            Ok(FileKind::Elf64) => Reader::<elf::FileHeader64<Endianness>>::open(name, data)?.object(arch),
            _ => Err(not_elf("the header is cut short")),
        }
    }

    /// The function or object that holds `offset` of a section, for messages.
    pub(super) fn within(&self, section: u32, offset: u64) -> Option<String> {
        let holds = |s: &&InSymbol<'_>| {
            matches!(s.kind, Kind::Function | Kind::Object)
                && matches!(s.at, At::Section { index, value }
                    if index == section && value <= offset && offset - value < s.size)
        };
        self.symbols.iter().find(holds).map(|s| String::from(s.name))
    }
}

struct Reader<'d, H: FileHeader<Endian = Endianness>> {
    name: &'d str,
    data: &'d [u8],
    header: &'d H,
    endian: Endianness,
}

impl<'d, H: FileHeader<Endian = Endianness>> Reader<'d, H> {
    fn open(name: &'d str, data: &'d [u8]) -> Result<Self, LinkError> {
        let bad = || LinkError::NotElf { object: String::from(name), what: "the header is cut short or malformed" };
        let header = H::parse(data).map_err(|_| bad())?;
        let endian = header.endian().map_err(|_| bad())?;
        Ok(Reader { name, data, header, endian })
    }

    fn broken(&self, what: &'static str, why: impl Into<String>) -> LinkError {
        LinkError::Broken { object: String::from(self.name), what, why: why.into() }
    }

    fn unreadable(&self, what: &'static str) -> impl Fn(object::read::Error) -> LinkError {
        move |e| self.broken(what, format!("{e}"))
    }

    fn object(&self, arch: &dyn Arch) -> Result<Object<'d>, LinkError> {
        let endian = self.endian;
        let ident = elf_ident(self.header, endian);
        arch.accepts(&ident)
            .map_err(|why| LinkError::WrongMachine { object: String::from(self.name), why: String::from(why) })?;
        let e_type = self.header.e_type(endian);
        if e_type != elf::ET_REL {
            return Err(LinkError::WrongType { object: String::from(self.name), e_type: e_type.0 });
        }
        let table = self.header.sections(endian, self.data).map_err(self.unreadable("section headers"))?;
        let mut sections = self.sections(&table)?;
        let (symtab, symtab_index) = self.symtab(&table)?;
        let symbols = self.symbols(arch, &symtab, &sections)?;
        self.relocation_tables(&table, symtab_index, &mut sections)?;
        let groups = self.groups(&table, symtab_index, &symbols, &mut sections)?;
        let object = Object { name: self.name, ident, sections, symbols, groups };
        refuse_bitcode(&object)?;
        Ok(object)
    }

    fn sections(&self, table: &SectionTable<'d, H>) -> Result<Vec<InSection<'d>>, LinkError> {
        let endian = self.endian;
        let mut out = Vec::with_capacity(table.len());
        let mut total = 0u64;
        for sh in table.iter() {
            let name = if out.is_empty() {
                Cow::Borrowed("")
            } else {
                String::from_utf8_lossy(table.section_name(endian, sh).map_err(self.unreadable("section names"))?)
            };
            let kind = sh.sh_type(endian);
            // The null section's size counts sections in files with very many of them.
            let data = if kind == elf::SHT_NULL {
                &[]
            } else {
                sh.data(endian, self.data).map_err(self.unreadable("section contents"))?
            };
            total = total.saturating_add(data.len() as u64);
            out.push(InSection {
                name,
                kind: kind.0,
                flags: sh.sh_flags(endian).0,
                size: if kind == elf::SHT_NULL { 0 } else { sh.sh_size(endian).into() },
                align: sh.sh_addralign(endian).into(),
                data,
                relocs: Vec::new(),
                group: None,
            });
        }
        // Contents never overlap in what compilers write. Without this rule a small file could ask for any amount of work.
        if total > self.data.len() as u64 {
            return Err(self.broken("section headers", "the contents of sections overlap"));
        }
        Ok(out)
    }

    /// The symbol table and its section index.
    fn symtab(&self, table: &SectionTable<'d, H>) -> Result<(SymbolTable<'d, H>, u32), LinkError> {
        let is_symtab = |sh: &&H::SectionHeader| sh.sh_type(self.endian) == elf::SHT_SYMTAB;
        if table.iter().filter(is_symtab).count() > 1 {
            return Err(self.broken("symbol table", "there are several"));
        }
        let symtab = table.symbols(self.endian, self.data, elf::SHT_SYMTAB).map_err(self.unreadable("symbol table"))?;
        let index = symtab.section().0 as u32;
        Ok((symtab, index))
    }

    fn symbols(
        &self,
        arch: &dyn Arch,
        symtab: &SymbolTable<'d, H>,
        sections: &[InSection<'d>],
    ) -> Result<Vec<InSymbol<'d>>, LinkError> {
        let endian = self.endian;
        let reserved = |shndx: u16| {
            let theirs = elf::SHN_LOPROC..=elf::SHN_HIPROC;
            theirs.contains(&shndx).then(|| arch.reserved_index(shndx)).flatten()
        };
        let mut out = Vec::with_capacity(symtab.len());
        for (index, sym) in symtab.enumerate() {
            let kind = match sym.st_type() {
                elf::STT_NOTYPE => Kind::Untyped,
                elf::STT_OBJECT | elf::STT_COMMON => Kind::Object,
                elf::STT_FUNC => Kind::Function,
                elf::STT_GNU_IFUNC => Kind::Ifunc,
                elf::STT_TLS => Kind::Tls,
                elf::STT_SECTION => Kind::Section,
                _ => Kind::Other,
            };
            let name = sym.name(endian, symtab.strings()).map_err(self.unreadable("symbol names"))?;
            let Ok(name) = core::str::from_utf8(name) else {
                return Err(self.broken("symbol names", format!("symbol {} is not UTF-8", index.0)));
            };
            let (value, size): (u64, u64) = (sym.st_value(endian).into(), sym.st_size(endian).into());
            let shndx = sym.st_shndx(endian);
            let at = match shndx {
                elf::SHN_UNDEF => At::Undefined,
                elf::SHN_ABS => At::Absolute(value),
                elf::SHN_COMMON => At::Common { align: value },
                _ if reserved(shndx.0) == Some(ReservedIndex::Common) => At::Common { align: value },
                _ if reserved(shndx.0) == Some(ReservedIndex::Undefined) => At::Undefined,
                _ => {
                    let section = symtab.symbol_section(endian, sym, index);
                    let Some(section) = section.map_err(self.unreadable("symbol table"))? else {
                        return Err(self
                            .broken("symbol table", format!("`{name}` has the special section index {:#x}", shndx.0)));
                    };
                    let Some(s) = sections.get(section.0) else {
                        return Err(self.broken("symbol table", format!("`{name}` lies in no section")));
                    };
                    if kind != Kind::Other && value > s.size {
                        return Err(self.broken("symbol table", format!("`{name}` lies outside {}", s.name)));
                    }
                    At::Section { index: section.0 as u32, value }
                }
            };
            let bind = match sym.st_bind() {
                elf::STB_LOCAL => Bind::Local,
                elf::STB_GLOBAL => Bind::Global,
                elf::STB_WEAK => Bind::Weak,
                elf::STB_GNU_UNIQUE => Bind::Unique,
                _ => return Err(self.broken("symbol table", format!("`{name}` has an unknown binding"))),
            };
            if bind != Bind::Local && name.is_empty() {
                return Err(self.broken("symbol table", "a global symbol without a name"));
            }
            if bind == Bind::Local && matches!(at, At::Common { .. }) {
                return Err(self.broken("symbol table", format!("`{name}` is a local COMMON symbol")));
            }
            out.push(InSymbol { name, at, size, kind, bind, other: sym.st_other().0 });
        }
        Ok(out)
    }

    fn relocation_tables(
        &self,
        table: &SectionTable<'d, H>,
        symtab: u32,
        sections: &mut [InSection<'d>],
    ) -> Result<(), LinkError> {
        let endian = self.endian;
        for (index, sh) in table.enumerate() {
            let kind = sh.sh_type(endian);
            let rela = match kind {
                elf::SHT_RELA => true,
                elf::SHT_REL => false,
                elf::SHT_RELR | elf::SHT_CREL => {
                    let name = sections.get(index.0).map_or("", |s| &s.name);
                    return Err(self.broken("relocations", format!("{name} is in a compact format")));
                }
                _ => continue,
            };
            let entries = sections.get(index.0).map_or(&[][..], |s| s.data);
            if sh.sh_link(endian) != symtab {
                return Err(self.broken("relocations", "they refer to another table than the symbol table"));
            }
            let Some(target) = sections.get_mut(sh.sh_info(endian) as usize).filter(|s| s.kind != elf::SHT_NULL.0)
            else {
                return Err(self.broken("relocations", "they apply to a section that does not exist"));
            };
            if !entries.is_empty() {
                target.relocs.push(RelocTable { entries, rela });
            }
        }
        Ok(())
    }

    /// COMDAT groups; groups without that flag only keep sections together, which a patch always does.
    fn groups(
        &self,
        table: &SectionTable<'d, H>,
        symtab: u32,
        symbols: &[InSymbol<'d>],
        sections: &mut [InSection<'d>],
    ) -> Result<Vec<Group<'d>>, LinkError> {
        let endian = self.endian;
        let mut groups = Vec::new();
        for (_, sh) in table.enumerate() {
            let Some((flags, members)) = sh.group(endian, self.data).map_err(self.unreadable("section group"))? else {
                continue;
            };
            if flags.0 & elf::GRP_COMDAT.0 == 0 {
                continue;
            }
            if sh.link(endian) != SectionIndex(symtab as usize) {
                return Err(self.broken("section group", "its signature is not in the symbol table"));
            }
            let Some(symbol) = symbols.get(sh.sh_info(endian) as usize) else {
                return Err(self.broken("section group", "its signature is no symbol"));
            };
            let signature = match symbol.at {
                At::Section { index, .. } if symbol.kind == Kind::Section => {
                    sections.get(index as usize).map_or(Cow::Borrowed(""), |s| s.name.clone())
                }
                _ => Cow::Borrowed(symbol.name),
            };
            for m in members {
                let Some(section) = sections.get_mut(m.get(endian) as usize) else {
                    return Err(self.broken("section group", "a member does not exist"));
                };
                if section.group.is_some() {
                    return Err(self.broken("section group", format!("{} is in two groups", section.name)));
                }
                section.group = Some(groups.len() as u32);
            }
            groups.push(Group { signature });
        }
        // The oldest form of COMDAT: the section's name is the signature.
        for section in sections.iter_mut().filter(|s| s.group.is_none() && s.name.starts_with(".gnu.linkonce.")) {
            section.group = Some(groups.len() as u32);
            groups.push(Group { signature: section.name.clone() });
        }
        Ok(groups)
    }
}

/// Objects that hold nothing but a compiler's intermediate code. Those that hold machine code as well are fine.
fn refuse_bitcode(object: &Object<'_>) -> Result<(), LinkError> {
    let slim = object.symbols.iter().any(|s| s.name == "__gnu_lto_slim");
    let marked = object.sections.iter().any(|s| s.name.starts_with(".gnu.lto_"));
    let empty = || {
        object
            .sections
            .iter()
            .all(|s| s.size == 0 || !s.is(elf::SHF_ALLOC) || s.kind == elf::SHT_NOTE.0 || s.name.starts_with(".tfix."))
    };
    if slim || (marked && empty()) {
        return Err(LinkError::Lto { object: String::from(object.name) });
    }
    Ok(())
}
