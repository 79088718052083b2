//! What an architecture's back end provides: tables, and a few hooks. All traits are object safe; `&self` carries the
//! ABI variant and byte order, since one host binary serves several.

use crate::field::{Endian, Field, Overflow};
pub use gimli::Vendor;

/// How a relocation computes its value, in the letters of the psABI documents.
///
/// `S` symbol, `A` addend, `P` place, `G` the symbol's GOT slot as an offset from the GOT's start, `GOT` the GOT's
/// address (where the GOT pointer points, that is), `L` the symbol or a veneer that jumps to it, `Z` symbol size, `TP` thread
/// pointer, `DTP` the module's TLS block, `GP` the *program's* global pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expr {
    /// Nothing is computed (hints, markers).
    None,
    /// `S + A`
    Abs,
    /// `S + A - P`
    Pc,
    /// `L + A - P`: a call or jump; the linker may put a veneer between.
    PltPc,
    /// `G + A`
    Got,
    /// `G + GOT + A - P`
    GotPc,
    /// `G + GOT + A`: absolute address of the slot.
    GotAbs,
    /// `S + A - GOT`
    GotOff,
    /// `L + A - GOT`: a call by an offset from the GOT; the linker may put a veneer between.
    PltGotOff,
    /// `GOT + A - P`
    GotBasePc,
    /// `Z + A`
    Size,
    /// `S + A - TP`: offset from the thread pointer (the executable's static TLS block).
    TpOff,
    /// PC-relative address of a GOT slot that holds `S - TP`.
    GotTpOffPc,
    /// `S + A - DTP`: offset in the module's TLS block.
    DtpOff,
    /// PC-relative address of a GOT pair (module id, `S - DTP`).
    GotTlsGdPc,
    /// PC-relative address of a GOT pair (module id, 0).
    GotTlsLdPc,
    /// `G` of a slot that holds the page of `S + A` (see [`GotBuilder::page_word`]).
    GotPage,
    /// `GOT - (S + A)`: code finds the GOT from its own address.
    GotMinus,
    /// `G` of a slot that holds `S - TP`.
    GotTpOff,
    /// `S + A - GP`: small data near the program's global pointer.
    GpRel,
    /// `S + A`, less the start of the aligned region of 2^`bits` bytes that holds `P + after`: a jump that keeps the upper
    /// bits of the program counter.
    Region {
        /// Size of a region, as a power of two.
        bits: u8,
        /// What the processor adds to the jump's address before it takes the region.
        after: u8,
    },
    /// `Page(S + A) - Page(P)`; a page is an aligned range of 2^`bits` bytes, no larger than any that a loader moves code by.
    PagePc {
        /// Size of a page, as a power of two.
        bits: u8,
    },
    /// `S + A - Page(S + A)`, what is added to an address of a page.
    PageOffset {
        /// As for [`Expr::PagePc`].
        bits: u8,
    },
    /// `Page(G + GOT + A) - Page(P)`
    GotPagePc {
        /// As for [`Expr::PagePc`].
        bits: u8,
    },
    /// `G + GOT + A - Page(G + GOT + A)`
    GotPageOffset {
        /// As for [`Expr::PagePc`].
        bits: u8,
    },
    /// `G + GOT + A - Page(GOT)`: slots are reached from the page in which the GOT begins.
    GotFromPage {
        /// As for [`Expr::PagePc`].
        bits: u8,
    },
    /// [`Expr::GotPagePc`] of a slot that holds `S - TP`.
    GotTpOffPagePc {
        /// As for [`Expr::PagePc`].
        bits: u8,
    },
    /// [`Expr::GotPageOffset`] of a slot that holds `S - TP`.
    GotTpOffPageOffset {
        /// As for [`Expr::PagePc`].
        bits: u8,
    },
}

/// What an instruction or word uses its relocated value for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A data word or an address computation: the address of a replaced function is the program's entry.
    Address,
    /// A direct call or jump: may go straight to the new function, may go through a veneer.
    Branch,
    /// A reference through a GOT slot.
    Got,
    /// Code that finds out where it lies itself: means the new function, and never the one that it replaces.
    Own,
    /// Thread-local storage.
    Tls,
    /// May be ignored.
    Hint,
}

