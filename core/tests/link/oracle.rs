//! GNU ld as the judge of every settled byte: the same objects at the same addresses.

use crate::support::*;
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, elf};
use std::fmt::Write as _;
use tigerfix_core::link::LinkOptions;

const PROGRAM: &str = "
    int counter = 5; long numbers[4] = { 1, 2, 3, 4 }; const char title[] = \"title\";
    int q(int x) { return x + counter; } int r(int x) { return x * numbers[x & 3]; }
    int p(int x) { return q(x) + r(x); } __thread int dummy;";

const FIRST: &str = "
    extern int counter; extern long numbers[4]; extern const char title[]; int q(int); int r(int); int second(int);
    static int zeros[50]; static int ones[2] = { 1, 1 }; int shared = 9; const char *const words[] = { \"a\", title, \"ccc\" };
    static int __attribute__((noinline)) inner(int x) { return x * 3 + zeros[x]++; }
    int (*const table[])(int) = { inner, q, r, second };
    long *pointers[] = { numbers, numbers + 2, (long *)&shared };
    int p(int x) {
        switch (x) { case 0: return q(1); case 1: return r(2); case 2: return inner(5); case 3: return 4 * second(1);
            case 4: return words[2][x]; case 5: return ones[1] + counter; case 6: return *pointers[x & 1]; }
        return table[x & 3](x) + title[2] + numbers[3];
    }";

const SECOND: &str = "
    extern int shared, counter; int q(int); static int calls;
    int second(int x) { calls += shared; return q(x) + calls + counter; }
    double third(double x) { return x * 1.5 + 0.25; }";

/// Relocation types whose fields lead to a GOT slot; the order of slots is each linker's own business.
const GOT: [u32; 3] = [9, 41, 42];

struct Output {
    data: Vec<u8>,
    segments: Vec<(u64, u64, u64)>,
}

impl Output {
    fn parse(data: Vec<u8>) -> Output {
        let header = elf::FileHeader64::<Endianness>::parse(&*data).unwrap();
        let e = header.endian().unwrap();
        let all = header.sections(e, &*data).unwrap();
        let loaded = all.iter().filter(|s| s.sh_flags(e).contains(elf::SHF_ALLOC) && s.sh_type(e) != elf::SHT_NOBITS);
        let segments = loaded.map(|s| (s.sh_addr(e), s.sh_offset(e), s.sh_size(e))).collect();
        Output { data, segments }
    }
    fn at(&self, address: u64, len: usize) -> Option<&[u8]> {
        let (a, o, _) = self.segments.iter().find(|(a, _, s)| *a <= address && address + len as u64 <= a + s)?;
        let from = (o + address - a) as usize;
        self.data.get(from..from + len)
    }
}

fn compare(flags: &str, base: u64) {
    let program = bare(PROGRAM);
    let objects = [object_named("p0.c", FIRST, flags), object_named("p1.c", SECOND, flags)];
    let options = LinkOptions { base: Some(base), ..LinkOptions::default() };
    let linked = patch_with(&program, &[&objects[0], &objects[1]], &options).unwrap();
    assert!(linked.package.residue.is_empty());

    let dir = Dir::new();
    dir.write("program", &program);
    let mut script = String::from("SECTIONS {\n");
    let mut placements = linked.report.placements.clone();
    // ld edits unwind tables (it merges CIEs), so those are another test's.
    placements.retain(|p| p.size > 0 && p.section != ".eh_frame");
    placements.sort_by_key(|p| p.offset);
    for p in &placements {
        let name = if p.section == "COMMON" { "COMMON" } else { p.section.as_str() };
        writeln!(
            script,
            "  .out{:x} {:#x} : SUBALIGN(1) {{ p{}.o({name}) }}",
            p.offset,
            base + p.offset,
            p.object_index
        )
        .unwrap();
    }
    writeln!(script, "  .got {:#x} : {{ *(.got) *(.got.plt) }}", base + 0x100_0000).unwrap();
    script.push_str("  /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame) *(.tfix*) }\n}\n");
    dir.write("script", &script);
    for (i, o) in objects.iter().enumerate() {
        dir.write(&format!("p{i}.o"), o);
    }
    run(
        "ld",
        &[
            "-static",
            "--no-relax",
            "-z",
            "muldefs",
            "-e",
            "0",
            "-T",
            "script",
            "-o",
            "out",
            "p0.o",
            "p1.o",
            "--just-symbols=program",
        ],
        &dir.path(""),
    );
    let out = Output::parse(std::fs::read(dir.path("out")).unwrap());

    let (mut compared, mut slots) = (0, 0);
    for p in &placements {
        let object = &objects[p.object_index as usize];
        let header = elf::FileHeader64::<Endianness>::parse(&**object).unwrap();
        let e = header.endian().unwrap();
        let sections = header.sections(e, &**object).unwrap();
        if p.section == "COMMON"
            || sections.section(object::SectionIndex(p.index as usize)).unwrap().sh_type(e) == elf::SHT_NOBITS
        {
            continue;
        }
        let mut ours = bytes(&linked.package, p.offset, p.size as usize);
        let mut theirs = out.at(base + p.offset, p.size as usize).unwrap_or_else(|| panic!("{p:?}")).to_vec();
        for s in sections.iter().filter(|s| s.sh_type(e) == elf::SHT_RELA && s.sh_info(e) == p.index) {
            for r in s.rela(e, &**object).unwrap().unwrap().0 {
                if !GOT.contains(&r.r_type(e, false).0) {
                    continue;
                }
                let at = r.r_offset.get(e) as usize;
                let place = p.offset + at as u64;
                let slot = |b: &[u8]| {
                    (place as i64 + i64::from(i32::from_le_bytes(b[at..at + 4].try_into().unwrap()))
                        - r.r_addend.get(e)) as u64
                };
                let held = u64::from_le_bytes(out.at(base + slot(&theirs), 8).unwrap().try_into().unwrap());
                assert_eq!(word(&linked.package, slot(&ours), 8), held, "{} {at:#x}", p.section);
                ours[at..at + 4].fill(0);
                theirs[at..at + 4].fill(0);
                slots += 1;
            }
        }
        assert_eq!(ours, theirs, "{flags}: p{}.o({}) at {:#x}", p.object_index, p.section, p.offset);
        compared += ours.len();
    }
    assert!(compared > 300, "{compared}");
    assert!(slots > 3 || !flags.contains("PIC"), "{slots}");
}

#[test]
fn position_independent() {
    compare("-O2 -fPIC -fno-builtin", 0x5000_0000);
    compare("-O0 -fPIC -fno-builtin -fno-plt", 0x5000_0000);
    compare("-O2 -fPIC -fcommon -ffunction-sections -fno-builtin", 0x1234_5000);
}

#[test]
fn for_executables() {
    compare("-O1 -fPIE -fno-builtin", 0x5000_0000);
    compare("-O2 -fno-pic -fno-builtin", 0x5000_0000);
    compare("-O0 -fno-pic -fno-builtin", 0x7000_0000);
}
