//! Programs and libraries that nobody wrote for these tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use qemu_tests::{Lab, Victim, fixtures, repository};
use serde_json::Value;

/// The system's python; not one that a version manager puts in front of it.
const PYTHON: &str = "/usr/bin/python3";

fn python(script: &str) -> Victim {
    let mut command = Command::new(PYTHON);
    command.args(["-u", "-c", script]);
    Victim::spawn(command)
}

/// Where the process has loaded a library from.
fn loaded(victim: &Victim, name: &str) -> PathBuf {
    let snapshot = victim.snapshot();
    let path = snapshot.regions.iter().find(|r| r.path.contains(name)).map(|r| PathBuf::from(&r.path));
    path.unwrap_or_else(|| panic!("{PYTHON} has not loaded {name}"))
}

/// CRC-32 of "tfix", computed bit by bit.
fn crc_of_tfix() -> u32 {
    !b"tfix".iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn debians_zlib_in_a_running_python() {
    let mut victim = python(
        "import zlib, time\nn = 0\nwhile True:\n    n += 1\n    print('crc', zlib.crc32(b'tfix'), 'round', n)\n    time.sleep(0.01)\n",
    );
    let old = format!("crc {} ", crc_of_tfix());
    let new = format!("crc {} ", crc_of_tfix() ^ 1);
    victim.settles("the right crc", 5, |l| l.starts_with(&old));
    let lab = Lab::new();
    let (outcome, package) = lab.generate(&loaded(&victim, "libz.so"), &[&lab.patch("zlib_crc32.c", &["-O2"])], &[]);
    outcome.done();
    let before = victim.snapshot();
    for _ in 0..3 {
        victim.fix(&package, &[]).done();
        victim.settles("the patched crc", 10, |l| l.starts_with(&new));
        assert_eq!(victim.patches_in_state("applied"), ["fix"]);
        victim.revert(&[]).done();
        victim.settles("the right crc", 10, |l| l.starts_with(&old));
        before.assert_same_code(&victim.snapshot());
    }
    let rounds: Vec<i64> = victim
        .lines_so_far()
        .iter()
        .map(|l| l.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a round"))
        .collect();
    assert!(rounds.iter().zip(1..).all(|(n, expected)| *n == expected), "python's own state is untouched");
}

#[test]
fn debians_sqlite_in_a_running_python() {
    let mut victim = python(
        "import sqlite3, time\nwhile True:\n    print('complete', sqlite3.complete_statement('select 1;'))\n    time.sleep(0.01)\n",
    );
    victim.settles("a complete statement", 5, |l| l == "complete True");
    let lab = Lab::new();
    let library = loaded(&victim, "libsqlite3.so");
    let (outcome, package) = lab.generate(&library, &[&lab.patch("sqlite_complete.c", &["-O2"])], &[]);
    outcome.done();
    let before = victim.snapshot();
    victim.fix(&package, &[]).done();
    victim.settles("the patched answer", 10, |l| l == "complete False");
    victim.revert(&[]).done();
    victim.settles("the old answer", 10, |l| l == "complete True");
    before.assert_same_code(&victim.snapshot());
}

/// A package for python's libz is none for a process with another libz, or with none.
#[test]
fn zlib_package_for_a_process_without_zlib() {
    let mut with = python("import zlib, time\nwhile True:\n    print('with')\n    time.sleep(0.01)\n");
    with.line();
    let lab = Lab::new();
    let (outcome, package) = lab.generate(&loaded(&with, "libz.so"), &[&lab.patch("zlib_crc32.c", &["-O2"])], &[]);
    outcome.done();
    let mut without = Victim::start(&lab.program("a1_program.c", &["-O2"]));
    without.line();
    let before = without.snapshot();
    without.fix(&package, &[]).refused(&["libz"]);
    before.assert_untouched(&without.snapshot());
    without.still_prints();
}

/// The directory of the amalgamation that the crate registry has.
fn amalgamation() -> PathBuf {
    let manifest = fixtures().parent().expect("the crate's directory").join("sqlite-src/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(&manifest)
        .output()
        .expect("cargo");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let answer: Value = serde_json::from_slice(&done.stdout).expect("cargo metadata is JSON");
    let package = answer["packages"].as_array().into_iter().flatten().find(|p| p["name"] == "libsqlite3-sys");
    let manifest = package.and_then(|p| p["manifest_path"].as_str()).expect("libsqlite3-sys is a dependency");
    Path::new(manifest).parent().expect("a directory").join("sqlite3")
}

/// sqlite3.o, compiled once and kept in the target directory: it takes a good while.
fn sqlite_object() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = amalgamation();
        let crate_name = source.parent().and_then(Path::file_name).expect("a directory").to_string_lossy().into_owned();
        let own = std::env::current_exe().expect("path of this test");
        let kept = own.parent().expect("a directory").join(format!("{crate_name}-sqlite3-O2.o"));
        if !kept.exists() {
            let fresh = kept.with_extension(format!("{}.o", std::process::id()));
            let done = Command::new("gcc")
                .args(["-O2", "-fPIE", "-w", "-DSQLITE_THREADSAFE=0", "-DSQLITE_OMIT_LOAD_EXTENSION", "-c", "-o"])
                .args([&fresh, &source.join("sqlite3.c")])
                .status()
                .expect("gcc");
            assert!(done.success(), "SQLite compiles");
            std::fs::rename(&fresh, &kept).expect("own file");
        }
        (source, kept)
    })
}

#[test]
fn a_file_local_function_of_sqlite_while_queries_run() {
    let (source, object) = sqlite_object();
    let include = format!("-I{}", source.display());
    let lab = Lab::new();
    let main = lab.object("sqlite_program.c", &["-O2", "-fPIE", &include]);
    let program = lab.path("sqlite_program");
    let linked = Command::new("gcc").arg("-o").arg(&program).args([&main, object]).arg("-lm").status();
    assert!(linked.expect("gcc").success());
    let package = lab.package(&program, &lab.patch("sqlite_patch.c", &["-O2", &include]));

    let mut victim = Victim::start(&program);
    let rows = |l: &str| l.split(' ').nth(5).and_then(|n| n.parse::<i64>().ok());
    victim.settles("the right abs", 5, |l| l.starts_with("abs 5 length 4 rows "));
    let before = victim.snapshot();
    for _ in 0..5 {
        victim.fix(&package, &[]).done();
        victim.settles("the patched abs", 5, |l| l.starts_with("abs 5000 length 4 rows "));
        victim.revert(&[]).done();
        victim.settles("the right abs", 5, |l| l.starts_with("abs 5 length 4 rows "));
        before.assert_same_code(&victim.snapshot());
    }
    let counts: Vec<i64> = victim.lines_so_far().iter().filter_map(|l| rows(l)).collect();
    assert!(counts.iter().zip(1..).all(|(n, expected)| *n == expected), "no row is lost: {counts:?}");
}

/// The sources of the examples that the README walks through.
#[test]
fn the_example_server() {
    let lab = Lab::new();
    let examples = repository().join("examples");
    let at = |name: &str| examples.join(name).to_str().expect("UTF-8").to_owned();
    let program = lab.program(&at("server.c"), &["-O2"]);
    let package = lab.package(&program, &lab.patch(&at("fix.c"), &["-O2"]));
    let mut victim = Victim::start(&program);
    let wrong = |l: &str| l.contains("total 180");
    let right = |l: &str| l.contains("total 220");
    victim.settles("the bug", 2, wrong);
    victim.fix(&package, &[]).done();
    victim.settles("the correct total", 2, right);
    victim.revert(&[]).done();
    victim.settles("the bug again", 2, wrong);
}
