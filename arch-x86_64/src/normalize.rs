//! Relocation entries as the file has them, made neutral.
//!
//! Odd in this psABI: nothing. Entries are `Elf64_Rela` only ("The AMD64 LP64 ABI architecture uses only Elf64_Rela
//! relocation entries with explicit addends"), so a SHT_REL section means a broken tool and is refused: guessing at
//! addends would corrupt code silently.
//!
//! Source: psABI, "Relocation"; gABI, "Relocation" (`ELF64_R_SYM`, `ELF64_R_TYPE`).

use alloc::vec::Vec;
use tigerfix_core::arch::{NormalizeError, RawRelocs, Reloc};
use tigerfix_core::field::{Endian, load};

/// Size of `Elf64_Rela`: r_offset, r_info, r_addend of 8 bytes each.
const ENTRY: usize = 24;

pub(crate) fn normalize(raw: &RawRelocs<'_>) -> Result<Vec<Reloc>, NormalizeError> {
    let refuse = |what| Err(NormalizeError { offset: 0, r_type: 0, what });
    if !raw.rela {
        return refuse("this ABI has explicit addends only, but the section is of type SHT_REL");
    }
    if !raw.is_64 || raw.endian != Endian::Little {
        return refuse("the entries are not little-endian Elf64_Rela");
    }
    let (entries, rest) = raw.entries.as_chunks::<ENTRY>();
    if !rest.is_empty() {
        return refuse("the section's size is not a multiple of 24, the size of Elf64_Rela");
    }
    let word = |bytes: &[u8]| load(bytes, Endian::Little);
    Ok(entries
        .iter()
        .map(|e| {
            let info = word(&e[8..16]);
            Reloc {
                offset: word(&e[..8]),
                r_type: info as u32,         // ELF64_R_TYPE
                symbol: (info >> 32) as u32, // ELF64_R_SYM
                addend: word(&e[16..]) as i64,
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(entries: &[u8]) -> RawRelocs<'_> {
        RawRelocs {
            entries,
            rela: true,
            section: &[],
            is_64: true,
            endian: Endian::Little,
            is_local: &|_| false,
            name: &|_| "",
        }
    }

    #[test]
    fn entries_in_file_order() {
        let mut b = [0u8; 48];
        b[0] = 0x10;
        b[8..16].copy_from_slice(&[4, 0, 0, 0, 7, 0, 0, 0x80]); // PLT32 against symbol 0x80000007
        b[16..24].copy_from_slice(&(-4i64).to_le_bytes());
        b[24..32].copy_from_slice(&0x1_0000_0000u64.to_le_bytes());
        b[32] = 0xff; // no such type: passed on, the linker refuses it by its number
        let got = normalize(&raw(&b)).unwrap();
        assert_eq!(got[0], Reloc { offset: 0x10, r_type: 4, symbol: 0x8000_0007, addend: -4 });
        assert_eq!(got[1], Reloc { offset: 0x1_0000_0000, r_type: 255, symbol: 0, addend: 0 });
        assert_eq!(normalize(&raw(&[])), Ok(Vec::new()));
    }

    #[test]
    fn refuses_what_the_abi_does_not_have() {
        let b = [0u8; 24];
        let what = |r: RawRelocs<'_>| normalize(&r).unwrap_err().what;
        assert!(what(RawRelocs { rela: false, ..raw(&b) }).contains("SHT_REL"));
        assert!(what(RawRelocs { is_64: false, ..raw(&b) }).contains("Elf64_Rela"));
        assert!(what(RawRelocs { endian: Endian::Big, ..raw(&b) }).contains("little-endian"));
        assert!(what(raw(&b[..23])).contains("multiple of 24"));
    }
}
