//! Relocation entries as the file has them, made neutral.
//!
//! Odd in this psABI: the document allows REL sections too ("a binary file may use REL or RELA relocations or a mixture
//! of the two"), and says how addends are read from instructions. No LP64 tool writes them, so they are refused. Relocations that mean
//! a GOT slot have no addend ("must have a zero addend"), and several of one place are composed; no compiler does either.
//!
//! Source: AAELF64, "Relocation", "Addends and PC-bias"; gABI, "Relocation" (`ELF64_R_SYM`, `ELF64_R_TYPE`).

use crate::Aarch64;
use alloc::vec::Vec;
use tigerfix_core::arch::{Expr, NormalizeError, RawRelocs, Reloc, Relocator};
use tigerfix_core::field::{Endian, load};

/// Size of `Elf64_Rela`: r_offset, r_info, r_addend of 8 bytes each.
const ENTRY: usize = 24;

pub(crate) fn normalize(raw: &RawRelocs<'_>) -> Result<Vec<Reloc>, NormalizeError> {
    let refuse = |what| Err(NormalizeError { offset: 0, r_type: 0, what });
    if !raw.rela {
        return refuse("addends inside of instructions (a section of type SHT_REL) are not supported");
    }
    if !raw.is_64 || raw.endian != Endian::Little {
        return refuse("the entries are not little-endian Elf64_Rela");
    }
    let (entries, rest) = raw.entries.as_chunks::<ENTRY>();
    if !rest.is_empty() {
        return refuse("the section's size is not a multiple of 24, the size of Elf64_Rela");
    }
    let word = |bytes: &[u8]| load(bytes, Endian::Little);
    let mut all: Vec<Reloc> = Vec::with_capacity(entries.len());
    for e in entries {
        let info = word(&e[8..16]);
        let reloc = Reloc {
            offset: word(&e[..8]),
            r_type: info as u32,         // ELF64_R_TYPE
            symbol: (info >> 32) as u32, // ELF64_R_SYM
            addend: word(&e[16..]) as i64,
        };
        let broken = |what| Err(NormalizeError { offset: reloc.offset, r_type: reloc.r_type, what });
        if reloc.addend != 0 && takes_no_addend(reloc.r_type) {
            return broken("it means a GOT slot, and has an addend, which such relocations must not have");
        }
        // The result of the one would be the addend of the other.
        if all.last().is_some_and(|l| l.offset == reloc.offset && stores(l.r_type) && stores(reloc.r_type)) {
            return broken("it is composed with another relocation of the same place, which is not supported");
        }
        all.push(reloc);
    }
    Ok(all)
}

fn takes_no_addend(r_type: u32) -> bool {
    Aarch64.howto(r_type).is_some_and(|h| {
        matches!(
            h.expr,
            Expr::Got
                | Expr::GotPagePc { .. }
                | Expr::GotPageOffset { .. }
                | Expr::GotFromPage { .. }
                | Expr::GotTpOffPc
                | Expr::GotTpOffPagePc { .. }
                | Expr::GotTpOffPageOffset { .. }
        ) || h.expr == Expr::GotPc && h.align > 1
    })
}

fn stores(r_type: u32) -> bool {
    Aarch64.howto(r_type).is_some_and(|h| h.field.bytes != 0)
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
        b[8..16].copy_from_slice(&[0x1b, 1, 0, 0, 7, 0, 0, 0x80]); // CALL26 against symbol 0x80000007
        b[16..24].copy_from_slice(&(-4i64).to_le_bytes());
        b[24..32].copy_from_slice(&0x1_0000_0000u64.to_le_bytes());
        b[32] = 0xff; // no such type: passed on, the linker refuses it by its number
        let got = normalize(&raw(&b)).unwrap();
        assert_eq!(got[0], Reloc { offset: 0x10, r_type: 283, symbol: 0x8000_0007, addend: -4 });
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

    #[test]
    fn refuses_what_would_be_settled_wrong() {
        let entry = |offset: u64, r_type: u32, addend: i64| {
            [offset.to_le_bytes(), u64::from(r_type).to_le_bytes(), addend.to_le_bytes()].concat()
        };
        // ADR_GOT_PAGE, LD64_GOT_LO12_NC, GOT_LD_PREL19, LD64_GOTPAGE_LO15, TLSIE_ADR_GOTTPREL_PAGE21, TLSIE_LD64_GOTTPREL_LO12_NC
        for r_type in [311, 312, 309, 313, 541, 542, 543] {
            assert!(normalize(&raw(&entry(8, r_type, 0))).is_ok());
            let e = normalize(&raw(&entry(8, r_type, 4))).unwrap_err();
            assert_eq!((e.offset, e.r_type), (8, r_type));
            assert!(e.what.contains("addend"));
        }
        // ADRP with an addend, GOTPCREL32 (of data)
        assert!(normalize(&raw(&entry(8, 275, 4))).is_ok() && normalize(&raw(&entry(8, 315, 4))).is_ok());
        let two = |a, b| normalize(&raw(&[entry(8, a, 0), entry(8, b, 0)].concat()));
        assert!(two(257, 260).unwrap_err().what.contains("composed"));
        assert!(two(0, 283).is_ok(), "R_AARCH64_NONE is none");
    }
}
