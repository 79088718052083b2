//! Stubs of the gdb remote protocol: gdbserver, here and in guests.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use tempfile::TempDir;
use tigerfix::arch::{self, AnyArch};
use tigerfix::gdb::{Address, GdbTarget, Options, Stub};
use tigerfix::model::Package;
use tigerfix::package::PackageReader;

use crate::guest::{Guest, Program};

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

/// A gdbserver in a guest, at its end of a line that it shares with nobody. As a serial line has none, it has no beginning
/// and end of connections: whoever comes next goes on where the last one stopped.
pub struct GuestGdbserver {
    program: Program,
    line: PathBuf,
    dir: TempDir,
    /// The host's end.
    far: UnixStream,
    over: Arc<AtomicBool>,
}

/// Ports that are in use, of all guests.
static PORTS: (Mutex<Option<HashSet<PathBuf>>>, Condvar) = (Mutex::new(None), Condvar::new());

fn take_port(guest: &Guest) -> (u8, PathBuf) {
    let mut taken = PORTS.0.lock().expect("no panic while locked");
    loop {
        let set = taken.get_or_insert_default();
        if let Some(port) = (2..=4).find(|n| set.insert(guest.port(*n))) {
            return (port, guest.port(port));
        }
        taken = PORTS.1.wait(taken).expect("no panic while locked");
    }
}

impl GuestGdbserver {
    /// One that serves no process yet.
    pub fn start(guest: &Arc<Guest>) -> Self {
        let (port, line) = take_port(guest);
        // Before the server opens it: a line with nobody at the far end has ended for it.
        let far = UnixStream::connect(&line).expect("qemu listens");
        let device = format!("/dev/vport0p{port}");
        let program = guest
            .spawn(&["/usr/bin/gdbserver", "--multi", &device])
            .unwrap_or_else(|e| panic!("gdbserver in guest {}: {e}", guest.name()));
        let dir = tempfile::Builder::new().prefix("tfix-line-").tempdir().expect("temporary directory");
        let listener = UnixListener::bind(dir.path().join("line")).expect("own directory");
        let mut to = far.try_clone().expect("a socket");
        let mut from = far.try_clone().expect("a socket");
        let client: Arc<Mutex<Option<UnixStream>>> = Arc::default();
        let here = Arc::clone(&client);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                if let Some(c) = &mut *here.lock().expect("no panic while locked") {
                    // One that has left misses it.
                    let _ = c.write_all(&bytes[..n]);
                }
            }
            // Ends the other thread, too.
            let _ = here.lock().expect("no panic while locked").take().map(|c| c.shutdown(Shutdown::Both));
        });
        let over: Arc<AtomicBool> = Arc::default();
        let ended = Arc::clone(&over);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                *client.lock().expect("no panic while locked") = stream.try_clone().ok();
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    if to.write_all(&bytes[..n]).is_err() {
                        return;
                    }
                }
            }
        });
        Self { program, line, dir, far, over }
    }

    /// What `--remote` takes.
    pub fn address(&self) -> String {
        format!("unix:{}", self.dir.path().join("line").display())
    }
}

impl Drop for GuestGdbserver {
    fn drop(&mut self) {
        self.program.signal(libc::SIGKILL);
        // Nobody may have the port before it is closed there.
        let _ = self.program.wait_unless_gone();
        let _ = self.far.shutdown(Shutdown::Both);
        // The thread that waits for clients sees it at the next one.
        self.over.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(self.dir.path().join("line")));
        let mut taken = PORTS.0.lock().expect("no panic while locked");
        taken.get_or_insert_default().remove(&self.line);
        PORTS.1.notify_all();
    }
}

/// Comes to what is behind a stub, with a package for it.
pub fn open(at: &str, program: &Path, package: &Path) -> (GdbTarget, AnyArch, Package) {
    let bytes = std::fs::read(package).expect("gen wrote it");
    let package = PackageReader::parse(&bytes).expect("a package").to_package();
    let back_end = arch::for_ident(&package.ident).expect("a back end");
    let address: Address = at.parse().expect("an address");
    let mut stub = Stub::connect(&address, None).unwrap_or_else(|e| panic!("{at}: {e}"));
    let ident = stub.ident().expect("memory can be read").expect("a program");
    assert!(back_end.accepts(&ident).is_ok(), "the stub tells the architecture: {ident:?}");
    // What the stub can't give: the unwind tables of static programs have no search table in memory.
    let program = Some((program.display().to_string(), std::fs::read(program).expect("compiled")));
    let target =
        GdbTarget::new(stub, back_end, Options { program, area: None }).unwrap_or_else(|e| panic!("{at}: {e}"));
    (target, back_end, package)
}

/// Is somebody listening at this socket file? By the flag __SO_ACCEPTCON in /proc/net/unix: to try would be to connect.
pub(crate) fn listens(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("a Linux host");
    let path = socket.to_str().expect("UTF-8");
    sockets.lines().any(|l| l.split_whitespace().nth(3) == Some("00010000") && l.ends_with(path))
}
