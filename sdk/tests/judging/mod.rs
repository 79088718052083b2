//! What the tests of the judge share: programs that a compiler makes at run time, and the question.
#![allow(dead_code, reason = "not every test file needs all of it")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use tigerfix::arch::{AnyArch, for_ident};
use tigerfix::decoder::CapstoneDecoder;
use tigerfix_core::error::Explain as _;
use tigerfix_core::judge::{JudgeError, JudgeOptions, Verdict, judge};
use tigerfix_core::model::{Package, PackageSymbol, ProgramRef, Referent, Site, Span};
use tigerfix_core::program::{DebugInfo, Program};
use tigerfix_core::target::Perm;

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Compiles `source` and returns the program's bytes.
pub fn compile(compiler: &str, source: &str, flags: &str) -> Vec<u8> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = Dir(std::env::temp_dir().join(format!("tfix-judge-{}-{n}", std::process::id())));
    std::fs::create_dir_all(&dir.0).expect("a temporary directory");
    std::fs::write(dir.0.join("program.c"), source).expect("write the source");
    // Relative names, so that the debug information does not depend on the directory.
    let status = Command::new(compiler)
        .current_dir(&dir.0)
        .args(flags.split_whitespace())
        .args(["program.c", "-o", "program"])
        .status()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(status.success(), "{compiler} {flags}");
    std::fs::read(dir.0.join("program")).expect("the program")
}

/// May functions of the program be replaced by `code`? And the package as the judge leaves it.
pub fn ask_with(
    data: &[u8],
    names: &[&str],
    code: &[u8],
    options: JudgeOptions,
) -> (Result<Verdict, JudgeError>, Package) {
    let mut program = Program::parse(data).expect("a program");
    let arch: AnyArch = for_ident(&program.ident).expect("a back end");
    let mut debug = DebugInfo::default();
    for s in &program.sections {
        if s.name.starts_with(".debug") {
            debug.sections.insert(s.name.to_string(), s.data.into());
        }
    }
    program.attach_debug_info(debug);
    let site = |name: &&str| Site {
        old: (*name).to_string(),
        new: "new".into(),
        entry: program.named(name).find(|s| s.is_function()).unwrap_or_else(|| panic!("no symbol {name}")).addr,
        pad: 0,
        window: 0,
        expected: vec![],
        body: vec![],
        new_offset: 0,
        landing: 0,
        own_address: false,
    };
    let mut package = Package {
        ident: program.ident,
        name: "test".into(),
        version: String::new(),
        description: String::new(),
        program: ProgramRef { file: "program".into(), identity: program.identity.clone(), fixed: program.fixed },
        base: None,
        page_size: 65536,
        guarded: false,
        spans: vec![Span { perm: Perm::RX, offset: 0, size: code.len() as u64, data: code.to_vec() }],
        symbols: vec![PackageSymbol {
            name: "new".into(),
            referent: Referent::Image(0),
            size: code.len() as u64,
            function: true,
            global: true,
        }],
        residue: vec![],
        sites: names.iter().map(site).collect(),
        eh_frame: None,
        trap: 0,
        warnings: vec![],
    };
    let decoder = CapstoneDecoder::for_arch(arch).expect("a decoder");
    let verdict = judge(arch, &decoder, &program, &mut package, &options);
    (verdict, package)
}

/// The rule by which the judge refuses, or "yes".
pub fn rule(data: &[u8], names: &[&str], code: &[u8]) -> &'static str {
    ask_with(data, names, code, JudgeOptions::strict()).0.map_or_else(|e| e.rule(), |_| "yes")
}
