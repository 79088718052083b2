//! System calls in which the target waits when tfix comes.

use std::io::Write;
use std::os::unix::net::UnixStream;

use crate::Lab;

/// How the wait ends.
pub enum End {
    /// The test writes a line to the victim's standard input.
    Input,
    /// The test connects to the victim's socket.
    Connect,
    /// The test sends SIGUSR1.
    Signal,
    /// By itself, after two seconds.
    Time,
}

/// What the victim says about the call: `<kind> returned <result> errno <errno> after <ms>`.
#[track_caller]
pub fn check(line: &str, kind: &str, result: i64, errno: i32, end: &End) {
    let expected = format!("{kind} returned {result} errno {errno} after ");
    let took = line.strip_prefix(&expected).unwrap_or_else(|| panic!("expected `{expected}...`, got `{line}`"));
    if matches!(end, End::Time) {
        let took: i64 = took.parse().expect("milliseconds");
        assert!(took >= 1999, "the wait of two seconds was cut short: {line}");
    }
}

/// Fix, revert and fix again while the call waits; then it ends and all goes on.
pub fn undisturbed(lab: &Lab, kind: &str, ready: &str, end: &End, result: i64, errno: i32) {
    let program = lab.program("blocked_program.c", &["-O2"]);
    let package = lab.package(&program, &lab.patch("a1_patch.c", &["-O2"]));
    let socket = lab.path("socket");
    let mut victim = lab.start(&program, &[kind.as_ref(), socket.as_os_str()]);
    victim.wait_line(ready);
    victim.wait_blocked();
    let before = victim.snapshot();

    victim.fix(&package, &[]).done();
    victim.assert_free();
    victim.revert(&[]).done();
    before.assert_same_code(&victim.snapshot());
    victim.fix(&package, &[]).done();
    victim.assert_free();

    let mut connection = None;
    match end {
        End::Input => victim.send("x"),
        End::Connect => {
            let stream = UnixStream::connect(&socket).expect("the victim listens");
            connection = Some(stream);
        }
        End::Signal => victim.user_signal(),
        End::Time => {}
    }
    let line = victim.line();
    check(&line, kind, result, errno, end);
    victim.settles("the new p", 5, |l| l == "p 2");
    victim.revert(&[]).done();
    victim.settles("the old p", 5, |l| l == "p 1");
    before.assert_same_code(&victim.snapshot());
    if let Some(mut stream) = connection {
        let _ = stream.write_all(b"x");
    }
}
