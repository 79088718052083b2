//! Reads every relocation once: what it refers to, and which GOT slots and veneers it needs, before addresses are known.

use super::Inputs;
use super::error::{LinkError, Place};
use super::input::Kind;
use super::report::Messages;
use super::resolve::{Reference, Resolver, Target, pc_bias};
use super::sections::{Fate, Part};
use crate::arch::{Expr, Howto, Reloc, Role};
use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

/// A relocation to be settled.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub object: u32,
    pub section: u32,
    pub offset: u64,
    /// Symbol index in the object.
    pub symbol: u32,
    pub howto: &'static Howto,
    pub target: Target,
    pub addend: i64,
    /// Index in [`Plan::slots`].
    pub slot: Option<u32>,
    /// Index in [`Plan::veneers`].
    pub veneer: Option<usize>,
    pub in_code: bool,
}

impl Item {
    /// A call or jump, between which and its target a veneer may be put.
    pub(super) fn is_branch(&self) -> bool {
        matches!(self.howto.expr, Expr::PltPc | Expr::PltGotOff)
            || (self.howto.role == Role::Branch && matches!(self.howto.expr, Expr::Pc | Expr::Abs))
    }
}

/// One word of the GOT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    /// The address of a target, plus so many bytes.
    Address(Target, i64),
    /// Offset from the thread pointer of what lies at this offset in the program's TLS block.
    TpOffset(u64),
    /// Module id of the program, followed by the offset in its TLS block (`None`: 0, for the whole block).
    Module(Option<u64>),
    /// The second word of such a pair.
    DtpOffset(u64),
}

/// A stub that jumps through a GOT slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct VeneerPlan {
    pub slot: u32,
}

/// All that relocations ask for.
#[derive(Default)]
pub(super) struct Plan {
    pub items: Vec<Item>,
    /// The GOT's words, with the name that each is for.
    pub slots: Vec<(Slot, String)>,
    pub veneers: Vec<VeneerPlan>,
    pub counts: BTreeMap<String, u32>,
    slot_of: BTreeMap<Slot, u32>,
    veneer_of: BTreeMap<(Target, i64), usize>,
}

impl Plan {
    /// Scans the relocations of everything that is laid out.
    pub(super) fn scan(
        cx: &Inputs<'_, '_>,
        resolver: &mut Resolver<'_, '_, '_>,
        messages: &mut Messages,
    ) -> Result<Plan, LinkError> {
        let mut plan = Plan::default();
        for (o, (fates, relocs)) in cx.fates.iter().zip(cx.relocs).enumerate() {
            for (&section, relocs) in relocs {
                let Some(fate) = fates.get(section as usize).filter(|f| f.laid_out()) else { continue };
                for reloc in relocs {
                    plan.one(cx, resolver, messages, (o as u32, section, *fate), reloc)?;
                }
            }
        }
        resolver.finish()?;
        Ok(plan)
    }

    fn one(
        &mut self,
        cx: &Inputs<'_, '_>,
        resolver: &mut Resolver<'_, '_, '_>,
        messages: &mut Messages,
        (object, section, fate): (u32, u32, Fate),
        reloc: &Reloc,
    ) -> Result<(), LinkError> {
        let place = || cx.place(object, section, reloc.offset);
        let Some(howto) = cx.arch.howto(reloc.r_type) else {
            return Err(LinkError::UnsupportedRelocation {
                name: cx.reloc_name(reloc.r_type),
                symbol: cx.symbol_name(object, reloc.symbol),
                place: Box::new(place()),
            });
        };
        *self.counts.entry(String::from(howto.name)).or_default() += 1;
        if howto.expr == Expr::None || howto.role == Role::Hint {
            return Ok(());
        }
        let target = resolver.target(object, reloc.symbol, &place, messages)?;
        let in_code = fate == Fate::Keep(Part::Code);
        let symbol = cx.objects.get(object as usize).and_then(|o| o.symbols.get(reloc.symbol as usize));
        let by_section = symbol.is_some_and(|s| s.kind == Kind::Section);
        let reference = Reference { howto, target, addend: reloc.addend, by_section, in_code };
        if let Some(symbol) = resolver.stale(&reference) {
            return Err(LinkError::HiddenReference { symbol: String::from(symbol), place: Box::new(place()) });
        }
        // Unwind tables describe the new function, wherever calls and addresses go.
        let (target, addend) =
            if fate == Fate::EhFrame { (target, reloc.addend) } else { resolver.redirect(&reference) };
        let addend = if howto.expr == Expr::Size {
            addend.wrapping_add_unsigned(resolver.size_of(object, reloc.symbol))
        } else {
            addend
        };
        let mut item = Item {
            object,
            section,
            offset: reloc.offset,
            symbol: reloc.symbol,
            howto,
            target,
            addend,
            slot: None,
            veneer: None,
            in_code,
        };
        self.check(cx, &item)?;
        self.wants(cx, &mut item)?;
        self.items.push(item);
        Ok(())
    }

