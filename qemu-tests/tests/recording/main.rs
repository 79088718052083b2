//! `fix` and `revert` on a process that exists only in memory, so that every step can be watched, and made to fail.

mod caching;
#[path = "../support/mod.rs"]
mod support;
mod target;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use support::{Workshop, fixture, symbols, word};
use target::{AREA, Event, Fault, Hole, Map, Plan, Process, Step, Then, Thread};
use tigerfix::addr::RunAddr;
use tigerfix::arch::Registers;
use tigerfix::error::{Class, Explain as _};
use tigerfix::generate::Generate;
use tigerfix::judge::JudgeOptions;
use tigerfix::model::{Package, Referent};
use tigerfix::session::record::{Record, State};
use tigerfix::session::{self, Clock, Options, Policy, SessionError};
use tigerfix::target::{Perm, ThreadId};
use tigerfix_arch_x86_64::X86_64;
use tigerfix_core::arch::Arch as _;

const PIE_AT: u64 = 0x5555_5555_4000;
const STACK: u64 = 0x7ffd_0000_0000;
const STACK_SIZE: u64 = 0x3000;
const WORKER_STACK: u64 = 0x7f10_0000_0000;
const WORKER_STACK_SIZE: u64 = 0x3000;
/// Code without symbols or unwind tables.
const JIT: u64 = 0x7f20_0000_0000;

#[derive(Default)]
struct TestClock(u64);

impl Clock for TestClock {
    fn now_us(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
    fn wait_us(&mut self, us: u64) {
        self.0 += us;
    }
    fn unix_seconds(&mut self) -> u64 {
        1_700_000_000
    }
}

/// A compiled program with two patches for it.
struct Subject {
    file: Vec<u8>,
    bias: u64,
    symbols: BTreeMap<String, (u64, u64)>,
    /// `fix` replaces both functions, `again` does the same once more.
    fix: Package,
    again: Package,
}

impl Subject {
    fn new(pie: bool, extra: &[&str]) -> Subject {
        let shop = Workshop::new();
        let link: &[&str] = if pie { &["-fPIE", "-static-pie"] } else { &["-fno-pie", "-no-pie", "-static"] };
        let common = ["-O1", "-nostdlib", "-fno-stack-protector", "-Wl,--eh-frame-hdr", "-Wl,--build-id"];
        let file = shop.gcc("program", &[&fixture("session_program.c")], &[&common, link, extra].concat());
        let package = |name: &str, level: &str| {
            let flags = [&["-c", "-O1", "-fPIC", level], extra].concat();
            let object = shop.gcc(&format!("{name}.o"), &[&fixture("session_patch.c")], &flags);
            let job = Generate::new("program", &file).object("patch.o", &object).name(name).description("a test");
            let allow = JudgeOptions::strict().allow_clobbers(true);
            let job = job.replace("new_first", "first").replace("new_second", "second").allow(allow);
            job.run().unwrap_or_else(|e| panic!("{e}")).package
        };
        let bias = if pie { PIE_AT } else { 0 };
        let all = symbols(&file).into_iter().filter(|s| s.section != 0);
        Subject {
            bias,
            symbols: all.map(|s| (s.name, (s.value + bias, s.size))).collect(),
            fix: package("fix", "-DLEVEL=1"),
            again: package("again", "-DLEVEL=2"),
            file,
        }
    }

    fn fixed() -> &'static Subject {
        static ONE: OnceLock<Subject> = OnceLock::new();
        ONE.get_or_init(|| Subject::new(false, &[]))
    }

    fn pie() -> &'static Subject {
        static ONE: OnceLock<Subject> = OnceLock::new();
        ONE.get_or_init(|| Subject::new(true, &[]))
    }

    fn at(&self, name: &str) -> u64 {
        self.symbols.get(name).unwrap_or_else(|| panic!("no {name}")).0
    }

    /// The address behind a call of `callee` in `caller`.
    fn behind_call(&self, caller: &str, callee: &str) -> u64 {
        let (start, size) = self.symbols[caller];
        let code = self.process_without_threads().bytes(start, size as usize);
        let target = self.at(callee);
        let behind = |i: usize| start + i as u64 + 5;
        let calls = |i: &usize| {
            code[*i] == 0xe8 && behind(*i).wrapping_add_signed(i64::from(word(&code[i + 1..i + 5]) as i32)) == target
        };
        behind((0..code.len() - 5).find(calls).unwrap_or_else(|| panic!("{caller} does not call {callee}")))
    }

    fn process_without_threads(&self) -> Process {
        let f = &self.file;
        let at = |from: usize, len: usize| word(&f[from..from + len]);
        let mut maps = Vec::new();
        for i in 0..at(56, 2) as usize {
            let p = at(32, 8) as usize + 56 * i;
            if at(p, 4) != 1 {
                continue;
            }
            let (flags, offset, vaddr) = (at(p + 4, 4), at(p + 8, 8), at(p + 16, 8));
            let (filesz, memsz) = (at(p + 32, 8), at(p + 40, 8));
            let slack = vaddr % 0x1000;
            let mut bytes = vec![0u8; (slack + memsz).next_multiple_of(0x1000) as usize];
            let from = (offset - slack) as usize;
            let len = (slack + filesz) as usize;
            bytes[..len].copy_from_slice(&f[from..from + len]);
            maps.push(Map {
                start: vaddr - slack + self.bias,
                perm: Perm { read: flags & 4 != 0, write: flags & 2 != 0, exec: flags & 1 != 0 },
                offset: offset - slack,
                file: (8, 42),
                name: "/sim/program".into(),
                bytes,
            });
        }
        let anonymous = |start: u64, size: u64, perm: Perm, name: &str| Map {
            start,
            perm,
            offset: 0,
            file: (0, 0),
            name: name.into(),
            bytes: vec![0; size as usize],
        };
        maps.push(anonymous(STACK, STACK_SIZE, Perm::RW, "[stack]"));
        maps.push(anonymous(WORKER_STACK, WORKER_STACK_SIZE, Perm::RW, ""));
        maps.push(anonymous(JIT, 0x1000, Perm::RX, ""));
        Process::new(maps, Vec::new())
    }

    /// Two threads that rest in `idle`, called from `_start`.
    fn process(&self) -> Process {
        let mut p = self.process_without_threads();
        let main = STACK + STACK_SIZE - 0x1000;
        let worker = WORKER_STACK + WORKER_STACK_SIZE - 0x1000;
        for (id, name, sp) in [(100, "main", main), (101, "worker", worker)] {
            let layout = X86_64.registers();
            let mut registers = Registers::ZERO;
            registers.set(layout.pc, self.at("idle"));
            registers.set(layout.sp, sp);
            registers.set(layout.tp.expect("has one"), WORKER_STACK + WORKER_STACK_SIZE - 0x100);
            p.poke(sp, &self.behind_call("_start", "idle").to_le_bytes());
            p.threads.push(Thread { id, name, registers });
        }
        p
    }
}

