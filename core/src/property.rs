//! What objects and programs say of all of their code, in notes.
//!
//! Source: "Linux Extensions to gABI", section "Program Property".

use crate::field::{Endian, load};

const NT_GNU_PROPERTY_TYPE_0: u64 = 5;

/// The value of a property of four bytes in the contents of a `.note.gnu.property` section; all its notes must have it, and
/// the value is what they agree on. `None`: it is not there, or the notes are broken.
pub(crate) fn value(notes: &[u8], endian: Endian, is_64: bool, property: u32) -> Option<u32> {
    let align = if is_64 { 8 } else { 4 };
    let mut all = None;
    let mut rest = notes;
    while !rest.is_empty() {
        let word = |at: usize| Some(load(rest.get(at..at + 4)?, endian));
        let (name, desc, kind) = (word(0)?, usize::try_from(word(4)?).ok()?, word(8)?);
        let body = rest.get(16..16usize.checked_add(desc)?)?;
        if name != 4 || rest.get(12..16)? != b"GNU\0" || kind != NT_GNU_PROPERTY_TYPE_0 {
            return None;
        }
        let found = in_note(body, endian, align, property)?;
        all = Some(all.unwrap_or(u32::MAX) & found);
        rest = rest.get((16 + desc).next_multiple_of(align)..).unwrap_or(&[]);
    }
    all
}

/// The property in one note's description.
fn in_note(mut body: &[u8], endian: Endian, align: usize, property: u32) -> Option<u32> {
    while !body.is_empty() {
        let word = |at: usize| Some(load(body.get(at..at + 4)?, endian));
        let (kind, size) = (word(0)?, usize::try_from(word(4)?).ok()?);
        let data = body.get(8..8usize.checked_add(size)?)?;
        if kind == u64::from(property) {
            return (data.len() == 4).then(|| load(data, endian) as u32);
        }
        body = body.get((8 + size).next_multiple_of(align)..).unwrap_or(&[]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::value;
    use crate::field::Endian;
    use alloc::vec::Vec;

    fn note(properties: &[(u32, &[u32])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, words) in properties {
            body.extend(kind.to_le_bytes());
            body.extend((4 * words.len() as u32).to_le_bytes());
            body.extend(words.iter().flat_map(|w| w.to_le_bytes()));
            body.resize(body.len().next_multiple_of(8), 0);
        }
        let mut all: Vec<u8> = [4, body.len() as u32, 5].iter().flat_map(|w| w.to_le_bytes()).collect();
        all.extend(b"GNU\0");
        all.extend(body);
        all
    }

    #[test]
    fn properties_are_found() {
        let get = |notes: &[u8]| value(notes, Endian::Little, true, 0xc000_0000);
        let one = note(&[(7, &[1, 2, 3]), (0xc000_0000, &[3])]);
        assert_eq!(get(&one), Some(3));
        assert_eq!(get(&[]), None);
        assert_eq!(get(&note(&[(7, &[1])])), None);
        // All notes have to agree.
        let two = [&one[..], &note(&[(0xc000_0000, &[2])])].concat();
        assert_eq!(get(&two), Some(2));
        assert_eq!(get(&[&one[..], &note(&[])].concat()), None);
    }

    #[test]
    fn broken_notes_say_nothing() {
        let good = note(&[(0xc000_0000, &[3])]);
        for at in 0..good.len() {
            assert_eq!(value(&good[..at], Endian::Little, true, 0xc000_0000), None, "cut at {at}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // Whatever it is: no panic.
                let _ = value(&bad, Endian::Little, true, 0xc000_0000);
            }
        }
        let wide = note(&[(0xc000_0000, &[3, 0])]);
        assert_eq!(value(&wide, Endian::Little, true, 0xc000_0000), None);
    }
}