/// One row of a back end's relocation table.
#[derive(Clone, Copy, Debug)]
pub struct Howto {
    /// The number in the object file (back ends whose ABI composes several operations in one relocation make one
    /// number of them).
    pub r_type: u32,
    /// The psABI name, such as `R_X_64`.
    pub name: &'static str,
    /// What is computed.
    pub expr: Expr,
    /// Where it is stored.
    pub field: Field,
    /// The range check.
    pub overflow: Overflow,
    /// Required alignment of the value in bytes (1: none).
    pub align: u8,
    /// What it is used for.
    pub role: Role,
}

/// A relocation after the back end removed the quirks of its psABI: one field, an explicit addend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloc {
    /// Offset of the field in its section, bytes.
    pub offset: u64,
    /// A number that [`Relocator::howto`] knows, or an unsupported one (the linker refuses it by name).
    pub r_type: u32,
    /// Index of the symbol in the object's symbol table (0: none, S = 0).
    pub symbol: u32,
    /// The addend.
    pub addend: i64,
}

/// A relocation section as the object file has it, for [`Relocator::normalize`].
#[derive(Clone, Copy)]
pub struct RawRelocs<'a> {
    /// The entries, bytes as in the file.
    pub entries: &'a [u8],
    /// Explicit addends (SHT_RELA) or not (SHT_REL).
    pub rela: bool,
    /// Contents of the section that the relocations apply to.
    pub section: &'a [u8],
    /// 64-bit class entries.
    pub is_64: bool,
    /// The object's data byte order.
    pub endian: Endian,
    /// For each symbol index: is it local to the object?
    pub is_local: &'a dyn Fn(u32) -> bool,
    /// For each symbol index: its name (empty for sections and where there is no such symbol).
    pub name: &'a dyn Fn(u32) -> &'a str,
}

/// Why a relocation section could not be normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormalizeError {
    /// Offset of the relocation's field in the section.
    pub offset: u64,
    /// The raw relocation type (0 where the entry itself is broken).
    pub r_type: u32,
    /// What is wrong, as a clause.
    pub what: &'static str,
}

/// Relocations of one architecture.
pub trait Relocator {
    /// The row for `r_type`, or `None` where this back end can't do it.
    fn howto(&self, r_type: u32) -> Option<&'static Howto>;
    /// The psABI name of any type of this architecture, supported or not.
    fn reloc_name(&self, r_type: u32) -> Option<&'static str>;
    /// Turns a section's relocations into neutral ones, in file order.
    ///
    /// # Errors
    /// [`NormalizeError`] on entries that break the psABI's rules.
    #[cfg(feature = "alloc")]
    fn normalize(&self, raw: &RawRelocs<'_>) -> Result<alloc::vec::Vec<Reloc>, NormalizeError>;
    /// The type that stores a whole address in a data word (used for GOT slots that only a load address settles).
    fn address_word(&self) -> u32;
}

/// A short run of machine code, without an allocator.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code {
    buf: [u8; Code::CAPACITY],
    len: u8,
}

impl Code {
    /// The longest code that fits, bytes.
    pub const CAPACITY: usize = 48;
    /// No code.
    pub const EMPTY: Code = Code { buf: [0; Code::CAPACITY], len: 0 };

    /// Appends bytes.
    ///
    /// # Panics
    /// Never for code that a back end's tables make: their lengths are constants below [`Code::CAPACITY`].
    #[must_use]
    pub fn then(mut self, bytes: &[u8]) -> Code {
        let at = usize::from(self.len);
        assert!(at + bytes.len() <= Self::CAPACITY, "code template longer than Code::CAPACITY");
        self.buf[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
        self
    }
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buf[..usize::from(self.len)]
    }
}