    /// Combinations of relocation and target that no address makes right.
    fn check(&self, cx: &Inputs<'_, '_>, item: &Item) -> Result<(), LinkError> {
        let tls = |why| LinkError::ThreadLocal {
            symbol: cx.symbol_name(item.object, item.symbol),
            place: Box::new(cx.place(item.object, item.section, item.offset)),
            why,
        };
        let absolute = |why| Err(cx.not_pic(item, why));
        match (item.howto.expr, item.target) {
            // Every module of a process may ask for its own TLS block, so a shared library's would be needed here.
            (Expr::GotTlsLdPc | Expr::GotTlsGdPc | Expr::GotTpOffPc | Expr::TpOff | Expr::DtpOff, _)
                if cx.program.library =>
            {
                Err(tls("it is a shared library's, and its place differs from process to process"))
            }
            (Expr::GotTlsLdPc, _) => Ok(()),
            (Expr::GotTlsGdPc | Expr::GotTpOffPc | Expr::TpOff | Expr::DtpOff, target) => match target {
                Target::Tls(_) if cx.program.tls.is_some() => Ok(()),
                Target::Tls(_) => Err(tls("the program has no TLS segment")),
                Target::Import(_) => Err(tls("another module defines it")),
                _ => Err(tls("it is an ordinary variable in the program")),
            },
            (Expr::Size, Target::Import(_) | Target::Ifunc(_)) => {
                absolute("needs a size that only another module knows")
            }
            (Expr::Size, _) => Ok(()),
            (_, Target::Tls(_)) => Err(tls("it is thread-local in the program, but an ordinary variable in the patch")),
            (_, Target::Program(at)) if item.is_branch() && !cx.program.segment_at(at).is_some_and(|s| s.perm.exec) => {
                Err(LinkError::KindMismatch {
                    object: cx.place(item.object, item.section, item.offset).object,
                    symbol: cx.symbol_name(item.object, item.symbol),
                    patch: "a function",
                    program: "data",
                })
            }
            _ if item.is_branch() => Ok(()),
            (Expr::Pc | Expr::GotOff, Target::Import(_)) => {
                absolute("must be near, but another module defines the symbol, anywhere in memory")
            }
            (Expr::Pc | Expr::GotOff, Target::Ifunc(_)) => {
                absolute("must be settled, but the symbol's address is chosen at start (IFUNC)")
            }
            (Expr::Abs, Target::Import(_)) if cx.is_narrow(item.howto) => {
                absolute("has no room for the address of a symbol that another module defines")
            }
            _ => Ok(()),
        }
    }

    fn wants(&mut self, cx: &Inputs<'_, '_>, item: &mut Item) -> Result<(), LinkError> {
        let name = || cx.symbol_name(item.object, item.symbol);
        let slot = match (item.howto.expr, item.target) {
            (Expr::Got | Expr::GotPc | Expr::GotAbs, t) => Some(Slot::Address(t, 0)),
            (Expr::GotTpOffPc, Target::Tls(v)) => Some(Slot::TpOffset(v)),
            (Expr::GotTlsGdPc, Target::Tls(v)) => Some(Slot::Module(Some(v))),
            (Expr::GotTlsLdPc, _) => Some(Slot::Module(None)),
            _ => None,
        };
        if let Some(slot) = slot {
            item.slot = Some(self.slot(slot, name));
        }
        let settled = cx.options.base.is_some() && cx.program.fixed;
        let far = match item.target {
            Target::Import(_) | Target::Ifunc(_) => true,
            Target::Absolute(_) => cx.options.base.is_none(),
            Target::Program(_) => item.howto.expr == Expr::PltGotOff && !settled,
            _ => false,
        };
        if far && item.is_branch() {
            self.divert(cx, item);
        }
        Ok(())
    }

