//! Memory for a patch in a Linux target: one named region, mapped with its final rights from the start.

use crate::addr::RunAddr;
use crate::arch::{Arch, LinuxAbi};
use crate::session::area;
use crate::session::error::SessionError;
use crate::session::record::REGION_PREFIX;
use crate::target::{Perm, Target, TargetError};
use alloc::{string::String, vec::Vec};

// The same on every Linux ABI (include/uapi/asm-generic/mman-common.h).
const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const MFD_CLOEXEC: u64 = 1;
const EEXIST: u64 = 17;
const EINVAL: u64 = 22;
/// The kernel takes names of up to 249 bytes for a memfd.
const MAX_NAME: usize = 200;

/// A piece of the region.
pub(super) struct Piece {
    /// Offset from the region's start, bytes.
    pub(super) offset: u64,
    /// Size, bytes.
    pub(super) size: u64,
    /// Rights.
    pub(super) perm: Perm,
}

fn abi(arch: &dyn Arch) -> Result<&'static LinuxAbi, TargetError> {
    arch.linux().ok_or(TargetError::Unsupported { what: "allocate memory: this ABI has no Linux" })
}

/// Makes a system call in the held thread.
pub(super) fn syscall(
    target: &mut dyn Target,
    name: &'static str,
    nr: u64,
    args: [u64; 6],
    scratch: Option<(usize, &[u8])>,
) -> Result<u64, TargetError> {
    target
        .calls()
        .ok_or(TargetError::Unsupported { what: "make system calls in the target" })?
        .syscall(name, nr, args, scratch)
}

/// Holds a thread for injected calls, where memory is allocated by such.
pub(super) fn hold(target: &mut dyn Target) -> Result<(), TargetError> {
    if target.area().is_some() {
        return Ok(());
    }
    target.calls().ok_or(TargetError::Unsupported { what: "make system calls in the target" })?.hold().map(|_| ())
}

/// Lets the held thread go on.
pub(super) fn release(target: &mut dyn Target) -> Result<(), TargetError> {
    // Once more, should it fail: a thread that stays held is worse than any error.
    target.calls().map_or(Ok(()), |c| c.release().or_else(|_| c.release()))
}

/// The name that the kernel will show, without the prefix that it adds.
fn file_name(name: &str) -> Vec<u8> {
    let prefix = REGION_PREFIX.strip_prefix("/memfd:").unwrap_or(REGION_PREFIX);
    let mut text = String::from(prefix);
    // Names appear in /proc/PID/maps: nothing there that would break a line.
    text.extend(name.chars().map(|c| if c.is_control() || c.is_whitespace() { '_' } else { c }));
    let mut cut = text.len().min(MAX_NAME);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    text.truncate(cut);
    let mut bytes = text.into_bytes();
    bytes.push(0);
    bytes
}