impl Process {
    /// Puts a thread somewhere: pc, and the words on top of its stack.
    fn place(&mut self, id: u64, pc: u64, stack: &[u64]) {
        let layout = X86_64.registers();
        let thread = self.threads.iter_mut().find(|t| t.id == id).expect("one of ours");
        thread.registers.set(layout.pc, pc);
        let sp = thread.registers.get(layout.sp);
        for (i, w) in stack.iter().enumerate() {
            self.poke(sp + 8 * i as u64, &w.to_le_bytes());
        }
    }
}

fn options(form: Option<&str>) -> Options {
    Options { form: form.map(String::from), timeout_ms: 50, ..Options::default() }
}

#[allow(clippy::result_large_err)] // the library's own
fn apply(p: &mut Process, package: &Package, o: &Options) -> Result<session::Applied, SessionError> {
    let arch = arch(p);
    session::apply(p, arch, package, o, &mut TestClock::default())
}

#[allow(clippy::result_large_err)] // the library's own
fn revert(p: &mut Process, name: Option<&str>) -> Result<session::Reverted, SessionError> {
    let arch = arch(p);
    session::revert(p, arch, name, 50, &mut TestClock::default())
}

/// The record as it lies in the target.
fn record(p: &Process) -> Record {
    let mut copy = p.rewound();
    let starts: Vec<u64> = copy.regions().iter().map(|m| m.start).collect();
    // A region of islands has none.
    starts.into_iter().find_map(|at| Record::read(&mut copy, RunAddr(at)).ok()).expect("a record")
}

/// Where the jump at `at` ends, through landings and islands.
fn follow(p: &Process, at: u64) -> u64 {
    let b = p.bytes(at, 14);
    let near = |from: u64, bytes: &[u8]| from.wrapping_add_signed(i64::from(word(&bytes[..4]) as i32));
    match b[..] {
        [0xe9, ..] => {
            let to = near(at + 5, &b[1..]);
            if p.bytes(to, 6) == [0xff, 0x25, 0, 0, 0, 0] { follow(p, to) } else { to }
        }
        [0xff, 0x25, 0, 0, 0, 0, ..] => word(&b[6..14]),
        [0x50, 0x48, 0xb8, ..] => {
            let landing = word(&b[3..11]);
            let l = p.bytes(landing, 6);
            assert_eq!((b[11], b[12], l[0], l[1]), (0xff, 0xe0, 0x58, 0xe9));
            near(landing + 6, &l[2..])
        }
        _ => panic!("no jump at {at:#x}: {b:02x?}"),
    }
}

fn arch(p: &Process) -> &'static dyn tigerfix::arch::Arch {
    if p.by_call { &caching::Caching } else { &X86_64 }
}

/// No rule was broken, but that nothing can be flushed where no flush works.
#[track_caller]
fn assert_rules(p: &Process, what: &str) {
    let cannot_flush = matches!(p.failed, Some(Step::Flush(..) | Step::Syscall("cacheflush")));
    let rules = p.broken_rules.iter().filter(|r| !(cannot_flush && r.contains("unflushed")));
    assert_eq!(rules.collect::<Vec<_>>(), Vec::<&String>::new(), "{what}");
}

/// Nobody is stopped or held, and no rule was broken.
#[track_caller]
fn assert_free(p: &Process, what: &str) {
    assert_eq!(p.broken_rules, Vec::<String>::new(), "{what}");
    assert!(
        !p.stopped && !p.attached && !p.held,
        "{what}: stopped {}, attached {}, held {}",
        p.stopped,
        p.attached,
        p.held
    );
}

#[track_caller]
fn assert_same(a: &[Map], b: &[Map], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}: mappings");
    for (x, y) in a.iter().zip(b) {
        assert_eq!((x.start, x.perm, &x.name), (y.start, y.perm, &y.name), "{what}");
        if let Some(i) = x.bytes.iter().zip(&y.bytes).position(|(a, b)| a != b) {
            panic!("{what}: {} differs at {:#x}", x.name, x.start + i as u64);
        }
    }
}

/// All of the patch is in, and only its sites changed.
#[track_caller]
fn assert_applied(p: &Process, before: &Process, what: &str) {
    assert_free(p, what);
    let r = record(p);
    assert_eq!(r.state, State::Applied, "{what}");
    let mut expected = before.clone();
    assert_eq!(r.sites.len(), 2, "{what}");
    for s in &r.sites {
        assert_eq!(follow(p, s.at.0), s.new.0, "{what}: `{}`", s.function);
        assert_eq!(before.bytes(s.at.0, s.old_bytes.len()), s.old_bytes, "{what}");
        expected.poke(s.at.0, &s.new_bytes);
    }
    assert_same(&expected.original(), &p.original(), what);
}

