//! The package's symbols: the image's own, and what residue refers to.

use super::Inputs;
use super::globals::Globals;
use super::input::{At, Kind};
use super::layout::Layout;
use super::resolve::{Label, Resolver, Spot, Target};
use crate::model::{PackageSymbol, Referent};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};

/// The package's symbols while they are collected.
pub(super) struct Symbols {
    pub all: Vec<PackageSymbol>,
    of_target: BTreeMap<Target, u32>,
    of_made: BTreeMap<u64, u32>,
}

impl Symbols {
    /// The functions and objects that the patch defines.
    pub(super) fn of_image(
        cx: &Inputs<'_, '_>,
        globals: &Globals<'_>,
        layout: &Layout,
        bound: &dyn Fn(&str) -> bool,
    ) -> Symbols {
        let mut out = Symbols { all: Vec::new(), of_target: BTreeMap::new(), of_made: BTreeMap::new() };
        for (o, object) in cx.objects.iter().enumerate() {
            for (i, s) in object.symbols.iter().enumerate() {
                let At::Section { index, value } = s.at else { continue };
                // Names such as .L1 and $x mark places for assemblers and disassemblers.
                let plain = !s.name.is_empty() && !s.name.starts_with(['.', '$']);
                let defines = matches!(s.kind, Kind::Function | Kind::Object | Kind::Untyped) && plain;
                if !defines || !s.is_local() && (!globals.wins(o as u32, i as u32, s.name) || bound(s.name)) {
                    continue;
                }
                let target = Target::Spot(Spot { object: o as u32, section: index, value });
                let label = Label {
                    name: String::from(s.name),
                    size: s.size,
                    function: s.kind == Kind::Function,
                    global: !s.is_local(),
                };
                out.add_image(target, label, layout);
            }
        }
        for (i, c) in globals.commons.iter().enumerate().filter(|(_, c)| c.size != 0 && !bound(c.name)) {
            let label = Label { name: String::from(c.name), size: c.size, function: false, global: true };
            out.add_image(Target::Common(i as u32), label, layout);
        }
        out
    }

    fn add_image(&mut self, target: Target, label: Label, layout: &Layout) {
        if let Some(offset) = layout.offset_of(target) {
            let index = self.push(label, Referent::Image(offset));
            self.of_target.entry(target).or_insert(index);
        }
    }

    fn push(&mut self, label: Label, referent: Referent) -> u32 {
        let Label { name, size, function, global } = label;
        self.all.push(PackageSymbol { name, referent, size, function, global });
        self.all.len() as u32 - 1
    }

    /// The index of the symbol for a target of residue.
    pub(super) fn of(&mut self, target: Target, resolver: &Resolver<'_, '_, '_>, layout: &Layout) -> u32 {
        if let Some(i) = self.of_target.get(&target) {
            return *i;
        }
        let weak = |i: u32| resolver.imports.get(i as usize).is_some_and(|x| x.weak);
        let referent = match target {
            Target::Program(a) => Referent::Program(a),
            Target::Ifunc(a) => Referent::ProgramIfunc(a),
            Target::Import(i) => Referent::Import { weak: weak(i) },
            Target::GotBase => Referent::Image(layout.got),
            // Absolute targets and thread-local ones leave no residue.
            Target::Spot(_) | Target::Common(_) | Target::Absolute(_) | Target::Tls(_) => {
                Referent::Image(layout.offset_of(target).unwrap_or(0))
            }
        };
        let label = resolver.labels.get(&target).cloned().unwrap_or_else(|| resolver.site_label(target));
        let index = self.push(label, referent);
        self.of_target.insert(target, index);
        index
    }

    /// The index of the symbol for what the linker has made for `target`: a veneer, a slot.
    pub(super) fn inside(&mut self, offset: u64, what: &str, labels: &BTreeMap<Target, Label>, target: Target) -> u32 {
        if let Some(i) = self.of_made.get(&offset) {
            return *i;
        }
        let name = labels.get(&target).map_or_else(String::new, |l| format!("{}.{what}", l.name));
        let index =
            self.push(Label { name, size: 0, function: what == "veneer", global: false }, Referent::Image(offset));
        self.of_made.insert(offset, index);
        index
    }
}
