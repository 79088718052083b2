//! Target descriptions (GDB manual, "Target Descriptions"): which registers there are, and how large. The XML is read as far
//! as that needs, by looking for tags; what is odd in it is left out, never trusted.

use super::xml::{Form, tags};

/// A register of a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Name.
    pub name: String,
    /// Size, bytes.
    pub size: u16,
    /// Number: its place in the `g` block's order.
    pub number: u32,
}

/// Descriptions larger than this are not read, bytes.
pub const MAX_TEXT: usize = 1 << 20;
/// More registers than any processor's.
const MAX_REGISTERS: usize = 4096;

/// Parts of a description, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// `<architecture>`
    Architecture(String),
    /// `<xi:include href="...">`
    Include(String),
    /// `<reg name="..." bitsize="..." regnum="...">`; without a number it is the one behind the last.
    Register {
        /// Name.
        name: String,
        /// Size, bits.
        bits: u32,
        /// Number, where it is given.
        number: Option<u32>,
    },
}

/// The parts of a text that are needed.
#[must_use]
pub fn parts(text: &str) -> Vec<Part> {
    let mut out = Vec::new();
    for t in tags(text).filter(|t| t.form != Form::Close) {
        match t.name {
            "architecture" => out.push(Part::Architecture(t.text.trim().to_owned())),
            "xi:include" => out.extend(t.attribute("href").map(|h| Part::Include(h.to_owned()))),
            "reg" => {
                let bits = t.attribute("bitsize").and_then(|b| b.parse().ok());
                if let (Some(name), Some(bits)) = (t.attribute("name"), bits) {
                    let number = t.attribute("regnum").and_then(|n| n.parse().ok());
                    out.push(Part::Register { name: name.to_owned(), bits, number });
                }
            }
            _ => {}
        }
        if out.len() > MAX_REGISTERS {
            break;
        }
    }
    out
}

/// The registers of a whole description (its parts, includes already put in their places), ascending by number.
#[must_use]
pub fn registers(parts: &[Part]) -> Vec<Described> {
    let mut out: Vec<Described> = Vec::new();
    let mut next = 0u32;
    for p in parts {
        let Part::Register { name, bits, number } = p else { continue };
        let number = number.unwrap_or(next);
        next = number.saturating_add(1);
        let Ok(size) = u16::try_from(bits.div_ceil(8)) else { continue };
        if out.len() < MAX_REGISTERS {
            out.push(Described { name: name.clone(), size, number });
        }
    }
    // The block has them in the order of their numbers.
    out.sort_by_key(|r| r.number);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">
        <target><architecture>i386:x86-64</architecture><!-- <reg name="no" bitsize="8"/> -->
        <xi:include href="core.xml"/><feature name="f"><reg name="rax" bitsize="64" type="int64"/>
        <reg name='eflags' bitsize = "32" type="i386_eflags" regnum="17"/><reg bitsize="32" name="cs"
        type="int32"/></feature></target>"#;

    #[test]
    fn the_needed_parts_are_found() {
        let reg = |name: &str, bits, number| Part::Register { name: name.into(), bits, number };
        assert_eq!(
            parts(TEXT),
            [
                Part::Architecture("i386:x86-64".into()),
                Part::Include("core.xml".into()),
                reg("rax", 64, None),
                reg("eflags", 32, Some(17)),
                reg("cs", 32, None),
            ]
        );
        let numbers: Vec<_> = registers(&parts(TEXT)).into_iter().map(|r| (r.name, r.size, r.number)).collect();
        assert_eq!(numbers, [("rax".into(), 8, 0), ("eflags".into(), 4, 17), ("cs".into(), 4, 18)]);
    }

    #[test]
    fn odd_texts_are_harmless() {
        for text in ["", "<", "<reg", "<reg name=>", "<reg name=\"a\" bitsize=\"x\"/>", "<!--", "<xi:include href/>"] {
            assert!(registers(&parts(text)).is_empty(), "{text}");
        }
        for i in 0..TEXT.len() {
            let _ = registers(&parts(&TEXT[..i]));
            let _ = registers(&parts(&TEXT[i..]));
        }
        let huge = r#"<reg name="a" bitsize="4294967295" regnum="4294967295"/>"#.repeat(3);
        assert!(registers(&parts(&huge)).is_empty());
    }
}
