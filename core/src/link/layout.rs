//! Where everything lies in the image: read-only data, unwind tables and GOT; code, veneers and landings; data.

use super::Inputs;
use super::error::LinkError;
use super::globals::Globals;
use super::report::Placement;
use super::resolve::{Spot, Target};
use super::sections::{Fate, Part};
use crate::target::Perm;
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};

/// The largest image. It is far more than a patch needs, and less than any architecture's branches reach on 64 bits.
pub(super) const MAX_IMAGE: u64 = 256 << 20;

/// Alignment of veneers and landings, bytes.
const CODE_ALIGN: u64 = 16;

/// What the linker adds to the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub slots: u64,
    pub veneers: u64,
    pub landings: u64,
}

/// Room to leave before sections, bytes: object, section.
pub(super) type Nudges = BTreeMap<(u32, u32), u64>;

/// A span of the image.
#[derive(Clone, Debug)]
pub(super) struct SpanPlan {
    pub part: Part,
    pub offset: u64,
    pub size: u64,
    /// Bytes from its start on that are not simply zero.
    pub filled: u64,
}

impl SpanPlan {
    pub(super) fn perm(&self) -> Perm {
        Perm { read: true, write: self.part == Part::Data, exec: self.part == Part::Code }
    }
}

/// The image, as offsets.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    pub spans: Vec<SpanPlan>,
    pub size: u64,
    /// Offset in the image, and the bytes that are there to be relocated.
    sections: BTreeMap<(u32, u32), (u64, u64)>,
    /// Offset and size of each COMMON symbol.
    commons: Vec<(u64, u64)>,
    pub got: u64,
    pub slot_size: u64,
    veneers: u64,
    veneer_step: u64,
    landings: u64,
    pub landing_step: u64,
    pub trap: u64,
    pub eh_frame: Option<(u64, u64)>,
}

/// Hands out room, and refuses more than [`MAX_IMAGE`].
struct Cursor {
    at: u64,
}

impl Cursor {
    fn take(&mut self, what: impl FnOnce() -> String, size: u64, align: u64) -> Result<u64, LinkError> {
        let start = self.at.checked_next_multiple_of(align.max(1));
        let end = start.and_then(|s| s.checked_add(size)).filter(|e| *e <= MAX_IMAGE);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(LinkError::TooLarge { what: what(), max: MAX_IMAGE });
        };
        self.at = end;
        Ok(start)
    }
}

impl Layout {
    /// Lays out everything that stays. `eh_frames` are the prepared unwind tables, by section.
    pub(super) fn new(
        cx: &Inputs<'_, '_>,
        globals: &Globals<'_>,
        bound: &dyn Fn(&str) -> bool,
        eh_frames: &BTreeMap<(u32, u32), Vec<u8>>,
        counts: Counts,
        nudges: &Nudges,
    ) -> Result<Layout, LinkError> {
        let page = cx.page_size;
        let forms = cx.arch.forms().iter();
        let landing = forms.map(|f| u64::from(f.landing_len)).max().unwrap_or(0);
        let mut out = Layout {
            slot_size: u64::from(cx.arch.slot_size()),
            veneer_step: (cx.arch.veneer().code.len() as u64).next_multiple_of(8),
            landing_step: landing.next_multiple_of(CODE_ALIGN),
            ..Layout::default()
        };
        let mut c = Cursor { at: 0 };
        for part in [Part::ReadOnly, Part::Code, Part::Data] {
            c.take(|| String::from("pages"), 0, page)?;
            let offset = c.at;
            out.sections(cx, part, false, nudges, &mut c)?;
            match part {
                Part::ReadOnly => out.tables(eh_frames, counts, &mut c)?,
                Part::Code => out.stubs(cx, counts, &mut c)?,
                Part::Data => {}
            }
            let filled = c.at - offset;
            out.sections(cx, part, true, nudges, &mut c)?;
            if part == Part::Data {
                for common in &globals.commons {
                    // No room where the program's object stands in.
                    let size = if bound(common.name) { 0 } else { common.size };
                    let align = if size == 0 { 1 } else { common.align };
                    let at = c.take(|| format!("`{}`", common.name), size, align)?;
                    out.commons.push((at, size));
                }
            }
            let size = c.at - offset;
            if size != 0 {
                out.spans.push(SpanPlan { part, offset, size, filled });
            }
        }
        c.take(|| String::from("pages"), 0, page)?;
        out.size = c.at;
        Ok(out)
    }

