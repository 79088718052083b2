//! The rules that every package obeys, whether it is about to be written or was just read.

use super::format::{MAX_BUILD_ID, MAX_PAGE_SIZE, MAX_SPANS, MAX_SYMBOL_NAME};
use super::{Head, IdentityRef, PackageError, SpanRef, View};
use crate::model::Referent;
use crate::target::Perm;

/// Checks all rules, in the order head, spans, symbols, residue, sites, warnings.
pub(super) fn check(v: &impl View) -> Result<(), PackageError> {
    let head = v.head();
    let limit = address_limit(&head);
    head_fields(&head, limit)?;
    spans(v, &head, limit)?;
    places(v, &head)?;
    let symbols = symbols(v, limit, head.ident.is_64)?;
    residue(v, &head, symbols)?;
    sites(v, limit)?;
    for (index, text) in numbered(v.warnings()) {
        no_nul("warning", index?, "text", text)?;
    }
    Ok(())
}

/// The highest address of the class.
fn address_limit(head: &Head<'_>) -> u64 {
    if head.ident.is_64 { u64::MAX } else { u64::from(u32::MAX) }
}

/// Counts in u32, as errors and records do.
fn numbered<T>(items: impl Iterator<Item = T>) -> impl Iterator<Item = (Result<u32, PackageError>, T)> {
    items.enumerate().map(|(i, item)| {
        let limit = u64::from(u32::MAX - 1);
        let index = u32::try_from(i).ok().filter(|i| *i < u32::MAX);
        (index.ok_or(PackageError::TooLarge { what: "number of records", value: i as u64, limit }), item)
    })
}

fn no_nul(record: &'static str, index: u32, field: &'static str, text: &str) -> Result<(), PackageError> {
    if text.bytes().any(|b| b == 0) {
        return Err(PackageError::Text { record, index, field, why: "holds a NUL byte" });
    }
    Ok(())
}

fn head_fields(head: &Head<'_>, limit: u64) -> Result<(), PackageError> {
    let bad = |field, value, why| Err(PackageError::Head { field, value, why });
    let texts =
        [("name", head.name), ("version", head.version), ("description", head.description), ("program", head.program)];
    for (field, text) in texts {
        no_nul("package", 0, field, text)?;
    }
    if !head.page_size.is_power_of_two() || head.page_size > MAX_PAGE_SIZE {
        return bad("page size", head.page_size, "is not a power of two up to 2 MiB");
    }
    if let IdentityRef::BuildId(id) = head.identity
        && !(1..=MAX_BUILD_ID).contains(&id.len())
    {
        return bad("build-id length", id.len() as u64, "is not 1 to 255 bytes");
    }
    if let Some(base) = head.base {
        if base > limit {
            return bad("base", base, "is beyond the addresses of the ELF class");
        }
        if base % head.page_size != 0 {
            return bad("base", base, "is not a multiple of the page size");
        }
    }
    Ok(())
}

fn spans(v: &impl View, head: &Head<'_>, limit: u64) -> Result<(), PackageError> {
    let mut end = 0u64;
    let mut count = 0usize;
    for (index, span) in numbered(v.spans()) {
        let index = index?;
        let bad = |field, value, why| Err(PackageError::Span { index, field, value, why });
        let Perm { read, write, exec } = span.perm;
        let rights = u64::from(read) << 2 | u64::from(write) << 1 | u64::from(exec);
        if write && exec {
            return bad("rights", rights, "are both write and execute");
        }
        if !read {
            return bad("rights", rights, "lack read");
        }
        if span.offset % head.page_size != 0 {
            return bad("offset", span.offset, "is not a multiple of the page size");
        }
        if span.offset < end {
            return bad("offset", span.offset, "lies before the end of the span before it");
        }
        if span.size == 0 {
            return bad("size", 0, "is zero");
        }
        if span.data.len() as u64 > span.size {
            return bad("size", span.size, "is less than its contents");
        }
        end = match span.offset.checked_add(span.size) {
            Some(end) => end,
            None => return bad("size", span.size, "leaves the address space"),
        };
        // The image, rounded up to pages, must be addressable wherever it is loaded.
        let top = end.checked_next_multiple_of(head.page_size).and_then(|e| e.checked_add(head.base.unwrap_or(0)));
        if top.is_none_or(|top| top - 1 > limit) {
            return bad("size", span.size, "leaves the address space");
        }
        count += 1;
        if count > MAX_SPANS {
            return Err(PackageError::TooLarge {
                what: "number of spans",
                value: count as u64,
                limit: MAX_SPANS as u64,
            });
        }
    }
    if count == 0 {
        return Err(PackageError::Head { field: "number of spans", value: 0, why: "leaves no image" });
    }
    Ok(())
}

