//! What each symbol stands for, and where references to replaced functions go.

use super::Inputs;
use super::error::{LinkError, Place};
use super::globals::{Def, Globals};
use super::input::{At, Bind, InSymbol, Kind};
use super::names::{self, Found};
use super::replace::Replacement;
use super::report::Messages;
use crate::addr::LinkAddr;
use crate::arch::{Expr, Howto, Role};
use crate::field::Order;
use crate::program::{Symbol, SymbolKind};
use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

/// A place in a section of a patch object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub object: u32,
    pub section: u32,
    pub value: u64,
}

/// What a symbol stands for, before addresses are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Spot(Spot),
    /// Index in [`Globals::commons`].
    Common(u32),
    Program(LinkAddr),
    Ifunc(LinkAddr),
    /// Offset in the program's TLS block.
    Tls(u64),
    /// Index in [`Resolver::imports`].
    Import(u32),
    Absolute(u64),
    GotBase,
}

/// A name for a target, for messages and for the package.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub name: String,
    pub size: u64,
    pub function: bool,
    pub global: bool,
}

/// A symbol that the dynamic loader's modules have to provide.
pub(super) struct Import {
    pub weak: bool,
}

/// Objects of the patch by object and section: (start, end, name).
type Rooms<'d> = BTreeMap<(u32, u32), Vec<(u64, u64, &'d str)>>;

/// Resolves symbols, and remembers what it found.
pub(super) struct Resolver<'c, 'o, 'd> {
    cx: &'c Inputs<'o, 'd>,
    globals: &'c Globals<'d>,
    /// Data of the patch for which the program's stand in.
    bound: BTreeMap<&'d str, Symbol<'d>>,
    /// Where the patch has room for them.
    unused: Rooms<'d>,
    sites: &'c [Replacement],
    site_of_new: BTreeMap<Spot, usize>,
    site_of_old: BTreeMap<LinkAddr, usize>,
    strong: BTreeSet<&'d str>,
    /// `st_other` of the patch's functions, where it is not 0.
    others: BTreeMap<Spot, u8>,
    import_of: BTreeMap<&'d str, u32>,
    known: BTreeMap<(u32, u32), Target>,
    undefined: Vec<(&'d str, Place)>,
    pub imports: Vec<Import>,
    pub labels: BTreeMap<Target, Label>,
    /// Every name that a relocation asked for.
    pub asked: BTreeMap<&'d str, Target>,
}

