//! Names: finding what a user means, and suggesting what they may have meant.

use super::error::{Candidate, LinkError};
use crate::program::{Binding, Program, Symbol, SymbolKind};
use alloc::{string::String, vec::Vec};

/// Turns a mangled name into a readable one.
pub type Demangle<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How well a name has to agree with the one asked for; tried in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Exact,
    Demangled,
    WithoutParameters,
    LastComponent,
}

impl Level {
    pub(super) const ALL: [Level; 4] = [Level::Exact, Level::Demangled, Level::WithoutParameters, Level::LastComponent];

    /// Does `symbol` answer to `wanted`?
    pub(super) fn matches(self, symbol: &str, wanted: &str, demangle: Option<Demangle<'_>>) -> bool {
        if self == Level::Exact {
            return symbol == wanted;
        }
        // A mangled name holds the plain one, so most symbols are out without being demangled.
        let last = last_component(without_parameters(wanted));
        let stem = last.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("");
        if !stem.starts_with("operator") && !symbol.contains(stem) {
            return false;
        }
        let Some(full) = demangle.and_then(|d| d(symbol)) else { return false };
        match self {
            Level::Exact | Level::Demangled => full == wanted,
            Level::WithoutParameters => without_parameters(&full) == wanted,
            Level::LastComponent => last_component(without_parameters(&full)) == wanted,
        }
    }
}

/// `ns::f` of `int ns::f(char) const`.
fn without_parameters(name: &str) -> &str {
    let mut rest = name.trim();
    while let Some(shorter) = [" const", " volatile", " &", " &&"].iter().find_map(|q| rest.strip_suffix(q)) {
        rest = shorter;
    }
    if rest.ends_with(')') {
        let mut depth = 0usize;
        for (i, c) in rest.char_indices().rev() {
            match c {
                ')' => depth += 1,
                '(' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                // `operator()` without a parameter list keeps its name.
                if !rest.get(..i).unwrap_or("").ends_with("operator") {
                    rest = rest.get(..i).unwrap_or(rest);
                }
                break;
            }
        }
    }
    if rest.contains("operator") {
        return rest;
    }
    // Template instances are demangled with their result type.
    let space = last_outside(rest, |tail| tail.starts_with(' '));
    space.map_or(rest, |i| rest.get(i + 1..).unwrap_or(rest))
}

/// `f` of `ns::f`.
fn last_component(name: &str) -> &str {
    let at = last_outside(name, |tail| tail.starts_with("::"));
    at.map_or(name, |i| name.get(i + 2..).unwrap_or(name))
}

/// The last position outside of all brackets at which `hit` holds for the rest of the name.
fn last_outside(name: &str, hit: impl Fn(&str) -> bool) -> Option<usize> {
    let (mut depth, mut last) = (0usize, None);
    for (i, c) in name.char_indices() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 && name.get(i..).is_some_and(&hit) => last = Some(i),
            _ => {}
        }
    }
    last
}

/// `file.c:name` taken apart; the `::` of a qualified name is no separator.
pub(super) fn split_file(spec: &str) -> (Option<&str>, &str) {
    let bytes = spec.as_bytes();
    for (i, _) in spec.match_indices(':') {
        let colon = |at: Option<usize>| at.and_then(|j| bytes.get(j)) == Some(&b':');
        if i != 0 && !colon(i.checked_sub(1)) && !colon(Some(i + 1)) {
            return (spec.get(..i), spec.get(i + 1..).unwrap_or(""));
        }
    }
    (None, spec)
}

/// Does the source file that the symbol table names agree with the one that the user names?
fn same_file(recorded: &str, wanted: &str) -> bool {
    let ends = |long: &str, short: &str| {
        !short.is_empty() && (long == short || long.strip_suffix(short).is_some_and(|head| head.ends_with('/')))
    };
    ends(recorded, wanted) || ends(wanted, recorded)
}

/// How visible a definition of the program is: global ones win over locals, whoever looks for a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Global,
    /// Global in the sources, and made local when a library was linked (hidden): the linker lists them behind a file
    /// symbol without a name.
    Hidden,
    Local,
}