/// As if tfix had never come.
#[track_caller]
fn assert_untouched(p: &Process, before: &Process, what: &str) {
    assert_free(p, what);
    assert_same(&before.original(), &p.original(), what);
    assert!(
        p.regions().is_empty(),
        "{what}: {:x?} stay mapped",
        p.regions().iter().map(|m| m.start).collect::<Vec<_>>()
    );
}

const FORMS: [Option<&str>; 5] = [None, Some("jmp-rel32"), Some("island"), Some("push-mov-jmp"), Some("jmp-rip")];

#[test]
fn every_form_applies_and_reverts_by_the_rules() {
    for (subject, by_call) in variants() {
        for form in FORMS {
            let what = format!("{form:?}, bias {:#x}, flushes by call: {by_call}", subject.bias);
            let mut before = subject.process();
            before.by_call = by_call;
            let mut p = before.clone();
            let applied = apply(&mut p, &subject.fix, &options(form)).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(applied.attempts, 1);
            assert_applied(&p, &before, &what);
            assert_eq!(applied.record.sites, record(&p).sites);
            if let Some(f) = form {
                assert!(applied.record.sites.iter().all(|s| s.form == f), "{what}");
            }
            assert_eq!(p.dirty, [], "{what}");
            assert!(p.open.is_empty(), "{what}: descriptors stay open");
            let pages = |w: bool, x: bool| p.regions().iter().any(|m| m.perm.write == w && m.perm.exec == x);
            assert!(pages(true, false) && pages(false, true) && !pages(true, true), "{what}");

            // While anybody is stopped, only sites and the record's state are written.
            let stop = p.log.iter().position(|s| *s == Step::StopAll).expect("threads were stopped");
            let r = record(&p);
            for s in &p.log[stop..] {
                if let Step::Write(at, len) = *s {
                    let site = r.sites.iter().any(|s| s.at.0 == at && s.new_bytes.len() == len);
                    assert!(site || (at == r.at.0 + 8 && len == 8), "{what}: {len} bytes at {at:#x}");
                }
            }
            let reverted = revert(&mut p, None).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(reverted.parked, None, "{what}");
            assert_untouched(&p, &before, &what);
        }
    }
}

#[test]
fn nothing_is_written_before_everything_was_validated() {
    let s = Subject::fixed();
    type Spoil = fn(&mut Process, &mut Package, &mut Options);
    let rows: [(&str, Class, Spoil); 9] = [
        ("unexpected-bytes", Class::Refused, |p, k, _| p.poke(k.sites[1].entry.0 + 1, &[0xcc])),
        ("program-not-loaded", Class::Refused, |p, _, _| p.poke(0x40_0000, b"no ELF")),
        ("unknown-form", Class::BadInput, |_, _, o| o.form = Some("leap".into())),
        ("no-jump-form", Class::Refused, |_, k, _| k.sites[1].window = 4),
        ("other-architecture", Class::BadInput, |_, k, _| k.ident.machine = 8),
        ("unknown-residue", Class::BadInput, |_, k, _| k.residue[0].r_type = 5),
        ("import-missing", Class::Refused, |_, k, _| k.symbols[0].referent = Referent::Import { weak: false }),
        ("no-space", Class::Refused, |_, k, _| k.base = Some(0x40_0000)),
        ("interrupted", Class::Refused, |p, _, _| p.interrupt_at = Some(1)),
    ];
    for (rule, class, spoil) in rows {
        let (mut p, mut package, mut o) = (s.process(), s.fix.clone(), options(None));
        spoil(&mut p, &mut package, &mut o);
        let before = p.clone();
        let e = apply(&mut p, &package, &o).map(|a| a.record.name).expect_err(rule);
        assert_eq!((e.rule(), e.class()), (rule, class), "{e}");
        let harmless = |s: &&Step| matches!(s, Step::Read(..) | Step::Mappings | Step::File | Step::Auxv);
        assert_eq!(p.log.iter().find(|s| !harmless(s)), None, "{rule}: nobody is stopped, nothing is written");
        assert_untouched(&p, &before, rule);
    }
}

#[test]
fn a_user_who_interrupts_leaves_no_trace() {
    let s = Subject::fixed();
    let before = s.process();
    let mut p = before.clone();
    apply(&mut p, &s.fix, &options(None)).expect("applies");
    let total = p.log.len();
    let mut done = 0;
    for n in 0..=total {
        let mut p = before.clone();
        p.interrupt_at = Some(n);
        match apply(&mut p, &s.fix, &options(None)) {
            Ok(_) => {
                assert_applied(&p, &before, "interrupted too late");
                done += 1;
            }
            Err(e) => {
                assert_eq!((e.rule(), e.class()), ("interrupted", Class::Refused), "step {n}: {e}");
                assert_untouched(&p, &before, &format!("interrupted at step {n}"));
            }
        }
    }
    assert!(done > 0 && done < total, "{done} of {total}");
}

