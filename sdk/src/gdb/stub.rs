//! A stub: what it offers, what stands behind it, and the requests that are made of it.
//!
//! Multiprocess thread ids are not asked for: without them `D` needs no process id, and a wrong one there ends some stubs.

use super::connection::Connection;
use super::description::{self, MAX_TEXT, Part};
use super::error::{GdbError, show};
use super::link::Address;
use super::objects::{self, Region};
use super::packet::{number, unescape};
use super::reply::{self, Offers, Stop, StopReply};
use crate::restart::Wait;
use std::time::{Duration, Instant};
use tigerfix_core::arch::{ElfIdent, LinuxAbi};
use tigerfix_core::field::{Endian, load};
use tigerfix_core::program::ident_of;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Taken where the stub does not say (gdb's own default), and the most that is used, bytes.
const PACKET: (usize, usize) = (400, 32 << 10);
/// Objects larger than this are not read, bytes.
const MAX_OBJECT: usize = 16 << 20;
/// More includes than any description has.
const MAX_INCLUDES: usize = 64;

/// What is behind a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Linux process.
    Process,
    /// A processor, without an operating system that we could ask for anything.
    Bare,
}

/// A connected stub. Its target stands, unless it was told to run.
#[derive(Debug)]
pub struct Stub {
    pub(super) line: Connection,
    pub(super) name: String,
    pub(super) offers: Offers,
    pub(super) packet: usize,
    pub(super) kind: Kind,
    /// It stops a running target when it is asked to.
    pub(super) interruptible: bool,
    /// Actions of `vCont`.
    pub(super) vcont: Vec<u8>,
    /// The process that it attached to for us: left and taken up again at will.
    pub(super) attached: Option<u64>,
    /// That process was left, or not taken up yet.
    pub(super) left: bool,
    /// The target is not to be let go at the end: it would run into something of ours.
    pub(super) keep: bool,
    /// The last stop.
    pub(super) stop: Stop,
    /// Signals to be passed on when the target goes on: thread and gdb's number.
    pub(super) signals: Vec<(u64, u8)>,
    /// Does it have host I/O? Unknown before the first request.
    pub(super) files: Option<bool>,
    /// Does it take `X`?
    pub(super) binary: Option<bool>,
    /// Does it take `Z0`?
    pub(super) breakpoints: Option<bool>,
    /// How long the target stood because of us, and since when it does.
    pub(super) stood: Duration,
    pub(super) since: Option<Instant>,
    auxv: Vec<u8>,
    /// How system calls are made in the process that it attaches to, once looked for.
    pub(super) abi: Option<Option<&'static LinuxAbi>>,
    /// What the main thread was seen to wait in before the last stop.
    pub(super) wait: Option<Wait>,
}

impl Stub {
    /// Connects, and stops what is behind the stub if it runs. `pid`: a process to attach to, for stubs that can do so
    /// (`gdbserver --multi`).
    ///
    /// # Errors
    /// [`GdbError`]
    pub fn connect(address: &Address, pid: Option<u64>) -> Result<Stub, GdbError> {
        Self::over(Connection::open(address, PATIENCE)?, &address.to_string(), pid)
    }

    pub(super) fn over(mut line: Connection, address: &str, pid: Option<u64>) -> Result<Stub, GdbError> {
        line.greet()?;
        // Without the first, a description of the processor's registers is kept back by some.
        let offers = Offers::parse(&line.ask(b"qSupported:xmlRegisters=i386;vContSupported+")?);
        if offers.has("QStartNoAckMode") && line.ask(b"QStartNoAckMode")? == b"OK" {
            line.no_acks();
        }
        let packet = offers.packet_size.unwrap_or(PACKET.0).clamp(64, PACKET.1);
        let stop = match pid {
            Some(_) => {
                if line.ask(b"!")? != b"OK" {
                    return Err(GdbError::Lacks { what: "attach to a process (no extended mode)".into() });
                }
                // Not attached yet: it runs.
                line.running = true;
                Stop { signal: 0, thread: None }
            }
            None => {
                let answer = line.ask(b"?")?;
                match reply::stop(&answer) {
                    Some(StopReply::Stopped(stop)) => stop,
                    Some(StopReply::Ended) => {
                        // A server without a process ends with the connection, unless it is told this.
                        line.ask(b"!")?;
                        return Err(GdbError::Lacks { what: "show a process: name one by --pid".into() });
                    }
                    _ => return Err(GdbError::Nonsense { during: "?".into(), answer: show(&answer) }),
                }
            }
        };
        let mut stub = Stub {
            line,
            name: format!("the stub at {address}"),
            offers,
            packet,
            kind: Kind::Bare,
            interruptible: true,
            vcont: Vec::new(),
            attached: pid,
            left: pid.is_some(),
            keep: false,
            stop,
            signals: Vec::new(),
            files: None,
            binary: None,
            breakpoints: None,
            stood: Duration::ZERO,
            since: pid.is_none().then(Instant::now),
            auxv: Vec::new(),
            abi: None,
            wait: None,
        };
        stub.attach_again()?;
        stub.vcont = stub.line.ask(b"vCont?")?;
        stub.auxv = stub.object("auxv", "")?.unwrap_or_default();
        if !stub.auxv.is_empty() {
            stub.kind = Kind::Process;
        }
        // Only qemu knows that question. Its user mode looks at the line only while the program stands.
        let qemu = stub.line.ask(b"qqemu.sstepbits")?;
        stub.interruptible = stub.kind == Kind::Bare || qemu.is_empty() || reply::is_error(&qemu);
        if stub.offers.has("QPassSignals") {
            // Signals go to the program without stopping it, but for those that mean a fault or a stop, and the one
            // that stops it for us (gdb's numbers, include/gdb/signals.def).
            let kept = [2u8, 4, 5, 8, 10, 11, 17];
            let list: Vec<String> = (1..=143).filter(|s| !kept.contains(s)).map(|s| format!("{s:x}")).collect();
            stub.line.ask(format!("QPassSignals:{}", list.join(";")).as_bytes())?;
        }
        Ok(stub)
    }

