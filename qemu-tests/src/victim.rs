//! A process that is patched while it prints lines.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use serde_json::Value;

use crate::guest::{Guest, Program};
use crate::tool::Outcome;
use crate::{DEADLINE, Snapshot, read_memory};

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    /// Behind the last end of line.
    rest: Vec<u8>,
    ended: bool,
}

/// The lines that a program prints, as they come.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<(Mutex<Output>, Condvar)>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.0.0.lock().expect("no panic while locked")
    }

    /// Takes a piece of output.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut output = self.lock();
        output.rest.extend(bytes);
        while let Some(end) = output.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = output.rest.drain(..=end).collect();
            output.lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        self.0.1.notify_all();
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        let mut output = self.lock();
        if !output.rest.is_empty() {
            let rest = std::mem::take(&mut output.rest);
            output.lines.push(String::from_utf8_lossy(&rest).trim_end().to_owned());
        }
        output.ended = true;
        self.0.1.notify_all();
    }
}

/// Where a process runs.
#[derive(Clone)]
pub enum Place {
    /// On this machine.
    Here,
    /// In a guest.
    Guest(Arc<Guest>),
}

impl Place {
    /// A file there, of /proc mostly.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        match self {
            Place::Here => std::fs::read(path),
            Place::Guest(g) => g.read(path),
        }
    }

    /// Names in a directory there.
    ///
    /// # Errors
    /// What the system says.
    pub fn list(&self, path: &str) -> std::io::Result<Vec<String>> {
        match self {
            Place::Here => {
                std::fs::read_dir(path)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
            }
            Place::Guest(g) => g.list(path),
        }
    }

    /// Bytes of a process there.
    pub fn memory(&self, pid: i32, address: u64, size: usize) -> Vec<u8> {
        match self {
            Place::Here => read_memory(pid, address, size),
            Place::Guest(g) => {
                let file = format!("/proc/{pid}/mem");
                let bytes = g.read_at(&file, address, u32::try_from(size).expect("below 4 GiB"));
                let bytes = bytes.unwrap_or_else(|e| panic!("{file} at {address:#x}: {e}"));
                assert_eq!(bytes.len(), size, "{file} at {address:#x}");
                bytes
            }
        }
    }

    /// A field of /proc/PID/status of a process there.
    pub fn status_field(&self, pid: i32, name: &str) -> Option<String> {
        let status = self.read(&format!("/proc/{pid}/status")).ok()?;
        let status = String::from_utf8_lossy(&status);
        status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
    }

    /// `R`, `S`, `T`, `t`, `Z` ...; none once the process is gone.
    pub fn process_state(&self, pid: i32) -> Option<char> {
        self.status_field(pid, "State")?.chars().next()
    }
}

enum Process {
    Child { child: Child, stdin: Option<ChildStdin> },
    InGuest(Program),
}

/// A running target; it ends when this is dropped.
pub struct Victim {
    process: Process,
    /// The process to patch; another one than the child where the child is a wrapper.
    target: i32,
    output: Lines,
    cursor: usize,
    /// Through which stub tfix comes to it.
    stub: Option<String>,
}

/// A field of /proc/PID/status.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    Place::Here.status_field(pid, name)
}