/// What a failure left behind is as it was, or else the error says so and `revert` mends it.
fn judge_apply(s: &Subject, before: &Process, p: Process, result: Result<session::Applied, SessionError>, what: &str) {
    let sites_written = p.sites_written;
    match result {
        Ok(_) => assert_applied(&p, before, what),
        Err(e) => {
            let what = format!("{what}: {e}");
            let single = p.plan.is_none_or(|f| f.then == Then::Once);
            assert_rules(&p, &what);
            if single {
                assert_free(&p, &what);
                assert_same(&before.original(), &p.original(), &what);
                assert_ne!(e.rule(), "undo-failed", "{what}");
            }
            if sites_written {
                assert!(touched(&e), "{what}");
            } else if single {
                assert!(!touched(&e), "{what}");
            }
            let changed = p.original() != before.original();
            if changed {
                assert!(matches!(e.rule(), "undo-failed" | "not-resumed"), "{what}: sites are changed");
                assert!(!p.regions().is_empty(), "{what}: sites lead to nowhere");
            }
            if !p.regions().is_empty() {
                let at = format!("{:#x}", p.regions()[0].start);
                let says = e.to_string().contains(&at) || matches!(e.rule(), "undo-failed" | "not-resumed");
                assert!(says, "{what}: the region at {at} stays and nobody says so");
            }
            // Once the trouble is over, the rest goes away.
            let mut later = p.let_go();
            if !p.regions().is_empty() && record_is_readable(&later) {
                revert(&mut later, None).unwrap_or_else(|e| panic!("{what}; then revert: {e}"));
                assert_same(&before.original(), &later.original(), &what);
                later = later.rewound();
            }
            if single {
                apply(&mut later, &s.fix, &options(None)).unwrap_or_else(|e| panic!("{what}; then apply: {e}"));
            }
        }
    }
}

fn record_is_readable(p: &Process) -> bool {
    let mut copy = p.rewound();
    let maps = copy.regions().iter().map(|m| m.start).collect::<Vec<_>>();
    maps.iter().any(|at| Record::read(&mut copy, RunAddr(*at)).is_ok())
}

const FAULTS: [Fault; 4] = [Fault::Refused, Fault::Late, Fault::Half, Fault::Silent];

