//! Binding of imports over the loaded modules: the dynamic symbol tables in the target's memory, in the loader's order.

use crate::addr::{Bias, RunAddr};
use crate::field::load;
use crate::session::modules::Module;
use crate::target::Target;
use alloc::{string::String, vec, vec::Vec};

// Tags of the dynamic section (System V gABI, chapter 5).
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_DEBUG: u64 = 21;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const DT_VERSYM: u64 = 0x6fff_fff0;
const STT_TLS: u8 = 6;
const STT_GNU_IFUNC: u8 = 10;
/// Versions that are not the default one (binutils: VERSYM_HIDDEN).
const VERSYM_HIDDEN: u64 = 0x8000;
/// Bounds on walks through memory that may be damaged.
const MAX_CHAIN: u64 = 1 << 20;
const MAX_MODULES: usize = 4096;
const MAX_DYNAMIC: u64 = 64 * 1024;

/// Where an import was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// A function or object at this address.
    Address(RunAddr),
    /// An IFUNC: its resolver is at this address.
    Resolver(RunAddr),
    /// A thread-local symbol, which no patch can use.
    Tls,
}

/// A symbol that a module defines.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is.
    pub binding: Binding,
    /// File name of the module.
    pub module: String,
}

/// The dynamic section's tables, as run-time addresses.
struct Tables {
    symtab: RunAddr,
    strtab: RunAddr,
    gnu_hash: Option<RunAddr>,
    hash: Option<RunAddr>,
    versym: Option<RunAddr>,
}

/// Looks symbols up in all modules, in link-map order where the loader tells it, else in address order.
pub struct Scope<'m> {
    modules: Vec<&'m Module>,
}

fn word(target: &mut dyn Target, module: &Module, at: RunAddr, len: usize) -> Option<u64> {
    let mut buf = [0u8; 8];
    target.read(at, buf.get_mut(..len)?).ok()?;
    Some(load(&buf[..len], module.endian))
}

fn dynamic_entries(target: &mut dyn Target, module: &Module) -> Vec<(u64, u64)> {
    let Some((at, size)) = module.dynamic else { return Vec::new() };
    let mut bytes = vec![0u8; size.min(MAX_DYNAMIC) as usize];
    if target.read(at, &mut bytes).is_err() {
        return Vec::new();
    }
    let n = module.word();
    bytes
        .chunks_exact(2 * n)
        .map(|e| (load(&e[..n], module.endian), load(&e[n..], module.endian)))
        .take_while(|e| e.0 != 0)
        .collect()
}