    fn slot(&mut self, slot: Slot, name: impl Fn() -> String) -> u32 {
        if let Some(i) = self.slot_of.get(&slot) {
            return *i;
        }
        let i = self.slots.len() as u32;
        self.slots.push((slot, name()));
        if let Slot::Module(offset) = slot {
            self.slots.push((Slot::DtpOffset(offset.unwrap_or(0)), name()));
        }
        self.slot_of.insert(slot, i);
        i
    }

    /// Sends a branch through a veneer. What the addend adds to the processor's own bias is part of the destination.
    fn divert(&mut self, cx: &Inputs<'_, '_>, item: &mut Item) {
        let bias = if item.howto.expr == Expr::PltPc || item.howto.expr == Expr::Pc {
            pc_bias(item.howto, item.in_code)
        } else {
            0
        };
        let delta = item.addend.wrapping_add(bias);
        let key = (item.target, delta);
        let index = match self.veneer_of.get(&key) {
            Some(i) => *i,
            None => {
                let slot = self.slot(Slot::Address(item.target, delta), || cx.symbol_name(item.object, item.symbol));
                self.veneers.push(VeneerPlan { slot });
                self.veneer_of.insert(key, self.veneers.len() - 1);
                self.veneers.len() - 1
            }
        };
        item.veneer = Some(index);
        item.addend = bias.wrapping_neg();
    }

    /// Gives veneers to the branches with these indices. Returns whether there was any.
    pub(super) fn divert_all(&mut self, cx: &Inputs<'_, '_>, which: &BTreeSet<usize>) -> bool {
        let mut items = core::mem::take(&mut self.items);
        for i in which {
            if let Some(item) = items.get_mut(*i) {
                self.divert(cx, item);
            }
        }
        self.items = items;
        !which.is_empty()
    }
}

impl Inputs<'_, '_> {
    /// Does this relocation hold less than a whole address?
    pub(super) fn is_narrow(&self, howto: &Howto) -> bool {
        let limit = 1i128 << self.arch.address_bits().min(64);
        howto.overflow.bounds().is_some_and(|(min, max)| max - min + 1 < limit)
    }

    /// The psABI name of a relocation type, or its number.
    pub(super) fn reloc_name(&self, r_type: u32) -> String {
        self.arch.reloc_name(r_type).map_or_else(|| format!("type {r_type}"), String::from)
    }

    /// A name for a symbol of an object: its own, or its section's.
    pub(super) fn symbol_name(&self, object: u32, symbol: u32) -> String {
        let name = || {
            let object = self.objects.get(object as usize)?;
            let s = object.symbols.get(symbol as usize)?;
            match s.at {
                super::input::At::Section { index, .. } if s.name.is_empty() => {
                    Some(object.sections.get(index as usize)?.name.clone().into_owned())
                }
                _ => Some(String::from(s.name)),
            }
        };
        name().unwrap_or_default()
    }

    /// A place in words.
    pub(super) fn place(&self, object: u32, section: u32, offset: u64) -> Place {
        let o = self.objects.get(object as usize);
        let s = o.and_then(|o| o.sections.get(section as usize));
        Place {
            object: o.map_or_else(String::new, |o| String::from(o.name)),
            section: s.map_or_else(String::new, |s| s.name.clone().into_owned()),
            offset,
            within: o.and_then(|o| o.within(section, offset)),
        }
    }

    /// A relocation that only code for fixed addresses has.
    pub(super) fn not_pic(&self, item: &Item, why: &'static str) -> LinkError {
        LinkError::NotPositionIndependent {
            name: item.howto.name,
            symbol: self.symbol_name(item.object, item.symbol),
            place: Box::new(self.place(item.object, item.section, item.offset)),
            why,
        }
    }
}
