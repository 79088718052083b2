//! Unwind tables (`.eh_frame`): the objects' sections become one, without records of functions that were dropped.
//!
//! Format: Linux Standard Base Core, "Exception Frames": records of a 4-byte length (which does not count itself), a 4-byte
//! id (0 for a CIE, else the distance back to one), and for FDEs the function's start. A length of 0 ends the table, so no
//! object's terminator and no padding may stay inside. Zeros at a record's end are no-ops.

use super::error::LinkError;
use crate::arch::Reloc;
use crate::field::{Endian, load, store};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};

/// One object's table, ready to be concatenated: `relocs` loses those of dropped records.
///
/// A record whose function `dropped` tells (by the symbol of its relocation) is blotted out by making the record before
/// it longer, so that all offsets stay.
pub(super) fn prepare(
    object: &str,
    data: &[u8],
    relocs: &mut Vec<Reloc>,
    dropped: &dyn Fn(u32) -> bool,
    endian: Endian,
) -> Result<Vec<u8>, LinkError> {
    let broken = |at: usize, why: &str| LinkError::Broken {
        object: String::from(object),
        what: ".eh_frame",
        why: format!("{why} at {at:#x}"),
    };
    let starts: BTreeMap<u64, u32> = relocs.iter().map(|r| (r.offset, r.symbol)).collect();
    let mut out = Vec::from(data);
    let (mut at, mut before) = (0usize, None);
    let mut blots: Vec<(u64, u64)> = Vec::new();
    while at < out.len() {
        let word = |at: usize| out.get(at..at.checked_add(4)?).map(|b| load(b, endian));
        let Some(len) = word(at) else { return Err(broken(at, "a record is cut short")) };
        if len == 0 {
            if out.get(at..).is_some_and(|rest| rest.iter().any(|b| *b != 0)) {
                return Err(broken(at, "a terminator inside the table"));
            }
            out.truncate(at);
            break;
        }
        if len == 0xffff_ffff {
            return Err(broken(at, "a record in the 64-bit format"));
        }
        let end = usize::try_from(len).ok().and_then(|n| n.checked_add(at + 4)).filter(|e| *e <= out.len());
        let (Some(end), Some(id)) = (end, word(at + 4)) else { return Err(broken(at, "a record is cut short")) };
        if end % 4 != 0 {
            return Err(broken(at, "a record's length is not a multiple of 4"));
        }
        let start = starts.get(&(at as u64 + 8));
        if id != 0 && start.is_some_and(|s| dropped(*s)) {
            let Some(previous) = before else { return Err(broken(at, "an FDE without a CIE")) };
            let longer = word(previous).and_then(|n| n.checked_add((end - at) as u64)).filter(|n| *n < 0xffff_fff0);
            let Some(longer) = longer else { return Err(broken(at, "a record is too long")) };
            if let Some(record) = out.get_mut(at..end) {
                record.fill(0);
            }
            if let Some(cell) = out.get_mut(previous..previous + 4) {
                store(cell, endian, longer);
            }
            blots.push((at as u64, end as u64));
        } else {
            before = Some(at);
        }
        at = end;
    }
    // Both lists may be long, and both ascend in what compilers write.
    let blotted = |offset: u64| {
        let i = blots.partition_point(|(from, _)| *from <= offset);
        i.checked_sub(1).and_then(|i| blots.get(i)).is_some_and(|(_, to)| offset < *to)
    };
    relocs.retain(|r| !blotted(r.offset));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn record(id: u32, body: &[u8]) -> Vec<u8> {
        let mut v = Vec::new();
        v.extend_from_slice(&(4 + body.len() as u32).to_le_bytes());
        v.extend_from_slice(&id.to_le_bytes());
        v.extend_from_slice(body);
        v
    }

    fn reloc(offset: u64, symbol: u32) -> Reloc {
        Reloc { offset, r_type: 2, symbol, addend: 0 }
    }

    #[test]
    fn a_dropped_record_becomes_padding_of_the_one_before() {
        let mut data = record(0, &[1; 8]); // CIE, 16 bytes
        data.extend(record(20, &[2; 8])); // FDE at 16
        data.extend(record(36, &[3; 8])); // FDE at 32
        data.extend([0; 4]);
        let mut relocs = vec![reloc(24, 7), reloc(40, 8)];
        let out = prepare("a.o", &data, &mut relocs, &|s| s == 7, Endian::Little).unwrap();
        assert_eq!(out.len(), 48, "without the terminator");
        assert_eq!(load(&out[..4], Endian::Little), 28, "the CIE reaches to the second FDE");
        assert!(out[16..32].iter().all(|b| *b == 0));
        assert_eq!((&out[32..], relocs), (&data[32..48], vec![reloc(40, 8)]));
    }

    #[test]
    fn broken_tables_are_refused() {
        let whole = record(0, &[1; 8]);
        let mut none = Vec::new();
        let mut prepared = |d: &[u8]| prepare("a.o", d, &mut none, &|_| true, Endian::Little);
        for n in 1..whole.len() {
            assert!(prepared(&whole[..n]).is_err(), "{n}");
        }
        let mut inside = vec![0; 4];
        inside.extend(&whole);
        assert!(prepared(&inside).is_err());
        assert!(prepared(&[0xff; 32]).is_err());
        let mut orphan = vec![reloc(8, 1)];
        assert!(prepare("a.o", &record(4, &[0; 8]), &mut orphan, &|_| true, Endian::Little).is_err());
    }
}
