//! docs/rules.md and the code name the same rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(dir: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(fs::read_to_string(path).unwrap());
        }
    }
}

fn is_id(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The string literal that `text` begins with, behind white space.
fn literal(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('"')?.split('"').next()
}

/// Ids in the code: whatever a function `rule` returns, and the literals that stand where an id is passed on.
fn in_code() -> BTreeSet<String> {
    let mut files = Vec::new();
    for part in ["core/src", "sdk/src", "cli/src"] {
        sources(&root().join(part), &mut files);
    }
    let mut ids = BTreeSet::new();
    for text in &files {
        for (at, begin) in text.match_indices("fn rule(&self) -> &'static str {") {
            let body = &text[at + begin.len()..];
            let end = body.find("\n        }\n").into_iter().chain(body.find("\n    }\n")).min().unwrap();
            ids.extend(body[..end].split('"').skip(1).step_by(2).map(str::to_owned));
        }
        for marker in ["rule: ", "unsuitable(", "bad_input(", ".warn(", "refuse(", "warnings.push(("] {
            let behind = text.match_indices(marker).map(|(at, _)| &text[at + marker.len()..]);
            ids.extend(behind.filter_map(literal).filter(|s| is_id(s)).map(str::to_owned));
        }
        for (at, _) in text.match_indices("\".to_owned(), ") {
            let id = text[..at].rsplit('"').next().unwrap();
            if is_id(id) && text[..at - id.len() - 1].ends_with('(') {
                ids.insert(id.to_owned());
            }
        }
    }
    ids
}

/// Ids in the tables of docs/rules.md.
fn in_docs() -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/rules.md")).unwrap();
    text.lines()
        .filter_map(|l| Some(l.strip_prefix("| `")?.split_once("` |")?.0))
        .filter(|id| !matches!(*id, "refused" | "error" | "rolled back"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_rule_is_documented_and_exists() {
    let code = in_code();
    assert!(code.len() > 80, "the rules were not found in the code: {code:?}");
    assert!(code.iter().all(|id| is_id(id)), "{code:?}");
    let list = in_docs();
    let docs: BTreeSet<String> = list.iter().cloned().collect();
    assert_eq!(docs.len(), list.len(), "a rule has two rows");
    let missing: Vec<_> = code.difference(&docs).collect();
    assert!(missing.is_empty(), "not in docs/rules.md: {missing:?}");
    let stale: Vec<_> = docs.difference(&code).collect();
    assert!(stale.is_empty(), "in docs/rules.md only: {stale:?}");
}
