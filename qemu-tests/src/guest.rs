//! Linux systems of other architectures under qemu, in which the same tests run.
//!
//! `scripts/guests.sh` makes them and says how to start one; the process in them that does as it is told is
//! `scripts/guests/agent.c`, where the protocol is described. A guest starts from a saved state, which takes less than a
//! second, and ends with the last test that uses it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak, mpsc};
use std::time::Instant;

use tempfile::TempDir;
use tigerfix_core::field::Endian;

use crate::tool::Outcome;
use crate::victim::Lines;
use crate::{DEADLINE, repository};

mod clock;

/// Names of all guests.
pub const GUESTS: [&str; 5] = ["mipsel", "mips", "mips64el", "aarch64", "aarch64_max"];

/// Where tfix lies in a guest.
const TFIX: &str = "/tmp/tfix";

/// A message of the agent.
struct Message {
    kind: u8,
    bytes: Vec<u8>,
}

/// What is known of a program in the guest.
#[derive(Default)]
struct Running {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Where standard output goes as well, line by line.
    lines: Option<Lines>,
    status: Option<ExitStatus>,
}

#[derive(Default)]
struct State {
    next: u32,
    replies: HashMap<u32, Message>,
    programs: HashMap<u32, Running>,
    /// The guest is gone.
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    /// Takes what the agent says, until it is gone.
    fn listen(&self, from: &UnixStream) {
        let mut from = BufReader::with_capacity(1 << 16, from);
        loop {
            let mut header = [0; 12];
            let word = |at: usize, h: &[u8; 12]| u32::from_be_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
            let mut message = || {
                from.read_exact(&mut header)?;
                let mut bytes = vec![0; word(8, &header) as usize];
                from.read_exact(&mut bytes)?;
                io::Result::Ok((word(4, &header), Message { kind: header[0], bytes }))
            };
            let news = message();
            let mut state = self.lock();
            match news {
                Ok((id, m)) => state.take(id, m),
                Err(_) => {
                    state.ended = true;
                    for program in state.programs.values_mut() {
                        program.lines.take().inspect(Lines::end);
                    }
                }
            }
            self.news.notify_all();
            if state.ended {
                return;
            }
        }
    }
}

impl State {
    fn take(&mut self, id: u32, m: Message) {
        match m.kind {
            b'O' => {
                let program = self.programs.entry(id).or_default();
                match &program.lines {
                    Some(lines) => lines.push(&m.bytes),
                    None => program.stdout.extend(m.bytes),
                }
            }
            b'e' => self.programs.entry(id).or_default().stderr.extend(m.bytes),
            b'X' => {
                let program = self.programs.entry(id).or_default();
                program.status = Some(ExitStatus::from_raw(number(&m.bytes) as i32));
                program.lines.take().inspect(Lines::end);
            }
            _ => {
                self.replies.insert(id, m);
            }
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}

/// A running guest.
pub struct Guest {
    name: String,
    shared: Arc<Shared>,
    /// Where messages to the agent go.
    control: Mutex<UnixStream>,
    /// qemu's pid, and what ends the thread that started it.
    qemu: (u32, Option<mpsc::Sender<()>>),
    keeper: Option<std::thread::JoinHandle<()>>,
    sockets: TempDir,
}

/// Calls scripts/guests.sh, which makes what is missing.
fn script(verb: &str, name: &str) {
    let script = repository().join("scripts/guests.sh");
    let done = Command::new("bash")
        .arg(&script)
        .args([verb, name])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    let said = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(done.status.success(), "guests.sh {verb} {name}\n{}{}", said(&done.stdout), said(&done.stderr));
}

/// Where guests.sh keeps guests.
fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = || set("HOME").expect("HOME is set").join(".cache");
    set("TFIX_CACHE").unwrap_or_else(|| set("XDG_CACHE_HOME").unwrap_or_else(home).join("tfix")).join("guests")
}

/// Where guests.sh puts what it builds of this clone.
fn output() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from).join("guests")
}

