//! Settles what can be settled and keeps the rest as residue.

use super::Inputs;
use super::error::LinkError;
use super::layout::Layout;
use super::resolve::{Resolver, Target};
use super::scan::{Item, Plan, Slot, VeneerPlan};
use super::symbols::Symbols;
use crate::addr::LinkAddr;
use crate::arch::{Expr, Howto, page_start, region_start};
use crate::field::{FieldError, store};
use crate::model::Residue;
use crate::relocate::put;
use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

/// An address, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// An offset in an image that may lie anywhere.
    Image(u64),
    /// A run-time address.
    Fixed(u64),
    /// Known when the patch is applied.
    Later,
}

/// The outcome for one relocation.
enum Outcome {
    Value(u64),
    Residue,
    Impossible(&'static str),
}

/// The bytes of the image: of each span what is not simply zero.
pub(super) type Contents = Vec<Vec<u8>>;

/// Computes values once the layout is known.
pub(super) struct Values<'c, 'o, 'd> {
    pub cx: &'c Inputs<'o, 'd>,
    pub layout: &'c Layout,
}

impl Values<'_, '_, '_> {
    /// An offset in the image as an address.
    fn image(&self, offset: u64) -> Where {
        match self.cx.options.base {
            Some(base) => Where::Fixed(base.wrapping_add(offset)),
            None => Where::Image(offset),
        }
    }

    /// What the GOT pointer points to.
    fn got(&self) -> Where {
        self.image(self.layout.got.wrapping_add(self.cx.arch.gp_bias()))
    }

    fn target(&self, target: Target) -> Where {
        match target {
            Target::Spot(_) | Target::Common(_) => {
                self.layout.offset_of(target).map_or(Where::Later, |o| self.image(o))
            }
            Target::GotBase => self.got(),
            Target::Absolute(v) => Where::Fixed(v),
            Target::Program(a) if self.cx.program.fixed => Where::Fixed(a.0),
            Target::Program(_) | Target::Ifunc(_) | Target::Import(_) | Target::Tls(_) => Where::Later,
        }
    }

    /// Offset in the image of an item's field.
    fn field(&self, item: &Item) -> u64 {
        self.layout.section(item.object, item.section).unwrap_or(0).wrapping_add(item.offset)
    }

    fn outcome(&self, item: &Item) -> Outcome {
        self.outcome_at(item, self.field(item))
    }

    /// What becomes of `item` if its field is at offset `at` of the image.
    fn outcome_at(&self, item: &Item, at: u64) -> Outcome {
        let (a, cx) = (item.addend, self.cx);
        let s = match item.veneer {
            Some(v) => self.image(self.layout.veneer(v)),
            None => self.target(item.target),
        };
        let p = self.image(at);
        let difference = |to: Where, from: Where| match (to, from) {
            (Where::Image(x), Where::Image(y)) | (Where::Fixed(x), Where::Fixed(y)) => Some(x.wrapping_sub(y)),
            _ => None,
        };
        let plus = |v: u64| Outcome::Value(v.wrapping_add_signed(a));
        // Programs are moved by whole pages, and so are most images: differences of pages are known like those of addresses.
        let drifts = |bits: u8| cx.options.base.is_none() && cx.page_size < 1 << bits;
        let pages = |to: Where, bits: u8| {
            let page = |w: Where, a: i64| match w {
                Where::Image(v) => Where::Image(page_start(v.wrapping_add_signed(a), bits)),
                Where::Fixed(v) => Where::Fixed(page_start(v.wrapping_add_signed(a), bits)),
                Where::Later => Where::Later,
            };
            difference(page(to, a), page(p, 0))
        };
        let page_offset = |to: Where, bits: u8| match to {
            Where::Image(_) if drifts(bits) => Outcome::Residue,
            Where::Image(v) | Where::Fixed(v) => {
                let v = v.wrapping_add_signed(a);
                Outcome::Value(v.wrapping_sub(page_start(v, bits)))
            }
            Where::Later => LOST,
        };
        let slot = || item.slot.map(|i| self.image(self.layout.slot(i)));
        // The image is one piece, so differences inside it are always known.
        const LOST: Outcome = Outcome::Impossible("can't be settled");
        let inside = |from: Where| slot().and_then(|g| difference(g, from)).map_or(LOST, plus);
        let tp = || cx.program.tls.map_or(0, |t| cx.arch.tp_offset(t.size, t.align));
        match (item.howto.expr, item.target) {
            (Expr::Abs, _) => match s {
                Where::Fixed(v) => plus(v),
                _ if cx.is_narrow(item.howto) && !cx.program.fixed => {
                    Outcome::Impossible("has no room for an address of a program that may be loaded anywhere")
                }
                _ => Outcome::Residue,
            },
            (Expr::Pc | Expr::PltPc, target) => match difference(s, p) {
                Some(v) => plus(v),
                None if matches!(target, Target::Absolute(_)) && item.veneer.is_none() => {
                    Outcome::Impossible("is relative, but the symbol is a fixed address")
                }
                None => Outcome::Residue,
            },
            (Expr::PagePc { bits }, target) => match pages(s, bits) {
                Some(_) if drifts(bits) => Outcome::Residue,
                Some(v) => Outcome::Value(v),
                None if matches!(target, Target::Absolute(_)) => {
                    Outcome::Impossible("is relative, but the symbol is a fixed address")
                }
                None => Outcome::Residue,
            },
            (Expr::PageOffset { bits }, Target::Program(LinkAddr(v))) if item.veneer.is_none() => {
                page_offset(Where::Fixed(v), bits)
            }
            (Expr::PageOffset { bits }, _) => page_offset(s, bits),
            (Expr::GotPagePc { bits } | Expr::GotTpOffPagePc { bits }, _) if drifts(bits) => {
                slot().map_or(LOST, |_| Outcome::Residue)
            }
            (Expr::GotPagePc { bits } | Expr::GotTpOffPagePc { bits }, _) => {
                slot().and_then(|g| pages(g, bits)).map_or(LOST, Outcome::Value)
            }
            (Expr::GotPageOffset { bits } | Expr::GotTpOffPageOffset { bits }, _) => {
                slot().map_or(LOST, |g| page_offset(g, bits))
            }
            (Expr::GotFromPage { bits }, _) if drifts(bits) => {
                Outcome::Impossible("needs an image that is moved by whole pages (see --page-size)")
            }
            (Expr::GotFromPage { bits }, _) => match self.got() {
                Where::Image(v) => inside(Where::Image(page_start(v, bits))),
                Where::Fixed(v) => inside(Where::Fixed(page_start(v, bits))),
                Where::Later => LOST,
            },
            (Expr::GotPc | Expr::GotTpOffPc | Expr::GotTlsGdPc | Expr::GotTlsLdPc, _) => inside(p),
            (Expr::Got | Expr::GotPage | Expr::GotTpOff, _) => inside(self.got()),
            (Expr::GotAbs, _) => match slot() {
                Some(Where::Fixed(v)) => plus(v),
                _ => Outcome::Impossible("needs the address of a GOT slot, which is not known yet"),
            },
            (Expr::GotOff | Expr::PltGotOff, _) => difference(s, self.got())
                .map_or(Outcome::Impossible("is relative to the GOT, but the symbol is not part of the patch"), plus),
            (Expr::GotMinus, _) => difference(self.got(), s)
                .map_or(Outcome::Impossible("is relative to the GOT, but the symbol is not part of the patch"), |v| {
                    Outcome::Value(v.wrapping_sub(a as u64))
                }),
            (Expr::GpRel, target) => cx.small_data(target).map_or_else(Outcome::Impossible, plus),
            (Expr::Region { bits, after }, _) => match (s, p) {
                (Where::Fixed(s), Where::Fixed(p)) => plus(s.wrapping_sub(region_start(p, bits, after))),
                _ => Outcome::Residue,
            },
            (Expr::GotBasePc, _) => difference(self.got(), p).map_or(LOST, plus),
            // The scan added the size to the addend.
            (Expr::Size, _) => plus(0),
            (Expr::TpOff, Target::Tls(v)) => plus(v.wrapping_add_signed(tp())),
            (Expr::DtpOff, Target::Tls(v)) => plus(v),
            (Expr::None | Expr::TpOff | Expr::DtpOff, _) => LOST,
        }
    }

    /// Branches that do not reach, among those without a veneer.
    pub(super) fn out_of_reach(&self, plan: &Plan) -> BTreeSet<usize> {
        let short = |item: &Item| {
            let Outcome::Value(value) = self.outcome(item) else { return false };
            let mut scratch = [0u8; 8];
            matches!(put(self.cx.arch, item.howto, &mut scratch, 0, value), Err(FieldError::Overflow { .. }))
        };
        let branches = plan.items.iter().enumerate().filter(|(_, i)| i.veneer.is_none() && i.is_branch());
        branches.filter(|(_, i)| short(i)).map(|(n, _)| n).collect()
    }

    /// The cell of the image that holds a section's bytes from `offset` on.
    fn cell<'b>(&self, contents: &'b mut Contents, offset: u64, len: u64) -> Option<&'b mut [u8]> {
        let (i, span) = self.layout.spans.iter().enumerate().rfind(|(_, s)| s.offset <= offset)?;
        let from = usize::try_from(offset - span.offset).ok()?;
        let to = from.checked_add(usize::try_from(len).ok()?)?;
        contents.get_mut(i)?.get_mut(from..to)
    }

    fn settle(&self, item: &Item, contents: &mut Contents, value: u64) -> Result<(), LinkError> {
        let cx = self.cx;
        let start = self.layout.section(item.object, item.section).unwrap_or(0);
        let len = self.layout.relocatable(item.object, item.section);
        let cell = self.cell(contents, start, len).unwrap_or(&mut []);
        put(cx.arch, item.howto, cell, item.offset, value).map_err(|e| self.field_error(item, e))
    }

    fn field_error(&self, item: &Item, e: FieldError) -> LinkError {
        let cx = self.cx;
        let place = Box::new(cx.place(item.object, item.section, item.offset));
        let (name, symbol) = (item.howto.name, cx.symbol_name(item.object, item.symbol));
        match e {
            FieldError::Overflow { value, min, max } => LinkError::Overflow { name, symbol, place, value, min, max },
            FieldError::Misaligned { value, align } => LinkError::Misaligned { name, symbol, place, value, align },
            FieldError::OutOfSection => {
                LinkError::BadRelocation { name: String::from(name), place, what: "its field lies outside the section" }
            }
        }
    }

    /// Settles all relocations and fills the GOT; what is left over comes back.
    pub(super) fn apply(
        &self,
        plan: &Plan,
        resolver: &Resolver<'_, '_, '_>,
        symbols: &mut Symbols,
        contents: &mut Contents,
    ) -> Result<(Vec<Residue>, BTreeMap<String, u32>), LinkError> {
        let mut residue = Vec::new();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for item in &plan.items {
            match self.outcome(item) {
                Outcome::Value(value) => self.settle(item, contents, value)?,
                Outcome::Impossible(why) => return Err(self.cx.not_pic(item, why)),
                Outcome::Residue => {
                    // The check that the field is there; its bits are fix's business.
                    self.probe(item, contents)?;
                    let symbol = match item.veneer {
                        Some(v) => symbols.inside(self.layout.veneer(v), "veneer", &resolver.labels, item.target),
                        None => self.symbol(item, symbols, resolver),
                    };
                    *counts.entry(String::from(item.howto.name)).or_default() += 1;
                    residue.push(self.residue(item.howto, item.target, symbol, item.addend, self.field(item)));
                }
            }
        }
        for (i, veneer) in plan.veneers.iter().enumerate() {
            self.veneer(i, veneer, resolver, symbols, contents, &mut residue, &mut counts)?;
        }
        self.fill_got(plan, resolver, symbols, contents, &mut residue, &mut counts)?;
        residue.sort_by_key(|r| r.offset);
        Ok((residue, counts))
    }

    /// The package's symbol for what a relocation is about: its target, or the slot for it.
    fn symbol(&self, item: &Item, symbols: &mut Symbols, resolver: &Resolver<'_, '_, '_>) -> u32 {
        match item.slot {
            Some(slot) => symbols.inside(self.layout.slot(slot), "slot", &resolver.labels, item.target),
            None => symbols.of(item.target, resolver, self.layout),
        }
    }

    fn residue(&self, howto: &Howto, target: Target, symbol: u32, addend: i64, offset: u64) -> Residue {
        // The package's symbol for the GOT is the GOT's start, since the place that is pointed to may be in no span.
        let bias = if target == Target::GotBase { self.cx.arch.gp_bias() } else { 0 };
        Residue { offset, r_type: howto.r_type, symbol, addend: addend.wrapping_add_unsigned(bias) }
    }

    /// Does the field lie inside its section?
    fn probe(&self, item: &Item, contents: &mut Contents) -> Result<(), LinkError> {
        let start = self.layout.section(item.object, item.section).unwrap_or(0);
        let len = self.layout.relocatable(item.object, item.section);
        let end = item.offset.checked_add(u64::from(item.howto.field.bytes));
        let inside = end.is_some_and(|e| e <= len) && self.cell(contents, start, len).is_some();
        if inside { Ok(()) } else { Err(self.field_error(item, FieldError::OutOfSection)) }
    }

    fn fill_got(
        &self,
        plan: &Plan,
        resolver: &Resolver<'_, '_, '_>,
        symbols: &mut Symbols,
        contents: &mut Contents,
        residue: &mut Vec<Residue>,
        counts: &mut BTreeMap<String, u32>,
    ) -> Result<(), LinkError> {
        let cx = self.cx;
        let word = |r_type: u32| {
            cx.arch.howto(r_type).ok_or_else(|| LinkError::WrongMachine {
                object: String::from(cx.arch.name()),
                why: format!("has no relocation of type {r_type} for a GOT slot"),
            })
        };
        let (address, page) = (word(cx.arch.address_word())?, cx.arch.page_word().map(word).transpose()?);
        for (i, (slot, name)) in plan.slots.iter().enumerate() {
            let offset = self.layout.slot(i as u32);
            let value = match *slot {
                Slot::Address(target, delta) | Slot::Page(target, delta) => {
                    let howto = if matches!(slot, Slot::Page(..)) { page.unwrap_or(address) } else { address };
                    match self.target(target) {
                        Where::Fixed(v) => {
                            let slot = self.cell(contents, offset, self.layout.slot_size).unwrap_or(&mut []);
                            put(cx.arch, howto, slot, 0, v.wrapping_add_signed(delta))
                                .map_err(|why| LinkError::Veneer { symbol: name.clone(), why })?;
                        }
                        _ => {
                            let symbol = symbols.of(target, resolver, self.layout);
                            *counts.entry(String::from(howto.name)).or_default() += 1;
                            residue.push(self.residue(howto, target, symbol, delta, offset));
                        }
                    }
                    continue;
                }
                Slot::TpOffset(v) => {
                    let tp = cx.program.tls.map_or(0, |t| cx.arch.tp_offset(t.size, t.align));
                    v.wrapping_add_signed(tp)
                }
                // The dynamic loader numbers modules from 1 on, and the executable comes first.
                Slot::Module(_) => 1,
                Slot::DtpOffset(v) => v,
            };
            if let Some(cell) = self.cell(contents, offset, self.layout.slot_size) {
                store(cell, cx.arch.data_endian(), value);
            }
        }
        Ok(())
    }

    /// Writes a veneer, and settles what its code refers to.
    #[allow(clippy::too_many_arguments)] // what `apply` hands on, and the veneer
    fn veneer(
        &self,
        index: usize,
        veneer: &VeneerPlan,
        resolver: &Resolver<'_, '_, '_>,
        symbols: &mut Symbols,
        contents: &mut Contents,
        residue: &mut Vec<Residue>,
        counts: &mut BTreeMap<String, u32>,
    ) -> Result<(), LinkError> {
        let (arch, at) = (self.cx.arch, self.layout.veneer(index));
        let code = arch.veneer().code;
        let Some(cell) = self.cell(contents, at, code.len() as u64) else { return Ok(()) };
        cell.copy_from_slice(code);
        for item in &veneer.items {
            let field = at.wrapping_add(item.offset);
            match self.outcome_at(item, field) {
                Outcome::Value(value) => put(arch, item.howto, cell, item.offset, value)
                    .map_err(|why| LinkError::Veneer { symbol: veneer.name.clone(), why })?,
                Outcome::Impossible(why) => return Err(self.cx.not_pic(item, why)),
                Outcome::Residue => {
                    let symbol = self.symbol(item, symbols, resolver);
                    *counts.entry(String::from(item.howto.name)).or_default() += 1;
                    residue.push(self.residue(item.howto, item.target, symbol, item.addend, field));
                }
            }
        }
        Ok(())
    }
}
