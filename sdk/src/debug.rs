//! Debug information of a program: its own sections or those of a separate file, uncompressed.

use object::{Object as _, ObjectSection as _};
use std::path::{Path, PathBuf};
use tigerfix_core::model::Identity;
use tigerfix_core::program::DebugInfo;

/// Sections that the judge reads.
const WANTED: &[&str] = &[
    ".debug_info",
    ".debug_abbrev",
    ".debug_str",
    ".debug_line_str",
    ".debug_str_offsets",
    ".debug_addr",
    ".debug_line",
    ".debug_ranges",
    ".debug_rnglists",
];

/// The DWARF sections of an ELF file, uncompressed. Files without any, and broken ones, give an empty set: whoever
/// needs debug information says so.
#[must_use]
pub fn load(data: &[u8]) -> DebugInfo<'_> {
    let mut info = DebugInfo::default();
    let Ok(file) = object::File::parse(data) else { return info };
    for name in WANTED {
        if let Some(section) = file.section_by_name(name)
            && let Ok(bytes) = section.uncompressed_data()
        {
            info.sections.insert((*name).to_owned(), bytes);
        }
    }
    info
}

/// Where Debian and others install the debug file of a build-id, below `sysroot` if that is not this machine.
#[must_use]
pub fn installed_debug_file(identity: &Identity, sysroot: Option<&Path>) -> Option<PathBuf> {
    let Identity::BuildId(id) = identity else { return None };
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let (dir, file) = hex.split_at_checked(2)?;
    let path = crate::libraries::below(sysroot, "/usr/lib/debug/.build-id").join(dir).join(format!("{file}.debug"));
    path.is_file().then_some(path)
}
