//! `tfix inspect`: what a package holds.

use crate::cmd::load_package;
use crate::failure::Failure;
use crate::output::{Context, Report, address};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use tigerfix::arch::AnyArch;
use tigerfix::decoder::CapstoneDecoder;
use tigerfix::model::{Package, Referent, Span};

/// Show what a package holds
#[derive(clap::Args)]
pub struct Args {
    /// The package
    package: PathBuf,
    /// Disassemble the new code
    #[arg(long)]
    disasm: bool,
}

pub fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let (package, arch) = load_package(&args.package, context.arch.as_deref())?;
    let mut text = String::new();
    describe(&mut text, &package, arch);
    let mut json = package_json(&package, arch);
    if args.disasm {
        let lines = disassembly(&package, arch);
        let _ = writeln!(text, "code:");
        for l in &lines {
            let _ = writeln!(text, "{l}");
        }
        json["disassembly"] = lines.into();
    }
    Ok(Report { text, json, warnings: Vec::new() })
}

fn describe(text: &mut String, p: &Package, arch: AnyArch) {
    let _ = writeln!(text, "package      {}", p.name);
    let optional = [("version", &p.version), ("description", &p.description)];
    for (label, value) in optional.into_iter().filter(|(_, v)| !v.is_empty()) {
        let _ = writeln!(text, "{label:<12} {value}");
    }
    let _ = writeln!(text, "architecture {}", arch.name());
    let _ = writeln!(text, "program      {} ({})", p.program.file, p.program.identity);
    let base = p.base.map_or("chosen by fix".to_owned(), address);
    let _ = writeln!(text, "image        {} bytes, address {base}", p.image_size());
    for s in &p.spans {
        let _ = writeln!(text, "  {}  +{:#07x}  {:>7} bytes", s.perm, s.offset, s.size);
    }
    let _ = writeln!(text, "replaced functions:");
    for s in &p.sites {
        let size: u64 = s.body.iter().map(|b| b.1).sum();
        let _ = writeln!(
            text,
            "  {}  {} ({size} bytes, window {} at +{}) -> {} at image +{:#x}",
            s.old, s.entry, s.window, s.pad, s.new, s.new_offset
        );
    }
    let _ = writeln!(text, "symbols:");
    for s in &p.symbols {
        let _ = writeln!(text, "  {}  {}", s.name, referent(&s.referent));
    }
    let _ = writeln!(text, "residue:");
    for r in &p.residue {
        let name = arch.reloc_name(r.r_type).unwrap_or("unknown type");
        let symbol = p.symbols.get(r.symbol as usize).map_or("?", |s| s.name.as_str());
        let _ = writeln!(text, "  +{:#07x}  {name}  {symbol}{:+#x}", r.offset, Signed(r.addend));
    }
    for w in &p.warnings {
        let _ = writeln!(text, "warning: {w}");
    }
}

/// An addend in hexadecimal with its sign.
struct Signed(i64);

impl std::fmt::LowerHex for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad_integral(self.0 >= 0, "0x", &format!("{:x}", self.0.unsigned_abs()))
    }
}

fn referent(r: &Referent) -> String {
    match r {
        Referent::Image(o) => format!("image +{o:#x}"),
        Referent::Program(a) => format!("program {a}"),
        Referent::ProgramIfunc(a) => format!("program IFUNC, resolver {a}"),
        Referent::Import { weak: false } => "import".into(),
        Referent::Import { weak: true } => "import (weak)".into(),
    }
}

fn package_json(p: &Package, arch: AnyArch) -> Value {
    let sites: Vec<Value> = p
        .sites
        .iter()
        .map(|s| {
            json!({
                "old": s.old, "new": s.new, "entry": address(s.entry.0), "pad": s.pad, "window": s.window,
                "size": s.body.iter().map(|b| b.1).sum::<u64>(), "new_offset": s.new_offset,
            })
        })
        .collect();
    let spans: Vec<Value> =
        p.spans.iter().map(|s| json!({"perm": s.perm.to_string(), "offset": s.offset, "size": s.size})).collect();
    let symbols: Vec<Value> =
        p.symbols.iter().map(|s| json!({"name": s.name, "refers": referent(&s.referent)})).collect();
    let residue: Vec<Value> = p
        .residue
        .iter()
        .map(|r| {
            json!({
                "offset": r.offset, "type": arch.reloc_name(r.r_type),
                "symbol": p.symbols.get(r.symbol as usize).map(|s| s.name.clone()), "addend": r.addend,
            })
        })
        .collect();
    json!({
        "ok": true,
        "name": p.name,
        "version": p.version,
        "description": p.description,
        "architecture": arch.name(),
        "program": {"file": p.program.file, "identity": p.program.identity.to_string()},
        "base": p.base.map(address),
        "image_size": p.image_size(),
        "spans": spans,
        "sites": sites,
        "symbols": symbols,
        "residue": residue,
        "notes": p.warnings,
    })
}

fn disassembly(p: &Package, arch: AnyArch) -> Vec<String> {
    let base = p.base.unwrap_or(0);
    let mut out = Vec::new();
    let Some(decoder) = CapstoneDecoder::for_arch(arch) else { return out };
    for span in p.spans.iter().filter(|s| s.perm.exec) {
        let mut functions: Vec<_> = p
            .symbols
            .iter()
            .filter_map(|s| match s.referent {
                Referent::Image(o) if s.function && in_span(span, o) => Some((o, s.size, &s.name)),
                _ => None,
            })
            .collect();
        functions.sort();
        functions.dedup();
        for (offset, size, name) in functions {
            out.push(format!("{:#x} <{name}>:", base + offset));
            let from = (offset - span.offset) as usize;
            let to = from.saturating_add(size as usize).min(span.data.len());
            for l in decoder.disassemble(&span.data[from..to], base + offset) {
                let hex: Vec<String> = l.bytes.iter().map(|b| format!("{b:02x}")).collect();
                out.push(format!("  {:#8x}:  {:<30}  {}", l.addr, hex.join(" "), l.text));
            }
        }
    }
    out
}

fn in_span(span: &Span, offset: u64) -> bool {
    offset >= span.offset && offset - span.offset < span.data.len() as u64
}
