//! Rules of the source tree that the compiler does not check.

use std::path::{Path, PathBuf};

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Lines of the Rust files under `dir` for which `wrong` holds, as file:line.
fn lines(dir: &Path, wrong: impl Fn(&Path, &str) -> bool) -> Vec<String> {
    let mut files = Vec::new();
    sources(dir, &mut files);
    files.sort();
    assert!(!files.is_empty(), "no source below {}", dir.display());
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        for (i, line) in text.lines().enumerate().filter(|(_, l)| wrong(&file, l)) {
            found.push(format!("{}:{}: {}", file.display(), i + 1, line.trim()));
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// Architectures, by the names that code and comments would use.
const NAMES: [&str; 6] = ["x86", "amd64", "mips", "aarch64", "arm64", "riscv"];

#[test]
fn core_names_no_architecture() {
    let found = lines(&root().join("core/src"), |_, line| {
        let line = line.to_ascii_lowercase();
        NAMES.iter().any(|n| line.contains(n))
    });
    assert!(found.is_empty(), "core names an architecture:\n{}", found.join("\n"));
}

/// A word by itself, outside of comments, strings aside.
fn says_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe")
}

/// What is linked into the tool; tests may be unsafe.
#[test]
fn unsafe_code_is_in_one_file() {
    let one = root().join("sdk/src/ptrace/sys.rs");
    let mut found = Vec::new();
    for member in std::fs::read_dir(root()).expect("the workspace").flatten() {
        let dir = member.path().join("src");
        let product = member.path().join("Cargo.toml").is_file() && member.file_name() != "qemu-tests";
        if product && dir.is_dir() {
            found.extend(lines(&dir, |file, line| file != one && says_unsafe(line)));
        }
    }
    assert!(found.is_empty(), "unsafe code outside of {}:\n{}", one.display(), found.join("\n"));
    assert!(lines(&root().join("sdk/src"), |file, line| file == one && says_unsafe(line)).len() > 1, "has it moved?");
}

#[test]
fn the_words_are_recognised() {
    assert!(says_unsafe("    unsafe { call() }") && says_unsafe("pub unsafe fn f()"));
    assert!(!says_unsafe("#![forbid(unsafe_code)]") && !says_unsafe("// not unsafe"));
}
