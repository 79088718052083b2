//! `tfix fix`: applies a package to a running process, or to whatever is behind a stub.

use crate::cmd::load_package;
use crate::cmd::remote::{self, Remote};
use crate::failure::Failure;
use crate::output::{Context, Report, address, count, millis};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::PathBuf;
use tigerfix::SystemClock;
use tigerfix::arch::AnyArch;
use tigerfix::model::Package;
use tigerfix::ptrace::{PtraceTarget, install_interrupt_flag};
use tigerfix::session::record::RecordSite;
use tigerfix::session::{self, Options, Plan, Policy};
use tigerfix::target::Target;

/// Apply a package to a running process, or to a target behind a gdb stub
#[derive(clap::Args)]
#[command(allow_missing_positional = true)]
pub struct Args {
    /// Process id
    #[arg(
        value_parser = clap::value_parser!(i32).range(1..),
        required_unless_present = "remote",
        conflicts_with = "remote"
    )]
    pid: Option<i32>,
    /// The package
    package: PathBuf,
    /// Print the plan and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Give up after this many seconds while threads are inside the functions
    #[arg(long, default_value_t = 10, value_name = "SECS")]
    timeout: u64,
    /// Force one jump form
    #[arg(long, value_name = "NAME")]
    form: Option<String>,
    /// What no thread may be inside: the whole old function, or only the overwritten bytes
    #[arg(long, value_enum, default_value_t = PolicyArg::Function)]
    policy: PolicyArg,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Clone, Copy, ValueEnum)]
enum PolicyArg {
    Function,
    Window,
}

pub fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let (package, arch) = load_package(&args.package, context.arch.as_deref())?;
    install_interrupt_flag();
    let options = Options {
        policy: match args.policy {
            PolicyArg::Function => Policy::Function,
            PolicyArg::Window => Policy::Window,
        },
        form: args.form.clone(),
        timeout_ms: args.timeout.saturating_mul(1000),
    };
    let mut report = match (args.remote.open(context, Some(arch))?, args.pid) {
        (Some((mut target, _)), _) => {
            let mut report = apply(args, &mut target, None, arch, &package, &options)?;
            report.warnings.extend(remote::warnings(&target, arch));
            if let Some(object) = report.json.as_object_mut().filter(|_| !args.dry_run) {
                report.text.push_str(&remote::stood_line(&target));
                object.insert("pid".into(), target.pid().into());
                object.insert("stood_us".into(), remote::stood(&target).into());
            }
            report
        }
        (None, pid) => {
            let pid = pid.unwrap_or_default();
            let mut target = PtraceTarget::open(pid, arch).map_err(|e| Failure::from(&e))?;
            apply(args, &mut target, Some(pid), arch, &package, &options)?
        }
    };
    let mut warnings: Vec<_> = package.warnings.iter().map(|w| ("package".to_owned(), w.clone())).collect();
    warnings.append(&mut report.warnings);
    report.warnings = warnings;
    Ok(report)
}

fn apply(
    args: &Args,
    target: &mut dyn Target,
    pid: Option<i32>,
    arch: AnyArch,
    package: &Package,
    options: &Options,
) -> Result<Report, Failure> {
    let warnings = Vec::new();
    if args.dry_run {
        let plan = session::plan(target, arch, package, options).map_err(|e| Failure::from(&e))?;
        return Ok(Report { text: format!("{plan}\n"), json: plan_json(&plan), warnings });
    }
    let applied =
        session::apply(target, arch, package, options, &mut SystemClock::new()).map_err(|e| Failure::from(&e))?;
    let record = &applied.record;
    let mut text = format!(
        "applied {} to {}: {}, paused {} ms\n",
        record.name,
        target.describe(),
        count(record.sites.len(), "function"),
        millis(applied.pause_us)
    );
    for s in &record.sites {
        text.push_str(&site_line(s));
    }
    let json = json!({
        "ok": true,
        "pid": pid,
        "name": record.name,
        "version": record.version,
        "image": address(record.image.0),
        "sites": sites_json(&record.sites),
        "pause_us": applied.pause_us,
        "attempts": applied.attempts,
    });
    Ok(Report { text, json, warnings })
}

/// One site as `fix` and `list` print it.
pub(super) fn site_line(s: &RecordSite) -> String {
    format!("  {}  {} -> {}  {}\n", s.function, s.at, s.new, s.form)
}

/// Sites as `fix`, `list` and `revert` give them to programs.
pub(super) fn sites_json(sites: &[RecordSite]) -> Value {
    sites
        .iter()
        .map(|s| {
            json!({
                "function": s.function,
                "address": address(s.at.0),
                "new": address(s.new.0),
                "form": s.form,
            })
        })
        .collect()
}

fn plan_json(plan: &Plan) -> Value {
    let sites: Vec<Value> = plan
        .sites
        .iter()
        .map(|s| {
            json!({
                "function": s.function,
                "address": address(s.at.0),
                "form": s.form.name,
                "length": s.form.len,
            })
        })
        .collect();
    let imports: Vec<Value> = plan.imports.iter().map(|(n, m)| json!({"symbol": n, "module": m})).collect();
    json!({
        "ok": true,
        "dry_run": true,
        "plan": {
            "target": plan.target,
            "name": plan.name,
            "module": plan.module,
            "bias": address(plan.bias),
            "record_size": plan.record_size,
            "image_size": plan.image_size,
            "place": plan.places.first().copied().or(plan.reserved.map(|r| r.image)).map(|p| address(p.0)),
            "imports": imports,
            "sites": sites,
        },
    })
}
