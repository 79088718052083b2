//! A process behind a stub that says no at the wrong moment, or does not stop.

use super::fake::{Say, line};
use super::packet::{from_hex, to_hex};
use super::stub::Stub;
use super::target::{GdbTarget, Options};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::error::Explain as _;
use tigerfix_core::target::{Calls as _, Target as _, TargetError, Threads as _};

static ARCH: X86_64 = X86_64;
const LONG: Duration = Duration::from_secs(60);
/// Where rax, rdi, rsp and rip lie in the block.
const RAX: usize = 0;
const RDI: usize = 40;
const RSP: usize = 56;
const RIP: usize = 128;
/// Where the program waits.
const OWN: u64 = 0x1800;
/// System call instructions.
const CALLS: [usize; 2] = [0x1200, 0x1300];
const INT3: u8 = 0xcc;

/// What the stub does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Error,
    Unknown,
    /// It goes on, and does not stop by itself.
    Runs,
}

/// One thread, 64 KiB, and a stub without breakpoints of its own.
struct Process {
    memory: Vec<u8>,
    regs: Vec<u8>,
    runs: bool,
    /// To the next packets that begin so, the first ones first.
    odd: Vec<(&'static str, Answer)>,
    /// What the first arguments of calls pointed at.
    arguments: Vec<u8>,
    /// What went wrong with the process.
    harm: Vec<String>,
    seen: Vec<String>,
}

impl Process {
    fn reg(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.regs[at..at + 8].try_into().unwrap())
    }

