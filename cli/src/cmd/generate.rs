//! `tfix gen`: makes a package.

use crate::cmd::read_file;
use crate::failure::Failure;
use crate::output::{Context, Report, address, count};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tigerfix::arch;
use tigerfix::generate::{Generate, Generated};
use tigerfix::judge::JudgeOptions;
use tigerfix::model::Referent;

/// Make a package from patch objects and the program that they are for
#[derive(clap::Args)]
#[command(name = "gen")]
pub struct Args {
    /// The program: the executable or shared library that runs
    #[arg(short = 'm', long = "program", value_name = "PROGRAM")]
    program: PathBuf,
    /// The package to write
    #[arg(short, long, value_name = "OUT.tfp")]
    output: PathBuf,
    /// Patch objects
    #[arg(required = true, value_name = "PATCH.o")]
    objects: Vec<PathBuf>,
    /// Function NEW of the patch replaces OLD (or file.c:OLD) of the program
    #[arg(long, value_name = "NEW=OLD", value_parser = pair)]
    replace: Vec<(String, String)>,
    /// NAME in the patch means this static symbol of the program
    #[arg(long, value_name = "NAME=FILE.c:NAME", value_parser = pair)]
    bind: Vec<(String, String)>,
    /// Name of the package (default: the output's file name)
    #[arg(long)]
    name: Option<String>,
    /// What the patch is for
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Separate file with symbols and debug information (default: the installed one of the build-id)
    #[arg(long, value_name = "FILE")]
    debug_file: Option<PathBuf>,
    /// Where the target's libraries and debug files lie on this machine (default: the machine's own)
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
    /// Fixed load address of the image
    #[arg(long, value_name = "ADDR", value_parser = number)]
    base: Option<u64>,
    /// Alignment of the image's parts, a power of two from 16 on, for targets without memory protection (default: the
    /// largest page size of the architecture)
    #[arg(long, value_name = "BYTES", value_parser = number)]
    page_size: Option<u64>,
    /// Let pass that copies of the old code may live on in other functions
    #[arg(long)]
    allow_inlined: bool,
    /// Let pass that callers may rely on registers which the new function changes
    #[arg(long)]
    allow_clobbers: bool,
}

fn pair(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.to_owned(), b.to_owned())),
        _ => Err("expected two names with = between".into()),
    }
}

fn number(s: &str) -> Result<u64, String> {
    let (digits, radix) = s.strip_prefix("0x").map_or((s, 10), |h| (h, 16));
    u64::from_str_radix(digits, radix).map_err(|e| e.to_string())
}

pub fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let program = read_file(&args.program)?;
    let debug_file = args.debug_file.as_deref().map(read_file).transpose()?;
    let objects = args.objects.iter().map(|p| read_file(p)).collect::<Result<Vec<_>, _>>()?;
    let asked = context.arch.as_deref().map(arch::by_name).transpose().map_err(|e| Failure::from(&e))?;
    check_output(args)?;
    if let Some(dir) = args.sysroot.as_deref().filter(|d| !d.is_dir()) {
        return Err(Failure::bad_input("unreadable-file", "there is no such directory".into(), None).at(dir));
    }

    let stem = args.output.file_stem().map_or("patch".into(), |s| s.to_string_lossy());
    let allow = JudgeOptions::strict().allow_inlined(args.allow_inlined).allow_clobbers(args.allow_clobbers);
    let mut job = Generate::new(&args.program, &program)
        .debug_file(debug_file.as_deref())
        .sysroot(args.sysroot.as_deref())
        .arch(asked)
        .name(args.name.clone().unwrap_or_else(|| stem.into_owned()))
        .description(args.description.clone())
        .base(args.base)
        .page_size(args.page_size)
        .allow(allow);
    for (path, data) in args.objects.iter().zip(&objects) {
        job = job.object(path.display().to_string(), data);
    }
    for (new, old) in &args.replace {
        job = job.replace(new, old);
    }
    for (name, target) in &args.bind {
        job = job.bind(name, target);
    }
    let made = job.run().map_err(|e| {
        use tigerfix::generate::GenerateError as E;
        match &e {
            E::Program(_) | E::Arch(_) | E::ArchMismatch { .. } => Failure::from(&e).at(&args.program),
            E::DebugFile(_) => Failure::from(&e).at(args.debug_file.as_deref().unwrap_or(&args.program)),
            _ => Failure::from(&e),
        }
    })?;
    write_atomically(&args.output, &made.bytes)?;
    Ok(report(args, &made))
}

/// An output that is an input is a slip that would cost the user a file.
fn check_output(args: &Args) -> Result<(), Failure> {
    let Ok(output) = args.output.canonicalize() else { return Ok(()) };
    let inputs = args.objects.iter().chain([&args.program]).chain(&args.debug_file);
    if output.is_dir() || inputs.filter_map(|p| p.canonicalize().ok()).any(|p| p == output) {
        let what = if output.is_dir() { "is a directory" } else { "is also an input" };
        return Err(Failure::bad_input("output", format!("the output {what}"), None).at(&args.output));
    }
    Ok(())
}

/// Writes beside the target and renames: whoever looks sees the old file or the new one, whole.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let fail = |e: std::io::Error| {
        Failure::bad_input("unwritable-output", format!("cannot write the package: {e}"), None).at(path)
    };
    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".tfix-")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(fail)?;
    // The umask took bits from the mode at creation.
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(fail)?;
    // Not synced: after a crash of the machine the digest tells a whole package from a torn one.
    file.write_all(bytes).map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn report(args: &Args, made: &Generated) -> Report {
    let p = &made.package;
    let mut text = format!(
        "wrote {}: {} replaced, image {} bytes\n",
        args.output.display(),
        count(p.sites.len(), "function"),
        p.image_size()
    );
    let mut replaced = Vec::new();
    for s in &p.sites {
        let size = s.body.first().map_or(0, |b| b.1);
        let _ = writeln!(text, "  {}  {} ({size} bytes) -> {}", s.old, s.entry, s.new);
        replaced.push(json!({
            "old": s.old, "new": s.new, "entry": address(s.entry.0), "size": size, "pad": s.pad, "window": s.window,
        }));
    }
    for n in &made.report.notes {
        let _ = writeln!(text, "  note: {n}");
    }
    let imports: Vec<&str> =
        p.symbols.iter().filter(|s| matches!(s.referent, Referent::Import { .. })).map(|s| s.name.as_str()).collect();
    let placements: Vec<Value> = made
        .report
        .placements
        .iter()
        .map(|s| json!({"object": s.object, "section": s.section, "offset": s.offset, "size": s.size}))
        .collect();
    let json = json!({
        "ok": true,
        "output": args.output.display().to_string(),
        "name": p.name,
        "version": p.version,
        "program": p.program.file,
        "identity": p.program.identity.to_string(),
        "replaced": replaced,
        "image_size": p.image_size(),
        "relocations": made.report.relocations,
        "imports": imports,
        "residue": p.residue.len(),
        "notes": made.report.notes,
        "sections": placements,
    });
    let linker = made.report.warnings.iter().map(|w| ("linker".to_owned(), w.clone()));
    let judge = made.verdict.warnings.iter().map(|w| (w.rule.to_owned(), w.text.clone()));
    Report { text, json, warnings: linker.chain(judge).collect() }
}