/// The command to start a guest with, its state and sockets filled in.
fn command(dir: &Path, sockets: &Path) -> Command {
    let text = std::fs::read_to_string(dir.join("command")).expect("guests.sh has made it");
    let filled = |line: &str| {
        line.replace("@GUEST@", dir.to_str().expect("UTF-8")).replace("@SOCKETS@", sockets.to_str().expect("UTF-8"))
    };
    let mut words = text.lines().map(filled);
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).args(["-monitor", "none", "-S"]);
    for (option, name) in [("-qmp", "monitor"), ("-gdb", "stub")] {
        command.arg(option).arg(format!("unix:{},server=on,wait=off", sockets.join(name).display()));
    }
    command
}

/// Starts a process that ends with this one. The kernel counts the end of the thread that started it for that, so a
/// thread of its own does, and waits for it.
fn keep(mut command: Command) -> (u32, mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (started, pid) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let keeper = std::thread::spawn(move || {
        // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child: Child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let _ = started.send(child.id());
        // Until the other end is dropped.
        let _ = ended.recv();
        let _ = child.kill();
        let _ = child.wait();
    });
    (pid.recv().expect("qemu is installed"), end, keeper)
}

impl Guest {
    /// The guest of that name, which the tests of a process share; it is made, built and started where need be.
    pub fn get(name: &str) -> Arc<Guest> {
        Self::shared(name, Guest::start)
    }

    /// The same for test programs that need no tfix in it.
    pub fn bare(name: &str) -> Arc<Guest> {
        Self::shared(name, Guest::start_bare)
    }

    fn shared(name: &str, start: impl Fn(&str) -> Guest) -> Arc<Guest> {
        type Slot = Mutex<Weak<Guest>>;
        static GUESTS_HERE: OnceLock<Mutex<HashMap<String, Arc<Slot>>>> = OnceLock::new();
        let guests = GUESTS_HERE.get_or_init(Mutex::default);
        let slot = Arc::clone(guests.lock().expect("no panic while locked").entry(name.to_owned()).or_default());
        // One that failed to start leaves a poisoned lock: then all fail.
        let mut slot = slot.lock().unwrap_or_else(|_| panic!("guest {name} did not start"));
        slot.upgrade().unwrap_or_else(|| {
            let guest = Arc::new(start(name));
            *slot = Arc::downgrade(&guest);
            guest
        })
    }

    /// Starts a guest of one's own, with a fresh tfix in it.
    pub fn start(name: &str) -> Guest {
        let guest = Guest::start_bare(name);
        let binary = Guest::tfix(name);
        guest.write(TFIX, 0o755, &std::fs::read(&binary).unwrap_or_else(|e| panic!("{}: {e}", binary.display())));
        guest
    }

    /// tfix for a guest, built if it is not up to date.
    pub fn tfix(name: &str) -> PathBuf {
        static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let mut built = BUILT.lock().unwrap_or_else(|_| panic!("tfix could not be built"));
        if !built.iter().any(|b| b == name) {
            script("tfix", name);
            built.push(name.to_owned());
        }
        output().join(format!("tfix-{name}"))
    }