/// Programs, and whether caches are flushed by a call.
fn variants() -> [(&'static Subject, bool); 4] {
    let (fixed, pie) = (Subject::fixed(), Subject::pie());
    [(fixed, false), (pie, false), (fixed, true), (pie, true)]
}

/// All ways to fail. Nothing can be said of memory that stores something else all the time.
fn faults() -> impl Iterator<Item = (Fault, Then)> {
    let pairs = FAULTS.into_iter().flat_map(|f| [(f, Then::Once), (f, Then::SameKind)]);
    pairs.filter(|p| *p != (Fault::Silent, Then::SameKind))
}

#[test]
fn a_failure_at_any_step_of_apply_leaves_no_trace() {
    let mut steps = 0;
    for (subject, by_call) in variants() {
        for form in FORMS {
            let mut before = subject.process();
            before.by_call = by_call;
            for (fault, then) in faults() {
                for step in 0.. {
                    let mut p = before.clone();
                    p.plan = Some(Plan { fault, step, then });
                    let result = apply(&mut p, &subject.fix, &options(form));
                    let Some(failed) = p.failed.clone() else { break };
                    let what =
                        format!("{form:?}, by call: {by_call}, {fault:?} at step {step} ({failed:x?}), {then:?}");
                    judge_apply(subject, &before, p, result, &what);
                    steps += 1;
                }
            }
        }
    }
    println!("{steps} failures injected");
    assert!(steps > 2500, "{steps}");
}

#[test]
fn a_failure_at_any_step_of_revert_leaves_the_patch_in_or_out() {
    let mut steps = 0;
    for (subject, by_call) in variants() {
        for form in FORMS {
            let mut pristine = subject.process();
            pristine.by_call = by_call;
            let mut patched = pristine.clone();
            apply(&mut patched, &subject.fix, &options(form)).expect("applies");
            let patched = patched.rewound();
            for (fault, then) in faults() {
                for step in 0.. {
                    let mut p = patched.clone();
                    p.plan = Some(Plan { fault, step, then });
                    let result = revert(&mut p, None);
                    let Some(failed) = p.failed.clone() else { break };
                    let what =
                        format!("{form:?}, by call: {by_call}, {fault:?} at step {step} ({failed:x?}), {then:?}");
                    judge_revert(&pristine, &patched, p, result, &what);
                    steps += 1;
                }
            }
        }
    }
    println!("{steps} failures injected");
    assert!(steps > 1000, "{steps}");
}

fn judge_revert(
    pristine: &Process,
    patched: &Process,
    p: Process,
    result: Result<session::Reverted, SessionError>,
    what: &str,
) {
    let single = p.plan.is_none_or(|f| f.then == Then::Once);
    assert_rules(&p, what);
    let mut later = p.let_go();
    match result {
        Ok(r) => {
            assert_same(&pristine.original(), &p.original(), what);
            if single {
                assert_free(&p, what);
            }
            assert!(p.regions().is_empty() || r.parked.is_some(), "{what}: nobody says that the image stays");
        }
        Err(e) => {
            let what = format!("{what}: {e}");
            if single {
                assert_free(&p, &what);
                assert_same(&patched.original(), &p.original(), &what);
                assert_eq!(record(&p).state, State::Applied, "{what}");
            }
            assert!(!p.sites_written || touched(&e), "{what}");
            assert!(!single || p.sites_written || !touched(&e), "{what}");
            if p.original() != patched.original() {
                assert!(matches!(e.rule(), "undo-failed" | "not-resumed"), "{what}: sites are changed");
            }
            if record_is_readable(&later) && record(&later).state != State::Parked {
                revert(&mut later, None).unwrap_or_else(|e| panic!("{what}; then revert: {e}"));
            }
            assert_same(&pristine.original(), &later.original(), &what);
        }
    }
}

/// Busy, with the one blocker; nothing was written.
#[track_caller]
fn busy(s: &Subject, p: &Process, o: &Options) -> session::Blocker {
    let mut p = p.rewound();
    let before = p.clone();
    let e = apply(&mut p, &s.fix, o).map(|a| a.record.name).expect_err("is in the way");
    assert_eq!((e.rule(), e.class()), ("busy", Class::Refused), "{e}");
    assert_untouched(&p, &before, "busy");
    assert!(!p.sites_written);
    let text = e.to_string();
    let SessionError::Busy { mut blockers, attempts, .. } = e else { panic!("{e}") };
    assert!(attempts > 1, "tried once only");
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    let b = blockers.remove(0);
    assert!(text.contains(&b.thread_name) && text.contains(&b.function), "{text}");
    b
}

#[test]
fn threads_in_the_way_are_named() {
    for s in [Subject::fixed(), Subject::pie()] {
        let o = options(None);
        let window = Options { policy: Policy::Window, ..o.clone() };
        let (entry, size) = s.symbols["first"];

        // The pc inside.
        let mut p = s.process();
        p.place(101, entry + 1, &[0]);
        let b = busy(s, &p, &o);
        let got = (b.thread, b.thread_name.as_str(), b.function.as_str(), b.at.0, b.offset, b.frame);
        assert_eq!(got, (ThreadId(101), "worker", "first", entry + 1, 1, Some(0)));
        assert_eq!(busy(s, &p, &window).offset, 1);

        // At its end: only the window policy lets that pass.
        p.place(101, entry + size - 1, &[0]);
        assert_eq!(busy(s, &p, &o).offset, size - 1);
        apply(&mut p.rewound(), &s.fix, &window).expect("behind the window");

        // At the entry: the trampoline takes over.
        p.place(101, entry, &[s.behind_call("_start", "spin")]);
        apply(&mut p.rewound(), &s.fix, &o).expect("at the entry");

        // A return address on the stack, one frame up, exactly unwound.
        let mut p = s.process();
        let back = s.behind_call("first", "spin");
        p.place(100, s.at("spin"), &[back]);
        let b = busy(s, &p, &o);
        let got = (b.thread, b.thread_name.as_str(), b.function.as_str(), b.at.0, b.offset, b.frame);
        assert_eq!(got, (ThreadId(100), "main", "first", back, back - entry, Some(1)));

        // The same word is stale where the stack can be unwound to its end without it.
        let mut p = s.process();
        p.place(100, s.at("idle"), &[s.behind_call("_start", "idle"), back, back]);
        apply(&mut p.rewound(), &s.fix, &o).expect("a stale word");

        // Where it can't be, the word counts.
        p.place(100, JIT + 0x10, &[0, 0, 0, back]);
        let b = busy(s, &p, &o);
        assert_eq!((b.thread, b.function.as_str(), b.at.0, b.frame), (ThreadId(100), "first", back, None));
        assert!(b.to_string().contains("may return into"), "{b}");

        // A word far below the stack pointer is nobody's.
        let mut p = s.process();
        p.place(100, JIT + 0x10, &[0]);
        let sp = p.threads[0].registers.get(X86_64.registers().sp);
        p.poke(sp - 0x800, &back.to_le_bytes());
        apply(&mut p, &s.fix, &o).expect("below the stack");

        // No stack at all.
        let mut p = s.process();
        let sp = X86_64.registers().sp;
        p.threads[1].registers.set(sp, 0x1234);
        let before = p.clone();
        let e = apply(&mut p, &s.fix, &o).map(|a| a.record.name).expect_err("no stack");
        assert_eq!(e.rule(), "stack-unknown", "{e}");
        assert_untouched(&p, &before, "no stack");
    }
}

#[test]
fn a_thread_that_leaves_is_waited_for() {
    let s = Subject::fixed();
    let mut p = s.process();
    p.place(101, s.at("second") + 3, &[0]);
    p.leaves = Some((4, 101, JIT));
    let before = p.clone();
    let applied = apply(&mut p, &s.fix, &options(None)).expect("applies");
    assert_eq!(applied.attempts, 4);
    assert_applied(&p, &before, "after three waits");
}

/// Nobody knows where a thread goes on that executes a copy of an instruction; other code without a file is none of ours.
#[test]
fn a_thread_out_of_its_place_is_waited_for() {
    let s = Subject::fixed();
    let mut p = s.process();
    p.by_call = true;
    p.place(101, JIT + 0x10, &[0]);
    apply(&mut p.clone(), &s.fix, &options(None)).expect("other code");
    p.poke(JIT + 0x10, &caching::OUT_OF_PLACE);
    let before = p.clone();
    let e = apply(&mut p, &s.fix, &options(None)).map(|a| a.attempts).expect_err("stays there");
    assert_eq!((e.rule(), e.class()), ("stack-unknown", Class::Refused), "{e}");
    assert_untouched(&p, &before, "out of place");
    let mut p = before.clone();
    p.leaves = Some((3, 101, JIT));
    assert_eq!(apply(&mut p, &s.fix, &options(None)).expect("applies").attempts, 3);
    // What lies in a file is what it seems.
    let mut p = before.clone();
    p.maps.iter_mut().filter(|m| m.start == JIT).for_each(|m| m.file = (8, 43));
    apply(&mut p, &s.fix, &options(None)).expect("in a file");
}

#[test]
fn a_second_patch_lies_on_top_of_the_first() {
    for s in [Subject::fixed(), Subject::pie()] {
        for (lower, upper) in FORMS.into_iter().flat_map(|a| FORMS.map(|b| (a, b))) {
            let what = format!("{lower:?} under {upper:?}");
            let before = s.process();
            let mut p = before.clone();
            apply(&mut p, &s.fix, &options(lower)).expect("applies");
            let between = p.rewound();
            let e = apply(&mut p, &s.fix, &options(lower)).map(|a| a.record.name).expect_err("twice");
            assert_eq!(e.rule(), "already-applied");
            apply(&mut p, &s.again, &options(upper)).unwrap_or_else(|e| panic!("{what}: {e}"));
            let records: Vec<Record> =
                session::list(&mut p).expect("lists").into_iter().map(|r| r.expect("whole")).collect();
            assert_eq!(records.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["fix", "again"]);
            for site in &records[1].sites {
                assert_eq!(follow(&p, site.at.0), site.new.0, "{what}");
            }
            let e = revert(&mut p, Some("fix")).map(|r| r.attempts).expect_err("not on top");
            assert_eq!((e.rule(), e.class()), ("not-topmost", Class::Refused), "{e}");
            assert!(e.to_string().contains("`again`"), "{e}");
            assert_free(&p, &what);
            let reverted = revert(&mut p, None).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!((reverted.record.name.as_str(), reverted.parked), ("again", None), "{what}");
            assert_same(&between.original(), &p.original(), &what);
            assert_eq!(revert(&mut p, Some("fix")).expect("reverts").parked, None);
            assert_untouched(&p, &before, &what);
            assert_eq!(revert(&mut p, None).map(|r| r.attempts).expect_err("nothing left").rule(), "not-applied");
        }
    }
}

/// A tfix that was killed after any step: `revert` finishes, and `fix` says what to do.
#[test]
fn what_a_killed_fix_left_can_be_reverted() {
    let s = Subject::fixed();
    let before = s.process();
    for form in FORMS {
        let mut whole = before.clone();
        apply(&mut whole, &s.fix, &options(form)).expect("applies");
        let mut interrupted = 0;
        for n in 0..whole.log.len() {
            let mut p = before.clone();
            p.plan = Some(Plan { fault: Fault::Refused, step: n, then: Then::Everything });
            let _ = apply(&mut p, &s.fix, &options(form));
            let mut p = p.let_go();
            let what = format!("{form:?}, killed at step {n}");
            if !record_is_readable(&p) {
                assert_same(&before.original(), &p.original(), &what);
                continue;
            }
            if record(&p).state != State::Applied {
                interrupted += 1;
                let e = apply(&mut p.clone(), &s.again, &options(None)).map(|a| a.record.name).expect_err("unfinished");
                assert_eq!((e.rule(), e.class()), ("interrupted-patch", Class::Refused), "{what}");
            }
            let r = revert(&mut p, Some("fix")).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(r.parked, None, "{what}");
            assert_untouched(&p, &before, &what);
        }
        assert!(interrupted > 3, "{interrupted} with a record");
    }
}

/// Wherever the writing of a second patch is cut off, every record can be read, and the first patch be reverted.
#[test]
fn what_was_cut_short_hides_no_other_patch() {
    let s = Subject::fixed();
    let before = s.process();
    let mut first = before.clone();
    apply(&mut first, &s.fix, &options(None)).expect("applies");
    let first = first.rewound();
    let mut whole = first.clone();
    apply(&mut whole, &s.again, &options(None)).expect("applies");
    for n in 0..whole.log.len() {
        let what = format!("cut off at step {n} ({:x?})", whole.log[n]);
        let mut p = first.clone();
        p.plan = Some(Plan { fault: Fault::Half, step: n, then: Then::Everything });
        let _ = apply(&mut p, &s.again, &options(None));
        let mut p = p.let_go();
        let all = session::list(&mut p).expect("lists");
        let names: Vec<String> = all.into_iter().map(|r| r.unwrap_or_else(|e| panic!("{what}: {e}")).name).collect();
        assert!(names == ["fix"] || names == ["fix", "again"], "{what}: {names:?}");
        for name in names.iter().rev() {
            match revert(&mut p, Some(name)) {
                Ok(r) => assert_eq!(r.parked, None, "{what}"),
                Err(e) => panic!("{what}: {e}"),
            }
        }
        assert_untouched(&p, &before, &what);
    }
}

/// Anybody can map a memory file of our name, as often as he likes.
#[test]
fn forged_records_are_believed_up_to_a_limit() {
    let s = Subject::fixed();
    let mut p = s.process();
    apply(&mut p, &s.fix, &options(None)).expect("applies");
    let mut forged = record(&p);
    forged.description = "x".repeat(7 << 20);
    let bytes = forged.encode();
    for i in 0..4 {
        p.maps.push(Map {
            start: 0x10_0000_0000 + (i << 24),
            perm: Perm::R,
            offset: 0,
            file: (1, 78),
            name: "/memfd:tfix:forged (deleted)".into(),
            bytes: bytes.clone(),
        });
    }
    let all = session::list(&mut p).expect("lists");
    let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (3, 2));
    assert!(bad.into_iter().all(|e| e.is_err_and(|e| e.rule() == "bad-record")));
}

