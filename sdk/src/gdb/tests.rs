//! The line and the stub against scripts: both ways of acknowledging, damage, silence, nonsense.

use super::error::GdbError;
use super::fake::{Say, line};
use super::packet::{frame, to_hex};
use super::stub::{Kind, Stub};
use super::target::{GdbTarget, Options};
use std::time::{Duration, Instant};
use tigerfix_arch_aarch64::Aarch64;
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::addr::RunAddr;
use tigerfix_core::error::Explain as _;
use tigerfix_core::target::{Area, Target as _, TargetError, ThreadId, Threads as _};

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
fn talk_without_end_does_not_outlast_the_deadline() {
    let notification = [&b"%Stop:T05"[..], &frame(b"Stop:T05")[9..]].concat();
    let floods = [b"+".to_vec(), b"noise".to_vec(), b"-+".to_vec(), notification, frame(b"O41")];
    for flood in floods {
        let text = flood.clone();
        let (mut c, _stub) = line(false, SHORT, move |_, _| Say::Flood(text.clone()));
        c.no_acks();
        let begin = Instant::now();
        assert!(matches!(c.ask(b"g"), Err(GdbError::Silent { .. } | GdbError::Nonsense { .. })));
        assert!(begin.elapsed() < LONG / 4, "{flood:?}");
        // A running target has not stopped, whatever is said.
        let text = flood.clone();
        let (mut c, _stub) = line(false, LONG, move |_, _| Say::Flood(text.clone()));
        c.no_acks();
        c.send(b"c").unwrap();
        let begin = Instant::now();
        assert_eq!(c.stopped(b"c", Instant::now() + SHORT), Ok(None), "{flood:?}");
        assert!(begin.elapsed() < LONG / 4, "{flood:?}");
    }
    // Without the acknowledgement that is due.
    let (mut c, _stub) = line(true, SHORT, |_, _| Say::Flood(b"%x#78".to_vec()));
    assert!(matches!(c.ask(b"g"), Err(GdbError::Silent { .. })));
}

