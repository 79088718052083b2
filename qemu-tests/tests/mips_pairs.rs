//! Halves of addresses that have to find each other: compiled code with variables so large that their high halves differ.
//!
//! The same code is compiled twice. In the one object all variables are in one section, and what an instruction is about is
//! known only from the sum that `normalize` puts together from two relocations; in the other each variable has a section of
//! its own (`-fdata-sections`), whose symbol says it. Every sum has to lead to the variable that the other object names.

mod support;

use std::collections::BTreeMap;

use support::{Workshop, fixture, sections, symbols};
use tigerfix_arch_mips::{MIPS, MIPSEL, Mips};
use tigerfix_core::arch::{Arch as _, RawRelocs, Reloc, Relocator as _};

const STT_OBJECT: u8 = 1;
const STT_SECTION: u8 = 3;
const SHT_REL: u32 = 9;

/// The relocations of `.text`, with the name of the symbol's section where it is a section's symbol.
fn text(arch: &Mips, object: &[u8]) -> Vec<(Reloc, Option<String>)> {
    let (all, names) = (sections(object), symbols(object));
    let index = all.iter().position(|s| s.name == ".text").expect("code");
    let entries = all.iter().find(|s| s.kind == SHT_REL && s.info as usize == index).expect("relocations");
    let bytes = |i: &support::Section| &object[i.offset..i.offset + i.size];
    let raw = RawRelocs {
        entries: bytes(entries),
        rela: false,
        section: bytes(&all[index]),
        is_64: false,
        endian: arch.data_endian(),
        is_local: &|i| names[i as usize].info >> 4 == 0,
        name: &|i| &names[i as usize].name,
    };
    let section = |r: &Reloc| {
        let s = &names[r.symbol as usize];
        (s.info & 15 == STT_SECTION).then(|| all[usize::from(s.section)].name.clone())
    };
    arch.normalize(&raw).expect("a compiler's relocations").into_iter().map(|r| (r, section(&r))).collect()
}

/// How many sums were compared.
fn compare(shop: &Workshop, arch: &Mips, compiler: &str, flags: &[&str]) -> u32 {
    let compile = |out: &str, more: &[&str]| {
        let flags = [&["-c", "-fno-section-anchors"], flags, more].concat();
        shop.compile(compiler, out, &[&fixture("many_arrays.c")], &flags)
    };
    let (one, each) = (compile("one.o", &[]), compile("each.o", &["-fdata-sections"]));
    let variables: BTreeMap<String, u64> =
        symbols(&one).into_iter().filter(|s| s.info & 15 == STT_OBJECT).map(|s| (s.name, s.value)).collect();
    let named: BTreeMap<u64, (Reloc, Option<String>)> =
        text(arch, &each).into_iter().map(|r| (r.0.offset, r)).collect();
    let mut count = 0;
    for (r, section) in text(arch, &one) {
        if section.as_deref() != Some(".bss") {
            continue;
        }
        let (other, name) = &named[&r.offset];
        let variable = name.as_deref().and_then(|n| n.strip_prefix(".bss.")).expect("a variable's section");
        let expect = variables[variable] as i64 + other.addend;
        assert_eq!((r.r_type, r.addend), (other.r_type, expect), "{compiler} {flags:?} at {:#x}", r.offset);
        count += 1;
    }
    count
}

#[test]
fn sums_lead_to_the_variable_that_is_meant() {
    let shop = Workshop::new();
    let mut count = 0;
    for (arch, compiler) in [(&MIPS, "mips-linux-gnu-gcc"), (&MIPSEL, "mipsel-linux-gnu-gcc")] {
        for code in [
            &["-fPIC"][..],
            &["-fno-pic", "-mplt"],
            &["-mno-abicalls", "-fno-pic", "-G0"],
            &["-mno-abicalls", "-fno-pic", "-G0", "-mips32"],
            &["-fPIC", "-mno-explicit-relocs"],
        ] {
            for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
                count += compare(&shop, arch, compiler, &[code, &[level]].concat());
            }
        }
    }
    println!("{count} sums compared");
    assert!(count > 1000, "{count}");
}
