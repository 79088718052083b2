//! Cache maintenance: a system call.
//!
//! Odd, next to other architectures: instruction fetch does not see stores, and what makes it see them is privileged (the
//! `cache` instruction) or does too little (`synci` works on this processor's caches only, on some not at all). The kernel
//! flushes what ptrace writes to an executable mapping, yet returns early where the address space has no valid ASID on the
//! processor or the page is not in the page table; `cacheflush(2)`, called in the target, is what remains certain on
//! every kernel and all processors.
//!
//! Source: kernel `arch/mips/mm/cache.c` (sys_cacheflush), `arch/mips/mm/init.c` (copy_to_user_page), `arch/mips/mm/c-r4k.c`
//! (local_r4k_flush_cache_page); *MIPS32 Architecture*, volume II, "SYNCI".

use crate::Mips;
use tigerfix_core::arch::{CacheInvalidation, CacheNeed};

impl CacheInvalidation for Mips {
    fn cache_need(&self) -> CacheNeed {
        CacheNeed::Syscall
    }
}
