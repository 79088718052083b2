//! A process that is patched while it prints lines.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use serde_json::Value;

use crate::tool::Outcome;
use crate::{DEADLINE, Snapshot};

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    ended: bool,
}

/// A running target; it ends when this is dropped.
pub struct Victim {
    child: Child,
    /// The process to patch; another one than the child where the child is a wrapper.
    target: i32,
    stdin: Option<ChildStdin>,
    output: Arc<(Mutex<Output>, Condvar)>,
    cursor: usize,
}

/// A field of /proc/PID/status.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
}

/// `R`, `S`, `T`, `t`, `Z` ...; none once the process is gone.
pub fn process_state(pid: i32) -> Option<char> {
    status_field(pid, "State")?.chars().next()
}

impl Victim {
    /// Starts a program.
    pub fn start(program: &Path) -> Self {
        Self::start_with::<&str>(program, &[])
    }

    /// Starts a program with arguments.
    pub fn start_with<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts a prepared command and waits until it has printed something: its libraries are loaded by then.
    pub fn spawn(command: Command) -> Self {
        let victim = Self::spawn_standing(command);
        crate::until("the first line of the victim", || {
            let output = victim.output.0.lock().expect("no panic while locked");
            assert!(!output.ended, "the victim ended before its first line");
            (!output.lines.is_empty()).then_some(())
        });
        victim
    }

    /// Starts a prepared command that prints nothing before it is told to run.
    pub fn spawn_standing(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // A test that is killed must not leave its victim behind.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Where Yama restricts ptrace to descendants, let tfix (our sibling) in; elsewhere this fails quietly.
                libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("piped");
        let output: Arc<(Mutex<Output>, Condvar)> = Arc::default();
        let shared = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut bytes = Vec::new();
            loop {
                bytes.clear();
                let more = reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0);
                let mut output = shared.0.lock().expect("no panic while locked");
                if more {
                    output.lines.push(String::from_utf8_lossy(&bytes).trim_end().to_owned());
                } else {
                    output.ended = true;
                }
                shared.1.notify_all();
                if !more {
                    break;
                }
            }
        });
        let target = i32::try_from(child.id()).expect("a pid");
        Self { child, target, stdin, output, cursor: 0 }
    }

    /// The process to patch.
    pub fn pid(&self) -> i32 {
        self.target
    }

    /// The same as a command-line argument.
    pub fn pid_text(&self) -> String {
        self.target.to_string()
    }

    /// Names the process to patch where the child is a wrapper around it.
    pub fn set_pid(&mut self, pid: i32) {
        self.target = pid;
    }

    /// The next line.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.wait_for("a line", |_| true)
    }

    /// The next line that fits; those before it are passed over.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, mut fits: impl FnMut(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        let mut output = self.output.0.lock().expect("no panic while locked");
        loop {
            while let Some(line) = output.lines.get(self.cursor) {
                self.cursor += 1;
                if fits(line) {
                    return line.clone();
                }
            }
            let now = Instant::now();
            if output.ended || now >= end {
                let ended = if output.ended { "its output ended" } else { "time is up" };
                let recent = output.lines[output.lines.len().saturating_sub(20)..].join("\n  ");
                let state = process_state(self.target);
                drop(output);
                let status = self.child.try_wait();
                panic!("waited for {what}, but {ended} ({status:?}, state {state:?}); its last lines:\n  {recent}");
            }
            output = self.output.1.wait_timeout(output, end - now).expect("no panic while locked").0;
        }
    }

    /// Waits for the line `text`.
    #[track_caller]
    pub fn wait_line(&mut self, text: &str) {
        self.wait_for(&format!("`{text}`"), |line| line == text);
    }

    /// The behaviour has changed for good: after the first line that fits, `count` more fit, one after the other.
    #[track_caller]
    pub fn settles(&mut self, what: &str, count: usize, fits: impl Fn(&str) -> bool) {
        self.wait_for(what, &fits);
        self.keeps(what, count, fits);
    }

    /// The next `count` lines fit, without exception.
    #[track_caller]
    pub fn keeps(&mut self, what: &str, count: usize, fits: impl Fn(&str) -> bool) {
        for _ in 0..count {
            let line = self.line();
            assert!(fits(&line), "expected {what}, but there came `{line}`");
        }
    }

    /// Passes over all lines that have arrived.
    pub fn skip_arrived(&mut self) {
        self.cursor = self.output.0.lock().expect("no panic while locked").lines.len();
    }

    /// All lines that have arrived.
    pub fn lines_so_far(&self) -> Vec<String> {
        self.output.0.lock().expect("no panic while locked").lines.clone()
    }

    /// Passes over what was printed up to now and shows that the process still prints.
    #[track_caller]
    pub fn still_prints(&mut self) {
        self.skip_arrived();
        for _ in 0..3 {
            self.line();
        }
    }

    /// Sends a line to its standard input.
    pub fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("piped");
        writeln!(stdin, "{text}").expect("the victim reads its input");
        stdin.flush().expect("the victim reads its input");
    }

    /// Ends it and waits until it is gone.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it, but leaves the zombie until this is dropped.
    pub fn end_unreaped(&mut self) {
        let _ = self.child.kill();
        crate::until("the zombie", || (process_state(self.target) == Some('Z')).then_some(()));
    }

    /// Waits until every thread sleeps in a system call, as seen three times in a row.
    pub fn wait_blocked(&self) {
        let mut seen = 0;
        crate::until("the target to block", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.target)).expect("a live victim");
            let asleep = tasks.flatten().all(|task| {
                let tid = task.file_name().to_string_lossy().parse().expect("a tid");
                process_state(tid) == Some('S')
            });
            seen = if asleep { seen + 1 } else { 0 };
            (seen == 3).then_some(())
        });
    }

    /// Its code and mappings.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self.target)
    }

    /// Nobody holds it: not stopped, not traced.
    #[track_caller]
    pub fn assert_free(&self) {
        let tracer = status_field(self.target, "TracerPid");
        assert_eq!(tracer.as_deref(), Some("0"), "somebody still traces the target");
        let state = process_state(self.target);
        assert!(matches!(state, Some('R' | 'S' | 'D')), "the target is in state {state:?}");
    }

    /// `tfix fix` on it.
    pub fn fix(&self, package: &Path, extra: &[&str]) -> Outcome {
        let mut arguments = vec!["fix".into(), self.pid_text().into(), package.as_os_str().to_owned()];
        arguments.extend(extra.iter().map(Into::into));
        crate::run(&arguments)
    }

    /// `tfix revert` on it; all further arguments follow the pid.
    pub fn revert(&self, extra: &[&str]) -> Outcome {
        let mut arguments = vec!["revert".into(), self.pid_text().into()];
        arguments.extend(extra.iter().map(Into::into));
        crate::run(&arguments)
    }

    /// The patches that `tfix list` shows in it.
    #[track_caller]
    pub fn patches(&self) -> Vec<Value> {
        let outcome = crate::tfix!["list", self.pid_text(), "--json"];
        let answer = outcome.done().json();
        let process = answer["processes"].as_array().into_iter().flatten().find(|p| p["pid"] == self.target);
        process.and_then(|p| p["patches"].as_array().cloned()).unwrap_or_default()
    }

    /// Names of the patches with this state.
    #[track_caller]
    pub fn patches_in_state(&self, state: &str) -> Vec<String> {
        self.patches()
            .iter()
            .filter(|p| p["state"] == state)
            .map(|p| p["name"].as_str().expect("a name").to_owned())
            .collect()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.end();
    }
}