impl core::fmt::Debug for Code {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (i, b) in self.bytes().iter().enumerate() {
            write!(f, "{}{b:02x}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// What a trampoline at a site jumps to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The new function itself.
    Direct,
    /// A landing in the image (code of [`JumpForm::landing_len`] bytes that goes on to the new function).
    ImageLanding,
    /// A landing in an island that is allocated near the site, because the image may lie out of reach.
    NearIsland,
}

/// How far a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To every address.
    Anywhere,
    /// `to - from` between these, inclusive.
    Offset(i64, i64),
    /// Within the aligned region of 2^`bits` bytes that holds `from + after`.
    Region {
        /// Size of a region, as a power of two.
        bits: u8,
        /// What the processor adds to the jump's address before it takes the region.
        after: u8,
    },
}

impl Reach {
    /// First and last address that a jump at `from` reaches; `None`: all.
    #[must_use]
    pub fn targets(self, from: u64) -> Option<(i128, i128)> {
        match self {
            Reach::Anywhere => None,
            Reach::Offset(min, max) => {
                let from = i128::from(from);
                Some((from + i128::from(min), from + i128::from(max)))
            }
            Reach::Region { bits, after } => {
                let low = i128::from(region_start(from, bits, after));
                Some((low, low + (1i128 << bits) - 1))
            }
        }
    }
    /// Does a jump at `from` reach `to`?
    #[must_use]
    pub fn holds(self, from: u64, to: u64) -> bool {
        self.targets(from).is_none_or(|(low, high)| (low..=high).contains(&i128::from(to)))
    }
}

/// Start of the aligned page of 2^`bits` bytes that holds `at`.
#[must_use]
pub fn page_start(at: u64, bits: u8) -> u64 {
    region_start(at, bits, 0)
}

/// Start of the aligned region of 2^`bits` bytes that holds `at + after`.
#[must_use]
pub fn region_start(at: u64, bits: u8, after: u8) -> u64 {
    at.wrapping_add(after.into()) & !((1u64 << bits.min(63)) - 1)
}

/// One way to encode a trampoline.
#[derive(Clone, Copy, Debug)]
pub struct JumpForm {
    /// Stable name for `--form` and messages.
    pub name: &'static str,
    /// Bytes written at the site.
    pub len: u8,
    /// Required alignment of the site, bytes.
    pub align: u8,
    /// How far the site's jump goes.
    pub reach: Reach,
    /// Where the site's jump goes.
    pub via: Via,
    /// Length of the landing's code, bytes (0 for [`Via::Direct`]).
    pub landing_len: u8,
    /// How far the landing's jump goes.
    pub landing_reach: Reach,
    /// The new function finds its own address where its ABI wants it ([`Arch::wants_own_address`]).
    pub own_address: bool,
    /// Registers that the form changes before the new function runs.
    pub clobbers: &'static [&'static str],
    /// May be written by one aligned store while other threads run.
    pub single_store: bool,
}

/// Why a jump could not be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// `to` is out of the form's reach.
    OutOfReach {
        /// Address of the jump.
        from: u64,
        /// Where it should go.
        to: u64,
        /// The reach, inclusive.
        reach: Reach,
    },
    /// The address breaks the form's alignment.
    Misaligned {
        /// The address.
        at: u64,
        /// The alignment, bytes.
        align: u8,
    },
}

