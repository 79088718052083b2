//! Targets behind a stub of the gdb remote protocol: what `fix`, `list` and `revert` have in common for them.

use crate::cmd::read_file;
use crate::failure::Failure;
use crate::output::{Context, millis};
use std::path::PathBuf;
use tigerfix::arch::{self, AnyArch, CacheNeed};
use tigerfix::gdb::{Address, GdbTarget, Kind, Options, Stub, parse_area};
use tigerfix::program::ident_of;
use tigerfix::target::Area;

/// Where the target is, if it is no process of this machine.
#[derive(clap::Args)]
pub struct Remote {
    /// Stub of the gdb remote protocol: HOST:PORT, unix:PATH, or DEVICE,BAUD
    #[arg(long, value_name = "ADDRESS")]
    pub remote: Option<String>,
    /// ELF file of the program, for stubs that can't tell what runs
    #[arg(long, value_name = "ELF", requires = "remote")]
    program: Option<PathBuf>,
    /// Memory that patches may use, where there is no operating system
    #[arg(long, value_name = "START:SIZE", requires = "remote")]
    area: Option<String>,
    /// Process for the stub to attach to (gdbserver --multi)
    #[arg(long = "pid", value_name = "PID", requires = "remote", value_parser = clap::value_parser!(u32).range(1..))]
    remote_pid: Option<u32>,
}

impl Remote {
    /// Connects to the stub; `None`: none was named. `arch`: the package's, or `None` where there is no package.
    pub fn open(&self, context: &Context, arch: Option<AnyArch>) -> Result<Option<(GdbTarget, AnyArch)>, Failure> {
        let Some(text) = &self.remote else { return Ok(None) };
        let address: Address = text.parse().map_err(|e| of(text, &e))?;
        let area = self.area.as_deref().map(area).transpose()?;
        let program = match &self.program {
            Some(path) => Some((path.display().to_string(), read_file(path)?)),
            None => None,
        };
        let mut stub = Stub::connect(&address, self.remote_pid.map(u64::from)).map_err(|e| of(text, &e))?;
        let arch = match (arch, &program) {
            (Some(a), _) => a,
            (None, Some((_, bytes))) => {
                let ident = ident_of(bytes).map_err(|e| Failure::from(&e))?;
                arch::for_ident(&ident).map_err(|e| Failure::from(&e))?
            }
            (None, None) => match (stub.ident().map_err(|e| of(text, &e))?, context.arch.as_deref()) {
                (Some(ident), _) => arch::for_ident(&ident).map_err(|e| Failure::from(&e))?,
                (None, Some(name)) => arch::by_name(name).map_err(|e| Failure::from(&e))?,
                (None, None) => {
                    let why = "the stub does not tell what runs there".to_owned();
                    return Err(Failure::bad_input("remote-program", why, Some("name its ELF file by --program")));
                }
            },
        };
        let target = GdbTarget::new(stub, arch, Options { program, area }).map_err(|e| Failure::from(&e))?;
        Ok(Some((target, arch)))
    }
}

/// An error of the stub, with its address.
fn of(address: &str, e: &tigerfix::gdb::GdbError) -> Failure {
    Failure::from(e).about(&format!("the stub at {address}"))
}

fn area(text: &str) -> Result<Area, Failure> {
    parse_area(text).ok_or_else(|| {
        Failure::bad_input("remote-area", format!("`{text}` is no START:SIZE"), Some("as in 0x80400000:0x20000"))
    })
}

/// What a user should know about the target that the package does not say.
pub fn warnings(target: &GdbTarget, arch: AnyArch) -> Vec<(String, String)> {
    let mut out = Vec::new();
    if target.kind() != Kind::Bare {
        return out;
    }
    if arch.cache_need() != CacheNeed::Coherent {
        let text = format!(
            "{} has to be told when code was written: the stub or probe must flush its instruction caches on writes",
            arch.name()
        );
        out.push(("remote-caches".to_owned(), text));
    }
    if !target.sees_interrupts() {
        let text = "the stub does not show what an exception handler will return to: if the processor was stopped inside one, \
                    that may have been overwritten";
        out.push(("remote-interrupts".to_owned(), text.to_owned()));
    }
    out
}

/// How long the target stood, for people.
pub fn stood_line(target: &GdbTarget) -> String {
    format!("  it stood for {} ms in all\n", millis(stood(target)))
}

/// How long the target stood, microseconds.
pub fn stood(target: &GdbTarget) -> u64 {
    u64::try_from(target.stood().as_micros()).unwrap_or(u64::MAX)
}