    /// "the stub at HOST:PORT"
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is behind it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How long the target stood so far because of us.
    #[must_use]
    pub fn stood(&self) -> Duration {
        self.stood + self.since.map_or(Duration::ZERO, |s| s.elapsed())
    }

    /// Asks something while the target stands.
    pub(super) fn ask(&mut self, question: &str) -> Result<Vec<u8>, GdbError> {
        self.line.ask(question.as_bytes())
    }

    /// Asks for something that is either done (`OK`), refused, or not known (`Ok(false)`).
    pub(super) fn order(&mut self, what: &[u8]) -> Result<bool, GdbError> {
        let answer = self.line.ask(what)?;
        match answer.as_slice() {
            b"OK" => Ok(true),
            b"" => Ok(false),
            a if reply::is_error(a) => Err(GdbError::Refused { during: show(what), answer: show(a) }),
            a => Err(GdbError::Nonsense { during: show(what), answer: show(a) }),
        }
    }

    /// Reads a whole `qXfer` object; `None`: the stub does not have it.
    pub(super) fn object(&mut self, object: &str, annex: &str) -> Result<Option<Vec<u8>>, GdbError> {
        self.object_up_to(object, annex, MAX_OBJECT)
    }

    /// The same for one that is text.
    fn text(&mut self, object: &str) -> Result<Option<String>, GdbError> {
        let bytes = self.object_up_to(object, "", objects::MAX_TEXT)?;
        Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
    }

    fn object_up_to(&mut self, object: &str, annex: &str, most: usize) -> Result<Option<Vec<u8>>, GdbError> {
        if !self.offers.has(&format!("qXfer:{object}:read")) {
            return Ok(None);
        }
        let mut out = Vec::new();
        loop {
            let question = format!("qXfer:{object}:read:{annex}:{:x},{:x}", out.len(), self.packet - 8);
            let answer = self.ask(&question)?;
            let (last, data) = match answer.split_first() {
                Some((b'l', data)) => (true, unescape(data)),
                Some((b'm', data)) => (false, unescape(data)),
                _ if answer.is_empty() || reply::is_error(&answer) => return Ok(None),
                _ => return Err(GdbError::Nonsense { during: question, answer: show(&answer) }),
            };
            let stuck = data.is_empty() && !last;
            out.extend(data);
            if stuck || out.len() > most {
                return Err(GdbError::Nonsense { during: question, answer: "an object without end".into() });
            }
            if last {
                return Ok(Some(out));
            }
        }
    }

    /// The target description, includes in place. Empty: the stub has none.
    pub(super) fn description(&mut self) -> Result<Vec<Part>, GdbError> {
        let mut out = Vec::new();
        // Parts that are still to be looked at, the next one last.
        let mut todo = vec![Part::Include("target.xml".into())];
        let (mut includes, mut size) = (0, 0);
        while let Some(part) = todo.pop() {
            let Part::Include(file) = part else {
                out.push(part);
                continue;
            };
            includes += 1;
            let named = file.bytes().all(|b| b.is_ascii_graphic() && b != b':');
            if includes > MAX_INCLUDES || size > MAX_TEXT || !named {
                break;
            }
            let Some(bytes) = self.object("features", &file)? else { continue };
            size += bytes.len();
            let mut parts = description::parts(&String::from_utf8_lossy(&bytes));
            parts.reverse();
            todo.extend(parts);
        }
        Ok(out)
    }

