//! One file for each verb.

pub mod fix;
pub mod generate;
pub mod inspect;
pub mod list;
pub mod remote;
pub mod revert;

use crate::failure::Failure;
use std::path::Path;
use tigerfix::arch::{self, AnyArch};
use tigerfix::model::Package;
use tigerfix::package::PackageReader;

/// No package or object is as large as this; keeps a wrong path (a device, a disk image) from filling memory.
const MAX_FILE: u64 = 4 << 30;

/// Reads a whole input file.
fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let fail =
        |why: String| Failure::bad_input("unreadable-file", format!("cannot read the file: {why}"), None).at(path);
    let meta = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?;
    if meta.is_dir() {
        return Err(fail("it is a directory".into()));
    }
    if meta.len() > MAX_FILE {
        return Err(fail(format!("{} bytes are too many", meta.len())));
    }
    std::fs::read(path).map_err(|e| fail(e.to_string()))
}

/// Reads and checks a package, and finds its back end.
fn load_package(path: &Path, wanted: Option<&str>) -> Result<(Package, AnyArch), Failure> {
    let bytes = read_file(path)?;
    let package = PackageReader::parse(&bytes).map_err(|e| Failure::from(&e).at(path))?.to_package();
    let back_end = arch::for_ident(&package.ident).map_err(|e| Failure::from(&e).at(path))?;
    if let Some(name) = wanted {
        let asked = arch::by_name(name).map_err(|e| Failure::from(&e))?;
        if !arch::is_meant(asked, back_end) {
            return Err(Failure::bad_input(
                "architecture-mismatch",
                format!("the package is for {}, not {}", back_end.name(), asked.name()),
                None,
            )
            .at(path));
        }
    }
    Ok((package, back_end))
}
