//! x86-64, as it would be if stores were not coherent with instruction fetch and Linux had a system call to make them so.

use tigerfix::arch::*;
use tigerfix::field::Endian;
use tigerfix_arch_x86_64::X86_64;

pub struct Caching;

/// Number of the system call.
pub const CACHEFLUSH: u64 = 4242;

/// What a thread is about to execute that does so out of its place.
pub const OUT_OF_PLACE: [u8; 8] = [0x90, 0xf1, 0xf1, 0xf1, 0xf1, 0xf1, 0xf1, 0xf1];

static LINUX: std::sync::LazyLock<LinuxAbi> =
    std::sync::LazyLock::new(|| LinuxAbi { cacheflush: Some(CACHEFLUSH), ..*X86_64.linux().expect("has Linux") });

impl Relocator for Caching {
    fn howto(&self, r_type: u32) -> Option<&'static Howto> {
        X86_64.howto(r_type)
    }
    fn reloc_name(&self, r_type: u32) -> Option<&'static str> {
        X86_64.reloc_name(r_type)
    }
    fn normalize(&self, raw: &RawRelocs<'_>) -> Result<Vec<Reloc>, NormalizeError> {
        X86_64.normalize(raw)
    }
    fn address_word(&self) -> u32 {
        X86_64.address_word()
    }
}
impl TrampolineEncoder for Caching {
    fn forms(&self) -> &'static [JumpForm] {
        X86_64.forms()
    }
    fn encode_jump(&self, form: &JumpForm, from: u64, to: u64) -> Result<Code, EncodeError> {
        X86_64.encode_jump(form, from, to)
    }
    fn encode_landing(&self, form: &JumpForm, at: u64, new: u64) -> Result<Code, EncodeError> {
        X86_64.encode_landing(form, at, new)
    }
    fn landing_pad_len(&self, entry: &[u8]) -> u8 {
        X86_64.landing_pad_len(entry)
    }
    fn padding_len(&self, bytes: &[u8]) -> usize {
        X86_64.padding_len(bytes)
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
        X86_64.scan_branches(code, at, lo, hi, constants, hit);
    }
}
impl GotBuilder for Caching {
    fn slot_size(&self) -> u8 {
        X86_64.slot_size()
    }
    fn gp_bias(&self) -> u64 {
        X86_64.gp_bias()
    }
    fn veneer(&self) -> &'static Veneer {
        X86_64.veneer()
    }
    fn tp_offset(&self, size: u64, align: u64) -> i64 {
        X86_64.tp_offset(size, align)
    }
}
impl CacheInvalidation for Caching {
    fn cache_need(&self) -> CacheNeed {
        CacheNeed::Syscall
    }
}
impl Arch for Caching {
    fn name(&self) -> &'static str {
        "caching"
    }
    fn accepts(&self, ident: &ElfIdent) -> Result<(), &'static str> {
        X86_64.accepts(ident)
    }
    fn address_bits(&self) -> u8 {
        X86_64.address_bits()
    }
    fn data_endian(&self) -> Endian {
        X86_64.data_endian()
    }
    fn insn_endian(&self) -> Endian {
        X86_64.insn_endian()
    }
    fn max_page_size(&self) -> u64 {
        X86_64.max_page_size()
    }
    fn user_space_end(&self) -> u64 {
        X86_64.user_space_end()
    }
    /// Like an architecture that signs its return addresses.
    fn return_address_bits(&self) -> u64 {
        (1 << 48) - 1
    }
    fn out_of_place(&self, code: &[u8; 8]) -> bool {
        *code == OUT_OF_PLACE
    }
    fn breakpoint(&self) -> &'static [u8] {
        X86_64.breakpoint()
    }
    fn registers(&self) -> &'static RegisterLayout {
        X86_64.registers()
    }
    fn linux(&self) -> Option<&'static LinuxAbi> {
        Some(&LINUX)
    }
    fn rescue_frame(&self, _: &Registers, _: &[u8], _: u128) -> Option<RescueFrame> {
        None
    }
}
