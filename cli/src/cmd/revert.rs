//! `tfix revert`: puts the old code back.

use crate::cmd::fix::sites_json;
use crate::failure::Failure;
use crate::output::{Context, Report, count, millis};
use serde_json::json;
use tigerfix::SystemClock;
use tigerfix::arch;
use tigerfix::ptrace::{PtraceTarget, executable_ident, install_interrupt_flag};
use tigerfix::session;
use tigerfix::target::Target as _;

/// Undo a patch of a running process
#[derive(clap::Args)]
pub struct Args {
    /// Process id
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    /// Name of the patch (default: the newest)
    name: Option<String>,
    /// Give up after this many seconds while threads are inside the jumps
    #[arg(long, default_value_t = 10, value_name = "SECS")]
    timeout: u64,
}

pub fn run(args: &Args, _context: &Context) -> Result<Report, Failure> {
    let ident = executable_ident(args.pid).map_err(|e| Failure::from(&e))?;
    let arch = arch::for_ident(&ident).map_err(|e| Failure::from(&e))?;
    install_interrupt_flag();
    let mut target = PtraceTarget::open(args.pid, arch).map_err(|e| Failure::from(&e))?;
    let timeout = args.timeout.saturating_mul(1000);
    let done = session::revert(&mut target, arch, args.name.as_deref(), timeout, &mut SystemClock::new())
        .map_err(|e| Failure::from(&e))?;
    let r = &done.record;
    let mut text = format!(
        "reverted {} in {}: {}, paused {} ms\n",
        r.name,
        target.describe(),
        count(r.sites.len(), "function"),
        millis(done.pause_us)
    );
    let mut warnings = Vec::new();
    if let Some(why) = &done.parked {
        text.push_str(&format!("  the image stays mapped (parked): {why}\n"));
        warnings.push(("parked".to_owned(), format!("the image of `{}` stays mapped: {why}", r.name)));
    }
    let json = json!({
        "ok": true,
        "pid": args.pid,
        "name": r.name,
        "sites": sites_json(&r.sites),
        "parked": done.parked.is_some(),
        "pause_us": done.pause_us,
        "attempts": done.attempts,
    });
    Ok(Report { text, json, warnings })
}
