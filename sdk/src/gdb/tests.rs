//! The line and the stub against scripts: both ways of acknowledging, damage, silence, nonsense.

use super::error::GdbError;
use super::fake::{Say, line};
use super::packet::{frame, to_hex};
use super::stub::{Kind, Stub};
use super::target::{GdbTarget, Options};
use std::time::{Duration, Instant};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::error::Explain as _;
use tigerfix_core::target::{Area, Target as _, TargetError, Threads as _};

static ARCH: X86_64 = X86_64;
/// Long enough for whatever works, and never waited for there.
const LONG: Duration = Duration::from_secs(60);
/// For answers that do not come.
const SHORT: Duration = Duration::from_millis(50);

#[test]
fn packets_are_acknowledged_until_both_agree_not_to() {
    let (mut c, stub) = line(true, LONG, |p, _| match p {
        "QStartNoAckMode" => Say::Packet("OK"),
        _ => Say::Packet("yes"),
    });
    assert_eq!(c.ask(b"a").unwrap(), b"yes");
    assert_eq!(c.ask(b"QStartNoAckMode").unwrap(), b"OK");
    c.no_acks();
    assert_eq!(c.ask(b"b").unwrap(), b"yes");
    drop(c);
    assert_eq!(stub.join().unwrap(), ["a", "QStartNoAckMode", "b"]);
}

#[test]
fn a_packet_that_arrived_damaged_is_sent_again() {
    let (mut c, stub) = line(true, LONG, |_, n| if n == 0 { Say::Raw(b"-".to_vec()) } else { Say::Packet("yes") });
    assert_eq!(c.ask(b"a").unwrap(), b"yes");
    drop(c);
    assert_eq!(stub.join().unwrap(), ["a", "a"]);
    let (mut c, stub) = line(true, LONG, |_, _| Say::Raw(b"-".to_vec()));
    assert_eq!(c.ask(b"a").unwrap_err().rule(), "remote-protocol");
    drop(c);
    assert_eq!(stub.join().unwrap().len(), 4, "not for ever");
}

#[test]
fn a_damaged_answer_is_asked_for_again() {
    let damaged = || Say::Raw(b"+$yes#00".to_vec());
    let (mut c, stub) =
        line(true, LONG, move |p, n| if p == "-" && n == 2 { Say::Raw(frame(b"yes")) } else { damaged() });
    assert_eq!(c.ask(b"a").unwrap(), b"yes");
    drop(c);
    assert_eq!(stub.join().unwrap(), ["a", "-", "-"]);
    let (mut c, _stub) = line(true, LONG, move |_, _| damaged());
    assert_eq!(c.ask(b"a").unwrap_err().rule(), "remote-protocol");
    // Nobody repeats anything where nothing is acknowledged.
    let (mut c, stub) = line(false, LONG, |_, _| Say::Raw(b"$yes#00".to_vec()));
    c.no_acks();
    assert_eq!(c.ask(b"a").unwrap_err().rule(), "remote-protocol");
    drop(c);
    assert_eq!(stub.join().unwrap(), ["a"]);
}

#[test]
fn noise_notifications_and_text_are_no_answers() {
    let mut said = b"boot: ok\r\n+".to_vec();
    said.extend(b"%Stop:T05#99");
    said.extend(frame(b"O48656c6c6f"));
    said.extend(frame(b"OK"));
    let (mut c, _stub) = line(true, LONG, move |_, _| Say::Raw(said.clone()));
    assert_eq!(c.ask(b"a").unwrap(), b"OK");
}

#[test]
fn silence_ends_after_a_while_and_nothing_more_is_said() {
    let scripts: [&[u8]; 5] = [b"", b"+", b"+$half", b"+$half#", b"noise"];
    for script in scripts {
        let (mut c, stub) = line(true, SHORT, move |_, _| Say::Raw(script.to_vec()));
        let first = c.ask(b"g").unwrap_err();
        assert!(matches!(&first, GdbError::Silent { during, .. } if during == "g"), "{first}");
        assert_eq!(c.ask(b"D").unwrap_err(), first);
        assert_eq!(c.interrupt().unwrap_err(), first);
        drop(c);
        assert_eq!(stub.join().unwrap(), ["g"], "{script:?}");
    }
}

#[test]
fn a_stub_that_talks_without_end_is_left() {
    let (mut c, _stub) = line(true, SHORT, |_, _| {
        let mut out = b"+".to_vec();
        out.extend(b"$");
        out.resize(3 << 20, b'a');
        out.extend(b"#00");
        Say::Raw(out)
    });
    assert!(matches!(c.ask(b"g").unwrap_err(), GdbError::Nonsense { .. } | GdbError::Silent { .. }));
    let (mut c, _stub) = line(true, LONG, |_, _| {
        let mut out = b"+".to_vec();
        for _ in 0..2000 {
            out.extend(frame(b"O41"));
        }
        Say::Raw(out)
    });
    assert_eq!(c.ask(b"g").unwrap_err().rule(), "remote-protocol");
}