/// `R`, `S`, `T`, `t`, `Z` ...; none once the process is gone.
pub fn process_state(pid: i32) -> Option<char> {
    Place::Here.process_state(pid)
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
        Self::spawn_standing(command).begun()
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
        let output = Lines::default();
        let lines = output.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                lines.push(&bytes);
                bytes.clear();
            }
            lines.end();
        });
        let target = i32::try_from(child.id()).expect("a pid");
        Self { process: Process::Child { child, stdin }, target, output, cursor: 0, stub: None }
    }

    /// Starts a program in a guest.
    pub fn start_in<A: AsRef<OsStr>>(guest: &Arc<Guest>, program: &Path, arguments: &[A]) -> Self {
        let path = guest.copy(program);
        let mut all: Vec<&OsStr> = vec![path.as_ref()];
        all.extend(arguments.iter().map(AsRef::as_ref));
        Self::spawn_in(guest, &all)
    }

    /// Starts a program that is in the guest.
    pub fn spawn_in<A: AsRef<OsStr>>(guest: &Arc<Guest>, arguments: &[A]) -> Self {
        let output = Lines::default();
        let program = guest.spawn_with_lines(arguments, output.clone());
        let program = program.unwrap_or_else(|e| panic!("the victim in guest {}: {e}", guest.name()));
        Self { target: program.pid(), process: Process::InGuest(program), output, cursor: 0, stub: None }.begun()
    }

    /// tfix comes to it from this machine, through the stub at this address.
    pub fn behind(mut self, stub: String) -> Self {
        self.stub = Some(stub);
        self
    }

    /// Once it has printed something.
    fn begun(self) -> Self {
        crate::until("the first line of the victim", || {
            let output = self.output.lock();
            assert!(!output.ended || !output.lines.is_empty(), "the victim ended before its first line");
            (!output.lines.is_empty()).then_some(())
        });
        self
    }

    /// Where it runs.
    pub fn place(&self) -> Place {
        match &self.process {
            Process::Child { .. } => Place::Here,
            Process::InGuest(program) => Place::Guest(Arc::clone(program.guest())),
        }
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
        let mut output = self.output.lock();
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
                drop(output);
                let state = self.place().process_state(self.target);
                let status = match &mut self.process {
                    Process::Child { child, .. } => child.try_wait().ok().flatten(),
                    Process::InGuest(program) => program.status(),
                };
                panic!("waited for {what}, but {ended} ({status:?}, state {state:?}); its last lines:\n  {recent}");
            }
            output = self.output.0.1.wait_timeout(output, end - now).expect("no panic while locked").0;
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
        self.cursor = self.output.lock().lines.len();
    }

    /// All lines that have arrived.
    pub fn lines_so_far(&self) -> Vec<String> {
        self.output.lock().lines.clone()
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
        match &mut self.process {
            Process::Child { stdin, .. } => {
                let stdin = stdin.as_mut().expect("piped");
                writeln!(stdin, "{text}").expect("the victim reads its input");
                stdin.flush().expect("the victim reads its input");
            }
            Process::InGuest(program) => program.send(format!("{text}\n").as_bytes()),
        }
    }

    /// Sends SIGUSR1 to the process to patch.
    pub fn user_signal(&self) {
        match &self.process {
            Process::Child { .. } => {
                use nix::sys::signal::{Signal, kill};
                kill(nix::unistd::Pid::from_raw(self.target), Signal::SIGUSR1).expect("own child");
            }
            Process::InGuest(program) => {
                let guest = program.guest();
                guest.kill(self.target, guest.sigusr1()).expect("own process");
            }
        }
    }

    /// Ends it and waits until it is gone.
    pub fn end(&mut self) {
        match &mut self.process {
            Process::Child { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Process::InGuest(program) => {
                program.signal(libc::SIGKILL);
                let _ = program.wait_unless_gone();
            }
        }
    }

    /// Ends it, but leaves the zombie until this is dropped.
    pub fn end_unreaped(&mut self) {
        let Process::Child { child, .. } = &mut self.process else { panic!("a guest's agent takes every zombie") };
        let _ = child.kill();
        crate::until("the zombie", || (process_state(self.target) == Some('Z')).then_some(()));
    }

    /// Waits until every thread sleeps in a system call, as seen three times in a row.
    pub fn wait_blocked(&self) {
        let mut seen = 0;
        let place = self.place();
        crate::until("the target to block", || {
            let tasks = place.list(&format!("/proc/{}/task", self.target)).expect("a live victim");
            let asleep = tasks.iter().all(|tid| place.process_state(tid.parse().expect("a tid")) == Some('S'));
            seen = if asleep { seen + 1 } else { 0 };
            (seen == 3).then_some(())
        });
    }

    /// Its code and mappings.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take_at(&self.place(), self.target)
    }

    /// Nobody holds it: not stopped, not traced.
    #[track_caller]
    pub fn assert_free(&self) {
        let tracer = self.place().status_field(self.target, "TracerPid");
        assert_eq!(tracer.as_deref(), Some("0"), "somebody still traces the target");
        let state = self.place().process_state(self.target);
        assert!(matches!(state, Some('R' | 'S' | 'D')), "the target is in state {state:?}");
    }

    /// Runs tfix on it, the one that is where the target is, or behind a stub's line: `verb` and the words behind the process.
    pub fn tfix(&self, verb: &str, words: &[&OsStr]) -> Outcome {
        let pid = self.pid_text();
        let process = match &self.stub {
            Some(stub) => vec!["--remote", stub, "--pid", &pid],
            None => vec![pid.as_str()],
        };
        let mut arguments: Vec<OsString> = vec![verb.into()];
        arguments.extend(process.iter().map(Into::into));
        arguments.extend(words.iter().map(Into::into));
        match &self.process {
            Process::InGuest(program) if self.stub.is_none() => program.guest().run_tfix(&arguments),
            _ => crate::run(&arguments),
        }
    }

    /// `tfix fix` on it.
    pub fn fix(&self, package: &Path, extra: &[&str]) -> Outcome {
        let package = match &self.process {
            Process::InGuest(program) if self.stub.is_none() => program.guest().copy(package).into(),
            _ => package.as_os_str().to_owned(),
        };
        let mut words = vec![package.as_os_str()];
        words.extend(extra.iter().map(OsStr::new));
        self.tfix("fix", &words)
    }

    /// `tfix revert` on it; all further arguments follow the process.
    pub fn revert(&self, extra: &[&str]) -> Outcome {
        self.tfix("revert", &extra.iter().map(OsStr::new).collect::<Vec<_>>())
    }

    /// The patches that `tfix list` shows in it.
    #[track_caller]
    pub fn patches(&self) -> Vec<Value> {
        let outcome = self.tfix("list", &["--json".as_ref()]);
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
