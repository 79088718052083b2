//! Bit fields of instructions and data words, and the one function that writes them.

/// Byte order of a field: some architectures keep instructions in one order and data in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

/// Which of the target's two byte orders a field follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The order of data (the ELF header's).
    Data,
    /// The order of instruction words.
    Insn,
}

/// A run of bits of the value and where it goes in the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First bit taken from the (shifted) value.
    pub value_lsb: u8,
    /// Number of bits.
    pub width: u8,
    /// First bit in the container.
    pub field_lsb: u8,
}

/// Where and how a relocation's value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Size of the container in bytes: 0 (nothing is stored), 1, 2, 4 or 8.
    pub bytes: u8,
    /// Which byte order the container has.
    pub order: Order,
    /// Added to the value before the shift (for example 0x8000 for a rounded high half).
    pub round: u64,
    /// Arithmetic right shift of the value before its bits are taken.
    pub rshift: u8,
    /// Where the bits go.
    pub pieces: &'static [Piece],
    /// What becomes of the container's other bits.
    pub opcode: Opcode,
}

/// What becomes of the bits of a container that hold nothing of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// They stay.
    Keep,
    /// This one says how the value is stored: set, as it is; clear, because it is negative, inverted.
    Sign {
        /// Its place in the container.
        bit: u8,
    },
    /// They are replaced by these: the linker puts another instruction in this one's place.
    Replace(u64),
}

impl Field {
    /// A field that stores nothing (relocations that are only hints).
    pub const NONE: Field =
        Field { bytes: 0, order: Order::Data, round: 0, rshift: 0, pieces: &[], opcode: Opcode::Keep };

    /// A whole data word of `bytes` bytes.
    #[must_use]
    pub const fn data(bytes: u8) -> Field {
        Field { bytes, order: Order::Data, round: 0, rshift: 0, pieces: WHOLE[bytes as usize], opcode: Opcode::Keep }
    }
}

const WHOLE: [&[Piece]; 9] = {
    const NONE: &[Piece] = &[];
    [
        NONE,
        &[Piece { value_lsb: 0, width: 8, field_lsb: 0 }],
        &[Piece { value_lsb: 0, width: 16, field_lsb: 0 }],
        NONE,
        &[Piece { value_lsb: 0, width: 32, field_lsb: 0 }],
        NONE,
        NONE,
        NONE,
        &[Piece { value_lsb: 0, width: 64, field_lsb: 0 }],
    ]
};

/// The range check of a relocation, on the value after `round` and `rshift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Truncation is meant (low halves, pieces of a long address).
    None,
    /// Must fit a signed field of this many bits.
    Signed(u8),
    /// Must fit an unsigned field of this many bits.
    Unsigned(u8),
    /// Must fit as either signed or unsigned.
    Bitfield(u8),
}

impl Overflow {
    /// The inclusive bounds `(min, max)` of a value that fits, or `None` where every value does.
    #[must_use]
    pub fn bounds(self) -> Option<(i128, i128)> {
        let full = |bits: u8| 1i128 << bits;
        match self {
            Overflow::None => None,
            Overflow::Signed(b) => Some((-(full(b) / 2), full(b) / 2 - 1)),
            Overflow::Unsigned(b) => Some((0, full(b) - 1)),
            Overflow::Bitfield(b) => Some((-(full(b) / 2), full(b) - 1)),
        }
    }
}

/// Why a value could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// The value is outside its bounds (inclusive, before `rshift`).
    Overflow {
        /// The value, sign-extended.
        value: i128,
        /// Smallest value that fits.
        min: i128,
        /// Largest value that fits.
        max: i128,
    },
    /// The value is not a multiple of the required alignment.
    Misaligned {
        /// The value.
        value: u64,
        /// The alignment in bytes.
        align: u8,
    },
    /// The section ends before the field does.
    OutOfSection,
}

/// Reads an unsigned word of `buf.len()` bytes (at most 8) in the given order.
#[must_use]
pub fn load(buf: &[u8], endian: Endian) -> u64 {
    let step = |acc: u64, b: &u8| (acc << 8) | u64::from(*b);
    match endian {
        Endian::Big => buf.iter().fold(0, step),
        Endian::Little => buf.iter().rev().fold(0, step),
    }
}

/// Writes the low `buf.len()` bytes (at most 8) of `value` in the given order.
pub fn store(buf: &mut [u8], endian: Endian, value: u64) {
    let n = buf.len();
    for (i, b) in buf.iter_mut().enumerate() {
        let at = match endian {
            Endian::Little => i,
            Endian::Big => n - 1 - i,
        };
        *b = (value >> (8 * at)) as u8;
    }
}

