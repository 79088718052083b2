//! Lets a restored guest go on, the clock of a MIPS one included.
//!
//! Of MIPS processors qemu saves the processor's `Count` and `Compare`, but not that a timer is to ring when one reaches the other
//! (target/mips/machine.c and cpu_timer.c have nothing for it), and the moment may have passed while the state was saved: such
//! a guest's next tick is 43 seconds away. So before it goes on, its processor runs four instructions of ours, through
//! qemu's debug stub, that set `Compare` to a little later than now. Everything else is put back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use tigerfix_core::field::{Endian, load, store};

use crate::DEADLINE;

/// Indices in the stub's register packet (gdb's order for MIPS).
const T0: usize = 8;
const STATUS: usize = 32;
const PC: usize = 37;
const COUNT: usize = 73;

/// Interrupt enable, exception level, error level, mode: all 0 is kernel mode without interrupts.
const STATUS_MODE: u64 = 0x1f;

/// In the first page of memory, which no vector and nothing else of the kernel reaches up to here.
const PLACE: u64 = 0xffff_ffff_8000_0f00;

const CODE: [u32; 5] = [
    0x4008_4800, // mfc0 t0, Count
    0x2508_7fff, // addiu t0, t0, 32767
    0x4088_5800, // mtc0 t0, Compare
    0x1000_ffff, // b .
    0x0000_0000,
];
/// Offset of the loop.
const LOOP: u64 = 12;

/// A connection to one of qemu's sockets, which it makes one after the other.
fn connected(socket: &Path) -> UnixStream {
    crate::until("a socket of qemu", || UnixStream::connect(socket).ok())
}

/// A connection to the debug stub.
struct Stub(UnixStream);

impl Stub {
    fn byte(&mut self) -> u8 {
        let mut b = [0];
        self.0.read_exact(&mut b).expect("qemu's stub answers");
        b[0]
    }

    fn send(&mut self, text: &str) {
        let sum = text.bytes().fold(0u8, u8::wrapping_add);
        self.0.write_all(format!("${text}#{sum:02x}").as_bytes()).expect("qemu's stub listens");
    }

    fn packet(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                b => text.push(b.into()),
            }
        }
        self.byte();
        self.byte();
        self.0.write_all(b"+").expect("qemu's stub listens");
        text
    }

    /// The answer to a command that does not run the machine. News of a stop may come before it.
    fn ask(&mut self, text: &str) -> String {
        self.send(text);
        loop {
            let answer = self.packet();
            if !answer.starts_with('T') {
                return answer;
            }
        }
    }

    fn must(&mut self, text: &str) {
        let answer = self.ask(text);
        assert_eq!(answer, "OK", "the stub's answer to {}", &text[..text.len().min(40)]);
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex digits");
    (0..hex.len() / 2).map(|i| digits(2 * i)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Waits until the state has been read, then sets the clock going and lets the guest run. qemu was started with `-S`.
pub(super) fn start(monitor: &Path, stub: &Path, endian: Endian) {
    Monitor::connect(monitor).wait_for_state();
    let mut stub = Stub(connected(stub));
    stub.0.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let saved = stub.ask("g");
    let registers = bytes(&saved);
    let word = registers.len() / COUNT;
    let place = if word == 4 { PLACE & u64::from(u32::MAX) } else { PLACE };
    let get = |r: &[u8], i: usize| load(&r[i * word..(i + 1) * word], endian);

    let mut code = [0; 4 * CODE.len()];
    CODE.iter().zip(code.chunks_exact_mut(4)).for_each(|(w, b)| store(b, endian, u64::from(*w)));
    let (at, len) = (format!("{place:x}"), code.len());
    let under = stub.ask(&format!("m{at},{len:x}"));
    stub.must(&format!("M{at},{len:x}:{}", hex(&code)));
    let mut begin = registers.clone();
    store(&mut begin[STATUS * word..(STATUS + 1) * word], endian, get(&registers, STATUS) & !STATUS_MODE);
    store(&mut begin[PC * word..(PC + 1) * word], endian, place);
    stub.must(&format!("G{}", hex(&begin)));
    let end = Instant::now() + DEADLINE;
    loop {
        // Nothing wakes a halted processor while interrupts are off; the agent sees to it that none is saved in that state.
        assert!(Instant::now() < end, "the guest's processor does not run: its state was saved while it was halted");
        stub.send("c");
        std::thread::sleep(Duration::from_millis(1));
        stub.0.write_all(b"\x03").expect("qemu's stub listens");
        stub.packet();
        let now = bytes(&stub.ask("g"));
        if (place + LOOP..=place + LOOP + 4).contains(&get(&now, PC)) && get(&now, T0) != get(&registers, T0) {
            break;
        }
    }
    stub.must(&format!("G{saved}"));
    stub.must(&format!("M{at},{len:x}:{under}"));
    stub.must("D;1");
}

/// Waits until the state has been read, then lets the guest run. qemu was started with `-S`.
pub(super) fn go_on(monitor: &Path) {
    let mut monitor = Monitor::connect(monitor);
    monitor.wait_for_state();
    let answer = monitor.ask("{\"execute\": \"cont\"}\n");
    assert!(!answer.contains("error"), "{answer}");
}

/// A connection to qemu's monitor.
struct Monitor(UnixStream);

impl Monitor {
    fn connect(monitor: &Path) -> Monitor {
        let mut monitor = Monitor(connected(monitor));
        monitor.0.set_read_timeout(Some(DEADLINE)).expect("a socket");
        monitor.ask(""); // the greeting
        monitor.ask("{\"execute\": \"qmp_capabilities\"}\n");
        monitor
    }

    /// Sends a command, and takes the next line, be that the answer or news.
    fn ask(&mut self, command: &str) -> String {
        self.0.write_all(command.as_bytes()).expect("qemu's monitor listens");
        let mut text = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.0.read_exact(&mut byte).expect("qemu's monitor answers");
            text.push(byte[0]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Until qemu has taken over the saved state.
    fn wait_for_state(&mut self) {
        crate::until("the guest's state", || {
            let status = self.ask("{\"execute\": \"query-status\"}\n");
            (status.contains("\"return\"") && !status.contains("inmigrate")).then_some(())
        });
    }
}
