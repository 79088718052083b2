//! Nothing in this crate may name an architecture: all of that comes in through `Arch`.

use std::path::Path;

#[test]
fn core_names_no_architecture() {
    let mut seen = 0;
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut seen);
    assert!(seen > 10, "{seen} files");
}

fn check(dir: &Path, seen: &mut usize) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check(&path, seen);
            continue;
        }
        *seen += 1;
        let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
        // DWARF's old name of an attribute that compilers for every architecture wrote.
        let text = text.replace("dw_at_mips_linkage_name", "");
        for word in ["x86", "mips", "aarch64", "arm64", "riscv"] {
            let line = text.lines().position(|l| l.contains(word));
            assert!(line.is_none(), "{}:{}: names {word}", path.display(), line.unwrap() + 1);
        }
    }
}