/// Trampolines of one architecture.
pub trait TrampolineEncoder {
    /// All forms, cheapest first.
    fn forms(&self) -> &'static [JumpForm];
    /// The bytes at the site: a jump at run-time address `from` to `to` (the new function or the landing).
    ///
    /// # Errors
    /// [`EncodeError`] where `to` is out of reach or an address misaligned.
    fn encode_jump(&self, form: &JumpForm, from: u64, to: u64) -> Result<Code, EncodeError>;
    /// The bytes of the landing at `at` that goes on to `new` (empty for [`Via::Direct`]).
    ///
    /// # Errors
    /// As [`TrampolineEncoder::encode_jump`].
    fn encode_landing(&self, form: &JumpForm, at: u64, new: u64) -> Result<Code, EncodeError>;
    /// Length of the landing pad at a function's entry that must stay first (0: none).
    fn landing_pad_len(&self, entry: &[u8]) -> u8;
    /// Does a function that begins with `entry` take indirect branches in a guarded page ([`Arch::guard`])?
    fn takes_indirect(&self, _entry: &[u8]) -> bool {
        true
    }
    /// May this form be used at a function that begins with `entry`? Some landing pads do something else as well and can't
    /// stay; a form that replaces them has to bring a pad of its own.
    fn suits(&self, _form: &JumpForm, _entry: &[u8]) -> bool {
        true
    }
    /// Is this byte run (from a function's end to the next function) padding that no one executes?
    /// Returns how many leading bytes of `bytes` are.
    fn padding_len(&self, bytes: &[u8]) -> usize;
    /// Fast filter over machine code: calls `hit(address of the instruction, target)` for everything in `code` (which
    /// starts at link-time address `at`) that could be a direct branch, call or address computation into
    /// `lo..hi`. May report bytes that are not instructions; never misses one.
    fn scan_branches(
        &self,
        code: &[u8],
        at: u64,
        lo: u64,
        hi: u64,
        constants: &Constants<'_>,
        hit: &mut dyn FnMut(u64, u64),
    );
    /// Does the instruction that `before` ends with execute the one behind it before it takes effect, so that a trampoline
    /// there would be a branch in its delay slot? `before` is code up to a function's entry.
    fn leaves_delay_slot(&self, _before: &[u8]) -> bool {
        false
    }
    /// May the address behind `before` (code, at least 8 bytes) be a return address: does a call end there? True where that
    /// can't be told.
    fn may_return_behind(&self, _before: &[u8]) -> bool {
        true
    }
}

/// What code that builds addresses from several instructions may count on, at link time.
#[derive(Clone, Copy)]
pub struct Constants<'a> {
    /// The program's global pointer.
    pub gp: Option<u64>,
    /// The address word that the program's file has at this link-time address, if it has one there.
    pub word: &'a dyn Fn(u64) -> Option<u64>,
}

impl Constants<'_> {
    /// Nothing is known.
    pub const NONE: Constants<'static> = Constants { gp: None, word: &|_| None };
}

/// A stub that carries a call to where its own bits don't reach, or that hands a function its own address.
#[derive(Clone, Copy, Debug)]
pub struct Veneer {
    /// The code, before relocation.
    pub code: &'static [u8],
    /// Its relocations against the function: offset in the code, a type that [`Relocator::howto`] knows, addend.
    pub relocs: &'static [(u8, u32, i64)],
}

/// GOT and veneers of one architecture.
pub trait GotBuilder {
    /// Size of one GOT slot, bytes.
    fn slot_size(&self) -> u8;
    /// Where the GOT pointer points, relative to the GOT's start.
    fn gp_bias(&self) -> u64;
    /// The veneer; it reaches every function that its relocations reach, at best all of them.
    fn veneer(&self) -> &'static Veneer;
    /// The type that stores the page of an address in a GOT slot ([`Expr::GotPage`]), where the ABI has such slots.
    fn page_word(&self) -> Option<u32> {
        None
    }
    /// Does the addend of a reference through a slot belong to what the slot holds, as against the slot's address?
    fn addend_in_slot(&self) -> bool {
        false
    }
    /// Names by which code means the GOT pointer.
    fn got_symbols(&self) -> &'static [&'static str] {
        &["_GLOBAL_OFFSET_TABLE_"]
    }
    /// Name of the symbol that holds the program's global pointer, where the ABI has one. Without it the global pointer
    /// is [`GotBuilder::gp_bias`] past the program's `DT_PLTGOT`.
    fn global_pointer_symbol(&self) -> Option<&'static str> {
        None
    }
    /// Offset of the program's static TLS block from the thread pointer: what to add to a TLS symbol's value
    /// (its offset in the block) to get `S - TP`. `size` and `align` are the PT_TLS segment's.
    fn tp_offset(&self, size: u64, align: u64) -> i64;
}

/// What this architecture needs after code was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheNeed {
    /// Nothing: instruction fetch sees stores (after a serialising event, which a ptrace stop is).
    Coherent,
    /// A system call in the target, as well as what the kernel does on a ptrace write.
    Syscall,
    /// Line operations over the range.
    LineOps,
}

/// Cache maintenance of one architecture.
pub trait CacheInvalidation {
    /// What is needed; *how* is the target's business.
    fn cache_need(&self) -> CacheNeed;
}