    fn set(&mut self, at: usize, value: u64) {
        self.regs[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn hex_pair(text: &str) -> (usize, usize) {
        let (a, n) = text.split_once(',').unwrap();
        (usize::from_str_radix(a, 16).unwrap(), usize::from_str_radix(n, 16).unwrap())
    }

    /// All that goes on with something of ours in the process goes wrong.
    fn let_go(&mut self) {
        if self.reg(RIP) != OWN {
            self.harm.push(format!("let go at {:#x}", self.reg(RIP)));
        }
        if self.memory.contains(&INT3) {
            self.harm.push("let go with a breakpoint".into());
        }
        self.runs = true;
    }

    fn answer(&mut self, p: &str) -> Option<String> {
        self.seen.push(p.to_owned());
        let odd = self.odd.iter().position(|o| p.starts_with(o.0)).map(|i| self.odd.remove(i).1);
        match odd {
            Some(Answer::Error) => return Some("E01".into()),
            Some(Answer::Unknown) => return Some(String::new()),
            Some(Answer::Runs) => {
                self.runs = true;
                return None;
            }
            None => {}
        }
        if self.runs && p != "\x03" {
            self.harm.push(format!("`{p}` while it runs"));
        }
        let text = if let Some(rest) = p.strip_prefix('m') {
            let (a, n) = Self::hex_pair(rest);
            self.memory.get(a..a + n).map_or("E01".into(), to_hex)
        } else if let Some((head, data)) = p.strip_prefix('M').and_then(|r| r.split_once(':')) {
            let (a, n) = Self::hex_pair(head);
            self.memory[a..a + n].copy_from_slice(&from_hex(data.as_bytes()).unwrap());
            "OK".into()
        } else if let Some(data) = p.strip_prefix('G') {
            self.regs = from_hex(data.as_bytes()).unwrap();
            "OK".into()
        } else if p.starts_with("qXfer:auxv:read::") {
            // AT_PHDR.
            let words = [3u64, 0x1040, 0, 0].map(u64::to_le_bytes).concat();
            format!("l{}", String::from_utf8(words).unwrap())
        } else if p.starts_with("vCont;c:") {
            let at = self.reg(RIP) as usize;
            let own = at as u64 == OWN;
            // As a signal handler does that runs before the call.
            let (sp, frame) = (self.reg(RSP) as usize, 4600);
            self.memory[sp - 128 - frame..sp - 128].fill(0xff);
            self.arguments.push(self.memory[self.reg(RDI) as usize]);
            if self.memory[at..].starts_with(&[0x0f, 0x05]) || own {
                self.set(RAX, 0);
                self.set(RIP, at as u64 + if own { 1 } else { 2 });
                "T05thread:1;".into()
            } else {
                self.harm.push(format!("ran {at:#x}"));
                "T0bthread:1;".into()
            }
        } else if p == "vCont;c" {
            self.let_go();
            return None;
        } else {
            match p {
                "?" => "T05thread:1;",
                "g" => return Some(to_hex(&self.regs)),
                "qSupported:xmlRegisters=i386;vContSupported+" => "PacketSize=4000;qXfer:auxv:read+",
                "vCont?" => "vCont;c;C;s;S",
                "\x03" => {
                    self.runs = false;
                    "T02thread:1;"
                }
                "D" => {
                    self.let_go();
                    "OK"
                }
                "Hg1" => "OK",
                _ => "",
            }
            .into()
        };
        Some(text)
    }
}

/// A target, and what is behind it.
fn process() -> (GdbTarget, Arc<Mutex<Process>>) {
    let mut memory = vec![0u8; 0x1_0000];
    let mut put = |at: usize, n: usize, v: u64| memory[0x1000 + at..][..n].copy_from_slice(&v.to_le_bytes()[..n]);
    put(0, 8, u64::from_le_bytes(*b"\x7fELF\x02\x01\x01\0"));
    // ET_EXEC, EM_X86_64, the table of program headers; PT_LOAD, r-x, at 0x1000.
    for (at, n, v) in [(16, 2, 2), (18, 2, 62), (20, 4, 1), (32, 8, 64), (52, 2, 64), (54, 2, 56), (56, 2, 1)] {
        put(at, n, v);
    }
    for (at, n, v) in [(0, 4, 1), (4, 4, 5), (16, 8, 0x1000), (32, 8, 0x1000), (40, 8, 0x1000)] {
        put(64 + at, n, v);
    }
    for at in CALLS {
        memory[at..at + 2].copy_from_slice(&[0x0f, 0x05]);
    }
    let mut p = Process {
        memory,
        regs: vec![0; 164],
        runs: false,
        odd: Vec::new(),
        arguments: Vec::new(),
        harm: Vec::new(),
        seen: Vec::new(),
    };
    p.set(RSP, 0x9000);
    p.set(RIP, OWN);
    let p = Arc::new(Mutex::new(p));
    let theirs = Arc::clone(&p);
    let (c, _stub) = line(true, LONG, move |packet, _| {
        let said = theirs.lock().unwrap().answer(packet);
        said.map_or(Say::Nothing, Say::Made)
    });
    let stub = Stub::over(c, "test", None).unwrap();
    (GdbTarget::new(stub, &ARCH, Options::default()).unwrap(), p)
}

fn look(p: &Mutex<Process>) -> MutexGuard<'_, Process> {
    p.lock().unwrap()
}

/// What the stub is to do next.
fn odd(p: &Mutex<Process>, what: &[(&'static str, Answer)]) {
    look(p).odd = what.to_vec();
}

fn close(t: &mut GdbTarget) -> Result<u64, TargetError> {
    t.syscall("close", 3, [1, 0, 0, 0, 0, 0], None)
}

/// The target is left, and nothing was ever wrong with it.
fn ends_well(t: GdbTarget, p: &Mutex<Process>) {
    drop(t);
    let p = look(p);
    assert!(p.harm.is_empty() && p.runs, "{:?} {:?}", p.harm, p.seen);
    assert_eq!(p.reg(RIP), OWN);
}

#[test]
fn a_thread_is_released_when_its_registers_are_back() {
    let (mut t, p) = process();
    t.hold().unwrap();
    close(&mut t).unwrap();
    odd(&p, &[("G", Answer::Error)]);
    let e = t.release().unwrap_err();
    assert_eq!(e.rule(), "remote-refused");
    assert!(e.to_string().contains("thread 1 still has the registers of an injected call"), "{e}");
    assert_ne!(look(&p).reg(RIP), OWN);
    t.release().unwrap();
    assert_eq!(look(&p).reg(RIP), OWN);
    t.release().unwrap();
    ends_well(t, &p);
    // Memory below its stack as well.
    let (mut t, p) = process();
    look(&p).memory[0x9000 - 128 - 4096 - 256..0x9000 - 128].fill(7);
    let before = look(&p).memory.clone();
    t.hold().unwrap();
    t.syscall("open", 2, [0; 6], Some((0, b"name\0"))).unwrap();
    assert_eq!(look(&p).arguments, [b'n'], "what a handler writes is elsewhere");
    odd(&p, &[("M", Answer::Error)]);
    t.release().unwrap_err();
    t.release().unwrap();
    assert!(look(&p).memory[0x9000 - 128 - 4096 - 256..] == before[0x9000 - 128 - 4096 - 256..]);
    ends_well(t, &p);
}

#[test]
fn nothing_goes_on_while_a_restore_is_outstanding() {
    // Once more when it is to go on, and when it is left.
    let ways: [fn(&mut GdbTarget); 3] = [|t| t.resume_all().unwrap(), |t| t.go().unwrap(), |_| {}];
    for leave in ways {
        let (mut t, p) = process();
        t.hold().unwrap();
        close(&mut t).unwrap();
        odd(&p, &[("G", Answer::Error), ("G", Answer::Error)]);
        t.release().unwrap_err();
        t.release().unwrap_err();
        leave(&mut t);
        ends_well(t, &p);
    }
    // Never with what is not its own.
    let (mut t, p) = process();
    t.hold().unwrap();
    close(&mut t).unwrap();
    odd(&p, &[("G", Answer::Error); 9]);
    t.release().unwrap_err();
    let e = t.resume_all().unwrap_err();
    assert!(e.to_string().contains("must not go on"), "{e}");
    t.go().unwrap_err();
    drop(t);
    assert!(!look(&p).runs && look(&p).harm.is_empty());
}

#[test]
fn a_call_that_does_not_end_leaves_nothing_behind() {
    let (mut t, p) = process();
    t.hold().unwrap();
    // It does not come back, and can't be stopped; then it can.
    odd(&p, &[("vCont;c:1", Answer::Runs), ("\x03", Answer::Runs)]);
    let e = close(&mut t).unwrap_err();
    assert_eq!(e.rule(), "remote-not-stopping", "{e}");
    assert!(look(&p).memory.contains(&INT3));
    assert_eq!(t.release().unwrap_err().rule(), "target-timeout");
    t.resume_all().unwrap();
    assert!(look(&p).runs && !look(&p).memory.contains(&INT3));
    ends_well(t, &p);
    // The same when it is left at once.
    let (mut t, p) = process();
    t.hold().unwrap();
    odd(&p, &[("vCont;c:1", Answer::Runs), ("\x03", Answer::Runs)]);
    close(&mut t).unwrap_err();
    ends_well(t, &p);
}

#[test]
fn breakpoints_are_taken_away_when_the_target_stands_again() {
    let at = RunAddr(0x1900);
    let ways: [fn(&mut GdbTarget); 2] =
        [|t| t.stop_all().map(|_| ()).unwrap(), |t| t.read(RunAddr(0x1000), &mut [0]).unwrap()];
    for stop in ways {
        let (mut t, p) = process();
        let before = look(&p).memory.clone();
        assert_eq!(t.run_to(at, Duration::from_millis(20)).unwrap_err().rule(), "remote-not-stopping");
        // It has to be there while it runs.
        assert_eq!(look(&p).memory[0x1900], INT3);
        look(&p).harm.clear();
        stop(&mut t);
        assert!(look(&p).memory == before);
        ends_well(t, &p);
    }
    // Left as it runs, and one that can't be taken away at first.
    for failures in [0, 1] {
        let (mut t, p) = process();
        t.run_to(at, Duration::from_millis(20)).unwrap_err();
        look(&p).harm.clear();
        odd(&p, &[("M1900,", Answer::Error)][..failures]);
        ends_well(t, &p);
        assert_eq!(look(&p).memory[0x1900], 0);
    }
    // Set at the same place again, it is not taken for what was there.
    let (mut t, p) = process();
    odd(&p, &[]);
    t.plant(at.0).unwrap();
    t.plant(at.0).unwrap();
    t.uproot().unwrap();
    assert_eq!(look(&p).memory[0x1900], 0);
    ends_well(t, &p);
}

#[test]
fn a_target_that_was_not_let_go_stands() {
    for answer in [Answer::Error, Answer::Unknown] {
        for action in ["vCont;c:1", "vCont;s:1"] {
            let (mut t, p) = process();
            odd(&p, &[(action, answer)]);
            if action == "vCont;c:1" {
                t.hold().unwrap();
                close(&mut t).unwrap_err();
                t.release().unwrap();
            } else {
                let threads = t.stop_all().unwrap();
                t.run_some(&threads, 0).unwrap_err();
            }
            assert!(!t.stub.line.running);
            t.resume_all().unwrap();
            assert!(look(&p).runs, "{answer:?} {action}");
            ends_well(t, &p);
        }
        // Nobody waits for the answer to this at once.
        let (mut t, p) = process();
        odd(&p, &[("vCont;c", answer)]);
        t.resume_all().unwrap();
        t.stop_all().unwrap_err();
        assert!(!t.stub.line.running && t.stub.since.is_some());
        ends_well(t, &p);
    }
}

#[test]
fn calls_are_made_by_what_is_an_instruction_for_that_now() {
    let (mut t, p) = process();
    t.hold().unwrap();
    close(&mut t).unwrap();
    // A jump, as a trampoline.
    look(&p).memory[CALLS[0]..CALLS[0] + 5].copy_from_slice(&[0xe9, 1, 2, 3, 4]);
    close(&mut t).unwrap();
    close(&mut t).unwrap();
    // Taken back: found again when the others are gone.
    look(&p).memory[CALLS[0]..CALLS[0] + 2].copy_from_slice(&[0x0f, 0x05]);
    look(&p).memory[CALLS[1]] = 0xe9;
    close(&mut t).unwrap();
    look(&p).memory[CALLS[0]] = 0xe9;
    assert_eq!(close(&mut t).unwrap_err().rule(), "no-syscall-instruction");
    t.release().unwrap();
    ends_well(t, &p);
}
