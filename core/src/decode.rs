//! The disassembler as a seam: core judges instructions, whoever links core brings the decoder.

use crate::arch::{Constants, JumpTable};
use alloc::{boxed::Box, vec::Vec};

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next instruction.
    Next,
    /// Direct unconditional branch.
    Jump(u64),
    /// Direct conditional branch: there or to the next instruction.
    Branch(u64),
    /// Direct call.
    Call(u64),
    /// Indirect call.
    CallIndirect,
    /// Indirect branch (tail call or jump table).
    JumpIndirect,
    /// Return.
    Return,
    /// Does not go on (trap, halt, undefined).
    Stop,
}

/// One decoded instruction.
#[derive(Clone, Debug)]
pub struct Insn {
    /// Its address.
    pub addr: u64,
    /// Its length, bytes; a branch has its delay slot with it, where the architecture has one.
    pub len: u8,
    /// Where control goes.
    pub flow: Flow,
    /// The address that it computes or accesses, where it is a constant, alone or with those before it.
    pub refers: Option<u64>,
    /// Caller-saved registers (by the ABI) that it reads, as bits of [`Decoder::volatile_names`].
    pub reads: u64,
    /// Caller-saved registers that it writes or changes, as bits.
    pub writes: u64,
    /// Where an indirect branch takes its target from, if the instructions before it show that.
    pub table: Option<Box<JumpTable>>,
}

/// A disassembler for one architecture.
pub trait Decoder {
    /// Decodes from the start of `code`, which lies at `addr`, until the end or the first bytes that are no instruction.
    /// `constants` is what instructions that build an address together may count on.
    fn decode(&self, code: &[u8], addr: u64, constants: &Constants<'_>) -> Vec<Insn>;
    /// Assembly text of `insns`, which [`Decoder::decode`] made of `code`, one after the other. Apart from decoding, since
    /// it takes longer and few instructions are ever read.
    fn texts(&self, code: &[u8], insns: &[Insn], text: &mut dyn FnMut(&Insn, &str));
    /// Names of the caller-saved registers, by bit index (at most 64): general purpose ones first, then vector ones.
    fn volatile_names(&self) -> &'static [&'static str];
    /// Bits of the registers that return values travel in.
    fn return_registers(&self) -> u64;
    /// Bits of the registers that arguments travel in (a caller sets them before a call).
    fn argument_registers(&self) -> u64;
}
