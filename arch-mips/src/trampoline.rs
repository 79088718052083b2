//! Jump forms, padding, and the search for branches.
//!
//! Odd in this ABI:
//! * `j` replaces the lower 28 bits of the address of its *delay slot*: at 0x0ffffffc the region that it reaches is the next
//!   one. It reaches 256 MiB, aligned, and not so many bytes to either side.
//! * Every jump executes the instruction behind it first, so each is a pair of words, here with a `nop`. A pair can't be
//!   written at once: all threads have to stand still.
//! * Position-independent functions expect their own address in $t9, where the caller of the old function has put the old
//!   one's. For them the jump goes to a landing that sets $t9; being theirs on entry, it is nobody else's.
//! * $at, the assembler's own register, would do for a jump too, but $t9 alone serves both kinds of functions.
//! * In n64 the landing builds bits 47 to 0 of the address and extends the sign: that is all of user space (40 to 48 bits)
//!   and of the kernel's 32-bit compatible segments, but not the 64-bit physical segment (xkphys).
//!
//! Sources: *MIPS32 Architecture*, volume II, and *MIPS64 Architecture*, volume II ("J", "JR", "LUI", "ORI", "ADDIU",
//! "DADDIU", "DSLL"); *System V ABI, MIPS RISC Processor Supplement*, "Position-Independent Function Prologue".

use crate::Mips;
use tigerfix_core::arch::{Code, Constants, EncodeError, JumpForm, Reach, TrampolineEncoder, Via};
use tigerfix_core::field::Endian;

const NOP: u32 = 0x0000_0000;
/// `j`, its target's bits 27 to 2 in the lower 26 bits.
const J: u32 = 0x0800_0000;
/// `lui $t9, imm16`
const LUI: u32 = 0x3c19_0000;
/// `addiu $t9, $t9, imm16`
const ADDIU: u32 = 0x2739_0000;
/// `daddiu $t9, $t9, imm16`
const DADDIU: u32 = 0x6739_0000;
/// `ori $t9, $t9, imm16`
const ORI: u32 = 0x3739_0000;
/// `dsll $t9, $t9, 16`
const DSLL_16: u32 = 0x0019_cc38;
/// `jr $t9`
const JR_T9: u32 = 0x0320_0008;

/// lui $t9, %hi; addiu $t9, $t9, %lo; jr $t9; nop
pub(crate) const LUI_T9: [u32; 4] = [LUI, ADDIU, JR_T9, NOP];
/// lui %highest; daddiu %higher; dsll 16; daddiu %hi; dsll 16; daddiu %lo; jr; nop
pub(crate) const LUI_WIDE_T9: [u32; 8] = [LUI, DADDIU, DSLL_16, DADDIU, DSLL_16, DADDIU, JR_T9, NOP];
/// lui bits 47 to 32; ori bits 31 to 16; dsll 16; ori bits 15 to 0; jr; nop
const LUI_48_T9: [u32; 6] = [LUI, ORI, DSLL_16, ORI, JR_T9, NOP];

const J_LEN: u8 = 8;
const SET_LEN_32: u8 = 16;
const SET_LEN_64: u8 = 24;
const _: () = {
    assert!(2 * size_of::<u32>() == J_LEN as usize);
    assert!(size_of_val(&LUI_T9) == SET_LEN_32 as usize);
    assert!(size_of_val(&LUI_48_T9) == SET_LEN_64 as usize);
    assert!(SET_LEN_64 as usize <= Code::CAPACITY);
};

/// Instruction words as they lie in memory.
pub(crate) const fn bytes<const N: usize, const BYTES: usize>(words: &[u32; N], endian: Endian) -> [u8; BYTES] {
    assert!(BYTES == 4 * N);
    let mut out = [0; BYTES];
    let mut i = 0;
    while i < BYTES {
        let word = match endian {
            Endian::Big => words[i / 4].to_be_bytes(),
            Endian::Little => words[i / 4].to_le_bytes(),
        };
        out[i] = word[i % 4];
        i += 1;
    }
    out
}