#[test]
fn a_closed_line_says_in_what_state_the_target_was() {
    let (mut c, _stub) = line(true, LONG, |_, _| Say::Hang);
    let e = c.ask(b"g").unwrap_err();
    assert_eq!(e.rule(), "remote-lost");
    assert!(e.to_string().contains("the target stood then"), "{e}");
    let (mut c, _stub) = line(true, LONG, |p, _| if p == "c" { Say::Nothing } else { Say::Hang });
    c.send(b"c").unwrap();
    c.running = true;
    c.interrupt().unwrap();
    let e = c.stopped(b"0x03", Instant::now() + LONG).unwrap_err();
    assert!(e.to_string().contains("the target was running then"), "{e}");
}

#[test]
fn stops_are_awaited_through_text_and_file_requests() {
    let (mut c, stub) = line(true, LONG, |p, _| match p {
        "c" => Say::Raw([&b"+"[..], &frame(b"O41"), &frame(b"Fwrite,1,2,3")].concat()),
        _ => Say::Packet("T05thread:7;"),
    });
    c.send(b"c").unwrap();
    c.running = true;
    let stop = c.stopped(b"c", Instant::now() + LONG).unwrap().unwrap();
    assert_eq!((stop.signal, stop.thread), (5, Some(7)));
    assert!(!c.running);
    drop(c);
    assert_eq!(stub.join().unwrap(), ["c", "F-1,270f"]);
    let (mut c, _stub) = line(true, LONG, |_, _| Say::Packet("W00"));
    c.send(b"c").unwrap();
    assert!(matches!(c.stopped(b"c", Instant::now() + LONG), Err(GdbError::Ended { .. })));
    let (mut c, _stub) = line(true, LONG, |_, _| Say::Nothing);
    c.send(b"c").unwrap();
    assert_eq!(c.stopped(b"c", Instant::now() + SHORT), Ok(None), "it runs on");
}

/// A processor with 64 KiB of memory, without an operating system. The block of registers is gdb's for amd64.
fn device(extra: impl Fn(&str) -> Option<String> + Send + 'static) -> Result<Stub, GdbError> {
    let mut memory = vec![0u8; 0x1_0000];
    let (c, _stub) = line(true, LONG, move |p, _| {
        if let Some(answer) = extra(p) {
            return Say::Made(answer);
        }
        let numbers = |t: &str| {
            let (a, n) = t.split_once(',')?;
            Some((usize::from_str_radix(a, 16).ok()?, usize::from_str_radix(n, 16).ok()?))
        };
        let place = |t: &str| numbers(t).filter(|(a, n)| a + n <= 0x1_0000);
        if let Some(rest) = p.strip_prefix('m') {
            // Never more than it likes.
            return match place(rest) {
                Some((a, n)) => Say::Made(to_hex(&memory[a..a + n.min(100)])),
                None => Say::Packet("E01"),
            };
        }
        if let Some((head, data)) = p.strip_prefix('M').and_then(|r| r.split_once(':')) {
            let bytes = super::packet::from_hex(data.as_bytes()).unwrap();
            return match place(head) {
                Some((a, n)) if n == bytes.len() => {
                    memory[a..a + n].copy_from_slice(&bytes);
                    Say::Packet("OK")
                }
                _ => Say::Packet("E0e"),
            };
        }
        match p {
            "?" => Say::Packet("S05"),
            "g" => Say::Made("00".repeat(164)),
            "c" => Say::Nothing,
            "\x03" => Say::Packet("S02"),
            "D" | "Hg1" => Say::Packet("OK"),
            _ => Say::Packet(""),
        }
    });
    Stub::over(c, "test", None)
}

#[test]
fn memory_is_read_and_written_in_pieces() {
    let stub = device(|p| p.starts_with("qSupported").then(|| "PacketSize=100".to_owned())).unwrap();
    assert_eq!(stub.kind(), Kind::Bare);
    let mut stub = stub;
    let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
    stub.write_bytes(0x123, &bytes).unwrap();
    assert_eq!(stub.read_bytes(0x123, 1000).unwrap(), bytes);
    assert!(matches!(stub.read_bytes(0xfff0, 100), Err(GdbError::Refused { .. })));
    assert!(matches!(stub.write_bytes(0xfff0, &bytes), Err(GdbError::Refused { .. })));
}

