//! The guests themselves: what the other tests rely on.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use qemu_tests::{GUESTS, Guest, Lab, Victim};

/// A program that says which machine it is on, and repeats what it is told.
const ECHO: &str = r#"
#include <stdio.h>
#include <sys/utsname.h>
int main(int argc, char **argv) {
    struct utsname u;
    char line[64];
    uname(&u);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%s %s %d\n", u.machine, argc > 1 ? argv[1] : "", (int)sizeof(long));
    while (fgets(line, sizeof line, stdin))
        printf("heard %s", line);
    fprintf(stderr, "end\n");
    return 7;
}
"#;

const NAPS: &str = r#"
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < 100; i++)
        usleep(10000);
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%ld\n", (b.tv_sec - a.tv_sec) * 1000L + (b.tv_nsec - a.tv_nsec) / 1000000);
    return 0;
}
"#;

fn echo(name: &str) {
    let begin = Instant::now();
    let guest = Arc::new(Guest::start_bare(name));
    println!("{name}: restored after {:?}", begin.elapsed());
    let lab = Lab::new();
    let source = lab.write("echo.c", ECHO);
    let built = lab.path("echo");
    let gcc = format!("{}-gcc", guest.triple());
    assert!(Command::new(gcc).args(["-O2", "-o"]).args([&built, &source]).status().expect("gcc").success());

    // A file of two megabytes, there and back.
    let big: Vec<u8> = (0..2u32 << 20).map(|i| (i * 7 / 3) as u8).collect();
    let begin = Instant::now();
    guest.write("/tmp/big", 0o644, &big);
    println!("{name}: {} bytes written after {:?}", big.len(), begin.elapsed());
    let begin = Instant::now();
    assert!(guest.read("/tmp/big").expect("it was written") == big);
    println!("{name}: and read after {:?}", begin.elapsed());
    assert_eq!(guest.read_at("/tmp/big", 1000, 5).expect("it was written"), big[1000..1005]);
    assert!(guest.read("/nowhere").is_err());
    assert!(guest.list("/tmp").expect("a directory").contains(&"big".to_owned()));

    let path = guest.copy(&built);
    let mut victim = Victim::spawn_in(&guest, &[path.as_str(), "hello"]);
    let said = format!("hello {}", guest.word());
    let machine = if name.starts_with("aarch64") { "aarch64 " } else { "mips" };
    victim.wait_for("the machine", |l| l.starts_with(machine) && l.ends_with(&said));
    victim.send("you");
    victim.wait_line("heard you");
    victim.wait_blocked();

    // Clocks go: a hundred naps of ten milliseconds take about a second.
    let source = lab.write("naps.c", NAPS);
    let naps = lab.path("naps");
    let gcc = format!("{}-gcc", guest.triple());
    assert!(Command::new(gcc).args(["-O2", "-o"]).args([&naps, &source]).status().expect("gcc").success());
    let naps = guest.copy(&naps);
    let begin = Instant::now();
    let outcome = guest.run(&[&naps]);
    let took: u64 = outcome.stdout.trim().parse().expect("milliseconds");
    assert!((1000..60_000).contains(&took), "{outcome}");
    println!("{name}: a second of naps took {took} ms there, {:?} here", begin.elapsed());

    let program = guest.spawn(&[&path]).expect("it is there");
    program.send(b"me\n");
    program.send(b"");
    let outcome = program.finish("echo".into());
    assert_eq!(outcome.status.code(), Some(7));
    assert!(outcome.stdout.ends_with("heard me\n"), "{outcome}");
    assert_eq!(outcome.stderr, "end\n");

    let program = guest.spawn(&[&path]).expect("it is there");
    program.signal(libc::SIGTERM);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&program.wait()), Some(libc::SIGTERM));
    drop(program);
    assert!(guest.spawn(&["/nowhere"]).is_err());

    // The further ports of the bus.
    let mut socket = std::os::unix::net::UnixStream::connect(guest.port(2)).expect("qemu waits");
    let reader = guest.spawn(&[&path, "dev", "/dev/vport0p2"]);
    socket.write_all(b"x").expect("the guest runs");
    drop(reader);
    drop(victim);

    let begin = Instant::now();
    Arc::into_inner(guest).expect("nobody else has it").power_off();
    println!("{name}: off after {:?}", begin.elapsed());
}

#[test]
fn mipsel() {
    echo(GUESTS[0]);
}

#[test]
fn mips() {
    echo(GUESTS[1]);
}

#[test]
fn mips64el() {
    echo(GUESTS[2]);
}

#[test]
fn aarch64() {
    echo(GUESTS[3]);
}

#[test]
fn aarch64_max() {
    echo(GUESTS[4]);
}
