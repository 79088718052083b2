//! GOT slots and veneers, and where thread-local storage lies.
//!
//! Odd in this psABI:
//! * Code reaches the GOT through $gp, which points 0x7ff0 past the GOT's start, so that signed 16-bit offsets reach 64 KiB
//!   of it. A function sets $gp from its own address (`_gp_disp`; n64: `%neg(%gp_rel(f))`), or, in code that is linked at
//!   fixed addresses, from the constant `__gnu_local_gp`. Both mean the GOT of the code's own module.
//! * Local data has no slots of its own: a slot holds the *page*, the address rounded to the nearest multiple of 64 KiB, and
//!   the instruction adds the rest, which a signed 16-bit offset reaches (`R_MIPS_GOT16` against local symbols,
//!   `R_MIPS_GOT_PAGE`).
//! * `_gp` is something else: the *program's* global pointer, for small data (`-G`).
//! * Position-independent functions want their own address in $t9. A call from code that does not know this goes
//!   through a veneer that sets it, as GNU ld's la25 stubs do.
//! * Thread-local storage is variant I: the executable's block begins 0x7000 below the thread pointer.
//!
//! Sources: *System V ABI, MIPS RISC Processor Supplement*, "Global Offset Table", "Position-Independent Function
//! Prologue"; *64-bit ELF Object File Specification*, "Global Offset Table"; gcc's
//! documentation of `-mno-shared` (`__gnu_local_gp`); *ELF Handling For Thread-Local Storage* and the MIPS
//! supplement to it (glibc `sysdeps/mips/nptl/tls.h`, TLS_TP_OFFSET).

use crate::relocations::{HI16, HIGHER, HIGHEST, LO16, PAGE_WORD_32, PAGE_WORD_64};
use crate::trampoline::{LUI_T9, LUI_WIDE_T9, bytes};
use crate::{BIG, LITTLE, Mips};
use tigerfix_core::arch::{GotBuilder, Veneer};
use tigerfix_core::field::Endian;

/// From the GOT's start to where $gp points.
const GP_BIAS: u64 = 0x7ff0;
/// From the start of the executable's TLS block to the thread pointer.
const TP_BIAS: i64 = 0x7000;

const RELOCS_32: &[(u8, u32, i64)] = &[(0, HI16, 0), (4, LO16, 0)];
const RELOCS_64: &[(u8, u32, i64)] = &[(0, HIGHEST, 0), (4, HIGHER, 0), (12, HI16, 0), (20, LO16, 0)];

static VENEER_32_BE: Veneer = Veneer { code: &bytes::<4, 16>(&LUI_T9, BIG), relocs: RELOCS_32 };
static VENEER_32_LE: Veneer = Veneer { code: &bytes::<4, 16>(&LUI_T9, LITTLE), relocs: RELOCS_32 };
static VENEER_64_BE: Veneer = Veneer { code: &bytes::<8, 32>(&LUI_WIDE_T9, BIG), relocs: RELOCS_64 };
static VENEER_64_LE: Veneer = Veneer { code: &bytes::<8, 32>(&LUI_WIDE_T9, LITTLE), relocs: RELOCS_64 };

impl GotBuilder for Mips {
    fn slot_size(&self) -> u8 {
        if self.is_64 { 8 } else { 4 }
    }

    fn gp_bias(&self) -> u64 {
        GP_BIAS
    }