    fn sections(
        &mut self,
        cx: &Inputs<'_, '_>,
        part: Part,
        no_bits: bool,
        nudges: &Nudges,
        c: &mut Cursor,
    ) -> Result<(), LinkError> {
        for (o, (object, fates)) in cx.objects.iter().zip(cx.fates).enumerate() {
            for (i, (s, fate)) in object.sections.iter().zip(fates).enumerate() {
                if *fate == Fate::Keep(part) && s.no_bits() == no_bits {
                    let what = || format!("{} of {}", s.name, object.name);
                    if let Some(room) = nudges.get(&(o as u32, i as u32)) {
                        c.take(what, *room, s.align)?;
                    }
                    let at = c.take(what, s.size, s.align)?;
                    self.sections.insert((o as u32, i as u32), (at, s.data.len() as u64));
                }
            }
        }
        Ok(())
    }

    /// Unwind tables and GOT.
    fn tables(
        &mut self,
        eh_frames: &BTreeMap<(u32, u32), Vec<u8>>,
        counts: Counts,
        c: &mut Cursor,
    ) -> Result<(), LinkError> {
        let unwind = || String::from(".eh_frame");
        if !eh_frames.is_empty() {
            let start = c.take(unwind, 0, 8)?;
            for (key, table) in eh_frames {
                // Lengths are multiples of 4, so nothing lies between two objects' records.
                let at = c.take(unwind, table.len() as u64, 4)?;
                self.sections.insert(*key, (at, table.len() as u64));
            }
            c.take(unwind, 4, 4)?; // the terminator
            self.eh_frame = Some((start, c.at - start));
        }
        let slots = counts.slots.saturating_mul(self.slot_size);
        self.got = c.take(|| String::from("GOT"), slots, self.slot_size)?;
        Ok(())
    }

    /// Veneers, landings and the breakpoint.
    fn stubs(&mut self, cx: &Inputs<'_, '_>, counts: Counts, c: &mut Cursor) -> Result<(), LinkError> {
        let room = |n: u64, step: u64| n.saturating_mul(step);
        self.veneers = c.take(|| String::from("veneers"), room(counts.veneers, self.veneer_step), CODE_ALIGN)?;
        self.landings = c.take(|| String::from("landings"), room(counts.landings, self.landing_step), CODE_ALIGN)?;
        self.trap = c.take(|| String::from("breakpoint"), cx.arch.breakpoint().len() as u64, CODE_ALIGN)?;
        Ok(())
    }

    /// Offset in the image of a section.
    pub(super) fn section(&self, object: u32, section: u32) -> Option<u64> {
        self.sections.get(&(object, section)).map(|s| s.0)
    }

    /// The section that an offset in the image lies in.
    pub(super) fn section_at(&self, offset: u64) -> Option<(u32, u32)> {
        self.sections.iter().find(|(_, (at, len))| (*at..at + len).contains(&offset)).map(|(key, _)| *key)
    }

    /// Number of bytes of a section that relocations may change.
    pub(super) fn relocatable(&self, object: u32, section: u32) -> u64 {
        self.sections.get(&(object, section)).map_or(0, |s| s.1)
    }

    /// Offset in the image of what the patch defines.
    pub(super) fn offset_of(&self, target: Target) -> Option<u64> {
        match target {
            Target::Spot(Spot { object, section, value }) => Some(self.section(object, section)?.wrapping_add(value)),
            Target::Common(c) => self.commons.get(c as usize).map(|c| c.0),
            _ => None,
        }
    }

    pub(super) fn slot(&self, index: u32) -> u64 {
        self.got + u64::from(index) * self.slot_size
    }
    pub(super) fn veneer(&self, index: usize) -> u64 {
        self.veneers + index as u64 * self.veneer_step
    }
    pub(super) fn landing(&self, index: usize) -> u64 {
        self.landings + index as u64 * self.landing_step
    }

    pub(super) fn placements(&self, cx: &Inputs<'_, '_>, globals: &Globals<'_>) -> Vec<Placement> {
        let mut out = Vec::new();
        for (&(o, i), &(offset, _)) in &self.sections {
            let Some(object) = cx.objects.get(o as usize) else { continue };
            let Some(s) = object.sections.get(i as usize) else { continue };
            out.push(Placement {
                object: String::from(object.name),
                object_index: o,
                section: s.name.clone().into_owned(),
                index: i,
                symbol: None,
                offset,
                size: s.size,
            });
        }
        for (common, &(offset, size)) in globals.commons.iter().zip(&self.commons).filter(|(_, c)| c.1 != 0) {
            out.push(Placement {
                object: cx.objects.get(common.object as usize).map_or_else(String::new, |o| String::from(o.name)),
                object_index: common.object,
                section: String::from("COMMON"),
                index: 0,
                symbol: Some(String::from(common.name)),
                offset,
                size,
            });
        }
        out
    }
}
