//! The disassembler behind [`tigerfix_core::decode::Decoder`]: capstone, with one file for each architecture.
//!
//! capstone says where instructions begin and end, how they read, and which registers they touch. What an architecture
//! adds (an `Isa`) is the meaning: where control goes, what a constant operand refers to, which registers a caller may
//! expect to lose in a call, and what capstone gets wrong.

mod aarch64;
mod mips;
mod x86_64;

use capstone::{Capstone, InsnDetail};
use tigerfix_core::arch::{Arch, Constants};
use tigerfix_core::decode::{Decoder, Flow, Insn};
use tigerfix_core::field::Endian;

/// What an architecture knows of one instruction.
struct Meaning {
    /// Length in bytes, where capstone's is not right.
    len: usize,
    flow: Flow,
    refers: Option<u64>,
    reads: u64,
    writes: u64,
}

/// The part of a decoder that differs between architectures.
trait Isa {
    /// See [`Decoder::decode`].
    fn decode(&self, capstone: &Capstone, code: &[u8], addr: u64, constants: &Constants<'_>) -> Vec<Insn>;
    /// See [`Decoder::texts`].
    fn texts(&self, capstone: &Capstone, code: &[u8], insns: &[Insn], with: &mut dyn FnMut(&Insn, &str));
    /// How many bytes make a line of what is no instruction, and its text.
    fn data(&self, code: &[u8]) -> (usize, String) {
        (1, code.first().map_or_else(String::new, |byte| format!(".byte {byte:#04x}")))
    }
    fn volatile_names(&self) -> &'static [&'static str];
    fn return_registers(&self) -> u64;
    fn argument_registers(&self) -> u64;
}

/// Instruction, its details, what is behind it.
type Judgement<'a> = dyn Fn(&capstone::Insn<'_>, &InsnDetail<'_>, &[u8]) -> Option<Meaning> + 'a;

/// Decodes one instruction after the other, as capstone sees them; `meaning` gets what is behind each, too, and says
/// `None` to what is not to be taken for an instruction.
fn in_order(capstone: &Capstone, code: &[u8], addr: u64, meaning: &Judgement<'_>) -> Vec<Insn> {
    let mut insns = Vec::new();
    let Ok(mut iter) = capstone.disasm_iter(code, addr) else { return insns };
    let mut at = 0;
    while let Some(insn) = iter.next() {
        let taken = insn.bytes().len();
        let rest = &code[at + taken..];
        let Ok(detail) = capstone.insn_detail(&insn) else { break };
        let Some(Meaning { len, flow, refers, reads, writes }) = meaning(&insn, &detail, rest) else {
            break;
        };
        let addr = insn.address();
        insns.push(Insn { addr, len: len as u8, flow, refers, reads, writes, table: None });
        at += len;
        if len != taken {
            iter.reset(&code[at..], addr.wrapping_add(len as u64));
        }
    }
    insns
}

/// The texts of instructions that [`in_order`] made of `code`.
fn texts_in_order(capstone: &Capstone, code: &[u8], insns: &[Insn], with: &mut dyn FnMut(&Insn, &str)) {
    let Some(first) = insns.first() else { return };
    let Ok(mut iter) = capstone.disasm_iter(code, first.addr) else { return };
    for insn in insns {
        if iter.addr() != insn.addr {
            let Some(rest) = code.get(insn.addr.wrapping_sub(first.addr) as usize..) else { return };
            iter.reset(rest, insn.addr);
        }
        let Some(here) = iter.next() else { return };
        with(insn, &text(&here));
    }
}

/// A decoder that asks capstone.
pub struct CapstoneDecoder {
    capstone: Capstone,
    isa: Box<dyn Isa>,
}

/// One line of a disassembly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Address of the first byte.
    pub addr: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Assembly text; `.byte 0x..` for a byte that starts no instruction.
    pub text: String,
}

impl CapstoneDecoder {
    /// The decoder for a back end, or `None` where this build has none for it.
    #[must_use]
    pub fn for_arch(arch: &dyn Arch) -> Option<CapstoneDecoder> {
        // The one place that knows which back ends can be decoded.
        match arch.name() {
            "x86-64" => Some(CapstoneDecoder::x86_64()),
            "mips" => Some(CapstoneDecoder::mips(false, Endian::Big)),
            "mipsel" => Some(CapstoneDecoder::mips(false, Endian::Little)),
            "mips64" => Some(CapstoneDecoder::mips(true, Endian::Big)),
            "mips64el" => Some(CapstoneDecoder::mips(true, Endian::Little)),
            "aarch64" => Some(CapstoneDecoder::aarch64()),
            _ => None,
        }
    }