impl Field {
    /// Checks `value` (alignment, then range) and merges it into the container at the start of `buf`; all other bits
    /// keep their value. `endian` is the order that [`Field::order`] selects. `address_bits` (32 or 64) is the width of
    /// the target's addresses: values wrap there before they are judged, as address arithmetic of the target does.
    ///
    /// # Errors
    /// [`FieldError`]; `buf` is unchanged then.
    pub fn write(
        &self,
        buf: &mut [u8],
        endian: Endian,
        value: u64,
        overflow: Overflow,
        align: u8,
        address_bits: u8,
    ) -> Result<(), FieldError> {
        if align > 1 && value & u64::from(align - 1) != 0 {
            return Err(FieldError::Misaligned { value, align });
        }
        let wrap = |v: u64| if address_bits == 32 { i64::from(v as u32 as i32) } else { v as i64 };
        let rounded = wrap(value.wrapping_add(self.round));
        let shifted = rounded >> self.rshift;
        if let Some((min, max)) = overflow.bounds() {
            // An unsigned field takes the address as a positive number of the target's width.
            let unsigned =
                i128::from(if address_bits == 32 { u64::from(rounded as u32) } else { rounded as u64 } >> self.rshift);
            let fits = |v: i128| (min..=max).contains(&v);
            let ok = match overflow {
                Overflow::Unsigned(_) => fits(unsigned),
                Overflow::Bitfield(_) => fits(i128::from(shifted)) || fits(unsigned),
                _ => fits(i128::from(shifted)),
            };
            if !ok {
                let scale = 1i128 << self.rshift;
                return Err(FieldError::Overflow {
                    value: i128::from(wrap(value)),
                    min: min * scale,
                    max: max * scale + (scale - 1),
                });
            }
        }
        let n = usize::from(self.bytes);
        let Some(cell) = buf.get_mut(..n) else { return Err(FieldError::OutOfSection) };
        let mut word = load(cell, endian);
        let mut stored = shifted as u64;
        match self.opcode {
            Opcode::Keep => {}
            Opcode::Sign { bit } if shifted < 0 => {
                stored = !stored;
                word &= !(1 << bit);
            }
            Opcode::Sign { bit } => word |= 1 << bit,
            Opcode::Replace(insn) => word = insn,
        }
        for p in self.pieces {
            let mask = if p.width >= 64 { u64::MAX } else { (1u64 << p.width) - 1 };
            let bits = (stored >> p.value_lsb) & mask;
            word = (word & !(mask << p.field_lsb)) | (bits << p.field_lsb);
        }
        store(cell, endian, word);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_bounds_are_exact() {
        let f = Field::data(4);
        let mut b = [0u8; 4];
        assert!(f.write(&mut b, Endian::Little, 0x7fff_ffff, Overflow::Signed(32), 1, 64).is_ok());
        assert!(f.write(&mut b, Endian::Little, (-0x8000_0000i64) as u64, Overflow::Signed(32), 1, 64).is_ok());
        assert_eq!(b, [0, 0, 0, 0x80]);
        let e = f.write(&mut b, Endian::Little, 0x8000_0000, Overflow::Signed(32), 1, 64);
        assert_eq!(e, Err(FieldError::Overflow { value: 0x8000_0000, min: -0x8000_0000, max: 0x7fff_ffff }));
        assert_eq!(b, [0, 0, 0, 0x80], "a refused value leaves the field alone");
    }

    #[test]
    fn unsigned_takes_no_negative() {
        let f = Field::data(4);
        let mut b = [0u8; 4];
        assert!(f.write(&mut b, Endian::Little, 0xffff_ffff, Overflow::Unsigned(32), 1, 64).is_ok());
        assert!(f.write(&mut b, Endian::Little, u64::MAX, Overflow::Unsigned(32), 1, 64).is_err());
        assert!(f.write(&mut b, Endian::Little, u64::MAX, Overflow::Bitfield(32), 1, 64).is_ok());
    }

    #[test]
    fn pieces_keep_other_bits_and_order() {
        const SPLIT: Field = Field {
            bytes: 4,
            order: Order::Insn,
            round: 0x8000,
            rshift: 16,
            pieces: &[Piece { value_lsb: 0, width: 16, field_lsb: 0 }],
            opcode: Opcode::Keep,
        };
        let mut b = [0x3c, 0x19, 0xaa, 0xaa];
        SPLIT.write(&mut b, Endian::Big, 0x1234_8765, Overflow::None, 1, 32).unwrap();
        assert_eq!(b, [0x3c, 0x19, 0x12, 0x35]);
        assert_eq!(SPLIT.write(&mut b[..2], Endian::Big, 0, Overflow::None, 1, 32), Err(FieldError::OutOfSection));
        assert_eq!(
            SPLIT.write(&mut b, Endian::Big, 6, Overflow::None, 4, 32),
            Err(FieldError::Misaligned { value: 6, align: 4 })
        );
    }

    #[test]
    fn an_opcode_may_tell_the_sign_or_be_replaced() {
        const IMM: &[Piece] = &[Piece { value_lsb: 0, width: 16, field_lsb: 4 }];
        let field = |opcode| Field { rshift: 16, pieces: IMM, opcode, order: Order::Insn, ..Field::data(4) };
        let put = |opcode, word: u32, value: i64| {
            let mut b = word.to_be_bytes();
            let done = field(opcode).write(&mut b, Endian::Big, value as u64, Overflow::Signed(17), 1, 64);
            done.map(|()| u32::from_be_bytes(b))
        };
        let sign = Opcode::Sign { bit: 30 };
        assert_eq!(put(sign, 0x1000_000f, 0x1234_5678), Ok(0x5001_234f));
        assert_eq!(put(sign, 0x5000_000f, -0x1234_5678), Ok(0x1001_234f), "!0xedcb");
        assert_eq!(put(sign, 0x5000_000f, -1), Ok(0x1000_000f));
        assert_eq!(put(sign, 0, 0xffff_ffff), Ok(0x400f_fff0));
        assert!(put(sign, 0, 0x1_0000_0000).is_err() && put(sign, 0, -0x1_0000_0001).is_err());
        assert_eq!(put(Opcode::Replace(0xabc0_000d), u32::MAX, 0x1234_5678), Ok(0xabc1_234d));
    }
}
