//! Boards without an operating system: an emulated machine runs firmware, and is patched through the emulator's stub.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tigerfix::gdb::packet::frame;

use crate::{Lab, Outcome, Victim, run, tfix};

/// A machine that the firmware is compiled for.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Prefix of the compiler.
    pub triple: &'static str,
    /// How firmware and patches are compiled.
    pub flags: &'static [&'static str],
    /// The emulator and what it is told.
    pub qemu: &'static [&'static str],
    /// Where the firmware lies.
    pub text: u64,
}

impl Machine {
    fn firmware(&self, lab: &Lab, source: &str, more: &[&str]) -> PathBuf {
        let text = format!("-Wl,-Ttext={:#x}", self.text);
        lab.program(source, &[self.flags, &["-nostdlib", "-static", &text, "-Wl,-e,_start"], more].concat())
    }

    /// Memory that the firmware does not use.
    fn spare(&self) -> u64 {
        self.text + 0x30_0000
    }
}

fn area(start: u64, size: u64) -> String {
    format!("{start:#x}:{size:#x}")
}

/// Size of an area that has room for a small patch, bytes.
const SMALL: u64 = 0x2000;
/// And for a large one.
const LARGE: u64 = 0x1_0000;

/// A board that runs the firmware.
pub struct Board {
    machine: Machine,
    lab: Lab,
    firmware: PathBuf,
    victim: Victim,
    at: String,
}

impl Board {
    fn start(machine: Machine) -> Self {
        Self::start_with(machine, &[])
    }