    /// The decoder for x86-64.
    ///
    /// # Panics
    /// Where capstone was built without x86, which this crate's dependencies exclude, or memory is exhausted.
    #[must_use]
    pub fn x86_64() -> CapstoneDecoder {
        let capstone = x86_64::capstone().expect("capstone has x86");
        let isa = Box::new(x86_64::Isa::new(&capstone));
        CapstoneDecoder { capstone, isa }
    }

    /// The decoder for MIPS32, or for MIPS64 in the n64 ABI, before release 6.
    ///
    /// # Panics
    /// Where capstone was built without MIPS, which this crate's dependencies exclude, or memory is exhausted.
    #[must_use]
    pub fn mips(is_64: bool, endian: Endian) -> CapstoneDecoder {
        let capstone = mips::capstone(is_64, endian).expect("capstone has MIPS");
        CapstoneDecoder { capstone, isa: Box::new(mips::Isa::new(is_64, endian)) }
    }

    /// The decoder for AArch64.
    ///
    /// # Panics
    /// Where capstone was built without AArch64, which this crate's dependencies exclude, or memory is exhausted.
    #[must_use]
    pub fn aarch64() -> CapstoneDecoder {
        let capstone = aarch64::capstone().expect("capstone has AArch64");
        CapstoneDecoder { capstone, isa: Box::new(aarch64::Isa) }
    }

    /// Disassembles all of `code`, which lies at `addr`, for people to read: bytes that are no instruction are shown
    /// as data, in the smallest unit that instructions come in.
    #[must_use]
    pub fn disassemble(&self, code: &[u8], addr: u64) -> Vec<Line> {
        let mut lines = Vec::new();
        let Ok(mut iter) = self.capstone.disasm_iter(code, addr) else { return lines };
        loop {
            while let Some(insn) = iter.next() {
                lines.push(Line { addr: insn.address(), bytes: insn.bytes().to_vec(), text: text(&insn) });
            }
            let at = code.len() - iter.code().len();
            let rest = &code[at..];
            if rest.is_empty() {
                return lines;
            }
            let here = iter.addr();
            let (len, text) = self.isa.data(rest);
            let (bytes, rest) = rest.split_at(len.clamp(1, rest.len()));
            lines.push(Line { addr: here, bytes: bytes.to_vec(), text });
            iter.reset(rest, here.wrapping_add(bytes.len() as u64));
        }
    }
}

impl Decoder for CapstoneDecoder {
    fn decode(&self, code: &[u8], addr: u64, constants: &Constants<'_>) -> Vec<Insn> {
        self.isa.decode(&self.capstone, code, addr, constants)
    }

    fn texts(&self, code: &[u8], insns: &[Insn], text: &mut dyn FnMut(&Insn, &str)) {
        self.isa.texts(&self.capstone, code, insns, text);
    }

    fn volatile_names(&self) -> &'static [&'static str] {
        self.isa.volatile_names()
    }

    fn return_registers(&self) -> u64 {
        self.isa.return_registers()
    }

    fn argument_registers(&self) -> u64 {
        self.isa.argument_registers()
    }
}

/// Mnemonic and operands.
fn text(insn: &capstone::Insn<'_>) -> String {
    match (insn.mnemonic().unwrap_or(""), insn.op_str().unwrap_or("")) {
        (mnemonic, "") => mnemonic.into(),
        (mnemonic, operands) => format!("{mnemonic} {operands}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tigerfix_arch_x86_64::X86_64;

    #[test]
    fn decoding_stops_at_bytes_that_are_no_instruction() {
        let d = CapstoneDecoder::for_arch(&X86_64).expect("x86-64 is built in");
        // push rbp; mov rbp, rsp; (no such instruction in 64-bit mode); ret
        let code = [0x55, 0x48, 0x89, 0xe5, 0x06, 0xc3];
        let insns = d.decode(&code, 0x1000, &Constants::NONE);
        assert_eq!(insns.iter().map(|i| (i.addr, i.len)).collect::<Vec<_>>(), [(0x1000, 1), (0x1001, 3)]);
        assert_eq!(d.decode(&[0xe9, 0, 0], 0, &Constants::NONE).len(), 0, "cut off");
        assert_eq!(d.decode(&[], 0, &Constants::NONE).len(), 0);
    }

    #[test]
    fn disassembly_shows_such_bytes_as_data() {
        let d = CapstoneDecoder::x86_64();
        let lines = d.disassemble(&[0x55, 0x06, 0x07, 0xc3, 0xe9], 0x1000);
        let texts: Vec<String> = lines.iter().map(|l| format!("{:x}: {:02x?} {}", l.addr, l.bytes, l.text)).collect();
        assert_eq!(
            texts,
            [
                "1000: [55] push rbp",
                "1001: [06] .byte 0x06",
                "1002: [07] .byte 0x07",
                "1003: [c3] ret",
                "1004: [e9] .byte 0xe9",
            ]
        );
        assert!(d.disassemble(&[], 0).is_empty());
    }
}
