//! May this function be replaced? Run by `gen`, offline, where there is time to disassemble, to read debug information
//! and to explain.
//!
//! A replacement is refused when it could crash the target (`window`, `clobbers`) or when it would only half take
//! effect, since copies of the old code live on elsewhere (`clones`, `inlined`, `callers`, `similar`).

mod callers;
mod clobbers;
mod clones;
mod error;
mod inlined;
mod listing;
mod similar;
mod window;

pub use error::{InlinedCopy, JudgeError, Obstacle, Reliance, WindowFigures};

use crate::arch::Arch;
use crate::decode::Decoder;
use crate::error::Explain;
use crate::model::Package;
use crate::program::Program;
use alloc::{format, string::String, vec::Vec};
use listing::Listing;
use window::Judged;

/// What the user lets pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JudgeOptions {
    /// Inlined and specialised copies of the old code may live on (`--allow-inlined`).
    pub allow_inlined: bool,
    /// Callers may rely on registers that the new function changes (`--allow-clobbers`).
    pub allow_clobbers: bool,
}

impl JudgeOptions {
    /// Lets nothing pass.
    #[must_use]
    pub fn strict() -> JudgeOptions {
        JudgeOptions::default()
    }
    /// Lets copies of the old code live on, or not.
    #[must_use]
    pub fn allow_inlined(self, allow_inlined: bool) -> JudgeOptions {
        JudgeOptions { allow_inlined, ..self }
    }
    /// Lets callers rely on registers that the new function changes, or not.
    #[must_use]
    pub fn allow_clobbers(self, allow_clobbers: bool) -> JudgeOptions {
        JudgeOptions { allow_clobbers, ..self }
    }
}

/// Something that the user should know, though it is no reason to refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Stable id: that of the rule which would have refused, or `no-debug-info`, `broken-debug-info`,
    /// `return-in-window`, `part-undecoded`, `many-callers`, `shared-body`.
    pub rule: &'static str,
    /// A sentence without a full stop.
    pub text: String,
}

impl core::fmt::Display for Warning {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} [{}]", self.text, self.rule)
    }
}

/// What was found out about one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteReport {
    /// The replaced function.
    pub function: String,
    /// Its window.
    pub window: WindowFigures,
    /// What compiled it, with its options, where the debug information tells.
    pub producer: Option<String>,
    /// The debug information covers the function, so that inlined copies were looked up, not guessed.
    pub has_debug_info: bool,
    /// Inlined copies, clones and the like that the options let pass.
    pub inlined_copies: Vec<InlinedCopy>,
    /// Registers that the new function changes and the old one leaves alone; looked at only where a caller could know.
    pub new_clobbers: Vec<&'static str>,
}

/// The judge's yes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What the user should know.
    pub warnings: Vec<Warning>,
    /// One report for each site, in the package's order.
    pub sites: Vec<SiteReport>,
}

impl Verdict {
    fn warn(&mut self, rule: &'static str, text: String) {
        self.warnings.push(Warning { rule, text });
    }
    /// Turns a refusal into a warning where `allowed`.
    fn allow(&mut self, allowed: bool, result: Result<(), JudgeError>) -> Result<(), JudgeError> {
        match result {
            Err(e) if allowed => {
                self.warn(e.rule(), format!("{e}"));
                Ok(())
            }
            other => other,
        }
    }
}

/// Judges every site of `package`, and fills its `pad`, `window`, `expected` and `body`.
///
/// # Errors
/// [`JudgeError`], the first reason found not to replace a function; the package is as it was then.
pub fn judge(
    arch: &dyn Arch,
    decoder: &dyn Decoder,
    program: &Program<'_>,
    package: &mut Package,
    options: &JudgeOptions,
) -> Result<Verdict, JudgeError> {
    let watch: Vec<(u64, u64)> = package.sites.iter().map(|s| window::watched(s.entry)).collect();
    let listing = Listing::new(arch, decoder, program, &watch);
    let mut verdict = Verdict::default();

    let judged: Vec<Judged> = package.sites.iter().map(|s| window::judge(&listing, s)).collect::<Result<_, _>>()?;
    for (site, j) in package.sites.iter().zip(&judged) {
        if let Some(at) = j.figures.return_inside {
            verdict.warn(
                "return-in-window",
                format!("`{}`: a call's return address, {at}, lies in the overwritten bytes", site.old),
            );
        }
        for other in window::others(&listing, site) {
            verdict.warn(
                "shared-body",
                format!("`{}` and `{other}` are one body at {}: both are replaced", site.old, site.entry),
            );
        }
        if let Some(part) = j.parts.iter().find(|p| p.decoded < p.end) {
            verdict.warn(
                "part-undecoded",
                format!(
                    "`{}`: the code from {:#x} on can't be decoded; all that may branch there counts",
                    part.name, part.decoded
                ),
            );
        }
    }

    let debug = inlined::read(&listing, &package.sites, &judged);
    if let Some(why) = &debug.broken {
        verdict.warn("broken-debug-info", format!("the debug information can't be read to its end: {why}"));
    }
    for ((site, j), found) in package.sites.iter().zip(&judged).zip(&debug.sites) {
        verdict.allow(options.allow_inlined, clones::judge(&listing, site, &judged))?;
        verdict.allow(options.allow_inlined, inlined::judge(site, found))?;
        // Where all copies are known and replaced, nobody needs to call it.
        if !found.listed {
            verdict.allow(options.allow_inlined, callers::judge(&listing, site, j, &judged))?;
        }
        if !found.known {
            let (refusal, warning) = similar::judge(&listing, site, j, &judged);
            if let Some(text) = warning {
                verdict.warn("looks-inlined", text);
            }
            verdict.allow(options.allow_inlined, refusal)?;
            verdict.warn(
                "no-debug-info",
                format!("`{}`: without debug information inlined copies of it can't be excluded", site.old),
            );
        }
    }

    for ((site, j), found) in package.sites.iter().zip(&judged).zip(debug.sites) {
        let mut new_clobbers = Vec::new();
        if found.producer.as_deref().is_none_or(inlined::has_ipa_ra) {
            let (refusal, warning) = clobbers::judge(&listing, package, site, j, &judged, &mut new_clobbers);
            if let Some(text) = warning {
                verdict.warn("many-callers", text);
            }
            verdict.allow(options.allow_clobbers, refusal)?;
        }
        verdict.sites.push(SiteReport {
            function: site.old.clone(),
            window: j.figures.clone(),
            producer: found.producer,
            has_debug_info: found.known,
            inlined_copies: found.copies,
            new_clobbers,
        });
    }

    for (site, j) in package.sites.iter_mut().zip(judged) {
        site.pad = j.figures.pad;
        site.window = j.figures.window;
        site.expected = j.expected;
        site.body = j.body;
    }
    Ok(verdict)
}
