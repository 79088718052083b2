//! `tfix fix`: applies a package to a running process.

use crate::cmd::load_package;
use crate::failure::Failure;
use crate::output::{Context, Report, address, count, millis};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::PathBuf;
use tigerfix::SystemClock;
use tigerfix::ptrace::{PtraceTarget, install_interrupt_flag};
use tigerfix::session::record::RecordSite;
use tigerfix::session::{self, Options, Plan, Policy};
use tigerfix::target::Target as _;

/// Apply a package to a running process
#[derive(clap::Args)]
pub struct Args {
    /// Process id
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
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
}

#[derive(Clone, Copy, ValueEnum)]
enum PolicyArg {
    Function,
    Window,
}

pub fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let (package, arch) = load_package(&args.package, context.arch.as_deref())?;
    install_interrupt_flag();
    let mut target = PtraceTarget::open(args.pid, arch).map_err(|e| Failure::from(&e))?;
    let options = Options {
        policy: match args.policy {
            PolicyArg::Function => Policy::Function,
            PolicyArg::Window => Policy::Window,
        },
        form: args.form.clone(),
        timeout_ms: args.timeout.saturating_mul(1000),
    };
    let warnings: Vec<_> = package.warnings.iter().map(|w| ("package".to_owned(), w.clone())).collect();
    if args.dry_run {
        let plan = session::plan(&mut target, arch, &package, &options).map_err(|e| Failure::from(&e))?;
        return Ok(Report { text: format!("{plan}\n"), json: plan_json(&plan), warnings });
    }
    let applied = session::apply(&mut target, arch, &package, &options, &mut SystemClock::new())
        .map_err(|e| Failure::from(&e))?;
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
        "pid": args.pid,
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
            "place": plan.places.first().map(|p| address(p.0)),
            "imports": imports,
            "sites": sites,
        },
    })
}
