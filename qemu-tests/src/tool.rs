//! Runs the tfix that was built and judges what it answered.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use serde_json::Value;

/// The tfix under test: `$TFIX_BIN`, else the one beside this test in the target directory.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TFIX_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "TFIX_BIN is {}, but there is no such file", path.display());
        return path;
    }
    let own = std::env::current_exe().expect("path of this test");
    let beside = own.ancestors().nth(2).map(|dir| dir.join("tfix"));
    let usual = crate::repository().join("target/debug/tfix");
    [beside, Some(usual)]
        .into_iter()
        .flatten()
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("no tfix to test: run `cargo build -p tfix` first, or set TFIX_BIN"))
}

/// What a run of tfix left.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}\n--- stdout\n{}--- stderr\n{}", self.command, self.status, self.stdout, self.stderr)
    }
}

impl Outcome {
    /// The exit code; a death by signal or a panic is a failure of the test, whatever it wanted to see.
    pub fn code(&self) -> i32 {
        let code = self.status.code().unwrap_or_else(|| panic!("tfix died\n{self}"));
        assert!((0..=3).contains(&code), "undocumented exit code\n{self}");
        assert!(!self.stderr.contains("panicked at"), "tfix panicked\n{self}");
        code
    }

    /// Must have worked.
    #[track_caller]
    pub fn done(&self) -> &Self {
        assert_eq!(self.code(), 0, "expected success\n{self}");
        self
    }

    /// Must have been refused (exit code 1) with a rule, naming all these words.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) -> &Self {
        assert_eq!(self.code(), 1, "expected a refusal\n{self}");
        self.complains("tfix: refused [", words)
    }

    /// Must have been an error of usage or input (exit code 2), naming all these words.
    #[track_caller]
    pub fn bad_input(&self, words: &[&str]) -> &Self {
        assert_eq!(self.code(), 2, "expected an error about the input\n{self}");
        self.complains("tfix: error [", words)
    }

    /// Either of the two, for cases in which both are right.
    #[track_caller]
    pub fn turned_down(&self, words: &[&str]) -> &Self {
        if self.code() == 1 { self.refused(words) } else { self.bad_input(words) }
    }

    #[track_caller]
    fn complains(&self, opening: &str, words: &[&str]) -> &Self {
        assert!(
            self.stderr.lines().any(|l| l.starts_with(opening)),
            "stderr has no line `{opening}rule]: ...`\n{self}"
        );
        let text = self.stderr.to_lowercase();
        for word in words {
            assert!(text.contains(&word.to_lowercase()), "the message does not mention `{word}`\n{self}");
        }
        self
    }

    /// The rule id in the first complaint.
    #[track_caller]
    pub fn rule(&self) -> &str {
        self.stderr
            .lines()
            .find_map(|l| l.strip_prefix("tfix: ")?.split_once('[')?.1.split_once(']'))
            .unwrap_or_else(|| panic!("no rule in the message\n{self}"))
            .0
    }

    /// Must name this rule.
    #[track_caller]
    pub fn by_rule(&self, rule: &str) -> &Self {
        assert_eq!(self.rule(), rule, "another rule than expected\n{self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is no JSON: {e}\n{self}"))
    }
}

/// A run of tfix that has not ended yet.
pub struct Background {
    child: Option<Child>,
    command: String,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Background {
    fn spawn(mut command: Command) -> Self {
        let text = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{text}: {e}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Self { child: Some(child), command: text, stdout, stderr }
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("still owned")
    }

    /// Its process id.
    pub fn pid(&mut self) -> i32 {
        i32::try_from(self.child().id()).expect("a pid")
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.child().try_wait().expect("own child").is_none()
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) {
        if self.running() {
            let pid = nix::unistd::Pid::from_raw(self.pid());
            nix::sys::signal::kill(pid, signal).expect("own child");
        }
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Outcome {
        let command = self.command.clone();
        let status = crate::until(&format!("the end of {command}"), || self.child().try_wait().expect("own child"));
        self.child = None;
        let stdout = self.stdout.take().expect("taken once").join().expect("reader");
        let stderr = self.stderr.take().expect("taken once").join().expect("reader");
        Outcome { command, status, stdout, stderr }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Starts tfix.
pub fn start<A: AsRef<OsStr>>(arguments: &[A]) -> Background {
    let mut command = Command::new(binary());
    command.args(arguments);
    Background::spawn(command)
}

/// Runs tfix to its end.
pub fn run(arguments: &[OsString]) -> Outcome {
    start(arguments).finish()
}

/// Runs a copy of tfix as a user without any right; only root can ask for that.
pub fn run_as_nobody(lab: &crate::Lab, arguments: &[&OsStr]) -> Outcome {
    let copy = lab.path("tfix-for-nobody");
    std::fs::copy(binary(), &copy).expect("copy of tfix");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy).args(arguments);
    Background::spawn(command).finish()
}
