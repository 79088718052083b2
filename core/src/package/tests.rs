use super::format::{self, info, note};
use super::*;
use crate::error::{Class, Explain};
use crate::model::{Identity, Package, PackageSymbol, ProgramRef, Site, Span};
use std::{format, string::String, string::ToString, vec, vec::Vec};

fn symbol(name: &str, referent: Referent, size: u64, function: bool, global: bool) -> PackageSymbol {
    PackageSymbol { name: name.into(), referent, size, function, global }
}

fn ident(is_64: bool, endian: Endian, machine: u16) -> ElfIdent {
    ElfIdent { is_64, endian, machine, flags: 0x7000_0002 }
}

/// A package that uses every feature, with its symbols in the order of the file.
fn sample(ident: ElfIdent, base: Option<u64>, page_size: u64) -> Package {
    let high = if ident.is_64 { 0xffff_8000_0000_0000 } else { 0x8000_0000 };
    let text: Vec<u8> = (0..0x70).map(|i| i as u8).collect();
    let p = page_size.max(0x80);
    Package {
        ident,
        name: "fix-überlauf".into(),
        version: "1.2".into(),
        description: "Checks the length before the copy".into(),
        program: ProgramRef {
            file: "server".into(),
            identity: Identity::BuildId(vec![0xab; 20]),
            fixed: base.is_some(),
        },
        base,
        page_size,
        guarded: true,
        spans: vec![
            Span { perm: Perm::RX, offset: 0, size: 0x70, data: text },
            Span { perm: Perm::R, offset: p, size: 0x30, data: vec![0x5a; 0x30] },
            Span { perm: Perm::RW, offset: 3 * p, size: 0x58, data: vec![7; 0x18] },
            Span { perm: Perm::RW, offset: 4 * p, size: 0x40, data: vec![] },
        ],
        symbols: vec![
            symbol("helper", Referent::Image(0x40), 0x10, true, false),
            symbol("", Referent::Image(p), 0, false, false),
            symbol("counter", Referent::Image(3 * p + 0x20), 8, false, false),
            symbol("handle", Referent::Image(0), 0x40, true, true),
            symbol("edata", Referent::Image(4 * p + 0x40), 0, false, true),
            symbol("table", Referent::Program(LinkAddr(high + 0x4010)), 64, false, true),
            symbol("parse", Referent::Program(LinkAddr(high + 0x1000)), 0x55, true, false),
            symbol("memcpy", Referent::ProgramIfunc(LinkAddr(high + 0x2000)), 0, true, true),
            symbol("malloc", Referent::Import { weak: false }, 0, true, true),
            symbol("__cxa_finalize", Referent::Import { weak: true }, 0, true, true),
        ],
        residue: vec![
            Residue { offset: 0x12, r_type: 2, symbol: 6, addend: -4 },
            Residue { offset: 3 * p, r_type: 1, symbol: 3, addend: 0 },
            Residue { offset: 3 * p + 8, r_type: 0xfe, symbol: 9, addend: i64::from(i32::MIN) },
            Residue { offset: 3 * p + 8, r_type: 7, symbol: 0, addend: i64::from(i32::MAX) },
        ],
        sites: vec![
            Site {
                old: "handle".into(),
                new: "handle".into(),
                entry: LinkAddr(high + 0x1200),
                pad: 4,
                window: 12,
                expected: (0x80..0x94).collect(),
                body: vec![(LinkAddr(high + 0x1200), 0x80), (LinkAddr(high + 0x900), 0x11)],
                new_offset: 0,
                landing: 0x60,
                own_address: false,
            },
            Site {
                old: "parse".into(),
                new: "parse_fixed".into(),
                entry: LinkAddr(high + 0x1300),
                pad: 0,
                window: 5,
                expected: vec![1, 2, 3, 4, 5],
                body: vec![(LinkAddr(high + 0x1300), 5)],
                new_offset: 0x40,
                landing: 0x70,
                own_address: true,
            },
        ],
        eh_frame: Some((p + 8, 0x28)),
        trap: 0x6f,
        warnings: vec!["handle is inlined in 2 places".into(), String::new()],
    }
}

