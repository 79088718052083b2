//! The usual ELF tools open a package without a complaint.

use std::path::Path;
use std::process::Command;
use tigerfix_core::addr::LinkAddr;
use tigerfix_core::arch::ElfIdent;
use tigerfix_core::field::Endian;
use tigerfix_core::model::{Identity, Package, PackageSymbol, ProgramRef, Referent, Residue, Site, Span};
use tigerfix_core::package;
use tigerfix_core::target::Perm;

const EM_X86_64: u16 = 62;
const EM_MIPS: u16 = 8;
const EM_AARCH64: u16 = 183;

fn symbol(name: &str, referent: Referent, size: u64, function: bool, global: bool) -> PackageSymbol {
    PackageSymbol { name: name.into(), referent, size, function, global }
}

fn sample(ident: ElfIdent, base: Option<u64>) -> Package {
    Package {
        ident,
        name: "sample".into(),
        version: "1".into(),
        description: "A sample".into(),
        program: ProgramRef {
            file: "server".into(),
            identity: Identity::BuildId(vec![0xab; 20]),
            fixed: base.is_some(),
        },
        base,
        page_size: 0x1000,
        guarded: false,
        spans: vec![
            // nop; ...; ret; int3
            Span { perm: Perm::RX, offset: 0, size: 0x22, data: [vec![0x90; 0x20], vec![0xc3, 0xcc]].concat() },
            Span { perm: Perm::R, offset: 0x1000, size: 0x30, data: vec![0x5a; 0x30] },
            Span { perm: Perm::RW, offset: 0x2000, size: 0x2100, data: vec![7; 0x18] },
            Span { perm: Perm::RW, offset: 0x5000, size: 0x40, data: vec![] },
        ],
        symbols: vec![
            symbol("helper", Referent::Image(0x10), 0x10, true, false),
            symbol("handle", Referent::Image(0), 0x10, true, true),
            symbol("counter", Referent::Image(0x2020), 8, false, true),
            symbol("table", Referent::Program(LinkAddr(0x4010)), 64, false, true),
            symbol("malloc", Referent::Import { weak: false }, 0, true, true),
            symbol("gone", Referent::Import { weak: true }, 0, true, true),
        ],
        residue: vec![
            Residue { offset: 0x2000, r_type: 1, symbol: 3, addend: 8 },
            Residue { offset: 0x2008, r_type: 2, symbol: 5, addend: -4 },
        ],
        sites: vec![Site {
            old: "handle".into(),
            new: "handle".into(),
            entry: LinkAddr(0x1200),
            pad: 4,
            window: 12,
            expected: vec![0x90; 16],
            body: vec![(LinkAddr(0x1200), 0x80)],
            new_offset: 0,
            landing: 0x22,
            own_address: false,
        }],
        eh_frame: None,
        trap: 0x21,
        warnings: vec!["handle is inlined in 2 places".into()],
    }
}

/// Runs a tool; its output, or `None` where it is not installed. Fails on an exit code or a word on stderr.
fn run(tool: &str, args: &[&str], file: &Path) -> Option<String> {
    let out = match Command::new(tool).args(args).arg(file).env("LC_ALL", "C").output() {
        Ok(out) => out,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{tool} is not installed: not tried");
            return None;
        }
        Err(e) => panic!("{tool}: {e}"),
    };
    let stderr = String::from_utf8_lossy(&out.stderr);
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{tool} {args:?}: {}\n{stdout}\n{stderr}", out.status);
    assert_eq!(stderr, "", "{tool} {args:?}");
    for word in ["arning:", "rror:", "corrupt", "<unknown>"] {
        assert!(!stdout.contains(word), "{tool} {args:?} complains:\n{stdout}");
    }
    Some(stdout)
}

fn with_file(name: &str, pkg: &Package, test: impl FnOnce(&Path)) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(name);
    std::fs::write(&path, package::write(pkg).unwrap()).unwrap();
    test(&path);
    std::fs::remove_file(&path).unwrap();
}

fn ident(is_64: bool, endian: Endian, machine: u16) -> ElfIdent {
    ElfIdent { is_64, endian, machine, flags: 0 }
}

#[test]
fn binutils_and_gdb_open_a_package() {
    for base in [None, Some(0x40_0000)] {
        let mut bare = sample(ident(true, Endian::Little, EM_X86_64), base);
        with_file(&format!("full-{}.tfp", base.is_some()), &bare, |file| {
            if let Some(out) = run("readelf", &["-aW"], file) {
                for wanted in
                    [".text", ".rodata", ".data", ".bss", ".rela.tfix", "tfix", "handle", "counter", "table + 8", "DYN"]
                {
                    assert!(out.contains(wanted), "{wanted} is not in\n{out}");
                }
            }
            if let Some(out) = run("objdump", &["-x", "-d"], file) {
                assert!(out.contains("<handle>:") && out.contains("ret"), "{out}");
            }
            run("objdump", &["-h"], file);
            run("objdump", &["-s", "-r", "-t"], file);
            if let Some(out) = run("nm", &[], file) {
                assert!(out.contains("U malloc") && out.contains("T handle") && out.contains("w gone"), "{out}");
            }
            run("size", &[], file);
            if let Some(out) =
                run("gdb", &["-nx", "-batch", "-ex", "info functions", "-ex", "disassemble handle"], file)
            {
                assert!(out.contains("handle"), "{out}");
            }
        });
        bare.symbols.clear();
        bare.residue.clear();
        bare.sites.clear();
        bare.warnings.clear();
        with_file(&format!("bare-{}.tfp", base.is_some()), &bare, |file| {
            run("readelf", &["-aW"], file);
            run("objdump", &["-x", "-d"], file);
            run("gdb", &["-nx", "-batch", "-ex", "info functions"], file);
        });
    }
}

#[test]
fn readelf_opens_every_class_and_byte_order() {
    let idents = [
        ident(true, Endian::Little, EM_AARCH64),
        ident(true, Endian::Big, EM_AARCH64),
        ident(true, Endian::Little, EM_MIPS),
        ident(true, Endian::Big, EM_MIPS),
        ident(false, Endian::Little, EM_MIPS),
        ident(false, Endian::Big, EM_MIPS),
    ];
    for (i, ident) in idents.into_iter().enumerate() {
        with_file(&format!("ident-{i}.tfp"), &sample(ident, None), |file| {
            if let Some(out) = run("readelf", &["-aW"], file) {
                assert!(out.contains("table + 8") && out.contains("gone - 4"), "{ident:?}\n{out}");
            }
        });
    }
}