    /// Starts a guest with nothing but its system in it.
    pub fn start_bare(name: &str) -> Guest {
        script("prepare", name);
        let sockets = tempfile::Builder::new().prefix("tfix-guest-").tempdir().expect("temporary directory");
        let mut command = command(&cache().join(name), sockets.path());
        let log = std::fs::File::create(sockets.path().join("qemu")).expect("own directory");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let (pid, end, keeper) = keep(command);
        let control = crate::until("qemu's socket", || {
            assert!(!keeper.is_finished(), "qemu did not start");
            UnixStream::connect(sockets.path().join("port1")).ok()
        });
        let shared: Arc<Shared> = Arc::default();
        let guest = Guest {
            name: name.to_owned(),
            shared: Arc::clone(&shared),
            control: Mutex::new(control.try_clone().expect("a socket")),
            qemu: (pid, Some(end)),
            keeper: Some(keeper),
            sockets,
        };
        std::thread::spawn(move || shared.listen(&control));
        let socket = |name: &str| guest.sockets.path().join(name);
        if guest.is_mips() {
            clock::start(&socket("monitor"), &socket("stub"), guest.endian());
        } else {
            clock::go_on(&socket("monitor"));
        }
        guest
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn is_mips(&self) -> bool {
        self.name.starts_with("mips")
    }

    /// Prefix of the compilers for it, as `mips-linux-gnu`.
    pub fn triple(&self) -> &'static str {
        match self.name.as_str() {
            "aarch64" | "aarch64_max" => "aarch64-linux-gnu",
            "mips64el" => "mips64el-linux-gnuabi64",
            "mips" => "mips-linux-gnu",
            _ => "mipsel-linux-gnu",
        }
    }

    /// Number of SIGUSR1 (kernel arch/mips/include/uapi/asm/signal.h).
    pub fn sigusr1(&self) -> i32 {
        if self.is_mips() { 16 } else { libc::SIGUSR1 }
    }

    /// Number of an error that is not the same everywhere: ETIMEDOUT.
    pub fn etimedout(&self) -> i32 {
        if self.is_mips() { 145 } else { libc::ETIMEDOUT }
    }