impl<'c, 'o, 'd> Resolver<'c, 'o, 'd> {
    pub(super) fn new(
        cx: &'c Inputs<'o, 'd>,
        globals: &'c Globals<'d>,
        bound: BTreeMap<&'d str, Symbol<'d>>,
        sites: &'c [Replacement],
    ) -> Self {
        let mut others = BTreeMap::new();
        for (o, object) in cx.objects.iter().enumerate() {
            for s in object.symbols.iter().filter(|s| s.kind == Kind::Function && s.other != 0) {
                if let At::Section { index, value } = s.at {
                    others.insert(Spot { object: o as u32, section: index, value }, s.other);
                }
            }
        }
        let undefined = |s: &&InSymbol<'d>| s.at == At::Undefined && s.bind != Bind::Weak;
        let symbols = cx.objects.iter().flat_map(|o| o.symbols.iter());
        let mut site_of_new = BTreeMap::new();
        for (i, r) in sites.iter().enumerate() {
            // One new function may replace several: its address is that of its namesake, if there is one.
            if r.old_name == r.new_name {
                site_of_new.insert(r.new, i);
            } else {
                site_of_new.entry(r.new).or_insert(i);
            }
        }
        let mut unused = Rooms::new();
        for name in bound.keys() {
            let Some(Def::Symbol { object, symbol }) = globals.by_name.get(name) else { continue };
            let s = cx.objects.get(*object as usize).and_then(|o| o.symbols.get(*symbol as usize));
            if let Some(InSymbol { at: At::Section { index, value }, size, .. }) = s {
                unused.entry((*object, *index)).or_default().push((*value, value.saturating_add(*size), name));
            }
        }
        Resolver {
            cx,
            globals,
            bound,
            unused,
            sites,
            site_of_new,
            site_of_old: sites.iter().enumerate().map(|(i, r)| (r.entry, i)).collect(),
            others,
            strong: symbols.filter(undefined).map(|s| s.name).collect(),
            import_of: BTreeMap::new(),
            known: BTreeMap::new(),
            undefined: Vec::new(),
            imports: Vec::new(),
            labels: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// What symbol number `symbol` of object number `object` stands for. Undefined symbols stand for 0 until
    /// [`Resolver::finish`] reports all of them.
    pub(super) fn target(
        &mut self,
        object: u32,
        symbol: u32,
        place: &dyn Fn() -> Place,
        messages: &mut Messages,
    ) -> Result<Target, LinkError> {
        if let Some(t) = self.known.get(&(object, symbol)) {
            return Ok(*t);
        }
        let Some(s) = self.symbol(object, symbol) else {
            let what = "relocations";
            let why = format!("symbol {symbol} does not exist");
            return Err(LinkError::Broken { object: place().object, what, why });
        };
        let target = if symbol == 0 { Target::Absolute(0) } else { self.lookup(object, symbol, &s, place, messages)? };
        self.known.insert((object, symbol), target);
        if !s.name.is_empty() {
            self.asked.insert(s.name, target);
        }
        self.label(target, &s);
        Ok(target)
    }

    fn symbol(&self, object: u32, symbol: u32) -> Option<InSymbol<'d>> {
        self.cx.objects.get(object as usize)?.symbols.get(symbol as usize).copied()
    }

    fn label(&mut self, target: Target, s: &InSymbol<'d>) {
        let cx = self.cx;
        self.labels.entry(target).or_insert_with(|| {
            let section = |i: u32, o: u32| {
                cx.objects.get(o as usize).and_then(|x| x.sections.get(i as usize)).map_or("", |x| &*x.name)
            };
            let name = match target {
                Target::Spot(spot) if s.name.is_empty() => section(spot.section, spot.object),
                _ => s.name,
            };
            let program = cx.program.named(s.name).find(|p| target == Target::Program(p.addr));
            Label {
                name: String::from(name),
                size: program.map_or(s.size, |p| p.size),
                function: program.map_or(s.kind == Kind::Function, Symbol::is_function),
                global: !s.is_local(),
            }
        });
    }

    fn lookup(
        &mut self,
        object: u32,
        symbol: u32,
        s: &InSymbol<'d>,
        place: &dyn Fn() -> Place,
        messages: &mut Messages,
    ) -> Result<Target, LinkError> {
        if s.is_local() {
            return match s.at {
                At::Undefined => Err(LinkError::Broken {
                    object: place().object,
                    what: "symbol table",
                    why: format!("local symbol {symbol} is undefined"),
                }),
                _ => self.definition(object, s, place),
            };
        }
        if let Some(theirs) = self.bound.get(s.name) {
            let theirs = *theirs;
            return self.program(&theirs, s, place);
        }
        match self.globals.by_name.get(s.name) {
            Some(Def::Common(c)) => Ok(Target::Common(*c)),
            Some(Def::Symbol { object, symbol }) => {
                let (object, symbol) = (*object, *symbol);
                match self.symbol(object, symbol) {
                    Some(winner) => self.definition(object, &winner, place),
                    None => Ok(Target::Absolute(0)),
                }
            }
            None => self.undefined(s, place, messages),
        }
    }

    fn definition(&self, object: u32, s: &InSymbol<'d>, place: &dyn Fn() -> Place) -> Result<Target, LinkError> {
        match s.at {
            At::Absolute(v) => Ok(Target::Absolute(v)),
            At::Section { index, value } => {
                let fate = self.cx.fates.get(object as usize).and_then(|f| f.get(index as usize));
                if fate.is_some_and(|f| f.laid_out()) {
                    return Ok(Target::Spot(Spot { object, section: index, value }));
                }
                let section = self.cx.objects.get(object as usize).and_then(|o| o.sections.get(index as usize));
                let section = section.map_or("", |x| &*x.name);
                let target =
                    if s.name.is_empty() { String::from(section) } else { format!("`{}` in {section}", s.name) };
                Err(LinkError::Discarded { target, place: Box::new(place()) })
            }
            At::Common { .. } | At::Undefined => Ok(Target::Absolute(0)),
        }
    }

    fn program(&self, theirs: &Symbol<'d>, s: &InSymbol<'d>, place: &dyn Fn() -> Place) -> Result<Target, LinkError> {
        Ok(match theirs.kind {
            SymbolKind::Tls if self.cx.program.library => {
                return Err(LinkError::ThreadLocal {
                    symbol: String::from(s.name),
                    place: Box::new(place()),
                    why: "it is a shared library's, and its place differs from process to process",
                });
            }
            SymbolKind::Tls => Target::Tls(theirs.addr.0),
            SymbolKind::Ifunc => Target::Ifunc(theirs.addr),
            _ if self.is_code(theirs) => {
                if let Err(why) = self.cx.arch.accepts_function(theirs.other, theirs.addr.0) {
                    let object = self.cx.options.program_file.clone();
                    return Err(LinkError::UnsupportedIsa { object, symbol: String::from(theirs.name), why });
                }
                Target::Program(theirs.addr)
            }
            _ if theirs.absolute => Target::Absolute(theirs.addr.0),
            _ => Target::Program(theirs.addr),
        })
    }

    fn is_code(&self, s: &Symbol<'d>) -> bool {
        let in_code = || self.cx.program.segment_at(s.addr).is_some_and(|x| x.perm.exec);
        !s.absolute && (s.kind == SymbolKind::Function || s.kind == SymbolKind::Untyped && in_code())
    }

    /// `st_other` of the patch's function there.
    pub(super) fn other_of(&self, spot: &Spot) -> u8 {
        self.others.get(spot).copied().unwrap_or(0)
    }

    fn undefined(
        &mut self,
        s: &InSymbol<'d>,
        place: &dyn Fn() -> Place,
        messages: &mut Messages,
    ) -> Result<Target, LinkError> {
        let program = self.cx.program;
        if self.cx.arch.got_symbols().contains(&s.name) {
            return Ok(Target::GotBase);
        }
        let bind = self.cx.bind(s.name);
        // What the program imports is global there: a static of the same name is another one.
        let imported = bind.is_none() && program.dynamic && program.undefined.contains(&s.name);
        match names::program_symbol(program, bind.unwrap_or(s.name)) {
            Found::One(theirs) if imported && names::is_static(theirs) => messages.note(format!(
                "`{0}` is the one that the program imports, not its static one; --bind {0}=FILE:{0} takes that",
                s.name
            )),
            Found::One(theirs) => {
                if bind.is_none() && names::is_static(theirs) && self.cx.options.known_imports.contains(s.name) {
                    messages.warn(format!("`{}` is the program's static one; a library has that name too", s.name));
                }
                return self.program(theirs, s, place);
            }
            Found::Several(_) if imported => {}
            Found::Several(candidates) => {
                let symbol = String::from(s.name);
                return Err(LinkError::AmbiguousSymbol { symbol, place: Box::new(place()), candidates });
            }
            Found::None => {}
        }
        if let Some(target) = bind {
            return Err(LinkError::BadBind {
                name: String::from(s.name),
                target: String::from(target),
                why: String::from("the program has no such symbol"),
            });
        }
        let weak = !self.strong.contains(s.name);
        if !program.dynamic && !program.library {
            if !weak {
                self.undefined.push((s.name, place()));
            }
            return Ok(Target::Absolute(0));
        }
        if s.kind == Kind::Tls {
            return Err(LinkError::ThreadLocal {
                symbol: String::from(s.name),
                place: Box::new(place()),
                why: "another module defines it",
            });
        }
        Ok(self.import(s.name, weak, place, messages))
    }

    fn import(&mut self, name: &'d str, weak: bool, place: &dyn Fn() -> Place, messages: &mut Messages) -> Target {
        if let Some(i) = self.import_of.get(name) {
            return Target::Import(*i);
        }
        let options = self.cx.options;
        // The dynamic loader itself defines __tls_get_addr.
        let expected = self.cx.program.undefined.contains(&name)
            || options.known_imports.contains(name)
            || name == "__tls_get_addr";
        if !expected && !weak {
            // The search is slow; a patch with very many of these has other troubles.
            let suggestion = if self.imports.len() < 100 { self.suggestion(name) } else { None };
            if options.imports_known && suggestion.is_some() {
                self.undefined.push((name, place()));
                return Target::Absolute(0);
            }
            let meant = suggestion.map_or_else(String::new, |s| format!(" (did you mean `{s}`?)"));
            messages.warn(format!(
                "`{name}` is in neither the patch nor the program{meant}: some module has to define it when the patch \
                 is applied"
            ));
        }
        let i = self.imports.len() as u32;
        self.imports.push(Import { weak });
        self.import_of.insert(name, i);
        Target::Import(i)
    }

    /// The size of a symbol, wherever it is defined.
    pub(super) fn size_of(&self, object: u32, symbol: u32) -> u64 {
        let Some(s) = self.symbol(object, symbol) else { return 0 };
        if s.is_local() {
            return s.size;
        }
        if let Some(theirs) = self.bound.get(s.name) {
            return theirs.size;
        }
        match self.globals.by_name.get(s.name) {
            Some(Def::Common(c)) => self.globals.commons.get(*c as usize).map_or(0, |c| c.size),
            Some(Def::Symbol { object, symbol }) => self.symbol(*object, *symbol).map_or(0, |s| s.size),
            None => match names::program_symbol(self.cx.program, self.cx.bind(s.name).unwrap_or(s.name)) {
                Found::One(theirs) => theirs.size,
                _ => 0,
            },
        }
    }

    /// A name for a place that only [`Resolver::redirect`] led to.
    pub(super) fn site_label(&self, target: Target) -> Label {
        let is = |r: &&Replacement| target == Target::Program(r.entry) || target == Target::Spot(r.new);
        let site = self.sites.iter().find(is);
        let old = matches!(target, Target::Program(_));
        Label {
            name: site.map_or_else(String::new, |r| if old { r.old_name.clone() } else { r.new_name.clone() }),
            size: site.filter(|_| old).map_or(0, |r| r.old_size),
            function: true,
            global: true,
        }
    }

    fn suggestion(&self, name: &str) -> Option<String> {
        let program = self.cx.program;
        let known = self.cx.options.known_imports.iter().map(String::as_str);
        let own = self.globals.by_name.keys().copied();
        let all = program.symbols.iter().map(|s| s.name).chain(program.undefined.iter().copied());
        names::suggest(name, all.chain(known).chain(own))
    }

    /// The object for which the program's stands in, whose room in the patch a reference reaches nevertheless. Compilers
    /// that address several objects from one anchor do that; the room would be a second, stale object.
    pub(super) fn stale(&self, r: &Reference) -> Option<&'d str> {
        let Target::Spot(spot) = r.target else { return None };
        let delta = match r.howto.field.order {
            // In instruction words nothing but the addend says what is meant. Where displacements are plain words the
            // addend depends on the instruction's length, but there no compiler uses anchors.
            Order::Insn if r.in_code && (r.by_section || r.by_anchor) => r.addend,
            _ if r.by_section => return None,
            _ => 0,
        };
        let value = spot.value.checked_add_signed(delta)?;
        let rooms = self.unused.get(&(spot.object, spot.section))?;
        rooms.iter().find(|(start, end, _)| (*start..*end).contains(&value)).map(|(.., name)| *name)
    }

