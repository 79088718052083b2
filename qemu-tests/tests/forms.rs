//! Every jump form, landing and veneer of every back end, from near to the ends of its reach: bytes and text are kept in
//! snapshots, and assemblers that share no code with the back ends have to make the same bytes of the text: keystone, and
//! for AArch64, whose newer instructions keystone knows only by number, GNU as as well.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::Command;
use std::sync::Mutex;

use capstone::prelude::*;
use keystone_engine::{Keystone, Mode, OptionType, OptionValue};
use object::{Object as _, ObjectSection as _};
use tigerfix::arch::{self, AnyArch, Code, EncodeError, Expr, Reach, Via, page_start};
use tigerfix_core::relocate::put;

/// What the assemblers need to know of a back end, and where its code may lie.
struct Bench {
    arch: AnyArch,
    disassembler: Capstone,
    assemblers: Vec<Assembler>,
    /// Sites and what a form without limits jumps to.
    sites: [u64; 4],
    anywhere: [u64; 3],
    /// The indirect jump behind which its destination lies as data.
    loads_next: Option<&'static str>,
}

/// An assembler of somebody else's.
enum Assembler {
    /// keystone, and how it wants to be told of an instruction: the disassembler's text, and the address.
    Keystone(Keystone, fn(&str, u64) -> (String, u64)),
    /// GNU as and ld, with what they have made already.
    Gnu(Mutex<HashMap<(u64, String), Vec<u8>>>),
}

impl Assembler {
    fn bytes(&self, text: &str, at: u64) -> Vec<u8> {
        match self {
            Assembler::Keystone(keystone, spelt) => {
                let (spelt, at) = spelt(text, at);
                let out = keystone.asm(spelt, at);
                out.unwrap_or_else(|e| panic!("{text}: {e}")).bytes
            }
            Assembler::Gnu(known) => {
                let key = (at, text.to_owned());
                let found = known.lock().expect("no panic while locked").get(&key).cloned();
                found.unwrap_or_else(|| {
                    let bytes = gnu_aarch64(text, at);
                    known.lock().expect("no panic while locked").insert(key, bytes.clone());
                    bytes
                })
            }
        }
    }
}

/// Assembles one instruction and links it to `at`. Addresses in it become symbols, which the linker is told.
fn gnu_aarch64(text: &str, at: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str| dir.path().join(name);
    let relative = ["b ", "adrp ", "ldr "].iter().any(|m| text.starts_with(m)) && !text.contains('[');
    let (line, symbol) = match text.rsplit_once("#0x").filter(|_| relative) {
        Some((front, address)) => (format!("{front}target"), format!("--defsym=target=0x{address}")),
        None => (text.to_owned(), String::from("--defsym=target=0")),
    };
    std::fs::write(file("one.s"), format!("{line}\n")).expect("a file");
    let run = |command: &mut Command| assert!(command.status().expect("it starts").success(), "{text}: {command:?}");
    run(Command::new("aarch64-linux-gnu-as").args(["-march=armv8.5-a", "-o"]).args([file("one.o"), file("one.s")]));
    let mut ld = Command::new("aarch64-linux-gnu-ld");
    run(ld.args(["-e", "0", &format!("-Ttext={at:#x}"), &symbol, "-o"]).args([file("one"), file("one.o")]));
    let linked = std::fs::read(file("one")).expect("a file");
    let linked = object::File::parse(&*linked).expect("an ELF file");
    linked.section_by_name(".text").expect("code").data().expect("its bytes").to_vec()
}

/// Fails for a back end that has no bench, so that none is forgotten.
fn bench(name: &str) -> Bench {
    let arch = arch::by_name(name).expect("a name of a back end");
    match name {
        "x86-64" => {
            let assembler = Keystone::new(keystone_engine::Arch::X86, Mode::MODE_64).expect("keystone has x86");
            assembler.option(OptionType::SYNTAX, OptionValue::SYNTAX_INTEL).expect("Intel syntax");
            let disassembler = Capstone::new()
                .x86()
                .mode(capstone::arch::x86::ArchMode::Mode64)
                .syntax(capstone::arch::x86::ArchSyntax::Intel)
                .build();
            Bench {
                arch,
                disassembler: disassembler.expect("capstone has x86"),
                assemblers: vec![Assembler::Keystone(assembler, |text, at| (text.to_owned(), at))],
                sites: [0x40_1136, 0x8000_1000, 0x5555_5555_4ffd, 0x7fff_ffff_d000],
                anywhere: [0x1_0000, 0x7f12_3456_789a, 0x7fff_ffff_dfff],
                loads_next: Some("jmp qword ptr [rip]"),
            }
        }
        "mips" | "mipsel" | "mips64" | "mips64el" => mips(arch, name.starts_with("mips64"), !name.ends_with("el")),
        "aarch64" => {
            let assembler = Keystone::new(keystone_engine::Arch::ARM64, Mode::LITTLE_ENDIAN);
            let assembler = assembler.expect("keystone has AArch64");
            // keystone's LLVM is older than branch targets: to it their pads are hints with a number, like `nop`. And it takes
            // the distance that `adrp` may reach from the instruction instead of its page.
            let spelt = |text: &str, at: u64| {
                let at = if text.starts_with("adrp ") { at & !0xfff } else { at };
                (if text == "bti c" { "hint #0x22" } else { text }.to_owned(), at)
            };
            let disassembler = Capstone::new().arm64().mode(capstone::arch::arm64::ArchMode::Arm).build();
            Bench {
                arch,
                disassembler: disassembler.expect("capstone has AArch64"),
                assemblers: vec![Assembler::Keystone(assembler, spelt), Assembler::Gnu(Mutex::default())],
                sites: [0x40_1138, 0x8000_0ff8, 0x5555_5555_4ff0, 0x7fff_ffff_d000],
                anywhere: [0x1_0000, 0x7f12_3456_789c, 0x7fff_ffff_dffc],
                loads_next: Some("br x16"),
            }
        }
        other => panic!("no assembler for {other}"),
    }
}