#[test]
fn what_came_in_time_is_read_after_the_deadline() {
    let (mut c, _stub) = line(true, LONG, |_, _| Say::Packet("T05thread:7;"));
    c.send(b"c").unwrap();
    std::thread::sleep(SHORT);
    let stop = c.stopped(b"c", Instant::now()).unwrap();
    assert_eq!(stop.and_then(|s| s.thread), Some(7));
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

/// Offers an object, and gives `text` for it in pieces as they are asked for.
fn offering(object: &'static str, text: &str) -> impl Fn(&str) -> Option<String> + Clone + Send + 'static {
    let text = text.to_owned();
    move |p| {
        if p.starts_with("qSupported") {
            return Some(format!("PacketSize=1000;qXfer:{object}:read+"));
        }
        let (from, len) = p.strip_prefix(&format!("qXfer:{object}:read::"))?.split_once(',')?;
        let from = usize::from_str_radix(from, 16).unwrap();
        let to = (from + usize::from_str_radix(len, 16).unwrap()).min(text.len());
        Some(format!("{}{}", if to == text.len() { 'l' } else { 'm' }, &text[from..to]))
    }
}

/// Registers of the system are asked for one by one, while interrupts are masked, and those of higher levels never.
#[test]
fn what_a_handler_returns_to_is_seen() {
    static ARCH: Aarch64 = Aarch64;
    const CORE: &str = r#"<target><reg name="sp" bitsize="64" regnum="31"/><reg name="pc" bitsize="64"/>
        <reg name="cpsr" bitsize="32"/><reg name="ELR_EL1" bitsize="64" regnum="97"/>
        <reg name="elr_el2" bitsize="64"/><reg name="ELR_EL3" bitsize="64"/></target>"#;
    let mut elf = tiny_elf();
    elf[18] = 183;
    let open = |text: String, pstate: u32| {
        let described = move |p: &str| {
            let text = text.clone();
            if p.starts_with("qSupported") {
                return Some("PacketSize=1000;qXfer:features:read+".to_owned());
            }
            match p {
                "g" => Some("00".repeat(16) + &to_hex(&pstate.to_le_bytes())),
                "p61" => Some(to_hex(&0x1004u64.to_le_bytes())),
                "p62" => Some(to_hex(&0x2008u64.to_le_bytes())),
                "p63" => Some("E01".to_owned()),
                _ => p.starts_with("qXfer:features:read:target.xml:0,").then(|| format!("l{text}")),
            }
        };
        let program = Some(("fw.elf".to_owned(), elf.clone()));
        let options = Options { program, area: Some(Area { start: RunAddr(0x8000), size: 0x1000 }) };
        GdbTarget::new(device(described).unwrap(), &ARCH, options).unwrap()
    };
    let returns = |text: &str, pstate: u32| {
        let mut t = open(text.to_owned(), pstate);
        let threads = t.stop_all().unwrap();
        let regs = t.registers(threads[0]).unwrap();
        (t.returns(threads[0], &regs), t.sees_interrupts())
    };
    // The level is in bits 3:2, the mask is bit 7.
    for (pstate, expected) in
        [(0x3c5, &[0x1004][..]), (0x085, &[0x1004]), (0x3c9, &[0x1004, 0x2008]), (0x345, &[]), (0x3c0, &[])]
    {
        let (found, sees) = returns(CORE, pstate);
        assert_eq!(found.unwrap().iter().map(|a| a.0).collect::<Vec<_>>(), expected, "{pstate:#x}");
        assert!(sees);
    }
    // One that counts is not given.
    assert_eq!(returns(CORE, 0x3cd).0.unwrap_err().rule(), "transport-lacks");
    let (found, sees) = returns(&CORE.replace("ELR_", "other_").replace("elr_", "other_"), 0x3c5);
    assert!(found.unwrap().is_empty() && !sees);
}

const MAP: &str = r#"<memory-map><memory type="flash" start="0x0" length="0x2000"/><memory type="ram" start="0x2000"
    length="0x3000"/><memory type="ram" start="0x5000" length="0x4000"/><memory type="rom" start="0xa000" length="0x1000"/>
    </memory-map>"#;

fn bare(stub: Stub, start: u64, size: u64) -> Result<GdbTarget, TargetError> {
    let program = Some(("fw.elf".to_owned(), tiny_elf()));
    GdbTarget::new(stub, &ARCH, Options { program, area: Some(Area { start: RunAddr(start), size }) })
}

#[test]
fn areas_lie_in_ram_and_sites_not_in_flash() {
    let with = |text: &str, start, size| bare(device(offering("memory-map", text)).unwrap(), start, size);
    for (start, size, why) in [
        (0x1800, 0x100, "lies in flash (0x0 to 0x2000)"),
        (0xa800, 0x100, "lies in ROM (0xa000 to 0xb000)"),
        (0x8000, 0x3000, "lies in ROM (0xa000 to 0xb000)"),
        (0x8000, 0x1001, "ends at 0x9000"),
        (0x9800, 0x100, "does not begin in RAM"),
    ] {
        let e = with(MAP, start, size).unwrap_err();
        assert_eq!(e.rule(), "remote-area", "{e}");
        assert!(e.to_string().contains(why), "{e}");
    }
    // Over both regions of RAM.
    let t = with(MAP, 0x4000, 0x5000).unwrap();
    for (start, len) in [(0x1000, 8), (0x1fff, 2), (0x9ffc, 8), (0, u64::MAX)] {
        let e = t.writable("f", RunAddr(start), len).unwrap_err();
        assert_eq!((e.rule(), e.hint().is_some()), ("remote-flash", true), "{e}");
        assert!(e.to_string().starts_with("`f` at 0x"), "{e}");
    }
    for (start, len) in [(0x2000, 8), (0x9ff8, 8), (u64::MAX, 8)] {
        t.writable("f", RunAddr(start), len).unwrap();
    }
    // What is no map, or not whole, says nothing.
    for text in ["", "x", "<memory-map/>", &MAP[..MAP.len() - 4], &MAP.replace("0x", "zz")] {
        let t = with(text, 0x8000, 0x3000).unwrap();
        t.writable("f", RunAddr(0x1000), 8).unwrap();
    }
    // One that has no end is not read.
    let huge = format!("{}{MAP}", "<memory/>".repeat(1 << 19));
    assert_eq!(with(&huge, 0x4000, 0x100).unwrap_err().rule(), "remote-protocol");
}

#[test]
fn stacks_end_with_the_ram_that_they_lie_in() {
    let end = |map: &str, sp: u16| {
        // rsp is the eighth.
        let block = format!("{}{}{}", "00".repeat(56), to_hex(&sp.to_le_bytes()), "00".repeat(106));
        let objects = offering("memory-map", map);
        let stub = device(move |p| if p == "g" { Some(block.clone()) } else { objects(p) }).unwrap();
        let mut t = bare(stub, 0x3000, 0x1000).unwrap();
        let maps = t.mappings().unwrap().mappings().unwrap();
        maps.into_iter().find(|m| m.contains(RunAddr(sp.into()))).map(|m| (m.name, m.end.0))
    };
    let stack = |end| Some(("[stack]".to_owned(), end));
    assert_eq!(end("", 0x8000), stack(0x1_0000));
    assert_eq!(end(MAP, 0x8000), stack(0x9000));
    // Not by regions that touch, and not where it lies in no RAM.
    assert_eq!(end(MAP, 0x4800), stack(0x9000));
    assert_eq!(end(MAP, 0xc000), stack(0x1_0000));
    // Memory that is known otherwise is looked through to its own end.
    let small = "<memory-map><memory type='ram' start='0x1000' length='0x20'/><memory type='ram' start='0x3000' length='0x1000'/></memory-map>";
    assert_eq!(end(small, 0x1008), Some(("fw.elf".to_owned(), 0x1078)));
}

#[test]
fn threads_are_listed_where_they_are_not_told_otherwise() {
    const LIST: &str = "<threads><thread id='7' name='idle &lt;0&gt;'/><thread id='p1.1f'/></threads>";
    let with = |first: Option<&'static str>, text: &str| {
        let objects = offering("threads", text);
        device(move |p| if p == "qfThreadInfo" { first.map(str::to_owned) } else { objects(p) }).unwrap()
    };
    assert_eq!(with(None, LIST).thread_ids().unwrap(), [7, 0x1f]);
    assert_eq!(with(Some("E01"), LIST).thread_ids().unwrap(), [7, 0x1f]);
    // An answer counts, and so does one that makes no sense.
    let told = |p: &str| match p {
        "qfThreadInfo" => Some("m3".to_owned()),
        "qsThreadInfo" => Some("l".to_owned()),
        _ => None,
    };
    let objects = offering("threads", LIST);
    assert_eq!(device(move |p| told(p).or_else(|| objects(p))).unwrap().thread_ids().unwrap(), [3]);
    assert_eq!(with(Some("x"), LIST).thread_ids().unwrap_err().rule(), "remote-protocol");
    // A list that may hide a thread is refused, one without any is like none.
    for bad in [
        "",
        "<threads>",
        "<threads><thread id='7'/>",
        "<threads><thread/></threads>",
        "<threads><thread id='x'/></threads>",
    ] {
        assert_eq!(with(None, bad).thread_ids().unwrap_err().rule(), "remote-protocol", "{bad}");
    }
    assert_eq!(with(None, "<threads></threads>").thread_ids().unwrap(), [1]);
    assert_eq!(with(None, &"<threads>".repeat(1 << 19)).thread_ids().unwrap_err().rule(), "remote-protocol");
    let mut t = bare(with(None, LIST), 0x8000, 0x1000).unwrap();
    assert_eq!(t.thread_name(ThreadId(7)), "idle <0>");
    assert_eq!([t.thread_name(ThreadId(0x1f)), t.thread_name(ThreadId(9))], ["", ""]);
    let mut t = bare(device(|_| None).unwrap(), 0x8000, 0x1000).unwrap();
    assert_eq!(t.thread_name(ThreadId(7)), "");
}

/// What is said of a process whose list of mappings can't be read, where the stub gives these objects.
fn without_maps(objects: &[(&'static str, &str)]) -> TargetError {
    let objects: Vec<(&str, String)> = objects.iter().map(|o| (o.0, o.1.to_owned())).collect();
    let stub = device(move |p| {
        if p.starts_with("qSupported") {
            let offers: Vec<String> = objects.iter().map(|o| format!("qXfer:{}:read+", o.0)).collect();
            return Some(format!("PacketSize=1000;qXfer:auxv:read+;{}", offers.join(";")));
        }
        if p.starts_with("qXfer:auxv") {
            return Some(format!("l{}", "\0".repeat(16)));
        }
        objects.iter().find(|o| p.starts_with(&format!("qXfer:{}:read::0,", o.0))).map(|o| format!("l{}", o.1))
    });
    let mut t = GdbTarget::new(stub.unwrap(), &ARCH, Options::default()).unwrap();
    t.mappings().unwrap().mappings().unwrap_err()
}

#[test]
fn libraries_are_told_where_mappings_are_not() {
    const EXEC: (&str, &str) = ("exec-file", "/bin/x");
    const SVR4: (&str, &str) =
        ("libraries-svr4", "<library-list-svr4><library name='/lib/a.so' l_addr='0x3000'/></library-list-svr4>");
    const PLAIN: (&str, &str) = ("libraries", "<library-list><library name='/lib/b&amp;.so'/></library-list>");
    let plain = without_maps(&[]);
    let cases: [(&[(&'static str, &str)], &str); 3] =
        [(&[EXEC], "it lists /bin/x, but"), (&[EXEC, SVR4], "/bin/x, /lib/a.so, but"), (&[PLAIN], "/lib/b&.so, but")];
    for (objects, told) in cases {
        let e = without_maps(objects);
        // The same refusal, with more words.
        assert_eq!(e.rule(), plain.rule());
        assert!(e.to_string().contains(told), "{e}");
    }
    for nothing in ["", "<library", "<library name=/>", "<library-list/>", "\u{1b}[2J"] {
        assert_eq!(without_maps(&[("libraries", nothing)]).to_string(), plain.to_string());
    }
    let many = "<library name='/lib/a.so'/>".repeat(5);
    assert!(without_maps(&[("libraries", &many)]).to_string().contains("/lib/a.so, ..., but"));
}