/// Where a jump by $t9 from a program's addresses goes, for the message that an address is no such one.
const LOWER_HALF: Reach = Reach::Region { bits: 47, after: 0 };
const FIRST_4_GIB: Reach = Reach::Region { bits: 32, after: 0 };
/// Where `j` goes.
const REGION: Reach = Reach::Region { bits: 28, after: 4 };
const ALIGN: u8 = 4;
/// Registers of the forms that hand the function its address.
const SETS_T9: &[&str] = &["t9"];

/// Cheapest first. `set_len` is the length of the code that sets $t9 and jumps.
const fn forms(set_len: u8) -> [JumpForm; 4] {
    const JUMP: JumpForm = JumpForm {
        name: "j",
        len: J_LEN,
        align: ALIGN,
        reach: REGION,
        via: Via::Direct,
        landing_len: 0,
        landing_reach: Reach::Anywhere,
        own_address: false,
        clobbers: &[],
        single_store: false,
    };
    let landing = JumpForm { landing_len: set_len, own_address: true, clobbers: SETS_T9, ..JUMP };
    [
        // j new; nop
        JUMP,
        // j landing; nop -- landing in the image: set $t9; jr $t9; nop
        JumpForm { name: "j-landing", via: Via::ImageLanding, ..landing },
        // j island; nop -- the same in an island near the site
        JumpForm { name: "j-island", via: Via::NearIsland, ..landing },
        // set $t9; jr $t9; nop
        JumpForm { name: "long", len: set_len, reach: Reach::Anywhere, landing_len: 0, ..landing },
    ]
}

static FORMS_32: [JumpForm; 4] = forms(SET_LEN_32);
static FORMS_64: [JumpForm; 4] = forms(SET_LEN_64);

fn aligned(at: u64) -> Result<(), EncodeError> {
    if at.is_multiple_of(ALIGN.into()) { Ok(()) } else { Err(EncodeError::Misaligned { at, align: ALIGN }) }
}

impl Mips {
    fn code(&self, words: &[u32]) -> Code {
        words.iter().fold(Code::EMPTY, |code, w| code.then(&bytes::<1, 4>(&[*w], self.endian)))
    }

    /// j to; nop
    fn jump(&self, from: u64, to: u64) -> Result<Code, EncodeError> {
        aligned(from)?;
        aligned(to)?;
        if !REGION.holds(from, to) {
            return Err(EncodeError::OutOfReach { from, to, reach: REGION });
        }
        Ok(self.code(&[J | (to >> 2) as u32 & 0x03ff_ffff, NOP]))
    }

    /// set $t9 to `to`; jr $t9; nop
    fn set_and_jump(&self, from: u64, to: u64) -> Result<Code, EncodeError> {
        aligned(from)?;
        aligned(to)?;
        let half = |shift: u32| (to >> shift) as u32 & 0xffff;
        if self.is_64 {
            if ((to << 16) as i64 >> 16) as u64 != to {
                return Err(EncodeError::OutOfReach { from, to, reach: LOWER_HALF });
            }
            let [lui, ori, dsll, last, jr, nop] = LUI_48_T9;
            Ok(self.code(&[lui | half(32), ori | half(16), dsll, last | half(0), jr, nop]))
        } else {
            if to >> 32 != 0 {
                return Err(EncodeError::OutOfReach { from, to, reach: FIRST_4_GIB });
            }
            // `addiu` extends the sign of the lower half; the upper one makes up for it.
            let upper = (to.wrapping_add(0x8000) >> 16) as u32 & 0xffff;
            let [lui, addiu, jr, nop] = LUI_T9;
            Ok(self.code(&[lui | upper, addiu | half(0), jr, nop]))
        }
    }
}