/// Sites in the middle of a region, at both of its ends, and in the upper half of the address space.
fn mips(arch: AnyArch, is_64: bool, big: bool) -> Bench {
    use capstone::arch::mips::ArchMode;
    let order = if big { Mode::BIG_ENDIAN } else { Mode::LITTLE_ENDIAN };
    let (width, mode) = if is_64 { (Mode::MIPS64, ArchMode::Mips64) } else { (Mode::MIPS32, ArchMode::Mips32) };
    let endian = if big { capstone::Endian::Big } else { capstone::Endian::Little };
    Bench {
        arch,
        disassembler: Capstone::new().mips().mode(mode).endian(endian).build().expect("capstone has MIPS"),
        assemblers: vec![Assembler::Keystone(
            Keystone::new(keystone_engine::Arch::MIPS, width | order).expect("keystone has MIPS"),
            // Left to itself it puts a nop behind every jump.
            |text, at| (format!(".set noreorder; {text}"), at),
        )],
        sites: if is_64 {
            [0x1_2000_1000, 0x1_2fff_fffc, 0xff_f7c0_0000, 0xff_ffff_e000]
        } else {
            [0x40_1000, 0x0fff_fffc, 0x7700_0000, 0x8010_0000]
        },
        anywhere: if is_64 {
            [0x1_0000, 0x1_2345_8abc, 0x7fff_ffff_fffc]
        } else {
            [0x1_0000, 0x7712_9abc, 0xffff_fffc]
        },
        loads_next: None,
    }
}

impl Bench {
    /// One line for each instruction; `data` for a word that is loaded.
    fn lines(&self, code: &[u8], at: u64) -> Vec<(u64, Vec<u8>, String)> {
        let mut out = Vec::new();
        let mut done = 0;
        while done < code.len() {
            let here = at.wrapping_add(done as u64);
            let behind_load = out.last().is_some_and(|l: &(u64, Vec<u8>, String)| self.loads_next == Some(&l.2));
            if behind_load && code.len() - done == 8 {
                let quad = u64::from_le_bytes(code[done..].try_into().expect("8 bytes"));
                out.push((here, code[done..].to_vec(), format!(".quad {quad:#x}")));
                break;
            }
            let one = self.disassembler.disasm_count(&code[done..], here, 1).expect("capstone runs");
            let insn = one.iter().next().unwrap_or_else(|| panic!("{:02x?} is no instruction", &code[done..]));
            let text = format!("{} {}", insn.mnemonic().unwrap_or(""), insn.op_str().unwrap_or(""));
            done += insn.bytes().len();
            out.push((here, insn.bytes().to_vec(), text.trim_end().to_owned()));
        }
        out
    }

    /// The veneer at `at` for a function at `there`, or for one whose address is in a slot at `there`.
    fn veneer(&self, at: u64, there: u64) -> (Code, &'static str) {
        let template = self.arch.veneer();
        let (mut code, mut means) = (template.code.to_vec(), "");
        for &(offset, r_type, addend) in template.relocs {
            let howto = self.arch.howto(r_type).expect("a row");
            let value = match howto.expr {
                Expr::Abs => there.wrapping_add_signed(addend),
                Expr::GotPagePc { bits } => {
                    let place = page_start(at + u64::from(offset), bits);
                    page_start(there.wrapping_add_signed(addend), bits).wrapping_sub(place)
                }
                Expr::GotPageOffset { bits } => there & ((1 << bits) - 1),
                _ => there.wrapping_add_signed(addend).wrapping_sub(at + u64::from(offset)),
            };
            means = if howto.expr == Expr::Abs { " ->" } else { ", slot" };
            put(self.arch, howto, &mut code, offset.into(), value).expect("the veneer reaches it");
        }
        (Code::EMPTY.then(&code), means)
    }

    /// The bytes of every assembler must be the back end's.
    fn assemble(&self, lines: &[(u64, Vec<u8>, String)]) -> usize {
        self.assemblers.iter().map(|a| Self::assemble_by(a, lines)).min().expect("an assembler")
    }

