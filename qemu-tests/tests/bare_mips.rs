//! Firmware on an emulated board without an operating system, patched from outside through the emulator's stub. Big-endian MIPS.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use qemu_tests::{Lab, Outcome, Victim, run, tfix};
use tigerfix::gdb::packet::frame;

const FLAGS: [&str; 9] = [
    "-O2",
    "-ffreestanding",
    "-fno-stack-protector",
    "-mno-abicalls",
    "-fno-pic",
    "-G0",
    "-msoft-float",
    "-mips32r2",
    "-fno-ipa-ra",
];
/// Memory that the firmware does not use.
const AREA: &str = "0x80400000:0x2000";

struct Board {
    lab: Lab,
    firmware: PathBuf,
    victim: Victim,
    at: String,
}

impl Board {
    fn start(more: &[&str]) -> Self {
        let lab = Lab::cross("mips-linux-gnu");
        let link = ["-nostdlib", "-static", "-Wl,-Ttext=0x80100000", "-Wl,-e,_start"];
        let firmware = lab.program("bare_mips.c", &[&FLAGS[..], &link, more].concat());
        let socket = lab.path("stub");
        let mut command = Command::new("qemu-system-mips");
        command.args(["-M", "malta", "-display", "none", "-monitor", "none", "-serial", "stdio", "-net", "none"]);
        command.args(["-vga", "none", "-kernel"]).arg(&firmware).arg("-gdb");
        command.arg(format!("unix:{},server=on,wait=off", socket.display()));
        let victim = Victim::spawn(command);
        let at = format!("unix:{}", socket.display());
        Self { lab, firmware, victim, at }
    }

    fn package(&self, name: &str, more: &[&str]) -> PathBuf {
        let object = self.lab.object(&format!("bare_mips_{name}.c"), &FLAGS);
        let arguments = [&["--page-size", "16"], more].concat();
        let (outcome, package) = self.lab.generate_to(&format!("{name}.tfp"), &self.firmware, &[&object], &arguments);
        outcome.done();
        package
    }

    fn tfix(&self, verb: &str, arguments: &[&Path]) -> Outcome {
        self.tfix_in(AREA, verb, arguments)
    }

    fn tfix_in(&self, area: &str, verb: &str, arguments: &[&Path]) -> Outcome {
        let mut all = vec![verb.into(), "--remote".into(), self.at.clone().into()];
        all.extend(["--program".into(), self.firmware.clone().into_os_string(), "--area".into(), area.into()]);
        all.extend(arguments.iter().map(|a| a.as_os_str().to_owned()));
        run(&all)
    }

    /// What a probe's server does that has a memory map: the board's stub, and `map` besides. Gives its address.
    fn with_map(&self, name: &str, map: &'static str) -> String {
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

#[test]
fn the_stubs_memory_map_counts() {
    let mut board = Board::start(&[]);
    let value = board.package("value", &[]);
    let direct = board.at.clone();
    for (name, map, why, rule) in [
        (
            "flash",
            "<memory-map><memory type='flash' start='0x80100000' length='0x100000'/>\
             <memory type='ram' start='0x80200000' length='0x1000000'/></memory-map>",
            "flash (0x80100000 to 0x80200000)",
            "remote-flash",
        ),
        (
            "small",
            "<memory-map><memory type='ram' start='0x80000000' length='0x401000'/></memory-map>",
            "ends at 0x80401000",
            "remote-area",
        ),
    ] {
        board.at = board.with_map(name, map);
        board.tfix("fix", &[&value]).refused(&[why]).by_rule(rule);
        board.prints(" value 1 odd", " value 1 even");
        board.at.clone_from(&direct);
        // Nothing was written, not even beside the function.
        assert!(board.patches().is_empty());
    }
    let map = "<memory-map><memory type='ram' start='0x80000000' length='0x8000000'/></memory-map>";
    board.at = board.with_map("ram", map);
    board.tfix("fix", &[&value]).done();
    board.prints(" value *42 odd", " value *42 even");
    board.tfix("revert", &[]).done();
    board.prints(" value 1 odd", " value 1 even");
}

#[test]
fn patched_over_and_over() {
    let mut board = Board::start(&[]);
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

#[test]
fn what_does_not_fit_is_refused() {
    let mut board = Board::start(&[]);
    let large = board.package("large", &[]);
    let full = board.tfix("fix", &[&large]);
    full.refused(&["`large` needs", "of 0x2000 bytes at 0x80400000"]).by_rule("area-full");
    board.prints(" value 1 odd", " value 1 even");
    // In a larger area it does.
    board.tfix_in("0x80400000:0x10000", "fix", &[&large]).done();
    board.victim.settles("the table's values", 5, |l| l.contains(" value 0 "));
    board.tfix_in("0x80400000:0x10000", "revert", &[]).done();
    board.prints(" value 1 odd", " value 1 even");
    // An area over the firmware, or out of reach of a jump.
    let value = board.package("value", &[]);
    board.tfix_in("0x80100000:0x1000", "fix", &[&value]).refused(&["program's own memory"]).by_rule("remote-area");
    board.prints(" value 1 odd", " value 1 even");
}

#[test]
fn an_image_with_a_base_goes_exactly_there() {
    let mut board = Board::start(&[]);
    let value = board.package("value", &["--base", "0x80400800"]);
    let done = board.tfix("fix", &[&value, "--json".as_ref()]);
    assert_eq!(done.done().json()["image"], "0x80400800");
    board.prints(" value *42 odd", " value *42 even");
    board.tfix("revert", &[]).done();
    board.prints(" value 1 odd", " value 1 even");
    // Not where the area is elsewhere.
    board.tfix_in("0x80600000:0x1000", "fix", &[&value]).refused(&[]);
    board.prints(" value 1 odd", " value 1 even");
}

#[test]
fn another_firmware_is_recognised() {
    let mut board = Board::start(&[]);
    let value = board.package("value", &[]);
    let other = board.lab.program_text(
        "other.c",
        &std::fs::read_to_string(qemu_tests::fixtures().join("bare_mips.c"))
            .expect("a fixture")
            .replace("round ", "Round "),
        &[&FLAGS[..], &["-nostdlib", "-static", "-Wl,-Ttext=0x80100000", "-Wl,-e,_start"], &["-DOTHER", "-O1"]]
            .concat(),
    );
    let own = std::mem::replace(&mut board.firmware, other);
    // The package is not for that file, and that file is not what runs.
    board.tfix("fix", &[&value]).refused(&[]).by_rule("program-not-loaded");
    let theirs = board.package("value", &[]);
    board.tfix("fix", &[&theirs]).refused(&["its code differs at"]).by_rule("other-program");
    board.firmware = own;
    board.prints(" value 1 odd", " value 1 even");
    for (missing, rule) in [("--program", "remote-program"), ("--area", "remote-area")] {
        let mut all = vec!["fix".to_owned(), "--remote".into(), board.at.clone(), value.display().to_string()];
        let firmware = board.firmware.display().to_string();
        for (option, text) in [("--program", firmware.as_str()), ("--area", AREA)] {
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
