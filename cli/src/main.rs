//! `tfix`: replaces functions in programs that must not stop.

mod cmd;
mod failure;
mod output;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Replaces functions in programs that must not stop.
///
/// Exit codes: 0 done; 1 refused, nothing was touched; 2 usage or bad input; 3 failed and rolled back.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    /// Architecture of the patch (default: the program's)
    #[arg(long, global = true, value_name = "ARCH")]
    arch: Option<String>,
    /// Machine-readable output
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Gen(cmd::generate::Args),
    Fix(cmd::fix::Args),
    List(cmd::list::Args),
    Revert(cmd::revert::Args),
    Inspect(cmd::inspect::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = output::Context { json: cli.json, arch: cli.arch };
    let result = match cli.verb {
        Verb::Gen(a) => cmd::generate::run(&a, &context),
        Verb::Fix(a) => cmd::fix::run(&a, &context),
        Verb::List(a) => cmd::list::run(&a, &context),
        Verb::Revert(a) => cmd::revert::run(&a, &context),
        Verb::Inspect(a) => cmd::inspect::run(&a, &context),
    };
    match result {
        Ok(report) => report.print(&context),
        Err(failure) => failure.print(&context),
    }
}