/// Maps a region of `pieces` at the first of `places` that is still free, its code `guarded` if the system can
/// ([`Arch::guard`]). A thread must be held.
///
/// The region is a private mapping of a memory file, because its name is then visible in /proc/PID/maps on every
/// kernel since 3.17 (names of anonymous memory need CONFIG_ANON_VMA_NAME). Nothing is ever writable and executable:
/// contents are written by the transport, which copies the pages.
///
/// # Errors
/// Target errors; nothing stays mapped then.
pub(super) fn map(
    target: &mut dyn Target,
    arch: &dyn Arch,
    name: &str,
    guarded: bool,
    places: &[RunAddr],
    pieces: &[Piece],
) -> Result<RunAddr, SessionError> {
    let abi = abi(arch)?;
    let total = pieces.iter().map(|p| p.offset + p.size).max().unwrap_or(0);
    let fd =
        syscall(target, "memfd_create", abi.memfd_create, [0, MFD_CLOEXEC, 0, 0, 0, 0], Some((0, &file_name(name))))?;
    let mut result = Err(SessionError::NoSpace {
        size: total,
        low: places.first().copied().unwrap_or_default(),
        high: places.last().copied().unwrap_or_default(),
        target: target.describe(),
    });
    let sized = syscall(target, "ftruncate", abi.ftruncate, [fd, total, 0, 0, 0, 0], None);
    match sized {
        Err(e) => result = Err(e.into()),
        Ok(_) => {
            for &place in places {
                let guard = arch.guard().filter(|_| guarded).map_or(0, |g| g.prot);
                let mut mapped = map_at(target, abi, fd, place, pieces, guard);
                // A kernel or processor without landing pads does not know that right.
                if guard != 0 && matches!(mapped, Err(TargetError::Injected { errno: EINVAL, .. })) {
                    mapped = map_at(target, abi, fd, place, pieces, 0);
                }
                match mapped {
                    Ok(()) => {
                        result = Ok(place);
                        break;
                    }
                    // Somebody took the place meanwhile, or the kernel is too old to refuse and chose another.
                    Err(TargetError::Injected { errno: EEXIST, .. }) => {}
                    Err(e) => {
                        result = Err(e.into());
                        break;
                    }
                }
            }
        }
    }
    let closed = syscall(target, "close", abi.close, [fd, 0, 0, 0, 0, 0], None);
    match (result, closed) {
        (Ok(at), Ok(_)) => Ok(at),
        (Ok(at), Err(e)) => {
            // Leaving the descriptor open would be a leak that the target sees.
            Err(match unmap(target, arch, at, total) {
                Ok(()) => e.into(),
                Err(undo) => left_over(&e.into(), &[at], &undo).into(),
            })
        }
        (Err(e), _) => Err(e),
    }
}

fn map_at(
    target: &mut dyn Target,
    abi: &LinuxAbi,
    fd: u64,
    place: RunAddr,
    pieces: &[Piece],
    guard: u64,
) -> Result<(), TargetError> {
    let mut done: Vec<(RunAddr, u64)> = Vec::new();
    for p in pieces {
        let prot = if p.perm.read { PROT_READ } else { 0 }
            | if p.perm.write { PROT_WRITE } else { 0 }
            | if p.perm.exec { PROT_EXEC | guard } else { 0 };
        let want = place.offset(p.offset);
        let flags = abi.map_private | abi.map_fixed_noreplace;
        let args = [want.0, p.size, prot, flags, fd, p.offset / abi.mmap_unit];
        let got = syscall(target, "mmap", abi.mmap, args, None);
        let failed = match got {
            Ok(at) if at == want.0 => {
                done.push((want, p.size));
                continue;
            }
            Ok(elsewhere) => {
                done.push((RunAddr(elsewhere), p.size));
                TargetError::Injected { call: "mmap", errno: EEXIST }
            }
            Err(e) => e,
        };
        let mut stays = None;
        for (at, size) in done {
            if let Err(undo) = syscall(target, "munmap", abi.munmap, [at.0, size, 0, 0, 0, 0], None) {
                stays.get_or_insert((at, undo));
            }
        }
        return Err(match stays {
            None => failed,
            Some((at, undo)) => left_over(&failed.into(), &[at], &undo),
        });
    }
    Ok(())
}

/// `cause`, and that the memory at `at` could not be given back.
pub(super) fn left_over(cause: &SessionError, at: &[RunAddr], undo: &dyn core::fmt::Display) -> TargetError {
    let at: Vec<String> = at.iter().map(|a| alloc::format!("{a}")).collect();
    TargetError::System {
        what: alloc::format!("{cause}; the unused image at {} could not be unmapped", at.join(" and at ")),
        why: alloc::format!("{undo}"),
    }
}

/// Unmaps a region. A thread must be held. In an area nothing is mapped: a block is free when no record claims it.
///
/// # Errors
/// Target errors.
pub(super) fn unmap(target: &mut dyn Target, arch: &dyn Arch, at: RunAddr, size: u64) -> Result<(), TargetError> {
    if target.area().is_some() {
        return area::forget(target, at);
    }
    let abi = abi(arch)?;
    syscall(target, "munmap", abi.munmap, [at.0, size, 0, 0, 0, 0], None).map(|_| ())
}
