//! Stubs of the gdb remote protocol: gdbserver, and the emulator's.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::{Lab, Victim};

/// A gdbserver; it ends when this is dropped.
pub struct Gdbserver {
    child: Child,
    port: u16,
    /// Kept open: it goes on writing there.
    _stderr: BufReader<ChildStderr>,
}

impl Gdbserver {
    /// One that serves no process yet, and stays when a client leaves.
    pub fn multi() -> Self {
        Self::start(&["--multi"], &[])
    }

    /// One that attaches to a process at once, and ends when its client leaves.
    pub fn attached(pid: i32) -> Self {
        Self::start(&["--attach"], &[&pid.to_string()])
    }

    fn start(before: &[&str], behind: &[&str]) -> Self {
        let mut command = Command::new("gdbserver");
        // Port 0: the system chooses one that is free.
        command.args(before).arg("127.0.0.1:0").args(behind);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("gdbserver is installed");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        let port = loop {
            let from = said.len();
            assert!(stderr.read_line(&mut said).is_ok_and(|n| n > 0), "gdbserver ended: {said}");
            if let Some(port) = said[from..].trim().strip_prefix("Listening on port ") {
                break port.parse().expect("a port");
            }
        };
        Self { child, port, _stderr: stderr }
    }

    /// What `--remote` takes.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Gdbserver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a program under a user-mode emulator; it stands at its first instruction. Returns it, and what `--remote` takes.
pub fn emulated(lab: &Lab, emulator: &str, options: &[&str], program: &Path, arguments: &[&str]) -> (Victim, String) {
    let socket = lab.path("stub");
    let mut command = Command::new(emulator);
    command.args(options).arg("-g").arg(&socket).arg(program).args(arguments);
    let victim = Victim::spawn_standing(command);
    crate::until("the emulator to listen", || listens(&socket).then_some(()));
    (victim, format!("unix:{}", socket.display()))
}

/// Is somebody listening at this socket file? By the flag __SO_ACCEPTCON in /proc/net/unix: to try would be to connect.
pub fn listens(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("a Linux host");
    let path = socket.to_str().expect("UTF-8");
    sockets.lines().any(|l| l.split_whitespace().nth(3) == Some("00010000") && l.ends_with(path))
}
