//! The ELF objects that are loaded in a target, read from its memory alone (so that deleted files, containers and the
//! vDSO are no special cases).

use crate::addr::{Bias, RunAddr};
use crate::error::Explain as _;
use crate::field::{Endian, load};
use crate::model::{Identity, ProgramRef};
use crate::session::error::SessionError;
use crate::session::resident;
use crate::target::{Mapping, Target, TargetError};
use alloc::{format, string::String, vec, vec::Vec};
use sha2::{Digest as _, Sha256};

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_NOTE: u64 = 4;
const PT_GNU_EH_FRAME: u64 = 0x6474_e550;
const NT_GNU_BUILD_ID: u64 = 3;
const ET_EXEC: u64 = 2;
/// More than any real program has; bounds what a hostile header can make us read.
const MAX_PHDRS: u64 = 512;
const MAX_NOTES: u64 = 64 * 1024;

/// One ELF object as loaded.
#[derive(Clone, Debug)]
pub struct Module {
    /// Path or bracketed name as the kernel shows it.
    pub name: String,
    /// 64-bit class.
    pub is_64: bool,
    /// Byte order of data.
    pub endian: Endian,
    /// `e_machine`
    pub machine: u16,
    /// What the loader added to link-time addresses.
    pub bias: Bias,
    /// First and past-the-last loaded address.
    pub range: (RunAddr, RunAddr),
    /// `.dynamic`: address and size.
    pub dynamic: Option<(RunAddr, u64)>,
    /// `.eh_frame_hdr`: address and size.
    pub eh_frame_hdr: Option<(RunAddr, u64)>,
    /// PT_LOAD segments: start and end.
    pub loads: Vec<(RunAddr, RunAddr)>,
    /// NT_GNU_BUILD_ID.
    pub build_id: Option<Vec<u8>>,
    /// The mapping of the file's start.
    pub mapping: Mapping,
}

impl Module {
    /// Does it hold `addr`?
    #[must_use]
    pub fn contains(&self, addr: RunAddr) -> bool {
        self.loads.iter().any(|(lo, hi)| *lo <= addr && addr < *hi)
    }

    /// Size of an address word, bytes.
    #[must_use]
    pub fn word(&self) -> usize {
        if self.is_64 { 8 } else { 4 }
    }

    /// The file name without its directory, and without the kernel's mark for deleted files.
    #[must_use]
    pub fn file_name(&self) -> &str {
        let name = self.name.strip_suffix(" (deleted)").unwrap_or(&self.name);
        name.rsplit('/').next().unwrap_or(name)
    }
}

/// All modules among `mappings`, in address order.
///
/// # Errors
/// Only when the target is gone; an object that can't be read is left out.
pub fn modules(target: &mut dyn Target, mappings: &[Mapping]) -> Result<Vec<Module>, TargetError> {
    if let Some(program) = target.mappings().and_then(|m| m.fixed_program()) {
        return Ok(resident::module(&program).into_iter().collect());
    }
    let mut out = Vec::new();
    for m in mappings {
        if m.offset != 0 || !m.perm.read || m.name.is_empty() || m.name.starts_with("[v") && m.name != "[vdso]" {
            continue;
        }
        if let Some(module) = read_module(target, m) {
            out.push(module);
        }
    }
    Ok(out)
}

/// Reads the fields of a 32- or 64-bit ELF structure.
struct Fields<'a> {
    bytes: &'a [u8],
    endian: Endian,
}

impl Fields<'_> {
    fn at(&self, offset: usize, len: usize) -> Option<u64> {
        Some(load(self.bytes.get(offset..offset + len)?, self.endian))
    }
}

fn read_module(target: &mut dyn Target, mapping: &Mapping) -> Option<Module> {
    parse_module(mapping, None, &mut |place, buf| {
        let at = match place {
            Place::Header(offset) => mapping.start.offset(offset),
            Place::Loaded { at, .. } => at,
        };
        target.read(at, buf).ok()
    })
}

/// Where something of an ELF object is found: its headers by their offset in the file, loaded contents by either.
pub(super) enum Place {
    /// Offset in the file.
    Header(u64),
    /// Offset in the file, and the address.
    Loaded {
        /// Offset in the file.
        offset: u64,
        /// Address.
        at: RunAddr,
    },
}

