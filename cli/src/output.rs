//! What verbs print when they succeed.

use serde_json::Value;
use std::io::Write as _;
use std::process::ExitCode;

/// Options that all verbs share.
pub struct Context {
    /// `--json`
    pub json: bool,
    /// `--arch`
    pub arch: Option<String>,
}

/// The result of a verb, in both forms.
pub struct Report {
    /// Lines for people.
    pub text: String,
    /// The same for programs.
    pub json: Value,
    /// (rule, message) of each warning.
    pub warnings: Vec<(String, String)>,
}

impl Report {
    /// Prints it; the exit code is 0 unless the output could not be written.
    pub fn print(mut self, context: &Context) -> ExitCode {
        for (rule, message) in &self.warnings {
            eprintln!("tfix: warning [{rule}]: {message}");
        }
        let out = if context.json {
            if let Some(object) = self.json.as_object_mut() {
                let list: Vec<Value> = self
                    .warnings
                    .iter()
                    .map(|(rule, message)| serde_json::json!({"rule": rule, "message": message}))
                    .collect();
                object.insert("warnings".into(), list.into());
            }
            format!("{}\n", self.json)
        } else {
            self.text
        };
        // A closed pipe (`tfix list | head`) is no reason to panic.
        match std::io::stdout().lock().write_all(out.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(2),
        }
    }
}

/// An address as people and programs read it.
pub fn address(a: u64) -> String {
    format!("{a:#x}")
}

/// Microseconds as milliseconds with two digits.
pub fn millis(us: u64) -> String {
    format!("{}.{:02}", us / 1000, us % 1000 / 10)
}

/// "1 function", "2 functions".
pub fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}