fn tier(s: &Symbol<'_>) -> Tier {
    match (s.binding, s.file) {
        (Binding::Local, Some("")) => Tier::Hidden,
        (Binding::Local, _) => Tier::Local,
        _ => Tier::Global,
    }
}

/// The outcome of a search in the program.
pub(super) enum Found<T> {
    None,
    One(T),
    Several(Vec<Candidate>),
}

fn one_address<'p, 'd>(all: Vec<&'p Symbol<'d>>) -> Found<&'p Symbol<'d>> {
    let Some(first) = all.first() else { return Found::None };
    if all.iter().all(|s| s.addr == first.addr && s.kind == first.kind) {
        // Of several names for one address, the one that knows its size.
        return Found::One(all.iter().find(|s| s.size != 0).unwrap_or(first));
    }
    let mut list: Vec<Candidate> = all.iter().map(|s| candidate(s)).collect();
    list.dedup();
    Found::Several(list)
}

fn candidate(s: &Symbol<'_>) -> Candidate {
    let file = s.file.filter(|f| !f.is_empty()).map(String::from);
    Candidate { name: String::from(s.name), file, address: Some(s.addr), size: s.size }
}

/// Of `all`, those of the best tier.
fn best_tier<'p, 'd>(all: Vec<&'p Symbol<'d>>) -> Found<&'p Symbol<'d>> {
    let Some(best) = all.iter().map(|s| tier(s)).min() else { return Found::None };
    one_address(all.into_iter().filter(|s| tier(s) == best).collect())
}

/// The program's global function or object of this name (also one that is hidden).
pub(super) fn program_global<'p, 'd>(program: &'p Program<'d>, name: &str) -> Option<&'p Symbol<'d>> {
    let mut all: Vec<&Symbol<'_>> = program.named(name).filter(|s| tier(s) != Tier::Local).collect();
    all.sort_by_key(|s| (tier(s), s.kind == SymbolKind::Untyped));
    all.first().copied()
}

/// The function of the program that `spec` (a name, or `file.c:name`) means.
pub(super) fn program_function<'p, 'd>(
    program: &'p Program<'d>,
    spec: &str,
    demangle: Option<Demangle<'_>>,
) -> Result<&'p Symbol<'d>, LinkError> {
    let (file, name) = split_file(spec);
    let in_file = |s: &&Symbol<'_>| match file {
        None => true,
        Some(wanted) => s.binding == Binding::Local && s.file.is_some_and(|f| same_file(f, wanted)),
    };
    for level in Level::ALL {
        let found = if level == Level::Exact {
            best_tier(program.named(name).filter(|s| s.is_function()).filter(in_file).collect())
        } else if demangle.is_some() {
            let all = program.functions().filter(in_file);
            best_tier(all.filter(|s| level.matches(s.name, name, demangle)).collect())
        } else {
            Found::None
        };
        match found {
            Found::None => {}
            Found::One(s) => return Ok(s),
            Found::Several(candidates) => {
                return Err(LinkError::AmbiguousFunction { name: String::from(spec), candidates });
            }
        }
    }
    if program.undefined.contains(&name) && file.is_none() {
        return Err(LinkError::ImportedFunction { name: String::from(name) });
    }
    let name_of = |s: &Symbol<'_>| match s.file.filter(|f| !f.is_empty()) {
        Some(f) if file.is_some() && s.binding == Binding::Local => alloc::format!("{f}:{name}"),
        _ => String::from(s.name),
    };
    let suggestion = program
        .named(name)
        .find(|s| s.is_function())
        .map(name_of)
        .or_else(|| clone_of(program, name))
        .or_else(|| suggest(name, program.functions().map(|s| s.name)));
    Err(LinkError::NoSuchFunction { name: String::from(spec), suggestion })
}

/// A copy of the function that the compiler made and named `name.something`.
fn clone_of(program: &Program<'_>, name: &str) -> Option<String> {
    let is_clone = |s: &&Symbol<'_>| s.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    program.functions().find(is_clone).map(|s| String::from(s.name))
}

/// Is this one a static symbol of one source file?
pub(super) fn is_static(s: &Symbol<'_>) -> bool {
    tier(s) == Tier::Local
}