/// The same for `revert`, which another one finishes.
#[test]
fn what_a_killed_revert_left_can_be_reverted() {
    let s = Subject::fixed();
    let before = s.process();
    let mut patched = before.clone();
    apply(&mut patched, &s.fix, &options(None)).expect("applies");
    let patched = patched.rewound();
    let mut whole = patched.clone();
    revert(&mut whole, None).expect("reverts");
    for n in 0..whole.log.len() {
        let mut p = patched.clone();
        p.plan = Some(Plan { fault: Fault::Refused, step: n, then: Then::Everything });
        let _ = revert(&mut p, None);
        let mut p = p.let_go();
        let what = format!("killed at step {n}");
        if p.regions().is_empty() || record(&p).state == State::Parked {
            assert_same(&before.original(), &p.original(), &what);
            continue;
        }
        revert(&mut p, None).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_untouched(&p, &before, &what);
    }
}

/// A thread that still runs new code, or a pointer to it, keeps the image mapped after `revert`.
#[test]
fn an_image_in_use_is_parked() {
    let s = Subject::fixed();
    let mut p = s.process();
    let before = p.clone();
    apply(&mut p, &s.fix, &options(None)).expect("applies");
    let new = record(&p).sites[0].new.0;
    let patched = p.rewound();
    type Spoil = fn(&Subject, &mut Process, u64);
    let rows: [(&str, Spoil); 4] = [
        ("executes", |_, p, new| p.place(101, new + 2, &[0])),
        ("return", |s, p, new| p.place(101, s.at("idle"), &[new + 9])),
        ("pointer into the image", |s, p, new| p.poke(s.at("counter") & !7, &new.to_le_bytes())),
        ("points into the image", |_, p, new| p.threads[0].registers.set(1, new)),
    ];
    for (says, spoil) in rows {
        let mut p = patched.clone();
        spoil(s, &mut p, new);
        let r = revert(&mut p, None).unwrap_or_else(|e| panic!("{says}: {e}"));
        let why = r.parked.unwrap_or_else(|| panic!("{says}: freed"));
        assert!(why.contains(says), "{why}");
        assert_free(&p, says);
        assert_eq!(record(&p).state, State::Parked);
        let site = record(&p).sites[0].clone();
        assert_eq!(p.bytes(site.at.0, site.old_bytes.len()), before.bytes(site.at.0, site.old_bytes.len()));
        assert_eq!(revert(&mut p, None).map(|r| r.attempts).expect_err("is out").rule(), "not-applied");
    }
    // In the middle of the trampoline nothing is put back.
    let mut p = patched.clone();
    let site = record(&p).sites[0].clone();
    p.place(100, site.at.0 + 2, &[0]);
    let before = p.clone();
    let e = revert(&mut p, None).map(|r| r.attempts).expect_err("in the trampoline");
    assert_eq!((e.rule(), e.class()), ("busy", Class::Refused), "{e}");
    assert_free(&p, "busy");
    assert_same(&before.original(), &p.original(), "busy");
}

