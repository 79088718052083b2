//! What verbs print when they don't succeed: the library's error, with the path and the hint added.

use crate::output::Context;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tigerfix::error::{Class, Explain};

/// An error as the user sees it.
#[derive(Debug)]
pub struct Failure {
    class: Class,
    rule: String,
    message: String,
    hint: Option<String>,
    path: Option<PathBuf>,
}

impl<E: Explain> From<&E> for Failure {
    fn from(e: &E) -> Failure {
        Failure {
            class: e.class(),
            rule: e.rule().into(),
            message: e.to_string(),
            hint: e.hint().map(String::from),
            path: None,
        }
    }
}

impl Failure {
    /// Wrong input or usage.
    pub fn bad_input(rule: &str, message: String, hint: Option<&str>) -> Failure {
        Failure { class: Class::BadInput, rule: rule.into(), message, hint: hint.map(String::from), path: None }
    }

    /// Names the file that it is about.
    pub fn at(mut self, path: &Path) -> Failure {
        self.path.get_or_insert_with(|| path.to_owned());
        self
    }

    /// Says what the message is a clause about.
    pub fn about(mut self, what: &str) -> Failure {
        self.message = format!("{what} {}", self.message);
        self
    }

    fn exit(&self) -> u8 {
        match self.class {
            Class::Refused => 1,
            Class::BadInput => 2,
            Class::RolledBack | Class::Failed => 3,
        }
    }

    /// Prints it and gives the exit code.
    pub fn print(self, context: &Context) -> ExitCode {
        let word = match self.class {
            Class::Refused => "refused",
            Class::BadInput => "error",
            Class::RolledBack => "rolled back",
            Class::Failed => "failed",
        };
        let path = self.path.as_ref().map_or(String::new(), |p| format!("{}: ", p.display()));
        eprintln!("tfix: {word} [{}]: {path}{}", self.rule, self.message);
        if let Some(h) = &self.hint {
            eprintln!("  hint: {h}");
        }
        if context.json {
            println!(
                "{}",
                serde_json::json!({
                    "ok": false,
                    "exit": self.exit(),
                    "rule": self.rule,
                    "message": self.message,
                    "hint": self.hint,
                    "path": self.path.as_ref().map(|p| p.display().to_string()),
                })
            );
        }
        ExitCode::from(self.exit())
    }
}