    /// The auxiliary vector, as the stub gives it.
    pub(super) fn auxv(&self) -> &[u8] {
        &self.auxv
    }

    /// Class, byte order and machine of the program, from its header in memory; `None`: there is none to be found.
    ///
    /// # Errors
    /// [`GdbError`]
    pub fn ident(&mut self) -> Result<Option<ElfIdent>, GdbError> {
        // The program's headers follow its first bytes (AT_PHDR is 3). Word size and order are tried: only the right ones lead
        // to an ELF header.
        for (word, endian) in [(8, Endian::Little), (4, Endian::Little), (4, Endian::Big), (8, Endian::Big)] {
            let entries = self.auxv.chunks_exact(2 * word);
            let value =
                |key: u64| entries.clone().find(|e| load(&e[..word], endian) == key).map(|e| load(&e[word..], endian));
            let Some(phdr) = value(3) else { continue };
            let header = if word == 8 { 64 } else { 52 };
            let Some(at) = phdr.checked_sub(header as u64) else { continue };
            if let Ok(bytes) = self.read_bytes(at, header)
                && let Ok(ident) = ident_of(&bytes)
                && ident.is_64 == (word == 8)
                && ident.endian == endian
            {
                return Ok(Some(ident));
            }
        }
        Ok(None)
    }

    /// All threads (processors, where there is no operating system).
    pub(super) fn thread_ids(&mut self) -> Result<Vec<u64>, GdbError> {
        const MOST: usize = 1 << 16;
        let mut out = Vec::new();
        let mut question = "qfThreadInfo";
        loop {
            let answer = self.ask(question)?;
            if question == "qfThreadInfo"
                && (answer.is_empty() || reply::is_error(&answer))
                && let Some(listed) = self.listed_threads()?
            {
                out.extend(listed.into_iter().map(|t| t.0));
                break;
            }
            if answer.is_empty() {
                break;
            }
            let Some(ids) = reply::threads(&answer) else {
                return Err(GdbError::Nonsense { during: question.into(), answer: show(&answer) });
            };
            if ids.is_empty() || out.len() > MOST {
                break;
            }
            out.extend(ids);
            question = "qsThreadInfo";
        }
        if out.is_empty() {
            // A stub that knows no threads has one.
            let current = self.ask("qC")?;
            out.push(current.strip_prefix(b"QC").and_then(reply::thread_id).or(self.stop.thread).unwrap_or(1));
        }
        Ok(out)
    }

    /// The list of threads with their names (GDB manual, "Thread List Format"); `None`: the stub has none.
    pub(super) fn listed_threads(&mut self) -> Result<Option<Vec<(u64, String)>>, GdbError> {
        let Some(text) = self.text("threads")? else { return Ok(None) };
        let nonsense = || GdbError::Nonsense { during: "qXfer:threads:read".into(), answer: show(text.as_bytes()) };
        objects::threads(&text).ok_or_else(nonsense).map(Some)
    }

    /// The memory map (GDB manual, "Memory Map Format"). Empty: the stub has none.
    pub(super) fn memory_map(&mut self) -> Result<Vec<Region>, GdbError> {
        Ok(self.text("memory-map")?.map_or(Vec::new(), |t| objects::memory_map(&t)))
    }

    /// Libraries' paths (GDB manual, "Library List Format for SVR4 Targets", "Library List Format"). Empty: the stub lists none.
    pub(super) fn libraries(&mut self) -> Result<Vec<String>, GdbError> {
        let text = match self.text("libraries-svr4")? {
            Some(text) => Some(text),
            None => self.text("libraries")?,
        };
        Ok(text.map_or(Vec::new(), |t| objects::libraries(&t)))
    }

    /// The program's path (GDB manual, "General Query Packets", `qXfer:exec-file:read`); `None`: the stub does not tell.
    pub(super) fn exec_file(&mut self) -> Result<Option<String>, GdbError> {
        Ok(self.text("exec-file")?.map(|path| objects::path(&path)).filter(|path| !path.is_empty()))
    }

    /// What was added to link-time addresses, where the stub says so.
    pub(super) fn text_offset(&mut self) -> Result<Option<u64>, GdbError> {
        Ok(reply::text_offset(&self.ask("qOffsets")?))
    }

    /// The process id: the one that was asked for, or the thread that stopped first.
    pub(super) fn pid(&mut self) -> Result<Option<u64>, GdbError> {
        if self.attached.is_some() {
            return Ok(self.attached);
        }
        let current = self.ask("qC")?;
        Ok(current.strip_prefix(b"QC").and_then(reply::thread_id).or(self.stop.thread))
    }
}

/// A number that a stub gives as text in an answer.
pub(super) fn hex_number(text: &[u8]) -> Option<u64> {
    number(text)
}