/// Index of a register in [`Registers`].
pub type Reg = u8;

/// Where a register lies in the gdb remote protocol. Used where the stub gives no target description; where it does, only
/// [`GdbRegister::name`] counts, and the description says the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GdbRegister {
    /// The register's name in gdb's standard target descriptions (GDB manual, "Standard Target Features").
    pub name: &'static str,
    /// Number for the packets `p` and `P`.
    pub number: u16,
    /// Offset in the raw bytes of the `g` packet's reply (two digits are one byte).
    pub offset: u16,
    /// Size there, bytes; the value is in the target's byte order.
    pub size: u8,
    /// Index in the [`RegisterLayout`].
    pub reg: Reg,
}

impl GdbRegister {
    /// A row of the table.
    #[must_use]
    pub const fn new(name: &'static str, number: u16, offset: u16, size: u8, reg: Reg) -> GdbRegister {
        GdbRegister { name, number, offset, size, reg }
    }
}

/// The registers of one architecture as data. Indices count words of the kernel's NT_PRSTATUS register set.
#[derive(Clone, Copy, Debug)]
pub struct RegisterLayout {
    /// Number of words in the register set.
    pub count: u8,
    /// Size of one word of the register set, bytes; not always that of an address.
    pub word: u8,
    /// Name of each register, by index.
    pub names: &'static [&'static str],
    /// Program counter.
    pub pc: Reg,
    /// Stack pointer.
    pub sp: Reg,
    /// Link register, where the architecture has one.
    pub ra: Option<Reg>,
    /// Thread pointer.
    pub tp: Option<Reg>,
    /// System call number (as the caller sets it).
    pub syscall_nr: Reg,
    /// System call arguments in registers, in order.
    pub syscall_args: &'static [Reg],
    /// System call and function result.
    pub result: Reg,
    /// Register that is non-zero when a system call failed (`None`: the result is a negative errno).
    pub error_flag: Option<Reg>,
    /// The kernel's copy of the system call number that drives restarts.
    pub restart_nr: Option<Reg>,
    /// What [`RegisterLayout::restart_nr`] holds in a thread that is in no call; written to suppress a restart.
    pub restart_none: u64,
    /// Bits that are cleared in a thread that is sent elsewhere: what the processor remembers of the instruction before.
    pub call_clears: &'static [(Reg, u64)],
    /// Register that has to hold a function's own address when the function is entered, in position-independent code.
    pub entry: Option<Reg>,
    /// Function call arguments in registers, in order.
    pub call_args: &'static [Reg],
    /// DWARF number of each register that unwind tables name: (DWARF number, index).
    pub dwarf: &'static [(u16, Reg)],
    /// DWARF number of the return address column.
    pub dwarf_ra: u16,
    /// Register and bit that say: the thread was interrupted in the delay slot of the branch at its pc.
    pub in_delay_slot: Option<(Reg, u64)>,
    /// The same registers in the gdb remote protocol; those that a stub never shows have no row.
    pub gdb: &'static [GdbRegister],
    /// Without an operating system: a register and the bits of it that are set while the processor is inside an exception
    /// handler, where it can't be judged what it will return to. `None`: there is no such register.
    pub exception: Option<(Reg, u64)>,
    /// Without an operating system, where the processor keeps in registers of its own what an exception handler will return to.
    pub returns: Option<ExceptionReturns>,
}

/// What a processor that may be inside an exception handler will return to.
#[derive(Clone, Copy, Debug)]
pub struct ExceptionReturns {
    /// A register and the bits of it that are set at the begin of every handler, when nothing was saved yet.
    pub masked: (Reg, u64),
    /// A register and the bits of it that are the processor's level.
    pub level: (Reg, u64),
    /// The registers with the addresses, as gdb calls them (in any case), and the lowest level that may be inside a handler
    /// which returns to them.
    pub addresses: &'static [(&'static str, u64)],
}

/// Register values of one thread, in the order of a [`RegisterLayout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The values; entries from [`RegisterLayout::count`] on are 0.
    pub values: [u64; Registers::MAX],
}