    fn veneer(&self) -> &'static Veneer {
        match (self.is_64, self.endian) {
            (false, Endian::Big) => &VENEER_32_BE,
            (false, Endian::Little) => &VENEER_32_LE,
            (true, Endian::Big) => &VENEER_64_BE,
            (true, Endian::Little) => &VENEER_64_LE,
        }
    }

    fn page_word(&self) -> Option<u32> {
        Some(if self.is_64 { PAGE_WORD_64 } else { PAGE_WORD_32 })
    }

    /// n64: "G: the offset of the GOT entry of S + A"; O32 has addends with local symbols only, where it is the same.
    fn addend_in_slot(&self) -> bool {
        true
    }

    /// `_gp_disp` is not among them: it means the distance from an instruction to the GOT pointer, and its relocations have
    /// types of their own once they are normalised.
    fn got_symbols(&self) -> &'static [&'static str] {
        &["__gnu_local_gp", "_GLOBAL_OFFSET_TABLE_"]
    }

    fn global_pointer_symbol(&self) -> Option<&'static str> {
        Some("_gp")
    }

    fn tp_offset(&self, _size: u64, _align: u64) -> i64 {
        -TP_BIAS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trampoline::tests::text;
    use crate::{MIPS, MIPS64, MIPS64EL, MIPSEL};
    use std::vec::Vec;
    use tigerfix_core::arch::{Arch, Relocator};
    use tigerfix_core::relocate::settle;

    fn veneer_for(arch: &Mips, function: u64) -> Vec<u8> {
        let v = arch.veneer();
        let mut code = v.code.to_vec();
        for (at, r_type, addend) in v.relocs {
            let howto = arch.howto(*r_type).unwrap();
            settle(arch, howto, &mut code, (*at).into(), function, *addend, 0).unwrap();
        }
        code
    }

    #[test]
    fn veneers_hand_over_the_address() {
        for arch in [&MIPS, &MIPSEL] {
            assert_eq!(
                text(arch, &veneer_for(arch, 0x8012_9ffc), 0),
                "lui $t9, 0x8013; addiu $t9, $t9, -0x6004; jr $t9; nop"
            );
        }
        for arch in [&MIPS64, &MIPS64EL] {
            assert_eq!(
                text(arch, &veneer_for(arch, 0xffff_9fff_9fff_8ff0), 0),
                "lui $t9, 0; daddiu $t9, $t9, -0x6000; dsll $t9, $t9, 0x10; daddiu $t9, $t9, -0x6000; \
                 dsll $t9, $t9, 0x10; daddiu $t9, $t9, -0x7010; jr $t9; nop"
            );
        }
    }

    /// What the instructions compute, whatever carries there are between the pieces.
    #[test]
    fn wide_veneers_add_up() {
        let sext = |word: u32| i64::from(word as u16 as i16) as u64;
        for f in [0, 0x7fff_7fff_7fff_7ffc, 0x8000_8000_8000_8000, 0xff_ffff_fffc, 0x1_2000_9abc, u64::MAX - 3] {
            let code = veneer_for(&MIPS64, f);
            let w: Vec<u32> = code.chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect();
            let highest = sext(w[0]) << 16;
            let mut t9 = highest.wrapping_add(sext(w[1])) << 16;
            t9 = t9.wrapping_add(sext(w[3])) << 16;
            assert_eq!(t9.wrapping_add(sext(w[5])), f, "{f:#x}");
        }
    }

    #[test]
    fn page_and_offset_make_the_address() {
        for arch in [&MIPS, &MIPS64EL] {
            let page = arch.howto(arch.page_word().unwrap()).unwrap();
            for s in [0x1_0000u64, 0x40_7fff, 0x40_8000, 0x7fff_ffff, 0xffff_8000] {
                let mut slot = [0u8; 8];
                settle(arch, page, &mut slot, 0, s, 0, 0).unwrap();
                let size = usize::from(arch.slot_size());
                let held = tigerfix_core::field::load(&slot[..size], arch.data_endian());
                let rest = i64::from(s as u16 as i16);
                let mask = if arch.is_64 { u64::MAX } else { 0xffff_ffff };
                assert_eq!(held & 0xffff, 0);
                assert_eq!(held.wrapping_add_signed(rest) & mask, s & mask, "{s:#x}");
            }
        }
    }

    #[test]
    fn thread_pointer_is_past_the_block() {
        assert_eq!(MIPS.tp_offset(0x24, 0x10), -0x7000);
        assert_eq!(MIPS64.tp_offset(0, 0), -0x7000);
    }
}