/// Reads an object's headers through `read`. `bias`: what was added to its addresses, where the start of `mapping` does not
/// tell.
pub(super) fn parse_module(
    mapping: &Mapping,
    bias: Option<Bias>,
    read: &mut dyn FnMut(Place, &mut [u8]) -> Option<()>,
) -> Option<Module> {
    // The smaller of the two classes' headers is all there may be.
    let mut header = [0u8; 64];
    read(Place::Header(0), &mut header[..52])?;
    if header[4] == 2 {
        read(Place::Header(52), &mut header[52..])?;
    }
    if &header[..4] != b"\x7fELF" {
        return None;
    }
    let is_64 = header[4] == 2;
    let endian = if header[5] == 2 { Endian::Big } else { Endian::Little };
    let h = Fields { bytes: &header, endian };
    // Offsets: ELF specification, Elf32_Ehdr and Elf64_Ehdr.
    let (e_phoff, e_phentsize, e_phnum) =
        if is_64 { (h.at(32, 8)?, h.at(54, 2)?, h.at(56, 2)?) } else { (h.at(28, 4)?, h.at(42, 2)?, h.at(44, 2)?) };
    let entry_size = if is_64 { 56 } else { 32 };
    if e_phentsize != entry_size || e_phnum > MAX_PHDRS {
        return None;
    }
    let mut table = vec![0u8; usize::try_from(e_phnum * entry_size).ok()?];
    read(Place::Header(e_phoff), &mut table)?;

    let (mut loads, mut notes) = (Vec::new(), Vec::new());
    let (mut dynamic, mut eh_frame_hdr, mut first) = (None, None, None);
    for entry in table.chunks_exact(entry_size as usize) {
        let p = Fields { bytes: entry, endian };
        let (kind, offset, vaddr, memsz) = if is_64 {
            (p.at(0, 4)?, p.at(8, 8)?, p.at(16, 8)?, p.at(40, 8)?)
        } else {
            (p.at(0, 4)?, p.at(4, 4)?, p.at(8, 4)?, p.at(20, 4)?)
        };
        match kind {
            PT_LOAD => {
                if first.is_none() {
                    first = Some(vaddr.wrapping_sub(offset));
                }
                loads.push((vaddr, vaddr.wrapping_add(memsz)));
            }
            PT_DYNAMIC => dynamic = Some((vaddr, memsz)),
            PT_GNU_EH_FRAME => eh_frame_hdr = Some((vaddr, memsz)),
            PT_NOTE => notes.push((vaddr, offset, memsz)),
            _ => {}
        }
    }
    let e_type = h.at(16, 2)?;
    let bias = match bias {
        Some(b) => b,
        None if e_type == ET_EXEC => Bias(0),
        None => Bias(mapping.start.0.wrapping_sub(first?)),
    };
    let run = |v: u64| RunAddr(v.wrapping_add(bias.0));
    let low = loads.iter().map(|l| l.0).min()?;
    let high = loads.iter().map(|l| l.1).max()?;
    let mut build_id = None;
    for (vaddr, offset, size) in notes {
        let mut bytes = vec![0u8; usize::try_from(size.min(MAX_NOTES)).ok()?];
        if read(Place::Loaded { offset, at: run(vaddr) }, &mut bytes).is_some()
            && let Some(id) = find_build_id(&bytes, endian)
        {
            build_id = Some(id);
            break;
        }
    }
    Some(Module {
        name: mapping.name.clone(),
        is_64,
        endian,
        machine: h.at(18, 2)? as u16,
        bias,
        range: (run(low), run(high)),
        dynamic: dynamic.map(|(v, s)| (run(v), s)),
        eh_frame_hdr: eh_frame_hdr.map(|(v, s)| (run(v), s)),
        loads: loads.into_iter().map(|(a, b)| (run(a), run(b))).collect(),
        build_id,
        mapping: mapping.clone(),
    })
}

fn find_build_id(notes: &[u8], endian: Endian) -> Option<Vec<u8>> {
    let f = Fields { bytes: notes, endian };
    let mut at = 0usize;
    loop {
        let namesz = usize::try_from(f.at(at, 4)?).ok()?;
        let descsz = usize::try_from(f.at(at + 4, 4)?).ok()?;
        let kind = f.at(at + 8, 4)?;
        let name = at + 12;
        let desc = name.checked_add(namesz.checked_next_multiple_of(4)?)?;
        let end = desc.checked_add(descsz)?;
        if kind == NT_GNU_BUILD_ID && notes.get(name..name + namesz)? == b"GNU\0" {
            return notes.get(desc..end).map(<[u8]>::to_vec);
        }
        at = end.checked_next_multiple_of(4)?;
    }
}

/// The module that is the package's program.
///
/// # Errors
/// [`SessionError::ProgramNotLoaded`], with the identity of a module of the same name where there is one.
pub fn find_program<'m>(
    target: &mut dyn Target,
    modules: &'m [Module],
    program: &ProgramRef,
) -> Result<&'m Module, SessionError> {
    let mut found = None;
    // Namesakes first: hashing a file is the slow way.
    let (same, other): (Vec<_>, Vec<_>) = modules.iter().partition(|m| m.file_name() == program.file);
    for (m, namesake) in same.iter().map(|m| (*m, true)).chain(other.iter().map(|m| (*m, false))) {
        match &program.identity {
            Identity::BuildId(id) => {
                if m.build_id.as_ref() == Some(id) {
                    return Ok(m);
                }
                if namesake {
                    found =
                        Some(m.build_id.as_ref().map_or_else(
                            || String::from("no build-id"),
                            |b| format!("{}", Identity::BuildId(b.clone())),
                        ));
                }
            }
            Identity::Sha256(digest) => {
                // A program without a build-id can only be a module without one.
                if m.build_id.is_some() {
                    if namesake {
                        found = m.build_id.clone().map(|b| format!("{}", Identity::BuildId(b)));
                    }
                    continue;
                }
                let Some(maps) = target.mappings() else { continue };
                match maps.file(&m.mapping) {
                    Ok(bytes) => {
                        let actual: [u8; 32] = Sha256::digest(&bytes).into();
                        if actual == *digest {
                            return Ok(m);
                        }
                        if namesake {
                            found = Some(format!("{}", Identity::Sha256(actual)));
                        }
                    }
                    Err(e) if namesake => found = Some(format!("a file that can't be read ({}: {e})", e.rule())),
                    Err(_) => {}
                }
            }
        }
    }
    Err(SessionError::ProgramNotLoaded {
        target: target.describe(),
        file: program.file.clone(),
        wanted: format!("{}", program.identity),
        found,
    })
}