    /// The assembler's bytes for every instruction must be the back end's.
    fn assemble_by(assembler: &Assembler, lines: &[(u64, Vec<u8>, String)]) -> usize {
        let mut checked = 0;
        for (at, bytes, text) in lines {
            let mine = match text.strip_prefix(".quad 0x") {
                Some(hex) => u64::from_str_radix(hex, 16).expect("hex").to_le_bytes().to_vec(),
                None => assembler.bytes(text, *at),
            };
            assert_ne!(mine.len(), 0, "{text}");
            assert_eq!(mine, *bytes, "`{text}` at {at:#x}");
            checked += 1;
        }
        checked
    }

    fn show(&self, out: &mut String, title: &str, at: u64, code: Result<Code, EncodeError>) -> usize {
        let code = match code {
            Ok(c) => c,
            Err(e) => {
                let _ = writeln!(out, "{title}: {e:x?}");
                return 0;
            }
        };
        let _ = writeln!(out, "{title}");
        let lines = self.lines(code.bytes(), at);
        for (at, bytes, text) in &lines {
            let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
            let _ = writeln!(out, "  {at:12x}: {:30} {text}", hex.join(" "));
        }
        self.assemble(&lines)
    }
}

/// Destinations worth a try: a little away, the ends of the reach, one past them; anywhere for forms that reach all.
/// The assembler takes a shorter instruction for what is very near.
fn destinations(from: u64, reach: Reach, align: u8, b: &Bench) -> Vec<u64> {
    let Some((low, high)) = reach.targets(from) else { return b.anywhere.to_vec() };
    let (at, step) = (i128::from(from), i128::from(align));
    let last = high - high % step;
    let steps = [at + 0x1000, at - 0x1000, low, last, low - step, last + step];
    let end = if b.arch.address_bits() == 32 { 1 << 32 } else { 1 << 47 };
    steps.iter().filter_map(|to| u64::try_from(*to).ok()).filter(|to| *to < end).collect()
}

#[test]
fn every_form_at_every_distance() {
    for name in arch::names() {
        let b = bench(name);
        for form in b.arch.forms() {
            let mut out = String::new();
            let mut checked = 0;
            for from in b.sites {
                let to_landing = destinations(from, form.reach, form.align, &b);
                for to in to_landing {
                    let code = b.arch.encode_jump(form, from, to);
                    if let Ok(c) = &code {
                        assert_eq!(c.bytes().len(), usize::from(form.len), "{}: length", form.name);
                    }
                    assert_eq!(code.is_ok(), form.reach.holds(from, to), "{}: {from:#x} to {to:#x}", form.name);
                    checked += b.show(&mut out, &format!("jump {from:#x} -> {to:#x}"), from, code);
                }
                for new in destinations(from, form.landing_reach, form.align, &b) {
                    let code = b.arch.encode_landing(form, from, new);
                    if let Ok(c) = &code {
                        assert_eq!(c.bytes().len(), usize::from(form.landing_len), "{}: landing's length", form.name);
                    }
                    if form.via != Via::Direct {
                        checked += b.show(&mut out, &format!("landing {from:#x} -> {new:#x}"), from, code);
                    }
                }
            }
            assert!(checked > 4, "{}: {checked} instructions", form.name);
            insta::assert_snapshot!(format!("{name}-{}", form.name), out);
        }
    }
}

#[test]
fn veneers_and_breakpoints() {
    for name in arch::names() {
        let b = bench(name);
        let mut out = String::new();
        let mut checked = 0;
        for at in b.sites {
            let width = 64 - u32::from(b.arch.address_bits());
            for there in [at + 0x2000, at - 0x2000, at + 0x7fff_0000].map(|t| t << width >> width) {
                let (code, means) = b.veneer(at, there);
                checked += b.show(&mut out, &format!("veneer {at:#x}{means} {there:#x}"), at, Ok(code));
            }
        }
        let trap = Code::EMPTY.then(b.arch.breakpoint());
        checked += b.show(&mut out, "breakpoint", b.sites[0], Ok(trap));
        assert!(checked > 4);
        insta::assert_snapshot!(format!("{name}-veneers"), out);
    }
}

/// Every oracle disagrees where it should: one bit off is seen.
#[test]
fn the_assembler_sees_a_wrong_bit() {
    let benches: Vec<Bench> = arch::names().into_iter().map(bench).collect();
    for (b, form) in benches.iter().flat_map(|b| b.arch.forms().iter().map(move |f| (b, f))) {
        let good = b.arch.encode_jump(form, 0x40_1000, 0x40_5000).expect("near");
        for bit in 0..8 * good.bytes().len() {
            let mut lines = b.lines(good.bytes(), 0x40_1000);
            let mut at = bit / 8;
            let line = lines.iter_mut().find(|l| {
                if at < l.1.len() {
                    true
                } else {
                    at -= l.1.len();
                    false
                }
            });
            line.expect("a byte of it").1[at] ^= 1 << (bit % 8);
            for (i, assembler) in b.assemblers.iter().enumerate() {
                let check = || Bench::assemble_by(assembler, &lines);
                let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err();
                assert!(seen, "{}: bit {bit}, assembler {i}", form.name);
            }
        }
    }
}