    fn start_with(machine: Machine, flags: &[&str]) -> Self {
        let lab = Lab::cross(machine.triple);
        let firmware = machine.firmware(&lab, "bare.c", flags);
        let socket = lab.path("stub");
        let mut command = Command::new(machine.qemu[0]);
        command.args(&machine.qemu[1..]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-net", "none"]);
        command.args(["-vga", "none", "-kernel"]).arg(&firmware).arg("-gdb");
        command.arg(format!("unix:{},server=on,wait=off", socket.display()));
        let victim = Victim::spawn(command);
        let at = format!("unix:{}", socket.display());
        Self { machine, lab, firmware, victim, at }
    }

    fn package(&self, name: &str, more: &[&str]) -> PathBuf {
        let object = self.lab.object(&format!("bare_{name}.c"), self.machine.flags);
        let arguments = [&["--page-size", "16"], more].concat();
        let (outcome, package) = self.lab.generate_to(&format!("{name}.tfp"), &self.firmware, &[&object], &arguments);
        outcome.done();
        package
    }

    /// An area of `size` bytes in memory that the firmware does not use.
    fn area(&self, size: u64) -> String {
        area(self.machine.spare(), size)
    }

    fn tfix(&self, verb: &str, arguments: &[&Path]) -> Outcome {
        self.tfix_in(&self.area(SMALL), verb, arguments)
    }

    fn tfix_in(&self, area: &str, verb: &str, arguments: &[&Path]) -> Outcome {
        let mut all = vec![verb.into(), "--remote".into(), self.at.clone().into()];
        all.extend(["--program".into(), self.firmware.clone().into_os_string(), "--area".into(), area.into()]);
        all.extend(arguments.iter().map(|a| a.as_os_str().to_owned()));
        run(&all)
    }

    /// What a probe's server does that has a memory map: the board's stub, and `map` besides. Gives its address.
    fn with_map(&self, name: &str, map: String) -> String {
        let socket = self.lab.path(name);
        let server = UnixListener::bind(&socket).expect("a socket");
        let stub = self.lab.path("stub");
        std::thread::spawn(move || {
            for ours in server.incoming().map_while(Result::ok) {
                let theirs = UnixStream::connect(&stub).expect("the stub");
                let back = (theirs.try_clone().expect("a copy"), ours.try_clone().expect("a copy"));
                std::thread::spawn(move || {
                    forward(back.0, &back.1, &back.1, |answer| {
                        // Other packets may have come before it.
                        let start = find(answer, b"$PacketSize")?;
                        let end = start + find(&answer[start..], b"#")?;
                        let more = [&answer[start + 1..end], b";qXfer:memory-map:read+"].concat();
                        Some((answer[..start].to_vec(), frame(&more)))
                    });
                });
                forward(ours.try_clone().expect("a copy"), &theirs, &ours, |question| {
                    let start = find(question, b"$qXfer:memory-map:read::0,")?;
                    let answer = [b"+", &frame(format!("l{map}").as_bytes())[..]].concat();
                    Some((question[..start].to_vec(), answer))
                });
            }
        });
        format!("unix:{}", socket.display())
    }

    fn patches(&self) -> Vec<(String, String)> {
        let json = self.tfix("list", &["--json".as_ref()]).done().json();
        let list = json["processes"][0]["patches"].as_array().cloned().expect("a list");
        let text = |v: &serde_json::Value| v.as_str().expect("text").to_owned();
        list.iter().map(|p| (text(&p["name"]), text(&p["state"]))).collect()
    }

    /// All rounds from now on end so, for odd and even rounds.
    #[track_caller]
    fn prints(&mut self, odd: &str, even: &str) {
        self.victim.skip_arrived();
        let right = |l: &str| {
            let round: u64 = l.split(' ').nth(1)?.parse().ok()?;
            Some(l.ends_with(if round % 2 == 1 { odd } else { even }))
        };
        self.victim.settles(odd, 20, |l| right(l) == Some(true));
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|w| w == part)
}

/// Passes on what comes in, until there is no more. `change`: what to pass on instead, and what to say to `other`.
fn forward(
    mut from: UnixStream,
    mut to: &UnixStream,
    mut other: &UnixStream,
    change: impl Fn(&[u8]) -> Option<(Vec<u8>, Vec<u8>)>,
) {
    let mut buffer = vec![0u8; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let (pass, say) = change(&buffer[..n]).unwrap_or_else(|| (buffer[..n].to_vec(), Vec::new()));
        if to.write_all(&pass).and_then(|()| other.write_all(&say)).is_err() {
            break;
        }
    }
    for s in [&from, to] {
        // Who is gone already has nothing to be told.
        let _ = s.shutdown(Shutdown::Both);
    }
}

/// The stub says which memory there is.
pub fn the_stubs_memory_map_counts(machine: Machine) {
    let mut board = Board::start(machine);
    let value = board.package("value", &[]);
    let direct = board.at.clone();
    let memory = |kind: &str, start: u64, end: u64| {
        format!("<memory type='{kind}' start='{start:#x}' length='{:#x}'/>", end - start)
    };
    let (text, spare) = (machine.text, machine.spare());
    // Below all that the firmware has.
    let bottom = text & !0xf_ffff;
    let middle = text + 0x10_0000;
    let end = spare + 0x1000;
    for (name, map, why, rule) in [
        (
            "flash",
            memory("flash", text, middle) + &memory("ram", middle, spare + 0x100_0000),
            format!("flash ({text:#x} to {middle:#x})"),
            "remote-flash",
        ),
        ("small", memory("ram", bottom, end), format!("ends at {end:#x}"), "remote-area"),
    ] {
        board.at = board.with_map(name, format!("<memory-map>{map}</memory-map>"));
        board.tfix("fix", &[&value]).refused(&[&why]).by_rule(rule);
        board.prints(" value 1 odd", " value 1 even");
        board.at.clone_from(&direct);
        // Nothing was written, not even beside the function.
        assert!(board.patches().is_empty());
    }
    let map = format!("<memory-map>{}</memory-map>", memory("ram", bottom, spare + 0x100_0000));
    board.at = board.with_map("ram", map);
    board.tfix("fix", &[&value]).done();
    board.prints(" value *42 odd", " value *42 even");
    board.tfix("revert", &[]).done();
    board.prints(" value 1 odd", " value 1 even");
}

/// A processor in an exception handler is inside what that will return to.
pub fn what_a_handler_returns_to_counts(machine: Machine) {
    let mut board = Board::start_with(machine, &["-DINTERRUPTED"]);
    let value = board.package("value", &[]);
    board.prints(" value 1 odd", " value 1 even");
    let limits: [&Path; 4] = ["--policy".as_ref(), "function".as_ref(), "--timeout".as_ref(), "2".as_ref()];
    let refused = board.tfix("fix", &[&[value.as_path()], &limits[..]].concat());
    refused.refused(&["value"]).by_rule("busy");
    board.prints(" value 1 odd", " value 1 even");
    assert!(!refused.stderr.contains("[remote-interrupts]"), "{refused}");
    // What is overwritten ends before it.
    board.tfix("fix", &[&value, "--policy".as_ref(), "window".as_ref()]).done();
    board.prints(" value *42 odd", " value *42 even");
    board.tfix("revert", &[]).done();
    board.prints(" value 1 odd", " value 1 even");
}

/// Two patches, one beside the other, again and again.
pub fn patched_over_and_over(machine: Machine) {
    let mut board = Board::start(machine);
    let value = board.package("value", &[]);
    let label = board.package("label", &[]);
    board.prints(" value 1 odd", " value 1 even");

    let plan = board.tfix("fix", &[&value, "--dry-run".as_ref()]);
    assert!(plan.done().stdout.contains("of the area for the record"), "{plan}");
    assert!(plan.stderr.contains("[remote-caches]"), "{plan}");
    board.prints(" value 1 odd", " value 1 even");

    for _ in 0..3 {
        board.tfix("fix", &[&value]).done();
        // It uses a variable of the firmware's and one of its own, and calls the firmware.
        board.prints(" value *42 odd", " value *42 even");
        assert_eq!(board.patches(), [("value".into(), "applied".into())]);
        board.tfix("fix", &[&value]).refused(&[]).by_rule("already-applied");

        // A second one beside it.
        board.tfix("fix", &[&label]).done();
        board.victim.wait_for("a new label", |l| l.ends_with(" value *42 third"));
        board.victim.keeps("new labels", 20, |l| l.ends_with(" value *42 new") || l.ends_with(" value *42 third"));
        assert_eq!(board.patches().len(), 2);

        board.tfix("revert", &["value".as_ref()]).done();
        board.victim.wait_for("the old value", |l| l.ends_with(" value 1 new"));
        board.tfix("revert", &[]).done();
        board.prints(" value 1 odd", " value 1 even");
        assert!(board.patches().is_empty());
        board.tfix("revert", &[]).refused(&[]).by_rule("not-applied");
    }
}

/// Areas that are too small, or in the way.
pub fn what_does_not_fit_is_refused(machine: Machine) {
    let mut board = Board::start(machine);
    let large = board.package("large", &[]);
    let full = board.tfix("fix", &[&large]);
    full.refused(&["`large` needs", &format!("of 0x2000 bytes at {:#x}", machine.spare())]).by_rule("area-full");
    board.prints(" value 1 odd", " value 1 even");
    // In a larger area it does.
    board.tfix_in(&board.area(LARGE), "fix", &[&large]).done();
    board.victim.settles("the table's values", 5, |l| l.contains(" value 0 "));
    board.tfix_in(&board.area(LARGE), "revert", &[]).done();
    board.prints(" value 1 odd", " value 1 even");
    // An area over the firmware, or out of reach of a jump.
    let value = board.package("value", &[]);
    board
        .tfix_in(&area(machine.text, 0x1000), "fix", &[&value])
        .refused(&["program's own memory"])
        .by_rule("remote-area");
    board.prints(" value 1 odd", " value 1 even");
}

/// `gen --base`.
pub fn an_image_with_a_base_goes_exactly_there(machine: Machine) {
    let mut board = Board::start(machine);
    let base = format!("{:#x}", machine.spare() + 0x800);
    let value = board.package("value", &["--base", &base]);
    let done = board.tfix("fix", &[&value, "--json".as_ref()]);
    assert_eq!(done.done().json()["image"], base);
    board.prints(" value *42 odd", " value *42 even");
    board.tfix("revert", &[]).done();
    board.prints(" value 1 odd", " value 1 even");
    // Not where the area is elsewhere.
    board.tfix_in(&area(machine.spare() + 0x20_0000, 0x1000), "fix", &[&value]).refused(&[]);
    board.prints(" value 1 odd", " value 1 even");
}

/// The program on the board is compared with the file.
pub fn another_firmware_is_recognised(machine: Machine) {
    let mut board = Board::start(machine);
    let value = board.package("value", &[]);
    let text = std::fs::read_to_string(crate::fixtures().join("bare.c")).expect("a fixture");
    let other = board.lab.write("other.c", text.replace("round ", "Round "));
    let other = machine.firmware(&board.lab, other.to_str().expect("UTF-8"), &["-O1"]);
    let own = std::mem::replace(&mut board.firmware, other);
    // The package is not for that file, and that file is not what runs.
    board.tfix("fix", &[&value]).refused(&[]).by_rule("program-not-loaded");
    let theirs = board.package("value", &[]);
    board.tfix("fix", &[&theirs]).refused(&["its code differs at"]).by_rule("other-program");
    board.firmware = own;
    board.prints(" value 1 odd", " value 1 even");
    for (missing, rule) in [("--program", "remote-program"), ("--area", "remote-area")] {
        let mut all = vec!["fix".to_owned(), "--remote".into(), board.at.clone(), value.display().to_string()];
        let (firmware, area) = (board.firmware.display().to_string(), board.area(SMALL));
        for (option, text) in [("--program", firmware.as_str()), ("--area", area.as_str())] {
            if option != missing {
                all.extend([option.to_owned(), text.to_owned()]);
            }
        }
        let all: Vec<_> = all.into_iter().map(Into::into).collect();
        run(&all).refused(&[missing]).by_rule(rule);
    }
    board.prints(" value 1 odd", " value 1 even");
    // Nothing is told without the file.
    tfix!["list", "--remote", &board.at].bad_input(&["--program"]).by_rule("remote-program");
    board.prints(" value 1 odd", " value 1 even");
}

/// The tests of one machine.
#[macro_export]
macro_rules! on_a_board {
    ($machine:ident) => {
        #[test]
        fn the_stubs_memory_map_counts() {
            $crate::board::the_stubs_memory_map_counts($machine);
        }
        #[test]
        fn patched_over_and_over() {
            $crate::board::patched_over_and_over($machine);
        }
        #[test]
        fn what_does_not_fit_is_refused() {
            $crate::board::what_does_not_fit_is_refused($machine);
        }
        #[test]
        fn an_image_with_a_base_goes_exactly_there() {
            $crate::board::an_image_with_a_base_goes_exactly_there($machine);
        }
        #[test]
        fn another_firmware_is_recognised() {
            $crate::board::another_firmware_is_recognised($machine);
        }
    };
}
