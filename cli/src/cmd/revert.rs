//! `tfix revert`: puts the old code back.

use crate::cmd::fix::sites_json;
use crate::cmd::remote::{self, Remote};
use crate::failure::Failure;
use crate::output::{Context, Report, count, millis};
use serde_json::json;
use tigerfix::SystemClock;
use tigerfix::arch::{self, AnyArch};
use tigerfix::ptrace::{PtraceTarget, executable_ident, install_interrupt_flag};
use tigerfix::session;
use tigerfix::target::Target;

/// Undo a patch of a running process, or of a target behind a gdb stub
#[derive(clap::Args)]
#[command(
    override_usage = "tfix revert [OPTIONS] <PID> [NAME]\n       tfix revert [OPTIONS] --remote <ADDRESS> [NAME]"
)]
pub struct Args {
    /// Process id (not with --remote), and name of the patch (default: the newest)
    #[arg(value_name = "PID] [NAME", num_args = 0..=2, required_unless_present = "remote")]
    what: Vec<String>,
    /// Give up after this many seconds while threads are inside the jumps
    #[arg(long, default_value_t = 10, value_name = "SECS")]
    timeout: u64,
    #[command(flatten)]
    remote: Remote,
}

impl Args {
    /// Process id and name; a stub's process has no id here.
    fn what(&self) -> Result<(Option<i32>, Option<&str>), Failure> {
        let text = |i: usize| self.what.get(i).map(String::as_str);
        if self.remote.remote.is_some() {
            return match text(1) {
                None => Ok((None, text(0))),
                Some(_) => Err(Failure::bad_input(
                    "usage",
                    "a target behind a stub has no process id here".into(),
                    Some("name the process by --pid"),
                )),
            };
        }
        let pid = text(0).unwrap_or_default();
        match pid.parse::<i32>() {
            Ok(p) if p > 0 => Ok((Some(p), text(1))),
            _ => Err(Failure::bad_input("usage", format!("`{pid}` is no process id"), None)),
        }
    }
}

pub fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let (pid, name) = args.what()?;
    if let Some((mut target, arch)) = args.remote.open(context, None)? {
        install_interrupt_flag();
        let mut report = revert(&mut target, arch, name, args.timeout, None)?;
        report.text.push_str(&remote::stood_line(&target));
        report.warnings.extend(remote::warnings(&target, arch));
        if let Some(object) = report.json.as_object_mut() {
            object.insert("pid".into(), target.pid().into());
            object.insert("stood_us".into(), remote::stood(&target).into());
        }
        return Ok(report);
    }
    let pid = pid.unwrap_or_default();
    let ident = executable_ident(pid).map_err(|e| Failure::from(&e))?;
    let arch = arch::for_ident(&ident).map_err(|e| Failure::from(&e))?;
    install_interrupt_flag();
    let mut target = PtraceTarget::open(pid, arch).map_err(|e| Failure::from(&e))?;
    revert(&mut target, arch, name, args.timeout, Some(pid))
}

fn revert(
    target: &mut dyn Target,
    arch: AnyArch,
    name: Option<&str>,
    seconds: u64,
    pid: Option<i32>,
) -> Result<Report, Failure> {
    let timeout = seconds.saturating_mul(1000);
    let done = session::revert(target, arch, name, timeout, &mut SystemClock::new()).map_err(|e| Failure::from(&e))?;
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
        "pid": pid,
        "name": r.name,
        "sites": sites_json(&r.sites),
        "parked": done.parked.is_some(),
        "pause_us": done.pause_us,
        "attempts": done.attempts,
    });
    Ok(Report { text, json, warnings })
}