/// A page that can't be read hides no pointer beside it, and a line that breaks is no proof that there is none.
#[test]
fn a_search_leaves_out_only_what_cannot_be_read() {
    let s = Subject::fixed();
    let mut p = s.process();
    const HEAP: u64 = 0x7f30_0000_0000;
    p.maps.push(Map {
        start: HEAP,
        perm: Perm::RW,
        offset: 0,
        file: (0, 0),
        name: String::new(),
        bytes: vec![0; 0x4000],
    });
    apply(&mut p, &s.fix, &options(None)).expect("applies");
    let new = record(&p).sites[0].new.0;
    for (hole, pointer, why) in [
        (Hole::Unreadable, None, None),
        (Hole::Unreadable, Some(HEAP + 0x3ff8), Some("pointer into the image")),
        (Hole::Unreadable, Some(HEAP + 0x1000), None),
        (Hole::Broken, None, Some("injected fault")),
    ] {
        let mut p = p.rewound();
        p.holes.push((HEAP + 0x1000, hole));
        if let Some(at) = pointer {
            p.poke(at, &new.to_le_bytes());
        }
        let parked = revert(&mut p, None).expect("reverts").parked;
        let as_it_should = match why {
            None => parked.is_none(),
            Some(why) => parked.as_ref().is_some_and(|p| p.contains(why)),
        };
        assert!(as_it_should, "{hole:?}, {pointer:x?}: {parked:?}");
        assert_free(&p, "after the search");
    }
}

/// Registers may hold signed pointers as memory may.
#[test]
fn a_signed_pointer_in_a_register_is_one() {
    let s = Subject::fixed();
    let mut p = s.process();
    p.by_call = true;
    apply(&mut p, &s.fix, &options(None)).expect("applies");
    let new = record(&p).sites[0].new.0;
    p.threads[0].registers.set(1, new | 0x3d << 48);
    let why = revert(&mut p, None).expect("reverts").parked.expect("parked");
    assert!(why.contains("points into the image"), "{why}");
}

/// Resolvers run while the image is being written: the breakpoint that they return to must be visible to fetch by then.
#[test]
fn resolvers_return_to_flushed_code() {
    let s = Subject::new(false, &["-DWITH_IFUNC"]);
    let before = s.process();
    assert!(s.fix.symbols.iter().any(|x| matches!(x.referent, Referent::ProgramIfunc(_))), "the fixture has an IFUNC");
    let mut p = before.clone();
    apply(&mut p, &s.fix, &options(None)).expect("applies");
    assert!(p.log.iter().any(|s| matches!(s, Step::Call(_))), "its resolver was called");
    assert_applied(&p, &before, "with a resolver");
    for fault in FAULTS {
        for step in 0.. {
            let mut p = before.clone();
            p.plan = Some(Plan { fault, step, then: Then::Once });
            let result = apply(&mut p, &s.fix, &options(None));
            let Some(failed) = p.failed.clone() else { break };
            judge_apply(&s, &before, p, result, &format!("{fault:?} at step {step} ({failed:x?})"));
        }
    }
}

/// The recording target itself notices a forgotten flush and a write to running code.
#[test]
fn the_recording_target_can_fail() {
    use tigerfix::target::{CacheFlush as _, Target as _, Threads as _};
    let s = Subject::fixed();
    let mut p = s.process();
    p.write(RunAddr(s.at("first")), &[0x90]).expect("writes");
    assert!(p.broken_rules[0].contains("while threads ran"), "{:?}", p.broken_rules);
    p.broken_rules.clear();
    p.attach().expect("attaches");
    p.stop_all().expect("stops");
    p.write(RunAddr(s.at("first")), &[0x90, 0x90]).expect("writes");
    p.flush(RunAddr(s.at("first") + 1), 1).expect("flushes");
    p.resume_all().expect("resumes");
    assert!(p.broken_rules[0].contains("unflushed"), "{:?}", p.broken_rules);
}