fn samples() -> Vec<Package> {
    let mut all = Vec::new();
    for (is_64, endian) in [(true, Endian::Little), (false, Endian::Big), (true, Endian::Big), (false, Endian::Little)]
    {
        for machine in [62, 8, 0xbeef] {
            for base in [None, Some(0x40_0000)] {
                all.push(sample(ident(is_64, endian, machine), base, 16));
            }
        }
    }
    all
}

fn bytes(pkg: &Package) -> Vec<u8> {
    write(pkg).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn what_is_written_reads_back() {
    for pkg in samples() {
        let file = bytes(&pkg);
        assert_eq!(file, bytes(&pkg), "not deterministic");
        let reader = PackageReader::parse(&file).unwrap_or_else(|e| panic!("{:?}: {e}", pkg.ident));
        assert_eq!(reader.to_package(), pkg);
        assert_eq!(reader.symbol(3).map(|s| s.name), Some("handle"));
        assert_eq!(reader.symbol(pkg.symbols.len() as u32), None);
        assert_eq!(reader.symbol(u32::MAX), None);
        assert_eq!(bytes(&reader.to_package()), file);
    }
}

#[test]
fn large_pages_and_wide_fields() {
    let mut pkg = sample(ident(true, Endian::Little, 8), Some(0xffff_ffff_0000_0000), 0x1_0000);
    pkg.residue[1].r_type = 0x1234_5678;
    pkg.residue[1].addend = i64::MIN;
    pkg.program.identity = Identity::Sha256([9; 32]);
    pkg.program.fixed = false;
    let file = bytes(&pkg);
    assert_eq!(PackageReader::parse(&file).unwrap().to_package(), pkg);
}

/// A 32-bit image may end at the last address of the class.
#[test]
fn image_up_to_the_end_of_the_address_space() {
    let mut pkg = sample(ident(false, Endian::Big, 8), None, 0x1000);
    let size = pkg.image_size();
    pkg.base = Some(0x1_0000_0000 - size);
    let file = bytes(&pkg);
    assert_eq!(PackageReader::parse(&file).unwrap().to_package(), pkg);
    pkg.base = Some(0x1_0000_0000 - size + 0x1000);
    assert_eq!(write(&pkg).unwrap_err().rule(), "package-span");
}

#[test]
fn smallest_package() {
    let mut pkg = sample(ident(true, Endian::Little, 62), None, 4096);
    pkg.spans.truncate(1);
    pkg.symbols.clear();
    pkg.residue.clear();
    pkg.sites.clear();
    pkg.warnings.clear();
    pkg.eh_frame = None;
    for text in [&mut pkg.name, &mut pkg.version, &mut pkg.description, &mut pkg.program.file] {
        text.clear();
    }
    let file = bytes(&pkg);
    let reader = PackageReader::parse(&file).unwrap();
    assert_eq!(reader.to_package(), pkg);
    assert_eq!(reader.sites().count(), 0);
}

#[test]
fn many_sites_and_spans() {
    let mut pkg = sample(ident(false, Endian::Big, 8), None, 16);
    let proto = pkg.sites[1].clone();
    pkg.sites = (0..3000u64)
        .map(|i| {
            let mut site = proto.clone();
            site.entry = LinkAddr(0x1000 + 16 * i);
            site.body = (0..1 + i % 4).map(|k| (LinkAddr(0x1000 + 16 * i + 0x10_0000 * k), 12 + k)).collect();
            site.old = format!("f{i}");
            site
        })
        .collect();
    let from = 0x1000;
    for i in 0..(format::MAX_SPANS - 4) as u64 {
        pkg.spans.push(Span { perm: Perm::R, offset: from + 16 * i, size: 3, data: vec![i as u8; 3] });
    }
    let file = bytes(&pkg);
    assert_eq!(PackageReader::parse(&file).unwrap().to_package(), pkg);
    pkg.spans.push(Span { perm: Perm::R, offset: 0x10_0000, size: 3, data: vec![] });
    assert_eq!(write(&pkg).unwrap_err().rule(), "package-too-large");
}

/// Symbols may come in any order; they are stored in the order of a symbol table, and the residue follows.
#[test]
fn symbols_are_sorted() {
    let mut pkg = sample(ident(true, Endian::Little, 62), None, 16);
    pkg.symbols.reverse();
    let count = pkg.symbols.len() as u32;
    for r in &mut pkg.residue {
        r.symbol = count - 1 - r.symbol;
    }
    let names =
        |p: &Package| -> Vec<String> { p.residue.iter().map(|r| p.symbols[r.symbol as usize].name.clone()).collect() };
    let file = bytes(&pkg);
    let read = PackageReader::parse(&file).unwrap().to_package();
    assert_eq!(names(&read), names(&pkg));
    assert_ne!(read, pkg);
    normalize(&mut pkg);
    assert_eq!(read, pkg);
    assert_eq!(bytes(&pkg), file);
}

/// `r_info` of 64-bit relocations is as the ELF tools expect of the machine.
#[test]
fn r_info_layout_follows_the_machine() {
    for (machine, endian, layout) in [(62, Endian::Little, 0), (8, Endian::Little, 1), (8, Endian::Big, 0)] {
        let file = bytes(&sample(ident(true, endian, machine), None, 16));
        let at = place(&file, format::INFO) + info::RINFO;
        let raw: [u8; 4] = file[at..at + 4].try_into().unwrap();
        let value = if endian == Endian::Big { u32::from_be_bytes(raw) } else { u32::from_le_bytes(raw) };
        assert_eq!(value, layout, "machine {machine} {endian:?}");
        let at = place(&file, format::RELA) + 8;
        let r_info = &file[at..at + 8];
        match (endian, layout) {
            (Endian::Little, 0) => assert_eq!(r_info, [2, 0, 0, 0, 7, 0, 0, 0]),
            (Endian::Little, _) => assert_eq!(r_info, [7, 0, 0, 0, 0, 0, 0, 2]),
            (Endian::Big, _) => assert_eq!(r_info, [0, 0, 0, 7, 0, 0, 0, 2]),
        }
    }
}

/// File offset of a section.
fn place(file: &[u8], name: &str) -> usize {
    use object::{Object, ObjectSection};
    let elf = object::read::File::parse(file).unwrap();
    elf.section_by_name(name).unwrap().file_range().unwrap().0 as usize
}

// --- Refusals ---

fn refused(change: impl FnOnce(&mut Package)) -> (&'static str, String) {
    let mut pkg = sample(ident(false, Endian::Little, 40), Some(0x40_0000), 16);
    change(&mut pkg);
    let error = write(&pkg).expect_err("written all the same");
    assert_eq!(error.class(), Class::BadInput);
    (error.rule(), error.to_string())
}

#[test]
fn the_writer_refuses() {
    let wx = Perm { read: true, write: true, exec: true };
    let xo = Perm { read: false, write: false, exec: true };
    type Change = fn(&mut Package);
    let cases: &[(&str, &str, Change)] = &[
        ("package-head", "package page size 0x0 is not a power of two up to 2 MiB", |p| p.page_size = 0),
        ("package-head", "package page size 0x18 is not a power of two up to 2 MiB", |p| p.page_size = 24),
        ("package-head", "package base 0x400008 is not a multiple of the page size", |p| p.base = Some(0x40_0008)),
        ("package-head", "package base 0x100000000 is beyond the addresses of the ELF class", |p| {
            p.base = Some(1 << 32)
        }),
        ("package-head", "package build-id length 0x0 is not 1 to 255 bytes", |p| {
            p.program.identity = Identity::BuildId(vec![])
        }),
        ("package-head", "package number of spans 0x0 leaves no image", |p| p.spans.clear()),
        ("package-head", "package trap offset 0x80 is in no executable span", |p| p.trap = 0x80),
        ("package-head", "package trap offset 0x70 is in no executable span", |p| p.trap = 0x70),
        ("package-head", "package eh_frame offset 0xa8 and size fit in no span", |p| p.eh_frame = Some((0xa8, 9))),
        ("package-head", "package eh_frame offset 0x88 and size fit in no span", |p| p.eh_frame = Some((0x88, 0))),
        ("package-head", "package eh_frame offset 0xffffffffffffffff and size fit in no span", |p| {
            p.eh_frame = Some((u64::MAX, 9))
        }),
        ("package-text", "package 0: name holds a NUL byte", |p| p.name = "a\0b".into()),
        ("package-text", "warning 1: text holds a NUL byte", |p| p.warnings[1] = "\0".into()),
        ("package-span", "span 1: offset 0x88 is not a multiple of the page size", |p| p.spans[1].offset = 0x88),
        ("package-span", "span 1: offset 0x60 lies before the end of the span before it", |p| p.spans[1].offset = 0x60),
        ("package-span", "span 3: size 0x0 is zero", |p| p.spans[3].size = 0),
        ("package-span", "span 1: size 0x2f is less than its contents", |p| p.spans[1].size = 0x2f),
        ("package-span", "span 3: size 0xffffffffffffffff leaves the address space", |p| p.spans[3].size = u64::MAX),
        ("package-span", "span 3: size 0xfffff000 leaves the address space", |p| p.spans[3].size = 0xffff_f000),
        ("package-symbol", "symbol 3: image offset 0x7f is in no span", |p| {
            p.symbols[3].referent = Referent::Image(0x7f)
        }),
        ("package-symbol", "symbol 0: size 0x100000000 is beyond the ELF class", |p| p.symbols[0].size = 1 << 32),
        ("package-symbol", "symbol 5: address 0x100000000 is beyond the addresses of the ELF class", |p| {
            p.symbols[5].referent = Referent::Program(LinkAddr(1 << 32))
        }),
        ("package-symbol", "symbol 1: name length 0x10000 is more than 65535 bytes", |p| {
            p.symbols[1].name = "x".repeat(0x1_0000)
        }),
        ("package-text", "symbol 8: name of an import is empty", |p| p.symbols[8].name.clear()),
        ("package-text", "symbol 0: name holds a NUL byte", |p| p.symbols[0].name = "\0".into()),
        ("package-residue", "residue 0: offset 0x70 is in no span", |p| p.residue[0].offset = 0x70),
        ("package-residue", "residue 1: offset 0x10 lies before the residue before it", |p| p.residue[1].offset = 0x10),
        ("package-residue", "residue 2: symbol 0xa is not in the symbol table", |p| p.residue[2].symbol = 10),
        ("package-residue", "residue 2: type 0x100 does not fit a 32-bit ELF relocation", |p| {
            p.residue[2].r_type = 256
        }),
        ("package-residue", "residue 2: addend 0x80000000 does not fit a 32-bit ELF relocation", |p| {
            p.residue[2].addend = 1 << 31
        }),
        ("package-site", "site 0: window 0x0 is empty", |p| p.sites[0].window = 0),
        ("package-site", "site 0: expected length 0xf is less than pad and window", |p| {
            p.sites[0].expected.truncate(15)
        }),
        ("package-site", "site 1: entry 0x8000120f lies before the end of the window of the site before it", |p| {
            p.sites[1].entry = LinkAddr(0x8000_120f)
        }),
        ("package-site", "site 1: entry 0x100000000 is beyond the addresses of the ELF class", |p| {
            p.sites[1].entry = LinkAddr(1 << 32)
        }),
        ("package-site", "site 1: expected length 0x5 leaves the address space", |p| {
            p.sites[1].entry = LinkAddr(0xffff_fffc)
        }),
        ("package-site", "site 0: body 0x0 has no part", |p| p.sites[0].body.clear()),
        ("package-site", "site 0: body 0x80000900 does not begin at the entry", |p| p.sites[0].body.reverse()),
        ("package-site", "site 0: body part 0x80000900 is empty", |p| p.sites[0].body[1].1 = 0),
        ("package-site", "site 0: body part 0x80000900 leaves the address space", |p| p.sites[0].body[1].1 = u64::MAX),
        ("package-site", "site 0: new function's offset 0x80 is in no executable span", |p| {
            p.sites[0].new_offset = 0x80
        }),
        ("package-site", "site 1: landing's offset 0x71 is in no executable span", |p| p.sites[1].landing = 0x71),
        ("package-text", "site 1: new name is empty", |p| p.sites[1].new.clear()),
    ];
    for (rule, message, change) in cases {
        assert_eq!(refused(change), (*rule, (*message).to_string()));
    }
    assert_eq!(
        refused(|p| p.spans[0].perm = wx),
        ("package-span", "span 0: rights 0x7 are both write and execute".to_string())
    );
    assert_eq!(refused(|p| p.spans[0].perm = xo), ("package-span", "span 0: rights 0x1 lack read".to_string()));
}

#[test]
fn the_reader_says_what_a_file_is_instead() {
    let say = |file: &[u8]| PackageReader::parse(file).unwrap_err().to_string();
    assert_eq!(say(b""), "not an ELF file");
    assert_eq!(say(b"#!/bin/sh\n"), "not an ELF file");
    assert_eq!(say(b"\x7fELF"), "broken ELF file: unknown class (0x0)");
    assert_eq!(say(b"\x7fELF\x02\x01\x01"), "broken ELF file: unsupported or cut off file header (0x7)");

    let good = bytes(&sample(ident(true, Endian::Little, 62), None, 16));
    let at = place(&good, format::NOTE);
    let mut file = good.clone();
    file[at + note::TYPE] = 9;
    assert_eq!(say(&file), "package format version 9, this tfix reads 1");
    let mut file = good.clone();
    file[at + note::NAME] ^= 1;
    assert_eq!(say(&file), "section .note.tfix: is not the note of a package (0x34)");
    let mut file = good.clone();
    file[place(&good, ".text")] ^= 1;
    assert_eq!(say(&file), "digest mismatch: the file was changed or truncated after it was written");
    let mut file = good.clone();
    file.push(0);
    assert_eq!(say(&file), "digest mismatch: the file was changed or truncated after it was written");
    let name = good.windows(11).position(|w| w == b".note.tfix\0").unwrap();
    let mut file = good.clone();
    file[name + 1] = b'N';
    assert_eq!(say(&file), "not a tfix package (no .note.tfix)");
    let error = PackageReader::parse(&file).unwrap_err();
    assert_eq!((error.rule(), error.class(), error.hint().is_some()), ("not-a-package", Class::BadInput, true));
}

/// Changes below the digest reach the inner rules.
#[test]
fn the_reader_refuses_sealed_nonsense() {
    let good = bytes(&sample(ident(true, Endian::Little, 62), None, 16));
    let say = |section: &str, offset: usize, value: u8| {
        let mut file = good.clone();
        let at = place(&good, section) + offset;
        assert_ne!(file[at], value);
        file[at] = value;
        seal(&mut file).unwrap();
        PackageReader::parse(&file).unwrap_err().to_string()
    };
    assert_eq!(say(".tfix.info", info::FLAGS, 0x80), "package flags 0x80 are unknown");
    assert_eq!(
        say(".tfix.info", info::RINFO, 2),
        "package r_info layout 0x2 is unknown or not of this class and byte order"
    );
    assert_eq!(say(".tfix.info", info::BASE, 1), "package base 0x1 is given without its flag");
    assert_eq!(say(".tfix.info", info::PAGE_SIZE, 0), "span 0: alignment 0x10 is not the package's page size");
    assert_eq!(say(".tfix.info", info::RESERVED, 1), "package reserved field 0x1 is not zero");
    assert_eq!(say(".tfix.info", info::IDENTITY_KIND, 2), "package identity length 0x14 is not 32 bytes");
    assert_eq!(say(".tfix.info", info::IDENTITY_KIND, 3), "package identity kind 0x3 is unknown");
    assert_eq!(
        say(".tfix.info", info::VERSION, 3),
        "section .tfix.blob: is not packed in the order of the records: a reference has this offset (0x3)"
    );
    assert_eq!(say(".tfix.blob", 0, 0xff), "package 0: name is not UTF-8");
    assert_eq!(
        say(".tfix.sites", format::site::SIZE + format::site::BODY_FIRST, 0),
        "site 1: first body part 0x0 does not follow the parts of the site before it"
    );
    assert_eq!(say(".tfix.sites", format::site::BODY_COUNT, 9), "site 0: number of body parts 0x9 leaves .tfix.ranges");
    assert_eq!(say(".tfix.sites", format::site::FLAGS, 9), "site 0: flags 0x9 has unknown bits");
    assert_eq!(say(".tfix.sites", format::site::RESERVED32, 9), "site 0: reserved field 0x9 is not zero");
    assert_eq!(say(".tfix.bind", format::bind::KIND, 9), "symbol 5: binding kind 0x9 is unknown");
    assert_eq!(say(".tfix.bind", format::bind::SYMBOL, 9), "symbol 5: binding record's symbol 0x9 is not this symbol");
    assert_eq!(say(".tfix.bind", format::bind::FLAGS, 8), "symbol 5: binding flags 0x8 are unknown");
    assert_eq!(
        say(".tfix.bind", format::bind::FLAGS, 3),
        "symbol 5: symbol table entry 0x0 contradicts the binding record"
    );
    assert_eq!(say(".rela.tfix", 12, 0), "residue 0: symbol 0x0 is the null symbol");
    assert_eq!(say(".rela.tfix", 12, 99), "residue 0: symbol 0x62 is not in the symbol table");
    assert_eq!(say(".symtab", 24 + 4, 0x11), "symbol 1: binding 0x1 is local behind global symbols");
    assert_eq!(say(".symtab", 24 + 4, 0x20), "symbol 0: binding and type 0x20 are not among those of a package");
    assert_eq!(say(".symtab", 24 + 7, 0x40), "symbol 0: section 0x4001 does not exist");
    assert_eq!(
        say(".symtab", 4 * 24 + 4, 0x02),
        "section .symtab: states another number of local symbols than it has (0x4)"
    );
    assert_eq!(say(".strtab", 1, 0xff), "symbol 7: name is not UTF-8");
}

/// Every changed bit and every cut is found.
#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    for (is_64, endian) in [(true, Endian::Little), (false, Endian::Big)] {
        let good = bytes(&sample(ident(is_64, endian, 62), None, 16));
        let mut file = good.clone();
        for at in 0..file.len() {
            for bit in 0..8 {
                file[at] ^= 1 << bit;
                assert!(PackageReader::parse(&file).is_err(), "bit {bit} of byte {at:#x}");
                file[at] ^= 1 << bit;
            }
        }
        for len in 0..good.len() {
            assert!(PackageReader::parse(&good[..len]).is_err(), "cut to {len:#x}");
        }
        assert!(PackageReader::parse(&good).is_ok());
    }
}

struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Mutates below the digest: nothing panics, and what is accepted obeys all rules of the writer.
#[test]
fn sealed_mutations_never_panic() {
    let mut rng = XorShift(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut rejected) = (0, 0);
    let values = [0, 1, 2, 3, 0x7f, 0x80, 0xfe, 0xff];
    let goods: Vec<Vec<u8>> = samples().iter().map(bytes).collect();
    // Half of the changes go where the structure is.
    let dense = [
        format::INFO,
        format::SITES,
        format::RANGES,
        format::BIND,
        format::WARNINGS,
        format::RELA,
        format::SYMTAB,
        format::STRTAB,
        format::NOTE,
    ];
    for round in 0..24_000 {
        let mut file = goods[round % goods.len()].clone();
        for _ in 0..=rng.below(3) {
            let at = match rng.below(4) {
                0 => rng.below(file.len()),
                1 => rng.below(0x160),
                2 => file.len() - 1 - rng.below(0x300),
                _ => place(&goods[round % goods.len()], dense[rng.below(dense.len())]) + rng.below(0x60),
            };
            let at = at.min(file.len() - 1);
            match rng.below(4) {
                0 => file[at] ^= 1 << rng.below(8),
                1 => file[at] = values[rng.below(values.len())],
                2 => file[at] = rng.next() as u8,
                _ => {
                    let fill = values[rng.below(values.len())];
                    let end = file.len().min(at + [2, 4, 8][rng.below(3)]);
                    file[at..end].fill(fill);
                }
            }
        }
        if seal(&mut file).is_err() {
            assert!(PackageReader::parse(&file).is_err());
            rejected += 1;
            continue;
        }
        match PackageReader::parse(&file) {
            Err(error) => {
                assert_ne!(error, PackageError::Digest);
                let _ = error.to_string();
                rejected += 1;
            }
            Ok(reader) => {
                let pkg = reader.to_package();
                assert_eq!(pkg.symbols.len(), reader.symbols().count());
                let again = write(&pkg).unwrap_or_else(|e| panic!("accepted, but can't be written: {e}"));
                assert_eq!(PackageReader::parse(&again).unwrap().to_package(), pkg);
                accepted += 1;
            }
        }
    }
    assert!(accepted > 500 && rejected > 5000, "{accepted} accepted, {rejected} rejected: the test lost its bite");
}