impl<'m> Scope<'m> {
    /// Orders the modules as the dynamic loader searches them.
    #[must_use]
    pub fn new(target: &mut dyn Target, modules: &'m [Module]) -> Scope<'m> {
        let mut order: Vec<&Module> = Vec::new();
        for link_map in link_maps(target, modules) {
            let known = modules.iter().find(|m| m.dynamic.is_some_and(|d| d.0 == link_map));
            if let Some(m) = known
                && !order.iter().any(|o| core::ptr::eq(*o, m))
            {
                order.push(m);
            }
        }
        let rest = modules.iter().filter(|m| m.dynamic.is_some() && !order.iter().any(|o| core::ptr::eq(*o, *m)));
        let rest: Vec<&Module> = rest.collect();
        order.extend(rest);
        Scope { modules: order }
    }

    /// The first definition of `name`.
    pub fn find(&self, target: &mut dyn Target, name: &str) -> Option<Found> {
        self.modules.iter().find_map(|m| {
            find_in(target, m, name).map(|binding| Found { binding, module: String::from(m.file_name()) })
        })
    }
}

/// Addresses of the dynamic sections in the loader's list (`struct r_debug` and `struct link_map` of <link.h>).
fn link_maps(target: &mut dyn Target, modules: &[Module]) -> Vec<RunAddr> {
    let mut out = Vec::new();
    for m in modules {
        let debug = dynamic_entries(target, m).into_iter().find(|e| e.0 == DT_DEBUG).map_or(0, |e| e.1);
        if debug == 0 {
            continue;
        }
        let n = m.word() as u64;
        // r_debug: int r_version, padding to a word; then r_map. link_map: l_addr, l_name, l_ld, l_next.
        let mut at = word(target, m, RunAddr(debug.wrapping_add(n)), n as usize).unwrap_or(0);
        while at != 0 && out.len() < MAX_MODULES {
            match word(target, m, RunAddr(at.wrapping_add(2 * n)), n as usize) {
                Some(ld) => out.push(RunAddr(ld)),
                None => break,
            }
            at = word(target, m, RunAddr(at.wrapping_add(3 * n)), n as usize).unwrap_or(0);
        }
        break;
    }
    out
}

fn tables(target: &mut dyn Target, module: &Module) -> Option<Tables> {
    let entries = dynamic_entries(target, module);
    let get = |tag| {
        let v = entries.iter().find(|e| e.0 == tag)?.1;
        // Some loaders relocate these pointers in place, some do not; the vDSO's never are.
        let at = RunAddr(v);
        Some(if module.contains(at) { at } else { rebase(v, module.bias) })
    };
    Some(Tables {
        symtab: get(DT_SYMTAB)?,
        strtab: get(DT_STRTAB)?,
        gnu_hash: get(DT_GNU_HASH),
        hash: get(DT_HASH),
        versym: get(DT_VERSYM),
    })
}

fn rebase(v: u64, bias: Bias) -> RunAddr {
    RunAddr(v.wrapping_add(bias.0))
}

fn find_in(target: &mut dyn Target, module: &Module, name: &str) -> Option<Binding> {
    let t = tables(target, module)?;
    match (t.gnu_hash, t.hash) {
        (Some(h), _) => find_gnu(target, module, &t, h, name),
        (None, Some(h)) => find_sysv(target, module, &t, h, name),
        _ => None,
    }
}

/// The GNU hash of a symbol name (h * 33 + c, seed 5381).
fn gnu_hash(name: &str) -> u32 {
    name.bytes().fold(5381u32, |h, c| h.wrapping_mul(33).wrapping_add(u32::from(c)))
}

/// The System V hash of a symbol name (gABI, "Hash Table").
fn sysv_hash(name: &str) -> u32 {
    name.bytes().fold(0u32, |h, c| {
        let h = (h << 4).wrapping_add(u32::from(c));
        let g = h & 0xf000_0000;
        (h ^ (g >> 24)) & !g
    })
}

fn find_gnu(target: &mut dyn Target, m: &Module, t: &Tables, table: RunAddr, name: &str) -> Option<Binding> {
    let w = m.word() as u64;
    let nbuckets = word(target, m, table, 4)?;
    let symoffset = word(target, m, table.offset(4), 4)?;
    let bloom_size = word(target, m, table.offset(8), 4)?;
    let buckets = table.offset(16 + bloom_size * w);
    let hash = u64::from(gnu_hash(name));
    let first = word(target, m, buckets.offset(hash.checked_rem(nbuckets)? * 4), 4)?;
    if first < symoffset {
        return None;
    }
    let chain = buckets.offset(nbuckets * 4);
    for index in first..first + MAX_CHAIN {
        let h = word(target, m, chain.offset((index - symoffset) * 4), 4)?;
        if h | 1 == hash | 1
            && let Some(b) = symbol(target, m, t, index, name)
        {
            return Some(b);
        }
        if h & 1 == 1 {
            return None;
        }
    }
    None
}

fn find_sysv(target: &mut dyn Target, m: &Module, t: &Tables, table: RunAddr, name: &str) -> Option<Binding> {
    let nbucket = word(target, m, table, 4)?;
    let buckets = table.offset(8);
    let chains = buckets.offset(nbucket * 4);
    let mut index = word(target, m, buckets.offset(u64::from(sysv_hash(name)).checked_rem(nbucket)? * 4), 4)?;
    for _ in 0..MAX_CHAIN {
        if index == 0 {
            return None;
        }
        if let Some(b) = symbol(target, m, t, index, name) {
            return Some(b);
        }
        index = word(target, m, chains.offset(index * 4), 4)?;
    }
    None
}

/// The symbol at `index`, if it is a default-version definition of `name`.
fn symbol(target: &mut dyn Target, m: &Module, t: &Tables, index: u64, name: &str) -> Option<Binding> {
    let size = if m.is_64 { 24 } else { 16 };
    let mut buf = [0u8; 24];
    let buf = buf.get_mut(..size as usize)?;
    target.read(t.symtab.offset(index * size), buf).ok()?;
    let get = |at: usize, n: usize| load(&buf[at..at + n], m.endian);
    let (st_name, info, shndx, value) =
        if m.is_64 { (get(0, 4), buf[4], get(6, 2), get(8, 8)) } else { (get(0, 4), buf[12], get(14, 2), get(4, 4)) };
    let local = info >> 4 == 0;
    if shndx == 0 || local || !name_is(target, t.strtab.offset(st_name), name) {
        return None;
    }
    if let Some(versym) = t.versym
        && word(target, m, versym.offset(index * 2), 2)? & VERSYM_HIDDEN != 0
    {
        return None;
    }
    let addr = rebase(value, m.bias);
    Some(match info & 15 {
        STT_TLS => Binding::Tls,
        STT_GNU_IFUNC => Binding::Resolver(addr),
        _ => Binding::Address(addr),
    })
}

fn name_is(target: &mut dyn Target, at: RunAddr, name: &str) -> bool {
    let mut buf = vec![0u8; name.len() + 1];
    target.read(at, &mut buf).is_ok() && buf[..name.len()] == *name.as_bytes() && buf[name.len()] == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_match_the_published_values() {
        assert_eq!(gnu_hash("printf"), 0x156b_2bb8);
        assert_eq!(gnu_hash(""), 5381);
        assert_eq!(sysv_hash("printf"), 0x0779_05a6);
        assert_eq!(sysv_hash(""), 0);
    }
}