    /// Reports the undefined symbols, all at once.
    pub(super) fn finish(&mut self) -> Result<(), LinkError> {
        let all = core::mem::take(&mut self.undefined);
        let mut all = all.into_iter();
        let Some((symbol, place)) = all.next() else { return Ok(()) };
        let more: BTreeSet<&str> = all.map(|(name, _)| name).filter(|n| *n != symbol).collect();
        Err(LinkError::Undefined {
            symbol: String::from(symbol),
            place: Box::new(place),
            suggestion: self.suggestion(symbol),
            more: more.into_iter().map(String::from).collect(),
        })
    }

    /// Where a reference really goes: calls of a replaced function to the new one, its address to the program's.
    pub(super) fn redirect(&self, r: &Reference) -> (Target, i64) {
        let unchanged = (r.target, r.addend);
        let old_of = |spot: &Spot| self.site_of_new.get(spot).and_then(|i| self.sites.get(*i)).map(|s| s.entry);
        match (r.howto.role, r.target) {
            (Role::Branch, Target::Program(at)) => {
                let site = self.site_of_old.get(&at).and_then(|i| self.sites.get(*i));
                site.map_or(unchanged, |s| (Target::Spot(s.new), r.addend))
            }
            (Role::Got, Target::Spot(spot)) if r.howto.expr != Expr::GotPage && !self.cx.arch.addend_in_slot() => {
                old_of(&spot).map_or(unchanged, |at| (Target::Program(at), r.addend))
            }
            (Role::Address | Role::Got, Target::Spot(spot)) => {
                let bias = match r.howto.expr {
                    // The parts of an address that is put together must all go to the same place.
                    Expr::Abs | Expr::GotPage => 0,
                    Expr::Got | Expr::GotPc | Expr::GotAbs if r.howto.role == Role::Got => 0,
                    // Relative to data, only a name is proof: entries of jump tables are differences of labels.
                    Expr::Pc if r.in_code || !r.by_section => pc_bias(r.howto, r.in_code),
                    _ => return unchanged,
                };
                let Some(delta) = r.addend.checked_add(bias) else { return unchanged };
                let Some(value) = spot.value.checked_add_signed(delta) else { return unchanged };
                if delta != 0 && !r.by_section && !r.by_anchor {
                    return unchanged;
                }
                old_of(&Spot { value, ..spot }).map_or(unchanged, |at| (Target::Program(at), r.addend - delta))
            }
            _ => unchanged,
        }
    }
}

/// A reference as [`Resolver::redirect`] judges it.
pub(super) struct Reference {
    pub howto: &'static Howto,
    pub target: Target,
    pub addend: i64,
    /// Against a section's symbol: the addend says what in the section is meant.
    pub by_section: bool,
    /// Against a label of the object, which may stand for whatever lies around it.
    pub by_anchor: bool,
    /// The field is part of an instruction.
    pub in_code: bool,
}

/// What the addend of a PC-relative field in code has to make up for: processors whose displacements are plain words
/// count from the instruction's end; those whose displacements are bits of an instruction word have it in the row.
pub(super) fn pc_bias(howto: &Howto, in_code: bool) -> i64 {
    if in_code && howto.field.order == Order::Data { i64::from(howto.field.bytes) } else { 0 }
}