#[test]
fn what_a_bare_target_needs_is_asked_for() {
    let rule = |options: Options| {
        let e = GdbTarget::new(device(|_| None).unwrap(), &ARCH, options).unwrap_err();
        assert!(matches!(e, TargetError::Unsuitable { .. }), "{e}");
        e.rule()
    };
    let area = |start, size| Some(Area { start: RunAddr(start), size });
    assert_eq!(rule(Options::default()), "remote-program");
    let elf = tiny_elf();
    let program = || Some(("fw.elf".to_owned(), elf.clone()));
    assert_eq!(rule(Options { program: program(), area: None }), "remote-area");
    assert_eq!(rule(Options { program: program(), area: area(0x1000, 0x100) }), "remote-area");
    assert_eq!(rule(Options { program: program(), area: area(u64::MAX, 2) }), "remote-area");
    assert_eq!(rule(Options { program: program(), area: area(0x8000, 0) }), "remote-area");
    assert_eq!(rule(Options { program: Some(("x".into(), vec![1, 2, 3])), area: None }), "remote-program");
    let options = Options { program: program(), area: area(0x8000, 0x1000) };
    let mut t = GdbTarget::new(device(|_| None).unwrap(), &ARCH, options).unwrap();
    assert_eq!(t.describe(), "the device behind the stub at test");
    assert!(t.calls().is_none() && t.area().is_some());
    let threads = t.stop_all().unwrap();
    assert_eq!(threads.len(), 1);
    t.resume_all().unwrap();
    let mut b = [0u8; 4];
    // It is stopped again for that.
    t.read(RunAddr(0x1000), &mut b).unwrap();
}

/// An executable with one loaded segment at 0x1000.
fn tiny_elf() -> Vec<u8> {
    let mut e = vec![0u8; 64 + 56];
    e[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let put = |e: &mut Vec<u8>, at: usize, n: usize, v: u64| e[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
    // ET_EXEC, EM_X86_64, entry, program header table.
    for (at, n, v) in
        [(16, 2, 2), (18, 2, 62), (20, 4, 1), (24, 8, 0x1000), (32, 8, 64), (52, 2, 64), (54, 2, 56), (56, 2, 1)]
    {
        put(&mut e, at, n, v);
    }
    // PT_LOAD, r-x, from the start of the file.
    for (at, n, v) in [(0, 4, 1), (4, 4, 5), (16, 8, 0x1000), (24, 8, 0x1000), (32, 8, 120), (40, 8, 120), (48, 8, 16)]
    {
        put(&mut e, 64 + at, n, v);
    }
    e
}

#[test]
fn answers_that_make_no_sense_are_refusals() {
    type Case = (&'static str, &'static str, fn(&mut Stub) -> Result<(), GdbError>);
    let cases: [Case; 7] = [
        ("m", "zz", |s| s.read_bytes(0, 1).map(|_| ())),
        ("m", "", |s| s.read_bytes(0, 1).map(|_| ())),
        ("m", "00112233", |s| s.read_bytes(0, 1).map(|_| ())),
        ("M", "maybe", |s| s.write_bytes(0, &[1])),
        ("qfThreadInfo", "m1,,", |s| s.thread_ids().map(|_| ())),
        ("g", "0", |s| s.block(1).map(|_| ())),
        ("qXfer:auxv", "x", |s| s.object("auxv", "").map(|_| ())),
    ];
    for (question, answer, ask) in cases {
        let mut stub = device(|p| p.starts_with("qSupported").then(|| "qXfer:memory:read+".to_owned())).unwrap();
        ask(&mut stub).unwrap_or_else(|e| panic!("{question}: {e}"));
        let mut stub = device(move |p| if p.starts_with(question) { Some(answer.to_owned()) } else { None }).unwrap();
        if question.starts_with("qX") {
            stub.offers = super::reply::Offers::parse(b"qXfer:auxv:read+");
        }
        assert!(ask(&mut stub).is_err(), "{question} -> {answer}");
    }
    // An object that never ends.
    let mut stub = device(|p| p.starts_with("qXfer").then(|| "m".to_owned())).unwrap();
    stub.offers = super::reply::Offers::parse(b"qXfer:auxv:read+");
    assert!(stub.object("auxv", "").is_err());
}

#[test]
fn descriptions_are_put_together_from_their_files() {
    let file = |p: &str| {
        let text = match p.split(':').nth(3)? {
            "target.xml" => r#"<architecture>x</architecture><xi:include href="a.xml"/><reg name="z" bitsize="8"/>"#,
            "a.xml" => r#"<reg name="y" bitsize="32"/><xi:include href="a.xml"/>"#,
            _ => return Some("E00".to_owned()),
        };
        Some(format!("l{text}"))
    };
    let mut stub = device(move |p| if p.starts_with("qXfer") { file(p) } else { None }).unwrap();
    stub.offers = super::reply::Offers::parse(b"qXfer:features:read+");
    // One that includes itself ends as well.
    let parts = stub.description().unwrap();
    let registers = super::description::registers(&parts);
    assert_eq!(registers.first().map(|r| r.name.as_str()), Some("y"));
}

#[test]
fn a_stub_without_a_process_wants_one_named() {
    let e = device(|p| (p == "?").then(|| "W00".to_owned())).unwrap_err();
    assert!(matches!(&e, GdbError::Lacks { what } if what.contains("--pid")), "{e}");
}