impl TrampolineEncoder for Mips {
    fn forms(&self) -> &'static [JumpForm] {
        if self.is_64 { &FORMS_64 } else { &FORMS_32 }
    }

    fn encode_jump(&self, form: &JumpForm, from: u64, to: u64) -> Result<Code, EncodeError> {
        if form.reach == REGION { self.jump(from, to) } else { self.set_and_jump(from, to) }
    }

    fn encode_landing(&self, form: &JumpForm, at: u64, new: u64) -> Result<Code, EncodeError> {
        match form.via {
            Via::Direct => Ok(Code::EMPTY),
            Via::ImageLanding | Via::NearIsland => self.set_and_jump(at, new),
        }
    }

    /// There are none: an entry is any instruction.
    fn landing_pad_len(&self, _entry: &[u8]) -> u8 {
        0
    }

    /// Assemblers and linkers fill gaps with zero words, which are `nop`s.
    fn padding_len(&self, bytes: &[u8]) -> usize {
        bytes.as_chunks::<4>().0.iter().take_while(|w| **w == [0; 4]).count() * 4
    }

    fn scan_branches(
        &self,
        code: &[u8],
        at: u64,
        lo: u64,
        hi: u64,
        constants: &Constants<'_>,
        hit: &mut dyn FnMut(u64, u64),
    ) {
        crate::flow::scan_branches(self.is_64, self.endian, code, at, lo, hi, constants, hit);
    }

    fn leaves_delay_slot(&self, before: &[u8]) -> bool {
        crate::flow::leaves_delay_slot(self.endian, before)
    }

    fn may_return_behind(&self, before: &[u8]) -> bool {
        crate::flow::may_return_behind(self.endian, before)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{MIPS, MIPS64, MIPS64EL, MIPSEL};
    use capstone::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;
    use tigerfix_core::arch::Arch;

    /// What capstone prints for `code` at `at`, up to the first bytes that are no instruction.
    pub(crate) fn text(arch: &Mips, code: &[u8], at: u64) -> String {
        let mode = if arch.is_64 { arch::mips::ArchMode::Mips64 } else { arch::mips::ArchMode::Mips32 };
        let endian = if arch.endian == Endian::Big { capstone::Endian::Big } else { capstone::Endian::Little };
        let cs = Capstone::new().mips().mode(mode).endian(endian).build().unwrap();
        let all = cs.disasm_all(code, at).unwrap();
        let each: Vec<String> = all
            .iter()
            .map(|i| format!("{} {}", i.mnemonic().unwrap(), i.op_str().unwrap_or("")).trim_end().into())
            .collect();
        each.join("; ")
    }

    fn form(arch: &Mips, name: &str) -> &'static JumpForm {
        arch.forms().iter().find(|f| f.name == name).unwrap()
    }

    /// form, from, to, instruction words, assembly text
    type Row = (&'static str, u64, u64, &'static [u32], &'static str);

    const JUMPS_32: &[Row] = &[
        ("j", 0x40_1000, 0x40_2000, &[0x0810_0800, 0], "j 0x402000; nop"),
        ("j", 0x0fff_fff8, 0x0fff_fffc, &[0x0bff_ffff, 0], "j 0xffffffc; nop"),
        // The region is the delay slot's.
        ("j", 0x0fff_fffc, 0x1000_0000, &[0x0800_0000, 0], "j 0x10000000; nop"),
        ("j", 0x8010_0000, 0x8fff_fffc, &[0x0bff_ffff, 0], "j 0x8ffffffc; nop"),
        ("j-landing", 0x40_1000, 0x01ff_f000, &[0x087f_fc00, 0], "j 0x1fff000; nop"),
        ("j-island", 0x7700_0000, 0x7000_0000, &[0x0800_0000, 0], "j 0x70000000; nop"),
        (
            "long",
            0x40_1000,
            0x7712_9abc,
            &[0x3c19_7713, 0x2739_9abc, 0x0320_0008, 0],
            "lui $t9, 0x7713; addiu $t9, $t9, -0x6544; jr $t9; nop",
        ),
        (
            "long",
            0x8010_0000,
            0xffff_8000,
            &[0x3c19_0000, 0x2739_8000, 0x0320_0008, 0],
            "lui $t9, 0; addiu $t9, $t9, -0x8000; jr $t9; nop",
        ),
    ];

    const LANDINGS_32: &[Row] = &[
        ("j", 0x40_1000, 0x40_2000, &[], ""),
        ("long", 0x40_1000, 0x40_2000, &[], ""),
        (
            "j-landing",
            0x1ff_f000,
            0x1ff_e000,
            &[0x3c19_0200, 0x2739_e000, 0x0320_0008, 0],
            "lui $t9, 0x200; addiu $t9, $t9, -0x2000; jr $t9; nop",
        ),
        (
            "j-island",
            0x7000_0000,
            0x5555_4444,
            &[0x3c19_5555, 0x2739_4444, 0x0320_0008, 0],
            "lui $t9, 0x5555; addiu $t9, $t9, 0x4444; jr $t9; nop",
        ),
    ];

    const JUMPS_64: &[Row] = &[
        ("j", 0xff_f7c0_1000, 0xff_ffff_fffc, &[0x0bff_ffff, 0], "j 0xfffffffffc; nop"),
        ("j", 0x1_2fff_fffc, 0x1_3000_0010, &[0x0800_0004, 0], "j 0x130000010; nop"),
        ("j", 0xffff_ffff_8010_0000, 0xffff_ffff_8010_2000, &[0x0804_0800, 0], "j -0x7fefe000; nop"),
        ("j-landing", 0x1_2000_1000, 0x1_2100_0000, &[0x0840_0000, 0], "j 0x121000000; nop"),
        ("j-island", 0x1_2000_1000, 0x1_2100_0000, &[0x0840_0000, 0], "j 0x121000000; nop"),
        (
            "long",
            0x1_2000_1000,
            0xff_89ab_cde0,
            &[0x3c19_00ff, 0x3739_89ab, 0x0019_cc38, 0x3739_cde0, 0x0320_0008, 0],
            "lui $t9, 0xff; ori $t9, $t9, 0x89ab; dsll $t9, $t9, 0x10; ori $t9, $t9, 0xcde0; jr $t9; nop",
        ),
        (
            "long",
            0xffff_ffff_8010_0000,
            0xffff_ffff_8020_0004,
            &[0x3c19_ffff, 0x3739_8020, 0x0019_cc38, 0x3739_0004, 0x0320_0008, 0],
            "lui $t9, 0xffff; ori $t9, $t9, 0x8020; dsll $t9, $t9, 0x10; ori $t9, $t9, 4; jr $t9; nop",
        ),
    ];

    const LANDINGS_64: &[Row] = &[
        ("j", 0x1_2000_1000, 0x1_2000_2000, &[], ""),
        ("long", 0x1_2000_1000, 0x1_2000_2000, &[], ""),
        (
            "j-landing",
            0x1_2100_0000,
            0x1_20ff_0000,
            &[0x3c19_0001, 0x3739_20ff, 0x0019_cc38, 0x3739_0000, 0x0320_0008, 0],
            "lui $t9, 1; ori $t9, $t9, 0x20ff; dsll $t9, $t9, 0x10; ori $t9, $t9, 0; jr $t9; nop",
        ),
        (
            "j-island",
            0x1_2100_0000,
            0x7fff_ffff_fffc,
            &[0x3c19_7fff, 0x3739_ffff, 0x0019_cc38, 0x3739_fffc, 0x0320_0008, 0],
            "lui $t9, 0x7fff; ori $t9, $t9, 0xffff; dsll $t9, $t9, 0x10; ori $t9, $t9, 0xfffc; jr $t9; nop",
        ),
    ];

    const ALL: [(&Mips, &[Row], &[Row]); 4] = [
        (&MIPS, JUMPS_32, LANDINGS_32),
        (&MIPSEL, JUMPS_32, LANDINGS_32),
        (&MIPS64, JUMPS_64, LANDINGS_64),
        (&MIPS64EL, JUMPS_64, LANDINGS_64),
    ];

    fn in_memory(arch: &Mips, words: &[u32]) -> Vec<u8> {
        let each = |w: &u32| if arch.endian == Endian::Big { w.to_be_bytes() } else { w.to_le_bytes() };
        words.iter().flat_map(each).collect()
    }

    #[test]
    fn rows_encode_and_disassemble() {
        for (arch, jumps, landings) in ALL {
            for (name, from, to, words, asm) in jumps {
                let f = form(arch, name);
                let code = arch.encode_jump(f, *from, *to).unwrap();
                assert_eq!(code.bytes(), in_memory(arch, words), "{} {name}", arch.name());
                assert_eq!(text(arch, code.bytes(), *from), *asm, "{} {name}", arch.name());
                assert_eq!(code.bytes().len(), usize::from(f.len));
            }
            for (name, at, new, words, asm) in landings {
                let f = form(arch, name);
                let code = arch.encode_landing(f, *at, *new).unwrap();
                assert_eq!(code.bytes(), in_memory(arch, words), "{} {name}", arch.name());
                assert_eq!(text(arch, code.bytes(), *at), *asm, "{} {name}", arch.name());
                assert_eq!(code.bytes().len(), usize::from(f.landing_len));
            }
            for f in arch.forms() {
                assert!(jumps.iter().any(|r| r.0 == f.name) && landings.iter().any(|r| r.0 == f.name), "{}", f.name);
                assert_eq!(f.own_address, f.clobbers == ["t9"]);
            }
        }
    }

    /// The bytes themselves, once: everything else here is words.
    #[test]
    fn byte_orders() {
        let at = |arch: &Mips| arch.encode_jump(&arch.forms()[0], 0x40_1000, 0x40_2000).unwrap();
        assert_eq!(at(&MIPS).bytes(), [0x08, 0x10, 0x08, 0x00, 0, 0, 0, 0]);
        assert_eq!(at(&MIPSEL).bytes(), [0x00, 0x08, 0x10, 0x08, 0, 0, 0, 0]);
    }

    /// The reach that the table states is exactly what the encoders take.
    #[test]
    fn reach_is_exact() {
        for (arch, ..) in ALL {
            for f in arch.forms().iter().filter(|f| f.reach != Reach::Anywhere) {
                for from in [0x40_1000, 0x0fff_fff8, 0x0fff_fffc, 0x1000_0000, 0x7fff_0000] {
                    let (low, high) = f.reach.targets(from).unwrap();
                    let (low, last) = (low as u64, high as u64 - 3);
                    assert_eq!((low % 0x1000_0000, last - low), (0, 0x0fff_fffc));
                    for to in [low, last, low + 0x1000] {
                        assert!(arch.encode_jump(f, from, to).is_ok(), "{from:#x} to {to:#x}");
                    }
                    for to in [low.wrapping_sub(4), last + 4, low + 0x4000_0000] {
                        let refused = Err(EncodeError::OutOfReach { from, to, reach: f.reach });
                        assert_eq!(arch.encode_jump(f, from, to), refused);
                    }
                }
            }
        }
    }

    #[test]
    fn only_addresses_of_the_width_are_set() {
        let long = |arch: &Mips, to| arch.encode_jump(form(arch, "long"), 0x40_0000, to).is_ok();
        for (to, o32, n64) in [
            (0, true, true),
            (0xffff_fffc, true, true),
            (0x1_0000_0000, false, true),
            (0x7fff_ffff_fffc, false, true),
            (0x8000_0000_0000, false, false),
            (0xffff_8000_0000_0000, false, true),
            (0xffff_7fff_ffff_fffc, false, false),
            (0x9800_0000_0000_0000, false, false),
        ] {
            assert_eq!((long(&MIPS, to), long(&MIPS64, to)), (o32, n64), "{to:#x}");
        }
    }

    #[test]
    fn misaligned_addresses_are_refused() {
        for (arch, ..) in ALL {
            for f in arch.forms() {
                for at in [0x40_1001, 0x40_1002, 0x40_1003] {
                    let refused = Err(EncodeError::Misaligned { at, align: 4 });
                    assert_eq!(arch.encode_jump(f, at, 0x40_2000), refused);
                    assert_eq!(arch.encode_jump(f, 0x40_2000, at), refused);
                    if f.via != Via::Direct {
                        assert_eq!(arch.encode_landing(f, 0x40_2000, at), refused);
                    }
                }
            }
        }
    }

    #[test]
    fn padding_is_zero_words() {
        for (bytes, len) in [
            (&[0u8; 12][..], 12),
            (&[0; 7], 4),
            (&[0, 0, 0, 0, 0, 0, 0, 1], 4),
            (&[0, 0, 0, 1, 0, 0, 0, 0], 0),
            (&[0, 0, 0], 0),
            (&[], 0),
        ] {
            assert_eq!(MIPSEL.padding_len(bytes), len, "{bytes:?}");
        }
        assert_eq!(MIPS.landing_pad_len(&[0; 8]), 0);
        assert_eq!(
            (text(&MIPS, MIPS.breakpoint(), 0), text(&MIPS64EL, MIPS64EL.breakpoint(), 0)),
            ("break".into(), "break".into())
        );
    }
}