impl RegisterLayout {
    /// Makes a thread with these registers go on at `pc`, as if nothing had come before.
    pub fn send(&self, regs: &mut Registers, pc: u64) {
        regs.set(self.pc, pc);
        if let Some(r) = self.restart_nr {
            // Whatever call the thread was in is not to be made again in between.
            regs.set(r, self.restart_none);
        }
        for (r, bits) in self.call_clears {
            regs.set(*r, regs.get(*r) & !bits);
        }
    }
}

impl Registers {
    /// The most registers of any layout.
    pub const MAX: usize = 80;
    /// All zero.
    pub const ZERO: Registers = Registers { values: [0; Registers::MAX] };
    /// The value of `r`.
    #[must_use]
    pub fn get(&self, r: Reg) -> u64 {
        self.values[usize::from(r)]
    }
    /// Sets `r`.
    pub fn set(&mut self, r: Reg, v: u64) {
        self.values[usize::from(r)] = v;
    }
}

/// Linux system call numbers and conventions of one ABI.
#[derive(Clone, Copy, Debug)]
pub struct LinuxAbi {
    /// `mmap` (or `mmap2` where [`LinuxAbi::mmap_unit`] is not 1).
    pub mmap: u64,
    /// Unit of mmap's offset argument, bytes.
    pub mmap_unit: u64,
    /// `munmap`
    pub munmap: u64,
    /// `memfd_create`
    pub memfd_create: u64,
    /// `ftruncate`, with a length of one word
    pub ftruncate: u64,
    /// `close`
    pub close: u64,
    /// `openat`
    pub openat: u64,
    /// `read`
    pub read: u64,
    /// `mprotect`
    pub mprotect: u64,
    /// `prctl`
    pub prctl: u64,
    /// `rt_sigreturn`
    pub rt_sigreturn: u64,
    /// `get_robust_list`
    pub get_robust_list: u64,
    /// Can its kernels let a thread make a single step?
    pub single_step: bool,
    /// `cacheflush`, where the ABI has it.
    pub cacheflush: Option<u64>,
    /// MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE of this ABI.
    pub map_private: u64,
    /// MAP_ANONYMOUS
    pub map_anonymous: u64,
    /// MAP_FIXED_NOREPLACE
    pub map_fixed_noreplace: u64,
    /// Bytes of the system call instruction.
    pub syscall_insn: &'static [u8],
    /// Alignment of instructions, bytes.
    pub insn_align: u64,
    /// Byte strings that execute a system call and then return to the caller (for injected calls that end by
    /// themselves), best first.
    pub syscall_return: &'static [&'static [u8]],
    /// Byte strings that execute `rt_sigreturn`.
    pub sigreturn_code: &'static [&'static [u8]],
    /// Calls that a ptrace stop ends with EINTR though no signal was handled, and which are safe to make again.
    pub restart_after_eintr: &'static [u64],
    /// Where the kernel has taken an interrupted call back before a tracer gets to see the thread (the pc is at the system call
    /// instruction again, the arguments are in place): number of the register set that has the call's number as an `int`, -1
    /// outside of calls.
    pub taken_back: Option<u32>,
    /// Errno numbers: EINTR and ERESTARTNOHAND (kernel include/linux/errno.h), positive.
    pub eintr: u64,
    /// ERESTARTNOHAND: the kernel restarts the call unless a signal handler is to run.
    pub erestartnohand: u64,
    /// Offset from the stack pointer of the first system call argument that has no register, in words as long as an
    /// address; the others follow.
    pub stack_args: Option<u8>,
    /// What functions that choose another one (STT_GNU_IFUNC) are called with: these bits of AT_HWCAP, and 0. `None`: nothing.
    pub resolver_hwcap: Option<u64>,
    /// Red zone below the stack pointer, bytes.
    pub red_zone: u64,
}

/// A signal frame that brings a hijacked thread back to what it did, should the tool be gone.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug)]
pub struct RescueFrame {
    /// The bytes, to be written at [`RescueFrame::at`].
    pub bytes: alloc::vec::Vec<u8>,
    /// Address of the frame.
    pub at: u64,
    /// Stack pointer to start the injected code with. Where returns go by the stack, the word there is to be the address of
    /// the sigreturn code.
    pub sp: u64,
}

