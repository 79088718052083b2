//! Reads every relocation once: what it refers to, and which GOT slots and veneers it needs, before addresses are known.

use super::Inputs;
use super::error::{LinkError, Place};
use super::input::Kind;
use super::report::Messages;
use super::resolve::{Reference, Resolver, Target, pc_bias};
use super::sections::{Fate, Part};
use crate::addr::LinkAddr;
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
            || (self.howto.role == Role::Branch
                && matches!(self.howto.expr, Expr::Pc | Expr::Abs | Expr::Region { .. }))
    }
}

/// One word of the GOT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    /// The address of a target, plus so many bytes.
    Address(Target, i64),
    /// The page of that.
    Page(Target, i64),
    /// Offset from the thread pointer of what lies at this offset in the program's TLS block.
    TpOffset(u64),
    /// Module id of the program, followed by the offset in its TLS block (`None`: 0, for the whole block).
    Module(Option<u64>),
    /// The second word of such a pair.
    DtpOffset(u64),
}

/// A stub that jumps to a target, plus so many bytes.
#[derive(Clone, Debug)]
pub(super) struct VeneerPlan {
    pub name: String,
    /// What its code refers to; offsets count from the veneer. Symbol and section are those of the first branch to it.
    pub items: Vec<Item>,
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
        let target = match howto.expr {
            // Whatever the symbol is called, it stands for nothing.
            Expr::GotBasePc => Target::GotBase,
            _ => resolver.target(object, reloc.symbol, &place, messages)?,
        };
        let in_code = fate == Fate::Keep(Part::Code);
        let symbol = cx.objects.get(object as usize).and_then(|o| o.symbols.get(reloc.symbol as usize));
        let by_section = symbol.is_some_and(|s| s.kind == Kind::Section);
        // A label without a size marks a place from which several objects may be reached.
        let by_anchor = symbol.is_some_and(|s| s.is_local() && s.kind != Kind::Function && s.size == 0);
        let reference = Reference { howto, target, addend: reloc.addend, by_section, by_anchor, in_code };
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
        if fate != Fate::EhFrame {
            check_address(cx, &item)?;
        }
        self.wants(cx, &mut item)?;
        if item.veneer.is_none() && item.is_branch() && lacks_own_address(cx, resolver, &item) {
            self.divert(cx, &mut item)?;
        }
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
            (
                Expr::GotTlsLdPc
                | Expr::GotTlsGdPc
                | Expr::GotTpOffPc
                | Expr::GotTpOff
                | Expr::GotTpOffPagePc { .. }
                | Expr::GotTpOffPageOffset { .. }
                | Expr::TpOff
                | Expr::DtpOff,
                _,
            ) if cx.program.library => {
                Err(tls("it is a shared library's, and its place differs from process to process"))
            }
            (Expr::GotTlsLdPc, _) => Ok(()),
            (
                Expr::GotTlsGdPc
                | Expr::GotTpOffPc
                | Expr::GotTpOff
                | Expr::GotTpOffPagePc { .. }
                | Expr::GotTpOffPageOffset { .. }
                | Expr::TpOff
                | Expr::DtpOff,
                target,
            ) => match target {
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
            (Expr::GpRel, target) => match cx.small_data(target) {
                Ok(_) => Ok(()),
                Err(why) => Err(LinkError::SmallData {
                    name: item.howto.name,
                    symbol: cx.symbol_name(item.object, item.symbol),
                    place: Box::new(cx.place(item.object, item.section, item.offset)),
                    why,
                }),
            },
            (Expr::Pc | Expr::PagePc { .. } | Expr::PageOffset { .. } | Expr::GotOff, Target::Import(_)) => {
                absolute("must be near, but another module defines the symbol, anywhere in memory")
            }
            (Expr::Pc | Expr::PagePc { .. } | Expr::PageOffset { .. } | Expr::GotOff, Target::Ifunc(_)) => {
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
        if item.howto.expr == Expr::GotPage && cx.arch.page_word().is_none() {
            return Err(LinkError::UnsupportedRelocation {
                name: String::from(item.howto.name),
                symbol: name(),
                place: Box::new(cx.place(item.object, item.section, item.offset)),
            });
        }
        // What is behind the symbol is either the slot's business or that of the reference to the slot.
        let inside = cx.arch.addend_in_slot() || item.howto.expr == Expr::GotPage;
        let delta = if inside { item.addend } else { 0 };
        let slot = match (item.howto.expr, item.target) {
            (expr, t) if means_slot(expr) => Some(Slot::Address(t, delta)),
            (Expr::GotPage, t) => Some(Slot::Page(t, delta)),
            (
                Expr::GotTpOffPc | Expr::GotTpOff | Expr::GotTpOffPagePc { .. } | Expr::GotTpOffPageOffset { .. },
                Target::Tls(v),
            ) => Some(Slot::TpOffset(v.wrapping_add_signed(delta))),
            (Expr::GotTlsGdPc, Target::Tls(v)) => Some(Slot::Module(Some(v.wrapping_add_signed(delta)))),
            (Expr::GotTlsLdPc, _) => Some(Slot::Module(None)),
            _ => None,
        };
        if let Some(slot) = slot {
            item.slot = Some(self.slot(slot, name));
            item.addend = item.addend.wrapping_sub(delta);
        }
        let settled = cx.options.base.is_some() && cx.program.fixed;
        let far = match item.target {
            Target::Import(_) | Target::Ifunc(_) => true,
            Target::Absolute(_) => cx.options.base.is_none(),
            // An image that is put near the program may still lie in another region than the function.
            Target::Program(_) => {
                let expr = item.howto.expr;
                !settled && (matches!(expr, Expr::PltGotOff | Expr::Region { .. }) || is_short(item.howto))
            }
            _ => false,
        };
        if far && item.is_branch() {
            self.divert(cx, item)?;
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
    fn divert(&mut self, cx: &Inputs<'_, '_>, item: &mut Item) -> Result<(), LinkError> {
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
                check_pad(cx, item, delta)?;
                let veneer = self.veneer(cx, item, delta)?;
                self.veneers.push(veneer);
                self.veneer_of.insert(key, self.veneers.len() - 1);
                self.veneers.len() - 1
            }
        };
        item.veneer = Some(index);
        item.addend = bias.wrapping_neg();
        Ok(())
    }

    /// What the code of a veneer to `branch`'s target refers to.
    fn veneer(&mut self, cx: &Inputs<'_, '_>, branch: &Item, delta: i64) -> Result<VeneerPlan, LinkError> {
        let mut items = Vec::new();
        for &(offset, r_type, addend) in cx.arch.veneer().relocs {
            let mut item = Item { offset: offset.into(), slot: None, veneer: None, in_code: true, ..branch.clone() };
            let Some(howto) = cx.arch.howto(r_type) else {
                return Err(LinkError::UnsupportedRelocation {
                    name: cx.reloc_name(r_type),
                    symbol: cx.symbol_name(branch.object, branch.symbol),
                    place: Box::new(cx.place(branch.object, branch.section, branch.offset)),
                });
            };
            item.howto = howto;
            item.addend = addend;
            if means_slot(howto.expr) {
                let name = || cx.symbol_name(branch.object, branch.symbol);
                item.slot = Some(self.slot(Slot::Address(branch.target, delta), name));
            } else {
                item.addend = addend.wrapping_add(delta);
            }
            items.push(item);
        }
        Ok(VeneerPlan { name: cx.symbol_name(branch.object, branch.symbol), items })
    }

    /// Gives veneers to the branches with these indices. Returns whether there was any.
    pub(super) fn divert_all(&mut self, cx: &Inputs<'_, '_>, which: &BTreeSet<usize>) -> Result<bool, LinkError> {
        let mut items = core::mem::take(&mut self.items);
        for i in which {
            if let Some(item) = items.get_mut(*i) {
                self.divert(cx, item)?;
            }
        }
        self.items = items;
        Ok(!which.is_empty())
    }
}

/// Is this the place of a slot that holds an address?
fn means_slot(expr: Expr) -> bool {
    matches!(
        expr,
        Expr::Got
            | Expr::GotPc
            | Expr::GotAbs
            | Expr::GotPagePc { .. }
            | Expr::GotPageOffset { .. }
            | Expr::GotFromPage { .. }
    )
}

/// Does this branch reach so little that no image can count on lying within?
fn is_short(howto: &Howto) -> bool {
    const NEAR: i128 = 1 << 27;
    howto.overflow.bounds().is_some_and(|(min, max)| (max - min) << howto.field.rshift < NEAR)
}

/// Is this a branch to a function that wants its own address, which a branch does not hand over by itself? Branches within
/// one object are left alone: its compiler knew what it did.
fn lacks_own_address(cx: &Inputs<'_, '_>, resolver: &Resolver<'_, '_, '_>, item: &Item) -> bool {
    let arch = cx.arch;
    match item.target {
        Target::Program(at) => {
            let symbol = cx.program.function_at(at).filter(|s| s.addr == at);
            arch.wants_own_address(cx.program.ident.flags, symbol.map_or(0, |s| s.other))
        }
        Target::Spot(spot) if spot.object != item.object => {
            let flags = |o: u32| cx.objects.get(o as usize).map_or(0, |o| o.ident.flags);
            arch.wants_own_address(flags(spot.object), resolver.other_of(&spot))
        }
        _ => false,
    }
}

impl Inputs<'_, '_> {
    /// The distance of a target from the program's global pointer, or a clause why there is none.
    pub(super) fn small_data(&self, target: Target) -> Result<u64, &'static str> {
        let program = self.program;
        // What runs then has the global pointer of whoever called last, and code of the program sets up its own.
        if program.dynamic || program.library || self.arch.wants_own_address(program.ident.flags, 0) {
            return Err("counts from a global pointer that this program does not keep");
        }
        let symbol = self.arch.global_pointer_symbol().and_then(|name| program.named(name).next());
        let bias = self.arch.gp_bias();
        let gp = symbol.map(|s| s.addr.0).or(program.got.map(|g| g.0.wrapping_add(bias)));
        let Some(gp) = gp else { return Err("counts from a global pointer that this program does not have") };
        match target {
            Target::Program(at) => Ok(at.0.wrapping_sub(gp)),
            Target::Absolute(v) if program.fixed => Ok(v.wrapping_sub(gp)),
            Target::Spot(_) | Target::Common(_) => {
                Err("counts from the program's global pointer, and the patch is far from it")
            }
            _ => Err("counts from the program's global pointer, and the symbol is not the program's"),
        }
    }

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

/// A guarded program takes indirect branches at landing pads only; functions that are only called directly have none.
fn check_pad(cx: &Inputs<'_, '_>, item: &Item, delta: i64) -> Result<(), LinkError> {
    let Target::Program(to) = item.target else { return Ok(()) };
    let to = LinkAddr(to.0.wrapping_add_signed(delta));
    // A pad is one instruction.
    let code = cx.program.bytes(to, 8).or_else(|| cx.program.bytes(to, 4));
    if cx.guarded && code.is_some_and(|c| !cx.arch.takes_indirect(c)) {
        return Err(LinkError::NoLandingPad {
            symbol: cx.symbol_name(item.object, item.symbol),
            to,
            place: Box::new(cx.place(item.object, item.section, item.offset)),
        });
    }
    Ok(())
}

/// Where the address of one of the program's functions is taken, it may be called through it.
fn check_address(cx: &Inputs<'_, '_>, item: &Item) -> Result<(), LinkError> {
    let Target::Program(to) = item.target else { return Ok(()) };
    let entry = cx.guarded && cx.program.function_at(to).is_some_and(|f| f.addr == to);
    if entry && matches!(item.howto.role, Role::Address | Role::Got) { check_pad(cx, item, 0) } else { Ok(()) }
}