    /// Waits for something that the agent says.
    #[track_caller]
    fn wait<T>(&self, what: &str, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return value;
            }
            let now = Instant::now();
            if state.ended || now >= end {
                let why = if state.ended { "it is gone" } else { "time is up" };
                drop(state);
                let log = |n: &str| std::fs::read_to_string(self.sockets.path().join(n)).unwrap_or_default();
                panic!("waited for {what} in guest {}, but {why}\n{}{}", self.name, log("qemu"), log("console"));
            }
            state = self.shared.news.wait_timeout(state, end - now).expect("no panic while locked").0;
        }
    }

    fn new_id(&self) -> u32 {
        let mut state = self.shared.lock();
        state.next += 1;
        state.next
    }

    fn tell(&self, kind: u8, id: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(id.to_be_bytes());
        bytes.extend(u32::try_from(len).expect("below 4 GiB").to_be_bytes());
        bytes.extend(parts.concat());
        let mut control = self.control.lock().expect("no panic while locked");
        // If it fails, the guest is gone, and the answer will be missed.
        let _ = control.write_all(&bytes);
    }

    /// The agent's answer: its kind and contents, or the system's error.
    #[track_caller]
    fn ask(&self, what: &str, kind: u8, id: u32, parts: &[&[u8]]) -> io::Result<Vec<u8>> {
        self.tell(kind, id, parts);
        let m = self.wait(what, |state| state.replies.remove(&id));
        if m.kind == b'E' { Err(io::Error::from_raw_os_error(number(&m.bytes) as i32)) } else { Ok(m.bytes) }
    }

    /// Writes a file.
    #[track_caller]
    pub fn write(&self, path: &str, mode: u32, contents: &[u8]) {
        let parts: [&[u8]; 4] = [&mode.to_be_bytes(), path.as_bytes(), &[0], contents];
        let done = self.ask(&format!("the write of {path}"), b'W', self.new_id(), &parts);
        done.unwrap_or_else(|e| panic!("{path} in guest {}: {e}", self.name));
    }

    /// Writes bytes into a file that is there, which may be mapped.
    #[track_caller]
    pub fn write_at(&self, path: &str, offset: u64, bytes: &[u8]) {
        let parts: [&[u8]; 4] = [&offset.to_be_bytes(), path.as_bytes(), &[0], bytes];
        let done = self.ask(&format!("the write to {path}"), b'U', self.new_id(), &parts);
        done.unwrap_or_else(|e| panic!("{path} in guest {}: {e}", self.name));
    }

    /// Byte order of its numbers.
    pub fn endian(&self) -> Endian {
        if self.name == "mips" { Endian::Big } else { Endian::Little }
    }

    /// Size of an address, bytes.
    pub fn word(&self) -> usize {
        if matches!(self.name.as_str(), "mips" | "mipsel") { 4 } else { 8 }
    }

    /// Copies a file into the guest's /tmp, under the name of its directory and its own, and with its mode; returns its path
    /// there.
    #[track_caller]
    pub fn copy(&self, file: &Path) -> String {
        use std::os::unix::fs::PermissionsExt;
        let name = file.file_name().and_then(OsStr::to_str).expect("a file name");
        let dir = file.parent().and_then(Path::file_name).and_then(OsStr::to_str).expect("a directory's name");
        let path = format!("/tmp/{dir}/{name}");
        let mode = std::fs::metadata(file).map(|m| m.permissions().mode() & 0o777);
        let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.write(&path, mode.unwrap_or(0o755), &bytes);
        path
    }

    /// Up to `len` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// What the guest's system says.
    #[track_caller]
    pub fn read_at(&self, path: &str, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        let parts: [&[u8]; 4] = [&offset.to_be_bytes(), &len.to_be_bytes(), path.as_bytes(), &[0]];
        self.ask(&format!("the contents of {path}"), b'R', self.new_id(), &parts)
    }

    /// A whole file.
    ///
    /// # Errors
    /// What the guest's system says.
    #[track_caller]
    pub fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.read_at(path, 0, 64 << 20)
    }

    /// Names in a directory, without `.` and `..`.
    ///
    /// # Errors
    /// What the guest's system says.
    #[track_caller]
    pub fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let names = self.ask(&format!("the names in {path}"), b'L', self.new_id(), &[path.as_bytes(), &[0]])?;
        let names = names.split(|b| *b == 0).map(|n| String::from_utf8_lossy(n).into_owned());
        Ok(names.filter(|n| !matches!(n.as_str(), "" | "." | "..")).collect())
    }

    /// Sends a signal to a process of the guest. Numbers are the guest's.
    ///
    /// # Errors
    /// What the guest's system says.
    #[track_caller]
    pub fn kill(&self, pid: i32, signal: i32) -> io::Result<()> {
        let parts: [&[u8]; 2] = [&pid.to_be_bytes(), &signal.to_be_bytes()];
        self.ask("a signal", b'K', self.new_id(), &parts).map(|_| ())
    }

    fn launch(self: &Arc<Self>, arguments: &[impl AsRef<OsStr>], lines: Option<Lines>) -> io::Result<Program> {
        let id = self.new_id();
        self.shared.lock().programs.insert(id, Running { lines, ..Running::default() });
        let mut bytes = Vec::new();
        for a in arguments {
            bytes.extend(a.as_ref().as_bytes());
            bytes.push(0);
        }
        let what = format!("the start of {}", arguments[0].as_ref().display());
        match self.ask(&what, b'S', id, &[&bytes]) {
            Ok(pid) => Ok(Program { guest: Arc::clone(self), id, pid: number(&pid) as i32 }),
            Err(e) => {
                self.shared.lock().programs.remove(&id);
                Err(e)
            }
        }
    }

    /// Starts a program; the first argument is its path.
    ///
    /// # Errors
    /// What the guest's system says.
    #[track_caller]
    pub fn spawn(self: &Arc<Self>, arguments: &[impl AsRef<OsStr>]) -> io::Result<Program> {
        self.launch(arguments, None)
    }

    /// As [`Guest::spawn`], with its standard output going to `lines`.
    pub(crate) fn spawn_with_lines(
        self: &Arc<Self>,
        arguments: &[impl AsRef<OsStr>],
        lines: Lines,
    ) -> io::Result<Program> {
        self.launch(arguments, Some(lines))
    }

    /// Runs a program to its end.
    #[track_caller]
    pub fn run(self: &Arc<Self>, arguments: &[impl AsRef<OsStr>]) -> Outcome {
        let command = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
        let program = self.spawn(arguments).unwrap_or_else(|e| panic!("{command} in guest {}: {e}", self.name));
        program.finish(format!("[{}] {command}", self.name))
    }

    /// Starts tfix in the guest.
    #[track_caller]
    pub fn start_tfix(self: &Arc<Self>, arguments: &[impl AsRef<OsStr>]) -> Program {
        let mut all: Vec<&OsStr> = vec![TFIX.as_ref()];
        all.extend(arguments.iter().map(AsRef::as_ref));
        self.spawn(&all).unwrap_or_else(|e| panic!("tfix in guest {}: {e}", self.name))
    }

    /// Runs tfix in the guest to its end.
    #[track_caller]
    pub fn run_tfix(self: &Arc<Self>, arguments: &[impl AsRef<OsStr>]) -> Outcome {
        let words: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        self.start_tfix(arguments).finish(format!("[{}] tfix {}", self.name, words.join(" ")))
    }

    /// The host's end of port `number` (2 to 4) of the serial bus: a socket that waits for a connection. In the guest it is
    /// /dev/vport0p2 and so on; a program that opens it there before somebody is connected here reads an end of file.
    pub fn port(&self, number: u8) -> PathBuf {
        self.sockets.path().join(format!("port{number}"))
    }

    /// Powers off, and waits for qemu's end.
    pub fn power_off(mut self) {
        self.tell(b'Q', 0, &[]);
        crate::until("qemu's end", || self.shared.lock().ended.then_some(()));
        self.end();
    }

    fn end(&mut self) {
        self.qemu.1 = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }

    /// Process id of its qemu.
    pub fn qemu_pid(&self) -> u32 {
        self.qemu.0
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

/// A program in a guest; it is ended when this is dropped.
pub struct Program {
    guest: Arc<Guest>,
    id: u32,
    pid: i32,
}

impl Program {
    /// Its process id in the guest.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The guest.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// Does it still run?
    pub fn running(&self) -> bool {
        self.status().is_none()
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.guest.shared.lock().programs.get(&self.id).and_then(|p| p.status)
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        let state = self.guest.shared.lock();
        state.programs.get(&self.id).map_or_else(String::new, |p| String::from_utf8_lossy(&p.stdout).into_owned())
    }

    /// Sends bytes to its standard input; none close it.
    pub fn send(&self, bytes: &[u8]) {
        self.guest.tell(b'I', self.id, &[bytes]);
    }

    /// Sends it a signal (the guest's number), unless it has ended.
    pub fn signal(&self, signal: i32) {
        if self.running() {
            // It may end in between.
            let _ = self.guest.kill(self.pid, signal);
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&self) -> ExitStatus {
        self.guest
            .wait(&format!("the end of process {}", self.pid), |s| s.programs.get(&self.id).and_then(|p| p.status))
    }

    /// Waits for its end, or the guest's.
    pub(crate) fn wait_unless_gone(&self) -> Option<ExitStatus> {
        let mut state = self.guest.shared.lock();
        let end = Instant::now() + DEADLINE;
        loop {
            let status = state.programs.get(&self.id).and_then(|p| p.status);
            let now = Instant::now();
            if status.is_some() || state.ended || now >= end {
                return status;
            }
            state = self.guest.shared.news.wait_timeout(state, end - now).expect("no panic while locked").0;
        }
    }

    /// Waits for its end, and takes what it said.
    #[track_caller]
    pub fn finish(self, command: String) -> Outcome {
        let status = self.wait();
        let program = self.guest.shared.lock().programs.remove(&self.id).unwrap_or_default();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Outcome { command, status, stdout: text(&program.stdout), stderr: text(&program.stderr) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let alive = self.guest.shared.lock().programs.get(&self.id).is_some_and(|p| p.status.is_none());
        if alive && !self.guest.shared.lock().ended {
            self.guest.tell(b'K', 0, &[&self.pid.to_be_bytes(), &libc::SIGKILL.to_be_bytes()]);
        }
    }
}