/// Machine id of an ELF file, and all that decides which back end takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfIdent {
    /// 64-bit class.
    pub is_64: bool,
    /// Byte order of data.
    pub endian: Endian,
    /// `e_machine`
    pub machine: u16,
    /// `e_flags`
    pub flags: u32,
}

/// Meaning of a section index that ELF leaves to the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedIndex {
    /// Like SHN_COMMON: the value is an alignment.
    Common,
    /// Like SHN_UNDEF.
    Undefined,
}

/// One architecture, in one ABI variant and byte order.
pub trait Arch: Relocator + TrampolineEncoder + GotBuilder + CacheInvalidation {
    /// Stable name for `--arch` and messages.
    fn name(&self) -> &'static str;
    /// Name that all variants of the back end answer to as well; the ELF file then says which.
    fn family(&self) -> &'static str {
        self.name()
    }
    /// Can this back end (in this variant) handle objects of `ident`? The error is a clause that says why not.
    ///
    /// # Errors
    /// A clause such as "is a big-endian object".
    fn accepts(&self, ident: &ElfIdent) -> Result<(), &'static str>;
    /// May a patch object be linked against this program, as far as their ABIs go?
    ///
    /// # Errors
    /// [`AbiMismatch`]
    #[cfg(feature = "alloc")]
    fn same_abi(&self, _object: &AbiFacts<'_>, _program: &AbiFacts<'_>) -> Result<(), AbiMismatch> {
        Ok(())
    }
    /// Does this back end handle functions whose symbols have these `st_other` and `st_value`? The error is a clause that
    /// says why not, such as "is compressed code".
    ///
    /// # Errors
    /// A clause.
    fn accepts_function(&self, _st_other: u8, _value: u64) -> Result<(), &'static str> {
        Ok(())
    }
    /// Does a function expect its own address in a register when it is entered? `flags` are the `e_flags` of the object
    /// that defines it, `st_other` its symbol's. True where that can't be told.
    fn wants_own_address(&self, _flags: u32, _st_other: u8) -> bool {
        false
    }
    /// What a section index among those that ELF leaves to the processor says of a symbol.
    fn reserved_index(&self, _shndx: u16) -> Option<ReservedIndex> {
        None
    }
    /// 32 or 64.
    fn address_bits(&self) -> u8;
    /// Byte order of data.
    fn data_endian(&self) -> Endian;
    /// Byte order of instruction words.
    fn insn_endian(&self) -> Endian;
    /// Alignment of spans in a package, bytes: the largest page size of this ABI's kernels.
    fn max_page_size(&self) -> u64;
    /// The lowest address past user space.
    fn user_space_end(&self) -> u64;
    /// A breakpoint instruction.
    fn breakpoint(&self) -> &'static [u8];
    /// The register layout.
    fn registers(&self) -> &'static RegisterLayout;
    /// Linux conventions, or `None` where this variant has no Linux.
    fn linux(&self) -> Option<&'static LinuxAbi>;
    /// Bits of a stored return address that are the address's own; processors may keep a signature in the others.
    fn return_address_bits(&self) -> u64 {
        u64::MAX
    }
    /// Whose extensions unwind tables may use.
    fn unwind_vendor(&self) -> Vendor {
        Vendor::Default
    }
    /// Builds the frame that `rt_sigreturn` restores `regs`, the extended state `xstate` (vector registers and the like,
    /// the register sets one after the other in the form that PTRACE_GETREGSET gives them; none, if there are none) and the
    /// signal mask (bit 0: signal 1) from, below `regs`'s stack pointer. `None`: this variant can't, injected calls then do
    /// not outlive the tool.
    #[cfg(feature = "alloc")]
    fn rescue_frame(&self, regs: &Registers, xstate: &[u8], sigmask: u128) -> Option<RescueFrame>;
    /// The first place in `code`, which lies at `at`, where processors of this architecture go wrong by an erratum, though the code is
    /// right. Whether it is there may depend on the address within a page of 4 KiB, and on nothing above.
    fn hazard(&self, _code: &[u8], _at: u64) -> Option<Hazard> {
        None
    }
    /// Is a thread before `code`, which lies in no file, executing an instruction that the system has copied out of its place?
    /// Its registers don't tell where that place is.
    fn out_of_place(&self, _code: &[u8; 8]) -> bool {
        false
    }
    /// How pages are mapped in which indirect branches have to end at landing pads, where there are such.
    fn guard(&self) -> Option<Guard> {
        None
    }
    /// One step out of a frame for which there is no unwind table, by following the code from its pc to its return. The
    /// caller's frame, or `None` where that can't be told for sure.
    fn step_out(&self, _frame: &Frame, _read: &mut dyn FnMut(u64, &mut [u8]) -> bool) -> Option<Frame> {
        None
    }
    /// Where a thread with these registers comes past next, in one of the two places, for systems without single steps.
    /// `code` is what follows its pc. `None`: not known, or better not tried, as at a system call.
    fn comes_past(&self, _regs: &Registers, _code: &[u8]) -> Option<[u64; 2]> {
        None
    }
}

