//! `tfix list`: what is applied, read from the targets alone.

use crate::cmd::fix::{site_line, sites_json};
use crate::cmd::remote::Remote;
use crate::failure::Failure;
use crate::output::{Context, Report, address, count};
use serde_json::{Value, json};
use std::fmt::Write as _;
use tigerfix::arch;
use tigerfix::error::Explain as _;
use tigerfix::ptrace::{PtraceTarget, executable_ident};
use tigerfix::session::record::REGION_PREFIX;
use tigerfix::session::{self, Listed};
use tigerfix::target::Target as _;

/// List the patches of one process, of every process that carries some, or of a target behind a gdb stub
#[derive(clap::Args)]
pub struct Args {
    /// Process id
    #[arg(value_parser = clap::value_parser!(i32).range(1..), conflicts_with = "remote")]
    pid: Option<i32>,
    #[command(flatten)]
    remote: Remote,
}

struct Process {
    pid: Option<u64>,
    description: String,
    exe: String,
    patches: Vec<Listed>,
}

pub fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let mut warnings = Vec::new();
    let mut processes = Vec::new();
    match (args.remote.open(context, None)?, args.pid) {
        (Some((mut target, _)), _) => {
            let patches = session::list(&mut target).map_err(|e| Failure::from(&e))?;
            let description = target.describe();
            processes.push(Process { pid: target.pid(), description, exe: String::new(), patches });
        }
        (None, Some(pid)) => processes.push(look(pid)?),
        (None, None) => {
            for pid in carriers() {
                match look(pid) {
                    Ok(p) => processes.push(p),
                    // It may have ended meanwhile, or belong to somebody else.
                    Err(e) => warnings.push(("list".to_owned(), format!("process {pid}: {e:?}"))),
                }
            }
        }
    }
    let mut text = String::new();
    for p in &processes {
        let _ = writeln!(text, "{}", p.description);
        if p.patches.is_empty() {
            text.push_str("  no patches\n");
        }
        for listed in &p.patches {
            write_patch(&mut text, listed);
        }
    }
    if processes.is_empty() {
        text.push_str("no process carries patches\n");
    }
    let list: Vec<Value> = processes
        .iter()
        .map(|p| json!({"pid": p.pid, "exe": p.exe, "patches": p.patches.iter().map(patch_json).collect::<Vec<_>>()}))
        .collect();
    Ok(Report { text, json: json!({"ok": true, "processes": list}), warnings })
}

fn write_patch(text: &mut String, listed: &Listed) {
    match listed {
        Ok(r) => {
            let version = if r.version.is_empty() { String::new() } else { format!(" {}", r.version) };
            let _ = writeln!(
                text,
                "  {}{version}  {}  {}  image {} ({} bytes)",
                r.name,
                r.state.as_str(),
                count(r.sites.len(), "function"),
                r.image,
                r.image_size
            );
            if !r.description.is_empty() {
                let _ = writeln!(text, "    {}", r.description);
            }
            for s in &r.sites {
                text.push_str("  ");
                text.push_str(&site_line(s));
            }
        }
        Err(e) => {
            let _ = writeln!(text, "  unreadable record [{}]: {e}", e.rule());
        }
    }
}

fn patch_json(listed: &Listed) -> Value {
    match listed {
        Ok(r) => json!({
            "name": r.name,
            "version": r.version,
            "description": r.description,
            "state": r.state.as_str(),
            "program": r.program,
            "image": address(r.image.0),
            "size": r.image_size,
            "applied_at": r.applied_at,
            "sites": sites_json(&r.sites),
        }),
        Err(e) => json!({"error": e.to_string(), "rule": e.rule()}),
    }
}

fn look(pid: i32) -> Result<Process, Failure> {
    let ident = executable_ident(pid).map_err(|e| Failure::from(&e))?;
    let arch = arch::for_ident(&ident).map_err(|e| Failure::from(&e))?;
    let mut target = PtraceTarget::open(pid, arch).map_err(|e| Failure::from(&e))?;
    let patches = session::list(&mut target).map_err(|e| Failure::from(&e))?;
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).map_or(String::new(), |p| p.display().to_string());
    Ok(Process { pid: u64::try_from(pid).ok(), description: target.describe(), exe, patches })
}

/// Processes with a mapping of ours.
fn carriers() -> Vec<i32> {
    let Ok(dir) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<i32> = dir
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|m| m.contains(REGION_PREFIX)))
        .collect();
    pids.sort_unstable();
    pids
}