/// Is `offset..offset + size` within one span that `wanted` accepts? A `size` of 0 also allows the span's end.
fn within(v: &impl View, offset: u64, size: u64, wanted: impl Fn(&SpanRef<'_>) -> bool) -> bool {
    let Some(end) = offset.checked_add(size) else { return false };
    v.spans().any(|s| wanted(&s) && offset >= s.offset && end <= s.offset.saturating_add(s.size))
}

/// Is the byte at `offset` executable?
fn executable(v: &impl View, offset: u64) -> bool {
    within(v, offset, 1, |s| s.perm.exec)
}

fn places(v: &impl View, head: &Head<'_>) -> Result<(), PackageError> {
    if !executable(v, head.trap) {
        return Err(PackageError::Head { field: "trap offset", value: head.trap, why: "is in no executable span" });
    }
    if let Some((offset, size)) = head.eh_frame
        && (size == 0 || !within(v, offset, size, |_| true))
    {
        return Err(PackageError::Head { field: "eh_frame offset", value: offset, why: "and size fit in no span" });
    }
    Ok(())
}

/// Checks the symbols and returns how many there are.
fn symbols(v: &impl View, limit: u64, is_64: bool) -> Result<u32, PackageError> {
    let mut count = 0;
    for (index, symbol) in numbered(v.symbols()) {
        let index = index?;
        let bad = |field, value, why| Err(PackageError::Symbol { index, field, value, why });
        no_nul("symbol", index, "name", symbol.name)?;
        if symbol.name.len() > MAX_SYMBOL_NAME {
            return bad("name length", symbol.name.len() as u64, "is more than 65535 bytes");
        }
        if symbol.size > limit {
            return bad("size", symbol.size, "is beyond the ELF class");
        }
        match symbol.referent {
            Referent::Image(offset) => {
                if !within(v, offset, 0, |_| true) {
                    return bad("image offset", offset, "is in no span");
                }
            }
            Referent::Program(addr) | Referent::ProgramIfunc(addr) => {
                if addr.0 > limit {
                    return bad("address", addr.0, "is beyond the addresses of the ELF class");
                }
            }
            Referent::Import { .. } => {
                if symbol.name.is_empty() {
                    return Err(PackageError::Text {
                        record: "symbol",
                        index,
                        field: "name",
                        why: "of an import is empty",
                    });
                }
            }
        }
        count = index + 1;
    }
    // Entry 0 of the symbol table is the null symbol, and a 32-bit r_info has 24 bits for the index.
    let most = if is_64 { u32::MAX - 1 } else { (1 << 24) - 1 };
    if count > most {
        return Err(PackageError::TooLarge { what: "number of symbols", value: count.into(), limit: most.into() });
    }
    Ok(count)
}

fn residue(v: &impl View, head: &Head<'_>, symbols: u32) -> Result<(), PackageError> {
    let mut last = 0;
    for (index, residue) in numbered(v.residue()) {
        let index = index?;
        let bad = |field, value, why| Err(PackageError::Residue { index, field, value, why });
        if residue.offset < last {
            return bad("offset", residue.offset, "lies before the residue before it");
        }
        last = residue.offset;
        if !within(v, residue.offset, 1, |_| true) {
            return bad("offset", residue.offset, "is in no span");
        }
        if residue.symbol >= symbols {
            return bad("symbol", residue.symbol.into(), "is not in the symbol table");
        }
        if !head.ident.is_64 {
            if residue.r_type > 0xff {
                return bad("type", residue.r_type.into(), "does not fit a 32-bit ELF relocation");
            }
            if i32::try_from(residue.addend).is_err() {
                return bad("addend", residue.addend as u64, "does not fit a 32-bit ELF relocation");
            }
        }
    }
    Ok(())
}

fn sites(v: &impl View, limit: u64) -> Result<(), PackageError> {
    let mut busy = None; // last byte of the window of the site before
    for (index, site) in numbered(v.sites()) {
        let index = index?;
        let bad = |field, value, why| Err(PackageError::Site { index, field, value, why });
        for (field, name) in [("old name", site.old), ("new name", site.new)] {
            no_nul("site", index, field, name)?;
            if name.is_empty() {
                return Err(PackageError::Text { record: "site", index, field, why: "is empty" });
            }
        }
        let entry = site.entry.0;
        if entry > limit {
            return bad("entry", entry, "is beyond the addresses of the ELF class");
        }
        if busy.is_some_and(|last| entry <= last) {
            return bad("entry", entry, "lies before the end of the window of the site before it");
        }
        if site.window == 0 {
            return bad("window", 0, "is empty");
        }
        let covered = u64::from(site.pad) + u64::from(site.window);
        if (site.expected.len() as u64) < covered {
            return bad("expected length", site.expected.len() as u64, "is less than pad and window");
        }
        let last = entry.checked_add(site.expected.len() as u64 - 1);
        if last.is_none_or(|last| last > limit) {
            return bad("expected length", site.expected.len() as u64, "leaves the address space");
        }
        busy = entry.checked_add(covered - 1);
        match site.body.get(0) {
            None => return bad("body", 0, "has no part"),
            Some((start, _)) if start != site.entry => return bad("body", start.0, "does not begin at the entry"),
            Some(_) => {}
        }
        for (start, size) in site.body.iter() {
            if size == 0 {
                return bad("body part", start.0, "is empty");
            }
            if start.0.checked_add(size - 1).is_none_or(|last| last > limit) {
                return bad("body part", start.0, "leaves the address space");
            }
        }
        if !executable(v, site.new_offset) {
            return bad("new function's offset", site.new_offset, "is in no executable span");
        }
        if !within(v, site.landing, 0, |s| s.perm.exec) {
            return bad("landing's offset", site.landing, "is in no executable span");
        }
    }
    Ok(())
}