/// What an undefined symbol of the patch means in the program: a global, else the only local of that name.
pub(super) fn program_symbol<'p, 'd>(program: &'p Program<'d>, spec: &str) -> Found<&'p Symbol<'d>> {
    let (file, name) = split_file(spec);
    let in_file = |s: &&Symbol<'_>| match file {
        None => true,
        Some(wanted) => s.binding == Binding::Local && s.file.is_some_and(|f| same_file(f, wanted)),
    };
    best_tier(program.named(name).filter(in_file).collect())
}

/// The name among `names` that is most like `name`, if one is close enough to be a slip of the finger.
pub(super) fn suggest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let limit = match name.len() {
        0..=2 => return None,
        3..=4 => 1,
        _ => 2,
    };
    let mut best: Option<(usize, &str)> = None;
    for n in names.filter(|n| *n != name && n.len().abs_diff(name.len()) <= limit) {
        let d = distance(name.as_bytes(), n.as_bytes(), limit);
        if d <= limit && best.is_none_or(|b| (d, n) < b) {
            best = Some((d, n));
        }
    }
    best.map(|(_, n)| String::from(n))
}

/// Number of insertions, deletions, substitutions and swaps of neighbours that lead from `a` to `b`, or more than `limit`.
fn distance(a: &[u8], b: &[u8], limit: usize) -> usize {
    let width = b.len() + 1;
    let (mut before, mut last): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..width).collect());
    for (i, ca) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(width);
        row.push(i + 1);
        for (j, cb) in b.iter().enumerate() {
            let get = |r: &[usize], k: usize| r.get(k).copied().unwrap_or(usize::MAX / 2);
            let mut d = (get(&last, j) + usize::from(ca != cb)).min(get(&last, j + 1) + 1).min(get(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(cb) && b.get(j - 1) == Some(ca);
            if swapped {
                d = d.min(get(&before, j - 1) + 1);
            }
            row.push(d);
        }
        if row.iter().min().is_none_or(|m| *m > limit) && last.iter().min().is_none_or(|m| *m > limit) {
            return limit + 1;
        }
        before = core::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_and_suggestions() {
        let d = |a: &str, b: &str| distance(a.as_bytes(), b.as_bytes(), 2);
        assert_eq!((d("print", "print"), d("print", "pritn"), d("print", "prnt")), (0, 1, 1));
        assert_eq!(d("print", "sprintf"), 2);
        assert!(d("print", "something") > 2);
        assert_eq!(suggest("cuonter", ["encounter", "counter", "counts"].into_iter()).as_deref(), Some("counter"));
        assert_eq!(suggest("ab", ["abc"].into_iter()), None, "short names are like everything");
        assert_eq!(suggest("abc", ["axy"].into_iter()), None);
    }

    #[test]
    fn files_are_split_off() {
        assert_eq!(split_file("a.c:f"), (Some("a.c"), "f"));
        assert_eq!(split_file("f"), (None, "f"));
        assert_eq!(split_file("ns::f"), (None, "ns::f"));
        assert_eq!(split_file("dir/a.cc:ns::f"), (Some("dir/a.cc"), "ns::f"));
        assert!(same_file("src/a.c", "a.c") && same_file("a.c", "/tmp/src/a.c") && same_file("a.c", "a.c"));
        assert!(!same_file("ba.c", "a.c") && !same_file("", "a.c") && !same_file("src/a.c", "lib/a.c"));
    }

    #[test]
    fn qualified_names() {
        assert_eq!(without_parameters("ns::f(int, char (*)(long)) const"), "ns::f");
        assert_eq!(without_parameters("int ns::f<int, a::b>(int)"), "ns::f<int, a::b>");
        assert_eq!(without_parameters("C::operator()(int)"), "C::operator()");
        assert_eq!(last_component("ns::C<a::b>::f"), "f");
        let demangle = |s: &str| (s == "_ZN2ns1fEi").then(|| String::from("ns::f(int)"));
        let matches = |level: Level, wanted| level.matches("_ZN2ns1fEi", wanted, Some(&demangle));
        assert!(matches(Level::Demangled, "ns::f(int)"));
        assert!(matches(Level::WithoutParameters, "ns::f"));
        assert!(matches(Level::LastComponent, "f"));
        assert!(!matches(Level::LastComponent, "g") && !matches(Level::Exact, "f"));
    }
}