/// Does the error say that sites had been written?
fn touched(e: &SessionError) -> bool {
    matches!(e.class(), Class::RolledBack | Class::Failed)
}

const AREA_AT: u64 = 0x50_0000;

impl Subject {
    /// A device, whose memory for patches is full of `bytes`.
    fn device(&self, bytes: u8) -> Process {
        let mut p = self.process();
        let perm = Perm { read: true, write: true, exec: true };
        let bytes = vec![bytes; 0x8000];
        p.maps.push(Map { start: AREA_AT, perm, offset: 0, file: (0, 0), name: AREA.into(), bytes });
        p.maps.sort_by_key(|m| m.start);
        p
    }
}

/// The names of all patches, of which none is damaged.
#[track_caller]
fn listed(p: &Process, what: &str) -> Vec<String> {
    let all = session::list(&mut p.rewound()).unwrap_or_else(|e| panic!("{what}: {e}"));
    all.into_iter().map(|r| r.unwrap_or_else(|e| panic!("{what}: {e}")).name).collect()
}

#[test]
fn patches_of_a_device_lie_in_its_area() {
    let s = Subject::fixed();
    for (bytes, form) in [(0, None), (0xa5, None), (0xa5, Some("island"))] {
        let before = s.device(bytes);
        let mut p = before.clone();
        apply(&mut p, &s.fix, &options(form)).expect("applies");
        assert_eq!(listed(&p, "fix"), ["fix"]);
        apply(&mut p, &s.again, &options(form)).expect("applies");
        assert_eq!(listed(&p, "both"), ["fix", "again"]);
        for name in ["again", "fix"] {
            assert_eq!(revert(&mut p, Some(name)).expect("reverts").parked, None);
        }
        assert_free(&p, "reverted");
        assert_same(&before.original(), &p.original(), "reverted");
        assert_eq!(listed(&p, "none"), [""; 0]);
    }
}

/// Whatever goes wrong, once or for good, there is no half record, not even where an older one lay.
#[test]
fn a_failure_at_any_step_leaves_no_half_record_in_an_area() {
    let s = Subject::fixed();
    let before = s.device(0xa5);
    let mut used = before.clone();
    apply(&mut used, &s.again, &options(Some("island"))).expect("applies");
    revert(&mut used, None).expect("reverts");
    let used = used.rewound();
    let mut steps = 0;
    for then in [Then::Once, Then::Everything] {
        // Nothing can be said of memory that stores something else when nobody looks any more.
        for fault in FAULTS.into_iter().filter(|f| *f != Fault::Silent || then == Then::Once) {
            for step in 0.. {
                let mut p = used.clone();
                p.plan = Some(Plan { fault, step, then });
                let result = apply(&mut p, &s.fix, &options(Some("island")));
                let Some(failed) = p.failed.clone() else { break };
                let what = format!("{fault:?} at step {step} ({failed:x?}), {then:?}");
                steps += 1;
                let mut p = if then == Then::Once { p } else { p.let_go() };
                let found = listed(&p, &what);
                if then == Then::Once {
                    assert_free(&p, &what);
                    assert_eq!(result.is_ok(), found == ["fix"], "{what}: {found:?}");
                }
                if found.is_empty() {
                    assert_same(&before.original(), &p.original(), &what);
                    p = p.rewound();
                    apply(&mut p, &s.fix, &options(None)).unwrap_or_else(|e| panic!("{what}; then apply: {e}"));
                }
                let mut p = p.rewound();
                revert(&mut p, Some("fix")).unwrap_or_else(|e| panic!("{what}; then revert: {e}"));
                assert_same(&before.original(), &p.original(), &what);
            }
        }
    }
    assert!(steps > 200, "{steps}");
}

/// Between two attempts the target runs, and may lose what was prepared.
#[test]
fn what_was_lost_between_two_attempts_is_missed() {
    let s = Subject::fixed();
    let starts_anew: Event = |p| p.maps.iter_mut().filter(|m| m.name == AREA).for_each(|m| m.bytes.fill(0));
    let keeps_its_record: Event = |p| {
        let r = session::list(&mut p.rewound()).expect("lists").remove(0).expect("a record");
        p.poke(r.sites[1].new.0, &[0xcc]);
    };
    let becomes_another: Event = |p| {
        for m in p.maps.iter_mut().filter(|m| m.is_region()) {
            m.name = "/other".into();
            m.bytes.fill(0x33);
        }
    };
    let has_nothing_there: Event = |p| p.maps.retain(|m| !m.is_region());
    let rows = [
        (s.device(0xa5), starts_anew, "read-back"),
        (s.device(0xa5), keeps_its_record, "read-back"),
        (s.process(), becomes_another, "read-back"),
        (s.process(), has_nothing_there, "target-memory"),
    ];
    for (i, (mut before, event, rule)) in rows.into_iter().enumerate() {
        let what = format!("row {i}");
        before.place(101, s.at("second") + 3, &[0]);
        before.leaves = Some((3, 101, JIT));
        apply(&mut before.clone(), &s.fix, &options(None)).unwrap_or_else(|e| panic!("{what}, undisturbed: {e}"));
        let mut p = before.clone();
        p.event = Some((2, event));
        let e = apply(&mut p, &s.fix, &options(None)).map(|a| a.attempts).expect_err(&what);
        assert_eq!((e.rule(), e.class()), (rule, Class::Refused), "{what}: {e}");
        assert_free(&p, &what);
        assert!(!p.sites_written, "{what}");
        assert_eq!(listed(&p, &what), [""; 0]);
        // What the other program has there is its own.
        assert_eq!(p.maps.iter().any(|m| m.name == "/other"), i == 2, "{what}");
        let ours: Vec<Map> = p.original().into_iter().filter(|m| m.name != "/other").collect();
        assert_same(&before.original(), &ours, &what);
    }
}