/// Pages in which indirect branches have to end at landing pads; see [`Arch::guard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Type of the program property (`.note.gnu.property`) by which an object says so of its code.
    pub property: u32,
    /// The bits of that property's value that have to be set.
    pub bits: u32,
    /// What `mmap` is asked for beside the rights.
    pub prot: u64,
}

/// A table of places in a function: entry `i` leads to `base + (entry << shift)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JumpTable {
    /// Address of the first entry. How many there are is not known.
    pub at: u64,
    /// What entries count from; 0 where they are addresses.
    pub base: u64,
    /// Size of an entry, bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// May entries be negative?
    pub signed: bool,
    /// How far entries are shifted to the left.
    pub shift: u8,
}

impl JumpTable {
    /// Where an entry of `value` leads. Bits beyond its size are not looked at.
    #[must_use]
    pub fn target(&self, value: u64) -> u64 {
        let unused = 64 - 8 * u32::from(self.size.clamp(1, 8));
        let value = value << unused;
        let value = if self.signed { (value as i64 >> unused) as u64 } else { value >> unused };
        self.base.wrapping_add(value << (self.shift & 63))
    }
}

/// Code that some processors get wrong; see [`Arch::hazard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// Its address.
    pub at: u64,
    /// What it is, as a noun.
    pub what: &'static str,
}

/// Registers of one frame of a stack, as far as they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Values; those that are not known mean nothing.
    pub regs: Registers,
    /// Bit for each index of [`Registers`]: is its value known?
    pub known: u128,
    /// Execution goes on exactly at the pc (innermost frame, or interrupted by a signal); else pc is a return address.
    pub exact: bool,
}

/// What tells one ABI from another, for [`Arch::same_abi`].
#[cfg(feature = "alloc")]
#[derive(Clone, Copy)]
pub struct AbiFacts<'a> {
    /// Class, byte order, machine and flags.
    pub ident: ElfIdent,
    /// Contents of a section by name.
    pub section: &'a dyn Fn(&str) -> Option<&'a [u8]>,
}

/// A patch object and a program that don't go together.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbiMismatch {
    /// A clause about the object, such as "uses hard-float registers, the program does not".
    pub why: alloc::string::String,
    /// How to compile the object.
    pub hint: &'static str,
}

#[cfg(test)]
mod tests {
    use super::JumpTable;

    #[test]
    fn entries_lead_to_places() {
        let table = |size, signed, shift| JumpTable { at: 0, base: 0x1000, size, signed, shift };
        assert_eq!(table(1, true, 2).target(0xff), 0xffc);
        assert_eq!(table(1, false, 2).target(0xff), 0x13fc);
        assert_eq!(table(2, true, 0).target(0x1_8000), 0x1000u64.wrapping_sub(0x8000));
        assert_eq!(table(4, true, 2).target(0xffff_fffe), 0xff8);
        assert_eq!(table(4, false, 0).target(0xffff_fffe), 0x1_0000_0ffe);
        assert_eq!(JumpTable { base: 0, ..table(8, false, 0) }.target(0x40_1000), 0x40_1000);
    }
}
